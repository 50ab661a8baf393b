//! A JSON schema as documentation: one key explained, and a whole configuration written with a comment above each key.
//!
//! The schema is what `schemars` makes of the types, so that what is said of a setting stands beside its owner and
//! nowhere else.

mod commented;
mod flow;
mod walk;

pub use commented::commented;
pub use flow::flow;
pub use walk::{Below, Key, UnknownKey, explain};
