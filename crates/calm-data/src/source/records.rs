//! Records of JSON files: one object a line, an array of objects, or a single object; one after the other.
//!
//! Only the text and the fields of a filter are ours. Whatever stands in other fields is skipped without being read:
//! numbers that are too large, half surrogate pairs, any depth, and the `NaN` and `Infinity` that Python writes. A list of
//! messages in the text's place is a conversation (see [`super::messages`]).

use std::fmt;
use std::sync::Arc;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::bytes::{LONGEST, Text, text_at};
use super::messages::{Content, NAMES};
use super::row::{Row, Wanted};
use super::settings::Value;
use crate::chat::Message as Said;
use crate::error::{Error, Result};

/// The records of a file, in order. After an error about a single one the next one comes.
pub(super) struct Records {
    text: Text,
    id: String,
    wanted: Arc<Wanted>,
    form: Form,
    /// Lines that were read, of all.
    line: usize,
    /// Records that were begun.
    begun: usize,
    /// What was read ahead in vain.
    front: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Unknown,
    Lines,
    Array,
    Done,
}

impl Records {
    /// Of an opened file; `id` is its name in documents.
    pub(super) fn new(text: Text, id: String, wanted: Arc<Wanted>) -> Self {
        Self { text, id, wanted, form: Form::Unknown, line: 0, begun: 0, front: Vec::new() }
    }

    /// An array is known by its first sign.
    fn look(&mut self) -> Result<Form> {
        loop {
            let there = self.text.fill()?;
            let Some(at) = there.iter().position(|b| !b.is_ascii_whitespace()) else {
                let n = there.len();
                if n == 0 {
                    return Ok(Form::Done);
                }
                self.line += there.iter().filter(|b| **b == b'\n').count();
                self.text.consume(n);
                continue;
            };
            let array = there[at] == b'[';
            self.line += there[..at].iter().filter(|b| **b == b'\n').count();
            self.text.consume(at + usize::from(array));
            return Ok(if array { Form::Array } else { Form::Lines });
        }
    }

    /// The bytes of the next line, with its end.
    fn line(&mut self) -> Result<Option<(Vec<u8>, u64)>> {
        self.line += 1;
        if !self.front.is_empty() {
            let end = self.front.iter().position(|b| *b == b'\n').map_or(self.front.len(), |at| at + 1);
            let offset = self.text.offset - self.front.len() as u64;
            let rest = self.front.split_off(end);
            return Ok(Some((std::mem::replace(&mut self.front, rest), offset)));
        }
        let (offset, mut bytes) = (self.text.offset, Vec::new());
        Ok(self.text.until(b'\n', &mut bytes)?.then_some((bytes, offset)))
    }

    fn next_line(&mut self) -> Result<Option<Row>> {
        loop {
            let Some((bytes, offset)) = self.line()? else {
                self.form = Form::Done;
                return Ok(None);
            };
            let line = text_at(&self.text.path, bytes, offset)?;
            if line.trim().is_empty() {
                continue;
            }
            self.begun += 1;
            let number = self.line;
            return match read(line.trim_end(), &self.wanted) {
                Ok(record) => self.row(record, "line", number).map(Some),
                // The first line of an object that is written over several lines.
                Err(e) if self.begun == 1 && e.is_eof() && !self.begins_another()? => self.whole(line),
                Err(e) => Err(self.error(&e, number - 1)),
            };
        }
    }

    /// Whether the next line begins with a value of its own.
    fn begins_another(&mut self) -> Result<bool> {
        let there = self.text.peek(64)?;
        Ok(there.iter().find(|b| !b.is_ascii_whitespace()).is_none_or(|b| matches!(b, b'{' | b'[')))
    }

    fn whole(&mut self, first: String) -> Result<Option<Row>> {
        let (number, offset) = (self.line, self.text.offset);
        let rest = self.text.rest()?;
        let all = first + &rest;
        match read(&all, &self.wanted) {
            Ok(record) => {
                self.form = Form::Done;
                self.row(record, "line", number).map(Some)
            }
            Err(e) => {
                debug_assert_eq!(self.text.offset, offset + rest.len() as u64);
                self.front = rest.into_bytes();
                Err(self.error(&e, number - 1))
            }
        }
    }

