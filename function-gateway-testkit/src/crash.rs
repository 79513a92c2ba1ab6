//! Kills a host at every step of an operation, to show that the next one finishes or undoes what it left.
//!
//! A step is one operation on the store or on a driver. At the step of a [`CrashPlan`], before or after its effect, the
//! operation does not come back, and neither does anything after it: as the host sees the world when it dies. The test
//! then drops the gateway and starts another one over the inner store and the same engine.
//!
//! ```
//! # use std::sync::Arc;
//! # use function_gateway_core::{CallContext, FaasDriver, Principal};
//! use function_gateway_testkit::crash::{CrashDriver, CrashPlan};
//! use function_gateway_testkit::{Engine, ScriptedDriver};
//!
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! # let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
//! let engine = Engine::new();
//! let host = async |plan: CrashPlan| {
//!     let driver = CrashDriver::new(Arc::new(ScriptedDriver::on(&engine)), plan);
//!     driver.probe(&cx).await
//! };
//! let dry = CrashPlan::never();
//! host(dry.clone()).await.unwrap();
//! for plan in CrashPlan::every(dry.steps()) {
//!     plan.run(host(plan.clone())).await;
//!     assert!(plan.has_crashed());
//!     // Start another host here, let it converge, and look at what is left.
//! }
//! # });
//! ```

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::{
    BoxStream, CallContext, DeployRequest, Deployment, DeploymentStatus, DriverCapabilities, DriverInfo, DriverRef,
    DriverRequest, EngineInfo, FaasDriver, Function, FunctionFilter, FunctionId, FunctionKey, FunctionSpec,
    FunctionStatus, FunctionStore, GatewayId, Generation, InvokeResponse, Lease, ListScope, LogLine, LogQuery, Page,
    PageRequest, Protocol, Result, Revision, ScaleRequest, TenantId, Timestamp, Version, Violation,
};
use futures_util::{StreamExt as _, stream};
use tokio::sync::watch;

/// On which side of a step's effect the host dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CrashSide {
    /// The effect does not happen.
    Before,
    /// The effect happens, and its answer is lost.
    After,
}

/// At which step a host dies. Clones are the same plan: wrap the store and all drivers of one host with clones.
#[derive(Clone)]
pub struct CrashPlan(Arc<Inner>);

struct Inner {
    at: Option<(usize, CrashSide)>,
    trace: Mutex<Vec<&'static str>>,
    crashed: watch::Sender<bool>,
}

impl fmt::Debug for CrashPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CrashPlan")
            .field("at", &self.0.at)
            .field("crashed", &self.has_crashed())
            .field("trace", &self.trace())
            .finish()
    }
}

impl CrashPlan {
    fn new(at: Option<(usize, CrashSide)>) -> Self {
        Self(Arc::new(Inner { at, trace: Mutex::default(), crashed: watch::Sender::new(false) }))
    }

    /// The host does not die: its steps are counted.
    #[must_use]
    pub fn never() -> Self {
        Self::new(None)
    }

    /// The host dies at a step, from 1, on one side of its effect.
    #[must_use]
    pub fn at(step: usize, side: CrashSide) -> Self {
        Self::new(Some((step, side)))
    }

    /// A plan for each side of each of so many steps.
    pub fn every(steps: usize) -> impl Iterator<Item = Self> {
        let sides = |step| [CrashSide::Before, CrashSide::After].map(|side| Self::at(step, side));
        (1..=steps).flat_map(sides)
    }

    /// How many steps were begun.
    #[must_use]
    pub fn steps(&self) -> usize {
        self.0.trace.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The steps that were begun, such as `store.create` and `driver.deploy`, in order.
    #[must_use]
    pub fn trace(&self) -> Vec<&'static str> {
        self.0.trace.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the host is dead.
    #[must_use]
    pub fn has_crashed(&self) -> bool {
        *self.0.crashed.borrow()
    }

    /// Waits until the host is dead. Cancel-safe.
    pub async fn crashed(&self) {
        // The sender lives as long as `self`.
        let _ = self.0.crashed.subscribe().wait_for(|crashed| *crashed).await;
    }

    /// Runs what a host does until it is done, or until the host dies: `None`, and what was left of it is dropped.
    pub async fn run<T>(&self, host: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.crashed() => None,
            done = host => Some(done),
        }
    }

