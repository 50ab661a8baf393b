//! Costs as measured: each variant in a process of its own, all variants in turn, several rounds, so that
//! whatever else the machine does falls on all of them alike.

use std::collections::BTreeMap;
use std::path::Path;

use calm_report::study::Measured;
use calm_run::checked::{read_json, write_json};
use calm_run::{Result, Stage};
use calm_train::measure::MeasuredCosts;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::done::finished;
use crate::plan::Ablation;
use crate::queue::Failures;

/// File of an ablation's folder with the measurements.
pub const COSTS: &str = "costs.json";

/// Measures in a process of its own.
pub trait Meter {
    /// The costs of the run in `folder`, generation with a batch of `draws`; None if stopped by the user.
    ///
    /// # Errors
    /// The process cannot be started, or fails.
    fn measure(&mut self, folder: &Path, draws: usize, title: &str) -> Result<Option<MeasuredCosts>>;
}

/// All measurements: rounds by variant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// Hash of what was measured.
    key: String,
    /// Threads at work.
    pub threads: usize,
    /// Measurements by variant.
    pub variants: BTreeMap<String, Vec<MeasuredCosts>>,
}

fn key(ablation: &Ablation, threads: usize) -> String {
    // What is done about explosions costs nothing, and older folders do not know of it.
    let known = |tree: &Value| {
        let mut tree = tree.clone();
        for stage in Stage::ALL {
            let train = tree.get_mut("train").and_then(|train| train.get_mut(stage.name()));
            train.and_then(Value::as_object_mut).map(|stage| stage.shift_remove("divergence"));
        }
        tree
    };
    let trees: Vec<_> =
        ablation.runs[..ablation.variants.len()].iter().map(|r| known(&r.config.tree)).collect();
    let what = json!([trees, ablation.config.score.draws, std::env::consts::ARCH, threads]);
    crate::hash(&what)
}

/// What was measured before, if it is of these variants, with as many threads as now (None: with any number).
///
/// # Errors
/// What was measured is damaged.
pub fn kept(ablation: &Ablation, threads: Option<usize>) -> Result<Rounds> {
    let rounds: Rounds = read_json(&ablation.folder.join(COSTS), "run `calm ablate` again to measure anew")?
        .unwrap_or_default();
    let key = key(ablation, threads.unwrap_or(rounds.threads));
    if rounds.key == key {
        return Ok(rounds);
    }
    Ok(nothing(key, threads))
}

fn nothing(key: String, threads: Option<usize>) -> Rounds {
    Rounds { key, threads: threads.unwrap_or_default(), ..Rounds::default() }
}

/// Measures the rounds that are missing. A variant without a finished run is left out, one that cannot be
/// measured is noted in `failures`. False if stopped.
///
/// # Errors
/// The folder cannot be written.
pub fn measure(
    ablation: &Ablation,
    threads: usize,
    meter: &mut dyn Meter,
    failures: &mut Failures,
) -> Result<bool> {
    // What is damaged is measured anew; the caller has named it.
    let mut rounds =
        kept(ablation, Some(threads)).unwrap_or_else(|_| nothing(key(ablation, threads), Some(threads)));
    let wanted = ablation.config.score.rounds;
    let mut folders = Vec::new();
    for (i, variant) in ablation.variants.iter().enumerate() {
        for run in ablation.runs_of(i) {
            if finished(&run.folder, &run.config.value, Stage::Lm) {
                folders.push((variant.name.as_str(), &run.folder));
                break;
            }
        }
    }
    for round in 0..wanted {
        for (name, folder) in &folders {
            let done = rounds.variants.entry((*name).to_owned()).or_default();
            if done.len() > round {
                continue;
            }
            let failed = format!("costs of {name}");
            if failures.contains_key(&failed) {
                continue;
            }
            let title = format!("{failed}, round {} of {wanted}", round + 1);
            match meter.measure(folder, ablation.config.score.draws, &title) {
                Ok(Some(costs)) => done.push(costs),
                Ok(None) => return Ok(false),
                Err(e) => {
                    failures.insert(failed, e.to_string());
                    continue;
                }
            }
            write_json(&ablation.folder.join(COSTS), &rounds)?;
        }
    }
    Ok(true)
}

/// Medians over the rounds.
pub fn summary(rounds: &[MeasuredCosts]) -> Option<Measured> {
    let sorted = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        values
    };
    let quantile = |values: &[f64], q: f64| {
        let at = q * (values.len() - 1) as f64;
        let (low, part) = (at.floor() as usize, at.fract());
        let high = values[(low + 1).min(values.len() - 1)];
        values[low] + part * (high - values[low])
    };
    let training = sorted(rounds.iter().map(|r| r.training).collect());
    if training.is_empty() {
        return None;
    }
    let median = |values: Vec<f64>| (!values.is_empty()).then(|| quantile(&sorted(values), 0.5));
    Some(Measured {
        rounds: rounds.len(),
        training: quantile(&training, 0.5),
        training_quartiles: (quantile(&training, 0.25), quantile(&training, 0.75)),
        peak_memory: rounds.iter().filter_map(|r| r.peak_memory).max(),
        generation: median(rounds.iter().filter_map(|r| r.generation).collect()).unwrap_or_default(),
        generation_batch: median(rounds.iter().filter_map(|r| r.generation_batch).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_summed_up_by_medians_and_quartiles() {
        let costs = |training: f64| MeasuredCosts {
            training,
            steps: 5,
            peak_memory: Some(training as u64),
            generation: Some(2.0 * training),
            generation_batch: None,
        };
        let rounds: Vec<_> = [50.0, 10.0, 40.0, 20.0, 30.0].map(costs).to_vec();
        let m = summary(&rounds).unwrap();
        assert_eq!((m.training, m.training_quartiles, m.rounds), (30.0, (20.0, 40.0), 5));
        assert_eq!((m.peak_memory, m.generation, m.generation_batch), (Some(50), 60.0, None));
        assert_eq!(summary(&[]), None);
    }
}
