//! Threads for work that blocks, such as starting a process.
//!
//! Where no thread can be started, this is told at once. The pool of the runtime would panic then, or keep the work until
//! the caller's time is over.

use std::io;
use std::sync::mpsc::{self, Receiver, SendError, SyncSender};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::Duration;

use function_gateway_core::{Delivery, Error, ErrorKind, Result};
use tokio::sync::oneshot;

use crate::error;

/// How long a thread waits for more work before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// A thread that waits for work for as long as it is on the list.
struct Waiting {
    thread: ThreadId,
    work: SyncSender<Work>,
}

static WAITING: Mutex<Vec<Waiting>> = Mutex::new(Vec::new());

fn waiting() -> MutexGuard<'static, Vec<Waiting>> {
    WAITING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs work apart from the runtime's own threads. Dropping the future drops the result.
///
/// # Errors
/// [`ErrorKind::Unavailable`] where no thread can be started.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, result) = oneshot::channel();
    // Nobody may wait any more: then what was started is dropped here, which ends it.
    start(move || drop(sender.send(work()))).map_err(|error| error::of_io(error, Delivery::NotSent))?;
    result.await.map_err(|error| {
        Error::new(ErrorKind::Internal, "the driver has panicked").with_delivery(Delivery::Unknown).with_source(error)
    })
}

/// Starts work, and does not wait for it.
pub(crate) fn start(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut work: Work = Box::new(work);
    let thread = waiting().pop();
    if let Some(thread) = thread {
        match thread.work.send(work) {
            Ok(()) => return Ok(()),
            Err(SendError(unsent)) => work = unsent,
        }
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name("local-process".to_owned());
    thread.spawn(move || run(work, &sender, &receiver)).map(drop)
}

fn run(mut work: Work, sender: &SyncSender<Work>, receiver: &Receiver<Work>) {
    let this = thread::current().id();
    loop {
        work();
        waiting().push(Waiting { thread: this, work: sender.clone() });
        let next = match receiver.recv_timeout(IDLE) {
            Ok(next) => Some(next),
            Err(_) if leave(this) => None,
            // It was taken off the list just now, so work is on its way.
            Err(_) => receiver.recv().ok(),
        };
        match next {
            Some(next) => work = next,
            None => return,
        }
    }
}

/// Takes a thread off the list, if it is still on it.
fn leave(this: ThreadId) -> bool {
    let mut waiting = waiting();
    let place = waiting.iter().position(|thread| thread.thread == this);
    place.map(|place| waiting.swap_remove(place)).is_some()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn work_runs_at_the_same_time_and_again_on_the_threads_that_are_there() {
        for _ in 0..100 {
            let together = Arc::new(Barrier::new(8));
            let all = (0..8).map(|number| {
                let together = Arc::clone(&together);
                blocking(move || {
                    together.wait();
                    number
                })
            });
            let numbers: Result<Vec<i32>> = futures_util::future::join_all(all).await.into_iter().collect();
            assert_eq!(numbers.unwrap(), (0..8).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_the_next_is_not() {
        let error = blocking(|| panic!("for a test")).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Internal, Delivery::Unknown));
        assert_eq!(blocking(|| 1).await.unwrap(), 1);
    }
}
