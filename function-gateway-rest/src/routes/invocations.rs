//! Calls of functions: what comes in goes to the function, and what the function answers goes back.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::MethodFilter;
use function_gateway_core::{
    CallContext, Deadline, Error, ErrorKind, FunctionExecutor as _, FunctionRef, InvocationId, InvokeRequest,
    InvokeResponse, Outcome, Receipt, TimedPhase, Timestamp, Timings, Waited, call_header, for_one_hop_without,
};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::steering::{PREFERENCE_APPLIED, Route, Steering, Submit};
use crate::api::Api;
use crate::auth::api_key::{X_API_KEY, holds_key};
use crate::document::{Accepted, Checked};
use crate::extract::{Below, Caller, InPath, invalid};
use crate::payload;
use crate::problem::{ANSWERED_BY, Problem, ProblemDocument};
use crate::responses::{Found, Guarded, Reads, Submits};

/// The id of an execution: on a request the one that it is to have, on an answer the one that it has.
pub(crate) const INVOCATION_ID: HeaderName = HeaderName::from_static(call_header::INVOCATION_ID);
/// How long the caller waits, in milliseconds.
const TIMEOUT: HeaderName = HeaderName::from_static("x-function-timeout-ms");
/// What the function made of the call: `succeeded`, `rejected` or `failed`.
pub(crate) const OUTCOME: HeaderName = HeaderName::from_static("x-function-outcome");
/// How the function failed, in its own words.
pub(crate) const FAILURE: HeaderName = HeaderName::from_static("x-function-failure");
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
/// So that a function can't make an answer that no client takes.
const MAX_FAILURE: usize = 512;

/// Methods that make sense for later. Of others, such as `TRACE`, only the one who waits has anything.
const FOR_LATER: MethodFilter = MethodFilter::GET
    .or(MethodFilter::HEAD)
    .or(MethodFilter::OPTIONS)
    .or(MethodFilter::POST)
    .or(MethodFilter::PUT)
    .or(MethodFilter::PATCH)
    .or(MethodFilter::DELETE);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(invoke))
        .routes(routes!(submit))
        .route("/v1/functions/{name}/http", axum::routing::any(function_url))
        .route("/v1/functions/{name}/http/", axum::routing::any(function_url))
        .route("/v1/functions/{name}/http/{*path}", axum::routing::any(function_url))
        .route("/v1/functions/{name}/submit/http", axum::routing::on(FOR_LATER, submit_url))
        .route("/v1/functions/{name}/submit/http/", axum::routing::on(FOR_LATER, submit_url))
        .route("/v1/functions/{name}/submit/http/{*path}", axum::routing::on(FOR_LATER, submit_url))
}

/// Those whose answers are documents.
pub(super) fn document_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(validate_payload))
}

