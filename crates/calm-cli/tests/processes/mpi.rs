//! With MPI: the same bits whatever the number of processes, and one message whoever fails.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::house::{Done, House, child_with, latest, messages, models, signal, weights};

/// Whether there is an `mpirun`; else says that the test is skipped.
fn can(test: &str) -> bool {
    let there = Command::new("mpirun").arg("--version").output().is_ok_and(|o| o.status.success());
    if !there {
        println!("skipped: {test} (needs mpirun)");
    }
    there
}

impl House {
    /// `mpirun` of a shell line with this program's arguments behind it, for each rank by itself: `$0` is the program, `$@` its
    /// arguments, `$R` the rank.
    fn mpirun(&self, number: usize, line: &str, arguments: &[&str]) -> Command {
        let mut command = self.command("mpirun");
        command.args(["--quiet", "--oversubscribe", "--bind-to", "none", "-n", &number.to_string()]);
        command.args(["bash", "-c", &format!("R=$OMPI_COMM_WORLD_RANK; {line}"), env!("CARGO_BIN_EXE_calm")]);
        command.args(arguments).args(["--threads", "1"]);
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        command.env("CALM_WAIT_SECONDS", "10");
        command
    }

    fn trained(&self, number: usize, arguments: &[&str]) -> Done {
        self.mpirun(number, "exec \"$0\" \"$@\"", arguments).output().unwrap().into()
    }

