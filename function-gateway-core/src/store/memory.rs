//! Stores in this process's memory: for tests, trials, and hosts that need nothing to survive a restart.

mod audit;
mod documents;
mod functions;
mod keys;
mod queue;
mod records;

use std::fmt;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use async_trait::async_trait;

use self::audit::Events;
use self::documents::Documents;
use self::functions::Functions;
use self::keys::Keys;
use self::queue::Queue;
use self::records::Records;
use super::{
    ApiKeyStore, CursorKind, DocumentStore, Durability, FunctionFilter, FunctionStore, InvocationStore, Lease, Page,
    PageRequest, StoredDocument,
};
use crate::{
    Acceptance, Accepted, ApiKey, ApiKeyId, AuditEvent, AuditFilter, AuditLog, Cancelling, Clock, Cursor,
    DeadLetterFilter, Dispatch, Function, FunctionId, FunctionKey, FunctionName, FunctionStatus, GatewayId, Generation,
    InvocationId, InvocationQueue, InvocationRecord, QueueDepth, QueueLease, QueueNotifier, QueueSignal,
    QueuedInvocation, RecordFilter, Result, Retention, Revision, Settled, Settlement, Statistics, StatisticsQuery,
    SystemClock, TakeRequest, Taken, TenantId, Timestamp, Version,
};

/// How much a [`MemoryStore`] holds, and by which clock leases run out.
///
/// ```
/// use function_gateway_core::store::memory::{MemoryStore, MemoryStoreOptions};
///
/// let options = MemoryStoreOptions::default().with_max_functions(1_000).with_max_records(10_000);
/// let store = MemoryStore::with_options("trial".parse()?, options);
/// # Ok::<_, function_gateway_core::InvalidName>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct MemoryStoreOptions {
    /// How many functions it takes; 200,000 unless set. Creating more fails with
    /// [`ErrorKind::Store`](crate::ErrorKind::Store).
    pub max_functions: usize,
    /// How many revisions of each function it keeps; 100 unless set. Beyond that the oldest are forgotten, but never the
    /// newest, nor one that is in the function's route or still in an engine.
    pub max_revisions_per_function: usize,
    /// How many records it keeps; 10,000 unless set. Beyond that those that ended first are forgotten. Beginning an
    /// execution while that many are running fails with [`ErrorKind::Store`](crate::ErrorKind::Store). Records of what waits
    /// in the queue, or is executed from it, are beside those.
    pub max_records: usize,
    /// How many bytes of payloads, results and logs it keeps with records; 256 MiB unless set. Beyond that the records
    /// that ended first are forgotten.
    pub max_kept_bytes: u64,
    /// For how many pairs of function and minute it keeps figures; 100,000 unless set. Beyond that the oldest minutes
    /// are forgotten, but never the newest one.
    pub max_rollups: usize,
    /// How many API keys it takes; 100,000 unless set. Creating more fails with
    /// [`ErrorKind::Store`](crate::ErrorKind::Store).
    pub max_api_keys: usize,
    /// How many audit events of all tenants together it keeps; 10,000 unless set. Beyond that the oldest are forgotten.
    pub max_audit_events: usize,
    /// How many invocations its queue holds, those that have ended included; 100,000 unless set. Beyond that those that
    /// would be forgotten next are, but never one that has not ended, nor a dead letter. Accepting one while that many are of
    /// those fails with [`ErrorKind::Store`](crate::ErrorKind::Store).
    pub max_queued: usize,
    /// How many bytes of payloads and answers it keeps with the queue; 256 MiB unless set. Beyond that it is as beyond
    /// `max_queued`, and an answer that finds no room is not kept.
    pub max_queue_bytes: u64,
    /// How many documents it takes; 100,000 unless set. Adding more fails with
    /// [`ErrorKind::Store`](crate::ErrorKind::Store).
    pub max_documents: usize,
    /// The clock by which leases run out; the system's unless set.
    pub clock: Arc<dyn Clock>,
}

impl Default for MemoryStoreOptions {
    fn default() -> Self {
        Self {
            max_functions: 200_000,
            max_revisions_per_function: 100,
            max_records: 10_000,
            max_kept_bytes: 256 * 1024 * 1024,
            max_rollups: 100_000,
            max_api_keys: 100_000,
            max_audit_events: 10_000,
            max_queued: 100_000,
            max_queue_bytes: 256 * 1024 * 1024,
            max_documents: 100_000,
            clock: Arc::new(SystemClock),
        }
    }
}

impl MemoryStoreOptions {
    /// Sets how many functions it takes.
    #[must_use]
    pub fn with_max_functions(mut self, count: usize) -> Self {
        self.max_functions = count;
        self
    }

