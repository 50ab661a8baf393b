//! Tables of plans and results.

use std::time::Duration;

use calm_eval::attention::{AttentionRanks, LayerRanks};
use calm_eval::protocol::Protocol;
use calm_eval::reconstruction::ReconstructionReport;
use calm_eval::segments::Place;
use calm_lm::{Decode, DrawKind, ModelConfig};
use calm_nn::Precision;
use calm_run::Stage;
use calm_run::results::{BoundResults, BrierResults, ConditionCheck, SegmentResults};
use calm_stats::bootstrap::BrierReport;
use calm_train::memory::names;
use calm_train::plan::cluster::ClusterPlan;
use calm_train::plan::{Plan, StagePlan};
use calm_train::training::Validation;

use crate::ui::{Table, format};

/// What a run is going to cost.
pub fn plan(p: &Plan) -> String {
    let tokens = p.training_tokens.map_or("unknown".into(), |t| format::count(t as f64));
    let mut out = format!(
        "{}\nvocabulary {}, {tokens} training tokens\n{}\n",
        format::wrap(&p.corpus, 78, "  "),
        p.vocab_size,
        format::wrap(&device(p), 78, "  "),
    );
    let mut table =
        Table::new(&["stage", "parameters", "steps", "tok/step", "epochs", "FLOPs", "time", "memory"])
            .title("plan (time and memory are estimates)");
    for s in &p.stages {
        table.row([
            s.stage.to_string(),
            format::count(s.parameter_count() as f64),
            s.steps.to_string(),
            s.tokens_per_step.to_string(),
            s.epochs.map_or("?".into(), |e| format!("{e:.2}")),
            format!("{:.1e}", s.flops),
            s.seconds.map_or("?".into(), |t| format!("~{}", short(t))),
            format!("~{}", format::bytes(s.memory.total())),
        ]);
    }
    out.push_str(&table.to_string());
    for s in &p.stages {
        let parts: Vec<String> =
            s.parameters.iter().map(|(n, c)| format!("{n} {}", format::count(*c as f64))).collect();
        out.push_str(&format!(
            "\n{}",
            format::wrap(&format!("  {}: {}", s.stage, parts.join(", ")), 78, "    ")
        ));
    }
    out.push_str(&format!("\n{}", memory(p)));
    if let Some(c) = &p.cluster {
        out.push_str(&format!("\n{}", cluster(c)));
    }
    out
}

/// What a step is expected to take on many GPUs.
fn cluster(p: &ClusterPlan) -> String {
    let c = &p.cluster;
    let between = match c.world > c.gpus_per_node {
        true => format!("{}/s from GPU to GPU of other nodes, ", format::bytes(c.link)),
        false => String::new(),
    };
    let how = format!(
        "{} to a node: {between}{}/s within one, {}FLOP/s reached by each",
        c.gpus_per_node.min(c.world),
        format::bytes(c.node_link),
        format::count(c.rate),
    );
    let mut table = Table::new(&["stage", "rows", "step", "computes", "tok/s", "time", "tok/step for 90 %"])
        .title(format!("forecast for {} GPUs", c.world));
    for s in &p.stages {
        let rows = match s.rows.div_ceil(s.micro_rows) {
            1 => s.rows.to_string(),
            times => format!("{times} x {}", s.micro_rows),
        };
        table.row([
            s.stage.to_string(),
            rows,
            format::duration(Duration::from_secs_f64(s.forecast.step)),
            format::percent(s.forecast.efficiency, 0),
            format::count(s.forecast.tokens_per_second),
            format!("~{}", short(s.seconds)),
            s.least_tokens.map_or("never".into(), format::count),
        ]);
    }
    format!("{table}\n{}", format::wrap(&how, 78, "  "))
}

/// What computes, and what that is taken to reach.
pub fn device(p: &Plan) -> String {
    let format = match (p.target.gpu, p.precision) {
        (true, Precision::Bf16) => "bf16",
        _ => "f32",
    };
    match p.target.matrix_rate {
        Some(rate) => format!(
            "{} multiplies at {}FLOP/s in {format}, of which a step is taken to reach {}",
            p.target.device,
            format::count(rate),
            format::percent(p.target.efficiency(), 0),
        ),
        None => format!("planned for {}, {format}; its speed is unknown here", p.target.device),
    }
}

/// What a step holds, by what it is for.
fn memory(p: &Plan) -> String {
    let headers: Vec<&str> =
        std::iter::once("memory of a step").chain(p.stages.iter().map(|s| s.stage.name())).collect();
    let mut table = Table::new(&headers);
    let mut row = |name: String, cell: &dyn Fn(&StagePlan) -> String| {
        table.row(std::iter::once(name).chain(p.stages.iter().map(cell)));
    };
    row("rows at a time".into(), &|s| s.micro_rows.to_string());
    for part in names(p.stages.iter().map(|s| &s.memory)) {
        row(part.to_owned(), &|s| match s.memory.of(part) {
            0.0 => "-".to_owned(),
            bytes => format::bytes(bytes),
        });
    }
    row("in all".into(), &|s| format::bytes(s.memory.total()));
    if let Some(free) = p.target.free {
        row("free".into(), &|_| format::bytes(free));
        row("fits".into(), &|s| if s.memory.total() <= free { "yes" } else { "no" }.to_owned());
    }
    table.to_string()
}

