//! What is deployed, what runs of it, and the trait that the gateway drives it by.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::{
    BoxStream, CallContext, Delivery, DeployRequest, Deployment, DeploymentStatus, DriverCapabilities, DriverInfo,
    DriverRef, DriverRequest, EngineInfo, Error, ErrorKind, FaasDriver, FunctionId, FunctionSpec, GatewayId,
    Generation, InvokeResponse, ListScope, LogLine, LogQuery, Protocol, Result, Revision, Scope, Violation,
};
use futures_util::{StreamExt as _, stream};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::TaskTracker;

use crate::config::LocalProcessConfig;
use crate::exec::{self, ExecFunction, Place};
use crate::limits::{Cgroup, Limits};
use crate::process::{Hold, Processes, Stop};
use crate::reaper::{self, Mark, Reaper};
use crate::threads::Threads;
use crate::worker::{self, Site, WorkerFunction, WorkerPorts};

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
    threads: Threads,
    deployed: Mutex<HashMap<DriverRef, Arc<Deployed>>>,
    /// Processes until they are reaped, and the tasks that attend to them. Closed by the shutdown.
    running: TaskTracker,
    permits: Option<Arc<Semaphore>>,
    ports: Arc<WorkerPorts>,
    reaper: Arc<Reaper>,
    cgroup: Option<Arc<Cgroup>>,
    /// The gateways whose earlier hosts' processes have been looked for.
    swept: Arc<Mutex<HashSet<GatewayId>>>,
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
    id: FunctionId,
    generation: Generation,
    processes: Arc<Processes>,
    function: Runs,
}

/// How it is executed.
enum Runs {
    Exec(ExecFunction),
    Workers(WorkerFunction),
}

impl Deployed {
    /// Whether its removal has begun. It stays known until its processes have ended, so that a removal that was given
    /// up can be taken up again.
    fn is_removed(&self) -> bool {
        match &self.function {
            Runs::Exec(_) => self.processes.stopped() == Some(Stop::Removed),
            Runs::Workers(workers) => workers.is_stopped(),
        }
    }

    /// Ends what runs: at once, but for the grace that workers have.
    fn remove(&self) {
        match &self.function {
            Runs::Exec(_) => self.processes.stop(Stop::Removed),
            Runs::Workers(workers) => workers.stop(Stop::Removed),
        }
    }

    fn status(&self) -> DeploymentStatus {
        match &self.function {
            Runs::Exec(_) => DeploymentStatus::ready(),
            Runs::Workers(workers) => workers.status(),
        }
    }
}

impl LocalProcess {
    /// A driver whose processes are attended to by the current tokio runtime, which needs its I/O driver enabled.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] outside a runtime, or for a setting that can't be honoured, which it names.
    pub fn new(config: LocalProcessConfig) -> Result<Self> {
        let runtime = Handle::try_current().map_err(|error| {
            let message = "there is no current tokio runtime: give one to `LocalProcess::with_runtime`";
            Error::new(ErrorKind::InvalidArgument, message).with_source(error)
        })?;
        Self::with_runtime(config, runtime)
    }

