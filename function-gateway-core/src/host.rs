//! What a gateway consists of, shared by manager, executor and reconciler.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;
use tracing::instrument::WithSubscriber as _;

use crate::capability::{check_shape, check_spec};
use crate::middleware::Pipeline;
use crate::route::Routes;
use crate::running::RunningCalls;
use crate::worker::Cancellations;
use crate::{
    Action, ApiKeyId, ApiKeyStore, AuditEvent, AuditLog, Authorizer, CallContext, CallbackSender, Clock, Decision,
    DriverRegistry, Error, ErrorKind, FunctionName, FunctionSpec, FunctionStore, GatewayConfig, GatewayId, Generation,
    InvocationId, InvocationQueue, InvocationStore, Middleware, MiddlewareFactory, PrincipalId, Resource, Result,
    Revision, SecretBinding, SecretChain, SecretDelivery, Settings, SpecField, Violation,
};

pub(crate) struct Host {
    pub(crate) config: GatewayConfig,
    pub(crate) gateway_id: GatewayId,
    pub(crate) functions: Arc<dyn FunctionStore>,
    pub(crate) invocations: Arc<dyn InvocationStore>,
    pub(crate) drivers: DriverRegistry,
    pub(crate) middleware: MiddlewareSet,
    pub(crate) secrets: SecretChain,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) audit: Arc<dyn AuditLog>,
    /// Absent where the host keeps no keys.
    pub(crate) keys: Option<Arc<dyn ApiKeyStore>>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) routes: Routes,
    pub(crate) running: RunningCalls,
    /// Absent where the host keeps no queue.
    pub(crate) queue: Option<Arc<dyn InvocationQueue>>,
    pub(crate) callbacks: Option<Arc<dyn CallbackSender>>,
    pub(crate) cancellations: Cancellations,
    pub(crate) lifetime: Lifetime,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("gateway_id", &self.gateway_id)
            .field("drivers", &self.drivers)
            .finish_non_exhaustive()
    }
}

/// The tasks of a gateway, and the two signals that end it: no new work, and no work at all.
#[derive(Debug, Clone)]
pub(crate) struct Lifetime {
    pub(crate) handle: Handle,
    pub(crate) tasks: TaskTracker,
    pub(crate) closing: CancellationToken,
    pub(crate) killed: CancellationToken,
}

impl Lifetime {
    pub(crate) fn new(handle: Handle) -> Self {
        let (closing, killed) = Default::default();
        Self { handle, tasks: TaskTracker::new(), closing, killed }
    }

    /// Starts work that goes on when its caller goes away, and that a shutdown waits for.
    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.tasks.spawn_on(work, &self.handle)
    }

    /// Changes something in a task of its own, so that it comes to its end, and is audited, whether its caller waits or not.
    pub(crate) async fn carry_out<T: Send + 'static>(
        &self,
        change: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.spawn(change.in_current_span().with_current_subscriber()).await.unwrap_or_else(|error| {
            let message = "the change did not come to its end; read what is there";
            Err(Error::new(ErrorKind::Internal, message).with_source(error))
        })
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        // Its tasks are closed with it, which can be seen without a lock.
        if self.tasks.is_closed() {
            return Err(shutting_down());
        }
        Ok(())
    }
}

/// The gateway stops, and does not do this any more.
pub(crate) fn shutting_down() -> Error {
    Error::new(ErrorKind::ShuttingDown, "the gateway is shutting down")
}

impl Host {
    /// Asks the authorizer, and keeps the refusal of a change in the audit log.
    pub(crate) async fn authorize(
        &self,
        cx: &CallContext,
        action: Action,
        function: Option<(&FunctionName, Option<&PrincipalId>)>,
    ) -> Result<()> {
        let resource = match function {
            Some((name, owner)) => Resource::function(cx.tenant(), name, owner),
            None => Resource::tenant(cx.tenant()),
        };
        self.authorize_on(cx, action, resource, None).await
    }

