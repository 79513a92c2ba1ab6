//! A small Lambda runtime, as the worker of the tests: this very test program, started once more by the driver. What its
//! function does stands in `BEHAVIOUR`.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::fs;
use std::process::exit;

use bytes::Bytes;
use function_gateway_core::{FunctionSpec, ProcessWorkload, Protocol};
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::header::{CONTENT_TYPE, HOST, TRAILER};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// A function that behaves so. Each test file that uses it has an ignored test `worker` that calls [`main`].
pub fn function(behaviour: impl Into<String>) -> FunctionSpec {
    let program = std::env::current_exe().unwrap();
    let args = ["worker", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    let run = ProcessWorkload::new(program.to_str().unwrap()).with_args(args);
    FunctionSpec::new("local".parse().unwrap(), run).with_protocol(Protocol::lambda()).with_env("BEHAVIOUR", behaviour)
}

/// What the process does where the driver has started it.
pub fn main() {
    let Ok(behaviour) = std::env::var("BEHAVIOUR") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&behaviour));
}

type Parts = StreamBody<BoxStream<'static, Result<Frame<Bytes>, hyper::Error>>>;

/// A connection to the driver.
struct Api(SendRequest<Parts>);

impl Api {
    async fn connect() -> Self {
        let stream = TcpStream::connect(std::env::var("AWS_LAMBDA_RUNTIME_API").unwrap()).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn send(&mut self, method: &str, path: &str, headers: HeaderMap, body: Parts) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(format!("/2018-06-01/runtime/{path}"));
        request.headers_mut().unwrap().extend(headers);
        let request = request.header(HOST, "runtime").body(body).unwrap();
        self.0.ready().await.unwrap();
        self.0.send_request(request).await.unwrap()
    }

    async fn next(&mut self) -> Response<Incoming> {
        let next = self.send("GET", "invocation/next", HeaderMap::new(), parts([])).await;
        assert_eq!(next.status(), StatusCode::OK);
        next
    }

    /// Posts something, and waits until the driver has taken it.
    async fn post(&mut self, path: &str, headers: HeaderMap, body: Parts) -> StatusCode {
        let response = self.send("POST", path, headers, body).await;
        let status = response.status();
        response.into_body().collect().await.unwrap();
        status
    }
}

fn parts(parts: impl IntoIterator<Item = Bytes, IntoIter: Send + 'static>) -> Parts {
    streamed(stream::iter(parts))
}

fn streamed(parts: impl futures_util::Stream<Item = Bytes> + Send + 'static) -> Parts {
    StreamBody::new(parts.map(|part| Ok(Frame::data(part))).boxed())
}

