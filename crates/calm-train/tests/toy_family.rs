//! A model family in one file: settings, costs, network, draws, sampler, and the line that registers it. Nothing else
//! in the project knows of it, and it is planned, trained, resumed, scored, measured and sampled as the others are.
//!
//! The toy is a bigram model: logits of the next token = W e, with e the embedding of the token before.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod common;

use std::path::Path;

use calm_autoencoder::Autoencoder;
use calm_config::{ConfigText, Problems, load};
use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_kernels as ops;
use calm_lm::family::GRAM;
use calm_lm::registry::{self, Entry};
use calm_lm::{
    ChunkBatch, Continuation, DrawKey, DrawKind, DrawRequest, Draws, ExactDraws, FamilyConfig, LanguageModel,
    Loss, Sampler, SpecialIds, TextFormat, TokenDecoding,
};
use calm_nn::costs::{Breakdown, Count, Flops, Parameters, flops, weights};
use calm_nn::device::upload;
use calm_nn::{Embedding, Footing, Held, Init, Noise, NoiseKey, ParamStore, RowId, philox};
use calm_run::checkpoint::Which;
use calm_run::config::RunConfig;
use calm_run::{Begin, Run, Stage};
use calm_train::measure::{MeasureOptions, measure};
use calm_train::models::load_lm;
use calm_train::options::TrainOptions;
use calm_train::pipeline::train;
use calm_train::plan::{Plan, Target};
use candle_core::{Device, Result};
use common::Watch;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BigramConfig {
    /// D, numbers of an embedding.
    width: usize,
}

impl FamilyConfig for BigramConfig {
    fn name(&self) -> &'static str {
        "bigram"
    }

    fn title(&self) -> &'static str {
        "a bigram model"
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Exact
    }

    fn head_sizes(&self) -> Vec<usize> {
        Vec::new()
    }

    fn validate(&self, problems: &mut Problems) {
        problems.at_least("width", self.width, 1);
    }

    fn build(
        &self,
        store: &ParamStore,
        text: &TextFormat,
        _: Option<Autoencoder>,
    ) -> Result<Box<dyn LanguageModel>> {
        let (b, v, init) = (store.builder().under("bigram"), text.vocab_size, Init::Normal(0.1));
        Ok(Box::new(Bigram {
            store: store.clone(),
            before: Embedding::new(&b, "before", v, self.width, init, None)?,
            after: Embedding::new(&b, "after", v, self.width, init, None)?,
            text: *text,
        }))
    }

    fn parameters(&self, vocab: usize) -> Parameters {
        Breakdown { parts: vec![("tables", Count(2 * weights(vocab, self.width)))] }
    }

    fn training_flops(&self, vocab: usize, context: usize) -> Flops {
        self.inference_flops(vocab, context, 1).times(3.0)
    }

    fn inference_flops(&self, vocab: usize, _: usize, _: usize) -> Flops {
        Breakdown { parts: vec![("vocabulary", flops(weights(self.width, vocab)))] }
    }

    fn held(&self, vocab: usize, positions: f64, on: Footing, _: bool) -> Held {
        let mut held = Held::default();
        on.cross_entropy(&mut held, vocab, self.width, positions, true);
        held
    }
}

struct Bigram {
    store: ParamStore,
    before: Embedding,
    after: Embedding,
    text: TextFormat,
}

impl Bigram {
    /// `[R]` tokens -> probabilities `[R, V]` of the next.
    fn next(&self, tokens: &[u32]) -> Result<Vec<Vec<f64>>> {
        let ids = upload(tokens, tokens.len(), self.store.context())?;
        let logits = ops::linear(&self.before.forward(&ids)?, &self.after.table, None)?.detach();
        let softmax = |row: Vec<f32>| {
            let p: Vec<f64> = row.iter().map(|l| f64::from(*l).exp()).collect();
            let sum: f64 = p.iter().sum();
            p.into_iter().map(|p| p / sum).collect()
        };
        Ok(logits.to_vec2::<f32>()?.into_iter().map(softmax).collect())
    }

    /// The tokens of the predicting positions, and those that come next.
    fn pairs(batch: &ChunkBatch) -> Result<(Vec<u32>, Vec<u32>)> {
        let all: Vec<u32> = batch.ids.flatten_all()?.to_vec1()?;
        let before = batch.sources.iter().map(|at| all[*at as usize]).collect();
        Ok((before, batch.targets()?.flatten_all()?.to_vec1()?))
    }
}

