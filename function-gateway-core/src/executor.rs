//! The execution of functions: through middleware, to the driver, with a record.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::HeaderMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::body::{Interrupt, Reclaim, by_deadline, timeout};
use crate::host::Host;
use crate::invocation::{in_one_piece, unlisted_secret};
use crate::middleware::Endpoint;
use crate::route::Serving;
use crate::time::monotonic_now;
use crate::watch::{Followed, kept_log};
use crate::{
    Action, Body, BoxStream, CallContext, CallState, Cancellation, Deadline, Delivery, DeploymentState, DriverRequest,
    Error, ErrorKind, FunctionKey, FunctionRef, Gateway, Invocation, InvocationId, InvocationRecord, InvokeRequest,
    InvokeResponse, LogSink, Next, Page, PageRequest, PayloadFormat, Qualifier, QueueConfig, Receipt, RecordFilter,
    Result, Retry, Scope, SecretBinding, SecretDelivery, SecretVariable, Stage, Statistics, StatisticsQuery,
    SubmitOptions, TimedPhase, Timings, TraceParent, Violation, Waited, envelope,
};

/// Executes functions, and reads what is kept of executions.
///
/// New methods may be added: it is implemented by the gateway, not by hosts.
#[async_trait]
pub trait FunctionExecutor: std::fmt::Debug + Send + Sync + 'static {
    /// Executes a function and gives its answer.
    ///
    /// Whatever the function answered is `Ok`, its own errors included: see [`InvokeResponse::outcome`]. The result of
    /// a function that streams comes as it is made.
    ///
    /// # Errors
    /// What is wrong with the call, or what the gateway or the engine could not do. Each names its kind, whether trying
    /// again may help, and whether the function can have run. The context holds the invocation's id, and
    /// [`Error::timings`] how long each phase took of a call that was let in.
    ///
    /// # Cancel safety
    /// Dropping the future, or the body of the answer, gives the call up; it is recorded as cancelled.
    async fn invoke(&self, cx: &CallContext, function: &FunctionRef, request: InvokeRequest) -> Result<InvokeResponse>;

    /// Accepts an invocation for later, which [workers](Gateway::start_workers) execute, and only then says so: what was accepted is
    /// committed, and survives the caller and this process as far as the store does.
    ///
    /// The payload is read whole and checked, as by [`check_payload`](Self::check_payload), and again when it is executed: by the
    /// revision that serves then, unless it is [pinned](SubmitOptions::pin). How it is tried, and what its end leads to, is in
    /// the specification's [`async`](crate::FunctionSpec::async_policy).
    ///
    /// # Errors
    /// Those of [`invoke`](Self::invoke) for a call that is not let in; [`ErrorKind::InvalidInput`] with what is wrong with the
    /// payload; [`ErrorKind::RateLimited`], naming the limit, where too much is waiting; [`ErrorKind::Store`] where it can't
    /// be committed; [`ErrorKind::IdempotencyMismatch`]; [`ErrorKind::Unsupported`] in a gateway without a queue.
    ///
    /// # Cancel safety
    /// Where the future is dropped, it was accepted or not: an id that the caller brings
    /// ([`CallContext::with_invocation_id`]) or an idempotency key tells which.
    async fn submit(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        request: InvokeRequest,
        options: SubmitOptions,
    ) -> Result<Receipt>;

    /// Waits until an invocation that was submitted has ended, in whichever process, for at most `patience`.
    ///
    /// Whoever submitted it may, and else whoever may read executions.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the caller's tenant has none of this id.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    async fn wait(&self, cx: &CallContext, id: InvocationId, patience: Duration) -> Result<Waited>;

    /// Gives what an invocation that was submitted has answered, as long as that is kept.
    ///
    /// # Errors
    /// [`ErrorKind::InProgress`] before its end; the error that it ended with; [`ErrorKind::ResultNotKept`] where the result was
    /// streamed, too large, or is kept no longer; [`ErrorKind::NotFound`] where the caller's tenant has none of this id.
    async fn result(&self, cx: &CallContext, id: InvocationId) -> Result<InvokeResponse>;

    /// Ends an invocation that was submitted and has not ended. One that waits ends at once; one that is being executed, in
    /// whichever process, is given up as a call is, soon.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::Conflict`] where it has ended.
    async fn cancel(&self, cx: &CallContext, id: InvocationId) -> Result<()>;

    /// Reads the record of an execution.
    ///
    /// Whoever submitted it may, and else whoever may read executions.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the caller's tenant has none of this id.
    async fn execution(&self, cx: &CallContext, id: InvocationId) -> Result<Arc<InvocationRecord>>;

    /// Reads what a function logged in one execution, redacted, as pieces of bytes that need not end with a line.
    ///
    /// Whoever submitted it may, and else whoever may read executions.
    ///
    /// - Without `follow`, what is there now: of a call that runs in this process, and whose driver tells the log of each call
    ///   ([`invocation_logs`](crate::DriverCapabilities::invocation_logs)), what it has logged so far; else what its record
    ///   holds, which is nothing before its end.
    /// - With `follow`, what comes too. A call that nobody submitted and that runs in this process, as above, is followed until
    ///   its log is closed. Any other is followed until its record is final: one that is queued, is to be tried again or runs
    ///   in another process. That is the log of each attempt which is made in this process, and of the last one wherever that
    ///   was made: what another process logs is there at the end, up to a second later.
    ///
    /// An end that may be the start of a secret comes once it is known not to be. The stream has no deadline of its own. One
    /// that ends with an error is not complete: [`ErrorKind::ShuttingDown`]; [`ErrorKind::Cancelled`] where its reader stands
    /// still while 16 attempts begin; [`ErrorKind::Lost`] of one that nobody submitted and whose record says that it runs past
    /// all of its time; or an error of the store that does not pass.
    ///
    /// What goes past `record.max_log_bytes` of the specification is not kept, and so not in it. Of several running calls
    /// with one id, which a caller may bring, it is the log of what the reader has submitted, or of the one that came last.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the caller's tenant has no such execution: neither one that runs, as above, nor a record,
    /// which may take a moment to be there after the end.
    ///
    /// # Cancel safety
    /// Cancel-safe, and the stream may be dropped at any time: the call does not notice.
    async fn execution_logs(
        &self,
        cx: &CallContext,
        id: InvocationId,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Bytes>>>;

    /// Says what is wrong with a payload, as a call with this request would, without executing anything: every middleware of
    /// the revision is asked ([`Middleware::check`](crate::Middleware::check)), and the payload's format. An empty list
    /// means that none of them would refuse it.
    ///
    /// The call is let in as by [`invoke`](Self::invoke), with the same right. The payload is read whole, up to the
    /// function's limit and within its total time. That of a function that streams is not read: no middleware reads it
    /// either, so that the list holds at most what is wrong with the rest of the request. Nothing is recorded, and it counts
    /// against no limit.
    ///
    /// # Errors
    /// Those of `invoke` for a call that is not let in; [`ErrorKind::PayloadTooLarge`]; what reading the payload or a
    /// middleware gives.
    ///
    /// # Cancel safety
    /// Cancel-safe, but for the payload where it is a stream: what was read of it is lost.
    async fn check_payload(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        request: InvokeRequest,
    ) -> Result<Vec<Violation>>;

    /// Reads a page of the tenant's records, newest first.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a cursor of another list.
    async fn executions(
        &self,
        cx: &CallContext,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>>;

    /// Figures over the tenant's executions.
    ///
    /// # Errors
    /// Where the store fails.
    async fn statistics(&self, cx: &CallContext, query: &StatisticsQuery) -> Result<Statistics>;
}

/// Conveniences on every [`FunctionExecutor`].
#[async_trait]
pub trait FunctionExecutorExt: FunctionExecutor {
    /// Writes the records of a tenant's executions as JSON lines (one JSON object and a line feed for each), newest first, as
    /// the stream is read: memory does not grow with the number of records. A chunk ends with a line.
    ///
    /// A record that can't be read is a line `{"unreadable": {"id": "...", "reason": "..."}}`. Records that come in while the
    /// stream is read are not in it.
    ///
    /// # Errors
    /// Those of [`executions`](FunctionExecutor::executions), which end the stream.
    fn export_executions<'a>(&'a self, cx: &'a CallContext, filter: &'a RecordFilter) -> BoxStream<'a, Result<Bytes>> {
        const PAGE: usize = 256;
        Box::pin(stream::try_unfold(Some(PageRequest::first(PAGE)), move |request| async move {
            let Some(request) = request else { return Ok(None) };
            let page = self.executions(cx, filter, &request).await?;
            let mut lines = Vec::new();
            for record in &page.items {
                json_line(&mut lines, &**record)?;
            }
            for row in &page.unreadable {
                let about = serde_json::json!({"unreadable": {"id": row.id, "reason": row.reason}});
                json_line(&mut lines, &about)?;
            }
            Ok(Some((Bytes::from(lines), page.next.map(|next| request.after(next)))))
        }))
    }

    /// Executes a function with a value as JSON and reads its result as JSON.
    ///
    /// # Errors
    /// Beside those of [`invoke`](FunctionExecutor::invoke): [`ErrorKind::FunctionBroken`] where the function failed or
    /// refused the call, with its message; [`ErrorKind::InvalidOutput`] where the result does not fit `Out`.
    async fn invoke_json<In, Out>(&self, cx: &CallContext, function: &FunctionRef, input: &In) -> Result<Out>
    where
        In: Serialize + Sync + ?Sized,
        Out: DeserializeOwned,
    {
        const LIMIT: u64 = 256 * 1024 * 1024;
        let response = self.invoke(cx, function, InvokeRequest::json(input)?).await?;
        let id = response.invocation_id();
        let named = |error: Error| match id {
            Some(id) => error.with_context("invocation", id.to_string()),
            None => error,
        };
        let message = match &response.outcome {
            crate::Outcome::Succeeded => return response.json(LIMIT).await.map_err(named),
            crate::Outcome::Rejected => format!("the function refused the call: {}", response.status),
            crate::Outcome::Failed(failure) => format!("the function failed: {}", failure.message),
        };
        let error = named(Error::new(ErrorKind::FunctionBroken, message));
        // What was an answer is an error from here on, and errors hold no secret.
        Err(match &response.call {
            Some(call) => call.redactor().error(error),
            None => error,
        })
    }
}

