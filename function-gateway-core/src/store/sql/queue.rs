//! The queue, but for what `steps.rs` and `take.rs` do to it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::batch::row_limit;
use super::depth::{ALL, Counts, Depths};
use super::engine::{Row, Session, Unreadable, stored};
use super::fault::Fault;
use super::functions::{Pager, limited, unreadable};
use super::records::{after_place, place, read_place};
use super::retention::delete_from;
use super::{Operation, SqlStore};
use crate::queue::{not_dead, not_queued};
use crate::store::page::invalid_cursor;
use crate::{
    Cancelling, CursorKind, DeadLetterFilter, FunctionId, FunctionKey, FunctionName, Generation, InvocationId, Page,
    PageRequest, Progress, QueueDepth, QueueLease, QueueState, QueuedInvocation, Result, Submission, TakenInvocation,
    TenantId, Timestamp,
};

/// The form of rows that this program writes, and the latest that it reads.
pub(super) const FORMAT: i64 = 1;
/// How many are forgotten in one transaction.
const EXPIRE: usize = 256;
/// A process that has written nothing in the queue for so long asks for none of its commits any more.
const COMMITS: Duration = Duration::from_secs(86_400);

macro_rules! queued {
    ($payload:literal) => {
        concat!(
            "s.dead_at, s.id, s.format, s.document, s.progress, s.state, s.due_at, s.epoch, s.attempts, s.repeatable, \
             s.cancel_requested, s.ended_at, s.expires_at, ",
            $payload
        )
    };
}

/// The columns of a row that an invocation is read from, in the order in which [`decode`] takes them.
pub(super) const QUEUED: &str = queued!("s.payload, s.result");
/// The same without payload and answer.
const LISTED: &str = queued!("NULL, NULL");

/// A time after another in microseconds.
pub(super) fn after(now: i64, wait: Duration) -> i64 {
    Timestamp::from_micros(now).plus(wait).as_micros()
}

/// Reads [`QUEUED`].
pub(super) fn decode(row: &mut Row) -> Result<QueuedInvocation, Unreadable> {
    row.check_format(2, FORMAT)?;
    let mut submission: Submission = row.json(3)?;
    let mut progress: Progress = row.json(4)?;
    submission.payload = row.opt_bytes(13)?.unwrap_or_default().into();
    if let Some(answer) = &mut progress.answer {
        answer.body = row.opt_bytes(14)?.map(Bytes::from);
    }
    let attempts = row.int(8)?;
    let time = |micros: Option<i64>| micros.map(Timestamp::from_micros);
    Ok(QueuedInvocation {
        submission: Arc::new(submission),
        state: row.parse(5)?,
        attempts: u32::try_from(attempts).map_err(|_| Unreadable(format!("column 8 is no number: {attempts}")))?,
        due_at: time(row.opt_int(6)?),
        ended_at: time(row.opt_int(11)?),
        expires_at: time(row.opt_int(12)?),
        cancel_requested: row.int(10)? != 0,
        progress,
    })
}

/// Reads [`QUEUED`] of one that is taken; its epoch is that of before.
pub(super) fn decode_taken(row: &mut Row) -> Result<TakenInvocation, Unreadable> {
    let (epoch, repeatable) = (row.int(7)?, row.int(9)? != 0);
    let epoch = u64::try_from(epoch).map_err(|_| Unreadable(format!("column 7 is negative: {epoch}")))?;
    let invocation = decode(row)?;
    let lease = QueueLease::new(invocation.submission.id, epoch.saturating_add(1));
    Ok(TakenInvocation::new(lease, invocation, repeatable))
}

/// Takes rows. What is running stays so: whoever has it next has to know.
pub(super) const TAKE: &str = "UPDATE fg_submissions SET epoch = epoch + 1, \
                               state = CASE WHEN state = 'running' THEN state ELSE 'leased' END, due_at = ";

pub(super) struct Get<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) id: InvocationId,
}

#[async_trait]
impl Operation for Get<'_> {
    type Answer = Option<Arc<QueuedInvocation>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let select = session.dialect().sql("SELECT ").sql(QUEUED).sql(" FROM fg_submissions s WHERE s.id = ");
        let select = select.arg(self.id.to_string()).sql(" AND s.tenant = ").arg(self.tenant.as_str());
        let Some(mut row) = session.row(select).await? else { return Ok(None) };
        decode(&mut row).map(|queued| Some(Arc::new(queued))).map_err(|reason| unreadable("the invocation", reason))
    }
}

