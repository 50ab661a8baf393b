//! From a configuration to token files, and what the cache may and may not do.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use calm_data::source::settings::OnBadDocument;
use calm_data::{
    BpeConfig, CharsConfig, Corpus, DataConfig, Error, Layout, Progress, RowPlan, Source, TokenizerConfig,
    Validation, config::ValidationPath, prepare, prepare_file,
};

fn config(path: &Path) -> DataConfig {
    DataConfig {
        source: Source::Path(path.into()),
        validation: Validation::Share(0.2),
        ..DataConfig::default()
    }
}

fn bpe(vocab_size: usize) -> TokenizerConfig {
    TokenizerConfig::Bpe(BpeConfig::of_size(vocab_size))
}

fn write_folder(folder: &Path, documents: usize) {
    fs::create_dir_all(folder).unwrap();
    for i in 0..documents {
        let text = format!("Document {i} says: {}.\n", "some words about something ".repeat(1 + i % 5));
        fs::write(folder.join(format!("{i:03}.txt")), text).unwrap();
    }
}

fn quietly(data: &DataConfig, tokenizer: &TokenizerConfig, cache: &Path) -> Corpus {
    prepare(data, tokenizer, cache, &mut |_| ()).unwrap()
}

/// Names of the jobs that were reported.
fn jobs(data: &DataConfig, tokenizer: &TokenizerConfig, cache: &Path) -> Vec<&'static str> {
    let mut jobs = Vec::new();
    prepare(data, tokenizer, cache, &mut |progress| {
        let job = match progress {
            Progress::Reading { done, total } => (done <= total).then_some("reading"),
            Progress::TrainingTokenizer { done, total } => (done <= total).then_some("training"),
            Progress::LearningMerges => Some("training"),
            Progress::Tokenizing { done, total } => (done <= total).then_some("tokenizing"),
            _ => None,
        };
        jobs.push(job.expect("a known job that does not do more than all"));
    })
    .unwrap();
    jobs.dedup();
    jobs
}

#[test]
fn tokens_decode_to_the_documents_of_both_splits() {
    let folder = tempfile::tempdir().unwrap();
    let (text, cache) = (folder.path().join("text"), folder.path().join("cache"));
    write_folder(&text, 60);
    for tokenizer in [bpe(300), TokenizerConfig::Chars(CharsConfig {})] {
        let corpus = quietly(&config(&text), &tokenizer, &cache);
        assert!(corpus.validation.len() >= 2 && corpus.train.len() > corpus.validation.len());
        let mut texts = Vec::new();
        for file in [&corpus.train, &corpus.validation] {
            file.verify().unwrap();
            for i in 0..file.len() {
                let text = corpus.tokenizer.decode(&file.document(i));
                assert_eq!(text.len() as u64, file.byte_len(i));
                texts.push(text);
            }
        }
        texts.sort();
        let mut expected: Vec<String> =
            fs::read_dir(&text).unwrap().map(|f| fs::read_to_string(f.unwrap().path()).unwrap()).collect();
        expected.sort();
        assert_eq!(texts, expected);
        let summary = &corpus.summary;
        assert_eq!(summary.train.documents + summary.validation.documents, 60);
        assert_eq!(summary.train.tokens, corpus.train.tokens());
        assert_eq!((&summary.hash, &summary.tokenizer_hash), (&corpus.hash, &corpus.tokenizer_hash));
        assert_eq!(summary.vocab_size, corpus.tokenizer.vocab_size());
    }
}

#[test]
fn a_second_time_everything_comes_from_the_cache() {
    let folder = tempfile::tempdir().unwrap();
    let (text, cache) = (folder.path().join("text"), folder.path().join("cache"));
    write_folder(&text, 30);
    let data = config(&text);
    assert_eq!(jobs(&data, &bpe(280), &cache), ["reading", "training", "tokenizing"]);
    assert_eq!(jobs(&data, &bpe(280), &cache), ["reading"]);
    // Another vocabulary is another tokenizer; what was there stays.
    assert_eq!(jobs(&data, &bpe(290), &cache), ["reading", "training", "tokenizing"]);
    assert_eq!(jobs(&data, &bpe(280), &cache), ["reading"]);
    let (one, two) = (quietly(&data, &bpe(280), &cache), quietly(&data, &bpe(290), &cache));
    assert_eq!(one.hash, two.hash);
    assert_ne!(one.tokenizer_hash, two.tokenizer_hash);
    // Changed text is never answered from the cache.
    fs::write(text.join("000.txt"), "something else").unwrap();
    let changed = quietly(&data, &bpe(280), &cache);
    assert_ne!(changed.hash, one.hash);
    assert_eq!(jobs(&data, &bpe(280), &cache), ["reading"]);
}

