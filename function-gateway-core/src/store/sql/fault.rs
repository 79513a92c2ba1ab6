//! What can go wrong with a database, and what it means for whoever asked.

use crate::{Delivery, Error, ErrorKind, Retry};

/// What kind of failure a database's is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(all(feature = "sqlite", feature = "postgres", feature = "mysql")),
    allow(dead_code, reason = "not every engine tells all of them")
)]
pub(super) enum FaultKind {
    /// Nobody answers at its address.
    Unreachable,
    /// The connection broke.
    Lost,
    /// All connections are in use.
    Exhausted,
    /// It takes no more connections, or is starting or stopping.
    Refusing,
    /// A deadlock, a lock that was not got in time, or a serialization failure: the transaction was undone.
    Contended,
    /// A statement took longer than it may, and was undone.
    Slow,
    /// There is a row of this key already.
    Duplicate,
    /// A table does not exist.
    NoTable,
    /// Wrong credentials, or a right is missing.
    Denied,
    /// There is no such database.
    NoDatabase,
    /// Its file can't be opened.
    NoFile,
    /// Its disk, or the room that it was given, is full.
    Full,
    /// It does not take a value.
    Value,
    /// It does not take a row, by a rule that somebody else has made: the gateway's tables have none but their keys.
    Constraint,
    /// The file is damaged, or is no database.
    Damaged,
    /// It can only be read.
    ReadOnly,
    /// Anything else.
    Other,
}

impl FaultKind {
    /// Whether waiting can help.
    pub(super) fn is_transient(self) -> bool {
        match self {
            Self::Unreachable
            | Self::Lost
            | Self::Exhausted
            | Self::Refusing
            | Self::Contended
            | Self::Slow
            | Self::Full => true,
            Self::Duplicate
            | Self::NoTable
            | Self::Denied
            | Self::NoDatabase
            | Self::NoFile
            | Self::Value
            | Self::Constraint
            | Self::Damaged
            | Self::ReadOnly
            | Self::Other => false,
        }
    }

    /// Whether a commit that was answered so has certainly not been done.
    fn is_undone(self) -> bool {
        matches!(self, Self::Contended | Self::Slow | Self::Duplicate | Self::Constraint)
    }

    fn message(self) -> &'static str {
        match self {
            Self::Unreachable => "the database can't be reached",
            Self::Lost => "the connection to the database was lost",
            Self::Exhausted => "all connections to the database are in use (max_connections)",
            Self::Refusing => "the database takes no connections at the moment",
            Self::Contended => "the database undid the change, since others change the same (deadlock or lock timeout)",
            Self::Slow => "the database did not answer in time, and undid the change (operation_timeout)",
            Self::Duplicate => "the database has a row of this key already",
            Self::NoTable => "the database lacks a table of the gateway",
            Self::Denied => "the database refuses access: check user, password and rights",
            Self::NoDatabase => "the server has no database of this name",
            Self::NoFile => "the database's file can't be opened: check that its folder is there and may be written to",
            Self::Full => "the database has no room left",
            Self::Value => "the database does not take a value: it is too long, or not of its type",
            Self::Constraint => "the database does not take a row: a constraint forbids it that is not the gateway's",
            Self::Damaged => "the file is no database, or is damaged",
            Self::ReadOnly => "the database can only be read",
            Self::Other => "the database failed",
        }
    }
}

/// Why something was not done.
#[derive(Debug)]
pub(super) enum Fault {
    /// The database failed.
    Database {
        kind: FaultKind,
        /// Whether it failed while committing, so that nobody knows whether it did.
        at_commit: bool,
        error: Box<sqlx::Error>,
    },
    /// It takes too long. It may be done, or not.
    TimedOut,
    /// A row is not as it was expected, so nothing was done.
    Unexpected,
    /// The store's own answer.
    Answer(Error),
}

/// What sqlx says of a connection that ends where it has asked a server of PostgreSQL for TLS: it reads a byte of 0.
const CUT_OFF: &str = "unexpected response from SSLRequest: 0x00";

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Answer(error)
    }
}

