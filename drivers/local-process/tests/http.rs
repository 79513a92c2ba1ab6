//! The protocol `http`: how workers are told where to listen, kept, replaced and ended; and what goes wrong.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

mod common;
#[cfg(test)]
#[path = "common/worker.rs"]
mod worker_program;

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Deployed, cx, ended, streaming, text};
use function_gateway_core::{
    Body, CallContext, Deadline, Delivery, DeploymentState, Error, ErrorClass, ErrorKind, FaasDriver as _,
    FunctionSpec, InvokeResponse, LogQuery, Result, Retry, Scale,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use worker_program::worker as function;

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

fn scaled(mut spec: FunctionSpec, min: u32, max: u32, each: u32) -> FunctionSpec {
    let mut scale = Scale::default();
    (scale.min, scale.max, scale.instance_concurrency) = (Some(min), Some(max), Some(each));
    spec.scale = Some(scale);
    spec
}

/// A driver that gives up on workers soon.
fn hasty() -> Arc<LocalProcess> {
    let config = LocalProcessConfig::new()
        .with_start_timeout(Duration::from_millis(500))
        .with_stop_grace(Duration::from_millis(100));
    Arc::new(LocalProcess::new(config).unwrap())
}

async fn call_path(function: &Deployed, path: &'static str) -> Result<InvokeResponse> {
    let mut request = function.request(Body::empty());
    request.path = path.into();
    function.send(request).await
}

/// Looks again and again until it is so.
async fn until(what: &str, is_so: impl AsyncFnMut() -> bool) {
    within(Duration::from_secs(60), what, is_so).await;
}

async fn within(patience: Duration, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let looking = async {
        while !is_so().await {
            // sleep: between two looks; there is nothing to wait for.
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(patience, looking).await.unwrap_or_else(|_| panic!("never: {what}"));
}

async fn log(function: &Deployed) -> Vec<(String, String)> {
    let cx = cx();
    let lines = function.driver.logs(&cx, &function.target, LogQuery::default()).await.unwrap();
    let line = |line: Result<function_gateway_core::LogLine>| {
        let line = line.unwrap();
        (line.instance.unwrap(), String::from_utf8(line.text.to_vec()).unwrap())
    };
    lines.map(line).collect().await
}

/// Every worker that there has been. The test program says something when it starts.
async fn workers(function: &Deployed) -> BTreeSet<String> {
    log(function).await.into_iter().map(|(instance, _)| instance).collect()
}

#[tokio::test]
async fn a_worker_is_told_where_to_listen_in_the_way_that_it_understands() {
    let rows: [(&str, &[(&str, &str)]); 5] = [
        ("PORT", &[]),
        ("FUNC_PORT", &[("listen-variable", "FUNC_PORT")]),
        ("an address", &[("listen", "address")]),
        ("a Unix socket", &[("listen", "socket")]),
        ("a port, spelled out", &[("listen", "port"), ("listen-variable", "PORT")]),
    ];
    for (case, annotations) in rows {
        let spec = annotations.iter().fold(function("echo"), |spec, (name, value)| spec.with_annotation(*name, *value));
        let function = Deployed::new(spec).await;
        assert_eq!(function.status().await.state, DeploymentState::Ready, "{case}");
        assert_eq!(text(function.call(case).await.unwrap()).await, case);
        function.stop().await;
    }
}

#[tokio::test]
async fn http_2_takes_many_calls_by_one_connection() {
    for listen in ["port", "socket"] {
        let spec = function("echo").with_env("HTTP2", "1").with_annotation("http-version", "2");
        let function = Deployed::new(spec.with_annotation("listen", listen)).await;
        let payloads: Vec<_> = (0..32).map(|number| format!("payload {number}")).collect();
        let calls = payloads.iter().map(|payload| async { text(function.call(payload.clone()).await.unwrap()).await });
        assert_eq!(join_all(calls).await, payloads);
        let told =
            Deployed::new(crate::function("tell").with_env("HTTP2", "1").with_annotation("http-version", "2")).await;
        let mut request = told.request(Body::empty());
        (request.path, request.query) = ("/a%2Fb".into(), Some("c=%20".to_owned()));
        let answer = text(told.send(request).await.unwrap()).await;
        assert!(answer.contains(r#""path":"/a%2Fb","query":"c=%20""#), "{answer}");
    }
}

#[tokio::test]
async fn a_burst_starts_no_more_workers_than_it_needs() {
    let function = Deployed::prepare(common::driver(), scaled(function("echo"), 0, 10, 100));
    let (deployed, again) = tokio::join!(function.deploy(), function.deploy());
    assert_eq!((deployed.unwrap().state, again.unwrap().state), (DeploymentState::Ready, DeploymentState::Ready));
    join_all((0..100).map(|_| async { assert_eq!(text(function.call("x").await.unwrap()).await, "x") })).await;
    assert_eq!(workers(&function).await.len(), 1);
}

#[tokio::test]
async fn workers_are_started_as_load_asks_and_no_more_than_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let spec = function("echo").with_env("RUNNING", folder.path().to_str().unwrap());
    let function = Deployed::new(scaled(spec, 0, 3, 1)).await;
    let cx = cx();
    let hanging = || {
        let mut request = function.request(Body::empty());
        request.path = "/hang".into();
        function.driver.invoke(&cx, &function.target, request)
    };
    let mut calls: Vec<_> = (0..3).map(|_| Box::pin(hanging())).collect();
    until("three workers are busy", async || {
        for call in &mut calls {
            assert!(futures_util::poll!(call).is_pending());
        }
        fs::read_dir(folder.path()).unwrap().count() == 3
    })
    .await;
    let mut waiting = Box::pin(function.call("at last"));
    assert!(futures_util::poll!(&mut waiting).is_pending());
    // The worker of a call that is given up may be busy with it still, and makes room for another.
    drop(calls.pop());
    assert_eq!(text(waiting.await.unwrap()).await, "at last");
    assert_eq!(workers(&function).await.len(), 4);
    drop(calls);
    function.stop().await;
}

#[tokio::test]
async fn a_worker_without_calls_ends_and_the_next_call_starts_another() {
    let function = Deployed::new(function("graceful").with_annotation("idle-timeout-ms", "1")).await;
    for round in 1..=3 {
        until("it is idle", async || function.status().await.idle).await;
        assert_eq!(function.status().await.state, DeploymentState::Ready);
        assert_eq!(text(function.call("x").await.unwrap()).await, "x");
        assert_eq!(workers(&function).await.len(), round + 1);
    }
}

#[tokio::test]
async fn the_lowest_number_of_workers_is_kept() {
    let function = Deployed::new(scaled(function("echo"), 2, 5, 10).with_annotation("idle-timeout-ms", "1")).await;
    until("two workers run", async || workers(&function).await.len() == 2).await;
    let error = call_path(&function, "/crash").await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Function);
    until("the one that crashed is replaced", async || workers(&function).await.len() == 3).await;
    assert!(!function.status().await.idle);
}

fn assert_fault(error: &Error, delivery: Delivery, says: &[&str]) {
    assert_eq!((error.kind(), error.class()), (ErrorKind::FunctionBroken, ErrorClass::Function), "{error:?}");
    assert_eq!(error.delivery(), delivery, "{error:?}");
    for part in says {
        assert!(error.to_string().contains(part), "{error} does not say {part:?}");
    }
}

#[tokio::test]
async fn a_worker_that_dies_is_the_function_s_failure_and_is_replaced() {
    let function = Deployed::new(function("echo")).await;
    for _ in 0..3 {
        let error = call_path(&function, "/crash").await.unwrap_err();
        assert_fault(&error, Delivery::Unknown, &["exit status 9", "crashing"]);
        assert_eq!(error.retry(), Retry::Transient);
        assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    }
    let error = call_path(&function, "/crash-in-the-middle").await.unwrap_err();
    assert_fault(&error, Delivery::Executed, &["exit status 9"]);
    assert_eq!(text(function.call("x").await.unwrap()).await, "x");
}

#[tokio::test]
async fn a_stream_whose_worker_dies_ends_with_the_function_s_failure() {
    let function = Deployed::new(streaming(function("echo"))).await;
    let answer = call_path(&function, "/crash-in-the-middle").await.unwrap();
    let mut body = answer.body.into_stream();
    assert_eq!(&body.next().await.unwrap().unwrap()[..], b"first");
    let error = body.next().await.unwrap().unwrap_err();
    assert_fault(&error, Delivery::Executed, &["exit status 9"]);
    assert_eq!(error.retry(), Retry::Never);
    assert!(body.next().await.is_none());
}

#[tokio::test]
async fn what_a_worker_does_wrong_in_a_call_is_named() {
    let rows: [(&str, Delivery, &[&str]); 3] = [
        ("garbage", Delivery::Executed, &["no HTTP"]),
        ("close-early", Delivery::Unknown, &["closed the connection before it answered"]),
        ("break-off", Delivery::Executed, &["broke off its answer"]),
    ];
    for (behaviour, delivery, says) in rows {
        let function = Deployed::new(function(behaviour)).await;
        assert_fault(&function.call("x").await.unwrap_err(), delivery, says);
    }
}

#[tokio::test]
async fn what_keeps_a_worker_from_getting_ready_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let rows: [(&str, &[&str]); 5] = [
        ("never-listen", &["500ms to listen on port", "PORT", "thinking"]),
        ("elsewhere", &["500ms to listen on port", "it listens on 127.0.0.1:"]),
        ("exit", &["exit status 0 before it was ready", "goodbye"]),
        ("crash-at-start", &["exit status 7 before it was ready", "cannot find the config"]),
        ("steal", &["another process listens on port"]),
    ];
    for (behaviour, says) in rows {
        let spec = function(behaviour).with_env("PIDS", pids.to_str().unwrap());
        let function = Deployed::on(hasty(), spec).await;
        let error = function.call("x").await.unwrap_err();
        assert_eq!((error.delivery(), error.retry()), (Delivery::NotSent, Retry::Transient), "{behaviour}: {error:?}");
        for part in says {
            assert!(error.to_string().contains(part), "{behaviour}: {error} does not say {part:?}");
        }
        let status = function.status().await;
        assert!(status.message.contains(says[0]), "{behaviour}: {status:?}");
        function.stop().await;
    }
    // What stood in for another process of the machine.
    for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
        rustix::process::kill_process(pid_of(pid), rustix::process::Signal::KILL).unwrap();
    }
}

fn pid_of(text: &str) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(text.parse().unwrap()).unwrap()
}

