use std::fmt;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

/// Where something waits until a test lets it pass. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    /// Closed once the gate is open for good.
    passes: Semaphore,
    waiting: watch::Sender<usize>,
}

impl Gate {
    /// A gate that lets nothing pass.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Inner { passes: Semaphore::new(0), waiting: watch::Sender::new(0) }))
    }

    /// Lets everything pass, for good.
    pub fn open(&self) {
        self.0.passes.close();
    }

    /// Lets `count` more pass: those that wait, then those that come.
    pub fn release(&self, count: usize) {
        self.0.passes.add_permits(count);
    }

    /// Whether everything passes.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.passes.is_closed()
    }

    /// Waits until it may pass. Cancel-safe: one that goes away takes no pass with it.
    pub async fn pass(&self) {
        let _waiting = Waiting::enter(&self.0.waiting);
        // An error says that the gate is open for good.
        if let Ok(permit) = self.0.passes.acquire().await {
            permit.forget();
        }
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        *self.0.waiting.borrow()
    }

    /// Waits until at least `count` wait at the gate. Cancel-safe.
    pub async fn reached_by(&self, count: usize) {
        // The sender lives as long as `self`.
        let _ = self.0.waiting.subscribe().wait_for(|waiting| *waiting >= count).await;
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("open", &self.is_open()).field("waiting", &self.waiting()).finish()
    }
}

struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn enter(waiting: &'a watch::Sender<usize>) -> Self {
        waiting.send_modify(|count| *count += 1);
        Self(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn a_gate_lets_pass_as_many_as_it_is_told() {
        let gate = Gate::new();
        gate.release(1);
        assert!(gate.pass().now_or_never().is_some());
        assert!(gate.pass().now_or_never().is_none());
        assert_eq!(gate.waiting(), 0);
        gate.open();
        assert!(gate.pass().now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_test_can_wait_for_those_who_wait() {
        let gate = Gate::new();
        let waiter = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass().await }
        });
        gate.reached_by(1).await;
        gate.open();
        waiter.await.unwrap();
    }
}
