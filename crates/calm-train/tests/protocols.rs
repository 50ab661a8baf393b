//! Models with random weights scored by both protocols.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;

use calm_config::{ConfigText, load};
use calm_data::{TokenFile, Tokenizer, spread};
use calm_eval::protocol::{Protocol, Rule};
use calm_eval::score::{self, ScoreOptions, Scores};
use calm_eval::workers::Alone;
use calm_run::checkpoint::Which;
use calm_run::config::RunConfig;
use calm_run::results::BrierResults;
use calm_run::{Begin, Provenance, Run};
use calm_train::held_out::evaluation_rows;
use calm_train::init::initialise;
use calm_train::pipeline::prepare_data;
use calm_train::scoring::{Scorer, ngram_models, reader};
use candle_core::Device;
use common::Watch;

/// A run with random weights and 64 tokens of context, in the folder of its text.
fn run(dir: &Path, chunk_size: usize, bos_chunk: bool) -> Run {
    let text = dir.join("text.jsonl");
    let lines: String = (0..40)
        .map(|d: usize| {
            let words: Vec<String> = (0..8 + d % 30).map(|i| format!("w{}", (d * 7 + i * i) % 30)).collect();
            format!("{{\"text\": \"{}\"}}\n", words.join(" "))
        })
        .collect();
    fs::write(&text, lines).unwrap();
    let size = "{ layers: 1, hidden_size: 16, intermediate_size: 24, heads: 2 }";
    let stage =
        |context: usize| format!("{{ steps: 1, batch_rows: 1, context: {context}, learning_rate: 1e-3 }}");
    let model = match chunk_size {
        0 => format!("model: {{ baseline: {{ backbone: {size} }} }}\ntrain: {{ lm: {} }}", stage(64)),
        k => {
            let context = stage(64 / k);
            format!(
                "model:\n  calm:\n    chunk_size: {k}\n    \
             autoencoder: {{ hidden_size: 16, intermediate_size: 24, latent_size: 8 }}\n    backbone: {size}\n    \
             head: {{ energy: {{ blocks: 1, noise_size: 4, samples: 2, targets: 2 }} }}\n\
             train: {{ autoencoder: {context}, lm: {context} }}"
            )
        }
    };
    let config = format!(
        "version: 1\nbos_chunk: {bos_chunk}\ndata: {{ source: {{ path: {} }}, validation: 0.5 }}\n\
         tokenizer: {{ chars: {{}} }}\n{model}\n",
        text.display()
    );
    let resolved = load::<RunConfig>(ConfigText::new("test", config), &[]).unwrap();
    let run = Run::create(&dir.join(format!("run-{chunk_size}-{bos_chunk}")), &resolved, Begin::New).unwrap();
    let stages =
        initialise(&run, &dir.join("cache"), Provenance::default(), &Device::Cpu, &mut Watch::default())
            .unwrap();
    assert_eq!(stages.len(), if chunk_size == 0 { 1 } else { 2 });
    run
}

fn held_out(run: &Run, dir: &Path) -> (TokenFile, Tokenizer) {
    let corpus = prepare_data(run, &dir.join("cache"), &mut Watch::default()).unwrap();
    (corpus.validation, corpus.tokenizer)
}

fn score(run: &Run, dir: &Path, protocol: &Protocol) -> (BrierResults, Scores) {
    let (file, tokenizer) = held_out(run, dir);
    let scorer = Scorer::load(run, Which::Best, &tokenizer, &Device::Cpu).unwrap();
    let documents = spread(file.len(), None);
    scorer.score(&file, &documents, protocol, &run.config.eval, None, &mut Watch::default()).unwrap()
}

#[test]
fn every_chunk_size_and_the_baseline_are_scored_at_the_same_tokens() {
    let dir = tempfile::tempdir().unwrap();
    for bos_chunk in [true, false] {
        let protocol = Protocol::Aligned { every: 8, context: 48, first: 0, tokens_per_document: None };
        let places = |chunk_size| {
            let run = run(dir.path(), chunk_size, bos_chunk);
            let (results, scores) = score(&run, dir.path(), &protocol);
            assert_eq!(results.protocol, protocol);
            assert_eq!(results.report.positions as usize, scores.positions.len());
            assert_eq!(results.cross_entropy.is_some(), chunk_size == 0);
            assert!(results.ngram.is_none());
            let mut places: Vec<_> =
                scores.positions.iter().map(|p| (p.document, p.token, p.previous, p.target)).collect();
            places.sort_unstable();
            places
        };
        let baseline = places(0);
        assert!(baseline.len() > 100);
        for chunk_size in [1, 2, 4, 8] {
            // Before the first token of a text a model with chunks sees BOS as the baseline does.
            assert_eq!(places(chunk_size), baseline, "K = {chunk_size}, BOS chunk {bos_chunk}");
        }
    }
}

#[test]
fn a_models_own_aligned_protocol_gives_the_scores_of_all_its_chunks() {
    let dir = tempfile::tempdir().unwrap();
    for chunk_size in [2, 4] {
        let run = run(dir.path(), chunk_size, true);
        let (_, own) = score(&run, dir.path(), &Protocol::own(&reader(&run), None));
        let (file, tokenizer) = held_out(&run, dir.path());
        let scorer = Scorer::load(&run, Which::Best, &tokenizer, &Device::Cpu).unwrap();
        let rows = evaluation_rows(&file, tokenizer.special(), run.lm_layout(), None, None).unwrap();
        let options = ScoreOptions { rule: Rule::All, samples: 2, seed: run.config.seed };
        let batches = rows.batches(4);
        let all = score::score(&*scorer.model, batches, options, Alone(|_| {})).unwrap();
        assert_eq!(own.sums, all.sums);
        assert_eq!(own.positions.len(), all.positions.len());
    }
}

#[test]
fn the_reference_protocol_groups_by_block_and_counts_n_grams_where_asked() {
    let dir = tempfile::tempdir().unwrap();
    for chunk_size in [0, 1, 2, 4] {
        let run = run(dir.path(), chunk_size, false);
        let k = chunk_size.max(1);
        let (file, tokenizer) = held_out(&run, dir.path());
        let protocol = Protocol::reference(&reader(&run), 40, 40, true);
        let scorer = Scorer::load(&run, Which::Best, &tokenizer, &Device::Cpu).unwrap();
        let documents = spread(file.len(), None);
        let models = ngram_models(&file, &tokenizer).unwrap();
        let eval = &run.config.eval;
        let (r, scores) =
            scorer.score(&file, &documents, &protocol, eval, Some(&models), &mut Watch::default()).unwrap();
        let tokens: usize = documents.iter().map(|d| file.document_len(*d) + 1).sum();
        let blocks = tokens / 40;
        let starts = match chunk_size {
            0 => 40 - 4,
            1 => 39 - 4,
            2 => 19 - 2,
            _ => 9,
        };
        assert_eq!((r.report.documents, r.report.positions as usize), (blocks, blocks * starts), "K = {k}");
        assert!(
            scores.positions.iter().all(|p| p.token / 40 == p.group && (p.token as usize).is_multiple_of(k))
        );
        assert_eq!(r.ngram.unwrap().bigram.documents, blocks);
        let json = serde_json::to_value(r.protocol).unwrap();
        assert_eq!(json, serde_json::json!({"name": "reference", "block": 40, "document_bos": true}));
    }
}
