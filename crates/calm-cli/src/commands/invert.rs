//! `calm invert`: the text behind hidden states and latent vectors.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::Result;
use calm_data::{TokenFile, Tokenizer};
use calm_eval::invert::collisions::{collisions, last_states};
use calm_eval::invert::kept::add_noise;
use calm_eval::invert::radius::{self, Radius};
use calm_eval::invert::search::{Position, Search};
use calm_eval::invert::trial::{Setting, Trial, states_of, trial};
use calm_kernels::device::Choice;
use calm_lm::Inversion;
use calm_run::Run;
use calm_train::models;

use super::inverted::{Close, Found, Report, tables};
use super::{npy, open_run, text_of, which};
use crate::args::{Format, InvertArgs, LayerName, PolicyName};
use crate::error::Hinted;
use crate::hardware;
use crate::screen::Screen;
use crate::ui::{Printer, Unit};

/// Prompts of a trial, and of a search for collisions.
const PROMPTS: [usize; 2] = [20, 100_000];

/// Tokens of a prompt, or the whole chunks that hold them.
const TOKENS: usize = 20;

/// `calm invert`
pub fn run(args: &InvertArgs, device: Choice, printer: &Printer) -> Result<()> {
    for (option, number) in [
        ("--prompts", args.prompts.unwrap_or(1)),
        ("--tokens", args.tokens.unwrap_or(1)),
        ("--radius-positions", args.radius_positions),
    ] {
        if number == 0 {
            return Err(Hinted::new(format!("{option} 0 leaves nothing to search"), "give 1 or more").into());
        }
    }
    let run = open_run(&args.source)?;
    let device = hardware::open(device, printer)?;
    let run = run.on(&device);
    let mut screen = Screen::new(printer);
    let (file, tokenizer) = text_of(&run, args.other(), &args.source.cache, &mut screen)?;
    let (model, step) = models::load_frozen_lm(&run, which(&args.source), &tokenizer, &device)?;
    drop(screen);
    let title = run.config.model.title();
    let inversion = if args.latents { model.latent_inversion() } else { model.inversion() };
    let Some(inversion) = inversion else {
        let (what, hint) = match args.latents {
            true => ("has no latent vectors", "leave --latents away"),
            false => ("has no hidden states that can be searched", "give a run of another family"),
        };
        return Err(Hinted::new(format!("{title} {what}"), hint).into());
    };
    let k = inversion.chunk_size();
    if k > 1 && args.policy.contains(&PolicyName::Brute) {
        let what = format!("--policy brute: chunks of {k} tokens cannot all be tried");
        return Err(Hinted::new(what, "leave --policy brute away").into());
    }
    if args.collisions && args.latents {
        let what = "--collisions --latents: a latent vector is of one chunk, and equal chunks have one";
        return Err(Hinted::new(what, "leave --latents away").into());
    }
    let context = run.config.train.lm.context - usize::from(run.config.bos_chunk);
    let work = Work {
        args,
        tokens: args.tokens.unwrap_or_else(|| TOKENS.next_multiple_of(k).min(context * k)),
        depths: depths(args, &*inversion)?,
        model: &*inversion,
        tokenizer: &tokenizer,
        file: &file,
        printer,
        context,
    };
    if let Some(tokens) = args.tokens {
        work.fits(tokens)?;
    }
    let mut report = work.report(&run, step)?;
    match (&args.states, args.prompt.as_slice()) {
        (Some(path), _) => {
            let (_, width, states) = npy::read_matrix(path)?;
            report.found = work.behind(&states, width)?;
        }
        (None, []) if args.collisions => report.collisions = work.collisions()?,
        (None, []) => report.trials = work.trials()?,
        (None, prompts) => {
            let texts = prompts.iter().map(|text| work.encoded(text)).collect::<Result<Vec<_>>>()?;
            if let Some(path) = &args.save_states {
                return work.save(path, &texts);
            }
            report.found = work.named(&texts)?;
        }
    }
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&report)?)?,
        Format::Table => printer.result(&tables(&report))?,
    }
    Ok(())
}

/// Which states are searched.
fn depths(args: &InvertArgs, model: &dyn Inversion) -> Result<Vec<usize>> {
    let all = model.depths();
    let mut depths = Vec::new();
    for name in &args.layer {
        match name {
            LayerName::Last => depths.push(all - 1),
            // Behind the way in a state is of the last token alone: prompts that end alike have one.
            LayerName::All => depths.extend(usize::from(args.collisions)..all),
            LayerName::Number(0) if args.collisions => {
                let what = "--collisions --layer 0: all prompts with one last token have one state there";
                return Err(Hinted::new(what, "give --layer 1 or a later one").into());
            }
            LayerName::Number(depth) if *depth < all => depths.push(*depth),
            LayerName::Number(depth) => {
                let names: Vec<String> =
                    (0..all).map(|depth| format!("{depth} {}", model.depth_name(depth))).collect();
                let what = format!("--layer {depth}: there is no such state");
                return Err(Hinted::new(what, format!("give one of {}", names.join(", "))).into());
            }
        }
    }
    let mut seen = HashSet::new();
    depths.retain(|depth| seen.insert(*depth));
    Ok(depths)
}

