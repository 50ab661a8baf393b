//! What the operators and models cost on this machine, against what its matrix product can do.
//!
//! ```text
//! sizes.json ── Size ──┬── work      a step of each piece of work (training, scoring, generation)
//!                      ├── operators each fused operator beside its plain composition
//!                      └── products  the same models as bare matrix products: the peak at their own shapes
//!                              │
//! clock, memory ───────────────┴── measure: medians, quartiles, FLOP/s, share of the peak, peak memory
//! ```
//!
//! `exchange` stands beside: what several processes sum, and how fast.
//!
//! The sizes, the pieces of work and the JSON fields are those of the PyTorch peers in
//! `eval/peers/pytorch`, so that both can be measured in turn.

mod clock;
mod exchange;
mod measure;
pub mod memory;
pub mod operators;
mod place;
mod pool;
pub mod products;
mod rates;
mod size;
pub mod work;

pub use clock::Seconds;
pub use exchange::{Exchanged, Way, exchange};
pub use measure::{Machine, Measured, MeasuredOperator, Options, operator, work_at};
pub use place::Place;
pub use rates::{GpuRates, MatrixRate, gpu_rates, matrix_peak};
pub use size::Size;
pub use work::What;
