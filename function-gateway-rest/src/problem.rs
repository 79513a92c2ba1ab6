//! How an error looks to a client: a problem document (RFC 9457).

use axum::response::{IntoResponse, Response};
use function_gateway_core::{Delivery, Error, ErrorClass, ErrorKind, InvalidName, Retry, Violation};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

/// The media type of a problem document.
pub(crate) const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");
/// Says on every answer to a call, and on every problem, who answers: `function` or `gateway`.
pub(crate) const ANSWERED_BY: HeaderName = HeaderName::from_static("x-function-answered-by");
/// What a type begins with; the code follows.
const TYPE: &str = "urn:function-gateway:error:";
/// After how long to try again where the error itself does not say.
pub(crate) const RETRY_AFTER_SECONDS: u64 = 1;
/// The same where somebody has to repair something first.
const REPAIR_SECONDS: u64 = 60;

/// What went wrong with a request.
#[derive(Debug, Clone)]
pub(crate) struct Problem(Box<ProblemDocument>);

/// A problem document (RFC 9457, `application/problem+json`).
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemDocument {
    /// A URN that ends in the code.
    #[serde(rename = "type")]
    pub(crate) type_uri: String,
    /// What errors of this code have in common.
    pub(crate) title: String,
    /// The HTTP status.
    pub(crate) status: u16,
    /// What went wrong this time.
    pub(crate) detail: String,
    /// The stable code, which a program can go by.
    pub(crate) code: String,
    /// Whose failure it is.
    pub(crate) class: ErrorClass,
    /// Whether trying again may help: `never`, `transient` (later, it may) or `exhausted` (the gateway has tried again already).
    pub(crate) retry: &'static str,
    /// Whether the function can have run.
    pub(crate) delivery: Delivery,
    /// What was being done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<&'static str>,
    /// What it was being done to, as names and values.
    #[serde(skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub(crate) context: Map<String, Value>,
    /// Everything that is wrong in what was sent.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) violations: Vec<Violation>,
    /// The id of the request, for whoever asks the gateway's operators about it.
    pub(crate) request_id: String,
    /// Headers of the answer.
    #[serde(skip)]
    #[schema(ignore)]
    headers: HeaderMap,
}

