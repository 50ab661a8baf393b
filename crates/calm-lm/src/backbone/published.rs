//! The backbone's keys in a published `config.json`: Llama's.

use calm_nn::WeightInit;
use serde_json::{Map, Value, json};

use super::BackboneConfig;
use crate::published::{Keys, object};

impl BackboneConfig {
    /// Reads its keys.
    pub fn read_published(keys: &mut Keys<'_>) -> Self {
        let d = Self::default();
        let (hidden_size, heads) = (keys.size("hidden_size"), keys.size("num_attention_heads"));
        let kv_heads = keys.size_or("num_key_value_heads", heads);
        let head_size = keys.size_or("head_dim", hidden_size / heads);
        if head_size * heads != hidden_size {
            keys.problem(
                "head_dim",
                format!("is {head_size}: only hidden_size / num_attention_heads can be represented"),
            );
        }
        Self {
            layers: keys.size("num_hidden_layers"),
            hidden_size,
            intermediate_size: keys.size("intermediate_size"),
            heads,
            kv_heads: (kv_heads != heads).then_some(kv_heads),
            attention: d.attention,
            rope_theta: keys.rope_theta(d.rope_theta),
            norm_eps: keys.real_or("rms_norm_eps", d.norm_eps),
            init: WeightInit::Normal(keys.real_or("initializer_range", d.init.std(d.hidden_size))),
        }
    }

    /// Its keys, and those that are constant here.
    pub fn write_published(&self) -> (Map<String, Value>, Map<String, Value>) {
        let keys = json!({
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads(),
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "initializer_range": self.init.std(self.hidden_size),
        });
        let constants = json!({
            "attention_bias": false, "attention_dropout": 0.0, "rope_scaling": null, "use_cache": true,
        });
        (object(keys), object(constants))
    }
}
