//! Callers who show a JSON Web Token.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code fails by panicking")]

mod jwt_files;
#[cfg(feature = "serve")]
mod jwt_sockets;
#[cfg(target_os = "linux")]
mod jwt_tls;
mod jwt_tokens;
mod jwt_urls;
mod kit;
