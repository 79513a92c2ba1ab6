//! The trait that the gateway drives the engine by.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use function_gateway_core::forward::Calls;
use function_gateway_core::{
    BoxStream, CallContext, Delivery, DeployRequest, Deployment, DeploymentState, DeploymentStatus, DriverCapabilities,
    DriverInfo, DriverRef, DriverRequest, EngineInfo, Error, ErrorKind, FaasDriver, FunctionSpec, GatewayId,
    InvokeResponse, ListScope, LogLine, LogQuery, Protocol, Result, Revision as Specified, Scope, SecretProvider,
    Violation,
};
use futures_util::stream::{self, StreamExt as _};
use serde_json::Value;

use crate::api::{self, AppliedService, Revision, Service};
use crate::client::{Client, Manage};
use crate::config::KnativeConfig;
use crate::error::{not_deployed, out_of_reach};
use crate::invoke::{self, Addresses, Caller, Callers};
use crate::mapping;
use crate::names::{self, Target};
use crate::watch::{Held, Watches, is_foreign};
use crate::{list, logs, secrets, settings, state};

/// How often a write is begun anew that others have come before. Knative's controllers write to the same objects.
const ATTEMPTS: u32 = 8;
/// How long before, and twice as long before each further time.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How long `remove` waits for Knative to take a change over.
const SETTLED_WITHIN: Duration = Duration::from_secs(10);
/// When it makes sense to ask how far a deployment is, which costs no request.
const POLL: Duration = Duration::from_millis(200);
/// How long a Revision is not read again as long as its Service has not changed.
const FRESH: Duration = Duration::from_secs(5);
/// How many Revisions are kept.
const MAX_KNOWN: usize = 1024;

/// Manages and executes functions on Knative Serving.
///
/// Each function is one Knative Service, each generation of it a Revision of that with a name in its route. What does not bear a
/// gateway's labels it neither lists nor changes. The functions of all processes of a gateway are the same, and stay when one of them
/// shuts down.
///
/// It watches the cluster by tasks of its own, from its first use to its [`shutdown`](FaasDriver::shutdown), so that it has to be used inside a
/// Tokio runtime.
///
/// # Errors
/// Who has failed is told apart: the function (an answer of its own, `function_broken`), the API server, the ingress or Knative's proxies
/// (`unavailable`, `engine`), the time (`deadline_exceeded`). Delivery is `NotSent` only where what has answered says, or could not be
/// connected to, before it has passed a call on.
///
/// # Cancel safety
/// Every operation derives from what the cluster holds what is to be done, so that one that was dropped is finished by the next. Dropping a
/// call closes its connection, which the function may notice; it is not stopped by that (no `cancel`).
pub struct Knative {
    info: DriverInfo,
    config: Arc<KnativeConfig>,
    client: Arc<Client>,
    callers: Callers,
    watches: Watches,
    revisions: Mutex<HashMap<String, Known>>,
    calls: Calls,
}

/// A Revision as it was read.
#[derive(Clone)]
struct Known {
    /// Of the Service that it was read for.
    version: String,
    at: Instant,
    revision: Option<Arc<Revision>>,
}

