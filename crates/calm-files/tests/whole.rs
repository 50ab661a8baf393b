//! Whatever fails, and whenever the power does: the old is there, or the new.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io;
use std::path::Path;

use calm_files::faults::{Cut, Fault, Plan, Platter, Seen, Way, with};
use calm_files::{Log, Sum};

const CUTS: [Cut; 3] = [Cut::Kill, Cut::Lost, Cut::NamesOnly];

/// A folder in memory where there is one: flushes are counted here, not waited for.
fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Does `work` on a fresh folder that `begin` made, once for every operation and every kind of fault and cut, and
/// looks at what is there afterwards.
fn everywhere(
    begin: impl Fn(&Path),
    work: impl Fn(&Path) -> io::Result<()>,
    look: impl Fn(&Path, bool),
) -> u64 {
    let fresh = || {
        let dir = in_memory();
        begin(dir.path());
        dir
    };
    let dir = fresh();
    let before = Platter::of(dir.path()).unwrap();
    let (done, Seen { ops, record }) = with(Plan::record(), || work(dir.path()));
    done.unwrap();
    assert_eq!(record.len() as u64, ops);
    look(dir.path(), true);
    for at in 0..ops {
        for way in [Way::Full, Way::Broken, Way::Short] {
            for lasting in [false, true] {
                let dir = fresh();
                let (done, _) = with(Plan::fail(Fault { at, way, lasting }), || work(dir.path()));
                look(dir.path(), done.is_ok());
            }
        }
    }
    let mut platter = before;
    let into = in_memory();
    for n in 0..=record.len() {
        for cut in CUTS.into_iter().chain((0..10).map(|i| Cut::Some(100 * n as u64 + i))) {
            let place = into.path().join("after");
            platter.after(cut, &place).unwrap();
            // What returned stays, whatever the power does then.
            look(&place, n == record.len());
        }
        if let Some(op) = record.get(n) {
            platter.follow(op);
        }
    }
    ops
}

fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

#[test]
fn a_file_is_the_old_one_or_the_new_one() {
    let ops = everywhere(
        |dir| {
            calm_files::write_bytes(&dir.join("a"), b"old").unwrap();
        },
        |dir| calm_files::write_bytes(&dir.join("a"), b"new!").map(|_| ()),
        |dir, done| {
            let now = read(&dir.join("a")).unwrap();
            assert!(now == "new!" || (!done && now == "old"), "{now} {done}");
        },
    );
    assert_eq!(ops, 5);
}

#[test]
fn a_new_file_in_a_new_folder_is_whole_or_not_there() {
    everywhere(
        |_| {},
        |dir| calm_files::write_bytes(&dir.join("b/c/d"), &[b'x'; 700_000]).map(|_| ()),
        |dir, done| {
            let now = read(&dir.join("b/c/d"));
            assert!(now.as_ref().map_or(!done, |n| n.len() == 700_000), "{done}");
        },
    );
}

#[test]
fn a_folder_is_the_old_one_or_the_new_one_with_all_its_files() {
    let fill = |dir: &Path, text: &'static str| {
        calm_files::write_folder(
            &dir.join("step"),
            |e| e,
            |folder| {
                for name in ["a", "b"] {
                    calm_files::write_bytes(&folder.join(name), text.as_bytes())?;
                }
                Ok(())
            },
        )
    };
    let whole = |dir: &Path| {
        let folder = calm_files::whole_folder(&dir.join("step"));
        let all = ["a", "b"].map(|name| read(&folder.join(name)));
        assert_eq!(all[0], all[1], "{}", folder.display());
        all[0].clone()
    };
    everywhere(
        |dir| fill(dir, "old").unwrap(),
        |dir| fill(dir, "new"),
        |dir, done| {
            let now = whole(dir).unwrap();
            assert!(now == "new" || (!done && now == "old"), "{now}");
            // After that anything is put in order, and only the folder is left.
            calm_files::settle(dir, false).unwrap();
            assert_eq!(whole(dir).unwrap(), now);
            assert_eq!(fs::read_dir(dir).unwrap().count(), 1);
            fill(dir, "newer").unwrap();
            assert_eq!(whole(dir).unwrap(), "newer");
        },
    );
    everywhere(
        |_| {},
        |dir| fill(dir, "new"),
        |dir, done| {
            assert!(whole(dir).map_or(!done, |now| now == "new"));
            calm_files::settle(dir, false).unwrap();
            fill(dir, "newer").unwrap();
            assert_eq!(whole(dir).unwrap(), "newer");
        },
    );
}

