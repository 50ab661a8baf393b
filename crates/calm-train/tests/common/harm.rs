//! Files with bits flipped and their ends cut off, and what comes of it. The test has `place` (`place.rs`) at its root.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use crate::place::{copy, in_memory};

/// What happened to a file.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    Flip { at: usize, bit: u8 },
    Cut { length: usize },
}

impl Harm {
    /// Of a file of so many bytes, by number: two flips, then a cut, by `turn`.
    pub fn of(number: u64, turn: u64, length: usize) -> Self {
        let random = (number + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let at = (random >> 20) as usize % length;
        if turn % 3 == 2 { Self::Cut { length: at } } else { Self::Flip { at, bit: (random >> 8) as u8 % 8 } }
    }

    pub fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match self {
            Self::Flip { at, bit } => bytes[at] ^= 1 << bit,
            Self::Cut { length } => bytes.truncate(length),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// All files of a place that are read again, relative to it.
pub fn files(place: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            // TensorBoard reads its events, we do not.
            if entry.file_name() == "tensorboard" {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found)
            } else {
                found.push(entry.path())
            }
        }
    }
    let mut found = Vec::new();
    walk(place, &mut found);
    found.sort();
    found.into_iter().map(|path| path.strip_prefix(place).unwrap().to_owned()).collect()
}

/// What came of it.
pub struct Came<T> {
    pub of: Result<T, String>,
    pub warnings: Vec<String>,
}

/// Harms each file of `begin` in turn, `cases` in all, and looks at what `work` makes of it: what was `wanted`, or
/// somebody is told and it is what `warned` allows for this file, which says what is wrong with it otherwise.
pub fn harm<T: PartialEq + Send + 'static>(
    begin: &Path,
    cases: u64,
    wanted: &T,
    work: impl Fn(&Path) -> Came<T> + Sync,
    mut warned: impl FnMut(&Path, Harm, T) -> Option<String>,
) -> BTreeMap<&'static str, u64> {
    let files = files(begin);
    let mut count = BTreeMap::new();
    let mut wrong = Vec::new();
    for case in 0..cases {
        let (turn, at) = (case / files.len() as u64, case as usize % files.len());
        let file = &files[at];
        let place = in_memory();
        copy(begin, place.path());
        let path = place.path().join(file);
        let length = fs::metadata(&path).unwrap().len() as usize;
        if length == 0 {
            continue;
        }
        let harm = Harm::of(case, turn + at as u64, length);
        harm.apply(&path);
        let came = std::thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            let (work, place) = (&work, place.path());
            scope.spawn(move || send.send(catch_unwind(AssertUnwindSafe(|| work(place)))));
            receive.recv_timeout(Duration::from_secs(60))
        });
        let name = file.file_name().unwrap().to_str().unwrap();
        let named = |text: &str| text.contains(name);
        let outcome = match came {
            Err(_) => Err("it hangs".to_owned()),
            Ok(Err(_)) => Err("it panics".to_owned()),
            Ok(Ok(came)) => match came.of {
                Err(e) if named(&e) => Ok("an error that names the file"),
                Err(e) => Err(format!("the file is not named: {e}")),
                Ok(kept) if came.warnings.iter().any(|w| named(w)) => match warned(file, harm, kept) {
                    Some(wrong) => Err(format!("{wrong}; warnings {:?}", came.warnings)),
                    None => Ok("a warning that names the file"),
                },
                Ok(kept) if kept == *wanted => Ok("no difference"),
                Ok(_) => Err(format!("silently wrong; warnings {:?}", came.warnings)),
            },
        };
        match outcome {
            Ok(outcome) => *count.entry(outcome).or_default() += 1,
            Err(e) => wrong.push(format!("case {case}: {} of {length} bytes, {harm:?}: {e}", file.display())),
        }
        if wrong.len() >= 20 {
            break;
        }
    }
    assert!(wrong.is_empty(), "{} changes went wrong:\n{}", wrong.len(), wrong.join("\n"));
    count
}
