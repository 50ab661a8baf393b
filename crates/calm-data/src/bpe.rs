//! Training a byte-level BPE.
//!
//! Text is divided by the Llama-3 pattern (words with their leading space, up to three digits, runs of
//! punctuation with the line ends that follow), every piece is written as bytes, and merges are learned inside
//! pieces only. The 256 bytes are always in the vocabulary, so that any text can be encoded.
//!
//! The library's trainer takes the square of a word's length. Words are therefore counted in parts of at most
//! 1,024 bytes; encoding knows no such limit.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::{Model, Trainer};

use crate::byte_level::{byte_chars, byte_pipeline, bytes_to_chars};
use crate::config::SMALLEST_BPE;
use crate::error::{Error, Result};
use crate::split;
use crate::tokenizer::Tokenizer;

/// Bytes of a word that are counted together.
const LONGEST_WORD: usize = 1024;
/// Bytes between two notes of what was counted.
const NOTED: u64 = 64 << 10;

/// How far the training of a tokenizer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Training {
    /// So many bytes of text are counted.
    Counting(u64),
    /// Merges are being learned.
    Learning,
}

/// Trains a byte-level BPE of `vocab_size` ids (fewer if the texts have no more pairs), the last three of them
/// BOS, EOS and PAD. The same texts give the same tokenizer to the byte. `progress` is called on this thread.
///
/// # Errors
/// For a vocabulary that cannot hold the bytes and the special tokens.
pub fn train(texts: &[&str], vocab_size: usize, progress: &mut dyn FnMut(Training)) -> Result<Tokenizer> {
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
    let (done, learning) = (AtomicU64::new(0), AtomicBool::new(false));
    let words = |text: &str| {
        let mut fresh = 0;
        let mut words = Vec::new();
        for piece in split::pieces(text) {
            words.extend(piece.as_bytes().chunks(LONGEST_WORD).map(|part| bytes_to_chars(part, &chars)));
            fresh += piece.len() as u64;
            if fresh >= NOTED {
                done.fetch_add(std::mem::take(&mut fresh), Ordering::Relaxed);
            }
        }
        done.fetch_add(fresh, Ordering::Relaxed);
        Ok(words)
    };
    // A pool of its own: the caller, who may be one of few threads of the common pool, only watches.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(rayon::current_num_threads()).build();
    let mut learn = || -> tokenizers::Result<BPE> {
        trainer.feed(texts.iter(), words)?;
        learning.store(true, Ordering::Relaxed);
        let mut model = BPE::default();
        trainer.train(&mut model)?;
        Ok(model)
    };
    let failed = |e: tokenizers::Error| Error::Tokenizer(e.to_string());
    let watched = std::thread::scope(|scope| {
        let (pool, learn) = (pool.ok()?, &mut learn);
        let work = std::thread::Builder::new().spawn_scoped(scope, move || pool.install(learn)).ok()?;
        // Also where it is done before anybody looks.
        progress(Training::Counting(0));
        while !work.is_finished() {
            progress(match learning.load(Ordering::Relaxed) {
                true => Training::Learning,
                false => Training::Counting(done.load(Ordering::Relaxed)),
            });
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(work.join())
    });
    let model = match watched {
        Some(done) => done.map_err(|_| Error::Tokenizer("training stopped unexpectedly".into()))?,
        // A system that starts no more threads: it is learned here, and nobody watches.
        None => learn(),
    }
    .map_err(failed)?;
    debug_assert!(model.get_vocab_size() <= vocab_size - 3);
    Tokenizer::from_pipeline(byte_pipeline(model)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "fn main() {\n    let total = 12345 + 678;\n    println!(\"total {total}\");\n}\n";

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
        let mut steps = Vec::new();
        let t = train(&[&text], 280, &mut |step| steps.push(step)).unwrap();
        let order = |step: &Training| match step {
            Training::Counting(done) => (*done).min(text.len() as u64),
            Training::Learning => u64::MAX,
        };
        assert!(!steps.is_empty() && steps.is_sorted_by_key(order), "{steps:?}");
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
