//! Text from a run's model, at a temperature.

use std::collections::VecDeque;

use calm_data::Tokenizer;
use calm_eval::generate::{Decoding, GenerateOptions, GenerateReport, generate};
use calm_eval::prompts::{Prompt, answer_until};
use calm_lm::{Decode, DrawKind, LanguageModel, Sampler, TokenDecoding};
use calm_stats::temperature::{ExactOptions, Temperature};
use pyo3::prelude::*;

use crate::arrays::view;
use crate::error::Failure;
use crate::models::Models;
use crate::pool::Stop;

/// A text that a model wrote.
#[pyclass(frozen, module = "calm_lm")]
pub struct Text {
    /// What follows the prompt, up to the first stop.
    #[pyo3(get)]
    text: String,
    tokens: Vec<u32>,
    /// Whether the model ended the document.
    #[pyo3(get)]
    ended: bool,
    /// Whether a stop was found; it is not part of the text.
    #[pyo3(get)]
    stopped: bool,
    /// Whether the prompt ended inside a chunk that no candidate reproduced, so that its rest was written over the best one.
    #[pyo3(get)]
    forced: bool,
    /// Chunks that were drawn.
    #[pyo3(get)]
    draws: usize,
}

#[pymethods]
impl Text {
    /// The tokens after the prompt, those of a stop among them: uint32 `[n]`.
    #[getter]
    fn tokens<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        view(py, &self.tokens, &[self.tokens.len()])
    }

    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        format!("Text({:?})", self.text)
    }
}

/// How text is written.
#[derive(Clone)]
pub struct Writing {
    /// Most tokens after the prompt.
    pub max_tokens: usize,
    /// 1: as the model is.
    pub temperature: f64,
    /// Of probabilities: the mass that is kept.
    pub top_p: f64,
    /// Of a black box: draws of a chunk below temperature 1; 1 or more.
    pub draws: usize,
    /// What a text ends before; none is empty.
    pub until: Vec<String>,
    /// Seed of all draws.
    pub seed: u64,
}

/// Candidates for a chunk that a prompt ends inside of.
const REMAINDER_BUDGET: usize = 4096;

/// Whether tokens are drawn from probabilities, at any temperature; else whole chunks of a black box are.
pub fn has_probabilities(models: &Models) -> bool {
    let model = &models.run.config.model;
    model.draws() == DrawKind::Exact || model.decode() == Some(Decode::Sample)
}

impl Writing {
    /// The sampler and the choice of each chunk.
    fn sampler<'a>(
        &self,
        models: &Models,
        model: &'a dyn LanguageModel,
    ) -> Result<(Box<dyn Sampler + 'a>, GenerateOptions), Failure> {
        let Self { max_tokens, temperature, top_p, draws, seed, .. } = *self;
        let title = models.run.config.model.title();
        let options =
            |decoding| GenerateOptions { max_tokens, decoding, seed, remainder_budget: REMAINDER_BUDGET };
        if has_probabilities(models) {
            let fits = temperature >= 0.0 && temperature.is_finite() && top_p > 0.0 && top_p <= 1.0;
            let decoding = TokenDecoding { temperature, top_p };
            return match model.tempered_sampler(decoding) {
                Some(sampler) if fits => Ok((sampler, options(Decoding::Plain))),
                _ => Err(Failure::new(
                    format!("temperature={temperature}, top_p={top_p}: {title} cannot be sampled so"),
                    "give a temperature of 0 or more, and a top_p above 0 and at most 1",
                )),
            };
        }
        if top_p != 1.0 {
            let what = format!("top_p={top_p}: {title} draws whole chunks here");
            return Err(Failure::new(what, "use temperature, or open the run with decode=\"sample\""));
        }
        let t = Temperature::new::<candle_core::Error>(temperature).map_err(|_| {
            let what =
                format!("temperature={temperature}: {title} is sampled, and samples can only be sharpened");
            Failure::new(what, "give a temperature above 0 and at most 1")
        })?;
        let decoding = match t.reciprocal::<candle_core::Error>() {
            Ok(1) => Decoding::Plain,
            Ok(_) => Decoding::Batch { temperature: t, samples: draws },
            Err(_) => Decoding::Exact { temperature: t, options: ExactOptions::default() },
        };
        Ok((model.sampler(), options(decoding)))
    }

    /// The text of new tokens after a prompt, cut before the first stop.
    fn finish(
        &self,
        tokenizer: &Tokenizer,
        prompt: &str,
        before: &[u32],
        tokens: Vec<u32>,
        r: &GenerateReport,
    ) -> Text {
        let mut stream = tokenizer.stream_after(prompt, before);
        let mut text = stream.push(&tokens) + &stream.finish();
        let stop = self.until.iter().filter_map(|stop| text.find(stop.as_str())).min();
        if let Some(at) = stop {
            text.truncate(at);
        }
        let GenerateReport { ended, forced, draws, .. } = *r;
        Text { text, tokens, ended, stopped: stop.is_some(), forced, draws }
    }

    /// Whether a stop is among new tokens.
    fn stops(&self, tokenizer: &Tokenizer, tokens: &[u32]) -> bool {
        !self.until.is_empty() && {
            let text = tokenizer.decode(tokens);
            self.until.iter().any(|stop| text.contains(stop.as_str()))
        }
    }
}

/// One text, as `calm generate` writes it.
pub fn one(models: &Models, prompt: &str, how: &Writing, stop: &Stop) -> Result<Text, Failure> {
    let (tokenizer, model) = (models.tokenizer()?, models.lm()?);
    let (sampler, options) = how.sampler(models, &*model)?;
    let before = tokenizer.encode(prompt)?;
    let (mut tokens, mut broken) = (Vec::new(), Ok(()));
    let report = generate(&*sampler, &before, &options, |new| {
        tokens.extend_from_slice(new);
        broken = stop.check();
        broken.is_ok() && !how.stops(&tokenizer, &tokens)
    })?;
    broken?;
    Ok(how.finish(&tokenizer, prompt, &before, tokens, &report))
}

/// Many, as `calm generate --prompts` does, so many at a time (1 or more); `number` is that of the first.
pub fn many(
    models: &Models,
    prompts: &[String],
    how: &Writing,
    (places, number): (usize, u32),
    stop: &Stop,
) -> Result<Vec<Text>, Failure> {
    let (tokenizer, model) = (models.tokenizer()?, models.lm()?);
    let (sampler, options) = how.sampler(models, &*model)?;
    let encoded = prompts.iter().map(|prompt| Ok(tokenizer.encode(prompt)?));
    let encoded: Vec<Vec<u32>> = encoded.collect::<Result<_, Failure>>()?;
    let mut waiting: VecDeque<Prompt> =
        (number..).zip(&encoded).map(|(number, tokens)| Prompt { number, tokens: tokens.clone() }).collect();
    let next = || stop.check().map(|()| waiting.pop_front());
    let mut texts = Vec::with_capacity(prompts.len());
    let done = |answer: calm_eval::prompts::Answer| {
        let i = texts.len();
        texts.push(how.finish(&tokenizer, &prompts[i], &encoded[i], answer.tokens, &answer.report));
        stop.check()
    };
    // While all places are taken nobody asks for a prompt: whoever is to stop ends all texts, and `done` says so.
    let enough = |_, tokens: &[u32]| stop.check().is_err() || how.stops(&tokenizer, tokens);
    answer_until(&*sampler, &options, places.min(prompts.len().max(1)), next, enough, done)?;
    Ok(texts)
}
