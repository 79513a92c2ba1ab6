use bytes::Bytes;
use proptest::prelude::*;

use super::super::tests::{function_of, time};
use super::*;
use crate::{
    IdempotencyKey, InvocationRecord, InvokeRequest, Principal, Progress, QueueLimits, Revision, StoredAnswer,
    StoredRequest,
};

const HOUR: Duration = Duration::from_secs(3600);

fn revision(tenant: &str, name: &str) -> Revision {
    let mut revision = function_of(name).1;
    revision.key.tenant = tenant.parse().unwrap();
    revision.function = FunctionId::from_bytes([name.as_bytes()[0]; 16]);
    revision
}

fn submission(revision: &Revision, payload: usize) -> Submission {
    let payload = Bytes::from(vec![0; payload]);
    let request = StoredRequest::of(&InvokeRequest::new(payload.clone())).unwrap();
    let caller = Principal::new(revision.key.tenant.clone(), "ann".parse().unwrap());
    Submission::new(InvocationId::generate(), revision, caller, time(0), request, payload)
}

fn acceptance(revision: &Revision, submission: Submission) -> Acceptance {
    let mut record = InvocationRecord::new(submission.id, revision, "ann".parse().unwrap(), time(0));
    record.state = InvocationState::Queued;
    Acceptance::new(Arc::new(submission), Some(Arc::new(record)))
}

/// A queue with its records, at a time.
struct Bench {
    queue: Queue,
    records: Records,
    now: Timestamp,
}

impl Bench {
    fn new(options: &MemoryStoreOptions) -> Self {
        Self { queue: Queue::new(options), records: Records::new(options), now: time(1000) }
    }

    fn accept(&mut self, acceptance: Acceptance) -> Result<Accepted> {
        self.queue.accept(acceptance, &mut self.records, self.now)
    }

    /// Accepts one with a payload of a size, and a lease.
    fn leased(&mut self, payload: usize) -> Result<QueueLease> {
        let revision = revision("tenant", "a");
        let acceptance = acceptance(&revision, submission(&revision, payload)).with_lease(HOUR);
        match self.accept(acceptance)? {
            Accepted::New { lease } => Ok(lease.unwrap()),
            Accepted::Known(known) => panic!("{known:?}"),
        }
    }

    fn settle(&mut self, lease: &QueueLease, settled: Settled, answer: Option<usize>) -> Result<()> {
        let body = answer.map(|len| Bytes::from(vec![1; len]));
        let progress = Progress { answer: Some(StoredAnswer::new(200, Vec::new(), body)), ..Progress::default() };
        self.queue.settle(lease, Settlement::new(settled, progress), &mut self.records, self.now)
    }

    fn ended(&self, id: InvocationId, dead: bool) -> Settled {
        let record = self.queue.by_id.get(&id).and_then(|item| self.records.get(&item.key().tenant, id));
        let record = record.map(|record| {
            let mut record = InvocationRecord::clone(&record);
            record.state = if dead { InvocationState::Failed } else { InvocationState::Succeeded };
            record.finished_at = Some(self.now);
            Arc::new(record)
        });
        Settled::Ended { record, dead, keep_for: HOUR }
    }

    fn end(&mut self, lease: &QueueLease, dead: bool, answer: usize) {
        let ended = self.ended(lease.id, dead);
        self.settle(lease, ended, Some(answer)).unwrap();
    }

    fn holds(&self, lease: &QueueLease) -> bool {
        self.queue.by_id.contains_key(&lease.id)
    }

    fn body(&self, lease: &QueueLease) -> Option<usize> {
        let invocation = &self.queue.by_id[&lease.id].invocation;
        invocation.progress.answer.as_ref()?.body.as_ref().map(Bytes::len)
    }

