//! Bad input: one clear error with a remedy, and what was saved stays whole.

use std::fs;
use std::io::Write;

use crate::house::{House, text, trained};

fn train<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--config", "calm.yaml"], extra].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn text_that_cannot_be_read_is_named_with_what_to_do() {
    let house = House::new();
    house.write("empty.txt", "");
    house.write("binary.txt", b"abc\x00\xff\xfe");
    house.write("latin1.txt", b"caf\xe9 au lait");
    house.write("no-text.jsonl", "{\"text\": \"fine\"}\n{\"body\": \"no\"}\n");
    house.write("cut.jsonl", "{\"text\": \"fine\"}\n{\"text\": \"cut of");
    house.write("tiny.txt", "one");
    fs::create_dir(house.path("empty")).unwrap();
    let whole = gzip(text(7).as_bytes());
    house.write("cut.txt.gz", &whole[..whole.len() / 2]);
    house.write("cut.txt.zst", b"\x28\xb5\x2f\xfd\x04\x00\x51\x00");
    house.write("no.txt.gz", "this is no gzip");
    for (file, parts) in [
        ("nowhere.txt", &["no such file", "check the path"][..]),
        ("empty.txt", &["no text", "give a text file"]),
        ("empty", &["no text", "give a text file"]),
        ("binary.txt", &["not a text file", "UTF-8"]),
        ("latin1.txt", &["not a text file", "UTF-8"]),
        ("no-text.jsonl", &["line 2", "`text`"]),
        ("cut.jsonl", &["line 2", "cut short"]),
        ("cut.txt.gz", &["gzip", "cut short"]),
        ("cut.txt.zst", &["zstd", "cut short"]),
        ("no.txt.gz", &["gzip", "not compressed"]),
        ("tiny.txt", &["cannot be divided", "give more text"]),
    ] {
        let set = format!("data.source.path={file}");
        house.refuses(&train(&["--set", &set]), &[&[file], parts].concat());
    }
    house.write("tok.json", "{}");
    house.refuses(&train(&["--set", "tokenizer={file: tok.json}"]), &["tok.json", "tokenizer"]);
    // Nothing of it stands in the way of the run once its text is there.
    let brief = ["train.autoencoder.steps=5", "train.lm.steps=5"];
    house.ok(&train(&["--stage", "autoencoder", "--set", brief[0], "--set", brief[1], "-q"]));
    house.refuses(&["eval", "brierlm", "--data", "binary.txt"], &["binary.txt", "UTF-8"]);
}

#[test]
fn whole_compressed_text_is_read() {
    let house = House::new();
    house.write("text.txt.gz", gzip(text(7).as_bytes()));
    let out = house.ok(&train(&["--set", "data.source.path=text.txt.gz", "--dry-run"]));
    assert!(out.contains("text.txt.gz"), "{out}");
}

#[test]
fn a_place_that_cannot_be_written_to_is_named() {
    let house = House::new();
    for out in ["text.txt/run", "text.txt"] {
        house.refuses(&train(&["--out", out]), &["text.txt", "hint:", "--out"]);
    }
    house
        .refuses(&train(&["--cache", "text.txt/cache"]), &["text.txt/cache", "cannot be written", "--cache"]);
    // Losing the results to a full disk is a failure, unlike a closed pipe.
    if let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") {
        let done = house.command(&["config", "calm.yaml"]).stdout(full).output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.code() == Some(1) && err.contains("cannot write the results"), "{err}");
    }
}

#[test]
fn a_damaged_checkpoint_is_an_error_that_names_the_file() {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    for (stage, step) in [("lm", "step-20"), ("autoencoder", "step-60")] {
        let name = format!("runs/calm/{stage}/{step}/model.safetensors");
        let bytes = fs::read(house.path(&name)).unwrap();
        for damaged in [&bytes[..bytes.len() - 9], &bytes[..5], &[]] {
            house.write(&name, damaged);
            house.refuses(&["generate", "--checkpoint", "latest"], &["model.safetensors", "damaged"]);
            house.refuses(&["eval", "brierlm", "--checkpoint", "latest"], &["model.safetensors", "damaged"]);
        }
        house.write(&name, &bytes);
    }
    house.ok(&["generate", "-n", "3"]);
    let state = "runs/calm/lm/step-20/state.json";
    house.write(state, "{");
    house.refuses(&["generate"], &["state.json", "damaged", "hint:"]);
    house.write("runs/calm/run.json", "{");
    house.refuses(&["generate"], &["run.json", "damaged", "hint:"]);
    house.write("runs/calm/config.yaml", "version: 1\nmodel: nothing\n");
    house.refuses(&["generate"], &["config.yaml", "model"]);
}

