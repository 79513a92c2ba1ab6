//! What is deployed, what runs of it, and the trait that the gateway drives it by.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::{
    BoxStream, CallContext, Delivery, DeployRequest, Deployment, DeploymentStatus, DriverCapabilities, DriverInfo,
    DriverRef, DriverRequest, EngineInfo, Error, ErrorKind, FaasDriver, FunctionId, FunctionSpec, GatewayId,
    Generation, InvokeResponse, ListScope, Protocol, Result, Revision, Scope, Violation,
};
use futures_util::stream;
use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::config::LocalProcessConfig;
use crate::exec::{self, ExecFunction, Place};
use crate::process::{self, Hold, Processes, Stop};

/// How long a shutdown waits for processes that it has killed.
const KILL_GRACE: Duration = Duration::from_secs(5);

/// Runs functions as processes on this machine.
///
/// What is deployed lives in this value: another process, or another value, deploys for itself. Only
/// [`shutdown`](FaasDriver::shutdown) waits for running processes; dropping the driver leaves them to their calls.
///
/// The host must neither ignore `SIGCHLD` nor wait for processes that it has not started, since the status of a
/// function's process can be read once.
pub struct LocalProcess {
    info: DriverInfo,
    config: Arc<LocalProcessConfig>,
    runtime: Handle,
    deployed: Mutex<HashMap<DriverRef, Arc<Deployed>>>,
    /// Processes until they are reaped, and the tasks that attend to them. Closed by the shutdown.
    running: TaskTracker,
    permits: Option<Arc<Semaphore>>,
}

impl fmt::Debug for LocalProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalProcess")
            .field("config", &self.config)
            .field("deployed", &self.deployed().len())
            .finish_non_exhaustive()
    }
}

/// One generation of a function, ready to be executed.
struct Deployed {
    gateway: GatewayId,
    function: FunctionId,
    generation: Generation,
    exec: ExecFunction,
    processes: Arc<Processes>,
}

impl Deployed {
    /// Whether its removal has begun. It stays known until its processes have ended, so that a removal that was given
    /// up can be taken up again.
    fn is_removed(&self) -> bool {
        self.processes.stopped() == Some(Stop::Removed)
    }
}

impl LocalProcess {
    /// A driver whose processes are attended to by the current tokio runtime, which needs its I/O driver enabled.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] outside a runtime, or for a search path that is not absolute.
    pub fn new(config: LocalProcessConfig) -> Result<Self> {
        let runtime = Handle::try_current().map_err(|error| {
            let message = "there is no current tokio runtime: give one to `LocalProcess::with_runtime`";
            Error::new(ErrorKind::InvalidArgument, message).with_source(error)
        })?;
        Self::with_runtime(config, runtime)
    }

    /// A driver whose processes are attended to by `runtime`, which needs its I/O driver enabled.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a search path that is not absolute.
    pub fn with_runtime(config: LocalProcessConfig, runtime: Handle) -> Result<Self> {
        config.validate()?;
        let permits = config.max_processes.map(|limit| {
            let limit = usize::try_from(limit.get()).unwrap_or(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)))
        });
        Ok(Self {
            info: DriverInfo::new("local-process", "processes on this machine", vec![Protocol::exec()]),
            config: Arc::new(config),
            runtime,
            deployed: Mutex::default(),
            running: TaskTracker::new(),
            permits,
        })
    }

    fn deployed(&self) -> MutexGuard<'_, HashMap<DriverRef, Arc<Deployed>>> {
        self.deployed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is deployed at a target and not on its way out.
    fn find(&self, target: &DriverRef) -> Option<Arc<Deployed>> {
        self.deployed().get(target).filter(|deployed| !deployed.is_removed()).cloned()
    }

    /// What the process of a new call holds; an error where there is to be no new call.
    fn admit(&self, deployed: &Deployed) -> Result<Hold> {
        // The tokens come first: a shutdown or a removal that is not seen yet then waits for them.
        let tracked = [self.running.token(), deployed.processes.announce()];
        if self.running.is_closed() {
            return Err(shutting_down());
        }
        if deployed.is_removed() {
            return Err(not_deployed());
        }
        let permit = match &self.permits {
            None => None,
            Some(permits) => Some(Arc::clone(permits).try_acquire_owned().map_err(|_| {
                let limit = self.config.max_processes.map_or(0, std::num::NonZeroU32::get);
                Error::new(ErrorKind::Unavailable, format!("the limit of {limit} processes at a time is reached"))
                    .with_delivery(Delivery::NotSent)
                    .with_context("max_processes", limit.to_string())
            })?),
        };
        Ok(Hold { _permit: permit, _tracked: tracked })
    }
}

