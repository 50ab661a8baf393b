//! A residual block of the energy head (arXiv 2510.27688, section 3) as one operator.
//!
//! ```text
//! h  = LayerNorm(x)                                    x [R, N, D], condition c [R, D]
//! u₁ = silu(h W₁ₗᵀ + (c W₁ᵣᵀ + b₁))                    W₁ = [W₁ₗ | W₁ᵣ]: the condition's part once a row
//! u₂ = silu(u₁ W₂ᵀ + b₂)
//! y  = x + (silu(g)·u) W₄ᵀ + b₄,  [g | u] = u₂ W₃ᵀ + b₃
//! ```
//! Fused for the reason of [`crate::mlp_block`]. Kept for the backward pass: what goes into the three
//! activations; the rest is computed again.

use crate::gradients::{gradient_of, put};
use crate::nary::{Operator, apply};
use crate::rows::{self, add_to};
use crate::simd::{Mat, matmul, matmul_strided};
use crate::storage::{Saved, error, tensor, view, views};
use crate::{layer_norm, silu, swiglu, with_float};
use candle_core::{CpuStorage, Result, Shape, Tensor, WithDType};
use gemm::Parallelism::Rayon;

/// Weights of a block; D is its width.
#[derive(Clone, Copy, Debug)]
pub struct EnergyBlockWeights<'a> {
    /// Weight and bias of the LayerNorm, `[D]` each.
    pub norm: [&'a dyn crate::Operand; 2],
    /// W₁ `[D, 2D]` and b₁ `[D]`.
    pub first: [&'a dyn crate::Operand; 2],
    /// W₂ `[D, D]` and b₂ `[D]`.
    pub second: [&'a dyn crate::Operand; 2],
    /// W₃ `[2D, D]` and b₃ `[2D]`.
    pub third: [&'a dyn crate::Operand; 2],
    /// W₄ `[D, D]` and b₄ `[D]`.
    pub down: [&'a dyn crate::Operand; 2],
}

/// The block on x `[R, N, D]` under the condition c `[R, D]`: a tensor like x, differentiable in x, c and
/// all weights.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU, where the weights may be f32 beside bf16 activations. The same as [`crate::layer_norm`], [`crate::linear`], [`crate::add_silu`],
/// [`crate::silu`] and [`crate::swiglu_packed`] one after the other.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn energy_block(x: &Tensor, c: &Tensor, w: EnergyBlockWeights<'_>, eps: f64) -> Result<Tensor> {
    let [first, second, third, down] = [w.first, w.second, w.third, w.down];
    let inputs: [&dyn crate::Operand; 12] = [
        x, c, w.norm[0], w.norm[1], first[0], first[1], second[0], second[1], third[0], third[1], down[0],
        down[1],
    ];
    let inputs = inputs.map(|i| i.tensor());
    let dims = inputs.map(Tensor::dims);
    let fits = match *x.dims() {
        [r, _, d] => {
            let expected: [&[usize]; 11] =
                [&[r, d], &[d], &[d], &[d, 2 * d], &[d], &[d, d], &[d], &[2 * d, d], &[2 * d], &[d, d], &[d]];
            dims[1..] == expected
        }
        _ => false,
    };
    if !fits {
        return Err(error(
            EnergyBlock::NAME,
            format_args!(
                "{dims:?} do not fit: expected x [R, N, D], c [R, D], norm [D] twice, weight and bias of \
                 [D, 2D], [D, D], [2D, D], [D, D]"
            ),
        ));
    }
    on_gpu!(x, crate::cuda::energy_block::energy_block(x, c, w, eps));
    let keep = inputs.iter().any(|t| t.track_op());
    apply(EnergyBlock { eps, keep, kept: Saved::new() }, &inputs)
}

struct EnergyBlock {
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    /// h W₁ₗᵀ, c W₁ᵣᵀ + b₁, input of the second SiLU, [g | u].
    kept: Saved<[Tensor; 4]>,
}

/// Left and right half of W₁ `[D, 2D]`.
fn halves<T>(first: &[T], d: usize) -> [Mat<'_, T>; 2] {
    [0, d].map(|at| Mat::strided(&first[at.min(first.len())..], d, d, 2 * d, 1))
}

impl Operator for EnergyBlock {
    const NAME: &'static str = "energy_block";

    fn forward(&self, inputs: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (r, n, d) = inputs[0].dims3()?;
        let rn = r * n;
        with_float!(Self::NAME, inputs[0].dtype(), T => {
            let [x, c, nw, nb, w1, b1, w2, b2, w3, b3, w4, b4] = views::<T, 12>(Self::NAME, inputs)?;
            let [left, right] = halves(&w1, d);
            let mut row = rows::repeat(&b1, r);
            matmul(&mut row, Mat::new(&c, r, d), right.t(), true, Rayon(0));
            let h = layer_norm::forward(&x, d, Some(&nw), Some(&nb), self.eps);
            let p1 = rows::product(rn * d, Mat::new(&h, rn, d), left.t());
            drop(h);
            let u1 = silu::add_forward(&p1, &row, (r, n, d));
            let mut p2 = rows::repeat(&b2, rn);
            matmul(&mut p2, Mat::new(&u1, rn, d), Mat::new(&w2, d, d).t(), true, Rayon(0));
            drop(u1);
            let u2 = silu::forward(&p2);
            let mut p3 = rows::repeat(&b3, rn);
            matmul(&mut p3, Mat::new(&u2, rn, d), Mat::new(&w3, 2 * d, d).t(), true, Rayon(0));
            drop(u2);
            let a = swiglu::packed_forward(&p3, d);
            let mut y = rows::copy(&x);
            rows::add_row(&mut y, &b4);
            matmul(&mut y, Mat::new(&a, rn, d), Mat::new(&w4, d, d).t(), true, Rayon(0));
            if self.keep {
                let kept = [tensor(p1, (rn, d))?, tensor(row, (r, d))?, tensor(p2, (rn, d))?, tensor(p3, (rn, 2 * d))?];
                self.kept.set(kept);
            }
            Ok((<T as WithDType>::to_cpu_storage_owned(y), inputs[0].shape().clone()))
        })
    }

    fn backward(&self, inputs: &[Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (r, n, d) = inputs[0].dims3()?;
        let rn = r * n;
        let kept = self.kept.get(Self::NAME)?;
        with_float!(Self::NAME, grad.dtype(), T => {
            let [x, c, nw, nb, w1, _, w2, _, w3, _, w4, _] = views::<T, 12>(Self::NAME, inputs)?;
            let [p1, row, p2, p3] = views::<T, 4>(Self::NAME, &kept)?;
            let dy = view::<T>(Self::NAME, grad)?;
            // Gradients of the weight and the bias of a linear layer from x to a slope dy.
            let of = |at: usize, slope: Mat<'_, T>, x: Mat<'_, T>| {
                gradient_of::<T>(None, &inputs[at], |into, acc| matmul(into, slope.t(), x, acc, Rayon(0)))
            };
            let bias = |at: usize, slope: &[T], width: usize| {
                gradient_of::<T>(None, &inputs[at], |into, acc| put(into, &rows::column_sums(slope, width), acc))
            };

            let slope = Mat::new(&dy, rn, d);
            let a = swiglu::packed_forward(&p3, d);
            let (dw4, db4) = (of(10, slope, Mat::new(&a, rn, d))?, bias(11, &dy, d)?);
            let mut da = a;
            matmul(&mut da, slope, Mat::new(&w4, d, d), false, Rayon(0));
            let dp3 = swiglu::packed_backward(&p3, &da, d);
            drop(da);

            let slope = Mat::new(&dp3, rn, 2 * d);
            let u2 = silu::forward(&p2);
            let (dw3, db3) = (of(8, slope, Mat::new(&u2, rn, d))?, bias(9, &dp3, 2 * d)?);
            let mut du2 = u2;
            matmul(&mut du2, slope, Mat::new(&w3, 2 * d, d), false, Rayon(0));
            drop(dp3);
            let dp2 = silu::backward(&p2, &du2);
            drop(du2);

            let slope = Mat::new(&dp2, rn, d);
            let u1 = silu::add_forward(&p1, &row, (r, n, d));
            let (dw2, db2) = (of(6, slope, Mat::new(&u1, rn, d))?, bias(7, &dp2, d)?);
            let mut du1 = u1;
            matmul(&mut du1, slope, Mat::new(&w2, d, d), false, Rayon(0));
            drop(dp2);
            let (dp1, drow) = silu::add_backward(&p1, &row, &du1, (r, n, d));
            drop(du1);

            let [left, right] = halves(&w1, d);
            let (slope, row_slope) = (Mat::new(&dp1, rn, d), Mat::new(&drow, r, d));
            let h = layer_norm::forward(&x, d, Some(&nw), Some(&nb), self.eps);
            let dw1 = gradient_of::<T>(None, &inputs[4], |into, acc| {
                let h = Mat::new(&h, rn, d);
                matmul_strided(into, 2 * d, slope.t(), h, acc, Rayon(0));
                let c = Mat::new(&c, r, d);
                matmul_strided(&mut into[d..], 2 * d, row_slope.t(), c, acc, Rayon(0));
            })?;
            let db1 = bias(5, &drow, d)?;
            let dc = inputs[1].track_op().then(|| tensor(rows::product(r * d, row_slope, right), (r, d))).transpose()?;
            let mut dh = h;
            matmul(&mut dh, slope, left, false, Rayon(0));
            let (mut dx, dp) = layer_norm::backward(&x, d, Some(&nw), &dh, self.eps, true);
            add_to(&mut dx, &dy);
            let norm = |at: usize, sums: &[T]| {
                gradient_of(None, &inputs[at], |into, accumulate| put(into, sums, accumulate))
            };
            let (dnw, dnb) = (norm(2, &dp[..d])?, norm(3, &dp[d..])?);
            let dx = inputs[0].track_op().then(|| tensor(dx, inputs[0].shape())).transpose()?;
            Ok(vec![dx, dc, dnw, dnb, dw1, db1, dw2, db2, dw3, db3, dw4, db4])
        })
    }
}
