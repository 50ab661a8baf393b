//! Parquet tables: of our own making, by other writers (`tables/make.py`), and the broken ones.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calm_data::source::settings::{Filter, OnBadDocument};
use calm_data::source::{self, Found, HeldOut};
use calm_data::{DataConfig, Document, Error, Source};
use parquet::basic::{Compression, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;

fn config(path: &Path) -> DataConfig {
    DataConfig { source: Source::Path(path.to_owned()), ..DataConfig::default() }
}

/// All documents, bytes that were read, and what was found.
fn read(config: &DataConfig) -> Result<(Vec<Document>, u64, Found), Error> {
    let opened = source::open(config)?;
    assert!(matches!(opened.held_out, HeldOut::Share(_)));
    let text = &opened.parts[0].text;
    let mut stream = text.read()?;
    let mut documents = Vec::new();
    for document in stream.by_ref() {
        documents.push(document?);
    }
    Ok((documents, stream.read_bytes(), stream.found()))
}

fn texts(config: &DataConfig) -> Vec<String> {
    read(config).unwrap().0.into_iter().map(|d| d.text).collect()
}

fn told(config: &DataConfig) -> String {
    let error = read(config).map(|(documents, ..)| documents.len()).unwrap_err();
    format!("{error}; {}", error.remedy().unwrap())
}

/// What `make.py` writes.
fn expected() -> Vec<String> {
    (0..300).map(|n| format!("text {n} {}", "words é ☃ ".repeat(n % 7))).collect()
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tables").join(name)
}

const SCHEMA: &str = "message rows { optional binary text (STRING); optional binary language (STRING); required int64 n; required double score; }";

/// A text, and a language, of each row.
type Rows<'a> = [(Option<&'a [u8]>, Option<&'a str>)];

fn column(group: &mut SerializedRowGroupWriter<'_, File>, values: impl Iterator<Item = Option<Vec<u8>>>) {
    let values: Vec<Option<Vec<u8>>> = values.collect();
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let bytes: Vec<ByteArray> = values.into_iter().flatten().map(ByteArray::from).collect();
    let mut writer = group.next_column().unwrap().unwrap();
    writer.typed::<ByteArrayType>().write_batch(&bytes, Some(&levels), None).unwrap();
    writer.close().unwrap();
}

/// A table with a row group for each of `groups`.
fn write(path: &Path, groups: &[&Rows]) {
    let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()));
    let schema = Arc::new(parse_message_type(SCHEMA).unwrap());
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties.build())).unwrap();
    for rows in groups {
        let mut group = writer.next_row_group().unwrap();
        column(&mut group, rows.iter().map(|row| row.0.map(<[u8]>::to_vec)));
        column(&mut group, rows.iter().map(|row| row.1.map(|language| language.as_bytes().to_vec())));
        let numbers: Vec<i64> = (0..rows.len() as i64).collect();
        let mut n = group.next_column().unwrap().unwrap();
        n.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
        n.close().unwrap();
        let scores: Vec<f64> = numbers.iter().map(|n| *n as f64 / 2.0).collect();
        let mut score = group.next_column().unwrap().unwrap();
        score.typed::<DoubleType>().write_batch(&scores, None, None).unwrap();
        score.close().unwrap();
        group.close().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn tables_of_all_writers_hold_the_same_rows() {
    let mut seen = 0;
    for entry in fs::read_dir(fixture("")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".parquet") || name.contains("messages") {
            continue;
        }
        assert!(path.metadata().unwrap().len() < 20_000, "{name} is small");
        let (documents, bytes, _) = read(&config(&path)).unwrap();
        assert!(documents.iter().map(|d| d.text.as_str()).eq(expected()), "{name}");
        assert_eq!(documents[299].id, format!("{name}:300"));
        assert_eq!(bytes, path.metadata().unwrap().len(), "{name}");
        seen += 1;
    }
    assert!(seen >= 9, "{seen} tables");
}

#[test]
fn rows_are_chosen_by_other_columns() {
    for name in ["pyarrow-zstd.parquet", "pyarrow-v2.parquet", "polars.parquet", "duckdb.parquet"] {
        let filter = |yaml: &str| {
            let filter: Filter = serde_yaml::from_str(yaml).unwrap();
            texts(&DataConfig { filter, ..config(&fixture(name)) })
        };
        let of = |keep: &dyn Fn(usize) -> bool| -> Vec<String> {
            expected().into_iter().enumerate().filter(|(n, _)| keep(*n)).map(|(_, text)| text).collect()
        };
        assert_eq!(filter("field: { language: de }"), of(&|n| n % 3 == 1), "{name}");
        assert_eq!(
            filter("field: { language: [en, de], score: { min: 2.5 } }"),
            of(&|n| n % 3 < 2 && n >= 250)
        );
        assert_eq!(filter("field: { good: true, id: { max: 9 } }"), of(&|n| n % 2 == 0 && n < 10));
        assert_eq!(filter("field: { meta.source: s1, meta.year: 2003 }"), of(&|n| n % 20 == 3));
        assert_eq!(filter("max_bytes: 12"), of(&|n| expected()[n].len() <= 12));
    }
}

#[test]
fn a_column_is_named_or_there_is_a_list_of_them() {
    let path = fixture("pyarrow-zstd.parquet");
    let with = |column: &str| DataConfig { column: Some(column.to_owned()), ..config(&path) };
    assert_eq!(texts(&with("meta.source")).len(), 300);
    let error = told(&with("body"));
    for part in ["no column `body`", "`id` (int64)", "`text` (text)", "`meta.year` (int64)", "data.column"] {
        assert!(error.contains(part), "{error}");
    }
    assert!(told(&with("id")).contains("`id` (int64) does not hold text"));
    let error = told(&config(&fixture("pyarrow-messages.parquet")));
    assert!(error.contains("list of text"), "{error}");
    let error =
        told(&DataConfig { filter: serde_yaml::from_str("field: { lang: en }").unwrap(), ..config(&path) });
    assert!(error.contains("no column `lang`") && error.contains("data.filter"), "{error}");
}

