//! What must hold of models that say the probability of every token of the next chunk: patch and multi-token. A
//! vocabulary of six tokens, the last three special ones, so that chunks can be enumerated.

use crate::common;
use crate::common::{backbone, randomise};
use calm_lm::{
    BackboneConfig, ChunkBatch, ChunkSoftmax, DrawKey, DrawRequest, Draws, ExactDraws, LanguageModel,
    LocalConfig, MultiTokenConfig, PatchConfig, SpecialIds, TextFormat, TokenDecoding,
};
use calm_nn::{Noise, ParamStore};
use candle_core::{D, DType, Device, Tensor};

const FEW: u32 = 6;
const EOS: u32 = 4;
const PAD: u32 = 5;
const TEXT: TextFormat = TextFormat {
    vocab_size: FEW as usize,
    special: SpecialIds { bos: 3, eos: EOS, pad: PAD },
    context: 16,
    bos_chunk: false,
};

fn store() -> ParamStore {
    ParamStore::new(&Device::Cpu, DType::F32, 2)
}

fn patch_config(chunk_size: usize, layers: usize) -> PatchConfig {
    let backbone = BackboneConfig { layers: 1, ..backbone() };
    PatchConfig { chunk_size, backbone, local: LocalConfig { layers, ..Default::default() } }
}

fn patch(chunk_size: usize, layers: usize) -> ChunkSoftmax {
    let store = store();
    let model = patch_config(chunk_size, layers).model(&store, &TEXT).unwrap();
    randomise(&store, 0.5);
    model
}

fn multi_token(chunk_size: usize) -> ChunkSoftmax {
    let store = store();
    let backbone = BackboneConfig { layers: 1, ..backbone() };
    let config = MultiTokenConfig { chunk_size, backbone, heads: Default::default() };
    let model = config.model(&store, &TEXT).unwrap();
    randomise(&store, 0.5);
    model
}

/// One of each kind: (name, K, model).
fn models() -> Vec<(&'static str, usize, ChunkSoftmax)> {
    vec![
        ("patch", 2, patch(2, 2)),
        ("patch without local layers", 3, patch(3, 0)),
        ("patch of one token", 1, patch(1, 1)),
        ("multi-token", 2, multi_token(2)),
        ("multi-token", 3, multi_token(3)),
    ]
}

/// One row of these tokens in chunks of K, all but the last of which predict.
fn batch(k: usize, ids: &[u32]) -> ChunkBatch {
    common::batch((1, ids.len() / k, k), ids, 0)
}

/// ln p of all tokens but those of the first chunk.
fn log_p(model: &ChunkSoftmax, ids: &[u32]) -> Vec<f64> {
    model.log_probabilities(&batch(model.chunk_size(), ids)).unwrap().unwrap()
}

/// Every chunk that can follow: EOS is followed by PAD.
fn chunks(k: usize) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new()];
    for _ in 0..k {
        let longer = |chunk: Vec<u32>| {
            let tokens = if chunk.contains(&EOS) { PAD..PAD + 1 } else { 0..FEW };
            tokens.map(move |token| [chunk.as_slice(), &[token]].concat())
        };
        all = all.into_iter().flat_map(longer).collect();
    }
    all
}

/// Probability of a chunk after others.
fn p(model: &ChunkSoftmax, before: &[u32], chunk: &[u32]) -> f64 {
    let all = log_p(model, &[before, chunk].concat());
    all[all.len() - chunk.len()..].iter().sum::<f64>().exp()
}

fn before(k: usize) -> Vec<u32> {
    (0..2 * k as u32).map(|i| i * i % 3).collect()
}

#[test]
fn the_probabilities_of_all_chunks_sum_to_one() {
    for (name, k, model) in models() {
        let sum: f64 = chunks(k).iter().map(|chunk| p(&model, &before(k), chunk)).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{name}, K = {k}: {sum}");
    }
}

#[test]
fn a_token_changes_nothing_that_was_said_before_it() {
    for (name, k, model) in models() {
        let text: Vec<u32> = (0..4 * k as u32).map(|i| (i * 7 + 1) % 3).collect();
        let whole = log_p(&model, &text);
        for at in k..text.len() {
            let mut other = text.clone();
            other[at] = (other[at] + 1) % 3;
            let changed = log_p(&model, &other);
            let said = at - k;
            for i in 0..said {
                assert!((whole[i] - changed[i]).abs() < 1e-6, "{name}: token {at} is seen at {}", i + k);
            }
            // Its own probability is another, and so are those of the chunk after it.
            assert_ne!(whole[said], changed[said], "{name}");
            let next = (at / k + 1) * k;
            if next < text.len() {
                assert!(
                    (whole[next - k] - changed[next - k]).abs() > 1e-6,
                    "{name}: {at} is not seen after it"
                );
            }
        }
    }
}

