//! What is kept of an execution, and the figures over many.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Delivery, DriverName, ErrorClass, FunctionId, FunctionKey, FunctionName, Generation, InvocationId, Lineage, Origin,
    PrincipalId, TimedPhase, Timestamp, Timings, TraceParent, Violation,
};

/// How far an execution is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum InvocationState {
    /// Accepted, not started.
    Queued,
    /// Started, not ended.
    Running,
    /// The function did what was asked.
    Succeeded,
    /// It did not: the class says whose failure it is.
    Failed,
    /// Time ran out.
    TimedOut,
    /// It was given up.
    Cancelled,
    /// It was running when its gateway died: nobody knows how it ended.
    Lost,
}

impl InvocationState {
    /// Whether an execution in this state has ended, so that nothing moves it any more.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }

    /// The name in JSON and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::Cancelled => "cancelled",
            Self::Lost => "lost",
        }
    }
}

impl fmt::Display for InvocationState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Bytes that are kept with a record: redacted, and cut at a limit.
///
/// In JSON, text stands as `text` and anything else as `base64`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeptBytes {
    /// What is kept.
    pub bytes: Bytes,
    /// Their content type.
    pub content_type: Option<String>,
    /// How many there were before anything was cut off or redacted, where that is known.
    pub len: Option<u64>,
    /// Whether some were cut off.
    pub truncated: bool,
}

impl KeptBytes {
    /// Keeps the first `limit` bytes of some that are redacted already.
    #[must_use]
    pub fn cut(mut bytes: Bytes, limit: usize) -> Self {
        let truncated = bytes.len() > limit;
        let len = u64::try_from(bytes.len()).ok();
        bytes.truncate(limit);
        Self { bytes, content_type: None, len, truncated }
    }
}

#[derive(Serialize, Deserialize)]
struct KeptBytesJson {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    len: Option<u64>,
    #[serde(default)]
    truncated: bool,
}

impl Serialize for KeptBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = std::str::from_utf8(&self.bytes).ok().map(str::to_owned);
        let base64 = text.is_none().then(|| STANDARD.encode(&self.bytes));
        let Self { content_type, len, truncated, .. } = self.clone();
        KeptBytesJson { text, base64, content_type, len, truncated }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for KeptBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let KeptBytesJson { text, base64, content_type, len, truncated } = KeptBytesJson::deserialize(deserializer)?;
        let bytes = match (text, base64) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(base64)) => STANDARD.decode(base64).map_err(serde::de::Error::custom)?.into(),
            _ => return Err(serde::de::Error::custom("either `text` or `base64` is needed")),
        };
        Ok(Self { bytes, content_type, len, truncated })
    }
}

/// Why an execution did not succeed, in words that may be shown to any client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Failure {
    /// Whose failure it is.
    pub class: ErrorClass,
    /// The code of the error's kind, or `function_failed` and `function_rejected` for what the function answered.
    pub code: String,
    /// The public message.
    pub message: String,
    /// Whether the function can have run.
    pub delivery: Delivery,
    /// What was wrong with the payload or the result, each with its place. No value stands there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub violations: Vec<Violation>,
}

impl Failure {
    /// Says whose failure it is, and which.
    #[must_use]
    pub fn new(class: ErrorClass, code: impl Into<String>, message: impl Into<String>, delivery: Delivery) -> Self {
        Self { class, code: code.into(), message: message.into(), delivery, violations: Vec::new() }
    }

    /// An error as a failure.
    #[must_use]
    pub fn of(error: &crate::Error) -> Self {
        let mut failure = Self::new(error.class(), error.kind().code(), error.message().to_owned(), error.delivery());
        failure.violations = error.violations().to_vec();
        failure
    }
}

