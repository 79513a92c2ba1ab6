//! The AWS Lambda Runtime API (version 2018-06-01), served to one worker, which asks it for one invocation after the other.

mod answer;
mod call;
mod document;
mod payload;
mod server;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::{io, mem};

use bytes::Bytes;
use function_gateway_core::{CallContext, Delivery, DriverRequest, Error, ErrorKind, Result, Retry, Revision};
use futures_util::FutureExt as _;
use futures_util::future::Fuse;
use http::HeaderMap;
use rustix::process::Pid;
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::http::RequestBody;
use crate::threads::Threads;
use answer::Posted;

pub(super) use call::invoke;

/// The variables by which a worker is told of the API and of itself, in the way of AWS.
pub(super) const VARIABLES: [&str; 7] = [
    "AWS_LAMBDA_RUNTIME_API",
    "AWS_LAMBDA_FUNCTION_NAME",
    "AWS_LAMBDA_FUNCTION_VERSION",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
    "AWS_LAMBDA_LOG_GROUP_NAME",
    "AWS_LAMBDA_LOG_STREAM_NAME",
    "AWS_LAMBDA_INITIALIZATION_TYPE",
];
/// The memory that a worker is told it has where its specification does not say, in MiB: what AWS gives.
const USUAL_MEMORY: u64 = 128;

/// The values of [`VARIABLES`] for a worker that finds the API at an address.
pub(super) fn variables(address: SocketAddr, revision: &Revision) -> [String; 7] {
    let (name, generation) = (revision.key.name.as_str(), revision.generation);
    let memory = revision.spec.limits.memory_bytes.map_or(USUAL_MEMORY, |bytes| bytes.div_ceil(1024 * 1024));
    [
        address.to_string(),
        name.to_owned(),
        generation.to_string(),
        memory.to_string(),
        format!("/aws/lambda/{name}"),
        format!("[{generation}]{}", address.port()),
        "on-demand".to_owned(),
    ]
}

/// Where a worker will find the API. Nobody is answered yet.
#[derive(Debug)]
pub(super) struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listening {
    /// Takes a port of the loopback interface.
    pub(super) fn bind() -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves the processes of a group, in tasks of `tasks` on `runtime`, until it is closed.
    pub(super) fn serve(
        self,
        group: Pid,
        runtime: &Handle,
        threads: &Threads,
        tasks: &TaskTracker,
    ) -> io::Result<RuntimeApi> {
        let entered = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        drop(entered);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Notify::new(),
            closing: CancellationToken::new(),
            connections: TaskTracker::new(),
        });
        shared.connections.close();
        let site = server::Site {
            shared: Arc::clone(&shared),
            group,
            runtime: runtime.clone(),
            threads: threads.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn_on(server::accept(listener, site), runtime);
        Ok(RuntimeApi { shared, address: self.address })
    }
}

/// The API as one worker sees it. Closed when it is dropped.
pub(super) struct RuntimeApi {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl RuntimeApi {
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the worker asks for its first invocation. Cancel-safe.
    ///
    /// # Errors
    /// What the worker says itself of why it can't.
    pub(super) async fn ready(&self) -> Result<()> {
        self.shared.until(|state| state.start.clone()).await
    }

    /// What the worker has said of why it can't start, if it has.
    pub(super) fn init_error(&self) -> Option<Error> {
        self.shared.state().start.clone()?.err()
    }

    /// Has an invocation wait for the worker to ask for it.
    pub(super) fn offer(&self, event: Event) -> Invocation {
        let (reply, replied) = oneshot::channel();
        let (trouble, troubled) = oneshot::channel();
        let (over, stop) = oneshot::channel();
        let id = event.id.clone();
        let waiting = Waiting { event, line: Line { trouble, stop }, reply };
        self.shared.state().current = Current::Waiting(Box::new(waiting));
        self.shared.changed.notify_waiters();
        Invocation {
            shared: Arc::clone(&self.shared),
            id,
            replied: replied.fuse(),
            troubled: troubled.fuse(),
            _over: over,
        }
    }

    /// Waits until a worker that has ended can say nothing more. Cancel-safe.
    fn silence(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        async move {
            shared.closing.cancelled().await;
            shared.connections.wait().await;
        }
    }

    /// The worker has ended. So do the listener and every connection, once all is read that was sent by it.
    pub(super) fn close(&self) {
        self.shared.closing.cancel();
    }
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for RuntimeApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RuntimeApi").field("address", &self.address).finish_non_exhaustive()
    }
}

/// An invocation as the worker is told of it.
#[derive(Debug)]
pub(super) struct Event {
    id: String,
    head: HeaderMap,
    body: RequestBody,
}

impl Event {
    pub(super) fn new(cx: &CallContext, request: DriverRequest) -> Result<Self> {
        let id = document::request_id(cx);
        let head = document::invocation(cx, &id, &request).map_err(|error| {
            Error::new(ErrorKind::Internal, "the invocation can't be told in headers").with_source(error)
        })?;
        let body = match request.body {
            empty if empty.is_empty() => RequestBody::Bytes(Bytes::from_static(payload::EMPTY)),
            body => RequestBody::from(body),
        };
        Ok(Self { id, head, body })
    }
}

/// What the worker makes of an invocation.
#[derive(Debug)]
enum Reply {
    /// It posts an answer, or an error.
    Posted(Posted),
    /// It asks for the next one instead.
    Skipped,
    /// Its connection broke off before anything was written, and the payload can't be sent again.
    Unsent,
}

/// Between a payload on its way and its call.
#[derive(Debug)]
struct Line {
    /// Tells that the payload broke off.
    trouble: oneshot::Sender<Error>,
    /// Ends when the call is over.
    stop: oneshot::Receiver<()>,
}