impl fmt::Debug for Knative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Knative").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Knative {
    /// A driver whose way to the API server needs no secret of the gateway.
    ///
    /// Nothing is sent yet, and no runtime is needed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a setting that can't be honoured, which it names, and for a token: that needs
    /// [`with_secrets`](Self::with_secrets).
    pub fn new(config: KnativeConfig) -> Result<Self> {
        if config.token().is_some() {
            let message = "a token comes from a secret provider: use `Knative::with_secrets`";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Self::build(config, None)
    }

    /// A driver whose token comes from a provider. It is read when it is first needed, and again at each probe and where the API server
    /// no longer takes it.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a setting that can't be honoured, which it names.
    pub fn with_secrets(config: KnativeConfig, secrets: Arc<dyn SecretProvider>) -> Result<Self> {
        Self::build(config, Some(secrets))
    }

    fn build(config: KnativeConfig, secrets: Option<Arc<dyn SecretProvider>>) -> Result<Self> {
        config.validate()?;
        let config = Arc::new(config);
        let addresses = Arc::new(Addresses::new(&config.routing)?);
        let callers = Callers::new(&config, &addresses)?;
        let client = Arc::new(Client::new(Arc::clone(&config), secrets));
        Ok(Self {
            info: DriverInfo::new("knative", "Knative Serving, through the Kubernetes API", vec![Protocol::http()]),
            watches: Watches::new(Arc::clone(&client), addresses, Arc::clone(&config)),
            config,
            client,
            callers,
            revisions: Mutex::default(),
            calls: Calls::default(),
        })
    }

    /// Asks whether the API server is ready (`/readyz`).
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where it is not.
    pub async fn health(&self, _: &CallContext) -> Result<()> {
        let answer = self.client.send(&Manage::get("/readyz")).await?;
        match answer.is_done() {
            true => Ok(()),
            false => Err(answer.error().with_operation("health")),
        }
    }

    /// The Revision of a generation, as it is or was a moment ago.
    async fn revision(&self, held: &Held, target: &Target<'_>) -> Result<Option<Arc<Revision>>> {
        let (name, version) = (target.revision(), &held.service.metadata.resource_version);
        let known = self.revisions.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        if let Some(known) = known.filter(|known| known.version == *version && known.at.elapsed() < FRESH) {
            return Ok(known.revision);
        }
        let revision = self.client.revision(target.namespace, &name).await?.map(Arc::new);
        let mut all = self.revisions.lock().unwrap_or_else(PoisonError::into_inner);
        // They are of use while something is being deployed: those that are, are read again at once.
        if all.len() >= MAX_KNOWN {
            all.clear();
        }
        all.insert(name, Known { version: version.clone(), at: Instant::now(), revision: revision.clone() });
        Ok(revision)
    }

    /// How a generation is that a Service holds.
    async fn status_of(&self, held: &Held, target: &Target<'_>) -> Result<DeploymentStatus> {
        let revision = self.revision(held, target).await?;
        let status = state::status(held, target, revision.as_deref());
        Ok(match status.state {
            DeploymentState::Progressing => status.with_poll_after(POLL),
            _ => status,
        })
    }

    /// Writes a Service, as it was when it was read. What others manage stays theirs, but for what a generation consists of: that they
    /// have changed it is repaired. `None` where others have come before.
    async fn apply(&self, target: &Target<'_>, document: &AppliedService) -> Result<Option<Arc<Held>>> {
        for force in [false, true] {
            let path = api::service(target.namespace, target.service);
            let answer = self.client.send(&Manage::apply(path, document, force)?).await?;
            if answer.is_done() {
                return Ok(Some(self.watches.fold(answer.json()?)));
            }
            let said = answer.said();
            if said.is_field_conflict() && !force {
                tracing::warn!(service = target.service, message = %said.message, "somebody has changed a Service; it is set right");
                continue;
            }
            // One that was deleted since it was read can't be written as it was.
            let is_gone = said.is_not_found()
                && said.details.kind == "services"
                && !document.metadata.resource_version.is_empty();
            if said.is_stale() || is_gone {
                return Ok(None);
            }
            return Err(answer.error());
        }
        Ok(None)
    }

    /// One attempt to have the cluster hold a generation.
    async fn deploy_once(
        &self,
        reference: &DriverRef,
        target: &Target<'_>,
        request: &DeployRequest,
    ) -> Result<Option<Arc<Held>>> {
        let before = self.client.service(target.namespace, target.service).await?;
        if let Some(service) = &before {
            if is_foreign(service, target) {
                return Err(foreign());
            }
            if let Some(error) = being_deleted(service) {
                return Err(error);
            }
            let held = self.watches.fold(service.clone());
            if held.holds(target) {
                // Knative makes the newest Revision by itself; another one is there, or has to become the newest.
                let present = held.newest == target.revision() || self.revision(&held, target).await?.is_some();
                if present {
                    secrets::put(&self.client, target, request, Some(service)).await?;
                    return Ok(Some(held));
                }
            }
        }
        secrets::put(&self.client, target, request, before.as_ref()).await?;
        let document = mapping::with_generation(request, reference, target, &self.config, before.as_ref());
        let Some(held) = self.apply(target, &document).await? else { return Ok(None) };
        if before.is_none() {
            secrets::put(&self.client, target, request, Some(&held.service)).await?;
        }
        Ok(Some(held))
    }

    /// One attempt to have a Service hold a generation no more. Says what is left of it.
    async fn remove_once(&self, target: &Target<'_>) -> Result<Option<Removed>> {
        let service = self.client.service(target.namespace, target.service).await?;
        let Some(service) = service.filter(|service| !is_foreign(service, target)) else {
            return Ok(Some(Removed::All));
        };
        if let Some(error) = being_deleted(&service) {
            return Err(error);
        }
        let others: Vec<_> = mapping::held(&service).into_keys().filter(|held| *held != target.generation).collect();
        if others.is_empty() {
            return self.delete_service(target, &service).await;
        }
        let held = self.watches.fold(service.clone());
        let is_newest = held.newest == target.revision();
        if !is_newest && !mapping::held(&service).contains_key(&target.generation) {
            return Ok(Some(Removed::Generation));
        }
        let mut newest = None;
        if is_newest {
            for generation in others.into_iter().rev() {
                let name = names::revision_name(target.service, generation);
                if let Some(revision) = self.client.revision(target.namespace, &name).await? {
                    newest = Some(mapping::template_of(&revision));
                    break;
                }
            }
            if newest.is_none() {
                // None of the others is there: with them goes the whole, and what is wanted of it is deployed again.
                return self.delete_service(target, &service).await;
            }
        }
        let document = mapping::without_generation(&service, target, newest);
        Ok(self.apply(target, &document).await?.map(|_| Removed::Generation))
    }

    async fn delete_service(&self, target: &Target<'_>, service: &Service) -> Result<Option<Removed>> {
        let meta = &service.metadata;
        let path = api::service(target.namespace, target.service);
        // As it was read: a generation that has come since stays.
        let answer = self.client.send(&Manage::delete(path, Some((&meta.uid, &meta.resource_version)))?).await?;
        let said = answer.said();
        if said.is_stale() {
            return Ok(None);
        }
        if !answer.is_done() && !said.is_not_found() {
            return Err(answer.error());
        }
        self.watches.forget(target.namespace, target.service, &meta.uid);
        // Where the object is answered, and no status, something holds it.
        let left: Option<Service> = answer.json().ok().filter(|_| answer.is_done() && said.kind == "Service");
        match left.as_ref().and_then(being_deleted) {
            Some(error) => Err(error),
            None => Ok(Some(Removed::All)),
        }
    }

    /// Waits until Knative has taken it over that a generation is gone: until then it would make its Revision again.
    async fn settled(&self, target: &Target<'_>) -> Result<()> {
        let waiting = async {
            loop {
                let held = self.watches.ask(target.namespace, target.service).await?;
                if held.is_none_or(|held| held.is_foreign(target) || !held.mentions(target)) {
                    return Ok(());
                }
                self.watches.changed(target.namespace, Duration::from_secs(1)).await;
            }
        };
        tokio::time::timeout(SETTLED_WITHIN, waiting)
            .await
            .unwrap_or_else(|_| Err(out_of_reach("Knative has not taken the removal over yet: is its controller up?")))
    }
}

