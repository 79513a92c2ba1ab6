//! The documents of the API that are not a type of core's as it is.

use std::collections::BTreeSet;

use function_gateway_core::{
    ApiKey, ApiKeyId, AsyncPolicy, Attempt, AuditEvent, AuditEventId, Condition, DriverCapabilities, DriverInfo,
    DriverName, Error, ErrorKind, Failure, Function, FunctionId, FunctionName, FunctionSpec, Generation, InvocationId,
    KeptBytes, Lineage, LogLine, Origin, Page, Phase, Principal, PrincipalId, Protocol, QueueState, QueuedInvocation,
    Receipt, Revision, RevisionReason, RevisionState, RouteEntry, Scope, Submission, TenantId, Timestamp,
    UnreadableRow, Version, Violation, Work,
};
use function_gateway_events::{Published, Subscription, SubscriptionSpec};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A part of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct List<T> {
    /// The items.
    pub(crate) items: Vec<T>,
    /// The `cursor` with which the list goes on; absent at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
    /// What stands in this part of the list and can't be read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unreadable: Vec<Unreadable>,
}

/// Something that is stored and can't be read.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Unreadable {
    /// What it is: a name or an id.
    id: String,
    /// What is wrong with it.
    reason: String,
}

impl<T> List<T> {
    pub(crate) fn of<U>(page: Page<U>, item: impl Fn(U) -> T) -> Self {
        Self {
            items: page.items.into_iter().map(item).collect(),
            next: page.next.map(|cursor| cursor.as_str().to_owned()),
            unreadable: page.unreadable.into_iter().map(|row| Unreadable { id: row.id, reason: row.reason }).collect(),
        }
    }
}

/// A function to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewFunction)]
pub(crate) struct NewFunction {
    /// Its name, which no other function of the tenant has.
    pub(crate) name: FunctionName,
    /// What is wanted.
    #[schema(value_type = FunctionSpec)]
    pub(crate) spec: serde_json::Value,
}

/// A function: what is wanted of it, and how it is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Function)]
pub(crate) struct FunctionDocument {
    /// Its name within the tenant.
    name: FunctionName,
    /// The tenant.
    tenant: TenantId,
    /// Its identity for ever.
    id: FunctionId,
    /// Who created it.
    owner: PrincipalId,
    /// What is wanted: the specification of the newest generation.
    spec: FunctionSpec,
    /// The newest generation.
    generation: Generation,
    /// Counts the changes of function and status.
    version: Version,
    /// When it was created.
    created_at: Timestamp,
    /// When its specification last changed.
    updated_at: Timestamp,
    /// How it is.
    status: StatusDocument,
}

/// How a function is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = FunctionStatus)]
pub(crate) struct StatusDocument {
    /// How the newest generation is.
    phase: Phase,
    /// The generation that serves; absent where none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    serving_generation: Option<Generation>,
    /// Which generations serve, and with which weight.
    route: Vec<RouteEntry>,
    /// The generations that exist, or are to exist, in an engine.
    deployments: Vec<DeploymentDocument>,
    /// What there is to know beside the phase.
    conditions: Vec<Condition>,
}

/// How one generation is in its engine.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Deployment)]
pub(crate) struct DeploymentDocument {
    /// The generation.
    generation: Generation,
    /// The driver that holds it.
    driver: DriverName,
    /// How far it is.
    state: RevisionState,
    /// Since when.
    since: Timestamp,
    /// How often deploying it has failed in a row.
    failures: u32,
    /// What the engine or the driver says of it.
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
}

impl From<&Function> for FunctionDocument {
    fn from(function: &Function) -> Self {
        let status = &function.status;
        let deployments = status.deployments.iter().map(|deployment| DeploymentDocument {
            generation: deployment.generation,
            driver: deployment.driver.clone(),
            state: deployment.state,
            since: deployment.since,
            failures: deployment.failures,
            message: deployment.message.clone(),
        });
        Self {
            name: function.key.name.clone(),
            tenant: function.key.tenant.clone(),
            id: function.id,
            owner: function.owner.clone(),
            spec: function.spec.clone(),
            generation: function.generation,
            version: function.version,
            created_at: function.created_at,
            updated_at: function.updated_at,
            status: StatusDocument {
                phase: status.phase,
                serving_generation: status.serving_generation(),
                route: status.route.clone(),
                deployments: deployments.collect(),
                conditions: status.conditions.clone(),
            },
        }
    }
}

