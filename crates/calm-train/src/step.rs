//! One optimiser step on a global batch: what the training loop repeats, and what is timed.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::BTreeMap;

use calm_data::Batch;
use calm_kernels::Clip;
use calm_lm::Survey;
use calm_nn::{AdamW, GradientBucket, ParamStore};
use calm_parallel::{Patience, Ranks, tree};
use calm_run::checkpoint::{Checkpoints, StageState};
use calm_run::config::{self, Reduction, StageConfig};
use calm_run::{Error, Result, Stage};
use candle_core::Tensor;

use crate::objective::{Objective, scalar};
use crate::overlap::Overlap;
use crate::shard::Shard;
use crate::share::{can_be_shared, told};
use crate::survey::{self, PURPOSE};

/// One step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Stage.
    pub stage: Stage,
    /// Steps done.
    pub step: u64,
    /// Steps of the stage.
    pub steps: u64,
    /// What the step computed; on a GPU only of steps that are logged, validated or saved: to read it is to wait.
    pub values: Option<StepValues>,
    /// Of this step.
    pub learning_rate: f64,
    /// Tokens of targets in this step.
    pub tokens: u64,
    /// Of these, what the model chose, such as tokens at which a concept begins; 0 of a model that chooses none, and where
    /// several processes train one that needs no survey.
    pub units: u64,
    /// Seconds of this step; on a GPU, which works behind, steps that read their values wait for those before.
    pub seconds: f64,
    /// Seconds of these in which it waited for its rows; 0 where they lay ready.
    pub data_seconds: f64,
    /// Whether this step is to be written to the metrics.
    pub log: bool,
    /// Whether its update was left out.
    pub skipped: bool,
    /// Updates that the stage has left out so far, this one among them.
    pub left_out: u64,
}

/// Looks at a step before its update, and says whether it is made.
pub type Guard<'a> = &'a mut dyn FnMut(&Result<StepValues>) -> bool;

/// What a step computed.
#[derive(Clone, Debug, PartialEq)]
pub struct StepValues {
    /// Mean training loss of the step.
    pub loss: f64,
    /// Parts of it.
    pub parts: Vec<(Cow<'static, str>, f64)>,
    /// Before clipping.
    pub gradient_norm: f64,
}

/// What a stage keeps between its steps, besides the parameters.
pub struct Stepper {
    config: StageConfig,
    seed: u64,
    optimizer: AdamW,
    bucket: GradientBucket,
    ranks: Ranks,
    /// How the optimiser is shared out, if it is.
    shard: Option<Shard>,
    overlap: Overlap,
    /// Steps that a GPU had left out when it was looked at last: it counts them from the first on.
    left_out: Cell<u64>,
}

impl Stepper {
    /// Fresh moments and an empty bucket for the parameters of `store`.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn new(store: &ParamStore, config: &StageConfig, seed: u64) -> Result<Self> {
        Self::with(store, config, seed, Ranks::alone(), None)
    }

    /// The same among other processes, which all make the same steps, each on its own part of a batch.
    ///
    /// # Errors
    /// As [`Stepper::new`]; GPUs that nothing joins; rows or pieces that are not for so many processes.
    pub fn among(ranks: &Ranks, store: &ParamStore, config: &StageConfig, seed: u64) -> Result<Self> {
        can_be_shared(config, ranks, store.device())?;
        let shard = match config.shard {
            config::Shard::None => None,
            config::Shard::Optimizer => Some(Shard::new(store, ranks)),
        };
        Self::with(store, config, seed, ranks.clone(), shard)
    }

    fn with(
        store: &ParamStore,
        config: &StageConfig,
        seed: u64,
        ranks: Ranks,
        shard: Option<Shard>,
    ) -> Result<Self> {
        let optimizer = match &shard {
            Some(shard) => AdamW::of_part(store, config.adamw, shard.own())?,
            None => AdamW::new(store, config.adamw)?,
        };
        let bucket = GradientBucket::new(store)?;
        let (config, overlap) = (config.clone(), Overlap::new(config.overlap));
        Ok(Self { config, seed, optimizer, bucket, ranks, shard, overlap, left_out: Cell::new(0) })
    }

    /// The optimiser, for a checkpoint; of several processes that share it out, the own part.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Restores parameters and moments as a checkpoint holds them.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another model.
    pub fn load(&mut self, checkpoints: &Checkpoints, step: u64, store: &ParamStore) -> Result<()> {
        checkpoints.load_model(step, store)?;
        checkpoints.load_optimizer(step, store, &mut self.optimizer)
    }

