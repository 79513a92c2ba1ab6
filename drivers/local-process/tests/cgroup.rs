//! What a function may use where the host has a part of the kernel's cgroup tree: `FUNCTION_GATEWAY_TEST_CGROUP` names a
//! delegated folder. `cargo xtask test cgroup` gives one, by a virtual machine where this system has none.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "test code")]

mod common;
#[cfg(test)]
#[path = "common/worker.rs"]
mod worker_program;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Deployed, spec, text};
use function_gateway_core::{Delivery, ErrorClass, ErrorKind, FunctionSpec, InvokeResponse, Outcome, Protocol};
use function_gateway_local_process::{LocalProcess, LocalProcessConfig};

const MEBIBYTE: u64 = 1 << 20;

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

/// A delegated folder of the test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let all = std::env::var_os("FUNCTION_GATEWAY_TEST_CGROUP").expect("FUNCTION_GATEWAY_TEST_CGROUP is not set");
        let folder = Path::new(&all).join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn driver(&self) -> Arc<LocalProcess> {
        Arc::new(LocalProcess::new(LocalProcessConfig::new().with_cgroup(&self.0)).unwrap())
    }

    /// The groups of functions that are in it.
    fn groups(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for group in self.groups() {
            let _ = fs::remove_dir(group);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

/// A shell whose script finds its own group in `$GROUP`, and does not begin before it is in it.
fn confined(folder: &Folder, script: &str) -> FunctionSpec {
    let script = format!(
        "GROUP=; until [ \"$GROUP\" ]; do for group in \"$FOLDER\"/function-*; do \
         grep -qx $$ \"$group/cgroup.procs\" && GROUP=$group; done; done 2>/dev/null; {script}"
    );
    let spec = spec("/bin/sh", &["-c", &script]).with_env("FOLDER", folder.0.to_str().unwrap());
    spec.with_env("PATH", "/usr/bin:/bin").with_env("LC_ALL", "C")
}

fn limited(mut spec: FunctionSpec, mebibytes: u64) -> FunctionSpec {
    spec.limits.memory_bytes = Some(mebibytes * MEBIBYTE);
    spec
}

/// A process that has so many mebibytes of its own.
fn hog(mebibytes: u64) -> String {
    format!("dd if=/dev/zero of=/dev/null bs={mebibytes}M count=1 2>/dev/null")
}

fn failure(answer: &InvokeResponse) -> (String, Option<i32>) {
    match &answer.outcome {
        Outcome::Failed(failure) => (failure.message.clone(), failure.signal),
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_a_process_that_needs_more_memory_is_killed_and_told_why() {
    let folder = Folder::new("memory");
    let driver = folder.driver();
    let within =
        Deployed::on(driver.clone(), limited(confined(&folder, &format!("{} && echo fits", hog(16))), 64)).await;
    assert_eq!(text(within.call("").await.unwrap()).await, "fits\n");
    // What it has asked for and not used does not count, as it does for RLIMIT_DATA.
    let beyond =
        Deployed::on(driver.clone(), limited(confined(&folder, &format!("{}; echo survived", hog(128))), 64)).await;
    let answer = beyond.call("").await.unwrap();
    let (message, signal) = failure(&answer);
    assert!(message.contains("67108864 bytes of memory") && signal == Some(9), "{message}");
    assert_eq!(text(answer).await, "", "the shell goes with what it had started");
    assert_eq!(text(within.call("").await.unwrap()).await, "fits\n");
}

#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_a_function_and_all_that_it_starts_have_one_limit() {
    let folder = Folder::new("together");
    let driver = folder.driver();
    let child = "x=$(head -c 20000000 /dev/zero | tr '\\0' x)";
    let alone = format!("({child}; echo fits)");
    let alone = Deployed::on(driver.clone(), limited(confined(&folder, &alone), 64)).await;
    assert_eq!(text(alone.call("").await.unwrap()).await, "fits\n");
    let script = format!("for i in 1 2 3 4; do ({child}; sleep 1000) & done; wait; echo survived");
    let function = Deployed::on(driver, limited(confined(&folder, &script), 64)).await;
    let answer = function.call("").await.unwrap();
    let (message, signal) = failure(&answer);
    assert!(message.contains("memory") && signal == Some(9), "{message}");
}

#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_a_function_gets_no_more_cpu_than_it_may_have() {
    let folder = Folder::new("cpu");
    let driver = folder.driver();
    for protocol in [Protocol::exec(), Protocol::http(), Protocol::lambda()] {
        let caps = function_gateway_core::FaasDriver::capabilities(&*driver, &protocol);
        assert!(caps.cpu_limit && caps.memory_limit, "{protocol:?}");
    }
    // It works until the kernel has made it wait: without a limit that is never.
    let script =
        "cat \"$GROUP/cpu.max\"; until grep -q 'nr_throttled [1-9]' \"$GROUP/cpu.stat\"; do :; done; echo waited";
    let mut spec = confined(&folder, script);
    spec.limits.cpu_millis = Some(100);
    let function = Deployed::on(driver, spec).await;
    assert_eq!(text(function.call("").await.unwrap()).await, "10000 100000\nwaited\n");
}

#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_a_worker_that_is_killed_for_memory_says_so_and_another_serves() {
    let folder = Folder::new("worker");
    let spec = worker_program::worker("hog").with_annotation("idle-timeout-ms", "3600000");
    let function = Deployed::on(folder.driver(), limited(spec, 96)).await;
    assert_eq!(text(function.call("8").await.unwrap()).await, "8");
    let error = function.call("256").await.unwrap_err();
    assert_eq!((error.kind(), error.class()), (ErrorKind::FunctionBroken, ErrorClass::Function), "{error:?}");
    assert!(error.to_string().contains("100663296 bytes of memory"), "{error:?}");
    assert_ne!(error.delivery(), Delivery::NotSent);
    assert_eq!(text(function.call("8").await.unwrap()).await, "8");
    function.stop().await;
    assert_eq!(folder.groups(), Vec::<PathBuf>::new());
}

/// It leaves both its group of processes and its session.
#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_nothing_escapes_and_no_group_is_left() {
    let folder = Folder::new("escape");
    let driver = folder.driver();
    let script = "setsid sleep 1000 >/dev/null 2>&1 & echo $!";
    let function = Deployed::on(driver.clone(), limited(confined(&folder, script), 64)).await;
    let mut escaped = Vec::new();
    for _ in 0..20 {
        let said = text(function.call("").await.unwrap()).await;
        escaped.push(said.trim().parse::<i32>().unwrap());
    }
    for pid in escaped {
        common::ended(pid).await;
    }
    // The last may still be on its way out; the next process removes it.
    let quick = Deployed::on(driver, limited(spec("/bin/true", &[]), 64)).await;
    quick.call("").await.unwrap();
    assert!(folder.groups().len() <= 1, "{:?}", folder.groups());
}

