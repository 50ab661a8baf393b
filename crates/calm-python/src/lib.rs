//! The Python module `calm_lm`: a run opened, its metrics, chunks and latents, draws, text, probabilities, and BrierLM of
//! anybody's samples. Everything is computed by the crates below; this room turns Python's objects into theirs and back.
//!
//! Numbers cross as `memoryview`s: the buffer protocol, which NumPy, PyTorch and others read without a copy. They are made and
//! read by Python's own `memoryview`, since the library serves Pythons whose stable interface has no buffers (before 3.11).
//!
//! Work runs without the interpreter's lock, on the threads of a pool that begins with the first work.

#![allow(clippy::missing_errors_doc, reason = "what Python calls raises CalmError, ValueError and TypeError")]

mod arrays;
mod error;
mod likelihood;
mod metrics;
mod models;
mod pool;
mod run;
mod scores;
mod text;

use pyo3::prelude::*;

#[pymodule(name = "_native")]
mod native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::error::CalmError;
    #[pymodule_export]
    use crate::run::{Run, open};
    #[pymodule_export]
    use crate::scores::{brierlm, brierlm_file};
    #[pymodule_export]
    use crate::text::Text;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", calm_cli::version::VERSION)
    }
}
