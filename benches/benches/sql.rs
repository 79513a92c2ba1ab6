//! The SQL stores: how fast records are written, what they cost a call, and whether a large database is slower than a small one.
//!
//! SQLite in a temporary folder, and PostgreSQL where `FUNCTION_GATEWAY_TEST_POSTGRES_URL` names a server on which databases
//! may be made. `-- recording`, `-- calls`, `-- size` and `-- queue` run one part; `-- size --full` measures a million functions
//! and five million records, for which it takes a while and some 20 GB of disk.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, reason = "a benchmark")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use function_gateway_benches::sql::{MINUTES, Size, execute, filled, key, record, record_id, revision, time};
use function_gateway_benches::{NoopDriver, caller, median, noop_spec, parse, ratio};
use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    DriverRef, Durability, ErrorClass, Function, FunctionExecutor as _, FunctionFilter, FunctionManager as _,
    FunctionName, FunctionRef, FunctionStore, Gateway, InvocationRecord, InvocationState, InvocationStore,
    InvokeRequest, PageRequest, RecordFilter, RecordMode, StatisticsQuery,
};
use sqlx::{Connection as _, Row as _};
use tokio::runtime::Runtime;

#[path = "sql/queue.rs"]
mod queue;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let wants = |part: &str| args.iter().all(|arg| arg.starts_with("--")) || args.iter().any(|arg| arg == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    for engine in Engine::all() {
        println!("{}\n", engine.name());
        if wants("recording") {
            recording(&runtime, &engine);
        }
        if wants("calls") {
            calls(&runtime, &engine);
        }
        if wants("size") {
            let full = args.iter().any(|arg| arg == "--full");
            size(&runtime, &engine, full);
        }
        if wants("queue") {
            runtime.block_on(queue::queue(&engine));
        }
    }
}

enum Engine {
    Sqlite(tempfile::TempDir),
    Postgres(String),
}

impl Engine {
    fn all() -> Vec<Self> {
        let postgres = std::env::var("FUNCTION_GATEWAY_TEST_POSTGRES_URL").ok().map(Self::Postgres);
        std::iter::once(Self::Sqlite(tempfile::tempdir().unwrap())).chain(postgres).collect()
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Postgres(_) => "PostgreSQL",
        }
    }

    /// The URL of a database that is empty.
    async fn database(&self, name: &str) -> String {
        match self {
            Self::Sqlite(folder) => format!("sqlite:{}", folder.path().join(name).with_extension("db").display()),
            Self::Postgres(server) => {
                let (host, query) = server.split_once('?').unwrap_or((server, ""));
                execute(
                    server,
                    &format!("DROP DATABASE IF EXISTS bench_{name} WITH (FORCE)\nCREATE DATABASE bench_{name}"),
                )
                .await;
                format!("{}/bench_{name}?{query}", host.rsplit_once('/').unwrap().0)
            }
        }
    }

    /// Removes the files of all databases, which are closed.
    fn remove_files(&self) {
        if let Self::Sqlite(folder) = self {
            for file in std::fs::read_dir(folder.path()).unwrap() {
                let _ = std::fs::remove_file(file.unwrap().path());
            }
        }
    }

    async fn remove(&self, name: &str) {
        if let Self::Postgres(server) = self {
            execute(server, &format!("DROP DATABASE IF EXISTS bench_{name} WITH (FORCE)")).await;
        }
    }
}

const COLUMNS: [&str; 14] = [
    "id",
    "tenant",
    "name",
    "function_id",
    "state",
    "class",
    "caller",
    "created_at",
    "finished_at",
    "format",
    "document",
    "payload",
    "result",
    "logs",
];

/// A row of records as the database has it.
struct Raw([Option<String>; 7], [Option<i64>; 3], String);

/// What the store sets of SQLite for the connection that writes.
const AS_THE_STORE: &str = "PRAGMA synchronous = FULL; PRAGMA cache_size = -16384; PRAGMA wal_autocheckpoint = 8192";
/// How many rows a statement inserts, as the store's do.
const STATEMENT: usize = 256;

