//! Runs as they are trained, from their folders alone: a table and curves in a terminal.
//!
//! `followed.rs` reads what a run writes down, `view.rs` draws it and takes keys; neither knows where runs come from
//! (`commands/watch.rs`). Nothing is written, and a run needs no setting to be watched: over ssh, on another machine's
//! disk, after it has ended.

mod followed;
mod view;

pub use followed::Followed;
pub use view::{HEADERS, Next, View, row};
