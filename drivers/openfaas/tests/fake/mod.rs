//! A stateful fake of the OpenFaaS gateway with either provider, that answers as the recordings in `fixtures` say a real one
//! does: statuses, headers, texts, and what it does not say. Its functions are those that the conformance suite asks for.

#![allow(dead_code, reason = "each test takes what it needs")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use function_gateway_core::{FunctionSpec, ImageWorkload};
use function_gateway_testkit::Behaviour;
use futures_util::{Stream, StreamExt as _, stream};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(crate) const NAMESPACE: &str = "openfaas-fn";
pub(crate) const USER: &str = "admin";
pub(crate) const PASSWORD: &str = "canary-password-1f7c";

/// Which provider is behind the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flavour {
    Netes,
    Faasd,
}

/// How it is set up.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) flavour: Flavour,
    pub(crate) auth: bool,
    pub(crate) scale_from_zero: bool,
    pub(crate) queue: bool,
    /// How many functions the edition allows.
    pub(crate) limit: usize,
    /// How often a function is asked for until it is available.
    pub(crate) polls_until_ready: u32,
    pub(crate) prometheus: bool,
    /// Whether what follows a log is cut off once it has told what there is.
    pub(crate) cuts_follow: bool,
}

impl Options {
    pub(crate) fn new(flavour: Flavour) -> Self {
        Self {
            flavour,
            auth: false,
            scale_from_zero: true,
            queue: true,
            limit: 1_000_000,
            polls_until_ready: 2,
            prometheus: true,
            cuts_follow: false,
        }
    }
}

/// What goes wrong with requests.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is closed without an answer.
    Close,
    /// The answer is this one.
    Answer(u16, &'static [(&'static str, &'static str)], &'static str),
    /// The answer is done, but breaks off in the middle.
    Cut,
    /// The answer begins, and then neither goes on nor ends.
    Stall,
    /// No answer ever comes.
    Hang,
    /// The request is executed, and the connection is closed then.
    CloseAfter,
}

#[derive(Debug)]
struct Injected {
    method: Option<Method>,
    prefix: String,
    fault: Fault,
    times: usize,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

struct Function {
    /// What was deployed.
    document: Value,
    replicas: u64,
    available: u64,
    polls_left: u32,
    running: usize,
    calls: usize,
    stop: CancellationToken,
    lines: Vec<(String, String)>,
}

impl Function {
    fn behaviour(&self) -> String {
        self.document.pointer("/envVars/BEHAVIOUR").and_then(Value::as_str).unwrap_or("echo").to_owned()
    }
}

type Key = (String, String);

struct State {
    options: Options,
    functions: BTreeMap<Key, Function>,
    secrets: BTreeMap<Key, Vec<u8>>,
    namespaces: BTreeSet<String>,
    provider_down: bool,
    faults: Vec<Injected>,
    seen: Vec<Seen>,
    lines: u64,
    queued: Vec<Seen>,
    logged: watch::Sender<u64>,
}

/// A gateway that listens, until it is dropped.
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    pub(crate) url: String,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Marks an answer in place of which the connection is closed.
#[derive(Clone)]
struct Close;

impl Fake {
    pub(crate) async fn start(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            options,
            functions: BTreeMap::new(),
            secrets: BTreeMap::new(),
            namespaces: BTreeSet::from([NAMESPACE.to_owned()]),
            provider_down: false,
            faults: Vec::new(),
            seen: Vec::new(),
            lines: 0,
            queued: Vec::new(),
            logged: watch::channel(0).0,
        }));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let state = Arc::clone(&shared);
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let gateway = Gateway(Arc::clone(&state));
                    async move {
                        let answer = gateway.answer(request.map(Body::new)).await;
                        match answer.extensions().get::<Close>() {
                            Some(_) => Err(io::Error::other("closed")),
                            None => Ok(answer),
                        }
                    }
                });
                connections.spawn(async move {
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { state, url, server }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.state().options);
    }

    /// Has the next requests of a kind fail.
    pub(crate) fn fail(&self, method: Option<Method>, prefix: &str, fault: Fault, times: usize) {
        self.state().faults.push(Injected { method, prefix: prefix.to_owned(), fault, times });
    }

    pub(crate) fn set_provider_down(&self, down: bool) {
        self.state().provider_down = down;
    }

    pub(crate) fn add_namespace(&self, name: &str) {
        self.state().namespaces.insert(name.to_owned());
    }

    /// Names and namespaces of all functions.
    pub(crate) fn functions(&self) -> Vec<Key> {
        self.state().functions.keys().cloned().collect()
    }

    pub(crate) fn document(&self, service: &str) -> Option<Value> {
        let state = self.state();
        state.functions.iter().find(|((_, name), _)| name == service).map(|(_, function)| function.document.clone())
    }

    pub(crate) fn secrets(&self) -> Vec<Key> {
        self.state().secrets.keys().cloned().collect()
    }

    /// Puts a function in as somebody else would.
    pub(crate) fn put(&self, service: &str, document: Value) {
        let key = (NAMESPACE.to_owned(), service.to_owned());
        self.state().functions.insert(key, function(document, 1, 1, 0));
    }

    /// Deletes a function as somebody else would.
    pub(crate) fn delete(&self, service: &str) {
        self.state().functions.retain(|(_, name), _| name != service);
    }

    /// Changes what is deployed as somebody else would.
    pub(crate) fn tamper(&self, service: &str, pointer: &str, value: Value) {
        let mut state = self.state();
        let (_, function) = state.functions.iter_mut().find(|((_, name), _)| name == service).unwrap();
        *function.document.pointer_mut(pointer).unwrap() = value;
    }

    pub(crate) fn set_replicas(&self, service: &str, replicas: u64, available: u64) {
        let mut state = self.state();
        let (_, function) = state.functions.iter_mut().find(|((_, name), _)| name == service).unwrap();
        (function.replicas, function.available) = (replicas, available);
    }

    /// How many calls of a function are being executed.
    pub(crate) fn running(&self, service: &str) -> usize {
        let state = self.state();
        state.functions.iter().find(|((_, name), _)| name == service).map_or(0, |(_, function)| function.running)
    }

    /// How many calls have reached a function.
    pub(crate) fn calls(&self, service: &str) -> usize {
        let state = self.state();
        state.functions.iter().find(|((_, name), _)| name == service).map_or(0, |(_, function)| function.calls)
    }

    /// Takes the requests that have come.
    pub(crate) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().seen)
    }

    /// Takes the calls that were queued.
    pub(crate) fn take_queued(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state().queued)
    }
}

