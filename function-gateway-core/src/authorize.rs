//! Who calls, what they may do, and what they did.

mod scopes;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    ApiKeyId, AuditEventId, CallContext, FunctionName, Generation, InvocationId, Page, PageRequest, PrincipalId,
    Result, Retention, TenantId, Timestamp, Violation,
};

pub use scopes::ScopeAuthorizer;

/// Who calls, as the host's authentication found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Principal {
    /// The tenant that the credential belongs to.
    pub tenant: TenantId,
    /// Who it is.
    pub id: PrincipalId,
    /// What the credential was given, for an [`Authorizer`] to go by.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Action {
    /// Create a function.
    Create,
    /// Read a function, its revisions or logs.
    Read,
    /// Ask what is wrong with a specification.
    Validate,
    /// Change a function.
    Update,
    /// Delete a function.
    Delete,
    /// List the functions of the tenant.
    List,
    /// Execute a function.
    Invoke,
    /// Read records and statistics of executions, dead letters among them.
    ReadExecutions,
    /// End an execution that was accepted.
    Cancel,
    /// Have dead letters executed again.
    Redrive,
    /// Forget dead letters.
    Purge,
    /// Publish events in the tenant.
    Publish,
    /// Read the subscriptions of the tenant.
    ReadSubscriptions,
    /// Create, change and delete subscriptions of the tenant.
    WriteSubscriptions,
    /// Read the audit events of the tenant.
    ReadAudit,
    /// Read the API keys of the tenant, but for what only their holders know.
    ReadKeys,
    /// Create an API key of the tenant.
    CreateKey,
    /// Revoke an API key of the tenant.
    RevokeKey,
    /// Read the figures of the gateway as a whole, which are about the functions of all tenants.
    ReadMetrics,
}