/// One generation of a function: a specification that never changes.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Revision)]
pub(crate) struct RevisionDocument {
    /// The function's name.
    name: FunctionName,
    /// The function.
    function: FunctionId,
    /// The generation.
    generation: Generation,
    /// What was wanted.
    spec: FunctionSpec,
    /// When it was made.
    created_at: Timestamp,
    /// Who made it.
    created_by: PrincipalId,
    /// Why it was made.
    reason: RevisionReason,
}

impl From<&Revision> for RevisionDocument {
    fn from(revision: &Revision) -> Self {
        Self {
            name: revision.key.name.clone(),
            function: revision.function,
            generation: revision.generation,
            spec: revision.spec.clone(),
            created_at: revision.created_at,
            created_by: revision.created_by.clone(),
            reason: revision.reason,
        }
    }
}

/// To which generation to roll back.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RollBack {
    /// The generation whose specification is wanted again.
    pub(crate) generation: Generation,
}

/// How many instances are to run.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ScaleTo {
    /// The number of instances.
    pub(crate) instances: u32,
}

/// What a check found.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Checked {
    /// Whether it would be taken.
    valid: bool,
    /// Everything that is wrong.
    violations: Vec<Violation>,
}

impl From<Vec<Violation>> for Checked {
    fn from(violations: Vec<Violation>) -> Self {
        Self { valid: violations.is_empty(), violations }
    }
}

/// A line of a function's log.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = LogLine)]
pub(crate) struct LogLineDocument {
    /// When it was logged, where the engine tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    /// Which instance of the function logged it, in the engine's terms.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    /// The line. What is not UTF-8 in it is replaced by U+FFFD.
    text: String,
}

impl From<LogLine> for LogLineDocument {
    fn from(line: LogLine) -> Self {
        Self { at: line.at, instance: line.instance, text: String::from_utf8_lossy(&line.text).into_owned() }
    }
}

/// A driver, and what it can do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Driver)]
pub(crate) struct DriverDocument {
    /// The name by which specifications refer to it.
    name: DriverName,
    /// What kind of driver it is.
    kind: &'static str,
    /// What it runs functions on.
    summary: &'static str,
    /// What it can do, by protocol; the usual one first.
    protocols: Vec<ProtocolDocument>,
}

/// What a driver can do with a protocol.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DriverProtocol)]
pub(crate) struct ProtocolDocument {
    /// The protocol.
    protocol: Protocol,
    /// Whether the processes of a gateway share its deployments: `shared` or `per_process`.
    scope: &'static str,
    /// Every capability that it has. `docs` say what each means.
    capabilities: Vec<&'static str>,
    /// The largest payload, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_request_bytes: Option<u64>,
    /// The largest answer, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_response_bytes: Option<u64>,
}

impl DriverDocument {
    pub(crate) fn new(
        name: &DriverName,
        info: &DriverInfo,
        capabilities: impl Fn(&Protocol) -> DriverCapabilities,
    ) -> Self {
        let protocol = |protocol: &Protocol| {
            let can = capabilities(protocol);
            ProtocolDocument {
                protocol: protocol.clone(),
                scope: if can.scope == Scope::PerProcess { "per_process" } else { "shared" },
                capabilities: can.flags().into_iter().filter_map(|(flag, _, can)| can.then_some(flag)).collect(),
                max_request_bytes: can.max_request_bytes,
                max_response_bytes: can.max_response_bytes,
            }
        };
        let protocols = info.protocols.iter().map(protocol).collect();
        Self { name: name.clone(), kind: info.kind, summary: info.summary, protocols }
    }
}

/// What the gateway lets pass, and how long it waits.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GatewayLimits)]
pub(crate) struct LimitsDocument {
    /// The largest document, such as a specification, in bytes.
    pub(crate) max_document_bytes: u64,
    /// The largest payload of a function that sets no limit and does not stream, in bytes.
    pub(crate) max_request_bytes: u64,
    /// The largest result of a function that sets no limit and does not stream, in bytes.
    pub(crate) max_response_bytes: u64,
    /// The most that may be kept of a payload, a result or a log, in bytes.
    pub(crate) max_kept_bytes: u32,
    /// The most calls of a function that may wait for their turn.
    pub(crate) max_queued: u32,
    /// The most items of a part of a list.
    pub(crate) max_page: usize,
    /// The time of a call whose function sets none and does not stream, in milliseconds.
    pub(crate) default_total_ms: u64,
    /// The time between two chunks of an answer whose function sets none, in milliseconds.
    pub(crate) default_idle_ms: u64,
    /// The time that a new revision has to get ready, whose function sets none, in milliseconds.
    pub(crate) default_ready_ms: u64,
    /// How long a change waits for the engine where the request does not say (`Prefer: wait`), in milliseconds.
    pub(crate) default_wait_ms: u64,
    /// The time between two parts of what is uploaded, in milliseconds.
    pub(crate) upload_idle_ms: u64,
    /// The limits of what is submitted for later, or sent under an idempotency key.
    pub(crate) queue: QueueLimitsDocument,
}