fn function(document: Value, replicas: u64, available: u64, polls_left: u32) -> Function {
    let stop = CancellationToken::new();
    Function { document, replicas, available, polls_left, running: 0, calls: 0, stop, lines: Vec::new() }
}

#[derive(Clone)]
struct Gateway(Arc<Mutex<State>>);

fn plain(status: u16, text: impl Into<String>) -> Response {
    let text = text.into();
    let mut answer = Response::new(Body::from(text.clone()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    if !text.is_empty() {
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    }
    answer
}

fn json_answer(document: &Value) -> Response {
    let mut answer = Response::new(Body::from(document.to_string()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn closed() -> Response {
    let mut answer = plain(500, "");
    answer.extensions_mut().insert(Close);
    answer
}

fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decoded(&value.replace('+', " ")))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some(first) = rest.first() {
        let byte = (*first == b'%').then(|| u8::from_str_radix(std::str::from_utf8(&rest[1..3]).unwrap(), 16).unwrap());
        bytes.push(byte.unwrap_or(*first));
        rest = &rest[if byte.is_some() { 3 } else { 1 }..];
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As Go writes a path that it has decoded.
fn encoded(path: &str) -> String {
    path.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"/-_.~$&+,:;=@!*'()".contains(&byte) {
            text.push(char::from(byte));
        } else {
            write!(text, "%{byte:02X}").unwrap();
        }
        text
    })
}

fn is_clean(path: &str) -> bool {
    let path = decoded(path);
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        if matches!(part, "." | "..") || (part.is_empty() && parts.peek().is_some()) {
            return false;
        }
    }
    true
}

impl Gateway {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    async fn answer(&self, request: Request<Body>) -> Response {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let fault = {
            let mut state = self.state();
            let applies = |fault: &Injected| {
                fault.times > 0
                    && fault.method.as_ref().is_none_or(|known| *known == method)
                    && path.starts_with(&fault.prefix)
            };
            state.faults.iter_mut().find(|fault| applies(fault)).map(|injected| {
                injected.times -= 1;
                injected.fault.clone()
            })
        };
        match fault {
            None => self.route(request).await,
            Some(Fault::Close) => {
                self.see(&request, Bytes::new());
                closed()
            }
            Some(Fault::Answer(status, headers, text)) => {
                self.see(&request, Bytes::new());
                let mut answer = plain(status, text);
                for (name, value) in headers {
                    answer.headers_mut().insert(*name, HeaderValue::from_static(value));
                }
                answer
            }
            Some(Fault::Hang) => {
                self.see(&request, Bytes::new());
                std::future::pending().await
            }
            Some(Fault::Stall) => {
                let (mut head, body) = self.route(request).await.into_parts();
                let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
                head.headers.remove(header::CONTENT_LENGTH);
                let half = stream::iter([Ok::<_, io::Error>(whole.slice(..whole.len() / 2))]);
                Response::from_parts(head, Body::from_stream(half.chain(stream::pending())))
            }
            Some(Fault::CloseAfter) => {
                drop(self.route(request).await);
                closed()
            }
            Some(Fault::Cut) => {
                let (mut head, body) = self.route(request).await.into_parts();
                let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
                head.headers.remove(header::CONTENT_LENGTH);
                let half = whole.slice(..whole.len() / 2);
                Response::from_parts(head, Body::from_stream(stream::iter([Ok(half)]).chain(cut())))
            }
        }
    }

    fn see(&self, request: &Request<Body>, body: Bytes) {
        let seen = Seen {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().map(str::to_owned),
            headers: request.headers().clone(),
            body,
        };
        self.state().seen.push(seen);
    }

    async fn route(&self, request: Request<Body>) -> Response {
        let path = request.uri().path().to_owned();
        if !is_clean(&path) {
            let mut answer = plain(301, "");
            answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/cleaned"));
            return answer;
        }
        if let Some(rest) = path.strip_prefix("/function/") {
            return self.invoke(request, rest).await;
        }
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
        let request = Request::from_parts(head, Body::empty());
        self.see(&request, body.clone());
        let (method, query) = (request.method().clone(), request.uri().query());
        let mut state = self.state();
        if let Some(rest) = path.strip_prefix("/async-function/") {
            return state.enqueue(&request, rest, body);
        }
        if path == "/healthz" {
            return plain(
                if method != Method::GET {
                    405
                } else if state.provider_down {
                    502
                } else {
                    200
                },
                "",
            );
        }
        if state.options.auth && path.starts_with("/system/") && !is_authorized(request.headers()) {
            let mut answer = plain(401, "invalid credentials");
            answer
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"Restricted\""));
            return answer;
        }
        let parts: Vec<_> = path.split('/').skip(1).collect();
        match (method.as_str(), parts.as_slice()) {
            ("GET", ["system", "info"]) => state.info(),
            ("GET", ["system", "logs"]) if state.provider_down => plain(500, "log request failed\n"),
            ("GET", ["system", "functions"]) if state.provider_down => plain(502, "\n"),
            (_, ["system", ..]) if state.provider_down => plain(502, ""),
            ("GET", ["system", "functions"]) => state.list(query),
            ("GET", ["system", "function", name]) => state.get(name, query),
            ("POST" | "PUT", ["system", "functions"]) => state.deploy(&method, &body),
            ("DELETE", ["system", "functions"]) => state.remove(query, &body),
            ("POST", ["system", "scale-function", name]) => state.scale(name, query, &body),
            (_, ["system", "secrets"]) => state.secret(&method, query, &body),
            ("GET", ["system", "namespaces"]) => json_answer(&json!(state.namespaces)),
            ("GET", ["system", "logs"]) => {
                drop(state);
                self.logs(query)
            }
            _ => plain(404, "404 page not found\n"),
        }
    }

    // Calls

    async fn invoke(&self, request: Request<Body>, rest: &str) -> Response {
        self.see(&request, Bytes::new());
        let (name, below) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let (name, namespace) = name.rsplit_once('.').unwrap_or((name, NAMESPACE));
        let key = (namespace.to_owned(), name.to_owned());
        let held = self.admit(&key).await;
        let (function, guard) = match held {
            Ok(held) => held,
            Err(answer) => return answer,
        };
        let (mut head, body) = request.into_parts();
        let events = head.headers.get(header::ACCEPT).is_some_and(|accept| accept == "text/event-stream");
        let made = (!head.headers.contains_key("x-call-id")).then(|| HeaderValue::from_static("a-call-of-the-gateway"));
        head.headers.entry("x-forwarded-host").or_insert(HeaderValue::from_static("fake"));
        let path = if below.is_empty() { "/".to_owned() } else { encoded(&decoded(below)) };
        let running = Running { guard, gateway: self.clone() };
        let stop = running.guard.1.clone();
        let called = Called { function, path, head, running };
        let executed = tokio::select! {
            biased;
            () = stop.cancelled() => return unreachable_function(name),
            answer = called.execute(body) => answer,
        };
        let mut answer = executed;
        if !events {
            // Nothing is flushed before the end.
            let (head, body) = answer.into_parts();
            let read = tokio::select! {
                biased;
                () = stop.cancelled() => return unreachable_function(name),
                read = axum::body::to_bytes(body, usize::MAX) => read,
            };
            let Ok(whole) = read else { return unreachable_function(name) };
            answer = Response::from_parts(head, Body::from(whole));
            answer.headers_mut().insert("x-duration-seconds", HeaderValue::from_static("0.001235"));
        }
        answer.headers_mut().entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        served(answer, made)
    }

    /// Finds a function and waits until it is available, as the gateway does.
    async fn admit(&self, key: &Key) -> Result<(Copied, Guard), Response> {
        let (namespace, name) = key;
        let wait = {
            let mut state = self.state();
            let State { options, provider_down, functions, .. } = &mut *state;
            if options.scale_from_zero {
                if *provider_down {
                    let text = format!(
                        "error finding function {name}.{namespace}: Get \"http://127.0.0.1:8081/\": connection refused"
                    );
                    return Err(plain(404, text));
                }
                let Some(function) = functions.get_mut(key) else {
                    let text = format!(
                        "error finding function {name}.{namespace}: server returned non-200 status code (404) for function, {name}, body: "
                    );
                    return Err(plain(404, text));
                };
                function.replicas = function.replicas.max(1);
                match function.available {
                    0 if function.behaviour() == "never-ready" => true,
                    0 => {
                        function.available = 1;
                        false
                    }
                    _ => false,
                }
            } else {
                if *provider_down {
                    return Err(served(plain_untyped(502), None));
                }
                if functions.get(key).is_none_or(|function| function.available == 0) {
                    let mut answer = plain(503, format!("No endpoints available for: {name}.\n"));
                    answer.headers_mut().insert("x-openfaas-internal", HeaderValue::from_static("proxy"));
                    return Err(served(answer, None));
                }
                false
            }
        };
        if wait {
            std::future::pending::<()>().await;
        }
        let mut state = self.state();
        let secrets = state.secrets.clone();
        let function = state.functions.get_mut(key).unwrap();
        function.running += 1;
        function.calls += 1;
        let mounted = function.document["secrets"].as_array().cloned().unwrap_or_default();
        let secrets = secrets
            .into_iter()
            .filter(|((at, name), _)| at == namespace && mounted.iter().any(|mount| mount == name.as_str()))
            .map(|((_, name), value)| (name, value))
            .collect();
        let copied = Copied { behaviour: function.behaviour(), document: function.document.clone(), secrets };
        Ok((copied, (key.clone(), function.stop.clone())))
    }

    fn log(&self, key: &Key, text: &str) {
        let mut state = self.state();
        state.lines += 1;
        let at = format!("2026-11-24T00:45:27.{:06}Z", state.lines);
        let lines = state.lines;
        if let Some(function) = state.functions.get_mut(key) {
            function.lines.push((at, text.to_owned()));
        }
        state.logged.send_replace(lines);
    }

    fn logs(&self, query: Option<&str>) -> Response {
        let name = parameter(query, "name").unwrap_or_default();
        let namespace = parameter(query, "namespace").unwrap_or_else(|| NAMESPACE.to_owned());
        let key = (namespace, name);
        let since = parameter(query, "since");
        let tail = parameter(query, "tail").map(|tail| tail.parse::<usize>());
        if matches!(tail, Some(Err(_))) {
            return plain(500, "unknown log request error (422)\n");
        }
        let follow = parameter(query, "follow").is_some_and(|follow| follow == "true");
        let cuts = self.state().options.cuts_follow;
        let logged = self.state().logged.subscribe();
        let all = |gateway: &Self| {
            let state = gateway.state();
            let lines = state.functions.get(&key).map(|function| function.lines.clone()).unwrap_or_default();
            // By whole seconds, as faasd goes.
            let newer = |at: &String| since.as_ref().is_none_or(|since| at[..19] >= since[..19]);
            lines.into_iter().filter(|(at, _)| newer(at)).collect::<Vec<_>>()
        };
        let mut first = all(self);
        if let Some(Ok(tail)) = tail {
            first.drain(..first.len().saturating_sub(tail));
        }
        let write = {
            let (namespace, name) = key.clone();
            move |lines: &[(String, String)]| {
                let lines = lines.iter().map(|(at, text)| {
                    json!({"name": name, "namespace": namespace, "instance": format!("{name}-0001"), "timestamp": at, "text": text}).to_string() + "\n"
                });
                Bytes::from(lines.collect::<String>())
            }
        };
        if !follow {
            return Response::new(Body::from(write(&first)));
        }
        let gateway = self.clone();
        let told = all(self).len();
        let first = stream::iter([Ok::<_, io::Error>(write(&first))]);
        if cuts {
            return Response::new(Body::from_stream(first.chain(cut())));
        }
        let rest = async_stream(
            move |told: usize| {
                let (gateway, key, write) = (gateway.clone(), key.clone(), write.clone());
                let mut logged = logged.clone();
                async move {
                    loop {
                        let lines: Vec<_> = {
                            let state = gateway.state();
                            logged.borrow_and_update();
                            state.functions.get(&key).map(|function| function.lines.clone()).unwrap_or_default()
                        };
                        if lines.len() > told {
                            return (Ok::<_, io::Error>(write(&lines[told..])), lines.len());
                        }
                        logged.changed().await.unwrap();
                    }
                }
            },
            told,
        );
        Response::new(Body::from_stream(first.chain(rest)))
    }
}

