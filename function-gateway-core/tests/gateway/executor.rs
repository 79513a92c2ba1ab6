//! The execution of functions.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use function_gateway_core::{
    Body, CallContext, Cancellation, Deadline, Delivery, Error, ErrorKind, FunctionExecutor as _,
    FunctionExecutorExt as _, FunctionManager as _, FunctionSpec, InvocationState, InvokeRequest, InvokeResponse,
    Origin, Outcome, PayloadFormat, Precondition, Rate, RecordFilter, RecordMode, Result, Retry, RetryPolicy, Scope,
    TraceParent,
};
use function_gateway_testkit::{Gate, Handler, Op, ScriptedDriver};
use futures_util::StreamExt as _;
use http::StatusCode;
use serde_json::json;

use crate::common::{Setup, cx, function, gateway, gateway_with, name, over, soon, spec, spec_number, store, text};

async fn with_function(spec: FunctionSpec) -> Setup {
    let setup = gateway().await;
    setup.gateway.create(&cx(), &name("f"), spec).await.unwrap();
    setup
}

async fn invoke(setup: &Setup, body: impl Into<Body>) -> Result<InvokeResponse> {
    setup.gateway.invoke(&cx(), &function("f"), InvokeRequest::new(body)).await
}

fn streaming() -> FunctionSpec {
    let mut spec = spec();
    spec.streaming = true;
    spec
}

fn retried(idempotent: bool) -> FunctionSpec {
    let mut spec = spec();
    let mut policy = RetryPolicy::attempts(3);
    policy.initial_backoff = Duration::from_millis(1);
    spec.retry = Some(policy);
    spec.idempotent = idempotent;
    spec
}

fn unavailable(delivery: Delivery) -> Error {
    Error::new(ErrorKind::Unavailable, "the engine is down").with_delivery(delivery)
}

/// A function that fails some times before it answers.
fn failing_first(times: u32, error: Error) -> (Handler, Arc<AtomicU32>) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let handler = Handler::new(move |_, request| {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        let error = error.clone();
        async move { if call < times { Err(error) } else { Ok(InvokeResponse::new(StatusCode::OK, request.body)) } }
    });
    (handler, calls)
}

