//! Functions: create, read, change, delete, list; their revisions and logs.

use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, Request, State};
use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{
    DriverName, Error, ErrorKind, Function, FunctionFilter, FunctionManager as _, FunctionName, FunctionSpec,
    Generation, LogQuery, Phase, Precondition, PrincipalId, Timestamp, Violation,
};
use http::header::{self, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::etag::{self, Etag};
use super::logs;
use crate::api::Api;
use crate::document::{
    Checked, FunctionDocument, List, LogLineDocument, NewFunction, RevisionDocument, RollBack, ScaleTo,
};
use crate::extract::{
    Caller, Document, InPath, InQuery, NoQuery, RevisionInPath, document_bytes, labels, page_request, read_json,
    read_value,
};
use crate::problem::{Problem, ProblemDocument};
use crate::responses::{Asks, Changes, Found, Guarded, Optional, Reads, Specified, Typed};

type Answer = Result<Response, Problem>;

const MERGE_PATCH: &str = "application/merge-patch+json";

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(read, replace, patch, delete))
        .routes(routes!(validate))
        .routes(routes!(revisions))
        .routes(routes!(revision))
        .routes(routes!(roll_back))
        .routes(routes!(rotate_secrets))
        .routes(routes!(scale))
}

/// Those whose answers are streams.
pub(super) fn streaming_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(function_logs))
}

/// On which condition a function is changed.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Condition {
    /// Only if this is the newest generation. Unlike `If-Match`, it does not mind changes of status.
    generation: Option<Generation>,
}

/// Which functions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Created by this principal; `me` is the caller.
    #[param(max_length = 256)]
    owner: Option<PrincipalId>,
    /// With this label, as `key=value`; all of several.
    #[serde(default)]
    #[param(value_type = Vec<String>)]
    label: Vec<String>,
    /// In this phase.
    phase: Option<Phase>,
    /// On this driver.
    driver: Option<DriverName>,
    /// Whose name starts with this.
    prefix: Option<String>,
    /// How many at most: 1 to 1,000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the list goes on: `next` of the part before.
    cursor: Option<String>,
}

/// Creates a function, and waits until it is ready (`Prefer: wait=5` for five seconds, `Prefer: respond-async` not at all). Its
/// `status.phase` says how far it is.
#[utoipa::path(
    post,
    path = "/v1/functions",
    tag = "functions",
    request_body = NewFunction,
    params(("Prefer" = Option<String>, Header, description = "`wait=SECONDS` or `respond-async` (RFC 7240)")),
    responses(
        (status = 201, description = "It is created", body = FunctionDocument, headers(
            ("Location" = String, description = "Its path"), ("ETag" = String, description = "Its version"))),
        (status = 409, description = "There is one of the name", body = ProblemDocument, content_type = "application/problem+json"),
        Guarded, Reads, Typed, Specified, Asks,
    ),
)]
async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
    Document(new): Document<NewFunction>,
) -> Answer {
    let cx = caller.context_of_change(&headers);
    let spec: FunctionSpec = read_value(new.spec, ErrorKind::InvalidSpec, "/spec")?;
    let function = api.gateway.create(&cx, &new.name, spec).await.map_err(below_spec)?;
    let mut response = (StatusCode::CREATED, of_function(&function)).into_response();
    let location = format!("{}/{}", uri.path().trim_end_matches('/'), new.name);
    if let Ok(location) = HeaderValue::try_from(location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

/// Violations stand in the specification; here that is a part of the document.
fn below_spec(error: Error) -> Problem {
    let mut problem = Problem::from(error);
    for Violation { pointer, .. } in &mut problem.document().violations {
        pointer.insert_str(0, "/spec");
    }
    problem
}

fn of_function(function: &Function) -> Response {
    let mut response = Json(FunctionDocument::from(function)).into_response();
    Etag::of_function(function).set(&mut response);
    response
}

/// Lists functions of the caller's tenant, in the order of their names.
#[utoipa::path(
    get,
    path = "/v1/functions",
    tag = "functions",
    params(Filter),
    responses((status = 200, description = "A part of the list", body = List<FunctionDocument>), Guarded),
)]
async fn list(State(api): State<Arc<Api>>, caller: Caller, InQuery(query): InQuery<Filter>) -> Answer {
    let mut filter = FunctionFilter::all();
    filter.owner = query.owner.map(|owner| caller.named(owner));
    filter.labels = labels(&query.label)?;
    filter.phase = query.phase;
    filter.driver = query.driver;
    filter.name_prefix = query.prefix;
    let page = page_request(query.limit, query.cursor)?;
    let page = api.gateway.list(&caller.context(), &filter, &page).await?;
    Ok(Json(List::of(page, |function| FunctionDocument::from(&*function))).into_response())
}

