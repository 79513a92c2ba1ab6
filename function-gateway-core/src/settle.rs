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

    /// How long what can't be let in yet waits: a part of the time that it has waited already.
    pub(crate) fn pause(&self, waited: Duration, asked: Option<Duration>) -> Duration {
        let least = self.initial_backoff.unwrap_or(Duration::from_secs(1)).min(Duration::from_secs(1));
        let most = self.max_backoff.unwrap_or(Duration::from_secs(300)).max(least);
        let step = (waited / 4).clamp(least, most);
        step.mul_f64(0.5 + fastrand::f64() / 2.0).max(asked.unwrap_or_default())
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    const CLASSES: [ErrorClass; 7] = [
        ErrorClass::Caller,
        ErrorClass::Rejected,
        ErrorClass::Function,
        ErrorClass::Engine,
        ErrorClass::Gateway,
        ErrorClass::Timeout,
        ErrorClass::Cancelled,
    ];
    const DELIVERIES: [Delivery; 3] = [Delivery::NotSent, Delivery::Unknown, Delivery::Executed];

    fn policy(json: serde_json::Value) -> AsyncPolicy {
        serde_json::from_value(json).unwrap()
    }

    /// The verdict on an error of the gateway's that says of itself what its kind does.
    fn on_error(kind: ErrorKind, delivery: Delivery, policy: &AsyncPolicy, idempotent: bool) -> Verdict {
        let failure = Failure::new(kind.class(), kind.code(), "it failed", delivery);
        let transient = kind.default_retry() == crate::Retry::Transient;
        verdict(Ended { failure: &failure, kind: Some(kind), transient, status: None }, policy, idempotent)
    }

    /// The verdict on what the function answered.
    fn on_answer(status: u16, policy: &AsyncPolicy, idempotent: bool) -> Verdict {
        let class = if status < 500 { ErrorClass::Rejected } else { ErrorClass::Function };
        let failure = Failure::new(class, "function_failed", "it failed", Delivery::Executed);
        verdict(Ended { failure: &failure, kind: None, transient: false, status: Some(status) }, policy, idempotent)
    }

    #[test]
    fn each_row_of_the_settle_table_holds() {
        use Delivery::{Executed, NotSent, Unknown};
        use Verdict::{Again, Failed, Return};
        let default = AsyncPolicy::default();
        // Kind and delivery; what becomes of it where it may be repeated, and where it may not.
        let errors = [
            (ErrorKind::ShuttingDown, NotSent, Return, Return),
            (ErrorKind::RateLimited, NotSent, Return, Return),
            (ErrorKind::Store, NotSent, Return, Return),
            (ErrorKind::Store, Executed, Again, Failed),
            (ErrorKind::Cancelled, NotSent, Failed, Failed),
            (ErrorKind::Cancelled, Unknown, Failed, Failed),
            (ErrorKind::DeadlineExceeded, NotSent, Again, Again),
            (ErrorKind::DeadlineExceeded, Unknown, Again, Failed),
            (ErrorKind::Unavailable, NotSent, Again, Again),
            (ErrorKind::Unavailable, Unknown, Again, Failed),
            (ErrorKind::NotReady, NotSent, Return, Return),
            (ErrorKind::NotDeployed, NotSent, Return, Return),
            (ErrorKind::DependencyUnavailable, NotSent, Again, Again),
            (ErrorKind::InvalidInput, NotSent, Failed, Failed),
            (ErrorKind::PermissionDenied, NotSent, Failed, Failed),
            (ErrorKind::Misconfigured, NotSent, Failed, Failed),
            (ErrorKind::FunctionBroken, Executed, Failed, Failed),
            (ErrorKind::InvalidOutput, Executed, Failed, Failed),
            (ErrorKind::Engine, Unknown, Failed, Failed),
            (ErrorKind::Lost, Unknown, Failed, Failed),
            (ErrorKind::Internal, Unknown, Failed, Failed),
        ];
        for (kind, delivery, repeatable, once) in errors {
            assert_eq!(on_error(kind, delivery, &default, true), repeatable, "{kind}, {delivery:?}");
            assert_eq!(on_error(kind, delivery, &default, false), once, "{kind}, {delivery:?}");
        }
        for status in 400..=599 {
            let again = matches!(status, 408 | 429 | 500..);
            assert_eq!(on_answer(status, &default, true), if again { Again } else { Failed }, "{status}");
            assert_eq!(on_answer(status, &default, false), Failed, "{status}");
        }
    }

    #[test]
    fn a_policy_takes_the_place_of_what_the_table_says_of_statuses_and_classes() {
        use Verdict::{Again, Failed};
        let by_status = policy(serde_json::json!({ "retry_statuses": [404, 503], "at_least_once": true }));
        for (status, expected) in [(404, Again), (503, Again), (429, Failed), (500, Failed)] {
            assert_eq!(on_answer(status, &by_status, false), expected, "{status}");
        }
        assert_eq!(on_error(ErrorKind::Unavailable, Delivery::Unknown, &by_status, false), Again);

        let by_class = policy(serde_json::json!({ "retry_classes": ["rejected", "function"] }));
        for (status, expected) in [(404, Again), (503, Again)] {
            assert_eq!(on_answer(status, &by_class, true), expected, "{status}");
            assert_eq!(on_answer(status, &by_class, false), Failed, "{status} was delivered");
        }
        assert_eq!(on_error(ErrorKind::FunctionBroken, Delivery::Executed, &by_class, true), Again);
        assert_eq!(on_error(ErrorKind::Unavailable, Delivery::NotSent, &by_class, true), Failed);

        let both = policy(serde_json::json!({ "retry_statuses": [503], "retry_classes": ["rejected"] }));
        for (status, expected) in [(404, Failed), (503, Again), (500, Failed)] {
            assert_eq!(on_answer(status, &both, true), expected, "{status}");
        }
        let none = policy(serde_json::json!({ "retry_statuses": [], "retry_classes": [] }));
        assert_eq!(on_answer(503, &none, true), Failed);
        assert_eq!(on_error(ErrorKind::Unavailable, Delivery::NotSent, &none, true), Failed);
        assert_eq!(on_error(ErrorKind::ShuttingDown, Delivery::NotSent, &none, true), Verdict::Return);
    }

    fn policies() -> impl Strategy<Value = AsyncPolicy> {
        let classes = prop::option::of(prop::collection::btree_set(select(&CLASSES[..]), 0..7));
        let statuses = prop::option::of(prop::collection::btree_set(400..=599_u16, 0..50));
        (classes, statuses, any::<bool>()).prop_map(|(retry_classes, retry_statuses, at_least_once)| AsyncPolicy {
            retry_classes,
            retry_statuses,
            at_least_once,
            ..AsyncPolicy::default()
        })
    }

    #[derive(Debug)]
    struct Case {
        failure: Failure,
        kind: Option<ErrorKind>,
        transient: bool,
        status: Option<u16>,
    }

    impl Case {
        fn verdict(&self, policy: &AsyncPolicy, idempotent: bool) -> Verdict {
            let Self { failure, kind, transient, status } = self;
            let ended = Ended { failure, kind: *kind, transient: *transient, status: *status };
            verdict(ended, policy, idempotent)
        }
    }

    fn cases() -> impl Strategy<Value = Case> {
        let failure = (select(&CLASSES[..]), select(&DELIVERIES[..]))
            .prop_map(|(class, delivery)| Failure::new(class, "code", "it failed", delivery));
        let kind = prop::option::of(select(ErrorKind::ALL));
        (failure, kind, any::<bool>(), prop::option::of(100..=599_u16))
            .prop_map(|(failure, kind, transient, status)| Case { failure, kind, transient, status })
    }

    proptest! {
        /// What may have reached a function is not sent again unless that function, or its policy, can bear it.
        #[test]
        fn at_most_once_holds_whatever_the_policy_retries(case in cases(), mut policy in policies()) {
            policy.at_least_once = false;
            if case.failure.delivery != Delivery::NotSent {
                prop_assert_eq!(case.verdict(&policy, false), Verdict::Failed);
            }
        }

        #[test]
        fn a_cancellation_is_never_repeated(mut case in cases(), policy in policies(), idempotent: bool) {
            case.kind = Some(ErrorKind::Cancelled);
            prop_assert_eq!(case.verdict(&policy, idempotent), Verdict::Failed);
        }

        /// What was let go was not sent, and no policy makes an attempt of it.
        #[test]
        fn only_what_was_not_sent_is_let_go(case in cases(), policy in policies(), idempotent: bool) {
            let let_go = matches!(
                case.kind,
                Some(
                    ErrorKind::ShuttingDown
                        | ErrorKind::RateLimited
                        | ErrorKind::Store
                        | ErrorKind::NotReady
                        | ErrorKind::NotDeployed
                )
            );
            let is_let_go = let_go && case.transient && case.failure.delivery == Delivery::NotSent;
            prop_assert_eq!(case.verdict(&policy, idempotent) == Verdict::Return, is_let_go);
        }

        /// Who can bear more is never refused what others get, and beyond that nothing depends on who can bear what.
        #[test]
        fn an_idempotent_function_gets_no_less(case in cases(), mut policy in policies()) {
            let once = case.verdict(&policy, false);
            let repeatable = case.verdict(&policy, true);
            prop_assert!(repeatable == once || (repeatable, once) == (Verdict::Again, Verdict::Failed));
            policy.at_least_once = true;
            prop_assert_eq!(case.verdict(&policy, false), repeatable);
        }

        /// An answer that is no failure by its status is not asked for again, unless a policy names it or its class.
        #[test]
        fn an_answer_is_repeated_only_where_somebody_says_so(case in cases(), policy in policies(), status in 100..=599_u16) {
            let case = Case { kind: None, status: Some(status), ..case };
            let says_so = match (&policy.retry_statuses, &policy.retry_classes) {
                (Some(statuses), _) => statuses.contains(&status),
                (None, Some(classes)) => classes.contains(&case.failure.class),
                (None, None) => matches!(status, 408 | 429 | 500..),
            };
            prop_assert_eq!(case.verdict(&policy, true) == Verdict::Again, says_so);
        }

        #[test]
        fn backoff_stays_below_its_step_and_keeps_to_what_was_asked(
            attempt: u32,
            initial in prop::option::of(0..u64::MAX),
            most in prop::option::of(0..u64::MAX),
            asked in prop::option::of(0..100_000_000_u64),
        ) {
            let policy = AsyncPolicy {
                initial_backoff: initial.map(Duration::from_millis),
                max_backoff: most.map(Duration::from_millis),
                ..AsyncPolicy::default()
            };
            let asked = asked.map(Duration::from_millis);
            let wait = policy.backoff(attempt, asked);
            let most = policy.max_backoff.unwrap_or(Duration::from_secs(300));
            prop_assert!(wait >= asked.unwrap_or_default());
            prop_assert!(wait <= most.max(asked.unwrap_or_default()));
        }
    }

    #[test]
    fn backoff_doubles_up_to_its_cap() {
        let policy = policy(serde_json::json!({ "initial_backoff_ms": 100, "max_backoff_ms": 350 }));
        for (attempt, most) in [(0, 100), (1, 100), (2, 200), (3, 350), (4, 350), (u32::MAX, 350)] {
            let longest = (0..500).map(|_| policy.backoff(attempt, None)).max().unwrap();
            let most = Duration::from_millis(most);
            assert!(longest <= most && longest > most / 2, "{longest:?} after attempt {attempt}");
        }
        let shortest = (0..500).map(|_| policy.backoff(3, None)).min().unwrap();
        assert!(shortest < Duration::from_millis(175), "{shortest:?} is not spread");
    }

    #[test]
    fn a_policy_without_a_word_has_its_defaults() {
        let policy = AsyncPolicy::default();
        assert_eq!((policy.attempts(), policy.age()), (3, Duration::from_secs(86_400)));
        assert_eq!((policy.destination(true), policy.destination(false)), (None, None));
        assert!(policy.backoff(1, None) <= Duration::from_secs(1));
        assert!(policy.backoff(u32::MAX, None) <= Duration::from_secs(300));
        assert_eq!(serde_json::to_value(&policy).unwrap(), serde_json::json!({}));
    }

    /// Where a policy is wrong.
    fn wrong(json: serde_json::Value) -> Vec<String> {
        let mut found = Vec::new();
        policy(json).check("/async", &mut found);
        found.into_iter().map(|violation| violation.pointer).collect()
    }

    #[test]
    fn a_policy_is_checked_field_by_field() {
        let callback = |url: &str| serde_json::json!({ "on_success": { "callback": { "url": url } } });
        let at_url = "/async/on_success/callback/url";
        let cases = [
            (serde_json::json!({ "max_attempts": 0 }), "/async/max_attempts"),
            (serde_json::json!({ "max_attempts": 101 }), "/async/max_attempts"),
            (serde_json::json!({ "max_age_ms": 0 }), "/async/max_age_ms"),
            (serde_json::json!({ "retry_statuses": [500, 399] }), "/async/retry_statuses"),
            (serde_json::json!({ "retry_statuses": [600] }), "/async/retry_statuses"),
            (callback("ftp://example.org/"), at_url),
            (callback("https://"), at_url),
            (callback("https:///path"), at_url),
            (callback("https://exa mple.org/"), at_url),
            (callback("example.org"), at_url),
            (callback(""), at_url),
            (serde_json::json!({ "max_atempts": 3 }), "/async/max_atempts"),
        ];
        for (json, at) in cases {
            assert_eq!(wrong(json.clone()), [at], "{json}");
        }
        let all = serde_json::json!({
            "max_attempts": 0, "max_age_ms": 0, "retry_statuses": [1],
            "on_success": { "callback": { "url": "1" } }, "on_failure": { "callback": { "url": "2" } }, "more": 1,
        });
        assert_eq!(wrong(all).len(), 6, "all of it is named at once");
    }

    #[test]
    fn a_policy_that_says_everything_is_right_and_reads_back() {
        let json = serde_json::json!({
            "max_attempts": 100, "initial_backoff_ms": 0, "max_backoff_ms": 1, "max_age_ms": 1,
            "retry_classes": ["function", "timeout"], "retry_statuses": [400, 599], "at_least_once": true,
            "drop_failed": true, "on_success": { "function": "next" },
            "on_failure": { "callback": { "url": "http://127.0.0.1:8080/hook?a=b", "secret": "hook" } },
        });
        assert_eq!(wrong(json.clone()), Vec::<String>::new());
        assert_eq!(serde_json::to_value(policy(json.clone())).unwrap(), json);
    }

    #[test]
    fn a_misspelt_field_of_a_callback_is_refused() {
        let json = serde_json::json!({ "on_success": { "callback": { "url": "https://example.org", "secrt": "a" } } });
        let error = serde_json::from_value::<AsyncPolicy>(json).unwrap_err();
        assert!(error.to_string().contains("secrt"), "{error}");
    }
}
