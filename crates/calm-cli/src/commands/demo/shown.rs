//! What a demonstration shows of a model: some held-out text on its way through it.

use std::path::Path;

use anyhow::Result;
use calm_data::Tokenizer;
use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_lm::LanguageModel;
use calm_nn::{Noise, RowId};
use calm_run::Run;
use calm_run::checkpoint::Which;
use calm_stats::temperature::Temperature;
use calm_train::models::{self, StageOne};
use calm_train::pipeline::prepare_data;
use candle_core::{Device, Tensor};

use crate::commands::drawing::{REMAINDER_BUDGET, explain};
use crate::screen::Screen;
use crate::ui::{Printer, Table};

/// Width of what is printed.
pub const WIDTH: usize = 78;
/// Chunks of the text that are looked at, and those whose vectors are shown.
const CHUNKS: usize = 36;
const VECTORS: usize = 6;
/// Numbers of a vector that are shown.
const NUMBERS: usize = 4;
/// Noise that is added to the vectors.
const SIGMAS: [f64; 4] = [0.0, 0.5, 1.0, 2.0];
/// Tokens of a sample, and candidates for each of its chunks.
const TOKENS: usize = 120;
const CANDIDATES: usize = 100;

/// A model and a piece of text that it has not seen.
pub struct Parts<'a> {
    run: &'a Run,
    device: &'a Device,
    tokenizer: Tokenizer,
    autoencoder: Option<StageOne>,
    model: Box<dyn LanguageModel>,
    /// Whole chunks, `[R, K]` row-major.
    ids: Vec<u32>,
}

impl<'a> Parts<'a> {
    /// Loads both stages, and the beginning of the longest of the first held-out documents.
    pub fn load(run: &'a Run, cache: &Path, device: &'a Device, printer: &Printer) -> Result<Self> {
        let mut screen = Screen::new(printer);
        let corpus = prepare_data(run, cache, &mut screen)?;
        drop(screen);
        let tokenizer = corpus.tokenizer.clone();
        let held_out = &corpus.validation;
        let longest = (0..held_out.len().min(8)).max_by_key(|n| held_out.document_len(*n));
        let k = run.config.chunk_size();
        let mut ids: Vec<u32> = longest.map(|n| held_out.document(n).into_owned()).unwrap_or_default();
        ids.truncate(k * CHUNKS);
        ids.truncate(ids.len() / k * k);
        let autoencoder = match run.config.model.autoencoder() {
            Some(_) => Some(models::load_autoencoder(run, Which::Best, &tokenizer, device)?.0),
            None => None,
        };
        let model = models::load_lm(run, Which::Best, &tokenizer, device)?;
        Ok(Self { run, device, tokenizer, autoencoder, model, ids })
    }

    fn k(&self) -> usize {
        self.run.config.chunk_size()
    }

    fn text(&self, ids: &[u32]) -> String {
        one_line(&self.tokenizer.decode(ids))
    }

    /// The text, cut into chunks.
    pub fn chunks(&self) -> Result<Option<String>> {
        if self.ids.is_empty() {
            return Ok(None);
        }
        let cut: Vec<String> = self.ids.chunks(self.k()).map(|chunk| self.text(chunk)).collect();
        let title =
            format!("1. Text that was held out, in chunks of {} tokens (| is between them)", self.k());
        Ok(Some(format!("{title}\n{}", lines(&cut.join("|")))))
    }

    /// Mean and spread of the first numbers of some chunks' latent vectors.
    pub fn latents(&self) -> Result<Option<String>> {
        let Some((first, ids)) = self.encoded(VECTORS)? else { return Ok(None) };
        let autoencoder = &first.model;
        let posterior = autoencoder.encode(&ids)?.detach();
        let (mean, std) = (posterior.mean.to_vec2::<f32>()?, posterior.log_std.exp()?.to_vec2::<f32>()?);
        let numbers = NUMBERS.min(autoencoder.latent_size());
        let heads: Vec<String> = (1..=numbers).map(|n| format!("number {n}")).collect();
        let heads: Vec<&str> = std::iter::once("chunk").chain(heads.iter().map(String::as_str)).collect();
        let mut table = Table::new(&heads).title(format!(
            "2. Each chunk becomes a vector of {} numbers, known up to a spread",
            autoencoder.latent_size()
        ));
        for ((chunk, mean), std) in self.ids.chunks(self.k()).zip(&mean).zip(&std) {
            let cells = mean.iter().zip(std).take(numbers).map(|(m, s)| format!("{m:.2} ±{s:.2}"));
            table.row(std::iter::once(format!("|{}|", self.text(chunk))).chain(cells));
        }
        Ok(Some(table.to_string()))
    }

