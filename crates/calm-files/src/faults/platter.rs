//! What is on a disk after a power cut.
//!
//! POSIX promises little: the content of a file is there after it was flushed, a name after its folder was. Between
//! flushes anything may have got through, in any order. This model keeps both sides, what processes see and what is
//! on the platter for certain, and every change that is still on its way between them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::Op;
use crate::disk::parent;

/// What becomes of that which was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// All of it is there: a process was killed, the machine went on.
    Kill,
    /// None of it.
    Lost,
    /// Names are there, contents are not: files are empty or as they were last flushed.
    NamesOnly,
    /// Some changes of names, and a part of each content, by this seed.
    Some(u64),
}

type Number = usize;

#[derive(Clone, Debug)]
enum Node {
    File { flushed: Vec<u8>, now: Vec<u8> },
    Folder { flushed: BTreeMap<OsString, Number>, now: BTreeMap<OsString, Number> },
}

/// A change of names that is on its way.
#[derive(Clone, Debug)]
struct Change {
    node: Number,
    from: Option<(Number, OsString)>,
    to: Option<(Number, OsString)>,
}

/// A folder on a disk, with what was flushed and what was not.
#[derive(Clone, Debug)]
pub struct Platter {
    root: PathBuf,
    nodes: Vec<Node>,
    changes: Vec<Change>,
}

