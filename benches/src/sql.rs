//! Databases with as many functions and records as one wants, filled by the databases themselves.

use std::fmt::Write as _;
use std::sync::Arc;

use function_gateway_core::store::sql::{SqlStore, SqlStoreOptions};
use function_gateway_core::{
    Acceptance, Delivery, Durability, ErrorClass, Failure, FunctionId, FunctionKey, FunctionStore, Generation,
    InvocationId, InvocationQueue, InvocationRecord, InvocationState, InvocationStore, InvokeRequest, Principal,
    Result, Revision, RevisionReason, StoredRequest, Submission, TimedPhase, Timestamp,
};
use sqlx::Connection as _;

use crate::{caller, noop_spec, parse};

/// The minute in which the first record was made.
const FIRST: i64 = 28_000_000;
/// The time between two records.
const STEP_MICROS: i64 = 10_000;
/// How many functions have the same owner or team.
pub const ALIKE: u64 = 1000;
/// How many minutes have figures of the function 1.
pub const MINUTES: i64 = 1440;

/// How full a database is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Functions of one tenant, with the names of [`key`].
    pub functions: u64,
    /// Records of their executions, in turn.
    pub records: u64,
}

impl Size {
    /// How many owners, teams and callers there are.
    #[must_use]
    pub fn groups(&self) -> u64 {
        (self.functions / ALIKE).max(1)
    }
}

/// The key of a function by its number, from 1.
#[must_use]
pub fn key(number: u64) -> FunctionKey {
    FunctionKey::new(caller().tenant().clone(), parse(&format!("f{number:07}")))
}

/// When the record of a number was made.
#[must_use]
pub fn time(number: u64) -> Timestamp {
    Timestamp::from_micros(FIRST * 60_000_000 + i64::try_from(number).unwrap_or(i64::MAX) * STEP_MICROS)
}

/// The id of the record of a number.
#[must_use]
pub fn record_id(number: u64) -> InvocationId {
    parse(&format!("00000002-0000-7000-8000-{number:012x}"))
}

/// A revision of the function with a number.
#[must_use]
pub fn revision(number: u64) -> Revision {
    let created = (Timestamp::now(), caller().principal().id.clone());
    let spec = noop_spec().with_label("team", "template");
    Revision::new(key(number), FunctionId::generate(), Generation::FIRST, spec, created, RevisionReason::Created)
}

/// A record of an execution that took a while.
#[must_use]
pub fn record(revision: &Revision) -> Arc<InvocationRecord> {
    let now = Timestamp::now();
    let id = InvocationId::generate();
    let mut record = InvocationRecord::new(id, revision, caller().principal().id.clone(), now);
    record.state = InvocationState::Succeeded;
    record.attempts = 1;
    record.started_at = Some(now);
    record.finished_at = Some(now);
    for (phase, micros) in [(TimedPhase::Driver, 1200), (TimedPhase::Total, 1234)] {
        record.timings.set(phase, std::time::Duration::from_micros(micros));
    }
    (record.request_bytes, record.response_bytes) = (Some(100), 100);
    Arc::new(record)
}

/// What SQL can't say in the same way everywhere.
struct Words {
    /// Numbers from 1 to the one that follows.
    series: fn(u64) -> String,
    /// A number in hexadecimal digits, and in decimal ones with zeros before it.
    hex: fn(&str) -> String,
    decimal: fn(&str) -> String,
    text: fn(&str) -> String,
}

fn words(url: &str) -> Words {
    if url.starts_with("sqlite:") {
        Words {
            series: |count| {
                format!(
                    "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) SELECT i FROM n)"
                )
            },
            hex: |i| format!("printf('%012x', {i})"),
            decimal: |i| format!("printf('%07d', {i})"),
            text: |i| format!("CAST({i} AS BLOB)"),
        }
    } else {
        Words {
            series: |count| format!("(SELECT i FROM generate_series(1::bigint, {count}::bigint) AS s(i))"),
            hex: |i| format!("lpad(to_hex({i}), 12, '0')"),
            decimal: |i| format!("lpad(({i})::text, 7, '0')"),
            text: |i| format!("convert_to({i}, 'UTF8')"),
        }
    }
}

