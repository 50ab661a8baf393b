//! The parameters that settings count are those that a model built from them has: every family and head of the
//! registry that has settings of its own to count with.

use crate::common::*;
use calm_lm::registry::entries;
use calm_lm::{
    BackboneConfig, BaselineConfig, CalmConfig, DlcmConfig, FamilyConfig, HeadConfig, HeadSettings,
    HeadsConfig, LanguageModel, LocalConfig, ModelConfig, MultiTokenConfig, PatchConfig,
};
use calm_nn::{Builder, ParamStore};
use candle_core::{DType, Device};

fn elements(store: &ParamStore) -> u64 {
    store.params().iter().map(|(_, param)| param.var.elem_count() as u64).sum()
}

/// A head with the defaults of its settings.
fn head(name: &str) -> HeadConfig {
    serde_json::from_str(&format!("{{\"{name}\": {{}}}}")).unwrap()
}

#[test]
fn every_head_counts_the_parameters_that_it_has() {
    let shipped = entries::<dyn HeadSettings>();
    assert!(shipped.len() >= 3);
    for entry in shipped {
        let (settings, store) = (head(entry.name), ParamStore::new(&Device::Cpu, DType::F32, 1));
        let builder: Builder = store.builder();
        settings.build(&builder, &backbone(), 8).unwrap();
        assert_eq!(settings.parameters(&backbone(), 8), elements(&store), "{}", entry.name);
    }
}

#[test]
fn every_family_counts_the_parameters_that_it_has() {
    let mut families: Vec<ModelConfig> = vec![BaselineConfig { backbone: backbone() }.into()];
    families.extend([1, 3].into_iter().flat_map(|k| chunk_families(k, &backbone())));
    let narrow = LocalConfig { layers: 1, hidden_size: Some(12), heads: Some(3), intermediate_size: Some(7) };
    families.push(PatchConfig { chunk_size: 2, backbone: backbone(), local: narrow }.into());
    let heads = HeadsConfig { intermediate_size: Some(5) };
    families.push(MultiTokenConfig { chunk_size: 2, backbone: backbone(), heads }.into());
    let wide = BackboneConfig { hidden_size: 36, heads: 3, kv_heads: Some(1), ..backbone() };
    for by in ["\"every\"", "{\"learnt\": {}}", "{\"cosine\": {}}"] {
        let boundaries = serde_json::from_str(&format!("{{\"by\": {by}}}")).unwrap();
        let cross = serde_json::from_str("{\"heads\": 4, \"kv_heads\": 2}").unwrap();
        let tokens = BackboneConfig { layers: 3, ..backbone() };
        families.push(
            DlcmConfig { tokens, concepts: wide.clone(), boundaries, cross, ..Default::default() }.into(),
        );
    }
    for entry in entries::<dyn HeadSettings>() {
        let (autoencoder, backbone, head) = (autoencoder_config(), backbone(), head(entry.name));
        families.push(
            CalmConfig {
                chunk_size: 2,
                autoencoder,
                backbone,
                head,
                decode: Default::default(),
                likelihood: None,
            }
            .into(),
        );
    }
    for entry in entries::<dyn FamilyConfig>() {
        assert!(families.iter().any(|f| f.name() == entry.name), "{} is not counted here", entry.name);
    }
    for family in families {
        let autoencoder = family.autoencoder().map(|_| autoencoder(family.chunk_size()).1);
        let store = ParamStore::new(&Device::Cpu, DType::F32, 1);
        let model: Box<dyn LanguageModel> = family.build(&store, &text(16, true), autoencoder).unwrap();
        assert_eq!(family.parameters(VOCAB).total().0, elements(model.store()), "{family:?}");
    }
}
