//! Small models and batches.

#![allow(dead_code, reason = "each test uses a part")]

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_lm::{
    BackboneConfig, Baseline, BaselineConfig, Calm, CalmConfig, ChunkBatch, Direction, EnergyConfig,
    HeadConfig, MixedHeads, ModelConfig, MultiTokenConfig, PatchConfig, SpecialIds, TextFormat,
};
use calm_nn::{NoiseKey, ParamStore, RowId, philox};
use candle_core::{DType, Device, Tensor};

/// Ids 0..12 are text.
pub const VOCAB: usize = 15;
pub const SPECIAL: SpecialIds = SpecialIds { bos: 12, eos: 13, pad: 14 };

pub fn backbone() -> BackboneConfig {
    BackboneConfig { layers: 2, hidden_size: 24, intermediate_size: 32, heads: 2, ..Default::default() }
}

pub fn autoencoder_config() -> AutoencoderConfig {
    AutoencoderConfig {
        latent_size: Some(8),
        hidden_size: 16,
        intermediate_size: 24,
        init: calm_nn::WeightInit::Normal(0.3),
        ..Default::default()
    }
}

pub fn autoencoder(chunk_size: usize) -> (ParamStore, Autoencoder) {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 1);
    let config = autoencoder_config();
    let model = Autoencoder::with_store(&store, &config, chunk_size, VOCAB, SPECIAL.bos).unwrap();
    (store, model)
}

pub fn text(context: usize, bos_chunk: bool) -> TextFormat {
    TextFormat { vocab_size: VOCAB, special: SPECIAL, context, bos_chunk }
}

pub fn calm(chunk_size: usize, backbone: &BackboneConfig, bos: bool) -> (ParamStore, Calm) {
    let head = EnergyConfig { noise_size: 6, samples: 4, targets: 8, ..Default::default() };
    calm_with(&head.into(), chunk_size, backbone, bos)
}

pub fn calm_with(
    head: &HeadConfig,
    chunk_size: usize,
    backbone: &BackboneConfig,
    bos: bool,
) -> (ParamStore, Calm) {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
    let (_, ae) = autoencoder(chunk_size);
    let autoencoder = autoencoder_config();
    let config = CalmConfig {
        chunk_size,
        autoencoder,
        backbone: backbone.clone(),
        head: head.clone(),
        decode: Default::default(),
        likelihood: None,
    };
    let model = Calm::new(&store, &config, ae, &text(16, bos)).unwrap();
    (store, model)
}

/// Every direction that a backbone of four heads can look in beside causal.
pub fn directions() -> [Direction; 4] {
    let mixed = |forward, backward| Direction::Mixed(MixedHeads { forward, backward });
    [Direction::Prefix, Direction::Alternate, mixed(2, 2), mixed(1, 3)]
}

pub fn baseline(backbone: &BackboneConfig, bos: bool) -> (ParamStore, Baseline) {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
    let config = BaselineConfig { backbone: backbone.clone() };
    let model = Baseline::new(&store, &config, &text(64, bos)).unwrap();
    (store, model)
}

/// The families that say the probability of every token of a chunk, with small settings.
pub fn chunk_families(chunk_size: usize, backbone: &BackboneConfig) -> [ModelConfig; 2] {
    let patch = PatchConfig { chunk_size, backbone: backbone.clone(), local: Default::default() };
    let multi = MultiTokenConfig { chunk_size, backbone: backbone.clone(), heads: Default::default() };
    [patch.into(), multi.into()]
}

/// Adds normal noise to every parameter, so that no zero start hides anything.
pub fn randomise(store: &ParamStore, std: f64) {
    for (name, param) in store.params() {
        let n = param.var.elem_count();
        let rows: Vec<RowId> = (0..n as u32).map(|example| RowId { example, position: 0 }).collect();
        let noise = philox::normal(NoiseKey::new(5, &name, 0), &rows, 1, 1);
        let noise = Tensor::from_vec(noise, param.var.dims(), &Device::Cpu).unwrap();
        param.var.set(&((noise * std).unwrap() + param.var.as_tensor()).unwrap()).unwrap();
    }
}

/// Text and the padding id, but no end: `n` ids.
pub fn tokens(n: usize, stream: u32) -> Vec<u32> {
    let rows: Vec<RowId> = (0..n as u32).map(|example| RowId { example, position: 0 }).collect();
    let u = philox::uniform(NoiseKey::new(6, "tokens", stream), &rows, 1, 1);
    u.iter().map(|u| ((u * 13.0) as u32).min(12)).map(|t| if t == 12 { SPECIAL.pad } else { t }).collect()
}

/// Rows of one segment each, every position but the last predicting; the first row is example `first`.
pub fn batch((b, s, k): (usize, usize, usize), ids: &[u32], first: u32) -> ChunkBatch {
    let positions: Vec<u32> = (0..b * s).map(|at| (at % s) as u32).collect();
    let predicts: Vec<bool> = (0..b * s).map(|at| at % s + 1 < s).collect();
    let examples: Vec<u32> = (0..b as u32).map(|i| first + i).collect();
    ChunkBatch::new((b, s, k), ids, &positions, &vec![0; b * s], &predicts, &examples, &Device::Cpu).unwrap()
}
