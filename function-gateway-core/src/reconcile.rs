//! From what is observed to what is desired, one step at a time.
//!
//! A step reads a function's row, does what is due in the engine, and writes what came of it, under a lease. It goes by
//! the state alone and never by what happened before, so a crash at any point leaves nothing that a later step, by
//! whichever process, does not carry on from. Nothing is deployed whose reference is not stored.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use http::Method;

use crate::executor::POLL;
use crate::host::Host;
use crate::{
    CallContext, ConditionKind, Deadline, DeployRequest, DeploymentState, DeploymentStatus, DriverCapabilities,
    DriverName, DriverRef, DriverRequest, Error, ErrorKind, FaasDriver, Function, FunctionKey, FunctionStatus,
    Generation, InvocationId, Lease, ListScope, LogSink, PageRequest, Phase, Principal, PrincipalId, Redactor, Result,
    Retry, Revision, RevisionState, RevisionStatus, RouteEntry, SecretDelivery, SecretVariable, TenantId, Timestamp,
    TraceParent,
};

/// What a step of the reconciler came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reconciled {
    /// Nothing is left to do.
    Settled,
    /// There is more to do now.
    Again,
    /// There is more to do at this time.
    Later(Timestamp),
    /// Another process is at it.
    Busy,
}

/// The first wait after a failure; doubled with each further one.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
/// However soon a driver says that it makes sense to ask again.
const SHORTEST_POLL: Duration = Duration::from_millis(5);
const MAX_BACKOFF: Duration = Duration::from_secs(60);

fn backoff(failures: u32) -> Duration {
    let factor = 2_u32.saturating_pow(failures.saturating_sub(1));
    FIRST_BACKOFF.saturating_mul(factor).min(MAX_BACKOFF)
}

impl Host {
    /// The context of work that no caller asked for.
    pub(crate) fn own_context(&self, tenant: &TenantId) -> Result<CallContext> {
        let principal = PrincipalId::new("function-gateway")?;
        Ok(CallContext::new(Principal::new(tenant.clone(), principal)))
    }

    /// Does what is due for one function. The one step that both callers and the reconciler's task drive.
    pub(crate) async fn reconcile_one(&self, key: &FunctionKey) -> Result<Reconciled> {
        let Some(lease) = self.functions.acquire_lease(key, self.config.lease_ttl).await? else {
            return Ok(if self.functions.get(key).await?.is_some() { Reconciled::Busy } else { Reconciled::Settled });
        };
        // A step takes as long as engines do, and the lease has to last as long.
        let result = tokio::select! {
            biased;
            result = self.step(&lease) => result,
            lost = self.keep(&lease) => Err(lost),
        };
        // A lease that can't be given back runs out by itself.
        if let Err(error) = self.functions.release_lease(&lease).await {
            tracing::debug!(function = %key, ?error, "a lease could not be given back");
        }
        match result {
            // Somebody changed the row meanwhile: what is due follows from what it is now.
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(Reconciled::Again),
            result => result,
        }
    }

    /// Prolongs a lease until it is lost; gives the error that says so.
    async fn keep(&self, lease: &Lease) -> Error {
        loop {
            tokio::time::sleep(self.config.lease_ttl / 3).await;
            if let Err(error) = self.functions.renew_lease(lease, self.config.lease_ttl).await {
                return error;
            }
        }
    }

    async fn step(&self, lease: &Lease) -> Result<Reconciled> {
        let Some(function) = self.functions.get(&lease.key).await? else { return Ok(Reconciled::Settled) };
        if function.id != lease.function {
            return Ok(Reconciled::Settled);
        }
        let cx = self.own_context(&lease.key.tenant)?;
        let mut status = function.status.clone();
        if status.phase == Phase::Deleting {
            self.remove_all(&cx, lease, &mut status).await?;
            if status.deployments.is_empty() {
                self.functions.delete(lease, function.version).await?;
                self.routes.invalidate(&lease.key);
                return Ok(Reconciled::Settled);
            }
        } else {
            let now = self.clock.now();
            retire_superseded(&mut status, function.generation, now);
            if let Some(position) = next_due(&status, now) {
                self.advance(&cx, lease, &function, &mut status, position).await?;
            }
            self.move_route(&function, &mut status).await?;
            set_phase(&mut status, function.generation, self.clock.now());
        }
        status.reconcile_at = status.deployments.iter().filter_map(|deployment| deployment.due_at).min();
        if status != function.status {
            self.functions.update_status(lease, function.version, &status).await?;
            self.routes.invalidate(&lease.key);
        }
        Ok(match status.reconcile_at {
            None => Reconciled::Settled,
            Some(at) if at <= self.clock.now() => Reconciled::Again,
            Some(at) => Reconciled::Later(at),
        })
    }

