//! The YAML text as a tree of values, with everything noted that a plain reader would stop at or lose.

use super::report::Finding;
use crate::locate::{KeyPath, KeySeed, Part, Step};
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::fmt;

/// Reads a text. Duplicate keys keep their first value and are reported, as are numbers that no setting
/// can take; a text that is not YAML is one error.
pub(super) fn parse(text: &str) -> Result<(Value, Vec<Finding>), serde_yaml::Error> {
    let mut findings = Vec::new();
    let mut path = KeyPath::default();
    let node = Node { path: &mut path, findings: &mut findings };
    let value = node.deserialize(serde_yaml::Deserializer::from_str(text))?;
    Ok((value, findings))
}

/// The node at a path.
pub(super) fn get<'a>(root: &'a Value, path: &KeyPath) -> Option<&'a Value> {
    path.0.iter().try_fold(root, |node, step| match step {
        Step::Key(key) => node.get(key),
        Step::Index(index) => node.get(index),
    })
}

/// The node at a path, to be changed.
pub(super) fn get_mut<'a>(root: &'a mut Value, path: &KeyPath) -> Option<&'a mut Value> {
    path.0.iter().try_fold(root, |node, step| match step {
        Step::Key(key) => node.get_mut(key),
        Step::Index(index) => node.get_mut(index),
    })
}

/// Puts a value at a path whose parent exists; says whether it could.
pub(super) fn set(root: &mut Value, path: &KeyPath, value: Value) -> bool {
    let Some((last, init)) = path.0.split_last() else {
        *root = value;
        return true;
    };
    match (get_mut(root, &KeyPath(init.to_vec())), last) {
        (Some(Value::Object(map)), Step::Key(key)) => {
            map.insert(key.clone(), value);
            true
        }
        (Some(Value::Array(list)), Step::Index(index)) if *index < list.len() => {
            list[*index] = value;
            true
        }
        _ => false,
    }
}

/// Takes a key out of its block; says whether it was there. List elements stay, to keep their numbers.
pub(super) fn remove(root: &mut Value, path: &KeyPath) -> bool {
    match (path.0.split_last(), root) {
        (Some((Step::Key(key), init)), root) => get_mut(root, &KeyPath(init.to_vec()))
            .and_then(Value::as_object_mut)
            .is_some_and(|map| map.shift_remove(key).is_some()),
        _ => false,
    }
}

struct Node<'a> {
    path: &'a mut KeyPath,
    findings: &'a mut Vec<Finding>,
}

impl Node<'_> {
    fn child(&mut self, step: Step) -> Node<'_> {
        self.path.0.push(step);
        Node { path: self.path, findings: self.findings }
    }

    fn note(&mut self, part: Part, occurrence: usize, message: &str, hint: &str) {
        self.findings.push(Finding {
            path: self.path.clone(),
            part,
            occurrence,
            what: message.to_string(),
            remedy: Some(hint.to_string()),
        });
    }

    fn too_large<E: de::Error>(mut self) -> Result<Value, E> {
        self.note(Part::Value, 0, "the number is too large", "at most 64 bits can be read");
        Ok(Value::Null)
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value without a YAML tag (`!name`)")
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_i128<E: de::Error>(self, _: i128) -> Result<Value, E> {
        self.too_large()
    }
    fn visit_u128<E: de::Error>(self, _: u128) -> Result<Value, E> {
        self.too_large()
    }
    fn visit_f64<E: de::Error>(mut self, value: f64) -> Result<Value, E> {
        Ok(match Number::from_f64(value) {
            Some(number) => Value::Number(number),
            None => {
                self.note(Part::Value, 0, "the number is not finite", "give a finite number, or `null`");
                Value::Null
            }
        })
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }
    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        loop {
            let element = seq.next_element_seed(self.child(Step::Index(list.len())));
            self.path.0.pop();
            match element? {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        let mut block = Map::new();
        let mut repeated = Vec::<String>::new();
        while let Some(key) = map.next_key_seed(KeySeed::ANY)? {
            let known = self.findings.len();
            let value = map.next_value_seed(self.child(Step::Key(key.clone())));
            if block.contains_key(&key) {
                // What is wrong inside a repeated block has no place of its own.
                self.findings.truncate(known);
                repeated.push(key.clone());
                let occurrence = repeated.iter().filter(|other| **other == key).count();
                self.note(Part::Key, occurrence, "the key is given twice", "keep one of the two lines");
                value?;
            } else {
                block.insert(key, value?);
            }
            self.path.0.pop();
        }
        Ok(Value::Object(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_kind_of_value_keeps_its_type() {
        let text = "a: 1\nb: -2\nc: 1.5\nd: yes\ne: [true, ~, '3']\nf: {g: 1e5}\n7: x\nh:\n";
        let (value, findings) = parse(text).unwrap();
        assert!(findings.is_empty());
        let expected = json!({"a": 1, "b": -2, "c": 1.5, "d": "yes", "e": [true, null, "3"],
            "f": {"g": 1e5}, "7": "x", "h": null});
        assert_eq!(value, expected);
    }

    #[test]
    fn anchors_are_followed_and_tags_refused() {
        assert_eq!(parse("a: &x {b: 1}\nc: *x\n").unwrap().0, json!({"a": {"b": 1}, "c": {"b": 1}}));
        let error = parse("a: 1\nb: !tag 3\n").unwrap_err();
        assert!(error.to_string().contains("without a YAML tag"), "{error}");
    }

    #[test]
    fn duplicates_and_impossible_numbers_are_noted_with_their_path() {
        let (value, findings) =
            parse("a: {b: 1, b: 2, b: .nan}\nc: .inf\na: 3\nd: 99999999999999999999\n").unwrap();
        assert_eq!(value["a"]["b"], json!(1));
        let noted: Vec<_> = findings.iter().map(|f| (f.path.to_string(), f.occurrence)).collect();
        let expected = [("a.b", 1), ("a.b", 2), ("c", 0), ("a", 1), ("d", 0)];
        assert_eq!(noted, expected.map(|(path, n)| (path.to_string(), n)));
    }

    #[test]
    fn nodes_can_be_put_and_taken_by_path() {
        let mut root = json!({"a": {"b": [1, 2]}, "c": 3});
        assert!(set(&mut root, &KeyPath::parse("a.b[1]"), json!("x")));
        assert!(set(&mut root, &KeyPath::parse("a.new"), json!(null)));
        assert!(!set(&mut root, &KeyPath::parse("a.b[2]"), json!(0)));
        assert!(!set(&mut root, &KeyPath::parse("c.d"), json!(0)));
        assert!(remove(&mut root, &KeyPath::parse("c")));
        assert!(!remove(&mut root, &KeyPath::parse("a.b[0]")));
        assert_eq!(root, json!({"a": {"b": [1, "x"], "new": null}}));
        assert_eq!(get(&root, &KeyPath::parse("a.b[1]")), Some(&json!("x")));
    }
}
