//! The one place that says what an answer means, of the API server and of what is before a function: whose error it is, and whether
//! the function can have run.
//!
//! What is told apart, and in which order, is what real ones were seen to answer. A function can forge what calls go by, so it
//! classifies and secures nothing.

use std::borrow::Cow;
use std::time::Duration;

use function_gateway_core::forward::{Fault, one_line, retry_after};
use function_gateway_core::{Delivery, Error, ErrorKind, Retry};
use http::{HeaderMap, StatusCode, header};

use crate::api::Status;

use Delivery::{Executed, NotSent, Unknown};
use ErrorKind::{Conflict, DeadlineExceeded, Engine, FunctionBroken, InvalidArgument, Misconfigured, Unavailable};
use Retry::{Never, Transient};

// Calls

/// The longest text that anything between here and a function answers in its place.
pub(crate) const MAX_OWN_TEXT: u64 = 1024;

const UPSTREAM: &str = "x-envoy-upstream-service-time";

/// What of an answer to a call is looked at before its body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signs {
    pub(crate) status: u16,
    /// The ingress says that somebody behind it has answered: the function, or what Knative has put before it.
    pub(crate) upstream: bool,
    /// The ingress is one whose answers are known.
    pub(crate) envoy: bool,
    pub(crate) empty: bool,
    /// It is a text of the kind that Knative's own proxies answer, short enough to be one.
    pub(crate) own_text: bool,
}

impl Signs {
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap, declared: Option<u64>, is_head: bool) -> Self {
        let is = |name: header::HeaderName, start: &str| {
            headers.get(name).is_some_and(|value| value.as_bytes().starts_with(start.as_bytes()))
        };
        let server = headers.get(header::SERVER).map(|server| server.as_bytes());
        Self {
            status: status.as_u16(),
            upstream: headers.contains_key(UPSTREAM),
            envoy: server.is_some_and(|server| server == b"envoy" || server.ends_with(b"-envoy")),
            empty: is_head || declared == Some(0),
            own_text: is(header::CONTENT_TYPE, "text/plain")
                && is(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
                && declared.is_some_and(|len| len > 0 && len <= MAX_OWN_TEXT),
        }
    }

    /// The ingress itself has answered.
    fn is_ingress(&self) -> bool {
        self.envoy && !self.upstream && self.status >= 300
    }
}

/// What an answer to a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is the function's.
    Answer,
    /// It may be Knative's own, which its text has to tell.
    Ask,
    /// It is an error of this kind.
    Error(Fault),
    /// There is no route, or no longer: whether there is a function has to be asked. Nothing was passed on.
    Missing,
}

const fn fault(kind: ErrorKind, delivery: Delivery, retry: Retry, message: &'static str) -> Meaning {
    Meaning::Error(Fault::new(kind, delivery, retry, message))
}

struct Row {
    applies: fn(&Signs) -> bool,
    meaning: Meaning,
}

/// The table for calls. The first row that applies decides; where none does, the answer is the function's.
const CALLS: &[Row] = &[
    Row { applies: |signs| signs.is_ingress() && signs.status == 404 && signs.empty, meaning: Meaning::Missing },
    Row {
        applies: |signs| signs.is_ingress() && matches!(signs.status, 301 | 302 | 307 | 308),
        meaning: fault(
            Engine,
            NotSent,
            Never,
            "the ingress redirects calls, which is not followed: is its scheme https?",
        ),
    },
    Row {
        applies: |signs| signs.is_ingress() && matches!(signs.status, 400 | 413 | 414 | 431),
        meaning: fault(
            InvalidArgument,
            NotSent,
            Never,
            "the ingress does not take the request: it is malformed or too large",
        ),
    },
    Row {
        applies: |signs| signs.is_ingress() && matches!(signs.status, 401 | 403),
        meaning: fault(Engine, NotSent, Never, "something before the function refuses calls"),
    },
    Row {
        applies: |signs| signs.is_ingress() && signs.status == 429,
        meaning: fault(Unavailable, NotSent, Transient, "the ingress takes no more calls now"),
    },
    Row {
        applies: |signs| signs.is_ingress() && matches!(signs.status, 502..=504),
        meaning: fault(Unavailable, Unknown, Transient, "the ingress could not reach what is behind it"),
    },
    Row { applies: |signs| signs.own_text && matches!(signs.status, 404 | 502..=504), meaning: Meaning::Ask },
];

