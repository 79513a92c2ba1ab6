//! The routes: one module for each kind of thing.

mod access;
mod dead_letters;
mod etag;
mod events;
mod executions;
mod functions;
pub(crate) mod invocations;
mod logs;
mod service;
mod steering;

use std::sync::{Arc, LazyLock};

use axum::Router;
use http::{Method, Uri, header};
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{Predicate as _, SizeAbove};
use utoipa_axum::router::OpenApiRouter;

use crate::api::Api;
use crate::cors;
use crate::envelope::envelope;
use crate::openapi;
use crate::problem::Problem;

pub(crate) use steering::PREFERENCE_APPLIED;

/// Documents that are smaller are not worth compressing.
const COMPRESS_ABOVE: u16 = 1024;

/// Routes whose answers are whole documents, and are compressed where the client takes that.
fn documents() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(functions::routes())
        .merge(invocations::document_routes())
        .merge(executions::routes())
        .merge(dead_letters::routes())
        .merge(events::routes())
        .merge(access::routes())
        .merge(service::routes())
}

/// Routes whose answers pass as they come.
fn streams() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(invocations::routes())
        .merge(functions::streaming_routes())
        .merge(executions::streaming_routes())
}

pub(crate) fn router(api: &Arc<Api>) -> Router {
    let json = |_, _, headers: &http::HeaderMap, _: &http::Extensions| {
        let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        content_type.is_some_and(|content_type| content_type == "application/json")
    };
    let compression = CompressionLayer::new().gzip(true).compress_when(SizeAbove::new(COMPRESS_ABOVE).and(json));
    let (documents, _) = documents().split_for_parts();
    let (streams, _) = streams().split_for_parts();
    let router = documents
        .layer(compression)
        .layer(axum::middleware::map_response(etag::weak_where_compressed))
        .merge(streams)
        .method_not_allowed_fallback(async |method: Method| Problem::method_not_allowed(&method))
        .fallback(async |uri: Uri| Problem::no_such_path(uri.path()));
    let router = match &api.options.cors {
        Some(cors) => cors::letting_in(cors, router),
        None => router,
    };
    router.layer(axum::middleware::from_fn(envelope)).with_state(Arc::clone(api))
}

pub(crate) fn openapi_json() -> &'static str {
    static DOCUMENT: LazyLock<String> = LazyLock::new(|| {
        let paths = documents().merge(streams()).to_openapi();
        openapi::document(paths)
    });
    &DOCUMENT
}
