//! Callers without a credential: those on this machine, and no page of the web that a browser on it shows.

use std::borrow::Cow;
use std::net::SocketAddr;

use async_trait::async_trait;
use axum::extract::ConnectInfo;
use function_gateway_core::{Error, ErrorKind, Principal, Result};
use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, ORIGIN, VIA};
use http::request::Parts;
use http::uri::Authority;

use super::{Anonymous, Authenticated, Authenticator, is_loopback};

/// From where the page is that makes a browser send a request (Fetch Metadata). Loopback addresses get it without TLS too.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What proxies say of whom they pass on. Through one, everybody whom it lets in would be on this machine.
const PASSED_ON: [HeaderName; 6] = [
    FORWARDED,
    VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-real-ip"),
];

/// Takes every request of this machine for one of the same principal: for trials, with a server that listens on a loopback
/// address.
///
/// Who is connected it knows from `ConnectInfo<SocketAddr>` among the request's extensions, where [`serve`](crate::serve) puts it and
/// axum's own server can. Without it the address that the server listens on has to keep others out.
///
/// A gateway that listens on a loopback address can still be reached by any page that a browser on this machine shows: by the
/// address itself, or by a name of the page's own that it has lead here (DNS rebinding). The second is told by `Host`, the first
/// by `Origin` and, where a page makes the browser send none (an image, a script, a link), by `Sec-Fetch-Site`. By a proxy on this
/// machine it can be reached from everywhere, which the headers tell that proxies set.
///
/// All of these are refused with [`ErrorKind::PermissionDenied`].
#[derive(Debug, Clone)]
pub struct ThisMachine {
    caller: Anonymous,
    advice: Cow<'static, str>,
}

impl ThisMachine {
    /// Every request of this machine is this principal's.
    #[must_use]
    pub fn new(principal: Principal) -> Self {
        Self { caller: Anonymous::new(principal), advice: "have callers show a credential, such as an API key".into() }
    }

    /// Says in a refusal what whoever runs the server is to do for callers from elsewhere: "switch authentication on", say.
    #[must_use]
    pub fn with_advice(mut self, advice: impl Into<Cow<'static, str>>) -> Self {
        self.advice = advice.into();
        self
    }

    /// Why a request is not let in.
    fn refusal(request: &Parts) -> Option<String> {
        let peer = request.extensions.get::<ConnectInfo<SocketAddr>>();
        if peer.is_some_and(|ConnectInfo(peer)| !peer.ip().to_canonical().is_loopback()) {
            return Some("requests of other machines are not let in".to_owned());
        }
        if let Some(header) = PASSED_ON.iter().find(|header| request.headers.contains_key(*header)) {
            return Some(format!("requests that come by a proxy, as `{header}` says of this one, are not let in"));
        }
        let named: Option<Authority> =
            request.uri.authority().cloned().or_else(|| text(&request.headers, HOST)?.parse().ok());
        let Some(named) = named.filter(|named| is_loopback(named.host())) else {
            return Some("requests have to be for localhost, 127.0.0.1 or [::1]".to_owned());
        };
        let is_own = |origin: &str| {
            let authority = origin.split_once("://").map(|(_, authority)| authority);
            authority.is_some_and(|authority| authority.eq_ignore_ascii_case(named.as_str()))
        };
        // `none` is what the user asks for, such as by typing an address.
        let is_elsewhere = text(&request.headers, ORIGIN).is_some_and(|origin| !is_own(origin))
            || text(&request.headers, SEC_FETCH_SITE).is_some_and(|site| !matches!(site, "none" | "same-origin"));
        is_elsewhere.then(|| "pages that are from elsewhere are not let in".to_owned())
    }
}

#[async_trait]
impl Authenticator for ThisMachine {
    async fn authenticate(&self, request: &Parts) -> Result<Option<Authenticated>> {
        if let Some(refusal) = Self::refusal(request) {
            let message = format!("without authentication, {refusal}; {}", self.advice);
            return Err(Error::new(ErrorKind::PermissionDenied, message));
        }
        self.caller.authenticate(request).await
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_let_in(host: &str, header: Option<(HeaderName, &str)>) -> bool {
        let mut request = http::Request::get("/v1/me").header(HOST, host);
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        let principal = Principal::new("local".parse().unwrap(), "anonymous".parse().unwrap());
        ThisMachine::new(principal).authenticate(&parts).await.is_ok()
    }

    #[tokio::test]
    async fn requests_of_this_machine_are_let_in() {
        for host in ["127.0.0.1:8080", "localhost", "LocalHost:1", "[::1]:8080", "127.1.2.3"] {
            assert!(is_let_in(host, None).await, "{host}");
        }
        assert!(is_let_in("localhost:8080", Some((ORIGIN, "http://localhost:8080"))).await);
        for site in ["none", "same-origin"] {
            assert!(is_let_in("localhost:8080", Some((SEC_FETCH_SITE, site))).await, "{site}");
        }
    }

    #[tokio::test]
    async fn who_is_connected_from_another_machine_is_not() {
        for (peer, is_here) in [("127.0.0.1:1", true), ("[::ffff:127.0.0.1]:1", true), ("192.0.2.1:1", false)] {
            let request = http::Request::get("/v1/me").header(HOST, "localhost");
            let (mut parts, ()) = request.body(()).unwrap().into_parts();
            parts.extensions.insert(ConnectInfo(peer.parse::<SocketAddr>().unwrap()));
            assert_eq!(ThisMachine::refusal(&parts).is_none(), is_here, "{peer}");
        }
    }

    #[tokio::test]
    async fn what_comes_by_a_proxy_is_not() {
        for (name, value) in [
            ("forwarded", "for=192.0.2.1"),
            ("via", "1.1 proxy"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "localhost"),
            ("x-forwarded-proto", "https"),
            ("x-real-ip", "127.0.0.1"),
        ] {
            let name = HeaderName::from_static(name);
            assert!(!is_let_in("localhost:8080", Some((name.clone(), value))).await, "{name}");
            assert!(!is_let_in("localhost:8080", Some((name.clone(), ""))).await, "{name} without a value");
        }
    }

    #[tokio::test]
    async fn pages_from_elsewhere_are_not() {
        for host in ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", ""] {
            assert!(!is_let_in(host, None).await, "{host}");
        }
        let others = ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhost:3000"];
        for origin in others {
            assert!(!is_let_in("localhost:8080", Some((ORIGIN, origin))).await, "{origin}");
        }
        for site in ["cross-site", "same-site", "new-site"] {
            assert!(!is_let_in("localhost:8080", Some((SEC_FETCH_SITE, site))).await, "{site}");
        }
    }
}
