//! What can go wrong between processes, with a remedy.

use serde::{Deserialize, Serialize};

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong between processes, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{what}")]
pub struct Error {
    /// What is wrong, and with whom.
    pub what: String,
    /// What to do; empty where that is not known.
    pub remedy: String,
}

impl Error {
    /// A message with its remedy.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}
