//! The lifecycle of functions: create, read, update, delete, list, revisions.

use std::pin::pin;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::{StreamExt as _, stream};

use crate::body::by_deadline;
use crate::host::{Host, shutting_down};
use crate::reconcile::{Reconciled, retire_superseded};
use crate::route::not_found;
use crate::time::monotonic_now;
use crate::{
    Action, BoxStream, CallContext, Deadline, Error, ErrorKind, Function, FunctionFilter, FunctionId, FunctionKey,
    FunctionName, FunctionSpec, Gateway, Generation, LogLine, LogQuery, Page, PageRequest, Phase, Qualifier, Result,
    Revision, RevisionReason, RevisionState, RevisionStatus, ScaleRequest, Scope, Timestamp, Version, Violation,
};

/// On which condition a function is changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Precondition {
    /// Only if its row still has this version (status included): the ETag.
    pub version: Option<Version>,
    /// Only if its newest generation is still this one. Changes of status do not matter to it.
    pub generation: Option<Generation>,
}

impl Precondition {
    /// No condition.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Only if the row still has this version.
    #[must_use]
    pub fn version(version: Version) -> Self {
        Self { version: Some(version), generation: None }
    }

    /// Only if the newest generation is still this one.
    #[must_use]
    pub fn generation(generation: Generation) -> Self {
        Self { version: None, generation: Some(generation) }
    }

    fn check(self, function: &Function) -> Result<()> {
        let failed = |what: &str, now: u64| {
            let message = format!("the function's {what} is {now} by now: read it and decide again");
            Err(Error::new(ErrorKind::PreconditionFailed, message).with_context("function", function.key.name.as_str()))
        };
        if self.version.is_some_and(|version| version != function.version) {
            return failed("version", function.version.get());
        }
        if self.generation.is_some_and(|generation| generation != function.generation) {
            return failed("generation", function.generation.get());
        }
        Ok(())
    }
}

