//! Events, and the subscriptions that lead from them to functions.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{Error, ErrorKind, Version};
use function_gateway_events::{EventBroker, EventLimits, SubscriptionName, SubscriptionSpec, from_http};
use http::{HeaderMap, StatusCode};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::etag::{Etag, if_match};
use super::functions::Part;
use crate::api::Api;
use crate::document::{List, NewSubscription, PublishedDocument, SubscriptionDocument};
use crate::extract::{Caller, Document, InPath, InQuery, NoQuery, page_request, read_value, whole};
use crate::problem::{Problem, ProblemDocument};
use crate::responses::{Brokered, Changes, Found, Guarded, Reads, Typed};

type Answer = Result<Response, Problem>;

pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(publish)).routes(routes!(create_subscription, subscriptions)).routes(routes!(
        subscription,
        update_subscription,
        delete_subscription
    ))
}

impl Api {
    fn broker(&self) -> Result<&EventBroker, Problem> {
        self.broker.as_ref().ok_or_else(|| Error::new(ErrorKind::Unsupported, "this gateway takes no events").into())
    }
}

/// Takes an event, or several, as CloudEvents 1.0 over HTTP: binary, structured or as a batch.
///
/// It is answered once every execution that it leads to is committed. An event that was taken before, by its `source` and `id`, leads
/// to none again. Of a batch whose events are taken in part, send all of it again.
#[utoipa::path(
    post,
    path = "/v1/events",
    tag = "events",
    request_body(content(
        (serde_json::Value = "application/cloudevents+json"),
        (Vec<serde_json::Value> = "application/cloudevents-batch+json"),
        (String = "application/octet-stream")
    ), description = "The event; in the binary mode the data, with the attributes in `ce-*` headers"),
    responses(
        (status = 202, description = "Taken", body = Vec<PublishedDocument>),
        (status = 429, description = "A limit is reached, which the answer names", body = ProblemDocument, content_type = "application/problem+json"),
        Guarded, Reads, Brokered,
    ),
)]
async fn publish(State(api): State<Arc<Api>>, caller: Caller, _: NoQuery, request: Request) -> Answer {
    let broker = api.broker()?;
    let headers = request.headers().clone();
    let body = whole(request, &api).await?;
    let limits = EventLimits::default();
    let events = from_http(&headers, &body, &limits)?.into_vec();
    let mut published = Vec::with_capacity(events.len());
    for event in &events {
        published.push(PublishedDocument::from(broker.publish(&caller.context(), event).await?));
    }
    Ok((StatusCode::ACCEPTED, Json(published)).into_response())
}

/// Creates a subscription. Its functions are executed on behalf of the caller.
#[utoipa::path(
    post,
    path = "/v1/subscriptions",
    tag = "events",
    request_body = NewSubscription,
    responses(
        (status = 201, description = "It is created", body = SubscriptionDocument, headers(("ETag" = String, description = "Its version"))),
        (status = 409, description = "There is one of the name already", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 429, description = "The tenant has too many", body = ProblemDocument, content_type = "application/problem+json"),
        Guarded, Reads, Typed, Brokered,
    ),
)]
async fn create_subscription(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    Document(new): Document<NewSubscription>,
) -> Answer {
    let broker = api.broker()?;
    let name: SubscriptionName = new.name.parse()?;
    let spec: SubscriptionSpec = read_value(new.spec, ErrorKind::InvalidArgument, "/spec")?;
    let created = broker.create(&caller.context(), name, spec).await.map_err(below_spec)?;
    let mut response = (StatusCode::CREATED, Json(SubscriptionDocument::from(&created))).into_response();
    tag(&created).set(&mut response);
    Ok(response)
}

/// Lists the subscriptions of the caller's tenant, in the order of their names.
#[utoipa::path(
    get,
    path = "/v1/subscriptions",
    tag = "events",
    params(Part),
    responses((status = 200, description = "A part of the list", body = List<SubscriptionDocument>), Guarded, Brokered),
)]
async fn subscriptions(State(api): State<Arc<Api>>, caller: Caller, InQuery(part): InQuery<Part>) -> Answer {
    let page = page_request(part.limit, part.cursor)?;
    let page = api.broker()?.list(&caller.context(), &page).await?;
    Ok(Json(List::of(page, |found| SubscriptionDocument::from(&found))).into_response())
}

