//! Small models and batches for the tests of this family.

use calm_nn::{NoiseKey, ParamStore, RowId, WeightInit, philox};
use candle_core::{DType, Device, Tensor};

use super::config::{
    BoundariesConfig, BoundaryRule, CosineConfig, CrossConfig, CrossKeys, DlcmConfig, LearntConfig, Pooling,
    Smoothing,
};
use super::model::{Dlcm, Pass};
use crate::family::TextFormat;
use crate::sampler::SpecialIds;
use crate::{BackboneConfig, ChunkBatch};

pub(super) const TEXT: u32 = 6;
pub(super) const S: usize = 12;

pub(super) fn config(
    by: BoundaryRule,
    pooling: Pooling,
    smoothing: Smoothing,
    keys: CrossKeys,
) -> DlcmConfig {
    let backbone = |hidden_size, layers| BackboneConfig {
        layers,
        hidden_size,
        intermediate_size: 12,
        heads: 2,
        init: WeightInit::Normal(0.5),
        ..Default::default()
    };
    DlcmConfig {
        tokens: backbone(8, 3),
        concepts: backbone(12, 1),
        boundaries: BoundariesConfig { by, ratio: 2.0, weight: 0.03 },
        pooling,
        smoothing,
        cross: CrossConfig { keys, ..Default::default() },
        ..Default::default()
    }
}

pub(super) fn model(config: &DlcmConfig) -> Dlcm {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
    let special = SpecialIds { bos: TEXT, eos: TEXT + 1, pad: TEXT + 2 };
    let text = TextFormat { vocab_size: TEXT as usize + 3, special, context: 16, bos_chunk: false };
    let model = Dlcm::new(&store, config, &text).unwrap();
    // No norm is 1 everywhere, no matrix is the identity.
    for (name, param) in store.params() {
        let rows: Vec<RowId> =
            (0..param.var.elem_count() as u32).map(|example| RowId { example, position: 0 }).collect();
        let noise = philox::normal(NoiseKey::new(5, &name, 0), &rows, 1, 1);
        let noise = Tensor::from_vec(noise, param.var.dims(), &Device::Cpu).unwrap();
        param.var.set(&((noise * 0.5).unwrap() + param.var.as_tensor()).unwrap()).unwrap();
    }
    model
}

/// Two rows of twelve tokens: two documents, and one with filler behind it.
pub(super) fn batch(ids: &[u32]) -> ChunkBatch {
    let segments: Vec<u32> =
        [[[1; 8].as_slice(), &[4; 4]].concat(), [vec![0; 10], vec![u32::MAX; 2]].concat()].concat();
    let positions: Vec<u32> = (0..2 * S)
        .map(|at| {
            let same = |u: &usize| u / S == at / S && segments[*u] == segments[at];
            (0..at).filter(same).count() as u32
        })
        .collect();
    let predicts: Vec<bool> = (0..2 * S)
        .map(|at| at % S + 1 < S && segments[at] == segments[at + 1] && segments[at] != u32::MAX)
        .collect();
    ChunkBatch::new((2, S, 1), ids, &positions, &segments, &predicts, &[0, 1], &Device::Cpu).unwrap()
}

pub(super) fn ids() -> Vec<u32> {
    (0..2 * S as u32).map(|i| (i * i + i / 3) % TEXT).collect()
}

/// Logits of all positions, as bits.
pub(super) fn bits(model: &Dlcm, pass: &Pass) -> Vec<Vec<u32>> {
    let hidden = pass.hidden.flatten_to(1).unwrap();
    let logits = model.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
    logits.iter().map(|row| row.iter().map(|x| x.to_bits()).collect()).collect()
}

/// Every kind of setting that decides who sees what.
pub(super) fn settings() -> Vec<DlcmConfig> {
    let rules = [
        BoundaryRule::Learnt(LearntConfig::default()),
        BoundaryRule::Cosine(CosineConfig { threshold: 0.4 }),
        BoundaryRule::Every,
    ];
    let mut all = Vec::new();
    for by in rules {
        if by != BoundaryRule::Every {
            let base = config(by, Pooling::Boundary, Smoothing::Ema, CrossKeys::Concepts);
            all.push(DlcmConfig { straight_through: true, ..base });
        }
        for pooling in [Pooling::Boundary, Pooling::Closed] {
            for smoothing in [Smoothing::Ema, Smoothing::None] {
                for keys in [CrossKeys::Concepts, CrossKeys::Replicated] {
                    all.push(config(by, pooling, smoothing, keys));
                }
            }
        }
    }
    all
}
