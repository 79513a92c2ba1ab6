//! Who calls, what they may do, and what they did.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{CallContext, FunctionName, Generation, PrincipalId, Result, TenantId, Timestamp};

/// Who calls, as the host's authentication found out.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Principal {
    /// The tenant that the credential belongs to.
    pub tenant: TenantId,
    /// Who it is.
    pub id: PrincipalId,
    /// What the credential was given, for an [`Authorizer`] to go by.
    pub scopes: BTreeSet<String>,
}

impl Principal {
    /// A principal without scopes.
    #[must_use]
    pub fn new(tenant: TenantId, id: PrincipalId) -> Self {
        Self { tenant, id, scopes: BTreeSet::new() }
    }

    /// Adds a scope.
    #[must_use]
    pub fn with_scope(mut self, scope: impl Into<String>) -> Self {
        self.scopes.insert(scope.into());
        self
    }
}

/// What a principal wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Action {
    /// Create a function.
    Create,
    /// Read a function, its revisions or logs.
    Read,
    /// Change a function.
    Update,
    /// Delete a function.
    Delete,
    /// List the functions of the tenant.
    List,
    /// Execute a function.
    Invoke,
    /// Read records and statistics of executions.
    ReadExecutions,
}

impl Action {
    /// The name in JSON and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Read => "read",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Invoke => "invoke",
            Self::ReadExecutions => "read_executions",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What it is wanted on: a function of the principal's tenant, or the tenant as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Resource<'a> {
    /// The tenant.
    pub tenant: &'a TenantId,
    /// The function; absent for the tenant as a whole.
    pub function: Option<&'a FunctionName>,
    /// Who created the function, where it exists.
    pub owner: Option<&'a PrincipalId>,
}

impl<'a> Resource<'a> {
    /// A tenant as a whole.
    #[must_use]
    pub fn tenant(tenant: &'a TenantId) -> Self {
        Self { tenant, function: None, owner: None }
    }

    /// A function.
    #[must_use]
    pub fn function(tenant: &'a TenantId, function: &'a FunctionName, owner: Option<&'a PrincipalId>) -> Self {
        Self { tenant, function: Some(function), owner }
    }
}

/// What an [`Authorizer`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// The principal may.
    Allow,
    /// The principal may not.
    Deny,
}

/// Decides what a principal may do. Manager, executor and the reading of records all ask it.
///
/// Tenants are kept apart before it is asked: a principal never reaches what belongs to another tenant.
#[async_trait]
pub trait Authorizer: fmt::Debug + Send + Sync + 'static {
    /// Whether the principal of `cx` may do this.
    ///
    /// # Errors
    /// Where the decision can't be made; the operation is then refused with that error.
    async fn authorize(&self, cx: &CallContext, action: Action, resource: Resource<'_>) -> Result<Decision>;
}

/// Allows every principal everything within its own tenant.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowWithinTenant;

#[async_trait]
impl Authorizer for AllowWithinTenant {
    async fn authorize(&self, _: &CallContext, _: Action, _: Resource<'_>) -> Result<Decision> {
        Ok(Decision::Allow)
    }
}

/// A change that was made, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditEvent {
    /// When.
    pub at: Timestamp,
    /// In which tenant.
    pub tenant: TenantId,
    /// Who.
    pub principal: PrincipalId,
    /// What was done.
    pub action: Action,
    /// To which function.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionName>,
    /// The generation that came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// Whether it was allowed and done.
    pub allowed: bool,
}

impl AuditEvent {
    /// What the principal of `cx` did at a time.
    #[must_use]
    pub fn new(at: Timestamp, cx: &CallContext, action: Action, allowed: bool) -> Self {
        Self {
            at,
            tenant: cx.tenant().clone(),
            principal: cx.principal().id.clone(),
            action,
            function: None,
            generation: None,
            allowed,
        }
    }

    /// Names the function, and the generation that came of it.
    #[must_use]
    pub fn on(mut self, function: &FunctionName, generation: Option<Generation>) -> Self {
        self.function = Some(function.clone());
        self.generation = generation;
        self
    }
}

/// Where audit events go.
#[async_trait]
pub trait AuditLog: fmt::Debug + Send + Sync + 'static {
    /// Keeps an event.
    ///
    /// # Errors
    /// Where the event can't be kept. The change that it tells of has been made: the gateway logs the failure.
    async fn append(&self, event: AuditEvent) -> Result<()>;

    /// The newest events of a tenant, newest first.
    ///
    /// # Errors
    /// Where the log can't be read.
    async fn recent(&self, tenant: &TenantId, limit: usize) -> Result<Vec<AuditEvent>>;
}

/// Keeps the newest audit events in memory.
#[derive(Debug)]
pub struct MemoryAuditLog {
    capacity: usize,
    events: Mutex<VecDeque<Arc<AuditEvent>>>,
}

impl MemoryAuditLog {
    /// Keeps at most `capacity` events of all tenants together.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { capacity, events: Mutex::default() }
    }
}

impl Default for MemoryAuditLog {
    fn default() -> Self {
        Self::new(10_000)
    }
}

#[async_trait]
impl AuditLog for MemoryAuditLog {
    async fn append(&self, event: AuditEvent) -> Result<()> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        while events.len() >= self.capacity.max(1) {
            events.pop_front();
        }
        events.push_back(Arc::new(event));
        Ok(())
    }

    async fn recent(&self, tenant: &TenantId, limit: usize) -> Result<Vec<AuditEvent>> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(events
            .iter()
            .rev()
            .filter(|event| event.tenant == *tenant)
            .take(limit)
            .map(|event| (**event).clone())
            .collect())
    }
}
