//! Prompts from a file, one after the other.

use std::path::Path;

use anyhow::Result;
use calm_data::source::objects::{Object, Objects};
use serde_json::{Map, Value};

use crate::error::Hinted;

/// Fields that hold the prompt, where nobody says which.
const FIELDS: [&str; 2] = ["prompt", "text"];
/// Fields that answers have.
pub(super) const ANSWER: [&str; 4] = ["prompt", "text", "tokens", "stop"];

/// A record of the file.
pub(super) struct Asked {
    /// Its number, from 0.
    pub number: u32,
    /// Its line, from 1.
    pub line: usize,
    /// The text to continue.
    pub prompt: String,
    /// The other fields, in their order.
    pub others: Map<String, Value>,
}

/// The prompts of a file, which is not held in memory.
pub(super) struct Prompts {
    objects: Objects,
    field: Option<String>,
    next: u32,
}

impl Prompts {
    /// Of a file, or of standard input for `-`.
    pub(super) fn open(path: &Path, field: Option<&str>) -> Result<Self> {
        let objects = if path == Path::new("-") { Objects::stdin() } else { Objects::open(path) };
        Ok(Self { objects: objects?, field: field.map(str::to_owned), next: 0 })
    }

    fn asked(&mut self, object: Object) -> Result<Asked> {
        let Object { line, mut fields } = object;
        let place = || format!("{}, line {line}", self.objects.path().display());
        let found = match &self.field {
            Some(field) => fields.shift_remove(field),
            None => FIELDS.iter().find_map(|field| fields.shift_remove(*field)),
        };
        let Some(Value::String(prompt)) = found else {
            let wanted = self.field.as_deref().unwrap_or(FIELDS[0]);
            return Err(Hinted::new(
                format!("{}: no `{wanted}` field with a text", place()),
                "name the field of the prompts with --field",
            )
            .into());
        };
        if let Some(ours) = ANSWER.iter().find(|name| fields.contains_key(**name)) {
            return Err(Hinted::new(
                format!("{}: the record has a field `{ours}`, and its answer would have one too", place()),
                format!(
                    "rename `{ours}` in the file of prompts: answers write `prompt`, `text`, `tokens` and `stop`, and keep \
                     all other fields"
                ),
            )
            .into());
        }
        let number = self.next;
        let Some(next) = number.checked_add(1) else {
            return Err(Hinted::new("more than 4,294,967,295 prompts", "divide the file").into());
        };
        self.next = next;
        Ok(Asked { number, line, prompt, others: fields })
    }
}

impl Iterator for Prompts {
    type Item = Result<Asked>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(match self.objects.next()? {
            Ok(object) => self.asked(object),
            Err(error @ calm_data::Error::Json { .. }) => {
                let remedy = "each line must hold one object, with the prompt in one of its fields";
                Err(Hinted::new(error.to_string(), remedy).into())
            }
            Err(error) => Err(error.into()),
        })
    }
}

/// Looks through a file before anything is answered: the number of its prompts, or the first one that is none. Of what
/// can be read only once nothing is known.
pub(super) fn count(path: &Path, field: Option<&str>) -> Result<Option<u64>> {
    if path == Path::new("-") || !path.metadata().is_ok_and(|there| there.is_file()) {
        return Ok(None);
    }
    let mut count = 0;
    for asked in Prompts::open(path, field)? {
        asked?;
        count += 1;
    }
    Ok(Some(count))
}