    async fn remove_all(&self, cx: &CallContext, lease: &Lease, status: &mut FunctionStatus) -> Result<()> {
        let mut left = Vec::new();
        for mut deployment in std::mem::take(&mut status.deployments) {
            match self.remove(cx, lease, &deployment).await {
                Ok(()) => {}
                Err(error) => {
                    self.put_off(&mut deployment, &error);
                    status.set_condition(ConditionKind::RemoveFailed, error.to_string(), self.clock.now());
                    left.push(deployment);
                }
            }
        }
        status.deployments = left;
        Ok(())
    }

    async fn remove(&self, cx: &CallContext, lease: &Lease, deployment: &RevisionStatus) -> Result<()> {
        let driver = self.drivers.require(&deployment.driver)?;
        let removed = self.bounded("remove", driver.remove(cx, &deployment.target)).await;
        if let (Err(error), Some(known)) = (&removed, self.routes.secrets(lease.function, deployment.generation)) {
            return Err(known.error(error.clone()));
        }
        removed?;
        self.routes.forget(lease.function, deployment.generation);
        Ok(())
    }

    fn put_off(&self, deployment: &mut RevisionStatus, error: &Error) {
        deployment.failures = deployment.failures.saturating_add(1);
        deployment.message = error.to_string();
        deployment.due_at = Some(self.clock.now().plus(backoff(deployment.failures)));
        tracing::warn!(target = %deployment.target, ?error, "a step failed and is tried again");
    }

    /// Whether something in the queue is to be executed by a generation.
    async fn is_pinned(&self, function: &Function, generation: Generation) -> Result<bool> {
        match &self.queue {
            Some(queue) if function.status.phase != Phase::Deleting => {
                Ok(queue.pinned(function.id, generation).await? > 0)
            }
            _ => Ok(false),
        }
    }

    /// Does what is due for one generation.
    async fn advance(
        &self,
        cx: &CallContext,
        lease: &Lease,
        function: &Function,
        status: &mut FunctionStatus,
        position: usize,
    ) -> Result<()> {
        let Some(deployment) = status.deployments.get_mut(position) else { return Ok(()) };
        match deployment.state {
            RevisionState::Ready => deployment.due_at = None,
            RevisionState::Retired if self.is_pinned(function, deployment.generation).await? => {
                deployment.due_at = Some(self.clock.now().plus(PINNED_AGAIN));
            }
            RevisionState::Retired => match self.remove(cx, lease, deployment).await {
                Ok(()) => {
                    status.deployments.remove(position);
                    status.clear_condition(ConditionKind::RemoveFailed);
                }
                Err(error) => {
                    self.put_off(deployment, &error);
                    status.set_condition(ConditionKind::RemoveFailed, error.to_string(), self.clock.now());
                }
            },
            RevisionState::Pending | RevisionState::Deploying | RevisionState::Failed => {
                let started = *deployment.deploy_started_at.get_or_insert(self.clock.now());
                let revision = self.functions.revision(&lease.key.tenant, function.id, deployment.generation).await?;
                let Some(revision) = revision else {
                    let message = format!("revision {} is not in the store", deployment.generation);
                    return Err(Error::new(ErrorKind::Store, message));
                };
                let observed = self.observe(cx, deployment, &revision).await;
                let observed = self.observed_without_secrets(cx, deployment, &revision, observed).await;
                let ready_by = started.plus(revision.spec.timeouts.ready.unwrap_or(self.config.default_ready_timeout));
                let idle = self.settle(deployment, observed, ready_by);
                match idle {
                    true => status.set_condition(
                        ConditionKind::Idle,
                        "the engine has scaled it to zero; the next call wakes it",
                        self.clock.now(),
                    ),
                    false => status.clear_condition(ConditionKind::Idle),
                }
            }
        }
        Ok(())
    }

