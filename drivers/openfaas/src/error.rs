//! The one place that says what an answer of the engine means: whose error it is, and whether the function can have run.
//!
//! What is told apart, and in which order, is what a real gateway was seen to answer. A function can forge the headers that
//! it goes by, so it classifies and secures nothing.

use function_gateway_core::forward::{Broken, Fault, one_line, retry_after};
use function_gateway_core::{Delivery, Error, ErrorKind, Retry};
use http::{HeaderMap, StatusCode, header};

/// Who of the engine has answered in the function's place, by `X-Openfaas-Internal`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Internal {
    Proxy,
    Watchdog,
    Middleware,
    Other,
}

/// What of an answer to a call is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signs {
    pub(crate) status: u16,
    /// `X-Openfaas-Internal`: the provider, the watchdog or what surrounds it.
    pub(crate) internal: Option<Internal>,
    /// `X-Served-By`: the call has passed the gateway's router.
    pub(crate) served: bool,
    /// `X-Duration-Seconds`: the watchdog has had an answer of the function.
    pub(crate) timed: bool,
    pub(crate) typed: bool,
    pub(crate) empty: bool,
    /// The call asked for `text/event-stream`, so that the gateway does not hold its answer back.
    pub(crate) events: bool,
}

impl Signs {
    pub(crate) fn of(status: StatusCode, headers: &HeaderMap, empty: bool, events: bool) -> Self {
        let internal = headers.get("x-openfaas-internal").map(|who| match who.as_bytes() {
            b"proxy" => Internal::Proxy,
            b"of-watchdog" => Internal::Watchdog,
            b"faas-middleware" => Internal::Middleware,
            _ => Internal::Other,
        });
        Self {
            status: status.as_u16(),
            internal,
            served: headers.contains_key("x-served-by"),
            timed: headers.contains_key("x-duration-seconds"),
            typed: headers.contains_key(header::CONTENT_TYPE),
            empty,
            events,
        }
    }

    /// The gateway answers so where it has got nothing from the provider.
    fn is_bare(&self) -> bool {
        self.served && self.empty && !self.timed && !self.typed
    }

    /// Neither the router's header nor the watchdog's: the gateway itself, or something before it.
    fn is_outside(&self) -> bool {
        !self.served && !self.timed && self.internal.is_none() && self.status >= 300
    }
}

/// What an answer to a call means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// It is the function's.
    Answer,
    /// It is an error of this kind.
    Error(Fault),
    /// The engine does not know the function, or can't look: which one has to be asked. Nothing was passed on.
    Missing,
}

const fn fault(kind: ErrorKind, delivery: Delivery, retry: Retry, message: &'static str) -> Meaning {
    Meaning::Error(Fault::new(kind, delivery, retry, message))
}

struct Row {
    applies: fn(&Signs) -> bool,
    meaning: Meaning,
}

use Delivery::{Executed, NotSent, Unknown};
use ErrorKind::{DeadlineExceeded, FunctionBroken, InvalidArgument, Unavailable, Unsupported};
use Retry::{Never, Transient};

