//! Ctrl-C, and readers that go away.

use std::io::{BufRead, BufReader, Read};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::house::{Done, House, trained};

/// Sends a signal. The child was started with none of them ignored (see [`heeding`]).
#[cfg(unix)]
fn signal(child: &std::process::Child, name: &str) {
    let id = child.id().to_string();
    assert!(std::process::Command::new("kill").args([&format!("-{name}"), &id]).status().unwrap().success());
}

/// A command to which signals come, whatever ignores them here (a job in the background of a script).
#[cfg(unix)]
fn heeding(house: &House, args: &[&str]) -> std::process::Command {
    use std::os::unix::process::CommandExt;
    let mut command = house.command(args);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: only async-signal-safe calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            use nix::sys::signal::{SigHandler, Signal, signal};
            for kind in [Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
                signal(kind, SigHandler::SigDfl)?;
            }
            Ok(())
        });
    }
    command
}

/// Waits until a file holds a text.
#[cfg(unix)]
fn until(child: &mut std::process::Child, file: &std::path::Path, text: &str) {
    let begun = Instant::now();
    while !std::fs::read_to_string(file).is_ok_and(|found| found.contains(text)) {
        assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
}

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
    let begin: Vec<&str> = begin.iter().map(String::as_str).collect();
    let mut child = heeding(&house, &begin).spawn().unwrap();
    until(&mut child, &house.path("runs/calm/metrics.jsonl"), "\"lm\"");
    signal(&child, "INT");
    wait(&mut child);
    let done = Done::from(child.wait_with_output().unwrap());
    assert_eq!((done.code, done.out.as_str()), (130, ""), "{}", done.err);
    for part in ["\nstopped at step", "of stage lm", "hint: ", "--resume"] {
        assert!(done.err.contains(part), "{part} in\n{}", done.err);
    }
    assert!(!done.err.contains("error:"), "a stop is no error: {}", done.err);
    let record: serde_json::Value = serde_json::from_str(&house.read("runs/calm/run.json")).unwrap();
    let entry = &record["history"][0];
    assert!(
        entry["stopped"].is_string() && entry["failure"].is_null() && entry["time"].is_string(),
        "{entry}"
    );
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

/// A baseline that trains for ever, in a house of its own.
#[cfg(unix)]
const ENDLESS: [&str; 8] = [
    "train",
    "--config",
    "baseline.yaml",
    "--set",
    "train.lm={steps: 1000000, batch_rows: 2, context: 32, learning_rate: 1e-3, log_every: 1}",
    "--out",
    "runs/endless",
    "--quiet",
];

#[cfg(unix)]
#[test]
fn every_signal_that_asks_to_stop_leaves_a_checkpoint_and_its_own_exit_code() {
    let house = House::new();
    for (name, code) in [("TERM", 143), ("HUP", 129), ("QUIT", 131)] {
        let resume: &[&str] = if code == 143 { &[] } else { &["--resume"] };
        let mut child = heeding(&house, &[&ENDLESS[..], resume].concat()).spawn().unwrap();
        let lines = |text: &str| text.lines().count();
        let before =
            std::fs::read_to_string(house.path("runs/endless/metrics.jsonl")).map_or(0, |t| lines(&t));
        let begun = Instant::now();
        while std::fs::read_to_string(house.path("runs/endless/metrics.jsonl")).map_or(0, |t| lines(&t))
            < before + 3
        {
            assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
            std::thread::sleep(Duration::from_millis(5));
        }
        signal(&child, name);
        wait(&mut child);
        let done = Done::from(child.wait_with_output().unwrap());
        assert_eq!(done.code, code, "{name}: {}", done.err);
        assert!(done.err.contains("stopped at step") && done.err.contains("--resume"), "{}", done.err);
        // The one before is kept until a step from the new one has been seen.
        let steps = std::fs::read_dir(house.path("runs/endless/lm")).unwrap().count();
        assert_eq!(steps, if resume.is_empty() { 1 } else { 2 });
    }
}

#[cfg(unix)]
#[test]
fn an_ignored_hang_up_stays_ignored() {
    let house = House::new();
    let begin = heeding(&house, &ENDLESS);
    let mut hardened = heeding(&house, &ENDLESS);
    // SAFETY: only async-signal-safe calls between fork and exec. Runs after the one above.
    unsafe {
        use std::os::unix::process::CommandExt;
        hardened.pre_exec(|| {
            use nix::sys::signal::{SigHandler, Signal, signal};
            signal(Signal::SIGHUP, SigHandler::SigIgn)?;
            Ok(())
        });
    }
    drop(begin);
    let mut child = hardened.spawn().unwrap();
    let metrics = house.path("runs/endless/metrics.jsonl");
    until(&mut child, &metrics, "train/loss");
    signal(&child, "HUP");
    let steps = || std::fs::read_to_string(&metrics).unwrap().lines().count();
    let (begun, before) = (Instant::now(), steps());
    while steps() < before + 20 {
        assert!(
            begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none(),
            "it stopped"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(&child, "TERM");
    assert_eq!(wait(&mut child).code(), Some(143));
}

#[cfg(unix)]
#[test]
fn what_does_not_train_ends_at_once_with_the_code_of_the_signal() {
    let house = trained();
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let args = ["generate", "--run", "runs/baseline", "--max-tokens", "10000000"];
        let mut child = heeding(house, &args).spawn().unwrap();
        let mut some = [0; 1];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut some).unwrap();
        signal(&child, name);
        std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
        assert_eq!(wait(&mut child).code(), Some(code));
    }
}

#[cfg(unix)]
#[test]
fn a_run_belongs_to_one_process_and_nothing_of_it_is_touched_by_another() {
    let house = House::new();
    let mut child = heeding(&house, &ENDLESS).spawn().unwrap();
    let id = child.id();
    until(&mut child, &house.path("runs/endless/metrics.jsonl"), "train/loss");
    for begin in [&["--resume"][..], &["--restart"], &[]] {
        let args = [&ENDLESS[..], begin].concat();
        let owner = format!("process {id} on ");
        house.refuses(&args, &["another calm works on runs/endless", &owner, "since 2", "hint:", "--out"]);
    }
    // Readers are not kept out.
    house.refuses(&["generate", "--run", "runs/endless"], &["holds no checkpoint"]);
    assert!(child.try_wait().unwrap().is_none());
    // Killed, it leaves its lock behind, which is taken over and said.
    signal(&child, "KILL");
    wait(&mut child);
    let set = ["--set", "train.lm.steps=3", "--resume"];
    let done = house.run(&[&ENDLESS[..], &set].concat());
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains(&format!("process {id}")) && done.err.contains("taken over"), "{}", done.err);
    assert_eq!(house.read("runs/endless/.lock"), "");
}
