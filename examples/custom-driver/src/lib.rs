//! A driver of your own in one file: [`ClosureDriver`] "runs" Rust closures that the host has registered by name.
//!
//! `docs/writing-a-driver.md` explains it step by step; `tests/conformance.rs` holds it to the promises of a driver.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use function_gateway::{
    BoxStream, CallContext, Cancellation, CustomWorkload, Delivery, DeployRequest, Deployment, DeploymentStatus,
    DriverCapabilities, DriverInfo, DriverName, DriverRef, DriverRequest, EngineInfo, Error, ErrorKind, FaasDriver,
    FunctionFailure, FunctionSpec, GatewayId, InvokeResponse, ListScope, LogSink, Protocol, Result, Revision, Scope,
    Violation, Workload,
};
use futures_util::{FutureExt as _, stream};
use http::StatusCode;
use tokio_util::task::TaskTracker;

/// What a closure is called with.
#[derive(Debug)]
pub struct Call {
    /// The payload.
    pub payload: Bytes,
    /// The environment of the specification, and the secrets.
    pub variables: BTreeMap<String, String>,
    /// The log of this call.
    pub logs: LogSink,
}

/// What a closure makes of a call: its result, or what went wrong in its own words.
type Answer = Pin<Box<dyn Future<Output = Result<Vec<u8>, String>> + Send>>;
type Closure = Arc<dyn Fn(Call) -> Answer + Send + Sync>;

/// The specification of a function that runs the closure of a name.
#[must_use]
pub fn closure(driver: DriverName, name: &str) -> FunctionSpec {
    let run = CustomWorkload::new("closure", serde_json::json!({ "name": name }));
    let mut spec = FunctionSpec::new(driver, run);
    spec.protocol = protocol();
    spec
}

#[expect(clippy::unwrap_used, reason = "the constant is a valid name")]
fn protocol() -> Protocol {
    Protocol::new("closure").unwrap()
}

/// What the "engine" holds of one generation of a function.
#[derive(Clone)]
struct Deployed {
    gateway: GatewayId,
    deployment: Deployment,
    closure: Closure,
    /// Given when the target is removed, or time is up at shutdown.
    stop: Cancellation,
}

/// Runs closures of this process. Dropping a call drops its closure's future; so closures must not block.
pub struct ClosureDriver {
    info: DriverInfo,
    closures: BTreeMap<String, Closure>,
    deployed: Mutex<BTreeMap<DriverRef, Deployed>>,
    /// Every call holds a token of it; closed at shutdown.
    calls: TaskTracker,
}

impl Default for ClosureDriver {
    fn default() -> Self {
        Self::new()
    }
}

impl ClosureDriver {
    /// A driver without a closure.
    #[must_use]
    pub fn new() -> Self {
        Self {
            info: DriverInfo::new("closure", "Rust closures of this process", vec![protocol()]),
            closures: BTreeMap::new(),
            deployed: Mutex::default(),
            calls: TaskTracker::new(),
        }
    }

    /// Registers a closure under the name by which specifications refer to it.
    #[must_use]
    pub fn with_closure<F, Fut>(mut self, name: &str, closure: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Vec<u8>, String>> + Send + 'static,
    {
        self.closures.insert(name.to_owned(), Arc::new(move |call| Box::pin(closure(call))));
        self
    }

    /// How many calls are running.
    #[must_use]
    pub fn running(&self) -> usize {
        self.calls.len()
    }

    fn deployed(&self) -> MutexGuard<'_, BTreeMap<DriverRef, Deployed>> {
        self.deployed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The closure that a specification names, or what is wrong with the specification.
    fn find(&self, spec: &FunctionSpec) -> Result<&Closure, Violation> {
        let Workload::Custom(CustomWorkload { kind, settings, .. }) = &spec.run else {
            return Err(Violation::new("/run", "must be `custom`"));
        };
        if kind != "closure" {
            return Err(Violation::new("/run/custom/kind", "must be `closure`"));
        }
        let known = || self.closures.keys().cloned().collect::<Vec<_>>().join(", ");
        let name = settings.get("name").and_then(serde_json::Value::as_str);
        name.and_then(|name| self.closures.get(name)).ok_or_else(|| {
            let reason = format!("must be the name of a registered closure; there are: {}", known());
            Violation::new("/run/custom/settings/name", reason)
        })
    }
}

impl fmt::Debug for ClosureDriver {
    /// Says which closures there are, never what they were called with.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClosureDriver").field("closures", &self.closures.keys()).finish_non_exhaustive()
    }
}

