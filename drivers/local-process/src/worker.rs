//! Long-lived processes that take one call after the other: what the protocols `http` and `lambda` have in common.

mod call;
mod http;
mod lambda;
mod listen;
mod log;
mod pool;
mod sockets;

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use ::http::Version;
use function_gateway_core::{
    BoxStream, CallContext, Delivery, DeploymentStatus, DriverRequest, Error, ErrorKind, FunctionSpec, InvokeResponse,
    LogLine, LogQuery, Protocol, Result, Retry, Revision, SecretVariable, Violation,
};
use futures_util::future::Either;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::LocalProcessConfig;
use crate::error;
use crate::identity::Identity;
use crate::limits;
use crate::process::{self, Group, Hold, Input, Process, Processes, Started, Stop};
use crate::program::Program;
use crate::settings::{Annotations, check_variables};
use crate::threads::Threads;
use http::Client;
use lambda::{Listening, RuntimeApi};
use listen::{Listen, Place, Ports};
use log::{FunctionLog, WorkerLog};
use pool::{Bounds, Condition, Member, Pool, Seat, Starting};

pub(crate) use listen::Ports as WorkerPorts;

/// Calls at a time on a worker of the protocol `http`, unless the specification says otherwise.
const HTTP_CONCURRENCY: u32 = 100;
/// How long a deployment waits for its first worker before it says that it is under way.
const WARM: Duration = Duration::from_secs(2);
/// How long a worker that may hang has to answer its readiness path.
const HEALTH: Duration = Duration::from_secs(5);
/// When to ask again for a deployment that is under way.
const POLL: Duration = Duration::from_millis(100);

/// What a specification asks of its workers, with all that was looked up for it.
#[derive(Debug)]
pub(crate) struct Settings {
    program: Arc<Program>,
    speaks: Speaks,
    bounds: Bounds,
}

/// How workers are spoken to.
#[derive(Debug)]
enum Speaks {
    /// They are servers.
    Http { listen: Listen, version: Version },
    /// They ask for their calls.
    Lambda,
}

impl Speaks {
    fn of(spec: &FunctionSpec, annotations: &mut Annotations<'_>) -> Self {
        if spec.protocol == Protocol::lambda() {
            return Self::Lambda;
        }
        Self::Http { listen: Listen::of(annotations), version: version(annotations) }
    }

    /// The variables that the driver sets beside the reserved ones.
    fn variables(&self) -> Vec<&str> {
        match self {
            Self::Http { listen, .. } => vec![&listen.variable],
            Self::Lambda => lambda::VARIABLES.to_vec(),
        }
    }

    /// Calls at a time on one worker, as far as it is said.
    fn concurrency(&self, said: Option<u32>, found: &mut Vec<Violation>) -> u32 {
        match self {
            Self::Http { .. } => said.unwrap_or(HTTP_CONCURRENCY),
            Self::Lambda => {
                if said.is_some_and(|each| each != 1) {
                    let reason = "a worker of the protocol \"lambda\" takes 1 call at a time";
                    found.push(Violation::new("/scale/instance_concurrency", reason));
                }
                1
            }
        }
    }
}

impl Settings {
    /// Checks everything about a specification and finds its program. Blocks on the file system.
    pub(crate) fn resolve(config: &LocalProcessConfig, spec: &FunctionSpec) -> Result<Self, Vec<Violation>> {
        let mut found = Vec::new();
        let mut annotations = Annotations::of(spec);
        let speaks = Speaks::of(spec, &mut annotations);
        let idle = annotations.millis("idle-timeout-ms").unwrap_or(config.idle_timeout);
        let identity = Identity::of(&mut annotations);
        found.extend(annotations.finish());
        check_variables(spec, &speaks.variables(), &mut found);
        let program = Program::of(spec, identity, &config.search_path, &mut found);
        let scale = spec.scale.clone().unwrap_or_default();
        let min = scale.min.unwrap_or(0);
        let bounds = Bounds {
            min: count(min),
            max: count(scale.max.unwrap_or(config.max_workers.get()).max(min)),
            each: count(speaks.concurrency(scale.instance_concurrency, &mut found)),
            idle,
        };
        match program {
            Some(program) if found.is_empty() => Ok(Self { program: Arc::new(program), speaks, bounds }),
            _ => Err(found),
        }
    }
}

