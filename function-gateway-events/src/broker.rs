//! From an event to the invocations that it leads to.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use function_gateway_core::{
    Action, CallContext, DocumentStore, Error, ErrorKind, EventRef, FunctionExecutor as _, FunctionName, FunctionRef,
    Gateway, InvocationId, InvokeRequest, Origin, Page, PageRequest, Principal, Result, Sequence, StoredDocument,
    SubmitOptions, TenantId, Timestamp, Version, Violation,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    Event, EventForm, EventTime, Strategy, Subscription, SubscriptionName, SubscriptionSpec, to_http_binary,
    to_http_structured,
};

/// The type of the event that tells of a payload which a function does not take.
pub const VALIDATION_ERROR: &str = "io.function-gateway.validation-error.v1";

/// The kind of documents that subscriptions are.
const KIND: &str = "subscription";
/// The form of documents that this program writes, and the latest that it reads.
const FORMAT: u32 = 1;

/// How a broker works. Each setting has a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BrokerConfig {
    /// How many subscriptions a tenant may have. Default: 1,000.
    pub max_subscriptions: usize,
    /// How long a process may go on with subscriptions that another process has changed. Default: 1 s.
    pub subscription_ttl: Duration,
}

impl Default for BrokerConfig {
    fn default() -> Self {
        Self { max_subscriptions: 1000, subscription_ttl: Duration::from_secs(1) }
    }
}

/// One invocation that an event has led to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Triggered {
    /// The subscription that the event met.
    pub subscription: SubscriptionName,
    /// The function that is executed; of a sequence the first.
    pub function: FunctionName,
    /// The invocation.
    pub invocation: InvocationId,
    /// Whether the event was published before.
    pub is_repeated: bool,
}

/// What an event has led to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Published {
    /// The event's `id`.
    pub id: String,
    /// The event's `source`.
    pub source: String,
    /// The invocations that were accepted; none where no subscription is about it.
    pub triggered: Vec<Triggered>,
}

/// Takes events and has the functions executed that subscriptions name. Clones share what they hold.
///
/// An event is taken once all its invocations are committed. Where one of them can't be, publishing it fails; published again,
/// those that were committed are not made twice: an event is told by its `source` and `id`, as long as the queue keeps
/// its invocations ([`QueueConfig::keep_for`](function_gateway_core::QueueConfig::keep_for) after their end).
///
/// ```
/// use std::sync::Arc;
///
/// use function_gateway_core::store::memory::MemoryStore;
/// use function_gateway_core::{CallContext, Gateway};
/// use function_gateway_events::{Event, EventBroker, SubscriptionSpec};
///
/// # async fn example(gateway: Gateway, store: Arc<MemoryStore>, cx: CallContext) -> function_gateway_core::Result<()> {
/// let broker = EventBroker::new(gateway, store);
/// broker.create(&cx, "orders".parse()?, SubscriptionSpec::to("bill".parse()?)).await?;
/// let event = Event::builder().id("1").source("/shop").event_type("order.created").build()?;
/// let published = broker.publish(&cx, &event).await?;
/// assert_eq!(published.triggered.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct EventBroker(Arc<Inner>);

struct Inner {
    gateway: Gateway,
    documents: Arc<dyn DocumentStore>,
    config: BrokerConfig,
    known: Mutex<HashMap<TenantId, Known>>,
}

/// A tenant's subscriptions as they were a moment ago.
#[derive(Clone)]
struct Known {
    read_at: Instant,
    subscriptions: Arc<Vec<Subscription>>,
}

impl fmt::Debug for EventBroker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { gateway, documents, config, .. } = &*self.0;
        f.debug_struct("EventBroker")
            .field("gateway", gateway)
            .field("documents", documents)
            .field("config", config)
            .finish_non_exhaustive()
    }
}

impl EventBroker {
    /// A broker that keeps subscriptions in a store and submits to a gateway, which needs a queue.
    #[must_use]
    pub fn new(gateway: Gateway, documents: Arc<dyn DocumentStore>) -> Self {
        Self::with_config(gateway, documents, BrokerConfig::default())
    }

    /// As [`new`](Self::new), with other settings.
    #[must_use]
    pub fn with_config(gateway: Gateway, documents: Arc<dyn DocumentStore>, config: BrokerConfig) -> Self {
        Self(Arc::new(Inner { gateway, documents, config, known: Mutex::default() }))
    }

