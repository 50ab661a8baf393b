//! Every kind of `tokenizer.json`: text stays text, decoding is the tokenizer's own on the whole, and a stream of
//! tokens gives the same text.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::LazyLock;

use calm_data::{Error, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};

mod common;
use common::{check, nasty, normalised, special_names};

fn file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kinds").join(name);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn changed(mut file: Value, changes: &[(&str, Value)]) -> Value {
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        file.pointer_mut(parent).unwrap()[key] = value.clone();
    }
    file
}

struct Kind {
    name: &'static str,
    ours: Tokenizer,
    library: tokenizers::Tokenizer,
}

fn open(file: &Value) -> Tokenizer {
    Tokenizer::from_json(&serde_json::to_vec(file).unwrap(), Path::new("kind.json")).unwrap()
}

/// The kinds that are in use, small.
static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    let metaspace = |scheme: &str, split: bool| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
    let merged = json!([["t", "h"], ["th", "e"]]);
    let mut suffixed = json!({ "type": "BPE", "unk_token": "[UNK]", "end_of_word_suffix": "</w>",
        "vocab": { "[UNK]": 0, "[BOS]": 1, "</s>": 2, "the</w>": 3 }, "merges": [["t", "h"], ["th", "e</w>"]] });
    for (id, token) in ('a'..='z').map(String::from).chain(["th".into()]).enumerate() {
        suffixed["vocab"][&token] = json!(4 + 2 * id);
        if token.len() == 1 {
            suffixed["vocab"][format!("{token}</w>")] = json!(5 + 2 * id);
        }
    }
    let kinds = [
        ("pieces of a unigram model, as T5 has", file("unigram.json")),
        (
            "the same without splitting",
            changed(
                file("unigram.json"),
                &[("/pre_tokenizer", metaspace("first", false)), ("/decoder", metaspace("first", false))],
            ),
        ),
        (
            "the same without a first space",
            changed(
                file("unigram.json"),
                &[("/pre_tokenizer", metaspace("never", true)), ("/decoder", metaspace("never", true))],
            ),
        ),
        ("words", file("wordlevel.json")),
        ("word pieces, as BERT has", file("bert.json")),
        (
            "word pieces as they are",
            changed(
                file("bert.json"),
                &[
                    ("/decoder", json!({ "type": "WordPiece", "prefix": "##", "cleanup": false })),
                    ("/pre_tokenizer", json!({ "type": "WhitespaceSplit" })),
                ],
            ),
        ),
        ("bytes for the rest, as Llama 2 has", file("bytefb.json")),
        (
            "bytes for the rest without a first space, as Gemma has",
            changed(
                file("bytefb.json"),
                &[
                    (
                        "/normalizer",
                        json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" }),
                    ),
                    (
                        "/decoder",
                        json!({ "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" } ]}),
                    ),
                    ("/model/ignore_merges", json!(true)),
                ],
            ),
        ),
        ("bytes, as GPT-2 has", file("added.json")),
        ("bytes with dropout", file("dropout.json")),
        (
            "bytes with a space before, as RoBERTa has",
            changed(file("dropout.json"), &[("/pre_tokenizer/add_prefix_space", json!(true))]),
        ),
        (
            "bytes of normalised text, as Claude and Qwen have",
            changed(file("dropout.json"), &[("/normalizer", json!({ "type": "NFKC" }))]),
        ),
        (
            "ends of words, as CLIP has",
            json!({ "added_tokens": [], "model": suffixed,
            "pre_tokenizer": { "type": "BertPreTokenizer" }, "normalizer": { "type": "Lowercase" },
            "decoder": { "type": "BPEDecoder", "suffix": "</w>" } }),
        ),
        (
            "a decoder that strips its end",
            changed(
                file("bytefb.json"),
                &[
                    ("/decoder/decoders/3/stop", json!(0)),
                    ("/model/vocab/th", json!(288)),
                    ("/model/vocab/the", json!(289)),
                    ("/model/merges", merged),
                ],
            ),
        ),
    ];
    kinds
        .map(|(name, file)| {
            let ours = open(&file);
            let library = changed(
                file,
                &[("/model/dropout", Value::Null), ("/truncation", Value::Null), ("/padding", Value::Null)],
            );
            let library = tokenizers::Tokenizer::from_bytes(serde_json::to_vec(&library).unwrap()).unwrap();
            Kind { name, ours, library }
        })
        .into_iter()
        .collect()
});

fn kind(part: &str) -> &'static Kind {
    KINDS.iter().find(|k| k.name.contains(part)).unwrap()
}