/// What is kept of one execution. It outlives its function.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct InvocationRecord {
    /// The execution.
    pub id: InvocationId,
    /// The function's tenant and name at that time.
    pub key: FunctionKey,
    /// The function.
    pub function: FunctionId,
    /// The generation that executed it.
    pub generation: Generation,
    /// The driver that executed it.
    pub driver: DriverName,
    /// Who created the function.
    pub owner: PrincipalId,
    /// The labels of the function when the call came in.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How far it is.
    pub state: InvocationState,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// The status that the function answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// How many attempts were made.
    pub attempts: u32,
    /// Who called.
    pub caller: PrincipalId,
    /// Where the call came from.
    #[serde(default)]
    pub origin: Origin,
    /// The trace that it was part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceParent>,
    /// When the call came in.
    pub created_at: Timestamp,
    /// When it was first handed to the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended; always there in a final state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Timestamp>,
    /// The time of each phase, in microseconds.
    #[serde(default)]
    pub timings: Timings,
    /// The size of the payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
    /// The size of the result, as far as it came.
    #[serde(default)]
    pub response_bytes: u64,
    /// The payload, where the policy says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<KeptBytes>,
    /// The result, where the policy says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<KeptBytes>,
    /// What the function logged, up to a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logs: Option<KeptBytes>,
    /// Where it comes from, where it was submitted for later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Box<Lineage>>,
}

impl InvocationRecord {
    /// The record of an execution that has just come in.
    #[must_use]
    pub fn new(id: InvocationId, revision: &crate::Revision, caller: PrincipalId, created_at: Timestamp) -> Self {
        Self {
            id,
            key: revision.key.clone(),
            function: revision.function,
            generation: revision.generation,
            driver: revision.spec.driver.clone(),
            owner: revision.owner.clone(),
            labels: revision.spec.labels.clone(),
            state: InvocationState::Running,
            failure: None,
            status: None,
            attempts: 0,
            caller,
            origin: Origin::Sync,
            trace: None,
            created_at,
            started_at: None,
            finished_at: None,
            timings: Timings::default(),
            request_bytes: None,
            response_bytes: 0,
            payload: None,
            result: None,
            logs: None,
            lineage: None,
        }
    }
}

impl InvocationRecord {
    /// The record of what was accepted for a function that is not there, or that nothing serves. Its driver is `none`.
    pub(crate) fn unserved(submission: &crate::Submission) -> Self {
        let crate::Submission { id, key, function, generation, principal, created_at, .. } = submission;
        Self {
            id: *id,
            key: key.clone(),
            function: *function,
            generation: *generation,
            driver: DriverName::none(),
            owner: principal.id.clone(),
            labels: BTreeMap::new(),
            state: InvocationState::Queued,
            failure: None,
            status: None,
            attempts: 0,
            caller: principal.id.clone(),
            origin: Origin::Async,
            trace: None,
            created_at: *created_at,
            started_at: None,
            finished_at: None,
            timings: Timings::default(),
            request_bytes: None,
            response_bytes: 0,
            payload: None,
            result: None,
            logs: None,
            lineage: None,
        }
    }
}

/// Which executions, for a list. All that is set has to hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecordFilter {
    /// Of the function of this name, whichever functions have borne it.
    pub name: Option<FunctionName>,
    /// Of this function.
    pub function: Option<FunctionId>,
    /// In this state.
    pub state: Option<InvocationState>,
    /// With a failure of this class.
    pub class: Option<ErrorClass>,
    /// By this caller.
    pub caller: Option<PrincipalId>,
    /// Of functions with all these labels.
    pub labels: Vec<(String, String)>,
    /// That came in at this time or later.
    pub from: Option<Timestamp>,
    /// That came in before this time.
    pub until: Option<Timestamp>,
}

impl RecordFilter {
    /// Executions of the function of a name.
    #[must_use]
    pub fn of(name: FunctionName) -> Self {
        Self { name: Some(name), ..Self::default() }
    }

    /// Only those of functions with a label.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.push((key.into(), value.into()));
        self
    }

    /// Whether a record is meant.
    #[must_use]
    pub fn matches(&self, record: &InvocationRecord) -> bool {
        self.labels.iter().all(|(key, value)| record.labels.get(key) == Some(value))
            && self.name.as_ref().is_none_or(|name| *name == record.key.name)
            && self.function.is_none_or(|function| function == record.function)
            && self.state.is_none_or(|state| state == record.state)
            && self.class.is_none_or(|class| record.failure.as_ref().is_some_and(|failure| failure.class == class))
            && self.caller.as_ref().is_none_or(|caller| *caller == record.caller)
            && self.from.is_none_or(|from| record.created_at >= from)
            && self.until.is_none_or(|until| record.created_at < until)
    }
}

