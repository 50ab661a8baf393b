//! `metrics.jsonl`: one JSON object a line, added at the end and flushed at once.
//!
//! ```json
//! {"stage":"lm","step":0,"wall_time":1764000000.0,"start":true}
//! {"stage":"lm","step":20,"wall_time":1764000003.5,"values":{"loss":1.25,"learning_rate":0.0003}}
//! ```
//! `step` counts finished steps of the stage. A line with `start` begins or resumes a stage after that many
//! steps: earlier lines of the stage with a larger step were written by an interrupted run and no longer
//! count. Nothing is ever erased.

use crate::stage::Stage;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
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

/// Appends lines; opens its file with the first one, and again after a failure.
#[derive(Debug)]
pub(super) struct JsonLines {
    path: PathBuf,
    file: Option<File>,
}

impl JsonLines {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, file: None }
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

    fn append(&mut self, line: &Value) -> io::Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => open_after_last_line(&self.path)?,
        };
        // One write a line, so that lines of two processes do not mix.
        file.write_all(format!("{line}\n").as_bytes())?;
        self.file = Some(file);
        Ok(())
    }
}

/// Opens for appending; a last line that was cut off is ended, so that it spoils no other.
fn open_after_last_line(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
    let mut last = [b'\n'];
    if file.metadata()?.len() > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// Reads the lines of a run that count, in the order in which they were written. Lines that cannot be read
/// (cut off by a crash) are left out.
///
/// # Errors
/// The file cannot be read.
pub fn read_lines(path: &Path) -> io::Result<Vec<Line>> {
    #[derive(Deserialize)]
    struct Start {
        stage: Stage,
        step: u64,
        start: bool,
    }
    let mut lines: Vec<Line> = Vec::new();
    for bytes in BufReader::new(File::open(path)?).split(b'\n') {
        let bytes = bytes?;
        if let Ok(line) = serde_json::from_slice::<Line>(&bytes) {
            lines.push(line);
        } else if let Ok(Start { stage, step, start: true }) = serde_json::from_slice(&bytes) {
            lines.retain(|line| line.stage != stage || (line.step <= step && step > 0));
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let text = std::fs::read_to_string(&path).unwrap();
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
    fn a_line_that_was_cut_off_spoils_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"stage\":\"lm\",\"st").unwrap();
        let mut lines = JsonLines::new(path.clone());
        lines.values(Stage::Lm, 1, 0.0, &[("loss", 1.0)]).unwrap();
        assert_eq!(steps(&path), [(Stage::Lm, 1)]);
        assert!(read_lines(&folder.path().join("absent")).is_err());
    }
}
