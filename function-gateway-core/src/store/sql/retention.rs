//! Deletes records that are no longer to be kept, a few at a time.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;

use super::batch::row_limit;
use super::engine::{Dialect, Session, Statement, stored};
use super::fault::Fault;
use super::{Operation, SqlStore};
use crate::store::statistics::Minute;
use crate::{FunctionId, Result, Retention, Timestamp};

/// How many functions are counted at a time when all are looked through.
const FUNCTIONS: usize = 256;
/// How many rows one statement deletes.
const IDS: usize = 256;
/// How often all are: what another process had noted is lost when it is killed.
const LOOK_THROUGH: Duration = Duration::from_secs(3600);
/// How many functions are noted.
const MAX_NOTED: usize = 100_000;

/// The functions that may have more records than are to be kept: those of which something has ended since they were looked
/// at. Counting the records of all would take longer the more there are.
#[derive(Debug, Default)]
pub(super) struct Crowded(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    noted: HashSet<FunctionId>,
    /// How far all functions were looked through.
    through: Through,
}

#[derive(Debug, Default)]
enum Through {
    #[default]
    Never,
    /// With how many records to be kept, and up to which function.
    Until(u64, String),
    /// With how many records to be kept, and when.
    Done(u64, Instant),
}

impl Crowded {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, functions: &[FunctionId]) {
        let mut state = self.state();
        state.noted.extend(functions);
        if state.noted.len() > MAX_NOTED {
            state.noted.clear();
            state.through = Through::Never;
        }
    }

    /// One of the functions that are to be looked at.
    fn take(&self) -> Option<FunctionId> {
        let mut state = self.state();
        let function = state.noted.iter().next().copied()?;
        state.noted.take(&function)
    }

    /// From where on all functions are to be looked through, if that is due.
    fn look_on(&self, keep: u64) -> Option<String> {
        match &self.state().through {
            Through::Until(kept, last) if *kept == keep => Some(last.clone()),
            Through::Done(kept, at) if *kept == keep && at.elapsed() < LOOK_THROUGH => None,
            _ => Some(String::new()),
        }
    }
}

pub(super) async fn retain(store: &SqlStore, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64> {
    let mut deleted = 0;
    if limit == 0 {
        return Ok(deleted);
    }
    if let Some(max_age) = retention.max_age {
        deleted += store.write(&DeleteOld { before: now.minus(max_age), limit }).await?;
    }
    if let Some(max_age) = retention.max_statistics_age {
        // Each batch by itself, so that writers get their turn; all of them, since their number is not told. Mostly there is none,
        // and to see that takes no lock.
        let old = DeleteFigures { before: now.minus(max_age), limit };
        while store.read(&HasAny(&old)).await? && store.write(&old).await? == row_count(limit) {}
    }
    let Some(keep) = retention.max_per_function else { return Ok(deleted) };
    let room = |deleted: u64| limit.saturating_sub(usize::try_from(deleted).unwrap_or(usize::MAX));
    while room(deleted) > 0 {
        if let Some(function) = store.0.crowded.take() {
            // Where this fails, the function is found again when all are looked through.
            let (limit, id) = (room(deleted), function.to_string());
            let excess = DeleteExcess { function: &id, keep, limit };
            // Most have no more than they may: to see that takes no lock.
            if store.read(&HasAny(&excess)).await? {
                let count = store.write(&excess).await?;
                if count == row_count(limit) {
                    store.0.crowded.note(&[function]);
                }
                deleted += count;
            }
            continue;
        }
        let Some(after) = store.0.crowded.look_on(keep) else { break };
        let (last, crowded) = store.read(&FindCrowded { after: &after, keep }).await?;
        let mut state = store.0.crowded.state();
        state.noted.extend(crowded);
        state.through = match last {
            Some(last) => Through::Until(keep, last),
            None => Through::Done(keep, Instant::now()),
        };
    }
    Ok(deleted)
}

fn row_count(limit: usize) -> u64 {
    u64::try_from(limit).unwrap_or(u64::MAX)
}

/// Deletes the records that a query names in its first column.
async fn delete(session: &mut dyn Session, select: Statement) -> Result<u64, Fault> {
    delete_from(session, &["fg_invocation_labels", "fg_invocations"], select).await
}

/// Deletes the rows that a query names in its first column by their ids. Says how many there were.
pub(super) async fn delete_from(session: &mut dyn Session, tables: &[&str], select: Statement) -> Result<u64, Fault> {
    let rows = session.rows(select).await?;
    let ids: Vec<String> = rows.into_iter().filter_map(|mut row| row.text(0).ok()).collect();
    for table in tables {
        for ids in ids.chunks(IDS) {
            let delete = session.dialect().sql("DELETE FROM ").sql(table).sql(" WHERE ");
            session.execute(delete.any_of("id", ids.iter().map(String::as_str))).await?;
        }
    }
    Ok(row_count(ids.len()))
}

/// Rows that are not to be kept.
trait Unkept: Sync {
    /// So many of them.
    fn select(&self, dialect: &'static Dialect, limit: usize) -> Statement;
}

/// Whether there are any: to see that takes no lock.
struct HasAny<'a, U>(&'a U);

#[async_trait]
impl<U: Unkept> Operation for HasAny<'_, U> {
    type Answer = bool;

    async fn run(&self, session: &mut dyn Session) -> Result<bool, Fault> {
        let select = self.0.select(session.dialect(), 1);
        Ok(session.row(select).await?.is_some())
    }
}

