//! Invocations that outlive their caller, from their caller's side: submitted, waited for, ended, looked at when dead.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{StatusCode, header};
use sha2::{Digest as _, Sha256};
use tokio::sync::oneshot;

use crate::body::by_deadline;
use crate::host::Host;
use crate::queue::{not_dead, not_queued, read_headers};
use crate::route::Serving;
use crate::worker::Claim;
use crate::{
    Acceptance, Accepted, Action, AsyncPolicy, CallContext, CallState, Cancelling, DeadLetterFilter, Deadline,
    Delivery, Due, Error, ErrorClass, ErrorKind, EventRef, Failure, FunctionId, FunctionKey, FunctionName, FunctionRef,
    Gateway, Generation, IdempotencyKey, InvocationId, InvocationQueue, InvocationRecord, InvocationState,
    InvokeRequest, InvokeResponse, Origin, Page, PageRequest, Principal, Progress, QueueDepth, QueueLimits, QueueState,
    QueuedInvocation, Result, Retry, Revision, Sequence, StoredAnswer, StoredRequest, Submission, Violation, Work,
};

/// How an invocation is submitted. Everything has a default.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SubmitOptions {
    /// When it may be executed; at once where it is absent. A time that has passed is at once.
    pub due: Option<Due>,
    /// Has the generation that serves now execute it, whichever serves by then. It stays deployed until then, and
    /// how many may refer to it is limited.
    pub pin: bool,
    /// How it is tried, in place of what the function's specification says.
    pub policy: Option<AsyncPolicy>,
    /// Functions that get the same payload after this one.
    pub sequence: Option<Sequence>,
    /// The event that it is a consequence of.
    pub event: Option<EventRef>,
    /// Looks at nothing at the door: neither at the payload, nor at whether the principal may execute the function or there is
    /// one. What is wrong shows when it is executed, and is a dead letter that says why. For senders who are not to learn
    /// of functions, such as those of events; the host sees to who may do so.
    pub unchecked: bool,
}

impl SubmitOptions {
    /// Sets when it may be executed.
    #[must_use]
    pub fn with_due(mut self, due: Due) -> Self {
        self.due = Some(due);
        self
    }

    /// Has the generation that serves now execute it.
    #[must_use]
    pub fn pinned(mut self) -> Self {
        self.pin = true;
        self
    }

    /// Sets how it is tried.
    #[must_use]
    pub fn with_policy(mut self, policy: AsyncPolicy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Adds functions that get the same payload afterwards.
    #[must_use]
    pub fn with_sequence(mut self, sequence: Sequence) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// Leaves all checks to the execution.
    #[must_use]
    pub fn unchecked(mut self) -> Self {
        self.unchecked = true;
        self
    }

    /// Names the event that it is a consequence of.
    #[must_use]
    pub fn with_event(mut self, event: EventRef) -> Self {
        self.event = Some(event);
        self
    }
}

/// That an invocation was accepted: it is committed, and is not lost any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The invocation.
    pub id: InvocationId,
    /// Whether it was accepted before, under the same idempotency key.
    pub is_repeated: bool,
}

