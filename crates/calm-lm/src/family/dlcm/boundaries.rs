//! Where concepts begin: the probability of a boundary at each token, and the decisions.
//!
//! ```text
//! p_t = (1 − cos(q_{t−1}, k_t)) / 2,  1 at a document's first token      q = W_q h, k = W_k h; cosine: q = k = h
//! use:       b_t = [p_t ≥ ½]; cosine: [p_t > τ]
//! training:  b_t = [u_t < p_t^α / (p_t^α + (1 − p_t)^α)], u from the stream `boundary`, one number a token
//! ```
//! After arXiv 2512.24617, equations 5 and 6; its section 8.1 prints h_t and h_{t+1}, which would look ahead. p lies
//! within [1e-4, 1 − 1e-4] but where it is 1, as in H-Net. Decisions are constants: how gradients reach p stands in
//! `loss.rs`, `concepts.rs` and `model.rs`. They are made on the host, since all sizes behind them depend on their
//! number: on a GPU every forward pass waits for p once.

use calm_kernels::simd::dot;
use calm_nn::device::upload;
use calm_nn::{Builder, Init, Linear, Noise};
use candle_core::{D, DType, Device, Result, Tensor, bail};

use super::config::{BoundariesConfig, BoundaryRule, CosineConfig, DlcmConfig, LearntConfig};
use super::scales::Width;
use super::slots::{lawful, starts};
use crate::ChunkBatch;

/// Least distance of p from 0 and 1.
const EDGE: f64 = 1e-4;
/// Added to the product of the squared norms, so that a state of 0 has an angle.
const TINY: f64 = 1e-12;

/// In f32, or in f64 of a model in f64: angles, sums and averages of states in a smaller format.
pub(super) fn precise(t: &Tensor) -> Result<Tensor> {
    t.to_dtype(if t.dtype() == DType::F64 { DType::F64 } else { DType::F32 })
}

/// Where boundaries come from in a pass.
#[derive(Clone, Copy)]
pub(super) enum Decisions<'a> {
    /// What is more probable: validation, scores, generation.
    Settled,
    /// Drawn, if the rule draws: training.
    Drawn(&'a Noise<'a>),
    /// These `[B·S]`.
    Given(&'a [bool]),
}

/// The boundaries of a batch.
#[derive(Clone, Debug)]
pub struct Boundaries {
    /// Their probabilities `[B, S]`, in f32 (f64 of a model in f64), with gradient; None where they are counted out.
    pub probability: Option<Tensor>,
    /// `[B·S]`: whether a concept begins at each token.
    pub opens: Vec<bool>,
}

/// What finds boundaries.
#[derive(Clone, Debug)]
pub(super) struct Predictor {
    settings: BoundariesConfig,
    projections: Option<[Linear; 2]>,
}

impl Predictor {
    /// `boundary.{q,k}_proj.weight` under `b`, if it learns.
    pub(super) fn new(b: &Builder, config: &DlcmConfig) -> Result<Self> {
        // They begin as identities, as in H-Net: at first the angles are those of the states.
        let b = Width::of_tokens(config).builder(&b.under("boundary"));
        let d = config.tokens.hidden_size;
        let projections = match config.boundaries.by {
            BoundaryRule::Learnt(_) => {
                let one = |name| Linear::no_bias(&b, name, d, d, Init::Identity);
                Some([one("q_proj")?, one("k_proj")?])
            }
            BoundaryRule::Cosine(_) | BoundaryRule::Every => None,
        };
        Ok(Self { settings: config.boundaries.clone(), projections })
    }

    /// q and k of states `[.., D]`, whose angles count; None without probabilities.
    pub(super) fn directions(&self, h: &Tensor) -> Result<Option<[Tensor; 2]>> {
        Ok(match (&self.projections, self.settings.by) {
            (_, BoundaryRule::Every) => None,
            (Some([q, k]), _) => Some([precise(&q.forward(h)?)?, precise(&k.forward(h)?)?]),
            (None, _) => Some([precise(h)?, precise(h)?]),
        })
    }

    /// p of the angles between `q` and `k` `[.., D]`: `[..]`.
    pub(super) fn between(q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let dot = |a: &Tensor, b: &Tensor| (a * b)?.sum(D::Minus1);
        let norms = ((dot(q, q)? * dot(k, k)?)? + TINY)?.sqrt()?;
        let cosine = (dot(q, k)? / norms)?;
        ((1.0 - cosine)? * 0.5)?.clamp(EDGE, 1.0 - EDGE)
    }

