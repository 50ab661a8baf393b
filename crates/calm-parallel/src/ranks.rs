//! The handle of the processes that train together.
//!
//! What they say to each other goes through their engine; where each has a GPU, gradients go from one to the other by NCCL.

use std::ops::Deref;
use std::sync::Arc;

use crate::alone::Alone;
use crate::collective::{Collective, Patience};
use crate::error::{Error, Result};

/// The processes of a training, this one among them. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Ranks {
    engine: Arc<dyn Collective>,
    #[cfg(feature = "nccl")]
    gpus: Option<Arc<crate::nccl::Gpus>>,
}

impl Default for Ranks {
    fn default() -> Self {
        Self::alone()
    }
}

impl Deref for Ranks {
    type Target = dyn Collective;

    fn deref(&self) -> &Self::Target {
        &*self.engine
    }
}

impl Ranks {
    /// Processes joined by an engine.
    pub fn new(engine: impl Collective + 'static) -> Self {
        Self {
            engine: Arc::new(engine),
            #[cfg(feature = "nccl")]
            gpus: None,
        }
    }

    /// Processes that nothing but their GPUs joins.
    #[cfg(feature = "nccl")]
    pub(crate) fn over_gpus(engine: crate::nccl::OverGpus) -> Self {
        let gpus = Some(engine.gpus());
        Self { engine: Arc::new(engine), gpus }
    }

    /// The same processes, each with its GPU joined to those of the others; all call this. What they say to each other takes
    /// the way that it took before.
    ///
    /// # Errors
    /// As [`crate::connect_gpus`]; as [`Collective`].
    #[cfg(feature = "nccl")]
    pub fn with_gpu(self, device: &candle_core::Device) -> Result<Self> {
        if self.is_alone() || self.gpus.is_some() {
            return Ok(self);
        }
        let own = if self.leads() { crate::nccl::id()?.to_vec() } else { Vec::new() };
        let mut all = self.gather(&own, "the joining of their GPUs", Patience::Limited)?;
        let id = all.swap_remove(0).try_into();
        let id =
            id.map_err(|_| Error::new("rank 0 hands out no id of NCCL", "start all with the same program"))?;
        let gpus = crate::nccl::Gpus::join(device, self.world(), id, crate::limit()?)?;
        Ok(Self { gpus: Some(Arc::new(gpus)), ..self })
    }

    /// Replaces `values` on this process's GPU by their sums over all processes: the same bits everywhere. It is put on the
    /// stream of the GPU; nothing waits here.
    ///
    /// # Errors
    /// An exchange that failed before this one, with who did not come; no GPUs that are joined.
    #[cfg(feature = "nccl")]
    pub fn sum_on_gpu(
        &self,
        values: &mut candle_core::cuda_backend::cudarc::driver::CudaSlice<f32>,
    ) -> Result<()> {
        let Some(gpus) = &self.gpus else { return Err(not_joined()) };
        gpus.sum(values).map_err(|e| self.explained(e, "the sum of gradients"))
    }

    /// Begins the replacement of a range of `values` by its sums over all processes, on another stream than the one that computes:
    /// what is on that one so far comes before it. Ranges do not overlap, and all processes begin the same in the same order.
    ///
    /// # Errors
    /// As [`Ranks::sum_on_gpu`].
    #[cfg(feature = "nccl")]
    pub fn begin_sum_on_gpu(
        &self,
        values: &mut candle_core::cuda_backend::cudarc::driver::CudaSlice<f32>,
        range: std::ops::Range<usize>,
    ) -> Result<()> {
        let Some(gpus) = &self.gpus else { return Err(not_joined()) };
        gpus.begin_sum(values, range).map_err(|e| self.explained(e, "the sum of gradients"))
    }

    /// What is put on the computing stream from here on comes after all sums that were begun.
    ///
    /// # Errors
    /// As [`Ranks::sum_on_gpu`].
    #[cfg(feature = "nccl")]
    pub fn end_sums_on_gpu(&self) -> Result<()> {
        let Some(gpus) = &self.gpus else { return Err(not_joined()) };
        gpus.end_sums().map_err(|e| self.explained(e, "the sum of gradients"))
    }

    /// Replaces all parts of `values` on this process's GPU, one for each rank, by those of their owners. It is put on the stream of the GPU; nothing
    /// waits here.
    ///
    /// # Errors
    /// As [`Ranks::sum_on_gpu`].
    #[cfg(feature = "nccl")]
    pub fn share_on_gpu(
        &self,
        values: &mut candle_core::cuda_backend::cudarc::driver::CudaSlice<f32>,
        parts: &[std::ops::Range<usize>],
    ) -> Result<()> {
        let Some(gpus) = &self.gpus else { return Err(not_joined()) };
        gpus.share(values, parts).map_err(|e| self.explained(e, "the exchange of parameters"))
    }

    /// Whether gradients go from GPU to GPU.
    pub fn joins_gpus(&self) -> bool {
        #[cfg(feature = "nccl")]
        return self.gpus.is_some();
        #[cfg(not(feature = "nccl"))]
        false
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

    /// Whether exchanges between GPUs have come to their ends so far, before one that goes another way.
    ///
    /// # Errors
    /// One has not: who did not come.
    pub fn well(&self) -> Result<()> {
        #[cfg(feature = "nccl")]
        if let Some(error) = self.gpus.as_ref().and_then(|gpus| gpus.failure()) {
            return Err(self.explained(error, "the sum of gradients"));
        }
        Ok(())
    }

    /// Whether it holds anywhere.
    ///
    /// # Errors
    /// As [`Collective`].
    pub fn any(&self, holds: bool, what: &str) -> Result<bool> {
        if self.is_alone() {
            return Ok(holds);
        }
        self.well()?;
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

#[cfg(feature = "nccl")]
fn not_joined() -> Error {
    Error::new("the GPUs of these processes are not joined", "use --device cpu")
}
