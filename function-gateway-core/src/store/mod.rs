//! What the gateway keeps, and where: functions with their revisions, records of executions, API keys.

pub mod memory;
mod page;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub mod sql;
pub mod statistics;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::{
    ApiKey, ApiKeyId, AuditEvent, DriverName, Error, ErrorKind, Function, FunctionId, FunctionKey, FunctionStatus,
    GatewayId, Generation, InvocationId, InvocationRecord, Phase, PrincipalId, RecordFilter, Result, Retention,
    Revision, Statistics, StatisticsQuery, TenantId, Timestamp, Version,
};

pub use page::{Cursor, CursorKind, Page, PageRequest, UnreadableRow};

/// Which functions, for a list. All that is set has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct FunctionFilter {
    /// Created by this principal.
    pub owner: Option<PrincipalId>,
    /// With all these labels.
    pub labels: Vec<(String, String)>,
    /// In this phase.
    pub phase: Option<Phase>,
    /// Whose newest generation runs on this driver.
    pub driver: Option<DriverName>,
    /// Whose name starts with this.
    pub name_prefix: Option<String>,
}

impl FunctionFilter {
    /// Every function of the tenant.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only those that a principal created.
    #[must_use]
    pub fn with_owner(mut self, owner: PrincipalId) -> Self {
        self.owner = Some(owner);
        self
    }

    /// Only those with a label.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Only those in a phase.
    #[must_use]
    pub fn with_phase(mut self, phase: Phase) -> Self {
        self.phase = Some(phase);
        self
    }

    /// Only those on a driver.
    #[must_use]
    pub fn with_driver(mut self, driver: DriverName) -> Self {
        self.driver = Some(driver);
        self
    }

    /// Only those whose name starts with a text.
    #[must_use]
    pub fn with_name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.name_prefix = Some(prefix.into());
        self
    }

    /// Whether a function is meant.
    #[must_use]
    pub fn matches(&self, function: &Function) -> bool {
        let Self { owner, labels, phase, driver, name_prefix } = self;
        owner.as_ref().is_none_or(|owner| *owner == function.owner)
            && labels.iter().all(|(key, value)| function.spec.labels.get(key) == Some(value))
            && phase.is_none_or(|phase| phase == function.status.phase)
            && driver.as_ref().is_none_or(|driver| *driver == function.spec.driver)
            && name_prefix.as_ref().is_none_or(|prefix| function.key.name.as_str().starts_with(prefix.as_str()))
    }
}

/// The right to reconcile a function, for a time. Writes that depend on it fail once another holder has it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Lease {
    /// The function.
    pub function: FunctionId,
    /// Its key.
    pub key: FunctionKey,
    /// Grows with each holder.
    pub epoch: u64,
}

impl Lease {
    /// Puts a lease together, as stores do.
    #[must_use]
    pub fn new(key: FunctionKey, function: FunctionId, epoch: u64) -> Self {
        Self { function, key, epoch }
    }
}

