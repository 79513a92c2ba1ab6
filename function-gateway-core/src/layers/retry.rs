//! Tries a failed call again, where that is safe and may help.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::capability::may_retry;
use crate::{
    Delivery, Error, ErrorKind, FunctionSpec, Invocation, InvokeResponse, Middleware, MiddlewareFactory, Next, Outcome,
    Result, Retry, RetryPolicy, Revision, Settings, SpecField, Stage, Violation,
};

/// Makes the retry for functions whose specification has a policy.
#[derive(Debug)]
pub(crate) struct Retrying;

impl MiddlewareFactory for Retrying {
    fn name(&self) -> &str {
        "retry"
    }

    fn stage(&self) -> Stage {
        Stage::Retry
    }

    fn claims(&self) -> &[SpecField] {
        &[SpecField::Retry]
    }

    fn admit(&self, _: &FunctionSpec, _: &Settings<'_>) -> Vec<Violation> {
        Vec::new()
    }

    fn build(&self, revision: &Arc<Revision>, _: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        let policy = revision.spec.retry.clone().filter(|policy| policy.max_attempts > 1);
        Ok(policy.map(|policy| Arc::new(RetryCalls { policy, budget: Budget::default() }) as _))
    }
}

/// Bounds the retries of a function to a part of its calls, so that retries never multiply an outage: each call puts
/// a fifth of a retry in, up to a hundred, and each retry takes one out. It starts with ten.
#[derive(Debug)]
struct Budget(AtomicI64);

impl Budget {
    const ONE: i64 = 1000;
    const DEPOSIT: i64 = Self::ONE / 5;
    const MAX: i64 = 100 * Self::ONE;

    fn deposit(&self) {
        let add = |balance: i64| Some((balance + Self::DEPOSIT).min(Self::MAX));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn withdraw(&self) -> bool {
        let take = |balance: i64| (balance >= Self::ONE).then_some(balance - Self::ONE);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self(AtomicI64::new(10 * Self::ONE))
    }
}

#[derive(Debug)]
struct RetryCalls {
    policy: RetryPolicy,
    budget: Budget,
}

impl RetryCalls {
    /// Exponential backoff with full jitter: a random part of the step, never less than what the failure asks for.
    fn delay(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let factor = 2_u32.saturating_pow(attempt.saturating_sub(1));
        let step = self.policy.initial_backoff.saturating_mul(factor).min(self.policy.max_backoff);
        step.mul_f64(fastrand::f64()).max(asked.unwrap_or_default())
    }
}

/// Whether an attempt's result calls for another one.
fn wants_retry(result: &Result<Box<InvokeResponse>>, spec: &FunctionSpec) -> bool {
    match result {
        Ok(response) => matches!(response.outcome, Outcome::Failed(_)) && spec.idempotent,
        // A deployment that is missing is made again, or routed around, further out.
        Err(error) => error.kind() != ErrorKind::NotDeployed && may_retry(error, spec),
    }
}

#[async_trait]
impl Middleware for RetryCalls {
    fn name(&self) -> &str {
        "retry"
    }

    fn stage(&self) -> Stage {
        Stage::Retry
    }

    async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        if call.queued.as_ref().is_some_and(|queued| queued.is_tried_by_queue) {
            return next.run(call).await;
        }
        self.budget.deposit();
        let spec = Arc::clone(call.revision());
        let mut attempt = 1;
        let mut delivery = Delivery::NotSent;
        loop {
            call.cx = call.cx.with_attempt(attempt);
            let Some(again) = call.try_clone() else { return next.run(call).await };
            let deadline = call.cx.deadline();
            // What an earlier attempt may have delivered, a later failure does not undo.
            let result = next.run(call).await;
            let again_wanted = wants_retry(&result, &spec.spec);
            let result = result.map_err(|error| {
                delivery = delivery.max(error.delivery());
                error.with_delivery(delivery)
            });
            if !again_wanted {
                return result;
            }
            let asked = result.as_ref().err().and_then(Error::retry_after);
            let delay = self.delay(attempt, asked);
            let in_time = deadline.is_none_or(|deadline| delay < deadline.remaining());
            if attempt >= self.policy.max_attempts || !in_time || !self.budget.withdraw() {
                return result.map_err(|error| if attempt > 1 { error.with_retry(Retry::Exhausted) } else { error });
            }
            tracing::debug!(attempt, delay_ms = crate::time::millis::as_millis(delay), "the call is tried again");
            tokio::time::sleep(delay).await;
            attempt += 1;
            call = Box::new(again);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_runs_out_and_fills_with_calls() {
        let budget = Budget::default();
        assert_eq!((0..20).filter(|_| budget.withdraw()).count(), 10);
        (0..5).for_each(|_| budget.deposit());
        assert!(budget.withdraw());
        assert!(!budget.withdraw());
        (0..10_000).for_each(|_| budget.deposit());
        assert_eq!((0..1000).filter(|_| budget.withdraw()).count(), 100);
    }

    #[test]
    fn delays_grow_to_the_cap_and_keep_to_what_is_asked() {
        let retry = RetryCalls { policy: RetryPolicy::attempts(5), budget: Budget::default() };
        for attempt in 1..40 {
            let delay = retry.delay(attempt, None);
            assert!(delay <= retry.policy.max_backoff);
            assert!(delay <= retry.policy.initial_backoff.saturating_mul(2_u32.saturating_pow(attempt - 1)));
        }
        assert_eq!(retry.delay(1, Some(Duration::from_secs(9))), Duration::from_secs(9));
    }
}
