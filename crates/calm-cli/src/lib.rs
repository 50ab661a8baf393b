//! What the `calm` binary is made of.

pub mod ui;
