//! The CPU as operators see it, and blocks' [`Backend`] on it: f32 and f64.

use crate::attention;
use crate::attention_sizes::{AttentionSizes, Span};
use crate::backend::{Affine, Array, Backend, Block, Blocks, Heads, NormGradients, Slope, Weight};
use crate::buffer::put;
use crate::collector::Home;
use crate::gradients::gradient_of;
use crate::nary::Place;
use crate::products::Products;
use crate::rotary::Rotary;
use crate::rows;
use crate::simd::{Mat, Real, matmul, matmul_strided};
use crate::storage::{self, View, error, ids, view};
use crate::{AttentionShape, Operand};
use crate::{layer_norm, rms_norm, silu, swiglu, with_float};
use candle_core::{CpuStorage, Result, Shape, Storage, Tensor, WithDType};
use gemm::Parallelism::Rayon;
use std::marker::PhantomData;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// The CPU, with what an operator keeps of its context.
#[derive(Clone)]
pub(crate) struct Cpu {
    home: Option<Arc<Home>>,
}

impl Place for Cpu {
    type Storage = CpuStorage;

    fn of(op: &str, operands: &[&dyn Operand]) -> Result<Self> {
        match operands.first().map(|operand| operand.tensor().device()) {
            Some(device) if !device.is_cpu() => {
                Err(error(op, format_args!("runs on the CPU, got a tensor on {:?}", device.location())))
            }
            _ => Ok(Self { home: Home::of(operands).map(Arc::new) }),
        }
    }

    fn any(storage: CpuStorage) -> Storage {
        Storage::Cpu(storage)
    }

    fn one_number(&self) -> Result<CpuStorage> {
        Ok(CpuStorage::F32(vec![0.0]))
    }

    fn sum(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        a.detach() + b.detach()
    }

    /// All inputs are in the graph: what no buffer takes, candle adds up.
    fn is_collected(&self, _: &Tensor) -> bool {
        false
    }

    fn collect(&self, _: &Tensor, _: &Tensor) -> Result<bool> {
        Ok(false)
    }
}

/// Which keys each position of a batch sees, and its rotary angles.
pub(crate) struct Positions {
    spans: Arc<Vec<Span>>,
    rotary: Rotary,
}

impl Blocks for Cpu {
    type Positions = Positions;

    fn positions(&self, op: &str, shape: &AttentionShape<'_>, head: usize) -> Result<Self::Positions> {
        let context = self.home.as_ref().map(|home| &home.context);
        let rotary = Rotary::new(context, &ids(op, shape.positions)?, head, shape.theta);
        Ok(Positions { spans: shape.sees.spans(op)?, rotary })
    }

    fn forward<K: Block<Self>>(&self, block: &K, inputs: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        with_float!(K::NAME, inputs[0].dtype(), T => {
            let y = block.forward(&OnCpu::<T>::new(self, K::NAME), inputs)?.data.own();
            Ok((<T as WithDType>::to_cpu_storage_owned(y), inputs[0].shape().clone()))
        })
    }

    fn backward<K: Block<Self>>(
        &self,
        block: &K,
        inputs: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        with_float!(K::NAME, grad.dtype(), T => block.backward(&OnCpu::<T>::new(self, K::NAME), inputs, grad))
    }
}

/// The backend in elements of type T, for the operator of this name.
pub(crate) struct OnCpu<T> {
    cpu: Cpu,
    op: &'static str,
    element: PhantomData<T>,
}

/// Numbers of a vector or of a tensor.
pub(crate) enum Data<'t, T> {
    Own(Vec<T>),
    Of(View<'t, T>),
}

impl<T: Real> Deref for Data<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Own(own) => own,
            Self::Of(view) => view,
        }
    }
}

impl<T: Real> Data<'_, T> {
    /// As a vector; what is of a tensor is copied.
    fn own(self) -> Vec<T> {
        match self {
            Self::Own(own) => own,
            Self::Of(view) => view.to_vec(),
        }
    }
}

type Numbers<'t, T> = Array<'t, OnCpu<T>>;

fn own<T: Real>(data: Vec<T>, rows: usize, columns: usize) -> Numbers<'static, T> {
    Array { data: Data::Own(data), rows, columns }
}

