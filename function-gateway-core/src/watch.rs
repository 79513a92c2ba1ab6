//! Watching an execution until it has ended, wherever it is executed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use tokio::time::Instant;

use crate::host::{Host, shutting_down};
use crate::invocation::in_one_piece;
use crate::queue::not_queued;
use crate::running::{Attempts, RunningCall};
use crate::worker::lost;
use crate::{
    BoxStream, CallContext, CallState, Deadline, Error, FunctionId, InvocationId, InvocationRecord, InvocationState,
    PrincipalId, QueueSignal, Result, TenantId, Timestamp,
};

/// How a wait for an invocation's end has ended.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Waited {
    /// It has ended: its record.
    Ended(Arc<InvocationRecord>),
    /// It has not ended in time: its record as it is now.
    NotYet(Arc<InvocationRecord>),
}

/// When an execution is to be looked at again. Another process may end it, which not every store hears of.
struct Looks {
    /// Absent where the host keeps no queue.
    endings: Option<QueueSignal>,
    /// Whether something has ended since the last look.
    is_told: bool,
    last: Instant,
    /// The next look, though nothing ends.
    pause: Duration,
    /// No look is sooner, however much ends: most of that is something else.
    rest: Duration,
    most_rest: Duration,
}

impl Looks {
    const FIRST: Duration = Duration::from_millis(50);
    const MOST: Duration = Duration::from_secs(1);
    const LEAST: Duration = Duration::from_millis(1);

    /// From before the first look on, so that no ending in between is missed.
    fn begin(host: &Host, most_rest: Duration) -> Self {
        let endings = host.queue.as_ref().map(|queue| queue.endings());
        let (last, pause, rest) = (Instant::now(), Self::FIRST, Self::LEAST);
        Self { endings, is_told: false, last, pause, rest, most_rest }
    }

    /// The end is likely to be near.
    fn hasten(&mut self) {
        (self.pause, self.rest) = (Self::FIRST, Self::LEAST);
    }

    /// Waits until it is time for the next look. Cancel-safe.
    async fn next(&mut self) {
        if !self.is_told {
            let ending = async {
                match &mut self.endings {
                    Some(endings) => endings.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ending => {}
                () = tokio::time::sleep_until(self.last + self.pause) => self.pause = (self.pause * 2).min(Self::MOST),
            }
            self.is_told = true;
        }
        tokio::time::sleep_until(self.last + self.rest).await;
        (self.is_told, self.last, self.rest) = (false, Instant::now(), (self.rest * 2).min(self.most_rest));
    }
}

impl Host {
    /// Waits for the end of an invocation that was submitted.
    pub(crate) async fn wait(&self, cx: &CallContext, id: InvocationId, patience: Duration) -> Result<Waited> {
        self.queue()?;
        // Somebody waits for the answer.
        let mut looks = Looks::begin(self, Looks::FIRST);
        self.recorded(cx, id).await?;
        let until = Deadline::after(patience).instant().into();
        loop {
            let record = self.invocations.get(cx.tenant(), id).await?.ok_or_else(|| not_queued(id))?;
            if record.state.is_final() {
                return Ok(Waited::Ended(record));
            }
            if Instant::now() >= until || self.lifetime.closing.is_cancelled() {
                return Ok(Waited::NotYet(record));
            }
            tokio::select! {
                () = looks.next() => {}
                () = tokio::time::sleep_until(until) => {}
                () = self.lifetime.closing.cancelled() => {}
            }
        }
    }

    /// The log of an invocation that was submitted and has not ended: of each attempt that is made in this process as it is
    /// written, and of the last one as it was recorded where it was made elsewhere.
    pub(crate) fn follow_logs(self: &Arc<Self>, followed: Followed) -> BoxStream<'static, Result<Bytes>> {
        let attempts = followed.submitter.is_some().then(|| self.running.follow(followed.id));
        // What is followed is told as it comes, but for its end.
        let looks = Looks::begin(self, Looks::MOST);
        let follower = LogFollower { host: Arc::clone(self), followed, attempts, read: None, looks, closes: None };
        let parts = stream::try_unfold(Some(follower), |follower| async move {
            let Some(mut follower) = follower else { return Ok::<_, Error>(None) };
            Ok(Some(match follower.next().await? {
                LogPart::Attempt(attempt) => (attempt.read_logs(true), Some(follower)),
                LogPart::Last(logged) => (in_one_piece(logged), None),
            }))
        });
        Box::pin(parts.try_flatten())
    }

    /// What is to be followed of an execution that has not ended, by its record.
    pub(crate) async fn to_follow(&self, record: &InvocationRecord) -> Result<Followed> {
        let (tenant, function) = (record.key.tenant.clone(), record.function);
        let is_submitted = record.lineage.is_some();
        let revision = match is_submitted {
            true => None,
            false => self.functions.revision(&tenant, function, record.generation).await?,
        };
        // Of a stream without a total time nobody knows.
        let total = revision.and_then(|revision| self.config.total_timeout(&revision.spec));
        let over_at = total.map(|total| record.created_at.plus(total.saturating_add(self.config.queue.lease_margin)));
        let submitter = is_submitted.then(|| record.caller.clone());
        Ok(Followed { id: record.id, tenant, function, submitter, over_at })
    }
}

