//! What is seen only from inside.

use std::collections::VecDeque;
use std::sync::Mutex;

use futures_util::FutureExt as _;

use super::engine::{Dialect, Hear, Migration, Statement, TakeRow};
use super::*;
use crate::{
    CustomWorkload, DriverRef, Due, Function, FunctionSpec, IdempotencyKey, InvocationState, InvokeRequest,
    PageRequest, Principal, Progress, Revision, RevisionReason, Settled, StoredRequest, Submission,
};

fn function(name: &str, description: String) -> (Function, Revision) {
    let key = FunctionKey::new("acme".parse().unwrap(), name.parse().unwrap());
    let mut spec = FunctionSpec::new("local".parse().unwrap(), CustomWorkload::new("none", Vec::<u8>::new().into()));
    spec.description = description;
    let created = (Timestamp::now(), "ann".parse().unwrap());
    let reason = RevisionReason::Created;
    let revision = Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, reason);
    (Function::new(&revision, DriverRef::new("v1")), revision)
}

fn ended() -> Arc<InvocationRecord> {
    let (_, revision) = function("a", String::new());
    let mut record =
        InvocationRecord::new(InvocationId::generate(), &revision, "bob".parse().unwrap(), Timestamp::now());
    (record.state, record.finished_at) = (InvocationState::Succeeded, Some(Timestamp::now()));
    Arc::new(record)
}

/// A query of SQLite, and the steps in which it is carried out.
pub(super) async fn plan_of(store: &SqlStore, statement: Statement) -> (String, Vec<String>) {
    let (text, _) = statement.into_parts();
    let mut session = store.0.engine.reader().await.unwrap();
    let plan = session.rows(store.0.engine.dialect().sql("EXPLAIN QUERY PLAN ").sql(&text)).await.unwrap();
    let plan: Vec<_> = plan.into_iter().map(|mut row| row.text(3).unwrap()).collect();
    assert!(!plan.is_empty(), "{text}");
    (text, plan)
}

/// Fails where a query reads a table or an index from its beginning, or sorts what it has read.
pub(super) async fn is_along_indexes(store: &SqlStore, statement: Statement) {
    let (text, plan) = plan_of(store, statement).await;
    let is_bad = |step: &String| step.starts_with("SCAN") || step.contains("TEMP B-TREE");
    assert!(!plan.iter().any(is_bad), "{text}: {plan:#?}");
}

/// As [`is_along_indexes`], but for the order of what came in the same microsecond.
pub(super) async fn is_along_indexes_of_time(store: &SqlStore, statement: Statement) {
    let (text, plan) = plan_of(store, statement).await;
    let sorts = |step: &str| step.contains("TEMP B-TREE") && step != "USE TEMP B-TREE FOR LAST TERM OF ORDER BY";
    let is_bad = |step: &String| step.starts_with("SCAN") || sorts(step);
    assert!(!plan.iter().any(is_bad), "{text}: {plan:#?}");
}

async fn pragma(store: &SqlStore, text: &str) {
    let mut session = store.0.engine.transaction().await.unwrap();
    session.rows(store.0.engine.dialect().sql(text)).await.unwrap();
    session.commit().await.unwrap();
}

/// What happens to a commit.
#[derive(Debug, Clone, Copy)]
enum Commit {
    Works,
    /// It is done, and its answer is lost.
    Unanswered,
    /// It is not done, and nobody says so.
    Undone,
    /// It is done, its answer is lost, and before anybody looks another process has ended and forgotten all that it did.
    Overtaken,
}

/// An engine whose commits go as they are told.
#[derive(Debug)]
struct Unreliable {
    inner: Arc<dyn Engine>,
    commits: Arc<Mutex<VecDeque<Commit>>>,
}

struct UnreliableSession {
    inner: Box<dyn Session>,
    commit: Commit,
    engine: Arc<dyn Engine>,
}

