//! The Knative driver against bare reqwest on the same mock of the ingress, which is that of the API server too.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a benchmark")]

mod against_reqwest;

use against_reqwest::{Engine, revision};
use axum::http::Uri;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use function_gateway_benches::parse;
use function_gateway_core::FaasDriver as _;
use function_gateway_knative::{Knative, KnativeConfig};
use serde_json::{Value, json};

fn main() {
    against_reqwest::run(Engine {
        path: "/",
        marks: &[("server", "envoy"), ("x-envoy-upstream-service-time", "4")],
        management: || Router::new().route("/apis/serving.knative.dev/v1/namespaces/fns/services", get(services)),
        open: |url| Box::new(driver(url)),
        tell: |_| {},
    });
}

fn driver(url: &str) -> Knative {
    let config: KnativeConfig = serde_json::from_value(json!({
        "access": {"api_server": {"url": url}},
        "namespaces": {"shared": "fns"},
        "routing": {"ingress": {"url": url}},
    }))
    .unwrap();
    Knative::new(config).unwrap()
}

/// The one Service that there is; a watch of it tells nothing more.
async fn services(uri: Uri) -> Response {
    if uri.query().is_some_and(|query| query.contains("watch=1")) {
        std::future::pending::<()>().await;
    }
    Json(json!({"metadata": {"resourceVersion": "1"}, "items": [service()]})).into_response()
}

fn service() -> Value {
    let revision = revision(false);
    let target = driver("http://127.0.0.1:1").reference(&parse("bench"), &revision);
    let name = target.as_str().rsplit('/').next().unwrap();
    let part = json!({
        "tag": "g1", "revisionName": format!("{name}-g1"), "percent": 0, "url": format!("http://g1-{name}.fns.example.lab"),
    });
    json!({
        "metadata": {
            "name": name, "namespace": "fns", "uid": "u", "generation": 1, "resourceVersion": "1",
            "labels": {"function-gateway/gateway": "bench", "function-gateway/function": revision.function.to_string()},
            "annotations": {"held.function-gateway/g1": target},
        },
        "spec": {"template": {"metadata": {"name": format!("{name}-g1")}}, "traffic": [part]},
        "status": {"observedGeneration": 1, "conditions": [{"type": "RoutesReady", "status": "True"}], "traffic": [part]},
    })
}
