//! The binary from outside: what it prints, where, with which exit code, and what it leaves behind.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

mod ablate;
mod at_once;
mod bench;
mod chat;
mod compress;
mod config;
mod data;
mod decode;
mod device;
mod direction;
mod errors;
mod eval;
mod generate;
mod guide;
mod house;
mod hub;
mod input;
mod loss_trace;
mod old_run;
mod prompts;
mod resuming;
mod segments;
mod stopping;
mod train;
mod watch;
