//! A driver on an engine in memory, whose behaviour a test scripts.
//!
//! An [`Engine`] holds the deployments and the script. It outlives the drivers that use it, so a test can "kill" a host
//! by dropping its gateway and start another one over the same engine. Several drivers on one engine are several
//! processes of one gateway.
//!
//! ```
//! use std::sync::Arc;
//! use function_gateway_core::{Error, ErrorKind};
//! use function_gateway_testkit::{Fault, Op, Readiness, ScriptedDriver};
//!
//! let driver = Arc::new(ScriptedDriver::new());
//! let engine = driver.engine();
//! engine.set_readiness(Readiness::AfterPolls(3));
//! engine.inject(Op::Deploy, Fault::error(Error::new(ErrorKind::Unavailable, "no route")).times(2));
//! // ... give `driver` to a gateway, use it, then look at what happened:
//! assert_eq!(engine.count(Op::Deploy), 0);
//! assert!(engine.targets().is_empty());
//! ```

mod gate;
mod handler;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use function_gateway_core::{
    Body, BodyEnd, BoxStream, CallContext, Delivery, DeployRequest, Deployment, DeploymentStatus, DriverCapabilities,
    DriverInfo, DriverRef, DriverRequest, EngineInfo, Error, ErrorKind, FaasDriver, FunctionId, FunctionSpec,
    GatewayId, Generation, InvokeResponse, ListScope, LogLine, LogQuery, Protocol, Result, Revision, ScaleRequest,
    SecretVariable, Violation,
};
use futures_util::{StreamExt as _, stream};
use http::{HeaderName, HeaderValue};
use tokio::sync::watch;

pub use gate::Gate;
pub use handler::{Answer, Handler};

/// The header by which every answer tells the name of the driver that gave it.
pub const DRIVER_HEADER: HeaderName = HeaderName::from_static("x-scripted-driver");
/// The header by which every answer tells the generation that gave it.
pub const GENERATION_HEADER: HeaderName = HeaderName::from_static("x-scripted-generation");

/// An operation of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Op {
    /// `probe`
    Probe,
    /// `check`
    Check,
    /// `deploy`
    Deploy,
    /// `status`
    Status,
    /// `remove`
    Remove,
    /// `list`
    List,
    /// `invoke`
    Invoke,
    /// `shutdown`
    Shutdown,
    /// `scale`
    Scale,
    /// `logs`
    Logs,
}

/// What goes wrong with an operation.
#[derive(Debug, Clone)]
pub struct Fault {
    kind: FaultKind,
    left: Option<u32>,
    after: bool,
}

#[derive(Debug, Clone)]
enum FaultKind {
    Error(Error),
    Hang(Gate),
}

impl Fault {
    /// The operation fails with an error, each time and without an effect unless said otherwise.
    #[must_use]
    pub fn error(error: Error) -> Self {
        Self { kind: FaultKind::Error(error), left: None, after: false }
    }

    /// The operation waits at a gate, and goes on once it may pass.
    #[must_use]
    pub fn hang(gate: &Gate) -> Self {
        Self { kind: FaultKind::Hang(gate.clone()), left: None, after: false }
    }

    /// Only the next `count` times.
    #[must_use]
    pub fn times(mut self, count: u32) -> Self {
        self.left = Some(count);
        self
    }

    /// Only after the operation has had its effect: its answer is lost, or late.
    #[must_use]
    pub fn after_effect(mut self) -> Self {
        self.after = true;
        self
    }

    async fn strike(self) -> Result<()> {
        match self.kind {
            FaultKind::Error(error) => Err(error),
            FaultKind::Hang(gate) => {
                gate.pass().await;
                Ok(())
            }
        }
    }
}

/// When a deployment becomes ready.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Readiness {
    /// With its deployment.
    #[default]
    Immediate,
    /// With the `n`th time that its status is asked.
    AfterPolls(u32),
    /// Once the gate is open.
    Gated(Gate),
    /// Never.
    Never,
    /// The engine gives it up, with this message.
    Failed(String),
    /// It is ready at every other time that its status is asked, from the first. It takes calls all the time.
    Flapping,
}

