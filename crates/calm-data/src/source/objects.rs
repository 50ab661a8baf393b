//! The objects of a JSON-lines file as they are, with all their fields; plain, gz or zst, or from standard input.
//!
//! For files that are passed through a model, not learned from: [`super::records`] takes the text alone.

use std::path::Path;

use serde_json::{Map, Value};

use super::bytes::{self, Count, Text, text_at};
use super::records::strict;
use crate::error::{Error, Result};

/// Objects of a file, one after the other; a line that is none is an error, behind which the next one comes.
pub struct Objects {
    text: Text,
    line: usize,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Objects({}, line {})", self.text.path.display(), self.line)
    }
}

/// One object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Its line in the unpacked file, from 1.
    pub line: usize,
    /// Its fields in their order.
    pub fields: Map<String, Value>,
}

impl Objects {
    /// Of a file.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { text: bytes::open(path, &Count::default())?, line: 0 })
    }

    /// Of standard input.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn stdin() -> Result<Self> {
        Ok(Self { text: bytes::open_stdin()?, line: 0 })
    }

    /// The file's name.
    pub fn path(&self) -> &Path {
        &self.text.path
    }

    fn read(&mut self) -> Result<Option<Object>> {
        loop {
            let (offset, mut bytes) = (self.text.offset, Vec::new());
            if !self.text.until(b'\n', &mut bytes)? {
                return Ok(None);
            }
            self.line += 1;
            let text = text_at(&self.text.path, bytes, offset)?;
            if text.trim().is_empty() {
                continue;
            }
            let error = |message: String, truncated| Error::Json {
                path: self.text.path.clone(),
                line: self.line,
                message,
                truncated,
            };
            let parsed = serde_json::from_str(&text).or_else(|e| match strict(&text) {
                Some(strict) => serde_json::from_str(&strict),
                None => Err(e),
            });
            return match parsed {
                Ok(Value::Object(fields)) => Ok(Some(Object { line: self.line, fields })),
                Ok(other) => Err(error(format!("{}, and no object `{{...}}`", kind(&other)), false)),
                Err(e) => Err(error(e.to_string(), e.is_eof())),
            };
        }
    }
}

/// What a value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a switch (true or false)",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl Iterator for Objects {
    type Item = Result<Object>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn objects_keep_their_fields_in_order_packed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let lines = "\u{feff}{\"b\": 1, \"a\": [NaN, 2]}\n\n[1]\n{\"prompt\": \"日\"}";
        let plain = dir.path().join("a.jsonl");
        std::fs::write(&plain, lines).unwrap();
        let packed = dir.path().join("a.jsonl.gz");
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(lines.as_bytes()).unwrap();
        std::fs::write(&packed, gz.finish().unwrap()).unwrap();
        let zst = dir.path().join("a.jsonl.zst");
        std::fs::write(&zst, zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
        for path in [plain, packed, zst] {
            let objects: Vec<Result<Object>> = Objects::open(&path).unwrap().collect();
            let [first, second, third] = &objects[..] else { panic!("{objects:?}") };
            let first = first.as_ref().unwrap();
            assert_eq!(first.line, 1);
            assert_eq!(serde_json::to_string(&first.fields).unwrap(), r#"{"b":1,"a":[null,2]}"#);
            let error = second.as_ref().unwrap_err().to_string();
            assert!(error.contains("line 3") && error.contains("a list, and no object"), "{error}");
            assert_eq!(third.as_ref().unwrap().fields["prompt"], "日");
        }
    }
}
