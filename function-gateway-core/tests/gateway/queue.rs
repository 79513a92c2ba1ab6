//! Invocations that outlive their caller: submitted, executed by workers, settled, dead, redriven.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use function_gateway_core::store::memory::{MemoryStore, MemoryStoreOptions};
use function_gateway_core::{
    Acceptance, Accepted, AsyncPolicy, CallContext, Callback, CallbackSender, CallbackTarget, Cancelling, Clock as _,
    DeadLetterFilter, Deadline, Delivery, Destination, Dispatch, Due, Error, ErrorClass, ErrorKind,
    FunctionExecutor as _, FunctionId, FunctionManager as _, FunctionName, FunctionSpec, GatewayConfig, Generation,
    InvocationId, InvocationQueue, InvocationRecord, InvocationState, InvokeRequest, Origin, Page, PageRequest,
    Precondition, QueueDepth, QueueLease, QueueManager as _, QueueSignal, QueueState, QueuedInvocation, Receipt,
    RecordMode, RecordPolicy, Result, Sequence, Settlement, SubmitOptions, TakeRequest, Taken, TenantId, TimedPhase,
    Waited, WorkerConfig, Workers,
};
use function_gateway_testkit::{Engine, Gate, Handler, ManualClock, Op};
use http::StatusCode;
use serde_json::json;

use crate::common::{Setup, body, cx, function, gateway, gateway_with, name, over, principal, soon, spec};

/// What is waited for when something is expected to end.
const PATIENCE: Duration = Duration::from_secs(30);

fn fast() -> AsyncPolicy {
    let mut policy = AsyncPolicy::default();
    (policy.initial_backoff, policy.max_backoff) = (Some(Duration::from_millis(1)), Some(Duration::from_millis(5)));
    policy
}

fn with_policy(mut spec: FunctionSpec, change: impl FnOnce(&mut AsyncPolicy)) -> FunctionSpec {
    let mut policy = fast();
    change(&mut policy);
    spec.async_policy = Some(Box::new(policy));
    spec
}

fn idempotent() -> FunctionSpec {
    let mut spec = spec();
    spec.idempotent = true;
    spec
}

async fn create(setup: &Setup, function: &str, spec: FunctionSpec) {
    setup.gateway.create(&cx(), &name(function), spec).await.unwrap();
}

fn workers(setup: &Setup) -> Workers {
    setup.gateway.start_workers(WorkerConfig::default()).unwrap()
}

async fn submit(setup: &Setup, to: &str, payload: &'static str) -> Result<Receipt> {
    setup.gateway.submit(&cx(), &function(to), InvokeRequest::new(payload), SubmitOptions::default()).await
}

async fn ended(setup: &Setup, id: InvocationId) -> Arc<InvocationRecord> {
    match setup.gateway.wait(&cx(), id, PATIENCE).await.unwrap() {
        Waited::Ended(record) => record,
        other => panic!("{other:?}"),
    }
}

async fn done(setup: &Setup, to: &str, payload: &'static str) -> Arc<InvocationRecord> {
    let receipt = submit(setup, to, payload).await.unwrap();
    ended(setup, receipt.id).await
}

async fn dead(setup: &Setup) -> Vec<InvocationId> {
    let filter = DeadLetterFilter::default();
    let page = setup.gateway.dead_letters(&cx(), &filter, &PageRequest::default()).await.unwrap();
    page.items.iter().map(|dead| dead.submission.id).collect()
}

/// Fails as often as is said, then gives the payload back.
fn fails(times: u32, status: StatusCode) -> (Handler, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = Handler::new(move |cx, request| {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        let inner = if call < times { Handler::status(status, "no") } else { Handler::echo() };
        async move { inner.answer(cx, request).await }
    });
    (handler, calls)
}

#[tokio::test]
async fn what_is_submitted_is_executed_and_its_result_is_kept() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let receipt = submit(&setup, "f", "hello").await.unwrap();
    let waiting = setup.gateway.execution(&cx(), receipt.id).await.unwrap();
    assert_eq!((waiting.state, waiting.origin), (InvocationState::Queued, Origin::Async));
    let early = setup.gateway.result(&cx(), receipt.id).await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::InProgress);
    assert!(matches!(
        setup.gateway.wait(&cx(), receipt.id, Duration::ZERO).await.unwrap(),
        Waited::NotYet(record) if record.state == InvocationState::Queued
    ));

    let workers = workers(&setup);
    let record = ended(&setup, receipt.id).await;
    assert_eq!((record.state, record.attempts), (InvocationState::Succeeded, 1));
    assert_eq!((record.request_bytes, record.response_bytes), (Some(5), 5));
    assert!(record.timings.get(TimedPhase::Queue).is_some());
    assert_eq!(record.lineage.as_ref().unwrap().accepted_by.unwrap().get(), 1);
    assert_eq!(body(setup.gateway.result(&cx(), receipt.id).await.unwrap()).await, "hello");
    let queued = setup.gateway.queued(&cx(), receipt.id).await.unwrap();
    assert_eq!((queued.state, queued.attempts, queued.progress.attempts.len()), (QueueState::Done, 1, 1));
    assert_eq!(setup.gateway.queue_depth(&cx(), None).await.unwrap().open, 0);
    soon(workers.drain()).await;
}