    /// Sets how many revisions of each function it keeps.
    #[must_use]
    pub fn with_max_revisions_per_function(mut self, count: usize) -> Self {
        self.max_revisions_per_function = count;
        self
    }

    /// Sets how many records it keeps.
    #[must_use]
    pub fn with_max_records(mut self, count: usize) -> Self {
        self.max_records = count;
        self
    }

    /// Sets how many bytes of payloads, results and logs it keeps with records.
    #[must_use]
    pub fn with_max_kept_bytes(mut self, bytes: u64) -> Self {
        self.max_kept_bytes = bytes;
        self
    }

    /// Sets for how many pairs of function and minute it keeps figures.
    #[must_use]
    pub fn with_max_rollups(mut self, count: usize) -> Self {
        self.max_rollups = count;
        self
    }

    /// Sets how many API keys it takes.
    #[must_use]
    pub fn with_max_api_keys(mut self, count: usize) -> Self {
        self.max_api_keys = count;
        self
    }

    /// Sets how many audit events it keeps.
    #[must_use]
    pub fn with_max_audit_events(mut self, count: usize) -> Self {
        self.max_audit_events = count;
        self
    }

    /// Sets how many invocations its queue holds.
    #[must_use]
    pub fn with_max_queued(mut self, count: usize) -> Self {
        self.max_queued = count;
        self
    }

    /// Sets how many bytes of payloads and answers it keeps with the queue.
    #[must_use]
    pub fn with_max_queue_bytes(mut self, bytes: u64) -> Self {
        self.max_queue_bytes = bytes;
        self
    }

    /// Sets how many documents it takes.
    #[must_use]
    pub fn with_max_documents(mut self, count: usize) -> Self {
        self.max_documents = count;
        self
    }

    /// Sets the clock by which leases run out.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }
}

/// Keeps functions, records, a queue, audit events, API keys and documents in the memory of this process, up to the limits
/// of [`MemoryStoreOptions`].
///
/// What it keeps dies with it, so [`Durability::Durable`] is no more than [`Durability::Buffered`] here.
///
/// No method waits for anything but a lock that is held for a short time. Reading a function, adding one and reading a
/// page take the same time however many there are, as far as the processor's caches allow. A list with a filter other
/// than by name, name prefix or function reads through all that the rest of the filter leaves.
pub struct MemoryStore {
    gateway: GatewayId,
    clock: Arc<dyn Clock>,
    functions: RwLock<Functions>,
    /// Where both are locked, the queue is first.
    queue: Mutex<Queue>,
    records: Mutex<Records>,
    audit: Mutex<Events>,
    keys: RwLock<Keys>,
    documents: RwLock<Documents>,
    arrivals: QueueNotifier,
    endings: QueueNotifier,
}

impl MemoryStore {
    /// An empty store with the default limits, for the functions of a gateway.
    #[must_use]
    pub fn new(gateway: GatewayId) -> Self {
        Self::with_options(gateway, MemoryStoreOptions::default())
    }

    /// An empty store, for the functions of a gateway.
    #[must_use]
    pub fn with_options(gateway: GatewayId, options: MemoryStoreOptions) -> Self {
        Self {
            gateway,
            functions: RwLock::new(Functions::new(&options)),
            queue: Mutex::new(Queue::new(&options)),
            records: Mutex::new(Records::new(&options)),
            audit: Mutex::new(Events::new(&options)),
            keys: RwLock::new(Keys::new(&options)),
            documents: RwLock::new(Documents::new(&options)),
            arrivals: QueueNotifier::default(),
            endings: QueueNotifier::default(),
            clock: options.clock,
        }
    }

