//! The worker of the tests: this very test program, started once more by the driver. What it does stands in `BEHAVIOUR`.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::convert::Infallible;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::pin::Pin;
use std::process::{Command, Stdio, exit};
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use function_gateway_core::{FunctionSpec, ProcessWorkload, Protocol};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixListener};
use tokio::signal::unix::{SignalKind, signal};

/// A function whose worker behaves so. Each test file that uses it has an ignored test `worker` that calls [`main`].
pub fn worker(behaviour: impl Into<String>) -> FunctionSpec {
    let program = std::env::current_exe().unwrap();
    let args = ["worker", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    let run = ProcessWorkload::new(program.to_str().unwrap()).with_args(args);
    FunctionSpec::new("local".parse().unwrap(), run).with_protocol(Protocol::http()).with_env("BEHAVIOUR", behaviour)
}

/// What the process does where the driver has started it.
pub fn main() {
    let Ok(behaviour) = std::env::var("BEHAVIOUR") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&behaviour));
}

#[expect(clippy::zombie_processes, reason = "its children are to outlive it")]
async fn run(behaviour: &str) {
    let (what, _) = behaviour.split_once(':').unwrap_or((behaviour, ""));
    match what {
        "never-listen" => {
            eprintln!("thinking");
            std::future::pending::<()>().await;
        }
        "exit" => {
            eprintln!("goodbye");
            exit(0);
        }
        "crash-at-start" => {
            eprintln!("cannot find the config");
            exit(7);
        }
        "elsewhere" => {
            let elsewhere = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            serve_tcp(&elsewhere, "echo").await;
        }
        "steal" => {
            // Another process listens where this one was told to.
            let mut thief = Command::new(std::env::current_exe().unwrap());
            thief.args(std::env::args_os().skip(1)).env("BEHAVIOUR", "echo").stdin(Stdio::null());
            // In a group of its own, as any other process of the machine.
            let thief = CommandExt::process_group(&mut thief, 0).spawn().unwrap();
            fs::write(std::env::var("PIDS").unwrap(), thief.id().to_string()).unwrap();
            std::future::pending::<()>().await;
        }
        "fork" => {
            let child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
            fs::write(std::env::var("PIDS").unwrap(), format!("{} {}", std::process::id(), child.id())).unwrap();
        }
        "stubborn" => ignore_term(),
        "graceful" => {
            let mut term = signal(SignalKind::terminate()).unwrap();
            tokio::spawn(async move {
                term.recv().await;
                eprintln!("asked to end");
                exit(0);
            });
        }
        "flood-start" => {
            for line in 0..200_000 {
                println!("line {line} of a flood");
            }
        }
        _ => {}
    }
    listen(behaviour).await;
}

fn ignore_term() {
    let mut term = signal(SignalKind::terminate()).unwrap();
    tokio::spawn(async move { while term.recv().await.is_some() {} });
}

async fn listen(behaviour: &str) {
    if let Ok(path) = std::env::var("LISTEN_SOCKET") {
        let listener = UnixListener::bind(path).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            serve(stream, behaviour.to_owned());
        }
    }
    let address: SocketAddr = match (std::env::var("LISTEN_ADDRESS"), std::env::var("PORT")) {
        (Ok(address), _) => address.parse().unwrap(),
        (_, Ok(port)) => (Ipv4Addr::LOCALHOST, port.parse().unwrap()).into(),
        _ => (Ipv4Addr::LOCALHOST, std::env::var("FUNC_PORT").unwrap().parse().unwrap()).into(),
    };
    serve_tcp(&TcpListener::bind(address).await.unwrap(), behaviour).await;
}

async fn serve_tcp(listener: &TcpListener, behaviour: &str) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        match behaviour {
            "garbage" => {
                let mut first = [0; 1];
                if stream.read(&mut first).await.unwrap() == 1 {
                    stream.write_all(b"\x16\x03garbage\r\n\r\n").await.unwrap();
                }
            }
            "close-early" => {
                let mut some = [0; 1024];
                let _ = stream.read(&mut some).await;
            }
            _ => serve(stream, behaviour.to_owned()),
        }
    }
}

fn serve(io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static, behaviour: String) {
    let http2 = std::env::var("HTTP2").is_ok();
    let service = service_fn(move |request| {
        let behaviour = behaviour.clone();
        async move { Ok::<_, Infallible>(answer(&behaviour, request).await) }
    });
    tokio::spawn(async move {
        let io = TokioIo::new(io);
        // A connection that breaks is the caller's business.
        if http2 {
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
        } else {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
        }
    });
}

