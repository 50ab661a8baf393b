//! Documents as tokens, and which of these count.
//!
//! Where answers alone count, an answer and what stands between two of them are encoded each by itself: its tokens then
//! are the same whatever stands before it, none belongs to both, and a text that is to be answered ends with the token
//! after which the answer began in training.

use std::ops::Range;

use crate::chat::Rendered;
use crate::document::Document;
use crate::error::Result;
use crate::tokenizer::Tokenizer;

/// The tokens of a document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) ids: Vec<u32>,
    /// Bytes of its text.
    pub(crate) bytes: u64,
    /// Tokens that count, where not all do; ascending.
    pub(crate) counting: Vec<Range<usize>>,
}

/// Pieces of a text that are encoded each by itself, and whether they count.
fn pieces<'a>(text: &'a str, answers: Option<&[Range<usize>]>) -> Vec<(&'a str, bool)> {
    let Some(answers) = answers else { return vec![(text, true)] };
    let (mut pieces, mut at) = (Vec::new(), 0);
    for answer in answers {
        pieces.push((&text[at..answer.start], false));
        pieces.push((&text[answer.clone()], true));
        at = answer.end;
    }
    pieces.push((&text[at..], false));
    pieces.retain(|(piece, _)| !piece.is_empty());
    pieces
}

/// Text in a piece of parallel work. Fixed, so that nothing depends on the number of threads.
const GROUP_BYTES: usize = 256 << 10;

/// Documents in groups of about [`GROUP_BYTES`].
pub(crate) fn groups<'a, 'b>(documents: &'a [(usize, &'b Document)]) -> Vec<&'a [(usize, &'b Document)]> {
    let mut groups = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, (_, document)) in documents.iter().enumerate() {
        size += document.text.len();
        if size >= GROUP_BYTES || i + 1 == documents.len() {
            groups.push(&documents[start..=i]);
            (start, size) = (i + 1, 0);
        }
    }
    groups
}

/// Tokens of several documents, on this thread.
///
/// # Errors
/// As [`Tokenizer::encode_all`].
pub(crate) fn encode(tokenizer: &Tokenizer, documents: &[&Document]) -> Result<Vec<Encoded>> {
    let divided: Vec<_> = documents.iter().map(|d| pieces(&d.text, d.answers.as_deref())).collect();
    let texts: Vec<&str> = divided.iter().flatten().map(|(text, _)| *text).collect();
    let mut encoded = tokenizer.encode_all(&texts)?.into_iter();
    let mut out = Vec::with_capacity(documents.len());
    for (document, pieces) in documents.iter().zip(divided) {
        let mut of = Encoded { bytes: document.text.len() as u64, ..Encoded::default() };
        for ((_, counts), ids) in pieces.into_iter().zip(&mut encoded) {
            let start = of.ids.len();
            // The first piece may be all of it.
            if start == 0 {
                of.ids = ids
            } else {
                of.ids.extend(ids)
            }
            if counts && document.answers.is_some() {
                of.counting.push(start..of.ids.len());
            }
        }
        out.push(of);
    }
    Ok(out)
}

impl Tokenizer {
    /// Ids of a conversation, as its documents are encoded to train on.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_conversation(&self, conversation: &Rendered) -> Result<Vec<u32>> {
        let pieces = pieces(&conversation.text, conversation.answers.as_deref());
        let texts: Vec<&str> = pieces.into_iter().map(|(text, _)| text).collect();
        Ok(self.encode_all(&texts)?.concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::{Conversations, LossOn, Message, Template};

    #[test]
    fn tokens_of_answers_count_and_a_prompt_is_the_beginning_of_what_follows() {
        let conversations = Conversations { template: Template::default(), loss_on: LossOn::Answers };
        let talk: Vec<Message> = [("user", "ab"), ("assistant", "cab"), ("user", "b"), ("assistant", "")]
            .map(|(role, content)| Message::new(role, content))
            .to_vec();
        let whole = conversations.render(&talk).unwrap();
        let tokenizer = Tokenizer::characters([whole.text.as_str()]);
        let document = Document { id: "a".into(), text: whole.text.clone(), answers: whole.answers.clone() };
        let plain = Document::new("b", "abc");
        let found = encode(&tokenizer, &[&document, &plain, &document]).unwrap();
        assert_eq!(found[0], found[2]);
        assert_eq!((found[1].ids.len(), found[1].bytes), (3, 3));
        assert!(found[1].counting.is_empty());
        let said: Vec<String> =
            found[0].counting.iter().map(|range| tokenizer.decode(&found[0].ids[range.clone()])).collect();
        assert_eq!(said, ["cab<|im_end|>\n", "<|im_end|>\n"]);
        assert_eq!(tokenizer.decode(&found[0].ids), whole.text);
        for turns in [1, 3] {
            let prompt =
                tokenizer.encode_conversation(&conversations.prompt(&talk[..turns]).unwrap()).unwrap();
            assert_eq!(prompt, found[0].ids[..prompt.len()]);
            assert_eq!(found[0].counting[turns / 2].start, prompt.len());
        }
    }
}
