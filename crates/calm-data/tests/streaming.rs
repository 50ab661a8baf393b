//! Prepared in shards or in one file, at once or after stops, read again or remembered: the same documents in the same
//! order.

#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use calm_data::{
    BpeConfig, CharsConfig, Corpus, Cut, DataConfig, Error, Layout, Preparation, Progress, Source,
    TokenizerConfig, Validation, prepare_with,
};

/// Small, so that a small text has many sections and shards.
const CUT: Cut = Cut { whole_bytes: 0, section_tokens: 3000, section_documents: 64, shard_bytes: 20_000 };

fn write_text(path: &Path, documents: usize) {
    let mut text = String::new();
    for i in 0..documents {
        let words = "some words about something ".repeat(1 + i * 7 % 11);
        writeln!(text, "{{\"text\": \"document {i}: {words}\"}}").unwrap();
    }
    fs::write(path, text).unwrap();
}

fn data(path: &Path) -> DataConfig {
    DataConfig {
        source: Source::Path(path.into()),
        validation: Validation::Share(0.1),
        ..DataConfig::default()
    }
}

fn sharded(data: &DataConfig, cache: &Path) -> Corpus {
    let how = Preparation { cut: CUT, ..Preparation::default() };
    prepare_with(data, &TokenizerConfig::Bpe(BpeConfig::of_size(300)), cache, how, &mut |_| ()).unwrap()
}

fn whole(data: &DataConfig, cache: &Path) -> Corpus {
    let tokenizer = TokenizerConfig::Bpe(BpeConfig::of_size(300));
    prepare_with(data, &tokenizer, cache, Preparation::default(), &mut |_| ()).unwrap()
}

fn documents(corpus: &Corpus) -> Vec<Vec<(Vec<u32>, u64)>> {
    let of = |file: &calm_data::TokenFile| {
        (0..file.len()).map(|i| (file.document(i).to_vec(), file.byte_len(i))).collect()
    };
    vec![of(&corpus.train), of(&corpus.validation)]
}

/// Token files of a cache with their bytes.
fn files(cache: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = fs::read_dir(cache.join("tokens")).unwrap().map(|f| f.unwrap().path());
    let mut files: Vec<(PathBuf, Vec<u8>)> = folders
        .flat_map(|folder| fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect::<Vec<_>>())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn shards_hold_the_documents_of_one_file() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jsonl");
    write_text(&text, 1500);
    let data = data(&text);
    let (one, many) = (whole(&data, &folder.path().join("a")), sharded(&data, &folder.path().join("b")));
    assert_eq!((one.train.sections(), one.hash.as_str()), (1, many.hash.as_str()));
    assert!(many.train.sections() > 20 && many.validation.sections() > 1, "{:?}", many.train);
    many.train.verify().unwrap();
    assert_eq!(documents(&one), documents(&many));
    assert_eq!(one.summary, many.summary);
    // And on one thread, to the byte.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| sharded(&data, &folder.path().join("c")));
    let names = |cache: &str| {
        let strip = |(path, bytes): (PathBuf, Vec<u8>)| {
            (path.strip_prefix(folder.path().join(cache)).unwrap().to_owned(), bytes)
        };
        files(&folder.path().join(cache)).into_iter().map(strip).collect::<Vec<_>>()
    };
    assert!(names("b") == names("c"), "the bytes differ");
}

#[test]
fn a_preparation_that_was_stopped_goes_on_and_ends_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jsonl");
    write_text(&text, 1500);
    let data = data(&text);
    let cache = folder.path().join("cache");
    let expected = documents(&sharded(&data, &cache));
    let all = files(&cache);
    assert!(all.len() > 8, "{}", all.len());
    // As a stop leaves it: the first shards are whole, nothing else is there.
    for kept in [0, 1, 4, 7] {
        for (path, _) in &all {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in
            all.iter().filter(|(path, _)| path.to_string_lossy().contains("train-")).take(kept)
        {
            fs::write(path, bytes).unwrap();
        }
        assert_eq!(documents(&sharded(&data, &cache)), expected, "{kept} shards were there");
        assert!(files(&cache) == all, "{kept} shards were there: the bytes differ");
    }
}

#[test]
fn a_limit_and_several_readings_choose_the_same_documents() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jsonl");
    write_text(&text, 900);
    let data = DataConfig { max_bytes: Some(60_000), ..data(&text) };
    let (one, many) = (whole(&data, &folder.path().join("a")), sharded(&data, &folder.path().join("b")));
    assert!(one.train.text_bytes() <= 60_000 && one.train.text_bytes() > 59_000);
    assert_eq!(documents(&one), documents(&many));
}

