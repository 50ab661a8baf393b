//! What an ablation is going to train, and what that costs.

use calm_run::{Result, Stage};
use calm_train::plan::{Plan, StagePlan};

use crate::execute::missing;
use crate::plan::{Ablation, PlannedRun};

/// A stage that one or more runs train alike.
#[derive(Clone, Debug)]
pub struct PlannedStage<'a> {
    /// The variant, or `autoencoder NAME`.
    pub name: String,
    /// How often it is trained in all.
    pub runs: usize,
    /// How often it is still to be trained.
    pub left: usize,
    /// What it costs once.
    pub stage: &'a StagePlan,
}

/// What is going to be trained.
#[derive(Clone, Debug)]
pub struct Outlook<'a> {
    /// The stages, each variant's autoencoder before its language model.
    pub stages: Vec<PlannedStage<'a>>,
    /// Autoencoders left to train.
    pub autoencoders: usize,
    /// Runs left to train.
    pub runs: usize,
}

impl<'a> Outlook<'a> {
    /// By the plans of the variants' first runs.
    ///
    /// # Errors
    /// A checkpoint is damaged.
    pub fn new(ablation: &Ablation, plans: &'a [Plan]) -> Result<Self> {
        let (autoencoders, runs) = missing(ablation);
        let mut stages = Vec::new();
        let mut shown: Vec<usize> = Vec::new();
        for (i, plan) in plans.iter().enumerate() {
            let own = |r: &&PlannedRun| r.variant == i;
            if let Some(at) = ablation.runs[i].autoencoder
                && !shown.contains(&at)
                && let Some(stage) = plan.stages.iter().find(|s| s.stage == Stage::Autoencoder)
            {
                shown.push(at);
                let mut of: Vec<usize> =
                    ablation.runs.iter().filter(own).filter_map(|r| r.autoencoder).collect();
                of.dedup();
                stages.push(PlannedStage {
                    name: format!("autoencoder {}", ablation.autoencoders[at].name),
                    runs: of.len(),
                    left: of.iter().filter(|a| autoencoders.contains(a)).count(),
                    stage,
                });
            }
            if let Some(stage) = plan.stages.iter().find(|s| s.stage == Stage::Lm) {
                stages.push(PlannedStage {
                    name: ablation.variants[i].name.clone(),
                    runs: ablation.config.seeds.len(),
                    left: runs.iter().filter(|r| ablation.runs[**r].variant == i).count(),
                    stage,
                });
            }
        }
        Ok(Self { stages, autoencoders: autoencoders.len(), runs: runs.len() })
    }

    /// Seconds until all is trained, as far as they are known.
    pub fn seconds(&self) -> f64 {
        self.stages.iter().map(|s| s.left as f64 * s.stage.seconds.unwrap_or(0.0)).sum()
    }

    /// Most memory of so many runs at a time, bytes.
    pub fn memory(&self, lanes: usize) -> f64 {
        let each = self.stages.iter().flat_map(|s| vec![s.stage.memory.total(); s.left.clamp(1, lanes)]);
        let mut each: Vec<f64> = each.collect();
        each.sort_by(|a, b| b.total_cmp(a));
        each.iter().take(lanes).sum()
    }
}