/// Opens the database at a URL, which has to be empty, and fills it.
///
/// # Errors
/// Those of the store and of the database.
///
/// # Panics
/// Where the database refuses a statement.
pub async fn filled(url: &str, size: Size) -> Result<SqlStore> {
    let store = SqlStore::connect(url, SqlStoreOptions::default()).await?;
    // What is multiplied is written by the store itself: a function, two records, and their figures.
    let template = revision(0);
    let function = function_gateway_core::Function::new(&template, function_gateway_core::DriverRef::new("bench"));
    store.create(&function, &template).await?;
    let good = record(&template);
    store.finish(Arc::clone(&good), Durability::Durable).await?;
    let mut bad = InvocationRecord::clone(&good);
    bad.id = InvocationId::generate();
    bad.state = InvocationState::Failed;
    bad.failure = Some(Failure::new(ErrorClass::Function, "function_failed", "it failed", Delivery::Executed));
    store.finish(Arc::new(bad), Durability::Durable).await?;
    execute(url, &multiply(url, size)).await;
    Ok(store)
}

fn multiply(url: &str, size: Size) -> String {
    let Words { series, hex, decimal, text } = words(url);
    let (functions, records) = (series(size.functions), series(size.records));
    let groups = size.groups();
    let tenant = caller().tenant().clone();
    let start = FIRST * 60_000_000;
    let name = |i: &str| format!("'f' || {}", decimal(i));
    let uuid = |i: &str, kind: u8| format!("'{kind:08}-0000-7000-8000-' || {}", hex(i));
    // The record of number i is of this function.
    let of = format!("(1 + i % {})", size.functions);
    let (of_name, of_id, id) = (name(&of), uuid(&of, 1), uuid("i", 2));
    let mut script = String::new();
    // Each line is one statement.
    let _ = writeln!(
        script,
        "INSERT INTO fg_functions (tenant, name, id, owner, driver, phase, generation, version, created_at, updated_at, \
         reconcile_at, format, spec, status) SELECT tenant, {}, {}, 'owner-' || (i % {groups}), driver, \
         CASE i % 100 WHEN 0 THEN 'failed' ELSE 'ready' END, generation, version, created_at, updated_at, NULL, format, \
         spec, status FROM fg_functions t, {functions} AS numbers WHERE t.name = 'f0000000';",
        name("i"),
        uuid("i", 1),
    );
    let number = "CAST(substr(name, 2) AS BIGINT)";
    let _ = writeln!(
        script,
        "INSERT INTO fg_function_labels (tenant, label_key, label_value, name, seq) SELECT tenant, {}, {}, name, seq \
         FROM fg_functions WHERE name <> 'f0000000';",
        text("'team'"),
        text(&format!("'team-' || ({number} % {groups})")),
    );
    let _ = writeln!(
        script,
        "INSERT INTO fg_invocations (id, tenant, name, function_id, state, class, caller, created_at, finished_at, format, \
         document) SELECT {id}, t.tenant, {of_name}, {of_id}, t.state, t.class, 'caller-' || (i % {groups}), \
         {start} + i * {STEP_MICROS}, {start} + i * {STEP_MICROS}, t.format, t.document \
         FROM {records} AS numbers JOIN fg_invocations t ON t.name = 'f0000000' \
         AND t.state = CASE i % 50 WHEN 0 THEN 'failed' ELSE 'succeeded' END;"
    );
    let _ = writeln!(
        script,
        "INSERT INTO fg_invocation_labels (id, label_key, label_value, tenant, created_at) SELECT {id}, {}, {}, '{tenant}', \
         {start} + i * {STEP_MICROS} FROM {records} AS numbers WHERE i % 10 = 0;",
        text("'team'"),
        text(&format!("'team-' || (i / 10 % {groups})")),
    );
    // A day of one function, and as many rows of the others as there are functions.
    let _ = writeln!(
        script,
        "INSERT INTO fg_rollups (id, tenant, name, minute, format, document) SELECT {}, tenant, 'f0000001', {FIRST} + i, \
         format, document FROM {} AS numbers, (SELECT * FROM fg_rollups LIMIT 1) AS t;",
        uuid("i", 3),
        series(MINUTES.unsigned_abs()),
    );
    let _ = writeln!(
        script,
        "INSERT INTO fg_rollups (id, tenant, name, minute, format, document) SELECT {}, tenant, {}, {FIRST} + i % {MINUTES}, \
         format, document FROM {functions} AS numbers, (SELECT * FROM fg_rollups LIMIT 1) AS t WHERE i > 1;",
        uuid("i", 4),
        name("i"),
    );
    script.push_str(if url.starts_with("sqlite:") { "ANALYZE;\n" } else { "VACUUM ANALYZE;\n" });
    // Read once, by the index, so that server and system hold what they have room for: what is measured is a store in use, and not
    // the disk under a new one.
    let by_index =
        if url.starts_with("sqlite:") { "" } else { "SET enable_seqscan = off; SET enable_bitmapscan = off; " };
    for (table, column, key) in [("fg_functions", "spec", "tenant, name"), ("fg_invocations", "document", "id")] {
        let _ = writeln!(
            script,
            "{by_index}SELECT sum(length({column})) FROM (SELECT {column} FROM {table} ORDER BY {key}) AS all_rows;"
        );
    }
    script
}

