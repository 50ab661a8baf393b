//! `calm generate`: text as it is produced.

use calm_train::models;
use std::io::Read;
use std::time::Instant;

use anyhow::{Result, bail};
use calm_data::Tokenizer;
use calm_eval::generate::{Decoding, GenerateOptions, GenerateReport, generate};
use calm_kernels::device::Choice;
use calm_lm::{Decode, DrawKind, Sampler, TokenDecoding};
use calm_stats::temperature::{ExactOptions, Temperature};

use super::chat::{Talk, converse};
use super::drawing::{Model, REMAINDER_BUDGET, explain};
use super::{decoded_by, open_run, prompts, which};
use crate::args::{GenerateArgs, SamplerName};
use crate::error::Hinted;
use crate::hardware;
use crate::ui::Printer;

/// Runs the command.
pub fn run(args: &GenerateArgs, device: Choice, printer: &Printer) -> Result<()> {
    let run = decoded_by(open_run(&args.source)?, args.decode)?;
    let device = hardware::open(device, printer)?;
    let run = run.on(&device);
    let tokenizer = run.tokenizer()?;
    let prompt = match args.prompt.as_deref() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| {
                Hinted::new(format!("cannot read the prompt from standard input: {e}"), "give UTF-8 text")
            })?;
            // What PowerShell puts in front of a pipe.
            text.trim_start_matches('\u{feff}').to_owned()
        }
        Some(text) => text.to_owned(),
        None => String::new(),
    };
    let k = run.config.chunk_size();
    let drawn = |sampler| Model { run: &run, device: &device, tokenizer: &tokenizer, sampler };
    let talk = args.chat.then(|| Talk::of(&run));
    let alone = talk.is_none() && args.many.prompts.is_none();
    if alone && !run.config.bos_chunk && tokenizer.encode(&prompt)?.len() < k {
        bail!(Hinted::new(
            format!("this model knows no start of document: it continues a text of {k} or more tokens"),
            "give a longer --prompt",
        ));
    }
    let which = which(&args.source);
    let title = run.config.model.title();
    let black_box = [
        ("--sampler", args.sampler.is_some()),
        ("--draws", args.draws.is_some()),
        ("--fallback", args.fallback),
    ];
    let asked = black_box.iter().find(|(_, given)| *given).map(|(option, _)| *option);
    // Tokens that are drawn from probabilities are tempered there, unless a sampler of black boxes is asked for.
    let probabilities = match run.config.model.draws() {
        DrawKind::Exact => true,
        DrawKind::Sampled => run.config.model.decode() == Some(Decode::Sample) && asked.is_none(),
    };
    if !probabilities {
        if args.top_p != 1.0 {
            let remedy = match (asked, run.config.model.decode()) {
                (Some(option), Some(Decode::Sample)) => format!("leave {option} away: it draws whole chunks"),
                (_, Some(_)) => "add --decode sample, or use --temperature".to_owned(),
                _ => "use --temperature".to_owned(),
            };
            bail!(Hinted::new(format!("--top-p {}: {title} draws whole chunks here", args.top_p), remedy));
        }
        let decoding = decoding(title, args)?;
        let model = models::load_lm(&run, which, &tokenizer, &device)?;
        let sampler = model.sampler();
        return match talk {
            Some(talk) => converse(&talk, &*sampler, &tokenizer, decoding, args, printer),
            None => write(&drawn(&*sampler), &prompt, decoding, args, printer),
        };
    }
    if let Some(option) = asked {
        bail!(Hinted::new(
            format!("{option}: {title} is sampled by its probabilities, at any temperature"),
            format!("leave {option} away; --temperature and --top-p shape the draws"),
        ));
    }
    let top_p_fits = args.top_p > 0.0 && args.top_p <= 1.0;
    if !((0.0..=HOTTEST).contains(&args.temperature) && top_p_fits) {
        bail!(Hinted::new(
            format!("--temperature {} --top-p {}", args.temperature, args.top_p),
            format!("{title} takes a temperature from 0 to {HOTTEST} and a top-p above 0 and at most 1"),
        ));
    }
    let model = models::load_lm(&run, which, &tokenizer, &device)?;
    let decoding = TokenDecoding { temperature: args.temperature, top_p: args.top_p };
    let sampler = match model.tempered_sampler(decoding) {
        Some(sampler) => sampler,
        None if decoding == TokenDecoding::default() => model.sampler(),
        None => bail!(Hinted::new(
            format!("{title} cannot be sampled at a temperature"),
            "leave --temperature and --top-p away"
        )),
    };
    match talk {
        Some(talk) => converse(&talk, &*sampler, &tokenizer, Decoding::Plain, args, printer),
        None => write(&drawn(&*sampler), &prompt, Decoding::Plain, args, printer),
    }
}

