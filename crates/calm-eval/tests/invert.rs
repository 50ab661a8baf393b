//! Texts found again behind their states, and states of which none is.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

use calm_autoencoder::Autoencoder;
use calm_eval::invert::kept::Kept;
use calm_eval::invert::policy::Policy;
use calm_eval::invert::radius::{Radius, measure};
use calm_eval::invert::search::{Position, Search};
use calm_eval::invert::trial::{Pass, Setting, states_of, trial};
use calm_lm::{Inversion, LanguageModel, ModelConfig, SpecialIds, TextFormat};
use calm_nn::{NoiseKey, ParamStore, RowId, philox};
use candle_core::{DType, Device};

const V: u32 = 61;

/// A tiny model of a family, with large random weights.
fn model(settings: &str) -> Box<dyn LanguageModel> {
    let settings: ModelConfig = serde_json::from_str(settings).unwrap();
    let special = SpecialIds { bos: V - 3, eos: V - 2, pad: V - 1 };
    let text = TextFormat { vocab_size: V as usize, special, context: 32, bos_chunk: true };
    let autoencoder = settings.autoencoder().map(|config| {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 3).frozen();
        let k = settings.chunk_size();
        Autoencoder::with_store(&store, config, k, V as usize, special.bos).unwrap()
    });
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2).frozen();
    settings.build(&store, &text, autoencoder).unwrap()
}

const BACKBONE: &str = r#"{ "layers": 2, "hidden_size": 32, "intermediate_size": 48, "heads": 4, "kv_heads": 2, "init": { "normal": 0.3 } }"#;

fn baseline() -> Box<dyn LanguageModel> {
    model(&format!(r#"{{ "baseline": {{ "backbone": {BACKBONE} }} }}"#))
}

fn patch() -> Box<dyn LanguageModel> {
    model(&format!(
        r#"{{ "patch": {{ "chunk_size": 2, "backbone": {BACKBONE}, "local": {{ "layers": 1 }} }} }}"#
    ))
}

fn calm() -> Box<dyn LanguageModel> {
    model(&format!(
        r#"{{ "calm": {{ "chunk_size": 2,
            "autoencoder": {{ "hidden_size": 32, "intermediate_size": 48, "init": {{ "normal": 0.3 }} }},
            "backbone": {BACKBONE} }} }}"#
    ))
}

