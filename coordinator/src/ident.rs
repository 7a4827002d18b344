//! Job ids: short enough to type a prefix of, sortable by creation, unique.

use anybit_shared::ids::{IdError, JobId};

/// Crockford's base 32 in lowercase: no i, l, o, u.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 2025-01-01 in UTC; 40 bits of milliseconds from there last until 2059.
const EPOCH_UNIX_MS: i64 = 1_735_689_600_000;
const TIME_DIGITS: u32 = 8;
const RANDOM_DIGITS: u32 = 4;

/// Makes ids: eight digits of time, four of chance. Later ids sort after earlier ones, also
/// within a millisecond and when the wall clock is set back.
#[derive(Debug, Default)]
pub(crate) struct JobIds {
    last_ms: u64,
}

impl JobIds {
    /// The next id, at this wall time.
    pub(crate) fn next_id(&mut self, unix_ms: i64) -> Result<JobId, IdError> {
        let now = u64::try_from(unix_ms.saturating_sub(EPOCH_UNIX_MS)).unwrap_or(0);
        self.last_ms = now.max(self.last_ms.saturating_add(1));
        let mut text = digits(self.last_ms, TIME_DIGITS);
        text.push_str(&digits(fastrand::u64(..), RANDOM_DIGITS));
        JobId::new(text)
    }
}

/// The lowest `count` digits, highest first.
fn digits(value: u64, count: u32) -> String {
    (0..count).rev().map(|place| char::from(ALPHABET[(value >> (5 * place)) as usize % 32])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_creation() {
        let mut ids = JobIds::default();
        let times = [EPOCH_UNIX_MS + 5, EPOCH_UNIX_MS + 5, EPOCH_UNIX_MS + 900_000, EPOCH_UNIX_MS, 0];
        let made: Vec<_> = times.iter().map(|time| ids.next_id(*time).unwrap()).collect();
        assert!(made.is_sorted() && made.windows(2).all(|pair| pair[0] != pair[1]), "{made:?}");
        assert!(made.iter().all(|id| id.as_str().len() == 12));
    }
}
