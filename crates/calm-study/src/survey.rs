//! What a plan has to know before anything is trained: the text, its vocabulary, and how fast this machine trains.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calm_config::Resolved;
use calm_data::Corpus;
use calm_run::checked::{read_json, write_json};
use calm_run::config::RunConfig;
use calm_run::{Begin, Error, Result, Run, Stage};
use calm_train::plan::{Plan, Target};
use calm_train::reporter::Reporter;
use serde_json::{Value, json};

use crate::costs::Meter;
use crate::plan::{Ablation, BudgetFacts};

/// File of an ablation's folder with the rates that turned a budget of seconds into steps.
const RATES: &str = "rates.json";
/// Rounds in which the rates of a budget of seconds are measured.
const PILOT_ROUNDS: usize = 3;

/// The device that trains the runs.
pub trait Site {
    /// What a plan needs of it, in the number format of a configuration.
    ///
    /// # Errors
    /// The device cannot be used.
    fn target(&mut self, config: &RunConfig) -> Result<Target>;

    /// Name of a GPU, on which measured rates depend; None where the processor trains.
    fn gpu(&self) -> Option<String>;
}

/// Looks at texts and measures rates, each once.
pub struct Survey<'a> {
    folder: PathBuf,
    cache: PathBuf,
    /// Nothing may be written: rates that are not known are estimated.
    dry: bool,
    site: &'a mut dyn Site,
    meter: &'a mut dyn Meter,
    reporter: &'a mut dyn Reporter,
    corpora: Vec<(Value, Corpus)>,
    /// Tokens a second of each round, by what was measured.
    rates: BTreeMap<String, Vec<f64>>,
}

impl<'a> Survey<'a> {
    /// For the ablation in `folder`, with the rates that were measured there before. `dry`: nothing is written, and
    /// rates are estimated.
    pub fn new(
        folder: &Path,
        cache: &Path,
        dry: bool,
        site: &'a mut dyn Site,
        meter: &'a mut dyn Meter,
        reporter: &'a mut dyn Reporter,
    ) -> Self {
        let rates = read_json(&folder.join(RATES), "").ok().flatten().unwrap_or_default();
        let (folder, cache) = (folder.to_owned(), cache.to_owned());
        Self { folder, cache, dry, site, meter, reporter, corpora: Vec::new(), rates }
    }

    /// The text of a configuration, read once for all that share it.
    ///
    /// # Errors
    /// It is not there, or its tokenizer does not fit.
    pub fn corpus(&mut self, config: &RunConfig) -> Result<&Corpus> {
        let key = json!([config.data, config.tokenizer, config.vocabulary]);
        let at = match self.corpora.iter().position(|(k, _)| *k == key) {
            Some(at) => at,
            None => {
                let mut corpus =
                    calm_data::prepare(&config.data, &config.tokenizer, &self.cache, &mut |p| {
                        self.reporter.data(&p);
                    })?;
                self.reporter.data_done();
                for note in corpus.tokenizer.notes() {
                    self.reporter.note(&format!("tokenizer: {note}"));
                }
                corpus.tokenizer = config.fit(corpus.tokenizer)?;
                self.corpora.push((key, corpus));
                self.corpora.len() - 1
            }
        };
        Ok(&self.corpora[at].1)
    }

    fn plan(&mut self, config: &RunConfig) -> Result<Plan> {
        let target = self.site.target(config)?;
        Ok(Plan::new(config, self.corpus(config)?, &target))
    }

    /// The plan of each variant's first run.
    ///
    /// # Errors
    /// The text is not there, or the device cannot be used.
    pub fn plans(&mut self, ablation: &Ablation) -> Result<Vec<Plan>> {
        let first = &ablation.runs[..ablation.variants.len()];
        first.iter().map(|run| self.plan(&run.config.value)).collect()
    }

    /// What a measured rate belongs to.
    fn rate_key(&self, config: &RunConfig) -> String {
        let cores = std::thread::available_parallelism().ok().map(usize::from);
        let mut what = json!([config, std::env::consts::ARCH, cores]);
        if let Some(gpu) = self.site.gpu() {
            what = json!([what, gpu]);
        }
        crate::hash(&what)
    }

    /// Median of the rounds, if all were measured.
    fn median(&self, config: &RunConfig) -> Option<f64> {
        let mut rounds = self.rates.get(&self.rate_key(config)).filter(|r| r.len() >= PILOT_ROUNDS)?.clone();
        rounds.sort_by(f64::total_cmp);
        Some(rounds[rounds.len() / 2])
    }

    /// As measured before, or by formula.
    fn estimate(&mut self, config: &RunConfig) -> Result<f64> {
        if let Some(rate) = self.median(config) {
            return Ok(rate);
        }
        let plan = self.plan(config)?;
        let lm = plan.stages.last().and_then(|lm| Some((lm, lm.seconds?)));
        Ok(lm.map_or(1.0, |(lm, seconds)| (lm.tokens_per_step * lm.steps) as f64 / seconds))
    }