#[test]
fn nasty_texts_are_their_normalised_selves_and_streams_give_the_whole() {
    for kind in KINDS.iter() {
        for text in nasty() {
            check(&kind.ours, &text, kind.name);
        }
    }
}

#[test]
fn ordinary_text_has_the_librarys_ids_and_text() {
    let texts = [
        "the cat sat on the mat",
        "in 2020 we saw 30 birds",
        " the  cat ",
        "soft night, fast tree.",
        "é 日本 😀 ab",
    ];
    for kind in KINDS.iter() {
        for text in texts {
            let (Ok(ours), Ok(theirs)) = (kind.ours.encode(text), kind.library.encode(text, false)) else {
                continue;
            };
            assert_eq!(ours, theirs.get_ids(), "{}: {text:?}", kind.name);
            assert_eq!(kind.ours.decode(&ours), kind.library.decode(&ours, true).unwrap(), "{}", kind.name);
        }
    }
}

#[test]
fn names_of_special_tokens_bytes_and_the_unknown_token_stay_text() {
    for kind in KINDS.iter() {
        let text = special_names(&kind.library);
        let ids = kind.ours.encode(&text).unwrap();
        let special = kind.ours.special();
        for id in [special.bos, special.eos, special.pad] {
            assert!(!ids.contains(&id), "{}: {id} in the ids of {text:?}", kind.name);
        }
    }
    // Where every character has a token they come back, too.
    for name in ["as Llama 2", "as Gemma", "as GPT-2", "bytes with dropout"] {
        let kind = kind(name);
        let text = special_names(&kind.library) + "<0x0A> <unk><unk> <0x41>";
        assert_eq!(kind.ours.decode(&kind.ours.encode(&text).unwrap()), text, "{name}");
    }
}

#[test]
fn decoding_keeps_spaces_and_joins_pieces() {
    let whole = |name: &str, text: &str| {
        let ours = &kind(name).ours;
        ours.decode(&ours.encode(text).unwrap())
    };
    assert_eq!(whole("as T5", "a dog sat on the mat"), "a dog sat on the mat");
    let t5 = kind("as T5");
    let ids = t5.ours.encode("in 2020 we saw 30 birds").unwrap();
    assert_eq!(t5.ours.decode(&ids), t5.library.decode(&ids, true).unwrap());
    assert_eq!(t5.ours.decode(&ids).matches(' ').count(), 5, "digits are unknown here, the spaces are not");
    assert_eq!(whole("as BERT", "The house runs  on\nTHE moon"), "the house runs on the moon");
    assert_eq!(whole("words", "the cat sat"), "the cat sat");
    assert_eq!(whole("as CLIP", "the cat sat"), "the cat sat");
}

#[test]
fn the_seam_after_a_prompt_has_its_space_or_joint() {
    for (name, prompt, next, expected) in [
        ("as T5", "the cat", "sat on", " sat on"),
        ("words", "the cat", "sat", " sat"),
        ("as BERT", "the cat", "sat", " sat"),
        ("as Llama 2", "the cat", "sat", " sat"),
    ] {
        let t = &kind(name).ours;
        let (before, after) = (t.encode(prompt).unwrap(), t.encode(next).unwrap());
        assert_eq!(t.decode_after(&before, &after), expected, "{name}");
        assert_eq!(t.decode_after(&[], &after), expected.trim_start(), "{name}");
    }
    let bert = &kind("as BERT");
    let piece = bert.library.token_to_id("##se").unwrap();
    assert_eq!(bert.ours.decode_after(&bert.ours.encode("the cat").unwrap(), &[piece]), "se");
    // White space that the ids do not have is not written twice.
    let mut stream = bert.ours.stream_after("the cat ", &bert.ours.encode("the cat ").unwrap());
    assert_eq!(stream.push(&bert.ours.encode("sat").unwrap()), "sat");
}

#[test]
fn characters_of_bytes_come_whole() {
    let t = &kind("as Llama 2").ours;
    let ids = t.encode("a😀é").unwrap();
    let mut stream = t.stream_after("", &[]);
    let parts: Vec<String> = ids.iter().map(|id| stream.push(&[*id])).collect();
    assert_eq!(parts.concat(), "a😀é");
    assert!(parts.iter().all(|part| part.chars().count() <= 1), "{parts:?}");
    let cut = &ids[..ids.len() - 1];
    assert_eq!(t.decode(cut), "a😀\u{fffd}", "only the half character is lost");
}

