//! The API as a server: health, description, compression, CORS, protocols, time limits, shutdown.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use flate2::read::GzDecoder;
use function_gateway_core::{
    CallContext, FunctionExecutor as _, InvocationId, InvocationRecord, InvocationState, InvokeResponse, Principal,
};
use function_gateway_rest::serve::ServeOptions;
use function_gateway_rest::{Cors, RestOptions};
use function_gateway_testkit::{Gate, Handler, Op};
use http::HeaderValue;
use http::header::{ACCESS_CONTROL_EXPOSE_HEADERS, VARY};
use hyper_util::rt::{TokioExecutor, TokioIo};
use reqwest::{Method, StatusCode};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::common::{LONG, Server, Setup, THREADS, header, json_of, problem, until, waiting};

#[tokio::test]
async fn health_and_description_are_for_everybody() {
    let server = Server::start().await;
    let open = |path: &str| server.client.get(server.url(path));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(json_of(open(path).send().await.unwrap(), StatusCode::OK).await, json!({"status": "ok"}));
    }
    let description = open("/openapi.json").send().await.unwrap();
    let etag = header(&description, "etag").to_owned();
    assert_eq!(json_of(description, StatusCode::OK).await["openapi"], "3.1.0");
    for tag in [&etag, &format!("W/{etag}")] {
        let known = open("/openapi.json").header("if-none-match", tag).send().await.unwrap();
        assert_eq!(known.status(), StatusCode::NOT_MODIFIED);
    }
    let small = open("/openapi.json").header("accept-encoding", "br, gzip").send().await.unwrap();
    for (name, value) in [
        ("content-type", "application/json"),
        ("content-encoding", "gzip"),
        ("vary", "accept-encoding"),
        ("etag", &format!("W/{etag}")),
    ] {
        assert_eq!(header(&small, name), value);
    }
    let mut text = String::new();
    GzDecoder::new(&*small.bytes().await.unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, function_gateway_rest::openapi_json());
    server.gateway.shutdown(Duration::ZERO).await.unwrap();
    until("it is not ready any more", async || {
        open("/readyz").send().await.unwrap().status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    let refused = open("/readyz").send().await.unwrap();
    assert_eq!(header(&refused, "retry-after"), "1");
    problem(refused, 503, "shutting_down").await;
    assert_eq!(open("/healthz").send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn drivers_and_limits_are_told() {
    let server = Server::start().await;
    let drivers = json_of(server.get("/v1/drivers").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!((&drivers[0]["name"], &drivers[0]["protocols"][0]["protocol"]), (&json!("scripted"), &json!("exec")));
    let can = drivers[0]["protocols"][0]["capabilities"].as_array().unwrap();
    assert!(can.contains(&json!("streaming")) && !can.contains(&json!("scale_bounds")), "{can:?}");
    let limits = json_of(server.get("/v1/limits").send().await.unwrap(), StatusCode::OK).await;
    assert_eq!((&limits["max_document_bytes"], &limits["default_total_ms"]), (&json!(1_048_576), &json!(30_000)));
}

#[tokio::test]
async fn what_is_not_there_is_a_problem_too() {
    let server = Server::start().await;
    problem(server.get("/v2").send().await.unwrap(), 404, "not_found").await;
    let response = server.request(Method::DELETE, "/v1/functions").send().await.unwrap();
    let allowed = header(&response, "allow").to_owned();
    assert!(allowed.contains("GET") && allowed.contains("POST"), "{allowed}");
    problem(response, 405, "method_not_allowed").await;
    let named = server.get("/v1/none").header("x-request-id", "mine-7").send().await.unwrap();
    assert_eq!(header(&named, "x-request-id"), "mine-7");
    let unfit = server.get("/v1/none").header("x-request-id", "a b").send().await.unwrap();
    assert_eq!(header(&unfit, "x-request-id").len(), 36);
}

#[tokio::test]
async fn documents_are_compressed_and_answers_of_functions_are_not() {
    let server = Server::start().await;
    server.create_with("echo", json!({"description": "x".repeat(1000), "labels": {"a": "y".repeat(200)}})).await;
    let get = server.get("/v1/functions/echo").header("accept-encoding", "gzip").send().await.unwrap();
    assert_eq!(header(&get, "content-encoding"), "gzip");
    let weak = header(&get, "etag").to_owned();
    assert!(weak.starts_with("W/\""), "{weak}");
    let put = server.request(Method::PUT, "/v1/functions/echo").json(&crate::common::spec()).header("if-match", weak);
    json_of(put.send().await.unwrap(), StatusCode::OK).await;
    let small = server.get("/v1/me").header("accept-encoding", "gzip").send().await.unwrap();
    assert!(!small.headers().contains_key("content-encoding"));
    let call = server.request(Method::POST, "/v1/functions/echo/invocations");
    let call = call.header("accept-encoding", "gzip").header("content-type", "application/json");
    let answer = call.body("z".repeat(10_000)).send().await.unwrap();
    assert!(!answer.headers().contains_key("content-encoding"));
    assert_eq!(answer.content_length(), Some(10_000));
}

#[tokio::test]
async fn pages_of_other_origins_are_let_in_where_the_host_says_so() {
    let closed = Server::start().await;
    let page = |server: &Server| server.get("/v1/me").header("origin", "https://app.example.com");
    assert!(!page(&closed).send().await.unwrap().headers().contains_key("access-control-allow-origin"));

    let cors = Cors::origins(["https://app.example.com"]).unwrap();
    let server = Server::with_options(RestOptions::default().with_cors(cors)).await;
    let answer = page(&server).send().await.unwrap();
    assert_eq!(header(&answer, "access-control-allow-origin"), "https://app.example.com");
    assert!(header(&answer, "access-control-expose-headers").contains("x-function-answered-by"));
    let preflight = server.client.request(Method::OPTIONS, server.url("/v1/functions"));
    let preflight =
        preflight.header("origin", "https://app.example.com").header("access-control-request-method", "PUT");
    let preflight = preflight.header("access-control-request-headers", "authorization").send().await.unwrap();
    assert_eq!(preflight.status(), StatusCode::OK);
    assert_eq!(header(&preflight, "access-control-allow-headers"), "authorization");
    assert_eq!(header(&preflight, "x-function-answered-by"), "gateway");
    assert!(!header(&preflight, "x-request-id").is_empty());
    // A refusal can be read by the page too.
    let refused =
        server.client.get(server.url("/v1/me")).header("origin", "https://app.example.com").send().await.unwrap();
    assert_eq!(header(&refused, "access-control-allow-origin"), "https://app.example.com");
    let other = server.get("/v1/me").header("origin", "https://evil.example").send().await.unwrap();
    assert!(!other.headers().contains_key("access-control-allow-origin"));
    for bad in [
        "app.example.com",
        "https://app.example.com/",
        "ftp://x",
        "https://",
        "https://a.com:443",
        "https://A.com",
        "https://u@a.com",
    ] {
        assert!(Cors::origins([bad]).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn options_that_are_no_preflight_are_the_functions_own() {
    let cors = Cors::origins(["https://app.example.com"]).unwrap();
    let server = Server::with_options(RestOptions::default().with_cors(cors)).await;
    server.create("web").await;
    server.engine.on_invoke(Handler::new(async |_, request| {
        let mut answer = InvokeResponse::new(StatusCode::OK, request.method.to_string());
        answer.headers.insert(VARY, HeaderValue::from_static("accept-language"));
        answer.headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-total-count"));
        Ok(answer)
    }));
    let options = || server.request(Method::OPTIONS, "/v1/functions/web/http/x");
    // One that a script of the page sends has an origin, and its answer can be read.
    let by_script = options().header("origin", "https://app.example.com").send().await.unwrap();
    assert_eq!(header(&by_script, "access-control-allow-origin"), "https://app.example.com");
    let varies: Vec<_> = by_script.headers().get_all("vary").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(varies.contains(&"accept-language") && varies.iter().any(|vary| vary.contains("origin")), "{varies:?}");
    let exposed = by_script.headers().get_all(ACCESS_CONTROL_EXPOSE_HEADERS).iter();
    let exposed: String = exposed.map(|value| format!("{},", value.to_str().unwrap())).collect();
    assert!(exposed.contains("x-total-count") && exposed.contains("x-request-id"), "{exposed}");
    for answer in [by_script, options().send().await.unwrap()] {
        assert_eq!(header(&answer, "x-function-answered-by"), "function");
        assert_eq!(answer.text().await.unwrap(), "OPTIONS");
    }
    let preflight =
        options().header("origin", "https://app.example.com").header("access-control-request-method", "PUT");
    let preflight = preflight.send().await.unwrap();
    assert_eq!(header(&preflight, "x-function-answered-by"), "gateway");
    assert_eq!(header(&preflight, "access-control-allow-methods"), "PUT");
    assert_eq!(server.engine.count(Op::Invoke), 2);
}

#[tokio::test]
async fn http_2_is_spoken_with_prior_knowledge() {
    let server = Server::start().await;
    server.create("echo").await;
    let client = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    let call = client.post(server.url("/v1/functions/echo/invocations")).bearer_auth(&server.admin).body("over two");
    let answer = call.send().await.unwrap();
    assert_eq!((answer.version(), answer.status()), (http::Version::HTTP_2, StatusCode::OK));
    assert_eq!(answer.text().await.unwrap(), "over two");
}

#[tokio::test]
async fn an_upload_that_stands_still_is_given_up() {
    let options = RestOptions::default().with_upload_idle_timeout(Duration::from_millis(50));
    let server = Server::with_options(options).await;
    server.create("echo").await;
    let calls = ["invocations", "http/", "submit", "submit/http/", "validate"];
    let calls = calls.map(|call| format!("/v1/functions/echo/{call}"));
    for path in calls.iter().map(String::as_str).chain(["/v1/functions"]) {
        for (closes, expected, code) in
            [(false, "HTTP/1.1 408", "request_timeout"), (true, "HTTP/1.1 499", "cancelled")]
        {
            let answer = server.send_half("POST", path, "application/json", closes).await;
            assert!(answer.starts_with(expected) && answer.contains(code), "{path}: {answer}");
        }
    }
    assert_eq!(server.engine.count(Op::Invoke), 0);
}

#[tokio::test]
async fn an_upload_that_takes_longer_than_there_is_time_for_the_call_is_given_up() {
    let server = Server::start().await;
    server.create("echo").await;
    server.create_with("brief", json!({"timeouts": {"total_ms": 50}})).await;
    let call = |path: &str| server.request(Method::POST, &format!("/v1/functions/{path}"));
    let hasty = |path: &str| call(path).header("x-function-timeout-ms", "50");
    for request in [
        hasty("echo/invocations"),
        hasty("echo/invocations").header("prefer", "respond-async"),
        hasty("echo/invocations").header("idempotency-key", "k"),
        hasty("echo/submit"),
        hasty("echo/submit/http/"),
        call("brief/invocations"),
        call("brief/submit"),
        call("brief/validate"),
    ] {
        let never = futures_util::stream::pending::<std::io::Result<&'static str>>();
        let late = request.body(reqwest::Body::wrap_stream(never)).send().await.unwrap();
        let late = problem(late, 504, "deadline_exceeded").await;
        assert_eq!((&late["context"]["timeout"], &late["delivery"]), (&json!("total"), &json!("not_sent")));
    }
    assert_eq!(server.engine.count(Op::Invoke), 0);
    assert_eq!(json_of(server.get("/v1/queue").send().await.unwrap(), StatusCode::OK).await["open"], 0);
}

#[tokio::test]
async fn a_document_that_drips_in_is_given_up() {
    let options = RestOptions::default().with_document_timeout(Duration::from_millis(100));
    let server = Server::with_options(options).await;
    let mut stream = server.connect().await;
    let head = format!(
        "POST /v1/functions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: 1000000\r\n\r\n",
        server.admin
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let drip = async {
        while writer.write_all(b" ").await.is_ok() {
            // sleep: between two bytes of a client that is slow.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = [0; 12];
    tokio::select! {
        read = reader.read_exact(&mut answer) => { read.unwrap(); }
        () = drip => {}
    }
    assert_eq!(&answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn who_waits_for_leave_to_send_is_refused_before_sending() {
    let server = Server::start().await;
    server.create("echo").await;
    let head = |key: &str| {
        format!(
            "POST /v1/functions/echo/invocations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\
             content-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
    };
    let answer = server.raw(head("fgk_no").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");

    let mut stream = server.connect().await;
    stream.write_all(head(&server.admin).as_bytes()).await.unwrap();
    let mut leave = [0; 25];
    stream.read_exact(&mut leave).await.unwrap();
    assert_eq!(&leave, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
}

#[tokio::test]
async fn no_leave_to_send_comes_before_a_refusal_that_needs_no_payload() {
    let server = Server::start().await;
    server.create_with("small", json!({"limits": {"max_request_bytes": 100}})).await;
    let reader = crate::common::key(&server.gateway, "acme", "rita", &["read"]).await;
    let first_status = async |path: &str, key: &str, length: usize, content_type: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\ncontent-type: {content_type}\r\n\
             content-length: {length}\r\nexpect: 100-continue\r\n\r\n"
        );
        let mut stream = server.connect().await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).await.unwrap();
        String::from_utf8_lossy(&status).into_owned()
    };
    for route in ["invocations", "submit", "http/", "submit/http/", "validate"] {
        let [small, none] = ["small", "none"].map(|name| format!("/v1/functions/{name}/{route}"));
        for (path, key, length, expected) in [
            (&small, &reader, 5, "HTTP/1.1 403"),
            (&none, &server.admin, 5, "HTTP/1.1 404"),
            (&small, &server.admin, 101, "HTTP/1.1 413"),
        ] {
            assert_eq!(first_status(path, key, length, "text/plain").await, expected, "{path}");
        }
    }
    // A document is read before it is known what it is about, and so whether the caller may do it.
    for (key, length, content_type, expected) in [
        ("fgk_no", 5, "application/json", "HTTP/1.1 401"),
        (&server.admin, 1024 * 1024 + 1, "application/json", "HTTP/1.1 413"),
        (&server.admin, 5, "text/plain", "HTTP/1.1 415"),
    ] {
        assert_eq!(first_status("/v1/functions", key, length, content_type).await, expected);
    }
    assert_eq!(server.engine.count(function_gateway_testkit::Op::Invoke), 0);
}

#[tokio::test]
async fn what_is_under_way_ends_before_the_server_does() {
    let server = Server::start().await;
    server.create("slow").await;
    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let call = tokio::spawn(server.request(Method::POST, "/v1/functions/slow/invocations").send());
    gate.reached_by(1).await;
    server.stop();
    until("no connection is taken any more", async || tokio::net::TcpStream::connect(server.address).await.is_err())
        .await;
    gate.open();
    assert_eq!(call.await.unwrap().unwrap().text().await.unwrap(), "in time");
    server.stopped().await;
}

#[tokio::test]
async fn what_takes_longer_than_the_grace_is_given_up_and_recorded() {
    let serve = ServeOptions::default().with_grace(Duration::from_millis(10)).with_runtimes(THREADS.clone());
    let server = Server::with(Setup { serve, ..Setup::default() }).await;
    server.create("slow").await;
    let gate = Gate::new();
    server.engine.on_invoke(waiting(&gate));
    let call = tokio::spawn(server.request(Method::POST, "/v1/functions/slow/invocations").send());
    gate.reached_by(1).await;
    server.stop();
    server.stopped().await;
    server.gateway.shutdown(Duration::ZERO).await.unwrap();
    let answer = call.await.unwrap().unwrap();
    let id = header(&answer, "x-function-invocation-id").parse().unwrap();
    problem(answer, 499, "cancelled").await;
    assert_eq!(recorded(&server, id).await.state, InvocationState::Cancelled);
}

#[tokio::test]
async fn a_stream_that_takes_longer_than_the_grace_is_broken_off_and_recorded() {
    let serve = ServeOptions::default().with_grace(Duration::from_millis(10)).with_runtimes(THREADS.clone());
    let server = Server::with(Setup { serve, ..Setup::default() }).await;
    server.create_with("stream", json!({"streaming": true})).await;
    let gate = Gate::new();
    server.engine.on_invoke(Handler::stream(["one", "two"], &gate));
    gate.release(1);
    let mut answer = server.invoke("stream", "").await;
    let id = header(&answer, "x-function-invocation-id").parse().unwrap();
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "one");
    server.stop();
    server.stopped().await;
    server.gateway.shutdown(Duration::ZERO).await.unwrap();
    assert!(answer.chunk().await.is_err(), "it does not look whole");
    let record = recorded(&server, id).await;
    assert_eq!((record.state, record.response_bytes), (InvocationState::Cancelled, 3));
}

/// A record of a gateway that is shut down.
async fn recorded(server: &Server, id: InvocationId) -> Arc<InvocationRecord> {
    let ada = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()).with_scope("read");
    server.gateway.execution(&CallContext::new(ada), id).await.unwrap()
}

#[tokio::test]
async fn a_slow_reader_is_waited_for() {
    let server = Server::start().await;
    server.create("large").await;
    const SIZE: usize = 8 * 1024 * 1024;
    server.engine.on_invoke(Handler::status(StatusCode::OK, vec![b'x'; SIZE]));
    let mut stream = server.connect().await;
    let request = format!(
        "GET /v1/functions/large/http/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        server.admin
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut read = 0;
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece).await.unwrap() {
            0 => break,
            more => read += more,
        }
        tokio::task::yield_now().await;
    }
    assert!(read > SIZE, "{read}");
}

const LARGE: usize = 8 * 1024 * 1024;

/// A server with a function whose answer is too large for what systems keep of it between two ends. Of its connections none stays
/// open without a request.
async fn with_large_answers(serve: ServeOptions) -> Server {
    let mut server = Server::with(Setup { serve, ..Setup::default() }).await;
    server.client = reqwest::Client::builder().timeout(LONG).pool_max_idle_per_host(0).build().unwrap();
    server.create("large").await;
    server.engine.on_invoke(Handler::status(StatusCode::OK, vec![b'x'; LARGE]));
    server
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let server = with_large_answers(
        ServeOptions::default()
            .with_write_timeout(Duration::from_millis(100))
            .with_max_connections(1)
            .with_runtimes(THREADS.clone()),
    )
    .await;
    let call =
        format!("GET /v1/functions/large/http/ HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", server.admin);
    let descriptions = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    for requests in [call, descriptions] {
        let mut stream = server.connect().await;
        stream.write_all(requests.as_bytes()).await.unwrap();
        // Its turn comes once the other connection is gone.
        assert_eq!(server.get("/v1/me").send().await.unwrap().status(), StatusCode::OK);
        drop(stream);
    }
}

#[tokio::test]
async fn a_client_of_http_2_that_does_not_read_is_cut_off() {
    let server = with_large_answers(ServeOptions::default().with_write_timeout(Duration::from_millis(100))).await;
    // With the first, no byte of an answer may be sent. With the second, the whole of it waits within the connection.
    for window in [0, 1] {
        let stream = TokioIo::new(server.connect().await);
        let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(window)
            .handshake::<_, axum::body::Body>(stream)
            .await
            .unwrap();
        let connection = tokio::spawn(connection);
        let call = http::Request::get(server.url("/v1/functions/large/http/"));
        let call = call.header("authorization", format!("Bearer {}", server.admin));
        let answer = sender.send_request(call.body(axum::body::Body::empty()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        // How it tells its end is not ours.
        let _ = tokio::time::timeout(LONG, connection).await.expect("the connection ends").unwrap();
        drop((answer, sender));
    }
}

#[tokio::test]
async fn a_slow_reader_of_http_2_is_waited_for() {
    let server = with_large_answers(ServeOptions::default()).await;
    let client = reqwest::Client::builder().http2_prior_knowledge().http2_initial_stream_window_size(16 * 1024);
    let call = client.build().unwrap().get(server.url("/v1/functions/large/http/")).bearer_auth(&server.admin);
    let mut answer = call.send().await.unwrap();
    let mut read = 0;
    while let Some(chunk) = answer.chunk().await.unwrap() {
        read += chunk.len();
        tokio::task::yield_now().await;
    }
    assert_eq!(read, LARGE);
}

#[tokio::test]
async fn no_answer_is_for_caches_that_many_share() {
    let server = Server::start().await;
    server.create("web").await;
    let cache_control = async |request: reqwest::RequestBuilder| {
        let answer = request.send().await.unwrap();
        answer.headers().get("cache-control").map(|value| value.to_str().unwrap().to_owned())
    };
    for path in ["/v1/functions", "/v1/functions/none", "/v2", "/openapi.json", "/v1/functions/none/http/"] {
        for method in [Method::GET, Method::HEAD] {
            assert_eq!(
                cache_control(server.request(method, path)).await.as_deref(),
                Some("private, no-cache"),
                "{path}"
            );
        }
    }
    assert_eq!(cache_control(server.post("/v1/validate", &json!({"spec": {}}))).await, None);

    let own = "/v1/functions/web/http/";
    server.engine.on_invoke(Handler::status(StatusCode::OK, "for one"));
    assert_eq!(cache_control(server.get(own)).await.as_deref(), Some("private"));
    assert_eq!(cache_control(server.request(Method::HEAD, own)).await.as_deref(), Some("private"));
    assert_eq!(cache_control(server.request(Method::POST, own)).await, None);
    server.engine.on_invoke(Handler::new(async |_, _| {
        let mut answer = InvokeResponse::new(StatusCode::OK, "for all");
        answer.headers.insert("cache-control", http::HeaderValue::from_static("public, max-age=60"));
        Ok(answer)
    }));
    assert_eq!(cache_control(server.get(own)).await.as_deref(), Some("public, max-age=60"));
}
