//! Invocations that outlive their caller: what is submitted, how it is tried, and how it ends.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{
    AsyncPolicy, Error, ErrorKind, Failure, FunctionId, FunctionKey, FunctionName, Generation, InvocationId,
    InvocationRecord, InvokeRequest, Origin, Page, PageRequest, Principal, Result, SecretRef, TenantId, Timestamp,
    TraceParent,
};

/// A request as it is stored, but for its payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StoredRequest {
    /// The method.
    pub method: String,
    /// The path below the function, raw; empty for none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// The query, raw, without `?`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query: Option<String>,
    /// The headers, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Narrows the secrets that the function gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secrets: Option<BTreeSet<SecretRef>>,
}

impl StoredRequest {
    /// Takes over all of a request but its payload and extensions.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for a header whose value is no text, which can't be stored.
    pub fn of(request: &InvokeRequest) -> Result<Self> {
        Ok(Self {
            method: request.method.to_string(),
            path: request.path.to_string(),
            query: request.query.clone(),
            headers: stored_headers(&request.headers)?,
            secrets: request.secrets.clone(),
        })
    }

    /// The request again, with its payload.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] where what is stored is no request.
    pub fn with_payload(&self, payload: Bytes) -> Result<InvokeRequest> {
        let unreadable = |what: &str| Error::new(ErrorKind::Internal, format!("the stored {what} can't be read"));
        let mut request = InvokeRequest::new(payload);
        request.method = Method::from_bytes(self.method.as_bytes()).map_err(|_| unreadable("method"))?;
        request.path = self.path.clone().into();
        request.query.clone_from(&self.query);
        request.headers = read_headers(&self.headers).ok_or_else(|| unreadable("headers"))?;
        request.secrets.clone_from(&self.secrets);
        Ok(request)
    }
}

/// Headers as text.
pub(crate) fn stored_headers(headers: &HeaderMap) -> Result<Vec<(String, String)>> {
    let text = |(name, value): (&HeaderName, &HeaderValue)| match std::str::from_utf8(value.as_bytes()) {
        Ok(text) => Ok((name.as_str().to_owned(), text.to_owned())),
        Err(_) => {
            let message = format!("the header {name} is no text, and only text can be stored");
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
    };
    headers.iter().map(text).collect()
}

/// Headers from text; `None` where one is none.
pub(crate) fn read_headers(stored: &[(String, String)]) -> Option<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(stored.len());
    for (name, value) in stored {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(headers)
}

/// By what a caller tells that two submissions are one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct IdempotencyKey {
    /// The key, unique for a function while it is kept. At most 255 bytes, without `U+0000`.
    pub key: String,
    /// What was sent under it, as a SHA-256 hash over request and payload, in hexadecimal.
    pub fingerprint: String,
}

impl IdempotencyKey {
    /// The greatest length of a key, in bytes.
    pub const MAX_LEN: usize = 255;

    /// A key with the hash of what is sent under it.
    #[must_use]
    pub fn new(key: impl Into<String>, fingerprint: impl Into<String>) -> Self {
        Self { key: key.into(), fingerprint: fingerprint.into() }
    }
}

/// The event that an invocation is a consequence of.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventRef {
    /// The event's `source`.
    pub source: String,
    /// The event's `id`.
    pub id: String,
    /// The event's `type`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The subscription that it met.
    pub subscription: String,
}

impl EventRef {
    /// An event that met a subscription.
    #[must_use]
    pub fn new(
        source: impl Into<String>,
        id: impl Into<String>,
        kind: impl Into<String>,
        subscription: impl Into<String>,
    ) -> Self {
        Self { source: source.into(), id: id.into(), kind: kind.into(), subscription: subscription.into() }
    }
}

/// Where an invocation comes from, beside its caller.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Lineage {
    /// The invocation whose end led to this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<InvocationId>,
    /// The dead invocation that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_of: Option<InvocationId>,
    /// How many invocations led to this one, one after the other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub depth: u32,
    /// The event that it is a consequence of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<EventRef>,
    /// The generation that served when it was accepted. The record's own is the one that executed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted_by: Option<Generation>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference over")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Functions that get the same payload after this one, one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Sequence {
    /// Those that are still to come, the next one first.
    pub next: Vec<FunctionName>,
    /// Whether the next one comes also after a failure.
    pub go_on: bool,
}

