//! Parameters and FLOPs by formula against the paper's table and the published checkpoints.

use calm_autoencoder::AutoencoderConfig;
use calm_lm::family::calm::{DecoderKind, LikelihoodConfig};
use calm_lm::family::dlcm::{BoundariesConfig, CrossConfig, CrossKeys};
use calm_lm::{
    BackboneConfig, BaselineConfig, CalmConfig, DiffusionConfig, DlcmConfig, EnergyConfig, FamilyConfig,
    FlowConfig, HeadSettings, LocalConfig, MultiTokenConfig, PatchConfig, Solver,
};
use calm_nn::costs::{Count, Flops, Parameters};
use calm_nn::{Footing, Precision};

const VOCAB: usize = 128_257;
/// 250,000 steps of 2 million tokens.
const TOKENS: f64 = 250e3 * 2e6;
const CONTEXT: usize = 2048;

fn backbone(layers: usize, hidden_size: usize, intermediate_size: usize) -> BackboneConfig {
    BackboneConfig { layers, hidden_size, intermediate_size, heads: 16, ..Default::default() }
}

fn baseline(layers: usize, hidden: usize, intermediate: usize) -> BaselineConfig {
    BaselineConfig { backbone: backbone(layers, hidden, intermediate) }
}

fn calm(hidden: usize, intermediate: usize) -> CalmConfig {
    CalmConfig {
        chunk_size: 4,
        autoencoder: AutoencoderConfig { hidden_size: 512, intermediate_size: 1280, ..Default::default() },
        backbone: backbone(16, hidden, intermediate),
        head: EnergyConfig::default().into(),
        decode: Default::default(),
        likelihood: None,
    }
}

fn parameters(config: &dyn FamilyConfig) -> Parameters {
    config.parameters(VOCAB)
}

fn training(config: &dyn FamilyConfig) -> Flops {
    config.training_flops(VOCAB, CONTEXT)
}

#[test]
fn a_likelihood_loss_costs_its_samples_and_leaves_out_what_nobody_looks_at() {
    let with = |likelihood| CalmConfig { likelihood, ..calm(64, 128) };
    let (weight, samples) = (1.0, 8);
    let alone = training(&with(Some(LikelihoodConfig { weight, samples, ..Default::default() })));
    let beside =
        training(&with(Some(LikelihoodConfig { weight, samples, head_weight: 1.0, ..Default::default() })));
    let energy = training(&with(None));
    let part =
        |f: &Flops, name: &str| f.parts.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, flops)| *flops);
    assert_eq!(part(&alone, "encoding"), 0.0);
    assert!(part(&beside, "encoding") > 0.0);
    // The energy score draws 8 samples as well.
    assert_eq!(part(&alone, "head"), part(&energy, "head"));
    assert_eq!(part(&beside, "head"), 2.0 * part(&energy, "head"));
    for name in ["decoder", "vocabulary"] {
        assert!(part(&alone, name) > 0.0 && part(&alone, name) == part(&beside, name));
    }
    let by =
        |decoder| training(&with(Some(LikelihoodConfig { weight, samples, decoder, ..Default::default() })));
    let (tuned, conditioned) = (by(DecoderKind::Tuned), by(DecoderKind::Conditioned));
    assert_eq!(part(&tuned, "decoder"), 1.5 * part(&alone, "decoder"), "gradients of its weights as well");
    assert!(part(&conditioned, "decoder") > part(&tuned, "decoder"));
    let held = |likelihood| {
        let on = Footing::new(Precision::F32, false);
        let held = with(likelihood).held(VOCAB, 1000.0, on, false);
        (held.kept.iter().map(|(_, bytes)| bytes).sum::<f64>(), held.temporary)
    };
    let (few, many) = (
        held(Some(LikelihoodConfig { weight, samples: 2, ..Default::default() })),
        held(Some(LikelihoodConfig { weight, samples: 16, ..Default::default() })),
    );
    assert!(many.0 > few.0 && many.1 > 7.0 * few.1, "{few:?} {many:?}");
}

fn inference(config: &dyn FamilyConfig) -> Flops {
    config.inference_flops(VOCAB, CONTEXT, 1)
}