fn async_stream<T, F: Future<Output = (T, usize)>>(
    next: impl Fn(usize) -> F + 'static,
    start: usize,
) -> impl Stream<Item = T> {
    stream::unfold((next, start), |(next, at)| async move {
        let (item, at) = next(at).await;
        Some((item, (next, at)))
    })
}

fn plain_untyped(status: u16) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

fn unreachable_function(name: &str) -> Response {
    let mut answer = plain(500, format!("Can't reach service for: {name}.\n"));
    answer.headers_mut().insert("x-openfaas-internal", HeaderValue::from_static("proxy"));
    served(answer, None)
}

fn served(mut answer: Response, call_id: Option<HeaderValue>) -> Response {
    let headers = answer.headers_mut();
    headers.insert("x-served-by", HeaderValue::from_static("openfaas-ce/0.27.14"));
    headers.insert("x-start-time", HeaderValue::from_static("1795481214518048998"));
    if let Some(id) = call_id {
        headers.insert("x-call-id", id);
    }
    answer
}

fn is_authorized(headers: &HeaderMap) -> bool {
    // admin:canary-password-1f7c
    headers.get(header::AUTHORIZATION).is_some_and(|value| value == "Basic YWRtaW46Y2FuYXJ5LXBhc3N3b3JkLTFmN2M=")
}

