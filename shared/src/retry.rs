//! When to try again: a policy as data, and the waits that it gives.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Waits that grow by a factor up to a bound, each shortened by a random share so that many
/// clients do not return at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RetryPolicy {
    /// The wait before the second attempt.
    #[serde(with = "crate::settings::duration")]
    pub initial: Duration,
    /// No wait is longer.
    #[serde(with = "crate::settings::duration")]
    pub max: Duration,
    /// Each wait is this many times the one before; at least 1.
    pub factor: f64,
    /// A wait is shortened by up to this share of itself, in [0, 1].
    pub jitter: f64,
    /// Attempts in all; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(100),
            max: Duration::from_secs(5),
            factor: 2.0,
            jitter: 0.5,
            max_attempts: None,
        }
    }
}

impl RetryPolicy {
    /// The wait after `failed` attempts (the first wait is after 1), or `None` when no attempt is
    /// left. `random` in [0, 1) picks the jitter; 0 gives the full wait.
    pub fn delay(&self, failed: u32, random: f64) -> Option<Duration> {
        if self.max_attempts.is_some_and(|max| failed >= max) {
            return None;
        }
        let exponent = failed.saturating_sub(1).min(1_000) as i32;
        let full = self.initial.as_secs_f64() * self.factor.max(1.0).powi(exponent);
        let bounded = full.min(self.max.as_secs_f64());
        let kept = 1.0 - self.jitter.clamp(0.0, 1.0) * random.clamp(0.0, 1.0);
        Some(Duration::try_from_secs_f64(bounded * kept).unwrap_or(self.max))
    }

    /// Starts counting attempts.
    pub fn backoff(&self) -> Backoff {
        Backoff { policy: self.clone(), failed: 0 }
    }
}

/// Attempts so far under a [`RetryPolicy`].
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: RetryPolicy,
    failed: u32,
}

impl Backoff {
    /// Counts one failed attempt and gives the wait before the next, or `None` to give up.
    pub fn next_delay(&mut self) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        self.policy.delay(self.failed, fastrand::f64())
    }

    /// Failed attempts since the start or the last reset.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// After a success: the next wait is the first again.
    pub fn reset(&mut self) {
        self.failed = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> RetryPolicy {
        RetryPolicy { jitter: 0.0, ..RetryPolicy::default() }
    }

    #[test]
    fn waits_double_up_to_the_bound() {
        let waits: Vec<_> =
            (1..=8).filter_map(|n| policy().delay(n, 0.0)).map(|wait| wait.as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn gives_up_after_the_last_attempt() {
        let mut backoff = RetryPolicy { max_attempts: Some(2), ..policy() }.backoff();
        assert!(backoff.next_delay().is_some());
        assert!(backoff.next_delay().is_none());
        backoff.reset();
        assert!(backoff.next_delay().is_some());
    }

    proptest! {
        #[test]
        fn no_wait_leaves_its_bounds(failed in any::<u32>(), random in 0.0..1.0f64) {
            let policy = RetryPolicy { jitter: 0.5, ..policy() };
            let full = policy.delay(failed, 0.0).unwrap();
            let wait = policy.delay(failed, random).unwrap();
            prop_assert!(wait <= full && full <= policy.max);
            prop_assert!(wait.as_secs_f64() >= full.as_secs_f64() * 0.5 - 1e-6);
        }
    }
}
