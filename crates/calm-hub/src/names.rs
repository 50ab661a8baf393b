//! Names that go into addresses and paths. What a hub says becomes a path on this disk, so that none of it is believed.

use std::fmt;

use crate::error::{Error, Result};

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A data set.
    Dataset,
    /// A model.
    Model,
}

/// A repository of a hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    kind: Kind,
    name: String,
}

impl Repository {
    /// `OWNER/NAME`; a few old ones have no owner.
    ///
    /// # Errors
    /// It is no such name.
    pub fn new(kind: Kind, name: &str) -> Result<Self> {
        let part = |part: &str| {
            let sign = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && part.len() <= 96 && part.chars().all(sign) && !part.starts_with(['.', '-'])
        };
        if name.split('/').count() <= 2
            && name.split('/').all(part)
            && !name.contains("..")
            && !name.contains("--")
        {
            return Ok(Self { kind, name: name.to_owned() });
        }
        Err(Error::Name {
            what: format!("`{name}` is no name of a repository"),
            remedy: "write OWNER/NAME, as it stands in the address of its page",
        })
    }

    /// `OWNER/NAME`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What stands before the name in an address of the API.
    pub(crate) fn api(&self) -> &'static str {
        match self.kind {
            Kind::Dataset => "api/datasets",
            Kind::Model => "api/models",
        }
    }

    /// What stands before the name in the address of a file.
    pub(crate) fn files(&self) -> &'static str {
        match self.kind {
            Kind::Dataset => "datasets/",
            Kind::Model => "",
        }
    }

    /// Its folder in a cache.
    pub(crate) fn folder(&self) -> String {
        let kind = match self.kind {
            Kind::Dataset => "datasets",
            Kind::Model => "models",
        };
        format!("{kind}--{}", self.name.replace('/', "--"))
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            Kind::Dataset => write!(f, "the data set {}", self.name),
            Kind::Model => write!(f, "the model {}", self.name),
        }
    }
}

/// Whether this is the full name of a commit, which never changes.
pub(crate) fn is_commit(revision: &str) -> bool {
    is_hex(revision, 40)
}

pub(crate) fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a path of a repository leads to a place below the folder that it is put in.
pub(crate) fn is_below(path: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != "..";
    let sign = |c: char| !c.is_control() && c != '\\' && c != ':';
    path.len() <= 1024 && path.split('/').all(part) && path.chars().all(sign)
}

pub(crate) fn check_revision(revision: &str) -> Result<()> {
    if is_below(revision) && !revision.contains(char::is_whitespace) {
        return Ok(());
    }
    Err(Error::Name {
        what: format!("`{revision}` is no name of a revision"),
        remedy: "write a branch such as `main`, a tag, or the 40 letters of a commit",
    })
}

/// A path inside an address; its `/` are kept or written as `%2F`.
pub(crate) fn encode(path: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (keep_slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_lead_elsewhere_are_refused() {
        for name in ["a/b", "wikitext", "Salesforce/wikitext", "a.b/c_d-e"] {
            assert_eq!(Repository::new(Kind::Dataset, name).unwrap().name(), name);
        }
        for name in
            ["", "/", "a/", "/b", "a/b/c", "../b", "a/..", "a b", "a/b?x", ".a/b", "a--b/c", "a/b#", "é/b"]
        {
            assert!(Repository::new(Kind::Model, name).is_err(), "{name}");
        }
        for revision in ["main", "v1.0", "refs/convert/parquet"] {
            assert!(check_revision(revision).is_ok());
        }
        for revision in ["", "../main", "a//b", "/a", "a b", "a\n", "a\\b"] {
            assert!(check_revision(revision).is_err(), "{revision:?}");
        }
        assert!(is_below("data/train-00000-of-00002.parquet") && is_below("a b/é"));
        assert!(
            !is_below("data/../../x") && !is_below("/etc/passwd") && !is_below("c:/x") && !is_below("a/")
        );
    }

    #[test]
    fn addresses_hold_no_foreign_signs() {
        assert_eq!(encode("refs/convert/parquet", false), "refs%2Fconvert%2Fparquet");
        assert_eq!(encode("a b/é#?.txt", true), "a%20b/%C3%A9%23%3F.txt");
    }
}