/// The limits of what is submitted for later, or sent under an idempotency key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueueLimits)]
pub(crate) struct QueueLimitsDocument {
    /// The most executions of a function that have not ended.
    pub(crate) max_per_function: u64,
    /// The most executions of the tenant that have not ended.
    pub(crate) max_per_tenant: u64,
    /// The most executions of a function that are pinned to a generation and have not ended.
    pub(crate) max_pinned: u64,
    /// The largest payload, where the function's own limit is not lower, in bytes.
    pub(crate) max_payload_bytes: u64,
    /// The largest result that is kept, in bytes.
    pub(crate) max_result_bytes: u64,
    /// How long payload, result and key are kept after the end, in milliseconds.
    pub(crate) keep_ms: u64,
    /// How far in the future an execution may be due, in milliseconds.
    pub(crate) max_delay_ms: u64,
    /// How long a request may wait for the end of an execution, in milliseconds.
    pub(crate) max_wait_ms: u64,
}

/// An execution that was accepted for later.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Accepted {
    /// The execution.
    id: InvocationId,
    /// The path of its state, which can be waited at: `?wait_ms=30000`.
    status_url: String,
    /// The path of what the function answers, once it has.
    result_url: String,
    /// Whether it was accepted before, under the same idempotency key.
    repeated: bool,
}

impl Accepted {
    pub(crate) fn new(receipt: Receipt, status_url: String) -> Self {
        let result_url = format!("{status_url}/result");
        Self { id: receipt.id, status_url, result_url, repeated: receipt.is_repeated }
    }
}

/// An execution that was submitted, as it stands in the queue.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = QueuedExecution)]
pub(crate) struct QueuedDocument {
    /// The execution.
    id: InvocationId,
    /// The function's name.
    function: FunctionName,
    /// The function. Another one that bears its name later is not meant.
    function_id: FunctionId,
    /// The generation that served when it was accepted.
    generation: Generation,
    /// Whether that generation is to execute it, whichever serves by then.
    pinned: bool,
    /// How far it is.
    state: QueueState,
    /// Who called.
    caller: PrincipalId,
    /// Where it came from.
    origin: Origin,
    /// What it is a consequence of.
    lineage: Lineage,
    /// When it was accepted.
    created_at: Timestamp,
    /// When it is executed next, at the earliest; absent once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    due_at: Option<Timestamp>,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_at: Option<Timestamp>,
    /// Until when payload and answer are kept; absent as long as they are kept without end.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// Whether it is to end.
    cancel_requested: bool,
    /// By what a second one is told to be the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<String>,
    /// How it is tried, where that is not what the function's specification says.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<AsyncPolicy>,
    /// Functions that get the same payload after this one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    then: Vec<FunctionName>,
    /// The address that is told of the end of another execution, where that is what is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    callback_url: Option<String>,
    /// The request, but for its headers, which may hold credentials.
    request: QueuedRequest,
    /// The payload; absent in lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<KeptBytes>,
    /// How many attempts were begun.
    attempts: u32,
    /// Those that have ended, in their order; of many the last ones.
    history: Vec<Attempt>,
    /// Why it has failed, or has not come to its end yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<Failure>,
    /// What the last attempt answered, but for the result itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<QueuedAnswer>,
    /// The execution that repeats it.
    #[serde(skip_serializing_if = "Option::is_none")]
    redriven_as: Option<InvocationId>,
}

/// What the function is asked.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueuedRequest {
    /// The method.
    method: String,
    /// The path below the function.
    #[serde(skip_serializing_if = "String::is_empty")]
    path: String,
    /// The query, without `?`.
    #[serde(skip_serializing_if = "Option::is_none")]
    query: Option<String>,
}

/// What the function answered.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct QueuedAnswer {
    /// The status.
    status: u16,
    /// The type of the result.
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
}

