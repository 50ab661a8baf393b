//! Twin of `../energy_block.rs` on `kernels/energy_block.cu` and cuBLAS.
//!
//! What bounds a block beside its products is memory: R·N rows of D pass by in every step. So biases are added
//! where a product is read anyway, and the backward kernels write the activations again that the gradients
//! of the weights need. In rows of D read and written (each of R·N), beside those of the products:
//!
//! ```text
//! forward   norm 2, two SiLU 4, gate 3, residual 2
//! backward  gate 6, two SiLU 8, norm 5 and its sums 2, sum for b₄ 1
//! kept      4: h W₁ₗᵀ, input of the second SiLU, [g | u], all without their biases
//! ```

use super::copies::{Weight, weight};
use super::energy_block_parts as parts;
use super::gpu::failed;
use super::gradients::{gradient_of, put, put_part};
use super::matrix::{Mat, matmul, product};
use super::operator::{Operator, apply};
use super::rows::column_sums;
use super::{Element, Gpu, layer_norm, view};
use crate::EnergyBlockWeights;
use crate::storage::{Saved, error};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};

const OP: &str = "energy_block";

/// x `[R, N, D]`, c `[R, D]`, checked by the caller.
pub(crate) fn energy_block(x: &Tensor, c: &Tensor, w: EnergyBlockWeights<'_>, eps: f64) -> Result<Tensor> {
    let weights = [w.norm, w.first, w.second, w.third, w.down];
    let inputs: Vec<&dyn crate::Operand> = [x as &dyn crate::Operand, c].into_iter().chain(weights.into_iter().flatten()).collect();
    let keep = inputs.iter().any(|t| t.tensor().track_op());
    apply(EnergyBlock { eps, keep, kept: Saved::new() }, &inputs)
}

struct EnergyBlock {
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    kept: Saved<Kept>,
}

/// What the backward pass needs beside the inputs; none has its bias yet.
#[derive(Clone)]
struct Kept {
    /// h W₁ₗᵀ `[R N, D]`.
    first: Tensor,
    /// c W₁ᵣᵀ `[R, D]`.
    row: Tensor,
    /// Input of the second SiLU `[R N, D]`.
    second: Tensor,
    /// [g | u] `[R N, 2 D]`.
    third: Tensor,
}

/// One thing for each input, in the inputs' order; of a layer its weight, then its bias.
struct Each<X> {
    x: X,
    c: X,
    norm: [X; 2],
    first: [X; 2],
    second: [X; 2],
    third: [X; 2],
    down: [X; 2],
}

impl<'a> Each<&'a Tensor> {
    fn of(inputs: &'a [Tensor]) -> Result<Self> {
        let [x, c, nw, nb, w1, b1, w2, b2, w3, b3, w4, b4] = inputs else {
            return Err(error(OP, format_args!("needs 12 tensors, got {}", inputs.len())));
        };
        Ok(Self { x, c, norm: [nw, nb], first: [w1, b1], second: [w2, b2], third: [w3, b3], down: [w4, b4] })
    }

    fn parameters<T: Element>(&self, gpu: &Gpu) -> Result<Parameters<'a, T>> {
        let both = |[w, b]: [&'a Tensor; 2]| -> Result<[Weight<'a, T>; 2]> {
            Ok([weight(gpu, OP, w)?, weight(gpu, OP, b)?])
        };
        Ok(Parameters {
            norm: both(self.norm)?,
            first: both(self.first)?,
            second: both(self.second)?,
            third: both(self.third)?,
            down: both(self.down)?,
        })
    }
}

impl Each<Option<Tensor>> {
    fn list(self) -> Vec<Option<Tensor>> {
        let layers = [self.norm, self.first, self.second, self.third, self.down];
        [self.x, self.c].into_iter().chain(layers.into_iter().flatten()).collect()
    }
}

