//! `calm train` on several processes: refused where a build cannot, and with MPI what one process does, whoever fails.
//!
//! With MPI: `cargo test --release -p calm-cli --features mpi --test processes`; `gpus.rs` says how with NCCL.
#![allow(clippy::unwrap_used)]

#[cfg(all(feature = "nccl", unix))]
mod gpus;
mod house;
#[cfg(all(feature = "mpi", unix))]
mod mpi;

use house::House;

#[test]
fn an_environment_that_contradicts_itself_is_an_error_that_shows_it() {
    let house = House::new();
    let done = house.calm(&house.train(&[]), &[("RANK", "1"), ("OMPI_COMM_WORLD_RANK", "")]);
    assert_eq!(done.code, 1, "{done:?}");
    assert!(done.err.contains("error: ") && done.err.contains("WORLD_SIZE is missing"), "{done:?}");
    let both =
        [("RANK", "1"), ("WORLD_SIZE", "2"), ("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "4")];
    let done = house.calm(&house.train(&[]), &both);
    for part in ["OMPI_COMM_WORLD_RANK=0", "OMPI_COMM_WORLD_SIZE=4", "RANK=1", "WORLD_SIZE=2"] {
        assert!(done.err.contains(part), "{done:?}");
    }
    assert!(!house.path("run").exists(), "nothing was trained");
}

#[test]
fn processes_of_torchrun_are_told_what_joins_them() {
    let house = House::new();
    for rank in ["0", "1"] {
        let world = [("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_RANK", rank), ("MASTER_ADDR", "localhost")];
        let done = house.calm(&house.train(&[]), &world);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(done.err.contains("--device cuda") && done.err.contains("mpirun"), "{done:?}");
        // The others wait a little first: a launcher ends all as soon as the first one has.
        assert_eq!(done.err.contains("rank 1: "), rank == "1", "{done:?}");
        assert!(!house.path("run").exists());
    }
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_build_without_mpi_says_so_and_never_trains_the_same_thing_n_times() {
    let house = House::new();
    let worlds: [&[(&str, &str)]; 3] = [
        &[("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "2")],
        &[("PMI_RANK", "0"), ("PMI_SIZE", "2")],
        &[("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "2")],
    ];
    for world in worlds {
        let done = house.calm(&house.train(&[]), world);
        assert_eq!(done.code, 1, "{done:?}");
        assert!(
            done.err.contains("rank 0 of 2") && done.err.contains("feature `mpi` is missing"),
            "{done:?}"
        );
        assert!(done.err.contains("--features mpi"), "{done:?}");
        assert!(!house.path("run").exists());
    }
    for arguments in
        [house.train(&["--processes", "2"]), vec!["bench", "--what", "exchange", "--processes", "2"]]
    {
        let done = house.calm(&arguments, &[]);
        assert!(done.code == 1 && done.err.contains("feature `mpi` is missing"), "{done:?}");
        assert!(done.err.contains("--features mpi"), "{done:?}");
    }
}
