//! One call on a worker that speaks HTTP, and what it has in common with one on any other.

use std::mem;
use std::sync::PoisonError;
use std::time::Duration;

use ::http::{Request, Version};
use bytes::{Bytes, BytesMut};
use function_gateway_core::{
    Body, CallContext, Delivery, DriverRequest, Error, ErrorKind, InvokeResponse, LogSink, Result, Retry,
};
use futures_util::stream;
use rustix::io::Errno;

use super::http::{self, Answer, Failure, RequestBody};
use super::pool::{Lease, Member as _, Pool};
use super::{Link, Worker, not_the_protocol};
use crate::error;

/// How often a call that was certainly not sent is tried on another worker.
pub(super) const PLACEMENTS: u32 = 3;
/// How long a broken connection waits to learn whether, and how, its worker ended.
pub(super) const AUTOPSY: Duration = Duration::from_millis(200);

/// Executes a function once. The request is made at once, so that what waits for the answer does not hold the call beside it.
pub(super) fn invoke<'a>(
    pool: &'a Pool<Worker>,
    (version, alone): (Version, bool),
    cx: &CallContext,
    request: DriverRequest,
) -> impl Future<Output = Result<InvokeResponse>> + Send + use<'a> {
    let (logs, limit) = (request.logs.clone(), request.max_response_bytes);
    let streaming = request.revision.spec.streaming;
    let request = http::request(version, cx, request).map(Box::new);
    send(pool, alone, request, Wanted { logs, limit, streaming })
}

/// How the answer is to come.
struct Wanted {
    logs: LogSink,
    /// In bytes.
    limit: u64,
    streaming: bool,
}

async fn send(
    pool: &Pool<Worker>,
    alone: bool,
    request: Result<Box<Request<RequestBody>>>,
    Wanted { logs, limit, streaming }: Wanted,
) -> Result<InvokeResponse> {
    let mut request = request?;
    let payload = request.body().failure();
    let mut placement = 1;
    let (mut turn, answer) = loop {
        let mut turn = Turn::begin(pool.acquire().await?, &logs, alone);
        let Link::Http(client) = &turn.worker().link else { return Err(not_the_protocol()) };
        let sent = tokio::select! {
            biased;
            sent = client.send(request) => sent,
            stopped = turn.lease.stopped() => return Err(stopped.with_delivery(Delivery::Unknown)),
        };
        match sent {
            Ok(answer) => break (turn, answer),
            Err(Failure::NotSent(unsent, reason)) => {
                let error = turn.refused(reason).await;
                if placement == PLACEMENTS || !error.is_transient() {
                    return Err(error);
                }
                placement += 1;
                request = unsent;
            }
            Err(Failure::Broken(reason)) => {
                let of_payload = payload.and_then(|broke| broke.lock().unwrap_or_else(PoisonError::into_inner).take());
                return Err(match of_payload {
                    Some(error) => error.with_delivery(Delivery::Executed),
                    None => turn.broken(reason).await,
                });
            }
        }
    };
    turn.lease.prove();
    let mut reading = Reading { turn, answer, room: limit, limit };
    let whole = if streaming { None } else { Some(reading.collect().await?) };
    let mut response = InvokeResponse::new(reading.answer.head.status, Body::empty());
    response.headers = mem::take(&mut reading.answer.head.headers);
    response.body = match whole {
        Some(bytes) => bytes.into(),
        None => Body::from_stream(reading.into_stream()),
    };
    Ok(response)
}

/// A call's turn on a worker.
pub(super) struct Turn {
    pub(super) lease: Lease<Worker>,
    /// Whether the worker takes one call at a time.
    alone: bool,
    over: bool,
}

impl Turn {
    pub(super) fn begin(lease: Lease<Worker>, logs: &LogSink, alone: bool) -> Self {
        lease.worker().log.enter(logs);
        Self { lease, alone, over: false }
    }

    pub(super) fn worker(&self) -> &Worker {
        self.lease.worker()
    }

    /// The call is over, its log complete, and the worker free for another.
    pub(super) fn end(&mut self) {
        if !mem::replace(&mut self.over, true) {
            self.worker().log.leave();
        }
    }

