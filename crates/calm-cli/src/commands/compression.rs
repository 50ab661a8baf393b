//! `calm eval compression`: bits a byte on some texts, beside other compressors.

use std::time::{Duration, Instant};

use anyhow::Result;
use calm_lossless::{Coder, Options, rivals};
use calm_train::machine::peak_memory;
use calm_train::pipeline::prepare_data;
use serde::Serialize;

use super::compress::{Coding, read};
use crate::args::{CompressionArgs, Format};
use crate::error::Hinted;
use crate::screen::Screen;
use crate::ui::{Printer, Table, format};

/// One compressor on one text.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    /// None: it is not installed, or failed.
    compressed: Option<usize>,
    bits_per_byte: Option<f64>,
    /// Over blocks; of the model alone, whose file says how long each is.
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_byte_se: Option<f64>,
    /// With the model's numbers counted as 32-bit floats.
    bits_per_byte_with_model: Option<f64>,
    seconds: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds_back: Option<f64>,
}

/// All compressors on one text.
#[derive(Debug, Serialize)]
struct OnText {
    text: String,
    bytes: usize,
    rows: Vec<Row>,
}

/// Everything that is printed.
#[derive(Debug, Serialize)]
struct Report {
    run: String,
    model: String,
    model_bytes: usize,
    texts: Vec<OnText>,
    /// Of this process so far.
    peak_memory: Option<u64>,
}

/// `calm eval compression`
pub fn run(args: &CompressionArgs, printer: &Printer) -> Result<()> {
    if args.bytes == 0 {
        return Err(Hinted::new("--bytes 0 leaves nothing to compress", "give 1 or more").into());
    }
    let coding = Coding::open(&args.source)?;
    let texts = texts(args, &coding, printer)?;
    let coder = coding.coder()?;
    let mut report = Report {
        run: coding.run().folder.display().to_string(),
        model: coder.model(),
        model_bytes: coder.model_bytes(),
        texts: Vec::new(),
        peak_memory: None,
    };
    for (text, mut bytes) in texts {
        bytes.truncate(args.bytes);
        report.texts.push(measure(&coder, text, &bytes, &args.coding.options())?);
    }
    report.peak_memory = peak_memory();
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&report)?)?,
        Format::Table => print(&report, printer)?,
    }
    Ok(())
}

/// Name and bytes of each text.
fn texts(args: &CompressionArgs, coding: &Coding, printer: &Printer) -> Result<Vec<(String, Vec<u8>)>> {
    if !args.files.is_empty() {
        let named = |path: &std::path::PathBuf| Ok((path.display().to_string(), read(path)?));
        return args.files.iter().map(named).collect();
    }
    let mut screen = Screen::new(printer);
    let held_out = prepare_data(coding.run(), &args.source.cache, &mut screen)?.validation;
    let mut bytes = Vec::new();
    for i in 0..held_out.len() {
        if bytes.len() >= args.bytes {
            break;
        }
        bytes.extend(coding.tokenizer().decode_bytes(&held_out.document(i)));
        bytes.push(b'\n');
    }
    Ok(vec![("held-out documents".to_owned(), bytes)])
}

fn measure(coder: &Coder<'_>, text: String, bytes: &[u8], options: &Options) -> Result<OnText> {
    let begin = Instant::now();
    let done = coder.compress(bytes, options)?;
    let there = begin.elapsed();
    let begin = Instant::now();
    let back = coder.decompress(&done.bytes)?;
    let home = begin.elapsed();
    if back != bytes {
        let what = format!("{text} did not come back as it was");
        return Err(Hinted::new(what, "please report it with the file").into());
    }
    let rate = |length: usize| 8.0 * length as f64 / bytes.len().max(1) as f64;
    let row = |name: String, length: Option<usize>, model: usize, time: Duration| Row {
        name,
        compressed: length,
        bits_per_byte: length.map(rate),
        bits_per_byte_se: None,
        bits_per_byte_with_model: length.map(|length| rate(length + model)),
        seconds: time.as_secs_f64(),
        seconds_back: None,
    };
    let blocks: Vec<(f64, f64)> =
        done.header.blocks.iter().map(|b| (8.0 * f64::from(b.code), f64::from(b.bytes))).collect();
    let mut rows = vec![Row {
        bits_per_byte_se: ratio_error(&blocks),
        seconds_back: Some(home.as_secs_f64()),
        ..row("this model".to_owned(), Some(done.bytes.len()), coder.model_bytes(), there)
    }];
    rows.extend(rivals::all(bytes).into_iter().map(|rival| row(rival.name, rival.bytes, 0, rival.time)));
    Ok(OnText { text, bytes: bytes.len(), rows })
}

/// The standard error of Σ x / Σ y over pairs that are drawn alike; None of fewer than two.
fn ratio_error(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    if n < 2.0 {
        return None;
    }
    let (x, y) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0, y + pair.1));
    let squares: f64 = pairs.iter().map(|pair| (pair.0 - x / y * pair.1).powi(2)).sum();
    Some((n / (n - 1.0) * squares).sqrt() / y)
}

fn print(report: &Report, printer: &Printer) -> Result<()> {
    let headers = ["compressor", "bytes", "bits/byte", "with the model", "seconds", "back"];
    for on in &report.texts {
        let title =
            format!("{}, {} bytes ({}, model {})", on.text, on.bytes, report.run, &report.model[..12]);
        let mut table = Table::new(&headers).title(title);
        for row in &on.rows {
            let Some((length, bits)) = row.compressed.zip(row.bits_per_byte) else {
                table.row([row.name.as_str(), "not there, or failed", "", "", "", ""]);
                continue;
            };
            table.row([
                row.name.clone(),
                length.to_string(),
                row.bits_per_byte_se
                    .map_or_else(|| format!("{bits:.3}"), |se| format!("{bits:.3} ± {se:.3}")),
                row.bits_per_byte_with_model.map_or_else(String::new, |bits| format!("{bits:.2}")),
                format!("{:.2}", row.seconds),
                row.seconds_back.map_or_else(String::new, |s| format!("{s:.2}")),
            ]);
        }
        printer.table(&table)?;
    }
    let memory = report.peak_memory.map_or_else(|| "unknown".to_owned(), |m| format::bytes(m as f64));
    printer.result(&format!(
        "the model is {} in 32 bits; ± is one standard error over blocks; peak memory {memory}",
        format::bytes(report.model_bytes as f64),
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_ratio_is_that_of_equal_blocks_means() {
        // Blocks of one length: the standard error of a mean, here of 1, 2, 3, 4.
        let pairs: Vec<(f64, f64)> = (1..5).map(|i| (f64::from(i) * 10.0, 10.0)).collect();
        let exact = (5.0f64 / 3.0 / 4.0).sqrt();
        assert!((ratio_error(&pairs).unwrap() - exact).abs() < 1e-12);
        assert_eq!(ratio_error(&pairs[..1]), None);
    }
}