impl Sequence {
    /// Functions to come.
    #[must_use]
    pub fn new(next: Vec<FunctionName>, go_on: bool) -> Self {
        Self { next, go_on }
    }
}

/// What is to be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Work {
    /// The function that the submission names.
    Invoke,
    /// A document about the end of another invocation is sent to an address.
    Callback {
        /// The address.
        url: String,
        /// The secret that it is signed with.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        secret: Option<SecretRef>,
    },
}

/// An invocation that was accepted for later. It never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Submission {
    /// The invocation.
    pub id: InvocationId,
    /// The function's tenant and name.
    pub key: FunctionKey,
    /// The function. Another one that bears its name later is not meant.
    pub function: FunctionId,
    /// The generation that served when it was accepted.
    pub generation: Generation,
    /// Whether that generation is to execute it, whichever serves by then.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
    /// What is to be executed.
    pub work: Work,
    /// Who called, with what the credential was given then.
    pub principal: Principal,
    /// Where it came from.
    pub origin: Origin,
    /// The trace that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceParent>,
    /// Vendor data of the trace (`tracestate`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_state: Option<String>,
    /// When it was accepted.
    pub created_at: Timestamp,
    /// The request.
    pub request: StoredRequest,
    /// The payload. Stores keep it beside the document.
    #[serde(skip)]
    pub payload: Bytes,
    /// How it is tried, in place of what the function's specification says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<AsyncPolicy>,
    /// By what a second one is told to be the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency: Option<IdempotencyKey>,
    /// When it was to be executed first, where that is later than it was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// Where it comes from.
    #[serde(default)]
    pub lineage: Lineage,
    /// What comes after it with the same payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<Sequence>,
    /// Why it can't be executed, where that was known when it was accepted: it is to end as a dead letter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

impl Submission {
    /// An invocation of a function by a principal, at a time.
    #[must_use]
    pub fn new(
        id: InvocationId,
        revision: &crate::Revision,
        principal: Principal,
        created_at: Timestamp,
        request: StoredRequest,
        payload: Bytes,
    ) -> Self {
        let meant = (revision.key.clone(), revision.function, revision.generation);
        let mut submission = Self::meant(id, meant, (principal, created_at), request, payload);
        submission.lineage.accepted_by = Some(revision.generation);
        submission
    }

    /// An invocation of a function that need not be there.
    pub(crate) fn meant(
        id: InvocationId,
        (key, function, generation): (FunctionKey, FunctionId, Generation),
        (principal, created_at): (Principal, Timestamp),
        request: StoredRequest,
        payload: Bytes,
    ) -> Self {
        Self {
            id,
            key,
            function,
            generation,
            pinned: false,
            work: Work::Invoke,
            principal,
            origin: Origin::Async,
            trace: None,
            trace_state: None,
            created_at,
            request,
            payload,
            policy: None,
            idempotency: None,
            not_before: None,
            lineage: Lineage::default(),
            sequence: None,
            refused: None,
        }
    }
}

/// One attempt that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Attempt {
    /// Which one it was, from 1.
    pub number: u32,
    /// The generation that executed it, where it came that far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// When it began. Of one whose gateway died, this and its end are when its lease ran out.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The status that the function answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
}

impl Attempt {
    /// An attempt that has succeeded.
    #[must_use]
    pub fn new(number: u32, started_at: Timestamp, finished_at: Timestamp) -> Self {
        Self { number, generation: None, started_at, finished_at, status: None, failure: None }
    }
}

/// How far an accepted invocation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum QueueState {
    /// It waits for its time, or for a worker.
    Waiting,
    /// A worker has it, and the function has not got it yet.
    Leased,
    /// An attempt is under way.
    Running,
    /// It has ended, and nothing is left to be done.
    Done,
    /// It has failed for good, and is kept to be looked at, redriven or purged.
    Dead,
    /// It was dead, and another invocation repeats it.
    Redriven,
}

impl QueueState {
    /// The name in JSON and in stores.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Leased => "leased",
            Self::Running => "running",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Redriven => "redriven",
        }
    }

    /// Whether it is still to be executed, or being executed.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Leased | Self::Running)
    }
}

impl std::str::FromStr for QueueState {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        [Self::Waiting, Self::Leased, Self::Running, Self::Done, Self::Dead, Self::Redriven]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no state of a queue"))
    }
}

/// What the last attempt answered, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StoredAnswer {
    /// The status.
    pub status: u16,
    /// The headers, in their order; those that are no text are left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    /// Why the function did not do what was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The result; `None` where it was streamed or too large to be kept. Stores keep it beside the document.
    #[serde(skip)]
    pub body: Option<Bytes>,
}

