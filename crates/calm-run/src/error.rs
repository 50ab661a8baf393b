//! What can stop a run, with a remedy.

use std::path::{Path, PathBuf};

use calm_eval::protocol::ProtocolError;

use crate::stage::Stage;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What can stop a run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file system said no.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// `read`, `write`, `create`.
        verb: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Text, tokenizer or batches.
    #[error(transparent)]
    Data(#[from] calm_data::Error),
    /// A weight file.
    #[error(transparent)]
    Weights(#[from] calm_nn::WeightsError),
    /// A tensor operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// The configuration.
    #[error(transparent)]
    Config(#[from] calm_config::ConfigErrors),
    /// Loss or gradient stopped being a number.
    #[error("{stage}: {what} is {value} at step {step}; nothing of this step was saved{}", kept(*good, *best))]
    NotFinite {
        /// Stage.
        stage: Stage,
        /// `the training loss`, `the validation loss` or `the gradient norm`.
        what: &'static str,
        /// NaN or infinite.
        value: f64,
        /// Step.
        step: u64,
        /// The last checkpoint before it, from which `--resume` goes on.
        good: Option<u64>,
        /// The one with the lowest validation loss.
        best: Option<u64>,
    },
    /// Asked to stop; a checkpoint was written.
    #[error("stopped at step {step} of stage {stage}; a checkpoint was written")]
    Interrupted {
        /// Stage.
        stage: Stage,
        /// Steps done.
        step: u64,
    },
    /// Asked to stop between the parts of a long work.
    #[error("stopped; what was finished so far is kept")]
    Stopped,
    /// Positions that cannot be scored.
    #[error(transparent)]
    Protocol(Box<ProtocolError>),
    /// Anything else a user can mend.
    #[error("{what}")]
    User {
        /// What is wrong and where.
        what: String,
        /// What to do; empty where that is not known.
        remedy: String,
    },
}

/// Which checkpoints are good.
fn kept(good: Option<u64>, best: Option<u64>) -> String {
    match (good, best.filter(|best| Some(*best) != good)) {
        (None, _) => "; there is no good checkpoint before it".into(),
        (Some(good), None) => format!("; the checkpoint of step {good} is good"),
        (Some(good), Some(best)) => format!("; the checkpoints of steps {good} and {best} (best) are good"),
    }
}

/// What to do about a full disk.
const FULL: &str = "free some disk space and run again with --resume; what was saved before is whole";

impl Error {
    /// A mistake with its remedy.
    pub fn user(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::User { what: what.into(), remedy: remedy.into() }
    }

    /// A failed file operation.
    pub fn io(verb: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { verb, path: path.to_owned(), source }
    }

    /// Whether it says that a file is not what was written: not that the file system did not answer.
    pub fn is_damage(&self) -> bool {
        use std::io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
        match self {
            Self::Io { source, .. } => matches!(source.kind(), InvalidData | NotFound | UnexpectedEof),
            _ => true,
        }
    }

    /// Whether somebody asked for it: no failure.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Interrupted { .. } | Self::Stopped)
    }

    /// What the user can do about it, if we know.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::User { remedy, .. } => Some(remedy.clone()).filter(|remedy| !remedy.is_empty()),
            Self::Data(e) => e.remedy(),
            Self::Protocol(e) => e.remedy(),
            Self::Weights(calm_nn::WeightsError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                Some(FULL.into())
            }
            Self::Weights(e) => e.remedy().map(str::to_owned),
            Self::NotFinite { stage, good, .. } => Some(match good {
                Some(step) => format!(
                    "lower the learning rate (--set train.{stage}.learning_rate=...) and go on with --resume from step \
                     {step}; or --set train.{stage}.divergence.action=skip (or rollback) leaves such steps out"
                ),
                None => format!(
                    "lower the learning rate or lengthen the warm-up (--set train.{stage}.learning_rate=...) and begin \
                     anew with --restart"
                ),
            }),
            Self::Interrupted { .. } => Some("run the same command with --resume to go on".into()),
            Self::Stopped => Some("run the same command again to go on".into()),
            Self::Io { verb, source, .. } => match source.kind() {
                std::io::ErrorKind::PermissionDenied => {
                    Some("check the permissions, or choose another folder with --out".into())
                }
                std::io::ErrorKind::StorageFull => Some(FULL.into()),
                std::io::ErrorKind::NotFound => {
                    Some("check the path; the file may have been moved or deleted".into())
                }
                _ if *verb != "read" => Some("check the path, or choose another folder with --out".into()),
                _ => None,
            },
            Self::Tensor(_) | Self::Config(_) => None,
        }
    }
}

impl From<ProtocolError> for Error {
    fn from(e: ProtocolError) -> Self {
        match e {
            ProtocolError::Data(e) => e.into(),
            e => Self::Protocol(Box::new(e)),
        }
    }
}
