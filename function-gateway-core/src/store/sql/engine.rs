//! What the stores need of a database engine, and the little that its statements differ in.

use std::fmt::{self, Write as _};
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::de::DeserializeOwned;

use crate::store::sql::fault::Fault;

/// How many statements a connection keeps prepared: those that insert come in some sizes each.
pub(super) const STATEMENTS: usize = 300;

/// A database engine with its connections.
#[async_trait]
pub(super) trait Engine: fmt::Debug + Send + Sync + 'static {
    fn dialect(&self) -> &'static Dialect;

    /// A connection to read with. Each statement is a transaction of its own.
    async fn reader(&self) -> Result<Box<dyn Session>, Fault>;

    /// A transaction to write in; undone unless it is committed.
    async fn transaction(&self) -> Result<Box<dyn Session>, Fault>;

    /// A session that no other process has at the same time. Committing it lets the next one go on.
    async fn exclusive(&self) -> Result<Box<dyn Session>, Fault>;

    /// The steps that build the schema, the first one first.
    fn migrations(&self) -> &'static [Migration];

    /// Hands over what other processes tell by [`Dialect::notify`] from now on, until it is closed. Where none can tell anything
    /// nothing is done.
    fn listen(&self, _hear: Hear) {}

    /// Ends all connections.
    async fn close(&self);

    fn is_closed(&self) -> bool;
}

/// Gets what was told; `None` where something may have been missed.
pub(super) type Hear = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// What opening a database gives.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) engine: Box<dyn Engine>,
    /// Why what it commits may be lost all the same, if so.
    pub(super) undurable: Option<&'static str>,
}

/// A step of the schema.
#[derive(Debug)]
pub(super) struct Migration {
    /// The version that it leads to.
    pub(super) version: i64,
    /// The oldest version of a program that can work with the schema afterwards.
    pub(super) min_reader: i64,
    /// Its statements. Where the engine can't undo them, doing them twice does no harm.
    pub(super) script: &'static str,
}

/// A connection, or a transaction on one.
#[async_trait]
pub(super) trait Session: Send {
    fn dialect(&self) -> &'static Dialect;

    /// Runs a statement. Says how many rows it met.
    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault>;

    /// Hands over the rows of a query one by one, until it has read all or is told to stop.
    async fn each(&mut self, statement: Statement, take: TakeRow<'_>) -> Result<(), Fault>;

    /// Runs several statements without arguments.
    async fn script(&mut self, script: &'static str) -> Result<(), Fault>;

    /// Keeps what was done. Where each statement is a transaction of its own, it is kept already.
    async fn commit(self: Box<Self>) -> Result<(), Fault>;

    /// Undoes what is not committed, and gives the connection back. One that is dropped without may be busy still.
    async fn release(self: Box<Self>);
}

pub(super) type TakeRow<'a> = &'a mut (dyn FnMut(Row) -> ControlFlow<()> + Send);

impl dyn Session + '_ {
    /// All rows of a query that has few.
    pub(super) async fn rows(&mut self, statement: Statement) -> Result<Vec<Row>, Fault> {
        let mut rows = Vec::new();
        let mut take = |row| {
            rows.push(row);
            ControlFlow::Continue(())
        };
        self.each(statement, &mut take).await?;
        Ok(rows)
    }

    /// The database's own time, in microseconds since the Unix epoch.
    pub(super) async fn now(&mut self) -> Result<i64, Fault> {
        let dialect = self.dialect();
        let row = self.row(dialect.sql("SELECT ").sql(dialect.now)).await?;
        row.and_then(|mut row| row.int(0).ok()).ok_or(Fault::Unexpected)
    }

    /// The first row of a query.
    pub(super) async fn row(&mut self, statement: Statement) -> Result<Option<Row>, Fault> {
        Ok(self.rows(statement).await?.into_iter().next())
    }
}

/// What differs in the SQL of the engines.
#[derive(Debug)]
pub(super) struct Dialect {
    pub(super) engine: &'static str,
    /// Whether arguments stand as `$1`, `$2`; as `?` otherwise.
    pub(super) numbered: bool,
    /// The database's own time, in microseconds since the Unix epoch.
    pub(super) now: &'static str,
    /// What makes a query lock its rows until the transaction ends, where that has to be said.
    pub(super) for_update: &'static str,
    /// The same for a query that leaves out rows that somebody else has locked.
    pub(super) skip_locked: &'static str,
    /// A query, but for its last argument and a bracket, that tells other processes something once it is committed.
    pub(super) notify: Option<&'static str>,
    /// How an insertion begins that undoes the transaction where a key is not new.
    pub(super) insert_new: &'static str,
    /// Whether an insertion can be a query over values, `SELECT v.*, ? FROM (VALUES (?), (?)) v`, with arguments of any type.
    pub(super) selects_values: bool,
    /// How an insertion replaces the row that has its key.
    pub(super) upsert: Upsert,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Upsert {
    /// `ON CONFLICT (key) DO UPDATE SET column = excluded.column`
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    OnConflict,
    /// `ON DUPLICATE KEY UPDATE column = VALUES(column)`
    #[cfg(feature = "mysql")]
    OnDuplicateKey,
}

impl Dialect {
    /// Adds to an [`upsert`](Self::upsert) that it replaces a row only under a condition, which tells of itself by the number of
    /// rows; `None` where that can't be said.
    pub(super) fn only_where(&self, condition: &str) -> Option<String> {
        #[cfg(not(any(feature = "sqlite", feature = "postgres")))]
        let _ = condition;
        match self.upsert {
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Upsert::OnConflict => Some(format!(" WHERE {condition}")),
            #[cfg(feature = "mysql")]
            Upsert::OnDuplicateKey => None,
        }
    }

