//! The first minute, made short.

use crate::house::House;

/// As short as it shows everything.
const SHORT: [&str; 15] = [
    "demo",
    "--set",
    "data.source={path: text.txt}",
    "--set",
    "train.autoencoder.steps=60",
    "--set",
    "train.lm.steps=20",
    "--set",
    "train.lm.warmup_steps=5",
    "--set",
    "train.lm.checkpoint_every=0",
    "--set",
    "eval.documents=4",
    "--set",
    "eval.bootstrap=50",
];

#[test]
fn a_demonstration_shows_all_parts_within_a_terminal_and_what_to_do_next() {
    let house = House::new();
    let done = house.run(&SHORT);
    assert_eq!(done.code, 0, "{}", done.err);
    for part in [
        "1. Text that was held out, in chunks of 2 tokens",
        "2. Each chunk becomes a vector of 32 numbers",
        "3. The decoder gives the text back",
        "σ = 0.5",
        "4. What it writes",
        "T = 1/3",
        "BrierLM",
        "bigram",
    ] {
        assert!(done.out.contains(part), "no `{part}` in\n{}", done.out);
    }
    for (text, name) in [(&done.out, "stdout"), (&done.err, "stderr")] {
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{name}: {line}");
        }
        assert!(!text.contains('\u{1b}'), "no colours in a pipe");
    }
    let next = done.err.rsplit_once("next:").expect("what comes next").1;
    assert_eq!(next.lines().filter(|line| line.trim().starts_with("calm ")).count(), 3, "{next}");
    // Again it is shown, and nothing is trained.
    let before = house.read("runs/demo/metrics.jsonl");
    let again = house.run(&["demo"]);
    assert_eq!((again.code, &again.out), (0, &done.out), "{}", again.err);
    assert_eq!(house.read("runs/demo/metrics.jsonl"), before);
}

#[test]
fn without_the_default_corpus_the_book_is_the_text() {
    let house = House::new();
    let mut command = house.command(&[
        "demo",
        "--set",
        "train.autoencoder={steps: 5, batch_rows: 4, context: 32, learning_rate: 1e-3}",
        "--set",
        "train.lm={steps: 5, batch_rows: 4, context: 32, learning_rate: 1e-3}",
        "--set",
        "eval.documents=2",
    ]);
    // No program that knows where crates lie, and none in the folder where they would lie.
    command.env("CARGO", house.path("no-cargo")).env("CARGO_HOME", house.path("no-crates"));
    let done: crate::house::Done = command.output().unwrap().into();
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("this program's own book is the text"), "{}", done.err);
    // A source that somebody named is not replaced.
    let wrong = House::new().run(&["demo", "--set", "data.source={crates: nowhere.yaml}"]);
    assert!(wrong.code != 0 && wrong.err.contains("nowhere.yaml"), "{}", wrong.err);
}
