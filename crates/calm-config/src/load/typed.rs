//! A tree of values as a typed configuration, with all that does not fit found in one go.
//!
//! Serde stops at the first fault. So each fault is noted, the faulty node is taken out or replaced by a
//! stand-in that the type accepts, and the tree is read again, until it fits. Faults of stand-ins are not
//! the user's and are never noted.

use super::hints::{Complaint, integer_range, is_text, nearest, suggestion, wrong_value};
use super::report::Finding;
use super::tree;
use crate::locate::{KeyPath, Part, Step};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serde_path_to_error::Segment;
use std::collections::{BTreeMap, VecDeque};

/// Reading attempts before giving up on further faults; each notes a fault or tries a stand-in.
const ATTEMPTS: usize = 2000;

/// What came out of reading a tree.
pub(super) struct Reading<T> {
    /// The configuration, faulty nodes left out or replaced; `None` if no stand-in was found.
    pub value: Option<T>,
    pub findings: Vec<Finding>,
    /// Nodes that do not hold what the user meant, so that rules about them say nothing.
    pub unreliable: Vec<KeyPath>,
}

/// Reads a tree. `typed` gives the text of an override of exactly this node, as it was typed.
pub(super) fn read<T: DeserializeOwned>(
    mut root: Value,
    typed: &dyn Fn(&KeyPath) -> Option<String>,
) -> Reading<T> {
    let mut findings = Vec::new();
    let mut unreliable = Vec::new();
    let mut stand_ins = StandIns::default();
    for _ in 0..ATTEMPTS {
        let error = match serde_path_to_error::deserialize::<_, T>(&root) {
            Ok(value) => {
                unreliable.extend(stand_ins.0.into_keys());
                return Reading { value: Some(value), findings, unreliable };
            }
            Err(error) => error,
        };
        let mut complaint = Complaint::parse(&error.inner().to_string());
        let mut path = resolve(error.path(), &root);
        match &complaint {
            Complaint::MissingKey { key } => path = path.key(key),
            Complaint::UnknownKey { key, .. } if path.last_key() != Some(key) => path = path.key(key),
            // `{chioce: {...}}`: the fault is the key inside.
            Complaint::UnknownChoice { choice, .. }
                if tree::get(&root, &path).is_some_and(|node| node.get(choice).is_some()) =>
            {
                path = path.key(choice);
            }
            _ => {}
        }
        // `{calm: ..., baseline: ...}`: the fault is the second key.
        if let Some((first, second)) = two_choices(&complaint, &path, &root) {
            complaint = Complaint::SecondChoice { first };
            path = path.key(second);
        }
        let missing = matches!(complaint, Complaint::MissingKey { .. });
        if let Some(inside) = stand_ins.covering(&path) {
            let advanced = match missing && inside != path {
                true => stand_ins.add(&mut root, &path),
                false => stand_ins.next(&mut root, &inside, &complaint),
            };
            if !advanced {
                break;
            }
            continue;
        }
        // The only choice of a block was taken out just before: the block goes too.
        if stand_ins.0.keys().any(|node| node.parent().as_ref() == Some(&path)) && expects_choice(&complaint)
        {
            if !stand_ins.add(&mut root, &path) {
                break;
            }
            continue;
        }
        // `1e3` and `2.0` are whole numbers too.
        if let Complaint::Wrong { expected, .. } = &complaint
            && let Some(whole) = tree::get(&root, &path).and_then(|node| whole(node, expected))
            && tree::set(&mut root, &path, whole)
        {
            continue;
        }
        // `--set data.source.path=a: b` means the text, whatever YAML makes of it.
        if let Complaint::Wrong { found, expected } = &complaint
            && is_text(expected)
            && !matches!(found.as_str(), "null" | "unit value")
            && let Some(text) = typed(&path)
            && tree::set(&mut root, &path, json!(text))
        {
            continue;
        }
        let (finding, meant) = describe(&complaint, &path, &root);
        unreliable.extend(meant);
        findings.push(finding);
        let repaired = match &complaint {
            Complaint::UnknownKey { .. } | Complaint::SecondChoice { .. } => tree::remove(&mut root, &path),
            // Not only the name of the choice, the whole node is in doubt.
            Complaint::UnknownChoice { .. }
                if tree::get(&root, &path).is_none_or(|node| !node.is_string()) =>
            {
                path.parent().is_some_and(|node| stand_ins.add(&mut root, &node))
            }
            _ => stand_ins.add(&mut root, &path),
        };
        if !repaired {
            break;
        }
    }
    unreliable.extend(stand_ins.0.into_keys());
    Reading { value: None, findings, unreliable }
}

/// A float without a fraction as the whole number that is expected.
fn whole(node: &Value, expected: &str) -> Option<Value> {
    /// 2^53: up to here every whole number has a float of its own.
    const MOST: f64 = 9_007_199_254_740_992.0;
    let value = node.as_f64().filter(|v| node.is_f64() && v.fract() == 0.0 && v.abs() <= MOST)? as i64;
    let (low, high) = integer_range(expected)?;
    (low..=high).contains(&i128::from(value)).then(|| json!(value))
}