    /// Saves parameters and moments. Processes that share the optimiser out all call it; one writes, what one process would.
    ///
    /// # Errors
    /// Files that cannot be written; another process that fails or does not come.
    pub fn save(
        &self,
        checkpoints: &Checkpoints,
        state: &StageState,
        store: &ParamStore,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        let Some(shard) = &self.shard else {
            return checkpoints.save(state, store, &self.optimizer, metadata);
        };
        if !self.ranks.leads() {
            return shard.state(&self.optimizer, store).map(|_| ());
        }
        let moments = || Ok(shard.state(&self.optimizer, store)?.unwrap_or_default());
        checkpoints.save_with(state, store, moments, metadata)
    }

    /// Looks at the gradients of the last step, if nobody has: on a GPU that is to wait for it.
    ///
    /// # Errors
    /// A norm that is not finite.
    pub fn look_back(&mut self, stage: Stage, step: u64) -> Result<()> {
        if self.shard.as_ref().is_some_and(Shard::scatters) {
            // On CPUs every step is looked at.
            return Ok(());
        }
        let found = self.bucket.clip(self.config.clip_norm)?.read()?;
        let more = found.skipped > self.left_out.replace(found.skipped);
        if !found.norm.is_finite() || more {
            return Err(not_finite(stage, "the gradient norm", f64::NAN, step));
        }
        Ok(())
    }

    /// Step `step` (0-based) on a global batch cut into micro-batches: loss, gradients, clipping and update. Without
    /// `read` nothing waits for a GPU. A batch with nothing to predict is no step: it leaves all as it is.
    ///
    /// # Errors
    /// A loss or gradient that is not finite; what a GPU answers.
    pub fn step<O: Objective + ?Sized>(
        &mut self,
        objective: &O,
        batches: &[Batch],
        step: u64,
        read: bool,
    ) -> Result<StepReport> {
        self.guarded(objective, batches, step, read, None)
    }

    /// As [`Stepper::step`]; a guard sees the values, or that they are not finite, before the update, for which a GPU
    /// is waited for, and may leave it out.
    ///
    /// # Errors
    /// As [`Stepper::step`], but for what the guard saw.
    pub fn guarded<O: Objective + ?Sized>(
        &mut self,
        objective: &O,
        batches: &[Batch],
        step: u64,
        read: bool,
        guard: Option<Guard<'_>>,
    ) -> Result<StepReport> {
        let targets = batches.iter().map(|b| objective.targets(b)).sum();
        self.shared(objective, &[batches], targets, step, read, guard)
    }

    /// As [`Stepper::guarded`], on this process's pieces of a batch that has so many targets in all.
    ///
    /// # Errors
    /// As [`Stepper::guarded`]; another process that fails or does not come.
    pub(crate) fn shared<O: Objective + ?Sized>(
        &mut self,
        objective: &O,
        pieces: &[impl AsRef<[Batch]>],
        targets: usize,
        step: u64,
        read: bool,
        guard: Option<Guard<'_>>,
    ) -> Result<StepReport> {
        let c = self.config.clone();
        let learning_rate = c.learning_rate * c.schedule.factor(step, c.steps, c.warmup_steps);
        let stage = objective.stage();
        let mut report = StepReport {
            stage,
            step: step + 1,
            steps: c.steps,
            values: None,
            learning_rate,
            tokens: (targets * objective.tokens_per_target()) as u64,
            units: 0,
            seconds: 0.0,
            data_seconds: 0.0,
            log: false,
            skipped: true,
            left_out: 0,
        };
        if targets == 0 {
            self.optimizer.skip();
            return Ok(report);
        }
        let (sums, survey) = self.gradients(objective, pieces, targets, step)?;
        report.units = survey.chosen;
        let clip = match self.shard.as_ref().filter(|shard| shard.scatters()) {
            Some(shard) => shard.clip(&mut self.bucket, c.clip_norm)?,
            None => self.bucket.clip(c.clip_norm)?,
        };
        let on_cpu = objective.store().device().is_cpu();
        // On a GPU the losses of all are exchanged where they are read: that is to wait for it.
        let sums = if on_cpu || read || guard.is_some() {
            self.of_all(sums, &clip, targets, step)?
        } else {
            Totals::Known(Vec::new())
        };
        // The parameters of a step that cannot be stay as they were: on the CPU because it is looked at first, on a
        // GPU because the optimiser lets out a step whose gradients have no finite norm.
        let look = || -> Result<StepValues> {
            let mut means = sums.means()?;
            let loss = if means.is_empty() { 0.0 } else { means.remove(0).1 };
            // Also of a loss that is no number: what a GPU has counted of this step is not the next one's.
            let found = clip.read()?;
            let more = found.skipped > self.left_out.replace(found.skipped);
            if !loss.is_finite() {
                return Err(not_finite(stage, "the training loss", loss, step + 1));
            }
            if !found.norm.is_finite() || more {
                let norm = if found.norm.is_finite() { f64::NAN } else { found.norm };
                return Err(not_finite(stage, "the gradient norm", norm, step + 1));
            }
            Ok(StepValues { loss, parts: means, gradient_norm: found.norm })
        };
        if let Some(guard) = guard {
            let seen = look();
            let goes_on = guard(&seen);
            match seen {
                Err(e) if !matches!(e, Error::NotFinite { .. }) => return Err(e),
                seen => report.values = seen.ok(),
            }
            if !goes_on || report.values.is_none() {
                self.optimizer.skip();
                return Ok(report);
            }
        } else if on_cpu {
            report.values = Some(look()?);
        }
        self.optimizer.update(&mut self.bucket, learning_rate, &clip)?;
        if let Some(shard) = &self.shard {
            shard.exchange(&self.optimizer, &mut self.bucket)?;
        }
        report.skipped = false;
        if read && report.values.is_none() {
            report.values = Some(look()?);
        }
        Ok(report)
    }

