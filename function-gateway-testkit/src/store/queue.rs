//! What an [`InvocationQueue`] promises, together with the [`InvocationStore`] that keeps the records of what is in it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use function_gateway_core::{
    Acceptance, Accepted, AsyncPolicy, Attempt, CallbackTarget, Cancelling, Cursor, CursorKind, DeadLetterFilter,
    Delivery, Destination, Dispatch, Due, ErrorClass, ErrorKind, EventRef, Failure, FunctionId, FunctionKey,
    FunctionName, Generation, IdempotencyKey, InvocationId, InvocationQueue, InvocationRecord, InvocationState,
    InvocationStore, InvokeRequest, Origin, PageRequest, Principal, Progress, QueueDepth, QueueLease, QueueLimits,
    QueueSignal, QueueState, QueuedInvocation, RecordFilter, Revision, Sequence, Settled, Settlement, StatisticsQuery,
    StoredAnswer, StoredRequest, Submission, TakeRequest, Taken, TakenInvocation, TenantId, Timestamp, TraceParent,
    Work,
};
use tokio::task::JoinSet;

use super::{all_pages, function, key, principal, refused, tenant, valid};

/// A queue, and the records of what is in it.
pub trait QueueWithRecords: InvocationQueue + InvocationStore {}

impl<T: InvocationQueue + InvocationStore> QueueWithRecords for T {}

type Store = Arc<dyn QueueWithRecords>;

/// How many tasks race.
const RACERS: usize = 16;
/// A lease that runs out in no case.
const HOUR: Duration = Duration::from_secs(3600);
/// A lease that runs out while a case waits for that.
const MOMENT: Duration = Duration::from_millis(1);
/// What has to come comes within this time.
const PATIENCE: Duration = Duration::from_secs(10);
/// A text that a store mixes up where it can.
const NASTY: &str = "grüß \"dich\"'\\ %_?$1\u{0}\n\u{1F600} ";
/// The same without what no key may hold.
const NASTY_KEY: &str = "grüß \"dich\"'\\ %_?$1\n\u{1F600} ";

/// A function to which invocations are submitted.
#[derive(Debug, Clone)]
struct Target(Revision);

impl Target {
    fn new(tenant: &TenantId, name: &str) -> Self {
        Self(function(&key(tenant, name)).1)
    }

    fn key(&self) -> &FunctionKey {
        &self.0.key
    }

    fn tenant(&self) -> &TenantId {
        &self.0.key.tenant
    }

    fn submission(&self) -> Submission {
        let caller = Principal::new(self.tenant().clone(), principal("caller"));
        let payload = Bytes::from_static(b"payload");
        let mut request = InvokeRequest::new(payload.clone());
        request.headers.insert("content-type", http::HeaderValue::from_static("text/plain"));
        let request = StoredRequest::of(&request).expect("the request can be stored");
        Submission::new(InvocationId::generate(), &self.0, caller, Timestamp::now(), request, payload)
    }

    fn keyed(&self, key: &str, fingerprint: &str) -> Submission {
        let mut submission = self.submission();
        submission.idempotency = Some(IdempotencyKey::new(key, fingerprint));
        submission
    }

    /// The record of a submission in its first state.
    fn record(&self, submission: &Submission) -> InvocationRecord {
        let mut record =
            InvocationRecord::new(submission.id, &self.0, submission.principal.id.clone(), submission.created_at);
        record.state = InvocationState::Queued;
        record.origin = Origin::Async;
        record.lineage = Some(Box::new(submission.lineage.clone()));
        record
    }

    fn acceptance_of(&self, submission: Submission) -> Acceptance {
        let record = Arc::new(self.record(&submission));
        Acceptance::new(Arc::new(submission), Some(record))
    }

    fn acceptance(&self) -> Acceptance {
        self.acceptance_of(self.submission())
    }

    /// Has one accepted that is due at once.
    async fn submit(&self, store: &Store) -> InvocationId {
        self.submit_due(store, Due::Now).await
    }

    async fn submit_due(&self, store: &Store, due: Due) -> InvocationId {
        let acceptance = self.acceptance().with_due(due);
        let id = acceptance.submission.id;
        accept(store, acceptance).await;
        id
    }

    async fn queued(&self, store: &Store, id: InvocationId) -> Arc<QueuedInvocation> {
        queued(store, self.tenant(), id).await.expect("it is in the queue")
    }

    async fn kept_record(&self, store: &Store, id: InvocationId) -> Arc<InvocationRecord> {
        record(store, self.tenant(), id).await.expect("there is a record")
    }

    /// How it ends: its record is as it is kept, but in a final state.
    async fn ended(&self, store: &Store, id: InvocationId, state: InvocationState) -> InvocationRecord {
        let mut record = InvocationRecord::clone(&*self.kept_record(store, id).await);
        record.state = state;
        record.attempts = 1;
        record.started_at = Some(record.created_at);
        record.finished_at = Some(record.created_at.plus(Duration::from_secs(1)));
        if state != InvocationState::Succeeded {
            record.failure = Some(failure("it failed"));
        }
        record
    }

    async fn ending(&self, store: &Store, id: InvocationId, dead: bool) -> Settlement {
        let state = if dead { InvocationState::Failed } else { InvocationState::Succeeded };
        let record = Some(Arc::new(self.ended(store, id, state).await));
        Settlement::new(Settled::Ended { record, dead, keep_for: HOUR }, Progress::default())
    }

    async fn end(&self, store: &Store, lease: &QueueLease, dead: bool) {
        let ending = self.ending(store, lease.id, dead).await;
        settle(store, lease, ending).await;
    }

    /// Has one accepted and lets it die.
    async fn submit_dead(&self, store: &Store) -> InvocationId {
        let lease = accept(store, self.acceptance().with_lease(HOUR)).await.expect("it is leased");
        self.end(store, &lease, true).await;
        lease.id
    }

    async fn depth(&self, store: &Store) -> QueueDepth {
        depth(store, self.tenant(), Some(&self.key().name)).await
    }
}

fn failure(message: &str) -> Failure {
    Failure::new(ErrorClass::Function, "function_failed", message, Delivery::Executed)
}

/// Waits for something that has to come.
async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not come");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn accept(store: &Store, acceptance: Acceptance) -> Option<QueueLease> {
    match store.accept(acceptance).await.expect("it is accepted") {
        Accepted::New { lease } => lease,
        other => panic!("it is new, and not {other:?}"),
    }
}

/// Has what was sent before under its key not accepted again.
async fn known(store: &Store, acceptance: Acceptance) -> Arc<QueuedInvocation> {
    match store.accept(acceptance).await.expect("it is known") {
        Accepted::Known(known) => known,
        other => panic!("it was sent before, and is not {other:?}"),
    }
}

async fn take_by(store: &Store, request: TakeRequest) -> Taken {
    let taken = store.take(&request).await.expect("something is taken");
    assert!(taken.items.len() <= request.limit, "{} are more than {}", taken.items.len(), request.limit);
    taken
}

async fn take(store: &Store, limit: usize) -> Vec<TakenInvocation> {
    take_by(store, TakeRequest::new(limit, HOUR)).await.items
}

/// Takes the one that there is, or comes.
async fn take_one(store: &Store) -> TakenInvocation {
    take_one_for(store, HOUR).await
}

async fn take_one_for(store: &Store, lease: Duration) -> TakenInvocation {
    eventually("an invocation", async || take_by(store, TakeRequest::new(1, lease)).await.items.pop()).await
}

fn id_of(taken: &TakenInvocation) -> InvocationId {
    assert_eq!(taken.lease.id, taken.invocation.submission.id);
    taken.lease.id
}

fn tenant_of(taken: &TakenInvocation) -> TenantId {
    taken.invocation.submission.key.tenant.clone()
}

async fn dispatch(store: &Store, lease: &QueueLease, attempt: u32) {
    store.dispatch(lease, Dispatch::new(attempt, HOUR)).await.expect("the attempt is noted");
}

async fn settle(store: &Store, lease: &QueueLease, settlement: Settlement) {
    store.settle(lease, settlement).await.expect("the attempt is settled");
}

fn again(due: Due, attempts: u32) -> Settlement {
    Settlement::new(Settled::Again { due, attempts }, Progress::default())
}

async fn queued(store: &Store, tenant: &TenantId, id: InvocationId) -> Option<Arc<QueuedInvocation>> {
    store.queued(tenant, id).await.expect("the queue is read")
}

async fn record(store: &Store, tenant: &TenantId, id: InvocationId) -> Option<Arc<InvocationRecord>> {
    store.get(tenant, id).await.expect("a record is read")
}

async fn records_in(store: &Store, tenant: &TenantId, state: InvocationState) -> Vec<InvocationId> {
    let mut filter = RecordFilter::default();
    filter.state = Some(state);
    let records = store.list(tenant, &filter, &PageRequest::default()).await.expect("records are read");
    records.items.iter().map(|record| record.id).collect()
}

async fn depth(store: &Store, tenant: &TenantId, name: Option<&FunctionName>) -> QueueDepth {
    store.depth(tenant, name).await.expect("the queue is counted")
}

async fn pinned(store: &Store, function: FunctionId, generation: Generation) -> u64 {
    store.pinned(function, generation).await.expect("the queue is counted")
}

async fn cancel(store: &Store, tenant: &TenantId, id: InvocationId) -> Cancelling {
    store.cancel(tenant, id, HOUR).await.expect("the wish is noted")
}

async fn cancelled(store: &Store, ids: &[InvocationId]) -> BTreeSet<InvocationId> {
    store.cancelled(ids).await.expect("wishes are read").into_iter().collect()
}

