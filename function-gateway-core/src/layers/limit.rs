//! Bounds how many calls of a function run at a time, how many wait for their turn, and how many come over time.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::body::timeout;
use crate::time::monotonic_now;
use crate::{
    Delivery, Error, ErrorKind, FunctionId, FunctionSpec, Generation, Invocation, InvokeResponse, Middleware,
    MiddlewareFactory, Next, Rate, Result, Revision, Settings, SpecField, Stage, TimedPhase, Violation,
};

/// Makes the limits of functions that set any. The revisions of a function share its limits.
#[derive(Debug, Default)]
pub(crate) struct Limit(Mutex<HashMap<FunctionId, Weak<Shared>>>);

impl Limit {
    fn shared(&self, function: FunctionId) -> Arc<Shared> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = known.get(&function).and_then(Weak::upgrade) {
            return shared;
        }
        known.retain(|_, shared| shared.strong_count() > 0);
        let shared = Arc::new(Shared::default());
        known.insert(function, Arc::downgrade(&shared));
        shared
    }
}

impl MiddlewareFactory for Limit {
    fn name(&self) -> &str {
        "limit"
    }

    fn stage(&self) -> Stage {
        Stage::Limit
    }

    fn claims(&self) -> &[SpecField] {
        &[SpecField::MaxInFlight, SpecField::Rate]
    }

    fn admit(&self, spec: &FunctionSpec, _: &Settings<'_>) -> Vec<Violation> {
        let refused = spec.limits.rate.and_then(|rate| quota(rate).err());
        refused
            .map(|_| Violation::new(SpecField::Rate.pointer(), "allows more than one call in a nanosecond, or none"))
            .into_iter()
            .collect()
    }

    fn build(&self, revision: &Arc<Revision>, _: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        let limits = &revision.spec.limits;
        if limits.max_in_flight.is_none() && limits.rate.is_none() {
            return Ok(None);
        }
        let shared = self.shared(revision.function);
        shared.adopt(revision.generation, limits.max_in_flight, limits.rate)?;
        let in_flight = limits.max_in_flight.map(|max| InFlightLimit {
            max,
            max_queued: usize::try_from(limits.max_queued.unwrap_or(max)).unwrap_or(usize::MAX),
            queue_timeout: revision.spec.timeouts.queue,
        });
        Ok(Some(Arc::new(LimitCalls { shared, in_flight, rate: limits.rate })))
    }
}

/// The limits of one function, whichever of its revisions a call goes to.
#[derive(Debug)]
struct Shared {
    turns: Arc<Semaphore>,
    settings: Mutex<SharedSettings>,
    /// Turns to be taken away as calls end, after the limit was lowered.
    surplus: AtomicUsize,
    waiting: AtomicUsize,
    /// How long a call holds its turn, as a moving average in microseconds.
    held_micros: AtomicU64,
}

#[derive(Debug, Default)]
struct SharedSettings {
    newest: Option<Generation>,
    max: usize,
    rate: Option<(Rate, Arc<DefaultDirectRateLimiter>)>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(0)),
            settings: Mutex::default(),
            surplus: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            held_micros: AtomicU64::new(0),
        }
    }
}

impl Shared {
    /// The error for who gets neither a turn nor a place in the queue before it.
    fn full(&self, waiting: usize, limit: &InFlightLimit) -> Error {
        let message = format!(
            "the function is at its limit of {} calls at a time, and its queue of {} is full",
            limit.max, limit.max_queued
        );
        let held = self.held_micros.load(Ordering::Relaxed);
        let ahead = u64::try_from(waiting).unwrap_or(u64::MAX).saturating_add(1);
        let wait = Duration::from_micros(held.saturating_mul(ahead) / u64::from(limit.max.max(1)));
        Error::new(ErrorKind::RateLimited, message)
            .with_context("limit", "max_in_flight")
            .with_retry_after(wait.clamp(Duration::from_millis(50), Duration::from_secs(60)))
    }

