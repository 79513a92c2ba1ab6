//! The format `envelope`: JSON with a context beside the payload, both ways. See `docs/architecture.md`.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::invocation::{Injected, JSON};
use crate::{
    CallContext, Error, ErrorKind, FunctionFailure, InvokeResponse, LogSink, Outcome, Result, Revision, SecretDelivery,
    Timestamp, Violation,
};

#[derive(Serialize)]
struct Request<'a> {
    context: Value,
    payload: &'a RawValue,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(default)]
    context: AnswerContext,
    #[serde(borrow, default)]
    payload: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct AnswerContext {
    #[serde(default)]
    error: Option<AnswerError>,
    #[serde(default)]
    logs: AnswerLogs,
}

#[derive(Deserialize)]
struct AnswerError {
    message: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize, Default)]
struct AnswerLogs {
    #[serde(default)]
    stdout: Vec<String>,
    #[serde(default)]
    stderr: Vec<String>,
}

/// Puts a payload and the call's context into an envelope. An empty payload is `null`.
pub(crate) fn wrap(cx: &CallContext, revision: &Revision, payload: &Bytes, secrets: &[Injected]) -> Result<Bytes> {
    let payload = read(payload)?;
    let mut context = json!({
        "invocation_id": cx.invocation_id(),
        "function": revision.key.name,
        "tenant": revision.key.tenant,
        "generation": revision.generation,
        "attempt": cx.attempt(),
        "traceparent": cx.trace(),
        "deadline": cx.deadline().map(|deadline| Timestamp::now().plus(deadline.remaining())),
    });
    let mut values = Map::new();
    for binding in &revision.spec.secrets {
        let SecretDelivery::Envelope(field) = &binding.deliver else { continue };
        let injected = secrets.iter().find(|injected| injected.name == binding.secret);
        if let Some(injected) = injected {
            let value = injected.value.expose_str();
            let value = value.map_err(|error| {
                error.with_context("secret", binding.secret.as_str()).with_context("field", field.as_str())
            })?;
            values.insert(field.clone(), Value::from(value));
        }
    }
    if let Some(context) = context.as_object_mut() {
        context.insert("secrets".to_owned(), values.into());
    }
    let bytes = serde_json::to_vec(&Request { context, payload }).map_err(|error| {
        Error::new(ErrorKind::Internal, "the function's envelope could not be written").with_source(error)
    })?;
    Ok(bytes.into())
}

/// The payload as it goes into an envelope.
fn read(payload: &[u8]) -> Result<&RawValue> {
    let payload = if payload.is_empty() { &b"null"[..] } else { payload };
    serde_json::from_slice(payload).map_err(|error| {
        let what = "the payload is not JSON, which the function's envelope needs";
        no_json(ErrorKind::InvalidInput, what, payload, &error)
    })
}

/// Why a payload can't be put into an envelope, if so.
pub(crate) fn check(payload: &[u8]) -> Option<Violation> {
    let error = read(payload).err()?;
    let at = |key| error.context_value(key).unwrap_or_default();
    Some(Violation::new("", format!("{} (line {}, column {})", error.message(), at("line"), at("column"))))
}

/// Says where bytes stop to be what they should be.
fn no_json(kind: ErrorKind, what: &'static str, bytes: &[u8], error: &serde_json::Error) -> Error {
    let message = match std::str::from_utf8(bytes) {
        Ok(_) => what.to_owned(),
        Err(not_text) => format!("{what}: it is not UTF-8 after the first {} bytes", not_text.valid_up_to()),
    };
    Error::new(kind, message)
        .with_context("line", error.line().to_string())
        .with_context("column", error.column().to_string())
}

