//! Language models over chunks: families of models behind one trait, and the generative heads of one of them.
//!
//! ```text
//! configuration ─ registry ─ FamilyConfig ─ build ─ LanguageModel ─┬─ loss: named parts
//!                                                                  ├─ draw: samples or probabilities, at every position
//!                                                                  └─ sampler: a text, continued chunk by chunk
//! ```
//!
//! * [`family`]: the traits, and one module for each family; add a family there.
//! * [`head`]: what turns a hidden state into samples of the next latent vector; add a head there.
//! * [`backbone`]: the Llama decoder, teacher-forced, cached, or branched from every position at once.
//! * [`sampler`]: `draw(n, key) -> chunks`, all that generation knows of a model.
//! * [`published`]: how a family, a head says itself in the `config.json` of a published checkpoint.
//! * [`registry`]: how `{NAME: settings}` in a configuration finds its family or head.
//!
//! # Draw from a model
//!
//! ```
//! use calm_autoencoder::Autoencoder;
//! use calm_lm::{DrawKey, ModelConfig, SpecialIds, TextFormat};
//! use calm_nn::ParamStore;
//! use candle_core::{DType, Device};
//!
//! // As a configuration has it under `model`; `baseline` for the same backbone on tokens.
//! let settings: ModelConfig = serde_json::from_str(
//!     r#"{ "calm": {
//!         "chunk_size": 4,
//!         "autoencoder": { "hidden_size": 32, "intermediate_size": 64 },
//!         "backbone": { "layers": 2, "hidden_size": 32, "intermediate_size": 64, "heads": 2 },
//!         "head": { "energy": {} }
//!     } }"#,
//! )?;
//! let special = SpecialIds { bos: 0, eos: 1, pad: 2 };
//! let text = TextFormat { vocab_size: 100, special, context: 16, bos_chunk: true };
//! // Fresh parameters; `ParamStore::load` puts trained ones in their place.
//! let store = |seed| ParamStore::new(&Device::Cpu, DType::F32, seed);
//! let k = settings.chunk_size();
//! let autoencoder = settings
//!     .autoencoder()
//!     .map(|a| Autoencoder::with_store(&store(1), a, k, text.vocab_size, special.bos))
//!     .transpose()?;
//! let model = settings.build(&store(2), &text, autoencoder)?;
//!
//! let sampler = model.sampler();
//! let mut continuation = sampler.start()?;
//! continuation.push(&[10, 11, 12, 13, 14, 15, 16, 17])?;
//! let key = DrawKey { seed: 3, call: 0 };
//! let chunks = continuation.draw(5, key)?;
//! assert!(chunks.len() == 5 && chunks.iter().all(|chunk| chunk.len() == k));
//! // Noise is a function of the key: the same key, the same draws.
//! assert_eq!(chunks, continuation.draw(5, key)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod backbone;
pub mod batch;

pub mod family;
pub mod head;
pub mod published;
pub mod registry;
pub mod sampler;
mod side_by_side;
mod text_state;

pub use backbone::{Backbone, BackboneConfig, Cache, Direction, MixedHeads};
pub use batch::ChunkBatch;
pub use family::baseline::{Baseline, BaselineConfig};
pub use family::calm::{Calm, CalmConfig};
pub use family::dlcm::{Dlcm, DlcmConfig};
pub use family::multi_token::{HeadsConfig, MultiTokenConfig};
pub use family::patch::{LocalConfig, PatchConfig};
pub use family::{
    ChunkSoftmax, CodedChunks, CodedTexts, Coding, Decode, DecodedDraws, DrawKind, DrawRequest, Draws,
    ExactDraws, FamilyConfig, LanguageModel, Loss, LossPart, ModelConfig, SampledDraws, Segmentation, Survey,
    TextFormat, TokenDecoding, Whole,
};
pub use head::{
    DiffusionConfig, EnergyConfig, FlowConfig, FlowTime, Head, HeadConfig, HeadSettings, Solver,
    VariationalTerm,
};
pub use sampler::{Continuation, DrawKey, Sampler, SideBySide, SpecialIds, TextKey};
pub use text_state::TextState;
