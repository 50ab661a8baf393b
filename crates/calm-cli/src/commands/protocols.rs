//! `calm eval brierlm --protocol` and `--task`.

use anyhow::Result;
use calm_data::spread;
use calm_eval::EvalConfig;
use calm_eval::protocol::{Protocol, Reader};
use calm_lm::DrawKind;
use calm_run::Run;
use calm_run::results::BrierResults;
use calm_train::pipeline::prepare_data;
use calm_train::reporter::Reporter;
use calm_train::scoring::{Scorer, ngram_models, reader};
use calm_train::task::{Task, TaskReference};
use candle_core::Device;
use serde::Serialize;

use super::{text_of, which};
use crate::args::{BrierArgs, Format, ProtocolName};
use crate::error::Hinted;
use crate::report as tables;
use crate::screen::Screen;
use crate::ui::Printer;

/// Tokens scored per held-out document where neither the command nor another text says how many.
const DOCUMENT_TOKENS: usize = 1024;

/// Whether the command line says anything about protocols.
pub fn asked(args: &BrierArgs) -> bool {
    let p = &args.protocol;
    p.protocol.is_some()
        || p.every.is_some()
        || p.context.is_some()
        || p.tokens.is_some()
        || p.document_bos
        || p.task.is_some()
}

/// A task's results.
#[derive(Serialize)]
struct TaskResults<'a> {
    task: TaskName<'a>,
    documents: usize,
    aligned: &'a BrierResults,
    reference: &'a BrierResults,
}

/// Which task, which version of it, which text.
#[derive(Serialize)]
struct TaskName<'a> {
    name: &'a str,
    version: u64,
    blake3: &'a str,
}

/// Tokens scored per document. The same number for every K, so that runs compare.
fn tokens(args: &BrierArgs, reader: &Reader) -> Option<usize> {
    match (args.protocol.tokens, args.text.chunks) {
        (Some(tokens), _) => tokens.0,
        (None, Some(chunks)) => chunks.0.map(|c| c * reader.chunk_size),
        (None, None) => args.text.data.is_none().then_some(DOCUMENT_TOKENS),
    }
}

/// The protocol that the command line describes.
fn single(args: &BrierArgs, reader: &Reader) -> Result<Protocol> {
    let p = &args.protocol;
    let name =
        p.protocol.unwrap_or(if p.document_bos { ProtocolName::Reference } else { ProtocolName::Aligned });
    match name {
        ProtocolName::Aligned => {
            if p.document_bos {
                let hint = "leave it away, or take --protocol reference";
                return Err(Hinted::new("--document-bos belongs to the reference protocol", hint).into());
            }
            let every = p.every.unwrap_or(reader.chunk_size);
            let most = reader.tokens() / every.max(1) * every;
            Ok(Protocol::Aligned {
                every,
                context: p.context.unwrap_or(most),
                first: if reader.bos_chunk { 0 } else { every },
                tokens_per_document: tokens(args, reader),
            })
        }
        ProtocolName::Reference => {
            for (option, given) in [
                ("--every", p.every.is_some()),
                ("--tokens", p.tokens.is_some()),
                ("--chunks", args.text.chunks.is_some()),
            ] {
                if given {
                    let hint =
                        "leave it away: the reference protocol scores whole blocks of joined documents";
                    return Err(Hinted::new(format!("{option} belongs to the aligned protocol"), hint).into());
                }
            }
            let r = TaskReference::default();
            let most = p.context.unwrap_or(usize::MAX);
            let (sampled, exact) = (r.sampled_block.min(most), r.exact_block.min(most));
            whole_block(reader, Protocol::reference(reader, sampled, exact, p.document_bos))
        }
    }
}

/// A block needs a chunk to read and one to predict.
fn whole_block(reader: &Reader, protocol: Protocol) -> Result<Protocol> {
    if protocol.row_tokens() < 2 * reader.chunk_size {
        let least = 2 * reader.chunk_size;
        return Err(Hinted::new("a block needs two chunks", format!("give --context {least} or more")).into());
    }
    Ok(protocol)
}

