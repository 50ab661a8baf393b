//! Configuration: typed, checked as a whole, with the place of every mistake.

pub mod load;
pub mod locate;
mod run;

pub use load::{ConfigErrors, ConfigText, Problems, Resolved, Validate, load};
pub use run::{
    BaselineConfig, CalmConfig, EvalConfig, ModelConfig, RunConfig, SCHEMA_VERSION, Schedule, StageConfig,
    TrainConfig,
};
