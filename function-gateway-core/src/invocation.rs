//! One execution on its way: what is asked, what is answered, and what the layers share about it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Shared;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::body::Closing;
use crate::secret::StreamRedactor;
use crate::time::monotonic_now;
use crate::{
    Body, BoxStream, CallContext, Deadline, Error, ErrorClass, ErrorKind, InvocationId, InvocationRecord, KeptBytes,
    Lineage, Redactor, Result, Revision, Secret, SecretRef, Timestamp,
};

/// The media type of JSON.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a caller asks of a function.
///
/// ```
/// use function_gateway_core::InvokeRequest;
///
/// let request = InvokeRequest::json(&serde_json::json!({"width": 64}))?.with_path("/resize").with_query("fast=1");
/// assert_eq!(request.headers["content-type"], "application/json");
/// # Ok::<_, function_gateway_core::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct InvokeRequest {
    /// The method; `POST` unless set.
    pub method: Method,
    /// The path below the function, raw as in the request line, starting with `/`; empty for none.
    pub path: Cow<'static, str>,
    /// The query, raw, without `?`.
    pub query: Option<String>,
    /// The headers, `content-type` among them.
    pub headers: HeaderMap,
    /// The payload.
    pub body: Body,
    /// Narrows the secrets that the function gets in this call. All must be listed in its specification.
    pub secrets: Option<BTreeSet<SecretRef>>,
    /// Tells that two requests are one: the same key for the same function gives the first one's answer, as long as that is
    /// kept, in place of a second execution. At most 255 bytes.
    pub idempotency_key: Option<String>,
    /// Data of the host's for its own middleware.
    pub extensions: http::Extensions,
}

impl InvokeRequest {
    /// A request with a payload of any kind.
    #[must_use]
    pub fn new(body: impl Into<Body>) -> Self {
        Self {
            method: Method::POST,
            path: Cow::Borrowed(""),
            query: None,
            headers: HeaderMap::new(),
            body: body.into(),
            secrets: None,
            idempotency_key: None,
            extensions: http::Extensions::new(),
        }
    }

    /// A request with a value as JSON.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the value can't be written as JSON.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let body = serde_json::to_vec(value).map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, "the payload can't be written as JSON").with_source(error)
        })?;
        Ok(Self::new(body).with_header(CONTENT_TYPE, JSON))
    }

    /// Sets the method.
    #[must_use]
    pub fn with_method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    /// Sets the path below the function.
    #[must_use]
    pub fn with_path(mut self, path: impl Into<Cow<'static, str>>) -> Self {
        self.path = path.into();
        self
    }

    /// Sets the query.
    #[must_use]
    pub fn with_query(mut self, query: impl Into<String>) -> Self {
        self.query = Some(query.into());
        self
    }

    /// Sets a header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// Narrows the secrets that the function gets in this call.
    #[must_use]
    pub fn with_secrets(mut self, secrets: impl IntoIterator<Item = SecretRef>) -> Self {
        self.secrets = Some(secrets.into_iter().collect());
        self
    }

    /// Sets the key by which a repetition is told.
    #[must_use]
    pub fn with_idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }

    /// A second request like this one; `None` where the payload is a stream.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        Some(self.clone_with(self.body.try_clone()?))
    }

    pub(crate) fn clone_with(&self, body: Body) -> Self {
        Self {
            method: self.method.clone(),
            path: self.path.clone(),
            query: self.query.clone(),
            headers: self.headers.clone(),
            body,
            secrets: self.secrets.clone(),
            idempotency_key: self.idempotency_key.clone(),
            extensions: self.extensions.clone(),
        }
    }
}

/// What the function made of the call, as far as its answer tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// It did what was asked.
    Succeeded,
    /// It refused the call as the caller's mistake.
    Rejected,
    /// It failed.
    Failed(FunctionFailure),
}

impl Outcome {
    /// The one table from an HTTP status to an outcome: 5xx the function failed, 4xx it refused, else it succeeded.
    #[must_use]
    pub fn of_status(status: StatusCode) -> Self {
        if status.is_server_error() {
            Self::Failed(FunctionFailure::new(format!("the function answered {status}")))
        } else if status.is_client_error() {
            Self::Rejected
        } else {
            Self::Succeeded
        }
    }

