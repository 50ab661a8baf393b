//! The net of the flow and diffusion heads: an MLP on a noisy latent whose norms are steered by the hidden
//! state and the time step (adaptive LayerNorm).
//!
//! ```text
//! c = cond_embed(h)                                   once a row
//! y = silu(time_embed(s) + c)                         once a row and time step
//! time_embed(s) = W₂ silu(W₀ [cos(s f) | sin(s f)])   f_k = exp(−ln(10000)·k/128), k = 0..127
//! x = input_proj(noisy latent)
//! block: (shift, scale, gate) = W_mod y               x += gate · W₂ silu(W₀ (LN(x)·(1 + scale) + shift))
//! last:  (shift, scale) = W_mod y                     out = W (LN*(x)·(1 + scale) + shift), LN* without weights
//! ```
//!
//! Matrices start as Xavier, biases at 0; all W_mod and the last W start at 0: every block begins as the
//! identity and the net's output at 0 (parameters and formulas of the reference implementation).

use calm_kernels as ops;
use calm_nn::costs::{flops, layer_norm, weights};
use calm_nn::device::upload;
use calm_nn::{Builder, Context, Destination, Footing, Held, Init, LayerNorm, Linear};
use candle_core::{D, DType, Result, Tensor, bail};

use super::KEPT;

const EPS: f64 = 1e-6;
/// Frequencies of the time embedding; it has a cosine and a sine of each.
const FREQUENCIES: usize = 128;

/// `W₂ silu(W₀ [cos(s f) | sin(s f)])` of a time step s on the scale 0..1000.
#[derive(Clone, Debug)]
struct TimeEmbedding {
    first: Linear,
    second: Linear,
}

impl TimeEmbedding {
    fn new(b: &Builder, d: usize) -> Result<Self> {
        let b = b.under("time_embed").under("mlp");
        Ok(Self {
            first: Linear::new(&b, "0", 2 * FREQUENCIES, d, Init::Xavier)?,
            second: Linear::new(&b, "2", d, d, Init::Xavier)?,
        })
    }

    /// `r · n` steps -> `[r, n, D]` in this format.
    fn forward(&self, steps: &[f32], r: usize, n: usize, dtype: DType) -> Result<Tensor> {
        let waves = waves(steps, r, n, &self.first.weight)?.to_dtype(dtype)?;
        self.second.forward(&ops::silu(&self.first.forward(&waves)?)?)
    }
}

/// `[cos(s f) | sin(s f)]`, `[r, n, 256]`. Angles are products in f32, as in the reference: at s = 999 their
/// rounding is far above that of the cosine.
fn waves(steps: &[f32], r: usize, n: usize, to: &dyn Destination) -> Result<Tensor> {
    let frequencies: [f32; FREQUENCIES] = std::array::from_fn(|k| {
        let exponent = -(10_000f64.ln() as f32) * k as f32 / FREQUENCIES as f32;
        f64::from(exponent).exp() as f32
    });
    let mut out = vec![0f32; steps.len() * 2 * FREQUENCIES];
    for (row, &s) in out.chunks_exact_mut(2 * FREQUENCIES).zip(steps) {
        let (cosines, sines) = row.split_at_mut(FREQUENCIES);
        for ((c, d), &f) in cosines.iter_mut().zip(sines).zip(&frequencies) {
            let (sine, cosine) = f64::from(s * f).sin_cos();
            (*c, *d) = (cosine as f32, sine as f32);
        }
    }
    upload(&out, (r, n, 2 * FREQUENCIES), to)
}

/// `x (1 + scale) + shift`; x `[R, N, D]`, the others `[R, N, D]` or `[R, 1, D]`.
fn modulate(x: &Tensor, shift: &Tensor, scale: &Tensor) -> Result<Tensor> {
    x.broadcast_mul(&(scale + 1.0)?)?.broadcast_add(shift)
}

#[derive(Clone, Debug)]
struct Block {
    norm: LayerNorm,
    first: Linear,
    second: Linear,
    modulation: Linear,
}

impl Block {
    fn new(b: &Builder, d: usize) -> Result<Self> {
        let mlp = b.under("mlp");
        Ok(Self {
            norm: LayerNorm::new(b, "in_ln", d, EPS)?,
            first: Linear::new(&mlp, "0", d, d, Init::Xavier)?,
            second: Linear::new(&mlp, "2", d, d, Init::Xavier)?,
            modulation: Linear::new(&b.under("adaLN_modulation"), "1", d, 3 * d, Init::Zeros)?,
        })
    }