/// A process that has ended before it is put into its group is no failure.
#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_a_process_may_be_faster_than_its_limits() {
    let folder = Folder::new("quick");
    let quick = Deployed::on(folder.driver(), limited(spec("/bin/true", &[]), 64)).await;
    for _ in 0..100 {
        let answer = quick.call("").await.unwrap();
        assert!(answer.outcome.is_success(), "{answer:?}");
    }
}

#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_a_folder_that_is_not_delegated_is_refused() {
    let folder = Folder::new("refused");
    let leaf = folder.0.join("leaf");
    fs::create_dir(&leaf).unwrap();
    let refused = |path: &Path| LocalProcess::new(LocalProcessConfig::new().with_cgroup(path)).unwrap_err();
    // Its parent hands no controller down.
    let error = refused(&leaf);
    assert!(error.kind() == ErrorKind::InvalidArgument && error.message().contains("\"memory\""), "{error}");
    fs::remove_dir(&leaf).unwrap();
    // A process is in it, which the kernel allows only in a group whose controllers are not handed on.
    let mut inside = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    fs::write(folder.0.join("cgroup.procs"), inside.id().to_string()).unwrap();
    let error = refused(&folder.0);
    assert!(error.message().contains("can't be enabled"), "{error}");
    inside.kill().unwrap();
    inside.wait().unwrap();
}

#[tokio::test]
#[ignore = "needs a delegated cgroup"]
async fn in_cgroup_what_an_earlier_host_has_left_is_removed_and_what_another_uses_is_not() {
    let folder = Folder::new("left");
    let driver = folder.driver();
    let (left, used) = (folder.0.join("function-1-0"), folder.0.join("function-2-0"));
    fs::create_dir(&left).unwrap();
    fs::create_dir(&used).unwrap();
    let mut other = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    fs::write(used.join("cgroup.procs"), other.id().to_string()).unwrap();
    drop(driver);
    let driver = folder.driver();
    assert!(!left.exists() && used.exists());
    other.kill().unwrap();
    other.wait().unwrap();
    drop(driver);
}
