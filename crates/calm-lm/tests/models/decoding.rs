//! A CALM that decodes by sampling: its distribution over chunks, and draws from it.

use crate::common::*;
use calm_autoencoder::Autoencoder;
use calm_lm::family::calm::{DecoderKind, LikelihoodConfig};
use calm_lm::{
    BackboneConfig, Calm, CalmConfig, ChunkBatch, Decode, DrawKey, DrawRequest, EnergyConfig, FamilyConfig,
    FlowConfig, HeadConfig, LanguageModel, Sampler, TextFormat, TokenDecoding,
};
use calm_nn::{Noise, ParamStore};
use calm_stats::bound::log_mean;
use candle_core::{DType, Device, Tensor};

/// Six tokens, the last three special ones: 36 chunks of two can be enumerated.
const FEW: usize = 6;
const TEXT: TextFormat = TextFormat {
    vocab_size: FEW,
    special: calm_lm::SpecialIds { bos: 3, eos: 4, pad: 5 },
    context: 4,
    bos_chunk: false,
};

fn model(decode: Decode) -> Calm {
    with_likelihood(decode, None).0
}

fn with_likelihood(decode: Decode, likelihood: Option<LikelihoodConfig>) -> (Calm, ParamStore) {
    let (calm, store) = new(decode, likelihood);
    randomise(&store, 0.5);
    (calm, store)
}

/// As it begins, by the likelihood through this decoder.
fn fresh(decoder: DecoderKind) -> Calm {
    new(Decode::Sample, Some(LikelihoodConfig { decoder, ..Default::default() })).0
}

fn new(decode: Decode, likelihood: Option<LikelihoodConfig>) -> (Calm, ParamStore) {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
    let latents = ParamStore::new(&Device::Cpu, DType::F32, 1).frozen();
    let ae = Autoencoder::with_store(&latents, &autoencoder_config(), 2, FEW, TEXT.special.bos).unwrap();
    randomise(&latents, 0.3);
    let head = EnergyConfig { noise_size: 6, samples: 4, targets: 8, ..Default::default() };
    let config = CalmConfig {
        chunk_size: 2,
        autoencoder: autoencoder_config(),
        backbone: BackboneConfig { layers: 1, ..backbone() },
        head: head.into(),
        decode,
        likelihood,
    };
    let calm = Calm::new(&store, &config, ae, &TEXT).unwrap();
    (calm, store)
}

/// A batch of one row of two chunks: [0, 1] predicts `next`.
fn batch(next: [u32; 2]) -> ChunkBatch {
    let ids = [0, 1, next[0], next[1]];
    ChunkBatch::new((1, 2, 2), &ids, &[0, 1], &[0, 0], &[true, false], &[0], &Device::Cpu).unwrap()
}

/// ln p of a chunk under each of N draws, and its number of tokens.
fn log_p(model: &Calm, next: [u32; 2], samples: usize) -> (Vec<f64>, usize) {
    let request = DrawRequest { samples, steps: 1, seed: 7, purpose: "bound" };
    let draws = model.decoded_log_probabilities(&batch(next), &request).unwrap().unwrap();
    assert_eq!((draws.samples, draws.tokens.len()), (samples, 1));
    (draws.log_p, draws.tokens[0])
}

/// Every chunk that can be drawn: EOS is followed by PAD.
fn chunks() -> Vec<[u32; 2]> {
    let all = (0..FEW as u32).flat_map(|a| (0..FEW as u32).map(move |b| [a, b]));
    all.filter(|c| c[0] != TEXT.special.eos || c[1] == TEXT.special.pad).collect()
}

/// One by the likelihood through this decoder, all parameters drawn anew: a copy is no copy any more.
fn decoded_by(decoder: DecoderKind) -> Calm {
    let likelihood = LikelihoodConfig { samples: 4, decoder, ..Default::default() };
    with_likelihood(Decode::Sample, Some(likelihood)).0
}

