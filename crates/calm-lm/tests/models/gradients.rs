//! What must hold of whole models: every parameter learns, three ways through the backbone agree, the head
//! uses its condition, and draws belong to positions and not to batches.

use crate::common::*;
use calm_lm::backbone::Branch;
use calm_lm::{
    BackboneConfig, Cache, ChunkBatch, DiffusionConfig, FlowConfig, HeadConfig, LanguageModel, LocalConfig,
    ModelConfig, PatchConfig,
};
use calm_nn::{AdamW, AdamWConfig, Clip, GradientBucket, Noise, ParamStore, RowId};
use candle_core::{DType, Device, IndexOp, Result, Tensor, backprop::GradStore};

fn largest(t: &Tensor) -> f64 {
    t.to_dtype(DType::F64).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Every parameter gets a finite gradient that is not 0 everywhere, and a frozen row one of exactly 0; the
/// bucket, where training leaves gradients, holds the same as candle's. `loss(step)` has noise of its step.
pub fn assert_all_learn(store: &ParamStore, loss: impl Fn(u32) -> Tensor) {
    let grads = [1, 2].map(|step| loss(step).backward().unwrap());
    let mut bucket = GradientBucket::new(store).unwrap();
    // What an earlier step left must not show.
    bucket.backward(&loss(3)).unwrap();
    bucket.clear();
    for step in [1, 2] {
        bucket.backward(&loss(step)).unwrap();
    }
    for (name, param) in store.params() {
        let of = |g: &GradStore| g.get(param.var.as_tensor()).unwrap().flatten_all().unwrap();
        let want = (of(&grads[0]) + of(&grads[1])).unwrap();
        let most = largest(&want).max(1e-3);
        let got = bucket.get(&name).unwrap().unwrap();
        let pairs = got.iter().zip(want.to_vec1::<f32>().unwrap());
        let off = pairs.map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max) / most;
        assert!(off < 1e-5, "{name}: the bucket is off by {off:.1e}");
        if let Some(row) = param.frozen_row {
            let width = param.var.dims()[1];
            assert!(
                bucket.get(&name).unwrap().unwrap()[row as usize * width..][..width]
                    .iter()
                    .all(|g| *g == 0.0)
            );
        }
    }
    let [grads, _] = &grads;
    let mut wrong = Vec::new();
    for (name, param) in store.params() {
        let Some(g) = grads.get(param.var.as_tensor()) else {
            wrong.push(format!("{name}: none"));
            continue;
        };
        let most = largest(g);
        if !(most > 0.0 && most.is_finite()) {
            wrong.push(format!("{name}: largest {most}"));
        }
        if let Some(row) = param.frozen_row
            && largest(&g.i(row as usize).unwrap()) != 0.0
        {
            wrong.push(format!("{name}: frozen row {row} has one"));
        }
    }
    assert!(wrong.is_empty(), "gradients: {}", wrong.join(", "));
}

#[test]
fn every_parameter_of_calm_receives_a_gradient() {
    for kv_heads in [None, Some(1)] {
        let backbone = BackboneConfig { kv_heads, ..backbone() };
        let (store, model) = calm(2, &backbone, false);
        randomise(&store, 0.3);
        let batch = batch((3, 6, 2), &tokens(3 * 6 * 2, 1), 0);
        assert_all_learn(&store, |step| {
            let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
            model.loss(&batch, &noise).unwrap().sum
        });
    }
}

#[test]
fn every_parameter_of_calm_with_the_other_heads_receives_a_gradient() {
    let heads: [HeadConfig; 2] = [FlowConfig::default().into(), DiffusionConfig::default().into()];
    for head in heads {
        let (store, model) = calm_with(&head, 2, &backbone(), false);
        randomise(&store, 0.3);
        let batch = batch((3, 6, 2), &tokens(36, 1), 0);
        assert_all_learn(&store, |step| {
            let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
            model.loss(&batch, &noise).unwrap().sum
        });
    }
}

#[test]
fn at_the_zero_start_the_last_layer_of_the_head_learns_and_nothing_is_nan() {
    let (store, model) = calm(2, &backbone(), false);
    let batch = batch((2, 5, 2), &tokens(20, 1), 0);
    let noise = Noise::Keyed { seed: 1, purpose: "t", step: 0, rows: &batch.rows };
    let mut bucket = GradientBucket::new(&store).unwrap();
    bucket.backward(&model.loss(&batch, &noise).unwrap().sum).unwrap();
    assert!(bucket.norm().unwrap().is_finite());
    for name in ["weight", "bias"] {
        let g = bucket.get(&format!("mlp_generator.final_layer.linears.2.{name}")).unwrap().unwrap();
        assert!(g.iter().any(|x| *x != 0.0), "{name}");
    }
}