/// How often a step is begun anew.
struct Attempts {
    left: u32,
    pause: Duration,
}

impl Attempts {
    fn new() -> Self {
        Self { left: ATTEMPTS, pause: FIRST_PAUSE }
    }

    /// Others have come between: waits a little, a few times at most.
    async fn rest(&mut self) -> Result<()> {
        self.left -= 1;
        if self.left == 0 {
            let message = "others change the Service all the time: does another controller fight for its fields?";
            return Err(Error::new(ErrorKind::Conflict, message).with_delivery(Delivery::NotSent));
        }
        tokio::time::sleep(self.pause).await;
        self.pause *= 2;
        Ok(())
    }
}

/// What is left of a Service.
enum Removed {
    /// Nothing.
    All,
    /// Other generations.
    Generation,
}

/// Somebody else's Service bears the name: it is not touched.
fn foreign() -> Error {
    let message = "the cluster holds a Service under this name that does not bear this gateway's labels";
    Error::new(ErrorKind::Engine, message).with_delivery(Delivery::NotSent)
}

/// Why an object that is being deleted is still there.
fn being_deleted(service: &Service) -> Option<Error> {
    service.metadata.deletion_timestamp.as_ref()?;
    let holders = service.metadata.finalizers.join(", ");
    let message = match holders.is_empty() {
        true => "the cluster is still deleting the Service".to_owned(),
        false => format!(
            "the cluster is still deleting the Service, which waits for {holders}: if nobody takes that off, its controller is gone"
        ),
    };
    Some(out_of_reach(message).with_retry_after(Duration::from_secs(1)))
}

