//! The one place that says what an answer means, and what it means that there is none.

use std::error::Error as StdError;
use std::time::{Duration, UNIX_EPOCH};

use function_gateway_core::{Delivery, Error, ErrorKind, Retry, Timestamp};
use http::{HeaderMap, StatusCode, header};

use crate::resolve::Refused;

use ErrorKind::{InvalidArgument, Misconfigured, PermissionDenied, Unavailable};
use Retry::{Never, Transient};

/// The table, by status. What is not in it is no success either.
const ANSWERS: &[(std::ops::RangeInclusive<u16>, ErrorKind, Retry, &str)] = &[
    (300..=399, Misconfigured, Never, "the callback's address redirects, which is not followed"),
    (408..=408, Unavailable, Transient, "the callback's receiver did not get the request in time"),
    (410..=410, Misconfigured, Never, "the callback's receiver is gone, and asks for no more"),
    (429..=429, Unavailable, Transient, "the callback's receiver takes no more requests now"),
    (400..=499, Misconfigured, Never, "the callback's receiver refuses the request"),
    (500..=599, Unavailable, Transient, "the callback's receiver failed"),
];

/// The error for an answer. What the receiver says is for the operators only: it may be of the host's own network.
pub(crate) fn of_answer(status: StatusCode, headers: &HeaderMap, text: &str, now: Timestamp) -> Error {
    let row = ANSWERS.iter().find(|(statuses, ..)| statuses.contains(&status.as_u16()));
    let other = (Misconfigured, Never, "the callback's receiver answered with no status of success or failure");
    let (kind, retry, message) = row.map_or(other, |(_, kind, retry, message)| (*kind, *retry, *message));
    let error = Error::new(kind, message)
        .with_retry(retry)
        // Whether the receiver answers or something before it can't be told.
        .with_delivery(Delivery::Unknown)
        .with_context("status", status.as_u16().to_string())
        .with_detail(text);
    match retry_after(headers, now) {
        Some(after) if retry == Transient => error.with_retry_after(after),
        _ => error,
    }
}

/// `Retry-After`, in seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp::default().plus(date).since(now))
}

/// The error for an address that must not be called.
pub(crate) fn of_refused(reason: &str) -> Error {
    Error::new(PermissionDenied, format!("the callback is not sent: its address {reason}"))
}

/// The error for a request that got no answer.
pub(crate) fn of_transport(error: reqwest::Error) -> Error {
    // A URL may hold what only its receiver is to know.
    let error = error.without_url();
    let made = if is_refused(&error) {
        of_refused("leads to where this gateway does not call")
    } else if error.is_builder() {
        Error::new(InvalidArgument, "the callback can't be written as a request")
    } else if error.is_connect() {
        Error::new(Unavailable, "the callback's receiver can't be connected to").with_delivery(Delivery::NotSent)
    } else if error.is_timeout() {
        Error::new(Unavailable, "the callback's receiver did not answer in time")
    } else {
        Error::new(Unavailable, "the connection to the callback's receiver broke before it had answered")
    };
    made.with_source(error)
}

fn is_refused(error: &reqwest::Error) -> bool {
    let first: Option<&(dyn StdError + 'static)> = error.source();
    std::iter::successors(first, |error| (*error).source()).any(|error| error.is::<Refused>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_micros(seconds * 1_000_000)
    }

    fn error(status: u16) -> Error {
        of_answer(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), "", at(0))
    }

    #[test]
    fn a_status_says_whether_to_try_again() {
        for (status, kind, retry, expected) in [
            (300, Misconfigured, Never, "redirects"),
            (301, Misconfigured, Never, "redirects"),
            (302, Misconfigured, Never, "redirects"),
            (304, Misconfigured, Never, "redirects"),
            (307, Misconfigured, Never, "redirects"),
            (399, Misconfigured, Never, "redirects"),
            (400, Misconfigured, Never, "refuses"),
            (401, Misconfigured, Never, "refuses"),
            (404, Misconfigured, Never, "refuses"),
            (407, Misconfigured, Never, "refuses"),
            (408, Unavailable, Transient, "in time"),
            (409, Misconfigured, Never, "refuses"),
            (410, Misconfigured, Never, "gone"),
            (411, Misconfigured, Never, "refuses"),
            (428, Misconfigured, Never, "refuses"),
            (429, Unavailable, Transient, "no more requests now"),
            (499, Misconfigured, Never, "refuses"),
            (500, Unavailable, Transient, "failed"),
            (501, Unavailable, Transient, "failed"),
            (503, Unavailable, Transient, "failed"),
            (599, Unavailable, Transient, "failed"),
            (101, Misconfigured, Never, "no status"),
            (600, Misconfigured, Never, "no status"),
        ] {
            let error = error(status);
            assert_eq!((error.kind(), error.retry(), error.delivery()), (kind, retry, Delivery::Unknown), "{status}");
            assert!(error.message().contains(expected), "{error}");
            assert_eq!(error.context_value("status"), Some(&*status.to_string()));
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |status, value: &str, now| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, value.parse().unwrap())]);
            of_answer(StatusCode::from_u16(status).unwrap(), &headers, "", at(now)).retry_after()
        };
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        for (status, value, now, expected) in [
            (503, "120", 0, Some(120)),
            (429, " 0 ", 0, Some(0)),
            (408, "7", 0, Some(7)),
            (503, date, 784_111_777 - 60, Some(60)),
            (503, "Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777 - 60, Some(60)),
            (503, date, 784_111_777 + 60, Some(0)),
            (503, "18446744073709551615", 0, Some(u64::MAX)),
            (503, "18446744073709551616", 0, None),
            (503, "-1", 0, None),
            (503, "1.5", 0, None),
            (503, "soon", 0, None),
            (400, "120", 0, None),
            (410, "120", 0, None),
        ] {
            assert_eq!(after(status, value, now), expected.map(Duration::from_secs), "{status} {value}");
        }
        assert_eq!(error(503).retry_after(), None);
    }
}
