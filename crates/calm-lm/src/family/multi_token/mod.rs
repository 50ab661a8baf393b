//! Multi-token models: a transformer over chunks whose hidden state has a head for each of the K next tokens
//! (arXiv 2404.19737). The tokens of a chunk are independent of each other given the text before: a patch model without
//! its inner order, and what a CALM that is trained by likelihood comes down to if its latent vector does not vary.
//!
//! ```text
//! ids [B,S,K] -> embeddings, K·D concatenated -> input MLP -> backbone, one position a chunk -> hidden [R,D]
//!   -> K heads [R,K,D] -> one vocabulary -> p(token k)
//! ```

mod config;
mod costs;
mod heads;

use calm_autoencoder::Autoencoder;
use calm_config::Problems;
use calm_nn::costs::{Flops, Parameters};
use calm_nn::{Footing, Held, ParamStore};
use candle_core::Result;

use self::heads::Heads;
use super::chunk_softmax::ChunkSoftmax;
use super::input::validate_chunk_size;
use super::{DrawKind, FamilyConfig, LanguageModel, TextFormat};
pub use config::{HeadsConfig, MultiTokenConfig};

/// Its key in configurations.
pub const NAME: &str = "multi-token";

impl MultiTokenConfig {
    /// A model of these settings; its parameters are created in `store`.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn model(&self, store: &ParamStore, text: &TextFormat) -> Result<ChunkSoftmax> {
        ChunkSoftmax::new(store, self.chunk_size, &self.backbone, text, |b| {
            Ok(Box::new(Heads::new(b, self)?))
        })
    }
}

impl FamilyConfig for MultiTokenConfig {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "a multi-token model"
    }

    fn chunk_size(&self) -> usize {
        self.chunk_size
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
        validate_chunk_size(self.chunk_size, problems);
        problems.within("backbone", |p| self.backbone.validate(p));
        problems.within("heads", |p| self.validate_heads(p));
    }

    fn build(
        &self,
        store: &ParamStore,
        text: &TextFormat,
        _autoencoder: Option<Autoencoder>,
    ) -> Result<Box<dyn LanguageModel>> {
        Ok(Box::new(self.model(store, text)?))
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

    fn held(&self, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held {
        costs::held(self, vocab, positions, on, recompute)
    }
}