/// A statement that inserts so many rows of a table, with arguments as `$1`, `$2` where they are numbered.
fn insertion(table: &str, columns: &[&str], rows: usize, is_numbered: bool) -> String {
    let insert = if is_numbered { "INSERT" } else { "INSERT OR ROLLBACK" };
    let mut text = format!("{insert} INTO {table} ({}) VALUES ", columns.join(", "));
    for row in 0..rows {
        text.push_str(if row > 0 { ", (" } else { "(" });
        for column in 1..=columns.len() {
            text.push_str(if column > 1 { ", " } else { "" });
            match is_numbered {
                true => text.push_str(&format!("${}", row * columns.len() + column)),
                false => text.push('?'),
            }
        }
        text.push(')');
    }
    text
}

/// The bare engine: one connection, and no store.
enum Bare {
    Sqlite(sqlx::SqliteConnection),
    Postgres(sqlx::PgConnection),
}

impl Bare {
    async fn connect(url: &str) -> Self {
        if url.starts_with("sqlite:") {
            let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
            sqlx::raw_sql(AS_THE_STORE).execute(&mut connection).await.unwrap();
            Self::Sqlite(connection)
        } else {
            Self::Postgres(sqlx::PgConnection::connect(url).await.unwrap())
        }
    }

    async fn rows(&mut self) -> Vec<Raw> {
        let select = format!("SELECT {} FROM fg_invocations ORDER BY id", COLUMNS.join(", "));
        let select = sqlx::AssertSqlSafe(select);
        macro_rules! read {
            ($connection:expr) => {{
                let rows = sqlx::query(select).fetch_all($connection).await.unwrap();
                let mut raw = Vec::with_capacity(rows.len());
                for row in &rows {
                    let texts = [0, 1, 2, 3, 4, 5, 6].map(|column| row.get::<Option<String>, usize>(column));
                    let numbers = [7, 8, 9].map(|column| row.get::<Option<i64>, usize>(column));
                    raw.push(Raw(texts, numbers, row.get(10)));
                }
                raw
            }};
        }
        match self {
            Self::Sqlite(connection) => read!(connection),
            Self::Postgres(connection) => read!(connection),
        }
    }

    /// The statements that insert so many rows, by how many each inserts, when `commit` are in a transaction: a program has them
    /// ready.
    fn statements(&self, rows: usize, commit: usize) -> HashMap<usize, String> {
        let transactions = [commit.min(rows), rows % commit];
        let sizes = transactions.iter().flat_map(|rows| [STATEMENT.min(*rows), rows % STATEMENT]);
        let is_numbered = matches!(self, Self::Postgres(_));
        sizes.map(|size| (size, insertion("fg_invocations", &COLUMNS, size, is_numbered))).collect()
    }

    /// Inserts rows by these statements, `commit` of them in a transaction.
    async fn insert(&mut self, rows: &[Raw], commit: usize, statements: &HashMap<usize, String>) {
        for transaction in rows.chunks(commit) {
            self.execute("BEGIN").await;
            for statement in transaction.chunks(STATEMENT) {
                let text = statements[&statement.len()].clone();
                macro_rules! bind {
                    ($connection:expr) => {{
                        let mut query = sqlx::query(sqlx::AssertSqlSafe(text));
                        for Raw(texts, numbers, document) in statement {
                            for text in texts {
                                query = query.bind(text.as_deref());
                            }
                            for number in numbers {
                                query = query.bind(number);
                            }
                            query = query.bind(document.as_str());
                            for _ in 0..3 {
                                query = query.bind(None::<&[u8]>);
                            }
                        }
                        query.execute($connection).await.unwrap();
                    }};
                }
                match self {
                    Self::Sqlite(connection) => bind!(connection),
                    Self::Postgres(connection) => bind!(connection),
                }
            }
            self.execute("COMMIT").await;
        }
    }