impl<E: FunctionExecutor + ?Sized> FunctionExecutorExt for E {}

fn json_line(lines: &mut Vec<u8>, value: &impl Serialize) -> Result<()> {
    serde_json::to_writer(&mut *lines, value)
        .map_err(|error| Error::new(ErrorKind::Internal, "a record can't be written as JSON").with_source(error))?;
    lines.push(b'\n');
    Ok(())
}

#[async_trait]
impl FunctionExecutor for Gateway {
    async fn invoke(&self, cx: &CallContext, function: &FunctionRef, request: InvokeRequest) -> Result<InvokeResponse> {
        let host = &*self.host;
        let id = cx.invocation_id().unwrap_or_else(InvocationId::generate);
        if request.idempotency_key.is_some() {
            let _in_flight = host.lifetime.tasks.token();
            let once = Box::pin(self.host.invoke_once(&cx.clone().for_invocation(id), function, request)).await;
            return once.map_err(|error| {
                error
                    .with_operation("invoke")
                    .with_context("function", function.name().as_str())
                    .with_context("invocation", id.to_string())
            });
        }
        // Taken before it is asked whether the gateway is open, so that a shutdown waits for whatever is let in.
        let in_flight = host.lifetime.tasks.token();
        let admitted = by_deadline(cx.deadline(), pin!(host.admit(cx, function, &request))).await;
        let result = match admitted {
            Ok((key, serving)) => {
                let mut call = host.call(cx, id, &serving, request);
                call.id_is_callers = cx.invocation_id().is_some();
                host.run::<false>(call, (key, function.qualifier()), &serving, in_flight).await
            }
            Err(error) => {
                metrics::counter!("function_gateway.refusals", "code" => error.kind().code()).increment(1);
                Err(error)
            }
        };
        result.map(|response| *response).map_err(|error| {
            error
                .with_operation("invoke")
                .with_context("function", function.name().as_str())
                .with_context("invocation", id.to_string())
        })
    }

