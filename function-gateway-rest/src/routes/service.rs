//! The gateway itself: drivers, limits, health, metrics, and the description of this API.

use std::io::Write as _;
use std::sync::{Arc, LazyLock};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use function_gateway_core::{AccessManager as _, Error, ErrorKind, PageRequest};
use http::header::{self, HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::etag::Etag;
use super::executions::MAX_WAIT;
use crate::api::Api;
use crate::document::{DriverDocument, Health, LimitsDocument, QueueLimitsDocument};
use crate::extract::{Caller, NoQuery};
use crate::problem::{Problem, ProblemDocument};
use crate::responses::{Guarded, Scraped};

type Answer = Result<Response, Problem>;

/// The exposition format of Prometheus.
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(drivers))
        .routes(routes!(limits))
        .routes(routes!(health))
        .routes(routes!(ready))
        .routes(routes!(metrics))
        .routes(routes!(openapi))
}

/// Lists the drivers, and what each can do.
#[utoipa::path(
    get,
    path = "/v1/drivers",
    tag = "gateway",
    responses((status = 200, description = "The drivers, in the order of their names", body = Vec<DriverDocument>), Guarded),
)]
async fn drivers(State(api): State<Arc<Api>>, _: Caller, _: NoQuery) -> Json<Vec<DriverDocument>> {
    let driver = |(name, driver): (_, &Arc<dyn function_gateway_core::FaasDriver>)| {
        DriverDocument::new(name, driver.info(), |protocol| driver.capabilities(protocol))
    };
    Json(api.gateway.drivers().iter().map(driver).collect())
}

/// Says what the gateway lets pass, and how long it waits.
#[utoipa::path(
    get,
    path = "/v1/limits",
    tag = "gateway",
    responses((status = 200, description = "The limits", body = LimitsDocument), Guarded),
)]
async fn limits(State(api): State<Arc<Api>>, _: Caller, _: NoQuery) -> Json<LimitsDocument> {
    let config = api.gateway.config();
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    Json(LimitsDocument {
        max_document_bytes: api.options.max_document_bytes,
        max_request_bytes: config.max_request_bytes,
        max_response_bytes: config.max_response_bytes,
        max_kept_bytes: config.max_kept_bytes,
        max_queued: config.max_queued,
        max_page: PageRequest::MAX_LIMIT,
        default_total_ms: millis(config.default_total_timeout),
        default_idle_ms: millis(config.default_idle_timeout),
        default_ready_ms: millis(config.default_ready_timeout),
        default_wait_ms: millis(config.default_manage_wait),
        upload_idle_ms: millis(api.options.upload_idle_timeout),
        queue: QueueLimitsDocument {
            max_per_function: config.queue.max_per_function,
            max_per_tenant: config.queue.max_per_tenant,
            max_pinned: config.queue.max_pinned,
            max_payload_bytes: config.queue.max_payload_bytes,
            max_result_bytes: config.queue.max_result_bytes,
            keep_ms: millis(config.queue.keep_for),
            max_delay_ms: millis(config.queue.max_delay),
            max_wait_ms: millis(MAX_WAIT),
        },
    })
}

/// Says that the process lives.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "gateway",
    responses((status = 200, description = "It lives", body = Health)),
    security(()),
)]
async fn health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Says whether work that comes in now can be done: the gateway is not shutting down, and its store answers.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "gateway",
    responses((status = 200, description = "It can", body = Health),
        (status = 503, description = "It can't", body = ProblemDocument, content_type = "application/problem+json")),
    security(()),
)]
async fn ready(State(api): State<Arc<Api>>) -> Answer {
    api.readiness.of(&api.gateway).await?;
    Ok(Json(Health { status: "ok" }).into_response())
}

/// Gives the metrics of the whole gateway, in the exposition format of Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "gateway",
    responses((status = 200, description = "The metrics", body = String, content_type = "text/plain"), Scraped),
)]
async fn metrics(State(api): State<Arc<Api>>, caller: Caller) -> Answer {
    api.gateway.may_read_metrics(&caller.context()).await?;
    let Some(render) = &api.metrics else {
        return Err(Error::new(ErrorKind::Unsupported, "this gateway's host offers no metrics").into());
    };
    Ok(([(header::CONTENT_TYPE, METRICS)], render()).into_response())
}

/// Gives the description of this API, as OpenAPI 3.1.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "gateway",
    params(("If-None-Match" = Option<String>, Header, description = "The ETag that the client has")),
    responses((status = 200, description = "The description", body = Object, content_type = "application/json", headers(
            ("ETag" = String, description = "Its version"))),
        (status = 304, description = "The client has it")),
    security(()),
)]
async fn openapi(headers: HeaderMap) -> Response {
    static DESCRIPTION: LazyLock<Description> = LazyLock::new(Description::new);
    let Description { text, gzip, etag } = &*DESCRIPTION;
    if let Some(response) = etag.not_modified(&headers) {
        return response;
    }
    let mut response = match gzip.as_ref().filter(|_| takes_gzip(&headers)) {
        Some(gzip) => {
            ([(header::CONTENT_ENCODING, "gzip"), (header::VARY, "accept-encoding")], gzip.clone()).into_response()
        }
        None => text.into_response(),
    };
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    etag.set(&mut response);
    response
}

/// What this API is, put together and compressed once, since that takes longer than all the rest, and anybody may ask.
struct Description {
    text: &'static str,
    gzip: Option<Bytes>,
    etag: Etag,
}

impl Description {
    fn new() -> Self {
        let text = super::openapi_json();
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        let gzip = encoder.write_all(text.as_bytes()).and_then(|()| encoder.finish()).ok().map(Bytes::from);
        let digest = Sha256::digest(text);
        let etag = Etag::new(&digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>());
        Self { text, gzip, etag }
    }
}

/// Whether a client takes what is compressed by gzip, also by its old name (RFC 9110, sections 8.4.1.3 and 12.5.3).
fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    let codings = values.flat_map(|value| value.split(',')).map(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        (name, weight.is_none_or(|weight| weight.parse::<f32>().is_ok_and(|weight| weight > 0.0)))
    });
    let codings: Vec<_> = codings.collect();
    let taken =
        |names: &[&str]| codings.iter().find(|(name, _)| names.contains(&name.as_str())).map(|(_, taken)| *taken);
    // What is not named itself is what the asterisk stands for.
    taken(&["gzip", "x-gzip"]).or_else(|| taken(&["*"])).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_for_who_takes_it() {
        for (accepted, takes) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("*", true),
            ("x-gzip", true),
            ("gzip;q=0, *", false),
            ("*;q=0, gzip", true),
            ("gzip;q=0", false),
            ("gzip; q=0.000, br", false),
            ("x-own", false),
            ("identity", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(accepted))]);
            assert_eq!(takes_gzip(&headers), takes, "{accepted}");
        }
        assert!(!takes_gzip(&HeaderMap::new()));
    }
}
