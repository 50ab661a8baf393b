//! Patch models: a transformer over chunks, and inside each chunk a small decoder that goes token by token (MegaByte,
//! arXiv 2305.07185; depth transformers). What a CALM is to be compared with at the same K: as few steps of the
//! backbone, and exact probabilities.
//!
//! ```text
//! ids [B,S,K] -> embeddings, K·D concatenated -> input MLP -> backbone, one position a chunk -> hidden [R,D]
//!   hidden, tokens before k of the next chunk -> local decoder [R,K,W] -> vocabulary -> p(token k)
//! ```
//! With K = 1 and no local layers it is the baseline but for the way in (an MLP and a LayerNorm after the embedding)
//! and a linear map and a norm on the way out.

mod config;
mod costs;
mod local;

use calm_autoencoder::Autoencoder;
use calm_config::Problems;
use calm_nn::costs::{Flops, Parameters};
use calm_nn::{Footing, Held, ParamStore};
use candle_core::Result;

use self::local::Local;
use super::chunk_softmax::ChunkSoftmax;
use super::input::validate_chunk_size;
use super::{DrawKind, FamilyConfig, LanguageModel, TextFormat};
pub use config::{LocalConfig, PatchConfig};

/// Its key in configurations.
pub const NAME: &str = "patch";

impl PatchConfig {
    /// A model of these settings; its parameters are created in `store`.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn model(&self, store: &ParamStore, text: &TextFormat) -> Result<ChunkSoftmax> {
        ChunkSoftmax::new(store, self.chunk_size, &self.backbone, text, |b| {
            Ok(Box::new(Local::new(b, self, text)?))
        })
    }
}

impl FamilyConfig for PatchConfig {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "a patch model"
    }

    fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Exact
    }

    fn head_sizes(&self) -> Vec<usize> {
        let local = (self.local.layers > 0).then(|| self.local_backbone().head_size());
        std::iter::once(self.backbone.head_size()).chain(local).collect()
    }

    fn reads_input(&self) -> bool {
        !self.backbone.attention.is_causal()
    }

    fn validate(&self, problems: &mut Problems) {
        validate_chunk_size(self.chunk_size, problems);
        let before = problems.len();
        problems.within("backbone", |p| self.backbone.validate(p));
        // The local decoder takes after the backbone: what is wrong there is said once.
        if problems.len() == before {
            problems.within("local", |p| self.validate_local(p));
        }
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
