//! Workers: they take accepted invocations from the queue, execute them by the same chain as any call, and settle them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::host::Host;
use crate::invocation::{DurableStart, QueuedCall};
use crate::queue::queue_lease_lost;
use crate::route::Serving;
use crate::settle::{Ended, Verdict, verdict};
use crate::submit::{ENDING_TYPE, ending_document};
use crate::{
    Acceptance, AsyncPolicy, Attempt, Body, CallContext, CallState, Callback, Cancellation, Deadline, Delivery,
    Destination, Dispatch, Due, Error, ErrorKind, Failure, FunctionId, FunctionKey, FunctionName, Gateway, Generation,
    Invocation, InvocationId, InvocationQueue, InvocationRecord, InvocationState, InvokeRequest, InvokeResponse,
    Origin, Progress, Qualifier, QueueState, Result, Retry, Sequence, Settled, Settlement, StoredAnswer, StoredRequest,
    Submission, TakeRequest, TakenInvocation, Timestamp, Work,
};

/// How workers work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerConfig {
    /// How many invocations are executed at a time. Default: 64.
    pub concurrency: usize,
    /// How many of one tenant at a time, so that one with slow functions leaves room for others. Default: three quarters of
    /// `concurrency`, and at least 1.
    pub max_per_tenant: Option<usize>,
    /// Time between two looks into the queue, where nothing tells of what other processes have put there. Default: 1 s.
    pub poll_interval: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self { concurrency: 64, max_per_tenant: None, poll_interval: Duration::from_secs(1) }
    }
}

impl WorkerConfig {
    /// Executes so many at a time.
    #[must_use]
    pub fn with_concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Executes so many of one tenant at a time.
    #[must_use]
    pub fn with_max_per_tenant(mut self, count: usize) -> Self {
        self.max_per_tenant = Some(count);
        self
    }

    /// Sets the time between two looks into the queue.
    #[must_use]
    pub fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    fn per_tenant(&self) -> usize {
        self.max_per_tenant.unwrap_or(self.concurrency * 3 / 4).clamp(1, self.concurrency.max(1))
    }
}

/// Workers that run. Dropping it lets them go on until the gateway shuts down.
#[derive(Debug)]
pub struct Workers {
    stop: CancellationToken,
    give_up: CancellationToken,
    tasks: TaskTracker,
}

impl Workers {
    /// Takes nothing more from the queue, and waits for what is being executed.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// As [`drain`](Self::drain), for at most `grace`. What is still being executed then is given up: it is settled as an attempt of
    /// which nobody knows how it would have ended.
    pub async fn stop(&self, grace: Duration) {
        if tokio::time::timeout(grace, self.drain()).await.is_err() {
            self.give_up.cancel();
            self.tasks.wait().await;
        }
    }

    /// How many invocations they hold.
    #[must_use]
    pub fn running(&self) -> usize {
        // The one that takes is a task as well.
        self.tasks.len().saturating_sub(1)
    }
}

impl Gateway {
    /// Starts workers, which execute what is in the queue, whichever process has accepted it. Their tasks are the gateway's:
    /// its shutdown drains them.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] in a gateway without a queue.
    pub fn start_workers(&self, config: WorkerConfig) -> Result<Workers> {
        let queue = Arc::clone(self.host.queue()?);
        let (stop, give_up, tasks) =
            (self.host.lifetime.closing.child_token(), CancellationToken::new(), TaskTracker::new());
        let crew = Crew {
            host: Arc::clone(&self.host),
            queue,
            config,
            stop: stop.clone(),
            give_up: give_up.clone(),
            tasks: tasks.clone(),
            slots: Arc::new(Semaphore::new(config.concurrency.clamp(1, Semaphore::MAX_PERMITS))),
            tenants: Arc::default(),
        };
        let token = tasks.token();
        self.host.lifetime.spawn(async move {
            let _token = token;
            crew.run().await;
        });
        Ok(Workers { stop, give_up, tasks })
    }
}