impl StoredAnswer {
    /// An answer with its result.
    #[must_use]
    pub fn new(status: u16, headers: Vec<(String, String)>, body: Option<Bytes>) -> Self {
        Self { status, headers, failure: None, body }
    }
}

/// How an accepted invocation has gone so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Progress {
    /// The attempts that have ended, in their order. Of more than [`MAX_ATTEMPTS`](Self::MAX_ATTEMPTS) the first ones are forgotten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// How it has ended without success, or why it did not come to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// What the last attempt answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<StoredAnswer>,
    /// The invocation that repeats this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redriven_as: Option<InvocationId>,
}

impl Progress {
    /// How many attempts are kept.
    pub const MAX_ATTEMPTS: usize = 32;

    /// Adds an attempt that has ended.
    pub fn add(&mut self, attempt: Attempt) {
        if self.attempts.len() >= Self::MAX_ATTEMPTS {
            self.attempts.remove(0);
        }
        self.attempts.push(attempt);
    }
}

/// An accepted invocation as it stands in the queue.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct QueuedInvocation {
    /// What was accepted.
    pub submission: Arc<Submission>,
    /// How far it is.
    pub state: QueueState,
    /// How many attempts were dispatched. The last one may not have ended.
    pub attempts: u32,
    /// When it may be taken; `None` once it has ended.
    pub due_at: Option<Timestamp>,
    /// When it ended; `None` before.
    pub ended_at: Option<Timestamp>,
    /// Until when it is kept; `None` for what is not to be forgotten by its age.
    pub expires_at: Option<Timestamp>,
    /// Whether its end is wanted.
    pub cancel_requested: bool,
    /// How it has gone.
    pub progress: Progress,
}

impl QueuedInvocation {
    /// Puts one together that waits, as stores do.
    #[must_use]
    pub fn waiting(submission: Arc<Submission>, due_at: Timestamp) -> Self {
        Self {
            submission,
            state: QueueState::Waiting,
            attempts: 0,
            due_at: Some(due_at),
            ended_at: None,
            expires_at: None,
            cancel_requested: false,
            progress: Progress::default(),
        }
    }
}

/// The right to execute an accepted invocation, for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct QueueLease {
    /// The invocation.
    pub id: InvocationId,
    /// Grows each time that it is taken.
    pub epoch: u64,
}

impl QueueLease {
    /// Puts a lease together, as stores do.
    #[must_use]
    pub fn new(id: InvocationId, epoch: u64) -> Self {
        Self { id, epoch }
    }
}

/// When something may be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Due {
    /// At once.
    Now,
    /// After a time, by the store's clock.
    In(Duration),
    /// At a time.
    At(Timestamp),
}

/// How much may wait for a function, and for a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueLimits {
    /// Invocations of the function that have not ended.
    pub per_function: u64,
    /// Invocations of the tenant that have not ended.
    pub per_tenant: u64,
    /// Invocations of the function that are pinned and have not ended.
    pub pinned: u64,
}

impl QueueLimits {
    /// No limits.
    pub const NONE: Self = Self { per_function: u64::MAX, per_tenant: u64::MAX, pinned: u64::MAX };

    /// Limits for a function and for its tenant.
    #[must_use]
    pub fn new(per_function: u64, per_tenant: u64) -> Self {
        Self { per_function, per_tenant, ..Self::NONE }
    }

    /// Whether one more has its place beside those that have not ended: of the function, of its tenant, and, where the one
    /// more is pinned, of the function's that are.
    ///
    /// # Errors
    /// [`ErrorKind::RateLimited`], which names the first limit that is reached.
    pub fn check(&self, of_function: u64, of_tenant: u64, pinned: Option<u64>) -> Result<()> {
        let counts = [
            ("max_per_function", self.per_function, Some(of_function)),
            ("max_per_tenant", self.per_tenant, Some(of_tenant)),
            ("max_pinned", self.pinned, pinned),
        ];
        match counts.into_iter().find(|(_, limit, count)| count.is_some_and(|count| count >= *limit)) {
            Some((name, limit, _)) => Err(Self::reached(name, limit)),
            None => Ok(()),
        }
    }

