//! `calm generate --prompts`: a file of prompts in, a file of answers out, in the same order.
//!
//! Prompts are numbered, and a text follows from settings, seed and number alone. So a stopped call is continued by
//! the next one: what the file of answers holds is compared with the prompts, and the rest is added.

mod answers;
mod reading;

use std::path::Path;

use anyhow::Result;
use calm_eval::generate::{Decoding, GenerateOptions};
use calm_eval::prompts::{Answer, Prompt, Stopped, answer};
use calm_run::checkpoint::Which;
use calm_train::plan::describe;
use serde_json::json;

use self::answers::{Answers, Settings};
use self::reading::{Asked, Prompts};
use super::drawing::{Bent, Model, explain};
use super::which;
use crate::args::GenerateArgs;
use crate::error::Hinted;
use crate::ui::{Printer, Unit};
use crate::version;

/// Answers the prompts of a file.
pub fn run(
    path: &Path,
    model: &Model<'_>,
    options: &GenerateOptions,
    args: &GenerateArgs,
    printer: &Printer,
) -> Result<()> {
    if args.many.batch == 0 {
        return Err(Hinted::new("--batch 0 continues nothing", "give 1 or more").into());
    }
    let Model { run, tokenizer, sampler, .. } = *model;
    let field = args.many.field.as_deref();
    let total = reading::count(path, field)?;
    let mut prompts = Prompts::open(path, field)?;
    let settings = settings(model, which(&args.source), options, args)?;
    let mut answers = Answers::open(&args.many.out, settings, printer)?;
    let there = answers.go_on(&mut prompts)?;
    if there > 0 {
        printer.note(format!("{there} prompts are answered already in {}", args.many.out.display()));
    }
    let progress = printer.progress("prompts", total, Unit::Other("prompts"));
    progress.start_at(there);
    let least = if run.config.bos_chunk { 0 } else { run.config.chunk_size() };
    let mut waiting: std::collections::VecDeque<(Asked, Vec<u32>)> = std::collections::VecDeque::new();
    let shared = std::cell::RefCell::new(&mut waiting);
    let next = || -> Result<Option<Prompt>> {
        let Some(asked) = prompts.next().transpose()? else { return Ok(None) };
        let tokens = tokenizer.encode(&asked.prompt)?;
        if tokens.len() < least {
            return Err(Hinted::new(
                format!(
                    "{}, line {}: this model knows no start of document, it continues a text of {least} or more tokens",
                    path.display(),
                    asked.line
                ),
                "give a longer prompt there",
            )
            .into());
        }
        let number = asked.number;
        shared.borrow_mut().push_back((asked, tokens.clone()));
        Ok(Some(Prompt { number, tokens }))
    };
    let (mut done, mut tokens, mut bent) = (there, 0, Bent::default());
    let take = |answer: Answer| -> Result<()> {
        let Some((asked, before)) = shared.borrow_mut().pop_front() else { return Ok(()) };
        let mut text = tokenizer.stream_after(&asked.prompt, &before);
        let said = text.push(&answer.tokens) + &text.finish();
        answers.add(asked, &said, &answer)?;
        done += 1;
        tokens += answer.tokens.len() as u64;
        bent.add(&answer.report);
        progress.tokens(tokens);
        progress.set(done, "");
        Ok(())
    };
    progress.tokens(0);
    let stopped = answer(sampler, options, args.many.batch, next, take);
    match stopped {
        Ok(()) => {}
        Err(Stopped::Caller(error)) => return Err(error),
        Err(Stopped::Model(error)) => return Err(error.into()),
        Err(Stopped::Prompt(number, error)) => {
            let what = format!("{}, prompt {}", path.display(), u64::from(number) + 1);
            return Err(explain(error).context(what));
        }
    }
    answers.finish()?;
    progress.finish("");
    bent.tell("prompts", printer);
    Ok(())
}

/// All that texts depend on besides their prompts, by the names of the command line.
fn settings(
    model: &Model<'_>,
    which: Which,
    options: &GenerateOptions,
    args: &GenerateArgs,
) -> Result<Settings> {
    let run = model.run;
    // Two cards of one kind draw the same.
    let device = describe(model.device);
    let device = device.split_once('(').map_or(&*device, |(_, card)| card.trim_end_matches(')'));
    let lm = run.checkpoints(calm_run::Stage::Lm);
    let weights = lm.model_hash(lm.step(which)?)?;
    let autoencoder = match run.config.model.autoencoder() {
        Some(_) => json!(run.autoencoder_hash()?),
        None => json!(null),
    };
    let (sampler, draws) = match options.decoding {
        Decoding::Plain => (json!(null), json!(null)),
        Decoding::Batch { samples, .. } => (json!("batch"), json!(samples)),
        Decoding::Exact { options, .. } => (json!("exact"), json!(options.budget)),
    };
    let decode = run.config.model.decode().map(|decode| format!("{decode:?}").to_lowercase());
    Ok(Settings::new([
        ("version", json!(version::VERSION)),
        ("device", json!(device)),
        ("precision", json!(run.config.precision)),
        ("weights", json!(weights)),
        ("autoencoder", autoencoder),
        ("--seed", json!(args.seed)),
        ("--max-tokens", json!(args.max_tokens)),
        ("--temperature", json!(args.temperature)),
        ("--top-p", json!(args.top_p)),
        ("--sampler", sampler),
        ("--draws", draws),
        ("--fallback", json!(args.fallback)),
        ("--decode", json!(decode)),
        ("--field", json!(args.many.field)),
    ]))
}