fn near(found: f64, paper: f64, margin: f64, what: &str) {
    let off = found / paper - 1.0;
    assert!(off.abs() <= margin, "{what}: {found:.3e} is {:.1} % off {paper:.3e}", 100.0 * off);
}

#[test]
fn parameter_counts_are_those_of_the_published_models() {
    let m = parameters(&calm(1024, 2752));
    let parts: Vec<_> = m.parts.iter().map(|p| (p.0, p.1.0)).collect();
    assert_eq!(
        parts,
        [
            ("embedding", 131_335_168),
            ("input", 10_490_880),
            ("backbone", 16 * 12_650_496),
            ("norm", 1_024),
            ("head", 27_497_600),
        ]
    );
    assert_eq!(m.total(), Count(371_732_608));
    assert!((m.share("head") - 0.074).abs() < 5e-4);
    assert_eq!(calm(1024, 2752).autoencoder.parameters(4, VOCAB).total(), Count(75_832_064));
    assert_eq!(parameters(&baseline(12, 768, 2048)).total(), Count(281_956_608));
    let wide = backbone(16, 1024, 2752);
    assert_eq!(FlowConfig::default().parameters(&wide, 128), 25_725_056);
    assert_eq!(DiffusionConfig::default().parameters(&wide, 128), 25_725_056 + 128 * 1025);
}

#[test]
fn rounded_parameter_counts_are_the_papers() {
    for (found, paper) in [
        (parameters(&baseline(16, 1024, 2752)).total(), 465e6),
        (parameters(&baseline(16, 1536, 4096)).total(), 849e6),
        (parameters(&calm(1536, 4096)).total(), 735e6),
        (parameters(&calm(2560, 6880)).total(), 1.82e9),
    ] {
        near(found.into(), paper, 0.006, "parameters");
    }
}

#[test]
fn inference_flops_are_those_of_the_papers_table() {
    for (found, paper, name) in [
        (inference(&baseline(12, 768, 2048)), 4.4e8, "Transformer-S"),
        (inference(&baseline(16, 1024, 2752)), 7.9e8, "Transformer-M"),
        (inference(&baseline(16, 1536, 4096)), 15.0e8, "Transformer-L"),
        (inference(&calm(1024, 2752)), 2.9e8, "CALM-M"),
        (inference(&calm(1536, 4096)), 4.6e8, "CALM-L"),
        (inference(&calm(2560, 6880)), 9.4e8, "CALM-XL"),
    ] {
        near(found.total(), paper, 0.035, name);
    }
}

#[test]
fn training_flops_are_those_of_the_papers_table_except_for_xl() {
    for (found, paper, name) in [
        (training(&baseline(12, 768, 2048)), 6.6e20, "Transformer-S"),
        (training(&baseline(16, 1024, 2752)), 11.9e20, "Transformer-M"),
        (training(&baseline(16, 1536, 4096)), 22.5e20, "Transformer-L"),
        (training(&calm(1024, 2752)), 3.7e20, "CALM-M"),
        (training(&calm(1536, 4096)), 7.7e20, "CALM-L"),
    ] {
        near(found.total() * TOKENS, paper, 0.05, name);
    }
    // The paper's figure for XL does not follow from the convention that fits the other five.
    let xl = training(&calm(2560, 6880)).total() * TOKENS / 19.5e20 - 1.0;
    assert!((0.05..0.11).contains(&xl.abs()), "CALM-XL is {:.1} % off", 100.0 * xl);
}

#[test]
fn the_head_is_a_large_part_of_training_and_many_draws_a_larger_one_of_inference() {
    let m = calm(1024, 2752);
    assert!((training(&m).share("head") - 0.44).abs() < 0.01);
    let ratio = m.inference_flops(VOCAB, CONTEXT, 200).total() / inference(&m).total();
    assert!((95.0..110.0).contains(&ratio), "{ratio}");
    assert_eq!(training(&m).share("nothing"), 0.0);
}

#[test]
fn longer_chunks_cost_less() {
    let mut costs = Vec::new();
    for chunk_size in [1, 2, 4, 8] {
        let config = CalmConfig { chunk_size, ..calm(1024, 2752) };
        let context = 8192 / chunk_size;
        let inference = config.inference_flops(VOCAB, context, 1);
        costs.push((config.training_flops(VOCAB, context).total(), inference.total()));
    }
    assert!(costs.windows(2).all(|w| w[1].0 < w[0].0 && w[1].1 < w[0].1), "{costs:?}");
    // Training falls faster than inference, where decoding costs the same a token.
    assert!(costs[0].0 / costs[3].0 > 1.5 * costs[0].1 / costs[3].1, "{costs:?}");
}