/// An operation that an engine was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct JournalEntry {
    /// The name of the driver that asked.
    pub driver: Arc<str>,
    /// What it asked for.
    pub op: Op,
    /// The target, where the operation has one.
    pub target: Option<DriverRef>,
    /// The generation, where the operation names one.
    pub generation: Option<Generation>,
}

type ReadinessScript = Arc<dyn Fn(&Revision) -> Readiness + Send + Sync>;
type CheckScript = Arc<dyn Fn(&FunctionSpec) -> Vec<Violation> + Send + Sync>;

/// Ends what runs, with the error that it ends with.
#[derive(Clone)]
struct Kill(Arc<watch::Sender<Option<Error>>>);

impl Kill {
    fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    fn kill(&self, error: Error) {
        self.0.send_replace(Some(error));
    }

    async fn killed(&self) -> Error {
        let mut receiver = self.0.subscribe();
        // The sender lives as long as `self`, so a change comes or the wait goes on.
        let killed = receiver.wait_for(Option::is_some).await.ok().and_then(|error| error.clone());
        killed.unwrap_or_else(|| Error::new(ErrorKind::Internal, "the engine is gone"))
    }
}

struct Slot {
    gateway: GatewayId,
    revision: Arc<Revision>,
    readiness: Readiness,
    polls: u32,
    secrets: Vec<SecretVariable>,
    instances: u32,
    log: Vec<Bytes>,
    kill: Kill,
}

impl Slot {
    fn status(&self) -> DeploymentStatus {
        let progressing = || DeploymentStatus::progressing("the script makes it wait");
        match &self.readiness {
            Readiness::Immediate => DeploymentStatus::ready(),
            Readiness::AfterPolls(polls) if self.polls >= *polls => DeploymentStatus::ready(),
            Readiness::Gated(gate) if gate.is_open() => DeploymentStatus::ready(),
            Readiness::Flapping if self.polls % 2 == 1 => DeploymentStatus::ready(),
            Readiness::Failed(message) => DeploymentStatus::failed(message.clone()),
            Readiness::AfterPolls(_) | Readiness::Gated(_) | Readiness::Flapping | Readiness::Never => progressing(),
        }
        .with_idle(self.instances == 0)
    }

    fn takes_calls(&self) -> bool {
        matches!(self.readiness, Readiness::Flapping)
            || self.status().state == function_gateway_core::DeploymentState::Ready
    }

    fn deployment(&self, target: &DriverRef) -> Deployment {
        let deployment = Deployment::new(target.clone(), self.revision.function, self.revision.generation);
        deployment.with_status(self.status())
    }
}

struct State {
    slots: BTreeMap<DriverRef, Slot>,
    faults: HashMap<Op, VecDeque<Fault>>,
    journal: Vec<JournalEntry>,
    handler: Handler,
    readiness: ReadinessScript,
    check: CheckScript,
    in_flight: BTreeMap<DriverRef, usize>,
    dropped: usize,
    peak_deployed: usize,
    peak_of: HashMap<FunctionId, usize>,
    peak_in_flight: usize,
}

impl State {
    fn in_flight(&self) -> usize {
        self.in_flight.values().sum()
    }

    fn count_deployed(&mut self, function: FunctionId) {
        self.peak_deployed = self.peak_deployed.max(self.slots.len());
        let now = self.slots.values().filter(|slot| slot.revision.function == function).count();
        let peak = self.peak_of.entry(function).or_default();
        *peak = now.max(*peak);
    }
}

