//! Kind `energy_score`: the score alone, every exponent, with coinciding samples, and its gradient.

use calm_kernels::{TargetNoise, energy_score, energy_score_rows_no_grad};
use candle_core::{Result, Tensor, Var, bail};

use crate::compare::Check;
use crate::set::{Case, Config, Tensors};

pub fn run(case: &Case, check: &mut Check) -> Result<()> {
    let config = Config(case.json("config.json")?);
    for file in case.io_files() {
        let io = case.tensors(&file)?;
        for (name, case, beta) in scores(&io)? {
            compare(&io, &name, &case, beta, check)?;
        }
        // What the config lists is there.
        for case in config.0["cases"].as_array().into_iter().flatten().filter_map(|c| c.as_str()) {
            for beta in config.0["betas"].as_array().into_iter().flatten().filter_map(|b| b.as_f64()) {
                let found = scores(&io)?.iter().any(|(_, c, b)| c == case && *b == beta);
                check.holds(&io.file, &format!("{case} has a score for beta {beta}"), found);
            }
        }
    }
    Ok(())
}

/// Tensors `<case>.beta_<exponent>.score`.
fn scores(io: &Tensors) -> Result<Vec<(String, String, f64)>> {
    let mut out = Vec::new();
    for name in io.names() {
        let Some(stem) = name.strip_suffix(".score") else { continue };
        let Some((case, beta)) = stem.split_once(".beta_") else {
            bail!("{}: {name} names no exponent", io.file)
        };
        let Ok(beta) = beta.parse() else { bail!("{}: {name}: the exponent is no number", io.file) };
        out.push((stem.to_owned(), case.to_owned(), beta));
    }
    Ok(out)
}

fn compare(io: &Tensors, stem: &str, case: &str, beta: f64, check: &mut Check) -> Result<()> {
    let x = Var::from_tensor(&io.get(&format!("{case}.x"))?.transpose(0, 1)?.contiguous()?)?;
    let (mean, log_std) = (io.get(&format!("{case}.mean"))?, io.get(&format!("{case}.log_std"))?);
    // The draws are shared by the cases of a prefix.
    let prefix = case.split('_').next().unwrap_or(case);
    let own = format!("{case}.eps");
    let eps = io.get(if io.has(&own) { own } else { format!("{prefix}.eps") }.as_str())?;
    let noise = TargetNoise::Given(&eps);
    let rows = energy_score(x.as_tensor(), &mean, &log_std, noise, beta)?;
    check.values(io, &format!("{stem}.score"), &rows.neg()?)?;
    let plain = energy_score_rows_no_grad(x.as_tensor(), &mean, &log_std, noise, beta)?;
    check.values(io, &format!("{stem}.score"), &plain.neg()?)?;
    let grads = rows.mean_all()?.backward()?;
    let Some(grad) = grads.get(x.as_tensor()) else { bail!("no gradient reaches the samples") };
    let grad: Tensor = grad.transpose(0, 1)?.contiguous()?;
    check.gradient(io, &format!("grad.{stem}.x"), &grad)?;
    // What the reference's autograd gave, where it is not the same tensor: NaN below exponent 1.
    let raw = format!("reference_grad.{stem}.x");
    if io.has(&raw) {
        check.gradient(io, &raw, &grad)?;
    }
    Ok(())
}