struct Copied {
    behaviour: String,
    document: Value,
    secrets: BTreeMap<String, Vec<u8>>,
}

type Guard = (Key, CancellationToken);

/// Counts a call as running until it is dropped.
struct Running {
    guard: Guard,
    gateway: Gateway,
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut state = self.gateway.state();
        if let Some(function) = state.functions.get_mut(&self.guard.0) {
            function.running = function.running.saturating_sub(1);
        }
    }
}

struct Called {
    function: Copied,
    path: String,
    head: axum::http::request::Parts,
    running: Running,
}

impl Called {
    /// What the function makes of a call.
    async fn execute(self, body: Body) -> Response {
        let Self { function, path, head, running } = self;
        let (behaviour, argument) = function.behaviour.split_once(':').unwrap_or((function.behaviour.as_str(), ""));
        let own = |status: u16, body: Body| {
            let mut answer = Response::new(body);
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
        };
        let text = |text: String| own(200, Body::from(text));
        let stream = |parts: stream::BoxStream<'static, io::Result<Bytes>>| {
            let stop = running.guard.1.clone();
            let parts = parts.take_until(async move { stop.cancelled().await });
            // The call runs as long as its answer is read.
            let running = running.keep();
            own(
                200,
                Body::from_stream(parts.inspect(move |_| {
                    let _ = &running;
                })),
            )
        };
        match behaviour {
            "echo" => {
                let mut answer = stream(body.into_data_stream().map(|part| part.map_err(io::Error::other)).boxed());
                if let Some(content_type) = head.headers.get(header::CONTENT_TYPE) {
                    answer.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
                }
                answer
            }
            "variable" => {
                let env = &function.document["envVars"];
                let file = env[format!("{argument}_FILE")].as_str().and_then(|file| file.rsplit('/').next());
                match (env[argument].as_str(), file.and_then(|file| function.secrets.get(file))) {
                    (Some(value), _) => text(value.to_owned()),
                    (None, Some(value)) => own(200, Body::from(value.clone())),
                    (None, None) => own(500, Body::from("no such variable")),
                }
            }
            "tell" => {
                let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
                let told = json!({
                    "method": head.method.as_str(),
                    "path": path,
                    "query": head.uri.query(),
                    "invocation_id": header("x-function-invocation-id"),
                    "traceparent": header("traceparent"),
                    "attempt": header("x-function-attempt"),
                    "deadline_ms": header("x-function-deadline-ms"),
                    "headers": head.headers.iter().map(|(name, value)| {
                        (name.to_string(), json!(value.to_str().unwrap_or_default()))
                    }).collect::<serde_json::Map<_, _>>(),
                });
                json_answer(&told)
            }
            "fail" => own(500, Body::from("it failed")),
            "reject" => own(422, Body::from("not so")),
            "status" => {
                let mut answer = own(argument.parse().unwrap(), Body::from(format!("function says {argument}")));
                answer.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/elsewhere"));
                answer.headers_mut().insert(HeaderName::from_static("connection"), HeaderValue::from_static("x-hop"));
                answer.headers_mut().insert("x-hop", HeaderValue::from_static("1"));
                answer
            }
            "hang" => {
                drop(axum::body::to_bytes(body, usize::MAX).await);
                std::future::pending().await
            }
            "large" => own(200, Body::from(vec![b'x'; argument.parse().unwrap()])),
            "lines" => {
                let lines = 0..argument.parse::<u32>().unwrap();
                stream(stream::iter(lines).map(|line| Ok(Bytes::from(format!("{line}\n")))).boxed())
            }
            "stall" => stream(first().chain(stream::pending()).boxed()),
            "break-off" => stream(first().chain(cut()).boxed()),
            "log" => {
                running.gateway.log(&running.guard.0, argument);
                text("logged".to_owned())
            }
            other => own(500, Body::from(format!("no behaviour {other:?}"))),
        }
    }
}