    async fn step<T>(&self, name: &'static str, effect: impl Future<Output = T>) -> T {
        let number = {
            let mut trace = self.0.trace.lock().unwrap_or_else(PoisonError::into_inner);
            if !self.has_crashed() {
                trace.push(name);
            }
            trace.len()
        };
        self.die_if(number, CrashSide::Before).await;
        let result = effect.await;
        self.die_if(number, CrashSide::After).await;
        result
    }

    /// Dies here if it is time to, and stays dead.
    async fn die_if(&self, number: usize, side: CrashSide) {
        if self.0.at == Some((number, side)) {
            self.0.crashed.send_replace(true);
        }
        if self.has_crashed() {
            std::future::pending::<()>().await;
        }
    }
}

/// A store as a host sees it that dies by a plan.
#[derive(Debug)]
pub struct CrashStore {
    inner: Arc<dyn FunctionStore>,
    plan: CrashPlan,
}

impl CrashStore {
    /// Wraps a store. What was written survives in it.
    #[must_use]
    pub fn new(inner: Arc<dyn FunctionStore>, plan: CrashPlan) -> Self {
        Self { inner, plan }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl FunctionStore for CrashStore {
    async fn gateway_id(&self) -> Result<GatewayId> {
        self.plan.step("store.gateway_id", self.inner.gateway_id()).await
    }

    async fn create(&self, function: &Function, revision: &Revision) -> Result<()> {
        self.plan.step("store.create", self.inner.create(function, revision)).await
    }

    async fn get(&self, key: &FunctionKey) -> Result<Option<Arc<Function>>> {
        self.plan.step("store.get", self.inner.get(key)).await
    }

    async fn update(
        &self,
        function: &Function,
        expected: Version,
        revision: Option<&Revision>,
    ) -> Result<Arc<Function>> {
        self.plan.step("store.update", self.inner.update(function, expected, revision)).await
    }

    async fn list(
        &self,
        tenant: &TenantId,
        filter: &FunctionFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<Function>>> {
        self.plan.step("store.list", self.inner.list(tenant, filter, page)).await
    }

    async fn revision(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        generation: Generation,
    ) -> Result<Option<Arc<Revision>>> {
        self.plan.step("store.revision", self.inner.revision(tenant, function, generation)).await
    }

    async fn revisions(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        page: &PageRequest,
    ) -> Result<Page<Arc<Revision>>> {
        self.plan.step("store.revisions", self.inner.revisions(tenant, function, page)).await
    }

    async fn acquire_lease(&self, key: &FunctionKey, ttl: Duration) -> Result<Option<Lease>> {
        self.plan.step("store.acquire_lease", self.inner.acquire_lease(key, ttl)).await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        self.plan.step("store.renew_lease", self.inner.renew_lease(lease, ttl)).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.plan.step("store.release_lease", self.inner.release_lease(lease)).await
    }

    async fn update_status(&self, lease: &Lease, expected: Version, status: &FunctionStatus) -> Result<Arc<Function>> {
        self.plan.step("store.update_status", self.inner.update_status(lease, expected, status)).await
    }

    async fn delete(&self, lease: &Lease, expected: Version) -> Result<()> {
        self.plan.step("store.delete", self.inner.delete(lease, expected)).await
    }

    async fn scan_due(&self, now: Timestamp, limit: usize) -> Result<Vec<FunctionKey>> {
        self.plan.step("store.scan_due", self.inner.scan_due(now, limit)).await
    }

    async fn find(&self, id: FunctionId) -> Result<Option<Arc<Function>>> {
        self.plan.step("store.find", self.inner.find(id)).await
    }

    async fn scan_all(&self, page: &PageRequest) -> Result<Page<Arc<Function>>> {
        self.plan.step("store.scan_all", self.inner.scan_all(page)).await
    }
}

/// A driver as a host sees it that dies by a plan.
#[derive(Debug)]
pub struct CrashDriver {
    inner: Arc<dyn FaasDriver>,
    plan: CrashPlan,
}

impl CrashDriver {
    /// Wraps a driver. What was deployed survives in its engine.
    #[must_use]
    pub fn new(inner: Arc<dyn FaasDriver>, plan: CrashPlan) -> Self {
        Self { inner, plan }
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl FaasDriver for CrashDriver {
    fn info(&self) -> &DriverInfo {
        self.inner.info()
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        self.inner.capabilities(protocol)
    }

    async fn probe(&self, cx: &CallContext) -> Result<EngineInfo> {
        self.plan.step("driver.probe", self.inner.probe(cx)).await
    }

    async fn check(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        self.plan.step("driver.check", self.inner.check(cx, spec)).await
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        self.inner.reference(gateway, revision)
    }

    async fn deploy(&self, cx: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        self.plan.step("driver.deploy", self.inner.deploy(cx, target, request)).await
    }

    async fn status(&self, cx: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        self.plan.step("driver.status", self.inner.status(cx, target)).await
    }

    async fn remove(&self, cx: &CallContext, target: &DriverRef) -> Result<()> {
        self.plan.step("driver.remove", self.inner.remove(cx, target)).await
    }

    /// A list is one step: it is read whole before its first item is given.
    fn list<'a>(&'a self, cx: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        let listed = async move {
            let items: Vec<_> = self.plan.step("driver.list", self.inner.list(cx, scope).collect()).await;
            stream::iter(items)
        };
        Box::pin(stream::once(listed).flatten())
    }

    /// A call is one step, up to the start of its answer's body.
    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        self.plan.step("driver.invoke", self.inner.invoke(cx, target, request)).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.plan.step("driver.shutdown", self.inner.shutdown(deadline)).await
    }

    async fn scale(&self, cx: &CallContext, target: &DriverRef, request: ScaleRequest) -> Result<()> {
        self.plan.step("driver.scale", self.inner.scale(cx, target, request)).await
    }

    async fn logs<'a>(
        &'a self,
        cx: &'a CallContext,
        target: &'a DriverRef,
        query: LogQuery,
    ) -> Result<BoxStream<'a, Result<LogLine>>> {
        self.plan.step("driver.logs", self.inner.logs(cx, target, query)).await
    }
}

#[cfg(test)]
mod tests {
    use function_gateway_core::Principal;

