//! The connections of a worker, and what is asked by them.

use std::fmt;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use function_gateway_core::{Error, ErrorKind};
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::process::Pid;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::answer::{Posted, Verdict};
use super::payload::{Connection, Handed, Outgoing, Unwritten};
use super::{Event, Line, Refusal, Reply, Shared, document};
use crate::threads::Threads;
use crate::worker::sockets;

const PREFIX: &str = "/2018-06-01/runtime/";
/// So many connections at a time; further ones wait.
const MAX_CONNECTIONS: usize = 64;
/// What a head may take: runtimes tell the cause of an error in a header of up to 1 MiB.
const MAX_HEAD: usize = 2 * 1024 * 1024;
/// How much a worker may say of why it can't start.
const MAX_INIT_ERROR: usize = 256 * 1024;
/// Before the next connection is taken where this process could take none.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a connection that the worker has left is read for what it had sent, where its end does not come: something that
/// got away from the worker's group may hold it open.
const LINGER: Duration = Duration::from_millis(200);
const FORBIDDEN: &[u8] = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Where connections are served.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) shared: Arc<Shared>,
    /// Whose connections are served.
    pub(super) group: Pid,
    pub(super) runtime: Handle,
    pub(super) threads: Threads,
    pub(super) tasks: TaskTracker,
}

/// Takes connections until the API is closed.
pub(super) async fn accept(listener: TcpListener, site: Site) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let accepting = async {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let open = (permit, site.shared.connections.token());
                    let serving = serve(stream, peer, site.clone(), open);
                    drop(site.tasks.spawn_on(serving, &site.runtime));
                }
                Err(error) => {
                    tracing::warn!(%error, "a worker's connection could not be taken");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    site.shared.closing.run_until_cancelled(accepting).await;
}

