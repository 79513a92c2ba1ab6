//! Serves a router on a listener of the host's: HTTP/1.1 and HTTP/2 (with prior knowledge), with the bounds that a server needs
//! which strangers can reach.

mod threads;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use bytes::{Buf, Bytes};
use function_gateway_core::{Error, ErrorKind, Result};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use http::Version;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};
use tower::ServiceExt as _;

use crate::envelope::{missing_host, refused, unfit_host};

pub use threads::Threads;

/// Bounds of a server. Each has a default.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ServeOptions {
    /// How long a client may take to send the head of a request, and how long a connection may be without one. A client of HTTP/2
    /// is told first, and has up to 5 s more to let go. Default: 30 s.
    pub header_timeout: Duration,
    /// The largest head of a request, in bytes; no less than [`MIN_HEADER_BYTES`](Self::MIN_HEADER_BYTES). Default: 64 KiB.
    pub max_header_bytes: usize,
    /// How many connections there are at most; further ones wait to be accepted. Default: 10,000.
    pub max_connections: usize,
    /// How many requests an HTTP/2 connection has under way at most. Default: 256.
    pub max_streams: u32,
    /// How long a client may read nothing of what is there for it; then its connection is cut off, with HTTP/2 all streams of it.
    /// Default: 5 min, as long as
    /// [`GatewayConfig::max_reader_pause`](function_gateway_core::GatewayConfig::max_reader_pause), which gives up calls alone.
    pub write_timeout: Duration,
    /// How long requests under way may take once the server is to stop. Default: 30 s.
    pub grace: Duration,
    /// Runtimes that serve the connections, with their I/O and time enabled. Default: none, and [`serve`] does it on the runtime that
    /// it is called on.
    ///
    /// Give one of a single thread for each processor, as [`Threads`] are, and a request stays on its thread from its head to the end of
    /// its answer, the connection to a function of the driver `local-process` included. On a runtime of several threads it is handed from
    /// one processor to another at each step, which takes a fifth to a third more processor time (`docs/performance.md` has the figures). [`serve`] has an
    /// example.
    ///
    /// A new connection goes to the runtime that has the fewest of this server. What a request does in its own task is done there,
    /// middleware, authenticators and authorizers of the host among it: what blocks a thread holds up its other connections, and
    /// `tokio::task::block_in_place` panics there. Requests of HTTP/2 are served on the runtime that [`serve`] is called on, since a
    /// proxy may send all that it has by one connection.
    ///
    /// They have to be there, and be driven, until the gateway is shut down: connections to engines that a call has opened end
    /// with its runtime. The connection that finds one ended is lost with an event in the log; further ones go to the others.
    pub runtimes: Vec<Handle>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            header_timeout: Duration::from_secs(30),
            max_header_bytes: 64 * 1024,
            max_connections: 10_000,
            max_streams: 256,
            write_timeout: Duration::from_secs(300),
            grace: Duration::from_secs(30),
            runtimes: Vec::new(),
        }
    }
}

impl ServeOptions {
    /// The least bound on a head, as hyper has it.
    pub const MIN_HEADER_BYTES: usize = 8192;

    /// Sets how long a client may take to send the head of a request.
    #[must_use]
    pub fn with_header_timeout(mut self, timeout: Duration) -> Self {
        self.header_timeout = timeout;
        self
    }

    /// Sets how large the head of a request may be.
    #[must_use]
    pub fn with_max_header_bytes(mut self, bytes: usize) -> Self {
        self.max_header_bytes = bytes;
        self
    }

    /// Sets how many requests an HTTP/2 connection has under way at most.
    #[must_use]
    pub fn with_max_streams(mut self, streams: u32) -> Self {
        self.max_streams = streams;
        self
    }

    /// Sets how many connections there are at most.
    #[must_use]
    pub fn with_max_connections(mut self, connections: usize) -> Self {
        self.max_connections = connections;
        self
    }

