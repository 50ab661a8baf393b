//! Whole models on a GPU against the same on the CPU: losses, parameters after some steps, draws; that nothing
//! waits for the GPU inside a step. Without a GPU these tests say so and pass.

use std::collections::HashMap;

use crate::common;
use crate::common::{SPECIAL, VOCAB, chunk_families, text, tokens};
use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_lm::family::calm::{DecoderKind, LikelihoodConfig};
use calm_lm::family::dlcm::{BoundariesConfig, BoundaryRule, CrossConfig, CrossKeys, Pooling};
use calm_lm::{
    BackboneConfig, Baseline, BaselineConfig, Calm, CalmConfig, ChunkBatch, Decode, DiffusionConfig,
    DlcmConfig, DrawKey, DrawRequest, Draws, EnergyConfig, ExactDraws, FlowConfig, HeadConfig, LanguageModel,
    ModelConfig, Whole,
};
use calm_nn::{AdamW, AdamWConfig, Destination, GradientBucket, Noise, ParamStore, Precision, RowId, device};
use candle_core::{Device, Tensor};

const K: usize = 2;

/// The first GPU, if this build can use one and there is one. CALM_TEST_GPU=1 makes its absence an error.
fn gpu() -> Option<Device> {
    match device::gpus() {
        Ok(_) => Some(device::open(device::Choice::Cuda(0)).unwrap()),
        Err(reason) => {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: a model on a GPU ({reason}) (needs a GPU)");
            None
        }
    }
}

fn backbone() -> BackboneConfig {
    BackboneConfig {
        layers: 2,
        hidden_size: 64,
        intermediate_size: 96,
        heads: 2,
        kv_heads: Some(1),
        ..Default::default()
    }
}

/// With weights so wide that latents differ from chunk to chunk.
const WIDE: f64 = 0.3;

fn autoencoder_config(spread: f64) -> AutoencoderConfig {
    AutoencoderConfig {
        latent_size: Some(8),
        hidden_size: 32,
        intermediate_size: 48,
        init: calm_nn::WeightInit::Normal(spread),
        ..Default::default()
    }
}

fn autoencoder(device: &Device, precision: Precision) -> (ParamStore, Autoencoder) {
    let config = autoencoder_config(WIDE);
    let store = ParamStore::of_precision(device, precision, 1).unwrap();
    let model = Autoencoder::with_store(&store, &config, K, VOCAB, SPECIAL.bos).unwrap();
    store.prepare().unwrap();
    (store, model)
}

fn calm(head: &HeadConfig, device: &Device, precision: Precision) -> (ParamStore, Calm) {
    calm_with(WIDE, head, None, device, precision)
}

fn calm_with(
    spread: f64,
    head: &HeadConfig,
    likelihood: Option<LikelihoodConfig>,
    device: &Device,
    precision: Precision,
) -> (ParamStore, Calm) {
    let store = ParamStore::of_precision(device, precision, 2).unwrap();
    let frozen = ParamStore::of_precision(device, precision, 1).unwrap().frozen();
    let ae = Autoencoder::with_store(&frozen, &autoencoder_config(spread), K, VOCAB, SPECIAL.bos).unwrap();
    frozen.prepare().unwrap();
    let (autoencoder, head) = (autoencoder_config(spread), head.clone());
    let config = CalmConfig {
        chunk_size: K,
        autoencoder,
        backbone: backbone(),
        head,
        decode: if likelihood.is_some() { Decode::Sample } else { Decode::Argmax },
        likelihood,
    };
    let model = Calm::new(&store, &config, ae, &text(32, false)).unwrap();
    store.prepare().unwrap();
    (store, model)
}

fn baseline(device: &Device, precision: Precision) -> (ParamStore, Baseline) {
    let store = ParamStore::of_precision(device, precision, 3).unwrap();
    let config = BaselineConfig { backbone: backbone() };
    let model = Baseline::new(&store, &config, &text(64, false)).unwrap();
    store.prepare().unwrap();
    (store, model)
}

