//! The trait that the gateway drives the engine by.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use function_gateway_core::forward::Calls;
use function_gateway_core::naming::annotation_pointer;
use function_gateway_core::{
    BoxStream, CallContext, Delivery, DeployRequest, Deployment, DeploymentStatus, DriverCapabilities, DriverInfo,
    DriverRef, DriverRequest, EngineInfo, Error, ErrorKind, FaasDriver, FunctionSpec, GatewayId, InvokeResponse,
    ListScope, LogLine, LogQuery, Protocol, Result, Revision, ScaleRequest, Scope, SecretProvider, Violation,
};
use futures_util::stream::{self, StreamExt as _};
use http::{Method, StatusCode};
use serde::Serialize;
use serde_json::Value;

use crate::client::{Client, Manage};
use crate::config::OpenFaasConfig;
use crate::error::of_refused_deployment;
use crate::invoke;
use crate::mapping::{self, FunctionDocument, Held, Provider};
use crate::names::{self, Target};
use crate::settings::Settings;
use crate::{list, logs, secrets};

const FUNCTIONS: &str = "/system/functions";

/// Manages and executes functions on OpenFaaS, through its gateway.
///
/// Each generation of a function is an OpenFaaS function of its own, whose labels say what it is. What a gateway does not find its
/// own labels on it neither lists nor changes. The functions of all processes of a gateway are the same, and stay when one
/// of them shuts down.
///
/// # Errors
/// Who has failed is told apart: the function (an answer of its own, `function_broken`), the engine's gateway or its provider
/// (`unavailable`, `engine`), the time (`deadline_exceeded`). Delivery is `NotSent` only where the engine says, or could not
/// be connected to, before it has passed a call on.
///
/// # Cancel safety
/// Every operation derives from what the engine holds what is to be done, so that one that was dropped is finished by the next.
/// Dropping a call closes its connection, which the function may notice; it is not stopped by that (no `cancel`).
pub struct OpenFaas {
    info: DriverInfo,
    config: Arc<OpenFaasConfig>,
    client: Client,
    provider: AtomicU8,
    queues: AtomicU8,
    calls: Calls,
}

impl fmt::Debug for OpenFaas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFaas")
            .field("config", &self.config)
            .field("provider", &self.provider())
            .finish_non_exhaustive()
    }
}

const UNKNOWN: u8 = 0;
const YES: u8 = 1;
const NO: u8 = 2;

impl OpenFaas {
    /// A driver for an OpenFaaS gateway that is managed without credentials.
    ///
    /// Nothing is sent yet, and no runtime is needed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a setting that can't be honoured, which it names, and for credentials: they need
    /// [`with_secrets`](Self::with_secrets).
    pub fn new(config: OpenFaasConfig) -> Result<Self> {
        if config.needs_secrets() {
            let message = "credentials come from a secret provider: use `OpenFaas::with_secrets`";
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        Self::build(config, None)
    }

    /// A driver whose credentials come from a provider. They are read when they are first needed, and again at each probe
    /// and where the engine no longer takes them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a setting that can't be honoured, which it names.
    pub fn with_secrets(config: OpenFaasConfig, secrets: Arc<dyn SecretProvider>) -> Result<Self> {
        Self::build(config, Some(secrets))
    }

    fn build(config: OpenFaasConfig, secrets: Option<Arc<dyn SecretProvider>>) -> Result<Self> {
        let config = Arc::new(config);
        Ok(Self {
            info: DriverInfo::new("openfaas", "OpenFaaS, through its gateway", vec![Protocol::http()]),
            client: Client::new(Arc::clone(&config), secrets)?,
            config,
            provider: AtomicU8::new(UNKNOWN),
            queues: AtomicU8::new(UNKNOWN),
            calls: Calls::default(),
        })
    }

    /// Asks whether the engine's gateway and its provider are up (`/healthz`), without credentials.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where one of them is not.
    pub async fn health(&self, cx: &CallContext) -> Result<()> {
        self.client.healthz(cx).await.map_err(|error| error.with_operation("health"))
    }

    /// The namespaces that the engine has for functions. Which of them functions may use is
    /// [`OpenFaasConfig::namespaces`].
    ///
    /// # Errors
    /// Where the engine can't tell now.
    pub async fn namespaces(&self, cx: &CallContext) -> Result<Vec<String>> {
        self.client.namespaces(cx).await.map_err(|error| error.with_operation("namespaces"))
    }

    fn provider(&self) -> Provider {
        match self.provider.load(Ordering::Relaxed) {
            YES => Provider::Cluster,
            NO => Provider::Faasd,
            _ => Provider::Unknown,
        }
    }

    /// How a function is, as the engine holds it after it was written.
    async fn written(&self, cx: &CallContext, target: &Target<'_>) -> Result<DeploymentStatus> {
        let held = self.client.function(cx, target).await?;
        Ok(match held.map(|document| (document.held(target), document)) {
            None => DeploymentStatus::progressing("the engine has taken it, and does not show it yet"),
            Some((Held::Intact, document)) => document.status(),
            // faas-netes answers some updates that have failed with a success.
            Some(_) => {
                DeploymentStatus::failed("the engine says that it has taken the function, and shows another one")
            }
        })
    }

    /// What the engine holds at a target and is ours.
    async fn own(&self, cx: &CallContext, target: &Target<'_>) -> Result<Option<FunctionDocument>> {
        let held = self.client.function(cx, target).await?;
        Ok(held.filter(|document| document.held(target) != Held::Foreign))
    }
}

fn not_deployed() -> Error {
    Error::new(ErrorKind::NotDeployed, "the engine does not hold the function")
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Removal<'a> {
    function_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Scaling<'a> {
    service_name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    replicas: u32,
}

#[async_trait]
impl FaasDriver for OpenFaas {
    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn capabilities(&self, protocol: &Protocol) -> DriverCapabilities {
        if *protocol != Protocol::http() {
            return DriverCapabilities::NONE;
        }
        let cluster = self.provider().is_cluster();
        DriverCapabilities::NONE.with(|caps| {
            caps.scope = Scope::Shared;
            caps.image = true;
            caps.env = true;
            caps.secrets_at_deploy = true;
            caps.streaming = true;
            caps.logs = true;
            caps.instance_concurrency = true;
            caps.memory_limit = true;
            caps.readiness_path = true;
            caps.engine_may_repeat = true;
            // faasd runs one replica, and limits memory only.
            caps.scale = cluster;
            caps.scale_bounds = cluster;
            caps.cpu_limit = cluster;
        })
    }

