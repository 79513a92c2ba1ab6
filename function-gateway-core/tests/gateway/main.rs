//! A gateway over scripted engines, through the public API.

mod common;
mod executor;
mod manager;
mod reconcile;
mod records;