    /// Publishes an event: accepts the invocations of all subscriptions that are about it, on behalf of their owners.
    ///
    /// # Errors
    /// [`PermissionDenied`](ErrorKind::PermissionDenied); [`RateLimited`](ErrorKind::RateLimited) and
    /// [`Store`](ErrorKind::Store) where an invocation can't be accepted now: publish the event again.
    ///
    /// # Cancel safety
    /// Where the future is dropped, some of its invocations were accepted or none: publish the event again.
    pub async fn publish(&self, cx: &CallContext, event: &Event) -> Result<Published> {
        self.0.gateway.authorize(cx, Action::Publish).await?;
        self.deliver(cx.tenant(), event).await
    }

    async fn deliver(&self, tenant: &TenantId, event: &Event) -> Result<Published> {
        let subscriptions = self.subscriptions(tenant).await?;
        let mut triggered = Vec::new();
        for subscription in subscriptions.iter().filter(|known| known.spec.filters.matches(event)) {
            self.trigger(subscription, event, &mut triggered).await?;
        }
        metrics::counter!("function_gateway.events.published").increment(1);
        Ok(Published { id: event.id().to_owned(), source: event.source().to_owned(), triggered })
    }

    async fn trigger(&self, subscription: &Subscription, event: &Event, triggered: &mut Vec<Triggered>) -> Result<()> {
        let Subscription { name, principal, spec, .. } = subscription;
        let cx = CallContext::new(principal.clone()).with_origin(Origin::Event);
        let (now, later) = match spec.strategy {
            Strategy::Parallel => (spec.functions.as_slice(), None),
            Strategy::SequentialStop | Strategy::SequentialGoOn => {
                let (first, rest) = spec.functions.split_at(spec.functions.len().min(1));
                let go_on = spec.strategy == Strategy::SequentialGoOn;
                (first, (!rest.is_empty()).then(|| Sequence::new(rest.to_vec(), go_on)))
            }
        };
        for function in now {
            let request = request(event, spec.form)?.with_idempotency_key(key(name, event));
            let target = FunctionRef::from(function.clone());
            if spec.tell_invalid && event.event_type() != VALIDATION_ERROR {
                self.tell_invalid(&cx, subscription, function, event, &request).await?;
            }
            let mut options = SubmitOptions::default().unchecked().with_event(EventRef::new(
                event.source(),
                event.id(),
                event.event_type(),
                name.as_str(),
            ));
            options.policy = spec.on_failure.policy();
            options.sequence.clone_from(&later);
            let receipt = self.0.gateway.submit(&cx, &target, request, options).await;
            let receipt = receipt.map_err(|error| error.with_context("subscription", name.as_str()))?;
            let (invocation, is_repeated) = (receipt.id, receipt.is_repeated);
            let (subscription, function) = (name.clone(), function.clone());
            triggered.push(Triggered { subscription, function, invocation, is_repeated });
        }
        Ok(())
    }

    /// Publishes that a function does not take an event.
    async fn tell_invalid(
        &self,
        cx: &CallContext,
        subscription: &Subscription,
        function: &FunctionName,
        event: &Event,
        request: &InvokeRequest,
    ) -> Result<()> {
        let Some(request) = request.try_clone() else { return Ok(()) };
        let target = FunctionRef::from(function.clone());
        let violations = match self.0.gateway.check_payload(cx, &target, request).await {
            Ok(violations) if violations.is_empty() => return Ok(()),
            Ok(violations) => violations,
            // Why it can't be looked at shows when it is executed.
            Err(_) => return Ok(()),
        };
        let told = invalid_event(subscription, function, event, &violations)?;
        Box::pin(self.deliver(&subscription.principal.tenant, &told)).await.map(drop)
    }

