//! The queue: how fast invocations are accepted and executed, and whether many that wait make it slower.

use std::sync::Arc;
use std::time::{Duration, Instant};

use function_gateway_benches::sql::{acceptance, filled_queue, revision};
use function_gateway_benches::{caller, median, ratio};
use function_gateway_core::store::sql::SqlStore;
use function_gateway_core::{
    Dispatch, InvocationQueue, InvocationRecord, InvocationState, Progress, Revision, Settled, Settlement, TakeRequest,
    TakenInvocation, Timestamp,
};
use sqlx::{Connection as _, Row as _};

use super::{AS_THE_STORE, Engine, STATEMENT, insertion};

const LEASE: Duration = Duration::from_secs(3600);
const ACCEPTED: usize = 20_000;

pub(super) async fn queue(engine: &Engine) {
    for submitters in [64, 512] {
        accepting(engine, submitters).await;
    }
    executing(engine).await;
    waiting(engine).await;
    println!();
}

/// Accepts from so many tasks at a time. Says how long it took.
async fn accept(store: &SqlStore, revision: &Revision, count: usize, submitters: usize) -> Duration {
    let acceptances: Vec<_> = (0..count).map(|_| acceptance(revision).unwrap()).collect();
    let start = Instant::now();
    let tasks = acceptances.chunks(count / submitters).map(|chunk| {
        let (store, chunk) = (store.clone(), chunk.to_vec());
        tokio::spawn(async move {
            for acceptance in chunk {
                store.accept(acceptance).await.unwrap();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    start.elapsed()
}

async fn accepting(engine: &Engine, submitters: usize) {
    const ROUNDS: usize = 5;
    let (mut store_times, mut bare_times, mut batch) = (Vec::new(), Vec::new(), 0);
    for _ in 0..ROUNDS {
        let (url, bare_url) = (engine.database("queue").await, engine.database("bare").await);
        let store = SqlStore::open(&url).await.unwrap();
        SqlStore::open(&bare_url).await.unwrap().close().await;
        store_times.push(accept(&store, &revision(1), ACCEPTED, submitters).await);
        store.close().await;
        let mut rows = Vec::new();
        for table in TABLES {
            rows.push(read(&url, table).await);
        }
        batch = ACCEPTED.div_ceil(usize::try_from(number(&url, "SELECT MAX(batch) FROM fg_commits").await).unwrap());
        bare_times.push(insert(&bare_url, &rows, batch).await);
        engine.remove_files();
    }
    engine.remove("queue").await;
    engine.remove("bare").await;
    let rate = |times: &[Duration]| ACCEPTED as f64 / median(times.to_vec()).as_secs_f64();
    println!(
        "accepted by {submitters} at a time: {:.0}/s in commits of {batch}, bare inserts of the same rows {:.0}/s: {:.2} of it",
        rate(&store_times),
        rate(&bare_times),
        ratio(&bare_times, &store_times),
    );
}

fn ended(taken: &TakenInvocation, revision: &Revision) -> Settlement {
    let submission = &taken.invocation.submission;
    let caller = caller().principal().id.clone();
    let mut record = InvocationRecord::new(submission.id, revision, caller, submission.created_at);
    (record.state, record.finished_at) = (InvocationState::Succeeded, Some(Timestamp::now()));
    record.key = submission.key.clone();
    let settled = Settled::Ended { record: Some(Arc::new(record)), dead: false, keep_for: LEASE };
    Settlement::new(settled, Progress::default())
}

async fn executing(engine: &Engine) {
    const WORKERS: usize = 8;
    let url = engine.database("queue").await;
    let store = SqlStore::open(&url).await.unwrap();
    let revision = revision(1);
    accept(&store, &revision, ACCEPTED, 512).await;
    let start = Instant::now();
    let workers = (0..WORKERS).map(|_| {
        let (store, revision) = (store.clone(), revision.clone());
        tokio::spawn(async move {
            loop {
                let taken = store.take(&TakeRequest::new(64, LEASE)).await.unwrap();
                if taken.items.is_empty() && taken.next_due.is_none_or(|next| next > LEASE / 2) {
                    return;
                }
                let executing = taken.items.iter().map(|item| async {
                    store.dispatch(&item.lease, Dispatch::new(1, LEASE)).await.unwrap();
                    store.settle(&item.lease, ended(item, &revision)).await.unwrap();
                });
                futures_util::future::join_all(executing).await;
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.unwrap();
    }
    println!("taken, dispatched and settled: {:.0}/s", ACCEPTED as f64 / start.elapsed().as_secs_f64());
    let mut times = Vec::new();
    let mut arrivals = store.arrivals();
    for _ in 0..200 {
        let new = acceptance(&revision).unwrap();
        let start = Instant::now();
        let (accepted, ()) = futures_util::future::join(store.accept(new), arrivals.changed()).await;
        accepted.unwrap();
        let taken = store.take(&TakeRequest::new(1, LEASE)).await.unwrap();
        times.push(start.elapsed());
        for item in &taken.items {
            store.settle(&item.lease, ended(item, &revision)).await.unwrap();
        }
    }
    println!("from the acceptance to the taking of one: {:.1?} (median)", median(times));
    store.close().await;
    engine.remove("queue").await;
    engine.remove_files();
}

/// Accepts and takes where few and many wait.
async fn waiting(engine: &Engine) {
    const ROUNDS: usize = 5;
    let (mut accepts, mut takes) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut stores = Vec::new();
    for (name, count) in [("few", 1_000), ("many", 1_000_000)] {
        let url = engine.database(name).await;
        let (store, revision) = (SqlStore::open(&url).await.unwrap(), revision(1));
        filled_queue(&url, &store, &revision, count).await.unwrap();
        stores.push((store, revision));
    }
    for _ in 0..=ROUNDS {
        for ((store, revision), (accepts, takes)) in stores.iter().zip(accepts.iter_mut().zip(&mut takes)) {
            accepts.push(accept(store, revision, 2_000, 64).await / 2_000);
            for _ in 0..20 {
                let start = Instant::now();
                let taken = store.take(&TakeRequest::new(32, Duration::from_millis(1))).await.unwrap();
                takes.push(start.elapsed());
                assert_eq!(taken.items.len(), 32);
            }
        }
    }
    for (what, [few, many]) in [("accepting one", accepts), ("taking 32", takes)] {
        println!(
            "{what}: {:.1?} where 1,000 wait, {:.1?} where 1,000,000 do: {:.2} times",
            median(few.clone()),
            median(many.clone()),
            ratio(&many, &few),
        );
    }
    for (store, _) in stores {
        store.close().await;
    }
    engine.remove("few").await;
    engine.remove("many").await;
    engine.remove_files();
}

struct Table {
    name: &'static str,
    texts: &'static [&'static str],
    numbers: &'static [&'static str],
    bytes: &'static [&'static str],
}

/// What accepting writes, but for a few rows in all.
const TABLES: [&Table; 2] = [
    &Table {
        name: "fg_invocations",
        texts: &["id", "tenant", "name", "function_id", "state", "class", "caller", "document"],
        numbers: &["created_at", "finished_at", "format"],
        bytes: &["payload", "result", "logs"],
    },
    &Table {
        name: "fg_submissions",
        texts: &["id", "tenant", "name", "function_id", "state", "document", "progress"],
        numbers: &["pinned", "due_at", "epoch", "attempts", "repeatable", "cancel_requested", "created_at", "format"],
        bytes: &["idem_key", "payload"],
    },
];

impl Table {
    fn columns(&self) -> Vec<&'static str> {
        [self.texts, self.numbers, self.bytes].concat()
    }
}

/// A row of a table as the database has it.
struct Raw(Vec<Option<String>>, Vec<Option<i64>>, Vec<Option<Vec<u8>>>);

async fn read(url: &str, table: &Table) -> Vec<Raw> {
    let select = format!("SELECT {} FROM {} ORDER BY id", table.columns().join(", "), table.name);
    let select = sqlx::AssertSqlSafe(select);
    let (texts, numbers, bytes) = (table.texts.len(), table.numbers.len(), table.bytes.len());
    macro_rules! read {
        ($connection:expr) => {{
            let rows = sqlx::query(select).fetch_all($connection).await.unwrap();
            let raw = rows.iter().map(|row| {
                let second = texts + numbers;
                Raw(
                    (0..texts).map(|column| row.get(column)).collect(),
                    (texts..second).map(|column| row.get(column)).collect(),
                    (second..second + bytes).map(|column| row.get(column)).collect(),
                )
            });
            raw.collect()
        }};
    }
    match url.starts_with("sqlite:") {
        true => read!(&mut sqlx::SqliteConnection::connect(url).await.unwrap()),
        false => read!(&mut sqlx::PgConnection::connect(url).await.unwrap()),
    }
}

/// Inserts rows of the tables, so many of each in a transaction, in statements of as many rows as the store's.
async fn insert(url: &str, rows: &[Vec<Raw>], batch: usize) -> Duration {
    macro_rules! insert {
        ($connection:expr, $numbered:literal) => {{
            let mut connection = $connection;
            let start = Instant::now();
            for at in (0..rows[0].len()).step_by(batch) {
                sqlx::raw_sql("BEGIN").execute(&mut connection).await.unwrap();
                for (table, rows) in TABLES.iter().zip(rows) {
                    let columns = table.columns();
                    for rows in rows[at..rows.len().min(at + batch)].chunks(STATEMENT) {
                        let text = insertion(table.name, &columns, rows.len(), $numbered);
                        let mut query = sqlx::query(sqlx::AssertSqlSafe(text));
                        for Raw(texts, numbers, bytes) in rows {
                            for text in texts {
                                query = query.bind(text.as_deref());
                            }
                            for number in numbers {
                                query = query.bind(number);
                            }
                            for bytes in bytes {
                                query = query.bind(bytes.as_deref());
                            }
                        }
                        query.execute(&mut connection).await.unwrap();
                    }
                }
                sqlx::raw_sql("COMMIT").execute(&mut connection).await.unwrap();
            }
            start.elapsed()
        }};
    }
    match url.starts_with("sqlite:") {
        true => {
            let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
            sqlx::raw_sql(AS_THE_STORE).execute(&mut connection).await.unwrap();
            insert!(connection, false)
        }
        false => insert!(sqlx::PgConnection::connect(url).await.unwrap(), true),
    }
}

async fn number(url: &str, query: &'static str) -> i64 {
    match url.starts_with("sqlite:") {
        true => sqlx::raw_sql(query)
            .fetch_one(&mut sqlx::SqliteConnection::connect(url).await.unwrap())
            .await
            .unwrap()
            .get(0),
        false => {
            sqlx::raw_sql(query).fetch_one(&mut sqlx::PgConnection::connect(url).await.unwrap()).await.unwrap().get(0)
        }
    }
}