    /// Sets how long a client may leave unread what is there for it.
    #[must_use]
    pub fn with_write_timeout(mut self, timeout: Duration) -> Self {
        self.write_timeout = timeout;
        self
    }

    /// Sets how long requests under way may take once the server is to stop.
    #[must_use]
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// Sets the runtimes that serve the connections.
    #[must_use]
    pub fn with_runtimes(mut self, runtimes: impl IntoIterator<Item = Handle>) -> Self {
        self.runtimes = runtimes.into_iter().collect();
        self
    }
}

/// hyper adds it to an instant, and panics where the sum overflows.
const NEVER: Duration = Duration::from_secs(86400 * 365);
/// Between two tries to accept where the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// For a client of HTTP/2 to let go of a connection without a request, once it is told to.
const LET_GO: Duration = Duration::from_secs(5);
/// So that a client that is gone without a word is noticed on HTTP/2.
const H2_PING_EVERY: Duration = Duration::from_secs(20);

/// Serves until `shutdown` is ready; then takes no more connections, lets requests under way end for at most `options.grace`, and
/// returns. Begin [`Gateway::shutdown`](function_gateway_core::Gateway::shutdown) at the same time, since that ends what would
/// go on for ever, such as a log that is followed.
///
/// A client that closes its side of an HTTP/1 connection while it waits is taken to have gone: its call is cancelled. One that
/// reads nothing of what is there for it for `options.write_timeout` is cut off.
///
/// # Errors
/// [`ErrorKind::Internal`] where the listener is broken.
///
/// # Cancel safety
/// Dropping the future leaves the listener closed and requests under way to themselves.
///
/// # Examples
/// With a thread for each processor:
/// ```no_run
/// use function_gateway_rest::serve::{ServeOptions, Threads, serve};
///
/// # async fn example(listener: tokio::net::TcpListener, router: axum::Router, stopped: impl Future<Output = ()>)
/// #     -> Result<(), Box<dyn std::error::Error>> {
/// let threads = Threads::for_each_processor()?;
/// serve(listener, router, ServeOptions::default().with_runtimes(threads.runtimes()), stopped).await?;
/// # Ok(())
/// # }
/// ```
pub async fn serve(
    listener: TcpListener,
    router: Router,
    options: ServeOptions,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let permits = Arc::new(Semaphore::new(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let builder = Arc::new(builder(&options));
    let mut places: VecDeque<_> = options.runtimes.iter().cloned().map(Place::new).collect();
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
        let (builder, router, stopping) = (Arc::clone(&builder), router.clone(), stopping.clone());
        let bounds = Bounds { idle: options.header_timeout, unread: options.write_timeout };
        let serving = async move |stream| {
            connection(builder, stream, peer, router, (stopping, bounds)).await;
            drop(permit);
        };
        let fewest = (0..places.len()).min_by_key(|at| places.get(*at).map(Place::connections));
        match fewest.and_then(|at| places.remove(at)) {
            None => drop(tokio::spawn(serving(stream))),
            // It comes last among those that have as many.
            Some(place) => places.extend(place.serve(stream, serving)),
        }
    }
    drop((listener, stop));
    let all = u32::try_from(options.max_connections.clamp(1, Semaphore::MAX_PERMITS)).unwrap_or(u32::MAX);
    // Each connection has one as long as it is there.
    if tokio::time::timeout(options.grace, permits.acquire_many(all)).await.is_err() {
        tracing::warn!(target: "function_gateway::rest", "requests were still under way when the time for them was over");
    }
    Ok(())
}

/// A runtime that serves connections.
struct Place {
    runtime: Handle,
    /// Each of its connections has a clone.
    connections: Arc<()>,
}

impl Place {
    fn new(runtime: Handle) -> Self {
        Self { runtime, connections: Arc::default() }
    }

    fn connections(&self) -> usize {
        Arc::strong_count(&self.connections)
    }

    /// Serves a connection. `None` where the runtime turns out to have ended, so that no further one is lost to it.
    fn serve<F>(self, stream: TcpStream, serving: impl FnOnce(TcpStream) -> F + Send + 'static) -> Option<Self>
    where
        F: Future<Output = ()> + Send,
    {
        let (counted, began) = (Arc::clone(&self.connections), Arc::new(AtomicBool::new(false)));
        let begins = Arc::clone(&began);
        // Which runtime learns of its readiness is settled when it is made.
        let moved = stream.into_std();
        let task = self.runtime.spawn(async move {
            begins.store(true, Ordering::Relaxed);
            match moved.and_then(TcpStream::from_std) {
                Ok(stream) => serving(stream).await,
                Err(error) => {
                    tracing::error!(target: "function_gateway::rest", %error, "a connection can't be served now");
                }
            }
            drop(counted);
        });
        if task.is_finished() && !began.load(Ordering::Relaxed) {
            tracing::error!(target: "function_gateway::rest", "a runtime that is to serve connections has ended");
            return None;
        }
        Some(self)
    }
}

/// Spawns on one runtime, whatever thread it is asked on.
#[derive(Debug, Clone)]
struct On(Handle);

impl<F: Future<Output: Send> + Send + 'static> Executor<F> for On {
    fn execute(&self, future: F) {
        drop(self.0.spawn(future));
    }
}

fn builder(options: &ServeOptions) -> auto::Builder<On> {
    let mut builder = auto::Builder::new(On(Handle::current()));
    let header_bytes = options.max_header_bytes.max(ServeOptions::MIN_HEADER_BYTES);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout.min(NEVER))
        .max_buf_size(header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_EVERY)
        .max_concurrent_streams(options.max_streams)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX));
    builder
}