    async fn submit(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        request: InvokeRequest,
        options: SubmitOptions,
    ) -> Result<Receipt> {
        // Taken before it is asked whether the gateway is open, so that a shutdown waits for whatever is let in.
        let _in_flight = self.host.lifetime.tasks.token();
        let result = self.host.submit(cx, function, request, options).await;
        result.map_err(|error| error.with_operation("submit").with_context("function", function.name().as_str()))
    }

    async fn wait(&self, cx: &CallContext, id: InvocationId, patience: Duration) -> Result<Waited> {
        self.host.wait(cx, id, patience).await
    }

    async fn result(&self, cx: &CallContext, id: InvocationId) -> Result<InvokeResponse> {
        self.host.result(cx, id).await
    }

    async fn cancel(&self, cx: &CallContext, id: InvocationId) -> Result<()> {
        self.host.cancel(cx, id).await.map_err(|error| error.with_operation("cancel"))
    }

    async fn execution(&self, cx: &CallContext, id: InvocationId) -> Result<Arc<InvocationRecord>> {
        self.host.recorded(cx, id).await
    }

    async fn execution_logs(
        &self,
        cx: &CallContext,
        id: InvocationId,
        follow: bool,
    ) -> Result<BoxStream<'static, Result<Bytes>>> {
        let host = &self.host;
        if let Some(call) = host.running.find(cx.tenant(), id, &cx.principal().id) {
            let function = (&call.revision.key.name, Some(&call.revision.owner));
            let is_own = call.submitter.as_ref().is_some_and(|submitter| *submitter == cx.principal().id);
            host.authorize_to_read(cx, is_own, Some(function)).await?;
            if !follow || call.submitter.is_none() {
                return Ok(call.state.read_logs(follow));
            }
            return Ok(host.follow_logs(Followed::of_call(call)));
        }
        // Looked at last: a call leaves the list once its record was handed to the store.
        let record = self.execution(cx, id).await?;
        if !follow || record.state.is_final() {
            return Ok(in_one_piece(kept_log(&record)));
        }
        Ok(host.follow_logs(host.to_follow(&record).await?))
    }

    async fn check_payload(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        request: InvokeRequest,
    ) -> Result<Vec<Violation>> {
        let host = &*self.host;
        // Taken before it is asked whether the gateway is open, so that a shutdown waits for whatever is let in.
        let _in_flight = host.lifetime.tasks.token();
        let cancel = |message| Error::new(ErrorKind::Cancelled, message).with_delivery(Delivery::NotSent);
        let result = tokio::select! {
            biased;
            result = host.examine(cx, function, request, None) => result.map(|(_, _, found)| found),
            () = host.lifetime.killed.cancelled() => Err(cancel("the gateway was stopped")),
            () = given_up(cx.cancellation()) => Err(cancel("the caller gave the check up")),
        };
        result.map_err(|error| error.with_operation("check_payload").with_context("function", function.name().as_str()))
    }

    async fn executions(
        &self,
        cx: &CallContext,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>> {
        self.host.authorize(cx, Action::ReadExecutions, filter.name.as_ref().map(|name| (name, None))).await?;
        self.host.invocations.list(cx.tenant(), filter, page).await
    }

    async fn statistics(&self, cx: &CallContext, query: &StatisticsQuery) -> Result<Statistics> {
        self.host.authorize(cx, Action::ReadExecutions, query.name.as_ref().map(|name| (name, None))).await?;
        self.host.invocations.statistics(cx.tenant(), query).await
    }
}

