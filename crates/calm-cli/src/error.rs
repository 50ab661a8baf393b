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

/// Takes the remedy out of a message that carries it (`what is wrong; what to do`), so that every remedy is
/// shown in the same way.
pub fn apart(error: anyhow::Error) -> anyhow::Error {
    use calm_run::Error;
    let text = match error.chain().next().and_then(|e| e.downcast_ref::<Error>()) {
        // These two list several things that are wrong.
        Some(Error::Data(calm_data::Error::Tokenizer(_) | calm_data::Error::Layout(_))) => None,
        Some(Error::Data(e)) => Some(e.to_string()),
        Some(Error::Weights(e @ calm_nn::WeightsError::Malformed { .. })) => Some(e.to_string()),
        _ => match error.chain().next().and_then(|e| e.downcast_ref::<calm_data::Error>()) {
            Some(calm_data::Error::Tokenizer(_) | calm_data::Error::Layout(_)) | None => None,
            Some(e) => Some(e.to_string()),
        },
    };
    match text.as_deref().and_then(|t| t.split_once("; ")) {
        Some((what, remedy)) => Hinted::new(what, remedy).into(),
        None => error,
    }
}

/// The remedy of any error of ours.
pub fn hint(error: &anyhow::Error) -> Option<String> {
    for cause in error.chain() {
        if let Some(h) = cause.downcast_ref::<Hinted>() {
            return Some(h.hint.clone()).filter(|h| !h.is_empty());
        }
        if let Some(e) = cause.downcast_ref::<calm_run::Error>() {
            return e.hint();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remedy_inside_a_message_is_shown_as_a_hint() {
        let missing = || calm_data::Error::Missing { path: "a.txt".into() };
        for e in [missing().into(), calm_run::Error::from(missing()).into()] {
            let e = apart(e);
            assert_eq!(e.to_string(), "a.txt: no such file or folder");
            assert!(hint(&e).is_some_and(|h| h.starts_with("check the path")));
        }
        let list = "it does not fit: a; b";
        let e = apart(calm_data::Error::Tokenizer(list.into()).into());
        assert!(e.to_string().ends_with(list));
        assert_eq!(apart(anyhow::anyhow!("a; b")).to_string(), "a; b");
    }
}