/// Keeps functions and their revisions.
///
/// # Behaviour
/// - Methods that serve a caller look up by tenant and name, so that no tenant reaches another's functions. Methods that
///   work across tenants say so.
/// - A write is one transaction: all of it is kept, or nothing.
/// - Time for leases is the store's own.
///
/// # Errors
/// Beside those that a method names: [`ErrorKind::Store`] where the store itself fails.
///
/// # Cancel safety
/// A write whose future is dropped is done or not done, never half done.
#[async_trait]
pub trait FunctionStore: fmt::Debug + Send + Sync + 'static {
    /// The identity of the gateway whose functions these are.
    async fn gateway_id(&self) -> Result<GatewayId>;

    /// Adds a function with its first revision.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) where the tenant has a function of the name;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) where the revision is not the function's newest.
    async fn create(&self, function: &Function, revision: &Revision) -> Result<()>;

    /// Reads a function.
    async fn get(&self, key: &FunctionKey) -> Result<Option<Arc<Function>>>;

    /// Replaces a function, adding a revision where there is a new generation, if its identity is the same and its
    /// version is still `expected`. Gives it with its new version: the successor of `expected`.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); [`Conflict`](crate::ErrorKind::Conflict) where the version differs,
    /// another function bears the name now, or there is a revision of that generation already;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) where the revision is not the function's newest.
    async fn update(
        &self,
        function: &Function,
        expected: Version,
        revision: Option<&Revision>,
    ) -> Result<Arc<Function>>;

    /// Reads a page of a tenant's functions, in the order of their names.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn list(&self, tenant: &TenantId, filter: &FunctionFilter, page: &PageRequest)
    -> Result<Page<Arc<Function>>>;

    /// Reads one revision of a function.
    async fn revision(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        generation: Generation,
    ) -> Result<Option<Arc<Revision>>>;

    /// Reads a page of a function's revisions, newest first.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn revisions(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        page: &PageRequest,
    ) -> Result<Page<Arc<Revision>>>;

    /// Takes the lease of a function for a time, from now; `None` where somebody holds it, or there is no such function.
    /// A lease whose time is over is lost, whether somebody else took it or not.
    async fn acquire_lease(&self, key: &FunctionKey, ttl: Duration) -> Result<Option<Lease>>;

    /// Prolongs a lease, from now.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) where it was lost.
    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()>;

    /// Gives a lease back. One that was lost stays with its new holder.
    async fn release_lease(&self, lease: &Lease) -> Result<()>;

    /// Writes a function's status, if the lease still holds and the version is still `expected`. Gives the function
    /// with its new version: the successor of `expected`.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) where either is no longer so.
    async fn update_status(&self, lease: &Lease, expected: Version, status: &FunctionStatus) -> Result<Arc<Function>>;

    /// Removes a function with its revisions, if the lease still holds and the version is still `expected`.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) where either is no longer so.
    async fn delete(&self, lease: &Lease, expected: Version) -> Result<()>;

    /// Across tenants: up to `limit` functions whose `reconcile_at` is not after `now`, the longest due first.
    async fn scan_due(&self, now: Timestamp, limit: usize) -> Result<Vec<FunctionKey>>;

    /// Across tenants: the function of an identity, for the sweep of an engine.
    async fn find(&self, id: FunctionId) -> Result<Option<Arc<Function>>>;

    /// Across tenants: a page of all functions, in the order of tenant and name.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn scan_all(&self, page: &PageRequest) -> Result<Page<Arc<Function>>>;
}

/// How surely a record has to be kept when a write answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Durability {
    /// It is in the store's buffer: it survives all but the death of this process.
    Buffered,
    /// It is committed: it survives the death of this process and of the machine, as far as the store survives those.
    Durable,
}

/// Keeps records of executions, and figures over them.
///
/// # Behaviour
/// - Reads go by tenant. Methods that work across tenants say so.
/// - A record that is in a final state never changes again.
/// - Statistics count each execution once, at the minute in which it ended, and outlive the records.
///
/// # Errors
/// Beside those that a method names: [`ErrorKind::Store`] where the store itself fails.
#[async_trait]
pub trait InvocationStore: fmt::Debug + Send + Sync + 'static {
    /// Commits a record that is not in a final state, with [`Durability::Durable`].
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) where there is a record of the id, in whichever tenant;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) where the state is final.
    async fn begin(&self, record: Arc<InvocationRecord>) -> Result<()>;

    /// Keeps a record in its final state: a new one, or in place of the same one that was begun. It is the same where id,
    /// function, caller and `created_at` are: two calls that bring one id are two executions.
    ///
    /// # Errors
    /// [`Conflict`](crate::ErrorKind::Conflict) where the record is in a final state already, or is another execution's;
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) where the new state is not final or `finished_at` is absent.
    async fn finish(&self, record: Arc<InvocationRecord>, durability: Durability) -> Result<()>;

    /// Waits until everything that was buffered when it was called is kept.
    async fn flush(&self) -> Result<()>;

    /// Reads a record.
    async fn get(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<InvocationRecord>>>;

    /// Reads a page of a tenant's records, newest first by `created_at`, those of the same microsecond by their ids.
    /// Callers may bring ids of their own, so ids alone say nothing about time.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn list(
        &self,
        tenant: &TenantId,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>>;

    /// Figures over a tenant's executions.
    async fn statistics(&self, tenant: &TenantId, query: &StatisticsQuery) -> Result<Statistics>;

    /// Across tenants: deletes up to `limit` records in a final state that a retention does not keep. Says how many
    /// were deleted; fewer than `limit` means that nothing is left to delete.
    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64>;
}

