//! A payload on its way: bytes, or a stream of them.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_core::Stream;
use futures_util::StreamExt as _;
use tokio::time::{Instant, Sleep};

use crate::{Deadline, Delivery, Error, ErrorKind, Result};

/// A stream of bytes that can be sent to another task.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes>> + Send + 'static>>;

/// How a body came to its end.
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyEnd<'a> {
    /// All of it was read.
    Complete,
    /// It broke off with an error.
    Failed(&'a Error),
    /// It was dropped before its end: the reader went away.
    Dropped,
}

/// A payload or an answer: bytes in memory, or a stream.
///
/// Dropping a body that streams tells its source to stop: for an answer, the call is cancelled.
///
/// ```
/// use function_gateway_core::Body;
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let body = Body::from("hello");
/// assert_eq!(body.len(), Some(5));
/// assert_eq!(&body.collect(1024).await?[..], b"hello");
/// # Ok::<_, function_gateway_core::Error>(()) }).unwrap();
/// ```
pub struct Body(Kind);

enum Kind {
    Bytes(Bytes),
    Stream { stream: Exclusive, len: Option<u64> },
}

/// A stream that is only ever reached by value, so that a body can be shared between threads although a stream can't:
/// a reference to a call may be held across an `await`.
struct Exclusive(Mutex<ByteStream>);

impl Exclusive {
    fn new(stream: ByteStream) -> Self {
        Self(Mutex::new(stream))
    }

    fn into_inner(self) -> ByteStream {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body {
    /// A body without a byte.
    #[must_use]
    pub const fn empty() -> Self {
        Self(Kind::Bytes(Bytes::new()))
    }

    /// A body whose bytes come one after another. An error in the stream ends it.
    #[must_use]
    pub fn from_stream(stream: impl Stream<Item = Result<Bytes>> + Send + 'static) -> Self {
        Self::streaming(Box::pin(stream), None)
    }

    fn streaming(stream: ByteStream, len: Option<u64>) -> Self {
        Self(Kind::Stream { stream: Exclusive::new(stream), len })
    }

    /// Declares how long a stream is going to be, where that is known beforehand. Nothing is checked by it.
    #[must_use]
    pub fn with_declared_len(mut self, declared: u64) -> Self {
        if let Kind::Stream { len, .. } = &mut self.0 {
            *len = Some(declared);
        }
        self
    }

    /// The length in bytes: exact for bytes, declared for a stream.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        match &self.0 {
            Kind::Bytes(bytes) => u64::try_from(bytes.len()).ok(),
            Kind::Stream { len, .. } => *len,
        }
    }

