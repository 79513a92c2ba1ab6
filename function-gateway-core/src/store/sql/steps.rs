//! Steps of the queue as parts of a batch: what is accepted, dispatched, settled and redriven.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::batch::{Change, Encoded, Expect, MAX_ROWS, Outcome, Records, Signals, pieces};
use super::depth::{Counts, Depths, places};
use super::engine::{Row, Session, Statement, Unreadable, stored};
use super::fault::Fault;
use super::functions::{json, unreadable};
use super::queue::{self, FORMAT, QUEUED, after};
use crate::queue::{idempotency_mismatch, not_dead, not_queued, queue_lease_lost};
use crate::store::{check_begin, check_finish, kept_bytes};
use crate::{
    Acceptance, Accepted, Dispatch, Due, Error, ErrorKind, FunctionKey, InvocationId, InvocationState, Progress,
    QueueLease, QueueLimits, QueueState, QueuedInvocation, Result, Settled, Settlement, Submission, TenantId,
    Timestamp,
};

/// How many idempotency keys one statement looks up.
const KEYS: usize = 64;

/// Something that happens to an invocation in the queue.
pub(super) enum Step {
    Accept(New),
    Dispatch { lease: QueueLease, id: String, dispatch: Dispatch },
    Settle(Settling),
    Redrive(Redriving),
}

/// An invocation to be accepted.
pub(super) struct New {
    submission: Arc<Submission>,
    id: String,
    document: String,
    record: Option<Encoded>,
    due: Due,
    limits: QueueLimits,
    lease: Option<Duration>,
}

pub(super) struct Settling {
    lease: QueueLease,
    id: String,
    settled: Settled,
    record: Option<Encoded>,
    progress: String,
    body: Option<Bytes>,
    followers: Vec<New>,
    free_key: bool,
}

pub(super) struct Redriving {
    tenant: TenantId,
    of: InvocationId,
    id: String,
    keep_for: Duration,
    new: New,
}

impl New {
    fn of(acceptance: Acceptance) -> Result<Self> {
        let Acceptance { submission, record, due, limits, lease } = acceptance;
        let record = record.map(|record| {
            check_begin(&record)?;
            Encoded::new(Change::Begin, record).map_err(Fault::into_error)
        });
        let document = json(&*submission).map_err(Fault::into_error)?;
        Ok(Self {
            id: submission.id.to_string(),
            document,
            record: record.transpose()?,
            submission,
            due,
            limits,
            lease,
        })
    }

    fn bytes(&self) -> usize {
        self.document.len() + self.submission.payload.len()
    }

    fn kept_bytes(&self) -> usize {
        self.submission.payload.len() + self.record.as_ref().map_or(0, |record| kept_bytes(&record.record))
    }
}

impl Step {
    pub(super) fn accept(acceptance: Acceptance) -> Result<Self> {
        Ok(Self::Accept(New::of(acceptance)?))
    }

    pub(super) fn dispatch(lease: QueueLease, dispatch: Dispatch) -> Self {
        Self::Dispatch { lease, id: lease.id.to_string(), dispatch }
    }

    pub(super) fn settle(lease: QueueLease, settlement: Settlement) -> Result<Self> {
        let Settlement { settled, mut progress, followers, free_key } = settlement;
        let record = match &settled {
            Settled::Ended { record: Some(record), .. } => {
                check_finish(record)?;
                Some(Encoded::new(Change::Finish, Arc::clone(record)).map_err(Fault::into_error)?)
            }
            _ => None,
        };
        let body = progress.answer.as_mut().and_then(|answer| answer.body.take());
        let progress = json(&progress).map_err(Fault::into_error)?;
        let followers = followers.into_iter().map(New::of).collect::<Result<_>>()?;
        let id = lease.id.to_string();
        Ok(Self::Settle(Settling { lease, id, settled, record, progress, body, followers, free_key }))
    }

    pub(super) fn redrive(tenant: TenantId, of: InvocationId, new: Acceptance, keep_for: Duration) -> Result<Self> {
        Ok(Self::Redrive(Redriving { tenant, of, id: of.to_string(), keep_for, new: New::of(new)? }))
    }

