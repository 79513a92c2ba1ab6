//! Holds the protocol `lambda` to the promises of a driver, with real workers, and to its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "test code fails by panicking"
)]

mod common;
#[cfg(test)]
#[path = "common/runtime.rs"]
mod runtime;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use common::{Deployed, cx, streaming, text};
use function_gateway_core::{
    Body, Delivery, DeploymentState, DriverRef, Error, ErrorKind, FaasDriver, FunctionFailure, FunctionSpec, Outcome,
    Retry, Scale, SecretBinding,
};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};
use function_gateway_testkit::{Behaviour, DriverHarness, driver_conformance};
use futures_util::{StreamExt as _, stream};
use runtime::function;

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    runtime::main();
}

/// Its workers tell in a folder whether they are executing a call.
struct Harness {
    running: tempfile::TempDir,
}

impl Harness {
    fn new() -> Self {
        Self { running: tempfile::tempdir().expect("a folder") }
    }
}

fn driver() -> Arc<dyn FaasDriver> {
    Arc::new(LocalProcess::new(LocalProcessConfig::default()).expect("a driver"))
}

#[async_trait]
impl DriverHarness for Harness {
    async fn driver(&self) -> Arc<dyn FaasDriver> {
        driver()
    }

    fn function(&self, behaviour: &Behaviour) -> Option<FunctionSpec> {
        let behaviour = match behaviour {
            Behaviour::Echo | Behaviour::EchoTyped | Behaviour::StreamEcho => "echo".to_owned(),
            Behaviour::EchoVariable(name) => format!("variable:{name}"),
            Behaviour::Tell => "tell".to_owned(),
            Behaviour::Fail => "fail".to_owned(),
            Behaviour::Reject => "reject".to_owned(),
            Behaviour::Hang => "hang".to_owned(),
            Behaviour::Large(bytes) => format!("large:{bytes}"),
            Behaviour::Lines(count) => format!("lines:{count}"),
            Behaviour::Stall => "stall".to_owned(),
            Behaviour::BreakOff => "break-off".to_owned(),
            Behaviour::Log(text) => format!("log:{text}"),
            Behaviour::Unready => "never-ask".to_owned(),
            Behaviour::Invalid => return Some(runtime::function("echo").with_annotation("listen", "port")),
            _ => return None,
        };
        Some(runtime::function(behaviour).with_env("RUNNING", self.running.path().to_str()?))
    }

    async fn another_process(&self) -> Option<Arc<dyn FaasDriver>> {
        Some(driver())
    }

    async fn running(&self, _: &DriverRef) -> Option<usize> {
        let workers = fs::read_dir(self.running.path()).ok()?.flatten();
        let alive = workers.filter(|file| Path::new("/proc").join(file.file_name()).exists());
        // A file that is just being written is empty.
        Some(alive.filter_map(|file| fs::read_to_string(file.path()).ok()?.parse::<usize>().ok()).sum())
    }

    fn expected_skips(&self) -> &'static [&'static str] {
        // The protocol knows a payload and no request; the driver hands secrets over when it starts a worker, and what it
        // runs belongs to its process.
        &[
            "method_path_and_query_reach_the_function",
            "secrets_at_each_call_reach_the_function",
            "shutdown_keeps_what_others_share",
        ]
    }
}

driver_conformance!(Harness::new());

fn context(error: &Error, key: &str) -> String {
    let found = error.context().iter().find(|(name, _)| *name == key);
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_worker_is_told_of_itself_as_aws_does() {
    let rows = [
        ("AWS_LAMBDA_FUNCTION_NAME", "fun"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4097"),
        ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/fun"),
        ("AWS_LAMBDA_INITIALIZATION_TYPE", "on-demand"),
        ("FUNCTION_TENANT", "acme"),
    ];
    for (name, expected) in rows {
        let mut spec = function(format!("variable:{name}"));
        spec.limits.memory_bytes = Some((4 << 30) + 1);
        let function = Deployed::new(spec).await;
        assert_eq!(text(function.call("1").await.unwrap()).await, expected, "{name}");
        function.stop().await;
    }
}

#[tokio::test]
async fn a_specification_that_the_protocol_cannot_meet_is_refused() {
    let scaled = |each| {
        let mut spec = function("echo");
        let mut scale = Scale::default();
        scale.instance_concurrency = Some(each);
        spec.scale = Some(scale);
        spec
    };
    let secret = SecretBinding::env("s".parse().unwrap(), "AWS_LAMBDA_FUNCTION_NAME");
    let rows = [
        (scaled(1), [""; 0].as_slice()),
        (scaled(2), &["/scale/instance_concurrency"]),
        (function("echo").with_annotation("idle-timeout-ms", "1000"), &[]),
        (function("echo").with_annotation("http-version", "2"), &["/annotations/http-version"]),
        (function("echo").with_env("AWS_LAMBDA_RUNTIME_API", "elsewhere"), &["/env/AWS_LAMBDA_RUNTIME_API"]),
        (function("echo").with_env("_HANDLER", "app.handle").with_env("AWS_REGION", "here"), &[]),
        (function("echo").with_secret(secret), &["/secrets/0/deliver/env"]),
    ];
    for (spec, expected) in rows {
        let found = driver().check(&cx(), &spec).await.unwrap();
        let pointers: Vec<_> = found.iter().map(|violation| violation.pointer.as_str()).collect();
        assert_eq!(pointers, expected, "{found:?}");
    }
}

#[tokio::test]
async fn what_a_function_says_of_its_failure_is_its_answer() {
    let function = Deployed::new(function("fail")).await;
    let response = function.call("1").await.unwrap();
    assert_eq!(response.headers["content-type"], "application/json");
    let mut expected = FunctionFailure::new("it went wrong");
    expected.kind = Some("Wrong".to_owned());
    assert_eq!(response.outcome, Outcome::Failed(expected));
    let document = r#"{"errorMessage": "it went wrong", "errorType": "Wrong", "stackTrace": ["here"]}"#;
    assert_eq!(text(response).await, document);
    function.stop().await;
}

#[tokio::test]
async fn a_prelude_becomes_status_and_headers() {
    for spec in [function("reject"), streaming(function("reject"))] {
        let function = Deployed::new(spec).await;
        let response = function.call("1").await.unwrap();
        assert_eq!((response.status.as_u16(), &response.outcome), (400, &Outcome::Rejected));
        assert_eq!(
            (&response.headers["x-why"], &response.headers["set-cookie"]),
            (&"no".parse().unwrap(), &"a=b".parse().unwrap())
        );
        assert_eq!(text(response).await, "no");
        function.stop().await;
    }
}

#[tokio::test]
async fn a_failure_in_an_answer_is_told_with_its_words() {
    let whole = Deployed::new(function("break-off")).await;
    let response = whole.call("1").await.unwrap();
    let Outcome::Failed(failure) = &response.outcome else { panic!("{response:?}") };
    assert_eq!((failure.message.as_str(), failure.kind.as_deref()), ("no more", Some("Empty")));
    assert_eq!(text(response).await, "first");

    let streamed = Deployed::on(whole.driver.clone(), streaming(function("break-off"))).await;
    let mut body = streamed.call("1").await.unwrap().body.into_stream();
    assert_eq!(body.next().await.unwrap().unwrap(), "first");
    let error = body.next().await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::FunctionBroken, Delivery::Executed));
    assert!(error.message().ends_with("Empty: no more"), "{error}");
    // It is well, and takes the next call.
    assert_eq!(text(whole.call("1").await.unwrap()).await, "first");
    whole.stop().await;
}

