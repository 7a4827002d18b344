//! A trainer's view of its peers: a group, or nobody.

use anybit_anyprec::native::TensorList;
use anybit_anyprec::nn::Registry;
use anybit_shared::ids::Rank;
use tch::{TchError, Tensor};

use super::{DistError, Group, Meeting, Reducer};

/// The data-parallel replicas of one generation, this rank among them.
pub struct Replicas {
    rank: Rank,
    world_size: u32,
    group: Option<Group>,
}

impl Replicas {
    /// One rank without peers.
    pub fn alone() -> Self {
        Self { rank: Rank(0), world_size: 1, group: None }
    }

    /// Meets the others; a world of one needs no meeting.
    pub fn meet(meeting: &Meeting) -> Result<Self, DistError> {
        if meeting.world_size == 1 {
            return Ok(Self::alone());
        }
        let group = Group::join(meeting)?;
        Ok(Self { rank: meeting.rank, world_size: meeting.world_size, group: Some(group) })
    }

    /// This rank.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Ranks in all.
    pub fn world_size(&self) -> u32 {
        self.world_size
    }

    /// Sums a tensor over the ranks, in place.
    pub fn sum(&self, tensor: &Tensor, what: &'static str) -> Result<(), DistError> {
        self.group.as_ref().map_or(Ok(()), |group| group.sum(tensor, what))
    }

    /// True if every rank gave the same numbers.
    pub fn all_equal(&self, numbers: &[i64], what: &'static str) -> Result<bool, DistError> {
        let Some(group) = &self.group else { return Ok(true) };
        let (least, most) = group.extremes(numbers, what)?;
        Ok(least == most)
    }

    /// The greatest pair over all ranks, and the lowest rank that gave it.
    pub fn lowest_rank_with_most(&self, mine: (i64, i64)) -> Result<(Rank, (i64, i64)), DistError> {
        let Some(group) = &self.group else { return Ok((self.rank, mine)) };
        let what = "choosing a checkpoint";
        let most = |value: i64| Ok::<_, DistError>(group.extremes(&[value], what)?.1[0]);
        let first = most(mine.0)?;
        let second = most(if mine.0 == first { mine.1 } else { i64::MIN })?;
        let rank = if mine == (first, second) { i64::from(self.rank.0) } else { i64::MAX };
        let (lowest, _) = group.extremes(&[rank], what)?;
        Ok((Rank(lowest[0] as u32), (first, second)))
    }

    /// Returns once every rank has called it, however long one of them writes a checkpoint.
    pub fn wait_for_all(&self, what: &'static str) -> Result<(), DistError> {
        self.group.as_ref().map_or(Ok(()), |group| group.wait_for_all(what))
    }

    /// Overwrites the tensors by rank `root`'s.
    pub fn broadcast(&self, tensors: &TensorList, root: Rank, what: &'static str) -> Result<(), DistError> {
        self.group.as_ref().map_or(Ok(()), |group| group.broadcast(tensors, root, what))
    }

    /// The gradient all-reduce over a registry's parameters; none for one rank.
    pub fn reducer(&self, registry: &Registry, find_unused: bool) -> Result<Option<Reducer>, DistError> {
        let new = |group| Reducer::new(group, &registry.parameter_list(), find_unused);
        self.group.as_ref().map(new).transpose()
    }

    /// Makes the running statistics, in place, what one rank alone would have: each rank's,
    /// weighted by its share of the groups.
    pub fn average_statistics(
        &self,
        registry: &Registry,
        groups: u32,
        all_groups: u32,
    ) -> Result<(), AverageError> {
        if self.group.is_none() {
            return Ok(());
        }
        let statistics = registry.statistics();
        let tensors: Vec<&Tensor> = statistics.iter().flat_map(|s| [&s.mean, &s.variance]).collect();
        let flat = Tensor::f_cat(&tensors, 0)?.f_mul_scalar(f64::from(groups) / f64::from(all_groups))?;
        self.sum(&flat, "averaging running statistics")?;
        let mut at = 0;
        for tensor in tensors {
            let length = tensor.size()[0];
            tensor.shallow_clone().f_copy_(&flat.f_narrow(0, at, length)?)?;
            at += length;
        }
        Ok(())
    }
}

/// Why running statistics could not be averaged.
#[derive(Debug, thiserror::Error)]
pub enum AverageError {
    /// A peer is gone.
    #[error(transparent)]
    Dist(#[from] DistError),
    /// libtorch failed.
    #[error(transparent)]
    Torch(#[from] TchError),
}
