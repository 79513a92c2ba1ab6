//! For authors of drivers whose engine is reached by HTTP: what passing a call on has in common, whichever client does it.
//!
//! None of it knows an engine or, but for the feature `http-client`, a client. A driver with one of its own turns its answers into
//! [`Chunks`] and its failures into [`Broken`]; what it makes of statuses and headers is its own.

#[cfg(feature = "http-client")]
mod client;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, Method, header};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

#[cfg(feature = "http-client")]
pub use self::client::{HttpAnswer, HttpClient, HttpClientOptions, HttpVersion};
use crate::driver::{is_told, tell_call};
use crate::{
    Body, ByteStream, CallContext, Delivery, DriverRequest, Error, ErrorKind, Result, Retry, for_one_hop_without,
};

// What is sent

/// Checks the path and the query of a call, and gives the path as it is to be written into a URL.
///
/// A path is refused that has an empty part, `.` or `..`, also where they are encoded: proxies answer it with a redirect to a
/// cleaned one, so that the payload is lost, and `..` would leave the function.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`], which says what is wrong.
pub fn wire_path<'a>(path: &'a str, query: Option<&str>) -> Result<Cow<'a, str>> {
    let invalid = |reason: &'static str| Error::new(ErrorKind::InvalidArgument, reason);
    if query.is_some_and(|query| query.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#')) {
        return Err(invalid("the query holds a sign that no query can hold"));
    }
    if path.is_empty() {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || matches!(byte, 0x7f | b'?' | b'#')) {
        return Err(invalid("the path holds a sign that no path can hold"));
    }
    let plain = !path.contains(['%', '\\']) && !path.contains("//") && !path.contains("/.");
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    // Proxies look at what is decoded.
    let decoded = percent_decoded(path);
    let mut segments = decoded.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let unclean = matches!(segment, b"." | b"..") || (segment.is_empty() && segments.peek().is_some());
        if unclean {
            return Err(invalid("the path has an empty part, `.` or `..`, which the engine does not pass on"));
        }
    }
    // A URL takes it for a slash.
    Ok(path.replace('\\', "%5C").into())
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

/// The headers that are sent on: the caller's without what concerns its own connection and its own form of the payload, and those
/// of [`set_call_headers`](crate::set_call_headers).
#[must_use]
pub fn wire_headers(cx: &CallContext, mut headers: HeaderMap) -> HeaderMap {
    for_one_hop_without(&mut headers, |name| matches!(name, "content-length" | "expect" | "host") || is_told(name));
    tell_call(cx, &mut headers);
    headers
}

/// Refuses what an engine may execute twice by itself, for a function that does not take that. `setting` is the driver's, by which
/// one says that it does.
///
/// HTTP clients send `GET`, `HEAD`, `OPTIONS` and `TRACE` again where a connection that was kept dies under them. The path of
/// readiness is asked again and again anyway.
///
/// # Errors
/// [`ErrorKind::Unsupported`], which names the setting.
pub fn check_repeats(request: &DriverRequest, accepts: bool, setting: &str) -> Result<()> {
    if !matches!(request.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE) || accepts {
        return Ok(());
    }
    let probes = request.method == Method::GET
        && request.query.is_none()
        && request.revision.spec.readiness_path.as_deref().is_some_and(|path| path == request.path);
    if probes || request.revision.spec.idempotent {
        return Ok(());
    }
    let method = &request.method;
    let reason =
        format!("the engine may execute {method} twice, and the function is not declared idempotent: see {setting}");
    Err(Error::new(ErrorKind::Unsupported, reason).with_operation("invoke"))
}

/// A payload as it is sent.
pub enum Payload {
    /// All of it; empty for none.
    Bytes(Bytes),
    /// As it comes.
    Stream {
        /// Its parts.
        stream: ByteStream,
        /// How many bytes come in all, where that is known: functions that don't take chunks get a length then.
        len: Option<u64>,
    },
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "Payload({} bytes)", bytes.len()),
            Self::Stream { .. } => f.write_str("Payload(stream)"),
        }
    }
}

/// Where a payload's own error is found, should it break off: a client only says that the request failed.
#[derive(Debug, Clone)]
pub struct PayloadError(Arc<Mutex<Option<Error>>>);

