//! What a person types, and what lies around: taken as it is meant, or named for what it is.

use std::fs;
use std::process::Stdio;

use crate::house::{BASELINE, CALM, House, trained};

fn piped(house: &House, args: &[&str], input: &str) -> crate::house::Done {
    use std::io::Write;
    let mut command = house.command(args);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap().into()
}

#[cfg(unix)]
#[test]
fn a_configuration_may_come_through_a_pipe() {
    let house = House::new();
    for name in ["/dev/stdin", "-"] {
        let done = piped(&house, &["config", name], CALM);
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(done.out.contains("description: a tiny CALM"), "{}", done.out);
    }
    let mut bash = std::process::Command::new("bash");
    let line = "\"$0\" train --config <(cat calm.yaml) --stage autoencoder --set train.autoencoder.steps=5 --skip-scores";
    bash.args(["-c", line, env!("CARGO_BIN_EXE_calm")]).current_dir(house.path("."));
    let done: crate::house::Done = bash.env("CALM_CACHE", house.path("cache")).output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(house.path("runs/run/config.yaml").is_file(), "{}", done.err);
}

#[test]
fn whole_numbers_may_have_an_exponent_in_files_and_settings() {
    let house = House::new();
    house
        .write("e.yaml", BASELINE.replace("steps: 20", "steps: 2e1").replace("context: 64", "context: 64.0"));
    let out =
        house.ok(&["config", "e.yaml", "--set", "train.lm.batch_rows=1e1", "--set", "data.max_bytes=1e3"]);
    for line in ["steps: 20", "context: 64", "batch_rows: 10", "max_bytes: 1000"] {
        assert!(out.lines().any(|l| l.trim() == line), "{line}: {out}");
    }
    house.refuses(&["config", "e.yaml", "--set", "train.lm.steps=1.5"], &["whole number", "1.5"]);
    house.refuses(&["config", "e.yaml", "--set", "train.lm.steps=1e300"], &["whole number"]);
    house.refuses(&["config", "e.yaml", "--set", "seed"], &["needs a `=` and a value", "--set seed=VALUE"]);
    let run = trained().path("runs/baseline");
    trained().ok(&["generate", "--run", &run.to_string_lossy(), "-n", "1e1"]);
}

#[test]
fn a_text_that_is_typed_stays_one_whatever_yaml_makes_of_it() {
    let house = House::new();
    for text in ["a, b: c.txt", "123", "1e3", "true", "[a, b]"] {
        let set = format!("data.source.path={text}");
        let out = house.ok(&["config", "calm.yaml", "--set", &set]);
        let tree: serde_json::Value = serde_yaml::from_str(&out).unwrap();
        assert_eq!(tree["data"]["source"]["path"], text, "{out}");
    }
    house.write("n.yaml", CALM.replace("path: text.txt", "path: 123"));
    house.refuses(&["config", "n.yaml"], &["expected text", "put it in quotes"]);
    house.refuses(&["config", "calm.yaml", "--set", "tokenizer=bpe"], &["found only its name"]);
}

#[test]
fn a_byte_order_mark_is_no_document() {
    let house = House::new();
    house.write("bom.yaml", format!("\u{feff}{CALM}"));
    house.ok(&["config", "bom.yaml"]);
    house.write("bom.txt", format!("\u{feff}{}", crate::house::text(7)));
    let plan = |data: &str| {
        let set = format!("data.source.path={data}");
        house.json(&["train", "--config", "baseline.yaml", "--set", &set, "--dry-run", "--format", "json"])
    };
    assert_eq!(plan("bom.txt")["vocab_size"], plan("text.txt")["vocab_size"]);
}

#[test]
fn empty_variables_mean_none() {
    let house = House::new();
    let mut command = house.command(&["config", "calm.yaml"]);
    for name in ["CALM_DEVICE", "CALM_CACHE", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        command.env(name, "");
    }
    let done: crate::house::Done = command.output().unwrap().into();
    assert_eq!((done.code, done.err.as_str()), (0, ""));
}

