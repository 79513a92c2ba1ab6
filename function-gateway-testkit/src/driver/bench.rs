use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use function_gateway_core::{
    Body, CallContext, Deadline, DeployRequest, Deployment, DeploymentState, DriverCapabilities, DriverRef,
    DriverRequest, FaasDriver, FunctionId, FunctionKey, FunctionSpec, GatewayId, Generation, InvocationId,
    InvokeResponse, ListScope, LogSink, Principal, Result, Revision, RevisionReason, SecretVariable, Timestamp,
    TraceParent,
};
use futures_util::StreamExt as _;

use super::{Behaviour, DriverHarness, Skipped};

/// How much of a log or an answer a case reads.
const LIMIT: u64 = 16 * 1024 * 1024;

/// Where a case works: a driver, and a gateway that no other case has.
pub struct Bench {
    pub(super) driver: Arc<dyn FaasDriver>,
    pub(super) gateway: GatewayId,
    harness: Arc<dyn DriverHarness>,
    gateways: Mutex<Vec<GatewayId>>,
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("driver", &self.driver).field("gateway", &self.gateway).finish_non_exhaustive()
    }
}

/// A revision, and what the driver knows it by.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) gateway: GatewayId,
    pub(super) revision: Arc<Revision>,
    pub(super) reference: DriverRef,
    pub(super) secrets: Vec<SecretVariable>,
}

impl Target {
    fn deploy_request(&self) -> DeployRequest {
        let request = DeployRequest::new(self.gateway.clone(), Arc::clone(&self.revision));
        self.secrets.iter().cloned().fold(request, DeployRequest::with_secret)
    }

    pub(super) fn request(&self, body: impl Into<Body>) -> DriverRequest {
        DriverRequest::new(Arc::clone(&self.revision), body, LogSink::detached(64 * 1024))
    }
}

impl Bench {
    /// Asks a harness for its driver, and probes it.
    ///
    /// # Panics
    /// Where the probe fails.
    pub async fn new(harness: Arc<dyn DriverHarness>) -> Self {
        let (driver, gateway) = (harness.driver().await, GatewayId::generate());
        let bench = Self { driver, gateway, harness, gateways: Mutex::default() };
        let probed = bench.driver.probe(&bench.cx()).await;
        probed.unwrap_or_else(|error| panic!("the driver's probe fails: {error:?}"));
        bench
    }

    /// Removes what was deployed, and shuts the driver down.
    pub async fn clean_up(&self) {
        let mut gateways = std::mem::take(&mut *self.gateways.lock().unwrap_or_else(PoisonError::into_inner));
        gateways.push(self.gateway.clone());
        let drivers = [Some(Arc::clone(&self.driver)), self.harness.another_process().await];
        for driver in drivers.into_iter().flatten() {
            for gateway in &gateways {
                let cx = self.cx();
                let listed: Vec<_> = driver.list(&cx, ListScope::All(gateway.clone())).collect().await;
                for deployment in listed.into_iter().flatten() {
                    if let Err(error) = driver.remove(&cx, &deployment.target).await {
                        eprintln!("{:?} could not be removed: {error}", deployment.target);
                    }
                }
            }
            if let Err(error) = driver.shutdown(Instant::now()).await {
                eprintln!("the driver could not be shut down: {error}");
            }
        }
    }

    /// The context of a call, as core gives it to a driver: with an id, a trace and a deadline.
    #[expect(clippy::unwrap_used, reason = "the names are constants that are valid")]
    pub(super) fn cx(&self) -> CallContext {
        let principal = Principal::new("conformance".parse().unwrap(), "suite".parse().unwrap());
        CallContext::new(principal)
            .with_invocation_id(InvocationId::generate())
            .with_trace(TraceParent::root())
            .with_deadline(Deadline::after(self.harness.patience()))
    }

    /// The specification of a function, or why there is none.
    pub(super) fn spec(&self, behaviour: &Behaviour) -> Result<FunctionSpec, Skipped> {
        let missing = || Skipped::because(format!("the harness offers no function that behaves as {behaviour:?}"));
        self.harness.function(behaviour).ok_or_else(missing)
    }

    /// The specification of a function that streams, or why there is none.
    pub(super) fn streaming(&self, behaviour: &Behaviour) -> Result<FunctionSpec, Skipped> {
        let mut spec = self.spec(behaviour)?;
        spec.streaming = true;
        self.need(&spec, "streaming", |caps| caps.streaming)?;
        Ok(spec)
    }

    pub(super) fn capabilities(&self, spec: &FunctionSpec) -> DriverCapabilities {
        self.driver.capabilities(&spec.protocol)
    }

    /// Skips a case that needs a capability which is not declared.
    pub(super) fn need(
        &self,
        spec: &FunctionSpec,
        name: &str,
        declared: impl FnOnce(&DriverCapabilities) -> bool,
    ) -> Result<(), Skipped> {
        if declared(&self.capabilities(spec)) {
            return Ok(());
        }
        Err(Skipped::because(format!("the driver does not declare `{name}` for the protocol {}", spec.protocol)))
    }

    /// The driver of another process, or why there is none.
    pub(super) async fn another_process(&self) -> Result<Arc<dyn FaasDriver>, Skipped> {
        let missing = || Skipped::because("the harness offers no second process");
        let driver = self.harness.another_process().await.ok_or_else(missing)?;
        driver.probe(&self.cx()).await.expect_ok("probe of the other process");
        Ok(driver)
    }

    /// A new function, not deployed yet.
    pub(super) fn target(&self, spec: &FunctionSpec) -> Target {
        self.target_of(&self.gateway, FunctionId::generate(), Generation::FIRST, spec)
    }

