//! Ways through a schema: from a key's path to what is said of it.

use serde_json::{Map, Value};

use super::flow::flow;
use crate::load::nearest;

/// What a schema says of a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Key {
    /// From the top, with dots.
    pub path: String,
    /// Its documentation.
    pub about: String,
    /// Which values it takes, in words.
    pub kind: String,
    /// What it is where the file does not say.
    pub default: Option<Value>,
    /// Whether a file must say it.
    pub required: bool,
    /// The keys inside; where there is a choice, the names to choose from.
    pub below: Vec<Below>,
}

/// A key or a choice inside another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Below {
    /// Its own name.
    pub name: String,
    /// Its documentation.
    pub about: String,
}

/// There is no such key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownKey {
    /// The path as it was given.
    pub path: String,
    /// The whole paths that were probably meant, the likeliest first; may be none.
    pub meant: Vec<String>,
}

impl std::fmt::Display for UnknownKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "there is no key {}", self.path)
    }
}

impl std::error::Error for UnknownKey {}

/// More keys than this share a name seldom, and nobody reads so many.
const MOST_MEANT: usize = 6;

/// What the schema says of the key at this path (`train.lm.steps`); an empty path is the whole configuration.
///
/// # Errors
/// There is no such key: with the keys that are spelled alike, or have this name elsewhere.
pub fn explain(schema: &Value, path: &str) -> Result<Key, UnknownKey> {
    let names: Vec<&str> = path.split('.').filter(|name| !name.is_empty()).collect();
    let mut at = Node::root(schema);
    for (depth, name) in names.iter().enumerate() {
        let below = at.below();
        match below.into_iter().find(|child| child.name == *name) {
            Some(child) => at = child,
            None => return Err(UnknownKey { path: path.into(), meant: meant(schema, &at, &names, depth) }),
        }
    }
    Ok(Key {
        path: names.join("."),
        about: at.about(),
        kind: at.kind(),
        default: at.default().cloned(),
        required: at.required,
        below: at
            .below()
            .iter()
            .map(|child| Below { name: child.name.into(), about: child.about() })
            .collect(),
    })
}

