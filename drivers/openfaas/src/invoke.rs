//! Calls of functions: what is sent, and what is made of the answer.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use function_gateway_core::{
    Body, CallContext, Delivery, DriverRequest, Error, ErrorKind, InvokeResponse, Result, Timestamp, TraceParent,
    call_header, for_one_hop,
};
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use tokio_util::sync::CancellationToken;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::client::Client;
use crate::error::{self, Meaning, Signs};
use crate::mapping::Held;
use crate::names::Target;
use crate::settings;

/// The largest payload that the engine queues (256 times 1,000).
pub(crate) const MAX_QUEUED_BYTES: u64 = 256_000;

const CALL_ID: HeaderName = HeaderName::from_static("x-call-id");
const CALLBACK_URL: HeaderName = HeaderName::from_static("x-callback-url");
const TIMEOUT: HeaderName = HeaderName::from_static("x-timeout");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
/// What the engine adds to an answer. A caller gets what the function has said, and not which engine it ran on.
const OF_THE_ENGINE: [HeaderName; 4] = [
    HeaderName::from_static("x-served-by"),
    HeaderName::from_static("x-start-time"),
    HeaderName::from_static("x-duration-seconds"),
    HeaderName::from_static("x-openfaas-internal"),
];
/// How much is read of an answer that is not the function's, and for how long.
const MAX_TEXT: usize = 4 * 1024;
const TEXT_WITHIN: Duration = Duration::from_secs(1);

/// What a call holds until its answer has ended.
pub(crate) struct Hold {
    pub(crate) stop: CancellationToken,
    /// Tells a shutdown that the call goes on.
    pub(crate) _token: TaskTrackerToken,
}

/// Passes a call on.
pub(crate) async fn invoke(
    client: &Client,
    cx: &CallContext,
    target: Target<'_>,
    request: DriverRequest,
    hold: Hold,
) -> Result<InvokeResponse> {
    check_method(&request)?;
    let stop = hold.stop.clone();
    if settings::is_async(&request.revision.spec) {
        return tokio::select! {
            biased;
            answered = Box::pin(queue(client, cx, &target, request)) => answered,
            () = stop.cancelled() => Err(stopped()),
        };
    }
    let call = Call::new(client, cx, &target, request)?;
    tokio::select! {
        biased;
        answered = execute(client, cx, &target, call, hold) => answered,
        () = stop.cancelled() => Err(stopped()),
    }
}

/// A call as it is sent. It is put together before anything waits, so that the future of a call is small.
struct Call {
    sent: reqwest::Request,
    /// Where the payload's own error is found; only a stream has one.
    broke: Option<Slot>,
    streaming: bool,
    events: bool,
    limit: u64,
}

impl Call {
    fn new(client: &Client, cx: &CallContext, target: &Target<'_>, mut request: DriverRequest) -> Result<Self> {
        let url = url(client, "function", target, &request)?;
        let mut headers = headers(cx, &mut request);
        let streaming = request.revision.spec.streaming;
        let events = streaming && take_events(&mut headers);
        let mut sent = reqwest::Request::new(request.method, url);
        *sent.headers_mut() = headers;
        let (body, broke) = payload(request.body);
        *sent.body_mut() = body;
        Ok(Self { sent, broke, streaming, events, limit: request.max_response_bytes })
    }
}

fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "the gateway's driver was shut down").with_delivery(Delivery::Unknown)
}