    /// As [`authorize`](Self::authorize), to read an execution: whoever submitted it may, and else whoever may read executions.
    pub(crate) async fn authorize_to_read(
        &self,
        cx: &CallContext,
        is_own: bool,
        function: Option<(&FunctionName, Option<&PrincipalId>)>,
    ) -> Result<()> {
        if is_own {
            match self.authorize(cx, Action::Invoke, function).await {
                Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
                decided => return decided,
            }
        }
        self.authorize(cx, Action::ReadExecutions, function).await
    }

    /// As [`authorize`](Self::authorize), for a change of an API key.
    pub(crate) async fn authorize_key(&self, cx: &CallContext, action: Action, key: ApiKeyId) -> Result<()> {
        self.authorize_on(cx, action, Resource::tenant(cx.tenant()), Some(key)).await
    }

    async fn authorize_on(
        &self,
        cx: &CallContext,
        action: Action,
        resource: Resource<'_>,
        key: Option<ApiKeyId>,
    ) -> Result<()> {
        match self.authorizer.authorize(cx, action, resource).await? {
            Decision::Allow => Ok(()),
            Decision::Deny => {
                if action.is_change() {
                    let mut event = AuditEvent::new(self.clock.now(), cx, action, false);
                    (event.function, event.key) = (resource.function.cloned(), key);
                    // Beside the way of every call, which would carry the room for it.
                    Box::pin(self.audit(event)).await;
                }
                let message = format!("the principal may not do this: {action}");
                Err(Error::new(ErrorKind::PermissionDenied, message))
            }
        }
    }

    /// Keeps a change in the audit log, and tells of it.
    pub(crate) async fn audit_change(
        &self,
        cx: &CallContext,
        action: Action,
        name: &FunctionName,
        generation: Option<Generation>,
    ) {
        self.audit(AuditEvent::new(self.clock.now(), cx, action, true).on(name, generation)).await;
    }

    /// Keeps a change of an execution in the audit log, and tells of it.
    pub(crate) async fn audit_execution(
        &self,
        cx: &CallContext,
        action: Action,
        name: &FunctionName,
        id: InvocationId,
    ) {
        self.audit(AuditEvent::new(self.clock.now(), cx, action, true).on(name, None).on_execution(id)).await;
    }

    /// Keeps a change of something else in the audit log, and tells of it.
    pub(crate) async fn audit_subject(&self, cx: &CallContext, action: Action, subject: &str) {
        self.audit(AuditEvent::new(self.clock.now(), cx, action, true).on_subject(subject)).await;
    }

    /// Keeps a change of an API key in the audit log, or its refusal, and tells of it.
    pub(crate) async fn audit_key(&self, cx: &CallContext, action: Action, key: ApiKeyId, allowed: bool) {
        self.audit(AuditEvent::new(self.clock.now(), cx, action, allowed).on_key(key)).await;
    }

    async fn audit(&self, event: AuditEvent) {
        tracing::info!(
            target: "function_gateway::audit",
            tenant = %event.tenant,
            principal = %event.principal,
            action = %event.action,
            function = event.function.as_ref().map(FunctionName::as_str),
            generation = event.generation.map(Generation::get),
            key = event.key.as_ref().map(tracing::field::display),
            execution = event.execution.as_ref().map(tracing::field::display),
            subject = event.subject.as_deref(),
            allowed = event.allowed,
        );
        if let Err(error) = self.audit.append(event).await {
            tracing::error!(target: "function_gateway::audit", ?error, "an audit event could not be kept");
        }
    }

