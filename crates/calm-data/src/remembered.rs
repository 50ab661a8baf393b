//! What was found of a large text, so that a second start need not read it: its inputs with length, time and number in
//! the file system, and its survey.
//!
//! A file whose content changes while all of these stay the same is not noticed here; `calm data check` reads it. What was
//! changed less than two seconds before it was read is not trusted, as a file system's clock may be coarse.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::config::DataConfig;
use crate::error::{Error, Result};
use crate::reading::Reading;
use crate::source::Input;
use crate::survey::Survey;
use crate::token_file::write_atomically;

/// A smaller text is read at every start.
pub(crate) const LARGE: u64 = 64 << 20;
/// Within that time a file could change twice and show one time.
const COARSE: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Record {
    inputs: Vec<Input>,
    survey: Survey,
}

/// Where it is kept.
pub(crate) struct Remembered {
    path: PathBuf,
}

impl Remembered {
    /// For a configuration.
    pub(crate) fn of(data: &DataConfig, cache: &Path) -> Self {
        Self::named("divided", data, cache)
    }

    /// For a text that is not divided, or for its first documents.
    pub(crate) fn of_first(data: &DataConfig, documents: Option<usize>, cache: &Path) -> Self {
        match documents {
            None => Self::named("whole", data, cache),
            Some(n) => Self::named(&format!("first {n}"), data, cache),
        }
    }

    fn named(kind: &str, data: &DataConfig, cache: &Path) -> Self {
        let here = std::env::current_dir().unwrap_or_default();
        let settings = serde_json::to_string(data).unwrap_or_default();
        let key = blake3::hash(format!("source 1 {kind} {} {settings}", here.display()).as_bytes());
        Self { path: cache.join("sources").join(format!("{}.json", &key.to_hex()[..32])) }
    }

    /// The survey of the same inputs, if one is kept.
    ///
    /// # Errors
    /// Names an input that is not what it was.
    pub(crate) fn survey(&self, reading: &Reading) -> Result<Option<Survey>, String> {
        let Some(record) = self.read().filter(|_| reading.total() >= LARGE) else { return Ok(None) };
        let now: Vec<&Input> = reading.inputs().collect();
        let other = |(then, now): &(&Input, &&Input)| then != *now;
        if let Some((then, _)) = record.inputs.iter().zip(&now).find(other) {
            return Err(then.name.clone());
        }
        if record.inputs.len() != now.len() {
            let more = now.get(record.inputs.len()).map(|input| input.name.clone());
            return Err(more.or(record.inputs.get(now.len()).map(|i| i.name.clone())).unwrap_or_default());
        }
        Ok(Some(record.survey))
    }

    fn read(&self) -> Option<Record> {
        let text = fs::read_to_string(&self.path).ok()?;
        let (hash, json) = text.split_once('\n')?;
        (blake3::hash(json.as_bytes()).to_hex().as_str() == hash).then(|| serde_json::from_str(json).ok())?
    }

    /// Keeps what was found of a large text.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn keep(&self, reading: &Reading, survey: &Survey) -> Result<()> {
        let old = |input: &Input| {
            let changed = UNIX_EPOCH.checked_add(Duration::from_nanos(input.modified?))?;
            (SystemTime::now().duration_since(changed).ok()? > COARSE).then_some(())
        };
        let known = |input: &Input| input.hash.is_some() || old(input).is_some();
        if reading.total() < LARGE || !reading.inputs().all(known) {
            return Ok(());
        }
        let record = Record { inputs: reading.inputs().cloned().collect(), survey: survey.clone() };
        let json = serde_json::to_string(&record).map_err(|e| Error::Tokenizer(e.to_string()))?;
        let hash = blake3::hash(json.as_bytes()).to_hex();
        write_atomically(&self.path, &[hash.as_bytes(), b"\n", json.as_bytes()])
    }
}
