//! What a call asks of the gateway itself, in headers. They are not passed on to the function.

use std::time::Duration;

use function_gateway_core::{Due, SubmitOptions, Timestamp};
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};

use super::executions::MAX_WAIT;
use crate::extract::{Preferences, invalid};
use crate::problem::Problem;

pub(crate) const PREFER: HeaderName = HeaderName::from_static("prefer");
pub(crate) const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");
/// By what two requests are told to be one (draft-ietf-httpapi-idempotency-key-header).
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// How long an execution that is submitted waits at least, in milliseconds.
const DELAY: HeaderName = HeaderName::from_static("x-function-delay-ms");
/// Before when it is not executed.
const NOT_BEFORE: HeaderName = HeaderName::from_static("x-function-not-before");
/// Whether the generation that serves now is to execute it.
const PIN: HeaderName = HeaderName::from_static("x-function-pin");

/// Which headers a route takes for its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// It executes at once, unless the caller prefers otherwise.
    Invoke,
    /// It submits.
    Submit,
    /// The function's own URL: what is not the gateway's alone is the function's.
    FunctionUrl,
}

/// What a call asks of the gateway.
#[derive(Debug)]
pub(super) struct Steering {
    /// How it is to be submitted, where it is not executed at once.
    pub(super) submit: Option<Submit>,
    /// By what it is told to be the same as another one.
    pub(super) idempotency_key: Option<String>,
}

#[derive(Debug)]
pub(super) struct Submit {
    pub(super) options: SubmitOptions,
    /// How long its end is waited for all the same.
    pub(super) patience: Duration,
    /// Whether it is a preference that was followed.
    pub(super) is_preferred: bool,
}

impl Steering {
    /// Takes it out of the headers of a call.
    pub(super) fn take(headers: &mut HeaderMap, route: Route) -> Result<Self, Problem> {
        let options = options(headers)?;
        let idempotency_key = match route {
            Route::FunctionUrl => None,
            Route::Invoke | Route::Submit => idempotency_key(headers)?,
        };
        let preferences = Preferences::of(headers);
        let is_preferred = preferences.respond_async && route != Route::FunctionUrl;
        if is_preferred || route == Route::Submit {
            // Nobody is there when the function answers.
            headers.remove(PREFER);
            // What is sent to be put off is answered as that.
            let patience = preferences.wait.filter(|_| route == Route::Invoke).unwrap_or_default().min(MAX_WAIT);
            let submit = Submit { options: options.unwrap_or_default(), patience, is_preferred };
            return Ok(Self { submit: Some(submit), idempotency_key });
        }
        if options.is_some() {
            let message = format!(
                "`{DELAY}`, `{NOT_BEFORE}` and `{PIN}` are for what is submitted: with `Prefer: respond-async`, or by \
                 /v1/functions/NAME/submit"
            );
            return Err(invalid(message));
        }
        Ok(Self { submit: None, idempotency_key })
    }
}

/// How it is to be submitted; `None` where nothing says so.
fn options(headers: &mut HeaderMap) -> Result<Option<SubmitOptions>, Problem> {
    if !headers.keys().any(|name| [DELAY, NOT_BEFORE, PIN].contains(name)) {
        return Ok(None);
    }
    let delay = one(headers, &DELAY)?.map(|value| {
        let millis = value.parse().map(Duration::from_millis);
        millis.map(Due::In).map_err(|_| invalid(format!("`{DELAY}` is a whole number of milliseconds")))
    });
    let not_before = one(headers, &NOT_BEFORE)?.map(|value| {
        let time = value.parse::<Timestamp>();
        time.map(Due::At).map_err(|_| invalid(format!("`{NOT_BEFORE}` is a time such as 2027-01-31T08:00:00Z")))
    });
    let pin = one(headers, &PIN)?;
    let mut options = SubmitOptions::default();
    options.due = match (delay, not_before) {
        (Some(_), Some(_)) => return Err(invalid(format!("either `{DELAY}` or `{NOT_BEFORE}` is given"))),
        (due, None) | (None, due) => due.transpose()?,
    };
    options.pin = match pin.as_deref() {
        None | Some("false") => false,
        Some("true") => true,
        Some(_) => return Err(invalid(format!("`{PIN}` is true or false"))),
    };
    Ok(Some(options))
}