#[test]
fn home_is_found_where_no_shell_looks_for_it() {
    let house = House::new();
    fs::create_dir(house.path("home")).unwrap();
    fs::copy(house.path("text.txt"), house.path("home/own.txt")).unwrap();
    let at_home = |args: &[&str]| -> crate::house::Done {
        house.command(args).env("HOME", house.path("home")).output().unwrap().into()
    };
    let done = at_home(&["config", "calm.yaml", "--set", "data.source.path=~/own.txt"]);
    assert!(done.out.contains("/home/own.txt") && !done.out.contains('~'), "{}{}", done.out, done.err);
    house.write("home/k.yaml", CALM);
    let done = at_home(&["train", "--config=~/k.yaml", "--dry-run"]);
    assert_eq!(done.code, 0, "{}", done.err);
}

#[test]
fn a_configuration_of_the_other_kind_is_named_with_its_command() {
    let house = House::new();
    house.refuses(&["train", "-c", "ablate-k"], &["this is an ablation", "calm ablate --config ablate-k"]);
    house.refuses(&["ablate", "-c", "calm.yaml"], &["of one run", "calm train --config calm.yaml"]);
    fs::create_dir(house.path("folder")).unwrap();
    house.refuses(&["train", "-c", "folder"], &["this is a folder"]);
}

#[test]
fn too_many_threads_are_fewer_and_said() {
    let house = House::new();
    let done = house.run(&["config", "calm.yaml", "--threads", "20000"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("20000 threads were asked for"), "{}", done.err);
    let mut command = house.command(&["config", "calm.yaml"]);
    let done: crate::house::Done = command.env("RAYON_NUM_THREADS", "20000").output().unwrap().into();
    assert!(done.code == 0 && done.err.contains("20000 threads"), "{}", done.err);
}

/// As an ordinary user: a limit on processes binds no administrator.
#[cfg(target_os = "linux")]
#[test]
fn a_system_without_threads_is_an_error_that_names_the_option() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    // An administrator becomes somebody with no other process, for whom the binary lies where anybody may read.
    let administrator = fs::metadata("/proc/self").unwrap().uid() == 0;
    let folder = tempfile::tempdir().unwrap();
    let mut binary = std::path::PathBuf::from(env!("CARGO_BIN_EXE_calm"));
    if administrator {
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let copy = folder.path().join("calm");
        fs::copy(&binary, &copy).unwrap();
        binary = copy;
    }
    let work = folder.path().join("work");
    fs::create_dir(&work).unwrap();
    fs::set_permissions(&work, fs::Permissions::from_mode(0o777)).unwrap();
    fs::write(work.join("text.txt"), crate::house::text(7)).unwrap();
    fs::write(work.join("calm.yaml"), CALM).unwrap();
    let limited = |line: &str| -> crate::house::Done {
        let mut command = std::process::Command::new("bash");
        command.args(["-c", &format!("ulimit -u 1; exec \"$0\" {line}")]).arg(&binary);
        command.current_dir(&work).env("CALM_DEVICE", "cpu").env_remove("RUST_BACKTRACE");
        if administrator {
            command.uid(54_321).gid(54_321);
        }
        // A process that another test starts may hold the copy open for writing until it has become another program.
        loop {
            let done: crate::house::Done = command.output().unwrap().into();
            if !done.err.contains("Text file busy") {
                return done;
            }
        }
    };
    let done = limited("config quickstart --threads 3");
    assert_eq!(done.code, 1, "{}", done.err);
    assert!(done.err.contains("starts no 3 threads") && done.err.contains("--threads 1"), "{}", done.err);
    // And what it advises works.
    for line in
        ["config quickstart", "train -c calm.yaml --stage autoencoder --set train.autoencoder.steps=5"]
    {
        let done = limited(&format!("{line} --threads 1"));
        assert_eq!(done.code, 0, "{}", done.err);
    }
}

#[test]
fn a_baseline_refuses_what_only_a_calm_can_do() {
    let house = trained();
    for option in [&["--sampler", "exact"][..], &["--draws", "5"], &["--fallback"]] {
        let args = [&["generate", "--run", "runs/baseline"], option].concat();
        house.refuses(&args, &[option[0], "leave"]);
    }
    house.refuses(&["generate", "--run", "runs/baseline", "-t", "100"], &["from 0 to 10"]);
}

