//! Conversations: what is text and which of it counts, from the record to the rows.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use calm_data::chat::{Conversations, LossOn, Message, Template};
use calm_data::source::settings::OnBadDocument;
use calm_data::{
    Batch, CharsConfig, Corpus, Cut, DataConfig, Layout, Preparation, RowPlan, Source, TokenizerConfig,
    prepare_with,
};

/// Small, so that a small text has many sections and shards.
const CUT: Cut = Cut { whole_bytes: 0, section_tokens: 600, section_documents: 6, shard_bytes: 3000 };

/// A conversation of a number, with names of roles as several data sets have them.
fn talk(i: usize) -> Vec<Message> {
    let roles = [["user", "assistant"], ["human", "gpt"]][i % 2];
    let mut messages = Vec::new();
    if i.is_multiple_of(5) {
        messages.push(Message::new("system", "Be brief."));
    }
    for turn in 0..1 + i % 3 {
        messages.push(Message::new(roles[0], format!("{i} plus {turn}?")));
        messages.push(Message::new(roles[1], format!("It is {}.", i + turn)));
    }
    if i.is_multiple_of(4) {
        messages.push(Message::new("user", "Thank you."));
    }
    messages
}

fn line(messages: &[Message], i: usize) -> String {
    let [role, content] = [["role", "content"], ["from", "value"]][i % 2];
    let messages: Vec<_> =
        messages.iter().map(|m| serde_json::json!({ role: m.role, content: m.content })).collect();
    serde_json::json!({ "messages": messages }).to_string() + "\n"
}

fn write_talks(path: &Path, talks: std::ops::Range<usize>) {
    fs::write(path, talks.map(|i| line(&talk(i), i)).collect::<String>()).unwrap();
}

fn data(path: &Path, loss_on: LossOn) -> DataConfig {
    DataConfig {
        source: Source::Path(path.into()),
        column: Some("messages".to_owned()),
        loss_on,
        ..DataConfig::default()
    }
}

/// With 0 to 59 to train on, and 60 to 69 held out.
fn answers(folder: &Path) -> DataConfig {
    let [train, held_out] = ["train.jsonl", "held-out.jsonl"].map(|name| folder.join(name));
    write_talks(&train, 0..60);
    write_talks(&held_out, 60..70);
    let validation = serde_json::json!({ "path": held_out });
    DataConfig { validation: serde_json::from_value(validation).unwrap(), ..data(&train, LossOn::Answers) }
}

fn prepare(data: &DataConfig, cache: &Path, cut: Cut) -> calm_data::Result<Corpus> {
    let how = Preparation { cut, ..Preparation::default() };
    prepare_with(data, &TokenizerConfig::Chars(CharsConfig::default()), cache, how, &mut |_| ())
}

/// What counts of a conversation, token by token (a token is a character), with EOS.
fn expected(i: usize) -> Vec<bool> {
    let of = Conversations { template: Template::default(), loss_on: LossOn::Answers };
    let rendered = of.render(&talk(i)).unwrap();
    let mut counts = vec![false; rendered.text.len()];
    rendered.answers.unwrap().into_iter().for_each(|range| counts[range].fill(true));
    counts.push(*counts.last().unwrap());
    counts
}

/// Chunk of a document -> how often it is a target, and how often it is predicted.
type Seen = BTreeMap<(u32, u32), [usize; 2]>;

fn look(batch: &Batch, seen: &mut Seen) {
    for at in 0..batch.target.len() {
        let entry = |at: usize| (batch.documents[at], batch.chunk_index[at]);
        if batch.target[at] {
            seen.entry(entry(at)).or_default()[0] += 1;
        }
        if batch.predicts[at] {
            seen.entry(entry(at + 1)).or_default()[1] += 1;
        }
    }
}

