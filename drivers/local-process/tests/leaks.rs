//! Alone in its process, since it counts what the whole process holds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy takes helpers of tests for more"
)]

mod common;
#[cfg(test)]
#[path = "common/worker.rs"]
mod worker_program;

use std::fs;
use std::time::{Duration, Instant};

use common::{Deployed, sh, spec, streaming};
use function_gateway_core::FaasDriver as _;
use futures_util::StreamExt as _;

#[test]
#[ignore = "is the worker that the other tests start"]
fn worker() {
    worker_program::main();
}

fn open_files() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The processes whose parent this one is, zombies included.
fn children() -> Vec<String> {
    let own = std::process::id().to_string();
    let stats =
        fs::read_dir("/proc").unwrap().filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).ok());
    // After the name, which is in parentheses: the state, then the parent.
    let parent = |stat: &str| stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap() == own;
    stats.filter(|stat| parent(stat)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_leave_no_process_and_no_open_file() {
    let before = open_files();
    let plain = Deployed::new(spec("cat", &[])).await;
    let on = |spec| Deployed::on(plain.driver.clone(), spec);
    let failing = on(sh("exit 1")).await;
    let endless = on(streaming(sh("sleep 1000 & yes"))).await;
    let idle = on(sh("sleep 1000 & wait")).await;
    let workers = on(worker_program::worker("echo")).await;
    plain.call("warm").await.unwrap();
    // A worker, and the one that would end the others if this process died.
    assert_eq!(children().len(), 2);

    let calls = (0..200).map(|turn| {
        let (plain, failing, endless, idle, workers) = (&plain, &failing, &endless, &idle, &workers);
        async move {
            let path = |path: &'static str| {
                let mut request = workers.request("x");
                request.path = path.into();
                workers.send(request)
            };
            match turn % 7 {
                0 => assert!(plain.call("x").await.unwrap().outcome.is_success()),
                1 => assert!(!failing.call("x").await.unwrap().outcome.is_success()),
                2 => {
                    let mut body = endless.call("x").await.unwrap().body.into_stream();
                    body.next().await.unwrap().unwrap();
                }
                3 => assert!(path("/crash").await.is_err()),
                // Given up after its start. It is refused at once where several workers have just crashed in a row.
                4 => drop(futures_util::poll!(Box::pin(path("/hang")))),
                // It may have met one that was just crashing.
                5 => drop(path("").await),
                // Given up in the middle: it never ends by itself.
                _ => assert!(futures_util::poll!(Box::pin(idle.call("x"))).is_pending()),
            }
        }
    });
    futures_util::stream::iter(calls).buffer_unordered(8).collect::<Vec<()>>().await;

    plain.driver.shutdown(Instant::now() + Duration::from_secs(60)).await.unwrap();
    assert_eq!(children(), [""; 0]);
    let patience = Instant::now() + Duration::from_secs(60);
    while open_files() != before && Instant::now() < patience {
        // sleep: the descriptor by which that one was watched is closed when the runtime gets to it.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(open_files(), before);
}
