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

#[test]
fn a_split_that_is_held_out_is_not_trained_on() {
    let (house, hub) = (House::new(), repository().served());
    for (source, remedy) in [
        // All files are the validation's too.
        ("{hub: {dataset: owner/name, column: body}}", "`split: train`"),
        ("{hub: {dataset: owner/name, column: body, files: ['data/*']}}", "`split: train`"),
        ("{hub: {dataset: owner/name, column: body, split: valid}}", "data.validation: 0.05"),
    ] {
        let mut args = TRAIN;
        let source = format!("data.source={source}");
        args[4] = &source;
        let done = run(&house, &hub, &args, &[]);
        let told = done.err.contains("validation-00000-of-00001.jsonl would be held out and trained on");
        assert!(done.code == 1 && told && done.err.contains(remedy), "{source}: {}", done.err);
    }
}

/// A run that was begun before there were configurations of data sets reads the files that it read then, though the page
/// names configurations now.
#[test]
fn a_run_of_an_earlier_version_goes_on_with_all_files_of_its_data_set() {
    let page = "---\nconfigs:\n- config_name: one\n  data_files: data/train-00000-of-00002.jsonl\n- config_name: two\n  \
                data_dir: more\n---\n";
    let set = Repository::new("owner/name")
        .with("README.md", page)
        .with("data/train-00000-of-00002.jsonl", records(7))
        .with("data/train-00001-of-00002.jsonl", records(8));
    let (house, hub) = (House::new(), set.served());
    let train = |source: &str, more: &[&str]| {
        let source = format!("data.source={source}");
        let args =
            ["train", "--config", "baseline.yaml", "--skip-scores", "--out", "runs/hub", "--set", &source];
        run(&house, &hub, &[&args[..], more].concat(), &[])
    };
    let whole = "{hub: {dataset: owner/name, column: body, files: ['**']}}";
    assert_eq!(train(whole, &[]).code, 0);
    let path = house.path("runs/hub/config.yaml");
    let text = fs::read_to_string(&path).unwrap();
    // As it was written then: no `config`, no checksum.
    let earlier: String = text
        .lines()
        .filter(|line| !line.starts_with('#') && line.trim() != "config: null")
        .map(|line| format!("{line}\n"))
        .collect();
    let earlier = earlier.replace("      files:\n      - '**'\n", "      files: []\n");
    assert!(earlier.contains("files: []"), "{earlier}");
    fs::write(&path, earlier).unwrap();
    let asked = "{hub: {dataset: owner/name, column: body}}";
    let more = ["--resume", "--set", "train.lm.steps=30"];
    let done = train(asked, &more);
    assert_eq!(done.code, 0, "{}", done.err);
    let done = run(&house, &hub, &["eval", "brierlm", "--run", "runs/hub", "--documents", "3"], &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    let own = path.display().to_string();
    let args = ["train", "--config", &own, "--skip-scores", "--out", "runs/hub", "--resume"];
    let done = run(&house, &hub, &[&args[..], &["--set", "train.lm.steps=40"]].concat(), &[]);
    assert_eq!(done.code, 0, "{}", done.err);
    let done = run(&house, &hub, &["data", "prepare", "--config", &own], &[]);
    assert!(done.code == 0 && done.out.contains("of 2 files"), "{}{}", done.out, done.err);
    // Another run asks the page.
    let mut other = args;
    other[2] = "baseline.yaml";
    other[5] = "runs/other";
    let source = format!("data.source={asked}");
    let done = run(&house, &hub, &[&other[..6], &["--set", &source]].concat(), &[]);
    assert!(done.code == 1 && done.err.contains("one, two"), "{}", done.err);
}