#[test]
fn the_same_text_gives_the_same_bytes_in_another_cache_and_with_one_thread() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    write_folder(&text, 40);
    let many = quietly(&config(&text), &bpe(320), &folder.path().join("a"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let one = pool.install(|| quietly(&config(&text), &bpe(320), &folder.path().join("b")));
    assert_eq!(many.tokenizer_hash, one.tokenizer_hash);
    for (a, b) in [(&many.train, &one.train), (&many.validation, &one.validation)] {
        assert_eq!(fs::read(a.path().unwrap()).unwrap(), fs::read(b.path().unwrap()).unwrap());
    }
}

#[test]
fn damaged_files_in_the_cache_are_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (text, cache) = (folder.path().join("text"), folder.path().join("cache"));
    write_folder(&text, 20);
    let before = quietly(&config(&text), &bpe(270), &cache);
    let path = before.train.path().unwrap().to_path_buf();
    let bytes = fs::read(&path).unwrap();
    // Not in place: the file is still mapped.
    fs::remove_file(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    for tokenizer in fs::read_dir(cache.join("tokenizers")).unwrap() {
        fs::write(tokenizer.unwrap().path(), "{").unwrap();
    }
    let after = quietly(&config(&text), &bpe(270), &cache);
    assert_eq!(after.train.hash(), before.train.hash());
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

/// Texts of a side.
fn side(corpus: &Corpus, file: &calm_data::TokenFile) -> Vec<String> {
    (0..file.len()).map(|i| corpus.tokenizer.decode(&file.document(i))).collect()
}

#[test]
fn a_document_stays_on_its_side_when_others_come_and_both_sides_have_one_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let path = folder.path().join("text.jsonl");
    let of = |documents: usize, share: f64| {
        let lines: String = (0..documents).map(|n| format!("{{\"text\": \"text {n}\"}}\n")).collect();
        fs::write(&path, lines).unwrap();
        let data = DataConfig { validation: Validation::Share(share), ..config(&path) };
        quietly(&data, &TokenizerConfig::Chars(CharsConfig {}), &cache)
    };
    let (small, large) = (of(500, 0.1), of(1000, 0.1));
    assert!((30..80).contains(&small.validation.len()), "{}", small.validation.len());
    let of_large = side(&large, &large.validation);
    assert!(side(&small, &small.validation).iter().all(|text| of_large.contains(text)));
    assert_eq!(small.train.len() + small.validation.len(), 500);
    for share in [1e-9, 0.5, 0.999_999] {
        let two = of(2, share);
        assert_eq!((two.train.len(), two.validation.len()), (1, 1));
    }
}

#[test]
fn sources_that_are_mixed_keep_their_weights_filters_and_columns() {
    let folder = tempfile::tempdir().unwrap();
    let lines = |name: &str, field: &str, n: usize| {
        let lines: String =
            (0..n).map(|n| format!("{{\"{field}\": \"{name} {n}\", \"score\": {n}}}\n")).collect();
        let path = folder.path().join(name);
        fs::write(&path, lines).unwrap();
        path
    };
    let (a, b) = (lines("a.jsonl", "text", 60), lines("b.jsonl", "body", 40));
    let yaml = format!(
        "source:\n  mix:\n  - {{ source: {{ path: {a:?} }}, weight: 3 }}\n  - {{ source: {{ path: {b:?} }}, column: body, \
         filter: {{ field: {{ score: {{ min: 20 }} }} }} }}\nvalidation: 0.2\n"
    );
    let data: DataConfig = serde_yaml::from_str(&yaml).unwrap();
    let corpus = quietly(&data, &TokenizerConfig::Chars(CharsConfig {}), &folder.path().join("cache"));
    assert_eq!(corpus.train.len() + corpus.validation.len(), 80);
    assert_eq!(corpus.portions.iter().map(|p| p.weight).collect::<Vec<_>>(), [3.0, 1.0]);
    assert_eq!(corpus.summary.skipped.filtered, 20);
    let texts = side(&corpus, &corpus.train);
    assert!(texts.iter().any(|t| t.starts_with("a.jsonl")) && texts.iter().any(|t| t.starts_with("b.jsonl")));
}

#[test]
fn bad_documents_are_left_out_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.jsonl");
    let good: String = (0..50).map(|n| format!("{{\"text\": \"text {n}\"}}\n")).collect();
    fs::write(&path, format!("{good}{{\"text\": \n{good}{{\"text\": 3}}\n{{\"text\": \"\\ud800\"}}\n"))
        .unwrap();
    let chars = TokenizerConfig::Chars(CharsConfig {});
    let cache = folder.path().join("cache");
    let error = prepare(&config(&path), &chars, &cache, &mut |_| ()).unwrap_err();
    assert!(error.to_string().contains("line 51") && error.remedy().unwrap().contains("skip"), "{error}");
    let data = DataConfig { on_bad_document: OnBadDocument::Skip, ..config(&path) };
    let corpus = quietly(&data, &chars, &cache);
    assert_eq!(corpus.train.len() + corpus.validation.len(), 100);
    assert_eq!(corpus.summary.skipped.bad, 3);
    let bad = corpus.summary.bad.join("; ");
    assert!(bad.contains("line 51") && bad.contains("line 102") && bad.contains("line 103"), "{bad}");
    assert!(corpus.summary.description.contains("3 that cannot be read"), "{}", corpus.summary.description);
}

