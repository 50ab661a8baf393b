//! The discrete baseline: the same backbone on tokens, with a vocabulary head and shifted cross-entropy.

mod config;
mod language_model;
mod model;
mod published;

use calm_autoencoder::Autoencoder;
use calm_config::Problems;
use calm_nn::costs::{Breakdown, Count, Flops, Parameters, flops, weights};
use calm_nn::{Footing, Held, ParamStore};
use candle_core::Result;

use super::{DrawKind, FamilyConfig, LanguageModel, TextFormat};
use crate::published::ConfigJson;
pub use config::BaselineConfig;
pub use model::Baseline;
pub(crate) use published::PUBLISHED;

/// Its key in configurations.
pub const NAME: &str = "baseline";

impl FamilyConfig for BaselineConfig {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "a baseline"
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Exact
    }

    fn head_sizes(&self) -> Vec<usize> {
        vec![self.backbone.head_size()]
    }

    fn reads_input(&self) -> bool {
        !self.backbone.attention.is_causal()
    }

    fn validate(&self, problems: &mut Problems) {
        problems.within("backbone", |p| self.backbone.validate(p));
    }

    fn build(
        &self,
        store: &ParamStore,
        text: &TextFormat,
        _autoencoder: Option<Autoencoder>,
    ) -> Result<Box<dyn LanguageModel>> {
        Ok(Box::new(Baseline::new(store, self, text)?))
    }

    fn parameters(&self, vocab: usize) -> Parameters {
        let embedding = Count(weights(vocab, self.backbone.hidden_size));
        Breakdown {
            parts: vec![
                ("embedding", embedding),
                ("backbone", Count(self.backbone.layer_parameters())),
                ("norm", Count(self.backbone.hidden_size as u64)),
                ("vocabulary", embedding),
            ],
        }
    }

    fn training_flops(&self, vocab: usize, context: usize) -> Flops {
        self.inference_flops(vocab, context, 1).times(3.0)
    }

    fn inference_flops(&self, vocab: usize, context: usize, _draws: usize) -> Flops {
        Breakdown {
            parts: vec![
                ("backbone", self.backbone.matrix_flops()),
                ("attention", self.backbone.attention_flops(context)),
                ("vocabulary", flops(weights(self.backbone.hidden_size, vocab))),
            ],
        }
    }

    fn held(&self, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held {
        let mut held = self.backbone.held(positions, on, recompute);
        on.cross_entropy(&mut held, vocab, self.backbone.hidden_size, positions, true);
        held
    }

    fn published(&self) -> Option<ConfigJson> {
        self.backbone.attention.is_causal().then(|| published::write(self))
    }
}
