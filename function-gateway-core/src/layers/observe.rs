//! A span and figures for each call: `tracing` by the OpenTelemetry conventions for FaaS, and `metrics`.

use std::error::Error as StdError;
use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use metrics::{Key, Label, Level, Metadata, SharedString};
use tracing::{Instrument as _, Span, field};

use crate::body::{BodyObserver, Closing};
use crate::error::chain_of;
use crate::{
    BodyEnd, CallState, Error, FunctionKey, Invocation, InvokeResponse, Middleware, Next, Outcome, Result, Revision,
    Stage, TimedPhase,
};

/// Observes every call, refusals included.
///
/// The span `faas.invoke` has the attributes `faas.invocation_id`, `faas.invoked_name`, `faas.invoked_provider`,
/// `faas.trigger` and, where the call did not succeed, `error.type`; `function_gateway.tenant`, `.generation` and
/// `.attempts`. The figures are `faas.invocations`, `faas.errors` and `faas.timeouts` (counters) and
/// `faas.invoke_duration` and `function_gateway.phase_duration` (histograms, in seconds).
#[derive(Debug)]
pub(crate) struct Observe;

#[async_trait]
impl Middleware for Observe {
    fn name(&self) -> &str {
        "observe"
    }

    fn stage(&self) -> Stage {
        Stage::Observe
    }

    async fn handle(&self, call: Box<Invocation>, next: Next<'_>) -> Result<Box<InvokeResponse>> {
        let span = span(&call);
        let observation =
            Observation { span: span.clone(), state: Arc::clone(call.state()), revision: Arc::clone(call.revision()) };
        let mut pending = Pending(Some(observation));
        let result = next.run(call).instrument(span).await;
        let Some(observation) = pending.0.take() else { return result };
        match result {
            Ok(mut response) => {
                let body = std::mem::take(&mut response.body);
                if body.is_stream() {
                    response.body = body.observed(ObserveBody(Some((observation, response.outcome.clone()))));
                } else {
                    observation.answered(&response.outcome);
                    response.body = body;
                }
                Ok(response)
            }
            Err(error) => {
                observation.failed(&error);
                Err(error)
            }
        }
    }
}

fn span(call: &Invocation) -> Span {
    let revision = call.revision();
    tracing::info_span!(
        target: "function_gateway",
        "faas.invoke",
        otel.kind = "client",
        faas.invocation_id = %call.state().id,
        faas.invoked_name = %revision.key.name,
        faas.invoked_provider = %revision.spec.driver,
        faas.trigger = call.cx.origin().as_str(),
        function_gateway.tenant = %revision.key.tenant,
        function_gateway.generation = revision.generation.get(),
        function_gateway.traceparent = call.cx.trace().map(field::display),
        function_gateway.attempts = field::Empty,
        error.type = field::Empty,
    )
}

struct Observation {
    span: Span,
    state: Arc<CallState>,
    revision: Arc<Revision>,
}

impl Observation {
    fn answered(&self, outcome: &Outcome) {
        let class = match outcome {
            Outcome::Succeeded => None,
            Outcome::Rejected => Some("function_rejected"),
            Outcome::Failed(_) => Some("function_failed"),
        };
        self.ended(class);
    }

    fn failed(&self, error: &Error) {
        self.ended(Some(error.kind().code()));
        let error = self.state.redactor().error(error.clone());
        self.span.in_scope(|| {
            let cause = StdError::source(&error).map(chain_of);
            let (detail, cause) = (error.detail(), cause.as_deref());
            tracing::debug!(target: "function_gateway", %error, detail, cause, "failed");
        });
    }

    fn ended(&self, error: Option<&'static str>) {
        self.span.record("function_gateway.attempts", self.state.attempts());
        let FunctionKey { tenant, name } = self.revision.key.clone();
        let label = |name, value| Label::new(name, SharedString::from_shared(value));
        let labels = [label("faas.invoked_name", name.into()), label("tenant", tenant.into())];
        metrics::counter!("faas.invocations", labels.iter()).increment(1);
        metrics::histogram!("faas.invoke_duration", labels.iter()).record(self.state.elapsed());
        let timings = self.state.timings();
        for (phase, key) in TimedPhase::ALL.into_iter().zip(&*PHASES) {
            if let Some(took) = timings.get(phase) {
                metrics::with_recorder(|recorder| recorder.register_histogram(key, &METADATA)).record(took);
            }
        }
        let Some(error) = error else { return };
        self.span.record("error.type", error);
        let [name, tenant] = labels;
        let of_error = [name.clone(), tenant.clone(), Label::new("error.type", error)];
        metrics::counter!("faas.errors", of_error.iter()).increment(1);
        if error == crate::ErrorKind::DeadlineExceeded.code() {
            metrics::counter!("faas.timeouts", [name, tenant].iter()).increment(1);
        }
    }
}

/// The histogram of each phase. The same for every call, and so made once.
static PHASES: LazyLock<[Key; 5]> = LazyLock::new(|| {
    TimedPhase::ALL
        .map(|phase| Key::from_parts("function_gateway.phase_duration", vec![Label::new("phase", phase.as_str())]))
});
static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, Some(module_path!()));

/// A call that is still on its way. Dropped, it was given up.
struct Pending(Option<Observation>);

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(observation) = self.0.take() {
            observation.ended(Some(crate::ErrorKind::Cancelled.code()));
        }
    }
}

struct ObserveBody(Option<(Observation, Outcome)>);

impl BodyObserver for ObserveBody {
    fn end(mut self, end: BodyEnd<'_>) -> Option<Closing> {
        let (observation, outcome) = self.0.take()?;
        match end {
            BodyEnd::Complete => observation.answered(&outcome),
            BodyEnd::Failed(error) => observation.failed(error),
            BodyEnd::Dropped => {
                let late = observation.state.deadline().is_some_and(|deadline| deadline.has_passed());
                let kind = if late { crate::ErrorKind::DeadlineExceeded } else { crate::ErrorKind::Cancelled };
                observation.ended(Some(kind.code()));
            }
        }
        None
    }
}