impl PayloadError {
    /// Takes the error, if it was the payload that broke off. Part of it may have reached the function.
    #[must_use]
    pub fn take(&self) -> Option<Error> {
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let delivery = own.delivery().max(Delivery::Unknown);
        Some(own.with_delivery(delivery))
    }
}

impl Payload {
    /// A body as it is sent, and where its own error is found; only a stream has one.
    #[must_use]
    pub fn of(body: Body) -> (Self, Option<PayloadError>) {
        if let Some(bytes) = body.as_bytes() {
            return (Self::Bytes(bytes.clone()), None);
        }
        let broke = PayloadError(Arc::default());
        let slot = Arc::clone(&broke.0);
        let (stream, len) = sent_stream(body);
        let stream = stream.inspect(move |chunk| {
            if let Err(error) = chunk {
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
            }
        });
        (Self::Stream { stream: Box::pin(stream), len }, Some(broke))
    }
}

/// A payload as a stream to be sent, and its length where that is known. It has to be as long as was said: other than that it ends
/// with [`ErrorKind::InvalidArgument`].
///
/// An HTTP client asks for nothing more once it has all bytes that it has announced. So the last of them come with the end of the
/// stream behind them: whoever watches that sees it complete.
#[must_use]
pub fn sent_stream(body: Body) -> (ByteStream, Option<u64>) {
    let (len, stream) = (body.len(), body.into_stream());
    let stream = match len {
        Some(len) => exactly(stream, len),
        None => stream,
    };
    (stream, len)
}

fn exactly(stream: ByteStream, len: u64) -> ByteStream {
    let wrong = move |so_far: &str| {
        let reason = format!("the payload was said to have {len} bytes, and has {so_far}");
        Some((Err(Error::new(ErrorKind::InvalidArgument, reason)), None))
    };
    Box::pin(stream::unfold(Some((stream, 0)), move |state| async move {
        let (mut stream, read) = state?;
        let chunk = match stream.next().await {
            Some(Ok(chunk)) => chunk,
            Some(Err(error)) => return Some((Err(error), None)),
            None if read < len => return wrong(&read.to_string()),
            None => return None,
        };
        let read = grown(read, &chunk);
        if read < len {
            return Some((Ok(chunk), Some((stream, read))));
        }
        if read > len {
            return wrong("more");
        }
        loop {
            match stream.next().await {
                Some(Ok(more)) if more.is_empty() => {}
                Some(Ok(_)) => return wrong("more"),
                Some(Err(error)) => return Some((Err(error), None)),
                None => return Some((Ok(chunk), None)),
            }
        }
    }))
}

// What comes back

/// An answer of a function, part by part.
pub trait Chunks: Send + 'static {
    /// The next part; `None` at the end. An answer that breaks off is an error.
    fn chunk(&mut self) -> impl Future<Output = Result<Option<Bytes>>> + Send;
}

fn too_large(limit: u64) -> Error {
    Error::too_large(ErrorKind::OutputTooLarge, "function's answer", limit)
}

fn grown(read: u64, chunk: &Bytes) -> u64 {
    read.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX))
}