#[test]
fn tokens_of_a_chunk_see_each_other_in_a_patch_model_and_do_not_in_a_multi_token_model() {
    let text = [0, 1, 2, 0, 1, 2];
    let mut other = text;
    other[3] = 1;
    for (model, sees) in [(patch(3, 1), true), (patch(3, 0), true), (multi_token(3), false)] {
        let (a, b) = (log_p(&model, &text), log_p(&model, &other));
        assert_eq!((a[1] - b[1]).abs() > 1e-6, sees, "the next token: {a:?} {b:?}");
        if !sees {
            assert_eq!((a[1], a[2]), (b[1], b[2]));
        }
    }
    // With layers the first token reaches further than the next one.
    let (a, b) = (log_p(&patch(3, 1), &text), log_p(&patch(3, 1), &other));
    assert!((a[2] - b[2]).abs() > 1e-6, "{a:?} {b:?}");
}

#[test]
fn the_loss_is_the_likelihood_and_filler_after_the_end_is_no_part_of_it() {
    for (name, k, model) in models() {
        let loss = |ids: &[u32]| {
            let batch = batch(k, ids);
            let noise = Noise::Keyed { seed: 1, purpose: "t", step: 0, rows: &batch.rows };
            let loss = model.loss(&batch, &noise).unwrap();
            assert_eq!(loss.targets, ids.len() / k - 1);
            f64::from(loss.sum.to_scalar::<f32>().unwrap())
        };
        let mut text = [before(k), vec![1; k - 1], vec![EOS]].concat();
        let nats = -log_p(&model, &text).iter().sum::<f64>() / k as f64;
        assert!((loss(&text) - nats).abs() < 1e-4 * nats, "{name}: {} {nats}", loss(&text));
        if k > 1 {
            let at = text.len() - k;
            text[at] = EOS;
            let mut filled = text.clone();
            text[at + 1..].fill(PAD);
            filled[at + 1..].fill(0);
            assert_eq!(loss(&text), loss(&filled), "{name}");
            assert!(log_p(&model, &text)[at - k + 1..].iter().all(|p| *p == 0.0), "{name}");
        }
    }
}

fn exact(model: &ChunkSoftmax, batch: &ChunkBatch) -> ExactDraws {
    let request = DrawRequest { samples: 2, steps: 4, seed: 9, purpose: "t" };
    let Draws::Exact(draws) = model.draw(batch, &request).unwrap() else { panic!("they have probabilities") };
    draws
}

#[test]
fn exact_draws_are_the_probabilities_of_the_text_and_of_their_own_paths() {
    for (name, k, model) in models() {
        let text: Vec<u32> = (0..6 * k as u32).map(|i| (i * 5 + i / 4) % 3).collect();
        let draws = exact(&model, &batch(k, &text));
        let teacher_forced = log_p(&model, &text);
        assert_eq!(draws.log_p.len(), teacher_forced.len(), "{name}");
        for (a, b) in draws.log_p.iter().zip(&teacher_forced) {
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
        }
        let rows = text.len() / k - 1;
        assert_eq!((draws.paths.len(), draws.squares.len(), draws.gram_log_p.len()), (rows, rows, rows));
        for row in 0..rows {
            for n in 0..4.min(draws.log_p.len() - row * k) {
                assert_eq!(draws.gram_log_p[row][n], draws.log_p[row * k + n], "{name}");
            }
            // Along the first path: the same text, then its tokens, then each that may follow.
            let [path, _] = draws.paths[row];
            for n in 0..4 {
                if path[..n].contains(&EOS) {
                    assert_eq!(draws.squares[row][n], 1.0, "{name}: after the end PAD is certain");
                    continue;
                }
                let squares: f64 = (0..FEW)
                    .map(|token| {
                        let mut ids = [&text[..(row + 1) * k], &path[..n], &[token]].concat();
                        let said = ids.len() - k - 1;
                        ids.resize(ids.len().next_multiple_of(k), PAD);
                        (2.0 * log_p(&model, &ids)[said]).exp()
                    })
                    .sum();
                let got = draws.squares[row][n];
                assert!((got - squares).abs() < 1e-5, "{name}, row {row}, {n} ahead: {got} {squares}");
            }
        }
    }
}

#[test]
fn sampled_chunks_follow_the_probabilities_token_by_token_and_after_a_cache() {
    for (name, k, model) in models() {
        let sampler = model.sampler();
        let mut text = sampler.start().unwrap();
        for chunk in before(k).chunks(k) {
            text.push(chunk).unwrap();
        }
        let n = 20_000;
        let drawn = text.draw(n, DrawKey { seed: 1, call: 0 }).unwrap();
        assert_eq!(drawn.len(), n);
        assert_eq!(drawn[..9], text.draw(9, DrawKey { seed: 1, call: 0 }).unwrap());
        for chunk in chunks(k) {
            let p = p(&model, &before(k), &chunk);
            let share = drawn.iter().filter(|c| **c == chunk).count() as f64 / n as f64;
            let error = (p * (1.0 - p) / n as f64).sqrt() + 1e-5;
            assert!((share - p).abs() < 5.0 * error, "{name} {chunk:?}: drawn {share}, said {p}");
        }
    }
}

