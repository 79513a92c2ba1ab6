//! The handle that a host holds, and how it is put together.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::host::{Fixed, Host, Lifetime, MiddlewareSet};
use crate::layers::{AttemptTimeout, Authorize, Limit, Observe, Overall, Record, Retrying};
use crate::reconcile::{Reconciled, Swept};
use crate::route::Routes;
use crate::running::RunningCalls;
use crate::store::memory::MemoryStore;
use crate::worker::Cancellations;
use crate::{
    Action, AllowWithinTenant, ApiKeyStore, AuditLog, Authorizer, CallContext, CallbackSender, Clock, Deadline,
    DriverName, DriverRegistry, Error, ErrorKind, FaasDriver, FunctionKey, FunctionStore, GatewayConfig, GatewayId,
    InvocationQueue, InvocationStore, Middleware, MiddlewareFactory, Result, SecretChain, SecretProvider, SystemClock,
    Timestamp,
};

/// A gateway: manages and executes functions. Clones are handles to the same one.
///
/// It implements [`FunctionManager`](crate::FunctionManager), [`FunctionExecutor`](crate::FunctionExecutor) and
/// [`AccessManager`](crate::AccessManager). Call [`shutdown`](Self::shutdown) before the runtime ends: it drains what runs
/// and writes what is buffered.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub(crate) host: Arc<Host>,
}

impl Gateway {
    /// Starts to put a gateway together.
    #[must_use]
    pub fn builder() -> GatewayBuilder {
        GatewayBuilder::default()
    }

    /// The identity under which this gateway's functions stand in the engines.
    #[must_use]
    pub fn id(&self) -> &GatewayId {
        &self.host.gateway_id
    }

    /// The drivers, by the names under which specifications refer to them.
    #[must_use]
    pub fn drivers(&self) -> &DriverRegistry {
        &self.host.drivers
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &GatewayConfig {
        &self.host.config
    }

    /// The audit log, for the host itself: nobody is asked whether it may be read.
    /// [`audit_events`](crate::AccessManager::audit_events) is for callers.
    #[must_use]
    pub fn audit_log(&self) -> &Arc<dyn AuditLog> {
        &self.host.audit
    }

    /// Asks whether a principal may do something in its tenant as a whole, for what is built on the gateway. A change that is
    /// refused is audited.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`]; the authorizer's own.
    pub async fn authorize(&self, cx: &CallContext, action: Action) -> Result<()> {
        self.host.authorize(cx, action, None).await
    }

    /// Keeps a change in the audit log, for what is built on the gateway; with the name of what was changed.
    pub async fn audit(&self, cx: &CallContext, action: Action, subject: &str) {
        self.host.audit_subject(cx, action, subject).await;
    }

    /// The time by the gateway's clock.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.host.clock.now()
    }

    /// Does what is due for one function. The reconciler's task does it by itself.
    ///
    /// # Errors
    /// Where the store fails. What an engine fails to do is in the function's status, and is tried again.
    pub async fn reconcile_one(&self, key: &FunctionKey) -> Result<Reconciled> {
        self.host.reconcile_one(key).await
    }

    /// Does what is due for the functions that have waited longest. Says for how many something was done. The
    /// reconciler's task does it by itself.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn reconcile_due(&self) -> Result<usize> {
        self.host.reconcile_due().await
    }

    /// Compares what the engines hold with what is stored: removes what belongs to no function, and has deployed again
    /// what is gone. The reconciler's task does it by itself.
    ///
    /// # Errors
    /// Where the store fails. An engine that can't be listed is left out.
    pub async fn sweep(&self) -> Result<Swept> {
        self.host.sweep().await
    }

    /// Deletes the records and audit events that the retention does not keep, and what is past its time in the queue, in small batches. Says how many. A task does
    /// it by itself.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn apply_retention(&self) -> Result<u64> {
        self.host.apply_retention().await
    }

    /// Ends the gateway: takes no new calls, waits for what runs for at most `grace`, gives up what still does, writes
    /// what is buffered, and has the drivers let go of what belongs to this process. Calling it again does no harm.
    ///
    /// # Errors
    /// The first thing that could not be ended or written; the rest is ended all the same.
    pub async fn shutdown(&self, grace: Duration) -> Result<()> {
        /// For what was given up to notice, and to be recorded.
        const LAST: Duration = Duration::from_secs(5);
        let Lifetime { tasks, closing, killed, .. } = &self.host.lifetime;
        let deadline = Deadline::after(grace);
        // Closed before anybody is woken: who is let in goes by it.
        tasks.close();
        closing.cancel();
        let drained = tokio::time::timeout_at(deadline.instant().into(), tasks.wait()).await.is_ok();
        killed.cancel();
        let mut result = Ok(());
        for (_, driver) in self.host.drivers.iter() {
            result = result.and(driver.shutdown(deadline.instant()).await);
        }
        // The last records come with the end of what the drivers have stopped.
        if !drained && tokio::time::timeout(LAST, tasks.wait()).await.is_err() {
            result = result.and(Err(Error::new(ErrorKind::Internal, "a task of the gateway did not end")));
        }
        result.and(self.host.invocations.flush().await)
    }
}