/// The queue of invocations and what has died in it, for those who operate functions.
///
/// Everything here is [`ErrorKind::Unsupported`] in a gateway without a queue.
///
/// New methods may be added: it is implemented by the gateway, not by hosts.
#[async_trait]
pub trait QueueManager: std::fmt::Debug + Send + Sync + 'static {
    /// Reads an invocation as it stands in the queue, with its payload, attempts and answer, as long as they are kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the tenant has none of the id, or it is kept no longer.
    async fn queued(&self, cx: &CallContext, id: InvocationId) -> Result<Arc<QueuedInvocation>>;

    /// Reads a page of the tenant's dead letters, those that died last first, without payloads and answers.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a cursor of another list.
    async fn dead_letters(
        &self,
        cx: &CallContext,
        filter: &DeadLetterFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>>;

    /// Has a dead letter executed again, as a new invocation on behalf of the one who asks. The dead one stays with its end.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Conflict`] where it is not dead, or was redriven before; those of
    /// [`submit`](crate::FunctionExecutor::submit).
    ///
    /// # Cancel safety
    /// Where the future is dropped, it is done or not done.
    async fn redrive(&self, cx: &CallContext, id: InvocationId) -> Result<Receipt>;

    /// Forgets a dead letter. The record of its execution stays.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Conflict`] where it is not dead.
    ///
    /// # Cancel safety
    /// Where the future is dropped, it is done or not done.
    async fn purge(&self, cx: &CallContext, id: InvocationId) -> Result<()>;

    /// How much there is in the queue of a function, or of all functions of the tenant.
    ///
    /// # Errors
    /// Where the store fails.
    async fn queue_depth(&self, cx: &CallContext, function: Option<&FunctionName>) -> Result<QueueDepth>;
}

#[async_trait]
impl QueueManager for Gateway {
    async fn queued(&self, cx: &CallContext, id: InvocationId) -> Result<Arc<QueuedInvocation>> {
        self.host.queued(cx, id, Action::ReadExecutions).await
    }

