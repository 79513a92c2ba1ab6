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
use sqlx::{ConnectOptions as _, Executor as _, Row as _, Transaction, TypeInfo as _, ValueRef as _};

use super::SqlStoreOptions;
use super::engine::{
    Cell, Connected, Dialect, Engine, Migration, Row, STATEMENTS, Session, Statement, TakeRow, Upsert, Value, session,
};
use super::fault::{Fault, FaultKind};

static DIALECT: Dialect = Dialect {
    engine: "mysql",
    numbered: false,
    // That of the moment: others give the time at which the statement began, which may have waited for a lock since. sqlx has
    // sessions go by UTC.
    now: "TIMESTAMPDIFF(MICROSECOND, '1970-01-01', SYSDATE(6))",
    for_update: " FOR UPDATE",
    upsert: Upsert::OnDuplicateKey,
};

static MIGRATIONS: [Migration; 1] =
    [Migration { version: 1, min_reader: 1, script: include_str!("migrations/mysql/0001.sql") }];

#[derive(Debug)]
struct MysqlEngine {
    pool: MySqlPool,
}

pub(super) async fn connect(url: &str, options: &SqlStoreOptions) -> Result<Connected, Fault> {
    let server: MySqlConnectOptions = url.parse().map_err(|error| super::unreadable_url(&error))?;
    let pool = MySqlPoolOptions::new()
        .max_connections(options.max_connections.max(2))
        .acquire_timeout(options.acquire_timeout())
        // One that turns out to be broken is replaced, which is cheaper than to ask each time.
        .test_before_acquire(false)
        .after_connect(|connection, _| {
            Box::pin(async move {
                // What is locked for a change is what is changed, and not the gaps beside it.
                connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED").await?;
                Ok(())
            })
        })
        .connect_with(server.statement_cache_capacity(STATEMENTS).disable_statement_logging())
        .await
        // A new pool is not full: it could not connect.
        .map_err(|error| fault(error).unless_full(false))?;
    let engine = MysqlEngine { pool };
    let at_commit = engine.reader().await?.row(DIALECT.sql("SELECT @@GLOBAL.innodb_flush_log_at_trx_commit")).await?;
    let undurable = at_commit
        .is_some_and(|mut row| row.int(0).is_ok_and(|at_commit| at_commit != 1))
        .then_some("innodb_flush_log_at_trx_commit is not 1 in the server, so it may lose what it has committed");
    Ok(Connected { engine: Box::new(engine), undurable })
}

fn fault(error: sqlx::Error) -> Fault {
    Fault::new(error, of_database)
}

fn of_database(error: &dyn DatabaseError) -> FaultKind {
    // https://mariadb.com/docs/server/reference/error-codes
    match error.try_downcast_ref::<MySqlDatabaseError>().map(MySqlDatabaseError::number) {
        Some(1205 | 1213 | 1020 | 3572) => FaultKind::Contended,
        Some(1040 | 1053 | 1203 | 1226) => FaultKind::Refusing,
        Some(1927 | 1077 | 1079) => FaultKind::Lost,
        Some(1146) => FaultKind::NoTable,
        Some(1044 | 1045 | 1142 | 1227 | 1698) => FaultKind::Denied,
        Some(1049) => FaultKind::NoDatabase,
        Some(1021 | 1114 | 1041) => FaultKind::Full,
        Some(1264 | 1265 | 1292 | 1366 | 1406 | 1153) => FaultKind::Value,
        Some(1290 | 1792 | 1836) => FaultKind::ReadOnly,
        Some(1034 | 1712) => FaultKind::Damaged,
        _ => FaultKind::Other,
    }
}

fn bind(query: Query<'_, MySql, MySqlArguments>, value: Value) -> Query<'_, MySql, MySqlArguments> {
    match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
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

session!(MySql, PoolConnection<MySql>, |_connection| Ok(()));
session!(MySql, Transaction<'static, MySql>, |transaction| {
    Transaction::commit(*transaction).await.map_err(|error| fault(error).at_commit())
});

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

session!(MySql, Locked, |_connection| Ok(()));

impl MysqlEngine {
    fn refused(&self, error: sqlx::Error) -> Fault {
        fault(error).unless_full(self.pool.size() >= self.pool.options().get_max_connections())
    }
}

#[async_trait]
impl Engine for MysqlEngine {
    fn dialect(&self) -> &'static Dialect {
        &DIALECT
    }

    async fn reader(&self) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(self.pool.acquire().await.map_err(|error| self.refused(error))?))
    }

    async fn transaction(&self) -> Result<Box<dyn Session>, Fault> {
        Ok(Box::new(self.pool.begin().await.map_err(|error| self.refused(error))?))
    }

    async fn exclusive(&self) -> Result<Box<dyn Session>, Fault> {
        let connection = self.pool.acquire().await.map_err(|error| self.refused(error))?;
        let mut session: Box<dyn Session> = Box::new(Locked(connection.detach()));
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
}