/// Executes a function and gives its answer, as it comes: its body and content type, and its status where it speaks HTTP.
///
/// `X-Function-Answered-By` says whether the function or the gateway answers, whatever the status is; the gateway's errors are
/// problem documents. The name may have a generation: `resize@7`.
///
/// With `Prefer: respond-async` the call is submitted, as by `/v1/functions/{name}/submit`; with `respond-async, wait=5` the
/// gateway waits five seconds (30 at most) for the function's answer before it says so.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/invocations",
    tag = "executions",
    params(
        ("name" = String, Path, description = "A name, or a name and a generation: `resize@7`"),
        ("X-Function-Invocation-Id" = Option<InvocationId>, Header, description = "The id that the execution is to have"),
        ("X-Function-Timeout-Ms" = Option<u32>, Header, description = "How long the caller waits, in milliseconds", minimum = 1),
        ("Idempotency-Key" = Option<String>, Header, description = "Tells that two calls are one: the second gets the answer of the first"),
        ("Prefer" = Option<String>, Header, description = "`respond-async` to submit the call, which the headers of `submit` then hold for too"),
    ),
    request_body(content((Vec<u8> = "application/octet-stream")), description = "The payload, of any type"),
    responses(
        (status = 202, description = "It is accepted for later, where the gateway answers; or what the function answers", content(
            (Accepted = "application/json"), (Vec<u8> = "*/*")), headers(
            ("Location" = String, description = "Where its state is, where it is accepted for later"),
            ("Preference-Applied" = String, description = "`respond-async`, where that was followed"),
            ("X-Function-Answered-By" = String, description = "`function` or `gateway`"),
            ("X-Function-Invocation-Id" = InvocationId, description = "The execution"),
        )),
        (status = "default", description = "What the function answers, or a problem document of the gateway's", headers(
            ("X-Function-Answered-By" = String, description = "`function` or `gateway`"),
            ("X-Function-Invocation-Id" = InvocationId, description = "The execution"),
            ("X-Function-Outcome" = String, description = "What the function made of it: `succeeded`, `rejected` or `failed`"),
            ("X-Function-Failure" = String, description = "How it failed, in its own words"),
            ("Server-Timing" = String, description = "The time of each phase so far, in milliseconds"),
        )),
    ),
)]
fn invoke(
    State(api): State<Arc<Api>>,
    caller: Caller,
    below: Below,
    InPath(name): InPath<String>,
    request: Request,
) -> impl Future<Output = Result<Response, Problem>> + Send {
    Call { api, caller, below, route: Route::Invoke, path: None }.make(&name, request)
}

/// Accepts a call for later, and says so once that is committed: it is not lost any more.
///
/// The payload is checked now, and again when the function is executed, by the revision that serves then. How it is tried, and
/// what its end leads to, is in the specification's `async`.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/submit",
    tag = "executions",
    params(
        ("name" = String, Path, description = "A name, or a name and a generation, which then is the one that executes it: `resize@7`"),
        ("X-Function-Invocation-Id" = Option<InvocationId>, Header, description = "The id that the execution is to have"),
        ("X-Function-Timeout-Ms" = Option<u32>, Header, description = "How long the caller waits for it to be accepted, in milliseconds", minimum = 1),
        ("X-Function-Delay-Ms" = Option<u64>, Header, description = "How long it is to wait at least, in milliseconds"),
        ("X-Function-Not-Before" = Option<Timestamp>, Header, description = "Or before when it is not to be executed"),
        ("X-Function-Pin" = Option<bool>, Header, description = "Whether the generation that serves now is to execute it, whichever serves by then"),
        ("Idempotency-Key" = Option<String>, Header, description = "Tells that two are one: of the second nothing is accepted, and it gets the id of the first"),
    ),
    request_body(content((Vec<u8> = "application/octet-stream")), description = "The payload, of any type"),
    responses(
        (status = 202, description = "It is accepted, or was before under the same key", body = Accepted, headers(
            ("Location" = String, description = "Where its state is"),
            ("X-Function-Answered-By" = String, description = "`gateway`"),
            ("X-Function-Invocation-Id" = InvocationId, description = "The execution"),
        )),
        Guarded, Found, Submits,
    ),
)]
fn submit(
    State(api): State<Arc<Api>>,
    caller: Caller,
    below: Below,
    InPath(name): InPath<String>,
    request: Request,
) -> impl Future<Output = Result<Response, Problem>> + Send {
    Call { api, caller, below, route: Route::Submit, path: None }.make(&name, request)
}

/// The function's own URL: everything passes through, method, path and query as they came.
fn function_url(
    State(api): State<Arc<Api>>,
    caller: Caller,
    below: Below,
    request: Request,
) -> impl Future<Output = Result<Response, Problem>> + Send {
    let path = Some(own_path(&request, "http"));
    Call { api, caller, below, route: Route::FunctionUrl, path }.make_on(request)
}

/// A request to the function's own URL, for later.
fn submit_url(
    State(api): State<Arc<Api>>,
    caller: Caller,
    below: Below,
    request: Request,
) -> impl Future<Output = Result<Response, Problem>> + Send {
    let path = Some(own_path(&request, "submit/http"));
    Call { api, caller, below, route: Route::Submit, path }.make_on(request)
}

