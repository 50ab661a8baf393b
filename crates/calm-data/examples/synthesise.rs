//! Writes a text of any size from the sources of the crates on this machine, to try what large texts need.
//!
//! ```console
//! $ cargo run --release -p calm-data --example synthesise -- FOLDER GIGABYTES
//! ```
//!
//! Files of about 1 GB, `{"text": ...}` a line. The sources are gone through again and again; each document begins with a
//! number, and its lines are turned by another number of bytes each time, so that no two are equal. The same machine gives
//! the same text.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use calm_data::source::crates::text_files;
use calm_files::Pending;

const FILE_BYTES: u64 = 1_000_000_000;

fn sources() -> Result<Vec<String>, Box<dyn Error>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(std::env::home_dir()?.join(".cargo"))).ok_or("no home folder")?;
    let mut crates = Vec::new();
    for registry in fs::read_dir(home.join("registry/src"))? {
        for found in fs::read_dir(registry?.path())? {
            crates.push(found?.path());
        }
    }
    crates.sort();
    let mut texts = Vec::new();
    for folder in crates {
        for (_, path) in text_files(&folder)? {
            let text = fs::read_to_string(path).unwrap_or_default();
            if text.len() > 100 && text.len() < 400_000 && !text.contains('\0') {
                texts.push(text);
            }
        }
    }
    Ok(texts)
}

/// A place where a line begins, near a number of bytes.
fn line_start(text: &str, at: usize) -> usize {
    let from = (at..text.len()).find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    text[from..].find('\n').map_or(0, |line| from + line + 1)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().ok_or("which folder?")?);
    let total = (args.next().ok_or("how many gigabytes?")?.parse::<f64>()? * 1e9) as u64;
    let texts = sources()?;
    let (mut written, mut number, mut files) = (0u64, 0usize, 0);
    while written < total {
        let path: &Path = &folder.join(format!("{files:04}.jsonl"));
        let mut out = Pending::begin(path)?;
        let (mut bytes, mut lines) = (0, Vec::new());
        while bytes < FILE_BYTES && written < total {
            let text = &texts[number % texts.len()];
            let turn = line_start(text, number.wrapping_mul(7919) % text.len());
            let text = format!("// {number}\n{}{}", &text[turn..], &text[..turn]);
            serde_json::to_writer(&mut lines, &serde_json::json!({ "text": text }))?;
            lines.push(b'\n');
            (written, number) = (written + text.len() as u64, number + 1);
            if lines.len() > 1 << 20 {
                bytes += lines.len() as u64;
                out.append(&lines)?;
                lines.clear();
            }
        }
        out.append(&lines)?;
        out.finish()?;
        files += 1;
    }
    println!("{number} documents of {} sources, {written} bytes, {files} files", texts.len());
    Ok(())
}
