//! What a run shows while it works.

use std::time::Instant;

use calm_run::Stage;
use calm_run::checkpoint::StageState;
use calm_train::plan::Plan;
use calm_train::reporter::Reporter;
use calm_train::training::{Observer, StepReport, Validation};

use crate::report;
use crate::stop::Stop;
use crate::ui::{Printer, Progress, Unit};

/// Shows a run on stderr: one bar per long job, a line per validation.
pub struct Screen<'a> {
    printer: &'a Printer,
    bar: Option<(String, Progress)>,
    since: Instant,
    tokens: u64,
    values: String,
    stop: Option<Stop>,
}

impl<'a> Screen<'a> {
    /// A screen on a printer.
    pub fn new(printer: &'a Printer) -> Self {
        Self { printer, bar: None, since: Instant::now(), tokens: 0, values: String::new(), stop: None }
    }

    /// While a stage is trained, the first signal stops it after its step, with a checkpoint.
    pub fn stopped_by(mut self, stop: &Stop) -> Self {
        self.stop = Some(stop.clone());
        self
    }

    /// What it prints on.
    pub fn printer(&self) -> &'a Printer {
        self.printer
    }

    fn bar(&mut self, label: &str, total: u64, unit: Unit) -> &Progress {
        if self.bar.as_ref().is_none_or(|(l, _)| l != label) {
            self.finish("");
        }
        let printer = self.printer;
        &self.bar.get_or_insert_with(|| (label.to_owned(), printer.progress(label, total, unit))).1
    }

    /// A job without an end that is known: only its seconds are told.
    fn learning_merges(&mut self) {
        const LABEL: &str = "learning merges";
        if self.bar.as_ref().is_none_or(|(label, _)| label != LABEL) {
            self.finish("");
            self.bar = Some((LABEL.to_owned(), self.printer.progress(LABEL, None, Unit::Other("seconds"))));
            self.since = Instant::now();
        }
        if let Some((_, bar)) = &self.bar {
            bar.set(self.since.elapsed().as_secs(), "");
        }
    }

    fn patient(&self, patient: bool) {
        if let Some(stop) = &self.stop {
            stop.patient(patient);
        }
    }

    fn finish(&mut self, text: &str) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish(text);
        }
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        self.patient(false);
        self.finish("");
    }
}

impl Observer for Screen<'_> {
    fn begin(&mut self, stage: Stage, from: u64, steps: u64) {
        if from > 0 {
            self.printer.note(format!("{stage}: goes on after step {from} of {steps}"));
        }
        self.patient(true);
        self.tokens = 0;
        self.values.clear();
        self.bar(stage.name(), steps, Unit::Steps).start_at(from);
    }

    fn step(&mut self, r: &StepReport) {
        self.tokens += r.tokens;
        let tokens = self.tokens;
        // A GPU's values are read now and then; what was read last stays.
        if let Some(v) = &r.values {
            self.values = format!("loss {:.3}", v.loss);
            for (name, value) in &v.parts {
                let short = if *name == "cross_entropy" { "ce" } else { &**name };
                self.values.push_str(&format!("  {short} {value:.3}"));
            }
        }
        let text = self.values.clone();
        let bar = self.bar(r.stage.name(), r.steps, Unit::Steps);
        bar.tokens(tokens);
        bar.set(r.step, &text);
    }

    fn validation(&mut self, stage: Stage, step: u64, v: &Validation) {
        self.printer.note(report::validation(stage, step, v));
    }

    fn end(&mut self, _stage: Stage, state: &StageState) {
        self.patient(false);
        let best =
            state.best.map_or(String::new(), |b| format!("best at step {} (loss {:.4})", b.step, b.loss));
        self.finish(&best);
    }

    fn should_stop(&self) -> bool {
        self.stop.as_ref().is_some_and(Stop::asked)
    }
}

impl Reporter for Screen<'_> {
    fn data(&mut self, progress: &calm_data::Progress) {
        let (label, done, total) = match *progress {
            calm_data::Progress::Remade { ref what } => return self.printer.warn(what),
            calm_data::Progress::Changed { ref what } => {
                return self
                    .printer
                    .note(format!("{what} has changed since it was prepared: the text is read again"));
            }
            calm_data::Progress::Waiting { ref what } => return self.printer.note(what),
            calm_data::Progress::Fetching { ref file, done, total } => (file.as_str(), done, total),
            calm_data::Progress::Reading { done, total } => ("reading", done, total),
            calm_data::Progress::TrainingTokenizer { done, total } => ("tokenizer", done, total),
            calm_data::Progress::Tokenizing { done, total } => ("tokenizing", done, total),
            calm_data::Progress::LearningMerges => return self.learning_merges(),
            _ => return,
        };
        let bar = self.bar(label, total, Unit::Bytes);
        bar.set_total(total);
        bar.set(done, "");
    }

    fn data_done(&mut self) {
        self.finish("");
    }

    fn note(&mut self, text: &str) {
        self.printer.note(text);
    }

    fn plan(&mut self, plan: &Plan) {
        self.printer.note(report::plan(plan));
    }

    fn scoring(&mut self, what: &str, done: usize, total: usize) {
        self.bar(what, total as u64, Unit::Other("batches")).set(done as u64, "");
        if done == total {
            self.finish("");
        }
    }

    fn warn(&mut self, text: &str) {
        self.printer.warn(text);
    }
}
