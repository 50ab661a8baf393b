//! Fine-tuning on conversations, and `calm generate --chat`.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::sync::LazyLock;

use crate::house::{BASELINE, Done, House, trained};

/// Questions of two letters, which are answered by the first of them.
fn talks() -> String {
    let talk = |i: usize| {
        let letter = |n: usize| ["a", "b", "c", "d"][n % 4];
        let (first, second) = (letter(i), letter(i / 4));
        serde_json::json!({ "messages": [
            { "role": "system", "content": "Say it." },
            { "role": "user", "content": format!("{first}{second}") },
            { "role": "assistant", "content": first },
            { "role": "user", "content": format!("{second}{first}") },
            { "role": "assistant", "content": second },
        ] })
        .to_string()
            + "\n"
    };
    (0..64).map(talk).collect()
}

const TALKS: [&str; 6] = [
    "--set",
    "data.source={path: talks.jsonl}",
    "--set",
    "data.column=messages",
    "--set",
    "data.template=chatml",
];

/// A baseline on conversations as text in `runs/text`, and fine-tuned on the answers in `runs/chat`.
static TUNED: LazyLock<House> = LazyLock::new(|| {
    let house = House::new();
    house.write("talks.jsonl", talks());
    house.write("talk.yaml", BASELINE.replace("context: 64", "context: 200"));
    let text = ["train", "--config", "talk.yaml", "--out", "runs/text", "--set", "train.lm.steps=40"];
    house.ok(&[text.as_slice(), &TALKS].concat());
    let tune = ["train", "--config", "talk.yaml", "--out", "runs/chat", "--init-from", "runs/text"];
    let answers = ["--set", "data.loss_on=answers", "--set", "train.lm.steps=150"];
    house.ok(&[tune.as_slice(), &TALKS, &answers].concat());
    house
});

fn chat(house: &House, args: &[&str], said: &[u8]) -> Done {
    let mut child = house
        .command(&[&["generate", "--chat"], args].concat())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(said).unwrap();
    child.wait_with_output().unwrap().into()
}

#[test]
fn a_fine_tuned_run_answers_line_by_line_and_stops_at_the_mark() {
    let args = ["--run", "runs/chat", "--temperature", "0", "--system", "Say it.", "-n", "12"];
    let done = chat(&TUNED, &args, b"ad\n\ncb\n");
    assert_eq!((done.code, done.out.as_str()), (0, "a\nc\n"), "{}", done.err);
    assert_eq!(done.err, "", "nothing but answers");
    // A last line without its end is said, too, and no input is no conversation.
    assert_eq!(chat(&TUNED, &args, b"da").out, "d\n");
    let none = chat(&TUNED, &args, b"");
    assert_eq!((none.code, none.out.as_str()), (0, ""));
}

#[test]
fn a_conversation_that_outgrows_the_context_goes_on_without_its_oldest_turns() {
    let args = ["--run", "runs/chat", "--temperature", "0", "--system", "Say it.", "-n", "12"];
    let said = "ab\n".repeat(6);
    let done = chat(&TUNED, &args, said.as_bytes());
    assert_eq!((done.code, done.out.lines().count()), (0, 6), "{done:?}");
    assert_eq!(done.err.matches("oldest turns are forgotten").count(), 1, "{}", done.err);
    let long = chat(&TUNED, &args, format!("{}\n", "ab".repeat(200)).as_bytes());
    assert!(long.code == 0 && long.err.contains("a context of 199"), "{}", long.err);
}

