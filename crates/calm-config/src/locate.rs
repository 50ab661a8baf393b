//! Where in a YAML text a key or a value stands.
//!
//! The YAML reader itself answers: it is sent down the wanted path and told to fail there, and its error
//! carries the place. So block and flow style, quotes, comments and anchors all count as they are read,
//! without a second parser of our own.

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;

/// One step down a configuration: into a block by key or into a list by number.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// The value of a key.
    Key(String),
    /// The n-th element of a list, from 0.
    Index(usize),
}

/// The way to a node of a configuration, written `model.calm.layers[2]`; empty for the whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct KeyPath(pub Vec<Step>);

impl KeyPath {
    /// Reads `a.b[1].c`. What is not a number in brackets belongs to the key.
    pub fn parse(text: &str) -> Self {
        let mut steps = Vec::new();
        for part in text.split('.').filter(|part| !part.is_empty()) {
            let mut key = part;
            let mut indices = Vec::new();
            while let Some((head, tail)) = key.strip_suffix(']').and_then(|rest| rest.rsplit_once('[')) {
                let Ok(index) = tail.parse() else { break };
                indices.push(Step::Index(index));
                key = head;
            }
            if !key.is_empty() {
                steps.push(Step::Key(key.to_string()));
            }
            steps.extend(indices.into_iter().rev());
        }
        Self(steps)
    }

    /// The path one key further down.
    pub fn key(&self, key: impl Into<String>) -> Self {
        self.step(Step::Key(key.into()))
    }

    /// The path one step further down.
    pub fn step(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }

    /// This path continued by another.
    pub fn join(&self, tail: &KeyPath) -> Self {
        Self(self.0.iter().chain(&tail.0).cloned().collect())
    }

    /// The path without its last step; `None` for the whole file.
    pub fn parent(&self) -> Option<Self> {
        self.0.split_last().map(|(_, init)| Self(init.to_vec()))
    }

    /// The last step, if it is a key.
    pub fn last_key(&self) -> Option<&str> {
        match self.0.last() {
            Some(Step::Key(key)) => Some(key),
            _ => None,
        }
    }

    /// Whether this node is `other` or lies inside it.
    pub fn is_within(&self, other: &KeyPath) -> bool {
        self.0.starts_with(&other.0)
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("(the whole file)");
        }
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if i == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Which part of an entry is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The key before the colon (of a list element: the element).
    Key,
    /// The value after the colon.
    Value,
}

/// A place in a text, both numbers counted from 1; the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line number.
    pub line: usize,
    /// Column number.
    pub column: usize,
}

/// Finds the key or the value at `path`; `None` where the text has no such entry or is not YAML.
///
/// Of a key that is written more than once, `occurrence` (from 0) says which one is meant; values are
/// those of the first.
pub fn locate(text: &str, path: &KeyPath, part: Part, occurrence: usize) -> Option<Place> {
    let goal = Goal { part, occurrence, reached: Cell::new(false) };
    let error = Descend { path: &path.0, goal: &goal }
        .deserialize(serde_yaml::Deserializer::from_str(text))
        .err()
        .filter(|_| goal.reached.get())?;
    error.location().map(|at| Place { line: at.line(), column: at.column() })
}

struct Goal {
    part: Part,
    occurrence: usize,
    reached: Cell<bool>,
}

impl Goal {
    fn stop<E: de::Error>(&self) -> E {
        self.reached.set(true);
        E::custom("found")
    }
}

/// Walks the rest of a path, and fails at its end.
struct Descend<'a> {
    path: &'a [Step],
    goal: &'a Goal,
}

impl<'de> DeserializeSeed<'de> for Descend<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

macro_rules! stop_at_scalars {
    ($($method:ident: $type:ty),*) => {
        $(fn $method<E: de::Error>(self, _: $type) -> Result<(), E> {
            if self.path.is_empty() { Err(self.goal.stop()) } else { Ok(()) }
        })*
    };
}

