//! A wall clock that a test owns.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use function_gateway_core::{Clock, Timestamp};

/// A wall clock that stands still until a test moves it. Clones show the same time.
///
/// Timers do not go by it: pause the runtime's clock for those.
///
/// ```
/// use std::time::Duration;
/// use function_gateway_core::{Clock, Timestamp};
/// use function_gateway_testkit::ManualClock;
///
/// let clock = ManualClock::at(Timestamp::from_micros(0));
/// clock.advance(Duration::from_secs(1));
/// assert_eq!(clock.now(), Timestamp::from_micros(1_000_000));
/// ```
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<AtomicI64>);

impl ManualClock {
    /// A clock that shows a time.
    #[must_use]
    pub fn at(time: Timestamp) -> Self {
        Self(Arc::new(AtomicI64::new(time.as_micros())))
    }

    /// Sets the time, backwards too, as wall clocks are set.
    pub fn set(&self, time: Timestamp) {
        self.0.store(time.as_micros(), Ordering::SeqCst);
    }

    /// Moves the time on.
    pub fn advance(&self, by: Duration) {
        self.set(self.now().plus(by));
    }
}

impl Default for ManualClock {
    /// Shows the start of the year 2026.
    fn default() -> Self {
        Self::at(Timestamp::from_micros(1_767_225_600_000_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_show_the_same_time() {
        let clock = ManualClock::default();
        assert_eq!(clock.now().to_string(), "2026-01-01T00:00:00.000000Z");
        let other = clock.clone();
        other.advance(Duration::from_secs(60));
        assert_eq!(clock.now().to_string(), "2026-01-01T00:01:00.000000Z");
    }
}