    /// What it accepts.
    fn news(&self) -> &[New] {
        match self {
            Self::Accept(new) => std::slice::from_ref(new),
            Self::Redrive(redriving) => std::slice::from_ref(&redriving.new),
            Self::Settle(settling) => &settling.followers,
            Self::Dispatch { .. } => &[],
        }
    }

    /// The invocation that it is about, where it is in the queue already.
    fn of(&self) -> Option<&str> {
        match self {
            Self::Accept(_) => None,
            Self::Dispatch { id, .. } => Some(id),
            Self::Settle(settling) => Some(&settling.id),
            Self::Redrive(redriving) => Some(&redriving.id),
        }
    }

    pub(super) fn records(&self) -> impl Iterator<Item = &Encoded> {
        let of = match self {
            Self::Settle(settling) => settling.record.as_ref(),
            _ => None,
        };
        of.into_iter().chain(self.news().iter().filter_map(|new| new.record.as_ref()))
    }

    pub(super) fn may_be_given_up(&self) -> bool {
        !matches!(self, Self::Settle(_))
    }

    /// How many bytes of payloads and answers it holds.
    pub(super) fn kept_bytes(&self) -> usize {
        let own = match self {
            Self::Settle(Settling { record, body, .. }) => {
                body.as_ref().map_or(0, Bytes::len) + record.as_ref().map_or(0, |record| kept_bytes(&record.record))
            }
            _ => 0,
        };
        own + self.news().iter().map(New::kept_bytes).sum::<usize>()
    }
}

/// An invocation that is in the queue, locked.
struct Held<'a> {
    key: FunctionKey,
    pinned: Option<i64>,
    state: QueueState,
    due_at: Option<i64>,
    epoch: i64,
    attempts: i64,
    repeatable: bool,
    ended_at: Option<i64>,
    dead_at: Option<i64>,
    expires_at: Option<i64>,
    /// What is to be written of it.
    change: Changed<'a>,
}

#[derive(Clone, Copy)]
enum Changed<'a> {
    Nothing,
    Dispatched,
    Settled(&'a Settling),
}

/// Where a new one stands.
struct Placed<'a> {
    new: &'a New,
    state: QueueState,
    due_at: i64,
}

/// An idempotency key that is taken.
type Key = (FunctionKey, String);

/// The queue as a batch finds and leaves it.
pub(super) struct Steps<'a> {
    now: i64,
    held: HashMap<InvocationId, Held<'a>>,
    /// How those have gone that are to be redriven.
    progress: HashMap<InvocationId, Progress>,
    redriven: Vec<(&'a Redriving, Progress, i64)>,
    keys: HashMap<Key, Arc<QueuedInvocation>>,
    new: Vec<Placed<'a>>,
    new_ids: HashSet<InvocationId>,
    /// Records whose state is to be changed without their documents.
    states: HashMap<&'a str, InvocationState>,
    depths: Depths,
    signals: Signals,
}

impl<'a> Steps<'a> {
    /// Reads and locks what the steps of a batch are about.
    pub(super) async fn lock(
        session: &mut dyn Session,
        steps: impl Iterator<Item = &'a Step>,
        expect: Expect,
    ) -> Result<Self, Fault> {
        let mut this = Self {
            now: 0,
            held: HashMap::new(),
            progress: HashMap::new(),
            redriven: Vec::new(),
            keys: HashMap::new(),
            new: Vec::new(),
            new_ids: HashSet::new(),
            states: HashMap::new(),
            depths: Depths::default(),
            signals: Signals::default(),
        };
        let steps: Vec<&Step> = steps.collect();
        if steps.is_empty() {
            return Ok(this);
        }
        let mut ids: BTreeSet<&str> = steps.iter().filter_map(|step| step.of()).collect();
        let news = || steps.iter().flat_map(|step| step.news());
        if expect == Expect::Some {
            ids.extend(news().map(|new| new.id.as_str()));
        }
        this.lock_rows(session, &ids.into_iter().collect::<Vec<_>>()).await?;
        this.read_progress(session, &steps).await?;
        // Whoever brings a key to a function holds its row first, so that two never meet where keys are inserted.
        if steps.iter().any(|step| step.is_limited()) || news().any(|new| new.submission.idempotency.is_some()) {
            let keys = news().map(|new| &new.submission.key).chain(this.held.values().map(|held| &held.key));
            let places = keys.flat_map(places).collect();
            this.depths.lock(session, places).await?;
        }
        this.read_keys(session, news()).await?;
        // The time of leases is that after everything is locked.
        this.now = session.now().await?;
        Ok(this)
    }

