//! Keeps a record of each execution, by the function's policy.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;

use crate::body::{BodyObserver, Closing, timeout};
use crate::config::RecordDefaults;
use crate::host::Lifetime;
use crate::invocation::{DurableStart, QueuedCall};
use crate::{
    BodyEnd, CallState, Cancellation, Delivery, Durability, Error, ErrorClass, ErrorKind, Failure, FunctionSpec,
    Invocation, InvocationRecord, InvocationState, InvocationStore, InvokeResponse, KeepPayloads, KeptBytes,
    Middleware, MiddlewareFactory, Next, Origin, Outcome, PrincipalId, RecordMode, Redactor, Result, Revision,
    Settings, SpecField, Stage, TimedPhase, TraceParent, Violation,
};

/// Makes the recording for functions whose executions are recorded.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) store: Arc<dyn InvocationStore>,
    pub(crate) defaults: RecordDefaults,
    pub(crate) lifetime: Lifetime,
}

impl MiddlewareFactory for Record {
    fn name(&self) -> &str {
        "record"
    }

    fn stage(&self) -> Stage {
        Stage::Record
    }

    fn claims(&self) -> &[SpecField] {
        &[SpecField::Record]
    }

    fn admit(&self, _: &FunctionSpec, _: &Settings<'_>) -> Vec<Violation> {
        Vec::new()
    }

    fn build(&self, revision: &Arc<Revision>, _: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        let policy = self.defaults.for_spec(&revision.spec);
        let keeper = Arc::new(Keeper { store: Arc::clone(&self.store), lifetime: self.lifetime.clone(), policy });
        Ok(Some(Arc::new(RecordCalls(keeper))))
    }
}

#[derive(Debug)]
struct Keeper {
    store: Arc<dyn InvocationStore>,
    lifetime: Lifetime,
    policy: RecordDefaults,
}

#[derive(Debug)]
struct RecordCalls(Arc<Keeper>);

#[async_trait]
impl Middleware for RecordCalls {
    fn name(&self) -> &str {
        "record"
    }

    fn stage(&self) -> Stage {
        Stage::Record
    }

    async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let keeper = &self.0;
        // What is executed from the queue has a record in any case: it is how its caller learns of its end.
        if keeper.policy.mode == RecordMode::Off && call.queued.is_none() {
            return next.run(call).await;
        }
        let mut recording = Recording::new(keeper, &call);
        if keeper.policy.payloads != KeepPayloads::Never {
            let payload = Capture::new(keeper.policy.max_payload_bytes, &call.request.headers);
            call.request.body = std::mem::take(&mut call.request.body).observed(payload.clone());
            recording.payload = Some(payload);
        }
        // An id that the caller brings is taken before the call is made: another execution of that id could not be recorded.
        if call.queued.is_none() && (keeper.policy.mode == RecordMode::Durable || call.id_is_callers) {
            call.durable_start =
                recording.call.as_ref().map(|call| DurableStart::new(keeper.begin(Arc::new(call.record()))));
        }
        let start = call.durable_start.clone();
        match next.run(call).await {
            Ok(mut response) => {
                recording.answered(&response);
                let body = std::mem::take(&mut response.body);
                response.body = match body.as_bytes().cloned() {
                    Some(bytes) => {
                        recording.take_result(&bytes);
                        recording.finish(&Ending::Answered).await?;
                        bytes.into()
                    }
                    None => body.observed(RecordBody(Some(recording))),
                };
                Ok(response)
            }
            Err(error) if is_refusal(&error) || start.is_some_and(|start| start.has_failed()) => {
                recording.forget();
                Err(error)
            }
            Err(error) => {
                // The caller's own error is worth more than one of its record, which is logged.
                let _ = recording.finish(&Ending::Error(&error)).await;
                Err(error)
            }
        }
    }
}

/// A refusal by a limit is counted, not recorded.
fn is_refusal(error: &Error) -> bool {
    error.kind() == ErrorKind::RateLimited
        && error.delivery() == Delivery::NotSent
        && error.context_value("limit").is_some()
}

