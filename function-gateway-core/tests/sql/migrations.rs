//! Tables of other versions.

use std::collections::BTreeSet;
use std::time::Duration;

use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    Action, ApiKeyState, ApiKeyStore, AuditFilter, AuditLog, DeadLetterFilter, DocumentStore, Due, Durability,
    ErrorKind, FunctionFilter, FunctionStore, Generation, InvocationQueue, InvocationState, InvocationStore,
    PageRequest, Phase, Progress, QueueDepth, QueueState, RecordFilter, Settled, Settlement, StatisticsQuery,
    StoredDocument, TakeRequest, Timestamp, Version,
};

use sha2::{Digest as _, Sha256};

use crate::common::{Database, acceptance, ended, event, function, key, open, options, tenant};

pub(crate) async fn several_processes_open_a_new_database_at_once(database: Database) {
    let url = database.url();
    let opening = (0..8).map(|_| SqlStore::connect(&url, options().with_max_connections(2)));
    let stores = futures_util::future::join_all(opening).await;
    let mut gateways = BTreeSet::new();
    for store in stores {
        gateways.insert(store.unwrap().gateway_id().await.unwrap());
    }
    assert_eq!(gateways.len(), 1, "{gateways:?}");

    let mine = gateways.pop_first().unwrap();
    open(&database, options().with_gateway(mine)).await;
    let other = options().with_gateway("another".parse().unwrap());
    let error = SqlStore::connect(&url, other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misconfigured);
    assert!(error.message().contains("belongs to the gateway"), "{error}");
}

