//! Energy score of model samples against targets drawn from a Gaussian posterior.
//!
//! Per row, with model samples x_1..x_N and targets z_m = mean + ε_m·exp(log_std), ε_m ~ N(0, 1)
//! (arXiv 2510.27688; the generalised energy score with its sign turned, so that less is better):
//!
//! ```text
//! loss   = 2/(NM) Σ_n Σ_m ‖x_n − z_m‖^α − 1/(N(N−1)) Σ_{n≠k} ‖x_n − x_k‖^α
//! ∂/∂x_n = 2/(NM) Σ_m c(x_n − z_m) − 2/(N(N−1)) Σ_{k≠n} c(x_n − x_k),   c(d) = α ‖d‖^{α−2} d, c(0) = 0
//! ```
//!
//! Targets are drawn a few at a time into a buffer that stays in the first-level cache, distances come
//! from direct differences (no cancellation as in |x|² + |z|² − 2xz), and the gradient is computed with
//! the loss while the differences are at hand: O(R·(N+1)·L) memory, never N·M·L. Distances are in the
//! tensors' type, their sums in double precision and in a fixed order.

#![allow(clippy::needless_range_loop, reason = "loops over lanes index several arrays by the same lane")]

use crate::context::Operand;
use crate::energy_targets::{EnergySizes, TargetNoise};
use crate::philox::{NoiseKey, RowId, normal_into};
use crate::simd::{LANES, Real, dispatch, fold};
use crate::storage::{Saved, slice, tensor, to_vec, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

const OP: &str = "energy_score";
/// Rows that one parallel task takes.
const ROWS: usize = 4;
/// Targets drawn at once.
const DRAWN: usize = 8;
/// Targets whose distances are computed together.
const TOGETHER: usize = 4;

enum Noise<T> {
    Draw { key: NoiseKey, rows: Vec<RowId> },
    Given(Vec<T>),
}

struct EnergyScore<T> {
    mean: Vec<T>,
    std: Vec<T>,
    noise: Noise<T>,
    sizes: EnergySizes,
    alpha: f64,
    /// dloss/dpred `[R, N, L]`, kept when asked for.
    with_gradient: bool,
    gradient: Saved<Tensor>,
}

/// Energy score of each row, `[R]`, from `pred` `[R, N, L]`, the posterior's `mean` and `log_std`
/// `[R, L]` and M targets a row; `alpha` in (0, 2).
///
/// `2/(NM) Σ_n Σ_m ‖x_n − z_m‖^α − 1/(N(N−1)) Σ_{n≠k} ‖x_n − x_k‖^α` with
/// `z_m = mean + ε_m·exp(log_std)`, in O(R·(N+1)·L) memory. f32 and f64 on the CPU; on a GPU `pred` is f32 or
/// bf16, mean, log_std and given noise are f32 or of its type, and the loss is f32.
///
/// Differentiable in `pred` only: the targets are constants. The gradient is 0 where two points
/// coincide (closer than about 1e-19 in `f32`), so identical samples are a valid start. When `pred` asks
/// for no gradient, none is computed.
///
/// # Errors
/// N < 2, M < 1, L outside 1..=1024, `alpha` outside (0, 2), or shapes and types that do not fit.
pub fn energy_score(
    predictions: &dyn Operand,
    mean: &Tensor,
    log_std: &Tensor,
    noise: TargetNoise<'_>,
    alpha: f64,
) -> Result<Tensor> {
    let pred = predictions.tensor();
    #[cfg(feature = "cuda")]
    if pred.device().is_cuda() {
        let sizes = EnergySizes::of(pred, mean, log_std, noise, alpha)?;
        return crate::cuda::energy_score::energy_score(predictions, mean, log_std, noise, alpha, sizes);
    }
    let with_gradient = pred.track_op();
    let pred = pred.contiguous()?;
    with_float!(OP, pred.dtype(), T => {
        let op = EnergyScore::<T>::new(&pred, mean, log_std, noise, alpha, with_gradient)?;
        pred.apply_op1(op)
    })
}

/// [`energy_score`] for evaluation: the same values, no gradient computed or kept.
///
/// # Errors
/// As [`energy_score`].
pub fn energy_score_rows_no_grad(
    pred: &Tensor,
    mean: &Tensor,
    log_std: &Tensor,
    noise: TargetNoise<'_>,
    alpha: f64,
) -> Result<Tensor> {
    energy_score(&pred.detach(), mean, log_std, noise, alpha)
}

impl<T: Real> EnergyScore<T> {
    fn new(
        pred: &Tensor,
        mean: &Tensor,
        log_std: &Tensor,
        noise: TargetNoise<'_>,
        alpha: f64,
        with_gradient: bool,
    ) -> Result<Self> {
        let sizes = EnergySizes::of(pred, mean, log_std, noise, alpha)?;
        let noise = match noise {
            TargetNoise::Draw { key, rows, .. } => Noise::Draw { key, rows: rows.to_vec() },
            TargetNoise::Given(t) => Noise::Given(to_vec::<T>(OP, t)?),
        };
        let mut std = to_vec::<T>(OP, log_std)?;
        dispatch(
            #[inline(always)]
            || std.iter_mut().for_each(|v| *v = v.exp()),
        );
        let mean = to_vec::<T>(OP, mean)?;
        Ok(Self { mean, std, noise, sizes, alpha, with_gradient, gradient: Saved::new() })
    }

    /// Targets `first ..` of row `r` into `z` `[count, width]`, whose padding stays as it is.
    #[inline(always)]
    fn targets(
        &self,
        r: usize,
        l: usize,
        first: usize,
        count: usize,
        width: usize,
        buffers: &mut Buffers<T>,
    ) {
        let mean = &self.mean[r * l..][..l];
        let std = &self.std[r * l..][..l];
        let z = buffers.targets.chunks_exact_mut(width);
        match &self.noise {
            Noise::Draw { key, rows } => {
                let normals = &mut buffers.normals[..count * l];
                normal_into(*key, rows[r], first, l, normals);
                for (z, eps) in z.zip(normals.chunks_exact(l)) {
                    for i in 0..l {
                        z[i] = mean[i] + T::of_f32(eps[i]) * std[i];
                    }
                }
            }
            Noise::Given(eps) => {
                let rows = self.mean.len() / l;
                for (m, z) in z.take(count).enumerate() {
                    let eps = &eps[((first + m) * rows + r) * l..][..l];
                    for i in 0..l {
                        z[i] = mean[i] + eps[i] * std[i];
                    }
                }
            }
        }
    }

    /// Loss of row `r`; its gradient into `gradient` `[N, L]` when asked for.
    #[inline(always)]
    fn row<const GRADIENT: bool>(
        &self,
        r: usize,
        pred: &[T],
        gradient: &mut [T],
        l: usize,
        buffers: &mut Buffers<T>,
    ) -> T {
        let width = l.next_multiple_of(LANES);
        let n = pred.len() / l;
        for (x, p) in buffers.samples.chunks_exact_mut(width).zip(pred.chunks_exact(l)) {
            x[..l].copy_from_slice(p);
        }
        buffers.gradient.fill(T::ZERO);
        let to_target = 2.0 / (n as f64 * self.sizes.targets as f64);
        let to_sample = -2.0 / (n as f64 * (n as f64 - 1.0));
        let power = Power { alpha: self.alpha };

        let mut attraction = 0.0;
        let mut first = 0;
        while first < self.sizes.targets {
            let count = DRAWN.min(self.sizes.targets - first);
            self.targets(r, l, first, count, width, buffers);
            let (full, rest) = buffers.targets[..count * width].split_at(count / TOGETHER * TOGETHER * width);
            let samples = buffers.samples.chunks_exact(width);
            let gradients = buffers.gradient.chunks_exact_mut(width);
            for (x, g) in samples.zip(gradients) {
                for z in full.chunks_exact(TOGETHER * width) {
                    attraction += pull::<T, TOGETHER, GRADIENT>(x, z, g, &power, to_target);
                }
                for z in rest.chunks_exact(width) {
                    attraction += pull::<T, 1, GRADIENT>(x, z, g, &power, to_target);
                }
            }
            first += count;
        }

        let mut repulsion = 0.0;
        for a in 0..n {
            for b in a + 1..n {
                let (xa, xb) =
                    (&buffers.samples[a * width..][..width], &buffers.samples[b * width..][..width]);
                let [square] = square_distances::<T, 1>(xa, xb);
                let (value, slope) = power.of(square);
                repulsion += value;
                if GRADIENT {
                    let c = T::of_f64(slope * to_sample);
                    let (ga, gb) = buffers.gradient.split_at_mut(b * width);
                    let (ga, gb) = (&mut ga[a * width..][..width], &mut gb[..width]);
                    for i in 0..width {
                        let d = c * (xa[i] - xb[i]);
                        ga[i] += d;
                        gb[i] -= d;
                    }
                }
            }
        }
        if GRADIENT {
            for (out, g) in gradient.chunks_exact_mut(l).zip(buffers.gradient.chunks_exact(width)) {
                out.copy_from_slice(&g[..l]);
            }
        }
        T::of_f64(to_target * attraction + to_sample * repulsion)
    }

    fn forward(&self, pred: &[T]) -> (Vec<T>, Vec<T>) {
        let EnergySizes { rows: r, samples: n, latent: l, .. } = self.sizes;
        let mut loss = vec![T::ZERO; r];
        let mut gradient = vec![T::ZERO; if self.with_gradient { pred.len() } else { 0 }];
        let row = n * l;
        if self.with_gradient {
            let blocks = loss.par_chunks_mut(ROWS).zip(gradient.par_chunks_mut(ROWS * row)).enumerate();
            blocks.for_each(|(block, (loss, gradient))| {
                dispatch(
                    #[inline(always)]
                    || {
                        let mut buffers = Buffers::new(n, l);
                        for (i, (loss, gradient)) in
                            loss.iter_mut().zip(gradient.chunks_exact_mut(row)).enumerate()
                        {
                            let r = block * ROWS + i;
                            *loss = self.row::<true>(r, &pred[r * row..][..row], gradient, l, &mut buffers);
                        }
                    },
                );
            });
        } else {
            loss.par_chunks_mut(ROWS).enumerate().for_each(|(block, loss)| {
                dispatch(
                    #[inline(always)]
                    || {
                        let mut buffers = Buffers::new(n, l);
                        for (i, loss) in loss.iter_mut().enumerate() {
                            let r = block * ROWS + i;
                            *loss = self.row::<false>(r, &pred[r * row..][..row], &mut [], l, &mut buffers);
                        }
                    },
                );
            });
        }
        (loss, gradient)
    }
}

/// Working space of one task; vectors are padded with zeros to whole lanes, so that no loop has a rest.
struct Buffers<T> {
    normals: Vec<f32>,
    targets: Vec<T>,
    samples: Vec<T>,
    gradient: Vec<T>,
}

impl<T: Real> Buffers<T> {
    fn new(n: usize, l: usize) -> Self {
        let width = l.next_multiple_of(LANES);
        Self {
            normals: vec![0.0; DRAWN * l],
            targets: vec![T::ZERO; DRAWN * width],
            samples: vec![T::ZERO; n * width],
            gradient: vec![T::ZERO; n * width],
        }
    }
}

/// ‖d‖^α and its slope α‖d‖^{α−2} from ‖d‖², both 0 below the smallest normal number.
struct Power {
    alpha: f64,
}

impl Power {
    #[inline(always)]
    fn of<T: Real>(&self, square: T) -> (f64, f64) {
        // Written so that NaN takes the other way and comes out.
        if square < T::TINY {
            return (0.0, 0.0);
        }
        if self.alpha == 1.0 {
            let distance = square.sqrt();
            return (distance.as_f64(), (T::ONE / distance).as_f64());
        }
        let square = square.as_f64();
        let value = square.powf(0.5 * self.alpha);
        (value, self.alpha * value / square)
    }
}

/// ‖x − z_t‖² of C padded vectors.
#[inline(always)]
fn square_distances<T: Real, const C: usize>(x: &[T], z: &[T]) -> [T; C] {
    let width = x.len();
    let mut acc = [[T::ZERO; LANES]; C];
    let mut at = 0;
    while at < width {
        let xs = lanes(x, at);
        for t in 0..C {
            let zs = lanes(z, t * width + at);
            for i in 0..LANES {
                let d = xs[i] - zs[i];
                acc[t][i] += d * d;
            }
        }
        at += LANES;
    }
    let mut squares = [T::ZERO; C];
    for t in 0..C {
        squares[t] = fold(acc[t]);
    }
    squares
}

/// Σ_t ‖x − z_t‖^α over C targets; adds weight·c(x − z_t) to the gradient.
#[inline(always)]
fn pull<T: Real, const C: usize, const GRADIENT: bool>(
    x: &[T],
    z: &[T],
    g: &mut [T],
    power: &Power,
    weight: f64,
) -> f64 {
    let squares = square_distances::<T, C>(x, z);
    let mut total = 0.0;
    let mut c = [T::ZERO; C];
    for t in 0..C {
        let (value, slope) = power.of(squares[t]);
        total += value;
        c[t] = T::of_f64(slope * weight);
    }
    if GRADIENT {
        let width = x.len();
        let mut at = 0;
        while at < width {
            let xs = lanes(x, at);
            let mut gs = lanes(g, at);
            for t in 0..C {
                let zs = lanes(z, t * width + at);
                for i in 0..LANES {
                    gs[i] += c[t] * (xs[i] - zs[i]);
                }
            }
            g[at..at + LANES].copy_from_slice(&gs);
            at += LANES;
        }
    }
    total
}

/// Sixteen elements from `at`.
#[inline(always)]
fn lanes<T: Real>(x: &[T], at: usize) -> [T; LANES] {
    let mut out = [T::ZERO; LANES];
    out.copy_from_slice(&x[at..at + LANES]);
    out
}

impl<T: Real> CustomOp1 for EnergyScore<T> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        debug_assert_eq!(storage.dtype(), T::DTYPE);
        let pred = slice::<T>(OP, storage, layout)?;
        let (loss, gradient) = self.forward(pred);
        if self.with_gradient {
            self.gradient.set(tensor(gradient, layout.shape())?);
        }
        Ok((T::to_cpu_storage_owned(loss), Shape::from(self.sizes.rows)))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        let kept = self.gradient.get(OP)?;
        let kept = view::<T>(OP, &kept)?;
        let upstream = to_vec::<T>(OP, grad_res)?;
        let (_, n, l) = arg.dims3()?;
        let row = n * l;
        let mut out = vec![T::ZERO; kept.len()];
        let blocks = out.par_chunks_mut(ROWS * row).zip(kept.par_chunks(ROWS * row));
        blocks.zip(upstream.par_chunks(ROWS)).for_each(|((out, kept), upstream)| {
            for ((out, kept), &factor) in out.chunks_exact_mut(row).zip(kept.chunks_exact(row)).zip(upstream)
            {
                for (o, &k) in out.iter_mut().zip(kept) {
                    *o = k * factor;
                }
            }
        });
        Ok(Some(tensor(out, arg.shape().clone())?))
    }
}
