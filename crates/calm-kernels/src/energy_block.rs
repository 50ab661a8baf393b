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

use crate::Operand;
use crate::backend::{Affine, Array, Backend, Block, Blocks, Slope, Weight, named};
use crate::cpu::Cpu;
use crate::nary::apply;
use crate::storage::{Saved, error};
use candle_core::{Result, Tensor};

/// Weights of a block; D is its width.
#[derive(Clone, Copy, Debug)]
pub struct EnergyBlockWeights<'a> {
    /// Weight and bias of the LayerNorm, `[D]` each.
    pub norm: [&'a dyn Operand; 2],
    /// W₁ `[D, 2D]` and b₁ `[D]`.
    pub first: [&'a dyn Operand; 2],
    /// W₂ `[D, D]` and b₂ `[D]`.
    pub second: [&'a dyn Operand; 2],
    /// W₃ `[2D, D]` and b₃ `[2D]`.
    pub third: [&'a dyn Operand; 2],
    /// W₄ `[D, D]` and b₄ `[D]`.
    pub down: [&'a dyn Operand; 2],
}

/// The block on x `[R, N, D]` under the condition c `[R, D]`: a tensor like x, differentiable in x, c and
/// all weights.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU, where the weights may be f32 beside bf16 activations. The same as
/// [`crate::layer_norm`], [`crate::linear`], [`crate::add_silu`], [`crate::silu`] and [`crate::swiglu_packed`] one
/// after the other.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn energy_block(x: &Tensor, c: &Tensor, w: EnergyBlockWeights<'_>, eps: f64) -> Result<Tensor> {
    let EnergyBlockWeights { norm: [norm, norm_bias], first: [w1, b1], .. } = w;
    let EnergyBlockWeights { second: [w2, b2], third: [w3, b3], down: [w4, b4], .. } = w;
    let inputs = Inputs::<&dyn Operand> { x, c, norm, norm_bias, w1, b1, w2, b2, w3, b3, w4, b4 }.list();
    let dims: Vec<&[usize]> = inputs.iter().map(|t| t.dims()).collect();
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
            OP,
            format_args!(
                "{dims:?} do not fit: expected x [R, N, D], c [R, D], norm [D] twice, weight and bias of \
                 [D, 2D], [D, D], [2D, D], [D, D]"
            ),
        ));
    }
    if x.dtype() != c.dtype() {
        let (x, c) = (x.dtype(), c.dtype());
        return Err(error(OP, format_args!("expects x and c of one element type, got {x:?} and {c:?}")));
    }
    let keep = inputs.iter().any(|t| t.track_op());
    let block = EnergyBlock { eps, keep, kept: Saved::new() };
    on_gpu!(x, apply::<crate::cuda::Gpu, _>(block, &inputs));
    apply::<Cpu, _>(block, &inputs)
}

const OP: &str = "energy_block";

named! { Inputs { x, c, norm, norm_bias, w1, b1, w2, b2, w3, b3, w4, b4 } }

struct EnergyBlock {
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    kept: Saved<BeforeActivations>,
}

/// What goes into the activations, as [`Backend::before_activation`] gives it.
#[derive(Clone)]
struct BeforeActivations {
    /// h W₁ₗᵀ `[R N, D]`.
    first: Tensor,
    /// c W₁ᵣᵀ + b₁ `[R, D]`.
    row: Tensor,
    /// Input of the second SiLU `[R N, D]`.
    second: Tensor,
    /// [g | u] `[R N, 2 D]`.
    third: Tensor,
}

impl<P: Blocks> Block<P> for EnergyBlock {
    const NAME: &'static str = OP;

    fn forward<B: Backend<Place = P>>(&self, on: &B, inputs: &[Tensor]) -> Result<Array<'static, B>> {
        let inputs = Inputs::of(OP, inputs)?;
        let of = inputs.try_map(|t| on.operand(t))?;
        let d = of.x.columns;
        let (left, right) = (of.w1.part(0..d), of.w1.part(d..2 * d));
        let norm = Affine {
            arrays: [&of.norm, &of.norm_bias],
            parameters: [inputs.norm, inputs.norm_bias],
            eps: self.eps,
        };

