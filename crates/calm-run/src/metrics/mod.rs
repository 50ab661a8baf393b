//! What a run writes down while it goes: `metrics.jsonl` and TensorBoard events.
//!
//! Writing never stops training. A line or event that cannot be written (full disk, no permission) is lost;
//! the first loss of each kind is reported through a callback, and later ones are tried again in silence.
//!
//! ```
//! use calm_run::Stage;
//! use calm_run::metrics::{MetricsWriter, Tracking};
//!
//! # let run = tempfile::tempdir()?;
//! let mut metrics = MetricsWriter::new(run.path(), Tracking::default(), |warning| eprintln!("{warning}"));
//! metrics.begin(Stage::Autoencoder, None); // or Some(n): n steps were done before
//! metrics.scalars(Stage::Autoencoder, 10, &[("loss", 1.25), ("kl", 0.5)]);
//! metrics.text(Stage::Autoencoder, 10, "sample", "Once upon a time");
//! # let lines = calm_run::metrics::read_lines(&run.path().join("metrics.jsonl"))?;
//! # assert_eq!(lines.len(), 1);
//! # Ok::<(), std::io::Error>(())
//! ```

pub mod jsonl;
pub mod tensorboard;

pub use jsonl::{Line, SUM, Texts, check, last_line, read_lines, read_texts};

use crate::stage::Stage;
use jsonl::JsonLines;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};
use tensorboard::EventWriter;

/// What is written beside `metrics.jsonl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tracking {
    /// TensorBoard events under `tensorboard/<stage>/`.
    pub tensorboard: bool,
}

impl Default for Tracking {
    fn default() -> Self {
        Self { tensorboard: true }
    }
}

/// Writes the metrics of all stages of a run.
///
/// Each stage is a TensorBoard run of its own: its steps count from 0, and what a restart makes stale is
/// dropped for the whole of a TensorBoard run.
pub struct MetricsWriter {
    run: PathBuf,
    lines: JsonLines,
    events: Option<Events>,
    warn: Box<dyn FnMut(&str) + Send>,
    lines_failed: bool,
    events_failed: bool,
}

/// Event writers by stage; one that failed is gone, and a new file is begun with the next event.
struct Events {
    folder: PathBuf,
    writers: BTreeMap<Stage, EventWriter>,
}

impl MetricsWriter {
    /// A writer into a run's folder, which need not exist yet. `warn` gets one line of text when a first
    /// write fails.
    pub fn new(run: &Path, tracking: Tracking, warn: impl FnMut(&str) + Send + 'static) -> Self {
        let events = Events { folder: run.join("tensorboard"), writers: BTreeMap::new() };
        Self {
            run: run.to_owned(),
            lines: JsonLines::new(run.join("metrics.jsonl")),
            events: tracking.tensorboard.then_some(events),
            warn: Box::new(warn),
            lines_failed: false,
            events_failed: false,
        }
    }

    /// Begins a stage: afresh, or after `Some(n)` steps that were done before. What was written of later
    /// steps by an interrupted run no longer counts: [`read_lines`] and TensorBoard drop it.
    pub fn begin(&mut self, stage: Stage, resumed_after: Option<u64>) {
        check(&self.run).iter().for_each(|wrong| (self.warn)(wrong));
        let after = resumed_after.unwrap_or(0);
        let now = seconds_since_epoch();
        let line = self.lines.start(stage, after, now);
        self.note_lines(line);
        // An event at step n was written when n steps were done, so the first stale one is n + 1; a stage
        // that starts afresh has none at all to keep, step 0 included.
        let first = resumed_after.map_or(0, |steps| steps + 1);
        self.event(stage, |writer| writer.session_start(now, first));
    }

    /// Writes values after `step` steps of a stage. A value that is not finite is `null` in the JSON lines and
    /// absent from TensorBoard.
    pub fn scalars(&mut self, stage: Stage, step: u64, values: &[(&str, f64)]) {
        let now = seconds_since_epoch();
        let line = self.lines.values(stage, step, now, values);
        self.note_lines(line);
        let finite: Vec<_> = values.iter().copied().filter(|(_, value)| value.is_finite()).collect();
        if !finite.is_empty() {
            self.event(stage, |writer| writer.scalars(now, step, &finite));
        }
    }

    /// Writes a text, such as a sample of the model; TensorBoard shows it as Markdown.
    pub fn text(&mut self, stage: Stage, step: u64, tag: &str, text: &str) {
        let now = seconds_since_epoch();
        let line = self.lines.text(stage, step, now, tag, text);
        self.note_lines(line);
        self.event(stage, |writer| writer.text(now, step, tag, text));
    }

    /// Flushes everything to the disk: before a checkpoint, so that no power cut leaves one whose metrics are gone.
    pub fn sync(&mut self) {
        let lines = self.lines.sync();
        self.note_lines(lines);
        for stage in Stage::ALL {
            if self.events.as_ref().is_some_and(|e| e.writers.contains_key(&stage)) {
                self.event(stage, EventWriter::sync);
            }
        }
    }

    /// Whether anything could not be written.
    pub fn has_failed(&self) -> bool {
        self.lines_failed || self.events_failed
    }

    fn note_lines(&mut self, result: io::Result<()>) {
        if let Err(error) = result
            && !std::mem::replace(&mut self.lines_failed, true)
        {
            let path = self.lines.path().display();
            (self.warn)(&format!("cannot write {path}: {error}; training goes on, its record has gaps"));
        }
    }