fn built(
    family: &ModelConfig,
    device: &Device,
    precision: Precision,
) -> (ParamStore, Box<dyn LanguageModel>) {
    let store = ParamStore::of_precision(device, precision, 4).unwrap();
    let model = family.build(&store, &text(32, false), None).unwrap();
    store.prepare().unwrap();
    (store, model)
}

fn energy() -> HeadConfig {
    EnergyConfig { noise_size: 6, samples: 4, targets: 8, ..Default::default() }.into()
}

fn batch(k: usize, to: &dyn Destination) -> ChunkBatch {
    let (b, s) = (3, 20);
    let positions: Vec<u32> = (0..b * s).map(|at| (at % s) as u32).collect();
    // Two documents a row.
    let segments: Vec<u32> = (0..b * s).map(|at| u32::from(at % s >= 13)).collect();
    let predicts: Vec<bool> = (0..b * s).map(|at| at % s + 1 < s && at % s != 12).collect();
    let ids = tokens(b * s * k, 1);
    ChunkBatch::new((b, s, k), &ids, &positions, &segments, &predicts, &[0, 1, 2], to).unwrap()
}

/// How often this thread has waited for the device, where that is one that counts (`kernels/host-device`).
fn waits() -> Option<u64> {
    unsafe extern "C" {
        fn dlopen(name: *const std::ffi::c_char, flags: i32) -> *mut std::ffi::c_void;
        fn dlsym(library: *mut std::ffi::c_void, name: *const std::ffi::c_char) -> *mut std::ffi::c_void;
    }
    // SAFETY: the driver is open already; a counter takes nothing and gives a number.
    unsafe {
        let driver = dlopen(c"libcuda.so.1".as_ptr(), 1);
        if driver.is_null() {
            return None;
        }
        let at = dlsym(driver, c"calm_host_device_synchronisations_here".as_ptr());
        if at.is_null() {
            return None;
        }
        let counter: extern "C" fn() -> u64 = std::mem::transmute(at);
        Some(counter())
    }
}

/// Losses of some steps of training, and all parameters after them.
fn train(store: &ParamStore, loss: impl Fn(u32) -> Tensor) -> (Vec<f64>, Vec<f32>) {
    train_waiting(store, 0, loss)
}

/// As [`train`], of a model that waits so often for the device in a step.
fn train_waiting(store: &ParamStore, times: u64, loss: impl Fn(u32) -> Tensor) -> (Vec<f64>, Vec<f32>) {
    let mut optimizer = AdamW::new(store, AdamWConfig::default()).unwrap();
    let mut bucket = GradientBucket::new(store).unwrap();
    let mut losses = Vec::new();
    let mut before = None;
    for step in 0..5 {
        if step == 1 {
            before = waits();
        }
        bucket.clear();
        let value = loss(step);
        bucket.backward(&value).unwrap();
        let clip = bucket.clip(1.0).unwrap();
        optimizer.update(&mut bucket, 3e-3, &clip).unwrap();
        losses.push(value.detach());
    }
    if store.device().is_cuda() {
        // After the first step, four.
        let allowed = before.map(|before| before + 4 * times);
        assert_eq!(waits(), allowed, "a step waited for the device");
    }
    let losses = losses.iter().map(|l| f64::from(l.to_scalar::<f32>().unwrap())).collect();
    let all = store.snapshot().unwrap();
    let values = all.values().flat_map(|t| t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).collect();
    (losses, values)
}

fn assert_near(what: &str, got: &[f64], want: &[f64], tolerance: f64) {
    let off = got.iter().zip(want).map(|(g, w)| (g / w - 1.0).abs()).fold(0.0, f64::max);
    assert!(got.len() == want.len() && off < tolerance, "{what}: {got:?} for {want:?}, off by {off:.1e}");
}

