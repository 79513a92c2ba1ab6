//! What is seen only from inside.

use std::collections::VecDeque;
use std::sync::Mutex;

use super::engine::{Dialect, Hear, Migration, Statement, TakeRow};
use super::*;
use crate::{
    CustomWorkload, DriverRef, Function, FunctionSpec, InvocationState, PageRequest, Revision, RevisionReason,
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
        Ok(Box::new(UnreliableSession { inner: self.inner.transaction().await?, commit }))
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
    let SqlStore(shared) = SqlStore::open("sqlite::memory:").await.unwrap();
    let Shared { engine, options, gateway, crowded, .. } = &*shared;
    let commits = Arc::new(Mutex::new(commits.iter().copied().collect()));
    let engine: Arc<dyn Engine> = Arc::new(Unreliable { inner: Arc::clone(engine), commits });
    let writer = Writer::start(Arc::clone(&engine), Arc::clone(crowded), options, &Handle::current());
    SqlStore(Arc::new(Shared {
        engine,
        options: options.clone(),
        gateway: gateway.clone(),
        writer,
        crowded: Arc::clone(crowded),
        turn: Turn::default(),
        listens: Once::new(),
        undurable: None,
    }))
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
