//! The joint forward pass: all widths, highest first, and their losses.

use anybit_shared::ids::BitWidth;
use anybit_shared::spec::Distill;
use tch::{TchError, Tensor};

use crate::loss::Teacher;
use crate::models::Model;
use crate::nn::{Mode, Pass};

/// One width's result on a group.
pub struct WidthOutput {
    /// The width.
    pub width: BitWidth,
    /// [samples, classes].
    pub logits: Tensor,
    /// Mean over the samples, [].
    pub loss: Tensor,
}

/// Runs a group ([samples, 3, h, w], labels [samples]) through all widths layer by layer, as one
/// graph, and gives each width's loss, highest width first.
pub fn forward(
    model: &Model,
    images: &Tensor,
    labels: &Tensor,
    distill: Distill,
    mode: Mode,
) -> Result<Vec<WidthOutput>, TchError> {
    let pass = Pass { widths: model.widths(), mode };
    let mut teacher = Teacher::new(distill);
    let logits = model.forward(images, &pass)?;
    let output = |(width, logits): (&BitWidth, Tensor)| {
        let loss = teacher.loss(&logits, labels)?;
        Ok(WidthOutput { width: *width, logits, loss })
    };
    model.widths().iter().zip(logits).map(output).collect()
}

/// The same width by width: `each` gets a width's result before the next width runs, and may run
/// and free its graph (the `sequential` schedule). Returns the detached results.
pub fn forward_sequential(
    model: &Model,
    images: &Tensor,
    labels: &Tensor,
    distill: Distill,
    mode: Mode,
    mut each: impl FnMut(&WidthOutput) -> Result<(), TchError>,
) -> Result<Vec<WidthOutput>, TchError> {
    let mut teacher = Teacher::new(distill);
    let mut outputs = Vec::with_capacity(model.widths().len());
    for width in model.widths() {
        let pass = Pass { widths: &[*width], mode };
        let logits = model.forward(images, &pass)?.swap_remove(0);
        let output = WidthOutput { width: *width, loss: teacher.loss(&logits, labels)?, logits };
        each(&output)?;
        outputs.push(WidthOutput {
            width: *width,
            logits: output.logits.f_detach()?,
            loss: output.loss.f_detach()?,
        });
    }
    Ok(outputs)
}

/// The sum of the widths' losses, [].
pub fn total(outputs: &[WidthOutput]) -> Result<Tensor, TchError> {
    let losses: Vec<&Tensor> = outputs.iter().map(|o| &o.loss).collect();
    Tensor::f_stack(&losses, 0)?.f_sum(None::<tch::Kind>)
}
