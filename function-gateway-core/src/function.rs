//! What a function is: its specification, its revisions and its status.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::time::millis;
use crate::{
    AsyncPolicy, DriverName, DriverRef, FunctionId, FunctionKey, Generation, PrincipalId, Protocol, SecretRef,
    Timestamp, Version,
};

/// Fields of a document that this version of the gateway does not know.
///
/// Stored documents keep them, so that an older gateway loses nothing that a newer one wrote; a function that is
/// created or updated with any is refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnknownFields(Map<String, Value>);

impl UnknownFields {
    /// The names of the fields.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// What a developer wants of a function. Everything but `driver` and `run` has a default.
///
/// ```
/// use function_gateway_core::{FunctionSpec, ProcessWorkload};
///
/// let mut spec = FunctionSpec::new("local".parse()?, ProcessWorkload::new("/bin/cat"));
/// spec.timeouts.total = Some(std::time::Duration::from_secs(5));
/// assert_eq!(serde_json::to_value(&spec).unwrap()["timeouts"]["total_ms"], 5000);
/// # Ok::<_, function_gateway_core::InvalidName>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FunctionSpec {
    /// The driver that is to run it, by the name under which the host registered it.
    pub driver: DriverName,
    /// What to run.
    pub run: Workload,
    /// What it is for, in the developer's words. At most 1,024 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// Labels to find it by. At most 32; keys of up to 63 and values of up to 255 bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// How the driver talks to it.
    #[serde(default = "Protocol::exec")]
    pub protocol: Protocol,
    /// What its payload looks like from its side.
    #[serde(default, skip_serializing_if = "is_default")]
    pub format: PayloadFormat,
    /// The JSON Schema that a payload has to meet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input_schema: Option<Value>,
    /// The JSON Schema that its result has to meet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// Environment variables.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The secrets that it may use, and how they reach it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SecretBinding>,
    /// How long things may take.
    #[serde(default, skip_serializing_if = "is_default")]
    pub timeouts: Timeouts,
    /// How much it may use.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// How many instances the engine keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// When a failed call is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RetryPolicy>,
    /// How invocations are tried that were submitted for later.
    #[serde(rename = "async", default, skip_serializing_if = "Option::is_none")]
    pub async_policy: Option<Box<AsyncPolicy>>,
    /// Whether executing it twice with one payload is the same as once. Only then a call that may have been
    /// delivered is tried again.
    #[serde(default, skip_serializing_if = "is_default")]
    pub idempotent: bool,
    /// Whether payload and result pass as streams, neither retried nor buffered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub streaming: bool,
    /// A path that answers 2xx once it serves; asked before a new revision gets calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness_path: Option<String>,
    /// Middleware that this function chooses by name, in addition to what the gateway applies to all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub middleware: Vec<MiddlewareChoice>,
    /// What is kept of its executions.
    #[serde(default, skip_serializing_if = "is_default")]
    pub record: RecordPolicy,
    /// Settings for the driver, under names that its documentation gives.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl FunctionSpec {
    /// A specification with the defaults, the protocol `exec` for processes and `http` for images.
    #[must_use]
    pub fn new(driver: DriverName, run: impl Into<Workload>) -> Self {
        let run = run.into();
        let protocol = match &run {
            Workload::Image(_) => Protocol::http(),
            Workload::Process(_) | Workload::Custom(_) => Protocol::exec(),
        };
        Self {
            driver,
            run,
            description: String::new(),
            labels: BTreeMap::new(),
            protocol,
            format: PayloadFormat::default(),
            input_schema: None,
            output_schema: None,
            env: BTreeMap::new(),
            secrets: Vec::new(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            scale: None,
            retry: None,
            async_policy: None,
            idempotent: false,
            streaming: false,
            readiness_path: None,
            middleware: Vec::new(),
            record: RecordPolicy::default(),
            annotations: BTreeMap::new(),
            unknown: UnknownFields::default(),
        }
    }

    /// Sets how the driver talks to it.
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// Adds a setting for the driver.
    #[must_use]
    pub fn with_annotation(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(name.into(), value.into());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn with_env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn with_label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Adds a secret.
    #[must_use]
    pub fn with_secret(mut self, binding: SecretBinding) -> Self {
        self.secrets.push(binding);
        self
    }

    /// Sets the JSON Schema of the payload.
    #[must_use]
    pub fn with_input_schema(mut self, schema: Value) -> Self {
        self.input_schema = Some(schema);
        self
    }

    /// Sets the JSON Schema of the result.
    #[must_use]
    pub fn with_output_schema(mut self, schema: Value) -> Self {
        self.output_schema = Some(schema);
        self
    }

    /// Chooses a middleware by name, with its settings.
    #[must_use]
    pub fn with_middleware(mut self, name: impl Into<String>, settings: Value) -> Self {
        self.middleware.push(MiddlewareChoice::new(name, settings));
        self
    }
}

/// What to run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Workload {
    /// A program on the machine of the driver.
    Process(ProcessWorkload),
    /// A container image.
    Image(ImageWorkload),
    /// What only the driver understands.
    Custom(CustomWorkload),
}

/// A program on the machine of the driver.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProcessWorkload {
    /// The program: a path, or a name that the driver looks up.
    pub command: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The folder it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

impl ProcessWorkload {
    /// A program without arguments.
    #[must_use]
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into(), args: Vec::new(), working_dir: None, unknown: UnknownFields::default() }
    }

    /// Adds arguments.
    #[must_use]
    pub fn with_args<I: IntoIterator<Item = S>, S: Into<String>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets the folder it runs in.
    #[must_use]
    pub fn with_working_dir(mut self, folder: impl Into<String>) -> Self {
        self.working_dir = Some(folder.into());
        self
    }
}