type Answer = Response<StreamBody<BoxStream<'static, Result<Frame<Bytes>, String>>>>;

/// How many calls are running, told to the test by a file.
struct Running;

static RUNNING: AtomicUsize = AtomicUsize::new(0);

impl Running {
    fn begin() -> Self {
        RUNNING.fetch_add(1, Ordering::SeqCst);
        Self::tell();
        Self
    }

    fn tell() {
        if let Ok(folder) = std::env::var("RUNNING") {
            let file = format!("{folder}/{}", std::process::id());
            // A folder that is gone has nobody who reads it.
            let _ = fs::write(file, RUNNING.load(Ordering::SeqCst).to_string());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, Ordering::SeqCst);
        Self::tell();
    }
}

fn answered(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    streamed(status, stream::iter([Ok(body.into())]))
}

fn streamed(
    status: StatusCode,
    body: impl futures_util::Stream<Item = Result<Bytes, String>> + Send + 'static,
) -> Answer {
    let mut response = Response::new(StreamBody::new(body.map(|part| part.map(Frame::data)).boxed()));
    *response.status_mut() = status;
    response
}

async fn answer(behaviour: &str, request: Request<Incoming>) -> Answer {
    let running = Running::begin();
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/ready" => return answered(StatusCode::OK, ""),
        "/crash" => {
            eprintln!("crashing");
            exit(9);
        }
        "/crash-in-the-middle" => {
            let parts = stream::iter([Ok(Bytes::from_static(b"first"))]).chain(stream::once(async {
                // What was sent is on its way once the task has been given back to the runtime.
                tokio::task::yield_now().await;
                exit(9)
            }));
            return streamed(StatusCode::OK, parts);
        }
        "/hang" => std::future::pending().await,
        _ => {}
    }
    let (what, with) = behaviour.split_once(':').unwrap_or((behaviour, ""));
    let first = || Ok(Bytes::from_static(b"first"));
    // It runs until its answer has ended.
    let keep = move |_: &Result<Bytes, String>| _ = &running;
    match what {
        "variable" => answered(StatusCode::OK, std::env::var(with).unwrap_or_default()),
        "tell" => answered(StatusCode::OK, tell(request.method(), &request)),
        "fail" => answered(StatusCode::INTERNAL_SERVER_ERROR, "it went wrong"),
        "reject" => answered(StatusCode::BAD_REQUEST, "no"),
        "hang" => std::future::pending().await,
        "hog" => {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let mebibytes: usize = std::str::from_utf8(&body).unwrap().parse().unwrap();
            drop(std::hint::black_box(vec![1_u8; mebibytes << 20]));
            answered(StatusCode::OK, body)
        }
        "large" => answered(StatusCode::OK, vec![0; with.parse().unwrap()]),
        "endless" => {
            streamed(StatusCode::OK, stream::repeat_with(|| Ok(Bytes::from_static(&[0; 65536]))).inspect(keep))
        }
        "lines" => {
            let lines = (0..with.parse().unwrap()).map(|line: u32| Ok(Bytes::from(format!("{line}\n"))));
            streamed(StatusCode::OK, stream::iter(lines).inspect(keep))
        }
        "stall" => {
            let parts: Pin<Box<dyn futures_util::Stream<Item = _> + Send>> =
                Box::pin(stream::iter([first()]).chain(stream::pending()));
            streamed(StatusCode::OK, parts.inspect(keep))
        }
        "break-off" => {
            let broken = stream::once(async {
                tokio::task::yield_now().await;
                Err("broken".to_owned())
            });
            streamed(StatusCode::OK, stream::iter([first()]).chain(broken))
        }
        "log" => {
            println!("{with}");
            answered(StatusCode::OK, "")
        }
        _ => {
            let content_type = request.headers().get(CONTENT_TYPE).cloned();
            let body = request.into_body().into_data_stream().map(|part| part.map_err(|error| error.to_string()));
            let mut response = streamed(StatusCode::OK, body.inspect(keep));
            if let Some(content_type) = content_type {
                response.headers_mut().insert(CONTENT_TYPE, content_type);
            }
            response
        }
    }
}

fn tell(method: &Method, request: &Request<Incoming>) -> String {
    let header = |headers: &HeaderMap, name: &str| {
        headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    let headers = request.headers();
    serde_json::json!({
        "method": method.as_str(),
        "path": request.uri().path(),
        "query": request.uri().query(),
        "invocation_id": header(headers, "x-function-invocation-id"),
        "traceparent": header(headers, "traceparent"),
        "attempt": header(headers, "x-function-attempt"),
        "deadline_ms": header(headers, "x-function-deadline-ms"),
    })
    .to_string()
}
