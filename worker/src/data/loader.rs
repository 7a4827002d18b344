//! Decoding and batching off the training thread.
//!
//! [`Loader`] gives a rank its groups of every step, [`Evaluation`] its part of the test set. Both
//! decode ahead on threads of their own, a bounded number of batches, so that the next one is
//! ready before it is asked for; both take their buffers back. What a batch holds depends on its
//! place alone, never on timing or on the number of threads.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use anybit_shared::ids::Rank;

use super::dataset::Dataset;
use super::error::DataError;
use super::pipeline::Pipeline;
use super::sampler::{groups_of, sample_at, share_of};
use super::transform::Resizer;

/// Where samples come from.
pub trait Samples: Send + Sync {
    /// The number of samples.
    fn count(&self) -> NonZeroU64;

    /// Decodes sample `index`: writes its image into `out` (exactly [`Resizer::values`] of them)
    /// and returns its label.
    fn load(&self, index: u64, resizer: &mut Resizer, out: &mut [f32]) -> Result<i64, DataError>;
}

impl Samples for Dataset {
    fn count(&self) -> NonZeroU64 {
        Self::count(self)
    }

    fn load(&self, index: u64, resizer: &mut Resizer, out: &mut [f32]) -> Result<i64, DataError> {
        let (image, label) = self.get(index)?;
        resizer.apply(image, out);
        Ok(i64::from(label))
    }
}

/// What one rank computes in one step, or one batch of an evaluation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The *step's* global offset, the same on all ranks; in an evaluation the first index.
    pub offset: u64,
    /// This rank's groups, in order; in an evaluation always one.
    pub groups: Vec<GroupBatch>,
}

/// What one forward pass takes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GroupBatch {
    /// Sample x row x column x channel: a `[N, 3, H, W]` tensor in channels-last memory order.
    pub images: Vec<f32>,
    /// One a sample.
    pub labels: Vec<i64>,
    /// The samples' indices in the data set.
    pub indices: Vec<u64>,
}

/// How far ahead, and on how many threads, batches are decoded. Neither changes what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Batches decoded before they are asked for, at least 1.
    pub prefetch: usize,
    /// Decode threads, at least 1; each works on a batch of its own.
    pub threads: usize,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self { prefetch: 2, threads: 1 }
    }
}

/// Which samples of a step are one rank's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Seeds the order of every epoch.
    pub seed: u64,
    /// Samples a group.
    pub group: u32,
    /// Groups a step, over all ranks.
    pub groups: u32,
    /// This rank.
    pub rank: Rank,
    /// How many ranks there are.
    pub world_size: u32,
}

impl Share {
    /// Samples a step, over all ranks: what a step adds to the global offset.
    pub fn batch(&self) -> u64 {
        u64::from(self.group) * u64::from(self.groups)
    }
}

/// Which samples the batches of a pipeline hold.
#[derive(Debug, Clone)]
pub(super) enum Plan {
    Train { share: Share, len: NonZeroU64, start: u64 },
    Evaluate { range: std::ops::Range<u64>, batch: u64 },
}

impl Plan {
    /// How many batches there are; `None`: without end.
    pub(super) fn batches(&self) -> Option<u64> {
        match self {
            Self::Train { .. } => None,
            Self::Evaluate { range, batch } => Some((range.end - range.start).div_ceil(*batch)),
        }
    }

    /// Sets the offset and the indices of batch `number`, keeping the buffers.
    pub(super) fn fill(&self, number: u64, into: &mut Batch) {
        match self {
            Self::Train { share, len, start } => {
                into.offset = start.wrapping_add(number.wrapping_mul(share.batch()));
                let mine = groups_of(share.rank.0, share.world_size, share.groups);
                into.groups.resize_with(mine.len(), GroupBatch::default);
                for (group, place) in into.groups.iter_mut().zip(mine) {
                    let first = into.offset.wrapping_add(u64::from(place) * u64::from(share.group));
                    let offsets = (0..u64::from(share.group)).map(|i| first.wrapping_add(i));
                    group.indices.clear();
                    group.indices.extend(offsets.map(|offset| sample_at(share.seed, *len, offset).index));
                }
            }
            Self::Evaluate { range, batch } => {
                into.offset = range.start + number * batch;
                into.groups.resize_with(1, GroupBatch::default);
                for group in &mut into.groups {
                    group.indices.clear();
                    group.indices.extend(into.offset..range.end.min(into.offset.saturating_add(*batch)));
                }
            }
        }
    }
}

/// One rank's training batches, from any global offset on, without end.
pub struct Loader {
    samples: Arc<dyn Samples>,
    resizer: Resizer,
    share: Share,
    options: LoaderOptions,
    pipeline: Pipeline,
}

impl Loader {
    /// Starts decoding the step at global offset `offset`.
    pub fn new(
        samples: Arc<dyn Samples>,
        resizer: Resizer,
        share: Share,
        offset: u64,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let plan = Plan::Train { share, len: samples.count(), start: offset };
        let pipeline = Pipeline::start(&samples, &resizer, plan, options)?;
        Ok(Self { samples, resizer, share, options, pipeline })
    }

    /// The next step's batch, waiting for it if it must. A sample that cannot be decoded is an
    /// error at its batch; after that there is nothing until [`Loader::seek`].
    #[expect(clippy::should_implement_trait, reason = "it never ends, so it is no iterator")]
    pub fn next(&mut self) -> Result<Batch, DataError> {
        self.pipeline.next().unwrap_or(Err(DataError::Stopped))
    }

    /// Gives a batch's buffers back for use in later ones; what they held is overwritten.
    pub fn recycle(&mut self, batch: Batch) {
        self.pipeline.recycle(batch);
    }

    /// Goes on at another global offset.
    pub fn seek(&mut self, offset: u64) -> Result<(), DataError> {
        let plan = Plan::Train { share: self.share, len: self.samples.count(), start: offset };
        let waited = self.pipeline.waited();
        self.pipeline = Pipeline::start(&self.samples, &self.resizer, plan, self.options)?;
        self.pipeline.add_wait(waited);
        Ok(())
    }

    /// How long [`Loader::next`] has waited for batches in all: the training thread's data stalls.
    pub fn waited(&self) -> Duration {
        self.pipeline.waited()
    }
}

/// One rank's part of the test set, in order, in batches of a fixed size (the last one shorter).
/// The ranks' parts are contiguous and make up the whole.
pub struct Evaluation {
    pipeline: Pipeline,
}

impl Evaluation {
    /// Starts decoding the part of `rank`.
    pub fn new(
        samples: &Arc<dyn Samples>,
        resizer: &Resizer,
        rank: Rank,
        world_size: u32,
        batch: u32,
        options: LoaderOptions,
    ) -> Result<Self, DataError> {
        let range = share_of(rank.0, world_size, samples.count().get());
        let plan = Plan::Evaluate { range, batch: u64::from(batch.max(1)) };
        Ok(Self { pipeline: Pipeline::start(samples, resizer, plan, options)? })
    }

    /// Gives a batch's buffers back for use in later ones.
    pub fn recycle(&mut self, batch: Batch) {
        self.pipeline.recycle(batch);
    }
}

impl Iterator for Evaluation {
    type Item = Result<Batch, DataError>;

    /// The next batch; an error is the last item.
    fn next(&mut self) -> Option<Self::Item> {
        self.pipeline.next()
    }
}
