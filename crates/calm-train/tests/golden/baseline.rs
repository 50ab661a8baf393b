//! Kind `ar_baseline`: logits, loss, gradients, and the terms of the baseline's Brier scores.

use calm_lm::{Baseline, BaselineConfig, LanguageModel, SpecialIds, TextFormat};
use calm_nn::{Noise, ParamStore};
use calm_stats::brier::{NGRAM, SampledPath, exact_terms};
use candle_core::{D, DType, Device, Result, Tensor, bail};

use crate::brier::flat;
use crate::compare::Check;
use crate::reference;
use crate::set::{Case, Config, Tensors};

pub fn run(case: &Case, check: &mut Check) -> Result<()> {
    let config = Config(case.json("config.json")?);
    if config.0["tie_word_embeddings"] == true {
        bail!("config.json: tied word embeddings are not supported")
    }
    let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
    // The reference knows no end of text: an id that never occurs keeps ours from ending anything.
    let special = SpecialIds { bos: 0, eos: u32::MAX, pad: 0 };
    let vocab = config.size("vocab_size")?;
    let backbone = reference::backbone_config(&config)?;
    let text = TextFormat { vocab_size: vocab, special, context: 1 << 20, bos_chunk: false };
    let model = Baseline::new(&store, &BaselineConfig { backbone }, &text)?;
    reference::load(&store, &case.weights("model.safetensors")?)?;
    for file in case.io_files() {
        let io = case.tensors(&file)?;
        compare(&store, &model, vocab, &io, check)?;
    }
    Ok(())
}

/// Logits `[B, T, V]` at every position. One more token, which nothing sees, gives the last one a next.
fn logits(model: &Baseline, ids: &Tensor) -> Result<Tensor> {
    let (b, t) = ids.dims2()?;
    let longer = Tensor::cat(&[ids, &ids.narrow(1, 0, 1)?.zeros_like()?], 1)?;
    model.logits(&model.hidden(&reference::batch(&longer, 1, None)?)?)?.reshape((b, t, ()))
}

fn softmax(logits: &Tensor) -> Result<Tensor> {
    let x = logits.to_dtype(DType::F64)?;
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

fn compare(
    store: &ParamStore,
    model: &Baseline,
    vocab: usize,
    io: &Tensors,
    check: &mut Check,
) -> Result<()> {
    let ids = io.ids("input_ids")?;
    let (b, t) = ids.dims2()?;
    let tokens = flat(&ids)?;
    let all = logits(model, &ids)?;
    check.values(io, "logits", &all)?;

    let batch = reference::batch(&ids, 1, None)?;
    let rows = batch.sources.len();
    let noise = Noise::Given(&Default::default());
    let loss = (model.loss(&batch, &noise)?.sum / rows as f64)?;
    check.values(io, "loss", &loss)?;
    check.gradients(io, "", store, &loss.backward()?)?;

    // Probabilities of the targets and Σ p² as scoring computes them.
    let draws = model.draw_positions(&batch, 1, "golden")?;
    let gold: Vec<f64> = draws.log_p.iter().map(|l| l.exp()).collect();
    check.list(io, "golden_probs", gold.clone())?;
    let row = |b: usize, t_: usize| b * (t - 1) + t_;

    // Exact collision by enumeration of the first token: Σ_a P(a)² Σ_b P(b | a)².
    let p = softmax(&all)?.to_vec3::<f64>()?;
    let depth = io.get("exact.collision")?.dim(2)?;
    if depth != 2 {
        bail!("{}: exact.collision goes to n = {depth}; 2 is implemented", io.file)
    }
    let mut collision = vec![0.0; rows * 2];
    let mut brier = vec![0.0; rows * 2];
    for (i, probabilities) in p.iter().enumerate() {
        for at in 0..t - 1 {
            let second = squares_after(model, vocab, &tokens[i * t..i * t + at + 1])?;
            let r = row(i, at);
            let path = draws.paths[r][0][0] as usize;
            check.holds(
                &io.file,
                "Σp² after a sampled token is that of whole rows",
                (draws.squares[r][1] - second[path]).abs() < 2e-5,
            );
            let last = at + 2 == t;
            for (a, pa) in probabilities[at].iter().enumerate() {
                // Two samples agree on the first token a with probability P(a)²: the estimator's terms, weighted.
                let squares = [draws.squares[r][0], second[a], 1.0, 1.0];
                let tokens_of_path = [a as u32, 0, 0];
                let path = SampledPath { tokens: &tokens_of_path, squares: &squares };
                let next = if last { 1.0 } else { gold[r + 1] };
                let terms = exact_terms(&[0; NGRAM], &[gold[r], next, 1.0, 1.0], &[path, path], None)
                    .map_err(|e| candle_core::Error::Msg(e.to_string()))?;
                collision[2 * r] = terms.collision[0];
                collision[2 * r + 1] += pa * pa * terms.collision[1];
                brier[2 * r] = 2.0 * terms.accuracy[0];
                brier[2 * r + 1] = 2.0 * terms.accuracy[1];
            }
            if last {
                (collision[2 * r + 1], brier[2 * r + 1]) = (0.0, 0.0);
            }
            (0..2).for_each(|n| brier[2 * r + n] -= collision[2 * r + n]);
        }
    }
    check.list(io, "exact.collision", collision)?;
    check.list(io, "exact.brier", brier.clone())?;
    let starts = t - NGRAM;
    let positions = || (0..b).flat_map(|i| (0..starts).map(move |at| (i, at)));
    let mean =
        |n: usize| positions().map(|(i, at)| brier[2 * row(i, at) + n]).sum::<f64>() / (b * starts) as f64;
    check.list(io, "exact.brier_mean", vec![mean(0), mean(1)])?;
    let products = positions().flat_map(|(i, at)| {
        let mut product = 1.0;
        let gold = &gold;
        (0..NGRAM).map(move |n| {
            product *= gold[row(i, at) + n];
            product
        })
    });
    check.list(io, "next_ntoken_acc", products.collect())
}

/// Σ_b P(b | prefix, a)² for every token a.
fn squares_after(model: &Baseline, vocab: usize, prefix: &[u32]) -> Result<Vec<f64>> {
    let mut out = Vec::with_capacity(vocab);
    for from in (0..vocab).step_by(256) {
        let n = 256.min(vocab - from);
        let rows: Vec<Vec<u32>> = (from..from + n).map(|a| [prefix, &[a as u32]].concat()).collect();
        let p = softmax(&logits(model, &Tensor::new(rows, &Device::Cpu)?)?)?;
        let last = p.narrow(1, prefix.len(), 1)?.squeeze(1)?;
        out.extend(last.sqr()?.sum(1)?.to_vec1::<f64>()?);
    }
    Ok(out)
}