/// Keeps API keys: what they may do, and hashes of their secret parts.
///
/// # Errors
/// Beside those that a method names: [`ErrorKind::Store`] where the store itself fails.
///
/// # Cancel safety
/// A write whose future is dropped is done or not done, never half done.
#[async_trait]
pub trait ApiKeyStore: fmt::Debug + Send + Sync + 'static {
    /// Adds a key.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) where there is a key of the id, in whichever tenant; that one
    /// stays as it is.
    async fn add_key(&self, key: &ApiKey) -> Result<()>;

    /// Across tenants: the key of an id, in whichever state, for whoever authenticates callers.
    async fn find_key(&self, id: ApiKeyId) -> Result<Option<Arc<ApiKey>>>;

    /// Reads a page of a tenant's keys in all states, newest first by `created_at`, those of the same microsecond by their
    /// ids.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn keys(&self, tenant: &TenantId, page: &PageRequest) -> Result<Page<Arc<ApiKey>>>;

    /// Notes that a tenant's key is revoked, for good. One that is revoked already keeps its time. Gives the key as it is
    /// then.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) where the tenant has no key of the id.
    async fn revoke_key(&self, tenant: &TenantId, id: ApiKeyId, at: Timestamp) -> Result<Arc<ApiKey>>;
}

/// A small document that something beside the gateway keeps for a tenant, such as a subscription. Its texts are without
/// `U+0000`, which not every database takes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredDocument {
    /// Whose it is.
    pub tenant: TenantId,
    /// What it is: at most 64 bytes.
    pub kind: String,
    /// Its name among those of its kind: at most 255 bytes.
    pub name: String,
    /// Counts its changes, from 1.
    pub version: Version,
    /// The document, in its owner's form: at most 256 KiB.
    pub content: String,
}

impl StoredDocument {
    /// The greatest length of a kind, in bytes.
    pub const MAX_KIND: usize = 64;
    /// The greatest length of a name, in bytes.
    pub const MAX_NAME: usize = 255;
    /// The greatest length of the content, in bytes.
    pub const MAX_CONTENT: usize = 256 * 1024;

    /// A new document.
    #[must_use]
    pub fn new(tenant: TenantId, kind: impl Into<String>, name: impl Into<String>, content: impl Into<String>) -> Self {
        Self { tenant, kind: kind.into(), name: name.into(), version: Version::FIRST, content: content.into() }
    }
}

/// Keeps small documents for what is built on the gateway.
///
/// # Errors
/// Beside those that a method names: [`ErrorKind::Store`] where the store itself fails.
///
/// # Cancel safety
/// A write whose future is dropped is done or not done, never half done.
#[async_trait]
pub trait DocumentStore: fmt::Debug + Send + Sync + 'static {
    /// Adds a document, or with `expected` replaces the one that has this version. Gives it with its version: the first one,
    /// or the successor of `expected`.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) where one of its texts is too long or has a `U+0000`;
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) for a new one whose name is taken;
    /// [`NotFound`](crate::ErrorKind::NotFound) where there is nothing to replace;
    /// [`Conflict`](crate::ErrorKind::Conflict) where the version differs.
    async fn put_document(&self, document: &StoredDocument, expected: Option<Version>) -> Result<StoredDocument>;

    /// Reads a document.
    async fn document(&self, tenant: &TenantId, kind: &str, name: &str) -> Result<Option<StoredDocument>>;

    /// Reads a page of a tenant's documents of a kind, in the order of their names.
    ///
    /// # Errors
    /// [`InvalidArgument`](crate::ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn documents(&self, tenant: &TenantId, kind: &str, page: &PageRequest) -> Result<Page<StoredDocument>>;

    /// Removes a document, with `expected` only if it has this version.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound); [`Conflict`](crate::ErrorKind::Conflict) where the version differs.
    async fn delete_document(&self, tenant: &TenantId, kind: &str, name: &str, expected: Option<Version>)
    -> Result<()>;
}

