//! Principals that need no credential here: the host has found them out, or everybody is the same one.

use std::sync::Arc;

use async_trait::async_trait;
use function_gateway_core::{Principal, Result};
use http::request::Parts;

use super::{Authenticated, Authenticator};

/// Takes the principal that the embedding service has found out and passes as an extension of the request: an
/// `Arc<Principal>`. Where there is none, the next authenticator is asked.
///
/// ```
/// # use std::sync::Arc;
/// # use function_gateway_core::Principal;
/// async fn authenticate(mut request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
///     // From the host's own session, say.
///     let principal = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
///     request.extensions_mut().insert(Arc::new(principal));
///     next.run(request).await
/// }
/// # fn mount(gateway: axum::Router) -> axum::Router {
/// axum::Router::new().nest("/functions", gateway).layer(axum::middleware::from_fn(authenticate))
/// # }
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct HostPrincipal;

#[async_trait]
impl Authenticator for HostPrincipal {
    async fn authenticate(&self, request: &Parts) -> Result<Option<Authenticated>> {
        Ok(request.extensions.get::<Arc<Principal>>().cloned().map(Authenticated::new))
    }
}

/// Takes every request for one of the same principal: for trials on one machine, and for networks that guard access themselves.
#[derive(Debug, Clone)]
pub struct Anonymous(Arc<Principal>);

impl Anonymous {
    /// Every request is this principal's.
    #[must_use]
    pub fn new(principal: Principal) -> Self {
        Self(Arc::new(principal))
    }
}

#[async_trait]
impl Authenticator for Anonymous {
    async fn authenticate(&self, _: &Parts) -> Result<Option<Authenticated>> {
        Ok(Some(Authenticated::new(Arc::clone(&self.0))))
    }
}