/// Reads an answer whole. One that comes in one part is not copied.
///
/// # Errors
/// The answer's own, and [`ErrorKind::OutputTooLarge`] once more than `limit` bytes have come.
pub async fn collected(mut chunks: impl Chunks, limit: u64) -> Result<Bytes> {
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    let mut read = 0;
    while let Some(chunk) = chunks.chunk().await? {
        read = grown(read, &chunk);
        if read > limit {
            return Err(too_large(limit));
        }
        match &mut rest {
            Some(rest) => rest.extend_from_slice(&chunk),
            None if first.is_empty() => first = chunk,
            None => {
                let mut joined = BytesMut::with_capacity(first.len() + chunk.len());
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&chunk);
                rest = Some(joined);
            }
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

/// An answer as it comes, as long as it is `declared` to be. It ends with an error where it breaks off, grows past `limit`, or the
/// driver is shut down, and holds its call until then.
pub fn streamed(chunks: impl Chunks, declared: Option<u64>, limit: u64, call: RunningCall) -> Body {
    let state = Some((chunks, 0_u64, call));
    let stream = stream::unfold(state, move |state| async move {
        let (mut chunks, read, call) = state?;
        let chunk = tokio::select! {
            biased;
            chunk = chunks.chunk() => chunk,
            () = call.stop.cancelled() => return Some((Err(stopped(Delivery::Executed)), None)),
        };
        match chunk.transpose()? {
            Ok(chunk) => {
                let read = grown(read, &chunk);
                if read > limit {
                    return Some((Err(too_large(limit)), None));
                }
                Some((Ok(chunk), Some((chunks, read, call))))
            }
            Err(error) => Some((Err(error), None)),
        }
    });
    let body = Body::from_stream(stream);
    match declared {
        Some(declared) => body.with_declared_len(declared),
        None => body,
    }
}

// Calls and shutdown

/// The calls that a driver is passing on.
#[derive(Debug, Default)]
pub struct Calls {
    running: TaskTracker,
    stop: CancellationToken,
}

/// A call that goes on until this is dropped.
#[derive(Debug)]
pub struct RunningCall {
    stop: CancellationToken,
    /// Tells a shutdown that the call goes on.
    _token: TaskTrackerToken,
}

impl RunningCall {
    /// What ends the call from outside, for [`until_stopped`].
    #[must_use]
    pub fn stop_signal(&self) -> StopSignal {
        StopSignal(self.stop.clone())
    }
}

/// Says when a call has to end since its driver is shut down.
#[derive(Debug, Clone)]
pub struct StopSignal(CancellationToken);

/// How long a shutdown waits for calls that it has stopped.
const STOP_GRACE: Duration = Duration::from_secs(1);

fn stopped(delivery: Delivery) -> Error {
    Error::new(ErrorKind::Cancelled, "the gateway's driver was shut down").with_delivery(delivery)
}

impl Calls {
    /// Whether a shutdown has begun.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.running.is_closed()
    }

    /// Refuses what comes after a shutdown has begun.
    ///
    /// # Errors
    /// [`ErrorKind::ShuttingDown`].
    pub fn check_open(&self) -> Result<()> {
        match self.is_closed() {
            true => Err(Error::new(ErrorKind::ShuttingDown, "the driver is shutting down")),
            false => Ok(()),
        }
    }

    /// Begins a call.
    ///
    /// # Errors
    /// [`ErrorKind::ShuttingDown`].
    pub fn begin(&self) -> Result<RunningCall> {
        // The token comes first: a shutdown that is not seen yet then waits for it.
        let call = RunningCall { _token: self.running.token(), stop: self.stop.clone() };
        self.check_open()?;
        Ok(call)
    }

    /// Takes no more calls, waits for those that run until the deadline, and stops the rest.
    ///
    /// # Errors
    /// [`ErrorKind::Engine`] where answers are still held that nobody reads.
    pub async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.running.close();
        if tokio::time::timeout_at(deadline.into(), self.running.wait()).await.is_ok() {
            return Ok(());
        }
        self.stop.cancel();
        tokio::time::timeout(STOP_GRACE, self.running.wait()).await.map_err(|_| {
            let message = "answers that nobody reads are still held";
            Error::new(ErrorKind::Engine, message).with_context("still_running", self.running.len().to_string())
        })
    }
}

/// Does a call until its driver is shut down.
///
/// # Errors
/// The work's own, and [`ErrorKind::Cancelled`] at a shutdown.
pub async fn until_stopped<T>(stop: &StopSignal, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        biased;
        done = work => done,
        () = stop.0.cancelled() => Err(stopped(Delivery::Unknown)),
    }
}

// What goes wrong

/// An error that an answer of an engine stands for: a row of a driver's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// What kind of failure it is.
    pub kind: ErrorKind,
    /// Whether the function can have seen the call.
    pub delivery: Delivery,
    /// Whether trying again may help.
    pub retry: Retry,
    /// What it means, for any client.
    pub message: &'static str,
}

/// How long to wait before a call is worth another try that the engine had no room for.
const ROOM_AFTER: Duration = Duration::from_millis(100);

impl Fault {
    /// Describes a failure.
    #[must_use]
    pub const fn new(kind: ErrorKind, delivery: Delivery, retry: Retry, message: &'static str) -> Self {
        Self { kind, delivery, retry, message }
    }

