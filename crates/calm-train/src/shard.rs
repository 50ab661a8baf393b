//! The optimiser shared out over processes (`shard: optimizer`; Rajbhandari, Rasley, Ruwase and He: "ZeRO: memory optimizations
//! toward training trillion parameter models", 2020, stage 1). Each process has the moments of its part of the bucket alone.
//!
//! ```text
//! gradients   each has all         -> reduce-scatter -> sums of the own part
//! norm        squares of the own part, chunk by chunk -> gathered, added in the order of one process
//! update      of the own part
//! parameters  of the own part      -> all-gather     -> each has all
//! ```
//!
//! Parts are whole chunks of the norm's sum, so that no bit shows them. GPUs sum all gradients everywhere, as without it, and take
//! the norm of all: what they save is memory.

use std::collections::BTreeMap;
use std::ops::Range;

use calm_kernels::{Clip, NORM_CHUNK, Part};
use calm_nn::{AdamW, GradientBucket, ParamStore};
use calm_parallel::{Parts, Patience, Ranks, tree};
use calm_run::Result;
use calm_run::config::Reduction;
use candle_core::Tensor;

use crate::share::{not_joined, told};

/// How the optimiser is shared out.
pub(crate) struct Shard {
    ranks: Ranks,
    parts: Parts,
    scatters: bool,
}

impl Shard {
    /// Of the bucket of these parameters.
    pub fn new(store: &ParamStore, ranks: &Ranks) -> Self {
        let elements = store.params().iter().map(|(_, param)| param.var.elem_count()).sum();
        let parts = Parts::new(elements, NORM_CHUNK, ranks.size());
        Self { ranks: ranks.clone(), parts, scatters: store.device().is_cpu() }
    }

    /// Whether each process has the sums of its part alone.
    pub fn scatters(&self) -> bool {
        self.scatters
    }

    /// The part of this process.
    pub fn own(&self) -> Range<usize> {
        self.parts.of(self.ranks.rank())
    }

    /// Replaces the gradients of the own part by their sums over all processes.
    ///
    /// # Errors
    /// Another process that fails or does not come.
    pub fn sum(&self, gradients: &mut [f32], reduction: Reduction) -> Result<()> {
        match reduction {
            Reduction::Engine => self.parts.reduce_scatter(&self.ranks, gradients),
            Reduction::Fixed => tree::scatter(&self.ranks, gradients, &self.parts),
        }
        .map_err(told)
    }

    /// As [`GradientBucket::clip`], of the sums that all processes have together.
    ///
    /// # Errors
    /// As [`Shard::sum`].
    pub fn clip(&self, bucket: &mut GradientBucket, max_norm: f64) -> Result<Clip> {
        let own = bucket.squares(self.own())?;
        let bytes: Vec<u8> = own.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = self.ranks.gather(&bytes, "the norm of the gradients", Patience::Limited).map_err(told)?;
        let squares: Vec<f64> =
            all.iter().flat_map(|bytes| bytes.as_chunks::<8>().0).map(|x| f64::from_le_bytes(*x)).collect();
        Ok(Clip::of_squares(&squares, max_norm))
    }

    /// Hands the parameters of the own part to all others, and takes theirs.
    ///
    /// # Errors
    /// As [`Shard::sum`].
    pub fn exchange(&self, optimizer: &AdamW, bucket: &mut GradientBucket) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(());
        }
        optimizer.exchange_parameters(bucket, |list| match list {
            Part::Host(list) => self.parts.all_gather(&self.ranks, list).map_err(told),
            #[cfg(feature = "nccl")]
            Part::Device(list, _) => {
                let parts: Vec<_> = (0..self.ranks.size()).map(|rank| self.parts.of(rank)).collect();
                self.ranks.share_on_gpu(list, &parts).map_err(told)
            }
            #[allow(unreachable_patterns, reason = "with the feature `cuda` alone there are others")]
            _ => Err(not_joined()),
        })
    }

    /// The whole optimiser's state where this process leads, as [`AdamW::state`] has it; none elsewhere.
    ///
    /// # Errors
    /// As [`Shard::sum`].
    pub fn state(&self, optimizer: &AdamW, store: &ParamStore) -> Result<Option<BTreeMap<String, Tensor>>> {
        let own = optimizer.moments()?;
        let whole = |which: usize| self.parts.gather(&self.ranks, &own[which]).map_err(told);
        if self.ranks.leads() {
            return AdamW::state_of(store, whole).map(Some);
        }
        (0..own.len()).try_for_each(|which| whole(which).map(|_| ()))?;
        Ok(None)
    }
}