#[derive(Debug)]
struct Waiting {
    event: Event,
    line: Line,
    reply: oneshot::Sender<Reply>,
}

/// How far the one invocation is that the worker may have at a time.
#[derive(Debug, Default)]
enum Current {
    #[default]
    None,
    /// The worker has not asked for it.
    Waiting(Box<Waiting>),
    /// It was given to the worker.
    Out { id: String, reply: oneshot::Sender<Reply> },
    /// The worker is answering.
    Answering { id: String },
}

#[derive(Debug, Default)]
struct State {
    /// How the worker's start went, once it is known.
    start: Option<Result<()>>,
    current: Current,
    /// How often the worker has asked. Only the last one counts: it may have given up the others.
    polls: u64,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
    closing: CancellationToken,
    /// Those that are open.
    connections: TaskTracker,
}

/// Why a request of the worker's is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    UnknownId,
    /// It was answered already, or is no question any more.
    TooLate,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the state yields something. Cancel-safe.
    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let found = look(&mut self.state());
            match found {
                Some(found) => return found,
                None => changed.await,
            }
        }
    }

    /// The worker asks for an invocation. One that it has and does not answer is given up.
    async fn next(&self) -> (Event, Line) {
        let poll = {
            let mut state = self.state();
            state.polls += 1;
            state.start.get_or_insert(Ok(()));
            if let Current::Out { .. } = state.current
                && let Current::Out { reply, .. } = mem::take(&mut state.current)
            {
                // Who no longer waits does not mind.
                let _ = reply.send(Reply::Skipped);
            }
            state.polls
        };
        self.changed.notify_waiters();
        self.until(|state| {
            if state.polls != poll {
                return None;
            }
            match mem::take(&mut state.current) {
                Current::Waiting(waiting) => {
                    let Waiting { event, line, reply } = *waiting;
                    state.current = Current::Out { id: event.id.clone(), reply };
                    Some((event, line))
                }
                other => {
                    state.current = other;
                    None
                }
            }
        })
        .await
    }

    /// What was given to the worker did not get to it.
    fn put_back(&self, id: &str, again: Option<(Event, Line)>) {
        let mut state = self.state();
        match mem::take(&mut state.current) {
            Current::Out { id: out, reply } if out == id => match again {
                Some((event, line)) => state.current = Current::Waiting(Box::new(Waiting { event, line, reply })),
                // Who no longer waits does not mind.
                None => drop(reply.send(Reply::Unsent)),
            },
            other => state.current = other,
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The worker answers an invocation: gives where the answer goes.
    fn claim(&self, id: &str) -> Result<oneshot::Sender<Reply>, Refusal> {
        let mut state = self.state();
        match mem::take(&mut state.current) {
            Current::Out { id: out, reply } if out == id => {
                state.current = Current::Answering { id: out };
                Ok(reply)
            }
            other => {
                let is_answered = matches!(&other, Current::Answering { id: answered } if answered == id);
                state.current = other;
                Err(if is_answered { Refusal::TooLate } else { Refusal::UnknownId })
            }
        }
    }

    /// The worker says why it can't start.
    fn fail_start(&self, error: Error) -> Result<(), Refusal> {
        let mut state = self.state();
        if state.start.is_some() {
            return Err(Refusal::TooLate);
        }
        state.start = Some(Err(error.with_delivery(Delivery::NotSent).with_retry(Retry::Transient)));
        drop(state);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Waits until no answer is being read.
    async fn unanswered(&self) {
        self.until(|state| (!matches!(state.current, Current::Answering { .. })).then_some(())).await;
    }
}

/// An invocation until its answer has ended. Dropping it gives it up: what the worker says of it afterwards is refused.
#[derive(Debug)]
pub(super) struct Invocation {
    shared: Arc<Shared>,
    id: String,
    replied: Fuse<oneshot::Receiver<Reply>>,
    troubled: Fuse<oneshot::Receiver<Error>>,
    _over: oneshot::Sender<()>,
}

impl Invocation {
    /// The worker's reply, or the error of the payload. Cancel-safe.
    async fn reply(&mut self) -> Result<Reply> {
        tokio::select! {
            biased;
            // Half a payload explains whatever the worker makes of it.
            Ok(error) = &mut self.troubled => Err(error.with_delivery(Delivery::Executed)),
            Ok(reply) = &mut self.replied => Ok(reply),
            // Neither happens where the worker goes without a word, which is known by other means.
            else => std::future::pending().await,
        }
    }

    /// Waits for the payload to break off. Cancel-safe.
    async fn trouble(&mut self) -> Error {
        match (&mut self.troubled).await {
            Ok(error) => error.with_delivery(Delivery::Executed),
            Err(_) => std::future::pending().await,
        }
    }

    /// Its answer has ended.
    fn end(&mut self) {
        drop(self.take());
    }

    /// Takes it back, if the worker has not got it.
    fn withdraw(self) -> Option<Event> {
        match self.take() {
            Current::Waiting(waiting) => Some(waiting.event),
            _ => None,
        }
    }

    /// Whether the worker can have seen it.
    fn delivery(&self) -> Delivery {
        match &self.shared.state().current {
            Current::Waiting(_) => Delivery::NotSent,
            _ => Delivery::Unknown,
        }
    }

    fn take(&self) -> Current {
        let mut state = self.shared.state();
        let is_own = match &state.current {
            Current::None => false,
            Current::Waiting(waiting) => waiting.event.id == self.id,
            Current::Out { id, .. } | Current::Answering { id } => *id == self.id,
        };
        let taken = if is_own { mem::take(&mut state.current) } else { Current::None };
        drop(state);
        self.shared.changed.notify_waiters();
        taken
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        drop(self.take());
    }
}

#[cfg(test)]
mod tests;
