//! What is looked at in a `tokenizer.json` before the `tokenizers` library reads it.
//!
//! - An id belongs to one token. The library numbers added tokens by counting, not by the ids that the file gives
//!   them, so that they collide with others or lose their id where a vocabulary has holes. Such tokens are written
//!   into the vocabulary itself, under their ids, where the library finds them.
//! - Ids lie close together, as a model has a row for each of them.
//! - Settings that would change the text without a word are switched off and named: dropout of merges, truncation,
//!   padding.

use std::collections::BTreeMap;

use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::{Map, Value};

/// Ids that no token has, at most (and three for every token).
const HOLES: u64 = 1 << 20;
/// Longest word that word pieces are sought in: the search takes the square of it.
const LONGEST_WORD: u64 = 1000;

/// A `tokenizer.json` that the library reads as it is meant.
#[derive(Debug)]
pub(crate) struct Checked {
    /// The file, changed if it had to be.
    pub(crate) json: Vec<u8>,
    /// What was switched off.
    pub(crate) notes: Vec<String>,
    /// What was changed in the library's form of the file: what stands there now, and what stood there.
    pub(crate) undo: Vec<(String, String)>,
}

/// Checks a file. `special`: for BOS, EOS and PAD the names under which they may be there; the first is the one that is
/// added.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check(json: &[u8], special: &[&[&str]]) -> Result<Checked, String> {
    let mut file: Value = serde_json::from_slice(json).map_err(|e| format!("it is not JSON: {e}"))?;
    let Some(root) = file.as_object_mut() else { return Err("it is not a JSON object".into()) };
    let mut checked = Checked { json: Vec::new(), notes: Vec::new(), undo: Vec::new() };
    let mut changed = switch_off(root, &mut checked);
    changed |= place(root, special)?;
    checked.json = match changed {
        true => serde_json::to_vec(&file).map_err(|e| e.to_string())?,
        false => json.to_vec(),
    };
    Ok(checked)
}

/// Switches off what must not be on; whether anything in the file was changed.
fn switch_off(root: &mut Map<String, Value>, checked: &mut Checked) -> bool {
    for (key, what) in [("truncation", "truncation of long texts"), ("padding", "padding")] {
        if root.get(key).is_some_and(|value| !value.is_null()) {
            checked.notes.push(format!("{what} is switched off"));
        }
    }
    let Some(model) = root.get_mut("model").and_then(Value::as_object_mut) else { return false };
    let mut changed = false;
    let dropout = model.get("dropout").and_then(Value::as_f64).filter(|share| *share != 0.0);
    if let Some(share) = dropout {
        checked.notes.push(format!("dropout {share} of merges is switched off: a text has one reading"));
        checked.undo.push(("\"dropout\":null".into(), format!("\"dropout\":{}", share as f32)));
        model.insert("dropout".into(), Value::Null);
        changed = true;
    }
    const LIMIT: &str = "max_input_chars_per_word";
    if let Some(longest) = model.get(LIMIT).and_then(Value::as_u64).filter(|longest| *longest > LONGEST_WORD)
    {
        checked.notes.push(format!("words of more than {LONGEST_WORD} characters are unknown words"));
        checked.undo.push((format!("\"{LIMIT}\":{LONGEST_WORD}"), format!("\"{LIMIT}\":{longest}")));
        model.insert(LIMIT.into(), LONGEST_WORD.into());
        changed = true;
    }
    changed
}

struct Added {
    id: u64,
    content: String,
    special: bool,
}

