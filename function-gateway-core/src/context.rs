//! What surrounds a call: who calls, under which id and trace, until when.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{Deadline, InvocationId, Principal, TenantId, TraceParent};

/// Where a call comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Origin {
    /// A caller waits for the answer.
    #[default]
    Sync,
    /// It was submitted for later.
    Async,
    /// An event triggered it.
    Event,
}

impl Origin {
    /// The name in JSON, spans and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Async => "async",
            Self::Event => "event",
        }
    }
}

/// Tells work that it is no longer wanted. Clones share the signal.
#[derive(Clone, Default)]
pub struct Cancellation(CancellationToken);

impl Cancellation {
    /// A signal that has not been given.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives the signal, for good.
    pub fn cancel(&self) {
        self.0.cancel();
    }

    /// Whether the signal was given.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for the signal. Cancel-safe.
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }
}

impl fmt::Debug for Cancellation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cancellation").field(&self.is_cancelled()).finish()
    }
}

/// Who calls, for which tenant, under which id and trace, and until when.
///
/// Every operation takes one. The tenant of everything that is looked up or changed is the principal's.
///
/// ```
/// use std::time::Duration;
/// use function_gateway_core::{CallContext, Deadline, Principal};
///
/// let cx = CallContext::new(Principal::new("acme".parse()?, "ada".parse()?))
///     .with_deadline(Deadline::after(Duration::from_secs(2)));
/// assert_eq!(cx.tenant().as_str(), "acme");
/// # Ok::<_, function_gateway_core::InvalidName>(())
/// ```
#[derive(Clone, Debug)]
pub struct CallContext {
    principal: Arc<Principal>,
    invocation: Option<InvocationId>,
    trace: Option<TraceParent>,
    trace_state: Option<Arc<str>>,
    origin: Origin,
    deadline: Option<Deadline>,
    attempt: u32,
    cancellation: Option<Cancellation>,
}

impl CallContext {
    /// The context of a call by a principal, without a deadline.
    #[must_use]
    pub fn new(principal: impl Into<Arc<Principal>>) -> Self {
        Self {
            principal: principal.into(),
            invocation: None,
            trace: None,
            trace_state: None,
            origin: Origin::Sync,
            deadline: None,
            attempt: 1,
            cancellation: None,
        }
    }

    /// Brings an id for the next invocation. It is committed before the call is made, as with a durable record; where any
    /// execution has it already, the call is refused with [`AlreadyExists`](crate::ErrorKind::AlreadyExists). Without, one is
    /// minted for each.
    #[must_use]
    pub fn with_invocation_id(mut self, id: InvocationId) -> Self {
        self.invocation = Some(id);
        self
    }

    /// Continues a trace. Without, the request's `traceparent` and `tracestate` headers are used, or a new trace is
    /// started.
    #[must_use]
    pub fn with_trace(mut self, trace: TraceParent) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Hands vendor data of the trace on, unread (`tracestate`).
    #[must_use]
    pub fn with_trace_state(mut self, state: impl Into<Arc<str>>) -> Self {
        self.trace_state = Some(state.into());
        self
    }

    /// Says where the call comes from.
    #[must_use]
    pub fn with_origin(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// Sets the deadline, unless there is an earlier one already.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Deadline) -> Self {
        self.deadline = Some(deadline.earliest(self.deadline));
        self
    }

    /// Lets the call be given up by a signal, beside dropping its future.
    #[must_use]
    pub fn with_cancellation(mut self, cancellation: Cancellation) -> Self {
        self.cancellation = Some(cancellation);
        self
    }

    /// The context of one invocation.
    pub(crate) fn for_invocation(mut self, id: InvocationId) -> Self {
        self.invocation = Some(id);
        self
    }

    pub(crate) fn with_attempt(mut self, attempt: u32) -> Self {
        self.attempt = attempt;
        self
    }

    /// The tenant for which the call is made.
    #[must_use]
    pub fn tenant(&self) -> &TenantId {
        &self.principal.tenant
    }

    /// Who calls.
    #[must_use]
    pub fn principal(&self) -> &Arc<Principal> {
        &self.principal
    }

    /// The id of the invocation. Always there for a driver's `invoke` and for middleware.
    #[must_use]
    pub fn invocation_id(&self) -> Option<InvocationId> {
        self.invocation
    }

    /// The trace that the call is part of. Always there for a driver's `invoke` and for middleware.
    #[must_use]
    pub fn trace(&self) -> Option<TraceParent> {
        self.trace
    }

    /// Vendor data of the trace (`tracestate`).
    #[must_use]
    pub fn trace_state(&self) -> Option<&str> {
        self.trace_state.as_deref()
    }

    /// Where the call comes from.
    #[must_use]
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Until when it has to be done.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    /// Which attempt this is, from 1.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The signal by which the call can be given up, if it has one.
    #[must_use]
    pub fn cancellation(&self) -> Option<&Cancellation> {
        self.cancellation.as_ref()
    }
}