    /// The error, with the engine's own words for the operators only.
    #[must_use]
    pub fn error(self, status: u16, headers: &HeaderMap, text: &str) -> Error {
        let error = Error::new(self.kind, self.message)
            .with_delivery(self.delivery)
            .with_retry(self.retry)
            .with_context("engine_status", status.to_string())
            .with_detail(one_line(text));
        if self.kind == ErrorKind::DeadlineExceeded {
            return error.with_context("timeout", "engine");
        }
        if self.kind == ErrorKind::Unavailable && self.delivery == Delivery::NotSent {
            return error.with_retry_after(retry_after(headers).unwrap_or(ROOM_AFTER));
        }
        error
    }
}

/// How far a request had come when it failed without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// There was no connection.
    NotConnected,
    /// The time for it ran out.
    TimedOut,
    /// It could not be written as a request.
    NotWritten,
    /// All else: closed or reset once it had been begun.
    Midway,
}

impl Broken {
    /// What it stands for.
    #[must_use]
    pub fn fault(self) -> Fault {
        use Delivery::{NotSent, Unknown};
        use ErrorKind::{InvalidArgument, Unavailable};
        use Retry::{Never, Transient};

        let (kind, delivery, retry, message) = match self {
            Self::NotConnected => (Unavailable, NotSent, Transient, "the engine can't be connected to"),
            Self::TimedOut => (Unavailable, Unknown, Transient, "the engine did not answer in time"),
            Self::NotWritten => {
                (InvalidArgument, NotSent, Never, "the call can't be written as a request to the engine")
            }
            Self::Midway => {
                (Unavailable, Unknown, Transient, "the connection to the engine broke before it had answered")
            }
        };
        Fault { kind, delivery, retry, message }
    }

    /// The error, with what the client says as its source. That must not show a URL, which may hold what belongs to the caller.
    #[must_use]
    pub fn error(self, source: impl StdError + Send + Sync + 'static) -> Error {
        let Fault { kind, delivery, retry, message } = self.fault();
        Error::new(kind, message).with_delivery(delivery).with_retry(retry).with_source(source)
    }
}

