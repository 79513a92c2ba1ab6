//! Stores in SQL databases: SQLite, PostgreSQL, and MariaDB or MySQL, each behind the feature of its name.
//!
//! Which one when, how large, backup and upgrades: `docs/operations.md`.

mod audit;
mod batch;
mod depth;
mod documents;
mod engine;
mod fault;
mod functions;
mod keys;
mod migrate;
#[cfg(feature = "mysql")]
mod mysql;
#[cfg(feature = "postgres")]
mod postgres;
mod queue;
mod record_row;
mod records;
mod retention;
#[cfg(feature = "sqlite")]
mod sqlite;
mod steps;
mod take;
mod writer;

use std::fmt;
use std::sync::{Arc, Once};
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_util::context::TokioContext;

use self::batch::{Outcome, Signals};
use self::engine::{Connected, Engine, Session};
use self::fault::{Fault, FaultKind};
use self::retention::Crowded;
use self::steps::Step;
use self::take::Turn;
use self::writer::Writer;
use super::{
    ApiKeyStore, DocumentStore, Durability, FunctionFilter, FunctionStore, InvocationStore, Lease, Page, PageRequest,
    StoredDocument,
};
use crate::{
    Acceptance, Accepted, ApiKey, ApiKeyId, AuditEvent, AuditFilter, AuditLog, Cancelling, DeadLetterFilter, Deadline,
    Dispatch, Error, ErrorKind, Function, FunctionId, FunctionKey, FunctionName, FunctionStatus, GatewayId, Generation,
    InvocationId, InvocationQueue, InvocationRecord, QueueDepth, QueueLease, QueueSignal, QueuedInvocation,
    RecordFilter, Result, Retention, Revision, Settlement, Statistics, StatisticsQuery, TakeRequest, Taken, TenantId,
    Timestamp, Version,
};

/// How a [`SqlStore`] uses its database.
///
/// ```
/// use std::time::Duration;
///
/// use function_gateway_core::store::sql::SqlStoreOptions;
///
/// let options = SqlStoreOptions::default().with_max_connections(20).with_flush_interval(Duration::from_millis(20));
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SqlStoreOptions {
    /// How many connections there are at most; 10 unless set. With SQLite, how many read beside the one that writes.
    pub max_connections: u32,
    /// How long an operation may take before it fails with [`ErrorKind::Store`], the waiting for a connection, for a lock and
    /// for room in the buffer included; 10 s unless set.
    pub operation_timeout: Duration,
    /// How long what is [buffered](Durability::Buffered) waits for more before it is written; 100 ms unless set.
    pub flush_interval: Duration,
    /// How many records are buffered at most, those that are being written included; 8,192 unless set. So many may be
    /// missing after the process was killed. Beyond that, calls wait.
    pub max_buffered_records: usize,
    /// How many bytes of payloads, results and logs are buffered at most; 64 MiB unless set. Beyond that, calls wait.
    pub max_buffered_bytes: usize,
    /// How many revisions of each function are kept; 100 unless set. Beyond that the oldest are deleted, but never the
    /// newest, nor one that is in the function's route or still in an engine.
    pub max_revisions_per_function: u64,
    /// The identity of the gateway that a new database gets; at random unless set. A database that has another one
    /// already is refused.
    pub gateway: Option<GatewayId>,
    /// Where records are written, and connections are driven; the runtime that opens the store unless set. It has to be there until the
    /// store is closed.
    pub runtime: Option<Handle>,
}

impl Default for SqlStoreOptions {
    fn default() -> Self {
        Self {
            max_connections: 10,
            operation_timeout: Duration::from_secs(10),
            flush_interval: Duration::from_millis(100),
            max_buffered_records: 8192,
            max_buffered_bytes: 64 * 1024 * 1024,
            max_revisions_per_function: 100,
            gateway: None,
            runtime: None,
        }
    }
}

impl SqlStoreOptions {
    /// How long a connection is waited for: not quite as long as an operation may take, so that its error says so.
    fn acquire_timeout(&self) -> Duration {
        self.operation_timeout.mul_f64(0.9)
    }

