//! The workers of one deployment: started as load asks, kept warm, ended when idle, replaced when they die.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use function_gateway_core::{Delivery, Error, Result, Retry};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// So many failures in a row are a crash loop.
const CRASH_LOOP: u32 = 5;
/// Before the second start in a row; doubled before each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(60);
/// A worker that lives so long without a single answer is none that crashes at its start.
const STABLE: Duration = Duration::from_secs(10);

/// A worker, as the pool sees it.
pub(crate) trait Member: Send + Sync + 'static {
    /// Asks it to end. Can be repeated.
    fn retire(&self);

    /// Waits until it has ended, and says how. Cancel-safe.
    fn ended(&self) -> impl Future<Output = Error> + Send;
}

/// How many workers there are, and what one takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) min: usize,
    pub(crate) max: usize,
    /// Calls at a time on one worker.
    pub(crate) each: usize,
    /// How long a worker above `min` is kept without a call.
    pub(crate) idle: Duration,
}

/// How a pool is.
#[derive(Debug)]
pub(crate) enum Condition {
    /// No worker has been ready yet; why, if the last start failed.
    Starting(Option<Error>),
    /// It serves. Idle: without a worker now.
    Ready { idle: bool },
    /// Its workers keep failing, the last one so.
    Failed(Error),
}

type Waiting<W> = VecDeque<oneshot::Sender<Result<Lease<W>>>>;
pub(crate) type Starting<W> = Pin<Box<dyn Future<Output = Result<Arc<W>>> + Send>>;

/// The workers of one deployment.
pub(crate) struct Pool<W: Member>(Arc<Shared<W>>);

struct Shared<W: Member> {
    bounds: Bounds,
    start: Box<dyn Fn() -> Starting<W> + Send + Sync>,
    runtime: Handle,
    tasks: TaskTracker,
    state: Mutex<State<W>>,
    /// Why it was stopped, once it was. Changes with the state.
    stopped: OnceLock<Error>,
    changed: Notify,
    stopping: CancellationToken,
    /// Once it is stopped and its last worker has ended.
    gone: CancellationToken,
}

struct State<W: Member> {
    slots: Vec<Slot<W>>,
    next_id: u64,
    starting: usize,
    /// Workers that were asked to end and have not yet.
    leaving: usize,
    waiting: Waiting<W>,
    health: Health,
    draining: bool,
}

impl<W: Member> State<W> {
    /// Whether it is known how its first start went.
    fn is_settled(&self) -> bool {
        self.health.ever_ready || self.health.last.is_some()
    }
}

struct Slot<W> {
    id: u64,
    worker: Arc<W>,
    in_flight: usize,
    started: Instant,
    idle_since: Instant,
    /// Whether it has answered a call.
    proven: bool,
}

#[derive(Default)]
struct Health {
    ever_ready: bool,
    failures: u32,
    last: Option<Error>,
    not_before: Option<Instant>,
}

impl Health {
    fn fail(&mut self, error: Error) {
        self.failures = match error.retry() {
            Retry::Never => self.failures.max(CRASH_LOOP - 1) + 1,
            _ => self.failures.saturating_add(1),
        };
        let doubled = 2_u32.saturating_pow((self.failures - 1).min(16));
        self.not_before = Some(Instant::now() + (FIRST_BACKOFF * doubled).min(MAX_BACKOFF));
        self.last = Some(error);
    }

    fn recover(&mut self) {
        self.failures = 0;
        self.not_before = None;
    }

    fn is_crash_loop(&self) -> bool {
        self.failures >= CRASH_LOOP
    }

    /// Why a call need not wait for the next start, if so.
    fn refusal(&self) -> Option<Error> {
        let wait = self.not_before?.saturating_duration_since(Instant::now());
        let last = self.last.as_ref().filter(|_| self.is_crash_loop() && !wait.is_zero())?;
        Some(last.clone().with_delivery(Delivery::NotSent).with_retry_after(wait))
    }
}

impl<W: Member> Pool<W> {
    /// A pool without a worker yet. Its work is done on `runtime`, in `tasks`.
    pub(crate) fn new(
        bounds: Bounds,
        runtime: Handle,
        tasks: TaskTracker,
        start: impl Fn() -> Starting<W> + Send + Sync + 'static,
    ) -> Self {
        let state = State {
            slots: Vec::new(),
            next_id: 0,
            starting: 0,
            leaving: 0,
            waiting: VecDeque::new(),
            health: Health::default(),
            draining: false,
        };
        Self(Arc::new(Shared {
            bounds,
            start: Box::new(start),
            runtime,
            tasks,
            state: Mutex::new(state),
            stopped: OnceLock::new(),
            changed: Notify::new(),
            stopping: CancellationToken::new(),
            gone: CancellationToken::new(),
        }))
    }

