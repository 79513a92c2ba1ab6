//! Who gets in, and to what.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::middleware::Next;
use function_gateway_core::{Action, Authorizer, CallContext, Decision, Principal, Resource, Result};
use function_gateway_rest::{ApiKeyAuthenticator, HostPrincipal, RestApi};
use http::Request;
use http::header::{AUTHORIZATION, COOKIE, HeaderName};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tower::ServiceExt as _;

use crate::common::{Server, Setup, described, header, json_of, key, problem, remembering, spec};

/// Every operation of the description, with something in the place of its parameters.
fn operations() -> Vec<(Method, String, bool)> {
    let filled = |(method, path, is_open): (Method, String, bool)| {
        let path = path
            .replace("{name}", "echo")
            .replace("{generation}", "1")
            .replace("{path}", "x")
            .replace("{id}", "0190a5e4-0000-7000-8000-000000000001");
        (method, path, is_open)
    };
    described().into_iter().map(filled).collect()
}

#[tokio::test]
async fn nothing_is_done_for_who_is_not_known() {
    let server = Server::start().await;
    server.create("echo").await;
    let mut guarded = 0;
    for (method, path, is_open) in operations() {
        let response = server.client.request(method.clone(), server.url(&path)).send().await.unwrap();
        if is_open {
            assert_eq!(response.status(), StatusCode::OK, "{method} {path}");
            continue;
        }
        guarded += 1;
        assert_eq!(header(&response, "www-authenticate"), "Bearer realm=\"function-gateway\"", "{method} {path}");
        if method == Method::HEAD {
            assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        } else {
            problem(response, 401, "unauthenticated").await;
        }
    }
    assert!(guarded > 35, "{guarded}");
    assert_eq!(
        server.engine.journal().iter().filter(|entry| entry.op == function_gateway_testkit::Op::Invoke).count(),
        0
    );
}

#[tokio::test]
async fn a_credential_that_is_not_valid_is_not_told_what_is_wrong_with_it() {
    let server = Server::start().await;
    let other = key(&server.gateway, "acme", "bob", &["read"]).await;
    let mixed = format!("{}{}", &server.admin[..37], &other[37..]);
    let mut details = Vec::new();
    for bad in [
        "fgk_",
        "fgk_00000000000000000000000000000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        &mixed,
        "x.y.z",
        "basic",
    ] {
        let refused = server.client.get(server.url("/v1/me")).bearer_auth(bad).send().await.unwrap();
        details.push(problem(refused, 401, "unauthenticated").await["detail"].clone());
    }
    details.dedup();
    assert_eq!(details.len(), 1, "{details:?}");
    let me = server.client.get(server.url("/v1/me")).header("x-api-key", &server.admin).send().await.unwrap();
    assert_eq!(json_of(me, StatusCode::OK).await, json!({"tenant": "acme", "principal": "ada", "scopes": ["admin"]}));
}

#[tokio::test]
async fn what_is_another_tenants_is_not_there() {
    let server = Server::start().await;
    server.create("echo").await;
    let answer = server.invoke("echo", "").await;
    let id = header(&answer, "x-function-invocation-id");
    let stranger = key(&server.gateway, "other", "eve", &["admin"]).await;
    for path in [
        "/v1/functions/echo".to_owned(),
        "/v1/functions/echo/revisions".to_owned(),
        "/v1/functions/echo/revisions/1".to_owned(),
        "/v1/functions/echo/logs".to_owned(),
        "/v1/functions/echo/http/".to_owned(),
        format!("/v1/executions/{id}"),
        format!("/v1/executions/{id}/logs?follow=true"),
    ] {
        problem(server.as_who(&stranger, Method::GET, &path).send().await.unwrap(), 404, "not_found").await;
    }
    for path in ["/v1/functions", "/v1/executions", "/v1/audit"] {
        let list = server.as_who(&stranger, Method::GET, path).send().await.unwrap();
        let items = json_of(list, StatusCode::OK).await["items"].as_array().unwrap().clone();
        assert!(
            items.iter().all(|item| item.get("key").is_some()),
            "only the key that was made for the test: {items:?}"
        );
    }
    let call = server.as_who(&stranger, Method::POST, "/v1/functions/echo/invocations").send().await.unwrap();
    problem(call, 404, "not_found").await;
    let delete = server.as_who(&stranger, Method::DELETE, "/v1/functions/echo").send().await.unwrap();
    problem(delete, 404, "not_found").await;
}

