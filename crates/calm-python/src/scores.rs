//! BrierLM of anybody's samples.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;

use calm_stats::bootstrap::{Bootstrap, BrierReport, report};
use calm_stats::brier::{BrierSums, EndOfText, sample_terms};
use calm_stats::samples::{DocumentNames, SampleToken, SamplesOptions, score_samples};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::arrays::{Given, ids, read};
use crate::error::Failure;
use crate::pool::work;

/// Ids that a token may be; the one above them is what follows the end of a text.
const IDS: usize = u32::MAX as usize;

/// BrierLM of samples of any model, with standard errors over documents: a dict with `brierlm`, `brierlm_se`, `brier`
/// (Brier-1 to 4), `brier_se`, `positions`, `documents`, in percent; None where a number is not defined.
///
/// `targets` are the true tokens, `[P, n]`, and `samples` independent continuations of the same contexts, `[P, N, n]`, two or
/// more a position; n is 4 or more, and four count. `documents` `[P]` says which positions are of one text: they are resampled
/// together (None: each is its own). `eos` is the token that ends a text: what follows it does not matter.
///
/// >>> import calm_lm
/// >>> targets = [[5, 6, 7, 8], [5, 6, 7, 9]]
/// >>> samples = [[[5, 6, 7, 8], [5, 6, 0, 0]], [[5, 6, 7, 9], [5, 6, 7, 9]]]
/// >>> scores = calm_lm.brierlm(targets, samples, documents=[0, 1])
/// >>> scores["brier"]
/// [100.0, 100.0, 100.0, 100.0]
/// >>> round(scores["brierlm"], 6), scores["positions"]
/// (100.0, 2)
#[pyfunction]
#[pyo3(signature = (targets, samples, documents=None, *, eos=None))]
pub fn brierlm<'py>(
    py: Python<'py>,
    targets: &Bound<'py, PyAny>,
    samples: &Bound<'py, PyAny>,
    documents: Option<&Bound<'py, PyAny>>,
    eos: Option<u32>,
) -> PyResult<Bound<'py, PyAny>> {
    let (targets, samples) = (read::<i64>(targets)?, read::<i64>(samples)?);
    let (&[p, n], &[q, draws, m]) = (&targets.shape[..], &samples.shape[..]) else {
        let message =
            format!("targets [P, n] and samples [P, N, n], not {:?} and {:?}", targets.shape, samples.shape);
        return Err(PyValueError::new_err(message));
    };
    let documents = documents.map(read::<i64>).transpose()?;
    let documents = documents.map_or_else(|| (0..p as i64).collect(), |given: Given<i64>| given.values);
    if q != p || documents.len() != p {
        let message = format!("{p} targets, samples of {q} positions, {} documents", documents.len());
        return Err(PyValueError::new_err(message));
    }
    if n == 0 || m == 0 {
        return Err(PyValueError::new_err("targets and samples without tokens"));
    }
    let (targets, samples) = (ids(targets.values, IDS)?, ids(samples.values, IDS)?);
    let end = eos.map(|eos| EndOfText { eos, pad: u32::MAX });
    let found = work(py, |_| {
        let mut sums = BrierSums::new();
        let all = samples.chunks_exact(draws.max(1) * m).zip(targets.chunks_exact(n)).zip(&documents);
        for ((samples, target), document) in all {
            let samples: Vec<&[u32]> = samples.chunks_exact(m).collect();
            // The bits of a number are a name as good as itself.
            sums.add(*document as u64, &sample_terms(target, &samples, end)?.brier());
        }
        Ok(report(&sums, &Bootstrap::default()))
    })?;
    dict(py, &found)
}

/// The same of a JSON-lines file of samples, as `calm eval brierlm --samples` reads it: `{"document": 7, "target": [..],
/// "samples": [[..], [..]]}` a line, tokens as ids or texts.
#[pyfunction]
#[pyo3(signature = (path, *, eos=None))]
pub fn brierlm_file<'py>(
    py: Python<'py>,
    path: PathBuf,
    eos: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let eos = eos.map(|token| match token.extract::<i64>() {
        Ok(id) => Ok(SampleToken::Id(id)),
        Err(_) => token.extract::<String>().map(SampleToken::Text),
    });
    let options = SamplesOptions { eos: eos.transpose()? };
    let found = work(py, |_| {
        let file = File::open(&path).map_err(|e| calm_run::Error::io("read", &path, e))?;
        let sums = score_samples(BufReader::new(file).lines(), &options, &mut DocumentNames::default());
        let sums = sums.map_err(|e| match Failure::from(e) {
            Failure::Said(what, remedy) => Failure::Said(format!("{}: {what}", path.display()), remedy),
            Failure::Stopped => Failure::Stopped,
        })?;
        Ok(report(&sums, &Bootstrap::default()))
    })?;
    dict(py, &found)
}

fn dict<'py>(py: Python<'py>, report: &BrierReport) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(report).map_err(|e| PyValueError::new_err(e.to_string()))?;
    from_json(py, &text)
}

/// What Python makes of a JSON text.
pub fn from_json<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyAny>> {
    py.import("json")?.call_method1("loads", (text,))
}
