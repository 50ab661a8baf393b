//! Ctrl-C, and readers that go away.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::house::{Done, House, trained};

fn wait(child: &mut std::process::Child) -> std::process::ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            let _ = child.kill();
            panic!("it did not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_training_with_a_checkpoint_and_resume_finishes_it() {
    let house = House::new();
    let args = |steps: &str, more: &[&str]| {
        let set = format!(
            "train.lm={{steps: {steps}, batch_rows: 4, context: 32, learning_rate: 1e-3, log_every: 1}}"
        );
        let list = ["train", "--config", "calm.yaml", "--set", "train.autoencoder.steps=5", "--set", &set];
        [&list[..], more].concat().into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |steps: &str, more: &[&str]| {
        let args = args(steps, more);
        house.run(&args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let begin = args("1000000", &[]);
    let mut child = house
        .command(&begin.iter().map(String::as_str).collect::<Vec<_>>())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let under_way =
        || std::fs::read_to_string(house.path("runs/calm/metrics.jsonl")).is_ok_and(|m| m.contains("\"lm\""));
    while !under_way() {
        assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
    wait(&mut child);
    let done = Done::from(child.wait_with_output().unwrap());
    assert_eq!((done.code, done.out.as_str()), (1, ""), "{}", done.err);
    for part in ["error: stopped at step", "of stage lm", "hint: ", "--resume"] {
        assert!(done.err.contains(part), "{part} in\n{}", done.err);
    }
    let lm = std::fs::read_dir(house.path("runs/calm/lm")).unwrap();
    let steps: Vec<String> = lm.flatten().map(|e| e.file_name().into_string().unwrap()).collect();
    let [step] = steps.as_slice() else { panic!("{steps:?}") };
    let step: u64 = step.strip_prefix("step-").unwrap().parse().unwrap();

    // The same command without --resume does not throw the work away.
    let refused = run("1000000", &[]);
    assert_eq!(refused.code, 1);
    for part in ["error: ", &format!("stopped at step {step} of 1000000"), "hint: --resume"] {
        assert!(refused.err.contains(part), "{part} in\n{}", refused.err);
    }
    let done = run(&(step + 3).to_string(), &["--resume"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains(&format!("lm: goes on after step {step} of {}", step + 3)), "{}", done.err);
    assert!(done.out.contains("BrierLM"));
    // Every step stands in the metrics once.
    let mut logged: Vec<u64> = house
        .metrics("runs/calm")
        .iter()
        .filter(|m| m["stage"] == "lm" && m.to_string().contains("train/loss"))
        .map(|m| m["step"].as_u64().unwrap())
        .collect();
    let count = logged.len();
    logged.dedup();
    assert_eq!((count, logged.len(), logged.last()), (count, count, Some(&(step + 3))));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let house = trained();
    for args in [
        &["generate", "--max-tokens", "100000"][..],
        &["generate", "--run", "runs/baseline", "--max-tokens", "100000"],
        &["config", "--schema"],
        &["config", "quickstart"],
        &["eval", "autoencoder", "--documents", "1"],
        &["completions", "zsh"],
        &["--help"],
        &["--version"],
    ] {
        let mut child = house.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        if args[0] == "generate" {
            let mut some = [0; 1];
            stdout.read_exact(&mut some).unwrap();
        }
        drop(stdout);
        let mut err = String::new();
        for line in BufReader::new(child.stderr.take().unwrap()).lines() {
            err.push_str(&line.unwrap());
        }
        let status = wait(&mut child);
        assert_eq!(status.code(), Some(0), "{args:?}: {err}");
        assert!(!err.contains("panicked") && !err.contains("error"), "{args:?}: {err}");
    }
}
