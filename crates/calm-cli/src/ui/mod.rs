//! The screen: results on stdout, everything else on stderr.
//!
//! [`Printer`] decides what goes where, in colour or not, over a progress bar or as plain lines;
//! [`Table`] aligns, [`format`](mod@format) writes numbers for people.
//!
//! ```
//! use calm_cli::ui::{Printer, Table, Unit, UiOptions, format};
//!
//! fn score(p: &Printer) -> anyhow::Result<()> {
//!     p.note("scoring 2 documents");
//!     let bar = p.progress("scoring", 2, Unit::Other("documents"));
//!     bar.set(1, "brier-1 4.9");
//!     bar.finish("");
//!     let mut table = Table::new(&["score", "value"]);
//!     table.row(["BrierLM".to_string(), format::plus_minus(5.1234, 0.312)]);
//!     p.result(&table.to_string())?;
//!     Ok(())
//! }
//!
//! let p = Printer::new(UiOptions::default());
//! let exit_code = p.conclude(score(&p)); // prints an error, if there is one; a closed pipe is none
//! ```

pub mod format;
mod page;
mod printer;
mod progress;
mod streams;
mod table;
mod visible;

pub use page::plain;
pub use printer::{Hint, Printer};
pub use progress::{Progress, Unit};
pub use streams::{Captured, ColorChoice, OutputError, UiOptions, Verbosity};
pub use table::{Align, Table, wrapped};
pub use visible::{pasted, quoted, visible};

/// Width that tables and plain lines keep to, in characters.
pub const WIDTH: usize = 80;
