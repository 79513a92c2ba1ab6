//! What is kept of executions, and figures over them.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{
    Error, ErrorClass, ErrorKind, FunctionExecutor as _, FunctionExecutorExt as _, FunctionId, FunctionName,
    InvocationId, InvocationRecord, InvocationState, PrincipalId, QueueManager as _, RecordFilter, Statistics,
    StatisticsQuery, Timestamp, Waited,
};
use futures_util::{StreamExt as _, stream};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::invocations::{answered, of_execution};
use super::logs;
use crate::api::Api;
use crate::document::{List, QueuedDocument};
use crate::envelope::NO_SHARED_CACHE;
use crate::extract::{Below, Caller, InPath, InQuery, NoQuery, invalid, labels, page_request};
use crate::problem::{Problem, ProblemDocument, RETRY_AFTER_SECONDS};
use crate::responses::{Found, Guarded, Queued};

type Answer = Result<Response, Problem>;

/// What statistics are about where the query does not say.
const LAST: Duration = Duration::from_secs(3600);
/// No request waits longer for the end of an execution, so that no proxy takes it for a dead one.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(30);

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(executions))
        .routes(routes!(execution))
        .routes(routes!(cancel_execution))
        .routes(routes!(queued_execution))
        .routes(routes!(statistics))
}

/// Those whose answers are streams.
pub(super) fn streaming_routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(execution_result)).routes(routes!(execution_logs)).routes(routes!(export))
}

/// Which executions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Of the function of this name, whichever functions have borne it.
    function: Option<FunctionName>,
    /// Of the function of this id.
    function_id: Option<FunctionId>,
    /// In this state.
    state: Option<InvocationState>,
    /// With a failure of this class.
    class: Option<ErrorClass>,
    /// By this caller; `me` is the caller of this request.
    #[param(max_length = 256)]
    caller: Option<PrincipalId>,
    /// Of functions with this label, as `key=value`; all of several.
    #[serde(default)]
    #[param(value_type = Vec<String>)]
    label: Vec<String>,
    /// That came in at this time or later.
    from: Option<Timestamp>,
    /// That came in before this time.
    until: Option<Timestamp>,
    /// How many at most: 1 to 1,000. Default: 100. An export has no such bound.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the list goes on: `next` of the part before.
    cursor: Option<String>,
}

impl Filter {
    fn for_caller(&self, caller: &Caller) -> Result<RecordFilter, Problem> {
        let mut filter = RecordFilter::default();
        filter.name.clone_from(&self.function);
        filter.function = self.function_id;
        filter.state = self.state;
        filter.class = self.class;
        filter.caller = self.caller.clone().map(|name| caller.named(name));
        filter.labels = labels(&self.label)?;
        (filter.from, filter.until) = (self.from, self.until);
        Ok(filter)
    }
}

/// Lists executions of the caller's tenant, newest first.
#[utoipa::path(
    get,
    path = "/v1/executions",
    tag = "executions",
    params(Filter),
    responses((status = 200, description = "A part of the list", body = List<InvocationRecord>), Guarded),
)]
async fn executions(State(api): State<Arc<Api>>, caller: Caller, InQuery(query): InQuery<Filter>) -> Answer {
    let filter = query.for_caller(&caller)?;
    let page = page_request(query.limit, query.cursor)?;
    let page = api.gateway.executions(&caller.context(), &filter, &page).await?;
    Ok(Json(List::of(page, |record| record)).into_response())
}

/// Whether to wait.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Wait {
    /// How long to wait for the end of an execution that was submitted, in milliseconds: at most 30,000.
    #[param(maximum = 30_000)]
    wait_ms: Option<u64>,
}

