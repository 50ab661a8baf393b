//! `calm eval` and `calm latents`.

use std::path::Path;

use crate::house::{House, trained};

fn number(v: &serde_json::Value, key: &str) -> f64 {
    v[key].as_f64().unwrap_or_else(|| panic!("{key} in {v}"))
}

#[test]
fn brier_scores_as_json_hold_everything_that_is_promised() {
    let house = trained();
    // Without --run: the latest, which is the CALM.
    let calm = house.json(&["eval", "brierlm", "--format", "json"]);
    let baseline = house.json(&["eval", "brierlm", "--run", "runs/baseline", "--format", "json"]);
    for (report, k) in [(&calm, 3), (&baseline, 1)] {
        assert_eq!(report["chunk_size"], k);
        for list in ["brier", "brier_se"] {
            let list = report[list].as_array().unwrap();
            assert!(list.len() == 4 && list.iter().all(|b| b.is_f64()), "{report}");
        }
        let undefined = report["brier"].as_array().unwrap().iter().any(|b| b.as_f64().unwrap() <= 0.0);
        for key in ["brierlm", "brierlm_se"] {
            let value = report.get(key).unwrap_or_else(|| panic!("{key} in {report}"));
            assert!(value.is_null() || value.is_f64());
        }
        assert_eq!(report["brierlm"].is_null(), undefined, "{report}");
        assert!(number(report, "positions") > 50.0 && number(report, "documents") == 6.0);
        for model in ["unigram", "bigram"] {
            assert_eq!(report["ngram"][model]["brier"].as_array().unwrap().len(), 4);
            assert_eq!(report["ngram"][model]["positions"], report["positions"]);
        }
    }
    let (ce, ppl) = (number(&baseline, "cross_entropy"), number(&baseline, "perplexity"));
    assert!((ce.exp() - ppl).abs() < 1e-9 * ppl && number(&baseline, "bits_per_byte") > 0.0);
    assert!(calm.get("cross_entropy").is_none());
    // More draws at the same positions.
    let more = house.json(&["eval", "brierlm", "--format", "json", "--draws", "6", "--documents", "2"]);
    assert_eq!((number(&more, "samples"), number(&more, "documents")), (6.0, 2.0));
    assert_eq!(calm, house.json(&["eval", "brierlm", "--format", "json", "--threads", "1"]));
}

#[test]
fn tables_are_printed_at_80_columns() {
    let house = trained();
    for args in
        [&["eval", "brierlm"][..], &["eval", "autoencoder"], &["eval", "brierlm", "--run", "runs/baseline"]]
    {
        let out = house.ok(args);
        assert!(out.lines().count() > 4 && out.lines().all(|l| l.chars().count() <= 80), "{out}");
    }
}

#[test]
fn the_autoencoders_report_holds_accuracies_at_growing_noise() {
    let house = trained();
    let r = house.json(&["eval", "autoencoder", "--format", "json"]);
    let (tokens, chunks) = (number(&r, "token_accuracy"), number(&r, "chunk_accuracy"));
    // 60 steps rebuild most of a text of twelve words.
    assert!(tokens > 0.5 && tokens <= 1.0 && chunks <= tokens, "{r}");
    let noise = r["noise"].as_array().unwrap();
    let sigmas: Vec<f64> = noise.iter().map(|n| number(n, "sigma")).collect();
    assert_eq!(sigmas, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]);
    assert_eq!(number(&noise[0], "token_accuracy"), number(&r, "token_accuracy_mean"));
    assert!(number(&noise[5], "token_accuracy") <= number(&noise[0], "token_accuracy"));
    for key in ["cross_entropy", "kl", "collapsed_dimensions"] {
        assert!(number(&r, key) >= 0.0);
    }
    house.refuses(
        &["eval", "autoencoder", "--run", "runs/baseline"],
        &["baseline has no autoencoder", "hint:"],
    );
}

#[test]
fn other_text_is_scored_with_data() {
    let house = trained();
    let files = House::new();
    let at = |name: &str| files.path(name).display().to_string();
    files.write("short.txt", "ana bolo du elf");
    files.write("one.txt", "a");
    files.write("docs.jsonl", "{\"text\": \"ana bolo cédille\"}\n{\"text\": \"halm 日本 jot kel\"}\n");
    for (file, documents) in [("short.txt", 1.0), ("docs.jsonl", 2.0)] {
        let r = house.json(&["eval", "brierlm", "--data", &at(file), "--format", "json"]);
        assert_eq!(number(&r, "documents"), documents, "{file}");
        let r = house.json(&["eval", "autoencoder", "--data", &at(file), "--format", "json"]);
        assert!(number(&r, "token_accuracy") >= 0.0);
    }
    // A single letter is a document too: what cannot be scored is null or undefined, not a failure.
    for command in ["brierlm", "autoencoder"] {
        house.ok(&["eval", command, "--data", &at("one.txt")]);
        house.ok(&["eval", command, "--data", &at("one.txt"), "--run", "runs/calm", "--format", "json"]);
    }
    house.ok(&["eval", "brierlm", "--data", &at("one.txt"), "--run", "runs/baseline"]);
}