impl Keeper {
    fn begin(&self, record: Arc<InvocationRecord>) -> Closing {
        let store = Arc::clone(&self.store);
        Box::pin(async move { store.begin(record).await })
    }

    /// Writes a final record. A failure of the store is the caller's only where the policy promises durability.
    async fn write(&self, record: Arc<InvocationRecord>) -> Result<()> {
        let durable = self.policy.mode == RecordMode::Durable;
        let durability = if durable { Durability::Durable } else { Durability::Buffered };
        let id = record.id;
        let Err(error) = self.store.finish(record, durability).await else { return Ok(()) };
        metrics::counter!("function_gateway.records.lost").increment(1);
        tracing::error!(%id, ?error, "the record of an execution could not be kept");
        if durable { Err(error.with_delivery(Delivery::Executed).with_retry(crate::Retry::Never)) } else { Ok(()) }
    }
}

/// How an execution came to its end.
enum Ending<'a> {
    /// The function answered, and its answer is complete.
    Answered,
    Error(&'a Error),
    /// The caller went away.
    Dropped,
}

/// One execution that is being recorded. Dropped before its end, it is recorded as cancelled.
struct Recording {
    keeper: Arc<Keeper>,
    call: Option<RecordedCall>,
    payload: Option<Capture>,
    result: Option<Capture>,
    answer: Option<(u16, Outcome)>,
}

struct RecordedCall {
    caller: PrincipalId,
    origin: Origin,
    trace: Option<TraceParent>,
    cancellation: Option<Cancellation>,
    state: Arc<CallState>,
    revision: Arc<Revision>,
    queued: Option<Arc<QueuedCall>>,
}

impl Recording {
    fn new(keeper: &Arc<Keeper>, call: &Invocation) -> Self {
        let recorded = RecordedCall {
            caller: call.cx.principal().id.clone(),
            origin: call.cx.origin(),
            trace: call.cx.trace(),
            cancellation: call.cx.cancellation().cloned(),
            state: Arc::clone(call.state()),
            revision: Arc::clone(call.revision()),
            queued: call.queued.clone(),
        };
        Self { keeper: Arc::clone(keeper), call: Some(recorded), payload: None, result: None, answer: None }
    }

    fn answered(&mut self, response: &InvokeResponse) {
        self.answer = Some((response.status.as_u16(), response.outcome.clone()));
        let keeps = match self.keeper.policy.payloads {
            KeepPayloads::Never => false,
            KeepPayloads::Always => true,
            // A stream that breaks off has failed, which is known only at its end.
            KeepPayloads::OnFailure => !response.outcome.is_success() || response.body.is_stream(),
        };
        self.result = keeps.then(|| Capture::new(self.keeper.policy.max_payload_bytes, &response.headers));
    }

    fn take_result(&mut self, bytes: &Bytes) {
        if let Some(result) = &mut self.result {
            result.chunk(bytes);
            result.complete();
        }
    }

    /// Lets the execution go without a record.
    fn forget(mut self) {
        self.call = None;
    }

    /// Makes the record at once, and keeps it when it is awaited.
    fn finish(mut self, ending: &Ending<'_>) -> impl Future<Output = Result<()>> + Send + use<> {
        let call = self.call.take();
        let unkept = call.and_then(|call| {
            let record = self.ended(&call, ending);
            match &call.queued {
                Some(queued) => {
                    queued.keep(record);
                    None
                }
                None => Some(self.keep(record)),
            }
        });
        async move {
            match unkept {
                Some(unkept) => unkept.await,
                None => Ok(()),
            }
        }
    }

    /// Keeps a final record, also where its caller does not wait for it.
    fn keep(&self, record: Arc<InvocationRecord>) -> impl Future<Output = Result<()>> + Send + use<> {
        let mut unkept = Unkept { keeper: Arc::clone(&self.keeper), record: Some(Arc::clone(&record)) };
        async move {
            let written = unkept.keeper.write(record).await;
            drop(unkept.record.take());
            written
        }
    }