/// Puts a [`Gateway`] together. What is needed is a store; without a driver no function can be created.
///
/// The built-in middleware (observe, authorize, record, deadlines, limits, retry) is always there.
#[derive(Debug, Default)]
pub struct GatewayBuilder {
    config: GatewayConfig,
    functions: Option<Arc<dyn FunctionStore>>,
    invocations: Option<Arc<dyn InvocationStore>>,
    drivers: Vec<(DriverName, Arc<dyn FaasDriver>)>,
    for_all: Vec<Arc<dyn MiddlewareFactory>>,
    by_choice: Vec<Arc<dyn MiddlewareFactory>>,
    secrets: Vec<Arc<dyn SecretProvider>>,
    authorizer: Option<Arc<dyn Authorizer>>,
    audit: Option<Arc<dyn AuditLog>>,
    keys: Option<Arc<dyn ApiKeyStore>>,
    queue: Option<Arc<dyn InvocationQueue>>,
    callbacks: Option<Arc<dyn CallbackSender>>,
    clock: Option<Arc<dyn Clock>>,
    handle: Option<Handle>,
    without_reconciler: bool,
    without_observe: bool,
}

impl GatewayBuilder {
    /// Changes the settings.
    #[must_use]
    pub fn config(mut self, config: GatewayConfig) -> Self {
        self.config = config;
        self
    }

    /// Keeps functions, records, audit events, API keys and the queue in one store. What is to be in another is set after it.
    #[must_use]
    pub fn store<S: FunctionStore + InvocationStore + AuditLog + ApiKeyStore + InvocationQueue>(
        mut self,
        store: Arc<S>,
    ) -> Self {
        self.queue = Some(Arc::clone(&store) as _);
        self.functions = Some(Arc::clone(&store) as _);
        self.invocations = Some(Arc::clone(&store) as _);
        self.audit = Some(Arc::clone(&store) as _);
        self.keys = Some(store);
        self
    }

    /// Keeps functions in a store of their own.
    #[must_use]
    pub fn function_store(mut self, store: Arc<dyn FunctionStore>) -> Self {
        self.functions = Some(store);
        self
    }

    /// Keeps records of executions in a store of their own. The queue then needs to be set after it as well, since it shares
    /// records with it; without, the gateway has none.
    #[must_use]
    pub fn invocation_store(mut self, store: Arc<dyn InvocationStore>) -> Self {
        self.invocations = Some(store);
        self.queue = None;
        self
    }

    /// Takes invocations for later, which [workers](Gateway::start_workers) execute, and idempotency keys. It has to be the store of
    /// the records.
    #[must_use]
    pub fn queue(mut self, queue: Arc<dyn InvocationQueue>) -> Self {
        self.queue = Some(queue);
        self
    }

    /// Sends callbacks to addresses that functions name for the ends of their invocations. Without, none may be named.
    #[must_use]
    pub fn callbacks(mut self, sender: Arc<dyn CallbackSender>) -> Self {
        self.callbacks = Some(sender);
        self
    }

    /// Registers a driver under the name by which specifications refer to it.
    #[must_use]
    pub fn driver(mut self, name: DriverName, driver: Arc<dyn FaasDriver>) -> Self {
        self.drivers.push((name, driver));
        self
    }

