//! The Llama-3 pattern as a scanner, and which pipelines divide text by it.
//!
//! A regular expression with look-ahead costs most of the time of encoding. The scanner finds the same pieces in
//! ASCII; where a character outside ASCII could matter it asks the expression.
//!
//! The plain way, the `tokenizers` pipeline, stays beside it as its test. Pieces are encoded in [`crate::merges`].

use std::sync::LazyLock;

use fancy_regex::Regex;
use tokenizers::ModelWrapper;

use crate::byte_level::PATTERN;

static REGEX: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(PATTERN).ok());

/// The pieces of a text by [`PATTERN`], which covers every text without a gap.
pub(crate) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    std::iter::from_fn(move || {
        if start == text.len() {
            return None;
        }
        let end = ascii_end(text.as_bytes(), start).unwrap_or_else(|| pattern_end(text, start));
        let piece = &text[start..end];
        start = end;
        Some(piece)
    })
}

/// The end of the piece at `start` by the regular expression. As in the `tokenizers` library the rest of the text
/// is one piece if the expression gives up (a megabyte of white space).
fn pattern_end(text: &str, start: usize) -> usize {
    let found = REGEX.as_ref().and_then(|regex| regex.find_from_pos(text, start).ok().flatten());
    found
        .filter(|piece| piece.start() == start && piece.end() > start)
        .map_or(text.len(), |piece| piece.end())
}

fn is_space(b: u8) -> bool {
    matches!(b, b'\t'..=b'\r' | b' ')
}

fn is_newline(b: u8) -> bool {
    matches!(b, b'\r' | b'\n')
}

fn is_mark(b: u8) -> bool {
    b.is_ascii() && !is_space(b) && !b.is_ascii_alphanumeric()
}

/// The end of the piece at `start`; none if a byte outside ASCII has a say in it. The alternatives stand in the
/// order of the pattern.
fn ascii_end(text: &[u8], start: usize) -> Option<usize> {
    // The end of the bytes that fulfil `f`; none if what follows is not ASCII, as it could belong to them.
    let run = |from: usize, f: fn(u8) -> bool| {
        let end = text[from..].iter().position(|&b| !f(b)).map_or(text.len(), |n| from + n);
        text.get(end).is_none_or(u8::is_ascii).then_some(end)
    };
    let byte = |at: usize| match text.get(at) {
        Some(b) if !b.is_ascii() => None,
        other => Some(other.copied().unwrap_or(0)),
    };
    let letter = |b: u8| b.is_ascii_alphabetic();
    let (first, second) = (byte(start)?, byte(start + 1)?);
    // (?i:'s|'t|'re|'ve|'m|'ll|'d)
    if first == b'\'' {
        match (second.to_ascii_lowercase(), byte(start + 2)?.to_ascii_lowercase()) {
            (b's' | b't' | b'm' | b'd', _) => return Some(start + 2),
            (b'r' | b'v', b'e') | (b'l', b'l') => return Some(start + 3),
            _ => {}
        }
    }
    // [^\r\n\p{L}\p{N}]?\p{L}+
    if letter(first) {
        return run(start, |b| b.is_ascii_alphabetic());
    }
    if letter(second) && !is_newline(first) && !first.is_ascii_digit() {
        return run(start + 1, |b| b.is_ascii_alphabetic());
    }
    // \p{N}{1,3}
    if first.is_ascii_digit() {
        return Some(run(start, |b| b.is_ascii_digit())?.min(start + 3));
    }
    // ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    let from = start + usize::from(first == b' ');
    if text.get(from).is_some_and(|&b| is_mark(b)) {
        let end = run(from, is_mark)?;
        return Some(end + text[end..].iter().take_while(|&&b| is_newline(b)).count());
    }
    // \s*[\r\n]+|\s+(?!\S)|\s+
    let end = run(start, is_space)?;
    if let Some(last) = text[start..end].iter().rposition(|&b| is_newline(b)) {
        return Some(start + last + 1);
    }
    Some(if end < text.len() && end - start > 1 { end - 1 } else { end })
}