    /// Why a call was given up.
    fn given_up(&self, call: &RecordedCall) -> Error {
        if call.state.deadline().is_some_and(|deadline| deadline.has_passed()) {
            return timeout("total", Delivery::Unknown);
        }
        let message = if self.keeper.lifetime.killed.is_cancelled() {
            "the gateway was stopped before the answer was complete"
        } else if call.cancellation.as_ref().is_some_and(Cancellation::is_cancelled) {
            "the caller gave the call up before the answer was complete"
        } else {
            "the caller went away before the answer was complete"
        };
        Error::new(ErrorKind::Cancelled, message)
    }

    fn ended(&self, call: &RecordedCall, ending: &Ending<'_>) -> Arc<InvocationRecord> {
        let RecordedCall { state, .. } = call;
        let took = state.elapsed();
        state.add_time(TimedPhase::Total, took);
        let redactor = state.redactor();
        let mut record = call.record();
        let delivered = state.delivery();
        (record.state, record.failure) = match ending {
            Ending::Answered => of_outcome(self.answer.as_ref().map(|(_, outcome)| outcome), redactor),
            Ending::Error(error) => of_error(error, redactor),
            Ending::Dropped => of_error(&self.given_up(call).with_delivery(delivered), redactor),
        };
        record.status = self.answer.as_ref().map(|(status, _)| *status);
        // Not read from the clock, which may have been set back meanwhile.
        record.finished_at = Some(record.created_at.plus(took));
        record.logs = state.close_logs();
        let keeps = match self.keeper.policy.payloads {
            KeepPayloads::Never => false,
            KeepPayloads::OnFailure => record.state != InvocationState::Succeeded,
            KeepPayloads::Always => true,
        };
        if keeps {
            record.payload = self.payload.as_ref().map(|payload| payload.kept(redactor));
            record.result = self.result.as_ref().map(|result| result.kept(redactor));
        }
        Arc::new(record)
    }
}

/// A final record that is being written. Given up by its caller, it is written by a task; written twice, the store
/// refuses the second.
struct Unkept {
    keeper: Arc<Keeper>,
    record: Option<Arc<InvocationRecord>>,
}

impl Drop for Unkept {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else { return };
        let keeper = Arc::clone(&self.keeper);
        self.keeper.lifetime.spawn(async move {
            let durability = match keeper.policy.mode {
                RecordMode::Durable => Durability::Durable,
                _ => Durability::Buffered,
            };
            match keeper.store.finish(Arc::clone(&record), durability).await {
                Err(error) if error.kind() != ErrorKind::Conflict => {
                    metrics::counter!("function_gateway.records.lost").increment(1);
                    tracing::error!(id = %record.id, ?error, "the record of an execution could not be kept");
                }
                _ => {}
            }
        });
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            let record = self.ended(&call, &Ending::Dropped);
            match &call.queued {
                Some(queued) => queued.keep(record),
                None => drop(self.keeper.lifetime.spawn(self.keep(record))),
            }
        }
    }
}

impl RecordedCall {
    fn record(&self) -> InvocationRecord {
        let Self { caller, origin, trace, state, revision, queued, .. } = self;
        let served_by = state.served_by();
        let revision = served_by.as_ref().unwrap_or(revision);
        let mut record = InvocationRecord::new(state.id, revision, caller.clone(), state.created_at);
        // Those by which the call came in, also where another revision served it: a record's labels do not change.
        record.labels.clone_from(&self.revision.spec.labels);
        record.attempts = state.attempts();
        record.origin = *origin;
        record.trace = *trace;
        record.started_at = state.started_at();
        record.timings = state.timings();
        record.request_bytes = state.request_bytes();
        record.response_bytes = state.response_bytes();
        record.lineage = queued.as_ref().map(|queued| Box::new(queued.lineage.clone()));
        record
    }
}