    /// Whether the function did what was asked.
    #[must_use]
    pub fn is_success(&self) -> bool {
        *self == Self::Succeeded
    }

    /// Whose failure it is; `None` for success.
    #[must_use]
    pub fn class(&self) -> Option<ErrorClass> {
        match self {
            Self::Succeeded => None,
            Self::Rejected => Some(ErrorClass::Rejected),
            Self::Failed(_) => Some(ErrorClass::Function),
        }
    }
}

/// How a function failed, in its own words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FunctionFailure {
    /// What it says of it.
    pub message: String,
    /// What kind of failure it calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The exit status of its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_status: Option<i32>,
    /// The signal that ended its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
}

impl FunctionFailure {
    /// A failure with a message.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }
}

/// What a function answered. That includes its own errors: see [`outcome`](Self::outcome).
///
/// It is what the function said, secrets included, and is meant for the caller alone: its `Debug` shows no value of a
/// header and nothing of the body, and the function's own words only once it is known which secrets they may hold.
#[non_exhaustive]
pub struct InvokeResponse {
    /// The function's status; for a protocol without one, 200 for success and 500 for failure.
    pub status: StatusCode,
    /// The function's headers.
    pub headers: HeaderMap,
    /// What the function made of it. A stream may still break off, which its body then says.
    pub outcome: Outcome,
    /// The result.
    pub body: Body,
    /// The call's id and figures, filled in by the gateway.
    pub call: Option<Arc<CallState>>,
}

impl InvokeResponse {
    /// An answer whose outcome follows from its status.
    #[must_use]
    pub fn new(status: StatusCode, body: impl Into<Body>) -> Self {
        Self { status, headers: HeaderMap::new(), outcome: Outcome::of_status(status), body: body.into(), call: None }
    }

    /// A failure of a function whose protocol has no status.
    #[must_use]
    pub fn failed(failure: FunctionFailure, body: impl Into<Body>) -> Self {
        let mut response = Self::new(StatusCode::INTERNAL_SERVER_ERROR, body);
        response.outcome = Outcome::Failed(failure);
        response
    }

    /// Sets a header.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The id of the invocation that this answers.
    #[must_use]
    pub fn invocation_id(&self) -> Option<InvocationId> {
        self.call.as_ref().map(|call| call.id)
    }

    /// Reads the result as JSON, at most `limit` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOutput`] where it is no JSON or does not fit `T`; what reading the body gives.
    pub async fn json<T: DeserializeOwned>(self, limit: u64) -> Result<T> {
        let bytes = self.body.collect(limit).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let error = Error::new(ErrorKind::InvalidOutput, "the function's result is not the JSON that is expected")
                .with_source(error);
            // The parser's error cites the result.
            match &self.call {
                Some(call) => call.redactor().error(error),
                None => error,
            }
        })
    }
}

impl fmt::Debug for InvokeResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome: Cow<'_, str> = match (&self.outcome, &self.call) {
            (Outcome::Failed(_), None) => "Failed".into(),
            (outcome, None) => format!("{outcome:?}").into(),
            (outcome, Some(call)) => call.redactor().text(&format!("{outcome:?}")).into_owned().into(),
        };
        f.debug_struct("InvokeResponse")
            .field("status", &self.status)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("outcome", &format_args!("{outcome}"))
            .field("body", &self.body)
            .field("call", &self.call)
            .finish()
    }
}

/// A part of a call whose time is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TimedPhase {
    /// Waiting for a turn.
    Queue,
    /// Checking payload and result.
    Validate,
    /// Getting the call ready: secrets, headers.
    Prepare,
    /// In the driver, so in the engine and the function; all attempts together.
    Driver,
    /// Everything, until the body has ended.
    Total,
}

impl TimedPhase {
    /// Every phase.
    pub const ALL: [Self; 5] = [Self::Queue, Self::Validate, Self::Prepare, Self::Driver, Self::Total];

