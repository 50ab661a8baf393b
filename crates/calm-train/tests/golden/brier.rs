//! Kind `brier`: the arithmetic of Brier-1..4 on given tokens; also used on the tokens of a model.

use calm_stats::brier::{self, BrierSums, NGRAM, RolloutDocument, Terms};
use candle_core::{Device, Result, Tensor, bail};

use crate::compare::Check;
use crate::set::{Case, Config, Tensors};

pub fn run(case: &Case, check: &mut Check) -> Result<()> {
    let config = Config(case.json("config.json")?);
    if config.size("max_eval_length")? != NGRAM {
        bail!("config.json: max_eval_length is not {NGRAM}")
    }
    for file in case.io_files() {
        let io = case.tensors(&file)?;
        // Data sets are told apart by a prefix.
        let names = io.names();
        for prefix in names.iter().filter_map(|n| n.strip_suffix("predictions_1")) {
            compare(&io, prefix, config.size("patch_size")?, check)?;
        }
    }
    Ok(())
}

fn compare(io: &Tensors, prefix: &str, chunk_size: usize, check: &mut Check) -> Result<()> {
    let named = |name: &str| format!("{prefix}{name}");
    let (b, p, k) = io.get(&named("targets"))?.dims3()?;
    check.holds(&io.file, "patch_size is the last dimension of the targets", k == chunk_size);
    let tokens = |name: &str| -> Result<Vec<u32>> { flat(&io.ids(&named(name))?) };
    let data = Data {
        shape: [b, p, k],
        predictions: [tokens("predictions_1")?, tokens("predictions_2")?],
        targets: tokens("targets")?,
        steps: if k < NGRAM { tokens("step_predictions")? } else { Vec::new() },
    };
    let scored = score(&data)?;
    for (name, ours) in
        [("acc_1", &scored.accuracy[0]), ("acc_2", &scored.accuracy[1]), ("collision", &scored.collision)]
    {
        // Chunks longer than the n-gram have products over all K tokens there; four of them are scored.
        let expected = io.get(&named(name))?;
        let expected = expected.narrow(2, 0, NGRAM.min(expected.dim(2)?))?;
        let shape = (expected.dim(0)?, expected.dim(1)?, NGRAM);
        let ours = Tensor::from_slice(ours, shape, &Device::Cpu)?;
        check.part(io, &named(name), &ours, &expected)?;
    }
    check.list(io, &named("brier"), scored.brier.to_vec())?;
    check.scalar(io, &named("brierlm"), brier::reference_brierlm(&scored.brier))
}

pub fn flat(t: &Tensor) -> Result<Vec<u32>> {
    t.flatten_all()?.to_vec1()
}

/// Tokens of one data set.
pub struct Data {
    /// B, P, K
    pub shape: [usize; 3],
    /// Two samples, `[B, P, K]` each, drawn after the true text.
    pub predictions: [Vec<u32>; 2],
    /// `[B, P, K]`
    pub targets: Vec<u32>,
    /// K < 4: `[starts, ⌈4/K⌉ − 1, 2, B, K]`, drawn after the first sample's chunks.
    pub steps: Vec<u32>,
}

/// Terms in the files' order, and the mean.
#[derive(Default)]
pub struct Scored {
    /// Per sample, `[B, positions, 4]`.
    pub accuracy: [Vec<f64>; 2],
    /// K ≥ 4: `[B, positions, 4]`; K < 4: `[positions, B, 4]`.
    pub collision: Vec<f64>,
    /// Fractions.
    pub brier: [f64; NGRAM],
}

/// Scores as the reference does: every chunk for K ≥ 4, else all starts but the last.
pub fn score(data: &Data) -> Result<Scored> {
    let [b, p, k] = data.shape;
    let ahead = brier::chunks_per_gram(k);
    let positions = match ahead {
        1 => p,
        _ => document(data, 0, &[]).starts(true).len(),
    };
    let mut terms = Vec::with_capacity(b * positions);
    for row in 0..b {
        for start in 0..positions {
            terms.push(at(data, row, start, ahead)?);
        }
    }
    let mut out = Scored::default();
    let mut sums = BrierSums::new();
    for (i, [first, second, both]) in terms.iter().enumerate() {
        out.accuracy[0].extend(first.accuracy);
        out.accuracy[1].extend(second.accuracy);
        sums.add((i / positions) as u64, &both.brier());
    }
    let by_row = (0..b * positions).collect::<Vec<_>>();
    let by_start = (0..b * positions).map(|i| i % b * positions + i / b).collect();
    let order = if ahead == 1 { by_row } else { by_start };
    out.collision = order.iter().flat_map(|i| terms[*i][2].collision).collect();
    match sums.brier() {
        Some(percent) => out.brier = percent.map(|b| b / 100.0),
        None => bail!("no position to score"),
    }
    Ok(out)
}

/// Terms at one position with sample 1, sample 2, and both for the accuracy.
fn at(data: &Data, row: usize, start: usize, ahead: usize) -> Result<[Terms; 3]> {
    let [b, p, k] = data.shape;
    let from = (row * p + start) * k;
    let chunk = |tokens: &Vec<u32>| tokens[from..from + k].to_vec();
    let [first, second] = [&data.predictions[0], &data.predictions[1]];
    let chain = |sample: usize| -> Vec<u32> {
        let mut chain = chunk(&data.predictions[sample]);
        for step in 0..ahead - 1 {
            let at = (((start * (ahead - 1) + step) * 2 + sample) * b + row) * k;
            chain.extend_from_slice(&data.steps[at..at + k]);
        }
        chain
    };
    let chains = [chain(0), chain(1)];
    let terms = if ahead == 1 {
        let target = chunk(&data.targets);
        [
            brier::terms(&target, &chains[..1], &chains, None),
            brier::terms(&target, &chains[1..], &chains, None),
            brier::sample_terms(&target, &chains, None),
        ]
    } else {
        let samples = [&first[row * p * k..][..p * k], &second[row * p * k..][..p * k]];
        [&samples[..1], &samples[1..], &samples[..]].map(|s| document(data, row, s).terms(start, &chains))
    };
    let [a, b, c] = terms.map(|t| t.map_err(|e| candle_core::Error::Msg(e.to_string())));
    Ok([a?, b?, c?])
}

fn document<'a>(data: &'a Data, row: usize, predictions: &'a [&'a [u32]]) -> RolloutDocument<'a> {
    let [_, p, k] = data.shape;
    RolloutDocument { chunk_size: k, targets: &data.targets[row * p * k..][..p * k], predictions, end: None }
}