impl Host {
    /// Finds what serves, and refuses what can't be right before anything is spent on it.
    async fn admit(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        request: &InvokeRequest,
    ) -> Result<(FunctionKey, Arc<Serving>)> {
        self.lifetime.check_open()?;
        if cx.deadline().is_some_and(|deadline| deadline.has_passed()) {
            return Err(timeout("total", Delivery::NotSent));
        }
        if !request.path.is_empty() && !request.path.starts_with('/') {
            let message = format!("the path below the function starts with '/', not as {:?}", request.path);
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let key = FunctionKey::new(cx.tenant().clone(), function.name().clone());
        let route = match self.routes.find(&self.functions, &key).await {
            Ok(route) => route,
            Err(error) => {
                // Whoever may not call does not learn whether there is one.
                Box::pin(self.authorize(cx, Action::Invoke, Some((&key.name, None)))).await?;
                return Err(error);
            }
        };
        match self.serving_on(&route, function.qualifier()).await {
            Ok(serving) => Ok((key, serving)),
            Err(error) => {
                // Whoever may not call does not learn how the function is.
                Box::pin(self.authorize(cx, Action::Invoke, Some((&key.name, Some(&route.function.owner))))).await?;
                Err(error)
            }
        }
    }

    /// A call as it enters the chain. Boxed before anything waits, so that no future holds the request itself.
    fn call(&self, cx: &CallContext, id: InvocationId, serving: &Serving, request: InvokeRequest) -> Box<Invocation> {
        let policy = self.config.record.for_spec(&serving.revision.spec);
        let max_log = usize::try_from(policy.max_log_bytes).unwrap_or(usize::MAX);
        let state = Arc::new(CallState::new(id, self.clock.now(), max_log));
        if let Some(len) = request.body.len() {
            state.set_request_bytes(len);
        }
        let cx = traced(cx, &request).for_invocation(id);
        Box::new(Invocation::new(cx, request, Arc::clone(&serving.revision), state))
    }

    /// Has a call go through the chain. Compiled once for what callers wait for and once for what comes from the queue, so that the
    /// former is one piece with what is around it.
    pub(crate) async fn run<const FROM_QUEUE: bool>(
        &self,
        call: Box<Invocation>,
        wanted: (FunctionKey, &Qualifier),
        serving: &Arc<Serving>,
        in_flight: TaskTrackerToken,
    ) -> Result<Box<InvokeResponse>> {
        let state = Arc::clone(call.state());
        let cancelled = call.cx.cancellation().cloned();
        // Declared before the answer, and so dropped after it: by then the record has the log.
        let submitter = FROM_QUEUE.then(|| call.cx.principal().id.clone());
        let is_told = serving.capabilities.invocation_logs;
        let running = is_told.then(|| self.running.enter(&serving.revision, &state, submitter));

        let (outer, _) = serving.pipeline.split_after(Stage::Limit);
        let dispatch = Dispatch { host: self, wanted, serving };
        let answer = Next::new(outer, &dispatch).run(call);
        // The answer first: in most calls it is there at once, and no signal is waited for.
        let result = tokio::select! {
            biased;
            result = answer => result,
            () = self.lifetime.killed.cancelled() => Err(given_up_error("the gateway was stopped", &state)),
            () = given_up(cancelled.as_ref()) => Err(given_up_error("the caller gave the call up", &state)),
        };
        match result {
            Ok(mut response) => {
                if response.body.is_stream() {
                    let body = std::mem::take(&mut response.body).with_guard((in_flight, running));
                    let body = self.ended_in_time(body, &state, cancelled);
                    response.body = without_secrets(body, Arc::clone(&state));
                }
                response.call = Some(state);
                Ok(response)
            }
            Err(error) => {
                let (error, timings) = (state.redactor().error(error), state.timings());
                Err(if timings == Timings::default() { error } else { error.with_timings(timings) })
            }
        }
    }

    /// A streamed answer that ends at the call's deadline, by the caller's signal and when the gateway is stopped, also
    /// while nobody reads it: the function is stopped and its turn given back.
    fn ended_in_time(&self, body: Body, state: &Arc<CallState>, cancelled: Option<Cancellation>) -> Body {
        let (body, mut interrupt) = body.interruptible();
        let (deadline, killed) = (state.deadline(), self.lifetime.killed.clone());
        let (unread, pause) = (interrupt.unread_since(), self.config.max_reader_pause);
        self.lifetime.spawn(async move {
            let past_deadline = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.instant().into()).await,
                    None => std::future::pending().await,
                }
            };
            let cancel = |message| Error::new(ErrorKind::Cancelled, message).with_delivery(Delivery::Executed);
            let error = tokio::select! {
                () = interrupt.not_needed() => return,
                () = past_deadline => timeout("total", Delivery::Executed),
                () = killed.cancelled() => cancel("the gateway was stopped"),
                () = given_up(cancelled.as_ref()) => cancel("the caller gave the call up"),
                () = Interrupt::unread_for(unread, pause) => cancel("the caller did not read on"),
            };
            interrupt.end_with(error);
        });
        body
    }

    /// Lets a call in and says what is wrong with its payload, by all that looks at it before the driver gets it. For the queue the
    /// payload is read whole in any case.
    pub(crate) async fn examine(
        &self,
        cx: &CallContext,
        function: &FunctionRef,
        request: InvokeRequest,
        queue: Option<&QueueConfig>,
    ) -> Result<(Arc<Serving>, InvokeRequest, Vec<Violation>)> {
        let admit = async {
            let (key, serving) = self.admit(cx, function, &request).await?;
            let resource = (&key.name, Some(&serving.revision.owner));
            self.authorize(cx, Action::Invoke, Some(resource)).await?;
            Ok(serving)
        };
        let serving = by_deadline(cx.deadline(), pin!(admit)).await?;
        let spec = &serving.revision.spec;
        let id = cx.invocation_id().unwrap_or_else(InvocationId::generate);
        let mut call = self.call(cx, id, &serving, request);
        if let Some(total) = self.config.total_timeout(spec) {
            call.cx = call.cx.with_deadline(Deadline::after(total));
        }
        let (deadline, state) = (call.cx.deadline(), Arc::clone(call.state()));
        let check = async {
            check_narrowing(&serving, &call.request)?;
            if let Some(queue) = queue {
                let limit = queue.max_payload_bytes.min(self.config.request_limit(spec, &serving.capabilities));
                if call.request.body.len().is_some_and(|len| len > limit) {
                    return Err(Error::too_large(ErrorKind::PayloadTooLarge, "payload", limit));
                }
                let body = std::mem::take(&mut call.request.body);
                call.request.body =
                    body.collect(limit).await.map_err(|error| error.with_delivery(Delivery::NotSent))?.into();
            }
            self.take_payload(&mut call, &serving).await?;
            let mut found = Vec::new();
            for middleware in serving.pipeline.all() {
                found.extend(middleware.check(&call).await?);
            }
            // A call gets there only past all of them.
            if found.is_empty() && spec.format == PayloadFormat::Envelope {
                found.extend(call.request.body.as_bytes().and_then(|payload| envelope::check(payload)));
            }
            Ok((call.request, found))
        };
        let (request, found) =
            by_deadline(deadline, pin!(check)).await.map_err(|error| state.redactor().error(error))?;
        Ok((serving, request, found))
    }

    /// What serves now that a deployment was found missing, deploying it again where each process has its own engine.
    async fn recover(
        self: &Host,
        (key, qualifier): (&FunctionKey, &Qualifier),
        missing: &Serving,
        cx: &CallContext,
    ) -> Result<Arc<Serving>> {
        self.routes.invalidate(key);
        let route = self.routes.find(&self.functions, key).await?;
        if route.function.id != missing.revision.function {
            // The call was let in, and its record begun, for the function that is gone.
            let message =
                "the function was deleted meanwhile, and another one bears its name: call again to reach that";
            return Err(Error::new(ErrorKind::NotDeployed, message));
        }
        let again = self.serving_on(&route, qualifier).await?;
        if again.revision.generation == missing.revision.generation && again.capabilities.scope == Scope::PerProcess {
            self.ensure_deployed(cx, &again).await?;
        }
        Ok(again)
    }

    /// Has a generation deployed in this process and waits until it is ready. One of many callers does it.
    pub(crate) async fn ensure_deployed(&self, cx: &CallContext, serving: &Serving) -> Result<()> {
        let _one = serving.redeploying.lock().await;
        let limit = serving.revision.spec.timeouts.ready.unwrap_or(self.config.default_ready_timeout);
        let result = tokio::time::timeout(limit, self.deploy_here(cx, serving))
            .await
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::NotReady, "the function did not get ready in time")));
        self.without_secrets(cx, &serving.revision, &serving.capabilities, result).await
    }

    async fn deploy_here(&self, cx: &CallContext, serving: &Serving) -> Result<()> {
        let Serving { driver, target, revision, capabilities, .. } = serving;
        let mut status = self.bounded("status", driver.status(cx, target)).await?;
        if status.state == DeploymentState::Missing {
            let request = self.deploy_request(cx, revision, capabilities).await?;
            status = self.bounded("deploy", driver.deploy(cx, target, request)).await?;
        }
        loop {
            match status.state {
                DeploymentState::Ready => return Ok(()),
                DeploymentState::Failed => {
                    return Err(Error::new(ErrorKind::NotReady, "the function could not be started again")
                        .with_retry(Retry::Never)
                        .with_detail(status.message));
                }
                DeploymentState::Missing | DeploymentState::Progressing => {
                    tokio::time::sleep(status.poll_after.unwrap_or(POLL)).await;
                    status = self.bounded("status", driver.status(cx, target)).await?;
                }
            }
        }
    }
}

