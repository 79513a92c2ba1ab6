//! Calls of functions, and their own URLs.

use bytes::Bytes;
use function_gateway_core::{Error, ErrorKind, FunctionFailure, InvokeResponse};
use function_gateway_testkit::{Gate, Handler, Op};
use futures_util::StreamExt as _;
use http::header::{HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::common::{Server, Setup, executions, header, json_of, problem, remembering, until, waiting, with_config};

#[tokio::test]
async fn a_call_gets_the_functions_answer() {
    let server = Server::start().await;
    server.create("echo").await;
    let id = "0190a5e4-0000-7000-8000-000000000001";
    let call = server.request(Method::POST, "/v1/functions/echo/invocations");
    let call = call.header("content-type", "text/x-own").header("x-function-invocation-id", id).body("hello");
    let answer = call.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header(&answer, "content-type"), "text/x-own");
    assert_eq!(header(&answer, "x-function-answered-by"), "function");
    assert_eq!(header(&answer, "x-function-invocation-id"), id);
    assert_eq!(header(&answer, "x-function-outcome"), "succeeded");
    let timing = header(&answer, "server-timing");
    assert!(timing.contains("driver;dur=") && timing.contains("total;dur="), "{timing}");
    assert_eq!(answer.content_length(), Some(5));
    assert_eq!(answer.text().await.unwrap(), "hello");
    let kept = json_of(server.get(&format!("/v1/executions/{id}")).send().await.unwrap(), StatusCode::OK).await;
    assert_eq!((&kept["state"], &kept["caller"]), (&json!("succeeded"), &json!("ada")));
}

#[tokio::test]
async fn one_status_tells_by_a_header_whose_it_is() {
    let server = Server::start().await;
    server.create("echo").await;
    server.engine.on_invoke(Handler::status(StatusCode::NOT_FOUND, "the function's own"));
    let by_function = server.invoke("echo", "").await;
    assert_eq!(by_function.status(), StatusCode::NOT_FOUND);
    assert_eq!(header(&by_function, "x-function-answered-by"), "function");
    assert_eq!(header(&by_function, "x-function-outcome"), "rejected");
    assert_eq!(by_function.text().await.unwrap(), "the function's own");
    let by_gateway = server.invoke("none", "").await;
    assert!(by_gateway.headers().contains_key("x-function-invocation-id"));
    problem(by_gateway, 404, "not_found").await;

    server.engine.on_invoke(Handler::status(StatusCode::BAD_GATEWAY, ""));
    assert_eq!(header(&server.invoke("echo", "").await, "x-function-answered-by"), "function");
    server.engine.on_invoke(Handler::error(Error::new(ErrorKind::Engine, "it answered what it must not")));
    let problem = problem(server.invoke("echo", "").await, 502, "engine").await;
    assert_eq!(problem["delivery"], "unknown");
}

#[tokio::test]
async fn who_gets_no_answer_of_the_function_is_told_too_what_took_the_time() {
    let server = Server::start().await;
    server.create("late").await;
    server.create_with("strict", json!({"input_schema": {"type": "object"}})).await;
    server.engine.on_invoke(waiting(&Gate::new()));
    let call = server.request(Method::POST, "/v1/functions/late/invocations").header("x-function-timeout-ms", "500");
    let late = call.send().await.unwrap();
    let timing = header(&late, "server-timing").to_owned();
    problem(late, 504, "deadline_exceeded").await;
    for phase in ["driver;dur=", "total;dur="] {
        let (_, millis) = timing.split_once(phase).unwrap_or_else(|| panic!("{timing}"));
        let millis: f64 = millis.split(',').next().unwrap().parse().unwrap();
        assert!(millis > 0.0, "{timing}");
    }
    let refused = server.invoke("strict", "7").await;
    let timing = header(&refused, "server-timing").to_owned();
    problem(refused, 422, "invalid_input").await;
    assert!(timing.contains("validate;dur=") && !timing.contains("driver"), "{timing}");
    // Nothing was spent on it.
    let none = server.invoke("none", "").await;
    assert!(!none.headers().contains_key("server-timing"));
}

