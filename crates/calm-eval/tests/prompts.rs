//! What must hold of prompts that are answered side by side, in every family.

#![allow(clippy::unwrap_used)] // helpers of tests may panic

mod families;

use std::convert::Infallible;

use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_eval::prompts::{Answer, Prompt, Stopped, answer, answer_until};
use calm_lm::LanguageModel;
use calm_stats::temperature::Temperature;
use families::models;

/// Prompts of all lengths up to more than a context, in no order.
fn prompts(n: u32) -> Vec<Prompt> {
    let token = |i: u32, j: u32| (i * 31 + j * j * 7 + j) % 60;
    let length = |i: u32| match i % 7 {
        6 => 60,
        other => other * 3 % 11,
    };
    (0..n).map(|i| Prompt { number: i, tokens: (0..length(i)).map(|j| token(i, j)).collect() }).collect()
}

fn options(decoding: Decoding) -> GenerateOptions {
    GenerateOptions { max_tokens: 40, decoding, seed: 4, remainder_budget: 300 }
}

fn answers(model: &dyn LanguageModel, prompts: &[Prompt], decoding: Decoding, places: usize) -> Vec<Answer> {
    let mut given = prompts.iter().cloned();
    let mut answers = Vec::new();
    let next = || Ok::<_, Infallible>(given.next());
    let done = |answer: Answer| {
        answers.push(answer);
        Ok(())
    };
    answer(&*model.sampler(), &options(decoding), places, next, done).unwrap();
    answers
}

#[test]
fn a_text_does_not_depend_on_the_number_of_places_nor_on_where_answering_begins() {
    let prompts = prompts(40);
    for (name, model) in models() {
        let alone = answers(&*model, &prompts, Decoding::Plain, 1);
        assert_eq!(alone.iter().map(|a| a.number).collect::<Vec<_>>(), (0..40).collect::<Vec<_>>(), "{name}");
        assert!(alone.iter().any(|a| a.tokens.len() == 40), "{name}: {alone:?}");
        for places in [3, 8, 33, 100] {
            assert_eq!(answers(&*model, &prompts, Decoding::Plain, places), alone, "{name}, {places} places");
        }
        assert_eq!(answers(&*model, &prompts[17..], Decoding::Plain, 5), alone[17..], "{name}");
        let other: Vec<u32> = alone[1].tokens.clone();
        assert!(alone.iter().filter(|a| a.tokens == other).count() < 5, "{name}: texts are their own");
    }
}

#[test]
fn the_same_prompt_under_two_numbers_gives_two_texts() {
    let prompts: Vec<Prompt> = (0..6).map(|number| Prompt { number, tokens: vec![1, 2, 3] }).collect();
    for (name, model) in models() {
        let texts = answers(&*model, &prompts, Decoding::Plain, 4);
        let distinct: std::collections::BTreeSet<_> = texts.iter().map(|a| a.tokens.clone()).collect();
        assert!(distinct.len() > 3, "{name}: {texts:?}");
    }
}

#[test]
fn at_a_temperature_texts_do_not_depend_on_their_company_either() {
    let (prompts, temperature) = (prompts(9), Temperature::new::<candle_core::Error>(0.5).unwrap());
    let decoding = Decoding::Batch { temperature, samples: 20 };
    for (name, model) in models().into_iter().take(2) {
        let alone = answers(&*model, &prompts, decoding, 1);
        assert_eq!(answers(&*model, &prompts, decoding, 4), alone, "{name}");
    }
}

#[test]
fn a_prompt_of_whole_chunks_and_one_that_is_not_are_treated_as_by_themselves() {
    // The most probable token draws nothing: one by one and side by side must say the same.
    let (_, model) = models().into_iter().find(|(name, _)| *name == "baseline").unwrap();
    let greedy = calm_lm::TokenDecoding { temperature: 0.0, top_p: 1.0 };
    let sampler = model.tempered_sampler(greedy).unwrap();
    let prompts = prompts(12);
    let (mut given, mut side_by_side) = (prompts.iter().cloned(), Vec::new());
    let next = || Ok::<_, Infallible>(given.next());
    let done = |answer: Answer| {
        side_by_side.push(answer.tokens);
        Ok(())
    };
    answer(&*sampler, &options(Decoding::Plain), 5, next, done).unwrap();
    for (prompt, tokens) in prompts.iter().zip(&side_by_side) {
        let mut alone = Vec::new();
        generate(&*sampler, &prompt.tokens, &options(Decoding::Plain), |t| {
            alone.extend_from_slice(t);
            true
        })
        .unwrap();
        assert_eq!(&alone, tokens);
    }
    // A chunk that begins inside of the prompt continues it: no more than the wanted number of tokens.
    let (_, model) = models().remove(0);
    for answer in answers(&*model, &self::prompts(12), Decoding::Plain, 5) {
        let rest = self::prompts(12)[answer.number as usize].tokens.len() % 4;
        assert_eq!(answer.report.match_rate.is_some(), rest != 0);
        assert!(answer.tokens.len() <= 40);
    }
}

#[test]
fn prompts_are_read_no_further_ahead_than_needed_and_the_caller_ends_it() {
    let (_, model) = models().remove(0);
    let prompts = prompts(200);
    let read = std::cell::Cell::new(0);
    let mut given = prompts.iter().cloned();
    let mut taken = 0;
    let next = || {
        read.set(read.get() + 1);
        Ok(given.next())
    };
    let done = |_| {
        taken += 1;
        assert!(read.get() <= taken + 4 * 5, "{} read, {taken} done", read.get());
        if taken == 50 { Err("enough") } else { Ok(()) }
    };
    let stopped = answer(&*model.sampler(), &options(Decoding::Plain), 5, next, done);
    assert!(matches!(stopped, Err(Stopped::Caller("enough"))), "{stopped:?}");
}

#[test]
fn a_text_ends_where_it_is_enough_and_no_other_with_it() {
    let prompts = prompts(12);
    for (name, model) in models() {
        let whole = answers(&*model, &prompts, Decoding::Plain, 4);
        let (mut given, mut cut) = (prompts.iter().cloned(), Vec::new());
        let next = || Ok::<_, Infallible>(given.next());
        let done = |answer: Answer| {
            cut.push(answer);
            Ok(())
        };
        let enough = |number: u32, tokens: &[u32]| number % 3 == 1 && tokens.len() >= 8;
        let sampler = model.sampler();
        answer_until(&*sampler, &options(Decoding::Plain), 4, next, enough, done).unwrap();
        for (cut, whole) in cut.iter().zip(&whole) {
            let expected = match cut.number % 3 {
                // The first whole chunk that makes it enough.
                1 => whole.tokens.len().min(cut.tokens.len().max(8)),
                _ => whole.tokens.len(),
            };
            assert_eq!(cut.tokens, whole.tokens[..expected], "{name}, {}", cut.number);
            assert!(cut.number % 3 != 1 || cut.tokens.len() < 8 + model.chunk_size(), "{name}: {cut:?}");
        }
        assert!(cut.iter().map(|a| a.number).eq(0..12), "{name}");
    }
}