fn dlcm() -> Box<dyn LanguageModel> {
    let tokens = BACKBONE.replace("\"layers\": 2", "\"layers\": 3");
    model(&format!(r#"{{ "dlcm": {{ "tokens": {tokens}, "concepts": {BACKBONE} }} }}"#))
}

/// Texts of so many tokens, anything that is no special token.
fn texts(count: usize, length: usize, seed: u64) -> Vec<Vec<u32>> {
    let rows: Vec<RowId> = (0..count as u32).map(|example| RowId { example, position: 0 }).collect();
    let uniform = philox::uniform(NoiseKey::new(seed, "texts", 0), &rows, 1, length);
    let token = |u: &f32| ((u * (V - 3) as f32) as u32).min(V - 4);
    uniform.chunks(length).map(|text| text.iter().map(token).collect()).collect()
}

fn setting(depth: usize, policy: Policy) -> Setting {
    Setting { depth, policy, kept: Kept::F32, noise: 0.0, pass: Pass::Whole, seed: 1 }
}

fn radius(model: &dyn Inversion, depth: usize) -> Radius {
    measure(model, &texts(8, 8, 77), &[depth]).unwrap()[0]
}

#[test]
fn every_token_of_a_tiny_model_is_found_at_every_depth() {
    for (name, model) in [("baseline", baseline()), ("patch", patch()), ("calm", calm()), ("dlcm", dlcm())] {
        let own = model.inversion().unwrap();
        let all: Vec<usize> = (0..own.depths()).collect();
        let radii = measure(&*own, &texts(8, 8, 77), &all).unwrap();
        for depth in all {
            for pass in [Pass::Whole, Pass::Prefixes] {
                let setting = Setting { pass, ..setting(depth, Policy::Guided) };
                let found = trial(&*own, &texts(3, 8, 5), setting, radii[depth], |_| {}).unwrap();
                let what = format!("{name}, {} of {pass:?}: {found:?}", own.depth_name(depth));
                assert!(radii[depth].tells(), "{what}");
                let positions = 24 / own.chunk_size();
                assert_eq!((found.exact.hits, found.wrong, found.texts.hits), (positions, 0, 3), "{what}");
            }
        }
    }
}

#[test]
fn latent_vectors_give_their_chunks_away() {
    let model = calm();
    let own = model.latent_inversion().unwrap();
    let radius = radius(&*own, 0);
    let found = trial(&*own, &texts(3, 8, 5), setting(0, Policy::Guided), radius, |_| {}).unwrap();
    assert_eq!((found.exact.hits, found.wrong), (24 / own.chunk_size(), 0), "{found:?}");
    assert!(Search::new(&*own, 0, radius, Policy::Brute, Kept::F32).is_err(), "chunks cannot all be tried");
    assert!(baseline().latent_inversion().is_none());
}

#[test]
fn both_policies_find_the_same() {
    let model = baseline();
    let own = model.inversion().unwrap();
    for depth in 0..own.depths() {
        let radius = radius(&*own, depth);
        let [guided, brute] = [Policy::Guided, Policy::Brute].map(|policy| {
            let search = Search::new(&*own, depth, radius, policy, Kept::F32).unwrap();
            let states = states_of(&*own, &texts(1, 10, 9)[0], depth, Pass::Whole).unwrap();
            search.text(&states, states.len() / 10).unwrap()
        });
        let tokens = |found: &[Position]| found.iter().map(|p| p.tokens().unwrap()[0]).collect::<Vec<_>>();
        assert_eq!(tokens(&guided), texts(1, 10, 9)[0]);
        assert_eq!(tokens(&guided), tokens(&brute));
        let tried = |found: &[Position]| found.iter().map(Position::tried).sum::<usize>();
        assert!(tried(&guided) < tried(&brute), "{} of {}", tried(&guided), tried(&brute));
    }
}

/// Nothing that is no state of the model after this prefix may become a prompt.
#[test]
fn a_wrong_state_is_not_found() {
    for (name, model) in [("baseline", baseline()), ("calm", calm()), ("dlcm", dlcm())] {
        let own = model.inversion().unwrap();
        let k = own.chunk_size();
        let depth = own.depths() - 1;
        let radius = radius(&*own, depth);
        let [text, other] = [texts(1, 8, 5), texts(1, 8, 6)].map(|mut texts| texts.remove(0));
        let states = states_of(&*own, &text, depth, Pass::Whole).unwrap();
        let width = states.len() / (8 / k);
        let search = |policy| Search::new(&*own, depth, radius, policy, Kept::F32).unwrap();
        let policies: &[Policy] = if k == 1 { &[Policy::Guided, Policy::Brute] } else { &[Policy::Guided] };
        for &policy in policies {
            let all = |states: &[f32]| search(policy).text(states, width).unwrap();
            let refused = |states: &[f32], after: usize, what: &str| {
                let found = all(states);
                let last = found.last().unwrap();
                assert!(last.tokens().is_none() && found.len() == after + 1, "{name}, {what}: {found:?}");
                // What came before is found all the same, and it is right.
                let before: Vec<u32> = found.iter().filter_map(Position::tokens).flatten().copied().collect();
                assert_eq!(before, text[..after * k], "{name}, {what}");
            };
            // Of another prompt, behind a prefix that is not its own.
            let others = states_of(&*own, &other, depth, Pass::Whole).unwrap();
            let mixed = [&states[..2 * width], &others[2 * width..3 * width]].concat();
            refused(&mixed, 2, "the state of another prompt");
            // Random, of the size that states have.
            let rows = [RowId { example: 0, position: 0 }];
            let noise = philox::normal(NoiseKey::new(8, "random", 0), &rows, 1, width);
            let random: Vec<f32> = noise.iter().map(|x| x * radius.size as f32).collect();
            refused(&random, 0, "random numbers");
            refused(&vec![0.0; width], 0, "zeros");
            refused(&vec![f32::NAN; width], 0, "no numbers");
            refused(&vec![f32::INFINITY; width], 0, "infinite numbers");
            // Between two tokens' states, as near to one as to the other.
            let known = own.begin().unwrap();
            let pair = [text[..k].to_vec(), other[..k].to_vec()].concat();
            let both = own.states(&own.embed(&pair).unwrap(), &known, depth).unwrap();
            let both: Vec<f32> = both.flatten_all().unwrap().to_vec1().unwrap();
            let middle: Vec<f32> = (0..width).map(|i| (both[i] + both[width + i]) / 2.0).collect();
            refused(&middle, 0, "half way between two");
            // Noise above the gap.
            let noise = philox::normal(NoiseKey::new(9, "random", 0), &rows, 1, width);
            let length = noise.iter().map(|x| x * x).sum::<f32>().sqrt();
            let mut noisy = states[..width].to_vec();
            let size = (1.5 * radius.gap) as f32 / length;
            noisy.iter_mut().zip(&noise).for_each(|(x, noise)| *x += size * noise);
            refused(&noisy, 0, "noise above the gap");
        }
    }
}

#[test]
fn states_that_rounding_reaches_are_never_taken() {
    let model = baseline();
    let own = model.inversion().unwrap();
    let radius = Radius { floor: 1.0, gap: 1.0, ..radius(&*own, 2) };
    assert!(!radius.tells());
    let found = trial(&*own, &texts(2, 6, 5), setting(2, Policy::Guided), radius, |_| {}).unwrap();
    assert_eq!((found.exact.hits, found.wrong), (0, 0));
    // The best guess is still said to be one, after all of the vocabulary.
    assert!(found.nearest.hits == 12 && found.tried == 1.0, "{found:?}");
}

#[test]
fn fewer_bits_and_a_little_noise_are_forgiven_up_to_the_radius() {
    let model = baseline();
    let own = model.inversion().unwrap();
    let depth = own.depths() - 1;
    let radius = radius(&*own, depth);
    for (kept, noise) in [(Kept::Bf16, 0.0), (Kept::Int8, 0.0), (Kept::F32, 0.01)] {
        let setting = Setting { kept, noise, ..setting(depth, Policy::Guided) };
        let found = trial(&*own, &texts(3, 8, 5), setting, radius, |_| {}).unwrap();
        assert_eq!((found.exact.hits, found.wrong), (24, 0), "{kept:?}, noise {noise}: {found:?}");
    }
    let setting = Setting { noise: 3.0, ..setting(depth, Policy::Guided) };
    let found = trial(&*own, &texts(3, 8, 5), setting, radius, |_| {}).unwrap();
    assert_eq!((found.exact.hits, found.wrong), (0, 0), "{found:?}");
}

#[test]
fn states_are_the_same_behind_a_prefix_among_others_and_in_one_pass() {
    for model in [baseline(), patch(), calm(), dlcm()] {
        let own = model.inversion().unwrap();
        let (k, text) = (own.chunk_size(), &texts(1, 8, 5)[0]);
        for depth in 0..own.depths() {
            let whole = states_of(&*own, text, depth, Pass::Whole).unwrap();
            let width = whole.len() * k / 8;
            let mut known = own.begin().unwrap();
            for (chunk, state) in text.chunks(k).zip(whole.chunks(width)) {
                // The true chunk as the last of three alternatives.
                let three = [vec![1; k], vec![7; k], chunk.to_vec()].concat();
                let states = own.states(&own.embed(&three).unwrap(), &known, depth).unwrap();
                let states: Vec<f32> = states.flatten_all().unwrap().to_vec1().unwrap();
                let off =
                    states[2 * width..].iter().zip(state).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // Sums in other orders; the first of these states that were looked at are 2e-5 apart.
                assert!(off < 1e-4, "depth {depth}: {off}");
                own.extend(chunk, &mut known).unwrap();
            }
        }
        assert!(own.states(&own.embed(&vec![1; k]).unwrap(), &own.begin().unwrap(), own.depths()).is_err());
    }
}
