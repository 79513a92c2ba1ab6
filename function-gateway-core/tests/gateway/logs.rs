//! The log of one execution, while it runs and after.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use function_gateway_core::store::{FunctionStore as _, InvocationStore as _};
use function_gateway_core::{
    Action, Authorizer, BoxStream, CallContext, Clock as _, Decision, ErrorKind, FunctionExecutor as _,
    FunctionManager as _, FunctionSpec, Invocation, InvocationId, InvocationRecord, InvokeRequest, InvokeResponse,
    Middleware, Next, RecordMode, Resource, Result, Secret, Stage, SubmitOptions, Waited, WorkerConfig,
};
use function_gateway_testkit::{Gate, Handler, ManualClock, ScriptedDriver};
use futures_util::StreamExt as _;
use http::StatusCode;
use tokio::task::JoinHandle;

use crate::common::{Setup, cx, function, gateway, gateway_with, name, over, principal, soon, spec};

type Log = BoxStream<'static, Result<bytes::Bytes>>;

/// Not recorded: what can be read of it can be read while it runs.
fn unrecorded() -> FunctionSpec {
    let mut spec = spec();
    spec.record.mode = Some(RecordMode::Off);
    spec
}

async fn with_function(spec: FunctionSpec, handler: Handler) -> Setup {
    let setup = gateway().await;
    setup.create(spec, handler).await;
    setup
}

impl Setup {
    async fn create(&self, spec: FunctionSpec, handler: Handler) {
        self.gateway.create(&cx(), &name("f"), spec).await.unwrap();
        self.engine.on_invoke(handler);
    }

    /// Starts a call, whose id it gives.
    fn start(&self) -> (InvocationId, JoinHandle<Result<InvokeResponse>>) {
        let id = InvocationId::generate();
        (id, self.start_as(cx().with_invocation_id(id)))
    }

    fn start_as(&self, cx: CallContext) -> JoinHandle<Result<InvokeResponse>> {
        let gateway = self.gateway.clone();
        tokio::spawn(async move { gateway.invoke(&cx, &function("f"), InvokeRequest::new("")).await })
    }

    async fn logs(&self, id: InvocationId, follow: bool) -> Result<Log> {
        self.gateway.execution_logs(&cx(), id, follow).await
    }

    async fn read(&self, id: InvocationId, follow: bool) -> Result<String> {
        Ok(rest(self.logs(id, follow).await?).await)
    }

    async fn failure(&self, id: InvocationId) -> ErrorKind {
        self.read(id, true).await.unwrap_err().kind()
    }
}

async fn next(log: &mut Log) -> String {
    String::from_utf8(soon(log.next()).await.unwrap().unwrap().to_vec()).unwrap()
}

async fn rest(log: Log) -> String {
    let pieces: Vec<_> = soon(log.map(Result::unwrap).collect()).await;
    String::from_utf8(pieces.concat()).unwrap()
}