async fn dead_letters(
    store: &Store,
    tenant: &TenantId,
    filter: &DeadLetterFilter,
    limit: usize,
) -> Vec<Arc<QueuedInvocation>> {
    all_pages(limit, async |page| store.dead_letters(tenant, filter, &page).await.expect("a page is read")).await
}

async fn dead_ids(store: &Store, tenant: &TenantId, filter: &DeadLetterFilter, limit: usize) -> Vec<InvocationId> {
    dead_letters(store, tenant, filter, limit).await.iter().map(|dead| dead.submission.id).collect()
}

async fn signalled(signal: &mut QueueSignal, of: &str) {
    tokio::time::timeout(PATIENCE, signal.changed()).await.unwrap_or_else(|_| panic!("nobody tells of {of}"));
}

/// What neither the queue nor a record knows.
async fn assert_absent(store: &Store, tenant: &TenantId, id: InvocationId) {
    assert_eq!(queued(store, tenant, id).await, None);
    assert_eq!(record(store, tenant, id).await, None);
}

/// An accepted invocation is there, and so is its record.
pub async fn an_accepted_invocation_is_there_with_its_record(store: Store) {
    let target = Target::new(&tenant(), "a");
    let before = target.submit(&store).await;
    let acceptance = target.acceptance();
    let (submission, begun) = (acceptance.submission.clone(), acceptance.record.clone());
    assert_absent(&store, target.tenant(), submission.id).await;
    assert_eq!(accept(&store, acceptance).await, None);
    let kept = target.queued(&store, submission.id).await;
    let due_at = kept.due_at.expect("it is due");
    assert!(target.queued(&store, before).await.due_at <= Some(due_at));
    assert_eq!(*kept, QueuedInvocation::waiting(submission.clone(), due_at));
    assert_eq!(record(&store, target.tenant(), submission.id).await, begun);
    let waiting: BTreeSet<_> = records_in(&store, target.tenant(), InvocationState::Queued).await.into_iter().collect();
    assert_eq!(waiting, BTreeSet::from([before, submission.id]));
}

/// A submission with everything that it can hold.
fn full_submission(target: &Target) -> Submission {
    let mut submission = target.submission();
    submission.pinned = true;
    submission.work =
        Work::Callback { url: format!("https://example.org/{NASTY}"), secret: Some(valid("s.1".parse())) };
    submission.principal.id = principal("grüß \"dich\"'\\ %_\u{1F600} ");
    submission.principal.scopes = ["invoke:*", "", NASTY].map(str::to_owned).into();
    submission.origin = Origin::Event;
    submission.trace = Some(valid("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse::<TraceParent>()));
    submission.trace_state = Some(NASTY.to_owned());
    submission.created_at = Timestamp::from_micros(-1);
    submission.request.method = "PROPFIND".to_owned();
    submission.request.path = format!("/a/{NASTY}");
    submission.request.query = Some(String::new());
    submission.request.headers = [("x-a", NASTY), ("x-a", ""), ("b", "2")].map(|(n, v)| (n.into(), v.into())).into();
    submission.request.secrets = Some([valid("one".parse()), valid("two".parse())].into());
    submission.payload = Bytes::from_static(&[0, 0xff, b'\'', b'"', b'\\', 0xc3, 0x28, b'\n', 0]);
    let mut policy = AsyncPolicy::default();
    policy.max_attempts = Some(5);
    policy.initial_backoff = Some(Duration::from_millis(1));
    policy.max_age = Some(Duration::from_secs(60));
    policy.retry_classes = Some([ErrorClass::Function, ErrorClass::Timeout].into());
    policy.retry_statuses = Some([].into());
    policy.at_least_once = true;
    policy.on_success = Some(Destination::Function(valid("next".parse())));
    let callback = CallbackTarget::new("https://example.org/?a=b").with_secret(valid("s.2".parse()));
    policy.on_failure = Some(Destination::Callback(callback));
    submission.policy = Some(policy);
    submission.idempotency = Some(IdempotencyKey::new(NASTY_KEY, "f".repeat(64)));
    submission.lineage.parent = Some(InvocationId::generate());
    submission.lineage.redrive_of = Some(InvocationId::generate());
    submission.lineage.depth = 7;
    submission.lineage.event = Some(EventRef::new(NASTY, "id", "type", "subscription"));
    submission.sequence = Some(Sequence::new(vec![valid("b".parse()), valid("c".parse())], true));
    submission
}

/// Everything that was submitted is read as it was, whether it is empty or not, also by who takes it.
pub async fn everything_that_was_submitted_reads_back(store: Store) {
    let target = Target::new(&tenant(), "a");
    let mut empty = target.submission();
    empty.payload = Bytes::new();
    empty.request.headers.clear();
    let mut submissions = BTreeMap::new();
    for submission in [full_submission(&target), empty] {
        accept(&store, target.acceptance_of(submission.clone())).await;
        let kept = target.queued(&store, submission.id).await;
        assert_eq!(*kept.submission, submission);
        submissions.insert(submission.id, submission);
    }
    for taken in take(&store, 2).await {
        assert_eq!(submissions.remove(&id_of(&taken)).as_ref(), Some(&*taken.invocation.submission));
    }
    assert!(submissions.is_empty(), "not all were taken");
}

/// Nothing that serves a caller gives anything of another tenant's, or changes it.
pub async fn tenants_do_not_see_each_others_invocations(store: Store) {
    let target = Target::new(&tenant(), "a");
    let (waiting, dead) = (target.submit(&store).await, target.submit_dead(&store).await);
    let upper = valid(TenantId::new(target.tenant().as_str().to_uppercase()));
    for foreign in [tenant(), upper] {
        let other = Target::new(&foreign, "a");
        for id in [waiting, dead] {
            assert_absent(&store, &foreign, id).await;
            assert_eq!(refused(store.cancel(&foreign, id, HOUR).await), ErrorKind::NotFound);
            assert_eq!(refused(store.purge(&foreign, id).await), ErrorKind::NotFound);
            let redrive = store.redrive(&foreign, id, other.acceptance(), HOUR).await;
            assert_eq!(refused(redrive), ErrorKind::NotFound);
        }
        assert_eq!(dead_ids(&store, &foreign, &DeadLetterFilter::default(), 10).await, []);
        assert_eq!(depth(&store, &foreign, None).await, QueueDepth::default());
        assert_eq!(other.depth(&store).await, QueueDepth::default());
    }
    assert_eq!(target.queued(&store, waiting).await.state, QueueState::Waiting);
    assert!(!target.queued(&store, waiting).await.cancel_requested);
    assert_eq!(target.queued(&store, dead).await.state, QueueState::Dead);
}

/// An id is accepted once: not again in any tenant, nor where a record that was not queued bears it.
pub async fn an_id_is_accepted_once_in_all_tenants(store: Store) {
    let target = Target::new(&tenant(), "a");
    let first = target.acceptance();
    let id = first.submission.id;
    accept(&store, first.clone()).await;
    for other in [Target::new(target.tenant(), "b"), Target::new(&tenant(), "a")] {
        let mut second = other.submission();
        second.id = id;
        assert_eq!(refused(store.accept(other.acceptance_of(second)).await), ErrorKind::AlreadyExists);
        assert_eq!(other.depth(&store).await, QueueDepth::default());
    }
    assert_eq!(refused(store.accept(first.clone()).await), ErrorKind::AlreadyExists);
    assert_eq!(*target.queued(&store, id).await.submission, *first.submission);
    let taken = take_one(&store).await;
    target.end(&store, &taken.lease, false).await;
    assert_eq!(refused(store.accept(first).await), ErrorKind::AlreadyExists);

    let recorded = target.acceptance();
    let mut running = target.record(&recorded.submission);
    running.state = InvocationState::Running;
    store.begin(Arc::new(running.clone())).await.expect("the execution begins");
    let id = running.id;
    assert_eq!(refused(store.accept(recorded).await), ErrorKind::AlreadyExists);
    assert_eq!(queued(&store, target.tenant(), id).await, None);
    assert_eq!(*target.kept_record(&store, id).await, running);
    assert_eq!(target.depth(&store).await, QueueDepth::default());
}

/// Of many that bring one id at the same time, one is accepted.
pub async fn one_of_many_racing_acceptances_of_an_id_wins(store: Store) {
    let id = InvocationId::generate();
    let tenant = tenant();
    let mut race = JoinSet::new();
    for racer in 0..RACERS {
        let (store, target) = (store.clone(), Target::new(&tenant, &format!("f{racer}")));
        race.spawn(async move {
            let mut submission = target.submission();
            submission.id = id;
            (store.accept(target.acceptance_of(submission)).await, target)
        });
    }
    let mut winners = Vec::new();
    for (result, target) in race.join_all().await {
        match result {
            Ok(_) => winners.push(target.key().clone()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}"),
        }
    }
    let kept = queued(&store, &tenant, id).await.expect("it is in the queue");
    assert_eq!(winners.as_slice(), std::slice::from_ref(&kept.submission.key));
    assert_eq!(record(&store, &tenant, id).await.map(|record| record.key.clone()).as_ref(), winners.first());
    assert_eq!(depth(&store, &tenant, None).await, QueueDepth::new(1, 0));
}

/// Each limit refuses what is too much, names itself and keeps nothing; what has ended makes room.
pub async fn each_limit_refuses_and_names_itself(store: Store) {
    let tenant = tenant();
    let (a, b) = (Target::new(&tenant, "a"), Target::new(&tenant, "b"));
    let mut pinned = a.submission();
    pinned.pinned = true;
    accept(&store, a.acceptance_of(pinned)).await;
    b.submit(&store).await;

    let mut no_pins = QueueLimits::NONE;
    no_pins.pinned = 1;
    let cases = [
        ("max_per_function", QueueLimits::new(1, 10)),
        ("max_per_tenant", QueueLimits::new(10, 2)),
        ("max_pinned", no_pins),
    ];
    for (name, limits) in cases {
        let mut submission = a.submission();
        submission.pinned = true;
        let id = submission.id;
        let error = store.accept(a.acceptance_of(submission).with_limits(limits)).await.expect_err("it is too much");
        assert_eq!((error.kind(), error.context_value("limit")), (ErrorKind::RateLimited, Some(name)), "{error}");
        assert_absent(&store, &tenant, id).await;
        assert_eq!(depth(&store, &tenant, None).await, QueueDepth::new(2, 0));
    }
    // Others have room, and what is not pinned is not limited by what is.
    let other = Target::new(&super::tenant(), "a");
    accept(&store, other.acceptance().with_limits(QueueLimits::new(1, 1))).await;
    accept(&store, a.acceptance().with_limits(no_pins)).await;

    for taken in take(&store, 10).await {
        if taken.invocation.submission.key == *a.key() {
            a.end(&store, &taken.lease, true).await;
        }
    }
    let mut submission = a.submission();
    submission.pinned = true;
    let mut limits = QueueLimits::new(1, 2);
    limits.pinned = 1;
    accept(&store, a.acceptance_of(submission).with_limits(limits)).await;
}

/// A limit holds however many come at the same time.
pub async fn limits_hold_under_a_race(store: Store) {
    let target = Target::new(&tenant(), "a");
    let mut race = JoinSet::new();
    for _ in 0..RACERS {
        let (store, target) = (store.clone(), target.clone());
        race.spawn(async move {
            let acceptance = target.acceptance().with_limits(QueueLimits::new(5, 10));
            match store.accept(acceptance).await {
                Ok(_) => 1,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::RateLimited, "{error}");
                    0
                }
            }
        });
    }
    let accepted: u64 = race.join_all().await.into_iter().sum();
    assert_eq!(accepted, 5);
    assert_eq!(target.depth(&store).await, QueueDepth::new(5, 0));
}