    /// Starts a statement.
    pub(super) fn sql(&'static self, text: &str) -> Statement {
        Statement { dialect: self, text: text.to_owned(), args: Vec::new() }
    }

    /// The clause that makes an insertion replace columns of the row of the same key. Only those that change should be among
    /// them: the indexes of all are written anew.
    pub(super) fn upsert(&self, key: &str, columns: &[&str]) -> String {
        let set = columns.iter().map(|column| format!("{column} = {}", self.inserted(column)));
        self.on_conflict(key) + &set.collect::<Vec<_>>().join(", ")
    }

    /// Begins the clause that makes an insertion change the row of the same key.
    pub(super) fn on_conflict(&self, key: &str) -> String {
        #[cfg(not(any(feature = "sqlite", feature = "postgres")))]
        let _ = key;
        match self.upsert {
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Upsert::OnConflict => format!(" ON CONFLICT ({key}) DO UPDATE SET "),
            #[cfg(feature = "mysql")]
            Upsert::OnDuplicateKey => " ON DUPLICATE KEY UPDATE ".to_owned(),
        }
    }

    /// What was to be inserted into a column, in that clause.
    pub(super) fn inserted(&self, column: &str) -> String {
        match self.upsert {
            #[cfg(any(feature = "sqlite", feature = "postgres"))]
            Upsert::OnConflict => format!("excluded.{column}"),
            #[cfg(feature = "mysql")]
            Upsert::OnDuplicateKey => format!("VALUES({column})"),
        }
    }
}

/// A statement with its arguments. Only text of this program gets into it; all else is an argument.
#[derive(Debug)]
pub(super) struct Statement {
    dialect: &'static Dialect,
    text: String,
    args: Vec<Value>,
}

impl Statement {
    /// Adds text.
    pub(super) fn sql(mut self, text: &str) -> Self {
        self.text.push_str(text);
        self
    }

    /// Adds an argument.
    pub(super) fn arg(mut self, value: impl Into<Value>) -> Self {
        self.args.push(value.into());
        if self.dialect.numbered {
            // Writing to a string does not fail.
            let _ = write!(self.text, "${}", self.args.len());
        } else {
            self.text.push('?');
        }
        self
    }

