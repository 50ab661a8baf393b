//! Settings of a dynamic concept model.

use calm_config::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::BackboneConfig;

/// Token layers around a transformer over concepts, whose boundaries the model finds itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DlcmConfig {
    /// All layers over tokens, those before the concepts and those after them.
    pub tokens: BackboneConfig,
    /// How many of them come before the concepts; null: half, rounded up.
    pub encoder_layers: Option<usize>,
    /// The transformer over concepts.
    pub concepts: BackboneConfig,
    /// Where a concept begins.
    pub boundaries: BoundariesConfig,
    /// What a concept is made of.
    pub pooling: Pooling,
    /// What becomes of concepts before tokens see them; without effect under `every`.
    pub smoothing: Smoothing,
    /// Whether what a token takes from its concepts carries the gradient of its boundary's probability (H-Net);
    /// not under `every`, which has none.
    pub straight_through: bool,
    /// How tokens look at concepts.
    pub cross: CrossConfig,
    /// Widths of the model that learning rate, ε and initial values were chosen for; null: of this one.
    pub mup: Option<MupConfig>,
}

/// Base widths of the two parts (decoupled muP). Heads must be as large as in the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MupConfig {
    /// Of `tokens.hidden_size`.
    pub tokens: usize,
    /// Of `concepts.hidden_size`.
    pub concepts: usize,
}

impl Default for DlcmConfig {
    fn default() -> Self {
        Self {
            tokens: BackboneConfig::default(),
            encoder_layers: None,
            concepts: BackboneConfig {
                hidden_size: 512,
                intermediate_size: 1408,
                heads: 8,
                ..BackboneConfig::default()
            },
            boundaries: BoundariesConfig::default(),
            pooling: Pooling::default(),
            smoothing: Smoothing::default(),
            straight_through: false,
            cross: CrossConfig::default(),
            mup: None,
        }
    }
}

/// Where a concept begins, and how many tokens it is to have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BoundariesConfig {
    /// How boundaries are found.
    pub by: BoundaryRule,
    /// R, tokens a concept on average over a global batch, at least 1.1; of `every` exactly so many, a whole number.
    pub ratio: f64,
    /// Weight of the auxiliary loss that holds the ratio; 0: none. The paper gives none, H-Net has 0.03. Without effect
    /// under `every`.
    pub weight: f64,
}

impl Default for BoundariesConfig {
    fn default() -> Self {
        Self { by: BoundaryRule::default(), ratio: 4.0, weight: 0.03 }
    }
}

/// How boundaries are found.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum BoundaryRule {
    /// By learnt projections of two neighbouring states; drawn in training, where they are as probable as not in use.
    Learnt(LearntConfig),
    /// By the angle between two neighbouring states themselves.
    Cosine(CosineConfig),
    /// One every R tokens. There are no probabilities: `weight` and `smoothing` have no effect.
    Every,
}

impl Default for BoundaryRule {
    fn default() -> Self {
        Self::Learnt(LearntConfig::default())
    }
}

/// Learnt boundaries.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LearntConfig {
    /// α: in training boundaries are drawn from p^α / (p^α + (1 − p)^α). The smaller it is, the fewer boundaries use has
    /// than training.
    pub sharpness: f64,
}

impl Default for LearntConfig {
    fn default() -> Self {
        Self { sharpness: 8.0 }
    }
}

/// Boundaries where the direction of the states changes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CosineConfig {
    /// τ: a boundary where (1 − cos) / 2 is above it.
    pub threshold: f64,
}

impl Default for CosineConfig {
    fn default() -> Self {
        Self { threshold: 0.5 }
    }
}

/// What a concept is made of. Nothing behind its boundary: the mean over its own tokens, as the paper prints it, would
/// show a token its successors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The state of the token that opens it (H-Net).
    #[default]
    Boundary,
    /// The mean of the tokens that its boundary closes; of a document's first concept the state of the first token.
    Closed,
}

/// What becomes of concepts before tokens see them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Smoothing {
    /// Each is mixed with those before it, the more the less certain its boundary was.
    #[default]
    Ema,
    /// Nothing.
    None,
}

/// How tokens look at concepts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CrossConfig {
    /// Query heads, of the size of those of `tokens`; null: as many.
    pub heads: Option<usize>,
    /// Key/value heads; null: as many as those of `tokens`.
    pub kv_heads: Option<usize>,
    /// What a token sees.
    pub keys: CrossKeys,
}

/// What a token sees of its document's concepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CrossKeys {
    /// Each once.
    #[default]
    Concepts,
    /// Each as often as it has tokens up to this one: concepts repeated to the length of the text.
    Replicated,
}