    /// Whether it is certain that there is not a byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Whether the bytes are still to come.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        matches!(self.0, Kind::Stream { .. })
    }

    /// The bytes, if they are all there.
    #[must_use]
    pub fn as_bytes(&self) -> Option<&Bytes> {
        match &self.0 {
            Kind::Bytes(bytes) => Some(bytes),
            Kind::Stream { .. } => None,
        }
    }

    /// A second body with the same bytes; `None` for a stream, which can be read once.
    #[must_use]
    pub fn try_clone(&self) -> Option<Self> {
        self.as_bytes().cloned().map(Self::from)
    }

    /// Reads all of it, at most `limit` bytes.
    ///
    /// # Errors
    /// [`ErrorKind::PayloadTooLarge`] once more than `limit` bytes have come, or are declared; the stream's own error.
    ///
    /// # Cancel safety
    /// Not cancel-safe: what was read is lost.
    pub async fn collect(self, limit: u64) -> Result<Bytes> {
        let too_large = || Error::too_large(ErrorKind::PayloadTooLarge, "body", limit);
        if self.len().is_some_and(|len| len > limit) {
            return Err(too_large());
        }
        let mut stream = match self.0 {
            Kind::Bytes(bytes) => return Ok(bytes),
            Kind::Stream { stream, .. } => stream.into_inner(),
        };
        let Some(first) = stream.next().await.transpose()? else { return Ok(Bytes::new()) };
        let mut read = u64::try_from(first.len()).unwrap_or(u64::MAX);
        let mut rest: Option<BytesMut> = None;
        while read <= limit {
            let Some(chunk) = stream.next().await.transpose()? else {
                return Ok(rest.map_or(first, BytesMut::freeze));
            };
            read = read.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            rest.get_or_insert_with(|| BytesMut::from(&first[..])).extend_from_slice(&chunk);
        }
        Err(too_large())
    }

    /// The body as a stream.
    #[must_use]
    pub fn into_stream(self) -> ByteStream {
        match self.0 {
            Kind::Bytes(bytes) if bytes.is_empty() => Box::pin(futures_util::stream::empty()),
            Kind::Bytes(bytes) => Box::pin(futures_util::stream::iter([Ok(bytes)])),
            Kind::Stream { stream, .. } => stream.into_inner(),
        }
    }

    /// Keeps `guard` (a permit, a span) until the body has ended or is dropped. Bytes in memory have ended already.
    #[must_use]
    pub fn with_guard(self, guard: impl Send + 'static) -> Self {
        self.on_end(move |_| drop(guard))
    }

    /// Calls `done` once with how the body ended. For bytes in memory that is now, and complete.
    #[must_use]
    pub fn on_end(self, done: impl FnOnce(BodyEnd<'_>) + Send + 'static) -> Self {
        self.observed(OnEnd(Some(done)))
    }

    /// Lets an observer see every chunk and the end of a stream. For bytes in memory: one chunk and the end, now.
    pub(crate) fn observed(self, mut observer: impl BodyObserver) -> Self {
        match self.0 {
            Kind::Bytes(bytes) => {
                observer.chunk(&bytes);
                // Nothing is held back where the answer is whole: its record is settled before the answer is given.
                drop(observer.end(BodyEnd::Complete));
                Self::from(bytes)
            }
            Kind::Stream { stream, len } => {
                let stream = stream.into_inner();
                Self::streaming(Box::pin(Observed { stream, observer: Some(observer), closing: None }), len)
            }
        }
    }

    /// Ends a stream with an error once it has let through more than `limit` bytes.
    #[must_use]
    pub(crate) fn limited(self, limit: u64, kind: ErrorKind, what: &'static str) -> Self {
        let Kind::Stream { stream, len } = self.0 else { return self };
        let mut passed = 0_u64;
        let stream = stream.into_inner().map(move |chunk| {
            let chunk = chunk?;
            passed = passed.saturating_add(u64::try_from(chunk.len()).unwrap_or(u64::MAX));
            // Part of it has passed already.
            let too_large =
                || Error::too_large(kind, what, limit).with_delivery(kind.default_delivery().max(Delivery::Unknown));
            if passed > limit { Err(too_large()) } else { Ok(chunk) }
        });
        Self::streaming(Box::pin(EndAfterError { stream: Some(Box::pin(stream)) }), len)
    }

    /// Ends a stream with [`ErrorKind::DeadlineExceeded`] when the deadline passes, or when no chunk comes for `idle`.
    /// Both are kept by timers, so a source that has gone silent can't hold a reader.
    #[must_use]
    pub(crate) fn bounded(self, deadline: Option<Deadline>, idle: Option<Duration>) -> Self {
        let Kind::Stream { stream, len } = self.0 else { return self };
        if deadline.is_none() && idle.is_none() {
            return Self(Kind::Stream { stream, len });
        }
        let stream = Some(stream.into_inner());
        let total = deadline.map(|deadline| Box::pin(tokio::time::sleep_until(deadline.instant().into())));
        let idle = idle.map(|idle| (idle, Box::pin(tokio::time::sleep(idle))));
        Self::streaming(Box::pin(Bounded { stream, total, idle }), len)
    }

    /// Splits off a handle that can end a stream from outside, whether it is being read or not.
    pub(crate) fn interruptible(self) -> (Self, Interrupt) {
        let len = self.len();
        let shared = Arc::new(Mutex::new(Interruptible::Running {
            stream: self.into_stream(),
            reader: None,
            unread_since: Some(Instant::now()),
        }));
        let (open, closed) = tokio::sync::oneshot::channel();
        let reading = Reading { shared: Arc::clone(&shared), open: Some(open) };
        (Self::streaming(Box::pin(reading), len), Interrupt { shared, closed })
    }

    /// Splits off a handle that can take a stream back as long as nobody has polled it.
    pub(crate) fn reclaimable(self) -> (Self, Reclaim) {
        match self.0 {
            Kind::Bytes(bytes) => (Self::from(bytes.clone()), Reclaim(Kept::Bytes(bytes))),
            Kind::Stream { stream, len } => {
                let slot = Arc::new(Mutex::new(Some(stream.into_inner())));
                let reading = Box::pin(Unpolled { slot: Some(Arc::clone(&slot)), stream: None });
                (Self::streaming(reading, len), Reclaim(Kept::Stream { slot, len }))
            }
        }
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    /// Says how large it is, never what is in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Bytes(bytes) => write!(f, "Body({} bytes)", bytes.len()),
            Kind::Stream { len: Some(len), .. } => write!(f, "Body(stream of {len} bytes)"),
            Kind::Stream { len: None, .. } => f.write_str("Body(stream)"),
        }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self(Kind::Bytes(bytes))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(Bytes::from(bytes))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::from(Bytes::from(text))
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::from(Bytes::from_static(text.as_bytes()))
    }
}

