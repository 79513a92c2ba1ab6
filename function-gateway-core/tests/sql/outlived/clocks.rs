//! Clocks that are set while invocations are accepted and executed: those of the gateways and that of the database.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::channel;

use function_gateway_core::{Clock, SystemClock, Timestamp, WorkerConfig};
use tokio_util::sync::CancellationToken;

use super::{PATIENCE, accept, check, create_functions, empty, gateway, submit_until};
use crate::common::{Database, assert_counted, open, options};
use crate::crashes::seed;

/// What a clock may be wrong by, in microseconds: longer than any lease, and shorter than an invocation may be old.
const WRONG: [i64; 3] = [-3_600_000_000, 0, 3_600_000_000];
const JUMPS: usize = 20;

/// The system's clock, and how much it is wrong.
#[derive(Debug, Default)]
struct WrongClock(AtomicI64);

impl Clock for WrongClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(Timestamp::now().as_micros() + self.0.load(Ordering::Relaxed))
    }
}

/// Lets the times that the queue goes by look as if the database's clock had been set on by so much.
async fn set_on(database: &Database, by: i64) {
    let mut statements = format!("UPDATE fg_submissions SET due_at = due_at - {by} WHERE due_at IS NOT NULL");
    if by > 0 {
        // Where it is set back, what stands there is still no later than what is due first.
        statements +=
            &format!("; UPDATE fg_queue_depth SET next_due_at = next_due_at - {by} WHERE next_due_at IS NOT NULL");
    }
    database.change(&statements).await;
}

/// Two gateways, whose clocks and whose database's clock jump while they work.
pub(crate) async fn clocks_that_jump(database: Database) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("executed");
    let clocks: [Arc<WrongClock>; 2] = Default::default();
    let (sender, receiver) = channel();
    let stop = CancellationToken::new();
    let (mut gateways, mut tasks) = (Vec::new(), Vec::new());
    for clock in &clocks {
        let store = open(&database, options()).await;
        gateways.push(gateway(&store, &file, clock.clone()).await);
    }
    create_functions(&gateways[0]).await;
    for gateway in &gateways {
        let _workers = gateway.start_workers(WorkerConfig::default().with_concurrency(16)).unwrap();
        let submitters = (0..2).map(|number| submit_until(gateway.clone(), number, sender.clone(), stop.clone()));
        tasks.extend(submitters.map(tokio::spawn));
    }
    let mut random = fastrand::Rng::with_seed(seed());
    let (mut accepted, mut wrong) = (BTreeSet::new(), 0);
    for jump in 0..JUMPS {
        tokio::task::block_in_place(|| accept(&mut accepted, &receiver, random.usize(5..50)));
        if jump.is_multiple_of(2) {
            clocks[random.usize(..clocks.len())].0.store(random.choice(WRONG).unwrap(), Ordering::Relaxed);
        } else {
            let next = random.choice(WRONG).unwrap();
            set_on(&database, next - wrong).await;
            wrong = next;
        }
    }
    stop.cancel();
    drop(sender);
    for task in tasks {
        task.await.unwrap();
    }
    accepted.extend(receiver);
    for gateway in &gateways {
        gateway.shutdown(PATIENCE).await.unwrap();
    }
    set_on(&database, WRONG[2] - wrong).await;
    let store = open(&database, options()).await;
    let here = gateway(&store, &file, Arc::new(SystemClock)).await;
    empty(&here).await;
    check(&here, &accepted, &file).await;
    assert_counted(&database).await;
}
