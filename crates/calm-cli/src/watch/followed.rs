//! What the folder of a run says now.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use calm_run::metrics::{self, Line};
use calm_run::{Lock, Run, Stage};

/// The rate of steps is that of so many last lines: the median of what lies between two.
const RECENT: usize = 16;

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has not begun to train.
    Waiting,
    /// A process works on it.
    Training,
    /// Nobody works on it, and steps are missing.
    Stopped,
    /// All of its steps are done.
    Finished,
}

impl State {
    /// A word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Training => "training",
            Self::Stopped => "stopped",
            Self::Finished => "finished",
        }
    }
}

/// A run that is followed.
#[derive(Debug)]
pub struct Followed {
    folder: PathBuf,
    /// The last part of its path.
    pub name: String,
    /// The steps that are planned.
    planned: Vec<(Stage, u64)>,
    /// The values that count.
    lines: Vec<Line>,
    /// The last sample: stage, step, text.
    sample: Option<(Stage, u64, String)>,
    held: bool,
    /// Length and time of the metrics that were read last.
    read: Option<(u64, Option<SystemTime>)>,
}

impl Followed {
    /// A run's folder; it need not hold anything yet.
    pub fn new(folder: &Path) -> Self {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        Self {
            folder: folder.to_owned(),
            name,
            planned: Vec::new(),
            lines: Vec::new(),
            sample: None,
            held: false,
            read: None,
        }
    }

    /// Looks again. What cannot be read yet, or any more, stays as it was: the process that trains may just write it.
    pub fn refresh(&mut self) {
        self.held = Lock::holder(&self.folder).is_some();
        let path = self.folder.join("metrics.jsonl");
        let found = std::fs::metadata(&path).ok().map(|about| (about.len(), about.modified().ok()));
        if found.is_some() && found == self.read && !self.planned.is_empty() {
            return;
        }
        if let Ok(run) = Run::open(&self.folder) {
            let steps = |stage| run.config.train.stage(stage).map(|s| (stage, s.steps));
            self.planned = Stage::ALL.into_iter().filter_map(steps).collect();
        }
        if let Ok(lines) = metrics::read_lines(&path) {
            self.lines = lines;
            self.read = found;
        }
        if let Ok(texts) = metrics::read_texts(&path) {
            let last = texts.into_iter().rev().find(|t| t.texts.contains_key("sample"));
            self.sample = last.map(|mut t| (t.stage, t.step, t.texts.remove("sample").unwrap_or_default()));
        }
    }

    /// The stage that wrote last.
    pub fn stage(&self) -> Option<Stage> {
        self.lines.last().map(|line| line.stage)
    }

    /// Finished steps of a stage, as far as they were written down, and how many are planned.
    pub fn steps(&self, stage: Stage) -> (u64, Option<u64>) {
        let done = self.of(stage).map(|line| line.step).max().unwrap_or(0);
        (done, self.planned.iter().find(|(s, _)| *s == stage).map(|(_, steps)| *steps))
    }

    /// What it is doing.
    pub fn state(&self) -> State {
        let (done, planned) = self.steps(Stage::Lm);
        match self.held {
            true if self.lines.is_empty() => State::Waiting,
            true => State::Training,
            false if planned.is_some_and(|planned| done >= planned) => State::Finished,
            // A folder of an autoencoder, or a run of which one stage was asked for.
            false if self.stage().is_some_and(|stage| self.ended(stage)) => State::Finished,
            false if self.lines.is_empty() => State::Waiting,
            false => State::Stopped,
        }
    }

    /// Whether all steps of a stage are done.
    fn ended(&self, stage: Stage) -> bool {
        let (done, planned) = self.steps(stage);
        planned.is_some_and(|planned| done >= planned)
    }

    /// The last value of this name in the stage that wrote last.
    pub fn last(&self, name: &str) -> Option<f64> {
        let stage = self.stage()?;
        self.lines.iter().rev().filter(|line| line.stage == stage).find_map(|line| *line.values.get(name)?)
    }