impl From<&'static [u8]> for Body {
    fn from(bytes: &'static [u8]) -> Self {
        Self::from(Bytes::from_static(bytes))
    }
}

/// What the end of a body waits for before its reader sees it.
pub(crate) type Closing = Pin<Box<dyn Future<Output = Result<()>> + Send + 'static>>;

/// Sees a body go by.
pub(crate) trait BodyObserver: Send + Unpin + 'static {
    /// A chunk passes.
    fn chunk(&mut self, _chunk: &Bytes) {}

    /// The body has ended; called once. A future that it returns is awaited before the reader sees the end,
    /// unless the body was dropped: then nobody is left to wait.
    fn end(self, end: BodyEnd<'_>) -> Option<Closing>;
}

struct OnEnd<F>(Option<F>);

impl<F> Unpin for OnEnd<F> {}

impl<F: FnOnce(BodyEnd<'_>) + Send + 'static> BodyObserver for OnEnd<F> {
    fn end(mut self, end: BodyEnd<'_>) -> Option<Closing> {
        if let Some(done) = self.0.take() {
            done(end);
        }
        None
    }
}

struct Observed<O: BodyObserver> {
    stream: ByteStream,
    observer: Option<O>,
    closing: Option<(Closing, Option<Error>)>,
}

impl<O: BodyObserver> Stream for Observed<O> {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Some((closing, _)) = &mut this.closing {
            let closed = ready!(closing.as_mut().poll(cx));
            let ended = this.closing.take().and_then(|(_, error)| error);
            return Poll::Ready(ended.or(closed.err()).map(Err));
        }
        let Some(observer) = &mut this.observer else { return Poll::Ready(None) };
        match ready!(this.stream.as_mut().poll_next(cx)) {
            Some(Ok(chunk)) => {
                observer.chunk(&chunk);
                Poll::Ready(Some(Ok(chunk)))
            }
            ended => {
                let error = ended.and_then(Result::err);
                let end = error.as_ref().map_or(BodyEnd::Complete, BodyEnd::Failed);
                match this.observer.take().and_then(|observer| observer.end(end)) {
                    Some(closing) => {
                        this.closing = Some((closing, error));
                        Pin::new(this).poll_next(cx)
                    }
                    None => Poll::Ready(error.map(Err)),
                }
            }
        }
    }
}

impl<O: BodyObserver> Drop for Observed<O> {
    fn drop(&mut self) {
        if let Some(observer) = self.observer.take() {
            drop(observer.end(BodyEnd::Dropped));
        }
    }
}

/// Drops its stream at the first error, so that whatever stands behind it stops at once.
struct EndAfterError {
    stream: Option<ByteStream>,
}

impl Stream for EndAfterError {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        let item = ready!(stream.as_mut().poll_next(cx));
        if !matches!(item, Some(Ok(_))) {
            self.stream = None;
        }
        Poll::Ready(item)
    }
}

