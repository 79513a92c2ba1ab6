//! One attempt to execute an accepted invocation.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::ending::{Claim, interrupted, lost, policy_of, too_late};
use crate::body::timeout;
use crate::host::Host;
use crate::invocation::{DurableStart, QueuedCall};
use crate::queue::queue_lease_lost;
use crate::route::Serving;
use crate::{
    AsyncPolicy, Body, CallContext, CallState, Callback, Cancellation, Deadline, Delivery, Dispatch, Error, ErrorKind,
    Invocation, InvocationRecord, InvocationState, InvokeRequest, InvokeResponse, Qualifier, QueueState,
    QueuedInvocation, Result, Settled, Settlement, StoredAnswer, Submission, TakenInvocation, Timestamp, Work,
};

/// A caller who waits for an execution.
pub(super) struct Waiter {
    cx: CallContext,
    extensions: http::Extensions,
    reply: oneshot::Sender<Result<InvokeResponse>>,
}

/// What a caller who waits has brought beside what is stored.
type Awaited = (CallContext, http::Extensions);

/// How an attempt has ended.
pub(super) struct Outcome {
    pub(super) serving: Option<Arc<Serving>>,
    pub(super) answer: Option<StoredAnswer>,
    /// The answer itself, for a caller who waits for it.
    pub(super) response: Option<InvokeResponse>,
    pub(super) error: Option<Error>,
    pub(super) record: Option<Arc<InvocationRecord>>,
    pub(super) started_at: Timestamp,
    /// Whether an attempt was made at all.
    pub(super) is_made: bool,
}

impl Outcome {
    fn new(started_at: Timestamp) -> Self {
        Self { serving: None, answer: None, response: None, error: None, record: None, started_at, is_made: false }
    }

    fn unsent(started_at: Timestamp, serving: Option<Arc<Serving>>, error: Error) -> Self {
        let error = error.with_delivery(Delivery::NotSent);
        Self { serving, error: Some(error), ..Self::new(started_at) }
    }
}

