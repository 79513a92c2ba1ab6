//! Executions that outlive their caller: submitted, waited for, cancelled, dead, redriven.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use function_gateway_core::store::memory::MemoryStore;
use function_gateway_core::{
    Acceptance, Accepted, Cancelling, DeadLetterFilter, Dispatch, Error, ErrorKind, FunctionId, FunctionName,
    GatewayBuilder, GatewayConfig, GatewayId, Generation, InvocationId, InvocationQueue, InvokeResponse, Page,
    PageRequest, QueueDepth, QueueLease, QueueNotifier, QueueSignal, QueuedInvocation, Result, Settlement, TakeRequest,
    Taken, TenantId, WorkerConfig, Workers,
};
use function_gateway_testkit::{Gate, Handler, Op};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::common::{
    LONG, Server, Setup, broken, header, json_of, key, problem, remembering, store_fails, until, waiting, with_config,
};

fn workers(server: &Server) -> Workers {
    server.gateway.start_workers(WorkerConfig::default()).unwrap()
}

fn call(server: &Server, function: &str, route: &str) -> RequestBuilder {
    server.request(Method::POST, &format!("/v1/functions/{function}/{route}"))
}

fn submission(server: &Server, function: &str) -> RequestBuilder {
    call(server, function, "submit")
}

async fn accepted(request: RequestBuilder) -> Value {
    json_of(request.send().await.unwrap(), StatusCode::ACCEPTED).await
}

/// Submits, and gives the path of the state.
async fn submitted(server: &Server, function: &str, payload: &'static str) -> String {
    accepted(submission(server, function).body(payload)).await["status_url"].as_str().unwrap().to_owned()
}

async fn read(server: &Server, path: &str) -> Value {
    json_of(server.get(path).send().await.unwrap(), StatusCode::OK).await
}

/// The record of what has ended.
async fn ended(server: &Server, status_url: &str) -> Value {
    let record = read(server, &format!("{status_url}?wait_ms=30000")).await;
    assert!(record["finished_at"].is_string(), "{record}");
    record
}

async fn done(server: &Server, function: &str, payload: &'static str) -> Value {
    ended(server, &submitted(server, function, payload).await).await
}

async fn dead_letters(server: &Server, query: &str) -> Value {
    read(server, &format!("/v1/dead-letters?{query}")).await
}

fn ids(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_call_whose_caller_does_not_wait_is_accepted_and_executed_later() {
    for below in ["", "/deep/below"] {
        let server = Server::with(Setup { below, ..Setup::default() }).await;
        let create = json!({"name": "echo", "spec": crate::common::spec()});
        server.post(&format!("{below}/v1/functions"), &create).send().await.unwrap();
        let invocations = format!("{below}/v1/functions/echo/invocations");
        let call = server.request(Method::POST, &invocations).header("prefer", "respond-async").body("hello");
        let answer = call.header("content-type", "text/x-own").send().await.unwrap();
        let status_url = header(&answer, "location").to_owned();
        assert_eq!(header(&answer, "preference-applied"), "respond-async");
        assert_eq!(header(&answer, "x-function-answered-by"), "gateway");
        let id = header(&answer, "x-function-invocation-id").to_owned();
        let document = json_of(answer, StatusCode::ACCEPTED).await;
        let expected = json!({
            "id": id, "status_url": status_url, "result_url": format!("{status_url}/result"), "repeated": false,
        });
        assert_eq!(document, expected);
        assert_eq!(status_url, format!("{below}/v1/executions/{id}"));

        let state = server.get(&format!("{status_url}?wait_ms=0")).send().await.unwrap();
        assert_eq!(header(&state, "retry-after"), "1");
        let state = json_of(state, StatusCode::OK).await;
        assert_eq!((&state["state"], &state["origin"]), (&json!("queued"), &json!("async")));
        let early = server.get(&format!("{status_url}/result")).send().await.unwrap();
        assert_eq!((header(&early, "retry-after"), header(&early, "x-function-invocation-id")), ("1", id.as_str()));
        problem(early, 409, "in_progress").await;

        let _workers = workers(&server);
        let record = server.get(&format!("{status_url}?wait_ms=30000")).send().await.unwrap();
        assert!(!record.headers().contains_key("retry-after"));
        assert_eq!(json_of(record, StatusCode::OK).await["state"], "succeeded");
        let result = server.get(&format!("{status_url}/result")).send().await.unwrap();
        // It is kept by no cache that others share, whatever the function said of its answer.
        assert_eq!(header(&result, "cache-control"), "private, no-cache");
        assert_eq!(result.status(), StatusCode::OK);
        assert_eq!(header(&result, "x-function-answered-by"), "function");
        assert_eq!(header(&result, "x-function-outcome"), "succeeded");
        assert_eq!(header(&result, "x-function-invocation-id"), id);
        assert_eq!(header(&result, "content-type"), "text/x-own");
        assert_eq!(result.text().await.unwrap(), "hello");
    }
}

#[tokio::test]
async fn a_caller_may_wait_a_little_first() {
    let server = Server::start().await;
    server.create("echo").await;
    let _workers = workers(&server);
    let prefer =
        |wait: &str| call(&server, "echo", "invocations").header("prefer", format!("respond-async, wait={wait}"));
    let answer = prefer("20").body("hello").send().await.unwrap();
    assert_eq!((answer.status(), header(&answer, "x-function-answered-by")), (StatusCode::OK, "function"));
    assert!(!answer.headers().contains_key("preference-applied"));
    assert_eq!(answer.text().await.unwrap(), "hello");

    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let answer = prefer("1").send().await.unwrap();
    assert_eq!(header(&answer, "preference-applied"), "respond-async");
    let accepted = json_of(answer, StatusCode::ACCEPTED).await;
    gate.open();
    assert_eq!(ended(&server, accepted["status_url"].as_str().unwrap()).await["state"], "succeeded");
}

#[tokio::test]
async fn what_steers_the_gateway_does_not_reach_the_function() {
    let server = Server::start().await;
    server.create("web").await;
    let (handler, seen) = remembering();
    server.engine.on_invoke(handler);
    let _workers = workers(&server);
    for (request, expected) in [
        (call(&server, "web", "invocations"), "POST ?-"),
        (call(&server, "web", "submit"), "POST ?-"),
        (server.request(Method::PUT, "/v1/functions/web/submit/http/a%2Fb?x=1"), "PUT /a%2Fb?x=1"),
        (server.request(Method::DELETE, "/v1/functions/web/submit/http"), "DELETE ?-"),
    ] {
        let request = request.header("prefer", "respond-async").header("x-own", "1");
        let request = request.header("x-function-delay-ms", "0").header("x-function-pin", "true");
        let request = request.header("x-function-timeout-ms", "20000");
        // Another key for each, so that none is taken for another one.
        let key = format!("\"{}\"", server.engine.count(Op::Invoke));
        let accepted = accepted(request.header("idempotency-key", key)).await;
        ended(&server, accepted["status_url"].as_str().unwrap()).await;
        let (line, headers) = seen.lock().unwrap().pop().unwrap();
        assert_eq!((line.as_str(), &headers["x-own"]), (expected, &"1".parse().unwrap()));
        for kept_back in [
            "prefer",
            "idempotency-key",
            "x-function-delay-ms",
            "x-function-pin",
            "x-function-timeout-ms",
            "authorization",
        ] {
            assert!(!headers.contains_key(kept_back), "{kept_back}");
        }
    }
}

#[tokio::test]
async fn a_request_to_the_functions_own_url_is_executed_later_as_it_came() {
    let server = Server::start().await;
    server.create("web").await;
    let (handler, seen) = remembering();
    server.engine.on_invoke(handler);
    let _workers = workers(&server);
    for method in [Method::GET, Method::HEAD, Method::OPTIONS, Method::POST, Method::PUT, Method::PATCH, Method::DELETE]
    {
        for (below, expected) in [("", "?-"), ("/", "/?-"), ("/a%2Fb//c?x=%20&y", "/a%2Fb//c?x=%20&y")] {
            let request = server.request(method.clone(), &format!("/v1/functions/web/submit/http{below}"));
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::ACCEPTED, "{method} {below}");
            assert_eq!(header(&answer, "x-function-answered-by"), "gateway");
            // That to HEAD has no body to read it from.
            ended(&server, header(&answer, "location")).await;
            let lines: Vec<_> = seen.lock().unwrap().drain(..).map(|(line, _)| line).collect();
            assert_eq!(lines, [format!("{method} {expected}")]);
        }
    }
}

