//! Serves a router on a listener of the host's: HTTP/1.1 and HTTP/2 (with prior knowledge), with the bounds that a server needs
//! which strangers can reach.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use function_gateway_core::{Error, ErrorKind, Result};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tower::ServiceExt as _;

/// Bounds of a server. Each has a default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// How long a client may take to send the head of a request, and how long a connection may be without one. Default: 30 s.
    pub header_timeout: Duration,
    /// The largest head of a request, in bytes. Default: 64 KiB.
    pub max_header_bytes: usize,
    /// How many connections there are at most; further ones wait to be accepted. Default: 10,000.
    pub max_connections: usize,
    /// How many requests an HTTP/2 connection has under way at most. Default: 256.
    pub max_streams: u32,
    /// How long requests under way may take once the server is to stop. Default: 30 s.
    pub grace: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_header_bytes: 64 * 1024,
            max_connections: 10_000,
            max_streams: 256,
            grace: Duration::from_secs(30),
        }
    }
}

impl ServeOptions {
    /// Sets how long a client may take to send the head of a request.
    #[must_use]
    pub fn with_header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// Sets how many connections there are at most.
    #[must_use]
    pub fn with_max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Sets how long requests under way may take once the server is to stop.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }
}

/// hyper's least buffer for HTTP/1 heads.
const MIN_HEADER_BYTES: usize = 8192;
/// Between two tries to accept where the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// So that a client that is gone without a word is noticed on HTTP/2.
const H2_PING_EVERY: Duration = Duration::from_secs(20);

/// Serves until `shutdown` is ready; then takes no more connections, lets requests under way end for at most `options.grace`, and
/// returns. Begin [`Gateway::shutdown`](function_gateway_core::Gateway::shutdown) at the same time, since that ends what would
/// go on for ever, such as a log that is followed.
///
/// A client that closes its side of an HTTP/1 connection while it waits is taken to have gone: its call is cancelled.
///
/// # Errors
/// [`ErrorKind::Internal`] where the listener is broken.
///
/// # Cancel safety
/// Dropping the future leaves the listener closed and requests under way to themselves.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let permits = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let builder = Arc::new(builder(&options));
    // Its end tells the connections that the server is to stop.
    let (stop, stopping) = watch::channel(());
    tokio::pin!(shutdown);
    loop {
        let accepted = async {
            let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
            let (stream, peer) = listener.accept().await?;
            Ok::<_, io::Error>((stream, peer, permit))
        };
        let (stream, peer, permit) = tokio::select! {
            () = &mut shutdown => break,
            accepted = accepted => match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_of_connection(&error) => continue,
                Err(error) if is_passing(&error) => {
                    tracing::error!(target: "function_gateway::rest", %error, "no connection can be accepted now");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
                Err(error) => {
                    return Err(Error::new(ErrorKind::Internal, "the listener is broken").with_source(error));
                }
            },
        };
        // Answers are written whole or in chunks that somebody waits for.
        let _ = stream.set_nodelay(true);
        let stream = Opening::new(stream, options.header_timeout);
        let connection =
            connection(Arc::clone(&builder), stream, peer, router.clone(), (stopping.clone(), options.header_timeout));
        tokio::spawn(async move {
            connection.await;
            drop(permit);
        });
    }
    drop((listener, stop));
    let all = u32::try_from(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
    // Each connection has one as long as it is there.
    if tokio::time::timeout(options.grace, permits.acquire_many(all)).await.is_err() {
        tracing::warn!(target: "function_gateway::rest", "requests were still under way when the time for them was over");
    }
    Ok(())
}

fn builder(options: &ServeOptions) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_buf_size(options.max_header_bytes.max(MIN_HEADER_BYTES));
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_EVERY)
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(u32::try_from(options.max_header_bytes).unwrap_or(u32::MAX));
    builder
}

async fn connection(
    builder: Arc<auto::Builder<TokioExecutor>>,
    stream: Opening,
    peer: SocketAddr,
    router: Router,
    (mut stopping, idle): (watch::Receiver<()>, Duration),
) {
    let streams = Arc::new(Streams::default());
    let counted = Arc::clone(&streams);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
        let stream = counted.begin(request.version());
        let router = router.clone();
        async move {
            let response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
            Ok::<Response, Infallible>(match stream {
                Some(stream) => response.map(|body| axum::body::Body::new(Counted { body, _stream: stream })),
                None => response,
            })
        }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut is_closing = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            // It only ever ends.
            _ = stopping.changed(), if !is_closing => {}
            () = streams.idle_for(idle), if !is_closing => {}
        }
        is_closing = true;
        connection.as_mut().graceful_shutdown();
    };
    if let Err(error) = ended {
        tracing::debug!(target: "function_gateway::rest", %peer, error, "a connection broke off");
    }
}

/// The requests under way on a connection of HTTP/2, on which hyper has no bound for the time without one.
struct Streams(Mutex<Under>);

enum Under {
    /// HTTP/1: hyper bounds the time until the next head.
    Bounded,
    Way(usize),
    Idle(Instant),
}

impl Default for Streams {
    fn default() -> Self {
        Self(Mutex::new(Under::Idle(Instant::now())))
    }
}

impl Streams {
    fn state(&self) -> MutexGuard<'_, Under> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request until what it gives is dropped.
    fn begin(self: &Arc<Self>, version: http::Version) -> Option<StreamGuard> {
        let mut state = self.state();
        if version != http::Version::HTTP_2 {
            *state = Under::Bounded;
            return None;
        }
        *state = match *state {
            Under::Way(count) => Under::Way(count + 1),
            _ => Under::Way(1),
        };
        Some(StreamGuard(Arc::clone(self)))
    }

    /// Waits until there has been no request for so long.
    async fn idle_for(&self, time: Duration) {
        loop {
            let since = match *self.state() {
                Under::Idle(since) => Some(since),
                Under::Way(_) | Under::Bounded => None,
            };
            match since.map(|since| since + time) {
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::time::sleep_until(until).await,
                None => tokio::time::sleep(time).await,
            }
        }
    }
}

struct StreamGuard(Arc<Streams>);

impl Drop for StreamGuard {
    fn drop(&mut self) {
        let mut state = self.0.state();
        if let Under::Way(count) = *state {
            *state = if count > 1 { Under::Way(count - 1) } else { Under::Idle(Instant::now()) };
        }
    }
}

/// The body of an answer, until whose end its request is under way.
struct Counted {
    body: axum::body::Body,
    _stream: StreamGuard,
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<http_body::Frame<bytes::Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A connection that has to begin in time. Which HTTP a client speaks shows in its first bytes, and nothing else bounds how long
/// those take.
struct Opening {
    stream: TcpStream,
    /// Until enough has come to know it, or an answer is on its way.
    waiting: Option<(Pin<Box<Sleep>>, usize)>,
}

/// The length of the preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

impl Opening {
    fn new(stream: TcpStream, timeout: Duration) -> Self {
        Self { stream, waiting: Some((Box::pin(tokio::time::sleep(timeout)), PREFACE_BYTES)) }
    }
}

impl AsyncRead for Opening {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let Some((timer, left)) = &mut this.waiting else { return polled };
        *left = left.saturating_sub(buffer.filled().len() - before);
        if *left == 0 {
            this.waiting = None;
        } else if polled.is_pending() && timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl AsyncWrite for Opening {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.waiting = None;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.waiting = None;
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }
}

/// The connection was gone before it could be accepted.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The process has too many files open (`EMFILE`, `ENFILE`), or the system no memory (`ENOBUFS`, `ENOMEM`).
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(23 | 24 | 105 | 12))
}
