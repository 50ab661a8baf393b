//! What a configuration says of a source besides where it lies: which files, which field, which documents.

use std::collections::BTreeMap;
use std::fmt;

use calm_config::Problems;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// The field of a record, or the column of a table, that is read if nobody says another.
pub const TEXT: &str = "text";

/// A data set of a Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HubSource {
    /// `OWNER/NAME`, as in the address of its page.
    pub dataset: String,
    /// A branch, a tag or a commit. What it stands for now is recorded.
    #[serde(default = "main")]
    pub revision: String,
    /// The configuration whose files are read, of those that the data set's page names. `null`: its default one, if it
    /// names any. Where `files` are given, the page is not asked.
    #[serde(default)]
    pub config: Option<String>,
    /// Only files of this split, as the page says, or by their names: `train` takes `data/train-00000-of-00004.parquet`, `train.jsonl` and
    /// what lies in a folder `train`. `null`: all files.
    #[serde(default)]
    pub split: Option<String>,
    /// Only files whose path one of these patterns fits (`sample/10BT/*`; `*` stays in a folder, `**` does not). Empty:
    /// all.
    #[serde(default)]
    pub files: Vec<String>,
    /// The column or field of the text. `null`: that of `data.column`.
    #[serde(default)]
    pub column: Option<String>,
}

fn main() -> String {
    "main".to_owned()
}

impl HubSource {
    /// All of a data set.
    pub fn new(dataset: impl Into<String>) -> Self {
        Self {
            dataset: dataset.into(),
            revision: main(),
            config: None,
            split: None,
            files: Vec::new(),
            column: None,
        }
    }
}

/// What to do about a document that cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBadDocument {
    /// It is an error that names the place.
    #[default]
    Stop,
    /// It is left out, counted and listed. A file that is damaged as a whole stays an error.
    Skip,
}

/// Which documents are taken.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// Fewest bytes of text.
    pub min_bytes: Option<u64>,
    /// Most bytes of text.
    pub max_bytes: Option<u64>,
    /// Fewest characters of text.
    pub min_characters: Option<u64>,
    /// Most characters of text.
    pub max_characters: Option<u64>,
    /// What other fields of the record must hold: a value, several of which any will do, or `{ min: ..., max: ... }`.
    /// A dot leads into a field (`meta.language`). A record without the field is left out.
    pub field: BTreeMap<String, Accept>,
}

impl Filter {
    /// Whether it takes everything.
    pub fn is_open(&self) -> bool {
        *self == Self::default()
    }

    /// Adds everything that is impossible here; key paths are relative to this block.
    pub fn validate(&self, at: &str, problems: &mut Problems) {
        for (what, min, max) in [
            ("bytes", self.min_bytes, self.max_bytes),
            ("characters", self.min_characters, self.max_characters),
        ] {
            if let (Some(min), Some(max)) = (min, max)
                && min > max
            {
                problems
                    .add(
                        &format!("{at}.min_{what}"),
                        format!("no text has {min} {what} or more and {max} or fewer"),
                    )
                    .remedy("exchange the two");
            }
        }
        for (name, accept) in &self.field {
            let nothing = match accept {
                Accept::Any(values) => values.is_empty(),
                Accept::Range { min, max } => min.zip(*max).is_some_and(|(min, max)| min > max),
            };
            if nothing {
                problems
                    .add(&format!("{at}.field.{name}"), "no value fits this")
                    .remedy("write a value, a list of values, or { min: ..., max: ... }");
            }
        }
    }

    /// Whether a document is taken. `fields` are the values of [`Filter::field`] in the order of their names.
    pub fn takes(&self, text: &str, fields: &[Option<Value>]) -> bool {
        let within = |n: u64, min: Option<u64>, max: Option<u64>| {
            min.is_none_or(|min| n >= min) && max.is_none_or(|max| n <= max)
        };
        let counts = self.min_characters.is_some() || self.max_characters.is_some();
        within(text.len() as u64, self.min_bytes, self.max_bytes)
            && (!counts || within(text.chars().count() as u64, self.min_characters, self.max_characters))
            && self
                .field
                .values()
                .zip(fields)
                .all(|(accept, value)| value.as_ref().is_some_and(|value| accept.takes(value)))
    }
}

/// A value of a field.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    /// `true` or `false`.
    Switch(bool),
    /// A number.
    Number(f64),
    /// A text.
    Text(String),
}

/// What a field must hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Accept {
    /// One of these.
    Any(Vec<Value>),
    /// A number between these, both included.
    Range {
        /// The smallest.
        #[serde(skip_serializing_if = "Option::is_none")]
        min: Option<f64>,
        /// The largest.
        #[serde(skip_serializing_if = "Option::is_none")]
        max: Option<f64>,
    },
}

