//! Every tokenizer gives back the text that it was given.

#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use calm_data::{Tokenizer, bpe};
use proptest::prelude::*;

static TOKENIZERS: LazyLock<[Tokenizer; 2]> = LazyLock::new(|| {
    let text = include_str!("../src/tokenizer.rs");
    [bpe::train(&[text], 600, &mut |_| ()).unwrap(), Tokenizer::characters([text])]
});

proptest! {
    #[test]
    fn decoding_what_was_encoded_is_the_identity_on_any_text(
        text in prop_oneof!["\\PC{0,60}", any::<String>(), "([a-z <|>\n]|<\\|eos\\|>|<\\|pad\\|>|é|\r\n){0,40}"],
    ) {
        for tokenizer in TOKENIZERS.iter() {
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), &text[..]);
            prop_assert_eq!(tokenizer.decode_bytes(&ids), text.as_bytes());
            let special = tokenizer.special();
            for id in ids {
                prop_assert!((id as usize) < tokenizer.vocab_size());
                prop_assert!(![special.bos, special.eos, special.pad].contains(&id));
                prop_assert!(!tokenizer.token_bytes(id).is_empty());
            }
        }
    }
}

#[test]
fn a_trained_tokenizer_is_an_ordinary_tokenizer_json() {
    let [bpe, _] = &*TOKENIZERS;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    bpe.save(&path).unwrap();
    let library = tokenizers::Tokenizer::from_file(&path).unwrap();
    let text = "pub fn encode(&self, text: &str) -> Result<Vec<u32>> {\n    Ok(self.ids(text))\n}\n";
    let ids = bpe.encode(text).unwrap();
    assert_eq!(library.encode(text, false).unwrap().get_ids(), ids);
    assert_eq!(library.decode(&ids, true).unwrap(), text);
    assert_eq!(library.token_to_id("<|eos|>"), Some(bpe.special().eos));
}
