//! A folder belongs to one process at a time: two that train the same run would write every line twice and take each
//! other's checkpoints away. So does a file that grows.
//!
//! `.lock` in the folder (`.NAME.lock` beside a file, or beside a folder that is claimed for a process to come) is locked by
//! the operating system for as long as its owner lives, and says who that is. Where the system's lock tells nothing (a file system without locks, or one that knows only those of its own machine), the
//! heartbeat decides: the owner renews it every `BEAT`, and one that has not been renewed for `STALE` belongs to
//! nobody. The clocks of two machines need not agree: a heartbeat that looks old by the clock is watched for a while
//! before it is taken for dead. Who claims a folder that several machines may claim looks again, a moment later, whether it
//! was the last one to come.
//!
//! Whoever reads needs no lock. The file stays when it is let go, empty: a file that is removed while others wait for
//! it would be locked twice.

use std::collections::hash_map::RandomState;
use std::fs::{File, OpenOptions, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::host;

/// The file. It is no content of a folder: one that holds nothing else is empty.
pub const LOCK: &str = ".lock";
/// How often an owner shows that it lives.
const BEAT: Duration = Duration::from_secs(10);
/// After so long without a sign an owner is watched, and then taken for dead.
const STALE: Duration = Duration::from_secs(120);

/// Those who come within this time may not have seen each other.
const TOGETHER: Duration = Duration::from_millis(200);

/// Who works on a folder or a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its process.
    pub process: u32,
    /// Its machine.
    pub host: String,
    /// Its command line.
    pub command: String,
    /// When it took the folder, in UTC.
    pub since: String,
    /// Its last sign of life: seconds since 1970 by its own clock, always as many digits.
    beat: String,
    /// Drawn when it took the folder: tells apart those who came at the same time.
    #[serde(default)]
    draw: String,
}

impl Owner {
    /// Whether it is a process of this machine, and is still there, as far as the system shows its processes.
    pub fn lives_here(&self) -> bool {
        let processes = Path::new("/proc");
        self.host == host::name()
            && (!processes.join("self").exists() || processes.join(self.process.to_string()).exists())
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} on {} since {} ({})", self.process, self.host, self.since, self.command)
    }
}

/// A folder or a file that belongs to this process until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// Ends the heartbeat when it goes.
    beating: Option<(Sender<()>, JoinHandle<()>)>,
}

/// What came of asking for a folder that others may ask for too.
#[derive(Debug)]
pub enum Claim {
    /// It is this process's until the lock is dropped.
    Ours(Lock),
    /// Another process has it: which, as far as that is known.
    Theirs(Option<Owner>),
}

/// How long signs of life are waited for; tests wait less.
#[derive(Clone, Copy)]
struct Patience {
    beat: Duration,
    stale: Duration,
}

/// When an owner looks again whether it is the only one that came.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// Where the system has no lock for the file.
    WithoutLocks,
    /// Always: the lock may be known to this machine alone.
    Always,
}

impl Lock {
    /// Makes the folder if needed, and takes it. `note` hears of an owner that died without letting go.
    ///
    /// # Errors
    /// It cannot be written in, or another process works on it: which, where, and since when.
    pub fn take(folder: &Path, note: &mut dyn FnMut(&str)) -> Result<Self> {
        Self::take_patiently(folder, note, Patience { beat: BEAT, stale: STALE }, &host::name())
    }

    fn take_patiently(
        folder: &Path,
        note: &mut dyn FnMut(&str),
        patience: Patience,
        host: &str,
    ) -> Result<Self> {
        let mut note = |left: &str| note(&format!("{} was left by {left}", folder.display()));
        Self::take_at(&folder.join(LOCK), &mut note, patience, host, Doubt::WithoutLocks)?.or_refused(folder)
    }