#[test]
fn a_folder_goes_as_a_whole() {
    everywhere(
        |dir| {
            for name in ["step/a", "step/b", "step/c/d"] {
                calm_files::write_bytes(&dir.join(name), b"x").unwrap();
            }
        },
        |dir| calm_files::remove(&dir.join("step")),
        |dir, done| {
            let there = ["step/a", "step/b", "step/c/d"].map(|name| dir.join(name).exists());
            assert!(there == [false; 3] || (!done && there == [true; 3]), "{there:?}");
            calm_files::settle(dir, false).unwrap();
            assert_eq!(fs::read_dir(dir).unwrap().count(), usize::from(there[0]));
        },
    );
}

#[test]
fn a_log_loses_nothing_that_was_flushed_and_keeps_no_broken_line() {
    let append = |dir: &Path| {
        let mut log = Log::open_lines(&dir.join("logs/log"), |line| line.starts_with(b"{"))?;
        for n in 0..3 {
            log.append(format!("{{{n}}}\n").as_bytes())?;
        }
        let sum = log.sync()?;
        assert_eq!(sum, Sum::of_file(&dir.join("logs/log")).unwrap());
        for n in 3..5 {
            log.append(format!("{{{n}}}\n").as_bytes())?;
        }
        Ok(())
    };
    everywhere(
        |_| {},
        append,
        |dir, done| {
            let mut log = Log::open_lines(&dir.join("logs/log"), |line| line.starts_with(b"{")).unwrap();
            log.append(b"{end}\n").unwrap();
            let text = read(&dir.join("logs/log")).unwrap();
            let all = "{0}\n{1}\n{2}\n{3}\n{4}\n";
            let kept = text.strip_suffix("{end}\n").unwrap();
            assert!(all.starts_with(kept) && kept.is_empty() | kept.ends_with('\n'), "{text}");
            assert!(!done || kept.len() >= 12, "{text}");
        },
    );
}

#[test]
fn an_end_that_is_no_line_is_cut_off_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for (text, kept) in [
        ("{a}\n{b", "{a}\n"),
        ("{a}\n\0\0\0\n\0", "{a}\n"),
        ("{b", ""),
        ("", ""),
        ("{a}\nx\n{c}\n", "{a}\nx\n{c}\n"),
    ] {
        fs::write(&path, text).unwrap();
        let log = Log::open_lines(&path, |line| line.starts_with(b"{")).unwrap();
        assert_eq!(log.cut() as usize, text.len() - kept.len());
        assert_eq!(read(&path).unwrap(), kept);
    }
    assert!(Log::create(&path).is_err());
}

#[cfg(unix)]
#[test]
fn a_link_and_a_device_stay_what_they_are() {
    let dir = in_memory();
    fs::write(dir.path().join("far"), "old").unwrap();
    std::os::unix::fs::symlink(dir.path().join("far"), dir.path().join("link")).unwrap();
    calm_files::write_bytes(&dir.path().join("link"), b"new").unwrap();
    assert_eq!(read(&dir.path().join("far")).unwrap(), "new");
    assert!(dir.path().join("link").is_symlink());
    std::os::unix::fs::symlink("/dev/null", dir.path().join("null")).unwrap();
    calm_files::write_bytes(&dir.path().join("null"), b"new").unwrap();
    calm_files::write_bytes(Path::new("/dev/null"), b"new").unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join("full")).unwrap();
    let e = calm_files::write_bytes(&dir.path().join("full"), b"new").unwrap_err();
    assert_eq!(e.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn a_sum_tells_what_differs() {
    let sum = Sum::of(b"abc");
    assert_eq!(sum.differs(b"abc"), None);
    assert!(sum.differs(b"ab").unwrap().contains("2 bytes and must have 3"));
    assert!(sum.differs(b"abd").unwrap().contains("differ"));
}

/// The model itself: what POSIX does not promise is lost.
#[test]
fn the_model_of_a_disk_loses_what_was_not_flushed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "old").unwrap();
    let mut platter = Platter::of(dir.path()).unwrap();
    let path = |name: &str| dir.path().join(name);
    use calm_files::faults::Op::*;
    let ops =
        [Create(path("a.new")), Write(path("a.new"), b"new".to_vec()), Rename(path("a.new"), path("a"))];
    ops.iter().for_each(|op| platter.follow(op));
    let into = tempfile::tempdir().unwrap();
    let after = |platter: &Platter, cut| {
        platter.after(cut, &into.path().join("x")).unwrap();
        read(&into.path().join("x/a"))
    };
    assert_eq!(after(&platter, Cut::Kill).unwrap(), "new");
    assert_eq!(after(&platter, Cut::Lost).unwrap(), "old");
    assert_eq!(after(&platter, Cut::NamesOnly).unwrap(), "", "the well-known empty file");
    platter.follow(&SyncFolder(dir.path().to_owned()));
    assert_eq!(after(&platter, Cut::Lost).unwrap(), "");
    platter.follow(&SyncFile(path("a")));
    assert_eq!(after(&platter, Cut::Lost).unwrap(), "new");
}