/// A call may narrow the secrets that the function lists, where it gets them with the call.
fn check_narrowing(serving: &Serving, request: &InvokeRequest) -> Result<()> {
    let Some(wanted) = &request.secrets else { return Ok(()) };
    let listed = &serving.revision.spec.secrets;
    if let Some(unlisted) = wanted.iter().find(|name| !listed.iter().any(|binding| binding.secret == **name)) {
        return Err(unlisted_secret(unlisted));
    }
    let fixed = |binding: &SecretBinding| matches!(binding.deliver, SecretDelivery::Env(_));
    if serving.capabilities.secrets_at_deploy && listed.iter().any(fixed) {
        let message = "the driver hands secrets over at deployment, so a call can't narrow them";
        return Err(
            Error::new(ErrorKind::Unsupported, message).with_context("driver", serving.revision.spec.driver.as_str())
        );
    }
    Ok(())
}

/// A streamed answer that, where it breaks off, does so with an error that holds no secret of the call.
fn without_secrets(body: Body, state: Arc<CallState>) -> Body {
    let len = body.len();
    let chunks = body.into_stream().map(move |chunk| chunk.map_err(|error| state.redactor().error(error)));
    match len {
        Some(len) => Body::from_stream(chunks).with_declared_len(len),
        None => Body::from_stream(chunks),
    }
}