impl Running {
    /// Another hold on the same call.
    fn keep(&self) -> Self {
        let (key, stop) = &self.guard;
        if let Some(function) = self.gateway.state().functions.get_mut(key) {
            function.running += 1;
        }
        Self { guard: (key.clone(), stop.clone()), gateway: self.gateway.clone() }
    }
}

fn first() -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::iter([Ok(Bytes::from_static(b"first"))])
}

/// Breaks a body off, once what came before is on its way.
fn cut() -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::other("cut"))
    })
}

// Management

impl State {
    fn info(&self) -> Response {
        let provider = match (self.provider_down, self.options.flavour) {
            (true, _) => Value::Null,
            (_, Flavour::Netes) => {
                json!({"provider": "faas-netes-ce", "version": {"sha": "x", "release": "0.18.1"}, "orchestration": "kubernetes"})
            }
            (_, Flavour::Faasd) => {
                json!({"provider": "faasd-ce", "version": {"sha": "x", "release": "0.20.0"}, "orchestration": "containerd"})
            }
        };
        json_answer(&json!({"provider": provider, "version": {"sha": "8d803bf", "release": "0.27.14"}, "arch": ""}))
    }

    fn done(&self) -> Response {
        plain(if self.options.flavour == Flavour::Netes { 202 } else { 200 }, "")
    }