/// An engine in memory: its deployments, the script by which it behaves, and a journal. Clones are the same engine.
#[derive(Clone)]
pub struct Engine(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Engine")
            .field("targets", &state.slots.keys().collect::<Vec<_>>())
            .field("in_flight", &state.in_flight())
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine that holds nothing, makes ready at once and answers with the payload.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            slots: BTreeMap::new(),
            faults: HashMap::new(),
            journal: Vec::new(),
            handler: Handler::echo(),
            readiness: Arc::new(|_| Readiness::Immediate),
            check: Arc::new(|_| Vec::new()),
            in_flight: BTreeMap::new(),
            dropped: 0,
            peak_deployed: 0,
            peak_of: HashMap::new(),
            peak_in_flight: 0,
        };
        Self(Arc::new(Inner { state: Mutex::new(state), changed: watch::Sender::new(()) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state and tells those who wait for a change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.0.changed.send_replace(());
        result
    }

    /// Says how functions answer from now on.
    pub fn on_invoke(&self, handler: Handler) {
        self.change(|state| state.handler = handler);
    }

    /// Says when deployments that are made from now on become ready.
    pub fn set_readiness(&self, readiness: Readiness) {
        self.on_deploy(move |_| readiness.clone());
    }

    /// Says when deployments that are made from now on become ready, by their revision.
    pub fn on_deploy(&self, readiness: impl Fn(&Revision) -> Readiness + Send + Sync + 'static) {
        self.change(|state| state.readiness = Arc::new(readiness));
    }

    /// Changes when a deployment that exists is ready, counting its polls anew. Says whether it exists.
    pub fn set_readiness_of(&self, target: &DriverRef, readiness: Readiness) -> bool {
        self.change(|state| {
            let slot = state.slots.get_mut(target);
            slot.map(|slot| (slot.readiness, slot.polls) = (readiness, 0)).is_some()
        })
    }

    /// Says what `check` finds wrong with a specification.
    pub fn on_check(&self, check: impl Fn(&FunctionSpec) -> Vec<Violation> + Send + Sync + 'static) {
        self.change(|state| state.check = Arc::new(check));
    }

    /// Makes an operation go wrong. Faults of one operation strike in the order in which they were injected, one at
    /// each call; a fault without a number of times stays until [`heal`](Self::heal).
    pub fn inject(&self, op: Op, fault: Fault) {
        if fault.left != Some(0) {
            self.change(|state| state.faults.entry(op).or_default().push_back(fault));
        }
    }

    /// Makes an operation wait, each time, until the gate that is returned lets it pass.
    #[must_use]
    pub fn hang(&self, op: Op) -> Gate {
        let gate = Gate::new();
        self.inject(op, Fault::hang(&gate));
        gate
    }

    /// Takes back the faults of an operation. What waits at a gate already goes on waiting.
    pub fn heal(&self, op: Op) {
        self.change(|state| state.faults.remove(&op));
    }

    /// Loses every deployment, as an engine that restarts without its state. Running calls break off.
    pub fn lose_all(&self) {
        for target in self.targets() {
            self.lose(&target);
        }
    }

    /// Loses one deployment. Running calls break off. Says whether it was there.
    pub fn lose(&self, target: &DriverRef) -> bool {
        let broken = Error::new(ErrorKind::FunctionBroken, "the engine lost the function");
        self.take(target, broken)
    }

    fn take(&self, target: &DriverRef, end: Error) -> bool {
        let taken = self.change(|state| state.slots.remove(target));
        taken.map(|slot| slot.kill.kill(end)).is_some()
    }

    /// What it holds. A test that expects no orphan asserts on this.
    #[must_use]
    pub fn targets(&self) -> Vec<DriverRef> {
        self.lock().slots.keys().cloned().collect()
    }

    /// The revision of a deployment.
    #[must_use]
    pub fn revision(&self, target: &DriverRef) -> Option<Arc<Revision>> {
        self.lock().slots.get(target).map(|slot| Arc::clone(&slot.revision))
    }

    /// How many instances a deployment was last scaled to; 1 from the start.
    #[must_use]
    pub fn instances(&self, target: &DriverRef) -> Option<u32> {
        self.lock().slots.get(target).map(|slot| slot.instances)
    }

    /// Every operation that it was asked for, in order, those that failed included.
    #[must_use]
    pub fn journal(&self) -> Vec<JournalEntry> {
        self.lock().journal.clone()
    }

    /// How often it was asked for an operation.
    #[must_use]
    pub fn count(&self, op: Op) -> usize {
        self.lock().journal.iter().filter(|entry| entry.op == op).count()
    }

    /// Forgets the journal, the peaks and the calls that were dropped.
    pub fn clear_journal(&self) {
        self.change(|state| {
            state.journal.clear();
            state.dropped = 0;
            state.peak_deployed = state.slots.len();
            state.peak_of.clear();
            state.peak_in_flight = state.in_flight();
        });
    }

    /// How many calls are running: from the start of the function until its answer's body has ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight()
    }

    /// How many calls are running in one deployment, one that was removed included.
    #[must_use]
    pub fn in_flight_of(&self, target: &DriverRef) -> usize {
        self.lock().in_flight.get(target).copied().unwrap_or(0)
    }

    /// How many calls their caller dropped, or whose answer's body was dropped, before they ended.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.lock().dropped
    }

    /// The greatest number of deployments at a time.
    #[must_use]
    pub fn peak_deployed(&self) -> usize {
        self.lock().peak_deployed
    }

    /// The greatest number of deployments of one function at a time.
    #[must_use]
    pub fn peak_deployed_of(&self, function: FunctionId) -> usize {
        self.lock().peak_of.get(&function).copied().unwrap_or(0)
    }

    /// The greatest number of running calls at a time.
    #[must_use]
    pub fn peak_in_flight(&self) -> usize {
        self.lock().peak_in_flight
    }

    /// Waits until a condition holds; it is looked at whenever something in the engine changes. Cancel-safe.
    pub async fn until(&self, mut condition: impl FnMut(&Self) -> bool) {
        let mut changed = self.0.changed.subscribe();
        while !condition(self) {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    fn begin(&self, entry: JournalEntry) -> Option<Fault> {
        self.change(|state| {
            let faults = state.faults.entry(entry.op).or_default();
            state.journal.push(entry);
            let fault = faults.front_mut()?;
            let Some(left) = &mut fault.left else { return Some(fault.clone()) };
            *left = left.saturating_sub(1);
            if *left == 0 { faults.pop_front() } else { Some(fault.clone()) }
        })
    }

    fn deploy(&self, target: &DriverRef, request: DeployRequest) -> DeploymentStatus {
        // Scripts run outside the lock, so that they may look at the engine.
        let script = Arc::clone(&self.lock().readiness);
        let readiness = script(&request.revision);
        self.change(|state| {
            if let Some(slot) = state.slots.get(target) {
                return slot.status();
            }
            let DeployRequest { gateway, revision, secrets, .. } = request;
            let function = revision.function;
            let (polls, instances, log, kill) = (0, 1, Vec::new(), Kill::new());
            let slot = Slot { gateway, revision, readiness, polls, secrets, instances, log, kill };
            let status = slot.status();
            state.slots.insert(target.clone(), slot);
            state.count_deployed(function);
            status
        })
    }

    fn poll_status(&self, target: &DriverRef) -> DeploymentStatus {
        self.change(|state| match state.slots.get_mut(target) {
            None => DeploymentStatus::missing(),
            Some(slot) => {
                slot.polls = slot.polls.saturating_add(1);
                slot.status()
            }
        })
    }

    fn list(&self, scope: &ListScope) -> Vec<Result<Deployment>> {
        let state = self.lock();
        let slots = state.slots.iter().filter(|(_, slot)| match scope {
            ListScope::All(gateway) => slot.gateway == *gateway,
            ListScope::Function(gateway, function) => slot.gateway == *gateway && slot.revision.function == *function,
            _ => false,
        });
        slots.map(|(target, slot)| Ok(slot.deployment(target))).collect()
    }

    /// Lets a call into a deployment.
    fn enter(&self, target: &DriverRef, request: &mut DriverRequest) -> Result<(Handler, Kill, InFlight)> {
        self.change(|state| {
            let Some(slot) = state.slots.get(target) else {
                return Err(Error::new(ErrorKind::NotDeployed, "the engine does not hold this function"));
            };
            if !slot.takes_calls() {
                return Err(Error::new(ErrorKind::NotReady, "the function is not ready"));
            }
            // What was handed over at deployment is in the environment of every call.
            for known in &slot.secrets {
                if !request.secrets.iter().any(|secret| secret.name == known.name) {
                    request.secrets.push(known.clone());
                }
            }
            let (handler, kill) = (state.handler.clone(), slot.kill.clone());
            *state.in_flight.entry(target.clone()).or_default() += 1;
            state.peak_in_flight = state.peak_in_flight.max(state.in_flight());
            Ok((handler, kill, InFlight { engine: self.clone(), target: target.clone(), ended: false }))
        })
    }

    fn append_log(&self, target: &DriverRef, text: &[u8]) {
        self.change(|state| {
            if let Some(slot) = state.slots.get_mut(target) {
                let lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
                slot.log.extend(lines.map(Bytes::copy_from_slice));
            }
        });
    }
}

/// Counts a call as running while it lives.
struct InFlight {
    engine: Engine,
    target: DriverRef,
    ended: bool,
}

impl InFlight {
    fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.engine.change(|state| {
            if let Some(count) = state.in_flight.get_mut(&self.target) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    state.in_flight.remove(&self.target);
                }
            }
            state.dropped += usize::from(!self.ended);
        });
    }
}

