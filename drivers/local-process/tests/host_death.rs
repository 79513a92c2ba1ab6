//! No process of a function outlives its host, however that ends.

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

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Deployed, ended, is_known, sh};
use function_gateway_core::FaasDriver as _;

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

/// Runs a call and a worker until it is killed. The numbers of all processes stand in its output, one in a line.
#[tokio::test]
#[ignore = "is the host that the other tests kill"]
async fn host() {
    if std::env::var("DOOMED").is_err() {
        return;
    }
    // The name of the test stands at the start of the line.
    println!();
    let script = "sleep 1000 & child=$!; setsid sleep 1000 & echo $$ $child > \"$PIDS\"; wait";
    let pids = std::env::var("PIDS").unwrap();
    let exec = Deployed::new(sh(script).with_env("PIDS", &pids).with_env("PATH", "/usr/bin:/bin")).await;
    let worker =
        Deployed::on(exec.driver.clone(), worker_program::worker("fork").with_env("PIDS", format!("{pids}2"))).await;
    let call = exec.call_in_background("x");
    for file in [pids.clone(), format!("{pids}2")] {
        loop {
            match std::fs::read_to_string(&file).unwrap_or_default() {
                text if text.split_whitespace().count() == 2 => {
                    text.split_whitespace().for_each(|pid| println!("pid {pid}"));
                    break;
                }
                // sleep: between two looks at a file that another process writes.
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }
    println!("pid {}", reaper_of(std::process::id()).await);
    println!("ready");
    drop((call.await, worker));
}

/// The process that is to end the others, by its parent and its name, which it has once it has begun.
async fn reaper_of(host: u32) -> u32 {
    let is_reaper = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let parent = stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)?.parse::<u32>().ok());
        parent == Some(host) && command.contains("function-gateway-reaper")
    };
    for _ in 0..5000 {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        if let Some(pid) = pids.find(is_reaper) {
            return pid;
        }
        // sleep: between two looks at what another process becomes.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("there is no reaper");
}

struct Host {
    process: Child,
    pids: Vec<i32>,
    _folder: tempfile::TempDir,
}

impl Host {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["host", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("DOOMED", "1")
            .env("PIDS", folder.path().join("pids"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let pids = lines.take_while(|line| line != "ready");
        let pids: Vec<i32> = pids.filter_map(|line| line.strip_prefix("pid ")?.parse().ok()).collect();
        assert_eq!(pids.len(), 5);
        Self { process, pids, _folder: folder }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

#[tokio::test]
async fn a_host_that_is_killed_leaves_nothing() {
    let mut host = Host::start();
    assert!(host.pids.iter().all(|pid| is_known(*pid)));
    host.kill();
    for pid in &host.pids {
        ended(*pid).await;
    }
}

#[tokio::test]
async fn a_reaper_that_is_killed_is_replaced() {
    let function = Deployed::new(sh("exec cat")).await;
    function.call("x").await.unwrap();
    let own = std::process::id();
    let first = reaper_of(own).await;
    let pid = rustix::process::Pid::from_raw(first.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    ended(first.cast_signed()).await;
    function.call("x").await.unwrap();
    assert_ne!(reaper_of(own).await, first);
    function.stop().await;
}

/// A process that carries a mark as another host's functions do.
fn marked(mark: &str) -> Child {
    Command::new("/bin/sleep").arg("1000").env("FUNCTION_HOST", mark).spawn().unwrap()
}

#[tokio::test]
async fn what_an_earlier_host_has_left_is_ended_and_nothing_else() {
    let namespace = std::fs::read_link("/proc/self/ns/pid").unwrap().display().to_string();
    let own = std::process::id();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let started: u64 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(19).unwrap().parse().unwrap();
    let mut left = [
        // A host that is gone, and one whose number is another process's by now.
        marked(&format!("test/{}/1/{namespace}/a", i32::MAX)),
        marked(&format!("test/{own}/{}/{namespace}/b", started - 1)),
    ];
    let mut spared = [
        marked(&format!("test/{own}/{started}/{namespace}/c")),
        marked(&format!("other/{}/1/{namespace}/d", i32::MAX)),
        marked(&format!("test/{}/1/pid:[1]/e", i32::MAX)),
        marked("test"),
    ];
    let function = Deployed::new(sh("exec cat")).await;
    for process in &mut left {
        process.wait().unwrap();
    }
    for process in &mut spared {
        assert!(process.try_wait().unwrap().is_none(), "{process:?} was ended");
        process.kill().unwrap();
        process.wait().unwrap();
    }
    function.driver.shutdown(std::time::Instant::now()).await.unwrap();
}