#[async_trait]
impl FaasDriver for Knative {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        if *protocol != Protocol::http() {
            return DriverCapabilities::NONE;
        }
        DriverCapabilities::NONE.with(|caps| {
            caps.scope = Scope::Shared;
            caps.image = true;
            caps.env = true;
            caps.secrets_at_deploy = true;
            caps.streaming = true;
            caps.logs = true;
            caps.scale_bounds = true;
            caps.instance_concurrency = true;
            caps.memory_limit = true;
            caps.cpu_limit = true;
            caps.readiness_path = true;
            caps.engine_may_repeat = true;
        })
    }

    /// Asks the API server for its version, and whether it knows Knative Serving.
    async fn probe(&self, _: &CallContext) -> Result<EngineInfo> {
        self.client.refresh();
        let serving = self.client.send(&Manage::get(format!("/apis/{}", api::SERVING))).await?;
        if !serving.is_done() {
            return Err(serving.error().with_operation("probe"));
        }
        let version = self.client.send(&Manage::get("/version")).await?;
        if !version.is_done() {
            return Err(version.error().with_operation("probe"));
        }
        let version: Value = version.json()?;
        let version = version.get("gitVersion").and_then(Value::as_str).unwrap_or("unknown");
        Ok(EngineInfo::new("knative", format!("{} on Kubernetes {version}", api::SERVING)))
    }

    async fn check(&self, _: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        Ok(mapping::check(spec, &self.config))
    }

    fn reference(&self, gateway: &GatewayId, revision: &Specified) -> DriverRef {
        let (is_local, secrets) = (settings::is_local(&revision.spec), mapping::secret_count(&revision.spec));
        names::reference(gateway, revision, &self.config.namespaces, is_local, secrets)
    }

    async fn deploy(&self, _: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        self.calls.check_open()?;
        let (reference, target) = (target, Target::parse(target)?);
        let mut attempts = Attempts::new();
        loop {
            if let Some(held) = self.deploy_once(reference, &target, &request).await? {
                return self.status_of(&held, &target).await;
            }
            attempts.rest().await?;
        }
    }

    async fn status(&self, _: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        let target = Target::parse(target)?;
        let mut held = self.watches.held(target.namespace, target.service).await?;
        if held.as_ref().is_some_and(|held| !held.holds(&target)) {
            held = self.watches.ask(target.namespace, target.service).await?;
        }
        match held.filter(|held| held.holds(&target)) {
            Some(held) => self.status_of(&held, &target).await,
            // What is not as it was deployed is not there: it is deployed again.
            None => Ok(DeploymentStatus::missing()),
        }
    }

    async fn remove(&self, _: &CallContext, target: &DriverRef) -> Result<()> {
        let target = Target::parse(target)?;
        let mut attempts = Attempts::new();
        let left = loop {
            match self.remove_once(&target).await? {
                Some(left) => break left,
                None => attempts.rest().await?,
            }
        };
        if let Removed::Generation = left {
            self.settled(&target).await?;
            self.client.delete(api::revision(target.namespace, &target.revision())).await?;
        }
        self.revisions.lock().unwrap_or_else(PoisonError::into_inner).remove(&target.revision());
        secrets::delete(&self.client, &target).await
    }

    fn list<'a>(&'a self, _: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        let listing = async move { list::all(&self.client, &self.watches, &self.config, &scope).await };
        Box::pin(stream::once(listing).flat_map(|listed| stream::iter(listed.unwrap_or_else(|error| vec![Err(error)]))))
    }

    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        let call = self.calls.begin()?;
        let caller = Caller { callers: &self.callers, watches: &self.watches, config: &self.config, cx };
        invoke::invoke(caller, Target::parse(target)?, request, call).await
    }

    async fn logs<'a>(
        &'a self,
        _: &'a CallContext,
        target: &'a DriverRef,
        query: LogQuery,
    ) -> Result<BoxStream<'a, Result<LogLine>>> {
        let target = Target::parse(target)?;
        let held = self.watches.held(target.namespace, target.service).await?;
        held.filter(|held| held.holds(&target)).ok_or_else(not_deployed)?;
        logs::read(&self.client, target, query).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        let ended = self.calls.shutdown(deadline).await;
        self.watches.shutdown().await;
        ended
    }
}