    /// How a generation is in the engine, having it deployed where it is not there.
    async fn observe(
        &self,
        cx: &CallContext,
        deployment: &RevisionStatus,
        revision: &Arc<Revision>,
    ) -> Result<DeploymentStatus> {
        // Of all that can go wrong only a refusal of the deployment itself is final: engines have bad moments, secrets
        // are created later, and a host may come to know a driver again.
        let passing = |error: Error| error.with_retry(Retry::Transient);
        let driver = self.drivers.require(&deployment.driver).map_err(passing)?;
        let target = &deployment.target;
        let capabilities = driver.capabilities(&revision.spec.protocol);
        let mut observed = match deployment.state {
            RevisionState::Pending => DeploymentStatus::missing(),
            _ => self.bounded("status", driver.status(cx, target)).await.map_err(passing)?,
        };
        if observed.state == DeploymentState::Missing {
            let request = self.deploy_request(cx, revision, &capabilities).await.map_err(passing)?;
            observed = self.bounded("deploy", driver.deploy(cx, target, request)).await?;
        }
        if observed.state == DeploymentState::Ready
            && !observed.idle
            && let Some(path) = &revision.spec.readiness_path
            && let Some(waiting) = self.ask_ready(cx, driver, target, revision, path).await
        {
            return Ok(waiting);
        }
        Ok(observed)
    }

    /// What an engine says of a function may cite the function, and so a secret that was handed over at deployment.
    async fn observed_without_secrets(
        &self,
        cx: &CallContext,
        deployment: &RevisionStatus,
        revision: &Arc<Revision>,
        observed: Result<DeploymentStatus>,
    ) -> Result<DeploymentStatus> {
        let Some(driver) = self.drivers.get(&deployment.driver) else { return observed };
        let capabilities = driver.capabilities(&revision.spec.protocol);
        match (observed, self.deployed_secrets(cx, revision, &capabilities).await) {
            (Ok(mut status), Ok(Some(known))) => {
                status.message = known.text(&status.message).into_owned();
                Ok(status)
            }
            (Err(error), Ok(Some(known))) => Err(known.error(error)),
            (observed, Ok(None)) => observed,
            // What can't be cleaned is not told: why it can't be is.
            (_, Err(unknown)) => Err(unknown.with_retry(Retry::Transient)),
        }
    }

    /// Asks the readiness path by the way that a call takes; says what it is waiting for, if it is.
    async fn ask_ready(
        &self,
        cx: &CallContext,
        driver: &Arc<dyn FaasDriver>,
        target: &DriverRef,
        revision: &Arc<Revision>,
        path: &str,
    ) -> Option<DeploymentStatus> {
        let cx = cx
            .clone()
            .with_trace(TraceParent::root())
            .for_invocation(InvocationId::generate())
            .with_deadline(Deadline::after(self.config.driver_timeout));
        let mut request = DriverRequest::new(Arc::clone(revision), "", LogSink::detached(0));
        request.method = Method::GET;
        request.path = path.to_owned().into();
        let reason = match self.bounded("invoke", driver.invoke(&cx, target, request)).await {
            Ok(response) if response.status.is_success() => return None,
            Ok(response) => format!("the readiness path {path} answered {}", response.status),
            Err(error) => format!("the readiness path {path} can't be reached: {error}"),
        };
        Some(DeploymentStatus::progressing(reason))
    }

