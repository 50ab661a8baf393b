//! It says a probability of every token, and draws by it.

use super::{EOS, FEW, TEXT, batch, log_p, model, settings, text};
use crate::common;
use calm_lm::family::dlcm::{BoundaryRule, CosineConfig};
use calm_lm::{ChunkBatch, Dlcm, DrawKey, DrawRequest, Draws, ExactDraws, LanguageModel};
use calm_nn::{Noise, NoiseKey, RowId, philox};
use candle_core::Device;

#[test]
fn the_probabilities_of_all_continuations_sum_to_one() {
    for config in settings() {
        let (_, model) = model(&config);
        let before = text(7);
        let mut sum = 0.0;
        for a in 0..FEW {
            for b in 0..FEW {
                let p = log_p(&model, &[&before[..], &[a, b]].concat());
                sum += (p[6] + p[7]).exp();
            }
        }
        assert!((sum - 1.0).abs() < 1e-5, "{config:?}: {sum}");
    }
}

#[test]
fn a_batch_of_several_documents_says_of_each_what_it_says_of_it_alone() {
    for config in settings() {
        let (_, model) = model(&config);
        let (a, b) = (text(7), text(12)[3..].to_vec());
        let ids = [&a[..], &b].concat();
        let s = ids.len();
        let of = |at: usize| u32::from(at >= a.len());
        let positions: Vec<u32> = (0..s).map(|at| (at - a.len() * of(at) as usize) as u32).collect();
        let segments: Vec<u32> = (0..s).map(of).collect();
        let predicts: Vec<bool> = (0..s).map(|at| at + 1 < s && at + 1 != a.len()).collect();
        let both =
            ChunkBatch::new((1, s, 1), &ids, &positions, &segments, &predicts, &[0], &Device::Cpu).unwrap();
        let together = model.log_probabilities(&both).unwrap().unwrap();
        let alone = [log_p(&model, &a), log_p(&model, &b)].concat();
        for (x, y) in together.iter().zip(&alone) {
            assert!((x - y).abs() < 1e-5, "{config:?}: {together:?} {alone:?}");
        }
    }
}

fn exact(model: &Dlcm, batch: &ChunkBatch) -> ExactDraws {
    let request = DrawRequest { samples: 2, steps: 4, seed: 9, purpose: "t" };
    let Draws::Exact(draws) = model.draw(batch, &request).unwrap() else { panic!("it has probabilities") };
    draws
}

#[test]
fn exact_draws_are_the_probabilities_of_the_text_and_of_their_own_paths() {
    for config in settings() {
        let (_, model) = model(&config);
        let text = text(9);
        let draws = exact(&model, &batch(&text));
        let teacher_forced = log_p(&model, &text);
        assert_eq!(draws.log_p.len(), teacher_forced.len());
        for (a, b) in draws.log_p.iter().zip(&teacher_forced) {
            assert!((a - b).abs() < 1e-5, "{config:?}: {a} {b}");
        }
        for row in 0..draws.log_p.len() {
            let [path, _] = draws.paths[row];
            for n in 0..4 {
                if path[..n].contains(&EOS) {
                    assert_eq!(draws.squares[row][n], 1.0, "after the end PAD is certain");
                    continue;
                }
                let squares: f64 = (0..FEW)
                    .map(|token| {
                        let ids = [&text[..row + 1], &path[..n], &[token]].concat();
                        (2.0 * log_p(&model, &ids)[ids.len() - 2]).exp()
                    })
                    .sum();
                let got = draws.squares[row][n];
                assert!((got - squares).abs() < 1e-5, "{config:?}, row {row}, {n} ahead: {got} {squares}");
            }
        }
    }
}

#[test]
fn draws_are_identical_for_any_batch_split() {
    for config in settings() {
        let (_, model) = model(&config);
        let (b, s) = (4, 7);
        let ids = text((b * s) as u32);
        let draw = |rows: std::ops::Range<usize>| {
            let ids = &ids[rows.start * s..rows.end * s];
            exact(&model, &common::batch((rows.len(), s, 1), ids, rows.start as u32))
        };
        let (whole, parts) = (draw(0..4), [draw(0..1), draw(1..4)]);
        assert_eq!(whole.paths, parts.iter().flat_map(|p| p.paths.clone()).collect::<Vec<_>>());
    }
}

