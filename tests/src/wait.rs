//! Waiting is for a condition, under a deadline that only a failure reaches.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// No condition takes longer unless something is broken.
pub const LONG: Duration = Duration::from_secs(120);
const LOOK: Duration = Duration::from_millis(10);

/// Looks again and again until there is an answer.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(start.elapsed() < deadline, "waited {deadline:?} in vain: {what}");
        sleep(LOOK);
    }
}

/// Waits until it is true.
pub fn until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, deadline, || holds().then_some(()));
}