#[test]
fn a_run_that_knows_no_answers_is_warned_of_and_what_cannot_be_said_is_an_error() {
    for run in ["runs/calm", "runs/baseline"] {
        let done = chat(trained(), &["--run", run, "-n", "5"], "ana\nbolo du\n".as_bytes());
        assert_eq!(done.code, 0, "{}", done.err);
        assert_eq!(done.err.matches("data.loss_on: all").count(), 1, "{}", done.err);
        assert!(done.err.contains("cut after 5 tokens"), "{}", done.err);
        // What a single prompt would be told of; with one token a chunk there is no inside.
        let forced = done.err.contains("turns end inside a chunk that no candidate reproduced");
        assert_eq!(forced, run == "runs/calm", "{}", done.err);
        assert!(done.out.ends_with('\n') && !done.out.contains("> "), "{}", done.out);
        // The seed decides, and turns draw noise of their own.
        assert_eq!(chat(trained(), &["--run", run, "-n", "5"], "ana\nbolo du\n".as_bytes()).out, done.out);
    }
    let bad = chat(&TUNED, &["--run", "runs/chat"], b"a\xff\n");
    assert!(bad.code == 1 && bad.err.contains("give UTF-8 text"), "{}", bad.err);
    let both = TUNED.run(&["generate", "--chat", "--prompt", "a"]);
    assert!(both.code == 2 && both.err.contains("--prompt"), "{}", both.err);
    let alone = TUNED.run(&["generate", "--system", "a"]);
    assert!(alone.code == 2 && alone.err.contains("--chat"), "{}", alone.err);
}

