//! Watching an execution until it has ended, wherever it is executed.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{TryStreamExt as _, stream};
use tokio::time::Instant;

use crate::host::{Host, shutting_down};
use crate::queue::not_queued;
use crate::{BoxStream, CallContext, CallState, Error, InvocationId, InvocationRecord, QueueSignal, Result, TenantId};

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
    at: Instant,
    pause: Duration,
}

impl Looks {
    const FIRST: Duration = Duration::from_millis(50);
    const MOST: Duration = Duration::from_secs(1);

    /// From before the first look on, so that no ending in between is missed.
    fn begin(host: &Host) -> Self {
        let endings = host.queue.as_ref().map(|queue| queue.endings());
        Self { endings, at: Instant::now() + Self::FIRST, pause: Self::FIRST }
    }

    /// Waits until it is time for the next look. Cancel-safe.
    async fn next(&mut self) {
        let ending = async {
            match &mut self.endings {
                Some(endings) => endings.changed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ending => {}
            () = tokio::time::sleep_until(self.at) => self.pause = (self.pause * 2).min(Self::MOST),
        }
        self.at = Instant::now() + self.pause;
    }
}

impl Host {
    /// Waits for the end of an invocation that was submitted.
    pub(crate) async fn wait(&self, cx: &CallContext, id: InvocationId, patience: Duration) -> Result<Waited> {
        self.queue()?;
        let mut looks = Looks::begin(self);
        self.recorded(cx, id).await?;
        let until = Instant::now() + patience;
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

    /// The log of an execution that has not ended: of each attempt that is made in this process as it is written, and of the
    /// last one as it was recorded where it was made elsewhere.
    pub(crate) fn follow_logs(
        self: &Arc<Self>,
        tenant: &TenantId,
        id: InvocationId,
    ) -> BoxStream<'static, Result<Bytes>> {
        let looks = Looks::begin(self);
        let follower = LogFollower { host: Arc::clone(self), tenant: tenant.clone(), id, read: None, looks };
        let parts = stream::try_unfold(Some(follower), |follower| async move {
            let Some(mut follower) = follower else { return Ok::<_, Error>(None) };
            Ok(Some(match follower.next().await? {
                LogPart::Attempt(attempt) => (attempt.read_logs(true), Some(follower)),
                LogPart::Last(record) => (whole_log(record.as_deref()), None),
            }))
        });
        Box::pin(parts.try_flatten())
    }
}

/// The log that a record has, where it has one.
pub(crate) fn whole_log(record: Option<&InvocationRecord>) -> BoxStream<'static, Result<Bytes>> {
    let logged = record.and_then(|record| record.logs.as_ref()).map(|logs| logs.bytes.clone());
    Box::pin(stream::iter(logged.filter(|bytes| !bytes.is_empty()).map(Ok)))
}

/// Follows the log of an execution over all its attempts.
struct LogFollower {
    host: Arc<Host>,
    tenant: TenantId,
    id: InvocationId,
    /// The attempt that was read last.
    read: Option<Arc<CallState>>,
    looks: Looks,
}

/// What a follower reads next.
enum LogPart {
    /// The log of an attempt that runs in this process.
    Attempt(Arc<CallState>),
    /// The last: what the record has, where it was not read yet.
    Last(Option<Arc<InvocationRecord>>),
}

impl LogFollower {
    async fn next(&mut self) -> Result<LogPart> {
        let host = &self.host;
        let mut is_time = true;
        loop {
            // Before it is looked, so that an attempt that begins in between wakes it.
            let mut entered = pin!(host.running.entered());
            entered.as_mut().enable();
            let attempt = host.running.find(&self.tenant, self.id).map(|call| call.state);
            let is_read = |attempt: &Arc<CallState>| self.read.as_ref().is_some_and(|read| Arc::ptr_eq(read, attempt));
            if let Some(attempt) = attempt.filter(|attempt| !is_read(attempt)) {
                self.read = Some(Arc::clone(&attempt));
                return Ok(LogPart::Attempt(attempt));
            }
            if is_time {
                match host.invocations.get(&self.tenant, self.id).await? {
                    Some(record) if !record.state.is_final() => {}
                    // Of an attempt that was read here, the record has the same.
                    Some(record) => {
                        let is_read = self.read.as_ref().is_some_and(|read| read.attempts() == record.attempts);
                        return Ok(LogPart::Last((!is_read).then_some(record)));
                    }
                    None => return Ok(LogPart::Last(None)),
                }
            }
            is_time = tokio::select! {
                biased;
                () = host.lifetime.closing.cancelled() => return Err(shutting_down()),
                () = entered => false,
                () = self.looks.next() => true,
            };
        }
    }
}