    async fn execute(&mut self, text: &'static str) {
        match self {
            Self::Sqlite(connection) => drop(sqlx::raw_sql(text).execute(connection).await.unwrap()),
            Self::Postgres(connection) => drop(sqlx::raw_sql(text).execute(connection).await.unwrap()),
        }
    }
}

fn recording(runtime: &Runtime, engine: &Engine) {
    const ROUNDS: usize = 7;
    const ROWS: usize = 20_000;
    const COMMIT: usize = 512;
    let (mut bare_times, mut store_times) = (Vec::new(), Vec::new());
    runtime.block_on(async {
        for round in 0..ROUNDS {
            let url = engine.database("recording").await;
            let bare_url = engine.database("bare").await;
            let store = SqlStore::open(&url).await.unwrap();
            // It has the same tables.
            SqlStore::open(&bare_url).await.unwrap().close().await;
            let revisions: Vec<_> = (0..10).map(revision).collect();
            let records: Vec<_> = (0..ROWS).map(|number| record(&revisions[number % 10])).collect();
            let start = Instant::now();
            let (records, next) = (Arc::new(records), Arc::new(AtomicUsize::new(0)));
            // In the order of time, as they come in, and as the bare inserts have them.
            let tasks = (0..8).map(|_| {
                let (store, records, next) = (store.clone(), Arc::clone(&records), Arc::clone(&next));
                tokio::spawn(async move {
                    while let Some(record) = records.get(next.fetch_add(1, Ordering::Relaxed)) {
                        store.finish(Arc::clone(record), Durability::Buffered).await.unwrap();
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            store.flush().await.unwrap();
            let of_store = start.elapsed();
            store.close().await;
            let rows = Bare::connect(&url).await.rows().await;
            assert_eq!(rows.len(), ROWS);
            let mut bare = Bare::connect(&bare_url).await;
            let statements = bare.statements(rows.len(), COMMIT);
            let start = Instant::now();
            bare.insert(&rows, COMMIT, &statements).await;
            // The first round warms up.
            if round > 0 {
                bare_times.push(start.elapsed());
                store_times.push(of_store);
            }
            drop(bare);
            if let Engine::Sqlite(folder) = engine {
                for name in ["recording", "bare"] {
                    for end in ["db", "db-wal", "db-shm"] {
                        let _ = std::fs::remove_file(folder.path().join(name).with_extension(end));
                    }
                }
            }
        }
        engine.remove("recording").await;
        engine.remove("bare").await;
    });
    let rate = |times: &[Duration]| ROWS as f64 / median(times.to_vec()).as_secs_f64();
    println!(
        "records written: {:.0}/s, by bare inserts of the same rows {:.0}/s: {:.2} of it\n",
        rate(&store_times),
        rate(&bare_times),
        ratio(&bare_times, &store_times),
    );
}

async fn gateway(url: &str, name: &FunctionName, mode: RecordMode) -> (Gateway, FunctionRef) {
    let gateway = Gateway::builder()
        .store(Arc::new(SqlStore::open(url).await.unwrap()))
        .driver(parse("noop"), Arc::new(NoopDriver::default()))
        .without_reconciler()
        .build()
        .await
        .unwrap();
    let mut spec = noop_spec();
    spec.record.mode = Some(mode);
    gateway.create(&caller(), name, spec).await.unwrap();
    (gateway, name.clone().into())
}

fn calls(runtime: &Runtime, engine: &Engine) {
    const ROUNDS: usize = 21;
    const CALLS: usize = 2_000;
    runtime.block_on(async {
        let url = engine.database("calls").await;
        let off = gateway(&url, &parse("off"), RecordMode::Off).await;
        let buffered = gateway(&url, &parse("buffered"), RecordMode::Buffered).await;
        let durable = gateway(&url, &parse("durable"), RecordMode::Durable).await;
        let (cx, mut medians) = (caller(), [Vec::new(), Vec::new()]);
        for _ in 0..ROUNDS {
            for ((gateway, function), medians) in [&off, &buffered].into_iter().zip(&mut medians) {
                let mut times = Vec::with_capacity(CALLS);
                for _ in 0..CALLS {
                    let start = Instant::now();
                    gateway.invoke(&cx, function, InvokeRequest::new("hello")).await.unwrap();
                    times.push(start.elapsed());
                }
                medians.push(median(times));
            }
        }
        let [off_time, buffered_time] = medians.map(median);
        println!("a call without a record: {off_time:.1?}, with one that is buffered: {buffered_time:.1?} (medians)");

        // Each call commits twice, its beginning and its end: for 64 calls at a time, and for one, whose commits are alone.
        let commits = async |at_a_time: u32, each: u32| {
            let start = Instant::now();
            let tasks = (0..at_a_time).map(|_| {
                let ((gateway, function), cx) = (durable.clone(), cx.clone());
                tokio::spawn(async move {
                    for _ in 0..each {
                        gateway.invoke(&cx, &function, InvokeRequest::new("hello")).await.unwrap();
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            start.elapsed() / (at_a_time * each * 2)
        };
        let bare_url = engine.database("bare").await;
        SqlStore::open(&bare_url).await.unwrap().close().await;
        let mut bare = Bare::connect(&bare_url).await;
        let (of, mut times) = (revision(1), [Vec::new(), Vec::new(), Vec::new()]);
        for _ in 0..9 {
            const BARE: u32 = 300;
            let rows: Vec<_> = (0..BARE).map(|_| raw(&record(&of))).collect();
            let statements = bare.statements(rows.len(), 1);
            let start = Instant::now();
            bare.insert(&rows, 1, &statements).await;
            times[0].push(start.elapsed() / BARE);
            times[1].push(commits(1, 200).await);
            times[2].push(commits(64, 50).await);
        }
        let [bare_times, alone, together] = times;
        let rate = |times: &Vec<Duration>| 1.0 / median(times.clone()).as_secs_f64();
        println!(
            "durable records: {:.0} commits/s for 64 calls at a time; {:.0}/s for one, {:.1} times; {:.0}/s by bare inserts, {:.1} times\n",
            rate(&together),
            rate(&alone),
            ratio(&alone, &together),
            rate(&bare_times),
            ratio(&bare_times, &together),
        );
        drop(bare);
        for (gateway, _) in [off, buffered, durable] {
            gateway.shutdown(Duration::from_secs(10)).await.unwrap();
        }
        engine.remove("calls").await;
        engine.remove("bare").await;
    });
}

fn raw(record: &InvocationRecord) -> Raw {
    let texts = [
        Some(record.id.to_string()),
        Some(record.key.tenant.to_string()),
        Some(record.key.name.to_string()),
        Some(record.function.to_string()),
        Some(record.state.to_string()),
        None,
        Some(record.caller.to_string()),
    ];
    let numbers = [Some(record.created_at.as_micros()), record.finished_at.map(|at| at.as_micros()), Some(1)];
    Raw(texts, numbers, "x".repeat(700))
}

/// A figure of this process in `/proc/self/status`, in MiB.
fn memory(name: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

fn size(runtime: &Runtime, engine: &Engine, full: bool) {
    // As many records of each function as the large one has, so that their pages are as long.
    let each = if full { 5 } else { 2 };
    let small = Size { functions: 10_000, records: 10_000 * each };
    let large = match full {
        true => Size { functions: 1_000_000, records: 5_000_000 },
        false => Size { functions: 100_000, records: 200_000 },
    };
    runtime.block_on(async {
        let mut stores = Vec::new();
        for (name, size) in [("small", small), ("large", large)] {
            let start = Instant::now();
            let url = engine.database(name).await;
            stores.push((filled(&url, size).await.unwrap(), size));
            // Filling the other tables has pushed the first one out of the system's cache.
            execute(&url, "SELECT SUM(LENGTH(spec)) + SUM(LENGTH(status)) FROM fg_functions").await;
            println!("{} functions, {} records: filled in {:.0?}", size.functions, size.records, start.elapsed());
        }
        for (store, size) in &stores {
            std::fs::write("/proc/self/clear_refs", "5").unwrap();
            let before = memory("VmRSS");
            for operation in Operation::ALL {
                for _ in 0..20 {
                    run(operation, store, *size).await;
                }
            }
            let grown = memory("VmHWM") - before;
            println!(
                "{} functions, {} records: {grown:.1} MiB more memory for all operations",
                size.functions, size.records
            );
        }
        println!("\noperation                               small        large   ratio");
        for operation in Operation::ALL {
            compare(operation, &stores).await;
        }
        println!();
        drop(stores);
        engine.remove("small").await;
        engine.remove("large").await;
    });
}

#[derive(Debug, Clone, Copy)]
enum Operation {
    Get,
    Create,
    FunctionsFirst,
    FunctionsMiddle,
    FunctionsLast,
    FunctionsByOwner,
    FunctionsByLabel,
    FunctionsByPhase,
    GetRecord,
    CreateRecord,
    RecordsFirst,
    RecordsMiddle,
    RecordsLast,
    RecordsUntilMiddle,
    RecordsOfFunction,
    RecordsFailed,
    RecordsOfClass,
    RecordsByCaller,
    RecordsByLabel,
    StatisticsOfDay,
}

impl Operation {
    const ALL: [Self; 20] = [
        Self::Get,
        Self::Create,
        Self::FunctionsFirst,
        Self::FunctionsMiddle,
        Self::FunctionsLast,
        Self::FunctionsByOwner,
        Self::FunctionsByLabel,
        Self::FunctionsByPhase,
        Self::GetRecord,
        Self::CreateRecord,
        Self::RecordsFirst,
        Self::RecordsMiddle,
        Self::RecordsLast,
        Self::RecordsUntilMiddle,
        Self::RecordsOfFunction,
        Self::RecordsFailed,
        Self::RecordsOfClass,
        Self::RecordsByCaller,
        Self::RecordsByLabel,
        Self::StatisticsOfDay,
    ];
}

async fn compare(operation: Operation, stores: &[(SqlStore, Size)]) {
    const ROUNDS: usize = 31;
    /// Most groups have been read before then, by the same connection.
    const WARM: usize = 300;
    let mut times = [Vec::new(), Vec::new()];
    for (store, size) in stores {
        for _ in 0..WARM {
            run(operation, store, *size).await;
        }
    }
    for _ in 0..ROUNDS {
        for ((store, size), times) in stores.iter().zip(&mut times) {
            times.push(run(operation, store, *size).await);
        }
    }
    let [small, large] = times;
    println!(
        "{:<36} {:>9.0} µs {:>9.0} µs   {:.2}",
        format!("{operation:?}"),
        median(small.clone()).as_secs_f64() * 1e6,
        median(large.clone()).as_secs_f64() * 1e6,
        ratio(&large, &small),
    );
}

/// Runs an operation a few times, and says how long one took.
async fn run(operation: Operation, store: &SqlStore, size: Size) -> Duration {
    const TIMES: u32 = 5;
    let tenant = caller().tenant().clone();
    let mut took = Duration::ZERO;
    for _ in 0..TIMES {
        let function = fastrand::u64(1..=size.functions);
        let group = fastrand::u64(0..size.groups());
        let functions = async |filter: FunctionFilter, after: Option<u64>| {
            let mut page = PageRequest::first(100);
            if let Some(after) = after {
                page = page.after(cursor_of_functions(after));
            }
            let start = Instant::now();
            let page = FunctionStore::list(store, &tenant, &filter, &page).await.unwrap();
            assert!(!page.items.is_empty() && page.unreadable.is_empty());
            start.elapsed()
        };
        let records = async |set: &dyn Fn(&mut RecordFilter), after: Option<u64>| {
            let mut filter = RecordFilter::default();
            set(&mut filter);
            let mut page = PageRequest::first(100);
            if let Some(after) = after {
                page = page.after(cursor_of_records(after));
            }
            let start = Instant::now();
            let page = InvocationStore::list(store, &tenant, &filter, &page).await.unwrap();
            assert!(!page.items.is_empty() && page.unreadable.is_empty());
            start.elapsed()
        };
        let newest = time(size.records + 1);
        took += match operation {
            Operation::Get => {
                let start = Instant::now();
                assert!(FunctionStore::get(store, &key(function)).await.unwrap().is_some());
                start.elapsed()
            }
            Operation::Create => {
                let mut revision = revision(0);
                revision.key.name = parse(&format!("new-{}", fastrand::u64(..)));
                let created = Function::new(&revision, DriverRef::new("bench"));
                let start = Instant::now();
                store.create(&created, &revision).await.unwrap();
                let took = start.elapsed();
                let lease = store.acquire_lease(&created.key, Duration::from_secs(60)).await.unwrap().unwrap();
                store.delete(&lease, created.version).await.unwrap();
                took
            }
            Operation::FunctionsFirst => functions(FunctionFilter::all(), None).await,
            Operation::FunctionsMiddle => functions(FunctionFilter::all(), Some(size.functions / 2)).await,
            Operation::FunctionsLast => functions(FunctionFilter::all(), Some(size.functions - 100)).await,
            Operation::FunctionsByOwner => {
                functions(FunctionFilter::all().with_owner(parse(&format!("owner-{group}"))), None).await
            }
            Operation::FunctionsByLabel => {
                functions(FunctionFilter::all().with_label("team", format!("team-{group}")), None).await
            }
            Operation::FunctionsByPhase => {
                functions(FunctionFilter::all().with_phase(function_gateway_core::Phase::Failed), None).await
            }
            Operation::GetRecord => {
                let id = record_id(fastrand::u64(1..=size.records));
                let start = Instant::now();
                assert!(InvocationStore::get(store, &tenant, id).await.unwrap().is_some());
                start.elapsed()
            }
            Operation::CreateRecord => {
                // Older than all others, so that it changes no page.
                let mut record = InvocationRecord::clone(&record(&revision(function)));
                (record.created_at, record.finished_at) = (time(0), Some(time(0)));
                let start = Instant::now();
                store.finish(Arc::new(record), Durability::Durable).await.unwrap();
                start.elapsed()
            }
            Operation::RecordsFirst => records(&|_| (), None).await,
            Operation::RecordsMiddle => records(&|_| (), Some(size.records / 2)).await,
            Operation::RecordsLast => records(&|_| (), Some(102)).await,
            Operation::RecordsUntilMiddle => records(&|filter| filter.until = Some(time(size.records / 2)), None).await,
            Operation::RecordsOfFunction => {
                let name = key(function).name;
                records(&|filter| (filter.name, filter.until) = (Some(name.clone()), Some(newest)), None).await
            }
            Operation::RecordsFailed => records(&|filter| filter.state = Some(InvocationState::Failed), None).await,
            Operation::RecordsOfClass => records(&|filter| filter.class = Some(ErrorClass::Function), None).await,
            Operation::RecordsByCaller => {
                records(&|filter| filter.caller = Some(parse(&format!("caller-{group}"))), None).await
            }
            Operation::RecordsByLabel => {
                records(&|filter| filter.labels = vec![("team".to_owned(), format!("team-{group}"))], None).await
            }
            Operation::StatisticsOfDay => {
                let minutes = Duration::from_secs(60) * u32::try_from(MINUTES + 1).unwrap();
                let query = StatisticsQuery::new(time(0), time(0).plus(minutes)).of(key(1).name);
                let start = Instant::now();
                assert!(store.statistics(&tenant, &query).await.unwrap().count > 0);
                start.elapsed()
            }
        };
    }
    took / TIMES
}

fn cursor_of_records(after: u64) -> function_gateway_core::Cursor {
    let place = format!("{}/{}", time(after).as_micros(), record_id(after));
    function_gateway_core::Cursor::after(function_gateway_core::CursorKind::Records, &place)
}

fn cursor_of_functions(after: u64) -> function_gateway_core::Cursor {
    let name = key(after).name;
    function_gateway_core::Cursor::after(function_gateway_core::CursorKind::Functions, name.as_str())
}