/// Gives every token the id of the file; whether the vocabulary was changed for that.
fn place(root: &mut Map<String, Value>, special: &[&[&str]]) -> Result<bool, String> {
    let added = added_tokens(root)?;
    let model = root.get("model").and_then(Value::as_object);
    let unknown = model.and_then(|m| m.get("unk_token")).and_then(Value::as_str).map(str::to_owned);
    let Some(vocab) = model.and_then(|m| m.get("vocab")) else {
        return Err("it has no `model` with a `vocab`".into());
    };
    let list = match vocab {
        Value::Array(pieces) => Some(pieces.len() as u64),
        _ => None,
    };
    let mut ids = Ids::of(vocab)?;
    // As the library numbers them: one after another behind the vocabulary.
    let mut next = ids.by_token.len() as u64;
    if let Some(pieces) = list {
        next = pieces;
    }
    let mut seen = FxHashSet::default();
    let mut fresh: Vec<&Added> = Vec::new();
    for token in &added {
        let there = ids.by_token.contains_key(token.content.as_str());
        if !there && !token.content.is_empty() && seen.insert(token.content.as_str()) {
            fresh.push(token);
        }
    }
    let follow = |tokens: &[&Added]| tokens.iter().zip(next..).all(|(token, id)| token.id == id);
    let fits = follow(&fresh);
    for token in &fresh {
        ids.add(&token.content, token.id)?;
    }
    let count = ids.by_token.len() as u64;
    let end = ids.end();
    if end > 4 * count + HOLES {
        let (id, token) = ids.by_id.last_key_value().map_or((0, ""), |(id, token)| (*id, token));
        return Err(format!(
            "the token {token:?} has the id {id}, but there are only {count} tokens: a model has a row for every id up \
             to the largest"
        ));
    }
    if list.is_some() {
        // The place in the list is the id.
        if fits {
            return Ok(false);
        }
        fresh.sort_by_key(|token| token.id);
        if !follow(&fresh) {
            return Err("its added tokens have ids that do not follow those of its vocabulary".into());
        }
        if let Some(list) = root.get_mut("added_tokens").and_then(Value::as_array_mut) {
            list.sort_by_key(|token| token.get("id").and_then(Value::as_u64));
        }
        return Ok(true);
    }
    let holes = end != count;
    if fits && !holes {
        return Ok(false);
    }
    let mut places: Vec<(String, u64)> = fresh.iter().map(|a| (a.content.clone(), a.id)).collect();
    // Special tokens that are missing would be numbered by counting as well: into a hole or onto another token.
    let mut end = end;
    let mut missing = Vec::new();
    let marked: Vec<&str> = added.iter().filter(|a| a.special).map(|a| a.content.as_str()).collect();
    let marked: Vec<&str> = marked.into_iter().filter(|name| unknown.as_deref() != Some(name)).collect();
    for names in special {
        // As the pipeline looks for them; what it would find unmarked is marked beside those that are added here.
        let is_there = |name: &&&str| match marked.is_empty() {
            true => ids.by_token.contains_key(**name) && unknown.as_deref() != Some(**name),
            false => marked.contains(&**name),
        };
        let Some(name) = names.iter().find(is_there).or(names.first()) else { continue };
        let id = ids.by_token.get(name).copied().unwrap_or(end);
        if id == end {
            places.push(((*name).to_owned(), end));
            end += 1;
        }
        if !marked.contains(name) {
            missing
                .push(serde_json::json!({ "id": id, "content": name, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": true }));
        }
    }
    // The library's numbers are those of the file, and none are needed.
    if fits && missing.is_empty() {
        return Ok(false);
    }
    if let Some(list) = root.get_mut("added_tokens").and_then(Value::as_array_mut) {
        list.extend(missing);
    } else {
        root.insert("added_tokens".into(), Value::Array(missing));
    }
    let vocab = root.get_mut("model").and_then(|m| m.get_mut("vocab")).and_then(Value::as_object_mut);
    let Some(vocab) = vocab else { return Err("its vocabulary is neither a map nor a list".into()) };
    vocab.extend(places.into_iter().map(|(token, id)| (token, id.into())));
    Ok(true)
}

fn added_tokens(root: &Map<String, Value>) -> Result<Vec<Added>, String> {
    let list = match root.get("added_tokens") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err("its `added_tokens` are no list".into()),
    };
    let read = |token: &Value| {
        let id = token.get("id").and_then(Value::as_u64);
        let content = token.get("content").and_then(Value::as_str);
        match (id, content) {
            (Some(id), Some(content)) => {
                let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
                Ok(Added { id, content: content.to_owned(), special })
            }
            _ => Err("a token of its `added_tokens` has no `id` or no `content`".to_owned()),
        }
    };
    list.iter().map(read).collect()
}

/// Tokens and ids, each of the other.
#[derive(Default)]
struct Ids<'a> {
    by_token: FxHashMap<&'a str, u64>,
    by_id: BTreeMap<u64, &'a str>,
}

impl<'a> Ids<'a> {
    fn of(vocab: &'a Value) -> Result<Self, String> {
        let mut ids = Self::default();
        match vocab {
            Value::Object(map) => {
                for (token, id) in map {
                    let id =
                        id.as_u64().ok_or_else(|| format!("the id of the token {token:?} is no number"))?;
                    ids.add(token, id)?;
                }
            }
            Value::Array(pieces) => {
                for (id, piece) in (0..).zip(pieces) {
                    let Some(token) = piece.get(0).and_then(Value::as_str) else {
                        return Err(format!("piece {id} of its vocabulary has no text"));
                    };
                    ids.by_token.insert(token, id);
                    ids.by_id.insert(id, token);
                }
            }
            _ => return Err("its vocabulary is neither a map nor a list".into()),
        }
        Ok(ids)
    }

    fn add(&mut self, token: &'a str, id: u64) -> Result<(), String> {
        if id >= u64::from(u32::MAX) {
            return Err(format!("the token {token:?} has the id {id}: ids are below {}", u32::MAX));
        }
        if let Some(other) = self.by_id.insert(id, token) {
            return Err(format!("two tokens have the id {id}: {other:?} and {token:?}"));
        }
        self.by_token.insert(token, id);
        Ok(())
    }

    /// The first id behind all tokens.
    fn end(&self) -> u64 {
        self.by_id.last_key_value().map_or(0, |(id, _)| id + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: &[&[&str]] = &[&["<|bos|>", "<s>"], &["<|eos|>", "</s>"]];

    fn words(vocab: &str, added: &str) -> Result<Checked, String> {
        let json = format!(
            r#"{{"added_tokens":[{added}],"model":{{"type":"WordLevel","vocab":{{{vocab}}},"unk_token":"u"}}}}"#
        );
        check(json.as_bytes(), SPECIAL)
    }

    fn vocab(checked: &Checked) -> Value {
        serde_json::from_slice::<Value>(&checked.json).unwrap()["model"]["vocab"].clone()
    }

    fn token(id: u64, content: &str) -> String {
        format!(r#"{{"id":{id},"content":"{content}","special":true}}"#)
    }

    #[test]
    fn a_vocabulary_without_holes_stays_as_it_is() {
        let whole = words(r#""u":0,"a":1"#, &token(2, "</s>")).unwrap();
        assert_eq!(vocab(&whole), serde_json::json!({ "u": 0, "a": 1 }));
        assert!(whole.notes.is_empty());
    }

    #[test]
    fn beside_holes_tokens_keep_their_ids_and_missing_ones_come_behind_all() {
        let holes = words(r#""u":0,"a":2,"b":5"#, &token(3, "</s>")).unwrap();
        assert_eq!(vocab(&holes), serde_json::json!({ "u": 0, "a": 2, "b": 5, "</s>": 3, "<|bos|>": 6 }));
        let lucky = [token(2, "<s>"), token(3, "</s>")].join(",");
        let lucky = words(r#""u":0,"a":5"#, &lucky).unwrap();
        assert_eq!(
            vocab(&lucky),
            serde_json::json!({ "u": 0, "a": 5 }),
            "the library numbers them so by itself"
        );
        let unmarked = words(r#""u":0,"</s>":2,"b":5"#, "").unwrap();
        let file: Value = serde_json::from_slice(&unmarked.json).unwrap();
        let marked: Vec<&Value> =
            file["added_tokens"].as_array().unwrap().iter().map(|token| &token["id"]).collect();
        assert_eq!(marked, [6, 2]);
        let gap = words(r#""u":0,"a":1"#, &token(7, "</s>")).unwrap();
        assert_eq!(vocab(&gap), serde_json::json!({ "u": 0, "a": 1, "</s>": 7, "<|bos|>": 8 }));
    }

    #[test]
    fn ids_that_cannot_be_are_named() {
        for (vocab, added, expected) in [
            (r#""u":0,"a":0"#, "", "two tokens have the id 0"),
            (r#""u":0,"a":1"#, r#"{"id":1,"content":"b"}"#, "two tokens have the id 1"),
            (r#""u":0,"a":150000000"#, "", "only 2 tokens"),
            (r#""u":0,"a":4294967295"#, "", "ids are below"),
            (r#""u":0,"a":-1"#, "", "is no number"),
            (r#""u":0,"a":1.5"#, "", "is no number"),
            (r#""u":0"#, r#"{"content":"b"}"#, "no `id`"),
        ] {
            let error = words(vocab, added).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let pieces = |added: &str| {
            let json = format!(
                r#"{{"added_tokens":[{added}],"model":{{"type":"Unigram","unk_id":0,"vocab":[["u",0.0],["a",-1.0]]}}}}"#
            );
            check(json.as_bytes(), SPECIAL)
        };
        assert!(pieces(&token(2, "</s>")).is_ok());
        assert!(pieces(&token(3, "</s>")).unwrap_err().contains("do not follow"));
        let turned = pieces(&format!("{},{}", token(3, "</s>"), token(2, "<s>"))).unwrap();
        let file: Value = serde_json::from_slice(&turned.json).unwrap();
        assert_eq!(file["added_tokens"][0]["id"], 2, "the library counts in the order of the file");
        for (json, expected) in [("[]", "not a JSON object"), ("{", "not JSON"), ("{}", "no `model`")] {
            assert!(check(json.as_bytes(), SPECIAL).unwrap_err().contains(expected), "{json}");
        }
    }

    #[test]
    fn settings_that_change_the_text_are_switched_off_and_named() {
        let json = r#"{"truncation":{"max_length":16},"padding":{"pad_id":0},
            "model":{"type":"BPE","dropout":0.1,"max_input_chars_per_word":100000,"vocab":{"a":0},"merges":[]}}"#;
        let checked = check(json.as_bytes(), SPECIAL).unwrap();
        let notes = checked.notes.join("; ");
        for part in ["dropout 0.1", "truncation", "padding", "1000 characters"] {
            assert!(notes.contains(part), "{notes}");
        }
        assert_eq!(checked.undo[0], ("\"dropout\":null".into(), "\"dropout\":0.1".into()));
        let again = check(&checked.json, SPECIAL).unwrap();
        assert!(again.undo.is_empty() && !String::from_utf8(again.json).unwrap().contains("0.1"));
    }
}