    /// The same of a file, which need not be there.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn take_file(file: &Path, note: &mut dyn FnMut(&str)) -> Result<Self> {
        let patience = Patience { beat: BEAT, stale: STALE };
        let mut note = |left: &str| note(&format!("{} was left by {left}", file.display()));
        Self::take_at(&beside(file), &mut note, patience, &host::name(), Doubt::WithoutLocks)?
            .or_refused(file)
    }

    /// Claims a folder for a process that lets another one work in it: by a file beside the folder, whose own lock stays free.
    ///
    /// # Errors
    /// The folder around it cannot be written in.
    pub fn claim(folder: &Path) -> Result<Claim> {
        let patience = Patience { beat: BEAT, stale: STALE };
        Self::take_at(&beside(folder), &mut |_| (), patience, &host::name(), Doubt::Always)
    }

    /// The same for a moment, to put in order what nobody works on: without the second look, which takes time.
    ///
    /// # Errors
    /// As [`Lock::claim`].
    pub fn claim_briefly(folder: &Path) -> Result<Claim> {
        let patience = Patience { beat: BEAT, stale: STALE };
        Self::take_at(&beside(folder), &mut |_| (), patience, &host::name(), Doubt::WithoutLocks)
    }

    /// Takes what the file at `path` stands for.
    fn take_at(
        path: &Path,
        note: &mut dyn FnMut(&str),
        patience: Patience,
        host: &str,
        doubt: Doubt,
    ) -> Result<Claim> {
        let folder = path.parent().unwrap_or(Path::new(""));
        calm_files::create_folder(folder).map_err(|e| Error::io("create", folder, e))?;
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path);
        let mut file = open.map_err(|e| Error::io("write", path, e))?;
        let known = match patiently(&file) {
            Err(TryLockError::WouldBlock) => return Ok(Claim::Theirs(owner_soon(path))),
            // Whether the system's lock says anything about processes of this machine.
            Ok(()) => true,
            Err(TryLockError::Error(_)) => false,
        };
        if let Some(owner) = read_owner(path) {
            // On this machine the system ended its lock with it; of another one only the heartbeat tells.
            if !(known && owner.host == host) && lives(path, &owner, patience) {
                return Ok(Claim::Theirs(Some(owner)));
            }
            note(&format!("{owner}, which has ended: taken over"));
        }
        let owner = Owner {
            process: std::process::id(),
            host: host.to_owned(),
            command: command(),
            since: host::now(),
            beat: beat(),
            draw: draw(),
        };
        let text = text(&owner);
        let write = |file: &mut File| -> std::io::Result<()> {
            file.set_len(0)?;
            file.seek(SeekFrom::Start(0))?;
            file.write_all(text.as_bytes())
        };
        write(&mut file).map_err(|e| Error::io("write", path, e))?;
        if !known || doubt == Doubt::Always {
            // Two may have come at once: the last one that wrote has it. Another machine sees what has left this one.
            let _ = file.sync_data();
            std::thread::sleep(TOGETHER);
            match read_owner(path) {
                Some(found) if found.draw == owner.draw => {}
                found => return Ok(Claim::Theirs(found)),
            }
        }
        Ok(Claim::Ours(Self { beating: heartbeat(path, owner, patience.beat), file }))
    }

    /// Whether another process works on the folder now, and who, as far as that is known. An owner on another machine is
    /// told by its heartbeat. Nothing is written: the folder may be on a disk that can only be read.
    pub fn holder(folder: &Path) -> Option<Option<Owner>> {
        let path = folder.join(LOCK);
        let file = File::open(&path).ok()?;
        let known = match file.try_lock_shared() {
            Err(TryLockError::WouldBlock) => return Some(read_owner(&path)),
            Ok(()) => true,
            Err(TryLockError::Error(_)) => false,
        };
        let owner = read_owner(&path)?;
        let elsewhere = !known || owner.host != host::name();
        (elsewhere && is_recent(&owner, STALE)).then_some(Some(owner))
    }
}

/// Takes the lock; whoever only looks ([`Lock::holder`]) has it for a moment, which is waited for.
fn patiently(file: &File) -> std::result::Result<(), TryLockError> {
    for _ in 0..20 {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(10)),
            taken => return taken,
        }
    }
    file.try_lock()
}

