//! What goes out to the worker: payloads and documents.

use std::io;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use function_gateway_core::{Error, ErrorKind, Result};
use futures_util::FutureExt as _;
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::{Event, Line, Shared};
use crate::worker::http::RequestBody;

/// What a payload without a byte is to a worker, as AWS has it: runtimes take JSON, and nothing is none.
pub(super) const EMPTY: &[u8] = b"{}";

/// The body of a response to the worker.
#[derive(Debug)]
pub(super) enum Outgoing {
    Bytes(Bytes),
    Stream(Streaming),
}

/// A payload that comes as a stream.
#[derive(Debug)]
pub(super) struct Streaming {
    payload: RequestBody,
    trouble: Option<oneshot::Sender<Error>>,
    stop: oneshot::Receiver<()>,
    /// Whether a byte has come.
    begun: bool,
    ended: bool,
}

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if self.stop.poll_unpin(cx).is_ready() {
            self.ended = true;
            let error = Error::new(ErrorKind::Cancelled, "the call is over");
            return Poll::Ready(Some(Err(error)));
        }
        match ready!(Pin::new(&mut self.payload).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.begun |= frame.data_ref().is_some_and(|data| !data.is_empty());
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.ended = true;
                if let Some(trouble) = self.trouble.take() {
                    // Who no longer waits does not mind.
                    let _ = trouble.send(error.clone());
                }
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.ended = true;
                Poll::Ready((!self.begun).then(|| Ok(Frame::data(Bytes::from_static(EMPTY)))))
            }
        }
    }
}

impl http_body::Body for Outgoing {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        match self.get_mut() {
            Self::Bytes(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(Some(Ok(Frame::data(mem::take(bytes))))),
            Self::Stream(stream) => stream.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Bytes(bytes) if bytes.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Stream(stream) => stream.payload.size_hint(),
        }
    }
}

/// An invocation that a connection was given, until the first byte of it is written. Dropped before, it goes back.
#[derive(Debug)]
pub(super) struct Handed {
    shared: Arc<Shared>,
    id: String,
    /// To offer it again; `None` where the payload is a stream, which can be sent once.
    again: Option<(Event, Line)>,
    is_written: bool,
}

impl Handed {
    /// Splits an invocation in what is sent and what is kept.
    pub(super) fn new(shared: Arc<Shared>, event: Event, line: Line) -> (Self, Outgoing) {
        let Event { id, head, body } = event;
        let (again, outgoing) = match body {
            RequestBody::Bytes(bytes) => {
                let event = Event { id: id.clone(), head, body: RequestBody::Bytes(bytes.clone()) };
                (Some((event, line)), Outgoing::Bytes(bytes))
            }
            payload => {
                let Line { trouble, stop } = line;
                let trouble = Some(trouble);
                (None, Outgoing::Stream(Streaming { payload, trouble, stop, begun: false, ended: false }))
            }
        };
        (Self { shared, id, again, is_written: false }, outgoing)
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        if !self.is_written {
            self.shared.put_back(&self.id, self.again.take());
        }
    }
}

/// What a connection was given and has not begun to write.
#[derive(Debug, Clone, Default)]
pub(super) struct Unwritten(Arc<Mutex<Option<Handed>>>);

impl Unwritten {
    pub(super) fn set(&self, handed: Handed) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(handed);
    }

    fn is_written(&self) {
        let handed = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut handed) = handed {
            handed.is_written = true;
        }
    }
}

/// A connection that knows whether what it was given has left it.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    unwritten: Unwritten,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> (Self, Unwritten) {
        let unwritten = Unwritten::default();
        (Self { stream, unwritten: unwritten.clone() }, unwritten)
    }

    fn wrote(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.unwritten.is_written();
        }
        written
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.wrote(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        self.wrote(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
