//! What a deserialiser complains about, in the words of someone who writes configurations.

/// What serde's message says, taken apart.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Complaint {
    UnknownKey {
        key: String,
        valid: Vec<String>,
    },
    UnknownChoice {
        choice: String,
        valid: Vec<String>,
    },
    /// A second key where one names the choice (never parsed from a message).
    SecondChoice {
        first: String,
    },
    MissingKey {
        key: String,
    },
    /// The wrong kind of value: what was found and what was expected, as serde names them.
    Wrong {
        found: String,
        expected: String,
    },
    Other(String),
}

impl Complaint {
    /// Reads a message of serde's derived and built-in implementations.
    pub(super) fn parse(message: &str) -> Self {
        let quoted = |text: &str| text.split('`').nth(1).unwrap_or_default().to_string();
        let list = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>();
        let choice = |rest: &str| {
            let (name, valid) = rest.split_once("`, ").unwrap_or((rest.trim_end_matches('`'), ""));
            (name.to_string(), list(valid))
        };
        if let Some(rest) = message.strip_prefix("unknown field `") {
            let (key, valid) = choice(rest);
            return Self::UnknownKey { key, valid };
        }
        if let Some(rest) = message.strip_prefix("unknown variant `") {
            let (choice, valid) = choice(rest);
            return Self::UnknownChoice { choice, valid };
        }
        if let Some(rest) = message.strip_prefix("missing field ") {
            return Self::MissingKey { key: quoted(rest) };
        }
        for start in ["invalid type: ", "invalid value: ", "invalid length "] {
            if let Some((found, expected)) =
                message.strip_prefix(start).and_then(|rest| rest.rsplit_once(", expected "))
            {
                let found =
                    if start == "invalid length " { format!("a list of {found}") } else { found.to_string() };
                return Self::Wrong { found, expected: expected.to_string() };
            }
        }
        Self::Other(message.to_string())
    }
}

/// Message and hint for a value of the wrong kind.
pub(super) fn wrong_value(found: &str, expected: &str) -> (String, String) {
    let (wanted, mut hint) = expectation(expected);
    let text = found.strip_prefix("string \"").and_then(|rest| rest.strip_suffix('"'));
    let number = ["integer `", "floating point `"]
        .iter()
        .find_map(|p| found.strip_prefix(p))
        .map(|v| v.trim_end_matches('`'));
    let found = match (text, number) {
        (Some(text), _) => format!("the text \"{}\"", shorten(text)),
        (_, Some(number)) => format!("the number {number}"),
        _ => match found {
            "null" | "unit value" => "nothing".to_string(),
            "map" => "a block of keys".to_string(),
            "sequence" => "a list".to_string(),
            "unit variant" => "only its name".to_string(),
            other => other.replace("boolean ", "").replace('`', ""),
        },
    };
    let integer = integer_range(expected).is_some();
    let numeric = integer || matches!(expected, "f64" | "f32");
    if let (true, Some(text)) = (numeric, text) {
        let plain: String = text.chars().filter(|c| !matches!(c, '_' | ',' | '\'' | ' ')).collect();
        if let Ok(value) = plain.parse::<i128>() {
            let spelled = if plain == text { "without quotes" } else { "without separators" };
            hint = format!("write {value}, {spelled}");
        } else if let (false, Ok(value)) = (integer, plain.parse::<f64>()) {
            hint = format!("write {value}, without separators or quotes");
        }
    } else if is_text(expected) && (number.is_some() || matches!(found.as_str(), "true" | "false")) {
        hint = format!("put it in quotes: \"{}\"", number.unwrap_or(&found));
    } else if expected == "a boolean" && text.is_some() {
        let yes = text.is_some_and(|t| ["yes", "on", "y"].contains(&t.to_lowercase().as_str()));
        hint = format!("write `{}` (the words are `true` and `false`)", if yes { "true" } else { "false" });
    } else if found == "nothing" {
        hint = format!("{hint}; or leave the key out, if it has a default");
    }
    (format!("expected {wanted}, found {found}"), hint)
}

/// Whether text is expected.
pub(super) fn is_text(expected: &str) -> bool {
    matches!(expected, "a string" | "path string" | "a borrowed string")
}

/// What is expected, as a noun and as a hint.
fn expectation(expected: &str) -> (String, String) {
    if let Some((low, high)) = integer_range(expected) {
        let hint = if high >= i128::from(u32::MAX) && low >= 0 {
            format!("a whole number from {low} upwards")
        } else {
            format!("a whole number from {low} to {high}")
        };
        return ("a whole number".to_string(), hint);
    }
    let (noun, hint) = match expected {
        "f64" | "f32" => ("a number", "a number such as 0.5 or 3e-4"),
        text if is_text(text) => ("text", "a word, or text in quotes"),
        "a boolean" => ("true or false", "write `true` or `false`"),
        "a sequence" => ("a list", "a list: `[a, b]`, or lines that start with `- `"),
        "a map" => ("a block of keys", "`key: value` lines, indented below it"),
        "unit" | "null" => ("nothing", "leave the value out"),
        "map with a single key" => ("the name of a choice", "one of the choices: `name: {...}`"),
        "string or map" => ("one of several choices", "the name of a choice, or `name: {...}`"),
        other if other.starts_with("struct ") => ("a block of keys", "`key: value` lines, indented below it"),
        other if other.contains("struct variant") || other.contains("newtype variant") => {
            ("a choice with settings", "give its settings: `name: {...}`")
        }
        other if other.contains("unit variant") => ("a choice without settings", "write only its name"),
        other => (other, ""),
    };
    let hint = if hint.is_empty() { format!("expected is {other}", other = noun) } else { hint.to_string() };
    (noun.to_string(), hint)
}