    /// Adds arguments with commas between them.
    pub(super) fn list<V: Into<Value>>(mut self, values: impl IntoIterator<Item = V>) -> Self {
        for (index, value) in values.into_iter().enumerate() {
            self = if index > 0 { self.sql(", ") } else { self }.arg(value);
        }
        self
    }

    /// Adds `column IN (...)`. The number of arguments is filled up to a power of two, so that there are few different
    /// statements, and each is prepared once.
    pub(super) fn any_of<'v>(self, column: &str, values: impl IntoIterator<Item = &'v str>) -> Self {
        let mut values: Vec<&str> = values.into_iter().collect();
        let wanted = values.len().next_power_of_two();
        values.resize(wanted, values.last().copied().unwrap_or_default());
        self.sql(column).sql(" IN (").list(values).sql(")")
    }

    pub(super) fn into_parts(self) -> (String, Vec<Value>) {
        (self.text, self.args)
    }
}

/// An argument.
#[derive(Debug)]
pub(super) enum Value {
    Int(Option<i64>),
    Text(Option<String>),
    /// Text that is held elsewhere as well.
    Shared(Arc<str>),
    Bytes(Option<Vec<u8>>),
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Int(Some(value))
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Self {
        Self::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_owned()))
    }
}

impl From<Option<&[u8]>> for Value {
    fn from(value: Option<&[u8]>) -> Self {
        Self::Bytes(value.map(<[u8]>::to_owned))
    }
}