    fn key(&self, namespace: Option<String>, name: &str) -> Key {
        (namespace.filter(|name| !name.is_empty()).unwrap_or_else(|| NAMESPACE.to_owned()), name.to_owned())
    }

    fn shown(&self, key: &Key, function: &Function, in_list: bool) -> Value {
        let mut shown = function.document.clone();
        let fields = shown.as_object_mut().unwrap();
        fields.remove("service");
        fields.insert("name".to_owned(), json!(key.1));
        fields.insert("namespace".to_owned(), json!(key.0));
        fields.entry("labels").or_insert(json!({}))["faas_function"] = json!(key.1);
        fields.insert("createdAt".to_owned(), json!("2026-11-24T00:45:26Z"));
        if self.options.flavour == Flavour::Faasd {
            let image = format!("docker.io/{}", fields["image"].as_str().unwrap_or_default());
            fields.insert("image".to_owned(), json!(image));
        }
        let tells = !(in_list && self.options.flavour == Flavour::Faasd);
        // What is zero is left out.
        for (name, count, tells) in
            [("replicas", function.replicas, true), ("availableReplicas", function.available, tells)]
        {
            if count > 0 && tells {
                fields.insert(name.to_owned(), json!(count));
            }
        }
        shown
    }

    fn get(&mut self, name: &str, query: Option<&str>) -> Response {
        let key = self.key(parameter(query, "namespace"), name);
        let Some(function) = self.functions.get_mut(&key) else { return plain(404, "") };
        if function.available < function.replicas && function.behaviour() != "never-ready" {
            function.polls_left = function.polls_left.saturating_sub(1);
            if function.polls_left == 0 {
                function.available = function.replicas;
            }
        }
        json_answer(&self.shown(&key, &self.functions[&key], false))
    }

