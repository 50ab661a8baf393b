//! `metrics.jsonl`: one JSON object a line, added at the end and flushed at once.
//!
//! ```json
//! {"stage":"lm","step":0,"wall_time":1764000000.0,"start":true}
//! {"stage":"lm","step":20,"wall_time":1764000003.5,"values":{"loss":1.25,"learning_rate":0.0003}}
//! {"stage":"lm","step":20,"wall_time":1764000003.9,"texts":{"sample":"Once upon a time"}}
//! ```
//! `step` counts finished steps of the stage. A line with `start` begins or resumes a stage after that many
//! steps: earlier lines of the stage with a larger step were written by an interrupted run and no longer
//! count. Nothing is ever erased but the end of a line that was cut off.
//!
//! A checksum in each line would be in the way of those who read them with other programs. `metrics.sum` beside the
//! file holds length and hash of what it held at the last checkpoint.

use crate::stage::Stage;
use calm_files::{Log, Sum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The values of one step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Stage.
    pub stage: Stage,
    /// Finished steps of the stage.
    pub step: u64,
    /// Seconds since 1970.
    pub wall_time: f64,
    /// Values by name; `None` where the value was not finite.
    pub values: BTreeMap<String, Option<f64>>,
}

/// Texts of one step, such as a sample of the model.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Texts {
    /// Stage.
    pub stage: Stage,
    /// Finished steps of the stage.
    pub step: u64,
    /// Texts by name.
    pub texts: BTreeMap<String, String>,
}

/// File with the length and the hash of the lines that were there at the last checkpoint.
pub const SUM: &str = "metrics.sum";

/// Appends lines; opens its file with the first one, and again after a failure.
#[derive(Debug)]
pub(super) struct JsonLines {
    path: PathBuf,
    log: Option<Log>,
}

impl JsonLines {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, log: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn start(&mut self, stage: Stage, step: u64, wall_time: f64) -> io::Result<()> {
        self.append(&json!({"stage": stage, "step": step, "wall_time": wall_time, "start": true}))
    }

    pub(super) fn values(
        &mut self,
        stage: Stage,
        step: u64,
        wall_time: f64,
        values: &[(&str, f64)],
    ) -> io::Result<()> {
        // In the order given. JSON has no NaN: such a value becomes null.
        let values: Map<String, Value> =
            values.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        self.append(&json!({"stage": stage, "step": step, "wall_time": wall_time, "values": values}))
    }

    pub(super) fn text(
        &mut self,
        stage: Stage,
        step: u64,
        wall_time: f64,
        name: &str,
        text: &str,
    ) -> io::Result<()> {
        let texts = Map::from_iter([(name.to_owned(), json!(text))]);
        self.append(&json!({"stage": stage, "step": step, "wall_time": wall_time, "texts": texts}))
    }

    fn append(&mut self, line: &Value) -> io::Result<()> {
        let mut log = match self.log.take() {
            Some(log) => log,
            None => Log::open_lines(&self.path, is_line)?,
        };
        // One write a line, so that lines of two processes do not mix.
        log.append(format!("{line}\n").as_bytes())?;
        self.log = Some(log);
        Ok(())
    }

    /// Flushes the lines to the disk and writes down what they are.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        let Some(mut log) = self.log.take() else { return Ok(()) };
        let sum = log.sync()?;
        self.log = Some(log);
        let text = serde_json::to_string(&sum)? + "\n";
        calm_files::write_bytes(&self.path.with_file_name(SUM), text.as_bytes()).map(|_| ())
    }
}

/// Whether these bytes are a line of ours, not what was left of one.
fn is_line(bytes: &[u8]) -> bool {
    serde_json::from_slice::<Value>(bytes).is_ok_and(|line| line.is_object())
}

