//! Workers: they take accepted invocations from the queue, execute them by the same chain as any call, and settle them.

mod attempt;
mod ending;
mod followers;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use self::ending::{Claim, lost};
use crate::host::{Host, Lifetime};
use crate::{Cancellation, Gateway, InvocationId, InvocationQueue, Result, TakeRequest, TakenInvocation};

/// How workers work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkerConfig {
    /// How many invocations are executed at a time. Default: 64.
    pub concurrency: usize,
    /// How many of one tenant at a time, so that one with slow functions leaves room for others. Default: three quarters of
    /// `concurrency`, and at least 1.
    pub max_per_tenant: Option<usize>,
    /// Time between two looks into the queue, where nothing tells of what other processes have put there. Default: 1 s.
    pub poll_interval: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self { concurrency: 64, max_per_tenant: None, poll_interval: Duration::from_secs(1) }
    }
}

impl WorkerConfig {
    /// Executes so many at a time.
    #[must_use]
    pub fn with_concurrency(mut self, concurrency: usize) -> Self {
        self.concurrency = concurrency;
        self
    }

    /// Executes so many of one tenant at a time.
    #[must_use]
    pub fn with_max_per_tenant(mut self, count: usize) -> Self {
        self.max_per_tenant = Some(count);
        self
    }

    /// Sets the time between two looks into the queue.
    #[must_use]
    pub fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    fn per_tenant(&self) -> usize {
        self.max_per_tenant.unwrap_or(self.concurrency * 3 / 4).clamp(1, self.concurrency.max(1))
    }
}

/// Workers that run. Dropping it lets them go on until the gateway shuts down.
#[derive(Debug)]
pub struct Workers {
    stop: CancellationToken,
    give_up: CancellationToken,
    tasks: TaskTracker,
}

impl Workers {
    /// Takes nothing more from the queue, and waits for what is being executed.
    pub async fn drain(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// As [`drain`](Self::drain), for at most `grace`. What is still being executed then is given up: it is settled as an attempt of
    /// which nobody knows how it would have ended.
    pub async fn stop(&self, grace: Duration) {
        if tokio::time::timeout(grace, self.drain()).await.is_err() {
            self.give_up.cancel();
            self.tasks.wait().await;
        }
    }

    /// How many invocations they hold.
    #[must_use]
    pub fn running(&self) -> usize {
        // The one that takes is a task as well.
        self.tasks.len().saturating_sub(1)
    }
}

impl Gateway {
    /// Starts workers, which execute what is in the queue, whichever process has accepted it. Their tasks are the gateway's:
    /// its shutdown drains them.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) in a gateway without a queue.
    pub fn start_workers(&self, config: WorkerConfig) -> Result<Workers> {
        let queue = Arc::clone(self.host.queue()?);
        let (stop, give_up, tasks) =
            (self.host.lifetime.closing.child_token(), CancellationToken::new(), TaskTracker::new());
        let crew = Crew {
            host: Arc::clone(&self.host),
            queue,
            config,
            stop: stop.clone(),
            give_up: give_up.clone(),
            tasks: tasks.clone(),
            slots: Arc::new(Semaphore::new(config.concurrency.clamp(1, Semaphore::MAX_PERMITS))),
            tenants: Arc::default(),
            freed: Arc::default(),
        };
        let token = tasks.token();
        self.host.lifetime.spawn(async move {
            let _token = token;
            crew.run().await;
        });
        Ok(Workers { stop, give_up, tasks })
    }
}

/// What the workers of one handle share.
struct Crew {
    host: Arc<Host>,
    queue: Arc<dyn InvocationQueue>,
    config: WorkerConfig,
    stop: CancellationToken,
    give_up: CancellationToken,
    tasks: TaskTracker,
    slots: Arc<Semaphore>,
    tenants: Arc<Mutex<HashMap<crate::TenantId, usize>>>,
    /// Tells that a tenant is busy no longer.
    freed: Arc<Notify>,
}

/// How long what was taken may wait here until it is dispatched.
const HELD: Duration = Duration::from_secs(30);
/// How long slots are gathered before the queue is looked at.
const GATHER: Duration = Duration::from_millis(2);
/// How often it is asked whether somebody wants one of those that run to end.
const LOOK: Duration = Duration::from_millis(500);

impl Crew {
    async fn run(self) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = self.take() => {}
        }
    }

    async fn take(&self) {
        let mut arrivals = self.queue.arrivals();
        loop {
            let first = match Arc::clone(&self.slots).try_acquire_owned() {
                Ok(first) => first,
                Err(_) => {
                    let Ok(first) = Arc::clone(&self.slots).acquire_owned().await else { return };
                    // Where all were busy, others end at about the same time: one look into the queue serves them all.
                    tokio::time::sleep(GATHER).await;
                    first
                }
            };
            let mut free = first;
            while let Ok(more) = Arc::clone(&self.slots).try_acquire_owned() {
                free.merge(more);
            }
            let (busy, per_tenant) = self.busy();
            let request = TakeRequest::new(free.num_permits(), HELD).with_per_tenant(per_tenant).without(busy);
            let wait = match self.queue.take(&request).await {
                Ok(taken) => {
                    for item in taken.items {
                        let Some(slot) = free.split(1) else { break };
                        self.start(item, slot);
                    }
                    taken.next_due.map_or(self.config.poll_interval, |due| due.min(self.config.poll_interval))
                }
                Err(error) => {
                    tracing::warn!(?error, "nothing can be taken from the queue now");
                    self.config.poll_interval
                }
            };
            drop(free);
            if !wait.is_zero() {
                tokio::select! {
                    () = arrivals.changed() => {}
                    () = self.freed.notified() => {}
                    () = tokio::time::sleep(wait) => {}
                }
            }
        }
    }

    /// Tenants of which as many are executed as may be, and how many of any other may be taken.
    fn busy(&self) -> (Vec<crate::TenantId>, usize) {
        let most = self.config.per_tenant();
        let tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        let (busy, free): (Vec<_>, Vec<_>) = tenants.iter().partition(|(_, running)| **running >= most);
        let highest = free.iter().map(|(_, running)| **running).max().unwrap_or_default();
        (busy.into_iter().map(|(tenant, _)| tenant.clone()).collect(), most - highest)
    }

    fn start(&self, item: TakenInvocation, slot: OwnedSemaphorePermit) {
        let tenant = item.invocation.submission.key.tenant.clone();
        *self.tenants.lock().unwrap_or_else(PoisonError::into_inner).entry(tenant.clone()).or_default() += 1;
        let (tenants, freed) = (Arc::clone(&self.tenants), Arc::clone(&self.freed));
        let share = Share { tenant, tenants, most: self.config.per_tenant(), freed, _slot: slot };
        let (host, give_up, token) = (Arc::clone(&self.host), self.give_up.clone(), self.tasks.token());
        self.host.lifetime.spawn(async move {
            let (_token, _share) = (token, share);
            host.process(item, None, give_up).await;
        });
    }
}