impl Problem {
    /// A problem that only a request by HTTP can have.
    fn http(status: StatusCode, code: &'static str, title: &'static str, detail: String) -> Self {
        Self(Box::new(ProblemDocument {
            type_uri: format!("{TYPE}{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            code: code.to_owned(),
            class: ErrorClass::Caller,
            retry: Retry::Never.as_str(),
            delivery: Delivery::NotSent,
            operation: None,
            context: Map::new(),
            violations: Vec::new(),
            request_id: String::new(),
            headers: HeaderMap::new(),
        }))
    }

    /// The path exists, and not with this method. The answer's `Allow` says with which.
    pub(crate) fn method_not_allowed(method: &http::Method) -> Self {
        let detail = format!("there is no {method} here; the header Allow says what there is");
        let title = "The resource exists, and does not take this method.";
        Self::http(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", title, detail)
    }

    /// The document that was sent is of a type that is not read here.
    pub(crate) fn unsupported_media_type(wanted: &'static str, sent: Option<&HeaderValue>) -> Self {
        let sent =
            sent.and_then(|sent| sent.to_str().ok()).map_or_else(|| "none".to_owned(), |sent| format!("{sent:?}"));
        let detail = format!("the request's content type is {sent}; {wanted} is needed");
        let title = "The body is of a type that is not read here.";
        Self::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", title, detail)
    }

    /// There is nothing at a path.
    pub(crate) fn no_such_path(path: &str) -> Self {
        Error::new(ErrorKind::NotFound, format!("there is nothing at {path}; /openapi.json lists what there is")).into()
    }

    /// Adds a header to the answer.
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.append(name, value);
        self
    }

    /// Whether it is that of an error of a kind.
    pub(crate) fn is(&self, kind: ErrorKind) -> bool {
        self.0.code == kind.code()
    }

    /// The document, to be changed.
    pub(crate) fn document(&mut self) -> &mut ProblemDocument {
        &mut self.0
    }

    pub(crate) fn into_document(self) -> ProblemDocument {
        *self.0
    }

    pub(crate) fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// The answer, once the id of its request is known. `response` is what [`into_response`](IntoResponse::into_response) gave,
    /// with what has been added to it on its way.
    pub(crate) fn finish(mut self, mut response: Response, request_id: &str) -> Response {
        request_id.clone_into(&mut self.0.request_id);
        let headers = response.headers_mut();
        headers.extend(std::mem::take(&mut self.0.headers));
        headers.insert(header::CONTENT_TYPE, PROBLEM_JSON);
        headers.insert(ANSWERED_BY, HeaderValue::from_static("gateway"));
        // A body was never there, and its length is another one.
        headers.remove(header::CONTENT_LENGTH);
        *response.body_mut() = serde_json::to_vec(&*self.0).unwrap_or_default().into();
        response
    }
}

impl From<Error> for Problem {
    /// Takes what is public of an error. The rest goes to the host's log.
    fn from(error: Error) -> Self {
        let kind = error.kind();
        tracing::debug!(target: "function_gateway::rest", ?error, "refused");
        if matches!(error.class(), ErrorClass::Gateway | ErrorClass::Engine) && kind != ErrorKind::ShuttingDown {
            tracing::warn!(target: "function_gateway::rest", ?error, "a request failed");
        }
        let mut headers = HeaderMap::new();
        let status = StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let is_for_now = matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let may_come_again = is_for_now || kind == ErrorKind::InProgress;
        if may_come_again {
            let usual = if error.retry() == Retry::Never { REPAIR_SECONDS } else { RETRY_AFTER_SECONDS };
            let seconds = error.retry_after().map_or(usual, |after| {
                after.as_secs().saturating_add(u64::from(after.subsec_nanos() > 0)).max(RETRY_AFTER_SECONDS)
            });
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        let context = error.context().iter().map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str())));
        Self(Box::new(ProblemDocument {
            type_uri: format!("{TYPE}{}", kind.code()),
            title: kind.meaning().trim().to_owned(),
            status: status.as_u16(),
            detail: error.message().to_owned(),
            code: kind.code().to_owned(),
            class: error.class(),
            retry: error.retry().as_str(),
            delivery: error.delivery(),
            operation: error.operation(),
            context: context.collect(),
            violations: error.violations().to_vec(),
            request_id: String::new(),
            headers,
        }))
    }
}

impl From<InvalidName> for Problem {
    fn from(error: InvalidName) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for Problem {
    /// An answer without a body, which gets one where the request's id is known.
    fn into_response(self) -> Response {
        let mut response = Response::new(axum::body::Body::empty());
        *response.status_mut() = self.status();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_private_stays_private() {
        let error = Error::new(ErrorKind::Store, "the store failed")
            .with_detail("host db-7")
            .with_source(std::io::Error::other("password=hunter2"));
        let problem = Problem::from(error);
        let text = serde_json::to_string(&problem.into_document()).unwrap();
        assert!(!text.contains("db-7") && !text.contains("hunter2"), "{text}");
        assert!(text.contains("urn:function-gateway:error:store"), "{text}");
    }

    #[test]
    fn who_may_try_again_is_told_when() {
        for (kind, after, expected) in [
            (ErrorKind::RateLimited, Some(Duration::from_millis(1500)), Some("2")),
            (ErrorKind::RateLimited, Some(Duration::from_millis(3)), Some("1")),
            (ErrorKind::ShuttingDown, None, Some("1")),
            (ErrorKind::NotReady, None, Some("1")),
            (ErrorKind::InProgress, None, Some("1")),
            (ErrorKind::Conflict, None, None),
            (ErrorKind::NotFound, None, None),
        ] {
            let mut error = Error::new(kind, "x");
            if let Some(after) = after {
                error = error.with_retry_after(after);
            }
            let problem = Problem::from(error);
            let told = problem.0.headers.get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(told, expected, "{kind}");
        }
        let broken = Problem::from(Error::new(ErrorKind::NotReady, "it failed").with_retry(Retry::Never));
        assert_eq!(broken.0.headers[header::RETRY_AFTER], "60");
    }
}