#[test]
fn messages_are_one_text_in_tables_and_in_records() {
    let expected = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>\n";
    let with = |path: &Path| DataConfig { column: Some("messages".to_owned()), ..config(path) };
    let tables = ["pyarrow-messages.parquet", "polars-messages.parquet", "duckdb-messages.parquet"];
    for name in tables {
        let texts = texts(&with(&fixture(name)));
        assert_eq!(texts[0], expected, "{name}");
        assert_eq!(texts.len(), 2, "{name}: a row without messages has no text");
        assert_eq!(texts[1], "<|im_start|>assistant\n<|im_end|>\n", "{name}: nothing was said");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("chat.jsonl");
    let lines = [
        r#"{"messages": [{"role": "user", "content": "hello", "x": [1]}, {"content": "hi", "role": "assistant"}]}"#,
        r#"{"messages": [{"from": "user", "value": "hello"}, {"from": "assistant", "value": "hi"}]}"#,
        r#"{"messages": [{"role": "assistant", "content": null}]}"#,
        r#"{"messages": []}"#,
    ];
    fs::write(&path, lines.join("\n")).unwrap();
    assert_eq!(texts(&with(&path)), [expected, expected, "<|im_start|>assistant\n<|im_end|>\n"]);
    for bad in
        [r#"["hello"]"#, r#"[{"content": "x"}]"#, r#"[{"role": "user", "content": 3}]"#, r#"[{"role": 1}]"#]
    {
        fs::write(&path, format!("{{\"messages\": {bad}}}\n")).unwrap();
        assert!(told(&with(&path)).contains("no `messages` field"), "{bad}");
    }
}

#[test]
fn a_folder_may_hold_tables_beside_text() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.txt"), "first").unwrap();
    write(&folder.path().join("b.PARQUET"), &[&[(Some(b"second"), None)]]);
    fs::write(folder.path().join("c.jsonl"), "{\"text\": \"third\"}\n").unwrap();
    assert_eq!(texts(&config(folder.path())), ["first", "second", "third"]);
}

#[test]
fn rows_without_text_stop_or_are_left_out_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let first: &Rows = &[(Some(b"one"), Some("en")), (None, None), (Some(b""), None)];
    let second: &Rows = &[(Some(b"a\xffb"), None), (Some(b"a\0b"), None), (Some(b"two"), None)];
    write(&path, &[first, second]);
    let error = told(&config(&path));
    assert!(error.contains("row 2 of row group 1") && error.contains("on_bad_document: skip"), "{error}");
    let skip = DataConfig { on_bad_document: OnBadDocument::Skip, ..config(&path) };
    let (documents, _, found) = read(&skip).unwrap();
    assert_eq!(documents.iter().map(|d| d.id.as_str()).collect::<Vec<_>>(), ["t.parquet:1", "t.parquet:6"]);
    assert_eq!((found.skipped.bad, found.bad.len()), (3, 3));
    assert!(
        found.bad[1].contains("row 1 of row group 2") && found.bad[1].contains("invalid UTF-8 at byte 1")
    );
    assert!(found.bad[2].contains("a zero byte") && found.description.contains("3 that cannot be read"));
}

#[test]
fn a_damaged_table_is_named_with_the_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    // Text that does not compress well.
    let mut state = 1u32;
    let mut letters = |n: usize| -> String {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'a' + (state >> 27) as u8 % 26)
        };
        (0..n).map(|_| next()).collect()
    };
    let texts: Vec<String> = (0..200).map(|_| letters(300)).collect();
    let group: Vec<(Option<&[u8]>, Option<&str>)> =
        texts.iter().map(|t| (Some(t.as_bytes()), Some("en"))).collect();
    write(&path, &[&group, &group]);
    let whole = fs::read(&path).unwrap();
    for length in [whole.len() - 5, whole.len() / 2, 4, 9] {
        fs::write(&path, &whole[..length]).unwrap();
        let error = told(&config(&path));
        assert!(error.contains("damaged or cut short") && error.contains("copy it again"), "{error}");
    }
    // A page of the first group's texts.
    let mut bytes = whole.clone();
    bytes[5_000..5_100].fill(0xaa);
    fs::write(&path, &bytes).unwrap();
    let error = told(&config(&path));
    assert!(error.contains("row group 1, column `text`") && error.contains("skip"), "{error}");
    let (documents, _, found) =
        read(&DataConfig { on_bad_document: OnBadDocument::Skip, ..config(&path) }).unwrap();
    assert_eq!((documents.len(), found.skipped.bad), (200, 1), "the second group is whole");
    assert_eq!(documents[0].id, "t.parquet:201");
    for (bytes, said) in [
        (&b"PARE\0\0"[..], "encrypted"),
        (b"hello", "is none"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"", "is none"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = told(&config(&path));
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn a_table_is_known_by_its_beginning_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("table");
    write(&path, &[&[(Some(b"one"), None)]]);
    assert_eq!(texts(&config(&path)), ["one"]);
    let packed = folder.path().join("t.parquet.gz");
    let bytes = zstd::encode_all(&fs::read(&path).unwrap()[..], 1).unwrap();
    fs::write(&packed, bytes).unwrap();
    assert!(told(&config(&packed)).contains("zstd"));
}
