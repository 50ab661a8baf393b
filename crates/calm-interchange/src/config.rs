//! The reference's `config.json` and our configuration.

use std::collections::BTreeSet;

use calm_autoencoder::AutoencoderConfig;
use calm_lm::{BackboneConfig, DiffusionConfig, EnergyConfig, FlowConfig, HeadConfig};
use serde_json::{Map, Value, json};

use super::Findings;

/// Which model a folder holds; `architectures` of its `config.json` tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first stage alone.
    Autoencoder,
    /// CALM with the energy head.
    Energy,
    /// CALM with a flow-matching head.
    Flow,
    /// CALM with a diffusion head.
    Diffusion,
    /// The discrete baseline.
    Llama,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 5] = [Self::Autoencoder, Self::Energy, Self::Flow, Self::Diffusion, Self::Llama];

    /// Its name in `architectures`.
    pub fn architecture(self) -> &'static str {
        match self {
            Self::Autoencoder => "Autoencoder",
            Self::Energy => "EnergyTransformer",
            Self::Flow => "FlowTransformer",
            Self::Diffusion => "DiffusionTransformer",
            Self::Llama => "LlamaForCausalLM",
        }
    }

    /// Its `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Autoencoder => "autoencoder",
            Self::Energy => "energy",
            Self::Flow => "flow",
            Self::Diffusion => "diffusion",
            Self::Llama => "llama",
        }
    }

    /// The kind of a configured head.
    pub(super) fn of_head(head: &HeadConfig) -> Self {
        match head.name() {
            "flow" => Self::Flow,
            "diffusion" => Self::Diffusion,
            _ => Self::Energy,
        }
    }

    /// Reads `architectures`.
    pub(super) fn of_config(
        file: &str,
        config: &Map<String, Value>,
        findings: &mut Findings,
    ) -> Option<Self> {
        let names: Vec<&str> = config
            .get("architectures")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let found = Self::ALL.into_iter().find(|k| names == [k.architecture()]);
        if found.is_none() {
            let known: Vec<&str> = Self::ALL.iter().map(|k| k.architecture()).collect();
            findings.problem(format!(
                "{file}: architectures is {}; it must name one of {}",
                config.get("architectures").unwrap_or(&Value::Null),
                known.join(", ")
            ));
        }
        found
    }
}

/// Special ids as a `config.json` gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ids {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
}

/// Settings that both kinds of folders share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Common {
    pub vocab_size: usize,
    pub chunk_size: usize,
    pub latent_size: usize,
    pub ids: Ids,
}

/// Keys of one `config.json`; remembers which were understood.
pub(super) struct Keys<'a> {
    file: &'a str,
    map: &'a Map<String, Value>,
    seen: BTreeSet<&'static str>,
    findings: &'a mut Findings,
}

/// Keys that say nothing about the model's numbers, or that we decide ourselves.
const SILENT: [&str; 9] = [
    "_name_or_path",
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "pretraining_tp",
    "ae_path",
];

/// Keys that must have this value (or be absent), and what another one would mean.
const FIXED: [(&str, &str, &str); 8] = [
    ("hidden_act", "\"silu\"", "another activation"),
    ("attention_bias", "false", "biases in the attention"),
    ("mlp_bias", "false", "biases in the gated MLPs"),
    ("rope_scaling", "null", "scaled rotary angles"),
    ("rope_parameters", "null", "rotary angles of a newer format (write rope_theta instead)"),
    ("sliding_window", "null", "attention in windows"),
    ("quantization_config", "null", "quantised weights"),
    ("attention_dropout", "0", "dropout in the attention"),
];

impl<'a> Keys<'a> {
    pub(super) fn new(file: &'a str, map: &'a Map<String, Value>, findings: &'a mut Findings) -> Self {
        let mut keys = Self { file, map, seen: SILENT.into(), findings };
        for (key, wanted, means) in FIXED {
            keys.seen.insert(key);
            let Some(value) = map.get(key) else { continue };
            let text = value.to_string();
            let fits = value.is_null() || text == wanted || (wanted == "0" && value.as_f64() == Some(0.0));
            if !fits {
                keys.problem(key, format!("is {value}: {means} cannot be represented (only {wanted})"));
            }
        }
        keys
    }

    fn problem(&mut self, key: &str, text: impl std::fmt::Display) {
        self.findings.problem(format!("{}: {key} {text}", self.file));
    }

    fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.insert(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A size that must be there, 1 or more; 1 stands in for it otherwise.
    fn size(&mut self, key: &'static str) -> usize {
        match self.get(key) {
            None => self.problem(key, "is missing"),
            Some(value) => match value.as_u64() {
                Some(n) if n > 0 && n <= u64::from(u32::MAX) => return n as usize,
                _ => self.problem(key, format!("is {value}: it must be a whole number of 1 or more")),
            },
        }
        1
    }

    fn size_or(&mut self, key: &'static str, default: usize) -> usize {
        if self.get(key).is_some() { self.size(key) } else { default }
    }

    fn real_or(&mut self, key: &'static str, default: f64) -> f64 {
        match self.get(key) {
            None => default,
            Some(value) => value.as_f64().unwrap_or_else(|| {
                self.problem(key, format!("is {value}: it must be a number"));
                default
            }),
        }
    }

    /// A token id; the first of a list.
    fn id(&mut self, key: &'static str) -> Option<u32> {
        let value = self.get(key)?;
        let first = match value.as_array().map(Vec::as_slice) {
            Some([first, rest @ ..]) => {
                if !rest.is_empty() {
                    self.findings
                        .note(format!("{}: {key} is a list; its first, {first}, is used", self.file));
                }
                first
            }
            _ => value,
        };
        let id = first.as_u64().and_then(|n| u32::try_from(n).ok());
        if id.is_none() {
            self.problem(key, format!("is {value}: it must be a token id"));
        }
        id
    }

    fn ids(&mut self) -> Ids {
        Ids { bos: self.id("bos_token_id"), eos: self.id("eos_token_id"), pad: self.id("pad_token_id") }
    }

    /// Reports what was not understood.
    pub(super) fn finish(self) {
        for (key, value) in self.map {
            if !self.seen.contains(key.as_str()) {
                self.findings
                    .note(format!("{}: {key} = {value} has no meaning here; kept for the export", self.file));
            }
        }
    }
}

/// An autoencoder's folder.
pub(super) fn autoencoder(keys: &mut Keys<'_>) -> (Common, AutoencoderConfig) {
    keys.seen.extend(["tie_word_embeddings", "max_position_embeddings"]);
    let d = AutoencoderConfig::default();
    let common = Common {
        vocab_size: keys.size("vocab_size"),
        chunk_size: keys.size("patch_size"),
        latent_size: keys.size("latent_size"),
        ids: keys.ids(),
    };
    let dropout = keys.real_or("ae_dropout", d.token_dropout);
    let config = AutoencoderConfig {
        latent_size: Some(common.latent_size),
        hidden_size: keys.size("hidden_size"),
        intermediate_size: keys.size("intermediate_size"),
        encoder_layers: keys.size("num_encoder_layers"),
        decoder_layers: keys.size("num_decoder_layers"),
        uniform_tokens: 0.0,
        token_dropout: dropout,
        // The reference replaces dropped tokens by id 0.
        dropped_token_id: Some(0),
        latent_dropout: dropout,
        kl_weight: keys.real_or("kl_weight", d.kl_weight),
        kl_clip: keys.real_or("kl_clamp", d.kl_clip),
        norm_eps: keys.real_or("rms_norm_eps", d.norm_eps),
        init_std: keys.real_or("initializer_range", d.init_std),
    };
    (common, config)
}

fn backbone(keys: &mut Keys<'_>) -> BackboneConfig {
    let d = BackboneConfig::default();
    let (hidden_size, heads) = (keys.size("hidden_size"), keys.size("num_attention_heads"));
    let kv_heads = keys.size_or("num_key_value_heads", heads);
    let head_size = keys.size_or("head_dim", hidden_size / heads);
    if head_size * heads != hidden_size {
        keys.problem(
            "head_dim",
            format!("is {head_size}: only hidden_size / num_attention_heads can be represented"),
        );
    }
    BackboneConfig {
        layers: keys.size("num_hidden_layers"),
        hidden_size,
        intermediate_size: keys.size("intermediate_size"),
        heads,
        kv_heads: (kv_heads != heads).then_some(kv_heads),
        rope_theta: keys.real_or("rope_theta", d.rope_theta),
        norm_eps: keys.real_or("rms_norm_eps", d.norm_eps),
        init_std: keys.real_or("initializer_range", d.init_std),
    }
}

/// M, draws of the target posterior in the reference's energy loss.
pub(super) const REFERENCE_TARGETS: usize = 100;

/// A CALM's folder: sizes, backbone, head, context in chunks.
pub(super) fn calm(keys: &mut Keys<'_>, kind: Kind) -> (Common, BackboneConfig, HeadConfig, usize) {
    keys.seen.insert("tie_word_embeddings");
    let common = Common {
        vocab_size: keys.size("vocab_size"),
        chunk_size: keys.size("patch_size"),
        latent_size: keys.size("latent_size"),
        ids: keys.ids(),
    };
    let backbone = backbone(keys);
    let head = head(keys, kind);
    (common, backbone, head, keys.size_or("max_position_embeddings", 2048))
}

fn head(keys: &mut Keys<'_>, kind: Kind) -> HeadConfig {
    let blocks = Some(keys.size("num_mlp_layers"));
    // The flow and diffusion losses repeat every target so often.
    let samples = keys.size_or("num_samples", 8);
    let (noise_size, alpha) = (keys.size_or("noise_size", 64), keys.real_or("beta", 1.0));
    match kind {
        Kind::Flow => FlowConfig { blocks, repeats: samples, ..FlowConfig::reference() }.into(),
        Kind::Diffusion => {
            DiffusionConfig { blocks, repeats: samples, ..DiffusionConfig::reference() }.into()
        }
        Kind::Energy | Kind::Autoencoder | Kind::Llama => {
            EnergyConfig { blocks, noise_size, samples, targets: REFERENCE_TARGETS, alpha }.into()
        }
    }
}

/// A baseline's folder: vocabulary, ids, backbone, context in tokens.
pub(super) fn llama(keys: &mut Keys<'_>) -> (usize, Ids, BackboneConfig, usize) {
    if keys.get("tie_word_embeddings").is_some_and(|v| v == &Value::Bool(true)) {
        keys.problem("tie_word_embeddings", "is true: the baseline has an output matrix of its own");
    }
    let (vocab, ids) = (keys.size("vocab_size"), keys.ids());
    (vocab, ids, backbone(keys), keys.size_or("max_position_embeddings", 2048))
}

/// Puts keys over a recorded `config.json`; those in `once` only where there was none.
fn overlay(recorded: &Map<String, Value>, always: Value, once: Value) -> Map<String, Value> {
    let mut out: std::collections::BTreeMap<String, Value> =
        recorded.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    if let Value::Object(always) = always {
        out.extend(always);
    }
    if let (true, Value::Object(once)) = (recorded.is_empty(), once) {
        out.extend(once);
    }
    out.into_iter().collect()
}

/// Keys of every exported model that was not imported.
fn defaults(ids: calm_data::SpecialTokens) -> Map<String, Value> {
    let fixed = json!({
        "hidden_act": "silu", "mlp_bias": false, "pretraining_tp": 1, "tie_word_embeddings": false,
        "bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad,
        "max_position_embeddings": 2048,
    });
    fixed.as_object().cloned().unwrap_or_default()
}

fn merged(mut a: Map<String, Value>, b: Value) -> Value {
    if let Value::Object(b) = b {
        a.extend(b);
    }
    Value::Object(a)
}

/// `config.json` of an autoencoder.
pub(super) fn write_autoencoder(
    recorded: &Map<String, Value>,
    c: &AutoencoderConfig,
    chunk_size: usize,
    vocab_size: usize,
    ids: calm_data::SpecialTokens,
) -> Map<String, Value> {
    let always = json!({
        "architectures": [Kind::Autoencoder.architecture()],
        "model_type": Kind::Autoencoder.model_type(),
        "vocab_size": vocab_size,
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
        "initializer_range": c.init_std,
    });
    overlay(recorded, always, Value::Object(defaults(ids)))
}

fn backbone_keys(c: &BackboneConfig) -> Map<String, Value> {
    let keys = json!({
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.layers,
        "num_attention_heads": c.heads,
        "num_key_value_heads": c.kv_heads(),
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.norm_eps,
        "initializer_range": c.init_std,
    });
    keys.as_object().cloned().unwrap_or_default()
}

fn attention_defaults(ids: calm_data::SpecialTokens, context: usize) -> Value {
    merged(
        defaults(ids),
        json!({
            "attention_bias": false, "attention_dropout": 0.0, "rope_scaling": null, "use_cache": true,
            "max_position_embeddings": context,
        }),
    )
}

/// `config.json` of a CALM whose autoencoder lies in the folder `ae`.
pub(super) fn write_calm(
    recorded: &Map<String, Value>,
    c: &calm_lm::CalmConfig,
    vocab_size: usize,
    ids: calm_data::SpecialTokens,
    context: usize,
) -> Map<String, Value> {
    let kind = Kind::of_head(&c.head);
    let layers = c.backbone.layers;
    let head = if let Some(e) = c.head.get::<EnergyConfig>() {
        json!({
            "num_mlp_layers": e.blocks(layers),
            "noise_size": e.noise_size,
            "num_samples": e.samples,
            "beta": e.alpha,
        })
    } else if let Some(f) = c.head.get::<FlowConfig>() {
        json!({ "num_mlp_layers": f.blocks(layers), "num_samples": f.repeats })
    } else if let Some(d) = c.head.get::<DiffusionConfig>() {
        json!({ "num_mlp_layers": d.blocks(layers), "num_samples": d.repeats })
    } else {
        json!({})
    };
    let keys = json!({
        "architectures": [kind.architecture()],
        "model_type": kind.model_type(),
        "ae_path": super::AE_FOLDER,
        "vocab_size": vocab_size,
        "patch_size": c.chunk_size,
        "latent_size": c.autoencoder.latent_size(c.chunk_size),
    });
    let always =
        merged(backbone_keys(&c.backbone), merged(head.as_object().cloned().unwrap_or_default(), keys));
    overlay(recorded, always, attention_defaults(ids, context))
}

/// `config.json` of a baseline.
pub(super) fn write_llama(
    recorded: &Map<String, Value>,
    c: &BackboneConfig,
    vocab_size: usize,
    ids: calm_data::SpecialTokens,
    context: usize,
) -> Map<String, Value> {
    let keys = json!({
        "architectures": [Kind::Llama.architecture()],
        "model_type": Kind::Llama.model_type(),
        "vocab_size": vocab_size,
    });
    overlay(recorded, merged(backbone_keys(c), keys), attention_defaults(ids, context))
}
