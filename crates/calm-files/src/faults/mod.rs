//! Faults, for tests: an operation that fails, a record of all operations, and ([`Platter`]) what a power cut after
//! any of them leaves on the disk.
//!
//! A plan holds for one thread and one call of [`with`]; nothing outside of tests makes one. Every operation of this
//! crate asks for it, which costs a look at a thread-local beside a system call.
//!
//! ```
//! use calm_files::faults::{Fault, Plan, Way, with};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("a.txt");
//! calm_files::write_bytes(&path, b"old")?;
//! let (_, seen) = with(Plan::record(), || calm_files::write_bytes(&path, b"new"));
//! for at in 0..seen.ops {
//!     calm_files::write_bytes(&path, b"old")?;
//!     let (result, _) = with(Plan::fail(Fault { at, way: Way::Full, lasting: false }), || {
//!         calm_files::write_bytes(&path, b"new")
//!     });
//!     let now = std::fs::read(&path)?;
//!     assert!(result.is_err() && (now == b"old" || now == b"new"));
//! }
//! # Ok::<(), std::io::Error>(())
//! ```

mod platter;

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};

pub use platter::{Cut, Platter};

/// One operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// A file is made, or emptied.
    Create(PathBuf),
    /// A file is made that was not there.
    CreateNew(PathBuf),
    /// A file is opened at its end, and made if it is not there.
    Append(PathBuf),
    /// Bytes are added at the end of a file.
    Write(PathBuf, Vec<u8>),
    /// A file is cut to a length.
    Truncate(PathBuf, u64),
    /// The content of a file is flushed.
    SyncFile(PathBuf),
    /// The names in a folder are flushed.
    SyncFolder(PathBuf),
    /// A file or folder gets another name.
    Rename(PathBuf, PathBuf),
    /// A link to a file is made.
    Link(PathBuf),
    /// A file goes.
    RemoveFile(PathBuf),
    /// A folder is made.
    CreateFolder(PathBuf),
    /// An empty folder goes.
    RemoveFolder(PathBuf),
}

impl Op {
    /// The file or folder (the old name of one that is renamed).
    pub fn path(&self) -> &Path {
        match self {
            Self::Create(path)
            | Self::CreateNew(path)
            | Self::Append(path)
            | Self::Write(path, _)
            | Self::Truncate(path, _)
            | Self::SyncFile(path)
            | Self::SyncFolder(path)
            | Self::Rename(path, _)
            | Self::Link(path)
            | Self::RemoveFile(path)
            | Self::CreateFolder(path)
            | Self::RemoveFolder(path) => path,
        }
    }
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The disk is full.
    Full,
    /// The disk is broken (a flush that fails, among others).
    Broken,
    /// Half of a write gets there, then the disk is full; other operations as [`Way::Full`].
    Short,
}

impl Way {
    fn error(self) -> io::Error {
        match self {
            Self::Full | Self::Short => io::ErrorKind::StorageFull.into(),
            Self::Broken => io::Error::other("input/output error (made for a test)"),
        }
    }
}

/// An operation that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which one, from 0.
    pub at: u64,
    /// How.
    pub way: Way,
    /// Whether all after it fail too: then the disk holds what it would hold if the process had been killed there.
    pub lasting: bool,
}

/// What is to happen.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    fault: Option<Fault>,
    record: bool,
}

impl Plan {
    /// Everything goes well and is recorded.
    pub fn record() -> Self {
        Self { fault: None, record: true }
    }

    /// Something fails.
    pub fn fail(fault: Fault) -> Self {
        Self { fault: Some(fault), record: false }
    }

    /// Everything goes well and is counted.
    pub fn count() -> Self {
        Self::default()
    }
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Number of operations, failed ones too.
    pub ops: u64,
    /// Those that were done, in their order, if they were to be recorded.
    pub record: Vec<Op>,
}

thread_local! {
    static NOW: RefCell<Option<(Plan, Seen)>> = const { RefCell::new(None) };
}

/// Works by a plan, on this thread alone.
pub fn with<T>(plan: Plan, work: impl FnOnce() -> T) -> (T, Seen) {
    /// Puts back what was there, also when `work` panics.
    struct Back(Option<(Plan, Seen)>);
    impl Drop for Back {
        fn drop(&mut self) {
            let before = self.0.take();
            NOW.with_borrow_mut(|now| *now = before);
        }
    }
    let _back = Back(NOW.with_borrow_mut(|now| now.replace((plan, Seen::default()))));
    let done = work();
    let seen = NOW.with_borrow_mut(|now| now.take()).map(|(_, seen)| seen).unwrap_or_default();
    (done, seen)
}

/// What an operation is to do.
pub(crate) enum Verdict {
    Go,
    /// To be noted when it is done.
    GoAndNote(Op),
    Fail(io::Error),
    /// A write that does half of its work.
    Short(io::Error),
}

pub(crate) fn ask(op: &impl Fn() -> Op) -> Verdict {
    NOW.with_borrow_mut(|now| {
        let Some((plan, seen)) = now else { return Verdict::Go };
        let at = seen.ops;
        seen.ops += 1;
        match plan.fault {
            Some(f) if f.at == at && f.way == Way::Short => Verdict::Short(f.way.error()),
            Some(f) if f.at == at || (f.lasting && f.at < at) => Verdict::Fail(f.way.error()),
            _ if plan.record => Verdict::GoAndNote(op()),
            _ => Verdict::Go,
        }
    })
}

pub(crate) fn note(op: Op) {
    NOW.with_borrow_mut(|now| {
        if let Some((Plan { record: true, .. }, seen)) = now {
            seen.record.push(op);
        }
    });
}
