//! Ablations whose runs are trained several at a time: by one command, and by jobs of a script.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::house::{Done, House};

/// Two runs on one autoencoder, and two without.
const AB: &str = r"version: 1
budget: { tokens: 7680 }
seeds: [1, 2]
context_tokens: 96
validation: { points: 2, documents: 2, tokens: 48 }
set: { tokenizer: { bpe: { vocab_size: 300 } } }
variants: [{ name: baseline, config: baseline.yaml }, { name: calm, config: calm.yaml }]
score: { documents: 6, tokens_per_document: 48, bootstrap: 50, samples: 4, draws: 8, rounds: 0, prompt_tokens: 12 }
";
const RUNS: [&str; 5] = ["autoencoders/calm", "baseline-seed1", "baseline-seed2", "calm-seed1", "calm-seed2"];

fn house() -> House {
    let house = House::new();
    house.write("ab.yaml", AB);
    house
}

/// What an ablation came to: weights and scores of its runs by file, and its study without times.
struct Came {
    files: BTreeMap<String, Vec<u8>>,
    study: Value,
}

impl Came {
    fn of(folder: &Path) -> Self {
        let mut files = BTreeMap::new();
        for run in RUNS {
            for path in below(&folder.join(run)) {
                let name = path.file_name().unwrap().to_string_lossy();
                let kept = name.ends_with(".safetensors")
                    || ["scores-", "reconstruction-"].iter().any(|s| name.starts_with(s));
                if kept {
                    let inner = path.strip_prefix(folder).unwrap().display().to_string();
                    files.insert(inner, fs::read(&path).unwrap());
                }
            }
        }
        assert!(files.len() >= 14, "{:?}", files.keys());
        let mut study = serde_json::from_slice(&fs::read(folder.join("study.json")).unwrap()).unwrap();
        without_times(&mut study);
        Self { files, study }
    }

    fn is(&self, other: &Self) {
        assert!(self.files.keys().eq(other.files.keys()), "{:?}", self.files.keys());
        for (name, bytes) in &self.files {
            assert!(other.files[name] == *bytes, "{name}");
        }
        assert_eq!(self.study, other.study);
    }
}

fn below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() { found.extend(below(&path)) } else { found.push(path) }
    }
    found
}

fn without_times(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, _| !key.contains("seconds"));
            map.values_mut().for_each(without_times);
        }
        Value::Array(all) => all.iter_mut().for_each(without_times),
        _ => {}
    }
}

fn ablate(house: &House, out: &str, more: &[&str]) -> Done {
    house.run(&[&["ablate", "--config", "ab.yaml", "--out", out], more].concat())
}

#[test]
fn several_at_a_time_come_to_the_same_as_one_and_their_lines_can_be_told_apart() {
    let house = house();
    let one = ablate(&house, "one/ab", &["--threads", "1"]);
    let two = ablate(&house, "two/ab", &["--processes", "2", "--threads", "1"]);
    assert_eq!((one.code, two.code), (0, 0), "{}\n{}", one.err, two.err);
    Came::of(&house.path("two/ab")).is(&Came::of(&house.path("one/ab")));
    assert_eq!(one.out, two.out, "the same table");
    assert!(two.err.contains("; 2 at a time, "), "{}", two.err);
    for run in ["autoencoder calm", "baseline-seed1", "baseline-seed2", "calm-seed1", "calm-seed2"] {
        assert_eq!(two.err.matches(&format!("\n{run} (")).count(), 1, "{run} begins once: {}", two.err);
        assert!(two.err.contains(&format!("\n{run}  ")), "{run} ends: {}", two.err);
    }
    assert_eq!(two.err.matches("plan (").count(), 1, "{}", two.err);
    assert!(two.err.lines().all(|line| line.chars().count() <= 80), "{}", two.err);
}