    /// Asks the gateway for its version and its provider (`/system/info`), and whether it queues calls.
    async fn probe(&self, cx: &CallContext) -> Result<EngineInfo> {
        self.client.refresh(cx).await?;
        let answer = self.client.send(cx, Manage::get("/system/info")).await?;
        if answer.status != StatusCode::OK {
            return Err(answer.error().with_operation("probe"));
        }
        let info: Value = answer.json()?;
        let text = |pointer: &str| info.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        // The gateway wraps what its provider says; a provider that is asked itself says only that.
        let wrapped = info.get("provider").is_some_and(|provider| !provider.is_string());
        let (name, orchestration) = match wrapped {
            true => (text("/provider/provider").or_else(|| text("/provider/name")), text("/provider/orchestration")),
            false => (text("/provider"), text("/orchestration")),
        };
        let Some(name) = name else {
            let message = "the engine's gateway does not reach its provider";
            return Err(Error::new(ErrorKind::Unavailable, message)
                .with_delivery(Delivery::NotSent)
                .with_operation("probe"));
        };
        let provider = match Provider::of_orchestration(orchestration.unwrap_or_default()) {
            Provider::Faasd => NO,
            _ => YES,
        };
        self.provider.store(provider, Ordering::Relaxed);
        // The route of the queue takes POST only: 405 says that it is there, without a call that somebody would execute.
        let queue = self.client.send(cx, Manage::get("/async-function/probe")).await?;
        let queues = if queue.status == StatusCode::METHOD_NOT_ALLOWED { YES } else { NO };
        self.queues.store(queues, Ordering::Relaxed);
        let version = text("/version/release").unwrap_or("unknown");
        Ok(EngineInfo::new(format!("openfaas ({name})"), version))
    }

    async fn check(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        let mut found = mapping::check(spec, &self.config, self.provider());
        let (settings, _) = Settings::read(spec, &self.config);
        let mut add = |name: &str, reason: String| {
            found.push(Violation::new(annotation_pointer(&format!("openfaas.com/{name}")), reason));
        };
        if settings.is_async && self.queues.load(Ordering::Relaxed) == NO {
            add("async", "this engine is set up without a queue".to_owned());
        }
        if let Some(namespace) = &settings.namespace {
            let namespaces = self.client.namespaces(cx).await?;
            if !namespaces.contains(namespace) {
                add("namespace", format!("the engine has no namespace {namespace:?}"));
            }
        }
        Ok(found)
    }

    fn reference(&self, gateway: &GatewayId, revision: &Revision) -> DriverRef {
        let (settings, _) = Settings::read(&revision.spec, &self.config);
        let namespace = settings.namespace.as_deref().or(self.config.namespace.as_deref());
        names::reference(gateway, revision, namespace, mapping::secret_count(&revision.spec))
    }

