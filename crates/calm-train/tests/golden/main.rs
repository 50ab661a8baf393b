//! The ladder: every case of a set of golden numbers, computed by the reference implementation, against ours.
//!
//! ```sh
//! cargo test --release golden                                  # the set in eval/golden
//! cargo test --release golden -- --nocapture                   # with a table of the worst errors
//! CALM_GOLDEN=<folder> cargo test --release golden             # any other set of that layout
//! ```
//!
//! A set is a `manifest.json` that lists cases by name, kind and files (see `eval/golden/README.md`). Nothing
//! here knows a size: shapes, exponents, head counts and numbers of samples come from the configs and the
//! tensors. A case fails with the list of *all* tensors that are off, each with its error; and it fails when
//! a listed file is not opened or a tensor is not compared with anything. A set holds cases of every kind, or says
//! in its manifest which kinds it holds (`"kinds": ["brier"]`).

#![allow(clippy::unwrap_used)] // helpers of tests

mod autoencoder;
mod baseline;
mod brier;
mod calm;
mod compare;
mod energy_score;
mod heads;
mod llama;
mod reference;
mod set;
mod temperature;

use candle_core::Result;
use compare::Check;
use set::{Case, Set};

type Runner = fn(&Case, &mut Check) -> Result<()>;

macro_rules! rungs {
    ($($test:ident: $kind:literal => $runner:path;)*) => {
        const RUNNERS: &[(&str, Runner)] = &[$(($kind, $runner)),*];
        $(#[test]
        fn $test() {
            climb($kind, $runner);
        })*
    };
}

rungs! {
    golden_autoencoder: "autoencoder" => autoencoder::run;
    golden_calm_energy: "calm_energy" => calm::run;
    golden_llama_rope: "llama_rope" => llama::run;
    golden_energy_score: "energy_score" => energy_score::run;
    golden_brier: "brier" => brier::run;
    golden_temperature_sampling: "temperature_sampling" => temperature::run;
    golden_flow_head: "flow_head" => heads::flow;
    golden_diffusion_head: "diffusion_head" => heads::diffusion;
    golden_ar_baseline: "ar_baseline" => baseline::run;
}

/// Runs all cases of a kind and reports them together.
fn climb(kind: &str, runner: Runner) {
    let set = Set::read().unwrap();
    let mut failures = Vec::new();
    let mut found = false;
    for case in set.cases.iter().filter(|c| c.kind == kind) {
        found = true;
        let mut check = Check::default();
        let both = reference::same_weights_in_both_formats(case, &mut check);
        if let Err(e) = both.and_then(|()| runner(case, &mut check)) {
            check.fail(format!("{}: stopped: {e}", case.name));
        } else {
            case.leftovers().into_iter().for_each(|l| check.fail(format!("{}: {l}", case.name)));
        }
        check.table().iter().for_each(|line| println!("{line}"));
        failures.extend_from_slice(check.failures());
    }
    if !found {
        assert!(!set.promises(kind), "this set has no case of kind {kind}");
        println!("this set says that it has no case of kind {kind}");
    }
    assert!(failures.is_empty(), "{} comparisons failed:\n  {}", failures.len(), failures.join("\n  "));
}

fn known() -> Vec<&'static str> {
    RUNNERS.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn golden_every_kind_has_cases_and_every_case_a_runner() {
    let wrong = Set::read().unwrap().wrong_kinds(&known());
    assert!(wrong.is_empty(), "{}", wrong.join(", "));
}

#[test]
fn golden_a_kind_may_be_missing_only_where_the_set_says_so() {
    let mut set = Set::read().unwrap();
    set.kinds = None;
    set.cases.retain(|case| case.kind != "brier");
    assert_eq!(set.wrong_kinds(&known()), ["no case of kind brier"]);
    set.kinds = Some(known().into_iter().filter(|kind| *kind != "brier").map(str::to_owned).collect());
    assert!(set.wrong_kinds(&known()).is_empty());
    set.kinds = Some(vec!["brier".to_owned()]);
    set.cases.retain(|case| case.kind == "llama_rope");
    let wrong = set.wrong_kinds(&known());
    assert_eq!(
        wrong,
        ["no case of kind brier", "llama_rope is of kind llama_rope, which the manifest does not list"]
    );
}