    /// A driver whose processes are attended to by `runtime`, which needs its I/O driver enabled.
    ///
    /// A connection to a worker that speaks HTTP/1.1 is driven by the runtime whose call has opened it: an answer has to be read while
    /// the runtime of its call is driven.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a setting that can't be honoured, which it names.
    pub fn with_runtime(config: LocalProcessConfig, runtime: Handle) -> Result<Self> {
        config.validate()?;
        let cgroup = config.cgroup.as_deref().map(Cgroup::open).transpose()?.map(Arc::new);
        let mark = Mark::new().map_err(|error| {
            Error::new(ErrorKind::Misconfigured, "/proc does not tell what this driver needs to know")
                .with_source(error)
        })?;
        let threads = Threads::new();
        let permits = config.max_processes.map(|limit| {
            let limit = usize::try_from(limit.get()).unwrap_or(Semaphore::MAX_PERMITS);
            Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)))
        });
        Ok(Self {
            info: DriverInfo::new(
                "local-process",
                "processes on this machine",
                vec![Protocol::exec(), Protocol::http(), Protocol::lambda()],
            ),
            config: Arc::new(config),
            runtime: runtime.clone(),
            threads: threads.clone(),
            deployed: Mutex::default(),
            running: TaskTracker::new(),
            permits,
            ports: Arc::default(),
            reaper: Arc::new(Reaper::new(mark, runtime, threads)),
            cgroup,
            swept: Arc::default(),
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
        Ok(Hold { _permit: self.permit()?, _tracked: tracked })
    }

    fn permit(&self) -> Result<Option<OwnedSemaphorePermit>> {
        permit(self.permits.as_ref(), &self.config)
    }

    /// Ends what earlier hosts of a gateway have left, the first time that it is seen. Blocks on `/proc`.
    fn sweep(&self, gateway: &GatewayId) -> impl FnOnce() + Send + use<> {
        let (swept, gateway) = (Arc::clone(&self.swept), gateway.clone());
        move || {
            if swept.lock().unwrap_or_else(PoisonError::into_inner).insert(gateway.clone()) {
                reaper::sweep(&gateway);
            }
        }
    }

    /// What is to be deployed, with all that is looked up for it. Blocks on the file system.
    fn resolve(&self, request: DeployRequest) -> impl FnOnce() -> Result<Deployed, Vec<Violation>> + Send + use<> {
        let DeployRequest { gateway, revision, secrets, .. } = request;
        let (config, runtime, tasks) = (Arc::clone(&self.config), self.runtime.clone(), self.running.clone());
        let threads = self.threads.clone();
        let (ports, permits) = (Arc::clone(&self.ports), self.permits.clone());
        let (reaper, sweep) = (Arc::clone(&self.reaper), self.sweep(&gateway));
        let limits = Limits::of(&revision.spec, self.cgroup.clone());
        move || {
            sweep();
            let processes = Arc::new(Processes::new(runtime.clone(), reaper, &gateway, limits));
            let (id, generation) = (revision.function, revision.generation);
            let function = if revision.spec.protocol == Protocol::exec() {
                Runs::Exec(ExecFunction::new(&config, revision)?)
            } else {
                let settings = worker::Settings::resolve(&config, &revision.spec)?;
                let (running, own, bounds) = (tasks.clone(), Arc::clone(&processes), Arc::clone(&config));
                let admit = Box::new(move || {
                    let tracked = [running.token(), own.announce()];
                    Ok(Hold { _permit: permit(permits.as_ref(), &bounds)?, _tracked: tracked })
                });
                let site = Site { config, runtime, threads, tasks, ports, processes: Arc::clone(&processes), admit };
                Runs::Workers(WorkerFunction::new(settings, revision, secrets, site))
            };
            Ok(Deployed { gateway, id, generation, processes, function })
        }
    }
}

fn permit(permits: Option<&Arc<Semaphore>>, config: &LocalProcessConfig) -> Result<Option<OwnedSemaphorePermit>> {
    let Some(permits) = permits else { return Ok(None) };
    Arc::clone(permits).try_acquire_owned().map(Some).map_err(|_| {
        let limit = config.max_processes.map_or(0, NonZeroU32::get);
        Error::new(ErrorKind::Unavailable, format!("the limit of {limit} processes at a time is reached"))
            .with_delivery(Delivery::NotSent)
            .with_context("max_processes", limit.to_string())
    })
}

fn not_deployed() -> Error {
    Error::new(ErrorKind::NotDeployed, "the function is not deployed in this process")
}

pub(crate) fn shutting_down() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the driver is shutting down")
}

impl Drop for LocalProcess {
    fn drop(&mut self) {
        for deployed in self.deployed().values() {
            if let Runs::Workers(workers) = &deployed.function {
                workers.drain();
            }
        }
    }
}