/// The name in `/v1/functions/NAME/ROUTE`. What comes behind it is the function's, and need not be UTF-8.
fn name_in(request: &Request) -> Result<String, Problem> {
    let name = request.uri().path().split('/').nth(3).unwrap_or_default();
    let name = percent_encoding::percent_decode_str(name).decode_utf8();
    name.map(Cow::into_owned).map_err(|_| invalid("the path is not right: the function's name is not UTF-8"))
}

/// The function's part of `/v1/functions/NAME/ROUTE`, as it stands in the request, not decoded.
fn own_path(request: &Request, route: &str) -> String {
    let rest = request.uri().path().splitn(5, '/').nth(4);
    rest.and_then(|rest| rest.strip_prefix(route)).unwrap_or_default().to_owned()
}

/// Who calls, and how.
struct Call {
    api: Arc<Api>,
    caller: Caller,
    below: Below,
    route: Route,
    /// The path below the function, where the request is passed on as it came.
    path: Option<String>,
}

impl Call {
    /// Makes the call of the function that the request's own path names.
    fn make_on(self, request: Request) -> impl Future<Output = Result<Response, Problem>> + Send + use<> {
        // What a tunnel would carry does not pass, and an answer to this method has no body (RFC 9110, section 9.3.6).
        let name = match *request.method() {
            Method::CONNECT => {
                let allow = HeaderValue::from_static("GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE");
                Err(Problem::method_not_allowed(request.method()).with_header(header::ALLOW, allow))
            }
            _ => name_in(&request),
        };
        let made = name.map(|name| self.make(&name, request));
        async move { made?.await }
    }

    /// Makes the call. The request is taken apart at once, so that what waits for the answer holds no more of it than it needs.
    fn make(self, name: &str, request: Request) -> impl Future<Output = Result<Response, Problem>> + Send + use<> {
        let Self { api, caller, below, route, path } = self;
        let asked = Asked::of(&api, &caller, (route, path), name, request);
        async move {
            let Asked { cx, function, request, submit, is_head } = asked?;
            let result = match submit {
                None => api.gateway.invoke(&cx, &function, *request).await.map(|answer| answered(answer, is_head)),
                Some(submit) => Box::pin(submitted(&api, &below, &cx, &function, *request, *submit)).await,
            };
            result.map_err(of_execution)
        }
    }
}

/// What a request asks for.
struct Asked {
    cx: CallContext,
    function: FunctionRef,
    request: Box<InvokeRequest>,
    /// How it is to be submitted, where it is not executed at once.
    submit: Option<Box<Submit>>,
    is_head: bool,
}

impl Asked {
    fn of(
        api: &Api,
        caller: &Caller,
        (route, path): (Route, Option<String>),
        name: &str,
        request: Request,
    ) -> Result<Self, Problem> {
        let function: FunctionRef = name.parse()?;
        refuse_upgrade(request.headers())?;
        let cx = context(caller, request.headers())?;
        let is_head = request.method() == Method::HEAD;
        let mut request = Box::new(invoke_request(api, caller, request, path));
        let Steering { submit, idempotency_key } = Steering::take(&mut request.headers, route)?;
        request.idempotency_key = idempotency_key;
        Ok(Self { cx, function, request, submit: submit.map(Box::new), is_head })
    }
}

/// Submits a call, and answers that it is accepted, or with its answer where that comes within the caller's patience.
async fn submitted(
    api: &Api,
    below: &Below,
    cx: &CallContext,
    function: &FunctionRef,
    request: InvokeRequest,
    Submit { options, patience, is_preferred }: Submit,
) -> function_gateway_core::Result<Response> {
    let receipt = api.gateway.submit(cx, function, request, options).await?;
    let answer = match patience.is_zero() {
        true => None,
        false => in_time(api, cx, receipt, patience).await?,
    };
    Ok(answer.unwrap_or_else(|| accepted(receipt, below, is_preferred)))
}