impl Accept {
    fn takes(&self, value: &Value) -> bool {
        match self {
            Self::Any(values) => values.contains(value),
            Self::Range { min, max } => match value {
                Value::Number(n) => min.is_none_or(|min| *n >= min) && max.is_none_or(|max| *n <= max),
                _ => false,
            },
        }
    }
}

impl JsonSchema for Accept {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Accept".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let value = serde_json::json!({ "type": ["string", "number", "boolean"] });
        let number = serde_json::json!({ "type": "number" });
        json_schema!({
            "description": "A value, several of which any will do, or a range of numbers.",
            "anyOf": [
                value,
                { "type": "array", "items": value },
                {
                    "type": "object",
                    "properties": { "min": number, "max": number },
                    "additionalProperties": false
                }
            ]
        })
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;
    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a text, a number, true or false")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Switch(value))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

impl<'de> Deserialize<'de> for Accept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Accept;
            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value, a list of values, or { min: ..., max: ... }")
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Accept, E> {
                ValueVisitor.visit_bool(value).map(|value| Accept::Any(vec![value]))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Accept, E> {
                ValueVisitor.visit_f64(value).map(|value| Accept::Any(vec![value]))
            }
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Accept, E> {
                ValueVisitor.visit_u64(value).map(|value| Accept::Any(vec![value]))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Accept, E> {
                ValueVisitor.visit_i64(value).map(|value| Accept::Any(vec![value]))
            }
            fn visit_str<E: de::Error>(self, value: &str) -> Result<Accept, E> {
                ValueVisitor.visit_str(value).map(|value| Accept::Any(vec![value]))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Accept, A::Error> {
                let mut values = Vec::new();
                while let Some(value) = seq.next_element()? {
                    values.push(value);
                }
                Ok(Accept::Any(values))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Accept, A::Error> {
                let (mut min, mut max) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    match key.as_str() {
                        "min" => min = map.next_value()?,
                        "max" => max = map.next_value()?,
                        other => return Err(de::Error::unknown_field(other, &["min", "max"])),
                    }
                }
                Ok(Accept::Range { min, max })
            }
        }
        deserializer.deserialize_any(Any)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(yaml: &str) -> Result<Filter, String> {
        serde_yaml::from_str(yaml).map_err(|e| e.to_string())
    }

    #[test]
    fn a_filter_is_written_as_people_say_it_and_comes_back_the_same() {
        let f = filter(
            "min_bytes: 3\nfield: { language: en, score: { min: 3 }, kind: [a, 2, true], int_score: 4 }",
        );
        let f = f.unwrap();
        assert_eq!(f.field["language"], Accept::Any(vec![Value::Text("en".into())]));
        assert_eq!(f.field["score"], Accept::Range { min: Some(3.0), max: None });
        assert_eq!(f.field["int_score"], Accept::Any(vec![Value::Number(4.0)]));
        assert_eq!(filter(&serde_yaml::to_string(&f).unwrap()).unwrap(), f);
        assert!(filter("field: { a: { most: 3 } }").unwrap_err().contains("most"));
        assert!(filter("field: { a: null }").unwrap_err().contains("a value, a list"));
        assert!(filter("min: 3").is_err());
    }

    #[test]
    fn documents_are_taken_by_length_and_fields() {
        let f = filter(
            "min_bytes: 2\nmax_characters: 3\nfield: { language: [en, de], score: { min: 2.5, max: 3 } }",
        )
        .unwrap();
        let text = |text: &str| Some(Value::Text(text.into()));
        let takes = |t: &str, language, score| f.takes(t, &[language, score]);
        assert!(takes("ab", text("en"), Some(Value::Number(2.5))));
        assert!(takes("ééé", text("de"), Some(Value::Number(3.0))), "6 bytes, 3 characters");
        assert!(!takes("a", text("en"), Some(Value::Number(3.0))));
        assert!(!takes("abcd", text("en"), Some(Value::Number(3.0))));
        assert!(!takes("ab", text("fr"), Some(Value::Number(3.0))));
        assert!(!takes("ab", text("en"), Some(Value::Number(3.1))));
        assert!(!takes("ab", text("en"), text("3")), "a text is no number");
        assert!(!takes("ab", None, Some(Value::Number(3.0))), "without the field");
        assert!(Filter::default().takes("", &[]));
    }

    #[test]
    fn a_filter_that_takes_nothing_is_named() {
        let f = filter("min_bytes: 5\nmax_bytes: 4\nfield: { a: [], b: { min: 2, max: 1 }, c: x }").unwrap();
        let mut problems = Problems::new();
        f.validate("filter", &mut problems);
        let paths: Vec<String> = problems.iter().map(|p| p.path.to_string()).collect();
        assert_eq!(paths, ["filter.min_bytes", "filter.field.a", "filter.field.b"]);
    }
}
