use super::*;
use crate::memory::{fit, step};
use calm_config::{ConfigText, load};
use calm_parallel::forecast::Cluster;
use std::path::Path;

/// The Llama-3 tokenizer with a PAD of its own.
const V: usize = 128_257;
const GPU: On = On { gpu: true, devices: 1 };
const CPU: On = On { gpu: false, devices: 1 };

fn shipped(name: &str, set: &[&str]) -> RunConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../../configs/{name}.yaml"));
    let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
    load(ConfigText::read(&path).unwrap(), &set).unwrap_or_else(|e| panic!("{e}")).value
}

fn planned(config: &RunConfig, target: &Target) -> Plan {
    Plan::of_sizes(config, V, None, String::new(), target)
}

#[test]
fn the_state_of_calm_m_is_counted_to_the_byte() {
    let config = shipped("paper/calm-m", &[]);
    let (lm, autoencoder) = (371_732_608.0, 75_832_064.0);
    let gpu = step(&config, Stage::Lm, V, GPU).unwrap();
    for (part, want) in [
        ("weights, f32", 4.0 * lm),
        ("gradients, f32", 4.0 * lm),
        ("moments, f32", 8.0 * lm),
        ("weights, bf16", 2.0 * lm),
        ("frozen autoencoder", 6.0 * autoencoder),
    ] {
        assert_eq!(gpu.of(part), want, "{part}");
    }
    let cpu = step(&config, Stage::Lm, V, CPU).unwrap();
    assert_eq!((cpu.of("weights, bf16"), cpu.of("frozen autoencoder")), (0.0, 4.0 * autoencoder));
    assert!(cpu.of("kept in the backbone") > 1.9 * gpu.of("kept in the backbone"));
    let sum: f64 = gpu.parts().iter().map(|part| part.1).sum();
    assert_eq!(gpu.total(), sum);
}

#[test]
fn a_layer_keeps_what_its_operators_keep_and_recomputed_ones_their_input() {
    let config = |layers: usize, recompute: bool| {
        let set = [format!("model.calm.backbone.layers={layers}"), format!("train.lm.recompute={recompute}")];
        shipped("paper/calm-m", &[&set[0], &set[1], "train.lm.accumulation=64"])
    };
    let backbone = |layers, recompute| {
        step(&config(layers, recompute), Stage::Lm, V, GPU).unwrap().of("kept in the backbone")
    };
    // 4 rows of 2048 positions: x, q, k, v, the heads' output and the MLP's input of 1024, gate and up of 2752
    // in bf16, and 16 log sums in f32.
    let rows = 4.0 * 2048.0;
    let layer = rows * ((6.0 * 1024.0 + 2.0 * 2752.0) * 2.0 + 16.0 * 4.0);
    assert_eq!(backbone(16, false) - backbone(15, false), layer);
    assert_eq!(backbone(16, true) - backbone(15, true), rows * 1024.0 * 2.0);
    assert!(backbone(16, true) > layer);
}