/// A part of the workers' time.
struct Share {
    tenant: crate::TenantId,
    tenants: Arc<Mutex<HashMap<crate::TenantId, usize>>>,
    most: usize,
    freed: Arc<Notify>,
    _slot: OwnedSemaphorePermit,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = tenants.get_mut(&self.tenant) {
            if *running >= self.most {
                self.freed.notify_one();
            }
            *running -= 1;
            if *running == 0 {
                tenants.remove(&self.tenant);
            }
        }
    }
}

/// By what invocations that run in this process are ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cancellations(Arc<Running>);

#[derive(Debug, Default)]
struct Running {
    by_id: Mutex<HashMap<InvocationId, Cancellation>>,
    entered: Notify,
}

impl Running {
    fn by_id(&self) -> MutexGuard<'_, HashMap<InvocationId, Cancellation>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cancellations {
    fn enter(&self, id: InvocationId, cancellation: &Cancellation) -> Cancellable {
        self.0.by_id().insert(id, cancellation.clone());
        self.0.entered.notify_one();
        Cancellable(self.clone(), id)
    }

    fn ids(&self) -> Vec<InvocationId> {
        self.0.by_id().keys().copied().collect()
    }

    /// Ends an invocation, where it runs here.
    pub(crate) fn cancel(&self, id: InvocationId) {
        if let Some(cancellation) = self.0.by_id().get(&id) {
            cancellation.cancel();
        }
    }
}

struct Cancellable(Cancellations, InvocationId);

impl Drop for Cancellable {
    fn drop(&mut self) {
        self.0.0.by_id().remove(&self.1);
    }
}

impl Host {
    /// Asks again and again whether one of those that run in this process is to end, which another process may have been told.
    pub(crate) async fn watch_cancellations(self: Arc<Self>, queue: Arc<dyn InvocationQueue>) {
        let Lifetime { closing, killed, .. } = &self.lifetime;
        loop {
            let running = self.cancellations.ids();
            if running.is_empty() {
                if closing.is_cancelled() {
                    return;
                }
                tokio::select! {
                    () = self.cancellations.0.entered.notified() => {}
                    () = closing.cancelled() => {}
                }
                continue;
            }
            match queue.cancelled(&running).await {
                Ok(ids) => ids.into_iter().for_each(|id| self.cancellations.cancel(id)),
                Err(error) => tracing::debug!(?error, "it can't be asked now which invocations are to end"),
            }
            tokio::select! {
                () = killed.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}