const KINDS: [DecoderKind; 3] = [DecoderKind::Frozen, DecoderKind::Tuned, DecoderKind::Conditioned];

#[test]
fn the_distribution_over_all_chunks_is_normalised_at_any_number_of_draws() {
    for kind in KINDS {
        let model = decoded_by(kind);
        for samples in [1, 3, 16] {
            let sum: f64 = chunks().into_iter().map(|c| log_mean(&log_p(&model, c, samples).0).exp()).sum();
            assert!((sum - 1.0).abs() < 1e-5, "{kind:?}, {samples} draws: {sum}");
        }
    }
    let model = model(Decode::Sample);
    assert_eq!(log_p(&model, [4, 5], 2).1, 1, "EOS ends a chunk");
    assert_eq!(log_p(&model, [0, 4], 2).1, 2);
}

#[test]
fn sampled_chunks_follow_the_distribution_that_is_scored() {
    for kind in [DecoderKind::Frozen, DecoderKind::Conditioned] {
        follows_its_distribution(&decoded_by(kind));
    }
}

fn follows_its_distribution(model: &Calm) {
    // Latents of generation have streams of their own: both are compared with many.
    let sampler = model.sampler();
    let mut text = sampler.start().unwrap();
    text.push(&[0, 1]).unwrap();
    let n = 40_000;
    let drawn = text.draw(n, DrawKey { seed: 1, call: 0 }).unwrap();
    for chunk in chunks() {
        let q = log_mean(&log_p(model, chunk, 4096).0).exp();
        let share = drawn.iter().filter(|c| c[..] == chunk).count() as f64 / n as f64;
        // Two binomial errors and that of q itself.
        let error = (q * (1.0 - q) / n as f64).sqrt() + 0.02 * q + 1e-4;
        assert!((share - q).abs() < 5.0 * error, "{chunk:?}: drawn {share}, scored {q}");
    }
}

#[test]
fn at_temperature_zero_the_softmax_gives_the_argmax_and_one_decoding_is_that_of_the_settings() {
    let (argmax, sampled) = (model(Decode::Argmax), model(Decode::Sample));
    assert!(argmax.tempered_sampler(TokenDecoding::default()).is_none());
    let draw = |sampler: &dyn Sampler| {
        let mut text = sampler.start().unwrap();
        text.push(&[0, 1]).unwrap();
        text.draw(200, DrawKey { seed: 1, call: 0 }).unwrap()
    };
    let cold = sampled.tempered_sampler(TokenDecoding { temperature: 0.0, top_p: 1.0 }).unwrap();
    assert_eq!(draw(&*cold), draw(&*argmax.sampler()));
    let plain = sampled.tempered_sampler(TokenDecoding::default()).unwrap();
    assert_eq!(draw(&*plain), draw(&*sampled.sampler()));
    assert_ne!(draw(&*sampled.sampler()), draw(&*argmax.sampler()));
}

/// The loss of one chunk after [0, 1] with its noise.
fn loss(model: &Calm, next: [u32; 2]) -> Tensor {
    let batch = batch(next);
    let noise = Noise::Keyed { seed: 7, purpose: "bound", step: 0, rows: &batch.rows };
    model.loss(&batch, &noise).unwrap().sum
}

fn value(loss: &Tensor) -> f64 {
    f64::from(loss.to_scalar::<f32>().unwrap())
}

#[test]
fn the_likelihood_loss_is_the_bound_that_is_scored_with_the_same_noise() {
    for samples in [1, 5] {
        let likelihood = LikelihoodConfig { samples, ..Default::default() };
        let (model, _) = with_likelihood(Decode::Sample, Some(likelihood));
        for next in [[0, 2], [1, 4], [4, 5]] {
            let want = -log_mean(&log_p(&model, next, samples).0) / 2.0;
            let got = value(&loss(&model, next));
            assert!((got - want).abs() < 1e-5 * want.max(1.0), "{next:?}, {samples} samples: {got} {want}");
        }
    }
}