    fn forward(&self, x: &Tensor, y: &Tensor) -> Result<Tensor> {
        let m = self.modulation.forward(y)?.chunk(3, D::Minus1)?;
        let u = modulate(&self.norm.forward(x)?, &m[0], &m[1])?;
        let u = self.second.forward(&ops::silu(&self.first.forward(&u)?)?)?;
        x + u.broadcast_mul(&m[2])?
    }
}

/// The conditioned MLP; names `time_embed`, `cond_embed`, `input_proj`, `res_blocks`, `final_layer`.
#[derive(Clone, Debug)]
pub struct AdaLnNet {
    time: TimeEmbedding,
    condition: Linear,
    input: Linear,
    blocks: Vec<Block>,
    last: Linear,
    last_modulation: Linear,
}

impl AdaLnNet {
    /// Width `hidden_size` throughout, under hidden states of the same width; from `latent_size` numbers to
    /// `output_size`.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(
        b: &Builder,
        hidden_size: usize,
        blocks: usize,
        latent_size: usize,
        output_size: usize,
    ) -> Result<Self> {
        let d = hidden_size;
        let last = b.under("final_layer");
        Ok(Self {
            time: TimeEmbedding::new(b, d)?,
            condition: Linear::new(b, "cond_embed", d, d, Init::Xavier)?,
            input: Linear::new(b, "input_proj", latent_size, d, Init::Xavier)?,
            blocks: (0..blocks)
                .map(|i| Block::new(&b.under("res_blocks").under(i), d))
                .collect::<Result<_>>()?,
            last: Linear::new(&last, "linear", d, output_size, Init::Zeros)?,
            last_modulation: Linear::new(&last.under("adaLN_modulation"), "1", d, 2 * d, Init::Zeros)?,
        })
    }

    /// What operators on its parameters share.
    pub fn context(&self) -> &Context {
        self.input.weight.context()
    }

    /// The part of the input that all samples and time steps of a row share: hidden `[R, D]` -> `[R, 1, D]`.
    ///
    /// # Errors
    /// Another width than D; what a GPU answers.
    pub fn condition(&self, hidden: &Tensor) -> Result<Tensor> {
        self.condition.forward(hidden)?.unsqueeze(1)
    }

    /// Noisy latents `x [R, N, L]` -> `[R, N, output]`, with [`condition`](Self::condition) `[R, 1, D]` and
    /// time steps on the scale 0..1000: one for all, or R·N in the order of x.
    ///
    /// # Errors
    /// Shapes that do not fit, or another number of steps.
    pub fn forward(&self, x: &Tensor, condition: &Tensor, steps: &[f32]) -> Result<Tensor> {
        let (r, n, _) = x.dims3()?;
        let time = match steps.len() {
            1 => self.time.forward(steps, 1, 1, condition.dtype())?,
            count if count == r * n => self.time.forward(steps, r, n, condition.dtype())?,
            count => bail!("{count} time steps for x [{r}, {n}, ..]: give 1 or {}", r * n),
        };
        let y = ops::silu(&condition.broadcast_add(&time)?)?;
        let mut h = self.input.forward(&x.to_dtype(condition.dtype())?)?;
        for block in &self.blocks {
            h = block.forward(&h, &y)?;
        }
        let m = self.last_modulation.forward(&y)?.chunk(2, D::Minus1)?;
        let h = modulate(&ops::layer_norm(&h, None, None, EPS)?, &m[0], &m[1])?;
        self.last.forward(&h)?.to_dtype(x.dtype())
    }
}

/// Matrix weights: time embedding, condition, input, blocks with their modulation, output with its modulation.
fn matrix_weights(d: usize, blocks: usize, latent_size: usize, output_size: usize) -> u64 {
    let ends = weights(2 * FREQUENCIES, d) + weights(d, d) + weights(d, d) + weights(latent_size, d);
    let block = 2 * weights(d, d) + weights(d, 3 * d);
    ends + blocks as u64 * block + weights(d, output_size) + weights(d, 2 * d)
}