/// Trains on both devices and compares; the formats are f32 and bf16.
fn compare(what: &str, run: impl Fn(&Device, Precision) -> (Vec<f64>, Vec<f32>)) {
    let Some(gpu) = gpu() else { return };
    let (losses, parameters) = run(&Device::Cpu, Precision::F32);
    let (same, there) = run(&gpu, Precision::F32);
    assert_near(what, &same, &losses, 2e-4);
    let off = there.iter().zip(&parameters).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    // Five steps of 3e-3: where a gradient is 0 but for rounding, AdamW may step either way.
    assert!(off < 2.1 * 5.0 * 3e-3, "{what}: parameters are off by {off}");
    let mean = there.iter().zip(&parameters).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>()
        / parameters.len() as f64;
    assert!(mean < 1e-4, "{what}: parameters are off by {mean:.1e} on average");
    let (narrow, _) = run(&gpu, Precision::Bf16);
    assert_near(&format!("{what} in bf16"), &narrow, &losses, 3e-2);
    let again = run(&gpu, Precision::Bf16);
    assert_eq!(again.0, narrow, "{what}: two runs in bf16 differ");
}

#[test]
fn the_autoencoder_learns_on_a_gpu_as_on_the_cpu() {
    compare("autoencoder", |device, precision| {
        let (store, model) = autoencoder(device, precision);
        let ids = Tensor::from_vec(tokens(40 * K, 4), (40, K), device).unwrap();
        let rows: Vec<RowId> = (0..40).map(|example| RowId { example, position: 0 }).collect();
        train(&store, |step| {
            let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &rows };
            (model.loss(&ids, &noise).unwrap().total / 40.0).unwrap()
        })
    });
}

fn train_calm(
    head: &HeadConfig,
    device: &Device,
    precision: Precision,
    recompute: bool,
) -> (Vec<f64>, Vec<f32>) {
    let (store, mut model) = calm(head, device, precision);
    model.set_recompute(recompute);
    trained(&store, &model)
}

fn trained(store: &ParamStore, model: &Calm) -> (Vec<f64>, Vec<f32>) {
    let batch = batch(K, store.context());
    train(store, |step| {
        let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
        let loss = model.loss(&batch, &noise).unwrap();
        (loss.sum / loss.targets as f64).unwrap()
    })
}

#[test]
fn calm_learns_on_a_gpu_as_on_the_cpu() {
    compare("energy head", |device, precision| train_calm(&energy(), device, precision, false));
}

/// The likelihood loss through the frozen decoder; draws of the trained model are sampled from its softmax.
#[test]
fn the_likelihood_is_learnt_on_a_gpu_as_on_the_cpu() {
    for decoder in [DecoderKind::Frozen, DecoderKind::Conditioned] {
        learns_by_likelihood(decoder);
    }
}

fn learns_by_likelihood(decoder: DecoderKind) {
    compare(&format!("likelihood, {decoder:?} decoder"), |device, precision| {
        let likelihood = LikelihoodConfig { weight: 1.0, samples: 3, head_weight: 0.3, decoder };
        let (store, model) = calm_with(WIDE, &energy(), Some(likelihood), device, precision);
        let batch = batch(K, store.context());
        let trained = train(&store, |step| {
            let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
            let loss = model.loss(&batch, &noise).unwrap();
            (loss.sum / loss.targets as f64).unwrap()
        });
        let request = DrawRequest { samples: 2, steps: 1, seed: 1, purpose: "t" };
        let Draws::Sampled(draws) = model.draw(&batch, &request).unwrap() else { panic!("a black box") };
        assert!(draws.tokens.iter().all(|t| (*t as usize) < VOCAB));
        let decoded = model.decoded_log_probabilities(&batch, &request).unwrap().unwrap();
        assert!(decoded.log_p.iter().all(|p| *p < 0.0 && p.is_finite()));
        trained
    });
}