    /// Adds middleware to the calls of all functions.
    #[must_use]
    pub fn middleware(self, middleware: Arc<dyn Middleware>) -> Self {
        self.middleware_for_all(Arc::new(Fixed(middleware)))
    }

    /// Has middleware made for each revision of all functions.
    #[must_use]
    pub fn middleware_for_all(mut self, factory: Arc<dyn MiddlewareFactory>) -> Self {
        self.for_all.push(factory);
        self
    }

    /// Offers middleware to functions that choose it by name.
    #[must_use]
    pub fn middleware_by_choice(mut self, factory: Arc<dyn MiddlewareFactory>) -> Self {
        self.by_choice.push(factory);
        self
    }

    /// Adds a provider of secrets that drivers hand over at deployment, asked after those that were added before. The
    /// middleware for secrets of each call takes a [`SecretChain`] of its own.
    #[must_use]
    pub fn secrets(mut self, provider: Arc<dyn SecretProvider>) -> Self {
        self.secrets.push(provider);
        self
    }

    /// Decides who may do what. Without, every principal may do everything within its own tenant.
    #[must_use]
    pub fn authorizer(mut self, authorizer: Arc<dyn Authorizer>) -> Self {
        self.authorizer = Some(authorizer);
        self
    }

    /// Keeps audit events in a log of their own. Without it and without [`store`](Self::store), the newest 10,000 are kept in
    /// memory.
    #[must_use]
    pub fn audit_log(mut self, log: Arc<dyn AuditLog>) -> Self {
        self.audit = Some(log);
        self
    }

    /// Keeps API keys in a store of their own. Without it and without [`store`](Self::store) there are none: what is asked
    /// about them is [`ErrorKind::Unsupported`].
    #[must_use]
    pub fn api_key_store(mut self, store: Arc<dyn ApiKeyStore>) -> Self {
        self.keys = Some(store);
        self
    }

    /// Takes the wall-clock time from a clock of the host's.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Runs the gateway's tasks on a runtime. Without, on the one that `build` is called in.
    #[must_use]
    pub fn handle(mut self, handle: Handle) -> Self {
        self.handle = Some(handle);
        self
    }

    /// Starts no task that reconciles, sweeps and deletes by itself: the host calls
    /// [`reconcile_due`](Gateway::reconcile_due), [`sweep`](Gateway::sweep) and
    /// [`apply_retention`](Gateway::apply_retention).
    #[must_use]
    pub fn without_reconciler(mut self) -> Self {
        self.without_reconciler = true;
        self
    }

    /// Makes neither spans nor figures of calls, for a host that observes them by middleware of its own.
    #[must_use]
    pub fn without_observe(mut self) -> Self {
        self.without_observe = true;
        self
    }

