//! The queue where several gateways share it, and where it is long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    Cancelling, DeadLetterFilter, Dispatch, Due, ErrorKind, IdempotencyKey, InvocationId, InvocationQueue, PageRequest,
    Progress, QueueLease, QueueLimits, Revision, Settled, Settlement, Submission, TakeRequest,
};

use crate::common::{Database, acceptance, assert_counted, function, function_of, open, options, succeeded, tenant};

const LEASE: Duration = Duration::from_secs(600);
/// How many tasks of each process race.
const RACERS: usize = 4;

fn ended(submission: &Submission, revision: &Revision, dead: bool) -> Settlement {
    let record = Some(succeeded(submission, revision));
    Settlement::new(Settled::Ended { record, dead, keep_for: Duration::ZERO }, Progress::default())
}

pub(crate) async fn several_processes_take_each_invocation_once(database: Database) {
    const COUNT: usize = 300;
    let stores = [open(&database, options()).await, open(&database, options()).await];
    let revisions: Vec<_> = (0..3).map(|tenant| function_of(format!("t{tenant}").parse().unwrap(), "a").1).collect();
    let accepting = (0..COUNT).map(|number| {
        let (store, revision) = (stores[number % 2].clone(), revisions[number % 3].clone());
        async move { store.accept(acceptance(&revision)).await.unwrap() }
    });
    futures_util::future::join_all(accepting).await;
    let race = |store: &SqlStore| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut taken = Vec::new();
            loop {
                let got = store.take(&TakeRequest::new(7, LEASE)).await.unwrap();
                taken.extend(got.items.into_iter().map(|item| item.lease.id));
                // The leases of those that were taken are what is due next.
                if got.next_due.is_none_or(|next| next > LEASE / 2) {
                    return taken;
                }
                tokio::task::yield_now().await;
            }
        })
    };
    let racers: Vec<_> = stores.iter().cycle().take(2 * RACERS).map(race).collect();
    let mut times = BTreeMap::<InvocationId, usize>::new();
    for racer in racers {
        for id in racer.await.unwrap() {
            *times.entry(id).or_default() += 1;
        }
    }
    assert_eq!(times.len(), COUNT);
    assert!(times.values().all(|times| *times == 1), "taken more than once");
    assert_counted(&database).await;
}

/// Does at random what can be done, from two processes at once, and counts in the end.
pub(crate) async fn what_is_counted_is_what_there_is(database: Database) {
    let stores = [open(&database, options()).await, open(&database, options()).await];
    let revisions: Vec<_> = (0..2)
        .flat_map(|tenant| ["a", "b"].map(|name| function_of(format!("t{tenant}").parse().unwrap(), name).1))
        .collect();
    let tasks = (0..2 * RACERS)
        .map(|number| tokio::spawn(at_random(stores[number % 2].clone(), revisions.clone(), number as u64)));
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_counted(&database).await;
    let settled = "SELECT COUNT(*) FROM fg_invocations i WHERE i.finished_at IS NULL AND NOT EXISTS \
                   (SELECT 1 FROM fg_submissions s WHERE s.id = i.id)";
    assert_eq!(database.number(settled).await, 0, "every invocation has ended or is in the queue");
}

