//! Pipelines that do nothing to a text but write its spaces as `▁`, as most of sentence pieces do: the same on plain strings,
//! without the place of every character in the text, which the library keeps and nobody here asks for.

use serde_json::{Value, json};
use tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;

/// A space, as sentence pieces write it.
pub(crate) const SPACE: char = '▁';

/// What a pipeline does to a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spaces {
    before: Before,
    /// Whether a piece ends before each space.
    divides: bool,
}

/// Whether a space is put before a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Always,
    /// Unless there is one.
    Missing,
    Never,
}

impl Spaces {
    /// Of a pipeline that does nothing else.
    pub(crate) fn of(pipeline: &tokenizers::Tokenizer) -> Option<Self> {
        // Others would be looked for in the text.
        if !pipeline.get_added_tokens_decoder().values().all(|token| token.special) {
            return None;
        }
        let normalizer = pipeline.get_normalizer().map(serde_json::to_value).transpose().ok()?;
        match (normalizer, pipeline.get_pre_tokenizer()) {
            (None, Some(PreTokenizerWrapper::Metaspace(spaces))) if spaces.get_replacement() == SPACE => {
                let before = match spaces.get_prepend_scheme() {
                    PrependScheme::Always | PrependScheme::First => Before::Missing,
                    PrependScheme::Never => Before::Never,
                };
                Some(Self { before, divides: spaces.get_split() })
            }
            (Some(normalizer), None) => Some(Self { before: by_normalizer(&normalizer)?, divides: false }),
            _ => None,
        }
    }

    /// Writes a text.
    pub(crate) fn write(self, text: &str, written: &mut String) {
        let before = match self.before {
            Before::Always => !text.is_empty(),
            Before::Missing => !text.is_empty() && !text.starts_with([' ', SPACE]),
            Before::Never => false,
        };
        written.clear();
        written.extend(before.then_some(SPACE));
        for (n, words) in text.split(' ').enumerate() {
            written.extend((n > 0).then_some(SPACE));
            written.push_str(words);
        }
    }

    /// The pieces of a written text.
    pub(crate) fn pieces(self, written: &str) -> impl Iterator<Item = &str> {
        let spaces = self.divides.then(|| written.match_indices(SPACE).map(|(at, _)| at));
        let mut cuts = spaces.into_iter().flatten().filter(|at| *at > 0);
        let mut rest = (!written.is_empty()).then_some(0);
        std::iter::from_fn(move || {
            let start = rest?;
            rest = cuts.next();
            Some(&written[start..rest.unwrap_or(written.len())])
        })
    }
}

fn by_normalizer(normalizer: &Value) -> Option<Before> {
    let space = SPACE.to_string();
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": space });
    let prepend = json!({ "type": "Prepend", "prepend": space });
    let sequence = |steps: &[&Value]| json!({ "type": "Sequence", "normalizers": steps });
    match normalizer {
        n if *n == replace || *n == sequence(&[&replace]) => Some(Before::Never),
        n if *n == sequence(&[&prepend, &replace]) => Some(Before::Always),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::tokenizer::{OffsetReferential, OffsetType};
    use tokenizers::{PreTokenizer, Tokenizer};

    fn pipeline(normalizer: &Value, pre_tokenizer: &Value) -> Tokenizer {
        let vocab = json!({ "<unk>": 0, "▁": 1, "a": 2 });
        let model = json!({ "type": "BPE", "vocab": vocab, "merges": [], "unk_token": "<unk>" });
        let file = json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": null, "model": model });
        Tokenizer::from_bytes(serde_json::to_vec(&file).unwrap()).unwrap()
    }

    fn pipelines() -> Vec<Tokenizer> {
        let metaspace = |scheme: &str, split: bool| json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split });
        let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
        let llama =
            json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, &replace] });
        let mut all = vec![pipeline(&replace, &Value::Null), pipeline(&llama, &Value::Null)];
        for scheme in ["always", "first", "never"] {
            all.extend([true, false].map(|split| pipeline(&Value::Null, &metaspace(scheme, split))));
        }
        all
    }

    #[test]
    fn pipelines_that_do_more_are_left_to_the_library() {
        assert!(pipelines().iter().all(|pipeline| Spaces::of(pipeline).is_some()));
        let other =
            json!({ "type": "Metaspace", "replacement": "_", "prepend_scheme": "always", "split": true });
        let lower = json!({ "type": "Lowercase" });
        for (normalizer, pre_tokenizer) in
            [(&Value::Null, &other), (&lower, &Value::Null), (&Value::Null, &Value::Null), (&lower, &other)]
        {
            assert_eq!(Spaces::of(&pipeline(normalizer, pre_tokenizer)), None);
        }
        let mut added = pipelines().remove(0);
        added.add_tokens([tokenizers::AddedToken::from("aa", false)]).unwrap();
        assert_eq!(Spaces::of(&added), None);
    }

    proptest! {
        #[test]
        fn pieces_are_those_of_the_library(text in "[a ▁é\n]{0,24}") {
            for pipeline in pipelines() {
                let mut theirs =
                    pipeline.get_added_vocabulary().extract_and_normalize(pipeline.get_normalizer(), &text);
                if let Some(division) = pipeline.get_pre_tokenizer() {
                    division.pre_tokenize(&mut theirs).unwrap();
                }
                let theirs: Vec<String> = theirs
                    .get_splits(OffsetReferential::Normalized, OffsetType::None)
                    .into_iter()
                    .map(|(piece, ..)| piece.to_owned())
                    .filter(|piece| !piece.is_empty())
                    .collect();
                let spaces = Spaces::of(&pipeline).unwrap();
                let mut written = String::from("what was there before");
                spaces.write(&text, &mut written);
                prop_assert_eq!(spaces.pieces(&written).collect::<Vec<_>>(), theirs, "{:?}", spaces);
            }
        }
    }
}