#[async_trait]
impl FaasDriver for ClosureDriver {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        if !self.info.protocols.contains(protocol) {
            return DriverCapabilities::NONE;
        }
        DriverCapabilities::NONE.with(|caps| {
            // Another process of the gateway has closures of its own, so it deploys for itself.
            caps.scope = Scope::PerProcess;
            caps.custom = true;
            caps.env = true;
            caps.secrets_per_call = true;
            caps.cancel = true;
            caps.invocation_logs = true;
        })
    }

    async fn probe(&self, _: &CallContext) -> Result<EngineInfo> {
        Ok(EngineInfo::new("closures", env!("CARGO_PKG_VERSION")))
    }

    async fn check(&self, _: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        Ok(self.find(spec).err().into_iter().collect())
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        DriverRef::plain(gateway, revision)
    }

    async fn deploy(&self, _: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        if self.calls.is_closed() {
            return Err(shutting_down());
        }
        let closure = self.find(request.spec()).map_err(|violation| Error::invalid_spec(vec![violation]))?;
        let DeployRequest { gateway, revision, .. } = request;
        // Called again for the same target it changes nothing.
        self.deployed().entry(target.clone()).or_insert_with(|| Deployed {
            gateway,
            deployment: Deployment::new(target.clone(), revision.function, revision.generation),
            closure: Arc::clone(closure),
            stop: Cancellation::new(),
        });
        Ok(DeploymentStatus::ready())
    }

    async fn status(&self, _: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        let held = self.deployed().contains_key(target);
        Ok(if held { DeploymentStatus::ready() } else { DeploymentStatus::missing() })
    }

    async fn remove(&self, _: &CallContext, target: &DriverRef) -> Result<()> {
        if let Some(removed) = self.deployed().remove(target) {
            removed.stop.cancel();
        }
        Ok(())
    }

    fn list<'a>(&'a self, _: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        let listed: Vec<_> = self
            .deployed()
            .values()
            .filter(|held| match &scope {
                ListScope::All(gateway) => held.gateway == *gateway,
                ListScope::Function(gateway, id) => held.gateway == *gateway && held.deployment.function == *id,
                _ => false,
            })
            .map(|held| Ok(held.deployment.clone()))
            .collect();
        Box::pin(stream::iter(listed))
    }

    async fn invoke(&self, _: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        // Held until the call has ended or is dropped.
        let _call = self.calls.token();
        if self.calls.is_closed() {
            return Err(shutting_down());
        }
        let held = self.deployed().get(target).cloned();
        let Some(Deployed { closure, stop, .. }) = held else {
            return Err(Error::new(ErrorKind::NotDeployed, "this process has not deployed the function"));
        };
        let DriverRequest { revision, body, secrets, logs, max_response_bytes, .. } = request;
        let mut variables = revision.spec.env.clone();
        for secret in secrets {
            variables.insert(secret.name, secret.secret.expose_str()?.to_owned());
        }
        let payload = body.collect(u64::MAX).await?;
        let answer = AssertUnwindSafe(closure(Call { payload, variables, logs })).catch_unwind();
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(stopped()),
            answer = answer => match answer {
                Ok(Ok(output)) if output.len() as u64 > max_response_bytes => {
                    Err(Error::too_large(ErrorKind::OutputTooLarge, "output", max_response_bytes))
                }
                Ok(Ok(output)) => Ok(InvokeResponse::new(StatusCode::OK, output)),
                // What the function says of its own failure is an answer ...
                Ok(Err(message)) => Ok(InvokeResponse::failed(FunctionFailure::new(message), "")),
                // ... and one that died before it answered is an error.
                Err(_) => Err(Error::new(ErrorKind::FunctionBroken, "the closure panicked")),
            },
        }
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.calls.close();
        // Calls that do not end in time are stopped below.
        let _ = tokio::time::timeout_at(deadline.into(), self.calls.wait()).await;
        for held in std::mem::take(&mut *self.deployed()).into_values() {
            held.stop.cancel();
        }
        Ok(())
    }
}

fn shutting_down() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the driver is shut down")
}

fn stopped() -> Error {
    let message = "the function was removed, or its gateway stopped, while it was running";
    Error::new(ErrorKind::Cancelled, message).with_delivery(Delivery::Executed)
}
