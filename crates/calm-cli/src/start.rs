//! Before a command runs: what was typed and what stands in the environment, as a person means it; and the threads.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::error::Hinted;

/// Variables that decide something here. An empty one means none, as in a script that sets what may be unset.
const VARIABLES: [&str; 5] =
    ["CALM_DEVICE", "CALM_CACHE", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS", "MIMALLOC_PURGE_DELAY"];

/// Takes variables that are set to nothing out of the environment.
///
/// # Safety
/// No other thread may run yet.
pub unsafe fn forget_empty_variables() {
    for name in VARIABLES {
        if std::env::var_os(name).is_some_and(|value| value.is_empty()) {
            // SAFETY: the caller runs no other thread.
            unsafe { std::env::remove_var(name) };
        }
    }
}

/// Takes what a launcher said out of the environment: a command that is none of several processes, and what it starts.
///
/// # Safety
/// No other thread may run yet.
pub unsafe fn forget_launchers() {
    for name in calm_parallel::World::variables() {
        // SAFETY: the caller runs no other thread.
        unsafe { std::env::remove_var(name) };
    }
}

/// The arguments, with `~/` put right in `--option=~/path`: shells only know it at the start of a word.
pub fn arguments(given: impl Iterator<Item = OsString>, home: Option<&Path>) -> Vec<OsString> {
    let expand = |argument: OsString| -> OsString {
        let expanded = argument.to_str().zip(home).and_then(|(text, home)| {
            let (option, path) = text.split_once("=~/")?;
            // `--set key=~/path` is a value of a configuration, which knows itself.
            let is_option = option.starts_with("--") && !option.contains('=');
            is_option.then(|| {
                let mut out = OsString::from(format!("{option}="));
                out.push(home.join(path));
                out
            })
        });
        expanded.unwrap_or(argument)
    };
    given.map(expand).collect()
}

/// Threads for each core, beyond which more only wait for each other; and a number that is fine everywhere.
const PER_CORE: usize = 4;
const FINE: usize = 16;

/// How many threads are used where so many are asked for, and what to say if they are fewer.
pub fn capped(asked: usize, cores: usize) -> (usize, Option<String>) {
    let most = (PER_CORE * cores).max(FINE);
    if asked <= most {
        return (asked, None);
    }
    let note =
        format!("{asked} threads were asked for: {most} are used, this machine runs {cores} at a time");
    (most, Some(note))
}

/// Starts the threads of everything below, and decides their numbers before any exists. `threads` as asked for by
/// `--threads`; what is used comes back, with a note if that is less.
///
/// # Errors
/// The system gives no threads.
pub fn threads(threads: Option<usize>) -> Result<(Option<usize>, Option<String>), Hinted> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let named = |name: &str| std::env::var(name).ok().and_then(|n| n.parse().ok()).filter(|n| *n > 0);
    let asked = threads.filter(|n| *n > 0).or_else(|| named("RAYON_NUM_THREADS"));
    let (used, note) = match asked.map(|asked| capped(asked, cores)) {
        Some((used, note)) => (Some(used), note),
        None => (None, None),
    };
    let mut set = vec![];
    if let Some(n) = used {
        set.push(("RAYON_NUM_THREADS", n.to_string()));
    }
    // candle's second pool waits by spinning: with any other work on the machine it made a step three times
    // slower. What it would do in parallel is bound by memory anyway.
    if std::env::var_os("CANDLE_NUM_THREADS").is_none() {
        set.push(("CANDLE_NUM_THREADS", "1".to_owned()));
    }
    for (name, value) in set {
        // SAFETY: called once from `main` before any other thread is started.
        unsafe { std::env::set_var(name, value) };
    }
    // The stack of a main thread.
    let pool = || rayon::ThreadPoolBuilder::new().stack_size(8 << 20);
    let refused = |e: &rayon::ThreadPoolBuildError| std::error::Error::source(e).map(ToString::to_string);
    // One thread is there for certain: this one.
    let built = if used == Some(1) { pool().use_current_thread() } else { pool() }.build_global();
    // Without a cause there is a pool already, which is as good.
    if let Err(e) = built
        && let Some(why) = refused(&e)
    {
        let n = used.unwrap_or(cores);
        return Err(Hinted::new(
            format!("the system starts no {n} threads: {why}"),
            "--threads 1 does without; how many there may be, `ulimit -u` says",
        ));
    }
    Ok((used.or(threads), note))
}

/// A folder below `~`, as a configuration and a command line name it.
pub fn home() -> Option<std::path::PathBuf> {
    std::env::home_dir().filter(|home| home.as_os_str() != OsStr::new(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_behind_an_option_is_found() {
        let given = ["calm", "--data=~/x y", "--set", "data.source.path=~/x", "--set=a=~/x", "~/x", "a=~/x"];
        let arguments = arguments(given.iter().map(OsString::from), Some(Path::new("/home/me")));
        let expected =
            ["calm", "--data=/home/me/x y", "--set", "data.source.path=~/x", "--set=a=~/x", "~/x", "a=~/x"];
        assert_eq!(arguments, expected.map(OsString::from));
    }

    #[test]
    fn too_many_threads_are_fewer_and_said() {
        assert_eq!(capped(16, 2), (16, None));
        assert_eq!(capped(400, 128), (400, None));
        let (used, note) = capped(20_000, 2);
        assert_eq!(used, 16);
        assert!(note.is_some_and(|note| note.contains("20000") && note.contains("16 are used")));
    }
}
