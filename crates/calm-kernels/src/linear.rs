//! Linear layer: y = x Wᵀ + b, with its bias and backward products in the layout that the parameters
//! and activations already have (no transposed copies).
//!
//! ```text
//! y  = x Wᵀ + 1 bᵀ     x [R, I], W [O, I], b [O], y [R, O]
//! dx = dy W
//! dW = dyᵀ x
//! db = Σ_r dy_r        (blocks of rows, combined in order)
//! ```

use crate::buffer::put;
use crate::collector::Home;
use crate::context::Operand;
use crate::gradients::gradient_of;
use crate::products::Products;
use crate::rows;
use crate::simd::{self, Mat, Real, rows_per_block};
use crate::storage::{error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

const OP: &str = "linear";

/// x Wᵀ + b for x `[.., I]`, w `[O, I]`, b `[O]`: a tensor `[.., O]`.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU; the inputs may have any strides. Only gradients of inputs
/// that lead to a variable are computed.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn linear(x: &Tensor, weight: &dyn Operand, bias: Option<&dyn Operand>) -> Result<Tensor> {
    let (w, b) = (weight.tensor(), bias.map(|b| b.tensor()));
    let fits = match (x.dims(), w.dims()) {
        ([.., i], [o, wi]) => i == wi && b.is_none_or(|b| b.dims() == [*o]),
        _ => false,
    };
    if !fits {
        return Err(error(
            OP,
            format_args!(
                "x {:?} and w {:?} with b {:?} do not fit: expected x [.., I], w [O, I], b [O]",
                x.dims(),
                w.dims(),
                b.map(Tensor::dims)
            ),
        ));
    }
    on_gpu!(x, crate::cuda::linear::linear(x, weight, bias));
    let (x, w) = (x.contiguous()?, w.contiguous()?);
    let op = Linear { home: Home::of(&std::iter::once(weight).chain(bias).collect::<Vec<_>>()) };
    match b {
        Some(b) => x.apply_op3(&w, &b.contiguous()?, op),
        None => x.apply_op2(&w, op),
    }
}

/// The fewest rows x of a product x Wᵀ, W `[outputs, inputs]`, from which on each row of the result is the same to the
/// bit on the CPU, whatever stands in the other rows and however many there are. Below them the matrix product goes
/// other ways, which round differently: for one row, for few numbers, and for a few rows that are long.
pub fn steady_rows(outputs: usize, inputs: usize) -> usize {
    /// Numbers up to which a product is made of dot products.
    const FEW: usize = 16 * 16;
    /// Rows and outputs up to which sums are cut in pieces of [`PIECE`], not in equal ones.
    const SMALL: usize = 64;
    const PIECE: usize = 512;
    let beyond_few = FEW / outputs.max(1) + 1;
    let beyond_small = if outputs <= SMALL && inputs > PIECE { SMALL + 1 } else { 0 };
    beyond_few.max(beyond_small).max(2)
}

struct Linear {
    home: Option<Home>,
}

/// Number of rows R, inputs I and outputs O.
fn sizes(x: &Shape, w: &Shape) -> Result<(usize, usize, usize)> {
    let (outputs, inputs) = w.dims2()?;
    let leading: usize = x.dims()[..x.rank() - 1].iter().product();
    Ok((leading, inputs, outputs))
}

fn forward<T: Real>(
    products: Products,
    x: &[T],
    w: &[T],
    b: Option<&[T]>,
    (r, i, o): (usize, usize, usize),
) -> Vec<T> {
    let (x, w) = (Mat::new(x, r, i), Mat::new(w, o, i).t());
    let Some(b) = b else {
        return rows::product(products, r * o, x, w);
    };
    let mut y = rows::fill(r, o, rows_per_block(o), |_, block| {
        for row in block.chunks_exact_mut(o) {
            row.copy_from_slice(b);
        }
    });
    products.matmul(&mut y, x, w, true, gemm::Parallelism::Rayon(0));
    y
}

impl Linear {
    fn run(
        &self,
        (x, lx): (&CpuStorage, &Layout),
        (w, lw): (&CpuStorage, &Layout),
        b: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = sizes(lx.shape(), lw.shape())?;
        let mut dims = lx.dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = sizes.2;
        }
        with_float!(OP, x.dtype(), T => {
            let b = b.map(|(s, l)| slice::<T>(OP, s, l)).transpose()?;
            let products = Home::products(self.home.as_ref());
            let y = forward::<T>(products, slice(OP, x, lx)?, slice(OP, w, lw)?, b, sizes);
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(y), Shape::from(dims)))
        })
    }

    /// (dx, dW), each only if its input leads to a variable.
    fn products(&self, x: &Tensor, w: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (r, i, o) = sizes(x.shape(), w.shape())?;
        with_float!(OP, x.dtype(), T => {
            let (xs, ws, dys) = (view::<T>(OP, x)?, view::<T>(OP, w)?, view::<T>(OP, dy)?);
            let grad = Mat::new(&dys, r, o);
            let dx = if x.track_op() {
                Some(tensor(rows::product(Products::Fast, r * i, grad, Mat::new(&ws, o, i)), x.shape())?)
            } else {
                None
            };
            let dw = gradient_of::<T>(self.home.as_ref(), w, |dw, accumulate| {
                simd::matmul(dw, grad.t(), Mat::new(&xs, r, i), accumulate, gemm::Parallelism::Rayon(0));
            })?;
            Ok((dx, dw))
        })
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((s1, l1), (s2, l2), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.products(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((s1, l1), (s2, l2), Some((s3, l3)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let (dx, dw) = self.products(x, w, &grad)?;
        let db = with_float!(OP, grad.dtype(), T => {
            let (dy, o) = (view(OP, &grad)?, b.dims1()?);
            gradient_of::<T>(self.home.as_ref(), b, |db, accumulate| {
                put(db, &rows::column_sums(&dy, o), accumulate);
            })
        })?;
        Ok((dx, dw, db))
    }
}