    /// A run that takes for ever, begun: the processes are in the middle of its steps.
    fn begun(&self, number: usize) -> Child {
        let more = ["--set", "train.lm.steps=1000000", "--set", "train.lm.checkpoint_every=20"];
        let mut command = self.mpirun(number, "exec \"$0\" \"$@\"", &self.train(&more));
        self.begun_well(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    /// When the run has its first checkpoint.
    fn begun_well(&self, child: Child) -> Child {
        let mut children = vec![child];
        self.saved("run", &mut children);
        children.remove(0)
    }

    /// That the run goes on, with so many processes.
    fn goes_on(&self, number: usize) {
        let steps = format!("train.lm.steps={}", latest(&self.path("run")).unwrap() + 3);
        let more = ["--resume", "--set", &steps, "--set", "train.lm.checkpoint_every=20"];
        let done = self.trained(number, &self.train(&more));
        assert_eq!(done.code, 0, "{done:?}");
        assert!(done.err.contains("goes on after step"), "{done:?}");
    }
}

/// The process of a rank of this mpirun.
fn process(mpirun: &Child, rank: usize) -> String {
    child_with(mpirun.id(), &format!("OMPI_COMM_WORLD_RANK={rank}"))
}

#[test]
fn every_family_has_the_same_bits_at_1_2_and_4_processes() {
    if !can("the same bits at 1, 2 and 4 processes") {
        return;
    }
    let house = House::new();
    for (name, _) in models() {
        let config = format!("{name}.yaml");
        let mut first = None;
        for number in [1, 2, 4] {
            let out = format!("{name}-{number}");
            let arguments =
                ["train", "--config", &config, "--out", &out, "--cache", "cache", "--device", "cpu"];
            let done = house.trained(number, &arguments);
            assert_eq!(done.code, 0, "{name}, {number} processes: {done:?}");
            assert_eq!(done.err.matches("run folder").count(), 1, "one of them speaks: {done:?}");
            let results = fs::read(house.path(&out).join("results.json")).unwrap();
            let kept = (weights(&house.path(&out)), results);
            assert!(kept.0.len() >= 4);
            assert!(first.as_ref().is_none_or(|first| *first == kept), "{name} with {number} processes");
            first.get_or_insert(kept);
        }
    }
}

#[test]
fn a_shared_optimiser_has_the_bits_of_one_that_is_not() {
    if !can("a shared optimiser") {
        return;
    }
    let house = House::new();
    // So large that several processes have a part.
    let wide = ["model.baseline.backbone.hidden_size=64", "model.baseline.backbone.intermediate_size=200"];
    let trained = |number: usize, reduction: &str, shard: &str| {
        let out = format!("{reduction}-{shard}-{number}");
        let set = [format!("train.lm.reduction={reduction}"), format!("train.lm.shard={shard}")];
        let mut arguments = vec!["train", "--config", "baseline.yaml", "--out", &out, "--cache", "cache"];
        arguments.extend(["--device", "cpu"]);
        set.iter().map(String::as_str).chain(wide).for_each(|one| arguments.extend(["--set", one]));
        let done = house.trained(number, &arguments);
        assert_eq!(done.code, 0, "{out}: {done:?}");
        let results = fs::read(house.path(&out).join("results.json")).unwrap();
        (weights(&house.path(&out)), results)
    };
    let one = trained(1, "fixed", "none");
    let large: usize = one.0.values().map(Vec::len).max().unwrap();
    assert!(large > 4 * 2 * 4 * 16_384, "{large} bytes of moments are no four parts");
    for number in [1, 2, 4] {
        assert!(trained(number, "fixed", "optimizer") == one, "{number} processes");
    }
    // The engine may add four in another order, but not two.
    assert!(trained(2, "engine", "optimizer") == trained(2, "engine", "none"));
    trained(3, "engine", "optimizer");
}

#[test]
fn this_program_starts_its_processes_itself() {
    if !can("--processes") {
        return;
    }
    let house = House::new();
    let done = house.calm(&house.train(&["--processes", "2"]), &[]);
    assert_eq!(done.code, 0, "{done:?}");
    assert!(done.err.contains("2 processes with 1 threads each") && done.out.contains("BrierLM"), "{done:?}");
    let one = house.calm(
        &["train", "--config", "baseline.yaml", "--out", "one", "--cache", "cache", "--device", "cpu"],
        &[],
    );
    assert_eq!(one.code, 0, "{one:?}");
    assert_eq!(weights(&house.path("run")), weights(&house.path("one")));
    let wrong =
        house.calm(&house.train(&["--processes", "2", "--resume"]), &[("RANK", "0"), ("WORLD_SIZE", "4")]);
    assert_eq!((wrong.code, messages(&wrong)), (1, 1), "{wrong:?}");
}

#[test]
fn who_asks_for_a_stop_gets_a_checkpoint_and_the_exit_code_of_the_signal() {
    if !can("a stop") {
        return;
    }
    let house = House::new();
    let mut command = house.command(env!("CARGO_BIN_EXE_calm"));
    let more = ["--processes", "2", "--threads", "1", "--set", "train.lm.steps=1000000"];
    command.args(house.train(&more)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = house.begun_well(command.spawn().unwrap());
    signal("TERM", &child.id().to_string());
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!(done.code, 143, "{done:?}");
    assert!(done.err.contains("a checkpoint was written"), "{done:?}");
    assert_eq!(messages(&done), 0, "{done:?}");
}

#[test]
fn a_second_signal_ends_all_at_once_and_leaves_nobody_behind() {
    if !can("a second signal") {
        return;
    }
    let house = House::new();
    let mut command = house.command(env!("CARGO_BIN_EXE_calm"));
    let more = ["--processes", "2", "--threads", "1", "--set", "train.lm.steps=1000000"];
    let more = [&more[..], &["--set", "train.lm.checkpoint_every=20"]].concat();
    command.args(house.train(&more)).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = house.begun_well(command.env("CALM_WAIT_SECONDS", "60").spawn().unwrap());
    let mpirun = child_with(child.id(), "OMPI_ALLOW_RUN_AS_ROOT=1");
    let ranks =
        [0, 1].map(|rank| child_with(mpirun.parse().unwrap(), &format!("OMPI_COMM_WORLD_RANK={rank}")));
    // The first signal waits for a step that never ends.
    signal("STOP", &ranks[1]);
    signal("TERM", &child.id().to_string());
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none(), "one signal waits for a checkpoint");
    signal("TERM", &child.id().to_string());
    let since = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(143));
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    let lives = |process: &String| {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        // What nobody has waited for is dead all the same.
        !status.is_empty() && !status.contains("\nState:\tZ")
    };
    let all = [&ranks[0], &ranks[1], &mpirun];
    while all.iter().any(|process| lives(process)) {
        assert!(since.elapsed() < Duration::from_secs(20), "somebody is left of {all:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_stop_asked_of_any_rank_is_one_checkpoint_of_all() {
    if !can("a stop of a rank") {
        return;
    }
    let house = House::new();
    let child = house.begun(2);
    signal("TERM", &process(&child, 1));
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!((done.code, messages(&done)), (143, 0), "{done:?}");
    assert_eq!(done.err.matches("a checkpoint was written").count(), 1, "{done:?}");
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(house.path("run/run.json")).unwrap()).unwrap();
    assert_eq!(record["history"].as_array().unwrap().len(), 1, "{record}");
    assert!(record["history"][0]["stopped"].is_string(), "{record}");
    let text = fs::read_to_string(house.path("run/metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(text.lines().next_back().unwrap()).unwrap();
    assert_eq!(last["step"].as_u64(), latest(&house.path("run")), "the last step is the checkpoint's");
    house.goes_on(2);
}

#[test]
fn a_rank_that_is_stopped_ends_the_job_with_one_message_and_the_run_goes_on_with_fewer() {
    if !can("a rank that is stopped") {
        return;
    }
    for rank in [1, 0] {
        let house = House::new();
        let child = house.begun(4);
        signal("STOP", &process(&child, rank));
        let since = Instant::now();
        let done: Done = child.wait_with_output().unwrap().into();
        assert!(since.elapsed() < Duration::from_secs(40), "{:?}", since.elapsed());
        assert_eq!((done.code, messages(&done)), (1, 1), "{done:?}");
        let words = format!("rank {rank} (");
        assert!(
            done.err.contains(&words) && done.err.contains("does not answer) of 4 did not come to"),
            "{done:?}"
        );
        assert!(
            done.err.contains("the last step that all finished is ") && done.err.contains("--resume"),
            "{done:?}"
        );
        house.goes_on(2);
    }
}

#[test]
fn a_rank_that_is_killed_ends_the_job_and_the_run_goes_on_with_fewer() {
    if !can("a rank that is killed") {
        return;
    }
    let house = House::new();
    let child = house.begun(2);
    signal("KILL", &process(&child, 1));
    let since = Instant::now();
    let done: Done = child.wait_with_output().unwrap().into();
    assert!(since.elapsed() < Duration::from_secs(40), "{:?}", since.elapsed());
    assert!(done.code != 0 && messages(&done) <= 1, "{done:?}");
    house.goes_on(1);
}

#[test]
fn a_process_that_was_started_here_and_is_killed_is_one_message() {
    if !can("a process that is killed") {
        return;
    }
    let house = House::new();
    let mut command = house.command(env!("CARGO_BIN_EXE_calm"));
    let more = ["--processes", "2", "--threads", "1", "--set", "train.lm.steps=1000000"];
    let more = [&more[..], &["--set", "train.lm.checkpoint_every=20"]].concat();
    command.args(house.train(&more)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = house.begun_well(command.spawn().unwrap());
    let mpirun = child_with(child.id(), "OMPI_ALLOW_RUN_AS_ROOT=1");
    signal("KILL", &child_with(mpirun.parse().unwrap(), "OMPI_COMM_WORLD_RANK=1"));
    let done: Done = child.wait_with_output().unwrap().into();
    assert_eq!((done.code, messages(&done)), (1, 1), "{done:?}");
    assert!(done.err.contains("--resume"), "{done:?}");
}

#[test]
fn what_two_processes_exchange_is_measured_and_said_once() {
    if !can("the exchange") {
        return;
    }
    let house = House::new();
    let bench = ["bench", "--what", "exchange", "--seconds", "0.01", "--device", "cpu"];
    let done = house.calm(&[&bench[..], &["--processes", "2", "--format", "json"]].concat(), &[]);
    assert_eq!(done.code, 0, "{done:?}");
    let report: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(report["hosts"].as_array().unwrap().len(), 2);
    let all = report["exchange"].as_array().unwrap();
    let ways = ["copy", "sum", "tree"];
    assert_eq!(all.len(), 5 * ways.len(), "{report}");
    for (n, one) in all.iter().enumerate() {
        assert_eq!(one["what"], ways[n % 3]);
        assert!(one["median"].as_f64() > Some(0.0) && one["n"].as_u64() >= Some(3), "{one}");
        // Of two processes each sends as much as it has.
        let sent = if n % 3 == 0 { &serde_json::Value::Null } else { &one["bytes_per_second"] };
        assert_eq!(&one["sent_per_second"], sent);
    }
    assert_eq!((all[0]["bytes"].as_u64(), all[14]["bytes"].as_u64()), (Some(1_000_000), Some(256_000_000)));
    let done = house.trained(2, &["bench", "--what", "lm", "--device", "cpu"]);
    assert_eq!((done.code, messages(&done)), (1, 1), "{done:?}");
    assert!(done.err.contains("--what exchange"), "{done:?}");
}

#[test]
fn a_full_disk_is_one_message_and_the_run_goes_on() {
    if !can("a full disk") {
        return;
    }
    let house = House::new();
    // Files of rank 0 may grow to this many blocks of a KiB: enough for all but a checkpoint of a wider model.
    let wide = ["--set", "model.baseline.backbone.hidden_size=64"];
    let full = "[ $R = 0 ] && { trap '' XFSZ; ulimit -f 64; }; exec \"$0\" \"$@\"";
    let done: Done = house.mpirun(2, full, &house.train(&wide)).output().unwrap().into();
    assert_eq!((done.code, messages(&done)), (1, 1), "{done:?}");
    assert!(done.err.contains("cannot write") && done.err.contains("step-"), "{done:?}");
    let done = house.trained(2, &house.train(&[&wide[..], &["--resume"]].concat()));
    assert_eq!(done.code, 0, "{done:?}");
}

#[test]
fn other_settings_and_other_programs_are_refused_and_named() {
    if !can("other settings and programs") {
        return;
    }
    let house = House::new();
    let other = "[ $R = 1 ] && exec \"$0\" \"$@\" --set train.lm.learning_rate=0.5; exec \"$0\" \"$@\"";
    let done: Done = house.mpirun(2, other, &house.train(&[])).output().unwrap().into();
    assert_eq!((done.code, messages(&done)), (1, 1), "{done:?}");
    assert!(done.err.contains("config.train.lm.learning_rate is 0.5, not 0.01"), "{done:?}");
    // The same program with a byte more.
    let copy = "cp \"$0\" ./other-$R; [ $R = 1 ] && echo >> ./other-$R; exec ./other-$R \"$@\"";
    let done: Done = house.mpirun(2, copy, &house.train(&[])).output().unwrap().into();
    assert_eq!((done.code, messages(&done)), (1, 1), "{done:?}");
    assert!(done.err.contains("rank 1 (") && done.err.contains("program is "), "{done:?}");
    assert!(!house.path("run").exists(), "nothing was begun");
}
