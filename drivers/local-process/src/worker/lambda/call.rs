//! One call on a worker that asks for its invocations.

use bytes::{Bytes, BytesMut};
use function_gateway_core::{
    Body, CallContext, Delivery, DriverRequest, Error, ErrorKind, InvokeResponse, Result, Retry,
};
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use tokio::sync::oneshot;

use super::answer::{Answer, Broken, Part, Posted, Verdict};
use super::{Event, Invocation, Reply, document};
use crate::worker::call::{AUTOPSY, PLACEMENTS, Turn};
use crate::worker::pool::{Member as _, Pool};
use crate::worker::{Link, Worker, not_the_protocol};

/// Executes a function once.
pub(in crate::worker) async fn invoke(
    pool: &Pool<Worker>,
    cx: &CallContext,
    request: DriverRequest,
) -> Result<InvokeResponse> {
    let (logs, limit) = (request.logs.clone(), request.max_response_bytes);
    let streaming = request.revision.spec.streaming;
    let mut event = Event::new(cx, request)?;
    let mut placement = 1;
    let (turn, invocation, posted) = loop {
        let mut turn = Turn::begin(pool.acquire().await?, &logs, true);
        let Link::Lambda(api) = &turn.worker().link else { return Err(not_the_protocol()) };
        let silence = api.silence();
        let mut invocation = api.offer(event);
        let replied = tokio::select! {
            biased;
            replied = invocation.reply() => Ok(replied?),
            stopped = turn.lease.stopped() => return Err(stopped.with_delivery(invocation.delivery())),
            how = async {
                let how = turn.worker().ended().await;
                // It may have answered just before.
                silence.await;
                how
            } => Err(how),
        };
        match replied {
            Ok(Reply::Posted(posted)) => break (turn, invocation, posted),
            Ok(Reply::Skipped) => {
                let message = "the worker asked for the next invocation without having answered this one";
                let error = Error::new(ErrorKind::FunctionBroken, message).with_retry(Retry::Transient);
                return Err(turn.worker().told(error).with_delivery(Delivery::Unknown));
            }
            Ok(Reply::Unsent) => {
                let message = "the worker closed its connection before the invocation was sent";
                let error = Error::new(ErrorKind::FunctionBroken, message).with_retry(Retry::Transient);
                return Err(turn.worker().told(error).with_delivery(Delivery::NotSent));
            }
            Err(how) => {
                turn.end();
                match invocation.withdraw() {
                    Some(unsent) if placement < PLACEMENTS && how.is_transient() => event = unsent,
                    Some(_) => return Err(how.with_delivery(Delivery::NotSent)),
                    None => return Err(how.with_delivery(Delivery::Unknown)),
                }
                placement += 1;
            }
        }
    };
    answer(turn, invocation, posted, limit, streaming).await
}

async fn answer(
    mut turn: Turn,
    invocation: Invocation,
    posted: Posted,
    limit: u64,
    streaming: bool,
) -> Result<InvokeResponse> {
    turn.lease.prove();
    let Posted { is_error, headers, body, verdict } = posted;
    let mut reading =
        Reading { turn, invocation, answer: Answer::new(body), verdict: Some(verdict), room: limit, limit };
    if is_error {
        let (document, _) = reading.collect().await?;
        let failure = document::failure(&document, headers.get(document::ERROR_TYPE));
        return Ok(InvokeResponse::failed(failure, document).with_header(CONTENT_TYPE, document::JSON));
    }
    let (status, headers) = reading.head(&headers).await?;
    let mut response = if streaming {
        InvokeResponse::new(status, Body::from_stream(reading.into_stream()))
    } else {
        match reading.collect().await? {
            (body, None) => InvokeResponse::new(status, body),
            (body, Some(failure)) => InvokeResponse::failed(failure, body),
        }
    };
    response.headers = headers;
    Ok(response)
}

/// An answer that is being read. Dropping it gives the call up.
struct Reading {
    turn: Turn,
    invocation: Invocation,
    answer: Answer,
    verdict: Option<oneshot::Sender<Verdict>>,
    room: u64,
    limit: u64,
}

impl Reading {
    async fn head(&mut self, posted: &HeaderMap) -> Result<(StatusCode, HeaderMap)> {
        let Self { turn, invocation, answer, .. } = self;
        match during(turn, invocation, answer.head(posted)).await? {
            Ok(head) => Ok(head),
            Err(Broken::Off(reason)) => Err(turn.incomplete(reason).await),
            Err(Broken::Wrong(error)) => Err(turn.worker().told(error)),
        }
    }

    async fn next(&mut self) -> Result<Part> {
        let Self { turn, invocation, answer, .. } = self;
        match during(turn, invocation, answer.next()).await? {
            Ok(Part::Data(data)) => {
                let read = u64::try_from(data.len()).unwrap_or(u64::MAX);
                match self.room.checked_sub(read) {
                    Some(room) => {
                        self.room = room;
                        Ok(Part::Data(data))
                    }
                    None => {
                        self.settle(Verdict::TooLarge);
                        // It may not have been done with what it was told that nobody wants.
                        self.turn.lease.spoil();
                        Err(Error::too_large(ErrorKind::OutputTooLarge, "output", self.limit))
                    }
                }
            }
            Ok(Part::End(failure)) => {
                self.settle(Verdict::Taken);
                Ok(Part::End(failure))
            }
            Err(reason) => Err(turn.incomplete(reason).await),
        }
    }

    /// The call is over, and the worker is told so last: its next question finds everything in order.
    fn settle(&mut self, verdict: Verdict) {
        self.turn.end();
        self.invocation.end();
        if let Some(settled) = self.verdict.take() {
            // A worker that did not wait for it is not told.
            let _ = settled.send(verdict);
        }
    }

    async fn collect(mut self) -> Result<(Bytes, Option<function_gateway_core::FunctionFailure>)> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        loop {
            match self.next().await? {
                Part::Data(data) if first.is_empty() => first = data,
                Part::Data(data) => {
                    if all.is_empty() {
                        all.extend_from_slice(&first);
                    }
                    all.extend_from_slice(&data);
                }
                Part::End(failure) if all.is_empty() => return Ok((first, failure)),
                Part::End(failure) => return Ok((all.freeze(), failure)),
            }
        }
    }

    fn into_stream(self) -> impl futures_core::Stream<Item = Result<Bytes>> + Send + 'static {
        stream::try_unfold(self, |mut reading| async move {
            match reading.next().await? {
                Part::Data(data) => Ok(Some((data, reading))),
                Part::End(None) => Ok(None),
                Part::End(Some(failure)) => {
                    let message = format!("the function failed in its answer: {}", document::said(&failure));
                    Err(Error::new(ErrorKind::FunctionBroken, message))
                }
            }
        })
    }
}

/// Reads on, unless something ends the call meanwhile.
async fn during<T>(turn: &mut Turn, invocation: &mut Invocation, reading: impl Future<Output = T>) -> Result<T> {
    let gone = async {
        let how = turn.worker().ended().await;
        // What it had sent before is on its way still.
        tokio::time::sleep(AUTOPSY).await;
        how
    };
    tokio::select! {
        biased;
        // A worker that got half a payload may break off for that reason.
        error = invocation.trouble() => Err(error),
        read = reading => Ok(read),
        stopped = turn.lease.stopped() => Err(stopped.with_delivery(Delivery::Executed)),
        how = gone => Err(how.with_retry(Retry::Never).with_delivery(Delivery::Executed)),
    }
}
