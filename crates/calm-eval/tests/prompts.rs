//! What must hold of prompts that are answered side by side, in every family.

#![allow(clippy::unwrap_used)] // helpers of tests may panic

use std::convert::Infallible;

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_eval::prompts::{Answer, Prompt, Stopped, answer};
use calm_lm::{
    BackboneConfig, BaselineConfig, CalmConfig, Decode, DiffusionConfig, DlcmConfig, EnergyConfig,
    FlowConfig, HeadConfig, LanguageModel, LocalConfig, ModelConfig, MultiTokenConfig, PatchConfig,
    SpecialIds, TextFormat,
};
use calm_nn::{NoiseKey, ParamStore, RowId, philox};
use calm_stats::temperature::Temperature;
use candle_core::{DType, Device, Tensor};

const V: usize = 70;
const TEXT: TextFormat = TextFormat {
    vocab_size: V,
    special: SpecialIds { bos: 67, eos: 68, pad: 69 },
    context: 12,
    bos_chunk: true,
};

fn autoencoder() -> AutoencoderConfig {
    AutoencoderConfig {
        hidden_size: 24,
        intermediate_size: 40,
        latent_size: Some(20),
        ..AutoencoderConfig::default()
    }
}

/// Numbers far from those of a beginning, where many are 0.
fn randomise(store: &ParamStore, spread: f64) {
    for (i, (_, parameter)) in store.params().into_iter().enumerate() {
        let tensor = parameter.var.as_tensor();
        if tensor.rank() < 2 {
            continue;
        }
        let row = RowId { example: 0, position: 0 };
        let u = philox::uniform(NoiseKey::new(i as u64, "test", 0), &[row], 1, tensor.elem_count());
        let u = Tensor::from_vec(u, tensor.dims(), &Device::Cpu).unwrap();
        parameter.var.set(&((u - 0.5).unwrap() * spread).unwrap()).unwrap();
    }
}

fn build(config: &ModelConfig) -> Box<dyn LanguageModel> {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
    let autoencoder = config.autoencoder().map(|autoencoder| {
        let latents = ParamStore::new(&Device::Cpu, DType::F32, 1).frozen();
        let k = config.chunk_size();
        let autoencoder = Autoencoder::with_store(&latents, autoencoder, k, V, TEXT.special.bos).unwrap();
        randomise(&latents, 1.0);
        autoencoder
    });
    let model = config.build(&store, &TEXT, autoencoder).unwrap();
    randomise(&store, 1.0);
    model
}

fn models() -> Vec<(&'static str, Box<dyn LanguageModel>)> {
    let backbone = || BackboneConfig {
        layers: 2,
        hidden_size: 32,
        intermediate_size: 48,
        heads: 4,
        ..BackboneConfig::default()
    };
    let calm = |head: HeadConfig, decode: Decode, chunk_size: usize| -> ModelConfig {
        CalmConfig {
            chunk_size,
            autoencoder: autoencoder(),
            backbone: backbone(),
            head,
            likelihood: None,
            decode,
        }
        .into()
    };
    let energy = || EnergyConfig { noise_size: 8, samples: 4, targets: 4, ..Default::default() };
    let configs: Vec<(&str, ModelConfig)> = vec![
        ("energy", calm(energy().into(), Decode::Argmax, 4)),
        ("energy, one token", calm(energy().into(), Decode::Argmax, 1)),
        ("energy, sampled", calm(energy().into(), Decode::Sample, 3)),
        ("diffusion", calm(DiffusionConfig::default().into(), Decode::Argmax, 2)),
        ("flow", calm(FlowConfig::default().into(), Decode::Argmax, 2)),
        ("baseline", BaselineConfig { backbone: backbone() }.into()),
        ("patch", PatchConfig { chunk_size: 3, backbone: backbone(), local: LocalConfig::default() }.into()),
        (
            "multi-token",
            MultiTokenConfig { chunk_size: 2, backbone: backbone(), heads: Default::default() }.into(),
        ),
        ("dlcm", DlcmConfig { tokens: backbone(), concepts: backbone(), ..Default::default() }.into()),
    ];
    configs.iter().map(|(name, config)| (*name, build(config))).collect()
}

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
