//! The stages of training.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A stage of training. Its name is that of its folder in a run, of its block under `train` and of its metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Stage 1 of a CALM.
    Autoencoder,
    /// The language model: stage 2 of a CALM, the only one of a baseline.
    Lm,
}

impl Stage {
    /// All, in the order in which they are trained.
    pub const ALL: [Self; 2] = [Self::Autoencoder, Self::Lm];

    /// `autoencoder` or `lm`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Autoencoder => "autoencoder",
            Self::Lm => "lm",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Stage {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|stage| stage.name() == name)
            .ok_or_else(|| Error::user(format!("there is no stage `{name}`"), "take `autoencoder` or `lm`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_has_one_name_everywhere() {
        for stage in Stage::ALL {
            assert_eq!(stage.to_string().parse::<Stage>().unwrap(), stage);
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.name());
            assert_eq!(serde_json::from_value::<Stage>(stage.name().into()).unwrap(), stage);
        }
        let wrong = "encoder".parse::<Stage>().unwrap_err();
        assert!(wrong.to_string().contains("encoder"));
        assert!(wrong.remedy().is_some_and(|r| r.contains("`lm`")));
    }
}
