//! `calm compress` and `calm decompress`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use calm_data::Tokenizer;
use calm_lm::LanguageModel;
use calm_lossless::{Coder, Kind};
use calm_nn::Precision;
use calm_run::Run;
use calm_train::models;
use candle_core::Device;
use serde_json::json;

use super::{open_run, which, write_new};
use crate::args::{CompressArgs, DecompressArgs, Format, RunSource};
use crate::error::Hinted;
use crate::ui::{Printer, format};

/// The ending of compressed files.
const ENDING: &str = "calmz";

/// A run's model, in the one arithmetic that is the same everywhere: 32 bits on the CPU.
pub(super) struct Coding {
    run: Run,
    model: Box<dyn LanguageModel>,
    tokenizer: Tokenizer,
}

impl Coding {
    /// Reads it.
    pub(super) fn open(source: &RunSource) -> Result<Self> {
        let mut run = open_run(source)?;
        // Its parameters are kept in 32 bits whatever it was trained in.
        run.config.precision = Precision::F32;
        let run = run.on(&Device::Cpu);
        let tokenizer = run.tokenizer()?;
        let model = models::load_lm(&run, which(source), &tokenizer, &Device::Cpu)?;
        Ok(Self { run, model, tokenizer })
    }

    /// As a coder.
    pub(super) fn coder(&self) -> Result<Coder<'_>> {
        Ok(Coder::probed(self.model.as_ref(), &self.tokenizer)?)
    }

    pub(super) fn run(&self) -> &Run {
        &self.run
    }

    pub(super) fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        Hinted::new(format!("cannot read {}: {e}", path.display()), "name a file that can be read").into()
    })
}

fn refuse_to_replace(path: &Path, force: bool) -> Result<()> {
    if path.exists() && !force {
        let what = format!("{} is there already", path.display());
        return Err(Hinted::new(what, "name another with --out, or replace it with --force").into());
    }
    Ok(())
}

/// `calm compress`
pub fn compress(args: &CompressArgs, printer: &Printer) -> Result<()> {
    let out = args.out.clone().unwrap_or_else(|| {
        let mut name = args.file.clone().into_os_string();
        name.push(format!(".{ENDING}"));
        PathBuf::from(name)
    });
    refuse_to_replace(&out, args.force)?;
    let file = read(&args.file)?;
    let coding = Coding::open(&args.source)?;
    let coder = coding.coder()?;
    let begin = Instant::now();
    let done = coder.compress(&file, &args.coding.options())?;
    let seconds = begin.elapsed().as_secs_f64();
    // Something may have been made there in the meantime.
    refuse_to_replace(&out, args.force)?;
    write_new(&out, &done.bytes)?;
    let of = |kind: Kind| done.header.blocks.iter().filter(|block| block.kind == kind).count();
    let bits = |bytes: usize| 8.0 * bytes as f64 / file.len().max(1) as f64;
    let (model, counted, stored) = (of(Kind::Tokens), of(Kind::Bytes), of(Kind::Stored));
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&json!({
            "file": args.file, "out": out, "bytes": file.len(), "compressed": done.bytes.len(),
            "bits_per_byte": bits(done.bytes.len()), "model": coder.model(), "model_bytes": coder.model_bytes(),
            "windows": done.header.windows, "overlap": done.header.overlap, "draws": done.header.draws,
            "blocks": { "model": model, "bytes": counted, "stored": stored }, "seconds": seconds,
        }))?)?,
        Format::Table => printer.result(&format!(
            "{}: {} -> {} bytes, {:.3} bits a byte, {}\nblocks: {model} by the model, {counted} by counts of bytes, {stored} as they are",
            out.display(),
            file.len(),
            done.bytes.len(),
            bits(done.bytes.len()),
            format::rate(file.len() as f64 / seconds.max(1e-9), "B"),
        ))?,
    }
    Ok(())
}

/// `calm decompress`
pub fn decompress(args: &DecompressArgs, printer: &Printer) -> Result<()> {
    let out = match &args.out {
        Some(out) => out.clone(),
        None if args.file.extension().is_some_and(|e| e == ENDING) => args.file.with_extension(""),
        None => {
            let what = format!("{} does not end in .{ENDING}", args.file.display());
            return Err(Hinted::new(what, "say where the original goes with --out").into());
        }
    };
    refuse_to_replace(&out, args.force)?;
    let file = read(&args.file)?;
    // What is no such file, or is cut off, is known before a model is read.
    calm_lossless::read_header(&file)?;
    let coding = Coding::open(&args.source)?;
    let coder = coding.coder()?;
    let begin = Instant::now();
    let original = coder.decompress(&file)?;
    let seconds = begin.elapsed().as_secs_f64();
    // Something may have been made there in the meantime.
    refuse_to_replace(&out, args.force)?;
    write_new(&out, &original)?;
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&json!({
            "file": args.file, "out": out, "compressed": file.len(), "bytes": original.len(), "seconds": seconds,
        }))?)?,
        Format::Table => printer.result(&format!(
            "{}: {} -> {} bytes, {}",
            out.display(),
            file.len(),
            original.len(),
            format::rate(original.len() as f64 / seconds.max(1e-9), "B"),
        ))?,
    }
    Ok(())
}