    use super::*;
    use crate::{Engine, Op, ScriptedDriver};

    #[tokio::test]
    async fn a_host_dies_on_each_side_of_each_step() {
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let target = DriverRef::new("x");
        let host = async |engine: &Engine, plan: CrashPlan| {
            let driver = CrashDriver::new(Arc::new(ScriptedDriver::on(engine)), plan);
            driver.probe(&cx).await.unwrap();
            driver.remove(&cx, &target).await.unwrap();
        };
        let dry = CrashPlan::never();
        assert!(dry.run(host(&Engine::new(), dry.clone())).await.is_some());
        assert_eq!(dry.trace(), ["driver.probe", "driver.remove"]);

        let mut effects = Vec::new();
        for plan in CrashPlan::every(dry.steps()) {
            let engine = Engine::new();
            assert!(plan.run(host(&engine, plan.clone())).await.is_none());
            assert!(plan.has_crashed());
            effects.push((plan.steps(), engine.count(Op::Probe), engine.count(Op::Remove)));
        }
        assert_eq!(effects, [(1, 0, 0), (1, 1, 0), (2, 1, 0), (2, 1, 1)]);
    }

    #[tokio::test]
    async fn a_dead_host_does_nothing_more() {
        let cx = CallContext::new(Principal::new("acme".parse().unwrap(), "ada".parse().unwrap()));
        let engine = Engine::new();
        let plan = CrashPlan::at(1, CrashSide::Before);
        let driver = CrashDriver::new(Arc::new(ScriptedDriver::on(&engine)), plan.clone());
        assert!(plan.run(driver.probe(&cx)).await.is_none());
        assert!(futures_util::poll!(driver.probe(&cx)).is_pending());
        assert!(engine.journal().is_empty());
        assert_eq!(plan.steps(), 1);
    }
}