/// Their loss is a mean of squares of latents: what bf16 rounds away of the posterior's log-deviation counts twice. With
/// wide weights the loss is several hundred, deviations are e² and more, and their logarithm is rounded by up to 0.008
/// and more: 2 % of a square from that alone (one of five losses was off by 4.5 % on an H200).
#[test]
fn the_other_heads_learn_on_a_gpu_as_on_the_cpu() {
    let heads: [(&str, HeadConfig); 2] =
        [("flow head", FlowConfig::default().into()), ("diffusion head", DiffusionConfig::default().into())];
    for (name, head) in heads {
        compare(name, |device, precision| {
            let (store, model) = calm_with(WIDE / 3.0, &head, None, device, precision);
            trained(&store, &model)
        });
    }
}

#[test]
fn the_baseline_learns_on_a_gpu_as_on_the_cpu() {
    compare("baseline", |device, precision| {
        let (store, model) = baseline(device, precision);
        let batch = batch(1, store.context());
        train(&store, |step| {
            let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
            let loss = model.loss(&batch, &noise).unwrap();
            (loss.sum / loss.targets as f64).unwrap()
        })
    });
}

#[test]
fn the_families_with_probabilities_of_chunks_learn_on_a_gpu_as_on_the_cpu() {
    for family in chunk_families(K, &backbone()) {
        compare(family.title(), |device, precision| train_built(&family, device, precision, false));
    }
}

/// Learnt boundaries lie where the noise puts them, so that no rounding moves one; each pass waits once for p.
#[test]
fn a_dynamic_concept_model_learns_on_a_gpu_as_on_the_cpu() {
    let concepts = BackboneConfig { layers: 1, hidden_size: 64, heads: 2, ..backbone() };
    let base = DlcmConfig { tokens: backbone(), concepts, ..Default::default() };
    let closed = DlcmConfig {
        pooling: Pooling::Closed,
        cross: CrossConfig { keys: CrossKeys::Replicated, ..Default::default() },
        straight_through: true,
        ..base.clone()
    };
    let every = BoundariesConfig { by: BoundaryRule::Every, ratio: 3.0, ..Default::default() };
    let every = DlcmConfig { boundaries: every, ..base.clone() };
    for (config, waits) in [(base, 1), (closed, 1), (every, 0)] {
        let family: ModelConfig = config.into();
        compare(&format!("{family:?}"), |device, precision| {
            let (store, model) = built(&family, device, precision);
            let batch = batch(1, store.context());
            let u: Vec<f32> = (0..60).map(|at| if at * at % 7 < 2 { 0.0 } else { 0.9999 }).collect();
            let u = Tensor::from_vec(u, (60, 1, 1), &Device::Cpu).unwrap();
            let given = HashMap::from([("boundary".to_owned(), u)]);
            train_waiting(&store, waits, |_| {
                let of = Whole { targets: batch.sources.len(), chosen: None };
                let loss = model.surveyed_loss(&batch, &Noise::Given(&given), of).unwrap().0;
                (loss.sum / loss.targets as f64).unwrap()
            })
        });
    }
}

fn train_built(
    family: &ModelConfig,
    device: &Device,
    precision: Precision,
    recompute: bool,
) -> (Vec<f64>, Vec<f32>) {
    let (store, mut model) = built(family, device, precision);
    model.set_recompute(recompute);
    let batch = batch(K, store.context());
    train(&store, |step| {
        let noise = Noise::Keyed { seed: 1, purpose: "t", step, rows: &batch.rows };
        let loss = model.loss(&batch, &noise).unwrap();
        (loss.sum / loss.targets as f64).unwrap()
    })
}

#[test]
fn computing_activations_again_changes_no_bit() {
    for family in chunk_families(K, &backbone()) {
        let trained = |recompute| train_built(&family, &Device::Cpu, Precision::F32, recompute);
        assert_eq!(trained(true), trained(false), "{}", family.title());
    }
    assert_eq!(
        train_calm(&energy(), &Device::Cpu, Precision::F32, true),
        train_calm(&energy(), &Device::Cpu, Precision::F32, false)
    );
    let Some(gpu) = gpu() else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        assert_eq!(
            train_calm(&energy(), &gpu, precision, true),
            train_calm(&energy(), &gpu, precision, false),
            "{precision:?}"
        );
    }
}