    /// A round of a variant, in a folder of its own.
    fn measure(&mut self, name: &str, config: &RunConfig, round: usize) -> Result<f64> {
        let pilot = self.folder.join("pilot").join(name);
        let tree = serde_json::to_value(config)
            .map_err(|e| Error::user(format!("cannot write the pilot's configuration: {e}"), ""))?;
        let overrides = Vec::new();
        let resolved = Resolved { value: config.clone(), name: String::new(), path: None, overrides, tree };
        Run::create(&pilot, &resolved, Begin::Restart(None::<Stage>))?;
        let title = format!("training rate of {name}, round {} of {PILOT_ROUNDS}", round + 1);
        match self.meter.measure(&pilot, 0, &title)? {
            Some(costs) => Ok(costs.training),
            None => Err(Error::Stopped),
        }
    }
}

impl BudgetFacts for Survey<'_> {
    fn vocab_size(&mut self, config: &RunConfig) -> Result<usize> {
        Ok(self.corpus(config)?.tokenizer.vocab_size())
    }

    /// All variants in turn, several rounds: what else the machine does falls on all of them alike.
    fn rates(&mut self, variants: &[(String, RunConfig)]) -> Result<Vec<f64>> {
        if self.dry {
            return variants.iter().map(|(_, config)| self.estimate(config)).collect();
        }
        for round in 0..PILOT_ROUNDS {
            for (name, config) in variants {
                let key = self.rate_key(config);
                if self.rates.get(&key).is_some_and(|r| r.len() > round) {
                    continue;
                }
                let rate = self.measure(name, config, round)?;
                self.rates.entry(key).or_default().push(rate);
                write_json(&self.folder.join(RATES), &self.rates)?;
            }
        }
        Ok(variants.iter().map(|(_, c)| self.median(c).unwrap_or(1.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_config::{ConfigText, load};
    use calm_run::checkpoint::StageState;
    use calm_train::measure::MeasuredCosts;
    use calm_train::training::{Observer, StepReport, Validation};

    struct Nowhere(Option<String>);

    impl Site for Nowhere {
        fn target(&mut self, _: &RunConfig) -> Result<Target> {
            Ok(Target::gpus_with(1e9, 1))
        }
        fn gpu(&self) -> Option<String> {
            self.0.clone()
        }
    }

    /// Gives these rates in turn, then is stopped.
    struct Given(Vec<f64>, Vec<String>);

    impl Meter for Given {
        fn measure(&mut self, folder: &Path, _: usize, title: &str) -> Result<Option<MeasuredCosts>> {
            assert!(folder.join("config.yaml").is_file());
            self.1.push(title.to_owned());
            let rate = (!self.0.is_empty()).then(|| self.0.remove(0));
            let costs = |training| MeasuredCosts {
                training,
                steps: 3,
                peak_memory: None,
                generation: None,
                generation_batch: None,
            };
            Ok(rate.map(costs))
        }
    }

    struct Silent;

    impl Observer for Silent {
        fn begin(&mut self, _: Stage, _: u64, _: u64) {}
        fn step(&mut self, _: &StepReport) {}
        fn validation(&mut self, _: Stage, _: u64, _: &Validation) {}
        fn end(&mut self, _: Stage, _: &StageState) {}
        fn should_stop(&self) -> bool {
            false
        }
    }

    impl Reporter for Silent {
        fn data(&mut self, _: &calm_data::Progress) {}
        fn data_done(&mut self) {}
        fn note(&mut self, _: &str) {}
        fn plan(&mut self, _: &Plan) {}
        fn scoring(&mut self, _: &str, _: usize, _: usize) {}
        fn warn(&mut self, _: &str) {}
    }

    fn variants() -> Vec<(String, RunConfig)> {
        let text = "version: 1
model: { baseline: {} }
train:
  lm: { steps: 10, batch_rows: 2, context: 32, learning_rate: 1e-3 }
";
        let of = |seed: &str| {
            load::<RunConfig>(ConfigText::new("a.yaml", text), &[format!("seed={seed}")]).unwrap().value
        };
        vec![("a".to_owned(), of("1")), ("b".to_owned(), of("2"))]
    }

    fn rates(folder: &Path, meter: &mut Given, gpu: Option<&str>, dry: bool) -> Result<Vec<f64>> {
        let mut site = Nowhere(gpu.map(str::to_owned));
        Survey::new(folder, folder, dry, &mut site, meter, &mut Silent).rates(&variants())
    }

    #[test]
    fn rates_are_medians_of_rounds_in_turn_and_a_stopped_measurement_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let mut meter = Given(vec![1.0, 10.0, 3.0], Vec::new());
        let error = rates(dir.path(), &mut meter, None, false).unwrap_err();
        assert!(error.is_stop(), "{error}");
        assert!(error.remedy().is_some_and(|h| h.contains("again")));
        meter.0 = vec![30.0, 2.0, 20.0];
        assert_eq!(rates(dir.path(), &mut meter, None, false).unwrap(), [2.0, 20.0]);
        let asked: Vec<String> =
            meter.1.iter().map(|t| t.replace("training rate of ", "").replace(", round", "")).collect();
        assert_eq!(
            asked,
            ["a 1 of 3", "b 1 of 3", "a 2 of 3", "b 2 of 3", "b 2 of 3", "a 3 of 3", "b 3 of 3"]
        );
        // All is known now: nothing is measured again, nor needed for a plan. Another device is another matter.
        assert_eq!(rates(dir.path(), &mut meter, None, false).unwrap(), [2.0, 20.0]);
        assert_eq!(rates(dir.path(), &mut meter, None, true).unwrap(), [2.0, 20.0]);
        assert!(rates(dir.path(), &mut meter, Some("a GPU"), false).is_err());
    }
}