/// Whether the lane of a batch says of every token what is expected; `first` is the number of the first conversation.
fn check_lane(batch: &Batch, bos_chunk: bool, first: usize) {
    let k = batch.chunk_size;
    for at in (0..batch.filled.len()).filter(|at| batch.filled[*at]) {
        let expected = expected(first + batch.documents[at] as usize);
        for n in 0..k {
            let token = (batch.chunk_index[at] as usize * k + n).checked_sub(if bos_chunk { k } else { 0 });
            let counts = token.and_then(|token| expected.get(token).copied()).unwrap_or(false);
            assert_eq!(batch.counts(at / batch.context, at % batch.context, n), counts);
        }
    }
}

#[test]
fn a_chunk_is_predicted_if_any_of_its_tokens_counts_and_every_chunk_is_a_target_once() {
    let folder = tempfile::tempdir().unwrap();
    let corpus = prepare(&answers(folder.path()), &folder.path().join("cache"), CUT).unwrap();
    assert!(corpus.train.sections() > 8 && corpus.train.is_marked() && corpus.validation.is_marked());
    let special = corpus.tokenizer.special();
    for (chunk_size, context, bos_chunk) in
        [(1, 32, true), (1, 300, false), (2, 9, true), (3, 20, false), (4, 16, true), (8, 64, true)]
    {
        let layout = Layout { chunk_size, context, bos_chunk };
        let plan = corpus.plan(layout, 3).unwrap();
        let rows = corpus.plan(layout, 3).unwrap().rows().unwrap();
        let batch = plan.batch(0, 0..rows, rows).unwrap();
        check_lane(&batch, bos_chunk, 0);
        let mut seen = Seen::new();
        look(&batch, &mut seen);
        let mut counted = 0;
        for document in 0..60 {
            let expected = expected(document);
            for (chunk, tokens) in expected.chunks(chunk_size).enumerate() {
                let index = chunk + usize::from(bos_chunk);
                let counts = usize::from(index > 0 && tokens.contains(&true));
                let [target, predicted] = seen.remove(&(document as u32, index as u32)).unwrap();
                assert_eq!((target, predicted), (1, counts), "{layout:?}, {document}, chunk {chunk}");
                counted += counts;
            }
        }
        assert!(seen.is_empty(), "{seen:?}");
        assert_eq!(batch.predict_count(), counted);
        // For one token a chunk these are exactly the tokens of answers, with an EOS that ends one.
        if (chunk_size, bos_chunk) == (1, true) {
            assert_eq!(counted, (0..60).flat_map(expected).filter(|counts| *counts).count());
        }
        let documents: Vec<usize> = (0..10).collect();
        let held_out =
            RowPlan::evaluation(&corpus.validation, layout, special, &documents, Default::default()).unwrap();
        let batch = held_out.batch(0..held_out.rows());
        check_lane(&batch, bos_chunk, 60);
        assert_eq!(batch.predict_count() as u64, held_out.predicted_chunks());
        // All joined, without EOS; what falls off at the end is not seen.
        let blocks = layout.reference_blocks(&corpus.validation, Some(special.bos)).unwrap();
        let joined: Vec<bool> = (60..70)
            .flat_map(|i| {
                let mut counts = expected(i);
                counts.pop();
                counts.insert(0, false);
                counts
            })
            .collect();
        let batch = blocks.batch(0..blocks.rows());
        let lane = batch.counting.as_ref().unwrap();
        assert_eq!(lane[..], joined[..lane.len()]);
        for (at, chunk) in lane.chunks(chunk_size).enumerate().filter(|(at, _)| at % context > 0) {
            assert_eq!(batch.predicts[at - 1], chunk.contains(&true));
        }
    }
}

