//! What is in the queue of executions that were submitted, and what has died in it.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{
    CallContext, DeadLetterFilter, Error, ErrorKind, FunctionName, Gateway, InvocationId, Page, QueueDepth,
    QueueManager as _, QueueState, QueuedInvocation,
};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::Api;
use crate::document::{Accepted, List, NotDone, Purged, QueuedDocument, Redriven, RedrivenOne, WhichDeadLetters};
use crate::extract::{Below, Caller, Document, InPath, InQuery, NoQuery, page_request};
use crate::problem::{Problem, ProblemDocument};
use crate::responses::{Found, Guarded, Queued, Reads, Typed};

type Answer = Result<Response, Problem>;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(dead_letters))
        .routes(routes!(redrive_dead_letters))
        .routes(routes!(purge_dead_letters))
        .routes(routes!(dead_letter, purge_dead_letter))
        .routes(routes!(redrive_dead_letter))
        .routes(routes!(queue_depth))
        .routes(routes!(function_queue_depth))
}

/// Which dead letters.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Of the function of this name, whichever functions have borne it.
    function: Option<FunctionName>,
    /// How many at most: 1 to 1,000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the list goes on: `next` of the part before.
    cursor: Option<String>,
}

/// Lists the dead letters of the caller's tenant: executions that were submitted and have failed for good, those that died last
/// first, without their payloads.
#[utoipa::path(
    get,
    path = "/v1/dead-letters",
    tag = "queue",
    params(Filter),
    responses((status = 200, description = "A part of the list", body = List<QueuedDocument>), Guarded, Queued),
)]
async fn dead_letters(State(api): State<Arc<Api>>, caller: Caller, InQuery(query): InQuery<Filter>) -> Answer {
    let which = WhichDeadLetters { function: query.function, limit: query.limit, cursor: query.cursor };
    let page = page_of(&api.gateway, &caller.context(), which).await?;
    Ok(Json(List::of(page, |dead| QueuedDocument::new(&dead))).into_response())
}

async fn page_of(
    gateway: &Gateway,
    cx: &CallContext,
    which: WhichDeadLetters,
) -> function_gateway_core::Result<Page<Arc<QueuedInvocation>>> {
    let WhichDeadLetters { function, limit, cursor } = which;
    let filter = function.map_or_else(DeadLetterFilter::default, DeadLetterFilter::of);
    gateway.dead_letters(cx, &filter, &page_request(limit, cursor)?).await
}

/// Reads a dead letter with its payload and each attempt. One that was redriven is read until it is forgotten.
#[utoipa::path(
    get,
    path = "/v1/dead-letters/{id}",
    tag = "queue",
    params(("id" = InvocationId, Path)),
    responses((status = 200, description = "The dead letter", body = QueuedDocument), Guarded, Found, Queued),
)]
async fn dead_letter(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(id): InPath<InvocationId>,
) -> Answer {
    let queued = api.gateway.queued(&caller.context(), id).await?;
    if !matches!(queued.state, QueueState::Dead | QueueState::Redriven) {
        return Err(Error::new(ErrorKind::NotFound, format!("there is no dead letter {id}")).into());
    }
    Ok(Json(QueuedDocument::with_payload(&queued)).into_response())
}

/// Has a dead letter executed again, as a new execution by the caller. The dead one stays as it ended.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/{id}/redrive",
    tag = "queue",
    params(("id" = InvocationId, Path)),
    responses(
        (status = 202, description = "It is accepted for later", body = Accepted, headers(
            ("Location" = String, description = "Where the state of the new one is"))),
        (status = 409, description = "It is not dead, or was redriven before", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached, which the answer names", body = ProblemDocument, content_type = "application/problem+json"),
        Guarded, Found, Queued,
    ),
)]
async fn redrive_dead_letter(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    below: Below,
    InPath(id): InPath<InvocationId>,
) -> Answer {
    let receipt = api.gateway.redrive(&caller.context(), id).await?;
    let status_url = below.execution(receipt.id);
    let location = HeaderValue::try_from(&status_url).ok();
    let mut response = (StatusCode::ACCEPTED, Json(Accepted::new(receipt, status_url))).into_response();
    response.headers_mut().extend(location.map(|location| (header::LOCATION, location)));
    Ok(response)
}