    /// Everything that is wrong with a specification: by itself, for its driver, and for its middleware.
    pub(crate) async fn violations(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        let Some(driver) = self.drivers.get(&spec.driver) else {
            let reason = format!("no driver is registered as {:?}; there are: {}", spec.driver, self.drivers.names());
            let mut found = vec![Violation::new("/driver", reason)];
            check_shape(spec, &mut found);
            return Ok(found);
        };
        let (info, capabilities) = (driver.info(), driver.capabilities(&spec.protocol));
        let mut claims = self.middleware.claims(spec);
        claims.extend(self.queue.as_ref().map(|_| SpecField::Async));
        let mut found = check_spec(spec, info, &capabilities, &claims);
        self.check_limits(spec, &mut found);
        if let Some(policy) = &spec.async_policy {
            self.check_callbacks(policy, "/async", &mut found);
        }
        let at_deploy = |binding: &SecretBinding| matches!(binding.deliver, SecretDelivery::Env(_));
        if capabilities.secrets_at_deploy && self.secrets.is_empty() && spec.secrets.iter().any(at_deploy) {
            let reason = "the driver hands secrets over at deployment, and this gateway has no provider for that";
            found.push(Violation::new("/secrets", reason));
        }
        self.middleware.admit(spec, &mut found);
        if spec.streaming && found.is_empty() {
            self.check_streaming(spec, &mut found)?;
        }
        if found.is_empty() {
            let check = driver.check(cx, spec);
            found = self.bounded("check", check).await?;
        }
        Ok(found)
    }

    fn check_limits(&self, spec: &FunctionSpec, found: &mut Vec<Violation>) {
        let sizes = [
            ("/limits/max_request_bytes", spec.limits.max_request_bytes, self.config.max_request_bytes),
            ("/limits/max_response_bytes", spec.limits.max_response_bytes, self.config.max_response_bytes),
        ];
        let kept = u64::from(self.config.max_kept_bytes);
        let bounds = [
            ("/record/max_payload_bytes", spec.record.max_payload_bytes.map(u64::from), kept),
            ("/record/max_log_bytes", spec.record.max_log_bytes.map(u64::from), kept),
            ("/limits/max_queued", spec.limits.max_queued.map(u64::from), u64::from(self.config.max_queued)),
        ];
        for (pointer, wanted, allowed) in bounds {
            if wanted.is_some_and(|wanted| wanted > allowed) {
                found.push(Violation::new(pointer, format!("is more than this gateway allows: {allowed}")));
            }
        }
        for (pointer, wanted, allowed) in sizes {
            if !spec.streaming && wanted.is_some_and(|wanted| wanted > allowed) {
                found.push(Violation::new(pointer, format!("is more than this gateway allows: {allowed}")));
            }
        }
    }

    /// A middleware that reads bodies whole can't serve a function that streams.
    fn check_streaming(&self, spec: &FunctionSpec, found: &mut Vec<Violation>) -> Result<()> {
        let probe = Arc::new(Revision::for_check(spec.clone())?);
        if let Some(reader) = self.middleware.pipeline(&probe)?.body_reader() {
            let reason = format!("the middleware {:?} reads bodies whole, so the function can't stream", reader.name());
            found.push(Violation::new("/streaming", reason));
        }
        Ok(())
    }

    /// Bounds one operation of a driver.
    pub(crate) async fn bounded<T>(&self, operation: &'static str, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.within(operation, self.config.driver_timeout, work).await
    }

    pub(crate) async fn within<T>(
        &self,
        operation: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("the driver did not answer within {} ms", limit.as_millis());
                Err(Error::new(ErrorKind::Unavailable, message))
            }
        };
        result.map_err(|error| error.with_operation(operation))
    }
}

/// The middleware of a gateway: what is for all functions, and what a function may choose.
#[derive(Debug, Default)]
pub(crate) struct MiddlewareSet {
    for_all: Vec<Arc<dyn MiddlewareFactory>>,
    by_choice: Vec<Arc<dyn MiddlewareFactory>>,
}

impl MiddlewareSet {
    pub(crate) fn add_for_all(&mut self, factory: Arc<dyn MiddlewareFactory>) {
        self.for_all.push(factory);
    }

    pub(crate) fn add_by_choice(&mut self, factory: Arc<dyn MiddlewareFactory>) {
        self.by_choice.push(factory);
    }

