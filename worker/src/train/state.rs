//! Between a replica and its checkpoints: writing, choosing, restoring, comparing.

use std::time::Instant;

use anybit_anyprec::native::TensorList;
use anybit_anyprec::nn;
use anybit_shared::ids::GlobalStep;
use sha2::{Digest, Sha256};
use tch::{Kind, TchError, Tensor};

use super::TrainError;
use super::step::Replica;
use crate::assignment::Assignment;
use crate::checkpoint::{self, Checkpoint, CheckpointInfo, Dtype, NamedTensor, TrainState};

/// Where training stands, besides the tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Samples consumed over all epochs.
    pub sample_offset: u64,
}

fn dtype(kind: Kind) -> Result<Dtype, TchError> {
    match kind {
        Kind::Float => Ok(Dtype::F32),
        Kind::Double => Ok(Dtype::F64),
        Kind::Int64 => Ok(Dtype::I64),
        other => Err(TchError::Kind(format!("a checkpoint holds no {other:?} tensors"))),
    }
}

fn to_file(tensors: &[nn::NamedTensor]) -> Result<Vec<NamedTensor>, TchError> {
    let convert = |nn::NamedTensor { name, tensor }: &nn::NamedTensor| {
        let bytes = bytes(tensor)?;
        let shape = tensor.size().iter().map(|d| *d as usize).collect();
        Ok(NamedTensor { name: name.clone(), dtype: dtype(tensor.kind())?, shape, data: bytes })
    };
    tensors.iter().map(convert).collect()
}

fn bytes(tensor: &Tensor) -> Result<Vec<u8>, TchError> {
    let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

fn from_file(tensors: Vec<NamedTensor>) -> Result<Vec<nn::NamedTensor>, TchError> {
    let convert = |NamedTensor { name, dtype, shape, data }: NamedTensor| {
        let shape: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
        let kind = match dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::I64 => Kind::Int64,
        };
        Ok(nn::NamedTensor { name, tensor: Tensor::f_from_data_size(&data, &shape, kind)? })
    };
    tensors.into_iter().map(convert).collect()
}

/// True if every rank's parameters and running statistics are the same bits.
pub fn replicas_agree(replica: &Replica) -> Result<bool, TrainError> {
    let mut hash = Sha256::new();
    for nn::NamedTensor { tensor, .. } in replica.model.state() {
        hash.update(bytes(&tensor)?);
    }
    let words = hash.finalize();
    let words: Vec<i64> =
        words.chunks_exact(8).filter_map(|w| w.try_into().ok().map(i64::from_le_bytes)).collect();
    Ok(replica.replicas().all_equal(&words, "comparing parameters")?)
}

/// Writes a checkpoint of this replica. Returns it and the seconds that it took.
pub fn save(
    replica: &Replica,
    position: Position,
    epoch: f64,
    assignment: &Assignment,
) -> Result<(CheckpointInfo, f64), TrainError> {
    let start = Instant::now();
    let state = TrainState {
        format_version: checkpoint::FORMAT_VERSION,
        spec: assignment.spec.clone(),
        generation: assignment.generation,
        step: replica.step,
        sample_offset: position.sample_offset,
        epoch,
        seed: assignment.spec.train.seed,
        skipped_steps: replica.skipped,
        consecutive_skipped: replica.skipped_in_a_row,
    };
    let model = to_file(&replica.model.state())?;
    let optimizer = to_file(&replica.optimizer.state())?;
    let written = checkpoint::write(&assignment.checkpoint_dir, &state, &model, &optimizer)?;
    Ok((written, start.elapsed().as_secs_f64()))
}

/// Where a restored replica goes on.
#[derive(Debug, Default)]
pub struct Restored {
    /// Where training stands.
    pub position: Position,
    /// The checkpoint, on the rank that read it.
    pub source: Option<CheckpointInfo>,
}

/// Brings all ranks to the newest checkpoint that verifies on any of their hosts; `None` if there
/// is no checkpoint.
pub fn restore(replica: &mut Replica, assignment: &Assignment) -> Result<Option<Restored>, TrainError> {
    let found = checkpoint::load_newest(&assignment.checkpoint_dir, &assignment.restorable_generations)?;
    // Generation, then step, decide; the lowest rank that holds the newest one reads it.
    let mine = found.as_ref().map_or((0, 0), |Checkpoint { state, .. }| {
        (i64::from(state.generation.0), state.step.0.cast_signed())
    });
    let (owner, newest) = replica.replicas().lowest_rank_with_most(mine)?;
    if newest == (0, 0) {
        return Ok(None);
    }
    let mut numbers = [0i64; 4];
    let mut source = None;
    if let (true, Some(found)) = (owner == replica.replicas().rank(), found) {
        let Checkpoint { info, state, model, optimizer } = found;
        replica.model.load(&from_file(model)?)?;
        replica.optimizer.load(&from_file(optimizer)?)?;
        numbers = [state.step.0, state.sample_offset, state.skipped_steps, state.consecutive_skipped.into()]
            .map(u64::cast_signed);
        source = Some(info);
    }
    let (model, optimizer) = (replica.model.state(), replica.optimizer.state());
    let scalars = Tensor::f_from_slice(&numbers)?;
    let tensors = model.iter().chain(&optimizer).map(|t| &t.tensor).chain([&scalars]);
    replica.replicas().broadcast(&TensorList::new(tensors), owner, "sharing the restored state")?;
    // Most of these are handles that are up to date now; the counts among them are copies.
    replica.model.load(&model)?;
    replica.optimizer.load(&optimizer)?;
    let numbers = Vec::<i64>::try_from(&scalars)?;
    if let [step, offset, skipped, consecutive] = numbers[..] {
        replica.step = GlobalStep(step.cast_unsigned());
        replica.skipped = skipped.cast_unsigned();
        replica.skipped_in_a_row = consecutive as u32;
        let position = Position { sample_offset: offset.cast_unsigned() };
        return Ok(Some(Restored { position, source }));
    }
    Ok(None)
}

/// Deletes checkpoints beyond the newest `keep`, and says so if it cannot.
pub fn prune(assignment: &Assignment) {
    if let Err(error) = checkpoint::prune(&assignment.checkpoint_dir, assignment.spec.checkpoint.keep) {
        tracing::warn!(%error, "older checkpoints could not be deleted");
    }
}
