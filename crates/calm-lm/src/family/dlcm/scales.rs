//! Decoupled muP (arXiv 2512.24617, equations 18 to 21): the settings of a narrow model for a wide one, token and concept
//! parts each by their own width.
//!
//! ```text
//! s = width / base width of the part whose states a matrix takes
//! hidden matrices: variance σ²/s, learning rate η/s, ε/s       logits: 1/s_token
//! embeddings, norms, vocabulary: as the settings say
//! ```
//! Cross-attention's queries and output, W_up and the boundaries' projections take tokens, its keys and values concepts.
//! A head must be as large as the base's, since scores stay divided by its root.

use calm_nn::{Builder, Init, Scale, WeightInit};

use super::DlcmConfig;
use crate::BackboneConfig;

/// How much wider than its base a part is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Width {
    now: usize,
    base: usize,
}

impl Width {
    /// Of what takes tokens.
    pub(super) fn of_tokens(config: &DlcmConfig) -> Self {
        let now = config.tokens.hidden_size;
        Self { now, base: config.mup.map_or(now, |mup| mup.tokens) }
    }

    /// Of what takes concepts.
    pub(super) fn of_concepts(config: &DlcmConfig) -> Self {
        let now = config.concepts.hidden_size;
        Self { now, base: config.mup.map_or(now, |mup| mup.concepts) }
    }

    /// s.
    pub(super) fn factor(self) -> f64 {
        self.now as f64 / self.base as f64
    }

    /// A builder whose matrices are trained at this width.
    pub(super) fn builder(self, b: &Builder) -> Builder {
        b.scaled(Scale::of_width(self.now, self.base))
    }

    /// How these matrices start.
    pub(super) fn init(self, init: WeightInit) -> Init {
        init.at_scale(self.factor()).into()
    }

    /// Layers whose matrices start so.
    pub(super) fn layers(self, config: BackboneConfig) -> BackboneConfig {
        BackboneConfig { init: config.init.at_scale(self.factor()), ..config }
    }
}