/// What is sent again under its key gives what was sent first, how far that may be, whatever the limits, and takes nothing;
/// something else under the key is refused.
pub async fn a_known_key_gives_what_was_sent_first(store: Store) {
    let target = Target::new(&tenant(), "a");
    let first = target.keyed("key", "same");
    let id = first.id;
    accept(&store, target.acceptance_of(first)).await;
    let check = async |state: QueueState| {
        let second = target.acceptance_of(target.keyed("key", "same")).with_limits(QueueLimits::new(0, 0));
        let second_id = second.submission.id;
        let known = known(&store, second.with_lease(HOUR)).await;
        assert_eq!((known.submission.id, known.state), (id, state));
        assert_eq!(known, target.queued(&store, id).await);
        let other = target.acceptance_of(target.keyed("key", "other"));
        let other_id = other.submission.id;
        assert_eq!(refused(store.accept(other).await), ErrorKind::IdempotencyMismatch);
        for id in [second_id, other_id] {
            assert_absent(&store, target.tenant(), id).await;
        }
    };
    check(QueueState::Waiting).await;
    let taken = take_one(&store).await;
    check(QueueState::Leased).await;
    dispatch(&store, &taken.lease, 1).await;
    check(QueueState::Running).await;
    let mut ending = target.ending(&store, id, true).await;
    ending.progress.answer = Some(StoredAnswer::new(500, Vec::new(), Some(Bytes::from_static(b"answer"))));
    settle(&store, &taken.lease, ending).await;
    check(QueueState::Dead).await;
    assert_eq!(target.depth(&store).await, QueueDepth::new(0, 1));
}

/// A key says nothing to another function or tenant, and keys that differ in case or blanks are different.
pub async fn a_key_belongs_to_a_function_of_a_tenant(store: Store) {
    let target = Target::new(&tenant(), "a");
    for other in [&target, &Target::new(target.tenant(), "b"), &Target::new(&tenant(), "a")] {
        for (key, fingerprint) in [("key", "1"), ("KEY", "2"), ("key ", "3"), (" key", "4"), ("kéy", "5")] {
            let fingerprint = format!("{fingerprint}-{}", other.key().name);
            accept(&store, other.acceptance_of(other.keyed(key, &fingerprint))).await;
        }
        let longest = "ä".repeat(IdempotencyKey::MAX_LEN / 2);
        accept(&store, other.acceptance_of(other.keyed(&longest, "6"))).await;
        known(&store, other.acceptance_of(other.keyed(&longest, "6"))).await;
        assert_eq!(other.depth(&store).await.open, 6);
    }
}

/// Of many that send the same under one key at the same time, one is accepted, and all others are given that one.
pub async fn one_of_many_racing_submissions_of_a_key_wins(store: Store) {
    let target = Target::new(&tenant(), "a");
    for round in 0..3 {
        let mut race = JoinSet::new();
        for _ in 0..RACERS {
            let (store, target) = (store.clone(), target.clone());
            race.spawn(async move {
                let submission = target.keyed(&format!("key {round}"), "same");
                let id = submission.id;
                let accepted = store.accept(target.acceptance_of(submission)).await.expect("it is accepted or known");
                (id, accepted)
            });
        }
        let (mut new, mut known, mut all) = (Vec::new(), BTreeSet::new(), Vec::new());
        for (id, accepted) in race.join_all().await {
            all.push(id);
            match accepted {
                Accepted::New { .. } => new.push(id),
                Accepted::Known(first) => {
                    known.insert(first.submission.id);
                }
                other => panic!("it is {other:?}"),
            }
        }
        assert_eq!((new.len(), known.len()), (1, 1));
        assert!(new.iter().all(|id| known.contains(id)));
        for id in all {
            assert_eq!(record(&store, target.tenant(), id).await.is_some(), new.contains(&id));
        }
        assert_eq!(target.depth(&store).await, QueueDepth::new(round + 1, 0));
    }
}

/// Who has something accepted with a lease can execute it at once, and nobody else gets it before that runs out.
pub async fn what_is_accepted_with_a_lease_is_taken_by_nobody_else(store: Store) {
    let target = Target::new(&tenant(), "a");
    let lease = accept(&store, target.acceptance().with_lease(HOUR)).await.expect("it is leased");
    assert!(take(&store, 10).await.is_empty());
    let kept = target.queued(&store, lease.id).await;
    assert_eq!((kept.state, kept.attempts), (QueueState::Leased, 0));
    dispatch(&store, &lease, 1).await;
    target.end(&store, &lease, false).await;

    let left = accept(&store, target.acceptance().with_lease(MOMENT)).await.expect("it is leased");
    let taken = take_one(&store).await;
    assert_eq!(id_of(&taken), left.id);
    assert!(taken.lease.epoch > left.epoch);
    assert_eq!(refused(store.dispatch(&left, Dispatch::new(1, HOUR)).await), ErrorKind::Conflict);
}

/// What is due later is taken no sooner; what was due before is taken at once.
pub async fn what_is_due_later_is_not_taken(store: Store) {
    let target = Target::new(&tenant(), "a");
    let tomorrow = Timestamp::now().plus(24 * HOUR);
    let later = target.submit_due(&store, Due::At(tomorrow)).await;
    let in_an_hour = target.submit_due(&store, Due::In(HOUR)).await;
    let now = target.submit(&store).await;
    let past = Timestamp::from_micros(1_000_001);
    let before = target.submit_due(&store, Due::At(past)).await;
    let soon = target.submit_due(&store, Due::In(Duration::from_millis(20))).await;

    let due = async |id| target.queued(&store, id).await.due_at.expect("it is due");
    assert_eq!((due(later).await, due(before).await), (tomorrow, past));
    let hour = due(in_an_hour).await.since(due(now).await);
    assert!(hour.abs_diff(HOUR) < PATIENCE, "it is due in {hour:?}");

    let mut taken = BTreeSet::new();
    while taken.len() < 3 {
        taken.insert(id_of(&take_one(&store).await));
    }
    assert_eq!(taken, BTreeSet::from([now, before, soon]));
    assert!(take(&store, 10).await.is_empty());
    assert_eq!(target.queued(&store, later).await.state, QueueState::Waiting);
}

/// Within a tenant, what is due first is taken first, in whichever order it came.
pub async fn what_is_due_first_is_taken_first(store: Store) {
    let tenant = tenant();
    let targets = [Target::new(&tenant, "a"), Target::new(&tenant, "b")];
    let mut expected = BTreeMap::new();
    for (number, second) in [5, 2, 9, 1, 8, 3, 7, 4, 6, 0].into_iter().enumerate() {
        let target = targets.iter().cycle().nth(number).expect("there are two");
        let id = target.submit_due(&store, Due::At(Timestamp::from_micros(1_000_000 + second))).await;
        expected.insert(second, id);
    }
    let mut taken = Vec::new();
    for limit in [1, 3, 2, 10] {
        taken.extend(take(&store, limit).await.iter().map(id_of));
    }
    assert_eq!(taken, expected.into_values().collect::<Vec<_>>());
}

