//! Tensors of one or several files into the parameters of a model.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use calm_lm::published::Findings;
use calm_nn::ParamStore;
use candle_core::{DType, Tensor};

use super::{dtype_name, dtype_of};
use calm_run::Result;

/// Tensors with the place they came from, which goes before their names in messages.
pub(super) type Place<'a> = (String, BTreeMap<&'a str, &'a Tensor>);

/// Copies tensors into a store. A parameter may be found under several names and places: all must agree.
pub(super) fn fill(store: &ParamStore, places: &[Place<'_>], findings: &mut Findings) -> Result<()> {
    let before = findings.problems.len();
    let mut names: HashMap<String, Vec<String>> = HashMap::new();
    for (alias, name) in store.aliases() {
        names.entry(name).or_default().push(alias);
    }
    let mut known: BTreeSet<String> = BTreeSet::new();
    let mut chosen = HashMap::new();
    for (name, param) in store.params() {
        let mut all = vec![name.clone()];
        all.extend(names.remove(&name).unwrap_or_default());
        let mut best: Option<(String, &Tensor)> = None;
        let mut found = false;
        for (label, tensors) in places {
            for (n, t) in all.iter().filter_map(|n| Some((n, *tensors.get(n.as_str())?))) {
                found = true;
                let here = format!("{label}{n}");
                if t.dims() != param.var.dims() {
                    let (is, wants) = (t.dims(), param.var.dims());
                    findings.problem(format!("{here} has the shape {is:?}, config.json asks for {wants:?}"));
                    continue;
                }
                if dtype_of(dtype_name(t.dtype())).is_none() {
                    findings.problem(format!("{here} is {:?}: weights are F32, BF16 or F16", t.dtype()));
                    continue;
                }
                match &best {
                    None => best = Some((here, t)),
                    Some((there, other)) => {
                        if let Some(by) = difference(t, other)? {
                            findings.problem(format!(
                                "{there} and {here} are one parameter and must be equal; they differ by up to {by:e}"
                            ));
                        } else if t.dtype().size_in_bytes() > other.dtype().size_in_bytes() {
                            best = Some((here, t));
                        }
                    }
                }
            }
        }
        if !found {
            let label = places.first().map_or("", |p| p.0.as_str());
            findings.problem(format!("{label}{} {:?} is missing", all.join(" or "), param.var.dims()));
        }
        if let Some((_, t)) = best {
            chosen.insert(name.clone(), t.clone());
        }
        known.extend(all);
    }
    for (label, tensors) in places {
        for name in tensors.keys().filter(|n| !known.contains(**n)) {
            if name.ends_with("rotary_emb.inv_freq") {
                findings.note(format!("{label}{name} follows from rope_theta: left out"));
            } else {
                findings.problem(format!("{label}{name} is not a parameter of this model"));
            }
        }
    }
    if findings.problems.len() == before {
        let report = store.load(&chosen)?;
        if !report.is_clean() {
            findings.problem(report.to_string());
        }
    }
    Ok(())
}

/// The largest difference of two tensors in the narrower of their formats; none if they are equal bit by bit.
fn difference(a: &Tensor, b: &Tensor) -> Result<Option<f32>> {
    let narrow = match (a.dtype(), b.dtype()) {
        (x, y) if x == y => x,
        (DType::F32, y) => y,
        (x, DType::F32) => x,
        _ => DType::F32,
    };
    let values = |t: &Tensor| t.to_dtype(narrow)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (a, b) = (values(a)?, values(b)?);
    let unequal = a.iter().zip(&b).filter(|(x, y)| x.to_bits() != y.to_bits());
    Ok(unequal.map(|(x, y)| (x - y).abs()).reduce(f32::max))
}
