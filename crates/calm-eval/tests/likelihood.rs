//! What must hold of the probabilities of given texts, in every family.

#![allow(clippy::unwrap_used)] // helpers of tests may panic

mod families;

use calm_data::Layout;
use calm_eval::likelihood::{Answer, LikelihoodError, LikelihoodOptions, Question, likelihoods};
use calm_lm::{DrawKind, LanguageModel};
use calm_stats::bound::Floor;
use families::{TEXT, V, models};

fn layout(model: &dyn LanguageModel) -> Layout {
    Layout { chunk_size: model.chunk_size(), context: TEXT.context, bos_chunk: TEXT.bos_chunk }
}

fn options(samples: usize) -> LikelihoodOptions {
    // A floor that nobody sees.
    LikelihoodOptions { samples, floor: Floor { share: 1e-30, vocab: V }, seed: 3, greedy: true }
}

fn ask(model: &dyn LanguageModel, questions: &[Question], samples: usize) -> Vec<Answer> {
    likelihoods(model, layout(model), questions, &options(samples)).unwrap()
}

fn question(context: &[u32], continuation: &[u32]) -> Question {
    Question { context: context.to_vec(), continuation: continuation.to_vec() }
}

/// A text of so many tokens.
fn text(n: u32) -> Vec<u32> {
    (0..n).map(|j| (j * j * 7 + 3 * j) % 60).collect()
}

/// Equal but for rounding, which depends on how many rows are computed at once.
fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-4 * (1.0 + a.abs())
}

fn exact() -> impl Iterator<Item = (&'static str, Box<dyn LanguageModel>)> {
    models().into_iter().filter(|(_, model)| model.draws() == DrawKind::Exact)
}

fn drawn() -> impl Iterator<Item = (&'static str, Box<dyn LanguageModel>)> {
    models().into_iter().filter(|(_, model)| model.draws() == DrawKind::Sampled)
}

#[test]
fn a_text_is_as_probable_in_one_piece_as_in_two_wherever_it_is_cut() {
    let mut seen = 0;
    for (name, model) in exact() {
        // Less than a context.
        let text = text(11);
        let whole = ask(&*model, &[question(&[], &text)], 1)[0].log_p;
        for cut in 1..text.len() {
            let (before, after) = text.split_at(cut);
            let parts = ask(&*model, &[question(&[], before), question(before, after)], 1);
            let sum = parts[0].log_p + parts[1].log_p;
            assert!(close(sum, whole), "{name}, cut at {cut}: {sum} against {whole}");
            seen += 1;
        }
    }
    assert!(seen > 30);
}

#[test]
fn what_is_said_of_a_text_does_not_depend_on_what_is_asked_beside_it() {
    let long = text(200);
    let questions: Vec<Question> = [(0, 5), (3, 4), (8, 9), (30, 31), (40, 47), (60, 130), (0, 200), (7, 7)]
        .map(|(from, to)| question(&long[..from], &long[from..to]))
        .into();
    for (name, model) in models() {
        let together = ask(&*model, &questions, 4);
        for (question, together) in questions.iter().zip(&together) {
            let alone = ask(&*model, std::slice::from_ref(question), 4)[0];
            assert!(close(alone.log_p, together.log_p), "{name}: {alone:?} against {together:?}");
            assert!(together.log_p <= 0.0 && together.log_p.is_finite(), "{name}: {together:?}");
        }
        // Nothing is certain.
        assert_eq!(together[7], Answer { log_p: 0.0, greedy: true }, "{name}");
    }
}

#[test]
fn the_next_token_has_probabilities_and_the_largest_one_is_greedy() {
    for (name, model) in exact() {
        for before in [4, 5, 6, 7] {
            let context = text(before);
            let next: Vec<Question> = (0..V as u32).map(|t| question(&context, &[t])).collect();
            let answers = ask(&*model, &next, 1);
            let sum: f64 = answers.iter().map(|a| a.log_p.exp()).sum();
            assert!((sum - 1.0).abs() < 1e-4, "{name} after {before}: {sum}");
            let greedy: Vec<f64> = answers.iter().filter(|a| a.greedy).map(|a| a.log_p).collect();
            let most = answers.iter().map(|a| a.log_p).fold(f64::NEG_INFINITY, f64::max);
            assert_eq!(greedy, [most], "{name} after {before}");
        }
    }
}

