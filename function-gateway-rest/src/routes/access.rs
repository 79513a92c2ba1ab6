//! Who may reach the gateway, and who did what: API keys and the audit log.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{AccessManager as _, Action, ApiKeyId, AuditFilter, FunctionName, PrincipalId, Timestamp};
use http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::functions::Part;
use crate::api::Api;
use crate::auth::MintedKey;
use crate::document::{ApiKeyDocument, AuditDocument, CreatedApiKey, List, Me, NewApiKey};
use crate::extract::{Caller, Document, InPath, InQuery, NoQuery, page_request};
use crate::problem::{Problem, ProblemDocument};
use crate::responses::{Found, Guarded, Reads, Typed};

type Answer = Result<Response, Problem>;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(create_key, keys))
        .routes(routes!(key, revoke_key))
        .routes(routes!(audit))
        .routes(routes!(me))
}

/// Makes an API key for a principal of the caller's tenant. The answer shows the key, this once.
#[utoipa::path(
    post,
    path = "/v1/keys",
    tag = "access",
    request_body = NewApiKey,
    responses((status = 201, description = "It is made", body = CreatedApiKey), Guarded, Reads, Typed,
        (status = 501, description = "This gateway keeps no keys", body = ProblemDocument, content_type = "application/problem+json")),
)]
async fn create_key(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    Document(new): Document<NewApiKey>,
) -> Answer {
    let minted = MintedKey::mint()?;
    let mut wanted = function_gateway_core::NewApiKey::new(minted.id, minted.hash);
    wanted.principal = new.principal;
    wanted.scopes = new.scopes;
    wanted.description = new.description;
    wanted.expires_at = new.expires_at;
    let key = api.gateway.create_api_key(&caller.context(), wanted).await?;
    let about = ApiKeyDocument::new(&key, api.gateway.now());
    let created = CreatedApiKey { about, key: minted.text.expose_str()?.to_owned() };
    Ok((StatusCode::CREATED, Json(created)).into_response())
}

/// Lists the API keys of the caller's tenant, newest first.
#[utoipa::path(
    get,
    path = "/v1/keys",
    tag = "access",
    params(Part),
    responses((status = 200, description = "A part of the list", body = List<ApiKeyDocument>), Guarded,
        (status = 501, description = "This gateway keeps no keys", body = ProblemDocument, content_type = "application/problem+json")),
)]
async fn keys(State(api): State<Arc<Api>>, caller: Caller, InQuery(part): InQuery<Part>) -> Answer {
    let page = page_request(part.limit, part.cursor)?;
    let page = api.gateway.api_keys(&caller.context(), &page).await?;
    let now = api.gateway.now();
    Ok(Json(List::of(page, |key| ApiKeyDocument::new(&key, now))).into_response())
}

/// Reads what is known of an API key.
#[utoipa::path(
    get,
    path = "/v1/keys/{id}",
    tag = "access",
    params(("id" = ApiKeyId, Path)),
    responses((status = 200, description = "The key", body = ApiKeyDocument), Guarded, Found,
        (status = 501, description = "This gateway keeps no keys", body = ProblemDocument, content_type = "application/problem+json")),
)]
async fn key(State(api): State<Arc<Api>>, caller: Caller, _: NoQuery, InPath(id): InPath<ApiKeyId>) -> Answer {
    let key = api.gateway.api_key(&caller.context(), id).await?;
    Ok(Json(ApiKeyDocument::new(&key, api.gateway.now())).into_response())
}

/// Revokes an API key: it may not be used any more, from a second later at the latest.
#[utoipa::path(
    delete,
    path = "/v1/keys/{id}",
    tag = "access",
    params(("id" = ApiKeyId, Path)),
    responses((status = 200, description = "The key, revoked", body = ApiKeyDocument), Guarded, Found,
        (status = 501, description = "This gateway keeps no keys", body = ProblemDocument, content_type = "application/problem+json")),
)]
async fn revoke_key(State(api): State<Arc<Api>>, caller: Caller, _: NoQuery, InPath(id): InPath<ApiKeyId>) -> Answer {
    let key = api.gateway.revoke_api_key(&caller.context(), id).await?;
    Ok(Json(ApiKeyDocument::new(&key, api.gateway.now())).into_response())
}

/// Which changes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Of the function of this name.
    function: Option<FunctionName>,
    /// By this principal; `me` is the caller.
    #[param(max_length = 256)]
    principal: Option<PrincipalId>,
    /// Of this kind.
    #[param(value_type = Option<String>)]
    action: Option<Action>,
    /// At this time or later.
    from: Option<Timestamp>,
    /// Before this time.
    until: Option<Timestamp>,
    /// How many at most: 1 to 1,000. Default: 100.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// Where the list goes on: `next` of the part before.
    cursor: Option<String>,
}

/// Lists who changed what in the caller's tenant, or was not allowed to, newest first.
#[utoipa::path(
    get,
    path = "/v1/audit",
    tag = "access",
    params(Filter),
    responses((status = 200, description = "A part of the list", body = List<AuditDocument>), Guarded),
)]
async fn audit(State(api): State<Arc<Api>>, caller: Caller, InQuery(query): InQuery<Filter>) -> Answer {
    let mut filter = AuditFilter::default();
    filter.function = query.function;
    filter.principal = query.principal.map(|name| caller.named(name));
    filter.action = query.action;
    (filter.from, filter.until) = (query.from, query.until);
    let page = page_request(query.limit, query.cursor)?;
    let page = api.gateway.audit_events(&caller.context(), &filter, &page).await?;
    Ok(Json(List::of(page, |event| AuditDocument::from(&*event))).into_response())
}

/// Says who the caller is taken for.
#[utoipa::path(
    get,
    path = "/v1/me",
    tag = "access",
    responses((status = 200, description = "The caller", body = Me), Guarded),
)]
async fn me(caller: Caller, _: NoQuery) -> Answer {
    Ok(Json(Me::from(&*caller.principal)).into_response())
}