    async fn lock_rows(&mut self, session: &mut dyn Session, ids: &[&str]) -> Result<(), Fault> {
        let dialect = session.dialect();
        for ids in ids.chunks(MAX_ROWS) {
            let select = "SELECT id, tenant, name, pinned, state, due_at, epoch, attempts, repeatable, ended_at, dead_at, \
                          expires_at FROM fg_submissions WHERE ";
            // In one order, so that two processes don't wait for each other.
            let select =
                dialect.sql(select).any_of("id", ids.iter().copied()).sql(" ORDER BY id").sql(dialect.for_update);
            for mut row in session.rows(select).await? {
                let (id, held) = held(&mut row).map_err(|reason| unreadable("an invocation in the queue", reason))?;
                self.held.insert(id, held);
            }
        }
        Ok(())
    }

    async fn read_progress(&mut self, session: &mut dyn Session, steps: &[&Step]) -> Result<(), Fault> {
        let redriven = |step: &&Step| match step {
            Step::Redrive(redriving) => Some(redriving.id.clone()),
            _ => None,
        };
        let ids: Vec<String> = steps.iter().filter_map(redriven).collect();
        for ids in ids.chunks(MAX_ROWS) {
            let select = session.dialect().sql("SELECT id, progress FROM fg_submissions WHERE ");
            for mut row in session.rows(select.any_of("id", ids.iter().map(String::as_str))).await? {
                // What can't be read is not redriven.
                if let (Ok(id), Ok(progress)) = (row.parse(0), row.json(1)) {
                    self.progress.insert(id, progress);
                }
            }
        }
        Ok(())
    }

    /// Reads what was accepted before under the keys of a batch.
    async fn read_keys(&mut self, session: &mut dyn Session, news: impl Iterator<Item = &'a New>) -> Result<(), Fault> {
        let key = |new: &'a New| new.submission.idempotency.as_ref().map(|found| (&new.submission.key, &*found.key));
        let wanted: Vec<(&FunctionKey, &str)> = news.filter_map(key).collect();
        let dialect = session.dialect();
        let mut ids = BTreeSet::new();
        for keys in wanted.chunks(KEYS) {
            // Each by itself, so that no plan goes through all keys of a function, and filled up as lists of ids are.
            let filled = keys.iter().chain(keys.last().into_iter().cycle()).take(keys.len().next_power_of_two());
            let mut select = dialect.sql("");
            for (index, (function, key)) in filled.enumerate() {
                select = select.sql(if index > 0 { " UNION ALL SELECT id" } else { "SELECT id" });
                select = select.sql(" FROM fg_submissions WHERE tenant = ").arg(function.tenant.as_str());
                select = select.sql(" AND name = ").arg(function.name.as_str());
                select = select.sql(" AND idem_key = ").arg(key.as_bytes());
            }
            ids.extend(session.rows(select).await?.into_iter().filter_map(|mut row| row.text(0).ok()));
        }
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        for ids in ids.chunks(MAX_ROWS) {
            let select = dialect.sql("SELECT ").sql(QUEUED).sql(" FROM fg_submissions s WHERE ");
            for mut row in session.rows(select.any_of("s.id", ids.iter().copied())).await? {
                let found = queue::decode(&mut row).map_err(|reason| unreadable("the invocation", reason))?;
                self.note_key(found);
            }
        }
        Ok(())
    }

    fn note_key(&mut self, queued: QueuedInvocation) {
        if let Some(idempotency) = &queued.submission.idempotency {
            let key = (queued.submission.key.clone(), idempotency.key.clone());
            self.keys.insert(key, Arc::new(queued));
        }
    }

