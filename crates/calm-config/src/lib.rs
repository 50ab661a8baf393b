//! Files -> typed configuration, checked as a whole, with the place of every mistake.
//!
//! [`load()`] reads YAML and `key=value` overrides into any type that states its rules through [`Validate`]. Rules
//! are written into [`Problems`]; everything that is wrong is reported together ([`ConfigErrors`]). [`schema`] explains keys.
//!
//! This room knows no other crate of ours: who owns a setting owns its type and its rules.

pub mod load;
pub mod locate;
pub mod schema;

pub use load::{ConfigErrors, ConfigText, Problems, Resolved, Validate, load};
