//! Whether a `config.json` describes a model as large as its weights, before one is made in memory.

use calm_autoencoder::AutoencoderConfig;
use calm_lm::ModelConfig;
use calm_lm::published::Findings;
use candle_core::Tensor;

/// A model may have more parameters than the weights have numbers: tensors are missing, which is told one by one. But
/// not so many more.
const MORE: u64 = 4;
/// Whatever the weights, a model of so many parameters does no harm.
const SMALL: u64 = 1 << 20;

/// Adds a problem if the model is far larger than what was read; whether it may be made.
pub(super) fn fit<'a>(
    model: Option<&ModelConfig>,
    autoencoder: Option<(&AutoencoderConfig, usize)>,
    vocab: usize,
    read: impl Iterator<Item = &'a Tensor>,
    findings: &mut Findings,
) -> bool {
    let first = autoencoder.map_or(0, |(config, chunk_size)| config.parameters(chunk_size, vocab).total().0);
    let second = model.map_or(0, |model| model.parameters(vocab).total().0);
    let described = first.saturating_add(second);
    let held: u64 = read.map(|tensor| tensor.elem_count() as u64).sum();
    let fits = described <= MORE.saturating_mul(held).saturating_add(SMALL);
    if !fits {
        findings.problem(format!(
            "config.json describes a model of {described} parameters, and the weights hold {held} numbers"
        ));
    }
    fits
}