/// The parameters in the type of the activations.
struct Parameters<'a, T> {
    norm: [Weight<'a, T>; 2],
    first: [Weight<'a, T>; 2],
    second: [Weight<'a, T>; 2],
    third: [Weight<'a, T>; 2],
    down: [Weight<'a, T>; 2],
}

/// Left and right half of W₁ `[D, 2 D]`.
fn halves<'a, T: Element>(first: &CudaView<'a, T>, d: usize) -> [Mat<'a, T>; 2] {
    [0, d].map(|at| Mat::strided(first.slice(at..), d, d, 2 * d))
}

/// The first `rows·columns` elements.
fn matrix<T: Element>(of: &CudaSlice<T>, rows: usize, columns: usize) -> Mat<'_, T> {
    Mat::new(of.slice(..rows * columns), rows, columns)
}

impl EnergyBlock {
    fn run<T: Element>(&self, gpu: &Gpu, each: &Each<&Tensor>) -> Result<CudaSlice<T>> {
        let (r, n, d) = each.x.dims3()?;
        let rn = r * n;
        let (x, c) = (view::<T>(OP, each.x)?, view::<T>(OP, each.c)?);
        let parameters = each.parameters::<T>(gpu)?;
        let Parameters { norm: [nw, nb], first: [w1, b1], second: [w2, b2], third: [w3, b3], down: [w4, b4] } =
            &parameters;
        let w1 = w1.get();
        let [left, right] = halves(&w1, d);

        let row = product(gpu, &Mat::new(c.get(), r, d), &right.t())?;
        let h = layer_norm::forward(gpu, &x.get(), d, Some(&nw.get()), Some(&nb.get()), self.eps)?;
        let first = product(gpu, &matrix(&h, rn, d), &left.t())?;
        drop(h);
        let u1 = parts::bias_silu(gpu, &first.as_view(), Some(&row.as_view()), &b1.get(), [r, n, d])?;
        let second = product(gpu, &matrix(&u1, rn, d), &Mat::new(w2.get(), d, d).t())?;
        drop(u1);
        let u2 = parts::bias_silu(gpu, &second.as_view(), None, &b2.get(), [1, rn, d])?;
        let third = product(gpu, &matrix(&u2, rn, d), &Mat::new(w3.get(), 2 * d, d).t())?;
        drop(u2);
        let a = parts::bias_swiglu(gpu, &third.as_view(), &b3.get(), [rn, d])?;
        let mut y = parts::add_bias(gpu, &x.get(), &b4.get(), [rn, d])?;
        matmul(gpu, &mut y.as_view_mut(), d, &matrix(&a, rn, d), &Mat::new(w4.get(), d, d).t(), true)?;
        if self.keep {
            self.kept.set(Kept {
                first: gpu.tensor(first, (rn, d))?,
                row: gpu.tensor(row, (r, d))?,
                second: gpu.tensor(second, (rn, d))?,
                third: gpu.tensor(third, (rn, 2 * d))?,
            });
        }
        Ok(y)
    }

    fn gradients<T: Element>(
        &self,
        gpu: &Gpu,
        each: &Each<&Tensor>,
        grad: &Tensor,
    ) -> Result<Each<Option<Tensor>>> {
        let (r, n, d) = each.x.dims3()?;
        let rn = r * n;
        let kept = self.kept.get(OP)?;
        let (first, row) = (view::<T>(OP, &kept.first)?, view::<T>(OP, &kept.row)?);
        let (second, third) = (view::<T>(OP, &kept.second)?, view::<T>(OP, &kept.third)?);
        let (x, c, dy) = (view::<T>(OP, each.x)?, view::<T>(OP, each.c)?, view::<T>(OP, grad)?);
        let parameters = each.parameters::<T>(gpu)?;
        let Parameters { norm: [nw, nb], first: [w1, b1], second: [w2, b2], third: [w3, b3], down: [w4, _] } =
            &parameters;
        let w1 = w1.get();
        let [left, right] = halves(&w1, d);
        // Of a weight from the slope of its layer's output and from its input.
        let of = |weight: &Tensor, slope: &Mat<'_, T>, input: &Option<CudaSlice<T>>| {
            gradient_of(gpu, weight, |into, accumulate| match input {
                Some(input) => matmul(gpu, into, d, &slope.t(), &matrix(input, rn, d), accumulate),
                None => Err(error(OP, "has an input of a product that it did not write")),
            })
        };
        let sums = |bias: &Tensor, sums: &CudaSlice<f32>| {
            gradient_of(gpu, bias, |into, accumulate| put(gpu, into, sums, accumulate))
        };

        let slope = Mat::new(dy.get(), rn, d);
        let da = product(gpu, &slope, &Mat::new(w4.get(), d, d))?;
        let wanted = each.down[0].track_op();
        let gate = parts::bias_swiglu_backward(gpu, &third.get(), &b3.get(), &da, [rn, d], wanted)?;
        drop(da);
        let down = [
            of(each.down[0], &slope, &gate.y)?,
            gradient_of(gpu, each.down[1], |into, accumulate| {
                put(gpu, into, &column_sums(gpu, &dy.get(), d)?, accumulate)
            })?,
        ];

        let slope = matrix(&gate.dx, rn, 2 * d);
        let du2 = product(gpu, &slope, &Mat::new(w3.get(), 2 * d, d))?;
        let wanted = each.third[0].track_op();
        let silu = parts::bias_silu_backward(gpu, &second.get(), &b2.get(), &du2, [rn, d], wanted)?;
        drop(du2);
        let third = [of(each.third[0], &slope, &silu.y)?, sums(each.third[1], &gate.shared)?];
        drop(gate);

        let slope = matrix(&silu.dx, rn, d);
        let du1 = product(gpu, &slope, &Mat::new(w2.get(), d, d))?;
        let wanted = each.second[0].track_op();
        let sizes = [r, n, d];
        let (first, row) = (first.get(), row.get());
        let shared = parts::shared_bias_silu_backward(gpu, &first, &row, &b1.get(), &du1, sizes, wanted)?;
        drop(du1);
        let second = [of(each.second[0], &slope, &shared.y)?, sums(each.second[1], &silu.shared)?];
        drop(silu);

        let slope = matrix(&shared.dx, rn, d);
        let row_slope = Mat::new(shared.shared.slice(..r * d), r, d);
        let dh = product(gpu, &slope, &left)?;
        let [w, b] = [&nw.get(), &nb.get()];
        let wanted = [each.first[0].track_op(), each.norm.iter().any(|t| t.track_op())];
        let norm = parts::norm_backward(gpu, &x.get(), [w, b], &dh, &dy.get(), rn, self.eps, wanted)?;
        drop(dh);
        let dw1 = gradient_of(gpu, each.first[0], |into, accumulate| {
            if rn == 0 && !accumulate {
                gpu.stream().memset_zeros(into).map_err(failed)?;
            }
            if let Some(h) = &norm.y {
                matmul(gpu, into, 2 * d, &slope.t(), &matrix(h, rn, d), accumulate)?;
            }
            let c = Mat::new(c.get(), r, d);
            matmul(gpu, &mut into.slice_mut(d..), 2 * d, &row_slope.t(), &c, accumulate)
        })?;
        let db1 = gradient_of(gpu, each.first[1], |into, accumulate| {
            put(gpu, into, &column_sums(gpu, &shared.shared.slice(..r * d), d)?, accumulate)
        })?;
        let dc = each.c.track_op().then(|| gpu.tensor(product(gpu, &row_slope, &right)?, each.c.shape()));
        let of_norm = |at: usize| {
            gradient_of(gpu, each.norm[at], |into, accumulate| match &norm.sums {
                Some(sums) => put_part(gpu, into, &sums.slice(at * d..(at + 1) * d), accumulate),
                None => Ok(()),
            })
        };
        let of_norm = [of_norm(0)?, of_norm(1)?];
        let dx = each.x.track_op().then(|| gpu.tensor(norm.dx, each.x.shape()));
        Ok(Each {
            x: dx.transpose()?,
            c: dc.transpose()?,
            norm: of_norm,
            first: [dw1, db1],
            second,
            third,
            down,
        })
    }
}

impl Operator for EnergyBlock {
    const NAME: &'static str = OP;

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let each = Each::of(inputs)?;
        with_element!(OP, each.x.dtype(), T => {
            Ok((gpu.storage(self.run::<T>(gpu, &each)?), each.x.shape().clone()))
        })
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let each = Each::of(inputs)?;
        Ok(with_element!(OP, grad.dtype(), T => self.gradients::<T>(gpu, &each, grad))?.list())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{self, Choice};
    use candle_core::{Device, Var};

    #[test]
    fn empty_batches_give_gradients_of_zero() {
        if let Err(reason) = device::gpus() {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: {reason} (needs a GPU)");
            return;
        }
        let device = device::open(Choice::Cuda(0)).unwrap();
        let ones = |shape: &[usize]| {
            let count = shape.iter().product();
            Var::from_tensor(&device::upload(&vec![1f32; count], shape, &device).unwrap()).unwrap()
        };
        let d = 4;
        for (r, n) in [(0, 3), (2, 0)] {
            let layers: [&[usize]; 10] =
                [&[d], &[d], &[d, 2 * d], &[d], &[d, d], &[d], &[2 * d, d], &[2 * d], &[d, d], &[d]];
            let shapes: [&[usize]; 2] = [&[r, n, d], &[r, d]];
            let inputs: Vec<Tensor> =
                shapes.into_iter().chain(layers).map(|shape| ones(shape).as_tensor().clone()).collect();
            let op = EnergyBlock { eps: 1e-5, keep: true, kept: Saved::new() };
            let gpu = Gpu::of(OP, &inputs[0]).unwrap();
            let (output, shape) = op.forward(&gpu, &inputs).unwrap();
            let output = gpu.wrap(output, shape).unwrap();
            let gradients = op.backward(&gpu, &inputs, &output, &inputs[0]).unwrap();
            for (gradient, input) in gradients.into_iter().zip(&inputs) {
                let gradient = gradient.unwrap().to_device(&Device::Cpu).unwrap();
                assert_eq!(gradient.dims(), input.dims());
                assert!(gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().all(|&g| g == 0.0));
            }
        }
    }
}