/// A number that the gateway counts up to, as it is stored.
pub(super) fn stored(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The value of one column in one row.
#[derive(Debug)]
pub(super) enum Cell {
    Null,
    Int(i64),
    /// Text too: whether it is UTF-8 is seen when it is read.
    Bytes(Vec<u8>),
}

/// A row as it is stored. Its columns are read in their order, and may hold what nobody expects.
#[derive(Debug)]
pub(super) struct Row(Vec<Result<Cell, String>>);

/// What is wrong with a stored value.
#[derive(Debug)]
pub(super) struct Unreadable(pub(super) String);

impl Row {
    pub(super) fn new(cells: Vec<Result<Cell, String>>) -> Self {
        Self(cells)
    }

    /// How many bytes it holds, about.
    pub(super) fn size(&self) -> usize {
        let sizes = self.0.iter().map(|cell| match cell {
            Ok(Cell::Bytes(bytes)) => bytes.len(),
            _ => size_of::<i64>(),
        });
        sizes.sum()
    }

    fn take(&mut self, column: usize) -> Result<Cell, Unreadable> {
        let missing = || Err(format!("there is no column {column}"));
        let cell = self.0.get_mut(column).map_or_else(missing, |cell| std::mem::replace(cell, Ok(Cell::Null)));
        cell.map_err(|reason| Unreadable(format!("column {column}: {reason}")))
    }

    /// Reads text and leaves it there.
    pub(super) fn peek_text(&self, column: usize) -> Result<&str, Unreadable> {
        match self.0.get(column) {
            Some(Ok(Cell::Bytes(bytes))) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
        .ok_or_else(|| Unreadable(format!("column {column} is no text")))
    }

    /// Reads a number and leaves it there.
    pub(super) fn peek_int(&self, column: usize) -> Result<i64, Unreadable> {
        match self.0.get(column) {
            Some(Ok(Cell::Int(value))) => Ok(*value),
            _ => Err(Unreadable(format!("column {column} is no number"))),
        }
    }

    pub(super) fn opt_int(&mut self, column: usize) -> Result<Option<i64>, Unreadable> {
        match self.take(column)? {
            Cell::Null => Ok(None),
            Cell::Int(value) => Ok(Some(value)),
            Cell::Bytes(_) => Err(Unreadable(format!("column {column} is no number"))),
        }
    }

    pub(super) fn int(&mut self, column: usize) -> Result<i64, Unreadable> {
        self.opt_int(column)?.ok_or_else(|| Unreadable(format!("column {column} is null")))
    }

    pub(super) fn opt_bytes(&mut self, column: usize) -> Result<Option<Vec<u8>>, Unreadable> {
        match self.take(column)? {
            Cell::Null => Ok(None),
            Cell::Bytes(value) => Ok(Some(value)),
            Cell::Int(_) => Err(Unreadable(format!("column {column} is a number"))),
        }
    }

    pub(super) fn text(&mut self, column: usize) -> Result<String, Unreadable> {
        let bytes = self.opt_bytes(column)?.ok_or_else(|| Unreadable(format!("column {column} is null")))?;
        String::from_utf8(bytes).map_err(|error| Unreadable(format!("column {column} is no text: {error}")))
    }

    pub(super) fn parse<T: FromStr<Err: fmt::Display>>(&mut self, column: usize) -> Result<T, Unreadable> {
        self.text(column)?.parse().map_err(|error: T::Err| Unreadable(format!("column {column}: {error}")))
    }

    pub(super) fn json<T: DeserializeOwned>(&mut self, column: usize) -> Result<T, Unreadable> {
        let text = self.text(column)?;
        serde_json::from_str(&text).map_err(|error| Unreadable(format!("column {column}: {error}")))
    }

    /// The form that the row was written in. Fails where that is a later one than this program knows.
    pub(super) fn check_format(&mut self, column: usize, known: i64) -> Result<i64, Unreadable> {
        match self.int(column)? {
            found if found <= known => Ok(found),
            found => Err(Unreadable(format!("it is of format {found}, this program reads up to {known}"))),
        }
    }
}

/// Makes what derefs to a connection of an engine a [`Session`]. The module has `bind`, `cell` and `fault` for its engine.
macro_rules! session {
    ($database:ty, $session:ty, |$self_:ident| $commit:expr, |$released:ident| $release:expr) => {
        #[async_trait]
        impl Session for $session {
            fn dialect(&self) -> &'static Dialect {
                &DIALECT
            }

            async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
                let (text, args) = statement.into_parts();
                let query = args.into_iter().fold(sqlx::query(sqlx::AssertSqlSafe(text)), bind);
                Ok(query.execute(&mut **self).await.map_err(fault)?.rows_affected())
            }

            async fn each(&mut self, statement: Statement, take: TakeRow<'_>) -> Result<(), Fault> {
                let (text, args) = statement.into_parts();
                let query = args.into_iter().fold(sqlx::query(sqlx::AssertSqlSafe(text)), bind);
                let mut rows = query.fetch(&mut **self);
                while let Some(row) = rows.try_next().await.map_err(fault)? {
                    let cells = (0..row.len()).map(|column| cell(&row, column));
                    if take(Row::new(cells.collect())).is_break() {
                        break;
                    }
                }
                Ok(())
            }

            async fn script(&mut self, script: &'static str) -> Result<(), Fault> {
                sqlx::raw_sql(script).execute(&mut **self).await.map_err(fault)?;
                Ok(())
            }

            async fn commit(self: Box<Self>) -> Result<(), Fault> {
                let $self_ = self;
                $commit
            }

            async fn release(self: Box<Self>) {
                let $released = self;
                $release
            }
        }
    };
}
pub(super) use session;