/// For which executions figures are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StatisticsQuery {
    /// The function of this name, whichever functions have borne it; all of the tenant's where absent.
    pub name: Option<FunctionName>,
    /// That ended at this time or later, rounded down to the minute.
    pub from: Timestamp,
    /// That ended before this time, rounded up to the minute.
    pub until: Timestamp,
}

impl StatisticsQuery {
    /// All executions of a tenant in a range of time.
    #[must_use]
    pub fn new(from: Timestamp, until: Timestamp) -> Self {
        Self { name: None, from, until }
    }

    /// Only those of the function of a name.
    #[must_use]
    pub fn of(mut self, name: FunctionName) -> Self {
        self.name = Some(name);
        self
    }
}

/// Figures over executions that have ended.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Statistics {
    /// How many ended.
    pub count: u64,
    /// How many ended in each state.
    pub by_state: BTreeMap<InvocationState, u64>,
    /// How many failed, by whose failure it was.
    pub by_class: BTreeMap<ErrorClass, u64>,
    /// How long each phase took, over the executions in which it occurred.
    pub phases: BTreeMap<TimedPhase, Quantiles>,
}

impl Statistics {
    /// The part that did not succeed, from 0 to 1; 0 where nothing ended.
    #[must_use]
    pub fn error_rate(&self) -> f64 {
        let succeeded = self.by_state.get(&InvocationState::Succeeded).copied().unwrap_or(0);
        self.rate(self.count.saturating_sub(succeeded))
    }

    /// The part that failed in a class, from 0 to 1.
    #[must_use]
    pub fn class_rate(&self, class: ErrorClass) -> f64 {
        self.rate(self.by_class.get(&class).copied().unwrap_or(0))
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn rate(&self, part: u64) -> f64 {
        if self.count == 0 { 0.0 } else { part as f64 / self.count as f64 }
    }
}

/// How long something took: exact count, and quantiles with an error of at most 5 %.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Quantiles {
    /// In how many executions it occurred.
    pub count: u64,
    /// Half took no longer, in microseconds.
    #[serde(rename = "p50_us", with = "micros")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub p50: Duration,
    /// 95 of 100 took no longer, in microseconds.
    #[serde(rename = "p95_us", with = "micros")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub p95: Duration,
    /// 99 of 100 took no longer, in microseconds.
    #[serde(rename = "p99_us", with = "micros")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub p99: Duration,
}

impl Quantiles {
    /// Puts figures together, as stores do.
    #[must_use]
    pub fn new(count: u64, p50: Duration, p95: Duration, p99: Duration) -> Self {
        Self { count, p50, p95, p99 }
    }
}

mod micros {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(value.as_micros()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_micros)
    }
}

/// How long records, figures over them and audit events are kept. Figures outlive records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retention {
    /// Records that ended longer ago than this are deleted.
    pub max_age: Option<Duration>,
    /// Of each function, only this many of the newest records that have ended are kept.
    pub max_per_function: Option<u64>,
    /// Figures of minutes longer ago than this are deleted.
    pub max_statistics_age: Option<Duration>,
    /// Audit events of longer ago than this are deleted.
    pub max_audit_age: Option<Duration>,
}

impl Retention {
    /// Keeps everything.
    #[must_use]
    pub fn keep_all() -> Self {
        Self::default()
    }

    /// Deletes records that ended longer ago than this.
    #[must_use]
    pub fn with_max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Deletes figures of minutes longer ago than this.
    #[must_use]
    pub fn with_max_statistics_age(mut self, max_age: Duration) -> Self {
        self.max_statistics_age = Some(max_age);
        self
    }

    /// Deletes audit events of longer ago than this.
    #[must_use]
    pub fn with_max_audit_age(mut self, max_age: Duration) -> Self {
        self.max_audit_age = Some(max_age);
        self
    }

    /// Keeps only the newest records of each function.
    #[must_use]
    pub fn with_max_per_function(mut self, count: u64) -> Self {
        self.max_per_function = Some(count);
        self
    }
}