impl From<ProcessWorkload> for Workload {
    fn from(workload: ProcessWorkload) -> Self {
        Self::Process(workload)
    }
}

/// A container image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageWorkload {
    /// The image's reference.
    pub image: String,
    /// What to run in place of the image's own command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Arguments in place of the image's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

impl ImageWorkload {
    /// An image that runs as it was built to.
    #[must_use]
    pub fn new(image: impl Into<String>) -> Self {
        Self { image: image.into(), command: Vec::new(), args: Vec::new(), unknown: UnknownFields::default() }
    }
}

impl From<ImageWorkload> for Workload {
    fn from(workload: ImageWorkload) -> Self {
        Self::Image(workload)
    }
}

/// What only the driver understands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CustomWorkload {
    /// The kind, in the driver's terms.
    pub kind: String,
    /// The settings, in the driver's terms.
    #[serde(default)]
    pub settings: Value,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

impl CustomWorkload {
    /// A workload of a kind, with settings.
    #[must_use]
    pub fn new(kind: impl Into<String>, settings: Value) -> Self {
        Self { kind: kind.into(), settings, unknown: UnknownFields::default() }
    }
}

impl From<CustomWorkload> for Workload {
    fn from(workload: CustomWorkload) -> Self {
        Self::Custom(workload)
    }
}

/// What the payload looks like from the function's side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum PayloadFormat {
    /// The bytes and content type as they came.
    #[default]
    Raw,
    /// JSON with a context beside the payload, both ways.
    Envelope,
}

/// A secret that a function may use, and how it reaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SecretBinding {
    /// Which secret, by its name in the tenant.
    pub secret: SecretRef,
    /// How it reaches the function.
    pub deliver: SecretDelivery,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

impl Eq for UnknownFields {}

impl SecretBinding {
    /// Hands a secret to the function in an environment variable.
    #[must_use]
    pub fn env(secret: SecretRef, variable: impl Into<String>) -> Self {
        Self { secret, deliver: SecretDelivery::Env(variable.into()), unknown: UnknownFields::default() }
    }

    /// Hands a secret to the function in `context.secrets` of its envelope.
    #[must_use]
    pub fn envelope(secret: SecretRef, field: impl Into<String>) -> Self {
        Self { secret, deliver: SecretDelivery::Envelope(field.into()), unknown: UnknownFields::default() }
    }
}

/// How a secret reaches a function.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum SecretDelivery {
    /// In the environment variable of this name.
    Env(String),
    /// In `context.secrets` of the envelope, under this name.
    Envelope(String),
}

/// How long things may take, in whole milliseconds in JSON. What is absent is the gateway's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Timeouts {
    /// Waiting for a turn when the function is at its limit in flight.
    #[serde(rename = "queue_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub queue: Option<Duration>,
    /// One attempt, until its answer is complete (until it starts, where it streams).
    #[serde(rename = "attempt_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub attempt: Option<Duration>,
    /// From the call until the function's answer starts; until it is complete where it does not stream.
    #[serde(rename = "first_byte_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub first_byte: Option<Duration>,
    /// Between two chunks of a streamed answer.
    #[serde(rename = "idle_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub idle: Option<Duration>,
    /// The whole call, retries and streamed answer included. A streaming function without it is bounded by `idle`.
    #[serde(rename = "total_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub total: Option<Duration>,
    /// From the deployment of a revision until it is ready; past it the revision has failed.
    #[serde(rename = "ready_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub ready: Option<Duration>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