/// The bounds of an integer type, by the name that serde gives it.
pub(super) fn integer_range(expected: &str) -> Option<(i128, i128)> {
    let (name, nonzero) = match expected.strip_prefix("a nonzero ") {
        Some(name) => (name, true),
        None => (expected, false),
    };
    let low = |low: i128| if nonzero && low == 0 { 1 } else { low };
    Some(match name {
        "u8" => (low(0), u8::MAX.into()),
        "u16" => (low(0), u16::MAX.into()),
        "u32" => (low(0), u32::MAX.into()),
        "u64" | "usize" => (low(0), u64::MAX.into()),
        "i8" => (i8::MIN.into(), i8::MAX.into()),
        "i16" => (i16::MIN.into(), i16::MAX.into()),
        "i32" => (i32::MIN.into(), i32::MAX.into()),
        "i64" | "isize" => (i64::MIN.into(), i64::MAX.into()),
        _ => return None,
    })
}

/// "did you mean", or all that is possible.
pub fn suggestion(word: &str, valid: &[String], what: &str) -> String {
    match nearest(word, valid) {
        Some(near) => format!("did you mean `{near}`?"),
        None if valid.is_empty() => format!("no {what} is possible here"),
        None => {
            let list: Vec<String> = valid.iter().map(|name| format!("`{name}`")).collect();
            format!("possible: {}", list.join(", "))
        }
    }
}

/// The candidate that a word was probably meant to be: at most a third of its letters differ.
pub fn nearest<'a>(word: &str, candidates: &'a [String]) -> Option<&'a String> {
    let plain = |s: &str| s.to_lowercase().replace('-', "_");
    let word = plain(word);
    candidates
        .iter()
        .map(|candidate| (distance(&word, &plain(candidate)), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.chars().count().max(word.chars().count()) / 3).max(1)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Edits between two words: insert, delete, replace, swap neighbours (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

fn shorten(text: &str) -> String {
    const MOST: usize = 40;
    if text.chars().count() <= MOST {
        return text.to_string();
    }
    text.chars().take(MOST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| word.to_string()).collect()
    }

    #[test]
    fn messages_of_serde_are_taken_apart() {
        let parse = Complaint::parse;
        let unknown =
            |key: &str, valid: &[&str]| Complaint::UnknownKey { key: key.into(), valid: words(valid) };
        assert_eq!(parse("unknown field `x`, expected one of `a`, `b`, `c`"), unknown("x", &["a", "b", "c"]));
        assert_eq!(parse("unknown field `x`, expected `a` or `b`"), unknown("x", &["a", "b"]));
        assert_eq!(parse("unknown field `x`, expected `a`"), unknown("x", &["a"]));
        assert_eq!(parse("unknown field `x`, there are no fields"), unknown("x", &[]));
        assert_eq!(parse("missing field `y`"), Complaint::MissingKey { key: "y".into() });
        assert_eq!(
            parse("invalid type: string \"a, expected b\", expected u64"),
            Complaint::Wrong { found: "string \"a, expected b\"".into(), expected: "u64".into() }
        );
        assert_eq!(
            parse("unknown variant `Calm`, expected `calm` or `baseline`"),
            Complaint::UnknownChoice { choice: "Calm".into(), valid: words(&["calm", "baseline"]) }
        );
        assert_eq!(parse("whatever"), Complaint::Other("whatever".into()));
    }

    #[test]
    fn numbers_written_in_other_ways_are_spelled_out() {
        let hint = |found: &str, expected: &str| wrong_value(found, expected).1;
        assert_eq!(hint("string \"250_000\"", "u64"), "write 250000, without separators");
        assert_eq!(hint("string \"64\"", "usize"), "write 64, without quotes");
        assert_eq!(hint("floating point `0.5`", "u32"), "a whole number from 0 upwards");
        assert_eq!(hint("integer `-1`", "u8"), "a whole number from 0 to 255");
        assert_eq!(hint("integer `0`", "a nonzero u16"), "a whole number from 1 to 65535");
        assert_eq!(hint("string \"1_000.5\"", "f64"), "write 1000.5, without separators or quotes");
        assert_eq!(hint("integer `12`", "a string"), "put it in quotes: \"12\"");
        assert_eq!(hint("boolean `true`", "a string"), "put it in quotes: \"true\"");
        assert_eq!(hint("string \"yes\"", "a boolean"), "write `true` (the words are `true` and `false`)");
        assert!(hint("null", "u64").contains("leave the key out"));
        assert_eq!(wrong_value("sequence", "struct Model").0, "expected a block of keys, found a list");
    }

    #[test]
    fn near_words_are_suggested_and_far_ones_listed() {
        let valid = words(&["latent_size", "hidden_size", "layers"]);
        assert_eq!(suggestion("latnet_size", &valid, "key"), "did you mean `latent_size`?");
        assert_eq!(suggestion("Latent-Size", &valid, "key"), "did you mean `latent_size`?");
        assert_eq!(suggestion("layer", &valid, "key"), "did you mean `layers`?");
        assert_eq!(suggestion("zzz", &valid, "key"), "possible: `latent_size`, `hidden_size`, `layers`");
        assert_eq!(suggestion("x", &[], "key"), "no key is possible here");
        assert_eq!([distance("ab", "ba"), distance("", "abc"), distance("kitten", "sitting")], [1, 3, 3]);
    }
}