fn invert(p: &[f64], u: f32) -> u32 {
    let mut sum = 0.0;
    let found = p.iter().position(|p| {
        sum += p;
        f64::from(u) < sum
    });
    found.unwrap_or(p.len() - 1) as u32
}

impl LanguageModel for Bigram {
    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn special(&self) -> SpecialIds {
        self.text.special
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Exact
    }

    fn set_recompute(&mut self, _: bool) {}

    fn loss(&self, batch: &ChunkBatch, _: &Noise<'_>) -> Result<Loss> {
        let (b, s, _) = batch.ids.dims3()?;
        let hidden = batch.pick(&self.before.forward(&batch.ids.reshape((b, s))?)?)?;
        let targets = batch.targets()?.flatten_all()?;
        let sum = ops::tied_cross_entropy(&hidden, &self.after.table, &targets, None)?;
        Ok(Loss { sum, targets: batch.sources.len(), parts: Vec::new() })
    }

    fn draw(&self, batch: &ChunkBatch, request: &DrawRequest<'_>) -> Result<Draws> {
        let (mut last, targets) = Self::pairs(batch)?;
        let (rows, special) = (last.len(), self.text.special);
        let mut out = ExactDraws {
            paths: vec![[[special.pad; GRAM - 1]; 2]; rows],
            squares: vec![[1.0; GRAM]; rows],
            ..ExactDraws::default()
        };
        for step in 0..GRAM {
            let key = NoiseKey::new(request.seed, &format!("{}/token", request.purpose), step as u32);
            let u = philox::uniform(key, &batch.rows, 2, 1);
            for (row, p) in self.next(&last)?.iter().enumerate() {
                if step == 0 {
                    out.log_p.push(p[targets[row] as usize].ln());
                }
                let ended = out.paths[row][0][..step.min(GRAM - 1)].contains(&special.eos);
                if !ended {
                    out.squares[row][step] = p.iter().map(|p| p * p).sum();
                    let drawn = [invert(p, u[2 * row]), invert(p, u[2 * row + 1])];
                    if step + 1 < GRAM {
                        (out.paths[row][0][step], out.paths[row][1][step]) = (drawn[0], drawn[1]);
                    }
                    last[row] = drawn[0];
                }
            }
        }
        let after = |row: usize| std::array::from_fn(|n| out.log_p.get(row + n).copied().unwrap_or(0.0));
        out.gram_log_p = (0..rows).map(after).collect();
        Ok(Draws::Exact(out))
    }

    fn sampler(&self) -> Box<dyn Sampler + '_> {
        Box::new(self)
    }

    fn tempered_sampler(&self, _: TokenDecoding) -> Option<Box<dyn Sampler + '_>> {
        Some(self.sampler())
    }
}

impl Sampler for &Bigram {
    fn chunk_size(&self) -> usize {
        1
    }

    fn special(&self) -> SpecialIds {
        self.text.special
    }

    fn start(&self) -> Result<Box<dyn Continuation + '_>> {
        Ok(Box::new(Text { model: self, last: self.text.special.bos, length: 0 }))
    }
}

struct Text<'a> {
    model: &'a Bigram,
    last: u32,
    length: u32,
}

impl Continuation for Text<'_> {
    fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.last = tokens.last().copied().unwrap_or(self.last);
        self.length += tokens.len() as u32;
        Ok(())
    }

    fn draw(&self, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        let p = self.model.next(&[self.last])?.swap_remove(0);
        let row = [RowId { example: 0, position: self.length }];
        let u = philox::uniform(NoiseKey::new(key.seed, "generate/token", key.call), &row, samples, 1);
        Ok(u.iter().map(|u| vec![invert(&p, *u)]).collect())
    }
}

/// The whole registration.
fn register() {
    registry::add(Entry::family::<BigramConfig>("bigram", "The next token from the last."));
}

fn configuration(dir: &Path, steps: u64) -> calm_config::Resolved<RunConfig> {
    let text = dir.join("text.txt");
    // Each letter is followed by the next one in the alphabet, or by a blank.
    let line = |i: usize| (0..40).map(|j| char::from(b'a' + ((i + j) % 26) as u8)).collect::<String>();
    std::fs::write(&text, (0..200).map(|i| line(i) + "\n\n").collect::<String>()).unwrap();
    let yaml = format!(
        "version: 1\ndata: {{ source: {{ path: {:?} }}, validation: 0.3 }}\ntokenizer: {{ chars: {{}} }}\n\
         model: {{ bigram: {{ width: 16 }} }}\n\
         train: {{ lm: {{ steps: {steps}, batch_rows: 4, context: 32, learning_rate: 3e-2, warmup_steps: 2 }} }}\n\
         eval: {{ training_documents: 4, documents: 4, bootstrap: 20 }}\n",
        text
    );
    load::<RunConfig>(ConfigText::new("toy.yaml", yaml), &[]).unwrap()
}

