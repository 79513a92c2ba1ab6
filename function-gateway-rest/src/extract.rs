//! What handlers take from a request, each with a problem document where it is not right.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, OriginalUri, RawPathParams, Request};
use function_gateway_core::{
    CallContext, Deadline, Error, ErrorKind, FunctionName, Generation, InvocationId, Principal, PrincipalId,
    Result as CoreResult, TraceParent, Violation,
};
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde::de::value::StrDeserializer;
use serde::de::{DeserializeOwned, IntoDeserializer as _};

use crate::api::Api;
use crate::auth::not_valid;
use crate::payload;
use crate::problem::Problem;

/// Who makes the request. A handler that takes it is guarded.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) principal: Arc<Principal>,
    /// The headers that the credential came in.
    pub(crate) credential: Vec<HeaderName>,
    trace: Option<TraceParent>,
}

impl Caller {
    /// Whom a query names: `me` is the caller.
    pub(crate) fn named(&self, name: PrincipalId) -> PrincipalId {
        if name.is_caller() { self.principal.id.clone() } else { name }
    }

    /// The context of an operation in the caller's name.
    pub(crate) fn context(&self) -> CallContext {
        let cx = CallContext::new(Arc::clone(&self.principal));
        match self.trace {
            Some(trace) => cx.with_trace(trace),
            None => cx,
        }
    }

    /// The context of a change, for as long as the caller wants to wait for it: not at all with `respond-async` alone. Both
    /// preferences together are what `wait` says (RFC 7240, section 4.3).
    pub(crate) fn context_of_change(&self, headers: &HeaderMap) -> CallContext {
        let Preferences { wait, respond_async } = Preferences::of(headers);
        match wait.or(respond_async.then_some(Duration::ZERO)) {
            Some(wait) => self.context().with_deadline(Deadline::after(wait)),
            None => self.context(),
        }
    }
}

/// What the caller prefers (`Prefer`, RFC 7240).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preferences {
    /// How long to wait: `wait=5`, in seconds.
    pub(crate) wait: Option<Duration>,
    /// Not to wait for the end: `respond-async`.
    pub(crate) respond_async: bool,
}

impl Preferences {
    /// What is no preference is left out (RFC 7240, section 2).
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(HeaderName::from_static("prefer")).iter().filter_map(|value| value.to_str().ok());
        let preferences: Vec<&str> = values.flat_map(|value| value.split([',', ';'])).map(str::trim).collect();
        let seconds = preferences.iter().find_map(|preference| {
            let (name, seconds) = preference.split_once('=')?;
            name.trim().eq_ignore_ascii_case("wait").then(|| seconds.trim().trim_matches('"').parse::<u32>().ok())?
        });
        let respond_async = preferences.iter().any(|preference| preference.eq_ignore_ascii_case("respond-async"));
        Self { wait: seconds.map(|seconds| Duration::from_secs(seconds.into())), respond_async }
    }
}

impl FromRequestParts<Arc<Api>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, api: &Arc<Api>) -> Result<Self, Problem> {
        let trace = parts.headers.get(TraceParent::HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        for authenticator in &api.authenticators {
            match authenticator.authenticate(parts).await {
                Ok(Some(found)) => {
                    if let Some(log) = parts.extensions.get::<crate::envelope::RequestLog>() {
                        log.set_principal(&found.principal);
                    }
                    return Ok(Self { principal: found.principal, credential: found.headers, trace });
                }
                Ok(None) => {}
                Err(error) => return Err(challenged(api, error)),
            }
        }
        let error = match parts.headers.contains_key(header::AUTHORIZATION) {
            true => not_valid(),
            false => Error::new(ErrorKind::Unauthenticated, "the request says not who calls: it has no credential"),
        };
        Err(challenged(api, error))
    }
}