#[test]
fn a_run_does_not_change_its_model_tokenizer_or_text() {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    let before = house.read("runs/calm/config.yaml");
    for set in ["model.calm.chunk_size=2", "tokenizer={chars: {}}", "tokenizer.bpe.vocab_size=310", "seed=4"]
    {
        let key = set.split_once('=').unwrap().0;
        house.refuses(&train(&["--set", set]), &["another configuration", key, "hint:", "--restart"]);
        house.refuses(&train(&["--set", set, "--resume"]), &["another configuration", key, "hint:", "--out"]);
    }
    assert_eq!(house.read("runs/calm/config.yaml"), before);

    // The same configuration on another text.
    house.write("text.txt", text(8));
    house.refuses(&train(&["--resume"]), &["the text has changed", "hint:", "--restart"]);
    house.refuses(&["eval", "brierlm"], &["the text has changed", "hint:", "--data"]);
    house.refuses(&["eval", "autoencoder"], &["the text has changed", "hint:", "--data"]);
    house.ok(&["eval", "autoencoder", "--data", "text.txt"]);

    // A tokenizer or weights from elsewhere.
    house.write("text.txt", text(7));
    let own = fs::read(house.path("runs/calm/tokenizer.json")).unwrap();
    let foreign = fs::read(trained().path("runs/baseline/tokenizer.json")).unwrap();
    house.write("runs/calm/tokenizer.json", foreign);
    house.refuses(&["generate"], &["tokenizer.json", "not the tokenizer", "hint:"]);
    house.write("runs/calm/tokenizer.json", own);
    let config = before.replace("chunk_size: 3", "chunk_size: 2");
    house.write("runs/calm/config.yaml", &config);
    house.refuses(&["generate"], &["config.yaml is damaged", "hint:", "first line"]);
    // Who means it takes the checksum out.
    house.write("runs/calm/config.yaml", config.split_once('\n').unwrap().1);
    house.refuses(&["generate"], &["does not fit the configuration", "wrong shape", "hint:"]);
    house.write("runs/calm/config.yaml", before);
    house.ok(&["generate", "-n", "3"]);
}

#[test]
fn a_missing_or_unfinished_run_is_an_error_with_a_remedy() {
    let house = House::new();
    house.refuses(&["generate"], &["no run in runs", "hint:", "calm train"]);
    house.refuses(&["eval", "brierlm", "--run", "."], &["not a run", "hint:"]);
    house.ok(&train(&["--stage", "autoencoder", "--set", "train.autoencoder.steps=5", "-q"]));
    house.ok(&["eval", "autoencoder"]);
    house.refuses(&["generate"], &["holds no checkpoint", "hint:"]);
    house.refuses(&["eval", "brierlm"], &["holds no checkpoint", "hint:"]);
    let set = ["--set", "train.autoencoder.steps=5"];
    house.refuses(
        &[&train(&["--stage", "lm", "--out", "runs/new"])[..], &set].concat(),
        &["no autoencoder", "hint:"],
    );
    house.refuses(
        &train(&["--init-from", "nowhere", "--out", "runs/new"]),
        &["nowhere", "not a run", "hint:"],
    );
    house.refuses(&train(&["--autoencoder", "nowhere", "--out", "runs/new"]), &["nowhere", "hint:"]);
}

#[test]
fn a_diverging_loss_ends_the_run_with_what_to_change() {
    let house = House::new();
    let set = ["--set", "train.autoencoder.learning_rate=1e30", "--set", "train.autoencoder.warmup_steps=0"];
    let error = house.error(&train(&set));
    for part in ["autoencoder", "at step 2", "hint:", "--set train.autoencoder.learning_rate"] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_format_that_needs_a_gpu_is_refused_without_one() {
    let house = House::new();
    house.refuses(&train(&["--set", "precision=bf16"]), &["bf16", "hint:", "precision=f32"]);
}