    /// How long a server leaves a transaction open in which nothing happens, as that of a process which it can't reach any more: its
    /// locks are gone before others give up waiting for them.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    fn idle_transaction_timeout(&self) -> Duration {
        (self.operation_timeout / 2).clamp(Duration::from_millis(100), Duration::from_secs(3600))
    }

    /// Sets how many connections there are at most.
    #[must_use]
    pub fn with_max_connections(mut self, count: u32) -> Self {
        self.max_connections = count;
        self
    }

    /// Sets how long an operation may take.
    #[must_use]
    pub fn with_operation_timeout(mut self, timeout: Duration) -> Self {
        self.operation_timeout = timeout;
        self
    }

    /// Sets how long what is buffered waits for more.
    #[must_use]
    pub fn with_flush_interval(mut self, interval: Duration) -> Self {
        self.flush_interval = interval;
        self
    }

    /// Sets how many records are buffered at most.
    #[must_use]
    pub fn with_max_buffered_records(mut self, count: usize) -> Self {
        self.max_buffered_records = count;
        self
    }

    /// Sets how many bytes of payloads, results and logs are buffered at most.
    #[must_use]
    pub fn with_max_buffered_bytes(mut self, bytes: usize) -> Self {
        self.max_buffered_bytes = bytes;
        self
    }

    /// Sets how many revisions of each function are kept.
    #[must_use]
    pub fn with_max_revisions_per_function(mut self, count: u64) -> Self {
        self.max_revisions_per_function = count;
        self
    }

    /// Sets the identity that a new database gets.
    #[must_use]
    pub fn with_gateway(mut self, gateway: GatewayId) -> Self {
        self.gateway = Some(gateway);
        self
    }

    /// Sets where records are written, and connections are driven.
    #[must_use]
    pub fn with_runtime(mut self, runtime: Handle) -> Self {
        self.runtime = Some(runtime);
        self
    }
}

/// Keeps functions, records, the queue, audit events, API keys and documents in a SQL database.
///
/// Any number of gateways may use one database of PostgreSQL, MariaDB or MySQL at the same time; one of SQLite takes
/// several processes of one machine, one of which writes at a time. Clones share connections and buffer.
///
/// Ended executions are written by a task, many in a transaction. With [`Durability::Durable`] `finish` and `begin` answer
/// once it is committed; with [`Durability::Buffered`] once the record is in the buffer. When the buffer is full they
/// wait for room. [`close`](Self::close), or dropping the last clone while its runtime goes on, writes what is buffered.
/// Steps of the queue are written by the same task, each together with its record. A step that nobody waits for any more when its turn
/// comes is not made, unless it settles an attempt.
///
/// The database never gets a secret's value: specifications refer to secrets, and what is kept of calls is redacted
/// before.
///
/// # Errors
/// [`ErrorKind::Store`] where the database fails: transient where it is out of reach, overloaded or contended, and with
/// [`Delivery::Unknown`](crate::Delivery::Unknown) where a change may have been made all the same. What was undone by the
/// database for the sake of another change, or was not begun, is tried again within `operation_timeout`.
/// [`ErrorKind::Misconfigured`] where it lacks rights, tables or the database itself. No error shows a password.
#[derive(Clone)]
pub struct SqlStore(Arc<Shared>);

struct Shared {
    engine: Arc<dyn Engine>,
    options: SqlStoreOptions,
    gateway: GatewayId,
    writer: Writer,
    crowded: Arc<Crowded>,
    turn: Turn,
    /// Whether what other processes tell is listened to.
    listens: Once,
    /// Why what it commits may be lost all the same, if so.
    undurable: Option<&'static str>,
}

impl fmt::Debug for SqlStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { engine, gateway, writer, .. } = &*self.0;
        f.debug_struct("SqlStore")
            .field("engine", &engine.dialect().engine)
            .field("gateway", gateway)
            .field("buffered", &writer.len())
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
enum Access {
    Read,
    Write,
}

/// Something that is read, or changed as a whole.
#[async_trait]
trait Operation: Send + Sync {
    type Answer: Send;

    async fn run(&self, session: &mut dyn Session) -> Result<Self::Answer, Fault>;
}

