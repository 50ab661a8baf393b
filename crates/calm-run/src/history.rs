//! What was really trained, segment by segment: a stage whose settings were changed on the way had others before.

use calm_config::{Resolved, load};

use crate::checked::read_config;
use crate::config::{RunConfig, StageConfig};
use crate::error::Result;
use crate::run::{CONFIG, Run, after};
use crate::stage::Stage;

/// Steps that were trained with the same settings, from so many done steps on.
struct Segment {
    after: u64,
    config: StageConfig,
}

/// Tokens of the steps of a stage, whose batches may have changed on the way.
pub struct TokenCount {
    chunk_size: usize,
    segments: Vec<Segment>,
}

impl Run {
    /// Counts the tokens of a stage's steps.
    ///
    /// # Errors
    /// A configuration or record that is damaged.
    pub fn token_count(&self, stage: Stage) -> Result<TokenCount> {
        let mut segments = Vec::new();
        let changed = self.record()?.unwrap_or_default().history;
        let prefix = format!("train.{stage}.");
        if changed.iter().flat_map(|entry| &entry.changes).any(|change| change.key.starts_with(&prefix)) {
            let mut config: Resolved<RunConfig> = load(read_config(&self.folder.join(CONFIG))?, &[])?;
            let first = config.value.train.stage(stage).cloned();
            segments.extend(first.map(|config| Segment { after: 0, config }));
            // Also of commands that changed nothing: one may have begun a stage anew.
            for entry in &changed {
                config = after(config, entry.changes.iter())?;
                let from = entry.after.get(&stage).copied().unwrap_or_default();
                // Steps that a killed command had trained beyond its last checkpoint were trained again.
                segments.retain(|segment: &Segment| segment.after < from);
                let now = config.value.train.stage(stage).cloned();
                segments.extend(now.map(|config| Segment { after: from, config }));
            }
        }
        if segments.is_empty() {
            let now = self.config.train.stage(stage).cloned();
            segments.extend(now.map(|config| Segment { after: 0, config }));
        }
        Ok(TokenCount { chunk_size: self.config.chunk_size(), segments })
    }
}

impl TokenCount {
    /// Tokens of full batches until `step` steps were done.
    pub fn until(&self, step: u64) -> u64 {
        self.by_context(step).iter().map(|(_, tokens)| tokens).sum()
    }

    /// The same by the context of the rows, in the order in which they were trained.
    pub fn by_context(&self, step: u64) -> Vec<(usize, u64)> {
        let ends = self.segments.iter().skip(1).map(|segment| segment.after).chain([u64::MAX]);
        let tokens = |(segment, end): (&Segment, u64)| {
            let c = &segment.config;
            let steps = end.min(step).saturating_sub(segment.after);
            (c.context, steps * (c.batch_rows * c.context * self.chunk_size) as u64)
        };
        self.segments.iter().zip(ends).map(tokens).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Change, Provenance, RunRecord};
    use crate::resumption::Begin;
    use serde_json::json;
    use std::collections::BTreeMap;

    const RUN: &str = "version: 1
model: { baseline: {} }
train:
  lm: { steps: 10, batch_rows: 2, context: 32, learning_rate: 1e-3 }
";

    fn change(key: &str, old: serde_json::Value, new: serde_json::Value, after: u64) -> Provenance {
        let change = Change { key: key.into(), old: Some(old), new: Some(new) };
        let after = BTreeMap::from([(Stage::Lm, after)]);
        Provenance { changes: vec![change], after, ..Provenance::default() }
    }

    #[test]
    fn the_configuration_in_force_is_the_first_one_with_all_changes_and_tokens_are_counted_by_segment() {
        let dir = tempfile::tempdir().unwrap();
        let resolved = load::<RunConfig>(calm_config::ConfigText::new("a.yaml", RUN), &[]).unwrap();
        let run = Run::create(dir.path(), &resolved, Begin::New).unwrap();
        let began = std::fs::read_to_string(dir.path().join(CONFIG)).unwrap();
        assert_eq!(run.token_count(Stage::Lm).unwrap().until(10), 640);
        let history = vec![
            Provenance::default(),
            change("train.lm.batch_rows", json!(2), json!(4), 4),
            // Killed at step 8 without a checkpoint since 6.
            change("train.lm.context", json!(32), json!(16), 6),
            change("train.lm.schedule", json!("constant"), json!({"cosine": {"floor": 0.1}}), 6),
        ];
        run.write_record(&RunRecord { history, ..RunRecord::default() }).unwrap();
        let open = Run::open(dir.path()).unwrap();
        assert_eq!((open.config.train.lm.batch_rows, open.config.train.lm.context), (4, 16));
        assert_ne!(open.config.train.lm.schedule, run.config.train.lm.schedule);
        let count = open.token_count(Stage::Lm).unwrap();
        assert_eq!([0, 4, 6, 10].map(|step| count.until(step)), [0, 256, 512, 768]);
        assert_eq!(count.by_context(10), [(32, 256), (32, 256), (16, 256)]);
        assert_eq!(std::fs::read_to_string(dir.path().join(CONFIG)).unwrap(), began);
    }
}