#[test]
fn draws_on_a_gpu_are_those_of_the_cpu() {
    let Some(gpu) = gpu() else { return };
    let share = |a: &[u32], b: &[u32]| {
        assert_eq!(a.len(), b.len());
        a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / a.len() as f64
    };
    let heads: [HeadConfig; 3] = [energy(), FlowConfig::default().into(), DiffusionConfig::default().into()];
    for head in heads {
        // The same draws, but for a tie here and there that rounding decides.
        for (precision, least) in [(Precision::F32, 0.97), (Precision::Bf16, 0.6)] {
            let draw = |device: &Device, precision| {
                let (store, model) = calm(&head, device, precision);
                if device.is_cpu() {
                    common::randomise(&store, 0.05);
                } else {
                    let (host, _) = calm(&head, &Device::Cpu, Precision::F32);
                    common::randomise(&host, 0.05);
                    let values = host.snapshot().unwrap().into_iter().collect();
                    assert!(store.load(&values).unwrap().is_clean());
                }
                let positions = model.draw_positions(&batch(K, device), 4, 2, 7, "t").unwrap().tokens;
                let sampler = model.sampler();
                let mut continued = sampler.start().unwrap();
                let mut text = tokens(3 * K, 9);
                continued.push(&text).unwrap();
                for call in 0..4 {
                    let chunks = continued.draw(3, DrawKey { seed: 5, call }).unwrap();
                    text.extend(chunks.iter().flatten());
                    continued.push(&tokens(K, call)).unwrap();
                }
                (positions, text)
            };
            let (here, there) = (draw(&Device::Cpu, Precision::F32), draw(&gpu, precision));
            let same = (share(&here.0, &there.0), share(&here.1, &there.1));
            assert!(same.0 >= least && same.1 >= least, "{precision:?}: {same:?}");
        }
    }
    for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 5e-2)] {
        let score = |device: &Device, precision| {
            let (_, model) = baseline(device, precision);
            let scores = model.draw_positions(&batch(1, device), 7, "t").unwrap();
            let sampler = model.sampler();
            let mut continued = sampler.start().unwrap();
            continued.push(&tokens(9, 2)).unwrap();
            let drawn = continued.draw(20, DrawKey { seed: 5, call: 0 }).unwrap();
            let text: Vec<u32> = drawn.into_iter().flatten().collect();
            (scores.log_p, text)
        };
        let (here, there) = (score(&Device::Cpu, Precision::F32), score(&gpu, precision));
        assert_near("ln p", &there.0, &here.0, tolerance);
        assert!(share(&here.1, &there.1) > 0.9);
    }
    for family in chunk_families(K, &backbone()) {
        for (precision, tolerance) in [(Precision::F32, 1e-4), (Precision::Bf16, 5e-2)] {
            let score = |device: &Device, precision| {
                let (_, model) = built(&family, device, precision);
                let request = DrawRequest { samples: 2, steps: 2, seed: 7, purpose: "t" };
                let Draws::Exact(scores) = model.draw(&batch(K, device), &request).unwrap() else {
                    panic!("{} has probabilities", family.title())
                };
                let sampler = model.sampler();
                let mut continued = sampler.start().unwrap();
                continued.push(&tokens(3 * K, 2)).unwrap();
                let drawn = continued.draw(20, DrawKey { seed: 5, call: 0 }).unwrap();
                let text: Vec<u32> = drawn.into_iter().flatten().collect();
                (scores, text)
            };
            let (here, there) = (score(&Device::Cpu, Precision::F32), score(&gpu, precision));
            assert_near(family.title(), &there.0.log_p, &here.0.log_p, tolerance);
            let squares = |draws: &ExactDraws| -> Vec<f64> { draws.squares.iter().map(|s| s[0]).collect() };
            assert_near(family.title(), &squares(&there.0), &squares(&here.0), tolerance);
            assert!(share(&here.1, &there.1) > 0.9);
        }
    }
}
