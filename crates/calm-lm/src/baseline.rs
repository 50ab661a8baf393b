//! The discrete baseline: the same backbone on tokens, with a vocabulary head and shifted cross-entropy.

use calm_kernels as ops;
use calm_nn::device::upload;
use calm_nn::{Builder, Embedding, Init, NoiseKey, Parameter, RowId, philox};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::backbone::Branch;
use crate::calm::RowLoss;
use crate::context::Context;
use crate::sampler::{DrawKey, Sampler, SpecialIds};
use crate::{Backbone, BackboneConfig, Cache, ChunkBatch};

/// How the baseline's next token is drawn in generation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoding {
    /// Softmax temperature; 0 takes the most probable token.
    pub temperature: f64,
    /// Keep the smallest set of tokens whose probabilities sum to this.
    pub top_p: f64,
}

impl Default for Decoding {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0 }
    }
}

/// A Llama language model; parameter names as in published Llama checkpoints.
pub struct Baseline {
    embedding: Embedding,
    backbone: Backbone,
    /// `[V, D]`
    output: Parameter,
    special: SpecialIds,
    context: usize,
    bos: bool,
    /// Used by [`Sampler::draw`].
    pub decoding: Decoding,
}

/// Longest n-gram rolled forward for scoring.
const GRAM: usize = 4;

/// What Brier scores need of every predicted position of a batch.
#[derive(Clone, Debug, Default)]
pub struct BaselineDraws {
    /// ln p of the target token of each of the R positions, teacher-forced.
    pub log_p: Vec<f64>,
    /// `[R]`: two sampled continuations of 3 tokens. Both follow the first one's context: the second is
    /// meaningful up to its first difference.
    pub paths: Vec<[[u32; GRAM - 1]; 2]>,
    /// `[R]`: Σ p² of the next token after 0..3 tokens of the first path.
    pub squares: Vec<[f64; GRAM]>,
}

/// What scoring needs of one next-token distribution.
struct RowStatistics {
    log_p_target: f64,
    sum_p_squared: f64,
    draws: [u32; 2],
}

impl Baseline {
    /// Creates the parameters under `b`. `context` is the longest trained sequence in tokens; `bos` says
    /// whether documents start with BOS.
    pub fn new(
        b: &Builder,
        backbone: &BackboneConfig,
        vocab_size: usize,
        special: SpecialIds,
        context: usize,
        bos: bool,
    ) -> Result<Self> {
        let init = Init::Normal(backbone.init_std);
        let m = b.under("model");
        Ok(Self {
            embedding: Embedding::new(&m, "embed_tokens", vocab_size, backbone.hidden_size, init, None)?,
            backbone: Backbone::new(&m, backbone)?,
            output: b.under("lm_head").weight("weight", &[vocab_size, backbone.hidden_size], init)?,
            special,
            context,
            bos,
            decoding: Decoding::default(),
        })
    }

    /// See [`Backbone::set_recompute`].
    pub fn set_recompute(&mut self, recompute: bool) {
        self.backbone.set_recompute(recompute);
    }

    fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, s, k) = ids.dims3()?;
        if k != 1 {
            bail!("the baseline takes chunks of one token, got {k}")
        }
        self.embedding.forward(&ids.reshape((b, s))?)
    }

    /// Hidden states `[R, D]` of the predicting positions.
    pub fn hidden(&self, batch: &ChunkBatch) -> Result<Tensor> {
        let x = self.backbone.forward(&self.embed(&batch.ids)?, &batch.positions, &batch.segments)?;
        batch.pick(&x)
    }

    /// Hidden states `[R, D]` -> logits `[R, V]` in the format of the parameters.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        ops::linear(&hidden.to_dtype(self.output.dtype())?, &self.output, None)
    }

    /// Cross-entropy of a batch, nats, with gradient.
    pub fn loss(&self, batch: &ChunkBatch) -> Result<RowLoss> {
        let hidden = self.hidden(batch)?;
        let targets = batch.targets()?.flatten_all()?;
        Ok(RowLoss {
            sum: ops::tied_cross_entropy(&hidden, &self.output, &targets, None)?,
            rows: batch.sources.len(),
        })
    }

    /// Draws for the Brier terms at all positions in one pass a step: probabilities of the targets, two
    /// sampled paths and Σ p² along the first.
    pub fn draw_positions(&self, batch: &ChunkBatch, seed: u64, purpose: &str) -> Result<BaselineDraws> {
        let (b, s, _) = batch.ids.dims3()?;
        let rows = batch.sources.len();
        let targets: Vec<u32> = batch.targets()?.flatten_all()?.to_vec1()?;
        let inputs = self.embed(&batch.ids)?.detach();
        let (x, trunk) = self.backbone.forward_trunk(&inputs, &batch.positions, &batch.segments)?;
        let mut hidden = batch.pick(&x)?.detach();
        let mut branch = Branch::default();
        let pad = self.special.pad;
        let mut out = BaselineDraws {
            log_p: Vec::with_capacity(rows),
            paths: vec![[[pad; GRAM - 1]; 2]; rows],
            squares: vec![[1.0; GRAM]; rows],
        };
        let mut ended = vec![false; rows];
        for step in 0..GRAM {
            let key = NoiseKey::new(seed, &format!("{purpose}/token"), step as u32);
            let stats = self.statistics(&hidden, &targets, key, &batch.rows)?;
            let mut next = vec![pad; b * s];
            for (row, st) in stats.iter().enumerate() {
                if step == 0 {
                    out.log_p.push(st.log_p_target);
                }
                // After EOS the next token is PAD with certainty: squares stay 1, paths PAD.
                if ended[row] {
                    continue;
                }
                out.squares[row][step] = st.sum_p_squared;
                if step + 1 < GRAM {
                    out.paths[row][0][step] = st.draws[0];
                    out.paths[row][1][step] = st.draws[1];
                    next[batch.sources[row] as usize] = st.draws[0];
                    ended[row] = st.draws[0] == self.special.eos;
                }
            }
            if step + 1 < GRAM {
                let ids = upload(&next, (b, s, 1), batch.destination())?;
                let x = self.backbone.forward_branch(&self.embed(&ids)?.detach(), &trunk, &mut branch)?;
                hidden = batch.pick(&x)?.detach();
            }
        }
        Ok(out)
    }

    fn statistics(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        key: NoiseKey,
        ids: &[RowId],
    ) -> Result<Vec<RowStatistics>> {
        const BLOCK: usize = 256;
        let rows = hidden.dim(0)?;
        let mut out = Vec::with_capacity(rows);
        for at in (0..rows).step_by(BLOCK) {
            let n = BLOCK.min(rows - at);
            let logits = self.logits(&hidden.narrow(0, at, n)?.contiguous()?)?.to_vec2::<f32>()?;
            let u = philox::uniform(key, &ids[at..at + n], 2, 1);
            out.par_extend(logits.par_iter().enumerate().map(|(i, row)| {
                let p = probabilities(row, 1.0);
                RowStatistics {
                    log_p_target: p[targets[at + i] as usize].max(f64::MIN_POSITIVE).ln(),
                    sum_p_squared: p.iter().map(|p| p * p).sum(),
                    draws: [invert(&p, f64::from(u[2 * i])), invert(&p, f64::from(u[2 * i + 1]))],
                }
            }));
        }
        Ok(out)
    }
}