    /// Writes into a generation's state what was observed. Says whether the engine has scaled it to zero.
    fn settle(&self, deployment: &mut RevisionStatus, observed: Result<DeploymentStatus>, ready_by: Timestamp) -> bool {
        let now = self.clock.now();
        let observed = match observed {
            Ok(observed) => observed,
            Err(error) if error.is_transient() && now < ready_by => {
                self.put_off(deployment, &error);
                return false;
            }
            Err(error) => {
                // It can't get better by itself unless the engine was out of reach.
                let again = error.is_transient();
                self.put_off(deployment, &error);
                deployment.enter(RevisionState::Failed, now);
                deployment.due_at = deployment.due_at.filter(|_| again);
                return false;
            }
        };
        deployment.message = observed.message;
        match observed.state {
            DeploymentState::Ready => {
                deployment.enter(RevisionState::Ready, now);
                deployment.failures = 0;
                deployment.deploy_started_at = None;
                deployment.due_at = None;
                return observed.idle;
            }
            DeploymentState::Failed => {
                deployment.enter(RevisionState::Failed, now);
                deployment.failures = deployment.failures.saturating_add(1);
                deployment.due_at = Some(now.plus(backoff(deployment.failures)));
            }
            DeploymentState::Progressing | DeploymentState::Missing if now >= ready_by => {
                deployment.enter(RevisionState::Failed, now);
                deployment.failures = deployment.failures.saturating_add(1);
                deployment.message = match deployment.message.as_str() {
                    "" => "it did not get ready in time".to_owned(),
                    last => format!("it did not get ready in time; the engine says: {last}"),
                };
                deployment.due_at = Some(now.plus(backoff(deployment.failures)));
            }
            DeploymentState::Progressing | DeploymentState::Missing => {
                if deployment.state != RevisionState::Failed {
                    deployment.enter(RevisionState::Deploying, now);
                }
                deployment.due_at = Some(now.plus(observed.poll_after.unwrap_or(POLL).max(SHORTEST_POLL)));
            }
        }
        false
    }

    /// Has the newest generation serve once it is ready, and retires the one that served until now.
    async fn move_route(&self, function: &Function, status: &mut FunctionStatus) -> Result<()> {
        let newest = function.generation;
        let ready = status.deployment(newest).is_some_and(|deployment| deployment.state == RevisionState::Ready);
        if !ready || status.serving_generation() == Some(newest) {
            return Ok(());
        }
        let now = self.clock.now();
        for entry in std::mem::replace(&mut status.route, vec![RouteEntry::all(newest)]) {
            let revision = self.functions.revision(&function.key.tenant, function.id, entry.generation).await?;
            let longest = revision.map_or(self.config.max_drain, |revision| self.config.longest_call(&revision.spec));
            if let Some(retired) = status.deployment_mut(entry.generation) {
                retired.enter(RevisionState::Retired, now);
                retired.failures = 0;
                // The margin is for the time until this is written, and for clocks that differ.
                let margin = self.config.route_ttl.saturating_add(self.config.drain_margin);
                retired.due_at = Some(now.plus(longest.saturating_add(margin)));
            }
        }
        Ok(())
    }

    pub(crate) async fn deploy_request(
        &self,
        cx: &CallContext,
        revision: &Arc<Revision>,
        capabilities: &DriverCapabilities,
    ) -> Result<DeployRequest> {
        let mut request = DeployRequest::new(self.gateway_id.clone(), Arc::clone(revision));
        if capabilities.secrets_at_deploy {
            let known = Redactor::new();
            for binding in &revision.spec.secrets {
                let SecretDelivery::Env(variable) = &binding.deliver else { continue };
                let provided = self.bounded("secrets", self.secrets.require(cx, &binding.secret)).await?;
                if provided.secret.expose().contains(&0) {
                    let message = "a secret for the environment contains a NUL byte, which no environment can hold";
                    return Err(
                        Error::new(ErrorKind::Misconfigured, message).with_context("secret", binding.secret.as_str())
                    );
                }
                known.add(&provided.secret);
                request = request.with_secret(SecretVariable::new(variable, provided.secret));
            }
            self.routes.keep_secrets(revision, known);
        }
        Ok(request)
    }