/// Forgets a dead letter. What is kept of its execution stays.
#[utoipa::path(
    delete,
    path = "/v1/dead-letters/{id}",
    tag = "queue",
    params(("id" = InvocationId, Path)),
    responses(
        (status = 204, description = "It is forgotten"),
        (status = 409, description = "It is not dead", body = ProblemDocument, content_type = "application/problem+json"),
        Guarded, Found, Queued,
    ),
)]
async fn purge_dead_letter(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(id): InPath<InvocationId>,
) -> Answer {
    api.gateway.purge(&caller.context(), id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Has many dead letters executed again, as new executions by the caller: those of one part of the list.
///
/// What can't be redriven stays, is told, and is passed over by the request that goes on at `next`.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/redrive",
    tag = "queue",
    request_body = WhichDeadLetters,
    responses((status = 200, description = "What was done", body = Redriven), Guarded, Reads, Typed, Queued),
)]
async fn redrive_dead_letters(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    Document(which): Document<WhichDeadLetters>,
) -> Answer {
    let redrive = |gateway: Gateway, cx: CallContext, id| async move { gateway.redrive(&cx, id).await };
    let Done { done, failed, next } = each(&api.gateway, &caller.context(), which, redrive).await?;
    let redriven = done.into_iter().map(|(id, receipt)| RedrivenOne { id, redriven_as: receipt.id }).collect();
    Ok(Json(Redriven { redriven, failed, next }).into_response())
}

/// Forgets many dead letters: those of one part of the list. What is kept of their executions stays.
#[utoipa::path(
    post,
    path = "/v1/dead-letters/purge",
    tag = "queue",
    request_body = WhichDeadLetters,
    responses((status = 200, description = "What was done", body = Purged), Guarded, Reads, Typed, Queued),
)]
async fn purge_dead_letters(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    Document(which): Document<WhichDeadLetters>,
) -> Answer {
    let purge = |gateway: Gateway, cx: CallContext, id| async move { gateway.purge(&cx, id).await };
    let Done { done, failed, next } = each(&api.gateway, &caller.context(), which, purge).await?;
    Ok(Json(Purged { purged: done.into_iter().map(|(id, ())| id).collect(), failed, next }).into_response())
}

/// What became of a part of the list.
struct Done<T> {
    done: Vec<(InvocationId, T)>,
    failed: Vec<NotDone>,
    next: Option<String>,
}

/// Does something with each dead letter of a part of the list.
async fn each<T, F: Future<Output = function_gateway_core::Result<T>>>(
    gateway: &Gateway,
    cx: &CallContext,
    which: WhichDeadLetters,
    act: impl Fn(Gateway, CallContext, InvocationId) -> F,
) -> Result<Done<T>, Problem> {
    let page = page_of(gateway, cx, which).await?;
    let next = page.next.map(|cursor| cursor.as_str().to_owned());
    let mut failed: Vec<_> = page.unreadable.into_iter().map(NotDone::unreadable).collect();
    let mut done = Vec::new();
    for dead in page.items {
        let id = dead.submission.id;
        match act(gateway.clone(), cx.clone(), id).await {
            Ok(what) => done.push((id, what)),
            // The next one would fare no better. What was done is no longer in the list when it is asked for again.
            Err(error) if is_about_all(&error) => {
                let error = error.with_context("invocation", id.to_string());
                return Err(error.with_context("done", done.len().to_string()).into());
            }
            Err(error) => failed.push(NotDone::new(id, &error)),
        }
    }
    Ok(Done { done, failed, next })
}

fn is_about_all(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Store | ErrorKind::ShuttingDown | ErrorKind::PermissionDenied)
}

/// Says how many executions of the caller's tenant have not ended, and how many are dead letters.
#[utoipa::path(
    get,
    path = "/v1/queue",
    tag = "queue",
    responses((status = 200, description = "How many", body = QueueDepth), Guarded, Queued),
)]
async fn queue_depth(State(api): State<Arc<Api>>, caller: Caller, _: NoQuery) -> Answer {
    Ok(Json(api.gateway.queue_depth(&caller.context(), None).await?).into_response())
}

/// Says how many executions of a function have not ended, and how many are dead letters. Those of one that was deleted count.
#[utoipa::path(
    get,
    path = "/v1/functions/{name}/queue",
    tag = "queue",
    params(("name" = FunctionName, Path)),
    responses((status = 200, description = "How many", body = QueueDepth), Guarded, Queued),
)]
async fn function_queue_depth(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(name): InPath<FunctionName>,
) -> Answer {
    Ok(Json(api.gateway.queue_depth(&caller.context(), Some(&name)).await?).into_response())
}
