//! The one error type. It answers what kind of failure, whether to try again, whether the function may have run, and why.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{InvalidName, Timings};

/// The result of everything that can fail in the gateway.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whose failure it is. Records and statistics count by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ErrorClass {
    /// The caller's: the request can't succeed as it stands.
    Caller,
    /// The function refused the call (its answer has a status of 400 to 499).
    Rejected,
    /// The function's: it failed, broke its contract or is not configured.
    Function,
    /// The engine's: it was out of reach or answered what it must not.
    Engine,
    /// The gateway's own, or that of something it depends on.
    Gateway,
    /// Time ran out.
    Timeout,
    /// The caller or the gateway gave the call up.
    Cancelled,
}

impl ErrorClass {
    /// The name in JSON, records and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Rejected => "rejected",
            Self::Function => "function",
            Self::Engine => "engine",
            Self::Gateway => "gateway",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// May the same be tried again?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Trying again as it stands can't help.
    Never,
    /// Trying again later may help.
    Transient,
    /// It was transient, was tried again, and still fails: the gateway has given up.
    Exhausted,
}

impl Retry {
    /// The name in documents and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Transient => "transient",
            Self::Exhausted => "exhausted",
        }
    }
}

/// Can the function have seen the call? A driver sets it truthfully: in doubt, [`Unknown`](Self::Unknown).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Delivery {
    /// It certainly did not reach the function.
    NotSent,
    /// It may have reached the function.
    Unknown,
    /// The function did execute, at least in part.
    Executed,
}

impl Delivery {
    /// The name in documents and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Unknown => "unknown",
            Self::Executed => "executed",
        }
    }
}

macro_rules! error_kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $code:literal, $class:ident, $status:literal, $retry:ident, $delivery:ident;)+) => {
        /// What kind of failure it is: what a program matches on.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $($(#[doc = $doc])+ $kind,)+
        }

        impl ErrorKind {
            /// Every kind, in the order of the table in `docs/errors.md`.
            pub const ALL: &'static [Self] = &[$(Self::$kind),+];

            /// The stable code, for programs and for documents that are sent to a client.
            #[must_use]
            pub fn code(self) -> &'static str {
                match self { $(Self::$kind => $code),+ }
            }

            /// Whose failure it is.
            #[must_use]
            pub fn class(self) -> ErrorClass {
                match self { $(Self::$kind => ErrorClass::$class),+ }
            }

            /// The HTTP status that stands for it.
            #[must_use]
            pub fn http_status(self) -> u16 {
                match self { $(Self::$kind => $status),+ }
            }

            /// Whether trying again may help, unless the error says otherwise.
            #[must_use]
            pub fn default_retry(self) -> Retry {
                match self { $(Self::$kind => Retry::$retry),+ }
            }

            /// Whether the function can have run, unless the error says otherwise.
            #[must_use]
            pub fn default_delivery(self) -> Delivery {
                match self { $(Self::$kind => Delivery::$delivery),+ }
            }

            /// What it means, as one sentence.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$kind => concat!($($doc),+)),+ }
            }
        }
    };
}