#[tokio::test]
async fn a_call_waits_for_its_time() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let _workers = workers(&setup);
    let later = SubmitOptions::default().with_due(Due::In(Duration::from_secs(3600)));
    let receipt = setup.gateway.submit(&cx(), &function("f"), InvokeRequest::new("x"), later).await.unwrap();
    assert_eq!(done(&setup, "f", "now").await.state, InvocationState::Succeeded);
    assert_eq!(setup.gateway.execution(&cx(), receipt.id).await.unwrap().state, InvocationState::Queued);
    setup.gateway.cancel(&cx(), receipt.id).await.unwrap();
    let record = ended(&setup, receipt.id).await;
    assert_eq!((record.state, record.attempts), (InvocationState::Cancelled, 0));
    assert_eq!(record.failure.as_ref().unwrap().delivery, Delivery::NotSent);
    assert_eq!(setup.gateway.cancel(&cx(), receipt.id).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(setup.engine.count(Op::Invoke), 1);
    let far = SubmitOptions::default().with_due(Due::In(Duration::from_secs(86400 * 400)));
    let error = setup.gateway.submit(&cx(), &function("f"), InvokeRequest::new("x"), far).await.unwrap_err();
    assert_eq!((error.kind(), error.violations()[0].pointer.as_str()), (ErrorKind::InvalidArgument, "/due"));
}

#[tokio::test]
async fn a_function_that_is_not_idempotent_is_executed_once_at_most() {
    let setup = gateway().await;
    create(&setup, "f", with_policy(spec(), |_| {})).await;
    let (handler, calls) = fails(9, StatusCode::INTERNAL_SERVER_ERROR);
    setup.engine.on_invoke(handler);
    let _workers = workers(&setup);
    let record = done(&setup, "f", "x").await;
    assert_eq!((record.state, record.attempts, record.status), (InvocationState::Failed, 1, Some(500)));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(dead(&setup).await, [record.id]);
}

#[tokio::test]
async fn what_may_be_repeated_is_tried_until_it_succeeds() {
    for at_least_once in [false, true] {
        let setup = gateway().await;
        let base = if at_least_once { spec() } else { idempotent() };
        create(&setup, "f", with_policy(base, |policy| policy.at_least_once = at_least_once)).await;
        let (handler, calls) = fails(2, StatusCode::SERVICE_UNAVAILABLE);
        setup.engine.on_invoke(handler);
        let _workers = workers(&setup);
        let record = done(&setup, "f", "x").await;
        assert_eq!((record.state, record.attempts), (InvocationState::Succeeded, 3));
        assert_eq!(calls.load(Ordering::SeqCst), 3);
        let queued = setup.gateway.queued(&cx(), record.id).await.unwrap();
        let numbers: Vec<_> = queued.progress.attempts.iter().map(|attempt| (attempt.number, attempt.status)).collect();
        assert_eq!(numbers, [(1, Some(503)), (2, Some(503)), (3, Some(200))]);
        assert!(record.started_at.unwrap() <= queued.progress.attempts[0].finished_at);
        assert_eq!(dead(&setup).await, []);
    }
}

#[tokio::test]
async fn attempts_run_out_and_statuses_are_chosen() {
    let setup = gateway().await;
    create(&setup, "f", with_policy(idempotent(), |policy| policy.max_attempts = Some(2))).await;
    let chosen = |policy: &mut AsyncPolicy| policy.retry_statuses = Some(BTreeSet::from([404]));
    create(&setup, "g", with_policy(idempotent(), chosen)).await;
    let _workers = workers(&setup);
    let (handler, calls) = fails(9, StatusCode::BAD_GATEWAY);
    setup.engine.on_invoke(handler);
    assert_eq!(done(&setup, "f", "x").await.attempts, 2);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    assert_eq!(done(&setup, "g", "x").await.attempts, 1, "only 404 is chosen");
    let (handler, _) = fails(1, StatusCode::NOT_FOUND);
    setup.engine.on_invoke(handler);
    assert_eq!(done(&setup, "g", "x").await.state, InvocationState::Succeeded);
}

#[tokio::test]
async fn what_was_not_sent_is_tried_again() {
    let setup = gateway().await;
    create(&setup, "f", with_policy(spec(), |_| {})).await;
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    setup.engine.on_invoke(Handler::new(move |cx, request| {
        let unsent = Error::new(ErrorKind::Unavailable, "refused").with_delivery(Delivery::NotSent);
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        let inner = if first { Handler::error(unsent) } else { Handler::echo() };
        async move { inner.answer(cx, request).await }
    }));
    let _workers = workers(&setup);
    let record = done(&setup, "f", "x").await;
    assert_eq!((record.state, record.attempts), (InvocationState::Succeeded, 2));
}