/// How often a deployment is asked about whose driver does not say.
pub(crate) const POLL: Duration = Duration::from_millis(50);

/// Waits for the caller's signal, if there is one.
async fn given_up(cancelled: Option<&Cancellation>) {
    match cancelled {
        Some(cancelled) => cancelled.cancelled().await,
        None => std::future::pending().await,
    }
}

fn given_up_error(message: &'static str, state: &CallState) -> Error {
    let delivery = state.delivery();
    Error::new(ErrorKind::Cancelled, message).with_delivery(delivery)
}

/// The context with the trace of this hop: the host's own, or else that of the request's headers, or else a new one.
/// The vendors' data belongs to the trace that it came with.
pub(crate) fn traced(cx: &CallContext, request: &InvokeRequest) -> CallContext {
    let cx = cx.clone();
    if let Some(trace) = cx.trace() {
        return cx.with_trace(trace.child());
    }
    let header = request.headers.get(TraceParent::HEADER).and_then(|value| value.to_str().ok());
    let Some(trace) = header.and_then(|header| header.parse::<TraceParent>().ok()) else {
        return cx.with_trace(TraceParent::root());
    };
    let cx = cx.with_trace(trace.child());
    match trace_state_of(&request.headers) {
        Some(state) => cx.with_trace_state(state),
        None => cx,
    }
}

/// All `tracestate` headers as one, in their order (W3C Trace Context, section 3.3.1).
fn trace_state_of(headers: &HeaderMap) -> Option<String> {
    let all: Option<Vec<_>> =
        headers.get_all(TraceParent::STATE_HEADER).iter().map(|value| value.to_str().ok()).collect();
    all.map(|all| all.join(",")).filter(|state| !state.is_empty())
}

/// Where a call leaves the part of the chain that lets it in, and enters the part that executes it.
///
/// A deployment that turns out to be missing sends the call through the second part once more, with the revision that
/// serves by then: it is validated again, by that revision's schema.
struct Dispatch<'a> {
    host: &'a Host,
    wanted: (FunctionKey, &'a Qualifier),
    serving: &'a Arc<Serving>,
}