async fn serve(mut stream: TcpStream, peer: SocketAddr, site: Site, _open: (OwnedSemaphorePermit, TaskTrackerToken)) {
    let Site { shared, group, threads, .. } = site;
    let Ok(server) = stream.local_addr() else { return };
    let verified = async {
        loop {
            match threads.blocking(move || sockets::is_client_of(peer, server, group)).await {
                Ok(verified) => return verified,
                // A worker that is well would take a connection that is closed for the end of its host.
                Err(error) => {
                    tracing::warn!(%error, "a connection of a worker waits");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    match shared.closing.run_until_cancelled(verified).await {
        Some(true) => {}
        Some(false) => {
            tracing::warn!(%peer, worker = group.as_raw_pid(), "a process outside of a worker's group asked in its name");
            // It is closed in any case.
            let _ = stream.write_all(FORBIDDEN).await;
            return;
        }
        None => return,
    }
    // Without it answers are late, and nothing else.
    let _ = stream.set_nodelay(true);
    let (connection, unwritten) = Connection::new(stream);
    let service = service_fn(|request| handle(Arc::clone(&shared), unwritten.clone(), request));
    let serving = http1::Builder::new().max_buf_size(MAX_HEAD).serve_connection(TokioIo::new(connection), service);
    let serving = pin!(serving);
    let given_up = async {
        shared.closing.cancelled().await;
        tokio::time::sleep(LINGER).await;
        // An answer comes to its end by whoever reads it.
        shared.unanswered().await;
    };
    tokio::select! {
        biased;
        // What goes wrong with a connection is told to its requests.
        _ = serving => {}
        () = given_up => {}
    }
}

/// A request is not answered: its connection is closed.
#[derive(Debug)]
struct Unanswered;

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the call is over")
    }
}

impl std::error::Error for Unanswered {}

/// What a path asks for.
enum Asked<'a> {
    Next,
    Answer { id: &'a str, is_error: bool },
    InitError,
}

impl<'a> Asked<'a> {
    fn of(path: &'a str) -> Option<Self> {
        let mut parts = path.strip_prefix(PREFIX)?.split('/');
        let asked = match (parts.next()?, parts.next()?, parts.next()) {
            ("invocation", "next", None) => Self::Next,
            ("invocation", id, Some("response")) => Self::Answer { id, is_error: false },
            ("invocation", id, Some("error")) => Self::Answer { id, is_error: true },
            ("init", "error", None) => Self::InitError,
            _ => return None,
        };
        parts.next().is_none().then_some(asked)
    }

    fn method(&self) -> (Method, HeaderValue) {
        match self {
            Self::Next => (Method::GET, HeaderValue::from_static("GET")),
            Self::Answer { .. } | Self::InitError => (Method::POST, HeaderValue::from_static("POST")),
        }
    }
}

async fn handle(
    shared: Arc<Shared>,
    unwritten: Unwritten,
    request: Request<Incoming>,
) -> Result<Response<Outgoing>, Unanswered> {
    let (head, body) = request.into_parts();
    let Some(asked) = Asked::of(head.uri.path()) else {
        return Ok(refused(StatusCode::NOT_FOUND, "InvalidPath", "the API has no such path"));
    };
    let (method, allowed) = asked.method();
    if head.method != method {
        let mut response = refused(StatusCode::METHOD_NOT_ALLOWED, "InvalidMethod", "the path takes another method");
        response.headers_mut().insert(ALLOW, allowed);
        return Ok(response);
    }
    match asked {
        // Once the API is closed the worker has ended: nobody is left to be told.
        Asked::Next => match shared.closing.run_until_cancelled(shared.next()).await {
            Some((event, line)) => Ok(given(&shared, &unwritten, event, line)),
            None => Err(Unanswered),
        },
        Asked::Answer { id, is_error } => {
            let reply = match shared.claim(id) {
                Ok(reply) => reply,
                Err(refusal) => return Ok(refusal.response()),
            };
            let (verdict, settled) = oneshot::channel();
            // Where nobody waits any more, it is dropped, and the verdict with it.
            drop(reply.send(Reply::Posted(Posted { is_error, headers: head.headers, body, verdict })));
            match settled.await {
                Ok(Verdict::Taken) => Ok(accepted()),
                Ok(Verdict::TooLarge) => {
                    let message = "the answer is larger than the limit on results";
                    Ok(refused(StatusCode::PAYLOAD_TOO_LARGE, "Function.ResponseSizeTooLarge", message))
                }
                Err(_) => Err(Unanswered),
            }
        }
        Asked::InitError => {
            let document = beginning(body).await.map_err(|_| Unanswered)?;
            let failure = document::failure(&document, head.headers.get(document::ERROR_TYPE));
            let message = format!("the worker could not start: {}", document::said(&failure));
            Ok(match shared.fail_start(Error::new(ErrorKind::FunctionBroken, message)) {
                Ok(()) => accepted(),
                Err(refusal) => refusal.response(),
            })
        }
    }
}

/// As much of a document as is read of it.
async fn beginning(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let mut document = BytesMut::new();
    while document.len() < MAX_INIT_ERROR
        && let Some(frame) = body.frame().await.transpose()?
    {
        if let Ok(data) = frame.into_data() {
            document.extend_from_slice(&data);
        }
    }
    Ok(document.freeze())
}

fn given(shared: &Arc<Shared>, unwritten: &Unwritten, event: Event, line: Line) -> Response<Outgoing> {
    let headers = event.head.clone();
    let (handed, outgoing) = Handed::new(Arc::clone(shared), event, line);
    unwritten.set(handed);
    let mut response = Response::new(outgoing);
    *response.headers_mut() = headers;
    response
}

fn accepted() -> Response<Outgoing> {
    answered(StatusCode::ACCEPTED, &serde_json::json!({"status": "OK"}))
}

fn refused(status: StatusCode, kind: &str, message: &str) -> Response<Outgoing> {
    answered(status, &serde_json::json!({"errorType": kind, "errorMessage": message}))
}

fn answered(status: StatusCode, document: &serde_json::Value) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::Bytes(document.to_string().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, document::JSON);
    response
}

impl Refusal {
    fn response(self) -> Response<Outgoing> {
        match self {
            Self::UnknownId => {
                refused(StatusCode::BAD_REQUEST, "InvalidRequestID", "there is no invocation of this id to be answered")
            }
            Self::TooLate => refused(StatusCode::FORBIDDEN, "InvalidStateTransition", "it is too late for this"),
        }
    }
}