struct Bounded {
    stream: Option<ByteStream>,
    total: Option<Pin<Box<Sleep>>>,
    idle: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Stream for Bounded {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(stream) = &mut this.stream else { return Poll::Ready(None) };
        if this.total.as_mut().is_some_and(|total| total.as_mut().poll(cx).is_ready()) {
            this.stream = None;
            return Poll::Ready(Some(Err(timeout("total", Delivery::Executed))));
        }
        match stream.as_mut().poll_next(cx) {
            Poll::Ready(item) => {
                if let Some((after, timer)) = &mut this.idle {
                    timer.as_mut().reset(Deadline::after(*after).instant().into());
                }
                if !matches!(item, Some(Ok(_))) {
                    this.stream = None;
                }
                Poll::Ready(item)
            }
            Poll::Pending => {
                let stalled = this.idle.as_mut().is_some_and(|(_, timer)| timer.as_mut().poll(cx).is_ready());
                if !stalled {
                    return Poll::Pending;
                }
                this.stream = None;
                Poll::Ready(Some(Err(timeout("idle", Delivery::Executed))))
            }
        }
    }
}

/// The error for a deadline that has passed, with which one it was.
pub(crate) fn timeout(which: &'static str, delivery: Delivery) -> Error {
    let message = match which {
        "queue" => "the call waited too long for its turn",
        "first_byte" => "the function did not start to answer in time",
        "idle" => "the function's answer stalled",
        "attempt" => "the attempt took too long",
        _ => "the call's deadline has passed",
    };
    Error::new(ErrorKind::DeadlineExceeded, message).with_delivery(delivery).with_context("timeout", which)
}

/// Bounds what happens before a call is sent by the caller's own deadline.
pub(crate) async fn by_deadline<T, W>(deadline: Option<Deadline>, work: Pin<&mut W>) -> Result<T>
where
    W: Future<Output = Result<T>> + ?Sized,
{
    match deadline {
        // Boxed, so that a call without a deadline has no room for its timer.
        Some(deadline) => Box::pin(tokio::time::timeout_at(deadline.instant().into(), work))
            .await
            .unwrap_or_else(|_| Err(timeout("total", Delivery::NotSent))),
        None => work.await,
    }
}

/// The stream that a call in progress reads, until somebody polls it.
struct Unpolled {
    slot: Option<Arc<Mutex<Option<ByteStream>>>>,
    stream: Option<ByteStream>,
}

impl Stream for Unpolled {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(slot) = self.slot.take() {
            self.stream = slot.lock().unwrap_or_else(PoisonError::into_inner).take();
        }
        match &mut self.stream {
            Some(stream) => stream.as_mut().poll_next(cx),
            None => Poll::Ready(None),
        }
    }
}

enum Interruptible {
    Running {
        stream: ByteStream,
        reader: Option<Waker>,
        /// Since when its reader has not asked for more.
        unread_since: Option<Instant>,
    },
    Ended(Option<Error>),
}

/// The reader's side of a stream that can be ended from outside.
struct Reading {
    shared: Arc<Mutex<Interruptible>>,
    open: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Stream for Reading {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = match &mut *self.shared.lock().unwrap_or_else(PoisonError::into_inner) {
            Interruptible::Running { stream, reader, unread_since } => match stream.as_mut().poll_next(cx) {
                Poll::Ready(item) => {
                    *unread_since = Some(Instant::now());
                    item
                }
                Poll::Pending => {
                    *unread_since = None;
                    *reader = Some(cx.waker().clone());
                    return Poll::Pending;
                }
            },
            Interruptible::Ended(error) => error.take().map(Err),
        };
        if !matches!(item, Some(Ok(_))) {
            self.open = None;
        }
        Poll::Ready(item)
    }
}

impl Drop for Reading {
    /// Drops the stream at once, and not when the other side notices.
    fn drop(&mut self) {
        let running = std::mem::replace(
            &mut *self.shared.lock().unwrap_or_else(PoisonError::into_inner),
            Interruptible::Ended(None),
        );
        drop(running);
    }
}

/// Ends a stream from outside.
pub(crate) struct Interrupt {
    shared: Arc<Mutex<Interruptible>>,
    closed: tokio::sync::oneshot::Receiver<()>,
}

