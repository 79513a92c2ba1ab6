//! A server of HTTP, what is seen of requests, and what goes wrong with them.

use std::io;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use axum::response::Response;
use futures_util::{Stream, StreamExt as _, stream};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpListener;

use super::Shared;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Api,
    Ingress,
    LocalIngress,
}

/// What goes wrong with requests.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The connection is closed without an answer.
    Close,
    /// The answer is this one.
    Answer(u16, Vec<(String, String)>, String),
    /// The answer is done, but breaks off in the middle.
    Cut,
    /// The answer begins, and then neither goes on nor ends.
    Stall,
    /// No answer ever comes.
    Hang,
    /// The request is executed, and the connection is closed then.
    CloseAfter,
}

impl Fault {
    /// An answer with a text.
    pub(crate) fn answer(status: u16, text: &str) -> Self {
        Self::Answer(status, Vec::new(), text.to_owned())
    }

    /// How the API server says no.
    pub(crate) fn status(code: u16, reason: &str, message: &str) -> Self {
        let status = serde_json::json!({"kind": "Status", "status": "Failure", "reason": reason, "message": message, "code": code});
        Self::answer(code, &status.to_string())
    }

    pub(crate) fn with(self, name: &str, value: &str) -> Self {
        match self {
            Self::Answer(status, mut headers, text) => {
                headers.push((name.to_owned(), value.to_owned()));
                Self::Answer(status, headers, text)
            }
            other => other,
        }
    }
}

#[derive(Debug)]
pub(super) struct Injected {
    pub(super) at: At,
    pub(super) method: Option<Method>,
    /// What path and query hold.
    pub(super) part: String,
    pub(super) fault: Fault,
    pub(super) times: usize,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: At,
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    /// Whether it is a watch that was opened.
    pub(crate) fn is_watch(&self) -> bool {
        self.query.contains("watch=1")
    }
}

/// Marks an answer in place of which the connection is closed.
#[derive(Clone)]
struct Close;

/// Listens until the tasks are dropped, and says where.
pub(super) async fn listen(tasks: &mut tokio::task::JoinSet<()>, shared: Shared, at: At, h2c: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tasks.spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            let shared = shared.clone();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let shared = shared.clone();
                async move {
                    let answer = answer(&shared, at, request.map(Body::new)).await;
                    match answer.extensions().get::<Close>() {
                        Some(_) => Err(io::Error::other("closed")),
                        None => Ok(answer),
                    }
                }
            });
            connections.spawn(async move {
                let io = TokioIo::new(stream);
                match h2c {
                    true => drop(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await),
                    false => drop(http1::Builder::new().serve_connection(io, service).await),
                }
            });
            while connections.try_join_next().is_some() {}
        }
    });
    url
}

async fn answer(shared: &Shared, at: At, request: Request<Body>) -> Response {
    let (method, target) = (request.method().clone(), request.uri().to_string());
    let fault = {
        let mut state = shared.state();
        let applies = |fault: &Injected| {
            fault.times > 0
                && fault.at == at
                && fault.method.as_ref().is_none_or(|known| *known == method)
                && target.contains(&fault.part)
        };
        state.faults.iter_mut().find(|fault| applies(fault)).map(|injected| {
            injected.times -= 1;
            injected.fault.clone()
        })
    };
    match fault {
        None => route(shared, at, request).await,
        Some(Fault::Close) => {
            see(shared, at, &request, Bytes::new());
            closed()
        }
        Some(Fault::Answer(status, headers, text)) => {
            see(shared, at, &request, Bytes::new());
            let mut answer = plain(status, text);
            for (name, value) in headers {
                let name = header::HeaderName::try_from(name).unwrap();
                answer.headers_mut().insert(name, HeaderValue::try_from(value).unwrap());
            }
            answer
        }
        Some(Fault::Hang) => {
            see(shared, at, &request, Bytes::new());
            std::future::pending().await
        }
        Some(Fault::Stall) => {
            let (head, half) = half(route(shared, at, request).await).await;
            Response::from_parts(head, Body::from_stream(half.chain(stream::pending())))
        }
        Some(Fault::CloseAfter) => {
            drop(route(shared, at, request).await);
            closed()
        }
        Some(Fault::Cut) => {
            let (head, half) = half(route(shared, at, request).await).await;
            Response::from_parts(head, Body::from_stream(half.chain(cut())))
        }
    }
}

async fn half(answer: Response) -> (http::response::Parts, impl Stream<Item = io::Result<Bytes>> + Send) {
    let (mut head, body) = answer.into_parts();
    let whole = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
    head.headers.remove(header::CONTENT_LENGTH);
    (head, stream::iter([Ok(whole.slice(..whole.len() / 2))]))
}

async fn route(shared: &Shared, at: At, request: Request<Body>) -> Response {
    match at {
        At::Api => super::api::answer(shared, request).await,
        At::Ingress | At::LocalIngress => super::ingress::answer(shared, at, request).await,
    }
}

pub(super) fn see(shared: &Shared, at: At, request: &Request<Body>, body: Bytes) {
    let seen = Seen {
        at,
        method: request.method().clone(),
        path: request.uri().path().to_owned(),
        query: request.uri().query().unwrap_or_default().to_owned(),
        headers: request.headers().clone(),
        body,
    };
    let mut state = shared.state();
    state.seen.push(seen);
    state.tell();
}

pub(super) fn plain(status: u16, text: impl Into<String>) -> Response {
    let text = text.into();
    let is_text = !text.is_empty();
    let mut answer = Response::new(Body::from(text));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    if is_text {
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    }
    answer
}

pub(super) fn json_answer(status: u16, document: &Value) -> Response {
    let mut answer = Response::new(Body::from(document.to_string()));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

fn closed() -> Response {
    let mut answer = plain(500, "");
    answer.extensions_mut().insert(Close);
    answer
}

/// Breaks a body off, once what came before is on its way.
pub(super) fn cut() -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::other("cut"))
    })
}