    /// A tenant's subscriptions, read at most the time to live ago.
    async fn subscriptions(&self, tenant: &TenantId) -> Result<Arc<Vec<Subscription>>> {
        const MOST: usize = 10_000;
        let Inner { documents, config, known, .. } = &*self.0;
        let is_fresh = |known: &Known| known.read_at.elapsed() < config.subscription_ttl;
        let found =
            known.lock().unwrap_or_else(PoisonError::into_inner).get(tenant).filter(|known| is_fresh(known)).cloned();
        if let Some(found) = found {
            return Ok(found.subscriptions);
        }
        // Taken before the read: what is older than this may have changed.
        let read_at = Instant::now();
        let mut subscriptions = Vec::new();
        let mut page = PageRequest::first(PageRequest::MAX_LIMIT);
        loop {
            let documents = documents.documents(tenant, KIND, &page).await?;
            for document in &documents.items {
                match read(document) {
                    Ok(subscription) => subscriptions.push(subscription),
                    Err(error) => tracing::error!(name = document.name, ?error, "a subscription can't be read"),
                }
            }
            match documents.next {
                Some(next) => page = page.after(next),
                None => break,
            }
        }
        let subscriptions = Arc::new(subscriptions);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, known| is_fresh(known));
        }
        known.insert(tenant.clone(), Known { read_at, subscriptions: Arc::clone(&subscriptions) });
        Ok(subscriptions)
    }

    fn forget(&self, tenant: &TenantId) {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner).remove(tenant);
    }

    /// Creates a subscription on behalf of the caller.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) with everything that is wrong;
    /// [`AlreadyExists`](ErrorKind::AlreadyExists); [`RateLimited`](ErrorKind::RateLimited) where the tenant has too many.
    pub async fn create(
        &self,
        cx: &CallContext,
        name: SubscriptionName,
        spec: SubscriptionSpec,
    ) -> Result<Subscription> {
        self.0.gateway.authorize(cx, Action::WriteSubscriptions).await?;
        check(&spec)?;
        self.forget(cx.tenant());
        let most = self.0.config.max_subscriptions;
        if self.subscriptions(cx.tenant()).await?.len() >= most {
            let message = format!("the tenant has {most} subscriptions, and can't have more (max_subscriptions)");
            return Err(Error::new(ErrorKind::RateLimited, message).with_context("limit", "max_subscriptions"));
        }
        let now = self.0.gateway.now();
        self.put(cx, name, (now, now), spec, None).await
    }

    /// Replaces a subscription, with `expected` only if it has this version. It is on behalf of the caller from then on.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) with everything that is wrong; [`NotFound`](ErrorKind::NotFound);
    /// [`PreconditionFailed`](ErrorKind::PreconditionFailed) where the version differs; [`Conflict`](ErrorKind::Conflict) where
    /// somebody changed it at the same time.
    pub async fn update(
        &self,
        cx: &CallContext,
        name: SubscriptionName,
        spec: SubscriptionSpec,
        expected: Option<Version>,
    ) -> Result<Subscription> {
        self.0.gateway.authorize(cx, Action::WriteSubscriptions).await?;
        check(&spec)?;
        let known = self.find(cx.tenant(), &name).await?;
        check_version(&known, expected)?;
        let times = (known.created_at, self.0.gateway.now());
        self.put(cx, name, times, spec, Some(known.version)).await
    }

    async fn put(
        &self,
        cx: &CallContext,
        name: SubscriptionName,
        (created_at, updated_at): (Timestamp, Timestamp),
        spec: SubscriptionSpec,
        expected: Option<Version>,
    ) -> Result<Subscription> {
        let principal = Principal::clone(cx.principal());
        let stored = Stored { format: FORMAT, principal, created_at, updated_at, spec };
        let content = serde_json::to_string(&stored).map_err(|error| {
            Error::new(ErrorKind::Internal, "the subscription can't be written as JSON").with_source(error)
        })?;
        let document = StoredDocument::new(cx.tenant().clone(), KIND, name.as_str(), content);
        let written = self.0.documents.put_document(&document, expected).await;
        self.forget(cx.tenant());
        let written = written?;
        self.0.gateway.audit(cx, Action::WriteSubscriptions, name.as_str()).await;
        let Stored { principal, created_at, updated_at, spec, .. } = stored;
        Ok(Subscription { name, version: written.version, principal, created_at, updated_at, spec })
    }

    /// Reads a subscription.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound).
    pub async fn get(&self, cx: &CallContext, name: &SubscriptionName) -> Result<Subscription> {
        self.0.gateway.authorize(cx, Action::ReadSubscriptions).await?;
        self.find(cx.tenant(), name).await
    }

    async fn find(&self, tenant: &TenantId, name: &SubscriptionName) -> Result<Subscription> {
        match self.0.documents.document(tenant, KIND, name.as_str()).await? {
            Some(document) => read(&document),
            None => Err(Error::new(ErrorKind::NotFound, format!("there is no subscription {name}"))),
        }
    }

    /// Reads a page of the tenant's subscriptions, in the order of their names.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a cursor of another list.
    pub async fn list(&self, cx: &CallContext, page: &PageRequest) -> Result<Page<Subscription>> {
        self.0.gateway.authorize(cx, Action::ReadSubscriptions).await?;
        let Page { items, mut unreadable, next, .. } = self.0.documents.documents(cx.tenant(), KIND, page).await?;
        let mut subscriptions = Vec::with_capacity(items.len());
        for document in &items {
            match read(document) {
                Ok(subscription) => subscriptions.push(subscription),
                Err(error) => unreadable
                    .push(function_gateway_core::UnreadableRow::new(document.name.clone(), error.message().to_owned())),
            }
        }
        let mut page = Page::new(subscriptions, next);
        page.unreadable = unreadable;
        Ok(page)
    }

    /// Deletes a subscription, with `expected` only if it has this version. What it has led to goes on.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`PreconditionFailed`](ErrorKind::PreconditionFailed) where the version differs;
    /// [`Conflict`](ErrorKind::Conflict) where somebody changed it at the same time.
    pub async fn delete(&self, cx: &CallContext, name: &SubscriptionName, expected: Option<Version>) -> Result<()> {
        self.0.gateway.authorize(cx, Action::WriteSubscriptions).await?;
        let known = self.find(cx.tenant(), name).await?;
        check_version(&known, expected)?;
        let deleted = self.0.documents.delete_document(cx.tenant(), KIND, name.as_str(), Some(known.version)).await;
        self.forget(cx.tenant());
        deleted?;
        self.0.gateway.audit(cx, Action::WriteSubscriptions, name.as_str()).await;
        Ok(())
    }
}