/// A driver on an [`Engine`]: one process of a gateway.
///
/// It holds what it is told to hold, refuses a target that its [`reference`](FaasDriver::reference) does not give, and
/// does what the engine's script says. After `shutdown` it takes no calls and deploys nothing; with the scope
/// [`PerProcess`](function_gateway_core::Scope::PerProcess) its engine loses all then.
pub struct ScriptedDriver {
    engine: Engine,
    name: Arc<str>,
    info: DriverInfo,
    capabilities: DriverCapabilities,
    closed: AtomicBool,
    kill: Kill,
    /// Counts the calls of this process, which `shutdown` waits for.
    calls: watch::Sender<usize>,
}

impl fmt::Debug for ScriptedDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScriptedDriver").field("name", &self.name).field("engine", &self.engine).finish_non_exhaustive()
    }
}

impl Default for ScriptedDriver {
    fn default() -> Self {
        Self::new()
    }
}

impl ScriptedDriver {
    /// A driver on an engine of its own.
    #[must_use]
    pub fn new() -> Self {
        Self::on(&Engine::new())
    }

    /// A driver on an engine, as one more process.
    ///
    /// It runs every kind of workload by the protocols `exec` and `http`, and declares environment, secrets at each
    /// call, streaming, cancelling, both kinds of logs and scaling.
    #[must_use]
    pub fn on(engine: &Engine) -> Self {
        let capabilities = DriverCapabilities::NONE.with(|caps| {
            caps.process = true;
            caps.image = true;
            caps.custom = true;
            caps.env = true;
            caps.secrets_per_call = true;
            caps.streaming = true;
            caps.cancel = true;
            caps.invocation_logs = true;
            caps.logs = true;
            caps.scale = true;
        });
        let protocols = vec![Protocol::exec(), Protocol::http()];
        Self {
            engine: engine.clone(),
            name: Arc::from("scripted"),
            info: DriverInfo::new("scripted", "an engine in memory that follows a script", protocols),
            capabilities,
            closed: AtomicBool::new(false),
            kill: Kill::new(),
            calls: watch::Sender::new(0),
        }
    }