/// Reads a function.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}",
    tag = "functions",
    params(("name" = FunctionName, Path), ("If-None-Match" = Option<String>, Header, description = "The ETag that the client has")),
    responses(
        (status = 200, description = "The function", body = FunctionDocument, headers(("ETag" = String, description = "Its version"))),
        (status = 304, description = "The client has it as it is"),
        Guarded, Found,
    ),
)]
async fn read(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(name): InPath<FunctionName>,
    headers: HeaderMap,
) -> Answer {
    let function = api.gateway.get(&caller.context(), &name).await?;
    Ok(match Etag::of_function(&function).not_modified(&headers) {
        Some(response) => response,
        None => of_function(&function),
    })
}

/// The condition of a change: `If-Match`, the parameter `generation`, or both.
async fn condition(
    api: &Api,
    caller: &Caller,
    name: &FunctionName,
    headers: &HeaderMap,
    query: &Condition,
) -> Result<Precondition, Problem> {
    let mut condition = Precondition::none();
    condition.generation = query.generation;
    if headers.contains_key(header::IF_NONE_MATCH) {
        // For a method that changes something, a false one means that nothing is done (RFC 9110, section 13.1.2).
        let function = api.gateway.get(&caller.context(), name).await?;
        if Etag::of_function(&function).not_modified(headers).is_some() {
            let message = "the function is what If-None-Match excludes";
            return Err(Error::new(ErrorKind::PreconditionFailed, message)
                .with_context("function", name.as_str())
                .into());
        }
    }
    if let Some(wanted) = etag::if_match(headers)? {
        let function = api.gateway.get(&caller.context(), name).await?;
        if !wanted.includes(&Etag::of_function(&function)) {
            let message = "the function is not what If-Match names any more: read it and decide again";
            return Err(Error::new(ErrorKind::PreconditionFailed, message)
                .with_context("function", name.as_str())
                .into());
        }
        condition.version = wanted.is_one().then_some(function.version);
    }
    Ok(condition)
}

/// Replaces a function's specification. What serves goes on until the new generation is ready.
#[utoipa::path(
    put,
    path = "/v1/functions/{name}",
    tag = "functions",
    params(("name" = FunctionName, Path), Condition,
        ("If-Match" = Option<String>, Header, description = "Only if its ETag is still this"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS` or `respond-async` (RFC 7240)")),
    request_body = FunctionSpec,
    responses(
        (status = 200, description = "It is changed", body = FunctionDocument, headers(("ETag" = String, description = "Its version"))),
        Guarded, Found, Reads, Typed, Specified, Changes, Asks,
    ),
)]
async fn replace(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<FunctionName>,
    InQuery(query): InQuery<Condition>,
    request: Request,
) -> Answer {
    let headers = request.headers().clone();
    let cx = caller.context_of_change(&headers);
    let bytes = document_bytes(request, &api, "application/json").await?;
    let spec: FunctionSpec = read_json(&bytes, ErrorKind::InvalidSpec)?;
    let condition = condition(&api, &caller, &name, &headers, &query).await?;
    Ok(of_function(&*api.gateway.update(&cx, &name, spec, condition).await?))
}

/// Changes a part of a function's specification, by a JSON merge patch (RFC 7396) of it.
#[utoipa::path(
    patch,
    path = "/v1/functions/{name}",
    tag = "functions",
    params(("name" = FunctionName, Path), Condition,
        ("If-Match" = Option<String>, Header, description = "Only if its ETag is still this"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS` or `respond-async` (RFC 7240)")),
    request_body(content = Object, content_type = "application/merge-patch+json"),
    responses(
        (status = 200, description = "It is changed", body = FunctionDocument, headers(("ETag" = String, description = "Its version"))),
        Guarded, Found, Reads, Typed, Specified, Changes, Asks,
    ),
)]
async fn patch(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<FunctionName>,
    InQuery(query): InQuery<Condition>,
    request: Request,
) -> Answer {
    let headers = request.headers().clone();
    let cx = caller.context_of_change(&headers);
    let bytes = document_bytes(request, &api, MERGE_PATCH).await?;
    let patch: Value = read_json(&bytes, ErrorKind::InvalidArgument)?;
    if !patch.is_object() {
        return Err(crate::extract::invalid("a merge patch of a specification is a JSON object"));
    }
    let mut condition = condition(&api, &caller, &name, &headers, &query).await?;
    let is_conditional = condition != Precondition::none();
    loop {
        let function = api.gateway.get(&caller.context(), &name).await?;
        let mut spec = serde_json::to_value(&function.spec).unwrap_or_default();
        merge(&mut spec, patch.clone());
        let spec: FunctionSpec = read_value(spec, ErrorKind::InvalidSpec, "")?;
        if condition.generation.is_none() {
            condition.generation = Some(function.generation);
        }
        match api.gateway.update(&cx, &name, spec, condition).await {
            // The patch is of what is there by now.
            Err(error) if error.kind() == ErrorKind::PreconditionFailed && !is_conditional => {
                condition = Precondition::none();
            }
            result => return Ok(of_function(&*result?)),
        }
    }
}

