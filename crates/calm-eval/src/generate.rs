//! Generation: chunk after chunk from any sampler, at a temperature.
//!
//! A prompt need not be a whole number of chunks. Its last, partial chunk is drawn *conditionally*: from the
//! candidates that reproduce the prompt's remainder, so that a prompt always comes back verbatim and the
//! model never sees padding inside it. Where no candidate matches within the budget, the candidate that
//! agrees longest is taken and the remainder written over it; the report says so.

use calm_lm::{Continuation, DrawKey, Sampler, SpecialIds};
use serde::Serialize;

use calm_stats::rng::{Stream, Uniforms};
use calm_stats::temperature::{self, ExactOptions, Temperature, TemperatureError};

/// How a chunk is chosen from the sampler's draws.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decoding {
    /// One draw: T = 1.
    Plain,
    /// Batch approximation at T = 1/n from a pool of draws.
    Batch {
        /// T, the reciprocal of an integer.
        temperature: Temperature,
        /// N, size of the pool.
        samples: usize,
    },
    /// Exact sampling at any T in (0, 1].
    Exact {
        /// T.
        temperature: Temperature,
        /// Budget and fallback.
        options: ExactOptions,
    },
}

/// How much and from which seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Most tokens to generate after the prompt (PAD not counted).
    pub max_tokens: usize,
    /// Choice of each chunk.
    pub decoding: Decoding,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Candidates drawn for the prompt's remainder before it is forced.
    pub remainder_budget: usize,
}

/// What generation did.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GenerateReport {
    /// Tokens generated after the prompt.
    pub tokens: usize,
    /// Whether the document ended by itself (EOS).
    pub ended: bool,
    /// Chunk draws asked of the sampler.
    pub draws: usize,
    /// Share of candidates that reproduced the prompt's remainder; null if the prompt was whole chunks.
    pub match_rate: Option<f64>,
    /// No candidate did: the remainder was written over the best one.
    pub forced: bool,
    /// Chunks for which the exact sampler's budget ran out and the biased fallback chose.
    pub fallbacks: usize,
}

impl GenerateReport {
    /// Whether there is more to generate.
    pub(crate) fn goes_on(&self, options: &GenerateOptions) -> bool {
        self.tokens < options.max_tokens && !self.ended
    }

    /// Counts a drawn chunk, of which so many tokens were `known` from the prompt; what follows an EOS becomes PAD. The
    /// tokens that are new.
    pub(crate) fn take(
        &mut self,
        chunk: &mut [u32],
        known: usize,
        special: SpecialIds,
        options: &GenerateOptions,
    ) -> Vec<u32> {
        self.ended = special.close(chunk, false);
        let shown = chunk[known..].iter().copied().filter(|t| *t != special.pad && *t != special.eos);
        let fresh: Vec<u32> = shown.take(options.max_tokens - self.tokens).collect();
        self.tokens += fresh.len();
        // A model that emits only special tokens would never reach max_tokens.
        if fresh.is_empty() && !self.ended {
            self.tokens += 1;
        }
        fresh
    }
}

/// Why generation stopped early.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The model failed.
    #[error(transparent)]
    Model(#[from] candle_core::Error),
    /// The sampler at a temperature failed (budget, T out of range).
    #[error(transparent)]
    Temperature(#[from] TemperatureError<candle_core::Error>),
}

impl GenerateError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Model(_) => None,
            Self::Temperature(e) => e.remedy(),
        }
    }
}