/// What an answer to a call means.
pub(crate) fn of_call(signs: &Signs) -> Meaning {
    CALLS.iter().find(|row| (row.applies)(signs)).map_or(Meaning::Answer, |row| row.meaning)
}

struct Text {
    status: u16,
    applies: fn(&str) -> bool,
    meaning: Meaning,
}

/// What Knative's proxies say in a function's place: the activator, which holds calls until an instance is there, and the
/// queue-proxy beside each instance.
const TEXTS: &[Text] = &[
    // It is just being deleted.
    Text {
        status: 404,
        applies: |text| text.starts_with("Error getting active endpoint: "),
        meaning: Meaning::Missing,
    },
    Text {
        status: 502,
        applies: |text| text.starts_with("dial tcp ") && text.contains("connection refused"),
        meaning: fault(
            Unavailable,
            NotSent,
            Transient,
            "the function's process is not listening: it may be starting again",
        ),
    },
    Text {
        status: 502,
        applies: |text| text.trim_end() == "EOF" || text.contains("connection reset by peer"),
        meaning: fault(FunctionBroken, Unknown, Transient, "the function closed the connection without an answer"),
    },
    Text {
        status: 503,
        applies: |text| text.trim_end() == "pending request queue full",
        meaning: fault(
            Unavailable,
            NotSent,
            Transient,
            "the function takes no more calls at a time, and the queue before it is full",
        ),
    },
    Text {
        status: 504,
        applies: |text| matches!(text.trim_end(), "activator request timeout" | "request timeout"),
        meaning: fault(DeadlineExceeded, Unknown, Never, "the function took longer than Knative lets it"),
    },
];

/// What an answer means whose text had to be read.
pub(crate) fn of_text(status: u16, text: &str) -> Meaning {
    let row = TEXTS.iter().find(|row| row.status == status && (row.applies)(text));
    row.map_or(Meaning::Answer, |row| row.meaning)
}

// Management