/// The algorithm of RFC 7396, section 2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else { return };
    for (name, value) in patch {
        match value {
            Value::Null => drop(target.remove(&name)),
            value => merge(target.entry(name).or_insert(Value::Null), value),
        }
    }
}

/// Deletes a function. It gets no call from now on; its executions stay.
#[utoipa::path(
    delete,
    path = "/v1/functions/{name}",
    tag = "functions",
    params(("name" = FunctionName, Path), Condition,
        ("If-Match" = Option<String>, Header, description = "Only if its ETag is still this"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS` or `respond-async` (RFC 7240)")),
    responses(
        (status = 204, description = "It is gone"),
        (status = 202, description = "It is being removed; the engine takes longer", body = FunctionDocument, headers(("ETag" = String, description = "Its version"))),
        Guarded, Found, Changes,
    ),
)]
async fn delete(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<FunctionName>,
    InQuery(query): InQuery<Condition>,
    headers: HeaderMap,
) -> Answer {
    let cx = caller.context_of_change(&headers);
    let condition = condition(&api, &caller, &name, &headers, &query).await?;
    Ok(match api.gateway.delete(&cx, &name, condition).await? {
        None => StatusCode::NO_CONTENT.into_response(),
        Some(function) => (StatusCode::ACCEPTED, of_function(&function)).into_response(),
    })
}

/// Says what is wrong with a specification, without storing anything.
#[utoipa::path(
    post,
    path = "/v1/validate",
    tag = "functions",
    request_body(content = serde_json::Value, description = "A specification. Whatever is wrong with it is in the answer"),
    responses((status = 200, description = "What was found", body = Checked), Guarded, Reads, Typed, Asks),
)]
async fn validate(State(api): State<Arc<Api>>, caller: Caller, _: NoQuery, request: Request) -> Answer {
    let bytes = document_bytes(request, &api, "application/json").await?;
    let found = match read_json::<FunctionSpec>(&bytes, ErrorKind::InvalidSpec) {
        Ok(spec) => api.gateway.validate(&caller.context(), &spec).await?,
        Err(problem) if problem.is(ErrorKind::InvalidSpec) => problem.into_document().violations,
        Err(problem) => return Err(problem),
    };
    Ok(Json(Checked::from(found)).into_response())
}

/// Bounds of a part of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Part {
    /// How many at most: 1 to 1,000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    pub(super) limit: Option<usize>,
    /// Where the list goes on: `next` of the part before.
    pub(super) cursor: Option<String>,
}

/// Lists a function's revisions, newest first.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}/revisions",
    tag = "functions",
    params(("name" = FunctionName, Path), Part),
    responses((status = 200, description = "A part of the list", body = List<RevisionDocument>), Guarded, Found),
)]
async fn revisions(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<FunctionName>,
    InQuery(part): InQuery<Part>,
) -> Answer {
    let page = page_request(part.limit, part.cursor)?;
    let page = api.gateway.revisions(&caller.context(), &name, &page).await?;
    Ok(Json(List::of(page, |revision| RevisionDocument::from(&*revision))).into_response())
}

/// Reads one revision of a function. It never changes.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}/revisions/{generation}",
    tag = "functions",
    params(("name" = FunctionName, Path), ("generation" = Generation, Path),
        ("If-None-Match" = Option<String>, Header, description = "The ETag that the client has")),
    responses(
        (status = 200, description = "The revision", body = RevisionDocument, headers(("ETag" = String, description = "Its identity"))),
        (status = 304, description = "The client has it"),
        Guarded, Found,
    ),
)]
async fn revision(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    RevisionInPath(name, generation): RevisionInPath,
    headers: HeaderMap,
) -> Answer {
    let revision = api.gateway.revision(&caller.context(), &name, generation).await?;
    let etag = Etag::of_revision(&revision);
    Ok(match etag.not_modified(&headers) {
        Some(response) => response,
        None => {
            let mut response = Json(RevisionDocument::from(&*revision)).into_response();
            etag.set(&mut response);
            response
        }
    })
}

/// Makes a new generation with the specification of an earlier one.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/rollback",
    tag = "functions",
    params(("name" = FunctionName, Path), Condition,
        ("If-Match" = Option<String>, Header, description = "Only if its ETag is still this"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS` or `respond-async` (RFC 7240)")),
    request_body = RollBack,
    responses(
        (status = 200, description = "It is changed", body = FunctionDocument, headers(("ETag" = String, description = "Its version"))),
        Guarded, Found, Reads, Typed, Specified, Changes, Asks,
    ),
)]
async fn roll_back(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<FunctionName>,
    InQuery(query): InQuery<Condition>,
    headers: HeaderMap,
    Document(to): Document<RollBack>,
) -> Answer {
    let cx = caller.context_of_change(&headers);
    let condition = condition(&api, &caller, &name, &headers, &query).await?;
    Ok(of_function(&*api.gateway.roll_back(&cx, &name, to.generation, condition).await?))
}

