//! Model families: everything above this crate knows a model only through the traits of this module.
//!
//! ```text
//! FamilyConfig   settings: chunk size, stages, validation, parameters, FLOPs, bytes held, names; builds a
//! LanguageModel  parameters, loss as named parts, draws at every position of a batch, a sampler with state
//! ```
//! **Adding a family** is one module here: its settings, which implement [`FamilyConfig`], its model, which implements
//! [`LanguageModel`]; and its line in `registry/shipped.rs`. A family whose checkpoints come as folders of the
//! reference implementation says so too ([`PublishedFamily`], [`FamilyConfig::published`]).
//! `crates/calm-train/tests/toy_family.rs` shows a whole one, which trains, is scored and generates through the same
//! commands as the others.

pub mod baseline;
pub mod calm;
mod chunk_softmax;
mod coding;
pub mod dlcm;
mod draws;
mod filler;
mod input;
mod inversion;
pub mod multi_token;
pub mod patch;
mod softmax;
mod text_format;
mod token_coding;
mod token_draws;
mod token_sampler;

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_config::Problems;
use calm_nn::costs::{Flops, Parameters};
use calm_nn::{Footing, Held, Noise, ParamStore};
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::published::{ConfigJson, Keys, Names};
use crate::registry::{Choice, Entry, Plain};
use crate::sampler::{Sampler, SpecialIds};
use crate::{ChunkBatch, HeadConfig};
pub use chunk_softmax::ChunkSoftmax;
pub use coding::{CodedChunks, CodedTexts, Coding};
pub use draws::{Decode, DecodedDraws, DrawKind, DrawRequest, Draws, ExactDraws, GRAM, SampledDraws};
pub use inversion::Inversion;
pub use text_format::TextFormat;

/// Settings that runs of version 0.1 have under another name, each with its name of now, for whoever loads a
/// configuration with models in it.
pub const RENAMED: &[(&str, &str)] = &[("init_std", "init")];

/// Settings of a family: what it is made of and what it costs. V is the vocabulary, S the context in positions, each
/// of which stands for K tokens.
pub trait FamilyConfig: Plain {
    /// Its key under `model` in a configuration.
    fn name(&self) -> &'static str;

    /// What people call a model of it, with its article.
    fn title(&self) -> &'static str;

    /// K, tokens a position.
    fn chunk_size(&self) -> usize;

    /// What its models draw.
    fn draws(&self) -> DrawKind;

    /// The autoencoder that a first stage trains, for families that work on its latents.
    fn autoencoder(&self) -> Option<&AutoencoderConfig> {
        None
    }

    /// The head that draws latents, for families that have one.
    fn head(&self) -> Option<&HeadConfig> {
        None
    }

    /// How a drawn latent vector becomes tokens; None of a family that draws none.
    fn decode(&self) -> Option<Decode> {
        None
    }

    /// The same model with another decoding; None of a family without latent vectors.
    fn decoded_by(&self, _decode: Decode) -> Option<ModelConfig> {
        None
    }

    /// Numbers of an attention head, for each kind of attention that it has: a GPU has kernels for some sizes.
    fn head_sizes(&self) -> Vec<usize>;

    /// Whether its backbone looks at the input of a document, the part before the one that the loss is taken on, in another
    /// direction than forward.
    fn reads_input(&self) -> bool {
        false
    }

    /// Adds what is impossible, by key of these settings.
    fn validate(&self, problems: &mut Problems);

    /// Creates the model's parameters in `store`, on the autoencoder where it needs one.
    ///
    /// # Errors
    /// An autoencoder that is missing or of other sizes; no memory left on a GPU.
    fn build(
        &self,
        store: &ParamStore,
        text: &TextFormat,
        autoencoder: Option<Autoencoder>,
    ) -> Result<Box<dyn LanguageModel>>;

    /// Trainable parameters by part, without the autoencoder's.
    fn parameters(&self, vocab: usize) -> Parameters;

    /// Training FLOPs of a token, without the autoencoder's own training.
    fn training_flops(&self, vocab: usize, context: usize) -> Flops;

    /// FLOPs of generating a token at the end of a full context, with `draws` samples of every chunk: 1 at T = 1, the
    /// pool of the batch approximation below it. Families with probabilities need one draw at any temperature.
    fn inference_flops(&self, vocab: usize, context: usize, draws: usize) -> Flops;