impl SqlStore {
    /// Opens the database at a URL with the default options: `sqlite:path/to/file`, `sqlite::memory:`,
    /// `postgres://user:password@host/database` or `mysql://user:password@host/database`.
    ///
    /// # Errors
    /// Those of [`connect`](Self::connect).
    pub async fn open(url: &str) -> Result<Self> {
        Self::connect(url, SqlStoreOptions::default()).await
    }

    /// Opens the database at a URL. Makes its tables, or brings them up to date, under a lock that makes other processes
    /// wait. A file of SQLite is made where there is none; its folder and the databases of servers are not.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the URL can't be read; [`ErrorKind::Unsupported`] for an engine whose feature is
    /// not enabled, or tables that a later version has made and this one must not touch; [`ErrorKind::Misconfigured`]
    /// for wrong credentials, a database that is not there, or one that belongs to another gateway;
    /// [`ErrorKind::Store`] where the server is out of reach.
    pub async fn connect(url: &str, options: SqlStoreOptions) -> Result<Self> {
        let runtime = options.runtime.clone().map_or_else(current_runtime, Ok)?;
        let deadline = Instant::from(Deadline::after(options.operation_timeout).instant());
        let (engine, undurable, gateway) = loop {
            match open(url, &options, &runtime).await {
                Ok(opened) => break opened,
                // Another process opens it too.
                Err(fault) if fault.is(FaultKind::Contended) && Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(5).mul_f64(0.5 + fastrand::f64())).await;
                }
                Err(fault) => return Err(fault.into_error().with_operation("open the store")),
            }
        };
        let crowded = Arc::new(Crowded::default());
        let writer = Writer::start(Arc::clone(&engine), Arc::clone(&crowded), &options, &runtime);
        let (turn, listens) = (Turn::default(), Once::new());
        Ok(Self(Arc::new(Shared { engine, options, gateway, writer, crowded, turn, listens, undurable })))
    }

    /// Writes what is buffered and ends all connections. Whatever is asked of the store then fails.
    pub async fn close(&self) {
        let Shared { engine, options, writer, .. } = &*self.0;
        // What can't be written within the time of an operation is told by the writer.
        let _ = tokio::time::timeout(options.operation_timeout, writer.end()).await;
        // A connection that does not come to its end is not waited for.
        let _ = tokio::time::timeout(options.operation_timeout, engine.close()).await;
        // Without connections the writer gives up what is left after its pause, and says what is lost.
        let _ = tokio::time::timeout(writer::MAX_PAUSE * 2, writer.end()).await;
    }

    /// Reads.
    async fn read<O: Operation>(&self, operation: &O) -> Result<O::Answer> {
        self.repeat(Access::Read, operation).await
    }

    /// Changes something, in one transaction.
    async fn write<O: Operation>(&self, operation: &O) -> Result<O::Answer> {
        self.repeat(Access::Write, operation).await
    }

    /// Tries again as long as an operation fails in a way that allows it and there is time.
    async fn repeat<O: Operation>(&self, access: Access, operation: &O) -> Result<O::Answer> {
        let deadline = Instant::from(Deadline::after(self.0.options.operation_timeout).instant());
        let mut pause = Duration::from_millis(2);
        loop {
            let fault = match tokio::time::timeout_at(deadline, self.attempt(access, operation)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(fault)) => fault,
                Err(_) => Fault::TimedOut,
            };
            // Those that met must not meet again.
            let wait = pause.mul_f64(0.5 + fastrand::f64());
            if self.0.engine.is_closed() {
                return Err(closed());
            }
            if !fault.may_be_repeated() || Instant::now() + wait >= deadline {
                return Err(fault.into_error());
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    async fn attempt<O: Operation>(&self, access: Access, operation: &O) -> Result<O::Answer, Fault> {
        let engine = &self.0.engine;
        match access {
            Access::Read => {
                let mut session = engine.reader().await?;
                let answer = operation.run(&mut *session).await;
                session.release().await;
                answer
            }
            Access::Write => {
                let mut session = engine.transaction().await?;
                match operation.run(&mut *session).await {
                    Ok(answer) => session.commit().await.map(|()| answer),
                    Err(fault) => {
                        session.release().await;
                        Err(fault)
                    }
                }
            }
        }
    }

    /// Hears from now on what other processes do in the queue, where they can tell.
    fn listen(&self) {
        let Shared { engine, writer, listens, .. } = &*self.0;
        listens.call_once(|| {
            let (notifiers, id) = (Arc::clone(writer.notifiers()), writer.id().to_owned());
            engine.listen(Box::new(move |text| notifiers.tell(Signals::heard(text, &id))));
        });
    }

    fn check_durable(&self) -> Result<()> {
        match self.0.undurable {
            None => Ok(()),
            Some(reason) => {
                Err(Error::new(ErrorKind::Misconfigured, "the database does not keep what it commits")
                    .with_detail(reason))
            }
        }
    }
}

/// The error for whatever is asked of a store that is closed.
fn closed() -> Error {
    Error::new(ErrorKind::Store, "the store is closed").with_retry(crate::Retry::Never)
}

fn current_runtime() -> Result<Handle> {
    Handle::try_current().map_err(|error| {
        Error::new(ErrorKind::Misconfigured, "a store needs a tokio runtime: open it in one, or give it a handle")
            .with_source(error)
    })
}

type Opened = (Arc<dyn Engine>, Option<&'static str>, GatewayId);

async fn open(url: &str, options: &SqlStoreOptions, runtime: &Handle) -> Result<Opened, Fault> {
    // Its connections are the runtime's, whoever opens it.
    let Connected { engine, undurable } = TokioContext::new(connect(url, options, runtime), runtime.clone()).await?;
    let gateway = migrate::migrate(&*engine, options.gateway.as_ref()).await?;
    Ok((Arc::from(engine), undurable, gateway))
}

async fn connect(url: &str, options: &SqlStoreOptions, runtime: &Handle) -> Result<Connected, Fault> {
    #[cfg(not(any(feature = "sqlite", feature = "postgres", feature = "mysql")))]
    let _ = (options, runtime);
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    match scheme {
        #[cfg(feature = "sqlite")]
        "sqlite" => sqlite::connect(url.strip_prefix("sqlite:").unwrap_or(url), options, runtime).await,
        #[cfg(feature = "postgres")]
        "postgres" | "postgresql" => postgres::connect(url, options, runtime).await,
        #[cfg(feature = "mysql")]
        "mysql" | "mariadb" => mysql::connect(url, options, runtime).await,
        #[allow(unreachable_patterns, reason = "with the features enabled they stand above")]
        "sqlite" | "postgres" | "postgresql" | "mysql" | "mariadb" => {
            let message = format!("stores in {scheme} are not built in: enable the feature of that name");
            Err(Error::new(ErrorKind::Unsupported, message).into())
        }
        _ => {
            // What is no scheme may be anything, a password too.
            let is_scheme = scheme.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "+.-".contains(c));
            let found = if is_scheme { format!(", not with {scheme:?}") } else { String::new() };
            let message =
                format!("the URL of a store begins with its engine, such as sqlite:, postgres:// or mysql://{found}");
            Err(Error::new(ErrorKind::InvalidArgument, message).into())
        }
    }
}

/// Refuses a URL that sets what nobody honours.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn check_parameters(url: &str, known: &[&str]) -> Result<(), Fault> {
    let (_, query) = url.split_once('?').unwrap_or_default();
    let names = query.split('&').filter_map(|pair| pair.split('=').next()).filter(|name| !name.is_empty());
    for name in names {
        if !known.contains(&name) {
            let message =
                format!("the URL of the store sets {name:?}, which is not known: known are {}", known.join(", "));
            return Err(Error::new(ErrorKind::InvalidArgument, message).into());
        }
    }
    Ok(())
}