error_kinds! {
    /// An argument of the call is not valid.
    InvalidArgument = "invalid_argument", Caller, 400, Never, NotSent;
    /// The function's specification is not valid, or asks for what nobody honours; all violations are listed.
    InvalidSpec = "invalid_spec", Caller, 422, Never, NotSent;
    /// The payload is not what the function takes; all violations are listed.
    InvalidInput = "invalid_input", Caller, 422, Never, NotSent;
    /// The payload is larger than the limit that the error names.
    PayloadTooLarge = "payload_too_large", Caller, 413, Never, NotSent;
    /// Nothing, or nothing valid, says who calls.
    Unauthenticated = "unauthenticated", Caller, 401, Never, NotSent;
    /// The principal may not do this.
    PermissionDenied = "permission_denied", Caller, 403, Never, NotSent;
    /// There is no such thing in the caller's tenant.
    NotFound = "not_found", Caller, 404, Never, NotSent;
    /// There is something of that name or id already.
    AlreadyExists = "already_exists", Caller, 409, Never, NotSent;
    /// The payload did not come in time.
    RequestTimeout = "request_timeout", Caller, 408, Transient, NotSent;
    /// The function was sent something else under the same idempotency key.
    IdempotencyMismatch = "idempotency_mismatch", Caller, 422, Never, NotSent;
    /// What was sent under the same idempotency key is still being executed.
    InProgress = "in_progress", Caller, 409, Transient, NotSent;
    /// It was executed, and its result was streamed, too large to be kept, or is kept no longer.
    ResultNotKept = "result_not_kept", Caller, 410, Never, Executed;
    /// Somebody else changed it at the same time.
    Conflict = "conflict", Caller, 409, Transient, NotSent;
    /// It is not in the state that the caller made a condition.
    PreconditionFailed = "precondition_failed", Caller, 412, Never, NotSent;
    /// A limit on rate or concurrency is reached, and the queue before it is full.
    RateLimited = "rate_limited", Caller, 429, Transient, NotSent;
    /// The driver, the engine or the gateway does not offer this operation.
    Unsupported = "unsupported", Caller, 501, Never, NotSent;
    /// The function exists, but no revision of it serves yet.
    NotReady = "not_ready", Gateway, 503, Transient, NotSent;
    /// The engine does not hold this deployment, or no longer.
    NotDeployed = "not_deployed", Gateway, 503, Transient, NotSent;
    /// A deadline passed; the context says which.
    DeadlineExceeded = "deadline_exceeded", Timeout, 504, Never, Unknown;
    /// The call was given up by its caller, or because its function was removed or its gateway stopped.
    Cancelled = "cancelled", Cancelled, 499, Never, Unknown;
    /// The function can't run as it is configured: a secret or a program is missing.
    Misconfigured = "misconfigured", Function, 500, Never, NotSent;
    /// The function broke off: it died or stopped before its answer was complete.
    FunctionBroken = "function_broken", Function, 502, Never, Executed;
    /// The function's output does not meet its output schema or format.
    InvalidOutput = "invalid_output", Function, 502, Never, Executed;
    /// The function's output is larger than the limit that the error names.
    OutputTooLarge = "output_too_large", Function, 502, Never, Executed;
    /// The engine answered what it must not.
    Engine = "engine", Engine, 502, Never, Unknown;
    /// The engine is out of reach or overloaded.
    Unavailable = "unavailable", Engine, 503, Transient, Unknown;
    /// Something that the gateway depends on, such as a secret provider, is out of reach.
    DependencyUnavailable = "dependency_unavailable", Gateway, 503, Transient, NotSent;
    /// A store failed.
    Store = "store", Gateway, 503, Transient, NotSent;
    /// The gateway is shutting down.
    ShuttingDown = "shutting_down", Gateway, 503, Transient, NotSent;
    /// The gateway that executed it died or was stopped: nobody knows how it ended.
    Lost = "lost", Gateway, 500, Never, Unknown;
    /// A fault of the gateway itself.
    Internal = "internal", Gateway, 500, Never, Unknown;
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

/// One thing that is wrong in a document, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Violation {
    /// Where in the document: a JSON Pointer (RFC 6901), empty for the whole.
    pub pointer: String,
    /// Which rule of a JSON Schema is broken, as a JSON Pointer into the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema_pointer: Option<String>,
    /// What is wrong, and what would be right.
    pub reason: String,
}

impl Violation {
    /// Says what is wrong at a place.
    #[must_use]
    pub fn new(pointer: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), schema_pointer: None, reason: reason.into() }
    }

    /// Names the rule of the schema that is broken.
    #[must_use]
    pub fn with_schema_pointer(mut self, pointer: impl Into<String>) -> Self {
        self.schema_pointer = Some(pointer.into());
        self
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.pointer.is_empty() {
            return f.write_str(&self.reason);
        }
        write!(f, "{}: {}", self.pointer, self.reason)
    }
}

