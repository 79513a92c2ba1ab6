//! SQLite: one file, or memory. One connection writes, and others read beside it.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Row as _, Sqlite, TypeInfo as _, ValueRef as _};
use tokio::runtime::Handle;

use super::SqlStoreOptions;
use super::engine::{
    Cell, Connected, Dialect, Engine, Migration, Row, STATEMENTS, Session, Statement, TakeRow, Upsert, Value, session,
};
use super::fault::{Fault, FaultKind};
use crate::{Error, ErrorKind};

static DIALECT: Dialect = Dialect {
    engine: "sqlite",
    numbered: false,
    now: "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
    // Whoever may write does so alone.
    for_update: "",
    skip_locked: "",
    notify: None,
    // Otherwise it keeps what it would have to undo of the statement alone, which for many rows is a new temporary file each time.
    insert_new: "INSERT OR ROLLBACK INTO",
    selects_values: true,
    upsert: Upsert::OnConflict,
};

static MIGRATIONS: [Migration; 5] = [
    Migration { version: 1, min_reader: 1, script: include_str!("migrations/sqlite/0001.sql") },
    Migration { version: 2, min_reader: 1, script: include_str!("migrations/sqlite/0002.sql") },
    Migration { version: 3, min_reader: 1, script: include_str!("migrations/sqlite/0003.sql") },
    Migration { version: 4, min_reader: 1, script: include_str!("migrations/sqlite/0004.sql") },
    Migration { version: 5, min_reader: 5, script: include_str!("migrations/sqlite/0005.sql") },
];

/// Records have many indexes: so much of them is held in memory, in KiB (which SQLite tells by the sign).
const WRITER_CACHE: &str = "-16384";
/// Of each connection that reads: the upper levels of the largest tables and indexes stay there.
const READER_CACHE: &str = "-8192";
/// After so many pages of 4 KiB the log of writes is brought into the file. Often used ones then go there once for many writes.
const CHECKPOINT: &str = "8192";

#[derive(Debug)]
struct SqliteEngine {
    writer: SqlitePool,
    readers: SqlitePool,
    runtime: Handle,
}

/// Opens a database by what follows `sqlite:` in its URL.
pub(super) async fn connect(location: &str, options: &SqlStoreOptions, runtime: &Handle) -> Result<Connected, Fault> {
    let location = location.strip_prefix("//").unwrap_or(location);
    if location.is_empty() || location.contains('?') {
        let message =
            "the URL of a store in SQLite is sqlite: and the path of a file, or sqlite::memory:, without parameters";
        return Err(Error::new(ErrorKind::InvalidArgument, message).into());
    }
    let in_memory = location == ":memory:";
    let file = SqliteConnectOptions::new()
        .disable_statement_logging()
        .statement_cache_capacity(STATEMENTS)
        .create_if_missing(true)
        .busy_timeout(options.operation_timeout)
        // A commit is on the disk when it answers, whatever happens to the machine then.
        .synchronous(SqliteSynchronous::Full);
    let file = match in_memory {
        true => file.in_memory(true),
        false => file.filename(Path::new(location)).journal_mode(SqliteJournalMode::Wal),
    };
    // A database in memory lives as long as its one connection.
    let pool = |connections| {
        let pool = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(options.acquire_timeout());
        let pool = pool.test_before_acquire(false);
        match in_memory {
            true => pool.min_connections(1).idle_timeout(None).max_lifetime(None),
            false => pool.idle_timeout(Duration::from_secs(600)),
        }
    };
    let writing = file.clone().pragma("cache_size", WRITER_CACHE).pragma("wal_autocheckpoint", CHECKPOINT);
    let writer = pool(1).connect_with(writing).await.map_err(fault)?;
    let readers = match in_memory {
        true => writer.clone(),
        false => pool(options.max_connections.max(1)).connect_lazy_with(file.pragma("cache_size", READER_CACHE)),
    };
    Ok(Connected { engine: Box::new(SqliteEngine { writer, readers, runtime: runtime.clone() }), undurable: None })
}

fn fault(error: sqlx::Error) -> Fault {
    Fault::new(error, of_database)
}

fn of_database(error: &dyn DatabaseError) -> FaultKind {
    // https://www.sqlite.org/rescode.html: the low byte is the primary code.
    let code = error.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default();
    match code & 0xff {
        5 | 6 => FaultKind::Contended,
        8 => FaultKind::ReadOnly,
        3 | 23 => FaultKind::Denied,
        14 => FaultKind::NoFile,
        10 => FaultKind::Unreachable,
        11 | 26 => FaultKind::Damaged,
        13 => FaultKind::Full,
        18 | 20 => FaultKind::Value,
        // That of a key is told apart before.
        19 => FaultKind::Constraint,
        1 if error.message().starts_with("no such table") => FaultKind::NoTable,
        _ => FaultKind::Other,
    }
}