    fn event(&mut self, stage: Stage, write: impl FnOnce(&mut EventWriter) -> io::Result<()>) {
        let Some(events) = &mut self.events else { return };
        if let Err(error) = events.write(stage, write)
            && !std::mem::replace(&mut self.events_failed, true)
        {
            let path = events.folder.display();
            (self.warn)(&format!(
                "cannot write TensorBoard events in {path}: {error}; training goes on without"
            ));
        }
    }
}

impl Events {
    fn write(
        &mut self,
        stage: Stage,
        write: impl FnOnce(&mut EventWriter) -> io::Result<()>,
    ) -> io::Result<()> {
        // A file whose last record may be cut off cannot be continued: readers stop there.
        let mut writer = match self.writers.remove(&stage) {
            Some(writer) => writer,
            None => EventWriter::create(&self.folder.join(stage.name()))?,
        };
        write(&mut writer)?;
        self.writers.insert(stage, writer);
        Ok(())
    }
}

fn seconds_since_epoch() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    type Warnings = Arc<Mutex<Vec<String>>>;

    fn writer(run: &Path) -> (MetricsWriter, Warnings) {
        let warnings = Warnings::default();
        let sink = warnings.clone();
        let warn = move |text: &str| sink.lock().unwrap().push(text.to_string());
        (MetricsWriter::new(run, Tracking::default(), warn), warnings)
    }

    #[test]
    fn every_stage_has_its_lines_and_its_own_event_file() {
        let run = tempfile::tempdir().unwrap();
        let (mut metrics, warnings) = writer(&run.path().join("new/run"));
        for stage in Stage::ALL {
            metrics.begin(stage, None);
            metrics.scalars(stage, 10, &[("loss", 2.0), ("accuracy", 0.5)]);
            metrics.text(stage, 10, "sample", "text");
        }
        let run = run.path().join("new/run");
        let lines = read_lines(&run.join("metrics.jsonl")).unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[1].stage, lines[1].step), (Stage::Lm, 10));
        assert_eq!(lines[1].values["accuracy"], Some(0.5));
        for stage in Stage::ALL {
            assert_eq!(std::fs::read_dir(run.join("tensorboard").join(stage.name())).unwrap().count(), 1);
        }
        assert!(!metrics.has_failed() && warnings.lock().unwrap().is_empty());
    }

    #[test]
    fn values_that_are_not_finite_are_null_in_lines_and_absent_from_events() {
        let run = tempfile::tempdir().unwrap();
        let (mut metrics, _) = writer(run.path());
        metrics.scalars(Stage::Lm, 1, &[("loss", 1.0), ("brierlm_undefined", f64::NAN)]);
        metrics.scalars(Stage::Lm, 2, &[("only_infinite", f64::INFINITY)]);
        let lines = read_lines(&run.path().join("metrics.jsonl")).unwrap();
        assert_eq!((lines.len(), lines[0].values["brierlm_undefined"]), (2, None));
        let file = std::fs::read_dir(run.path().join("tensorboard/lm")).unwrap().next().unwrap().unwrap();
        let events = std::fs::read(file.path()).unwrap();
        let holds = |tag: &str| events.windows(tag.len()).any(|window| window == tag.as_bytes());
        assert!(holds("loss") && !holds("undefined") && !holds("infinite"));
    }

    #[test]
    fn without_tensorboard_only_the_lines_are_written() {
        let run = tempfile::tempdir().unwrap();
        let mut metrics = MetricsWriter::new(run.path(), Tracking { tensorboard: false }, |_| {});
        metrics.scalars(Stage::Lm, 1, &[("loss", 2.0)]);
        metrics.text(Stage::Lm, 1, "sample", "text");
        assert!(!run.path().join("tensorboard").exists());
        assert!(run.path().join("metrics.jsonl").exists());
    }

    #[test]
    fn a_failed_write_warns_once_and_writing_recovers() {
        let run = tempfile::tempdir().unwrap();
        // A file where a folder is needed, and a folder where a file is needed.
        std::fs::create_dir(run.path().join("metrics.jsonl")).unwrap();
        std::fs::write(run.path().join("tensorboard"), "").unwrap();
        let (mut metrics, warnings) = writer(run.path());
        metrics.begin(Stage::Lm, None);
        for step in 0..5 {
            metrics.scalars(Stage::Lm, step, &[("loss", 1.0)]);
            metrics.text(Stage::Lm, step, "sample", "text");
        }
        assert!(metrics.has_failed());
        let texts = warnings.lock().unwrap().clone();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("metrics.jsonl") && texts[1].contains("TensorBoard"), "{texts:?}");

        std::fs::remove_dir(run.path().join("metrics.jsonl")).unwrap();
        std::fs::remove_file(run.path().join("tensorboard")).unwrap();
        metrics.scalars(Stage::Lm, 9, &[("loss", 1.0)]);
        assert_eq!(read_lines(&run.path().join("metrics.jsonl")).unwrap().len(), 1);
        assert_eq!(std::fs::read_dir(run.path().join("tensorboard/lm")).unwrap().count(), 1);
        assert_eq!(warnings.lock().unwrap().len(), 2);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_does_not_stop_training() {
        let run = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", run.path().join("metrics.jsonl")).unwrap();
        let (mut metrics, warnings) = writer(run.path());
        for step in 0..3 {
            metrics.scalars(Stage::Lm, step, &[("loss", 1.0)]);
        }
        assert_eq!(warnings.lock().unwrap().len(), 1);
    }
}