#[test]
fn runs_below_the_folder_of_text_are_left_out_and_said() {
    let house = House::new();
    let yaml = BASELINE.replace("text.txt", ".").replace("validation: 0.3", "validation: { path: text.txt }");
    fs::create_dir(house.path("data")).unwrap();
    house.write("data/b.yaml", yaml.replace("context: 64", "context: 8"));
    house.write("data/text.txt", "some text to read\n".repeat(40));
    let train = |extra: &[&str]| -> crate::house::Done {
        let args = [&["train", "--config", "b.yaml", "--skip-scores"], extra].concat();
        house.command(&args).current_dir(house.path("data")).output().unwrap().into()
    };
    let first = train(&["--out", "runs/one"]);
    assert_eq!(first.code, 0, "{}", first.err);
    let record = |run: &str| -> serde_json::Value {
        serde_json::from_str(&house.read(&format!("data/runs/{run}/run.json"))).unwrap()
    };
    // The same text again, though a run and what it left behind have come.
    let second = train(&["--out", "runs/two"]);
    assert_eq!(second.code, 0, "{}", second.err);
    assert_eq!(record("one")["corpus_hash"], record("two")["corpus_hash"]);
    assert!(second.err.contains("left out: 1 output of calm"), "{}", second.err);
}

#[test]
fn printed_commands_can_be_pasted() {
    let house = House::new();
    let out = "runs of mine/it's $1";
    let done = house.run(&["init", "--config", "baseline.yaml", "--out", out]);
    assert_eq!(done.code, 0, "{}", done.err);
    let next: Vec<Vec<String>> = done
        .err
        .lines()
        .filter_map(|line| line.trim().strip_prefix("calm "))
        .map(|line| shlex::split(line).unwrap())
        .collect();
    assert!(next.len() >= 2, "{}", done.err);
    for words in next {
        let words: Vec<&str> = words.iter().map(|w| if w == "TEXT" { "text.txt" } else { w }).collect();
        assert!(words.contains(&out), "{words:?}");
        house.ok(&words);
    }
}

#[test]
fn weights_of_others_are_looked_for_before_anything_is_made() {
    let house = House::new();
    house.ok(&["init", "--config", "baseline.yaml", "--out", "other"]);
    fs::remove_dir_all(house.path("other/lm")).unwrap();
    for (option, folder) in [("--init-from", "nowhere"), ("--init-from", "other"), ("--autoencoder", "other")]
    {
        let config = if option == "--autoencoder" { "calm.yaml" } else { "baseline.yaml" };
        let args = ["train", "--config", config, "--out", "new", option, folder];
        house.refuses(&args, &[option, folder, "the folder of a run"]);
        assert!(!house.path("new").exists());
    }
}

#[test]
fn places_that_cannot_be_written_have_a_remedy_of_the_command() {
    let house = trained();
    let file = house.path("text.txt").to_string_lossy().into_owned();
    house.refuses(&["export", "--run", "runs/calm", "--out", &file], &["is a file", "--out"]);
    let inside = format!("{file}/cache");
    let args = ["eval", "brierlm", "--run", "runs/calm", "--cache", &inside];
    house.refuses(&args, &["the cache", "cannot be written", "--cache"]);
    if cfg!(target_os = "linux") {
        let full = house.error(&["latents", "--run", "runs/calm", "--out", "/dev/full"]);
        assert!(full.contains("free some disk space, or choose another place with --out"), "{full}");
        assert!(!full.contains("--resume"), "{full}");
    }
    // A run is not among what `report` can be given by an option.
    let nowhere = house.error(&["report", "nowhere"]);
    assert!(!nowhere.contains("--run"), "{nowhere}");
}

#[test]
fn runs_on_other_text_are_told_apart_by_their_text() {
    let house = trained();
    house.write("other.txt", crate::house::text(8));
    let other = trained().path("runs-other").to_string_lossy().into_owned();
    let brief = ["--set", "train.lm.steps=5", "--skip-scores", "--out", &other, "--restart"];
    let other_text = ["train", "--config", "baseline.yaml", "--set", "data.source.path=other.txt"];
    house.ok(&[&other_text[..], &brief].concat());
    house.refuses(&["report", "runs/baseline", &other], &["another text", "name runs of one text"]);
}