    /// Refuses two of a name to choose from, and two of a stage that holds one.
    pub(crate) fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for factory in &self.by_choice {
            if !names.insert(factory.name()) {
                let message = format!("two middleware are registered as {:?}", factory.name());
                return Err(Error::new(ErrorKind::AlreadyExists, message));
            }
        }
        let mut stages = BTreeSet::new();
        for factory in &self.for_all {
            if factory.stage().is_unique() && !stages.insert(factory.stage()) {
                let message = format!(
                    "the middleware {:?} stands at the stage {:?}, which holds one and is taken",
                    factory.name(),
                    factory.stage()
                );
                return Err(Error::new(ErrorKind::Misconfigured, message));
            }
        }
        Ok(())
    }

    fn chosen<'a>(
        &'a self,
        spec: &'a FunctionSpec,
    ) -> impl Iterator<Item = (usize, &'a Value, Option<&'a Arc<dyn MiddlewareFactory>>)> {
        spec.middleware.iter().enumerate().map(|(position, choice)| {
            let factory = self.by_choice.iter().find(|factory| factory.name() == choice.name);
            (position, &choice.settings, factory)
        })
    }

    fn claims(&self, spec: &FunctionSpec) -> BTreeSet<SpecField> {
        let chosen = self.chosen(spec).filter_map(|(_, _, factory)| factory);
        self.for_all.iter().chain(chosen).flat_map(|factory| factory.claims().iter().copied()).collect()
    }

    fn admit(&self, spec: &FunctionSpec, found: &mut Vec<Violation>) {
        for factory in &self.for_all {
            found.extend(factory.admit(spec, &Settings::none()));
        }
        let mut stages: BTreeSet<_> =
            self.for_all.iter().map(|factory| factory.stage()).filter(|stage| stage.is_unique()).collect();
        for (position, settings, factory) in self.chosen(spec) {
            let at = format!("/middleware/{position}/name");
            let Some(factory) = factory else {
                let known = self.by_choice.iter().map(|factory| factory.name()).collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "none".to_owned() } else { known };
                let name = spec.middleware.get(position).map_or("", |choice| &choice.name);
                found
                    .push(Violation::new(at, format!("there is no middleware {name:?} to choose; there are: {known}")));
                continue;
            };
            let stage = factory.stage();
            if stage.is_unique() && !stages.insert(stage) {
                found.push(Violation::new(at, format!("the stage {stage:?} holds one middleware and is taken")));
            }
            found.extend(factory.admit(spec, &Settings::chosen(settings, position)));
        }
    }

    /// The chain for a revision.
    pub(crate) fn pipeline(&self, revision: &Arc<Revision>) -> Result<Pipeline> {
        let mut chain: Vec<Arc<dyn Middleware>> = Vec::new();
        for factory in &self.for_all {
            chain.extend(factory.build(revision, &Value::Null)?);
        }
        for (position, settings, factory) in self.chosen(&revision.spec) {
            let Some(factory) = factory else {
                let name = revision.spec.middleware.get(position).map_or("", |choice| choice.name.as_str());
                let message = format!("the function chooses the middleware {name:?}, which is no longer registered");
                return Err(Error::new(ErrorKind::Misconfigured, message));
            };
            chain.extend(factory.build(revision, settings)?);
        }
        Pipeline::new(chain)
    }
}

/// Middleware that is the same for every revision.
#[derive(Debug)]
pub(crate) struct Fixed(pub(crate) Arc<dyn Middleware>);

impl MiddlewareFactory for Fixed {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn stage(&self) -> crate::Stage {
        self.0.stage()
    }

    fn claims(&self) -> &[SpecField] {
        self.0.claims()
    }

    fn admit(&self, _: &FunctionSpec, _: &Settings<'_>) -> Vec<Violation> {
        Vec::new()
    }

    fn build(&self, _: &Arc<Revision>, _: &Value) -> Result<Option<Arc<dyn Middleware>>> {
        Ok(Some(Arc::clone(&self.0)))
    }
}
