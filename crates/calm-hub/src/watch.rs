//! What somebody hears who waits for a hub.

use std::time::Duration;

/// What happens while something is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of a file that are there, of so many.
    Bytes {
        /// Its path in the repository.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// The hub is asked again after a while.
    Waiting {
        /// Why.
        reason: String,
        /// For how long.
        wait: Duration,
    },
    /// Nothing to be told: whether to go on is asked.
    Still,
    /// Another process fetches the same file: it is waited for.
    Locked {
        /// Its path in the repository.
        file: String,
    },
}

/// Hears of events, and says whether to go on.
pub type Watch<'a> = dyn FnMut(&Event) -> bool + 'a;