    /// The name in JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Validate => "validate",
            Self::Prepare => "prepare",
            Self::Driver => "driver",
            Self::Total => "total",
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Queue => 0,
            Self::Validate => 1,
            Self::Prepare => 2,
            Self::Driver => 3,
            Self::Total => 4,
        }
    }
}

/// The time that each phase took. A phase that did not occur has none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings([Option<Duration>; 5]);

impl Timings {
    /// The time of a phase.
    #[must_use]
    pub fn get(&self, phase: TimedPhase) -> Option<Duration> {
        self.0.get(phase.index()).copied().flatten()
    }

    /// Sets the time of a phase.
    pub fn set(&mut self, phase: TimedPhase, duration: Duration) {
        if let Some(slot) = self.0.get_mut(phase.index()) {
            *slot = Some(duration);
        }
    }
}

impl Serialize for Timings {
    /// A map from phase to microseconds.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let micros = |duration: Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let present = TimedPhase::ALL.into_iter().filter_map(|phase| Some((phase, micros(self.get(phase)?))));
        serializer.collect_map(present)
    }
}

impl<'de> Deserialize<'de> for Timings {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let present = std::collections::BTreeMap::<TimedPhase, u64>::deserialize(deserializer)?;
        let mut timings = Self::default();
        for (phase, micros) in present {
            timings.set(phase, Duration::from_micros(micros));
        }
        Ok(timings)
    }
}

/// What the layers of one call share: its id, its figures, its log and its redactor.
pub struct CallState {
    /// The id of the invocation.
    pub id: InvocationId,
    /// When the call came in.
    pub created_at: Timestamp,
    started: Instant,
    attempts: AtomicU32,
    first_sent_after: AtomicU64,
    timings: [AtomicU64; 5],
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
    served_by: Mutex<Option<Arc<Revision>>>,
    deadline: OnceLock<Deadline>,
    redactor: Redactor,
    log_limit: usize,
    logs: Mutex<LogBuffer>,
    /// Wakes those who follow the log; made by the first of them.
    log_changed: OnceLock<Notify>,
}

const ABSENT: u64 = u64::MAX;

impl CallState {
    /// The state of a call that comes in now, keeping at most `max_log_bytes` of its log.
    #[must_use]
    pub(crate) fn new(id: InvocationId, created_at: Timestamp, max_log_bytes: usize) -> Self {
        Self {
            id,
            created_at,
            started: monotonic_now(),
            attempts: AtomicU32::new(0),
            first_sent_after: AtomicU64::new(ABSENT),
            timings: [const { AtomicU64::new(ABSENT) }; 5],
            request_bytes: AtomicU64::new(ABSENT),
            response_bytes: AtomicU64::new(0),
            served_by: Mutex::new(None),
            deadline: OnceLock::new(),
            redactor: Redactor::new(),
            log_limit: max_log_bytes,
            logs: Mutex::default(),
            log_changed: OnceLock::new(),
        }
    }

    /// The state of a call that was accepted a while ago, and of which attempts were made before.
    pub(crate) fn resumed(
        (id, created_at): (InvocationId, Timestamp),
        waited: Duration,
        attempts: u32,
        max_log_bytes: usize,
    ) -> Self {
        let mut state = Self::new(id, created_at, max_log_bytes);
        state.started = state.started.checked_sub(waited).unwrap_or(state.started);
        state.attempts = AtomicU32::new(attempts);
        state.add_time(TimedPhase::Queue, waited);
        state
    }