#[tokio::test]
async fn a_scope_lets_do_what_it_says_and_no_more() {
    let server = Server::start().await;
    server.create("echo").await;
    server.create("other").await;
    let create = json!({"name": "new", "spec": spec()});
    for (scope, expected) in [
        // read, call, call of another, list, create, audit, metrics
        ("read", [200, 403, 403, 200, 403, 403, 403]),
        ("write", [200, 403, 403, 200, 201, 403, 403]),
        ("invoke", [403, 200, 200, 403, 403, 403, 403]),
        ("invoke:echo", [403, 200, 403, 403, 403, 403, 403]),
        ("read:ec*", [200, 403, 403, 403, 403, 403, 403]),
        ("admin", [200, 200, 200, 200, 201, 200, 403]),
        ("metrics", [403, 403, 403, 403, 403, 403, 501]),
    ] {
        let who = key(&server.gateway, "acme", "bob", &[scope]).await;
        let requests = [
            server.as_who(&who, Method::GET, "/v1/functions/echo"),
            server.as_who(&who, Method::POST, "/v1/functions/echo/invocations"),
            server.as_who(&who, Method::POST, "/v1/functions/other/invocations"),
            server.as_who(&who, Method::GET, "/v1/functions"),
            server.as_who(&who, Method::POST, "/v1/functions").json(&create),
            server.as_who(&who, Method::GET, "/v1/audit"),
            server.as_who(&who, Method::GET, "/metrics"),
        ];
        let mut statuses = Vec::new();
        for request in requests {
            let response = request.send().await.unwrap();
            statuses.push(response.status().as_u16());
            if response.status() == StatusCode::FORBIDDEN {
                problem(response, 403, "permission_denied").await;
            }
        }
        assert_eq!(statuses, expected, "{scope}");
        // Whether there is such a function is not for who may not call it.
        let none = server.as_who(&who, Method::POST, "/v1/functions/none/invocations").send().await.unwrap();
        assert_eq!(none.status().as_u16(), if expected[2] == 200 { 404 } else { 403 }, "{scope}");
        server.request(Method::DELETE, "/v1/functions/new").send().await.unwrap();
    }
}

