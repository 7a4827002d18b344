//! Tensors as plain bytes, and their safetensors form.

use std::collections::BTreeSet;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype as SafeDtype, TensorView};

use super::error::CheckpointError;

/// Element types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// Signed, 64 bits.
    I64,
}

impl Dtype {
    /// Bytes an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F64 | Self::I64 => 8,
        }
    }

    fn to_safe(self) -> SafeDtype {
        match self {
            Self::F32 => SafeDtype::F32,
            Self::F64 => SafeDtype::F64,
            Self::I64 => SafeDtype::I64,
        }
    }

    fn from_safe(dtype: SafeDtype) -> Option<Self> {
        match dtype {
            SafeDtype::F32 => Some(Self::F32),
            SafeDtype::F64 => Some(Self::F64),
            SafeDtype::I64 => Some(Self::I64),
            _ => None,
        }
    }
}

/// A tensor with its name: little-endian elements, the last dimension fastest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTensor {
    /// Unique within its file.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements.
    pub data: Vec<u8>,
}

/// The bytes of a safetensors file; the same tensors give the same bytes in any order.
pub(super) fn encode(tensors: &[NamedTensor]) -> Result<Vec<u8>, CheckpointError> {
    let mut names = BTreeSet::new();
    let mut views = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let unsavable = |why: String| CheckpointError::Unsavable(format!("tensor {:?}: {why}", tensor.name));
        if !names.insert(&tensor.name) {
            return Err(unsavable("the name occurs twice".into()));
        }
        if tensor.name == "__metadata__" {
            return Err(unsavable("the name is reserved".into()));
        }
        let bytes = tensor.shape.iter().try_fold(tensor.dtype.bytes(), |product, &d| product.checked_mul(d));
        if bytes != Some(tensor.data.len()) {
            return Err(unsavable(format!(
                "shape {:?} does not fit {} bytes",
                tensor.shape,
                tensor.data.len()
            )));
        }
        let view = TensorView::new(tensor.dtype.to_safe(), tensor.shape.clone(), &tensor.data)
            .map_err(|e| unsavable(e.to_string()))?;
        views.push((tensor.name.as_str(), view));
    }
    safetensors::serialize(views, None).map_err(|e| CheckpointError::Unsavable(e.to_string()))
}

/// The tensors in a safetensors file of the checkpoint in `folder`, by name.
pub(super) fn decode(folder: &Path, name: &str, bytes: &[u8]) -> Result<Vec<NamedTensor>, CheckpointError> {
    let damaged = |why: String| CheckpointError::damaged(folder, format!("{name}: {why}"));
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(e.to_string()))?;
    let mut tensors = Vec::with_capacity(file.len());
    for (name, view) in file.iter() {
        let dtype = Dtype::from_safe(view.dtype())
            .ok_or_else(|| damaged(format!("tensor {name:?} has the unknown type {:?}", view.dtype())))?;
        let (shape, data) = (view.shape().to_vec(), view.data().to_vec());
        tensors.push(NamedTensor { name: name.to_owned(), dtype, shape, data });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