    /// The next element of an array: up to a comma or the bracket that is not inside of it.
    fn next_element(&mut self) -> Result<Option<Row>> {
        let (mut bytes, mut offset) = (Vec::new(), self.text.offset);
        let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
        let mut begins = self.line;
        let end = 'element: loop {
            let from = self.text.offset;
            let there = self.text.fill()?;
            if there.is_empty() {
                break None;
            }
            let mut n = 0;
            for &byte in there {
                n += 1;
                self.line += usize::from(byte == b'\n');
                if bytes.is_empty() && byte.is_ascii_whitespace() {
                    continue;
                }
                if bytes.is_empty() {
                    begins = self.line;
                    offset = from + n as u64 - 1;
                }
                if quoted {
                    quoted = escaped || byte != b'"';
                    escaped = !escaped && byte == b'\\';
                } else {
                    match byte {
                        b'"' => quoted = true,
                        b'{' | b'[' => depth += 1,
                        b',' | b']' if depth == 0 => {
                            self.text.consume(n);
                            break 'element Some(byte);
                        }
                        b'}' | b']' => depth = depth.saturating_sub(1),
                        _ => {}
                    }
                }
                bytes.push(byte);
            }
            self.text.consume(n);
            if bytes.len() as u64 > LONGEST {
                self.form = Form::Done;
                return Err(Error::TooLong { path: self.text.path.clone(), at: offset });
            }
        };
        let fail = |line: usize, message: &str, truncated| {
            let (path, message) = (self.text.path.clone(), message.to_owned());
            Err(Error::Json { path, line: line + 1, message, truncated })
        };
        let Some(end) = end else {
            self.form = Form::Done;
            return fail(self.line, "EOF while parsing a list", true);
        };
        if end == b']' {
            self.form = Form::Done;
            if bytes.is_empty() && self.begun == 0 {
                return self.nothing_follows().map(|()| None);
            }
        }
        if bytes.is_empty() {
            self.form = Form::Done;
            return fail(self.line, "a value is missing in the list", false);
        }
        self.begun += 1;
        let number = self.begun;
        let text = text_at(&self.text.path, bytes, offset)?;
        let row = match read(&text, &self.wanted) {
            Ok(record) => self.row(record, "record", number)?,
            Err(e) => return Err(self.error(&e, begins)),
        };
        if end == b']' {
            self.nothing_follows()?;
        }
        Ok(Some(row))
    }

    fn nothing_follows(&mut self) -> Result<()> {
        loop {
            let there = self.text.fill()?;
            let n = there.len();
            if n == 0 {
                return Ok(());
            }
            self.line += there.iter().filter(|b| **b == b'\n').count();
            if there.iter().any(|b| !b.is_ascii_whitespace()) {
                let (path, message) = (self.text.path.clone(), "trailing characters".to_owned());
                return Err(Error::Json { path, line: self.line + 1, message, truncated: false });
            }
            self.text.consume(n);
        }
    }

    fn row(&self, record: Record, kind: &str, number: usize) -> Result<Row> {
        let place = format!("{kind} {number}");
        let Some(content) = record.text else {
            let path = self.text.path.clone();
            return Err(Error::NoText { path, place, column: self.wanted.column() });
        };
        let text = content.render(&self.wanted, &self.text.path, &place)?;
        Ok(Row { id: format!("{}:{number}", self.id), text, fields: record.fields })
    }

    /// An error inside of a value before which so many lines stand.
    fn error(&self, e: &serde_json::Error, before: usize) -> Error {
        let (path, line) = (self.text.path.clone(), before + e.line().max(1));
        let message = without_place(e);
        // What serde_json says of `\ud800` with no other half behind it.
        if message.contains("surrogate") || message.contains("end of hex escape") {
            return Error::Surrogate { path, line, column: self.wanted.column() };
        }
        Error::Json { path, line, message, truncated: e.is_eof() }
    }
}

impl Iterator for Records {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.form == Form::Unknown {
            match self.look() {
                Ok(form) => self.form = form,
                Err(e) => {
                    self.form = Form::Done;
                    return Some(Err(e));
                }
            }
        }
        match self.form {
            Form::Lines => self.next_line().transpose(),
            Form::Array => self.next_element().transpose(),
            Form::Unknown | Form::Done => None,
        }
    }
}

/// Whether a path says one record a line.
pub(super) fn says_lines(name: &str) -> bool {
    name.ends_with(".jsonl") || name.ends_with(".ndjson")
}

