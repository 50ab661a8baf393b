//! Kind `temperature_sampling`: selection probabilities of the batch approximation for given pools, and the
//! distribution that the exact sampler has to follow.

use calm_stats::rng::Stream;
use calm_stats::temperature::{self, Chunk, ExactOptions, Temperature, TemperatureError, batch_weights};
use candle_core::{Result, bail};
use serde_json::Value;

use crate::compare::Check;
use crate::set::Case;

pub fn run(case: &Case, check: &mut Check) -> Result<()> {
    // Only repeats the temperatures of the pools.
    case.json("config.json")?;
    let pools = case.json("pools.json")?;
    let file = format!("{}/pools.json", case.name);
    for pool in list(&pools, "pools") {
        let tokens: Vec<Chunk> = list(pool, "tokens").iter().map(chunk).collect();
        let name = pool["name"].as_str().unwrap_or("?");
        check.holds(&file, &format!("{name} has num_samples chunks"), pool["num_samples"] == tokens.len());
        for result in list(pool, "results") {
            selection(&file, name, &tokens, result, check)?;
        }
    }
    for distribution in list(&pools, "categorical") {
        for target in list(distribution, "targets") {
            exact(&file, distribution, target, check)?;
        }
    }
    Ok(())
}

fn list<'a>(v: &'a Value, key: &str) -> &'a [Value] {
    v[key].as_array().map_or(&[], Vec::as_slice)
}

fn chunk(v: &Value) -> Chunk {
    v.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|t| t as u32).collect()
}

/// `1/n` or a number.
fn temperature(v: &Value) -> Result<Temperature> {
    let value = match (v.as_f64(), v.as_str().and_then(|s| s.split_once('/'))) {
        (Some(t), _) => t,
        (None, Some((a, b))) => match (a.trim().parse::<f64>(), b.trim().parse::<f64>()) {
            (Ok(a), Ok(b)) => a / b,
            _ => bail!("temperature {v} is no fraction"),
        },
        (None, None) => match v.as_str().and_then(|s| s.parse().ok()) {
            Some(t) => t,
            None => bail!("temperature {v} is no number"),
        },
    };
    Temperature::new::<String>(value).map_err(|e| candle_core::Error::Msg(e.to_string()))
}

/// Counts, level and weights are integers and exact; probabilities are the quotients of weights.
fn selection(file: &str, name: &str, pool: &[Chunk], result: &Value, check: &mut Check) -> Result<()> {
    let t = temperature(&result["temperature"])?;
    let what = format!("{name} at {}", result["temperature"]);
    let n = t.reciprocal::<String>().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
    check.holds(file, &format!("{what}: n"), result["n"] == n);
    let Some(weights) = batch_weights(pool, n) else { bail!("{what}: an empty pool") };
    check.holds(file, &format!("{what}: level"), result["level_used"] == weights.level);
    let expected = list(result, "probs");
    let total: f64 = weights.candidates.iter().map(|c| c.weight).sum();
    check.holds(file, &format!("{what}: number of candidates"), expected.len() == weights.candidates.len());
    for e in expected {
        let what = format!("{what}: chunk {}", e["chunk"]);
        let Some(c) = weights.candidates.iter().find(|c| c.chunk == chunk(&e["chunk"])) else {
            check.fail(format!("{file}: {what} is not among the candidates"));
            continue;
        };
        check.holds(file, &format!("{what}: count"), e["count"] == c.count);
        check.holds(file, &format!("{what}: weight"), e["weight"].as_f64() == Some(c.weight));
        // To the last bits only, since that is how well the JSON parser reads decimals; the fraction is exact.
        let near = e["prob"].as_f64().is_some_and(|p| (p - c.probability).abs() <= 4.0 * f64::EPSILON * p);
        check.holds(file, &format!("{what}: probability"), near);
        // weight/total = a/b exactly, in integers.
        if let Some((a, b)) = e["fraction"].as_str().and_then(|f| f.split_once('/')) {
            let exact = match (a.parse::<u128>(), b.parse::<u128>()) {
                (Ok(a), Ok(b)) => c.weight as u128 * b == total as u128 * a,
                _ => false,
            };
            check.holds(file, &format!("{what}: fraction"), exact);
        }
    }
    // The choice itself: over an even grid of uniform numbers every candidate gets its share to one cell.
    const CELLS: usize = 10_000;
    let mut counts = vec![0usize; weights.candidates.len()];
    for i in 0..CELLS {
        let chosen = weights.choose((i as f64 + 0.5) / CELLS as f64);
        if let Some(at) = weights.candidates.iter().position(|c| c.chunk == chosen) {
            counts[at] += 1;
        }
    }
    let even = weights
        .candidates
        .iter()
        .zip(&counts)
        .all(|(c, n)| (*n as f64 - c.probability * CELLS as f64).abs() <= 1.0);
    check.holds(file, &format!("{what}: choices follow the probabilities"), even);
    Ok(())
}