/// The table for calls. The first row that applies decides; where none does, the answer is the function's.
const CALLS: &[Row] = &[
    // The provider knows no address for it: missing, not ready or out of reach.
    Row { applies: |signs| signs.internal == Some(Internal::Proxy) && signs.status == 503, meaning: Meaning::Missing },
    // The function died, refused the connection or took too long for the provider.
    Row {
        applies: |signs| signs.internal == Some(Internal::Proxy),
        meaning: fault(Unavailable, Unknown, Transient, "the engine's provider could not reach the function"),
    },
    Row {
        applies: |signs| signs.internal == Some(Internal::Watchdog) && signs.status == 504,
        meaning: fault(DeadlineExceeded, Executed, Never, "the function took longer than its watchdog allows"),
    },
    // It closed the connection, or is not listening yet: which one can't be told.
    Row {
        applies: |signs| signs.internal == Some(Internal::Watchdog),
        meaning: fault(FunctionBroken, Unknown, Transient, "the function's watchdog got no answer from it"),
    },
    Row {
        applies: |signs| signs.internal == Some(Internal::Middleware) && signs.status == 429,
        meaning: fault(Unavailable, NotSent, Transient, "the function takes no more calls at a time"),
    },
    Row {
        applies: |signs| signs.internal.is_some(),
        meaning: fault(ErrorKind::Engine, Unknown, Never, "the engine answered in the function's place"),
    },
    Row { applies: |signs| signs.is_outside() && signs.status == 404, meaning: Meaning::Missing },
    Row {
        applies: |signs| signs.is_outside() && matches!(signs.status, 400 | 413 | 414 | 431),
        meaning: fault(
            InvalidArgument,
            NotSent,
            Never,
            "the engine does not take the request: it is malformed or too large",
        ),
    },
    Row {
        applies: |signs| signs.is_outside() && matches!(signs.status, 401 | 403 | 407),
        meaning: fault(ErrorKind::Engine, NotSent, Never, "something before the engine refuses calls of functions"),
    },
    Row {
        applies: |signs| signs.is_outside() && signs.status == 405,
        meaning: fault(Unsupported, NotSent, Never, "the engine does not pass this method on"),
    },
    Row {
        applies: |signs| signs.is_outside() && signs.status == 429,
        meaning: fault(Unavailable, NotSent, Transient, "the engine takes no more calls now"),
    },
    Row {
        applies: |signs| signs.is_outside() && signs.status < 400,
        meaning: fault(
            ErrorKind::Engine,
            NotSent,
            Never,
            "the engine's address redirects calls, which is not followed",
        ),
    },
    Row {
        applies: |signs| signs.is_outside() && matches!(signs.status, 502..=504),
        meaning: fault(Unavailable, Unknown, Transient, "something before the engine could not reach it"),
    },
    Row {
        applies: Signs::is_outside,
        meaning: fault(ErrorKind::Engine, Unknown, Never, "the engine answered what it must not"),
    },
    Row {
        applies: |signs| signs.is_bare() && matches!(signs.status, 502..=504),
        meaning: fault(Unavailable, Unknown, Transient, "the engine's gateway got no answer from its provider in time"),
    },
    Row {
        applies: |signs| signs.is_bare() && signs.status == 405,
        meaning: fault(Unsupported, NotSent, Never, "the engine does not pass this method on"),
    },
    // What the gateway's upstream_timeout looks like where the answer is not held back.
    Row {
        applies: |signs| signs.is_bare() && signs.events && signs.status == 200,
        meaning: fault(Unavailable, Unknown, Transient, "the engine's gateway got no answer from its provider in time"),
    },
];

/// What an answer to a call means.
pub(crate) fn of_call(signs: &Signs) -> Meaning {
    CALLS.iter().find(|row| (row.applies)(signs)).map_or(Meaning::Answer, |row| row.meaning)
}

/// The table for calls that are queued, by status: everything but 202 is the engine's answer.
const QUEUE: &[(std::ops::RangeInclusive<u16>, ErrorKind, Delivery, Retry, &str)] = &[
    (300..=399, ErrorKind::Engine, NotSent, Never, "the engine's address redirects calls, which is not followed"),
    (
        400..=400,
        InvalidArgument,
        NotSent,
        Never,
        "the engine does not queue the call: its callback or its form is not valid",
    ),
    (401..=403, ErrorKind::Engine, NotSent, Never, "something before the engine refuses calls of functions"),
    (404..=405, Unsupported, NotSent, Never, "the engine is set up without a queue"),
    (413..=413, ErrorKind::PayloadTooLarge, NotSent, Never, "the payload is larger than the engine queues"),
    (429..=429, Unavailable, NotSent, Transient, "the engine takes no more calls now"),
    (431..=431, InvalidArgument, NotSent, Never, "the engine does not take the request: it is malformed or too large"),
    (500..=599, Unavailable, Unknown, Transient, "the engine could not queue the call"),
];

/// The error for a call that was not queued.
pub(crate) fn of_queue(status: StatusCode, headers: &HeaderMap, text: &str) -> Error {
    // The Community Edition says so with 500.
    let row = match text.contains("body too large") {
        true => QUEUE.iter().find(|row| row.1 == ErrorKind::PayloadTooLarge),
        false => QUEUE.iter().find(|row| row.0.contains(&status.as_u16())),
    };
    let other = (ErrorKind::Engine, Unknown, Never, "the engine answered what it must not");
    let (kind, delivery, retry, message) = row.map_or(other, |row| (row.1, row.2, row.3, row.4));
    Fault::new(kind, delivery, retry, message).error(status.as_u16(), headers, text)
}

