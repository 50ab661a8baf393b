//! Runs that version 0.1.0 left behind still open: `tests/runs-0.1.0/` (see its README).

use std::path::Path;

use serde_json::Value;

use crate::house::House;

/// A house with the old runs in `runs/`.
fn house() -> House {
    let house = House::new();
    house.copy_folder(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs-0.1.0"), "runs");
    house
}

fn losses(house: &House, run: &str) -> Vec<(u64, f64)> {
    let step = |line: &Value| Some((line["step"].as_u64()?, line["values"]["train/loss"].as_f64()?));
    house.metrics(run).iter().filter(|l| l["stage"] == "lm").filter_map(step).collect()
}

#[test]
fn an_old_run_continues_where_it_stopped() {
    let house = house();
    for name in ["calm", "baseline"] {
        let run = format!("runs/{name}");
        house.ok(&[
            "train",
            "--config",
            &format!("{run}/config.yaml"),
            "--out",
            &run,
            "--resume",
            "--set",
            "train.lm.steps=24",
        ]);
        let record: Value = serde_json::from_str(&house.read(&format!("{run}/run.json"))).unwrap();
        assert!(record["row_order"].is_null(), "{name}: it stays packed as a whole");
        let continued: Vec<(u64, f64)> =
            losses(&house, &run).into_iter().filter(|(step, _)| *step > 20).collect();
        let recorded: Vec<(u64, f64)> =
            serde_json::from_str(&house.read(&format!("runs/continued-{name}.json"))).unwrap();
        assert_eq!(continued.len(), recorded.len());
        for ((step, loss), (at, before)) in continued.into_iter().zip(recorded) {
            // To the bit where it was recorded; other processors round differently.
            assert!(
                step == at && (loss - before).abs() <= 1e-4 * before,
                "{name} {step}: {loss} against {before}"
            );
        }
    }
}

#[test]
fn an_old_run_still_writes_its_text_and_is_scored() {
    let house = house();
    for name in ["calm", "baseline"] {
        let run = format!("runs/{name}");
        let text =
            house.ok(&["generate", "--run", &run, "--prompt", "ana bolo du elf fugo ", "--max-tokens", "24"]);
        assert_eq!(text, house.read(&format!("runs/generated-{name}.txt")), "{name}");
        let scores = house.json(&["eval", "brierlm", "--run", &run, "--format", "json"]);
        assert!(scores["positions"].as_u64().is_some_and(|n| n > 0), "{scores}");
        house.ok(&["report", &run, "--out", &format!("page-{name}")]);
    }
}

#[test]
fn an_old_run_is_exported_under_the_published_names() {
    let house = house();
    house.ok(&["export", "--run", "runs/calm", "--out", "exported"]);
    let names = |path: &str| -> Vec<String> {
        let bytes = std::fs::read(house.path(path)).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let mut names: Vec<String> = header.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    };
    let recorded: Vec<String> = house.read("runs/exported-names.txt").lines().map(str::to_owned).collect();
    assert_eq!(names("exported/model.safetensors"), recorded);
}