/// Reads what is kept of an execution; with `wait_ms` when it has ended, or that time is over.
///
/// Whoever submitted it may, beside those who may read executions.
#[utoipa::path(
    get,
    path = "/v1/executions/{id}",
    tag = "executions",
    params(("id" = InvocationId, Path), Wait),
    responses(
        (status = 200, description = "The execution, ended or not", body = InvocationRecord, headers(
            ("Retry-After" = u64, description = "As long as it has not ended: after how many seconds to ask again"))),
        Guarded, Found, Queued,
    ),
)]
async fn execution(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(id): InPath<InvocationId>,
    InQuery(Wait { wait_ms }): InQuery<Wait>,
) -> Answer {
    let cx = caller.context();
    let record = match wait_ms.map(Duration::from_millis) {
        None => api.gateway.execution(&cx, id).await?,
        Some(wait) if wait > MAX_WAIT => {
            return Err(invalid(format!("`wait_ms` is at most {}", MAX_WAIT.as_millis())));
        }
        Some(wait) => match api.gateway.wait(&cx, id, wait).await? {
            Waited::Ended(record) | Waited::NotYet(record) => record,
            other => return Err(unexpected(&other)),
        },
    };
    let mut response = Json(&*record).into_response();
    if !record.state.is_final() {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
    }
    Ok(response)
}

fn unexpected(waited: &Waited) -> Problem {
    let error = Error::new(ErrorKind::Internal, "the gateway waited for an execution, and its end is not understood");
    error.with_detail(format!("{waited:?}")).into()
}

/// Gives what the function answered in an execution that was submitted, as its call would have, as long as that is kept.
///
/// One that has ended without an answer gives the problem that it ended with, whose `context.invocation` is the execution.
/// Whoever submitted it may, beside those who may read executions.
#[utoipa::path(
    get,
    path = "/v1/executions/{id}/result",
    tag = "executions",
    params(("id" = InvocationId, Path)),
    responses(
        (status = 409, description = "It has not ended", body = ProblemDocument, content_type = "application/problem+json", headers(
            ("Retry-After" = u64, description = "In how many seconds to ask again"))),
        (status = 410, description = "It was executed, and its result was streamed, too large, or is kept no longer", body = ProblemDocument, content_type = "application/problem+json"),
        (status = "default", description = "What the function answered, or a problem document of the gateway's", headers(
            ("X-Function-Answered-By" = String, description = "`function` or `gateway`"),
            ("X-Function-Invocation-Id" = InvocationId, description = "The execution"),
            ("X-Function-Outcome" = String, description = "What the function made of it: `succeeded`, `rejected` or `failed`"),
            ("X-Function-Failure" = String, description = "How it failed, in its own words"),
        )),
    ),
)]
async fn execution_result(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(id): InPath<InvocationId>,
    method: Method,
) -> Answer {
    let answer = api.gateway.result(&caller.context(), id).await.map_err(of_execution)?;
    let mut response = answered(answer, method == Method::HEAD);
    // What the function says of caches is for an answer at its own URL.
    response.headers_mut().insert(header::CACHE_CONTROL, NO_SHARED_CACHE);
    Ok(response)
}

/// Ends an execution that was submitted and has not ended: one that waits at once, one that runs soon.
#[utoipa::path(
    post,
    path = "/v1/executions/{id}/cancel",
    tag = "executions",
    params(("id" = InvocationId, Path)),
    responses(
        (status = 202, description = "It ends, at once or soon", headers(
            ("Location" = String, description = "Where its state is"))),
        (status = 409, description = "It has ended already", body = ProblemDocument, content_type = "application/problem+json"),
        Guarded, Found, Queued,
    ),
)]
async fn cancel_execution(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    below: Below,
    InPath(id): InPath<InvocationId>,
) -> Answer {
    api.gateway.cancel(&caller.context(), id).await?;
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, below.execution(id))]).into_response())
}

/// Reads an execution that was submitted as it stands in the queue: its payload, each attempt, and how it goes on.
#[utoipa::path(
    get,
    path = "/v1/executions/{id}/queue",
    tag = "executions",
    params(("id" = InvocationId, Path)),
    responses((status = 200, description = "How it stands", body = QueuedDocument), Guarded, Found, Queued),
)]
async fn queued_execution(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(id): InPath<InvocationId>,
) -> Answer {
    let queued = api.gateway.queued(&caller.context(), id).await?;
    Ok(Json(QueuedDocument::with_payload(&queued)).into_response())
}