    /// Builds the gateway, and starts its tasks.
    ///
    /// # Errors
    /// [`ErrorKind::Misconfigured`] where there is no store, no runtime, or two middleware at a stage that holds one;
    /// [`ErrorKind::AlreadyExists`] where a name is taken; the store's own error where it can't be read.
    pub async fn build(self) -> Result<Gateway> {
        let missing = |what: &'static str| Error::new(ErrorKind::Misconfigured, what);
        let functions = self.functions.ok_or_else(|| missing("a gateway needs a store for functions"))?;
        let invocations = self.invocations.ok_or_else(|| missing("a gateway needs a store for records"))?;
        let handle = match self.handle.map_or_else(Handle::try_current, Ok) {
            Ok(handle) => handle,
            Err(error) => return Err(missing("a gateway needs a tokio runtime").with_source(error)),
        };
        let mut drivers = DriverRegistry::new();
        for (name, driver) in self.drivers {
            drivers.register(name, driver)?;
        }
        let clock = self.clock.unwrap_or_else(|| Arc::new(SystemClock));
        let lifetime = Lifetime::new(handle);

        let mut middleware = MiddlewareSet::default();
        if !self.without_observe {
            middleware.add_for_all(Arc::new(Fixed(Arc::new(Observe))));
        }
        if let Some(authorizer) = &self.authorizer {
            middleware.add_for_all(Arc::new(Fixed(Arc::new(Authorize(Arc::clone(authorizer))))));
        }
        middleware.add_for_all(Arc::new(Record {
            store: Arc::clone(&invocations),
            defaults: self.config.record,
            lifetime: lifetime.clone(),
        }));
        middleware.add_for_all(Arc::new(Overall(self.config.clone())));
        middleware.add_for_all(Arc::new(Limit::default()));
        middleware.add_for_all(Arc::new(Retrying));
        middleware.add_for_all(Arc::new(AttemptTimeout));
        self.for_all.into_iter().for_each(|factory| middleware.add_for_all(factory));
        self.by_choice.into_iter().for_each(|factory| middleware.add_by_choice(factory));
        middleware.check()?;

        let gateway_id = functions.gateway_id().await?;
        let in_memory = || Arc::new(MemoryStore::new(gateway_id.clone()));
        let host = Arc::new(Host {
            audit: self.audit.unwrap_or_else(|| in_memory()),
            keys: self.keys,
            queue: self.queue,
            callbacks: self.callbacks,
            cancellations: Cancellations::default(),
            gateway_id,
            routes: Routes::new(&self.config),
            running: RunningCalls::default(),
            config: self.config,
            functions,
            invocations,
            drivers,
            middleware,
            secrets: SecretChain::new(self.secrets),
            authorizer: self.authorizer.unwrap_or_else(|| Arc::new(AllowWithinTenant)),
            clock,
            lifetime,
        });
        if !self.without_reconciler {
            host.start_tasks();
        }
        if let Some(queue) = &host.queue {
            host.lifetime.spawn(Arc::clone(&host).watch_cancellations(Arc::clone(queue)));
        }
        Ok(Gateway { host })
    }
}

impl Host {
    /// Starts what a gateway does by itself, until it shuts down.
    fn start_tasks(self: &Arc<Self>) {
        let config = &self.config;
        self.every(config.reconcile_interval, "reconcile", |host| async move {
            // Where something was done, more may be due.
            while !host.lifetime.closing.is_cancelled() && host.reconcile_due().await? > 0 {}
            Ok(())
        });
        self.every(config.sweep_interval, "sweep", |host| async move { host.sweep().await.map(drop) });
        self.every(
            config.retention_interval,
            "retention",
            |host| async move { host.apply_retention().await.map(drop) },
        );
    }

    fn every<F>(
        self: &Arc<Self>,
        interval: Duration,
        name: &'static str,
        work: impl Fn(Arc<Self>) -> F + Send + Sync + 'static,
    ) where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let host = Arc::clone(self);
        self.lifetime.spawn(async move {
            let Lifetime { closing, killed, .. } = host.lifetime.clone();
            while !closing.is_cancelled() {
                // Work that is under way is let come to its end, so that no lease is left behind.
                // A task of its own, so that a driver or store that panics ends this round and not all.
                let mut round = host.lifetime.spawn(work(Arc::clone(&host)));
                tokio::select! {
                    () = killed.cancelled() => return round.abort(),
                    result = &mut round => match result {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::warn!(task = name, ?error, "a task of the gateway failed and is run again");
                        }
                        Err(error) => {
                            tracing::error!(task = name, ?error, "a task of the gateway panicked and is run again");
                        }
                    }
                }
                tokio::select! {
                    () = closing.cancelled() => return,
                    () = tokio::time::sleep(interval) => {}
                }
            }
        });
    }

    async fn apply_retention(&self) -> Result<u64> {
        const BATCH: usize = 1000;
        let retention = &self.config.retention;
        let records = all_of(BATCH, || self.invocations.retain(retention, self.clock.now(), BATCH)).await;
        // Where the one store fails, the other need not.
        let events = all_of(BATCH, || self.audit.retain(retention, self.clock.now(), BATCH)).await;
        let queued = match &self.queue {
            Some(queue) => all_of(BATCH, || queue.expire(BATCH)).await,
            None => Ok(0),
        };
        Ok(records? + events? + queued?)
    }
}

/// Deletes batch by batch, until one is not full. Says how many were deleted.
async fn all_of<F: Future<Output = Result<u64>>>(batch: usize, mut delete: impl FnMut() -> F) -> Result<u64> {
    let mut deleted = 0;
    loop {
        let count = delete().await?;
        deleted += count;
        if count < batch as u64 {
            return Ok(deleted);
        }
    }
}