    /// How long ago the call came in.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        monotonic_now().saturating_duration_since(self.started)
    }

    /// Adds time to a phase.
    pub fn add_time(&self, phase: TimedPhase, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(ABSENT - 1);
        if let Some(slot) = self.timings.get(phase.index()) {
            let before = slot.load(Ordering::Relaxed);
            let sum = if before == ABSENT { micros } else { before.saturating_add(micros).min(ABSENT - 1) };
            slot.store(sum, Ordering::Relaxed);
        }
    }

    /// The time of each phase so far.
    #[must_use]
    pub fn timings(&self) -> Timings {
        let mut timings = Timings::default();
        for (phase, slot) in TimedPhase::ALL.into_iter().zip(&self.timings) {
            let micros = slot.load(Ordering::Relaxed);
            if micros != ABSENT {
                timings.set(phase, Duration::from_micros(micros));
            }
        }
        timings
    }

    /// How many attempts were made.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Counts an attempt, and remembers when the first one began.
    pub(crate) fn count_attempt(&self, sent: Instant) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        if self.first_sent_after.load(Ordering::Relaxed) == ABSENT {
            let after = sent.saturating_duration_since(self.started);
            let micros = u64::try_from(after.as_micros()).unwrap_or(ABSENT - 1);
            self.first_sent_after.store(micros, Ordering::Relaxed);
        }
    }

    /// When the call was first handed to the driver.
    #[must_use]
    pub fn started_at(&self) -> Option<Timestamp> {
        let after = self.first_sent_after.load(Ordering::Relaxed);
        (after != ABSENT).then(|| self.created_at.plus(Duration::from_micros(after)))
    }

    /// Whether the function can have seen a call that has got no answer so far.
    pub(crate) fn delivery(&self) -> crate::Delivery {
        if self.started_at().is_none() { crate::Delivery::NotSent } else { crate::Delivery::Unknown }
    }

    /// The size of the payload, where it is known.
    #[must_use]
    pub fn request_bytes(&self) -> Option<u64> {
        Some(self.request_bytes.load(Ordering::Relaxed)).filter(|&bytes| bytes != ABSENT)
    }

    pub(crate) fn set_request_bytes(&self, bytes: u64) {
        self.request_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The size of the result so far.
    #[must_use]
    pub fn response_bytes(&self) -> u64 {
        self.response_bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn add_response_bytes(&self, bytes: usize) {
        self.response_bytes.fetch_add(u64::try_from(bytes).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The revision that the call was sent to last, where that is not the one it was routed to at first.
    pub(crate) fn served_by(&self) -> Option<Arc<Revision>> {
        self.served_by.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_served_by(&self, revision: Arc<Revision>) {
        *self.served_by.lock().unwrap_or_else(PoisonError::into_inner) = Some(revision);
    }

    /// By when the call as a whole has to be done, once it was handed to the driver.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        self.deadline.get().copied()
    }

    /// Remembers the deadline of the first attempt. One attempt's own may be earlier, but then there is no stream.
    pub(crate) fn set_deadline(&self, deadline: Deadline) {
        self.deadline.get_or_init(|| deadline);
    }

    /// The values that must not be stored or logged. Middleware that brings secrets into the call adds them.
    #[must_use]
    pub fn redactor(&self) -> &Redactor {
        &self.redactor
    }

    /// Closes the log, for good, and gives what is kept of it; `None` where nothing was written. Whoever follows it comes
    /// to its end.
    pub(crate) fn close_logs(&self) -> Option<KeptBytes> {
        let closed = {
            let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = logs.close(self.log_limit);
            let LogBuffer { seen, truncated, .. } = *logs;
            (seen > 0).then(|| KeptBytes { bytes, content_type: None, len: Some(seen), truncated })
        };
        self.wake_log_followers();
        closed
    }

    /// What is kept of the log from a place on, and whether more may come.
    fn logged_from(&self, at: usize) -> (Bytes, bool) {
        match &self.logs.lock().unwrap_or_else(PoisonError::into_inner).kept {
            Kept::Open(kept) => (Bytes::copy_from_slice(kept.get(at..).unwrap_or_default()), true),
            Kept::Closed(kept) => (kept.slice(at.min(kept.len())..), false),
        }
    }

    /// What is kept of the log so far.
    pub(crate) fn logged(&self) -> Bytes {
        self.logged_from(0).0
    }

    fn wake_log_followers(&self) {
        if let Some(followers) = self.log_changed.get() {
            followers.notify_waiters();
        }
    }

    /// The log from its start: what is there and, where it is followed, what comes until it is closed.
    pub(crate) fn read_logs(self: Arc<Self>, follow: bool) -> BoxStream<'static, Result<Bytes>> {
        if !follow {
            return in_one_piece(self.logged());
        }
        Box::pin(stream::unfold((self, 0), |(call, at)| async move {
            let logged = loop {
                // Made before it is looked, so that what comes in between wakes it.
                let changed = call.log_changed.get_or_init(Notify::new).notified();
                let (logged, open) = call.logged_from(at);
                if !open || !logged.is_empty() {
                    break logged;
                }
                changed.await;
            };
            let read = at + logged.len();
            (!logged.is_empty()).then_some((Ok(logged), (call, read)))
        }))
    }
}

/// A log that is there, as a stream.
pub(crate) fn in_one_piece(logged: Bytes) -> BoxStream<'static, Result<Bytes>> {
    Box::pin(stream::iter((!logged.is_empty()).then_some(Ok(logged))))
}

impl fmt::Debug for CallState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallState")
            .field("id", &self.id)
            .field("attempts", &self.attempts())
            .field("timings", &self.timings())
            .finish_non_exhaustive()
    }
}

