//! With NCCL: processes that have a GPU each, as torchrun starts them, train what one does, and end with one message.
//!
//! Here the GPUs are those of `kernels/host-device`, as many as CALM_HOST_DEVICES says:
//! `CALM_HOST_DEVICES=2 cargo test --release -p calm-cli --features nccl --test processes`.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::house::{Done, House, child_with, latest, messages, signal, weights};

/// Whether there are two GPUs; else says that the test is skipped.
fn can(test: &str) -> bool {
    match calm_kernels::device::gpus() {
        Ok((gpus, _)) if gpus.len() > 1 => true,
        found => {
            let found = found.map_or_else(|e| e.to_string(), |(gpus, _)| format!("{} GPU", gpus.len()));
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "CALM_TEST_GPU: {found}, two are needed");
            println!("skipped: {test} (needs a GPU)");
            false
        }
    }
}

/// Processes of a world, and where it meets.
struct World<'a> {
    house: &'a House,
    size: usize,
    port: String,
    seconds: &'static str,
}

impl<'a> World<'a> {
    fn new(house: &'a House, size: usize) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        Self { house, size, port, seconds: "60" }
    }

    /// The command of a rank, as torchrun starts it.
    fn command(&self, rank: usize, arguments: &[&str]) -> Command {
        let mut command = self.house.command(env!("CARGO_BIN_EXE_calm"));
        command.args(arguments).args(["--device", "cuda", "--threads", "1"]);
        command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
        command.env("WORLD_SIZE", self.size.to_string());
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", &self.port);
        command.env("CALM_WAIT_SECONDS", self.seconds);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn begin(&self, arguments: &[&str]) -> Vec<Child> {
        (0..self.size).map(|rank| self.command(rank, arguments).spawn().unwrap()).collect()
    }

    fn trained(&self, arguments: &[&str]) -> Vec<Done> {
        ends(self.begin(arguments))
    }
}

/// What each did, within a minute.
fn ends(children: Vec<Child>) -> Vec<Done> {
    let since = Instant::now();
    let wait = |mut child: Child| {
        while child.try_wait().unwrap().is_none() && since.elapsed() < Duration::from_mins(1) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        child.wait_with_output().unwrap().into()
    };
    children.into_iter().map(wait).collect()
}

/// Training losses of a run, step by step.
fn losses(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let loss = |line: serde_json::Value| {
        let values = line.get("values").unwrap_or(&line).as_object().unwrap().clone();
        values
            .into_iter()
            .find(|(name, _)| name.ends_with("train/loss"))
            .and_then(|(_, value)| value.as_f64())
    };
    lines.filter_map(loss).collect()
}

/// `train` of a family into a folder.
fn train<'a>(config: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--config", config, "--out", out, "--cache", "cache"], more].concat()
}

/// Without `reduction: fixed`, which is for CPUs, and with a head of a size that the kernels know.
const ENGINE: [&str; 6] = [
    "--set",
    "train.lm.reduction=engine",
    "--set",
    "model.baseline.backbone.hidden_size=32",
    "--set",
    "model.baseline.backbone.heads=1",
];
const BOTH: [&str; 8] = [
    "--set",
    "train.lm.reduction=engine",
    "--set",
    "train.autoencoder.reduction=engine",
    "--set",
    "model.calm.backbone.hidden_size=32",
    "--set",
    "model.calm.backbone.heads=1",
];

#[test]
fn two_gpus_train_what_one_does_and_repeat_their_bits() {
    if !can("two GPUs beside one") {
        return;
    }
    let house = House::new();
    let accumulated = [&ENGINE[..], &["--set", "train.lm.accumulation=4"]].concat();
    for (name, more) in [("baseline.yaml", accumulated.as_slice()), ("calm.yaml", &BOTH)] {
        let mut found = Vec::new();
        for (size, out) in [(1, "one"), (2, "two"), (2, "again")] {
            let out = format!("{name}-{out}");
            for (rank, done) in World::new(&house, size).trained(&train(name, &out, more)).iter().enumerate()
            {
                assert_eq!((done.code, messages(done)), (0, 0), "{name}, {size} processes: {done:?}");
                assert_eq!(done.err.contains("run folder"), rank == 0, "one of them speaks: {done:?}");
            }
            found.push((losses(&house.path(&out)), weights(&house.path(&out))));
        }
        let (one, two, again) = (&found[0], &found[1], &found[2]);
        assert_eq!(two, again, "{name}: the same number of GPUs, the same bits");
        assert_eq!(one.0.len(), two.0.len());
        assert!(!one.0.is_empty());
        let after = [more, &["--set", "train.lm.overlap=false"]].concat();
        let out = format!("{name}-after");
        for done in World::new(&house, 2).trained(&train(name, &out, &after)) {
            assert_eq!(done.code, 0, "{done:?}");
        }
        assert_eq!(weights(&house.path(&out)), two.1, "{name}: whenever the sums are made");
        for (a, b) in one.0.iter().zip(&two.0) {
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{name}: {a} on one GPU, {b} on two");
        }
        assert_ne!(one.1, two.1, "else nothing was shared out");
    }
}

