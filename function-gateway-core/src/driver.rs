//! What an author of a driver implements: the one way from the gateway to an engine.

use std::borrow::Cow;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};

use crate::headers::names;
use crate::{
    Body, CallContext, DriverCapabilities, Error, ErrorKind, FunctionId, FunctionSpec, GatewayId, Generation,
    InvokeResponse, LogSink, Protocol, Result, Revision, SecretVariable, Timestamp, TraceParent, Violation,
};

/// A stream of results that borrows from what made it.
pub type BoxStream<'a, T> = Pin<Box<dyn Stream<Item = T> + Send + 'a>>;

/// What a driver knows a deployment by: text of the driver's own, stored by the gateway and never read by it.
///
/// It starts with a version of its form, names the gateway, function and generation, and holds no credential.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DriverRef(Arc<str>);

impl DriverRef {
    /// Takes the driver's text.
    #[must_use]
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The form for a driver whose engine has no naming rules of its own: `v1/<gateway>/<function>/<generation>`.
    #[must_use]
    pub fn plain(gateway: &GatewayId, revision: &Revision) -> Self {
        Self::new(format!("v1/{gateway}/{}/{}", revision.function, revision.generation))
    }

    /// The driver's text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for DriverRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for DriverRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of driver it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DriverInfo {
    /// The kind, such as `local-process`. The host chooses the name under which it is registered.
    pub kind: &'static str,
    /// What it runs functions on, in a few words.
    pub summary: &'static str,
    /// The protocols that it speaks, the usual one first.
    pub protocols: Vec<Protocol>,
}

impl DriverInfo {
    /// Describes a driver.
    #[must_use]
    pub fn new(kind: &'static str, summary: &'static str, protocols: Vec<Protocol>) -> Self {
        Self { kind, summary, protocols }
    }
}

/// What a probe found out about an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct EngineInfo {
    /// The engine's name.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl EngineInfo {
    /// Names an engine and its version.
    #[must_use]
    pub fn new(name: impl Into<String>, version: impl Into<String>) -> Self {
        Self { name: name.into(), version: version.into() }
    }
}

/// What to deploy.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct DeployRequest {
    /// The gateway that asks; part of every name and label in the engine.
    pub gateway: GatewayId,
    /// The revision: key, function, generation and specification.
    pub revision: Arc<Revision>,
    /// The secrets' values, where the driver hands them over at deployment
    /// ([`secrets_at_deploy`](DriverCapabilities::secrets_at_deploy)).
    pub secrets: Vec<SecretVariable>,
}

impl DeployRequest {
    /// Asks for a revision without secrets.
    #[must_use]
    pub fn new(gateway: GatewayId, revision: Arc<Revision>) -> Self {
        Self { gateway, revision, secrets: Vec::new() }
    }

    /// Adds a secret.
    #[must_use]
    pub fn with_secret(mut self, secret: SecretVariable) -> Self {
        self.secrets.push(secret);
        self
    }

    /// What the developer wants.
    #[must_use]
    pub fn spec(&self) -> &FunctionSpec {
        &self.revision.spec
    }
}

/// How far a deployment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeploymentState {
    /// The engine does not have it.
    Missing,
    /// The engine is getting it ready.
    Progressing,
    /// The engine says that this generation serves. Scaled to zero is ready.
    Ready,
    /// The engine has given it up, or it keeps failing. It may recover; the gateway looks again, ever more seldom.
    Failed,
}

/// What an engine says of a deployment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeploymentStatus {
    /// How far it is.
    pub state: DeploymentState,
    /// Why, in words that a developer understands.
    pub message: String,
    /// Whether the engine has scaled it to zero: the next call waits for a start.
    pub idle: bool,
    /// When it makes sense to ask again.
    pub poll_after: Option<Duration>,
}

impl DeploymentStatus {
    /// A status without a message.
    #[must_use]
    pub fn new(state: DeploymentState) -> Self {
        Self { state, message: String::new(), idle: false, poll_after: None }
    }

    /// It serves.
    #[must_use]
    pub fn ready() -> Self {
        Self::new(DeploymentState::Ready)
    }

    /// The engine does not have it.
    #[must_use]
    pub fn missing() -> Self {
        Self::new(DeploymentState::Missing)
    }