/// Which methods the engine passes on, and which of them once at most.
fn check_method(request: &DriverRequest) -> Result<()> {
    let (method, spec) = (&request.method, &request.revision.spec);
    let refuse = |reason: String| Err(Error::new(ErrorKind::Unsupported, reason).with_operation("invoke"));
    if settings::is_async(spec) {
        return match *method {
            Method::POST => Ok(()),
            _ => refuse(format!("the engine queues calls by POST only, not by {method}")),
        };
    }
    match *method {
        Method::POST | Method::PUT | Method::PATCH | Method::DELETE => Ok(()),
        // The engine's gateway sends these again where a connection to its provider dies under them.
        Method::GET | Method::HEAD | Method::OPTIONS => {
            // The path of readiness is asked again and again anyway.
            let probes = *method == Method::GET
                && request.query.is_none()
                && spec.readiness_path.as_deref().is_some_and(|path| path == request.path);
            if probes || settings::accepts_repeats(spec) {
                return Ok(());
            }
            refuse(format!(
                "the engine may execute {method} twice, and the function is not declared idempotent: see {}",
                settings::ACCEPT_REPEATS
            ))
        }
        _ => refuse(format!("the engine does not pass the method {method} on")),
    }
}

async fn execute(
    client: &Client,
    cx: &CallContext,
    target: &Target<'_>,
    call: Call,
    hold: Hold,
) -> Result<InvokeResponse> {
    let Call { sent, broke, streaming, events, limit } = call;
    if broke.is_some() {
        // A payload that can be read once must not be lost on what is not there.
        Box::pin(present(client, cx, target)).await?;
    }
    let is_head = *sent.method() == Method::HEAD;
    let mut response = match client.http(cx).await?.execute(sent).await {
        Ok(response) => response,
        Err(error) => return Err(broken(error, broke.as_deref())),
    };
    let (status, declared) = (response.status(), response.content_length());
    let mut headers = std::mem::take(response.headers_mut());
    let signs = Signs::of(status, &headers, is_head || declared == Some(0), events);
    match error::of_call(&signs) {
        Meaning::Answer => {}
        // Boxed, as it is rare and would make the future of every call larger.
        Meaning::Error(fault) => return Err(fault.error(signs.status, &headers, &Box::pin(text(response)).await)),
        Meaning::Missing => return Err(Box::pin(missing(client, cx, target, response)).await),
    }
    for_one_hop(&mut headers);
    for name in &OF_THE_ENGINE {
        headers.remove(name);
    }
    if declared.is_some_and(|declared| declared > limit) && !is_head {
        return Err(Error::too_large(ErrorKind::OutputTooLarge, "function's answer", limit));
    }
    let body = match streaming {
        true => streamed(response, declared, limit, hold),
        false => Body::from(collected(response, limit).await?),
    };
    let mut answer = InvokeResponse::new(status, body);
    answer.headers = headers;
    Ok(answer)
}

/// Hands a call to the engine's queue.
async fn queue(
    client: &Client,
    cx: &CallContext,
    target: &Target<'_>,
    mut request: DriverRequest,
) -> Result<InvokeResponse> {
    let url = url(client, "async-function", target, &request)?;
    if request.body.len().is_some_and(|len| len > MAX_QUEUED_BYTES) {
        return Err(Error::too_large(ErrorKind::PayloadTooLarge, "payload", MAX_QUEUED_BYTES));
    }
    // The engine queues calls of what it does not have.
    present(client, cx, target).await?;
    let mut headers = headers(cx, &mut request);
    // Where an answer goes is the developer's to say, not a caller's.
    headers.remove(&CALLBACK_URL);
    if let Some(url) = settings::callback_url(&request.revision.spec).and_then(|url| HeaderValue::try_from(url).ok()) {
        headers.insert(CALLBACK_URL, url);
    }
    let payload = request.body.collect(MAX_QUEUED_BYTES).await?;
    let mut sent = reqwest::Request::new(Method::POST, url);
    *sent.headers_mut() = headers;
    *sent.body_mut() = Some(payload.into());
    let response = client.http(cx).await?.execute(sent).await.map_err(error::of_transport)?;
    let (status, headers) = (response.status(), response.headers().clone());
    if status == StatusCode::ACCEPTED {
        return Ok(InvokeResponse::new(StatusCode::ACCEPTED, ""));
    }
    Err(error::of_queue(status, &headers, &text(response).await))
}