/// One tenant's flood does not starve another's queue, though all of it came before, and as long as several have
/// something that is due they take turns.
pub async fn tenants_take_turns_under_a_flood(store: Store) {
    let (flood, trickle) = (Target::new(&tenant(), "a"), Target::new(&tenant(), "a"));
    let mut accepted = JoinSet::new();
    for _ in 0..RACERS {
        let (store, flood) = (store.clone(), flood.clone());
        accepted.spawn(async move {
            for _ in 0..13 {
                flood.submit_due(&store, Due::At(Timestamp::from_micros(1_000_000))).await;
            }
        });
    }
    accepted.join_all().await;
    for _ in 0..3 {
        // Whoever had the last turn.
        take(&store, 1).await;
        trickle.submit(&store).await;
        let taken: Vec<_> = [take(&store, 1).await, take(&store, 1).await].concat();
        assert!(taken.iter().any(|taken| tenant_of(taken) == *trickle.tenant()), "it was passed over");
    }
    trickle.submit(&store).await;
    let taken: BTreeSet<_> = take(&store, 2).await.iter().map(tenant_of).collect();
    assert_eq!(taken.len(), 2, "one of two tenants was passed over");

    let third = Target::new(&tenant(), "a");
    for target in [&trickle, &third].repeat(3) {
        target.submit(&store).await;
    }
    for _ in 0..3 {
        let mut turn = BTreeSet::new();
        for _ in 0..3 {
            turn.extend(take(&store, 1).await.iter().map(tenant_of));
        }
        assert_eq!(turn.len(), 3, "one of three tenants was passed over");
    }
}

/// A take gives no more than was asked for, in all and of one tenant, and nothing where nothing is asked for.
pub async fn a_take_keeps_to_its_bounds(store: Store) {
    let targets = [Target::new(&tenant(), "a"), Target::new(&tenant(), "a")];
    for target in targets.iter().cycle().take(12) {
        target.submit(&store).await;
    }
    assert!(take(&store, 0).await.is_empty());
    let taken = take_by(&store, TakeRequest::new(10, HOUR).with_per_tenant(2)).await;
    let mut of_tenants = BTreeMap::new();
    for taken in &taken.items {
        *of_tenants.entry(tenant_of(taken)).or_insert(0) += 1;
    }
    assert_eq!(of_tenants.into_values().collect::<Vec<_>>(), [2, 2]);
    assert_eq!(taken.next_due, Some(Duration::ZERO), "there is more");
    assert_eq!(take(&store, 3).await.len(), 3);
    assert_eq!(take(&store, 10).await.len(), 5);
}

/// Who takes is told when the next one is due: at once where there is more, never later than it is, and not at once where
/// nothing is.
pub async fn the_next_due_time_is_told(store: Store) {
    let target = Target::new(&tenant(), "a");
    let next = async |limit| take_by(&store, TakeRequest::new(limit, 2 * HOUR)).await.next_due;
    assert_eq!(next(1).await, None, "nothing is there");
    target.submit_due(&store, Due::In(3 * HOUR)).await;
    let expected = |due: Option<Duration>, least: Duration, most: Duration| {
        let due = due.expect("the next one is due");
        assert!(due <= most && due > least, "the next one is due in {due:?}, which is not {least:?} to {most:?}");
    };
    expected(next(1).await, 2 * HOUR, 3 * HOUR);
    for _ in 0..3 {
        target.submit(&store).await;
    }
    assert_eq!(next(2).await, Some(Duration::ZERO), "there is one more");
    // The leases of those that were taken are what comes next.
    expected(next(10).await, HOUR, 2 * HOUR);
    Target::new(&tenant(), "a").submit_due(&store, Due::In(HOUR)).await;
    expected(next(10).await, Duration::ZERO, HOUR);
}

/// However many take at the same time, each invocation goes to one of them.
pub async fn racing_takers_never_get_the_same(store: Store) {
    let targets = [Target::new(&tenant(), "a"), Target::new(&tenant(), "a"), Target::new(&tenant(), "a")];
    let mut expected = BTreeSet::new();
    for target in targets.iter().cycle().take(60) {
        expected.insert(target.submit(&store).await);
    }
    let mut race = JoinSet::new();
    for racer in 0..RACERS {
        let store = store.clone();
        race.spawn(async move {
            let mut mine = Vec::new();
            // Nothing says that a taker gets all that there is while others take.
            for _ in 0..100 {
                let taken = take(&store, 1 + racer % 3).await;
                if taken.is_empty() {
                    break;
                }
                mine.extend(taken.iter().map(id_of));
            }
            mine
        });
    }
    let mut taken: Vec<_> = race.join_all().await.into_iter().flatten().collect();
    while taken.len() < expected.len() {
        taken.push(id_of(&take_one(&store).await));
    }
    assert_eq!(taken.len(), expected.len(), "one was taken twice");
    assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), expected);
}

/// A lease whose time is over writes nothing, though nobody else has taken the invocation.
pub async fn a_lease_that_ran_out_writes_nothing(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let lease = take_one_for(&store, MOMENT).await.lease;
    // As long as it holds, a dispatch prolongs it by no more than that.
    let error =
        eventually("the end of the lease", async || store.dispatch(&lease, Dispatch::new(1, MOMENT)).await.err());
    assert_eq!(error.await.kind(), ErrorKind::Conflict);
    let (kept, recorded) = (target.queued(&store, id).await, target.kept_record(&store, id).await);
    assert_eq!(refused(store.settle(&lease, again(Due::Now, 0)).await), ErrorKind::Conflict);
    let ending = target.ending(&store, id, false).await;
    assert_eq!(refused(store.settle(&lease, ending).await), ErrorKind::Conflict);
    assert_eq!((target.queued(&store, id).await, target.kept_record(&store, id).await), (kept, recorded));
    assert_eq!(id_of(&take_one(&store).await), id);
}

/// A lease that somebody else has taken over writes nothing, and takes nothing from its new holder.
pub async fn a_lease_that_was_taken_over_writes_nothing(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let old = take_one_for(&store, MOMENT).await.lease;
    let new = take_one(&store).await.lease;
    assert_eq!(new.id, id);
    assert!(new.epoch > old.epoch);
    let unknown = QueueLease::new(InvocationId::generate(), new.epoch);
    for lost in [old, unknown, QueueLease::new(id, new.epoch + 1)] {
        assert_eq!(refused(store.dispatch(&lost, Dispatch::new(1, HOUR)).await), ErrorKind::Conflict);
        assert_eq!(refused(store.settle(&lost, again(Due::Now, 5)).await), ErrorKind::Conflict);
        let ending = target.ending(&store, id, true).await;
        assert_eq!(refused(store.settle(&lost, ending).await), ErrorKind::Conflict);
    }
    assert_eq!(target.queued(&store, id).await.state, QueueState::Leased);
    assert_eq!(target.kept_record(&store, id).await.state, InvocationState::Queued);
    dispatch(&store, &new, 1).await;
    target.end(&store, &new, false).await;
}

/// What was taken and not dispatched comes back as if it had not been taken.
pub async fn what_was_not_dispatched_is_as_if_it_had_not_been_taken(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let mut epoch = 0;
    for _ in 0..3 {
        let taken = take_one_for(&store, MOMENT).await;
        let invocation = &taken.invocation;
        assert_eq!((id_of(&taken), invocation.attempts), (id, 0));
        assert!(matches!(invocation.state, QueueState::Waiting | QueueState::Leased), "{:?}", invocation.state);
        assert_eq!(invocation.progress, Progress::default());
        assert!(taken.lease.epoch > epoch, "an epoch was given twice");
        epoch = taken.lease.epoch;
        assert_eq!(target.kept_record(&store, id).await.state, InvocationState::Queued);
    }
    assert_eq!(target.depth(&store).await, QueueDepth::new(1, 0));
}

/// What was dispatched comes back as running, with the number of its attempt and what was said about repeating it, until
/// somebody settles it.
pub async fn what_was_dispatched_comes_back_running(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let mut lease = take_one(&store).await.lease;
    for (attempt, repeatable) in [(1, true), (2, false), (3, true)] {
        let noted = Dispatch::new(attempt, MOMENT).repeatable(repeatable);
        store.dispatch(&lease, noted).await.expect("the attempt is noted");
        // Neither is it anything else for who comes after somebody that did nothing.
        for held in [MOMENT, HOUR] {
            let taken = take_one_for(&store, held).await;
            let seen = (id_of(&taken), taken.invocation.state, taken.invocation.attempts, taken.repeatable);
            assert_eq!(seen, (id, QueueState::Running, attempt, repeatable));
            assert_eq!(target.kept_record(&store, id).await.state, InvocationState::Running);
            lease = taken.lease;
        }
    }
    settle(&store, &lease, again(Due::Now, 3)).await;
    let taken = take_one(&store).await;
    assert_ne!(taken.invocation.state, QueueState::Running);
    assert_eq!((id_of(&taken), taken.invocation.attempts), (id, 3));
}

/// A dispatch is noted with the number of its attempt, and the record is running from then on, and else as it was.
pub async fn a_dispatch_makes_the_record_running(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let mut expected = InvocationRecord::clone(&*target.kept_record(&store, id).await);
    let lease = take_one_for(&store, HOUR).await.lease;
    let leased = target.queued(&store, id).await;
    assert_eq!((leased.state, leased.attempts), (QueueState::Leased, 0));
    assert_eq!(*target.kept_record(&store, id).await, expected);

    store.dispatch(&lease, Dispatch::new(1, 2 * HOUR)).await.expect("the attempt is noted");
    let running = target.queued(&store, id).await;
    assert_eq!((running.state, running.attempts), (QueueState::Running, 1));
    let prolonged = running.due_at.zip(leased.due_at).map(|(now, before)| now.since(before));
    assert!(prolonged.is_some_and(|prolonged| prolonged >= HOUR), "by {prolonged:?}");
    expected.state = InvocationState::Running;
    assert_eq!(*target.kept_record(&store, id).await, expected);
    assert_eq!(records_in(&store, target.tenant(), InvocationState::Running).await, [id]);
    assert_eq!(records_in(&store, target.tenant(), InvocationState::Queued).await, []);
    assert!(take(&store, 10).await.is_empty());
}