    /// The error for who wants more.
    #[must_use]
    pub fn reached(limit: &'static str, value: u64) -> Error {
        let message = format!("the queue is full: {value} invocations have not ended ({limit})");
        Error::new(ErrorKind::RateLimited, message)
            .with_context("limit", limit)
            .with_retry_after(Duration::from_secs(1))
    }
}

/// An invocation to be accepted.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Acceptance {
    /// What it is.
    pub submission: Arc<Submission>,
    /// Its record, in the state `queued`; none for a callback.
    pub record: Option<Arc<InvocationRecord>>,
    /// When it may be taken.
    pub due: Due,
    /// How much may wait beside it.
    pub limits: QueueLimits,
    /// Takes it at once, for so long: nobody else gets it first.
    pub lease: Option<Duration>,
}

impl Acceptance {
    /// Accepts without limits what may be taken at once.
    #[must_use]
    pub fn new(submission: Arc<Submission>, record: Option<Arc<InvocationRecord>>) -> Self {
        Self { submission, record, due: Due::Now, limits: QueueLimits::NONE, lease: None }
    }

    /// Sets when it may be taken.
    #[must_use]
    pub fn with_due(mut self, due: Due) -> Self {
        self.due = due;
        self
    }

    /// Sets how much may wait beside it.
    #[must_use]
    pub fn with_limits(mut self, limits: QueueLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Takes it at once, for so long.
    #[must_use]
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = Some(lease);
        self
    }
}

/// What became of an acceptance.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Accepted {
    /// It is kept.
    New {
        /// The right to execute it, where that was asked for.
        lease: Option<QueueLease>,
    },
    /// The function was sent the same under the same key before.
    Known(Arc<QueuedInvocation>),
}

/// What a worker wants.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TakeRequest {
    /// How many at most.
    pub limit: usize,
    /// How many of one tenant at most.
    pub per_tenant: usize,
    /// For how long.
    pub lease: Duration,
    /// Tenants of which none is wanted now.
    pub without: Vec<TenantId>,
}

impl TakeRequest {
    /// Takes up to `limit` for a time, all of one tenant where no other has any.
    #[must_use]
    pub fn new(limit: usize, lease: Duration) -> Self {
        Self { limit, per_tenant: limit, lease, without: Vec::new() }
    }

    /// Leaves tenants out.
    #[must_use]
    pub fn without(mut self, tenants: Vec<TenantId>) -> Self {
        self.without = tenants;
        self
    }

    /// Bounds how many of one tenant are taken.
    #[must_use]
    pub fn with_per_tenant(mut self, per_tenant: usize) -> Self {
        self.per_tenant = per_tenant;
        self
    }
}

/// One that was taken.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TakenInvocation {
    /// The right to execute it.
    pub lease: QueueLease,
    /// As it was just before it was taken: one that is `running` was dispatched by somebody whose lease has run out.
    pub invocation: QueuedInvocation,
    /// What its last dispatch said about executing it twice.
    pub repeatable: bool,
}

impl TakenInvocation {
    /// Puts one together, as stores do.
    #[must_use]
    pub fn new(lease: QueueLease, invocation: QueuedInvocation, repeatable: bool) -> Self {
        Self { lease, invocation, repeatable }
    }
}

/// What a worker got.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Taken {
    /// What it is to execute.
    pub items: Vec<TakenInvocation>,
    /// When the next one may be taken, from now, as far as it is known; zero where there may be more at once.
    pub next_due: Option<Duration>,
}

impl Taken {
    /// Puts it together, as stores do.
    #[must_use]
    pub fn new(items: Vec<TakenInvocation>, next_due: Option<Duration>) -> Self {
        Self { items, next_due }
    }
}

/// An attempt that is about to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dispatch {
    /// Which attempt, from 1.
    pub attempt: u32,
    /// Whether it may be sent again should nobody learn how it ended.
    pub repeatable: bool,
    /// How long the lease is to last from now on: longer than the attempt can.
    pub lease: Duration,
}

impl Dispatch {
    /// An attempt that must not be repeated where its end is not known.
    #[must_use]
    pub fn new(attempt: u32, lease: Duration) -> Self {
        Self { attempt, repeatable: false, lease }
    }

    /// Says whether it may be sent again.
    #[must_use]
    pub fn repeatable(mut self, repeatable: bool) -> Self {
        self.repeatable = repeatable;
        self
    }
}