    /// What a training step on `positions` positions holds.
    fn held(&self, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held;

    /// What they write into the `config.json` of a published checkpoint; None without a published form.
    fn published(&self) -> Option<ConfigJson> {
        None
    }

    /// Tokens that a segment is to have on average, of a family that cuts text into segments of its own; None of others.
    fn ratio(&self) -> Option<f64> {
        None
    }

    /// The same model as if a segment were so many tokens on average, for the costs of a ratio that training realised; None of
    /// a family without segments.
    fn at_ratio(&self, _ratio: f64) -> Option<ModelConfig> {
        None
    }

    /// The same model on this autoencoder, of chunks of so many tokens; None of a family without an autoencoder.
    fn on_autoencoder(&self, _chunk_size: usize, _autoencoder: &AutoencoderConfig) -> Option<ModelConfig> {
        None
    }
}

/// Which model: `{NAME: settings}`.
pub type ModelConfig = Choice<dyn FamilyConfig>;

/// How a family is read from a published checkpoint. Its weights come by the names of its parameters and aliases.
#[derive(Clone, Copy, Debug)]
pub struct PublishedFamily {
    /// What its folders may be called.
    pub names: fn() -> Vec<Names>,
    /// Its settings from the keys of a folder that is called so. Of its autoencoder, where it has one, only the sizes
    /// that this folder names: the rest lies in a folder of its own.
    pub read: fn(Names, &mut Keys<'_>) -> ModelConfig,
    /// Default settings around a published autoencoder and its chunk size, for families that have one.
    pub around: Option<fn(usize, &AutoencoderConfig) -> ModelConfig>,
}

impl Entry<dyn FamilyConfig> {
    /// The entry of a family whose settings are a `T`.
    pub const fn family<T: FamilyConfig + DeserializeOwned + JsonSchema>(
        name: &'static str,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            about,
            published: None,
            read: |settings| Ok(Box::new(erased_serde::deserialize::<T>(settings)?)),
            schema: |generator| generator.subschema_for::<T>(),
        }
    }

    /// The same entry, which published checkpoints are read by.
    pub const fn published(self, form: PublishedFamily) -> Self {
        Self { published: Some(form), ..self }
    }
}

impl<T: FamilyConfig> From<T> for ModelConfig {
    fn from(settings: T) -> Self {
        Self::boxed(Box::new(settings))
    }
}

/// Loss of a batch.
#[derive(Clone, Debug)]
pub struct Loss {
    /// What is minimised, summed over the targets: scalar with gradient. A training step divides it by the targets of
    /// the whole global batch.
    pub sum: Tensor,
    /// R, targets of the batch.
    pub targets: usize,
    /// More numbers for the metrics.
    pub parts: Vec<LossPart>,
}

/// A number beside the loss.
#[derive(Clone, Debug)]
pub struct LossPart {
    /// Its name in the metrics; `loss` is that of the loss itself.
    pub name: &'static str,
    /// Sum over whatever it is a mean of: scalar without gradient.
    pub sum: Tensor,
    /// Number of these.
    pub count: usize,
}

/// What a model chooses in a part of a global batch, where the loss of each part needs the choice of all: a whole number,
/// whose sum over the parts has no order and no rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Predicting positions that it chose, such as those at which a concept begins.
    pub chosen: u64,
}

/// The global batch that a batch is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whole {
    /// Its targets.
    pub targets: usize,
    /// What all its parts chose together; None where this batch is the whole.
    pub chosen: Option<Survey>,
}

/// Where a model cuts the text of a batch into segments of its own, such as concepts.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmentation {
    /// Whether a segment begins at a position, `[B, S]` row-major.
    pub opens: Vec<bool>,
    /// How probable that was, `[B, S]`; None where no probability decides.
    pub probabilities: Option<Vec<f32>>,
}

/// How the next token is drawn from probabilities.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenDecoding {
    /// Softmax temperature; 0 takes the most probable token.
    pub temperature: f64,
    /// Keep the smallest set of tokens whose probabilities sum to this.
    pub top_p: f64,
}

impl Default for TokenDecoding {
    fn default() -> Self {
        Self { temperature: 1.0, top_p: 1.0 }
    }
}

/// A built model of any family.
pub trait LanguageModel: Send + Sync {
    /// Its parameters (a frozen autoencoder's are not among them).
    fn store(&self) -> &ParamStore;

    /// K.
    fn chunk_size(&self) -> usize;

    /// Ids with a meaning.
    fn special(&self) -> SpecialIds;

    /// What [`Self::draw`] gives.
    fn draws(&self) -> DrawKind;

    /// See [`crate::Backbone::set_recompute`].
    fn set_recompute(&mut self, recompute: bool);