/// Parameters of a net of width `d`.
pub(super) fn parameters(d: usize, blocks: usize, latent_size: usize, output_size: usize) -> u64 {
    let biases = 4 * d + blocks * (2 * d + 3 * d) + output_size + 2 * d;
    let norms = blocks as u64 * layer_norm(d);
    matrix_weights(d, blocks, latent_size, output_size) + biases as u64 + norms
}

/// FLOPs of one pass.
pub(super) fn pass_flops(d: usize, blocks: usize, latent_size: usize, output_size: usize) -> f64 {
    flops(matrix_weights(d, blocks, latent_size, output_size))
}

/// What a training step on so many draws holds: of plain operations, numbers a draw in widths, counted in the code.
pub(super) fn held(d: usize, blocks: usize, draws: f64, on: Footing) -> Held {
    let mut held = Held::default();
    held.keep(KEPT, draws * ((blocks * 13 + 11) * d) as f64 * on.activation);
    held
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::head::testing::{randomise, values};
    use calm_nn::ParamStore;
    use candle_core::{DType, Device};

    fn net(dtype: DType) -> (ParamStore, AdaLnNet) {
        let store = ParamStore::new(&Device::Cpu, dtype, 5);
        let net = AdaLnNet::new(&store.builder(), 6, 2, 3, 4).unwrap();
        (store, net)
    }

    fn numbers(shape: (usize, usize, usize)) -> Tensor {
        let count = (shape.0 * shape.1 * shape.2) as u32;
        let v: Vec<f64> = (0..count).map(|i| f64::from(i * 37 % 23) / 10.0 - 1.0).collect();
        Tensor::from_vec(v, shape, &Device::Cpu).unwrap()
    }

    #[test]
    fn a_new_net_returns_zero_and_its_blocks_are_the_identity() {
        let (store, net) = net(DType::F64);
        let c = net.condition(&numbers((2, 1, 6)).squeeze(1).unwrap()).unwrap();
        let x = numbers((2, 5, 3));
        assert!(values(&net.forward(&x, &c, &[3.0]).unwrap()).iter().all(|v| *v == 0.0));
        let h = net.input.forward(&x).unwrap();
        assert_eq!(values(&net.blocks[0].forward(&h, &c).unwrap()), values(&h));
        for (name, p) in store.params() {
            let zero = name.contains("adaLN") || name.starts_with("final_layer") || name.ends_with("bias");
            assert_eq!(values(p.var.as_tensor()).iter().all(|v| *v == 0.0), zero, "{name}");
        }
    }

    #[test]
    fn one_time_for_all_equals_that_time_given_for_each_sample() {
        let (store, net) = net(DType::F64);
        randomise(&store);
        let c = net.condition(&numbers((2, 1, 6)).squeeze(1).unwrap()).unwrap();
        let x = numbers((2, 5, 3));
        let one = net.forward(&x, &c, &[417.5]).unwrap();
        assert_eq!(one.dims(), [2, 5, 4]);
        let each = net.forward(&x, &c, &[417.5; 10]).unwrap();
        for (a, b) in values(&one).iter().zip(values(&each)) {
            assert!((a - b).abs() < 1e-13, "{a} {b}");
        }
        let mut other = [417.5; 10];
        other[9] = 418.0;
        let other = values(&net.forward(&x, &c, &other).unwrap());
        assert_eq!(other[..36], values(&each)[..36]);
        assert_ne!(other[36..], values(&each)[36..]);
        assert!(net.forward(&x, &c, &[1.0; 3]).is_err());
    }

    #[test]
    fn time_is_embedded_as_cosines_then_sines_of_falling_frequencies() {
        let w = waves(&[0.0, 2.0], 1, 2, &Device::Cpu).unwrap().get(0).unwrap().to_vec2::<f32>().unwrap();
        assert!(w[0][..128].iter().all(|v| *v == 1.0) && w[0][128..].iter().all(|v| *v == 0.0));
        for (at, k) in [(0, 0.0), (1, 1.0), (127, 127.0)] {
            let angle = 2.0 * (-(10_000f64.ln()) * k / 128.0).exp();
            assert!((f64::from(w[1][at]) - angle.cos()).abs() < 1e-6);
            assert!((f64::from(w[1][128 + at]) - angle.sin()).abs() < 1e-6);
        }
    }
}