    /// Takes a generation's limits over, unless a newer one has set its own.
    fn adopt(&self, generation: Generation, max: Option<u32>, rate: Option<Rate>) -> Result<()> {
        let mut settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
        if settings.newest.is_some_and(|newest| newest > generation) {
            return Ok(());
        }
        settings.newest = Some(generation);
        if let Some(max) = max {
            let max = usize::try_from(max).unwrap_or(Semaphore::MAX_PERMITS).min(Semaphore::MAX_PERMITS);
            if max >= settings.max {
                self.raise(max - settings.max);
            } else {
                let surplus = settings.max - max;
                let taken = self.turns.forget_permits(surplus);
                self.surplus.fetch_add(surplus - taken, Ordering::Relaxed);
            }
            settings.max = max;
        }
        if let Some(rate) = rate
            && settings.rate.as_ref().is_none_or(|(known, _)| *known != rate)
        {
            settings.rate = Some((rate, Arc::new(DefaultDirectRateLimiter::direct(quota(rate)?))));
        }
        Ok(())
    }

    fn raise(&self, by: usize) {
        let cancel = |surplus: usize| Some(surplus.saturating_sub(by));
        let surplus = self.surplus.fetch_update(Ordering::Relaxed, Ordering::Relaxed, cancel).unwrap_or(0);
        self.turns.add_permits(by.saturating_sub(surplus));
    }

    fn check_rate(&self) -> Result<()> {
        let limiter = {
            let settings = self.settings.lock().unwrap_or_else(PoisonError::into_inner);
            settings.rate.as_ref().map(|(_, limiter)| Arc::clone(limiter))
        };
        let Some(limiter) = limiter else { return Ok(()) };
        limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            Error::new(ErrorKind::RateLimited, "the function is called more often than its limit on rate allows")
                .with_context("limit", "rate")
                .with_retry_after(wait)
        })
    }
}

fn quota(rate: Rate) -> Result<Quota> {
    let invalid = || Error::new(ErrorKind::Misconfigured, "the limit on rate is not valid");
    let burst = NonZeroU32::new(rate.burst.unwrap_or(rate.calls)).ok_or_else(invalid)?;
    let interval = rate.per.checked_div(rate.calls).filter(|interval| !interval.is_zero()).ok_or_else(invalid)?;
    Ok(Quota::with_period(interval).ok_or_else(invalid)?.allow_burst(burst))
}

#[derive(Debug)]
struct InFlightLimit {
    max: u32,
    max_queued: usize,
    queue_timeout: Option<Duration>,
}

#[derive(Debug)]
struct LimitCalls {
    shared: Arc<Shared>,
    in_flight: Option<InFlightLimit>,
    rate: Option<Rate>,
}

impl LimitCalls {
    async fn turn(&self, limit: &InFlightLimit, call: &Invocation) -> Result<Turn> {
        let shared = &self.shared;
        if let Ok(permit) = Arc::clone(&shared.turns).try_acquire_owned() {
            return Ok(Turn::new(shared, permit));
        }
        if call.queued.as_ref().is_some_and(|queued| queued.is_tried_by_queue) {
            // It waits in the queue, where it takes nobody's turn and none of its own time.
            return Err(shared.full(0, limit));
        }
        let place = Place::take(shared, limit)?;
        let since = monotonic_now();
        let turn = Arc::clone(&shared.turns).acquire_owned();
        let acquired = match limit.queue_timeout {
            Some(limit) => tokio::time::timeout(limit, turn).await,
            None => Ok(turn.await),
        };
        drop(place);
        call.state().add_time(TimedPhase::Queue, monotonic_now().saturating_duration_since(since));
        match acquired {
            Ok(Ok(permit)) => Ok(Turn::new(shared, permit)),
            Ok(Err(_)) => Err(Error::new(ErrorKind::Internal, "the limit in flight was closed")),
            Err(_) => Err(timeout("queue", Delivery::NotSent).with_retry(crate::Retry::Transient)),
        }
    }
}

#[async_trait]
impl Middleware for LimitCalls {
    fn name(&self) -> &str {
        "limit"
    }