/// A problem that names the execution that it is about, where there is one, and says how long that took.
pub(super) fn of_execution(error: Error) -> Problem {
    let id = error.context_value("invocation").and_then(|id| HeaderValue::from_str(id).ok());
    let timing = error.timings().and_then(|timings| server_timing(&timings));
    let headers = [(INVOCATION_ID, id), (SERVER_TIMING, timing)];
    headers.into_iter().fold(Problem::from(error), |problem, (name, value)| match value {
        Some(value) => problem.with_header(name, value),
        None => problem,
    })
}

/// The answer to what was submitted, where it comes within the caller's patience and is kept.
async fn in_time(
    api: &Api,
    cx: &CallContext,
    receipt: Receipt,
    patience: Duration,
) -> function_gateway_core::Result<Option<Response>> {
    let Ok(Waited::Ended(_)) = api.gateway.wait(cx, receipt.id, patience).await else { return Ok(None) };
    match api.gateway.result(cx, receipt.id).await {
        Ok(answer) => Ok(Some(answered(answer, false))),
        Err(error) if error.kind() == ErrorKind::ResultNotKept => Ok(None),
        Err(error) => Err(error),
    }
}

fn accepted(receipt: Receipt, below: &Below, is_preferred: bool) -> Response {
    let status_url = below.execution(receipt.id);
    let location = HeaderValue::try_from(&status_url);
    let mut response = (StatusCode::ACCEPTED, Json(Accepted::new(receipt, status_url))).into_response();
    let headers = response.headers_mut();
    headers.insert(ANSWERED_BY, HeaderValue::from_static("gateway"));
    headers.extend(location.ok().map(|location| (header::LOCATION, location)));
    headers.extend(HeaderValue::try_from(receipt.id.to_string()).ok().map(|id| (INVOCATION_ID, id)));
    if is_preferred {
        headers.insert(PREFERENCE_APPLIED, HeaderValue::from_static("respond-async"));
    }
    response
}

/// A connection that changes its protocol can't be passed on. That of HTTP/2 may be left unanswered (RFC 9110, section 7.8).
fn refuse_upgrade(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::UPGRADE) {
        Some(protocol) if !protocol.as_bytes().eq_ignore_ascii_case(b"h2c") => {
            let message = format!("connections are not upgraded: {protocol:?} does not pass this gateway");
            Err(Error::new(ErrorKind::Unsupported, message).into())
        }
        _ => Ok(()),
    }
}

fn context(caller: &Caller, headers: &HeaderMap) -> Result<CallContext, Problem> {
    let mut cx = caller.context();
    if let Some(id) = headers.get(INVOCATION_ID) {
        let id = id.to_str().ok().and_then(|id| id.parse::<InvocationId>().ok());
        cx = cx.with_invocation_id(id.ok_or_else(|| invalid("`X-Function-Invocation-Id` is a UUID"))?);
    }
    if let Some(timeout) = headers.get(TIMEOUT) {
        let millis = timeout.to_str().ok().and_then(|millis| millis.parse::<u32>().ok()).filter(|millis| *millis > 0);
        let millis = millis.ok_or_else(|| invalid("`X-Function-Timeout-Ms` is a whole number from 1"))?;
        cx = cx.with_deadline(Deadline::after(Duration::from_millis(millis.into())));
    }
    Ok(cx)
}

/// What the function gets: all but what is between the client and this gateway.
fn invoke_request(api: &Api, caller: &Caller, request: Request, path: Option<String>) -> InvokeRequest {
    let (parts, body) = request.into_parts();
    let mut invoke = InvokeRequest::new(payload::of_request(body, api.options.upload_idle_timeout));
    invoke.headers = parts.headers;
    for_one_hop_without(&mut invoke.headers, |name| {
        matches!(name, "host" | "content-length" | "expect")
            || TIMEOUT == name
            || caller.credential.iter().any(|header| header == name)
    });
    // Also a key that was sent beside the credential, or to a gateway that asks for none.
    for name in [header::AUTHORIZATION, X_API_KEY] {
        if invoke.headers.get_all(&name).iter().any(holds_key) {
            invoke.headers.remove(name);
        }
    }
    invoke.query = parts.uri.query().map(str::to_owned);
    if let Some(path) = path {
        invoke.method = parts.method;
        invoke.path = path.into();
    }
    invoke
}