#[tokio::test]
async fn the_host_may_say_who_it_is() {
    let server = Server::start().await;
    let api = RestApi::builder(server.gateway.clone())
        .authenticator(HostPrincipal::default())
        .authenticator(ApiKeyAuthenticator::with_ttl(server.gateway.clone(), Duration::ZERO))
        .build()
        .unwrap();
    let request = || Request::get("/v1/me");
    let anonymous = api.router().oneshot(request().body(axum::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(anonymous.status(), StatusCode::UNAUTHORIZED);
    let principal = Principal::new("acme".parse().unwrap(), "from the host".parse().unwrap());
    let known = request().extension(Arc::new(principal)).body(axum::body::Body::empty()).unwrap();
    let known = api.router().oneshot(known).await.unwrap();
    assert_eq!(known.status(), StatusCode::OK);
    let by_key = request().header("x-api-key", &server.admin).body(axum::body::Body::empty()).unwrap();
    assert_eq!(api.router().oneshot(by_key).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn the_hosts_credential_is_not_for_functions() {
    let server = Server::start().await;
    server.create("web").await;
    let (handler, seen) = remembering();
    server.engine.on_invoke(handler);
    let own = HeaderName::from_static("x-session");
    let cases: [(HostPrincipal, &[HeaderName]); 3] = [
        (HostPrincipal::default(), &[AUTHORIZATION, COOKIE]),
        (HostPrincipal::by_headers([own.clone()]), std::slice::from_ref(&own)),
        (HostPrincipal::by_headers([]), &[]),
    ];
    for (host, kept_back) in cases {
        let api = RestApi::builder(server.gateway.clone()).authenticator(host).build().unwrap();
        let principal = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()).with_scope("invoke");
        let mut call = Request::post("/v1/functions/web/http/").extension(Arc::new(principal));
        for name in [AUTHORIZATION, COOKIE, own.clone()] {
            call = call.header(name, "hunter2");
        }
        // Cookies may come in several.
        let call = call.header(COOKIE, "more").body(axum::body::Body::empty()).unwrap();
        assert_eq!(api.router().oneshot(call).await.unwrap().status(), StatusCode::OK);
        let (_, headers) = seen.lock().unwrap().pop().unwrap();
        for name in [AUTHORIZATION, COOKIE, own.clone()] {
            assert_eq!(headers.contains_key(&name), !kept_back.contains(&name), "{name} {kept_back:?}");
        }
    }
}

/// Lets the owner of a function do everything with it, and everybody look; nobody may have a function deleted on a Sunday.
#[derive(Debug)]
struct HouseRules {
    is_sunday: Arc<AtomicBool>,
}

#[async_trait]
impl Authorizer for HouseRules {
    async fn authorize(&self, cx: &CallContext, action: Action, resource: Resource<'_>) -> Result<Decision> {
        let is_owner = resource.owner.is_none_or(|owner| *owner == cx.principal().id);
        let is_free = action != Action::Delete || !self.is_sunday.load(Ordering::Relaxed);
        let may = matches!(action, Action::Read | Action::List) || is_owner && is_free;
        Ok(if may { Decision::Allow } else { Decision::Deny })
    }
}

#[tokio::test]
async fn a_host_brings_its_own_principals_and_rules() {
    let is_sunday = Arc::new(AtomicBool::new(true));
    let rules = HouseRules { is_sunday: Arc::clone(&is_sunday) };
    // As a host does that has looked at a session of its own.
    let host = |router: axum::Router| {
        router.layer(axum::middleware::from_fn(async |mut request: axum::extract::Request, next: Next| {
            let who = request.headers().get("x-session").and_then(|who| who.to_str().ok());
            let who = who.map(|who| Principal::new("acme".parse().unwrap(), who.parse().unwrap()));
            if let Some(who) = who {
                request.extensions_mut().insert(Arc::new(who));
            }
            next.run(request).await
        }))
    };
    let setup = Setup {
        gateway: Box::new(|builder| builder.authorizer(Arc::new(rules))),
        api: Box::new(|builder| {
            builder.authenticator(HostPrincipal::by_headers([HeaderName::from_static("x-session")]))
        }),
        host: Box::new(host),
        keys: false,
        ..Setup::default()
    };
    let server = Server::with(setup).await;
    let as_who = |who: &'static str, method: Method, path: &str| {
        server.client.request(method, server.url(path)).header("x-session", who)
    };
    let create = as_who("ada", Method::POST, "/v1/functions").json(&json!({"name": "echo", "spec": spec()}));
    let created = json_of(create.send().await.unwrap(), StatusCode::CREATED).await;
    assert_eq!((&created["tenant"], &created["owner"]), (&json!("acme"), &json!("ada")));
    let answer = as_who("ada", Method::POST, "/v1/functions/echo/invocations").body("x").send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "x");
    json_of(as_who("bob", Method::GET, "/v1/functions/echo").send().await.unwrap(), StatusCode::OK).await;
    for request in [
        as_who("bob", Method::POST, "/v1/functions/echo/invocations"),
        as_who("bob", Method::DELETE, "/v1/functions/echo"),
        as_who("ada", Method::DELETE, "/v1/functions/echo"),
    ] {
        problem(request.send().await.unwrap(), 403, "permission_denied").await;
    }
    is_sunday.store(false, Ordering::Relaxed);
    let deleted = as_who("ada", Method::DELETE, "/v1/functions/echo").send().await.unwrap();
    assert_eq!(deleted.status(), StatusCode::NO_CONTENT);
    problem(server.client.get(server.url("/v1/me")).send().await.unwrap(), 401, "unauthenticated").await;
}

#[tokio::test]
async fn an_api_that_asks_nobody_is_not_built() {
    let server = Server::start().await;
    let error = RestApi::builder(server.gateway).build().unwrap_err();
    assert!(error.message().contains("Anonymous"), "{error}");
}

#[tokio::test]
async fn metrics_are_for_who_may_read_them() {
    let api = |builder: function_gateway_rest::RestApiBuilder| builder.metrics(|| "calls 1\n".to_owned());
    let server = Server::with(Setup { api: Box::new(api), ..Setup::default() }).await;
    let prometheus = key(&server.gateway, "acme", "prometheus", &["metrics"]).await;
    let metrics = server.as_who(&prometheus, Method::GET, "/metrics").send().await.unwrap();
    assert_eq!(header(&metrics, "content-type"), "text/plain; version=0.0.4");
    assert_eq!(metrics.text().await.unwrap(), "calls 1\n");
    problem(server.get("/metrics").send().await.unwrap(), 403, "permission_denied").await;
}