async fn connection(
    builder: Arc<auto::Builder<On>>,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    (mut stopping, bounds): (watch::Receiver<()>, Bounds),
) {
    let streams = Arc::new(Streams::default());
    let counted = Arc::clone(&streams);
    let service = hyper::service::service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
        let unfit = missing_host(&request).or_else(|| unfit_host(&request));
        let stream = counted.begin(request.version());
        let router = router.clone();
        async move {
            let response: Response = match unfit {
                Some(reason) => refused(request, reason).await,
                None => router.oneshot(request).await.unwrap_or_else(|never| match never {}),
            };
            Ok::<_, Infallible>(response.map(|body| Counted { body, stream }))
        }
    });
    let connection = builder.serve_connection(TokioIo::new(Timed::new(stream, bounds)), service);
    tokio::pin!(connection);
    let mut closing = None;
    let ended = loop {
        let ended = {
            let signal = async {
                tokio::select! {
                    // It only ever ends.
                    _ = stopping.changed(), if closing.is_none() => None,
                    overdue = streams.overdue(bounds, closing) => Some(overdue),
                }
            };
            // It is looked at when something wakes it, and not each time that something happens on the connection.
            let mut signals = FuturesUnordered::from_iter([signal]);
            tokio::select! {
                biased;
                ended = connection.as_mut() => Some(ended),
                signal = signals.next() => {
                    let cut_off = match signal.flatten() {
                        Some(Overdue::Unread) => Some("a client is cut off that does not read on"),
                        Some(Overdue::Idle) if closing.is_some() => Some("a client is cut off that does not let go"),
                        _ => None,
                    };
                    if let Some(reason) = cut_off {
                        tracing::debug!(target: "function_gateway::rest", %peer, "{reason}");
                        return;
                    }
                    None
                }
            }
        };
        if let Some(ended) = ended {
            break ended;
        }
        closing = Some(Instant::now());
        connection.as_mut().graceful_shutdown();
    };
    if let Err(error) = ended {
        tracing::debug!(target: "function_gateway::rest", %peer, error, "a connection broke off");
    }
}

/// How long a client may take to begin, a connection may be without a request, and a request without a reader of its answer.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    idle: Duration,
    unread: Duration,
}

/// The requests under way on a connection of HTTP/2. hyper has no bound for the time without one, and a client whose windows are
/// full blocks its answers and not the socket.
#[derive(Default)]
struct Streams(Mutex<Under>);