#[tokio::test]
async fn what_can_not_be_for_later_is_refused_at_the_functions_own_url() {
    let server = Server::with(with_config(|config| config.queue.max_payload_bytes = 100)).await;
    server.create("web").await;
    for below in ["", "/", "/x"] {
        let path = format!("/v1/functions/web/submit/http{below}");
        for method in [Method::TRACE, Method::from_bytes(b"PURGE").unwrap()] {
            let refused = server.request(method, &path).send().await.unwrap();
            let mut allowed: Vec<_> = header(&refused, "allow").split(',').map(str::trim).collect();
            allowed.sort_unstable();
            assert_eq!(allowed, ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]);
            problem(refused, 405, "method_not_allowed").await;
        }
        // With and without a length that is told before.
        let part: std::io::Result<_> = Ok("x".repeat(101));
        let parts = reqwest::Body::wrap_stream(futures_util::stream::iter([part]));
        for payload in [reqwest::Body::from("x".repeat(101)), parts] {
            let large = server.request(Method::PUT, &path).body(payload).send().await.unwrap();
            assert_eq!(problem(large, 413, "payload_too_large").await["context"]["limit_bytes"], "100");
        }
    }
    assert_eq!(read(&server, "/v1/queue").await["open"], 0);
}

#[tokio::test]
async fn at_its_own_url_a_function_may_have_preferences_and_keys_of_its_own() {
    let server = Server::start().await;
    server.create("web").await;
    let (handler, seen) = remembering();
    server.engine.on_invoke(handler);
    let request = server.request(Method::POST, "/v1/functions/web/http/orders");
    let request = request.header("prefer", "respond-async").header("idempotency-key", "k");
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);
    let (_, headers) = seen.lock().unwrap().pop().unwrap();
    assert_eq!(
        (&headers["prefer"], &headers["idempotency-key"]),
        (&"respond-async".parse().unwrap(), &"k".parse().unwrap())
    );
}

#[tokio::test]
async fn a_time_is_waited_for_and_a_generation_is_kept() {
    let server = Server::start().await;
    server.create("echo").await;
    let _workers = workers(&server);
    let queue = async |accepted: Value| {
        read(&server, &format!("/v1/executions/{}/queue", accepted["id"].as_str().unwrap())).await
    };
    let delayed = accepted(submission(&server, "echo").header("x-function-delay-ms", "3600000")).await;
    let until = accepted(
        submission(&server, "echo")
            .header("x-function-not-before", "2100-01-01T00:00:00Z")
            .header("x-function-pin", "true"),
    );
    // Further in the future than is allowed.
    drop(until);
    let delayed = queue(delayed).await;
    assert_eq!((&delayed["state"], &delayed["pinned"]), (&json!("waiting"), &json!(false)));
    assert!(delayed["due_at"].as_str() > delayed["created_at"].as_str(), "{delayed}");
    let soon = server.gateway.now().plus(Duration::from_secs(86400)).to_string();
    let pinned = submission(&server, "echo").header("x-function-not-before", &soon).header("x-function-pin", "true");
    let pinned = queue(accepted(pinned).await).await;
    assert_eq!((&pinned["due_at"], &pinned["pinned"], &pinned["generation"]), (&json!(soon), &json!(true), &json!(1)));
    let past = submission(&server, "echo").header("x-function-not-before", "2020-01-01T00:00:00Z");
    let past = accepted(past).await;
    assert_eq!(ended(&server, past["status_url"].as_str().unwrap()).await["state"], "succeeded");
    assert_eq!(server.engine.count(Op::Invoke), 1);
}

