//! Logs as JSON lines, as text, or as server-sent events.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Body;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use function_gateway_core::{BoxStream, Error, LogLine, Result};
use futures_util::{Stream, StreamExt as _, stream};
use http::header::{self, HeaderMap, HeaderValue};
use serde::Serialize;

use crate::document::LogLineDocument;
use crate::envelope::StreamId;
use crate::problem::Problem;

pub(super) const JSON_LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
/// So that proxies do not take a silent stream for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

fn wants_events(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|media| media.trim().starts_with("text/event-stream"))
}

/// The log of a function.
pub(super) fn lines(lines: BoxStream<'static, Result<LogLine>>, headers: &HeaderMap) -> Response {
    let lines = lines.map(|line| line.map(LogLineDocument::from));
    if wants_events(headers) {
        return events(lines);
    }
    json_lines(lines.map(|line| line.map(|line| Bytes::from(json_line(&line)))))
}

/// The log of an execution.
pub(super) fn chunks(chunks: BoxStream<'static, Result<Bytes>>, headers: &HeaderMap) -> Response {
    if wants_events(headers) {
        return events(Text { chunks, rest: Vec::new() }.into_stream());
    }
    let mut response = Response::new(Body::from_stream(chunks));
    response.headers_mut().insert(header::CONTENT_TYPE, TEXT);
    response
}

/// An answer of JSON lines.
pub(super) fn json_lines(lines: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(lines));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON_LINES);
    response
}

pub(super) fn json_line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).unwrap_or_default();
    line.push(b'\n');
    line
}

/// A piece of an execution's log.
#[derive(Serialize)]
struct Piece {
    text: String,
}

/// Chunks as text, of which none ends within a character.
struct Text {
    chunks: BoxStream<'static, Result<Bytes>>,
    rest: Vec<u8>,
}

impl Text {
    fn into_stream(self) -> impl Stream<Item = Result<Piece>> + Send + 'static {
        stream::unfold(Some(self), |this| async move {
            let mut this = this?;
            loop {
                match this.chunks.next().await {
                    Some(Ok(chunk)) => {
                        this.rest.extend_from_slice(&chunk);
                        let whole = whole_characters(&this.rest);
                        if whole == 0 {
                            continue;
                        }
                        let piece: Vec<u8> = this.rest.drain(..whole).collect();
                        return Some((Ok(Piece { text: String::from_utf8_lossy(&piece).into_owned() }), Some(this)));
                    }
                    Some(Err(error)) => return Some((Err(error), None)),
                    None if this.rest.is_empty() => return None,
                    None => return Some((Ok(Piece { text: String::from_utf8_lossy(&this.rest).into_owned() }), None)),
                }
            }
        })
    }
}

/// How many bytes there are without a character at the end of which a part is still to come.
fn whole_characters(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        Err(error) if error.error_len().is_none() => error.valid_up_to(),
        // Not UTF-8 at all somewhere: only its end can be incomplete.
        Err(_) => {
            let tail = bytes.iter().rev().take(3).position(|byte| *byte >= 0xC0).map_or(0, |back| back + 1);
            let start = bytes.len() - tail;
            match std::str::from_utf8(bytes.get(start..).unwrap_or_default()) {
                Err(error) if error.error_len().is_none() => start,
                _ => bytes.len(),
            }
        }
    }
}

/// Server-sent events: one of the name `log` for each item, then `end`, or `error` where the log breaks off.
fn events<T: Serialize + 'static>(items: impl Stream<Item = Result<T>> + Send + 'static) -> Response {
    let id = StreamId::default();
    let events = stream::unfold(Some((Box::pin(items), id.clone())), |state| async move {
        let (mut items, id) = state?;
        let (event, state) = match items.next().await {
            Some(Ok(item)) => (named("log", &item), Some((items, id))),
            Some(Err(error)) => (broken(error, &id), None),
            None => (Event::default().event("end").data("{}"), None),
        };
        Some((Ok::<_, Infallible>(event), state))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    response.extensions_mut().insert(id);
    response
}

fn named(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}

fn broken(error: Error, id: &StreamId) -> Event {
    let mut problem = Problem::from(error);
    problem.document().request_id = id.get().to_owned();
    named("error", &problem.into_document())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::get;
    use function_gateway_core::ErrorKind;
    use tower::ServiceExt as _;

    use super::*;

    /// The events of a log, as the client of a request gets them.
    async fn events_of(items: impl Fn() -> Vec<Result<&'static str>> + Clone + Send + Sync + 'static) -> String {
        let log = async move || events(stream::iter(items()));
        let router = Router::new().route("/", get(log)).layer(axum::middleware::from_fn(crate::envelope::envelope));
        let request = http::Request::get("/").header("x-request-id", "mine-7").body(Body::empty()).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let bytes = axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_log_that_breaks_off_says_so_at_its_end() {
        let lost = || Error::new(ErrorKind::FunctionBroken, "the engine is gone");
        let events = events_of(move || vec![Ok("one"), Err(lost()), Ok("two")]).await;
        let names: Vec<_> = events.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
        assert_eq!(names, ["log", "error"], "{events}");
        let error = events.lines().rfind(|line| line.starts_with("data: ")).unwrap();
        let problem: serde_json::Value = serde_json::from_str(&error["data: ".len()..]).unwrap();
        assert_eq!((&problem["request_id"], &problem["code"]), (&"mine-7".into(), &"function_broken".into()));
    }

    #[tokio::test]
    async fn a_log_that_ends_says_so() {
        let events = events_of(|| vec![Ok("one")]).await;
        assert_eq!(events, "event: log\ndata: \"one\"\n\nevent: end\ndata: {}\n\n");
    }

    #[test]
    fn no_character_is_cut_in_two() {
        for (bytes, whole) in [
            (&b"abc"[..], 3),
            ("aé".as_bytes(), 3),
            (&"aé".as_bytes()[..2], 1),
            (&"€".as_bytes()[..2], 0),
            (&[0xFF, b'a', 0xC3], 2),
            (&[0xFF, 0xFF], 2),
            (&[0x80, 0x80, 0x80, 0x80], 4),
        ] {
            assert_eq!(whole_characters(bytes), whole, "{bytes:?}");
        }
    }
}
