//! No circles of files: the modules of a crate can be read one after the other.

use crate::graphs;

/// Circles that are still to be cut: the crate, and the modules that may stand in one. The list may only shrink.
const KNOWN: &[(&str, &[&str])] = &[(
    "calm-kernels",
    &[
        "attention",
        "collector",
        "context",
        "cuda",
        "cuda::adamw",
        "cuda::attention",
        "cuda::copies",
        "cuda::driver",
        "cuda::energy_score",
        "cuda::gpu",
        "cuda::gradients",
        "cuda::rotary",
        "cuda::shared",
        "cuda::staging",
        "cuda::turns",
        "device",
        "energy_score",
        "gradients",
        "moments",
        "nary",
        "rotary",
    ],
)];

#[test]
fn no_files_of_a_crate_need_each_other_in_a_circle() {
    let mut wrong = Vec::new();
    let mut seen = Vec::new();
    for (name, graph) in graphs() {
        let known = KNOWN.iter().find(|k| k.0 == name).map_or(&[][..], |k| k.1);
        for circle in graph.circles() {
            if !circle.iter().all(|module| known.contains(&module.as_str())) {
                let arrows = graph.arrows_between(&circle).join(", ");
                wrong.push(format!("{name}: {}: {arrows}", circle.join(", ")));
            }
            seen.extend(circle.into_iter().map(|module| (name.clone(), module)));
        }
    }
    for (name, modules) in KNOWN {
        for module in *modules {
            if !seen.contains(&((*name).to_owned(), (*module).to_owned())) {
                wrong.push(format!("{name}: {module} stands in no circle any more: take it from the list"));
            }
        }
    }
    assert!(wrong.is_empty(), "files in circles:\n{}", wrong.join("\n"));
}