/// A string of structured fields (RFC 9651, section 3.3.3), or its text without quotation marks.
fn idempotency_key(headers: &mut HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = one(headers, &IDEMPOTENCY_KEY)? else { return Ok(None) };
    let key = match value.strip_prefix('"') {
        Some(rest) => unquoted(rest),
        None => Some(value.clone()).filter(|value| value.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'"')),
    };
    let key = key.filter(|key| !key.is_empty());
    key.map(Some)
        .ok_or_else(|| invalid(format!("`{IDEMPOTENCY_KEY}` is a text in quotation marks, or one without spaces")))
}

/// What stands before the closing quotation mark, which has to be the end.
fn unquoted(rest: &str) -> Option<String> {
    let mut text = String::new();
    let mut characters = rest.chars();
    loop {
        match characters.next()? {
            '"' => return characters.next().is_none().then_some(text),
            '\\' => text.push(characters.next().filter(|character| matches!(character, '"' | '\\'))?),
            character => text.push(character),
        }
    }
}

/// The one value of a header, which is taken out.
fn one(headers: &mut HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    let values: Vec<HeaderValue> = headers.get_all(name).iter().cloned().collect();
    if !values.is_empty() {
        headers.remove(name);
    }
    match values.as_slice() {
        [] => Ok(None),
        [value] => match value.to_str() {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(_) => Err(invalid(format!("`{name}` is no text"))),
        },
        _ => Err(invalid(format!("`{name}` is given more than once"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &'static str) -> Option<String> {
        let mut headers = HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_static(value))]);
        let key = idempotency_key(&mut headers).ok().flatten();
        assert!(headers.is_empty());
        key
    }

    #[test]
    fn a_key_may_have_quotation_marks() {
        for (value, expected) in [
            ("8e03978e-40d5", Some("8e03978e-40d5")),
            ("\"8e03978e-40d5\"", Some("8e03978e-40d5")),
            (" \"a \\\"b\\\\c\" ", Some("a \"b\\c")),
            ("\"open", None),
            ("\"more\" to come", None),
            ("\"bad \\escape\"", None),
            ("two words", None),
            ("a\"b", None),
            ("\"\"", None),
            ("", None),
        ] {
            assert_eq!(key(value).as_deref(), expected, "{value}");
        }
    }

    #[test]
    fn what_steers_the_gateway_goes_no_further() {
        let sent = [
            ("prefer", "respond-async, wait=3"),
            ("idempotency-key", "k"),
            ("x-function-delay-ms", "1500"),
            ("x-function-pin", "true"),
            ("x-own", "1"),
        ];
        let headers = || {
            HeaderMap::from_iter(
                sent.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))),
            )
        };
        for (route, patience) in [(Route::Invoke, 3), (Route::Submit, 0)] {
            let mut headers = headers();
            let steering = Steering::take(&mut headers, route).unwrap();
            let submit = steering.submit.unwrap();
            assert_eq!((submit.options.due, submit.options.pin), (Some(Due::In(Duration::from_millis(1500))), true));
            assert_eq!((submit.patience, submit.is_preferred), (Duration::from_secs(patience), true));
            assert_eq!(steering.idempotency_key.as_deref(), Some("k"));
            assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-own"]);
        }
        let mut of_url = headers();
        assert!(Steering::take(&mut of_url, Route::FunctionUrl).is_err(), "there is nothing to be put off");
        of_url = headers();
        of_url.remove(DELAY);
        of_url.remove(PIN);
        let steering = Steering::take(&mut of_url, Route::FunctionUrl).unwrap();
        assert!(steering.submit.is_none() && steering.idempotency_key.is_none());
        assert!(of_url.contains_key("prefer") && of_url.contains_key("idempotency-key"));
    }
}