#[tokio::test]
async fn a_worker_that_dies_is_the_function_s_failure_and_is_replaced() {
    let function = Deployed::new(function("crash")).await;
    for _ in 0..2 {
        let error = function.call("1").await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::FunctionBroken, Delivery::Unknown));
        assert_eq!(error.retry(), Retry::Transient);
        assert_eq!(error.message(), "the worker ended with exit status 9");
        assert!(context(&error, "log").contains("crashing"), "{error:?}");
    }
    function.stop().await;
}

#[tokio::test]
async fn an_answer_whose_worker_dies_ends_with_the_function_s_failure() {
    for spec in [function("crash-in-the-middle"), streaming(function("crash-in-the-middle"))] {
        let function = Deployed::new(spec).await;
        let error = match function.call("1").await {
            Ok(response) => response.body.collect(common::ENOUGH).await.unwrap_err(),
            Err(error) => error,
        };
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::FunctionBroken, Delivery::Executed), "{error:?}");
        assert_eq!((error.retry(), error.message()), (Retry::Never, "the worker ended with exit status 9"));
        function.stop().await;
    }
}

#[tokio::test]
async fn why_a_worker_cannot_start_is_told_in_its_words() {
    let rows = [
        ("init-error", "the worker could not start: Runtime.ImportModuleError: no module named handler"),
        ("crash-at-start", "the worker ended with exit status 7 before it was ready"),
    ];
    for (behaviour, expected) in rows {
        let function = Deployed::new(function(behaviour)).await;
        let status = function.status().await;
        assert_ne!(status.state, DeploymentState::Ready, "{behaviour}");
        assert!(status.message.contains(expected), "{behaviour}: {status:?}");
        let error = function.call("1").await.unwrap_err();
        assert_eq!((error.message(), error.delivery()), (expected, Delivery::NotSent));
        function.stop().await;
    }
}

#[tokio::test]
async fn a_worker_whose_call_is_given_up_is_killed_and_replaced() {
    let mut spec = function("hang-on:hang");
    let mut scale = Scale::default();
    scale.max = Some(1);
    spec.scale = Some(scale);
    let function = Deployed::new(spec).await;
    let first = text(function.call("who").await.unwrap()).await;
    let mut hanging = Box::pin(function.call("hang"));
    let look = async || String::from_utf8_lossy(&function.logs.contents()).contains("hanging");
    tokio::select! {
        answer = &mut hanging => panic!("it hangs: {answer:?}"),
        () = async {
            while !look().await {
                // sleep: between two looks; there is nothing to wait for.
                tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            }
        } => {}
    }
    drop(hanging);
    common::ended(first.parse().unwrap()).await;
    let second = text(function.call("who").await.unwrap()).await;
    assert_ne!(first, second);
    assert_eq!(function.status().await.state, DeploymentState::Ready);
    function.stop().await;
}

#[tokio::test]
async fn a_payload_that_breaks_off_ends_the_call_with_its_own_error() {
    let function = Deployed::new(function("echo")).await;
    let broken = Error::new(ErrorKind::PayloadTooLarge, "too much");
    let body = stream::iter([Ok(Bytes::from_static(b"first")), Err(broken)]);
    let error = function.call(Body::from_stream(body)).await.unwrap_err();
    assert_eq!((error.kind(), error.message()), (ErrorKind::PayloadTooLarge, "too much"));
    assert_eq!(text(function.call("whole").await.unwrap()).await, "whole");
    function.stop().await;
}