    /// Starts the first workers, if they are not there, and waits until one is ready or its start has failed, but no
    /// longer than `patience`.
    pub(crate) async fn warm(&self, patience: Duration) {
        let settled = async {
            loop {
                let changed = self.0.changed.notified();
                let mut changed = pin!(changed);
                changed.as_mut().enable();
                if self.0.state().is_settled() || self.is_stopped() {
                    return;
                }
                changed.await;
            }
        };
        self.0.grow(&mut self.0.state());
        // Without an answer in time, the condition says that it is starting.
        let _ = tokio::time::timeout(patience, settled).await;
    }

    pub(crate) fn condition(&self) -> Condition {
        let state = self.0.state();
        let health = &state.health;
        match &health.last {
            _ if !state.slots.is_empty() => Condition::Ready { idle: false },
            Some(last) if health.is_crash_loop() => Condition::Failed(last.clone()),
            _ if health.ever_ready => Condition::Ready { idle: state.starting == 0 },
            last => Condition::Starting(last.clone()),
        }
    }

    /// A turn on a worker: at once where one has room, else as soon as one has. Starts workers as far as it must.
    ///
    /// Cancel-safe: a turn that is no longer wanted goes to the next who waits.
    pub(crate) async fn acquire(&self) -> Result<Lease<W>> {
        let turn = {
            let mut state = self.0.state();
            if let Some(error) = self.0.stopped.get() {
                return Err(error.clone());
            }
            if let Some(lease) = self.0.take(&mut state) {
                return Ok(lease);
            }
            if state.slots.is_empty()
                && let Some(error) = state.health.refusal()
            {
                return Err(error);
            }
            let (sender, turn) = oneshot::channel();
            state.waiting.push_back(sender);
            self.0.grow(&mut state);
            turn
        };
        // Nobody drops a sender without an answer but a runtime that ends.
        turn.await.unwrap_or_else(|error| Err(crate::driver::shutting_down().with_source(error)))
    }

    /// Lets those who wait and those who run come to an end, and ends every worker that is no longer needed.
    pub(crate) fn drain(&self) {
        let mut state = self.0.state();
        state.draining = true;
        self.0.retire_idle(&mut state);
    }

    /// Ends it: who waits or runs gets the error, workers are asked to end. The first error stands.
    pub(crate) fn stop(&self, error: &Error) {
        let mut state = self.0.state();
        self.0.stopped.get_or_init(|| error.clone());
        let waiting = mem::take(&mut state.waiting);
        let slots = mem::take(&mut state.slots);
        state.leaving += slots.len();
        drop(state);
        self.0.stopping.cancel();
        refuse(Some((waiting, error.clone())));
        for slot in slots {
            slot.worker.retire();
        }
        self.0.settle(self.0.state());
    }

    /// Waits until it is stopped and its last worker has ended.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + Send + use<W> {
        self.0.gone.clone().cancelled_owned()
    }

    /// Whether it was stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.stopped.get().is_some()
    }
}

impl<W: Member> fmt::Debug for Pool<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state();
        f.debug_struct("Pool")
            .field("bounds", &self.0.bounds)
            .field("workers", &state.slots.len())
            .field("starting", &state.starting)
            .field("waiting", &state.waiting.len())
            .finish_non_exhaustive()
    }
}

