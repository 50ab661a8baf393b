//! What a stage optimises. One loop trains all three: autoencoder, CALM and baseline.

use calm_autoencoder::Autoencoder;
use calm_data::Batch;
use calm_eval::reconstruction::text_chunks;
use calm_eval::score::to_tensors;
use calm_lm::{Baseline, Calm};
use calm_nn::device::upload;
use calm_nn::{Noise, ParamStore};
use candle_core::{DType, Device, Result, Tensor};

/// Loss of one micro-batch.
pub struct BatchLoss {
    /// Sum over the targets, scalar with gradient.
    pub sum: Tensor,
    /// Parts to be logged, as sums over the targets (scalars without gradient).
    pub parts: Vec<(&'static str, Tensor)>,
}

/// Something a stage can optimise.
pub trait Objective {
    /// `autoencoder` or `lm`.
    fn stage(&self) -> &'static str;

    /// The trainable parameters.
    fn store(&self) -> &ParamStore;

    /// Targets of a micro-batch: the loss of a step is the sum over all its micro-batches divided by their
    /// targets together.
    fn targets(&self, batch: &Batch) -> usize;

    /// Tokens that a target stands for.
    fn tokens_per_target(&self) -> usize;

    /// The loss of a micro-batch. `purpose` and `step` name the noise.
    fn loss(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<BatchLoss>;
}

/// Stage 1.
pub struct AutoencoderObjective {
    /// The model.
    pub model: Autoencoder,
    /// Its parameters.
    pub store: ParamStore,
}

impl Objective for AutoencoderObjective {
    fn stage(&self) -> &'static str {
        "autoencoder"
    }

    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn targets(&self, batch: &Batch) -> usize {
        batch.target_count()
    }

    fn tokens_per_target(&self) -> usize {
        self.model.chunk_size()
    }

    fn loss(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<BatchLoss> {
        let (ids, rows) = text_chunks(batch);
        let ids = upload(&ids, (rows.len(), batch.chunk_size), self.store.context())?;
        let loss = self.model.loss(&ids, &Noise::Keyed { seed, purpose, step, rows: &rows })?;
        let per_token = 1.0 / batch.chunk_size as f64;
        Ok(BatchLoss {
            sum: loss.total,
            parts: vec![("cross_entropy", (loss.cross_entropy * per_token)?), ("kl", loss.kl)],
        })
    }
}

/// Stage 2.
pub struct CalmObjective {
    /// The model.
    pub model: Calm,
    /// Its parameters (the autoencoder's are not among them).
    pub store: ParamStore,
}

impl CalmObjective {
    /// Mean loss with true and with exchanged hidden states.
    pub fn condition_check(&self, batch: &Batch, seed: u64) -> Result<(f64, f64)> {
        let b = to_tensors(batch, self.store.context())?;
        let noise = Noise::Keyed { seed, purpose: "condition", step: 0, rows: &b.rows };
        self.model.condition_check(&b, &noise)
    }
}

impl Objective for CalmObjective {
    fn stage(&self) -> &'static str {
        "lm"
    }

    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn targets(&self, batch: &Batch) -> usize {
        batch.predict_count()
    }

    fn tokens_per_target(&self) -> usize {
        self.model.autoencoder().chunk_size()
    }

    fn loss(&self, batch: &Batch, seed: u64, purpose: &str, step: u32) -> Result<BatchLoss> {
        let b = to_tensors(batch, self.store.context())?;
        let noise = Noise::Keyed { seed, purpose, step, rows: &b.rows };
        Ok(BatchLoss { sum: self.model.loss(&b, &noise)?.sum, parts: Vec::new() })
    }
}

/// The discrete baseline's only stage.
pub struct BaselineObjective {
    /// The model.
    pub model: Baseline,
    /// Its parameters.
    pub store: ParamStore,
}

impl Objective for BaselineObjective {
    fn stage(&self) -> &'static str {
        "lm"
    }

    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn targets(&self, batch: &Batch) -> usize {
        batch.predict_count()
    }

    fn tokens_per_target(&self) -> usize {
        1
    }

    fn loss(&self, batch: &Batch, _seed: u64, _purpose: &str, _step: u32) -> Result<BatchLoss> {
        let b = to_tensors(batch, self.store.context())?;
        Ok(BatchLoss { sum: self.model.loss(&b)?.sum, parts: Vec::new() })
    }
}

/// Mean validation loss over batches, without gradient; the noise is the same at every call.
pub fn validation_loss(
    objective: &dyn Objective,
    batches: impl Iterator<Item = Batch>,
    seed: u64,
) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for (i, batch) in batches.enumerate() {
        let targets = objective.targets(&batch);
        if targets == 0 {
            continue;
        }
        let loss = objective.loss(&batch, seed, "validation", i as u32)?;
        sum += scalar(&loss.sum)?;
        count += targets;
    }
    Ok(sum / count.max(1) as f64)
}

/// A scalar tensor as f64.
pub fn scalar(t: &Tensor) -> Result<f64> {
    t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.to_scalar()
}