#[tokio::test]
async fn headers_that_are_not_right_are_refused() {
    let server = Server::start().await;
    server.create("echo").await;
    for (route, headers, told) in [
        ("submit", &[("x-function-delay-ms", "soon")][..], "`x-function-delay-ms` is a whole number"),
        ("submit", &[("x-function-delay-ms", "-1")], "`x-function-delay-ms` is a whole number"),
        ("submit", &[("x-function-not-before", "tomorrow")], "`x-function-not-before` is a time"),
        ("submit", &[("x-function-pin", "yes")], "`x-function-pin` is true or false"),
        ("submit", &[("x-function-delay-ms", "1"), ("x-function-delay-ms", "2")], "more than once"),
        ("submit", &[("x-function-delay-ms", "1"), ("x-function-not-before", "2030-01-01T00:00:00Z")], "either"),
        ("submit", &[("x-function-not-before", "2999-01-01T00:00:00Z")], "can't be accepted like this"),
        ("submit", &[("x-function-delay-ms", "18446744073709551615")], "can't be accepted like this"),
        ("submit", &[("idempotency-key", "\"open")], "`idempotency-key` is a text"),
        ("invocations", &[("idempotency-key", "")], "`idempotency-key` is a text"),
        ("invocations", &[("x-function-delay-ms", "1")], "Prefer: respond-async"),
        ("http/", &[("x-function-pin", "true")], "Prefer: respond-async"),
        ("http/", &[("prefer", "respond-async"), ("x-function-delay-ms", "1")], "Prefer: respond-async"),
    ] {
        let request =
            headers.iter().fold(call(&server, "echo", route), |request, (name, value)| request.header(*name, *value));
        let refused = problem(request.send().await.unwrap(), 400, "invalid_argument").await;
        assert!(refused["detail"].as_str().unwrap().contains(told), "{headers:?}: {refused}");
    }
    let long = "k".repeat(256);
    let refused = submission(&server, "echo").header("idempotency-key", long).send().await.unwrap();
    problem(refused, 400, "invalid_argument").await;
    for query in ["wait_ms=30001", "wait_ms=-1", "wait=1"] {
        let refused = server.get(&format!("/v1/executions/0190a5e4-0000-7000-8000-000000000001?{query}"));
        problem(refused.send().await.unwrap(), 400, "invalid_argument").await;
    }
    assert_eq!(server.engine.count(Op::Invoke), 0);
    assert_eq!(read(&server, "/v1/queue").await, json!({"open": 0, "dead": 0}));
}

#[tokio::test]
async fn one_key_is_one_execution() {
    let server = Server::start().await;
    server.create("echo").await;
    let keyed =
        |key: &str, payload: &'static str| submission(&server, "echo").header("idempotency-key", key).body(payload);
    let first = accepted(keyed("\"k-1\"", "a")).await;
    let again = accepted(keyed("k-1", "a")).await;
    assert_eq!((&again["id"], &again["repeated"]), (&first["id"], &json!(true)));
    let other = problem(keyed("k-1", "b").send().await.unwrap(), 422, "idempotency_mismatch").await;
    assert_eq!(other["context"]["idempotency_key"], "k-1");
    assert_eq!(read(&server, "/v1/functions/echo/queue").await["open"], 1);
    // A call that waits is the same one.
    let sync = || call(&server, "echo", "invocations").header("idempotency-key", "k-1").body("a");
    let early = sync().send().await.unwrap();
    assert_eq!(
        (header(&early, "retry-after"), header(&early, "x-function-invocation-id")),
        ("1", first["id"].as_str().unwrap())
    );
    problem(early, 409, "in_progress").await;
    let _workers = workers(&server);
    ended(&server, first["status_url"].as_str().unwrap()).await;
    let answer = sync().send().await.unwrap();
    assert_eq!(header(&answer, "x-function-invocation-id"), first["id"].as_str().unwrap());
    assert_eq!(answer.text().await.unwrap(), "a");
    assert_eq!(server.engine.count(Op::Invoke), 1);
}

#[tokio::test]
async fn a_call_with_a_key_is_made_once() {
    let server = Server::with(with_config(|config| config.queue.max_result_bytes = 20)).await;
    server.create("echo").await;
    let keyed = |key: &str, payload: &'static str| {
        call(&server, "echo", "invocations").header("idempotency-key", key).body(payload)
    };
    let mut ids = Vec::new();
    for _ in 0..2 {
        let answer = keyed("k", "once").send().await.unwrap();
        ids.push(header(&answer, "x-function-invocation-id").to_owned());
        assert_eq!(header(&answer, "x-function-answered-by"), "function");
        assert_eq!(answer.text().await.unwrap(), "once");
    }
    assert_eq!((ids[0] == ids[1], server.engine.count(Op::Invoke)), (true, 1));
    problem(keyed("k", "another").send().await.unwrap(), 422, "idempotency_mismatch").await;

    let large = keyed("large", "more than what is kept").send().await.unwrap();
    let id = header(&large, "x-function-invocation-id").to_owned();
    assert_eq!(large.text().await.unwrap(), "more than what is kept");
    let gone = keyed("large", "more than what is kept").send().await.unwrap();
    assert_eq!(header(&gone, "x-function-invocation-id"), id);
    let gone = problem(gone, 410, "result_not_kept").await;
    assert_eq!(gone["delivery"], "executed");
    let result = server.get(&format!("/v1/executions/{id}/result")).send().await.unwrap();
    problem(result, 410, "result_not_kept").await;

    server.engine.on_invoke(Handler::status(StatusCode::INTERNAL_SERVER_ERROR, "no"));
    for _ in 0..2 {
        let failed = keyed("fails", "").send().await.unwrap();
        assert_eq!(
            (failed.status(), header(&failed, "x-function-outcome")),
            (StatusCode::INTERNAL_SERVER_ERROR, "failed")
        );
    }
    assert_eq!(server.engine.count(Op::Invoke), 3);

    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let running = tokio::spawn(keyed("slow", "").send());
    gate.reached_by(1).await;
    let early = keyed("slow", "").send().await.unwrap();
    assert_eq!(header(&early, "retry-after"), "1");
    problem(early, 409, "in_progress").await;
    gate.open();
    assert_eq!(running.await.unwrap().unwrap().text().await.unwrap(), "in time");
}

