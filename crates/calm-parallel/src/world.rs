//! Who is who: rank, number of processes and place on the machine, from what a launcher leaves in the environment.
//!
//! Three launchers start the processes themselves (Open MPI, MPICH, torchrun); if two of them speak they must say the same.
//! SLURM may be the launcher, or may have started one of these on each machine: then its numbers are those of machines, and its
//! world is no larger than theirs.

use std::fmt;

use crate::error::{Error, Result};

/// What started the processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Launcher {
    /// Nothing: one process.
    None,
    /// `mpirun` of Open MPI, or `srun` with its plug-in.
    OpenMpi,
    /// `mpiexec` of MPICH and its family.
    Mpich,
    /// `torchrun`.
    Torchrun,
    /// `srun`.
    Slurm,
}

impl Launcher {
    /// Its variables: rank, number of processes, place on the machine.
    const fn variables(self) -> [&'static str; 3] {
        match self {
            Self::None => ["", "", ""],
            Self::OpenMpi => ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
            Self::Mpich => ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
            Self::Torchrun => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
            Self::Slurm => ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
        }
    }

    /// Whether MPI finds the other processes: those of `srun` where that was told which MPI there is (`--mpi=pmix`, or the site's own
    /// default). MPI that is started without it ends the process.
    pub fn offers_mpi(self, variable: impl Fn(&str) -> Option<String>) -> bool {
        match self {
            Self::None | Self::OpenMpi | Self::Mpich => true,
            Self::Torchrun => false,
            Self::Slurm => {
                ["PMIX_RANK", "PMI_RANK", "PMI_FD"].into_iter().any(|name| variable(name).is_some())
            }
        }
    }
}

/// A process among the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// Which of them this is, from 0.
    pub rank: usize,
    /// How many there are.
    pub size: usize,
    /// Which of those on its machine it is; the rank where nobody says.
    pub local_rank: usize,
    /// What started them.
    pub launcher: Launcher,
}

impl World {
    /// One process.
    pub const ALONE: Self = Self { rank: 0, size: 1, local_rank: 0, launcher: Launcher::None };