    /// Makes a step, or nothing of it.
    pub(super) fn decide(&mut self, step: &'a Step, records: &mut Records<'a>) -> Result<Outcome> {
        match step {
            Step::Accept(new) => self.accept(new, records).map(Outcome::Accepted),
            Step::Dispatch { lease, id, dispatch } => self.dispatch(*lease, id, *dispatch).map(|()| Outcome::Done),
            Step::Settle(settling) => self.settle(settling, records).map(|()| Outcome::Done),
            Step::Redrive(redriving) => self.redrive(redriving, records).map(|()| Outcome::Done),
        }
    }

    fn accept(&mut self, new: &'a New, records: &mut Records<'a>) -> Result<Accepted> {
        if let Some(known) = self.known(new)? {
            return Ok(Accepted::Known(known));
        }
        self.check_free(new, records)?;
        self.check_limits(new)?;
        let lease = new.lease.map(|_| QueueLease::new(new.submission.id, 1));
        self.add(new, new.lease, records);
        Ok(Accepted::New { lease })
    }

    /// What the function was sent before under the same key.
    fn known(&self, new: &New) -> Result<Option<Arc<QueuedInvocation>>> {
        let Some(idempotency) = &new.submission.idempotency else { return Ok(None) };
        let key = (new.submission.key.clone(), idempotency.key.clone());
        let Some(known) = self.keys.get(&key) else { return Ok(None) };
        match known.submission.idempotency.as_ref() == Some(idempotency) {
            true => Ok(Some(Arc::clone(known))),
            false => Err(idempotency_mismatch(&idempotency.key)),
        }
    }

    fn check_free(&self, new: &New, records: &Records<'_>) -> Result<()> {
        let id = new.submission.id;
        if self.held.contains_key(&id) || self.new_ids.contains(&id) {
            return Err(submission_exists(id));
        }
        new.record.as_ref().map_or(Ok(()), |record| records.check(record))
    }

    fn check_limits(&self, new: &New) -> Result<()> {
        let [of_function, of_tenant] = places(&new.submission.key).map(|place| self.depths.get(&place));
        let count = |count: i64| u64::try_from(count).unwrap_or_default();
        let pinned = new.submission.pinned.then(|| count(of_function.pinned));
        new.limits.check(count(of_function.open), count(of_tenant.open), pinned)
    }

    fn add(&mut self, new: &'a New, lease: Option<Duration>, records: &mut Records<'a>) {
        let submission = &new.submission;
        let (state, due_at) = match lease {
            Some(lease) => (QueueState::Leased, after(self.now, lease)),
            None => (QueueState::Waiting, self.due_at(new.due)),
        };
        self.new_ids.insert(submission.id);
        self.new.push(Placed { new, state, due_at });
        self.depths.add(&submission.key, Counts { open: 1, dead: 0, pinned: i64::from(submission.pinned) });
        self.depths.due(submission.key.tenant.as_str(), due_at);
        self.signals.arrivals |= lease.is_none();
        if let Some(record) = &new.record {
            records.put(record);
        }
        if submission.idempotency.is_some() {
            let mut queued = QueuedInvocation::waiting(Arc::clone(submission), Timestamp::from_micros(due_at));
            queued.state = state;
            self.note_key(queued);
        }
    }

    fn due_at(&self, due: Due) -> i64 {
        match due {
            Due::Now => self.now,
            Due::In(wait) => after(self.now, wait),
            Due::At(at) => at.as_micros(),
        }
    }

