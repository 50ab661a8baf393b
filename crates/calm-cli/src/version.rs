//! Who we are.

use calm_run::Provenance;

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Commit the binary was built from, if it was built in a checkout.
pub fn commit() -> Option<String> {
    option_env!("CALM_COMMIT").filter(|c| !c.is_empty()).map(str::to_owned)
}

/// Kinds of devices compiled in.
pub fn features() -> Vec<String> {
    let cuda = calm_kernels::device::has_cuda().then_some("cuda");
    let nccl = calm_parallel::has_nccl().then_some("nccl");
    let mpi = calm_parallel::has_mpi().then_some("mpi");
    std::iter::once("cpu").chain(cuda).chain(nccl).chain(mpi).map(str::to_owned).collect()
}

/// Who runs this, with what, where and since when.
pub fn provenance(device: Option<String>) -> Provenance {
    let command = std::env::args().collect();
    let who = Provenance {
        command,
        version: VERSION.to_owned(),
        commit: commit(),
        device,
        ..Provenance::default()
    };
    Provenance { features: features(), ..who }.stamped()
}

/// What `calm --version` prints.
pub fn line() -> String {
    let commit = commit().map_or(String::new(), |c| format!(" ({c})"));
    format!("calm {VERSION}{commit}\nfeatures: {}", features().join(", "))
}