/// What is wrong with the metrics of a run, in words: lines that cannot be read, and a file that is not the one that
/// was written. Nothing is said of a run without metrics or, of the second kind, of one of version 0.1.
pub fn check(run: &Path) -> Vec<String> {
    let path = run.join("metrics.jsonl");
    // The sum first: a training that goes on only adds to what it counts.
    let sum = fs::read(run.join(SUM));
    let bytes = fs::read(&path);
    let bytes = match (bytes, &sum) {
        (Ok(bytes), _) => bytes,
        (Err(e), Ok(_)) => return vec![format!("{} cannot be read: {e}", path.display())],
        (Err(_), Err(_)) => return Vec::new(),
    };
    let mut wrong = Vec::new();
    let differs = sum.ok().and_then(|sum| match serde_json::from_slice::<Sum>(&sum) {
        Ok(sum) => {
            let until = usize::try_from(sum.bytes).unwrap_or(usize::MAX).min(bytes.len());
            sum.differs(&bytes[..until])
        }
        Err(_) => Some(format!("{SUM} beside it is damaged")),
    });
    if let Some(why) = differs {
        wrong.push(format!(
            "{} is not what {SUM} says was written ({why}): some of its values may be wrong",
            path.display()
        ));
    }
    let bad: Vec<String> = bytes
        .split(|b| *b == b'\n')
        .enumerate()
        .filter(|(_, line)| !line.is_empty() && !is_line(line))
        .map(|(i, _)| (i + 1).to_string())
        .collect();
    if !bad.is_empty() {
        let lines = if bad.len() == 1 { "line" } else { "lines" };
        wrong.push(format!("{}: {lines} {} cannot be read and left out", path.display(), bad.join(", ")));
    }
    wrong
}

/// Reads the values of a run that count, in the order in which they were written. Lines that cannot be read
/// (cut off by a crash) are left out.
///
/// # Errors
/// The file cannot be read.
pub fn read_lines(path: &Path) -> io::Result<Vec<Line>> {
    read(path, |line: &Line| (line.stage, line.step))
}

/// The last whole line of values within the last bytes of the file; None where there is none, or no file. For whoever looks
/// often.
pub fn last_line(path: &Path) -> Option<Line> {
    const TAIL: u64 = 16 << 10;
    let mut file = File::open(path).ok()?;
    let length = file.seek(SeekFrom::End(0)).ok()?;
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    bytes.split(|byte| *byte == b'\n').rev().find_map(|line| serde_json::from_slice(line).ok())
}

/// Reads the texts of a run that count, as [`read_lines`] does its values.
///
/// # Errors
/// The file cannot be read.
pub fn read_texts(path: &Path) -> io::Result<Vec<Texts>> {
    read(path, |texts: &Texts| (texts.stage, texts.step))
}