/// Makes `Held`: a connection of a server's pool, which begins and ends its transaction itself. Dropped in the middle of a
/// statement or a transaction it is closed: nobody knows how long the server is busy with it, and a pool that waited for
/// that would run out of connections.
#[cfg(any(feature = "postgres", feature = "mysql"))]
macro_rules! held {
    ($database:ty) => {
        struct Held {
            connection: PoolConnection<$database>,
            in_transaction: bool,
            /// Whether a statement is under way, or has broken the connection.
            busy: bool,
        }

        impl Held {
            fn new(connection: PoolConnection<$database>) -> Self {
                Self { connection, in_transaction: false, busy: false }
            }

            async fn run(&mut self, text: &'static str) -> Result<(), Fault> {
                self.busy = true;
                let done = sqlx::Executor::execute(&mut *self.connection, text).await.map_err(fault);
                self.busy = done.as_ref().is_err_and(Fault::breaks_connection);
                done.map(|_| ())
            }

            async fn begin(mut self) -> Result<Self, Fault> {
                self.in_transaction = true;
                self.run("BEGIN").await?;
                Ok(self)
            }
        }

        impl Drop for Held {
            fn drop(&mut self) {
                if self.busy || self.in_transaction {
                    self.connection.close_on_drop();
                }
            }
        }

        #[async_trait]
        impl Session for Held {
            fn dialect(&self) -> &'static Dialect {
                &DIALECT
            }

            async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
                self.busy = true;
                let done = Session::execute(&mut self.connection, statement).await;
                self.busy = done.as_ref().is_err_and(Fault::breaks_connection);
                done
            }

            async fn each(&mut self, statement: Statement, take: TakeRow<'_>) -> Result<(), Fault> {
                self.busy = true;
                let done = self.connection.each(statement, take).await;
                self.busy = done.as_ref().is_err_and(Fault::breaks_connection);
                done
            }

            async fn script(&mut self, script: &'static str) -> Result<(), Fault> {
                self.busy = true;
                let done = self.connection.script(script).await;
                self.busy = done.as_ref().is_err_and(Fault::breaks_connection);
                done
            }

            async fn commit(mut self: Box<Self>) -> Result<(), Fault> {
                if self.in_transaction {
                    self.run("COMMIT").await.map_err(Fault::at_commit)?;
                    self.in_transaction = false;
                }
                Ok(())
            }

            async fn release(mut self: Box<Self>) {
                if self.in_transaction && !self.busy && self.run("ROLLBACK").await.is_ok() {
                    self.in_transaction = false;
                }
            }
        }
    };
}
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(super) use held;

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERED: Dialect = Dialect {
        engine: "test",
        numbered: true,
        now: "now",
        for_update: "",
        skip_locked: "",
        notify: None,
        insert_new: "INSERT INTO",
        selects_values: false,
        #[cfg(any(feature = "sqlite", feature = "postgres"))]
        upsert: Upsert::OnConflict,
        #[cfg(not(any(feature = "sqlite", feature = "postgres")))]
        upsert: Upsert::OnDuplicateKey,
    };
    static DIALECT: Dialect = NUMBERED;

    #[test]
    fn arguments_are_numbered_and_never_part_of_the_text() {
        let statement = DIALECT.sql("SELECT 1 WHERE a = ").arg("'; DROP").sql(" AND b = ").arg(7);
        let (text, args) = statement.into_parts();
        assert_eq!(text, "SELECT 1 WHERE a = $1 AND b = $2");
        assert_eq!(args.len(), 2);
    }

    #[test]
    fn lists_are_filled_up_to_a_power_of_two() {
        for (count, expected) in [(1, 1), (2, 2), (3, 4), (5, 8), (1000, 1024)] {
            let values = vec!["x"; count];
            let (text, args) = DIALECT.sql("").any_of("id", values).into_parts();
            assert_eq!(args.len(), expected);
            assert!(text.ends_with(&format!("${expected})")), "{text}");
        }
    }

    #[test]
    fn what_is_stored_wrongly_is_an_error_and_no_panic() {
        let row = || {
            Row::new(vec![
                Ok(Cell::Null),
                Ok(Cell::Int(1)),
                Ok(Cell::Bytes(vec![0xff])),
                Ok(Cell::Bytes(b"{".to_vec())),
                Err("bad type".to_owned()),
            ])
        };
        assert!(row().int(0).is_err() && row().int(2).is_err() && row().int(4).is_err() && row().int(9).is_err());
        assert!(row().text(0).is_err() && row().text(1).is_err() && row().text(2).is_err());
        assert!(row().json::<serde_json::Value>(3).is_err());
        assert!(row().parse::<crate::FunctionId>(3).is_err());
        assert!(row().check_format(1, 1).is_ok() && row().check_format(1, 0).is_err());
        assert_eq!(row().opt_int(0).unwrap(), None);
    }
}