/// The error for a URL that a driver can't read. The URL has a password and is not shown.
#[cfg(any(feature = "postgres", feature = "mysql"))]
fn unreadable_url(error: &sqlx::Error) -> Fault {
    let reason = match error {
        sqlx::Error::Configuration(reason) => reason.to_string(),
        _ => "it is no URL".to_owned(),
    };
    Error::new(ErrorKind::InvalidArgument, format!("the URL of the store can't be read: {reason}")).into()
}

#[async_trait]
impl FunctionStore for SqlStore {
    async fn gateway_id(&self) -> Result<GatewayId> {
        Ok(self.0.gateway.clone())
    }

    async fn create(&self, function: &Function, revision: &Revision) -> Result<()> {
        self.write(&functions::Create { function, revision }).await
    }

    async fn get(&self, key: &FunctionKey) -> Result<Option<Arc<Function>>> {
        self.read(&functions::Get { key }).await
    }

    async fn update(
        &self,
        function: &Function,
        expected: Version,
        revision: Option<&Revision>,
    ) -> Result<Arc<Function>> {
        let keep = self.0.options.max_revisions_per_function;
        self.write(&functions::Update { function, expected, revision, keep }).await
    }

    async fn list(
        &self,
        tenant: &TenantId,
        filter: &FunctionFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<Function>>> {
        self.read(&functions::List { tenant, filter, page }).await
    }

    async fn revision(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        generation: Generation,
    ) -> Result<Option<Arc<Revision>>> {
        self.read(&functions::GetRevision { tenant, function, generation }).await
    }

    async fn revisions(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        page: &PageRequest,
    ) -> Result<Page<Arc<Revision>>> {
        self.read(&functions::ListRevisions { tenant, function, page }).await
    }

    async fn acquire_lease(&self, key: &FunctionKey, ttl: Duration) -> Result<Option<Lease>> {
        self.write(&functions::AcquireLease { key, ttl }).await
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        self.write(&functions::RenewLease { lease, ttl }).await
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.write(&functions::ReleaseLease { lease }).await
    }

    async fn update_status(&self, lease: &Lease, expected: Version, status: &FunctionStatus) -> Result<Arc<Function>> {
        self.write(&functions::UpdateStatus { lease, expected, status }).await
    }

    async fn delete(&self, lease: &Lease, expected: Version) -> Result<()> {
        self.write(&functions::Delete { lease, expected }).await
    }

    async fn scan_due(&self, now: Timestamp, limit: usize) -> Result<Vec<FunctionKey>> {
        self.read(&functions::ScanDue { now, limit }).await
    }

    async fn find(&self, id: FunctionId) -> Result<Option<Arc<Function>>> {
        self.read(&functions::Find { id }).await
    }

    async fn scan_all(&self, page: &PageRequest) -> Result<Page<Arc<Function>>> {
        self.read(&functions::ScanAll { page }).await
    }
}

#[async_trait]
impl InvocationStore for SqlStore {
    async fn begin(&self, record: Arc<InvocationRecord>) -> Result<()> {
        self.check_durable()?;
        self.0.writer.begin(record).await
    }

