//! The plan of a run on many GPUs: the rows of each, and what a step is expected to take
//! ([`calm_parallel::forecast`]).

use calm_parallel::forecast::{Cluster, Forecast, Work};
use calm_run::Stage;
use calm_run::config::RunConfig;
use calm_run::{Error, Result};
use serde::Serialize;

use crate::memory;
use crate::overlap::PIECES;

/// The share of a step in which GPUs should compute.
pub const WORTH: f64 = 0.9;

/// A run on a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct ClusterPlan {
    /// Where.
    pub cluster: Cluster,
    /// Its stages.
    pub stages: Vec<StageOnCluster>,
}

/// A stage on a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct StageOnCluster {
    /// Which.
    pub stage: Stage,
    /// Rows of a step on one GPU.
    pub rows: usize,
    /// Of these, at a time.
    pub micro_rows: usize,
    /// Tokens of a step, all GPUs together.
    pub tokens: f64,
    /// A step.
    pub forecast: Forecast,
    /// All steps, seconds.
    pub seconds: f64,
    /// Tokens of a step from which on GPUs compute in [`WORTH`] of it; null if the exchange alone takes more.
    pub least_tokens: Option<f64>,
}

impl ClusterPlan {
    /// Of a run with a vocabulary of `vocab`: the batch stays as it is configured and is shared out evenly; as many rows
    /// at a time as are configured.
    ///
    /// # Errors
    /// Rows that cannot be shared out evenly; GPUs that do not fill their nodes.
    pub fn new(config: &RunConfig, vocab: usize, cluster: Cluster) -> Result<Self> {
        let Cluster { world, gpus_per_node, .. } = cluster;
        if world > gpus_per_node && !world.is_multiple_of(gpus_per_node) {
            return Err(Error::user(
                format!("{world} GPUs do not fill nodes of {gpus_per_node}"),
                format!("say --world {}, or another --gpus-per-node", world.next_multiple_of(gpus_per_node)),
            ));
        }
        let mut stages = Vec::new();
        for stage in Stage::ALL {
            let Some(settings) = config.train.stage(stage) else { continue };
            let batch = settings.batch_rows;
            if !batch.is_multiple_of(world) {
                let key = format!("train.{}.batch_rows", stage.name());
                return Err(Error::user(
                    format!(
                        "the {batch} rows of a step of stage {stage} cannot be shared out evenly over {world} GPUs"
                    ),
                    format!("say --set {key}={}, or another --world", batch.next_multiple_of(world)),
                ));
            }
            let rows = batch / world;
            let micro_rows = memory::micro_rows(settings).min(rows);
            let (model, k) = (&config.model, config.chunk_size());
            let (flops, parameters) = match (stage, model.autoencoder()) {
                (Stage::Autoencoder, Some(a)) => {
                    (a.training_flops(k, vocab).total(), f64::from(a.parameters(k, vocab).total()))
                }
                _ => (
                    model.training_flops(vocab, settings.context).total(),
                    model.parameters(vocab).total().into(),
                ),
            };
            let tokens = (batch * settings.context * k) as f64;
            let work = Work {
                flops: flops * tokens,
                tokens,
                gradient: 4.0 * parameters,
                accumulation: rows.div_ceil(micro_rows),
                pieces: PIECES,
            };
            let forecast = cluster.forecast(&work);
            stages.push(StageOnCluster {
                stage,
                rows,
                micro_rows,
                tokens,
                forecast,
                seconds: forecast.step * settings.steps as f64,
                least_tokens: cluster.least_tokens(&work, WORTH),
            });
        }
        Ok(Self { cluster, stages })
    }
}
