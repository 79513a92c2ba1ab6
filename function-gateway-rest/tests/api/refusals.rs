//! What every operation refuses, and how: to who may not, for what is not there, for what can't be a name, and where the gateway fails.

use std::collections::BTreeSet;

use async_trait::async_trait;
use function_gateway_core::{Error, ErrorKind, Result};
use function_gateway_rest::{Authenticated, Authenticator, Cors, RestApiBuilder, RestOptions};
use function_gateway_testkit::{Handler, Op};
use http::HeaderValue;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};

use crate::common::{Panics, Server, Setup, described, header, json_of, key, problem, spec};

/// Names and ids in the places of a path's parameters.
struct Names {
    name: &'static str,
    id: &'static str,
    generation: &'static str,
}

/// Of which the function is there and the rest is not.
const NAMES: Names = Names { name: "echo", id: "0190a5e4-0000-7000-8000-000000000001", generation: "1" };

/// An operation with a body that is right, or without one.
struct Operation {
    method: Method,
    path: &'static str,
    content_type: &'static str,
    body: Value,
}

impl Operation {
    fn path(&self, names: &Names) -> String {
        let path = self.path.replace("{name}", names.name).replace("{id}", names.id);
        path.replace("{generation}", names.generation)
    }

    fn request(&self, server: &Server, who: &str, names: &Names) -> RequestBuilder {
        let request = server.as_who(who, self.method.clone(), &self.path(names));
        match &self.body {
            Value::Null => request,
            body => request.header("content-type", self.content_type).body(body.to_string()),
        }
    }
}

/// Every guarded operation but the function's own URL, which is that of a call.
fn operations() -> Vec<Operation> {
    let operation = |line: &'static str, content_type, body| {
        let (method, path) = line.split_once(' ').unwrap();
        Operation { method: method.parse().unwrap(), path, content_type, body }
    };
    let plain = |line| operation(line, "", Value::Null);
    let sends = |line, body| operation(line, "application/json", body);
    let event = json!({"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created"});
    let subscription = json!({"functions": ["echo"]});
    let all = vec![
        plain("GET /metrics"),
        plain("GET /v1/audit"),
        plain("GET /v1/dead-letters"),
        sends("POST /v1/dead-letters/purge", json!({})),
        sends("POST /v1/dead-letters/redrive", json!({})),
        plain("DELETE /v1/dead-letters/{id}"),
        plain("GET /v1/dead-letters/{id}"),
        plain("POST /v1/dead-letters/{id}/redrive"),
        plain("GET /v1/drivers"),
        operation("POST /v1/events", "application/cloudevents+json", event),
        plain("GET /v1/executions"),
        plain("GET /v1/executions/export"),
        plain("GET /v1/executions/{id}"),
        plain("POST /v1/executions/{id}/cancel"),
        plain("GET /v1/executions/{id}/logs"),
        plain("GET /v1/executions/{id}/queue"),
        plain("GET /v1/executions/{id}/result"),
        plain("GET /v1/functions"),
        sends("POST /v1/functions", json!({"name": "new", "spec": spec()})),
        plain("DELETE /v1/functions/{name}"),
        plain("GET /v1/functions/{name}"),
        operation("PATCH /v1/functions/{name}", "application/merge-patch+json", json!({"description": "another"})),
        sends("PUT /v1/functions/{name}", spec()),
        plain("POST /v1/functions/{name}/invocations"),
        plain("GET /v1/functions/{name}/logs"),
        plain("GET /v1/functions/{name}/queue"),
        plain("GET /v1/functions/{name}/revisions"),
        plain("GET /v1/functions/{name}/revisions/{generation}"),
        sends("POST /v1/functions/{name}/rollback", json!({"generation": 1})),
        plain("POST /v1/functions/{name}/rotate-secrets"),
        sends("POST /v1/functions/{name}/scale", json!({"instances": 1})),
        plain("POST /v1/functions/{name}/submit"),
        plain("POST /v1/functions/{name}/validate"),
        plain("GET /v1/keys"),
        sends("POST /v1/keys", json!({"scopes": ["read"]})),
        plain("DELETE /v1/keys/{id}"),
        plain("GET /v1/keys/{id}"),
        plain("GET /v1/limits"),
        plain("GET /v1/me"),
        plain("GET /v1/queue"),
        plain("GET /v1/statistics"),
        plain("GET /v1/subscriptions"),
        sends("POST /v1/subscriptions", json!({"name": "all", "spec": subscription})),
        plain("DELETE /v1/subscriptions/{name}"),
        plain("GET /v1/subscriptions/{name}"),
        sends("PUT /v1/subscriptions/{name}", subscription),
        sends("POST /v1/validate", spec()),
    ];
    let listed: BTreeSet<_> = all.iter().map(|of| format!("{} {}", of.method, of.path)).collect();
    let guarded = described().into_iter().filter(|(_, path, is_open)| !is_open && !path.contains("/http"));
    let guarded: BTreeSet<_> = guarded.map(|(method, path, _)| format!("{method} {path}")).collect();
    assert_eq!(listed, guarded, "this table has every operation");
    all
}