/// Softmax of `logits / temperature` in f64.
fn probabilities(logits: &[f32], temperature: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut p: Vec<f64> = logits.iter().map(|l| (f64::from(l - top) / temperature).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

/// The token at quantile `u` of a distribution that sums to 1.
fn invert(p: &[f64], u: f64) -> u32 {
    let mut sum = 0.0;
    for (i, p) in p.iter().enumerate() {
        sum += p;
        if u < sum {
            return i as u32;
        }
    }
    // Rounding left u above the sum: the last token that is possible at all.
    p.iter().rposition(|p| *p > 0.0).unwrap_or(0) as u32
}

/// Keeps the smallest set of most probable tokens whose mass reaches `top_p`, renormalised.
fn nucleus(p: &mut [f64], top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
    let mut mass = 0.0;
    let mut kept = 0;
    for i in &order {
        mass += p[*i];
        kept += 1;
        if mass >= top_p {
            break;
        }
    }
    for i in &order[kept..] {
        p[*i] = 0.0;
    }
    p.iter_mut().for_each(|p| *p /= mass);
}

impl Baseline {
    fn forward_cached(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let ids = upload(tokens, (1, tokens.len(), 1), &self.output)?;
        self.backbone.forward_cached(&self.embed(&ids)?.detach(), cache)
    }
}

impl Sampler for Baseline {
    type State = Context;

    fn chunk_size(&self) -> usize {
        1
    }

    fn special(&self) -> SpecialIds {
        self.special
    }

    fn start(&self) -> Result<Context> {
        let mut state = Context::default();
        if self.bos {
            state.extend(&[self.special.bos], |t, c| self.forward_cached(t, c))?;
        }
        Ok(state)
    }

    fn push(&self, state: &mut Context, tokens: &[u32]) -> Result<()> {
        state.push(tokens, 1, self.context, self.special, |t, c| self.forward_cached(t, c))
    }

    fn draw(&self, state: &Context, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        if state.ended() {
            return Ok(vec![vec![self.special.pad]; samples]);
        }
        let logits: Vec<f32> = self.logits(state.hidden()?)?.flatten_all()?.to_vec1()?;
        let p = if self.decoding.temperature == 0.0 {
            let best = logits.iter().enumerate().fold(0, |b, (i, l)| if *l > logits[b] { i } else { b });
            let mut p = vec![0.0; logits.len()];
            p[best] = 1.0;
            p
        } else {
            let mut p = probabilities(&logits, self.decoding.temperature);
            nucleus(&mut p, self.decoding.top_p);
            p
        };
        let rows: Vec<RowId> = (0..samples.div_ceil(1 << 12))
            .map(|i| RowId { example: i as u32, position: state.tokens().len() as u32 })
            .collect();
        let u = philox::uniform(
            NoiseKey::new(key.seed, "generate/token", key.call),
            &rows,
            samples.min(1 << 12),
            1,
        );
        Ok(u.iter().take(samples).map(|u| vec![invert(&p, f64::from(*u))]).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nucleus_keeps_the_smallest_sufficient_set() {
        let mut p = vec![0.1, 0.5, 0.3, 0.1];
        nucleus(&mut p, 0.7);
        assert_eq!(p[0], 0.0);
        assert!((p[1] - 0.625).abs() < 1e-12 && (p[2] - 0.375).abs() < 1e-12);
    }

    #[test]
    fn inversion_follows_the_distribution_and_never_picks_the_impossible() {
        let p = [0.25, 0.0, 0.75, 0.0];
        assert_eq!(invert(&p, 0.0), 0);
        assert_eq!(invert(&p, 0.24), 0);
        assert_eq!(invert(&p, 0.25), 2);
        assert_eq!(invert(&p, 1.0), 2);
    }
}