#[test]
fn a_family_from_elsewhere_goes_through_the_whole_pipeline() {
    register();
    let dir = tempfile::tempdir().unwrap();
    let options =
        |resume| TrainOptions { cache: dir.path().join("cache"), resume, ..TrainOptions::default() };
    let folder = dir.path().join("run");
    let (cpu, mut watch) = (Device::Cpu, Watch::default());
    let run = Run::create(&folder, &configuration(dir.path(), 40), Begin::New).unwrap();
    train(&run, &options(false), &cpu, &mut watch).unwrap();
    // Resumed with more steps: the same loop goes on.
    let run = Run::create(&folder, &configuration(dir.path(), 80), Begin::Resume).unwrap();
    let results = train(&run, &options(true), &cpu, &mut watch).unwrap();
    let tokenizer = run.tokenizer().unwrap();
    assert_eq!(watch.parameters, 2 * 16 * tokenizer.vocab_size() as u64);
    assert_eq!(watch.losses.len(), 80);
    assert!(watch.losses[79] < 0.5 * watch.losses[0], "{:?}", watch.losses);
    assert!(watch.validations[1].1.loss < watch.validations[0].1.loss);

    // The text is a chain of bigrams: such a model must be far above chance, and its likelihood is known.
    let brier = results.brier.unwrap();
    assert!(brier.report.brier.unwrap()[0] > 50.0, "{:?}", brier.report.brier);
    assert!(brier.cross_entropy.unwrap() < 1.0 && brier.bits_per_byte.is_some());
    assert!(results.autoencoder.is_none() && results.condition.is_none());

    // As a new process would find it.
    let reopened = Run::open(&folder).unwrap();
    assert_eq!(reopened.config.model, run.config.model);
    let model = load_lm(&reopened, Which::Best, &tokenizer, &cpu).unwrap();
    let how = GenerateOptions { max_tokens: 20, decoding: Decoding::Plain, seed: 3, remainder_budget: 1 };
    let prompt = tokenizer.encode("abcd").unwrap();
    let mut text = Vec::new();
    generate(&*model.sampler(), &prompt, &how, |t| {
        text.extend_from_slice(t);
        true
    })
    .unwrap();
    // Most letters are followed by the next one.
    let text = tokenizer.decode(&[prompt, text].concat()).into_bytes();
    let chained = text.windows(2).filter(|w| w[1] == w[0] + 1 || (w[0], w[1]) == (b'z', b'a')).count();
    assert!(3 * chained > 2 * (text.len() - 1), "{}", String::from_utf8_lossy(&text));
    let costs = measure(
        &run,
        &dir.path().join("cache"),
        &MeasureOptions { seconds: 0.01, draws: 4 },
        &cpu,
        &mut Watch::default(),
    )
    .unwrap();
    assert!(costs.training > 0.0 && costs.generation.is_some() && costs.generation_batch.is_none());
}

#[test]
fn a_family_from_elsewhere_is_planned_and_its_mistakes_have_their_place() {
    register();
    let dir = tempfile::tempdir().unwrap();
    let config = configuration(dir.path(), 10).value;
    let plan = Plan::of_sizes(&config, 100, None, String::new(), &Target::gpus_with(80e9, 1));
    assert_eq!(plan.stages.len(), 1);
    assert_eq!(plan.stages[0].parameter_count(), 2 * 16 * 100);
    assert_eq!(plan.check(&[Stage::Lm]).unwrap(), None);
    let text = "version: 1\nmodel:\n  bigram: { width: 0 }\ntrain: { lm: { steps: 1, batch_rows: 1, context: 4, learning_rate: 1 } }\n";
    let problems = load::<RunConfig>(ConfigText::new("toy.yaml", text), &[]).unwrap_err().to_string();
    assert!(problems.contains("toy.yaml:3:") && problems.contains("width"), "{problems}");
    let typo = text.replace("width: 0", "wdith: 4");
    let problems = load::<RunConfig>(ConfigText::new("toy.yaml", typo), &[]).unwrap_err().to_string();
    assert!(problems.contains("did you mean `width`?"), "{problems}");
    let unknown = text.replace("bigram", "bigrm");
    let problems = load::<RunConfig>(ConfigText::new("toy.yaml", unknown), &[]).unwrap_err().to_string();
    assert!(problems.contains("did you mean `bigram`?"), "{problems}");
}
