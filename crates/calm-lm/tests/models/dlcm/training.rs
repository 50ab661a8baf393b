//! Every parameter learns, and a batch in pieces is the batch.

use std::collections::HashMap;

use super::{TEXT, config, model, rules, settings, text};
use crate::common;
use crate::gradients::assert_all_learn;
use calm_lm::family::dlcm::{BoundariesConfig, BoundaryRule, MupConfig, Smoothing};
use calm_lm::{BackboneConfig, ChunkBatch, Dlcm, DlcmConfig, LanguageModel, Loss, Survey, Whole};
use calm_nn::{AdamW, AdamWConfig, GradientBucket, Noise, ParamStore, Scale, WeightInit};
use candle_core::{DType, Device, Tensor};

/// Training settings that a configuration may have: each way on which p has a gradient alone, and all together.
fn ways() -> Vec<DlcmConfig> {
    let mut all = Vec::new();
    for base in settings() {
        for (weight, smoothing, straight_through) in [
            (0.03, Smoothing::None, false),
            (0.0, Smoothing::Ema, false),
            (0.0, Smoothing::None, true),
            (0.03, Smoothing::Ema, true),
        ] {
            if straight_through && base.boundaries.by == BoundaryRule::Every {
                continue;
            }
            let boundaries = BoundariesConfig { weight, ..base.boundaries.clone() };
            all.push(DlcmConfig { boundaries, smoothing, straight_through, ..base.clone() });
        }
    }
    all
}

fn rows(range: std::ops::Range<usize>) -> ChunkBatch {
    let (s, ids) = (9, text(9 * 4));
    common::batch((range.len(), s, 1), &ids[range.start * s..range.end * s], range.start as u32)
}

/// The loss of some rows as a part of four, of which so many boundaries are known.
fn loss(model: &Dlcm, batch: &ChunkBatch, step: u32, chosen: Option<u64>) -> Loss {
    let noise = Noise::Keyed { seed: 1, purpose: "train", step, rows: &batch.rows };
    let of = Whole { targets: 32, chosen: chosen.map(|chosen| Survey { chosen }) };
    model.surveyed_loss(batch, &noise, of).unwrap().0
}

#[test]
fn every_parameter_receives_a_gradient() {
    for config in ways() {
        let (store, model) = model(&config);
        assert_all_learn(&store, |step| loss(&model, &rows(0..4), step, None).sum);
    }
}

#[test]
fn a_batch_that_has_its_ratio_is_learnt_from() {
    for config in ways() {
        let (store, model) = model(&config);
        // R is 2: half of the targets begin a concept, and the auxiliary loss pulls nowhere.
        let loss = loss(&model, &rows(0..4), 0, Some(16));
        GradientBucket::new(&store).unwrap().backward(&loss.sum).unwrap();
    }
}

#[test]
fn a_batch_whose_documents_have_one_concept_each_is_learnt_from() {
    for config in ways() {
        let (store, model) = model(&config);
        let batch = rows(0..4);
        let never = Tensor::full(0.999f32, (36, 1, 1), &Device::Cpu).unwrap();
        let given = HashMap::from([("boundary".to_owned(), never)]);
        let of = Whole { targets: 32, chosen: None };
        let loss = model.surveyed_loss(&batch, &Noise::Given(&given), of).unwrap().0;
        let mut bucket = GradientBucket::new(&store).unwrap();
        // A parameter that no gradient reaches is an error; one of 0 is none.
        bucket.backward(&loss.sum).unwrap();
        assert!(bucket.norm().unwrap().is_finite(), "{config:?}");
    }
}

fn value(t: &Tensor) -> f64 {
    f64::from(t.to_scalar::<f32>().unwrap())
}