/// By which the API server's answers are told apart: the code alone does not tell.
type Management = (fn(u16, &Status) -> bool, ErrorKind, Retry, &'static str);

/// The table for what the API server answers. Successes and what an operation makes of a missing object are the operation's own.
const MANAGEMENT: &[Management] = &[
    (|code, _| (300..400).contains(&code), Engine, Never, "the API server's address redirects, which is not followed"),
    (
        |code, _| code == 401,
        Unavailable,
        Transient,
        "the API server does not take the gateway's credentials, which were read again: renew them",
    ),
    (
        |code, status| code == 403 && status.message.contains("exceeded quota"),
        Unavailable,
        Never,
        "a quota of the namespace is used up: raise it, or remove what is not needed",
    ),
    (|code, _| code == 403, Unavailable, Transient, "the gateway lacks a right in the cluster"),
    // Not the API server's usual form: it does not know the group at all.
    (
        |code, status| code == 404 && status.reason.is_empty(),
        Unavailable,
        Transient,
        "Knative Serving is not installed: the API server does not know serving.knative.dev/v1",
    ),
    (
        |code, status| code == 404 && status.details.kind == "namespaces",
        Unavailable,
        Transient,
        "the namespace does not exist: create it, the driver makes none",
    ),
    (|code, _| code == 404, Unavailable, Transient, "the cluster does not hold the object any more"),
    (
        |code, status| code == 409 && status.reason == "AlreadyExists" && status.message.contains("being deleted"),
        Unavailable,
        Transient,
        "the cluster is still deleting what bears this name",
    ),
    (
        |code, status| code == 409 && status.is_field_conflict(),
        Conflict,
        Transient,
        "somebody else manages a field of the object that the gateway needs",
    ),
    (|code, _| code == 409, Conflict, Transient, "others change the object all the time"),
    (|code, status| code == 410 || status.is_expired(), Unavailable, Transient, "the list is too old to go on with"),
    (|code, _| code == 413, Misconfigured, Never, "the specification is larger than the cluster takes"),
    (|code, _| code == 429, Unavailable, Transient, "the API server takes no more requests now"),
    (
        |code, status| matches!(code, 500..=504) && status.message.contains("failed calling webhook"),
        Unavailable,
        Transient,
        "Knative's webhook can't be reached by the API server: is Knative's control plane up?",
    ),
    (|code, _| matches!(code, 400 | 422), Misconfigured, Never, "the cluster refuses what it was asked for"),
    (|code, _| code >= 500, Unavailable, Transient, "the API server failed"),
];

/// The error for an answer of the API server. A refusal of what was asked for cites it, since it is for the developer; all else that
/// it says is for the operators, but for the rule that is missing.
pub(crate) fn of_management(code: StatusCode, headers: &HeaderMap, text: &str) -> Error {
    let status = read_status(text);
    let code = code.as_u16();
    let row = MANAGEMENT.iter().find(|(applies, ..)| applies(code, &status));
    let (kind, retry, message) =
        row.map_or((Engine, Never, "the API server answered what it must not"), |row| (row.1, row.2, row.3));
    let said = if status.message.is_empty() { text } else { status.message.as_str() };
    let cited = match kind {
        Misconfigured => Some(refusal(&status, said)),
        _ if code == 403 => rule(&status),
        Conflict if status.is_field_conflict() => Some(managers(&status)),
        _ => None,
    };
    let message = cited.filter(|cited| !cited.is_empty()).map(|cited| format!("{message}: {cited}"));
    let error = match message {
        Some(message) => Error::new(kind, message),
        None => Error::new(kind, row.map_or("the API server answered what it must not", |row| row.3)),
    };
    let error = error
        .with_retry(retry)
        .with_delivery(NotSent)
        .with_context("engine_status", code.to_string())
        .with_detail(one_line(said));
    let after = retry_after(headers).or(status.details.retry_after_seconds.map(Duration::from_secs));
    match after {
        Some(after) if retry == Transient => error.with_retry_after(after),
        _ => error,
    }
}

/// What the API server says, where it says it in its own form.
pub(crate) fn read_status(text: &str) -> Status {
    serde_json::from_str(text).unwrap_or_default()
}

/// Who refuses, and why, without what is the same in each refusal.
fn refusal(status: &Status, said: &str) -> String {
    let causes: Vec<_> =
        status
            .details
            .causes
            .iter()
            .map(|cause| {
                if cause.field.is_empty() {
                    cause.message.clone()
                } else {
                    format!("{}: {}", cause.field, cause.message)
                }
            })
            .collect();
    match causes.is_empty() {
        true => one_line(said.split_once("denied the request: ").map_or(said, |(_, why)| why)),
        false => one_line(&causes.join("; ")),
    }
}

/// The rule that is missing. Whom it is missing for is the operators' to know.
fn rule(status: &Status) -> Option<String> {
    let (_, needed) = status.message.split_once(" cannot ")?;
    Some(format!("it can't {}; see the manifest in the driver's page", one_line(needed)))
}

fn managers(status: &Status) -> String {
    let each = status.details.causes.iter().map(|cause| format!("{} ({})", cause.field, cause.message));
    one_line(&each.collect::<Vec<_>>().join(", "))
}

/// The error for a request that the API server did not answer.
pub(crate) fn out_of_reach(message: impl Into<Cow<'static, str>>) -> Error {
    Error::new(Unavailable, message).with_delivery(NotSent)
}

/// Where a function is not, or not any more.
pub(crate) fn not_deployed() -> Error {
    Error::new(ErrorKind::NotDeployed, "the engine does not hold the function")
}

/// Where it is, and takes no calls.
pub(crate) fn not_ready() -> Error {
    Error::new(ErrorKind::NotReady, "the function takes no calls yet, or not now")
}

/// Where Knative's own time for a call is up before it has ended.
pub(crate) fn engine_timeout() -> Error {
    Error::new(DeadlineExceeded, "the function's answer took longer than Knative lets it")
        .with_delivery(Executed)
        .with_context("timeout", "engine")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Signs = Signs { status: 200, upstream: true, envoy: true, empty: false, own_text: false };

    fn ingress(status: u16) -> Signs {
        Signs { status, upstream: false, empty: true, ..OWN }
    }

    fn text(status: u16) -> Signs {
        Signs { status, own_text: true, ..OWN }
    }

    #[test]
    fn every_row_of_calls() {
        // The row that decides, a sign of it, and what it means; `None` for no error.
        let rows = [
            (0, ingress(404), None),
            (1, ingress(308), Some((Engine, NotSent, Never))),
            (2, ingress(431), Some((InvalidArgument, NotSent, Never))),
            (3, ingress(403), Some((Engine, NotSent, Never))),
            (4, ingress(429), Some((Unavailable, NotSent, Transient))),
            (5, ingress(503), Some((Unavailable, Unknown, Transient))),
            (6, text(503), None),
        ];
        assert_eq!(rows.len(), CALLS.len());
        for (index, signs, expected) in rows {
            assert_eq!(CALLS.iter().position(|row| (row.applies)(&signs)), Some(index), "{signs:?}");
            let fault = match of_call(&signs) {
                Meaning::Error(fault) => Some((fault.kind, fault.delivery, fault.retry)),
                _ => None,
            };
            assert_eq!(fault, expected, "{signs:?}");
        }
    }

    #[test]
    fn every_text_of_knatives_proxies() {
        let rows = [
            (404, "Error getting active endpoint: revision.serving.knative.dev \"a-00001\" not found\n", None),
            (502, "dial tcp 127.0.0.1:8080: connect: connection refused\n", Some((Unavailable, NotSent, Transient))),
            (502, "EOF\n", Some((FunctionBroken, Unknown, Transient))),
            (503, "pending request queue full\n", Some((Unavailable, NotSent, Transient))),
            (504, "activator request timeout", Some((DeadlineExceeded, Unknown, Never))),
        ];
        assert_eq!(rows.len(), TEXTS.len());
        for (index, (status, said, expected)) in rows.into_iter().enumerate() {
            let position = TEXTS.iter().position(|row| row.status == status && (row.applies)(said));
            assert_eq!(position, Some(index), "{said}");
            match (of_text(status, said), expected) {
                (Meaning::Missing, None) => {}
                (Meaning::Error(fault), Some(expected)) => {
                    assert_eq!((fault.kind, fault.delivery, fault.retry), expected, "{said}");
                    let error = fault.error(status, &HeaderMap::new(), said);
                    assert_eq!(error.retry_after().is_some(), expected.0 == Unavailable && expected.1 == NotSent);
                }
                (meaning, expected) => panic!("{said}: {meaning:?} in place of {expected:?}"),
            }
        }
        assert_eq!(of_text(504, "request timeout"), of_text(504, "activator request timeout"));
        assert_eq!(of_text(503, "it is too late"), Meaning::Answer);
        assert_eq!(of_text(500, "EOF"), Meaning::Answer);
    }

    #[test]
    fn what_a_function_answers_is_its_own() {
        for status in [200, 201, 204, 301, 304, 400, 401, 404, 405, 429, 500, 502, 503, 504, 599] {
            assert_eq!(of_call(&Signs { status, ..OWN }), Meaning::Answer, "{status}");
            // Another ingress says nothing of what is behind it.
            assert_eq!(of_call(&Signs { status, upstream: false, envoy: false, ..OWN }), Meaning::Answer, "{status}");
        }
        assert_eq!(of_call(&Signs { upstream: false, ..OWN }), Meaning::Answer);
    }

    #[test]
    fn signs_are_read_from_headers() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("server", "istio-envoy"),
            ("content-type", "text/plain; charset=utf-8"),
            ("x-content-type-options", "nosniff"),
            (UPSTREAM, "3"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let own = |declared| Signs::of(StatusCode::BAD_GATEWAY, &headers, declared, false).own_text;
        assert!(own(Some(4)) && !own(None) && !own(Some(0)) && !own(Some(MAX_OWN_TEXT + 1)));
        let signs = Signs::of(StatusCode::BAD_GATEWAY, &headers, Some(0), false);
        assert!(signs.upstream && signs.envoy && signs.empty);
    }

    fn said(code: u16, text: &str) -> Error {
        of_management(StatusCode::from_u16(code).unwrap(), &HeaderMap::new(), text)
    }

    #[test]
    fn every_row_of_management() {
        let status =
            |reason: &str, message: &str| format!(r#"{{"kind":"Status","reason":"{reason}","message":"{message}"}}"#);
        let conflict = r#"{"kind":"Status","reason":"Conflict","details":{"causes":[{"reason":"FieldManagerConflict","message":"conflict with \"kubectl\"","field":".spec.traffic"}]}}"#;
        let namespace = r#"{"kind":"Status","reason":"NotFound","details":{"kind":"namespaces","name":"x"}}"#;
        let rows = [
            (301, String::new(), Engine, Never),
            (401, status("Unauthorized", "Unauthorized"), Unavailable, Transient),
            (403, status("Forbidden", "x is forbidden: exceeded quota: q"), Unavailable, Never),
            (403, status("Forbidden", "User x cannot create resource services"), Unavailable, Transient),
            (404, "404 page not found\n".to_owned(), Unavailable, Transient),
            (404, namespace.to_owned(), Unavailable, Transient),
            (404, status("NotFound", "no"), Unavailable, Transient),
            (409, status("AlreadyExists", "object is being deleted: x"), Unavailable, Transient),
            (409, conflict.to_owned(), Conflict, Transient),
            (409, status("Conflict", "the object has been modified"), Conflict, Transient),
            (410, status("Expired", "too old"), Unavailable, Transient),
            (413, status("RequestEntityTooLarge", "too large"), Misconfigured, Never),
            (429, status("TooManyRequests", "later"), Unavailable, Transient),
            (500, status("InternalError", "failed calling webhook: refused"), Unavailable, Transient),
            (400, status("BadRequest", "no"), Misconfigured, Never),
            (503, status("ServiceUnavailable", "no"), Unavailable, Transient),
        ];
        assert_eq!(rows.len(), MANAGEMENT.len());
        for (index, (code, text, kind, retry)) in rows.into_iter().enumerate() {
            let position = MANAGEMENT.iter().position(|row| (row.0)(code, &read_status(&text)));
            assert_eq!(position, Some(index), "{code} {text}");
            let error = said(code, &text);
            assert_eq!((error.kind(), error.retry(), error.delivery()), (kind, retry, NotSent), "{error:?}");
            assert!(error.message().starts_with(MANAGEMENT[index].3), "{error}");
        }
        assert_eq!(said(418, "").kind(), Engine);
    }

    #[test]
    fn a_refusal_says_why_and_a_missing_right_which() {
        let refused = said(
            400,
            r#"{"reason":"BadRequest","message":"admission webhook \"v\" denied the request: validation failed: a: b"}"#,
        );
        assert_eq!(refused.message(), "the cluster refuses what it was asked for: validation failed: a: b");
        let invalid = said(
            422,
            r#"{"reason":"Invalid","message":"m","details":{"causes":[{"field":"metadata.name","message":"no label"}]}}"#,
        );
        assert!(invalid.message().ends_with(": metadata.name: no label"), "{invalid}");
        let forbidden = said(
            403,
            r#"{"reason":"Forbidden","message":"services is forbidden: User \"canary\" cannot create resource \"services\" in API group \"serving.knative.dev\" in the namespace \"fns\""}"#,
        );
        assert!(
            forbidden.message().contains(r#"it can't create resource "services" in API group "serving.knative.dev""#)
        );
        assert!(!forbidden.to_string().contains("canary"), "{forbidden}");
    }

    #[test]
    fn a_throttled_request_says_when_to_come_again() {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, "7".parse().unwrap());
        let error = of_management(StatusCode::TOO_MANY_REQUESTS, &headers, "");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
        let error = said(429, r#"{"reason":"TooManyRequests","details":{"retryAfterSeconds":3}}"#);
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
    }
}