/// The address of a call. The path is refused that the gateway would answer with a redirect to a cleaned one: what is sent
/// again elsewhere may lose its payload, and `..` would leave the function.
fn url(client: &Client, route: &str, target: &Target<'_>, request: &DriverRequest) -> Result<reqwest::Url> {
    let invalid = |reason: &'static str| Error::new(ErrorKind::InvalidArgument, reason);
    let path = wire_path(&request.path).map_err(invalid)?;
    let query = request.query.as_deref();
    if query.is_some_and(|query| query.bytes().any(|byte| byte <= b' ' || byte == 0x7f || byte == b'#')) {
        return Err(invalid("the query holds a sign that no query can hold"));
    }
    let plain = || {
        let mut below = String::with_capacity(128);
        for part in ["/", route, "/", target.service] {
            below.push_str(part);
        }
        if let Some(namespace) = target.namespace {
            below.push('.');
            below.push_str(namespace);
        }
        below
    };
    if path.is_empty() && query.is_none() {
        return Ok(client.known_url((route, target.namespace, target.service), plain));
    }
    let mut url = client.url_below(&(plain() + &path));
    url.set_query(query);
    Ok(url)
}

fn wire_path(path: &str) -> Result<Cow<'_, str>, &'static str> {
    if path.is_empty() {
        return Ok(Cow::Borrowed(path));
    }
    if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || matches!(byte, 0x7f | b'?' | b'#')) {
        return Err("the path holds a sign that no path can hold");
    }
    let plain = !path.contains(['%', '\\']) && !path.contains("//") && !path.contains("/.");
    if plain {
        return Ok(Cow::Borrowed(path));
    }
    // The gateway looks at what is decoded.
    let decoded = percent_decoded(path);
    let mut segments = decoded.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let unclean = matches!(segment, b"." | b"..") || (segment.is_empty() && segments.peek().is_some());
        if unclean {
            return Err("the path has an empty part, `.` or `..`, which the engine does not pass on");
        }
    }
    // A URL takes it for a slash.
    Ok(path.replace('\\', "%5C").into())
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                decoded.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                decoded.push(*first);
                rest = after;
            }
        }
    }
    decoded
}

fn headers(cx: &CallContext, request: &mut DriverRequest) -> HeaderMap {
    let mut headers = std::mem::take(&mut request.headers);
    for_one_hop(&mut headers);
    for name in [header::CONTENT_LENGTH, header::EXPECT, header::HOST] {
        headers.remove(name);
    }
    tell(cx, &mut headers);
    if !headers.contains_key(&CALL_ID)
        && let Some(id) = headers.get(call_header::INVOCATION_ID).cloned()
    {
        headers.insert(CALL_ID, id);
    }
    // The watchdog ends by itself what nobody waits for any more.
    if let Some(deadline) = cx.deadline()
        && !headers.contains_key(&TIMEOUT)
        && let Ok(left) = HeaderValue::try_from(format!("{}ms", deadline.remaining().as_millis().max(1)))
    {
        headers.insert(TIMEOUT, left);
    }
    headers
}

/// What the gateway tells a function about its call.
static TOLD: [HeaderName; 5] = [
    HeaderName::from_static(call_header::INVOCATION_ID),
    HeaderName::from_static(call_header::DEADLINE),
    HeaderName::from_static(call_header::ATTEMPT),
    HeaderName::from_static(TraceParent::HEADER),
    HeaderName::from_static(TraceParent::STATE_HEADER),
];