#[test]
fn part_of_a_chunk_is_as_probable_as_all_chunks_that_begin_so() {
    let mut seen = 0;
    for (name, model) in drawn().filter(|(_, model)| model.chunk_size() > 1) {
        let k = model.chunk_size();
        let context = text(2 * k as u32 + 1);
        let begun: Vec<u32> = vec![5; k - 1];
        // The same draws: the noise is that of the context.
        let part = ask(&*model, &[question(&context, &begun)], 16)[0].log_p.exp();
        let whole: Vec<Question> =
            (0..V as u32).map(|t| question(&context, &[&begun[..], &[t]].concat())).collect();
        let sum: f64 = ask(&*model, &whole, 16).iter().map(|a| a.log_p.exp()).sum();
        assert!((sum - part).abs() < 1e-3 * part, "{name}: {sum} of {part}");
        seen += 1;
    }
    assert!(seen >= 4);
}

#[test]
fn the_beginning_of_a_context_is_left_out_where_a_model_draws_and_less_than_a_chunk_counts() {
    for (name, model) in drawn().filter(|(_, model)| model.chunk_size() > 1) {
        let k = model.chunk_size() as u32;
        let (long, next) = (text(3 * k + 1), text(k));
        let other = [&[61], &long[1..]].concat();
        let answers = ask(&*model, &[question(&long, &next), question(&other, &next)], 512);
        let near = (answers[0].log_p - answers[1].log_p).abs();
        // Other noise, the same distribution: both are estimates of one number.
        assert!(near < 0.1 * answers[0].log_p.abs(), "{name}: {answers:?}");
        let joint = [&long[..1], &next].concat();
        let (short, whole) = (question(&long[..1], &next), question(&[], &joint));
        let answers = ask(&*model, &[short, whole], 512);
        let near = (answers[0].log_p - answers[1].log_p).abs();
        assert!(near < 0.1 * answers[1].log_p.abs(), "{name}: {answers:?}");
    }
}

#[test]
fn choices_after_a_context_meet_the_same_draws_and_texts_without_one_draws_of_their_own() {
    let (mut seen, mut apart) = (0, 0);
    for (name, model) in drawn() {
        // Under one draw that all tokens meet, their probabilities sum to 1.
        let off = |context: &[u32], seed| {
            let next: Vec<Question> = (0..V as u32).map(|t| question(context, &[t])).collect();
            let options = LikelihoodOptions { seed, greedy: false, ..options(1) };
            let answers = likelihoods(&*model, layout(&*model), &next, &options).unwrap();
            (answers.iter().map(|a| a.log_p.exp()).sum::<f64>() - 1.0).abs()
        };
        let context = text(3 * model.chunk_size() as u32);
        for seed in 0..4 {
            let off = off(&context, seed);
            assert!(off < 1e-3, "{name}: a sum that is off by {off} after a context");
        }
        apart += usize::from((0..4).any(|seed| off(&[], seed) > 1e-3));
        seen += 1;
    }
    assert!(seen >= 4 && 2 * apart > seen, "of {seen} models {apart} draw for each text");
}

#[test]
fn more_draws_bring_the_bound_nearer_on_average() {
    for (name, model) in drawn() {
        let long = text(300);
        let questions: Vec<Question> =
            (0..40).map(|i| question(&long[i..i + 8], &long[i + 8..i + 12])).collect();
        let mean = |samples| ask(&*model, &questions, samples).iter().map(|a| a.log_p).sum::<f64>();
        let (one, many) = (mean(1), mean(64));
        assert!(one < many, "{name}: {one} with one draw, {many} with 64");
    }
}

#[test]
fn a_model_without_a_beginning_says_what_it_needs() {
    let (_, model) = exact().next().unwrap();
    let without = Layout { bos_chunk: false, ..layout(&*model) };
    let refused = likelihoods(&*model, without, &[question(&[], &[1, 2])], &options(1));
    let Err(error @ LikelihoodError::NoBeginning(_)) = refused else { panic!("{refused:?}") };
    assert!(error.remedy().is_some_and(|remedy| remedy.contains("context")));
}
