//! Time, from a clock that tests can turn.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Wall time for people and records, monotonic time for deadlines.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Milliseconds since 1970 in UTC; may jump.
    fn unix_ms(&self) -> i64;
    /// Never goes back.
    fn now(&self) -> Instant;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    fn now(&self) -> Instant {
        Instant::now()
    }
}

/// A clock that stands still until it is turned, for tests.
#[derive(Debug)]
pub struct ManualClock {
    origin: Instant,
    start_unix_ms: i64,
    elapsed: Mutex<Duration>,
}

impl ManualClock {
    /// A clock that shows this wall time.
    pub fn new(unix_ms: i64) -> Self {
        Self { origin: Instant::now(), start_unix_ms: unix_ms, elapsed: Mutex::new(Duration::ZERO) }
    }

    /// Turns both times forward.
    pub fn advance(&self, by: Duration) {
        let mut elapsed = self.elapsed.lock().unwrap_or_else(PoisonError::into_inner);
        *elapsed = elapsed.saturating_add(by);
    }

    fn elapsed(&self) -> Duration {
        *self.elapsed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn unix_ms(&self) -> i64 {
        let elapsed = i64::try_from(self.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.start_unix_ms.saturating_add(elapsed)
    }

    fn now(&self) -> Instant {
        self.origin + self.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_turned() {
        let clock = ManualClock::new(1_000);
        let before = clock.now();
        assert_eq!(clock.unix_ms(), 1_000);
        clock.advance(Duration::from_millis(250));
        assert_eq!(clock.unix_ms(), 1_250);
        assert_eq!(clock.now() - before, Duration::from_millis(250));
    }

    #[test]
    fn the_system_clock_shows_this_century() {
        assert!(SystemClock.unix_ms() > 1_700_000_000_000);
    }
}
