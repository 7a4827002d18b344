//! The joint loss vector: what all ranks know of a step before its backward pass.

use anybit_anyprec::joint::WidthOutput;
use anybit_anyprec::loss::top_counts;
use anybit_shared::ids::BitWidth;
use tch::{Kind, TchError, Tensor};

use super::TrainError;
use super::step::{Skip, Stepped};
use crate::dist::Replicas;

/// One width's figures over the samples that were counted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WidthFigures {
    /// The width.
    pub width: BitWidth,
    /// Mean loss.
    pub loss: f64,
    /// Percent.
    pub top1: f64,
    /// Percent.
    pub top5: f64,
}

/// Figures of a width in the vector: loss (summed over samples), top-1 count, top-5 count, and
/// the number of groups whose loss was not finite.
const FIGURES: usize = 4;

/// Sums per width over the samples so far, as one float64 vector that one all-reduce completes.
pub struct Tally {
    widths: Vec<BitWidth>,
    samples: f64,
    stop: f64,
    /// `FIGURES` per width.
    sums: Vec<f64>,
    expected: Option<u32>,
}

impl Tally {
    /// Empty, for `expected` samples over all ranks if that is known; `stop` asks all ranks to stop
    /// after the step.
    pub fn new(widths: &[BitWidth], expected: Option<u32>, stop: bool) -> Self {
        let sums = vec![0.0; widths.len() * FIGURES];
        Self { widths: widths.to_vec(), samples: 0.0, stop: f64::from(u8::from(stop)), sums, expected }
    }

    /// Adds a group's outputs, in the tally's order of widths.
    pub fn add(&mut self, outputs: &[WidthOutput], labels: &Tensor) -> Result<(), TchError> {
        let samples = labels.size()[0] as f64;
        self.samples += samples;
        // One transfer from the device for all widths.
        let rows = outputs.iter().map(|output| {
            let counts = top_counts(&output.logits, labels)?.f_to_kind(Kind::Double)?;
            let loss = output.loss.f_detach()?.f_to_kind(Kind::Double)?.f_reshape([1])?;
            Tensor::f_cat(&[loss, counts], 0)
        });
        let rows: Vec<Tensor> = rows.collect::<Result<_, _>>()?;
        let flat = Vec::<f64>::try_from(&Tensor::f_cat(&rows, 0)?)?;
        for (sums, row) in self.sums.chunks_exact_mut(FIGURES).zip(flat.chunks_exact(3)) {
            sums[0] += row[0] * samples;
            sums[1] += row[1];
            sums[2] += row[2];
            sums[3] += f64::from(u8::from(!row[0].is_finite()));
        }
        Ok(())
    }

    /// The sum over all ranks.
    pub fn all_reduce(mut self, replicas: &Replicas) -> Result<Self, TrainError> {
        let mut vector = self.sums.clone();
        vector.extend([self.samples, self.stop]);
        let tensor = Tensor::f_from_slice(&vector)?;
        replicas.sum(&tensor, "all-reduce of the joint loss")?;
        let vector = Vec::<f64>::try_from(&tensor)?;
        let (sums, rest) = vector.split_at(self.sums.len());
        self.sums.copy_from_slice(sums);
        if let [samples, stop] = rest {
            (self.samples, self.stop) = (*samples, *stop);
        }
        debug_assert!(self.expected.is_none_or(|samples| self.samples == f64::from(samples)));
        Ok(self)
    }

    /// The widths with a loss that is not finite on some rank, ascending.
    pub fn not_finite(&self) -> Option<Skip> {
        let bad = self
            .sums
            .chunks_exact(FIGURES)
            .zip(&self.widths)
            .filter(|(sums, _)| sums[3] > 0.0 || !sums[0].is_finite());
        let mut widths: Vec<BitWidth> = bad.map(|(_, width)| *width).collect();
        widths.sort_unstable();
        let names: Vec<String> = widths.iter().map(ToString::to_string).collect();
        (!widths.is_empty())
            .then(|| Skip { widths, reason: format!("the loss at {} bits is not finite", names.join(", ")) })
    }

    /// Means and percentages, in the order of the widths.
    pub fn figures(&self) -> Vec<WidthFigures> {
        let share = |sum: f64| sum / self.samples.max(1.0);
        let figures = self.sums.chunks_exact(FIGURES).zip(&self.widths).map(|(sums, width)| WidthFigures {
            width: *width,
            loss: share(sums[0]),
            top1: 100.0 * share(sums[1]),
            top5: 100.0 * share(sums[2]),
        });
        figures.collect()
    }

    /// Samples counted.
    pub fn samples(&self) -> u64 {
        self.samples as u64
    }

    /// The step's outcome.
    pub fn stepped(&self, gradient_norm: f64, skip: Option<Skip>) -> Stepped {
        Stepped { widths: self.figures(), gradient_norm, skip, stop_requested: self.stop > 0.0 }
    }
}
