//! Errors with a remedy.

/// A message and what to do about it.
#[derive(Debug)]
pub struct Hinted {
    message: String,
    /// The remedy; may be empty.
    pub hint: String,
}

impl Hinted {
    /// A message with its remedy.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// The remedy of any error of ours.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    for cause in error.chain() {
        if let Some(h) = cause.downcast_ref::<Hinted>() {
            return Some(h.hint.clone()).filter(|h| !h.is_empty());
        }
        if let Some(e) = cause.downcast_ref::<calm_train::Error>() {
            return e.hint();
        }
    }
    None
}
