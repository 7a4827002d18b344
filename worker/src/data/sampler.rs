//! The elastic sampler: which sample stands at which global offset, as a pure function.
//!
//! The training set is repeated for ever, each epoch in its own order, and the *global offset*
//! counts samples along that line. A step takes the next `batch` samples whatever the number of
//! ranks, so the only state is the offset, a batch may straddle two epochs, and every sample is
//! seen exactly once an epoch through any sequence of failures and resizes.
//!
//! An epoch's order is a permutation of `0..len` keyed by (seed, epoch) and computed point by
//! point in constant memory: the *swap-or-not* shuffle of Hoang, Morris and Rogaway ("An
//! enciphering scheme based on a card shuffle", CRYPTO 2012). A round draws `k` in `0..len`, pairs
//! every `x` with `(k - x) mod len`, and swaps the pair if a keyed coin of that pair says so.
//! Unlike a Feistel network it needs no domain of a power of two, so no cycle walking, and its
//! quality does not suffer on tiny sets.

use std::num::NonZeroU64;
use std::ops::Range;

/// One sample's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// The pass over the data set, from 0.
    pub epoch: u64,
    /// The index in the data set.
    pub index: u64,
}

/// The sample at a global offset of a data set of `len` samples.
pub fn sample_at(seed: u64, len: NonZeroU64, global_offset: u64) -> Sample {
    let epoch = global_offset / len;
    Sample { epoch, index: permute(epoch_key(seed, epoch), len.get(), global_offset % len) }
}

/// Epochs completed at a global offset, with the fraction of the one under way.
pub fn epochs_at(len: NonZeroU64, global_offset: u64) -> f64 {
    // Whole epochs and the rest apart: exact at every boundary, however far along.
    (global_offset / len) as f64 + (global_offset % len) as f64 / len.get() as f64
}

/// Steps of `batch` samples that cover `epochs` passes, the last one reaching beyond the end if
/// it must: `ceil(epochs * len / batch)`. A batch of 0 counts as 1; saturates at `u64::MAX`.
pub fn total_steps(epochs: u32, len: NonZeroU64, batch: u32) -> u64 {
    let samples = u128::from(epochs) * u128::from(len.get());
    u64::try_from(samples.div_ceil(u128::from(batch.max(1)))).unwrap_or(u64::MAX)
}

/// The groups of a step that `rank` of `world_size` computes: whole groups, contiguous in rank
/// order, their numbers at most one apart, lower ranks taking the larger shares. Empty for ranks
/// beyond the number of groups and for `rank >= world_size`.
pub fn groups_of(rank: u32, world_size: u32, groups: u32) -> Range<u32> {
    let share = share_of(rank, world_size, u64::from(groups));
    // Both ends are at most `groups`.
    share.start as u32..share.end as u32
}

/// The part of `0..total` that `rank` of `world_size` takes, by the rule of [`groups_of`].
pub fn share_of(rank: u32, world_size: u32, total: u64) -> Range<u64> {
    if rank >= world_size {
        return total..total;
    }
    let (rank, world) = (u64::from(rank), u64::from(world_size));
    let (base, extra) = (total / world, total % world);
    let start = rank * base + rank.min(extra);
    start..start + base + u64::from(rank < extra)
}

/// SplitMix64's increment, the golden ratio.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer (Stafford's variant 13): a bijection in which every bit of the input
/// flips every bit of the output with a chance of nearly one half.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of an epoch's order.
fn epoch_key(seed: u64, epoch: u64) -> u64 {
    mix(mix(seed.wrapping_add(GOLDEN)) ^ mix(epoch.wrapping_mul(GOLDEN).wrapping_add(!GOLDEN)))
}