/// A subscription as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    principal: Principal,
    created_at: Timestamp,
    updated_at: Timestamp,
    spec: SubscriptionSpec,
}

fn read(document: &StoredDocument) -> Result<Subscription> {
    let unreadable = |reason: String| {
        Error::new(ErrorKind::Store, "the subscription is stored in a form that can't be read").with_detail(reason)
    };
    let stored: Stored = serde_json::from_str(&document.content).map_err(|error| unreadable(error.to_string()))?;
    if stored.format > FORMAT {
        return Err(unreadable(format!("it is of format {}, this program reads up to {FORMAT}", stored.format)));
    }
    let Stored { principal, created_at, updated_at, spec, .. } = stored;
    let name = document.name.parse()?;
    Ok(Subscription { name, version: document.version, principal, created_at, updated_at, spec })
}

fn check(spec: &SubscriptionSpec) -> Result<()> {
    let found = spec.violations();
    if found.is_empty() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::InvalidArgument, "the subscription is not valid").with_violations(found))
}

fn check_version(known: &Subscription, expected: Option<Version>) -> Result<()> {
    if expected.is_none_or(|expected| expected == known.version) {
        return Ok(());
    }
    let message = format!("the subscription has the version {}", known.version.get());
    Err(Error::new(ErrorKind::PreconditionFailed, message))
}

/// What a function gets of an event.
fn request(event: &Event, form: EventForm) -> Result<InvokeRequest> {
    let (headers, body) = match form {
        EventForm::Binary => to_http_binary(event)?,
        EventForm::Structured => to_http_structured(event)?,
    };
    let mut request = InvokeRequest::new(body);
    request.headers = headers;
    Ok(request)
}

/// By what a second event is told to be the same, for one subscription.
fn key(subscription: &SubscriptionName, event: &Event) -> String {
    let mut hash = Sha256::new();
    for part in [event.source(), event.id()] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    let hash: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("event/{subscription}/{hash}")
}

fn invalid_event(
    subscription: &Subscription,
    function: &FunctionName,
    event: &Event,
    violations: &[Violation],
) -> Result<Event> {
    let data = serde_json::json!({
        "event": {"id": event.id(), "source": event.source(), "type": event.event_type()},
        "subscription": subscription.name,
        "function": function,
        "violations": violations,
    });
    let now = Timestamp::now().to_string();
    let built = Event::builder()
        .id(format!("{}/{function}", key(&subscription.name, event)))
        .source("/function-gateway")
        .event_type(VALIDATION_ERROR)
        .data("application/json", data.to_string());
    match now.parse::<EventTime>() {
        Ok(time) => built.time(time).build(),
        Err(_) => built.build(),
    }
}