impl<W: Member> Shared<W> {
    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<W: Member> Shared<W> {
    /// A turn on the worker with the fewest calls; of several, the oldest, so that the others can become idle.
    fn take(self: &Arc<Self>, state: &mut State<W>) -> Option<Lease<W>> {
        let each = self.bounds.each;
        let slot = state.slots.iter_mut().filter(|slot| slot.in_flight < each).min_by_key(|slot| slot.in_flight)?;
        slot.in_flight += 1;
        let (id, worker, proven) = (slot.id, Arc::clone(&slot.worker), slot.proven);
        Some(Lease { shared: Arc::clone(self), id, worker, proven, spoiled: false })
    }

    /// Starts what is missing. One at a time while starts fail.
    fn grow(self: &Arc<Self>, state: &mut State<W>) {
        if self.stopped.get().is_some() {
            return;
        }
        let keep = match (state.draining, state.health.ever_ready) {
            (true, _) => 0,
            (false, true) => self.bounds.min,
            (false, false) => self.bounds.min.max(1),
        };
        let for_load = state.slots.len() + state.waiting.len().div_ceil(self.bounds.each);
        let room = self.bounds.max.saturating_sub(state.slots.len() + state.starting + state.leaving);
        let mut missing = for_load.max(keep).saturating_sub(state.slots.len() + state.starting).min(room);
        if state.health.failures > 0 {
            missing = missing.min(1_usize.saturating_sub(state.starting));
        }
        for _ in 0..missing {
            state.starting += 1;
            let (shared, not_before) = (Arc::clone(self), state.health.not_before);
            let starting = async move {
                let result = shared.start_one(not_before).await;
                shared.started(result);
            };
            self.tasks.spawn_on(starting, &self.runtime);
        }
    }

    async fn start_one(&self, not_before: Option<Instant>) -> Option<Result<Arc<W>>> {
        let starting = async {
            if let Some(at) = not_before {
                tokio::time::sleep_until(at).await;
            }
            (self.start)().await
        };
        // A start that is given up kills what it has started.
        self.stopping.run_until_cancelled(starting).await
    }

    fn started(self: &Arc<Self>, result: Option<Result<Arc<W>>>) {
        let mut state = self.state();
        state.starting -= 1;
        let mut refused = None;
        match result {
            None => {}
            Some(Ok(worker)) => {
                state.health.ever_ready = true;
                let (id, now) = (state.next_id, Instant::now());
                state.next_id += 1;
                self.tasks.spawn_on(Arc::clone(self).supervise(id, Arc::clone(&worker)), &self.runtime);
                if self.stopped.get().is_some() {
                    state.leaving += 1;
                    worker.retire();
                } else {
                    let slot = Slot { id, worker, in_flight: 0, started: now, idle_since: now, proven: false };
                    state.slots.push(slot);
                }
            }
            Some(Err(error)) => {
                state.health.fail(error.clone());
                if state.slots.is_empty() && state.starting == 0 {
                    refused = Some((mem::take(&mut state.waiting), error));
                }
            }
        }
        self.settle(state);
        refuse(refused);
    }

    /// Hands out what is free, starts what is missing, ends what nobody needs, and tells who watches.
    fn settle(self: &Arc<Self>, mut state: MutexGuard<'_, State<W>>) {
        let mut turns = Vec::new();
        while let Some(sender) = state.waiting.pop_front() {
            if sender.is_closed() {
                continue;
            }
            match self.take(&mut state) {
                Some(lease) => turns.push((sender, lease)),
                None => {
                    state.waiting.push_front(sender);
                    break;
                }
            }
        }
        self.grow(&mut state);
        if state.draining {
            self.retire_idle(&mut state);
        }
        let gone = self.stopped.get().is_some() && state.starting + state.leaving == 0;
        drop(state);
        self.changed.notify_waiters();
        if gone {
            self.gone.cancel();
        }
        for (sender, lease) in turns {
            // A turn that comes too late for its caller goes to the next by being dropped.
            drop(sender.send(Ok(lease)));
        }
    }

    /// Takes every worker without a call out, unless somebody waits for one.
    fn retire_idle(&self, state: &mut State<W>) {
        if state.waiting.is_empty() {
            while let Some(id) = state.slots.iter().find(|slot| slot.in_flight == 0).map(|slot| slot.id) {
                self.dismiss(state, id);
            }
        }
    }

    /// Attends to a worker until it has ended.
    async fn supervise(self: Arc<Self>, id: u64, worker: Arc<W>) {
        let mut ended = pin!(worker.ended());
        let how = loop {
            let look = self.look_again(id);
            tokio::select! {
                how = &mut ended => break how,
                () = tokio::time::sleep_until(look) => {}
            }
        };
        self.ended(id, how);
    }

    /// Ends a worker that has been idle for long enough; says when to look again.
    fn look_again(&self, id: u64) -> Instant {
        let mut state = self.state();
        let now = Instant::now();
        let spare = state.slots.len() > self.bounds.min;
        let idle = state.slots.iter().find(|slot| slot.id == id && slot.in_flight == 0 && spare);
        match idle.map(|slot| slot.idle_since + self.bounds.idle) {
            Some(expires) if expires > now => return expires,
            Some(_) => drop(self.dismiss(&mut state, id)),
            None => {}
        }
        now + self.bounds.idle
    }

    fn ended(self: &Arc<Self>, id: u64, how: Error) {
        let mut state = self.state();
        let mut refused = None;
        match state.slots.iter().position(|slot| slot.id == id) {
            None => state.leaving -= 1,
            Some(index) => {
                let slot = state.slots.remove(index);
                if slot.proven || slot.started.elapsed() >= STABLE {
                    state.health.recover();
                    state.health.last = Some(how);
                } else {
                    state.health.fail(how);
                    // Who waits is told what who comes now is told.
                    if state.slots.is_empty()
                        && let Some(error) = state.health.refusal()
                    {
                        refused = Some((mem::take(&mut state.waiting), error));
                    }
                }
            }
        }
        self.settle(state);
        refuse(refused);
    }

    /// Takes a worker out, if it is in, and asks it to end.
    fn dismiss(&self, state: &mut State<W>, id: u64) -> bool {
        let Some(index) = state.slots.iter().position(|slot| slot.id == id) else { return false };
        state.leaving += 1;
        state.slots.remove(index).worker.retire();
        true
    }

    fn release(self: &Arc<Self>, id: u64, spoiled: bool) {
        let mut state = self.state();
        if spoiled {
            self.dismiss(&mut state, id);
        } else if let Some(slot) = state.slots.iter_mut().find(|slot| slot.id == id) {
            slot.in_flight -= 1;
            slot.idle_since = Instant::now();
        }
        if !state.waiting.is_empty() || spoiled || state.draining {
            self.settle(state);
        }
    }
}

/// Tells those who wait for a turn that there is none for them, and why.
fn refuse<W: Member>(refused: Option<(Waiting<W>, Error)>) {
    let Some((waiting, error)) = refused else { return };
    for sender in waiting {
        // Who waits no longer needs no answer.
        let _ = sender.send(Err(error.clone().with_delivery(Delivery::NotSent)));
    }
}

/// A turn on a worker. Dropping it gives the turn back.
pub(crate) struct Lease<W: Member> {
    shared: Arc<Shared<W>>,
    id: u64,
    worker: Arc<W>,
    proven: bool,
    spoiled: bool,
}

impl<W: Member> Lease<W> {
    pub(crate) fn worker(&self) -> &Arc<W> {
        &self.worker
    }