    /// Training loss. All noise comes from `noise`, whose rows are those of the batch. Validation measures it, too: what a
    /// model minimises beside and needs a global batch for belongs into [`Self::surveyed_loss`].
    ///
    /// # Errors
    /// A batch of another chunk size; what a GPU answers.
    fn loss(&self, batch: &ChunkBatch, noise: &Noise<'_>) -> Result<Loss>;

    /// Whether the training loss of a part of a global batch needs what [`Self::survey`] gives of all parts.
    fn surveys(&self) -> bool {
        false
    }

    /// What the model chooses in a batch, by the same operators and noise as in [`Self::surveyed_loss`], so that both choose
    /// the same; without gradient. Asked only of a model that [`Self::surveys`].
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn survey(&self, _batch: &ChunkBatch, _noise: &Noise<'_>) -> Result<Survey> {
        Ok(Survey::default())
    }

    /// The training loss of a part of a global batch, such that the sum over all parts is that of the whole, whatever
    /// the parts; and what was chosen in this part, by a model that [`Self::surveys`].
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn surveyed_loss(
        &self,
        batch: &ChunkBatch,
        noise: &Noise<'_>,
        _of: Whole,
    ) -> Result<(Loss, Option<Survey>)> {
        Ok((self.loss(batch, noise)?, None))
    }

    /// Draws at every predicting position of a batch, without gradient: samples of a black box, or exact
    /// probabilities.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn draw(&self, batch: &ChunkBatch, request: &DrawRequest<'_>) -> Result<Draws>;

    /// The model as a sampler at T = 1.
    fn sampler(&self) -> Box<dyn Sampler + '_>;

    /// The model as a sampler of its tempered probabilities; None of a black box, which is sharpened by drawing more
    /// samples.
    fn tempered_sampler(&self, _decoding: TokenDecoding) -> Option<Box<dyn Sampler + '_>> {
        None
    }

    /// The probabilities of the next tokens for a lossless coder; None of a model that has none, or none that come out the
    /// same to the bit everywhere.
    fn coding(&self) -> Option<Box<dyn Coding + '_>> {
        None
    }

    /// ln p of every predicted token of a batch, `[R, K]` row-major; None of a black box.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn log_probabilities(&self, _batch: &ChunkBatch) -> Result<Option<Vec<f64>>> {
        Ok(None)
    }

    /// The most probable token in the place of every predicted one, given the true tokens before it, `[R, K]` row-major;
    /// None of a black box.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn most_probable(&self, _batch: &ChunkBatch) -> Result<Option<Vec<u32>>> {
        Ok(None)
    }

    /// ln p of the true next chunk under each draw of a latent vector that a softmax decodes, at every predicting
    /// position; None of a model without such draws. Of the request only the samples, the seed and the purpose count.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn decoded_log_probabilities(
        &self,
        _batch: &ChunkBatch,
        _request: &DrawRequest<'_>,
    ) -> Result<Option<DecodedDraws>> {
        Ok(None)
    }

    /// The same of the first `tokens[r]` tokens of each chunk, whatever follows them; `[R]` numbers from 0 to K.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn decoded_beginnings(
        &self,
        _batch: &ChunkBatch,
        _request: &DrawRequest<'_>,
        _tokens: &[usize],
    ) -> Result<Option<DecodedDraws>> {
        Ok(None)
    }

    /// The hidden streams `[B, S, D]` that enter each layer, and the one that leaves the last (before the final norm);
    /// None of a model that has none.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn hidden_streams(&self, _batch: &ChunkBatch) -> Result<Option<Vec<Tensor>>> {
        Ok(None)
    }

    /// The weights `[B, H, S, S]` that positions give each other in each layer of the backbone; with `turned` as they are,
    /// else as if queries and keys were not turned by their positions. None of a model without one backbone.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn attention_weights(&self, _batch: &ChunkBatch, _turned: bool) -> Result<Option<Vec<Tensor>>> {
        Ok(None)
    }

    /// Where the model cuts the text of a batch, as it does where its probabilities are measured; None of a model whose
    /// positions all stand for the same number of tokens.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn segmentation(&self, _batch: &ChunkBatch) -> Result<Option<Segmentation>> {
        Ok(None)
    }

    /// The hidden states of a text, for a search for the text behind them; None of a model whose states are not those of a
    /// transformer over its positions, each of which sees what stands before it.
    fn inversion(&self) -> Option<Box<dyn Inversion + '_>> {
        None
    }

    /// The same of the latent vectors of chunks; None of a model without.
    fn latent_inversion(&self) -> Option<Box<dyn Inversion + '_>> {
        None
    }

    /// The mean loss with true and with exchanged hidden states (each row is given another row's), without gradient:
    /// how much a head uses its condition. None of a model without a head.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn condition_check(&self, _batch: &ChunkBatch, _noise: &Noise<'_>) -> Result<Option<(f64, f64)>> {
        Ok(None)
    }
}
