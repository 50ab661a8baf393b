//! A conversation in a record: where it says who speaks and what, and its text.
//!
//! A message is an object with `role` and `content`, or `from` and `value`; what else it has is not read. What its text
//! looks like is a matter of [`crate::chat`].

use std::path::Path;

use super::row::Wanted;
use crate::chat::{LossOn, Message, Rendered};
use crate::error::{Error, Result};

/// Names of the role, and of what was said.
pub(super) const NAMES: [(&str, &str); 2] = [("role", "content"), ("from", "value")];

/// What stands in the text's place.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Text(String),
    Messages(Vec<Message>),
}

impl Content {
    /// Its text; `place` is where it stands in the file.
    ///
    /// # Errors
    /// A conversation that has none; a text where answers alone count.
    pub(super) fn render(self, wanted: &Wanted, path: &Path, place: &str) -> Result<Rendered> {
        let rendered = match self {
            Self::Messages(messages) => wanted.conversations.render(&messages),
            Self::Text(_) if wanted.conversations.loss_on == LossOn::Answers => {
                Err(format!("`{}` is a text, which has no answers", wanted.column()))
            }
            Self::Text(text) => Ok(Rendered { text, answers: None }),
        };
        rendered.map_err(|what| Error::Conversation { path: path.to_owned(), place: place.to_owned(), what })
    }
}