/// Dispatching an attempt again only prolongs its lease.
pub async fn a_dispatch_can_be_repeated(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let lease = take_one(&store).await.lease;
    let mut due_at = None;
    for _ in 0..3 {
        dispatch(&store, &lease, 1).await;
        let kept = target.queued(&store, id).await;
        assert_eq!((kept.state, kept.attempts), (QueueState::Running, 1));
        assert!(kept.due_at >= due_at);
        due_at = kept.due_at;
    }
    target.end(&store, &lease, false).await;
}

/// What goes on waits until it is due, with the attempts and the progress that were settled, and its record is queued again.
pub async fn what_goes_on_waits_again_with_its_progress(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let mut expected = InvocationRecord::clone(&*target.kept_record(&store, id).await);
    let lease = take_one(&store).await.lease;
    dispatch(&store, &lease, 1).await;
    let mut progress = full_progress();
    progress.redriven_as = None;
    let due_at = Timestamp::now().plus(HOUR);
    let mut settlement = again(Due::At(due_at), 1);
    settlement.progress = progress.clone();
    settle(&store, &lease, settlement).await;

    let kept = target.queued(&store, id).await;
    assert_eq!((kept.state, kept.attempts, kept.due_at), (QueueState::Waiting, 1, Some(due_at)));
    assert_eq!((&kept.progress, kept.ended_at, kept.expires_at), (&progress, None, None));
    expected.state = InvocationState::Queued;
    assert_eq!(*target.kept_record(&store, id).await, expected);
    assert_eq!(records_in(&store, target.tenant(), InvocationState::Queued).await, [id]);
    assert!(take(&store, 10).await.is_empty(), "it is not due yet");
    assert_eq!(refused(store.dispatch(&lease, Dispatch::new(2, HOUR)).await), ErrorKind::Conflict);
    assert_eq!(refused(store.settle(&lease, again(Due::Now, 1)).await), ErrorKind::Conflict);

    // An attempt that was not sent does not count.
    let id = target.submit(&store).await;
    let lease = take_one(&store).await.lease;
    dispatch(&store, &lease, 1).await;
    settle(&store, &lease, again(Due::In(Duration::from_millis(5)), 0)).await;
    let taken = take_one(&store).await;
    assert_eq!((id_of(&taken), taken.invocation.attempts), (id, 0));
    assert!(taken.lease.epoch > lease.epoch);
}

/// Progress with everything that it can hold.
fn full_progress() -> Progress {
    let mut progress = Progress::default();
    let at = |micros: i64| Timestamp::from_micros(1_700_000_000_000_000 + micros);
    let mut failed = Attempt::new(1, at(0), at(1));
    failed.generation = Generation::new(7);
    failed.status = Some(503);
    failed.failure = Some(failure(NASTY));
    progress.add(failed);
    progress.add(Attempt::new(2, at(2), at(3)));
    progress.failure = Some(failure("for good"));
    progress.answer = Some(answer(Some(Bytes::from_static(&[0, 0xff, b'\'', 0]))));
    progress.redriven_as = Some(InvocationId::generate());
    progress
}

