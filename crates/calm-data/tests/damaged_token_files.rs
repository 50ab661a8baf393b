//! Token files that were damaged, with headers that claim to be whole: refused, or read without a panic.

#![allow(clippy::unwrap_used)]

use calm_data::token_file::TokenWriter;
use calm_data::{TokenFile, Tokenizer};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// Bytes of the header; its last 32 are the hash of the others.
const HEADER: usize = 168;

fn whole(wide: bool) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tokens");
    let mut writer = TokenWriter::new(if wide { 70_000 } else { 300 }, [1; 32], [2; 32]);
    for n in [5u32, 0, 17, 1] {
        writer.push(&(0..n).collect::<Vec<_>>(), u64::from(n) * 2);
    }
    drop(writer.write(&path).unwrap());
    std::fs::read(path).unwrap()
}

#[test]
fn five_thousand_damaged_files_are_refused_or_read() {
    let tokenizer = Tokenizer::characters(["some text"]);
    let mut runner = TestRunner::deterministic();
    let folder = tempfile::tempdir().unwrap();
    let (mut opened, mut verified) = (0, 0);
    let files = [whole(false), whole(true)];
    for number in 0..5000 {
        let rng = runner.rng();
        let mut bytes = files[number % 2].clone();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..6) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.extend([0; 8]),
                2 if at + 8 <= bytes.len() => {
                    bytes[at..at + 8]
                        .copy_from_slice(&[0, 1, u64::MAX, 1 << 40][rng.random_range(0..4)].to_le_bytes());
                }
                _ => bytes[at] ^= 1 << rng.random_range(0..8),
            }
        }
        // As if it had been written so: otherwise its hash alone would keep us out.
        if bytes.len() >= HEADER {
            let hash = *blake3::hash(&bytes[..HEADER - 32]).as_bytes();
            bytes[HEADER - 32..HEADER].copy_from_slice(&hash);
        }
        let path = folder.path().join(format!("{number}.tokens"));
        std::fs::write(&path, &bytes).unwrap();
        let Ok(file) = TokenFile::open(&path) else { continue };
        opened += 1;
        verified += usize::from(file.verify().is_ok());
        for i in 0..file.len() {
            let ids = file.document(i);
            assert_eq!(ids.len(), file.document_len(i));
            let _ = (tokenizer.decode(&ids), file.byte_len(i), file.slice(i, 2, 3));
        }
        std::fs::remove_file(path).unwrap();
    }
    println!("5000 files, {opened} could be opened, {verified} of them with the right hash of their tokens");
    assert!(opened > 500, "{opened}");
}