    /// The backward passes of this process's pieces, and the sum of the gradients over all processes, where these are shared out
    /// those of the own part. The losses of each piece come back, and what was chosen in the whole batch.
    fn gradients<O: Objective + ?Sized>(
        &mut self,
        objective: &O,
        pieces: &[impl AsRef<[Batch]>],
        targets: usize,
        step: u64,
    ) -> Result<(Vec<Sums>, Survey)> {
        let mean = 1.0 / targets.max(1) as f64;
        let whole = survey::of_all(objective, pieces, targets, (self.seed, step), &self.ranks)?;
        let mut chosen = whole.chosen.unwrap_or_default();
        let fixed = self.config.reduction == Reduction::Fixed;
        // Of several processes, and where each needs all gradients, the last pass exchanges them.
        let exchanges = !self.ranks.is_alone() && !fixed && !self.shard.as_ref().is_some_and(Shard::scatters);
        let mut left = pieces.iter().flat_map(AsRef::as_ref).filter(|b| objective.targets(b) > 0).count();
        let (mut losses, mut tree) = (Vec::new(), tree::Stack::default());
        self.bucket.clear();
        for piece in pieces {
            let mut sums = Sums::default();
            for batch in piece.as_ref() {
                if objective.targets(batch) == 0 {
                    continue;
                }
                left -= 1;
                let (loss, own) = objective.surveyed_loss(batch, self.seed, PURPOSE, step as u32, whole)?;
                if let (None, Some(own)) = (whole.chosen, own) {
                    chosen.chosen += own.chosen;
                }
                let mean = (&loss.sum * mean)?;
                match exchanges && left == 0 {
                    true => self.overlap.last(&mut self.bucket, Some(&mean), &self.ranks)?,
                    false => self.bucket.backward(&mean)?,
                }
                sums.add("loss", &loss.sum.detach(), loss.targets)?;
                for part in &loss.parts {
                    sums.add(part.name, &part.sum, part.count)?;
                }
            }
            losses.push(sums);
            if fixed {
                tree.push(self.bucket.values()?);
                self.bucket.clear();
            }
        }
        if let Some(sum) = tree.sum() {
            self.bucket.values()?.copy_from_slice(&sum);
        }
        match self.shard.as_ref().filter(|shard| shard.scatters()) {
            Some(shard) => shard.sum(self.bucket.values()?, self.config.reduction)?,
            None if fixed => tree::across(&self.ranks, self.bucket.values()?).map_err(told)?,
            // Nothing to predict in the rows of this process.
            None if exchanges && losses.iter().all(Sums::is_empty) => {
                self.overlap.last(&mut self.bucket, None, &self.ranks)?;
            }
            None => {}
        }
        // What other processes chose is known by a survey alone.
        let known = whole.chosen.is_some() || self.ranks.is_alone();
        Ok((losses, if known { chosen } else { Survey::default() }))
    }