pub(crate) async fn tables_of_a_later_version_are_used_as_far_as_they_allow(database: Database) {
    let store = open(&database, options()).await;
    let (function, revision) = function("a");
    store.create(&function, &revision).await.unwrap();

    database.execute("UPDATE fg_schema SET version = 7").await;
    let later = open(&database, options()).await;
    assert_eq!(FunctionStore::get(&later, &function.key).await.unwrap().as_deref(), Some(&function));

    database.execute("UPDATE fg_schema SET min_reader = 6").await;
    let error = SqlStore::connect(&database.url(), options()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    for part in ["version 7", "version 6 or later", "this one knows 5", "upgrade"] {
        assert!(error.message().contains(part), "{error}");
    }
}

/// The tables as each version made them of those of the one before, and rows as its programs wrote them.
const RELEASED: [([&str; 3], &str); 5] = [
    (
        [
            include_str!("../../src/store/sql/migrations/sqlite/0001.sql"),
            include_str!("../../src/store/sql/migrations/postgres/0001.sql"),
            include_str!("../../src/store/sql/migrations/mysql/0001.sql"),
        ],
        include_str!("released/0001.sql"),
    ),
    (
        [
            include_str!("../../src/store/sql/migrations/sqlite/0002.sql"),
            include_str!("../../src/store/sql/migrations/postgres/0002.sql"),
            include_str!("../../src/store/sql/migrations/mysql/0002.sql"),
        ],
        include_str!("released/0002.sql"),
    ),
    (
        [
            include_str!("../../src/store/sql/migrations/sqlite/0003.sql"),
            include_str!("../../src/store/sql/migrations/postgres/0003.sql"),
            include_str!("../../src/store/sql/migrations/mysql/0003.sql"),
        ],
        include_str!("released/0003.sql"),
    ),
    (
        [
            include_str!("../../src/store/sql/migrations/sqlite/0004.sql"),
            include_str!("../../src/store/sql/migrations/postgres/0004.sql"),
            include_str!("../../src/store/sql/migrations/mysql/0004.sql"),
        ],
        include_str!("released/0004.sql"),
    ),
    (
        [
            include_str!("../../src/store/sql/migrations/sqlite/0005.sql"),
            include_str!("../../src/store/sql/migrations/postgres/0005.sql"),
            include_str!("../../src/store/sql/migrations/mysql/0005.sql"),
        ],
        include_str!("released/0005.sql"),
    ),
];

/// What each was when it was released. A database that was made by it can't be told apart from one that a changed one makes.
const DIGESTS: [[&str; 3]; 5] = [
    ["a806d03cc7dc3186", "5d8cef01fbf8a550", "9c9f5bb1b003d24d"],
    ["7be7edc5b3f5d657", "cc6d1afb9078741b", "ffff656e2c76483f"],
    ["a0209e0861e5ca38", "0208ea37b937fb28", "d4d28b06fb1bde8b"],
    ["10803ec098f475a9", "10803ec098f475a9", "ec5f5854df9d6535"],
    ["4d526f16a6ef2f8c", "5effd08d38457a7b", "1b7039508eb2a27c"],
];

#[test]
fn what_was_released_is_not_changed() {
    for (version, ((tables, _), digests)) in RELEASED.iter().zip(DIGESTS).enumerate() {
        let now = tables.map(|script| {
            let digest = Sha256::digest(script.as_bytes());
            digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>()
        });
        assert_eq!(now, digests, "version {}: add a version instead", version + 1);
    }
}

/// MariaDB can't undo a change of tables, so a migration that broke off is done again from its beginning.
pub(crate) async fn a_migration_that_broke_off_is_done_again(database: Database) {
    for _ in 0..2 {
        for (tables, _) in RELEASED {
            database.execute(tables[2]).await;
        }
    }
    let store = open(&database, options()).await;
    let (function, revision) = function("a");
    store.create(&function, &revision).await.unwrap();
    store.finish(ended(&revision), Durability::Durable).await.unwrap();
    let page = InvocationStore::list(&store, &tenant(), &RecordFilter::default(), &PageRequest::default()).await;
    assert_eq!(page.unwrap().items.len(), 1);
}

async fn make_version(database: &Database, version: usize) {
    for (tables, rows) in &RELEASED[..version] {
        let rows = match &database {
            // The only literals that are not the same everywhere.
            Database::Postgres { .. } => &*rows.replace("x'", "'\\x"),
            _ => rows,
        };
        let tables = match &database {
            Database::Sqlite(_) => tables[0],
            Database::Postgres { .. } => tables[1],
            Database::Mysql { .. } => tables[2],
        };
        database.execute(tables).await;
        database.execute(rows).await;
    }
}

pub(crate) async fn several_processes_bring_an_old_database_up_to_date_at_once(database: Database) {
    make_version(&database, 1).await;
    let url = database.url();
    let opening = (0..8).map(|_| SqlStore::connect(&url, options().with_max_connections(2)));
    for store in futures_util::future::join_all(opening).await {
        reads_what_was_written(&store.unwrap()).await;
    }
    assert_eq!(database.number("SELECT version FROM fg_schema").await, 5);
}

pub(crate) async fn every_released_version_is_brought_up_to_date_with_its_data(new: impl AsyncFn() -> Database) {
    for version in 1..=RELEASED.len() {
        let database = new().await;
        make_version(&database, version).await;
        let store = open(&database, options()).await;
        assert_eq!(store.gateway_id().await.unwrap().as_str(), "g0123456789abcde", "{version}");
        reads_what_was_written(&store).await;
        if version >= 2 {
            reads_keys_and_events(&store).await;
        }
        if version >= 3 {
            reads_queue_and_documents(&store).await;
        }
        if version >= 5 {
            reads_records_without_what_has_columns(&store).await;
        }
        goes_on_with_it(&store, version).await;
        assert_eq!(database.number("SELECT version FROM fg_schema").await, 5);
        assert_eq!(database.number("SELECT min_reader FROM fg_schema").await, 5);
    }
}

async fn reads_what_was_written(store: &SqlStore) {
    let tenant = tenant();
    let filter = FunctionFilter::all().with_label("team", "blue").with_phase(Phase::Ready);
    let page = FunctionStore::list(store, &tenant, &filter, &PageRequest::default()).await.unwrap();
    assert_eq!(page.unreadable, []);
    let function = &page.items[0];
    assert_eq!((function.key.name.as_str(), function.owner.as_str(), function.version.get()), ("greet", "ann", 3));
    assert_eq!(function.status.serving_generation(), Some(Generation::FIRST));
    assert!(serde_json::to_string(&function.spec).unwrap().contains("a field of a later version"));
    let revision = store.revision(&tenant, function.id, Generation::FIRST).await.unwrap().unwrap();
    assert_eq!(revision.spec.driver.as_str(), "local");
    assert_eq!(store.scan_due(Timestamp::now(), 10).await.unwrap(), std::slice::from_ref(&function.key));

    let filter = RecordFilter::default().with_label("team", "blue");
    let page = InvocationStore::list(store, &tenant, &filter, &PageRequest::default()).await.unwrap();
    assert_eq!((page.items.len(), page.unreadable.len()), (1, 0), "{page:?}");
    let record = &page.items[0];
    assert_eq!(
        (record.state, record.failure.as_ref().unwrap().code.as_str()),
        (InvocationState::Failed, "function_failed")
    );
    assert_eq!(record.payload.as_ref().unwrap().bytes, "hello");
    let all = StatisticsQuery::new(Timestamp::from_micros(0), Timestamp::now());
    assert_eq!(store.statistics(&tenant, &all).await.unwrap().count, 1);
}

async fn reads_keys_and_events(store: &SqlStore) {
    let tenant = tenant();
    let page = store.keys(&tenant, &PageRequest::default()).await.unwrap();
    assert_eq!((page.items.len(), page.unreadable.len()), (2, 0), "{page:?}");
    let (revoked, active) = (&page.items[0], &page.items[1]);
    let now = Timestamp::now();
    assert_eq!((active.state(now), revoked.state(now)), (ApiKeyState::Active, ApiKeyState::Revoked));
    assert_eq!((active.principal.as_str(), active.created_by.as_str(), &*active.description), ("bob", "ann", "it's"));
    assert_eq!(active.scopes.iter().collect::<Vec<_>>(), ["invoke:img-*", "read"]);
    assert_eq!(active.hash, std::array::from_fn(|index| if index == 0 { 0xab } else { 0x01 }));
    assert_eq!((active.expires_at, active.revoked_at), (None, None));
    assert_eq!(revoked.expires_at, Some(revoked.created_at.plus(std::time::Duration::from_secs(60))));
    assert_eq!(store.find_key(active.id).await.unwrap().as_ref(), Some(active));

    let filter = AuditFilter::all().with_function("greet".parse().unwrap()).with_action(Action::Create);
    let page = AuditLog::list(store, &tenant, &filter, &PageRequest::default()).await.unwrap();
    assert_eq!((page.items.len(), page.unreadable.len()), (1, 0), "{page:?}");
    let event = &page.items[0];
    assert_eq!((event.principal.as_str(), event.generation, event.allowed), ("ann", Some(Generation::FIRST), true));
    let filter = AuditFilter::all().with_principal("bob".parse().unwrap());
    let page = AuditLog::list(store, &tenant, &filter, &PageRequest::default()).await.unwrap();
    let event = &page.items[0];
    assert_eq!((event.action, event.key, event.allowed), (Action::RevokeKey, Some(revoked.id), false));
}

async fn reads_queue_and_documents(store: &SqlStore) {
    let tenant = tenant();
    let page = store.dead_letters(&tenant, &DeadLetterFilter::default(), &PageRequest::default()).await.unwrap();
    assert_eq!((page.items.len(), page.unreadable.len()), (1, 0), "{page:?}");
    let dead = store.queued(&tenant, page.items[0].submission.id).await.unwrap().unwrap();
    assert_eq!((dead.state, dead.attempts, dead.progress.attempts[0].status), (QueueState::Dead, 1, Some(500)));
    assert_eq!((&*dead.submission.payload, dead.submission.request.method.as_str()), (&b"hello"[..], "POST"));
    assert_eq!(dead.progress.answer.as_ref().unwrap().body.as_deref(), Some(&b"sorry"[..]));

    let taken = store.take(&TakeRequest::new(10, Duration::from_secs(60))).await.unwrap();
    let [running] = taken.items.as_slice() else { panic!("{taken:?}") };
    let invocation = &running.invocation;
    assert_eq!((invocation.state, invocation.attempts, running.repeatable), (QueueState::Running, 1, true));
    assert_eq!(invocation.submission.idempotency.as_ref().unwrap().key, "it's");
    let submission = &invocation.submission;
    assert_eq!(store.pinned(submission.function, Generation::FIRST).await.unwrap(), 1);
    let record = InvocationStore::get(store, &tenant, submission.id).await.unwrap().unwrap();
    assert_eq!((record.state, record.attempts), (InvocationState::Running, 0));
    let again = Settlement::new(Settled::Again { due: Due::Now, attempts: 1 }, Progress::default());
    store.settle(&running.lease, again).await.unwrap();
    assert_eq!(store.depth(&tenant, Some(&submission.key.name)).await.unwrap(), QueueDepth::new(1, 1));

    let document = store.document(&tenant, "subscription", "s-1").await.unwrap().unwrap();
    assert_eq!((document.version, document.content.as_str()), (Version::FIRST, r#"{"it": "holds"}"#));
}

async fn reads_records_without_what_has_columns(store: &SqlStore) {
    let filter = RecordFilter::default().with_label("team", "red");
    let page = InvocationStore::list(store, &tenant(), &filter, &PageRequest::default()).await.unwrap();
    assert_eq!((page.items.len(), page.unreadable.len()), (1, 0), "{page:?}");
    let record = &page.items[0];
    assert_eq!((record.state, record.status, record.attempts), (InvocationState::Succeeded, Some(200), 1));
    assert_eq!((record.owner.as_str(), record.caller.as_str(), record.labels["team"].as_str()), ("ann", "eve", "red"));
    assert_eq!((record.key.name.as_str(), record.generation), ("greet", Generation::FIRST));
    assert_eq!(record.started_at.unwrap().since(record.created_at), Duration::from_micros(500));
    assert_eq!(record.finished_at.unwrap().since(record.created_at), Duration::from_micros(2000));
    let trace = record.trace.unwrap().to_string();
    assert_eq!(trace, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let result = record.result.as_ref().unwrap();
    assert_eq!((&*result.bytes, result.content_type.as_deref()), (&b"hello!!"[..], Some("text/plain")));
}

async fn goes_on_with_it(store: &SqlStore, version: usize) {
    let (function, revision) = function("another");
    store.create(&function, &revision).await.unwrap();
    store.finish(ended(&revision), Durability::Durable).await.unwrap();
    let greet = crate::common::function("greet").0.key;
    let current = FunctionStore::get(store, &greet).await.unwrap().unwrap();
    let updated = store.update(&current, current.version, None).await.unwrap();
    assert_eq!(updated.version, current.version.next());
    let page =
        InvocationStore::list(store, &tenant(), &RecordFilter::default(), &PageRequest::default()).await.unwrap();
    let expected = [0, 2, 2, 3, 3, 4][version];
    assert_eq!(page.items.len(), expected);

    let key = key(Timestamp::now());
    store.add_key(&key).await.unwrap();
    store.append(event(Timestamp::now())).await.unwrap();
    let (keys, events) = if version >= 2 { (3, 3) } else { (1, 1) };
    let page = store.keys(&tenant(), &PageRequest::default()).await.unwrap();
    assert_eq!((page.items.len(), page.items[0].as_ref()), (keys, &key));
    let page = AuditLog::list(store, &tenant(), &AuditFilter::all(), &PageRequest::default()).await.unwrap();
    assert_eq!(page.items.len(), events);

    let lease = Duration::from_secs(60);
    store.accept(acceptance(&revision)).await.unwrap();
    let open = store.depth(&tenant(), None).await.unwrap().open;
    assert_eq!(open, if version >= 3 { 2 } else { 1 });
    assert_eq!(store.take(&TakeRequest::new(10, lease)).await.unwrap().items.len() as u64, open);
    let document = StoredDocument::new(tenant(), "subscription", "s-2", "{}");
    assert_eq!(store.put_document(&document, None).await.unwrap(), document);
}
