//! Alone in its process, since it takes all file descriptors of the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod common;
#[cfg(test)]
#[path = "common/worker.rs"]
mod worker_program;

use std::fs::File;

use common::{Deployed, sh, text};
use function_gateway_core::{Delivery, ErrorKind, Retry, Scale};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

/// Every descriptor that is left, up to a limit that is lowered to what is in use and a bit.
fn take_all_files() -> Vec<File> {
    let before = getrlimit(Resource::Nofile);
    let limit = Rlimit { current: Some(256), maximum: before.maximum };
    setrlimit(Resource::Nofile, limit).unwrap();
    std::iter::from_fn(|| File::open("/dev/null").ok()).collect()
}

#[tokio::test]
async fn without_a_file_descriptor_left_calls_are_not_sent_and_later_they_are() {
    let exec = Deployed::new(sh("exec cat").with_env("PATH", "/usr/bin:/bin")).await;
    assert_eq!(text(exec.call("x").await.unwrap()).await, "x");
    let mut spec = worker_program::worker("echo").with_annotation("idle-timeout-ms", "3600000");
    let mut scale = Scale::default();
    scale.instance_concurrency = Some(100);
    spec.scale = Some(scale);
    let workers = Deployed::on(exec.driver.clone(), spec).await;
    assert_eq!(text(workers.call("x").await.unwrap()).await, "x");
    // The connection that is kept from that call is used by one that hangs.
    let mut hanging = workers.request("");
    hanging.path = "/hang".into();
    let cx = common::cx();
    let mut hanging =
        Box::pin(function_gateway_core::FaasDriver::invoke(&*workers.driver, &cx, &workers.target, hanging));
    assert!(futures_util::poll!(&mut hanging).is_pending());

    let files = take_all_files();
    for function in [&exec, &workers] {
        let error = function.call("x").await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Unavailable, Delivery::NotSent), "{error:?}");
        assert_eq!(error.retry(), Retry::Transient);
    }
    drop(files);
    for function in [&exec, &workers] {
        assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    }
    drop(hanging);
    exec.stop().await;
}
