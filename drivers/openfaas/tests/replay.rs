//! Replays every recorded exchange with a real OpenFaaS gateway: the driver's requests have the shape of the recorded ones, and
//! it makes of the answers what they mean.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use function_gateway_core::{
    CallContext, Deadline, Delivery, DeployRequest, DriverRef, DriverRequest, Error, ErrorKind, FaasDriver, FunctionId,
    FunctionKey, FunctionSpec, Generation, ImageWorkload, InvocationId, ListScope, LogQuery, LogSink, MemorySecrets,
    Principal, Result, Revision, RevisionReason, ScaleRequest, Secret, SecretVariable, Timestamp,
};
use function_gateway_openfaas::{OpenFaas, OpenFaasAuth, OpenFaasConfig};
use futures_util::StreamExt as _;
use http::{HeaderName, HeaderValue, Method};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use Delivery::{Executed, NotSent, Unknown};
use ErrorKind::{
    DeadlineExceeded, Engine, FunctionBroken, InvalidArgument, Misconfigured, NotDeployed, NotReady, PayloadTooLarge,
    Unavailable, Unsupported,
};

const GATEWAY: &str = "g1";
const FUNCTION: [u8; 16] = [7; 16];

#[derive(Clone)]
struct Exchange {
    name: String,
    request: Value,
    response: Value,
}

impl Exchange {
    fn all(files: &[&str]) -> Vec<Self> {
        let read = |file: &&str| {
            let path = format!("{}/tests/fixtures/{file}.jsonl", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).collect::<Vec<_>>()
        };
        let exchanges = files.iter().flat_map(read).map(|exchange| Self {
            name: exchange["name"].as_str().unwrap().to_owned(),
            request: exchange["request"].clone(),
            response: exchange["response"].clone(),
        });
        // Counts, and what the queue's worker sent to a callback, are no requests to a gateway.
        exchanges.filter(|exchange| !exchange.name.contains("__")).collect()
    }

    fn method(&self) -> &str {
        self.request["method"].as_str().unwrap()
    }

    fn target(&self) -> &str {
        self.request["path"].as_str().unwrap()
    }

    fn path(&self) -> &str {
        self.target().split('?').next().unwrap()
    }

    fn query(&self) -> Option<&str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.query()?
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    fn headers(&self) -> impl Iterator<Item = (String, String)> {
        pairs(&self.request)
    }

    fn body(&self) -> Vec<u8> {
        bytes(&self.request)
    }

    fn status(&self) -> Option<u16> {
        self.response["status"].as_u64().map(|status| u16::try_from(status).unwrap())
    }

    /// The answer as it was on the wire; `None` where the connection was closed without one.
    fn raw(&self) -> Option<Raw> {
        let status = self.status()?;
        let reason = self.response["reason"].as_str().unwrap_or_default();
        let mut raw = format!("HTTP/1.1 {status} {reason}\r\n");
        let mut chunked = false;
        for (name, value) in pairs(&self.response) {
            chunked |= name.eq_ignore_ascii_case("transfer-encoding");
            raw += &format!("{name}: {value}\r\n");
        }
        let mut raw = (raw + "\r\n").into_bytes();
        let body = bytes(&self.response);
        let broken = self.response["body_error"].is_string();
        if chunked {
            raw.extend_from_slice(format!("{:x}\r\n", body.len()).as_bytes());
            raw.extend_from_slice(&body);
            raw.extend_from_slice(if broken { b"\r\n" } else { b"\r\n0\r\n\r\n" });
        } else if self.method() != "HEAD" {
            raw.extend_from_slice(&body);
        }
        let closes = broken
            || pairs(&self.response).any(|(name, value)| (name.as_str(), value.as_str()) == ("Connection", "close"));
        Some(Raw { bytes: raw, closes })
    }
}

fn pairs(message: &Value) -> impl Iterator<Item = (String, String)> {
    let headers = message["headers"].as_array().cloned().unwrap_or_default();
    headers.into_iter().map(|pair| (pair[0].as_str().unwrap().to_owned(), pair[1].as_str().unwrap().to_owned()))
}

/// A body, or as many bytes as a large one had.
fn bytes(message: &Value) -> Vec<u8> {
    if let Some(text) = message["body_text"].as_str() {
        return text.as_bytes().to_vec();
    }
    if let Some(text) = message["body_base64"].as_str() {
        return STANDARD.decode(text).unwrap();
    }
    vec![b'x'; message["body_len"].as_u64().map_or(0, |len| usize::try_from(len).unwrap())]
}

