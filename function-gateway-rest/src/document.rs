//! The documents of the API that are not a type of core's as it is.

use std::collections::BTreeSet;

use function_gateway_core::{
    ApiKey, ApiKeyId, AuditEvent, AuditEventId, Condition, DriverCapabilities, DriverInfo, DriverName, Function,
    FunctionId, FunctionName, FunctionSpec, Generation, LogLine, Page, Phase, Principal, PrincipalId, Protocol,
    Revision, RevisionReason, RevisionState, RouteEntry, Scope, TenantId, Timestamp, Version, Violation,
};
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