/// The log that a record has.
pub(crate) fn kept_log(record: &InvocationRecord) -> Bytes {
    record.logs.as_ref().map(|logs| logs.bytes.clone()).unwrap_or_default()
}

/// Of which execution the log is followed. A caller may bring the id of another's, so the id alone says too little.
pub(crate) struct Followed {
    id: InvocationId,
    tenant: TenantId,
    function: FunctionId,
    /// Who submitted it, where somebody did.
    submitter: Option<PrincipalId>,
    /// When one that nobody submitted has ended at the latest, where that is known: the record of one whose gateway was killed
    /// stays `running`.
    over_at: Option<Timestamp>,
}

impl Followed {
    /// The invocation of which an attempt runs here.
    pub(crate) fn of_call(call: RunningCall) -> Self {
        let RunningCall { revision, state, submitter } = call;
        Self {
            id: state.id,
            tenant: revision.key.tenant.clone(),
            function: revision.function,
            submitter,
            over_at: None,
        }
    }
}

/// Follows the log of an execution over all its attempts.
struct LogFollower {
    host: Arc<Host>,
    followed: Followed,
    /// None of one that nobody submitted.
    attempts: Option<Attempts>,
    /// The attempt that was read last.
    read: Option<Arc<CallState>>,
    looks: Looks,
    /// When this ends though the execution has not, once the gateway is shutting down.
    closes: Option<Instant>,
}

/// What a follower reads next.
enum LogPart {
    /// The log of an attempt that is made in this process.
    Attempt(Arc<CallState>),
    /// The last: what the record has, where it was not read yet.
    Last(Bytes),
}

/// How an execution is found.
enum Look {
    Open,
    Ended(Arc<InvocationRecord>),
    /// It is kept no longer.
    Gone,
}

impl LogFollower {
    /// How long an attempt that has ended may take to be settled while the gateway is shutting down.
    const SETTLED: Duration = Duration::from_secs(2);

    async fn next(&mut self) -> Result<LogPart> {
        let mut is_time = true;
        loop {
            let found = if is_time { self.look().await? } else { Look::Open };
            if !matches!(found, Look::Open) {
                // What began before that end may not be read yet.
                return Ok(match (self.begun()?, found) {
                    (Some(attempt), _) => LogPart::Attempt(attempt),
                    (None, Look::Ended(record)) if !self.has_read(&record) => LogPart::Last(kept_log(&record)),
                    (None, _) => LogPart::Last(Bytes::new()),
                });
            }
            let Self { host, attempts, looks, closes, read, .. } = self;
            let closing = async {
                host.lifetime.closing.cancelled().await;
                if read.is_some() {
                    tokio::time::sleep_until(*closes.get_or_insert_with(|| Instant::now() + Self::SETTLED)).await;
                }
            };
            let began = async {
                match attempts {
                    Some(attempts) => attempts.next().await,
                    None => std::future::pending().await,
                }
            };
            is_time = tokio::select! {
                biased;
                call = began => {
                    if let Some(attempt) = self.take(call?) {
                        return Ok(LogPart::Attempt(attempt));
                    }
                    false
                }
                () = closing => return Err(shutting_down()),
                () = looks.next() => true,
            };
        }
    }

    async fn look(&self) -> Result<Look> {
        let Followed { id, tenant, .. } = &self.followed;
        match self.host.invocations.get(tenant, *id).await {
            Ok(Some(record)) if record.state.is_final() => Ok(Look::Ended(record)),
            Ok(Some(record)) => self.given_up(&record).map_or(Ok(Look::Open), Err),
            Ok(None) => Ok(Look::Gone),
            // It may be told at the next look.
            Err(error) if error.is_transient() => Ok(Look::Open),
            Err(error) => Err(error),
        }
    }

    /// Why nothing more is to be waited for, of an execution that has not ended.
    fn given_up(&self, record: &InvocationRecord) -> Option<Error> {
        if self.followed.over_at.is_some_and(|at| self.host.clock.now() > at) {
            return Some(lost());
        }
        // It waits for another attempt, which is not made here any more.
        let is_queued = record.state == InvocationState::Queued;
        (is_queued && self.host.lifetime.closing.is_cancelled()).then(shutting_down)
    }

    /// An attempt that has begun and is not read yet.
    fn begun(&mut self) -> Result<Option<Arc<CallState>>> {
        while let Some(attempts) = &mut self.attempts
            && let Some(call) = attempts.begun()?
        {
            if let Some(attempt) = self.take(call) {
                return Ok(Some(attempt));
            }
        }
        Ok(None)
    }

    /// The attempt, where it is one of what is followed.
    fn take(&mut self, call: RunningCall) -> Option<Arc<CallState>> {
        let Followed { tenant, function, submitter, .. } = &self.followed;
        let RunningCall { revision, state, submitter: of } = call;
        let is_followed = revision.key.tenant == *tenant && revision.function == *function && of == *submitter;
        // Once it is read, its record is about to be there.
        self.looks.hasten();
        is_followed.then(|| Arc::clone(self.read.insert(state)))
    }

    /// Whether the record has the log of the attempt that was read last.
    fn has_read(&self, record: &InvocationRecord) -> bool {
        self.read.as_ref().is_some_and(|read| read.attempts() == record.attempts && read.logged() == kept_log(record))
    }
}
