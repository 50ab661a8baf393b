//! What a stage optimises. One loop trains autoencoders and language models of every family.

use calm_data::Batch;
use calm_eval::reconstruction::text_chunks;
use calm_eval::score::to_tensors;
use calm_eval::workers::{Exact, Workers};
use calm_lm::{LanguageModel, Loss, LossPart, Survey, Whole};
use calm_nn::device::upload;
use calm_nn::{Noise, ParamStore};
use calm_run::Stage;
use candle_core::{DType, Device, Result, Tensor};

use crate::models::StageOne;

/// Something a stage can optimise.
pub trait Objective {
    /// Whose objective it is.
    fn stage(&self) -> Stage;

    /// The trainable parameters.
    fn store(&self) -> &ParamStore;

    /// Targets of a micro-batch: the loss of a step is the sum over all its micro-batches divided by their
    /// targets together.
    fn targets(&self, batch: &Batch) -> usize;

    /// K, tokens that a target stands for.
    fn tokens_per_target(&self) -> usize;

    /// The loss of a micro-batch. `purpose` and `step` name the noise, whose rows are those of the whole batch.
    ///
    /// # Errors
    /// What a GPU answers.
    fn loss(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<Loss>;

    /// See [`LanguageModel::surveys`].
    fn surveys(&self) -> bool {
        false
    }

    /// See [`LanguageModel::survey`].
    ///
    /// # Errors
    /// What a GPU answers.
    fn survey(&self, _batch: &Batch, _seed: u64, _purpose: &str, _step: u32) -> Result<Survey> {
        Ok(Survey::default())
    }

    /// What a step minimises of a micro-batch: see [`LanguageModel::surveyed_loss`].
    ///
    /// # Errors
    /// What a GPU answers.
    fn surveyed_loss(
        &self,
        batch: &Batch,
        seed: u64,
        purpose: &str,
        step: u32,
        _of: Whole,
    ) -> Result<(Loss, Option<Survey>)> {
        Ok((self.loss(batch, seed, purpose, step)?, None))
    }
}

/// How targets of a stage are counted, without its model.
pub(crate) fn counted(stage: Stage) -> fn(&Batch) -> usize {
    match stage {
        Stage::Autoencoder => Batch::target_count,
        Stage::Lm => Batch::predict_count,
    }
}

impl Objective for StageOne {
    fn stage(&self) -> Stage {
        Stage::Autoencoder
    }

    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn targets(&self, batch: &Batch) -> usize {
        counted(Stage::Autoencoder)(batch)
    }

    fn tokens_per_target(&self) -> usize {
        self.model.chunk_size()
    }

    fn loss(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<Loss> {
        let (ids, rows) = text_chunks(batch);
        let ids = upload(&ids, (rows.len(), batch.chunk_size), self.store.context())?;
        let loss = self.model.loss(&ids, &Noise::Keyed { seed, purpose, step, rows: &rows })?;
        let part = |name, sum, count| LossPart { name, sum, count };
        let parts = vec![
            part("cross_entropy", loss.cross_entropy, rows.len() * batch.chunk_size),
            part("kl", loss.kl, rows.len()),
        ];
        Ok(Loss { sum: loss.total, targets: rows.len(), parts })
    }
}

impl Objective for dyn LanguageModel + '_ {
    fn stage(&self) -> Stage {
        Stage::Lm
    }

    fn store(&self) -> &ParamStore {
        LanguageModel::store(self)
    }

    fn targets(&self, batch: &Batch) -> usize {
        counted(Stage::Lm)(batch)
    }

    fn tokens_per_target(&self) -> usize {
        self.chunk_size()
    }

    fn loss(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<Loss> {
        let b = to_tensors(batch, LanguageModel::store(self).context())?;
        LanguageModel::loss(self, &b, &Noise::Keyed { seed, purpose, step, rows: &b.rows })
    }

    fn surveys(&self) -> bool {
        LanguageModel::surveys(self)
    }

    fn survey(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<Survey> {
        let b = to_tensors(batch, LanguageModel::store(self).context())?;
        LanguageModel::survey(self, &b, &Noise::Keyed { seed, purpose, step, rows: &b.rows })
    }

    fn surveyed_loss(
        &self,
        batch: &Batch,
        seed: u64,
        purpose: &str,
        step: u32,
        of: Whole,
    ) -> Result<(Loss, Option<Survey>)> {
        let b = to_tensors(batch, LanguageModel::store(self).context())?;
        LanguageModel::surveyed_loss(self, &b, &Noise::Keyed { seed, purpose, step, rows: &b.rows }, of)
    }
}

/// Mean validation loss over batches, without gradient. The noise is the same at every call, and that of a row does
/// not depend on the batch it comes in.
///
/// # Errors
/// What a GPU answers; those of the workers.
pub fn validation_loss<O: Objective + ?Sized, W: Workers>(
    objective: &O,
    batches: impl Iterator<Item = Batch>,
    seed: u64,
    workers: W,
) -> std::result::Result<f64, W::Error> {
    let (mut sum, mut count) = (0.0, 0);
    let measure = |batch: Batch| {
        if objective.targets(&batch) == 0 {
            return Ok(None);
        }
        let loss = objective.loss(&batch, seed, "validation", 0)?;
        Ok(Some((Exact(scalar(&loss.sum)?), loss.targets)))
    };
    workers.each(batches, measure, |loss| {
        if let Some((Exact(loss), targets)) = loss {
            sum += loss;
            count += targets;
        }
    })?;
    Ok(sum / count.max(1) as f64)
}

/// A scalar tensor as f64.
///
/// # Errors
/// What a GPU answers; this waits for it.
pub fn scalar(t: &Tensor) -> Result<f64> {
    t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar()
}