/// Scores a run by a named protocol, or by both protocols of a task.
pub fn brierlm(
    run: &Run,
    eval: &EvalConfig,
    args: &BrierArgs,
    device: &Device,
    printer: &Printer,
) -> Result<()> {
    let reader = reader(run);
    let task = args.protocol.task.as_deref().map(Task::find).transpose()?;
    if let (Some(task), Some(path)) = (&task, &args.text.data) {
        task.verify(path)?;
    }
    let protocols = match &task {
        None => vec![single(args, &reader)?],
        Some(task) => {
            let most = args.protocol.context.unwrap_or(usize::MAX);
            let capped = Reader { context: reader.context.min(most / reader.chunk_size), ..reader };
            let protocols = task.protocols(&capped, tokens(args, &reader));
            let whole = [task.protocols.aligned.context, task_block(task, &reader)];
            for (protocol, whole) in protocols.iter().zip(whole) {
                whole_block(&reader, *protocol)?;
                if protocol.row_tokens() < whole {
                    printer.warn(format!(
                        "{}: a context of {} tokens instead of the task's {whole}; scores compare with those at \
                         the same context only",
                        protocol.name(),
                        protocol.row_tokens()
                    ));
                }
            }
            protocols.to_vec()
        }
    };
    let mut screen = Screen::new(printer);
    let cache = &args.source.cache;
    // A run that has seen no text (imported, initialised) has no training split to count n-grams in.
    let trained = run.record()?.is_some_and(|r| !r.corpus_hash.is_empty());
    let corpus = match (trained || args.text.data.is_none(), &args.text.data) {
        (false, _) => None,
        (true, None) => Some(prepare_data(run, cache, &mut screen)?),
        (true, Some(_)) => match prepare_data(run, cache, &mut screen) {
            Ok(corpus) => Some(corpus),
            Err(e) => {
                screen.warn(&format!("no n-gram models beside the scores: {e}"));
                None
            }
        },
    };
    let (held_out, tokenizer) = match (&args.text.data, &corpus) {
        (None, Some(corpus)) => (corpus.validation.clone(), corpus.tokenizer.clone()),
        _ => text_of(run, args.other(), cache, &mut screen)?,
    };
    let ngram = match &corpus {
        Some(corpus) if trained => Some(ngram_models(&corpus.train, &tokenizer)?),
        _ => None,
    };
    let documents = spread(held_out.len(), eval.documents);
    // All that can be wrong is found before anything is drawn.
    for protocol in &protocols {
        protocol.view(&held_out, tokenizer.special(), &reader, &documents).map_err(calm_run::Error::from)?;
    }
    let scorer = Scorer::load(run, which(&args.source), &tokenizer, device)?;
    let mut results = Vec::new();
    for protocol in &protocols {
        let (r, _) = scorer.score(&held_out, &documents, protocol, eval, ngram.as_ref(), &mut screen)?;
        results.push(r);
    }
    drop(screen);
    match (args.text.format, &task, &results[..]) {
        (Format::Json, Some(task), [aligned, reference]) => {
            let name = TaskName { name: &task.name, version: task.version, blake3: &task.text.blake3 };
            let out = TaskResults { task: name, documents: documents.len(), aligned, reference };
            printer.result(&serde_json::to_string_pretty(&out)?)?;
        }
        (Format::Json, ..) => {
            for r in &results {
                printer.result(&serde_json::to_string_pretty(r)?)?;
            }
        }
        (Format::Table, ..) => {
            for r in &results {
                printer.result(&tables::brier(&run.config.model, r))?;
            }
        }
    }
    Ok(())
}

/// Tokens of a task's block for this kind of model.
fn task_block(task: &Task, reader: &Reader) -> usize {
    let r = task.protocols.reference;
    let block = match reader.draws {
        DrawKind::Sampled => r.sampled_block,
        DrawKind::Exact => r.exact_block,
    };
    block / reader.chunk_size * reader.chunk_size
}