fn not_deployed() -> Error {
    Error::new(ErrorKind::NotDeployed, "the function is not deployed in this process")
}

fn shutting_down() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the driver is shutting down")
}

#[async_trait]
impl FaasDriver for LocalProcess {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        if *protocol != Protocol::exec() {
            return DriverCapabilities::NONE;
        }
        DriverCapabilities::NONE.with(|caps| {
            caps.scope = Scope::PerProcess;
            caps.process = true;
            caps.env = true;
            caps.secrets_per_call = true;
            caps.streaming = true;
            caps.cancel = true;
            caps.invocation_logs = true;
        })
    }

    async fn probe(&self, _cx: &CallContext) -> Result<EngineInfo> {
        Ok(EngineInfo::new(self.info.kind, env!("CARGO_PKG_VERSION")))
    }

    async fn check(&self, _cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        let (config, spec) = (Arc::clone(&self.config), spec.clone());
        process::blocking(&self.runtime, move || exec::check(&config, &spec)).await
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        DriverRef::plain(gateway, revision)
    }

    async fn deploy(&self, _cx: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        if self.running.is_closed() {
            return Err(shutting_down());
        }
        if self.find(target).is_some() {
            return Ok(DeploymentStatus::ready());
        }
        let (config, revision) = (Arc::clone(&self.config), Arc::clone(&request.revision));
        let resolving = process::blocking(&self.runtime, move || ExecFunction::new(&config, revision));
        let exec = resolving.await?.map_err(|violations| {
            Error::new(ErrorKind::Misconfigured, "the function can't run on this machine").with_violations(violations)
        })?;
        let deployed = Deployed {
            gateway: request.gateway,
            function: request.revision.function,
            generation: request.revision.generation,
            exec,
            processes: Arc::new(Processes::new(self.runtime.clone())),
        };
        let mut all = self.deployed();
        // Another call may have been faster, and an earlier deployment may still be on its way out.
        if all.get(target).is_none_or(|current| current.is_removed()) {
            all.insert(target.clone(), Arc::new(deployed));
        }
        Ok(DeploymentStatus::ready())
    }

    async fn status(&self, _cx: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        Ok(self.find(target).map_or_else(DeploymentStatus::missing, |_| DeploymentStatus::ready()))
    }

    async fn remove(&self, _cx: &CallContext, target: &DriverRef) -> Result<()> {
        let Some(deployed) = self.deployed().get(target).cloned() else { return Ok(()) };
        deployed.processes.stop(Stop::Removed);
        deployed.processes.all_ended().await;
        let mut all = self.deployed();
        if all.get(target).is_some_and(|current| Arc::ptr_eq(current, &deployed)) {
            all.remove(target);
        }
        Ok(())
    }

    fn list<'a>(&'a self, _cx: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        let wanted = |deployed: &Deployed| match &scope {
            _ if deployed.is_removed() => false,
            ListScope::All(gateway) => deployed.gateway == *gateway,
            ListScope::Function(gateway, function) => deployed.gateway == *gateway && deployed.function == *function,
            _ => false,
        };
        let mut listed: Vec<_> = self
            .deployed()
            .iter()
            .filter(|(_, deployed)| wanted(deployed))
            .map(|(target, deployed)| {
                Deployment::new(target.clone(), deployed.function, deployed.generation)
                    .with_status(DeploymentStatus::ready())
            })
            .collect();
        listed.sort_unstable_by(|a, b| a.target.cmp(&b.target));
        Box::pin(stream::iter(listed.into_iter().map(Ok)))
    }

    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        let deployed = self.find(target).ok_or_else(not_deployed)?;
        let hold = self.admit(&deployed)?;
        let place = Place { processes: &deployed.processes, runtime: &self.runtime, tasks: &self.running, hold };
        exec::invoke(&deployed.exec, place, cx, request).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.running.close();
        if tokio::time::timeout_at(deadline.into(), self.running.wait()).await.is_ok() {
            return Ok(());
        }
        let all: Vec<_> = self.deployed().values().cloned().collect();
        for deployed in all {
            deployed.processes.stop(Stop::ShutDown);
        }
        tokio::time::timeout(KILL_GRACE, self.running.wait()).await.map_err(|_| {
            let message = "processes that were killed have not ended";
            Error::new(ErrorKind::Engine, message).with_context("still_running", self.running.len().to_string())
        })
    }
}
