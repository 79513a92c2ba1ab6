//! PostgreSQL 13 and later. Any number of processes may share a database.

use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgListener, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::{ConnectOptions as _, Executor as _, Postgres, Row as _, TypeInfo as _, ValueRef as _};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::context::TokioContext;

use super::SqlStoreOptions;
use super::engine::{
    Cell, Connected, Dialect, Engine, Hear, Migration, Row, STATEMENTS, Session, Statement, TakeRow, Upsert, Value,
    held, session,
};
use super::fault::{Fault, FaultKind};

static DIALECT: Dialect = Dialect {
    engine: "postgres",
    numbered: true,
    now: "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)",
    for_update: " FOR UPDATE",
    skip_locked: " FOR UPDATE SKIP LOCKED",
    notify: Some("SELECT pg_notify('fg_queue', "),
    insert_new: "INSERT INTO",
    selects_values: false,
    upsert: Upsert::OnConflict,
};

static MIGRATIONS: [Migration; 5] = [
    Migration { version: 1, min_reader: 1, script: include_str!("migrations/postgres/0001.sql") },
    Migration { version: 2, min_reader: 1, script: include_str!("migrations/postgres/0002.sql") },
    Migration { version: 3, min_reader: 1, script: include_str!("migrations/postgres/0003.sql") },
    Migration { version: 4, min_reader: 1, script: include_str!("migrations/postgres/0004.sql") },
    Migration { version: 5, min_reader: 5, script: include_str!("migrations/postgres/0005.sql") },
];

/// What a URL may set. sqlx writes others, with their values, into the log.
const PARAMETERS: [&str; 8] = ["sslmode", "sslrootcert", "sslcert", "sslkey", "host", "hostaddr", "port", "options"];

#[derive(Debug)]
struct PostgresEngine {
    pool: PgPool,
    runtime: Handle,
    /// Ends what listens when it is dropped.
    alive: watch::Sender<()>,
}

pub(super) async fn connect(url: &str, options: &SqlStoreOptions, runtime: &Handle) -> Result<Connected, Fault> {
    super::check_parameters(url, &PARAMETERS)?;
    let server: PgConnectOptions = url.parse().map_err(|error| super::unreadable_url(&error))?;
    let millis = options.operation_timeout.as_millis().clamp(1, 86_400_000);
    // A little sooner, so that who waits for a lock is told so.
    let for_lock = (millis - millis / 10).max(1);
    let idle = options.idle_transaction_timeout().as_millis();
    let pool = PgPoolOptions::new()
        .max_connections(options.max_connections.max(2))
        .acquire_timeout(options.acquire_timeout())
        // One that turns out to be broken is replaced, which is cheaper than to ask each time.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                // What is given up here goes on in the server for no longer.
                let bounds = format!(
                    "SET statement_timeout = {millis}; SET lock_timeout = {for_lock}; \
                     SET idle_in_transaction_session_timeout = {idle}"
                );
                connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(bounds))).await?;
                // Each statement sees what was committed before it, however the server is set up.
                connection.execute("SET default_transaction_isolation = 'read committed'").await?;
                // A server may be set up to answer a commit before it is on the disk.
                connection
                    .execute("SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'")
                    .await?;
                Ok(())
            })
        })
        .connect_with(server.application_name("function-gateway").statement_cache_capacity(STATEMENTS).disable_statement_logging())
        .await
        // A new pool is not full: it could not connect.
        .map_err(|error| fault(error).unless_full(false))?;
    let engine = PostgresEngine { pool, runtime: runtime.clone(), alive: watch::Sender::new(()) };
    let mut session = engine.reader().await?;
    let fsync = session.row(DIALECT.sql("SHOW fsync")).await?;
    session.release().await;
    let undurable = fsync
        .is_some_and(|mut row| row.text(0).is_ok_and(|fsync| fsync == "off"))
        .then_some("fsync is off in the server, so it may lose what it has committed");
    Ok(Connected { engine: Box::new(engine), undurable })
}

fn fault(error: sqlx::Error) -> Fault {
    Fault::new(error, of_database)
}

