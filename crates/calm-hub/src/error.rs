//! What can go wrong between here and a hub: each message says what and where, and [`Error::remedy`] what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error about a hub or what is kept of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that cannot be one.
    #[error("{what}")]
    Name {
        /// Which, and of what.
        what: String,
        /// What to write instead.
        remedy: &'static str,
    },
    /// A setting that cannot be used.
    #[error("{variable}: {what}")]
    Setting {
        /// The variable of the environment.
        variable: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// Something that the hub does not have.
    #[error("{host} does not have {what}")]
    NotFound {
        /// The hub.
        host: String,
        /// What was asked for.
        what: String,
        /// Whether a token was shown.
        with_token: bool,
    },
    /// Something that may not be read.
    #[error("{host} does not give {what}: {reason}")]
    Denied {
        /// The hub.
        host: String,
        /// What was asked for.
        what: String,
        /// What it said.
        reason: String,
        /// Whether a token was shown.
        with_token: bool,
    },
    /// Something that may not be written.
    #[error("{host} does not accept {what}: {reason}")]
    Refused {
        /// The hub.
        host: String,
        /// What was sent.
        what: String,
        /// What it said.
        reason: String,
        /// Whether another token may do better.
        of_token: bool,
    },
    /// Something is asked that needs a token, and there is none.
    #[error("{what} needs a token")]
    NoToken {
        /// What needs one.
        what: String,
    },
    /// A repository that holds something already, which would go.
    #[error("{repository} holds other files already: {files}")]
    Exists {
        /// Which.
        repository: String,
        /// Which files, shortened.
        files: String,
    },
    /// Somebody else changed a repository at the same time.
    #[error("{repository} was changed by somebody else meanwhile")]
    Changed {
        /// Which.
        repository: String,
    },
    /// A file that is to be sent cannot be read.
    #[error("{path}: cannot be read: {source}", path = path.display())]
    Local {
        /// Which.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A hub that asks for a long pause.
    #[error("{host} answers too many requests, and asks to wait for {} s", wait.as_secs())]
    Busy {
        /// The hub.
        host: String,
        /// For how long.
        wait: Duration,
    },
    /// An answer that is an error.
    #[error("{host} answered {status} when asked for {what}")]
    Status {
        /// Who answered.
        host: String,
        /// The number.
        status: u16,
        /// What was asked for.
        what: String,
    },
    /// A hub that cannot be reached, or breaks off.
    #[error("{host} could not be reached: {reason}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What the system said.
        reason: String,
    },
    /// An answer that cannot be what was asked for.
    #[error("{host} gave a wrong answer about {what}: {problem}")]
    Answer {
        /// Who answered.
        host: String,
        /// What was asked for.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that is not what the hub said that it is.
    #[error("{file} of {repository} is damaged: its {what} is {found}, and should be {expected}")]
    Content {
        /// Its path.
        file: String,
        /// Where it is from.
        repository: String,
        /// `SHA-256` and the like.
        what: &'static str,
        /// What came.
        found: String,
        /// What the hub promised.
        expected: String,
    },
    /// Something that is not in the cache while the network may not be used.
    #[error("{what} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it")]
    Offline {
        /// What was asked for.
        what: String,
    },
    /// A failure of the operating system in the cache.
    #[error("{path}: cannot keep what was fetched: {source}", path = path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Whoever watches said to stop.
    #[error("stopped")]
    Stopped,
}

impl Error {
    pub(crate) fn cache(path: &Path, source: io::Error) -> Self {
        Self::Cache { path: path.to_owned(), source }
    }

    /// What to do about it.
    pub fn remedy(&self) -> Option<String> {
        let fixed = match self {
            Self::Name { remedy, .. } => remedy,
            Self::Setting { .. } => "unset it, or give it a value as the hub's documentation says",
            Self::NotFound { with_token: true, .. } => {
                "check the name on the hub's page; if it is private, the token in HF_TOKEN must be of somebody who may \
                 read it"
            }
            Self::NotFound { .. } => {
                "check the name on the hub's page; if it is private, set HF_TOKEN to a token that may read it"
            }
            Self::Denied { with_token: true, .. } => {
                "accept its conditions on the hub's page with the account whose token is in HF_TOKEN, or set another \
                 token"
            }
            Self::Denied { .. } => {
                "accept its conditions on the hub's page, and set HF_TOKEN to a token of that account"
            }
            Self::Refused { of_token: false, .. } => "mend what it names, and push again",
            Self::Refused { .. } => {
                "HF_TOKEN must hold a token of somebody who may write there, made with the right to write"
            }
            Self::NoToken { .. } => {
                "make one that may write in the settings of your account there, and set HF_TOKEN to it"
            }
            Self::Exists { .. } => {
                "name another repository, or give --replace: the hub's history keeps what was there"
            }
            Self::Changed { .. } => "look at what is there now, and start again: what was sent is kept",
            Self::Local { .. } => "check the file, and start again",
            Self::Busy { .. } => {
                "start again later: what came through is kept; a token in HF_TOKEN may be given more requests"
            }
            Self::Status { .. } => "start again later: what came through is kept",
            Self::Unreachable { .. } => {
                "check the network (HF_ENDPOINT, HTTPS_PROXY) and start again: what came through is kept; \
                 HF_HUB_OFFLINE=1 uses only that"
            }
            Self::Answer { .. } => {
                "start again later; if HF_ENDPOINT names a mirror or a proxy stands between, try without it"
            }
            Self::Content { .. } => {
                "start again, it is fetched anew; if HF_ENDPOINT names a mirror, try without it"
            }
            Self::Offline { .. } => {
                "unset HF_HUB_OFFLINE to fetch it, or set HF_HOME to the folder where it was downloaded"
            }
            Self::Cache { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free some space, or set HF_HOME to a folder on another disk: what came through is kept"
            }
            Self::Cache { .. } => "set HF_HOME to a folder that can be written",
            Self::Stopped => "start again: what came through is kept",
        };
        Some(fixed.to_owned())
    }
}
