//! What stands in headers and documents of the API.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use function_gateway_core::{
    CallContext, DriverRequest, Error, ErrorKind, FunctionFailure, InvocationId, Result, TraceParent, call_header,
    call_headers, for_one_hop,
};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, InvalidHeaderValue, SET_COOKIE};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// The media type of an answer that begins with a prelude.
pub(super) const WITH_PRELUDE: &str = "application/vnd.awslambda.http-integration-response";
pub(super) const ERROR_TYPE: &str = "lambda-runtime-function-error-type";
const ERROR_BODY: &str = "lambda-runtime-function-error-body";
/// The time that a worker is told it has where the call has no deadline, in milliseconds: 24 hours.
const NO_DEADLINE: i64 = 24 * 60 * 60 * 1000;

/// The id that the worker knows an invocation by: another one for each attempt.
pub(super) fn request_id(cx: &CallContext) -> String {
    let id = cx.invocation_id().unwrap_or_else(InvocationId::generate);
    format!("{id}-{}", cx.attempt())
}

/// The name of a function in the form that AWS has for it.
fn arn(name: &str) -> String {
    format!("arn:aws:lambda:local:000000000000:function:{name}")
}

/// The headers that an invocation is told by.
pub(super) fn invocation(cx: &CallContext, id: &str, request: &DriverRequest) -> Result<HeaderMap, InvalidHeaderValue> {
    let deadline = call_headers(cx).into_iter().find(|(name, _)| *name == call_header::DEADLINE);
    let deadline = deadline.map_or_else(
        || (function_gateway_core::Timestamp::now().as_micros() / 1000 + NO_DEADLINE).to_string(),
        |(_, at)| at,
    );
    let is_empty = request.body.is_empty();
    let content_type = request.headers.get(CONTENT_TYPE).filter(|_| !is_empty).cloned().unwrap_or(JSON);
    let mut head = HeaderMap::new();
    head.insert(CONTENT_TYPE, content_type);
    let mut insert = |name, value: &str| -> Result<(), InvalidHeaderValue> {
        head.insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
        Ok(())
    };
    insert("lambda-runtime-aws-request-id", id)?;
    insert("lambda-runtime-deadline-ms", &deadline)?;
    insert("lambda-runtime-invoked-function-arn", &arn(request.revision.key.name.as_str()))?;
    if let Some(trace) = cx.trace().and_then(x_ray) {
        insert("lambda-runtime-trace-id", &trace)?;
    }
    Ok(head)
}

/// A trace as AWS X-Ray writes it.
fn x_ray(trace: TraceParent) -> Option<String> {
    let id = trace.trace_id();
    let (epoch, rest) = id.split_at_checked(8)?;
    let text = trace.to_string();
    let parent = text.split('-').nth(2)?;
    Some(format!("Root=1-{epoch}-{rest};Parent={parent};Sampled={}", u8::from(trace.is_sampled())))
}

/// What a worker says of a failure.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Failure {
    error_message: Value,
    error_type: Value,
}

/// A failure in the worker's own words: those of the document, as far as it is one, else of the header.
pub(super) fn failure(document: &[u8], error_type: Option<&HeaderValue>) -> FunctionFailure {
    let told: Failure = serde_json::from_slice(document).unwrap_or_default();
    let text = |value: Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    let kind = text(told.error_type).or_else(|| Some(error_type?.to_str().ok()?.to_owned()));
    let message = text(told.error_message).filter(|message| !message.is_empty());
    let message = message.or_else(|| kind.clone()).unwrap_or_else(|| "the function failed".to_owned());
    let mut failure = FunctionFailure::new(message);
    failure.kind = kind;
    failure
}

/// The failure that the end of an answer tells, if it does.
pub(super) fn failure_at_the_end(trailers: &HeaderMap) -> Option<FunctionFailure> {
    let (kind, body) = (trailers.get(ERROR_TYPE), trailers.get(ERROR_BODY));
    if kind.is_none() && body.is_none() {
        return None;
    }
    let document = body.and_then(|body| STANDARD.decode(body.as_bytes()).ok()).unwrap_or_default();
    Some(failure(&document, kind))
}

/// A failure as an error says it.
pub(super) fn said(failure: &FunctionFailure) -> String {
    match &failure.kind {
        Some(kind) if *kind != failure.message => format!("{kind}: {}", failure.message),
        _ => failure.message.clone(),
    }
}