    /// The row of a lease that holds.
    fn leased(&mut self, lease: QueueLease) -> Result<&mut Held<'a>> {
        let now = self.now;
        let holds = |held: &&mut Held<'_>| {
            matches!(held.state, QueueState::Leased | QueueState::Running)
                && held.epoch == stored(lease.epoch)
                && held.due_at.is_some_and(|until| now < until)
        };
        self.held.get_mut(&lease.id).filter(holds).ok_or_else(|| queue_lease_lost(lease.id))
    }

    fn dispatch(&mut self, lease: QueueLease, id: &'a str, dispatch: Dispatch) -> Result<()> {
        let until = after(self.now, dispatch.lease);
        let held = self.leased(lease)?;
        let attempt = i64::from(dispatch.attempt);
        let prolongs = held.state == QueueState::Running && held.attempts == attempt;
        (held.state, held.attempts, held.repeatable) = (QueueState::Running, attempt, dispatch.repeatable);
        let is_sooner = held.due_at.is_none_or(|before| until < before);
        held.due_at = Some(until);
        if matches!(held.change, Changed::Nothing) {
            held.change = Changed::Dispatched;
        }
        if is_sooner {
            let tenant = held.key.tenant.clone();
            self.depths.due(tenant.as_str(), until);
        }
        if !prolongs {
            self.states.insert(id, InvocationState::Running);
        }
        Ok(())
    }

    fn settle(&mut self, settling: &'a Settling, records: &mut Records<'a>) -> Result<()> {
        let now = self.now;
        let again = match &settling.settled {
            Settled::Again { due, .. } => Some(self.due_at(*due)),
            Settled::Ended { .. } => None,
        };
        let held = self.leased(settling.lease)?;
        let key = held.key.clone();
        held.change = Changed::Settled(settling);
        match &settling.settled {
            Settled::Again { attempts, .. } => {
                (held.state, held.due_at, held.attempts) = (QueueState::Waiting, again, i64::from(*attempts));
                self.states.insert(&settling.id, InvocationState::Queued);
                self.signals.arrivals = true;
            }
            Settled::Ended { dead, keep_for, .. } => {
                let counts = Counts { open: -1, dead: i64::from(*dead), pinned: -i64::from(held.pinned.is_some()) };
                held.state = if *dead { QueueState::Dead } else { QueueState::Done };
                (held.due_at, held.pinned, held.ended_at) = (None, None, Some(now));
                held.dead_at = dead.then_some(now);
                held.expires_at = if *dead { None } else { Some(after(now, *keep_for)) };
                self.states.remove(settling.id.as_str());
                self.depths.add(&key, counts);
                self.signals.endings = true;
            }
        }
        if let Some(due_at) = again {
            self.depths.due(key.tenant.as_str(), due_at);
        }
        if let Some(record) = &settling.record
            && records.check(record).is_ok()
        {
            // One that is final already stays as it is.
            records.put(record);
        }
        for follower in &settling.followers {
            // What is there already is no obstacle.
            if matches!(self.known(follower), Ok(None)) && self.check_free(follower, records).is_ok() {
                self.add(follower, None, records);
            }
        }
        Ok(())
    }

    fn redrive(&mut self, redriving: &'a Redriving, records: &mut Records<'a>) -> Result<()> {
        let Redriving { tenant, of, new, keep_for, .. } = redriving;
        let held = self.held.get(of).filter(|held| held.key.tenant == *tenant).ok_or_else(|| not_queued(*of))?;
        if held.state != QueueState::Dead {
            return Err(not_dead(*of));
        }
        let key = held.key.clone();
        if self.known(new)?.is_some() {
            return Err(submission_exists(new.submission.id));
        }
        self.check_free(new, records)?;
        self.check_limits(new)?;
        let reason = || Unreadable("column progress is not what it should be".to_owned());
        let mut progress =
            self.progress.remove(of).ok_or_else(|| unreadable("the dead letter", reason()).into_error())?;
        progress.redriven_as = Some(new.submission.id);
        if let Some(held) = self.held.get_mut(of) {
            held.state = QueueState::Redriven;
        }
        self.redriven.push((redriving, progress, after(self.now, *keep_for)));
        self.depths.add(&key, Counts { open: 0, dead: -1, pinned: 0 });
        self.add(new, None, records);
        Ok(())
    }

    /// Writes all steps that were made, after the records.
    pub(super) async fn write(mut self, session: &mut dyn Session) -> Result<Signals, Fault> {
        for state in [InvocationState::Running, InvocationState::Queued] {
            let mut ids: Vec<&str> =
                self.states.iter().filter(|(_, wanted)| **wanted == state).map(|(id, _)| *id).collect();
            ids.sort_unstable();
            for ids in ids.chunks(MAX_ROWS) {
                let update = session.dialect().sql("UPDATE fg_invocations SET state = ").arg(state.as_str());
                let update = update.sql(" WHERE finished_at IS NULL AND ").any_of("id", ids.iter().copied());
                session.execute(update).await?;
            }
        }
        // Keys in one order, so that two processes that bring the same ones don't wait for each other.
        self.new.sort_unstable_by(|a, b| a.order().cmp(&b.order()));
        self.insert(session).await?;
        self.write_dispatched(session).await?;
        self.write_settled(session).await?;
        self.free_keys(session).await?;
        for (redriving, progress, expires_at) in &self.redriven {
            let update = "UPDATE fg_submissions SET state = 'redriven', dead_at = NULL, expires_at = ";
            let update = session.dialect().sql(update).arg(*expires_at).sql(", progress = ").arg(json(progress)?);
            session.execute(update.sql(" WHERE id = ").arg(redriving.id.as_str())).await?;
        }
        self.depths.write(session).await?;
        Ok(self.signals)
    }

    async fn insert(&self, session: &mut dyn Session) -> Result<(), Fault> {
        for piece in pieces(&self.new, |placed| placed.new.bytes()) {
            let mut statement = session.dialect().sql(
                "INSERT INTO fg_submissions (id, tenant, name, function_id, state, document, progress, pinned, due_at, \
                 epoch, attempts, repeatable, cancel_requested, created_at, format, idem_key, payload) VALUES ",
            );
            for (index, Placed { new, state, due_at }) in piece.iter().enumerate() {
                let submission = &*new.submission;
                let pinned = submission.pinned.then(|| stored(submission.generation.get()));
                let epoch = i64::from(*state == QueueState::Leased);
                let key = submission.idempotency.as_ref().map(|idempotency| idempotency.key.as_bytes());
                statement = statement
                    .sql(if index > 0 { ", (" } else { "(" })
                    .list([
                        new.id.as_str(),
                        submission.key.tenant.as_str(),
                        submission.key.name.as_str(),
                        &submission.function.to_string(),
                        state.as_str(),
                        new.document.as_str(),
                        "{}",
                    ])
                    .sql(", ")
                    .list([pinned, Some(*due_at), Some(epoch), Some(0), Some(0), Some(0)])
                    .sql(", ")
                    .list([submission.created_at.as_micros(), FORMAT])
                    .sql(", ")
                    .list([key, Some(&*submission.payload)])
                    .sql(")");
            }
            session.execute(statement).await?;
        }
        Ok(())
    }

    async fn free_keys(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let frees = |held: &Held<'a>| match held.change {
            Changed::Settled(settling) if settling.free_key => Some(settling.id.as_str()),
            _ => None,
        };
        let mut ids: Vec<&str> = self.held.values().filter_map(frees).collect();
        ids.sort_unstable();
        for ids in ids.chunks(MAX_ROWS) {
            let update = session.dialect().sql("UPDATE fg_submissions SET idem_key = NULL WHERE ");
            session.execute(update.any_of("id", ids.iter().copied())).await?;
        }
        Ok(())
    }

    async fn write_dispatched(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let dispatched = |held: &Held<'_>| matches!(held.change, Changed::Dispatched);
        let mut rows: Vec<_> = self.held.iter().filter(|(_, held)| dispatched(held)).collect();
        rows.sort_unstable_by_key(|(id, _)| **id);
        let dialect = session.dialect();
        let on_conflict = dialect.upsert("id", &["state", "due_at", "attempts", "repeatable"]);
        for piece in pieces(&rows, |_| 0) {
            let mut statement = dialect.sql(REPLACE).sql(") VALUES ");
            for (index, (id, held)) in piece.iter().enumerate() {
                statement = held.replace(statement, index, **id, "").sql(")");
            }
            session.execute(statement.sql(&on_conflict)).await?;
        }
        Ok(())
    }

    async fn write_settled(&self, session: &mut dyn Session) -> Result<(), Fault> {
        let mut rows = Vec::new();
        for (id, held) in &self.held {
            if let Changed::Settled(settling) = held.change {
                rows.push((*id, held, settling));
            }
        }
        rows.sort_unstable_by_key(|(id, ..)| *id);
        let dialect = session.dialect();
        let on_conflict = dialect.upsert(
            "id",
            &[
                "state",
                "due_at",
                "attempts",
                "repeatable",
                "progress",
                "pinned",
                "ended_at",
                "dead_at",
                "expires_at",
                "result",
            ],
        );
        let bytes = |settling: &Settling| settling.progress.len() + settling.body.as_ref().map_or(0, Bytes::len);
        for piece in pieces(&rows, |(.., settling)| bytes(settling)) {
            let mut statement = dialect.sql(REPLACE).sql(", pinned, ended_at, dead_at, expires_at, result) VALUES ");
            for (index, (id, held, settling)) in piece.iter().enumerate() {
                let Held { pinned, ended_at, dead_at, expires_at, .. } = held;
                statement = held
                    .replace(statement, index, *id, &settling.progress)
                    .sql(", ")
                    .list([*pinned, *ended_at, *dead_at, *expires_at])
                    .sql(", ")
                    .arg(settling.body.as_deref())
                    .sql(")");
            }
            session.execute(statement.sql(&on_conflict)).await?;
        }
        Ok(())
    }
}