/// Whether to wait for more.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Follow {
    /// Whether to go on until the execution has ended, also over several attempts.
    #[serde(default)]
    follow: bool,
}

/// Reads what a function logged in an execution, as text; as server-sent events where the request accepts `text/event-stream`.
#[utoipa::path(
    get,
    path = "/v1/executions/{id}/logs",
    tag = "executions",
    params(("id" = InvocationId, Path), Follow),
    responses(
        (status = 200, description = "The log; in events, as the `text` of JSON objects", content(
            (String = "text/plain"), (String = "text/event-stream"))),
        Guarded, Found,
    ),
)]
async fn execution_logs(
    State(api): State<Arc<Api>>,
    caller: Caller,
    InPath(id): InPath<InvocationId>,
    InQuery(query): InQuery<Follow>,
    headers: HeaderMap,
) -> Answer {
    let log = api.gateway.execution_logs(&caller.context(), id, query.follow).await?;
    Ok(logs::chunks(log, &headers))
}

/// Gives every execution that a filter means, newest first, as JSON lines.
#[utoipa::path(
    get,
    path = "/v1/executions/export",
    tag = "executions",
    params(Filter),
    responses((status = 200, description = "Each line is one execution", content((InvocationRecord = "application/x-ndjson"))), Guarded),
)]
async fn export(State(api): State<Arc<Api>>, caller: Caller, InQuery(query): InQuery<Filter>) -> Answer {
    if query.limit.is_some() || query.cursor.is_some() {
        return Err(invalid("an export has no `limit` and no `cursor`: it is the whole list"));
    }
    let filter = query.for_caller(&caller)?;
    let cx = caller.context();
    let (sender, mut lines) = tokio::sync::mpsc::channel(1);
    // The stream borrows from what it reads, so it is driven by a task, which ends when nobody reads any more.
    let gateway = api.gateway.clone();
    let read = tokio::spawn(async move {
        let mut export = gateway.export_executions(&cx, &filter);
        while let Some(lines) = export.next().await {
            if sender.send(lines).await.is_err() {
                return;
            }
        }
    });
    // What was broken off must not look whole.
    let broken = stream::once(read).filter_map(|ended| {
        let error = |_| Error::new(ErrorKind::Internal, "the task that exports has ended before its time");
        std::future::ready(ended.err().map(error).map(Err))
    });
    let mut lines = Box::pin(stream::poll_fn(move |cx| lines.poll_recv(cx)).chain(broken));
    // What is wrong with the request is known with the first part.
    let first = lines.next().await.transpose()?;
    Ok(logs::json_lines(stream::iter(first.map(Ok)).chain(lines)))
}

/// For which executions figures are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Range {
    /// Of the function of this name, whichever functions have borne it.
    function: Option<FunctionName>,
    /// That ended at this time or later, rounded down to the minute. An hour before `until` where it is absent.
    from: Option<Timestamp>,
    /// That ended before this time, rounded up to the minute. Now where it is absent.
    until: Option<Timestamp>,
}

/// Gives figures over executions that have ended.
#[utoipa::path(
    get,
    path = "/v1/statistics",
    tag = "executions",
    params(Range),
    responses((status = 200, description = "The figures", body = Statistics), Guarded),
)]
async fn statistics(State(api): State<Arc<Api>>, caller: Caller, InQuery(range): InQuery<Range>) -> Answer {
    let until = range.until.unwrap_or_else(|| api.gateway.now());
    let mut query = StatisticsQuery::new(range.from.unwrap_or_else(|| until.minus(LAST)), until);
    if let Some(function) = range.function {
        query = query.of(function);
    }
    Ok(Json(api.gateway.statistics(&caller.context(), &query).await?).into_response())
}
