//! Bodies on their way between HTTP and the gateway.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body as HttpBody;
use bytes::Bytes;
use function_gateway_core::{Body, ByteStream, Deadline, Delivery, Error, ErrorKind, Result};
use futures_core::Stream;
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

/// The body of a request. Where no byte comes for `idle`, it ends with [`ErrorKind::RequestTimeout`].
pub(crate) fn of_request(body: HttpBody, idle: Duration) -> Body {
    if body.is_end_stream() {
        return Body::empty();
    }
    let declared = body.size_hint().exact();
    let upload = Body::from_stream(Upload { body: Some(body), idle, timer: None });
    match declared {
        Some(len) => upload.with_declared_len(len),
        None => upload,
    }
}

struct Upload {
    body: Option<HttpBody>,
    idle: Duration,
    /// Made when there is something to wait for.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Stream for Upload {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            let Some(body) = &mut this.body else { return Poll::Ready(None) };
            let error = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if let Some(timer) = &mut this.timer {
                        timer.as_mut().reset(Deadline::after(this.idle).instant().into());
                    }
                    let is_last = body.is_end_stream();
                    match frame.into_data() {
                        Ok(data) if !data.is_empty() => {
                            // Nobody need wait to be told the end.
                            if is_last {
                                this.body = None;
                            }
                            return Poll::Ready(Some(Ok(data)));
                        }
                        // Trailers say nothing to a function.
                        _ => continue,
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    let (kind, message) = match is_malformed(&error) {
                        true => (ErrorKind::InvalidArgument, "the payload's chunks are not as HTTP has them"),
                        false => (ErrorKind::Cancelled, "the payload broke off: the client closed the connection"),
                    };
                    Error::new(kind, message).with_delivery(Delivery::Unknown).with_source(error)
                }
                Poll::Ready(None) => {
                    this.body = None;
                    return Poll::Ready(None);
                }
                Poll::Pending => {
                    let idle = this.idle;
                    let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                    ready!(timer.as_mut().poll(cx));
                    let message = format!("no byte of the payload came for {} ms", idle.as_millis());
                    Error::new(ErrorKind::RequestTimeout, message).with_delivery(Delivery::Unknown)
                }
            };
            this.body = None;
            return Poll::Ready(Some(Err(error)));
        }
    }
}

/// Whether what was read is no body (RFC 9112, section 7.1), as servers tell by the error that is at the bottom.
fn is_malformed(error: &(dyn std::error::Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error| error.source());
    let mut kinds = causes.filter_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()));
    kinds.any(|kind| matches!(kind, io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

/// The body of an answer.
pub(crate) fn of_answer(body: Body) -> HttpBody {
    let len = body.len();
    match body.as_bytes() {
        Some(bytes) => HttpBody::from(bytes.clone()),
        None => HttpBody::new(Download { stream: body.into_stream(), left: len }),
    }
}

/// Chunks that become an answer.
struct Download {
    stream: ByteStream,
    /// How much is still to come, where that is known.
    left: Option<u64>,
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = &mut *self;
        let item = ready!(this.stream.as_mut().poll_next(cx));
        if let (Some(left), Some(Ok(chunk))) = (&mut this.left, &item) {
            *left = left.saturating_sub(chunk.len() as u64);
        }
        if let Some(Err(error)) = &item {
            tracing::debug!(target: "function_gateway::rest", ?error, "an answer broke off");
        }
        Poll::Ready(item.map(|chunk| chunk.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
