//! Records of JSON files: one object a line, an array of objects, or a single object.
//!
//! Only `text` is ours. Whatever stands in other fields is skipped without being read: numbers that are too large, half
//! surrogate pairs, any depth, and the `NaN` and `Infinity` that Python writes.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::document::Document;
use crate::error::{Error, Result};

/// The documents of a file's text, in order.
pub(super) fn records(path: &Path, id: &str, text: &str) -> Result<Vec<Document>> {
    let error = |e: &serde_json::Error, before: usize| {
        let (path, line) = (path.into(), before + e.line().max(1));
        let message = without_place(e);
        // What serde_json says of `\ud800` with no other half behind it.
        if message.contains("surrogate") || message.contains("end of hex escape") {
            return Error::Surrogate { path, line };
        }
        Error::Json { path, line, message, truncated: e.is_eof() }
    };
    let document = |record: Record, kind: &str, number: usize| match record.0 {
        Some(text) => Ok(Document::new(format!("{id}:{number}"), text)),
        None => Err(Error::NoText { path: path.into(), place: format!("{kind} {number}") }),
    };
    if text.trim_start().starts_with('[') {
        let records: Vec<Record> = read(text).map_err(|e| error(&e, 0))?;
        return records
            .into_iter()
            .zip(1..)
            .map(|(record, number)| document(record, "record", number))
            .collect();
    }
    let mut documents = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match read(line) {
            Ok(record) => documents.push(document(record, "line", number + 1)?),
            // The first line of an object that is written over several lines.
            Err(e) if documents.is_empty() && e.is_eof() => {
                let record = read(text).map_err(|e| error(&e, 0))?;
                return Ok(vec![document(record, "line", number + 1)?]);
            }
            Err(e) => return Err(error(&e, number)),
        }
    }
    Ok(documents)
}

/// Reads JSON; where that fails, once more without the words that are no JSON.
fn read<T: for<'de> Deserialize<'de>>(text: &str) -> serde_json::Result<T> {
    serde_json::from_str(text).or_else(|e| match strict(text) {
        Some(strict) => serde_json::from_str(&strict),
        None => Err(e),
    })
}

/// The text with `null` for every `NaN`, `Infinity` and `-Infinity` that stands outside a string: Python writes them,
/// JSON has no such numbers. Lines and columns stay close; none if there is nothing to replace.
pub fn strict(text: &str) -> Option<String> {
    const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];
    if !WORDS.iter().any(|word| text.contains(word)) {
        return None;
    }
    let mut out = String::with_capacity(text.len() + 64);
    let (mut quoted, mut escaped, mut replaced) = (false, false, false);
    let mut copied = 0;
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes[at];
        if quoted {
            quoted = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
        } else if byte == b'"' {
            quoted = true;
        } else if matches!(byte, b'N' | b'I' | b'-')
            && let Some(word) = WORDS.iter().find(|word| bytes[at..].starts_with(word.as_bytes()))
        {
            out.push_str(&text[copied..at]);
            out.push_str("null");
            at += word.len();
            copied = at;
            replaced = true;
            continue;
        }
        at += 1;
    }
    out.push_str(&text[copied..]);
    replaced.then_some(out)
}

/// The `text` of a record; none if it has none that is a string.
struct Record(Option<String>);

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Field::Record.deserialize(deserializer).map(Self)
    }
}

/// What is read: a whole record, or the value of its `text`. Anything else than an object, and than a string, has
/// no text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Record,
    Text,
}

impl<'de> DeserializeSeed<'de> for Field {
    type Value = Option<String>;
    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Field {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with a `text` field")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<Self::Value, E> {
        Ok((self == Self::Text).then(|| text.to_owned()))
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_i64<E: de::Error>(self, _: i64) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_u64<E: de::Error>(self, _: u64) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }
    fn visit_unit<E: de::Error>(self) -> std::result::Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut text = None;
        while let Some(is_text) = map.next_key_seed(IsText)? {
            if is_text && self == Self::Record {
                text = map.next_value_seed(Self::Text)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(text)
    }
}

/// Whether a key is `text`. Keys are read as bytes: anything may stand in another.
struct IsText;

impl<'de> DeserializeSeed<'de> for IsText {
    type Value = bool;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<bool, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl Visitor<'_> for IsText {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_bytes<E: de::Error>(self, key: &[u8]) -> std::result::Result<bool, E> {
        Ok(key == b"text")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> std::result::Result<bool, E> {
        Ok(key == "text")
    }
}

/// serde_json's message without its ` at line 1 column 5`: the line would be counted inside the record.
fn without_place(e: &serde_json::Error) -> String {
    let message = e.to_string();
    message.split(" at line ").next().unwrap_or(&message).to_string()
}
