//! How what is due is found and taken, tenant by tenant.
//!
//! The row of a tenant in `fg_queue_depth` has a time before which nothing of it is due. Whoever makes something due sooner lowers it
//! in the same transaction; whoever takes raises it to what is really due first, while it holds the row. So tenants that have nothing
//! due are not looked at, however many there are and however much waits for them, and what was taken before is not walked over.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::batch::{MAX_ROWS, row_limit};
use super::engine::{Row, Session};
use super::fault::Fault;
use super::functions::PAGE_BYTES;
use super::queue::{QUEUED, TAKE, after, decode_taken};
use super::{Operation, SqlStore, depth};
use crate::{Result, TakeRequest, Taken, TakenInvocation, TenantId};

/// How many tenants are looked at in one transaction.
const TENANTS: usize = 64;
/// When to look again for what somebody else is about to take.
const BUSY: Duration = Duration::from_millis(10);

/// The tenant that had the last turn in this process.
#[derive(Debug, Default)]
pub(super) struct Turn(Mutex<String>);

impl Turn {
    fn tenant(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn take(store: &SqlStore, request: &TakeRequest) -> Result<Taken> {
    if request.limit == 0 || request.per_tenant == 0 {
        return Ok(Taken::default());
    }
    // Where nothing is due nothing is locked, and nothing written.
    let Some(wait) = store.read(&NextDue).await? else { return Ok(Taken::default()) };
    if !wait.is_zero() {
        return Ok(Taken::new(Vec::new(), Some(wait)));
    }
    let last = store.0.turn.tenant().clone();
    let (taken, served) = store.write(&Take { request, last: &last }).await?;
    if let Some(served) = served {
        *store.0.turn.tenant() = served;
    }
    Ok(taken)
}

/// How long nothing is due; `None` where nothing waits.
struct NextDue;

#[async_trait]
impl Operation for NextDue {
    type Answer = Option<Duration>;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let dialect = session.dialect();
        let select = dialect.sql("SELECT next_due_at, ").sql(dialect.now).sql(" FROM fg_queue_depth");
        let select = select.sql(" WHERE next_due_at IS NOT NULL ORDER BY next_due_at LIMIT 1");
        let Some(mut row) = session.row(select).await? else { return Ok(None) };
        let mut read = || Ok(wait(row.int(1)?, row.int(0)?));
        read().map(Some).map_err(|reason| super::functions::unreadable("the queue", reason))
    }
}

fn wait(now: i64, until: i64) -> Duration {
    Duration::from_micros(u64::try_from(until.saturating_sub(now)).unwrap_or_default())
}

struct Take<'a> {
    request: &'a TakeRequest,
    last: &'a str,
}

/// A tenant that may have something that is due.
struct Candidate {
    tenant: String,
    /// Nothing of it is due before that.
    from: i64,
    /// The place of the last one that was taken.
    after: (i64, String),
    count: usize,
    /// Whether more of it may be due.
    has_more: bool,
}

#[async_trait]
impl Operation for Take<'_> {
    /// What was taken, and the tenant whose turn was the last.
    type Answer = (Taken, Option<String>);

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault> {
        let now = session.now().await?;
        let mut candidates = self.candidates(session, now).await?;
        let (ids, items, served) = self.select(session, now, &mut candidates).await?;
        let dialect = session.dialect();
        for ids in ids.chunks(MAX_ROWS) {
            let update = dialect.sql(TAKE).arg(after(now, self.request.lease)).sql(" WHERE ");
            session.execute(update.any_of("id", ids.iter().map(String::as_str))).await?;
        }
        let next = self.raise(session, now, &candidates).await?;
        let is_more = candidates.len() >= TENANTS || candidates.iter().any(|candidate| candidate.has_more);
        let next_due = if is_more { Some(Duration::ZERO) } else { next };
        Ok((Taken::new(items, next_due), served))
    }
}

