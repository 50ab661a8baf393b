//! What the blocks of a layer ([`crate::mlp_block`], [`crate::attention_block`], [`crate::energy_block`]) are written
//! over, so that each formula stands once for the CPU and for a GPU.
//!
//! ```text
//! mlp_block.rs  attention_block.rs  energy_block.rs     formulas: impl Block
//!        └────────────────┼────────────────┘
//!                      Backend                          what they ask for, in one element type
//!               ┌─────────┴─────────┐
//!         cpu.rs: OnCpu<T>   cuda/backend.rs: OnGpu<T>  single operators, products, gradients
//! ```
//! Only for these three: a single operator has a file of its own on each side. Where the two sides take another way to
//! be fast (a bias inside of a product or inside of a kernel, memory used again or written once more), a
//! method is as coarse as that way needs.

use crate::attention_sizes::{AttentionSizes, Sight};
use crate::nary::{Operator, Place};
use candle_core::{Result, Shape, Tensor};
use std::ops::Range;

/// What tells heads and positions apart.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads Hkv, a divisor of H.
    pub kv_heads: usize,
    /// Base of the rotary angles.
    pub theta: f64,
    /// Of the norm.
    pub eps: f64,
    /// U32 `[B, S]`, for the rotary angles.
    pub positions: &'a Tensor,
    /// Which keys a position sees.
    pub sees: Sight<'a>,
}

/// A place that blocks run at.
pub(crate) trait Blocks: Place {
    /// What attention needs of a batch beside q, k and v: which keys a position sees, and the rotary angles.
    type Positions: Send + Sync + 'static;

    /// From the positions of `shape` and what they see, for heads of `head` numbers.
    fn positions(&self, op: &str, shape: &AttentionShape<'_>, head: usize) -> Result<Self::Positions>;

    /// [`Block::forward`] in the element type of the first input, and that input's shape.
    fn forward<K: Block<Self>>(&self, block: &K, inputs: &[Tensor]) -> Result<(Self::Storage, Shape)>;

    /// [`Block::backward`] in the element type of `grad`.
    fn backward<K: Block<Self>>(
        &self,
        block: &K,
        inputs: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

/// The formula of a block.
pub(crate) trait Block<P: Blocks>: Send + Sync + 'static {
    /// Its name in errors.
    const NAME: &'static str;

    /// y, of the first input's shape.
    fn forward<B: Backend<Place = P>>(&self, on: &B, inputs: &[Tensor]) -> Result<Array<'static, B>>;

    /// A gradient for each input, as [`Operator::backward`] gives them.
    fn backward<B: Backend<Place = P>>(
        &self,
        on: &B,
        inputs: &[Tensor],
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

impl<P: Blocks, K: Block<P>> Operator<P> for K {
    const NAME: &'static str = K::NAME;

    fn forward(&self, place: &P, inputs: &[Tensor]) -> Result<(P::Storage, Shape)> {
        place.forward(self, inputs)
    }

    fn backward(
        &self,
        place: &P,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        place.backward(self, inputs, grad)
    }
}

/// A matrix `[rows, columns]` of activations or parameters, row by row; a tensor's leading dimensions are rows.
pub(crate) struct Array<'t, B: Backend> {
    pub(crate) data: B::Data<'t>,
    pub(crate) rows: usize,
    pub(crate) columns: usize,
}

impl<'t, B: Backend> Array<'t, B> {
    /// A tensor's elements; a scalar is one row of one column.
    pub(crate) fn of(tensor: &Tensor, data: B::Data<'t>) -> Self {
        let (columns, leading) =
            tensor.dims().split_last().map_or((1, &[][..]), |(&last, rest)| (last, rest));
        Self { data, rows: leading.iter().product(), columns }
    }

    /// As a factor.
    pub(crate) fn mat(&self) -> B::Mat<'_> {
        self.part(0..self.columns)
    }

    /// Some columns of every row as a factor.
    pub(crate) fn part(&self, columns: Range<usize>) -> B::Mat<'_> {
        B::mat(self, columns)
    }
}

/// The gradient of what a linear layer gives, `[rows, O]`.
pub(crate) struct Slope<'t, B: Backend> {
    pub(crate) array: Array<'t, B>,
    /// Its sums over rows, where a kernel has made them on the way.
    pub(crate) sums: Option<B::Sums>,
}

/// A weight `[O, I]`: its numbers, and the parameter whose gradient is asked for.
pub(crate) struct Weight<'a, B: Backend> {
    pub(crate) mat: B::Mat<'a>,
    pub(crate) parameter: &'a Tensor,
}