#[test]
fn every_parameter_of_the_baseline_receives_a_gradient() {
    for kv_heads in [None, Some(1)] {
        let backbone = BackboneConfig { kv_heads, ..backbone() };
        let (store, model) = baseline(&backbone, false);
        randomise(&store, 0.3);
        assert_all_learn(&store, |step| {
            let batch = batch((3, 9, 1), &tokens(27, step), 0);
            let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
            model.loss(&batch, &noise).unwrap().sum
        });
    }
}

#[test]
fn every_parameter_of_the_families_with_probabilities_of_chunks_receives_a_gradient() {
    // Attention over one place needs no queries and keys: there a patch model has no local layers.
    let local = LocalConfig { layers: 0, ..Default::default() };
    let one = PatchConfig { chunk_size: 1, backbone: backbone(), local };
    let [_, one_head] = chunk_families(1, &backbone());
    let mut all: Vec<(usize, ModelConfig)> = vec![(1, one.into()), (1, one_head)];
    for (k, kv_heads) in [(2, Some(1)), (3, None)] {
        let backbone = BackboneConfig { kv_heads, ..backbone() };
        all.extend(chunk_families(k, &backbone).map(|family| (k, family)));
    }
    for (k, family) in all {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
        let model = family.build(&store, &text(16, false), None).unwrap();
        randomise(&store, 0.3);
        assert_all_learn(&store, |step| {
            let batch = batch((3, 6, k), &tokens(3 * 6 * k, step), 0);
            let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
            model.loss(&batch, &noise).unwrap().sum
        });
    }
}

#[test]
fn every_parameter_of_the_autoencoder_receives_a_gradient() {
    let (store, model) = autoencoder(2);
    randomise(&store, 0.3);
    let rows: Vec<RowId> = (0..16).map(|i| RowId { example: i, position: 0 }).collect();
    let ids = Tensor::from_vec(tokens(32, 3), (16, 2), &Device::Cpu).unwrap();
    assert_all_learn(&store, |step| {
        let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &rows };
        model.loss(&ids, &noise).unwrap().total
    });
}

/// Hidden states of whole rows against those of a cache and of branches, on rows of `segments`.
fn three_ways(kv_heads: Option<usize>, segments: &[u32], rope_theta: f64) -> Result<()> {
    three_ways_of(BackboneConfig { kv_heads, rope_theta, ..backbone() }, segments, 0)
}

/// The same of a backbone that may look at the first `input` positions of each segment in other directions.
fn three_ways_of(backbone: BackboneConfig, segments: &[u32], input: usize) -> Result<()> {
    let (store, model) = calm(2, &backbone, false);
    randomise(&store, 0.3);
    let s = segments.len();
    let positions: Vec<u32> =
        (0..s).map(|t| segments[..t].iter().filter(|g| **g == segments[t]).count() as u32).collect();
    let ids = tokens(2 * s * 2, 4);
    let (places, runs, predicts) = (positions.repeat(2), segments.repeat(2), vec![false; 2 * s]);
    let inputs = places.iter().map(|p| (*p as usize) < input).collect();
    let batch = ChunkBatch::new((2, s, 2), &ids, &places, &runs, &predicts, &[0, 1], &Device::Cpu)?
        .with_inputs(Some(inputs))?;
    let x = model.embed(&batch.ids)?;
    let net = model.backbone();
    let rows = net.rows(&batch)?;
    let whole = net.forward(&x, &rows)?;
    let near = |a: &Tensor, b: &Tensor, what: &str| -> Result<()> {
        let off = largest(&(a - b)?);
        // f32 roundings through two layers, in another order of summation; measured below 2e-6.
        assert!(off < 1e-5, "{what}: {off}");
        Ok(())
    };

    let (trunk_hidden, trunk) = net.forward_trunk(&x, &rows)?;
    near(&trunk_hidden, &whole, "trunk")?;
    // The branch of position s is given the true chunks s + 1, s + 2: it must see what whole rows see.
    let mut branch = Branch::default();
    for ahead in 1..4usize.min(s) {
        let rest = x.narrow(1, ahead, s - ahead)?;
        let filler = x.narrow(1, 0, ahead)?;
        let hidden =
            net.forward_branch(&Tensor::cat(&[&rest, &filler], 1)?.contiguous()?, &trunk, &mut branch)?;
        // Branches leave the output, and the position that predicts its first chunk.
        let leaves = |t: &usize| positions[*t] as usize + 1 >= input;
        for t in (0..s - ahead).filter(|t| segments[*t] == segments[t + ahead]).filter(leaves) {
            near(&hidden.i((.., t))?, &whole.i((.., t + ahead))?, &format!("branch of {t}, {ahead} ahead"))?;
        }
    }

    // A cache holds one segment: compare the first one, in pieces of 1, 2, 3 ... positions.
    let first = segments.iter().take_while(|g| **g == segments[0]).count();
    // The first piece holds all of the input.
    let (mut cache, mut at, mut piece) = (Cache::default(), 0, input.max(1));
    while at < first {
        let n = piece.min(first - at);
        let hidden = net.forward_cached(&x.narrow(1, at, n)?.contiguous()?, &mut cache)?;
        near(&hidden, &whole.narrow(1, at, n)?, &format!("cache at {at}"))?;
        (at, piece) = (at + n, if at == 0 { 1 } else { piece + 1 });
    }
    assert_eq!(cache.len(), first);
    Ok(())
}