    /// Every index says what the invocations do.
    fn check(&self) {
        let queue = &self.queue;
        let mut expected = Queue::new(&MemoryStoreOptions::default());
        for item in queue.by_id.values() {
            let Item { invocation, epoch, repeatable, recorded } = item;
            let state = invocation.state;
            assert_eq!(state.is_open(), invocation.due_at.is_some());
            assert_eq!(state.is_open(), invocation.ended_at.is_none());
            assert_eq!(matches!(state, QueueState::Done | QueueState::Redriven), invocation.expires_at.is_some());
            let (invocation, epoch, repeatable, recorded) = (invocation.clone(), *epoch, *repeatable, *recorded);
            expected.put(Item { invocation, epoch, repeatable, recorded }, self.now);
        }
        assert_eq!((queue.bytes, queue.expiring_bytes), (expected.bytes, expected.expiring_bytes));
        assert_eq!((&queue.expiring, &queue.pinned), (&expected.expiring, &expected.pinned));
        assert_eq!(queue.tenants.len(), expected.tenants.len());
        for (name, expected) in &expected.tenants {
            let tenant = &queue.tenants[name];
            assert_eq!((&tenant.due, &tenant.dead), (&expected.due, &expected.dead));
            assert_eq!(tenant.functions.len(), expected.functions.len());
            for (name, expected) in &expected.functions {
                let named = &tenant.functions[name];
                assert_eq!((named.count, named.open), (expected.count, expected.open));
                assert_eq!((&named.dead, &named.keys), (&expected.dead, &expected.keys));
            }
            let first = tenant.due.first().map(|(at, _)| *at);
            assert_eq!(tenant.filed.is_some(), first.is_some());
            assert_eq!(queue.ready.contains(name), tenant.filed == Some(Filed::Ready));
            let later = first.filter(|_| tenant.filed != Some(Filed::Ready)).map(|at| (at, name.clone()));
            assert_eq!(queue.later.iter().find(|(_, later)| later == name), later.as_ref());
        }
        assert_eq!(queue.ready.len() + queue.later.len(), queue.tenants.values().filter(|t| t.filed.is_some()).count());
    }
}

#[test]
fn what_has_ended_makes_room_and_a_queue_full_of_the_rest_says_so() {
    let mut bench = Bench::new(&MemoryStoreOptions::default().with_max_queued(3));
    let leases: Vec<_> = (0..3).map(|_| bench.leased(0).unwrap()).collect();
    for lease in &leases[..2] {
        bench.now = bench.now.plus(Duration::from_secs(1));
        bench.end(lease, false, 0);
    }
    let fourth = bench.leased(0).unwrap();
    assert_eq!(leases.iter().map(|lease| bench.holds(lease)).collect::<Vec<_>>(), [false, true, true]);
    bench.end(&fourth, true, 0);
    let fifth = bench.leased(0).unwrap();
    let error = bench.leased(0).unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Never));
    assert!(error.message().contains("3 invocations wait, run or are dead (max_queued)"), "{error}");
    assert!([&leases[2], &fourth, &fifth].into_iter().all(|lease| bench.holds(lease)));
    bench.check();
}

#[test]
fn bytes_are_bounded_and_what_can_never_fit_drives_nothing_out() {
    let mut bench = Bench::new(&MemoryStoreOptions::default().with_max_queue_bytes(100));
    let first = bench.leased(30).unwrap();
    bench.end(&first, false, 30);
    let second = bench.leased(30).unwrap();
    assert_eq!(bench.queue.bytes, 90);
    let error = bench.leased(71).unwrap_err();
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, Retry::Never));
    assert!(error.message().contains("100 bytes (max_queue_bytes)"), "{error}");
    assert!(bench.holds(&first));
    let third = bench.leased(70).unwrap();
    assert!(!bench.holds(&first));
    // What was accepted goes on, but an answer for which nothing makes room is not kept.
    bench.end(&second, true, 1);
    assert_eq!(bench.body(&second), None);
    bench.end(&third, false, 1);
    assert_eq!((bench.body(&third), bench.queue.bytes), (None, 100));
    let fourth = bench.leased(10).unwrap();
    assert!(!bench.holds(&third));
    bench.end(&fourth, false, 60);
    assert_eq!((bench.body(&fourth), bench.queue.bytes), (Some(60), 100));
    bench.check();
}

