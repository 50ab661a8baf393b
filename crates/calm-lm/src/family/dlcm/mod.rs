//! Dynamic concept models (DLCM, arXiv 2512.24617): most of the work is done on concepts of several tokens, and the
//! model itself decides where a concept begins.
//!
//! ```text
//! tokens [B,S] -> encoder layers -> H [B,S,D] -> boundaries b, slots
//!    H at the slots -> W_up -> transformer over slots -> smoothing -> Z̃ [B,M,Dc]
//!    H + cross-attention of H over the slots seen -> decoder layers -> norm -> vocabulary
//! ```
//! **Index rule.** A token sees the concepts of its document that were opened at or before it, and a concept is made of
//! tokens at or before the one that opened it: `slots.rs`. The paper's own pooling, the mean over the concept's own
//! tokens, would show a token those behind it, and is not offered.
//!
//! | file | what |
//! |---|---|
//! | `boundaries.rs` | p and b |
//! | `slots.rs` | from b who is made of whom, who sees whom |
//! | `concepts.rs`, `cross.rs` | tokens to concepts, and back |
//! | `model.rs`, `text.rs` | whole rows; texts that grow |
//! | `scales.rs` | rates and initial values of wide models |
//! | `loss.rs` | cross-entropy, and what holds the ratio |
//! | `draws.rs` | whole rows and texts, for scores |

mod boundaries;
mod concepts;
mod config;
mod costs;
mod cross;
mod draws;
mod language_model;
#[cfg(test)]
mod leak;
mod loss;
mod model;
mod scales;
mod slots;
#[cfg(test)]
mod testing;
mod text;

use calm_autoencoder::Autoencoder;
use calm_config::Problems;
use calm_nn::costs::{Flops, Parameters};
use calm_nn::{Footing, Held, ParamStore};
use candle_core::Result;

use super::{DrawKind, FamilyConfig, LanguageModel, ModelConfig, TextFormat};
pub use boundaries::Boundaries;
pub use config::{
    BoundariesConfig, BoundaryRule, CosineConfig, CrossConfig, CrossKeys, DlcmConfig, LearntConfig,
    MupConfig, Pooling, Smoothing,
};
pub use model::Dlcm;

/// Its key in configurations.
pub const NAME: &str = "dlcm";

impl FamilyConfig for DlcmConfig {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "a dynamic concept model"
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Exact
    }

    fn head_sizes(&self) -> Vec<usize> {
        vec![self.tokens.head_size(), self.concepts.head_size()]
    }

    fn validate(&self, problems: &mut Problems) {
        self.check(problems);
    }

    fn build(
        &self,
        store: &ParamStore,
        text: &TextFormat,
        _autoencoder: Option<Autoencoder>,
    ) -> Result<Box<dyn LanguageModel>> {
        Ok(Box::new(Dlcm::new(store, self, text)?))
    }

    fn parameters(&self, vocab: usize) -> Parameters {
        costs::parameters(self, vocab)
    }

    fn training_flops(&self, vocab: usize, context: usize) -> Flops {
        self.inference_flops(vocab, context, 1).times(3.0)
    }

    fn inference_flops(&self, vocab: usize, context: usize, _draws: usize) -> Flops {
        costs::inference_flops(self, vocab, context)
    }

    fn at_ratio(&self, ratio: f64) -> Option<ModelConfig> {
        let boundaries = BoundariesConfig { ratio, ..self.boundaries.clone() };
        Some(Self { boundaries, ..self.clone() }.into())
    }

    fn held(&self, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held {
        costs::held(self, vocab, positions, on, recompute)
    }
}
