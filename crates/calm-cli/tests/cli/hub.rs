//! Training on a data set of a hub, which is one on this machine.

use std::fs;

use calm_served::{Repository, Served};

use crate::house::{Done, House, text};

fn records(seed: u64) -> String {
    let text = text(seed);
    let line = |document: &str| format!("{}\n", serde_json::json!({ "body": document, "language": "en" }));
    text.split("\n\n").filter(|document| !document.is_empty()).map(line).collect()
}

fn repository() -> Repository {
    Repository::new("owner/name")
        .with("README.md", "# name")
        .with("data/train-00000-of-00002.jsonl", records(7))
        .with("data/train-00001-of-00002.jsonl", records(8))
        .with("data/validation-00000-of-00001.jsonl", records(9))
}

/// A command that knows the hub by its variables.
fn run(house: &House, hub: &Served, args: &[&str], more: &[(&str, &str)]) -> Done {
    let mut command = house.command(args);
    for name in
        ["HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"]
    {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", hub.address()).env("HF_HOME", house.path("hf")).env("NO_PROXY", "127.0.0.1");
    command.envs(more.iter().copied());
    command.output().unwrap().into()
}

const TRAIN: [&str; 10] = [
    "train",
    "--config",
    "baseline.yaml",
    "--set",
    "data.source={hub: {dataset: owner/name, split: train, column: body}}",
    "--set",
    "data.validation={split: validation}",
    "--skip-scores",
    "--out",
    "runs/hub",
];

#[test]
fn a_data_set_of_a_hub_is_trained_on_and_recorded_with_its_commit() {
    let (house, hub) = (House::new(), repository().served());
    let done = run(&house, &hub, &TRAIN, &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    let commit = repository().commit();
    let record = fs::read_to_string(house.path("runs/hub/run.json")).unwrap();
    assert!(record.contains(&format!("owner/name at {}", &commit[..7])), "{record}");
    let snapshot = house.path("hf/hub/datasets--owner--name/snapshots").join(&commit);
    assert!(snapshot.join("data/train-00001-of-00002.jsonl").is_file());
    // What is there is enough without the network.
    let asked = hub.asked().len();
    let mut again = TRAIN;
    again[9] = "runs/offline";
    let done = run(&house, &hub, &again, &[("HF_HUB_OFFLINE", "1")]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(hub.asked().len(), asked);
}

#[test]
fn what_a_hub_refuses_is_told_with_what_to_do() {
    let mut private = repository();
    private.token = Some("hf_secret".to_owned());
    let (house, hub) = (House::new(), private.served());
    let done = run(&house, &hub, &TRAIN, &[]);
    assert!(done.code != 0 && done.err.contains("hint:") && done.err.contains("HF_TOKEN"), "{}", done.err);
    let done = run(&house, &hub, &TRAIN, &[("HF_TOKEN", "hf_other")]);
    assert!(done.err.contains("accept its conditions") && !done.err.contains("hf_other"), "{}", done.err);
    assert_eq!(run(&house, &hub, &TRAIN, &[("HF_TOKEN", "hf_secret")]).code, 0);
    // The token stands in nothing that is written.
    for file in ["run.json", "config.yaml"] {
        assert!(!fs::read_to_string(house.path("runs/hub").join(file)).unwrap().contains("hf_secret"));
    }
    let mut other = TRAIN;
    other[4] = "data.source={hub: {dataset: owner/name, split: dev2, column: body}}";
    let done = run(&house, &hub, &other, &[("HF_TOKEN", "hf_secret")]);
    assert!(done.err.contains("data/train-00000-of-00002.jsonl"), "{}", done.err);
}