impl Fault {
    /// Sorts out what is the same for every engine. What the database itself says is left to `of_database`.
    pub(super) fn new(error: sqlx::Error, of_database: fn(&dyn sqlx::error::DatabaseError) -> FaultKind) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => FaultKind::Duplicate,
            sqlx::Error::Database(database) => of_database(&**database),
            sqlx::Error::Io(io) => match io.kind() {
                Io::BrokenPipe | Io::ConnectionReset | Io::ConnectionAborted | Io::UnexpectedEof => FaultKind::Lost,
                Io::StorageFull | Io::QuotaExceeded => FaultKind::Full,
                _ => FaultKind::Unreachable,
            },
            sqlx::Error::PoolTimedOut => FaultKind::Exhausted,
            sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed | sqlx::Error::BeginFailed => FaultKind::Lost,
            sqlx::Error::Protocol(problem) if problem.contains(CUT_OFF) => FaultKind::Lost,
            sqlx::Error::Tls(_) => FaultKind::Unreachable,
            sqlx::Error::Encode(_) => FaultKind::Value,
            _ => FaultKind::Other,
        };
        Self::Database { kind, at_commit: false, error: Box::new(error) }
    }

    /// Notes that it came in answer to a commit.
    pub(super) fn at_commit(mut self) -> Self {
        if let Self::Database { at_commit, .. } = &mut self {
            *at_commit = true;
        }
        self
    }

    /// Notes that a pool that is not full could not make a connection in time.
    pub(super) fn unless_full(mut self, is_full: bool) -> Self {
        if let Self::Database { kind, .. } = &mut self
            && *kind == FaultKind::Exhausted
            && !is_full
        {
            *kind = FaultKind::Unreachable;
        }
        self
    }

    pub(super) fn is(&self, wanted: FaultKind) -> bool {
        matches!(self, Self::Database { kind, .. } if *kind == wanted)
    }

    /// Whether waiting can help.
    pub(super) fn is_transient(&self) -> bool {
        match self {
            Self::Database { kind, .. } => kind.is_transient(),
            Self::TimedOut => true,
            Self::Unexpected => false,
            Self::Answer(error) => error.is_transient(),
        }
    }

    /// Whether what was asked for may have been done all the same.
    pub(super) fn is_uncertain(&self) -> bool {
        match self {
            Self::Database { kind, at_commit, .. } => *at_commit && !kind.is_undone(),
            Self::TimedOut => true,
            Self::Unexpected | Self::Answer(_) => false,
        }
    }

    /// Whether a transaction that failed like this was certainly undone, for a reason that goes away by itself.
    pub(super) fn may_be_repeated(&self) -> bool {
        use FaultKind::{Contended, Lost, Refusing, Unreachable};
        matches!(self, Self::Database { kind: Contended | Lost | Refusing | Unreachable, at_commit: false, .. })
            || self.is(Contended)
    }

    /// Whether the connection that it came by is of no more use.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(super) fn breaks_connection(&self) -> bool {
        matches!(
            self,
            Self::Database { kind: FaultKind::Lost | FaultKind::Unreachable | FaultKind::Refusing, .. }
                | Self::TimedOut
        )
    }

    /// Whether it is for what was to be written, and not for the state that the database is in.
    pub(super) fn is_of_content(&self) -> bool {
        self.is(FaultKind::Value)
            || self.is(FaultKind::Constraint)
            || matches!(self, Self::Unexpected | Self::Answer(_))
    }

    /// Whether less at once may be done where this could not be.
    pub(super) fn is_of_size(&self) -> bool {
        self.is(FaultKind::Lost) || self.is(FaultKind::Slow) || matches!(self, Self::TimedOut)
    }

    /// The error for whoever asked.
    pub(super) fn into_error(self) -> Error {
        let uncertain = self.is_uncertain();
        let error = match self {
            Self::Answer(error) => return error,
            Self::Unexpected => Error::new(ErrorKind::Internal, "a row of the database is not as it was expected"),
            Self::TimedOut => Error::new(ErrorKind::Store, "the database did not answer in time (operation_timeout)"),
            Self::Database { kind, error, .. } => {
                let kind_of_error = match kind {
                    FaultKind::Value => ErrorKind::InvalidArgument,
                    FaultKind::Denied
                    | FaultKind::NoDatabase
                    | FaultKind::NoFile
                    | FaultKind::NoTable
                    | FaultKind::Damaged => ErrorKind::Misconfigured,
                    _ => ErrorKind::Store,
                };
                let retry = if kind.is_transient() { Retry::Transient } else { Retry::Never };
                // Drivers put no password into their errors; the text stays private all the same.
                Error::new(kind_of_error, kind.message()).with_retry(retry).with_detail(error.to_string())
            }
        };
        let delivery = if uncertain { Delivery::Unknown } else { Delivery::NotSent };
        error.with_delivery(delivery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: sqlx::Error) -> Fault {
        Fault::new(error, |_| FaultKind::Other)
    }

    fn io(kind: std::io::ErrorKind) -> Fault {
        of(sqlx::Error::Io(kind.into()))
    }

    #[test]
    fn what_is_lost_before_the_commit_is_repeated_and_after_it_is_not() {
        let lost = || io(std::io::ErrorKind::ConnectionReset);
        assert!(lost().may_be_repeated() && !lost().is_uncertain());
        assert!(!lost().at_commit().may_be_repeated() && lost().at_commit().is_uncertain());
        assert_eq!(lost().at_commit().into_error().delivery(), Delivery::Unknown);
        assert_eq!(lost().into_error().delivery(), Delivery::NotSent);
        // Constraints may be checked at the end of a transaction, which then is undone.
        for kind in [FaultKind::Contended, FaultKind::Slow, FaultKind::Duplicate, FaultKind::Constraint] {
            let fault = Fault::Database { kind, at_commit: true, error: Box::new(sqlx::Error::RowNotFound) };
            assert!(!fault.is_uncertain(), "{kind:?}");
        }
    }

    #[test]
    fn a_pool_that_waits_for_a_server_is_not_called_exhausted() {
        let timed_out = || of(sqlx::Error::PoolTimedOut);
        assert!(timed_out().unless_full(true).is(FaultKind::Exhausted));
        assert!(timed_out().unless_full(false).is(FaultKind::Unreachable));
    }

    #[test]
    fn errors_are_typed() {
        for (fault, kind, retry) in [
            (io(std::io::ErrorKind::ConnectionRefused), ErrorKind::Store, Retry::Transient),
            (io(std::io::ErrorKind::StorageFull), ErrorKind::Store, Retry::Transient),
            (Fault::TimedOut, ErrorKind::Store, Retry::Transient),
            (of(sqlx::Error::Protocol("?".into())), ErrorKind::Store, Retry::Never),
            (of(sqlx::Error::Protocol(format!("{CUT_OFF} (x:1)"))), ErrorKind::Store, Retry::Transient),
            (of(sqlx::Error::Encode("?".into())), ErrorKind::InvalidArgument, Retry::Never),
        ] {
            let error = fault.into_error();
            assert_eq!((error.kind(), error.retry()), (kind, retry), "{error}");
        }
    }
}