#[test]
fn temperature_and_top_p_shape_each_token() {
    for (name, k, model) in models() {
        let draw = |decoding| {
            let sampler = model.tempered_sampler(decoding).unwrap();
            let mut text = sampler.start().unwrap();
            text.push(&before(k)).unwrap();
            text.draw(300, DrawKey { seed: 1, call: 0 }).unwrap()
        };
        let cold = draw(TokenDecoding { temperature: 0.0, top_p: 1.0 });
        assert!(cold.iter().all(|chunk| *chunk == cold[0]), "{name}");
        // So little mass that only the most probable token of each place is left.
        assert_eq!(draw(TokenDecoding { temperature: 1.0, top_p: 1e-9 }), cold, "{name}");
        // Greedily: each token is the most probable one after those before it.
        let said = |chunk: &[u32]| log_p(&model, &[&before(k)[..], chunk].concat());
        for at in 0..cold[0].iter().position(|t| *t == EOS).map_or(k, |end| end + 1) {
            let mut other = cold[0].clone();
            let best = said(&other)[k + at];
            for token in 0..FEW {
                other[at] = token;
                assert!(said(&other)[k + at] <= best + 1e-6, "{name}: {token} at {at}");
            }
        }
        let plain = draw(TokenDecoding::default());
        assert!(plain.iter().any(|chunk| *chunk != plain[0]), "{name}");
    }
}

#[test]
fn after_its_end_a_text_is_filler() {
    for (_, k, model) in models() {
        let sampler = model.sampler();
        let mut text = sampler.start().unwrap();
        let mut last = vec![PAD; k];
        last[0] = EOS;
        text.push(&[before(k), last].concat()).unwrap();
        assert_eq!(text.draw(2, DrawKey { seed: 1, call: 0 }).unwrap(), vec![vec![PAD; k]; 2]);
    }
}

#[test]
fn draws_are_identical_for_any_batch_split() {
    for (name, k, model) in models() {
        let (b, s) = (4, 6);
        let ids: Vec<u32> = (0..(b * s * k) as u32).map(|i| (i * 11 + i / 5) % 3).collect();
        let draw = |rows: std::ops::Range<usize>| {
            let ids = &ids[rows.start * s * k..rows.end * s * k];
            exact(&model, &common::batch((rows.len(), s, k), ids, rows.start as u32))
        };
        let (whole, parts) = (draw(0..4), [draw(0..1), draw(1..4)]);
        assert_eq!(whole.paths, parts.iter().flat_map(|p| p.paths.clone()).collect::<Vec<_>>(), "{name}");
        let squares = parts.iter().flat_map(|p| p.squares.clone());
        for (a, b) in whole.squares.iter().flatten().zip(squares.flatten()) {
            // Products of other numbers of rows round differently; measured 1.1e-6.
            assert!((a - b).abs() < 1e-5, "{name}: {a} {b}");
        }
    }
}

/// With one token a chunk, no local layers and the identity in the place of the projection the way out is the
/// baseline's: softmax of the vocabulary on the backbone's hidden state. (The way in has an MLP and a LayerNorm more.)
#[test]
fn a_patch_of_one_token_without_layers_says_what_the_baseline_says_of_a_hidden_state() {
    let store = store();
    let model = patch_config(1, 0).model(&store, &TEXT).unwrap();
    randomise(&store, 0.5);
    let width = backbone().hidden_size;
    let set = |name: &str, value: Tensor| store.get(name).unwrap().var.set(&value).unwrap();
    set("local.project.weight", Tensor::eye(width, DType::F32, &Device::Cpu).unwrap());
    for norm in ["model.norm.weight", "local.norm.weight"] {
        set(norm, Tensor::ones(width, DType::F32, &Device::Cpu).unwrap());
    }
    let text: Vec<u32> = (0..12).map(|i| i * i % 5).collect();
    let batch = batch(1, &text);
    let hidden = model.hidden(&batch).unwrap();
    let output = store.get("lm_head.weight").unwrap().var;
    let logits = hidden.matmul(&output.t().unwrap()).unwrap();
    let log_sum = logits.exp().unwrap().sum(D::Minus1).unwrap().log().unwrap().to_vec1::<f32>().unwrap();
    let logits = logits.to_vec2::<f32>().unwrap();
    for (row, said) in log_p(&model, &text).into_iter().enumerate() {
        let want = f64::from(logits[row][text[row + 1] as usize] - log_sum[row]);
        assert!((said - want).abs() < 1e-4, "{said} {want}");
    }
}
