//! That nothing which is said of a token depends on a later one, and that this test would notice.

use calm_nn::Noise;
use candle_core::Device;

use super::boundaries::Decisions;
use super::config::{BoundaryRule, CrossKeys, LearntConfig, Pooling, Smoothing};
use super::slots::{Slots, starts};
use super::testing::{S, TEXT, batch, bits, config, ids, model, settings};
use crate::ChunkBatch;

/// How many logits at or before t differ when the token after t is another, and how many after it.
fn influence(mut look: impl FnMut(&ChunkBatch) -> (Vec<Vec<u32>>, Vec<bool>)) -> (usize, usize) {
    let (text, mut early, mut late) = (ids(), 0, 0);
    let (before, opened) = look(&batch(&text));
    for t in 0..2 * S - 1 {
        let mut other = text.clone();
        other[t + 1] = (other[t + 1] + 1) % TEXT;
        let (after, opens) = look(&batch(&other));
        for u in 0..2 * S {
            let differs = before[u] != after[u] || opened[u] != opens[u];
            // The other row is no business of this one either.
            let forbidden = u <= t || u / S != (t + 1) / S;
            early += usize::from(differs && forbidden);
            late += usize::from(differs && !forbidden);
        }
    }
    (early, late)
}

#[test]
fn no_logit_knows_a_later_token() {
    for config in settings() {
        let model = model(&config);
        let noise = |batch: &ChunkBatch, drawn: bool| {
            let noise = Noise::Keyed { seed: 1, purpose: "t", step: 3, rows: &batch.rows };
            let decisions = if drawn { Decisions::Drawn(&noise) } else { Decisions::Settled };
            let pass = model.pass(batch, decisions).unwrap();
            (bits(&model, &pass), pass.boundaries.opens)
        };
        for drawn in [false, true] {
            let (early, late) = influence(|batch| noise(batch, drawn));
            assert_eq!(early, 0, "{config:?}, drawn: {drawn}");
            assert!(late > 2 * S, "{config:?}: a token changes something: {late}");
        }
    }
}

#[test]
fn boundaries_differ_between_texts_and_are_drawn_where_they_are_learnt() {
    let config = config(
        BoundaryRule::Learnt(LearntConfig::default()),
        Pooling::Boundary,
        Smoothing::Ema,
        CrossKeys::Concepts,
    );
    let model = model(&config);
    let of = |ids: &[u32]| model.pass(&batch(ids), Decisions::Settled).unwrap().boundaries.opens;
    let settled = of(&ids());
    // Five other texts, of other tokens everywhere.
    let other = |by: u32| of(&ids().iter().map(|id| (id + by) % TEXT).collect::<Vec<u32>>());
    assert!((1..TEXT).any(|by| other(by) != settled));
    let batch = batch(&ids());
    let drawn = |step| {
        let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
        model.pass(&batch, Decisions::Drawn(&noise)).unwrap().boundaries.opens
    };
    assert_eq!(drawn(1), drawn(1));
    assert!((1..9).any(|step| drawn(step) != drawn(0)));
    let n = settled.iter().filter(|o| **o).count();
    assert!(n > 3 && n < 2 * S - 1, "{settled:?}");
}

/// The pooling of the paper's equation 7: slot k is the mean of its own tokens, seen from its first one on.
fn printed(slots: &mut Slots, opens: &[bool], segments: &[u32]) {
    let starts = starts(S, segments);
    let mut slot = 0;
    for (row, opens) in opens.chunks(S).enumerate() {
        for t in (0..S).filter(|t| opens[*t]) {
            let ends = |u: &usize| *u == S || opens[*u] || starts[row * S + *u];
            let end = (t + 1..=S).find(ends).unwrap_or(S);
            slots.pool[row * slots.each + slot] = (t as u32, end as u32);
            slot += 1;
        }
        slot = 0;
    }
}

#[test]
fn the_printed_pooling_would_show_a_token_its_successors() {
    let by = BoundaryRule::Every;
    let config = config(by, Pooling::Closed, Smoothing::None, CrossKeys::Concepts);
    let model = model(&config);
    let look = |batch: &ChunkBatch, printed_too: bool| {
        let found = model.pass(batch, Decisions::Settled).unwrap();
        let segments = &batch.on_host.segments;
        let opens = found.boundaries.opens.clone();
        let mut slots = Slots::new((2, S), &opens, segments, Pooling::Closed);
        if printed_too {
            printed(&mut slots, &opens, segments);
        }
        let h = model.encode(batch).unwrap();
        let pass = model.behind(&h, found.boundaries, &slots, batch).unwrap();
        (bits(&model, &pass), opens)
    };
    assert_eq!(influence(|batch| look(batch, false)).0, 0);
    assert!(influence(|batch| look(batch, true)).0 > 4, "this test must be able to fail");
}

/// Rows of concepts are filled up to a multiple of 16: with one more boundary they are twice as long.
#[test]
fn a_concept_that_makes_rows_longer_changes_nothing_before_it() {
    let (n, late) = (40, 35);
    let ids: Vec<u32> = (0..n as u32).map(|i| (i * i + i / 3) % TEXT).collect();
    let positions: Vec<u32> = (0..n as u32).collect();
    let predicts: Vec<bool> = (0..n).map(|at| at + 1 < n).collect();
    let batch =
        ChunkBatch::new((1, n, 1), &ids, &positions, &vec![0; n], &predicts, &[0], &Device::Cpu).unwrap();
    // Sixteen concepts, and a seventeenth.
    let few: Vec<bool> = (0..n).map(|t| t % 2 == 0 && t < 32).collect();
    let more: Vec<bool> = (0..n).map(|t| few[t] || t == late).collect();
    for (pooling, keys) in
        [(Pooling::Boundary, CrossKeys::Replicated), (Pooling::Closed, CrossKeys::Concepts)]
    {
        let by = BoundaryRule::Learnt(LearntConfig::default());
        let model = model(&config(by, pooling, Smoothing::Ema, keys));
        let each = |opens: &[bool]| Slots::new((1, n), opens, &batch.on_host.segments, pooling).each;
        assert_eq!((each(&few), each(&more)), (16, 32));
        let hidden = |opens: &[bool]| -> Vec<Vec<f32>> {
            model.pass(&batch, Decisions::Given(opens)).unwrap().hidden.squeeze(0).unwrap().to_vec2().unwrap()
        };
        let (before, after) = (hidden(&few), hidden(&more));
        let off = |t: usize| before[t].iter().zip(&after[t]).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        // Sums over other numbers of rows, as of a text in pieces; what another concept changes is far more.
        assert!((0..late).all(|t| off(t) < 3e-5), "{pooling:?}");
        assert!(off(late) > 1e-3, "{pooling:?}: {}", off(late));
    }
}
