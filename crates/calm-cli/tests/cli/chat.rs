//! Fine-tuning on conversations, and `calm generate --chat`.

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
    house.refuses(&plain, &["holds no conversations", "data.loss_on: all"]);
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