/// The highest temperature of probabilities: far above it all tokens are as probable as each other.
const HOTTEST: f64 = 10.0;

/// Draws per chunk of the batch sampler, unless asked for otherwise.
const POOL: usize = 200;

fn decoding(title: &str, args: &GenerateArgs) -> Result<Decoding> {
    if args.temperature == 1.0 {
        return Ok(Decoding::Plain);
    }
    let temperature = Temperature::new::<candle_core::Error>(args.temperature).map_err(|_| {
        let t = args.temperature;
        let message = format!("--temperature {t}: {title} is sampled, and samples can only be sharpened");
        Hinted::new(message, "give a temperature above 0 and at most 1")
    })?;
    if args.draws == Some(0) {
        bail!(Hinted::new("--draws 0 leaves nothing to choose from", "give 1 or more"));
    }
    Ok(match args.sampler.unwrap_or(SamplerName::Batch) {
        SamplerName::Batch => {
            if temperature.reciprocal::<candle_core::Error>().is_err() {
                bail!(Hinted::new(
                    format!(
                        "the batch sampler works at T = 1/n (0.5, 0.3333333333, 0.25 ...), not at {}",
                        args.temperature
                    ),
                    "use --sampler exact for any other temperature",
                ));
            }
            Decoding::Batch { temperature, samples: args.draws.unwrap_or(POOL) }
        }
        SamplerName::Exact => {
            let default = ExactOptions::default();
            let options = ExactOptions {
                budget: args.draws.unwrap_or(default.budget),
                fallback: args.fallback,
                ..default
            };
            Decoding::Exact { temperature, options }
        }
    })
}

/// One prompt, or those of a file.
fn write(
    model: &Model<'_>,
    prompt: &str,
    decoding: Decoding,
    args: &GenerateArgs,
    printer: &Printer,
) -> Result<()> {
    let options = GenerateOptions {
        max_tokens: args.max_tokens,
        decoding,
        seed: args.seed,
        remainder_budget: REMAINDER_BUDGET,
    };
    match &args.many.prompts {
        Some(path) => prompts::run(path, model, &options, args, printer),
        None => stream(model.sampler, model.tokenizer, prompt, options, printer),
    }
}

fn stream(
    sampler: &dyn Sampler,
    tokenizer: &Tokenizer,
    prompt: &str,
    options: GenerateOptions,
    printer: &Printer,
) -> Result<()> {
    let tokens = tokenizer.encode(prompt)?;
    printer.text(prompt)?;
    let mut stream = tokenizer.stream_after(prompt, &tokens);
    let mut broken = None;
    let started = Instant::now();
    let report = generate(sampler, &tokens, &options, |new| match printer.text(&stream.push(new)) {
        Ok(()) => true,
        Err(e) => {
            broken = Some(e);
            false
        }
    })
    .map_err(explain)?;
    if let Some(e) = broken {
        return Err(e.into());
    }
    printer.text(&stream.finish())?;
    printer.text("\n")?;
    summary(&report, started.elapsed().as_secs_f64(), printer);
    Ok(())
}

fn summary(r: &GenerateReport, seconds: f64, printer: &Printer) {
    printer.note(format!(
        "{} tokens in {seconds:.1} s: {:.0} tokens/s, {} chunk draws{}",
        r.tokens,
        r.tokens as f64 / seconds.max(1e-9),
        r.draws,
        if r.ended { ", ended by itself" } else { "" },
    ));
    if let Some(rate) = r.match_rate {
        printer.note(format!(
            "the prompt ends inside a chunk: {:.1} % of the candidates reproduced its remainder{}",
            100.0 * rate,
            if r.forced { "; none did, so it was written over the best one" } else { "" },
        ));
    }
    if r.fallbacks > 0 {
        printer.warn(format!("{} chunks came from the biased fallback: their budget was spent", r.fallbacks));
    }
}