        let row = on.before_activation(of.c.mat(), right, &of.b1)?;
        let h = on.layer_norm(&of.x, &norm)?;
        let first = on.linear(h.mat(), left)?;
        drop(h);
        let u1 = on.shared_silu(&first, &row, &of.b1)?;
        let second = on.before_activation(u1.mat(), of.w2.mat(), &of.b2)?;
        drop(u1);
        let u2 = on.silu(&second, &of.b2)?;
        let third = on.before_activation(u2.mat(), of.w3.mat(), &of.b3)?;
        drop(u2);
        let a = on.gate(&third, &of.b3)?;
        let y = on.residual(&of.x, a.mat(), of.w4.mat(), Some(&of.b4))?;
        if self.keep {
            self.kept.set(BeforeActivations {
                first: on.tensor(first)?,
                row: on.tensor(row)?,
                second: on.tensor(second)?,
                third: on.tensor(third)?,
            });
        }
        Ok(y)
    }

    fn backward<B: Backend<Place = P>>(
        &self,
        on: &B,
        inputs: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let inputs = Inputs::of(OP, inputs)?;
        let of = inputs.try_map(|t| on.operand(t))?;
        let d = of.x.columns;
        let (left, right) = (of.w1.part(0..d), of.w1.part(d..2 * d));
        let norm = Affine {
            arrays: [&of.norm, &of.norm_bias],
            parameters: [inputs.norm, inputs.norm_bias],
            eps: self.eps,
        };
        let kept = self.kept.get(OP)?;
        let (first, row) = (on.read(&kept.first)?, on.read(&kept.row)?);
        let (second, third) = (on.read(&kept.second)?, on.read(&kept.third)?);
        let dy = on.read(grad)?;

        let slope = Slope { array: on.read(grad)?, sums: None };
        let b4 = on.bias_gradient(inputs.b4, &slope)?;
        let down = Weight { mat: of.w4.mat(), parameter: inputs.w4 };
        let (w4, slope) = on.gate_backward(&third, &of.b3, slope, down)?;

        let b3 = on.bias_gradient(inputs.b3, &slope)?;
        let to_gate = Weight { mat: of.w3.mat(), parameter: inputs.w3 };
        let (w3, slope) = on.silu_backward(&second, &of.b2, slope, to_gate)?;

        let b2 = on.bias_gradient(inputs.b2, &slope)?;
        let to_second = Weight { mat: of.w2.mat(), parameter: inputs.w2 };
        let (w2, [slope, of_row]) = on.shared_silu_backward(&first, &row, &of.b1, slope, to_second)?;

        let b1 = on.bias_gradient(inputs.b1, &of_row)?;
        let dc = inputs.c.track_op().then(|| on.back(of_row.array.mat(), right)).transpose()?;
        let c = dc.map(|dc| on.gradient(dc, inputs.c)).transpose()?;
        let to_first = Weight { mat: left, parameter: inputs.w1 };
        let of_c = (of_row.array.mat(), of.c.mat());
        let of_norm = on.layer_norm_backward(&of.x, &norm, slope, to_first, of_c, &dy)?;
        let (w1, [norm, norm_bias]) = (of_norm.after, of_norm.parameters);
        let x = inputs.x.track_op().then(|| on.gradient(of_norm.dx, inputs.x)).transpose()?;
        Ok(Inputs { x, c, norm, norm_bias, w1, b1, w2, b2, w3, b3, w4, b4 }.list())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device;
    use candle_core::{Device, Var};

    /// Through the operator itself: candle's own sums fail for empty tensors on a GPU.
    fn empty_batches<P: Blocks>(device: &Device) {
        let ones = |shape: &[usize]| {
            let count = shape.iter().product();
            Var::from_tensor(&device::upload(&vec![1f32; count], shape, device).unwrap()).unwrap()
        };
        let d = 4;
        for (r, n) in [(0, 3), (2, 0)] {
            let layers: [&[usize]; 10] =
                [&[d], &[d], &[d, 2 * d], &[d], &[d, d], &[d], &[2 * d, d], &[2 * d], &[d, d], &[d]];
            let shapes: [&[usize]; 2] = [&[r, n, d], &[r, d]];
            let inputs: Vec<Tensor> =
                shapes.into_iter().chain(layers).map(|shape| ones(shape).as_tensor().clone()).collect();
            let block = EnergyBlock { eps: 1e-5, keep: true, kept: Saved::new() };
            let place = P::of(OP, &[&inputs[0]]).unwrap();
            let (_, shape) = place.forward(&block, &inputs).unwrap();
            assert_eq!(shape.dims(), [r, n, d]);
            let gradients = place.backward(&block, &inputs, &inputs[0]).unwrap();
            for (gradient, input) in gradients.into_iter().zip(&inputs) {
                let gradient = gradient.unwrap().to_device(&Device::Cpu).unwrap();
                assert_eq!(gradient.dims(), input.dims());
                assert!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|&g| g == 0.0));
            }
        }
    }

    #[test]
    fn empty_batches_give_gradients_of_zero() {
        empty_batches::<Cpu>(&Device::Cpu);
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn empty_batches_give_gradients_of_zero_on_a_gpu() {
        if let Err(reason) = device::gpus() {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: {reason} (needs a GPU)");
            return;
        }
        empty_batches::<crate::cuda::Gpu>(&device::open(device::Choice::Cuda(0)).unwrap());
    }
}