    /// The engine is getting it ready.
    #[must_use]
    pub fn progressing(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::new(DeploymentState::Progressing) }
    }

    /// The engine has given it up.
    #[must_use]
    pub fn failed(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::new(DeploymentState::Failed) }
    }

    /// Says that it is scaled to zero.
    #[must_use]
    pub fn with_idle(mut self, idle: bool) -> Self {
        self.idle = idle;
        self
    }

    /// Says when it makes sense to ask again.
    #[must_use]
    pub fn with_poll_after(mut self, after: Duration) -> Self {
        self.poll_after = Some(after);
        self
    }
}

/// What of an engine to list.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListScope {
    /// Everything that belongs to a gateway, of all tenants: the reconciler's.
    All(GatewayId),
    /// What belongs to one function of a gateway.
    Function(GatewayId, FunctionId),
}

/// A deployment that an engine holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Deployment {
    /// What the driver knows it by.
    pub target: DriverRef,
    /// The function it belongs to.
    pub function: FunctionId,
    /// The generation that it is.
    pub generation: Generation,
    /// How it is, where the list tells.
    pub status: Option<DeploymentStatus>,
}

impl Deployment {
    /// Names a deployment.
    #[must_use]
    pub fn new(target: DriverRef, function: FunctionId, generation: Generation) -> Self {
        Self { target, function, generation, status: None }
    }

    /// Adds how it is.
    #[must_use]
    pub fn with_status(mut self, status: DeploymentStatus) -> Self {
        self.status = Some(status);
        self
    }
}

/// A call as a driver gets it: what goes to the function, in the function's format.
#[derive(Debug)]
#[non_exhaustive]
pub struct DriverRequest {
    /// The revision that executes it.
    pub revision: Arc<Revision>,
    /// The method.
    pub method: Method,
    /// The path below the function, raw, starting with `/`; empty for none.
    pub path: Cow<'static, str>,
    /// The query, raw, without `?`.
    pub query: Option<String>,
    /// The caller's headers. [`call_headers`] gives those that the gateway adds.
    pub headers: HeaderMap,
    /// The payload.
    pub body: Body,
    /// The secrets' values, where the driver hands them over at each call
    /// ([`secrets_per_call`](DriverCapabilities::secrets_per_call)).
    pub secrets: Vec<SecretVariable>,
    /// Where the function's log of this call goes, if the driver can tell it.
    pub logs: LogSink,
    /// How large the answer may be. A driver stops the function once it is larger, where it can; core checks too.
    pub max_response_bytes: u64,
}

impl DriverRequest {
    /// A `POST` of a payload to the function itself, whose log goes to `logs`.
    #[must_use]
    pub fn new(revision: Arc<Revision>, body: impl Into<Body>, logs: LogSink) -> Self {
        Self {
            revision,
            method: Method::POST,
            path: Cow::Borrowed(""),
            query: None,
            headers: HeaderMap::new(),
            body: body.into(),
            secrets: Vec::new(),
            logs,
            max_response_bytes: u64::MAX,
        }
    }
}

/// The names of what the gateway tells a function about its call, as HTTP headers.
pub mod call_header {
    /// The id of the invocation.
    pub const INVOCATION_ID: &str = "x-function-invocation-id";
    /// When the answer has to be there, in milliseconds since the Unix epoch.
    pub const DEADLINE: &str = "x-function-deadline-ms";
    /// Which attempt it is, from 1.
    pub const ATTEMPT: &str = "x-function-attempt";
}

/// What the gateway tells a function about its call, as pairs of HTTP header and value: id, trace, deadline, attempt.
#[must_use]
pub fn call_headers(cx: &CallContext) -> Vec<(&'static str, String)> {
    let mut headers = vec![(call_header::ATTEMPT, cx.attempt().to_string())];
    if let Some(id) = cx.invocation_id() {
        headers.push((call_header::INVOCATION_ID, id.to_string()));
    }
    if let Some(trace) = cx.trace() {
        headers.push((TraceParent::HEADER, trace.to_string()));
    }
    if let Some(state) = cx.trace_state() {
        headers.push((TraceParent::STATE_HEADER, state.to_owned()));
    }
    if let Some(deadline) = cx.deadline() {
        let at = Timestamp::now().plus(deadline.remaining());
        headers.push((call_header::DEADLINE, (at.as_micros() / 1000).to_string()));
    }
    headers
}

/// The names of [`call_header`] and of the trace, read once.
static TOLD: [HeaderName; 5] = [
    HeaderName::from_static(call_header::INVOCATION_ID),
    HeaderName::from_static(call_header::DEADLINE),
    HeaderName::from_static(call_header::ATTEMPT),
    HeaderName::from_static(TraceParent::HEADER),
    HeaderName::from_static(TraceParent::STATE_HEADER),
];