struct DeleteOld {
    before: Timestamp,
    limit: usize,
}

impl DeleteOld {
    fn select(&self, dialect: &'static Dialect) -> Statement {
        let select = "SELECT id FROM fg_invocations WHERE finished_at IS NOT NULL AND finished_at < ";
        let select = dialect.sql(select).arg(self.before.as_micros());
        select.sql(" ORDER BY finished_at LIMIT ").arg(row_limit(self.limit))
    }
}

#[async_trait]
impl Operation for DeleteOld {
    type Answer = u64;

    async fn run(&self, session: &mut dyn Session) -> Result<u64, Fault> {
        let select = self.select(session.dialect());
        delete(session, select).await
    }
}

struct DeleteFigures {
    before: Timestamp,
    limit: usize,
}

impl Unkept for DeleteFigures {
    fn select(&self, dialect: &'static Dialect, limit: usize) -> Statement {
        let before = Minute::of(self.before).get();
        let select = dialect.sql("SELECT id FROM fg_rollups WHERE minute < ").arg(before);
        select.sql(" ORDER BY minute LIMIT ").arg(row_limit(limit))
    }
}

#[async_trait]
impl Operation for DeleteFigures {
    type Answer = u64;

    async fn run(&self, session: &mut dyn Session) -> Result<u64, Fault> {
        let select = self.select(session.dialect(), self.limit);
        delete_from(session, &["fg_rollups"], select).await
    }
}

struct DeleteExcess<'a> {
    function: &'a str,
    keep: u64,
    limit: usize,
}

impl Unkept for DeleteExcess<'_> {
    fn select(&self, dialect: &'static Dialect, limit: usize) -> Statement {
        let select = "SELECT id FROM fg_invocations WHERE finished_at IS NOT NULL AND function_id = ";
        let select = dialect.sql(select).arg(self.function);
        let select = select.sql(" ORDER BY created_at DESC, id DESC LIMIT ").arg(row_limit(limit));
        select.sql(" OFFSET ").arg(stored(self.keep))
    }
}

#[async_trait]
impl Operation for DeleteExcess<'_> {
    type Answer = u64;

    async fn run(&self, session: &mut dyn Session) -> Result<u64, Fault> {
        let select = self.select(session.dialect(), self.limit);
        delete(session, select).await
    }
}

/// Counts records of the functions after one.
struct FindCrowded<'a> {
    after: &'a str,
    keep: u64,
}

impl FindCrowded<'_> {
    fn select(&self, dialect: &'static Dialect) -> Statement {
        let select = "SELECT function_id, COUNT(*) FROM fg_invocations WHERE function_id > ";
        let select = dialect.sql(select).arg(self.after);
        select.sql(" GROUP BY function_id ORDER BY function_id LIMIT ").arg(row_limit(FUNCTIONS))
    }
}

#[async_trait]
impl Operation for FindCrowded<'_> {
    /// Up to which function was counted, unless those were the last ones; those that have more records than are kept.
    type Answer = (Option<String>, Vec<FunctionId>);

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = self.select(session.dialect());
        let rows = session.rows(select).await?;
        let is_last = rows.len() < FUNCTIONS;
        let (mut last, mut crowded) = (None, Vec::new());
        for mut row in rows {
            last = row.peek_text(0).ok().map(str::to_owned);
            if row.int(1).is_ok_and(|count| count > stored(self.keep))
                && let Ok(function) = row.parse(0)
            {
                crowded.push(function);
            }
        }
        Ok((last.filter(|_| !is_last), crowded))
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use super::super::tests::{is_along_indexes, is_along_indexes_of_time};
    use super::*;

    #[tokio::test]
    async fn what_is_to_go_is_found_along_indexes() {
        let store = SqlStore::open("sqlite::memory:").await.unwrap();
        let dialect = store.0.engine.dialect();
        let before = Timestamp::now();
        let old = DeleteFigures { before, limit: 10 };
        let excess = DeleteExcess { function: "x", keep: 10, limit: 10 };
        is_along_indexes(&store, DeleteOld { before, limit: 10 }.select(dialect)).await;
        is_along_indexes(&store, old.select(dialect, 10)).await;
        is_along_indexes_of_time(&store, excess.select(dialect, 10)).await;
        is_along_indexes(&store, FindCrowded { after: "x", keep: 10 }.select(dialect)).await;
    }
}