#[test]
fn records_of_what_is_open_are_beside_those_that_are_bounded() {
    let mut bench = Bench::new(&MemoryStoreOptions::default().with_max_records(2));
    let leases: Vec<_> = (0..10).map(|_| bench.leased(0).unwrap()).collect();
    let revision = revision("tenant", "a");
    for _ in 0..2 {
        let running = InvocationRecord::new(InvocationId::generate(), &revision, "ann".parse().unwrap(), time(0));
        bench.records.begin(Arc::new(running)).unwrap();
    }
    assert_eq!(bench.records.len(), 12);
    for lease in &leases {
        bench.end(lease, true, 0);
    }
    assert_eq!((bench.records.len(), bench.queue.len()), (2, 10), "the queue goes on without their records");
    // Also where a record went before its time.
    let lease = bench.leased(0).unwrap();
    let Settled::Ended { record: Some(record), .. } = bench.ended(lease.id, false) else { panic!("it has one") };
    bench.records.finish(record).unwrap();
    bench.end(&lease, false, 0);
    assert_eq!((bench.records.len(), bench.queue.len()), (2, 11));
    bench.check();
}

#[test]
fn nothing_is_taken_where_the_clock_was_set_back() {
    let mut bench = Bench::new(&MemoryStoreOptions::default());
    let revision = revision("tenant", "a");
    bench.accept(acceptance(&revision, submission(&revision, 0))).unwrap();
    let request = TakeRequest::new(10, HOUR);
    let earlier = bench.now.minus(Duration::from_secs(1));
    let taken = bench.queue.take(&request, earlier);
    assert_eq!((taken.items.len(), taken.next_due), (0, Some(Duration::from_secs(1))));
    assert_eq!(bench.queue.take(&request, bench.now).items.len(), 1);
    let lasts_until = bench.now.plus(HOUR);
    assert_eq!(bench.queue.take(&request, lasts_until.minus(Duration::from_micros(1))).items.len(), 0);
    assert_eq!(bench.queue.take(&request, lasts_until).items.len(), 1);
}

