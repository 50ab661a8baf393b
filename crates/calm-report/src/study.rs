//! A study: what was compared, how it scored and what it cost. Plain numbers; this is also the JSON of
//! `calm report`.
//!
//! Scores are percent, losses nats, accuracies fractions (0..1), times seconds, memory bytes, FLOPs per token
//! unless a field says otherwise. `None` (JSON `null`) is a number that is undefined or was not measured.

use serde::{Deserialize, Serialize};

/// Everything that a report shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Study {
    /// Name of the study.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// What was equal for all runs, in words: `2 M training tokens a run`.
    pub budget: String,
    /// What the text is.
    pub corpus: String,
    /// Hash of the text.
    pub corpus_hash: String,
    /// V.
    pub vocab_size: usize,
    /// The aligned protocol in words: where all models were scored alike.
    pub aligned: String,
    /// The reference protocol in words; None if nothing was scored by it.
    pub reference: Option<String>,
    /// N of the batch sampler whose generation rate was measured.
    pub batch_draws: usize,
    /// Where it was made.
    pub machine: Machine,
    /// The variants, in the order of the study's file.
    pub variants: Vec<Variant>,
    /// Differences of each variant to the first.
    pub differences: Vec<Difference>,
    /// Stage 1, one entry a trained autoencoder.
    pub autoencoders: Vec<Autoencoder>,
    /// n-gram models on the positions of the aligned protocol.
    pub ngrams: Vec<Reference>,
    /// Runs that did not finish.
    pub failures: Vec<Failure>,
    /// What else a reader has to know: runs that are missing, differences over fewer seeds.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Where and with what a study was made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Operating system and processor architecture.
    pub platform: String,
    /// Threads at work.
    pub threads: usize,
    /// What computed, `cpu` or `cuda:0 (NAME)`; empty if nobody wrote it down.
    #[serde(default)]
    pub device: String,
    /// Version of calm.
    pub version: String,
    /// Commit it was built from, if known.
    pub commit: Option<String>,
    /// Day of the last score, `2026-11-22`.
    pub date: String,
}

/// One configuration, trained from one or more seeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// K.
    pub chunk_size: usize,
    /// Whether its models have probabilities: a cross-entropy beside BrierLM, and temperature without a batch of draws.
    pub probabilities: bool,
    /// The settings that are not the same for all variants, as (key, value).
    pub settings: Vec<(String, String)>,
    /// Scores over all seeds, aligned protocol.
    pub aligned: Option<Score>,
    /// Scores over all seeds, reference protocol.
    pub reference: Option<Score>,
    /// Costs by formula.
    pub costs: Costs,
    /// Costs as measured: all variants in turn on one machine, several rounds.
    pub measured: Option<Measured>,
    /// Its runs.
    pub runs: Vec<SeedRun>,
}

/// What a variant's models make of held-out text, mean over its runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Nats a token.
    pub nats: Estimate,
    /// Bits per byte of text; None of a vocabulary whose tokens are not bytes of it.
    pub bits_per_byte: Option<Estimate>,
    /// Draws of the bound that this is; None of an exact cross-entropy.
    pub draws: Option<usize>,
}

impl Variant {
    /// The exact cross-entropy of models with probabilities, the tightest bound of others; None where a run has
    /// neither.
    pub fn likelihood(&self) -> Option<Likelihood> {
        let of = |run: &SeedRun| match (run.cross_entropy, run.bound.last()) {
            (Some(nats), _) => Some((nats, run.bits_per_byte, None)),
            (None, Some(bound)) => Some((bound.nats, bound.bits_per_byte, Some(bound.samples))),
            (None, None) => None,
        };
        let runs: Vec<_> = self.runs.iter().map(of).collect::<Option<_>>()?;
        let draws = runs.first()?.2;
        let alike = runs.iter().all(|run| run.2 == draws);
        let bits: Option<Vec<f64>> = runs.iter().map(|run| run.1).collect();
        let nats = Estimate::over_seeds(&runs.iter().map(|run| run.0).collect::<Vec<_>>())?;
        alike.then(|| Likelihood {
            nats,
            bits_per_byte: bits.and_then(|bits| Estimate::over_seeds(&bits)),
            draws,
        })
    }
}

/// Brier scores in percent, with standard errors.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// BrierLM of the mean over the seeds; None where a Brier-n is not positive.
    pub brierlm: Option<Estimate>,
    /// Brier-1..4, mean over the seeds.
    pub brier: Vec<Estimate>,
    /// Seeds.
    pub seeds: usize,
    /// Documents (blocks in the reference protocol).
    pub documents: usize,
    /// Positions of one run.
    pub positions: u64,
}

/// A number with the parts of its standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Standard error from the choice of documents.
    pub documents: Option<f64>,
    /// Standard error from the choice of seeds; None with one seed.
    pub seeds: Option<f64>,
}