#[test]
fn tables_packed_files_and_folders_are_scored_with_data() {
    let house = trained();
    let files = House::new();
    let table =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../calm-data/tests/tables/pyarrow-snappy.parquet");
    std::fs::create_dir(files.path("folder")).unwrap();
    std::fs::copy(&table, files.path("folder/table.parquet")).unwrap();
    let lines = "{\"body\": \"ana bolo cédille\"}\n{\"body\": \"halm 日本 jot kel\"}\n";
    files.write("docs.jsonl.zst", zstd::encode_all(lines.as_bytes(), 1).unwrap());
    let score = |data: &Path, more: &[&str]| {
        let data = data.display().to_string();
        let args = ["eval", "brierlm", "--run", "runs/baseline", "--format", "json", "--data", &data];
        house.json(&[&args[..], more].concat())
    };
    let some = ["--documents", "5", "--chunks", "6"];
    let alone = score(&table, &some);
    assert_eq!(number(&alone, "documents"), 5.0);
    assert_eq!(score(&files.path("folder"), &some), alone);
    assert_eq!(number(&score(&files.path("docs.jsonl.zst"), &["--column", "body"]), "documents"), 2.0);
    let data = files.path("docs.jsonl.zst").display().to_string();
    house.refuses(&["eval", "brierlm", "--data", &data], &["no `text` field"]);
    house.refuses(&["eval", "autoencoder", "--data", "tinystoriez"], &["tinystoriez"]);
}

#[test]
fn any_models_samples_are_scored_from_a_file() {
    let house = House::new();
    house.write(
        "samples.jsonl",
        "{\"document\": 1, \"target\": [1,2,3,4], \"samples\": [[1,2,3,4],[1,2,3,4]]}\n\
         {\"document\": 2, \"target\": [1,2,3,4], \"samples\": [[1,2,3,4],[1,2,3,4]]}\n",
    );
    let r = house.json(&["eval", "brierlm", "--samples", "samples.jsonl", "--format", "json"]);
    // A model that always draws the truth: 2·1 − 1 = 1, that is 100 percent.
    assert_eq!(r["brier"], serde_json::json!([100.0, 100.0, 100.0, 100.0]));
    assert_eq!((number(&r, "brierlm"), number(&r, "documents")), (100.0, 2.0));
    assert!(house.ok(&["eval", "brierlm", "--samples", "samples.jsonl"]).contains("100.00"));
    // What stands in other fields is not looked at, Python's numbers and keys that come twice among it.
    let other =
        "\"loss\": NaN, \"worst\": [-Infinity, 1e400, 99999999999999999999999], \"n\": 1, \"n\": \"NaN\"";
    house.write(
        "more.jsonl",
        format!("{{\"document\": 1, {other}, \"target\": [1,2,3,4], \"samples\": [[1,2,3,4],[1,2,3,4]]}}\n"),
    );
    assert!(house.ok(&["eval", "brierlm", "--samples", "more.jsonl"]).contains("100.00"));
    house.write(
        "bad.jsonl",
        "{\"document\": 1, \"target\": [1,2,3,4], \"samples\": [[1,2,3,4],[1,2,3,4]]}\nnope\n",
    );
    house.write("few.jsonl", "{\"document\": 1, \"target\": [1,2,3,4], \"samples\": [[1,2,3,4]]}\n");
    house.write("empty.jsonl", "");
    house.write("binary.jsonl", b"\xff\xfe\x00");
    for (file, part) in
        [("bad", "line 2"), ("few", "line 1"), ("empty", "no positions"), ("binary", "line 1")]
    {
        house.refuses(&["eval", "brierlm", "--samples", &format!("{file}.jsonl")], &[part, "hint:"]);
    }
    house.refuses(&["eval", "brierlm", "--samples", "none.jsonl"], &["none.jsonl", "hint:"]);
}

#[test]
fn latents_are_written_as_a_numpy_file() {
    let (house, files) = (trained(), House::new());
    let npy = files.path("latents.npy");
    house.ok(&["latents", "--out", npy.to_str().unwrap(), "--documents", "2"]);
    let bytes = std::fs::read(&npy).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let header = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    assert_eq!((10 + header) % 64, 0);
    let text = std::str::from_utf8(&bytes[10..10 + header]).unwrap();
    assert!(text.contains("'descr': '<f4'") && text.contains("'fortran_order': False"), "{text}");
    let shape = text.split_once('(').unwrap().1.split_once(')').unwrap().0;
    let shape: Vec<usize> = shape.split(',').filter_map(|d| d.trim().parse().ok()).collect();
    assert_eq!(shape[1..], [2, 24]);
    let values = &bytes[10 + header..];
    assert_eq!(values.len(), 4 * shape.iter().product::<usize>());
    assert!(shape[0] > 50);
    assert!(values.chunks_exact(4).all(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).is_finite()));
    let nowhere = files.path("text.txt/x.npy");
    house.refuses(&["latents", "--out", nowhere.to_str().unwrap()], &["cannot write", "hint:"]);
    house.refuses(&["latents", "--out", "x.npy", "--documents", "0"], &["--documents 0", "hint:"]);
}
