//! How what is due is found and taken, tenant by tenant.
//!
//! The row of a tenant in `fg_queue_depth` has a time before which nothing of it is due. Whoever makes something due sooner lowers it
//! in the same transaction; whoever takes raises it to what is really due first, while it holds the row. So tenants that have nothing
//! due are not looked at, however many there are and however much waits for them, and what was taken before is not walked over.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;

use super::batch::{MAX_ROWS, row_limit};
use super::engine::{Dialect, Row, Session, Statement};
use super::fault::Fault;
use super::functions::{PAGE_BYTES, unreadable};
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
        let Some(mut row) = session.row(next_due(session.dialect(), None)).await? else { return Ok(None) };
        let mut read = || Ok(wait(row.int(1)?, row.int(0)?));
        read().map(Some).map_err(|reason| unreadable("the queue", reason))
    }
}

fn wait(now: i64, until: i64) -> Duration {
    Duration::from_micros(u64::try_from(until.saturating_sub(now)).unwrap_or_default())
}

/// When something may be due first; after a time, or at all. With the time that it is.
fn next_due(dialect: &'static Dialect, after: Option<i64>) -> Statement {
    let select = dialect.sql("SELECT next_due_at, ").sql(dialect.now).sql(" FROM fg_queue_depth WHERE next_due_at");
    let select = match after {
        Some(after) => select.sql(" > ").arg(after),
        None => select.sql(" IS NOT NULL"),
    };
    select.sql(" ORDER BY next_due_at LIMIT 1")
}

/// Tenants that may have something that is due, beginning with the one after the last.
fn due_tenants(dialect: &'static Dialect, now: i64, last: &str, without: &[TenantId]) -> Statement {
    let select = "SELECT tenant, next_due_at FROM fg_queue_depth WHERE next_due_at IS NOT NULL AND next_due_at <= ";
    let mut select = dialect.sql(select).arg(now);
    if !without.is_empty() {
        select = select.sql(" AND tenant NOT IN (").list(without.iter().map(TenantId::as_str)).sql(")");
    }
    let select = select.sql(" ORDER BY CASE WHEN tenant > ").arg(last);
    select.sql(" THEN 0 ELSE 1 END, tenant LIMIT ").arg(row_limit(TENANTS))
}

/// What is due first of tenants, as it is.
const FIRST_DUE: &str = "SELECT d.tenant, (SELECT s.due_at FROM fg_submissions s WHERE s.tenant = d.tenant \
                         AND s.due_at >= d.next_due_at ORDER BY s.due_at, s.id LIMIT 1) FROM fg_queue_depth d \
                         WHERE d.name = '' AND ";

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

impl Candidate {
    /// What is due of it, after what was taken.
    fn due(&self, dialect: &'static Dialect, now: i64, limit: usize) -> Statement {
        let (due_at, id) = &self.after;
        let select = dialect.sql("SELECT ").sql(QUEUED).sql(" FROM fg_submissions s WHERE s.tenant = ");
        let select = select.arg(self.tenant.as_str()).sql(" AND s.due_at >= ").arg(*due_at);
        let select = select.sql(" AND s.due_at <= ").arg(now).sql(" AND (s.due_at > ").arg(*due_at);
        let select = select.sql(" OR s.id > ").arg(id.as_str()).sql(") ORDER BY s.due_at, s.id LIMIT ");
        select.arg(row_limit(limit)).sql(dialect.skip_locked)
    }
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
        let candidate = |mut row: Row| {
            let (tenant, from) = (row.text(0)?, row.int(1)?);
            Ok(Candidate { tenant, from, after: (from, String::new()), count: 0, has_more: true })
        };
        let rows =
            session.rows(due_tenants(session.dialect(), now, self.last, &self.request.without)).await?.into_iter();
        rows.map(candidate).collect::<Result<_, _>>().map_err(|reason| unreadable("the queue", reason))
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
                for mut row in session.rows(candidate.due(session.dialect(), now, wanted)).await? {
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
            let locked: HashSet<String> = locked.collect();
            // Another statement, so that it sees all that was committed before the lock was got.
            for mut row in session.rows(dialect.sql(FIRST_DUE).any_of("d.tenant", tenants())).await? {
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
        let row = session.row(next_due(dialect, Some(now))).await?;
        Ok(sooner(next, row.and_then(|mut row| row.int(0).ok()).map(|due_at| wait(now, due_at))))
    }
}

fn sooner(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    a.into_iter().chain(b).min()
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests {
    use super::super::tests::plan_of;
    use super::*;

    #[tokio::test]
    async fn what_is_due_is_found_along_indexes() {
        let store = SqlStore::open("sqlite::memory:").await.unwrap();
        let dialect = store.0.engine.dialect();
        let candidate =
            Candidate { tenant: "acme".to_owned(), from: 1, after: (1, "x".to_owned()), count: 0, has_more: true };
        for (statement, is_sorted) in [
            (next_due(dialect, None), true),
            (next_due(dialect, Some(1)), true),
            (due_tenants(dialect, 1, "acme", &[]), false),
            (dialect.sql(FIRST_DUE).any_of("d.tenant", ["acme", "b"]), true),
            (candidate.due(dialect, 2, 10), true),
        ] {
            let (text, plan) = plan_of(&store, statement).await;
            // The first row of an index is as good as a search.
            let is_scan =
                |step: &String| step.starts_with("SCAN") && !step.contains("USING COVERING INDEX fg_queue_depth_due");
            assert!(!plan.iter().any(is_scan), "{text}: {plan:#?}");
            assert_eq!(plan.iter().any(|step| step.contains("TEMP B-TREE")), !is_sorted, "{text}: {plan:#?}");
        }
    }
}
