//! The training loss: cross-entropy, and what holds the number of concepts.
//!
//! ```text
//! F = Σ b / N, G = Σ p / N over the N targets of the global batch
//! L_aux = R/(R−1) · [(R−1)·F·G + (1−F)·(1−G)] − 1          L = cross-entropy + λ · L_aux
//! ```
//! (arXiv 2512.24617, equations 8 to 10; "global parser": over the whole batch, so that a text may have more concepts
//! than another.) b are constants, so that L_aux is linear in p once the one whole number Σ b is known: of a part of the
//! batch with n targets and P = Σ p the share is
//!
//! ```text
//! aux = R/(R−1) · [(R·F − 1)·P + (1 − F)·n] − n             Σ aux / N = L_aux
//! ```
//! whatever the parts. A part that is not the whole is told Σ b by a survey of all of them.

use calm_kernels as ops;
use calm_nn::Noise;
use candle_core::{Result, Tensor};

use super::boundaries::{Boundaries, Decisions};
use super::model::Dlcm;
use crate::ChunkBatch;
use crate::family::{Loss, LossPart, Survey, Whole};

/// aux = `slope`·P + `constant`·n, at R tokens a concept and the share F of boundaries.
fn share(ratio: f64, chosen: f64) -> (f64, f64) {
    let scale = ratio / (ratio - 1.0);
    (scale * (ratio * chosen - 1.0), scale * (1.0 - chosen) - 1.0)
}

/// Boundaries among the predicting positions.
fn chosen(boundaries: &Boundaries, batch: &ChunkBatch) -> Survey {
    let opens = batch.sources.iter().filter(|at| boundaries.opens[**at as usize]);
    Survey { chosen: opens.count() as u64 }
}

impl Dlcm {
    /// Σ cross-entropy of the targets after hidden states `[R, D]`.
    pub(super) fn cross_entropy(&self, hidden: &Tensor, batch: &ChunkBatch) -> Result<Tensor> {
        ops::tied_cross_entropy(hidden, &self.output, &batch.targets()?.flatten_all()?, None)
    }

    /// What a training step would choose in a batch.
    pub(super) fn choose(&self, batch: &ChunkBatch, noise: &Noise<'_>) -> Result<Survey> {
        let h = self.encode(batch)?.detach();
        Ok(chosen(&self.predictor.boundaries(&h, batch, Decisions::Drawn(noise))?, batch))
    }

    /// The training loss of a part of a global batch.
    pub(super) fn training_loss(
        &self,
        batch: &ChunkBatch,
        noise: &Noise<'_>,
        of: Whole,
    ) -> Result<(Loss, Survey)> {
        let pass = self.pass(batch, Decisions::Drawn(noise))?;
        let cross_entropy = self.cross_entropy(&batch.pick(&pass.hidden)?, batch)?;
        let (n, own) = (batch.sources.len(), chosen(&pass.boundaries, batch));
        let mut loss = Loss { sum: cross_entropy, targets: n, parts: Vec::new() };
        let Some(p) = &pass.boundaries.probability else { return Ok((loss, own)) };
        let p = batch.pick(&p.unsqueeze(2)?)?.sum_all()?.to_dtype(loss.sum.dtype())?;
        let mut parts = vec![("cross_entropy", loss.sum.detach())];
        if self.boundaries.weight > 0.0 {
            let all = of.chosen.unwrap_or(own).chosen as f64 / (of.targets.max(1)) as f64;
            let (slope, constant) = share(self.boundaries.ratio, all);
            // A factor of 0, at F = 1/R, must not cut the graph as one of `affine` would: no gradient is an error.
            let slope = p.zeros_like()?.affine(1.0, slope)?;
            let aux = ((&p * slope)? + constant * n as f64)?;
            parts.push(("boundary_loss", aux.detach()));
            loss.sum = (&loss.sum + aux.affine(self.boundaries.weight, 0.0)?)?;
        }
        parts.push(("boundaries", p.zeros_like()?.affine(0.0, own.chosen as f64)?.detach()));
        parts.push(("boundary_probability", p.detach()));
        loss.parts = parts.into_iter().map(|(name, sum)| LossPart { name, sum, count: n }).collect();
        Ok((loss, own))
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    /// As the paper has it.
    fn paper(ratio: f64, f: f64, g: f64) -> f64 {
        ratio / (ratio - 1.0) * ((ratio - 1.0) * f * g + (1.0 - f) * (1.0 - g)) - 1.0
    }

    #[test]
    fn the_shares_of_all_parts_are_the_whole() {
        for ratio in [1.5, 2.0, 4.0, 8.0] {
            // (targets, Σ b, Σ p) of three parts, one of them without a target.
            let parts = [(40.0, 9.0, 11.5), (0.0, 0.0, 0.0), (25.0, 12.0, 3.25)];
            let n: f64 = parts.iter().map(|p| p.0).sum();
            let f = parts.iter().map(|p| p.1).sum::<f64>() / n;
            let g = parts.iter().map(|p| p.2).sum::<f64>() / n;
            let (slope, constant) = share(ratio, f);
            let sum: f64 = parts.iter().map(|(n, _, p)| slope * p + constant * n).sum();
            assert!((sum / n - paper(ratio, f, g)).abs() < 1e-12);
            // With F of a part alone it is another loss.
            let own: f64 = parts
                .iter()
                .filter(|p| p.0 > 0.0)
                .map(|(n, b, p)| share(ratio, b / n).0 * p + share(ratio, b / n).1 * n)
                .sum();
            assert!((own / n - paper(ratio, f, g)).abs() > 1e-3);
        }
    }

    #[test]
    fn it_is_0_at_the_ratio_and_pulls_towards_it() {
        for ratio in [2.0, 4.0] {
            assert!(paper(ratio, 1.0 / ratio, 1.0 / ratio).abs() < 1e-12);
            assert_eq!(share(ratio, 1.0 / ratio).0, 0.0);
            assert!(share(ratio, 0.9).0 > 0.0 && share(ratio, 0.1).0 < 0.0);
        }
    }
}
