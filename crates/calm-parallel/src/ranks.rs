//! The handle of the processes that train together.

use std::ops::Deref;
use std::sync::Arc;

use crate::alone::Alone;
use crate::collective::{Collective, Patience};
use crate::error::{Error, Result};

/// The processes of a training, this one among them. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Ranks(Arc<dyn Collective>);

impl Default for Ranks {
    fn default() -> Self {
        Self::alone()
    }
}

impl Deref for Ranks {
    type Target = dyn Collective;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Ranks {
    /// Processes joined by an engine.
    pub fn new(engine: impl Collective + 'static) -> Self {
        Self(Arc::new(engine))
    }

    /// One process.
    pub fn alone() -> Self {
        Self::new(Alone)
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.world().size
    }

    /// Which of them this is.
    pub fn rank(&self) -> usize {
        self.world().rank
    }

    /// Whether this is the only one.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Whether this process decides, writes and speaks for all.
    pub fn leads(&self) -> bool {
        self.rank() == 0
    }

    /// Waits for all at `what`.
    ///
    /// # Errors
    /// As [`Collective`].
    pub fn meet(&self, what: &str, patience: Patience) -> Result<()> {
        self.gather(&[], what, patience).map(|_| ())
    }

    /// Whether it holds anywhere.
    ///
    /// # Errors
    /// As [`Collective`].
    pub fn any(&self, holds: bool, what: &str) -> Result<bool> {
        if self.is_alone() {
            return Ok(holds);
        }
        let all = self.gather(&[u8::from(holds)], what, Patience::Limited)?;
        Ok(all.iter().any(|one| one.first() == Some(&1)))
    }

    /// Text that must be the same everywhere; `what` says what it is.
    ///
    /// # Errors
    /// Who has another one, with both; as [`Collective`].
    pub fn same(&self, own: &str, what: &str) -> Result<()> {
        if self.is_alone() {
            return Ok(());
        }
        let all = self.gather(own.as_bytes(), what, Patience::Limited)?;
        let Some((rank, other)) = all.iter().enumerate().find(|(_, other)| **other != all[0]) else {
            return Ok(());
        };
        let text = String::from_utf8_lossy;
        Err(Error::new(
            format!(
                "the processes differ in {what}: {} on rank 0 ({}), {} on rank {rank} ({})",
                text(&all[0]),
                self.hosts()[0],
                text(other),
                self.hosts()[rank]
            ),
            "all must read the same files with the same program on the same kind of processor; go on from the last checkpoint \
             with --resume",
        ))
    }
}