    /// The next generation of a function, not deployed yet.
    pub(super) fn next(&self, target: &Target) -> Target {
        let Revision { function, generation, spec, .. } = &*target.revision;
        self.target_of(&target.gateway, *function, generation.next(), spec)
    }

    /// A new function of another gateway, not deployed yet.
    pub(super) fn foreign_target(&self, spec: &FunctionSpec) -> Target {
        let gateway = GatewayId::generate();
        self.gateways.lock().unwrap_or_else(PoisonError::into_inner).push(gateway.clone());
        self.target_of(&gateway, FunctionId::generate(), Generation::FIRST, spec)
    }

    /// A revision of a function.
    #[expect(clippy::unwrap_used, reason = "the names are constants that are valid")]
    pub(super) fn revision(&self, function: FunctionId, generation: Generation, spec: &FunctionSpec) -> Revision {
        let key = FunctionKey::new("conformance".parse().unwrap(), "function".parse().unwrap());
        let created = (Timestamp::now(), "suite".parse().unwrap());
        Revision::new(key, function, generation, spec.clone(), created, RevisionReason::Created)
    }

    fn target_of(
        &self,
        gateway: &GatewayId,
        function: FunctionId,
        generation: Generation,
        spec: &FunctionSpec,
    ) -> Target {
        let revision = self.revision(function, generation, spec);
        let reference = self.driver.reference(gateway, &revision);
        Target { gateway: gateway.clone(), revision: Arc::new(revision), reference, secrets: Vec::new() }
    }

    /// Makes a new function, deploys it, and waits until it is ready.
    pub(super) async fn deployed(&self, spec: &FunctionSpec) -> Target {
        let target = self.target(spec);
        self.deploy(&target).await;
        target
    }

    /// Deploys, and waits until it is ready.
    pub(super) async fn deploy(&self, target: &Target) {
        self.deploy_by(&*self.driver, target).await;
    }

    pub(super) async fn deploy_by(&self, driver: &dyn FaasDriver, target: &Target) {
        self.begin_deploy(driver, target).await.expect_ok("deploy");
        self.ready(driver, target).await;
    }

    /// Deploys without waiting.
    pub(super) async fn begin_deploy(&self, driver: &dyn FaasDriver, target: &Target) -> Result<()> {
        driver.deploy(&self.cx(), &target.reference, target.deploy_request()).await.map(drop)
    }

    /// Waits until a target is ready.
    pub(super) async fn ready(&self, driver: &dyn FaasDriver, target: &Target) {
        self.eventually("the target gets ready", async || {
            let status = driver.status(&self.cx(), &target.reference).await.expect_ok("status");
            let given_up = matches!(status.state, DeploymentState::Failed | DeploymentState::Missing);
            assert!(!given_up, "the target does not get ready: {status:?}");
            status.state == DeploymentState::Ready
        })
        .await;
    }

    pub(super) async fn state(&self, driver: &dyn FaasDriver, target: &Target) -> DeploymentState {
        driver.status(&self.cx(), &target.reference).await.expect_ok("status").state
    }

    /// Removes, and waits until it is gone.
    pub(super) async fn remove(&self, driver: &dyn FaasDriver, target: &Target) {
        driver.remove(&self.cx(), &target.reference).await.expect_ok("remove");
        self.eventually("the target is missing after `remove`", async || {
            self.state(driver, target).await == DeploymentState::Missing
        })
        .await;
    }

    pub(super) async fn list(&self, driver: &dyn FaasDriver, scope: ListScope) -> Vec<Deployment> {
        let cx = self.cx();
        let listed: Vec<_> = driver.list(&cx, scope).collect().await;
        let mut listed: Vec<_> = listed.into_iter().map(|item| item.expect_ok("list")).collect();
        listed.sort_by(|one, two| one.target.cmp(&two.target));
        listed
    }

    pub(super) async fn invoke(&self, target: &Target, request: DriverRequest) -> Result<InvokeResponse> {
        self.driver.invoke(&self.cx(), &target.reference, request).await
    }

    /// Calls a function, and reads its answer whole. It must do what was asked.
    pub(super) async fn answer(&self, target: &Target, body: impl Into<Body>) -> Bytes {
        let response = self.invoke(target, target.request(body)).await.expect_ok("invoke");
        assert!(response.outcome.is_success(), "the function does not do what was asked: {response:?}");
        response.body.collect(LIMIT).await.expect_ok("reading the answer")
    }

    /// Asserts that a function serves.
    pub(super) async fn serves(&self, target: &Target) {
        assert_eq!(&self.answer(target, "ping").await[..], b"ping", "the function does not echo its payload");
    }

    /// Skips a case that has to see which calls run.
    pub(super) async fn need_running(&self, target: &Target) -> Result<(), Skipped> {
        let known = self.harness.running(&target.reference).await;
        known.map(drop).ok_or_else(|| Skipped::because("the harness can't tell which calls are running"))
    }

    /// Waits until the engine is executing so many calls of a target.
    pub(super) async fn runs(&self, target: &Target, count: usize) {
        let what = format!("the engine executes {count} calls");
        self.eventually(&what, async || self.harness.running(&target.reference).await == Some(count)).await;
    }

    /// Waits until something is so.
    pub(super) async fn eventually(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let looking = async {
            while !is_so().await {
                // An engine is another program: there is nothing to wait on but time.
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let patience = self.harness.patience();
        let seen = tokio::time::timeout(patience, looking).await;
        assert!(seen.is_ok(), "it does not come to it within {patience:?} that {what}");
    }
}

/// Takes what must have worked.
pub(super) trait ExpectOk<T> {
    fn expect_ok(self, operation: &str) -> T;
}

impl<T> ExpectOk<T> for Result<T> {
    fn expect_ok(self, operation: &str) -> T {
        self.unwrap_or_else(|error| panic!("{operation} fails: {error:?}"))
    }
}
