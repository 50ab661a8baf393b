//! `--device`, `--memory`, and what a GPU is needed for.

use calm_kernels::device;

use crate::house::{House, trained};

/// Whether there is a GPU that this build can use; says so if not.
fn gpu() -> bool {
    match device::gpus() {
        Ok(_) => true,
        Err(reason) => {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: commands on a GPU ({reason}) (needs a GPU)");
            false
        }
    }
}

#[test]
fn a_gpu_that_is_not_there_is_one_error_with_a_remedy_from_every_command_that_computes() {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    for command in [
        &["train", "--config", "calm.yaml", "--out", "runs/new"][..],
        &["eval", "brierlm"],
        &["eval", "autoencoder"],
        &["generate"],
        &["latents", "--out", "l.npy"],
        &["report", "runs/calm"],
        &["ablate", "--config", "ablate-k"],
        &["bench", "--what", "matrix"],
        &["bench", "--run", "runs/calm"],
        &["doctor"],
    ] {
        let args = [command, &["--device", "cuda:99"]].concat();
        house.refuses(&args, &["error: --device cuda:99: ", "hint: "]);
    }
    assert!(!house.path("runs/new").exists());
    let done: crate::house::Done =
        house.command(&["generate"]).env("CALM_DEVICE", "cuda:99").output().unwrap().into();
    assert!(done.code == 1 && done.err.contains("cuda:99"), "{}", done.err);
    for wrong in ["gpu", "cuda:", "cuda:-1"] {
        let done = house.run(&["generate", "--device", wrong]);
        assert!(done.code == 2 && done.err.contains("cuda:N"), "{wrong}: {}", done.err);
    }
}

#[test]
fn the_version_names_the_kinds_of_devices_compiled_in() {
    let house = House::new();
    let cuda = if device::has_cuda() { ", cuda" } else { "" };
    let nccl = if cfg!(feature = "nccl") { ", nccl" } else { "" };
    let mpi = if cfg!(feature = "mpi") { ", mpi" } else { "" };
    let features = format!("features: cpu{cuda}{nccl}{mpi}");
    assert_eq!(house.ok(&["--version"]).lines().nth(1), Some(features.as_str()));
}

#[test]
fn bf16_is_refused_on_the_cpu_before_anything_is_written() {
    let house = House::new();
    let args = ["train", "--config", "calm.yaml", "--set", "precision=bf16"];
    house.refuses(&args, &["precision bf16 needs a GPU", "hint: ", "--set precision=f32"]);
    assert!(!house.path("runs").exists() && !house.path("cache").exists());
    house.refuses(&["bench", "--precision", "bf16"], &["precision bf16 needs a GPU", "hint: "]);
    // A plan costs nothing.
    let done = house.run(&[&args[..], &["--dry-run"]].concat());
    assert!(done.code == 0 && done.err.contains("bf16 needs a GPU"), "{}", done.err);
}

#[test]
fn a_plan_for_another_gpu_needs_neither_it_nor_the_text() {
    let house = House::new();
    let plan = ["train", "--config", "paper/calm-m", "--dry-run", "--memory"];
    let table = house.ok(&[&plan[..], &["80GB"]].concat());
    for part in ["planned for a GPU of 80 GB, bf16", "frozen autoencoder", "workspace", "79.2 GB", "yes"] {
        assert!(table.contains(part), "{part} in\n{table}");
    }
    let widest = table.lines().map(|l| l.chars().count()).max();
    assert!(widest <= Some(80), "{widest:?}: {table}");

    let done = house.run(&[&plan[..], &["12GB"]].concat());
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.out.contains("no"), "{}", done.out);
    for part in ["error: a step of stage", "11.2 GB free", "hint: ", "--set train.", ".accumulation="] {
        assert!(done.err.contains(part), "{part} in\n{}", done.err);
    }
    let done = house.run(&["train", "--config", "calm.yaml", "--memory", "80GB"]);
    assert_eq!(done.code, 2, "{}", done.err);
}

#[test]
fn a_run_trains_scores_and_writes_on_a_gpu() {
    if !gpu() {
        return;
    }
    let house = House::new();
    for (config, precision) in [("calm.yaml", "f32"), ("calm.yaml", "bf16"), ("baseline.yaml", "bf16")] {
        let kind = config.trim_end_matches(".yaml");
        let set = [
            format!("precision={precision}"),
            // Heads that there are kernels for.
            format!("model.{kind}.backbone.hidden_size=64"),
        ];
        let args = [
            "train",
            "--config",
            config,
            "--restart",
            "--set",
            &set[0],
            "--set",
            &set[1],
            "--device",
            "cuda:0",
        ];
        let done = house.run(&args);
        assert_eq!(done.code, 0, "{config} {precision}: {}", done.err);
        assert!(done.err.contains("cuda:0 ("), "{}", done.err);
        let run = format!("runs/{kind}");
        let record: serde_json::Value =
            serde_json::from_str(&house.read(&format!("{run}/run.json"))).unwrap();
        assert!(record["history"][0]["device"].as_str().unwrap().starts_with("cuda:0 ("), "{record}");
        // Where it was not trained, too, and then in f32.
        for device in ["cuda:0", "cpu"] {
            house.ok(&["generate", "--run", &run, "-n", "6", "--device", device]);
        }
    }
}

#[test]
fn the_doctor_and_the_bench_measure_a_gpu() {
    if !gpu() {
        return;
    }
    let house = House::new();
    let found = house.json(&["doctor", "--seconds", "0.1", "--device", "cuda:0", "--format", "json"]);
    let rates = &found["gpus"][0]["rates"];
    assert!(rates["copy_bytes_per_second"].as_f64() > Some(0.0), "{found}");
    let text = house.ok(&["doctor", "--seconds", "0.1", "--device", "cuda:0"]);
    assert!(text.contains("cuda:0: ") && text.contains("matrix product bf16"), "{text}");
    assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
    // A stand-in for a GPU has no room for thousands of repetitions; the tests of calm-bench run all there is.
    let what = ["--what", "energy,lm,generate", "--seconds", "0.01"];
    let args =
        [&["bench", "--size", "tiny", "--device", "cuda:0", "--precision", "bf16"][..], &what].concat();
    let report = house.json(&[&args[..], &["--format", "json"]].concat());
    assert_eq!(report["skipped"], serde_json::Value::Null, "{report}");
    let table = house.ok(&args);
    assert!(table.contains("generate") && table.contains("bf16"), "{table}");
    assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
}
