//! Between the loop and whoever watches it: writes every logged step and validation to the run's metrics.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::reporter::Reporter;
use crate::training::{Observer, StepReport, Validation};
use calm_run::Stage;
use calm_run::checkpoint::StageState;
use calm_run::metrics::{MetricsWriter, Tracking};

/// An observer that records and passes on.
pub struct Recorder<'a> {
    metrics: MetricsWriter,
    warnings: Arc<Mutex<Vec<String>>>,
    /// Of the steps since the last line of the metrics.
    tokens: u64,
    seconds: f64,
    waited: f64,
    reporter: &'a mut dyn Reporter,
}

impl<'a> Recorder<'a> {
    /// Records into the run folder `folder`.
    pub fn new(folder: &Path, reporter: &'a mut dyn Reporter) -> Self {
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&warnings);
        let metrics = MetricsWriter::new(folder, Tracking::default(), move |w| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).push(w.to_owned());
        });
        Self { metrics, warnings, tokens: 0, seconds: 0.0, waited: 0.0, reporter }
    }

    fn pass_warnings(&mut self) {
        let warnings = std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner));
        for w in warnings {
            self.reporter.warn(&w);
        }
    }
}

impl Observer for Recorder<'_> {
    fn begin(&mut self, stage: Stage, from: u64, steps: u64) {
        // Whoever sees the stage in the metrics may stop it: the reporter hears of that from here on.
        self.reporter.begin(stage, from, steps);
        self.metrics.begin(stage, (from > 0).then_some(from));
        self.pass_warnings();
    }

    fn step(&mut self, r: &StepReport) {
        self.tokens += r.tokens;
        self.seconds += r.seconds;
        self.waited += r.data_seconds;
        if let Some(v) = r.values.as_ref().filter(|_| r.log) {
            let mut values = vec![("train/loss", v.loss)];
            let parts: Vec<(String, f64)> =
                v.parts.iter().map(|(name, v)| (format!("train/{name}"), *v)).collect();
            values.extend(parts.iter().map(|(n, v)| (n.as_str(), *v)));
            values.extend([
                ("train/gradient_norm", v.gradient_norm),
                ("train/learning_rate", r.learning_rate),
                ("train/tokens_per_second", self.tokens as f64 / self.seconds.max(1e-9)),
                ("train/data_wait", self.waited / self.seconds.max(1e-9)),
            ]);
            if r.left_out > 0 {
                values.push(("train/skipped_steps", r.left_out as f64));
            }
            (self.tokens, self.seconds, self.waited) = (0, 0.0, 0.0);
            self.metrics.scalars(r.stage, r.step, &values);
            self.pass_warnings();
        }
        self.reporter.step(r);
    }

    fn validation(&mut self, stage: Stage, step: u64, v: &Validation) {
        let mut values = vec![("validation/loss".to_owned(), v.loss)];
        // An undefined BrierLM is null in the lines and absent in TensorBoard.
        values.extend(v.numbers.iter().map(|(n, x)| (format!("validation/{n}"), x.unwrap_or(f64::NAN))));
        let values: Vec<(&str, f64)> = values.iter().map(|(n, x)| (n.as_str(), *x)).collect();
        self.metrics.scalars(stage, step, &values);
        if let Some(text) = &v.sample {
            self.metrics.text(stage, step, "sample", text);
        }
        self.pass_warnings();
        self.reporter.validation(stage, step, v);
    }

    fn saving(&mut self) {
        self.metrics.sync();
        self.pass_warnings();
        self.reporter.saving();
    }

    fn end(&mut self, stage: Stage, state: &StageState) {
        self.reporter.end(stage, state);
    }

    fn alarm(&mut self, stage: Stage, text: &str) {
        self.reporter.alarm(stage, text);
        self.reporter.warn(text);
    }

    fn went_back(&mut self, stage: Stage, to: u64) {
        self.metrics.begin(stage, Some(to));
        (self.tokens, self.seconds, self.waited) = (0, 0.0, 0.0);
        self.pass_warnings();
        self.reporter.went_back(stage, to);
    }

    fn should_stop(&self) -> bool {
        self.reporter.should_stop()
    }
}
