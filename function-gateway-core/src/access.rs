//! Who has access: API keys, and what the audit log tells.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::store::key_not_found;
use crate::{
    Action, ApiKey, ApiKeyId, ApiKeyStore, AuditEvent, AuditFilter, CallContext, Error, ErrorKind, Gateway, Page,
    PageRequest, PrincipalId, Result, Timestamp, Violation,
};

/// An API key to create. The host draws the key itself, and gives its secret part to nobody but the key's holder.
#[derive(Clone)]
#[non_exhaustive]
pub struct NewApiKey {
    /// Its identity. It has to be new.
    pub id: ApiKeyId,
    /// SHA-256 of the secret part of the key.
    pub hash: [u8; 32],
    /// As whom its holder acts; as the caller where it is absent.
    pub principal: Option<PrincipalId>,
    /// What its holder is given: at most [`MAX_SCOPES`](Self::MAX_SCOPES), each of at most
    /// [`MAX_SCOPE_BYTES`](Self::MAX_SCOPE_BYTES).
    pub scopes: BTreeSet<String>,
    /// What it is for: at most [`MAX_DESCRIPTION_BYTES`](Self::MAX_DESCRIPTION_BYTES).
    pub description: String,
    /// From when on it is of no more use, which has to be later than now; it never expires where this is absent.
    pub expires_at: Option<Timestamp>,
}

impl NewApiKey {
    /// The most scopes that a key has.
    pub const MAX_SCOPES: usize = 64;
    /// The greatest length of a scope, in bytes of UTF-8.
    pub const MAX_SCOPE_BYTES: usize = 256;
    /// The greatest length of a description, in bytes of UTF-8.
    pub const MAX_DESCRIPTION_BYTES: usize = 1024;

    /// A key of the caller's, without scopes, that does not expire.
    #[must_use]
    pub fn new(id: ApiKeyId, hash: [u8; 32]) -> Self {
        Self { id, hash, principal: None, scopes: BTreeSet::new(), description: String::new(), expires_at: None }
    }

    /// Says as whom its holder acts.
    #[must_use]
    pub fn with_principal(mut self, principal: PrincipalId) -> Self {
        self.principal = Some(principal);
        self
    }

    /// Adds a scope.
    #[must_use]
    pub fn with_scope(mut self, scope: impl Into<String>) -> Self {
        self.scopes.insert(scope.into());
        self
    }

    /// Says what it is for.
    #[must_use]
    pub fn with_description(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    /// Sets from when on it is of no more use.
    #[must_use]
    pub fn with_expires_at(mut self, expires_at: Timestamp) -> Self {
        self.expires_at = Some(expires_at);
        self
    }

    /// What is wrong with it by itself.
    fn violations(&self, now: Timestamp) -> Vec<Violation> {
        let mut found = Vec::new();
        if self.scopes.len() > Self::MAX_SCOPES {
            let reason = format!("there are {} scopes, at most {} are allowed", self.scopes.len(), Self::MAX_SCOPES);
            found.push(Violation::new("/scopes", reason));
        }
        for (index, scope) in self.scopes.iter().enumerate() {
            if scope.len() > Self::MAX_SCOPE_BYTES {
                let reason = format!("is {} bytes long, at most {} are allowed", scope.len(), Self::MAX_SCOPE_BYTES);
                found.push(Violation::new(format!("/scopes/{index}"), reason));
            }
        }
        if self.description.len() > Self::MAX_DESCRIPTION_BYTES {
            let (len, max) = (self.description.len(), Self::MAX_DESCRIPTION_BYTES);
            found.push(Violation::new("/description", format!("is {len} bytes long, at most {max} are allowed")));
        }
        if self.expires_at.is_some_and(|expires_at| expires_at <= now) {
            found.push(Violation::new("/expires_at", format!("is not later than now, which is {now}")));
        }
        found
    }
}

impl fmt::Debug for NewApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, hash: _, principal, scopes, description, expires_at } = self;
        f.debug_struct("NewApiKey")
            .field("id", id)
            .field("principal", principal)
            .field("scopes", scopes)
            .field("description", description)
            .field("expires_at", expires_at)
            .finish_non_exhaustive()
    }
}

/// Manages the API keys of a tenant, and reads what was done in it.
///
/// It keeps keys, and decides nothing by them: an authenticator of the host's makes a [`Principal`](crate::Principal) of one
/// that was presented, with its tenant, principal and scopes.
///
/// New methods may be added: it is implemented by the gateway, not by hosts.
///
/// # Errors
/// Beside those that a method names: [`ErrorKind::PermissionDenied`] where the [`Authorizer`](crate::Authorizer) says so;
/// [`ErrorKind::Unsupported`] from all that is about keys where the gateway was given no store for them.
///
/// # Cancel safety
/// A change that has begun is carried out and audited, whether its caller waits or not.
#[async_trait]
pub trait AccessManager: fmt::Debug + Send + Sync + 'static {
    /// Creates a key of the caller's tenant, by [`Action::CreateKey`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] with every violation, those of
    /// [`check_grant`](crate::Authorizer::check_grant) among them; [`ErrorKind::AlreadyExists`] where there is a key of the
    /// id, in whichever tenant.
    async fn create_api_key(&self, cx: &CallContext, key: NewApiKey) -> Result<Arc<ApiKey>>;

    /// Reads a page of the tenant's keys in all states, newest first, by [`Action::ReadKeys`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a cursor of another list.
    async fn api_keys(&self, cx: &CallContext, page: &PageRequest) -> Result<Page<Arc<ApiKey>>>;

    /// Reads a key of the tenant, by [`Action::ReadKeys`].
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the caller's tenant has none of this id.
    async fn api_key(&self, cx: &CallContext, id: ApiKeyId) -> Result<Arc<ApiKey>>;

    /// Revokes a key of the tenant for good, by [`Action::RevokeKey`]. One that is revoked already stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] where the caller's tenant has none of this id.
    async fn revoke_api_key(&self, cx: &CallContext, id: ApiKeyId) -> Result<Arc<ApiKey>>;

    /// Reads a page of the tenant's audit events, newest first, by [`Action::ReadAudit`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a cursor of another list.
    async fn audit_events(
        &self,
        cx: &CallContext,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<AuditEvent>>>;

    /// Whether the caller may read the figures of the gateway as a whole ([`Action::ReadMetrics`]), which a host exports.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] where not.
    async fn may_read_metrics(&self, cx: &CallContext) -> Result<()>;

    /// The key of an id, of whichever tenant and in whichever [state](ApiKey::state). It is for authenticators, which do not
    /// know yet who calls: nobody is asked whether the key may be read, and the caller must not be told of it.
    ///
    /// # Errors
    /// Where the store fails.
    async fn find_api_key(&self, id: ApiKeyId) -> Result<Option<Arc<ApiKey>>>;
}