/// A time in few characters: `42s`, `2m48s`, `5h12m`, `12d`.
pub fn short(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..172_800 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d", s / 86_400),
    }
}

/// One line of a validation.
pub fn validation(stage: Stage, step: u64, v: &Validation) -> String {
    let get = |name: &str| v.numbers.iter().find(|(n, _)| n == name).and_then(|(_, x)| *x);
    let mut line = format!("  {stage} {step}: validation loss {:.4}", v.loss);
    if let Some(a) = get("token_accuracy") {
        line.push_str(&format!("  tokens {}", format::percent(a, 3)));
    }
    if let Some(a) = get("token_accuracy_sigma_0.3") {
        line.push_str(&format!("  at sigma 0.3 {}", format::percent(a, 2)));
    }
    if get("brier_1").is_some() {
        let b: Vec<String> =
            (1..=4).map(|n| get(&format!("brier_{n}")).map_or("-".into(), |b| format!("{b:.2}"))).collect();
        line.push_str(&format!("  Brier-1..4 {}", b.join(" ")));
        if let Some(lm) = get("brierlm") {
            line.push_str(&format!("  BrierLM {lm:.2}"));
        }
    }
    let bound =
        |(name, value): &(String, Option<f64>)| Some((name.strip_prefix("bound_")?.to_owned(), (*value)?));
    if let Some((draws, nats)) = v.numbers.iter().find_map(bound) {
        line.push_str(&format!("\n    at most {nats:.4} nats a token, by {draws} draws"));
    }
    line
}

/// Reconstruction.
pub fn autoencoder(r: &ReconstructionReport) -> String {
    let mut table = Table::new(&["decoded from", "tokens right", "chunks right"])
        .title(format!("autoencoder, {} held-out tokens", format::count(r.tokens as f64)));
    let p = |x: f64| format::percent(x, 3);
    table.row(["posterior sample".into(), p(r.token_accuracy), p(r.chunk_accuracy)]);
    table.row(["posterior mean".into(), p(r.token_accuracy_mean), p(r.chunk_accuracy_mean)]);
    for n in r.noise.iter().filter(|n| n.sigma > 0.0) {
        table.row([format!("mean + {:.1} noise", n.sigma), p(n.token_accuracy), p(n.chunk_accuracy)]);
    }
    format!(
        "{table}\ncross-entropy {:.4} nats/token, KL {:.1} nats/chunk, posterior std {:.2},\n{} of {} dimensions collapsed\n",
        r.cross_entropy, r.kl, r.posterior_std, r.collapsed_dimensions, r.latent_size
    )
}

/// How a model cuts texts: one line a kind, then the loss by place in each.
pub fn segments(found: &[SegmentResults]) -> String {
    let mut kinds =
        Table::new(&["text", "tokens", "segments", "tokens a segment", "nats a token"]).title("segments");
    for SegmentResults { kind, segments } in found {
        kinds.row([
            kind.clone(),
            segments.tokens.to_string(),
            segments.segments.to_string(),
            cell(segments.ratio.value, segments.ratio.se),
            cell(segments.nats.value, segments.nats.se),
        ]);
    }
    let mut out = kinds.to_string();
    for SegmentResults { kind, segments } in found {
        let mut table = Table::new(&["place", "tokens", "nats", "from the end", "tokens", "nats"])
            .title(format!("{kind}: nats a token, by the place of the token before it"));
        let side = |place: Option<&Place>| match place {
            None => [String::new(), String::new(), String::new()],
            Some(p) => {
                let beyond = if p.and_beyond { "+" } else { "" };
                [format!("{}{beyond}", p.place), p.tokens.to_string(), cell(p.nats.value, p.nats.se)]
            }
        };
        for i in 0..segments.from_start.len().max(segments.from_end.len()) {
            let sides = [&segments.from_start, &segments.from_end].map(|places| side(places.get(i)));
            table.row(sides.concat());
        }
        out.push_str(&format!("\n{table}"));
    }
    out
}

/// Ranks of attention matrices: one line a layer.
pub fn attention(found: &AttentionRanks) -> String {
    let headers = ["layer", "effective", "σ > σ₁/1000", "input", "σ > σ₁/1000", "unturned", "input"];
    let mut table = Table::new(&headers).title(format!(
        "rank of attention as a share of n = {} ({} windows, {:.0} positions of input)",
        found.positions, found.windows, found.input
    ));
    let share = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.3}"));
    for (layer, LayerRanks { turned, unturned }) in found.layers.iter().enumerate() {
        table.row([
            layer.to_string(),
            share(Some(turned.whole.effective)),
            share(Some(turned.whole.above)),
            share(turned.input.map(|r| r.effective)),
            share(turned.input.map(|r| r.above)),
            share(Some(unturned.whole.effective)),
            share(unturned.input.map(|r| r.effective)),
        ]);
    }
    table.to_string()
}