/// `Retry-After` in seconds (RFC 9110, section 10.2.3).
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// What an engine says, in one line of bounded length.
#[must_use]
pub fn one_line(text: &str) -> String {
    const MAX: usize = 400;
    let text = text.trim();
    let line: String = text.chars().map(|sign| if sign.is_control() { ' ' } else { sign }).take(MAX).collect();
    if text.chars().nth(MAX).is_some() { format!("{line}…") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Parts(std::vec::IntoIter<Result<&'static str>>);

    impl Chunks for Parts {
        async fn chunk(&mut self) -> Result<Option<Bytes>> {
            self.0.next().transpose().map(|part| part.map(|part| Bytes::from_static(part.as_bytes())))
        }
    }

    fn parts(parts: &[&'static str]) -> Parts {
        Parts(parts.iter().map(|part| Ok(*part)).collect::<Vec<_>>().into_iter())
    }

    #[test]
    fn a_path_passes_as_it_came_or_is_refused() {
        for path in ["", "/", "/a", "/a/", "/a%20b/c", "/sub/path/", "/.well-known/x", "/a%2Fb", "/..a", "/%zz", "/a~b"]
        {
            assert_eq!(wire_path(path, None).unwrap(), path);
        }
        assert_eq!(wire_path("/a\\..\\b", None).unwrap(), "/a%5C..%5Cb");
        for path in
            ["//", "//a", "/a//b", "/..", "/../x", "/a/./b", "/a/%2e%2E/b", "/%2Fa", "/a%2F..%2Fb", "a", "/a?b", "/a b"]
        {
            assert!(wire_path(path, None).is_err(), "{path}");
        }
        for (query, fits) in [("", true), ("a=b&c", true), ("a b", false), ("a#b", false)] {
            assert_eq!(wire_path("/", Some(query)).is_ok(), fits, "{query}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_bounded_whole_and_as_a_stream() {
        let calls = Calls::default();
        for (limit, fits) in [(5, true), (4, false)] {
            let whole = collected(parts(&["ab", "", "cde"]), limit).await;
            let stream = streamed(parts(&["ab", "", "cde"]), None, limit, calls.begin().unwrap()).collect(99).await;
            for read in [whole, stream] {
                match fits {
                    true => assert_eq!(read.unwrap(), "abcde"),
                    false => assert_eq!(read.unwrap_err().kind(), ErrorKind::OutputTooLarge),
                }
            }
        }
        assert_eq!(collected(parts(&[]), 0).await.unwrap(), "");
        assert_eq!(streamed(parts(&[]), Some(7), 9, calls.begin().unwrap()).len(), Some(7));
    }

    #[tokio::test]
    async fn a_shutdown_waits_for_a_stream_and_ends_it_at_its_deadline() {
        struct Silent;
        impl Chunks for Silent {
            async fn chunk(&mut self) -> Result<Option<Bytes>> {
                std::future::pending().await
            }
        }
        let calls = Calls::default();
        let silent = streamed(Silent, None, 9, calls.begin().unwrap());
        let (read, ended) = tokio::join!(silent.collect(9), calls.shutdown(Instant::now()));
        let error = read.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Cancelled, Delivery::Executed));
        ended.unwrap();
        assert_eq!(calls.begin().unwrap_err().kind(), ErrorKind::ShuttingDown);
    }

    #[tokio::test]
    async fn the_error_of_a_payload_is_kept_and_may_have_been_delivered() {
        let broken = Body::from_stream(stream::iter([Err(Error::new(ErrorKind::RequestTimeout, "slow"))]));
        let (Payload::Stream { mut stream, len: None }, Some(broke)) = Payload::of(broken) else {
            panic!("a stream is bytes, or of a known length")
        };
        assert!(broke.take().is_none());
        assert!(stream.next().await.unwrap().is_err());
        let error = broke.take().unwrap();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::RequestTimeout, Delivery::Unknown));
        assert!(matches!(Payload::of(Body::from("x")), (Payload::Bytes(_), None)));
    }

    #[tokio::test]
    async fn a_payload_is_as_long_as_was_said() {
        let of = |parts: &[&'static str], len| {
            let parts: Vec<_> = parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes()))).collect();
            exactly(Box::pin(stream::iter(parts)), len)
        };
        for (parts, len, expected) in [
            (&["ab", "c", ""][..], 3, Some("abc")),
            (&[], 0, Some("")),
            (&["ab"], 3, None),
            (&["ab", "cd"], 3, None),
            (&["ab", "cd"], 2, None),
        ] {
            let read: Result<Vec<_>> = of(parts, len).collect::<Vec<_>>().await.into_iter().collect();
            match expected {
                Some(expected) => assert_eq!(read.unwrap().concat(), expected.as_bytes()),
                None => assert_eq!(read.unwrap_err().kind(), ErrorKind::InvalidArgument),
            }
        }
        // Nobody asks for more than what was announced.
        let watched = Arc::new(Mutex::new(false));
        let seen = Arc::clone(&watched);
        let end = stream::once(async move {
            *seen.lock().unwrap() = true;
            Ok(Bytes::new())
        });
        let mut exact = exactly(Box::pin(stream::iter([Ok(Bytes::from("ab"))]).chain(end)), 2);
        assert_eq!(exact.next().await.unwrap().unwrap(), "ab");
        assert!(*watched.lock().unwrap());
    }

    #[test]
    fn every_way_to_break() {
        for (broken, expected) in [
            (Broken::NotConnected, (ErrorKind::Unavailable, Delivery::NotSent, Retry::Transient)),
            (Broken::TimedOut, (ErrorKind::Unavailable, Delivery::Unknown, Retry::Transient)),
            (Broken::NotWritten, (ErrorKind::InvalidArgument, Delivery::NotSent, Retry::Never)),
            (Broken::Midway, (ErrorKind::Unavailable, Delivery::Unknown, Retry::Transient)),
        ] {
            let error = broken.error(std::io::Error::other("inside"));
            assert_eq!((error.kind(), error.delivery(), error.retry()), expected);
            assert!(!error.to_string().contains("inside"));
        }
    }

    #[test]
    fn what_an_engine_says_is_one_line() {
        assert_eq!(one_line(&"a".repeat(500)).chars().count(), 401);
        assert_eq!(one_line("a\tb\n"), "a b");
    }
}