/// Does what [`set_call_headers`](function_gateway_core::set_call_headers) does, with names that are not read again for each call and
/// texts that are as large as they get from the start. A test holds it to that.
fn tell(cx: &CallContext, headers: &mut HeaderMap) {
    if !headers.is_empty() {
        for name in &TOLD {
            headers.remove(name);
        }
    }
    let [id, deadline, attempt, trace, state] = &TOLD;
    let mut set = |name: &HeaderName, value: Option<&dyn fmt::Display>| {
        let Some(value) = value else { return };
        let mut text = String::with_capacity(64);
        // A trace state that is no value of a header is left out.
        if write!(text, "{value}").is_ok()
            && let Ok(value) = HeaderValue::try_from(text)
        {
            headers.insert(name.clone(), value);
        }
    };
    let by = cx.deadline().map(|deadline| Timestamp::now().plus(deadline.remaining()).as_micros() / 1000);
    set(id, cx.invocation_id().as_ref().map(|id| id as _));
    set(deadline, by.as_ref().map(|by| by as _));
    set(attempt, Some(&cx.attempt()));
    set(trace, cx.trace().as_ref().map(|trace| trace as _));
    set(state, cx.trace_state().as_ref().map(|state| state as _));
}

/// Asks for an answer that is not held back, unless the caller asks for something of its own.
fn take_events(headers: &mut HeaderMap) -> bool {
    match headers.get(header::ACCEPT) {
        Some(accept) if accept != "*/*" => *accept == EVENTS,
        _ => {
            headers.insert(header::ACCEPT, EVENTS);
            true
        }
    }
}

type Slot = Arc<Mutex<Option<Error>>>;

/// The payload, and where its own error is found should it break off.
fn payload(body: Body) -> (Option<reqwest::Body>, Option<Slot>) {
    if let Some(bytes) = body.as_bytes() {
        return ((!bytes.is_empty()).then(|| bytes.clone().into()), None);
    }
    let broke = Slot::default();
    let slot = Arc::clone(&broke);
    let stream = body.into_stream().inspect(move |chunk| {
        if let Err(error) = chunk {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        }
    });
    (Some(reqwest::Body::wrap_stream(stream)), Some(broke))
}

fn broken(error: reqwest::Error, broke: Option<&Mutex<Option<Error>>>) -> Error {
    let own = broke.and_then(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take());
    match own {
        // Part of the payload may have reached the function.
        Some(own) => {
            let delivery = own.delivery().max(Delivery::Unknown);
            own.with_delivery(delivery)
        }
        None => error::of_transport(error),
    }
}

fn not_deployed() -> Error {
    Error::new(ErrorKind::NotDeployed, "the engine does not hold the function")
}

/// Says that a target is not there before anything is sent.
async fn present(client: &Client, cx: &CallContext, target: &Target<'_>) -> Result<()> {
    let held = client.function(cx, target).await.map_err(|error| error.with_delivery(Delivery::NotSent))?;
    match held.map(|document| document.held(target)) {
        None | Some(Held::Foreign) => Err(not_deployed()),
        Some(_) => Ok(()),
    }
}

/// What it means that the engine does not find a function: it may be gone, not ready, or its provider out of reach. Nothing
/// was passed on in any case.
async fn missing(client: &Client, cx: &CallContext, target: &Target<'_>, response: reqwest::Response) -> Error {
    let text = text(response).await;
    let error = match client.function(cx, target).await {
        Ok(None) => not_deployed(),
        Ok(Some(document)) if document.held(target) == Held::Foreign => not_deployed(),
        Ok(Some(_)) => Error::new(ErrorKind::NotReady, "the function takes no calls yet, or not now"),
        Err(error) if error.kind() == ErrorKind::Unavailable => error,
        Err(error) => {
            Error::new(ErrorKind::Unavailable, "the engine can't look for the function now").with_source(error)
        }
    };
    error.with_delivery(Delivery::NotSent).with_detail(error::cut(&text))
}

/// The start of an answer that is not the function's.
async fn text(mut response: reqwest::Response) -> String {
    let mut read = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            read.extend_from_slice(&chunk);
            if read.len() >= MAX_TEXT {
                break;
            }
        }
    };
    // It only says more about an error that is known already.
    let _ = tokio::time::timeout(TEXT_WITHIN, reading).await;
    read.truncate(MAX_TEXT);
    String::from_utf8_lossy(&read).into_owned()
}