impl QueuedDocument {
    /// Without its payload.
    pub(crate) fn new(queued: &QueuedInvocation) -> Self {
        let Submission { key, request, work, principal, idempotency, sequence, .. } = &*queued.submission;
        let (submission, progress) = (&queued.submission, &queued.progress);
        Self {
            id: submission.id,
            function: key.name.clone(),
            function_id: submission.function,
            generation: submission.generation,
            pinned: submission.pinned,
            state: queued.state,
            caller: principal.id.clone(),
            origin: submission.origin,
            lineage: submission.lineage.clone(),
            created_at: submission.created_at,
            due_at: queued.due_at,
            ended_at: queued.ended_at,
            expires_at: queued.expires_at,
            cancel_requested: queued.cancel_requested,
            idempotency_key: idempotency.as_ref().map(|idempotency| idempotency.key.clone()),
            policy: submission.policy.clone(),
            then: sequence.as_ref().map(|sequence| sequence.next.clone()).unwrap_or_default(),
            callback_url: match work {
                Work::Callback { url, .. } => Some(url.clone()),
                _ => None,
            },
            request: QueuedRequest {
                method: request.method.clone(),
                path: request.path.clone(),
                query: request.query.clone(),
            },
            payload: None,
            attempts: queued.attempts,
            history: progress.attempts.clone(),
            failure: progress.failure.clone(),
            answer: progress
                .answer
                .as_ref()
                .map(|answer| QueuedAnswer { status: answer.status, content_type: content_type(&answer.headers) }),
            redriven_as: progress.redriven_as,
        }
    }

    pub(crate) fn with_payload(queued: &QueuedInvocation) -> Self {
        let submission = &queued.submission;
        let mut payload = KeptBytes::cut(submission.payload.clone(), submission.payload.len());
        payload.content_type = content_type(&submission.request.headers);
        Self { payload: Some(payload), ..Self::new(queued) }
    }
}

fn content_type(headers: &[(String, String)]) -> Option<String> {
    let found = headers.iter().find(|(name, _)| name == http::header::CONTENT_TYPE.as_str());
    found.map(|(_, value)| value.clone())
}

/// A part of the list of dead letters.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WhichDeadLetters {
    /// Those of the function of this name; of all functions where it is absent.
    #[serde(default)]
    pub(crate) function: Option<FunctionName>,
    /// How many at most: 1 to 1,000. Default: 100.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 1000)]
    pub(crate) limit: Option<usize>,
    /// Where the list goes on: `next` of the part before.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
}

/// What became of dead letters that were to be executed again.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Redriven {
    /// Those that are.
    pub(crate) redriven: Vec<RedrivenOne>,
    /// Those that are not, and why.
    pub(crate) failed: Vec<NotDone>,
    /// The `cursor` with which the list goes on; absent at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// A dead letter that is executed again.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct RedrivenOne {
    /// The dead one.
    pub(crate) id: InvocationId,
    /// The execution that repeats it.
    pub(crate) redriven_as: InvocationId,
}

/// What became of dead letters that were to be forgotten.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Purged {
    /// Those that are.
    pub(crate) purged: Vec<InvocationId>,
    /// Those that are not, and why.
    pub(crate) failed: Vec<NotDone>,
    /// The `cursor` with which the list goes on; absent at its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) next: Option<String>,
}

/// A dead letter of which nothing has become.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct NotDone {
    /// The dead letter.
    id: String,
    /// The code of the error.
    code: &'static str,
    /// What went wrong.
    detail: String,
}

impl NotDone {
    pub(crate) fn new(id: InvocationId, error: &Error) -> Self {
        Self { id: id.to_string(), code: error.kind().code(), detail: error.message().to_owned() }
    }

    /// One that can't be read.
    pub(crate) fn unreadable(row: UnreadableRow) -> Self {
        Self { id: row.id, code: ErrorKind::Store.code(), detail: row.reason }
    }
}

/// A subscription to be created.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewSubscription {
    /// Its name: a DNS label, at most 63 of a-z, 0-9 and '-'.
    pub(crate) name: String,
    /// Which events execute which functions, and how.
    #[schema(value_type = SubscriptionSpec)]
    pub(crate) spec: serde_json::Value,
}

/// A subscription.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SubscriptionDocument {
    /// Its name.
    name: String,
    /// Counts its changes.
    version: Version,
    /// On behalf of whom its functions are executed.
    principal: PrincipalId,
    /// When it was created.
    created_at: Timestamp,
    /// When it was changed last.
    updated_at: Timestamp,
    /// Which events execute which functions, and how.
    spec: SubscriptionSpec,
}

impl From<&Subscription> for SubscriptionDocument {
    fn from(subscription: &Subscription) -> Self {
        let Subscription { name, version, principal, created_at, updated_at, spec, .. } = subscription.clone();
        Self { name: name.to_string(), version, principal: principal.id, created_at, updated_at, spec }
    }
}