/// Says what a client that is not authenticated is to send.
fn challenged(api: &Api, error: Error) -> Problem {
    let is_unauthenticated = error.kind() == ErrorKind::Unauthenticated;
    let mut problem = Problem::from(error);
    if is_unauthenticated {
        let mut challenges: Vec<_> =
            api.authenticators.iter().filter_map(|authenticator| authenticator.challenge()).collect();
        challenges.dedup();
        for challenge in challenges {
            problem = problem.with_header(header::WWW_AUTHENTICATE, challenge);
        }
    }
    problem
}

pub(crate) fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Error::new(ErrorKind::InvalidArgument, message).into()
}

/// What comes before the path of a route, where the router is mounted below another one.
#[derive(Debug)]
pub(crate) struct Below(String);

impl Below {
    /// The path of an execution, for clients.
    pub(crate) fn execution(&self, id: InvocationId) -> String {
        format!("{}/v1/executions/{id}", self.0)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Below {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let original = parts.extensions.get::<OriginalUri>().map_or_else(|| parts.uri.path(), |uri| uri.path());
        Ok(Self(original.strip_suffix(parts.uri.path()).unwrap_or_default().to_owned()))
    }
}

/// What stands in the path, of which a route has one part.
#[derive(Debug)]
pub(crate) struct InPath<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for InPath<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let [part] = own_parts(parts, state).await?;
        read_part(&part).map(Self)
    }
}

/// A revision, by the name of its function and its generation in the path.
#[derive(Debug)]
pub(crate) struct RevisionInPath(pub(crate) FunctionName, pub(crate) Generation);

impl<S: Send + Sync> FromRequestParts<S> for RevisionInPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let [name, generation] = own_parts(parts, state).await?;
        let number = generation.parse().ok().and_then(Generation::new);
        let wrong = || {
            invalid(format!("the path is not right: {generation:?} is no generation, which is a whole number from 1"))
        };
        Ok(Self(read_part(&name)?, number.ok_or_else(wrong)?))
    }
}

/// The parts of the path that are a route's own. The host's come first, where it has mounted the router below parts of its own.
async fn own_parts<const N: usize, S: Send + Sync>(parts: &mut Parts, state: &S) -> Result<[String; N], Problem> {
    let all = RawPathParams::from_request_parts(parts, state).await;
    let all = all.map_err(|rejection| invalid(format!("the path is not right: {}", rejection.body_text())))?;
    let all: Vec<_> = all.iter().map(|(_, part)| part).collect();
    let own = all.last_chunk().ok_or_else(|| invalid("the path is not right: a part is missing"))?;
    Ok(own.map(str::to_owned))
}

/// A part of the path as what it is to be.
fn read_part<T: DeserializeOwned>(part: &str) -> Result<T, Problem> {
    let part: StrDeserializer<'_, serde::de::value::Error> = part.into_deserializer();
    T::deserialize(part).map_err(|error| invalid(format!("the path is not right: {error}")))
}

/// What stands in the query. A parameter that is not known is refused.
#[derive(Debug)]
pub(crate) struct InQuery<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for InQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        if percent_decode_str(query).decode_utf8().is_err() {
            return Err(invalid("the query is not right: it is not UTF-8"));
        }
        serde_html_form::from_str(query).map(Self).map_err(|error| invalid(format!("the query is not right: {error}")))
    }
}

/// Of an operation that takes no parameters: whoever sends some is told so, in place of being misunderstood.
pub(crate) type NoQuery = InQuery<NoParameters>;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NoParameters {}

/// A JSON document in the body.
#[derive(Debug)]
pub(crate) struct Document<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<Arc<Api>> for Document<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, api: &Arc<Api>) -> Result<Self, Problem> {
        let bytes = document_bytes(request, api, "application/json").await?;
        // First as an object: a list of the values of its fields would do for serde, and an empty one where all may be absent.
        let fields: serde_json::Map<_, _> = read_json(&bytes, ErrorKind::InvalidArgument)?;
        read_value(fields.into(), ErrorKind::InvalidArgument, "").map(Self)
    }
}

