//! Settings of the baseline.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::BackboneConfig;

/// A discrete language model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BaselineConfig {
    /// The transformer.
    pub backbone: BackboneConfig,
}