pub(super) struct Cancel<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) id: InvocationId,
    pub(super) lease: Duration,
}

#[async_trait]
impl Operation for Cancel<'_> {
    type Answer = Cancelling;

    async fn run(&self, session: &mut dyn Session) -> Result<Cancelling, Fault> {
        let (dialect, id) = (session.dialect(), self.id.to_string());
        let select = dialect.sql("SELECT ").sql(QUEUED).sql(" FROM fg_submissions s WHERE s.id = ").arg(id.as_str());
        let select = select.sql(" AND s.tenant = ").arg(self.tenant.as_str()).sql(dialect.for_update);
        let Some(mut row) = session.row(select).await? else { return Err(not_queued(self.id).into()) };
        let mut taken = decode_taken(&mut row).map_err(|reason| unreadable("the invocation", reason))?;
        let invocation = &mut taken.invocation;
        let Some(due_at) = invocation.due_at.map(Timestamp::as_micros) else { return Ok(Cancelling::Ended) };
        invocation.cancel_requested = true;
        // Whoever takes it next sees the wish as well, should its lease have run out.
        if invocation.state != QueueState::Waiting {
            let update = dialect.sql("UPDATE fg_submissions SET cancel_requested = 1 WHERE id = ").arg(id);
            session.execute(update).await?;
            return Ok(Cancelling::Requested);
        }
        let until = after(session.now().await?, self.lease);
        let update = dialect.sql(TAKE).arg(until).sql(", cancel_requested = 1 WHERE id = ").arg(id);
        session.execute(update).await?;
        if until < due_at {
            let mut depths = Depths::default();
            depths.due(self.tenant.as_str(), until);
            depths.write(session).await?;
        }
        Ok(Cancelling::Taken(Box::new(taken)))
    }
}

pub(super) struct Cancelled<'a> {
    pub(super) ids: &'a [InvocationId],
}

#[async_trait]
impl Operation for Cancelled<'_> {
    type Answer = Vec<InvocationId>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let ids: Vec<String> = self.ids.iter().map(InvocationId::to_string).collect();
        let mut cancelled = Vec::new();
        for ids in ids.chunks(super::batch::MAX_ROWS) {
            let select = "SELECT id FROM fg_submissions WHERE cancel_requested <> 0 AND due_at IS NOT NULL AND ";
            let select = session.dialect().sql(select).any_of("id", ids.iter().map(String::as_str));
            cancelled.extend(
                session.rows(select).await?.into_iter().filter_map(|mut row| row.parse::<InvocationId>(0).ok()),
            );
        }
        Ok(cancelled)
    }
}

pub(super) struct DeadLetters<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) filter: &'a DeadLetterFilter,
    pub(super) page: &'a PageRequest,
}

fn decode_listed(row: &mut Row) -> Result<Arc<QueuedInvocation>, Unreadable> {
    decode(row).map(Arc::new)
}

#[async_trait]
impl Operation for DeadLetters<'_> {
    type Answer = Page<Arc<QueuedInvocation>>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let after = self.page.key(CursorKind::DeadLetters)?;
        let select = session.dialect().sql("SELECT ").sql(LISTED).sql(" FROM fg_submissions s WHERE s.tenant = ");
        let mut select = select.arg(self.tenant.as_str()).sql(" AND s.dead_at IS NOT NULL");
        if let Some(name) = &self.filter.name {
            select = select.sql(" AND s.name = ").arg(name.as_str());
        }
        if let Some(after) = &after {
            let after = read_place(after).ok_or_else(invalid_cursor)?;
            select = after_place(select, ("s.dead_at", "s.id"), after);
        }
        let mut pager = Pager::new(CursorKind::DeadLetters, self.page, decode_listed, place);
        pager.add(session, limited(select.sql(" ORDER BY s.dead_at DESC, s.id DESC"), self.page)).await?;
        Ok(pager.finish())
    }
}

pub(super) struct Purge<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) id: InvocationId,
}