impl Estimate {
    /// Mean of one number a seed, with what the choice of seeds adds to its error; None without any.
    pub fn over_seeds(values: &[f64]) -> Option<Self> {
        let n = values.len() as f64;
        let value = values.iter().sum::<f64>() / n;
        let squares: f64 = values.iter().map(|v| (v - value).powi(2)).sum();
        let seeds = (values.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt());
        (!values.is_empty()).then_some(Self { value, documents: None, seeds })
    }

    /// Standard error of both parts together, or of the one there is.
    pub fn se(&self) -> Option<f64> {
        match (self.documents, self.seeds) {
            (None, None) => None,
            (a, b) => Some(a.unwrap_or(0.0).hypot(b.unwrap_or(0.0))),
        }
    }
}

/// Costs by formula, the same for all seeds. Training counts the language model (with encoding), not the
/// training of its autoencoder.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Trainable parameters of the language model.
    pub parameters: u64,
    /// Training FLOPs of a token, as (part, FLOPs).
    pub training_parts: Vec<(String, f64)>,
    /// FLOPs of generating a token at T = 1, as (part, FLOPs).
    pub inference_parts: Vec<(String, f64)>,
    /// FLOPs of generating a token with the batch sampler (as T = 1 of models with probabilities).
    pub inference_batch: f64,
}

impl Costs {
    /// Training FLOPs of a token.
    pub fn training(&self) -> f64 {
        self.training_parts.iter().map(|p| p.1).sum()
    }

    /// FLOPs of generating a token at T = 1.
    pub fn inference(&self) -> f64 {
        self.inference_parts.iter().map(|p| p.1).sum()
    }
}

/// Costs as measured, medians over the rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// Rounds.
    pub rounds: usize,
    /// Training tokens a second.
    pub training: f64,
    /// Quartiles of it over the rounds.
    pub training_quartiles: (f64, f64),
    /// Peak memory of a process that trains, bytes; None where the system does not tell.
    pub peak_memory: Option<u64>,
    /// Tokens a second generated at T = 1.
    pub generation: f64,
    /// Tokens a second generated with the batch sampler; None for models with probabilities.
    pub generation_batch: Option<f64>,
}

/// One trained run of a variant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SeedRun {
    /// Its seed.
    pub seed: u64,
    /// Its folder.
    pub folder: String,
    /// Training tokens.
    pub tokens: u64,
    /// Training FLOPs by formula.
    pub flops: f64,
    /// Training time as it was, scoring left out; whatever else the machine did is in it (see [`Measured`]).
    pub seconds: f64,
    /// BrierLM, aligned; None where undefined.
    pub brierlm: Option<f64>,
    /// Brier-1..4, aligned.
    pub brier: Option<[f64; 4]>,
    /// Models with probabilities: cross-entropy, nats a token.
    pub cross_entropy: Option<f64>,
    /// Models with probabilities: bits per byte of text.
    pub bits_per_byte: Option<f64>,
    /// Models that draw latent vectors: bounds on the cross-entropy, by rising number of draws.
    #[serde(default)]
    pub bound: Vec<Bound>,
    /// Validations while it was trained, by rising step.
    pub curve: Vec<CurvePoint>,
    /// Texts it wrote.
    pub samples: Vec<Sample>,
    /// How a model that cuts text into segments of its own does it.
    #[serde(default)]
    pub segments: Option<Segments>,
}

/// Segments that a model makes of text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Segments {
    /// Tokens a segment that training aimed at.
    pub target: Option<f64>,
    /// Tokens a segment over the whole training.
    pub realised: Option<f64>,
    /// Training tokens, and tokens a segment at that step.
    pub training: Vec<(u64, f64)>,
    /// Tokens a segment of held-out text.
    pub ratio: f64,
    /// Its standard error over documents.
    pub ratio_se: Option<f64>,
    /// Held-out tokens.
    pub tokens: u64,
    /// Nats a token by the place of the token before it in its segment: 0, 1, ..
    pub from_start: Vec<Place>,
    /// From the end: 1 is the last token.
    pub from_end: Vec<Place>,
    /// The opening of a held-out document.
    pub text: Vec<Piece>,
}

/// Nats at one place of a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Which; the last of a list stands for all beyond, too.
    pub place: usize,
    /// Nats a token.
    pub nats: f64,
    /// Standard error over documents.
    pub nats_se: Option<f64>,
}

/// Whole characters of a text with what a model says of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// The characters.
    pub text: String,
    /// Whether a segment begins here.
    pub opens: bool,
    /// How probable that was.
    pub probability: Option<f64>,
    /// Nats of its tokens.
    pub nats: Option<f64>,
}

/// An upper bound on the cross-entropy of drawing a latent vector and sampling the decoder, with a share of uniform
/// tokens mixed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// Draws.
    pub samples: usize,
    /// ε, share of uniform tokens in the distribution.
    pub floor: f64,
    /// Nats a token.
    pub nats: f64,
    /// Its standard error over documents.
    pub nats_se: Option<f64>,
    /// Bits per byte of text.
    pub bits_per_byte: Option<f64>,
}

