//! Who calls: how a request's credential becomes a [`Principal`]. What the principal may do is decided in core, by an
//! [`Authorizer`](function_gateway_core::Authorizer).

pub(crate) mod api_key;
mod host;
#[cfg(feature = "jwt")]
pub mod jwt;
mod this_machine;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use function_gateway_core::{Error, ErrorKind, Principal, Result};
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

pub use api_key::{ApiKeyAuthenticator, MintedKey};
pub use host::{Anonymous, HostPrincipal};
pub use this_machine::ThisMachine;

/// Finds out who makes a request.
///
/// A router asks its authenticators in the order in which they were added, until one knows the credential.
///
/// Operations refuse parameters in the query that they don't have. A host that takes a credential there puts it into a header, or
/// the principal among the extensions, and takes it out of the URI before the router gets the request.
#[async_trait]
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Looks at a request's head. `None` where it holds no credential of this kind: the next one is asked.
    ///
    /// # Errors
    /// [`ErrorKind::Unauthenticated`] where there is a credential of this kind that is not valid: nobody else is asked.
    /// Its message must not tell what about it is wrong in a way that helps to guess another. Any other error where it can't be
    /// checked now.
    async fn authenticate(&self, request: &Parts) -> Result<Option<Authenticated>>;

    /// What a client that is not authenticated is told to send (`WWW-Authenticate`, RFC 9110, section 11.6.1).
    fn challenge(&self) -> Option<HeaderValue> {
        None
    }
}

/// Who makes a request, and where it said so.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Authenticated {
    /// Who it is.
    pub principal: Arc<Principal>,
    /// The headers that the credential came in. They are not passed on to functions.
    pub headers: Vec<HeaderName>,
}

impl Authenticated {
    /// A principal whose credential did not come in a header.
    #[must_use]
    pub fn new(principal: Arc<Principal>) -> Self {
        Self { principal, headers: Vec::new() }
    }

    /// Names a header that the credential came in, beside those that were named before.
    #[must_use]
    pub fn by_header(mut self, header: HeaderName) -> Self {
        self.headers.push(header);
        self
    }
}

/// The credential that a request has as `Authorization: Bearer` (RFC 6750, section 2.1).
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Whether a host as it stands in a URL is this machine: `localhost`, or a loopback address.
///
/// ```
/// use function_gateway_rest::auth::is_loopback;
///
/// assert!(["localhost", "127.0.0.1", "[::1]"].into_iter().all(is_loopback));
/// assert!(!is_loopback("localhost.example.com"));
/// ```
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The error for a credential that is not valid, for whatever reason.
pub(crate) fn not_valid() -> Error {
    Error::new(ErrorKind::Unauthenticated, "the credential is not valid, or no longer")
}