#[test]
fn a_batch_in_pieces_has_the_loss_and_gradients_of_the_whole() {
    for config in ways() {
        let (store, model) = model(&config);
        let of = |pieces: &[std::ops::Range<usize>], whole: bool| {
            let survey = |batch: &ChunkBatch| {
                let noise = Noise::Keyed { seed: 1, purpose: "train", step: 5, rows: &batch.rows };
                let found = model.survey(batch, &noise).unwrap();
                let of = Whole { targets: 32, chosen: None };
                assert_eq!(model.surveyed_loss(batch, &noise, of).unwrap().1, Some(found));
                found.chosen
            };
            let batches: Vec<ChunkBatch> = pieces.iter().map(|p| rows(p.clone())).collect();
            let chosen: u64 = batches.iter().map(survey).sum();
            let mut bucket = GradientBucket::new(&store).unwrap();
            let (mut sum, mut auxiliary) = (0.0, 0.0);
            for batch in &batches {
                let of = if whole { chosen } else { 4 * survey(batch) };
                let loss = loss(&model, batch, 5, Some(of));
                sum += value(&loss.sum);
                let part = loss.parts.iter().find(|p| p.name == "boundary_loss");
                auxiliary += part.map_or(0.0, |p| value(&p.sum));
                bucket.backward(&loss.sum).unwrap();
            }
            let gradients: Vec<Vec<f32>> =
                store.params().iter().map(|(name, _)| bucket.get(name).unwrap().unwrap().to_vec()).collect();
            (sum, auxiliary, gradients)
        };
        let want = value(&loss(&model, &rows(0..4), 5, None).sum);
        let (whole, auxiliary, gradients) = of(std::slice::from_ref(&(0..4)), true);
        assert!((whole - want).abs() < 1e-6 * want);
        for pieces in [&[0..2, 2..4][..], &[0..1, 1..2, 2..3, 3..4]] {
            let (sum, aux, parts) = of(pieces, true);
            assert!((sum - whole).abs() < 1e-5 * whole, "{config:?}: {sum} {whole}");
            // A sum over 32 probabilities, which differ in the last bits.
            assert!((aux - auxiliary).abs() < 1e-3, "{config:?}: {aux} {auxiliary}");
            for (a, b) in gradients.iter().zip(&parts) {
                let most = a.iter().fold(1e-2f32, |m, x| m.max(x.abs()));
                let off = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0f32, f32::max) / most;
                // Sums of products with other numbers of rows; measured 3e-5.
                assert!(off < 1e-4, "{config:?}: off by {off}");
            }
        }
        if config.boundaries.weight > 0.0 && matches!(config.boundaries.by, BoundaryRule::Learnt(_)) {
            // Each row by its own ratio is another loss.
            let (_, aux, _) = of(&[0..1, 1..2, 2..3, 3..4], false);
            assert!((aux - auxiliary).abs() > 5e-3, "{config:?}: {aux} {auxiliary}");
        }
    }
}

#[test]
fn the_auxiliary_loss_is_the_papers_and_its_parts_are_reported() {
    for by in [rules()[0], rules()[1]] {
        let ratio = 3.0;
        let (_, model) = model(&config(by, ratio));
        let loss = loss(&model, &rows(0..4), 2, None);
        let part = |name: &str| {
            let part = loss.parts.iter().find(|p| p.name == name).unwrap();
            value(&part.sum) / part.count as f64
        };
        let (f, g) = (part("boundaries"), part("boundary_probability"));
        let aux = ratio / (ratio - 1.0) * ((ratio - 1.0) * f * g + (1.0 - f) * (1.0 - g)) - 1.0;
        assert!((part("boundary_loss") - aux).abs() < 1e-5, "{} {aux}", part("boundary_loss"));
        let sum = value(&loss.sum) / loss.targets as f64;
        assert!((sum - part("cross_entropy") - 0.03 * aux).abs() < 1e-5);
    }
}