/// A failure of the gateway, of an engine, of the caller's input, or of a function that broke off.
///
/// What a function *answered*, its own errors included, is never an `Error`: see [`Outcome`](crate::Outcome).
///
/// [`Display`](fmt::Display) gives the public message with its context, fit for a client. The private
/// [`detail`](Self::detail) and the source are for the host's logs only.
///
/// ```
/// use function_gateway_core::{Delivery, Error, ErrorKind};
///
/// let error = Error::new(ErrorKind::Unavailable, "the engine refused the connection")
///     .with_delivery(Delivery::NotSent)
///     .with_detail("connect 10.0.0.7:8080: ECONNREFUSED");
/// assert!(error.is_transient());
/// assert_eq!(error.to_string(), "unavailable: the engine refused the connection");
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    retry: Retry,
    delivery: Delivery,
    message: Cow<'static, str>,
    operation: Option<&'static str>,
    context: Vec<(&'static str, String)>,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    timings: Option<Timings>,
    detail: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// Makes an error with a message that may be shown to any client.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner {
            kind,
            retry: kind.default_retry(),
            delivery: kind.default_delivery(),
            message: message.into(),
            operation: None,
            context: Vec::new(),
            violations: Vec::new(),
            retry_after: None,
            timings: None,
            detail: None,
            source: None,
        }))
    }

    /// An [`InvalidSpec`](ErrorKind::InvalidSpec) error that lists every violation.
    #[must_use]
    pub fn invalid_spec(violations: Vec<Violation>) -> Self {
        Self::new(ErrorKind::InvalidSpec, "the specification is not valid").with_violations(violations)
    }

    /// A function's own payload limit, or the gateway's, is passed.
    #[must_use]
    pub fn too_large(kind: ErrorKind, what: &'static str, limit: u64) -> Self {
        Self::new(kind, format!("the {what} is larger than {limit} bytes"))
            .with_context("limit_bytes", limit.to_string())
    }

    /// Says whether trying again may help.
    #[must_use]
    pub fn with_retry(mut self, retry: Retry) -> Self {
        self.0.retry = retry;
        self
    }

    /// Says whether the function can have run.
    #[must_use]
    pub fn with_delivery(mut self, delivery: Delivery) -> Self {
        self.0.delivery = delivery;
        self
    }

    /// Says what was being done, unless an inner border has said it already.
    #[must_use]
    pub fn with_operation(mut self, operation: &'static str) -> Self {
        self.0.operation.get_or_insert(operation);
        self
    }

    /// Adds what it was being done to, fit for any client. A key that is there already stays.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl Into<String>) -> Self {
        if !self.0.context.iter().any(|(known, _)| *known == key) {
            self.0.context.push((key, value.into()));
        }
        self
    }

    /// Adds the violations.
    #[must_use]
    pub fn with_violations(mut self, violations: Vec<Violation>) -> Self {
        self.0.violations.extend(violations);
        self
    }

    /// Says after how long trying again makes sense.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.0.retry_after = Some(after);
        self
    }

    /// Says how long each phase of the call took that failed.
    #[must_use]
    pub(crate) fn with_timings(mut self, timings: Timings) -> Self {
        self.0.timings = Some(timings);
        self
    }

    /// Adds what only the host's operators may read.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> Self {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds the cause. Its text is private, like the detail.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// What kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Whose failure it is.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.0.kind.class()
    }

    /// May the same be tried again?
    #[must_use]
    pub fn retry(&self) -> Retry {
        self.0.retry
    }

    /// Whether trying again may help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.0.retry == Retry::Transient
    }

    /// Can the function have run?
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        self.0.delivery
    }

    /// The public message, without kind and context.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What was being done.
    #[must_use]
    pub fn operation(&self) -> Option<&'static str> {
        self.0.operation
    }

    /// What it was being done to.
    #[must_use]
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// One value of the context.
    #[must_use]
    pub fn context_value(&self, key: &str) -> Option<&str> {
        self.0.context.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_str())
    }

    /// Everything that is wrong in the document that was given.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    /// After how long trying again makes sense.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// How long each phase took of the call that failed, where it was let in by this process.
    #[must_use]
    pub fn timings(&self) -> Option<Timings> {
        self.0.timings
    }

    /// What only the host's operators may read.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// Rewrites every text of the error, as a redactor does. The source, which can't be rewritten, becomes
    /// part of the private detail.
    #[must_use]
    pub(crate) fn map_texts(mut self, map: impl Fn(&str) -> String) -> Self {
        let inner = &mut *self.0;
        inner.message = map(&inner.message).into();
        for (_, value) in &mut inner.context {
            *value = map(value);
        }
        for violation in &mut inner.violations {
            violation.pointer = map(&violation.pointer);
            violation.reason = map(&violation.reason);
            violation.schema_pointer = violation.schema_pointer.as_deref().map(&map);
        }
        let mut detail = inner.detail.take();
        if let Some(source) = inner.source.take() {
            let chain = chain_of(&*source);
            detail = Some(detail.map_or_else(|| chain.clone(), |detail| format!("{detail}: {chain}")));
        }
        inner.detail = detail.map(|detail| map(&detail));
        self
    }
}

