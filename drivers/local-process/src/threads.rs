//! Threads for work that blocks, such as starting a process.
//!
//! Where no thread can be started, this is told at once. The pool of the runtime would panic then, or keep the work until
//! the caller's time is over.

use std::fmt;
use std::io;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SendError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, ThreadId};
use std::time::Duration;

use function_gateway_core::{Delivery, Error, ErrorKind, Result};
use tokio::sync::{Semaphore, oneshot};

/// How many of them work at a time: what they do is short, and mostly waits for the system.
const MOST: usize = 64;
/// How long a thread waits for more work before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Work = Box<dyn FnOnce() + Send>;

/// The threads of a driver. They end with it.
#[derive(Debug, Clone)]
pub(crate) struct Threads {
    pool: Arc<Pool>,
    room: Arc<Semaphore>,
}

#[derive(Debug)]
struct Pool {
    /// Threads without work.
    waiting: Mutex<Vec<Waiting>>,
    idle: Duration,
}

/// A thread that waits for work, as long as it is on the list.
struct Waiting {
    thread: ThreadId,
    work: SyncSender<Work>,
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.thread.fmt(f)
    }
}

impl Threads {
    pub(crate) fn new() -> Self {
        Self::with(MOST, IDLE)
    }

    fn with(most: usize, idle: Duration) -> Self {
        let pool = Arc::new(Pool { waiting: Mutex::default(), idle });
        Self { pool, room: Arc::new(Semaphore::new(most)) }
    }

    /// Runs work apart from the runtime's own threads, once one is free where all are at work. Dropping the future drops the
    /// result.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] where no thread can be started.
    pub(crate) async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (sender, result) = oneshot::channel();
        // It is never closed.
        let permit = Arc::clone(&self.room).acquire_owned().await.ok();
        let started = self.start(move || {
            let done = work();
            drop(permit);
            // Nobody may wait any more: then what was started is dropped here, which ends it.
            drop(sender.send(done));
        });
        started.map_err(|error| {
            let message = "this machine has no thread left for the driver: a limit of its user (ulimit -u), of its cgroup \
                           (pids.max) or of the machine is reached";
            Error::new(ErrorKind::Unavailable, message).with_delivery(Delivery::NotSent).with_source(error)
        })?;
        result.await.map_err(|error| {
            let error = Error::new(ErrorKind::Internal, "the driver has panicked").with_source(error);
            error.with_delivery(Delivery::Unknown)
        })
    }

    /// Starts work, and does not wait for it.
    pub(crate) fn start(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut work: Work = Box::new(work);
        let waiting = self.pool.waiting().pop();
        if let Some(waiting) = waiting {
            match waiting.work.send(work) {
                Ok(()) => return Ok(()),
                Err(SendError(unsent)) => work = unsent,
            }
        }
        let pool = Arc::downgrade(&self.pool);
        thread::Builder::new().name("local-process".to_owned()).spawn(move || run(&pool, work)).map(drop)
    }
}

impl Pool {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts this thread on the list.
    fn enter(&self) -> Receiver<Work> {
        let (work, receiver) = mpsc::sync_channel(1);
        self.waiting().push(Waiting { thread: thread::current().id(), work });
        receiver
    }

    /// Takes this thread off the list, if it is still on it.
    fn leave(&self) -> bool {
        let (this, mut waiting) = (thread::current().id(), self.waiting());
        let place = waiting.iter().position(|waiting| waiting.thread == this);
        place.map(|place| waiting.swap_remove(place)).is_some()
    }
}

fn run(pool: &Weak<Pool>, mut work: Work) {
    loop {
        work();
        let Some(alive) = pool.upgrade() else { return };
        let (receiver, idle) = (alive.enter(), alive.idle);
        drop(alive);
        let next = match receiver.recv_timeout(idle) {
            Err(RecvTimeoutError::Timeout) if pool.upgrade().is_none_or(|pool| pool.leave()) => return,
            // It was taken off the list just now, so work is on its way.
            Err(RecvTimeoutError::Timeout) => receiver.recv().ok(),
            next => next.ok(),
        };
        match next {
            Some(next) => work = next,
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    async fn thread_of(threads: &Threads) -> ThreadId {
        threads.blocking(|| thread::current().id()).await.unwrap()
    }

    /// Until so many threads have put themselves on the list.
    async fn waiting(threads: &Threads, count: usize) {
        while threads.pool.waiting().len() != count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_thread_that_waits_is_used_again_and_one_that_has_waited_too_long_has_left() {
        let threads = Threads::with(8, Duration::from_secs(600));
        let first = thread_of(&threads).await;
        for _ in 0..100 {
            waiting(&threads, 1).await;
            assert_eq!(thread_of(&threads).await, first);
        }
        let threads = Threads::with(8, Duration::from_millis(1));
        let mut used = HashSet::new();
        for _ in 0..10 {
            used.insert(thread_of(&threads).await);
            // It comes, and leaves by itself.
            waiting(&threads, 0).await;
        }
        while used.len() < 3 {
            used.insert(thread_of(&threads).await);
        }
    }

    #[tokio::test]
    async fn no_more_work_is_done_at_a_time_than_there_may_be_threads() {
        let threads = Threads::with(2, IDLE);
        let (begun, mut begins) = unbounded_channel();
        let (go, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let all: Vec<_> = (0..5)
            .map(|number| {
                let (threads, begun, gate) = (threads.clone(), begun.clone(), Arc::clone(&gate));
                tokio::spawn(async move {
                    let work = move || {
                        begun.send(number).unwrap();
                        gate.lock().unwrap().recv().unwrap();
                    };
                    threads.blocking(work).await.unwrap();
                })
            })
            .collect();
        begins.recv().await.unwrap();
        begins.recv().await.unwrap();
        assert_eq!(threads.room.available_permits(), 0);
        assert!(begins.try_recv().is_err());
        for _ in 0..5 {
            go.send(()).unwrap();
        }
        for one in all {
            one.await.unwrap();
        }
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_the_next_is_not() {
        let threads = Threads::new();
        let error = threads.blocking(|| panic!("for a test")).await.unwrap_err();
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Internal, Delivery::Unknown));
        assert_eq!(threads.blocking(|| 1).await.unwrap(), 1);
    }

    #[tokio::test]
    async fn threads_end_with_their_driver() {
        let threads = Threads::new();
        let pool = Arc::downgrade(&threads.pool);
        let (held, freed) = mpsc::channel::<()>();
        threads.start(move || drop(held)).unwrap();
        waiting(&threads, 1).await;
        drop(threads);
        assert!(pool.upgrade().is_none());
        assert!(freed.recv().is_err());
    }
}