#[tokio::test]
async fn a_crash_loop_fails_with_the_last_words_as_the_reason() {
    let function = Deployed::on(hasty(), function("crash-at-start")).await;
    until("it is given up", async || function.status().await.state == DeploymentState::Failed).await;
    let status = function.status().await;
    assert!(
        status.message.contains("exit status 7") && status.message.contains("cannot find the config"),
        "{status:?}"
    );
    // Nobody waits for a start that will fail.
    let error = function.call("x").await.unwrap_err();
    assert_eq!(error.delivery(), Delivery::NotSent);
    assert!(error.retry_after().is_some(), "{error:?}");
}

#[tokio::test]
async fn a_worker_that_hangs_is_given_up_at_the_deadline_and_replaced() {
    let function = Deployed::new(scaled(function("echo"), 0, 1, 1)).await;
    let cx: CallContext = cx().with_deadline(Deadline::after(Duration::from_millis(100)));
    let mut request = function.request(Body::empty());
    request.path = "/hang".into();
    let deadline = cx.deadline().unwrap().instant();
    let call = function.driver.invoke(&cx, &function.target, request);
    assert!(tokio::time::timeout_at(deadline.into(), call).await.is_err());
    assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    assert_eq!(workers(&function).await.len(), 2);
}

#[tokio::test]
async fn what_a_worker_started_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let pids = folder.path().join("pids");
    let function = Deployed::new(function("fork").with_env("PIDS", pids.to_str().unwrap())).await;
    assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    assert!(call_path(&function, "/crash").await.is_err());
    for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
        ended(pid.parse().unwrap()).await;
    }
    function.stop().await;
}