    /// The worker has answered: whatever ends it from now on, it is not its start.
    pub(crate) fn prove(&mut self) {
        if mem::replace(&mut self.proven, true) {
            return;
        }
        let mut state = self.shared.state();
        if let Some(slot) = state.slots.iter_mut().find(|slot| slot.id == self.id) {
            slot.proven = true;
            state.health.recover();
        }
    }

    /// The worker may still be busy with this turn although it is over: it is to get no other, and to end.
    pub(crate) fn spoil(&mut self) {
        self.spoiled = true;
    }

    /// Its worker's place in the pool, and the pool's runtime.
    pub(crate) fn seat(&self) -> (Seat<W>, &Handle) {
        (Seat(Arc::downgrade(&self.shared), self.id), &self.shared.runtime)
    }

    /// Waits until the pool is stopped, and says why it was. Cancel-safe.
    pub(crate) async fn stopped(&self) -> Error {
        self.shared.stopping.cancelled().await;
        self.shared.stopped.get().cloned().unwrap_or_else(crate::driver::shutting_down)
    }
}

/// A worker's place in its pool.
pub(crate) struct Seat<W: Member>(Weak<Shared<W>>, u64);

impl<W: Member> Seat<W> {
    /// The worker is to get no more calls, and to end.
    pub(crate) fn spoil(&self) {
        let Some(shared) = self.0.upgrade() else { return };
        let mut state = shared.state();
        if shared.dismiss(&mut state, self.1) {
            shared.settle(state);
        }
    }
}

impl<W: Member> Drop for Lease<W> {
    fn drop(&mut self) {
        self.shared.release(self.id, self.spoiled);
    }
}

impl<W: Member> fmt::Debug for Lease<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").field("id", &self.id).field("spoiled", &self.spoiled).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use function_gateway_core::ErrorKind;
    use futures_util::future::join_all;

    use super::*;

    /// A worker without a process.
    struct Fake {
        number: u32,
        end: CancellationToken,
        retired: CancellationToken,
    }