impl Action {
    /// The name in JSON and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Read => "read",
            Self::Validate => "validate",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Invoke => "invoke",
            Self::ReadExecutions => "read_executions",
            Self::Cancel => "cancel",
            Self::Redrive => "redrive",
            Self::Purge => "purge",
            Self::Publish => "publish",
            Self::ReadSubscriptions => "read_subscriptions",
            Self::WriteSubscriptions => "write_subscriptions",
            Self::ReadAudit => "read_audit",
            Self::ReadKeys => "read_keys",
            Self::CreateKey => "create_key",
            Self::RevokeKey => "revoke_key",
            Self::ReadMetrics => "read_metrics",
        }
    }

    /// Whether it changes something, so that it is audited.
    pub(crate) fn is_change(self) -> bool {
        match self {
            Self::Create
            | Self::Update
            | Self::Delete
            | Self::Cancel
            | Self::Redrive
            | Self::Purge
            | Self::WriteSubscriptions
            | Self::CreateKey
            | Self::RevokeKey => true,
            Self::Read
            | Self::Validate
            | Self::List
            | Self::Invoke
            | Self::ReadExecutions
            | Self::Publish
            | Self::ReadSubscriptions
            | Self::ReadAudit
            | Self::ReadKeys
            | Self::ReadMetrics => false,
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

/// Decides what a principal may do. Manager, executor, the reading of records and the management of access all ask it.
///
/// Tenants are kept apart before it is asked: a principal never reaches what belongs to another tenant, but for the figures
/// of the gateway as a whole ([`Action::ReadMetrics`]).
#[async_trait]
pub trait Authorizer: fmt::Debug + Send + Sync + 'static {
    /// Whether the principal of `cx` may do this.
    ///
    /// # Errors
    /// Where the decision can't be made; the operation is then refused with that error.
    async fn authorize(&self, cx: &CallContext, action: Action, resource: Resource<'_>) -> Result<Decision>;

    /// What is wrong with giving scopes away, asked before an API key is created: that one is not known, or that `granter`
    /// has no right to give it. The pointers are `/scopes/0` and so on, in the order of the set. Nothing is, unless it says so.
    fn check_grant(&self, granter: &Principal, scopes: &BTreeSet<String>) -> Vec<Violation> {
        let _ = (granter, scopes);
        Vec::new()
    }
}

/// Allows every principal everything within its own tenant; so not [`Action::ReadMetrics`], which is about all tenants.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllowWithinTenant;

#[async_trait]
impl Authorizer for AllowWithinTenant {
    async fn authorize(&self, _: &CallContext, action: Action, _: Resource<'_>) -> Result<Decision> {
        Ok(if action == Action::ReadMetrics { Decision::Deny } else { Decision::Allow })
    }
}

/// A change that was made, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AuditEvent {
    /// The event.
    pub id: AuditEventId,
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
    /// To which API key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<ApiKeyId>,
    /// To which execution.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution: Option<InvocationId>,
    /// To what else, by its name: what is built on the gateway has things of its own, such as subscriptions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Whether it was allowed and done.
    pub allowed: bool,
}

impl AuditEvent {
    /// What the principal of `cx` did at a time.
    #[must_use]
    pub fn new(at: Timestamp, cx: &CallContext, action: Action, allowed: bool) -> Self {
        Self {
            id: AuditEventId::generate(),
            at,
            tenant: cx.tenant().clone(),
            principal: cx.principal().id.clone(),
            action,
            function: None,
            generation: None,
            key: None,
            execution: None,
            subject: None,
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

    /// Names the execution.
    #[must_use]
    pub fn on_execution(mut self, execution: InvocationId) -> Self {
        self.execution = Some(execution);
        self
    }

    /// Names what it was done to, where that is none of these.
    #[must_use]
    pub fn on_subject(mut self, name: impl Into<String>) -> Self {
        self.subject = Some(name.into());
        self
    }

    /// Names the API key.
    #[must_use]
    pub fn on_key(mut self, key: ApiKeyId) -> Self {
        self.key = Some(key);
        self
    }
}

/// Which audit events, for a list. All that is set has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditFilter {
    /// On the function of this name, whichever functions have borne it.
    pub function: Option<FunctionName>,
    /// By this principal.
    pub principal: Option<PrincipalId>,
    /// Of this action.
    pub action: Option<Action>,
    /// At this time or later.
    pub from: Option<Timestamp>,
    /// Before this time.
    pub until: Option<Timestamp>,
}

impl AuditFilter {
    /// Every event of the tenant.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only those on the function of a name.
    #[must_use]
    pub fn with_function(mut self, function: FunctionName) -> Self {
        self.function = Some(function);
        self
    }

    /// Only those by a principal.
    #[must_use]
    pub fn with_principal(mut self, principal: PrincipalId) -> Self {
        self.principal = Some(principal);
        self
    }

    /// Only those of an action.
    #[must_use]
    pub fn with_action(mut self, action: Action) -> Self {
        self.action = Some(action);
        self
    }

    /// Only those at a time or later.
    #[must_use]
    pub fn with_from(mut self, from: Timestamp) -> Self {
        self.from = Some(from);
        self
    }

    /// Only those before a time.
    #[must_use]
    pub fn with_until(mut self, until: Timestamp) -> Self {
        self.until = Some(until);
        self
    }

    /// Whether an event is meant.
    #[must_use]
    pub fn matches(&self, event: &AuditEvent) -> bool {
        let Self { function, principal, action, from, until } = self;
        function.as_ref().is_none_or(|function| Some(function) == event.function.as_ref())
            && principal.as_ref().is_none_or(|principal| *principal == event.principal)
            && action.is_none_or(|action| action == event.action)
            && from.is_none_or(|from| event.at >= from)
            && until.is_none_or(|until| event.at < until)
    }
}

/// Keeps audit events.
///
/// # Errors
/// Beside those that a method names: [`ErrorKind::Store`](crate::ErrorKind::Store) where the log itself fails.
///
/// # Cancel safety
/// A write whose future is dropped is done or not done, never half done.
#[async_trait]
pub trait AuditLog: fmt::Debug + Send + Sync + 'static {
    /// Keeps an event. When it answers, the event is as safe as the log makes it.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) where there is an event of the id, in whichever tenant; that one
    /// stays as it is. The change that an event tells of has been made: the gateway logs the failure.
    async fn append(&self, event: AuditEvent) -> Result<()>;

    /// Reads a page of a tenant's events, newest first by `at`, those of the same microsecond by their ids.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn list(&self, tenant: &TenantId, filter: &AuditFilter, page: &PageRequest) -> Result<Page<Arc<AuditEvent>>>;

    /// Across tenants: deletes up to `limit` events that a retention does not keep, the oldest first. Says how many were
    /// deleted; fewer than `limit` means that nothing is left to delete.
    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64>;
}
