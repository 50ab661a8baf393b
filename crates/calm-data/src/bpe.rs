//! Byte-level BPE: training, and the byte table of a byte-level pipeline.
//!
//! Text is divided by the Llama-3 pattern (words with their leading space, up to three digits, runs of
//! punctuation with the line ends that follow), every piece is written as bytes, and merges are learned inside
//! pieces only. The 256 bytes are always in the vocabulary, so that any text can be encoded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{Model, SplitDelimiterBehavior, Trainer};

use crate::config::SMALLEST_BPE;
use crate::error::{Error, Result};
use crate::llama3::PATTERN;
use crate::split;
use crate::tokenizer::Tokenizer;

fn fail(e: tokenizers::Error) -> Error {
    Error::Tokenizer(e.to_string())
}

/// The character by which byte-level vocabularies write a byte: itself if it is printable in Latin-1, else the
/// next free one from U+0100 on (so a space is `Ġ`).
pub(crate) fn byte_chars() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|b| {
        let printable = matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            b as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or('\0')
    })
}

/// The 256 bytes as a vocabulary, in the order of the bytes.
#[cfg(test)]
pub(crate) fn byte_vocab() -> tokenizers::models::bpe::Vocab {
    byte_chars().iter().zip(0..).map(|(c, id)| (c.to_string(), id)).collect()
}

/// The bytes as a vocabulary writes them.
pub(crate) fn bytes_to_chars(bytes: &[u8], chars: &[char; 256]) -> String {
    let mut written = String::with_capacity(bytes.len());
    push_chars(&mut written, bytes, chars);
    written
}

/// Adds bytes as a vocabulary writes them.
pub(crate) fn push_chars(written: &mut String, bytes: &[u8], chars: &[char; 256]) {
    written.extend(bytes.iter().map(|&b| chars[b as usize]));
}

fn pre_tokenizer() -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(PATTERN.to_string());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(fail)?;
    let bytes = ByteLevel::new(false, false, false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
}

/// A pipeline around a byte-level model: the Llama-3 pattern, then bytes.
pub(crate) fn byte_pipeline(model: BPE) -> Result<tokenizers::Tokenizer> {
    let mut pipeline = tokenizers::Tokenizer::new(model);
    pipeline.with_pre_tokenizer(Some(pre_tokenizer()?));
    pipeline.with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(pipeline)
}

/// Bytes of every id of a pipeline, and whether joining them is exact (byte-level pipelines). Special tokens
/// and ids without a token have none.
pub(crate) fn token_table(pipeline: &tokenizers::Tokenizer) -> Result<(Vec<Box<[u8]>>, bool)> {
    let decoder = pipeline.get_decoder().map(serde_json::to_string).transpose();
    let decoder = decoder.map_err(|e| Error::Tokenizer(e.to_string()))?.unwrap_or_default();
    let byte_level = decoder.contains("\"ByteLevel\"");
    let values: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let added = pipeline.get_added_tokens_decoder();
    let vocab = pipeline.get_vocab(true);
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    let mut table: Vec<Box<[u8]>> = vec![Box::default(); size];
    for (token, id) in vocab {
        let bytes = match added.get(&id) {
            Some(added) if added.special => Vec::new(),
            Some(added) => added.content.clone().into_bytes(),
            None if byte_level => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| values.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| token.into_bytes())
            }
            None => pipeline.decode(&[id], false).map_err(fail)?.into_bytes(),
        };
        table[id as usize] = bytes.into_boxed_slice();
    }
    Ok((table, byte_level))
}

/// Trains a byte-level BPE of `vocab_size` ids (fewer if the texts have no more pairs), the last three of them
/// BOS, EOS and PAD. The same texts give the same tokenizer to the byte. `progress` is called on this thread
/// with the bytes read so far; learning the merges follows after the last of them.
///
/// # Errors
/// For a vocabulary that cannot hold the bytes and the special tokens.
pub fn train(texts: &[&str], vocab_size: usize, progress: &mut dyn FnMut(u64)) -> Result<Tokenizer> {
    if vocab_size < SMALLEST_BPE {
        return Err(Error::Vocabulary { size: vocab_size, smallest: SMALLEST_BPE });
    }
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab_size - 3)
        .min_frequency(2)
        .show_progress(false)
        .initial_alphabet(byte_chars().into_iter().collect())
        .build();
    let chars = byte_chars();
    let done = AtomicU64::new(0);
    let words = |text: &str| {
        let words = split::pieces(text).map(|piece| bytes_to_chars(piece.as_bytes(), &chars)).collect();
        done.fetch_add(text.len() as u64, Ordering::Relaxed);
        Ok(words)
    };
    // A pool of its own: the caller, who may be one of few threads of the common pool, only watches.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(rayon::current_num_threads())
        .build()
        .map_err(|e| Error::Tokenizer(e.to_string()))?;
    let mut learn = || -> tokenizers::Result<BPE> {
        trainer.feed(texts.iter(), words)?;
        let mut model = BPE::default();
        trainer.train(&mut model)?;
        Ok(model)
    };
    let model = std::thread::scope(|scope| {
        let work = scope.spawn(|| pool.install(&mut learn));
        while !work.is_finished() {
            progress(done.load(Ordering::Relaxed));
            std::thread::sleep(Duration::from_millis(20));
        }
        progress(done.load(Ordering::Relaxed));
        work.join().map_err(|_| Error::Tokenizer("training stopped unexpectedly".into()))?.map_err(fail)
    })?;
    debug_assert!(model.get_vocab_size() <= vocab_size - 3);
    Tokenizer::from_pipeline(byte_pipeline(model)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "fn main() {\n    let total = 12345 + 678;\n    println!(\"total {total}\");\n}\n";

    #[test]
    fn the_byte_characters_are_those_of_the_library() {
        let ours: std::collections::BTreeSet<char> = byte_chars().into_iter().collect();
        let theirs: std::collections::BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
        assert_eq!(ours, theirs);
        assert_eq!(byte_chars()[b' ' as usize], 'Ġ');
        assert_eq!(byte_chars()[b'\n' as usize], 'Ċ');
    }

    #[test]
    fn training_twice_gives_the_same_bytes() {
        let many = TEXT.repeat(20);
        let texts = [TEXT, "let total = total + 1; // naïve ☃\n", many.as_str()];
        let train = || train(&texts, 320, &mut |_| ()).unwrap();
        let first = train();
        for _ in 0..5 {
            assert_eq!(train().hash(), first.hash());
        }
    }

    #[test]
    fn the_vocabulary_has_the_asked_size_and_the_special_tokens_at_its_end() {
        let text = TEXT.repeat(50);
        let mut last = 0;
        let t = train(&[&text], 280, &mut |done| last = done).unwrap();
        assert_eq!(last, text.len() as u64);
        assert_eq!(t.vocab_size(), 280);
        let s = t.special();
        assert_eq!((s.bos, s.eos, s.pad), (277, 278, 279));
        assert!(t.encode(TEXT).unwrap().len() < TEXT.len());
        assert_eq!(t.decode(&t.encode(TEXT).unwrap()), TEXT);
    }

    #[test]
    fn the_smallest_vocabulary_is_bytes_and_special_tokens() {
        let t = train(&[TEXT], 259, &mut |_| ()).unwrap();
        assert_eq!(t.vocab_size(), 259);
        assert_eq!(t.encode(TEXT).unwrap().len(), TEXT.len());
        let error = train(&[TEXT], 258, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("259"), "{error}");
    }
}