/// How much a function may use. What is absent is not limited, or the gateway's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Limits {
    /// Memory of an instance, in bytes. The engine keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// CPU of an instance, in thousandths of a core. The engine keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u32>,
    /// Calls at a time, in each process of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Calls that wait for their turn once `max_in_flight` is reached; further ones are refused at once. As many as
    /// `max_in_flight` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queued: Option<u32>,
    /// Calls over time, in each process of the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Size of a payload, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_request_bytes: Option<u64>,
    /// Size of a result, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_response_bytes: Option<u64>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

/// Calls over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rate {
    /// How many calls.
    pub calls: u32,
    /// In which time, in milliseconds.
    #[serde(rename = "per_ms", with = "millis")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub per: Duration,
    /// How many may come at once; `calls` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// How many instances the engine keeps, and how many calls one takes at a time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Scale {
    /// Never fewer than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// Never more than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
    /// Calls that one instance takes at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_concurrency: Option<u32>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

/// When a failed call is tried again.
///
/// Only what is transient, and only where the call certainly did not reach the function or the function is
/// declared idempotent; never a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RetryPolicy {
    /// Attempts in all, the first included: 1 to 10.
    pub max_attempts: u32,
    /// Before the second attempt; doubled before each further one. The real wait is a random part of it.
    #[serde(rename = "initial_backoff_ms", default = "initial_backoff", with = "millis")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub initial_backoff: Duration,
    /// Never wait longer than this.
    #[serde(rename = "max_backoff_ms", default = "max_backoff", with = "millis")]
    #[cfg_attr(feature = "openapi", schema(value_type = u64))]
    pub max_backoff: Duration,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

fn initial_backoff() -> Duration {
    Duration::from_millis(100)
}

fn max_backoff() -> Duration {
    Duration::from_secs(5)
}

impl RetryPolicy {
    /// A number of attempts, the first included, 100 ms before the second and at most 5 s before any.
    #[must_use]
    pub fn attempts(max_attempts: u32) -> Self {
        Self {
            max_attempts,
            initial_backoff: initial_backoff(),
            max_backoff: max_backoff(),
            unknown: UnknownFields::default(),
        }
    }
}

/// A middleware that a function chooses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MiddlewareChoice {
    /// The name under which the host registered it.
    pub name: String,
    /// Its settings, in its own terms.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub settings: Value,
}

impl MiddlewareChoice {
    /// Chooses a middleware, with its settings.
    #[must_use]
    pub fn new(name: impl Into<String>, settings: Value) -> Self {
        Self { name: name.into(), settings }
    }
}

/// How surely an execution is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RecordMode {
    /// Not at all.
    Off,
    /// One row at the end.
    Buffered,
    /// `Running` is committed before the call is delivered, the end before the caller has the end of the answer.
    Durable,
}

/// When payloads are kept with a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum KeepPayloads {
    /// Never.
    Never,
    /// When the execution did not succeed.
    OnFailure,
    /// Always.
    Always,
}

/// What is kept of a function's executions. What is absent is the gateway's default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RecordPolicy {
    /// How surely.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<RecordMode>,
    /// Whether payload and result are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payloads: Option<KeepPayloads>,
    /// How much of each is kept, in bytes; the rest is cut off and the cut is marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_payload_bytes: Option<u32>,
    /// How much of the function's log is kept, in bytes; the rest is cut off and the cut is marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_log_bytes: Option<u32>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

impl RecordPolicy {
    /// Keeps nothing.
    #[must_use]
    pub fn off() -> Self {
        Self { mode: Some(RecordMode::Off), ..Self::default() }
    }
}

/// Why a revision was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RevisionReason {
    /// The function was created.
    Created,
    /// Its specification was changed.
    Updated,
    /// It was rolled back to an earlier generation.
    RolledBack {
        /// Which one.
        to: Generation,
    },
    /// A secret that is handed over at deployment was rotated.
    SecretRotated,
}

