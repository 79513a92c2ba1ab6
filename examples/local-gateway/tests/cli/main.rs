//! The program as its users have it: started, asked, and stopped.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

mod client;
mod common;
mod configuration;
mod events;
mod keys;
mod queue;
mod serve;
