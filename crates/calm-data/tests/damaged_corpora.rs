//! What is prepared of a text, in shards as a large one is, with bits flipped and ends cut off: made anew and named, or an
//! error that names the file; never other rows.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "../../calm-train/tests/common/harm.rs"]
mod harm;
#[path = "../../calm-train/tests/common/place.rs"]
mod place;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use calm_data::{
    BpeConfig, Cut, DataConfig, Layout, Preparation, Progress, Source, TokenFile, TokenizerConfig,
    Validation, prepare_with,
};
use harm::{Came, harm};

/// Small, so that a small text has many sections and shards.
const CUT: Cut = Cut { whole_bytes: 0, section_tokens: 400, section_documents: 16, shard_bytes: 4000 };
const LAYOUT: Layout = Layout { chunk_size: 4, context: 16, bos_chunk: true };

fn write_text(path: &Path) {
    let mut text = String::new();
    for i in 0..150 {
        let words = "some words about something ".repeat(1 + i * 7 % 11);
        writeln!(text, "{{\"text\": \"document {i}: {words}\"}}").unwrap();
    }
    fs::write(path, text).unwrap();
}

/// What a run takes of a text: all documents of both sides, all rows of an epoch.
#[derive(PartialEq)]
struct Taken {
    documents: Vec<(Vec<u32>, u64)>,
    rows: Vec<u32>,
    tokenizer: String,
    described: String,
}

fn take(text: &Path, cache: &Path) -> Came<Taken> {
    let data = DataConfig {
        source: Source::Path(text.into()),
        validation: Validation::Share(0.1),
        ..DataConfig::default()
    };
    let mut warnings = Vec::new();
    let mut take = || -> calm_data::Result<Taken> {
        let how = Preparation { cut: CUT, ..Preparation::default() };
        let tokenizer = TokenizerConfig::Bpe(BpeConfig::of_size(300));
        let corpus = prepare_with(&data, &tokenizer, cache, how, &mut |progress| {
            if let Progress::Remade { what } = progress {
                warnings.push(what);
            }
        })?;
        let plan = corpus.plan(LAYOUT, 1)?;
        let rows = plan.rows()?;
        // Sections are compared with their hashes when their rows are laid; what is scored is verified as a whole.
        let rows = plan.batch(0, 0..rows, rows)?.ids;
        corpus.train.verify()?;
        corpus.validation.verify()?;
        let all = |file: &TokenFile| -> Vec<_> {
            (0..file.len()).map(|i| (file.document(i).to_vec(), file.byte_len(i))).collect()
        };
        let documents = [all(&corpus.train), all(&corpus.validation)].concat();
        let described = format!("{:?}", corpus.summary);
        Ok(Taken { documents, rows, tokenizer: corpus.tokenizer_hash, described })
    };
    let of = take().map_err(|e| e.to_string());
    Came { of, warnings }
}

fn a_corpus(cases: u64) -> BTreeMap<&'static str, u64> {
    let begin = tempfile::tempdir().unwrap();
    let text = tempfile::tempdir().unwrap();
    let text = text.path().join("text.jsonl");
    fs::create_dir_all(text.parent().unwrap()).unwrap();
    write_text(&text);
    // Twice: the second start reads what the first one kept.
    let first = take(&text, begin.path()).of.unwrap();
    let wanted = take(&text, begin.path()).of.unwrap();
    assert!(first == wanted);
    let names: Vec<String> =
        harm::files(begin.path()).iter().map(|name| name.display().to_string()).collect();
    for kind in [".index", "-00001.tokens", ".rows-4-16-1", "tokenizers/"] {
        assert!(names.iter().any(|name| name.contains(kind)), "{kind} is not there: {names:?}");
    }
    harm(
        begin.path(),
        cases,
        &wanted,
        |place| take(&text, place),
        |_, _, now| (now != wanted).then(|| "another text".into()),
    )
}

#[test]
fn some_harm_to_every_file_of_a_prepared_text_is_noticed_or_does_not_matter() {
    let count = a_corpus(120);
    let noticed: u64 = count.iter().filter(|(what, _)| **what != "no difference").map(|(_, n)| n).sum();
    assert!(noticed > 60, "{count:?}");
}

#[test]
#[ignore = "two thousand changes: a minute"]
fn two_thousand_changes_of_a_prepared_text_are_noticed_or_do_not_matter() {
    println!("a prepared text is opened: {:?}", a_corpus(2000));
}