#[test]
fn what_counts_is_shown_counted_and_scored() {
    let house = &*TUNED;
    let answers = ["--config", "talk.yaml", "--set", "data.loss_on=answers"];
    let data = |what: &[&'static str]| -> Vec<&'static str> { [&["data"], what, &answers, &TALKS].concat() };
    let out = house.ok(&data(&["sample", "-n", "1"]));
    // One letter and its mark, at one token a chunk.
    assert!(out.contains("▸<|▸||▸i|▸m|▸_|▸e") && out.contains("[<BOS>|<||"), "{out}");
    let json = house.json(&data(&["sample", "-n", "1", "--format", "json"]));
    let counting = json[0]["counting"].as_array().unwrap();
    assert!(counting.contains(&true.into()) && counting.contains(&false.into()));
    let info = house.json(&data(&["info", "--format", "json"]));
    let (counts, documents) = (&info["train"]["counting"], info["train"]["documents"].as_u64().unwrap());
    // Two answers of a letter, `<|im_end|>` and a new line, and EOS.
    assert_eq!(
        (counts["tokens"].as_u64(), counts["chunks"].as_u64()),
        (Some(24 * documents), Some(25 * documents))
    );
    assert!(house.ok(&data(&["info"])).contains("chunks that count, K = 1"));
    let scores = |run: &str| house.json(&["eval", "brierlm", "--run", run, "--format", "json"]);
    let (text, tuned) = (scores("runs/text"), scores("runs/chat"));
    let positions = |scores: &serde_json::Value| scores["positions"].as_u64().unwrap_or_default();
    assert!(positions(&tuned) > 0 && positions(&tuned) < positions(&text), "{tuned}\n{text}");
    // Other conversations are read as those that it was trained on.
    let other =
        house.json(&["eval", "brierlm", "--run", "runs/chat", "--data", "talks.jsonl", "--format", "json"]);
    assert!(positions(&other) > 0 && other["text_hash"] != tuned["text_hash"], "{other}");
    house.write("plain.txt", "no conversation");
    let plain = ["eval", "brierlm", "--run", "runs/chat", "--data", "plain.txt"];
    house.refuses(&plain, &["holds no conversations", "`--loss-on all`"]);
}

#[test]
fn a_run_that_learned_answers_is_scored_on_plain_text_too() {
    let house = &*TUNED;
    house.write("some.txt", "abcd dcba abcd\n".repeat(20));
    house.write("some.jsonl", serde_json::json!({ "text": "abcd dcba abcd" }).to_string());
    let all = ["--loss-on", "all", "--format", "json"];
    for (data, more) in [("some.txt", &[][..]), ("some.jsonl", &["--column", "text"]), ("talks.jsonl", &[])] {
        let args = ["eval", "brierlm", "--run", "runs/chat", "--data", data];
        let positions =
            |more: &[&str]| house.json(&[&args[..], more].concat())["positions"].as_u64().unwrap();
        let of_all = positions(&[more, &all].concat());
        assert!(of_all > 0, "{data}");
        if data == "talks.jsonl" {
            assert!(of_all > positions(&["--format", "json"]), "of answers there are fewer");
        }
    }
    let done = house.run(&["eval", "brierlm", "--run", "runs/chat", "--loss-on", "all"]);
    assert!(done.code == 2 && done.err.contains("--data"), "{}", done.err);
}

#[test]
fn an_autoencoder_takes_all_of_a_text_whatever_its_run_counts() {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    trained().copy_run("runs/calm", &house, "runs/answers");
    let config = house.read("runs/calm/config.yaml");
    let config = config.split_once('\n').unwrap().1.replace("loss_on: all", "loss_on: answers");
    assert!(config.contains("loss_on: answers"), "{config}");
    house.write("runs/answers/config.yaml", config);
    house.write("plain.txt", "ana bolo du ".repeat(40));
    let eval = |run: &str| {
        house.json(&["eval", "autoencoder", "--run", run, "--data", "plain.txt", "--format", "json"])
    };
    assert_eq!(eval("runs/answers"), eval("runs/calm"));
    let latents = |run: &str| {
        house.ok(&["latents", "--run", run, "--data", "plain.txt", "--out", "l.npy"]);
        fs::read(house.path("l.npy")).unwrap()
    };
    assert_eq!(latents("runs/answers"), latents("runs/calm"));
}

#[test]
fn what_could_not_be_scored_in_the_end_is_refused_before_it_is_trained() {
    let house = House::new();
    let talk = |i: usize| {
        let content = ["a", "b", "c"][i % 3];
        let messages =
            [("user", format!("{i}")), ("assistant", content.to_owned()), ("user", content.to_owned())];
        let messages =
            messages.map(|(role, content)| serde_json::json!({ "role": role, "content": content }));
        serde_json::json!({ "messages": messages }).to_string() + "\n"
    };
    house.write("talks.jsonl", (0..64).map(talk).collect::<String>());
    // An answer is a letter and its mark: two tokens, where a score needs four.
    let template =
        "data.template={user: {before: 'Q: ', after: \"\\n\"}, assistant: {before: 'A: ', after: .}}";
    let args = [
        &["train", "--config", "baseline.yaml", "--out", "runs/short"][..],
        &TALKS[..4],
        &["--set", template, "--set", "data.loss_on=answers", "--set", "train.lm.steps=6"],
    ]
    .concat();
    house.refuses(&args, &["nothing to score in the held-out documents", "--skip-scores"]);
    assert!(!house.path("runs/short/run.json").exists());
    house.ok(&[&args[..], &["--skip-scores"]].concat());
}

#[test]
fn settings_of_conversations_are_checked_and_explained() {
    let house = House::new();
    let config = |set: &str| ["config", "baseline.yaml", "--set", set].map(str::to_owned);
    let refuses = |set: &str, parts: &[&str]| {
        let args = config(set);
        house.refuses(&args.each_ref().map(String::as_str), parts);
    };
    refuses("data.template=vicuna", &["chatml", "llama3"]);
    refuses("data.loss_on=answer", &["answers"]);
    refuses("data.template={user: {}, assistant: {}}", &["template.assistant.after", "where an answer ends"]);
    refuses("data.template={user: {befor: a}, assistant: {after: b}}", &["befor"]);
    let own = "data.template={user: {before: 'Q: '}, assistant: {before: 'A: ', after: \"\\n\"}}";
    assert!(house.ok(&config(own).each_ref().map(String::as_str)).contains("before: 'Q: '"));
    for (key, words) in [("data.template", ["chatml", "llama3"]), ("data.loss_on", ["answers", "all"])] {
        let out = house.ok(&["config", "--explain", key]);
        assert!(words.iter().all(|word| out.contains(word)), "{out}");
    }
}
