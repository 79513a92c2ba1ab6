//! Pages of other origins (CORS, as the Fetch standard has it).

use std::convert::Infallible;

use axum::Router;
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::IntoResponse as _;
use function_gateway_core::{Error, ErrorKind, Result};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, CorsLayer};

use crate::envelope::caught;
use crate::problem::ANSWERED_BY;

/// Headers of answers that scripts of other origins may read.
const EXPOSED_HEADERS: [HeaderName; 10] = [
    header::ETAG,
    header::LOCATION,
    header::RETRY_AFTER,
    HeaderName::from_static("server-timing"),
    crate::envelope::REQUEST_ID,
    crate::problem::ANSWERED_BY,
    crate::routes::PREFERENCE_APPLIED,
    crate::routes::invocations::INVOCATION_ID,
    crate::routes::invocations::OUTCOME,
    crate::routes::invocations::FAILURE,
];

/// Which pages of other origins may call (Fetch standard, CORS protocol).
///
/// A browser's preflight is then answered by the gateway, also one to a function's own URL; another `OPTIONS` is the function's.
#[derive(Debug, Clone)]
pub struct Cors(Origins);

#[derive(Debug, Clone)]
enum Origins {
    Any,
    List(Vec<HeaderValue>),
}

impl Cors {
    /// Pages of every origin, without the browser's own credentials (cookies).
    #[must_use]
    pub fn any_origin() -> Self {
        Self(Origins::Any)
    }

    /// Pages of these origins, such as `https://app.example.com`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for what is no origin: scheme, host and, where it is not the usual one, port, and no more.
    pub fn origins<I: IntoIterator<Item = S>, S: AsRef<str>>(origins: I) -> Result<Self> {
        let origin = |origin: S| {
            let origin = origin.as_ref();
            // As browsers write them, since they are compared byte by byte.
            let is_one = origin.split_once("://").is_some_and(|(scheme, host)| {
                let usual_port = if scheme == "https" { ":443" } else { ":80" };
                matches!(scheme, "http" | "https")
                    && !host.is_empty()
                    && !host.ends_with(usual_port)
                    && host
                        .bytes()
                        .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b':' | b'[' | b']'))
            });
            let value = HeaderValue::from_str(origin).ok().filter(|_| is_one);
            value.ok_or_else(|| {
                let message = format!("{origin:?} is no origin as browsers send it: one is like https://app.example.com, in small letters, without a path and \
                     without the usual port");
                Error::new(ErrorKind::InvalidArgument, message)
            })
        };
        origins.into_iter().map(origin).collect::<Result<_>>().map(|origins| Self(Origins::List(origins)))
    }
}

/// Lets pages of other origins in. All but a preflight goes to where it would go without this.
pub(crate) fn letting_in<S: Clone + Send + Sync + 'static>(Cors(origins): &Cors, router: Router<S>) -> Router<S> {
    let origin = match origins {
        Origins::Any => AllowOrigin::any(),
        Origins::List(origins) => AllowOrigin::list(origins.iter().cloned()),
    };
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods(AllowMethods::mirror_request())
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED_HEADERS);
    let cors = layer.layer(service_fn(|_| std::future::ready(Ok(http::Response::new(())))));
    router.layer(axum::middleware::from_fn(move |request: Request, next: Next| {
        let cors = cors.clone();
        async move {
            let is_preflight = is_preflight(&request);
            let mut told = told(cors, is_preflight, request.headers()).await;
            if is_preflight {
                told.insert(ANSWERED_BY, HeaderValue::from_static("gateway"));
                return told.into_response();
            }
            // Caught here, so that the page may read that too.
            let mut response = caught(next.run(request)).await;
            let headers = response.headers_mut();
            // A function may have some of its own.
            for name in [header::VARY, header::ACCESS_CONTROL_EXPOSE_HEADERS] {
                if let Some(value) = told.remove(&name) {
                    headers.append(name, value);
                }
            }
            headers.extend(told);
            response
        }
    }))
}

/// What a browser asks before it sends a request of a page's (Fetch, section 3.3.2).
fn is_preflight(request: &Request) -> bool {
    let headers = request.headers();
    *request.method() == Method::OPTIONS
        && headers.contains_key(header::ORIGIN)
        && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// What the browser is told. The layer takes every `OPTIONS` for a preflight, so what is none goes through it by another method.
async fn told(
    cors: impl Service<http::Request<()>, Response = http::Response<()>, Error = Infallible>,
    is_preflight: bool,
    headers: &HeaderMap,
) -> HeaderMap {
    let mut asked = http::Request::new(());
    *asked.method_mut() = if is_preflight { Method::OPTIONS } else { Method::GET };
    for name in [header::ORIGIN, header::ACCESS_CONTROL_REQUEST_METHOD, header::ACCESS_CONTROL_REQUEST_HEADERS] {
        asked.headers_mut().extend(headers.get(&name).map(|value| (name, value.clone())));
    }
    match cors.oneshot(asked).await {
        Ok(answer) => answer.into_parts().0.headers,
        Err(never) => match never {},
    }
}