#[tokio::test]
async fn a_log_is_followed_to_the_end_of_the_call() {
    let gate = Gate::new();
    let setup = with_function(spec(), Handler::logging(&["one\n", "two\n", "three\n"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let mut log = setup.logs(id, true).await.unwrap();
    assert_eq!(next(&mut log).await, "one\n");
    assert!(futures_util::poll!(log.next()).is_pending());
    gate.release(1);
    assert_eq!(next(&mut log).await, "two\n");
    let late = setup.logs(id, true).await.unwrap();
    drop(setup.logs(id, true).await.unwrap());
    assert!(!call.is_finished());
    gate.open();
    assert_eq!(rest(log).await, "three\n");
    assert_eq!(rest(late).await, "one\ntwo\nthree\n");
    soon(call).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_a_follower_has_not_read_at_the_end_it_reads_then() {
    let gate = Gate::new();
    let setup = with_function(spec(), Handler::logging(&["one\n", "two\n"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let mut begun = setup.logs(id, true).await.unwrap();
    assert_eq!(next(&mut begun).await, "one\n");
    let unread = setup.logs(id, true).await.unwrap();
    gate.open();
    soon(call).await.unwrap().unwrap();
    assert_eq!(rest(begun).await, "two\n");
    assert_eq!(rest(unread).await, "one\ntwo\n");
    assert_eq!(setup.gateway.execution(&cx(), id).await.unwrap().logs.as_ref().unwrap().bytes, "one\ntwo\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn those_who_follow_at_once_all_read_everything() {
    const LINES: usize = 2000;
    let chatty = Handler::new(async |_, request| {
        for line in 0..LINES {
            request.logs.write(format!("{line}\n").as_bytes());
            // Gives followers on this thread their turn too.
            tokio::task::yield_now().await;
        }
        Ok(InvokeResponse::new(StatusCode::OK, ""))
    });
    let gate = Gate::new();
    let setup = with_function(unrecorded(), chatty.gated(&gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let mut followers = Vec::new();
    for _ in 0..8 {
        followers.push(tokio::spawn(rest(setup.logs(id, true).await.unwrap())));
    }
    gate.open();
    let whole: String = (0..LINES).map(|line| format!("{line}\n")).collect();
    for follower in followers {
        assert_eq!(soon(follower).await.unwrap(), whole);
    }
    soon(call).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_following_a_log_is_what_is_there() {
    let gate = Gate::new();
    let setup = with_function(spec(), Handler::logging(&["one\n", "two\n"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    assert_eq!(setup.read(id, false).await.unwrap(), "one\n");
    gate.open();
    soon(call).await.unwrap().unwrap();
}

#[tokio::test]
async fn after_the_end_a_log_is_that_of_the_record() {
    let open = Gate::new();
    open.open();
    let setup = with_function(spec(), Handler::logging(&["one\n", "two\n"], &open)).await;
    let (id, call) = setup.start();
    soon(call).await.unwrap().unwrap();
    for follow in [false, true] {
        assert_eq!(setup.read(id, follow).await.unwrap(), "one\ntwo\n");
    }
    setup.engine.on_invoke(Handler::echo());
    let (silent, call) = setup.start();
    soon(call).await.unwrap().unwrap();
    assert_eq!(setup.logs(silent, true).await.unwrap().count().await, 0);
}

/// Knows a value that must not be stored.
#[derive(Debug)]
struct Knows(&'static str);

#[async_trait::async_trait]
impl Middleware for Knows {
    fn name(&self) -> &str {
        "knows"
    }

    fn stage(&self) -> Stage {
        Stage::Prepare
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        call.state().redactor().add(&Secret::new(self.0));
        next.run(call).await
    }
}

#[tokio::test]
async fn no_secret_is_in_a_log_that_is_followed_wherever_it_is_cut() {
    let gate = Gate::new();
    let setup = gateway_with(|builder| builder.middleware(Arc::new(Knows("canary")))).await;
    setup.create(spec(), Handler::logging(&["a can", "ary, a ca", "t\n", "the canar"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let mut log = setup.logs(id, true).await.unwrap();
    assert_eq!(next(&mut log).await, "a ");
    gate.release(1);
    assert_eq!(next(&mut log).await, "[redacted], a ");
    assert_eq!(setup.read(id, false).await.unwrap(), "a [redacted], a ");
    gate.release(1);
    // A line that ends otherwise is not held back.
    assert_eq!(next(&mut log).await, "cat\n");
    gate.open();
    assert_eq!(rest(log).await, "the canar");
    soon(call).await.unwrap().unwrap();
    assert_eq!(setup.read(id, true).await.unwrap(), "a [redacted], a cat\nthe canar");
}

#[tokio::test]
async fn a_log_is_of_the_own_tenant() {
    let gate = Gate::new();
    let setup = with_function(spec(), Handler::logging(&["one\n"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let stranger = CallContext::new(principal("other", "ada"));
    let foreign = async || setup.gateway.execution_logs(&stranger, id, true).await.err().unwrap().kind();
    assert_eq!(foreign().await, ErrorKind::NotFound);
    gate.open();
    soon(call).await.unwrap().unwrap();
    assert_eq!(foreign().await, ErrorKind::NotFound);
    assert_eq!(setup.failure(InvocationId::generate()).await, ErrorKind::NotFound);
}

/// Lets nobody read executions of the function `f` that ada has created.
#[derive(Debug)]
struct NoReader;

#[async_trait::async_trait]
impl Authorizer for NoReader {
    async fn authorize(&self, _: &CallContext, action: Action, resource: Resource<'_>) -> Result<Decision> {
        let of_ada = resource.owner.is_some_and(|owner| owner.as_str() == "ada");
        let denied = action == Action::ReadExecutions && of_ada && resource.function == Some(&name("f"));
        Ok(if denied { Decision::Deny } else { Decision::Allow })
    }
}

#[tokio::test]
async fn who_may_not_read_executions_reads_no_log() {
    let gate = Gate::new();
    let setup = gateway_with(|builder| builder.authorizer(Arc::new(NoReader))).await;
    setup.create(spec(), Handler::logging(&["one\n"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    assert_eq!(setup.failure(id).await, ErrorKind::PermissionDenied);
    gate.open();
    soon(call).await.unwrap().unwrap();
    assert_eq!(setup.failure(id).await, ErrorKind::PermissionDenied);
}

#[tokio::test]
async fn a_call_that_is_dropped_ends_its_log_and_leaves_nothing() {
    let setup = with_function(unrecorded(), Handler::logging(&["one\n"], &Gate::new())).await;
    let (id, call) = setup.start();
    soon(setup.engine.until(|engine| engine.in_flight() == 1)).await;
    let mut log = setup.logs(id, true).await.unwrap();
    assert_eq!(next(&mut log).await, "one\n");
    call.abort();
    assert_eq!(rest(log).await, "");
    assert_eq!(setup.failure(id).await, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_call_that_panics_ends_its_log_and_leaves_nothing() {
    let gate = Gate::new();
    let panics = Handler::new({
        let gate = gate.clone();
        move |_, request| {
            let gate = gate.clone();
            async move {
                request.logs.write(b"one\n");
                gate.pass().await;
                panic!("on purpose")
            }
        }
    });
    let setup = with_function(unrecorded(), panics).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let log = setup.logs(id, true).await.unwrap();
    gate.open();
    assert!(soon(call).await.unwrap_err().is_panic());
    assert_eq!(rest(log).await, "one\n");
    assert_eq!(setup.failure(id).await, ErrorKind::NotFound);
}

#[tokio::test]
async fn a_streams_log_goes_on_until_its_body_has_ended() {
    let gate = Gate::new();
    let stream = Handler::new({
        let gate = gate.clone();
        move |_, request| {
            let gate = gate.clone();
            async move {
                request.logs.write(b"one\n");
                let logs = request.logs.clone();
                let chunks = futures_util::stream::iter(["a", "b"]).then(move |chunk| {
                    let (logs, gate) = (logs.clone(), gate.clone());
                    async move {
                        gate.pass().await;
                        logs.write(chunk.as_bytes());
                        Ok(bytes::Bytes::from(chunk))
                    }
                });
                let body = function_gateway_core::Body::from_stream(chunks);
                Ok(InvokeResponse::new(StatusCode::OK, body))
            }
        }
    });
    let mut streaming = unrecorded();
    streaming.streaming = true;
    let setup = with_function(streaming, stream).await;
    for read in [true, false] {
        let (id, call) = setup.start();
        let answer = soon(call).await.unwrap().unwrap();
        let mut log = setup.logs(id, true).await.unwrap();
        assert_eq!(next(&mut log).await, "one\n");
        let mut body = answer.body.into_stream();
        gate.release(1);
        assert_eq!(soon(body.next()).await.unwrap().unwrap(), "a");
        assert_eq!(next(&mut log).await, "a");
        let left = if read {
            gate.release(1);
            assert_eq!(soon(body.next()).await.unwrap().unwrap(), "b");
            assert!(soon(body.next()).await.is_none());
            "b"
        } else {
            drop(body);
            ""
        };
        assert_eq!(rest(log).await, left);
        assert_eq!(setup.failure(id).await, ErrorKind::NotFound);
    }
}

#[tokio::test]
async fn of_two_calls_with_one_id_the_later_is_read_first() {
    let (first, second) = (Gate::new(), Gate::new());
    let setup = with_function(unrecorded(), Handler::logging(&["first\n"], &first)).await;
    let id = InvocationId::generate();
    let one = setup.start_as(cx().with_invocation_id(id));
    soon(first.reached_by(1)).await;
    let followed = setup.logs(id, true).await.unwrap();
    setup.engine.on_invoke(Handler::logging(&["second\n"], &second));
    let two = setup.start_as(cx().with_invocation_id(id));
    soon(second.reached_by(1)).await;
    assert_eq!(setup.read(id, false).await.unwrap(), "second\n");
    second.open();
    soon(two).await.unwrap().unwrap();
    assert_eq!(setup.read(id, false).await.unwrap(), "first\n");
    first.open();
    assert_eq!(rest(followed).await, "first\n");
    soon(one).await.unwrap().unwrap();
    assert_eq!(setup.failure(id).await, ErrorKind::NotFound);
}

#[tokio::test]
async fn what_is_past_the_limit_is_not_in_it() {
    let gate = Gate::new();
    let mut small = spec();
    small.record.max_log_bytes = Some(6);
    let setup = with_function(small, Handler::logging(&["one\n", "two\n"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let log = setup.logs(id, true).await.unwrap();
    gate.open();
    assert_eq!(rest(log).await, "one\ntw");
    soon(call).await.unwrap().unwrap();
    let record = setup.gateway.execution(&cx(), id).await.unwrap();
    let logs = record.logs.as_ref().unwrap();
    assert_eq!((&logs.bytes[..], logs.len, logs.truncated), (&b"one\ntw"[..], Some(8), true));
}

#[tokio::test]
async fn where_the_driver_does_not_tell_logs_they_are_there_with_the_record() {
    let gate = Gate::new();
    let setup = gateway().await;
    let silent = ScriptedDriver::on(&setup.engine).with_capabilities(|caps| caps.invocation_logs = false);
    let builder = function_gateway_core::Gateway::builder().store(Arc::clone(&setup.store)).without_reconciler();
    let gateway = builder.driver("scripted".parse().unwrap(), Arc::new(silent)).build().await.unwrap();
    let setup = Setup { gateway, ..setup };
    setup.create(spec(), Handler::logging(&["one\n"], &gate)).await;
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    // Its caller brought the id, so there is a record already, without a log.
    assert_eq!(setup.read(id, false).await.unwrap(), "");
    let followed = setup.logs(id, true).await.unwrap();
    gate.open();
    soon(call).await.unwrap().unwrap();
    assert_eq!(rest(followed).await, "one\n");
    assert_eq!(setup.read(id, true).await.unwrap(), "one\n");
}

#[tokio::test]
async fn of_a_call_that_runs_in_another_process_there_is_what_its_record_has() {
    let gate = Gate::new();
    let mut durable = spec();
    durable.record.mode = Some(RecordMode::Durable);
    let setup = with_function(durable, Handler::logging(&["one\n"], &gate)).await;
    let other = over(&setup.store, &setup.engine).build().await.unwrap();
    let (id, call) = setup.start();
    soon(gate.reached_by(1)).await;
    let elsewhere = async |follow| other.execution_logs(&cx(), id, follow).await.unwrap();
    assert_eq!(rest(elsewhere(false).await).await, "");
    let mut followed = elsewhere(true).await;
    assert!(futures_util::poll!(followed.next()).is_pending());
    gate.open();
    soon(call).await.unwrap().unwrap();
    assert_eq!(rest(followed).await, "one\n");
    assert_eq!(rest(elsewhere(true).await).await, "one\n");
}

/// A function that logs the number of each of its calls at the gate, and succeeds with the last of them.
fn tried(times: u32, gate: &Gate) -> Handler {
    let (gate, calls) = (gate.clone(), AtomicU32::new(0));
    Handler::new(move |_, request| {
        let (gate, call) = (gate.clone(), calls.fetch_add(1, Ordering::SeqCst) + 1);
        async move {
            request.logs.write(format!("attempt {call}\n").as_bytes());
            gate.pass().await;
            let status = if call < times { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            Ok(InvokeResponse::new(status, ""))
        }
    })
}

/// Tried again soon after each failure, as often as it may be.
fn repeatable() -> FunctionSpec {
    let mut spec = spec();
    spec.idempotent = true;
    let policy = serde_json::json!({ "initial_backoff_ms": 1, "max_backoff_ms": 5 });
    spec.async_policy = Some(serde_json::from_value(policy).unwrap());
    spec
}

impl Setup {
    async fn submit(&self) -> InvocationId {
        let options = SubmitOptions::default();
        self.gateway.submit(&cx(), &function("f"), InvokeRequest::new(""), options).await.unwrap().id
    }
}

#[tokio::test]
async fn what_is_queued_is_followed_from_before_its_first_attempt_to_the_end_of_its_last() {
    let gate = Gate::new();
    let setup = with_function(repeatable(), tried(3, &gate)).await;
    let id = setup.submit().await;
    assert_eq!(setup.read(id, false).await.unwrap(), "");
    let mut log = setup.logs(id, true).await.unwrap();
    assert!(futures_util::poll!(log.next()).is_pending());

    let _workers = setup.gateway.start_workers(WorkerConfig::default()).unwrap();
    for attempt in 1..=2 {
        assert_eq!(next(&mut log).await, format!("attempt {attempt}\n"));
        gate.release(1);
    }
    assert_eq!(next(&mut log).await, "attempt 3\n");
    let late = setup.logs(id, true).await.unwrap();
    gate.open();
    assert_eq!(rest(log).await, "");
    assert_eq!(rest(late).await, "attempt 3\n");
    assert_eq!(setup.read(id, true).await.unwrap(), "attempt 3\n");
}

#[tokio::test]
async fn of_attempts_in_another_process_the_log_of_the_last_is_followed() {
    let gate = Gate::new();
    let setup = with_function(repeatable(), tried(2, &gate)).await;
    let other = over(&setup.store, &setup.engine).build().await.unwrap();
    let id = setup.submit().await;
    let mut log = setup.logs(id, true).await.unwrap();
    let mut whole = other.execution_logs(&cx(), id, true).await.unwrap();
    assert!(futures_util::poll!(whole.next()).is_pending());
    let workers = setup.gateway.start_workers(WorkerConfig::default()).unwrap();
    assert_eq!(next(&mut log).await, "attempt 1\n");
    // What it has begun it brings to its end, and the second attempt is left to another.
    let mut draining = std::pin::pin!(workers.drain());
    assert!(futures_util::poll!(&mut draining).is_pending());
    gate.release(1);
    soon(draining).await;
    let _workers = other.start_workers(WorkerConfig::default()).unwrap();
    assert_eq!(next(&mut whole).await, "attempt 2\n");
    gate.open();
    assert_eq!(rest(log).await, "attempt 2\n");
    assert_eq!(rest(whole).await, "");
}

#[tokio::test]
async fn what_ends_in_the_queue_ends_the_log_of_those_who_follow_it() {
    let setup = with_function(spec(), Handler::echo()).await;
    let id = setup.submit().await;
    let log = setup.logs(id, true).await.unwrap();
    setup.gateway.cancel(&cx(), id).await.unwrap();
    assert_eq!(rest(log).await, "");
}

#[tokio::test]
async fn a_log_that_is_followed_does_not_look_whole_at_shutdown() {
    let setup = with_function(spec(), Handler::echo()).await;
    let id = setup.submit().await;
    let mut log = setup.logs(id, true).await.unwrap();
    assert!(futures_util::poll!(log.next()).is_pending());
    setup.gateway.shutdown(Duration::ZERO).await.unwrap();
    assert_eq!(soon(log.next()).await.unwrap().unwrap_err().kind(), ErrorKind::ShuttingDown);
    assert!(soon(log.next()).await.is_none());
}

#[tokio::test]
async fn attempts_that_a_reader_has_let_pass_are_read_all_the_same() {
    let open = Gate::new();
    open.open();
    let setup = with_function(repeatable(), tried(3, &open)).await;
    let id = setup.submit().await;
    let log = setup.logs(id, true).await.unwrap();
    let _workers = setup.gateway.start_workers(WorkerConfig::default()).unwrap();
    ended(&setup, id).await;
    assert_eq!(rest(log).await, "attempt 1\nattempt 2\nattempt 3\n");
}

#[tokio::test]
async fn a_reader_who_lets_too_many_attempts_pass_is_told_so() {
    let open = Gate::new();
    open.open();
    let mut often = repeatable();
    often.async_policy.as_mut().unwrap().max_attempts = Some(20);
    let setup = with_function(often, tried(18, &open)).await;
    let id = setup.submit().await;
    let mut log = setup.logs(id, true).await.unwrap();
    let _workers = setup.gateway.start_workers(WorkerConfig::default()).unwrap();
    ended(&setup, id).await;
    for attempt in 1..=16 {
        assert_eq!(next(&mut log).await, format!("attempt {attempt}\n"));
    }
    assert_eq!(soon(log.next()).await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(soon(log.next()).await.is_none());
}

async fn ended(setup: &Setup, id: InvocationId) {
    assert!(matches!(soon(setup.gateway.wait(&cx(), id, Duration::MAX)).await.unwrap(), Waited::Ended(_)));
}

#[tokio::test]
async fn another_call_of_the_id_is_not_what_is_followed() {
    let (gate, others) = (Gate::new(), Gate::new());
    let setup = with_function(spec(), tried(1, &gate)).await;
    setup.gateway.create(&cx(), &name("secret"), unrecorded()).await.unwrap();
    let id = setup.submit().await;
    let mut log = setup.logs(id, true).await.unwrap();
    assert!(futures_util::poll!(log.next()).is_pending());
    setup.engine.on_invoke(Handler::logging(&["not for everybody\n"], &others));
    let gateway = setup.gateway.clone();
    let victor = CallContext::new(principal("acme", "victor")).with_invocation_id(id);
    let call = tokio::spawn(async move { gateway.invoke(&victor, &function("secret"), InvokeRequest::new("")).await });
    soon(others.reached_by(1)).await;
    let late = setup.gateway.execution_logs(&cx(), id, false).await.unwrap();
    assert_eq!(rest(late).await, "not for everybody\n", "it is the one that came last, and ada may read both");
    assert!(futures_util::poll!(log.next()).is_pending());
    others.open();
    soon(call).await.unwrap().unwrap();
    setup.engine.on_invoke(tried(1, &gate));
    let _workers = setup.gateway.start_workers(WorkerConfig::default()).unwrap();
    assert_eq!(next(&mut log).await, "attempt 1\n");
    gate.open();
    assert_eq!(rest(log).await, "");
}

#[tokio::test]
async fn an_attempt_that_ends_at_shutdown_ends_its_log() {
    let gate = Gate::new();
    let setup = with_function(spec(), Handler::logging(&["one\n", "two\n"], &gate)).await;
    let _workers = setup.gateway.start_workers(WorkerConfig::default()).unwrap();
    let id = setup.submit().await;
    let mut log = setup.logs(id, true).await.unwrap();
    assert_eq!(next(&mut log).await, "one\n");
    let mut shutdown = std::pin::pin!(setup.gateway.shutdown(Duration::from_secs(60)));
    assert!(futures_util::poll!(&mut shutdown).is_pending());
    gate.open();
    let (log, shutdown) = tokio::join!(rest(log), soon(shutdown));
    assert_eq!(log, "two\n");
    shutdown.unwrap();
}

#[tokio::test]
async fn what_was_running_when_its_gateway_was_killed_is_not_followed_for_ever() {
    let clock = ManualClock::default();
    let setup = gateway_with(|builder| builder.clock(Arc::new(clock.clone()))).await;
    setup.create(spec(), Handler::echo()).await;
    let function = setup.gateway.get(&cx(), &name("f")).await.unwrap();
    let revision = setup.store.revision(cx().tenant(), function.id, function.generation).await.unwrap().unwrap();
    let id = InvocationId::generate();
    let record = InvocationRecord::new(id, &revision, cx().principal().id.clone(), clock.now());
    setup.store.begin(Arc::new(record)).await.unwrap();
    let mut log = setup.logs(id, true).await.unwrap();
    assert!(futures_util::poll!(log.next()).is_pending());
    clock.advance(Duration::from_secs(3600));
    assert_eq!(soon(log.next()).await.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    assert!(soon(log.next()).await.is_none());
}
