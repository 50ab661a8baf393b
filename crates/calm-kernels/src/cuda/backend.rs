//! Blocks' [`Backend`] on a GPU, f32 and bf16: cuBLAS for the products, the kernels of the single operators and of
//! `kernels/energy_block.cu` between them.
//!
//! What bounds a block beside its products is memory. So in the energy block, whose R·N rows of D pass by in every
//! step, biases are added where a product is read anyway, and the backward kernels write the activations again
//! that the gradients of the weights need. In rows of D read and written (each of R·N), beside those of the products:
//!
//! ```text
//! forward   norm 2, two SiLU 4, gate 3, residual 2
//! backward  gate 6, two SiLU 8, norm 5 and its sums 2, sum for b₄ 1
//! kept      4: h W₁ₗᵀ, input of the second SiLU, [g | u], all without their biases
//! ```

use super::attention::{self, Span, spans_of};
use super::buffer::{put, put_part};
use super::copies::{self, weight};
use super::energy_block as parts;
use super::gradients::gradient_of;
use super::matrix::{Mat, matmul, product};
use super::rows::{self, column_sums};
use super::turns::Turns;
use super::{Element, Gpu, View, layer_norm, rms_norm, swiglu, view};
use crate::attention_sizes::AttentionSizes;
use crate::backend::{Affine, Array, Backend, Block, Blocks, Heads, NormGradients, Slope, Weight};
use crate::collector::Collector;
use crate::nary::Place;
use crate::{AttentionShape, Operand};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use candle_core::{CudaStorage, Result, Shape, Storage, Tensor};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

impl Place for Gpu {
    type Storage = CudaStorage;

    fn of(op: &str, operands: &[&dyn Operand]) -> Result<Self> {
        Gpu::of_all(op, operands)
    }

    fn any(storage: CudaStorage) -> Storage {
        Storage::Cuda(storage)
    }

    fn one_number(&self) -> Result<CudaStorage> {
        Ok(self.storage(self.zeros::<f32>(1)?))
    }

    fn sum(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        const OP: &str = "the sum of a gradient's parts";
        let (a, b) = (a.contiguous()?, b.contiguous()?);
        if a.shape() != b.shape() || a.elem_count() == 0 {
            return a.detach() + b.detach();
        }
        with_element!(OP, a.dtype(), T => {
            let (x, y) = (view::<T>(OP, &a)?, view::<T>(OP, &b)?);
            self.tensor(rows::sum_of(self, &x.get(), &y.get())?, a.shape())
        })
    }

    fn is_collected(&self, tensor: &Tensor) -> bool {
        self.context().is_some_and(|context| Collector::of(context).collects(tensor))
    }

    fn collect(&self, parameter: &Tensor, gradient: &Tensor) -> Result<bool> {
        let Some(context) = self.context() else { return Ok(false) };
        Collector::of(context).write(parameter, |buffer, i| buffer.put(i, gradient))
    }
}

/// Which keys each position of a batch sees, and its rotary angles.
pub(crate) struct Positions {
    spans: Arc<CudaSlice<Span>>,
    turns: Turns,
}

impl Blocks for Gpu {
    type Positions = Positions;

    fn positions(&self, op: &str, shape: &AttentionShape<'_>, head: usize) -> Result<Self::Positions> {
        let turns = Turns::new(self, op, shape.positions, head, shape.theta)?;
        Ok(Positions { spans: spans_of(self, op, shape.sees)?, turns })
    }

    fn forward<K: Block<Self>>(&self, block: &K, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        with_element!(K::NAME, inputs[0].dtype(), T => {
            let on = OnGpu::<T>::new(self, K::NAME);
            let y = on.own(block.forward(&on, inputs)?)?;
            Ok((self.storage(y), inputs[0].shape().clone()))
        })
    }

    fn backward<K: Block<Self>>(
        &self,
        block: &K,
        inputs: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        with_element!(K::NAME, grad.dtype(), T => block.backward(&OnGpu::<T>::new(self, K::NAME), inputs, grad))
    }
}

/// The backend in elements of type T, for the operator of this name.
pub(crate) struct OnGpu<T> {
    gpu: Gpu,
    op: &'static str,
    element: PhantomData<T>,
}

/// Numbers in memory of their own (of which the first count), of a tensor, or of a parameter.
pub(crate) enum Data<'t, T> {
    Own(CudaSlice<T>),
    Of(View<'t, T>),
    Parameter(copies::Weight<'t, T>),
}

type Numbers<'t, T> = Array<'t, OnGpu<T>>;

impl<T: Element> Numbers<'_, T> {
    fn view(&self) -> CudaView<'_, T> {
        let all = match &self.data {
            Data::Own(own) => own.as_view(),
            Data::Of(view) => view.get(),
            Data::Parameter(weight) => weight.get(),
        };
        all.slice(..self.rows * self.columns)
    }
}