    fn stage(&self) -> Stage {
        Stage::Limit
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        if self.rate.is_some() {
            self.shared.check_rate()?;
        }
        let Some(limit) = &self.in_flight else { return next.run(call).await };
        let turn = self.turn(limit, &call).await?;
        let mut response = next.run(call).await?;
        response.body = std::mem::take(&mut response.body).with_guard(turn);
        Ok(response)
    }
}

/// A place in the queue, given up when it is dropped.
struct Place<'a>(&'a Shared);

impl<'a> Place<'a> {
    fn take(shared: &'a Shared, limit: &InFlightLimit) -> Result<Self> {
        let enter = |waiting: usize| (waiting < limit.max_queued).then_some(waiting + 1);
        match shared.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter) {
            Ok(_) => Ok(Self(shared)),
            Err(waiting) => Err(shared.full(waiting, limit)),
        }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A turn, given back when the call has ended, its body included.
struct Turn {
    shared: Arc<Shared>,
    permit: Option<OwnedSemaphorePermit>,
    since: Instant,
}

impl Turn {
    fn new(shared: &Arc<Shared>, permit: OwnedSemaphorePermit) -> Self {
        Self { shared: Arc::clone(shared), permit: Some(permit), since: monotonic_now() }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let held = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        let average = self.shared.held_micros.load(Ordering::Relaxed);
        let average = if average == 0 { held } else { average - average / 8 + held / 8 };
        self.shared.held_micros.store(average, Ordering::Relaxed);
        let take = |surplus: usize| surplus.checked_sub(1);
        if self.shared.surplus.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
            && let Some(permit) = self.permit.take()
        {
            permit.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(shared: &Arc<Shared>) -> Option<Turn> {
        Arc::clone(&shared.turns).try_acquire_owned().ok().map(|permit| Turn::new(shared, permit))
    }

    fn free(shared: &Arc<Shared>) -> usize {
        std::iter::from_fn(|| take(shared)).collect::<Vec<_>>().len()
    }

    fn generation(number: u64) -> Generation {
        Generation::new(number).unwrap()
    }

    #[test]
    fn a_lowered_limit_holds_once_calls_have_ended() {
        let shared = Arc::new(Shared::default());
        shared.adopt(generation(1), Some(4), None).unwrap();
        let running: Vec<_> = std::iter::from_fn(|| take(&shared)).collect();
        assert_eq!(running.len(), 4);
        shared.adopt(generation(2), Some(1), None).unwrap();
        assert_eq!(free(&shared), 0);
        drop(running);
        assert_eq!(free(&shared), 1);
        shared.adopt(generation(3), Some(3), None).unwrap();
        assert_eq!(free(&shared), 3);
    }

    #[test]
    fn a_limit_raised_while_calls_run_counts_them() {
        let shared = Arc::new(Shared::default());
        shared.adopt(generation(1), Some(4), None).unwrap();
        let running: Vec<_> = std::iter::from_fn(|| take(&shared)).collect();
        shared.adopt(generation(2), Some(2), None).unwrap();
        shared.adopt(generation(3), Some(5), None).unwrap();
        assert_eq!(free(&shared), 1);
        drop(running);
        assert_eq!(free(&shared), 5);
    }

    #[test]
    fn an_older_generation_does_not_bring_its_limits_back() {
        let shared = Arc::new(Shared::default());
        shared.adopt(generation(2), Some(2), None).unwrap();
        shared.adopt(generation(1), Some(9), None).unwrap();
        assert_eq!(free(&shared), 2);
    }

    #[test]
    fn a_rate_allows_its_burst_and_says_when_to_come_again() {
        let shared = Shared::default();
        let rate = Rate { calls: 2, per: Duration::from_secs(3600), burst: None };
        shared.adopt(generation(1), None, Some(rate)).unwrap();
        shared.check_rate().unwrap();
        shared.check_rate().unwrap();
        let error = shared.check_rate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::RateLimited);
        assert!(error.retry_after().unwrap() > Duration::from_secs(60));
    }
}