#[tokio::test]
async fn what_is_asked_reaches_the_function() {
    let setup = with_function(spec()).await;
    setup.engine.on_invoke(Handler::new(async |cx: CallContext, request| {
        let seen = json!({
            "method": request.method.as_str(),
            "path": request.path,
            "query": request.query,
            "header": request.headers["x-a"].to_str().unwrap(),
            "attempt": cx.attempt(),
            "deadline": cx.deadline().is_some(),
            "trace": cx.trace().unwrap().trace_id(),
        });
        Ok(InvokeResponse::new(StatusCode::OK, seen.to_string()))
    }));
    let trace: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let request = InvokeRequest::new("x")
        .with_method(http::Method::PUT)
        .with_path("/a%2Fb")
        .with_query("q=1&q=2")
        .with_header("x-a".parse().unwrap(), "b".parse().unwrap())
        .with_header("traceparent".parse().unwrap(), trace.to_string().parse().unwrap());
    let seen: serde_json::Value =
        setup.gateway.invoke(&cx(), &function("f"), request).await.unwrap().json(1000).await.unwrap();
    let expected = json!({
        "method": "PUT", "path": "/a%2Fb", "query": "q=1&q=2", "header": "b", "attempt": 1, "deadline": true,
        "trace": "4bf92f3577b34da6a3ce929d0e0e4736",
    });
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn a_functions_own_failure_is_an_answer() {
    let setup = with_function(spec()).await;
    setup.engine.on_invoke(Handler::status(StatusCode::INTERNAL_SERVER_ERROR, "oh"));
    let answer = invoke(&setup, "").await.unwrap();
    assert!(matches!(answer.outcome, Outcome::Failed(_)));
    assert_eq!(text(answer).await, "oh");
    setup.engine.on_invoke(Handler::status(StatusCode::NOT_FOUND, "what?"));
    assert_eq!(invoke(&setup, "").await.unwrap().outcome, Outcome::Rejected);
}

#[tokio::test]
async fn json_in_and_out_is_typed() {
    let setup = with_function(spec()).await;
    let sum: Vec<u32> = setup.gateway.invoke_json(&cx(), &function("f"), &[1, 2, 3]).await.unwrap();
    assert_eq!(sum, [1, 2, 3]);
    let error = setup.gateway.invoke_json::<_, String>(&cx(), &function("f"), &[1]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOutput);
    setup.engine.on_invoke(Handler::failing("no"));
    let error = setup.gateway.invoke_json::<_, String>(&cx(), &function("f"), &[1]).await.unwrap_err();
    assert_eq!(error.message(), "the function failed: no");
    assert!(error.context_value("invocation").is_some());
}

#[tokio::test]
async fn bad_calls_are_refused_before_anything_is_sent() {
    let mut limited = spec();
    limited.limits.max_request_bytes = Some(3);
    let setup = with_function(limited).await;
    let gateway = &setup.gateway;
    let kind = |result: Result<InvokeResponse>| result.map(drop).unwrap_err().kind();

    let error = invoke(&setup, "four").await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("limit_bytes")), (ErrorKind::PayloadTooLarge, Some("3")));
    let stream = Body::from_stream(futures_util::stream::iter([Ok(Bytes::from("fo")), Ok(Bytes::from("ur"))]));
    assert_eq!(kind(invoke(&setup, stream).await), ErrorKind::PayloadTooLarge);

    let past = cx().with_deadline(Deadline::after(Duration::ZERO));
    let error = gateway.invoke(&past, &function("f"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::DeadlineExceeded, Delivery::NotSent));

    assert_eq!(kind(gateway.invoke(&cx(), &function("g"), InvokeRequest::new("")).await), ErrorKind::NotFound);
    assert_eq!(kind(gateway.invoke(&cx(), &function("f:live"), InvokeRequest::new("")).await), ErrorKind::Unsupported);
    assert_eq!(kind(gateway.invoke(&cx(), &function("f@9"), InvokeRequest::new("")).await), ErrorKind::NotFound);
    let bad_path = InvokeRequest::new("").with_path("a");
    assert_eq!(kind(gateway.invoke(&cx(), &function("f"), bad_path).await), ErrorKind::InvalidArgument);
    let unlisted = InvokeRequest::new("").with_secrets(["other".parse().unwrap()]);
    let error = gateway.invoke(&cx(), &function("f"), unlisted).await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("secret")), (ErrorKind::InvalidArgument, Some("other")));
    assert_eq!(setup.engine.count(Op::Invoke), 0);
}

#[tokio::test]
async fn a_result_over_the_limit_is_the_functions_failure() {
    let mut limited = spec();
    limited.limits.max_response_bytes = Some(3);
    let setup = with_function(limited.clone()).await;
    let error = invoke(&setup, "four").await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("limit_bytes")), (ErrorKind::OutputTooLarge, Some("3")));
    limited.streaming = true;
    let setup = with_function(limited).await;
    setup.engine.on_invoke(Handler::stream(["fo", "ur"], &open_gate()));
    let error = invoke(&setup, "").await.unwrap().body.collect(100).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutputTooLarge);
}

fn open_gate() -> Gate {
    let gate = Gate::new();
    gate.open();
    gate
}