    /// The text as the decoder gives it back from vectors with noise.
    pub fn noise(&self) -> Result<Option<String>> {
        let Some((first, ids)) = self.encoded(CHUNKS)? else { return Ok(None) };
        let autoencoder = &first.model;
        let posterior = autoencoder.encode(&ids)?.detach();
        let chunks = ids.dim(0)?;
        let rows: Vec<RowId> = (0..chunks).map(|n| RowId { example: 0, position: n as u32 }).collect();
        let keyed = Noise::Keyed { seed: self.run.config.seed, purpose: "demo", step: 0, rows: &rows };
        let eps = keyed.normal("latent", 1, autoencoder.latent_size(), self.device)?.squeeze(1)?;
        let mut out = "3. The decoder gives the text back, also from vectors with noise of size σ".to_owned();
        for sigma in SIGMAS {
            let z = (&posterior.mean + (&eps * sigma)?)?;
            let ids: Vec<u32> = autoencoder.decode(&z)?.flatten_all()?.to_vec1()?;
            out.push_str(&format!("\nσ = {sigma}\n{}", lines(&self.text(&ids))));
        }
        Ok(Some(out))
    }

    /// The autoencoder, and the first chunks as a tensor `[R, K]`.
    fn encoded(&self, most: usize) -> Result<Option<(&StageOne, Tensor)>> {
        let Some(stage_one) = self.autoencoder.as_ref().filter(|_| !self.ids.is_empty()) else {
            return Ok(None);
        };
        let ids: Vec<u32> = self.ids.iter().copied().take(most * self.k()).collect();
        let chunks = ids.len() / self.k();
        Ok(Some((stage_one, Tensor::from_vec(ids, (chunks, self.k()), self.device)?)))
    }

    /// What the model writes, as it is and sharpened.
    pub fn samples(&self) -> Result<String> {
        let sampler = self.model.sampler();
        let mut out = "4. What it writes, from nothing, at three temperatures T".to_owned();
        for n in [1u32, 2, 3] {
            let decoding = match n {
                1 => Decoding::Plain,
                n => Decoding::Batch {
                    temperature: Temperature::new::<candle_core::Error>(1.0 / f64::from(n))
                        .map_err(|e| anyhow::anyhow!("{e}"))?,
                    samples: CANDIDATES,
                },
            };
            let options = GenerateOptions {
                max_tokens: TOKENS,
                decoding,
                seed: self.run.config.seed,
                remainder_budget: REMAINDER_BUDGET,
            };
            let mut ids = Vec::new();
            generate(&*sampler, &[], &options, |new| {
                ids.extend_from_slice(new);
                true
            })
            .map_err(explain)?;
            let name = if n == 1 { "T = 1".to_owned() } else { format!("T = 1/{n}") };
            out.push_str(&format!("\n{name}\n{}", lines(&self.text(&ids))));
        }
        Ok(out)
    }
}

/// A text in one line: line ends and the like as signs.
fn one_line(text: &str) -> String {
    let sign = |c: char| match c {
        '\n' => '⏎',
        '\t' => '→',
        c if c.is_control() => '·',
        c => c,
    };
    text.chars().map(sign).collect()
}

/// Indented lines of a text that was one.
fn lines(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let lines =
        letters.chunks(WIDTH - 2).map(|line| format!("  {}", line.iter().collect::<String>().trim_end()));
    let text = lines.collect::<Vec<_>>().join("\n");
    if text.is_empty() { "  (nothing)".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let text = lines(&one_line(&"fn main() {\n\tx\u{7}\r\n}".repeat(20)));
        assert!(text.lines().count() > 3 && text.contains("⏎→x··⏎"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(lines(""), "  (nothing)");
    }
}