/// Generates after `prompt` (tokens without BOS); `emit` gets the new tokens of each chunk as they come and
/// returns false to stop.
///
/// # Errors
/// What the model answers; a budget that the sampler at a temperature spent in vain.
pub fn generate(
    sampler: &dyn Sampler,
    prompt: &[u32],
    options: &GenerateOptions,
    mut emit: impl FnMut(&[u32]) -> bool,
) -> Result<GenerateReport, GenerateError> {
    let k = sampler.chunk_size();
    let special = sampler.special();
    let mut report = GenerateReport::default();
    let mut text: Box<dyn Continuation + '_> = sampler.start()?;
    let whole = prompt.len() / k * k;
    text.push(&prompt[..whole])?;
    let mut remainder = &prompt[whole..];
    let mut call = 0u32;
    let mut uniforms = Stream::new(options.seed, "generate/choice", 0);
    while report.goes_on(options) {
        let mut draw = |n: usize| {
            let key = DrawKey { seed: options.seed, call };
            call = call.wrapping_add(1);
            text.draw(n, key)
        };
        let mut chunk = if remainder.is_empty() {
            choose(options, &mut draw, &mut uniforms, &mut report)?
        } else {
            continue_prompt(remainder, options, &mut draw, &mut uniforms, &mut report)?
        };
        let fresh = report.take(&mut chunk, remainder.len(), special, options);
        remainder = &[];
        if !emit(&fresh) {
            break;
        }
        if report.goes_on(options) {
            text.push(&chunk)?;
        }
    }
    Ok(report)
}

pub(crate) type Chunks = Vec<Vec<u32>>;

/// A chunk chosen from draws.
pub(crate) fn choose(
    options: &GenerateOptions,
    draw: &mut impl FnMut(usize) -> candle_core::Result<Chunks>,
    uniforms: &mut impl Uniforms,
    report: &mut GenerateReport,
) -> Result<Vec<u32>, GenerateError> {
    let outcome = match options.decoding {
        Decoding::Plain => {
            report.draws += 1;
            return Ok(draw(1)?.swap_remove(0));
        }
        Decoding::Batch { temperature, samples } => {
            temperature::batch(temperature, samples, temperature::any, draw, uniforms)?
        }
        Decoding::Exact { temperature, options } => {
            temperature::exact(temperature, &options, temperature::any, draw, uniforms)?
        }
    };
    report.draws += outcome.draws;
    report.fallbacks += usize::from(outcome.fell_back);
    Ok(outcome.chunk)
}