impl Interrupt {
    /// Waits until the stream has ended by itself or was dropped. Cancel-safe.
    pub(crate) async fn not_needed(&mut self) {
        // Nothing is ever sent: the other side goes away.
        let _ = (&mut self.closed).await;
    }

    /// Waits until the reader has not asked for more for so long. Cancel-safe.
    pub(crate) async fn unread_for(shared: UnreadSince, pause: Duration) {
        loop {
            let since = shared.get();
            let now = Instant::now();
            match since.map(|since| since + pause) {
                Some(until) if until <= now => return,
                Some(until) => tokio::time::sleep_until(until).await,
                // It waits for the function now; should it stop to read after that, it is noticed within twice the time.
                None => tokio::time::sleep(pause).await,
            }
        }
    }

    /// For [`unread_for`](Self::unread_for), beside waiting for the end.
    pub(crate) fn unread_since(&self) -> UnreadSince {
        UnreadSince(Arc::clone(&self.shared))
    }

    /// Drops the stream now; its reader gets the error, if it still reads.
    pub(crate) fn end_with(self, error: Error) {
        let ended = Interruptible::Ended(Some(error));
        let running = std::mem::replace(&mut *self.shared.lock().unwrap_or_else(PoisonError::into_inner), ended);
        if let Interruptible::Running { stream, reader, .. } = running {
            drop(stream);
            if let Some(reader) = reader {
                reader.wake();
            }
        }
    }
}

/// Says since when a stream's reader has not asked for more.
pub(crate) struct UnreadSince(Arc<Mutex<Interruptible>>);

impl UnreadSince {
    fn get(&self) -> Option<Instant> {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Interruptible::Running { unread_since, .. } => *unread_since,
            Interruptible::Ended(_) => None,
        }
    }
}

enum Kept {
    Bytes(Bytes),
    Stream { slot: Arc<Mutex<Option<ByteStream>>>, len: Option<u64> },
}

/// Takes a body back that was handed on but never read.
pub(crate) struct Reclaim(Kept);

impl Reclaim {
    /// The body, if it is bytes or a stream that nobody has polled.
    pub(crate) fn take(self) -> Option<Body> {
        match self.0 {
            Kept::Bytes(bytes) => Some(Body::from(bytes)),
            Kept::Stream { slot, len } => {
                let stream = slot.lock().unwrap_or_else(PoisonError::into_inner).take()?;
                Some(Body::streaming(stream, len))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn chunks(parts: &'static [&'static str]) -> Body {
        Body::from_stream(futures_util::stream::iter(parts.iter().map(|part| Ok(Bytes::from_static(part.as_bytes())))))
    }

    fn endings(body: Body) -> (Body, mpsc::Receiver<String>) {
        let (sender, receiver) = mpsc::channel();
        let body = body.on_end(move |end| {
            let end = match end {
                BodyEnd::Complete => "complete".to_owned(),
                BodyEnd::Failed(error) => error.kind().to_string(),
                BodyEnd::Dropped => "dropped".to_owned(),
            };
            sender.send(end).unwrap();
        });
        (body, receiver)
    }

    #[tokio::test]
    async fn collecting_stops_at_the_limit() {
        assert_eq!(&chunks(&["ab", "cd"]).collect(4).await.unwrap()[..], b"abcd");
        let error = chunks(&["ab", "cd"]).collect(3).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PayloadTooLarge);
        assert_eq!(error.context_value("limit_bytes"), Some("3"));
        assert!(Body::from("abcd").collect(3).await.is_err());
        assert!(chunks(&["a"]).with_declared_len(9).collect(3).await.is_err());
    }

    #[tokio::test]
    async fn the_end_is_told_once() {
        let (body, ends) = endings(chunks(&["ab", "cd"]));
        body.collect(10).await.unwrap();
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["complete"]);

        let (body, ends) = endings(chunks(&["ab", "cd"]));
        let mut stream = body.into_stream();
        stream.next().await.unwrap().unwrap();
        drop(stream);
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["dropped"]);