#[tokio::test]
async fn what_can_t_be_accepted_is_refused_at_the_door() {
    let change = |config: &mut GatewayConfig| {
        (config.queue.max_per_function, config.queue.max_per_tenant) = (1, 2);
        config.queue.max_payload_bytes = 100;
    };
    let server = Server::with(with_config(change)).await;
    let schema = json!({"type": "object", "required": ["name"]});
    server.create_with("greet", json!({"input_schema": schema})).await;
    server.create("echo").await;
    server.create("third").await;
    let invalid = problem(submission(&server, "greet").body("{}").send().await.unwrap(), 422, "invalid_input").await;
    assert_eq!(invalid["violations"][0]["schema_pointer"], "/required");
    let large = submission(&server, "echo").body("x".repeat(101)).send().await.unwrap();
    assert_eq!(problem(large, 413, "payload_too_large").await["context"]["limit_bytes"], "100");
    problem(submission(&server, "none").send().await.unwrap(), 404, "not_found").await;
    problem(submission(&server, "echo@9").send().await.unwrap(), 404, "not_found").await;
    problem(submission(&server, "echo:prod").send().await.unwrap(), 501, "unsupported").await;
    problem(submission(&server, "Echo").send().await.unwrap(), 400, "invalid_argument").await;

    let id = "0190a5e4-0000-7000-8000-000000000005";
    let own = accepted(submission(&server, "echo").header("x-function-invocation-id", id)).await;
    assert_eq!(own["id"], id);
    let full = submission(&server, "echo").send().await.unwrap();
    assert_eq!(header(&full, "retry-after"), "1");
    assert_eq!(problem(full, 429, "rate_limited").await["context"]["limit"], "max_per_function");
    let twice = submission(&server, "third").header("x-function-invocation-id", id).send().await.unwrap();
    problem(twice, 409, "already_exists").await;
    accepted(submission(&server, "third")).await;
    let full = submission(&server, "greet").body("{\"name\": 1}").send().await.unwrap();
    assert_eq!(problem(full, 429, "rate_limited").await["context"]["limit"], "max_per_tenant");

    tokio::spawn({
        let gateway = server.gateway.clone();
        async move { gateway.shutdown(LONG).await.unwrap() }
    })
    .await
    .unwrap();
    let late = submission(&server, "echo").send().await.unwrap();
    assert_eq!(header(&late, "retry-after"), "1");
    problem(late, 503, "shutting_down").await;
}

/// A queue that can't keep anything now, or does not say whether it does.
#[derive(Debug, Default)]
struct Broken {
    hangs: bool,
    notifier: QueueNotifier,
}

#[async_trait]
impl InvocationQueue for Broken {
    async fn accept(&self, _: Acceptance) -> Result<Accepted> {
        if self.hangs {
            std::future::pending().await
        }
        broken()
    }

    async fn take(&self, _: &TakeRequest) -> Result<Taken> {
        broken()
    }

    async fn dispatch(&self, _: &QueueLease, _: Dispatch) -> Result<()> {
        broken()
    }

    async fn settle(&self, _: &QueueLease, _: Settlement) -> Result<()> {
        broken()
    }

    async fn cancel(&self, _: &TenantId, _: InvocationId, _: Duration) -> Result<Cancelling> {
        broken()
    }

    async fn cancelled(&self, _: &[InvocationId]) -> Result<Vec<InvocationId>> {
        broken()
    }

    async fn queued(&self, _: &TenantId, _: InvocationId) -> Result<Option<Arc<QueuedInvocation>>> {
        broken()
    }

