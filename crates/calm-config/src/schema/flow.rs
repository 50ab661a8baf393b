//! Values as YAML in one line.

use serde_json::Value;

/// A value as YAML in one line.
pub fn flow(value: &Value) -> String {
    match value {
        Value::Object(map) if map.is_empty() => "{}".into(),
        Value::Object(map) => {
            let pairs: Vec<String> = map.iter().map(|(k, v)| format!("{}: {}", scalar(k), flow(v))).collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::String(text) => scalar(text),
        other => other.to_string(),
    }
}

/// Words that YAML takes for something else than text.
const WORDS: [&str; 11] = ["null", "true", "false", "yes", "no", "on", "off", "y", "n", "inf", "nan"];

/// A text: as it is where YAML takes it for one and nothing else, else quoted as in JSON.
pub fn scalar(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_-/.".contains(c))
        && !WORDS.contains(&text.to_lowercase().as_str());
    if plain { text.to_owned() } else { Value::from(text).to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_yaml_would_take_for_something_else_is_quoted() {
        for text in ["no", "Null", "1e3", "-x", "", "a b", "~", "ü", "2026-01-01", "a:", "{x}"] {
            assert!(scalar(text).starts_with('"'), "{text}");
            assert_eq!(serde_yaml::from_str::<Value>(&scalar(text)).unwrap(), json!(text), "{text}");
        }
        for text in ["bf16", "runs/x.txt", "fan_in", "multi-token"] {
            assert_eq!(scalar(text), text);
        }
        let value = json!({ "a": [1, 2.5, null, true], "b": {}, "c": { "no": "x" } });
        assert_eq!(serde_yaml::from_str::<Value>(&flow(&value)).unwrap(), value);
    }
}