/// The exact sampler's draws against `probs`: a χ² test with fixed seeds.
fn exact(file: &str, distribution: &Value, target: &Value, check: &mut Check) -> Result<()> {
    let numbers = |v: &[Value]| v.iter().filter_map(Value::as_f64).collect::<Vec<f64>>();
    let chunks: Vec<Chunk> = list(distribution, "chunks").iter().map(chunk).collect();
    let (p, expected) = (numbers(list(distribution, "p")), numbers(list(target, "probs")));
    let t = temperature(&target["temperature"])?;
    let what = format!("{} at {}", distribution["name"].as_str().unwrap_or("?"), target["temperature"]);
    let exponent = target["exponent"].as_f64().unwrap_or(f64::NAN);
    let split = f64::from(t.whole()) + t.rest();
    check.holds(file, &format!("{what}: exponent"), (split - exponent).abs() <= 1e-9);

    // As many draws as fit into a fixed amount of work: a draw succeeds with probability about Σ p^{1/T}.
    let accepted: f64 = p.iter().map(|p| p.powf(exponent)).sum();
    let runs = ((400_000.0 * accepted) as usize).clamp(200, 20_000);
    let mut inner = Stream::new(1, &format!("golden/{what}"), 0);
    let mut outer = Stream::new(1, &format!("golden/{what}"), 1);
    let options = ExactOptions { budget: usize::MAX, batch: 1, fallback: false };
    let mut counts = vec![0.0; chunks.len()];
    for _ in 0..runs {
        let draw = |n: usize| -> std::result::Result<Vec<Chunk>, String> {
            Ok((0..n).map(|_| chunks[invert(&p, inner.uniform())].clone()).collect())
        };
        let drawn = temperature::exact(t, &options, temperature::any, draw, &mut outer)
            .map_err(|e: TemperatureError<String>| candle_core::Error::Msg(e.to_string()))?;
        if let Some(at) = chunks.iter().position(|c| *c == drawn.chunk) {
            counts[at] += 1.0;
        }
    }
    // Cells that expect fewer than 5 are put together.
    let (mut chi2, mut cells, mut rest) = (0.0, 0usize, (0.0, 0.0));
    for (e, c) in expected.iter().map(|q| q * runs as f64).zip(counts) {
        if e < 5.0 {
            rest = (rest.0 + e, rest.1 + c);
        } else {
            chi2 += (c - e) * (c - e) / e;
            cells += 1;
        }
    }
    if rest.0 > 0.0 {
        chi2 += (rest.1 - rest.0) * (rest.1 - rest.0) / rest.0.max(0.5);
        cells += 1;
    }
    // Mean d and variance 2d; six standard deviations and a little for the skewness of few degrees.
    let d = cells.saturating_sub(1) as f64;
    let bound = d + 6.0 * (2.0 * d).sqrt() + 12.0;
    check.holds(
        file,
        &format!("{what}: χ² {chi2:.1} of {runs} exact samples is below {bound:.1}"),
        chi2 < bound,
    );
    Ok(())
}

fn invert(p: &[f64], u: f64) -> usize {
    let mut sum = 0.0;
    p.iter()
        .position(|p| {
            sum += p;
            u < sum
        })
        .unwrap_or(p.len() - 1)
}