/// One validation during training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CurvePoint {
    /// Training tokens seen.
    pub tokens: u64,
    /// Validation loss: cross-entropy of models with probabilities, the head's loss of others.
    pub loss: f64,
    /// Nats a token: the cross-entropy of models with probabilities, the tightest bound of others if one was taken.
    #[serde(default)]
    pub nats: Option<f64>,
    /// BrierLM; None where undefined.
    pub brierlm: Option<f64>,
    /// Standard error of it.
    pub brierlm_se: Option<f64>,
    /// Brier-1.
    pub brier_1: Option<f64>,
}

/// A text a model wrote.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// How it was drawn: `T = 1`, `T = 0.5, batch of 200`.
    pub decoding: String,
    /// What it continues.
    pub prompt: String,
    /// What it wrote.
    pub text: String,
}

/// A variant against the first variant of the study, both on the same documents from the same seeds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The variant.
    pub variant: String,
    /// The variant it is compared with.
    pub against: String,
    /// BrierLM, variant minus the other, in percent.
    pub brierlm: Option<DifferenceEstimate>,
    /// Brier-1..4.
    pub brier: Vec<DifferenceEstimate>,
}

/// A paired difference.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DifferenceEstimate {
    /// Difference and the parts of its standard error.
    pub estimate: Estimate,
    /// Half of the 95 % confidence interval (Student's t with the degrees of freedom of the seeds).
    pub half_width: Option<f64>,
    /// Smallest true difference that this study would have shown in four of five repetitions.
    pub detectable: Option<f64>,
}

impl DifferenceEstimate {
    /// Whether the 95 % interval leaves 0 out; None without a standard error.
    pub fn resolved(&self) -> Option<bool> {
        self.half_width.map(|h| self.estimate.value.abs() > h)
    }
}

/// A trained autoencoder on held-out text.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Autoencoder {
    /// Its name: that of the first variant it serves.
    pub name: String,
    /// Variants it serves.
    pub variants: Vec<String>,
    /// Its seed.
    pub seed: u64,
    /// K.
    pub chunk_size: usize,
    /// L.
    pub latent_size: usize,
    /// Share of tokens rebuilt from a posterior sample.
    pub token_accuracy: f64,
    /// Share of chunks rebuilt from a posterior sample.
    pub chunk_accuracy: f64,
    /// Tokens counted.
    pub tokens: u64,
    /// (σ, share of tokens rebuilt from mean + σ·ε).
    pub noise: Vec<(f64, f64)>,
    /// KL to the standard normal, nats a chunk.
    pub kl: f64,
    /// Mean standard deviation of the posterior.
    pub posterior_std: f64,
    /// Dimensions whose mean does not vary.
    pub collapsed_dimensions: usize,
    /// Training time.
    pub seconds: f64,
    /// Training FLOPs by formula, all steps.
    pub flops: f64,
}

/// Closed-form scores of an n-gram model on the positions of the study.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// `bigram`, `unigram`.
    pub name: String,
    /// BrierLM; None where undefined.
    pub brierlm: Option<f64>,
    /// Brier-1..4.
    pub brier: Vec<f64>,
}

/// A run that did not finish.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Which run: variant and seed, or the autoencoder.
    pub run: String,
    /// What happened.
    pub reason: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cross_entropy: Option<f64>, bound: &[(usize, f64)]) -> SeedRun {
        let bound = bound.iter().map(|&(samples, nats)| Bound { samples, nats, ..Bound::default() });
        SeedRun { cross_entropy, bits_per_byte: cross_entropy, bound: bound.collect(), ..SeedRun::default() }
    }

    #[test]
    fn a_likelihood_is_exact_or_the_tightest_bound_and_never_a_mixture() {
        let of = |runs: Vec<SeedRun>| Variant { runs, ..Variant::default() }.likelihood();
        let exact = of(vec![run(Some(3.0), &[]), run(Some(5.0), &[])]).expect("exact");
        assert_eq!((exact.nats.value, exact.nats.seeds, exact.draws), (4.0, Some(1.0), None));
        assert_eq!(exact.bits_per_byte, Some(exact.nats));
        let bound = of(vec![run(None, &[(1, 9.0), (8, 7.0)])]).expect("a bound");
        assert_eq!((bound.nats.value, bound.nats.seeds, bound.draws), (7.0, None, Some(8)));
        assert_eq!(bound.bits_per_byte, None);
        assert_eq!(of(vec![run(None, &[(8, 7.0)]), run(None, &[(64, 6.0)])]), None);
        assert_eq!(of(vec![run(Some(3.0), &[]), run(None, &[])]), None);
        assert_eq!(of(Vec::new()), None);
    }
}