    async fn deploy(&self, cx: &CallContext, target: &DriverRef, request: DeployRequest) -> Result<DeploymentStatus> {
        self.calls.check_open()?;
        let (reference, target) = (target, Target::parse(target)?);
        let held = self.client.function(cx, &target).await?;
        match held.as_ref().map(|document| document.held(&target)) {
            Some(Held::Intact) => return Ok(held.map_or_else(DeploymentStatus::missing, |document| document.status())),
            Some(Held::Foreign) => return Err(foreign()),
            Some(Held::Changed) => {
                tracing::warn!(target = %reference, "somebody has changed a function in the engine; it is made again");
            }
            None => {}
        }
        secrets::put(&self.client, cx, &target, &request.secrets).await?;
        let document = mapping::deployment(&request, reference, &target, &self.config);
        // What somebody has changed becomes again what it was.
        let method = if held.is_some() { Method::PUT } else { Method::POST };
        let write = Manage::new(method, FUNCTIONS).with("namespace", target.namespace).with_json(&document)?;
        let answer = self.client.send(cx, write).await?;
        if answer.is_done() {
            return self.written(cx, &target).await;
        }
        // By its status a duplicate looks like any other error: another process may have been faster.
        if matches!(answer.status.as_u16(), 400 | 409 | 500)
            && let Some(document) = self.client.function(cx, &target).await?
        {
            match document.held(&target) {
                Held::Intact => return Ok(document.status()),
                Held::Foreign => return Err(foreign()),
                Held::Changed => {}
            }
        }
        Err(of_refused_deployment(answer.status, &answer.headers, &answer.text()))
    }

    async fn status(&self, cx: &CallContext, target: &DriverRef) -> Result<DeploymentStatus> {
        let target = Target::parse(target)?;
        let held = self.client.function(cx, &target).await?;
        Ok(match held.map(|document| (document.held(&target), document)) {
            Some((Held::Intact, document)) => document.status(),
            // What is not what was deployed is not there: it is deployed again.
            _ => DeploymentStatus::missing(),
        })
    }

    async fn remove(&self, cx: &CallContext, target: &DriverRef) -> Result<()> {
        let target = Target::parse(target)?;
        if self.own(cx, &target).await?.is_some() {
            // One provider takes the namespace from the query, another from the document.
            let document = Removal { function_name: target.service, namespace: target.namespace };
            let request =
                Manage::new(Method::DELETE, FUNCTIONS).with("namespace", target.namespace).with_json(&document)?;
            let answer = self.client.send(cx, request).await?;
            let gone = answer.is_done() || answer.status == StatusCode::NOT_FOUND;
            if !gone && self.own(cx, &target).await?.is_some() {
                return Err(answer.error());
            }
        }
        secrets::delete(&self.client, cx, &target).await
    }

    fn list<'a>(&'a self, cx: &'a CallContext, scope: ListScope) -> BoxStream<'a, Result<Deployment>> {
        let listing = async move { list::all(&self.client, &self.config, cx, &scope).await };
        Box::pin(stream::once(listing).flat_map(|listed| stream::iter(listed.unwrap_or_else(|error| vec![Err(error)]))))
    }

    async fn invoke(&self, cx: &CallContext, target: &DriverRef, request: DriverRequest) -> Result<InvokeResponse> {
        let call = self.calls.begin()?;
        invoke::invoke(&self.client, cx, Target::parse(target)?, request, call).await
    }

    /// Sets the number of replicas, and reads it back: the Community Edition keeps within 1 and 5 without a word.
    async fn scale(&self, cx: &CallContext, target: &DriverRef, request: ScaleRequest) -> Result<()> {
        let unsupported = |message: String| Error::new(ErrorKind::Unsupported, message).with_operation("scale");
        if !self.provider().is_cluster() {
            return Err(unsupported("the engine's provider runs one replica of each function".to_owned()));
        }
        let target = Target::parse(target)?;
        self.own(cx, &target).await?.ok_or_else(not_deployed)?;
        let document =
            Scaling { service_name: target.service, namespace: target.namespace, replicas: request.instances };
        let path = format!("/system/scale-function/{}", target.service);
        let request = Manage::new(Method::POST, path).with("namespace", target.namespace).with_json(&document)?;
        let answer = self.client.send(cx, request).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(not_deployed());
        }
        if !answer.is_done() {
            return Err(answer.error());
        }
        let set = self.own(cx, &target).await?.ok_or_else(not_deployed)?.replicas;
        if set != u64::from(document.replicas) {
            let message = format!(
                "the engine has set {set} replicas in place of {}: its edition allows no more or no fewer",
                document.replicas
            );
            return Err(unsupported(message).with_context("replicas", set.to_string()));
        }
        Ok(())
    }

    async fn logs<'a>(
        &'a self,
        cx: &'a CallContext,
        target: &'a DriverRef,
        query: LogQuery,
    ) -> Result<BoxStream<'a, Result<LogLine>>> {
        let target = Target::parse(target)?;
        // Of what it does not have the engine tells an empty log, and of what is another's its log.
        self.own(cx, &target).await?.ok_or_else(not_deployed)?;
        logs::read(&self.client, cx, target, query, self.provider()).await
    }

    async fn shutdown(&self, deadline: Instant) -> Result<()> {
        self.calls.shutdown(deadline).await
    }
}

/// Somebody else's function bears the name: it is not touched.
fn foreign() -> Error {
    let message = "the engine holds a function under this name that does not bear this gateway's labels";
    Error::new(ErrorKind::Engine, message).with_delivery(Delivery::NotSent)
}
