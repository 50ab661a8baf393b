//! How fast text is encoded, beside the `tokenizers` library's own `encode_batch`, interleaved on the same text.
//!
//! ```console
//! $ cargo run --release -p calm-data --example tokenising -- TEXT [VOCAB | TOKENIZER.json] [ROUNDS]
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use calm_data::{Tokenizer, bpe, source};
use rayon::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let text = args.next().ok_or("which text?")?;
    let which = args.next().unwrap_or_else(|| "8192".into());
    let rounds: usize = args.next().map_or(Ok(3), |n| n.parse())?;
    let documents = source::path::read(Path::new(&text), &mut |_, _| ())?.documents;
    let texts: Vec<&str> = documents.iter().map(|d| d.text.as_str()).collect();
    let bytes: usize = texts.iter().map(|t| t.len()).sum();
    let tokenizer = match which.parse() {
        Ok(size) => {
            let mut sample = 0;
            let some = texts.iter().take_while(|t| {
                sample += t.len();
                sample < 16 << 20
            });
            bpe::train(&some.copied().collect::<Vec<_>>(), size, &mut |_| ())?
        }
        Err(_) => Tokenizer::load(Path::new(&which))?,
    };
    let folder = tempfile::tempdir()?;
    let json = folder.path().join("tokenizer.json");
    tokenizer.save(&json)?;
    let library = tokenizers::Tokenizer::from_file(&json).map_err(|e| e.to_string())?;
    let ours = || -> Result<usize, Box<dyn Error>> {
        let pieces: Vec<&[&str]> = texts.chunks(64).collect();
        let ids: Vec<Vec<Vec<u32>>> =
            pieces.par_iter().map(|piece| tokenizer.encode_all(piece)).collect::<Result<_, _>>()?;
        Ok(ids.iter().flatten().map(Vec::len).sum())
    };
    let theirs = || -> Result<usize, Box<dyn Error>> {
        let mut tokens = 0;
        // In batches, as it keeps a string and offsets of every token.
        for batch in texts.chunks(4096) {
            let encoded = library.encode_batch(batch.to_vec(), false).map_err(|e| e.to_string())?;
            tokens += encoded.iter().map(|e| e.get_ids().len()).sum::<usize>();
        }
        Ok(tokens)
    };
    let fast = || -> Result<usize, Box<dyn Error>> {
        let mut tokens = 0;
        for batch in texts.chunks(4096) {
            let encoded = library.encode_batch_fast(batch.to_vec(), false).map_err(|e| e.to_string())?;
            tokens += encoded.iter().map(|e| e.get_ids().len()).sum::<usize>();
        }
        Ok(tokens)
    };
    let time = |work: &dyn Fn() -> Result<usize, Box<dyn Error>>| -> Result<(usize, f64), Box<dyn Error>> {
        let started = Instant::now();
        let tokens = work()?;
        Ok((tokens, bytes as f64 / started.elapsed().as_secs_f64() / 1e6))
    };
    println!(
        "{:.1} MB, {} documents, {} threads",
        bytes as f64 / 1e6,
        texts.len(),
        rayon::current_num_threads()
    );
    for round in 0..rounds {
        let ((a, ours), (b, theirs), (c, fast)) = (time(&ours)?, time(&theirs)?, time(&fast)?);
        println!(
            "round {round}: ours {ours:.1} MB/s, encode_batch {theirs:.1} MB/s, encode_batch_fast {fast:.1} MB/s: \
             {:.2} and {:.2} times; tokens {a} {b} {c}",
            ours / theirs,
            ours / fast
        );
    }
    Ok(())
}
