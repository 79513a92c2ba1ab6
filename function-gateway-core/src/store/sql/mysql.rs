//! MariaDB 10.6 and later, and MySQL 8. Any number of processes may share a database.

use std::ops::{Deref, DerefMut};

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::error::DatabaseError;
use sqlx::mysql::{
    MySql, MySqlArguments, MySqlConnectOptions, MySqlConnection, MySqlDatabaseError, MySqlPool, MySqlPoolOptions,
    MySqlRow,
};
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::{ConnectOptions as _, Executor as _, Row as _, TypeInfo as _, ValueRef as _};
use tokio::runtime::Handle;
use tokio_util::context::TokioContext;

use super::SqlStoreOptions;
use super::engine::{
    Cell, Connected, Dialect, Engine, Migration, Row, STATEMENTS, Session, Statement, TakeRow, Upsert, Value, held,
    session,
};
use super::fault::{Fault, FaultKind};

static DIALECT: Dialect = Dialect {
    engine: "mysql",
    numbered: false,
    // That of the moment: others give the time at which the statement began, which may have waited for a lock since. sqlx has
    // sessions go by UTC.
    now: "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', SYSDATE(6))",
    for_update: " FOR UPDATE",
    skip_locked: " FOR UPDATE SKIP LOCKED",
    notify: None,
    insert_new: "INSERT INTO",
    selects_values: false,
    upsert: Upsert::OnDuplicateKey,
};

static MIGRATIONS: [Migration; 5] = [
    Migration { version: 1, min_reader: 1, script: include_str!("migrations/mysql/0001.sql") },
    Migration { version: 2, min_reader: 1, script: include_str!("migrations/mysql/0002.sql") },
    Migration { version: 3, min_reader: 1, script: include_str!("migrations/mysql/0003.sql") },
    Migration { version: 4, min_reader: 1, script: include_str!("migrations/mysql/0004.sql") },
    Migration { version: 5, min_reader: 5, script: include_str!("migrations/mysql/0005.sql") },
];

/// What a URL may set. sqlx takes no notice of others: one that is misspelt would not do what is wanted.
const PARAMETERS: [&str; 8] = ["ssl-mode", "sslmode", "ssl-ca", "sslca", "ssl-cert", "ssl-key", "socket", "charset"];

#[derive(Debug)]
struct MysqlEngine {
    pool: MySqlPool,
    runtime: Handle,
}

pub(super) async fn connect(url: &str, options: &SqlStoreOptions, runtime: &Handle) -> Result<Connected, Fault> {
    super::check_parameters(url, &PARAMETERS)?;
    let server: MySqlConnectOptions = url.parse().map_err(|error| super::unreadable_url(&error))?;
    let seconds = options.operation_timeout.as_secs().clamp(1, 86_400);
    let idle = options.idle_transaction_timeout().as_secs().max(1);
    let pool = MySqlPoolOptions::new()
        .max_connections(options.max_connections.max(2))
        .acquire_timeout(options.acquire_timeout())
        // One that turns out to be broken is replaced, which is cheaper than to ask each time.
        .test_before_acquire(false)
        .after_connect(move |connection, _| {
            Box::pin(async move {
                // What is given up here waits in the server for no longer.
                let bounds =
                    format!("SET SESSION innodb_lock_wait_timeout = {seconds}, SESSION lock_wait_timeout = {seconds}");
                connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(bounds))).await?;
                let idle = format!("SET SESSION idle_transaction_timeout = {idle}");
                match connection.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(idle))).await {
                    // MySQL has no such bound.
                    Err(sqlx::Error::Database(error)) if number(&*error) == Some(UNKNOWN_VARIABLE) => {}
                    Err(error) => return Err(error),
                    Ok(_) => {}
                }
                // What is locked for a change is what is changed, and not the gaps beside it.
                connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                Ok(())
            })
        })
        .connect_with(server.statement_cache_capacity(STATEMENTS).disable_statement_logging())
        .await
        // A new pool is not full: it could not connect.
        .map_err(|error| fault(error).unless_full(false))?;
    let engine = MysqlEngine { pool, runtime: runtime.clone() };
    let settings = "SELECT CAST(@@GLOBAL.innodb_flush_log_at_trx_commit AS SIGNED), CAST(@@GLOBAL.log_bin AS SIGNED), \
                    CAST(@@GLOBAL.sync_binlog AS SIGNED)";
    let mut session = engine.reader().await?;
    let undurable = session.row(DIALECT.sql(settings)).await?.and_then(|mut row| {
        let (at_commit, has_binlog, sync_binlog) = (row.int(0).ok()?, row.int(1).ok()?, row.int(2).ok()?);
        if !matches!(at_commit, 1 | 3) {
            return Some("innodb_flush_log_at_trx_commit is not 1 in the server, so it may lose what it has committed");
        }
        // At its start the server undoes what is missing there.
        let loses = has_binlog != 0 && sync_binlog != 1;
        loses.then_some("the server writes a binary log and sync_binlog is not 1, so it may lose what it has committed")
    });
    session.release().await;
    Ok(Connected { engine: Box::new(engine), undurable })
}