/// The table for calls that manage, by status: kind, whether trying again may help, and what it means. Successes and what an
/// operation makes of 404 are the operation's own.
const MANAGEMENT: &[(std::ops::RangeInclusive<u16>, ErrorKind, Retry, &str)] = &[
    (300..=399, ErrorKind::Engine, Never, "the engine's address redirects, which is not followed with credentials"),
    (400..=400, ErrorKind::Misconfigured, Never, "the engine refuses what it was asked for"),
    (401..=401, Unavailable, Transient, "the engine does not take the gateway's credentials"),
    (403..=403, Unavailable, Transient, "the engine does not take the gateway's credentials"),
    (404..=404, ErrorKind::Engine, Never, "the engine does not know this operation: is it an OpenFaaS gateway?"),
    (405..=405, ErrorKind::Engine, Never, "the engine does not know this operation: is it an OpenFaaS gateway?"),
    (408..=408, Unavailable, Transient, "the engine did not get the request in time"),
    (409..=409, Unavailable, Transient, "the engine says that something else is at it"),
    (413..=413, ErrorKind::Misconfigured, Never, "the specification is larger than the engine takes"),
    (429..=429, Unavailable, Transient, "the engine takes no more requests now"),
    (431..=431, ErrorKind::Misconfigured, Never, "the specification is larger than the engine takes"),
    (500..=500, ErrorKind::Engine, Transient, "the engine failed"),
    (501..=501, Unsupported, Never, "the engine does not offer this operation"),
    (502..=504, Unavailable, Transient, "the engine's gateway can't reach its provider"),
    (505..=599, ErrorKind::Engine, Transient, "the engine failed"),
];

/// The error for an answer to a call that manages. A refusal of what was asked for (400) cites the engine, since it is for the
/// developer; all else that the engine says is for the operators.
pub(crate) fn of_management(status: StatusCode, headers: &HeaderMap, text: &str) -> Error {
    let row = MANAGEMENT.iter().find(|(statuses, ..)| statuses.contains(&status.as_u16()));
    let (kind, retry, message) =
        row.map_or((ErrorKind::Engine, Never, "the engine answered what it must not"), |row| (row.1, row.2, row.3));
    let error = match kind {
        ErrorKind::Misconfigured if !text.trim().is_empty() => {
            Error::new(kind, format!("{message}: {}", one_line(text)))
        }
        _ => Error::new(kind, message).with_detail(one_line(text)),
    };
    let error =
        error.with_retry(retry).with_delivery(NotSent).with_context("engine_status", status.as_u16().to_string());
    match retry_after(headers) {
        Some(after) if retry == Transient => error.with_retry_after(after),
        _ => error,
    }
}

/// The error for a deployment that was refused.
pub(crate) fn of_refused_deployment(status: StatusCode, headers: &HeaderMap, text: &str) -> Error {
    let lower = text.to_lowercase();
    // The Community Edition counts functions, and says so with either status.
    let says = |signs: &[&str]| signs.iter().any(|sign| lower.contains(sign));
    let at_limit = matches!(status.as_u16(), 400 | 403 | 500)
        && says(&["limit", "maximum", "too many"])
        && says(&["functions", "function limit", "function count"]);
    if !at_limit {
        return of_management(status, headers, text);
    }
    let message = "the engine has no room for another function: its limit is reached, and each generation needs a place of its own";
    Error::new(Unavailable, message)
        .with_retry(Never)
        .with_delivery(NotSent)
        .with_context("engine_status", status.as_u16().to_string())
        .with_detail(one_line(text))
}