#[test]
fn what_was_switched_off_is_said_and_two_readings_are_one() {
    let dropout = &kind("bytes with dropout").ours;
    assert!(dropout.notes().concat().contains("dropout 0.1"), "{:?}", dropout.notes());
    let text = "the wind and the hills ".repeat(50);
    let once = dropout.encode(&text).unwrap();
    assert!((0..20).all(|_| dropout.encode(&text).unwrap() == once));
    let bert = &kind("as BERT").ours;
    let notes = bert.notes().join("; ");
    assert!(notes.contains("truncation") && notes.contains("padding"), "{notes}");
    assert!(bert.encode(&text).unwrap().len() > 100 && bert.encode("a").unwrap().len() == 1);
    assert!(kind("as Llama 2").ours.notes().is_empty());
}

#[test]
fn a_byte_order_mark_before_a_file_is_no_part_of_it() {
    let json = serde_json::to_vec(&file("bytefb.json")).unwrap();
    let read = |json: &[u8]| Tokenizer::from_json(json, Path::new("t.json")).unwrap().hash();
    assert_eq!(read(&[b"\xef\xbb\xbf", &json[..]].concat()), read(&json));
}

#[test]
fn a_run_of_the_first_version_with_dropout_is_still_known() {
    let json = serde_json::to_vec(&file("dropout.json")).unwrap();
    let t = Tokenizer::from_json(&json, Path::new("t.json")).unwrap();
    // What version 0.1 wrote: the same pipeline with its dropout.
    let mut old = tokenizers::Tokenizer::from_bytes(&json).unwrap();
    for name in ["<|bos|>", "<|endoftext|>", "<|pad|>"] {
        old.add_special_tokens([tokenizers::AddedToken::from(name, true)]).unwrap();
    }
    let old = old.to_string(false).unwrap();
    assert!(old.contains("\"dropout\":0.1"));
    let hash = blake3_hex(&old);
    assert!(t.is(&hash) && t.is(&t.hash()) && t.hash() != hash);
    let again = Tokenizer::from_json(old.as_bytes(), Path::new("t.json")).unwrap();
    assert_eq!((again.hash(), again.special()), (t.hash(), t.special()));
}

fn blake3_hex(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

#[test]
fn ids_that_we_add_meet_no_others_where_a_vocabulary_has_holes() {
    let words = &kind("words").ours;
    assert_eq!(words.vocab_size(), 86, "three of its tokens are there");
    let holes = changed(
        file("wordlevel.json"),
        &[
            ("/added_tokens", json!([])),
            (
                "/model/vocab",
                json!({
                    "[UNK]": 0, "the": 1, "cat": 3, "sat": 9,
                }),
            ),
        ],
    );
    let t = open(&holes);
    let special = t.special();
    assert_eq!([special.bos, special.eos, special.pad], [10, 11, 12]);
    assert_eq!(t.encode("the cat sat").unwrap(), [1, 3, 9]);
    assert_eq!(t.decode(&[1, 3, 9, 2, 10]), "the cat sat");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    t.save(&path).unwrap();
    let again = Tokenizer::load(&path).unwrap();
    assert_eq!((again.hash(), again.special(), again.vocab_size()), (t.hash(), special, 13));
    // Added tokens beyond the vocabulary keep their ids, as those of GPT-4o must.
    let beyond = changed(
        file("dropout.json"),
        &[
            (
                "/added_tokens",
                json!([{ "id": 325, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true }]),
            ),
            ("/model/vocab/<|endoftext|>", json!(330)),
        ],
    );
    let beyond = {
        let mut file = beyond;
        file["model"]["vocab"].as_object_mut().unwrap().remove("<|endoftext|>");
        file
    };
    let t = open(&beyond);
    assert_eq!((t.special().eos, t.special().bos, t.vocab_size()), (325, 326, 328));
}

#[test]
fn a_file_that_cannot_be_meant_is_named_with_what_is_wrong() {
    let words = |vocab: Value| {
        changed(file("wordlevel.json"), &[("/model/vocab", vocab), ("/added_tokens", json!([]))])
    };
    for (file, expected) in [
        (words(json!({ "[UNK]": 0, "a": 0 })), "two tokens have the id 0"),
        (words(json!({ "[UNK]": 0, "a": 160_000_000 })), "only 2 tokens"),
        (words(json!({ "[UNK]": 0, "a": u32::MAX })), "ids are below"),
        (
            changed(
                file("bytefb.json"),
                &[("/decoder", json!({ "type": "Strip", "content": "a", "start": 0, "stop": 9 }))],
            ),
            "decoder fails",
        ),
        (
            changed(
                file("added.json"),
                &[("/normalizer", json!({ "type": "Strip", "strip_left": true, "strip_right": true }))],
            ),
            "leaves nothing of the added token",
        ),
        (changed(file("bytefb.json"), &[("/model/merges", json!([["a", "nowhere"]]))]), "nowhere"),
    ] {
        let error =
            Tokenizer::from_json(&serde_json::to_vec(&file).unwrap(), Path::new("my.json")).unwrap_err();
        assert!(error.to_string().contains(expected) && error.to_string().contains("my.json"), "{error}");
        assert!(matches!(error, Error::TokenizerFile { .. }) && error.remedy().is_some());
    }
}

#[test]
fn text_that_a_vocabulary_would_lose_is_an_error() {
    let mut few = file("bytefb.json");
    few["model"]["byte_fallback"] = json!(false);
    few["model"]["unk_token"] = Value::Null;
    let t = open(&few);
    assert!(t.encode("abc").is_ok());
    let error = t.encode("abé").unwrap_err();
    assert!(error.to_string().contains("kind.json") && error.to_string().contains("'é'"), "{error}");
    assert!(error.remedy().is_some());
}

#[test]
fn what_stands_for_unknown_text_does_not_end_a_document() {
    let file = changed(
        file("wordlevel.json"),
        &[
            ("/model/unk_token", json!("</s>")),
            ("/model/vocab", json!({ "</s>": 0, "<s>": 1, "a": 2 })),
            ("/added_tokens", json!([])),
        ],
    );
    let t = open(&file);
    assert_eq!(t.encode("a b a").unwrap(), [2, 0, 2]);
    assert_eq!(t.special().eos, 3, "an id of its own");
}

/// Letters without a space, one like the other to a tokenizer.
fn letters(count: usize, seed: u32) -> String {
    let mut state = seed;
    let letter = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        char::from(b"acgt"[(state >> 24) as usize % 4])
    };
    (0..count).map(letter).collect()
}