#[test]
fn gpus_that_share_the_optimiser_write_what_those_do_that_do_not() {
    if !can("GPUs that share the optimiser") {
        return;
    }
    let house = House::new();
    // So large that each has a part, with borders inside of parameters.
    let wide = ["model.baseline.backbone.hidden_size=64", "model.baseline.backbone.intermediate_size=200"];
    let wide: Vec<_> = wide.into_iter().flat_map(|one| ["--set", one]).collect();
    for precision in ["precision=f32", "precision=bf16"] {
        let begun = |size: usize, out: &str, shard: &str, more: &[&str]| {
            let shard = format!("train.lm.shard={shard}");
            let own = ["--set", precision, "--set", &shard];
            let arguments = [&ENGINE[..], &wide, &own, more].concat();
            let done = World::new(&house, size).trained(&train("baseline.yaml", out, &arguments));
            assert!(done.iter().all(|one| one.code == done[0].code), "{out}: {done:?}");
            done.into_iter().fold((0, String::new()), |(_, said), one| (one.code, said + &one.err))
        };
        let trained = |size: usize, out: &str, shard: &str, more: &[&str]| {
            let (code, said) = begun(size, out, shard, more);
            assert_eq!(code, 0, "{out}: {said}");
            (losses(&house.path(out)), weights(&house.path(out)))
        };
        let names = ["whole", "shared", "one"].map(|name| format!("{precision}-{name}"));
        let whole = trained(2, &names[0], "none", &[]);
        let large = whole.1.values().map(Vec::len).max().unwrap();
        assert!(large > 2 * 2 * 4 * 16_384, "{large} bytes of moments are no two parts");
        let shared = trained(2, &names[1], "optimizer", &[]);
        assert!(whole.0 == shared.0 && whole.1 == shared.1, "{precision}: {:?}, {:?}", whole.0, shared.0);
        // Who goes on takes its own part of what was written, whoever wrote it.
        for (size, shards, steps) in [(2, ["optimizer", "none"], 6), (1, ["none", "optimizer"], 8)] {
            let steps = format!("train.lm.steps={steps}");
            let more = ["--resume", "--set", &steps];
            let [a, b] = [0, 1].map(|i| trained(size, &names[i], shards[i], &more));
            assert!(a.0 == b.0 && a.1 == b.1, "{precision}, {size} GPUs go on: {:?}, {:?}", a.0, b.0);
        }
        let [a, b] =
            ["none", "optimizer"].map(|shard| trained(1, &format!("{}-{shard}", names[2]), shard, &[]));
        assert!(a == b, "{precision}: one GPU alone");
        // A threshold so low that noise is a spike: what is left out is so everywhere.
        let nervous = ["--set", "train.lm.steps=16", "--set", "train.lm.learning_rate=3e-3", "--set"];
        let nervous =
            [&nervous[..], &["train.lm.divergence={action: skip, window: 6, threshold: 0.6}"]].concat();
        let [a, b] = ["none", "optimizer"].map(|shard| {
            let out = format!("{}-{shard}-nervous", names[2]);
            let found = trained(2, &out, shard, &nervous);
            let state = fs::read_to_string(house.path(&out).join("lm/step-16/state.json")).unwrap();
            let state: serde_json::Value = serde_json::from_str(&state).unwrap();
            (found, state["left_out"].as_u64().unwrap())
        });
        assert!(a.1 > 1, "{precision}: {} steps left out show nothing", a.1);
        assert!(a == b, "{precision}: steps that are left out");
        // After the first step nothing is a number, which the GPU knows and who looks at it hears of.
        let wild = ["learning_rate=1e38", "log_every=4", "eval_every=4", "checkpoint_every=4"];
        let wild: Vec<_> = wild.iter().map(|one| format!("train.lm.{one}")).collect();
        let wild: Vec<_> = wild.iter().flat_map(|one| ["--set", one]).collect();
        for shard in ["none", "optimizer"] {
            let out = format!("{}-{shard}-wild", names[2]);
            let (code, said) = begun(2, &out, shard, &wild);
            assert_eq!((code, said.contains("is NaN")), (1, true), "{precision}, {shard}: {said}");
            assert!(weights(&house.path(&out)).is_empty(), "{precision}, {shard}: nothing is saved");
        }
    }
}

