//! The joint loss of all widths, its distillation, and the counts behind top-1 and top-5.

use anybit_shared::spec::Distill;
use tch::{Kind, TchError, Tensor};

/// Where the widths' targets come from as the pass goes from the highest width down.
pub struct Teacher {
    distill: Distill,
    soft: Option<Tensor>,
}

impl Teacher {
    /// At the start of a group.
    pub fn new(distill: Distill) -> Self {
        Self { distill, soft: None }
    }

    /// The mean loss ([], differentiable) of one width's `logits` [samples, classes], taken in the
    /// order highest width first: from the `labels` [samples] at the highest width and with hard
    /// targets, else the cross entropy with the teaching width's softmax, which carries no
    /// gradient.
    pub fn loss(&mut self, logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
        let highest = self.soft.is_none();
        let loss = match &self.soft {
            Some(target) if self.distill != Distill::Hard => soft_cross_entropy(logits, target)?,
            _ => logits.f_cross_entropy_loss(labels, None::<&Tensor>, tch::Reduction::Mean, -100, 0.0)?,
        };
        if highest || self.distill == Distill::Recursive {
            self.soft = Some(logits.f_detach()?.f_softmax(1, None::<Kind>)?);
        }
        Ok(loss)
    }
}

/// `-(target * log_softmax(logits)).sum(1).mean()`, both [samples, classes].
fn soft_cross_entropy(logits: &Tensor, target: &Tensor) -> Result<Tensor, TchError> {
    let per_sample = target.f_mul(&logits.f_log_softmax(1, None::<Kind>)?)?.f_sum_dim_intlist(
        1i64,
        false,
        None::<Kind>,
    )?;
    per_sample.f_mean(None::<Kind>)?.f_neg()
}

/// How many of the samples have their label ranked first, and among the five best ([2] int64):
/// `logits` [samples, classes], `labels` [samples]. With fewer than five classes all are best.
pub fn top_counts(logits: &Tensor, labels: &Tensor) -> Result<Tensor, TchError> {
    let logits = logits.f_detach()?;
    let classes = logits.size().get(1).copied().unwrap_or(1);
    let (_, best) = logits.f_topk(5.min(classes), 1, true, true)?;
    let hit = best.f_eq_tensor(&labels.f_unsqueeze(1)?)?;
    let first = hit.f_narrow(1, 0, 1)?.f_sum(Kind::Int64)?;
    Tensor::f_stack(&[first, hit.f_sum(Kind::Int64)?], 0)
}