/// `7.09 ±0.24`: all cells of a table with the same two decimals.
fn cell(value: f64, se: Option<f64>) -> String {
    match se {
        Some(se) => format!("{value:.2} ±{se:.2}"),
        None => format!("{value:.2}"),
    }
}

fn brier_cells(name: &str, r: &BrierReport) -> Vec<String> {
    let mut cells = vec![name.to_owned()];
    for n in 0..4 {
        cells.push(r.brier.map_or("-".into(), |b| cell(b[n], r.brier_se.map(|se| se[n]))));
    }
    cells.push(r.brierlm.map_or("undefined".into(), |b| cell(b, r.brierlm_se)));
    cells
}

const BRIER_HEADERS: [&str; 6] = ["percent", "Brier-1", "Brier-2", "Brier-3", "Brier-4", "BrierLM"];

/// A model's scores beside the n-gram models.
pub fn brier(model: &ModelConfig, r: &BrierResults) -> String {
    // Its title without the article.
    let title = model.title().split_once(' ').map_or(model.title(), |(_, title)| title);
    let name = match model.draws() {
        DrawKind::Exact if r.chunk_size == 1 => title.to_owned(),
        _ if r.decode == Some(Decode::Sample) => format!("{title}, K = {}, sampled", r.chunk_size),
        _ => format!("{title}, K = {}", r.chunk_size),
    };
    let groups = match r.protocol {
        Protocol::Aligned { .. } => "held-out documents",
        Protocol::Reference { .. } => "blocks",
    };
    let mut table = Table::new(&BRIER_HEADERS)
        .title(format!("BrierLM, {} {groups}, {} positions", r.report.documents, r.report.positions));
    table.row(brier_cells(&name, &r.report));
    if let Some(ngram) = &r.ngram {
        table.row(brier_cells("bigram", &ngram.bigram));
        table.row(brier_cells("unigram", &ngram.unigram));
    }
    let mut out = format!("{table}\n{}\n", protocol(&r.protocol));
    out.push_str(&note(&r.report));
    if let (Some(ce), Some(ppl)) = (r.cross_entropy, r.perplexity) {
        out.push_str(&format!("\ncross-entropy {ce:.4} nats/token, perplexity {ppl:.2}"));
        if let Some(b) = r.bits_per_byte {
            out.push_str(&format!(", {b:.4} bits per byte"));
        }
        out.push('\n');
    }
    if let Some(b) = &r.bound {
        out.push_str(&format!("\n{}", bound(b)));
    }
    out
}

/// The bound on the cross-entropy of a model without probabilities.
fn bound(r: &BoundResults) -> String {
    let mut table = Table::new(&["draws", "nats/token", "bits/byte"]).title(format!(
        "upper bound on the cross-entropy\n(decoder sampled, {} of uniform tokens mixed in)",
        r.floor
    ));
    for p in &r.curve {
        let nats = match p.point.nats_se {
            Some(se) => format!("{:.4} ±{se:.4}", p.point.nats),
            None => format!("{:.4}", p.point.nats),
        };
        let bits = p.bits_per_byte.map_or("-".into(), |b| format!("{b:.4}"));
        table.row(vec![p.point.samples.to_string(), nats, bits]);
    }
    format!("{table}")
}

/// Where a model was scored.
fn protocol(p: &Protocol) -> String {
    match p {
        Protocol::Aligned { every, context, first, tokens_per_document } => {
            let limit = tokens_per_document.map_or(String::new(), |t| format!(" of the first {t}"));
            format!("aligned: every {every} tokens from token {first}{limit},\nwindows of {context} tokens")
        }
        Protocol::Reference { block, document_bos } => {
            let bos = if *document_bos { "each after BOS" } else { "no BOS" };
            format!("reference: joined documents ({bos}) in blocks of {block} tokens")
        }
    }
}

/// Scores alone.
pub fn brier_report(r: &BrierReport, name: &str) -> String {
    let mut table = Table::new(&BRIER_HEADERS)
        .title(format!("BrierLM, {} documents, {} positions", r.documents, r.positions));
    table.row(brier_cells(name, r));
    format!("{table}{}", note(r))
}

fn note(r: &BrierReport) -> String {
    let mut out = String::new();
    if r.brierlm.is_none() {
        out.push_str("\nBrierLM is undefined where a Brier-n is not positive: compare the four numbers.\n");
    } else if let Some(share) = r.undefined_replicates.filter(|s| *s > 0.0) {
        out.push_str(&format!("\nundefined in {} of the bootstrap replicates\n", format::percent(share, 1)));
    }
    out
}

/// Whether the head uses its condition.
pub fn condition(c: &ConditionCheck) -> String {
    format!("loss with true hidden states {:.3}, with exchanged ones {:.3}\n", c.loss, c.loss_exchanged)
}

/// A text set off from what surrounds it.
pub fn indent(text: &str) -> String {
    text.lines().map(|l| format!("  | {l}")).collect::<Vec<_>>().join("\n")
}