#[test]
fn a_wide_model_trains_by_the_rates_of_its_base() {
    let plain = config(rules()[0], 2.0);
    // Four times as wide as the base in the token part, twice in the concept part.
    let wide = DlcmConfig { mup: Some(MupConfig { tokens: 6, concepts: 16 }), ..plain.clone() };
    let same = DlcmConfig { mup: Some(MupConfig { tokens: 24, concepts: 32 }), ..plain.clone() };
    let built = |config: &DlcmConfig| {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
        let model = Dlcm::new(&store, config, &TEXT).unwrap();
        (store, model)
    };
    let ((store, model), (of_same, model_of_same), (of_wide, model_of_wide)) =
        (built(&plain), built(&same), built(&wide));
    let bits = |model: &Dlcm| value(&loss(model, &rows(0..4), 1, None).sum).to_bits();
    assert_eq!(bits(&model), bits(&model_of_same), "at the base width no bit is another");
    for (name, param) in store.params() {
        let there = of_wide.get(&name).unwrap();
        assert_eq!(of_same.get(&name).unwrap().scale, Scale::ONE, "{name}");
        let tokens = ["encoder.", "decoder.", "boundary.", "concepts.up.", "cross.q_proj", "cross.o_proj"];
        let s = match name.as_str() {
            n if n.contains("norm") || n.starts_with("model.") || n.starts_with("lm_head") => 1.0,
            n if tokens.iter().any(|t| n.starts_with(t)) => 4.0,
            _ => 2.0,
        };
        assert_eq!(there.scale, Scale { rate: 1.0 / s, eps: 1.0 / s }, "{name}");
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let (a, b) = (values(param.var.as_tensor()), values(there.var.as_tensor()));
        let by = if name.starts_with("boundary.") { 1.0 } else { s.sqrt() as f32 };
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b * by).abs() <= 1e-5 * a.abs()), "{name}");
    }
    // Logits are those of the states divided by four.
    assert!(of_wide.load(&store.snapshot().unwrap().into_iter().collect()).unwrap().is_clean());
    let of = |model: &Dlcm| model.logits(&model.hidden(&rows(0..4)).unwrap()).unwrap();
    let off = (of(&model) - (of(&model_of_wide) * 4.0).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
    assert!(value(&off) < 1e-6);
}

/// How far five steps of training move the logits of a model so many times as wide as its base, root mean square: the
/// coordinate check of muP.
fn moved(times: usize, mup: bool) -> f64 {
    let wide = |narrow: BackboneConfig| BackboneConfig {
        hidden_size: narrow.hidden_size * times,
        intermediate_size: narrow.intermediate_size * times,
        // Heads keep their size.
        heads: narrow.heads * times,
        kv_heads: narrow.kv_heads.map(|heads| heads * times),
        init: WeightInit::Normal(0.2),
        ..narrow
    };
    let base = config(rules()[0], 2.0);
    let bases = MupConfig { tokens: base.tokens.hidden_size, concepts: base.concepts.hidden_size };
    let settings = DlcmConfig {
        tokens: wide(base.tokens.clone()),
        concepts: wide(base.concepts.clone()),
        mup: mup.then_some(bases),
        ..base
    };
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
    let model = Dlcm::new(&store, &settings, &TEXT).unwrap();
    let logits = || model.logits(&model.hidden(&rows(0..4)).unwrap()).unwrap().detach();
    let before = logits();
    let mut adam = AdamW::new(&store, AdamWConfig::default()).unwrap();
    for step in 0..5 {
        let mut bucket = GradientBucket::new(&store).unwrap();
        bucket.backward(&(loss(&model, &rows(0..4), step, None).sum / 32.0).unwrap()).unwrap();
        let clip = bucket.clip(1e9).unwrap();
        adam.update(&mut bucket, 3e-3, &clip).unwrap();
    }
    let moved = (logits() - before).unwrap().sqr().unwrap().mean_all().unwrap();
    value(&moved).sqrt()
}

#[test]
fn what_a_model_learns_in_a_step_does_not_grow_with_its_width() {
    let far = |mup: bool| [1, 2, 4, 8].map(|times| moved(times, mup));
    let (with, without) = (far(true), far(false));
    // The logits of a wide model start smaller, and a step moves them as far.
    assert!(with.iter().all(|m| (0.5..2.0).contains(&(m / with[0]))), "{with:?}, without muP {without:?}");
    assert!(without[3] > 3.0 * without[0], "{with:?}, without muP {without:?}");
    assert_eq!(with[0], without[0], "a model as wide as its base is the base");
}
