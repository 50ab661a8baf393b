//! Text to token ids and back.
//!
//! Three kinds behind one type: a Hugging Face `tokenizers` pipeline (trained here, given as `tokenizer.json`, or
//! built from Llama-3 ranks) and a character tokenizer. Whatever the kind:
//!
//! - BOS, EOS and PAD are three ids of their own; a missing one is appended to the vocabulary, and PAD is never EOS.
//! - `encode` adds no special token, and text that looks like one (`<|eos|>`) stays text.
//! - `decode` of `encode` is the text as the tokenizer's normaliser leaves it; for characters and for byte-level
//!   vocabularies without a normaliser that is any UTF-8 itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::caught::caught;
use crate::chars::Chars;
use crate::detokenizer::Detokenizer;
use crate::error::{Error, Result};
use crate::pipeline::Pipeline;
use crate::special::{Known, SpecialTokens, Vocabulary};
use crate::stream::TextStream;
use crate::token_file::write_atomically;
use crate::tokenizer_json;

/// Names under which special tokens are found in a given vocabulary; the first is the one that is added.
const BOS_NAMES: [&str; 6] = ["<|bos|>", "<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "[CLS]"];
const EOS_NAMES: [&str; 7] =
    ["<|eos|>", "<|end_of_text|>", "</s>", "<eos>", "<|endoftext|>", "<|im_end|>", "[SEP]"];
const PAD_NAMES: [&str; 4] = ["<|pad|>", "<pad>", "[PAD]", "<PAD>"];
const SPECIAL_NAMES: [&[&str]; 3] = [&BOS_NAMES, &EOS_NAMES, &PAD_NAMES];

enum Kind {
    Pipeline(Box<Pipeline>),
    Chars(Chars),
}

struct Inner {
    kind: Kind,
    special: SpecialTokens,
    texts: Detokenizer,
    json: String,
    hash: [u8; 32],
    /// The hash under which version 0.1 wrote it down.
    old_hash: Option<[u8; 32]>,
    /// Where it was read.
    path: Option<PathBuf>,
    notes: Vec<String>,
}

/// A tokenizer. Cloning shares it.
#[derive(Clone)]
pub struct Tokenizer(Arc<Inner>, Option<Vocabulary>);

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Tokenizer(V = {}, {:?})", self.vocab_size(), self.special())
    }
}

impl Tokenizer {
    /// From a pipeline of the `tokenizers` library: special tokens are found or added; truncation, padding and dropout
    /// are switched off.
    ///
    /// # Errors
    /// When the pipeline cannot be used or written as JSON.
    pub fn from_pipeline(pipeline: tokenizers::Tokenizer) -> Result<Self> {
        Self::open(pipeline).map_err(Error::Tokenizer).map(|inner| Self(Arc::new(inner), None))
    }

    fn open(pipeline: tokenizers::Tokenizer) -> Result<Inner, String> {
        let opened = caught(|| Pipeline::open(pipeline, SPECIAL_NAMES)).flatten()?;
        let kind = Kind::Pipeline(Box::new(opened.pipeline));
        Ok(Inner::new(kind, opened.special, opened.texts, opened.json))
    }