    fn list(&self, query: Option<&str>) -> Response {
        let namespace = parameter(query, "namespace").unwrap_or_else(|| NAMESPACE.to_owned());
        if !self.namespaces.contains(&namespace) {
            return plain(400, format!("namespace not valid: {namespace}\n\n"));
        }
        let listed: Vec<_> = self
            .functions
            .iter()
            .filter(|(key, _)| key.0 == namespace)
            .map(|(key, function)| self.shown(key, function, true))
            .collect();
        if listed.is_empty() {
            // A provider without functions.
            let none = if self.options.flavour == Flavour::Faasd { Value::Null } else { Value::Array(listed) };
            return json_answer(&none);
        }
        if self.options.prometheus { json_answer(&Value::Array(listed)) } else { closed() }
    }

    fn deploy(&mut self, method: &Method, body: &[u8]) -> Response {
        let Ok(document) = serde_json::from_slice::<Value>(body) else {
            return plain(400, "failed to unmarshal request\n");
        };
        let netes = self.options.flavour == Flavour::Netes;
        let (Some(name), Some(image)) = (document["service"].as_str(), document["image"].as_str()) else {
            return plain(400, "validation failed: image: is required\n");
        };
        let key = self.key(document["namespace"].as_str().map(str::to_owned), name);
        if !self.namespaces.contains(&key.0) {
            let text = if netes { "namespace must be: openfaas-fn\n" } else { "namespace not valid\n" };
            return plain(400, text);
        }
        for secret in document["secrets"].as_array().into_iter().flatten() {
            if !self.secrets.contains_key(&(key.0.clone(), secret.as_str().unwrap().to_owned())) {
                return plain(400, format!("unable to find secret: {secret}\n"));
            }
        }
        let unready = document.pointer("/envVars/BEHAVIOUR").is_some_and(|behaviour| behaviour == "never-ready");
        let exists = self.functions.contains_key(&key);
        match *method {
            Method::PUT if !exists => return plain(404, format!("unable update Deployment: {name} not found\n")),
            Method::POST if exists && netes => {
                return plain(500, format!("unable create Deployment: deployments.apps \"{name}\" already exists\n"));
            }
            Method::POST if exists => return plain(400, format!("container {name}: already exists\n")),
            _ => {}
        }
        if !exists && self.functions.len() >= self.options.limit {
            let text = "Community Edition: the maximum number of functions is reached\n";
            return plain(if netes { 500 } else { 400 }, text);
        }
        if !netes && unready {
            return plain(400, format!("unable to pull image {image}: not found\n"));
        }
        let (available, polls) = if netes { (0, self.options.polls_until_ready) } else { (1, 0) };
        self.functions.insert(key, function(document, 1, available, polls));
        self.done()
    }

    fn remove(&mut self, query: Option<&str>, body: &[u8]) -> Response {
        let document = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let Some(name) = document["functionName"].as_str().filter(|name| !name.is_empty()) else {
            return plain(400, "");
        };
        let namespace = match self.options.flavour {
            Flavour::Netes => parameter(query, "namespace"),
            Flavour::Faasd => document["namespace"].as_str().map(str::to_owned),
        };
        match self.functions.remove(&self.key(namespace, name)) {
            Some(function) => {
                function.stop.cancel();
                self.done()
            }
            None => plain(404, format!("deployments \"{name}\" not found\n")),
        }
    }

    fn scale(&mut self, name: &str, query: Option<&str>, body: &[u8]) -> Response {
        let document = serde_json::from_slice::<Value>(body).unwrap_or_default();
        let Some(replicas) = document["replicas"].as_u64() else {
            return plain(400, "Error unmarshalling request body\n");
        };
        let key = self.key(parameter(query, "namespace"), name);
        let netes = self.options.flavour == Flavour::Netes;
        let Some(function) = self.functions.get_mut(&key) else {
            return plain(if netes { 500 } else { 404 }, format!("unable to get function: {name}\n"));
        };
        if netes {
            function.replicas = replicas.clamp(1, 5);
            function.available = function.available.min(function.replicas);
            function.polls_left = 1;
        }
        self.done()
    }