#[tokio::test]
async fn one_generation_can_be_called_by_number() {
    let setup = with_function(spec_number(1)).await;
    setup.engine.on_invoke(Handler::new(async |_, request| {
        Ok(InvokeResponse::new(StatusCode::OK, request.revision.generation.to_string()))
    }));
    setup.gateway.update(&cx(), &name("f"), spec_number(2), Precondition::none()).await.unwrap();
    let call = |reference| {
        let gateway = setup.gateway.clone();
        async move { text(gateway.invoke(&cx(), &function(reference), InvokeRequest::new("")).await.unwrap()).await }
    };
    assert_eq!((call("f").await, call("f@2").await), ("2".into(), "2".into()));
    let error = setup.gateway.invoke(&cx(), &function("f@1"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::NotReady, Retry::Never));
}

#[tokio::test(start_paused = true)]
async fn each_timeout_names_itself() {
    for (which, change) in [
        ("total", (|spec| spec.timeouts.total = Some(Duration::from_secs(1))) as fn(&mut FunctionSpec)),
        ("attempt", |spec| spec.timeouts.attempt = Some(Duration::from_secs(1))),
        ("first_byte", |spec| spec.timeouts.first_byte = Some(Duration::from_secs(1))),
    ] {
        let mut slow = spec();
        change(&mut slow);
        let setup = with_function(slow).await;
        setup.engine.on_invoke(Handler::hang());
        let error = invoke(&setup, "").await.unwrap_err();
        assert_eq!((error.kind(), error.context_value("timeout")), (ErrorKind::DeadlineExceeded, Some(which)));
        assert_eq!(error.delivery(), Delivery::Unknown);
        assert_eq!(setup.engine.dropped(), 1, "{which}");
        let record = setup.gateway.executions(&cx(), &RecordFilter::default(), &Default::default()).await.unwrap();
        assert_eq!(record.items[0].state, InvocationState::TimedOut);
    }
}

#[tokio::test(start_paused = true)]
async fn the_callers_deadline_holds_too() {
    let setup = with_function(spec()).await;
    setup.engine.on_invoke(Handler::hang());
    let hurry = cx().with_deadline(Deadline::after(Duration::from_secs(1)));
    let error = setup.gateway.invoke(&hurry, &function("f"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
}

#[tokio::test(start_paused = true)]
async fn a_stalled_stream_is_cut_off_and_recorded_as_timed_out() {
    let mut slow = streaming();
    slow.timeouts.idle = Some(Duration::from_secs(1));
    let setup = with_function(slow).await;
    let gate = Gate::new();
    gate.release(1);
    setup.engine.on_invoke(Handler::stream(["one", "two"], &gate));
    let answer = invoke(&setup, "").await.unwrap();
    let id = answer.invocation_id().unwrap();
    let mut body = answer.body.into_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "one");
    let error = body.next().await.unwrap().unwrap_err();
    assert_eq!(error.context_value("timeout"), Some("idle"));
    assert!(body.next().await.is_none());
    let record = setup.gateway.execution(&cx(), id).await.unwrap();
    assert_eq!((record.state, record.response_bytes), (InvocationState::TimedOut, 3));
}

#[tokio::test]
async fn a_transient_failure_is_tried_again_where_that_is_safe() {
    for (idempotent, delivery, attempts) in [
        (false, Delivery::NotSent, 3),
        (false, Delivery::Unknown, 1),
        (true, Delivery::Unknown, 3),
        (true, Delivery::Executed, 3),
    ] {
        let setup = with_function(retried(idempotent)).await;
        let (handler, calls) = failing_first(9, unavailable(delivery));
        setup.engine.on_invoke(handler);
        let error = invoke(&setup, "x").await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), attempts, "idempotent {idempotent}, {delivery:?}");
        let expected = if attempts > 1 { Retry::Exhausted } else { Retry::Transient };
        assert_eq!(error.retry(), expected);
    }
}

#[tokio::test]
async fn a_retry_that_helps_is_an_answer_of_several_attempts() {
    let setup = with_function(retried(false)).await;
    let (handler, _) = failing_first(2, unavailable(Delivery::NotSent));
    setup.engine.on_invoke(handler);
    let answer = invoke(&setup, "again").await.unwrap();
    let id = answer.invocation_id().unwrap();
    assert_eq!(text(answer).await, "again");
    assert_eq!(setup.gateway.execution(&cx(), id).await.unwrap().attempts, 3);
}