#[test]
fn shards_one_file_and_a_stopped_preparation_hold_the_same_marks() {
    let folder = tempfile::tempdir().unwrap();
    let data = answers(folder.path());
    let one = prepare(&data, &folder.path().join("one"), Cut::default()).unwrap();
    let cache = folder.path().join("many");
    let many = prepare(&data, &cache, CUT).unwrap();
    assert_eq!((one.train.sections(), &one.hash), (1, &many.hash));
    let counts = |corpus: &Corpus| -> Vec<Vec<bool>> {
        let file = &corpus.train;
        let of = |i: usize| (0..=file.document_len(i)).map(move |t| file.counting(i).unwrap().token(t));
        (0..file.len()).map(|i| of(i).collect()).collect()
    };
    assert_eq!(counts(&one), (0..60).map(expected).collect::<Vec<_>>());
    assert_eq!(counts(&one), counts(&many));
    many.train.verify().unwrap();
    // As a stop leaves it: some shards, and no index.
    let tokens = fs::read_dir(cache.join("tokens")).unwrap().next().unwrap().unwrap().path();
    let names = ["train.index", "train-00002.tokens"].map(|name| tokens.join(name));
    let bytes = names.clone().map(|name| fs::read(name).unwrap());
    names.iter().for_each(|name| fs::remove_file(name).unwrap());
    let again = prepare(&data, &cache, CUT).unwrap();
    assert_eq!((again.train.hash(), counts(&again)), (many.train.hash(), counts(&many)));
    assert!(names.map(|name| fs::read(name).unwrap()) == bytes, "the bytes differ");
    // Rows are the same after a stop and from any number of readers, and their hash knows of the marks.
    let layout = Layout { chunk_size: 2, context: 16, bos_chunk: true };
    let [a, b] = [&many, &again].map(|corpus| corpus.plan(layout, 5).unwrap());
    for step in [0, 7, 90] {
        let whole = a.batch(step, 0..4, 4).unwrap();
        let halves = [b.batch(step, 0..1, 4).unwrap(), b.batch(step, 1..4, 4).unwrap()];
        assert_eq!(
            halves.each_ref().map(|half| half.counting.clone().unwrap()).concat(),
            whole.counting.clone().unwrap()
        );
        assert_eq!(Batch::hash(&halves), Batch::hash(std::slice::from_ref(&whole)));
        assert_ne!(Batch::hash(&[Batch { counting: None, ..whole.clone() }]), Batch::hash(&[whole]));
    }
}

/// What version 0.1 and its followers make of conversations: text, all of which counts.
#[test]
fn by_default_text_tokens_and_the_names_of_their_files_are_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.jsonl");
    let mut text = String::new();
    for i in 0..40 {
        let mut messages = talk(i);
        messages.retain(|message| message.content != "Thank you.");
        if i % 7 == 0 {
            let at = usize::from(i % 5 == 0);
            messages.insert(at, Message::new("narrator", "So it began."));
        }
        text += &line(&messages, i);
    }
    fs::write(&path, text).unwrap();
    let cache = folder.path().join("cache");
    let corpus = prepare(&data(&path, LossOn::All), &cache, Cut::default()).unwrap();
    assert_eq!(corpus.hash, "24437e3f74dc8688e32b3db4c062f150fb28bc778f9c304dedd2d531b5669d74");
    assert_eq!(corpus.train.hash(), "05190bb17d35e93e938f25cb6b783fed0a1273962f3545e468c54ed80726b2f6");
    assert!(cache.join("tokens/1da1cae46c49c7e96ae681ba174ed22f/train.tokens").exists());
    assert!(!corpus.train.is_marked());
}

#[test]
fn templates_and_what_counts_have_texts_and_hashes_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let base = answers(folder.path());
    let cache = folder.path().join("cache");
    let own = r#"{"user": {"before": "Q: "}, "assistant": {"before": "A: ", "after": "."}, "system": {}}"#;
    let mut hashes = Vec::new();
    for template in ["\"chatml\"", "\"llama3\"", own] {
        for loss_on in [LossOn::All, LossOn::Answers] {
            let template: Template = serde_json::from_str(template).unwrap();
            let corpus = prepare(&DataConfig { template, loss_on, ..base.clone() }, &cache, CUT).unwrap();
            assert_eq!(corpus.train.is_marked(), loss_on == LossOn::Answers);
            hashes.push(corpus.hash);
        }
    }
    hashes.sort();
    hashes.dedup();
    assert_eq!(hashes.len(), 6);
}

