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
        self.group.as_ref().map_or(Ok(true), |group| group.all_equal(numbers, what))
    }

    /// Overwrites the tensors by rank 0's.
    pub fn broadcast(&self, tensors: &TensorList, what: &'static str) -> Result<(), DistError> {
        self.group.as_ref().map_or(Ok(()), |group| group.broadcast(tensors, what))
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