#[tokio::test]
async fn a_function_does_not_speak_for_the_gateway() {
    let server = Server::start().await;
    server.create("liar").await;
    server.engine.on_invoke(Handler::new(async |_, _| {
        let mut answer = InvokeResponse::new(StatusCode::OK, "lies");
        for (name, value) in [
            ("x-function-answered-by", "gateway"),
            ("x-function-outcome", "failed"),
            ("x-function-failure", "none"),
            ("x-function-invocation-id", "mine"),
            ("x-request-id", "mine"),
            ("server-timing", "total;dur=0"),
            ("content-length", "9999"),
            ("connection", "close, x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "gzip"),
        ] {
            answer.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        Ok(answer)
    }));
    let answer = server.invoke("liar", "").await;
    assert_eq!(header(&answer, "x-function-answered-by"), "function");
    assert_eq!(header(&answer, "x-function-outcome"), "succeeded");
    assert!(header(&answer, "x-function-invocation-id").len() == 36);
    assert_eq!(answer.headers().get_all("x-request-id").iter().count(), 1);
    assert_ne!(header(&answer, "x-request-id"), "mine");
    assert_eq!(answer.headers().get_all("server-timing").iter().count(), 1);
    assert_ne!(header(&answer, "server-timing"), "total;dur=0");
    for gone in ["x-function-failure", "x-hop", "connection", "transfer-encoding"] {
        assert!(!answer.headers().contains_key(gone), "{gone}");
    }
    assert_eq!(answer.text().await.unwrap(), "lies");
}

#[tokio::test]
async fn a_failure_without_a_status_says_what_it_is() {
    let server = Server::start().await;
    server.create("fails").await;
    server.engine.on_invoke(Handler::new(async |_, _| {
        Ok(InvokeResponse::failed(FunctionFailure::new("exit status 3\nand \u{e9}"), ""))
    }));
    let answer = server.invoke("fails", "").await;
    assert_eq!(answer.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(header(&answer, "x-function-answered-by"), "function");
    assert_eq!(header(&answer, "x-function-outcome"), "failed");
    assert_eq!(header(&answer, "x-function-failure"), "exit status 3 and");
}

#[tokio::test]
async fn a_host_may_mount_the_api_below_parts_of_its_own() {
    let server = Server::with(Setup { below: "/tenants/{tenant}/{of}", ..Setup::default() }).await;
    let below = "/tenants/caf%C3%A9/7";
    let spec = crate::common::spec();
    let created = server.post(&format!("{below}/v1/functions"), &json!({"name": "web", "spec": spec})).send().await;
    assert_eq!(header(&created.unwrap(), "location"), format!("{below}/v1/functions/web"));
    let (handler, seen) = remembering();
    server.engine.on_invoke(handler);
    for (path, expected) in [
        ("/v1/functions/web", 200),
        ("/v1/functions/w%65b", 200),
        ("/v1/functions/web/revisions/1", 200),
        ("/v1/functions/web/revisions/0", 400),
        ("/v1/functions/web/revisions/x", 400),
        ("/v1/functions/no%20name", 400),
        ("/v1/functions/w%65b/http/a", 200),
        ("/v1/functions/%FF/http/a", 400),
        ("/v1/functions/%FF", 400),
    ] {
        let answer = server.get(&format!("{below}{path}")).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{path}: {}", answer.text().await.unwrap());
    }
    let answer = server.request(Method::POST, &format!("{below}/v1/functions/web/invocations")).body("x").send().await;
    assert_eq!(answer.unwrap().status(), StatusCode::OK);
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_tunnel_is_refused() {
    let server = Server::start().await;
    server.create("web").await;
    let request = format!(
        "CONNECT /v1/functions/web/http/x HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        server.admin
    );
    let answer = server.raw(request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert!(answer.contains("\r\nallow: GET, HEAD, "), "{answer}");
    assert_eq!(server.engine.count(Op::Invoke), 0);
}

#[tokio::test]
async fn the_functions_own_url_passes_everything_through() {
    for below in ["", "/deep/below"] {
        let server = Server::with(Setup { below, ..Setup::default() }).await;
        let spec = crate::common::spec();
        let create = server.post(&format!("{below}/v1/functions"), &json!({"name": "web", "spec": spec}));
        let created = create.send().await.unwrap();
        assert_eq!(header(&created, "location"), format!("{below}/v1/functions/web"));
        let (handler, seen) = remembering();
        server.engine.on_invoke(handler);
        for (method, path, expected) in [
            ("GET", "/http", "GET ?-"),
            ("GET", "/http/", "GET /?-"),
            ("PUT", "/http/a/b?x=%20&y", "PUT /a/b?x=%20&y"),
            ("DELETE", "/http/a%2Fb/..%2f/http/c?", "DELETE /a%2Fb/..%2f/http/c?"),
            ("OPTIONS", "/http//twice", "OPTIONS //twice?-"),
            ("PURGE", "/http/own-method", "PURGE /own-method?-"),
            ("GET", "/http/caf%E9", "GET /caf%E9?-"),
        ] {
            let request = format!(
                "{method} {below}/v1/functions/web{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nx-own: 1\r\n\
                 connection: close, x-hop\r\nx-hop: 1\r\nx-forwarded-for: 10.0.0.1\r\ncookie: a=b\r\n\r\n",
                server.admin
            );
            let answer = server.raw(request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            let (line, headers) = seen.lock().unwrap().pop().unwrap();
            assert_eq!(line, expected);
            assert_eq!(
                (&headers["x-own"], &headers["cookie"], &headers["x-forwarded-for"]),
                (
                    &HeaderValue::from_static("1"),
                    &HeaderValue::from_static("a=b"),
                    &HeaderValue::from_static("10.0.0.1")
                )
            );
            for kept_back in ["authorization", "host", "x-hop", "connection"] {
                assert!(!headers.contains_key(kept_back), "{kept_back}");
            }
        }
    }
}

#[tokio::test]
async fn only_the_gateways_own_credential_is_kept_back() {
    let server = Server::start().await;
    server.create("web").await;
    let (handler, seen) = remembering();
    server.engine.on_invoke(handler);
    let request = server.client.get(server.url("/v1/functions/web/http/")).header("x-api-key", &server.admin);
    assert_eq!(request.bearer_auth("the-functions-own").send().await.unwrap().status(), StatusCode::OK);
    let (_, headers) = seen.lock().unwrap().pop().unwrap();
    assert_eq!(headers["authorization"], "Bearer the-functions-own");
    assert!(!headers.contains_key("x-api-key"));

    let url = server.url("/v1/functions/web/http/");
    let own = server.client.get(&url).bearer_auth(&server.admin).header("x-api-key", "the-functions-own");
    assert_eq!(own.send().await.unwrap().status(), StatusCode::OK);
    assert_eq!(seen.lock().unwrap().pop().unwrap().1["x-api-key"], "the-functions-own");
    let twice = server.client.get(&url).bearer_auth(&server.admin).header("x-api-key", &server.admin);
    assert_eq!(twice.send().await.unwrap().status(), StatusCode::OK);
    let (_, headers) = seen.lock().unwrap().pop().unwrap();
    assert!(!headers.contains_key("authorization") && !headers.contains_key("x-api-key"));
}

#[tokio::test]
async fn an_upgrade_is_refused_in_words() {
    let server = Server::start().await;
    server.create("web").await;
    let upgrade = |protocol: &str| {
        server.get("/v1/functions/web/http/socket").header("connection", "upgrade").header("upgrade", protocol)
    };
    let refused = problem(upgrade("websocket").send().await.unwrap(), 501, "unsupported").await;
    assert!(refused["detail"].as_str().unwrap().contains("websocket"), "{refused}");
    assert_eq!(upgrade("h2c").send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_call_says_how_long_its_caller_waits() {
    let server = Server::start().await;
    server.create("slow").await;
    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let call = |timeout: &str| {
        server.request(Method::POST, "/v1/functions/slow/invocations").header("x-function-timeout-ms", timeout)
    };
    let late = problem(call("20").send().await.unwrap(), 504, "deadline_exceeded").await;
    assert_eq!(late["context"]["timeout"], "total");
    for bad in ["0", "-1", "soon", "99999999999"] {
        problem(call(bad).send().await.unwrap(), 400, "invalid_argument").await;
    }
    let bad = call("1").header("x-function-invocation-id", "7").send().await.unwrap();
    problem(bad, 400, "invalid_argument").await;
}

#[tokio::test]
async fn payloads_are_checked_with_and_without_a_call() {
    let server = Server::start().await;
    let schema = json!({"type": "object", "required": ["name"]});
    server.create_with("greet", json!({"input_schema": schema, "limits": {"max_request_bytes": 100}})).await;
    let refused = problem(server.invoke("greet", "{}").await, 422, "invalid_input").await;
    let checked = server.request(Method::POST, "/v1/functions/greet/validate").body("{}").send().await.unwrap();
    let checked = json_of(checked, StatusCode::OK).await;
    assert_eq!((&checked["valid"], &checked["violations"]), (&json!(false), &refused["violations"]));
    let fits = server.request(Method::POST, "/v1/functions/greet/validate").body("{\"name\": 1}").send().await.unwrap();
    assert_eq!(json_of(fits, StatusCode::OK).await["valid"], true);
    for route in ["invocations", "validate"] {
        let send = async |name: &str, payload: String| {
            let call = server.request(Method::POST, &format!("/v1/functions/{name}/{route}"));
            call.body(payload).send().await.unwrap()
        };
        let large = problem(send("greet", "x".repeat(101)).await, 413, "payload_too_large").await;
        assert_eq!(large["context"]["limit_bytes"], "100");
        for (name, status, code) in
            [("greet@9", 404, "not_found"), ("greet:prod", 501, "unsupported"), ("Greet", 400, "invalid_argument")]
        {
            problem(send(name, "{}".to_owned()).await, status, code).await;
        }
    }
}

#[tokio::test]
async fn an_answer_comes_as_it_is_made() {
    let server = Server::start().await;
    server.create_with("stream", json!({"streaming": true})).await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::stream(["one", "two", "three"], &gate));
    gate.release(1);
    let answer = server.invoke("stream", "").await;
    let timing = header(&answer, "server-timing").to_owned();
    assert!(timing.starts_with("total;dur=") || timing.contains(", total;dur="), "until it began: {timing}");
    let mut chunks = answer.bytes_stream();
    assert_eq!(chunks.next().await.unwrap().unwrap(), Bytes::from("one"));
    assert_eq!(server.engine.in_flight(), 1);
    gate.release(1);
    assert_eq!(chunks.next().await.unwrap().unwrap(), Bytes::from("two"));
    gate.open();
    assert_eq!(chunks.next().await.unwrap().unwrap(), Bytes::from("three"));
    assert!(chunks.next().await.is_none());
}

#[tokio::test]
async fn a_stream_that_breaks_off_does_not_look_whole() {
    let server = Server::start().await;
    server.create_with("stream", json!({"streaming": true})).await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::break_off(["one", "two"], &gate));
    gate.release(1);
    let answer = server.invoke("stream", "").await;
    assert_eq!(answer.status(), StatusCode::OK);
    let mut chunks = answer.bytes_stream();
    assert_eq!(chunks.next().await.unwrap().unwrap(), Bytes::from("one"));
    gate.open();
    while let Some(chunk) = chunks.next().await {
        if chunk.is_err() {
            return;
        }
    }
    panic!("it looked whole");
}

#[tokio::test]
async fn a_payload_goes_to_the_function_as_it_comes() {
    let server = Server::start().await;
    server.create_with("stream", json!({"streaming": true})).await;
    let (sender, mut parts) = tokio::sync::mpsc::unbounded_channel::<Result<&'static str, std::io::Error>>();
    let parts = futures_util::stream::poll_fn(move |cx| parts.poll_recv(cx));
    let call = server.request(Method::POST, "/v1/functions/stream/invocations").body(reqwest::Body::wrap_stream(parts));
    let call = tokio::spawn(call.send());
    sender.send(Ok("first")).unwrap();
    // The echo answers with the first part before the second one exists.
    let mut answer = call.await.unwrap().unwrap().bytes_stream();
    assert_eq!(answer.next().await.unwrap().unwrap(), Bytes::from("first"));
    sender.send(Ok("second")).unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap(), Bytes::from("second"));
    drop(sender);
    assert!(answer.next().await.is_none());
}

#[tokio::test]
async fn a_client_that_hangs_up_cancels_its_call() {
    let server = Server::start().await;
    server.create_with("stream", json!({"streaming": true})).await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::stream(["one", "two"], &gate));
    gate.release(1);
    let answer = server.invoke("stream", "").await;
    let id = header(&answer, "x-function-invocation-id").to_owned();
    let mut chunks = answer.bytes_stream();
    chunks.next().await.unwrap().unwrap();
    drop(chunks);
    until("the function is cancelled", async || server.engine.in_flight() == 0).await;
    let record = async || server.get(&format!("/v1/executions/{id}")).send().await.unwrap();
    until("it is recorded", async || record().await.status() == StatusCode::OK).await;
    let record = json_of(record().await, StatusCode::OK).await;
    assert_eq!((&record["state"], &record["failure"]["class"]), (&json!("cancelled"), &json!("cancelled")));
}

/// Waits until the one call is cancelled, and recorded so.
async fn is_cancelled(server: &Server) {
    until("the function is cancelled", async || server.engine.in_flight() == 0).await;
    until("it is recorded", async || executions(server, "cancelled").await.len() == 1).await;
}

#[tokio::test]
async fn a_client_that_hangs_up_before_the_answer_cancels_its_call() {
    let server = Server::start().await;
    server.create("slow").await;
    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let call = server.request(Method::POST, "/v1/functions/slow/invocations").body("x");
    let call = tokio::spawn(call.send());
    gate.reached_by(1).await;
    call.abort();
    is_cancelled(&server).await;
}

#[tokio::test]
async fn a_client_that_closes_its_side_before_the_answer_cancels_its_call() {
    let server = Server::start().await;
    server.create("slow").await;
    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let mut client = server.connect().await;
    let head = "POST /v1/functions/slow/invocations HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\nauthorization: Bearer";
    client.write_all(format!("{head} {}\r\n\r\nx", server.admin).as_bytes()).await.unwrap();
    gate.reached_by(1).await;
    client.shutdown().await.unwrap();
    is_cancelled(&server).await;
}

#[tokio::test]
async fn a_head_request_keeps_the_length_that_the_function_tells() {
    let server = Server::start().await;
    server.create("web").await;
    server.engine.on_invoke(Handler::new(async |_, _| {
        let answer = InvokeResponse::new(StatusCode::OK, "");
        Ok(answer.with_header(http::header::CONTENT_LENGTH, HeaderValue::from_static("1234")))
    }));
    let answer = server.request(Method::HEAD, "/v1/functions/web/http/file").send().await.unwrap();
    assert_eq!(header(&answer, "content-length"), "1234");
}

#[tokio::test]
async fn who_is_over_a_limit_is_told_when_to_come_again() {
    let server = Server::start().await;
    server.create_with("rare", json!({"limits": {"rate": {"calls": 1, "per_ms": 3_600_000}}})).await;
    assert_eq!(server.invoke("rare", "").await.status(), StatusCode::OK);
    let refused = server.invoke("rare", "").await;
    let seconds: u64 = header(&refused, "retry-after").parse().unwrap();
    assert!((1..=3600).contains(&seconds), "{seconds}");
    let refused = problem(refused, 429, "rate_limited").await;
    assert_eq!((&refused["retry"], &refused["delivery"]), (&json!("transient"), &json!("not_sent")));
}

#[tokio::test]
async fn an_id_is_of_one_execution() {
    let server = Server::start().await;
    server.create("echo").await;
    let id = "0190a5e4-0000-7000-8000-000000000003";
    let call = |key: &str| {
        let request = server.as_who(key, Method::POST, "/v1/functions/echo/invocations");
        request.header("x-function-invocation-id", id).body("x").send()
    };
    assert_eq!(call(&server.admin).await.unwrap().status(), StatusCode::OK);
    problem(call(&server.admin).await.unwrap(), 409, "already_exists").await;
    let stranger = crate::common::key(&server.gateway, "other", "eve", &["admin"]).await;
    let create = server.as_who(&stranger, Method::POST, "/v1/functions");
    create.json(&json!({"name": "echo", "spec": crate::common::spec()})).send().await.unwrap();
    problem(call(&stranger).await.unwrap(), 409, "already_exists").await;
    assert_eq!(server.engine.count(function_gateway_testkit::Op::Invoke), 1);
    let kept = server.get(&format!("/v1/executions/{id}")).send().await.unwrap();
    assert_eq!(json_of(kept, StatusCode::OK).await["state"], "succeeded");
}

#[tokio::test]
async fn an_answer_that_is_none_is_the_functions_fault() {
    let server = Server::start().await;
    server.create("web").await;
    server.engine.on_invoke(Handler::status(StatusCode::SWITCHING_PROTOCOLS, ""));
    problem(server.get("/v1/functions/web/http/").send().await.unwrap(), 502, "function_broken").await;
}

#[tokio::test]
async fn who_does_not_read_on_does_not_keep_a_function() {
    let pause = std::time::Duration::from_millis(200);
    let server = Server::with(with_config(move |config| config.max_reader_pause = pause)).await;
    server.create_with("stream", json!({"streaming": true})).await;
    let endless = Handler::new(async |_, _| {
        let chunk = Bytes::from(vec![b'x'; 64 * 1024]);
        let chunks = futures_util::stream::repeat_with(move || Ok(chunk.clone()));
        Ok(InvokeResponse::new(StatusCode::OK, function_gateway_core::Body::from_stream(chunks)))
    });
    server.engine.on_invoke(endless);
    let answer = server.invoke("stream", "").await;
    assert_eq!(server.engine.in_flight(), 1);
    until("the call is given up", async || server.engine.in_flight() == 0).await;
    drop(answer);
}
