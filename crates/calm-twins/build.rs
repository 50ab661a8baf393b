//! Compiles `kernels/*.cu` as plain C++ for the host.
//!
//! `CALM_TWINS_SANITIZE=1` adds the address and undefined-behaviour sanitisers; `CALM_TWINS_AHEAD=1` runs
//! each thread of a block as far ahead as barriers let it (`kernels/block_ahead.cuh`).

use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let kernels = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../kernels");
    let mut sources = Vec::new();
    for entry in std::fs::read_dir(&kernels)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    println!("cargo::rerun-if-changed={}", kernels.display());
    for switch in ["CALM_TWINS_SANITIZE", "CALM_TWINS_AHEAD"] {
        println!("cargo::rerun-if-env-changed={switch}");
    }
    let on = |switch: &str| std::env::var_os(switch).is_some_and(|v| v == "1");

    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).flag("-x").flag("c++").files(&sources);
    // A product and a sum stay two roundings, as in `nvcc --fmad=false`.
    build.flag("-ffp-contract=off").extra_warnings(true);
    if on("CALM_TWINS_AHEAD") {
        build.define("RUN_AHEAD", None);
    }
    let sanitize = on("CALM_TWINS_SANITIZE");
    if sanitize {
        build.flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=all").debug(true);
    }
    build.try_compile("calm_twins").map_err(|e| {
        format!(
            "calm-twins runs the CUDA kernels on the host and needs a C++17 compiler (g++ or clang++, or the \
             one that CXX names): {e}"
        )
    })?;
    if sanitize {
        // After the kernels' library, which needs them.
        for runtime in ["asan", "ubsan"] {
            println!("cargo::rustc-link-lib=dylib={runtime}");
        }
    }
    Ok(())
}