#[test]
fn a_stop_asked_of_any_process_is_one_checkpoint() {
    if !can("a stop of processes with GPUs") {
        return;
    }
    let house = House::new();
    let world = World::new(&house, 2);
    let endless = [&ENGINE[..], &["--set", "train.lm.steps=1000000"]].concat();
    let mut children = world.begin(&train("baseline.yaml", "run", &endless));
    house.saved("run", &mut children);
    signal("TERM", &children[1].id().to_string());
    let done = ends(children);
    assert!(done.iter().all(|one| (one.code, messages(one)) == (143, 0)), "{done:?}");
    assert!(done[0].err.contains("a checkpoint was written"), "{done:?}");
    let steps = format!("train.lm.steps={}", latest(&house.path("run")).unwrap() + 2);
    let more = [&ENGINE[..], &["--resume", "--set", &steps]].concat();
    let done = World::new(&house, 1).trained(&train("baseline.yaml", "run", &more));
    assert_eq!(done[0].code, 0, "{done:?}");
}

#[test]
fn a_process_that_is_gone_or_stopped_ends_the_others_with_one_message() {
    if !can("a process with a GPU that is gone") {
        return;
    }
    for (kind, rank) in [("KILL", 1), ("STOP", 1), ("KILL", 0)] {
        let house = House::new();
        let world = World { seconds: "6", ..World::new(&house, 2) };
        let endless = [&ENGINE[..], &["--set", "train.lm.steps=1000000"]].concat();
        let mut children = world.begin(&train("baseline.yaml", "run", &endless));
        house.saved("run", &mut children);
        let gone = children.remove(rank);
        signal(kind, &gone.id().to_string());
        let done = ends(children).remove(0);
        signal("KILL", &gone.id().to_string());
        gone.wait_with_output().unwrap();
        assert_eq!((done.code, messages(&done)), (1, 1), "{kind} of {rank}: {done:?}");
        let named = done.err.contains(&format!("rank {rank} (")) && done.err.contains("does not answer");
        assert!(named && done.err.contains("--resume"), "{kind} of {rank}: {done:?}");
        let steps = format!("train.lm.steps={}", latest(&house.path("run")).unwrap() + 2);
        let more = [&ENGINE[..], &["--resume", "--set", &steps]].concat();
        let done = World::new(&house, 2).trained(&train("baseline.yaml", "run", &more));
        assert!(done.iter().all(|one| one.code == 0), "{done:?}");
    }
}

#[test]
fn what_cannot_be_joined_is_refused_with_one_message() {
    if !can("processes that cannot be joined") {
        return;
    }
    let house = House::new();
    let world = World { seconds: "10", ..World::new(&house, 2) };
    let arguments = train("baseline.yaml", "run", &ENGINE);
    let both = |change: &dyn Fn(usize, &mut Command)| {
        let mut children = Vec::new();
        for rank in 0..2 {
            let mut command = world.command(rank, &arguments);
            change(rank, &mut command);
            children.push(command.spawn().unwrap());
        }
        // As a launcher does: all end soon after the first that fails.
        while children.iter_mut().all(|child| child.try_wait().unwrap().is_none()) {
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(Duration::from_millis(500));
        children.iter_mut().for_each(|child| child.kill().unwrap());
        let done = ends(children);
        assert!(done.iter().any(|one| one.code == 1), "{done:?}");
        assert_eq!(done.iter().map(messages).sum::<usize>(), 1, "{done:?}");
        assert!(!house.path("run/run.json").exists(), "nothing was begun");
        done.iter().map(|one| one.err.clone()).collect::<String>()
    };
    let e = both(&|rank, command| {
        if rank == 1 {
            command.args(["--set", "train.lm.learning_rate=0.5"]);
        }
    });
    assert!(e.contains("config.train.lm.learning_rate is 0.5, not 0.01"), "{e}");
    let e = both(&|_, command| {
        command.env("LOCAL_RANK", "0");
    });
    assert!(e.contains("NCCL does not join the GPUs") && e.contains("a GPU of its own"), "{e}");
    let e = both(&|rank, command| {
        if rank == 1 {
            command.env("CUDA_VISIBLE_DEVICES", "");
        }
    });
    assert!(e.contains("rank 1: ") && e.contains("no GPU can be used"), "what one alone knows it says: {e}");
    let e = both(&|rank, command| {
        if rank == 1 {
            command.env("CALM_MEETING_TOKEN", "another");
        }
    });
    assert!(e.contains("rank 1: ") && e.contains("another job"), "{e}");
    let e = both(&|_, command| {
        command.args(["--set", "train.lm.reduction=fixed"]);
    });
    assert!(e.contains("reduction: fixed works on CPUs alone"), "{e}");
    let e = both(&|_, command| {
        command.env_remove("MASTER_PORT");
    });
    assert!(e.contains("nothing says where they meet") && e.contains("CALM_MEETING"), "{e}");
    // All libraries but one.
    let libraries = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let Some(folder) = libraries.split(':').map(Path::new).find(|f| f.join("libnccl.so.2").exists()) else {
        return println!("skipped: the absence of NCCL (needs NCCL in LD_LIBRARY_PATH)");
    };
    let without = house.path("libraries");
    fs::create_dir(&without).unwrap();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if !entry.file_name().to_string_lossy().starts_with("libnccl") {
            std::os::unix::fs::symlink(entry.path(), without.join(entry.file_name())).unwrap();
        }
    }
    let e = both(&|_, command| {
        command.env("LD_LIBRARY_PATH", &without);
    });
    assert!(e.contains("libnccl.so.2 cannot be opened") && e.contains("LD_LIBRARY_PATH"), "{e}");
}