#[test]
fn the_tokenizer_is_trained_on_the_training_split_only() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train.txt"), "only plain letters\n\n".repeat(400)).unwrap();
    fs::write(folder.path().join("held.txt"), "held out: ☃☃☃").unwrap();
    let data = DataConfig {
        validation: Validation::Path(ValidationPath { path: folder.path().join("held.txt") }),
        ..config(&folder.path().join("train.txt"))
    };
    let chars = TokenizerConfig::Chars(CharsConfig {});
    let corpus = quietly(&data, &chars, &folder.path().join("cache"));
    assert_eq!(corpus.tokenizer.encode("☃").unwrap().len(), 3, "as bytes");
    assert_eq!(corpus.tokenizer.decode(&corpus.validation.document(0)), "held out: ☃☃☃");
    assert!(corpus.summary.description.contains("held.txt"));
}

#[test]
fn a_limit_shrinks_the_training_split_alone() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    write_folder(&text, 60);
    let cache = folder.path().join("cache");
    let all = quietly(&config(&text), &bpe(300), &cache);
    let data = DataConfig { max_bytes: Some(all.train.text_bytes() / 3), ..config(&text) };
    let part = quietly(&data, &bpe(300), &cache);
    assert!(part.train.text_bytes() <= all.train.text_bytes() / 3 && part.train.len() > 5);
    assert_eq!(part.validation.text_bytes(), all.validation.text_bytes());
    assert_ne!(part.hash, all.hash);
}

#[test]
fn one_token_file_serves_every_chunk_size() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    write_folder(&text, 30);
    let corpus = quietly(&config(&text), &bpe(300), &folder.path().join("cache"));
    let special = corpus.tokenizer.special();
    for k in [1, 2, 4, 8] {
        let plan = RowPlan::new(&corpus.train, Layout::new(k, 16, true).unwrap(), special, 1).unwrap();
        let rows = plan.rows().unwrap();
        let batch = plan.batch(0, 0..rows, rows).unwrap();
        let mut tokens = 0;
        for i in (0..batch.target.len()).filter(|&i| batch.target[i]) {
            let chunk = batch.chunk(i / batch.context, i % batch.context);
            tokens += chunk.iter().filter(|&&id| id != special.pad && id != special.eos).count() as u64;
        }
        assert_eq!(tokens, corpus.train.tokens(), "K = {k}");
    }
}

#[test]
fn other_text_is_tokenised_with_a_given_tokenizer() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    write_folder(&text, 30);
    let cache = folder.path().join("cache");
    let corpus = quietly(&config(&text), &bpe(300), &cache);
    let other = folder.path().join("other.jsonl");
    fs::write(&other, "{\"text\": \"first\"}\n{\"text\": \"second ☃\"}\n").unwrap();
    for _ in 0..2 {
        let file =
            prepare_file(&other, &DataConfig::default(), &corpus.tokenizer, &cache, &mut |_| ()).unwrap();
        let texts: Vec<String> = (0..2).map(|i| corpus.tokenizer.decode(&file.document(i))).collect();
        assert_eq!(texts, ["first", "second ☃"]);
    }
}

#[test]
fn a_given_tokenizer_is_used_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    write_folder(&text, 30);
    let cache = folder.path().join("cache");
    let trained = quietly(&config(&text), &bpe(300), &cache);
    let path = folder.path().join("tokenizer.json");
    trained.tokenizer.save(&path).unwrap();
    let given = quietly(&config(&text), &TokenizerConfig::File(path), &cache);
    assert_eq!(given.tokenizer_hash, trained.tokenizer_hash);
    assert_eq!(given.train.hash(), trained.train.hash());
}

#[test]
fn what_cannot_work_is_refused_with_a_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    write_folder(&text, 10);
    let cache = folder.path().join("cache");
    let error = |data: &DataConfig, tokenizer: &TokenizerConfig| {
        prepare(data, tokenizer, &cache, &mut |_| ()).unwrap_err()
    };
    let small = error(&config(&text), &bpe(100)).remedy().unwrap();
    assert!(small.contains("259"), "{small}");
    let share = DataConfig { validation: Validation::Share(0.0), ..config(&text) };
    assert!(error(&share, &bpe(300)).to_string().contains("between 0 and 1"));
    let missing = TokenizerConfig::File(folder.path().join("none.json"));
    assert!(matches!(error(&config(&text), &missing), Error::Missing { .. }));
    fs::write(folder.path().join("one.txt"), "short").unwrap();
    assert!(matches!(error(&config(&folder.path().join("one.txt")), &bpe(300)), Error::TooSmall { .. }));
    // A cache folder that is a file.
    let blocked = prepare(&config(&text), &bpe(300), &text.join("000.txt"), &mut |_| ()).unwrap_err();
    assert!(blocked.to_string().contains("000.txt"), "{blocked}");
}
