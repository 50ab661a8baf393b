//! What there is to know of a GPU, and why there is none.

use std::fmt::{Display, Formatter};

/// What a GPU is.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuInfo {
    /// Its number, as in `cuda:0`.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Multiprocessors.
    pub multiprocessors: usize,
    /// Bytes of memory in all.
    pub memory: usize,
    /// Bytes of memory that nobody has taken.
    pub free: usize,
}

/// Why there is no GPU, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoGpu {
    /// What is missing.
    pub reason: String,
    /// The remedy.
    pub remedy: String,
}

impl Display for NoGpu {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.reason, self.remedy)
    }
}