/// Whether a pipeline divides text by the pattern and writes its pieces as bytes, and does nothing else to it.
pub(crate) fn is_plain(pipeline: &tokenizers::Tokenizer) -> bool {
    let Some(Ok(mut steps)) = pipeline.get_pre_tokenizer().map(serde_json::to_value) else { return false };
    // Offsets are not looked at here.
    if let Some(last) = steps.pointer_mut("/pretokenizers/1").and_then(|step| step.as_object_mut()) {
        last.remove("trim_offsets");
    }
    let expected = serde_json::json!({ "type": "Sequence", "pretokenizers": [
        { "type": "Split", "pattern": { "Regex": PATTERN }, "behavior": "Isolated", "invert": false },
        { "type": "ByteLevel", "add_prefix_space": false, "use_regex": false },
    ]});
    let bpe = match pipeline.get_model() {
        ModelWrapper::BPE(bpe) => bpe.dropout.is_none(),
        _ => false,
    };
    let added = pipeline.get_added_tokens_decoder();
    bpe && steps == expected
        && pipeline.get_normalizer().is_none()
        && added.values().all(|token| token.special)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    static TRAINED: LazyLock<crate::Tokenizer> = LazyLock::new(|| {
        let text = "abc de bad cab ace dead bee abc cab\n".repeat(9);
        crate::bpe::train(&[&text], 290, &mut |_| ()).unwrap()
    });

    fn by_pattern(text: &str) -> Vec<&str> {
        let regex = REGEX.as_ref().unwrap();
        let found: Vec<&str> = regex.find_iter(text).map(|piece| piece.unwrap().as_str()).collect();
        assert_eq!(found.concat(), text, "the pattern covers every text");
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_scanner_finds_the_pieces_of_the_pattern(
            text in prop_oneof![
                "[ -~\\n\\r\\t]{0,30}",
                "[a-zA-Z'0-9 .\\n]{0,30}",
                "[a sStTlL'éſ½²٣ \\n\\u{a0}\\u{3000}\\u{85}x1.]{0,20}",
                "\\PC{0,20}",
                any::<String>(),
            ],
        ) {
            prop_assert_eq!(pieces(&text).collect::<Vec<_>>(), by_pattern(&text));
        }

        #[test]
        fn encoding_is_that_of_the_pipeline(texts in prop::collection::vec("([a-e ]{0,9}|\\PC|\n){0,6}", 0..5)) {
            let pipeline = TRAINED.pipeline().unwrap();
            prop_assert!(is_plain(pipeline));
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let plain: Vec<Vec<u32>> = texts
                .iter()
                .map(|text| pipeline.encode_fast(*text, false).unwrap().get_ids().to_vec())
                .collect();
            prop_assert_eq!(TRAINED.encode_all(&texts).unwrap(), plain);
        }
    }

    #[test]
    fn other_pipelines_are_left_to_the_library() {
        let tokenizer = crate::bpe::train(&["some text"], 259, &mut |_| ()).unwrap();
        let plain = tokenizer.pipeline().unwrap();
        let changed = |change: &dyn Fn(&mut tokenizers::Tokenizer)| {
            let mut pipeline = plain.clone();
            change(&mut pipeline);
            is_plain(&pipeline)
        };
        assert!(changed(&|_| ()));
        assert!(!changed(&|p| {
            p.with_pre_tokenizer(Some(tokenizers::pre_tokenizers::byte_level::ByteLevel::default()));
        }));
        assert!(!changed(&|p| {
            p.with_normalizer(Some(tokenizers::normalizers::NFC)).unwrap();
        }));
        assert!(!changed(&|p| {
            p.add_tokens([tokenizers::AddedToken::from("user", false)]).unwrap();
        }));
    }
}
