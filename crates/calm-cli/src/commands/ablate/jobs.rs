//! The runs of an ablation as jobs: a script that `sbatch` takes as an array and `bash` in order, and the command that stands in
//! each of its lines.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Result;
use calm_kernels::device::Choice;
use calm_run::Error;
use calm_study::execute::{JobEnd, execute_job, jobs};
use calm_study::plan::Ablation;

use crate::args::AblateArgs;
use crate::children::Children;
use crate::error::Hinted;
use crate::ui::{Printer, pasted, quoted};

/// Trains one run of the ablation in a folder.
pub(super) fn run(name: &str, folder: &Path, children: &Children<'_>, printer: &Printer) -> Result<()> {
    let ablation = Ablation::open(folder)?;
    match execute_job(&ablation, name, children)? {
        JobEnd::Stopped => return Err(Error::Stopped.into()),
        JobEnd::Trained => printer.note(format!("{name} is trained")),
        JobEnd::WasTrained => printer.note(format!("{name}: nothing is left to do here")),
        // The worker has said whose it is.
        JobEnd::AtWork => {}
        JobEnd::Left(owner) => {
            let who = owner.map_or_else(|| "another process".to_owned(), |owner| owner.to_string());
            return Err(Hinted::new(
                format!("{name} is not trained: it was left to {who}"),
                "run the same command again when that one has ended: it trains what is missing then (one that was killed \
                 on another machine counts as at work for two minutes)",
            )
            .into());
        }
        JobEnd::Failed { run, reason } => {
            return Err(Hinted::new(
                format!("{run} failed: {reason}"),
                "mend the cause and run the same command again: it goes on from its last checkpoint",
            )
            .into());
        }
    }
    Ok(())
}

/// The script of the runs that are left to train.
pub(super) fn script(
    args: &AblateArgs,
    threads: Option<usize>,
    device: Choice,
    ablation: &Ablation,
) -> Result<String> {
    let here = std::env::current_dir()?;
    let program = std::env::current_exe()?;
    let mut options = format!(" --cache {}", pasted(&args.cache));
    if device != Choice::Auto {
        let _ = write!(options, " --device {device}");
    }
    if let Some(threads) = threads {
        let _ = write!(options, " --threads {threads}");
    }
    let command = |name: &str| {
        // A name may begin with `-`.
        let (out, name) = (pasted(&ablation.folder), quoted(name));
        format!("$go \"$calm\" ablate --out {out} --job={name}{options}")
    };
    // What was typed, without what asked for the script.
    let mut again = shown(&quoted(&program.to_string_lossy()));
    for word in std::env::args_os().skip(1).filter(|word| word != "--print-jobs") {
        let Some(word) = word.to_str() else {
            return Err(Hinted::new(
                format!("a script cannot repeat {}: it is no text in UTF-8", word.to_string_lossy()),
                "give the file or folder another name",
            )
            .into());
        };
        let _ = write!(again, " {}", shown(&quoted(word)));
    }
    let place = Place { folder: &ablation.folder, here: &here, program: &program, again: &again };
    Ok(text(&jobs(ablation), &command, &place))
}

/// Where the jobs run, and what.
struct Place<'a> {
    folder: &'a Path,
    here: &'a Path,
    program: &'a Path,
    /// The command that collects what the jobs have done.
    again: &'a str,
}