fn bind(query: Query<'_, Sqlite, SqliteArguments>, value: Value) -> Query<'_, Sqlite, SqliteArguments> {
    match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Shared(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    }
}

fn cell(row: &SqliteRow, column: usize) -> Result<Cell, String> {
    let raw = row.try_get_raw(column).map_err(|error| error.to_string())?;
    if raw.is_null() {
        return Ok(Cell::Null);
    }
    let is_int = raw.type_info().name() == "INTEGER";
    let cell = match is_int {
        true => row.try_get_unchecked(column).map(Cell::Int),
        false => row.try_get_unchecked(column).map(Cell::Bytes),
    };
    cell.map_err(|error| error.to_string())
}

session!(Sqlite, PoolConnection<Sqlite>, |_connection| Ok(()), |_connection| ());

/// A transaction that this module begins and ends by itself. SQLite undoes one of its own accord where the disk is full, or
/// a page can't be read; sqlx would go on counting it as open, and the one connection that writes would be of no more use.
struct Writing {
    connection: Option<PoolConnection<Sqlite>>,
    runtime: Handle,
}

impl Writing {
    async fn begin(connection: PoolConnection<Sqlite>, runtime: Handle) -> Result<Self, Fault> {
        // Made before: given up while it waits for its lock, it may begin all the same, and has to be ended.
        let mut this = Self { connection: Some(connection), runtime };
        // Taking the lock at once keeps two processes from reading first and then waiting for each other.
        sqlx::Executor::execute(&mut **this.connection()?, "BEGIN IMMEDIATE").await.map_err(fault)?;
        Ok(this)
    }

    fn connection(&mut self) -> Result<&mut PoolConnection<Sqlite>, Fault> {
        self.connection.as_mut().ok_or_else(|| fault(sqlx::Error::PoolClosed))
    }
}

#[async_trait]
impl Session for Writing {
    fn dialect(&self) -> &'static Dialect {
        &DIALECT
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        Session::execute(self.connection()?, statement).await
    }

    async fn each(&mut self, statement: Statement, take: TakeRow<'_>) -> Result<(), Fault> {
        self.connection()?.each(statement, take).await
    }

    async fn script(&mut self, script: &'static str) -> Result<(), Fault> {
        self.connection()?.script(script).await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), Fault> {
        sqlx::Executor::execute(&mut **self.connection()?, "COMMIT").await.map_err(|error| fault(error).at_commit())?;
        self.connection = None;
        Ok(())
    }

    async fn release(mut self: Box<Self>) {
        if let Ok(connection) = self.connection() {
            // It fails where there is nothing left to undo.
            let _ = sqlx::Executor::execute(&mut **connection, "ROLLBACK").await;
        }
        self.connection = None;
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            // Until then it is not given to anybody else. It fails where there is nothing left to undo.
            self.runtime.spawn(async move { drop(sqlx::Executor::execute(&mut *connection, "ROLLBACK").await) });
        }
    }
}

#[async_trait]
impl Engine for SqliteEngine {
    fn dialect(&self) -> &'static Dialect {
        &DIALECT
    }

    async fn reader(&self) -> Result<Box<dyn Session>, Fault> {
        match self.readers.acquire().await {
            Ok(connection) => Ok(Box::new(connection)),
            Err(error) => Err(fault(error).unless_full(self.readers.num_idle() == 0)),
        }
    }

    async fn transaction(&self) -> Result<Box<dyn Session>, Fault> {
        match self.writer.acquire().await {
            Ok(connection) => Ok(Box::new(Writing::begin(connection, self.runtime.clone()).await?)),
            Err(error) => Err(fault(error).unless_full(self.writer.num_idle() == 0)),
        }
    }

    async fn exclusive(&self) -> Result<Box<dyn Session>, Fault> {
        self.transaction().await
    }

    fn migrations(&self) -> &'static [Migration] {
        &MIGRATIONS
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    fn is_closed(&self) -> bool {
        self.writer.is_closed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_written_through_to_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let connected = connect(path.to_str().unwrap(), &SqlStoreOptions::default(), &Handle::current()).await.unwrap();
        let mut session = connected.engine.transaction().await.unwrap();
        let mut pragma = async |name: &str| {
            let mut row = session.row(DIALECT.sql(&format!("PRAGMA {name}"))).await.unwrap().unwrap();
            match row.int(0) {
                Ok(number) => number.to_string(),
                Err(_) => session.row(DIALECT.sql(&format!("PRAGMA {name}"))).await.unwrap().unwrap().text(0).unwrap(),
            }
        };
        // FULL is 2: in WAL mode it syncs at each commit, which NORMAL (1) does not.
        assert_eq!(pragma("synchronous").await, "2");
        assert_eq!(pragma("journal_mode").await, "wal");
    }
}