fn count(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn version(annotations: &mut Annotations<'_>) -> Version {
    match annotations.get("http-version") {
        None | Some("1.1") => Version::HTTP_11,
        Some("2") => Version::HTTP_2,
        Some(_) => {
            annotations.refuse("http-version", "is neither \"1.1\" nor \"2\" (without TLS, with prior knowledge)");
            Version::HTTP_11
        }
    }
}

/// What the driver gives to a function's workers.
pub(crate) struct Site {
    pub(crate) config: Arc<LocalProcessConfig>,
    pub(crate) runtime: Handle,
    pub(crate) threads: Threads,
    /// Everything that has to end before the driver is shut down.
    pub(crate) tasks: TaskTracker,
    pub(crate) ports: Arc<Ports>,
    pub(crate) processes: Arc<Processes>,
    /// What the process of a new worker holds.
    pub(crate) admit: Box<dyn Fn() -> Result<Hold> + Send + Sync>,
}

/// A function that is executed by workers.
#[derive(Debug)]
pub(crate) struct WorkerFunction {
    settings: Arc<Settings>,
    pool: Pool<Worker>,
    log: Arc<FunctionLog>,
    runtime: Handle,
}

impl WorkerFunction {
    pub(crate) fn new(settings: Settings, revision: Arc<Revision>, secrets: Vec<SecretVariable>, site: Site) -> Self {
        let settings = Arc::new(settings);
        let log = Arc::new(FunctionLog::new(site.config.log_bytes));
        let (runtime, tasks) = (site.runtime.clone(), site.tasks.clone());
        let launcher =
            Arc::new(Launcher { settings: Arc::clone(&settings), revision, secrets, site, log: Arc::clone(&log) });
        let start = move || -> Starting<Worker> { Box::pin(Arc::clone(&launcher).launch()) };
        let pool = Pool::new(settings.bounds, runtime.clone(), tasks, start);
        Self { settings, pool, log, runtime }
    }

    /// Starts the first worker, if there is none, and says how far it is.
    pub(crate) async fn deploy(&self) -> DeploymentStatus {
        self.pool.warm(WARM).await;
        self.status()
    }

    pub(crate) fn status(&self) -> DeploymentStatus {
        match self.pool.condition() {
            Condition::Ready { idle } => DeploymentStatus::ready().with_idle(idle),
            Condition::Failed(error) => DeploymentStatus::failed(error.to_string()),
            Condition::Starting(None) => {
                DeploymentStatus::progressing("the first worker is starting").with_poll_after(POLL)
            }
            Condition::Starting(Some(error)) => {
                let message = format!("the first worker could not be started, and is tried again: {error}");
                DeploymentStatus::progressing(message).with_poll_after(POLL)
            }
        }
    }

    pub(crate) fn invoke<'a>(
        &'a self,
        cx: &'a CallContext,
        request: DriverRequest,
    ) -> impl Future<Output = Result<InvokeResponse>> + Send + 'a {
        match self.settings.speaks {
            Speaks::Http { version, .. } => {
                let alone = self.settings.bounds.each == 1;
                Either::Left(call::invoke(&self.pool, (version, alone), cx, request))
            }
            Speaks::Lambda => Either::Right(Box::pin(lambda::invoke(&self.pool, cx, request))),
        }
    }

    pub(crate) fn logs(&self, query: &LogQuery) -> BoxStream<'static, Result<LogLine>> {
        Box::pin(Arc::clone(&self.log).read(query))
    }

    /// Lets calls come to their end, and ends workers that have none.
    pub(crate) fn drain(&self) {
        self.pool.drain();
    }

    /// Ends calls at once, and asks workers to end.
    pub(crate) fn stop(&self, reason: Stop) {
        self.pool.stop(&reason.error());
        // Its last words are part of the log.
        let (gone, log) = (self.pool.gone(), Arc::clone(&self.log));
        self.runtime.spawn(async move {
            gone.await;
            log.close();
        });
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.pool.is_stopped()
    }
}

/// Starts the workers of a function.
struct Launcher {
    settings: Arc<Settings>,
    revision: Arc<Revision>,
    secrets: Vec<SecretVariable>,
    site: Site,
    log: Arc<FunctionLog>,
}

impl Launcher {
    /// Starts a worker and waits until it is ready. Dropping the future kills it.
    async fn launch(self: Arc<Self>) -> Result<Arc<Worker>> {
        let hold = (self.site.admit)()?;
        let this = Arc::clone(&self);
        let starting = self.site.threads.blocking(move || this.start(hold));
        let starting = starting.await??;
        let worker = Arc::clone(&starting.0);
        let waiting_for = Mutex::new(Cow::Borrowed("to start"));
        let ready = async {
            match &worker.link {
                Link::Http(client) => {
                    let path = self.revision.spec.readiness_path.as_deref();
                    listen::ready(client, path, worker.group.leader(), &self.site.threads, &waiting_for).await
                }
                Link::Lambda(api) => api.ready().await,
            }
        };
        let failed = tokio::select! {
            // A worker that has ended says more than what was seen of it.
            biased;
            how = worker.ended() => match worker.link.said() {
                Some(error) => error,
                None => return Err(how),
            },
            result = ready => match result {
                Ok(()) => return Ok(starting.ready()),
                Err(error) => error,
            },
            () = tokio::time::sleep(self.site.config.start_timeout) => {
                let waited = waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
                self.too_late(&worker, &waited).await
            }
        };
        worker.group.kill();
        worker.ended().await;
        Err(worker.told(failed).with_delivery(Delivery::NotSent))
    }