    /// The losses of all pieces of all processes, in their order. The norm of the summed gradients and the number of targets
    /// must be the same everywhere.
    fn of_all(&self, mut own: Vec<Sums>, clip: &Clip, targets: usize, step: u64) -> Result<Totals> {
        if self.ranks.is_alone() && own.len() == 1 {
            return Ok(own.pop().map_or_else(|| Totals::Known(Vec::new()), Totals::Later));
        }
        let pieces = own.iter().map(Sums::read).collect::<candle_core::Result<Vec<_>>>()?;
        let record = (clip.read()?.norm.to_bits(), targets, pieces);
        self.ranks.well().map_err(told)?;
        let text = serde_json::to_vec(&record).map_err(candle_core::Error::wrap)?;
        let all = self.ranks.gather(&text, "the exchange of losses", Patience::Limited).map_err(told)?;
        let mut totals: Vec<(Cow<'static, str>, f64, usize)> = Vec::new();
        for (rank, text) in all.iter().enumerate() {
            let (norm, counted, pieces): (u64, usize, Vec<PieceRecord>) =
                serde_json::from_slice(text).map_err(candle_core::Error::wrap)?;
            if counted != targets {
                return Err(Error::user(
                    format!(
                        "step {}: {targets} targets on rank {} and {counted} on rank {rank}: the processes read other rows",
                        step + 1,
                        self.ranks.rank()
                    ),
                    "all must read the same files with the same program; go on from the last checkpoint with --resume",
                ));
            }
            if norm != record.0 {
                let [own, other] = [record.0, norm].map(f64::from_bits);
                let rank_here = self.ranks.rank();
                return Err(Error::user(
                    format!(
                        "step {}: the gradient norm is {own} on rank {rank_here} and {other} on rank {rank}: the processes have \
                         drifted apart",
                        step + 1
                    ),
                    "all must have the same program and kind of processor; go on from the last checkpoint with --resume",
                ));
            }
            for (name, sum, count) in pieces.into_iter().flatten() {
                let sum = f64::from_bits(sum);
                match totals.iter_mut().find(|total| total.0 == name) {
                    Some(total) => (total.1, total.2) = (total.1 + sum, total.2 + count),
                    None => totals.push((name.into(), sum, count)),
                }
            }
        }
        Ok(Totals::Known(totals))
    }
}

/// Losses of a piece as they come from another process: names, sums as the bits of an f64, and what they are sums over.
type PieceRecord = Vec<(String, u64, usize)>;

/// Losses of a whole batch.
enum Totals {
    /// To be read where they are asked for: a GPU may still compute them.
    Later(Sums),
    /// Sums with what they are sums over.
    Known(Vec<(Cow<'static, str>, f64, usize)>),
}

impl Totals {
    /// The means, in the order in which the sums came; waits for a GPU.
    fn means(&self) -> candle_core::Result<Vec<(Cow<'static, str>, f64)>> {
        let mean = |sum: f64, count: usize| sum * (1.0 / count.max(1) as f64);
        match self {
            Self::Later(sums) => sums
                .0
                .iter()
                .map(|(name, sum, count)| Ok((Cow::Borrowed(*name), mean(scalar(sum)?, *count))))
                .collect(),
            Self::Known(sums) => {
                Ok(sums.iter().map(|(name, sum, count)| (name.clone(), mean(*sum, *count))).collect())
            }
        }
    }
}

pub(crate) fn not_finite(stage: Stage, what: &'static str, value: f64, step: u64) -> Error {
    Error::NotFinite { stage, what, value, step, good: None, best: None }
}

/// Sums over micro-batches, where the loss is computed, with what they are sums over.
#[derive(Default)]
struct Sums(Vec<(&'static str, Tensor, usize)>);

impl Sums {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn add(&mut self, name: &'static str, value: &Tensor, count: usize) -> candle_core::Result<()> {
        match self.0.iter_mut().find(|(n, ..)| *n == name) {
            Some((_, sum, n)) => {
                *sum = (&*sum + value)?;
                *n += count;
            }
            None => self.0.push((name, value.clone(), count)),
        }
        Ok(())
    }

    /// What is known of them, for other processes: the sum as the bits of an f64.
    fn read(&self) -> candle_core::Result<Vec<(&'static str, u64, usize)>> {
        self.0.iter().map(|(name, sum, count)| Ok((*name, scalar(sum)?.to_bits(), *count))).collect()
    }
}