    /// Reconciles functions that are due, a few at a time. Says for how many something was done: neither for those that
    /// another process is at, nor for those whose step failed in the store.
    pub(crate) async fn reconcile_due(&self) -> Result<usize> {
        const BATCH: usize = 256;
        const AT_A_TIME: usize = 8;
        let due = self.functions.scan_due(self.clock.now(), BATCH).await?;
        let done = futures_util::stream::iter(due)
            .map(|key| async move {
                match self.reconcile_one(&key).await {
                    Ok(reconciled) => reconciled != Reconciled::Busy,
                    Err(error) => {
                        tracing::warn!(function = %key, ?error, "a function could not be reconciled");
                        false
                    }
                }
            })
            .buffer_unordered(AT_A_TIME)
            .filter(|done| std::future::ready(*done))
            .count()
            .await;
        Ok(done)
    }

    /// Compares what the engines hold with what is stored: removes what nobody wants, and has deployed again what is
    /// gone. Says what it did.
    pub(crate) async fn sweep(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut present: BTreeMap<DriverName, BTreeSet<DriverRef>> = BTreeMap::new();
        let cx = self.own_context(&TenantId::new("function-gateway")?)?;
        for (name, driver) in self.drivers.iter() {
            if let Err(error) = self.bounded("probe", driver.probe(&cx)).await {
                tracing::warn!(driver = %name, ?error, "an engine can't be reached");
                continue;
            }
            match self.sweep_driver(&cx, driver, &mut swept).await {
                Ok(targets) => drop(present.insert(name.clone(), targets)),
                Err(error) => tracing::warn!(driver = %name, ?error, "an engine could not be swept"),
            }
        }
        let mut page = PageRequest::first(PageRequest::MAX_LIMIT);
        loop {
            let functions = self.functions.scan_all(&page).await?;
            for function in &functions.items {
                match self.repair(function, &present).await {
                    Ok(repaired) => swept.repaired += repaired,
                    Err(error) => tracing::warn!(function = %function.key, ?error, "a function can't be repaired yet"),
                }
            }
            match functions.next {
                Some(next) => page = page.after(next),
                None => return Ok(swept),
            }
        }
    }

    /// Removes what an engine holds for this gateway and nobody wants. Gives what it holds.
    async fn sweep_driver(
        &self,
        cx: &CallContext,
        driver: &Arc<dyn FaasDriver>,
        swept: &mut Swept,
    ) -> Result<BTreeSet<DriverRef>> {
        let mut targets = BTreeSet::new();
        let mut listed = driver.list(cx, ListScope::All(self.gateway_id.clone()));
        let mut unreadable = None;
        while let Some(deployment) = self.bounded("list", async { Ok(listed.next().await) }).await? {
            let deployment = match deployment {
                Ok(deployment) => deployment,
                Err(error) => {
                    unreadable = Some(error);
                    continue;
                }
            };
            // The row is read after the list, so a deployment that is being made has its reference stored.
            let function = self.functions.find(deployment.function).await?;
            let wanted = function.is_some_and(|function| function.status.deployment(deployment.generation).is_some());
            if !wanted {
                match self.bounded("remove", driver.remove(cx, &deployment.target)).await {
                    Ok(()) => {
                        swept.removed += 1;
                        tracing::info!(target = %deployment.target, "removed a deployment that belongs to no function");
                    }
                    Err(error) => {
                        tracing::warn!(target = %deployment.target, ?error, "an orphan can't be removed yet");
                    }
                }
            }
            targets.insert(deployment.target);
        }
        // Without a whole list nothing can be said to be missing.
        unreadable.map_or(Ok(targets), Err)
    }