    async fn dead_letters(
        &self,
        cx: &CallContext,
        filter: &DeadLetterFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>> {
        self.host.authorize(cx, Action::ReadExecutions, filter.name.as_ref().map(|name| (name, None))).await?;
        self.host.queue()?.dead_letters(cx.tenant(), filter, page).await
    }

    async fn redrive(&self, cx: &CallContext, id: InvocationId) -> Result<Receipt> {
        self.host.redrive(cx, id).await.map_err(|error| error.with_operation("redrive"))
    }

    async fn purge(&self, cx: &CallContext, id: InvocationId) -> Result<()> {
        let dead = self.host.queued(cx, id, Action::Purge).await?;
        let (host, cx) = (Arc::clone(&self.host), cx.clone());
        let purge = async move {
            host.queue()?.purge(cx.tenant(), id).await?;
            host.audit_execution(&cx, Action::Purge, &dead.submission.key.name, id).await;
            Ok(())
        };
        self.host.lifetime.carry_out(purge).await
    }

    async fn queue_depth(&self, cx: &CallContext, function: Option<&FunctionName>) -> Result<QueueDepth> {
        self.host.authorize(cx, Action::ReadExecutions, function.map(|name| (name, None))).await?;
        self.host.queue()?.depth(cx.tenant(), function).await
    }
}

impl Host {
    /// The queue, where there is one.
    pub(crate) fn queue(&self) -> Result<&Arc<dyn InvocationQueue>> {
        self.queue.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "this gateway has no queue, so it takes no invocations for later")
        })
    }

    /// Reads what is queued for somebody who may do something with it.
    async fn queued(&self, cx: &CallContext, id: InvocationId, action: Action) -> Result<Arc<QueuedInvocation>> {
        let found = self.queue()?.queued(cx.tenant(), id).await?;
        let name = found.as_ref().map(|queued| (&queued.submission.key.name, None));
        self.authorize(cx, action, name).await?;
        found.ok_or_else(|| not_queued(id))
    }

    /// As [`queued`](Self::queued), for the one who submitted it, or else for whoever may read executions.
    async fn own_queued(&self, cx: &CallContext, id: InvocationId) -> Result<Option<Arc<QueuedInvocation>>> {
        let Some(found) = self.queue()?.queued(cx.tenant(), id).await? else { return Ok(None) };
        let is_own = found.submission.principal.id == cx.principal().id;
        self.authorize_to_read(cx, is_own, Some((&found.submission.key.name, None))).await?;
        Ok(Some(found))
    }

    /// Reads the record of an execution, for the one who submitted it, or else for whoever may read executions.
    pub(crate) async fn recorded(&self, cx: &CallContext, id: InvocationId) -> Result<Arc<InvocationRecord>> {
        let record = self.invocations.get(cx.tenant(), id).await?;
        let is_own = |record: &InvocationRecord| record.lineage.is_some() && record.caller == cx.principal().id;
        let is_own = record.as_deref().is_some_and(is_own);
        let name = record.as_ref().map(|record| (&record.key.name, Some(&record.owner)));
        self.authorize_to_read(cx, is_own, name).await?;
        record.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no execution {id}")))
    }

    /// Lets an invocation in as far as it can be looked at before it is executed.
    async fn let_in(&self, cx: &CallContext, function: &FunctionRef, request: InvokeRequest) -> Result<LetIn> {
        let (serving, request, found) = self.examine(cx, function, request, Some(&self.config.queue)).await?;
        if !found.is_empty() {
            return Err(Error::new(ErrorKind::InvalidInput, "the payload is not what the function takes")
                .with_violations(found));
        }
        let payload = request.body.as_bytes().cloned().unwrap_or_default();
        let stored = StoredRequest::of(&request)?;
        let idempotency =
            request.idempotency_key.as_deref().map(|key| idempotency(key, &stored, &payload)).transpose()?;
        Ok(LetIn { serving, stored, payload, idempotency })
    }

    /// An invocation of whatever bears a name, also where nothing does.
    async fn unchecked(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        mut request: InvokeRequest,
        is_event: bool,
    ) -> Result<(Submission, Option<Arc<Revision>>)> {
        self.lifetime.check_open()?;
        let payload = std::mem::take(&mut request.body).collect(self.config.queue.max_payload_bytes).await?;
        let stored = StoredRequest::of(&request)?;
        let key = FunctionKey::new(cx.tenant().clone(), function.name().clone());
        let (id, generation, revision) = self.named(&key).await?;
        let generation = match function.qualifier() {
            crate::Qualifier::Generation(generation) => *generation,
            _ => generation,
        };
        let principal = Principal::clone(cx.principal());
        let invocation = cx.invocation_id().unwrap_or_else(InvocationId::generate);
        let meant = (key, id, generation);
        let mut submission = Submission::meant(invocation, meant, (principal, self.clock.now()), stored, payload);
        submission.lineage.accepted_by = revision.as_ref().map(|revision| revision.generation);
        (submission.trace, submission.trace_state) = (cx.trace(), cx.trace_state().map(str::to_owned));
        if let Some(key) = &request.idempotency_key {
            let mut known = idempotency(key, &submission.request, &submission.payload)?;
            if is_event {
                // An event is the same by what its key is made of, whatever its data are this time.
                "event".clone_into(&mut known.fingerprint);
            }
            submission.idempotency = Some(known);
        }
        Ok((submission, revision))
    }

    /// The function that bears a name, and what serves of it; one that is nobody's where none does.
    pub(crate) async fn named(&self, key: &FunctionKey) -> Result<(FunctionId, Generation, Option<Arc<Revision>>)> {
        let route = match self.routes.find(&self.functions, key).await {
            Ok(route) => route,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Ok((FunctionId::generate(), Generation::FIRST, None));
            }
            Err(error) => return Err(error),
        };
        let function = &route.function;
        let generation = function.status.serving_generation().unwrap_or(function.generation);
        let revision = self.functions.revision(&key.tenant, function.id, generation).await?;
        Ok((function.id, generation, revision))
    }

    pub(crate) async fn submit(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        request: InvokeRequest,
        options: SubmitOptions,
    ) -> Result<Receipt> {
        let queue = self.queue()?;
        self.check_options(&options)?;
        let (mut submission, revision) = match options.unchecked {
            true => {
                by_deadline(cx.deadline(), pin!(self.unchecked(cx, function, request, options.event.is_some()))).await?
            }
            false => {
                let let_in = by_deadline(cx.deadline(), pin!(self.let_in(cx, function, request))).await?;
                (let_in.submission(self, cx), Some(Arc::clone(&let_in.serving.revision)))
            }
        };
        submission.origin = if options.event.is_some() { Origin::Event } else { Origin::Async };
        submission.pinned = options.pin || *function.qualifier() != crate::Qualifier::Serving;
        submission.policy = options.policy;
        submission.sequence = options.sequence;
        submission.lineage.event = options.event;
        submission.not_before = match options.due {
            Some(Due::At(at)) => Some(at.max(submission.created_at)),
            Some(Due::In(delay)) => Some(submission.created_at.plus(delay)),
            Some(Due::Now) | None => None,
        };
        // What was due before it was there does not get before others.
        let due = match options.due {
            Some(Due::At(at)) => Due::At(at.max(submission.created_at)),
            Some(due) => due,
            None => Due::Now,
        };
        let record = queued_record(&submission, revision.as_deref());
        let acceptance = Acceptance::new(Arc::new(submission), Some(Arc::new(record)))
            .with_due(due)
            .with_limits(self.queue_limits());
        let id = acceptance.submission.id;
        let accepted = accepted_by(cx.deadline(), queue.accept(acceptance)).await;
        let accepted = accepted.map_err(|error| match error.delivery() {
            // It is to be found under its id where it was committed.
            Delivery::Unknown => error.with_context("invocation", id.to_string()),
            _ => error,
        })?;
        match accepted {
            Accepted::New { .. } => {
                metrics::counter!("function_gateway.queue.accepted").increment(1);
                Ok(Receipt { id, is_repeated: false })
            }
            Accepted::Known(known) => Ok(Receipt { id: known.submission.id, is_repeated: true }),
        }
    }

    pub(crate) fn queue_limits(&self) -> QueueLimits {
        let config = &self.config.queue;
        let mut limits = QueueLimits::new(config.max_per_function, config.max_per_tenant);
        limits.pinned = config.max_pinned;
        limits
    }

    fn check_options(&self, options: &SubmitOptions) -> Result<()> {
        let mut found = Vec::new();
        if let Some(policy) = &options.policy {
            policy.check("/policy", &mut found);
            self.check_callbacks(policy, "/policy", &mut found);
        }
        let most = self.config.queue.max_delay;
        let too_late = match options.due {
            Some(Due::In(delay)) => delay > most,
            Some(Due::At(at)) => at > self.clock.now().plus(most),
            Some(Due::Now) | None => false,
        };
        if too_late {
            let days = most.as_secs() / 86400;
            found.push(Violation::new(
                "/due",
                format!("is further in the future than this gateway allows: {days} days"),
            ));
        }
        if found.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidArgument, "the invocation can't be accepted like this").with_violations(found))
    }

    /// What is wrong with the addresses of a policy.
    pub(crate) fn check_callbacks(&self, policy: &AsyncPolicy, at: &str, found: &mut Vec<Violation>) {
        for (field, succeeded) in [("on_success", true), ("on_failure", false)] {
            let Some(crate::Destination::Callback(target)) = policy.destination(succeeded) else { continue };
            let at = format!("{at}/{field}/callback/url");
            match &self.callbacks {
                None => found.push(Violation::new(at, "this gateway sends no callbacks")),
                Some(sender) => found.extend(sender.check(&target.url).map(|reason| Violation::new(at, reason))),
            }
        }
    }

    /// Executes a call that has an idempotency key: like a submitted one that is executed at once, so that the key and the
    /// execution are committed together. It goes on when its caller goes away.
    pub(crate) async fn invoke_once(
        self: &Arc<Self>,
        cx: &CallContext,
        function: &FunctionRef,
        request: InvokeRequest,
    ) -> Result<InvokeResponse> {
        self.queue()?;
        let extensions = request.extensions.clone();
        let let_in = by_deadline(cx.deadline(), pin!(self.let_in(cx, function, request))).await?;
        let mut submission = let_in.submission(self, cx);
        submission.origin = cx.origin();
        submission.pinned = *function.qualifier() != crate::Qualifier::Serving;
        let record = queued_record(&submission, Some(&let_in.serving.revision));
        let lease = self.config.lease_of(&let_in.serving.revision.spec);
        let submission = Arc::new(submission);
        let acceptance = Acceptance::new(Arc::clone(&submission), Some(Arc::new(record)))
            .with_limits(self.queue_limits())
            .with_lease(lease);
        // By a task from here on: whoever has accepted it also executes it, whether its caller stays or goes.
        let (host, caller) = (Arc::clone(self), cx.clone());
        let (told, accepted) = oneshot::channel();
        let executed = self.lifetime.spawn(async move {
            let accepted = host.queue()?.accept(acceptance).await;
            // The caller may have gone.
            let _ = told.send(());
            match accepted? {
                Accepted::Known(known) => replayed(&known),
                Accepted::New { lease: Some(lease) } => {
                    let waiting = QueuedInvocation::waiting(submission, host.clock.now());
                    let taken = crate::TakenInvocation::new(lease, waiting, false);
                    host.execute_for(&caller, extensions, taken).await
                }
                Accepted::New { lease: None } => {
                    Err(Error::new(ErrorKind::Store, "the queue has not given the invocation that it accepted"))
                }
            }
        });
        // From its end on, the execution minds the caller's deadline itself.
        let accepting = async {
            let _ = accepted.await;
            Ok(())
        };
        accepted_by(cx.deadline(), accepting).await?;
        executed.await.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Internal, "the task that executes the invocation has ended before its time"))
        })
    }

    pub(crate) async fn cancel(self: &Arc<Self>, cx: &CallContext, id: InvocationId) -> Result<()> {
        let found = self.queued(cx, id, Action::Cancel).await?;
        let (host, cx) = (Arc::clone(self), cx.clone());
        let cancel = async move {
            match host.queue()?.cancel(cx.tenant(), id, host.config.queue.lease_margin).await? {
                Cancelling::Taken(taken) => {
                    let message = "the invocation was cancelled before it was executed";
                    let error = Error::new(ErrorKind::Cancelled, message).with_delivery(Delivery::NotSent);
                    host.settle_unsent(&taken, &error, Claim::Cancelled).await?;
                }
                Cancelling::Requested => host.cancellations.cancel(id),
                Cancelling::Ended => {
                    let message = "the invocation has ended already";
                    return Err(Error::new(ErrorKind::Conflict, message).with_retry(Retry::Never));
                }
            }
            host.audit_execution(&cx, Action::Cancel, &found.submission.key.name, id).await;
            Ok(())
        };
        self.lifetime.carry_out(cancel).await
    }

    /// The kept answer of an invocation that has ended.
    pub(crate) async fn result(&self, cx: &CallContext, id: InvocationId) -> Result<InvokeResponse> {
        let Some(found) = self.own_queued(cx, id).await? else {
            // It is kept no longer, or never was in the queue: what is left is its record.
            let record = self.recorded(cx, id).await?;
            return Err(match record.state.is_final() {
                true => not_kept(id),
                false => in_progress(id),
            });
        };
        replayed(&found)
    }

    async fn redrive(self: &Arc<Self>, cx: &CallContext, id: InvocationId) -> Result<Receipt> {
        let dead = self.queued(cx, id, Action::Redrive).await?;
        if dead.state != QueueState::Dead {
            return Err(not_dead(id));
        }
        let old = &dead.submission;
        let mut submission = Submission::clone(old);
        submission.id = InvocationId::generate();
        submission.created_at = self.clock.now();
        submission.principal = Principal::clone(cx.principal());
        submission.idempotency = None;
        submission.lineage.redrive_of = Some(id);
        // Where the rest went on after the failure, it has gone on already.
        submission.sequence = submission.sequence.filter(|sequence| !sequence.go_on);
        submission.not_before = None;
        let record = match &old.work {
            Work::Invoke => {
                let key = &old.key;
                let route = self.routes.find(&self.functions, key).await?;
                let serving = self.serving_on(&route, &crate::Qualifier::Serving).await?;
                // Whoever has it executed again means the function that bears the name now.
                submission.function = serving.revision.function;
                submission.generation = serving.revision.generation;
                submission.pinned = false;
                submission.lineage.accepted_by = Some(serving.revision.generation);
                Some(Arc::new(queued_record(&submission, Some(&serving.revision))))
            }
            Work::Callback { .. } => None,
        };
        let receipt = Receipt { id: submission.id, is_repeated: false };
        let acceptance = Acceptance::new(Arc::new(submission), record).with_limits(self.queue_limits());
        let (host, cx) = (Arc::clone(self), cx.clone());
        let redrive = async move {
            host.queue()?.redrive(cx.tenant(), id, acceptance, host.config.queue.keep_for).await?;
            host.audit_execution(&cx, Action::Redrive, &dead.submission.key.name, id).await;
            Ok(receipt)
        };
        self.lifetime.carry_out(redrive).await
    }

    /// Ends or puts off what was taken and not sent.
    pub(crate) async fn settle_unsent(
        &self,
        taken: &crate::TakenInvocation,
        error: &Error,
        claim: Claim,
    ) -> Result<()> {
        let settlement = self.unsent(taken, error, claim).await?;
        self.queue()?.settle(&taken.lease, settlement).await
    }
}