/// What the workers of one handle share.
struct Crew {
    host: Arc<Host>,
    queue: Arc<dyn InvocationQueue>,
    config: WorkerConfig,
    stop: CancellationToken,
    give_up: CancellationToken,
    tasks: TaskTracker,
    slots: Arc<Semaphore>,
    tenants: Arc<Mutex<HashMap<crate::TenantId, usize>>>,
}

/// How long what was taken may wait here until it is dispatched.
const HELD: Duration = Duration::from_secs(30);
/// How often it is asked whether somebody wants one of those that run to end.
const LOOK: Duration = Duration::from_millis(500);

impl Crew {
    async fn run(self) {
        let watch = self.watch_cancellations();
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.take() => {}
            () = watch => {}
        }
    }

    async fn take(&self) {
        let mut arrivals = self.queue.arrivals();
        // As many as are let go while a look into the queue takes its time, so that one look serves several.
        let few = u32::try_from(self.config.concurrency / 8).unwrap_or(u32::MAX).max(1);
        loop {
            let Ok(first) = Arc::clone(&self.slots).acquire_many_owned(few).await else { return };
            let mut free = first;
            while let Ok(more) = Arc::clone(&self.slots).try_acquire_owned() {
                free.merge(more);
            }
            let (busy, per_tenant) = (self.busy(), self.config.per_tenant());
            let request = TakeRequest::new(free.num_permits(), HELD).with_per_tenant(per_tenant).without(busy);
            let wait = match self.queue.take(&request).await {
                Ok(taken) => {
                    for item in taken.items {
                        let Some(slot) = free.split(1) else { break };
                        self.start(item, slot);
                    }
                    taken.next_due.map_or(self.config.poll_interval, |due| due.min(self.config.poll_interval))
                }
                Err(error) => {
                    tracing::warn!(?error, "nothing can be taken from the queue now");
                    self.config.poll_interval
                }
            };
            drop(free);
            if !wait.is_zero() {
                tokio::select! {
                    () = arrivals.changed() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }

    /// Tenants of which as many are executed as may be.
    fn busy(&self) -> Vec<crate::TenantId> {
        let most = self.config.per_tenant();
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        tenants.iter().filter(|(_, running)| **running >= most).map(|(tenant, _)| tenant.clone()).collect()
    }

    fn start(&self, item: TakenInvocation, slot: OwnedSemaphorePermit) {
        let tenant = item.invocation.submission.key.tenant.clone();
        *self.tenants.lock().unwrap_or_else(PoisonError::into_inner).entry(tenant.clone()).or_default() += 1;
        let share = Share { tenant, tenants: Arc::clone(&self.tenants), _slot: slot };
        let (host, give_up, token) = (Arc::clone(&self.host), self.give_up.clone(), self.tasks.token());
        self.host.lifetime.spawn(async move {
            let (_token, _share) = (token, share);
            host.process(item, None, give_up).await;
        });
    }

    /// Asks again and again whether one of those that run here is to end, which another process may have been told.
    async fn watch_cancellations(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            let running = self.host.cancellations.ids();
            if running.is_empty() {
                continue;
            }
            match self.queue.cancelled(&running).await {
                Ok(ids) => ids.into_iter().for_each(|id| self.host.cancellations.cancel(id)),
                Err(error) => tracing::debug!(?error, "it can't be asked now which invocations are to end"),
            }
        }
    }
}

/// A part of the workers' time.
struct Share {
    tenant: crate::TenantId,
    tenants: Arc<Mutex<HashMap<crate::TenantId, usize>>>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = tenants.get_mut(&self.tenant) {
            *running -= 1;
            if *running == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

/// By what invocations that run in this process are ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancellations(Arc<Mutex<HashMap<InvocationId, Cancellation>>>);

impl Cancellations {
    fn enter(&self, id: InvocationId, cancellation: &Cancellation) -> Cancellable {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, cancellation.clone());
        Cancellable(self.clone(), id)
    }

    fn ids(&self) -> Vec<InvocationId> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Ends an invocation, where it runs here.
    pub(crate) fn cancel(&self, id: InvocationId) {
        if let Some(cancellation) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            cancellation.cancel();
        }
    }
}

struct Cancellable(Cancellations, InvocationId);

impl Drop for Cancellable {
    fn drop(&mut self) {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

/// A caller who waits for an execution.
pub(crate) struct Waiter {
    cx: CallContext,
    reply: oneshot::Sender<Result<InvokeResponse>>,
}

/// What is to become of an invocation that was taken and not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Somebody wants it to end.
    Cancelled,
    /// Nobody knows how its last attempt ended.
    Lost,
    /// It can't be executed.
    Failed,
}

/// How an attempt has ended.
struct Outcome {
    serving: Option<Arc<Serving>>,
    answer: Option<StoredAnswer>,
    /// The answer itself, for a caller who waits for it.
    response: Option<InvokeResponse>,
    error: Option<Error>,
    record: Option<Arc<InvocationRecord>>,
    started_at: Timestamp,
    /// Whether an attempt was made at all.
    is_made: bool,
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
        taken: TakenInvocation,
    ) -> Result<InvokeResponse> {
        let (reply, answer) = oneshot::channel();
        let (host, waiter) = (Arc::clone(self), Waiter { cx: cx.clone(), reply });
        self.lifetime.spawn(async move { host.process(taken, Some(waiter), CancellationToken::new()).await });
        answer.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, "the task that executes the invocation has ended before its time"))
        })
    }

    /// Executes what was taken, and settles it.
    async fn process(self: Arc<Self>, taken: TakenInvocation, waiter: Option<Waiter>, give_up: CancellationToken) {
        let (cx, reply) = waiter.map_or((None, None), |waiter| (Some(waiter.cx), Some(waiter.reply)));
        let is_awaited = reply.is_some();
        let mut reply = Reply { sender: reply, stream: None };
        let (settlement, answer) = match self.attempt(&taken, cx, &mut reply, &give_up).await {
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
                reply.send(Err(error.with_delivery(Delivery::Executed)));
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
        cx: Option<CallContext>,
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
        if is_interrupted && !taken.repeatable {
            let error = lost();
            return Ok((self.unsent(taken, &error, Claim::Lost).await?, Err(error)));
        }
        if submission.lineage.depth > self.config.queue.max_chain {
            let message = format!("more than {} invocations followed one upon the other", self.config.queue.max_chain);
            let error = unsent(ErrorKind::InvalidArgument, message);
            return Ok((self.unsent(taken, &error, Claim::Failed).await?, Err(error)));
        }
        let mut progress = invocation.progress.clone();
        if is_interrupted {
            progress.add(interrupted(invocation));
        }
        let is_awaited = cx.is_some();
        let ended = match &submission.work {
            Work::Invoke => self.invoke(taken, cx, reply, give_up).await?,
            Work::Callback { url, secret } => self.call_back(taken, url, secret.as_ref()).await?,
        };
        self.ended(taken, progress, ended, is_awaited).await
    }

    async fn invoke(
        self: &Arc<Self>,
        taken: &TakenInvocation,
        cx: Option<CallContext>,
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
        let is_awaited = cx.is_some();
        if !is_awaited && let Some(error) = too_late(&taken.invocation, &policy, started_at) {
            return Ok(Outcome::unsent(started_at, Some(serving), error));
        }
        let request = match submission.request.with_payload(submission.payload.clone()) {
            Ok(request) => request,
            Err(error) => return Ok(Outcome::unsent(started_at, Some(serving), error)),
        };
        let cancellation = cx.as_ref().and_then(CallContext::cancellation).cloned().unwrap_or_default();
        let _cancellable = self.cancellations.enter(submission.id, &cancellation);
        let queued = Arc::new(QueuedCall::new(submission.lineage.clone(), !is_awaited));
        let start = self.dispatch(taken, &serving, &policy);
        let cx = cx.unwrap_or_else(|| context(submission)).with_cancellation(cancellation.clone());
        let call = self.resumed(cx, taken, &serving, request, Arc::clone(&queued), start.clone());
        let wanted = (submission.key.clone(), &Qualifier::Serving);
        let in_flight = self.lifetime.tasks.token();
        let running = async {
            let mut outcome = Outcome::new(started_at);
            let mut response = match self.run(call, wanted, &serving, in_flight).await {
                Ok(response) => response,
                Err(error) => {
                    outcome.error = Some(error);
                    return outcome;
                }
            };
            let mut answer = stored(&response);
            let body = std::mem::take(&mut response.body);
            if is_awaited && body.is_stream() {
                response.body = Body::from_stream(received(reply.stream()));
                reply.send(Ok(*response));
            } else if is_awaited {
                response.body = body.try_clone().unwrap_or_default();
                outcome.response = Some(*response);
            }
            (answer.body, outcome.error) = self.drain(body, reply.reader()).await;
            outcome.answer = Some(answer);
            outcome
        };
        let mut outcome = tokio::select! {
            biased;
            outcome = running => outcome,
            () = give_up.cancelled() => Outcome { error: Some(lost()), ..Outcome::new(started_at) },
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

    /// Reads an answer to its end, and keeps it where it is not too large.
    async fn drain(&self, body: Body, reader: Option<&mpsc::Sender<Result<Bytes>>>) -> (Option<Bytes>, Option<Error>) {
        let limit = usize::try_from(self.config.queue.max_result_bytes).unwrap_or(usize::MAX);
        if let Some(bytes) = body.as_bytes() {
            return ((bytes.len() <= limit).then(|| bytes.clone()), None);
        }
        let mut chunks = body.into_stream();
        let mut kept = Some(BytesMut::new());
        while let Some(chunk) = chunks.next().await {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => {
                    if let Some(reader) = reader {
                        // A caller who has gone away needs no answer.
                        let _ = reader.send(Err(error.clone())).await;
                    }
                    return (None, Some(error));
                }
            };
            kept = kept.filter(|kept| kept.len().saturating_add(chunk.len()) <= limit);
            if let Some(kept) = &mut kept {
                kept.extend_from_slice(&chunk);
            }
            if let Some(reader) = reader {
                let _ = reader.send(Ok(chunk)).await;
            }
        }
        // What was streamed to its caller is not kept: it may never end, and is not asked for again.
        (kept.filter(|_| reader.is_none()).map(BytesMut::freeze), None)
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

    /// What an attempt's end means: the settle table, applied.
    async fn ended(
        &self,
        taken: &TakenInvocation,
        mut progress: Progress,
        outcome: Outcome,
        is_awaited: bool,
    ) -> Result<(Settlement, Result<InvokeResponse>)> {
        let Outcome { serving, mut answer, response, error, record, started_at, is_made } = outcome;
        let (invocation, now) = (&taken.invocation, self.clock.now());
        let submission = &invocation.submission;
        let policy = policy_of(submission, serving.as_deref());
        let number = invocation.attempts + 1;
        let failure = match (&record, &error) {
            (_, Some(error)) => Some(Failure::of(error)),
            (Some(record), None) => record.failure.clone(),
            (None, None) => None,
        };
        let mut attempt = Attempt::new(number, started_at, now);
        attempt.generation = serving.as_ref().map(|serving| serving.revision.generation);
        attempt.status = answer.as_ref().map(|answer| answer.status);
        attempt.failure.clone_from(&failure);
        if let (Some(failure), false) = (&failure, is_awaited) {
            let idempotent = serving.as_ref().is_some_and(|serving| serving.revision.spec.idempotent)
                || matches!(submission.work, Work::Callback { .. });
            let ended = Ended {
                failure,
                kind: error.as_ref().map(Error::kind),
                transient: error.as_ref().is_some_and(Error::is_transient),
                status: attempt.status.filter(|_| error.is_none()),
            };
            let asked = error.as_ref().and_then(Error::retry_after);
            let pause = policy.backoff(number, asked);
            let in_time = now.plus(pause) <= first_due(submission).plus(policy.age());
            let again = match verdict(ended, &policy, idempotent) {
                Verdict::Return if in_time => Some(invocation.attempts),
                Verdict::Again if in_time && number < policy.attempts() => Some(number),
                _ => None,
            };
            if let Some(attempts) = again {
                if is_made && attempts == number {
                    progress.add(attempt);
                }
                progress.failure = Some(failure.clone());
                let settled = Settled::Again { due: Due::In(pause), attempts };
                return Ok((Settlement::new(settled, progress), Err(in_progress_error())));
            }
        }
        if is_made {
            progress.add(attempt);
        }
        progress.failure.clone_from(&failure);
        if let Some(answer) = &mut answer {
            answer.failure.clone_from(&failure);
        }
        let is_unsent = failure.as_ref().is_some_and(|failure| failure.delivery == Delivery::NotSent);
        let reply = match (response, error) {
            (_, Some(error)) => Err(error),
            (Some(response), None) => Ok(response),
            (None, None) => Err(Error::new(ErrorKind::Internal, "the invocation has ended without an answer")),
        };
        progress.answer =
            answer.filter(|_| failure.as_ref().is_none_or(|failure| failure.delivery != Delivery::NotSent));
        let record = match (record, &failure) {
            (Some(record), _) => Some(record),
            (None, Some(failure)) => self.final_record(taken, serving.as_deref(), failure).await?,
            (None, None) => None,
        };
        let record = record.map(|record| with_first_start(record, &progress));
        let cancelled = record.as_ref().is_some_and(|record| record.state == InvocationState::Cancelled);
        let dead = failure.is_some() && !policy.drop_failed && !is_awaited && !cancelled;
        let followers = match &record {
            Some(record) if !cancelled => self.followers(submission, &policy, record, &progress).await,
            _ => Vec::new(),
        };
        let settled = Settled::Ended { record, dead, keep_for: self.config.queue.keep_for };
        let mut settlement = Settlement::new(settled, progress);
        settlement.followers = followers;
        // What was not sent may be sent under the same key again.
        settlement.free_key = is_awaited && is_unsent;
        Ok((settlement, reply))
    }

    /// How what was taken and not sent is settled.
    pub(crate) async fn unsent(&self, taken: &TakenInvocation, error: &Error, claim: Claim) -> Result<Settlement> {
        let submission = &taken.invocation.submission;
        let failure = Failure::of(error);
        let mut progress = taken.invocation.progress.clone();
        if taken.invocation.state == QueueState::Running {
            progress.add(interrupted(&taken.invocation));
        }
        progress.failure = Some(failure.clone());
        let policy = match self.serving_for(submission).await {
            Ok(serving) => policy_of(submission, Some(&serving)),
            Err(_) => policy_of(submission, None),
        };
        let record = match submission.work {
            Work::Invoke => self.final_record(taken, None, &failure).await?,
            Work::Callback { .. } => None,
        };
        let record = record.map(|record| with_first_start(record, &progress));
        let follows = claim == Claim::Lost;
        let followers = match &record {
            Some(record) if follows => self.followers(submission, &policy, record, &progress).await,
            _ => Vec::new(),
        };
        let dead = claim != Claim::Cancelled && !policy.drop_failed;
        let settled = Settled::Ended { record, dead, keep_for: self.config.queue.keep_for };
        let mut settlement = Settlement::new(settled, progress);
        settlement.followers = followers;
        Ok(settlement)
    }

    /// What serves a submission: the function that it was accepted for, and no other.
    async fn serving_for(&self, submission: &Submission) -> Result<Arc<Serving>> {
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
        cx: CallContext,
        taken: &TakenInvocation,
        serving: &Serving,
        request: InvokeRequest,
        queued: Arc<QueuedCall>,
        start: DurableStart,
    ) -> Box<Invocation> {
        let (invocation, submission) = (&taken.invocation, &taken.invocation.submission);
        let policy = self.config.record.for_spec(&serving.revision.spec);
        let max_log = usize::try_from(policy.max_log_bytes).unwrap_or(usize::MAX);
        let waited = self.clock.now().since(submission.created_at);
        let accepted = (submission.id, submission.created_at);
        let state = Arc::new(CallState::resumed(accepted, waited, invocation.attempts, max_log));
        if let Some(len) = request.body.len() {
            state.set_request_bytes(len);
        }
        let cx =
            crate::executor::traced(&cx, &request).for_invocation(submission.id).with_attempt(invocation.attempts + 1);
        let mut call = Invocation::new(cx, request, Arc::clone(&serving.revision), state);
        (call.queued, call.durable_start) = (Some(queued), Some(start));
        Box::new(call)
    }

    /// Commits that the attempt is about to be sent, when it is.
    fn dispatch(&self, taken: &TakenInvocation, serving: &Serving, policy: &AsyncPolicy) -> DurableStart {
        let spec = &serving.revision.spec;
        // Longer than the call can take, so that nobody else gets it while it runs.
        let lease = self.config.longest_call(spec) + self.config.queue.lease_margin;
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

    /// The final record of an invocation that no attempt has left one of.
    async fn final_record(
        &self,
        taken: &TakenInvocation,
        serving: Option<&Serving>,
        failure: &Failure,
    ) -> Result<Option<Arc<InvocationRecord>>> {
        let invocation = &taken.invocation;
        let submission = &invocation.submission;
        if submission.work != Work::Invoke {
            return Ok(None);
        }
        let known = self.invocations.get(&submission.key.tenant, submission.id).await?;
        let mut record = match (known, serving) {
            (Some(known), _) => InvocationRecord::clone(&known),
            (None, Some(serving)) => self.queued_record(submission, serving),
            // The store has forgotten it, and there is nobody left who could say what it was.
            (None, None) => return Ok(None),
        };
        record.state = match failure.code.as_str() {
            code if code == ErrorKind::Lost.code() => InvocationState::Lost,
            code if code == ErrorKind::Cancelled.code() => InvocationState::Cancelled,
            code if code == ErrorKind::DeadlineExceeded.code() => InvocationState::TimedOut,
            _ => InvocationState::Failed,
        };
        record.attempts = invocation.attempts;
        record.failure = Some(failure.clone());
        record.finished_at = Some(self.clock.now().max(record.created_at));
        Ok(Some(Arc::new(record)))
    }

    /// What follows upon the end of an invocation.
    async fn followers(
        &self,
        submission: &Submission,
        policy: &AsyncPolicy,
        record: &InvocationRecord,
        progress: &Progress,
    ) -> Vec<Acceptance> {
        let succeeded = record.state == InvocationState::Succeeded;
        let mut followers = Vec::new();
        match policy.destination(succeeded) {
            // Whoever is told of a chain that is too long would only make it longer.
            _ if submission.lineage.depth > self.config.queue.max_chain => {}
            Some(Destination::Function(name)) => {
                let (payload, content_type) = match succeeded {
                    true => result_of(progress),
                    false => (ending_document(record, progress).into(), Some(ENDING_TYPE)),
                };
                let mut request = InvokeRequest::new(Bytes::new());
                if let Some(content_type) = content_type {
                    request.headers.insert(http::header::CONTENT_TYPE, content_type);
                }
                if let Ok(request) = StoredRequest::of(&request) {
                    let mut follower = self.follower(submission, name, request, payload).await;
                    follower.0.lineage.depth += 1;
                    followers.push(follower);
                }
            }
            Some(Destination::Callback(target)) => {
                let request = StoredRequest::of(&InvokeRequest::new(Bytes::new()));
                if let Ok(request) = request {
                    let mut callback = self.child(submission, request, ending_document(record, progress).into());
                    callback.work = Work::Callback { url: target.url.clone(), secret: target.secret.clone() };
                    followers.push((callback, None));
                }
            }
            None => {}
        }
        if let Some(Sequence { next, go_on }) = &submission.sequence
            && (succeeded || *go_on)
            && let Some((name, rest)) = next.split_first()
        {
            let (request, payload) = (submission.request.clone(), submission.payload.clone());
            let mut follower = self.follower(submission, name, request, payload).await;
            follower.0.policy.clone_from(&submission.policy);
            follower.0.sequence = (!rest.is_empty()).then(|| Sequence::new(rest.to_vec(), *go_on));
            followers.push(follower);
        }
        let accept = |(submission, record): (Submission, Option<InvocationRecord>)| {
            Acceptance::new(Arc::new(submission), record.map(Arc::new))
        };
        followers.into_iter().map(accept).collect()
    }

    /// An invocation of another function as a consequence of one. Where there is no such function it is accepted all the
    /// same, and ends as a dead letter that says so: what it was to get is not lost.
    async fn follower(
        &self,
        parent: &Submission,
        name: &FunctionName,
        request: StoredRequest,
        payload: Bytes,
    ) -> (Submission, Option<InvocationRecord>) {
        let mut child = self.child(parent, request, payload);
        child.key = FunctionKey::new(parent.key.tenant.clone(), name.clone());
        let serving = async {
            let route = self.routes.find(&self.functions, &child.key).await?;
            let function = route.function.id;
            Ok::<_, Error>((function, self.serving_on(&route, &Qualifier::Serving).await))
        };
        let serving = match serving.await {
            Ok((function, serving)) => {
                child.function = function;
                serving.ok()
            }
            Err(_) => {
                child.function = FunctionId::generate();
                None
            }
        };
        child.generation = serving.as_ref().map_or(Generation::FIRST, |serving| serving.revision.generation);
        child.lineage.accepted_by = serving.as_ref().map(|serving| serving.revision.generation);
        let record = match serving {
            Some(serving) => Some(self.queued_record(&child, &serving)),
            None => self.invocations.get(&parent.key.tenant, parent.id).await.ok().flatten().map(|of_parent| {
                let mut record = InvocationRecord::clone(&of_parent);
                (record.id, record.key, record.function) = (child.id, child.key.clone(), child.function);
                (record.generation, record.state, record.failure) = (child.generation, InvocationState::Queued, None);
                (record.status, record.attempts, record.started_at, record.finished_at) = (None, 0, None, None);
                (record.payload, record.result, record.logs) = (None, None, None);
                (record.timings, record.response_bytes) = (crate::Timings::default(), 0);
                (record.created_at, record.origin) = (child.created_at, child.origin);
                record.request_bytes = u64::try_from(child.payload.len()).ok();
                record.lineage = Some(Box::new(child.lineage.clone()));
                record
            }),
        };
        (child, record)
    }

    fn child(&self, parent: &Submission, request: StoredRequest, payload: Bytes) -> Submission {
        let mut child = parent.clone();
        child.id = InvocationId::generate();
        child.created_at = self.clock.now();
        child.not_before = None;
        (child.request, child.payload) = (request, payload);
        (child.pinned, child.policy, child.idempotency, child.sequence) = (false, None, None, None);
        child.work = Work::Invoke;
        child.origin = if parent.lineage.event.is_some() { Origin::Event } else { Origin::Async };
        (child.lineage.parent, child.lineage.redrive_of) = (Some(parent.id), None);
        child
    }
}

/// A caller's end of an execution.
struct Reply {
    sender: Option<oneshot::Sender<Result<InvokeResponse>>>,
    /// Where the chunks of an answer go that is streamed. Held until the end is committed: only then the stream ends.
    stream: Option<mpsc::Sender<Result<Bytes>>>,
}

impl Reply {
    fn stream(&mut self) -> mpsc::Receiver<Result<Bytes>> {
        let (sender, receiver) = mpsc::channel(1);
        self.stream = Some(sender);
        receiver
    }

    fn reader(&self) -> Option<&mpsc::Sender<Result<Bytes>>> {
        self.stream.as_ref()
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

fn policy_of(submission: &Submission, serving: Option<&Serving>) -> AsyncPolicy {
    let own = submission.policy.clone();
    let of_function = || serving.and_then(|serving| serving.revision.spec.async_policy.as_deref().cloned());
    own.or_else(of_function).unwrap_or_default()
}

fn first_due(submission: &Submission) -> Timestamp {
    submission.not_before.unwrap_or(submission.created_at)
}

/// Why no further attempt is made.
fn too_late(invocation: &crate::QueuedInvocation, policy: &AsyncPolicy, now: Timestamp) -> Option<Error> {
    let exhausted = |message: String| {
        let error = Error::new(ErrorKind::DeadlineExceeded, message);
        Some(error.with_retry(Retry::Exhausted).with_delivery(Delivery::NotSent))
    };
    if now > first_due(&invocation.submission).plus(policy.age()) {
        return exhausted(format!("the invocation is older than its max_age_ms ({})", policy.age().as_millis()));
    }
    if invocation.attempts >= policy.attempts() {
        return exhausted(format!("all {} attempts were made", policy.attempts()));
    }
    None
}

fn lost() -> Error {
    let message = "the gateway that executed it died or was stopped, and nobody knows how it ended";
    // Where it may be repeated, that is worth while.
    Error::new(ErrorKind::Lost, message).with_retry(Retry::Transient)
}

/// The attempt of which nobody knows how it ended. Its times are that at which its lease ran out.
fn interrupted(invocation: &crate::QueuedInvocation) -> Attempt {
    let at = invocation.due_at.unwrap_or(invocation.submission.created_at);
    let mut attempt = Attempt::new(invocation.attempts, at, at);
    let error = lost();
    attempt.failure = Some(Failure::of(&error));
    attempt
}

fn in_progress_error() -> Error {
    Error::new(ErrorKind::InProgress, "the invocation is tried again")
}

fn with_first_start(record: Arc<InvocationRecord>, progress: &Progress) -> Arc<InvocationRecord> {
    let Some(first) = progress.attempts.first().filter(|first| first.number == 1) else { return record };
    let mut record = Arc::unwrap_or_clone(record);
    if record.started_at.is_some_and(|started| started > first.started_at) {
        record.started_at = Some(first.started_at);
    }
    Arc::new(record)
}

/// The result of a success, as the payload of what follows.
fn result_of(progress: &Progress) -> (Bytes, Option<http::HeaderValue>) {
    let Some(answer) = &progress.answer else { return (Bytes::new(), None) };
    let content_type = answer.headers.iter().find(|(name, _)| name == http::header::CONTENT_TYPE.as_str());
    let content_type = content_type.and_then(|(_, value)| http::HeaderValue::try_from(value).ok());
    (answer.body.clone().unwrap_or_default(), content_type)
}

fn stored(response: &InvokeResponse) -> StoredAnswer {
    let text = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned()))
    };
    StoredAnswer::new(response.status.as_u16(), response.headers.iter().filter_map(text).collect(), None)
}

fn received(
    receiver: mpsc::Receiver<Result<Bytes>>,
) -> impl futures_core::Stream<Item = Result<Bytes>> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async move { receiver.recv().await.map(|chunk| (chunk, receiver)) })
}