#[test]
fn the_papers_models_fit_a_gpu_of_80_gb() {
    let target = Target::gpus_with(80e9, 1);
    let free = target.free.unwrap();
    for name in ["calm-m", "calm-l", "calm-xl", "baseline-s", "baseline-m", "baseline-l"] {
        let config = shipped(&format!("paper/{name}"), &[]);
        let plan = planned(&config, &target);
        assert_eq!(plan.check(&[Stage::Autoencoder, Stage::Lm]).unwrap(), None, "{name}");
        for stage in &plan.stages {
            let (total, rows) = (stage.memory.total() / 1e9, stage.micro_rows);
            println!("{name} {}: {rows} rows at a time, {total:.1} GB of {:.1}", stage.stage, free / 1e9);
            assert!(rows >= 1 && stage.remedies.is_empty() && stage.seconds.is_none(), "{name}");
        }
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_says_what_does() {
    let config = shipped("paper/calm-l", &["train.lm.accumulation=1", "precision=f32"]);
    let target = Target::gpus_with(48e9, 1);
    let plan = planned(&config, &target);
    let e = plan.check(&[Stage::Lm]).unwrap_err();
    let (message, remedy) = (e.to_string(), e.remedy().unwrap());
    assert!(message.contains("stage lm") && message.contains("a GPU of 48 GB has 47.2 GB free"), "{message}");
    let at = |what: &str| remedy.find(what).unwrap_or_else(|| panic!("no {what} in {remedy}"));
    let order =
        ["--set train.lm.accumulation=", "train.lm.recompute=true", "precision=bf16", "train.lm.context="];
    assert!(order.map(at).is_sorted(), "{remedy}");
    // Each of them is what it says.
    let stage = plan.stages.iter().find(|s| s.stage == Stage::Lm).unwrap();
    for remedy in &stage.remedies {
        let base = ["train.lm.accumulation=1", "precision=f32"];
        let set: Vec<&str> = base.into_iter().chain(remedy.set.iter().map(String::as_str)).collect();
        let mended = planned(&shipped("paper/calm-l", &set), &target);
        assert_eq!(mended.check(&[Stage::Lm]).unwrap(), None, "{remedy:?}");
        let lm = mended.stages.iter().find(|s| s.stage == Stage::Lm).unwrap();
        assert_eq!((lm.memory.total(), lm.micro_rows), (remedy.bytes, remedy.rows), "{remedy:?}");
    }
    // A stage that is not going to be trained need not fit.
    assert!(plan.check(&[]).unwrap().is_none());
    let hopeless = planned(&config, &Target::gpus_with(4e9, 1)).check(&[Stage::Lm]).unwrap_err();
    assert!(hopeless.remedy().unwrap().contains("smaller model"));
}

#[test]
fn heads_that_no_kernel_has_are_refused_before_anything_is_trained() {
    let config =
        shipped("paper/calm-m", &["model.calm.backbone.heads=32", "model.calm.backbone.hidden_size=768"]);
    let plan = planned(&config, &Target::gpus_with(80e9, 1));
    let e = plan.check(&[Stage::Lm]).unwrap_err();
    assert!(e.to_string().contains("heads of 24") && e.remedy().unwrap().contains("--device cpu"), "{e}");
    assert!(plan.check(&[Stage::Autoencoder]).is_ok());
    let cpu = Target { device: "cpu".into(), gpu: false, free: None, matrix_rate: None, devices: 1 };
    assert!(planned(&config, &cpu).check(&[Stage::Lm]).is_ok());
}

#[test]
fn too_little_memory_of_a_cpu_is_a_warning() {
    let config = shipped("quickstart", &[]);
    let mut target =
        Target { device: "cpu".into(), gpu: false, free: Some(1e6), matrix_rate: Some(1e11), devices: 1 };
    let warning = planned(&config, &target).check(&[Stage::Lm]).unwrap().unwrap();
    assert!(warning.contains("stage lm") && warning.contains("cpu has 0.0 GB free"), "{warning}");
    target.free = None;
    assert_eq!(planned(&config, &target).check(&[Stage::Lm]).unwrap(), None);
}

#[test]
fn the_least_accumulation_that_fits_is_found() {
    let config = shipped("paper/calm-m", &["train.lm.accumulation=1"]);
    let (accumulation, bytes) = fit(&config, Stage::Lm, V, GPU, 79.2e9).unwrap();
    assert!(bytes <= 79.2e9 && accumulation > 1 && 256 % accumulation == 0, "{accumulation}");
    let half = shipped("paper/calm-m", &[&format!("train.lm.accumulation={}", accumulation / 2)]);
    assert!(step(&half, Stage::Lm, V, GPU).unwrap().total() > 79.2e9);
}

/// CALM with as many rows a step.
fn of_rows(rows: usize) -> RunConfig {
    let set =
        |stage: &str| [format!("train.{stage}.batch_rows={rows}"), format!("train.{stage}.accumulation=1")];
    let all: Vec<String> = ["autoencoder", "lm"].into_iter().flat_map(set).collect();
    shipped("k4", &all.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn many_devices_hold_their_share_of_the_rows() {
    let plan = |devices| planned(&of_rows(64), &Target::gpus_with(80e9, devices));
    let (one, many) = (plan(1), plan(16));
    assert_eq!(one.stages.len(), 2);
    for (a, b) in one.stages.iter().zip(&many.stages) {
        assert_eq!((a.micro_rows, b.micro_rows), (64, 4));
        assert!(b.memory.total() < a.memory.total());
    }
}

#[test]
fn moments_that_are_shared_out_count_by_the_number_of_devices() {
    let moments = |shard: &str, devices| {
        let config = shipped("paper/calm-m", &[&format!("train.lm.shard={shard}")]);
        let plan = planned(&config, &Target::gpus_with(80e9, devices));
        plan.stages.iter().map(|s| s.memory.of("moments, f32")).collect::<Vec<_>>()
    };
    let (autoencoder, lm) = (8.0 * 75_832_064.0, 8.0 * 371_732_608.0);
    assert_eq!(moments("none", 16), [autoencoder, lm]);
    assert_eq!(moments("optimizer", 1), [autoencoder, lm]);
    assert_eq!(moments("optimizer", 16), [autoencoder, lm / 16.0], "each stage by its own setting");
}

fn cluster(world: usize) -> Cluster {
    Cluster {
        world,
        gpus_per_node: 8,
        rate: 380e12,
        link: 50e9,
        node_link: 450e9,
        latency: 10e-6,
        node_latency: 3e-6,
    }
}

#[test]
fn a_forecast_shares_out_the_rows() {
    let of = |world| ClusterPlan::new(&of_rows(64), V, cluster(world)).unwrap();
    let (one, many) = (of(1), of(64));
    assert_eq!(one.stages.len(), 2);
    for (a, b) in one.stages.iter().zip(&many.stages) {
        assert_eq!((a.rows, b.rows, a.tokens), (64, 1, b.tokens));
        assert_eq!(a.forecast.exposed, 0.0);
        assert!(b.forecast.exposed > 0.0, "{b:?}");
        // A small model on many GPUs: only a step of more tokens is worth them.
        assert!(b.least_tokens.unwrap() > b.tokens, "{b:?}");
    }
}

#[test]
fn what_cannot_be_shared_out_is_an_error_with_a_number_that_can() {
    let error = ClusterPlan::new(&of_rows(60), V, cluster(64)).unwrap_err().to_string();
    assert!(error.contains("cannot be shared out evenly over 64 GPUs"), "{error}");
    let error = ClusterPlan::new(&of_rows(60), V, cluster(12)).unwrap_err().to_string();
    assert!(error.contains("do not fill nodes of 8"), "{error}");
}
