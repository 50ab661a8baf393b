//! Layers: a few parameters and a `forward` each, on the fused operators.

use calm_kernels as ops;
use calm_kernels::{Operand, Parameter};
use candle_core::{DType, Result, Tensor, bail};

use crate::store::{Builder, Init};

/// `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Parameter,
    /// `[out]`
    pub bias: Option<Parameter>,
}

impl Linear {
    /// With a bias that starts at 0.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(b: &Builder, name: &str, input: usize, output: usize, init: Init) -> Result<Self> {
        let b = b.under(name);
        Ok(Self {
            weight: b.weight("weight", &[output, input], init)?,
            bias: Some(b.plain("bias", &[output], Init::Zeros)?),
        })
    }

    /// Without a bias.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn no_bias(b: &Builder, name: &str, input: usize, output: usize, init: Init) -> Result<Self> {
        Ok(Self { weight: b.under(name).weight("weight", &[output, input], init)?, bias: None })
    }

    /// Both parameters, for operators that work on several layers.
    ///
    /// # Errors
    /// A layer without a bias.
    pub fn weight_and_bias(&self) -> Result<[&dyn Operand; 2]> {
        match &self.bias {
            Some(bias) => Ok([&self.weight, bias]),
            None => bail!("a linear layer {:?} has no bias", self.weight.dims()),
        }
    }

    /// `[.., in] -> [.., out]`
    ///
    /// # Errors
    /// As [`ops::linear`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref().map(|b| b as _))
    }
}

/// `x / sqrt(mean(x²) + eps) · w`.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// `[D]`
    pub weight: Parameter,
    /// Added to the mean of squares.
    pub eps: f64,
}

impl RmsNorm {
    /// Starts as the plain normalisation (w = 1).
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(b: &Builder, name: &str, size: usize, eps: f64) -> Result<Self> {
        Ok(Self { weight: b.under(name).plain("weight", &[size], Init::Ones)?, eps })
    }

    /// `[.., D] -> [.., D]`
    ///
    /// # Errors
    /// As [`ops::rms_norm`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::rms_norm(x, &self.weight, self.eps)
    }
}

/// `(x − mean) / sqrt(var + eps) · w + b`.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    /// `[D]`
    pub weight: Parameter,
    /// `[D]`
    pub bias: Parameter,
    /// Added to the variance.
    pub eps: f64,
}

impl LayerNorm {
    /// Starts as the plain normalisation (w = 1, b = 0).
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(b: &Builder, name: &str, size: usize, eps: f64) -> Result<Self> {
        let b = b.under(name);
        Ok(Self {
            weight: b.plain("weight", &[size], Init::Ones)?,
            bias: b.plain("bias", &[size], Init::Zeros)?,
            eps,
        })
    }

    /// `[.., D] -> [.., D]`
    ///
    /// # Errors
    /// As [`ops::layer_norm`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::layer_norm(x, Some(&self.weight), Some(&self.bias), self.eps)
    }
}

/// The gated MLP of Llama: `down(silu(gate(x)) · up(x))`, no biases.
#[derive(Clone, Debug)]
pub struct SwiGlu {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl SwiGlu {
    /// Names `gate_proj`, `up_proj`, `down_proj` under `name`.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(b: &Builder, name: &str, hidden: usize, intermediate: usize, init: Init) -> Result<Self> {
        let b = b.under(name);
        Ok(Self {
            gate: Linear::no_bias(&b, "gate_proj", hidden, intermediate, init)?,
            up: Linear::no_bias(&b, "up_proj", hidden, intermediate, init)?,
            down: Linear::no_bias(&b, "down_proj", intermediate, hidden, init)?,
        })
    }

    /// `x + SwiGLU(norm(x))`, `[.., D] -> [.., D]`.
    ///
    /// # Errors
    /// As [`ops::mlp_block`].
    pub fn residual(&self, x: &Tensor, norm: &RmsNorm) -> Result<Tensor> {
        ops::mlp_block(x, &norm.weight, [&self.gate.weight, &self.up.weight, &self.down.weight], norm.eps)
    }
}

/// A table of V vectors.
#[derive(Clone, Debug)]
pub struct Embedding {
    /// `[V, D]`
    pub table: Parameter,
    frozen_row: Option<u32>,
    /// Of the vectors that come out: the format of the activations.
    compute: DType,
}

impl Embedding {
    /// The frozen row (PAD) is zero and gets no gradient.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(
        b: &Builder,
        name: &str,
        vocab: usize,
        size: usize,
        init: Init,
        frozen_row: Option<u32>,
    ) -> Result<Self> {
        let table = b.under(name).table("weight", [vocab, size], init, frozen_row)?;
        Ok(Self { table, frozen_row, compute: b.compute() })
    }

    /// U32 ids `[..]` -> `[.., D]`
    ///
    /// # Errors
    /// As [`ops::embedding_as`].
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        ops::embedding_as(ids, &self.table, self.frozen_row, self.compute)
    }
}