/// An error and all its sources in one line.
pub(crate) fn chain_of(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.kind, self.0.message)?;
        if !self.0.context.is_empty() {
            f.write_str(" (")?;
            for (index, (key, value)) in self.0.context.iter().enumerate() {
                write!(f, "{}{key}: {value}", if index == 0 { "" } else { ", " })?;
            }
            f.write_str(")")?;
        }
        for violation in &self.0.violations {
            write!(f, "; {violation}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        let mut debug = f.debug_struct("Error");
        debug
            .field("kind", &inner.kind)
            .field("message", &inner.message)
            .field("retry", &inner.retry)
            .field("delivery", &inner.delivery);
        if let Some(operation) = inner.operation {
            debug.field("operation", &operation);
        }
        if !inner.context.is_empty() {
            debug.field("context", &inner.context);
        }
        if !inner.violations.is_empty() {
            debug.field("violations", &inner.violations);
        }
        if let Some(after) = inner.retry_after {
            debug.field("retry_after", &after);
        }
        if let Some(detail) = &inner.detail {
            debug.field("detail", detail);
        }
        if let Some(source) = &inner.source {
            debug.field("source", &chain_of(&**source));
        }
        debug.finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<InvalidName> for Error {
    fn from(error: InvalidName) -> Self {
        Self::new(ErrorKind::InvalidArgument, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique() {
        let mut codes: Vec<_> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn what_is_private_is_not_displayed() {
        let error = Error::new(ErrorKind::Store, "the store failed")
            .with_detail("host db-7")
            .with_source(std::io::Error::other("password=hunter2"));
        assert_eq!(error.to_string(), "store: the store failed");
        assert!(format!("{error:?}").contains("db-7"));
    }

    #[test]
    fn rewriting_reaches_every_text() {
        let error = Error::new(ErrorKind::Engine, "a canary")
            .with_context("where", "canary")
            .with_detail("canary")
            .with_source(std::io::Error::other("canary"))
            .with_violations(vec![Violation::new("/canary", "canary").with_schema_pointer("/canary")]);
        let error = error.map_texts(|text| text.replace("canary", "bird"));
        assert!(!format!("{error} {error:?} {error:#?}").contains("canary"));
        assert!(StdError::source(&error).is_none());
    }

    #[test]
    fn the_innermost_border_names_operation_and_context() {
        let error = Error::new(ErrorKind::Engine, "x")
            .with_operation("deploy")
            .with_operation("create")
            .with_context("driver", "a")
            .with_context("driver", "b");
        assert_eq!(error.operation(), Some("deploy"));
        assert_eq!(error.context_value("driver"), Some("a"));
    }
}
