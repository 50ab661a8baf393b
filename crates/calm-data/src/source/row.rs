//! What is wanted of a record or a row, and what was found.

use super::settings::{Filter, TEXT, Value};
use crate::chat::{Conversations, Rendered};

/// The places of a record that are read; a place is the names that lead to it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wanted {
    /// Of the text.
    pub(super) text: Vec<String>,
    /// Of the fields that a filter looks at, in its order.
    pub(super) fields: Vec<Vec<String>>,
    /// How a conversation in the text's place is read.
    pub(super) conversations: Conversations,
}

impl Wanted {
    pub(super) fn new(column: Option<&str>, filter: &Filter, conversations: Conversations) -> Self {
        let place = |name: &str| name.split('.').map(str::to_owned).collect();
        Self {
            text: place(column.unwrap_or(TEXT)),
            fields: filter.field.keys().map(|name| place(name)).collect(),
            conversations,
        }
    }

    /// The name of the text's place.
    pub(super) fn column(&self) -> String {
        self.text.join(".")
    }
}

/// A document with the fields that a filter looks at.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row {
    /// Where it stands in its file.
    pub(super) id: String,
    pub(super) text: Rendered,
    pub(super) fields: Vec<Option<Value>>,
}

impl Row {
    /// A text without fields.
    pub(super) fn of_text(id: String, text: String) -> Self {
        Self { id, text: Rendered { text, answers: None }, fields: Vec::new() }
    }
}
