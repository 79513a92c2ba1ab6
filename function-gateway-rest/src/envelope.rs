//! What surrounds every request: its id, its line in the log, and the problem document where it failed.

use std::fmt;
use std::future::ready;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{Error, ErrorKind, Principal};
use futures_util::FutureExt as _;
use futures_util::future::Either;
use http::header::{self, HeaderName};
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Version};

use crate::problem::{ANSWERED_BY, Problem};

/// The id of a request: the client's, where it is fit for that, or a new one.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID: usize = 128;
/// For what depends on who asks, and may be another the next time.
pub(crate) const NO_SHARED_CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// What is logged of a request beside what is seen from outside.
#[derive(Clone, Default)]
pub(crate) struct RequestLog(Arc<OnceLock<Arc<Principal>>>);

impl RequestLog {
    pub(crate) fn set_principal(&self, principal: &Arc<Principal>) {
        self.0.get_or_init(|| Arc::clone(principal));
    }
}

impl fmt::Debug for RequestLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RequestLog")
    }
}

/// The id of the request whose answer this is part of, for what is only told within its body. It is set before the body begins.
#[derive(Debug, Clone, Default)]
pub(crate) struct StreamId(Arc<OnceLock<String>>);

impl StreamId {
    pub(crate) fn get(&self) -> &str {
        self.0.get().map(String::as_str).unwrap_or_default()
    }
}

/// The outermost layer.
///
/// Each request is one event of the target `function_gateway::access` at level INFO, when its answer begins, with the fields
/// `method`, `path`, `status`, `took_us`, `request_id` and, where it is known, `tenant` and `principal`.
pub(crate) fn envelope(request: Request, next: Next) -> impl Future<Output = Response> + Send {
    let unfit = unfit_host(&request);
    in_envelope(request, move |request| match unfit {
        Some(reason) => Either::Left(ready(bad_request(reason))),
        None => Either::Right(caught(next.run(request))),
    })
}

/// The answer to a request that no router gets.
#[cfg(feature = "serve")]
pub(crate) fn refused(request: Request, reason: &'static str) -> impl Future<Output = Response> + Send {
    in_envelope(request, move |_| ready(bad_request(reason)))
}

fn bad_request(reason: &'static str) -> Response {
    Problem::from(Error::new(ErrorKind::InvalidArgument, reason)).into_response()
}

fn in_envelope<F>(mut request: Request, answer: impl FnOnce(Request) -> F) -> impl Future<Output = Response> + Send
where
    F: Future<Output = Response> + Send,
{
    let id = request_id(&request);
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let logged = tracing::enabled!(target: "function_gateway::access", tracing::Level::INFO).then(|| {
        let log = RequestLog::default();
        request.extensions_mut().insert(log.clone());
        (log, request.method().clone(), request.uri().path().to_owned(), Instant::now())
    });
    let answer = answer(request);
    async move {
        let id_text = id.to_str().unwrap_or_default();
        let mut response = answer.await;
        if let Some(Panic(message)) = response.extensions_mut().remove() {
            tracing::error!(target: "function_gateway::rest", request_id = id_text, message, "the handling of a request panicked");
        }
        if let Some(problem) = response.extensions_mut().remove::<Problem>() {
            response = problem.finish(response, id_text);
        }
        if let Some(StreamId(cell)) = response.extensions_mut().remove() {
            cell.get_or_init(|| id_text.to_owned());
        }
        if is_read {
            keep_from_shared_caches(response.headers_mut());
        }
        if let Some((log, method, path, start)) = logged {
            let principal = log.0.get();
            tracing::info!(
                target: "function_gateway::access",
                %method,
                path,
                status = response.status().as_u16(),
                took_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX),
                request_id = id_text,
                tenant = principal.map(|principal| principal.tenant.as_str()),
                principal = principal.map(|principal| principal.id.as_str()),
            );
        }
        response.headers_mut().insert(REQUEST_ID, id);
        response
    }
}

/// Why a server refuses a request of HTTP/1.1 without a host (RFC 9112, section 3.2). Those who make requests of a router by hand need
/// not name any.
#[cfg(feature = "serve")]
pub(crate) fn missing_host(request: &Request) -> Option<&'static str> {
    let is_missing = request.version() == Version::HTTP_11 && !request.headers().contains_key(header::HOST);
    is_missing.then_some("the request has no `Host`; one is needed")
}

/// Why two readers could take a request for one of different hosts (RFC 9112, section 3.2; RFC 9113, section 8.3.1). It is asked
/// by the server, for all that a host has beside the API, and by the API, which may be behind another server.
pub(crate) fn unfit_host(request: &Request) -> Option<&'static str> {
    let mut hosts = request.headers().get_all(header::HOST).iter().map(HeaderValue::as_bytes);
    match (hosts.next(), hosts.next()) {
        (_, Some(_)) => Some("the request has more than one `Host`"),
        (Some(host), None) if !host.iter().all(is_of_host) => Some("the request's `Host` is none"),
        (Some(host), None) if request.version() == Version::HTTP_2 => {
            let differs = |authority: &Authority| !authority.as_str().as_bytes().eq_ignore_ascii_case(host);
            request.uri().authority().is_some_and(differs).then_some("`Host` and `:authority` are not the same")
        }
        _ => None,
    }
}

/// Whether a byte may be part of a host and a port (RFC 3986, sections 3.2.2 and 3.2.3).
fn is_of_host(byte: &u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'%' | b':' | b'[' | b']')
        || matches!(byte, b'!' | b'$' | b'&'..=b',' | b';' | b'=')
}

/// What a handler said when it panicked, for the log.
#[derive(Clone)]
struct Panic(Option<String>);

/// An answer also where a handler panics.
pub(crate) async fn caught(answer: impl Future<Output = Response>) -> Response {
    AssertUnwindSafe(answer).catch_unwind().await.unwrap_or_else(|panic| {
        let message = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        let error = Error::new(ErrorKind::Internal, "the gateway failed; its log says more under the request's id");
        let mut response = Problem::from(error).into_response();
        response.extensions_mut().insert(Panic(message));
        response
    })
}

/// Answers depend on who asks. A cache that many share heeds that by itself for `Authorization` alone (RFC 9111, section 3.5), and
/// credentials come in other headers too.
fn keep_from_shared_caches(headers: &mut HeaderMap) {
    let is_function = headers.get(ANSWERED_BY).is_some_and(|by| by == "function");
    let value = if is_function { HeaderValue::from_static("private") } else { NO_SHARED_CACHE };
    headers.entry(header::CACHE_CONTROL).or_insert(value);
}

fn request_id(request: &Request) -> HeaderValue {
    let fit = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        !bytes.is_empty() && bytes.len() <= MAX_REQUEST_ID && bytes.iter().all(u8::is_ascii_graphic)
    };
    match request.headers().get(REQUEST_ID).filter(fit) {
        Some(id) => id.clone(),
        None => {
            let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
            let text = uuid::Uuid::now_v7().hyphenated().encode_lower(&mut text);
            HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static("none"))
        }
    }
}