#[test]
fn its_gradient_is_that_of_the_loss_and_a_frozen_decoder_gets_none() {
    for kind in KINDS {
        has_the_gradient_of_its_loss(kind);
    }
}

fn has_the_gradient_of_its_loss(decoder: DecoderKind) {
    let likelihood = LikelihoodConfig { weight: 0.7, samples: 4, head_weight: 0.3, decoder };
    let (model, store) = with_likelihood(Decode::Sample, Some(likelihood));
    let next = [2, 4];
    let gradients = loss(&model, next).backward().unwrap();
    let table = model.autoencoder().embedding_table();
    assert!(gradients.get(table).is_none());
    let of_decoder = store.params().into_iter().filter(|(name, _)| name.starts_with("decoder."));
    let (reached, of): (usize, usize) = of_decoder.fold((0, 0), |(reached, of), (_, param)| {
        (reached + usize::from(gradients.get(param.var.as_tensor()).is_some()), of + 1)
    });
    assert_eq!((reached, of > 0), (of, decoder != DecoderKind::Frozen), "{decoder:?}");
    let mut compared = 0;
    for (name, param) in store.params() {
        let Some(gradient) = gradients.get(param.var.as_tensor()) else { continue };
        let start = param.var.as_tensor().copy().unwrap();
        // Along the gradient itself: a slope that no rounding hides.
        let norm = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
        if norm < 1e-3 {
            continue;
        }
        let step = 2e-3 / f64::from(norm);
        let at = |side: f64| {
            param.var.set(&(&start + (gradient * (side * step)).unwrap()).unwrap()).unwrap();
            value(&loss(&model, next))
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
        param.var.set(&start).unwrap();
        let want = f64::from(norm).powi(2);
        // Rounding of the loss over twice the step.
        let rounding = 1e-6 * value(&loss(&model, next)) / step;
        assert!((slope - want).abs() < 0.03 * want + rounding, "{decoder:?} {name}: {slope} {want}");
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}

#[test]
fn a_copy_starts_as_the_decoder_of_the_autoencoder() {
    let frozen = fresh(DecoderKind::Frozen);
    for kind in [DecoderKind::Tuned, DecoderKind::Conditioned] {
        let copy = fresh(kind);
        for next in [[0, 2], [4, 5]] {
            assert_eq!(value(&loss(&copy, next)), value(&loss(&frozen, next)), "{kind:?}");
            assert_eq!(log_p(&copy, next, 3), log_p(&frozen, next, 3), "{kind:?}");
        }
    }
}

#[test]
fn a_conditioned_decoder_sees_the_hidden_state_and_the_others_see_only_latents() {
    for kind in KINDS {
        let model = decoded_by(kind);
        let latents =
            Tensor::ones((1, 1, model.autoencoder().latent_size()), DType::F32, &Device::Cpu).unwrap();
        let at = |x: f32| {
            let hidden = (Tensor::ones((1, 24), DType::F32, &Device::Cpu).unwrap() * f64::from(x)).unwrap();
            model.decoded(&latents, &hidden).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(at(1.0) != at(-1.0), kind == DecoderKind::Conditioned, "{kind:?}");
    }
}

#[test]
fn a_head_that_draws_in_many_steps_cannot_be_trained_by_it() {
    let config = |head: HeadConfig| CalmConfig {
        chunk_size: 2,
        autoencoder: autoencoder_config(),
        backbone: backbone(),
        head,
        decode: Decode::Sample,
        likelihood: Some(LikelihoodConfig { samples: 0, ..Default::default() }),
    };
    let problems = |head| {
        let mut problems = calm_config::Problems::new();
        config(head).validate(&mut problems);
        problems.paths()
    };
    assert_eq!(problems(FlowConfig::default().into()), ["likelihood", "likelihood.samples"]);
    assert_eq!(problems(EnergyConfig::default().into()), ["likelihood.samples"]);
}