    async fn too_late(&self, worker: &Worker, waited: &str) -> Error {
        let given = self.site.config.start_timeout;
        let message = match (&worker.link, &self.settings.speaks) {
            (Link::Http(client), Speaks::Http { listen, .. }) => {
                let (address, variable) = (client.address(), &listen.variable);
                let told = format!(
                    "the worker was given {given:?} {waited} on {address}, where the variable {variable} sends it"
                );
                let leader = worker.group.leader();
                let elsewhere = self.site.threads.blocking(move || listen::elsewhere(leader)).await;
                match elsewhere.ok().flatten() {
                    Some(addresses) => format!("{told}; it listens on {addresses}"),
                    None => told,
                }
            }
            (Link::Lambda(api), _) => {
                let address = api.address();
                format!(
                    "the worker was given {given:?} to ask for its first invocation at {address}, where the variable \
                     AWS_LAMBDA_RUNTIME_API sends it"
                )
            }
            (Link::Http(_), Speaks::Lambda) => return not_the_protocol(),
        };
        Error::new(ErrorKind::FunctionBroken, message).with_retry(Retry::Transient)
    }

    /// Blocks until the program is loaded.
    fn start(&self, hold: Hold) -> Result<Unready> {
        let Site { config, runtime, threads, ports, processes, tasks, .. } = &self.site;
        let unsent = |error| error::of_io(error, Delivery::NotSent);
        let (address, variables) = match &self.settings.speaks {
            Speaks::Http { listen, version } => {
                let place =
                    listen.place(ports, &config.socket_folder, self.settings.program.identity).map_err(unsent)?;
                let variables = vec![(listen.variable.as_str(), place.value.clone())];
                (Address::Http(place, *version), variables)
            }
            Speaks::Lambda => {
                let listening = Listening::bind().map_err(unsent)?;
                let values = lambda::variables(listening.address(), &self.revision);
                (Address::Lambda(listening), lambda::VARIABLES.into_iter().zip(values).collect())
            }
        };
        let command = self.command(variables)?;
        let input = Input::new(&mut bytes::Bytes::new(), false)?;
        let started = process::start(command, input, processes, runtime, hold);
        let Started { process, stdout, stderr, .. } = started.map_err(|error| self.settings.program.explain(error))?;
        let group = Arc::clone(process.group());
        let instance = group.leader().as_raw_nonzero().to_string();
        let (link, place) = match address {
            Address::Http(place, version) => {
                let client = Client::new(place.address.clone(), version, runtime.clone(), self.settings.bounds.each);
                (Link::Http(Arc::new(client)), Some(place))
            }
            Address::Lambda(listening) => {
                let api = listening.serve(group.leader(), runtime, threads, tasks).map_err(unsent)?;
                (Link::Lambda(api), None)
            }
        };
        let worker = Arc::new(Worker {
            link,
            log: WorkerLog::new(Arc::clone(&self.log), &instance, [stdout, stderr]),
            group,
            readiness_path: self.revision.spec.readiness_path.clone(),
            ready: OnceLock::new(),
            suspected: AtomicBool::new(false),
            retire: CancellationToken::new(),
            end: OnceLock::new(),
            over: CancellationToken::new(),
            _place: place,
        });
        tasks.spawn_on(Arc::clone(&worker).attend(process, config.stop_grace), runtime);
        Ok(Unready(worker))
    }

    /// The command, with the variables that say how the worker is spoken to.
    fn command(&self, variables: Vec<(&str, String)>) -> Result<Command> {
        let spec = &self.revision.spec;
        let mut command = self.settings.program.command();
        command.envs(&spec.env);
        for SecretVariable { name, secret, .. } in &self.secrets {
            if secret.expose().contains(&0) {
                let error = Error::new(ErrorKind::Misconfigured, "a secret with a NUL byte can't be a variable");
                return Err(error.with_context("variable", name));
            }
            command.env(name, OsStr::from_bytes(secret.expose()));
        }
        command.env("FUNCTION_NAME", self.revision.key.name.as_str());
        command.env("FUNCTION_TENANT", self.revision.key.tenant.as_str());
        command.env("FUNCTION_GENERATION", self.revision.generation.to_string());
        command.envs(variables);
        Ok(command)
    }
}

/// Where a worker that is about to start will be spoken to.
enum Address {
    Http(Place, Version),
    Lambda(Listening),
}

