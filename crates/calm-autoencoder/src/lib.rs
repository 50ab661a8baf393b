//! The autoencoder of CALM: one chunk of K tokens and one latent vector of L numbers.
//!
//! It is context-free (chunks never see each other) and consists of residual gated MLPs only:
//!
//! ```text
//! encoder  ids [R,K] -> embed -> blocks on each token -> concatenate K·D -> Linear D -> blocks
//!          -> RMSNorm -> Linear 2L = (mean | log_std)
//! decoder  z [R,L] -> Linear D -> blocks -> Linear K·D -> K positions -> blocks -> RMSNorm
//!          -> logits with the encoder's embedding
//! ```
//!
//! Source: the paper, section 2 (autoencoder, KL clipping, DropToken, latent dropout).

mod block;
mod config;
mod costs;
mod decoder;
mod model;

pub use config::AutoencoderConfig;
pub use decoder::Decoder;
pub use model::{Autoencoder, AutoencoderLoss, Posterior};
