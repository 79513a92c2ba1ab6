//! Processes that are killed while records are written.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    Accepted, Dispatch, Durability, ErrorKind, IdempotencyKey, InvocationId, InvocationQueue, InvocationState,
    InvocationStore, PageRequest, Progress, QueueLimits, QueueState, RecordFilter, Revision, Settled, Settlement,
    StatisticsQuery, TakeRequest, Timestamp,
};

use crate::common::{
    Database, acceptance, assert_counted, ended, function, open, options, running, succeeded, tenant, variable,
};

/// How many records the recorder has in its buffer at most, and so may lose.
const BUFFERED: usize = 64;
/// After it what a killed process had taken is taken again.
const LEASE: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(3600);

/// `cargo xtask soak --times` multiplies it; 50 with its default.
pub(crate) fn soak_count() -> u64 {
    5 * number("FUNCTION_GATEWAY_SOAK", 10)
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

pub(crate) fn seed() -> u64 {
    number("FUNCTION_GATEWAY_SEED", 1)
}

/// Records until it is killed. What the store has acknowledged stands in its output, a line each.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is the recorder that the other tests kill"]
async fn recorder() {
    let Ok(url) = std::env::var("DOOMED_STORE") else { return };
    // The name of the test stands at the start of the line.
    println!();
    let options = options().with_max_buffered_records(BUFFERED).with_flush_interval(Duration::from_millis(5));
    let store = SqlStore::connect(&url, options).await.unwrap();
    let recorders = (0..16).map(|number| tokio::spawn(record(store.clone(), number)));
    let submitters = (0..8).map(|number| tokio::spawn(submit(store.clone(), number)));
    let workers = (0..4).map(|_| tokio::spawn(work(store.clone())));
    futures_util::future::join_all(recorders.chain(submitters).chain(workers)).await;
}

/// Invocations of a function that every process knows.
fn queued_function(number: usize) -> Revision {
    let mut revision = function(&format!("q{}", number % 3)).1;
    revision.function = "01a21478-2b1a-704d-a5e4-6be5eaf51c8a".parse().unwrap();
    revision
}

async fn submit(store: SqlStore, number: usize) {
    let revision = queued_function(number);
    loop {
        let mut acceptance = acceptance(&revision);
        let id = acceptance.submission.id;
        if number.is_multiple_of(2) {
            let submission = Arc::get_mut(&mut acceptance.submission).unwrap();
            submission.idempotency = Some(IdempotencyKey::new(id.to_string(), "same"));
            acceptance = acceptance.with_limits(QueueLimits::new(1_000_000, 1_000_000));
        }
        store.accept(acceptance).await.unwrap();
        println!("accepted {id}");
    }
}

/// Ends what it gets. What somebody who is gone had sent is lost.
async fn work(store: SqlStore) {
    let mut arrivals = store.arrivals();
    loop {
        let taken = store.take(&TakeRequest::new(4, LEASE)).await.unwrap();
        for item in &taken.items {
            let submission = &item.invocation.submission;
            let mut record = (*succeeded(submission, &queued_function(0))).clone();
            record.key = submission.key.clone();
            match item.invocation.state {
                QueueState::Running => record.state = InvocationState::Lost,
                _ => match store.dispatch(&item.lease, Dispatch::new(1, LEASE)).await {
                    Ok(()) => println!("sent {}", item.lease.id),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}");
                        continue;
                    }
                },
            }
            let settled = Settled::Ended { record: Some(Arc::new(record)), dead: false, keep_for: LONG };
            match store.settle(&item.lease, Settlement::new(settled, Progress::default())).await {
                Ok(()) => println!("settled {}", item.lease.id),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
            }
        }
        if taken.items.is_empty() {
            let _ = tokio::time::timeout(taken.next_due.unwrap_or(LEASE), arrivals.changed()).await;
        }
    }
}

async fn record(store: SqlStore, number: usize) {
    let revision = function(&format!("f{}", number % 3)).1;
    loop {
        let durable = number.is_multiple_of(2);
        let mut record = (*ended(&revision)).clone();
        if durable && number.is_multiple_of(4) {
            let begun = running(&revision);
            (record.id, record.created_at) = (begun.id, begun.created_at);
            store.begin(begun).await.unwrap();
        }
        let id = record.id;
        let durability = if durable { Durability::Durable } else { Durability::Buffered };
        store.finish(Arc::new(record), durability).await.unwrap();
        println!("{} {id}", if durable { "durable" } else { "buffered" });
    }
}