#[test]
fn cached_branched_and_teacher_forced_hidden_states_agree() {
    three_ways(None, &[0; 9], 1e4).unwrap();
    three_ways(Some(1), &[0; 9], 100.0).unwrap();
    three_ways(Some(2), &[0, 0, 0, 0, 5, 5, 5, 1, 1], 1e4).unwrap();
}

#[test]
fn they_agree_in_every_direction() {
    let rows: [&[u32]; 2] = [&[0; 9], &[0, 0, 0, 0, 0, 5, 5, 5, 5, 5, 1, 1]];
    for attention in directions() {
        for (segments, input) in [(rows[0], 5), (rows[0], 1), (rows[1], 3), (rows[1], 2)] {
            let backbone = BackboneConfig { attention, heads: 4, ..backbone() };
            three_ways_of(backbone, segments, input).unwrap();
        }
    }
    let grouped = BackboneConfig { kv_heads: Some(2), heads: 4, attention: directions()[2], ..backbone() };
    three_ways_of(grouped, rows[1], 3).unwrap();
}

#[test]
fn the_loss_depends_on_the_hidden_state_once_the_head_is_not_zero() {
    let (store, model) = calm(2, &backbone(), false);
    let batch = batch((4, 6, 2), &tokens(48, 5), 0);
    let noise = Noise::Keyed { seed: 3, purpose: "t", step: 0, rows: &batch.rows };
    // The last layer starts at 0: every sample is the origin, whatever the hidden state.
    let (own, exchanged) = model.condition_check(&batch, &noise).unwrap().unwrap();
    assert_eq!(own, exchanged);
    randomise(&store, 0.3);
    let (own, exchanged) = model.condition_check(&batch, &noise).unwrap().unwrap();
    let loss = model.loss(&batch, &noise).unwrap();
    let mean = f64::from(loss.sum.to_scalar::<f32>().unwrap()) / loss.targets as f64;
    assert!((own - mean).abs() < 1e-5 * mean.abs(), "{own} {mean}");
    assert!((own - exchanged).abs() > 1e-3, "{own} {exchanged}");
}

#[test]
fn after_training_exchanged_hidden_states_cost_more() {
    // Every chunk is followed by the chunk one up (mod 6): the hidden state says all there is to know.
    let (store, model) = calm(2, &backbone(), false);
    let (b, s) = (6, 4);
    let ids: Vec<u32> = (0..b * s)
        .flat_map(|at| {
            let chunk = ((at / s + at % s) % 6) as u32;
            [2 * chunk, 2 * chunk + 1]
        })
        .collect();
    let batch = batch((b, s, 2), &ids, 0);
    let mut bucket = GradientBucket::new(&store).unwrap();
    let mut adamw = AdamW::new(&store, AdamWConfig { weight_decay: 0.0, ..Default::default() }).unwrap();
    for step in 0..150 {
        let noise = Noise::Keyed { seed: 3, purpose: "t", step, rows: &batch.rows };
        let loss = model.loss(&batch, &noise).unwrap();
        bucket.clear();
        bucket.backward(&(loss.sum / loss.targets as f64).unwrap()).unwrap();
        adamw.update(&mut bucket, 3e-3, &Clip::by(1.0)).unwrap();
    }
    let noise = Noise::Keyed { seed: 4, purpose: "t", step: 0, rows: &batch.rows };
    let (own, exchanged) = model.condition_check(&batch, &noise).unwrap().unwrap();
    // Measured 13.3 and 15.9; both contain the spread E‖Y − Y′‖ of the untrained, wide posterior.
    assert!(exchanged > own * 1.1, "{own} {exchanged}");
}