fn patch(chunk_size: usize, local: LocalConfig) -> PatchConfig {
    PatchConfig { chunk_size, backbone: backbone(16, 1024, 2752), local }
}

fn multi_token(chunk_size: usize) -> MultiTokenConfig {
    let backbone = backbone(16, 1024, 2752);
    MultiTokenConfig { chunk_size, backbone, heads: Default::default() }
}

fn part<T: Copy + Into<f64>>(parts: &[(&'static str, T)], name: &str) -> f64 {
    parts.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, amount)| (*amount).into())
}

#[test]
fn the_backbone_of_a_patch_model_runs_once_a_chunk_and_the_rest_once_a_token() {
    let one = baseline(16, 1024, 2752);
    let (layers, d) = (2, 1024.0);
    let patch = patch(4, LocalConfig { layers, ..Default::default() });
    let (tokens, chunks) = (one.inference_flops(VOCAB, 8192, 1).parts, inference(&patch).parts);
    // The same vocabulary for each token, a K-th of the backbone, and its attention over a K-th of the positions.
    assert_eq!(part(&chunks, "vocabulary"), part(&tokens, "vocabulary"));
    assert_eq!(part(&chunks, "backbone"), part(&tokens, "backbone") / 4.0);
    assert_eq!(part(&chunks, "attention"), part(&tokens, "attention") / 16.0);
    // P, two layers of the backbone's own kind, attention over four places.
    let layer = part(&tokens, "backbone") / 16.0;
    assert_eq!(part(&chunks, "local"), 2.0 * d * d + 2.0 * layer + 2.0 * 4.0 * 4.0 * d);
    assert_eq!(training(&patch).total(), 3.0 * inference(&patch).total());
    // What has probabilities needs one draw at any temperature.
    assert_eq!(patch.inference_flops(VOCAB, CONTEXT, 200), patch.inference_flops(VOCAB, CONTEXT, 1));
    let calm = inference(&calm(1024, 2752)).parts;
    for name in ["input", "backbone", "attention"] {
        assert_eq!(part(&chunks, name), part(&calm, name), "{name}");
    }
    let narrow = LocalConfig { hidden_size: Some(256), ..Default::default() };
    let of = PatchConfig { local: narrow, ..patch.clone() };
    assert_eq!(of.local_backbone(), BackboneConfig { layers: 2, heads: 4, ..backbone(16, 256, 688) });
    assert!(inference(&of).total() < inference(&patch).total());
}

#[test]
fn every_head_of_a_multi_token_model_runs_once_a_chunk() {
    let (two, eight) = (multi_token(2), multi_token(8));
    let heads = |c: &MultiTokenConfig| part(&inference(c).parts, "heads");
    assert_eq!(heads(&two), 2.0 * 3.0 * 1024.0 * 2752.0);
    assert_eq!(heads(&two), heads(&eight));
    let parameters = |c: &MultiTokenConfig| part(&parameters(c).parts, "heads");
    assert_eq!(parameters(&eight), 4.0 * parameters(&two));
    assert_eq!(parameters(&two), 2.0 * (3.0 * 1024.0 * 2752.0 + 2.0 * 1024.0));
    assert!(inference(&eight).total() < inference(&two).total());
}

#[test]
fn what_decodes_a_chunk_holds_memory_for_each_of_its_tokens() {
    let on = Footing::new(Precision::F32, false);
    let kept = |c: &dyn FamilyConfig, recompute| {
        let held = c.held(VOCAB, 1000.0, on, recompute);
        held.kept.iter().map(|(_, bytes)| bytes).sum::<f64>()
    };
    let deep = |layers| patch(4, LocalConfig { layers, ..Default::default() });
    // A layer of the local decoder holds what four layers of the backbone on a position each hold.
    let layer = kept(&deep(2), false) - kept(&deep(1), false);
    let global = {
        let of = |layers| {
            let c = PatchConfig { backbone: backbone(layers, 1024, 2752), ..deep(1) };
            kept(&c, false)
        };
        of(17) - of(16)
    };
    assert!((layer / global - 4.0).abs() < 1e-9, "{layer} {global}");
    assert!(kept(&deep(2), true) < kept(&deep(2), false));
    assert!(kept(&multi_token(8), false) > kept(&multi_token(2), false));
}