#[derive(Clone)]
struct Raw {
    bytes: Vec<u8>,
    closes: bool,
}

impl Raw {
    fn new(status: u16, body: &Value) -> Self {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let bytes = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
        Self { bytes, closes: false }
    }
}

#[derive(Debug, Clone)]
struct Seen {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A server that answers by method and path, with the bytes it is told. `None` closes the connection.
struct Server {
    url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

type Rules = BTreeMap<(String, String), Option<Raw>>;

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(rules: Rules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (rules, log) = (Arc::new(rules), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                connections.spawn(serve(stream, Arc::clone(&rules), Arc::clone(&log)));
            }
        });
        Self { url, seen, task }
    }

    fn seen(&self, method: &str, path: &str) -> Vec<Seen> {
        let is = |seen: &&Seen| seen.method == method && seen.target.split('?').next() == Some(path);
        self.seen.lock().unwrap().iter().filter(is).cloned().collect()
    }
}

async fn serve(stream: TcpStream, rules: Arc<Rules>, log: Arc<Mutex<Vec<Seen>>>) {
    let mut stream = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read_until(b'\n', &mut head).await, Ok(read) if read > 0) {
                return;
            }
        }
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let mut first = lines.next().unwrap().split(' ');
        let (method, target) = (first.next().unwrap().to_owned(), first.next().unwrap().to_owned());
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        let header = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        let mut body = vec![0; header("content-length").map_or(0, |len| len.parse().unwrap())];
        if stream.read_exact(&mut body).await.is_err() {
            return;
        }
        let key = (method.clone(), target.split('?').next().unwrap().to_owned());
        log.lock().unwrap().push(Seen { method, target, headers, body });
        let answer = match rules.get(&key) {
            Some(Some(answer)) => answer.clone(),
            Some(None) => return,
            None => Raw::new(404, &Value::Null),
        };
        if stream.write_all(&answer.bytes).await.is_err() || answer.closes {
            return;
        }
    }
}

fn cx() -> CallContext {
    let principal = Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
    let deadline = Deadline::after(Duration::from_secs(30));
    CallContext::new(principal).with_invocation_id(InvocationId::generate()).with_deadline(deadline)
}

fn spec() -> FunctionSpec {
    FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new("lab/fn:v1"))
}

fn revision(spec: FunctionSpec) -> Arc<Revision> {
    let key = FunctionKey::new("acme".parse().unwrap(), "fun".parse().unwrap());
    let created = (Timestamp::now(), "ada".parse().unwrap());
    let (id, reason) = (FunctionId::from_bytes(FUNCTION), RevisionReason::Created);
    Arc::new(Revision::new(key, id, Generation::FIRST, spec, created, reason))
}

/// A reference to a service that has the name which was recorded.
fn reference(namespace: Option<&str>, secrets: usize, service: &str) -> DriverRef {
    let id = FunctionId::from_bytes(FUNCTION);
    DriverRef::new(format!("v1/{GATEWAY}/{id}/1/{}/{secrets}/{service}", namespace.unwrap_or("-")))
}

/// What the engine says of a function that is ours.
fn ours(service: &str, image: &str) -> Value {
    json!({
        "name": service,
        "image": image,
        "labels": {
            "function-gateway/gateway": GATEWAY,
            "function-gateway/function": FunctionId::from_bytes(FUNCTION).to_string(),
            "function-gateway/generation": "1"
        },
        "annotations": {"function-gateway/deployed": json!({"image": "lab/fn:v1", "env": [], "digest": "x"}).to_string()},
        "replicas": 2, "availableReplicas": 1
    })
}

fn driver(server: &Server, namespace: Option<&str>) -> OpenFaas {
    let secrets = MemorySecrets::new();
    secrets.set("function-gateway".parse().unwrap(), "password".parse().unwrap(), Secret::new("lab-password-1"));
    let auth: OpenFaasAuth =
        serde_json::from_value(json!({"basic": {"user": "admin", "password": "password"}})).unwrap();
    let mut config = OpenFaasConfig::new(&server.url).with_auth(auth);
    config.namespace = namespace.map(str::to_owned);
    OpenFaas::with_secrets(config, Arc::new(secrets)).unwrap()
}