fn answer(body: Option<Bytes>) -> StoredAnswer {
    let headers = [("x-a", NASTY), ("x-a", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut answer = StoredAnswer::new(500, headers.into(), body);
    answer.failure = Some(failure(NASTY));
    answer
}

/// What has ended is kept with its answer, an empty one or one that was not kept included, and its record is the one that it
/// ended with. Statistics count it once.
pub async fn what_has_ended_keeps_its_answer_and_its_final_record(store: Store) {
    let target = Target::new(&tenant(), "a");
    for body in [Some(Bytes::from_static(&[0, 0xff, b'\'', 0])), Some(Bytes::new()), None] {
        let id = target.submit(&store).await;
        let lease = take_one(&store).await.lease;
        dispatch(&store, &lease, 1).await;
        let ended = target.ended(&store, id, InvocationState::Failed).await;
        let mut progress = full_progress();
        progress.redriven_as = None;
        progress.answer = Some(answer(body));
        let record = Some(Arc::new(ended.clone()));
        let due_before = target.queued(&store, id).await.due_at.expect("it is leased");
        let settled = Settled::Ended { record, dead: false, keep_for: HOUR };
        settle(&store, &lease, Settlement::new(settled, progress.clone())).await;

        let kept = target.queued(&store, id).await;
        assert_eq!((kept.state, kept.attempts, kept.due_at), (QueueState::Done, 1, None));
        assert_eq!(kept.progress, progress);
        assert_eq!(kept.submission.payload, "payload");
        let ended_at = kept.ended_at.expect("it has ended");
        assert!(ended_at < due_before && due_before.since(ended_at) <= HOUR, "it ended at {ended_at}");
        let kept_for = kept.expires_at.expect("it is not kept for ever").since(ended_at);
        assert!(kept_for.abs_diff(HOUR) < PATIENCE, "it is kept for {kept_for:?}");
        assert_eq!(*target.kept_record(&store, id).await, ended);
    }
    assert_eq!(records_in(&store, target.tenant(), InvocationState::Failed).await.len(), 3);
    assert_eq!(records_in(&store, target.tenant(), InvocationState::Running).await, []);
    assert_eq!(counted(&store, target.tenant()).await, 3);
    assert!(take(&store, 10).await.is_empty());
}

/// How many executions statistics count.
async fn counted(store: &Store, tenant: &TenantId) -> u64 {
    store.flush().await.expect("the store is flushed");
    let now = Timestamp::now();
    let query = StatisticsQuery::new(now.minus(HOUR), now.plus(HOUR));
    store.statistics(tenant, &query).await.expect("statistics are read").count
}

/// What has ended is settled no more, by whoever and in no way.
pub async fn an_invocation_ends_once(store: Store) {
    let target = Target::new(&tenant(), "a");
    for dead in [false, true] {
        let id = target.submit(&store).await;
        let lease = take_one(&store).await.lease;
        target.end(&store, &lease, dead).await;
        let (kept, recorded) = (target.queued(&store, id).await, target.kept_record(&store, id).await);
        let next = QueueLease::new(id, lease.epoch + 1);
        for lease in [lease, next] {
            assert_eq!(refused(store.dispatch(&lease, Dispatch::new(1, HOUR)).await), ErrorKind::Conflict);
            assert_eq!(refused(store.settle(&lease, again(Due::Now, 0)).await), ErrorKind::Conflict);
            let ending = target.ending(&store, id, !dead).await;
            assert_eq!(refused(store.settle(&lease, ending).await), ErrorKind::Conflict);
        }
        assert_eq!((target.queued(&store, id).await, target.kept_record(&store, id).await), (kept, recorded));
    }
    assert_eq!(counted(&store, target.tenant()).await, 2);
    assert!(take(&store, 10).await.is_empty());
}

/// Of many that settle under one lease at the same time, one wins; what it wrote stays, and counts.
pub async fn one_of_many_racing_settlements_wins(store: Store) {
    let target = Target::new(&tenant(), "a");
    for round in 1..=5 {
        let id = target.submit(&store).await;
        let lease = take_one(&store).await.lease;
        let mut race = JoinSet::new();
        for racer in 0..RACERS {
            let mut ending = target.ending(&store, id, racer % 2 == 0).await;
            ending.progress.failure = Some(failure(&racer.to_string()));
            let follower = target.acceptance().with_due(Due::In(HOUR));
            let followed_by = follower.submission.id;
            ending.followers.push(follower);
            let store = store.clone();
            race.spawn(async move { (store.settle(&lease, ending).await, racer, followed_by) });
        }
        let (mut winners, mut followers) = (Vec::new(), Vec::new());
        for (result, racer, follower) in race.join_all().await {
            match result {
                Ok(()) => winners.push(Some(failure(&racer.to_string()))),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
            }
            followers.extend(queued(&store, target.tenant(), follower).await);
        }
        let kept = target.queued(&store, id).await;
        assert_eq!(winners.as_slice(), std::slice::from_ref(&kept.progress.failure));
        assert_eq!(followers.len(), 1, "each settlement brings a follower of its own");
        assert_eq!(counted(&store, target.tenant()).await, round);
    }
}

/// What is accepted as a consequence is there when its cause is settled, with its record, whatever the limits.
pub async fn followers_are_accepted_in_the_same_step(store: Store) {
    let tenant = tenant();
    let (target, next) = (Target::new(&tenant, "a"), Target::new(&tenant, "b"));
    for (number, dead) in [(1, false), (2, true)] {
        let id = target.submit(&store).await;
        let lease = take_one(&store).await.lease;
        let mut ending = target.ending(&store, id, dead).await;
        let mut submission = next.submission();
        submission.lineage.parent = Some(id);
        let at_once = next.acceptance_of(submission).with_limits(QueueLimits::new(0, 0));
        let later = next.acceptance().with_due(Due::In(HOUR)).with_limits(QueueLimits::new(0, 0));
        ending.followers = vec![at_once.clone(), later.clone()];
        settle(&store, &lease, ending).await;
        for follower in [&at_once, &later] {
            let kept = queued(&store, &tenant, follower.submission.id).await.expect("the follower is there");
            assert_eq!((kept.state, &kept.submission), (QueueState::Waiting, &follower.submission));
            assert_eq!(record(&store, &tenant, follower.submission.id).await, follower.record);
        }
        let taken = take_one(&store).await;
        assert_eq!(id_of(&taken), at_once.submission.id);
        next.end(&store, &taken.lease, false).await;
        assert_eq!(next.depth(&store).await, QueueDepth::new(number, 0));
    }
    // Also where it goes on.
    let id = target.submit(&store).await;
    let mut settlement = again(Due::In(HOUR), 1);
    settlement.followers.push(next.acceptance());
    let lease = take_one(&store).await.lease;
    assert_eq!(lease.id, id);
    settle(&store, &lease, settlement).await;
    assert_eq!(next.depth(&store).await, QueueDepth::new(3, 0));
}

/// Where a settlement is refused, nothing is accepted as its consequence.
pub async fn followers_of_a_lost_lease_are_not_accepted(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit(&store).await;
    let lost = take_one_for(&store, MOMENT).await.lease;
    let lease = take_one(&store).await.lease;
    assert_eq!(lease.id, id);
    let follower = target.acceptance();
    let mut ending = target.ending(&store, id, false).await;
    ending.followers.push(follower.clone());
    assert_eq!(refused(store.settle(&lost, ending).await), ErrorKind::Conflict);
    assert_absent(&store, target.tenant(), follower.submission.id).await;
    assert_eq!(target.depth(&store).await, QueueDepth::new(1, 0));
}

/// What is there already, by its id or by its key, is no obstacle to settling its cause, and is not there twice.
pub async fn followers_that_are_there_already_are_left_out(store: Store) {
    let target = Target::new(&tenant(), "a");
    let there = target.acceptance_of(target.keyed("key", "same")).with_due(Due::In(HOUR));
    accept(&store, there.clone()).await;
    let id = target.submit(&store).await;
    let lease = take_one(&store).await.lease;
    let (same_key, other_payload) = (target.keyed("key", "same"), target.keyed("key", "other"));
    let fresh = target.acceptance().with_due(Due::In(HOUR));
    let mut ending = target.ending(&store, id, false).await;
    let keyed = [same_key, other_payload].map(|submission| target.acceptance_of(submission));
    let left_out = keyed.each_ref().map(|acceptance| acceptance.submission.id);
    ending.followers = [vec![there.clone(), fresh.clone(), fresh.clone()], keyed.into()].concat();
    settle(&store, &lease, ending).await;
    assert_eq!(target.queued(&store, id).await.state, QueueState::Done);
    for follower in [&there, &fresh] {
        assert_eq!(*target.queued(&store, follower.submission.id).await.submission, *follower.submission);
    }
    for id in left_out {
        assert_absent(&store, target.tenant(), id).await;
    }
    assert_eq!(target.depth(&store).await, QueueDepth::new(2, 0));
}

/// A callback is accepted, tried and ended without a record.
pub async fn a_callback_has_no_record(store: Store) {
    let target = Target::new(&tenant(), "a");
    let mut submission = target.submission();
    submission.work = Work::Callback { url: "https://example.org".to_owned(), secret: None };
    let id = submission.id;
    accept(&store, Acceptance::new(Arc::new(submission), None)).await;
    let lease = take_one(&store).await.lease;
    dispatch(&store, &lease, 1).await;
    settle(&store, &lease, again(Due::Now, 1)).await;
    let lease = take_one(&store).await.lease;
    dispatch(&store, &lease, 2).await;
    let settled = Settled::Ended { record: None, dead: true, keep_for: HOUR };
    settle(&store, &lease, Settlement::new(settled, Progress::default())).await;
    let kept = target.queued(&store, id).await;
    assert_eq!((kept.state, kept.attempts), (QueueState::Dead, 2));
    assert_eq!(record(&store, target.tenant(), id).await, None);
    assert_eq!(counted(&store, target.tenant()).await, 0);
}

/// A dead letter is kept without end, with its payload, its attempts and its last answer.
pub async fn a_dead_letter_reads_back_with_payload_and_attempts(store: Store) {
    let target = Target::new(&tenant(), "a");
    let submission = full_submission(&target);
    let id = submission.id;
    let lease = accept(&store, target.acceptance_of(submission.clone()).with_lease(HOUR)).await.expect("it is leased");
    dispatch(&store, &lease, 2).await;
    let mut progress = full_progress();
    progress.redriven_as = None;
    let mut ending = target.ending(&store, id, true).await;
    ending.progress = progress.clone();
    settle(&store, &lease, ending).await;
    let kept = target.queued(&store, id).await;
    assert_eq!((kept.state, kept.attempts, kept.due_at, kept.expires_at), (QueueState::Dead, 2, None, None));
    assert!(kept.ended_at.is_some());
    assert_eq!((&*kept.submission, &kept.progress), (&submission, &progress));
    // The list has all but what may be large.
    let listed = dead_letters(&store, target.tenant(), &DeadLetterFilter::default(), 10).await;
    let mut expected = QueuedInvocation::clone(&kept);
    let mut without_payload = submission;
    without_payload.payload = Bytes::new();
    expected.submission = Arc::new(without_payload);
    if let Some(answer) = &mut expected.progress.answer {
        answer.body = None;
    }
    assert_eq!(listed, [Arc::new(expected)]);
}

/// Dead letters are listed by when they died, the last one first, whatever the size of the pages, by name where that is
/// wanted, and nothing else is listed.
pub async fn dead_letters_are_listed_by_their_death(store: Store) {
    let tenant = tenant();
    let (a, b) = (Target::new(&tenant, "a"), Target::new(&tenant, "b"));
    let mut leases = Vec::new();
    for target in [&a, &b].repeat(4) {
        let lease = accept(&store, target.acceptance().with_lease(HOUR)).await.expect("it is leased");
        leases.push((target, lease));
    }
    a.submit_due(&store, Due::In(HOUR)).await;
    accept(&store, b.acceptance().with_lease(HOUR)).await;
    // Neither in the order in which they came, nor in its reverse.
    leases.rotate_left(3);
    leases.swap(1, 4);
    let mut deaths = Vec::new();
    for (number, (target, lease)) in leases.into_iter().enumerate() {
        let dead = number != 5;
        target.end(&store, &lease, dead).await;
        if dead {
            let ended_at = target.queued(&store, lease.id).await.ended_at;
            deaths.push((ended_at, lease.id, target.key().clone()));
        }
    }
    deaths.sort();
    let newest_first = |of: Option<&Target>| -> Vec<_> {
        let meant = deaths.iter().rev().filter(|(_, _, key)| of.is_none_or(|target| target.key() == key));
        meant.map(|(_, id, _)| *id).collect()
    };
    for limit in [1, 3, 7, 1000] {
        let all = dead_ids(&store, &tenant, &DeadLetterFilter::default(), limit).await;
        assert_eq!(all, newest_first(None));
        for target in [&a, &b] {
            let filter = DeadLetterFilter::of(target.key().name.clone());
            assert_eq!(dead_ids(&store, &tenant, &filter, limit).await, newest_first(Some(target)));
        }
    }
    let none = DeadLetterFilter::of(valid("c".parse()));
    assert_eq!(dead_ids(&store, &tenant, &none, 10).await, []);
    let filter = DeadLetterFilter::default();
    let exact = store.dead_letters(&tenant, &filter, &PageRequest::first(7)).await.expect("a page is read");
    assert_eq!((exact.items.len(), exact.next), (7, None));
}

/// While dead letters are read page by page and others come and go, those that stay appear once each.
pub async fn a_list_of_dead_letters_stays_whole_while_they_come_and_go(store: Store) {
    let target = Target::new(&tenant(), "a");
    let mut first = Vec::new();
    for _ in 0..12 {
        first.push(target.submit_dead(&store).await);
    }
    let (gone, stay): (Vec<_>, Vec<_>) = first.into_iter().enumerate().partition(|(number, _)| number % 3 == 0);
    let mut gone: Vec<_> = gone.into_iter().map(|(_, id)| id).collect();
    let filter = DeadLetterFilter::default();
    let seen = all_pages(3, async |page| {
        let page = store.dead_letters(target.tenant(), &filter, &page).await.expect("a page is read");
        target.submit_dead(&store).await;
        if let Some(id) = gone.pop() {
            store.purge(target.tenant(), id).await.expect("it is purged");
        }
        page
    });
    let seen: Vec<_> = seen.await.iter().map(|dead| dead.submission.id).collect();
    let once: BTreeSet<_> = seen.iter().copied().collect();
    assert_eq!(once.len(), seen.len(), "a dead letter appears twice");
    assert!(stay.iter().all(|(_, id)| once.contains(id)), "a dead letter is lost");
}

/// Lists refuse cursors of other lists, and what is no cursor.
pub async fn cursors_of_other_lists_give_no_dead_letters(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit_dead(&store).await;
    let kinds = super::CURSORS.map(|kind| Cursor::after(kind, "neither time nor id"));
    let audit = Cursor::after(CursorKind::Audit, &format!("0/{id}"));
    let garbage = ["", "AA", "not a cursor", "ä", &"A".repeat(5000)].map(Cursor::from_text);
    for cursor in kinds.into_iter().chain([audit]).chain(garbage) {
        let page = PageRequest::default().after(cursor);
        let result = store.dead_letters(target.tenant(), &DeadLetterFilter::default(), &page).await;
        assert_eq!(refused(result), ErrorKind::InvalidArgument, "{page:?}");
    }
}

/// In place of a dead letter another invocation waits, of which it bears the name; its record stays as it was.
pub async fn a_dead_letter_is_redriven_by_another_invocation(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit_dead(&store).await;
    let (before, recorded) = (target.queued(&store, id).await, target.kept_record(&store, id).await);
    let mut submission = target.submission();
    submission.lineage.redrive_of = Some(id);
    let next = target.acceptance_of(submission);
    store.redrive(target.tenant(), id, next.clone(), HOUR).await.expect("it is redriven");
    let mut expected = QueuedInvocation::clone(&before);
    let kept = target.queued(&store, id).await;
    let kept_for = kept.expires_at.zip(kept.ended_at).map(|(until, ended)| until.since(ended));
    assert!(kept_for.is_some_and(|kept_for| kept_for.abs_diff(HOUR) < PATIENCE), "it is kept for {kept_for:?}");
    (expected.state, expected.expires_at) = (QueueState::Redriven, kept.expires_at);
    expected.progress.redriven_as = Some(next.submission.id);
    assert_eq!(*kept, expected);
    assert_eq!(target.kept_record(&store, id).await, recorded);
    assert_eq!(dead_ids(&store, target.tenant(), &DeadLetterFilter::default(), 10).await, []);
    assert_eq!(record(&store, target.tenant(), next.submission.id).await, next.record);
    let taken = take_one(&store).await;
    assert_eq!((id_of(&taken), &taken.invocation.submission), (next.submission.id, &next.submission));
    assert_eq!(refused(store.purge(target.tenant(), id).await), ErrorKind::Conflict);
}

/// Of many that redrive a dead letter at the same time, one does.
pub async fn one_of_many_racing_redrives_wins(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.submit_dead(&store).await;
    let mut race = JoinSet::new();
    for _ in 0..RACERS {
        let (store, target) = (store.clone(), target.clone());
        race.spawn(async move {
            let next = target.acceptance();
            let next_id = next.submission.id;
            (store.redrive(target.tenant(), id, next, HOUR).await, next_id)
        });
    }
    let mut winners = Vec::new();
    for (result, next) in race.join_all().await {
        match result {
            Ok(()) => winners.push(Some(next)),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
                assert_absent(&store, target.tenant(), next).await;
            }
        }
    }
    assert_eq!(winners, [target.queued(&store, id).await.progress.redriven_as]);
    assert_eq!(target.depth(&store).await, QueueDepth::new(1, 0));
}

/// Only what is dead is redriven, and only by what is accepted; what is refused changes nothing.
pub async fn a_redrive_that_is_refused_changes_nothing(store: Store) {
    let target = Target::new(&tenant(), "a");
    let dead = target.submit_dead(&store).await;
    let waiting = target.submit_due(&store, Due::In(HOUR)).await;
    let done = accept(&store, target.acceptance().with_lease(HOUR)).await.expect("it is leased");
    target.end(&store, &done, false).await;
    let mut taken_id = target.submission();
    taken_id.id = waiting;
    let full = target.acceptance().with_limits(QueueLimits::new(1, 10));
    let cases = [
        (dead, full, ErrorKind::RateLimited),
        (dead, target.acceptance_of(taken_id), ErrorKind::AlreadyExists),
        (waiting, target.acceptance(), ErrorKind::Conflict),
        (done.id, target.acceptance(), ErrorKind::Conflict),
        (InvocationId::generate(), target.acceptance(), ErrorKind::NotFound),
    ];
    for (id, next, kind) in cases {
        let next_id = next.submission.id;
        assert_eq!(refused(store.redrive(target.tenant(), id, next, HOUR).await), kind);
        if next_id != waiting {
            assert_absent(&store, target.tenant(), next_id).await;
        }
    }
    let states = [QueueState::Dead, QueueState::Waiting, QueueState::Done];
    for (id, state) in [dead, waiting, done.id].into_iter().zip(states) {
        let kept = target.queued(&store, id).await;
        assert_eq!((kept.state, kept.progress.redriven_as), (state, None));
    }
    assert_eq!(target.depth(&store).await, QueueDepth::new(1, 1));
}

/// A dead letter that is purged is gone, but for its record; what is not dead can't be purged.
pub async fn a_purged_dead_letter_is_gone(store: Store) {
    let target = Target::new(&tenant(), "a");
    let dead = target.submit_dead(&store).await;
    let waiting = target.submit_due(&store, Due::In(HOUR)).await;
    let done = accept(&store, target.acceptance().with_lease(HOUR)).await.expect("it is leased");
    for id in [waiting, done.id] {
        assert_eq!(refused(store.purge(target.tenant(), id).await), ErrorKind::Conflict);
    }
    target.end(&store, &done, false).await;
    assert_eq!(refused(store.purge(target.tenant(), done.id).await), ErrorKind::Conflict);

    store.purge(target.tenant(), dead).await.expect("it is purged");
    assert_eq!(queued(&store, target.tenant(), dead).await, None);
    assert_eq!(target.kept_record(&store, dead).await.state, InvocationState::Failed);
    assert_eq!(dead_ids(&store, target.tenant(), &DeadLetterFilter::default(), 10).await, []);
    assert_eq!(refused(store.purge(target.tenant(), dead).await), ErrorKind::NotFound);
    assert_eq!(target.depth(&store).await, QueueDepth::new(1, 0));
}

/// One that waits is taken by its cancellation, also if it is not due yet; where that is not settled, who takes it next
/// sees the wish.
pub async fn a_waiting_invocation_is_taken_by_its_cancellation(store: Store) {
    let target = Target::new(&tenant(), "a");
    for due in [Due::Now, Due::In(HOUR)] {
        let id = target.submit_due(&store, due).await;
        let Cancelling::Taken(taken) = cancel(&store, target.tenant(), id).await else { panic!("it was waiting") };
        assert_eq!((id_of(&taken), taken.invocation.state), (id, QueueState::Waiting));
        let kept = target.queued(&store, id).await;
        assert_eq!((kept.state, kept.cancel_requested), (QueueState::Leased, true));
        assert!(take(&store, 10).await.is_empty());
        let record = Some(Arc::new(target.ended(&store, id, InvocationState::Cancelled).await));
        let settled = Settled::Ended { record, dead: false, keep_for: HOUR };
        settle(&store, &taken.lease, Settlement::new(settled, Progress::default())).await;
        assert_eq!(target.kept_record(&store, id).await.state, InvocationState::Cancelled);
    }
    let id = target.submit(&store).await;
    let cancelling = store.cancel(target.tenant(), id, MOMENT).await.expect("the wish is noted");
    assert!(matches!(cancelling, Cancelling::Taken(_)));
    let taken = take_one(&store).await;
    assert_eq!(id_of(&taken), id);
    assert!(taken.invocation.cancel_requested);
    assert_ne!(taken.invocation.state, QueueState::Running);
}

/// Who has an invocation sees the wish that it end, and so does whoever has it next.
pub async fn a_running_invocation_is_told_of_its_cancellation(store: Store) {
    let target = Target::new(&tenant(), "a");
    let (id, other) = (target.submit(&store).await, target.submit(&store).await);
    let mut leases: BTreeMap<_, _> = take(&store, 2).await.iter().map(|taken| (id_of(taken), taken.lease)).collect();
    let lease = leases.remove(&id).expect("it was taken");
    assert_eq!(cancelled(&store, &[id, other]).await, BTreeSet::new());
    assert!(matches!(cancel(&store, target.tenant(), id).await, Cancelling::Requested));
    let ids = [other, InvocationId::generate(), id];
    assert_eq!(cancelled(&store, &ids).await, BTreeSet::from([id]));
    assert_eq!(cancelled(&store, &[]).await, BTreeSet::new());

    // It stays what it is, and whose it is.
    dispatch(&store, &lease, 1).await;
    assert!(matches!(cancel(&store, target.tenant(), id).await, Cancelling::Requested));
    let kept = target.queued(&store, id).await;
    assert_eq!((kept.state, kept.cancel_requested), (QueueState::Running, true));
    settle(&store, &lease, again(Due::Now, 1)).await;
    let taken = take_one_for(&store, MOMENT).await;
    assert_eq!((id_of(&taken), taken.invocation.cancel_requested), (id, true));
    let taken = take_one(&store).await;
    assert_eq!((id_of(&taken), taken.invocation.cancel_requested), (id, true));
    target.end(&store, &taken.lease, false).await;
    assert_eq!(cancelled(&store, &ids).await, BTreeSet::new(), "it has ended");
}

/// What has ended can't be cancelled, and says so; what is not there is not found.
pub async fn what_has_ended_is_not_cancelled(store: Store) {
    let target = Target::new(&tenant(), "a");
    let done = accept(&store, target.acceptance().with_lease(HOUR)).await.expect("it is leased");
    target.end(&store, &done, false).await;
    let (dead, redriven) = (target.submit_dead(&store).await, target.submit_dead(&store).await);
    let next = target.acceptance().with_due(Due::In(HOUR));
    store.redrive(target.tenant(), redriven, next, HOUR).await.expect("it is redriven");
    for id in [done.id, dead, redriven] {
        let before = target.queued(&store, id).await;
        assert!(matches!(cancel(&store, target.tenant(), id).await, Cancelling::Ended));
        assert_eq!(target.queued(&store, id).await, before);
    }
    let nothing = store.cancel(target.tenant(), InvocationId::generate(), HOUR).await;
    assert_eq!(refused(nothing), ErrorKind::NotFound);
}

/// Where takers and cancellations race for an invocation, one of them gets it.
pub async fn a_taker_or_a_cancellation_gets_an_invocation(store: Store) {
    let target = Target::new(&tenant(), "a");
    for _ in 0..5 {
        let id = target.submit(&store).await;
        let mut race = JoinSet::new();
        for racer in 0..RACERS {
            let (store, tenant) = (store.clone(), target.tenant().clone());
            race.spawn(async move {
                if racer % 4 != 0 {
                    return take(&store, 1).await.iter().map(|taken| taken.lease).collect();
                }
                match cancel(&store, &tenant, id).await {
                    Cancelling::Taken(taken) => vec![taken.lease],
                    _ => Vec::new(),
                }
            });
        }
        let holders: Vec<_> = race.join_all().await.into_iter().flatten().collect();
        let [lease] = holders.as_slice() else { panic!("it is held by {holders:?}") };
        assert!(target.queued(&store, id).await.cancel_requested);
        target.end(&store, lease, false).await;
    }
}

/// The depth of the queue counts what has not ended and what is dead, through everything that can happen.
pub async fn the_depth_counts_what_is_open_and_what_is_dead(store: Store) {
    let tenant = tenant();
    let (a, b) = (Target::new(&tenant, "a"), Target::new(&tenant, "b"));
    assert_eq!(depth(&store, &tenant, None).await, QueueDepth::default());
    let check = async |of_a: (u64, u64), of_b: (u64, u64)| {
        assert_eq!(a.depth(&store).await, QueueDepth::new(of_a.0, of_a.1));
        assert_eq!(b.depth(&store).await, QueueDepth::new(of_b.0, of_b.1));
        let all = QueueDepth::new(of_a.0 + of_b.0, of_a.1 + of_b.1);
        assert_eq!(depth(&store, &tenant, None).await, all);
    };
    let first = a.submit(&store).await;
    let later = a.submit_due(&store, Due::In(HOUR)).await;
    b.submit_due(&store, Due::In(HOUR)).await;
    check((2, 0), (1, 0)).await;
    let lease = take_one(&store).await.lease;
    check((2, 0), (1, 0)).await;
    dispatch(&store, &lease, 1).await;
    check((2, 0), (1, 0)).await;
    settle(&store, &lease, again(Due::Now, 1)).await;
    check((2, 0), (1, 0)).await;
    let lease = take_one(&store).await.lease;
    let mut ending = a.ending(&store, first, true).await;
    ending.followers.push(b.acceptance());
    settle(&store, &lease, ending).await;
    check((1, 1), (2, 0)).await;
    let lease = take_one(&store).await.lease;
    b.end(&store, &lease, false).await;
    check((1, 1), (1, 0)).await;
    let Cancelling::Taken(taken) = cancel(&store, &tenant, later).await else { panic!("it was waiting") };
    check((1, 1), (1, 0)).await;
    a.end(&store, &taken.lease, true).await;
    check((0, 2), (1, 0)).await;
    store.redrive(&tenant, first, b.acceptance(), Duration::ZERO).await.expect("it is redriven");
    check((0, 1), (2, 0)).await;
    store.purge(&tenant, later).await.expect("it is purged");
    check((0, 0), (2, 0)).await;
    eventually("the end of its time", async || {
        (store.expire(10).await.expect("what is past its time is forgotten") > 0).then_some(())
    })
    .await;
    check((0, 0), (2, 0)).await;
}

/// What is pinned counts for its function and generation until it ends.
pub async fn pinned_invocations_are_counted_by_generation(store: Store) {
    let target = Target::new(&tenant(), "a");
    let id = target.0.function;
    let (first, second) = (Generation::FIRST, Generation::FIRST.next());
    let accept_pinned = async |generation: Generation| {
        let mut submission = target.submission();
        (submission.pinned, submission.generation) = (true, generation);
        accept(&store, target.acceptance_of(submission).with_lease(HOUR)).await.expect("it is leased")
    };
    target.submit_due(&store, Due::In(HOUR)).await;
    let leases = [accept_pinned(first).await, accept_pinned(first).await, accept_pinned(second).await];
    let namesake = Target::new(target.tenant(), "a");
    let counts = async || (pinned(&store, id, first).await, pinned(&store, id, second).await);
    assert_eq!(counts().await, (2, 1));
    assert_eq!(pinned(&store, namesake.0.function, first).await, 0);
    let [done, dead, again_later] = &leases;
    dispatch(&store, done, 1).await;
    assert_eq!(counts().await, (2, 1));
    target.end(&store, done, false).await;
    assert_eq!(counts().await, (1, 1));
    target.end(&store, dead, true).await;
    settle(&store, again_later, again(Due::In(HOUR), 1)).await;
    assert_eq!(counts().await, (0, 1));
    let mut submission = target.submission();
    submission.pinned = true;
    let next = target.acceptance_of(submission);
    store.redrive(target.tenant(), dead.id, next, HOUR).await.expect("it is redriven");
    assert_eq!(counts().await, (1, 1));
}

/// What has ended is forgotten once its time is over, some at a time, and not before; its record stays, and nothing that is
/// open or dead is forgotten.
pub async fn what_is_past_its_time_is_forgotten(store: Store) {
    let target = Target::new(&tenant(), "a");
    let expire = async |limit| store.expire(limit).await.expect("what is past its time is forgotten");
    let dead = target.submit_dead(&store).await;
    let waiting = target.submit_due(&store, Due::In(HOUR)).await;
    let end = async |keep_for: Duration| {
        let lease = accept(&store, target.acceptance().with_lease(HOUR)).await.expect("it is leased");
        let record = Some(Arc::new(target.ended(&store, lease.id, InvocationState::Succeeded).await));
        let settled = Settled::Ended { record, dead: false, keep_for };
        settle(&store, &lease, Settlement::new(settled, Progress::default())).await;
        lease.id
    };
    let kept = end(HOUR).await;
    let redriven = target.submit_dead(&store).await;
    let next = target.acceptance().with_due(Due::In(HOUR));
    assert_eq!(expire(10).await, 0);
    store.redrive(target.tenant(), redriven, next, Duration::ZERO).await.expect("it is redriven");
    let past = [redriven, end(Duration::ZERO).await, end(MOMENT).await];
    assert_eq!(expire(0).await, 0);
    let mut forgotten = 0;
    eventually("the end of their time", async || {
        let now = expire(2).await;
        assert!(now <= 2, "{now} are more than 2");
        forgotten += now;
        (forgotten >= 3).then_some(())
    })
    .await;
    assert_eq!((forgotten, expire(10).await), (3, 0));
    for id in past {
        assert_eq!(queued(&store, target.tenant(), id).await, None);
        assert!(target.kept_record(&store, id).await.state.is_final());
    }
    for (id, state) in [(kept, QueueState::Done), (dead, QueueState::Dead), (waiting, QueueState::Waiting)] {
        assert_eq!(target.queued(&store, id).await.state, state);
    }
}

/// A key is free again once what was sent under it is forgotten or purged.
pub async fn a_key_is_free_once_its_invocation_is_gone(store: Store) {
    let target = Target::new(&tenant(), "a");
    let lease = accept(&store, target.acceptance_of(target.keyed("key", "1")).with_lease(HOUR)).await;
    let lease = lease.expect("it is leased");
    let record = Some(Arc::new(target.ended(&store, lease.id, InvocationState::Succeeded).await));
    let settled = Settled::Ended { record, dead: false, keep_for: Duration::ZERO };
    settle(&store, &lease, Settlement::new(settled, Progress::default())).await;
    eventually("the end of its time", async || {
        (store.expire(10).await.expect("what is past its time is forgotten") == 1).then_some(())
    })
    .await;
    let lease = accept(&store, target.acceptance_of(target.keyed("key", "2")).with_lease(HOUR)).await;
    let lease = lease.expect("it is leased");
    target.end(&store, &lease, true).await;
    let other = target.acceptance_of(target.keyed("key", "3"));
    assert_eq!(refused(store.accept(other.clone()).await), ErrorKind::IdempotencyMismatch);
    store.purge(target.tenant(), lease.id).await.expect("it is purged");
    accept(&store, other).await;
}

/// Who listens hears of what was accepted or may be taken again, and of what has ended.
pub async fn arrivals_and_endings_are_told(store: Store) {
    let target = Target::new(&tenant(), "a");
    let mut arrivals = store.arrivals();
    target.submit(&store).await;
    signalled(&mut arrivals, "an acceptance").await;
    let lease = take_one(&store).await.lease;
    let mut arrivals = store.arrivals();
    settle(&store, &lease, again(Due::Now, 0)).await;
    signalled(&mut arrivals, "one that may be taken again").await;
    let lease = take_one(&store).await.lease;
    let (mut arrivals, mut endings) = (store.arrivals(), store.endings());
    let mut ending = target.ending(&store, lease.id, true).await;
    ending.followers.push(target.acceptance());
    settle(&store, &lease, ending).await;
    signalled(&mut arrivals, "a follower").await;
    signalled(&mut endings, "an end").await;
    let mut arrivals = store.arrivals();
    store.redrive(target.tenant(), lease.id, target.acceptance(), HOUR).await.expect("it is redriven");
    signalled(&mut arrivals, "a redrive").await;
}

/// Large payloads and answers are kept whole.
pub async fn large_payloads_and_answers_are_kept(store: Store) {
    let target = Target::new(&tenant(), "a");
    let bytes = |seed: u64| -> Bytes {
        let mut random = fastrand::Rng::with_seed(seed);
        std::iter::repeat_with(|| random.u8(..)).take(1024 * 1024).collect()
    };
    let mut submission = target.submission();
    submission.payload = bytes(1);
    let id = submission.id;
    accept(&store, target.acceptance_of(submission)).await;
    let taken = take_one(&store).await;
    assert!(taken.invocation.submission.payload == bytes(1), "the payload is another one");
    let mut ending = target.ending(&store, id, false).await;
    ending.progress.answer = Some(StoredAnswer::new(200, Vec::new(), Some(bytes(2))));
    settle(&store, &taken.lease, ending).await;
    let kept = target.queued(&store, id).await;
    assert!(kept.submission.payload == bytes(1), "the payload is another one");
    let body = kept.progress.answer.as_ref().and_then(|answer| answer.body.as_ref());
    assert!(body == Some(&bytes(2)), "the answer is another one");
}