#[derive(Debug, Clone)]
enum Step {
    Accept { tenant: usize, name: usize, key: Option<u8>, pinned: bool, wait: i64, leased: bool },
    Take { limit: usize, per_tenant: usize, lease: u64 },
    Dispatch(usize),
    Again(usize, u64),
    End(usize, bool),
    Cancel(usize),
    Redrive(usize),
    Purge(usize),
    Expire(usize),
    Pass(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let one = 0..64_usize;
    let accept = (0..3_usize, 0..2_usize, prop::option::of(0..4_u8), any::<bool>(), -50..50_i64, any::<bool>());
    let step = prop_oneof![
        4 => accept.prop_map(|(tenant, name, key, pinned, wait, leased)| {
            Step::Accept { tenant, name, key, pinned, wait, leased }
        }),
        3 => (0..4_usize, 0..3_usize, 0..60_u64).prop_map(|(limit, per_tenant, lease)| {
            Step::Take { limit, per_tenant, lease }
        }),
        2 => one.clone().prop_map(Step::Dispatch),
        2 => (one.clone(), 0..50_u64).prop_map(|(lease, wait)| Step::Again(lease, wait)),
        3 => (one.clone(), any::<bool>()).prop_map(|(lease, dead)| Step::End(lease, dead)),
        1 => one.clone().prop_map(Step::Cancel),
        1 => one.clone().prop_map(Step::Redrive),
        1 => one.prop_map(Step::Purge),
        1 => (0..3_usize).prop_map(Step::Expire),
        2 => (-10..120_i64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever happens in whatever order: no index goes astray, no lease is good for two, and all that was accepted is
    /// there until it is purged or forgotten.
    #[test]
    fn what_enters_is_what_is_there_and_what_was_let_go(steps in steps()) {
        let mut bench = Bench::new(&MemoryStoreOptions::default());
        let mut ids: Vec<(TenantId, InvocationId)> = Vec::new();
        let mut leases: Vec<QueueLease> = Vec::new();
        let (mut accepted, mut gone) = (0, 0);
        let second = Duration::from_secs;
        for step in steps {
            let id = |of: usize| ids.get(of % ids.len().max(1)).cloned();
            let lease = |of: usize| leases.get(of % leases.len().max(1)).copied();
            match step {
                Step::Accept { tenant, name, key, pinned, wait, leased } => {
                    let revision = revision(["t1", "t2", "t3"][tenant], ["a", "b"][name]);
                    let mut submission = submission(&revision, 3);
                    submission.pinned = pinned;
                    submission.idempotency = key.map(|key| IdempotencyKey::new(key.to_string(), "same"));
                    let due = Due::At(Timestamp::from_micros(bench.now.as_micros() + wait * 1_000_000));
                    let mut acceptance = acceptance(&revision, submission).with_due(due);
                    acceptance.lease = leased.then_some(second(30));
                    acceptance.limits = QueueLimits { per_function: 6, per_tenant: 10, pinned: 4 };
                    let new = (revision.key.tenant, acceptance.submission.id);
                    if let Ok(Accepted::New { lease }) = bench.accept(acceptance) {
                        accepted += 1;
                        ids.push(new);
                        leases.extend(lease);
                    }
                }
                Step::Take { limit, per_tenant, lease } => {
                    let request = TakeRequest::new(limit, second(lease)).with_per_tenant(per_tenant);
                    let taken = bench.queue.take(&request, bench.now);
                    prop_assert!(taken.items.len() <= limit);
                    for taken in taken.items {
                        prop_assert!(taken.invocation.due_at.unwrap() <= bench.now);
                        prop_assert!(!leases.contains(&taken.lease));
                        leases.push(taken.lease);
                    }
                }
                Step::Dispatch(of) => {
                    let Some(lease) = lease(of) else { continue };
                    let Bench { queue, records, now } = &mut bench;
                    let _ = queue.dispatch(&lease, Dispatch::new(1, second(40)), records, *now);
                }
                Step::Again(of, wait) => {
                    let Some(lease) = lease(of) else { continue };
                    let again = Settled::Again { due: Due::In(second(wait)), attempts: 1 };
                    if bench.settle(&lease, again, None).is_ok() {
                        let again = Settled::Again { due: Due::Now, attempts: 1 };
                        prop_assert!(bench.settle(&lease, again, None).is_err());
                    }
                }
                Step::End(of, dead) => {
                    let Some(lease) = lease(of) else { continue };
                    let ended = bench.ended(lease.id, dead);
                    if bench.settle(&lease, ended.clone(), Some(5)).is_ok() {
                        prop_assert!(bench.settle(&lease, ended, Some(5)).is_err());
                    }
                }
                Step::Cancel(of) => {
                    let Some((tenant, id)) = id(of) else { continue };
                    if let Ok(Cancelling::Taken(taken)) = bench.queue.cancel(&tenant, id, second(20), bench.now) {
                        prop_assert!(!leases.contains(&taken.lease));
                        leases.push(taken.lease);
                    }
                }
                Step::Redrive(of) => {
                    let Some((tenant, id)) = id(of) else { continue };
                    let revision = revision(tenant.as_str(), "a");
                    let acceptance = acceptance(&revision, submission(&revision, 3));
                    let new = acceptance.submission.id;
                    let Bench { queue, records, now } = &mut bench;
                    if queue.redrive(&tenant, id, acceptance, HOUR, records, *now).is_ok() {
                        accepted += 1;
                        ids.push((tenant, new));
                    }
                }
                Step::Purge(of) => {
                    let Some((tenant, id)) = id(of) else { continue };
                    gone += usize::from(bench.queue.purge(&tenant, id, bench.now).is_ok());
                }
                Step::Expire(limit) => {
                    gone += usize::try_from(bench.queue.expire(limit, bench.now.plus(HOUR))).unwrap();
                }
                Step::Pass(seconds) => {
                    bench.now = Timestamp::from_micros(bench.now.as_micros() + seconds * 1_000_000);
                }
            }
            bench.check();
            prop_assert_eq!(accepted, bench.queue.len() + gone);
        }
        // All of it can be brought to its end, and nothing is left.
        bench.now = bench.now.plus(2 * HOUR);
        let open = bench.queue.take(&TakeRequest::new(1000, HOUR), bench.now);
        for taken in open.items {
            bench.end(&taken.lease, true, 0);
        }
        for (tenant, id) in ids {
            let _ = bench.queue.purge(&tenant, id, bench.now);
        }
        bench.queue.expire(1000, bench.now.plus(2 * HOUR));
        bench.check();
        let Queue { by_id, tenants, ready, later, pinned, expiring, bytes, expiring_bytes, .. } = &bench.queue;
        prop_assert!(by_id.is_empty() && tenants.is_empty() && ready.is_empty() && later.is_empty());
        prop_assert!(pinned.is_empty() && expiring.is_empty());
        prop_assert_eq!((*bytes, *expiring_bytes), (0, 0));
    }
}