fn fault(error: sqlx::Error) -> Fault {
    Fault::new(error, of_database)
}

fn number(error: &dyn DatabaseError) -> Option<u16> {
    error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number)
}

/// `ER_UNKNOWN_SYSTEM_VARIABLE`.
const UNKNOWN_VARIABLE: u16 = 1193;

fn of_database(error: &dyn DatabaseError) -> FaultKind {
    // https://mariadb.com/docs/server/reference/error-codes
    match number(error) {
        Some(1205 | 1213 | 1020 | 3572) => FaultKind::Contended,
        Some(1969 | 3024) => FaultKind::Slow,
        Some(1040 | 1053 | 1203 | 1226 | 1047 | 4031) => FaultKind::Refusing,
        Some(1927 | 1077 | 1079) => FaultKind::Lost,
        Some(1146) => FaultKind::NoTable,
        Some(1044 | 1045 | 1142 | 1227 | 1698) => FaultKind::Denied,
        Some(1049) => FaultKind::NoDatabase,
        Some(1021 | 1026 | 1030 | 1114 | 1041) => FaultKind::Full,
        Some(1264 | 1265 | 1292 | 1366 | 1406 | 1153) => FaultKind::Value,
        Some(1048 | 1364 | 1451 | 1452 | 3819 | 4025) => FaultKind::Constraint,
        Some(1290 | 1792 | 1836) => FaultKind::ReadOnly,
        Some(1034 | 1712) => FaultKind::Damaged,
        _ => FaultKind::Other,
    }
}

fn bind(query: Query<'_, MySql, MySqlArguments>, value: Value) -> Query<'_, MySql, MySqlArguments> {
    match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Shared(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    }
}

fn cell(row: &MySqlRow, column: usize) -> Result<Cell, String> {
    let raw = row.try_get_raw(column).map_err(|error| error.to_string())?;
    if raw.is_null() {
        return Ok(Cell::Null);
    }
    let is_int = raw.type_info().name().contains("INT");
    let cell = match is_int {
        true => row.try_get_unchecked(column).map(Cell::Int),
        false => row.try_get_unchecked(column).map(Cell::Bytes),
    };
    cell.map_err(|error| error.to_string())
}

session!(MySql, PoolConnection<MySql>, |_connection| Ok(()), |_connection| ());
held!(MySql);

/// A connection of its own that holds the lock of migrations; closing it gives the lock back.
struct Locked(MySqlConnection);

impl Deref for Locked {
    type Target = MySqlConnection;

    fn deref(&self) -> &MySqlConnection {
        &self.0
    }
}

impl DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut MySqlConnection {
        &mut self.0
    }
}

session!(MySql, Locked, |_connection| Ok(()), |_connection| ());

impl MysqlEngine {
    async fn acquire(&self) -> Result<PoolConnection<MySql>, Fault> {
        // One that is opened for this caller outlives the caller's runtime.
        let acquired = TokioContext::new(self.pool.acquire(), self.runtime.clone()).await;
        acquired
            .map_err(|error| fault(error).unless_full(self.pool.size() >= self.pool.options().get_max_connections()))
    }
}

#[async_trait]
impl Engine for MysqlEngine {
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
        let connection = self.acquire().await?;
        let mut session: Box<dyn Session> = Box::new(Locked(connection.detach()));
        session.execute(DIALECT.sql("SET SESSION lock_wait_timeout = 86400")).await?;
        // The name of a lock is the server's: databases must not wait for each other.
        let lock = DIALECT.sql("SELECT GET_LOCK(CONCAT('function-gateway/', MD5(DATABASE())), 60)");
        let answer = session.row(lock).await?.map(|mut row| row.int(0));
        if matches!(answer, Some(Ok(1))) { Ok(session) } else { Err(Fault::TimedOut) }
    }

    fn migrations(&self) -> &'static [Migration] {
        &MIGRATIONS
    }

    async fn close(&self) {
        self.pool.close().await;
    }

    fn is_closed(&self) -> bool {
        self.pool.is_closed()
    }
}