/// One generation of a function: a specification that never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Revision {
    /// The function's tenant and name.
    pub key: FunctionKey,
    /// The function.
    pub function: FunctionId,
    /// The generation.
    pub generation: Generation,
    /// What the developer wanted.
    pub spec: FunctionSpec,
    /// When it was made.
    pub created_at: Timestamp,
    /// Who made it.
    pub created_by: PrincipalId,
    /// Who created the function.
    pub owner: PrincipalId,
    /// Why it was made.
    pub reason: RevisionReason,
}

impl Revision {
    /// Puts a revision together, as stores and tests do. Its maker is taken as the owner of the function.
    #[must_use]
    pub fn new(
        key: FunctionKey,
        function: FunctionId,
        generation: Generation,
        spec: FunctionSpec,
        created: (Timestamp, PrincipalId),
        reason: RevisionReason,
    ) -> Self {
        let (created_at, created_by) = created;
        let owner = created_by.clone();
        Self { key, function, generation, spec, created_at, created_by, owner, reason }
    }

    /// A revision that is never stored, to check a specification with.
    pub(crate) fn for_check(spec: FunctionSpec) -> crate::Result<Self> {
        let key = FunctionKey::new("check".parse()?, "check".parse()?);
        let created = (Timestamp::default(), PrincipalId::new("check")?);
        Ok(Self::new(key, FunctionId::generate(), Generation::FIRST, spec, created, RevisionReason::Created))
    }

    /// Says who created the function, where that is not the maker of this revision.
    #[must_use]
    pub fn with_owner(mut self, owner: PrincipalId) -> Self {
        self.owner = owner;
        self
    }
}

/// A function: what is wanted of it, and how it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Function {
    /// Tenant and name.
    pub key: FunctionKey,
    /// Its identity for ever.
    pub id: FunctionId,
    /// Who created it.
    pub owner: PrincipalId,
    /// What is wanted: the specification of the newest generation.
    pub spec: FunctionSpec,
    /// The newest generation.
    pub generation: Generation,
    /// Counts the changes of this row.
    pub version: Version,
    /// When it was created.
    pub created_at: Timestamp,
    /// When its specification last changed.
    pub updated_at: Timestamp,
    /// How it is.
    pub status: FunctionStatus,
}

impl Function {
    /// The first row of a new function, with its first revision still to be deployed.
    #[must_use]
    pub fn new(revision: &Revision, target: DriverRef) -> Self {
        let mut status = FunctionStatus::new(revision.created_at);
        status.deployments.push(RevisionStatus::new(revision, target));
        Self {
            key: revision.key.clone(),
            id: revision.function,
            owner: revision.owner.clone(),
            spec: revision.spec.clone(),
            generation: revision.generation,
            version: Version::FIRST,
            created_at: revision.created_at,
            updated_at: revision.created_at,
            status,
        }
    }

    /// Whether calls are served: its route is not empty.
    #[must_use]
    pub fn is_invocable(&self) -> bool {
        !self.status.route.is_empty()
    }
}

/// How a function is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct FunctionStatus {
    /// How the newest generation is.
    pub phase: Phase,
    /// Which generations serve, and with which weight. Empty: none does.
    #[serde(default)]
    pub route: Vec<RouteEntry>,
    /// The generations that exist, or are to exist, in an engine.
    #[serde(default)]
    pub deployments: Vec<RevisionStatus>,
    /// What there is to know beside the phase.
    #[serde(default)]
    pub conditions: Vec<Condition>,
    /// When the reconciler has to look again; absent when nothing is left to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconcile_at: Option<Timestamp>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl FunctionStatus {
    /// The status of a function that is to be deployed from a point in time.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self {
            phase: Phase::Pending,
            route: Vec::new(),
            deployments: Vec::new(),
            conditions: Vec::new(),
            reconcile_at: Some(now),
            unknown: UnknownFields::default(),
        }
    }

    /// The generation that serves.
    #[must_use]
    pub fn serving_generation(&self) -> Option<Generation> {
        self.route.first().map(|entry| entry.generation)
    }

    /// How one generation is in its engine.
    #[must_use]
    pub fn deployment(&self, generation: Generation) -> Option<&RevisionStatus> {
        self.deployments.iter().find(|deployment| deployment.generation == generation)
    }

    pub(crate) fn deployment_mut(&mut self, generation: Generation) -> Option<&mut RevisionStatus> {
        self.deployments.iter_mut().find(|deployment| deployment.generation == generation)
    }

    /// A condition by its kind.
    #[must_use]
    pub fn condition(&self, kind: ConditionKind) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    pub(crate) fn set_condition(&mut self, kind: ConditionKind, message: impl Into<String>, now: Timestamp) {
        let message = message.into();
        match self.conditions.iter_mut().find(|condition| condition.kind == kind) {
            Some(condition) if condition.message == message => {}
            Some(condition) => *condition = Condition { kind, message, since: now },
            None => self.conditions.push(Condition { kind, message, since: now }),
        }
    }

    pub(crate) fn clear_condition(&mut self, kind: ConditionKind) {
        self.conditions.retain(|condition| condition.kind != kind);
    }
}