/// Takes the log of one execution from a driver, up to a limit. Clones write to the same log.
///
/// It is redacted as it is written, so that a cut at the limit never shows part of a secret.
#[derive(Clone)]
pub struct LogSink(Arc<CallState>);

#[derive(Default)]
struct LogBuffer {
    redactor: Option<StreamRedactor>,
    kept: Kept,
    seen: u64,
    truncated: bool,
}

/// What is kept of a log. Once it is closed its record and those who follow it share it.
enum Kept {
    Open(Vec<u8>),
    Closed(Bytes),
}

impl Default for Kept {
    fn default() -> Self {
        Self::Open(Vec::new())
    }
}

impl LogBuffer {
    fn keep(&mut self, bytes: &[u8], limit: usize) {
        let Kept::Open(kept) = &mut self.kept else { return };
        let room = limit.saturating_sub(kept.len());
        kept.extend_from_slice(bytes.get(..room).unwrap_or(bytes));
        self.truncated |= bytes.len() > room;
    }

    fn close(&mut self, limit: usize) -> Bytes {
        if let Some(redactor) = self.redactor.take() {
            self.keep(&redactor.finish(), limit);
        }
        let bytes = match &mut self.kept {
            Kept::Open(kept) => Bytes::from(std::mem::take(kept)),
            Kept::Closed(bytes) => return bytes.clone(),
        };
        self.kept = Kept::Closed(bytes.clone());
        bytes
    }
}

impl LogSink {
    pub(crate) fn new(call: Arc<CallState>) -> Self {
        Self(call)
    }

    /// A log that belongs to no call, for tests of drivers. Read it with [`contents`](Self::contents).
    #[must_use]
    pub fn detached(limit: usize) -> Self {
        Self(Arc::new(CallState::new(InvocationId::generate(), Timestamp::now(), limit)))
    }

    /// Adds to the log. What goes past the limit is counted, not kept; what comes after the end of the call is lost.
    pub fn write(&self, bytes: &[u8]) {
        let CallState { logs, log_limit, redactor, .. } = &*self.0;
        {
            let mut logs = logs.lock().unwrap_or_else(PoisonError::into_inner);
            if matches!(logs.kept, Kept::Closed(_)) {
                return;
            }
            logs.seen = logs.seen.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            let mut stream = logs.redactor.take().unwrap_or_else(|| redactor.stream());
            redactor.refresh(&mut stream);
            logs.keep(&stream.push(bytes), *log_limit);
            logs.redactor = Some(stream);
        }
        self.0.wake_log_followers();
    }

    /// What was written, as far as it is kept and settled.
    #[must_use]
    pub fn contents(&self) -> Vec<u8> {
        match &self.0.logs.lock().unwrap_or_else(PoisonError::into_inner).kept {
            Kept::Open(kept) => kept.clone(),
            Kept::Closed(kept) => kept.to_vec(),
        }
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogSink").field("limit", &self.0.log_limit).finish_non_exhaustive()
    }
}

/// A secret that middleware hands to a function in this call.
#[derive(Debug, Clone)]
pub(crate) struct Injected {
    pub(crate) name: SecretRef,
    pub(crate) value: Secret,
}