#[async_trait]
impl Endpoint for Dispatch<'_> {
    async fn call(&self, mut call: Box<Invocation>) -> Result<Box<InvokeResponse>> {
        check_narrowing(self.serving, &call.request)?;
        self.host.take_payload(&mut call, self.serving).await?;
        let (body, reclaim) = std::mem::take(&mut call.request.body).reclaimable();
        call.request.body = body;
        let again = Pristine::of(&call, reclaim);

        match execute(self.host, self.serving, call).await {
            Err(error) if error.kind() == ErrorKind::NotDeployed && error.delivery() == Delivery::NotSent => {
                let Some(call) = again.restore() else { return Err(error) };
                Box::pin(self.recovered(call)).await
            }
            result => result,
        }
    }
}

impl Dispatch<'_> {
    /// Executes a call by what serves once the missing deployment was seen to.
    async fn recovered(&self, mut call: Invocation) -> Result<Box<InvokeResponse>> {
        let (key, qualifier) = (&self.wanted.0, self.wanted.1);
        let recovered = self.host.recover((key, qualifier), self.serving, &call.cx).await;
        let serving = recovered.map_err(|error| error.with_delivery(Delivery::NotSent))?;
        if call.queued.is_some() && serving.revision.generation != self.serving.revision.generation {
            // What was committed of this attempt is about another revision: the queue makes a new one.
            return Err(Error::new(ErrorKind::NotDeployed, "another revision serves by now"));
        }
        call.state().set_served_by(Arc::clone(&serving.revision));
        call = call.with_revision(Arc::clone(&serving.revision));
        self.host.take_payload(&mut call, &serving).await?;
        execute(self.host, &serving, Box::new(call)).await
    }
}

/// A call as it was before the executing part of the chain saw it.
struct Pristine {
    call: Invocation,
    reclaim: Reclaim,
}

impl Pristine {
    fn of(call: &Invocation, reclaim: Reclaim) -> Self {
        Self { call: call.clone_with(Body::empty()), reclaim }
    }

    /// `None` where the payload is a stream that was read.
    fn restore(self) -> Option<Invocation> {
        let mut call = self.call;
        call.request.body = self.reclaim.take()?;
        Some(call)
    }
}

async fn execute(host: &Host, serving: &Arc<Serving>, call: Box<Invocation>) -> Result<Box<InvokeResponse>> {
    let (_, inner) = serving.pipeline.split_after(Stage::Limit);
    Next::new(inner, &DriverCall { host, serving }).run(call).await
}

impl Host {
    /// Reads a payload whole, unless the function streams; either way within the limit.
    async fn take_payload(&self, call: &mut Invocation, serving: &Serving) -> Result<()> {
        let spec = &serving.revision.spec;
        let limit = self.config.request_limit(spec, &serving.capabilities);
        let too_large = || Error::too_large(ErrorKind::PayloadTooLarge, "payload", limit);
        if call.request.body.len().is_some_and(|len| len > limit) {
            return Err(too_large());
        }
        if !call.request.body.is_stream() {
            return Ok(());
        }
        let body = std::mem::take(&mut call.request.body);
        let state = Arc::clone(call.state());
        if spec.streaming {
            state.set_request_bytes(0);
            let body = body.limited(limit, ErrorKind::PayloadTooLarge, "payload");
            call.request.body = body.observed(CountRequest(state));
            return Ok(());
        }
        let bytes = body.collect(limit).await.map_err(|error| match error.kind() {
            ErrorKind::PayloadTooLarge => too_large(),
            _ => error.with_delivery(Delivery::NotSent),
        })?;
        state.set_request_bytes(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        call.request.body = bytes.into();
        Ok(())
    }
}

struct CountRequest(Arc<CallState>);

impl crate::body::BodyObserver for CountRequest {
    fn chunk(&mut self, chunk: &Bytes) {
        let before = self.0.request_bytes().unwrap_or(0);
        self.0.set_request_bytes(before.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX)));
    }

    fn end(self, _: crate::BodyEnd<'_>) -> Option<crate::body::Closing> {
        None
    }
}

/// The end of the chain: one attempt by the driver.
struct DriverCall<'a> {
    host: &'a Host,
    serving: &'a Arc<Serving>,
}