#[test]
fn grouped_keys_cost_less_and_sampling_passes_cost_more() {
    let full = backbone(2, 64, 128);
    let grouped = BackboneConfig { kv_heads: Some(4), ..full.clone() };
    assert_eq!(full.layer_parameters() - grouped.layer_parameters(), 2 * 2 * 64 * 48);
    assert!(grouped.matrix_flops() < full.matrix_flops());
    assert_eq!(grouped.attention_flops(10), full.attention_flops(10));
    let head = |steps| {
        let flow = FlowConfig { solver: Solver::Euler, steps: Some(steps), ..Default::default() };
        let config = CalmConfig { head: flow.into(), ..calm(64, 128) };
        inference(&config).parts[3].1
    };
    assert_eq!(head(20), 20.0 * head(1));
    let (flow, diffusion) = (FlowConfig::default(), DiffusionConfig::default());
    assert!(diffusion.pass_flops(&full, 8) > flow.pass_flops(&full, 8));
    assert_eq!((flow.sampling_passes(), diffusion.sampling_passes()), (20, 100));
}

#[test]
fn the_autoencoder_trains_mostly_in_its_vocabulary() {
    let autoencoder = calm(1024, 2752).autoencoder;
    let flops = autoencoder.training_flops(4, VOCAB);
    assert!(flops.share("vocabulary") > 0.9);
    assert!(
        (flops.share("encoder") + flops.share("decoder") + flops.share("vocabulary") - 1.0).abs() < 1e-12
    );
    let json = serde_json::to_value(autoencoder.parameters(4, VOCAB)).unwrap();
    assert_eq!(json["parts"][0][1], 65_667_584);
}

#[test]
fn concepts_run_once_in_r_tokens_and_the_token_layers_are_those_of_a_baseline() {
    let config = |ratio, keys| DlcmConfig {
        tokens: backbone(16, 512, 1408),
        concepts: backbone(16, 1024, 2752),
        boundaries: BoundariesConfig { ratio, ..Default::default() },
        cross: CrossConfig { keys, ..Default::default() },
        ..Default::default()
    };
    let part = |f: &Flops, name: &str| f.parts.iter().find(|(n, _)| *n == name).map_or(0.0, |(_, x)| *x);
    let four = config(4.0, CrossKeys::Concepts);
    let (found, tokens) = (inference(&four), inference(&baseline(16, 512, 1408)));
    assert_eq!(part(&found, "encoder") + part(&found, "decoder"), part(&tokens, "backbone"));
    assert_eq!(part(&found, "vocabulary"), part(&tokens, "vocabulary"));
    let (one, eight) =
        (inference(&config(1.0, CrossKeys::Concepts)), inference(&config(8.0, CrossKeys::Concepts)));
    assert_eq!(part(&one, "concepts"), 4.0 * part(&found, "concepts"));
    // W_up, and twice what a token layer of this width costs.
    let layers = 2.0 * (512.0 * 1024.0 + 16.0 * (4.0 * 1024.0 * 1024.0 + 3.0 * 1024.0 * 2752.0));
    assert_eq!(part(&one, "concepts"), layers);
    // Among concepts: 1/R of the positions, each over 1/R of the context.
    let among = |f: &Flops| part(f, "attention") - part(&tokens, "attention");
    assert_eq!(among(&one), 16.0 * among(&found));
    // Every token sees a concept for R tokens, or one for each.
    let replicated = inference(&config(4.0, CrossKeys::Replicated));
    let more = 4.0 * 512.0 * (CONTEXT as f64 - CONTEXT as f64 / 4.0);
    assert_eq!(part(&replicated, "cross") - part(&found, "cross"), more);
    assert!(eight.total() < found.total() && found.total() < one.total());
    assert_eq!(training(&four).total(), 3.0 * found.total());
    let realised = four.at_ratio(8.0).unwrap();
    assert_eq!(realised.inference_flops(VOCAB, CONTEXT, 1), eight);
}
