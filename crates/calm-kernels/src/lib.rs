//! Fused operators for CALM with hand-written backward passes: one file an operator, each tested
//! against a plain composition of tensor operations and by gradient check. The files here run on the CPU;
//! with the feature `cuda` those of `cuda/` run tensors that are on a GPU.
//!
//! Shapes: B batch rows, S chunks, K tokens a chunk, L latent, D hidden, N model samples, M target
//! samples, V vocabulary, R rows (the kept (b, s) pairs).

/// `on_gpu!(tensor, value)`: returns `value` from the function if the tensor is on a GPU; nothing in a build
/// without the feature `cuda`.
macro_rules! on_gpu {
    ($tensor:expr, $value:expr) => {
        #[cfg(feature = "cuda")]
        if $tensor.device().is_cuda() {
            return $value;
        }
    };
}

pub mod context;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
mod gpu_info;
pub mod gradcheck;
pub mod gradients;
pub mod philox;
pub mod simd;
pub mod storage;

mod adamw;
mod backend;
mod buffer;
mod clip;
mod collector;
mod copies;
mod cpu;
mod cross_entropy;
mod dropout;
mod embedding;
mod energy_score;
mod energy_targets;
mod moment_pieces;
mod moments;
mod nary;
mod noise;
mod outputs;
mod pieces;
mod products;
pub use adamw::{AdamWStep, CHUNK as NORM_CHUNK, Treatment, adamw, squared_norm};
pub use context::{Context, Destination, InContext, Operand, Parameter};
pub use cross_entropy::{tied_argmax, tied_cross_entropy, tied_cross_entropy_rows};
pub use dropout::{DropoutMask, dropout};
pub use embedding::{embedding, embedding_as};
pub use energy_score::{energy_score, energy_score_rows_no_grad};
pub use energy_targets::TargetNoise;

mod linear;
mod rows;
mod screened_argmax;
pub use linear::{linear, steady_rows};
pub use noise::{noise_normal, noise_uniform};
pub use philox::{NoiseKey, RowId};
pub use pieces::{Course, HandOut, Part};
mod recompute;
pub use recompute::recomputed;
mod layer_norm;
mod rms_norm;
mod rotary;
mod silu;
mod smooth;
mod swiglu;
mod turns;
pub use layer_norm::layer_norm;
pub use rms_norm::rms_norm;
pub use rotary::rotary;
pub use screened_argmax::SCREENED_ROWS;
pub use silu::{add_silu, silu};
pub use smooth::smooth;
pub use swiglu::{swiglu, swiglu_packed};
mod attention;
mod attention_inference;
mod attention_sizes;
pub use attention::{causal_attention, span_attention};
pub use attention_inference::{branch_attention, cached_attention};
pub use attention_sizes::{GPU_HEAD_SIZES, Sight, Span, Spans};

// Parts of layers as one operator each, written over `backend` for both.
mod attention_block;
mod energy_block;
mod mlp_block;
pub use attention_block::attention_block;
pub use backend::AttentionShape;
pub use clip::{Clip, ClipReport};
pub use energy_block::{EnergyBlockWeights, energy_block};
pub use gradients::FlatGradients;
pub use mlp_block::mlp_block;
pub use moments::Moments;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