    /// [`Self::between`] without gradient and, on a CPU in f32, the same to the bit on every processor: a lossless coder
    /// rests on the boundaries of the texts it reads.
    pub(super) fn between_texts(q: &Tensor, k: &Tensor) -> Result<Tensor> {
        let (width, mut shape) = (q.dim(D::Minus1)?, q.dims().to_vec());
        if !q.device().is_cpu() || q.dtype() != DType::F32 {
            return Self::between(q, k);
        }
        let host = |t: &Tensor| t.flatten_all()?.to_vec1::<f32>();
        let (q, k) = (host(q)?, host(k)?);
        let of = |(q, k): (&[f32], &[f32])| {
            let norms = (dot(q, q) * dot(k, k) + TINY as f32).sqrt();
            ((1.0 - dot(q, k) / norms) * 0.5).clamp(EDGE as f32, (1.0 - EDGE) as f32)
        };
        let p: Vec<f32> = q.chunks_exact(width).zip(k.chunks_exact(width)).map(of).collect();
        shape.pop();
        Tensor::from_vec(p, shape, &Device::Cpu)
    }

    /// p of states `h [B, S, D]`, of which some begin a document: `[B, S]`.
    fn probability(&self, h: &Tensor, starts: &[bool], batch: &ChunkBatch) -> Result<Option<Tensor>> {
        let (b, s, _) = h.dims3()?;
        let Some([q, k]) = self.directions(h)? else { return Ok(None) };
        let ones = Tensor::ones((b, s), q.dtype(), q.device())?;
        if s == 1 {
            return Ok(Some(ones));
        }
        let p = Self::between(&q.narrow(1, 0, s - 1)?, &k.narrow(1, 1, s - 1)?)?;
        let p = Tensor::cat(&[&ones.narrow(1, 0, 1)?, &p], 1)?;
        let starts: Vec<u32> = starts.iter().map(|s| u32::from(*s)).collect();
        upload(&starts, (b, s), batch.destination())?.where_cond(&ones, &p).map(Some)
    }

    /// Whether a token of probability `p` at `place` of its document is a boundary, where nothing is drawn.
    pub(super) fn settled(&self, p: Option<f32>, place: usize) -> bool {
        match (self.settings.by, p) {
            (BoundaryRule::Cosine(CosineConfig { threshold }), Some(p)) => f64::from(p) > threshold,
            (BoundaryRule::Learnt(_), Some(p)) => p >= 0.5,
            (_, _) => place.is_multiple_of(self.settings.ratio as usize),
        }
    }

    /// The boundaries of states `h [B, S, D]`.
    pub(super) fn boundaries(
        &self,
        h: &Tensor,
        batch: &ChunkBatch,
        decisions: Decisions<'_>,
    ) -> Result<Boundaries> {
        let (b, s, _) = h.dims3()?;
        let on_host = &batch.on_host;
        let starts = starts(s, &on_host.segments);
        let probability = self.probability(h, &starts, batch)?;
        let p: Option<Vec<f32>> = match (&probability, decisions) {
            (None, _) | (_, Decisions::Given(_)) => None,
            (Some(p), _) => Some(p.detach().flatten_all()?.to_dtype(DType::F32)?.to_vec1()?),
        };
        let mut opens = match (decisions, self.settings.by, &p) {
            (Decisions::Given(opens), ..) => {
                if opens.len() != b * s {
                    bail!("{} boundaries for {b} rows of {s} tokens", opens.len())
                }
                opens.to_vec()
            }
            (Decisions::Drawn(noise), BoundaryRule::Learnt(LearntConfig { sharpness }), Some(p)) => {
                let noise = noise.with_rows(&on_host.rows);
                // Made on the host, where they are needed: a GPU would have to be waited for a second time.
                let u = noise.uniform("boundary", 1, 1, &Device::Cpu)?.flatten_all()?;
                let u = u.to_dtype(DType::F32)?.to_vec1::<f32>()?;
                if u.len() != b * s {
                    bail!("{} random numbers for {b} rows of {s} tokens", u.len())
                }
                p.iter().zip(u).map(|(p, u)| f64::from(u) < sharpened(f64::from(*p), sharpness)).collect()
            }
            (_, _, p) => {
                let place = |at: usize| on_host.positions[at] as usize;
                (0..b * s).map(|at| self.settled(p.as_ref().map(|p| p[at]), place(at))).collect()
            }
        };
        lawful(&mut opens, &starts, &on_host.segments);
        Ok(Boundaries { probability, opens })
    }
}

/// p^α / (p^α + (1 − p)^α)
fn sharpened(p: f64, sharpness: f64) -> f64 {
    let (yes, no) = (p.powf(sharpness), (1.0 - p).powf(sharpness));
    yes / (yes + no)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sharpening_leaves_a_half_and_moves_the_rest_away_from_it() {
        assert_eq!(sharpened(0.5, 2.0), 0.5);
        assert!((sharpened(0.3, 1.0) - 0.3).abs() < 1e-15);
        assert!((sharpened(0.2, 2.0) - 0.04 / 0.68).abs() < 1e-15);
        assert!(sharpened(0.8, 2.0) > 0.8);
        assert_eq!(sharpened(1.0, 2.0), 1.0);
    }
}