struct Work<'a> {
    args: &'a InvertArgs,
    /// Of a prompt, whole chunks.
    tokens: usize,
    depths: Vec<usize>,
    model: &'a dyn Inversion,
    tokenizer: &'a Tokenizer,
    file: &'a TokenFile,
    printer: &'a Printer,
    /// Positions that a text may have.
    context: usize,
}

impl Work<'_> {
    fn report(&self, run: &Run, step: u64) -> Result<Report> {
        Ok(Report {
            run: run.folder.display().to_string(),
            step,
            vocabulary: self.model.table().dim(0)?,
            chunk_size: self.model.chunk_size(),
            tokens: self.tokens,
            trials: Vec::new(),
            found: Vec::new(),
            collisions: Vec::new(),
        })
    }

    /// Whether texts of so many tokens are whole chunks, and not too long for the model.
    fn fits(&self, tokens: usize) -> Result<()> {
        let k = self.model.chunk_size();
        if !tokens.is_multiple_of(k) {
            let what = format!("--tokens {tokens}: the model reads chunks of {k}");
            return Err(Hinted::new(what, format!("give --tokens {}", tokens.next_multiple_of(k))).into());
        }
        self.short_enough(tokens / k)
    }

    fn short_enough(&self, positions: usize) -> Result<()> {
        if positions > self.context {
            let most = self.context * self.model.chunk_size();
            let what = format!("{positions} positions are more than the model was trained for");
            return Err(Hinted::new(what, format!("give at most {most} tokens")).into());
        }
        Ok(())
    }

    /// Whole chunks of a text.
    fn encoded(&self, text: &str) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode(text)?;
        let k = self.model.chunk_size();
        let rest = tokens.len() % k;
        tokens.truncate(tokens.len() - rest);
        if tokens.is_empty() {
            let what = format!("--prompt {text:?} is shorter than a chunk of {k} tokens");
            return Err(Hinted::new(what, "give a longer text").into());
        }
        if rest > 0 {
            self.printer.note(format!("{rest} tokens at the end fill no chunk of {k} and are left out"));
        }
        self.short_enough(tokens.len() / k)?;
        Ok(tokens)
    }

    /// So many different parts of the text, of `length` tokens, at even distances; `shift` of a distance further on.
    fn parts(&self, count: usize, length: usize, shift: f64) -> Result<Vec<Vec<u32>>> {
        let places = |document: usize| (self.file.document_len(document) + 1).saturating_sub(length);
        let total: usize = (0..self.file.len()).map(places).sum();
        let count = count.min(total);
        let (mut document, mut before) = (0, 0);
        let mut seen = HashSet::new();
        let mut parts = Vec::with_capacity(count);
        for i in 0..count {
            let at = ((i as f64 + shift) * total as f64 / count as f64) as usize;
            while before + places(document) <= at {
                before += places(document);
                document += 1;
            }
            self.file.prove(self.file.section_of(document))?;
            let part = self.file.slice(document, at - before, length).into_owned();
            if seen.insert(part.clone()) {
                parts.push(part);
            }
        }
        if parts.is_empty() {
            let what = format!("no document has {length} tokens");
            return Err(Hinted::new(what, "give fewer --tokens, or another text with --data").into());
        }
        Ok(parts)
    }

    /// Measures what is near enough, at each depth.
    fn radii(&self) -> Result<Vec<Radius>> {
        let texts = self.parts(self.args.radius_positions, self.tokens, 0.5)?;
        let bar = self.printer.progress("measuring radii", 1u64, Unit::Other("text"));
        let radii = radius::measure(self.model, &texts, &self.depths)?;
        bar.finish("");
        for (depth, radius) in self.depths.iter().zip(&radii) {
            if !radius.tells() {
                self.printer.warn(format!(
                    "states {} cannot be told apart: rounding is {:.1e}, the smallest gap {:.1e}; none will be found",
                    self.model.depth_name(*depth),
                    radius.floor,
                    radius.gap
                ));
            }
        }
        Ok(radii)
    }

    /// Every combination of what was asked for.
    fn settings(&self) -> Vec<Setting> {
        let mut settings = Vec::new();
        for &depth in &self.depths {
            for &policy in &self.args.policy {
                for &kept in &self.args.kept {
                    for &noise in &self.args.noise {
                        for &pass in &self.args.pass {
                            settings.push(Setting {
                                depth,
                                policy: policy.into(),
                                kept: kept.into(),
                                noise,
                                pass: pass.into(),
                                seed: self.args.seed,
                            });
                        }
                    }
                }
            }
        }
        settings
    }

    fn radius_of(&self, radii: &[Radius], depth: usize) -> Radius {
        // Each depth was measured.
        let at = self.depths.iter().position(|other| *other == depth).unwrap_or(0);
        radii[at]
    }

    fn trials(&self) -> Result<Vec<Trial>> {
        let texts = self.parts(self.args.prompts.unwrap_or(PROMPTS[0]), self.tokens, 0.0)?;
        let radii = self.radii()?;
        let mut trials = Vec::new();
        for setting in self.settings() {
            let label = format!("searching states {}", self.model.depth_name(setting.depth));
            let bar = self.printer.progress(&label, texts.len() as u64, Unit::Other("prompts"));
            let radius = self.radius_of(&radii, setting.depth);
            trials.push(trial(self.model, &texts, setting, radius, |done| bar.set(done as u64, ""))?);
            bar.finish("");
        }
        Ok(trials)
    }

    /// The texts behind their own states.
    fn named(&self, texts: &[Vec<u32>]) -> Result<Vec<Found>> {
        let radii = self.radii()?;
        let mut found = Vec::new();
        for setting in self.settings() {
            for (number, text) in texts.iter().enumerate() {
                let (states, width) = self.kept(text, setting, number as u32)?;
                let radius = self.radius_of(&radii, setting.depth);
                found.push(self.search(&states, width, setting, radius, Some(number))?);
            }
        }
        Ok(found)
    }

    /// The text behind states that were read.
    fn behind(&self, states: &[f32], width: usize) -> Result<Vec<Found>> {
        let radii = self.radii()?;
        let mut found = Vec::new();
        for setting in self.settings() {
            self.short_enough(states.len().checked_div(width).unwrap_or(0))?;
            let own = self.width(setting.depth)?;
            if own != width {
                let what = format!(
                    "the states have {width} numbers, those {} {own}",
                    self.model.depth_name(setting.depth)
                );
                return Err(Hinted::new(what, "give the run and the --layer that they are of").into());
            }
            let radius = self.radius_of(&radii, setting.depth);
            found.push(self.search(states, width, setting, radius, None)?);
        }
        Ok(found)
    }

    /// D of the states at a depth.
    fn width(&self, depth: usize) -> Result<usize> {
        let k = self.model.chunk_size();
        Ok(self.model.of_texts(&vec![0; k], 1)?[depth].dim(2)?)
    }

    /// States of a text as they were kept, and D.
    fn kept(&self, text: &[u32], setting: Setting, number: u32) -> Result<(Vec<f32>, usize)> {
        let mut states = states_of(self.model, text, setting.depth, setting.pass)?;
        let width = states.len() / (text.len() / self.model.chunk_size());
        add_noise(&mut states, width, setting.noise, setting.seed, number);
        states.chunks_mut(width).for_each(|state| setting.kept.round(state));
        Ok((states, width))
    }

    fn search(
        &self,
        states: &[f32],
        width: usize,
        setting: Setting,
        radius: Radius,
        prompt: Option<usize>,
    ) -> Result<Found> {
        let search = Search::new(self.model, setting.depth, radius, setting.policy, setting.kept)?;
        let begin = Instant::now();
        let positions = search.text(states, width)?;
        let seconds = begin.elapsed().as_secs_f64();
        let tokens: Vec<u32> = positions.iter().filter_map(Position::tokens).flatten().copied().collect();
        Ok(Found {
            prompt,
            setting,
            seconds,
            state: self.model.depth_name(setting.depth),
            text: self.tokenizer.decode(&tokens),
            complete: positions.len() * width == states.len()
                && positions.iter().all(|position| position.tokens().is_some()),
            positions,
            radius,
        })
    }

    fn save(&self, path: &std::path::Path, texts: &[Vec<u32>]) -> Result<()> {
        let settings = self.settings();
        let ([text], [setting]) = (texts, settings.as_slice()) else {
            let what = "--save-states writes one text in one way";
            return Err(Hinted::new(what, "give one --prompt, one --layer, and one of each other").into());
        };
        let (states, width) = self.kept(text, *setting, 0)?;
        let shape = [states.len() / width, width];
        npy::write(path, &shape, &states, "--save-states")?;
        self.printer.note(format!(
            "wrote states {}, float32 {shape:?}, to {}",
            self.model.depth_name(setting.depth),
            path.display()
        ));
        Ok(())
    }

    fn collisions(&self) -> Result<Vec<Close>> {
        let texts = self.parts(self.args.prompts.unwrap_or(PROMPTS[1]), self.tokens, 0.0)?;
        if texts.len() < 2 {
            return Err(Hinted::new("one prompt has none to collide with", "give more --prompts").into());
        }
        let mut done = 0;
        let bar = self.printer.progress("computing states", texts.len() as u64, Unit::Other("prompts"));
        let states = last_states(self.model, &texts, &self.depths, |more| {
            done += more;
            bar.set(done as u64, "");
        })?;
        bar.finish("");
        let mut found = Vec::new();
        for (depth, states) in self.depths.iter().zip(&states) {
            let label = format!("distances {}", self.model.depth_name(*depth));
            let bar = self.printer.progress(&label, 1u64, Unit::Other("layer"));
            let figures = collisions(self.model, &texts, *depth, states)?;
            bar.finish("");
            let text = |of: usize| self.tokenizer.decode(&texts[of]);
            let pairs = figures.closest.iter().map(|pair| [text(pair.a), text(pair.b)]);
            found.push(Close { texts: pairs.collect(), figures });
        }
        Ok(found)
    }
}
