//! Every parameter learns, and a batch in pieces is the batch.

use std::collections::HashMap;

use super::{config, model, rules, settings, text};
use crate::common;
use crate::gradients::assert_all_learn;
use calm_lm::family::dlcm::{BoundariesConfig, BoundaryRule, Smoothing};
use calm_lm::{ChunkBatch, Dlcm, DlcmConfig, LanguageModel, Loss, Survey, Whole};
use calm_nn::{GradientBucket, Noise};
use candle_core::{Device, Tensor};

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
            let mut sum = 0.0;
            for batch in &batches {
                let of = if whole { chosen } else { 4 * survey(batch) };
                let loss = loss(&model, batch, 5, Some(of));
                sum += value(&loss.sum);
                bucket.backward(&loss.sum).unwrap();
            }
            let gradients: Vec<Vec<f32>> =
                store.params().iter().map(|(name, _)| bucket.get(name).unwrap().unwrap().to_vec()).collect();
            (sum, gradients)
        };
        let want = value(&loss(&model, &rows(0..4), 5, None).sum);
        let (whole, gradients) = of(std::slice::from_ref(&(0..4)), true);
        assert!((whole - want).abs() < 1e-6 * want);
        for pieces in [&[0..2, 2..4][..], &[0..1, 1..2, 2..3, 3..4]] {
            let (sum, parts) = of(pieces, true);
            assert!((sum - whole).abs() < 1e-5 * whole, "{config:?}: {sum} {whole}");
            for (a, b) in gradients.iter().zip(&parts) {
                let most = a.iter().fold(1e-2f32, |m, x| m.max(x.abs()));
                assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 2e-5 * most), "{config:?}");
            }
        }
        if model.surveys() && matches!(config.boundaries.by, BoundaryRule::Learnt(_)) {
            // Each row by its own ratio is another loss.
            let (sum, _) = of(&[0..1, 1..2, 2..3, 3..4], false);
            assert!((sum - whole).abs() > 1e-5 * whole, "{config:?}: {sum} {whole}");
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