/// Manages functions, over any engine.
///
/// A change is stored first; then the engine is brought to it, for as long as the caller's deadline allows (the
/// gateway's [`default_manage_wait`](crate::GatewayConfig::default_manage_wait) without one). What is not done by then
/// goes on without the caller: the function that is given back says how far it is.
///
/// New methods may be added: it is implemented by the gateway, not by hosts.
///
/// # Cancel safety
/// What is stored is carried out, whether its caller waits or not.
#[async_trait]
pub trait FunctionManager: std::fmt::Debug + Send + Sync + 'static {
    /// Creates a function of the caller's tenant and owner.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] with every violation, and nothing is stored; [`ErrorKind::AlreadyExists`].
    async fn create(&self, cx: &CallContext, name: &FunctionName, spec: FunctionSpec) -> Result<Arc<Function>>;

    /// Reads a function.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the caller's tenant has none of the name.
    async fn get(&self, cx: &CallContext, name: &FunctionName) -> Result<Arc<Function>>;

    /// Replaces a function's specification. The revision that serves goes on until the new one is ready; then the
    /// route moves in one step, and the old one is removed once its calls have ended. That holds too where the new
    /// specification names another driver. A specification that is the same changes nothing, but for a function that has
    /// failed: it is tried again.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidSpec`] with every violation; [`ErrorKind::PreconditionFailed`]; [`ErrorKind::NotFound`].
    async fn update(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        spec: FunctionSpec,
        condition: Precondition,
    ) -> Result<Arc<Function>>;

    /// Makes a new generation with the specification of an earlier one.
    ///
    /// # Errors
    /// As [`update`](Self::update); [`ErrorKind::NotFound`] too where there is no such revision.
    async fn roll_back(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        to: Generation,
        condition: Precondition,
    ) -> Result<Arc<Function>>;

    /// Makes a new generation with the same specification, so that instances start with the newest values of the
    /// function's secrets.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    async fn rotate_secrets(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        condition: Precondition,
    ) -> Result<Arc<Function>>;

    /// Deletes a function: it gets no call from now on, what still runs is stopped, and its records stay. Where each process
    /// has its own engine, another process of this gateway stops its part with its next sweep. Gives `None`
    /// once it is gone, or the function as it is where the engine takes longer.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::PreconditionFailed`].
    async fn delete(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        condition: Precondition,
    ) -> Result<Option<Arc<Function>>>;

    /// Reads a page of the tenant's functions, in the order of their names.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a cursor of another list.
    async fn list(&self, cx: &CallContext, filter: &FunctionFilter, page: &PageRequest) -> Result<Page<Arc<Function>>>;

    /// Says what is wrong with a specification, without storing anything. An empty list means that `create` and
    /// `update` would take it.
    ///
    /// # Errors
    /// Where it can't be checked now.
    async fn validate(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>>;

    /// Reads a page of a function's revisions, newest first.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; [`ErrorKind::InvalidArgument`] for a cursor of another list.
    async fn revisions(&self, cx: &CallContext, name: &FunctionName, page: &PageRequest)
    -> Result<Page<Arc<Revision>>>;

    /// Reads one revision of a function.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    async fn revision(&self, cx: &CallContext, name: &FunctionName, generation: Generation) -> Result<Arc<Revision>>;

    /// Reads the log of the revision that serves.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the driver does not offer it; [`ErrorKind::NotReady`]. A log that is still being read ends
    /// with [`ErrorKind::ShuttingDown`] where the gateway stops.
    async fn logs(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine>>>;

    /// Sets how many instances of the revision that serves run now.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the driver does not offer it; [`ErrorKind::NotReady`].
    async fn scale(&self, cx: &CallContext, name: &FunctionName, instances: u32) -> Result<()>;
}

/// Conveniences on every [`FunctionManager`].
#[async_trait]
pub trait FunctionManagerExt: FunctionManager {
    /// Reads a page of the functions that the caller created.
    ///
    /// # Errors
    /// Those of [`list`](FunctionManager::list).
    async fn list_mine(&self, cx: &CallContext, page: &PageRequest) -> Result<Page<Arc<Function>>> {
        let mine = FunctionFilter::all().with_owner(cx.principal().id.clone());
        self.list(cx, &mine, page).await
    }

    /// Reads every function that a filter means, page by page.
    ///
    /// # Errors
    /// Those of [`list`](FunctionManager::list).
    async fn list_all(&self, cx: &CallContext, filter: &FunctionFilter) -> Result<Vec<Arc<Function>>> {
        let mut all = Vec::new();
        let mut page = PageRequest::first(PageRequest::MAX_LIMIT);
        loop {
            let Page { items, next, .. } = self.list(cx, filter, &page).await?;
            all.extend(items);
            match next {
                Some(next) => page = page.after(next),
                None => return Ok(all),
            }
        }
    }

    /// Waits until the newest generation of a function serves, or has failed.
    ///
    /// # Errors
    /// [`ErrorKind::NotReady`] with the engine's reason where it has failed; [`ErrorKind::DeadlineExceeded`] at the
    /// deadline of `cx`.
    ///
    /// # Cancel safety
    /// Cancel-safe.
    async fn wait_until_ready(&self, cx: &CallContext, name: &FunctionName) -> Result<Arc<Function>> {
        loop {
            let function = self.get(cx, name).await?;
            match function.status.phase {
                Phase::Ready => return Ok(function),
                Phase::Failed | Phase::Deleting => {
                    let reason = function.status.deployment(function.generation).map(|known| known.message.as_str());
                    let message = format!("the function is {}: {}", function.status.phase, reason.unwrap_or_default());
                    return Err(Error::new(ErrorKind::NotReady, message).with_retry(crate::Retry::Never));
                }
                Phase::Pending | Phase::Deploying => {}
            }
            if cx.deadline().is_some_and(|deadline| deadline.has_passed()) {
                return Err(crate::body::timeout("total", crate::Delivery::NotSent));
            }
            tokio::time::sleep(crate::executor::POLL).await;
        }
    }
}

impl<M: FunctionManager + ?Sized> FunctionManagerExt for M {}

/// A change of a function's specification.
struct Change {
    spec: FunctionSpec,
    reason: RevisionReason,
    /// Whether a specification that is the same makes a new generation all the same.
    always: bool,
    /// Of which function it was made up, where it was.
    of: Option<FunctionId>,
}

impl Gateway {
    async fn find(&self, cx: &CallContext, name: &FunctionName, action: Action) -> Result<Arc<Function>> {
        let key = FunctionKey::new(cx.tenant().clone(), name.clone());
        let function = self.host.functions.get(&key).await?;
        let owner = function.as_ref().map(|function| &function.owner);
        self.host.authorize(cx, action, Some((name, owner))).await?;
        function.ok_or_else(|| not_found(&key))
    }

    async fn change(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        change: Change,
        condition: Precondition,
    ) -> Result<Arc<Function>> {
        let host = &self.host;
        host.lifetime.check_open()?;
        let violations = host.violations(cx, &change.spec).await?;
        if !violations.is_empty() {
            return Err(Error::invalid_spec(violations));
        }
        let changed = self
            .compare_and_set(cx, name, Action::Update, condition, |function| {
                let now = host.clock.now();
                if change.of.is_some_and(|of| of != function.id) {
                    let message = "another function bears the name by now";
                    return Err(Error::new(ErrorKind::Conflict, message).with_retry(crate::Retry::Never));
                }
                if function.spec == change.spec && !change.always {
                    return Ok(try_again(function, now));
                }
                let generation = function.generation.next();
                let created = (now, cx.principal().id.clone());
                let spec = match change.reason {
                    // Whatever it is by now.
                    RevisionReason::SecretRotated => function.spec.clone(),
                    _ => change.spec.clone(),
                };
                let revision =
                    Revision::new(function.key.clone(), function.id, generation, spec, created, change.reason)
                        .with_owner(function.owner.clone());
                let driver = host.drivers.require(&revision.spec.driver)?;
                let target = driver.reference(&host.gateway_id, &revision);
                let mut next = function.clone();
                next.spec = revision.spec.clone();
                next.generation = generation;
                next.updated_at = now;
                next.status.deployments.push(RevisionStatus::new(&revision, target));
                retire_superseded(&mut next.status, generation, now);
                next.status.phase = Phase::Pending;
                next.status.reconcile_at = Some(now);
                Ok(Some((next, Some(revision))))
            })
            .await?;
        match changed {
            (function, false) => Ok(function),
            (function, true) => self.settle(cx, function).await,
        }
    }

    /// Reads, changes, writes and audits, again where somebody else wrote in between and the caller made no condition. Says
    /// whether anything was written.
    async fn compare_and_set(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        action: Action,
        condition: Precondition,
        change: impl Fn(&Function) -> Result<Option<(Function, Option<Revision>)>> + Send + Sync,
    ) -> Result<(Arc<Function>, bool)> {
        const TRIES: usize = 100;
        let mut tries = 0;
        loop {
            let function = self.find(cx, name, action).await?;
            condition.check(&function)?;
            if function.status.phase == Phase::Deleting && action != Action::Delete {
                let message = "the function is being deleted";
                return Err(Error::new(ErrorKind::Conflict, message).with_context("function", name.as_str()));
            }
            let Some((next, revision)) = change(&function)? else { return Ok((function, false)) };
            let (host, cx) = (Arc::clone(&self.host), cx.clone());
            let write = async move {
                let written = host.functions.update(&next, function.version, revision.as_ref()).await?;
                host.routes.invalidate(&written.key);
                let generation = (action != Action::Delete).then_some(written.generation);
                host.audit_change(&cx, action, &written.key.name, generation).await;
                Ok(written)
            };
            match self.host.lifetime.carry_out(write).await {
                Ok(written) => return Ok((written, true)),
                Err(error) if error.kind() == ErrorKind::Conflict && tries < TRIES => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Brings the engine to what is stored, without the caller, and waits for it as long as the caller does.
    async fn settle(&self, cx: &CallContext, function: Arc<Function>) -> Result<Arc<Function>> {
        self.drive(cx, &function).await?;
        let now = self.host.functions.get(&function.key).await?;
        Ok(now.filter(|now| now.id == function.id).unwrap_or(function))
    }

    /// Reconciles a function until its newest generation has come to an end, or the caller's time has.
    async fn drive(&self, cx: &CallContext, function: &Function) -> Result<()> {
        let wait = Deadline::after(self.host.config.default_manage_wait);
        let deadline = cx.deadline().unwrap_or(wait);
        let host = Arc::clone(&self.host);
        let (key, id, generation) = (function.key.clone(), function.id, function.generation);
        let work = self.host.lifetime.spawn(async move { host.drive(&key, id, generation, deadline).await });
        match tokio::time::timeout_at(deadline.instant().into(), work).await {
            Ok(Ok(result)) => result,
            // Past the deadline, or in a runtime that is going down, the stored intent is carried out later.
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }
}

/// To ask for what has failed is to ask for another try.
fn try_again(function: &Function, now: Timestamp) -> Option<(Function, Option<Revision>)> {
    if function.status.phase != Phase::Failed {
        return None;
    }
    let mut next = function.clone();
    let failed = next.status.deployment_mut(function.generation)?;
    failed.enter(RevisionState::Pending, now);
    failed.failures = 0;
    failed.deploy_started_at = None;
    failed.due_at = Some(now);
    next.status.phase = Phase::Pending;
    next.status.reconcile_at = Some(now);
    Some((next, None))
}

impl Host {
    async fn drive(&self, key: &FunctionKey, id: FunctionId, generation: Generation, deadline: Deadline) -> Result<()> {
        while !deadline.has_passed() && !self.lifetime.killed.is_cancelled() {
            let reconciled = self.reconcile_one(key).await?;
            let Some(function) = self.functions.get(key).await? else { return Ok(()) };
            let ended = matches!(function.status.phase, Phase::Ready | Phase::Failed);
            if function.id != id || function.generation != generation || ended {
                return Ok(());
            }
            let pause = match reconciled {
                Reconciled::Again => continue,
                Reconciled::Settled => return Ok(()),
                Reconciled::Later(at) => at.since(self.clock.now()),
                Reconciled::Busy => crate::executor::POLL,
            };
            let until = monotonic_now() + pause.min(deadline.remaining());
            tokio::time::sleep_until(until.into()).await;
        }
        Ok(())
    }
}

#[async_trait]
impl FunctionManager for Gateway {
    async fn create(&self, cx: &CallContext, name: &FunctionName, spec: FunctionSpec) -> Result<Arc<Function>> {
        let host = &self.host;
        host.lifetime.check_open()?;
        host.authorize(cx, Action::Create, Some((name, None))).await?;
        let violations = host.violations(cx, &spec).await?;
        if !violations.is_empty() {
            return Err(Error::invalid_spec(violations).with_context("function", name.as_str()));
        }
        let key = FunctionKey::new(cx.tenant().clone(), name.clone());
        let (id, generation) = (FunctionId::generate(), Generation::FIRST);
        let created = (host.clock.now(), cx.principal().id.clone());
        let revision = Revision::new(key, id, generation, spec, created, RevisionReason::Created);
        let target = host.drivers.require(&revision.spec.driver)?.reference(&host.gateway_id, &revision);
        let function = Arc::new(Function::new(&revision, target));
        let (host, cx_of_task, created) = (Arc::clone(host), cx.clone(), Arc::clone(&function));
        let create = async move {
            host.functions.create(&created, &revision).await?;
            host.routes.invalidate(&created.key);
            host.audit_change(&cx_of_task, Action::Create, &created.key.name, Some(generation)).await;
            Ok(())
        };
        self.host.lifetime.carry_out(create).await?;
        self.settle(cx, function).await
    }

    async fn get(&self, cx: &CallContext, name: &FunctionName) -> Result<Arc<Function>> {
        self.find(cx, name, Action::Read).await
    }

    async fn update(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        spec: FunctionSpec,
        condition: Precondition,
    ) -> Result<Arc<Function>> {
        // Found before it is checked: what is wrong with a specification is told to those who may change the function.
        self.find(cx, name, Action::Update).await?;
        let change = Change { spec, reason: RevisionReason::Updated, always: false, of: None };
        self.change(cx, name, change, condition).await
    }

    async fn roll_back(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        to: Generation,
        condition: Precondition,
    ) -> Result<Arc<Function>> {
        let function = self.find(cx, name, Action::Update).await?;
        let revision = self.stored_revision(&function, to).await?;
        let (spec, reason) = (revision.spec.clone(), RevisionReason::RolledBack { to });
        let change = Change { spec, reason, always: true, of: Some(function.id) };
        self.change(cx, name, change, condition).await
    }

    async fn rotate_secrets(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        condition: Precondition,
    ) -> Result<Arc<Function>> {
        let function = self.find(cx, name, Action::Update).await?;
        let (spec, reason) = (function.spec.clone(), RevisionReason::SecretRotated);
        let change = Change { spec, reason, always: true, of: Some(function.id) };
        self.change(cx, name, change, condition).await
    }

    async fn delete(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        condition: Precondition,
    ) -> Result<Option<Arc<Function>>> {
        let host = &self.host;
        host.lifetime.check_open()?;
        let (function, _) = self
            .compare_and_set(cx, name, Action::Delete, condition, |function| {
                if function.status.phase == Phase::Deleting {
                    return Ok(None);
                }
                let now = host.clock.now();
                let mut next = function.clone();
                next.status.phase = Phase::Deleting;
                next.status.route.clear();
                next.status.deployments.iter_mut().for_each(|deployment| deployment.due_at = Some(now));
                next.status.reconcile_at = Some(now);
                Ok(Some((next, None)))
            })
            .await?;
        self.drive(cx, &function).await?;
        let left = host.functions.get(&function.key).await?;
        Ok(left.filter(|left| left.id == function.id))
    }

    async fn list(&self, cx: &CallContext, filter: &FunctionFilter, page: &PageRequest) -> Result<Page<Arc<Function>>> {
        self.host.authorize(cx, Action::List, None).await?;
        self.host.functions.list(cx.tenant(), filter, page).await
    }

    async fn validate(&self, cx: &CallContext, spec: &FunctionSpec) -> Result<Vec<Violation>> {
        self.host.authorize(cx, Action::Validate, None).await?;
        self.host.violations(cx, spec).await
    }

    async fn revisions(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        page: &PageRequest,
    ) -> Result<Page<Arc<Revision>>> {
        let function = self.find(cx, name, Action::Read).await?;
        self.host.functions.revisions(cx.tenant(), function.id, page).await
    }

    async fn revision(&self, cx: &CallContext, name: &FunctionName, generation: Generation) -> Result<Arc<Revision>> {
        let function = self.find(cx, name, Action::Read).await?;
        self.stored_revision(&function, generation).await
    }

    async fn logs(
        &self,
        cx: &CallContext,
        name: &FunctionName,
        query: LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine>>> {
        let function = self.find(cx, name, Action::Read).await?;
        let serving = self.host.serving(&function, &Qualifier::Serving).await?;
        if serving.capabilities.logs && serving.capabilities.scope == Scope::PerProcess {
            // As a call would have it: after a restart it is not deployed here yet.
            by_deadline(cx.deadline(), pin!(self.host.ensure_deployed(cx, &serving))).await?;
        }
        let secrets = self.host.deployed_secrets(cx, &serving.revision, &serving.capabilities).await?;
        // The driver's stream borrows from the driver, so a task owns both and hands the lines on.
        let (opened, open) = tokio::sync::oneshot::channel();
        let (lines, mut receiver) = tokio::sync::mpsc::channel(64);
        let (cx, closing) = (cx.clone(), self.host.lifetime.closing.clone());
        let read = self.host.lifetime.spawn(async move {
            let read = async {
                let mut stream = match serving.driver.logs(&cx, &serving.target, query).await {
                    Ok(stream) => stream,
                    Err(error) => return drop(opened.send(Err(error))),
                };
                if opened.send(Ok(())).is_err() {
                    return;
                }
                while let Some(line) = stream.next().await {
                    if lines.send(line).await.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                biased;
                // First, since the driver may end what it tells for the same reason.
                () = closing.cancelled() => Some(shutting_down()),
                () = lines.closed() => None,
                () = read => None,
            }
        });
        // What was broken off must not look whole.
        let broken = async {
            let panicked =
                |_| Some(Error::new(ErrorKind::Internal, "the task that reads the log has ended before its time"));
            read.await.unwrap_or_else(panicked)
        };
        match open.await {
            Ok(opened) => opened?,
            Err(_) => return Err(broken.await.unwrap_or_else(shutting_down)),
        }
        let broken = stream::once(broken).filter_map(|broken| std::future::ready(broken.map(Err)));
        let lines = stream::poll_fn(move |cx| receiver.poll_recv(cx)).chain(broken);
        let Some(secrets) = secrets else { return Ok(Box::pin(lines)) };
        Ok(Box::pin(lines.map(move |line| match line {
            Ok(mut line) => {
                line.text = secrets.bytes(&line.text).into_owned().into();
                Ok(line)
            }
            Err(error) => Err(secrets.error(error)),
        })))
    }

    async fn scale(&self, cx: &CallContext, name: &FunctionName, instances: u32) -> Result<()> {
        let function = self.find(cx, name, Action::Update).await?;
        let serving = self.host.serving(&function, &Qualifier::Serving).await?;
        let (host, cx, name) = (Arc::clone(&self.host), cx.clone(), name.clone());
        let scale = async move {
            let request = ScaleRequest::new(instances);
            host.bounded("scale", serving.driver.scale(&cx, &serving.target, request)).await?;
            host.audit_change(&cx, Action::Update, &name, None).await;
            Ok(())
        };
        self.host.lifetime.carry_out(scale).await
    }
}

impl Gateway {
    async fn stored_revision(&self, function: &Function, generation: Generation) -> Result<Arc<Revision>> {
        let revision = self.host.functions.revision(&function.key.tenant, function.id, generation).await?;
        revision.ok_or_else(|| {
            let message = format!("there is no revision {generation} of the function {:?}", function.key.name);
            Error::new(ErrorKind::NotFound, message)
        })
    }
}