#[async_trait]
impl Endpoint for DriverCall<'_> {
    async fn call(&self, mut call: Box<Invocation>) -> Result<Box<InvokeResponse>> {
        let Serving { driver, target, revision, .. } = &**self.serving;
        let spec = &revision.spec;
        if let Some(start) = &call.durable_start {
            start.commit().await?;
        }
        let state = Arc::clone(call.state());
        let deployed_secrets = self.host.deployed_secrets(&call.cx, revision, &self.serving.capabilities).await;
        if let Some(known) = deployed_secrets.map_err(|error| error.with_delivery(Delivery::NotSent))? {
            state.redactor().adopt(&known);
        }
        let max_response_bytes = self.host.config.response_limit(spec);
        let logs = LogSink::new(Arc::clone(&state));
        let request = self.request(&mut call, logs.clone(), max_response_bytes)?;
        let idle = spec.timeouts.idle.unwrap_or(self.host.config.default_idle_timeout);
        let deadline = call.cx.deadline();
        if let Some(deadline) = deadline {
            state.set_deadline(deadline);
        }
        // A call without any end to it is bounded by how long a stream may be silent.
        let first_byte = spec.timeouts.first_byte.or(deadline.is_none().then_some(idle));

        let sent = monotonic_now();
        state.count_attempt(sent);
        let timed = TimedDriver { state: Arc::clone(&state), sent };
        let invoke = driver.invoke(&call.cx, target, request);
        let answer = match first_byte {
            Some(limit) => tokio::time::timeout(limit, invoke)
                .await
                .unwrap_or_else(|_| Err(timeout("first_byte", Delivery::Unknown))),
            None => invoke.await,
        };
        let answered = async {
            // Boxed at once: an answer is large, and is handed on several times.
            let mut response = Box::new(answer?);
            if response.status.is_informational() {
                let message = format!("the function answered {}, which is no answer", response.status);
                return Err(Error::new(ErrorKind::FunctionBroken, message));
            }
            let body = std::mem::take(&mut response.body);
            if spec.streaming {
                response.body = body
                    .limited(max_response_bytes, ErrorKind::OutputTooLarge, "result")
                    .bounded(deadline, Some(idle))
                    .observed(CountResponse { state: Arc::clone(&state), timed: Some(timed) });
                return Ok(response);
            }
            response.body =
                body.bounded(None, Some(idle)).collect(max_response_bytes).await.map_err(output_error)?.into();
            drop(timed);
            if spec.format == PayloadFormat::Envelope {
                *response = envelope::unwrap(*response, &logs)?;
            }
            state.add_response_bytes(response.body.as_bytes().map_or(0, Bytes::len));
            Ok(response)
        };
        answered.await.map_err(|error: Error| error.with_context("driver", spec.driver.as_str()))
    }
}

impl DriverCall<'_> {
    fn request(&self, call: &mut Invocation, logs: LogSink, max_response_bytes: u64) -> Result<DriverRequest> {
        let Serving { revision, capabilities, .. } = &**self.serving;
        let spec = &revision.spec;
        let mut body = std::mem::take(&mut call.request.body);
        if spec.format == PayloadFormat::Envelope {
            let payload = body.as_bytes().cloned().unwrap_or_default();
            body = envelope::wrap(&call.cx, revision, &payload, &call.secrets)?.into();
            call.request.headers.insert(http::header::CONTENT_TYPE, crate::invocation::JSON);
        }
        let mut request = DriverRequest {
            revision: Arc::clone(revision),
            method: std::mem::take(&mut call.request.method),
            path: std::mem::take(&mut call.request.path),
            query: call.request.query.take(),
            headers: std::mem::take(&mut call.request.headers),
            body,
            secrets: Vec::new(),
            logs,
            max_response_bytes,
        };
        if capabilities.secrets_per_call {
            for binding in &spec.secrets {
                let SecretDelivery::Env(variable) = &binding.deliver else { continue };
                let injected = call.secrets.iter().find(|injected| injected.name == binding.secret);
                request.secrets.extend(injected.map(|injected| SecretVariable::new(variable, injected.value.clone())));
            }
        }
        Ok(request)
    }
}

/// A result that broke off is the function's failure; one that is too large is named as what it is.
fn output_error(error: Error) -> Error {
    match (error.kind(), error.context_value("limit_bytes").and_then(|limit| limit.parse().ok())) {
        (ErrorKind::PayloadTooLarge, Some(limit)) => Error::too_large(ErrorKind::OutputTooLarge, "result", limit),
        _ => error,
    }
}

/// Adds the time since the call was sent to the phase of the driver when it is dropped.
struct TimedDriver {
    state: Arc<CallState>,
    sent: std::time::Instant,
}

impl Drop for TimedDriver {
    fn drop(&mut self) {
        self.state.add_time(TimedPhase::Driver, monotonic_now().saturating_duration_since(self.sent));
    }
}

struct CountResponse {
    state: Arc<CallState>,
    timed: Option<TimedDriver>,
}

impl crate::body::BodyObserver for CountResponse {
    fn chunk(&mut self, chunk: &Bytes) {
        self.state.add_response_bytes(chunk.len());
    }

    fn end(mut self, _: crate::BodyEnd<'_>) -> Option<crate::body::Closing> {
        drop(self.timed.take());
        None
    }
}
