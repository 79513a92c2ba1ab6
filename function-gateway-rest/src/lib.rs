//! A REST API for Function Gateway: an axum [`Router`](axum::Router) that a host mounts under any path.
//!
//! [`RestApi`] puts a gateway, its [`Authenticator`]s and [`RestOptions`] together. It binds no port and starts no task of its own at
//! start; [`serve`] (feature `serve`) serves a listener of the host's.
//!
//! What a caller may do is decided by the gateway's [`Authorizer`](function_gateway_core::Authorizer), which is asked for each
//! operation: this crate only finds out who calls.
//!
//! The description of the API is [`openapi_json`], and in words in `docs/rest.md`.

mod api;
pub mod auth;
mod cors;
mod document;
mod envelope;
mod extract;
mod openapi;
mod payload;
mod problem;
mod readiness;
mod responses;
mod routes;
#[cfg(feature = "serve")]
pub mod serve;

pub use api::{RestApi, RestApiBuilder, RestOptions, openapi_json};
pub use auth::{Anonymous, ApiKeyAuthenticator, Authenticated, Authenticator, HostPrincipal, MintedKey, ThisMachine};
pub use cors::Cors;

/// The code in docs/rest.md, compiled.
#[cfg(doctest)]
#[doc = include_str!("../../docs/rest.md")]
pub struct Guide;
