//! The decoder of a CALM: the frozen autoencoder's, or a copy of it that is trained along.
//!
//! ```text
//! frozen       latent -> decoder of the autoencoder
//! tuned        latent -> own copy, which starts as that decoder
//! conditioned  latent, hidden state -> own copy; what enters it is W_z·latent + W_h·hidden, W_h = 0 at first
//! ```
//! A frozen decoder was trained to be certain: no latent vector says "one of these, more or less". A copy that is
//! trained by the likelihood learns to leave open what the latent vector leaves open.

use calm_autoencoder::{Autoencoder, Decoder};
use calm_nn::{Builder, Init, Linear};
use candle_core::{Result, Tensor, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which decoder turns latent vectors into tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DecoderKind {
    /// The autoencoder's, as it is.
    #[default]
    Frozen,
    /// A copy of it that the likelihood trains along.
    Tuned,
    /// Such a copy, which is given the hidden state of the backbone beside the latent vector.
    Conditioned,
}

/// The decoder, and what it is given of the hidden state.
pub(super) struct LatentDecoder {
    pub decoder: Decoder,
    condition: Option<Linear>,
}

impl LatentDecoder {
    /// Creates the parameters of a copy under `b.decoder`: they start as the autoencoder's. D is the width of the hidden
    /// states.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(b: &Builder, kind: DecoderKind, hidden: usize, autoencoder: &Autoencoder) -> Result<Self> {
        if kind == DecoderKind::Frozen {
            return Ok(Self { decoder: autoencoder.decoder().clone(), condition: None });
        }
        let b = b.under("decoder");
        let (v, d) = autoencoder.embedding_table().dims2()?;
        let table = b.table("embed_tokens.weight", [v, d], Init::Zeros, None)?;
        let decoder = Decoder::new(&b, autoencoder.config(), autoencoder.chunk_size(), &table)?;
        for (name, own) in b.store().params() {
            let theirs = match name.as_str() {
                "decoder.embed_tokens.weight" => "encoder.embed_tokens.weight",
                name if name.starts_with("decoder.") => name,
                _ => continue,
            };
            let Some(start) = autoencoder.store().get(theirs) else {
                bail!("the autoencoder has no {theirs} that {name} could start as")
            };
            own.var.set(start.var.as_tensor())?;
        }
        let condition = (kind == DecoderKind::Conditioned)
            .then(|| Linear::no_bias(&b, "condition", hidden, d, Init::Zeros))
            .transpose()?;
        Ok(Self { decoder, condition })
    }

    /// Latents `[R, N, L]` at hidden states `[R, D]` -> last hidden states `[R·N·K, D]` of the decoder.
    ///
    /// # Errors
    /// Latents of another size; what a GPU answers.
    pub fn hidden(&self, latents: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        let (r, n, l) = latents.dims3()?;
        let condition = match &self.condition {
            None => None,
            Some(linear) => {
                let x = linear.forward(hidden)?;
                let d = x.dim(1)?;
                Some(x.unsqueeze(1)?.repeat((1, n, 1))?.reshape((r * n, d))?)
            }
        };
        self.decoder.hidden(&latents.reshape((r * n, l))?, condition.as_ref())
    }
}