fn headers<const N: usize>(headers: [(&'static str, &'static str); N]) -> HeaderMap {
    let header = |(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
    headers.into_iter().map(header).collect()
}

const STREAMING: (&str, &str) = ("lambda-runtime-function-response-mode", "streaming");
const WITH_PRELUDE: (&str, &str) = ("content-type", "application/vnd.awslambda.http-integration-response");

/// Tells the test how many calls are running, by a file.
fn tell_running(count: u32) {
    if let Ok(folder) = std::env::var("RUNNING") {
        // A folder that is gone has nobody who reads it.
        let _ = fs::write(format!("{folder}/{}", std::process::id()), count.to_string());
    }
}

async fn run(behaviour: &str) {
    match behaviour {
        "never-ask" => {
            eprintln!("thinking");
            std::future::pending::<()>().await;
        }
        "crash-at-start" => {
            eprintln!("cannot find the config");
            exit(7);
        }
        "init-error" => {
            let mut api = Api::connect().await;
            let document = r#"{"errorMessage": "no module named handler", "errorType": "Runtime.ImportModuleError"}"#;
            let status = api.post("init/error", HeaderMap::new(), parts([document.into()])).await;
            assert_eq!(status, StatusCode::ACCEPTED);
            exit(1);
        }
        _ => {}
    }
    let (mut asks, mut answers) = (Api::connect().await, Api::connect().await);
    // Once it is answered the driver knows whose connection it is: what is sent by it counts, also from a worker that dies.
    assert_eq!(answers.post("nothing", HeaderMap::new(), parts([])).await, StatusCode::NOT_FOUND);
    loop {
        let invocation = asks.next().await;
        tell_running(1);
        let told = invocation.headers().clone();
        let id = told["lambda-runtime-aws-request-id"].to_str().unwrap().to_owned();
        let status = act(behaviour, &mut answers, &id, &told, invocation.into_body()).await;
        assert!([StatusCode::ACCEPTED, StatusCode::PAYLOAD_TOO_LARGE].contains(&status), "{status}");
        tell_running(0);
    }
}

async fn act(behaviour: &str, api: &mut Api, id: &str, told: &HeaderMap, payload: Incoming) -> StatusCode {
    let (what, with) = behaviour.split_once(':').unwrap_or((behaviour, ""));
    let path = format!("invocation/{id}/response");
    let first = Bytes::from_static(b"first");
    match what {
        "variable" => api.post(&path, HeaderMap::new(), parts([std::env::var(with).unwrap_or_default().into()])).await,
        "tell" => api.post(&path, HeaderMap::new(), parts([tell(id, told).into()])).await,
        "fail" => {
            let document = r#"{"errorMessage": "it went wrong", "errorType": "Wrong", "stackTrace": ["here"]}"#;
            api.post(&format!("invocation/{id}/error"), HeaderMap::new(), parts([document.into()])).await
        }
        "reject" => {
            let prelude = r#"{"statusCode": 400, "headers": {"x-why": "no"}, "cookies": ["a=b"]}"#;
            let answer = parts([prelude.into(), Bytes::from_static(&[0; 8]), "no".into()]);
            api.post(&path, headers([STREAMING, WITH_PRELUDE]), answer).await
        }
        "hang" => std::future::pending().await,
        "hang-on" => {
            let payload = payload.collect().await.unwrap().to_bytes();
            if payload == with {
                println!("hanging");
                std::future::pending::<()>().await;
            }
            api.post(&path, HeaderMap::new(), parts([std::process::id().to_string().into()])).await
        }
        "crash" => {
            eprintln!("crashing");
            exit(9);
        }
        "large" => api.post(&path, HeaderMap::new(), parts([vec![0; with.parse().unwrap()].into()])).await,
        "lines" => {
            let lines = (0..with.parse().unwrap()).map(|line: u32| Bytes::from(format!("{line}\n")));
            api.post(&path, headers([STREAMING]), parts(lines.collect::<Vec<_>>())).await
        }
        "stall" => {
            let answer = stream::iter([first]).chain(stream::pending());
            api.post(&path, headers([STREAMING]), streamed(answer)).await
        }
        "break-off" => {
            let document = "eyJlcnJvck1lc3NhZ2UiOiAibm8gbW9yZSIsICJlcnJvclR5cGUiOiAiRW1wdHkifQ==";
            let type_and_body =
                [("lambda-runtime-function-error-type", "Empty"), ("lambda-runtime-function-error-body", document)];
            let frames = [Ok(Frame::data(first)), Ok(Frame::trailers(headers(type_and_body)))];
            let mut head = headers([STREAMING]);
            for (name, _) in type_and_body {
                head.append(TRAILER, HeaderValue::from_static(name));
            }
            api.post(&path, head, StreamBody::new(stream::iter(frames).boxed())).await
        }
        "crash-in-the-middle" => {
            let answer = stream::iter([first]).chain(stream::once(async {
                // What was sent is on its way once the task has been given back to the runtime.
                tokio::task::yield_now().await;
                exit(9)
            }));
            api.post(&path, headers([STREAMING]), streamed(answer)).await
        }
        "log" => {
            println!("{with}");
            api.post(&path, HeaderMap::new(), parts([])).await
        }
        _ => {
            let content_type = HeaderMap::from_iter([(CONTENT_TYPE, told[CONTENT_TYPE].clone())]);
            // The API has no empty payload: one is told as `{}`.
            let is_empty = |part: &Bytes| &part[..] == b"{}";
            let echoed = payload.into_data_stream().map(|part| part.unwrap()).filter(move |part| {
                let keep = !is_empty(part);
                async move { keep }
            });
            api.post(&path, content_type, streamed(echoed)).await
        }
    }
}

fn tell(id: &str, told: &HeaderMap) -> String {
    let (invocation, attempt) = id.rsplit_once('-').unwrap();
    let trace = told["lambda-runtime-trace-id"].to_str().unwrap();
    let mut parts = trace.split(';').map(|part| part.split_once('=').unwrap().1);
    let (root, parent, sampled) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
    let trace = root.strip_prefix("1-").unwrap().replace('-', "");
    serde_json::json!({
        "invocation_id": invocation,
        "attempt": attempt,
        "traceparent": format!("00-{trace}-{parent}-0{sampled}"),
        "deadline_ms": told["lambda-runtime-deadline-ms"].to_str().unwrap(),
    })
    .to_string()
}