// Calls

/// What a recorded answer to a call means, where it is not the function's own; and whether the driver sends the call at all.
fn expected(name: &str) -> Option<(ErrorKind, Delivery, bool)> {
    Some(match name {
        "get_double_slash" | "get_dotdot" | "post_double_slash" => (InvalidArgument, NotSent, false),
        "method_trace" | "method_custom" | "async_get_405" | "async_put_405" => (Unsupported, NotSent, false),
        "async_body_256001_over_limit" => (PayloadTooLarge, NotSent, false),
        // The engine takes it, and nobody would ever hear of it.
        "async_callback_missing_function" => (NotDeployed, NotSent, false),
        "async_bad_callback_url" | "header_too_big" => (InvalidArgument, NotSent, true),
        "async_without_nats" => (Unsupported, NotSent, true),
        "missing_function"
        | "missing_function_namespaced"
        | "missing_function_post"
        | "sse_missing_function"
        | "missing_function_scale_from_zero_false"
        | "missing_function_scale_from_zero_false_ns"
        | "invoke_after_delete" => (NotDeployed, NotSent, true),
        "bad_name_chars" | "provider_down_invoke" => (Unavailable, NotSent, true),
        "right_after_crash_scale_from_zero_false" => (NotReady, NotSent, true),
        "max_inflight_429" => (Unavailable, NotSent, true),
        "exec_timeout_8s" | "x_timeout_header_1s" => (DeadlineExceeded, Executed, true),
        "invoke_function_process_not_listening_yet" | "function_closes_connection" | "crash_scale_from_zero_false" => {
            (FunctionBroken, Unknown, true)
        }
        "function_process_exits"
        | "crashloop_never_ready"
        | "gateway_upstream_timeout_2s"
        | "gateway_upstream_timeout_2s_sse"
        | "gateway_upstream_timeout_mid_body"
        | "gateway_write_timeout_2s"
        | "gateway_read_timeout_2s_slow_upload"
        | "provider_timeout_2s"
        | "provider_write_timeout_2s_get_retried"
        | "provider_write_timeout_2s_post_once"
        | "provider_proxy_timeout_2s"
        | "provider_proxy_timeout_2s_mid_body" => (Unavailable, Unknown, true),
        dropped if dropped.starts_with("provider_drops_connection_") => (Unavailable, Unknown, true),
        _ => return None,
    })
}

#[tokio::test]
async fn every_recorded_call() {
    let all = Exchange::all(&["invoke", "timeouts", "retry", "async", "management"]);
    let calls = all.into_iter().filter(|exchange| {
        exchange.path().starts_with("/function/") || exchange.path().starts_with("/async-function/")
    });
    let mut count = 0;
    for exchange in calls {
        // A function without a name is none that the driver could have made.
        if exchange.name == "empty_name" {
            continue;
        }
        replay_call(&exchange).await;
        count += 1;
    }
    assert!(count >= 120, "only {count} calls were replayed");
}