    /// Characters of these texts, and bytes for all others.
    pub fn characters<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self(Arc::new(Inner::from_chars(Chars::of(texts))), None)
    }

    /// The same tokenizer for a model with other special ids. Special tokens that only we have appended, above
    /// the model's vocabulary, are dropped. File and hash stay those of the tokenizer.
    ///
    /// # Errors
    /// When the two do not fit, with everything that [`Tokenizer::vocabulary_problems`] finds.
    pub fn with_vocabulary(&self, vocabulary: Vocabulary) -> Result<Self> {
        let problems = self.vocabulary_problems(vocabulary);
        if problems.is_empty() {
            return Ok(Self(self.0.clone(), Some(vocabulary)));
        }
        Err(Error::Unfit { problems })
    }

    /// Why this tokenizer cannot be the one of a model with these ids; empty when it can.
    pub fn vocabulary_problems(&self, vocabulary: Vocabulary) -> Vec<String> {
        let own = self.0.special;
        let mut size = self.0.texts.len();
        while size > vocabulary.size && [own.bos, own.eos, own.pad].contains(&(size as u32 - 1)) {
            size -= 1;
        }
        let mut problems = Vec::new();
        if size != vocabulary.size {
            problems.push(format!("the tokenizer has {size} ids, the model {}", vocabulary.size));
        }
        for (name, id) in [("BOS", vocabulary.bos), ("EOS", vocabulary.eos), ("PAD", vocabulary.pad)] {
            if id as usize >= vocabulary.size {
                problems
                    .push(format!("{name} {id} is outside the model's vocabulary of {}", vocabulary.size));
            } else if self.0.texts.is_text(id) {
                let text = String::from_utf8_lossy(self.token_bytes(id));
                problems.push(format!("{name} {id} is the text {text:?} in the tokenizer"));
            }
        }
        problems
    }

    /// V: ids are below it, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.1.map_or(self.0.texts.len(), |v| v.size)
    }

    /// BOS, EOS and PAD.
    pub fn special(&self) -> SpecialTokens {
        self.1.map_or(self.0.special, |v| v.special())
    }

    /// Whether the text of a sequence is that of its tokens joined, byte by byte (all but vocabularies of words and
    /// sentence pieces). `decode` of `encode` is the text then, after the tokenizer's normaliser if it has one.
    pub fn is_byte_exact(&self) -> bool {
        self.0.texts.joins_bytes()
    }

    /// What was switched off or is otherwise than in the file; each to be told once.
    pub fn notes(&self) -> &[String] {
        &self.0.notes
    }

    /// Ids of a text, without special tokens.
    ///
    /// # Errors
    /// When a given pipeline cannot encode the text (a word vocabulary without an unknown token).
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode_all(&[text])?.pop().unwrap_or_default())
    }

    /// Ids of several texts, faster than one by one, on this thread.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_all(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>> {
        match &self.0.kind {
            Kind::Pipeline(pipeline) => pipeline
                .encode(texts)
                .map_err(|message| Error::Encode { tokenizer: self.0.path.clone(), message }),
            Kind::Chars(chars) => Ok(texts.iter().map(|text| chars.encode(text)).collect()),
        }
    }

    #[cfg(test)]
    pub(crate) fn pipeline(&self) -> Option<&tokenizers::Tokenizer> {
        match &self.0.kind {
            Kind::Pipeline(pipeline) => Some(pipeline.library()),
            Kind::Chars(_) => None,
        }
    }

    /// Bytes of text of these ids. Special tokens and unknown ids have none.
    pub fn decode_bytes(&self, ids: &[u32]) -> Vec<u8> {
        self.0.texts.bytes(ids)
    }

    /// Text of these ids; bytes that are not UTF-8 (a character cut in two) become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes = self.decode_bytes(ids);
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// The text that follows a text, token by token: in the end that of all of them at once.
    pub fn stream_after(&self, text: &str, ids: &[u32]) -> TextStream<'_> {
        TextStream::after(&self.0.texts, text, ids)
    }

    /// Text of ids that follow others, with the space or the joint between the two.
    pub fn decode_after(&self, before: &[u32], ids: &[u32]) -> String {
        let mut stream = self.stream_after("", before);
        let text = stream.push(ids);
        text + &stream.finish()
    }

    /// What an id of a text says of it.
    pub fn knows(&self, id: u32) -> Known {
        match &self.0.kind {
            Kind::Pipeline(pipeline) => pipeline.knows(id, self.0.texts.token(id)),
            Kind::Chars(chars) if chars.is_byte(id) => Known::Byte,
            Kind::Chars(_) => Known::Text,
        }
    }

    /// Whether this id is text: a token has it that is not special.
    pub fn is_text(&self, id: u32) -> bool {
        self.0.texts.is_text(id)
    }

    /// Bytes of text of one id where [`Tokenizer::is_byte_exact`] holds, and else the token as the vocabulary writes
    /// it; none for special tokens and unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.0.texts.token(id)
    }

    /// Hexadecimal BLAKE3 of what [`Tokenizer::save`] writes.
    pub fn hash(&self) -> String {
        blake3::Hash::from_bytes(self.0.hash).to_hex().to_string()
    }

    /// Whether a record that holds this hash means this tokenizer. Version 0.1 kept a dropout of merges and the like,
    /// so that the same file had another hash.
    pub fn is(&self, hash: &str) -> bool {
        let hex = |hash: [u8; 32]| blake3::Hash::from_bytes(hash).to_hex();
        hex(self.0.hash).as_str() == hash || self.0.old_hash.is_some_and(|old| hex(old).as_str() == hash)
    }

    pub(crate) fn hash_bytes(&self) -> [u8; 32] {
        self.0.hash
    }

    /// What the ids of a text depend on: raise the version when the same tokenizer gives other ids.
    pub(crate) fn encoding_key(&self) -> [u8; 32] {
        match &self.0.kind {
            Kind::Pipeline(pipeline) if !pipeline.is_plain() => {
                *blake3::hash(&[&self.0.hash[..], b"encoding 2"].concat()).as_bytes()
            }
            _ => self.0.hash,
        }
    }

    /// Writes the tokenizer: `tokenizer.json` of the Hugging Face library, or the characters as JSON.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        write_atomically(path, &[self.0.json.as_bytes()])
    }

    /// Reads what [`Tokenizer::save`] wrote, or any `tokenizer.json`.
    ///
    /// # Errors
    /// When the file is missing or is neither.
    pub fn load(path: &Path) -> Result<Self> {
        let json = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Self::from_json(&json, path)
    }

    /// Reads what [`Tokenizer::save`] wrote, or any `tokenizer.json`, from memory; `path` names it in errors.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        // Some editors put a byte order mark before everything.
        let json = json.strip_prefix(b"\xef\xbb\xbf").unwrap_or(json);
        if let Some(chars) = Chars::from_json(json) {
            let chars = chars.map_err(|message| Error::tokenizer_file(path, message, ""))?;
            return Ok(Self(Arc::new(Inner::from_chars(chars)), None));
        }
        let read = |json: &[u8]| -> Result<Inner, String> {
            let checked = tokenizer_json::check(json, &SPECIAL_NAMES)?;
            let pipeline = caught(|| tokenizers::Tokenizer::from_bytes(&checked.json))?;
            let mut inner = Self::open(pipeline.map_err(|e| e.to_string())?)?;
            let undo = |json: String, (new, old): &(String, String)| json.replacen(new, old, 1);
            let old = checked.undo.iter().fold(inner.json.clone(), undo);
            inner.old_hash = (!checked.undo.is_empty()).then(|| *blake3::hash(old.as_bytes()).as_bytes());
            inner.notes = checked.notes;
            inner.path = Some(path.to_path_buf());
            Ok(inner)
        };
        let inner = read(json).map_err(|message| {
            let hint = "give the `tokenizer.json` of the Hugging Face tokenizers library; \
                        Llama-3 BPE ranks go under `tokenizer: { llama3: { ranks: ... } }`";
            Error::tokenizer_file(path, message, hint)
        })?;
        Ok(Self(Arc::new(inner), None))
    }
}

