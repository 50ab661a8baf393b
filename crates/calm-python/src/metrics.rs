//! The metrics of a run as columns.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use calm_run::metrics::jsonl::{Line, read_lines};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::arrays::view;
use crate::error::Failure;

/// By stage, columns of one length by name: `step`, `wall_time`, and every value, NaN where a line has none.
pub fn columns<'py>(py: Python<'py>, folder: &Path) -> PyResult<Bound<'py, PyDict>> {
    let path = folder.join("metrics.jsonl");
    let lines =
        py.detach(|| read_lines(&path)).map_err(|e| Failure::from(calm_run::Error::io("read", &path, e)))?;
    let mut stages: BTreeMap<&str, Vec<&Line>> = BTreeMap::new();
    for line in &lines {
        stages.entry(line.stage.name()).or_default().push(line);
    }
    let out = PyDict::new(py);
    for (stage, lines) in stages {
        let columns = PyDict::new(py);
        let steps: Vec<u64> = lines.iter().map(|line| line.step).collect();
        let times: Vec<f64> = lines.iter().map(|line| line.wall_time).collect();
        columns.set_item("step", view(py, &steps, &[steps.len()])?)?;
        columns.set_item("wall_time", view(py, &times, &[times.len()])?)?;
        let names: BTreeSet<&String> = lines.iter().flat_map(|line| line.values.keys()).collect();
        for name in names {
            let value = |line: &&Line| line.values.get(name).copied().flatten().unwrap_or(f64::NAN);
            let values: Vec<f64> = lines.iter().map(value).collect();
            columns.set_item(name, view(py, &values, &[values.len()])?)?;
        }
        out.set_item(stage, columns)?;
    }
    Ok(out)
}
