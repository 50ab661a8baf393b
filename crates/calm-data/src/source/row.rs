//! What is wanted of a record or a row, and what was found.

use super::settings::{Filter, TEXT, Value};

/// The places of a record that are read; a place is the names that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Of the text.
    pub(super) text: Vec<String>,
    /// Of the fields that a filter looks at, in its order.
    pub(super) fields: Vec<Vec<String>>,
}

impl Wanted {
    pub(super) fn new(column: Option<&str>, filter: &Filter) -> Self {
        let place = |name: &str| name.split('.').map(str::to_owned).collect();
        Self {
            text: place(column.unwrap_or(TEXT)),
            fields: filter.field.keys().map(|name| place(name)).collect(),
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
    pub(super) text: String,
    pub(super) fields: Vec<Option<Value>>,
}