impl Inner {
    fn new(kind: Kind, special: SpecialTokens, texts: Detokenizer, json: String) -> Self {
        let hash = *blake3::hash(json.as_bytes()).as_bytes();
        Self { kind, special, texts, json, hash, old_hash: None, path: None, notes: Vec::new() }
    }

    fn from_chars(chars: Chars) -> Self {
        let (special, texts, json) = (chars.special(), chars.token_table(), chars.to_json());
        Self::new(Kind::Chars(chars), special, texts, json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::byte_level;
    use tokenizers::AddedToken;
    use tokenizers::models::bpe::BPE;

    fn bytes_only() -> tokenizers::Tokenizer {
        byte_level::byte_pipeline(
            BPE::builder().vocab_and_merges(byte_level::byte_vocab(), vec![]).build().unwrap(),
        )
        .unwrap()
    }

    #[test]
    fn missing_special_tokens_are_appended() {
        let t = Tokenizer::from_pipeline(bytes_only()).unwrap();
        assert_eq!(t.special(), SpecialTokens { bos: 256, eos: 257, pad: 258 });
        assert_eq!(t.vocab_size(), 259);
    }

    #[test]
    fn named_special_tokens_are_found_and_pad_is_never_eos() {
        let mut p = bytes_only();
        p.add_special_tokens([AddedToken::from("</s>", true), AddedToken::from("<s>", true)]).unwrap();
        let t = Tokenizer::from_pipeline(p).unwrap();
        assert_eq!(t.special(), SpecialTokens { bos: 257, eos: 256, pad: 258 });
    }

    #[test]
    fn one_end_of_text_token_becomes_eos_and_the_others_get_ids_of_their_own() {
        let mut p = bytes_only();
        p.add_special_tokens([AddedToken::from("<|endoftext|>", true)]).unwrap();
        let t = Tokenizer::from_pipeline(p).unwrap();
        assert_eq!(t.special(), SpecialTokens { bos: 257, eos: 256, pad: 258 });
    }

    #[test]
    fn a_models_own_special_ids_replace_ours_and_ids_beyond_its_vocabulary_go() {
        let mut p = bytes_only();
        p.add_special_tokens([AddedToken::from("<|im_start|>", true), AddedToken::from("<|im_end|>", true)])
            .unwrap();
        let t = Tokenizer::from_pipeline(p).unwrap();
        assert_eq!((t.vocab_size(), t.special()), (260, SpecialTokens { bos: 258, eos: 257, pad: 259 }));
        let v = Vocabulary { size: 258, bos: 256, eos: 257, pad: 256 };
        let m = t.with_vocabulary(v).unwrap();
        assert_eq!((m.vocab_size(), m.special(), m.hash()), (258, v.special(), t.hash()));
        assert_eq!(m.encode("aé").unwrap(), t.encode("aé").unwrap());
    }

    #[test]
    fn a_vocabulary_that_does_not_fit_is_refused_with_every_reason() {
        let t = Tokenizer::from_pipeline(bytes_only()).unwrap();
        let v = Vocabulary { size: 300, bos: 97, eos: 257, pad: 300 };
        let problems = t.vocabulary_problems(v);
        assert_eq!(problems.len(), 3, "{problems:?}");
        let error = t.with_vocabulary(v).unwrap_err().to_string();
        assert!(error.contains("259 ids, the model 300") && error.contains("BOS 97 is the text"), "{error}");
        assert!(error.contains("PAD 300 is outside"), "{error}");
    }

    #[test]
    fn saving_and_loading_keeps_ids_and_hash() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        for t in [Tokenizer::from_pipeline(bytes_only()).unwrap(), Tokenizer::characters(["abc é"])] {
            t.save(&path).unwrap();
            let again = Tokenizer::load(&path).unwrap();
            assert_eq!((again.hash(), again.special()), (t.hash(), t.special()));
            assert_eq!(again.encode("abc ß\0é").unwrap(), t.encode("abc ß\0é").unwrap());
        }
    }

    #[test]
    fn text_that_looks_like_a_special_token_stays_text() {
        for t in [Tokenizer::from_pipeline(bytes_only()).unwrap(), Tokenizer::characters(["<|eos>"])] {
            let ids = t.encode("a<|eos|>b<|pad|>").unwrap();
            assert!(ids.iter().all(|id| !t.token_bytes(*id).is_empty()));
            assert_eq!(t.decode(&ids), "a<|eos|>b<|pad|>");
        }
    }

    #[test]
    fn special_and_unknown_ids_have_no_text() {
        let t = Tokenizer::from_pipeline(bytes_only()).unwrap();
        let mut ids = vec![t.special().bos];
        ids.extend(t.encode("é").unwrap());
        ids.extend([t.special().eos, t.special().pad, 999_999]);
        assert_eq!(t.decode(&ids), "é");
        assert_eq!(t.decode(&ids[..2]), "\u{fffd}", "half a character");
    }

    #[test]
    fn a_pipeline_that_adds_bos_does_not_add_it_here() {
        use tokenizers::processors::template::TemplateProcessing;
        let mut p = bytes_only();
        p.add_special_tokens([AddedToken::from("<s>", true)]).unwrap();
        let template = TemplateProcessing::builder()
            .try_single("<s> $A")
            .unwrap()
            .special_tokens(vec![("<s>", 256)])
            .build()
            .unwrap();
        p.with_post_processor(Some(template));
        assert_eq!(p.encode("a", true).unwrap().get_ids().len(), 2, "the template is at work");
        let t = Tokenizer::from_pipeline(p).unwrap();
        assert_eq!(t.encode("a").unwrap().len(), 1);
    }

    #[test]
    fn a_word_vocabulary_works_without_being_byte_exact() {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":{"type":"Whitespace"},"post_processor":null,"decoder":null,
            "model":{"type":"WordLevel","vocab":{"the":0,"cat":1,"[UNK]":2},"unk_token":"[UNK]"}}"#;
        let t = Tokenizer::from_pipeline(tokenizers::Tokenizer::from_bytes(json).unwrap()).unwrap();
        assert!(!t.is_byte_exact());
        assert_eq!(t.encode("the cat").unwrap(), [0, 1]);
        assert_eq!(t.decode(&[3, 0, 1, 4, 5]), "the cat");
        assert_eq!(t.vocab_size(), 6);
    }

    #[test]
    fn a_broken_file_is_named_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, "{\"model\": 3}").unwrap();
        let error = Tokenizer::load(&path).unwrap_err().told();
        assert!(error.contains("tokenizer.json") && error.contains("Hugging Face"), "{error}");
    }
}
