//! The runs of a study as CSV ([RFC 4180](https://www.rfc-editor.org/rfc/rfc4180)): one line a run, full
//! precision, an empty field for what is undefined or was not measured.
//!
//! Written by hand: it is one function of quoting, and a writer that cannot fail needs no `Result`.

use crate::study::{Score, SeedRun, Study, Variant};

/// One line a run, after a line of column names. Scores are percent, times seconds, memory bytes; columns
/// that begin with `variant_`, `reference_` or `measured_` belong to the variant and are the same for all its
/// runs, and `_se` is a standard error. The settings that differ follow, as `setting.KEY`.
pub fn csv(study: &Study) -> String {
    let keys = setting_keys(study);
    let mut text = String::new();
    let mut names: Vec<String> = RUN_COLUMNS.iter().map(ToString::to_string).collect();
    for protocol in ["variant", "reference"] {
        for score in ["brierlm", "brier_1", "brier_2", "brier_3", "brier_4"] {
            names.push(format!("{protocol}_{score}"));
            names.push(format!("{protocol}_{score}_se"));
        }
    }
    names.extend(keys.iter().map(|key| format!("setting.{key}")));
    push_line(&mut text, &names);
    for variant in &study.variants {
        for run in &variant.runs {
            let mut fields = run_fields(study, variant, run);
            fields.extend(score_fields(variant.aligned.as_ref()));
            fields.extend(score_fields(variant.reference.as_ref()));
            fields.extend(keys.iter().map(|key| {
                variant.settings.iter().find(|(k, _)| k == key).map(|s| s.1.clone()).unwrap_or_default()
            }));
            push_line(&mut text, &fields);
        }
    }
    text
}

/// Keys of all settings, in the order of their first appearance.
pub(crate) fn setting_keys(study: &Study) -> Vec<&str> {
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in study.variants.iter().flat_map(|v| &v.settings) {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    keys
}

const RUN_COLUMNS: [&str; 30] = [
    "study",
    "variant",
    "seed",
    "chunk_size",
    "brierlm",
    "brier_1",
    "brier_2",
    "brier_3",
    "brier_4",
    "cross_entropy_nats_per_token",
    "bits_per_byte",
    "bound_nats_per_token",
    "bound_bits_per_byte",
    "bound_draws",
    "training_tokens",
    "training_flops",
    "training_seconds",
    "measured_training_tokens_per_second",
    "measured_training_lower_quartile",
    "measured_training_upper_quartile",
    "measured_peak_memory_bytes",
    "measured_generation_tokens_per_second",
    "measured_batch_generation_tokens_per_second",
    "batch_draws",
    "parameters",
    "training_flops_per_token",
    "inference_flops_per_token",
    "batch_inference_flops_per_token",
    "seeds",
    "folder",
];

fn run_fields(study: &Study, variant: &Variant, run: &SeedRun) -> Vec<String> {
    let measured = variant.measured;
    let brier = |n: usize| number(run.brier.map(|b| b[n]));
    vec![
        study.name.clone(),
        variant.name.clone(),
        run.seed.to_string(),
        variant.chunk_size.to_string(),
        number(run.brierlm),
        brier(0),
        brier(1),
        brier(2),
        brier(3),
        number(run.cross_entropy),
        number(run.bits_per_byte),
        number(run.bound.last().map(|b| b.nats)),
        number(run.bound.last().and_then(|b| b.bits_per_byte)),
        run.bound.last().map(|b| b.samples.to_string()).unwrap_or_default(),
        run.tokens.to_string(),
        number(Some(run.flops)),
        number(Some(run.seconds)),
        number(measured.map(|m| m.training)),
        number(measured.map(|m| m.training_quartiles.0)),
        number(measured.map(|m| m.training_quartiles.1)),
        measured.and_then(|m| m.peak_memory).map(|m| m.to_string()).unwrap_or_default(),
        number(measured.map(|m| m.generation)),
        number(measured.and_then(|m| m.generation_batch)),
        study.batch_draws.to_string(),
        variant.costs.parameters.to_string(),
        number(Some(variant.costs.training())),
        number(Some(variant.costs.inference())),
        number(Some(variant.costs.inference_batch)),
        variant.runs.len().to_string(),
        run.folder.clone(),
    ]
}

fn score_fields(score: Option<&Score>) -> Vec<String> {
    let brierlm = score.and_then(|s| s.brierlm);
    let brier = (0..4).map(|n| score.and_then(|s| s.brier.get(n).copied()));
    [brierlm]
        .into_iter()
        .chain(brier)
        .flat_map(|e| [number(e.map(|e| e.value)), number(e.and_then(|e| e.se()))])
        .collect()
}

/// The shortest text that reads back as the same number.
fn number(value: Option<f64>) -> String {
    value.filter(|v| v.is_finite()).map(|v| v.to_string()).unwrap_or_default()
}

/// Adds a line of CSV.
pub(crate) fn push_line(text: &mut String, fields: &[String]) {
    for (i, field) in fields.iter().enumerate() {
        if i > 0 {
            text.push(',');
        }
        if field.contains([',', '"', '\n', '\r']) {
            text.push('"');
            text.push_str(&field.replace('"', "\"\""));
            text.push('"');
        } else {
            text.push_str(field);
        }
    }
    text.push_str("\r\n");
}