/// Makes a new generation with the same specification, so that instances start with the newest values of their secrets.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/rotate-secrets",
    tag = "functions",
    params(("name" = FunctionName, Path), Condition,
        ("If-Match" = Option<String>, Header, description = "Only if its ETag is still this"),
        ("Prefer" = Option<String>, Header, description = "`wait=SECONDS` or `respond-async` (RFC 7240)")),
    responses(
        (status = 200, description = "It is changed", body = FunctionDocument, headers(("ETag" = String, description = "Its version"))),
        Guarded, Found, Specified, Changes, Asks,
    ),
)]
async fn rotate_secrets(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<FunctionName>,
    InQuery(query): InQuery<Condition>,
    headers: HeaderMap,
) -> Answer {
    let cx = caller.context_of_change(&headers);
    let condition = condition(&api, &caller, &name, &headers, &query).await?;
    Ok(of_function(&*api.gateway.rotate_secrets(&cx, &name, condition).await?))
}

/// Sets how many instances of what serves run now.
#[utoipa::path(
    post,
    path = "/v1/functions/{name}/scale",
    tag = "functions",
    params(("name" = FunctionName, Path)),
    request_body = ScaleTo,
    responses((status = 204, description = "The engine was told"), Guarded, Found, Reads, Typed, Optional, Asks),
)]
async fn scale(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(name): InPath<FunctionName>,
    Document(to): Document<ScaleTo>,
) -> Answer {
    api.gateway.scale(&caller.context(), &name, to.instances).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Which part of a log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct LogPart {
    /// Only what was logged at this time or later.
    since: Option<Timestamp>,
    /// Only the last lines.
    tail: Option<u32>,
    /// Whether to go on with new lines as they come.
    #[serde(default)]
    follow: bool,
}

/// Reads the log of what serves, as JSON lines; as server-sent events where the request accepts `text/event-stream`.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}/logs",
    tag = "functions",
    params(("name" = FunctionName, Path), LogPart),
    responses(
        (status = 200, description = "Each line is one JSON object; each event's data too", content(
            (LogLineDocument = "application/x-ndjson"), (String = "text/event-stream"))),
        Guarded, Found, Optional, Asks,
    ),
)]
async fn function_logs(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(name): InPath<FunctionName>,
    InQuery(part): InQuery<LogPart>,
    headers: HeaderMap,
) -> Answer {
    let mut query = LogQuery::default();
    (query.since, query.tail, query.follow) = (part.since, part.tail, part.follow);
    let lines = api.gateway.logs(&caller.context(), &name, query).await?;
    Ok(logs::lines(lines, &headers))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The examples of RFC 7396, appendix A, that tell something apart.
    #[test]
    fn a_merge_patch_is_that_of_the_rfc() {
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!([1, 2]), json!({"a": "b", "c": null}), json!({"a": "b"})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, patch.clone());
            assert_eq!(merged, expected, "{target} and {patch}");
        }
    }
}
