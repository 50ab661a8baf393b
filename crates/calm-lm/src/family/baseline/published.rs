//! A baseline in a published `config.json`: a Llama.

use serde_json::Value;

use super::BaselineConfig;
use crate::BackboneConfig;
use crate::family::PublishedFamily;
use crate::published::{ConfigJson, Keys, Names};

const NAMES: Names = Names { architecture: "LlamaForCausalLM", model_type: "llama" };

pub(crate) const PUBLISHED: PublishedFamily =
    PublishedFamily { names: || vec![NAMES], read: |_, keys| read(keys).into(), around: None };

fn read(keys: &mut Keys<'_>) -> BaselineConfig {
    if keys.get("tie_word_embeddings") == Some(&Value::Bool(true)) {
        keys.problem("tie_word_embeddings", "is true: the baseline has an output matrix of its own");
    }
    BaselineConfig { backbone: BackboneConfig::read_published(keys) }
}

pub(super) fn write(c: &BaselineConfig) -> ConfigJson {
    let (keys, constants) = c.backbone.write_published();
    ConfigJson { names: NAMES, keys, constants, notes: Vec::new() }
}
