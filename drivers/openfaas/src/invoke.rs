//! Calls of functions: what is sent, and what is made of the answer.

use std::time::Duration;

use function_gateway_core::forward::{
    Chunks as _, HttpAnswer, Payload, PayloadError, RunningCall, check_repeats, collected, one_line, streamed,
    until_stopped, wire_headers, wire_path,
};
use function_gateway_core::{
    Body, CallContext, Delivery, DriverRequest, Error, ErrorKind, InvokeResponse, Result, call_header, for_one_hop,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};

use crate::client::{Client, uri};
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

/// Passes a call on.
pub(crate) async fn invoke(
    client: &Client,
    cx: &CallContext,
    target: Target<'_>,
    request: DriverRequest,
    running: RunningCall,
) -> Result<InvokeResponse> {
    check_method(&request)?;
    let stop = running.stop_signal();
    if settings::is_async(&request.revision.spec) {
        return until_stopped(&stop, Box::pin(queue(client, cx, &target, request))).await;
    }
    let call = Call::new(client, cx, &target, request)?;
    until_stopped(&stop, execute(client, cx, &target, call, running)).await
}

/// A call as it is sent. It is put together before anything waits, so that the future of a call is small.
struct Call {
    sent: Request<Payload>,
    /// Where the payload's own error is found; only a stream has one.
    broke: Option<PayloadError>,
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
        let (payload, broke) = Payload::of(request.body);
        let sent = sent(request.method, url, headers, payload);
        Ok(Self { sent, broke, streaming, events, limit: request.max_response_bytes })
    }
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
            check_repeats(request, settings::accepts_repeats(spec), settings::ACCEPT_REPEATS)
        }
        _ => refuse(format!("the engine does not pass the method {method} on")),
    }
}

async fn execute(
    client: &Client,
    cx: &CallContext,
    target: &Target<'_>,
    call: Call,
    running: RunningCall,
) -> Result<InvokeResponse> {
    let Call { sent, broke, streaming, events, limit } = call;
    if broke.is_some() {
        // A payload that can be read once must not be lost on what is not there.
        Box::pin(present(client, cx, target)).await?;
    }
    let is_head = *sent.method() == Method::HEAD;
    let mut answer = match client.http(cx).await?.calls.send(sent).await {
        Ok(answer) => answer,
        Err(error) => return Err(broke.and_then(|broke| broke.take()).unwrap_or(error)),
    };
    let (status, declared) = (answer.status, answer.declared());
    let mut headers = std::mem::take(&mut answer.headers);
    let signs = Signs::of(status, &headers, is_head || declared == Some(0), events);
    match error::of_call(&signs) {
        Meaning::Answer => {}
        // Boxed, as it is rare and would make the future of every call larger.
        Meaning::Error(fault) => return Err(fault.error(signs.status, &headers, &Box::pin(text(answer)).await)),
        Meaning::Missing => return Err(Box::pin(missing(client, cx, target, answer)).await),
    }
    for_one_hop(&mut headers);
    for name in &OF_THE_ENGINE {
        headers.remove(name);
    }
    if declared.is_some_and(|declared| declared > limit) && !is_head {
        return Err(Error::too_large(ErrorKind::OutputTooLarge, "function's answer", limit));
    }
    let body = match streaming {
        true => streamed(answer, declared, limit, running),
        false => Body::from(collected(answer, limit).await?),
    };
    let mut response = InvokeResponse::new(status, body);
    response.headers = headers;
    Ok(response)
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
    let sent = sent(Method::POST, url, headers, Payload::Bytes(payload));
    let mut answer = client.http(cx).await?.calls.send(sent).await?;
    let (status, headers) = (answer.status, std::mem::take(&mut answer.headers));
    if status == StatusCode::ACCEPTED {
        return Ok(InvokeResponse::new(StatusCode::ACCEPTED, ""));
    }
    Err(error::of_queue(status, &headers, &text(answer).await))
}

fn sent(method: Method, url: Uri, headers: HeaderMap, payload: Payload) -> Request<Payload> {
    let mut sent = Request::new(payload);
    (*sent.method_mut(), *sent.uri_mut(), *sent.headers_mut()) = (method, url, headers);
    sent
}

/// The address of a call.
fn url(client: &Client, route: &str, target: &Target<'_>, request: &DriverRequest) -> Result<Uri> {
    let query = request.query.as_deref();
    let path = wire_path(&request.path, query)?;
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
        return client.known_uri((route, target.namespace, target.service), plain);
    }
    let mut url = client.url_below(&(plain() + &path));
    url.set_query(query);
    uri(&url)
}

fn headers(cx: &CallContext, request: &mut DriverRequest) -> HeaderMap {
    let mut headers = wire_headers(cx, std::mem::take(&mut request.headers));
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
async fn missing(client: &Client, cx: &CallContext, target: &Target<'_>, answer: HttpAnswer) -> Error {
    let text = text(answer).await;
    let error = match client.function(cx, target).await {
        Ok(None) => not_deployed(),
        Ok(Some(document)) if document.held(target) == Held::Foreign => not_deployed(),
        Ok(Some(_)) => Error::new(ErrorKind::NotReady, "the function takes no calls yet, or not now"),
        Err(error) if error.kind() == ErrorKind::Unavailable => error,
        Err(error) => {
            Error::new(ErrorKind::Unavailable, "the engine can't look for the function now").with_source(error)
        }
    };
    error.with_delivery(Delivery::NotSent).with_detail(one_line(&text))
}

/// The start of an answer that is not the function's.
async fn text(mut answer: HttpAnswer) -> String {
    let mut read = Vec::new();
    let reading = async {
        while let Ok(Some(chunk)) = answer.chunk().await {
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

#[cfg(test)]
mod tests {
    use super::*;

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
