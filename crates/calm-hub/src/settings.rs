//! Where the hub is, who asks, and where its files are kept: by the variables that its own tools read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Result};

/// The hub that is asked if nobody says another.
const HUB: &str = "https://huggingface.co";

/// A secret. It is shown to the hub alone, and never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// A token; none if it is empty.
    ///
    /// # Errors
    /// It holds signs that no token has.
    pub fn new(text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            let what = "the token holds spaces or signs that no token has".to_owned();
            return Err(Error::Setting { variable: "HF_TOKEN", what });
        }
        Ok(Some(Self(text.to_owned())))
    }

    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// A text without it.
    pub(crate) fn hidden_in(&self, text: &str) -> String {
        text.replace(&self.0, "(the token)")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(...)")
    }
}

/// How long is waited, and how often something is tried again.
#[derive(Clone, Debug)]
pub struct Patience {
    /// Tries in a row of which none brought anything new.
    pub tries: u32,
    /// The first pause; each further one is twice as long.
    pub pause: Duration,
    /// The longest pause, also if the hub asks for more.
    pub longest: Duration,
    /// After so long without a byte a connection is given up.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 6,
            pause: Duration::from_secs(1),
            longest: Duration::from_secs(300),
            silence: Duration::from_secs(30),
        }
    }
}

/// Where the hub is, who asks, and where its files are kept.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// The folder of repositories.
    pub cache: PathBuf,
    /// Who asks.
    pub token: Option<Token>,
    /// Nothing is fetched.
    pub offline: bool,
    /// How long is waited, and how often.
    pub patience: Patience,
    /// Whether HTTPS_PROXY and the like are followed.
    pub proxy: bool,
}

impl Settings {
    /// By `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `XDG_CACHE_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`
    /// (and `HF_DATASETS_OFFLINE`) and the file that `hf auth login` writes, as the hub's own tools read them. A
    /// variable that is set to nothing is not set.
    ///
    /// # Errors
    /// A value cannot be used.
    pub fn from_environment() -> Result<Self> {
        Self::from_variables(&|name| std::env::var(name).ok(), std::env::home_dir().as_deref())
    }

    fn from_variables(get: &dyn Fn(&str) -> Option<String>, home: Option<&Path>) -> Result<Self> {
        let variable = |name: &str| get(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| variable(name).map(|value| at_home(&value, home));
        let hf_home = path("HF_HOME").or_else(|| {
            let cache = path("XDG_CACHE_HOME").or_else(|| Some(home?.join(".cache")));
            cache.map(|cache| cache.join("huggingface"))
        });
        let hf_home = hf_home.unwrap_or_else(|| PathBuf::from("huggingface"));
        let token = match variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")) {
            Some(token) => Some(token),
            None => {
                let file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
                std::fs::read_to_string(file).ok()
            }
        };
        let no_token = variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_yes(&v));
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let offline = ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"];
        Ok(Self {
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned()),
            cache: cache.unwrap_or_else(|| hf_home.join("hub")),
            token: match token {
                Some(token) if !no_token => Token::new(&token)?,
                _ => None,
            },
            offline: offline.iter().any(|name| variable(name).is_some_and(|v| is_yes(&v))),
            patience: Patience::default(),
            proxy: true,
        })
    }
}

/// As the hub's own tools read a switch.
fn is_yes(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.trim().to_lowercase().as_str())
}

fn at_home(path: &str, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~/"), home) {
        (Some(below), Some(home)) => home.join(below),
        _ => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Settings {
        let get = |name: &str| pairs.iter().find(|p| p.0 == name).map(|p| p.1.to_owned());
        Settings::from_variables(&get, Some(Path::new("/home/me"))).unwrap()
    }

    #[test]
    fn the_variables_are_those_of_the_hubs_own_tools() {
        let plain = from(&[("HF_HOME", ""), ("HF_HUB_OFFLINE", "0")]);
        assert_eq!(plain.endpoint, "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert!(plain.token.is_none() && !plain.offline);
        let set = from(&[
            ("HF_HOME", "~/hf"),
            ("HF_ENDPOINT", "http://mirror"),
            ("HF_TOKEN", " hf_x\n"),
            ("HF_HUB_OFFLINE", "TRUE"),
        ]);
        assert_eq!(
            (set.cache.as_path(), set.endpoint.as_str()),
            (Path::new("/home/me/hf/hub"), "http://mirror")
        );
        assert!(set.offline && set.token.is_some());
        assert_eq!(from(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]).cache, Path::new("/c"));
        assert_eq!(from(&[("XDG_CACHE_HOME", "/x")]).cache, Path::new("/x/huggingface/hub"));
        assert!(from(&[("HF_TOKEN", "a"), ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]).token.is_none());
    }

    #[test]
    fn a_token_is_read_from_the_file_of_the_login_and_never_printed() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "hf_secret\n").unwrap();
        let settings = from(&[("HF_HOME", home.path().to_str().unwrap())]);
        assert_eq!(settings.token.as_ref().unwrap().header(), "Bearer hf_secret");
        assert!(!format!("{settings:?}").contains("secret"));
        let error = Token::new("hf_secret\nX-Header: 1").unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("HF_TOKEN"), "{error}");
    }
}