/// How the newest generation of a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Phase {
    /// It is stored and waits to be deployed.
    Pending,
    /// The engine is getting it ready.
    Deploying,
    /// It serves.
    Ready,
    /// It can't be deployed; an older generation may still serve.
    Failed,
    /// It is being removed.
    Deleting,
}

impl Phase {
    /// The name in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Deploying => "deploying",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Deleting => "deleting",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A generation that serves, and which part of the calls it gets. There is one entry, of the full weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RouteEntry {
    /// The generation.
    pub generation: Generation,
    /// Its part, relative to the sum of all weights.
    pub weight: u32,
}

impl RouteEntry {
    /// All calls go to one generation.
    #[must_use]
    pub fn all(generation: Generation) -> Self {
        Self { generation, weight: 1 }
    }
}

/// How one generation is in its engine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RevisionStatus {
    /// The generation.
    pub generation: Generation,
    /// The driver that holds it.
    pub driver: DriverName,
    /// What the driver knows it by. Stored before it is deployed, so that nothing in the engine is ever unknown here.
    pub target: DriverRef,
    /// How far it is.
    pub state: RevisionState,
    /// Since when.
    pub since: Timestamp,
    /// When its deployment began; the time to get ready counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deploy_started_at: Option<Timestamp>,
    /// How often deploying it has failed in a row.
    #[serde(default)]
    pub failures: u32,
    /// When the next step is due; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due_at: Option<Timestamp>,
    /// What the engine or the driver says of it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Fields that this version does not know.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl RevisionStatus {
    /// A revision that is to be deployed.
    #[must_use]
    pub fn new(revision: &Revision, target: DriverRef) -> Self {
        Self {
            generation: revision.generation,
            driver: revision.spec.driver.clone(),
            target,
            state: RevisionState::Pending,
            since: revision.created_at,
            deploy_started_at: None,
            failures: 0,
            due_at: Some(revision.created_at),
            message: String::new(),
            unknown: UnknownFields::default(),
        }
    }

    pub(crate) fn enter(&mut self, state: RevisionState, now: Timestamp) {
        if self.state != state {
            self.state = state;
            self.since = now;
        }
    }
}

/// How far one generation is in its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RevisionState {
    /// To be deployed.
    Pending,
    /// Deployed, not yet ready.
    Deploying,
    /// Ready: it serves, or could.
    Ready,
    /// It can't be deployed, or never got ready.
    Failed,
    /// It no longer serves. It is removed once every call that may still be on its way to it has ended.
    Retired,
}

/// What kind of thing there is to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ConditionKind {
    /// The newest generation failed; the message says why.
    DeployFailed,
    /// The newest generation is on its way; the message is the engine's.
    Progressing,
    /// The engine has scaled it to zero; the next call wakes it.
    Idle,
    /// What was removed from the engine behind the gateway's back was deployed again.
    Repaired,
    /// A deployment could not be removed yet; it is tried again.
    RemoveFailed,
}

/// Something to know about a function beside its phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Condition {
    /// What kind of thing.
    pub kind: ConditionKind,
    /// In words that a developer understands.
    pub message: String,
    /// Since when.
    pub since: Timestamp,
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_short_document_is_a_whole_specification() {
        let spec: FunctionSpec = serde_json::from_value(json!({
            "driver": "local",
            "run": {"process": {"command": "cat"}},
        }))
        .unwrap();
        assert_eq!(spec, FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("cat")));
    }

    #[test]
    fn what_a_newer_gateway_wrote_survives() {
        let document = json!({
            "driver": "local",
            "run": {"process": {"command": "cat", "nice": 3}},
            "protocol": "exec",
            "timeouts": {"total_ms": 10, "teardown_ms": 7},
            "limits": {"max_files": 1},
            "secrets": [{"secret": "s", "deliver": {"env": "S"}, "mode": 1}],
            "shiny": {"new": true},
        });
        let spec: FunctionSpec = serde_json::from_value(document.clone()).unwrap();
        assert_eq!(serde_json::to_value(&spec).unwrap(), document);
    }
}