#[tokio::test]
async fn who_may_do_nothing_is_refused_everywhere() {
    let server = Server::start().await;
    let function = server.create("echo").await;
    let bob = key(&server.gateway, "acme", "bob", &["invoke:none"]).await;
    for operation in operations() {
        let answer = operation.request(&server, &bob, &NAMES).send().await.unwrap();
        // What everybody may know who is known.
        if matches!(operation.path, "/v1/me" | "/v1/drivers" | "/v1/limits") {
            assert_eq!(answer.status(), StatusCode::OK, "{}", operation.path);
            continue;
        }
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{} {}", operation.method, operation.path);
        problem(answer, 403, "permission_denied").await;
    }
    assert_eq!(server.engine.count(Op::Invoke), 0);
    let list = json_of(server.get("/v1/functions").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(list["items"], json!([function]));
}

#[tokio::test]
async fn what_is_another_tenants_or_nobodys_is_not_found_by_any_operation() {
    let server = Server::start().await;
    server.create("echo").await;
    let stranger = key(&server.gateway, "other", "eve", &["admin"]).await;
    let named = |operation: &Operation| operation.path.contains("{name}") || operation.path.contains("{id}");
    for operation in operations().into_iter().filter(named) {
        let answer = operation.request(&server, &stranger, &NAMES).send().await.unwrap();
        // Nothing waits for a function that is not there.
        if operation.path == "/v1/functions/{name}/queue" {
            assert_eq!(json_of(answer, StatusCode::OK).await, json!({"open": 0, "dead": 0}));
            continue;
        }
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{} {}", operation.method, operation.path);
        problem(answer, 404, "not_found").await;
    }
    assert_eq!(server.engine.count(Op::Invoke), 0);
}

#[tokio::test]
async fn what_can_not_be_a_name_or_an_id_is_told_so_by_every_operation() {
    let server = Server::start().await;
    server.create("echo").await;
    let wrong = Names { name: "no%20name", id: "7", generation: "1" };
    let zero = Names { generation: "0", ..NAMES };
    for operation in operations() {
        let names = match operation.path {
            path if path.contains("{generation}") => &zero,
            path if path.contains('{') => &wrong,
            _ => continue,
        };
        let answer = operation.request(&server, &server.admin, names).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{} {}", operation.method, operation.path);
        problem(answer, 400, "invalid_argument").await;
    }
}

#[tokio::test]
async fn a_parameter_that_no_operation_has_is_refused_before_anything_is_done() {
    let server = Server::start().await;
    let function = server.create("echo").await;
    for operation in operations() {
        let mut request = operation.request(&server, &server.admin, &NAMES).build().unwrap();
        request.url_mut().set_query(Some("dry_run=true"));
        let answer = server.client.execute(request).await.unwrap();
        // The query of a call is the function's, and a scraper's is nobody's.
        let path = operation.path;
        let taken = match path.rsplit('/').next() {
            // These are for a scope of their own.
            Some("metrics") => Some(403),
            Some("submit") => Some(202),
            Some("invocations") => Some(200),
            Some("validate") if path.contains("{name}") => Some(200),
            _ => None,
        };
        if let Some(status) = taken {
            assert_eq!(answer.status(), status, "{path}");
            continue;
        }
        assert_eq!(answer.status(), StatusCode::BAD_REQUEST, "{} {path}", operation.method);
        let told = problem(answer, 400, "invalid_argument").await;
        assert!(told["detail"].as_str().unwrap().contains("dry_run"), "{told}");
    }
    let list = json_of(server.get("/v1/functions").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!(list["items"], json!([function]));
}

#[derive(Debug)]
struct OutOfReach;

#[async_trait]
impl Authenticator for OutOfReach {
    async fn authenticate(&self, _: &http::request::Parts) -> Result<Option<Authenticated>> {
        let error = Error::new(ErrorKind::DependencyUnavailable, "who calls can't be found out now");
        Err(error.with_detail("ldap://10.0.0.7"))
    }
}

/// What every operation answers where an authenticator fails, which is asked after the one for keys.
async fn every_operation_says(authenticator: impl Authenticator, status: u16, code: &str) {
    let api = |builder: RestApiBuilder| {
        builder.options(RestOptions::default().with_cors(Cors::any_origin())).authenticator(authenticator)
    };
    let server = Server::with(Setup { api: Box::new(api), ..Setup::default() }).await;
    for operation in operations() {
        let mut request = operation.request(&server, "", &NAMES).build().unwrap();
        request.headers_mut().remove("authorization");
        request.headers_mut().insert("origin", HeaderValue::from_static("https://app.example.com"));
        let answer = server.client.execute(request).await.unwrap();
        assert_eq!(answer.status(), status, "{} {}", operation.method, operation.path);
        let told = answer.headers().get("retry-after").map(|seconds| seconds.to_str().unwrap());
        assert_eq!(told, (status == 503).then_some("1"));
        assert_eq!(header(&answer, "access-control-allow-origin"), "*", "the page may read it");
        let text = problem(answer, status, code).await.to_string();
        assert!(!text.contains("hunter2") && !text.contains("ldap"), "{text}");
    }
    json_of(server.get("/v1/me").send().await.unwrap(), StatusCode::OK).await;
}

#[tokio::test]
async fn every_operation_says_that_the_gateway_or_what_it_depends_on_fails() {
    every_operation_says(Panics, 500, "internal").await;
    every_operation_says(OutOfReach, 503, "dependency_unavailable").await;
}

#[tokio::test]
async fn every_error_has_its_status_and_its_code() {
    let server = Server::start().await;
    server.create("echo").await;
    for kind in ErrorKind::ALL {
        server.engine.on_invoke(Handler::error(Error::new(*kind, "as it was told")));
        let answer = server.invoke("echo", "").await;
        let is_for_now = matches!(kind.http_status(), 429 | 503) || *kind == ErrorKind::InProgress;
        assert_eq!(answer.headers().contains_key("retry-after"), is_for_now, "{kind}");
        assert_eq!(header(&answer, "x-function-invocation-id").len(), 36);
        let told = problem(answer, kind.http_status(), kind.code()).await;
        assert_eq!(told["class"], kind.class().as_str());
        assert_eq!(told["title"], kind.meaning().trim());
    }
}