/// The script of jobs in their [groups](jobs).
fn text(groups: &[Vec<String>; 3], command: &dyn Fn(&str) -> String, place: &Place<'_>) -> String {
    let name = place.folder.file_name().unwrap_or(place.folder.as_os_str()).to_string_lossy();
    let [autoencoders, alone, after] = groups;
    let all: Vec<&String> = groups.iter().flatten().collect();
    if all.is_empty() {
        return format!(
            "#!/bin/bash\n# Nothing is left to train in {}. To score and report:\n#   {}\n",
            shown(&place.folder.to_string_lossy()),
            place.again
        );
    }
    let last = all.len() - 1;
    let mut out = format!(
        "#!/bin/bash\n#SBATCH --job-name={}\n#SBATCH --array=0-{last}\n#SBATCH --signal=B:TERM@120\n",
        quoted(&shown(&name))
    );
    let _ = write!(
        out,
        "# {}: {} to train, one a task. What another process trains is left to it.\n\
         #   bash jobs.sh       all of them, in order\n\
         #   sbatch jobs.sh     as an array; what a task needs (time, cores, a GPU) stands before jobs.sh\n",
        shown(&place.folder.to_string_lossy()),
        all.len(),
    );
    if !after.is_empty() {
        let (first, second) = (autoencoders.len(), autoencoders.len() + alone.len());
        let _ = write!(
            out,
            "# Tasks {} wait for an autoencoder, or train it if nobody does. So that they take no node meanwhile:\n\
             #   a=$(sbatch --parsable --array={} jobs.sh)\n",
            range(second, all.len()),
            range(0, first),
        );
        if !alone.is_empty() {
            let _ = writeln!(out, "#   sbatch --array={} jobs.sh", range(first, second));
        }
        let _ =
            writeln!(out, "#   sbatch --array={} --dependency=afterany:$a jobs.sh", range(second, all.len()));
    }
    let _ = writeln!(out, "# At the end, to train what failed, to score and to report:\n#   {}", place.again);
    let _ = write!(
        out,
        "cd {} || exit 1\ncalm={}\njob() {{\n  case $1 in\n",
        pasted(place.here),
        pasted(place.program)
    );
    for (number, name) in all.iter().enumerate() {
        let _ = writeln!(out, "  {number}) {} ;;", command(name));
    }
    let _ = write!(
        out,
        "  *) echo \"there is no job $1\" >&2; return 1 ;;\n  esac\n}}\n\
         if [ -n \"$SLURM_ARRAY_TASK_ID\" ]; then\n  go=exec\n  job \"$SLURM_ARRAY_TASK_ID\"\n  exit\nfi\n\
         go= failed=0\nfor number in {{0..{last}}}; do\n  job \"$number\" || failed=$?\n  \
         case $failed in 129|130|131|143) break ;; esac\ndone\nexit \"$failed\"\n"
    );
    out
}

/// Numbers from the first to the one before the last.
fn range(from: usize, to: usize) -> String {
    if to == from + 1 { from.to_string() } else { format!("{from}-{}", to.saturating_sub(1)) }
}

/// A text in a comment: one line.
fn shown(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(groups: [&[&str]; 3]) -> String {
        let groups = groups.map(|group| group.iter().map(|name| (*name).to_owned()).collect());
        let place = Place {
            folder: Path::new("runs/my k"),
            here: Path::new("/home/a b"),
            program: Path::new("/bin/true"),
            again: "calm ablate --config k.yaml",
        };
        text(&groups, &|name| format!("$go \"$calm\" --job={}", quoted(name)), &place)
    }

    #[test]
    fn what_others_need_comes_first_and_has_an_array_of_its_own() {
        let script = script([&["autoencoders/a", "autoencoders/b"], &["c"], &["a-1", "b 1"]]);
        let lines: Vec<&str> = script.lines().collect();
        for line in [
            "#SBATCH --job-name='my k'",
            "#SBATCH --array=0-4",
            "#   a=$(sbatch --parsable --array=0-1 jobs.sh)",
            "#   sbatch --array=2 jobs.sh",
            "#   sbatch --array=3-4 --dependency=afterany:$a jobs.sh",
            "cd '/home/a b' || exit 1",
            "  0) $go \"$calm\" --job=autoencoders/a ;;",
            "  4) $go \"$calm\" --job='b 1' ;;",
            // One that is killed for its memory (137) does not take the others along.
            "  case $failed in 129|130|131|143) break ;; esac",
        ] {
            assert!(lines.contains(&line), "{line} in\n{script}");
        }
        assert!(script.starts_with("#!/bin/bash\n#SBATCH"), "sbatch reads no option behind a command");
    }

    #[test]
    fn without_autoencoders_one_array_is_enough_and_nothing_left_is_no_array() {
        assert!(!script([&[], &["c", "d"], &[]]).contains("dependency"));
        assert!(!script([&[], &[], &[]]).contains("SBATCH"));
    }
}