fn own<T: Element>(data: CudaSlice<T>, rows: usize, columns: usize) -> Numbers<'static, T> {
    Array { data: Data::Own(data), rows, columns }
}

/// Memory like `like`.
fn alike<T: Element>(data: CudaSlice<T>, like: &Numbers<'_, T>) -> Numbers<'static, T> {
    own(data, like.rows, like.columns)
}

impl<T: Element> OnGpu<T> {
    fn new(gpu: &Gpu, op: &'static str) -> Self {
        Self { gpu: gpu.clone(), op, element: PhantomData }
    }

    /// Memory of its own; what is of a tensor is copied.
    fn own(&self, array: Numbers<'_, T>) -> Result<CudaSlice<T>> {
        match array.data {
            Data::Own(own) => Ok(own),
            _ => rows::copy(&self.gpu, &array.view()),
        }
    }

    /// The gradient of a parameter, written into a buffer or a tensor.
    fn gradient_of(
        &self,
        parameter: &Tensor,
        write: impl FnOnce(&mut CudaViewMut<'_, f32>, bool) -> Result<()>,
    ) -> Result<Option<Tensor>> {
        gradient_of(&self.gpu, parameter, write)
    }

    /// The gradient of a parameter that is computed already.
    fn given(&self, parameter: &Tensor, gradient: Option<CudaView<'_, f32>>) -> Result<Option<Tensor>> {
        let Some(gradient) = gradient else { return Ok(None) };
        self.gradient_of(parameter, |into, accumulate| put_part(&self.gpu, into, &gradient, accumulate))
    }

    /// The gradient of a weight from the slope of its layer's output and from the layer's input `u`, which a kernel
    /// has written again if it is asked for.
    fn after(
        &self,
        parameter: &Tensor,
        slope: &Slope<'_, Self>,
        u: Option<CudaSlice<T>>,
        width: usize,
    ) -> Result<Option<Tensor>> {
        let Some(u) = u else { return Ok(None) };
        let u = own(u, slope.array.rows, width);
        self.weight_gradient(parameter, [(slope.array.mat(), u.mat())])
    }
}

impl<T: Element> Backend for OnGpu<T> {
    type Place = Gpu;
    type Data<'t> = Data<'t, T>;
    type Mat<'a> = Mat<'a, T>;
    type Sums = CudaSlice<f32>;

    fn mat<'a>(array: &'a Array<'_, Self>, columns: Range<usize>) -> Mat<'a, T> {
        let data = array.view();
        let from = columns.start.min(array.rows * array.columns);
        Mat::strided(data.slice(from..), array.rows, columns.len(), array.columns)
    }

    fn read<'t>(&self, tensor: &'t Tensor) -> Result<Array<'t, Self>> {
        Ok(Array::of(tensor, Data::Of(view(self.op, tensor)?)))
    }

    fn operand<'t>(&self, tensor: &'t Tensor) -> Result<Array<'t, Self>> {
        Ok(Array::of(tensor, Data::Parameter(weight(&self.gpu, self.op, tensor)?)))
    }

    fn shaped(&self, array: Array<'_, Self>, shape: Shape) -> Result<Tensor> {
        self.gpu.tensor(self.own(array)?, shape)
    }

    fn linear(&self, x: Mat<'_, T>, w: Mat<'_, T>) -> Result<Array<'static, Self>> {
        self.back(x, w.t())
    }

    fn residual(
        &self,
        x: &Array<'_, Self>,
        a: Mat<'_, T>,
        w: Mat<'_, T>,
        bias: Option<&Array<'_, Self>>,
    ) -> Result<Array<'static, Self>> {
        let y = match bias {
            Some(bias) => parts::add_bias(&self.gpu, &x.view(), &bias.view(), [x.rows, x.columns])?,
            None => rows::copy(&self.gpu, &x.view())?,
        };
        self.add_back(alike(y, x), a, w.t())
    }

    fn back(&self, slope: Mat<'_, T>, w: Mat<'_, T>) -> Result<Array<'static, Self>> {
        Ok(own(product(&self.gpu, &slope, &w)?, slope.rows(), w.columns()))
    }

    fn add_back(
        &self,
        to: Array<'static, Self>,
        slope: Mat<'_, T>,
        w: Mat<'_, T>,
    ) -> Result<Array<'static, Self>> {
        let (rows, columns) = (to.rows, to.columns);
        let mut to = self.own(to)?;
        matmul(&self.gpu, &mut to.as_view_mut(), columns, &slope, &w, true)?;
        Ok(own(to, rows, columns))
    }

    fn weight_gradient<const N: usize>(
        &self,
        parameter: &Tensor,
        parts: [(Mat<'_, T>, Mat<'_, T>); N],
    ) -> Result<Option<Tensor>> {
        let width = parts.iter().map(|(_, x)| x.columns()).sum();
        self.gradient_of(parameter, |into, accumulate| {
            let mut from = 0;
            for (slope, x) in &parts {
                let at = from.min(into.len());
                matmul(&self.gpu, &mut into.slice_mut(at..), width, &slope.t(), x, accumulate)?;
                from += x.columns();
            }
            Ok(())
        })
    }

    fn bias_gradient(&self, parameter: &Tensor, slope: &Slope<'_, Self>) -> Result<Option<Tensor>> {
        self.gradient_of(parameter, |into, accumulate| match &slope.sums {
            Some(sums) => put(&self.gpu, into, sums, accumulate),
            None => {
                let sums = column_sums(&self.gpu, &slope.array.view(), slope.array.columns)?;
                put(&self.gpu, into, &sums, accumulate)
            }
        })
    }

    fn rms_norm(&self, x: &Array<'_, Self>, w: &Array<'_, Self>, eps: f64) -> Result<Array<'static, Self>> {
        Ok(alike(rms_norm::forward(&self.gpu, &x.view(), &w.view(), eps)?, x))
    }

    fn rms_norm_backward(
        &self,
        x: &Array<'_, Self>,
        (w, parameter): (&Array<'_, Self>, &Tensor),
        dy: &Array<'_, Self>,
        residual: &Array<'_, Self>,
        eps: f64,
    ) -> Result<(Array<'static, Self>, Option<Tensor>)> {
        let (gpu, wanted) = (&self.gpu, parameter.track_op());
        let (mut dx, dw) = rms_norm::backward(gpu, &x.view(), &w.view(), &dy.view(), eps, wanted)?;
        rows::add_to(gpu, &mut dx, &residual.view())?;
        Ok((alike(dx, x), self.given(parameter, dw.as_ref().map(CudaSlice::as_view))?))
    }

    fn swiglu(&self, g: &Array<'_, Self>, u: &Array<'_, Self>) -> Result<Array<'static, Self>> {
        Ok(alike(swiglu::forward(&self.gpu, &g.view(), &u.view(), g.columns)?, g))
    }

    fn swiglu_backward(
        &self,
        g: &Array<'_, Self>,
        u: &Array<'_, Self>,
        dy: &Array<'_, Self>,
    ) -> Result<[Array<'static, Self>; 2]> {
        let (dg, du) = swiglu::backward(&self.gpu, &g.view(), &u.view(), &dy.view(), g.columns)?;
        Ok([alike(dg, g), alike(du, u)])
    }

    fn rotate(
        &self,
        by: &Positions,
        x: &Array<'_, Self>,
        heads: usize,
        back: bool,
    ) -> Result<Array<'static, Self>> {
        Ok(alike(by.turns.rotate(&self.gpu, &x.view(), heads, back)?, x))
    }

    fn attend(
        &self,
        sizes: AttentionSizes,
        by: &Positions,
        [q, k, v]: [&Array<'_, Self>; 3],
        keep: bool,
    ) -> Result<(Array<'static, Self>, Option<Tensor>)> {
        let qkv = [&q.view(), &k.view(), &v.view()];
        let (out, log_sums) = attention::forward(&self.gpu, self.op, sizes, &by.spans, qkv, keep)?;
        let entries = sizes.batch * sizes.queries * sizes.heads;
        Ok((alike(out, q), keep.then(|| self.gpu.tensor(log_sums, entries)).transpose()?))
    }

    fn attend_backward(
        &self,
        sizes: AttentionSizes,
        by: &Positions,
        kept: &Heads<'_, Self>,
        grad: &Array<'_, Self>,
    ) -> Result<[Array<'static, Self>; 3]> {
        let Heads { q, k, v, out, log_sums } = kept;
        let log_sums = view::<f32>(self.op, log_sums)?;
        let kept = attention::Forward {
            q: q.view(),
            k: k.view(),
            v: v.view(),
            out: out.view(),
            log_sums: log_sums.get(),
        };
        let (dq, dk, dv) = attention::backward(&self.gpu, self.op, sizes, &by.spans, &kept, &grad.view())?;
        Ok([alike(dq, q), alike(dk, k), alike(dv, v)])
    }

    fn before_activation(
        &self,
        x: Mat<'_, T>,
        w: Mat<'_, T>,
        _bias: &Array<'_, Self>,
    ) -> Result<Array<'static, Self>> {
        self.linear(x, w)
    }

    fn silu(&self, x: &Array<'_, Self>, bias: &Array<'_, Self>) -> Result<Array<'static, Self>> {
        let sizes = [1, x.rows, x.columns];
        Ok(alike(parts::bias_silu(&self.gpu, &x.view(), None, &bias.view(), sizes)?, x))
    }

    fn gate(&self, x: &Array<'_, Self>, bias: &Array<'_, Self>) -> Result<Array<'static, Self>> {
        let (rows, width) = (x.rows, x.columns / 2);
        Ok(own(parts::bias_swiglu(&self.gpu, &x.view(), &bias.view(), [rows, width])?, rows, width))
    }

    fn shared_silu(
        &self,
        x: &Array<'_, Self>,
        row: &Array<'_, Self>,
        bias: &Array<'_, Self>,
    ) -> Result<Array<'static, Self>> {
        let sizes = shared_sizes(x, row);
        Ok(alike(parts::bias_silu(&self.gpu, &x.view(), Some(&row.view()), &bias.view(), sizes)?, x))
    }

    fn silu_backward(
        &self,
        x: &Array<'_, Self>,
        bias: &Array<'_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, Slope<'static, Self>)> {
        let du = product(&self.gpu, &slope.array.mat(), &w.mat)?;
        let (sizes, wanted) = ([x.rows, x.columns], w.parameter.track_op());
        let to = parts::bias_silu_backward(&self.gpu, &x.view(), &bias.view(), &du, sizes, wanted)?;
        drop(du);
        let dw = self.after(w.parameter, &slope, to.y, x.columns)?;
        Ok((dw, Slope { array: alike(to.dx, x), sums: Some(to.shared) }))
    }

    fn gate_backward(
        &self,
        x: &Array<'_, Self>,
        bias: &Array<'_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, Slope<'static, Self>)> {
        let du = product(&self.gpu, &slope.array.mat(), &w.mat)?;
        let (sizes, wanted) = ([x.rows, x.columns / 2], w.parameter.track_op());
        let to = parts::bias_swiglu_backward(&self.gpu, &x.view(), &bias.view(), &du, sizes, wanted)?;
        drop(du);
        let dw = self.after(w.parameter, &slope, to.y, x.columns / 2)?;
        Ok((dw, Slope { array: alike(to.dx, x), sums: Some(to.shared) }))
    }

    fn shared_silu_backward(
        &self,
        x: &Array<'_, Self>,
        row: &Array<'_, Self>,
        bias: &Array<'_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, [Slope<'static, Self>; 2])> {
        let du = product(&self.gpu, &slope.array.mat(), &w.mat)?;
        let (sizes, wanted) = (shared_sizes(x, row), w.parameter.track_op());
        let (x_, row_, bias) = (x.view(), row.view(), bias.view());
        let to = parts::shared_bias_silu_backward(&self.gpu, &x_, &row_, &bias, &du, sizes, wanted)?;
        drop(du);
        let dw = self.after(w.parameter, &slope, to.y, x.columns)?;
        let slopes = [alike(to.dx, x), alike(to.shared, row)];
        Ok((dw, slopes.map(|array| Slope { array, sums: None })))
    }

    fn layer_norm(&self, x: &Array<'_, Self>, norm: &Affine<'_, '_, Self>) -> Result<Array<'static, Self>> {
        let [w, b] = norm.arrays.map(Array::view);
        Ok(alike(layer_norm::forward(&self.gpu, &x.view(), x.columns, Some(&w), Some(&b), norm.eps)?, x))
    }

    fn layer_norm_backward(
        &self,
        x: &Array<'_, Self>,
        norm: &Affine<'_, '_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
        beside: (Mat<'_, T>, Mat<'_, T>),
        residual: &Array<'_, Self>,
    ) -> Result<NormGradients<Self>> {
        let (gpu, d) = (&self.gpu, x.columns);
        let dh = product(gpu, &slope.array.mat(), &w.mat)?;
        let [weight, bias] = norm.arrays.map(Array::view);
        let wanted = [w.parameter.track_op(), norm.parameters.iter().any(|t| t.track_op())];
        let to = parts::norm_backward(
            gpu,
            &x.view(),
            [&weight, &bias],
            &dh,
            &residual.view(),
            x.rows,
            norm.eps,
            wanted,
        )?;
        drop(dh);
        let dw = match to.y {
            Some(h) => {
                let h = alike(h, x);
                self.weight_gradient(w.parameter, [(slope.array.mat(), h.mat()), beside])?
            }
            None => None,
        };
        let sums = |at: usize| to.sums.as_ref().map(|sums| sums.slice(at * d..(at + 1) * d));
        let [weight, bias] = norm.parameters;
        let parameters = [self.given(weight, sums(0))?, self.given(bias, sums(1))?];
        Ok(NormGradients { after: dw, dx: alike(to.dx, x), parameters })
    }
}

/// [R, N, D] of x `[R N, D]` and row `[R, D]`.
fn shared_sizes<T: Element>(x: &Numbers<'_, T>, row: &Numbers<'_, T>) -> [usize; 3] {
    [row.rows, x.rows / row.rows.max(1), x.columns]
}