#[tokio::test]
async fn without_a_policy_and_for_permanent_failures_there_is_one_attempt() {
    let setup = with_function(spec()).await;
    let (handler, calls) = failing_first(9, unavailable(Delivery::NotSent));
    setup.engine.on_invoke(handler);
    invoke(&setup, "").await.unwrap_err();
    assert_eq!(calls.load(Ordering::SeqCst), 1);

    let setup = with_function(retried(true)).await;
    let (handler, calls) = failing_first(9, Error::new(ErrorKind::Engine, "garbage"));
    setup.engine.on_invoke(handler);
    invoke(&setup, "").await.unwrap_err();
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_a_turn_comes_when_a_call_ends() {
    let mut limited = spec();
    limited.limits.max_in_flight = Some(1);
    limited.limits.max_queued = Some(1);
    let setup = with_function(limited).await;
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    let (gateway, other) = (setup.gateway.clone(), setup.gateway.clone());
    let running =
        tokio::spawn(async move { gateway.invoke(&cx(), &function("f"), InvokeRequest::new("1")).await.map(drop) });
    soon(gate.reached_by(1)).await;
    let (cx_waiting, reference) = (cx(), function("f"));
    let mut waiting = other.invoke(&cx_waiting, &reference, InvokeRequest::new("2"));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    let refused = invoke(&setup, "3").await.unwrap_err();
    assert_eq!((refused.kind(), refused.delivery()), (ErrorKind::RateLimited, Delivery::NotSent));
    assert!(refused.retry_after().is_some());
    gate.open();
    soon(running).await.unwrap().unwrap();
    let waited = soon(waiting).await.unwrap();
    let timings = waited.call.unwrap().timings();
    assert!(timings.get(function_gateway_core::TimedPhase::Queue).is_some());
    let states: Vec<_> = setup
        .gateway
        .executions(&cx(), &RecordFilter::default(), &Default::default())
        .await
        .unwrap()
        .items
        .iter()
        .filter(|record| record.failure.as_ref().is_some_and(|failure| failure.code == "rate_limited"))
        .map(|record| record.state)
        .collect();
    assert!(states.is_empty(), "a refusal was recorded: {states:?}");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_does_not_come_in_time_times_out_in_the_queue() {
    let mut limited = spec();
    limited.limits.max_in_flight = Some(1);
    limited.timeouts.queue = Some(Duration::from_secs(1));
    let setup = with_function(limited).await;
    setup.engine.on_invoke(Handler::hang());
    let gateway = setup.gateway.clone();
    let running = tokio::spawn(async move { gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await });
    setup.engine.until(|engine| engine.in_flight() == 1).await;
    let error = invoke(&setup, "").await.unwrap_err();
    assert_eq!(error.context_value("timeout"), Some("queue"));
    assert_eq!(error.delivery(), Delivery::NotSent);
    running.abort();
}

#[tokio::test]
async fn a_streams_turn_lasts_as_long_as_its_body() {
    let mut limited = streaming();
    limited.limits.max_in_flight = Some(1);
    limited.limits.max_queued = Some(0);
    let setup = with_function(limited).await;
    setup.engine.on_invoke(Handler::stream(["a"], &open_gate()));
    let first = invoke(&setup, "").await.unwrap();
    assert_eq!(invoke(&setup, "").await.unwrap_err().kind(), ErrorKind::RateLimited);
    first.body.collect(10).await.unwrap();
    let second = invoke(&setup, "").await.unwrap();
    drop(second);
    invoke(&setup, "").await.unwrap();
}

#[tokio::test]
async fn a_rate_is_kept() {
    let mut limited = spec();
    limited.limits.rate = Some(Rate { calls: 2, per: Duration::from_secs(3600), burst: None });
    let setup = with_function(limited).await;
    invoke(&setup, "").await.unwrap();
    invoke(&setup, "").await.unwrap();
    let error = invoke(&setup, "").await.unwrap_err();
    assert_eq!((error.kind(), error.context_value("limit")), (ErrorKind::RateLimited, Some("rate")));
}

#[tokio::test]
async fn a_stream_passes_chunk_by_chunk_both_ways() {
    let setup = with_function(streaming()).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes>>(1);
    let mut receiver = receiver;
    let body = Body::from_stream(futures_util::stream::poll_fn(move |cx| receiver.poll_recv(cx)));
    let answer = invoke(&setup, body).await.unwrap();
    let id = answer.invocation_id().unwrap();
    let mut echoed = answer.body.into_stream();
    for chunk in ["one", "two"] {
        sender.send(Ok(Bytes::from(chunk))).await.unwrap();
        assert_eq!(soon(echoed.next()).await.unwrap().unwrap(), chunk);
    }
    drop(sender);
    assert!(soon(echoed.next()).await.is_none());
    let record = setup.gateway.execution(&cx(), id).await.unwrap();
    assert_eq!((record.state, record.request_bytes, record.response_bytes), (InvocationState::Succeeded, Some(6), 6));
}

#[tokio::test]
async fn a_function_that_breaks_off_ends_the_body_with_its_failure() {
    let setup = with_function(streaming()).await;
    setup.engine.on_invoke(Handler::break_off(["half"], &open_gate()));
    let answer = invoke(&setup, "").await.unwrap();
    let id = answer.invocation_id().unwrap();
    let error = answer.body.collect(100).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FunctionBroken);
    let record = setup.gateway.execution(&cx(), id).await.unwrap();
    assert_eq!(record.state, InvocationState::Failed);
    assert_eq!(record.failure.as_ref().unwrap().class, function_gateway_core::ErrorClass::Function);
}

#[tokio::test]
async fn a_call_is_given_up_by_drop_by_signal_and_by_dropping_its_body() {
    let setup = with_function(spec()).await;
    setup.engine.on_invoke(Handler::hang());
    let gateway = setup.gateway.clone();
    let task = tokio::spawn(async move { gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await });
    soon(setup.engine.until(|engine| engine.in_flight() == 1)).await;
    task.abort();
    soon(setup.engine.until(|engine| engine.dropped() == 1)).await;

    let cancellation = Cancellation::new();
    let signalled = cx().with_cancellation(cancellation.clone());
    let gateway = setup.gateway.clone();
    let task = tokio::spawn(async move { gateway.invoke(&signalled, &function("f"), InvokeRequest::new("")).await });
    soon(setup.engine.until(|engine| engine.in_flight() == 1)).await;
    cancellation.cancel();
    let error = soon(task).await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::Cancelled, Delivery::Unknown));

    let setup_streaming = with_function(streaming()).await;
    setup_streaming.engine.on_invoke(Handler::stream(["a", "b"], &Gate::new()));
    drop(invoke(&setup_streaming, "").await.unwrap());
    for setup in [&setup, &setup_streaming] {
        setup.gateway.shutdown(Duration::from_secs(10)).await.unwrap();
        let page = setup.gateway.executions(&cx(), &RecordFilter::default(), &Default::default()).await.unwrap();
        assert!(!page.items.is_empty());
        assert!(page.items.iter().all(|record| record.state == InvocationState::Cancelled), "{:?}", page.items);
        assert!(page.items.iter().all(|record| record.finished_at.is_some()));
    }
}