        let broken = Body::from_stream(futures_util::stream::iter([Err(Error::new(ErrorKind::Engine, "cut"))]));
        let (body, ends) = endings(broken);
        assert!(body.collect(10).await.is_err());
        assert_eq!(ends.into_iter().collect::<Vec<_>>(), ["engine"]);
    }

    #[tokio::test]
    async fn the_end_waits_for_what_closes_it() {
        struct Closer(Option<tokio::sync::oneshot::Receiver<()>>);
        impl BodyObserver for Closer {
            fn end(mut self, _: BodyEnd<'_>) -> Option<Closing> {
                let gate = self.0.take()?;
                Some(Box::pin(async move { gate.await.map_err(|_| Error::new(ErrorKind::Store, "not committed")) }))
            }
        }
        let (open, gate) = tokio::sync::oneshot::channel();
        let mut stream = chunks(&["a"]).observed(Closer(Some(gate))).into_stream();
        stream.next().await.unwrap().unwrap();
        assert!(futures_util::poll!(stream.next()).is_pending());
        open.send(()).unwrap();
        assert!(stream.next().await.is_none());

        let (open, gate) = tokio::sync::oneshot::channel::<()>();
        drop(open);
        let failed = chunks(&["a"]).observed(Closer(Some(gate))).collect(10).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Store);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_source_is_cut_off() {
        let silent = || Body::from_stream(futures_util::stream::pending());
        let error = silent().bounded(None, Some(Duration::from_secs(1))).collect(1).await.unwrap_err();
        assert_eq!(error.context_value("timeout"), Some("idle"));
        let deadline = Deadline::after(Duration::from_secs(1));
        let error = silent().bounded(Some(deadline), None).collect(1).await.unwrap_err();
        assert_eq!(error.context_value("timeout"), Some("total"));
    }

    #[tokio::test]
    async fn an_unread_stream_can_be_taken_back() {
        let (body, reclaim) = chunks(&["ab"]).reclaimable();
        drop(body);
        assert_eq!(&reclaim.take().unwrap().collect(9).await.unwrap()[..], b"ab");

        let (body, reclaim) = chunks(&["ab"]).reclaimable();
        body.collect(9).await.unwrap();
        assert!(reclaim.take().is_none());
    }

    #[tokio::test]
    async fn a_stream_can_be_ended_from_outside_while_nobody_reads_it() {
        let (guard, dropped) = tokio::sync::oneshot::channel::<()>();
        let body = Body::from_stream(futures_util::stream::pending()).with_guard(guard);
        let (body, interrupt) = body.interruptible();
        interrupt.end_with(timeout("total", Delivery::Executed));
        dropped.await.unwrap_err();
        let mut stream = body.into_stream();
        assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::DeadlineExceeded);
        assert!(stream.next().await.is_none());

        let (body, mut interrupt) = chunks(&["a"]).interruptible();
        assert_eq!(body.collect(9).await.unwrap(), "a");
        interrupt.not_needed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_is_told_from_one_that_waits() {
        let pause = Duration::from_secs(10);
        let (body, interrupt) = chunks(&["a", "b"]).interruptible();
        let mut stream = body.into_stream();
        stream.next().await.unwrap().unwrap();
        let start = Instant::now();
        Interrupt::unread_for(interrupt.unread_since(), pause).await;
        assert_eq!(start.elapsed(), pause);

        let (body, interrupt) = Body::from_stream(futures_util::stream::pending()).interruptible();
        let mut waiting = body.into_stream();
        assert!(futures_util::poll!(waiting.next()).is_pending());
        let unread = Interrupt::unread_for(interrupt.unread_since(), pause);
        assert!(tokio::time::timeout(pause * 5, unread).await.is_err());
    }

    #[tokio::test]
    async fn a_limited_stream_ends_with_an_error_once() {
        let mut stream = chunks(&["abc", "def", "ghi"]).limited(4, ErrorKind::OutputTooLarge, "output").into_stream();
        assert!(stream.next().await.unwrap().is_ok());
        assert_eq!(stream.next().await.unwrap().unwrap_err().kind(), ErrorKind::OutputTooLarge);
        assert!(stream.next().await.is_none());
    }
}