/// How an attempt has left an invocation.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Settled {
    /// It is to be taken again.
    Again {
        /// When.
        due: Due,
        /// How many attempts count. One that was not sent need not.
        attempts: u32,
    },
    /// It has ended.
    Ended {
        /// Its record, in its final state; none for a callback.
        record: Option<Arc<InvocationRecord>>,
        /// Whether it is kept as a dead letter, without end; else for `keep_for`.
        dead: bool,
        /// How long payload and answer are kept from now on.
        keep_for: Duration,
    },
}

/// What is written at the end of an attempt, as a whole.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settlement {
    /// How the invocation goes on.
    pub settled: Settled,
    /// How it has gone so far.
    pub progress: Progress,
    /// What is accepted as a consequence. Limits and leases are not looked at: what was accepted goes on.
    pub followers: Vec<Acceptance>,
    /// Whether the idempotency key may be used again, since nothing was done under it.
    pub free_key: bool,
}

impl Settlement {
    /// A settlement without consequences.
    #[must_use]
    pub fn new(settled: Settled, progress: Progress) -> Self {
        Self { settled, progress, followers: Vec::new(), free_key: false }
    }
}

/// What became of the wish that an invocation end.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Cancelling {
    /// It was waiting and is taken: settle it.
    Taken(Box<TakenInvocation>),
    /// A worker has it and will see the wish.
    Requested,
    /// It has ended before.
    Ended,
}

/// Which dead letters, for a list. All that is set has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterFilter {
    /// Of the function of this name.
    pub name: Option<FunctionName>,
}

impl DeadLetterFilter {
    /// Dead letters of the function of a name.
    #[must_use]
    pub fn of(name: FunctionName) -> Self {
        Self { name: Some(name) }
    }
}

/// How much there is of a function in the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct QueueDepth {
    /// Invocations that have not ended.
    pub open: u64,
    /// Dead letters.
    pub dead: u64,
}

impl QueueDepth {
    /// Puts figures together, as stores do.
    #[must_use]
    pub fn new(open: u64, dead: u64) -> Self {
        Self { open, dead }
    }
}

/// Tells that something in a queue may have changed. A hint: it may come without a reason, and what other processes do it
/// tells only where the store hears of it.
#[derive(Debug, Clone)]
pub struct QueueSignal(watch::Receiver<()>);

impl QueueSignal {
    /// Waits for the next change after the last that was seen, or for the end of the store. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Gives a [`QueueSignal`], for authors of stores.
#[derive(Debug)]
pub struct QueueNotifier(watch::Sender<()>);

impl Default for QueueNotifier {
    fn default() -> Self {
        Self(watch::Sender::new(()))
    }
}

impl QueueNotifier {
    /// Tells all that wait.
    pub fn notify(&self) {
        self.0.send_replace(());
    }

    /// A signal that has seen everything so far.
    #[must_use]
    pub fn signal(&self) -> QueueSignal {
        QueueSignal(self.0.subscribe())
    }
}

/// Keeps invocations that are to be executed later, until their payloads and results are no longer wanted.
///
/// # Behaviour
/// - What is accepted is committed together with its record, and so is each step that it goes; it survives the death of this
///   process as far as the store does.
/// - One that is taken belongs to its taker until its lease runs out by the store's clock. Then it can be taken again, and
///   nothing that depends on the old lease is written any more, whether somebody has taken it or not.
/// - A taken one that was not dispatched is as if it had not been taken. One that was dispatched is `running` for everybody
///   who takes it until it is settled: nobody knows how that attempt ended.
/// - Tenants take turns: as long as several have something that is due, none is passed over.
/// - Within a tenant, what is due first is taken first.
/// - Its time is the store's own.
///
/// # Errors
/// Beside those that a method names: [`ErrorKind::Store`] where the store itself fails. With [`ErrorKind::Unsupported`] a store says
/// that it keeps no queue.
///
/// # Cancel safety
/// A write whose future is dropped is done or not done, never half done.
#[async_trait]
pub trait InvocationQueue: fmt::Debug + Send + Sync + 'static {
    /// Commits an invocation and its record.
    ///
    /// Where the submission has an idempotency key under which the function was sent the same before, as long as that is
    /// kept, nothing is added and that one is given as [`queued`](Self::queued) gives it, whatever the limits.
    ///
    /// # Errors
    /// [`RateLimited`](ErrorKind::RateLimited), naming the limit; [`AlreadyExists`](ErrorKind::AlreadyExists) where
    /// there is an invocation of the id, in whichever tenant; [`IdempotencyMismatch`](ErrorKind::IdempotencyMismatch) where the
    /// function was sent something else under the key.
    async fn accept(&self, acceptance: Acceptance) -> Result<Accepted>;