    /// Names of all variables in which launchers say who is who, and where the others are met. A process that is no part of
    /// their world, but a command of its own, goes without them.
    pub fn variables() -> impl Iterator<Item = &'static str> {
        let launchers = [Launcher::OpenMpi, Launcher::Mpich, Launcher::Torchrun, Launcher::Slurm];
        let others = ["SLURM_STEP_ID", "MASTER_ADDR", "MASTER_PORT", "PMIX_RANK", "PMI_FD"];
        launchers.into_iter().flat_map(Launcher::variables).chain(others)
    }

    /// The world as the environment of this process has it.
    ///
    /// # Errors
    /// As [`World::find`].
    pub fn here() -> Result<Self> {
        Self::find(|name| std::env::var(name).ok())
    }

    /// The world as these variables have it.
    ///
    /// # Errors
    /// Half of what is needed, ranks that cannot be, launchers that contradict each other: with what was found.
    pub fn find(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let mut found: Vec<Self> = Vec::new();
        for launcher in [Launcher::OpenMpi, Launcher::Mpich, Launcher::Torchrun] {
            found.extend(Self::of(launcher, &variable)?);
        }
        // In a batch script, where SLURM has started nothing yet, there is no step. An interactive one has a task that is a shell.
        let step = variable("SLURM_STEP_ID").is_some() && variable("SLURM_STEP_NUM_TASKS").is_some();
        let slurm = if step { Self::of(Launcher::Slurm, &variable)? } else { None };
        // SLURM itself sets the variables of MPICH at some sites, whatever program it starts. An mpiexec below it says another thing.
        let by_slurm = |one: &Self| slurm.as_ref().is_some_and(|s| (s.rank, s.size) == (one.rank, one.size));
        found.retain(|one| one.launcher != Launcher::Mpich || !by_slurm(one));
        let Some(first) = found.first() else { return Ok(slurm.unwrap_or(Self::ALONE)) };
        let contradicts =
            |other: &Self| (first.rank, first.size) != (other.rank, other.size) && other.size > 1;
        let other = found.iter().skip(1).find(|other| contradicts(other));
        if let Some(other) = other.or(slurm.as_ref().filter(|slurm| slurm.size > first.size)) {
            return Err(Error::new(
                format!(
                    "the environment contradicts itself: {}, but {}",
                    first.said(&variable),
                    other.said(&variable)
                ),
                "start the processes with one launcher, and unset the variables of others; `srun` needs --mpi=pmix for Open MPI",
            ));
        }
        Ok(first.clone())
    }

    /// What one launcher says; none if it was not there.
    fn of(launcher: Launcher, variable: &impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let [rank, size, local] = launcher.variables();
        let said = || -> String {
            let one =
                |name| variable(name).map_or(format!("{name} is not set"), |value| format!("{name}={value}"));
            [rank, size, local].map(one).join(", ")
        };
        let wrong = |why: &str| {
            Error::new(
                format!("the environment is that of one of several processes, but {why}: {}", said()),
                "start the processes with mpirun, srun or torchrun, which set all of them; for one process unset them",
            )
        };
        let number = |name: &str| -> Result<Option<usize>> {
            let text = variable(name);
            text.map(|text| text.trim().parse().map_err(|_| wrong(&format!("{name} is no number"))))
                .transpose()
        };
        let local = number(local)?;
        let (rank, size) = match (number(rank)?, number(size)?) {
            (None, None) => return Ok(None),
            (Some(rank), Some(size)) => (rank, size),
            (Some(_), None) => return Err(wrong(&format!("{size} is missing"))),
            // Some set the number alone, for all programs of a job; with one process it says nothing.
            (None, Some(1)) => return Ok(None),
            (None, Some(_)) => return Err(wrong(&format!("{rank} is missing"))),
        };
        if size == 0 || rank >= size || local.is_some_and(|local| local >= size) {
            return Err(wrong("a rank is not below the number of processes"));
        }
        Ok(Some(Self { rank, size, local_rank: local.unwrap_or(rank), launcher }))
    }

    fn said(&self, variable: &impl Fn(&str) -> Option<String>) -> String {
        let [rank, size, _] = self.launcher.variables();
        let one = |name| format!("{name}={}", variable(name).unwrap_or_default());
        [rank, size].map(one).join(", ")
    }
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rank, size, .. } = self;
        match self.launcher {
            Launcher::None => write!(f, "this is one process"),
            launcher => {
                let [rank_name, size_name, _] = launcher.variables();
                write!(f, "this is rank {rank} of {size} processes ({rank_name}={rank}, {size_name}={size})")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(variables: &[(&str, &str)]) -> Result<World> {
        World::find(|name| variables.iter().find(|v| v.0 == name).map(|v| v.1.to_owned()))
    }

    #[test]
    fn without_a_launcher_there_is_one_process() {
        assert_eq!(find(&[]), Ok(World::ALONE));
        assert_eq!(find(&[("RANK", ""), ("WORLD_SIZE", " ")]), Ok(World::ALONE));
        assert_eq!(find(&[("WORLD_SIZE", "1")]), Ok(World::ALONE));
    }

    #[test]
    fn without_the_variables_of_all_launchers_there_is_one_process() {
        let names: Vec<&str> = World::variables().collect();
        let rank = |name: &str| if name.ends_with("SIZE") || name.ends_with("TASKS") { "4" } else { "1" };
        let all = World::find(|name| Some(rank(name).to_owned())).unwrap();
        assert_eq!((all.rank, all.size), (1, 4));
        let without = World::find(|name| (!names.contains(&name)).then(|| rank(name).to_owned()));
        assert_eq!(without, Ok(World::ALONE));
    }

    #[test]
    fn every_launcher_is_understood() {
        for (variables, launcher, local) in [
            (
                [
                    ("OMPI_COMM_WORLD_RANK", "3"),
                    ("OMPI_COMM_WORLD_SIZE", "8"),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", "1"),
                ]
                .as_slice(),
                Launcher::OpenMpi,
                1,
            ),
            (&[("PMI_RANK", "3"), ("PMI_SIZE", "8")], Launcher::Mpich, 3),
            (&[("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")], Launcher::Torchrun, 3),
            (
                &[
                    ("SLURM_STEP_ID", "0"),
                    ("SLURM_PROCID", "3"),
                    ("SLURM_STEP_NUM_TASKS", "8"),
                    ("SLURM_LOCALID", "0"),
                ],
                Launcher::Slurm,
                0,
            ),
        ] {
            let world = find(variables).unwrap();
            assert_eq!((world.rank, world.size, world.local_rank, world.launcher), (3, 8, local, launcher));
        }
    }

    #[test]
    fn a_batch_script_of_slurm_is_one_process() {
        assert_eq!(find(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]), Ok(World::ALONE));
    }

    #[test]
    fn what_slurm_says_for_mpich_is_its_own() {
        let slurm = [
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "9"),
            ("SLURM_STEP_NUM_TASKS", "16"),
            ("SLURM_LOCALID", "1"),
        ];
        let pmi = [("PMI_RANK", "9"), ("PMI_SIZE", "16")];
        let world = find(&[slurm.as_slice(), &pmi].concat()).unwrap();
        assert_eq!((world.rank, world.local_rank, world.launcher), (9, 1, Launcher::Slurm));
        // An mpiexec that SLURM started once on each of two nodes.
        let node = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        let pmi = [("PMI_RANK", "9"), ("PMI_SIZE", "16")];
        let world = find(&[node.as_slice(), &pmi].concat()).unwrap();
        assert_eq!((world.rank, world.size, world.launcher), (9, 16, Launcher::Mpich));
        // torchrun, one on each of two nodes.
        let node = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        let pmi = [("PMI_RANK", "1"), ("PMI_SIZE", "2")];
        let torch = [("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")];
        let world = find(&[node.as_slice(), &pmi, &torch].concat()).unwrap();
        assert_eq!((world.rank, world.size, world.launcher), (9, 16, Launcher::Torchrun));
    }

    #[test]
    fn srun_offers_mpi_where_it_was_told_to() {
        let offers =
            |launcher: Launcher, set: &str| launcher.offers_mpi(|name| (name == set).then(String::new));
        assert!(!offers(Launcher::Slurm, "") && !offers(Launcher::Torchrun, "PMIX_RANK"));
        assert!(["PMIX_RANK", "PMI_RANK", "PMI_FD"].into_iter().all(|set| offers(Launcher::Slurm, set)));
        assert!(offers(Launcher::OpenMpi, "") && offers(Launcher::Mpich, ""));
    }

    #[test]
    fn a_launcher_inside_of_slurm_counts() {
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        let inner = [("OMPI_COMM_WORLD_RANK", "9"), ("OMPI_COMM_WORLD_SIZE", "16")];
        let world = find(&[slurm.as_slice(), &inner].concat()).unwrap();
        assert_eq!((world.rank, world.size, world.launcher), (9, 16, Launcher::OpenMpi));
    }

    #[test]
    fn contradictions_are_errors_that_show_what_was_found() {
        let ompi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        let torch = [("RANK", "2"), ("WORLD_SIZE", "4")];
        let e = find(&[ompi.as_slice(), &torch].concat()).unwrap_err();
        for part in ["OMPI_COMM_WORLD_RANK=1", "OMPI_COMM_WORLD_SIZE=4", "RANK=2", "WORLD_SIZE=4"] {
            assert!(e.what.contains(part), "{e}");
        }
        // srun without a plug-in for MPI: every process believes to be alone.
        let alone = [("OMPI_COMM_WORLD_RANK", "0"), ("OMPI_COMM_WORLD_SIZE", "1")];
        let slurm = [("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
        let e = find(&[alone.as_slice(), &slurm].concat()).unwrap_err();
        assert!(e.what.contains("SLURM_STEP_NUM_TASKS=2") && e.remedy.contains("pmix"), "{e}");
        for (variables, part) in [
            ([("RANK", "1"), ("LOCAL_RANK", "0")], "WORLD_SIZE is missing"),
            ([("WORLD_SIZE", "4"), ("LOCAL_RANK", "0")], "RANK is missing"),
            ([("RANK", "4"), ("WORLD_SIZE", "4")], "not below"),
            ([("RANK", "one"), ("WORLD_SIZE", "4")], "RANK is no number"),
            ([("RANK", "-1"), ("WORLD_SIZE", "4")], "RANK is no number"),
        ] {
            let e = find(&variables).unwrap_err();
            assert!(e.what.contains(part) && e.what.contains(&format!("={}", variables[0].1)), "{e}");
        }
    }
}