/// An invocation to be accepted, with a payload of 100 bytes and its record.
///
/// # Errors
/// Where the request can't be stored.
pub fn acceptance(revision: &Revision) -> Result<Acceptance> {
    let (payload, now) = (bytes::Bytes::from_static(&[b'x'; 100]), Timestamp::now());
    let request = StoredRequest::of(&InvokeRequest::new(payload.clone()))?;
    let principal = Principal::clone(caller().principal());
    let id = InvocationId::generate();
    let mut record = InvocationRecord::new(id, revision, principal.id.clone(), now);
    record.state = InvocationState::Queued;
    let submission = Submission::new(id, revision, principal, now, request, payload);
    Ok(Acceptance::new(Arc::new(submission), Some(Arc::new(record))))
}

/// Fills the queue of a database that is empty with invocations that are due, without their records.
///
/// # Errors
/// Those of the store.
///
/// # Panics
/// Where the database refuses a statement.
pub async fn filled_queue(url: &str, store: &SqlStore, revision: &Revision, count: u64) -> Result<()> {
    store.accept(acceptance(revision)?).await?;
    let Words { series, hex, .. } = words(url);
    let id = format!("'00000005-0000-7000-8000-' || {}", hex("i"));
    let copied = "tenant, name, function_id, state, epoch, attempts, repeatable, cancel_requested, created_at, format, \
                  progress, payload";
    let mut script = format!(
        "INSERT INTO fg_submissions (id, due_at, document, {copied}) SELECT {id}, due_at + i, \
         replace(document, t.id, {id}), {copied} FROM {} AS numbers, (SELECT * FROM fg_submissions LIMIT 1) AS t;\n",
        series(count),
    );
    let _ = writeln!(script, "UPDATE fg_queue_depth SET open = open + {count};");
    script.push_str(if url.starts_with("sqlite:") { "ANALYZE;\n" } else { "VACUUM ANALYZE;\n" });
    execute(url, &script).await;
    Ok(())
}

/// Runs statements, one in each line.
///
/// # Panics
/// Where the database refuses one.
#[expect(clippy::panic, reason = "the benchmarks' own statements")]
pub async fn execute(url: &str, script: &str) {
    for line in script.lines() {
        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(line.to_owned()));
        let done = match url.starts_with("sqlite:") {
            true => match sqlx::SqliteConnection::connect(url).await {
                Ok(mut connection) => statement.execute(&mut connection).await.map(|_| ()),
                Err(error) => Err(error),
            },
            false => match sqlx::PgConnection::connect(url).await {
                Ok(mut connection) => statement.execute(&mut connection).await.map(|_| ()),
                Err(error) => Err(error),
            },
        };
        done.unwrap_or_else(|error| panic!("{line}: {error}"));
    }
}
