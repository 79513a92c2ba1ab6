//! What the functions of the tests do: by a text, which real images are told too.

use std::collections::BTreeMap;
use std::io;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use function_gateway_testkit::Behaviour;
use futures_util::{StreamExt as _, stream};
use serde_json::json;

use super::Shared;
use super::server::{cut, json_answer};

/// How a behaviour is told to the image.
pub(super) fn text(behaviour: &Behaviour) -> Option<String> {
    Some(match behaviour {
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
        _ => return None,
    })
}

/// Counts a call as running until it is dropped.
pub(super) struct Running {
    revision: String,
    shared: Shared,
}

impl Running {
    pub(super) fn begin(shared: &Shared, revision: &str) -> Self {
        if let Some(instance) = shared.state().instances.get_mut(revision) {
            instance.running += 1;
        }
        Self { revision: revision.to_owned(), shared: shared.clone() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(instance) = self.shared.state().instances.get_mut(&self.revision) {
            instance.running = instance.running.saturating_sub(1);
        }
    }
}

/// A function that is called.
pub(super) struct Called {
    pub(super) env: BTreeMap<String, Vec<u8>>,
    pub(super) head: http::request::Parts,
    pub(super) running: Running,
    pub(super) stop: tokio_util::sync::CancellationToken,
}

impl Called {
    /// What the function makes of a call.
    pub(super) async fn execute(self, body: Body) -> Response {
        let Self { env, head, running, stop } = self;
        let behaviour = env.get("BEHAVIOUR").map_or("echo".into(), |text| String::from_utf8_lossy(text).into_owned());
        let (behaviour, argument) = behaviour.split_once(':').unwrap_or((behaviour.as_str(), ""));
        let own = |status: u16, body: Body| {
            let mut answer = Response::new(body);
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            answer
        };
        let shared = running.shared.clone();
        let revision = running.revision.clone();
        // The call runs as long as its answer is read.
        let mut running = Some(running);
        let mut stream = |parts: stream::BoxStream<'static, io::Result<Bytes>>| {
            let (ended, broken, running) = (stop.clone(), stop.clone(), running.take());
            let stopped = async move { ended.cancelled().await };
            // Who is stopped breaks off.
            let broken = stream::once(async move { broken.is_cancelled().then(|| Err(io::Error::other("stopped"))) });
            let parts = parts.take_until(stopped).chain(broken.filter_map(std::future::ready));
            own(
                200,
                Body::from_stream(parts.inspect(move |_| {
                    let _ = &running;
                })),
            )
        };
        match behaviour {
            "echo" => {
                let parts = body.into_data_stream().map(|part| part.map_err(io::Error::other)).boxed();
                let mut answer = stream(parts);
                if let Some(content_type) = head.headers.get(header::CONTENT_TYPE) {
                    answer.headers_mut().insert(header::CONTENT_TYPE, content_type.clone());
                }
                answer
            }
            "variable" => match env.get(argument) {
                Some(value) => own(200, Body::from(value.clone())),
                None => own(500, Body::from("no such variable")),
            },
            "tell" => {
                let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
                let all = head.headers.iter();
                let all = all.map(|(name, value)| (name.to_string(), json!(value.to_str().unwrap_or_default())));
                let told = json!({
                    "method": head.method.as_str(),
                    "path": head.uri.path(),
                    "query": head.uri.query(),
                    "invocation_id": header("x-function-invocation-id"),
                    "traceparent": header("traceparent"),
                    "attempt": header("x-function-attempt"),
                    "deadline_ms": header("x-function-deadline-ms"),
                    "headers": all.collect::<serde_json::Map<_, _>>(),
                });
                json_answer(200, &told)
            }
            "fail" => own(500, Body::from("it failed")),
            "reject" => own(422, Body::from("not so")),
            "status" => {
                let mut answer = own(argument.parse().unwrap(), Body::from(format!("function says {argument}")));
                let headers = answer.headers_mut();
                for (name, value) in [("location", "/elsewhere"), ("connection", "x-hop"), ("x-hop", "1")] {
                    headers.insert(name, HeaderValue::from_static(value));
                }
                answer
            }
            // As Go's `http.Error` writes it, and so as Knative's own proxies do.
            "text" => {
                let (status, text) = argument.split_once(':').unwrap();
                super::server::plain(status.parse().unwrap(), text)
            }
            "hang" => {
                drop(axum::body::to_bytes(body, usize::MAX).await);
                stop.cancelled().await;
                own(502, Body::empty())
            }
            "large" => own(200, Body::from(vec![b'x'; argument.parse().unwrap()])),
            "lines" => {
                let lines = 0..argument.parse::<u32>().unwrap();
                stream(stream::iter(lines).map(|line| Ok(Bytes::from(format!("{line}\n")))).boxed())
            }
            "stall" => stream(first().chain(stream::pending()).boxed()),
            "break-off" => stream(first().chain(cut()).boxed()),
            "log" => {
                shared.state().log(&revision, argument);
                own(200, Body::from("logged"))
            }
            other => own(500, Body::from(format!("no behaviour {other:?}"))),
        }
    }
}

fn first() -> impl futures_util::Stream<Item = io::Result<Bytes>> + Send {
    stream::iter([Ok(Bytes::from_static(b"first"))])
}

impl super::State {
    fn log(&mut self, revision: &str, text: &str) {
        self.lines += 1;
        let at = format!("2026-11-24T00:45:27.{:06}000Z", self.lines);
        if let Some(instance) = self.instances.get_mut(revision) {
            instance.lines.push((at, text.to_owned()));
        }
        self.tell();
    }
}