/// The chunk that begins with the prompt's remainder.
pub(crate) fn continue_prompt(
    remainder: &[u32],
    options: &GenerateOptions,
    draw: &mut impl FnMut(usize) -> candle_core::Result<Chunks>,
    uniforms: &mut impl Uniforms,
    report: &mut GenerateReport,
) -> Result<Vec<u32>, GenerateError> {
    if let Decoding::Exact { temperature, options } = options.decoding {
        match temperature::exact(
            temperature,
            &options,
            temperature::begins_with(remainder),
            &mut *draw,
            uniforms,
        ) {
            Ok(outcome) => {
                report.draws += outcome.draws;
                report.fallbacks += usize::from(outcome.fell_back);
                report.match_rate = Some(outcome.match_rate());
                return Ok(outcome.chunk);
            }
            // Then the remainder is forced below.
            Err(TemperatureError::NoMatch { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    const POOL: usize = 256;
    let wanted = match options.decoding {
        Decoding::Batch { samples, .. } => samples.max(POOL),
        _ => POOL,
    };
    let budget = options.remainder_budget.max(1);
    let mut best: Option<(usize, Vec<u32>)> = None;
    let mut matching: Chunks = Vec::new();
    let (mut drawn, mut hits) = (0, 0);
    while drawn < budget && matching.is_empty() {
        let pool = draw(wanted.min(budget - drawn))?;
        drawn += pool.len();
        for chunk in pool {
            let agree = chunk.iter().zip(remainder).take_while(|(a, b)| a == b).count();
            if agree == remainder.len() {
                hits += 1;
                matching.push(chunk);
            } else if best.as_ref().is_none_or(|(a, _)| agree > *a) {
                best = Some((agree, chunk));
            }
        }
    }
    report.draws += drawn;
    report.match_rate = Some(hits as f64 / drawn.max(1) as f64);
    if matching.is_empty() {
        report.forced = true;
        let mut chunk = best.map(|(_, c)| c).unwrap_or_default();
        chunk.resize(chunk.len().max(remainder.len()), 0);
        chunk[..remainder.len()].copy_from_slice(remainder);
        return Ok(chunk);
    }
    let n = match options.decoding {
        Decoding::Plain => 1,
        Decoding::Batch { temperature, .. } | Decoding::Exact { temperature, .. } => {
            (1.0 / temperature.value()).round().max(1.0) as u32
        }
    };
    // The same choice among the matching candidates as elsewhere among all (batch approximation).
    let weights = temperature::batch_weights(&matching, n);
    Ok(weights.map_or_else(Vec::new, |w| w.choose(uniforms.uniform())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts upwards in chunks of 3; every other draw is one off in its second token.
    struct Counter {
        end_at: u32,
    }

    impl Sampler for Counter {
        fn chunk_size(&self) -> usize {
            3
        }
        fn special(&self) -> SpecialIds {
            SpecialIds { bos: 1000, eos: 1001, pad: 1002 }
        }
        fn start(&self) -> candle_core::Result<Box<dyn Continuation + '_>> {
            Ok(Box::new(Counted { end_at: self.end_at, tokens: Vec::new() }))
        }
    }

    struct Counted {
        end_at: u32,
        tokens: Vec<u32>,
    }

    impl Continuation for Counted {
        fn push(&mut self, tokens: &[u32]) -> candle_core::Result<()> {
            assert_eq!(tokens.len() % 3, 0);
            self.tokens.extend_from_slice(tokens);
            Ok(())
        }
        fn draw(&self, n: usize, key: DrawKey) -> candle_core::Result<Chunks> {
            let at = self.tokens.len() as u32;
            let name = |t: u32| if t >= self.end_at { 1001 } else { t };
            Ok((0..n as u32)
                .map(|i| {
                    let mixed = (u64::from(i) << 32 | u64::from(key.call) ^ key.seed)
                        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let off = (mixed >> 63) as u32;
                    vec![name(at), name(at + 1) + off, name(at + 2)]
                })
                .collect())
        }
    }

    fn options(decoding: Decoding) -> GenerateOptions {
        GenerateOptions { max_tokens: 20, decoding, seed: 4, remainder_budget: 1000 }
    }

    fn run(prompt: &[u32], o: GenerateOptions, end_at: u32) -> (Vec<u32>, GenerateReport) {
        let mut out = prompt.to_vec();
        let r = generate(&Counter { end_at }, prompt, &o, |t| {
            out.extend_from_slice(t);
            true
        })
        .unwrap();
        (out, r)
    }

    #[test]
    fn a_prompt_of_any_length_is_reproduced_and_continued() {
        for len in 0..8u32 {
            let prompt: Vec<u32> = (0..len).collect();
            let (out, r) = run(&prompt, options(Decoding::Plain), 900);
            assert_eq!(&out[..len as usize], &prompt[..]);
            assert_eq!(out.len(), len as usize + 20);
            assert!(!r.forced);
            assert_eq!(r.match_rate.is_some(), len % 3 != 0);
        }
    }

    #[test]
    fn a_prompt_that_no_draw_reproduces_is_forced_and_said_to_be() {
        let (out, r) = run(&[0, 1, 2, 77], options(Decoding::Plain), 900);
        assert_eq!(out[3], 77);
        assert!(r.forced && r.match_rate == Some(0.0));
    }

    #[test]
    fn generation_ends_at_the_end_of_text_and_shows_no_special_token() {
        let t = Temperature::new::<candle_core::Error>(0.5).unwrap();
        for decoding in [
            Decoding::Plain,
            Decoding::Batch { temperature: t, samples: 16 },
            Decoding::Exact { temperature: t, options: ExactOptions::default() },
        ] {
            let (out, r) = run(&[], options(decoding), 6);
            assert!(r.ended, "{decoding:?}");
            assert!(out.len() <= 7 && out.iter().all(|t| *t < 1000), "{out:?}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_text() {
        let o = options(Decoding::Plain);
        assert_eq!(run(&[0, 1], o, 900), run(&[0, 1], o, 900));
    }
}
