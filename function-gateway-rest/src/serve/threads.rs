//! Threads that serve clients, each with a runtime of its own, so that a request stays on one processor.

use std::num::NonZeroUsize;
use std::{io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::exit::{Exit, Failure, Result};

/// They end when this is dropped.
pub(crate) struct Threads(Vec<(Handle, oneshot::Sender<()>)>);

impl Threads {
    /// Starts so many, or one for each processor.
    pub(crate) fn start(count: Option<NonZeroUsize>) -> Result<Self> {
        let count = count.map_or_else(thread::available_parallelism, Ok).unwrap_or(NonZeroUsize::MIN);
        let started: io::Result<_> = (0..count.get()).map(start).collect();
        let failed = |error| Failure::new(Exit::GatewayFailed, format!("can't start {count} threads: {error}"));
        started.map(Self).map_err(failed)
    }

    pub(crate) fn runtimes(&self) -> impl Iterator<Item = Handle> {
        self.0.iter().map(|(runtime, _)| runtime.clone())
    }
}

fn start(number: usize) -> io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (alive, ended) = oneshot::channel();
    thread::Builder::new().name(format!("serve-{number}")).spawn(move || {
        // Nothing is ever sent.
        let _ = runtime.block_on(ended);
        runtime.shutdown_background();
    })?;
    Ok((handle, alive))
}