    async fn finish(&self, record: Arc<InvocationRecord>, durability: Durability) -> Result<()> {
        match durability {
            Durability::Buffered => self.0.writer.finish_buffered(record).await,
            Durability::Durable => {
                self.check_durable()?;
                self.0.writer.finish_durable(record).await
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        self.0.writer.flush().await
    }

    async fn get(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<InvocationRecord>>> {
        self.read(&records::Get { tenant, id }).await
    }

    async fn list(
        &self,
        tenant: &TenantId,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>> {
        self.read(&records::List { tenant, filter, page }).await
    }

    async fn statistics(&self, tenant: &TenantId, query: &StatisticsQuery) -> Result<Statistics> {
        self.read(&records::ReadStatistics { tenant, query }).await
    }

    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64> {
        retention::retain(self, retention, now, limit).await
    }
}

#[async_trait]
impl AuditLog for SqlStore {
    async fn append(&self, event: AuditEvent) -> Result<()> {
        self.write(&audit::Append { event: &event }).await
    }

    async fn list(&self, tenant: &TenantId, filter: &AuditFilter, page: &PageRequest) -> Result<Page<Arc<AuditEvent>>> {
        self.read(&audit::List { tenant, filter, page }).await
    }

    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64> {
        match retention.max_audit_age {
            Some(max_age) => self.write(&audit::DeleteOld { before: now.minus(max_age), limit }).await,
            None => Ok(0),
        }
    }
}

#[async_trait]
impl ApiKeyStore for SqlStore {
    async fn add_key(&self, key: &ApiKey) -> Result<()> {
        self.write(&keys::Add { key }).await
    }

    async fn find_key(&self, id: ApiKeyId) -> Result<Option<Arc<ApiKey>>> {
        self.read(&keys::Find { id }).await
    }

    async fn keys(&self, tenant: &TenantId, page: &PageRequest) -> Result<Page<Arc<ApiKey>>> {
        self.read(&keys::List { tenant, page }).await
    }

    async fn revoke_key(&self, tenant: &TenantId, id: ApiKeyId, at: Timestamp) -> Result<Arc<ApiKey>> {
        self.write(&keys::Revoke { tenant, id, at }).await
    }
}

#[async_trait]
impl InvocationQueue for SqlStore {
    async fn accept(&self, acceptance: Acceptance) -> Result<Accepted> {
        self.check_durable()?;
        match self.0.writer.step(Step::accept(acceptance)?).await? {
            Outcome::Accepted(accepted) => Ok(accepted),
            Outcome::Done => Ok(Accepted::New { lease: None }),
        }
    }

    async fn take(&self, request: &TakeRequest) -> Result<Taken> {
        take::take(self, request).await
    }

    async fn dispatch(&self, lease: &QueueLease, dispatch: Dispatch) -> Result<()> {
        self.check_durable()?;
        self.0.writer.step(Step::dispatch(*lease, dispatch)).await.map(|_| ())
    }

    async fn settle(&self, lease: &QueueLease, settlement: Settlement) -> Result<()> {
        self.check_durable()?;
        self.0.writer.step(Step::settle(*lease, settlement)?).await.map(|_| ())
    }

    async fn cancel(&self, tenant: &TenantId, id: InvocationId, lease: Duration) -> Result<Cancelling> {
        self.write(&queue::Cancel { tenant, id, lease }).await
    }

    async fn cancelled(&self, ids: &[InvocationId]) -> Result<Vec<InvocationId>> {
        self.read(&queue::Cancelled { ids }).await
    }

    async fn queued(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<QueuedInvocation>>> {
        self.read(&queue::Get { tenant, id }).await
    }

    async fn dead_letters(
        &self,
        tenant: &TenantId,
        filter: &DeadLetterFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>> {
        self.read(&queue::DeadLetters { tenant, filter, page }).await
    }

    async fn redrive(
        &self,
        tenant: &TenantId,
        id: InvocationId,
        acceptance: Acceptance,
        keep_for: Duration,
    ) -> Result<()> {
        self.check_durable()?;
        self.0.writer.step(Step::redrive(tenant.clone(), id, acceptance, keep_for)?).await.map(|_| ())
    }

    async fn purge(&self, tenant: &TenantId, id: InvocationId) -> Result<()> {
        self.write(&queue::Purge { tenant, id }).await
    }

    async fn depth(&self, tenant: &TenantId, name: Option<&FunctionName>) -> Result<QueueDepth> {
        self.read(&queue::Depth { tenant, name }).await
    }

    async fn pinned(&self, function: FunctionId, generation: Generation) -> Result<u64> {
        self.read(&queue::Pinned { function, generation }).await
    }

    async fn expire(&self, limit: usize) -> Result<u64> {
        queue::expire(self, limit).await
    }

    fn arrivals(&self) -> QueueSignal {
        self.listen();
        self.0.writer.notifiers().arrivals.signal()
    }

    fn endings(&self) -> QueueSignal {
        self.listen();
        self.0.writer.notifiers().endings.signal()
    }
}

#[async_trait]
impl DocumentStore for SqlStore {
    async fn put_document(&self, document: &StoredDocument, expected: Option<Version>) -> Result<StoredDocument> {
        self.write(&documents::Put { document, expected }).await
    }

    async fn document(&self, tenant: &TenantId, kind: &str, name: &str) -> Result<Option<StoredDocument>> {
        self.read(&documents::Get { tenant, kind, name }).await
    }

    async fn documents(&self, tenant: &TenantId, kind: &str, page: &PageRequest) -> Result<Page<StoredDocument>> {
        self.read(&documents::List { tenant, kind, page }).await
    }

    async fn delete_document(
        &self,
        tenant: &TenantId,
        kind: &str,
        name: &str,
        expected: Option<Version>,
    ) -> Result<()> {
        self.write(&documents::Delete { tenant, kind, name, expected }).await
    }
}

#[cfg(test)]
#[cfg(feature = "sqlite")]
mod tests;