#[tokio::test]
async fn a_lost_deployment_is_made_again_in_this_process_by_one_of_many_callers() {
    let engine = function_gateway_testkit::Engine::new();
    let per_process = ScriptedDriver::on(&engine).with_capabilities(|caps| caps.scope = Scope::PerProcess);
    let builder = function_gateway_core::Gateway::builder().store(store()).without_reconciler();
    let gateway = builder.driver("scripted".parse().unwrap(), Arc::new(per_process)).build().await.unwrap();
    gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    engine.lose_all();
    let tasks: Vec<_> = (0..32)
        .map(|number| {
            let gateway = gateway.clone();
            let body = Body::from_stream(futures_util::stream::iter([Ok(Bytes::from(number.to_string()))]));
            tokio::spawn(async move {
                let answer = gateway.invoke(&cx(), &function("f"), InvokeRequest::new(body)).await?;
                Ok::<_, Error>((number, text(answer).await))
            })
        })
        .collect();
    for task in tasks {
        let (number, answer) = soon(task).await.unwrap().unwrap();
        assert_eq!(answer, number.to_string());
    }
    assert_eq!(engine.count(Op::Deploy), 2);
    let page = gateway.executions(&cx(), &RecordFilter::default(), &Default::default()).await.unwrap();
    assert_eq!(page.items.len(), 32, "each call has one record");
}