/// Reads a document whole, where it has the type that is wanted.
pub(crate) async fn document_bytes(request: Request, api: &Api, wanted: &'static str) -> Result<bytes::Bytes, Problem> {
    let sent = request.headers().get(header::CONTENT_TYPE);
    if !is_of_type(sent, wanted) {
        return Err(Problem::unsupported_media_type(wanted, sent));
    }
    whole(request, api).await
}

/// Reads a document whole, of whichever type.
pub(crate) async fn whole(request: Request, api: &Api) -> Result<bytes::Bytes, Problem> {
    let limit = api.options.max_document_bytes;
    let body = payload::of_request(request.into_body(), api.options.upload_idle_timeout);
    let total = api.options.document_timeout;
    tokio::time::timeout(total, body.collect(limit))
        .await
        .unwrap_or_else(|_| {
            let message = format!("the document did not come whole within {} ms", total.as_millis());
            Err(Error::new(ErrorKind::RequestTimeout, message))
        })
        .map_err(Problem::from)
}

fn is_of_type(sent: Option<&HeaderValue>, wanted: &str) -> bool {
    let Some(sent) = sent.and_then(|sent| sent.to_str().ok()) else { return false };
    let essence = sent.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case(wanted)
}

/// Reads JSON, and says where it is not right: in its syntax, or, with `kind`, as what it is to be.
pub(crate) fn read_json<T: DeserializeOwned>(bytes: &[u8], kind: ErrorKind) -> Result<T, Problem> {
    // In two steps, since a value that does not fit can look like an error of syntax in one.
    let value = serde_json::from_slice(bytes).map_err(|error| invalid(format!("the body is not JSON: {error}")))?;
    read_value(value, kind, "")
}

/// Reads a JSON value as what it is to be.
pub(crate) fn read_value<T: DeserializeOwned>(
    value: serde_json::Value,
    kind: ErrorKind,
    below: &str,
) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| misfit(kind, format!("{below}{}", pointer(error.path())), error.inner()))
}

fn misfit(kind: ErrorKind, pointer: String, error: &serde_json::Error) -> Problem {
    let message = match kind {
        ErrorKind::InvalidSpec => "the specification is not valid",
        _ => "the document is not valid",
    };
    Error::new(kind, message).with_violations(vec![Violation::new(pointer, error.to_string())]).into()
}

/// A path of serde's as a JSON Pointer (RFC 6901).
fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut pointer = String::new();
    for segment in path {
        let token = match segment {
            Segment::Seq { index } => index.to_string(),
            Segment::Map { key } => key.replace('~', "~0").replace('/', "~1"),
            Segment::Enum { variant } => variant.clone(),
            Segment::Unknown => continue,
        };
        pointer.push('/');
        pointer.push_str(&token);
    }
    pointer
}

/// The bounds of a part of a list.
pub(crate) fn page_request(
    limit: Option<usize>,
    cursor: Option<String>,
) -> CoreResult<function_gateway_core::PageRequest> {
    use function_gateway_core::{Cursor, PageRequest};
    let limit = limit.unwrap_or(PageRequest::default().limit);
    if !(1..=PageRequest::MAX_LIMIT).contains(&limit) {
        let message = format!("`limit` is from 1 to {}", PageRequest::MAX_LIMIT);
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    let page = PageRequest::first(limit);
    Ok(match cursor {
        Some(cursor) => page.after(Cursor::from_text(cursor)),
        None => page,
    })
}

/// As many as a function may have.
const MAX_LABELS: usize = 32;

/// Labels of a query, each as `key=value`.
pub(crate) fn labels(labels: &[String]) -> CoreResult<Vec<(String, String)>> {
    let pair = |label: &String| match label.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => {
            let message = format!("`label` is a key and a value with = between them, not {label:?}");
            Err(Error::new(ErrorKind::InvalidArgument, message))
        }
    };
    if labels.len() > MAX_LABELS {
        let message = format!("there are {} labels in the query, at most {MAX_LABELS} are allowed", labels.len());
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    labels.iter().map(pair).collect()
}