impl Platter {
    /// What lies in `root` now; all of it is on the platter.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(root: &Path) -> io::Result<Self> {
        let mut platter = Self { root: root.to_owned(), nodes: Vec::new(), changes: Vec::new() };
        platter.read(root)?;
        Ok(platter)
    }

    /// The root is number 0: a folder's number is taken before its children's.
    fn read(&mut self, path: &Path) -> io::Result<Number> {
        let number = self.nodes.len();
        if !path.is_dir() {
            let bytes = fs::read(path)?;
            self.nodes.push(Node::File { flushed: bytes.clone(), now: bytes });
            return Ok(number);
        }
        self.nodes.push(Node::Folder { flushed: BTreeMap::new(), now: BTreeMap::new() });
        let mut names = BTreeMap::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            names.insert(entry.file_name(), self.read(&entry.path())?);
        }
        self.nodes[number] = Node::Folder { flushed: names.clone(), now: names };
        Ok(number)
    }

    fn names(&mut self, folder: Number) -> Option<&mut BTreeMap<OsString, Number>> {
        match self.nodes.get_mut(folder) {
            Some(Node::Folder { now, .. }) => Some(now),
            _ => None,
        }
    }

    /// The node of a path below the root, as processes see it.
    fn find(&self, path: &Path) -> Option<Number> {
        let mut at = 0;
        for name in path.strip_prefix(&self.root).ok()? {
            let Node::Folder { now, .. } = &self.nodes[at] else { return None };
            at = *now.get(name)?;
        }
        Some(at)
    }

    /// The folder and the name of a path below the root.
    fn place(&self, path: &Path) -> Option<(Number, OsString)> {
        let name = path.file_name().map(OsStr::to_owned)?;
        Some((self.find(parent(path))?, name))
    }

    fn change(&mut self, node: Number, from: Option<(Number, OsString)>, to: Option<(Number, OsString)>) {
        if let Some((folder, name)) = &from
            && let Some(names) = self.names(*folder)
        {
            names.remove(name);
        }
        if let Some((folder, name)) = &to
            && let Some(names) = self.names(*folder)
        {
            names.insert(name.clone(), node);
        }
        self.changes.push(Change { node, from, to });
    }

    fn make(&mut self, path: &Path, node: Node) -> Option<()> {
        let place = self.place(path)?;
        self.nodes.push(node);
        self.change(self.nodes.len() - 1, None, Some(place));
        Some(())
    }

    /// Follows a recorded operation; what lies outside of the root is left out.
    pub fn follow(&mut self, op: &Op) {
        let _ = self.step(op);
    }

    fn step(&mut self, op: &Op) -> Option<()> {
        let empty = || Node::File { flushed: Vec::new(), now: Vec::new() };
        match op {
            Op::Create(path) | Op::CreateNew(path) | Op::Append(path) => match self.find(path) {
                Some(node) => {
                    if let (Op::Create(_), Node::File { now, .. }) = (op, &mut self.nodes[node]) {
                        now.clear();
                    }
                }
                None => self.make(path, empty())?,
            },
            Op::Write(path, bytes) => {
                let node = self.find(path)?;
                if let Node::File { now, .. } = &mut self.nodes[node] {
                    now.extend_from_slice(bytes);
                }
            }
            Op::Truncate(path, length) => {
                let node = self.find(path)?;
                if let Node::File { now, .. } = &mut self.nodes[node] {
                    now.truncate(usize::try_from(*length).ok()?);
                }
            }
            Op::SyncFile(path) => {
                let node = self.find(path)?;
                if let Node::File { flushed, now } = &mut self.nodes[node] {
                    flushed.clone_from(now);
                }
            }
            Op::SyncFolder(path) => {
                let folder = self.find(path)?;
                let touches =
                    |c: &Change| [&c.from, &c.to].into_iter().flatten().any(|(number, _)| *number == folder);
                let (done, rest) = std::mem::take(&mut self.changes).into_iter().partition(touches);
                self.changes = rest;
                apply(&mut self.nodes, done);
            }
            Op::Rename(from, to) => {
                let node = self.find(from)?;
                let (from, to) = (self.place(from), self.place(to));
                self.change(node, from, to);
            }
            // Its content is that of another file: the name is what may be lost.
            Op::Link(path) => self.make(path, empty())?,
            Op::RemoveFile(path) | Op::RemoveFolder(path) => {
                let node = self.find(path)?;
                let place = self.place(path);
                self.change(node, place, None);
            }
            Op::CreateFolder(path) => {
                self.make(path, Node::Folder { flushed: BTreeMap::new(), now: BTreeMap::new() })?;
            }
        }
        Some(())
    }

    /// Writes what is there after a cut into a folder, which is emptied first.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn after(&self, cut: Cut, into: &Path) -> io::Result<()> {
        let mut random = match cut {
            Cut::Some(seed) => seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            _ => 1,
        };
        let mut next = move || {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random
        };
        let mut nodes = self.nodes.clone();
        let through: Vec<Change> = self
            .changes
            .iter()
            .filter(|_| match cut {
                Cut::Kill | Cut::NamesOnly => true,
                Cut::Lost => false,
                Cut::Some(_) => next() % 2 == 0,
            })
            .cloned()
            .collect();
        apply(&mut nodes, through);
        for node in &mut nodes {
            let Node::File { flushed, now } = node else { continue };
            match cut {
                Cut::Kill => flushed.clone_from(now),
                Cut::Some(_) if next() % 2 == 0 => {
                    // Up to some length; what had been flushed of a file that only grew is certain.
                    let certain = if now.starts_with(flushed) { flushed.len() } else { 0 };
                    let more = (now.len() - certain) as u64;
                    let length = certain + usize::try_from(next() % (more + 1)).unwrap_or(0);
                    *flushed = now[..length].to_vec();
                }
                _ => {}
            }
        }
        if into.exists() {
            fs::remove_dir_all(into)?;
        }
        lay_out(&nodes, 0, into)
    }
}

fn apply(nodes: &mut [Node], changes: Vec<Change>) {
    for Change { node, from, to } in changes {
        if let Some((folder, name)) = from
            && let Some(Node::Folder { flushed, .. }) = nodes.get_mut(folder)
            && flushed.get(&name) == Some(&node)
        {
            flushed.remove(&name);
        }
        if let Some((folder, name)) = to
            && let Some(Node::Folder { flushed, .. }) = nodes.get_mut(folder)
        {
            flushed.insert(name, node);
        }
    }
}

fn lay_out(nodes: &[Node], number: Number, path: &Path) -> io::Result<()> {
    match &nodes[number] {
        Node::File { flushed, .. } => fs::write(path, flushed),
        Node::Folder { flushed, .. } => {
            fs::create_dir_all(path)?;
            flushed.iter().try_for_each(|(name, number)| lay_out(nodes, *number, &path.join(name)))
        }
    }
}