/// What was let in, and how it is stored.
struct LetIn {
    serving: Arc<Serving>,
    stored: StoredRequest,
    payload: Bytes,
    idempotency: Option<IdempotencyKey>,
}

impl LetIn {
    fn submission(&self, host: &Host, cx: &CallContext) -> Submission {
        let id = cx.invocation_id().unwrap_or_else(InvocationId::generate);
        let principal = Principal::clone(cx.principal());
        let (request, payload) = (self.stored.clone(), self.payload.clone());
        let revision = &self.serving.revision;
        let mut submission = Submission::new(id, revision, principal, host.clock.now(), request, payload);
        submission.trace = cx.trace();
        submission.trace_state = cx.trace_state().map(str::to_owned);
        submission.idempotency = self.idempotency.clone();
        submission
    }
}

/// The record of what was accepted. Where nothing serves that could execute it, `none` stands for the driver.
pub(crate) fn queued_record(submission: &Submission, revision: Option<&Revision>) -> InvocationRecord {
    let caller = submission.principal.id.clone();
    let (id, created_at) = (submission.id, submission.created_at);
    let mut record = match revision {
        Some(revision) => InvocationRecord::new(id, revision, caller, created_at),
        None => InvocationRecord::unserved(submission),
    };
    record.state = InvocationState::Queued;
    record.origin = submission.origin;
    record.trace = submission.trace;
    record.request_bytes = u64::try_from(submission.payload.len()).ok();
    record.lineage = Some(Box::new(submission.lineage.clone()));
    record
}