impl Take<'_> {
    /// Tenants in their turn.
    async fn candidates(&self, session: &mut dyn Session, now: i64) -> Result<Vec<Candidate>, Fault> {
        let select = "SELECT tenant, next_due_at FROM fg_queue_depth WHERE next_due_at IS NOT NULL AND next_due_at <= ";
        let mut select = session.dialect().sql(select).arg(now);
        if !self.request.without.is_empty() {
            let without = self.request.without.iter().map(TenantId::as_str);
            select = select.sql(" AND tenant NOT IN (").list(without).sql(")");
        }
        let select = select.sql(" ORDER BY CASE WHEN tenant > ").arg(self.last);
        let select = select.sql(" THEN 0 ELSE 1 END, tenant LIMIT ").arg(row_limit(TENANTS));
        let candidate = |mut row: Row| {
            let (tenant, from) = (row.text(0)?, row.int(1)?);
            Ok(Candidate { tenant, from, after: (from, String::new()), count: 0, has_more: true })
        };
        let rows = session.rows(select).await?.into_iter();
        rows.map(candidate)
            .collect::<Result<_, _>>()
            .map_err(|reason| super::functions::unreadable("the queue", reason))
    }

    /// What is taken: of each tenant its share, and what others leave of theirs.
    async fn select(
        &self,
        session: &mut dyn Session,
        now: i64,
        candidates: &mut [Candidate],
    ) -> Result<(Vec<String>, Vec<TakenInvocation>, Option<String>), Fault> {
        let TakeRequest { limit, per_tenant, .. } = *self.request;
        let (mut ids, mut items, mut bytes, mut served) = (Vec::new(), Vec::new(), 0, None);
        loop {
            let active = |candidate: &&mut Candidate| candidate.has_more && candidate.count < per_tenant;
            let count = candidates.iter_mut().filter(active).count();
            if count == 0 {
                break;
            }
            let share = (limit.saturating_sub(ids.len()) / count).max(1);
            for candidate in candidates.iter_mut().filter(active) {
                let wanted = share.min(per_tenant - candidate.count).min(limit.saturating_sub(ids.len()));
                if wanted == 0 || bytes > PAGE_BYTES {
                    return Ok((ids, items, served));
                }
                let mut found = 0;
                let dialect = session.dialect();
                let (due_at, id) = &candidate.after;
                let select = dialect.sql("SELECT ").sql(QUEUED).sql(" FROM fg_submissions s WHERE s.tenant = ");
                let select = select.arg(candidate.tenant.as_str()).sql(" AND s.due_at >= ").arg(*due_at);
                let select = select.sql(" AND s.due_at <= ").arg(now).sql(" AND (s.due_at > ").arg(*due_at);
                let select = select.sql(" OR s.id > ").arg(id.as_str()).sql(") ORDER BY s.due_at, s.id LIMIT ");
                let select = select.arg(row_limit(wanted)).sql(dialect.skip_locked);
                for mut row in session.rows(select).await? {
                    bytes += row.size();
                    found += 1;
                    let place = row.peek_int(6).and_then(|due_at| Ok((due_at, row.peek_text(1)?.to_owned())));
                    if let Ok(place) = place {
                        ids.push(place.1.clone());
                        candidate.after = place;
                    }
                    match decode_taken(&mut row) {
                        Ok(taken) => items.push(taken),
                        // It is taken all the same, so that it stands in the way of others for no longer.
                        Err(reason) => {
                            let id = ids.last();
                            tracing::error!(id, reason = reason.0, "an invocation in the queue can't be read");
                        }
                    }
                }
                candidate.count += found;
                candidate.has_more = found >= wanted;
                if found > 0 {
                    served = Some(candidate.tenant.clone());
                }
            }
        }
        Ok((ids, items, served))
    }

    /// Notes of tenants that were looked at when something of them is due next. Says when something is due of whichever tenant.
    async fn raise(
        &self,
        session: &mut dyn Session,
        now: i64,
        candidates: &[Candidate],
    ) -> Result<Option<Duration>, Fault> {
        let dialect = session.dialect();
        let tenants = || candidates.iter().map(|candidate| candidate.tenant.as_str());
        let (mut next, mut raised) = (None, Vec::new());
        if !candidates.is_empty() {
            // Who lowers it at this moment holds the row, and need not be waited for.
            let select = dialect.sql("SELECT tenant FROM fg_queue_depth WHERE name = '' AND ");
            let select = select.any_of("tenant", tenants()).sql(dialect.skip_locked);
            let locked = session.rows(select).await?.into_iter().filter_map(|mut row| row.text(0).ok());
            let locked: std::collections::HashSet<String> = locked.collect();
            // Another statement, so that it sees all that was committed before the lock was got.
            let select = "SELECT d.tenant, (SELECT s.due_at FROM fg_submissions s WHERE s.tenant = d.tenant \
                          AND s.due_at >= d.next_due_at ORDER BY s.due_at, s.id LIMIT 1) FROM fg_queue_depth d \
                          WHERE d.name = '' AND ";
            for mut row in session.rows(dialect.sql(select).any_of("d.tenant", tenants())).await? {
                let (Ok(tenant), Ok(due_at)) = (row.text(0), row.opt_int(1)) else { continue };
                // What is due and was not taken is somebody else's at this moment.
                let wait = due_at.map(|due_at| if due_at > now { wait(now, due_at) } else { BUSY });
                next = sooner(next, wait);
                let before = candidates.iter().find(|candidate| candidate.tenant == tenant).map(|found| found.from);
                if locked.contains(&tenant) && before != due_at {
                    raised.push((tenant, due_at));
                }
            }
            let raised: Vec<_> = raised.iter().map(|(tenant, due_at)| (tenant.as_str(), *due_at)).collect();
            depth::set_due(session, &raised).await?;
        }
        let select = dialect.sql("SELECT next_due_at FROM fg_queue_depth WHERE next_due_at > ").arg(now);
        let row = session.row(select.sql(" ORDER BY next_due_at LIMIT 1")).await?;
        Ok(sooner(next, row.and_then(|mut row| row.int(0).ok()).map(|due_at| wait(now, due_at))))
    }
}

fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}
