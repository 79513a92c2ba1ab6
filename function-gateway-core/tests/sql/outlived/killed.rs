//! Gateways that are killed while they accept and execute invocations.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{InvocationId, SystemClock, WorkerConfig};
use tokio_util::sync::CancellationToken;

use super::{accept, check, create_functions, empty, gateway, submit_until};
use crate::common::{Database, open, options};
use crate::crashes::seed;

/// How many gateways there are at a time.
const GATEWAYS: usize = 3;

/// Accepts and executes until it is killed. What was accepted stands in its output, a line each.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the gateway that the other tests kill"]
async fn doomed_gateway() {
    let (Ok(url), Ok(file)) = (std::env::var("DOOMED_STORE"), std::env::var("DOOMED_FILE")) else { return };
    // The name of the test stands at the start of the line.
    println!();
    let store = SqlStore::connect(&url, options()).await.unwrap();
    let gateway = gateway(&store, Path::new(&file), Arc::new(SystemClock)).await;
    let _workers = gateway.start_workers(WorkerConfig::default().with_concurrency(16)).unwrap();
    let (sender, accepted) = channel();
    for number in 0..8 {
        tokio::spawn(submit_until(gateway.clone(), number, sender.clone(), CancellationToken::new()));
    }
    let told = tokio::task::spawn_blocking(move || accepted.iter().for_each(|id| println!("accepted {id}")));
    told.await.unwrap();
}

fn start(database: &Database, file: &Path, accepted: &Sender<InvocationId>) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["outlived::killed::doomed_gateway", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("DOOMED_STORE", database.url())
        .env("DOOMED_FILE", file)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (output, accepted) = (BufReader::new(child.stdout.take().unwrap()), accepted.clone());
    std::thread::spawn(move || {
        // The last line may be cut off.
        for line in output.lines().map_while(Result::ok) {
            let id = line.strip_prefix("accepted ").and_then(|id| id.parse().ok());
            if id.is_some_and(|id| accepted.send(id).is_err()) {
                return;
            }
        }
    });
    child
}

/// Kills one of three gateways again and again. Whatever was accepted has one end, and what must not be repeated is not.
pub(crate) async fn gateways_that_are_killed(database: Database, times: u64) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("executed");
    let store = open(&database, options()).await;
    let here = gateway(&store, &file, Arc::new(SystemClock)).await;
    create_functions(&here).await;
    let mut random = fastrand::Rng::with_seed(seed());
    let (sender, receiver) = channel();
    let mut accepted = BTreeSet::new();
    let mut children: Vec<_> = (0..GATEWAYS).map(|_| start(&database, &file, &sender)).collect();
    for _ in 0..times {
        accept(&mut accepted, &receiver, random.usize(50..400));
        let child = &mut children[random.usize(0..GATEWAYS)];
        child.kill().unwrap();
        child.wait().unwrap();
        *child = start(&database, &file, &sender);
    }
    for mut child in children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    drop(sender);
    accepted.extend(receiver);
    empty(&here).await;
    check(&here, &accepted, &file).await;
}