#[tokio::test]
async fn a_worker_that_ignores_the_signal_to_end_is_killed() {
    let function = Deployed::on(hasty(), function("stubborn")).await;
    assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    let pid: i32 = workers(&function).await.pop_last().unwrap().parse().unwrap();
    function.remove().await;
    ended(pid).await;
}

#[tokio::test]
async fn a_worker_is_asked_to_end_before_it_is_killed() {
    let function = Deployed::new(function("graceful")).await;
    let (cx, mut query) = (cx(), LogQuery::default());
    query.follow = true;
    let lines = function.driver.logs(&cx, &function.target, query).await.unwrap();
    let (lines, ()) = tokio::join!(lines.collect::<Vec<_>>(), function.remove());
    let said: Vec<_> = lines.into_iter().map(|line| line.unwrap().text).collect();
    assert!(said.iter().any(|line| line == "asked to end"), "{said:?}");
}

#[tokio::test]
async fn a_shutdown_lets_calls_end_and_takes_no_more() {
    let function = Deployed::new(streaming(function("echo"))).await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<bytes::Bytes>>(1);
    let payload = Body::from_stream(futures_util::stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    }));
    sender.send(Ok("one".into())).await.unwrap();
    let mut body = function.call(payload).await.unwrap().body.into_stream();
    assert_eq!(&body.next().await.unwrap().unwrap()[..], b"one");
    let driver = Arc::clone(&function.driver);
    let stopping = tokio::spawn(async move { driver.shutdown(Instant::now() + Duration::from_secs(60)).await });
    until("no call is taken", async || {
        let refused = function.call("x").await;
        refused.is_err_and(|error| error.kind() == ErrorKind::ShuttingDown)
    })
    .await;
    sender.send(Ok("two".into())).await.unwrap();
    drop(sender);
    assert_eq!(&body.next().await.unwrap().unwrap()[..], b"two");
    assert!(body.next().await.is_none());
    drop(body);
    stopping.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_log_of_a_lone_call_is_its_own_and_all_is_the_function_s() {
    let function = Deployed::new(function("log:hello")).await;
    function.call("x").await.unwrap();
    assert_eq!(function.logs.contents(), b"hello\n");
    assert!(log(&function).await.iter().any(|(_, line)| line.ends_with("hello")));
}