#[tokio::test]
async fn a_payload_is_refused_at_the_door_and_what_is_gone_by_then_is_dead() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let huge = InvokeRequest::new(vec![0_u8; (1 << 20) + 1]);
    let error = setup.gateway.submit(&cx(), &function("f"), huge, SubmitOptions::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
    assert_eq!(submit(&setup, "g", "x").await.unwrap_err().kind(), ErrorKind::NotFound);
    let receipt = submit(&setup, "f", "x").await.unwrap();
    setup.gateway.delete(&cx(), &name("f"), Precondition::none()).await.unwrap();
    let _workers = workers(&setup);
    let record = ended(&setup, receipt.id).await;
    assert_eq!(record.state, InvocationState::Failed);
    assert_eq!(record.failure.as_ref().unwrap().code, "not_found");
    assert_eq!((record.failure.as_ref().unwrap().class, record.attempts), (ErrorClass::Caller, 0));

    // One that bears the same name is another function.
    create(&setup, "f", spec()).await;
    let redriven = setup.gateway.redrive(&cx(), receipt.id).await.unwrap();
    assert_ne!(redriven.id, receipt.id);
    let record = ended(&setup, redriven.id).await;
    assert_eq!(record.state, InvocationState::Succeeded);
    assert_eq!(record.lineage.as_ref().unwrap().redrive_of, Some(receipt.id));
    assert_eq!(setup.gateway.redrive(&cx(), receipt.id).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(dead(&setup).await, []);
}

#[tokio::test]
async fn dead_letters_are_read_and_purged() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    setup.engine.on_invoke(Handler::failing("bad luck"));
    let _workers = workers(&setup);
    let record = done(&setup, "f", "payload").await;
    let dead_letter = setup.gateway.queued(&cx(), record.id).await.unwrap();
    assert_eq!((dead_letter.state, &dead_letter.submission.payload[..]), (QueueState::Dead, &b"payload"[..]));
    assert_eq!(dead_letter.progress.failure.as_ref().unwrap().message, "bad luck");
    assert_eq!(setup.gateway.queue_depth(&cx(), Some(&name("f"))).await.unwrap().dead, 1);
    let foreign = CallContext::new(principal("other", "eve"));
    assert_eq!(setup.gateway.purge(&foreign, record.id).await.unwrap_err().kind(), ErrorKind::NotFound);
    setup.gateway.purge(&cx(), record.id).await.unwrap();
    assert_eq!(setup.gateway.queued(&cx(), record.id).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(setup.gateway.execution(&cx(), record.id).await.unwrap().state, InvocationState::Failed);

    create(&setup, "g", with_policy(spec(), |policy| policy.drop_failed = true)).await;
    done(&setup, "g", "x").await;
    assert_eq!(dead(&setup).await, []);
}

#[tokio::test]
async fn a_running_invocation_is_cancelled() {
    let setup = gateway().await;
    create(&setup, "f", with_policy(idempotent(), |_| {})).await;
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    let _workers = workers(&setup);
    let receipt = submit(&setup, "f", "x").await.unwrap();
    soon(async {
        while setup.engine.in_flight() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(setup.gateway.execution(&cx(), receipt.id).await.unwrap().state, InvocationState::Running);
    setup.gateway.cancel(&cx(), receipt.id).await.unwrap();
    let record = soon(ended(&setup, receipt.id)).await;
    assert_eq!((record.state, record.attempts), (InvocationState::Cancelled, 1));
    assert_eq!(dead(&setup).await, [], "what was wanted to end is no dead letter");
    gate.open();
}

#[tokio::test]
async fn one_key_is_one_execution() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    create(&setup, "g", spec()).await;
    let _workers = workers(&setup);
    let keyed = |payload: &'static str| InvokeRequest::new(payload).with_idempotency_key("k1");
    let options = SubmitOptions::default;
    let first = setup.gateway.submit(&cx(), &function("f"), keyed("a"), options()).await.unwrap();
    let again = setup.gateway.submit(&cx(), &function("f"), keyed("a"), options()).await.unwrap();
    assert_eq!((first.is_repeated, again.is_repeated, again.id), (false, true, first.id));
    let other = setup.gateway.submit(&cx(), &function("f"), keyed("b"), options()).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::IdempotencyMismatch);
    let elsewhere = setup.gateway.submit(&cx(), &function("g"), keyed("b"), options()).await.unwrap();
    assert!(!elsewhere.is_repeated);
    ended(&setup, first.id).await;
    ended(&setup, elsewhere.id).await;
    assert_eq!(setup.engine.count(Op::Invoke), 2);
    // A call under the same key gets what was submitted.
    let answer = setup.gateway.invoke(&cx(), &function("f"), keyed("a")).await.unwrap();
    assert_eq!(body(answer).await, "a");
    assert_eq!(setup.engine.count(Op::Invoke), 2);
}

#[tokio::test]
async fn a_call_with_a_key_is_made_once() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let (handler, calls) = fails(1, StatusCode::INTERNAL_SERVER_ERROR);
    setup.engine.on_invoke(handler);
    let call = || InvokeRequest::new("x").with_idempotency_key("k");
    for _ in 0..2 {
        // Also its failure is given again.
        let answer = setup.gateway.invoke(&cx(), &function("f"), call()).await.unwrap();
        assert_eq!((answer.status, answer.outcome.is_success()), (StatusCode::INTERNAL_SERVER_ERROR, false));
        assert_eq!(body(answer).await, "no");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(dead(&setup).await, []);

    let unsent = Error::new(ErrorKind::Unavailable, "refused").with_delivery(Delivery::NotSent);
    setup.engine.on_invoke(Handler::error(unsent));
    let other = || InvokeRequest::new("x").with_idempotency_key("other");
    assert_eq!(setup.gateway.invoke(&cx(), &function("f"), other()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    setup.engine.on_invoke(Handler::echo());
    let answer = setup.gateway.invoke(&cx(), &function("f"), other()).await.unwrap();
    assert_eq!(body(answer).await, "x", "what was not sent may be sent");
}

#[tokio::test]
async fn a_keyed_call_goes_on_without_its_caller() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    let call = || InvokeRequest::new("x").with_idempotency_key("k");
    let (context, to) = (cx(), function("f"));
    let mut calling = Box::pin(setup.gateway.invoke(&context, &to, call()));
    soon(async {
        tokio::select! {
            answer = &mut calling => panic!("{answer:?}"),
            () = async { while gate.waiting() == 0 { tokio::task::yield_now().await } } => {}
        }
    })
    .await;
    drop(calling);
    let running = setup.gateway.invoke(&cx(), &function("f"), call()).await.unwrap_err();
    assert_eq!((running.kind(), running.retry_after().is_some()), (ErrorKind::InProgress, true));
    gate.open();
    let answer = soon(async {
        loop {
            match setup.gateway.invoke(&cx(), &function("f"), call()).await {
                Err(error) if error.kind() == ErrorKind::InProgress => tokio::task::yield_now().await,
                answer => return answer.unwrap(),
            }
        }
    })
    .await;
    assert_eq!(body(answer).await, "x");
    assert_eq!(setup.engine.count(Op::Invoke), 1);
}

#[tokio::test]
async fn a_result_that_is_not_kept_is_told_from_one_that_is_not_there() {
    let mut config = GatewayConfig::default();
    config.queue.max_result_bytes = 4;
    let setup = gateway_with(|builder| builder.config(config)).await;
    create(&setup, "f", spec()).await;
    let call = || InvokeRequest::new("too large").with_idempotency_key("k");
    let first = setup.gateway.invoke(&cx(), &function("f"), call()).await.unwrap();
    assert_eq!(body(first).await, "too large", "who made the call gets all of it");
    let again = setup.gateway.invoke(&cx(), &function("f"), call()).await.unwrap_err();
    assert_eq!((again.kind(), again.delivery()), (ErrorKind::ResultNotKept, Delivery::Executed));

    let mut streaming = spec();
    streaming.streaming = true;
    create(&setup, "s", streaming).await;
    let gate = Gate::new();
    gate.open();
    setup.engine.on_invoke(Handler::stream(["a", "b"], &gate));
    let call = || InvokeRequest::new("x").with_idempotency_key("k");
    let answer = setup.gateway.invoke(&cx(), &function("s"), call()).await.unwrap();
    assert!(answer.body.is_stream());
    assert_eq!(body(answer).await, "ab");
    let again = setup.gateway.invoke(&cx(), &function("s"), call()).await.unwrap_err();
    assert_eq!(again.kind(), ErrorKind::ResultNotKept);
}

#[tokio::test]
async fn one_end_leads_to_another_function() {
    let setup = gateway().await;
    create(
        &setup,
        "first",
        with_policy(spec(), |policy| {
            policy.on_success = Some(Destination::Function(name("second")));
            policy.on_failure = Some(Destination::Function(name("rescue")));
        }),
    )
    .await;
    create(&setup, "second", spec()).await;
    create(&setup, "rescue", spec()).await;
    let _workers = workers(&setup);
    let record = done(&setup, "first", "payload").await;
    let follower = soon(follower_of(&setup, "second", record.id)).await;
    assert_eq!(follower.lineage.as_ref().unwrap().depth, 1);
    let follower = ended(&setup, follower.id).await;
    assert_eq!(body(setup.gateway.result(&cx(), follower.id).await.unwrap()).await, "payload");

    setup.engine.on_invoke(Handler::new(|cx, request| async move {
        let failing = request.revision.key.name.as_str() == "first";
        let inner = if failing { Handler::failing("bad luck") } else { Handler::echo() };
        inner.answer(cx, request).await
    }));
    let record = done(&setup, "first", "payload").await;
    let rescue = soon(follower_of(&setup, "rescue", record.id)).await;
    ended(&setup, rescue.id).await;
    let told: serde_json::Value =
        serde_json::from_slice(&body(setup.gateway.result(&cx(), rescue.id).await.unwrap()).await).unwrap();
    assert_eq!(told["type"], "invocation.failed");
    assert_eq!(told["data"]["invocation"], json!(record.id));
    assert_eq!(told["data"]["failure"]["message"], "bad luck");
}

async fn follower_of(setup: &Setup, of: &str, parent: InvocationId) -> Arc<InvocationRecord> {
    let filter = function_gateway_core::RecordFilter::of(name(of));
    loop {
        let page = setup.gateway.executions(&cx(), &filter, &PageRequest::default()).await.unwrap();
        let is_child = |record: &&Arc<InvocationRecord>| {
            record.lineage.as_ref().is_some_and(|lineage| lineage.parent == Some(parent))
        };
        if let Some(found) = page.items.iter().find(is_child) {
            return Arc::clone(found);
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_chain_ends() {
    let mut config = GatewayConfig::default();
    config.queue.max_chain = 3;
    let setup = gateway_with(|builder| builder.config(config)).await;
    let to_itself = |policy: &mut AsyncPolicy| policy.on_success = Some(Destination::Function(name("f")));
    create(&setup, "f", with_policy(spec(), to_itself)).await;
    let _workers = workers(&setup);
    submit(&setup, "f", "x").await.unwrap();
    let dead = soon(async {
        loop {
            let found = dead(&setup).await;
            if !found.is_empty() {
                return found;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let last = setup.gateway.queued(&cx(), dead[0]).await.unwrap();
    assert_eq!(last.submission.lineage.depth, 4);
    assert!(last.progress.failure.as_ref().unwrap().message.contains("more than 3"));
    assert_eq!(setup.engine.count(Op::Invoke), 4);
    assert_eq!(setup.gateway.queue_depth(&cx(), None).await.unwrap().open, 0);
}

#[tokio::test]
async fn a_destination_that_is_not_there_is_a_dead_letter() {
    let setup = gateway().await;
    let to_nobody = |policy: &mut AsyncPolicy| policy.on_success = Some(Destination::Function(name("nobody")));
    create(&setup, "f", with_policy(spec(), to_nobody)).await;
    let _workers = workers(&setup);
    let record = done(&setup, "f", "x").await;
    assert_eq!(record.state, InvocationState::Succeeded);
    let lost = soon(follower_of(&setup, "nobody", record.id)).await;
    let lost = ended(&setup, lost.id).await;
    assert_eq!(lost.failure.as_ref().unwrap().code, "not_found");
    assert_eq!(setup.gateway.queued(&cx(), lost.id).await.unwrap().submission.payload, "x");
}

#[tokio::test]
async fn a_sequence_goes_in_order_and_stops_or_goes_on() {
    for (go_on, expected) in [(false, vec!["a", "b"]), (true, vec!["a", "b", "c"])] {
        let setup = gateway().await;
        for function in ["a", "b", "c"] {
            create(&setup, function, spec()).await;
        }
        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let noted = Arc::clone(&seen);
        setup.engine.on_invoke(Handler::new(move |cx, request| {
            let function = request.revision.key.name.as_str().to_owned();
            let inner = if function == "b" { Handler::failing("no") } else { Handler::echo() };
            noted.lock().unwrap().push(function);
            async move { inner.answer(cx, request).await }
        }));
        let _workers = workers(&setup);
        let sequence = Sequence::new(vec![name("b"), name("c")], go_on);
        let options = SubmitOptions::default().with_sequence(sequence);
        let receipt = setup.gateway.submit(&cx(), &function("a"), InvokeRequest::new("x"), options).await.unwrap();
        let first = ended(&setup, receipt.id).await;
        let second = ended(&setup, soon(follower_of(&setup, "b", first.id)).await.id).await;
        assert_eq!(second.state, InvocationState::Failed);
        if go_on {
            ended(&setup, soon(follower_of(&setup, "c", second.id)).await.id).await;
        }
        soon(async {
            while setup.gateway.queue_depth(&cx(), None).await.unwrap().open > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(*seen.lock().unwrap(), expected);
    }
}

#[derive(Debug, Default)]
struct Sent {
    failures: AtomicU32,
    bodies: std::sync::Mutex<Vec<(InvocationId, String, Bytes)>>,
}

#[async_trait]
impl CallbackSender for Sent {
    fn check(&self, url: &str) -> Option<String> {
        url.contains("private").then(|| "is private".to_owned())
    }

    async fn send(&self, _: &CallContext, callback: Callback) -> Result<()> {
        let before = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if before.is_ok() {
            return Err(Error::new(ErrorKind::Unavailable, "not now"));
        }
        self.bodies.lock().unwrap().push((callback.id, callback.url, callback.body));
        Ok(())
    }
}

#[tokio::test]
async fn an_address_is_told_of_the_end() {
    let sender = Arc::new(Sent::default());
    sender.failures.store(1, Ordering::SeqCst);
    let told = Arc::clone(&sender);
    let setup = gateway_with(|builder| builder.callbacks(told)).await;
    let to = |url: &str| Some(Destination::Callback(CallbackTarget::new(url)));
    let refused = with_policy(spec(), |policy| policy.on_success = to("https://private.example"));
    let error = setup.gateway.create(&cx(), &name("f"), refused).await.unwrap_err();
    assert_eq!(error.violations()[0].pointer, "/async/on_success/callback/url");
    create(&setup, "f", with_policy(spec(), |policy| policy.on_success = to("https://hooks.example/x"))).await;
    let _workers = workers(&setup);
    let record = done(&setup, "f", "payload").await;
    soon(async {
        while sender.bodies.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let bodies = sender.bodies.lock().unwrap().clone();
    assert_eq!(bodies.len(), 1);
    let document: serde_json::Value = serde_json::from_slice(&bodies[0].2).unwrap();
    assert_eq!(bodies[0].1, "https://hooks.example/x");
    assert_eq!(
        (&document["type"], &document["data"]["invocation"]),
        (&json!("invocation.succeeded"), &json!(record.id))
    );
    assert_eq!(document["data"]["result"], "payload");
}

#[tokio::test]
async fn a_gateway_that_sends_no_callbacks_takes_none() {
    let setup = gateway().await;
    let to = Some(Destination::Callback(CallbackTarget::new("https://hooks.example/x")));
    let refused = with_policy(spec(), |policy| policy.on_failure = to);
    let error = setup.gateway.create(&cx(), &name("f"), refused).await.unwrap_err();
    assert_eq!(error.violations()[0].pointer, "/async/on_failure/callback/url");
}

#[tokio::test]
async fn what_is_wrong_with_a_policy_is_told_at_creation() {
    let setup = gateway().await;
    let bad: AsyncPolicy = serde_json::from_value(json!({
        "max_attempts": 0, "max_age_ms": 0, "retry_statuses": [200], "on_succes": {"function": "x"},
        "on_failure": {"callback": {"url": "ftp://x"}}
    }))
    .unwrap();
    let mut spec = spec();
    spec.async_policy = Some(Box::new(bad));
    let error = setup.gateway.create(&cx(), &name("f"), spec).await.unwrap_err();
    let pointers: BTreeSet<_> = error.violations().iter().map(|violation| violation.pointer.as_str()).collect();
    let expected = ["max_attempts", "max_age_ms", "retry_statuses", "on_succes", "on_failure/callback/url"]
        .map(|at| format!("/async/{at}"));
    assert_eq!(pointers, expected.iter().map(String::as_str).collect());
}

#[tokio::test]
async fn a_record_policy_does_not_hide_what_was_submitted() {
    let setup = gateway().await;
    let mut off = spec();
    off.record = RecordPolicy::off();
    create(&setup, "f", off).await;
    let _workers = workers(&setup);
    let record = done(&setup, "f", "x").await;
    assert_eq!((record.state, record.attempts), (InvocationState::Succeeded, 1));
    let mut durable = spec();
    durable.record.mode = Some(RecordMode::Durable);
    create(&setup, "g", durable).await;
    assert_eq!(done(&setup, "g", "x").await.state, InvocationState::Succeeded);
}

#[tokio::test]
async fn an_update_is_followed_and_a_pinned_call_is_not() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let plain = submit(&setup, "f", "x").await.unwrap();
    let pinned = SubmitOptions::default().pinned();
    let pinned = setup.gateway.submit(&cx(), &function("f"), InvokeRequest::new("x"), pinned).await.unwrap();
    let newer = spec().with_env("NEW", "1");
    setup.gateway.update(&cx(), &name("f"), newer, Precondition::none()).await.unwrap();
    for _ in 0..3 {
        setup.gateway.reconcile_one(&setup.gateway.get(&cx(), &name("f")).await.unwrap().key).await.unwrap();
    }
    let _workers = workers(&setup);
    let (plain, pinned) = (ended(&setup, plain.id).await, ended(&setup, pinned.id).await);
    assert_eq!((plain.generation.get(), pinned.generation.get()), (2, 1));
    assert_eq!(plain.lineage.as_ref().unwrap().accepted_by.unwrap().get(), 1);
    assert_eq!((plain.state, pinned.state), (InvocationState::Succeeded, InvocationState::Succeeded));
}

#[tokio::test]
async fn too_much_is_refused_by_the_name_of_its_limit() {
    let mut config = GatewayConfig::default();
    (config.queue.max_per_function, config.queue.max_per_tenant) = (2, 3);
    let setup = gateway_with(|builder| builder.config(config)).await;
    create(&setup, "f", spec()).await;
    create(&setup, "g", spec()).await;
    for to in ["f", "f", "g"] {
        submit(&setup, to, "x").await.unwrap();
    }
    for (to, limit) in [("f", "max_per_function"), ("g", "max_per_tenant")] {
        let error = submit(&setup, to, "x").await.unwrap_err();
        assert_eq!((error.kind(), error.context_value("limit")), (ErrorKind::RateLimited, Some(limit)));
        assert!(error.retry_after().is_some());
    }
    let _workers = workers(&setup);
    soon(async {
        while submit(&setup, "f", "x").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_shutdown_drains_the_workers_and_leaves_the_rest() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    let one = WorkerConfig::default().with_concurrency(1);
    let workers = setup.gateway.start_workers(one).unwrap();
    let (first, second) = (submit(&setup, "f", "x").await.unwrap(), submit(&setup, "f", "y").await.unwrap());
    soon(async {
        while gate.waiting() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let closing = setup.gateway.clone();
    let closing = tokio::spawn(async move { closing.shutdown(PATIENCE).await });
    gate.open();
    soon(closing).await.unwrap().unwrap();
    assert_eq!(workers.running(), 0);
    let tenant = cx().tenant().clone();
    let states = [first.id, second.id].map(|id| setup.store.queued(&tenant, id));
    let [first, second] = states;
    assert_eq!(first.await.unwrap().unwrap().state, QueueState::Done);
    assert!(second.await.unwrap().unwrap().state.is_open());
}

#[tokio::test]
async fn stopped_workers_tell_that_nobody_knows_the_end() {
    for (spec, expected) in [(spec(), QueueState::Dead), (idempotent(), QueueState::Waiting)] {
        let setup = gateway().await;
        create(&setup, "f", with_policy(spec, |policy| policy.initial_backoff = Some(Duration::from_secs(600)))).await;
        setup.engine.on_invoke(Handler::hang());
        let workers = workers(&setup);
        let receipt = submit(&setup, "f", "x").await.unwrap();
        soon(async {
            while setup.engine.in_flight() == 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        soon(workers.stop(Duration::ZERO)).await;
        let queued = setup.gateway.queued(&cx(), receipt.id).await.unwrap();
        assert_eq!(queued.state, expected);
        assert_eq!(queued.progress.failure.as_ref().unwrap().code, "lost");
        let state = setup.gateway.execution(&cx(), receipt.id).await.unwrap().state;
        let wanted = if expected == QueueState::Dead { InvocationState::Lost } else { InvocationState::Queued };
        assert_eq!(state, wanted);
        assert_eq!(queued.progress.attempts.len(), 1);
    }
}

#[tokio::test]
async fn one_tenant_leaves_room_for_another() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    let other = CallContext::new(principal("other", "bob"));
    setup.gateway.create(&other, &name("f"), spec()).await.unwrap();
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::new({
        let gate = gate.clone();
        move |cx, request| {
            let slow = request.revision.key.tenant.as_str() == "acme";
            let inner = if slow { Handler::echo().gated(&gate) } else { Handler::echo() };
            async move { inner.answer(cx, request).await }
        }
    }));
    for _ in 0..20 {
        submit(&setup, "f", "x").await.unwrap();
    }
    let four = WorkerConfig::default().with_concurrency(4);
    let _workers = setup.gateway.start_workers(four).unwrap();
    soon(async {
        while gate.waiting() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let request = InvokeRequest::new("y");
    let receipt = setup.gateway.submit(&other, &function("f"), request, SubmitOptions::default()).await.unwrap();
    let waited = setup.gateway.wait(&other, receipt.id, PATIENCE).await.unwrap();
    assert!(matches!(waited, Waited::Ended(record) if record.state == InvocationState::Succeeded));
    assert_eq!(gate.waiting(), 3);
    gate.open();
}

#[tokio::test]
async fn a_deadline_of_a_keyed_call_holds() {
    let setup = gateway().await;
    create(&setup, "f", spec()).await;
    setup.engine.on_invoke(Handler::hang());
    let cx = cx().with_deadline(Deadline::after(Duration::from_millis(50)));
    let call = InvokeRequest::new("x").with_idempotency_key("k");
    let error = soon(setup.gateway.invoke(&cx, &function("f"), call)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

/// A queue that takes its time to accept.
#[derive(Debug)]
struct Late(Arc<MemoryStore>, Gate);

#[async_trait]
impl InvocationQueue for Late {
    async fn accept(&self, acceptance: Acceptance) -> Result<Accepted> {
        self.1.pass().await;
        self.0.accept(acceptance).await
    }

    async fn take(&self, request: &TakeRequest) -> Result<Taken> {
        self.0.take(request).await
    }

    async fn dispatch(&self, lease: &QueueLease, dispatch: Dispatch) -> Result<()> {
        self.0.dispatch(lease, dispatch).await
    }

    async fn settle(&self, lease: &QueueLease, settlement: Settlement) -> Result<()> {
        self.0.settle(lease, settlement).await
    }

    async fn cancel(&self, tenant: &TenantId, id: InvocationId, lease: Duration) -> Result<Cancelling> {
        self.0.cancel(tenant, id, lease).await
    }

    async fn cancelled(&self, ids: &[InvocationId]) -> Result<Vec<InvocationId>> {
        self.0.cancelled(ids).await
    }

    async fn queued(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<QueuedInvocation>>> {
        self.0.queued(tenant, id).await
    }

    async fn dead_letters(
        &self,
        tenant: &TenantId,
        filter: &DeadLetterFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>> {
        self.0.dead_letters(tenant, filter, page).await
    }

    async fn redrive(&self, tenant: &TenantId, id: InvocationId, again: Acceptance, keep: Duration) -> Result<()> {
        self.0.redrive(tenant, id, again, keep).await
    }

    async fn purge(&self, tenant: &TenantId, id: InvocationId) -> Result<()> {
        self.0.purge(tenant, id).await
    }

    async fn depth(&self, tenant: &TenantId, name: Option<&FunctionName>) -> Result<QueueDepth> {
        self.0.depth(tenant, name).await
    }

    async fn pinned(&self, function: FunctionId, generation: Generation) -> Result<u64> {
        self.0.pinned(function, generation).await
    }

    async fn expire(&self, limit: usize) -> Result<u64> {
        self.0.expire(limit).await
    }

    fn arrivals(&self) -> QueueSignal {
        self.0.arrivals()
    }

    fn endings(&self) -> QueueSignal {
        self.0.endings()
    }
}

#[tokio::test]
async fn a_keyed_call_that_is_accepted_too_late_is_not_made_and_frees_its_key() {
    let (setup, gate) = (gateway().await, Gate::new());
    let late = Arc::new(Late(Arc::clone(&setup.store), gate.clone()));
    let gateway = over(&setup.store, &setup.engine).queue(late).build().await.unwrap();
    let setup = Setup { gateway, ..setup };
    create(&setup, "f", spec()).await;
    let call = || InvokeRequest::new("x").with_idempotency_key("k");
    let id = InvocationId::generate();
    let hasty = cx().with_deadline(Deadline::after(Duration::from_millis(50))).with_invocation_id(id);
    let error = soon(setup.gateway.invoke(&hasty, &function("f"), call())).await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::DeadlineExceeded, Delivery::Unknown));
    assert_eq!(error.context_value("invocation"), Some(&*id.to_string()));
    gate.open();
    soon(async {
        // It is accepted some time after.
        while setup.gateway.execution(&cx(), id).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let record = ended(&setup, id).await;
    let delivery = record.failure.as_ref().map(|failure| failure.delivery);
    assert_eq!((record.state, delivery), (InvocationState::TimedOut, Some(Delivery::NotSent)));
    assert_eq!(setup.engine.count(Op::Invoke), 0);
    assert_eq!(body(setup.gateway.invoke(&cx(), &function("f"), call()).await.unwrap()).await, "x");
}

/// Waits until a function has been called so often.
async fn called(setup: &Setup, times: usize) {
    soon(async {
        while setup.engine.count(Op::Invoke) < times {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn what_waits_for_a_limit_takes_no_attempt_and_none_of_its_time() {
    let setup = gateway().await;
    let mut one = with_policy(spec(), |policy| policy.max_attempts = Some(1));
    one.limits.max_in_flight = Some(1);
    one.timeouts.total = Some(Duration::from_secs(20));
    create(&setup, "f", one).await;
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    let _workers = workers(&setup);
    let (first, second) = (submit(&setup, "f", "x").await.unwrap(), submit(&setup, "f", "y").await.unwrap());
    called(&setup, 1).await;
    let waiting = soon(async {
        loop {
            for id in [first.id, second.id] {
                let queued = setup.gateway.queued(&cx(), id).await.unwrap();
                if queued.progress.failure.is_some() {
                    return queued;
                }
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!((waiting.state.is_open(), waiting.attempts, waiting.progress.attempts.len()), (true, 0, 0));
    assert_eq!(waiting.progress.failure.as_ref().unwrap().code, "rate_limited");
    gate.open();
    for id in [first.id, second.id] {
        let record = ended(&setup, id).await;
        assert_eq!((record.state, record.attempts), (InvocationState::Succeeded, 1));
    }
}

#[tokio::test]
async fn a_result_that_is_not_kept_is_not_handed_on_as_an_empty_one() {
    let mut config = GatewayConfig::default();
    config.queue.max_result_bytes = 4;
    let setup = gateway_with(|builder| builder.config(config)).await;
    let to_next = |policy: &mut AsyncPolicy| policy.on_success = Some(Destination::Function(name("next")));
    create(&setup, "f", with_policy(spec(), to_next)).await;
    create(&setup, "next", spec()).await;
    let _workers = workers(&setup);
    let record = done(&setup, "f", "too large").await;
    assert_eq!(record.state, InvocationState::Succeeded);
    let next = soon(follower_of(&setup, "next", record.id)).await;
    let next = ended(&setup, next.id).await;
    assert_eq!((next.failure.as_ref().unwrap().code.as_str(), next.attempts), ("result_not_kept", 0));
    assert_eq!(setup.engine.count(Op::Invoke), 1);
}

#[tokio::test]
async fn a_redrive_does_not_repeat_what_went_on() {
    for (go_on, calls) in [(true, 3), (false, 3)] {
        let setup = gateway().await;
        create(&setup, "a", spec()).await;
        create(&setup, "b", spec()).await;
        let (handler, _) = fails(1, StatusCode::INTERNAL_SERVER_ERROR);
        setup.engine.on_invoke(handler);
        let workers = workers(&setup);
        let sequence = SubmitOptions::default().with_sequence(Sequence::new(vec![name("b")], go_on));
        let receipt = setup.gateway.submit(&cx(), &function("a"), InvokeRequest::new("x"), sequence).await.unwrap();
        assert_eq!(ended(&setup, receipt.id).await.state, InvocationState::Failed);
        if go_on {
            called(&setup, 2).await;
        }
        let again = setup.gateway.redrive(&cx(), receipt.id).await.unwrap();
        ended(&setup, again.id).await;
        soon(async {
            while setup.gateway.queue_depth(&cx(), None).await.unwrap().open > 0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        soon(workers.drain()).await;
        assert_eq!(setup.engine.count(Op::Invoke), calls, "go_on: {go_on}");
    }
}

#[tokio::test]
async fn a_call_with_a_key_leads_nowhere_by_itself() {
    let setup = gateway().await;
    let to_next = |policy: &mut AsyncPolicy| policy.on_success = Some(Destination::Function(name("next")));
    create(&setup, "f", with_policy(spec(), to_next)).await;
    create(&setup, "next", spec()).await;
    let call = InvokeRequest::new("x").with_idempotency_key("k");
    setup.gateway.invoke(&cx(), &function("f"), call).await.unwrap();
    assert_eq!(setup.gateway.queue_depth(&cx(), None).await.unwrap().open, 0);
}

#[tokio::test]
async fn the_last_attempt_that_was_interrupted_is_lost() {
    let setup = gateway().await;
    create(&setup, "f", with_policy(idempotent(), |policy| policy.max_attempts = Some(1))).await;
    let receipt = submit(&setup, "f", "x").await.unwrap();
    // Another process takes it, sends it and dies.
    let request = TakeRequest::new(1, Duration::from_secs(30));
    let taken = setup.store.take(&request).await.unwrap().items.remove(0);
    let dispatch = Dispatch::new(1, Duration::from_micros(1)).repeatable(true);
    setup.store.dispatch(&taken.lease, dispatch).await.unwrap();
    let _workers = workers(&setup);
    let record = ended(&setup, receipt.id).await;
    let failure = record.failure.as_ref().unwrap();
    assert_eq!(
        (record.state, failure.code.as_str(), failure.delivery),
        (InvocationState::Lost, "lost", Delivery::Unknown)
    );
    assert_eq!((record.attempts, setup.engine.count(Op::Invoke)), (1, 0));
}

#[tokio::test]
async fn a_stream_whose_reader_stands_still_is_executed_to_its_end() {
    let mut config = GatewayConfig::default();
    config.max_reader_pause = Duration::from_millis(20);
    let setup = gateway_with(|builder| builder.config(config)).await;
    let mut streaming = spec();
    streaming.streaming = true;
    create(&setup, "s", streaming).await;
    let gate = Gate::new();
    gate.open();
    setup.engine.on_invoke(Handler::stream(["a", "b", "c", "d", "e"], &gate));
    let id = InvocationId::generate();
    let call = InvokeRequest::new("x").with_idempotency_key("k");
    let answer = setup.gateway.invoke(&cx().with_invocation_id(id), &function("s"), call).await.unwrap();
    // Nothing is read of it until its end is recorded.
    assert!(soon(ended(&setup, id)).await.finished_at.is_some());
    let broken = answer.body.collect(100).await.unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::Cancelled);
}

#[tokio::test]
async fn what_was_not_sent_when_the_workers_stop_waits_again() {
    let setup = gateway().await;
    let mut slow = spec();
    slow.limits.max_in_flight = Some(1);
    create(&setup, "f", slow).await;
    setup.engine.on_invoke(Handler::hang());
    let one = WorkerConfig::default().with_concurrency(1);
    let workers = setup.gateway.start_workers(one).unwrap();
    submit(&setup, "f", "x").await.unwrap();
    called(&setup, 1).await;
    let waiting = submit(&setup, "f", "y").await.unwrap();
    soon(workers.stop(Duration::ZERO)).await;
    let queued = setup.gateway.queued(&cx(), waiting.id).await.unwrap();
    assert_eq!((queued.state, queued.attempts), (QueueState::Waiting, 0));
}

#[tokio::test]
async fn a_clock_that_jumps_ends_nothing_twice_and_loses_nothing() {
    const HOUR: Duration = Duration::from_secs(3600);
    let clock = ManualClock::default();
    let options = MemoryStoreOptions::default().with_clock(Arc::new(clock.clone()));
    let (store, engine) = (Arc::new(MemoryStore::with_options("test".parse().unwrap(), options)), Engine::new());
    let gateway = over(&store, &engine).clock(Arc::new(clock.clone())).build().await.unwrap();
    let setup = Setup { gateway, engine, store };
    create(&setup, "f", spec()).await;
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    // Nobody tells of a clock that is set.
    let workers = setup.gateway.start_workers(WorkerConfig::default().with_poll_interval(Duration::from_millis(5)));
    let workers = workers.unwrap();
    let receipt = submit(&setup, "f", "x").await.unwrap();
    called(&setup, 1).await;

    clock.advance(HOUR);
    let record = ended(&setup, receipt.id).await;
    assert_eq!((record.state, dead(&setup).await), (InvocationState::Lost, vec![receipt.id]));
    gate.open();
    soon(workers.drain()).await;
    assert_eq!(setup.gateway.execution(&cx(), receipt.id).await.unwrap(), record, "the end stays");

    clock.set(clock.now().minus(2 * HOUR));
    let receipt = submit(&setup, "f", "y").await.unwrap();
    let workers = self::workers(&setup);
    assert_eq!(ended(&setup, receipt.id).await.state, InvocationState::Succeeded);
    soon(workers.drain()).await;
    assert_eq!(setup.engine.count(Op::Invoke), 2);
    let depth = setup.gateway.queue_depth(&cx(), None).await.unwrap();
    assert_eq!((depth.open, depth.dead), (0, 1));
}