    impl Member for Fake {
        fn retire(&self) {
            self.retired.cancel();
            self.end.cancel();
        }

        async fn ended(&self) -> Error {
            self.end.cancelled().await;
            broken("ended")
        }
    }

    fn broken(message: &'static str) -> Error {
        Error::new(ErrorKind::FunctionBroken, message).with_retry(Retry::Transient)
    }

    /// How the next starts go. Time is tokio's own, and paused.
    #[derive(Default)]
    struct Script {
        started: AtomicU32,
        /// So many of the first starts fail.
        failing: AtomicU32,
        /// How long a start takes.
        takes: Duration,
    }

    const USUAL: Bounds = Bounds { min: 0, max: 10, each: 2, idle: Duration::from_secs(300) };

    fn pool(bounds: Bounds, script: Script) -> (Pool<Fake>, Arc<Script>) {
        let script = Arc::new(script);
        let shared = Arc::clone(&script);
        let start = move || -> Starting<Fake> {
            let script = Arc::clone(&shared);
            Box::pin(async move {
                let number = script.started.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(script.takes).await;
                if number < script.failing.load(Ordering::SeqCst) {
                    return Err(broken("no start"));
                }
                let (end, retired) = (CancellationToken::new(), CancellationToken::new());
                Ok(Arc::new(Fake { number, end, retired }))
            })
        };
        (Pool::new(bounds, Handle::current(), TaskTracker::new(), start), script)
    }