    /// Across tenants: takes what is due, or whose lease has run out.
    async fn take(&self, request: &TakeRequest) -> Result<Taken>;

    /// Commits that an attempt is about to be sent, and prolongs its lease. Doing it again for the same attempt only
    /// prolongs the lease. The record is `running` from then on, and else as it was.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where the lease was lost.
    async fn dispatch(&self, lease: &QueueLease, dispatch: Dispatch) -> Result<()>;

    /// Commits how an attempt has left an invocation, and what is accepted as a consequence. An invocation that goes on has
    /// a record that is `queued` again. A follower that is there already, by its id or by its idempotency key, is left out.
    ///
    /// # Errors
    /// [`Conflict`](ErrorKind::Conflict) where the lease was lost.
    async fn settle(&self, lease: &QueueLease, settlement: Settlement) -> Result<()>;

    /// Notes that an invocation is to end. One that waits is also taken by it, for `lease`.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) where the tenant has none of the id.
    async fn cancel(&self, tenant: &TenantId, id: InvocationId, lease: Duration) -> Result<Cancelling>;

    /// Across tenants: those of some invocations that are to end and have not.
    async fn cancelled(&self, ids: &[InvocationId]) -> Result<Vec<InvocationId>>;

    /// Reads an invocation with its payload and answer, as long as they are kept.
    async fn queued(&self, tenant: &TenantId, id: InvocationId) -> Result<Option<Arc<QueuedInvocation>>>;

    /// Reads a page of a tenant's dead letters, those that died last first, without payloads and the bodies of answers.
    ///
    /// # Errors
    /// [`InvalidArgument`](ErrorKind::InvalidArgument) for a cursor that is not of such a list.
    async fn dead_letters(
        &self,
        tenant: &TenantId,
        filter: &DeadLetterFilter,
        page: &PageRequest,
    ) -> Result<Page<Arc<QueuedInvocation>>>;

    /// Accepts an invocation in place of a dead one, which is `redriven` from then on and kept for `keep_for`. A key under
    /// which the function was sent the same before counts as an id that is there.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) where the tenant has none of the id; [`Conflict`](ErrorKind::Conflict) where it
    /// is not dead, or no longer; those of [`accept`](Self::accept).
    async fn redrive(
        &self,
        tenant: &TenantId,
        id: InvocationId,
        acceptance: Acceptance,
        keep_for: Duration,
    ) -> Result<()>;

    /// Forgets a dead letter. Its record stays.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) where the tenant has none of the id; [`Conflict`](ErrorKind::Conflict) where it
    /// is not dead.
    async fn purge(&self, tenant: &TenantId, id: InvocationId) -> Result<()>;

    /// How much there is of a tenant's function in the queue; of all its functions together without a name.
    async fn depth(&self, tenant: &TenantId, name: Option<&FunctionName>) -> Result<QueueDepth>;

    /// Across tenants: how many invocations that have not ended are pinned to a generation.
    async fn pinned(&self, function: FunctionId, generation: Generation) -> Result<u64>;

    /// Across tenants: forgets up to `limit` of what has ended and is past its time. Says how many.
    async fn expire(&self, limit: usize) -> Result<u64>;

    /// Tells when something was accepted, or may be taken again.
    fn arrivals(&self) -> QueueSignal;

    /// Tells when something has ended.
    fn endings(&self) -> QueueSignal;
}

/// The error for what was written under a lease that was lost.
pub(crate) fn queue_lease_lost(id: InvocationId) -> Error {
    Error::new(ErrorKind::Conflict, "the right to execute the invocation was lost")
        .with_context("invocation", id.to_string())
}

/// The error for a key under which something else was sent.
pub(crate) fn idempotency_mismatch(key: &str) -> Error {
    let message = "the function was sent something else under this idempotency key: use a key once for each request";
    Error::new(ErrorKind::IdempotencyMismatch, message).with_context("idempotency_key", key)
}

/// The error for a dead letter that is none.
pub(crate) fn not_dead(id: InvocationId) -> Error {
    Error::new(ErrorKind::Conflict, "the invocation is not dead, or no longer")
        .with_retry(crate::Retry::Never)
        .with_context("invocation", id.to_string())
}

pub(crate) fn not_queued(id: InvocationId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no invocation {id} in the queue"))
}