#[async_trait]
impl FaasDriver for LocalProcess {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        let [is_exec, is_http, is_lambda] =
            [Protocol::exec(), Protocol::http(), Protocol::lambda()].map(|known| known == *protocol);
        if !(is_exec || is_http || is_lambda) {
            return DriverCapabilities::NONE;
        }
        DriverCapabilities::NONE.with(|caps| {
            caps.scope = Scope::PerProcess;
            caps.process = true;
            caps.env = true;
            caps.secrets_per_call = is_exec;
            caps.secrets_at_deploy = !is_exec;
            caps.streaming = true;
            caps.cancel = !is_http;
            caps.invocation_logs = !is_http;
            caps.logs = !is_exec;
            caps.scale_bounds = !is_exec;
            caps.instance_concurrency = !is_exec;
            caps.readiness_path = is_http;
            caps.memory_limit = true;
            caps.cpu_limit = self.cgroup.is_some();
        })
    }

    async fn probe(&self, _cx: &CallContext) -> Result<EngineInfo> {
        Ok(EngineInfo::new(self.info.kind, env!("CARGO_PKG_VERSION")))
    }

    async fn check(&self, _cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        let (config, spec) = (Arc::clone(&self.config), spec.clone());
        let check = move || match spec.protocol == Protocol::exec() {
            true => ExecFunction::check(&config, &spec),
            false => worker::Settings::resolve(&config, &spec).err().unwrap_or_default(),
        };
        self.threads.blocking(check).await
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        DriverRef::plain(gateway, revision)
    }

    async fn deploy(&self, _cx: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        if self.running.is_closed() {
            return Err(shutting_down());
        }
        let deployed = match self.find(target) {
            Some(deployed) => deployed,
            None => {
                let resolving = self.threads.blocking(self.resolve(request));
                let deployed = Arc::new(resolving.await?.map_err(|violations| {
                    Error::new(ErrorKind::Misconfigured, "the function can't run on this machine")
                        .with_violations(violations)
                })?);
                let mut all = self.deployed();
                // Another call may have been faster, and an earlier deployment may still be on its way out.
                match all.get(target).filter(|current| !current.is_removed()) {
                    Some(current) => Arc::clone(current),
                    None => {
                        all.insert(target.clone(), Arc::clone(&deployed));
                        deployed
                    }
                }
            }
        };
        Ok(match &deployed.function {
            Runs::Exec(_) => DeploymentStatus::ready(),
            Runs::Workers(workers) => workers.deploy().await,
        })
    }

    async fn status(&self, _cx: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        Ok(self.find(target).map_or_else(DeploymentStatus::missing, |deployed| deployed.status()))
    }

    async fn remove(&self, _cx: &CallContext, target: &DriverRef) -> Result<()> {
        let Some(deployed) = self.deployed().get(target).cloned() else { return Ok(()) };
        deployed.remove();
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
            ListScope::Function(gateway, function) => deployed.gateway == *gateway && deployed.id == *function,
            _ => false,
        };
        let mut listed: Vec<_> = self
            .deployed()
            .iter()
            .filter(|(_, deployed)| wanted(deployed))
            .map(|(target, deployed)| {
                Deployment::new(target.clone(), deployed.id, deployed.generation).with_status(deployed.status())
            })
            .collect();
        listed.sort_unstable_by(|a, b| a.target.cmp(&b.target));
        let listed = stream::iter(listed.into_iter().map(Ok));
        let ListScope::All(gateway) = &scope else { return Box::pin(listed) };
        // What a gateway holds is asked for when it starts: a good time to end what its last host could not.
        let sweeping = self.threads.blocking(self.sweep(gateway));
        Box::pin(stream::once(sweeping).filter_map(async |swept| swept.err().map(Err)).chain(listed))
    }

    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        let deployed = self.find(target).ok_or_else(not_deployed)?;
        match &deployed.function {
            Runs::Exec(function) => {
                let hold = self.admit(&deployed)?;
                let place = Place {
                    processes: &deployed.processes,
                    runtime: &self.runtime,
                    threads: &self.threads,
                    tasks: &self.running,
                    hold,
                };
                // Boxed, since it holds more than a call on a worker, which need not have room for it.
                Box::pin(exec::invoke(function, place, cx, request)).await
            }
            Runs::Workers(_) if self.running.is_closed() => Err(shutting_down()),
            Runs::Workers(workers) => workers.invoke(cx, request).await,
        }
    }

    async fn logs<'a>(
        &'a self,
        _cx: &'a CallContext,
        target: &'a DriverRef,
        query: LogQuery,
    ) -> Result<BoxStream<'a, Result<LogLine>>> {
        match &self.find(target).ok_or_else(not_deployed)?.function {
            Runs::Workers(workers) => Ok(workers.logs(&query)),
            Runs::Exec(_) => {
                let message = "a function of the protocol \"exec\" has no log but that of each of its calls";
                Err(Error::new(ErrorKind::Unsupported, message).with_operation("logs"))
            }
        }
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.running.close();
        let ended = self.end_all(deadline).await;
        let reaper = Arc::clone(&self.reaper);
        let rested = self.threads.blocking(move || reaper.rest()).await;
        ended.and(rested)
    }
}

impl LocalProcess {
    async fn end_all(&self, deadline: Instant) -> Result<()> {
        let all: Vec<_> = self.deployed().values().cloned().collect();
        for deployed in &all {
            if let Runs::Workers(workers) = &deployed.function {
                workers.drain();
            }
        }
        if tokio::time::timeout_at(deadline.into(), self.running.wait()).await.is_ok() {
            return Ok(());
        }
        for deployed in all {
            if let Runs::Workers(workers) = &deployed.function {
                workers.stop(Stop::ShutDown);
            }
            deployed.processes.stop(Stop::ShutDown);
        }
        tokio::time::timeout(KILL_GRACE, self.running.wait()).await.map_err(|_| {
            let message = "processes that were killed have not ended";
            Error::new(ErrorKind::Engine, message).with_context("still_running", self.running.len().to_string())
        })
    }
}
