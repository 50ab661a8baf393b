//! From hidden states back to the text they came from, position by position (SipIt, arXiv 2510.15511).
//!
//! ```text
//! known prefix, state r_t ── which chunk v has ‖F(prefix · v) − r_t‖ ≤ ε?
//!   policy     in which order chunks are tried: led by the gradient, or all
//!   radius     ε, measured: half the smallest gap between the states of two tokens
//!   search     one position after the other; what is not found is said, never guessed
//!   trial      texts that are known: how many tokens are found, how many alternatives that took, how long
//!   kept       states that were kept in fewer bits, or with noise
//!   collisions the closest last states of many texts
//! ```
//! The prefix is computed once; all alternatives of a position go through the model together.

mod alternatives;
pub mod closest;
pub mod collisions;
pub mod kept;
pub mod policy;
pub mod radius;
mod relaxed;
mod rows;
pub mod search;
pub mod trial;
