//! The folder of a published autoencoder, which language models on latents name by `ae_path`.

use calm_nn::WeightInit;
use std::collections::BTreeMap;

use calm_autoencoder::AutoencoderConfig;
use serde_json::{Map, json};

use super::{ConfigJson, Keys, Names, PublishedText, object};

/// How it is called.
pub const NAMES: Names = Names { architecture: "Autoencoder", model_type: "autoencoder" };

/// The reference implementation replaces dropped tokens by this id.
const DROPPED_TOKEN: u32 = 0;

/// What an autoencoder's `config.json` says.
#[derive(Clone, Debug)]
pub struct PublishedAutoencoder {
    /// Vocabulary and ids.
    pub text: PublishedText,
    /// K.
    pub chunk_size: usize,
    /// Its settings, the latent size among them.
    pub config: AutoencoderConfig,
}

/// Reads its keys.
pub fn read(keys: &mut Keys<'_>) -> PublishedAutoencoder {
    for key in ["tie_word_embeddings", "max_position_embeddings"] {
        keys.ignore(key);
    }
    let d = AutoencoderConfig::default();
    let (text, chunk_size) = (keys.text(), keys.size("patch_size"));
    let dropout = keys.real_or("ae_dropout", d.token_dropout);
    let config = AutoencoderConfig {
        latent_size: Some(keys.size("latent_size")),
        hidden_size: keys.size("hidden_size"),
        intermediate_size: keys.size("intermediate_size"),
        encoder_layers: keys.size("num_encoder_layers"),
        decoder_layers: keys.size("num_decoder_layers"),
        uniform_tokens: 0.0,
        token_dropout: dropout,
        dropped_token_id: Some(DROPPED_TOKEN),
        latent_dropout: dropout,
        kl_weight: keys.real_or("kl_weight", d.kl_weight),
        kl_clip: keys.real_or("kl_clamp", d.kl_clip),
        norm_eps: keys.real_or("rms_norm_eps", d.norm_eps),
        init: WeightInit::Normal(keys.real_or("initializer_range", d.init.std(d.hidden_size))),
    };
    PublishedAutoencoder { text, chunk_size, config }
}

/// Settings of an autoencoder that comes without its `config.json`, from the shapes of its tensors by name; None where
/// they are not there. Dropout and the KL's settings leave no trace in tensors: they are the published defaults.
pub fn infer(shapes: &BTreeMap<&str, &[usize]>, latent_size: usize) -> Option<AutoencoderConfig> {
    let layers = |half: &str| {
        let prefix = format!("{half}.{half}_layers.");
        let index = |n: &&str| n.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok();
        shapes.keys().filter_map(index).max().map_or(0, |n| n + 1)
    };
    let shape = |name: &str| shapes.get(name).copied();
    let table = shape("encoder.embed_tokens.weight").or_else(|| shape("decoder.lm_head_weight"));
    let (Some([_, hidden]), Some([wide, _])) =
        (table, shape("encoder.encoder_layers.0.mlp.gate_proj.weight"))
    else {
        return None;
    };
    Some(AutoencoderConfig {
        latent_size: Some(latent_size),
        hidden_size: *hidden,
        intermediate_size: *wide,
        encoder_layers: layers("encoder"),
        decoder_layers: layers("decoder"),
        dropped_token_id: Some(DROPPED_TOKEN),
        ..AutoencoderConfig::default()
    })
}

/// Its keys. `bos` is the id that ours puts in the place of a dropped token by default.
pub fn write(c: &AutoencoderConfig, chunk_size: usize, bos: u32) -> ConfigJson {
    let keys = json!({
        "patch_size": chunk_size,
        "latent_size": c.latent_size(chunk_size),
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_encoder_layers": c.encoder_layers,
        "num_decoder_layers": c.decoder_layers,
        "ae_dropout": c.token_dropout,
        "kl_weight": c.kl_weight,
        "kl_clamp": c.kl_clip,
        "rms_norm_eps": c.norm_eps,
        "initializer_range": c.init.std(c.hidden_size),
    });
    // They matter to further training only.
    let mut notes = Vec::new();
    if c.token_dropout != c.latent_dropout {
        notes.push(format!(
            "latent_dropout {} is not exported: the reference has one ae_dropout, {}",
            c.latent_dropout, c.token_dropout
        ));
    }
    let dropped = c.dropped_token_id.unwrap_or(bos);
    if dropped != DROPPED_TOKEN {
        notes.push(format!("dropped_token_id {dropped} is not exported: the reference uses {DROPPED_TOKEN}"));
    }
    ConfigJson { names: NAMES, keys: object(keys), constants: Map::new(), notes }
}