/// Reads JSON; where that fails, once more without the words that are no JSON.
fn read(text: &str, wanted: &Wanted) -> serde_json::Result<Record> {
    let parse = |text: &str| {
        let mut record = Record { text: None, fields: vec![None; wanted.fields.len()] };
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let places = std::iter::once((wanted.text.as_slice(), 0));
        let places = places.chain(wanted.fields.iter().map(Vec::as_slice).zip(1..)).collect();
        Seed { places, record: &mut record }.deserialize(&mut deserializer)?;
        deserializer.end().map(|()| record)
    };
    parse(text).or_else(|e| match strict(text) {
        Some(strict) => parse(&strict),
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

/// What was found of a record.
#[derive(Clone, Default)]
struct Record {
    text: Option<Content>,
    fields: Vec<Option<Value>>,
}

impl Record {
    /// Puts a value in its place: 0 is the text, the fields follow.
    fn put(&mut self, place: usize, value: Option<Value>) {
        match place.checked_sub(1) {
            Some(field) => self.fields[field] = value,
            None => {
                self.text = match value {
                    Some(Value::Text(text)) => Some(Content::Text(text)),
                    _ => None,
                }
            }
        }
    }
}

/// A value that some of the wanted places lead to or through: what is left of the way, and its number.
struct Seed<'a> {
    places: Vec<(&'a [String], usize)>,
    record: &'a mut Record,
}

impl Seed<'_> {
    /// Puts a value in the places that end here.
    fn end(self, value: impl FnOnce() -> Option<Value>) {
        let mut ends = self.places.iter().filter(|(way, _)| way.is_empty()).map(|(_, place)| *place);
        let Some(first) = ends.next() else { return };
        let value = value();
        ends.for_each(|place| self.record.put(place, value.clone()));
        self.record.put(first, value);
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<(), E> {
        self.end(|| Some(Value::Text(text.to_owned())));
        Ok(())
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> std::result::Result<(), E> {
        self.end(|| Some(Value::Switch(value)));
        Ok(())
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<(), E> {
        self.end(|| Some(Value::Number(value as f64)));
        Ok(())
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<(), E> {
        self.end(|| Some(Value::Number(value as f64)));
        Ok(())
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> std::result::Result<(), E> {
        self.end(|| Some(Value::Number(value)));
        Ok(())
    }
    fn visit_unit<E: de::Error>(self) -> std::result::Result<(), E> {
        self.end(|| None);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<(), A::Error> {
        // Where the text should be there may be a conversation.
        let text = self.places.iter().any(|(way, place)| way.is_empty() && *place == 0);
        let mut said = text.then(Vec::new);
        while let Some(message) = seq.next_element_seed(Message)? {
            match (&mut said, message) {
                (Some(said), Some(message)) => said.push(message),
                _ => said = None,
            }
        }
        let Self { places, record } = self;
        Seed { places, record: &mut *record }.end(|| None);
        if text {
            record.text = said.map(Content::Messages);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        while let Some(places) = map.next_key_seed(Key(&self.places))? {
            if places.is_empty() {
                map.next_value::<IgnoredAny>()?;
            } else {
                map.next_value_seed(Seed { places, record: &mut *self.record })?;
            }
        }
        self.end(|| None);
        Ok(())
    }
}

/// A message; nothing if it is none.
struct Message;

impl<'de> DeserializeSeed<'de> for Message {
    type Value = Option<Said>;
    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        let mut found = Record { text: None, fields: vec![None; 2 * NAMES.len()] };
        let places: Vec<Vec<String>> =
            NAMES.iter().flat_map(|(role, content)| [*role, *content]).map(|n| vec![n.to_owned()]).collect();
        let places = places.iter().map(Vec::as_slice).zip(1..).collect();
        Seed { places, record: &mut found }.deserialize(deserializer)?;
        Ok(found.fields.chunks(2).find_map(|pair| match pair {
            [Some(Value::Text(role)), Some(Value::Text(content))] => {
                Some(Said::new(role.as_str(), content.as_str()))
            }
            // A call of a tool says nothing.
            [Some(Value::Text(role)), None] => Some(Said::new(role.as_str(), "")),
            _ => None,
        }))
    }
}

/// Which places a key leads to. Keys are read as bytes: anything may stand in another.
struct Key<'p, 'a>(&'p [(&'a [String], usize)]);

impl<'a> Key<'_, 'a> {
    fn led(&self, key: &[u8]) -> Vec<(&'a [String], usize)> {
        let through = |(way, place): &(&'a [String], usize)| {
            let (first, rest) = way.split_first()?;
            (first.as_bytes() == key).then_some((rest, *place))
        };
        self.0.iter().filter_map(through).collect()
    }
}

impl<'de, 'a> DeserializeSeed<'de> for Key<'_, 'a> {
    type Value = Vec<(&'a [String], usize)>;
    fn deserialize<D: Deserializer<'de>>(
        self,
        deserializer: D,
    ) -> std::result::Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'a> Visitor<'_> for Key<'_, 'a> {
    type Value = Vec<(&'a [String], usize)>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_bytes<E: de::Error>(self, key: &[u8]) -> std::result::Result<Self::Value, E> {
        Ok(self.led(key))
    }
    fn visit_str<E: de::Error>(self, key: &str) -> std::result::Result<Self::Value, E> {
        Ok(self.led(key.as_bytes()))
    }
}

/// serde_json's message without its ` at line 1 column 5`: the line would be counted inside the record.
fn without_place(e: &serde_json::Error) -> String {
    let message = e.to_string();
    message.split(" at line ").next().unwrap_or(&message).to_string()
}
