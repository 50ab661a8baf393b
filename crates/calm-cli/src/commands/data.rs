//! `calm data`: the text of a configuration, prepared, counted, shown and checked.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use calm_config::load;
use calm_data::{
    Batch, Corpus, Inspection, Layout, Overlap, Preparation, RowSource, Tokenizer, inspect, overlap,
    prepare_with,
};
use calm_run::config::RunConfig;
use calm_run::run::{CONFIG, RECORD};
use calm_train::reporter::Reporter;
use serde::Serialize;

use crate::args::{DataArgs, DataCommand, Format, SampleArgs};
use crate::error::Hinted;
use crate::screen::Screen;
use crate::shipped;
use crate::ui::format::{bytes, count};
use crate::ui::{Printer, Table};

/// Runs the command.
pub fn run(command: &DataCommand, printer: &Printer) -> Result<()> {
    match command {
        DataCommand::Prepare(args) => prepare(args, printer),
        DataCommand::Info(args) => info(args, printer),
        DataCommand::Sample(args) => sample(args, printer),
        DataCommand::Check(args) => check(args, printer),
    }
}

fn corpus(args: &DataArgs, read_again: bool, printer: &Printer) -> Result<(RunConfig, Corpus)> {
    let name = &args.source.config;
    let file = Path::new(name);
    // The text of a run is what it reads now.
    let text = match (file.file_name().is_some_and(|name| name == CONFIG), file.parent()) {
        (true, Some(folder)) if folder.join(RECORD).is_file() => super::of_run(file, folder)?,
        _ => shipped::find(name)?,
    };
    let config: RunConfig = load(text, &args.source.overrides)?.value;
    let mut screen = Screen::new(printer);
    let how = Preparation { read_again, ..Preparation::default() };
    let mut corpus =
        prepare_with(&config.data, &config.tokenizer, &args.cache, how, &mut |p| screen.data(&p))?;
    screen.data_done();
    corpus.tokenizer = config.fit(corpus.tokenizer).map_err(calm_run::Error::from)?;
    for note in corpus.tokenizer.notes() {
        printer.note(format!("tokenizer: {note}"));
    }
    Ok((config, corpus))
}

fn json(value: &impl Serialize, printer: &Printer) -> Result<()> {
    Ok(printer.result(&serde_json::to_string_pretty(value)?)?)
}

fn prepare(args: &DataArgs, printer: &Printer) -> Result<()> {
    let (_, corpus) = corpus(args, false, printer)?;
    let summary = &corpus.summary;
    if args.format == Format::Json {
        return json(summary, printer);
    }
    printer.result(&summary.description)?;
    let mut table = Table::new(&["", "documents", "text", "tokens", "sections"]);
    for (name, side, file) in
        [("train", summary.train, &corpus.train), ("held out", summary.validation, &corpus.validation)]
    {
        table.row([
            name.to_owned(),
            count(side.documents as f64),
            bytes(side.bytes as f64),
            count(side.tokens as f64),
            file.sections().to_string(),
        ]);
    }
    printer.table(&table)?;
    let listed = summary.bad.len();
    for bad in &summary.bad {
        printer.result(&format!("left out: {bad}"))?;
    }
    if summary.skipped.bad > listed {
        printer.result(&format!("left out: {} more", summary.skipped.bad - listed))?;
    }
    let line = format!(
        "text {:.12}, tokenizer {:.12}, V = {}",
        corpus.hash, corpus.tokenizer_hash, summary.vocab_size
    );
    printer.result(&line)?;
    Ok(())
}

/// What both sides of a text hold.
#[derive(Serialize)]
struct Info {
    description: String,
    hash: String,
    tokenizer_hash: String,
    vocab_size: usize,
    train: Inspection,
    validation: Inspection,
}

fn info(args: &DataArgs, printer: &Printer) -> Result<()> {
    let (config, corpus) = corpus(args, false, printer)?;
    let k = config.chunk_size();
    let info = Info {
        train: inspect(&corpus.train, &corpus.tokenizer, k, &mut |_| ())?,
        validation: inspect(&corpus.validation, &corpus.tokenizer, k, &mut |_| ())?,
        description: corpus.summary.description,
        hash: corpus.hash,
        tokenizer_hash: corpus.tokenizer_hash,
        vocab_size: corpus.summary.vocab_size,
    };
    if args.format == Format::Json {
        return json(&info, printer);
    }
    printer.result(&info.description)?;
    let mut table = Table::new(&["", "train", "held out"]);
    let mut line = |name: &str, of: &dyn Fn(&Inspection) -> String| {
        table.row([name.to_owned(), of(&info.train), of(&info.validation)]);
    };
    line("documents", &|i| count(i.documents as f64));
    line("text", &|i| bytes(i.bytes as f64));
    line("tokens", &|i| count(i.tokens as f64));
    line("bytes a token", &|i| format!("{:.3}", i.bytes_per_token));
    line("longest document, tokens", &|i| {
        format!("{} (number {})", count(i.longest as f64), i.longest_document)
    });
    line("duplicates", &|i| {
        let about = if i.duplicates_share < 1.0 { "about " } else { "" };
        format!("{about}{}", count(i.duplicates as f64))
    });
    if info.train.counting.is_some() {
        let of = |i: &Inspection| i.counting.unwrap_or_default();
        let share =
            |n: u64, all: u64| format!("{} ({:.1} %)", count(n as f64), 100.0 * n as f64 / all.max(1) as f64);
        line("tokens that count", &|i| share(of(i).tokens, i.tokens));
        line(&format!("chunks that count, K = {k}"), &|i| share(of(i).chunks, of(i).of_chunks));
    }
    line("bytes unknown to the tokenizer", &|i| format!("{:.4} %", 100.0 * i.unknown));
    printer.table(&table)?;
    Ok(())
}