#[tokio::test]
async fn a_call_on_a_stale_route_goes_to_the_revision_that_serves_by_now() {
    let (engine, store) = (function_gateway_testkit::Engine::new(), store());
    let one = over(&store, &engine).build().await.unwrap();
    let two = over(&store, &engine).build().await.unwrap();
    let created = one.create(&cx(), &name("f"), spec_number(1)).await.unwrap();
    let old = created.status.deployment(created.generation).unwrap().target.clone();
    one.invoke(&cx(), &function("f"), InvokeRequest::new("")).await.unwrap();
    two.update(&cx(), &name("f"), spec_number(2), Precondition::none()).await.unwrap();
    engine.lose(&old);
    let answer = one.invoke(&cx(), &function("f"), InvokeRequest::new("moved")).await.unwrap();
    let id = answer.invocation_id().unwrap();
    assert_eq!(text(answer).await, "moved");
    let record = one.execution(&cx(), id).await.unwrap();
    assert_eq!((record.generation.get(), record.attempts), (2, 2));
}

#[tokio::test]
async fn a_call_that_was_let_in_for_one_function_does_not_reach_another_of_its_name() {
    let setup = with_function(spec()).await;
    let mut durable = spec();
    durable.record.mode = Some(RecordMode::Durable);
    setup.gateway.update(&cx(), &name("f"), durable.clone(), Precondition::none()).await.unwrap();
    invoke(&setup, "").await.unwrap();
    let old = setup.gateway.get(&cx(), &name("f")).await.unwrap().id;
    // Another process, so that this one goes on by its cached route.
    let other = over(&setup.store, &setup.engine).build().await.unwrap();
    other.delete(&cx(), &name("f"), Precondition::none()).await.unwrap();
    other.create(&cx(), &name("f"), durable).await.unwrap();

    let id = function_gateway_core::InvocationId::generate();
    let mine = cx().with_invocation_id(id);
    let error = setup.gateway.invoke(&mine, &function("f"), InvokeRequest::new("")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.delivery(), error.retry()),
        (ErrorKind::NotDeployed, Delivery::NotSent, Retry::Transient)
    );
    let record = setup.gateway.execution(&cx(), id).await.unwrap();
    assert_eq!((record.function, record.state), (old, InvocationState::Failed));
    assert_eq!(text(invoke(&setup, "again").await.unwrap()).await, "again");
}