    /// Names the driver, for [`DRIVER_HEADER`] and the journal; `scripted` without.
    #[must_use]
    pub fn with_name(mut self, name: &str) -> Self {
        self.name = Arc::from(name);
        self
    }

    /// Changes what it declares.
    #[must_use]
    pub fn with_capabilities(mut self, change: impl FnOnce(&mut DriverCapabilities)) -> Self {
        self.capabilities = self.capabilities.with(change);
        self
    }

    /// The engine that it is on.
    #[must_use]
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Does one operation by the script: journal, fault before, effect, fault after.
    async fn operate<T>(
        &self,
        op: Op,
        target: Option<&DriverRef>,
        generation: Option<Generation>,
        effect: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let entry = JournalEntry { driver: Arc::clone(&self.name), op, target: target.cloned(), generation };
        let (before, after) = match self.engine.begin(entry) {
            Some(fault) if fault.after => (None, Some(fault)),
            fault => (fault, None),
        };
        if let Some(fault) = before {
            fault.strike().await?;
        }
        let result = effect.await?;
        if let Some(fault) = after {
            fault.strike().await?;
        }
        Ok(result)
    }

    fn refuse_when_closed(&self) -> Result<()> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::ShuttingDown, "the driver is shut down"));
        }
        Ok(())
    }

    fn unsupported(&self, operation: &'static str) -> Error {
        let message = format!("the driver {} does not offer `{operation}`", self.info.kind);
        Error::new(ErrorKind::Unsupported, message).with_operation(operation)
    }

    async fn call(&self, cx: &CallContext, target: &DriverRef, mut request: DriverRequest) -> Result<InvokeResponse> {
        self.refuse_when_closed()?;
        let (handler, kill, running) = self.engine.enter(target, &mut request)?;
        let ours = OfProcess::enter(&self.calls);
        let (limit, logs, generation) = (request.max_response_bytes, request.logs.clone(), request.revision.generation);
        let logged_before = logs.contents().len();
        let answer = tokio::select! {
            biased;
            error = kill.killed() => Err(error),
            error = self.kill.killed() => Err(error),
            answer = handler.answer(cx.clone(), request) => answer,
        };
        self.engine.append_log(target, logs.contents().get(logged_before..).unwrap_or_default());
        let answer = answer.and_then(|mut response| {
            let declared = response.body.len().is_some_and(|len| len > limit);
            if declared {
                return Err(Error::too_large(ErrorKind::OutputTooLarge, "output", limit));
            }
            if let Ok(name) = HeaderValue::from_str(&self.name) {
                response.headers.insert(DRIVER_HEADER, name);
            }
            response.headers.insert(GENERATION_HEADER, HeaderValue::from(generation.get()));
            Ok(response)
        });
        match answer {
            Ok(mut response) if response.body.is_stream() => {
                let kills = [kill, self.kill.clone()];
                response.body = guarded(response.body, kills, limit).with_guard(ours).on_end(move |end| {
                    if !matches!(end, BodyEnd::Dropped) {
                        running.ended();
                    }
                });
                Ok(response)
            }
            answer => {
                running.ended();
                answer
            }
        }
    }
}