    fn read<T>(&self, read: impl FnOnce(&Functions) -> T) -> T {
        read(&self.functions.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, write: impl FnOnce(&mut Functions) -> T) -> T {
        write(&mut self.functions.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a step of the queue and of its records as one, at the time of the store.
    fn step<T>(&self, step: impl FnOnce(&mut Queue, &mut Records, Timestamp) -> T) -> T {
        let mut queue = self.queue();
        let mut records = self.records();
        step(&mut queue, &mut records, self.clock.now())
    }

    fn audit(&self) -> MutexGuard<'_, Events> {
        self.audit.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_keys<T>(&self, read: impl FnOnce(&Keys) -> T) -> T {
        read(&self.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_keys<T>(&self, write: impl FnOnce(&mut Keys) -> T) -> T {
        write(&mut self.keys.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_documents<T>(&self, read: impl FnOnce(&Documents) -> T) -> T {
        read(&self.documents.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write_documents<T>(&self, write: impl FnOnce(&mut Documents) -> T) -> T {
        write(&mut self.documents.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Does something with the records once all of them are indexed. Lets others in between the batches of that.
    async fn with_indexed<T: Send>(&self, action: impl FnOnce(&mut Records) -> T + Send) -> T {
        loop {
            {
                let mut records = self.records();
                if records.index_some() {
                    return action(&mut records);
                }
            }
            tokio::task::yield_now().await;
        }
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore")
            .field("gateway", &self.gateway)
            .field("functions", &self.read(Functions::len))
            .field("records", &self.records().len())
            .field("queued", &self.queue().len())
            .finish_non_exhaustive()
    }
}

/// Cuts a page off what comes, in the list's order, after the cursor.
fn page<T>(
    items: impl Iterator<Item = T>,
    request: &PageRequest,
    kind: CursorKind,
    key: impl Fn(&T) -> String,
) -> Page<T> {
    let limit = request.effective_limit();
    // One more than fits says whether the list goes on.
    let mut page: Vec<T> = items.take(limit + 1).collect();
    let more = page.len() > limit;
    page.truncate(limit);
    let next = page.last().filter(|_| more).map(|last| Cursor::after(kind, &key(last)));
    Page::new(page, next)
}

/// The start and the end of a range.
type Bounds<T> = (Bound<T>, Bound<T>);

/// What lies between two times in a list by time and id, and comes after the cursor of one that starts with the newest;
/// `None` where nothing can. `first` is the id that sorts before all others.
fn between<I: Copy + Ord>(
    first: I,
    from: Option<Timestamp>,
    until: Option<Timestamp>,
    after: Option<(Timestamp, I)>,
) -> Option<Bounds<(Timestamp, I)>> {
    let start = from.map(|from| (from, first));
    let end = after.into_iter().chain(until.map(|until| (until, first))).min();
    if start.zip(end).is_some_and(|(start, end)| start >= end) {
        return None;
    }
    Some((start.map_or(Bound::Unbounded, Bound::Included), end.map_or(Bound::Unbounded, Bound::Excluded)))
}

#[async_trait]
impl FunctionStore for MemoryStore {
    async fn gateway_id(&self) -> Result<GatewayId> {
        Ok(self.gateway.clone())
    }

    async fn create(&self, function: &Function, revision: &Revision) -> Result<()> {
        // The copies are made before the lock is taken.
        let (function, revision) = (Arc::new(function.clone()), Arc::new(revision.clone()));
        self.write(|functions| functions.create(function, revision))
    }

    async fn get(&self, key: &FunctionKey) -> Result<Option<Arc<Function>>> {
        Ok(self.read(|functions| functions.get(key)))
    }

    async fn update(
        &self,
        function: &Function,
        expected: Version,
        revision: Option<&Revision>,
    ) -> Result<Arc<Function>> {
        let (function, revision) = (function.clone(), revision.cloned().map(Arc::new));
        self.write(|functions| functions.update(function, expected, revision))
    }

    async fn list(
        &self,
        tenant: &TenantId,
        filter: &FunctionFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<Function>>> {
        self.read(|functions| functions.list(tenant, filter, page))
    }

    async fn revision(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        generation: Generation,
    ) -> Result<Option<Arc<Revision>>> {
        Ok(self.read(|functions| functions.revision(tenant, function, generation)))
    }

    async fn revisions(
        &self,
        tenant: &TenantId,
        function: FunctionId,
        page: &PageRequest,
    ) -> Result<Page<Arc<Revision>>> {
        self.read(|functions| functions.revisions(tenant, function, page))
    }

    async fn acquire_lease(&self, key: &FunctionKey, ttl: Duration) -> Result<Option<Lease>> {
        let now = self.clock.now();
        Ok(self.write(|functions| functions.acquire_lease(key, now, ttl)))
    }

    async fn renew_lease(&self, lease: &Lease, ttl: Duration) -> Result<()> {
        let now = self.clock.now();
        self.write(|functions| functions.renew_lease(lease, now, ttl))
    }

    async fn release_lease(&self, lease: &Lease) -> Result<()> {
        self.write(|functions| functions.release_lease(lease));
        Ok(())
    }

    async fn update_status(&self, lease: &Lease, expected: Version, status: &FunctionStatus) -> Result<Arc<Function>> {
        let now = self.clock.now();
        self.write(|functions| functions.update_status(lease, now, expected, status))
    }

    async fn delete(&self, lease: &Lease, expected: Version) -> Result<()> {
        let now = self.clock.now();
        self.write(|functions| functions.delete(lease, now, expected))
    }

    async fn scan_due(&self, now: Timestamp, limit: usize) -> Result<Vec<FunctionKey>> {
        Ok(self.read(|functions| functions.scan_due(now, limit)))
    }

    async fn find(&self, id: FunctionId) -> Result<Option<Arc<Function>>> {
        Ok(self.read(|functions| functions.find(id)))
    }

    async fn scan_all(&self, page: &PageRequest) -> Result<Page<Arc<Function>>> {
        self.read(|functions| functions.scan_all(page))
    }
}

#[async_trait]
impl InvocationStore for MemoryStore {
    async fn begin(&self, record: Arc<InvocationRecord>) -> Result<()> {
        self.records().begin(record)
    }

    async fn finish(&self, record: Arc<InvocationRecord>, _durability: Durability) -> Result<()> {
        self.records().finish(record)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn get(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<InvocationRecord>>> {
        Ok(self.records().get(tenant, id))
    }

    async fn list(
        &self,
        tenant: &TenantId,
        filter: &RecordFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<InvocationRecord>>> {
        self.with_indexed(|records| records.list(tenant, filter, page)).await
    }

    async fn statistics(&self, tenant: &TenantId, query: &StatisticsQuery) -> Result<Statistics> {
        Ok(self.records().statistics(tenant, query))
    }

    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64> {
        Ok(self.with_indexed(|records| records.retain(retention, now, limit)).await)
    }
}

#[async_trait]
impl AuditLog for MemoryStore {
    async fn append(&self, event: AuditEvent) -> Result<()> {
        self.audit().append(event)
    }

    async fn list(&self, tenant: &TenantId, filter: &AuditFilter, page: &PageRequest) -> Result<Page<Arc<AuditEvent>>> {
        self.audit().list(tenant, filter, page)
    }

    async fn retain(&self, retention: &Retention, now: Timestamp, limit: usize) -> Result<u64> {
        Ok(self.audit().retain(retention, now, limit))
    }
}

#[async_trait]
impl ApiKeyStore for MemoryStore {
    async fn add_key(&self, key: &ApiKey) -> Result<()> {
        let key = key.clone();
        self.write_keys(|keys| keys.add(key))
    }

    async fn find_key(&self, id: ApiKeyId) -> Result<Option<Arc<ApiKey>>> {
        Ok(self.read_keys(|keys| keys.find(id)))
    }

    async fn keys(&self, tenant: &TenantId, page: &PageRequest) -> Result<Page<Arc<ApiKey>>> {
        self.read_keys(|keys| keys.list(tenant, page))
    }

    async fn revoke_key(&self, tenant: &TenantId, id: ApiKeyId, at: Timestamp) -> Result<Arc<ApiKey>> {
        self.write_keys(|keys| keys.revoke(tenant, id, at))
    }
}

#[async_trait]
impl InvocationQueue for MemoryStore {
    async fn accept(&self, acceptance: Acceptance) -> Result<Accepted> {
        let accepted = self.step(|queue, records, now| queue.accept(acceptance, records, now))?;
        if matches!(accepted, Accepted::New { .. }) {
            self.arrivals.notify();
        }
        Ok(accepted)
    }

    async fn take(&self, request: &TakeRequest) -> Result<Taken> {
        let mut queue = self.queue();
        let now = self.clock.now();
        Ok(queue.take(request, now))
    }

    async fn dispatch(&self, lease: &QueueLease, dispatch: Dispatch) -> Result<()> {
        self.step(|queue, records, now| queue.dispatch(lease, dispatch, records, now))
    }

    async fn settle(&self, lease: &QueueLease, settlement: Settlement) -> Result<()> {
        let ends = matches!(settlement.settled, Settled::Ended { .. });
        let arrives = !ends || !settlement.followers.is_empty();
        self.step(|queue, records, now| queue.settle(lease, settlement, records, now))?;
        if arrives {
            self.arrivals.notify();
        }
        if ends {
            self.endings.notify();
        }
        Ok(())
    }

    async fn cancel(&self, tenant: &TenantId, id: InvocationId, lease: Duration) -> Result<Cancelling> {
        let mut queue = self.queue();
        let now = self.clock.now();
        queue.cancel(tenant, id, lease, now)
    }

    async fn cancelled(&self, ids: &[InvocationId]) -> Result<Vec<InvocationId>> {
        Ok(self.queue().cancelled(ids))
    }

    async fn queued(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<QueuedInvocation>>> {
        Ok(self.queue().get(tenant, id))
    }

    async fn dead_letters(
        &self,
        tenant: &TenantId,
        filter: &DeadLetterFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>> {
        let Page { items, next, .. } = self.queue().dead_letters(tenant, filter, page)?;
        Ok(Page::new(items.iter().map(|item| Arc::new(queue::without_bodies(item))).collect(), next))
    }

    async fn redrive(
        &self,
        tenant: &TenantId,
        id: InvocationId,
        acceptance: Acceptance,
        keep_for: Duration,
    ) -> Result<()> {
        self.step(|queue, records, now| queue.redrive(tenant, id, acceptance, keep_for, records, now))?;
        self.arrivals.notify();
        Ok(())
    }

    async fn purge(&self, tenant: &TenantId, id: InvocationId) -> Result<()> {
        let mut queue = self.queue();
        let now = self.clock.now();
        queue.purge(tenant, id, now)
    }

    async fn depth(&self, tenant: &TenantId, name: Option<&FunctionName>) -> Result<QueueDepth> {
        Ok(self.queue().depth(tenant, name))
    }

    async fn pinned(&self, function: FunctionId, generation: Generation) -> Result<u64> {
        Ok(self.queue().pinned(function, generation))
    }

    async fn expire(&self, limit: usize) -> Result<u64> {
        let mut queue = self.queue();
        let now = self.clock.now();
        Ok(queue.expire(limit, now))
    }

    fn arrivals(&self) -> QueueSignal {
        self.arrivals.signal()
    }

    fn endings(&self) -> QueueSignal {
        self.endings.signal()
    }
}

#[async_trait]
impl DocumentStore for MemoryStore {
    async fn put_document(&self, document: &StoredDocument, expected: Option<Version>) -> Result<StoredDocument> {
        let document = document.clone();
        self.write_documents(|documents| documents.put(document, expected))
    }

    async fn document(&self, tenant: &TenantId, kind: &str, name: &str) -> Result<Option<StoredDocument>> {
        Ok(self.read_documents(|documents| documents.get(tenant, kind, name)))
    }

    async fn documents(&self, tenant: &TenantId, kind: &str, page: &PageRequest) -> Result<Page<StoredDocument>> {
        self.read_documents(|documents| documents.list(tenant, kind, page))
    }

    async fn delete_document(
        &self,
        tenant: &TenantId,
        kind: &str,
        name: &str,
        expected: Option<Version>,
    ) -> Result<()> {
        self.write_documents(|documents| documents.delete(tenant, kind, name, expected))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;
    use crate::{DriverRef, FunctionSpec, ProcessWorkload, RevisionReason};

    /// A clock that stands until it is moved.
    #[derive(Debug, Default)]
    pub(super) struct ManualClock(AtomicI64);

    impl ManualClock {
        pub(super) fn time(&self) -> Timestamp {
            Timestamp::from_micros(self.0.load(Ordering::Relaxed))
        }

        pub(super) fn advance(&self, by: Duration) {
            self.0.store(self.time().plus(by).as_micros(), Ordering::Relaxed);
        }
    }

    impl Clock for ManualClock {
        fn now(&self) -> Timestamp {
            self.time()
        }
    }

    pub(super) fn time(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    /// A function of one tenant, with its first revision.
    pub(super) fn function_of(name: &str) -> (Function, Revision) {
        let key = FunctionKey::new("tenant".parse().unwrap(), name.parse().unwrap());
        let spec = FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("cat"));
        let created = (time(0), "owner".parse().unwrap());
        let reason = RevisionReason::Created;
        let revision = Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, reason);
        (Function::new(&revision, DriverRef::new("v1")), revision)
    }

    #[tokio::test]
    async fn leases_go_by_the_clock_of_the_options() {
        let clock = Arc::new(ManualClock::default());
        let options = MemoryStoreOptions::default().with_clock(clock.clone());
        let store: &dyn FunctionStore = &MemoryStore::with_options("gateway".parse().unwrap(), options);
        let (function, revision) = function_of("a");
        store.create(&function, &revision).await.unwrap();
        let ttl = Duration::from_secs(10);
        assert!(store.acquire_lease(&function.key, ttl).await.unwrap().is_some());
        assert!(store.acquire_lease(&function.key, ttl).await.unwrap().is_none());
        clock.advance(ttl);
        assert!(store.acquire_lease(&function.key, ttl).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn debug_output_shows_no_content() {
        let store = MemoryStore::new("gateway".parse().unwrap());
        let (mut function, revision) = function_of("a");
        function.spec = function.spec.with_env("TOKEN", "hunter2");
        FunctionStore::create(&store, &function, &revision).await.unwrap();
        let text = format!("{store:?}");
        assert!(text.contains("functions: 1") && !text.contains("hunter2"), "{text}");
    }
}
