//! What a subscription is: which events it is about, which functions they trigger, and how.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use function_gateway_core::{
    AsyncPolicy, Destination, Error, ErrorKind, FunctionName, Principal, Result, Timestamp, Version, Violation,
};
use serde::{Deserialize, Serialize};

use crate::Filters;

/// The name of a subscription within its tenant: a DNS label (RFC 1123).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SubscriptionName(String);

impl SubscriptionName {
    /// The greatest length in bytes.
    pub const MAX_LEN: usize = 63;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SubscriptionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for SubscriptionName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_label = (1..=Self::MAX_LEN).contains(&text.len())
            && text.chars().all(is_plain)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if is_label {
            return Ok(Self(text.to_owned()));
        }
        let message = format!(
            "a subscription's name has 1 to {} of a-z, 0-9 and '-', and starts and ends with a letter or a digit",
            Self::MAX_LEN
        );
        Err(Error::new(ErrorKind::InvalidArgument, message))
    }
}

impl TryFrom<String> for SubscriptionName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<SubscriptionName> for String {
    fn from(name: SubscriptionName) -> Self {
        name.0
    }
}

/// How the functions of a subscription are executed when an event matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Strategy {
    /// Each independently of the others.
    #[default]
    Parallel,
    /// In their order, each when the one before has succeeded.
    SequentialStop,
    /// In their order, each when the one before has ended, however it did.
    SequentialGoOn,
}

/// What becomes of an invocation that fails.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FailurePolicy {
    /// What the function's own specification says.
    #[default]
    OfFunction,
    /// One attempt, and nothing is kept but the record.
    Drop,
    /// One attempt, and a dead letter.
    DeadLetter,
    /// Attempts as is said here, where they may be made, and then a dead letter.
    Retry(Retries),
    /// One attempt, and another function is told of the failure.
    Function(FunctionName),
}

/// How often an event is tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Retries {
    /// Attempts in all, the first included: 1 to 100.
    pub max_attempts: u32,
    /// Before the second attempt, in milliseconds; doubled before each further one. The real wait is a random part of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_backoff_ms: Option<u64>,
    /// Never wait longer than this, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_backoff_ms: Option<u64>,
    /// No attempt begins later than so many milliseconds after the event was published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// Whether an attempt that may have reached a function is repeated though the function is not declared idempotent.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least_once: bool,
}

impl Retries {
    /// A number of attempts.
    #[must_use]
    pub fn attempts(max_attempts: u32) -> Self {
        Self { max_attempts, initial_backoff_ms: None, max_backoff_ms: None, max_age_ms: None, at_least_once: false }
    }

    /// Repeats also what may have reached a function that is not declared idempotent.
    #[must_use]
    pub fn at_least_once(mut self) -> Self {
        self.at_least_once = true;
        self
    }
}

impl FailurePolicy {
    /// As a policy of the queue; `None` for the function's own.
    pub(crate) fn policy(&self) -> Option<AsyncPolicy> {
        let mut policy = AsyncPolicy::default();
        policy.max_attempts = Some(1);
        match self {
            Self::OfFunction => return None,
            Self::Drop => policy.drop_failed = true,
            Self::DeadLetter => {}
            Self::Retry(retries) => {
                let millis = |millis: Option<u64>| millis.map(Duration::from_millis);
                policy.max_attempts = Some(retries.max_attempts);
                policy.initial_backoff = millis(retries.initial_backoff_ms);
                policy.max_backoff = millis(retries.max_backoff_ms);
                policy.max_age = millis(retries.max_age_ms);
                policy.at_least_once = retries.at_least_once;
            }
            Self::Function(name) => {
                policy.drop_failed = true;
                policy.on_failure = Some(Destination::Function(name.clone()));
            }
        }
        Some(policy)
    }
}

/// In which form functions get an event.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum EventForm {
    /// The data as the payload, the attributes in `ce-*` headers. The function's schema is about the data.
    #[default]
    Binary,
    /// The whole event as JSON.
    Structured,
}