/// How an answer begins that has status and headers of its own.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Prelude {
    status_code: Option<u16>,
    headers: Map<String, Value>,
    cookies: Vec<String>,
}

/// Status and headers from a prelude.
pub(super) fn prelude(bytes: &[u8]) -> Result<(StatusCode, HeaderMap)> {
    let wrong =
        |what: String| Error::new(ErrorKind::FunctionBroken, format!("the prelude of the worker's answer {what}"));
    let prelude: Prelude = serde_json::from_slice(bytes)
        .map_err(|error| wrong("is not the JSON that it must be".to_owned()).with_source(error))?;
    let status = prelude.status_code.unwrap_or(200);
    let status = StatusCode::from_u16(status).ok().filter(|status| *status >= StatusCode::OK && status.as_u16() < 600);
    let status = status.ok_or_else(|| wrong("has a status that is none of 200 to 599".to_owned()))?;
    let mut headers = HeaderMap::new();
    for (name, value) in prelude.headers {
        let values = match value {
            Value::Array(values) => values,
            Value::Null => Vec::new(),
            value => vec![value],
        };
        let is_no_header = |_| wrong(format!("has a header {name:?} that is none"));
        let parsed = HeaderName::try_from(&name).map_err(|_| is_no_header(()))?;
        for value in values {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            headers.append(&parsed, HeaderValue::try_from(text).map_err(|_| is_no_header(()))?);
        }
    }
    for cookie in prelude.cookies {
        let cookie = HeaderValue::try_from(cookie).map_err(|_| wrong("has a cookie that is none".to_owned()))?;
        headers.append(SET_COOKIE, cookie);
    }
    // Nothing holds the body to it, and the connection is another one.
    headers.remove(CONTENT_LENGTH);
    for_one_hop(&mut headers);
    Ok((status, headers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_told_in_the_form_of_x_ray() {
        let trace: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let expected = "Root=1-4bf92f35-77b34da6a3ce929d0e0e4736;Parent=00f067aa0ba902b7;Sampled=1";
        assert_eq!(x_ray(trace).unwrap(), expected);
    }

    #[test]
    fn a_failure_is_told_in_the_worker_s_words() {
        let header = HeaderValue::from_static("Unhandled");
        let rows: [(&[u8], &str, Option<&str>); 6] = [
            (br#"{"errorMessage": "no", "errorType": "ValueError", "stackTrace": []}"#, "no", Some("ValueError")),
            (br#"{"errorMessage": "no"}"#, "no", Some("Unhandled")),
            (br#"{"errorMessage": {"a": 1}, "errorType": null}"#, "{\"a\":1}", Some("Unhandled")),
            (br#"{"errorMessage": ""}"#, "Unhandled", Some("Unhandled")),
            (b"[]", "Unhandled", Some("Unhandled")),
            (b"\xff", "Unhandled", Some("Unhandled")),
        ];
        for (document, message, kind) in rows {
            let failure = failure(document, Some(&header));
            assert_eq!((failure.message.as_str(), failure.kind.as_deref()), (message, kind));
        }
        assert_eq!(failure(b"", None), FunctionFailure::new("the function failed"));
    }

    #[test]
    fn a_prelude_gives_status_and_headers() {
        let (status, headers) = prelude(
            br#"{"statusCode": 201, "headers": {"X-A": "1", "x-b": ["2", 3], "x-c": null, "Connection": "close",
                "content-length": 7}, "cookies": ["a=b", "c=d"]}"#,
        )
        .unwrap();
        assert_eq!(status, StatusCode::CREATED);
        let mut headers: Vec<_> =
            headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        headers.sort_unstable();
        assert_eq!(headers, [("set-cookie", "a=b"), ("set-cookie", "c=d"), ("x-a", "1"), ("x-b", "2"), ("x-b", "3")]);
        assert_eq!(prelude(b"{}").unwrap().0, StatusCode::OK);
    }

    #[test]
    fn what_is_no_prelude_is_refused() {
        for wrong in [
            &b""[..],
            b"[1]",
            br#"{"statusCode": 42}"#,
            br#"{"statusCode": 101}"#,
            br#"{"headers": {"a b": "1"}}"#,
            br#"{"headers": {"a": "\n"}}"#,
            br#"{"cookies": ["\n"]}"#,
        ] {
            let error = prelude(wrong).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::FunctionBroken, "{wrong:?}");
        }
    }
}