/// Sorts a page's limit out: what was asked, within what a store gives at once.
pub(crate) const MAX_PAGE: usize = 1000;

fn check_revision(function: &Function, revision: &Revision) -> Result<()> {
    let is_its =
        revision.key == function.key && revision.function == function.id && revision.generation == function.generation;
    if is_its {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, "the revision is not the newest one of the function"))
}

fn function_not_found(key: &FunctionKey) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such function").with_context("function", key.name.as_str())
}

fn function_changed(key: &FunctionKey) -> Error {
    Error::new(ErrorKind::Conflict, "the function has changed in the meantime")
        .with_context("function", key.name.as_str())
}

fn lease_lost(key: &FunctionKey) -> Error {
    Error::new(ErrorKind::Conflict, "the lease of the function was lost").with_context("function", key.name.as_str())
}

/// An execution begins in a state that is not final.
fn check_begin(record: &InvocationRecord) -> Result<()> {
    match record.state.is_final() {
        true => Err(Error::new(ErrorKind::InvalidArgument, "an execution does not begin in a final state")),
        false => Ok(()),
    }
}

/// When an execution ended, which it does in a final state.
fn check_finish(record: &InvocationRecord) -> Result<Timestamp> {
    record.finished_at.filter(|_| record.state.is_final()).ok_or_else(|| {
        let message = "an execution ends in a final state, with the time at which it ended";
        Error::new(ErrorKind::InvalidArgument, message)
    })
}

fn record_exists(record: &InvocationRecord) -> Error {
    Error::new(ErrorKind::AlreadyExists, "there is a record of this invocation id already")
        .with_context("invocation", record.id.to_string())
}

fn record_is_final(record: &InvocationRecord) -> Error {
    Error::new(ErrorKind::Conflict, "the record of this invocation id is final")
        .with_context("invocation", record.id.to_string())
}

/// How many bytes of payload, result and log a record holds.
fn kept_bytes(record: &InvocationRecord) -> usize {
    let kept = [&record.payload, &record.result, &record.logs];
    kept.into_iter().flatten().map(|kept| kept.bytes.len()).sum()
}

fn key_exists(id: ApiKeyId) -> Error {
    Error::new(ErrorKind::AlreadyExists, "there is an API key of this id already").with_context("key", id.to_string())
}

pub(crate) fn key_not_found(id: ApiKeyId) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such API key").with_context("key", id.to_string())
}

/// What the texts of a document have to be.
fn check_document(document: &StoredDocument) -> Result<()> {
    let StoredDocument { kind, name, content, .. } = document;
    let texts = [
        ("kind", kind, StoredDocument::MAX_KIND),
        ("name", name, StoredDocument::MAX_NAME),
        ("content", content, StoredDocument::MAX_CONTENT),
    ];
    match texts.into_iter().find(|(_, text, max)| text.len() > *max || text.contains('\0')) {
        Some((what, _, max)) => {
            let message = format!("the {what} of a document has at most {max} bytes and no U+0000");
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
        None => Ok(()),
    }
}

fn document_exists(name: &str) -> Error {
    Error::new(ErrorKind::AlreadyExists, "there is a document of this name already").with_context("document", name)
}

fn document_not_found(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, "there is no such document").with_context("document", name)
}

fn document_changed(name: &str) -> Error {
    Error::new(ErrorKind::Conflict, "the document has changed in the meantime").with_context("document", name)
}

fn event_exists(event: &AuditEvent) -> Error {
    Error::new(ErrorKind::AlreadyExists, "there is an audit event of this id already")
        .with_context("event", event.id.to_string())
}