/// A streamed answer that ends with an error when its function is killed, or once it is larger than the limit.
fn guarded(body: Body, kills: [Kill; 2], limit: u64) -> Body {
    let state = (body.into_stream(), kills, 0_u64);
    Body::from_stream(stream::unfold(Some(state), move |state| async move {
        let (mut stream, kills, passed) = state?;
        let [target, process] = &kills;
        let chunk = tokio::select! {
            biased;
            error = target.killed() => Err(error),
            error = process.killed() => Err(error),
            chunk = stream.next() => chunk?,
        };
        let passed = passed.saturating_add(chunk.as_ref().map_or(0, |chunk| chunk.len() as u64));
        match chunk {
            Ok(_) if passed > limit => Some((Err(Error::too_large(ErrorKind::OutputTooLarge, "output", limit)), None)),
            Ok(chunk) => Some((Ok(chunk), Some((stream, kills, passed)))),
            Err(error) => Some((Err(error), None)),
        }
    }))
}

/// Counts a call of this process while it lives.
struct OfProcess(watch::Sender<usize>);

impl OfProcess {
    fn enter(calls: &watch::Sender<usize>) -> Self {
        calls.send_modify(|count| *count += 1);
        Self(calls.clone())
    }
}

impl Drop for OfProcess {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl FaasDriver for ScriptedDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        if self.info.protocols.contains(protocol) { self.capabilities } else { DriverCapabilities::NONE }
    }

    async fn probe(&self, _: &CallContext) -> Result<EngineInfo> {
        self.operate(Op::Probe, None, None, async { Ok(EngineInfo::new("scripted", "1")) }).await
    }

    async fn check(&self, _: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        let check = Arc::clone(&self.engine.lock().check);
        self.operate(Op::Check, None, None, async { Ok(check(spec)) }).await
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        DriverRef::plain(gateway, revision)
    }

    async fn deploy(&self, _: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        let generation = request.revision.generation;
        let effect = async {
            self.refuse_when_closed()?;
            if *target != self.reference(&request.gateway, &request.revision) {
                let message = "the target does not name the revision that is to be deployed";
                return Err(Error::new(ErrorKind::InvalidArgument, message).with_context("target", target.as_str()));
            }
            let check = Arc::clone(&self.engine.lock().check);
            let violations = check(request.spec());
            if !violations.is_empty() {
                return Err(Error::invalid_spec(violations));
            }
            Ok(self.engine.deploy(target, request))
        };
        self.operate(Op::Deploy, Some(target), Some(generation), effect).await
    }

    async fn status(&self, _: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        self.operate(Op::Status, Some(target), None, async { Ok(self.engine.poll_status(target)) }).await
    }

    async fn remove(&self, _: &CallContext, target: &DriverRef) -> Result<()> {
        let effect = async {
            let end = Error::new(ErrorKind::Cancelled, "the function was removed").with_delivery(Delivery::Executed);
            self.engine.take(target, end);
            Ok(())
        };
        self.operate(Op::Remove, Some(target), None, effect).await
    }

    fn list<'a>(&'a self, _: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        let listed = self.operate(Op::List, None, None, async move { Ok(self.engine.list(&scope)) });
        let items = |listed: Result<Vec<_>>| stream::iter(listed.unwrap_or_else(|error| vec![Err(error)]));
        Box::pin(stream::once(listed).flat_map(items))
    }

    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        let generation = request.revision.generation;
        self.operate(Op::Invoke, Some(target), Some(generation), self.call(cx, target, request)).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        let effect = async {
            self.closed.store(true, Ordering::SeqCst);
            let mut calls = self.calls.subscribe();
            let drained = calls.wait_for(|count| *count == 0);
            if tokio::time::timeout_at(deadline.into(), drained).await.is_err() {
                let message = "the gateway stopped while the function was running";
                self.kill.kill(Error::new(ErrorKind::Cancelled, message).with_delivery(Delivery::Executed));
            }
            if self.capabilities.scope == function_gateway_core::Scope::PerProcess {
                self.engine.lose_all();
            }
            Ok(())
        };
        self.operate(Op::Shutdown, None, None, effect).await
    }

    async fn scale(&self, _: &CallContext, target: &DriverRef, request: ScaleRequest) -> Result<()> {
        let effect = async {
            if !self.capabilities.scale {
                return Err(self.unsupported("scale"));
            }
            let found = self.engine.change(|state| {
                let slot = state.slots.get_mut(target);
                slot.map(|slot| slot.instances = request.instances).is_some()
            });
            let missing = || Error::new(ErrorKind::NotDeployed, "the engine does not hold this function");
            if found { Ok(()) } else { Err(missing()) }
        };
        self.operate(Op::Scale, Some(target), None, effect).await
    }

    async fn logs<'a>(
        &'a self,
        _: &'a CallContext,
        target: &'a DriverRef,
        query: LogQuery,
    ) -> Result<BoxStream<'a, Result<LogLine>>> {
        let effect = async {
            if !self.capabilities.logs {
                return Err(self.unsupported("logs"));
            }
            let state = self.engine.lock();
            let Some(slot) = state.slots.get(target) else {
                return Err(Error::new(ErrorKind::NotDeployed, "the engine does not hold this function"));
            };
            let tail = query.tail.map_or(usize::MAX, |tail| tail as usize);
            let skipped = slot.log.len().saturating_sub(tail);
            Ok(slot.log.iter().skip(skipped).cloned().map(LogLine::new).map(Ok).collect::<Vec<_>>())
        };
        let lines = self.operate(Op::Logs, Some(target), None, effect).await?;
        Ok(Box::pin(stream::iter(lines)))
    }
}