#[test]
fn this_program_starts_a_process_for_each_gpu_itself() {
    if !can("--processes with GPUs") {
        return;
    }
    let house = House::new();
    let done = World::new(&house, 2).trained(&train("baseline.yaml", "torchrun", &ENGINE));
    assert!(done.iter().all(|one| one.code == 0), "{done:?}");
    let own = |out: &'static str, more: &[&'static str]| {
        let mut command = house.command(env!("CARGO_BIN_EXE_calm"));
        command.args(train("baseline.yaml", out, &[&ENGINE, more].concat()));
        command.args(["--device", "cuda", "--processes", "2"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let done = ends(vec![own("own", &[])]).remove(0);
    assert_eq!((done.code, messages(&done)), (0, 0), "{done:?}");
    assert!(done.err.contains("2 processes with a GPU and"), "{done:?}");
    assert_eq!(weights(&house.path("own")), weights(&house.path("torchrun")));
    // Asked to stop it writes a checkpoint; killed ones are told of.
    let endless = ["--set", "train.lm.steps=1000000"];
    let mut children = vec![own("stopped", &endless)];
    house.saved("stopped", &mut children);
    signal("TERM", &children[0].id().to_string());
    let done = ends(children).remove(0);
    assert_eq!((done.code, messages(&done)), (143, 0), "{done:?}");
    assert!(done.err.contains("a checkpoint was written"), "{done:?}");
    let mut children = vec![own("killed", &endless)];
    house.saved("killed", &mut children);
    signal("KILL", &child_with(children[0].id(), "RANK=1"));
    let done = ends(children).remove(0);
    assert_eq!((done.code, messages(&done)), (1, 1), "{done:?}");
    assert!(done.err.contains("--resume"), "{done:?}");
    let e = ends(vec![{
        let mut command = house.command(env!("CARGO_BIN_EXE_calm"));
        command.args(train("baseline.yaml", "three", &ENGINE)).args(["--device", "cuda", "--processes", "3"]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }])
    .remove(0);
    assert!(e.code == 1 && e.err.contains("process 3 of this machine, which has 2 GPUs"), "{e:?}");
}

#[cfg(feature = "mpi")]
#[test]
fn mpi_joins_the_processes_and_nccl_their_gpus() {
    if !can("MPI and NCCL") {
        return;
    }
    let house = House::new();
    let mut runs = Vec::new();
    let done = World::new(&house, 2).trained(&train("baseline.yaml", "torchrun", &ENGINE));
    assert!(done.iter().all(|one| one.code == 0), "{done:?}");
    runs.push(weights(&house.path("torchrun")));
    let mut command = house.command("mpirun");
    command.args(["--quiet", "--oversubscribe", "--bind-to", "none", "-n", "2", env!("CARGO_BIN_EXE_calm")]);
    command.args(train("baseline.yaml", "mpi", &ENGINE)).args(["--device", "cuda", "--threads", "1"]);
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let done: Done = command.output().unwrap().into();
    assert_eq!((done.code, messages(&done)), (0, 0), "{done:?}");
    runs.push(weights(&house.path("mpi")));
    assert_eq!(runs[0], runs[1], "whoever brings the processes together");
}