async fn at_random(store: SqlStore, revisions: Vec<Revision>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut held: Vec<(QueueLease, Arc<Submission>)> = Vec::new();
    for _ in 0..150 {
        let revision = revisions[random.usize(..revisions.len())].clone();
        let (tenant, lease) = (revision.key.tenant.clone(), random.choice([Duration::ZERO, LEASE]).unwrap());
        let new = |random: &mut fastrand::Rng| {
            let mut acceptance = acceptance(&revision);
            let submission = Arc::get_mut(&mut acceptance.submission).unwrap();
            submission.pinned = random.bool();
            if random.bool() {
                submission.idempotency = Some(IdempotencyKey::new(random.u8(..10).to_string(), "same"));
            }
            let due = [Due::Now, Due::In(Duration::from_millis(3)), Due::In(LEASE)];
            let acceptance = acceptance.with_due(random.choice(due).unwrap());
            match random.u8(..3) {
                0 => acceptance.with_limits(QueueLimits::new(20, 30)),
                _ => acceptance,
            }
        };
        let of =
            |submission: &Submission| revisions.iter().find(|revision| revision.key == submission.key).unwrap().clone();
        match random.u8(..10) {
            0..3 => drop(allowed(store.accept(new(&mut random)).await)),
            3..5 => {
                let taken = store.take(&TakeRequest::new(random.usize(1..4), lease)).await.unwrap();
                held.extend(taken.items.into_iter().map(|item| (item.lease, item.invocation.submission)));
            }
            5 if !held.is_empty() => {
                let (held, _) = &held[random.usize(..held.len())];
                let _ = allowed(store.dispatch(held, Dispatch::new(random.u32(1..3), lease)).await);
            }
            6..8 if !held.is_empty() => {
                let (held, submission) = held.swap_remove(random.usize(..held.len()));
                let mut settlement = match random.u8(..3) {
                    0 => Settlement::new(Settled::Again { due: Due::Now, attempts: 1 }, Progress::default()),
                    other => ended(&submission, &of(&submission), other == 1),
                };
                if random.bool() {
                    settlement.followers = vec![new(&mut random), new(&mut random)];
                }
                let _ = allowed(store.settle(&held, settlement).await);
            }
            8 => {
                let filter = DeadLetterFilter::default();
                let dead = store.dead_letters(&tenant, &filter, &PageRequest::first(3)).await.unwrap();
                for dead in dead.items {
                    let id = dead.submission.id;
                    match random.bool() {
                        true => drop(allowed(store.purge(&tenant, id).await)),
                        false => drop(allowed(store.redrive(&tenant, id, new(&mut random), Duration::ZERO).await)),
                    }
                }
                store.expire(2).await.unwrap();
            }
            _ => {
                if let Some((_, submission)) = held.last() {
                    let (tenant, id) = (&submission.key.tenant, submission.id);
                    if let Some(Cancelling::Taken(taken)) = allowed(store.cancel(tenant, id, lease).await) {
                        let submission = taken.invocation.submission.clone();
                        let _ = allowed(store.settle(&taken.lease, ended(&submission, &of(&submission), false)).await);
                    }
                }
            }
        }
    }
}

/// What others may be faster in, or limits and keys forbid.
fn allowed<T>(result: function_gateway_core::Result<T>) -> Option<T> {
    use ErrorKind::{AlreadyExists, Conflict, IdempotencyMismatch, NotFound, RateLimited};
    match result {
        Ok(done) => Some(done),
        Err(error) => {
            let expected = [AlreadyExists, Conflict, IdempotencyMismatch, NotFound, RateLimited];
            assert!(expected.contains(&error.kind()), "{error:?}");
            None
        }
    }
}

/// What other processes do is told where the database can.
pub(crate) async fn other_processes_are_told(database: Database) {
    let (store, other) = (open(&database, options()).await, open(&database, options()).await);
    let (mut arrivals, mut endings) = (other.arrivals(), other.endings());
    // Once it listens it tells that something may have been missed.
    arrivals.changed().await;
    endings.changed().await;
    let revision = function("a").1;
    let acceptance = acceptance(&revision);
    let submission = acceptance.submission.clone();
    store.accept(acceptance).await.unwrap();
    arrivals.changed().await;
    let taken = store.take(&TakeRequest::new(1, LEASE)).await.unwrap();
    store.settle(&taken.items[0].lease, ended(&submission, &revision, false)).await.unwrap();
    endings.changed().await;
}

