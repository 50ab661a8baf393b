//! Many prompts, several at a time: a place that becomes free is given to the next prompt.
//!
//! Each text is drawn as [`crate::generate`] draws it: a prompt's last, partial chunk from the candidates that reproduce
//! it, pools below T = 1. What the places have in common is the model: one draw a chunk for all of them at T = 1, and
//! the chunks that were drawn are read together. A text does not depend on its company ([`calm_lm::SideBySide`]), so
//! the number of places is a matter of speed.

use std::collections::BTreeMap;

use calm_lm::{Sampler, SideBySide, TextKey};
use calm_stats::rng::Stream;

use crate::generate::{Decoding, GenerateError, GenerateOptions, GenerateReport, choose, continue_prompt};

/// Prompts that are begun at most ahead of the oldest unfinished one, in numbers of places: answers wait for their turn.
const AHEAD: usize = 4;

/// A text to continue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its number among all prompts, which its noise is keyed by.
    pub number: u32,
    /// Its tokens, without BOS.
    pub tokens: Vec<u32>,
}

/// What came of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// Its number.
    pub number: u32,
    /// The tokens after it.
    pub tokens: Vec<u32>,
    /// What generation did.
    pub report: GenerateReport,
}

/// Why answering stopped.
#[derive(Debug)]
pub enum Stopped<E> {
    /// Who gives prompts or takes answers wants no more.
    Caller(E),
    /// A prompt could not be continued.
    Prompt(u32, GenerateError),
    /// The model failed for several at once.
    Model(candle_core::Error),
}

impl<E> From<candle_core::Error> for Stopped<E> {
    fn from(error: candle_core::Error) -> Self {
        Self::Model(error)
    }
}

/// A text in its place.
struct Open {
    number: u32,
    /// The tokens of the prompt behind its last whole chunk.
    remainder: Vec<u32>,
    fresh: Vec<u32>,
    report: GenerateReport,
    uniforms: Stream,
    calls: u32,
    /// Whether it is enough.
    enough: bool,
}

impl Open {
    /// The key of the next draw.
    fn key(&mut self, seed: u64) -> TextKey {
        let call = self.calls;
        self.calls = call.wrapping_add(1);
        TextKey { seed, text: self.number, call }
    }

    /// A chunk from draws that are its alone.
    fn chunk(
        &mut self,
        texts: &dyn SideBySide,
        place: usize,
        options: &GenerateOptions,
    ) -> Result<Vec<u32>, GenerateError> {
        let (number, seed) = (self.number, options.seed);
        let calls = &mut self.calls;
        let mut draw = |samples: usize| {
            let key = TextKey { seed, text: number, call: *calls };
            *calls = calls.wrapping_add(1);
            texts.pool(place, samples, key)
        };
        match self.remainder.is_empty() {
            true => choose(options, &mut draw, &mut self.uniforms, &mut self.report),
            false => {
                continue_prompt(&self.remainder, options, &mut draw, &mut self.uniforms, &mut self.report)
            }
        }
    }
}

/// Answers the prompts that `next` gives, `places` at a time, and hands the answers to `done` in their order. Prompts are
/// numbered upwards without a gap.
///
/// # Errors
/// What `next` or `done` say; what the model answers; a budget that the sampler at a temperature spent in vain.
pub fn answer<E>(
    sampler: &dyn Sampler,
    options: &GenerateOptions,
    places: usize,
    next: impl FnMut() -> Result<Option<Prompt>, E>,
    done: impl FnMut(Answer) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    answer_until(sampler, options, places, next, |_, _| false, done)
}

/// The same, where a text ends as soon as `enough` says so of its prompt's number and the tokens after the prompt.
///
/// # Errors
/// As [`answer`].
pub fn answer_until<E>(
    sampler: &dyn Sampler,
    options: &GenerateOptions,
    places: usize,
    mut next: impl FnMut() -> Result<Option<Prompt>, E>,
    mut enough: impl FnMut(u32, &[u32]) -> bool,
    mut done: impl FnMut(Answer) -> Result<(), E>,
) -> Result<(), Stopped<E>> {
    let (k, special, places) = (sampler.chunk_size(), sampler.special(), places.max(1));
    let mut texts = sampler.side_by_side(places)?;
    let mut open: Vec<Option<Open>> = (0..places).map(|_| None).collect();
    let mut waiting: BTreeMap<u32, Answer> = BTreeMap::new();
    let (mut more, mut due) = (true, None::<u32>);
    let (mut started, mut given) = (0, 0);
    loop {
        let mut begun: Vec<(usize, Vec<u32>)> = Vec::new();
        for (place, slot) in open.iter_mut().enumerate() {
            if slot.is_some() || !more || started - given >= AHEAD * places {
                continue;
            }
            let Some(Prompt { number, tokens }) = next().map_err(Stopped::Caller)? else {
                more = false;
                break;
            };
            due.get_or_insert(number);
            started += 1;
            texts.begin(place)?;
            let whole = tokens.len() / k * k;
            *slot = Some(Open {
                number,
                remainder: tokens[whole..].to_vec(),
                fresh: Vec::new(),
                report: GenerateReport::default(),
                uniforms: Stream::new(options.seed, "prompts/choice", number),
                calls: 0,
                enough: false,
            });
            begun.push((place, tokens[..whole].to_vec()));
        }
        let unread: Vec<(usize, &[u32])> =
            begun.iter().map(|(place, tokens)| (*place, &tokens[..])).collect();
        texts.push(&unread)?;

        let mut together: Vec<(usize, TextKey)> = Vec::new();
        let mut chunks: Vec<(usize, Vec<u32>)> = Vec::new();
        for (place, slot) in open.iter_mut().enumerate() {
            let Some(text) = slot.as_mut().filter(|text| text.report.goes_on(options)) else { continue };
            if options.decoding == Decoding::Plain && text.remainder.is_empty() {
                text.report.draws += 1;
                together.push((place, text.key(options.seed)));
            } else {
                let chunk = text.chunk(&*texts, place, options);
                chunks.push((place, chunk.map_err(|e| Stopped::Prompt(text.number, e))?));
            }
        }
        let drawn = texts.draw(&together)?;
        chunks.extend(together.iter().map(|(place, _)| *place).zip(drawn));
        for (place, chunk) in &mut chunks {
            if let Some(text) = &mut open[*place] {
                let known = std::mem::take(&mut text.remainder).len();
                text.fresh.extend(text.report.take(chunk, known, special, options));
                text.enough = enough(text.number, &text.fresh);
            }
        }
        for slot in &mut open {
            if let Some(text) = slot.take_if(|text| text.enough || !text.report.goes_on(options)) {
                let (number, tokens, report) = (text.number, text.fresh, text.report);
                waiting.insert(number, Answer { number, tokens, report });
            }
        }
        chunks.retain(|(place, _)| open[*place].is_some());
        let unread: Vec<(usize, &[u32])> = chunks.iter().map(|(place, chunk)| (*place, &chunk[..])).collect();
        texts.push(&unread)?;

        while let Some(answer) = due.and_then(|due| waiting.remove(&due)) {
            due = answer.number.checked_add(1);
            given += 1;
            done(answer).map_err(Stopped::Caller)?;
        }
        if !more && open.iter().all(Option::is_none) {
            return Ok(());
        }
    }
}