pub(crate) async fn a_recorder_that_is_killed(database: Database, times: u64) {
    // Makes the tables, so that the recorder is killed while it records.
    open(&database, options()).await.close().await;
    let mut random = fastrand::Rng::with_seed(seed());
    let (mut durable, mut buffered) = (BTreeSet::new(), BTreeSet::new());
    let (mut accepted, mut sent, mut settled) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for _ in 0..times {
        let mut recorder = Command::new(std::env::current_exe().unwrap())
            .args(["crashes::recorder", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("DOOMED_STORE", database.url())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut left = random.usize(1..2000);
        for line in BufReader::new(recorder.stdout.take().unwrap()).lines() {
            // The last line may be cut off.
            let Some((kind, id)) = line.as_ref().ok().and_then(|line| line.split_once(' ')) else { continue };
            let Ok(id) = id.parse::<InvocationId>() else { continue };
            match kind {
                "durable" => durable.insert(id),
                "buffered" => buffered.insert(id),
                "accepted" => accepted.insert(id),
                "sent" => {
                    assert!(sent.insert(id), "{id} was sent twice; seed {}", seed());
                    true
                }
                "settled" => {
                    assert!(settled.insert(id), "{id} has ended twice; seed {}", seed());
                    true
                }
                _ => continue,
            };
            left = left.saturating_sub(1);
            if left == 0 {
                recorder.kill().unwrap();
            }
        }
        recorder.wait().unwrap();
    }
    let store = open(&database, options()).await;
    let kept = all(&store).await;
    let lost: Vec<_> = durable.difference(&kept).collect();
    assert_eq!(lost, Vec::<&InvocationId>::new(), "seed {}", seed());
    let missing = buffered.difference(&kept).count();
    let bound = usize::try_from(times).unwrap() * BUFFERED;
    assert!(missing <= bound, "{missing} of {} are missing, more than {bound}; seed {}", buffered.len(), seed());
    assert!(!durable.is_empty() && !buffered.is_empty());
    for id in &accepted {
        let queued = store.queued(&tenant(), *id).await.unwrap();
        let state = queued.as_ref().map(|queued| queued.state);
        assert!(state.is_some(), "{id} was accepted and is lost; seed {}", seed());
        assert!(!settled.contains(id) || state == Some(QueueState::Done), "{id} is {state:?}; seed {}", seed());
    }
    assert!(!accepted.is_empty() && !settled.is_empty());
    assert_counted(&database).await;
}

/// The ids of all records that have ended. There are as many as figures have counted.
async fn all(store: &SqlStore) -> BTreeSet<InvocationId> {
    let (mut ids, mut ended) = (Vec::new(), 0);
    let mut request = PageRequest::first(PageRequest::MAX_LIMIT);
    loop {
        let page = InvocationStore::list(store, &tenant(), &RecordFilter::default(), &request).await.unwrap();
        ended += page.items.iter().filter(|record| record.state.is_final()).count();
        ids.extend(page.items.iter().filter(|record| record.state.is_final()).map(|record| record.id));
        let Some(next) = page.next else { break };
        request = request.after(next);
    }
    let unique: BTreeSet<_> = ids.iter().copied().collect();
    assert_eq!(unique.len(), ids.len(), "a record is there twice");
    let query = StatisticsQuery::new(Timestamp::from_micros(0), Timestamp::now().plus(Duration::from_secs(3600)));
    let counted = store.statistics(&tenant(), &query).await.unwrap().count;
    assert_eq!(usize::try_from(counted).unwrap(), ended, "records and figures tell the same");
    unique
}

/// A server that is killed and started again while this process records.
pub(crate) async fn a_server_that_is_killed(times: u64) {
    let data = variable("FUNCTION_GATEWAY_TEST_DOOMED_POSTGRES_DATA");
    let start = variable("FUNCTION_GATEWAY_TEST_DOOMED_POSTGRES_START");
    let database = Database::postgres_on(variable("FUNCTION_GATEWAY_TEST_DOOMED_POSTGRES_URL")).await;
    let store = open(&database, options().with_operation_timeout(Duration::from_secs(30))).await;
    let (done, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let recorders: Vec<_> = (0..16)
        .map(|number| tokio::spawn(record_until(store.clone(), number, done.clone(), acknowledged.clone())))
        .collect();
    let submitters: Vec<_> = (0..8)
        .map(|number| tokio::spawn(submit_until(store.clone(), number, done.clone(), acknowledged.clone())))
        .collect();
    let mut random = fastrand::Rng::with_seed(seed());
    for _ in 0..times {
        let wanted = acknowledged.load(Ordering::Relaxed) + random.usize(100..2000);
        reached(&acknowledged, wanted).await;
        let pid = std::fs::read_to_string(format!("{data}/postmaster.pid")).unwrap();
        let pid = pid.lines().next().unwrap().to_owned();
        assert!(Command::new("kill").args(["-9", &pid]).status().unwrap().success());
        let start = start.clone();
        let started = tokio::task::spawn_blocking(move || Command::new("sh").args(["-c", &start]).status());
        assert!(started.await.unwrap().unwrap().success());
    }
    let wanted = acknowledged.load(Ordering::Relaxed) + 200;
    reached(&acknowledged, wanted).await;
    done.store(true, Ordering::Relaxed);
    let mut expected = BTreeSet::new();
    for recorder in recorders {
        expected.extend(recorder.await.unwrap());
    }
    let (mut accepted, mut settled) = (Vec::new(), BTreeSet::new());
    for submitter in submitters {
        let (of_one, ended) = submitter.await.unwrap();
        accepted.extend(of_one);
        settled.extend(ended);
    }
    store.flush().await.unwrap();
    let kept = all(&store).await;
    let lost: Vec<_> = expected.difference(&kept).collect();
    assert_eq!(lost, Vec::<&InvocationId>::new(), "seed {}", seed());
    for id in accepted {
        let state = store.queued(&tenant(), id).await.unwrap().map(|queued| queued.state);
        assert_eq!(state == Some(QueueState::Done), settled.contains(&id), "{id} is {state:?}; seed {}", seed());
        assert!(state.is_some(), "{id} was accepted and is lost; seed {}", seed());
    }
    assert_counted(&database).await;
}

/// Accepts with a lease, dispatches and settles every other one. Gives what was accepted, and what of it has ended.
async fn submit_until(
    store: SqlStore,
    number: usize,
    done: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> (Vec<InvocationId>, Vec<InvocationId>) {
    let revision = queued_function(number);
    let (mut accepted, mut settled) = (Vec::new(), Vec::new());
    while !done.load(Ordering::Relaxed) {
        let acceptance = acceptance(&revision).with_lease(LONG);
        let submission = acceptance.submission.clone();
        let lease = match store.accept(acceptance).await {
            Ok(Accepted::New { lease }) => lease.unwrap(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert!(error.is_transient(), "{error:?}");
                continue;
            }
        };
        acknowledged.fetch_add(1, Ordering::Relaxed);
        accepted.push(submission.id);
        if !accepted.len().is_multiple_of(2) {
            continue;
        }
        // The time of an operation is longer than the server is away.
        store.dispatch(&lease, Dispatch::new(1, LONG)).await.unwrap();
        let record = Some(succeeded(&submission, &revision));
        let settled_as = Settled::Ended { record, dead: false, keep_for: LONG };
        store.settle(&lease, Settlement::new(settled_as, Progress::default())).await.unwrap();
        settled.push(submission.id);
    }
    (accepted, settled)
}

/// Gives up on what hangs, so that a broken test fails instead of running for ever.
async fn reached(acknowledged: &AtomicUsize, wanted: usize) {
    let counting = async {
        while acknowledged.load(Ordering::Relaxed) < wanted {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), counting).await.expect("records are written again");
}

/// Gives what the store has acknowledged. This process lives on, so what is only buffered counts as well.
async fn record_until(
    store: SqlStore,
    number: usize,
    done: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
) -> Vec<InvocationId> {
    let revision = function(&format!("f{}", number % 3)).1;
    let mut ids = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let record = ended(&revision);
        let id = record.id;
        let durability = if number.is_multiple_of(2) { Durability::Durable } else { Durability::Buffered };
        match store.finish(record, durability).await {
            Ok(()) => {
                ids.push(id);
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => assert!(error.is_transient(), "{error:?}"),
        }
    }
    ids
}