#[test]
fn draws_are_identical_for_any_batch_split() {
    for (k, steps) in [(1, 4), (2, 2), (4, 1)] {
        let (store, model) = calm(k, &backbone(), false);
        randomise(&store, 0.3);
        let (b, s) = (4, 7);
        let ids = tokens(b * s * k, 6);
        let draw = |rows: std::ops::Range<usize>| {
            let part =
                batch((rows.len(), s, k), &ids[rows.start * s * k..rows.end * s * k], rows.start as u32);
            model.draw_positions(&part, 3, steps, 9, "t").unwrap().tokens
        };
        let whole = draw(0..4);
        assert_eq!(whole, [draw(0..1), draw(1..4)].concat(), "K = {k}");
        assert_eq!(whole, [draw(0..2), draw(2..3), draw(3..4)].concat(), "K = {k}");
    }
}

#[test]
fn a_later_step_is_drawn_exactly_where_a_sample_still_agrees_with_the_first() {
    let (store, model) = calm(1, &backbone(), false);
    randomise(&store, 0.3);
    let (b, s, samples, steps) = (4, 9, 2, 4);
    let part = batch((b, s, 1), &tokens(b * s, 8), 0);
    let draws = model.draw_positions(&part, samples, steps, 9, "t").unwrap();
    let pad = model.special().pad;
    let (mut open, mut closed) = (0, 0);
    for row in 0..draws.rows {
        let mut agrees = true;
        for step in 1..steps {
            let before = draws.chunk(row, step - 1, 0);
            agrees &= before == draws.chunk(row, step - 1, 1);
            let drawn = draws.chunk(row, step, 0) != [pad];
            // After its end a text is PAD as well.
            let ended = before == [pad] || before == [model.special().eos];
            assert!(drawn == (agrees && !ended), "row {row}, step {step}");
            (open, closed) = (open + usize::from(agrees), closed + usize::from(!agrees));
        }
    }
    // Both happen, or the test shows nothing.
    assert!(open > 0 && closed > 0, "{open} {closed}");
}

#[test]
fn the_baselines_draws_are_identical_for_any_batch_split() {
    let (store, model) = baseline(&backbone(), false);
    randomise(&store, 0.3);
    let (b, s) = (4, 9);
    let ids = tokens(b * s, 7);
    let draw = |rows: std::ops::Range<usize>| {
        let part = batch((rows.len(), s, 1), &ids[rows.start * s..rows.end * s], rows.start as u32);
        model.draw_positions(&part, 9, "t").unwrap()
    };
    let (whole, parts) = (draw(0..4), [draw(0..1), draw(1..4)]);
    assert_eq!(whole.paths, parts.iter().flat_map(|p| p.paths.clone()).collect::<Vec<_>>());
    let squares = parts.iter().flat_map(|p| p.squares.clone());
    for (a, b) in whole.squares.iter().flatten().zip(squares.flatten()) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
}

#[test]
fn the_loss_of_a_batch_is_that_of_its_parts() {
    let (store, model) = calm(2, &backbone(), false);
    randomise(&store, 0.3);
    let ids = tokens(4 * 6 * 2, 8);
    let loss = |rows: std::ops::Range<usize>| -> f64 {
        let part: ChunkBatch =
            batch((rows.len(), 6, 2), &ids[rows.start * 12..rows.end * 12], rows.start as u32);
        let noise = Noise::Keyed { seed: 1, purpose: "t", step: 0, rows: &part.rows };
        f64::from(model.loss(&part, &noise).unwrap().sum.to_scalar::<f32>().unwrap())
    };
    let (whole, parts) = (loss(0..4), loss(0..1) + loss(1..4));
    assert!((whole - parts).abs() < 1e-5 * whole, "{whole} {parts}");
}