struct Under {
    /// With HTTP/1 hyper bounds the time until the next head, and an answer that is not read blocks the socket.
    is_http1: bool,
    under_way: usize,
    idle_since: Instant,
    /// How many bytes of all answers the client could read and has not, and since when it has read none: proxies let many share
    /// a connection, of whom one may pause.
    unread: usize,
    unread_since: Instant,
}

#[derive(Debug, PartialEq, Eq)]
enum Overdue {
    /// There has been no request.
    Idle,
    /// There was something to be read, and nothing was.
    Unread,
}

impl Default for Under {
    fn default() -> Self {
        let now = Instant::now();
        Self { is_http1: false, under_way: 0, idle_since: now, unread: 0, unread_since: now }
    }
}

impl Streams {
    fn state(&self) -> MutexGuard<'_, Under> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request until what it gives is dropped.
    fn begin(self: &Arc<Self>, version: Version) -> Option<Arc<Stream>> {
        let mut state = self.state();
        if version != Version::HTTP_2 {
            state.is_http1 = true;
            return None;
        }
        state.under_way += 1;
        drop(state);
        Some(Arc::new(Stream(Arc::clone(self))))
    }

    /// What can become overdue next, since when it is so, and for how long it may be. `None` where nothing ever can.
    fn next(&self, bounds: Bounds, closing: Option<Instant>) -> Option<(Option<Instant>, Duration, Overdue)> {
        let state = self.state();
        if state.is_http1 {
            None
        } else if state.under_way == 0 {
            let (since, bound) = match closing {
                Some(at) => (at.max(state.idle_since), bounds.idle.min(LET_GO)),
                None => (state.idle_since, bounds.idle),
            };
            Some((Some(since), bound, Overdue::Idle))
        } else {
            Some(((state.unread > 0).then_some(state.unread_since), bounds.unread, Overdue::Unread))
        }
    }

    /// Waits until something has been so for longer than it may.
    async fn overdue(&self, bounds: Bounds, closing: Option<Instant>) -> Overdue {
        // What begins while this waits is not due before.
        let least = bounds.idle.min(bounds.unread).max(Duration::from_millis(1));
        let again = closing.map_or(least, |_| least.min(LET_GO));
        while let Some((since, bound, overdue)) = self.next(bounds, closing) {
            let left = since.map(|since| bound.saturating_sub(since.elapsed()));
            if left.is_some_and(|left| left.is_zero()) {
                return overdue;
            }
            tokio::time::sleep(left.unwrap_or(again).min(again)).await;
        }
        std::future::pending().await
    }
}

/// A request of HTTP/2, until its answer is written or given up.
struct Stream(Arc<Streams>);

impl Stream {
    /// Part of the answer is there to be read.
    fn gives(&self, bytes: usize) {
        let mut state = self.0.state();
        if state.unread == 0 {
            state.unread_since = Instant::now();
        }
        state.unread += bytes;
    }

    /// Part of it is read, as far as windows tell, or given up.
    fn gave(&self, bytes: usize) {
        let mut state = self.0.state();
        (state.unread, state.unread_since) = (state.unread.saturating_sub(bytes), Instant::now());
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.under_way -= 1;
        if state.under_way == 0 {
            state.idle_since = Instant::now();
        }
    }
}

/// The body of an answer, until whose end its request is under way.
struct Counted {
    body: axum::body::Body,
    /// With HTTP/2.
    stream: Option<Arc<Stream>>,
}