#[async_trait]
impl Engine for Unreliable {
    fn dialect(&self) -> &'static Dialect {
        self.inner.dialect()
    }

    async fn reader(&self) -> Result<Box<dyn Session>, Fault> {
        self.inner.reader().await
    }

    async fn transaction(&self) -> Result<Box<dyn Session>, Fault> {
        let commit = self.commits.lock().unwrap().pop_front().unwrap_or(Commit::Works);
        let (inner, engine) = (self.inner.transaction().await?, Arc::clone(&self.inner));
        Ok(Box::new(UnreliableSession { inner, commit, engine }))
    }

    async fn exclusive(&self) -> Result<Box<dyn Session>, Fault> {
        self.inner.exclusive().await
    }

    fn migrations(&self) -> &'static [Migration] {
        self.inner.migrations()
    }

    fn listen(&self, hear: Hear) {
        self.inner.listen(hear);
    }

    async fn close(&self) {
        self.inner.close().await;
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }
}

#[async_trait]
impl Session for UnreliableSession {
    fn dialect(&self) -> &'static Dialect {
        self.inner.dialect()
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        self.inner.execute(statement).await
    }

    async fn each(&mut self, statement: Statement, take: TakeRow<'_>) -> Result<(), Fault> {
        self.inner.each(statement, take).await
    }

    async fn script(&mut self, script: &'static str) -> Result<(), Fault> {
        self.inner.script(script).await
    }

    async fn commit(self: Box<Self>) -> Result<(), Fault> {
        match self.commit {
            Commit::Works => return self.inner.commit().await,
            Commit::Unanswered => self.inner.commit().await?,
            Commit::Overtaken => {
                self.inner.commit().await?;
                let mut other = self.engine.transaction().await?;
                other.script("DELETE FROM fg_submissions; DELETE FROM fg_invocations").await?;
                other.commit().await?;
            }
            Commit::Undone => self.inner.release().await,
        }
        let reset = sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        Err(Fault::new(reset, |_| FaultKind::Other).at_commit())
    }

    async fn release(self: Box<Self>) {
        self.inner.release().await;
    }
}

/// A store whose next commits go as they are told, but for those that open it.
async fn unreliable(commits: &[Commit]) -> SqlStore {
    let (store, next) = told().await;
    next.lock().unwrap().extend(commits);
    store
}