impl Claim {
    /// The lock, where only this process may work.
    fn or_refused(self, what: &Path) -> Result<Lock> {
        match self {
            Self::Ours(lock) => Ok(lock),
            Self::Theirs(owner) => Err(taken(what, owner.as_ref())),
        }
    }
}

/// The file beside a file or folder that says who has it.
fn beside(file: &Path) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}{LOCK}"))
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.beating.take() {
            drop(stop);
            let _ = thread.join();
        }
        // Empty: let go by its owner. The system's lock ends with the file.
        let _ = self.file.set_len(0);
    }
}

fn taken(what: &Path, owner: Option<&Owner>) -> Error {
    let who = owner.map_or_else(String::new, |owner| format!(": {owner}"));
    Error::user(
        format!("another calm works on {}{who}", what.display()),
        "wait for it or stop it; --out gives this one a place of its own",
    )
}

/// The command line of this process, for people.
fn command() -> String {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

/// A number that no other owner draws.
fn draw() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

fn beat() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{:012}", now.as_secs())
}

/// As it stands in the file. All beats of an owner are equally long, so that writing one over the other is one write.
fn text(owner: &Owner) -> String {
    serde_json::to_string_pretty(owner).unwrap_or_default() + "\n"
}

/// What the file says; None where it is empty, or cannot be read.
fn read_owner(path: &Path) -> Option<Owner> {
    let mut text = String::new();
    File::open(path).and_then(|mut file| file.read_to_string(&mut text)).ok()?;
    serde_json::from_str(&text).ok()
}