impl Gateway {
    fn keys(&self) -> Result<&Arc<dyn ApiKeyStore>> {
        self.host.keys.as_ref().ok_or_else(|| {
            let message = "this gateway keeps no API keys: it was built without a store for them";
            Error::new(ErrorKind::Unsupported, message)
        })
    }
}

#[async_trait]
impl AccessManager for Gateway {
    async fn create_api_key(&self, cx: &CallContext, key: NewApiKey) -> Result<Arc<ApiKey>> {
        let host = &self.host;
        host.lifetime.check_open()?;
        host.authorize_key(cx, Action::CreateKey, key.id).await?;
        let keys = Arc::clone(self.keys()?);
        let now = host.clock.now();
        let creator = cx.principal().id.clone();
        let mut violations = key.violations(now);
        let principal = key.principal.clone().unwrap_or_else(|| creator.clone());
        if principal.is_caller() {
            let reason = "stands for the caller in queries, so it can't be a principal's name";
            violations.push(Violation::new("/principal", reason));
        }
        // Scopes that are too long or too many are looked at no further.
        if !violations.iter().any(|violation| violation.pointer.starts_with("/scopes")) {
            let refused = host.authorizer.check_grant(cx.principal(), &key.scopes);
            if !refused.is_empty() {
                host.audit_key(cx, Action::CreateKey, key.id, false).await;
                violations.extend(refused);
            }
        }
        if !violations.is_empty() {
            let message = "an API key can't be created like this";
            return Err(Error::new(ErrorKind::InvalidArgument, message).with_violations(violations));
        }
        let NewApiKey { id, hash, principal: _, scopes, description, expires_at } = key;
        let mut key = ApiKey::new(id, cx.tenant().clone(), principal, hash, (now, creator));
        (key.scopes, key.description, key.expires_at) = (scopes, description, expires_at);
        let (host, cx, key) = (Arc::clone(host), cx.clone(), Arc::new(key));
        let create = async move {
            keys.add_key(&key).await?;
            host.audit_key(&cx, Action::CreateKey, id, true).await;
            Ok(key)
        };
        self.host.lifetime.carry_out(create).await
    }

    async fn api_keys(&self, cx: &CallContext, page: &PageRequest) -> Result<Page<Arc<ApiKey>>> {
        self.host.authorize(cx, Action::ReadKeys, None).await?;
        self.keys()?.keys(cx.tenant(), page).await
    }

    async fn api_key(&self, cx: &CallContext, id: ApiKeyId) -> Result<Arc<ApiKey>> {
        self.host.authorize(cx, Action::ReadKeys, None).await?;
        self.key_of(cx, id).await
    }

    async fn revoke_api_key(&self, cx: &CallContext, id: ApiKeyId) -> Result<Arc<ApiKey>> {
        let host = Arc::clone(&self.host);
        host.lifetime.check_open()?;
        host.authorize_key(cx, Action::RevokeKey, id).await?;
        let keys = Arc::clone(self.keys()?);
        let key = self.key_of(cx, id).await?;
        if key.revoked_at.is_some() {
            return Ok(key);
        }
        let cx = cx.clone();
        let revoke = async move {
            let revoked = keys.revoke_key(cx.tenant(), id, host.clock.now()).await?;
            host.audit_key(&cx, Action::RevokeKey, id, true).await;
            Ok(revoked)
        };
        self.host.lifetime.carry_out(revoke).await
    }

    async fn audit_events(
        &self,
        cx: &CallContext,
        filter: &AuditFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<AuditEvent>>> {
        self.host.authorize(cx, Action::ReadAudit, None).await?;
        self.host.audit.list(cx.tenant(), filter, page).await
    }

    async fn may_read_metrics(&self, cx: &CallContext) -> Result<()> {
        self.host.authorize(cx, Action::ReadMetrics, None).await
    }

    async fn find_api_key(&self, id: ApiKeyId) -> Result<Option<Arc<ApiKey>>> {
        self.keys()?.find_key(id).await
    }
}

impl Gateway {
    async fn key_of(&self, cx: &CallContext, id: ApiKeyId) -> Result<Arc<ApiKey>> {
        let key = self.keys()?.find_key(id).await?;
        key.filter(|key| key.tenant == *cx.tenant()).ok_or_else(|| key_not_found(id))
    }
}