impl Host {
    /// Executes what was accepted for a caller who waits. It goes on when the caller goes away.
    pub(crate) async fn execute_for(
        self: &Arc<Self>,
        cx: &CallContext,
        extensions: http::Extensions,
        taken: TakenInvocation,
    ) -> Result<InvokeResponse> {
        let (reply, answer) = oneshot::channel();
        let (host, waiter) = (Arc::clone(self), Waiter { cx: cx.clone(), extensions, reply });
        self.lifetime.spawn(async move { host.process(taken, Some(waiter), CancellationToken::new()).await });
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, "the task that executes the invocation has ended before its time"))
        })
    }

    /// Executes what was taken, and settles it.
    pub(super) async fn process(
        self: Arc<Self>,
        taken: TakenInvocation,
        waiter: Option<Waiter>,
        give_up: CancellationToken,
    ) {
        let is_awaited = waiter.is_some();
        let (call, sender) =
            waiter.map_or((None, None), |waiter| (Some((waiter.cx, waiter.extensions)), Some(waiter.reply)));
        let mut reply = Reply { sender, stream: None, broken: Arc::default() };
        let (settlement, answer) = match self.attempt(&taken, call, &mut reply, &give_up).await {
            Ok(ended) => ended,
            Err(error) => {
                // It is somebody else's by now, or will be taken again once its lease has run out.
                tracing::warn!(id = %taken.lease.id, ?error, "an invocation was let go");
                return reply.send(Err(error));
            }
        };
        let succeeded = matches!(&settlement.settled, Settled::Ended { record: Some(record), .. } if record.state == InvocationState::Succeeded);
        match self.settle_attempt(&taken, settlement).await {
            Ok(()) => {
                metrics::counter!("function_gateway.queue.settled", "succeeded" => if succeeded { "true" } else { "false" }).increment(1);
                reply.send(answer);
            }
            Err(error) => {
                if !is_awaited {
                    tracing::error!(id = %taken.lease.id, ?error, "the end of an invocation could not be kept");
                }
                let error = error.with_delivery(Delivery::Executed);
                // A caller who has the head of the answer already must not take its end for a good one.
                reply.break_off(&error);
                reply.send(Err(error));
            }
        }
    }

    /// Settles, as long as the lease may hold.
    async fn settle_attempt(&self, taken: &TakenInvocation, settlement: Settlement) -> Result<()> {
        const MOST: Duration = Duration::from_secs(5);
        let deadline = Deadline::after(self.config.queue.lease_margin);
        let mut pause = Duration::from_millis(50);
        loop {
            let error = match self.queue()?.settle(&taken.lease, settlement.clone()).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Store || !error.is_transient() || deadline.remaining() < pause {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(MOST);
        }
    }

    /// Makes one attempt. Says how it is to be settled, and what a caller who waits for it gets; an error where nothing is
    /// to be settled, since the right to it was lost.
    async fn attempt(
        self: &Arc<Self>,
        taken: &TakenInvocation,
        call: Option<Awaited>,
        reply: &mut Reply,
        give_up: &CancellationToken,
    ) -> Result<(Settlement, Result<InvokeResponse>)> {
        let invocation = &taken.invocation;
        let submission = &invocation.submission;
        let is_interrupted = invocation.state == QueueState::Running;
        let unsent = |kind, message: String| Error::new(kind, message).with_delivery(Delivery::NotSent);
        if invocation.cancel_requested {
            let message = "the invocation was cancelled before it was executed".to_owned();
            let delivery = if is_interrupted { Delivery::Unknown } else { Delivery::NotSent };
            let error = unsent(ErrorKind::Cancelled, message).with_delivery(delivery);
            return Ok((self.unsent(taken, &error, Claim::Cancelled).await?, Err(error)));
        }
        if is_interrupted && (!taken.repeatable || self.is_exhausted(invocation).await?) {
            let error = lost();
            return Ok((self.unsent(taken, &error, Claim::Lost).await?, Err(error)));
        }
        if submission.lineage.depth > self.config.queue.max_chain {
            let message = format!("more than {} invocations followed one upon the other", self.config.queue.max_chain);
            let error = unsent(ErrorKind::InvalidArgument, message);
            return Ok((self.unsent(taken, &error, Claim::Failed).await?, Err(error)));
        }
        if let Some(reason) = &submission.refused {
            let error = unsent(ErrorKind::ResultNotKept, reason.clone());
            return Ok((self.unsent(taken, &error, Claim::Failed).await?, Err(error)));
        }
        let mut progress = invocation.progress.clone();
        if is_interrupted {
            progress.add(interrupted(invocation));
        }
        let is_awaited = call.is_some();
        let ended = match &submission.work {
            Work::Invoke => self.invoke(taken, call, reply, give_up).await?,
            Work::Callback { url, secret } => self.call_back(taken, url, secret.as_ref()).await?,
        };
        self.ended(taken, progress, ended, is_awaited).await
    }

    /// Whether all attempts were made of one that may be repeated.
    async fn is_exhausted(&self, invocation: &QueuedInvocation) -> Result<bool> {
        Ok(invocation.attempts >= self.policy_for(&invocation.submission).await?.attempts())
    }

    async fn invoke(
        self: &Arc<Self>,
        taken: &TakenInvocation,
        call: Option<Awaited>,
        reply: &mut Reply,
        give_up: &CancellationToken,
    ) -> Result<Outcome> {
        let submission = &taken.invocation.submission;
        let started_at = self.clock.now();
        let serving = match self.serving_for(submission).await {
            Ok(serving) => serving,
            Err(error) => return Ok(Outcome::unsent(started_at, None, error)),
        };
        let policy = policy_of(submission, Some(&serving));
        let is_awaited = call.is_some();
        let late = match &call {
            // It took all of the caller's time to be accepted.
            Some((cx, _)) if cx.deadline().is_some_and(Deadline::has_passed) => {
                Some(timeout("total", Delivery::NotSent))
            }
            Some(_) => None,
            None => too_late(&taken.invocation, &policy, started_at),
        };
        if let Some(error) = late {
            return Ok(Outcome::unsent(started_at, Some(serving), error));
        }
        let mut request = match submission.request.with_payload(submission.payload.clone()) {
            Ok(request) => request,
            Err(error) => return Ok(Outcome::unsent(started_at, Some(serving), error)),
        };
        let (cx, extensions) = call.unwrap_or_else(|| (context(submission), http::Extensions::new()));
        request.extensions = extensions;
        // Its own, so that whoever ends this one does not end all that its caller does under the same signal.
        let (cancellation, of_caller) = (Cancellation::new(), cx.cancellation().cloned());
        let _cancellable = self.cancellations.enter(submission.id, &cancellation);
        let queued = Arc::new(QueuedCall::new(submission.lineage.clone(), !is_awaited));
        let start = self.dispatch(taken, &serving, &policy);
        let cx = cx.with_cancellation(cancellation.clone());
        let call = self.resumed(&cx, taken, &serving, request, Arc::clone(&queued), start.clone());
        let wanted = (submission.key.clone(), &Qualifier::Serving);
        let in_flight = self.lifetime.tasks.token();
        let running = async {
            let mut outcome = Outcome::new(started_at);
            let mut response = match self.run::<true>(call, wanted, &serving, in_flight).await {
                Ok(response) => response,
                Err(error) => {
                    outcome.error = Some(error);
                    return outcome;
                }
            };
            let mut answer = stored(&response);
            let body = std::mem::take(&mut response.body);
            if is_awaited && body.is_stream() {
                response.body = reply.body();
                reply.send(Ok(*response));
            } else if is_awaited {
                response.body = body.try_clone().unwrap_or_default();
                outcome.response = Some(*response);
            }
            (answer.body, outcome.error) = self.drain(body, reply).await;
            outcome.answer = Some(answer);
            outcome
        };
        let passed_on = async {
            match &of_caller {
                Some(of_caller) => of_caller.cancelled().await,
                None => std::future::pending().await,
            }
            cancellation.cancel();
            std::future::pending::<()>().await;
        };
        let mut outcome = tokio::select! {
            biased;
            outcome = running => outcome,
            () = give_up.cancelled() => {
                let delivery = if start.is_done() { Delivery::Unknown } else { Delivery::NotSent };
                Outcome { error: Some(lost().with_delivery(delivery)), ..Outcome::new(started_at) }
            }
            () = passed_on => Outcome::new(started_at),
        };
        if start.has_failed() && outcome.error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Conflict) {
            return Err(queue_lease_lost(submission.id));
        }
        (outcome.serving, outcome.record, outcome.is_made) = (Some(serving), queued.take(), true);
        let is_stopped = self.lifetime.killed.is_cancelled() || give_up.is_cancelled();
        if is_stopped
            && !cancellation.is_cancelled()
            && let Some(error) = &outcome.error
        {
            // It was not its caller who gave it up.
            outcome.error = Some(match error.delivery() {
                Delivery::NotSent => {
                    Error::new(ErrorKind::ShuttingDown, "the gateway was stopped before the call was sent")
                }
                _ => lost(),
            });
            outcome.record = None;
        }
        Ok(outcome)
    }

    /// Reads an answer to its end, and keeps it where it is not too large. A caller who has it streamed gets it as it comes.
    async fn drain(&self, body: Body, reply: &mut Reply) -> (Option<Bytes>, Option<Error>) {
        let limit = usize::try_from(self.config.queue.max_result_bytes).unwrap_or(usize::MAX);
        if let Some(bytes) = body.as_bytes() {
            return ((bytes.len() <= limit).then(|| bytes.clone()), None);
        }
        // What is streamed to its caller is not kept: it may never end, and is not asked for again.
        let mut kept = reply.stream.is_none().then(BytesMut::new);
        let mut chunks = body.into_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    reply.break_off(&error);
                    return (None, Some(error));
                }
            };
            kept = kept.filter(|kept| kept.len().saturating_add(chunk.len()) <= limit);
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(&chunk);
            }
            tokio::select! {
                () = reply.pass_on(chunk, self.config.max_reader_pause) => {}
                () = self.lifetime.killed.cancelled() => {}
            }
        }
        (kept.map(BytesMut::freeze), None)
    }

    async fn call_back(
        &self,
        taken: &TakenInvocation,
        url: &str,
        secret: Option<&crate::SecretRef>,
    ) -> Result<Outcome> {
        let submission = &taken.invocation.submission;
        let started_at = self.clock.now();
        let policy = policy_of(submission, None);
        let cx = context(submission);
        let send = async {
            if let Some(error) = too_late(&taken.invocation, &policy, started_at) {
                return Err(error);
            }
            let Some(sender) = &self.callbacks else {
                return Err(Error::new(ErrorKind::Unsupported, "this gateway sends no callbacks"));
            };
            let secret = match secret {
                Some(name) => Some(self.secrets.require(&cx, name).await?.secret),
                None => None,
            };
            let dispatch = Dispatch::new(
                taken.invocation.attempts + 1,
                self.config.driver_timeout + self.config.queue.lease_margin,
            );
            self.queue()?.dispatch(&taken.lease, dispatch.repeatable(true)).await?;
            let callback = Callback {
                id: submission.id,
                url: url.to_owned(),
                at: self.clock.now(),
                body: submission.payload.clone(),
                secret,
            };
            self.bounded("callback", sender.send(&cx, callback)).await
        };
        let error = send.await.err();
        if error.as_ref().is_some_and(|error| error.kind() == ErrorKind::Conflict) {
            return Err(queue_lease_lost(submission.id));
        }
        Ok(Outcome { error, is_made: true, ..Outcome::new(started_at) })
    }

    /// What serves a submission: the function that it was accepted for, and no other.
    pub(super) async fn serving_for(&self, submission: &Submission) -> Result<Arc<Serving>> {
        let key = &submission.key;
        let mut route = self.routes.find(&self.functions, key).await;
        if matches!(&route, Ok(route) if route.function.id != submission.function) {
            // It may have been made again just now, elsewhere.
            self.routes.invalidate(key);
            route = self.routes.find(&self.functions, key).await;
        }
        let route = route?;
        if route.function.id != submission.function {
            let message = "the function was deleted, and another one bears its name";
            return Err(Error::new(ErrorKind::NotFound, message).with_context("function", key.name.as_str()));
        }
        match submission.pinned {
            true => self.serving_pinned(&route.function, submission.generation).await,
            false => self.serving_on(&route, &Qualifier::Serving).await,
        }
    }

    /// A call that was accepted a while ago, as it enters the chain.
    fn resumed(
        &self,
        cx: &CallContext,
        taken: &TakenInvocation,
        serving: &Serving,
        request: InvokeRequest,
        queued: Arc<QueuedCall>,
        start: DurableStart,
    ) -> Box<Invocation> {
        let (invocation, submission) = (&taken.invocation, &taken.invocation.submission);
        // A stream without a total time ends before its lease does.
        let longest = Deadline::after(self.config.longest_call(&serving.revision.spec));
        let policy = self.config.record.for_spec(&serving.revision.spec);
        let max_log = usize::try_from(policy.max_log_bytes).unwrap_or(usize::MAX);
        let waited = self.clock.now().since(submission.created_at);
        let accepted = (submission.id, submission.created_at);
        let state = Arc::new(CallState::resumed(accepted, waited, invocation.attempts, max_log));
        if let Some(len) = request.body.len() {
            state.set_request_bytes(len);
        }
        let cx = crate::executor::traced(&cx.clone().with_deadline(longest), &request)
            .for_invocation(submission.id)
            .with_attempt(invocation.attempts + 1);
        let mut call = Invocation::new(cx, request, Arc::clone(&serving.revision), state);
        (call.queued, call.durable_start) = (Some(queued), Some(start));
        Box::new(call)
    }

    /// Commits that the attempt is about to be sent, when it is.
    fn dispatch(&self, taken: &TakenInvocation, serving: &Serving, policy: &AsyncPolicy) -> DurableStart {
        let spec = &serving.revision.spec;
        // Longer than the call can take, so that nobody else gets it while it runs.
        let lease = self.config.lease_of(spec);
        let dispatch =
            Dispatch::new(taken.invocation.attempts + 1, lease).repeatable(spec.idempotent || policy.at_least_once);
        let (queue, lease) = (self.queue.clone(), taken.lease);
        DurableStart::new(Box::pin(async move {
            match queue {
                Some(queue) => {
                    queue.dispatch(&lease, dispatch).await.map_err(|error| error.with_delivery(Delivery::NotSent))
                }
                None => Err(queue_lease_lost(lease.id)),
            }
        }))
    }
}