/// A key with what is sent under it.
fn idempotency(key: &str, request: &StoredRequest, payload: &[u8]) -> Result<IdempotencyKey> {
    if key.is_empty() || key.len() > IdempotencyKey::MAX_LEN || key.chars().any(char::is_control) {
        let message =
            format!("an idempotency key has 1 to {} bytes and no control characters", IdempotencyKey::MAX_LEN);
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    let mut hash = Sha256::new();
    let content_type = request.headers.iter().find(|(name, _)| name == header::CONTENT_TYPE.as_str());
    let parts = [
        request.method.as_str(),
        &request.path,
        request.query.as_deref().unwrap_or_default(),
        content_type.map_or("", |(_, value)| value),
    ];
    for part in parts {
        // With its length, so that two requests whose parts meet elsewhere differ.
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.update(payload);
    let fingerprint: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(IdempotencyKey::new(key, fingerprint))
}

/// Has the queue accept something in the caller's time. Past it, nobody knows whether it was committed.
async fn accepted_by<T>(deadline: Option<Deadline>, accepting: impl Future<Output = Result<T>>) -> Result<T> {
    by_deadline(deadline, pin!(accepting)).await.map_err(|error| match error.kind() {
        ErrorKind::DeadlineExceeded => error.with_delivery(Delivery::Unknown),
        _ => error,
    })
}

fn in_progress(id: InvocationId) -> Error {
    Error::new(ErrorKind::InProgress, "the invocation has not ended yet")
        .with_context("invocation", id.to_string())
        .with_retry_after(Duration::from_secs(1))
}

fn not_kept(id: InvocationId) -> Error {
    Error::new(ErrorKind::ResultNotKept, "the invocation has ended, and its result is not kept")
        .with_context("invocation", id.to_string())
}

/// What an invocation has answered, once more.
fn replayed(known: &QueuedInvocation) -> Result<InvokeResponse> {
    let id = known.submission.id;
    if known.state.is_open() {
        return Err(in_progress(id));
    }
    let Progress { answer, failure, .. } = &known.progress;
    // A failure of the gateway, or an answer that broke off, is what it ended with.
    let is_functions = |failure: &&Failure| matches!(failure.class, ErrorClass::Function | ErrorClass::Rejected);
    let answer = match (answer, failure) {
        (Some(answer), Some(failure)) if answer.body.is_none() && !is_functions(&failure) => {
            return Err(failure_again(failure).with_context("invocation", id.to_string()));
        }
        (answer, _) => answer,
    };
    let Some(answer) = answer else {
        return Err(match failure {
            Some(failure) => failure_again(failure).with_context("invocation", id.to_string()),
            None => not_kept(id),
        });
    };
    let Some(body) = &answer.body else { return Err(not_kept(id)) };
    let mut response = read_answer(answer, body).ok_or_else(|| {
        Error::new(ErrorKind::Store, "the kept answer can't be read").with_context("invocation", id.to_string())
    })?;
    // Whose answer it is. Of its figures and its log the record tells.
    response.call = Some(Arc::new(CallState::new(id, known.submission.created_at, 0)));
    Ok(response)
}

fn read_answer(answer: &StoredAnswer, body: &Bytes) -> Option<InvokeResponse> {
    let status = StatusCode::from_u16(answer.status).ok()?;
    let mut response = InvokeResponse::new(status, body.clone());
    response.headers = read_headers(&answer.headers)?;
    response.headers.remove(header::DATE);
    response.headers.remove(header::CONTENT_LENGTH);
    if let Some(failure) = answer.failure.as_ref().filter(|failure| failure.class == ErrorClass::Function) {
        response.outcome = crate::Outcome::Failed(crate::FunctionFailure::new(failure.message.clone()));
    }
    Some(response)
}

/// A failure as the error that it was.
fn failure_again(failure: &Failure) -> Error {
    let kind = ErrorKind::ALL.iter().copied().find(|kind| kind.code() == failure.code).unwrap_or(ErrorKind::Internal);
    Error::new(kind, failure.message.clone())
        .with_delivery(failure.delivery)
        .with_retry(Retry::Never)
        .with_violations(failure.violations.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(path: &str, query: Option<&str>) -> StoredRequest {
        let mut request = InvokeRequest::new("").with_path(path.to_owned());
        request.query = query.map(str::to_owned);
        StoredRequest::of(&request).unwrap()
    }

    #[test]
    fn a_fingerprint_tells_requests_apart() {
        let print = |request: &StoredRequest, payload: &[u8]| idempotency("k", request, payload).unwrap().fingerprint;
        let same = print(&stored("/a", Some("b")), b"c");
        assert_eq!(same, print(&stored("/a", Some("b")), b"c"));
        for (request, payload) in [
            (stored("/a", Some("b")), &b"d"[..]),
            (stored("/a", None), b"c"),
            (stored("/ab", None), b"c"),
            (stored("/a", Some("bc")), b""),
        ] {
            assert_ne!(same, print(&request, payload));
        }
        assert!(idempotency("", &stored("", None), b"").is_err());
        assert!(idempotency(&"x".repeat(256), &stored("", None), b"").is_err());
        assert!(idempotency("a\nb", &stored("", None), b"").is_err());
    }
}
