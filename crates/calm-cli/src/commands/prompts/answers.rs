//! The file of answers, and beside it the settings that they came from.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use calm_eval::prompts::Answer;
use calm_files::Partial;
use calm_run::Lock;
use serde_json::{Map, Value, json};

use super::reading::{ANSWER, Asked, Prompts};
use crate::error::Hinted;
use crate::ui::Printer;

/// What was said last is on the disk after this long.
const FLUSHED: Duration = Duration::from_secs(5);

/// What answers depend on, by name.
pub(super) struct Settings(Map<String, Value>);

impl Settings {
    pub(super) fn new<const N: usize>(values: [(&str, Value); N]) -> Self {
        Self(values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    /// Where they lie beside a file of answers.
    fn beside(answers: &Path) -> PathBuf {
        let mut name = answers.as_os_str().to_owned();
        name.push(".settings.json");
        name.into()
    }

    /// The answers that are there must have come from the same.
    fn must_be_those_of(&self, answers: &Path) -> Result<()> {
        let path = Self::beside(answers);
        let read = std::fs::read(&path).ok();
        let Some(before) = read.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok())
        else {
            return Err(Hinted::new(
                format!(
                    "{} is there, but not {}, which says what it came from",
                    answers.display(),
                    path.display()
                ),
                "give another --out, or remove the file",
            )
            .into());
        };
        for (name, now) in &self.0 {
            let Some(then) = before.get(name) else {
                return Err(Hinted::new(
                    format!(
                        "{} was begun by an earlier version, which did not write down its {name}",
                        answers.display()
                    ),
                    "give another --out, or remove the file to begin anew",
                )
                .into());
            };
            if then != now {
                return Err(Hinted::new(
                    format!("{} was begun with {name} {then}, not {now}", answers.display()),
                    "say the same again, give another --out, or remove the file to begin anew",
                )
                .into());
            }
        }
        Ok(())
    }
}

/// Where answers go.
pub(super) enum Answers<'a> {
    Printed(&'a Printer),
    Written { file: Partial, path: PathBuf, flushed: Instant, _lock: Option<Lock> },
}

impl<'a> Answers<'a> {
    /// Standard output for `-`, or a file, new or continued, in which nobody else writes meanwhile.
    pub(super) fn open(path: &Path, settings: Settings, printer: &'a Printer) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Printed(printer));
        }
        let plain = path.metadata().map_or(true, |there| there.is_file());
        let locked = behind_links(path);
        let lock = plain.then(|| Lock::take_file(&locked, &mut |note| printer.warn(note))).transpose()?;
        let there = path.metadata();
        if there.as_ref().is_ok_and(|there| there.is_file() && there.len() > 0) {
            settings.must_be_those_of(path)?;
        } else if plain {
            let bytes = serde_json::to_vec_pretty(&settings.0)?;
            super::super::write_new(&Settings::beside(path), &bytes)?;
        }
        let file = Partial::open(path).map_err(|e| failed(path, &e))?;
        Ok(Self::Written { file, path: path.to_owned(), flushed: Instant::now(), _lock: lock })
    }

    /// Takes as many prompts as are answered already, each of which must be the one that its answer names. An answer
    /// that was being written when a call ended goes.
    pub(super) fn go_on(&mut self, prompts: &mut Prompts) -> Result<u64> {
        let Self::Written { file, path, .. } = self else { return Ok(0) };
        if file.is_empty() {
            return Ok(0);
        }
        let read = File::open(&*path).map_err(|e| failed(path, &e))?;
        let (mut lines, mut line) = (BufReader::new(read), Vec::new());
        let (mut kept, mut count) = (0u64, 0u64);
        loop {
            line.clear();
            let n = lines.read_until(b'\n', &mut line).map_err(|e| failed(path, &e))?;
            let whole = line.last() == Some(&b'\n');
            let answer = serde_json::from_slice::<Map<String, Value>>(&line).ok().filter(|_| whole);
            let Some(mut answer) = answer else {
                let last = n == 0 || lines.fill_buf().map_err(|e| failed(path, &e))?.is_empty();
                if !last {
                    return Err(Hinted::new(
                        format!("{}, line {}: this is no answer", path.display(), count + 1),
                        "give another --out, or remove the file to begin anew",
                    )
                    .into());
                }
                file.cut(kept).map_err(|e| failed(path, &e))?;
                return Ok(count);
            };
            let prompt = answer.shift_remove("prompt");
            ANSWER.iter().for_each(|ours| {
                answer.shift_remove(*ours);
            });
            let differs = |what: String| {
                Hinted::new(
                    format!("{}, line {}: {what}", path.display(), count + 1),
                    "give the prompts that it was begun with, another --out, or remove the file to begin anew",
                )
            };
            let Some(asked) = prompts.next().transpose()? else {
                return Err(differs(format!("there are only {count} prompts now")).into());
            };
            if prompt.as_ref().and_then(Value::as_str) != Some(&asked.prompt) || answer != asked.others {
                return Err(differs(format!(
                    "it answers another prompt than the one that stands in line {} of the prompts now",
                    asked.line
                ))
                .into());
            }
            kept += n as u64;
            count += 1;
        }
    }

    /// Adds an answer: the other fields of its record, the prompt, the text behind it, how many tokens it has, and why it
    /// ends (`end` of text, or `length`).
    pub(super) fn add(&mut self, asked: Asked, text: &str, answer: &Answer) -> Result<()> {
        let mut record = asked.others;
        record.insert("prompt".to_owned(), json!(asked.prompt));
        record.insert("text".to_owned(), json!(text));
        record.insert("tokens".to_owned(), json!(answer.tokens.len()));
        record.insert("stop".to_owned(), json!(if answer.report.ended { "end" } else { "length" }));
        let mut line = serde_json::to_string(&record)?;
        line.push('\n');
        match self {
            Self::Printed(printer) => printer.text(&line)?,
            Self::Written { file, path, flushed, .. } => {
                file.append(line.as_bytes()).map_err(|e| failed(path, &e))?;
                if flushed.elapsed() >= FLUSHED {
                    file.sync().map_err(|e| failed(path, &e))?;
                    *flushed = Instant::now();
                }
            }
        }
        Ok(())
    }

    /// All of it is on the disk.
    pub(super) fn finish(self) -> Result<()> {
        match self {
            Self::Printed(_) => Ok(()),
            Self::Written { mut file, path, .. } => Ok(file.sync().map_err(|e| failed(&path, &e))?),
        }
    }
}

/// The file that a link leads to: it has one writer, whatever name it is reached by.
fn behind_links(path: &Path) -> PathBuf {
    match path.is_symlink() {
        true => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
        false => path.to_owned(),
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Hinted {
    Hinted::new(
        format!("{}: {error}", path.display()),
        "name a place that may be read and written and has room; the same call goes on where it stopped",
    )
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::ui::UiOptions;

    #[test]
    fn a_file_has_one_writer_by_whatever_link_it_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("answers.jsonl"), folder.path().join("b.jsonl"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink("answers.jsonl", &link).unwrap();
        let (printer, _) = Printer::captured(UiOptions::default());
        let open = |path: &Path| Answers::open(path, Settings::new([("seed", json!(1))]), &printer);
        let held = open(&file).unwrap();
        let error = open(&link).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains("another calm works on") && error.contains("answers.jsonl"), "{error}");
        drop(held);
        assert!(open(&link).is_ok());
    }
}