/// A caller's end of an execution.
struct Reply {
    sender: Option<oneshot::Sender<Result<InvokeResponse>>>,
    /// Where the chunks of an answer go that is streamed. Held until the end is committed: only then the stream ends.
    stream: Option<mpsc::Sender<Bytes>>,
    /// Why the stream ends without being complete.
    broken: Arc<OnceLock<Error>>,
}

impl Reply {
    /// The body of an answer whose chunks are [passed on](Self::pass_on).
    fn body(&mut self) -> Body {
        let (sender, receiver) = mpsc::channel(1);
        self.stream = Some(sender);
        Body::from_stream(stream::unfold(Some((receiver, Arc::clone(&self.broken))), |state| async {
            let (mut receiver, broken) = state?;
            match receiver.recv().await {
                Some(chunk) => Some((Ok(chunk), Some((receiver, broken)))),
                None => broken.get().cloned().map(|error| (Err(error), None)),
            }
        }))
    }

    /// Hands a chunk on. A caller who does not read on for too long, or has gone away, gets no more; the execution goes on.
    async fn pass_on(&mut self, chunk: Bytes, patience: Duration) {
        let Some(reader) = &self.stream else { return };
        match tokio::time::timeout(patience, reader.send(chunk)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => self.stream = None,
            Err(_) => self.break_off(&Error::new(ErrorKind::Cancelled, "the caller did not read on")),
        }
    }

    /// Ends a stream that is not complete.
    fn break_off(&mut self, error: &Error) {
        // The first reason stays.
        let _ = self.broken.set(error.clone());
        self.stream = None;
    }

    fn send(&mut self, answer: Result<InvokeResponse>) {
        if let Some(reply) = self.sender.take() {
            // A caller who has gone away needs none.
            let _ = reply.send(answer);
        }
    }
}

/// The context of an execution that nobody waits for.
fn context(submission: &Submission) -> CallContext {
    let mut cx = CallContext::new(submission.principal.clone()).with_origin(submission.origin);
    if let Some(trace) = submission.trace {
        cx = cx.with_trace(trace);
    }
    match &submission.trace_state {
        Some(state) => cx.with_trace_state(state.as_str()),
        None => cx,
    }
}

fn stored(response: &InvokeResponse) -> StoredAnswer {
    let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    StoredAnswer::new(response.status.as_u16(), response.headers.iter().filter_map(text).collect(), None)
}