/// What an event has led to.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct PublishedDocument {
    /// The event's `id`.
    id: String,
    /// The event's `source`.
    source: String,
    /// The executions that were accepted; none where no subscription is about it.
    triggered: Vec<TriggeredDocument>,
}

/// An execution that an event has led to.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TriggeredDocument {
    /// The subscription that the event met.
    subscription: String,
    /// The function that is executed; of a sequence the first.
    function: FunctionName,
    /// The execution.
    execution: InvocationId,
    /// Whether the event was taken before.
    repeated: bool,
}

impl From<Published> for PublishedDocument {
    fn from(published: Published) -> Self {
        let Published { id, source, triggered, .. } = published;
        let triggered = triggered.into_iter().map(|triggered| TriggeredDocument {
            subscription: triggered.subscription.to_string(),
            function: triggered.function,
            execution: triggered.invocation,
            repeated: triggered.is_repeated,
        });
        Self { id, source, triggered: triggered.collect() }
    }
}

/// Who calls.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Me {
    /// The tenant of the credential.
    tenant: TenantId,
    /// Who it is.
    principal: PrincipalId,
    /// What the credential was given.
    scopes: BTreeSet<String>,
}

impl From<&Principal> for Me {
    fn from(principal: &Principal) -> Self {
        Self { tenant: principal.tenant.clone(), principal: principal.id.clone(), scopes: principal.scopes.clone() }
    }
}

/// A key to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewApiKey {
    /// Whom it stands for; the caller where it is absent.
    #[serde(default)]
    pub(crate) principal: Option<PrincipalId>,
    /// What it is for, in at most 1,024 bytes.
    #[serde(default)]
    #[schema(max_length = 1024)]
    pub(crate) description: String,
    /// What it may be used for.
    pub(crate) scopes: BTreeSet<String>,
    /// Until when it may be used; for ever where it is absent.
    #[serde(default)]
    pub(crate) expires_at: Option<Timestamp>,
}

/// An API key, without the key.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ApiKey)]
pub(crate) struct ApiKeyDocument {
    /// What the key is known by.
    id: ApiKeyId,
    /// Whom it stands for.
    principal: PrincipalId,
    /// What it is for.
    description: String,
    /// What it may be used for.
    scopes: BTreeSet<String>,
    /// `active`, `expired` or `revoked`.
    state: &'static str,
    /// When it was made.
    created_at: Timestamp,
    /// Who made it.
    created_by: PrincipalId,
    /// Until when it may be used.
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
    /// Since when it may not be used any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    revoked_at: Option<Timestamp>,
}

impl ApiKeyDocument {
    pub(crate) fn new(key: &ApiKey, now: Timestamp) -> Self {
        Self {
            id: key.id,
            principal: key.principal.clone(),
            description: key.description.clone(),
            scopes: key.scopes.clone(),
            state: key.state(now).as_str(),
            created_at: key.created_at,
            created_by: key.created_by.clone(),
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
        }
    }
}

/// A key that was just made.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct CreatedApiKey {
    /// What is stored of it.
    #[serde(flatten)]
    pub(crate) about: ApiKeyDocument,
    /// The key. It is shown this once.
    pub(crate) key: String,
}

/// A change that was made, or refused.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AuditEvent)]
pub(crate) struct AuditDocument {
    /// The event.
    id: AuditEventId,
    /// When.
    at: Timestamp,
    /// Who.
    principal: PrincipalId,
    /// What was done.
    action: String,
    /// To which function.
    #[serde(skip_serializing_if = "Option::is_none")]
    function: Option<FunctionName>,
    /// The generation that came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    generation: Option<Generation>,
    /// To which API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<ApiKeyId>,
    /// To which execution.
    #[serde(skip_serializing_if = "Option::is_none")]
    execution: Option<InvocationId>,
    /// To what else, by its name, such as a subscription.
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<String>,
    /// Whether it was allowed and done.
    allowed: bool,
}

impl From<&AuditEvent> for AuditDocument {
    fn from(event: &AuditEvent) -> Self {
        Self {
            id: event.id,
            at: event.at,
            principal: event.principal.clone(),
            action: event.action.to_string(),
            function: event.function.clone(),
            generation: event.generation,
            key: event.key,
            execution: event.execution,
            subject: event.subject.clone(),
            allowed: event.allowed,
        }
    }
}

/// Whether the gateway lives, or can do its work.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Health {
    /// `ok`.
    pub(crate) status: &'static str,
}
