//! Files and folders as documents, the broken ones included.

use std::io::Write;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }
}

fn read_quietly(path: &Path) -> Result<Read> {
    read(path, &mut |_, _| ())
}

fn texts(path: &Path) -> Vec<String> {
    read_quietly(path).unwrap().documents.into_iter().map(|d| d.text).collect()
}

fn error(path: &Path) -> String {
    let error = read_quietly(path).unwrap_err().told();
    let name = path.file_name().unwrap().to_string_lossy();
    assert!(error.contains(name.as_ref()), "the file is named: {error}");
    error
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zst(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

const LINES: &str = "{\"id\": 1, \"text\": \"one\"}\n\n{\"text\": \"two\\n2\"}\n";

#[test]
fn records_are_read_from_lines_arrays_and_single_objects() {
    let f = Folder::new();
    assert_eq!(texts(&f.write("a.jsonl", LINES)), ["one", "two\n2"]);
    assert_eq!(texts(&f.write("a.json", LINES)), ["one", "two\n2"]);
    assert_eq!(texts(&f.write("b.json", "[\n{\"text\": \"x\"},\n {\"text\": \"y\"}]")), ["x", "y"]);
    assert_eq!(texts(&f.write("c.json", "{\n \"text\": \"x\"\n}\n")), ["x"]);
    let read = read_quietly(&f.path("a.jsonl")).unwrap();
    assert_eq!(read.documents[1].id, "a.jsonl:3");
}

#[test]
fn compressed_files_hold_the_same_documents() {
    let f = Folder::new();
    for (name, bytes) in [
        ("a.jsonl.gz", gz(LINES.as_bytes())),
        ("a.jsonl.zst", zst(LINES.as_bytes())),
        ("a.json.GZ", gz(LINES.as_bytes())),
        // Two compressed parts one after the other are one file.
        ("b.jsonl.gz", [gz(&LINES.as_bytes()[..30]), gz(&LINES.as_bytes()[30..])].concat()),
        ("b.jsonl.zst", [zst(&LINES.as_bytes()[..30]), zst(&LINES.as_bytes()[30..])].concat()),
    ] {
        assert_eq!(texts(&f.write(name, bytes)), ["one", "two\n2"], "{name}");
    }
    assert_eq!(texts(&f.write("t.txt.zst", zst(b"short"))), ["short"]);
}

#[test]
fn a_folder_is_read_in_the_order_of_its_paths_without_hidden_and_binary_files() {
    let f = Folder::new();
    f.write("b.txt", "B");
    f.write("a/z.rs", "Z");
    f.write("a/c.md.gz", gz(b"C"));
    f.write(".git/config", "hidden");
    f.write("a/.hidden", "hidden");
    f.write("image.png", [137, 80, 0, 1]);
    f.write("latin1.txt", [b'a', 0xe9, b'b']);
    f.write("empty.txt", "");
    f.write("settings.json", "{\"width\": 3}");
    f.write("records.jsonl", LINES);
    let found = read_quietly(f.0.path()).unwrap();
    let ids: Vec<&str> = found.documents.iter().map(|d| d.id.as_str()).collect();
    assert_eq!(ids, ["a/c.md.gz", "a/z.rs", "b.txt", "records.jsonl:1", "records.jsonl:3"]);
    assert_eq!(found.documents[0].text, "C");
    assert_eq!(found.skipped, Skipped { binary: 2, hidden: 2, without_text: 2, ..Skipped::default() });
}

#[test]
fn progress_reaches_the_size_of_the_files() {
    let f = Folder::new();
    f.write("a.txt", "12345");
    f.write("b.txt", "678");
    let mut last = (0, 0);
    read(f.0.path(), &mut |done, total| last = (done, total)).unwrap();
    assert_eq!(last, (8, 8));
}

#[test]
fn missing_and_empty_sources_are_errors_with_a_remedy() {
    let f = Folder::new();
    assert!(error(&f.path("none.txt")).contains("check the path"));
    assert!(error(&f.write("empty.txt", "")).contains("there is no text"));
    assert!(error(&f.write("empty.jsonl", "\n")).contains("there is no text"));
    let g = Folder::new();
    g.write("x.bin", [0]);
    assert!(error(g.0.path()).contains("1 binary"));
}

#[test]
fn a_binary_file_is_named_with_the_place() {
    let f = Folder::new();
    assert!(error(&f.write("a.txt", b"ab\0c")).contains("a zero byte at byte 2"));
    assert!(error(&f.write("b.txt", [b'a', 0xff])).contains("invalid UTF-8 at byte 1"));
}

#[test]
fn a_compressed_file_that_is_cut_short_or_damaged_is_named() {
    let f = Folder::new();
    let text = "some text that is long enough to be compressed ".repeat(50);
    for (name, bytes) in [("a.txt.gz", gz(text.as_bytes())), ("a.txt.zst", zst(text.as_bytes()))] {
        assert_eq!(texts(&f.write(name, &bytes)).concat(), text);
        for len in [bytes.len() - 5, bytes.len() / 2, 3] {
            let message = error(&f.write(name, &bytes[..len]));
            assert!(message.contains("damaged or cut short") && message.contains("again"), "{message}");
        }
    }
    assert!(error(&f.write("b.txt.gz", "not compressed")).contains("gzip"));
    assert!(error(&f.write("b.txt.zst", "not compressed")).contains("zstd"));
}

#[test]
fn a_broken_record_is_named_with_its_line() {
    let f = Folder::new();
    let truncated = error(&f.write("a.jsonl", &LINES[..LINES.len() - 6]));
    assert!(truncated.contains("line 3") && truncated.contains("cut short"), "{truncated}");
    let wrong = error(&f.write("b.jsonl", format!("{LINES}{{\"text\": 1 2}}\n")));
    assert!(wrong.contains("line 4") && !wrong.contains("cut short"), "{wrong}");
    assert!(error(&f.write("c.json", "[{\"text\": \"x\"},\n")).contains("cut short"));
}

#[test]
fn a_record_without_text_is_named_with_its_line() {
    let f = Folder::new();
    for line in ["{\"content\": \"x\"}", "{\"text\": null}", "\"text\"", "3"] {
        let message = error(&f.write("a.jsonl", format!("{{\"text\": \"x\"}}\n{line}\n")));
        assert!(message.contains("line 2") && message.contains("`text`"), "{message}");
    }
}

#[cfg(unix)]
#[test]
fn a_forbidden_file_is_an_error_about_permission() {
    use std::os::unix::fs::PermissionsExt;
    let f = Folder::new();
    let path = f.write("secret.txt", "x");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // The administrator may read everything.
    if fs::read(&path).is_err() {
        assert!(error(&path).contains("permission"));
    }
}

#[test]
fn a_byte_order_mark_is_no_part_of_the_text() {
    let f = Folder::new();
    assert_eq!(texts(&f.write("a.txt", "\u{feff}short\u{feff}")), ["short\u{feff}"]);
    assert_eq!(texts(&f.write("a.jsonl", format!("\u{feff}{LINES}"))), ["one", "two\n2"]);
    assert_eq!(texts(&f.write("b.txt.gz", gz("\u{feff}short".as_bytes()))), ["short"]);
    let g = Folder::new();
    g.write("a.txt", "\u{feff}one");
    g.write("b.txt", "\u{feff}");
    assert_eq!(texts(g.0.path()), ["one"]);
}

#[test]
fn a_zstd_frame_with_the_longest_window_is_read() {
    // A frame header with a window of 2 GiB (exponent 21 above 2^10), and one last block of two plain bytes.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x11, 0, 0, b'h', b'i'];
    let f = Folder::new();
    assert_eq!(texts(&f.write("a.txt.zst", frame)), ["hi"]);
    // A frame that is to be skipped, as pzstd writes them, between two others.
    let skipped = [0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let all = [&frame[..], &skipped, &zst(b" there")].concat();
    assert_eq!(texts(&f.write("b.txt.zst", all)), ["hi there"]);
}

#[test]
fn zeros_behind_compressed_text_are_padding_and_other_bytes_are_named() {
    let f = Folder::new();
    for (name, bytes) in [("a.txt.gz", gz(b"short")), ("a.txt.zst", zst(b"short"))] {
        assert_eq!(texts(&f.write(name, [bytes.clone(), vec![0; 512]].concat())), ["short"]);
        let message = error(&f.write(name, [bytes, b"tail".to_vec()].concat()));
        assert!(message.contains("4 bytes that are no"), "{message}");
    }
}

#[test]
fn a_file_that_is_no_text_is_named_for_what_it_is() {
    let f = Folder::new();
    let tar = [vec![b'x'; 257], b"ustar\x0000".to_vec(), vec![0; 200]].concat();
    let cases: [(&str, Vec<u8>, &str, &str); 10] = [
        ("a.jsonl.xz", b"\xfd7zXZ\0\0\x04".to_vec(), "an xz file", "unpack"),
        ("a.txt.bz2", b"BZh91AY&SY..".to_vec(), "a bzip2 file", "unpack"),
        ("a.tar", tar.clone(), "a tar archive", "give the folder"),
        ("a.tar.gz", gz(&tar), "a tar archive", "give the folder"),
        ("a.arrow", b"ARROW1\0\0".to_vec(), "an Arrow table", ".jsonl"),
        ("a.zip", b"PK\x03\x04\x14".to_vec(), "a zip archive", "give the folder"),
        ("a.txt", gz(b"text"), "gzip data", "ends in .gz"),
        ("b.txt", zst(b"text"), "zstd data", "ends in .zst"),
        ("c.txt", b"\xff\xfea\0".to_vec(), "UTF-16", "iconv"),
        (
            "d.txt",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n".to_vec(),
            "git-lfs pointer",
            "git lfs pull",
        ),
    ];
    for (name, bytes, what, remedy) in &cases {
        let message = error(&f.write(name, bytes));
        assert!(message.contains(what) && message.contains(remedy), "{name}: {message}");
    }
    // Words that begin like a file of another kind are text.
    assert_eq!(texts(&f.write("e.txt", "BZh9 is a word")), ["BZh9 is a word"]);
    // In a folder they are left out, and said.
    f.write("e.txt", "text");
    let found = read_quietly(f.0.path()).unwrap();
    assert_eq!((found.documents.len(), found.skipped.binary), (1, 10));
    assert!(found.description.contains("; left out: ") && found.description.contains("2 × a tar archive"));
    assert!(found.description.contains("1 × an xz file"), "{}", found.description);
}

#[test]
fn a_file_whose_ending_lies_is_named() {
    let f = Folder::new();
    for name in ["a.txt.gz", "a.txt.zst"] {
        let message = error(&f.write(name, "plain text"));
        assert!(
            message.contains("it is not compressed") && message.contains("without the last"),
            "{message}"
        );
    }
    let message = error(&f.write("b.txt.gz", zst(b"text")));
    assert!(message.contains("it is zstd data") && message.contains(".zst"), "{message}");
    // Also in a folder: it was meant.
    let g = Folder::new();
    g.write("a.txt", "text");
    g.write("b.txt.gz", "plain");
    assert!(read_quietly(g.0.path()).unwrap_err().told().contains("not compressed"));
}

#[test]
fn fields_that_are_not_ours_may_hold_anything() {
    let f = Folder::new();
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let fields = [
        "NaN",
        "Infinity",
        "-Infinity",
        "[NaN, {\"a\": -Infinity}]",
        "1e400",
        "-1e400",
        "\"\\ud800\"",
        &deep,
        "123456789012345678901234567890",
        "{\"text\": 3}",
        "\"NaN\"",
    ];
    for field in fields {
        let record = format!("{{\"x\": {field}, \"text\": \"NaN \\\" Infinity\", \"y\\ud800\": {field}}}");
        let expected = ["NaN \" Infinity"; 2];
        assert_eq!(texts(&f.write("a.jsonl", format!("{record}\n{record}\n"))), expected, "{field:.40}");
        assert_eq!(texts(&f.write("a.json", format!("[{record},\n{record}]"))), expected, "{field:.40}");
    }
    assert_eq!(texts(&f.write("b.json", "{\n \"x\": NaN,\n \"text\": \"x\"\n}\n")), ["x"]);
    // In the text's own place they are errors, and so are words that nobody knows.
    assert!(error(&f.write("c.jsonl", "{\"text\": NaN}\n")).contains("`text`"));
    assert!(error(&f.write("c.jsonl", "{\"x\": nan, \"text\": \"\"}\n")).contains("line 1"));
}

#[test]
fn half_a_surrogate_pair_in_the_text_is_named_with_its_line() {
    let f = Folder::new();
    for text in ["\\ud800", "\\udc00", "a\\ud800b", "\\ud800\\u0041", "\\ud800\\n"] {
        let message = error(&f.write("a.jsonl", format!("{{\"text\": \"x\"}}\n{{\"text\": \"{text}\"}}\n")));
        assert!(message.contains("line 2") && message.contains("surrogate"), "{text}: {message}");
    }
    assert_eq!(texts(&f.write("b.jsonl", "{\"text\": \"\\ud83d\\ude00\"}\n")), ["😀"]);
}

#[test]
fn outputs_of_this_program_are_left_out_and_said() {
    let f = Folder::new();
    let config = "version: 1\ndata:\n  source: x\ntokenizer:\n  bpe: 3\nmodel:\n  calm: 1\ntrain:\n  lm: 1\n";
    f.write("a.txt", "text");
    f.write("runs/one/config.yaml", config);
    f.write("runs/one/metrics.jsonl", "{\"step\": 1}\n");
    f.write("runs/report/report.html", "<html>");
    f.write("runs/report/report.csv", "a,b");
    f.write("runs/report/study.json", "{}");
    f.write("cache/tokens/0123456789abcdef0123456789abcdef/train.tokens", [0]);
    f.write("cache/tokenizers/x.json", "{}");
    // Somebody else's.
    f.write("texts/tokens/a.txt", "x");
    f.write("texts/tokenizers/a.txt", "y");
    f.write("app/config.yaml", "version: 1\nname: app\n");
    let found = read_quietly(f.0.path()).unwrap();
    let ids: Vec<&str> = found.documents.iter().map(|d| d.id.as_str()).collect();
    assert_eq!(ids, ["a.txt", "app/config.yaml", "texts/tokenizers/a.txt", "texts/tokens/a.txt"]);
    assert_eq!(found.skipped.own, 3);
    assert!(found.description.contains("left out: 3 outputs of calm"), "{}", found.description);
    // A source that is itself the folder of a run.
    f.write("config.yaml", config);
    f.write("metrics.jsonl", "{\"step\": 1}\n");
    let found = read_quietly(f.0.path()).unwrap();
    assert_eq!((found.documents.len(), found.skipped.own), (4, 5));
    let runs = error(&f.path("runs"));
    assert!(runs.contains("2 outputs of calm"), "{runs}");
}

#[test]
fn a_folder_whose_text_is_all_held_out_says_so() {
    let f = Folder::new();
    f.write("logo.png", b"\x89PNG\r\n\x1a\n\0\0\0\0");
    let held_out = [Input::of_file(&f.write("a.txt", "some text")).unwrap()];
    let told = |held_out: &[Input]| {
        let text = open_for(f.0.path(), Reading::default(), held_out).unwrap();
        let first = text.read().unwrap().next().unwrap();
        first.map_or_else(|error| error.told(), |document| document.text)
    };
    assert_eq!(told(&[]), "some text");
    let error = told(&held_out);
    assert!(error.contains("held-out files were left out (skipped: 1 binary"), "{error}");
    assert!(error.contains("data.validation: 0.05"), "{error}");
}