    fn secret(&mut self, method: &Method, query: Option<&str>, body: &[u8]) -> Response {
        let asked = parameter(query, "namespace");
        if *method == Method::GET {
            let namespace = asked.unwrap_or_else(|| NAMESPACE.to_owned());
            let listed = self.secrets.keys().filter(|key| key.0 == namespace);
            return json_answer(&listed.map(|key| json!({"name": key.1, "namespace": key.0})).collect());
        }
        let Ok(document) = serde_json::from_slice::<Value>(body) else { return plain(400, "invalid secret\n") };
        let name = document["name"].as_str().unwrap_or_default().to_owned();
        let netes = self.options.flavour == Flavour::Netes;
        let said = document["namespace"].as_str().map(str::to_owned);
        let key = self.key(if *method == Method::DELETE { asked } else { said }, &name);
        let value = document["value"].as_str().map(|value| value.as_bytes().to_vec());
        let exists = self.secrets.contains_key(&key);
        match (method.as_str(), netes) {
            ("POST", true) if exists => plain(409, format!("secrets \"{name}\" already exists\n")),
            ("PUT", true) if !exists => plain(404, format!("secrets \"{name}\" not found\n")),
            ("POST" | "PUT", _) => {
                self.secrets.insert(key, value.unwrap_or_else(|| b"raw".to_vec()));
                plain(
                    if !netes {
                        200
                    } else if *method == Method::POST {
                        201
                    } else {
                        202
                    },
                    "",
                )
            }
            ("DELETE", _) => match (self.secrets.remove(&key), netes) {
                (Some(_), _) => self.done(),
                (None, true) => plain(404, format!("secrets \"{name}\" not found\n")),
                (None, false) => plain(500, "remove: no such file or directory\n"),
            },
            _ => plain(405, ""),
        }
    }

    fn enqueue(&mut self, request: &Request<Body>, rest: &str, body: Bytes) -> Response {
        if !self.options.queue {
            return plain(404, "404 page not found\n");
        }
        if request.method() != Method::POST {
            return plain(405, "");
        }
        if body.len() > 256_000 {
            let len = body.len();
            let text = format!(
                "Error queuing request: request body too large for OpenFaaS CE ({len} bytes), maximum: 256000 bytes\n"
            );
            return served(plain(500, text), None);
        }
        self.queued.push(Seen {
            method: Method::POST,
            path: rest.to_owned(),
            query: request.uri().query().map(str::to_owned),
            headers: request.headers().clone(),
            body,
        });
        served(plain_untyped(202), None)
    }
}

/// A function of the suite: the image of the tests, told by a variable what to do. The same behaviours are those of the image that
/// a real gateway is tested with.
pub(crate) fn behaving(image: &str, behaviour: &Behaviour) -> Option<FunctionSpec> {
    let text = match behaviour {
        Behaviour::Echo | Behaviour::EchoTyped | Behaviour::StreamEcho => "echo".to_owned(),
        Behaviour::EchoVariable(name) => format!("variable:{name}"),
        Behaviour::Tell => "tell".to_owned(),
        Behaviour::Fail => "fail".to_owned(),
        Behaviour::Reject => "reject".to_owned(),
        Behaviour::Hang => "hang".to_owned(),
        Behaviour::Large(bytes) => format!("large:{bytes}"),
        Behaviour::Lines(count) => format!("lines:{count}"),
        Behaviour::Stall => "stall".to_owned(),
        Behaviour::BreakOff => "break-off".to_owned(),
        Behaviour::Log(text) => format!("log:{text}"),
        Behaviour::Unready => "never-ready".to_owned(),
        Behaviour::Invalid => return Some(spec(image, "echo").with_annotation("openfaas.com/acync", "true")),
        _ => return None,
    };
    Some(spec(image, &text))
}

/// A function of the test's image with a behaviour.
pub(crate) fn spec(image: &str, behaviour: &str) -> FunctionSpec {
    FunctionSpec::new("faas".parse().unwrap(), ImageWorkload::new(image)).with_env("BEHAVIOUR", behaviour)
}

/// How long a test waits for what has to happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