#[test]
fn a_run_that_fails_beside_another_is_named_and_takes_only_along_what_needs_it() {
    let house = house();
    let wild = "calm, config: calm.yaml, set: { train.autoencoder.learning_rate: 1e30 }";
    house.write("ab.yaml", AB.replace("calm, config: calm.yaml", wild));
    let done = ablate(&house, "two", &["--processes", "2"]);
    assert_eq!(done.code, 1, "{}", done.err);
    for part in ["autoencoder calm: error: ", "error: 3 runs failed", "calm-seed1: autoencoder calm failed"] {
        assert!(done.err.contains(part), "{part} in\n{}", done.err);
    }
    assert!(done.out.contains("baseline"), "{}", done.out);
}

#[test]
fn devices_that_cannot_be_are_refused_before_anything_starts() {
    let house = house();
    for (more, words) in [
        (["--devices", "cpu,cpu"], "cpu is there twice"),
        (["--devices", "cpu,auto"], "auto: which one"),
        (["--devices", "cpu,cuda:77"], "--device cuda:77: "),
        (["--processes", "0"], "--processes 0"),
    ] {
        let done = ablate(&house, "out", &more);
        assert_eq!(done.code, 1, "{}", done.err);
        assert!(done.err.contains(words) && done.err.contains("hint: "), "{words}: {}", done.err);
    }
    assert_eq!(ablate(&house, "out", &["--devices", "tpu"]).code, 2);
    let both = ["ablate", "--config", "ab.yaml", "--out", "out", "--device", "cpu", "--devices", "cpu"];
    let done = Done::from(house.command(&both).env_remove("CALM_DEVICE").output().unwrap());
    assert!(done.code == 1 && done.err.contains("--device cpu beside --devices"), "{}", done.err);
    assert!(!house.path("out").exists());
    // One of each is a lane.
    let done = ablate(&house, "out", &["--devices", "cpu", "--dry-run"]);
    assert_eq!(done.code, 0, "{}", done.err);
}