impl DlcmConfig {
    /// Token layers before the concepts.
    pub fn encoder_layers(&self) -> usize {
        self.encoder_layers.unwrap_or(self.tokens.layers.div_ceil(2)).min(self.tokens.layers)
    }

    /// The token layers before the concepts, perhaps none.
    pub(super) fn encoder(&self) -> BackboneConfig {
        BackboneConfig { layers: self.encoder_layers(), ..self.tokens.clone() }
    }

    /// The token layers after the concepts, perhaps none.
    pub(super) fn decoder(&self) -> BackboneConfig {
        BackboneConfig { layers: self.tokens.layers - self.encoder_layers(), ..self.tokens.clone() }
    }

    /// Query and key/value heads of the cross-attention.
    pub(super) fn cross_heads(&self) -> (usize, usize) {
        let heads = self.cross.heads.unwrap_or(self.tokens.heads);
        (heads, self.cross.kv_heads.unwrap_or_else(|| self.tokens.kv_heads()))
    }

    /// Whether p is there at all.
    pub(super) fn has_probability(&self) -> bool {
        self.boundaries.by != BoundaryRule::Every
    }

    /// Whether anything in the loss depends on p.
    fn probability_counts(&self) -> bool {
        self.boundaries.weight > 0.0 || self.smoothing == Smoothing::Ema || self.straight_through
    }

    pub(super) fn check(&self, problems: &mut Problems) {
        problems.within("tokens", |p| self.tokens.validate(p));
        problems.within("concepts", |p| self.concepts.validate(p));
        // Concepts are cut as the text is read, from its beginning on.
        let why = "a concept knows nothing of what stands after its boundary";
        problems.within("tokens", |p| self.tokens.must_be_causal(why, p));
        problems.within("concepts", |p| self.concepts.must_be_causal(why, p));
        if let Some(layers) = self.encoder_layers.filter(|l| *l > self.tokens.layers) {
            let all = self.tokens.layers;
            problems.add("encoder_layers", format!("is {layers}: `tokens` has {all} layers in all"));
        }
        problems.within("boundaries", |p| self.boundaries.check(p));
        let (heads, kv) = self.cross_heads();
        if heads == 0 || kv == 0 {
            problems.add("cross", "must have at least 1 head");
        } else if !heads.is_multiple_of(kv) {
            problems.add("cross", format!("heads {heads} must be a multiple of kv_heads {kv}"));
        }
        if self.mup.is_some_and(|mup| mup.tokens == 0 || mup.concepts == 0) {
            problems.add("mup", "base widths must be at least 1");
        }
        if self.straight_through && !self.has_probability() {
            problems
                .add("straight_through", "by: every has no probabilities: take it out, or take another rule");
        }
        if matches!(self.boundaries.by, BoundaryRule::Learnt(_)) && !self.probability_counts() {
            problems.add(
                "boundaries",
                "by: learnt needs a weight above 0, smoothing: ema or straight_through: true, or nothing would teach \
                 where to set them",
            );
        }
    }
}

/// Nearer to 1 the factor R/(R − 1) of the auxiliary loss grows beyond what its weight is meant for.
const LEAST_RATIO: f64 = 1.1;

impl BoundariesConfig {
    fn check(&self, problems: &mut Problems) {
        let Self { by, ratio, weight } = *self;
        match by {
            BoundaryRule::Every if !(ratio >= 1.0 && ratio.fract() == 0.0) => {
                problems.add("ratio", format!("is {ratio}: by: every needs a whole number from 1 on"));
            }
            BoundaryRule::Learnt(_) | BoundaryRule::Cosine(_)
                if !(ratio >= LEAST_RATIO && ratio.is_finite()) =>
            {
                problems.add("ratio", format!("is {ratio}: must be at least {LEAST_RATIO}"));
            }
            _ => {}
        }
        match by {
            BoundaryRule::Learnt(LearntConfig { sharpness }) => {
                if !(sharpness > 0.0 && sharpness.is_finite()) {
                    problems.add("by.learnt.sharpness", format!("is {sharpness}: must be above 0"));
                }
            }
            BoundaryRule::Cosine(CosineConfig { threshold }) => {
                if !(threshold > 0.0 && threshold < 1.0) {
                    problems.add("by.cosine.threshold", format!("is {threshold}: must be between 0 and 1"));
                }
            }
            BoundaryRule::Every => {}
        }
        if !(weight >= 0.0 && weight.is_finite()) {
            problems.add("weight", format!("is {weight}: must be at least 0"));
        }
    }
}
