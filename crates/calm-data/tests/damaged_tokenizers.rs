//! Tokenizer files that someone damaged: no panic, no special id in a text, memory in proportion to the file.
//!
//! `cargo test --release -p calm-data --test damaged_tokenizers -- --ignored` tries fifty times as many.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use calm_data::Tokenizer;
use proptest::prelude::*;
use proptest::test_runner::{TestRng, TestRunner};
use serde_json::{Value, json};

/// Counts what is held and the most of it.
struct Counting;
static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const KINDS: [&str; 6] = ["unigram", "wordlevel", "bytefb", "bert", "dropout", "added"];

fn read(kind: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/kinds/{kind}.json"))).unwrap()
}

fn below(rng: &mut TestRng, n: usize) -> usize {
    rng.random_range(0..n.max(1))
}

fn one_of<T: Clone>(values: &[T], rng: &mut TestRng) -> T {
    values[below(rng, values.len())].clone()
}

/// Values that nobody expects.
fn odd(rng: &mut TestRng) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(1),
        json!(2),
        json!(1e300),
        json!(4_294_967_295u32),
        json!(300_000_000),
        json!(""),
        json!("a"),
        json!("<s>"),
        json!("</s>"),
        json!("▁"),
        json!("##"),
        json!([]),
        json!({}),
        json!([""]),
        json!([["a", 0.0]]),
        json!([["", -1.0], ["a", null]]),
        json!({ "": 0 }),
        json!({ "a": 0, "b": 0 }),
        json!({ "a": 7 }),
    ];
    one_of(&values, rng)
}

/// A part that the library knows, with settings that few give it.
fn part(kind: &str, rng: &mut TestRng) -> Value {
    let replace =
        |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
    let split = |pattern: Value, behavior: &str| json!({ "type": "Split", "pattern": pattern, "behavior": behavior, "invert": true });
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true });
    let space = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false });
    let mut parts = vec![Value::Null];
    match kind {
        "normalizer" => parts.extend([
            replace(json!({ "Regex": "(a|a?)+$" }), "aa"), replace(json!({ "String": "" }), "b"), replace(json!({ "Regex": "" }), ""),
            replace(json!({ "Regex": "." }), ""), json!({ "type": "Prepend", "prepend": "" }), json!({ "type": "Prepend", "prepend": "</s>" }),
            json!({ "type": "NFKD" }), json!({ "type": "StripAccents" }), json!({ "type": "Nmt" }), json!({ "type": "Lowercase" }),
            json!({ "type": "Strip", "strip_left": true, "strip_right": true }), json!({ "type": "ByteLevel" }),
            json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" }), json!({ "type": "Precompiled", "precompiled_charsmap": "AQAAAP////8A" }),
        ]),
        "pre_tokenizer" => parts.extend([
            bytes, space, split(json!({ "Regex": "(?=a)" }), "Isolated"), split(json!({ "String": "" }), "Removed"),
            split(json!({ "Regex": "a*" }), "MergedWithNext"), split(json!({ "Regex": "(a+)+b" }), "Contiguous"),
            json!({ "type": "FixedLength", "length": 0 }), json!({ "type": "FixedLength", "length": 3 }), json!({ "type": "UnicodeScripts" }),
            json!({ "type": "Whitespace" }), json!({ "type": "CharDelimiterSplit", "delimiter": "a" }), json!({ "type": "BertPreTokenizer" }),
            json!({ "type": "Digits", "individual_digits": true }), json!({ "type": "Punctuation", "behavior": "MergedWithPrevious" }),
        ]),
        "decoder" => parts.extend([
            bytes, space, json!({ "type": "WordPiece", "prefix": "", "cleanup": true }), json!({ "type": "BPEDecoder", "suffix": "" }),
            json!({ "type": "BPEDecoder", "suffix": "a" }), json!({ "type": "Strip", "content": "a", "start": 3, "stop": 3 }),
            json!({ "type": "Fuse" }), json!({ "type": "ByteFallback" }), replace(json!({ "String": "" }), "b"),
            replace(json!({ "Regex": "a+" }), ""), json!({ "type": "CTC", "pad_token": "a", "word_delimiter_token": "|", "cleanup": true }),
        ]),
        _ => parts.push(json!({ "type": "TemplateProcessing", "pair": [], "special_tokens": {},
            "single": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }] })),
    }
    if below(rng, 3) > 0 {
        return one_of(&parts, rng);
    }
    let (list, name) = match kind {
        "normalizer" => ("normalizers", "Sequence"),
        "pre_tokenizer" => ("pretokenizers", "Sequence"),
        "decoder" => ("decoders", "Sequence"),
        _ => ("processors", "Sequence"),
    };
    let some: Vec<Value> =
        (0..below(rng, 4)).map(|_| one_of(&parts, rng)).filter(|part| !part.is_null()).collect();
    json!({ "type": name, list: some })
}

