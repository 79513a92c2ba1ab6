//! The resources of Kubernetes and Knative that the driver reads and writes, with the fields that it needs.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(crate) const SERVING: &str = "serving.knative.dev/v1";

/// Labels and annotations by which objects are known as ours, and read by people.
pub(crate) mod label {
    pub(crate) const GATEWAY: &str = "function-gateway/gateway";
    pub(crate) const FUNCTION: &str = "function-gateway/function";
    pub(crate) const GENERATION: &str = "function-gateway/generation";
    pub(crate) const TENANT: &str = "function-gateway/tenant";
    pub(crate) const NAME: &str = "function-gateway/name";
    /// Before the key of a label of the specification.
    pub(crate) const OF_SPEC: &str = "label.function-gateway/";
    /// Annotation of a Service, before the tag of a generation that it holds: the generation's reference.
    pub(crate) const HELD: &str = "held.function-gateway/";
    pub(crate) const VISIBILITY: &str = "networking.knative.dev/visibility";
    pub(crate) const CLUSTER_LOCAL: &str = "cluster-local";
    /// Set by Knative on Revisions and pods.
    pub(crate) const OF_REVISION: &str = "serving.knative.dev/revision";
}

/// What is managed by whom, for the API server.
pub(crate) const FIELD_MANAGER: &str = "function-gateway";

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Meta {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) resource_version: String,
    #[serde(skip_serializing)]
    pub(crate) generation: i64,
    #[serde(skip_serializing)]
    pub(crate) deletion_timestamp: Option<String>,
    #[serde(skip_serializing)]
    pub(crate) finalizers: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    pub(crate) owner_references: Vec<OwnerReference>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OwnerReference {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// A Service of Knative, as the API server shows it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Service {
    pub(crate) metadata: Meta,
    pub(crate) spec: ServiceSpec,
    pub(crate) status: ServiceStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct ServiceSpec {
    /// The newest Revision's template; as it came, since all of it is written again where something else is changed.
    pub(crate) template: Value,
    pub(crate) traffic: Vec<Traffic>,
}

/// Where a part of the calls goes, and by which name.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Traffic {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) latest_revision: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) percent: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tag: Option<String>,
    #[serde(skip_serializing)]
    pub(crate) url: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ServiceStatus {
    pub(crate) observed_generation: i64,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) latest_created_revision_name: String,
    pub(crate) traffic: Vec<Traffic>,
    pub(crate) address: Option<Addressable>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Addressable {
    pub(crate) url: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Condition {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// `True`, `False` or `Unknown`.
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// `Info` for what is no failure.
    pub(crate) severity: String,
}

impl Condition {
    pub(crate) fn is_true(&self) -> bool {
        self.status == "True"
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.status == "False" && self.severity.is_empty()
    }
}

pub(crate) fn condition<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

/// A Revision of Knative.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Revision {
    pub(crate) metadata: Meta,
    /// As it came: to become the template again it has to be equal.
    pub(crate) spec: Value,
    pub(crate) status: RevisionStatus,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct RevisionStatus {
    pub(crate) observed_generation: i64,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) actual_replicas: Option<i64>,
}

/// A page of a list, or the head of one.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(crate) struct List<T> {
    pub(crate) metadata: ListMeta,
    pub(crate) items: Vec<T>,
}

impl<T> Default for List<T> {
    fn default() -> Self {
        Self { metadata: ListMeta::default(), items: Vec::new() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ListMeta {
    pub(crate) resource_version: String,
    #[serde(rename = "continue")]
    pub(crate) next: String,
}

/// A line of a watch.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) object: Value,
}

/// How the API server says what went wrong, or that something is done.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Status {
    pub(crate) kind: String,
    pub(crate) message: String,
    pub(crate) reason: String,
    pub(crate) code: u16,
    pub(crate) details: Details,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Details {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) causes: Vec<Cause>,
    pub(crate) retry_after_seconds: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(crate) struct Cause {
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) field: String,
}

impl Status {
    pub(crate) fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }

    /// Somebody else's write came first.
    pub(crate) fn is_stale(&self) -> bool {
        self.reason == "Conflict" && !self.is_field_conflict()
    }

    /// Somebody else manages a field that was to be written.
    pub(crate) fn is_field_conflict(&self) -> bool {
        self.details.causes.iter().any(|cause| cause.reason == "FieldManagerConflict")
    }

    /// What was listed or watched is too old to go on from.
    pub(crate) fn is_expired(&self) -> bool {
        self.code == 410 || matches!(self.reason.as_str(), "Expired" | "Gone")
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Pod {
    pub(crate) metadata: Meta,
}

// What is written

/// A Service as it is applied.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppliedService {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) metadata: Meta,
    pub(crate) spec: AppliedServiceSpec,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct AppliedServiceSpec {
    pub(crate) template: Value,
    pub(crate) traffic: Vec<Traffic>,
}

impl AppliedService {
    pub(crate) fn new(metadata: Meta, template: Value, traffic: Vec<Traffic>) -> Self {
        Self { api_version: SERVING, kind: "Service", metadata, spec: AppliedServiceSpec { template, traffic } }
    }
}

/// A Secret as it is applied; `data` is in base 64.
#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AppliedSecret {
    pub(crate) api_version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) metadata: Meta,
    #[serde(rename = "type")]
    pub(crate) secret_type: &'static str,
    pub(crate) data: BTreeMap<String, String>,
}

impl fmt::Debug for AppliedSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppliedSecret").field("metadata", &self.metadata).finish_non_exhaustive()
    }
}

/// What of a namespace a path leads to.
pub(crate) fn services(namespace: Option<&str>) -> String {
    match namespace {
        Some(namespace) => format!("/apis/{SERVING}/namespaces/{namespace}/services"),
        None => format!("/apis/{SERVING}/services"),
    }
}

pub(crate) fn service(namespace: &str, name: &str) -> String {
    format!("{}/{name}", services(Some(namespace)))
}

pub(crate) fn revision(namespace: &str, name: &str) -> String {
    format!("/apis/{SERVING}/namespaces/{namespace}/revisions/{name}")
}

pub(crate) fn secret(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/secrets/{name}")
}

pub(crate) fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}