#[tokio::test]
async fn an_envelope_goes_in_and_out() {
    let mut enveloped = spec();
    enveloped.format = PayloadFormat::Envelope;
    let setup = with_function(enveloped).await;
    setup.engine.on_invoke(Handler::new(async |_, request| {
        let envelope: serde_json::Value = serde_json::from_slice(&request.body.collect(10_000).await?).unwrap();
        assert_eq!(envelope["context"]["function"], "f");
        let answer = json!({"payload": envelope["payload"], "context": {"logs": {"stdout": ["seen"], "stderr": []}}});
        Ok(InvokeResponse::new(StatusCode::OK, answer.to_string()))
    }));
    let answer = invoke(&setup, r#"{"a":1}"#).await.unwrap();
    let id = answer.invocation_id().unwrap();
    assert_eq!(text(answer).await, r#"{"a":1}"#);
    let record = setup.gateway.execution(&cx(), id).await.unwrap();
    assert_eq!(record.logs.as_ref().unwrap().bytes, "seen\n");
    let error = invoke(&setup, "no json").await.unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::InvalidInput, Delivery::NotSent));
}

#[tokio::test]
async fn a_shut_down_gateway_drains_and_takes_no_calls() {
    let setup = with_function(spec()).await;
    let gate = Gate::new();
    setup.engine.on_invoke(Handler::echo().gated(&gate));
    let gateway = setup.gateway.clone();
    let running = tokio::spawn(async move {
        text(gateway.invoke(&cx(), &function("f"), InvokeRequest::new("done")).await.unwrap()).await
    });
    soon(gate.reached_by(1)).await;
    let gateway = setup.gateway.clone();
    let stopping = tokio::spawn(async move { gateway.shutdown(Duration::from_secs(60)).await });
    let error = soon(async {
        loop {
            // Intake stops before the drain ends.
            match setup.gateway.get(&cx(), &name("f")).await.map(drop) {
                Ok(()) => match setup.gateway.delete(&cx(), &name("absent"), Precondition::none()).await {
                    Err(error) if error.kind() == ErrorKind::ShuttingDown => return error,
                    _ => tokio::task::yield_now().await,
                },
                Err(error) => return error,
            }
        }
    })
    .await;
    assert_eq!(error.kind(), ErrorKind::ShuttingDown);
    gate.open();
    assert_eq!(soon(running).await.unwrap(), "done");
    soon(stopping).await.unwrap().unwrap();
    assert_eq!(invoke(&setup, "").await.unwrap_err().kind(), ErrorKind::ShuttingDown);
    setup.gateway.shutdown(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn what_does_not_end_in_time_is_given_up_at_shutdown() {
    let setup = with_function(spec()).await;
    setup.engine.on_invoke(Handler::hang());
    let gateway = setup.gateway.clone();
    let running = tokio::spawn(async move { gateway.invoke(&cx(), &function("f"), InvokeRequest::new("")).await });
    soon(setup.engine.until(|engine| engine.in_flight() == 1)).await;
    soon(setup.gateway.shutdown(Duration::ZERO)).await.unwrap();
    assert_eq!(soon(running).await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    let page = setup.gateway.executions(&cx(), &RecordFilter::default(), &Default::default()).await.unwrap();
    assert_eq!(page.items[0].state, InvocationState::Cancelled);
}

#[tokio::test]
async fn a_second_middleware_at_a_stage_that_holds_one_is_refused() {
    #[derive(Debug)]
    struct SecondRecord;
    #[async_trait::async_trait]
    impl function_gateway_core::Middleware for SecondRecord {
        fn name(&self) -> &str {
            "second"
        }
        fn stage(&self) -> function_gateway_core::Stage {
            function_gateway_core::Stage::Record
        }
        async fn handle(
            &self,
            call: Box<function_gateway_core::Invocation>,
            next: function_gateway_core::Next<'_>,
        ) -> Result<Box<InvokeResponse>> {
            next.run(call).await
        }
    }
    let builder = over(&store(), &function_gateway_testkit::Engine::new()).middleware(Arc::new(SecondRecord));
    let error = builder.build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.message().contains("Record"), "{error}");
}

#[tokio::test]
async fn the_origin_and_the_callers_own_id_are_recorded() {
    let setup = with_function(spec()).await;
    let id = function_gateway_core::InvocationId::generate();
    let mine = cx().with_invocation_id(id).with_origin(Origin::Event);
    let answer = setup.gateway.invoke(&mine, &function("f"), InvokeRequest::new("")).await.unwrap();
    assert_eq!(answer.invocation_id(), Some(id));
    assert_eq!(setup.gateway.execution(&cx(), id).await.unwrap().origin, Origin::Event);
}

#[tokio::test]
async fn ids_are_not_repeated() {
    let setup = gateway_with(|builder| builder).await;
    setup.gateway.create(&cx(), &name("f"), spec()).await.unwrap();
    let cx = cx();
    let mut ids = BTreeSet::new();
    for _ in 0..100 {
        let answer = setup.gateway.invoke(&cx, &function("f"), InvokeRequest::new("")).await.unwrap();
        ids.insert(answer.invocation_id().unwrap());
    }
    assert_eq!(ids.len(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_streamed_answer_that_nobody_reads_ends_at_its_deadline() {
    let mut bounded = streaming();
    bounded.timeouts.total = Some(Duration::from_secs(1));
    bounded.limits.max_in_flight = Some(1);
    bounded.limits.max_queued = Some(0);
    let setup = with_function(bounded).await;
    setup.engine.on_invoke(Handler::stream(["a", "b"], &Gate::new()));
    let answer = invoke(&setup, "").await.unwrap();
    let id = answer.invocation_id().unwrap();
    setup.engine.until(|engine| engine.in_flight() == 0).await;
    invoke(&setup, "").await.unwrap();
    let error = answer.body.collect(10).await.unwrap_err();
    assert_eq!(error.context_value("timeout"), Some("total"));
    assert_eq!(setup.gateway.execution(&cx(), id).await.unwrap().state, InvocationState::TimedOut);
}

#[tokio::test]
async fn a_streamed_answer_ends_by_the_callers_signal_and_by_shutdown() {
    let setup = with_function(streaming()).await;
    setup.engine.on_invoke(Handler::stream(["a", "b"], &Gate::new()));
    let cancellation = Cancellation::new();
    let signalled = cx().with_cancellation(cancellation.clone());
    let answer = setup.gateway.invoke(&signalled, &function("f"), InvokeRequest::new("")).await.unwrap();
    cancellation.cancel();
    assert_eq!(soon(answer.body.collect(10)).await.unwrap_err().kind(), ErrorKind::Cancelled);

    let answer = invoke(&setup, "").await.unwrap();
    soon(setup.gateway.shutdown(Duration::ZERO)).await.unwrap();
    assert_eq!(soon(answer.body.collect(10)).await.unwrap_err().kind(), ErrorKind::Cancelled);
    let page = setup.gateway.executions(&cx(), &RecordFilter::default(), &Default::default()).await.unwrap();
    let reasons: Vec<_> = page.items.iter().map(|record| record.failure.as_ref().unwrap().message.as_str()).collect();
    assert!(reasons[0].contains("stopped") && reasons[1].contains("gave the call up"), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_never_starts_is_bounded_by_how_long_it_may_be_silent() {
    let mut silent = streaming();
    silent.timeouts.idle = Some(Duration::from_secs(1));
    let setup = with_function(silent).await;
    setup.engine.on_invoke(Handler::hang());
    let error = invoke(&setup, "").await.unwrap_err();
    assert_eq!(error.context_value("timeout"), Some("first_byte"));
}

#[tokio::test]
async fn an_attempt_that_may_have_been_delivered_is_not_undone_by_a_later_failure() {
    let setup = with_function(retried(true)).await;
    let calls = Arc::new(AtomicU32::new(0));
    setup.engine.on_invoke(Handler::new(move |_, _| {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        async move { Err(unavailable(if first { Delivery::Unknown } else { Delivery::NotSent })) }
    }));
    assert_eq!(invoke(&setup, "").await.unwrap_err().delivery(), Delivery::Unknown);
}
