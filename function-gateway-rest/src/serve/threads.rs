//! Threads that serve clients, each with a runtime of its own, so that a request stays on one processor.

use std::num::NonZeroUsize;
use std::sync::mpsc;
use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Threads with a runtime each, for [`ServeOptions::runtimes`](super::ServeOptions::runtimes). They end when this is dropped, which
/// is to be after the gateway was shut down.
#[derive(Debug)]
pub struct Threads(Vec<(Handle, oneshot::Sender<()>)>);

impl Threads {
    /// Starts one for each processor that this process may use.
    ///
    /// # Errors
    /// Where a thread or its runtime can't be started; those before it end.
    pub fn for_each_processor() -> io::Result<Self> {
        Self::start(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }

    /// Starts so many.
    ///
    /// # Errors
    /// As [`for_each_processor`](Self::for_each_processor).
    pub fn start(count: NonZeroUsize) -> io::Result<Self> {
        (0..count.get()).map(start).collect::<io::Result<_>>().map(Self)
    }

    /// Their runtimes.
    pub fn runtimes(&self) -> impl Iterator<Item = Handle> {
        self.0.iter().map(|(runtime, _)| runtime.clone())
    }
}

fn start(number: usize) -> io::Result<(Handle, oneshot::Sender<()>)> {
    let (alive, ended) = oneshot::channel();
    let (told, started) = mpsc::channel();
    // Made there: one that is dropped here, where no thread is to be had, would panic in a caller who is on a runtime.
    thread::Builder::new().name(format!("serve-{number}")).spawn(move || {
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(told.send(Err(error))),
        };
        if told.send(Ok(runtime.handle().clone())).is_ok() {
            // Nothing is ever sent.
            let _ = runtime.block_on(ended);
        }
        runtime.shutdown_background();
    })?;
    Ok((started.recv().map_err(io::Error::other)??, alive))
}
