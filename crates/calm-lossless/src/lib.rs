#![doc = include_str!("../README.md")]

pub mod bytes;
mod cipher;
mod container;
mod entropy;
mod error;
mod fingerprint;
mod pieces;
pub mod rivals;
mod windows;

pub use cipher::{Coder, Compressed, Options};
pub use container::{Kind, MAGIC, VERSION, read_header};
pub use error::{Error, Result};
