//! How an accepted invocation is tried, and the one table of what an attempt's end means for it.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::millis;
use crate::{Delivery, ErrorClass, ErrorKind, Failure, FunctionName, SecretRef, UnknownFields, Violation};

/// How invocations of a function are tried that were submitted for later. What is absent is the gateway's default.
///
/// ```
/// use function_gateway_core::AsyncPolicy;
///
/// let policy: AsyncPolicy = serde_json::from_str(r#"{"max_attempts": 5, "max_age_ms": 3600000}"#).unwrap();
/// assert_eq!(policy.max_age, Some(std::time::Duration::from_secs(3600)));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AsyncPolicy {
    /// Attempts in all, the first included: 1 to 100; 3 where it is absent. Only what may be repeated is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Before the second attempt; doubled before each further one. The real wait is a random part of it; 1 s where it is
    /// absent.
    #[serde(rename = "initial_backoff_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub initial_backoff: Option<Duration>,
    /// Never wait longer than this; 5 min where it is absent.
    #[serde(rename = "max_backoff_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub max_backoff: Option<Duration>,
    /// No attempt begins later than this after the invocation was due for the first time; 24 h where it is absent.
    #[serde(rename = "max_age_ms", default, with = "millis::option", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<u64>))]
    pub max_age: Option<Duration>,
    /// Whose failures are tried again, in place of the table's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_classes: Option<BTreeSet<ErrorClass>>,
    /// Which statuses of the function (400 to 599) are tried again, in place of the table's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_statuses: Option<BTreeSet<u16>>,
    /// Whether an attempt that may have reached the function is tried again though the function is not declared
    /// idempotent: at least once, in place of at most once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_least_once: bool,
    /// Whether what has failed for good is not kept as a dead letter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub drop_failed: bool,
    /// What gets the result of a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_success: Option<Destination>,
    /// What is told of a failure for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_failure: Option<Destination>,
    /// Fields that this version does not know.
    #[serde(flatten)]
    #[cfg_attr(feature = "openapi", schema(ignore))]
    pub unknown: UnknownFields,
}

/// Where the end of an invocation leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Destination {
    /// To another function of the tenant. After a success it gets the result as its payload, after a failure a document about it.
    Function(FunctionName),
    /// To an address that gets a document about the end by `POST`.
    Callback(CallbackTarget),
}

/// An address that is told of the end of an invocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CallbackTarget {
    /// The address, `https:` or `http:`.
    pub url: String,
    /// The tenant's secret that the document is signed with, as Standard Webhooks has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretRef>,
}

impl CallbackTarget {
    /// An address whose documents are not signed.
    #[must_use]
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), secret: None }
    }

    /// Signs the documents.
    #[must_use]
    pub fn with_secret(mut self, secret: SecretRef) -> Self {
        self.secret = Some(secret);
        self
    }
}

impl AsyncPolicy {
    /// The greatest number of attempts.
    pub const MAX_ATTEMPTS: u32 = 100;

    /// Attempts in all.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(3)
    }

    /// How old an invocation may get before an attempt begins.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.max_age.unwrap_or(Duration::from_secs(24 * 3600))
    }

    /// Exponential backoff with full jitter: a random part of the step, never less than what the failure asks for.
    pub(crate) fn backoff(&self, attempt: u32, asked: Option<Duration>) -> Duration {
        let first = self.initial_backoff.unwrap_or(Duration::from_secs(1));
        let most = self.max_backoff.unwrap_or(Duration::from_secs(300));
        let step = first.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(most);
        step.mul_f64(fastrand::f64()).max(asked.unwrap_or_default())
    }

    /// What is wrong with it, by itself.
    pub(crate) fn check(&self, at: &str, found: &mut Vec<Violation>) {
        let mut refuse = |field: &str, reason: String| found.push(Violation::new(format!("{at}/{field}"), reason));
        if self.max_attempts.is_some_and(|attempts| !(1..=Self::MAX_ATTEMPTS).contains(&attempts)) {
            refuse("max_attempts", format!("is 1 to {}", Self::MAX_ATTEMPTS));
        }
        if self.max_age.is_some_and(|age| age.is_zero()) {
            refuse("max_age_ms", "is more than 0".to_owned());
        }
        let statuses = self.retry_statuses.iter().flatten();
        if let Some(status) = statuses.into_iter().find(|status| !(400..=599).contains(*status)) {
            refuse("retry_statuses", format!("holds {status}; statuses of failures are 400 to 599"));
        }
        for (field, destination) in [("on_success", &self.on_success), ("on_failure", &self.on_failure)] {
            let Some(Destination::Callback(target)) = destination else { continue };
            let scheme_is_known = ["https://", "http://"].iter().any(|scheme| target.url.starts_with(scheme));
            let is_address = target.url.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some());
            if !scheme_is_known || !is_address {
                refuse(
                    &format!("{field}/callback/url"),
                    "is an address that begins with https:// or http://".to_owned(),
                );
            }
        }
        for name in self.unknown.names() {
            refuse(name, "is not known to this version of the gateway".to_owned());
        }
    }

    /// Where the end of an invocation leads to.
    #[must_use]
    pub fn destination(&self, succeeded: bool) -> Option<&Destination> {
        if succeeded { self.on_success.as_ref() } else { self.on_failure.as_ref() }
    }
}

/// What is known of an attempt that has ended without success.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended<'a> {
    pub(crate) failure: &'a Failure,
    /// The kind of the gateway's own error; none where the function answered.
    pub(crate) kind: Option<ErrorKind>,
    /// Whether the error says that trying again may help.
    pub(crate) transient: bool,
    /// The status that the function answered.
    pub(crate) status: Option<u16>,
}

/// What is to be done after an attempt without success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It was let go before it could count: it waits again.
    Return,
    /// Another attempt.
    Again,
    /// It has failed for good.
    Failed,
}

/// The settle table.
///
/// | The attempt ended with | Tried again |
/// |---|---|
/// | a shutdown of the gateway, a limit, a store that failed, a function that is being deployed; not sent | always; it does not count |
/// | a cancellation | never |
/// | an answer of 4xx but 408 and 429 | never |
/// | an answer of 408, 429 or 5xx, a timeout, an engine that is out of reach | if it was not sent, or may be repeated |
/// | any other error that is transient | if it was not sent, or may be repeated |
/// | anything else | never |
///
/// `retry_statuses` and `retry_classes` take the place of what the table says about statuses and classes, but never of what
/// may be repeated.
pub(crate) fn verdict(ended: Ended<'_>, policy: &AsyncPolicy, idempotent: bool) -> Verdict {
    let Ended { failure, kind, transient, status } = ended;
    let unsent = failure.delivery == Delivery::NotSent;
    let let_go = matches!(
        kind,
        Some(
            ErrorKind::ShuttingDown
                | ErrorKind::RateLimited
                | ErrorKind::Store
                | ErrorKind::NotReady
                | ErrorKind::NotDeployed
        )
    );
    if unsent && let_go && transient {
        return Verdict::Return;
    }
    if kind == Some(ErrorKind::Cancelled) {
        return Verdict::Failed;
    }
    let wanted = match (status, &policy.retry_statuses, &policy.retry_classes) {
        (Some(status), Some(statuses), _) => statuses.contains(&status),
        (_, _, Some(classes)) => classes.contains(&failure.class),
        (Some(status), None, None) => matches!(status, 408 | 429 | 500..=599),
        (None, _, None) => transient || kind == Some(ErrorKind::DeadlineExceeded),
    };
    let allowed = unsent || idempotent || policy.at_least_once;
    if wanted && allowed { Verdict::Again } else { Verdict::Failed }
}
