//! What settings write into a published `config.json`, the registry finds a reader for, and he reads the same settings.

use calm_autoencoder::AutoencoderConfig;
use calm_lm::family::{FamilyConfig, PublishedFamily};
use calm_lm::published::{Findings, Ids, Keys, Names, autoencoder};
use calm_lm::registry::entries;
use calm_lm::{
    BackboneConfig, BaselineConfig, CalmConfig, DiffusionConfig, EnergyConfig, FlowConfig, HeadConfig,
    ModelConfig, SpecialIds,
};
use serde_json::{Map, Value, json};

const IDS: SpecialIds = SpecialIds { bos: 5, eos: 6, pad: 7 };

fn backbone() -> BackboneConfig {
    BackboneConfig {
        layers: 3,
        hidden_size: 24,
        intermediate_size: 40,
        heads: 4,
        kv_heads: Some(2),
        attention: Default::default(),
        rope_theta: 5e5,
        norm_eps: 1e-5,
        init: calm_nn::WeightInit::Normal(0.01),
    }
}

/// As the reference implementation can have it.
fn latents() -> AutoencoderConfig {
    AutoencoderConfig {
        latent_size: Some(20),
        hidden_size: 16,
        intermediate_size: 48,
        encoder_layers: 4,
        token_dropout: 0.2,
        latent_dropout: 0.2,
        dropped_token_id: Some(0),
        uniform_tokens: 0.0,
        ..AutoencoderConfig::default()
    }
}

fn calm(head: impl Into<HeadConfig>) -> ModelConfig {
    CalmConfig {
        chunk_size: 3,
        autoencoder: latents(),
        backbone: backbone(),
        head: head.into(),
        decode: Default::default(),
        likelihood: None,
    }
    .into()
}

/// Who reads a folder of this name.
fn reader(architecture: &str) -> Option<(Names, PublishedFamily)> {
    let families = entries::<dyn FamilyConfig>().into_iter().filter_map(|entry| entry.published);
    let mut names = families.flat_map(|f| (f.names)().into_iter().map(move |names| (names, f)));
    names.find(|(names, _)| names.architecture == architecture)
}

#[test]
fn every_family_and_head_reads_what_it_writes() {
    let (blocks, repeats) = (Some(2), 4);
    let models: [(&str, &str, ModelConfig); 4] = [
        ("LlamaForCausalLM", "llama", BaselineConfig { backbone: backbone() }.into()),
        (
            "EnergyTransformer",
            "energy",
            calm(EnergyConfig { blocks, noise_size: 9, samples: 5, targets: 100, alpha: 0.5 }),
        ),
        ("FlowTransformer", "flow", calm(FlowConfig { blocks, repeats, ..FlowConfig::reference() })),
        (
            "DiffusionTransformer",
            "diffusion",
            calm(DiffusionConfig { blocks, repeats, ..DiffusionConfig::reference() }),
        ),
    ];
    for (architecture, model_type, settings) in models {
        let written = settings.published().unwrap();
        assert!(written.notes.is_empty(), "{:?}", written.notes);
        let config = written.over(&Map::new(), 99, IDS, Some(77));
        assert_eq!(
            (&config["architectures"], &config["model_type"]),
            (&json!([architecture]), &json!(model_type))
        );

        let (names, family) = reader(architecture).unwrap();
        let mut findings = Findings::default();
        let mut keys = Keys::new("config.json", &config, &mut findings);
        let text = keys.text();
        let read = (family.read)(names, &mut keys);
        assert_eq!((text.vocab_size, keys.context()), (99, 77));
        assert_eq!(text.ids, Ids { bos: Some(5), eos: Some(6), pad: Some(7) });
        keys.finish();
        assert!(findings.problems.is_empty() && findings.notes.is_empty(), "{findings:?}");
        // The rest of an autoencoder's settings lies in a folder of its own.
        let whole = read.on_autoencoder(3, &latents()).unwrap_or_else(|| read.clone());
        assert_eq!(whole, settings);
        assert_eq!(read.autoencoder().map(|a| a.latent_size(3)), settings.autoencoder().map(|_| 20));
        // And a model that is not there yet can stand on a published autoencoder, if the family has one.
        let around = family.around.map(|around| around(3, &latents()));
        assert_eq!(around.as_ref().and_then(|m| m.autoencoder()), settings.autoencoder());
    }
    assert!(reader("BertModel").is_none());
}

#[test]
fn an_autoencoder_reads_what_it_writes_and_says_what_it_cannot_write() {
    let config = autoencoder::write(&latents(), 3, IDS.bos).over(&Map::new(), 99, IDS, None);
    let mut findings = Findings::default();
    let mut keys = Keys::new("config.json", &config, &mut findings);
    let read = autoencoder::read(&mut keys);
    keys.finish();
    assert!(findings.problems.is_empty() && findings.notes.is_empty(), "{findings:?}");
    assert_eq!((read.config, read.chunk_size, read.text.vocab_size), (latents(), 3, 99));
    let other = AutoencoderConfig { latent_dropout: 0.1, dropped_token_id: None, ..latents() };
    let notes = autoencoder::write(&other, 3, IDS.bos).notes;
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[0].contains("latent_dropout 0.1") && notes[1].contains("dropped_token_id 5"), "{notes:?}");
}

#[test]
fn settings_that_the_reference_holds_constant_are_told() {
    let notes = |head: HeadConfig| calm(head).published().unwrap().notes;
    let energy = notes(EnergyConfig { targets: 10, ..EnergyConfig::default() }.into());
    assert!(energy.len() == 1 && energy[0].contains("targets 10"), "{energy:?}");
    let flow = notes(FlowConfig::default().into());
    assert!(flow.len() == 1 && flow[0].contains("floor(1000 t)"), "{flow:?}");
}

#[test]
fn a_recorded_file_keeps_what_the_settings_do_not_say() {
    let settings: ModelConfig = BaselineConfig { backbone: backbone() }.into();
    let recorded: Map<String, Value> = serde_json::from_value(
        json!({ "made_up": 1, "hidden_size": 1, "vocab_size": 1, "bos_token_id": [3, 4] }),
    )
    .unwrap();
    let config = settings.published().unwrap().over(&recorded, 99, IDS, Some(77));
    assert_eq!((&config["made_up"], &config["hidden_size"]), (&json!(1), &json!(24)));
    assert_eq!((&config["vocab_size"], &config["bos_token_id"]), (&json!(99), &json!([3, 4])));
    assert!(!config.contains_key("attention_bias") && !config.contains_key("max_position_embeddings"));
}