async fn collected(mut response: reqwest::Response, limit: u64) -> Result<Bytes> {
    let mut first = Bytes::new();
    let mut rest: Option<BytesMut> = None;
    let mut read = 0_u64;
    while let Some(chunk) = response.chunk().await.map_err(error::of_answer)? {
        read = read.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
        if read > limit {
            return Err(Error::too_large(ErrorKind::OutputTooLarge, "function's answer", limit));
        }
        match &mut rest {
            Some(rest) => rest.extend_from_slice(&chunk),
            None if first.is_empty() => first = chunk,
            None => {
                let mut joined = BytesMut::with_capacity(first.len() + chunk.len());
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&chunk);
                rest = Some(joined);
            }
        }
    }
    Ok(rest.map_or(first, BytesMut::freeze))
}

/// An answer as it comes. It ends with an error where it breaks off, grows past its limit, or the driver is shut down.
fn streamed(response: reqwest::Response, declared: Option<u64>, limit: u64, hold: Hold) -> Body {
    let state = Some((response, 0_u64, hold));
    let stream = stream::unfold(state, move |state| async move {
        let (mut response, mut read, hold) = state?;
        let chunk = tokio::select! {
            biased;
            chunk = response.chunk() => chunk,
            () = hold.stop.cancelled() => return Some((Err(stopped().with_delivery(Delivery::Executed)), None)),
        };
        match chunk.transpose()? {
            Ok(chunk) => {
                read = read.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                if read > limit {
                    let error = Error::too_large(ErrorKind::OutputTooLarge, "function's answer", limit);
                    return Some((Err(error), None));
                }
                Some((Ok(chunk), Some((response, read, hold))))
            }
            Err(error) => Some((Err(error::of_answer(error)), None)),
        }
    });
    let body = Body::from_stream(stream);
    match declared {
        Some(declared) => body.with_declared_len(declared),
        None => body,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_passes_as_it_came_or_is_refused() {
        for path in ["", "/", "/a", "/a/", "/a%20b/c", "/sub/path/", "/.well-known/x", "/a%2Fb", "/..a", "/%zz", "/a~b"]
        {
            assert_eq!(wire_path(path).as_deref(), Ok(path));
        }
        assert_eq!(wire_path("/a\\..\\b").as_deref(), Ok("/a%5C..%5Cb"));
        for path in
            ["//", "//a", "/a//b", "/..", "/../x", "/a/./b", "/a/%2e%2E/b", "/%2Fa", "/a%2F..%2Fb", "a", "/a?b", "/a b"]
        {
            assert!(wire_path(path).is_err(), "{path}");
        }
    }

    #[test]
    fn a_function_is_told_what_core_tells() {
        let principal = function_gateway_core::Principal::new("acme".parse().unwrap(), "ada".parse().unwrap());
        let bare = CallContext::new(principal);
        let full = bare
            .clone()
            .with_invocation_id(function_gateway_core::InvocationId::generate())
            .with_trace(TraceParent::root())
            .with_trace_state("a=b");
        for cx in [bare, full] {
            let mut ours = HeaderMap::new();
            for name in TOLD.iter().chain([&header::ACCEPT]) {
                ours.insert(name.clone(), HeaderValue::from_static("forged"));
            }
            let mut cores = ours.clone();
            tell(&cx, &mut ours);
            function_gateway_core::set_call_headers(&cx, &mut cores);
            assert_eq!(ours, cores);
        }
    }

    #[test]
    fn events_are_asked_for_unless_the_caller_asks_for_something() {
        for (accept, events, sent) in [
            (None, true, "text/event-stream"),
            (Some("*/*"), true, "text/event-stream"),
            (Some("text/event-stream"), true, "text/event-stream"),
            (Some("application/json"), false, "application/json"),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(accept) = accept {
                headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            }
            assert_eq!(take_events(&mut headers), events);
            assert_eq!(headers[header::ACCEPT], sent);
        }
    }
}