/// A call as middleware sees it.
#[derive(Debug)]
#[non_exhaustive]
pub struct Invocation {
    /// Who calls, under which id and trace, until when.
    pub cx: CallContext,
    /// What is asked.
    pub request: InvokeRequest,
    revision: Arc<Revision>,
    state: Arc<CallState>,
    pub(crate) secrets: Vec<Injected>,
    pub(crate) durable_start: Option<DurableStart>,
    /// Whether the caller brought the id, which somebody may have used before.
    pub(crate) id_is_callers: bool,
    /// What the queue has to know of it, for a call that is executed from there.
    pub(crate) queued: Option<Arc<QueuedCall>>,
}

/// What a call that is executed from the queue hands back to it.
#[derive(Debug)]
pub(crate) struct QueuedCall {
    pub(crate) lineage: Lineage,
    /// Whether the queue tries again, and the layer for that does not.
    pub(crate) is_tried_by_queue: bool,
    record: Mutex<Option<Arc<InvocationRecord>>>,
}

impl QueuedCall {
    pub(crate) fn new(lineage: Lineage, is_tried_by_queue: bool) -> Self {
        Self { lineage, is_tried_by_queue, record: Mutex::default() }
    }

    /// Takes the record of the attempt over, in place of the store.
    pub(crate) fn keep(&self, record: Arc<InvocationRecord>) {
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = Some(record);
    }

    /// The record of the attempt, once it has ended.
    pub(crate) fn take(&self) -> Option<Arc<InvocationRecord>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Invocation {
    pub(crate) fn new(cx: CallContext, request: InvokeRequest, revision: Arc<Revision>, state: Arc<CallState>) -> Self {
        Self {
            cx,
            request,
            revision,
            state,
            secrets: Vec::new(),
            durable_start: None,
            id_is_callers: false,
            queued: None,
        }
    }

    /// The revision that is to execute it: key, generation and specification of the function.
    #[must_use]
    pub fn revision(&self) -> &Arc<Revision> {
        &self.revision
    }

    /// What the layers share about the call.
    #[must_use]
    pub fn state(&self) -> &Arc<CallState> {
        &self.state
    }

    /// Hands a secret to the function, and keeps its value out of whatever is stored or logged of the call.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the function's specification does not list it.
    pub fn inject_secret(&mut self, name: &SecretRef, value: &Secret) -> Result<()> {
        if !self.revision.spec.secrets.iter().any(|binding| binding.secret == *name) {
            return Err(unlisted_secret(name));
        }
        self.state.redactor().add(value);
        self.secrets.push(Injected { name: name.clone(), value: value.clone() });
        Ok(())
    }

    /// A second call like this one, for another attempt; `None` where the payload is a stream.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        Some(self.clone_with(self.request.body.try_clone()?))
    }

    pub(crate) fn clone_with(&self, body: Body) -> Self {
        Self {
            cx: self.cx.clone(),
            request: self.request.clone_with(body),
            revision: Arc::clone(&self.revision),
            state: Arc::clone(&self.state),
            secrets: self.secrets.clone(),
            durable_start: self.durable_start.clone(),
            id_is_callers: self.id_is_callers,
            queued: self.queued.clone(),
        }
    }

    pub(crate) fn with_revision(mut self, revision: Arc<Revision>) -> Self {
        self.revision = revision;
        self
    }
}

pub(crate) fn unlisted_secret(name: &SecretRef) -> Error {
    let message = "the function's specification does not list this secret";
    Error::new(ErrorKind::InvalidArgument, message).with_context("secret", name.as_str())
}

/// Commits that a call is running, once, before it is first delivered. Each attempt waits for the same commit, and
/// meets the same error if it failed.
#[derive(Clone)]
pub(crate) struct DurableStart(Shared<Closing>);

impl DurableStart {
    pub(crate) fn new(commit: Closing) -> Self {
        Self(commit.shared())
    }

    /// Whether the commit was tried and failed, so that there is no record of the call.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.peek().is_some_and(Result::is_err)
    }

    /// Whether it is committed, so that the function may have got the call.
    pub(crate) fn is_done(&self) -> bool {
        self.0.peek().is_some_and(Result::is_ok)
    }

    pub(crate) async fn commit(&self) -> Result<()> {
        self.0.clone().await
    }
}

impl fmt::Debug for DurableStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DurableStart")
    }
}
