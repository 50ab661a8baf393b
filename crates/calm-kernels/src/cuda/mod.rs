//! The operators on an NVIDIA GPU (feature `cuda`). Each file here launches the kernels of
//! `kernels/NAME.cu` and is the twin of the CPU operator in `../NAME.rs`, which hands tensors of a GPU on.
//!
//! ```text
//! ../rms_norm.rs ── checks shapes ──► rms_norm.rs ── launch! ──► kernels/rms_norm.cu
//!                                         │
//!       ../nary.rs: candle's autograd ────┤
//!       matrix.rs:  cuBLAS ───────────────┤
//!       gpu.rs:     memory, launches, tensors ┘
//! ```
//! Blocks of several operators have their formula in `../NAME_block.rs` alone: `backend.rs` is what they run on.
//!
//! Activations are f32 or bf16; parameters are f32 tensors, whatever the activations are: where those are
//! bf16, products read the bf16 copies that their [`crate::Context`] keeps. Gradients of parameters are f32.
//!
//! One stream carries all work of a device. Nothing here waits for the GPU, except where a doc comment says
//! so: sizes come from shapes, random numbers and masks are made on the GPU, and what comes from the host
//! goes through pinned memory.

#[macro_use]
mod gpu;
mod backend;
pub(crate) mod buffer;
pub(crate) mod clip;
pub(crate) mod copies;
pub(crate) mod driver;
mod gradients;
mod matrix;
mod per_tensor;
mod ptx;
mod rows;
pub(crate) mod staging;
mod turns;

pub(crate) mod adamw;
pub(crate) mod attention;
pub(crate) mod attention_inference;
pub(crate) mod cross_entropy;
pub(crate) mod dropout;
pub(crate) mod embedding;
mod energy_block;
pub(crate) mod energy_score;
pub(crate) mod layer_norm;
pub(crate) mod linear;
pub(crate) mod noise;
pub(crate) mod rms_norm;
pub(crate) mod rotary;
pub(crate) mod silu;
pub(crate) mod smooth;
pub(crate) mod swiglu;

pub(crate) use gpu::{Element, Gpu, Launch, View, view};
