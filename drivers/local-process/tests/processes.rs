//! A machine without a process left: the host is a process of its own, whose user may have no more of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod common;
#[cfg(test)]
#[path = "common/worker.rs"]
mod worker_program;

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use common::{Deployed, sh, text};
use function_gateway_core::{Delivery, Error, ErrorKind, Retry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A user for whom the limit holds, as it does not for root.
const NOBODY: u32 = 65534;

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

#[test]
#[ignore = "needs the right to become another user, where it runs as root"]
fn as_nobody_without_a_process_left_calls_are_not_sent_and_later_they_are() {
    // The user can reach a copy of the program, wherever the workspace lies.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("host");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for runtime in ["one thread", "many threads"] {
        let mut host = Command::new(&program);
        host.args(["host", "--exact", "--ignored", "--nocapture", "--test-threads=1"]).env("RUNTIME", runtime);
        host.current_dir(folder.path());
        if rustix::process::geteuid().is_root() {
            host.uid(NOBODY).gid(NOBODY);
        }
        let output = host.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("all was seen"), "{said}");
        assert!(!said.contains("panicked"), "{said}");
    }
}

#[test]
#[ignore = "is the host that the other test starts"]
fn host() {
    let mut runtime = match std::env::var("RUNTIME").as_deref() {
        Ok("one thread") => tokio::runtime::Builder::new_current_thread(),
        Ok(_) => tokio::runtime::Builder::new_multi_thread(),
        Err(_) => return,
    };
    runtime.enable_all().build().unwrap().block_on(run());
    println!("all was seen");
}

async fn run() {
    let exec = Deployed::new(sh("exec cat").with_env("PATH", "/usr/bin:/bin")).await;
    let warm = worker_program::worker("echo").with_annotation("idle-timeout-ms", "3600000");
    let warm = Deployed::on(exec.driver.clone(), warm).await;
    let dead = Deployed::on(exec.driver.clone(), worker_program::worker("echo")).await;
    for function in [&exec, &warm, &dead] {
        assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    }
    // Its worker is gone: the next call needs another.
    let mut crash = dead.request("");
    crash.path = "/crash".into();
    dead.send(crash).await.unwrap_err();

    let before = getrlimit(Resource::Nproc);
    setrlimit(Resource::Nproc, Rlimit { current: Some(0), maximum: before.maximum }).unwrap();
    for _ in 0..3 {
        // Of several at a time, one has the thread that is there, and the others are refused theirs.
        let at_once = futures_util::future::join_all((0..4).map(|_| exec.call("x"))).await;
        for answer in at_once.into_iter().chain([dead.call("x").await]) {
            refused(&answer.unwrap_err());
        }
        // What is warm needs no process.
        assert_eq!(text(warm.call("x").await.unwrap()).await, "x");
    }
    setrlimit(Resource::Nproc, before).unwrap();
    for function in [&exec, &warm, &dead] {
        assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    }
    exec.stop().await;
}

fn refused(error: &Error) {
    assert_eq!((error.kind(), error.delivery()), (ErrorKind::Unavailable, Delivery::NotSent), "{error:?}");
    assert!(error.retry() == Retry::Transient && error.to_string().contains("ulimit -u"), "{error:?}");
}