    /// How the worker ended, if it has, or is just about to.
    async fn autopsy(&self) -> Option<Error> {
        tokio::time::timeout(AUTOPSY, self.worker().ended()).await.ok()
    }

    /// The error for a request that the worker never got.
    async fn refused(&mut self, reason: std::io::Error) -> Error {
        self.end();
        let is_ours = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL]
            .map(|errno| errno.raw_os_error())
            .contains(&reason.raw_os_error().unwrap_or_default());
        if is_ours {
            // The worker is innocent: it is this process that can open no connection.
            return error::of_io(reason, Delivery::NotSent).with_retry(Retry::Transient);
        }
        if let Some(how) = self.autopsy().await {
            return how.with_source(reason);
        }
        self.lease.spoil();
        let error = Error::new(ErrorKind::FunctionBroken, "the worker takes no connection any more")
            .with_retry(Retry::Transient)
            .with_source(reason);
        self.worker().told(error).with_delivery(Delivery::NotSent)
    }

    /// The error for a connection that broke off after the request was sent, at least in part.
    async fn broken(&mut self, reason: hyper::Error) -> Error {
        if reason.is_parse() {
            let error = Error::new(ErrorKind::FunctionBroken, "the worker answered what is no HTTP");
            return self.worker().told(error).with_source(reason);
        }
        let error = match self.autopsy().await {
            Some(how) => how,
            None => {
                let message = "the worker closed the connection before it answered";
                let error = Error::new(ErrorKind::FunctionBroken, message).with_retry(Retry::Transient);
                self.worker().told(error)
            }
        };
        error.with_delivery(Delivery::Unknown).with_source(reason)
    }

    /// The error for an answer that broke off.
    pub(super) async fn incomplete(&mut self, reason: hyper::Error) -> Error {
        let error = match self.autopsy().await {
            Some(how) => how.with_retry(Retry::Never),
            None => self.worker().told(Error::new(ErrorKind::FunctionBroken, "the worker broke off its answer")),
        };
        error.with_delivery(Delivery::Executed).with_source(reason)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.over {
            self.end();
            let (seat, runtime) = self.lease.seat();
            match &self.worker().link {
                // It is told of its calls, and can't be told that one is over: so it ends, and no longer counts before
                // it does.
                Link::Lambda(_) => {
                    seat.spoil();
                    self.worker().group.kill();
                }
                // It was given up. A worker that takes one call at a time may be busy with it still.
                Link::Http(_) if self.alone => self.lease.spoil(),
                Link::Http(client) => self.lease.worker().suspect(client, seat, runtime),
            }
        }
    }
}

/// An answer that is being read. Dropping it gives the call up.
struct Reading {
    turn: Turn,
    answer: Answer,
    room: u64,
    limit: u64,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        let chunk = tokio::select! {
            biased;
            chunk = self.answer.chunk() => chunk,
            stopped = self.turn.lease.stopped() => return Err(stopped.with_delivery(Delivery::Executed)),
        };
        match chunk {
            Ok(None) => {
                self.turn.end();
                Ok(None)
            }
            Ok(Some(chunk)) => {
                let read = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
                self.room = self
                    .room
                    .checked_sub(read)
                    .ok_or_else(|| Error::too_large(ErrorKind::OutputTooLarge, "output", self.limit))?;
                Ok(Some(chunk))
            }
            // Boxed, since it is seldom, and all wait with room for it.
            Err(reason) => Err(Box::pin(self.turn.incomplete(reason)).await),
        }
    }

    /// All of it. Most answers come in one piece, which is not copied.
    async fn collect(&mut self) -> Result<Bytes> {
        let (mut first, mut all) = (Bytes::new(), BytesMut::new());
        while let Some(chunk) = self.next().await? {
            if first.is_empty() && all.is_empty() {
                first = chunk;
                continue;
            }
            all.extend_from_slice(&mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }

    fn into_stream(self) -> impl futures_core::Stream<Item = Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut reading| async move { Ok(reading.next().await?.map(|chunk| (chunk, reading))) })
    }
}
