//! The binary from outside: what it prints, where, with which exit code, and what it leaves behind.

mod config;
mod errors;
mod eval;
mod generate;
mod house;
mod stopping;
mod train;