#[tokio::test]
async fn a_flood_of_log_neither_stops_a_worker_nor_fills_the_memory() {
    let config = LocalProcessConfig::new().with_log_bytes(10_000);
    let function = Deployed::on(Arc::new(LocalProcess::new(config).unwrap()), function("flood-start")).await;
    assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    let lines = log(&function).await;
    assert!(!lines.is_empty() && lines.len() < 200, "{} lines", lines.len());
}

#[tokio::test]
async fn a_readiness_path_is_waited_for() {
    let mut spec = function("echo");
    spec.readiness_path = Some("/ready".to_owned());
    let function = Deployed::new(spec.clone()).await;
    assert_eq!(function.status().await.state, DeploymentState::Ready);
    let mut refusing = crate::function("fail");
    refusing.readiness_path = Some("/never".to_owned());
    let function = Deployed::on(hasty(), refusing).await;
    let error = function.call("x").await.unwrap_err();
    assert!(error.to_string().contains("to answer /never with 2xx, it answers 500"), "{error}");
}

#[tokio::test]
async fn a_specification_that_no_worker_can_meet_is_refused() {
    let rows = [
        (function("x").with_annotation("listen", "udp"), "/annotations/listen"),
        (function("x").with_annotation("listen-variable", "FUNCTION_PORT"), "/annotations/listen-variable"),
        (function("x").with_annotation("http-version", "3"), "/annotations/http-version"),
        (function("x").with_annotation("idle-timeout-ms", "0"), "/annotations/idle-timeout-ms"),
        (function("x").with_annotation("content-type", "text/plain"), "/annotations/content-type"),
        (function("x").with_env("PORT", "80"), "/env/PORT"),
    ];
    let driver = common::driver();
    for (spec, pointer) in rows {
        let found = driver.check(&cx(), &spec).await.unwrap();
        let pointers: Vec<_> = found.iter().map(|violation| violation.pointer.as_str()).collect();
        assert_eq!(pointers, [pointer], "{found:?}");
    }
}

/// Has at least so many workers crash, with callers that go on whatever they get.
async fn crashes(count: usize, seed: u64) {
    const CALLERS: u64 = 32;
    println!("seed {seed}");
    // All that the workers say is kept, so that they can be counted.
    let config = LocalProcessConfig::new().with_log_bytes(64 << 20);
    let driver = Arc::new(LocalProcess::new(config).unwrap());
    let function = Deployed::on(driver, scaled(function("echo"), 1, 4, 10)).await;
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (function, over) = (function.clone(), Arc::clone(&over));
            let random = fastrand::Rng::with_seed(seed.wrapping_add(caller));
            tokio::spawn(async move { call_until(&function, random, &over).await })
        })
        .collect();
    let patience = Duration::from_secs(60) + Duration::from_millis(200) * u32::try_from(count).unwrap();
    within(patience, "enough have crashed", async || workers(&function).await.len() > count).await;
    over.store(true, Ordering::SeqCst);
    let mut answered = 0;
    for caller in callers {
        answered += caller.await.unwrap();
    }
    println!("{answered} calls were answered");
    assert!(answered > 0);
    let pids = workers(&function).await;
    function.remove().await;
    function.stop().await;
    for pid in pids {
        assert!(!common::is_known(pid.parse().unwrap()), "worker {pid} is left");
    }
}

/// Every call gets an answer or the error of a worker that died, in time.
async fn call_until(function: &Deployed, mut random: fastrand::Rng, over: &AtomicBool) -> usize {
    let mut answered = 0;
    while !over.load(Ordering::SeqCst) {
        let path = ["", "", "/crash", "/crash-in-the-middle"][random.usize(..4)];
        let cx = cx().with_deadline(Deadline::after(Duration::from_secs(20)));
        let mut request = function.request("payload");
        request.path = path.into();
        let deadline = cx.deadline().unwrap().instant();
        let call = function.driver.invoke(&cx, &function.target, request);
        match tokio::time::timeout_at(deadline.into(), call).await.expect("nobody waits past the deadline") {
            Ok(response) => {
                assert_eq!(text(response).await, "payload");
                answered += 1;
            }
            Err(error) => assert_eq!(error.class(), ErrorClass::Function, "{error:?}"),
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_caller_gets_an_answer_while_workers_crash() {
    crashes(64, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes long: cargo xtask soak"]
async fn soak_crashes_of_workers() {
    let number = |name: &str, usual| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual);
    crashes(100 * number("FUNCTION_GATEWAY_SOAK", 10) as usize, number("FUNCTION_GATEWAY_SEED", 1)).await;
}