async fn replay_call(exchange: &Exchange) {
    let name = exchange.name.as_str();
    let (route, rest) = exchange.path().strip_prefix('/').unwrap().split_once('/').unwrap();
    let (service, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    let (service, namespace) =
        service.split_once('.').map_or((service, None), |(service, namespace)| (service, Some(namespace)));
    let held = match name {
        "bad_name_chars" => Some(Raw {
            bytes: b"HTTP/1.1 404 Not Found\r\nContent-Length: 19\r\n\r\n404 page not found\n".to_vec(),
            closes: false,
        }),
        "provider_down_invoke" => Some(Raw::new(502, &Value::Null)),
        _ if expected(name).is_some_and(|(kind, ..)| kind == NotDeployed) => None,
        _ => Some(Raw::new(200, &ours(service, "lab/fn:v1"))),
    };
    let mut rules = Rules::from([((exchange.method().to_owned(), exchange.path().to_owned()), exchange.raw())]);
    if let Some(held) = held {
        rules.insert(("GET".to_owned(), format!("/system/function/{service}")), Some(held));
    }
    let server = Server::start(rules).await;
    let mut spec = spec();
    (spec.idempotent, spec.streaming) = (true, false);
    let mut headers = http::HeaderMap::new();
    for (header, value) in exchange.headers() {
        let header: HeaderName = header.parse().unwrap();
        match header.as_str() {
            "host" | "content-length" | "transfer-encoding" => {}
            "x-callback-url" => {
                spec = spec.with_annotation("openfaas.com/callback-url", value);
            }
            "accept" if value == "text/event-stream" => spec.streaming = true,
            "accept" => {}
            _ => drop(headers.append(header, HeaderValue::from_str(&value).unwrap())),
        }
    }
    if route == "async-function" {
        spec = spec.with_annotation("openfaas.com/async", "true");
    }
    let mut request = DriverRequest::new(revision(spec), exchange.body(), LogSink::detached(0));
    request.method = Method::from_bytes(exchange.method().as_bytes()).unwrap();
    request.path = path.to_owned().into();
    request.query = exchange.query().map(str::to_owned);
    request.headers = headers.clone();
    let called = driver(&server, None).invoke(&cx(), &reference(namespace, 0, service), request).await;
    let sent = server.seen(exchange.method(), exchange.path());
    match expected(name) {
        Some((kind, delivery, is_sent)) => {
            let error = called.expect_err(name);
            assert_eq!((error.kind(), error.delivery()), (kind, delivery), "{name}: {error:?}");
            assert_eq!(!sent.is_empty(), is_sent, "{name}");
            if !is_sent {
                return;
            }
        }
        None => {
            let answer = called.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            assert_eq!(Some(answer.status.as_u16()), exchange.status(), "{name}");
            for (header, value) in pairs(&exchange.response).filter(|(name, _)| {
                ["Content-Type", "X-Fn", "X-Multi", "Location", "Set-Cookie"].contains(&name.as_str())
            }) {
                if route == "function" {
                    assert!(
                        answer.headers.get_all(header.as_str()).iter().any(|known| known == value.as_str()),
                        "{name}: {header}"
                    );
                }
            }
            for gone in ["x-served-by", "x-start-time", "x-duration-seconds", "connection", "x-hop"] {
                assert!(!answer.headers.contains_key(gone), "{name}: {gone}");
            }
            let body = answer.body.collect(1 << 26).await.unwrap();
            assert!(body == bytes(&exchange.response), "{name}: the body differs");
        }
    }
    // The request is the recorded one.
    assert_eq!(sent.len(), 1, "{name}: sent {} times", sent.len());
    assert_eq!(sent[0].target, exchange.target(), "{name}");
    assert!(sent[0].body == exchange.body(), "{name}: the payload differs");
    for (header, value) in &headers {
        let one_hop = ["connection", "x-hop", "te", "keep-alive", "expect"].contains(&header.as_str());
        let passed = sent[0].headers.iter().any(|(known, sent)| known == header.as_str() && value == sent.as_str());
        assert_eq!(passed, !one_hop, "{name}: {header}");
    }
    // Credentials are for management.
    let own = headers.contains_key("authorization");
    assert_eq!(sent[0].headers.iter().any(|(header, _)| header == "authorization"), own, "{name}");
}

// Management

/// Exchanges that no operation of the driver makes.
const NOT_MADE: &[&str] = &[
    // Wrong methods and routes, to see what they answer.
    "healthz_head",
    "healthz_post",
    "root_redirect",
    "patch_functions_405",
    "scale_get_405",
    "unknown_system_path",
    "metrics_on_8080",
    "get_trailing_slash",
    "get_dotted",
    "telemetry",
    // Namespaces are the operators' to make.
    "namespace_create",
    "namespace_create_duplicate",
    "namespace_get",
    "namespace_get_missing",
    "namespace_delete",
    // What Prometheus sends.
    "alert_no_alerts",
    "alert_fire",
    // A log of no function.
    "logs_no_name",
];

#[tokio::test]
async fn every_recorded_call_that_manages() {
    let all = Exchange::all(&["management", "logs", "no-prometheus", "invoke", "timeouts"]);
    let is_call = |exchange: &&Exchange| {
        exchange.path().starts_with("/function/") || exchange.path().starts_with("/async-function/")
    };
    let mut skipped = Vec::new();
    let mut count = 0;
    for exchange in all.iter().filter(|exchange| !is_call(exchange)) {
        if NOT_MADE.contains(&exchange.name.as_str()) {
            skipped.push(exchange.name.as_str());
            continue;
        }
        replay_management(exchange).await;
        count += 1;
    }
    skipped.sort_unstable();
    let mut not_made = NOT_MADE.to_vec();
    not_made.sort_unstable();
    assert_eq!(skipped, not_made);
    assert!(count >= 85, "only {count} exchanges were replayed");
}

/// The kind of error for a status, as the driver's one table has it.
fn kind_of(status: u16) -> ErrorKind {
    match status {
        400 => Misconfigured,
        401 | 502 => Unavailable,
        501 => Unsupported,
        _ => Engine,
    }
}

async fn replay_management(exchange: &Exchange) {
    let name = exchange.name.as_str();
    let (method, path) = (exchange.method(), exchange.path());
    let rule = |method: &str, path: &str, raw: Option<Raw>| ((method.to_owned(), path.to_owned()), raw);
    let mut rules = Rules::from([
        rule("POST", "/system/functions", Some(Raw::new(202, &Value::Null))),
        rule("PUT", "/system/secrets", Some(Raw::new(202, &Value::Null))),
        rule("POST", "/system/secrets", Some(Raw::new(409, &Value::Null))),
        rule("GET", "/system/secrets", Some(Raw::new(200, &json!([{"name": "fn-s0", "namespace": "openfaas-fn"}])))),
        rule("GET", "/async-function/probe", Some(Raw::new(405, &Value::Null))),
        rule(
            "GET",
            "/system/info",
            Some(Raw::new(200, &json!({"provider": {"provider": "x", "orchestration": "kubernetes"}}))),
        ),
    ]);
    let secret = path == "/system/secrets";
    let namespace = exchange.parameter("namespace").filter(|_| !secret);
    let service = path.rsplit('/').next().unwrap();
    let service = match method {
        _ if path.starts_with("/system/function/") || path.starts_with("/system/scale-function/") => service,
        _ => exchange.parameter("name").unwrap_or("fn"),
    };
    let held = match (method, path) {
        // Deployed by another image, so that it is updated.
        ("PUT", "/system/functions") => Some(ours(service, "lab/fn:v0")),
        ("POST", "/system/functions") | (_, "/system/secrets") => None,
        _ => Some(ours(service, "lab/fn:v1")),
    };
    if let Some(mut held) = held {
        if method != "PUT" {
            held["annotations"] = json!({});
        }
        rules.insert(("GET".to_owned(), format!("/system/function/{service}")), Some(Raw::new(200, &held)));
    }
    rules.insert((method.to_owned(), path.to_owned()), exchange.raw());
    let server = Server::start(rules).await;
    let (driver, cx) = (driver(&server, namespace), cx());
    driver.probe(&cx).await.ok();
    let target = reference(namespace, usize::from(secret), service);
    let deploy = || {
        let mut request = DeployRequest::new(GATEWAY.parse().unwrap(), revision(spec()));
        if secret {
            request = request.with_secret(SecretVariable::new("KEY", Secret::new("hunter2")));
        }
        driver.deploy(&cx, &target, request)
    };
    let logs = async || -> Result<usize> {
        let text = bytes(&exchange.response);
        let lines = text.iter().filter(|byte| **byte == b'\n').count();
        let mut query = LogQuery::default();
        query.follow = exchange.parameter("follow").is_some();
        query.tail = exchange.parameter("tail").and_then(|tail| tail.parse().ok());
        query.since = exchange.parameter("since").and_then(|since| since.parse().ok());
        let read = driver.logs(&cx, &target, query.clone()).await?;
        let read: Vec<_> = read.take(if query.follow { lines } else { usize::MAX }).collect().await;
        for line in read {
            let line = line?;
            assert!(line.at.is_some() && line.instance.is_some(), "{name}: {line:?}");
        }
        Ok(lines)
    };
    let done: Result<()> = match (method, path) {
        ("GET", "/healthz") => driver.health(&cx).await,
        ("GET", "/system/info") => driver.probe(&cx).await.map(|engine| {
            assert_eq!((engine.name.as_str(), engine.version.as_str()), ("openfaas (lab-provider)", "0.27.14"));
        }),
        ("GET", "/system/functions") => {
            // None of what was recorded bears our labels.
            let scope = ListScope::All(GATEWAY.parse().unwrap());
            driver.list(&cx, scope).collect::<Vec<_>>().await.into_iter().try_for_each(|item| item.map(drop))
        }
        ("GET", "/system/namespaces") => driver.namespaces(&cx).await.map(|names| assert_eq!(names, ["openfaas-fn"])),
        ("GET", "/system/logs") => logs().await.map(drop),
        ("GET", _) if path.starts_with("/system/function/") => driver.status(&cx, &target).await.map(|status| {
            assert_eq!(status.state, function_gateway_core::DeploymentState::Missing, "{name}: it is not ours");
        }),
        ("POST" | "PUT", "/system/functions") | ("POST" | "PUT", "/system/secrets") => deploy().await.map(drop),
        ("DELETE", "/system/functions") | ("GET" | "DELETE", "/system/secrets") => driver.remove(&cx, &target).await,
        ("POST", _) if path.starts_with("/system/scale-function/") => {
            driver.scale(&cx, &target, ScaleRequest::new(2)).await
        }
        _ => panic!("{name}: no operation makes {method} {path}"),
    };
    check(name, exchange, done);
    let sent = server.seen(method, path);
    assert!(!sent.is_empty(), "{name}: it was not asked for");
    let authorized = sent[0]
        .headers
        .iter()
        .any(|(header, value)| header == "authorization" && value == "Basic YWRtaW46bGFiLXBhc3N3b3JkLTE=");
    assert_eq!(authorized, path != "/healthz", "{name}");
    same_shape(name, exchange, &sent[0]);
}

fn check(name: &str, exchange: &Exchange, done: Result<()>) {
    let expected = match (exchange.status(), exchange.path()) {
        // The connection was closed.
        (None, _) => Some((Unavailable, Unknown)),
        (Some(200), "/system/info") if exchange.name == "provider_down_info" => Some((Unavailable, NotSent)),
        (Some(200..=202), _) => None,
        // What is gone is gone.
        (Some(404), path)
            if exchange.method() == "DELETE"
                || path.starts_with("/system/function/") && name != "get_bad_name_chars" =>
        {
            None
        }
        // One that is there is updated, and one that is not can't be.
        (Some(400 | 500), "/system/secrets") if exchange.method() == "POST" => None,
        (Some(404), "/system/secrets") => Some((Unavailable, NotSent)),
        (Some(404), path) if path.starts_with("/system/scale-function/") => Some((NotDeployed, NotSent)),
        (Some(status), _) => Some((kind_of(status), NotSent)),
    };
    match (done, expected) {
        (Ok(()), None) => {}
        (Err(error), Some(expected)) => {
            assert_eq!((error.kind(), error.delivery()), expected, "{name}: {error:?}");
            assert!(!Error::to_string(&error).contains("http://"), "{name}: {error}");
        }
        (done, expected) => panic!("{name}: {done:?} in place of {expected:?}"),
    }
}

/// The driver's request is like the recorded one: the same parameters where it has any, and a document of the same form.
fn same_shape(name: &str, exchange: &Exchange, sent: &Seen) {
    let query = |target: &str| -> BTreeMap<String, String> {
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.replace("%3A", ":"))).collect()
    };
    let (sent_query, recorded) = (query(&sent.target), query(exchange.target()));
    let unsaid = ["logs_since_bad", "logs_tail_bad", "get_one_usage", "secrets_list"].contains(&name);
    if !unsaid {
        for (key, value) in &recorded {
            let same = sent_query.get(key).is_some_and(|sent| sent == value || key == "since");
            assert!(same, "{name}: {key} of {sent_query:?}");
        }
        assert!(sent_query.keys().all(|key| recorded.contains_key(key)), "{name}: {sent_query:?}");
    }
    let Ok(Value::Object(recorded)) = serde_json::from_slice::<Value>(&exchange.body()) else { return };
    let document: Value = serde_json::from_slice(&sent.body).unwrap();
    let needed = match exchange.path() {
        "/system/functions" if exchange.method() == "DELETE" => vec!["functionName"],
        "/system/functions" => vec!["service", "image"],
        "/system/secrets" if exchange.method() == "DELETE" => vec!["name"],
        "/system/secrets" => vec!["name", "value"],
        _ => vec!["serviceName", "replicas"],
    };
    for field in needed {
        let is_text = document[field].is_string() || document[field].is_u64();
        assert!(is_text, "{name}: {field} of {document}");
        if let Some(was) = recorded.get(field) {
            let lenient = name == "deploy_wrong_type";
            assert!(lenient || was.is_string() == document[field].is_string(), "{name}: {field}");
        }
    }
    assert!(sent.headers.iter().any(|(header, value)| header == "content-type" && value == "application/json"));
}