    /// Time to the end of the stage at the pace of the last lines; none where nobody works or the pace is not known.
    pub fn left(&self) -> Option<Duration> {
        if self.state() != State::Training {
            return None;
        }
        let stage = self.stage()?;
        let lines: Vec<(u64, f64)> = self
            .of(stage)
            .filter(|line| line.values.contains_key("train/loss"))
            .map(|line| (line.step, line.wall_time))
            .collect();
        // Between two lines lies a validation or a stop now and then: the median does not mind.
        let mut pace: Vec<f64> = lines[lines.len().saturating_sub(RECENT)..]
            .windows(2)
            .filter(|w| w[1].0 > w[0].0 && w[1].1 > w[0].1)
            .map(|w| (w[1].1 - w[0].1) / (w[1].0 - w[0].0) as f64)
            .collect();
        pace.sort_by(f64::total_cmp);
        // It is scored, or the next stage has not written yet.
        if self.ended(stage) {
            return None;
        }
        let (done, planned) = self.steps(stage);
        let seconds = pace.get(pace.len() / 2)? * planned?.saturating_sub(done) as f64;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Names of the values of a stage.
    pub fn names(&self, stage: Stage) -> impl Iterator<Item = &str> {
        self.of(stage).flat_map(|line| line.values.keys().map(String::as_str))
    }

    /// A value by steps of its stage; what is not finite is left out.
    pub fn curve(&self, stage: Stage, name: &str) -> Vec<(f64, f64)> {
        let value = |line: &Line| Some((line.step as f64, (*line.values.get(name)?)?));
        self.of(stage).filter_map(value).collect()
    }

    /// The last validation.
    pub fn validation(&self) -> Option<Validated<'_>> {
        let of = |line: &Line| line.values.keys().any(|name| name.starts_with(VALIDATION));
        let line = self.lines.iter().rev().find(|line| of(line))?;
        let values = line.values.iter();
        let values = values.filter_map(|(name, value)| Some((name.strip_prefix(VALIDATION)?, *value)));
        Some(Validated { stage: line.stage, step: line.step, values: values.collect() })
    }

    /// The last sample of the model: stage, step, text.
    pub fn sample(&self) -> Option<(Stage, u64, &str)> {
        self.sample.as_ref().map(|(stage, step, text)| (*stage, *step, text.as_str()))
    }

    fn of(&self, stage: Stage) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(move |line| line.stage == stage)
    }
}

const VALIDATION: &str = "validation/";

/// A validation.
#[derive(Debug)]
pub struct Validated<'a> {
    /// Stage.
    pub stage: Stage,
    /// Finished steps.
    pub step: u64,
    /// By name without `validation/`; `None` where it was not finite.
    pub values: Vec<(&'a str, Option<f64>)>,
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::fmt::Write;

    /// A run in the middle of its training, ten seconds a line of ten steps, that somebody works on or not.
    pub fn followed(name: &str, lines: u64, held: bool) -> Followed {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::new();
        for i in 1..=lines {
            let (step, time, loss) = (10 * i, 10 * i, 4.0 + 2.0 / i as f64);
            writeln!(
                text,
                r#"{{"stage":"lm","step":{step},"wall_time":{time}.0,"values":{{"train/loss":{loss},"train/tokens_per_second":1234.0}}}}"#
            )
            .unwrap();
        }
        let step = 10 * lines;
        writeln!(
            text,
            r#"{{"stage":"lm","step":{step},"wall_time":1.0,"values":{{"validation/loss":4.5,"validation/brierlm":null}}}}"#
        )
        .unwrap();
        writeln!(
            text,
            r#"{{"stage":"lm","step":{step},"wall_time":1.0,"texts":{{"sample":"Once \u001b[31m upon {name}"}}}}"#
        )
        .unwrap();
        std::fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
        let mut run = Followed::new(folder.path());
        run.refresh();
        run.name = name.to_owned();
        run.planned = vec![(Stage::Autoencoder, 40), (Stage::Lm, 1000)];
        run.held = held;
        run
    }

    #[test]
    fn pace_state_and_last_values_come_from_the_lines() {
        let run = followed("a", 20, true);
        assert_eq!(
            (run.state(), run.stage(), run.steps(Stage::Lm)),
            (State::Training, Some(Stage::Lm), (200, Some(1000)))
        );
        // A second a step, 800 steps to go.
        assert_eq!(run.left(), Some(Duration::from_secs(800)));
        assert_eq!((run.last("train/loss"), run.last("train/tokens_per_second")), (Some(4.1), Some(1234.0)));
        assert_eq!(run.curve(Stage::Lm, "train/loss")[1], (20.0, 5.0));
        let last = run.validation().unwrap();
        assert_eq!((last.step, last.values), (200, vec![("brierlm", None), ("loss", Some(4.5))]));
        assert_eq!(run.sample(), Some((Stage::Lm, 200, "Once \u{1b}[31m upon a")));

        let stopped = followed("b", 20, false);
        assert_eq!((stopped.state(), stopped.left()), (State::Stopped, None));
        assert_eq!(followed("c", 100, false).state(), State::Finished);
    }

    #[test]
    fn a_folder_without_anything_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut run = Followed::new(&folder.path().join("later"));
        run.refresh();
        assert_eq!(
            (run.name.as_str(), run.state(), run.stage(), run.left()),
            ("later", State::Waiting, None, None)
        );
        assert!(run.last("train/loss").is_none() && run.validation().is_none() && run.sample().is_none());
    }
}
