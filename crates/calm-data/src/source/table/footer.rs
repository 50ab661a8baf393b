//! The footer of a table, looked at before the library reserves memory by it.
//!
//! The library (parquet 60) believes a group of the schema about the number of its children, walks the schema by
//! recursion, and keeps some hundred bytes for an element that the file spends one on. So a few changed bytes ask for
//! gigabytes, which ends the process, or for a deeper stack than there is.

use std::fs::File;

use parquet::file::reader::{ChunkReader, Length};

use super::pages::{Problem, TOO_MUCH};
use super::thrift::{BINARY, Compact, LIST, Layout, STRUCT, Shape};

/// Groups within groups; tables that people write have a handful.
const DEEPEST: usize = 100;
/// The library's bytes for an element of the footer's lists, at most: a column of a row group.
const ELEMENT: u64 = 512;

/// Looks at the footer of a table. Where there is none, or it is encrypted, the library has its own words.
///
/// # Errors
/// When what it says of its own size is not so, or needs more memory than `allowed` bytes.
pub(super) fn check(file: &File, allowed: u64) -> Result<(), Problem> {
    let length = Length::len(file);
    let Some(tail) = length.checked_sub(8) else { return Ok(()) };
    let end = file.get_bytes(tail, 8).map_err(|e| Problem(e.to_string()))?;
    let (size, magic) = end.split_at(4);
    let size = size.iter().rev().fold(0, |size, byte| size << 8 | u64::from(*byte));
    if magic != b"PAR1" || size > tail {
        return Ok(());
    }
    let footer = file.get_bytes(tail - size, size as usize).map_err(|e| Problem(e.to_string()))?;
    let mut compact = Compact::new(&footer);
    let sound = walk(&mut compact).ok_or_else(|| Problem("its footer cannot be read".into()))?;
    if !sound {
        return Err(Problem("its schema is no tree".into()));
    }
    if compact.elements.saturating_mul(ELEMENT) > allowed {
        return Err(Problem(format!("{TOO_MUCH}: {} elements of its footer", compact.elements)));
    }
    Ok(())
}

/// Passes the whole footer; whether its schema is a tree.
fn walk(compact: &mut Compact<'_>) -> Option<bool> {
    let (mut last, mut sound) = (0, true);
    while let Some((id, kind)) = compact.field(&mut last)? {
        match (id, kind) {
            (2, LIST) => {}
            (2, _) => return None,
            (1 | 3, 4..=6) | (4 | 5 | 7, LIST) | (6, BINARY) => {
                compact.skip(kind)?;
                continue;
            }
            (1..=7, _) => return None,
            _ => {
                compact.skip(kind)?;
                continue;
            }
        }
        let (count, STRUCT) = compact.list()? else { return Some(false) };
        // Children that are still to come, of the groups that are open.
        let mut open: Vec<u64> = Vec::new();
        for element in 0..count {
            while open.last() == Some(&0) {
                open.pop();
            }
            match open.last_mut() {
                Some(left) => *left -= 1,
                None => sound &= element == 0,
            }
            let children = children(compact)?;
            sound &= children <= count && open.len() < DEEPEST;
            if children > 0 && sound {
                open.push(children);
            }
        }
        sound &= open.iter().all(|left| *left == 0);
    }
    Some(sound)
}

/// Passes an element of the schema; how many children it says that it has.
fn children(compact: &mut Compact<'_>) -> Option<u64> {
    let mut children = 0;
    compact.follow(ELEMENT_LAYOUT, 0, &mut |within, id, n| {
        if (within, id) == (0, 5) {
            // A negative number is an immense one.
            children = n as u64;
        }
    })?;
    Some(children)
}

const ELEMENT_LAYOUT: Layout = &[
    (1, Shape::Number),
    (2, Shape::Number),
    (3, Shape::Number),
    (4, Shape::Text),
    (5, Shape::Number),
    (6, Shape::Number),
    (7, Shape::Number),
    (8, Shape::Number),
    (9, Shape::Number),
    (10, Shape::Struct(LOGICAL)),
];

/// What a column means: one of many, most of which say nothing more.
const LOGICAL: Layout = &[
    (1, NOTHING),
    (2, NOTHING),
    (3, NOTHING),
    (4, NOTHING),
    (5, Shape::Struct(&[(1, Shape::Number), (2, Shape::Number)])),
    (6, NOTHING),
    (7, TIME),
    (8, TIME),
    (10, Shape::Struct(&[(1, Shape::Byte), (2, Shape::Switch)])),
    (11, NOTHING),
    (12, NOTHING),
    (13, NOTHING),
    (14, NOTHING),
    (15, NOTHING),
    (16, Shape::Struct(&[(1, Shape::Byte)])),
    (17, Shape::Struct(&[(1, Shape::Text)])),
    (18, Shape::Struct(&[(1, Shape::Text), (2, Shape::Number)])),
];
const NOTHING: Shape = Shape::Struct(&[]);
const TIME: Shape =
    Shape::Struct(&[(1, Shape::Switch), (2, Shape::Struct(&[(1, NOTHING), (2, NOTHING), (3, NOTHING)]))]);