#[test]
fn long_words_are_encoded_and_trained_on_in_seconds() {
    // The square of the length would be minutes; the bound leaves room for a busy machine.
    let soon = |what: &str, start: std::time::Instant| {
        let seconds = start.elapsed().as_secs_f64();
        println!("{what}: {seconds:.2} s");
        assert!(seconds < 40.0, "{what} took {seconds} s");
    };
    let long = letters(500_000, 1);
    for kind in KINDS.iter() {
        let start = std::time::Instant::now();
        let ids = kind.ours.encode(&long).unwrap();
        soon(kind.name, start);
        assert!(!ids.is_empty());
    }
    let four: Vec<String> = (1..5).map(|seed| letters(500_000, seed)).collect();
    let texts: Vec<&str> = four.iter().map(String::as_str).collect();
    let start = std::time::Instant::now();
    let trained = calm_data::bpe::train(&texts, 1024, &mut |_| ()).unwrap();
    soon("training", start);
    assert_eq!(trained.vocab_size(), 1024);
    let start = std::time::Instant::now();
    for (text, ids) in texts.iter().zip(trained.encode_all(&texts).unwrap()) {
        assert!(ids.len() < text.len() / 3 && trained.decode(&ids) == **text);
    }
    soon("encoding", start);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn any_ids_in_any_parts_stream_to_their_whole_text(
        which in 0usize..KINDS.len(),
        numbers in prop::collection::vec(any::<u32>(), 0..400),
        sizes in prop::collection::vec(0usize..9, 1..200),
        prompt in "(the|cat| |in 2020|sat|é|😀|##|\\.){0,8}",
    ) {
        let kind = &KINDS[which];
        let size = kind.ours.vocab_size() as u32 + 2;
        let ids: Vec<u32> = numbers.iter().map(|n| n % size).collect();
        let before = kind.ours.encode(&prompt).unwrap();
        let mut stream = kind.ours.stream_after(&kind.ours.decode(&before), &before);
        let (mut text, mut rest) = (kind.ours.decode(&before), &ids[..]);
        for size in sizes.iter().cycle().take(1000) {
            let (part, later) = rest.split_at((*size).min(rest.len()));
            text += &stream.push(part);
            rest = later;
        }
        text += &stream.push(rest);
        text += &stream.finish();
        let whole = kind.ours.decode(&[&before[..], &ids].concat());
        prop_assert_eq!(text, whole, "{}", kind.name);
    }

    #[test]
    fn any_text_is_its_normalised_self(which in 0usize..KINDS.len(), text in prop_oneof![
        any::<String>(), "\\PC{0,40}", "(</s>|<s>|<unk>|\\[UNK\\]|\\[SEP\\]|<0x0A>|the|cat| |▁|##){0,12}",
    ]) {
        let kind = &KINDS[which];
        check(&kind.ours, &text, kind.name);
        let _ = normalised(&kind.library, &text);
    }
}