fn of_database(error: &dyn DatabaseError) -> FaultKind {
    // https://www.postgresql.org/docs/current/errcodes-appendix.html
    let code = error.code().unwrap_or_default();
    match &*code {
        "40001" | "40P01" | "55P03" => FaultKind::Contended,
        "57014" => FaultKind::Slow,
        "53300" | "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => FaultKind::Refusing,
        "42P01" => FaultKind::NoTable,
        "42501" => FaultKind::Denied,
        "3D000" => FaultKind::NoDatabase,
        "53100" | "53200" => FaultKind::Full,
        "25006" => FaultKind::ReadOnly,
        "XX001" | "XX002" => FaultKind::Damaged,
        code if code.starts_with("08") => FaultKind::Lost,
        code if code.starts_with("28") => FaultKind::Denied,
        code if code.starts_with("22") => FaultKind::Value,
        // That of a key is told apart before.
        code if code.starts_with("23") => FaultKind::Constraint,
        _ => FaultKind::Other,
    }
}

fn bind(query: Query<'_, Postgres, PgArguments>, value: Value) -> Query<'_, Postgres, PgArguments> {
    match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Shared(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    }
}

fn cell(row: &PgRow, column: usize) -> Result<Cell, String> {
    let raw = row.try_get_raw(column).map_err(|error| error.to_string())?;
    if raw.is_null() {
        return Ok(Cell::Null);
    }
    let is_int = raw.type_info().name() == "INT8";
    let cell = match is_int {
        true => row.try_get_unchecked(column).map(Cell::Int),
        false => row.try_get_unchecked(column).map(Cell::Bytes),
    };
    cell.map_err(|error| error.to_string())
}

session!(Postgres, PoolConnection<Postgres>, |_connection| Ok(()), |_connection| ());
held!(Postgres);

impl PostgresEngine {
    async fn acquire(&self) -> Result<PoolConnection<Postgres>, Fault> {
        // One that is opened for this caller outlives the caller's runtime.
        let acquired = TokioContext::new(self.pool.acquire(), self.runtime.clone()).await;
        acquired
            .map_err(|error| fault(error).unless_full(self.pool.size() >= self.pool.options().get_max_connections()))
    }
}

/// Before listening is tried again.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// Listens until the connection breaks.
async fn listen(server: &PgPool, hear: &Hear) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(server).await?;
    listener.listen("fg_queue").await?;
    // What was told before that.
    hear(None);
    while let Some(told) = listener.try_recv().await? {
        hear(Some(told.payload()));
    }
    Ok(())
}

#[async_trait]
impl Engine for PostgresEngine {
    fn dialect(&self) -> &'static Dialect {
        &DIALECT
    }

    async fn reader(&self) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(Held::new(self.acquire().await?)))
    }

    async fn transaction(&self) -> Result<Box<dyn Session>, Fault> {
        let connection = self.acquire().await?;
        Ok(Box::new(Held::new(connection).begin().await?))
    }

    async fn exclusive(&self) -> Result<Box<dyn Session>, Fault> {
        let mut session = self.transaction().await?;
        // Others may be at it for long, and so may this one.
        session.execute(DIALECT.sql("SET LOCAL statement_timeout = 0")).await?;
        session.execute(DIALECT.sql("SET LOCAL lock_timeout = 0")).await?;
        // "fgwy" as a number; other programs that lock in this database use other numbers.
        session.execute(DIALECT.sql("SELECT pg_advisory_xact_lock(1718646649)")).await?;
        Ok(session)
    }

    fn migrations(&self) -> &'static [Migration] {
        &MIGRATIONS
    }

    fn listen(&self, hear: Hear) {
        // Beside the connections that work.
        let options = PgPoolOptions::new().max_connections(1).idle_timeout(None).max_lifetime(None);
        let server = options.connect_lazy_with(PgConnectOptions::clone(&self.pool.connect_options()));
        let (closed, mut alive) = (self.pool.close_event(), self.alive.subscribe());
        self.runtime.spawn(async move {
            let listening = async {
                loop {
                    if let Err(error) = listen(&server, &hear).await {
                        tracing::debug!(?error, "what other processes tell of the queue is not heard for a moment");
                    }
                    tokio::time::sleep(LISTEN_AGAIN.mul_f64(0.5 + fastrand::f64())).await;
                }
            };
            tokio::select! {
                () = closed => {}
                _ = alive.changed() => {}
                () = listening => {}
            }
            server.close().await;
        });
    }

    async fn close(&self) {
        self.pool.close().await;
    }

    fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }
}
