//! Principals that need no credential here: the host has found them out, or everybody is the same one.

use std::sync::Arc;

use async_trait::async_trait;
use function_gateway_core::{Principal, Result};
use http::header::{self, HeaderName};
use http::request::Parts;

use super::{Authenticated, Authenticator};

/// Takes the principal that the embedding service has found out and passes as an extension of the request: an
/// `Arc<Principal>`. Where there is none, the next authenticator is asked.
///
/// The host's own credential is not for functions. [`default`](Default::default) takes it to come in `Authorization` or `Cookie`,
/// so neither is passed on; [`by_headers`](Self::by_headers) names others. That holds where this authenticator knows the caller: add it
/// before others that might.
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
/// # use function_gateway_core::{Gateway, Result};
/// # use function_gateway_rest::{HostPrincipal, RestApi};
/// # fn mount(gateway: Gateway) -> Result<axum::Router> {
/// let api = RestApi::builder(gateway).authenticator(HostPrincipal::default()).build()?;
/// let app = axum::Router::new().nest("/functions", api.router()).layer(axum::middleware::from_fn(authenticate));
/// # Ok(app)
/// # }
/// ```
///
/// Functions answer on the host's own origin. Where browsers hold the host's credential, as they do a cookie, mount the gateway
/// under an origin of its own: a page that a function answers could otherwise act as whoever looks at it.
#[derive(Debug, Clone)]
pub struct HostPrincipal {
    credential: Vec<HeaderName>,
}

impl HostPrincipal {
    /// The host's credential comes in these headers, which are not passed on to functions. With none, it comes in no header, such
    /// as where it is a client's certificate, and all are passed on.
    #[must_use]
    pub fn by_headers(headers: impl IntoIterator<Item = HeaderName>) -> Self {
        Self { credential: headers.into_iter().collect() }
    }
}

impl Default for HostPrincipal {
    fn default() -> Self {
        Self::by_headers([header::AUTHORIZATION, header::COOKIE])
    }
}

#[async_trait]
impl Authenticator for HostPrincipal {
    async fn authenticate(&self, request: &Parts) -> Result<Option<Authenticated>> {
        let found = request.extensions.get::<Arc<Principal>>();
        Ok(found.map(|principal| Authenticated { principal: Arc::clone(principal), headers: self.credential.clone() }))
    }
}

/// Takes every request for one of the same principal: for networks that guard access themselves. For trials on one machine
/// [`ThisMachine`](super::ThisMachine) keeps others out.
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