    /// Has generations deployed again that are ready by the row and missing in the engine.
    async fn repair(
        &self,
        function: &Arc<Function>,
        present: &BTreeMap<DriverName, BTreeSet<DriverRef>>,
    ) -> Result<u64> {
        let mut missing = Vec::new();
        if function.status.phase == Phase::Deleting {
            return Ok(0);
        }
        for deployment in &function.status.deployments {
            let Some(driver) = self.drivers.get(&deployment.driver) else { continue };
            let listed = present.get(&deployment.driver);
            let absent = listed.is_some_and(|targets| !targets.contains(&deployment.target));
            if deployment.state != RevisionState::Ready || !absent {
                continue;
            }
            let revision = self.functions.revision(&function.key.tenant, function.id, deployment.generation).await?;
            let shared = revision
                .is_some_and(|revision| driver.capabilities(&revision.spec.protocol).scope == crate::Scope::Shared);
            if shared {
                let cx = self.own_context(&function.key.tenant)?;
                // It may have been deployed since the list was read.
                let observed = self.bounded("status", driver.status(&cx, &deployment.target)).await?;
                if observed.state == DeploymentState::Missing {
                    missing.push(deployment.generation);
                }
            }
        }
        if missing.is_empty() {
            return Ok(0);
        }
        let Some(lease) = self.functions.acquire_lease(&function.key, self.config.lease_ttl).await? else {
            return Ok(0);
        };
        let now = self.clock.now();
        let mut status = function.status.clone();
        for generation in &missing {
            if let Some(deployment) = status.deployment_mut(*generation) {
                deployment.enter(RevisionState::Pending, now);
                deployment.due_at = Some(now);
            }
        }
        let message = "it was missing in the engine and was deployed again";
        status.set_condition(ConditionKind::Repaired, message, now);
        status.reconcile_at = Some(now);
        set_phase(&mut status, function.generation, now);
        let written = self.functions.update_status(&lease, function.version, &status).await;
        self.functions.release_lease(&lease).await?;
        match written {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(0),
            Err(error) => return Err(error),
        }
        self.reconcile_one(&function.key).await?;
        Ok(u64::try_from(missing.len()).unwrap_or(u64::MAX))
    }
}

/// How long a generation is kept before it is asked again whether something in the queue is pinned to it.
const PINNED_AGAIN: std::time::Duration = std::time::Duration::from_secs(5);

/// What a sweep of the engines did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Swept {
    /// Deployments that belonged to no function, and were removed.
    pub removed: u64,
    /// Deployments that were gone, and are being deployed again.
    pub repaired: u64,
}

/// What is neither the newest generation nor serves is of no use any more.
pub(crate) fn retire_superseded(status: &mut FunctionStatus, newest: Generation, now: Timestamp) {
    let route = status.route.clone();
    for deployment in &mut status.deployments {
        let serves = route.iter().any(|entry| entry.generation == deployment.generation);
        if deployment.generation != newest && !serves && deployment.state != RevisionState::Retired {
            deployment.enter(RevisionState::Retired, now);
            deployment.failures = 0;
            deployment.due_at = Some(now);
        }
    }
}

fn next_due(status: &FunctionStatus, now: Timestamp) -> Option<usize> {
    let due = |deployment: &RevisionStatus| deployment.due_at.is_some_and(|at| at <= now);
    let (position, _) =
        status.deployments.iter().enumerate().filter(|(_, known)| due(known)).min_by_key(|(_, known)| known.due_at)?;
    Some(position)
}

/// The phase is that of the newest generation.
fn set_phase(status: &mut FunctionStatus, newest: Generation, now: Timestamp) {
    if status.phase == Phase::Deleting {
        return;
    }
    let Some(deployment) = status.deployment(newest) else { return };
    let message = deployment.message.clone();
    status.phase = match deployment.state {
        RevisionState::Pending => Phase::Pending,
        RevisionState::Deploying => Phase::Deploying,
        RevisionState::Ready | RevisionState::Retired => Phase::Ready,
        RevisionState::Failed => Phase::Failed,
    };
    match status.phase {
        Phase::Failed => status.set_condition(ConditionKind::DeployFailed, message, now),
        _ => status.clear_condition(ConditionKind::DeployFailed),
    }
    match status.phase {
        Phase::Deploying if !status.deployment(newest).is_none_or(|known| known.message.is_empty()) => {
            let message = status.deployment(newest).map(|known| known.message.clone()).unwrap_or_default();
            status.set_condition(ConditionKind::Progressing, message, now);
        }
        _ => status.clear_condition(ConditionKind::Progressing),
    }
}