/// What was probably meant where the key at `depth` of a path is not known: the nearest spelling there; else every key
/// that has this name, with what was before it somewhere above it; else every key of nearly this name.
fn meant(schema: &Value, at: &Node<'_>, names: &[&str], depth: usize) -> Vec<String> {
    let owned = |children: &[Node<'_>]| children.iter().map(|c| c.name.to_owned()).collect::<Vec<_>>();
    let join = |names: &[&str]| names.join(".");
    if let Some(near) = nearest(names[depth], &owned(&at.below())) {
        let mut right: Vec<&str> = names[..depth].to_vec();
        right.push(near);
        // What follows may be right, or need the same help.
        let rest = [&right[..], &names[depth + 1..]].concat();
        return match explain(schema, &join(&rest)) {
            Ok(key) => vec![key.path],
            Err(further) if !further.meant.is_empty() => further.meant,
            Err(_) => vec![join(&right)],
        };
    }
    let all = paths(schema);
    let last = names[names.len() - 1];
    let above = &names[..names.len() - 1];
    let holds = |path: &&String| {
        let mut parts = path.split('.');
        above.iter().all(|name| parts.any(|part| part == *name))
    };
    let named = |name: &str| -> Vec<String> {
        let of_name = |path: &&String| path.rsplit('.').next() == Some(name);
        all.iter().filter(of_name).filter(holds).take(MOST_MEANT).cloned().collect()
    };
    let exactly = named(last);
    if !exactly.is_empty() {
        return exactly;
    }
    let ends: Vec<String> =
        all.iter().filter_map(|path| path.rsplit('.').next()).map(str::to_owned).collect();
    nearest(last, &ends).map(|near| named(near)).unwrap_or_default()
}

/// Paths of all keys.
fn paths(schema: &Value) -> Vec<String> {
    fn visit(at: &Node<'_>, path: &str, out: &mut Vec<String>) {
        for child in at.below() {
            let path = if path.is_empty() { child.name.to_owned() } else { format!("{path}.{}", child.name) };
            out.push(path.clone());
            // A block may hold blocks of its own kind.
            if path.split('.').count() < DEEPEST {
                visit(&child, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    visit(&Node::root(schema), "", &mut out);
    out
}

/// Names in the longest path that is looked for.
const DEEPEST: usize = 8;

/// A place in a schema.
#[derive(Clone, Copy)]
pub(super) struct Node<'a> {
    /// The whole, which references point into.
    schema: &'a Value,
    /// What is said here: a description and a default may stand beside a reference.
    here: &'a Value,
    /// What is said by the alternative that it belongs to, if nothing is said here.
    of_choice: Option<&'a Value>,
    /// Its name.
    pub name: &'a str,
    /// Whether it must be given.
    pub required: bool,
}

impl<'a> Node<'a> {
    pub fn root(schema: &'a Value) -> Self {
        Self { schema, here: schema, of_choice: None, name: "", required: true }
    }

    fn at(&self, here: &'a Value) -> Self {
        Self { here, of_choice: None, ..*self }
    }

    /// What a reference refers to.
    fn target(&self) -> &'a Value {
        let mut at = self.here;
        while let Some(pointer) = at["$ref"].as_str() {
            match self.schema.pointer(pointer.trim_start_matches('#')) {
                Some(target) => at = target,
                None => break,
            }
        }
        at
    }

    /// The documentation: of the key, else of the choice, else of its type. Lines of a source are joined.
    pub fn about(&self) -> String {
        let of = |value: &'a Value| value["description"].as_str();
        let text = of(self.here).or_else(|| self.of_choice.and_then(of)).or_else(|| of(self.target()));
        text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
    }

    pub fn default(&self) -> Option<&'a Value> {
        self.here.get("default")
    }

    /// Alternatives, without "nothing".
    fn alternatives(&self) -> Vec<Node<'a>> {
        let target = self.target();
        let all = ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|of| target[of].as_array()).flatten();
        all.map(|here| self.at(here)).filter(|node| node.here["type"] != "null").collect()
    }

    fn properties(&self) -> Option<&'a Map<String, Value>> {
        self.target()["properties"].as_object()
    }

    /// The keys inside; of a choice the names that can be chosen, of a list the keys of one of its entries.
    pub fn below(&self) -> Vec<Node<'a>> {
        let mut found = Vec::new();
        let must = |name: &String| {
            let required = self.target()["required"].as_array();
            required.is_some_and(|names| names.iter().any(|n| n.as_str() == Some(name)))
        };
        for (name, here) in self.properties().into_iter().flatten() {
            found.push(Node { name: name.as_str(), required: must(name), ..self.at(here) });
        }
        if let Some(items) = self.target().get("items") {
            found.extend(self.at(items).below());
        }
        for alternative in self.alternatives() {
            let choice = alternative.here.get("properties").is_some();
            found.extend(alternative.below().into_iter().map(|child| Node {
                of_choice: choice.then_some(alternative.here),
                required: false,
                ..child
            }));
        }
        found
    }

    /// Whether exactly one of the keys below is chosen, rather than all being there.
    pub fn is_choice(&self) -> bool {
        self.properties().is_none() && !self.below().is_empty() && self.alternatives().len() > 1
    }

    /// Values that it takes, in words.
    pub fn kind(&self) -> String {
        let target = self.target();
        let mut kinds: Vec<String> = Vec::new();
        let mut add = |kind: String| {
            if !kind.is_empty() && !kinds.contains(&kind) {
                kinds.push(kind);
            }
        };
        if let Some(constant) = target.get("const") {
            return format!("`{}`", flow(constant));
        }
        if let Some(values) = target["enum"].as_array() {
            values.iter().for_each(|value| add(format!("`{}`", flow(value))));
        }
        match &target["type"] {
            Value::String(name) => add(self.named(name)),
            Value::Array(names) => {
                names.iter().filter_map(Value::as_str).for_each(|name| add(self.named(name)));
            }
            _ => {}
        }
        let mut null = false;
        for of in ["oneOf", "anyOf", "allOf"] {
            for here in target[of].as_array().into_iter().flatten() {
                let alternative = self.at(here);
                null |= here["type"] == "null";
                match alternative.properties().filter(|_| here.get("properties").is_some()) {
                    Some(names) => names.keys().for_each(|name| add(format!("`{{{name}: ...}}`"))),
                    None if here["type"] != "null" => add(alternative.kind()),
                    None => {}
                }
            }
        }
        if null {
            add("null".into());
        }
        kinds.join(" or ")
    }

    /// A type of JSON, as a person calls it.
    fn named(&self, name: &str) -> String {
        let target = self.target();
        if target.get("enum").is_some() && name == "string" {
            return String::new();
        }
        match name {
            "integer" if target["minimum"].as_f64().is_some_and(|least| least >= 0.0) => {
                match target["minimum"].as_u64() {
                    Some(least) if least > 0 => format!("whole number from {least}"),
                    _ => "whole number".into(),
                }
            }
            "integer" => "whole number, also below 0".into(),
            "number" => "number".into(),
            "boolean" => "true or false".into(),
            "string" => "text".into(),
            "array" => match target.get("items") {
                Some(items) => format!("list of: {}", self.at(items).kind()),
                None => "list".into(),
            },
            "object" => "a block of keys".into(),
            other => other.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schema() -> Value {
        json!({
            "properties": {
                "steps": { "description": "Steps.", "type": "integer", "minimum": 0 },
                "rate": { "description": "A rate\nof two lines.", "type": ["number", "null"], "default": null },
                "head": { "description": "The head.", "$ref": "#/$defs/Head", "default": { "one": { "noise": 8 } } },
                "train": { "$ref": "#/$defs/Train" },
                "parts": { "description": "Parts.", "type": "array", "items": { "$ref": "#/$defs/One" } },
            },
            "required": ["steps"],
            "$defs": {
                "Head": { "description": "Heads.", "oneOf": [
                    { "description": "One pass.", "type": "object", "properties": { "one": { "$ref": "#/$defs/One" } } },
                    { "description": "None.", "type": "string", "const": "none" },
                ] },
                "One": { "type": "object", "properties": {
                    "noise": { "description": "Numbers.", "type": "integer", "minimum": 1, "default": 4 } } },
                "Train": { "description": "How.", "properties": {
                    "first": { "anyOf": [{ "$ref": "#/$defs/Stage" }, { "type": "null" }] },
                    "second": { "$ref": "#/$defs/Stage" } } },
                "Stage": { "description": "A stage.", "type": "object", "properties": {
                    "clip": { "description": "Norm.", "type": "number", "default": 1.0 },
                    "twice": { "description": "Again.", "type": "boolean", "default": false } } },
            },
        })
    }

    #[test]
    fn a_key_is_explained_through_references_and_choices() {
        let schema = schema();
        let key = |path: &str| explain(&schema, path).unwrap();
        assert_eq!((key("steps").kind.as_str(), key("steps").required), ("whole number", true));
        let rate = key("rate");
        assert_eq!((rate.about.as_str(), rate.kind.as_str()), ("A rate of two lines.", "number or null"));
        assert_eq!(rate.default, Some(Value::Null));
        let head = key("head");
        assert_eq!((head.about.as_str(), head.kind.as_str()), ("The head.", "`{one: ...}` or `none`"));
        assert_eq!(head.below, [Below { name: "one".into(), about: "One pass.".into() }]);
        let noise = key("head.one.noise");
        assert_eq!((noise.kind.as_str(), noise.default), ("whole number from 1", Some(json!(4))));
        assert_eq!(key("train.first").kind, "a block of keys or null");
        assert_eq!(key("train.first.clip").about, "Norm.");
        assert_eq!(key("parts").kind, "list of: a block of keys");
        assert_eq!(key("parts.noise").about, "Numbers.");
        assert_eq!(key("").below.len(), 5);
    }

    #[test]
    fn a_typo_and_a_bare_name_lead_to_the_whole_path() {
        let schema = schema();
        let meant = |path: &str| explain(&schema, path).unwrap_err().meant;
        assert_eq!(meant("stepz"), ["steps"]);
        assert_eq!(meant("train.secnd.twice"), ["train.second.twice"]);
        assert_eq!(meant("trian.second.twce"), ["train.second.twice"]);
        assert_eq!(meant("head.noise"), ["head.one.noise"]);
        assert_eq!(meant("twice"), ["train.first.twice", "train.second.twice"]);
        assert_eq!(meant("twize"), ["train.first.twice", "train.second.twice"]);
        assert!(meant("wholly.unknown").is_empty());
    }
}