    async fn dead_letters(
        &self,
        _: &TenantId,
        _: &DeadLetterFilter,
        _: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>> {
        broken()
    }

    async fn redrive(&self, _: &TenantId, _: InvocationId, _: Acceptance, _: Duration) -> Result<()> {
        broken()
    }

    async fn purge(&self, _: &TenantId, _: InvocationId) -> Result<()> {
        broken()
    }

    async fn depth(&self, _: &TenantId, _: Option<&FunctionName>) -> Result<QueueDepth> {
        broken()
    }

    async fn pinned(&self, _: FunctionId, _: Generation) -> Result<u64> {
        Ok(0)
    }

    async fn expire(&self, _: usize) -> Result<u64> {
        Ok(0)
    }

    fn arrivals(&self) -> QueueSignal {
        self.notifier.signal()
    }

    fn endings(&self) -> QueueSignal {
        self.notifier.signal()
    }
}

/// One request for each operation that needs the queue, about an execution and the function `echo`, to which a subscription that
/// it creates leads.
async fn operations(server: &Server, id: &str) -> Vec<RequestBuilder> {
    let subscription = json!({"name": "all", "spec": {"functions": ["echo"]}});
    let subscribed = server.post("/v1/subscriptions", &subscription).send().await.unwrap();
    assert_eq!(subscribed.status(), StatusCode::CREATED);
    let event = json!({"specversion": "1.0", "id": "1", "source": "/shop", "type": "order.created"}).to_string();
    let event = server.request(Method::POST, "/v1/events").body(event);
    let (execution, letter) = (format!("/v1/executions/{id}"), format!("/v1/dead-letters/{id}"));
    vec![
        submission(server, "echo"),
        call(server, "echo", "submit/http/"),
        call(server, "echo", "invocations").header("prefer", "respond-async"),
        call(server, "echo", "invocations").header("idempotency-key", "k"),
        event.header("content-type", "application/cloudevents+json"),
        server.get(&format!("{execution}/result")),
        server.get(&format!("{execution}/queue")),
        server.request(Method::POST, &format!("{execution}/cancel")),
        server.get("/v1/dead-letters"),
        server.get(&letter),
        server.request(Method::POST, &format!("{letter}/redrive")),
        server.request(Method::DELETE, &letter),
        server.post("/v1/dead-letters/redrive", &json!({})),
        server.post("/v1/dead-letters/purge", &json!({})),
        server.get("/v1/queue"),
        server.get("/v1/functions/echo/queue"),
    ]
}

#[tokio::test]
async fn nothing_is_accepted_that_is_not_kept() {
    let broken = |builder: GatewayBuilder| builder.queue(Arc::new(Broken::default()));
    let server = Server::with(Setup { gateway: Box::new(broken), ..Setup::default() }).await;
    server.create("echo").await;
    for request in operations(&server, "0190a5e4-0000-7000-8000-000000000001").await {
        store_fails(request).await;
    }
    assert_eq!(server.engine.count(Op::Invoke), 0);
}

#[tokio::test]
async fn the_log_of_what_is_queued_is_followed_from_before_it_begins() {
    let server = Server::start().await;
    let policy = json!({"initial_backoff_ms": 1, "max_backoff_ms": 5});
    server.create_with("tries", json!({"idempotent": true, "async": policy})).await;
    let calls = Arc::new(AtomicU32::new(0));
    server.engine.on_invoke(Handler::new(move |_, request| {
        let call = calls.fetch_add(1, Ordering::SeqCst) + 1;
        request.logs.write(format!("{call}\n").as_bytes());
        let status = if call < 3 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
        async move { Ok(InvokeResponse::new(status, "")) }
    }));
    let followed = async |request: RequestBuilder| {
        let id = accepted(request).await["id"].as_str().unwrap().to_owned();
        let log = server.get(&format!("/v1/executions/{id}/logs?follow=true")).header("accept", "text/event-stream");
        log.send().await.unwrap()
    };
    let log = followed(submission(&server, "tries")).await;
    let _workers = workers(&server);
    let lines = [1, 2, 3].map(|call| format!("event: log\ndata: {{\"text\":\"{call}\\n\"}}\n\n"));
    assert_eq!(log.text().await.unwrap(), lines.concat() + "event: end\ndata: {}\n\n");

    let never = followed(submission(&server, "tries").header("x-function-delay-ms", "3600000")).await;
    server.gateway.shutdown(Duration::ZERO).await.unwrap();
    let never = never.text().await.unwrap();
    assert!(never.starts_with("event: error\n") && never.contains("shutting_down"), "{never}");
}

#[tokio::test]
async fn a_queue_that_does_not_answer_in_the_callers_time_may_have_accepted() {
    let hangs = |builder: GatewayBuilder| builder.queue(Arc::new(Broken { hangs: true, ..Broken::default() }));
    let server = Server::with(Setup { gateway: Box::new(hangs), ..Setup::default() }).await;
    server.create("echo").await;
    let id = "0190a5e4-0000-7000-8000-000000000001";
    for request in [submission(&server, "echo"), call(&server, "echo", "invocations").header("idempotency-key", "k")] {
        let hasty = request.header("x-function-timeout-ms", "50").header("x-function-invocation-id", id);
        let late = problem(hasty.send().await.unwrap(), 504, "deadline_exceeded").await;
        assert_eq!((&late["delivery"], &late["context"]["invocation"]), (&json!("unknown"), &json!(id)));
    }
}

#[tokio::test]
async fn a_gateway_without_a_queue_says_so() {
    let without = |builder: GatewayBuilder| builder.invocation_store(Arc::new(MemoryStore::new(GatewayId::generate())));
    let server = Server::with(Setup { gateway: Box::new(without), ..Setup::default() }).await;
    server.create("echo").await;
    let answer = server.invoke("echo", "x").await;
    let id = header(&answer, "x-function-invocation-id").to_owned();
    until("it is recorded", async || {
        server.get(&format!("/v1/executions/{id}")).send().await.unwrap().status() == StatusCode::OK
    })
    .await;
    let mut requests = operations(&server, &id).await;
    requests.push(server.get(&format!("/v1/executions/{id}?wait_ms=1")));
    for request in requests {
        problem(request.send().await.unwrap(), 501, "unsupported").await;
    }
}

#[tokio::test]
async fn what_waits_and_what_runs_is_cancelled() {
    let server = Server::start().await;
    server.create("slow").await;
    let cancel =
        async |status_url: &str| server.request(Method::POST, &format!("{status_url}/cancel")).send().await.unwrap();
    let waiting_one = submitted(&server, "slow", "x").await;
    let answer = cancel(&waiting_one).await;
    assert_eq!((answer.status(), header(&answer, "location")), (StatusCode::ACCEPTED, waiting_one.as_str()));
    assert_eq!(read(&server, &waiting_one).await["state"], "cancelled");
    problem(cancel(&waiting_one).await, 409, "conflict").await;
    let result = server.get(&format!("{waiting_one}/result")).send().await.unwrap();
    let result = problem(result, 499, "cancelled").await;
    assert!(waiting_one.ends_with(result["context"]["invocation"].as_str().unwrap()), "{result}");

    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let _workers = workers(&server);
    let running = submitted(&server, "slow", "y").await;
    gate.reached_by(1).await;
    assert_eq!(read(&server, &running).await["state"], "running");
    assert_eq!(cancel(&running).await.status(), StatusCode::ACCEPTED);
    let record = ended(&server, &running).await;
    assert_eq!((&record["state"], &record["attempts"]), (&json!("cancelled"), &json!(1)));
    problem(cancel("/v1/executions/0190a5e4-0000-7000-8000-000000000001").await, 404, "not_found").await;
    problem(cancel("/v1/executions/7").await, 400, "invalid_argument").await;
    assert_eq!(ids(&dead_letters(&server, "").await), Vec::<&str>::new());
}

#[tokio::test]
async fn who_waits_for_an_end_is_let_go_when_the_gateway_stops() {
    let server = Server::start().await;
    server.create("echo").await;
    let status_url = submitted(&server, "echo", "x").await;
    let wait = tokio::spawn(server.get(&format!("{status_url}?wait_ms=30000")).send());
    server.gateway.shutdown(LONG).await.unwrap();
    let answer = wait.await.unwrap().unwrap();
    assert_eq!(header(&answer, "retry-after"), "1");
    assert_eq!(json_of(answer, StatusCode::OK).await["state"], "queued");
}

#[tokio::test]
async fn an_end_without_an_answer_is_given_as_it_was() {
    let server = Server::start().await;
    server.create("f").await;
    let _workers = workers(&server);
    server.engine.on_invoke(Handler::error(Error::new(ErrorKind::FunctionBroken, "it broke off")));
    let record = done(&server, "f", "x").await;
    let id = record["id"].as_str().unwrap();
    let result = server.get(&format!("/v1/executions/{id}/result")).send().await.unwrap();
    assert_eq!(header(&result, "x-function-invocation-id"), id);
    let result = problem(result, 502, "function_broken").await;
    assert_eq!((&result["detail"], &result["context"]["invocation"]), (&json!("it broke off"), &json!(id)));
    // What the function answered stays its own, also where that is a failure.
    server.engine.on_invoke(Handler::status(StatusCode::NOT_FOUND, "the function's own"));
    let record = done(&server, "f", "x").await;
    let result = server.get(&format!("/v1/executions/{}/result", record["id"].as_str().unwrap())).send().await.unwrap();
    assert_eq!((result.status(), header(&result, "x-function-outcome")), (StatusCode::NOT_FOUND, "rejected"));
    assert_eq!(result.text().await.unwrap(), "the function's own");
    let none = server.get("/v1/executions/0190a5e4-0000-7000-8000-000000000001/result").send().await.unwrap();
    problem(none, 404, "not_found").await;
}

/// Three dead letters: two of `bad`, the second of which is no text, then one of `worse`.
async fn with_dead_letters() -> (Server, Workers, [String; 3]) {
    let server = Server::start().await;
    server.create("bad").await;
    server.create("worse").await;
    server.engine.on_invoke(Handler::failing("bad luck"));
    let workers = workers(&server);
    let id = |record: &Value| record["id"].as_str().unwrap().to_owned();
    let first = id(&done(&server, "bad", "first").await);
    let bytes = submission(&server, "bad").header("content-type", "image/x-own").body(&b"\xff\x00"[..]);
    let second = accepted(bytes).await;
    ended(&server, second["status_url"].as_str().unwrap()).await;
    let third = id(&done(&server, "worse", "third").await);
    let second = id(&second);
    (server, workers, [first, second, third])
}

#[tokio::test]
async fn dead_letters_are_listed_and_read() {
    let (server, _workers, [first, second, third]) = with_dead_letters().await;
    let list = dead_letters(&server, "").await;
    assert_eq!(ids(&list), [&third, &second, &first]);
    let newest = &list["items"][0];
    assert_eq!((&newest["function"], &newest["state"]), (&json!("worse"), &json!("dead")));
    assert_eq!((&newest["caller"], &newest["failure"]["message"]), (&json!("ada"), &json!("bad luck")));
    assert!(newest.get("payload").is_none(), "{newest}");
    assert_eq!(ids(&dead_letters(&server, "function=bad").await), [&second, &first]);
    let part = dead_letters(&server, "limit=2").await;
    assert_eq!(ids(&part), [&third, &second]);
    let rest = dead_letters(&server, &format!("limit=2&cursor={}", part["next"].as_str().unwrap())).await;
    assert_eq!((ids(&rest), rest.get("next")), (vec![first.as_str()], None));
    for query in ["limit=0", "limit=1001", "function=Bad", "cursor=x", "state=dead"] {
        let refused = server.get(&format!("/v1/dead-letters?{query}")).send().await.unwrap();
        problem(refused, 400, "invalid_argument").await;
    }

    let one = read(&server, &format!("/v1/dead-letters/{first}")).await;
    assert_eq!((&one["payload"]["text"], &one["attempts"]), (&json!("first"), &json!(1)));
    assert_eq!((&one["request"], &one["answer"]["status"]), (&json!({"method": "POST"}), &json!(500)));
    assert_eq!((one["history"].as_array().unwrap().len(), &one["history"][0]["number"]), (1, &json!(1)));
    assert_eq!(one["history"][0]["failure"]["code"], "function_failed");
    let bytes = read(&server, &format!("/v1/executions/{second}/queue")).await;
    assert_eq!(
        bytes["payload"],
        json!({"base64": "/wA=", "content_type": "image/x-own", "len": 2, "truncated": false})
    );
    server.engine.on_invoke(Handler::echo());
    let alive = done(&server, "bad", "x").await;
    let alive = alive["id"].as_str().unwrap();
    problem(server.get(&format!("/v1/dead-letters/{alive}")).send().await.unwrap(), 404, "not_found").await;
    assert_eq!(read(&server, "/v1/queue").await, json!({"open": 0, "dead": 3}));
    assert_eq!(read(&server, "/v1/functions/bad/queue").await, json!({"open": 0, "dead": 2}));
    assert_eq!(read(&server, "/v1/functions/none/queue").await, json!({"open": 0, "dead": 0}));
}

#[tokio::test]
async fn a_dead_letter_is_redriven_or_purged() {
    let (server, _workers, [first, second, _]) = with_dead_letters().await;
    server.engine.on_invoke(Handler::echo());
    let redrive =
        async |id: &str| server.request(Method::POST, &format!("/v1/dead-letters/{id}/redrive")).send().await.unwrap();
    let answer = redrive(&first).await;
    let status_url = header(&answer, "location").to_owned();
    let new = json_of(answer, StatusCode::ACCEPTED).await;
    assert_eq!((&new["status_url"], &new["repeated"]), (&json!(status_url), &json!(false)));
    let record = ended(&server, &status_url).await;
    assert_eq!((&record["state"], &record["lineage"]["redrive_of"]), (&json!("succeeded"), &json!(first)));
    problem(redrive(&first).await, 409, "conflict").await;
    let old = read(&server, &format!("/v1/dead-letters/{first}")).await;
    assert_eq!((&old["state"], &old["redriven_as"]), (&json!("redriven"), &new["id"]));

    let purge =
        async |id: &str| server.request(Method::DELETE, &format!("/v1/dead-letters/{id}")).send().await.unwrap();
    assert_eq!(purge(&second).await.status(), StatusCode::NO_CONTENT);
    problem(purge(&second).await, 404, "not_found").await;
    problem(purge(new["id"].as_str().unwrap()).await, 409, "conflict").await;
    problem(redrive(&second).await, 404, "not_found").await;
    problem(redrive("7").await, 400, "invalid_argument").await;
    assert_eq!(read(&server, &format!("/v1/executions/{second}")).await["state"], "failed", "the record stays");
    let audit = read(&server, "/v1/audit").await;
    let actions: Vec<_> =
        audit["items"].as_array().unwrap().iter().map(|event| event["action"].as_str().unwrap()).collect();
    assert_eq!(actions[..2], ["purge", "redrive"]);
}

#[tokio::test]
async fn a_dead_letter_is_not_redriven_into_a_queue_that_is_full() {
    let server = Server::with(with_config(|config| config.queue.max_per_function = 1)).await;
    server.create("bad").await;
    server.engine.on_invoke(Handler::failing("bad luck"));
    let workers = workers(&server);
    let dead = done(&server, "bad", "x").await;
    let letter = format!("/v1/dead-letters/{}", dead["id"].as_str().unwrap());
    workers.drain().await;
    submitted(&server, "bad", "waits").await;
    let full = server.request(Method::POST, &format!("{letter}/redrive")).send().await.unwrap();
    assert_eq!(header(&full, "retry-after"), "1");
    assert_eq!(problem(full, 429, "rate_limited").await["context"]["limit"], "max_per_function");
    let many = server.post("/v1/dead-letters/redrive", &json!({})).send().await.unwrap();
    let many = json_of(many, StatusCode::OK).await;
    assert_eq!((&many["redriven"], &many["failed"][0]["code"]), (&json!([]), &json!("rate_limited")));
    assert_eq!(read(&server, &letter).await["state"], "dead");
}

#[tokio::test]
async fn many_dead_letters_are_redriven_or_purged() {
    let (server, _workers, [first, second, third]) = with_dead_letters().await;
    let many =
        async |what: &str, body: Value| server.post(&format!("/v1/dead-letters/{what}"), &body).send().await.unwrap();
    server.request(Method::DELETE, "/v1/functions/worse").send().await.unwrap();
    server.engine.on_invoke(Handler::echo());
    let part = json_of(many("redrive", json!({"limit": 2})).await, StatusCode::OK).await;
    assert_eq!((part["redriven"].as_array().unwrap().len(), &part["redriven"][0]["id"]), (1, &json!(second)));
    assert_eq!((&part["failed"][0]["id"], &part["failed"][0]["code"]), (&json!(third), &json!("not_found")));
    // What failed is not in the way of the rest.
    let rest = json_of(many("redrive", json!({"limit": 2, "cursor": part["next"]})).await, StatusCode::OK).await;
    assert_eq!((&rest["redriven"][0]["id"], rest.get("next")), (&json!(first), None));
    for one in [&part["redriven"][0], &rest["redriven"][0]] {
        let url = format!("/v1/executions/{}", one["redriven_as"].as_str().unwrap());
        assert_eq!(ended(&server, &url).await["state"], "succeeded");
    }
    let none = json_of(many("purge", json!({"function": "bad"})).await, StatusCode::OK).await;
    assert_eq!(none, json!({"purged": [], "failed": []}));
    let purged = json_of(many("purge", json!({})).await, StatusCode::OK).await;
    assert_eq!(purged, json!({"purged": [third], "failed": []}));
    for body in
        [json!({"limit": 0}), json!({"limit": 1001}), json!({"functions": "bad"}), json!({"cursor": "x"}), json!([])]
    {
        problem(many("redrive", body.clone()).await, 400, "invalid_argument").await;
        problem(many("purge", body).await, 400, "invalid_argument").await;
    }
    let without = server.request(Method::POST, "/v1/dead-letters/purge").send().await.unwrap();
    problem(without, 415, "unsupported_media_type").await;
}

#[tokio::test]
async fn a_scope_lets_do_what_it_says_with_what_is_queued() {
    let (server, workers, [first, second, third]) = with_dead_letters().await;
    workers.drain().await;
    let caller = key(&server.gateway, "acme", "bob", &["invoke:bad"]).await;
    let status_url = {
        let request = server.as_who(&caller, Method::POST, "/v1/functions/bad/submit");
        accepted(request).await["status_url"].as_str().unwrap().to_owned()
    };
    let foreign_url = submitted(&server, "bad", "of ada").await;
    for (scope, expected) in [
        // own state, waiting for it, its result, another's state, its queue, list, of a function, one, cancel, redrive, purge
        ("invoke:bad", [200, 200, 409, 403, 403, 403, 403, 403, 409, 202, 403]),
        ("invoke:none", [403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403]),
        ("read", [200, 200, 409, 200, 200, 200, 200, 200, 403, 403, 403]),
        ("read:bad", [200, 200, 409, 200, 200, 403, 200, 200, 403, 403, 403]),
        ("write", [200, 200, 409, 200, 200, 200, 200, 200, 403, 403, 204]),
        ("metrics", [403, 403, 403, 403, 403, 403, 403, 403, 403, 403, 403]),
    ] {
        let who = key(&server.gateway, "acme", if scope.starts_with("invoke") { "bob" } else { "eve" }, &[scope]).await;
        let as_who = |method: Method, path: &str| server.as_who(&who, method, path).send();
        let answers = [
            as_who(Method::GET, &status_url).await,
            as_who(Method::GET, &format!("{status_url}?wait_ms=0")).await,
            as_who(Method::GET, &format!("{status_url}/result")).await,
            as_who(Method::GET, &foreign_url).await,
            as_who(Method::GET, &format!("{foreign_url}/queue")).await,
            as_who(Method::GET, "/v1/dead-letters").await,
            as_who(Method::GET, "/v1/dead-letters?function=bad").await,
            as_who(Method::GET, &format!("/v1/dead-letters/{first}")).await,
            as_who(Method::POST, &format!("/v1/executions/{first}/cancel")).await,
            // Of which the first one who may makes use.
            as_who(Method::POST, &format!("/v1/dead-letters/{second}/redrive")).await,
            as_who(Method::DELETE, &format!("/v1/dead-letters/{third}")).await,
        ];
        let statuses: Vec<_> = answers.iter().map(|answer| answer.as_ref().unwrap().status().as_u16()).collect();
        assert_eq!(statuses, expected, "{scope}");
    }
    // Whoever may not is told so for all at once.
    let reader = key(&server.gateway, "acme", "eve", &["read"]).await;
    let many = server.as_who(&reader, Method::POST, "/v1/dead-letters/redrive").json(&json!({})).send().await.unwrap();
    assert_eq!(problem(many, 403, "permission_denied").await["context"]["done"], "0");
}

#[tokio::test]
async fn who_submitted_an_execution_may_read_its_log_while_it_runs_and_later() {
    let server = Server::start().await;
    server.create("logs").await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::logging(&["one\n"], &gate));
    let _workers = workers(&server);
    let bob = key(&server.gateway, "acme", "bob", &["invoke"]).await;
    let bob_reads = key(&server.gateway, "acme", "bob", &["read"]).await;
    let eve = key(&server.gateway, "acme", "eve", &["invoke"]).await;
    let request = server.as_who(&bob, Method::POST, "/v1/functions/logs/submit");
    let status_url = accepted(request).await["status_url"].as_str().unwrap().to_owned();
    let log = format!("{status_url}/logs");
    let read = async |who: &str| server.as_who(who, Method::GET, &log).send().await.unwrap();
    gate.reached_by(1).await;
    for _ in ["while it runs", "later"] {
        for who in [&bob, &bob_reads] {
            assert_eq!(read(who).await.text().await.unwrap(), "one\n");
        }
        problem(read(&eve).await, 403, "permission_denied").await;
        gate.open();
        let ended = server.get(&format!("{status_url}?wait_ms=30000")).send().await.unwrap();
        assert_eq!(json_of(ended, StatusCode::OK).await["state"], "succeeded");
    }
}