pub(super) fn answered(answer: InvokeResponse, is_head: bool) -> Response {
    let InvokeResponse { status, mut headers, outcome, body, call, .. } = answer;
    for_one_hop_without(&mut headers, |name| {
        // The length of what would have been the body of the answer to a GET stays.
        (name == "content-length" && !is_head) || FAILURE == name || SERVER_TIMING == name
    });
    headers.insert(ANSWERED_BY, HeaderValue::from_static("function"));
    let outcome = match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Rejected => "rejected",
        Outcome::Failed(failure) => {
            if let Ok(value) = HeaderValue::from_str(&header_text(&failure.message)) {
                headers.insert(FAILURE, value);
            }
            "failed"
        }
        _ => "unknown",
    };
    headers.insert(OUTCOME, HeaderValue::from_static(outcome));
    if let Some(call) = call {
        if let Ok(id) = HeaderValue::try_from(call.id.to_string()) {
            headers.insert(INVOCATION_ID, id);
        }
        let mut timings = call.timings();
        // A stream has begun and not ended. What was kept took no time of its own.
        if timings.get(TimedPhase::Total).is_none() && (body.is_stream() || timings != Timings::default()) {
            timings.set(TimedPhase::Total, call.elapsed());
        }
        if let Some(timing) = server_timing(&timings) {
            headers.insert(SERVER_TIMING, timing);
        }
    }
    let mut response = Response::new(payload::of_answer(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// The time of each phase that occurred, as metrics of `Server-Timing` (<https://www.w3.org/TR/server-timing/>).
fn server_timing(timings: &Timings) -> Option<HeaderValue> {
    let mut text = String::with_capacity(96);
    for phase in TimedPhase::ALL {
        if let Some(took) = timings.get(phase) {
            let separator = if text.is_empty() { "" } else { ", " };
            text.extend([separator, phase.as_str(), ";dur="]);
            push_millis(&mut text, took);
        }
    }
    (!text.is_empty()).then(|| HeaderValue::try_from(text).ok()).flatten()
}

/// Adds a time in milliseconds, with three decimal places.
fn push_millis(text: &mut String, time: Duration) {
    let _ = write!(text, "{}.", time.as_millis());
    let micros = time.subsec_micros() % 1000;
    text.extend([micros / 100, micros / 10 % 10, micros % 10].map(|digit| char::from_digit(digit, 10).unwrap_or('0')));
}

/// A text as one line of visible ASCII characters.
fn header_text(text: &str) -> String {
    let visible = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { ' ' };
    let mut line: String = text.chars().take(MAX_FAILURE).map(visible).collect();
    line.truncate(line.trim_end().len());
    line
}

/// Says what is wrong with a payload, without executing the function. It is that of the body, of any type.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/validate",
    tag = "executions",
    params(("name" = String, Path, description = "A name, or a name and a generation: `resize@7`")),
    request_body(content((Vec<u8> = "application/octet-stream")), description = "The payload, of any type"),
    responses((status = 200, description = "What was found", body = Checked), Guarded, Found, Reads,
        (status = 504, description = "It took longer than a call of the function may", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 501, description = "The name has an alias, which are reserved", body = ProblemDocument, content_type = "application/problem+json")),
)]
async fn validate_payload(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<String>,
    request: Request,
) -> Result<Response, Problem> {
    let function: FunctionRef = name.parse()?;
    let request = invoke_request(&api, &caller, request, None);
    let found = api.gateway.check_payload(&caller.context(), &function, request).await?;
    Ok(Json(Checked::from(found)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_milliseconds_with_three_places() {
        for (micros, expected) in [(0, "0.000"), (7, "0.007"), (1_050, "1.050"), (12_345_678, "12345.678")] {
            let mut text = String::new();
            push_millis(&mut text, Duration::from_micros(micros));
            assert_eq!(text, expected);
        }
    }
}