/// What somebody wants of a subscription.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SubscriptionSpec {
    /// Which events: those that match all filters, so all without any.
    #[serde(default, skip_serializing_if = "Filters::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<utoipa::openapi::Object>))]
    pub filters: Filters,
    /// What they trigger: 1 to 16 functions of the tenant.
    pub functions: Vec<FunctionName>,
    /// How these are executed.
    #[serde(default)]
    pub strategy: Strategy,
    /// What becomes of an invocation that fails.
    #[serde(default)]
    pub on_failure: FailurePolicy,
    /// In which form they get the event.
    #[serde(default)]
    pub form: EventForm,
    /// Whether an event whose payload a function does not take leads to an event of the type
    /// [`VALIDATION_ERROR`](crate::VALIDATION_ERROR).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tell_invalid: bool,
    /// What it is for. At most 1,024 bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
}

impl SubscriptionSpec {
    /// The greatest number of functions.
    pub const MAX_FUNCTIONS: usize = 16;
    const MAX_DESCRIPTION: usize = 1024;

    /// Every event to one function.
    #[must_use]
    pub fn to(function: FunctionName) -> Self {
        Self::to_all(vec![function])
    }

    /// Every event to several functions.
    #[must_use]
    pub fn to_all(functions: Vec<FunctionName>) -> Self {
        Self {
            filters: Filters::default(),
            functions,
            strategy: Strategy::default(),
            on_failure: FailurePolicy::default(),
            form: EventForm::default(),
            tell_invalid: false,
            description: String::new(),
        }
    }

    /// Only the events that match.
    #[must_use]
    pub fn with_filters(mut self, filters: Filters) -> Self {
        self.filters = filters;
        self
    }

    /// Sets how the functions are executed.
    #[must_use]
    pub fn with_strategy(mut self, strategy: Strategy) -> Self {
        self.strategy = strategy;
        self
    }

    /// Sets what becomes of an invocation that fails.
    #[must_use]
    pub fn with_on_failure(mut self, policy: FailurePolicy) -> Self {
        self.on_failure = policy;
        self
    }

    /// Sets the form of the event.
    #[must_use]
    pub fn with_form(mut self, form: EventForm) -> Self {
        self.form = form;
        self
    }

    /// Has what functions do not take told by events.
    #[must_use]
    pub fn telling_invalid(mut self) -> Self {
        self.tell_invalid = true;
        self
    }

    /// What is wrong with it, by itself.
    pub(crate) fn violations(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        if !(1..=Self::MAX_FUNCTIONS).contains(&self.functions.len()) {
            let reason = format!("there are {}; 1 to {} are allowed", self.functions.len(), Self::MAX_FUNCTIONS);
            found.push(Violation::new("/functions", reason));
        }
        for (index, name) in self.functions.iter().enumerate() {
            if self.functions.iter().take(index).any(|other| other == name) {
                found.push(Violation::new(format!("/functions/{index}"), format!("{name:?} stands there twice")));
            }
        }
        if let FailurePolicy::Retry(retries) = &self.on_failure {
            if !(1..=AsyncPolicy::MAX_ATTEMPTS).contains(&retries.max_attempts) {
                let reason = format!("is 1 to {}", AsyncPolicy::MAX_ATTEMPTS);
                found.push(Violation::new("/on_failure/retry/max_attempts", reason));
            }
            if retries.max_age_ms == Some(0) {
                found.push(Violation::new("/on_failure/retry/max_age_ms", "is more than 0"));
            }
        }
        if self.description.len() > Self::MAX_DESCRIPTION {
            let reason =
                format!("is {} bytes long, at most {} are allowed", self.description.len(), Self::MAX_DESCRIPTION);
            found.push(Violation::new("/description", reason));
        }
        found
    }
}

/// A subscription of a tenant.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Subscription {
    /// Its name.
    pub name: SubscriptionName,
    /// Counts its changes.
    pub version: Version,
    /// On behalf of whom its functions are executed: who created it or changed it last, with what the credential was given then.
    pub principal: Principal,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was changed last.
    pub updated_at: Timestamp,
    /// What is wanted of it.
    pub spec: SubscriptionSpec,
}