#[test]
fn rows_of_shards_are_laid_once_an_epoch_and_their_numbers_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jsonl");
    write_text(&text, 1500);
    let cache = folder.path().join("cache");
    let corpus = sharded(&data(&text), &cache);
    let layout = Layout { chunk_size: 4, context: 16, bos_chunk: true };
    let plan = corpus.plan(layout, 1).unwrap();
    let rows = plan.rows().unwrap();
    let counts: Vec<PathBuf> = files(&cache)
        .into_iter()
        .map(|f| f.0)
        .filter(|f| f.to_string_lossy().contains(".rows-4-16-1"))
        .collect();
    assert_eq!(counts.len(), 1);
    let batch = plan.batch(0, 0..rows, rows).unwrap();
    let tokens = batch.ids.len();
    assert!(tokens as u64 > corpus.train.tokens());
    // With numbers from the file, and with a file that is damaged.
    assert_eq!(corpus.plan(layout, 1).unwrap().rows().unwrap(), rows);
    fs::write(&counts[0], b"something else").unwrap();
    let again = corpus.plan(layout, 1).unwrap();
    assert_eq!(again.batch(3, 0..5, 7).unwrap(), plan.batch(3, 0..5, 7).unwrap());
}

#[test]
fn a_large_text_is_not_read_twice_and_a_changed_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    fs::create_dir(&text).unwrap();
    // Above 64 MiB; few letters, so that characters are quick.
    let line = "la li lu ".repeat(2000);
    for n in 0..6 {
        let lines: Vec<String> = (0..800).map(|i| format!("{{\"text\": \"{n} {i} {line}\"}}")).collect();
        let path = text.join(format!("{n}.jsonl"));
        fs::write(&path, lines.join("\n")).unwrap();
        // Not as young as what was just written.
        let old = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        fs::File::options().append(true).open(&path).unwrap().set_modified(old).unwrap();
    }
    let (data, cache) = (data(&text), folder.path().join("cache"));
    let prepare = |how: Preparation| {
        let mut read = false;
        let mut changed = Vec::new();
        let corpus =
            prepare_with(&data, &TokenizerConfig::Chars(CharsConfig {}), &cache, how, &mut |p| match p {
                Progress::Reading { .. } => read = true,
                Progress::Changed { what } => changed.push(what),
                _ => {}
            });
        (corpus.unwrap().hash, read, changed)
    };
    let usual = Preparation::default();
    let (first, read, _) = prepare(usual);
    assert!(read);
    assert_eq!(prepare(usual), (first.clone(), false, vec![]));
    assert_eq!(prepare(Preparation { read_again: true, ..usual }), (first.clone(), true, vec![]));
    let three = text.join("3.jsonl");
    fs::write(&three, format!("{{\"text\": \"{line}\"}}")).unwrap();
    let (second, read, changed) = prepare(usual);
    assert!(read && second != first);
    assert_eq!(changed, [three.to_string_lossy()]);
}

#[test]
fn a_text_without_a_second_document_cannot_be_divided() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jsonl");
    write_text(&text, 1);
    let how = Preparation::default();
    let error =
        prepare_with(&data(&text), &TokenizerConfig::default(), folder.path(), how, &mut |_| ()).unwrap_err();
    assert!(matches!(error, Error::TooSmall { documents: 1, .. }), "{error}");
}

#[test]
fn merges_are_learned_from_a_sample_of_the_stated_size() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.jsonl");
    write_text(&text, 900);
    let learned = |sample_bytes: u64| {
        let tokenizer = TokenizerConfig::Bpe(BpeConfig { vocab_size: 300, sample_bytes });
        let (mut counted, cache) = (0, folder.path().join(format!("cache-{sample_bytes}")));
        let how = Preparation::default();
        let corpus = prepare_with(&data(&text), &tokenizer, &cache, how, &mut |progress| {
            if let Progress::TrainingTokenizer { total, .. } = progress {
                counted = total;
            }
        });
        let corpus = corpus.unwrap();
        (counted, corpus.tokenizer_hash, corpus.train.text_bytes())
    };
    let (all, whole, bytes) = learned(64 << 20);
    assert_eq!(all, bytes);
    // The longest document has some 300 bytes, and whole ones are taken.
    let (some, sampled, _) = learned(20_000);
    assert!((19_600..=20_000).contains(&some), "{some}");
    assert_ne!(sampled, whole);
    assert_eq!(learned(bytes).1, whole, "a sample that is everything");
}