#[test]
fn what_is_no_conversation_is_named_or_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.jsonl");
    let cache = folder.path().join("cache");
    let told = |data: &DataConfig| {
        let error = prepare(data, &cache, Cut::default()).unwrap_err();
        format!("{error}; {}", error.remedy().unwrap_or_default())
    };
    let good = line(&talk(1), 0) + &line(&talk(2), 0);
    for (bad, what) in [
        (r#"{"messages": []}"#, "line 3: the conversation is empty"),
        (r#"{"messages": [{"role": "user", "content": "x"}]}"#, "line 3: the conversation has no answer"),
        (r#"{"messages": [{"role": "asistant", "content": "x"}]}"#, "line 3: the role `asistant` is none of"),
        (r#"{"messages": "a text"}"#, "line 3: `messages` is a text"),
    ] {
        let mut text = good.clone();
        writeln!(text, "{bad}").unwrap();
        fs::write(&path, text).unwrap();
        let stop = data(&path, LossOn::Answers);
        let error = told(&stop);
        assert!(error.contains(what) && error.contains("on_bad_document: skip"), "{error}");
        let skip = DataConfig { on_bad_document: OnBadDocument::Skip, ..stop };
        let corpus = prepare(&skip, &cache, Cut::default()).unwrap();
        assert_eq!((corpus.summary.skipped.bad, corpus.train.len() + corpus.validation.len()), (1, 2));
        // Of all there is nothing that could be trained on.
        fs::write(&path, format!("{bad}\n{bad}\n")).unwrap();
        let error = told(&skip);
        assert!(error.contains("no text in it") && error.contains("line 1"), "{error}");
    }
    let text = folder.path().join("plain.txt");
    fs::write(&text, "No conversation.\n\nNone.").unwrap();
    let error = told(&data(&text, LossOn::Answers));
    assert!(error.contains("holds no conversations") && error.contains("loss_on: all"), "{error}");
    let error = told(&DataConfig { loss_on: LossOn::Answers, ..DataConfig::default() });
    assert!(error.contains("data.loss_on"), "{error}");
}

#[test]
fn one_bad_conversation_does_not_take_a_file_of_a_folder_along() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let records = folder.path().join("talks");
    fs::create_dir(&records).unwrap();
    let array = |lines: &str| format!("[{}]", lines.trim_end().replace('\n', ","));
    let talks: String = (0..9).map(|i| line(&talk(i), 0)).collect();
    fs::write(records.join("a.json"), array(&(talks + "{\"messages\": []}\n"))).unwrap();
    fs::write(records.join("b.json"), array(&line(&talk(20), 0))).unwrap();
    fs::write(records.join("settings.json"), "{\"width\": 3}").unwrap();
    let stop =
        DataConfig { validation: calm_data::Validation::Share(0.3), ..data(&records, LossOn::Answers) };
    let error = prepare(&stop, &cache, Cut::default()).unwrap_err().to_string();
    assert!(error.contains("a.json") && error.contains("the conversation is empty"), "{error}");
    let skip = DataConfig { on_bad_document: OnBadDocument::Skip, ..stop };
    let corpus = prepare(&skip, &cache, Cut::default()).unwrap();
    assert_eq!((corpus.summary.skipped.bad, corpus.train.len() + corpus.validation.len()), (1, 10));
}

#[test]
fn other_text_is_read_like_the_text_of_the_training() {
    let template: Template = serde_yaml::from_str("llama3").unwrap();
    for loss_on in [LossOn::All, LossOn::Answers] {
        let like = DataConfig {
            template: template.clone(),
            on_bad_document: OnBadDocument::Skip,
            ..data(Path::new("a"), loss_on)
        };
        let other = DataConfig { source: Source::Path("b".into()), ..DataConfig::default() }.read_like(&like);
        assert_eq!(
            (&other.template, other.loss_on, other.on_bad_document),
            (&template, loss_on, OnBadDocument::Skip)
        );
        assert_eq!(other.column.is_some(), loss_on == LossOn::Answers);
        assert_eq!(other.source, Source::Path("b".into()));
    }
}

#[test]
fn sources_of_crates_have_no_answers_in_a_mix_either() {
    let text = "{ source: { mix: [ { source: { crates: a.yaml } }, { source: { path: b.jsonl } } ] }, loss_on: answers }";
    let data: DataConfig = serde_yaml::from_str(text).unwrap();
    let mut problems = calm_config::Problems::new();
    data.validate(&mut problems);
    assert_eq!(problems.paths(), ["loss_on"]);
}

#[test]
fn a_share_of_each_window_may_be_input_and_costs_no_token_file() {
    let of = |text: &str| serde_yaml::from_str::<DataConfig>(text);
    let data = of("{ source: { path: a }, loss_on: { after_share: 0.25 } }").unwrap();
    assert_eq!(data.loss_on, LossOn::AfterShare(0.25));
    let yaml = serde_yaml::to_string(&data).unwrap();
    assert!(yaml.contains("after_share: 0.25") && !yaml.contains('!'), "{yaml}");
    assert_eq!(of(&yaml).unwrap(), data);
    assert_eq!(serde_json::from_str::<DataConfig>(&serde_json::to_string(&data).unwrap()).unwrap(), data);
    for (share, paths) in
        [("0", &[][..]), ("1", &["loss_on.after_share"]), ("-0.1", &["loss_on.after_share"])]
    {
        let data = of(&format!("{{ source: {{ path: a }}, loss_on: {{ after_share: {share} }} }}")).unwrap();
        let mut problems = calm_config::Problems::new();
        data.validate(&mut problems);
        assert_eq!(problems.paths(), paths, "{share}");
    }
    assert!(of("loss_on: { after: 0.5 }").is_err());

    let folder = tempfile::tempdir().unwrap();
    let (cache, text) = (folder.path().join("cache"), folder.path().join("a.jsonl"));
    let lines: String = (0..20).map(|i| format!("{{\"text\": \"number {i} of some\"}}\n")).collect();
    fs::write(&text, lines).unwrap();
    let base =
        DataConfig { source: Source::Path(text), validation: calm_data::Validation::Share(0.3), ..data };
    let some = prepare(&base, &cache, Cut::default()).unwrap();
    let all = prepare(&DataConfig { loss_on: LossOn::All, ..base }, &cache, Cut::default()).unwrap();
    assert_eq!((all.train.hash(), all.train.path()), (some.train.hash(), some.train.path()));
    let layout = Layout { chunk_size: 2, context: 16, bos_chunk: true };
    let predicted =
        |corpus: &Corpus| corpus.plan(layout, 1).unwrap().batch(0, 0..1, 1).unwrap().predict_count();
    assert!(predicted(&some) < predicted(&all), "{} of {}", predicted(&some), predicted(&all));
}

#[test]
fn a_table_of_messages_is_read_as_records_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let tables = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables");
    let lines = folder.path().join("chat.jsonl");
    let hello = [Message::new("user", "hello"), Message::new("assistant", "hi")];
    fs::write(&lines, line(&hello, 0) + &line(&[Message::new("assistant", "")], 0)).unwrap();
    let records = prepare(&data(&lines, LossOn::Answers), &cache, Cut::default()).unwrap();
    for name in ["pyarrow-messages.parquet", "polars-messages.parquet", "duckdb-messages.parquet"] {
        let stop = data(&tables.join(name), LossOn::Answers);
        let error = prepare(&stop, &cache, Cut::default()).unwrap_err().to_string();
        assert!(error.contains("of row group 1: the conversation is empty"), "{name}: {error}");
        let skip = DataConfig { on_bad_document: OnBadDocument::Skip, ..stop };
        assert_eq!(prepare(&skip, &cache, Cut::default()).unwrap().hash, records.hash, "{name}");
    }
}