/// Takes an answer out of its envelope. A failure that the protocol itself tells of (an exit status) stays one,
/// whatever stands in the body.
pub(crate) fn unwrap(mut response: InvokeResponse, logs: &LogSink) -> Result<InvokeResponse> {
    let Some(body) = response.body.as_bytes().cloned() else {
        return Err(Error::new(ErrorKind::Internal, "an envelope was not read whole"));
    };
    let answer: Answer<'_> = match serde_json::from_slice(&body) {
        Ok(answer) => answer,
        Err(_) if !response.outcome.is_success() => return Ok(response),
        Err(error) => {
            let what = "the function's answer is not an envelope";
            return Err(no_json(ErrorKind::InvalidOutput, what, &body, &error).with_detail(error.to_string()));
        }
    };
    for line in answer.context.logs.stdout.iter().chain(&answer.context.logs.stderr) {
        logs.write(line.as_bytes());
        logs.write(b"\n");
    }
    if let Some(AnswerError { message, kind }) = answer.context.error {
        let mut failure = match response.outcome {
            Outcome::Failed(failure) => failure,
            Outcome::Succeeded | Outcome::Rejected => FunctionFailure::default(),
        };
        failure.message = message;
        failure.kind = kind;
        response.outcome = Outcome::Failed(failure);
        if response.status.is_success() {
            response.status = http::StatusCode::INTERNAL_SERVER_ERROR;
        }
    }
    let payload = answer.payload.map_or("null", RawValue::get);
    response.headers.insert(CONTENT_TYPE, JSON);
    response.body = Bytes::copy_from_slice(payload.as_bytes()).into();
    Ok(response)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::{
        FunctionId, FunctionKey, FunctionSpec, Generation, Principal, ProcessWorkload, RevisionReason, Secret,
        SecretBinding,
    };

    fn answer(status: StatusCode, body: &'static str) -> Result<InvokeResponse> {
        unwrap(InvokeResponse::new(status, body), &LogSink::detached(100))
    }

    fn payload(response: &InvokeResponse) -> &[u8] {
        response.body.as_bytes().unwrap()
    }

    #[test]
    fn a_payload_is_taken_out() {
        let response = answer(StatusCode::OK, r#"{"context":{"error":null},"payload":{"a":1}}"#).unwrap();
        assert_eq!(payload(&response), br#"{"a":1}"#);
        assert_eq!(response.outcome, Outcome::Succeeded);
    }

    #[test]
    fn an_error_of_the_function_is_its_outcome() {
        let body = r#"{"context":{"error":{"type":"TypeError","message":"no"}},"payload":null}"#;
        let response = answer(StatusCode::OK, body).unwrap();
        let Outcome::Failed(failure) = response.outcome else { panic!("not failed") };
        assert_eq!((failure.message.as_str(), failure.kind.as_deref()), ("no", Some("TypeError")));
        assert_eq!(response.status, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn no_envelope_is_an_invalid_output_unless_the_function_failed() {
        let error = answer(StatusCode::OK, "hello").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOutput);
        let response = answer(StatusCode::INTERNAL_SERVER_ERROR, "hello").unwrap();
        assert_eq!(payload(&response), b"hello");
    }

    #[test]
    fn what_is_not_utf8_is_refused_with_its_place() {
        let binding = SecretBinding::envelope("key".parse().unwrap(), "api_key");
        let spec = FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("cat")).with_secret(binding);
        let key = FunctionKey::new("acme".parse().unwrap(), "f".parse().unwrap());
        let (created, principal) = ((Timestamp::now(), "ada".parse().unwrap()), "ada".parse().unwrap());
        let cx = CallContext::new(Principal::new(key.tenant.clone(), principal));
        let revision =
            Revision::new(key, FunctionId::generate(), Generation::FIRST, spec, created, RevisionReason::Created);

        let error = wrap(&cx, &revision, &Bytes::from_static(b"{\"a\": \"\xff\"}"), &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().ends_with("it is not UTF-8 after the first 7 bytes"), "{error}");
        let error = wrap(&cx, &revision, &Bytes::from_static(b"{\n\"a\""), &[]).unwrap_err();
        assert_eq!((error.context_value("line"), error.context_value("column")), (Some("2"), Some("3")));
        assert!(!error.message().contains("UTF-8"), "{error}");

        let secret = Injected { name: "key".parse().unwrap(), value: Secret::new(b"canary\xff".to_vec()) };
        let error = wrap(&cx, &revision, &Bytes::new(), &[secret]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Misconfigured);
        assert_eq!((error.context_value("secret"), error.context_value("field")), (Some("key"), Some("api_key")));
        assert!(error.message().contains("not valid UTF-8") && !format!("{error:?}").contains("canary"), "{error:?}");

        let body = Bytes::from_static(b"{\"payload\": \"\xff\"}");
        let error = unwrap(InvokeResponse::new(StatusCode::OK, body), &LogSink::detached(100)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOutput);
        assert!(error.message().ends_with("it is not UTF-8 after the first 13 bytes"), "{error}");
    }

    #[test]
    fn logs_go_to_the_log() {
        let logs = LogSink::detached(100);
        let body = r#"{"context":{"logs":{"stdout":["a"],"stderr":["b"]}},"payload":1}"#;
        unwrap(InvokeResponse::new(StatusCode::OK, body), &logs).unwrap();
        assert_eq!(logs.contents(), b"a\nb\n");
    }
}
