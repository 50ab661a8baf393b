//! A CALM in a published `config.json`: its head names the whole model.

use calm_autoencoder::AutoencoderConfig;
use serde_json::json;

use super::{CalmConfig, DecoderKind};
use crate::family::Decode;
use crate::family::PublishedFamily;
use crate::head::{HeadSettings, PublishedHead};
use crate::published::{ConfigJson, Keys, Names, object};
use crate::registry::entries;
use crate::{BackboneConfig, HeadConfig};

pub(crate) const PUBLISHED: PublishedFamily = PublishedFamily {
    names: || heads().map(|head| head.names).collect(),
    read: |names, keys| read(names, keys).into(),
    around: Some(|chunk_size, autoencoder| {
        let (backbone, head) = (BackboneConfig::default(), HeadConfig::default());
        CalmConfig {
            chunk_size,
            autoencoder: autoencoder.clone(),
            backbone,
            head,
            decode: Decode::default(),
            likelihood: None,
        }
        .into()
    }),
};

/// The heads that have a published form.
fn heads() -> impl Iterator<Item = PublishedHead> {
    entries::<dyn HeadSettings>().into_iter().filter_map(|entry| entry.published)
}

fn read(names: Names, keys: &mut Keys<'_>) -> CalmConfig {
    keys.ignore("tie_word_embeddings");
    let chunk_size = keys.size("patch_size");
    let latent_size = Some(keys.size("latent_size"));
    let backbone = BackboneConfig::read_published(keys);
    let head = heads().find(|head| head.names == names).map(|head| (head.read)(keys)).unwrap_or_default();
    let autoencoder = AutoencoderConfig { latent_size, ..AutoencoderConfig::default() };
    CalmConfig { chunk_size, autoencoder, backbone, head, decode: Decode::default(), likelihood: None }
}

/// None of a model that decodes by a decoder of its own: the reference has the autoencoder's.
pub(super) fn write(c: &CalmConfig) -> Option<ConfigJson> {
    if c.decoder() != DecoderKind::Frozen {
        return None;
    }
    let mut json = c.head.published(c.backbone.layers)?;
    let (backbone, constants) = c.backbone.write_published();
    json.keys.extend(backbone);
    json.keys.extend(object(json!({ "patch_size": c.chunk_size, "latent_size": c.latent_size() })));
    json.constants.extend(constants);
    if c.decode == Decode::Sample {
        json.notes
            .push("decode: sample is not exported: the reference takes the most probable tokens".into());
    }
    Some(json)
}