impl http_body::Body for Counted {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<http_body::Frame<Piece>, axum::Error>>> {
        let this = &mut *self;
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let piece = |bytes| Piece::new(bytes, this.stream.clone());
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// A piece of an answer, which tells how much of it has been written. Asking the body alone would not do: what is in hand at its
/// end, or fits no window, is not asked for any more.
struct Piece {
    bytes: Bytes,
    stream: Option<Arc<Stream>>,
}

impl Piece {
    fn new(bytes: Bytes, stream: Option<Arc<Stream>>) -> Self {
        if let Some(stream) = &stream {
            stream.gives(bytes.len());
        }
        Self { bytes, stream }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(stream) = &self.stream {
            stream.gave(count);
        }
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.bytes.is_empty()) {
            stream.gave(self.bytes.len());
        }
    }
}

/// A connection that has to begin in time, and whose client has to read. Which HTTP a client speaks shows in its first bytes, and
/// nothing else bounds how long those take.
struct Timed<S> {
    stream: S,
    /// Until enough has come to know it, or an answer is on its way.
    opening: Option<(Pin<Box<Sleep>>, usize)>,
    write_timeout: Duration,
    /// Made when there is something to wait for.
    blocked: Option<Pin<Box<Sleep>>>,
}

/// The length of the preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;

impl<S> Timed<S> {
    fn new(stream: S, bounds: Bounds) -> Self {
        let opening = Some((Box::pin(tokio::time::sleep(bounds.idle)), PREFACE_BYTES));
        Self { stream, opening, write_timeout: bounds.unread, blocked: None }
    }

    /// What a write gave, or an error where nothing could be written for too long.
    fn in_time(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.opening = None;
        if written.is_ready() {
            self.blocked = None;
            return written;
        }
        let timeout = self.write_timeout;
        let timer = self.blocked.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read on")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timed<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buffer);
        let Some((timer, left)) = &mut this.opening else { return polled };
        *left = left.saturating_sub(buffer.filled().len() - before);
        if *left == 0 {
            this.opening = None;
        } else if polled.is_pending() && timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.in_time(cx, written)
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
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, parts);
        self.in_time(cx, written)
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const BOUNDS: Bounds = Bounds { idle: Duration::from_secs(30), unread: Duration::from_secs(100) };

    /// Whether something is overdue already.
    async fn overdue(streams: &Streams, closing: Option<Instant>) -> Option<Overdue> {
        tokio::time::timeout(Duration::ZERO, streams.overdue(BOUNDS, closing)).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_overdue_once_nothing_of_it_is_read() {
        let streams = Arc::new(Streams::default());
        let read_on = streams.begin(Version::HTTP_2);
        let mut read_on = Piece::new(Bytes::from_static(b"abcdef"), read_on);
        let waits = streams.begin(Version::HTTP_2);
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(90)).await;
            assert_eq!(overdue(&streams, None).await, None);
            read_on.advance(1);
        }
        let left = Piece::new(Bytes::from_static(b"abc"), waits.clone());
        tokio::time::advance(Duration::from_secs(60)).await;
        // One of many who share the connection may pause.
        read_on.advance(1);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(overdue(&streams, None).await, None);
        tokio::time::advance(Duration::from_secs(60)).await;
        for closing in [None, Some(Instant::now())] {
            assert_eq!(overdue(&streams, closing).await, Some(Overdue::Unread));
        }
        // Given up by the client.
        drop(left);
        assert_eq!(overdue(&streams, None).await, None);
        // The last one ends while the connection closes.
        let waiting = tokio::time::timeout(LET_GO * 3, streams.overdue(BOUNDS, Some(Instant::now())));
        let ends = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop((read_on, waits));
        };
        assert_eq!(tokio::join!(waiting, ends).0.ok(), Some(Overdue::Idle));
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(overdue(&streams, None).await, Some(Overdue::Idle));
        let closing = Some(Instant::now());
        assert_eq!(overdue(&streams, closing).await, None, "it has time to let go");
        tokio::time::advance(LET_GO).await;
        assert_eq!(overdue(&streams, closing).await, Some(Overdue::Idle));
    }

    #[tokio::test(start_paused = true)]
    async fn a_blocked_write_fails_in_time_and_any_progress_is_enough() {
        let (mut client, server) = tokio::io::duplex(4);
        let mut server = Timed::new(server, BOUNDS);
        let writing = tokio::spawn(async move { server.write_all(&[b'x'; 10]).await });
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_secs(90)).await;
            client.read_exact(&mut [0]).await.unwrap();
        }
        let error = writing.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
