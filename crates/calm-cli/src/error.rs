//! Errors with a remedy.

/// A message and what to do about it.
#[derive(Debug)]
pub struct Hinted {
    what: String,
    /// The remedy; may be empty.
    pub remedy: String,
}

impl Hinted {
    /// A message with its remedy.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

impl std::fmt::Display for Hinted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Hinted {}

/// The remedy of any error of ours.
pub fn remedy(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(hinted) = cause.downcast_ref::<Hinted>() {
            return Some(hinted.remedy.clone()).filter(|remedy| !remedy.is_empty());
        }
        if let Some(e) = cause.downcast_ref::<calm_run::Error>() {
            return e.remedy();
        }
        if let Some(e) = cause.downcast_ref::<calm_lossless::Error>() {
            return e.remedy();
        }
        #[cfg(feature = "hub")]
        if let Some(e) = cause.downcast_ref::<calm_hub::Error>() {
            return e.remedy();
        }
        cause.downcast_ref::<calm_data::Error>().and_then(calm_data::Error::remedy)
    })
}

/// Whether an error says that somebody asked to stop.
pub fn is_stop(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<calm_run::Error>().is_some_and(calm_run::Error::is_stop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_and_its_remedy_are_told_apart() {
        let missing = || calm_data::Error::Missing { path: "a.txt".into() };
        for e in [missing().into(), calm_run::Error::from(missing()).into()] {
            let e: anyhow::Error = e;
            assert_eq!(e.to_string(), "a.txt: no such file or folder");
            assert!(remedy(&e).is_some_and(|r| r.starts_with("check the path")));
        }
        let hinted: anyhow::Error = Hinted::new("a; b", "c").into();
        assert_eq!((hinted.to_string(), remedy(&hinted)), ("a; b".into(), Some("c".into())));
        assert_eq!(remedy(&anyhow::anyhow!("a; b")), None);
    }
}
