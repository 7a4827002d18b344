//! Whose turn it is: trainers keep a core busy each, so few clusters run at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Clusters at a time in one test program.
const CLUSTERS: usize = 2;

static FREE: Mutex<usize> = Mutex::new(CLUSTERS);
static GIVEN_BACK: Condvar = Condvar::new();

/// The right to run a cluster, until it is dropped.
#[derive(Debug)]
pub struct Turn(usize);

impl Turn {
    /// Beside another cluster perhaps.
    pub fn shared() -> Self {
        Self::take(1)
    }

    /// With the machine to itself: for what is timed.
    pub fn alone() -> Self {
        Self::take(CLUSTERS)
    }

    fn take(wanted: usize) -> Self {
        let mut free =
            GIVEN_BACK.wait_while(locked(), |free| *free < wanted).unwrap_or_else(PoisonError::into_inner);
        *free -= wanted;
        Self(wanted)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *locked() += self.0;
        GIVEN_BACK.notify_all();
    }
}

fn locked() -> MutexGuard<'static, usize> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}
