//! Training on a data set of a hub, which is one on this machine.

use std::fs;

use calm_served::{Repository, Served};

use crate::house::{Done, House, text, trained};

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

#[test]
fn a_model_is_scored_on_data_sets_of_a_hub_and_of_their_manifests() {
    let (house, hub) = (trained(), repository().served());
    house.write(
        "set.yaml",
        "version: 1\ndataset: owner/name\nrevision: null\nlicence: MIT\nhomepage: none\ncolumn: body\ntrain: ['data/train-*']\n\
         validation: ['data/validation-*']\ndocuments: null\nbytes: null\n",
    );
    let score = |data: &str, more: &[&str]| -> serde_json::Value {
        let args = [
            "eval",
            "brierlm",
            "--run",
            "runs/baseline",
            "--format",
            "json",
            "--chunks",
            "8",
            "--data",
            data,
        ];
        let done = run(house, &hub, &[&args[..], more].concat(), &[]);
        assert_eq!(done.code, 0, "{data}: {}", done.err);
        serde_json::from_str(&done.out).unwrap()
    };
    let split = "{hub: {dataset: owner/name, split: validation}}";
    let some = score(split, &["--column", "body", "--documents", "4"]);
    assert_eq!(some["documents"], 4);
    // A manifest says the column, and which text is held out.
    assert_eq!(score("set.yaml", &["--documents", "4"]), some);
    let whole = "{hub: {dataset: owner/name, files: ['data/validation-*'], column: body}}";
    assert_eq!(score(whole, &["--documents", "4"]), some);
    for (data, part) in [
        ("{hub: {dataset: owner/none}}", "owner/none"),
        ("{hub: {dataset: owner/name, split: test}}", "split `test`"),
        ("{hub: owner/name}", "no source of text"),
    ] {
        let done = run(house, &hub, &["eval", "brierlm", "--run", "runs/baseline", "--data", data], &[]);
        assert!(
            done.code == 1 && done.err.contains(part) && done.err.contains("hint:"),
            "{data}: {}",
            done.err
        );
    }
}

#[test]
fn of_a_large_data_set_no_more_is_fetched_than_the_documents_that_are_scored() {
    let house = trained();
    let filler = format!("{{\"body\": \"{}\"}}\n", "ana bolo ".repeat(1000));
    let large = Repository::new("owner/large")
        .with("a-0.jsonl", records(7))
        .with("a-1.jsonl", filler.repeat(8000))
        .with("a-2.jsonl", filler.repeat(200));
    let hub = large.served();
    let data = "{hub: {dataset: owner/large, column: body}}";
    let args =
        ["eval", "brierlm", "--run", "runs/baseline", "--chunks", "8", "--documents", "3", "--data", data];
    let done = run(house, &hub, &args, &[("HF_HOME", &house.path("hf-large").display().to_string())]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.out.contains("3 held-out documents"), "{}", done.out);
    let fetched = |name: &str| hub.asked().iter().any(|asked| asked.path.contains(name));
    // One is fetched ahead.
    assert!(fetched("a-0.jsonl") && !fetched("a-2.jsonl"));
}
