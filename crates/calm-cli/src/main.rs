//! The `calm` binary.

use std::process::ExitCode;

/// Large temporaries come and go in every step: an allocator that keeps them avoids most page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    calm_cli::main()
}