/// Nodes whose content is made up, with what is still to be tried there.
#[derive(Default)]
struct StandIns(BTreeMap<KeyPath, VecDeque<Value>>);

impl StandIns {
    /// The innermost made-up node that a path lies in.
    fn covering(&self, path: &KeyPath) -> Option<KeyPath> {
        self.0.keys().filter(|node| path.is_within(node)).max_by_key(|node| node.0.len()).cloned()
    }

    /// Makes a node up: left out if it can be (its default may do), else the first thing to try.
    fn add(&mut self, root: &mut Value, path: &KeyPath) -> bool {
        if path.0.is_empty() {
            return false;
        }
        let tries = [json!(null), json!(1), json!(""), json!(false), json!([]), json!({})];
        self.0.insert(path.clone(), tries.into());
        tree::remove(root, path) || self.next(root, path, &Complaint::Other(String::new()))
    }

    /// Puts the next thing to try into a made-up node; where all failed, its surroundings are made up.
    fn next(&mut self, root: &mut Value, path: &KeyPath, complaint: &Complaint) -> bool {
        let Some(tries) = self.0.get_mut(path) else { return false };
        // The empty text was tried, and the message tells the names.
        if let Complaint::UnknownChoice { choice, valid } = complaint
            && choice.is_empty()
        {
            *tries = valid
                .iter()
                .flat_map(|name| [json!(name), json!({ name: {} }), json!({ name: null })])
                .collect();
        }
        match tries.pop_front() {
            Some(value) => {
                self.0.retain(|node, _| node == path || !node.is_within(path));
                tree::set(root, path, value)
            }
            None => {
                let Some(parent) = path.parent() else { return false };
                self.0.remove(path);
                match self.covering(&parent) {
                    Some(outer) => self.next(root, &outer, &Complaint::Other(String::new())),
                    None => self.add(root, &parent),
                }
            }
        }
    }
}

/// Serde's path as ours. An enum's variant is a step only where the tree has a block for it.
fn resolve(path: &serde_path_to_error::Path, root: &Value) -> KeyPath {
    let mut steps = KeyPath::default();
    for segment in path {
        match segment {
            Segment::Seq { index } => steps.0.push(Step::Index(*index)),
            Segment::Map { key } => steps.0.push(Step::Key(key.clone())),
            Segment::Enum { variant } => {
                let inner = steps.key(variant);
                if tree::get(root, &inner).is_some() {
                    steps = inner;
                }
            }
            Segment::Unknown => break,
        }
    }
    steps
}

/// Whether a block was found that is no `{choice: ...}`.
fn expects_choice(complaint: &Complaint) -> bool {
    matches!(complaint, Complaint::Wrong { expected, .. } if expected == "map with a single key")
}

/// The first two keys of a block that should hold one choice.
fn two_choices(complaint: &Complaint, path: &KeyPath, root: &Value) -> Option<(String, String)> {
    match complaint {
        complaint if expects_choice(complaint) => {
            let mut keys = tree::get(root, path)?.as_object()?.keys();
            Some((keys.next()?.clone(), keys.next()?.clone()))
        }
        _ => None,
    }
}

/// The finding for a complaint, and the node that an unknown key was probably meant for.
fn describe(complaint: &Complaint, path: &KeyPath, root: &Value) -> (Finding, Option<KeyPath>) {
    let scalar = tree::get(root, path).is_some_and(|node| !node.is_object() && !node.is_array());
    let mut part = if scalar { Part::Value } else { Part::Key };
    let mut meant = None;
    let (message, hint) = match complaint {
        Complaint::UnknownKey { key, valid } => {
            part = Part::Key;
            meant = nearest(key, valid).and_then(|near| Some(path.parent()?.key(near)));
            ("unknown key".to_string(), suggestion(key, valid, "key"))
        }
        Complaint::UnknownChoice { choice, valid } => {
            if !scalar {
                part = Part::Key;
            }
            (format!("there is no choice `{choice}`"), suggestion(choice, valid, "choice"))
        }
        Complaint::SecondChoice { first } => {
            part = Part::Key;
            (
                format!("only one choice can be made, and `{first}` is made too"),
                "keep one of the two; an override replaces the whole choice: --set 'KEY={choice: ...}'"
                    .to_string(),
            )
        }
        Complaint::MissingKey { key } => {
            ("the key is missing".to_string(), format!("add `{key}: ...`; it has no default"))
        }
        Complaint::Wrong { found, expected } => wrong_value(found, expected),
        Complaint::Other(message) => (message.clone(), String::new()),
    };
    let hint = (!hint.is_empty()).then_some(hint);
    (Finding { path: path.clone(), part, occurrence: 0, what: message, remedy: hint }, meant)
}
