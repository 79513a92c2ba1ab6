//! SQLite: one file, or memory. One connection writes, and others read beside it.

use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::TryStreamExt as _;
use sqlx::error::DatabaseError;
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Row as _, Sqlite, TypeInfo as _, ValueRef as _};

use super::SqlStoreOptions;
use super::engine::{
    Cell, Connected, Dialect, Engine, Migration, Row, Session, Statement, TakeRow, Upsert, Value, sessions,
};
use super::fault::{Fault, FaultKind};

static DIALECT: Dialect = Dialect {
    engine: "sqlite",
    numbered: false,
    now: "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
    // Whoever may write does so alone.
    for_update: "",
    upsert: Upsert::OnConflict,
};

static MIGRATIONS: [Migration; 1] =
    [Migration { version: 1, min_reader: 1, script: include_str!("migrations/sqlite/0001.sql") }];

#[derive(Debug)]
struct SqliteEngine {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// Opens a database by what follows `sqlite:` in its URL.
pub(super) async fn connect(location: &str, options: &SqlStoreOptions) -> Result<Connected, Fault> {
    let location = location.trim_start_matches("//");
    let in_memory = location == ":memory:";
    let file = SqliteConnectOptions::new()
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
        let pool = SqlitePoolOptions::new().max_connections(connections).acquire_timeout(options.operation_timeout);
        match in_memory {
            true => pool.min_connections(1).idle_timeout(None).max_lifetime(None),
            false => pool.idle_timeout(Duration::from_secs(600)),
        }
    };
    let writer = pool(1).connect_with(file.clone()).await.map_err(fault)?;
    let readers = match in_memory {
        true => writer.clone(),
        false => pool(options.max_connections.max(1)).connect_lazy_with(file),
    };
    Ok(Connected { engine: Box::new(SqliteEngine { writer, readers }), undurable: None })
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
        10 | 14 => FaultKind::Unreachable,
        11 | 26 => FaultKind::Damaged,
        13 => FaultKind::Full,
        18 | 20 => FaultKind::Value,
        1 if error.message().starts_with("no such table") => FaultKind::NoTable,
        _ => FaultKind::Other,
    }
}

fn bind(query: Query<'_, Sqlite, SqliteArguments>, value: Value) -> Query<'_, Sqlite, SqliteArguments> {
    match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
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

sessions!(Sqlite);

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
        // Taking the lock at once keeps two processes from reading first and then waiting for each other.
        match self.writer.begin_with("BEGIN IMMEDIATE").await {
            Ok(transaction) => Ok(Box::new(transaction)),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_commit_is_written_through_to_the_disk() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let connected = connect(path.to_str().unwrap(), &SqlStoreOptions::default()).await.unwrap();
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