/// How one worker is spoken to.
enum Link {
    Http(Arc<Client>),
    Lambda(RuntimeApi),
}

impl Link {
    /// What the worker has said itself of why it can't start.
    fn said(&self) -> Option<Error> {
        match self {
            Self::Http(_) => None,
            Self::Lambda(api) => api.init_error(),
        }
    }

    /// The worker has ended.
    fn close(&self) {
        if let Self::Lambda(api) = self {
            api.close();
        }
    }
}

/// A worker on its way: dropping it kills it.
struct Unready(Arc<Worker>);

impl Unready {
    fn ready(self) -> Arc<Worker> {
        // Only the first word counts, and this is it.
        let _ = self.0.ready.set(());
        Arc::clone(&self.0)
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        if self.0.ready.get().is_none() {
            self.0.group.kill();
        }
    }
}

/// A process that takes calls.
pub(crate) struct Worker {
    link: Link,
    log: WorkerLog,
    group: Arc<Group>,
    readiness_path: Option<String>,
    ready: OnceLock<()>,
    /// Whether it is just being asked if it is well.
    suspected: AtomicBool,
    retire: CancellationToken,
    /// How it ended, once it has.
    end: OnceLock<Error>,
    over: CancellationToken,
    /// Where it listens.
    _place: Option<Place>,
}

impl Worker {
    /// Reads its log and waits for its end, which it brings about where it is asked to.
    async fn attend(self: Arc<Self>, process: Process, grace: Duration) {
        let ending = async {
            tokio::select! {
                status = self.group.ended() => status,
                () = self.retire.cancelled() => {
                    self.group.terminate();
                    match tokio::time::timeout(grace, self.group.ended()).await {
                        Ok(status) => status,
                        Err(_) => {
                            self.group.kill();
                            self.group.ended().await
                        }
                    }
                }
            }
        };
        let mut ending = std::pin::pin!(ending);
        let status = tokio::select! {
            status = &mut ending => status,
            () = self.log.pump() => ending.await,
        };
        drop(process);
        self.log.finish();
        self.link.close();
        let error = match (status, self.group.stopped()) {
            (_, Some(stop)) => stop.error(),
            (Ok(status), None) => {
                self.told(how_it_ended(status, self.group.out_of_memory(), self.ready.get().is_some()))
            }
            (Err(error), None) => error::of_io(error, Delivery::Unknown),
        };
        self.end.get_or_init(|| error.with_delivery(Delivery::NotSent));
        self.over.cancel();
    }

    /// A call on it was given up: it may hang. One that has a readiness path and no longer answers it is replaced.
    fn suspect(self: &Arc<Self>, client: &Arc<Client>, seat: Seat<Self>, runtime: &Handle) {
        if self.readiness_path.is_none() || self.suspected.swap(true, Ordering::Relaxed) {
            return;
        }
        let (worker, client) = (Arc::clone(self), Arc::clone(client));
        runtime.spawn(async move {
            let path = worker.readiness_path.as_deref().unwrap_or("/");
            let asked = tokio::time::timeout(HEALTH, client.probe(path));
            let answer = worker.over.run_until_cancelled(asked).await;
            worker.suspected.store(false, Ordering::Relaxed);
            if !matches!(answer, Some(Ok(Ok(status))) if status.is_success()) {
                seat.spoil();
            }
        });
    }

    /// Adds its last words to an error.
    fn told(&self, error: Error) -> Error {
        let error = error.with_context("worker", self.log.instance());
        match self.log.tail() {
            tail if tail.is_empty() => error,
            tail => error.with_context("log", tail),
        }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("instance", &self.log.instance()).finish_non_exhaustive()
    }
}

impl Member for Worker {
    fn retire(&self) {
        self.retire.cancel();
    }

    async fn ended(&self) -> Error {
        self.over.cancelled().await;
        self.end.get().cloned().unwrap_or_else(crate::driver::shutting_down)
    }
}

/// A worker is only ever in a pool of its own protocol.
fn not_the_protocol() -> Error {
    Error::new(ErrorKind::Internal, "a worker of another protocol was asked").with_delivery(Delivery::NotSent)
}

fn how_it_ended(status: ExitStatus, out_of_memory: Option<u64>, was_ready: bool) -> Error {
    let how = match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit status {code}"),
        (None, Some(signal)) => match out_of_memory {
            Some(bytes) => format!("was {}", limits::killed_for_memory(bytes)),
            None => format!("ended by signal {signal}"),
        },
        (None, None) => format!("ended: {status}"),
    };
    let when = if was_ready { "" } else { " before it was ready" };
    Error::new(ErrorKind::FunctionBroken, format!("the worker {how}{when}")).with_retry(Retry::Transient)
}