/// Tenants of whom something waits for later cost a take nothing, and the one that has something is found at once.
pub(crate) async fn a_take_finds_what_is_due_among_many_tenants_that_have_nothing(database: Database) {
    let store = open(&database, options()).await;
    let later = (0..200).map(|number| {
        let revision = function_of(format!("t{number}").parse().unwrap(), "a").1;
        let store = &store;
        async move { store.accept(acceptance(&revision).with_due(Due::In(LEASE))).await.unwrap() }
    });
    futures_util::future::join_all(later).await;
    let request = TakeRequest::new(10, LEASE);
    assert_eq!(store.take(&request).await.unwrap().items.len(), 0);
    let due = acceptance(&function("a").1);
    let id = due.submission.id;
    store.accept(due).await.unwrap();
    let taken = store.take(&request).await.unwrap();
    assert_eq!(taken.items.iter().map(|item| item.lease.id).collect::<Vec<_>>(), [id]);
    assert!(taken.next_due.is_some_and(|next| next > Duration::ZERO && next <= LEASE));
    assert_eq!(store.depth(&tenant(), None).await.unwrap().open, 1);
}

/// Nothing that is done with a long queue reads all of it.
pub(crate) async fn a_long_queue_is_never_read_as_a_whole(database: Database) {
    let store = open(&database, options()).await;
    let revision = function("a").1;
    store.accept(acceptance(&revision)).await.unwrap();
    store.close().await;
    database
        .execute(
            "INSERT INTO fg_submissions SELECT '00000005-0000-7000-8000-' || lpad(to_hex(i), 12, '0'), tenant, name, \
             function_id, pinned, state, due_at + i, epoch, attempts, repeatable, cancel_requested, created_at, ended_at, \
             dead_at, expires_at, idem_key, format, replace(document, id, '00000005-0000-7000-8000-' || \
             lpad(to_hex(i), 12, '0')), progress, payload, result FROM fg_submissions, generate_series(1, 20000) AS n(i); \
             UPDATE fg_queue_depth SET open = open + 20000; ANALYZE",
        )
        .await;
    let scans = async |kind: &str| {
        let query = format!("SELECT {kind}::BIGINT FROM pg_stat_user_tables WHERE relname = 'fg_submissions'");
        database.number(&query).await
    };
    // A connection tells what it has read at its end, the one that has made the indexes too.
    let ended_all = async || {
        let others =
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
        let waiting = async {
            while database.number(others).await > 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waiting).await.expect("connections end");
    };
    ended_all().await;
    let (before, found) = (scans("seq_scan").await, scans("COALESCE(idx_scan, 0)").await);
    let store = open(&database, options()).await;
    let (request, tenant) = (TakeRequest::new(3, LEASE), tenant());
    // More often than plans are made for the values of their arguments.
    for number in 0..8 {
        let mut keyed = acceptance(&revision);
        let submission = Arc::get_mut(&mut keyed.submission).unwrap();
        (submission.pinned, submission.idempotency) = (true, Some(IdempotencyKey::new(number.to_string(), "same")));
        store.accept(keyed.with_limits(QueueLimits::new(100_000, 100_000))).await.unwrap();
        let taken = store.take(&request).await.unwrap().items;
        assert_eq!(taken.len(), 3);
        for (item, dead) in taken.iter().zip([false, true, true]) {
            store.dispatch(&item.lease, Dispatch::new(1, LEASE)).await.unwrap();
            let mut settlement = ended(&item.invocation.submission, &revision, dead);
            if let Settled::Ended { record, .. } = &mut settlement.settled {
                *record = None;
            }
            store.settle(&item.lease, settlement).await.unwrap();
        }
        for filter in [DeadLetterFilter::default(), DeadLetterFilter::of(revision.key.name.clone())] {
            store.dead_letters(&tenant, &filter, &PageRequest::first(10)).await.unwrap();
        }
        store.purge(&tenant, taken[1].lease.id).await.unwrap();
        store.redrive(&tenant, taken[2].lease.id, acceptance(&revision), Duration::ZERO).await.unwrap();
        store.pinned(revision.function, revision.generation).await.unwrap();
        store.cancelled(&[taken[0].lease.id]).await.unwrap();
        store.expire(10).await.unwrap();
    }
    store.close().await;
    ended_all().await;
    assert!(scans("COALESCE(idx_scan, 0)").await > found + 8 * 10, "the server counts");
    assert_eq!(scans("seq_scan").await, before);
}