/// Begins to replace rows, which are there and locked: what they don't replace need not be right.
const REPLACE: &str = "INSERT INTO fg_submissions (id, state, progress, tenant, name, function_id, document, due_at, \
                       attempts, repeatable, epoch, cancel_requested, created_at, format, payload";

impl Held<'_> {
    fn replace(&self, statement: Statement, index: usize, id: InvocationId, progress: &str) -> Statement {
        statement
            .sql(if index > 0 { ", (" } else { "(" })
            .list([&*id.to_string(), self.state.as_str(), progress, "", "", "", ""])
            .sql(", ")
            .list([
                self.due_at,
                Some(self.attempts),
                Some(i64::from(self.repeatable)),
                Some(0),
                Some(0),
                Some(0),
                Some(0),
            ])
            .sql(", ")
            .arg(&[][..])
    }
}

impl<'a> Placed<'a> {
    fn order(&self) -> (Option<&'a str>, &'a str) {
        let key = self.new.submission.idempotency.as_ref().map(|idempotency| idempotency.key.as_str());
        (key, &self.new.id)
    }
}

impl Step {
    /// Whether it may be refused for what is in the queue already.
    fn is_limited(&self) -> bool {
        let is_limited = |new: &New| new.limits != QueueLimits::NONE;
        match self {
            Self::Accept(new) => is_limited(new),
            Self::Redrive(redriving) => is_limited(&redriving.new),
            Self::Dispatch { .. } | Self::Settle(_) => false,
        }
    }
}