#[tokio::test]
async fn what_is_another_tenants_in_the_queue_is_not_there() {
    let (server, _workers, [first, ..]) = with_dead_letters().await;
    let stranger = key(&server.gateway, "other", "eve", &["admin"]).await;
    let as_stranger =
        async |method: Method, path: &str| -> Response { server.as_who(&stranger, method, path).send().await.unwrap() };
    for (method, path) in [
        (Method::GET, format!("/v1/executions/{first}?wait_ms=0")),
        (Method::GET, format!("/v1/executions/{first}/result")),
        (Method::GET, format!("/v1/executions/{first}/queue")),
        (Method::POST, format!("/v1/executions/{first}/cancel")),
        (Method::GET, format!("/v1/dead-letters/{first}")),
        (Method::POST, format!("/v1/dead-letters/{first}/redrive")),
        (Method::DELETE, format!("/v1/dead-letters/{first}")),
        (Method::POST, "/v1/functions/bad/submit".to_owned()),
    ] {
        problem(as_stranger(method, &path).await, 404, "not_found").await;
    }
    let list = json_of(as_stranger(Method::GET, "/v1/dead-letters").await, StatusCode::OK).await;
    assert_eq!(ids(&list), Vec::<&str>::new());
    let depth = json_of(as_stranger(Method::GET, "/v1/queue").await, StatusCode::OK).await;
    assert_eq!(depth, json!({"open": 0, "dead": 0}));
    let purge = server.as_who(&stranger, Method::POST, "/v1/dead-letters/purge").json(&json!({})).send().await.unwrap();
    assert_eq!(json_of(purge, StatusCode::OK).await["purged"], json!([]));
    assert_eq!(dead_letters(&server, "").await["items"].as_array().unwrap().len(), 3);
}