/// The error for a request that manages and got no answer.
pub(crate) fn of_transport(error: reqwest::Error) -> Error {
    let broken = if error.is_builder() {
        Broken::NotWritten
    } else if error.is_connect() {
        Broken::NotConnected
    } else if error.is_timeout() {
        Broken::TimedOut
    } else {
        Broken::Midway
    };
    broken.error(error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Signs =
        Signs { status: 200, internal: None, served: true, timed: true, typed: true, empty: false, events: false };

    fn signs(status: u16, change: impl FnOnce(&mut Signs)) -> Signs {
        let mut signs = Signs { status, ..OWN };
        change(&mut signs);
        signs
    }

    fn internal(status: u16, who: Internal) -> Signs {
        signs(status, |signs| signs.internal = Some(who))
    }

    fn outside(status: u16) -> Signs {
        signs(status, |signs| (signs.served, signs.timed) = (false, false))
    }

    fn bare(status: u16) -> Signs {
        signs(status, |signs| (signs.timed, signs.typed, signs.empty) = (false, false, true))
    }

    #[test]
    fn every_row_of_calls() {
        // The row that decides, a sign of it, and what it means; `None` for missing.
        let rows = [
            (0, internal(503, Internal::Proxy), None),
            (1, internal(500, Internal::Proxy), Some((Unavailable, Unknown, Transient))),
            (2, internal(504, Internal::Watchdog), Some((DeadlineExceeded, Executed, Never))),
            (3, internal(500, Internal::Watchdog), Some((FunctionBroken, Unknown, Transient))),
            (4, internal(429, Internal::Middleware), Some((Unavailable, NotSent, Transient))),
            (5, internal(500, Internal::Other), Some((ErrorKind::Engine, Unknown, Never))),
            (6, outside(404), None),
            (7, outside(431), Some((InvalidArgument, NotSent, Never))),
            (8, outside(401), Some((ErrorKind::Engine, NotSent, Never))),
            (9, outside(405), Some((Unsupported, NotSent, Never))),
            (10, outside(429), Some((Unavailable, NotSent, Transient))),
            (11, outside(301), Some((ErrorKind::Engine, NotSent, Never))),
            (12, outside(502), Some((Unavailable, Unknown, Transient))),
            (13, outside(500), Some((ErrorKind::Engine, Unknown, Never))),
            (14, bare(502), Some((Unavailable, Unknown, Transient))),
            (15, bare(405), Some((Unsupported, NotSent, Never))),
            (16, Signs { events: true, ..bare(200) }, Some((Unavailable, Unknown, Transient))),
        ];
        assert_eq!(rows.len(), CALLS.len());
        for (index, signs, expected) in rows {
            let position = CALLS.iter().position(|row| (row.applies)(&signs));
            assert_eq!(position, Some(index), "{signs:?}");
            match (of_call(&signs), expected) {
                (Meaning::Missing, None) => {}
                (Meaning::Error(fault), Some(expected)) => {
                    assert_eq!((fault.kind, fault.delivery, fault.retry), expected);
                    let error = fault.error(signs.status, &HeaderMap::new(), "http://inside");
                    assert!(!error.to_string().contains("inside"), "{error}");
                    assert_eq!(error.detail(), Some("http://inside"));
                    assert_eq!(error.retry_after().is_some(), expected.0 == Unavailable && expected.1 == NotSent);
                }
                (meaning, expected) => panic!("{signs:?}: {meaning:?} in place of {expected:?}"),
            }
        }
    }

    #[test]
    fn what_a_function_answers_is_its_own() {
        for status in [200, 201, 204, 301, 304, 400, 401, 404, 405, 429, 500, 502, 503, 504, 599, 600] {
            assert_eq!(of_call(&signs(status, |_| {})), Meaning::Answer, "{status}");
        }
        // A proxy may take headers out.
        let stripped = signs(200, |signs| (signs.served, signs.timed) = (false, false));
        assert_eq!(of_call(&stripped), Meaning::Answer);
        // Without events, a bare success is one: an image without a watchdog says no more.
        assert_eq!(of_call(&bare(200)), Meaning::Answer);
    }

    #[test]
    fn every_row_of_management() {
        for (statuses, kind, retry, message) in MANAGEMENT {
            for status in [statuses.start(), statuses.end()] {
                let status = StatusCode::from_u16(*status).unwrap();
                let error = of_management(status, &HeaderMap::new(), " inside\nout ");
                assert_eq!((error.kind(), error.retry(), error.delivery()), (*kind, *retry, NotSent));
                assert!(error.message().starts_with(message), "{error}");
                assert_eq!(error.message().ends_with("inside out"), *kind == ErrorKind::Misconfigured, "{error}");
            }
        }
        let unheard_of = of_management(StatusCode::IM_A_TEAPOT, &HeaderMap::new(), "");
        assert_eq!((unheard_of.kind(), unheard_of.retry()), (ErrorKind::Engine, Never));
    }

    #[test]
    fn every_row_of_the_queue() {
        for (statuses, kind, delivery, retry, message) in QUEUE {
            let error = of_queue(StatusCode::from_u16(*statuses.start()).unwrap(), &HeaderMap::new(), "");
            assert_eq!((error.kind(), error.delivery(), error.retry()), (*kind, *delivery, *retry));
            assert_eq!(error.message(), *message);
        }
        let said =
            "Error queuing request: request body too large for OpenFaaS CE (256001 bytes), maximum: 256000 bytes";
        let error = of_queue(StatusCode::INTERNAL_SERVER_ERROR, &HeaderMap::new(), said);
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::PayloadTooLarge, NotSent));
        assert_eq!(of_queue(StatusCode::OK, &HeaderMap::new(), "").kind(), ErrorKind::Engine);
    }

    #[test]
    fn a_full_engine_is_told_from_one_that_fails() {
        let refused = |status: u16, text: &str| {
            let error = of_refused_deployment(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), text);
            (error.kind(), error.retry(), error.message().contains("limit is reached"))
        };
        assert_eq!(refused(500, "Community Edition: the limit of 15 functions is reached"), (Unavailable, Never, true));
        assert_eq!(refused(400, "maximum number of functions: 15"), (Unavailable, Never, true));
        assert_eq!(refused(500, "etcd is busy"), (ErrorKind::Engine, Transient, false));
        assert_eq!(refused(400, "image: is required"), (ErrorKind::Misconfigured, Never, false));
    }
}
