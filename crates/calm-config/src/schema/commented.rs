//! A configuration with the documentation of each key above it.

use serde_json::Value;

use super::flow::{flow, scalar};
use super::walk::Node;

/// Columns that comments keep to.
const WIDTH: usize = 100;

/// All settings of `value` as YAML, each with what the schema says of it as a comment above. Reading it gives the same
/// value. Where something else could be chosen, the names are in the comment; so are the keys of a block that is null.
pub fn commented(schema: &Value, value: &Value) -> String {
    let mut out = String::new();
    block(&Node::root(schema), value, 0, &mut out);
    out
}

fn block(node: &Node<'_>, value: &Value, depth: usize, out: &mut String) {
    let below = node.below();
    for (key, value) in value.as_object().into_iter().flatten() {
        let known = below.iter().find(|child| child.name == key);
        if depth == 0 && !out.is_empty() {
            out.push('\n');
        }
        if let Some(child) = known {
            comment(&child.about(), depth, out);
            comment(&inside(child, value), depth, out);
        }
        let indent = "  ".repeat(depth);
        // A block that the schema knows is opened; data of no known keys stays in one line.
        match (known, value.as_object().is_some_and(|map| !map.is_empty())) {
            (Some(child), true) if !child.below().is_empty() => {
                out.push_str(&format!("{indent}{}:\n", scalar(key)));
                block(child, value, depth + 1, out);
            }
            _ => out.push_str(&format!("{indent}{}: {}\n", scalar(key), flow(value))),
        }
    }
}

/// What a reader cannot see below a key: other choices, constants, keys of a block that is not there.
fn inside(node: &Node<'_>, value: &Value) -> String {
    let names: Vec<&str> = node.below().iter().map(|child| child.name).collect();
    if node.is_choice() || (names.is_empty() && node.kind().contains('`')) {
        return format!("One of: {}.", node.kind().replace('`', "").replace(" or ", ", "));
    }
    if !value.is_object() && !names.is_empty() {
        return format!("Keys: {}.", names.join(", "));
    }
    String::new()
}

fn comment(text: &str, depth: usize, out: &mut String) {
    let indent = "  ".repeat(depth);
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && indent.len() + 2 + line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(&format!("{indent}# {line}\n"));
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        out.push_str(&format!("{indent}# {line}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_key_has_its_comment_and_the_value_is_the_same() {
        let schema = json!({
            "properties": {
                "name": { "description": "What it\nis called.", "type": "string" },
                "head": { "description": "The head.", "$ref": "#/$defs/Head" },
                "more": { "description": "More.", "anyOf": [{ "$ref": "#/$defs/More" }, { "type": "null" }] },
            },
            "$defs": {
                "Head": { "oneOf": [
                    { "description": "A.", "properties": { "one": { "$ref": "#/$defs/More" } } },
                    { "description": "B.", "properties": { "two": { "type": "object" } } },
                ] },
                "More": { "properties": { "size": { "description": "Size.", "type": "integer" } } },
            },
        });
        let value = json!({ "name": "a: b # c", "head": { "one": { "size": 3 } }, "more": null });
        let text = commented(&schema, &value);
        let expected = "\
# What it is called.
name: \"a: b # c\"

# The head.
# One of: {one: ...}, {two: ...}.
head:
  # A.
  one:
    # Size.
    size: 3

# More.
# Keys: size.
more: null
";
        assert_eq!(text, expected);
        assert_eq!(serde_yaml::from_str::<Value>(&text).unwrap(), value);
    }
}