/// Reads a subscription.
#[utoipa::path(
    get,
    path = "/v1/subscriptions/{name}",
    tag = "events",
    params(("name" = String, Path), ("If-None-Match" = Option<String>, Header, description = "The ETag that the client has")),
    responses(
        (status = 200, description = "The subscription", body = SubscriptionDocument, headers(("ETag" = String, description = "Its version"))),
        (status = 304, description = "The client has it as it is"),
        Guarded, Found, Brokered,
    ),
)]
async fn subscription(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(name): InPath<SubscriptionName>,
    headers: HeaderMap,
) -> Answer {
    let found = api.broker()?.get(&caller.context(), &name).await?;
    Ok(tag(&found).not_modified(&headers).unwrap_or_else(|| answer(&found)))
}

/// Replaces a subscription. Its functions are executed on behalf of the caller from then on.
#[utoipa::path(
    put,
    path = "/v1/subscriptions/{name}",
    tag = "events",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header, description = "The `ETag` that it has to have")),
    request_body = serde_json::Value,
    responses(
        (status = 200, description = "It is replaced", body = SubscriptionDocument, headers(("ETag" = String, description = "Its version"))),
        Guarded, Found, Reads, Typed, Changes, Brokered,
    ),
)]
async fn update_subscription(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(name): InPath<SubscriptionName>,
    headers: HeaderMap,
    Document(spec): Document<serde_json::Value>,
) -> Answer {
    let (broker, cx) = (api.broker()?, caller.context());
    let spec: SubscriptionSpec = read_value(spec, ErrorKind::InvalidArgument, "")?;
    let expected = expected(broker, &cx, &name, &headers).await?;
    Ok(answer(&broker.update(&cx, name, spec, expected).await?))
}

/// Deletes a subscription. What it has led to goes on.
#[utoipa::path(
    delete,
    path = "/v1/subscriptions/{name}",
    tag = "events",
    params(("name" = String, Path), ("If-Match" = Option<String>, Header, description = "The `ETag` that it has to have")),
    responses(
        (status = 204, description = "It is deleted"),
        Guarded, Found, Changes, Brokered,
    ),
)]
async fn delete_subscription(
    State(api): State<Arc<Api>>,
    caller: Caller,
    _: NoQuery,
    InPath(name): InPath<SubscriptionName>,
    headers: HeaderMap,
) -> Answer {
    let (broker, cx) = (api.broker()?, caller.context());
    let expected = expected(broker, &cx, &name, &headers).await?;
    broker.delete(&cx, &name, expected).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// The version that `If-Match` names.
async fn expected(
    broker: &EventBroker,
    cx: &function_gateway_core::CallContext,
    name: &SubscriptionName,
    headers: &HeaderMap,
) -> Result<Option<Version>, Problem> {
    let Some(wanted) = if_match(headers)?.filter(super::etag::IfMatch::is_one) else { return Ok(None) };
    let found = broker.get(cx, name).await?;
    match wanted.includes(&tag(&found)) {
        true => Ok(Some(found.version)),
        false => Err(Error::new(ErrorKind::PreconditionFailed, "the subscription has another version").into()),
    }
}

/// Changes with the subscription, and is another one for another subscription of the name.
fn tag(found: &function_gateway_events::Subscription) -> Etag {
    Etag::new(&format!("{}.{}", found.created_at.as_micros(), found.version))
}

fn answer(found: &function_gateway_events::Subscription) -> Response {
    let mut response = Json(SubscriptionDocument::from(found)).into_response();
    tag(found).set(&mut response);
    response
}

/// Places in a specification as places in the document that it stands in.
fn below_spec(error: Error) -> Problem {
    let below = error.violations().iter().map(|violation| {
        let mut violation = violation.clone();
        violation.pointer.insert_str(0, "/spec");
        violation
    });
    let below: Vec<_> = below.collect();
    match below.is_empty() {
        true => error.into(),
        false => Error::new(error.kind(), error.message().to_owned()).with_violations(below).into(),
    }
}