/// A row as the model sees it.
#[derive(Serialize)]
struct Row {
    /// Texts of its chunks; BOS, EOS and PAD by these names.
    chunks: Vec<String>,
    /// Numbers of the documents that the chunks belong to; null for filler.
    documents: Vec<Option<u32>>,
    /// Which chunks count in loss and scores, where not all do.
    #[serde(skip_serializing_if = "Option::is_none")]
    counting: Option<Vec<bool>>,
}

fn sample(args: &SampleArgs, printer: &Printer) -> Result<()> {
    let (config, corpus) = corpus(&args.data, false, printer)?;
    let stage = &config.train.lm;
    if args.rows == 0 {
        return Err(Hinted::new("--rows 0 shows nothing", "give 1 or more").into());
    }
    let (chunk_size, context, bos_chunk) = (config.chunk_size(), stage.context, config.bos_chunk);
    let plan = corpus.plan(Layout { chunk_size, context, bos_chunk }, config.seed)?;
    let shown = args.rows.min(stage.batch_rows);
    let batch = RowSource::batch(&plan, args.step, 0..shown, stage.batch_rows)?;
    let rows: Vec<Row> = (0..batch.rows).map(|b| row(&batch, b, &corpus.tokenizer)).collect();
    if args.data.format == Format::Json {
        return json(&rows, printer);
    }
    for (b, row) in rows.iter().enumerate() {
        printer.result(&format!("row {b} of step {}:\n{}", args.step, shown_row(&batch, b, row)))?;
    }
    if shown < args.rows {
        printer.note(format!("a step has {shown} rows: --step shows others"));
    }
    Ok(())
}

fn row(batch: &Batch, b: usize, tokenizer: &Tokenizer) -> Row {
    let places = b * batch.context..(b + 1) * batch.context;
    let documents = places.map(|place| batch.filled[place].then_some(batch.documents[place])).collect();
    let chunks = (0..batch.context).map(|s| chunk_text(batch.chunk(b, s), tokenizer)).collect();
    let counts = |s| (0..batch.chunk_size).any(|n| batch.counts(b, s, n));
    let counting = batch.counting.is_some().then(|| (0..batch.context).map(counts).collect());
    Row { chunks, documents, counting }
}

/// The text of a chunk; special tokens by their names.
fn chunk_text(ids: &[u32], tokenizer: &Tokenizer) -> String {
    let special = tokenizer.special();
    let mut text = String::new();
    let mut plain = Vec::new();
    for id in ids {
        let name = [(special.bos, "<BOS>"), (special.eos, "<EOS>"), (special.pad, "<PAD>")];
        match name.iter().find(|(special, _)| special == id) {
            Some((_, name)) => {
                text += &tokenizer.decode(&std::mem::take(&mut plain));
                text += name;
            }
            None => plain.push(*id),
        }
    }
    text + &tokenizer.decode(&plain)
}

/// Stands before a chunk that counts, where not all do.
const COUNTS: char = '▸';

/// On one line: control characters are written out, `|` ends a chunk, brackets stand around each piece of a document.
fn shown_row(batch: &Batch, b: usize, row: &Row) -> String {
    let mut line = String::new();
    for (s, chunk) in row.chunks.iter().enumerate() {
        let place = b * batch.context + s;
        if !batch.filled[place] {
            let _ = write!(line, " {} × filler", batch.context - s);
            break;
        }
        let starts = s == 0 || batch.segments[place - 1] != batch.segments[place];
        let ends = s + 1 == batch.context || batch.segments[place + 1] != batch.segments[place];
        line.push_str(if starts { "[" } else { "|" });
        if row.counting.as_ref().is_some_and(|counting| counting[s]) {
            line.push(COUNTS);
        }
        for c in chunk.chars() {
            match c {
                c if c.is_control() => line.extend(c.escape_debug()),
                c => line.push(c),
            }
        }
        line.push_str(if ends { "]" } else { "" });
    }
    line
}

/// What a check found.
#[derive(Serialize)]
struct Checked {
    documents: u64,
    bytes: u64,
    tokens: u64,
    hash: String,
    overlap: Overlap,
}

fn check(args: &DataArgs, printer: &Printer) -> Result<()> {
    let (_, corpus) = corpus(args, true, printer)?;
    corpus.train.verify()?;
    corpus.validation.verify()?;
    let overlap = overlap(&corpus.train, &corpus.validation, &mut |_| ())?;
    let (train, validation) = (corpus.summary.train, corpus.summary.validation);
    let checked = Checked {
        documents: train.documents + validation.documents,
        bytes: train.bytes + validation.bytes,
        tokens: train.tokens + validation.tokens,
        hash: corpus.hash,
        overlap,
    };
    if args.format == Format::Json {
        return json(&checked, printer);
    }
    printer.result(&format!(
        "text and tokens are whole: {} documents, {}, {} tokens",
        count(checked.documents as f64),
        bytes(checked.bytes as f64),
        count(checked.tokens as f64)
    ))?;
    let Overlap { compared, near, pairs } = &checked.overlap;
    printer
        .result(&format!("{near} of {compared} held-out documents stand in the training text, or nearly"))?;
    if !pairs.is_empty() {
        let mut table = Table::new(&["held out", "train", "in common"]);
        for pair in pairs {
            table.row([
                pair.held_out.to_string(),
                pair.train.to_string(),
                format!("{:.0} %", 100.0 * pair.similarity),
            ]);
        }
        printer.table(&table)?;
    }
    Ok(())
}
