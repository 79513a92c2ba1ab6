//! What a function may use, and whom it runs as.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code fails by panicking")]

mod common;
#[cfg(test)]
#[path = "common/worker.rs"]
mod worker_program;

use std::fs;
use std::sync::Arc;

use common::{Deployed, cx, sh, text};
use function_gateway_core::{ErrorKind, FaasDriver as _, FunctionSpec, Protocol};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

fn limited(mut spec: FunctionSpec, bytes: u64) -> FunctionSpec {
    spec.limits.memory_bytes = Some(bytes);
    spec
}

/// `dd` has a buffer of the size of its blocks. It is started once the limit of 64 MiB is there, which comes just after the
/// start of the shell.
fn buffer(mebibytes: u32) -> FunctionSpec {
    let limited = "until [ \"$(ulimit -d)\" = 65536 ]; do :; done";
    let script = format!("{limited}; dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1 2>&1 && echo fits");
    sh(&script).with_env("PATH", "/usr/bin:/bin").with_env("LC_ALL", "C")
}

#[tokio::test]
async fn a_function_gets_no_more_memory_than_it_may_have() {
    let within = Deployed::new(limited(buffer(16), 64 << 20)).await;
    assert!(text(within.call("").await.unwrap()).await.ends_with("fits\n"));
    let beyond = Deployed::new(limited(buffer(128), 64 << 20)).await;
    let answer = beyond.call("").await.unwrap();
    assert!(!answer.outcome.is_success(), "{answer:?}");
    let said = text(answer).await;
    assert!(said.contains("memory exhausted") || said.contains("allocate"), "{said}");
}

#[tokio::test]
async fn a_worker_has_its_limit_before_it_gets_a_call() {
    let function = Deployed::new(limited(worker_program::worker("echo"), 512 << 20)).await;
    assert_eq!(text(function.call("x").await.unwrap()).await, "x");
    let cx = cx();
    let mut lines = function.driver.logs(&cx, &function.target, Default::default()).await.unwrap();
    let line = futures_util::StreamExt::next(&mut lines).await.unwrap().unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", line.instance.unwrap())).unwrap();
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert_eq!(data.split_whitespace().filter(|word| *word == (512 << 20).to_string()).count(), 2, "{data}");
}

#[tokio::test]
async fn without_a_cgroup_there_is_no_limit_on_cpu() {
    let driver = common::driver();
    for protocol in [Protocol::exec(), Protocol::http()] {
        let caps = driver.capabilities(&protocol);
        assert!(caps.memory_limit && !caps.cpu_limit);
    }
    let folder = tempfile::tempdir().unwrap();
    let error = LocalProcess::new(LocalProcessConfig::new().with_cgroup(folder.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.message().contains("no delegated cgroup"), "{error}");
}

/// The files are as the kernel's, and so is what is written to them.
#[tokio::test]
async fn with_a_cgroup_a_process_is_put_into_a_group_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["cgroup.controllers", "cgroup.subtree_control"] {
        fs::write(folder.path().join(file), "cpu memory\n").unwrap();
    }
    let driver = LocalProcess::new(LocalProcessConfig::new().with_cgroup(folder.path())).unwrap();
    assert!(driver.capabilities(&Protocol::exec()).cpu_limit);
    let script = "until [ -s \"$GROUP\"/function-*/cgroup.procs ]; do :; done; cat \"$GROUP\"/function-*/cgroup.procs; echo; echo $$";
    let mut spec = sh(script);
    spec = limited(spec.with_env("PATH", "/usr/bin:/bin"), 64 << 20);
    spec = spec.with_env("GROUP", folder.path().to_str().unwrap());
    let function = Deployed::on(Arc::new(driver), spec).await;
    let said = text(function.call("").await.unwrap()).await;
    let pids: Vec<_> = said.split_whitespace().collect();
    assert!(matches!(pids.as_slice(), [entered, own] if entered == own), "{said}");
}

#[tokio::test]
async fn a_function_runs_as_the_user_that_it_asks_for() {
    let script = "id -u; id -g; id -G";
    let spec = sh(script).with_env("PATH", "/usr/bin:/bin").with_annotation("user", "nobody");
    let driver = common::driver();
    let found = driver.check(&cx(), &spec).await.unwrap();
    if !rustix::process::geteuid().is_root() {
        let pointers: Vec<_> = found.iter().map(|violation| violation.pointer.as_str()).collect();
        assert_eq!(pointers, ["/annotations/user"]);
        return;
    }
    assert!(found.is_empty(), "{found:?}");
    let function = Deployed::on(driver, spec).await;
    let said = text(function.call("").await.unwrap()).await;
    let [user, group, groups] = said.split_whitespace().collect::<Vec<_>>().try_into().unwrap();
    assert!(user != "0" && group != "0" && groups == group, "{said}");
}