impl<'de> Visitor<'de> for Descend<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    stop_at_scalars!(visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128,
        visit_f64: f64, visit_str: &str);

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        if self.path.is_empty() { Err(self.goal.stop()) } else { Ok(()) }
    }

    fn visit_none<E: de::Error>(self) -> Result<(), E> {
        self.visit_unit()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.path.split_first() else { return Err(self.goal.stop()) };
        for index in 0.. {
            let more = if *step == Step::Index(index) {
                seq.next_element_seed(Descend { path: rest, goal: self.goal })?.is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.path.split_first() else { return Err(self.goal.stop()) };
        let last = rest.is_empty() && self.goal.part == Part::Key;
        let mut seen = 0;
        loop {
            let stop = last && seen == self.goal.occurrence;
            let seed = KeySeed { stop_at: stop.then_some((step, self.goal)) };
            let Some(key) = map.next_key_seed(seed)? else { return Ok(()) };
            let wanted = matches!(step, Step::Key(name) if *name == key);
            seen += usize::from(wanted);
            if wanted && !last && seen == 1 {
                map.next_value_seed(Descend { path: rest, goal: self.goal })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
    }
}

/// Reads a key of any scalar type as text, or fails at the wanted one.
pub(super) struct KeySeed<'a> {
    stop_at: Option<(&'a Step, &'a Goal)>,
}

impl KeySeed<'_> {
    /// Reads the key, whatever it is.
    pub(super) const ANY: KeySeed<'static> = KeySeed { stop_at: None };

    fn take<E: de::Error>(self, key: String) -> Result<String, E> {
        match self.stop_at {
            Some((Step::Key(name), goal)) if *name == key => Err(goal.stop()),
            _ => Ok(key),
        }
    }
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_> {
    type Value = String;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key (a word, without brackets)")
    }
    fn visit_str<E: de::Error>(self, key: &str) -> Result<String, E> {
        self.take(key.to_string())
    }
    fn visit_bool<E: de::Error>(self, key: bool) -> Result<String, E> {
        self.take(key.to_string())
    }
    fn visit_i64<E: de::Error>(self, key: i64) -> Result<String, E> {
        self.take(key.to_string())
    }
    fn visit_u64<E: de::Error>(self, key: u64) -> Result<String, E> {
        self.take(key.to_string())
    }
    fn visit_f64<E: de::Error>(self, key: f64) -> Result<String, E> {
        self.take(key.to_string())
    }
    fn visit_unit<E: de::Error>(self) -> Result<String, E> {
        self.take("null".to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
version: 1   # a comment: with a colon
model:
  calm:
    'quoted key': {inner: [10, {deep: x}], other: \"a: b\"}
    layers:
      - 4
      - width: 8
        name: über
    layers: again
4: number
empty:
";

    fn at(path: &str, part: Part) -> Option<(usize, usize)> {
        locate(TEXT, &KeyPath::parse(path), part, 0).map(|p| (p.line, p.column))
    }

    #[test]
    fn keys_and_values_are_found_in_block_and_flow_style() {
        assert_eq!(at("version", Part::Key), Some((1, 1)));
        assert_eq!(at("version", Part::Value), Some((1, 10)));
        assert_eq!(at("model", Part::Key), Some((2, 1)));
        assert_eq!(at("model.calm", Part::Key), Some((3, 3)));
        assert_eq!(at("model.calm", Part::Value), Some((4, 5)));
        assert_eq!(at("model.calm.quoted key", Part::Key), Some((4, 5)));
        assert_eq!(at("model.calm.quoted key.inner[0]", Part::Value), Some((4, 28)));
        assert_eq!(at("model.calm.quoted key.inner[1].deep", Part::Key), Some((4, 33)));
        assert_eq!(at("model.calm.quoted key.other", Part::Value), Some((4, 51)));
        assert_eq!(at("model.calm.layers[0]", Part::Key), Some((6, 9)));
        assert_eq!(at("model.calm.layers[1].width", Part::Value), Some((7, 16)));
        assert_eq!(at("model.calm.layers[1].name", Part::Key), Some((8, 9)));
        assert_eq!(at("4", Part::Key), Some((10, 1)));
        assert_eq!(at("empty", Part::Key), Some((11, 1)));
    }

    #[test]
    fn a_second_occurrence_of_a_key_has_its_own_place() {
        let text = "a: 1\nb:\n  x: 1\n  x: 2\na: 3\n";
        let place = |path, n| locate(text, &KeyPath::parse(path), Part::Key, n).map(|p| p.line);
        assert_eq!([place("a", 0), place("a", 1), place("a", 2)], [Some(1), Some(5), None]);
        assert_eq!([place("b.x", 0), place("b.x", 1)], [Some(3), Some(4)]);
    }

    #[test]
    fn what_is_not_there_has_no_place() {
        assert_eq!(at("absent", Part::Key), None);
        assert_eq!(at("version.deeper", Part::Key), None);
        assert_eq!(locate("a: [1, 2", &KeyPath::parse("a[5]"), Part::Value, 0), None);
        assert_eq!(locate("", &KeyPath::parse("a"), Part::Key, 0), None);
    }

    #[test]
    fn paths_are_written_as_they_are_read() {
        for text in ["a", "a.b[1].c", "x[0][2]"] {
            assert_eq!(KeyPath::parse(text).to_string(), text);
        }
        assert!(KeyPath::parse("a.b.c").is_within(&KeyPath::parse("a.b")));
        assert!(!KeyPath::parse("a.bc").is_within(&KeyPath::parse("a.b")));
        assert_eq!(KeyPath::parse("a.b").parent(), Some(KeyPath::parse("a")));
    }
}
