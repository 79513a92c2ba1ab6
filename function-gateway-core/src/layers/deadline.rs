//! Bounds a call as a whole, and each attempt, by timers.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use crate::body::timeout;
use crate::{
    Deadline, Delivery, FunctionSpec, GatewayConfig, Invocation, InvokeResponse, Middleware, MiddlewareFactory, Next,
    Result, Retry, Revision, Settings, SpecField, Stage, Violation,
};

/// Makes the bound on calls as a whole: the earlier of the caller's deadline and the function's total time.
#[derive(Debug)]
pub(crate) struct Overall(pub(crate) GatewayConfig);

impl MiddlewareFactory for Overall {
    fn name(&self) -> &str {
        "overall"
    }

    fn stage(&self) -> Stage {
        Stage::Overall
    }

    fn claims(&self) -> &[SpecField] {
        &[SpecField::TotalTimeout]
    }

    fn admit(&self, _: &FunctionSpec, _: &Settings<'_>) -> Vec<Violation> {
        Vec::new()
    }

    fn build(&self, revision: &Arc<Revision>, _: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        Ok(Some(Arc::new(TotalTimeout(self.0.total_timeout(&revision.spec)))))
    }
}

#[derive(Debug)]
struct TotalTimeout(Option<Duration>);

#[async_trait]
impl Middleware for TotalTimeout {
    fn name(&self) -> &str {
        "overall"
    }

    fn stage(&self) -> Stage {
        Stage::Overall
    }

    async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        if let Some(total) = self.0 {
            call.cx = call.cx.with_deadline(Deadline::after(total));
        }
        let Some(deadline) = call.cx.deadline() else { return next.run(call).await };
        let state = Arc::clone(call.state());
        match tokio::time::timeout_at(deadline.instant().into(), next.run(call)).await {
            Ok(result) => result,
            Err(_) => {
                let delivery = state.delivery();
                Err(timeout("total", delivery))
            }
        }
    }
}

/// Makes the bound on each attempt, for functions that set one.
#[derive(Debug)]
pub(crate) struct AttemptTimeout;

impl MiddlewareFactory for AttemptTimeout {
    fn name(&self) -> &str {
        "attempt"
    }

    fn stage(&self) -> Stage {
        Stage::Attempt
    }

    fn claims(&self) -> &[SpecField] {
        &[SpecField::AttemptTimeout]
    }

    fn admit(&self, _: &FunctionSpec, _: &Settings<'_>) -> Vec<Violation> {
        Vec::new()
    }

    fn build(&self, revision: &Arc<Revision>, _: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        Ok(revision.spec.timeouts.attempt.map(|limit| Arc::new(OneAttempt(limit)) as _))
    }
}

#[derive(Debug)]
struct OneAttempt(Duration);

#[async_trait]
impl Middleware for OneAttempt {
    fn name(&self) -> &str {
        "attempt"
    }

    fn stage(&self) -> Stage {
        Stage::Attempt
    }

    async fn handle(&self, mut call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let deadline = Deadline::after(self.0);
        // A streamed answer may go on past the attempt's time: only its start is bounded.
        if !call.revision().spec.streaming {
            call.cx = call.cx.with_deadline(deadline);
        }
        match tokio::time::timeout_at(deadline.instant().into(), next.run(call)).await {
            Ok(result) => result,
            Err(_) => Err(timeout("attempt", Delivery::Unknown).with_retry(Retry::Transient)),
        }
    }
}