/// A store, and what is told of its next commits.
async fn told() -> (SqlStore, Arc<Mutex<VecDeque<Commit>>>) {
    let SqlStore(shared) = SqlStore::open("sqlite::memory:").await.unwrap();
    let Shared { engine, options, gateway, crowded, .. } = &*shared;
    let commits = Arc::<Mutex<VecDeque<Commit>>>::default();
    let engine: Arc<dyn Engine> = Arc::new(Unreliable { inner: Arc::clone(engine), commits: Arc::clone(&commits) });
    let writer = Writer::start(Arc::clone(&engine), Arc::clone(crowded), options, &Handle::current());
    let store = SqlStore(Arc::new(Shared {
        engine,
        options: options.clone(),
        gateway: gateway.clone(),
        writer,
        crowded: Arc::clone(crowded),
        turn: Turn::default(),
        listens: Once::new(),
        undurable: None,
    }));
    (store, commits)
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_counts_once() {
    use Commit::{Unanswered, Undone, Works};
    for commits in [
        &[Unanswered][..],
        &[Undone],
        &[Undone, Unanswered],
        &[Unanswered, Works, Unanswered],
        &[Undone, Undone, Works, Unanswered, Undone, Unanswered],
    ] {
        let store = unreliable(commits).await;
        let mut records = Vec::new();
        for number in 0..3 {
            let record = ended();
            let mut begun = InvocationRecord::clone(&record);
            (begun.state, begun.finished_at) = (InvocationState::Running, None);
            if number == 1 {
                store.begin(Arc::new(begun)).await.unwrap();
            }
            let others: Vec<_> = (0..2).map(|_| ended()).collect();
            for other in &others {
                store.finish(Arc::clone(other), Durability::Buffered).await.unwrap();
            }
            store.finish(Arc::clone(&record), Durability::Durable).await.unwrap();
            assert_eq!(
                store.finish(Arc::clone(&record), Durability::Durable).await.unwrap_err().kind(),
                ErrorKind::Conflict
            );
            records.extend(others.into_iter().chain([record]));
        }
        store.flush().await.unwrap();
        let tenant = records[0].key.tenant.clone();
        for record in &records {
            let kept = InvocationStore::get(&store, &tenant, record.id).await.unwrap();
            assert_eq!(kept.as_ref(), Some(record), "{commits:?}");
        }
        let query = StatisticsQuery::new(Timestamp::from_micros(0), Timestamp::now().plus(Duration::from_secs(60)));
        assert_eq!(store.statistics(&tenant, &query).await.unwrap().count, 9, "{commits:?}");
        let rollups = store.0.engine.dialect().sql("SELECT COUNT(*) FROM fg_rollups");
        let mut session = store.0.engine.reader().await.unwrap();
        let rows = session.row(rollups).await.unwrap().unwrap().int(0).unwrap();
        assert!((1..=2).contains(&rows), "{rows} rows of figures for one function in one minute, or two");
    }
}

#[tokio::test]
async fn an_end_that_was_not_committed_is_not_taken_for_its_beginning() {
    let (store, commits) = told().await;
    let record = ended();
    let mut begun = InvocationRecord::clone(&record);
    (begun.state, begun.finished_at) = (InvocationState::Running, None);
    store.begin(Arc::new(begun)).await.unwrap();
    commits.lock().unwrap().push_back(Commit::Undone);
    store.finish(Arc::clone(&record), Durability::Durable).await.unwrap();
    let kept = InvocationStore::get(&store, &record.key.tenant, record.id).await.unwrap();
    assert_eq!(kept, Some(record));
}

const LEASE: Duration = Duration::from_secs(600);

fn acceptance(revision: &Revision) -> Acceptance {
    let request = InvokeRequest::new("payload");
    let caller = Principal::new(revision.key.tenant.clone(), "bob".parse().unwrap());
    let (id, now, stored) = (InvocationId::generate(), Timestamp::now(), StoredRequest::of(&request).unwrap());
    let submission = Submission::new(id, revision, caller, now, stored, "payload".into());
    let mut record = InvocationRecord::new(id, revision, "bob".parse().unwrap(), now);
    record.state = InvocationState::Queued;
    Acceptance::new(Arc::new(submission), Some(Arc::new(record)))
}

fn ending(acceptance: &Acceptance, dead: bool) -> Settlement {
    let mut record = InvocationRecord::clone(acceptance.record.as_ref().unwrap());
    (record.state, record.finished_at) = (InvocationState::Failed, Some(Timestamp::now()));
    let settled = Settled::Ended { record: Some(Arc::new(record)), dead, keep_for: LEASE };
    Settlement::new(settled, Progress::default())
}

async fn leased(store: &SqlStore, acceptance: &Acceptance) -> QueueLease {
    let accepted = store.accept(acceptance.clone().with_lease(LEASE)).await.unwrap();
    let Accepted::New { lease: Some(lease) } = accepted else { panic!("{accepted:?} has no lease") };
    lease
}

#[tokio::test]
async fn a_step_whose_commit_is_not_answered_is_made_once() {
    use Commit::{Unanswered, Undone};
    for commits in [&[Unanswered][..], &[Undone], &[Undone, Unanswered], &[Undone, Undone, Unanswered]] {
        let (store, next) = told().await;
        let tell = || next.lock().unwrap().extend(commits);
        let (_, revision) = function("a", String::new());
        let tenant = &revision.key.tenant;
        let mut keyed = acceptance(&revision);
        Arc::get_mut(&mut keyed.submission).unwrap().idempotency = Some(IdempotencyKey::new("key", "same"));
        tell();
        let lease = leased(&store, &keyed).await;
        tell();
        store.dispatch(&lease, Dispatch::new(1, LEASE)).await.unwrap();
        let mut ending = ending(&keyed, true);
        let follower = acceptance(&revision);
        ending.followers.push(follower.clone());
        tell();
        store.settle(&lease, ending.clone()).await.unwrap();
        assert_eq!(store.settle(&lease, ending).await.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(store.depth(tenant, None).await.unwrap(), QueueDepth::new(1, 1), "{commits:?}");
        let redriven = acceptance(&revision);
        tell();
        store.redrive(tenant, lease.id, redriven.clone(), LEASE).await.unwrap();
        assert_eq!(store.depth(tenant, None).await.unwrap(), QueueDepth::new(2, 0), "{commits:?}");
        let taken = store.take(&TakeRequest::new(10, LEASE)).await.unwrap();
        let mut ids: Vec<_> = taken.items.iter().map(|taken| taken.lease.id).collect();
        ids.sort_unstable();
        let mut expected = [follower.submission.id, redriven.submission.id];
        expected.sort_unstable();
        assert_eq!(ids, expected);
        let again = Settlement::new(Settled::Again { due: Due::In(LEASE), attempts: 1 }, Progress::default());
        tell();
        store.settle(&taken.items[0].lease, again).await.unwrap();
        let all = StatisticsQuery::new(Timestamp::from_micros(0), Timestamp::now().plus(LEASE));
        assert_eq!(store.statistics(tenant, &all).await.unwrap().count, 1, "{commits:?}");
        assert!(next.lock().unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_step_that_others_went_on_from_before_its_answer_came_is_not_made_again() {
    let (store, next) = told().await;
    let (_, revision) = function("a", String::new());
    let tenant = revision.key.tenant.clone();
    let new = acceptance(&revision);
    let overtake = || next.lock().unwrap().push_back(Commit::Overtaken);
    overtake();
    let lease = leased(&store, &new).await;
    assert_eq!(store.queued(&tenant, lease.id).await.unwrap(), None, "it is not accepted a second time");

    let new = acceptance(&revision);
    let lease = leased(&store, &new).await;
    overtake();
    store.dispatch(&lease, Dispatch::new(1, LEASE)).await.unwrap();

    let new = acceptance(&revision);
    let lease = leased(&store, &new).await;
    overtake();
    store.settle(&lease, ending(&new, false)).await.unwrap();
    assert_eq!(InvocationStore::get(&store, &tenant, lease.id).await.unwrap(), None);
}

#[tokio::test]
async fn what_nobody_waits_for_is_not_accepted_later() {
    let store = SqlStore::open("sqlite::memory:").await.unwrap();
    let (_, revision) = function("a", String::new());
    // The one connection is busy.
    let session = store.0.engine.transaction().await.unwrap();
    let new = acceptance(&revision);
    let id = new.submission.id;
    assert!(store.accept(new).now_or_never().is_none());
    session.release().await;
    store.flush().await.unwrap();
    let queued = store.queued(&revision.key.tenant, id).await.unwrap();
    let recorded = InvocationStore::get(&store, &revision.key.tenant, id).await.unwrap();
    assert_eq!(queued.is_some(), recorded.is_some(), "done or not done, never half done");
}

#[tokio::test]
async fn a_server_that_may_lose_commits_accepts_nothing() {
    let mut store = SqlStore::open("sqlite::memory:").await.unwrap();
    Arc::get_mut(&mut store.0).unwrap().undurable = Some("fsync is off");
    let (_, revision) = function("a", String::new());
    assert_eq!(store.accept(acceptance(&revision)).await.unwrap_err().kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn old_revisions_are_deleted_except_those_in_use() {
    let options = SqlStoreOptions::default().with_max_revisions_per_function(3);
    let store = SqlStore::connect("sqlite::memory:", options).await.unwrap();
    let (mut current, revision) = function("a", String::new());
    current.status.route = vec![crate::RouteEntry::all(Generation::FIRST)];
    store.create(&current, &revision).await.unwrap();
    for _ in 0..5 {
        current.generation = current.generation.next();
        let mut next = revision.clone();
        next.generation = current.generation;
        current = Function::clone(&store.update(&current, current.version, Some(&next)).await.unwrap());
    }
    let page = store.revisions(&current.key.tenant, current.id, &PageRequest::default()).await.unwrap();
    let kept: Vec<_> = page.items.iter().map(|revision| revision.generation.get()).collect();
    assert_eq!(kept, [6, 5, 1], "as the store in memory has it");
}

/// What can't be written is told before the store is closed, so that it is told at all.
#[tokio::test]
async fn closing_waits_until_what_is_lost_is_told() {
    let options = SqlStoreOptions::default().with_operation_timeout(Duration::from_millis(50));
    let store = SqlStore::connect("sqlite::memory:", options).await.unwrap();
    pragma(&store, "ALTER TABLE fg_invocations RENAME TO elsewhere").await;
    store.finish(ended(), Durability::Buffered).await.unwrap();
    store.close().await;
    assert!(store.0.writer.end().now_or_never().is_some());
}

#[tokio::test]
async fn a_store_that_is_closed_takes_nothing() {
    let store = SqlStore::open("sqlite::memory:").await.unwrap();
    store.close().await;
    for durability in [Durability::Buffered, Durability::Durable] {
        let error = store.finish(ended(), durability).await.unwrap_err();
        assert!(error.message().contains("closed"), "{error}");
    }
    assert!(FunctionStore::get(&store, &function("a", String::new()).0.key).await.is_err());
}

#[tokio::test]
async fn a_full_disk_is_told_and_what_is_buffered_waits_for_room() {
    let folder = tempfile::tempdir().unwrap();
    let store = SqlStore::open(&format!("sqlite:{}", folder.path().join("a.db").display())).await.unwrap();
    // The one connection that writes: to it, a file of so many pages is a full disk.
    pragma(&store, "PRAGMA max_page_count = 60").await;
    let mut names = Vec::new();
    let error = loop {
        let (function, revision) = function(&format!("f{}", names.len()), "x".repeat(4096));
        match store.create(&function, &revision).await {
            Ok(()) => names.push(function.key),
            Err(error) => break error,
        }
    };
    assert_eq!((error.kind(), error.retry()), (ErrorKind::Store, crate::Retry::Transient));
    assert!(error.message().contains("no room"), "{error}");
    let kept: Vec<_> = (0..200).map(|_| ended()).collect();
    for record in &kept {
        store.finish(Arc::clone(record), Durability::Buffered).await.unwrap();
    }
    pragma(&store, "PRAGMA max_page_count = 60000").await;
    store.flush().await.unwrap();
    for record in &kept {
        assert!(InvocationStore::get(&store, &record.key.tenant, record.id).await.unwrap().is_some());
    }
    let tenant = &kept[0].key.tenant;
    let page = PageRequest::first(1000);
    let listed = FunctionStore::list(&store, tenant, &FunctionFilter::all(), &page).await.unwrap();
    assert_eq!(listed.items.len(), names.len(), "nothing of what was refused is there");
}

#[tokio::test]
async fn a_server_that_may_lose_commits_keeps_no_durable_records() {
    let mut store = SqlStore::open("sqlite::memory:").await.unwrap();
    Arc::get_mut(&mut store.0).unwrap().undurable = Some("fsync is off");
    let error = store.finish(ended(), Durability::Durable).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    store.finish(ended(), Durability::Buffered).await.unwrap();
    store.flush().await.unwrap();
}

#[test]
fn a_store_outside_of_a_runtime_asks_for_one() {
    assert_eq!(current_runtime().unwrap_err().kind(), ErrorKind::Misconfigured);
}

#[tokio::test]
async fn debug_output_shows_no_url() {
    let store = SqlStore::open("sqlite::memory:").await.unwrap();
    let text = format!("{store:?}");
    assert!(text.contains("sqlite") && !text.contains("memory"), "{text}");
}