/// Scale and shift of a LayerNorm, `[D]` each: their numbers, and the parameters.
pub(crate) struct Affine<'a, 't, B: Backend> {
    pub(crate) arrays: [&'a Array<'t, B>; 2],
    pub(crate) parameters: [&'a Tensor; 2],
    pub(crate) eps: f64,
}

/// What the forward pass of attention keeps: rotated q and k, v, its output, and the log sums of its scores.
pub(crate) struct Heads<'a, B: Backend> {
    pub(crate) q: Array<'a, B>,
    pub(crate) k: Array<'a, B>,
    pub(crate) v: Array<'a, B>,
    pub(crate) out: Array<'a, B>,
    pub(crate) log_sums: &'a Tensor,
}

/// Operations at a place in one element type.
///
/// Gradients of parameters go into a [`crate::FlatGradients`], or come back as tensors, as
/// [`Operator::backward`] says.
pub(crate) trait Backend: Sized + 'static {
    type Place: Blocks;
    /// Numbers in memory of their own or of a tensor.
    type Data<'t>;
    /// A factor of a product: numbers with a stride between rows.
    type Mat<'a>;
    /// Sums over rows, in the type of the gradients of parameters.
    type Sums;

    fn mat<'a>(array: &'a Array<'_, Self>, columns: Range<usize>) -> Self::Mat<'a>;

    /// An activation, or what was kept of one: of this element type.
    fn read<'t>(&self, tensor: &'t Tensor) -> Result<Array<'t, Self>>;
    /// An input that may be a parameter of another type, in this element type.
    fn operand<'t>(&self, tensor: &'t Tensor) -> Result<Array<'t, Self>>;
    /// As a tensor of this shape, without history.
    fn shaped(&self, array: Array<'_, Self>, shape: Shape) -> Result<Tensor>;
    /// As a tensor `[rows, columns]`, without history.
    fn tensor(&self, array: Array<'_, Self>) -> Result<Tensor> {
        let shape = Shape::from((array.rows, array.columns));
        self.shaped(array, shape)
    }
    /// As the gradient of an `input`.
    fn gradient(&self, array: Array<'_, Self>, input: &Tensor) -> Result<Tensor> {
        self.shaped(array, input.shape().clone())
    }

    /// x wᵀ
    fn linear(&self, x: Self::Mat<'_>, w: Self::Mat<'_>) -> Result<Array<'static, Self>>;
    /// x + a wᵀ, and + bias `[1, O]`
    fn residual(
        &self,
        x: &Array<'_, Self>,
        a: Self::Mat<'_>,
        w: Self::Mat<'_>,
        bias: Option<&Array<'_, Self>>,
    ) -> Result<Array<'static, Self>>;
    /// slope w: the gradient of a linear layer's input.
    fn back(&self, slope: Self::Mat<'_>, w: Self::Mat<'_>) -> Result<Array<'static, Self>>;
    /// to + slope w
    fn add_back(
        &self,
        to: Array<'static, Self>,
        slope: Self::Mat<'_>,
        w: Self::Mat<'_>,
    ) -> Result<Array<'static, Self>>;
    /// [slopeᵀ x | …]: the gradient of a weight whose columns belong to these inputs x, one after the other.
    fn weight_gradient<const N: usize>(
        &self,
        parameter: &Tensor,
        parts: [(Self::Mat<'_>, Self::Mat<'_>); N],
    ) -> Result<Option<Tensor>>;
    /// Σ over rows: the gradient of a bias.
    fn bias_gradient(&self, parameter: &Tensor, slope: &Slope<'_, Self>) -> Result<Option<Tensor>>;

    fn rms_norm(&self, x: &Array<'_, Self>, w: &Array<'_, Self>, eps: f64) -> Result<Array<'static, Self>>;
    /// (dx + residual, dw) from dy.
    fn rms_norm_backward(
        &self,
        x: &Array<'_, Self>,
        w: (&Array<'_, Self>, &Tensor),
        dy: &Array<'_, Self>,
        residual: &Array<'_, Self>,
        eps: f64,
    ) -> Result<(Array<'static, Self>, Option<Tensor>)>;
    /// silu(g)·u
    fn swiglu(&self, g: &Array<'_, Self>, u: &Array<'_, Self>) -> Result<Array<'static, Self>>;
    /// [dg, du]
    fn swiglu_backward(
        &self,
        g: &Array<'_, Self>,
        u: &Array<'_, Self>,
        dy: &Array<'_, Self>,
    ) -> Result<[Array<'static, Self>; 2]>;

    /// x `[B S, heads·Dh]` by its positions' angles, forwards or back.
    fn rotate(
        &self,
        by: &<Self::Place as Blocks>::Positions,
        x: &Array<'_, Self>,
        heads: usize,
        back: bool,
    ) -> Result<Array<'static, Self>>;
    /// Attention of q over k and v; its log sums with `keep`.
    fn attend(
        &self,
        sizes: AttentionSizes,
        by: &<Self::Place as Blocks>::Positions,
        qkv: [&Array<'_, Self>; 3],
        keep: bool,
    ) -> Result<(Array<'static, Self>, Option<Tensor>)>;
    /// [dq, dk, dv]
    fn attend_backward(
        &self,
        sizes: AttentionSizes,
        by: &<Self::Place as Blocks>::Positions,
        kept: &Heads<'_, Self>,
        grad: &Array<'_, Self>,
    ) -> Result<[Array<'static, Self>; 3]>;

    /// x wᵀ + bias for the activations below, which take the same bias: a GPU leaves it to their kernels, which read
    /// the product anyway; the CPU adds the product to rows of the bias, and the activations leave it out.
    fn before_activation(
        &self,
        x: Self::Mat<'_>,
        w: Self::Mat<'_>,
        bias: &Array<'_, Self>,
    ) -> Result<Array<'static, Self>>;
    /// silu(x)
    fn silu(&self, x: &Array<'_, Self>, bias: &Array<'_, Self>) -> Result<Array<'static, Self>>;
    /// silu(g)·u of x = [g | u]
    fn gate(&self, x: &Array<'_, Self>, bias: &Array<'_, Self>) -> Result<Array<'static, Self>>;
    /// silu(x + row) for x `[R N, D]`, which has no bias, and row `[R, D]` of N rows each.
    fn shared_silu(
        &self,
        x: &Array<'_, Self>,
        row: &Array<'_, Self>,
        bias: &Array<'_, Self>,
    ) -> Result<Array<'static, Self>>;

    // Back through an activation u and the linear layer that takes it, from the slope of what that gives: the
    // gradient of the layer's weight, and what goes on. The weight's needs u again, which the CPU computes first, and
    // whose memory becomes that of du; a GPU's kernels write it on the way.

    /// (gradient of the weight after it, slope of x) of [`Self::silu`]
    fn silu_backward(
        &self,
        x: &Array<'_, Self>,
        bias: &Array<'_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, Slope<'static, Self>)>;
    /// (gradient of the weight after it, slope of x) of [`Self::gate`]
    fn gate_backward(
        &self,
        x: &Array<'_, Self>,
        bias: &Array<'_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, Slope<'static, Self>)>;
    /// (gradient of the weight after it, [slope of x, slope of row]) of [`Self::shared_silu`]
    fn shared_silu_backward(
        &self,
        x: &Array<'_, Self>,
        row: &Array<'_, Self>,
        bias: &Array<'_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
    ) -> Result<(Option<Tensor>, [Slope<'static, Self>; 2])>;

    fn layer_norm(&self, x: &Array<'_, Self>, norm: &Affine<'_, '_, Self>) -> Result<Array<'static, Self>>;
    /// With the `residual`'s gradient added to dx. The columns of the weight after it that are not in `w` take another
    /// input: `beside` is (slope, input) of those.
    fn layer_norm_backward(
        &self,
        x: &Array<'_, Self>,
        norm: &Affine<'_, '_, Self>,
        slope: Slope<'_, Self>,
        w: Weight<'_, Self>,
        beside: (Self::Mat<'_>, Self::Mat<'_>),
        residual: &Array<'_, Self>,
    ) -> Result<NormGradients<Self>>;
}

/// What [`Backend::layer_norm_backward`] gives.
pub(crate) struct NormGradients<B: Backend> {
    /// Of the weight after the norm.
    pub(crate) after: Option<Tensor>,
    pub(crate) dx: Array<'static, B>,
    /// Of scale and shift.
    pub(crate) parameters: [Option<Tensor>; 2],
}

/// `named! { Inputs { x, norm, .. } }`: one thing for each input of an operator, by name, in the inputs' order.
macro_rules! named {
    ($name:ident { $($field:ident),+ $(,)? }) => {
        /// One thing for each input, in the inputs' order.
        struct $name<X> {
            $($field: X),+
        }

        impl<X> $name<X> {
            fn list(self) -> Vec<X> {
                vec![$(self.$field),+]
            }

            fn try_map<Y>(&self, f: impl Fn(&X) -> Result<Y>) -> Result<$name<Y>> {
                Ok($name { $($field: f(&self.$field)?),+ })
            }
        }

        impl<'a> $name<&'a Tensor> {
            fn of(op: &str, inputs: &'a [Tensor]) -> Result<Self> {
                let [$($field),+] = inputs else {
                    return Err($crate::storage::error(
                        op,
                        format_args!("has {} inputs, not those that it was given", inputs.len()),
                    ));
                };
                Ok(Self { $($field),+ })
            }
        }
    };
}
pub(crate) use named;
