#![doc = include_str!("../README.md")]

mod disk;
pub mod faults;
mod folder;
mod log;
mod partial;
pub mod seal;
mod sum;
mod write;

pub use disk::{create_folder, sync_folder};
pub use folder::{DAMAGED, remove, set_aside, settle, sweep, whole_folder, write_folder};
pub use log::Log;
pub use partial::{Held, Partial, hold, link};
pub use sum::Sum;
pub use write::{Pending, Writer, copy, write, write_bytes};
