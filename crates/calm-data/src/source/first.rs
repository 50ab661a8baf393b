//! The first documents of a text: no more of it is read, or fetched, than they need.

use super::documents::{Documents, Found, Input, Text};
use crate::document::Document;
use crate::error::Result;

/// A text up to a document.
pub(crate) struct First {
    text: Box<dyn Text>,
    documents: usize,
}

impl First {
    pub(crate) fn new(text: Box<dyn Text>, documents: usize) -> Self {
        Self { text, documents }
    }
}

impl Text for First {
    fn inputs(&self) -> &[Input] {
        self.text.inputs()
    }

    fn read(&self) -> Result<Box<dyn Documents + '_>> {
        Ok(Box::new(Beginning { documents: self.text.read()?, left: self.documents }))
    }
}

struct Beginning<'a> {
    documents: Box<dyn Documents + 'a>,
    left: usize,
}

impl Iterator for Beginning<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        self.documents.next()
    }
}

impl Documents for Beginning<'_> {
    fn read_bytes(&self) -> u64 {
        self.documents.read_bytes()
    }

    fn found(&self) -> Found {
        self.documents.found()
    }
}