/// Whether a header has a name by which the gateway tells a function about its call.
pub(crate) fn is_told(name: &str) -> bool {
    TOLD.iter().any(|told| told.as_str() == name)
}

/// Sets the headers of [`call_headers`], in place of any that the caller sent under the same names: those that this call
/// has no value for are taken out, so that no caller speaks in the gateway's name.
pub fn set_call_headers(cx: &CallContext, headers: &mut HeaderMap) {
    for name in names(headers, is_told) {
        headers.remove(name);
    }
    tell_call(cx, headers);
}

/// Adds the headers of [`call_headers`] where there are none of these names.
pub(crate) fn tell_call(cx: &CallContext, headers: &mut HeaderMap) {
    let [id, deadline, attempt, trace, state] = &TOLD;
    let mut set = |name: &HeaderName, value: HeaderValue| drop(headers.insert(name.clone(), value));
    if let Some(Ok(value)) = cx.invocation_id().map(|id| HeaderValue::try_from(id.to_string())) {
        set(id, value);
    }
    if let Some(by) = cx.deadline() {
        set(deadline, (Timestamp::now().plus(by.remaining()).as_micros() / 1000).into());
    }
    set(attempt, cx.attempt().into());
    if let Some(Ok(value)) = cx.trace().map(|trace| HeaderValue::from_bytes(&trace.text())) {
        set(trace, value);
    }
    // One that came as a header is a valid value; another one is left out.
    if let Some(Ok(value)) = cx.trace_state().map(HeaderValue::from_str) {
        set(state, value);
    }
}

/// How many instances are to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ScaleRequest {
    /// The number of instances.
    pub instances: u32,
}

impl ScaleRequest {
    /// Asks for a number of instances.
    #[must_use]
    pub fn new(instances: u32) -> Self {
        Self { instances }
    }
}

/// Which part of a function's log is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogQuery {
    /// Only what was logged at this time or later.
    pub since: Option<Timestamp>,
    /// Only the last lines.
    pub tail: Option<u32>,
    /// Whether to go on with new lines as they come.
    pub follow: bool,
}

/// A line of a function's log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLine {
    /// When it was logged, where the engine tells.
    pub at: Option<Timestamp>,
    /// Which instance of the function logged it, in the engine's terms.
    pub instance: Option<String>,
    /// The line, without its end.
    pub text: Bytes,
}

impl LogLine {
    /// A line of which nothing more is known.
    #[must_use]
    pub fn new(text: impl Into<Bytes>) -> Self {
        Self { at: None, instance: None, text: text.into() }
    }
}