/// A vector like `like`.
fn alike<T: Real>(data: Vec<T>, like: &Numbers<'_, T>) -> Numbers<'static, T> {
    own(data, like.rows, like.columns)
}

fn slope<T: Real>(array: Numbers<'static, T>) -> Slope<'static, OnCpu<T>> {
    Slope { array, sums: None }
}

impl<T: Real> OnCpu<T> {
    fn new(cpu: &Cpu, op: &'static str) -> Self {
        Self { cpu: cpu.clone(), op, element: PhantomData }
    }

    fn products(&self) -> Products {
        Home::products(self.cpu.home.as_deref())
    }

    /// The gradient of a parameter, written into a buffer or a tensor.
    fn gradient_of(&self, parameter: &Tensor, write: impl FnOnce(&mut [T], bool)) -> Result<Option<Tensor>> {
        gradient_of(self.cpu.home.as_deref(), parameter, write)
    }

    /// The gradient of a parameter that is computed already.
    fn given(&self, parameter: &Tensor, gradient: &[T]) -> Result<Option<Tensor>> {
        self.gradient_of(parameter, |into, accumulate| put(into, gradient, accumulate))
    }

    /// From u = act(x) and the slope after w: the gradient of w, and du in the memory of u.
    fn through(
        &self,
        u: Vec<T>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, Vec<T>)> {
        let u = own(u, slope.array.rows, w.mat.columns());
        let dw = self.weight_gradient(w.parameter, [(slope.array.mat(), u.mat())])?;
        let mut du = u.data.own();
        matmul(&mut du, slope.array.mat(), w.mat, false, Rayon(0));
        Ok((dw, du))
    }
}

impl<T: Real> Backend for OnCpu<T> {
    type Place = Cpu;
    type Data<'t> = Data<'t, T>;
    type Mat<'a> = Mat<'a, T>;
    type Sums = Vec<T>;

    fn mat<'a>(array: &'a Array<'_, Self>, columns: Range<usize>) -> Mat<'a, T> {
        let data: &[T] = &array.data;
        let from = columns.start.min(data.len());
        Mat::strided(&data[from..], array.rows, columns.len(), array.columns, 1)
    }

    fn read<'t>(&self, tensor: &'t Tensor) -> Result<Array<'t, Self>> {
        Ok(Array::of(tensor, Data::Of(view(self.op, tensor)?)))
    }

    fn operand<'t>(&self, tensor: &'t Tensor) -> Result<Array<'t, Self>> {
        self.read(tensor)
    }

    fn shaped(&self, array: Array<'_, Self>, shape: Shape) -> Result<Tensor> {
        storage::tensor(array.data.own(), shape)
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
        let mut y = rows::copy(&x.data);
        if let Some(bias) = bias {
            rows::add_row(&mut y, &bias.data);
        }
        self.products().matmul(&mut y, a, w.t(), true, Rayon(0));
        Ok(alike(y, x))
    }

    fn back(&self, slope: Mat<'_, T>, w: Mat<'_, T>) -> Result<Array<'static, Self>> {
        let (rows, columns) = (slope.rows(), w.columns());
        Ok(own(rows::product(self.products(), rows * columns, slope, w), rows, columns))
    }

    fn add_back(
        &self,
        to: Array<'static, Self>,
        slope: Mat<'_, T>,
        w: Mat<'_, T>,
    ) -> Result<Array<'static, Self>> {
        let (rows, columns) = (to.rows, to.columns);
        let mut to = to.data.own();
        matmul(&mut to, slope, w, true, Rayon(0));
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
            for (slope, x) in parts {
                let at = from.min(into.len());
                matmul_strided(&mut into[at..], width, slope.t(), x, accumulate, Rayon(0));
                from += x.columns();
            }
        })
    }

    fn bias_gradient(&self, parameter: &Tensor, slope: &Slope<'_, Self>) -> Result<Option<Tensor>> {
        self.gradient_of(parameter, |into, accumulate| match &slope.sums {
            Some(sums) => put(into, sums, accumulate),
            None => put(into, &rows::column_sums(&slope.array.data, slope.array.columns), accumulate),
        })
    }

    fn rms_norm(&self, x: &Array<'_, Self>, w: &Array<'_, Self>, eps: f64) -> Result<Array<'static, Self>> {
        Ok(alike(rms_norm::forward(&x.data, &w.data, eps), x))
    }

    fn rms_norm_backward(
        &self,
        x: &Array<'_, Self>,
        (w, parameter): (&Array<'_, Self>, &Tensor),
        dy: &Array<'_, Self>,
        residual: &Array<'_, Self>,
        eps: f64,
    ) -> Result<(Array<'static, Self>, Option<Tensor>)> {
        let (mut dx, dw) = rms_norm::backward(&x.data, &w.data, &dy.data, eps);
        rows::add_to(&mut dx, &residual.data);
        Ok((alike(dx, x), self.given(parameter, &dw)?))
    }

    fn swiglu(&self, g: &Array<'_, Self>, u: &Array<'_, Self>) -> Result<Array<'static, Self>> {
        Ok(alike(swiglu::forward(&g.data, &u.data), g))
    }

    fn swiglu_backward(
        &self,
        g: &Array<'_, Self>,
        u: &Array<'_, Self>,
        dy: &Array<'_, Self>,
    ) -> Result<[Array<'static, Self>; 2]> {
        let (dg, du) = swiglu::backward(&g.data, &u.data, &dy.data);
        Ok([alike(dg, g), alike(du, u)])
    }

    fn rotate(
        &self,
        by: &Positions,
        x: &Array<'_, Self>,
        heads: usize,
        back: bool,
    ) -> Result<Array<'static, Self>> {
        let dims = [x.rows, 1, heads, x.columns / heads.max(1)];
        let y =
            if back { by.rotary.inverse().rotate(&x.data, &dims) } else { by.rotary.rotate(&x.data, &dims) };
        Ok(alike(y, x))
    }

    fn attend(
        &self,
        sizes: AttentionSizes,
        by: &Positions,
        [q, k, v]: [&Array<'_, Self>; 3],
        keep: bool,
    ) -> Result<(Array<'static, Self>, Option<Tensor>)> {
        let (out, log_sums) =
            attention::attend(sizes, &by.spans, self.products(), (&q.data, &k.data, &v.data), &[], keep);
        let entries = log_sums.len();
        Ok((alike(out, q), keep.then(|| storage::tensor(log_sums, entries)).transpose()?))
    }

    fn attend_backward(
        &self,
        sizes: AttentionSizes,
        by: &Positions,
        kept: &Heads<'_, Self>,
        grad: &Array<'_, Self>,
    ) -> Result<[Array<'static, Self>; 3]> {
        let Heads { q, k, v, out, log_sums } = kept;
        let log_sums = view::<T>(self.op, log_sums)?;
        let kept =
            attention::Forward { q: &q.data, k: &k.data, v: &v.data, out: &out.data, log_sums: &log_sums };
        let (dq, dk, dv) = attention::backward(sizes, &by.spans, &kept, &grad.data);
        Ok([alike(dq, q), alike(dk, k), alike(dv, v)])
    }

    fn before_activation(
        &self,
        x: Mat<'_, T>,
        w: Mat<'_, T>,
        bias: &Array<'_, Self>,
    ) -> Result<Array<'static, Self>> {
        let mut y = rows::repeat(&bias.data, x.rows());
        self.products().matmul(&mut y, x, w.t(), true, Rayon(0));
        Ok(own(y, x.rows(), bias.columns))
    }

    fn silu(&self, x: &Array<'_, Self>, _: &Array<'_, Self>) -> Result<Array<'static, Self>> {
        Ok(alike(silu::forward(&x.data), x))
    }

    fn gate(&self, x: &Array<'_, Self>, _: &Array<'_, Self>) -> Result<Array<'static, Self>> {
        let width = x.columns / 2;
        Ok(own(swiglu::packed_forward(&x.data, width), x.rows, width))
    }

    fn shared_silu(
        &self,
        x: &Array<'_, Self>,
        row: &Array<'_, Self>,
        _: &Array<'_, Self>,
    ) -> Result<Array<'static, Self>> {
        Ok(alike(silu::add_forward(&x.data, &row.data, shared_sizes(x, row)), x))
    }

    fn silu_backward(
        &self,
        x: &Array<'_, Self>,
        _: &Array<'_, Self>,
        after: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, Slope<'static, Self>)> {
        let (dw, du) = self.through(silu::forward(&x.data), after, w)?;
        Ok((dw, slope(alike(silu::backward(&x.data, &du), x))))
    }

    fn gate_backward(
        &self,
        x: &Array<'_, Self>,
        _: &Array<'_, Self>,
        after: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, Slope<'static, Self>)> {
        let width = x.columns / 2;
        let (dw, du) = self.through(swiglu::packed_forward(&x.data, width), after, w)?;
        Ok((dw, slope(alike(swiglu::packed_backward(&x.data, &du, width), x))))
    }

    fn shared_silu_backward(
        &self,
        x: &Array<'_, Self>,
        row: &Array<'_, Self>,
        _: &Array<'_, Self>,
        after: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, [Slope<'static, Self>; 2])> {
        let sizes = shared_sizes(x, row);
        let (dw, du) = self.through(silu::add_forward(&x.data, &row.data, sizes), after, w)?;
        let (dx, drow) = if du.is_empty() {
            (Vec::new(), vec![T::ZERO; row.data.len()])
        } else {
            silu::add_backward(&x.data, &row.data, &du, sizes)
        };
        Ok((dw, [slope(alike(dx, x)), slope(alike(drow, row))]))
    }

    fn layer_norm(&self, x: &Array<'_, Self>, norm: &Affine<'_, '_, Self>) -> Result<Array<'static, Self>> {
        let [w, b] = norm.arrays;
        Ok(alike(layer_norm::forward(&x.data, x.columns, Some(&w.data), Some(&b.data), norm.eps), x))
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
        let h = self.layer_norm(x, norm)?;
        let dw = self.weight_gradient(w.parameter, [(slope.array.mat(), h.mat()), beside])?;
        let mut dh = h.data.own();
        matmul(&mut dh, slope.array.mat(), w.mat, false, Rayon(0));
        let weight: &[T] = &norm.arrays[0].data;
        let (mut dx, sums) = layer_norm::backward(&x.data, x.columns, Some(weight), &dh, norm.eps, true);
        rows::add_to(&mut dx, &residual.data);
        let (of_weight, of_bias) = sums.split_at(sums.len() / 2);
        let [weight, bias] = norm.parameters;
        let parameters = [self.given(weight, of_weight)?, self.given(bias, of_bias)?];
        Ok(NormGradients { after: dw, dx: alike(dx, x), parameters })
    }
}

/// (R, N, D) of x `[R N, D]` and row `[R, D]`.
fn shared_sizes<T: Real>(x: &Numbers<'_, T>, row: &Numbers<'_, T>) -> (usize, usize, usize) {
    (row.rows, x.rows / row.rows.max(1), x.columns)
}
