//! Records that must be the same everywhere before the work begins: program, configuration, options.

use serde_json::Value;

use crate::collective::Patience;
use crate::error::{Error, Result};
use crate::ranks::Ranks;

/// Compares a record of named values with that of all others; nested values are named by their path, `config.train.lm.steps`.
///
/// # Errors
/// Somebody's differ: who it is, and up to three of the values; as [`crate::Collective`].
pub fn agree(ranks: &Ranks, own: &Value) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let all =
        ranks.gather(own.to_string().as_bytes(), "the comparison of their settings", Patience::Limited)?;
    let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
    let first = read(&all[0]);
    for (rank, other) in all.iter().enumerate().skip(1) {
        let mut found = Vec::new();
        differences(&first, &read(other), "", &mut found);
        if found.is_empty() {
            continue;
        }
        let more = found.len().saturating_sub(3);
        found.truncate(3);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Err(Error::new(
            format!(
                "rank {rank} ({}) was started with something else than rank 0 ({}): {}{more}",
                ranks.hosts()[rank],
                ranks.hosts()[0],
                found.join("; ")
            ),
            "start all processes with the same program and the same command",
        ));
    }
    Ok(())
}

/// Where two values differ, in words.
fn differences(first: &Value, other: &Value, path: &str, found: &mut Vec<String>) {
    match (first, other) {
        (Value::Object(a), Value::Object(b)) => {
            let more = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(more) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                differences(a, b, &path, found);
            }
        }
        (a, b) if a != b => found.push(format!("{path} is {b}, not {a}")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;
    use serde_json::json;

    #[test]
    fn a_difference_is_named_by_its_path() {
        let found = threads::run(2, |ranks| {
            let steps = 10 + ranks.rank();
            agree(&ranks, &json!({"program": "a", "config": {"train": {"lm": {"steps": steps}}, "seed": 1}}))
        });
        let e = found[0].clone().unwrap_err();
        assert!(e.what.ends_with("config.train.lm.steps is 11, not 10"), "{e}");
        assert_eq!(found[0], found[1]);
        assert!(threads::run(2, |ranks| agree(&ranks, &json!({"a": [1]}))).iter().all(Result::is_ok));
    }

    #[test]
    fn of_many_differences_three_are_said() {
        let found = threads::run(2, |ranks| {
            let n = ranks.rank();
            agree(&ranks, &json!({"a": n, "b": n, "c": n, "d": n, "e": n}))
        });
        assert!(found[0].clone().unwrap_err().what.ends_with("c is 1, not 0 and 2 more"));
    }
}
