//! Where no merge reaches across: a text that a BPE model takes as a whole falls into parts there, which come again.
//!
//! ```text
//! ▁the▁cat▁▁▁sat      ->  ▁the  ▁cat  ▁▁▁sat
//! ```
//!
//! Sentence pieces write a space as `▁`. Where no token of a vocabulary has another character before it, no merge joins what
//! stands on the two sides of such a place, and the merges of one side do not depend on the other: the ids of the parts are
//! those of the whole. Pipelines without a division (that of Llama 2) give a whole document as one piece, which never comes again;
//! its parts do ([`crate::known_pieces`]).

use tokenizers::{Model, ModelWrapper};

use crate::spaces::SPACE;

/// Whether a text may be divided before its spaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seams(bool);

impl Seams {
    /// Of a model.
    pub(crate) fn of(model: &ModelWrapper) -> Self {
        let ModelWrapper::BPE(bpe) = model else { return Self(false) };
        let absent = |affix: &Option<String>| affix.as_ref().is_none_or(String::is_empty);
        // What depends on the whole piece: its first and its last part, and whether all of it is a token.
        let by_parts = absent(&bpe.continuing_subword_prefix)
            && absent(&bpe.end_of_word_suffix)
            && !bpe.ignore_merges
            && bpe.dropout.is_none_or(|share| share == 0.0);
        // Unknown characters are fused with their neighbours: a space is none of them.
        let known = bpe.token_to_id(SPACE.encode_utf8(&mut [0; 4])).is_some();
        // Where it stands for an unknown character, it would merge with the spaces behind that.
        let spaces = |token: &String| token.chars().all(|c| c == SPACE);
        let apart = !bpe.unk_token.as_ref().is_some_and(spaces);
        Self(by_parts && known && apart && bpe.get_vocab().keys().all(|token| seams(token).next().is_none()))
    }

    /// The parts of a piece, which are merged each by itself.
    pub(crate) fn parts(self, piece: &str) -> impl Iterator<Item = &str> {
        let mut cuts = self.0.then(|| seams(piece)).into_iter().flatten();
        let mut rest = Some(0);
        std::iter::from_fn(move || {
            let start = rest?;
            rest = cuts.next();
            Some(&piece[start..rest.unwrap_or(piece.len())])
        })
    }
}

/// Where a space stands behind something else.
fn seams(text: &str) -> impl Iterator<Item = usize> {
    text.match_indices(SPACE).map(|(at, _)| at).filter(|at| *at > 0 && !text[..*at].ends_with(SPACE))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokenizers::models::bpe::{BPE, Vocab};

    /// Tokens of bytes and letters, and merges of words with their space; `more` are merges besides.
    fn model(more: &[(&str, &str)]) -> BPE {
        let bytes = (0..=255).map(|b| format!("<0x{b:02X}>"));
        let letters = ["<unk>", "▁", "a", "b", "c"].map(str::to_owned);
        let merges = [("a", "b"), ("▁", "ab"), ("▁", "▁"), ("▁▁", "▁"), ("c", "c"), ("ab", "a"), ("▁", "c")];
        let merges: Vec<(String, String)> =
            merges.iter().chain(more).map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
        let merged = merges.iter().map(|(a, b)| format!("{a}{b}"));
        let tokens: Vec<String> = letters.into_iter().chain(merged).chain(bytes).collect();
        let vocab: Vocab = tokens.into_iter().zip(0..).collect();
        let bpe = BPE::builder().vocab_and_merges(vocab, merges).unk_token("<unk>".into());
        bpe.byte_fallback(true).fuse_unk(true).build().unwrap()
    }

    fn ids(model: &ModelWrapper, text: &str) -> Vec<u32> {
        model.tokenize(text).unwrap().iter().map(|token| token.id).collect()
    }

    #[test]
    fn a_text_is_divided_before_its_spaces_where_no_token_reaches_across() {
        let parts = |seams: Seams, text: &str| seams.parts(text).map(str::to_owned).collect::<Vec<_>>();
        let can = Seams::of(&model(&[]).into());
        assert_eq!(parts(can, "▁the▁cat▁▁▁sat"), ["▁the", "▁cat", "▁▁▁sat"]);
        assert_eq!(parts(can, "a▁"), ["a", "▁"]);
        assert_eq!(parts(can, ""), [""]);
        let changed = |change: fn(&mut BPE)| {
            let mut model = model(&[]);
            change(&mut model);
            model
        };
        for cannot in [
            model(&[("b", "▁")]),
            changed(|model| model.ignore_merges = true),
            changed(|model| model.unk_token = Some("▁".into())),
            changed(|model| model.unk_token = Some("▁▁".into())),
            changed(|model| model.end_of_word_suffix = Some("_".into())),
            changed(|model| model.continuing_subword_prefix = Some("_".into())),
        ] {
            assert_eq!(parts(Seams::of(&cannot.into()), "a▁b"), ["a▁b"]);
        }
    }

    proptest! {
        #[test]
        fn parts_have_the_ids_of_the_whole(text in "[abcd▁é\n日]{0,60}") {
            let model: ModelWrapper = model(&[]).into();
            let parts: Vec<u32> = Seams::of(&model).parts(&text).flat_map(|part| ids(&model, part)).collect();
            prop_assert_eq!(parts, ids(&model, &text));
        }
    }
}
