//! What must hold of a dynamic concept model that can be seen from outside. (That nothing leaks, and that texts which grow
//! are those that are there at once, is tested beside the family.) A vocabulary of six tokens, the last three special
//! ones.

mod limits;
mod probabilities;
mod training;

use crate::common::{self, backbone, randomise};
use calm_lm::family::dlcm::{
    BoundariesConfig, BoundaryRule, CosineConfig, CrossConfig, CrossKeys, LearntConfig, Pooling,
};
use calm_lm::{BackboneConfig, ChunkBatch, Dlcm, DlcmConfig, LanguageModel, SpecialIds, TextFormat};
use calm_nn::ParamStore;
use candle_core::{DType, Device};

const FEW: u32 = 6;
const EOS: u32 = 4;
const TEXT: TextFormat = TextFormat {
    vocab_size: FEW as usize,
    special: SpecialIds { bos: 3, eos: EOS, pad: 5 },
    context: 32,
    bos_chunk: false,
};

fn config(by: BoundaryRule, ratio: f64) -> DlcmConfig {
    DlcmConfig {
        tokens: BackboneConfig { layers: 3, ..backbone() },
        concepts: BackboneConfig { layers: 1, hidden_size: 32, ..backbone() },
        boundaries: BoundariesConfig { by, ratio, weight: 0.03 },
        ..Default::default()
    }
}

fn rules() -> [BoundaryRule; 3] {
    [
        BoundaryRule::Learnt(LearntConfig::default()),
        BoundaryRule::Cosine(CosineConfig { threshold: 0.45 }),
        BoundaryRule::Every,
    ]
}

/// Both poolings and both kinds of keys with every rule.
fn settings() -> Vec<DlcmConfig> {
    let mut all = Vec::new();
    for by in rules() {
        for (pooling, keys) in
            [(Pooling::Boundary, CrossKeys::Concepts), (Pooling::Closed, CrossKeys::Replicated)]
        {
            let cross = CrossConfig { keys, ..Default::default() };
            all.push(DlcmConfig { pooling, cross, ..config(by, 2.0) });
        }
    }
    all
}

fn model(config: &DlcmConfig) -> (ParamStore, Dlcm) {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
    let model = Dlcm::new(&store, config, &TEXT).unwrap();
    randomise(&store, 0.3);
    (store, model)
}

/// One row of these tokens.
fn batch(ids: &[u32]) -> ChunkBatch {
    common::batch((1, ids.len(), 1), ids, 0)
}

fn text(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * 5 + i / 4) % 3).collect()
}

fn log_p(model: &Dlcm, ids: &[u32]) -> Vec<f64> {
    model.log_probabilities(&batch(ids)).unwrap().unwrap()
}