#[cfg(unix)]
#[test]
fn a_stop_reaches_all_that_train_is_said_once_and_loses_nothing() {
    let house = house();
    house.write("ab.yaml", AB.replace("7680", "2000000"));
    let mut child = house
        .command(&["ablate", "--config", "ab.yaml", "--out", "two", "--processes", "3", "--threads", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let trains = |run: &str| {
        let text = fs::read_to_string(house.path(&format!("two/{run}/metrics.jsonl")));
        text.is_ok_and(|text| text.contains("train/loss"))
    };
    while !(trains("baseline-seed1") && trains("baseline-seed2")) {
        assert!(begun.elapsed() < Duration::from_secs(120) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    // Not SIGINT, which a shell that runs these tests in the background has them ignore.
    let kill = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    let done = Done::from(child.wait_with_output().unwrap());
    assert_eq!(done.code, 143, "{}", done.err);
    assert_eq!(done.err.matches("stopping after this step").count(), 1, "{}", done.err);
    assert_eq!(done.err.matches("stopped").count(), 1, "{}", done.err);
    assert!(!done.err.contains("error"), "{}", done.err);
    for run in ["baseline-seed1", "baseline-seed2"] {
        assert_eq!(fs::read_dir(house.path(&format!("two/{run}/lm"))).unwrap().count(), 1, "{run}");
        let record: Value = serde_json::from_str(&house.read(&format!("two/{run}/run.json"))).unwrap();
        assert!(record["history"][0]["stopped"].is_string(), "{record}");
    }
}

/// The jobs of an ablation as a script in a file.
#[cfg(unix)]
fn script(house: &House, out: &str) -> String {
    let done = ablate(house, out, &["--print-jobs", "--threads", "1"]);
    assert_eq!(done.code, 0, "{}", done.err);
    house.write("jobs.sh", &done.out);
    done.out
}

#[cfg(unix)]
#[test]
fn the_script_can_be_printed_where_the_device_of_the_jobs_is_not() {
    let house = house();
    let done = ablate(&house, "out", &["--print-jobs", "--device", "cuda:77"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert_eq!(done.out.matches(" --device cuda:77 ;;").count(), 5, "{}", done.out);
    assert!(done.err.contains("planned for the device of the jobs"), "{}", done.err);
}

#[cfg(unix)]
fn bash(house: &House, task: Option<&str>) -> std::process::Child {
    let mut bash = Command::new("bash");
    bash.arg(house.path("jobs.sh")).current_dir("/").stdin(Stdio::null());
    // Under a launcher each is a command of its own, and so is what it trains.
    bash.env("RANK", "1").env("WORLD_SIZE", "4").env("LOCAL_RANK", "1");
    bash.env_remove("SLURM_ARRAY_TASK_ID").stdout(Stdio::piped()).stderr(Stdio::piped());
    if let Some(task) = task {
        bash.env("SLURM_ARRAY_TASK_ID", task);
    }
    bash.spawn().unwrap()
}

#[cfg(unix)]
#[test]
fn jobs_of_two_processes_at_once_come_to_the_same_as_one_command() {
    let house = house();
    assert_eq!(ablate(&house, "one/ab", &[]).code, 0);
    let out = "it's two/ab";
    let script = script(&house, out);
    assert!(script.contains("#SBATCH --array=0-4\n") && script.contains("--dependency=afterany"), "{script}");
    let again = script.lines().find(|line| line.contains("ablate --config")).unwrap();
    assert!(again.ends_with(" ablate --config ab.yaml --out \"it's two/ab\" --threads 1"), "{again}");
    let jobs: Vec<&str> = script.lines().filter(|line| line.contains(" --job=")).collect();
    for (line, run) in
        jobs.iter().zip(["autoencoders/calm", "baseline-seed1", "baseline-seed2", "calm-seed1", "calm-seed2"])
    {
        assert!(line.contains(&format!(" --job={run} ")), "{line}");
    }
    assert_eq!(jobs.len(), 5, "{script}");
    // What a process of another machine has, as far as can be seen, is not trained.
    let claim = house.path(&format!("{out}/.baseline-seed1.lock"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let owner = serde_json::json!({ "process": 7, "host": "there", "command": "calm", "since": "", "beat": format!("{now:012}") });
    fs::write(&claim, owner.to_string()).unwrap();
    house.refuses(
        &["ablate", "--out", out, "--job", "baseline-seed1"],
        &["baseline-seed1 is not trained", "process 7 on there"],
    );
    fs::remove_file(&claim).unwrap();
    // A task of an array is one run; the autoencoder that it needs is not there yet.
    let task = Done::from(bash(&house, Some("3")).wait_with_output().unwrap());
    assert_eq!(task.code, 0, "{}", task.err);
    let finished = |run: &str| house.path(&format!("{out}/{run}/lm")).exists();
    assert!(finished("calm-seed1") && !finished("calm-seed2") && !finished("baseline-seed1"), "{}", task.err);
    assert_eq!(Done::from(bash(&house, Some("9")).wait_with_output().unwrap()).code, 1);
    // Two that do all, at once.
    let both =
        [bash(&house, None), bash(&house, None)].map(|child| Done::from(child.wait_with_output().unwrap()));
    for done in &both {
        assert_eq!(done.code, 0, "{}", done.err);
    }
    let trained: usize = both.iter().map(|done| done.err.matches("\n== ").count()).sum();
    assert_eq!(trained, 3, "each once: {}\n{}", both[0].err, both[1].err);
    let collected = ablate(&house, out, &[]);
    assert_eq!(collected.code, 0, "{}", collected.err);
    assert!(!collected.err.contains("\n== "), "nothing was left to train: {}", collected.err);
    Came::of(&house.path(out)).is(&Came::of(&house.path("one/ab")));
    // A failure of a run that was trained since is none.
    house.write(&format!("{out}/failures.json"), r#"{ "calm-seed1": "no luck" }"#);
    let report = house.run(&["report", out]);
    assert_eq!(report.code, 0, "{}", report.err);
    let study = house.read(&format!("{out}/study.json"));
    assert!(study.contains("calm") && !study.contains("no luck"), "{study}");
    let nothing = self::script(&house, out);
    assert!(nothing.contains("Nothing is left") && !nothing.contains("#SBATCH"), "{nothing}");
    house.refuses(
        &["ablate", "--out", out, "--job", "calm-seed3"],
        &["has no run calm-seed3", "--print-jobs"],
    );
}