/// A driver runs functions on one engine. See `docs/writing-a-driver.md`.
///
/// # Behaviour
/// - **Generations stand side by side.** Each target is an object of its own in the engine. A driver never replaces a
///   serving generation in place, never splits traffic, and keeps a target until it is told to remove it.
/// - **Errors are truthful.** [`Delivery`](crate::Delivery) says whether the function can have seen the call: in doubt
///   `Unknown`. What the function itself answered is `Ok`, its errors included.
/// - **Operations can be repeated.** `deploy` and `remove` may be called again at any time, by any process.
/// - **Deadlines.** The caller bounds every operation by dropping its future. A driver that passes the deadline on to
///   its engine does so as a courtesy.
/// - **No credential** stands in a `DriverRef`, an error, a log or a `Debug` output.
///
/// # Cancel safety
/// Any future may be dropped at any time. Dropped management operations leave the engine in a state from which calling
/// again converges. Dropping `invoke`, or the body of its answer, stops the function where the driver declares
/// [`cancel`](DriverCapabilities::cancel).
#[async_trait]
pub trait FaasDriver: fmt::Debug + Send + Sync + 'static {
    /// What kind of driver it is.
    fn info(&self) -> &DriverInfo;

    /// What it can do with a protocol. Conservative before the first [`probe`](Self::probe). For a protocol that it
    /// does not speak: [`DriverCapabilities::NONE`].
    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities;

    /// Asks the engine for its health and version, and refreshes the capabilities.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where the engine is out of reach.
    async fn probe(&self, cx: &CallContext) -> Result<EngineInfo>;

    /// Says what of a specification it can't honour, beyond what its capabilities say: core has checked those.
    /// Changes nothing. An empty list means that `deploy` will not refuse the specification.
    ///
    /// # Errors
    /// Where it can't be checked now.
    async fn check(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>>;

    /// Names the target for a revision. Pure: the same for the same arguments, in every process. It is stored before
    /// anything is deployed, and holds all that the driver needs to find the target again (such as a namespace): other
    /// operations may come without the revision, and in the name of another tenant.
    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef;

    /// Makes the engine hold a generation, and says how far it is.
    ///
    /// # Behaviour
    /// - May return before the engine is ready: [`DeploymentState::Progressing`].
    /// - Called again for the same target it changes nothing and says how far it is.
    /// - Touches no other target.
    ///
    /// # Errors
    /// A transient error is tried again with backoff; any other fails the generation until its specification changes.
    async fn deploy(&self, cx: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus>;

    /// Says how far a target is. A target that the engine does not have is [`DeploymentState::Missing`], not an error.
    ///
    /// # Errors
    /// Where the engine can't tell now.
    async fn status(&self, cx: &CallContext, target: &DriverRef) -> Result<DeploymentStatus>;

    /// Removes a target, stopping what still runs in it. A target that is missing is `Ok`.
    ///
    /// # Errors
    /// Where it may still be there; the gateway calls again.
    async fn remove(&self, cx: &CallContext, target: &DriverRef) -> Result<()>;

    /// Lists what the engine holds for a gateway. Never lists what belongs to anybody else. An item that can't be read
    /// is an `Err` in the stream, and the rest follows.
    fn list<'a>(&'a self, cx: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>>;

    /// Executes a function.
    ///
    /// # Behaviour
    /// - Whatever the function answered is `Ok`; [`InvokeResponse::outcome`] says what it is.
    /// - A target that is not there is [`ErrorKind::NotDeployed`] with [`Delivery::NotSent`](crate::Delivery::NotSent),
    ///   and the request's body has not been polled.
    /// - Never sends a call a second time by itself once it can have reached the function.
    ///
    /// # Errors
    /// What the engine did wrong, or what kept the call from the function.
    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse>;

    /// Lets go of everything that belongs to this process: waits for what runs until the deadline, then stops it.
    /// What other processes share in the engine stays.
    ///
    /// # Errors
    /// Where something could not be let go of.
    async fn shutdown(&self, deadline: Instant) -> Result<()>;

    /// Sets how many instances run now, within the specification's bounds
    /// ([`scale`](DriverCapabilities::scale) declares it).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] unless declared.
    async fn scale(&self, _cx: &CallContext, _target: &DriverRef, _request: ScaleRequest) -> Result<()> {
        Err(unsupported(self.info(), "scale"))
    }

    /// Reads the log of a target ([`logs`](DriverCapabilities::logs) declares it).
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] unless declared.
    async fn logs<'a>(
        &'a self,
        _cx: &'a CallContext,
        _target: &'a DriverRef,
        _query: LogQuery,
    ) -> Result<BoxStream<'a, Result<LogLine>>> {
        Err(unsupported(self.info(), "logs"))
    }
}

fn unsupported(info: &DriverInfo, operation: &'static str) -> Error {
    Error::new(ErrorKind::Unsupported, format!("the driver {} does not offer `{operation}`", info.kind))
        .with_operation(operation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Principal;

    #[test]
    fn a_caller_does_not_speak_in_the_gateways_name() {
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let mut headers = HeaderMap::new();
        for name in [call_header::DEADLINE, call_header::ATTEMPT, TraceParent::STATE_HEADER, "x-own"] {
            headers.insert(name, HeaderValue::from_static("forged"));
        }
        set_call_headers(&cx, &mut headers);
        assert_eq!(headers.len(), 2);
        assert_eq!(
            (&headers[call_header::ATTEMPT], &headers["x-own"]),
            (&"1".parse().unwrap(), &"forged".parse().unwrap())
        );
    }

    #[test]
    fn headers_and_pairs_tell_the_same() {
        let bare = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let full = bare
            .clone()
            .with_invocation_id(crate::InvocationId::generate())
            .with_trace(TraceParent::root())
            .with_trace_state("a=b");
        for cx in [bare, full] {
            let mut headers = HeaderMap::new();
            set_call_headers(&cx, &mut headers);
            let mut set: Vec<_> =
                headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
            let told = call_headers(&cx);
            let mut told: Vec<_> = told.iter().map(|(name, value)| (*name, value.as_str())).collect();
            set.sort_unstable();
            told.sort_unstable();
            assert_eq!(set, told);
        }
    }
}