/// The lines of one kind that count; `place` is where one belongs.
fn read<T: DeserializeOwned>(path: &Path, place: impl Fn(&T) -> (Stage, u64)) -> io::Result<Vec<T>> {
    #[derive(Deserialize)]
    struct Start {
        stage: Stage,
        step: u64,
        start: bool,
    }
    let mut lines: Vec<T> = Vec::new();
    for bytes in BufReader::new(File::open(path)?).split(b'\n') {
        let bytes = bytes?;
        if let Ok(line) = serde_json::from_slice::<T>(&bytes) {
            lines.push(line);
        } else if let Ok(Start { stage, step, start: true }) = serde_json::from_slice(&bytes) {
            lines.retain(|line| {
                let (of, at) = place(line);
                of != stage || (at <= step && step > 0)
            });
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_values_is_found_without_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        assert_eq!(last_line(&path), None);
        let line = |step: usize| {
            format!("{{\"stage\":\"lm\",\"step\":{step},\"wall_time\":1.0,\"values\":{{\"a\":1.0}}}}\n")
        };
        let text = "{\"stage\":\"lm\",\"step\":9,\"wall_time\":1.0,\"texts\":{\"sample\":\"x\"}}\n{\"stage\":\"lm\",\"st";
        let all = (0..1000).map(line).collect::<String>() + text;
        fs::write(&path, all).unwrap();
        assert_eq!(last_line(&path).map(|line| line.step), Some(999));
    }

    fn steps(path: &Path) -> Vec<(Stage, u64)> {
        read_lines(path).unwrap().into_iter().map(|line| (line.stage, line.step)).collect()
    }

    #[test]
    fn lines_are_read_back_in_order_and_values_that_are_not_finite_as_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut lines = JsonLines::new(path.clone());
        lines.start(Stage::Lm, 0, 1.0).unwrap();
        lines.values(Stage::Lm, 5, 2.5, &[("loss", 0.1), ("bad", f64::NAN)]).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let expected = "{\"stage\":\"lm\",\"step\":0,\"wall_time\":1.0,\"start\":true}\n\
            {\"stage\":\"lm\",\"step\":5,\"wall_time\":2.5,\"values\":{\"loss\":0.1,\"bad\":null}}\n";
        assert_eq!(text, expected);
        let values = BTreeMap::from([("loss".to_string(), Some(0.1)), ("bad".to_string(), None)]);
        let line = Line { stage: Stage::Lm, step: 5, wall_time: 2.5, values };
        assert_eq!(read_lines(&path).unwrap(), [line]);
    }

    #[test]
    fn a_resumed_stage_drops_its_stale_lines_and_a_fresh_one_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut lines = JsonLines::new(path.clone());
        for (stage, step) in
            [(Stage::Autoencoder, 900), (Stage::Lm, 0), (Stage::Lm, 10), (Stage::Lm, 20), (Stage::Lm, 30)]
        {
            lines.values(stage, step, 0.0, &[("loss", 1.0)]).unwrap();
        }
        let mut again = JsonLines::new(path.clone());
        again.start(Stage::Lm, 20, 1.0).unwrap();
        again.values(Stage::Lm, 25, 1.0, &[("loss", 1.0)]).unwrap();
        let expected =
            [(Stage::Autoencoder, 900), (Stage::Lm, 0), (Stage::Lm, 10), (Stage::Lm, 20), (Stage::Lm, 25)];
        assert_eq!(steps(&path), expected);
        again.start(Stage::Lm, 0, 1.0).unwrap();
        assert_eq!(steps(&path), [(Stage::Autoencoder, 900)]);
    }

    #[test]
    fn texts_stand_between_the_values_and_a_resume_drops_stale_ones() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut lines = JsonLines::new(path.clone());
        for step in [10, 20] {
            lines.values(Stage::Lm, step, 0.0, &[("loss", 1.0)]).unwrap();
            lines.text(Stage::Lm, step, 0.0, "sample", &format!("line\n{step} \u{1b}")).unwrap();
        }
        let texts = |path| {
            let found = read_texts(path).unwrap().into_iter();
            found.map(|mut t| (t.step, t.texts.remove("sample").unwrap())).collect::<Vec<_>>()
        };
        let both = [(10, "line\n10 \u{1b}".to_owned()), (20, "line\n20 \u{1b}".to_owned())];
        assert_eq!(texts(&path), both);
        assert_eq!(steps(&path), [(Stage::Lm, 10), (Stage::Lm, 20)]);
        lines.start(Stage::Lm, 10, 0.0).unwrap();
        assert_eq!(texts(&path), both[..1]);
        assert!(check(folder.path()).is_empty());
    }

    #[test]
    fn a_line_that_was_cut_off_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        fs::write(&path, "{\"stage\":\"lm\",\"st").unwrap();
        let mut lines = JsonLines::new(path.clone());
        lines.values(Stage::Lm, 1, 0.0, &[("loss", 1.0)]).unwrap();
        assert_eq!(steps(&path), [(Stage::Lm, 1)]);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 1, "it is cut off");
        assert!(read_lines(&folder.path().join("absent")).is_err());
    }

    #[test]
    fn lines_that_are_not_what_was_written_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path();
        assert!(check(run).is_empty());
        let path = run.join("metrics.jsonl");
        let mut lines = JsonLines::new(path.clone());
        for step in 1..4 {
            lines.values(Stage::Lm, step, 0.0, &[("loss", 1.25)]).unwrap();
        }
        lines.sync().unwrap();
        // What came after the last checkpoint may be there or not.
        lines.values(Stage::Lm, 4, 0.0, &[("loss", 1.25)]).unwrap();
        assert!(check(run).is_empty());
        let whole = fs::read(&path).unwrap();
        let text = String::from_utf8(whole.clone()).unwrap();
        fs::write(&path, text.replacen("1.25", "1.35", 1)).unwrap();
        assert!(check(run)[0].contains("metrics.sum says was written"), "{:?}", check(run));
        fs::write(&path, &whole[..whole.len() - 100]).unwrap();
        assert!(check(run)[0].contains("bytes and must have"), "{:?}", check(run));
        fs::write(&path, text.replacen("{\"stage\"", "{stage\"", 2) + "{\"sta").unwrap();
        let wrong = check(run);
        assert_eq!(wrong.len(), 2);
        assert!(wrong[1].contains("lines 1, 2, 5 cannot be read"), "{wrong:?}");
        fs::remove_file(&path).unwrap();
        assert!(check(run)[0].contains("cannot be read"));
    }
}
