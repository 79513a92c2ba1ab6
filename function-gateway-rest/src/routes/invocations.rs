//! Calls of functions: what comes in goes to the function, and what the function answers goes back.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{
    CallContext, Deadline, Error, ErrorKind, FunctionExecutor as _, FunctionRef, InvocationId, InvokeRequest,
    InvokeResponse, Outcome, TimedPhase, call_header, for_one_hop,
};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Api;
use crate::auth::api_key::{X_API_KEY, holds_key};
use crate::document::Checked;
use crate::extract::{Caller, InPath, invalid};
use crate::payload;
use crate::problem::{ANSWERED_BY, Problem, ProblemDocument};
use crate::responses::{Found, Guarded};

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

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(invoke))
        .route("/v1/functions/{name}/http", axum::routing::any(function_url))
        .route("/v1/functions/{name}/http/", axum::routing::any(function_url))
        .route("/v1/functions/{name}/http/{*path}", axum::routing::any(function_url))
}

/// Those whose answers are documents.
pub(super) fn document_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(validate_payload))
}

/// Executes a function and gives its answer, as it comes: its body and content type, and its status where it speaks HTTP.
///
/// `X-Function-Answered-By` says whether the function or the gateway answers, whatever the status is; the gateway's errors are
/// problem documents. The name may have a generation: `resize@7`.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/invocations",
    tag = "executions",
    params(
        ("name" = String, Path, description = "A name, or a name and a generation: `resize@7`"),
        ("X-Function-Invocation-Id" = Option<InvocationId>, Header, description = "The id that the execution is to have"),
        ("X-Function-Timeout-Ms" = Option<u32>, Header, description = "How long the caller waits, in milliseconds", minimum = 1),
    ),
    request_body(content((Vec<u8> = "application/octet-stream")), description = "The payload, of any type"),
    responses((status = "default", description = "What the function answers, or a problem document of the gateway's", headers(
        ("X-Function-Answered-By" = String, description = "`function` or `gateway`"),
        ("X-Function-Invocation-Id" = InvocationId, description = "The execution"),
        ("X-Function-Outcome" = String, description = "What the function made of it: `succeeded`, `rejected` or `failed`"),
        ("Server-Timing" = String, description = "The time of each phase so far, in milliseconds"),
    ))),
)]
async fn invoke(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<String>,
    request: Request,
) -> Result<Response, Problem> {
    call(&api, &caller, &name, request, None).await
}

/// The function's own URL: everything passes through, method, path and query as they came.
async fn function_url(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(params): InPath<std::collections::HashMap<String, String>>,
    request: Request,
) -> Result<Response, Problem> {
    let name = params.get("name").map(String::as_str).unwrap_or_default();
    // As it stands in the request, not decoded: `/v1/functions/NAME/http` and the function's part.
    let path = request.uri().path().splitn(5, '/').nth(4).and_then(|rest| rest.strip_prefix("http"));
    let path = path.unwrap_or_default().to_owned();
    call(&api, &caller, name, request, Some(path)).await
}

async fn call(
    api: &Api,
    caller: &Caller,
    name: &str,
    request: Request,
    path: Option<String>,
) -> Result<Response, Problem> {
    let function: FunctionRef = name.parse()?;
    refuse_upgrade(request.headers())?;
    let cx = context(caller, request.headers())?;
    let is_head = request.method() == Method::HEAD;
    let request = invoke_request(api, caller, request, path);
    match api.gateway.invoke(&cx, &function, request).await {
        Ok(answer) => Ok(answered(answer, is_head)),
        Err(error) => {
            let id = error.context_value("invocation").and_then(|id| HeaderValue::from_str(id).ok());
            let problem = Problem::from(error);
            Err(match id {
                Some(id) => problem.with_header(INVOCATION_ID, id),
                None => problem,
            })
        }
    }
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
    for_one_hop(&mut invoke.headers);
    for name in [header::HOST, header::CONTENT_LENGTH, header::EXPECT, TIMEOUT] {
        invoke.headers.remove(name);
    }
    if let Some(credential) = &caller.credential {
        invoke.headers.remove(credential);
    }
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

fn answered(answer: InvokeResponse, is_head: bool) -> Response {
    let InvokeResponse { status, mut headers, outcome, body, call, .. } = answer;
    for_one_hop(&mut headers);
    // The length of what would have been the body of the answer to a GET.
    if !is_head {
        headers.remove(header::CONTENT_LENGTH);
    }
    headers.insert(ANSWERED_BY, HeaderValue::from_static("function"));
    for ours in [FAILURE, SERVER_TIMING] {
        headers.remove(ours);
    }
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
        let mut timing = String::with_capacity(96);
        let timings = call.timings();
        for phase in TimedPhase::ALL {
            if let Some(took) = timings.get(phase) {
                let separator = if timing.is_empty() { "" } else { ", " };
                let micros = took.as_micros();
                let _ = write!(timing, "{separator}{};dur={}.{:03}", phase.as_str(), micros / 1000, micros % 1000);
            }
        }
        if let Some(timing) = Some(timing).filter(|timing| !timing.is_empty())
            && let Ok(timing) = HeaderValue::try_from(timing)
        {
            headers.insert(SERVER_TIMING, timing);
        }
    }
    let mut response = Response::new(payload::of_answer(body));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
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
    responses((status = 200, description = "What was found", body = Checked), Guarded, Found,
        (status = 408, description = "The body did not come in time", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, description = "The payload is larger than the limit that the answer names", body = ProblemDocument, content_type = "application/problem+json"),
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