/// The same of a file that somebody has just taken, who writes at once who that is.
fn owner_soon(path: &Path) -> Option<Owner> {
    for _ in 0..20 {
        if let Some(owner) = read_owner(path) {
            return Some(owner);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Whether an owner shows signs of life: a recent one by the clock, or a new one while it is watched.
fn lives(path: &Path, owner: &Owner, patience: Patience) -> bool {
    if is_recent(owner, patience.stale) {
        return true;
    }
    std::thread::sleep(patience.beat * 5 / 2);
    read_owner(path).is_some_and(|found| found != *owner)
}

/// Whether the last sign of life is a recent one by this machine's clock.
fn is_recent(owner: &Owner, stale: Duration) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let last: u64 = owner.beat.parse().unwrap_or_default();
    now.abs_diff(last) < stale.as_secs()
}

/// Renews the sign of life until the sender is dropped. A thread that cannot be started costs the sign, not the work.
fn heartbeat(path: &Path, owner: Owner, every: Duration) -> Option<(Sender<()>, JoinHandle<()>)> {
    let (stop, stopped) = channel::<()>();
    let path: PathBuf = path.to_owned();
    let renew = move || {
        let mut owner = owner;
        while stopped.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
            owner.beat = beat();
            if let Ok(mut file) = OpenOptions::new().write(true).open(&path) {
                let _ = file.write_all(text(&owner).as_bytes());
            }
        }
    };
    let thread = std::thread::Builder::new().name("heartbeat".into()).spawn(renew).ok()?;
    Some((stop, thread))
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Patience = Patience { beat: Duration::from_millis(40), stale: Duration::from_secs(60) };

    fn take(folder: &Path, host: &str) -> (Result<Lock>, Vec<String>) {
        let mut notes = Vec::new();
        let lock = Lock::take_patiently(folder, &mut |note| notes.push(note.to_owned()), QUICK, host);
        (lock, notes)
    }

    fn leave(folder: &Path, host: &str, beat: &str) {
        let (process, command, since) = (7, "calm train".to_owned(), "2026-01-01T00:00:00Z".to_owned());
        let (host, beat, draw) = (host.to_owned(), beat.to_owned(), "there".to_owned());
        let owner = Owner { process, host, command, since, beat, draw };
        std::fs::write(folder.join(LOCK), text(&owner)).unwrap();
    }

    #[test]
    fn a_folder_belongs_to_one_process_and_the_other_is_told_to_whom() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("runs/new");
        let (held, notes) = take(&folder, "here");
        let held = held.unwrap();
        assert!(notes.is_empty());
        let error = take(&folder, "here").0.unwrap_err();
        let own = format!(
            "another calm works on {}: process {} on here since",
            folder.display(),
            std::process::id()
        );
        assert!(error.to_string().starts_with(&own), "{error}");
        assert!(error.remedy().is_some_and(|r| r.contains("--out")));
        assert!(Lock::holder(&folder).flatten().is_some_and(|o| o.process == std::process::id()));
        // The sign of life is renewed, and does not break the file.
        std::thread::sleep(QUICK.beat * 4);
        assert!(read_owner(&folder.join(LOCK)).is_some());
        drop(held);
        assert!(Lock::holder(&folder).is_none());
        let (again, notes) = take(&folder, "here");
        assert!(again.is_ok() && notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn a_file_belongs_to_one_process_too_and_its_neighbours_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("new/answers.jsonl");
        let held = Lock::take_file(&file, &mut |_| ()).unwrap();
        let error = Lock::take_file(&file, &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("answers.jsonl: process") && !file.exists(), "{error}");
        assert!(Lock::take_file(&dir.path().join("new/others.jsonl"), &mut |_| ()).is_ok());
        assert!(take(&dir.path().join("new"), "here").0.is_ok());
        drop(held);
        assert!(Lock::take_file(&file, &mut |_| ()).is_ok());
    }

    #[test]
    fn a_claimed_folder_is_free_for_the_process_that_works_in_it_and_for_no_other_claim() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run");
        let Claim::Ours(claim) = Lock::claim(&folder).unwrap() else { panic!("nobody has it") };
        assert!(!folder.exists() && Lock::holder(&folder).is_none());
        assert!(take(&folder, "here").0.is_ok());
        let Claim::Theirs(Some(owner)) = Lock::claim(&folder).unwrap() else { panic!("it is claimed") };
        assert_eq!(owner.process, std::process::id());
        assert!(owner.lives_here());
        drop(claim);
        assert!(matches!(Lock::claim(&folder).unwrap(), Claim::Ours(_)));
    }

    #[test]
    fn a_claim_that_another_machine_wrote_over_is_given_up() {
        // On a machine with much to do the other one may come too late, and is tried again.
        let given_up = (0..50).any(|_| {
            let dir = tempfile::tempdir().unwrap();
            let (run, path) = (dir.path().join("run"), dir.path().join(".run.lock"));
            leave(dir.path(), "there", &beat());
            let theirs = std::fs::read(dir.path().join(LOCK)).unwrap();
            let other = std::thread::spawn(move || {
                while read_owner(&path).is_none() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::fs::write(&path, theirs).unwrap();
            });
            let claim = Lock::claim(&run).unwrap();
            other.join().unwrap();
            matches!(&claim, Claim::Theirs(Some(owner)) if owner.host == "there" && !owner.lives_here())
        });
        assert!(given_up);
    }

    #[test]
    fn what_a_dead_process_left_is_taken_over_and_said() {
        let dir = tempfile::tempdir().unwrap();
        leave(dir.path(), "here", &beat());
        let (lock, notes) = take(dir.path(), "here");
        assert!(lock.is_ok() && notes[0].contains("process 7 on here"), "{notes:?}");
    }

    #[test]
    fn another_machine_is_judged_by_its_heartbeat() {
        let dir = tempfile::tempdir().unwrap();
        leave(dir.path(), "there", &beat());
        let error = take(dir.path(), "here").0.unwrap_err();
        assert!(error.to_string().contains("process 7 on there"), "{error}");
        // An old sign that is renewed while it is watched is one of another clock.
        leave(dir.path(), "there", "000000000001");
        let folder = dir.path().to_owned();
        let renewal = std::thread::spawn(move || {
            std::thread::sleep(QUICK.beat);
            leave(&folder, "there", "000000000011");
        });
        assert!(take(dir.path(), "here").0.is_err());
        renewal.join().unwrap();
        let (lock, notes) = take(dir.path(), "here");
        assert!(lock.is_ok() && notes.len() == 1, "{notes:?}");
    }

    #[test]
    fn a_file_that_is_no_owner_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK), "{").unwrap();
        assert!(take(dir.path(), "here").0.is_ok());
    }
}