#[test]
fn drawn_tokens_come_as_often_as_is_said() {
    for config in settings() {
        let (_, model) = model(&config);
        let sampler = model.sampler();
        let mut continued = sampler.start().unwrap();
        let before = text(6);
        // In pieces: the cache is what it would be at once.
        for piece in [&before[..3], &before[3..4], &before[4..]] {
            continued.push(piece).unwrap();
        }
        let n = 20_000;
        let drawn = continued.draw(n, DrawKey { seed: 1, call: 0 }).unwrap();
        for token in 0..FEW {
            let p = log_p(&model, &[&before[..], &[token]].concat())[5].exp();
            let share = drawn.iter().filter(|t| t[0] == token).count() as f64 / n as f64;
            let error = (p * (1.0 - p) / n as f64).sqrt() + 1e-5;
            assert!((share - p).abs() < 5.0 * error, "{config:?} {token}: drawn {share}, said {p}");
        }
    }
}

#[test]
fn the_loss_is_the_likelihood() {
    for config in settings() {
        let (_, model) = model(&config);
        let text = text(11);
        let batch = batch(&text);
        let noise = Noise::Keyed { seed: 1, purpose: "t", step: 0, rows: &batch.rows };
        let loss = model.loss(&batch, &noise).unwrap();
        let nats = -log_p(&model, &text).iter().sum::<f64>();
        let sum = f64::from(loss.sum.to_scalar::<f32>().unwrap());
        assert!(loss.targets == 10 && (sum - nats).abs() < 1e-4 * nats, "{sum} {nats}");
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_continued() {
    for config in settings() {
        let (_, model) = model(&config);
        let sampler = model.sampler();
        let mut continued = sampler.start().unwrap();
        let long = text(TEXT.context as u32 + 9);
        for token in long.chunks(7) {
            continued.push(token).unwrap();
        }
        // As the baseline: when 35 tokens were too many, from the younger half of the context on, which now begins the text.
        let n = 4096;
        let drawn = continued.draw(n, DrawKey { seed: 1, call: 0 }).unwrap();
        let rows = [RowId { example: 0, position: long.len() as u32 }];
        let u = philox::uniform(NoiseKey::new(1, "generate/token", 0), &rows, n, 1);
        // Draws that are not what a text from token `begin` on says, but for those that rounding decides.
        let others = |begin: usize| {
            let kept = &long[begin..];
            let p = |token: u32| log_p(&model, &[kept, &[token]].concat())[kept.len() - 1].exp();
            let ends: Vec<f64> = (0..FEW)
                .scan(0.0, |sum, token| {
                    *sum += p(token);
                    Some(*sum)
                })
                .collect();
            let differs = |(token, u): &(&Vec<u32>, &f32)| {
                let u = f64::from(**u);
                let clear = ends.iter().all(|end| (u - end).abs() > 1e-4);
                clear && ends.iter().filter(|end| **end <= u).count() != token[0] as usize
            };
            drawn.iter().zip(&u).filter(differs).count()
        };
        let begin = 35 - TEXT.context / 2;
        assert_eq!(others(begin), 0, "{config:?}");
        // One token more or less would be noticed.
        assert!(others(begin - 1) > 0 && others(begin + 1) > 0, "{config:?}");
    }
}

#[test]
fn where_it_cuts_a_text_can_be_asked() {
    for config in settings() {
        let (_, model) = model(&config);
        let found = model.segmentation(&batch(&text(13))).unwrap().unwrap();
        assert_eq!(found.opens.len(), 13);
        assert!(found.opens[0]);
        match config.boundaries.by {
            BoundaryRule::Every => assert!(found.probabilities.is_none()),
            by => {
                let p = found.probabilities.unwrap();
                let at =
                    if let BoundaryRule::Cosine(CosineConfig { threshold }) = by { threshold } else { 0.5 };
                let opens: Vec<bool> = p.iter().map(|p| f64::from(*p) >= at).collect();
                assert_eq!(opens, found.opens);
            }
        }
    }
}
