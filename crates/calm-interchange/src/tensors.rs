//! What one weight file holds, whoever wrote it.

use std::collections::BTreeMap;

use candle_core::Tensor;

/// What one file holds.
#[derive(Default)]
pub(super) struct Found {
    /// Tensors by their names.
    pub tensors: BTreeMap<String, Tensor>,
    /// Tensors of a number format that no weights have, with it.
    pub others: BTreeMap<String, String>,
    /// Where in the file they were found.
    pub notes: Vec<String>,
}