fn of_outcome(outcome: Option<&Outcome>, redactor: &Redactor) -> (InvocationState, Option<Failure>) {
    let failure = match outcome {
        None | Some(Outcome::Succeeded) => return (InvocationState::Succeeded, None),
        Some(Outcome::Rejected) => {
            let message = "the function refused the call";
            Failure::new(ErrorClass::Rejected, "function_rejected", message, Delivery::Executed)
        }
        Some(Outcome::Failed(failure)) => {
            let message = redactor.text(&failure.message).into_owned();
            Failure::new(ErrorClass::Function, "function_failed", message, Delivery::Executed)
        }
    };
    (InvocationState::Failed, Some(failure))
}

fn of_error(error: &Error, redactor: &Redactor) -> (InvocationState, Option<Failure>) {
    let state = match error.kind() {
        ErrorKind::DeadlineExceeded => InvocationState::TimedOut,
        ErrorKind::Cancelled => InvocationState::Cancelled,
        _ => InvocationState::Failed,
    };
    let failure = Failure::of(&redactor.error(error.clone()));
    (state, Some(failure))
}

/// Records the end of a streamed answer. Its reader gets the end once the record is kept.
struct RecordBody(Option<Recording>);

impl BodyObserver for RecordBody {
    fn chunk(&mut self, chunk: &Bytes) {
        if let Some(result) = self.0.as_mut().and_then(|recording| recording.result.as_mut()) {
            result.chunk(chunk);
        }
    }

    fn end(mut self, end: BodyEnd<'_>) -> Option<Closing> {
        let mut recording = self.0.take()?;
        let ending = match &end {
            BodyEnd::Complete => {
                if let Some(result) = &mut recording.result {
                    result.complete();
                }
                Ending::Answered
            }
            BodyEnd::Failed(error) => Ending::Error(error),
            // What is dropped here is recorded as cancelled.
            BodyEnd::Dropped => return None,
        };
        let call = recording.call.take()?;
        let record = recording.ended(&call, &ending);
        if let Some(queued) = &call.queued {
            queued.keep(record);
            return None;
        }
        Some(Box::pin(recording.keep(record)))
    }
}

/// The start of a body that goes by, for the record.
#[derive(Clone)]
struct Capture(Arc<Mutex<Captured>>);

struct Captured {
    limit: usize,
    bytes: Vec<u8>,
    seen: u64,
    complete: bool,
    content_type: Option<String>,
}

impl Capture {
    fn new(limit: u32, headers: &HeaderMap) -> Self {
        let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        Self(Arc::new(Mutex::new(Captured { limit, bytes: Vec::new(), seen: 0, complete: false, content_type })))
    }

    fn complete(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).complete = true;
    }

    /// What may be kept of it: redacted. Where its end was not captured, what might be the start of a secret's value is
    /// left out.
    fn kept(&self, redactor: &Redactor) -> KeptBytes {
        let captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = captured.complete && u64::try_from(captured.bytes.len()).ok() == Some(captured.seen);
        let clean = if whole {
            redactor.bytes(&captured.bytes).into_owned()
        } else {
            redactor.stream().push(&captured.bytes).into_owned()
        };
        let mut kept = KeptBytes::cut(clean.into(), captured.limit);
        kept.truncated |= !whole;
        kept.len = Some(captured.seen);
        kept.content_type.clone_from(&captured.content_type);
        kept
    }
}

impl BodyObserver for Capture {
    fn chunk(&mut self, chunk: &Bytes) {
        let mut captured = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        captured.seen = captured.seen.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        let room = captured.limit.saturating_sub(captured.bytes.len());
        captured.bytes.extend_from_slice(chunk.get(..room).unwrap_or(chunk));
    }

    fn end(self, end: BodyEnd<'_>) -> Option<Closing> {
        if matches!(end, BodyEnd::Complete) {
            self.complete();
        }
        None
    }
}
