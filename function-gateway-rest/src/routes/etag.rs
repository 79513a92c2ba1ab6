//! Entity tags and conditional requests (RFC 9110, sections 8.8.3 and 13).

use axum::response::{IntoResponse as _, Response};
use function_gateway_core::{Function, Revision};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};

use crate::extract::invalid;
use crate::problem::Problem;

/// The tag of a representation, with its quotation marks.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Etag(String);

impl Etag {
    /// Changes with specification and status, and is another one for another function of the name.
    pub(super) fn of_function(function: &Function) -> Self {
        Self(format!("\"{}.{}\"", function.id, function.version))
    }

    pub(super) fn of_revision(revision: &Revision) -> Self {
        Self(format!("\"{}@{}\"", revision.function, revision.generation))
    }

    pub(super) fn new(opaque: &str) -> Self {
        Self(format!("\"{opaque}\""))
    }

    pub(super) fn set(&self, response: &mut Response) {
        if let Ok(value) = HeaderValue::from_str(&self.0) {
            response.headers_mut().insert(header::ETAG, value);
        }
    }

    /// The answer to a client that has this representation already.
    pub(super) fn not_modified(&self, headers: &HeaderMap) -> Option<Response> {
        let known = values(headers, header::IF_NONE_MATCH)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.0);
        known.then(|| {
            let mut response = StatusCode::NOT_MODIFIED.into_response();
            self.set(&mut response);
            response
        })
    }
}

/// What is compressed is another representation, which must not have the same strong tag (RFC 9110, section 8.8.3.3).
pub(super) async fn weak_where_compressed(mut response: Response) -> Response {
    let headers = response.headers_mut();
    if headers.contains_key(header::CONTENT_ENCODING)
        && let Some(tag) = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok())
        && let Ok(weak) = HeaderValue::try_from(format!("W/{tag}"))
    {
        headers.insert(header::ETAG, weak);
    }
    response
}

fn values(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    // Our tags hold no comma, so a tag that does is another one however it is split.
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// What `If-Match` wants.
#[derive(Debug)]
pub(super) enum IfMatch {
    /// Whatever there is.
    Any,
    /// One of these.
    Tags(Vec<String>),
}

impl IfMatch {
    /// A tag that is weak names the same version of the function: only the coding of its representation was another one.
    pub(super) fn includes(&self, etag: &Etag) -> bool {
        match self {
            Self::Any => true,
            Self::Tags(tags) => tags.iter().any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == etag.0),
        }
    }

    pub(super) fn is_one(&self) -> bool {
        matches!(self, Self::Tags(_))
    }
}

pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<IfMatch>, Problem> {
    if !headers.contains_key(header::IF_MATCH) {
        return Ok(None);
    }
    let tags: Vec<_> = values(headers, header::IF_MATCH).map(str::to_owned).collect();
    if tags.iter().any(|tag| tag == "*") {
        return Ok(Some(IfMatch::Any));
    }
    let is_tag = |tag: &String| {
        let opaque = tag.strip_prefix("W/").unwrap_or(tag);
        opaque.len() >= 2 && opaque.starts_with('"') && opaque.ends_with('"')
    };
    if tags.is_empty() || !tags.iter().all(is_tag) {
        return Err(invalid("`If-Match` is an ETag as it was answered, with its quotation marks, or *"));
    }
    Ok(Some(IfMatch::Tags(tags)))
}