fn held<'a>(row: &mut Row) -> Result<(InvocationId, Held<'a>), Unreadable> {
    let held = Held {
        key: FunctionKey::new(row.parse(1)?, row.parse(2)?),
        pinned: row.opt_int(3)?,
        state: row.parse(4)?,
        due_at: row.opt_int(5)?,
        epoch: row.int(6)?,
        attempts: row.int(7)?,
        repeatable: row.int(8)? != 0,
        ended_at: row.opt_int(9)?,
        dead_at: row.opt_int(10)?,
        expires_at: row.opt_int(11)?,
        change: Changed::Nothing,
    };
    Ok((row.parse(0)?, held))
}

/// Tells other processes what a batch has for them, once it is committed; with who tells it, since that one knows.
pub(super) async fn tell(session: &mut dyn Session, signals: Signals, writer: &str) -> Result<(), Fault> {
    let Some(text) = signals.text(writer) else { return Ok(()) };
    let dialect = session.dialect();
    if let Some(notify) = dialect.notify {
        session.rows(dialect.sql(notify).arg(text).sql(")")).await?;
    }
    Ok(())
}

impl Signals {
    fn text(self, writer: &str) -> Option<String> {
        let Self { arrivals, endings } = self;
        let what = match (arrivals, endings) {
            (true, true) => "ae",
            (true, false) => "a",
            (false, true) => "e",
            (false, false) => return None,
        };
        Some(format!("{what} {writer}"))
    }

    /// What another process tells; all of it where something was missed, nothing where it is one's own.
    pub(super) fn heard(text: Option<&str>, writer: &str) -> Self {
        let Some((what, by)) = text.map(|text| text.split_once(' ').unwrap_or((text, ""))) else {
            return Self { arrivals: true, endings: true };
        };
        let is_other = by != writer;
        Self { arrivals: is_other && what.contains('a'), endings: is_other && what.contains('e') }
    }
}

fn submission_exists(id: InvocationId) -> Error {
    Error::new(ErrorKind::AlreadyExists, "there is an invocation of this id already")
        .with_context("invocation", id.to_string())
}