/// Where a keyed permutation of `0..len` sends `x < len`.
fn permute(key: u64, len: u64, mut x: u64) -> u64 {
    // A sample's place is well mixed after 4 log2(len) rounds; the rest is margin, and small sets
    // need some whatever their size (two cards swap with a chance of 1/4 a round).
    let rounds = u64::from(32 + 6 * (u64::BITS - len.leading_zeros()));
    for round in 1..=rounds {
        let round_key = mix(key.wrapping_add(round.wrapping_mul(GOLDEN)));
        // In 0..len, by multiplication; the bias is len / 2^64.
        let k = ((u128::from(round_key) * u128::from(len)) >> 64) as u64;
        let partner = if k >= x { k - x } else { k + (len - x) };
        let coin = mix(round_key.rotate_left(32) ^ x.max(partner)) >> 63;
        if coin == 1 {
            x = partner;
        }
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn len(n: u64) -> NonZeroU64 {
        NonZeroU64::new(n).unwrap()
    }

    fn order(seed: u64, n: u64, epoch: u64) -> Vec<u64> {
        let samples = (0..n).map(|i| sample_at(seed, len(n), epoch * n + i));
        samples.inspect(|s| assert_eq!(s.epoch, epoch)).map(|s| s.index).collect()
    }

    fn is_permutation(order: &[u64]) -> bool {
        let mut seen = vec![false; order.len()];
        order.iter().all(|&i| (i as usize) < seen.len() && !std::mem::replace(&mut seen[i as usize], true))
    }

    /// The indices that all ranks together see in steps of the given world sizes.
    fn run(seed: u64, n: u64, group: u64, groups: u32, worlds: &[u32]) -> Vec<u64> {
        let mut offset = 0;
        let mut seen = Vec::new();
        for &world in worlds {
            for rank in 0..world {
                for g in groups_of(rank, world, groups) {
                    let start = offset + u64::from(g) * group;
                    seen.extend((start..start + group).map(|o| sample_at(seed, len(n), o).index));
                }
            }
            offset += group * u64::from(groups);
        }
        seen
    }

    #[test]
    fn every_epoch_is_a_permutation_at_awkward_lengths() {
        for n in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 97, 128, 129, 1021, 1024, 1025, 1437] {
            for epoch in 0..3 {
                assert!(is_permutation(&order(5, n, epoch)), "length {n}, epoch {epoch}");
            }
        }
    }

    // From an independent implementation (Python).
    const PINNED_0: [u64; 10] = [1, 5, 9, 2, 8, 6, 4, 0, 7, 3];
    const PINNED_1: [u64; 10] = [0, 7, 5, 6, 1, 2, 8, 9, 3, 4];
    const PINNED_FAR: u64 = 9123;

    #[test]
    fn the_order_is_pinned() {
        // A change of the order breaks the resuming of every checkpoint there is.
        assert_eq!(order(0, 10, 0), PINNED_0);
        assert_eq!(order(0, 10, 1), PINNED_1);
        assert_eq!(sample_at(7, len(60_000), 123_456_789), Sample { epoch: 2057, index: PINNED_FAR });
    }

    #[test]
    fn epochs_and_seeds_differ() {
        let base = order(1, 500, 0);
        for other in [order(1, 500, 1), order(2, 500, 0), order(u64::MAX, 500, 0)] {
            let same = base.iter().zip(&other).filter(|(a, b)| a == b).count();
            assert!(same < 12, "{same} of 500 places agree, about one is due to chance");
        }
    }

    /// Chi-square against a uniform expectation, as a number of standard deviations.
    fn deviation(counts: &[u64]) -> f64 {
        let mean = counts.iter().sum::<u64>() as f64 / counts.len() as f64;
        let chi2: f64 = counts.iter().map(|&c| (c as f64 - mean).powi(2) / mean).sum();
        let freedom = counts.len() as f64 - 1.0;
        (chi2 - freedom) / (2.0 * freedom).sqrt()
    }

    #[test]
    fn each_order_of_a_tiny_set_is_equally_likely() {
        for (n, factorial) in [(2u64, 2usize), (3, 6), (4, 24), (5, 120)] {
            let mut counts = std::collections::HashMap::<Vec<u64>, u64>::new();
            for epoch in 0..200 * factorial as u64 {
                *counts.entry(order(3, n, epoch)).or_default() += 1;
            }
            assert_eq!(counts.len(), factorial, "length {n}: not every order turns up");
            let z = deviation(&counts.into_values().collect::<Vec<_>>());
            assert!(z.abs() < 4.0, "length {n}: {z} standard deviations");
        }
    }

    #[test]
    fn pairs_of_places_are_independent() {
        // Over many epochs, where two fixed places of 11 send their samples: each of the 110
        // ordered pairs equally often; near, far and outermost places.
        for (a, b) in [(0u64, 1u64), (0, 10), (4, 7), (9, 10)] {
            let mut counts = vec![0u64; 121];
            for epoch in 0..11_000 {
                let at = |place| sample_at(11, len(11), epoch * 11 + place).index as usize;
                counts[at(a) * 11 + at(b)] += 1;
            }
            let (diagonal, rest): (Vec<_>, Vec<_>) =
                counts.into_iter().enumerate().partition(|(i, _)| i % 12 == 0);
            assert!(diagonal.iter().all(|&(_, c)| c == 0));
            let z = deviation(&rest.into_iter().map(|(_, c)| c).collect::<Vec<_>>());
            assert!(z.abs() < 4.0, "places {a} and {b}: {z} standard deviations");
        }
    }

    #[test]
    fn neighbours_within_an_epoch_are_far_apart_at_random() {
        // The difference of successive indices, modulo the length, in 16 buckets over whole epochs.
        let n = 4096u64;
        let mut counts = vec![0u64; 16];
        for epoch in 0..4 {
            for pair in order(9, n, epoch).windows(2) {
                let d = (pair[1] + n - pair[0]) % n;
                counts[(d * 16 / n) as usize] += 1;
            }
        }
        let z = deviation(&counts);
        assert!(z.abs() < 4.0, "{z} standard deviations");
    }

    #[test]
    fn successive_epochs_are_independent() {
        // Where a sample stands in one epoch says nothing about the next: 8 x 8 blocks of places.
        let n = 4096u64;
        let mut counts = vec![0u64; 64];
        for epoch in 0..6 {
            let (a, b) = (order(2, n, epoch), order(2, n, epoch + 1));
            let mut place = vec![0u64; n as usize];
            for (i, &index) in b.iter().enumerate() {
                place[index as usize] = i as u64;
            }
            for (i, &index) in a.iter().enumerate() {
                counts[(i as u64 * 8 / n * 8 + place[index as usize] * 8 / n) as usize] += 1;
            }
        }
        let z = deviation(&counts);
        assert!(z.abs() < 4.0, "{z} standard deviations");
    }

    #[test]
    fn steps_cover_the_epochs_and_do_not_overflow() {
        assert_eq!(total_steps(20, len(1437), 64), 450); // 28,740 / 64 = 449.06
        assert_eq!(total_steps(1, len(64), 64), 1);
        assert_eq!(total_steps(1, len(65), 64), 2);
        assert_eq!(total_steps(0, len(65), 64), 0);
        assert_eq!(total_steps(3, len(10), 0), 30);
        assert_eq!(total_steps(u32::MAX, len(u64::MAX), 1), u64::MAX);
        assert_eq!(total_steps(u32::MAX, len(u64::MAX), u32::MAX), u64::MAX);
    }

    #[test]
    fn epochs_are_exact_at_their_boundaries() {
        assert_eq!(epochs_at(len(1437), 1437 * 20), 20.0);
        assert_eq!(epochs_at(len(3), 3_000_000_000_001 * 3), 3_000_000_000_001.0);
        assert_eq!(epochs_at(len(4), 6), 1.5);
    }

    #[test]
    fn the_last_offset_is_within_bounds() {
        for n in [1, 3, 60_000, u64::MAX] {
            assert!(sample_at(1, len(n), u64::MAX).index < n);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn any_length_any_key_is_a_permutation(seed: u64, n in 1u64..700, epoch in 0u64..1 << 40) {
            prop_assert!(is_permutation(&order(seed, n, epoch)));
        }

        #[test]
        fn every_sample_once_an_epoch_through_any_resizes(
            seed: u64, n in 1u64..200, group in 1u64..17, groups in 1u32..7,
            worlds in proptest::collection::vec(1u32..9, 1..30),
        ) {
            let seen = run(seed, n, group, groups, &worlds);
            prop_assert_eq!(seen.len() as u64, worlds.len() as u64 * group * u64::from(groups));
            for epoch in seen.chunks_exact(n as usize) {
                prop_assert!(is_permutation(epoch), "batches straddle epochs and still each is complete");
            }
            // Rank counts change nothing at all, not even the order.
            prop_assert_eq!(&seen, &run(seed, n, group, groups, &vec![1; worlds.len()]));
        }

        #[test]
        fn shares_are_contiguous_even_and_complete(world in 1u32..40, groups in 0u32..200) {
            let shares: Vec<_> = (0..world).map(|rank| groups_of(rank, world, groups)).collect();
            let mut next = 0;
            for share in &shares {
                prop_assert_eq!(share.start, next);
                next = share.end;
                prop_assert!((groups / world..=groups.div_ceil(world)).contains(&(share.len() as u32)));
                prop_assert!(world > groups || !share.is_empty());
            }
            prop_assert_eq!(next, groups);
            prop_assert!(groups_of(world, world, groups).is_empty());
        }
    }
}