#[async_trait]
impl Operation for Purge<'_> {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let (dialect, id) = (session.dialect(), self.id.to_string());
        let select = dialect.sql("SELECT name, state FROM fg_submissions WHERE id = ").arg(id.as_str());
        let select = select.sql(" AND tenant = ").arg(self.tenant.as_str()).sql(dialect.for_update);
        let Some(mut row) = session.row(select).await? else { return Err(not_queued(self.id).into()) };
        let mut read = || Ok((row.parse::<FunctionName>(0)?, row.parse::<QueueState>(1)?));
        let (name, state) = read().map_err(|reason| unreadable("the invocation", reason))?;
        if state != QueueState::Dead {
            return Err(not_dead(self.id).into());
        }
        session.execute(dialect.sql("DELETE FROM fg_submissions WHERE id = ").arg(id)).await?;
        let mut depths = Depths::default();
        depths.add(&FunctionKey::new(self.tenant.clone(), name), Counts { open: 0, dead: -1, pinned: 0 });
        depths.write(session).await
    }
}

pub(super) struct Depth<'a> {
    pub(super) tenant: &'a TenantId,
    pub(super) name: Option<&'a FunctionName>,
}

#[async_trait]
impl Operation for Depth<'_> {
    type Answer = QueueDepth;

    async fn run(&self, session: &mut dyn Session) -> Result<QueueDepth, Fault> {
        let select = session.dialect().sql("SELECT open, dead FROM fg_queue_depth WHERE tenant = ");
        let select = select.arg(self.tenant.as_str()).sql(" AND name = ");
        let Some(mut row) = session.row(select.arg(self.name.map_or(ALL, FunctionName::as_str))).await? else {
            return Ok(QueueDepth::default());
        };
        let mut count = |column| Ok(u64::try_from(row.int(column)?).unwrap_or_default());
        let mut read = || Ok(QueueDepth::new(count(0)?, count(1)?));
        read().map_err(|reason| unreadable("the depth of the queue", reason))
    }
}

pub(super) struct Pinned {
    pub(super) function: FunctionId,
    pub(super) generation: Generation,
}

#[async_trait]
impl Operation for Pinned {
    type Answer = u64;

    async fn run(&self, session: &mut dyn Session) -> Result<u64, Fault> {
        let select = session.dialect().sql("SELECT COUNT(*) FROM fg_submissions WHERE function_id = ");
        let select = select.arg(self.function.to_string()).sql(" AND pinned = ").arg(stored(self.generation.get()));
        let count = session.row(select).await?.and_then(|mut row| row.int(0).ok());
        Ok(count.and_then(|count| u64::try_from(count).ok()).unwrap_or_default())
    }
}

/// Forgets up to `limit`, a few at a time, so that writers get their turn in between.
pub(super) async fn expire(store: &SqlStore, limit: usize) -> Result<u64> {
    store.write(&ForgetCommits).await?;
    let mut forgotten = 0;
    let mut left = limit;
    while left > 0 {
        let wanted = left.min(EXPIRE);
        let count = store.write(&Expire { limit: wanted }).await?;
        forgotten += count;
        if count < u64::try_from(wanted).unwrap_or(u64::MAX) {
            break;
        }
        left -= wanted;
    }
    Ok(forgotten)
}

struct Expire {
    limit: usize,
}

#[async_trait]
impl Operation for Expire {
    type Answer = u64;

    async fn run(&self, session: &mut dyn Session) -> Result<u64, Fault> {
        let (dialect, now) = (session.dialect(), session.now().await?);
        let select =
            dialect.sql("SELECT id FROM fg_submissions WHERE expires_at IS NOT NULL AND expires_at <= ").arg(now);
        let select = select.sql(" ORDER BY expires_at LIMIT ").arg(row_limit(self.limit));
        // What another process forgets at the same time is left to it.
        delete_from(session, &["fg_submissions"], select.sql(dialect.skip_locked)).await
    }
}

/// Forgets which commits were the last ones of processes that are gone.
struct ForgetCommits;

#[async_trait]
impl Operation for ForgetCommits {
    type Answer = ();

    async fn run(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let before = Timestamp::from_micros(session.now().await?).minus(COMMITS);
        let select = session.dialect().sql("SELECT writer FROM fg_commits WHERE at < ").arg(before.as_micros());
        for mut row in session.rows(select.sql(session.dialect().skip_locked)).await? {
            if let Ok(writer) = row.text(0) {
                let delete = session.dialect().sql("DELETE FROM fg_commits WHERE writer = ").arg(writer);
                session.execute(delete).await?;
            }
        }
        Ok(())
    }
}