    fn started(script: &Script) -> u32 {
        script.started.load(Ordering::SeqCst)
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_starts_as_many_as_its_calls_fill() {
        let (pool, script) = pool(USUAL, Script { takes: Duration::from_secs(1), ..Script::default() });
        let leases = join_all((0..5).map(|_| pool.acquire())).await;
        assert_eq!(started(&script), 3);
        let mut numbers: Vec<_> = leases.iter().map(|lease| lease.as_ref().unwrap().worker().number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [0, 0, 1, 1, 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_the_limit_calls_wait_in_their_order() {
        let (pool, script) = pool(Bounds { max: 1, each: 1, ..USUAL }, Script::default());
        let first = pool.acquire().await.unwrap();
        let (mut second, mut third) = (Box::pin(pool.acquire()), Box::pin(pool.acquire()));
        assert!(futures_util::poll!(&mut second).is_pending() && futures_util::poll!(&mut third).is_pending());
        drop(first);
        assert!(futures_util::poll!(&mut third).is_pending());
        // One who no longer waits does not keep the turn.
        drop(second);
        assert_eq!(third.await.unwrap().worker().number, 0);
        assert_eq!(started(&script), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_loaded_worker_gets_the_call_and_idle_ones_end() {
        let (pool, _) = pool(USUAL, Script::default());
        let held = join_all((0..3).map(|_| pool.acquire())).await;
        let workers: Vec<_> = held.iter().map(|lease| Arc::clone(lease.as_ref().unwrap().worker())).collect();
        let next = pool.acquire().await.unwrap();
        assert_eq!(next.worker().number, 1);
        drop((held, next));
        tokio::time::sleep(USUAL.idle * 3).await;
        assert!(workers.iter().all(|worker| worker.retired.is_cancelled()));
        assert!(matches!(pool.condition(), Condition::Ready { idle: true }));
    }

    #[tokio::test(start_paused = true)]
    async fn the_lowest_number_is_kept_without_calls() {
        let (pool, script) = pool(Bounds { min: 2, ..USUAL }, Script::default());
        pool.warm(Duration::from_secs(1)).await;
        tokio::time::sleep(USUAL.idle * 3).await;
        assert_eq!(started(&script), 2);
        let worker = Arc::clone(pool.acquire().await.unwrap().worker());
        assert!(!worker.retired.is_cancelled());
        worker.end.cancel();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(started(&script), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn starts_that_fail_are_made_one_at_a_time_and_ever_more_seldom() {
        let script = Script { failing: AtomicU32::new(u32::MAX), ..Script::default() };
        let (pool, script) = pool(Bounds { min: 3, ..USUAL }, script);
        let begun = Instant::now();
        pool.warm(Duration::from_secs(1)).await;
        assert!(matches!(pool.condition(), Condition::Starting(Some(_))));
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(matches!(pool.condition(), Condition::Failed(_)));
        // At first three at a time, as asked; then after 0.4, 0.8, ... 51.2 s, and each minute.
        let made = started(&script);
        assert!((10..25).contains(&made), "{made} starts in {:?}", begun.elapsed());
        let refused = pool.acquire().await.unwrap_err();
        assert_eq!((refused.message(), refused.delivery()), ("no start", Delivery::NotSent));
        assert!(refused.retry_after().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_start_that_fails_is_told_and_the_next_start_may_work() {
        let (pool, _) = pool(USUAL, Script { failing: AtomicU32::new(1), ..Script::default() });
        let refused = pool.acquire().await.unwrap_err();
        assert_eq!((refused.message(), refused.delivery()), ("no start", Delivery::NotSent));
        pool.acquire().await.unwrap().prove();
        assert!(matches!(pool.condition(), Condition::Ready { idle: false }));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_told_of_a_crash_loop_as_who_comes_is() {
        let (pool, script) = pool(Bounds { max: 1, each: 1, ..USUAL }, Script::default());
        let mut refused = Vec::new();
        while started(&script) < CRASH_LOOP {
            let running = pool.acquire().await.unwrap();
            let mut waiting = Box::pin(pool.acquire());
            assert!(futures_util::poll!(&mut waiting).is_pending());
            running.worker().end.cancel();
            // Long enough for the end to be seen, and less than any pause before a start.
            refused.push(tokio::time::timeout(Duration::from_millis(1), waiting).await);
        }
        let (last, before) = refused.split_last().unwrap();
        assert!(before.iter().all(Result::is_err), "before the crash loop they wait for the next start");
        let told = last.as_ref().unwrap().as_ref().unwrap_err();
        assert_eq!((told.message(), told.delivery()), ("ended", Delivery::NotSent));
        assert!(told.retry_after().is_some());
        assert_eq!(pool.acquire().await.unwrap_err().message(), "ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_has_answered_is_replaced_at_once_and_one_that_has_not_after_a_while() {
        let (pool, script) = pool(Bounds { min: 1, ..USUAL }, Script::default());
        let mut lease = pool.acquire().await.unwrap();
        lease.prove();
        lease.worker().end.cancel();
        drop(lease);
        // Let the end be seen.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let begun = Instant::now();
        let next = pool.acquire().await.unwrap();
        assert_eq!((next.worker().number, begun.elapsed()), (1, Duration::ZERO));
        next.worker().end.cancel();
        drop(next);
        // Let the end be seen.
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(pool.acquire().await.unwrap().worker().number, 2);
        assert!(begun.elapsed() >= FIRST_BACKOFF);
        assert_eq!(started(&script), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn a_spoiled_worker_gets_no_other_call() {
        let (pool, _) = pool(Bounds { max: 1, each: 1, ..USUAL }, Script::default());
        let mut lease = pool.acquire().await.unwrap();
        let worker = Arc::clone(lease.worker());
        lease.spoil();
        drop(lease);
        assert!(worker.retired.is_cancelled());
        assert_eq!(pool.acquire().await.unwrap().worker().number, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_workers_as_their_calls_end() {
        let (pool, _) = pool(Bounds { max: 1, each: 1, ..USUAL }, Script::default());
        let running = pool.acquire().await.unwrap();
        let worker = Arc::clone(running.worker());
        let mut waiting = Box::pin(pool.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        pool.drain();
        assert!(!worker.retired.is_cancelled());
        drop(running);
        // Who was let in gets a turn still.
        drop(waiting.await.unwrap());
        assert!(worker.retired.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_tells_everybody_why_and_ends_with_the_last_worker() {
        let (pool, _) = pool(Bounds { max: 1, each: 1, ..USUAL }, Script::default());
        let running = pool.acquire().await.unwrap();
        let mut waiting = Box::pin(pool.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        pool.stop(&broken("removed"));
        let error = waiting.await.unwrap_err();
        assert_eq!((error.message(), error.delivery()), ("removed", Delivery::NotSent));
        assert_eq!(running.stopped().await.message(), "removed");
        assert!(running.worker().retired.is_cancelled());
        pool.gone().await;
        assert_eq!(pool.acquire().await.unwrap_err().message(), "removed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_gives_up_a_start() {
        let (pool, _) = pool(USUAL, Script { takes: Duration::from_secs(1000), ..Script::default() });
        let mut waiting = Box::pin(pool.acquire());
        assert!(futures_util::poll!(&mut waiting).is_pending());
        let begun = Instant::now();
        pool.stop(&broken("removed"));
        pool.gone().await;
        assert!(waiting.await.is_err());
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