/// Changes one place of a value, chosen anywhere in it.
fn damage(value: &mut Value, depth: usize, rng: &mut TestRng) {
    let stop = depth > 1 && below(rng, 4) == 0;
    match value {
        Value::Object(map) if !map.is_empty() && !stop => {
            let at = below(rng, map.len());
            let key = map.keys().nth(at).unwrap().clone();
            match below(rng, 12) + usize::from(depth == 0) {
                0 => drop(map.remove(&key)),
                1 => {
                    let inner = map.remove(&key).unwrap();
                    map.insert(["</s>", "type", "", "vocab", "é", "a</w>"][below(rng, 6)].into(), inner);
                }
                _ => damage(map.get_mut(&key).unwrap(), depth + 1, rng),
            }
        }
        Value::Array(list) if !list.is_empty() && !stop => {
            let at = below(rng, list.len());
            match below(rng, 8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.truncate(at),
                _ => damage(&mut list[at], depth + 1, rng),
            }
        }
        Value::Number(n) if below(rng, 2) == 0 => {
            let n = n.as_i64().unwrap_or(0);
            *value = json!([n + 1, n - 1, n * 2, n + 1000, -n][below(rng, 5)]);
        }
        other => *other = odd(rng),
    }
}

fn damaged(rng: &mut TestRng) -> Vec<u8> {
    let mut json = read(KINDS[below(rng, KINDS.len())]);
    if below(rng, 4) == 0 {
        for _ in 0..=below(rng, 3) {
            let at = below(rng, json.len());
            match below(rng, 3) {
                0 => json[at] ^= 1 << below(rng, 8),
                1 => json.truncate(at),
                _ => drop(json.drain(at..(at + below(rng, 40)).min(json.len()))),
            }
            if json.is_empty() {
                return json;
            }
        }
        return json;
    }
    let mut value: Value = serde_json::from_slice(&json).unwrap();
    for _ in 0..=below(rng, 3) {
        let kind = one_of(
            &["normalizer", "pre_tokenizer", "decoder", "post_processor", "model", "added_tokens"],
            rng,
        );
        match kind {
            "model" | "added_tokens" => damage(&mut value[kind], 1, rng),
            _ if below(rng, 4) == 0 => damage(&mut value, 0, rng),
            _ => value[kind] = part(kind, rng),
        }
    }
    serde_json::to_vec(&value).unwrap()
}

const TEXTS: [&str; 5] =
    ["the cat sat", "a</s>b <s><pad>[UNK] <0x0A>", "é日本😀\u{301} \t\n", "  aaaaaaaaaaaaaaaaaaaa  ", ""];

/// What is done with a file by someone who trains and generates; whether it could be opened.
fn used(json: &[u8], rng: &mut TestRng) -> bool {
    let Ok(t) = Tokenizer::from_json(json, Path::new("damaged.json")) else { return false };
    let special = t.special();
    assert!(special.bos != special.eos && special.eos != special.pad && special.bos != special.pad);
    for text in TEXTS {
        let Ok(ids) = t.encode(text) else { continue };
        for id in &ids {
            assert!((*id as usize) < t.vocab_size(), "id {id} of {}", t.vocab_size());
            assert!(![special.bos, special.eos, special.pad].contains(id), "{id} in {text:?}");
        }
        let _ = t.decode(&ids);
    }
    let ids: Vec<u32> = (0..20).map(|_| below(rng, t.vocab_size() + 2) as u32).collect();
    let mut stream = t.stream_after("the ", &ids[..5]);
    let text = stream.push(&ids[5..]) + &stream.finish();
    let _ = (text, t.decode(&ids));
    // What is written is read again as the same; not each time, as writing waits for the disk.
    if below(rng, 16) == 0 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        t.save(&path).unwrap();
        let again = Tokenizer::load(&path).unwrap();
        assert_eq!((again.hash(), again.special(), again.vocab_size()), (t.hash(), special, t.vocab_size()));
    }
    true
}

fn try_many(count: usize) {
    let mut runner = TestRunner::deterministic();
    let (mut opened, mut worst) = (0, 0);
    for number in 0..count {
        let json = damaged(runner.rng());
        let before = HELD.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| used(&json, runner.rng())));
        let Ok(could) = result else {
            panic!("file {number}: {}", String::from_utf8_lossy(&json));
        };
        opened += usize::from(could);
        let most = MOST.load(Ordering::Relaxed).saturating_sub(before);
        worst = worst.max(most);
        assert!(most <= 64 * json.len() + (64 << 20), "file {number}: {most} bytes held for {}", json.len());
    }
    println!("{count} files, {opened} could be opened, at most {worst} bytes held");
    assert!(opened > count / 20, "most of the damage must not be at the surface: {opened} of {count}");
}

#[test]
fn two_thousand_damaged_files_do_no_harm() {
    try_many(2000);
}

#[test]
#[ignore = "minutes"]
fn a_hundred_thousand_damaged_files_do_no_harm() {
    try_many(100_000);
}
