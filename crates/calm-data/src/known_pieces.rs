//! What is known of pieces of text that were seen before: text repeats its words, whatever makes ids of them.
//!
//! Nearly all pieces are found in a table by their bytes, as one number of 128 bits where they have at most fifteen. Ids
//! do not depend on what is known: a piece has the same ones every time.

use std::sync::{Mutex, PoisonError};

use rustc_hash::FxHashMap;

/// Bytes of a piece that is its own key; the sixteenth holds their number.
const INLINE: usize = 15;
/// Longer pieces are forgotten at once.
const LONGEST: usize = 256;
/// Pieces that a table holds before it is emptied.
const PIECES: usize = 1 << 16;

/// The ids of a piece: a few of them, or their place in a list.
#[derive(Clone, Copy)]
struct Ids {
    count: u32,
    ids: [u32; 3],
}

/// A table of pieces.
#[derive(Default)]
pub(crate) struct Table {
    short: FxHashMap<u128, Ids>,
    long: FxHashMap<Box<str>, Ids>,
    list: Vec<u32>,
    fresh: Vec<u32>,
}

impl Table {
    /// Adds the ids of a piece; `find` adds those of one that is not known.
    ///
    /// # Errors
    /// What `find` says.
    pub(crate) fn ids(
        &mut self,
        piece: &str,
        ids: &mut Vec<u32>,
        find: impl FnOnce(&mut Vec<u32>) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut key = [0u8; 16];
        let inline = piece.len() <= INLINE;
        let found = if inline {
            key[..piece.len()].copy_from_slice(piece.as_bytes());
            key[INLINE] = piece.len() as u8;
            self.short.get(&u128::from_le_bytes(key))
        } else if piece.len() <= LONGEST {
            self.long.get(piece)
        } else {
            return find(ids);
        };
        if let Some(Ids { count, ids: few }) = found {
            match few.get(..*count as usize) {
                Some(few) => ids.extend_from_slice(few),
                None => ids.extend_from_slice(&self.list[few[0] as usize..(few[0] + count) as usize]),
            }
            return Ok(());
        }
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.clear();
        find(&mut fresh)?;
        ids.extend_from_slice(&fresh);
        if self.short.len() + self.long.len() >= PIECES || self.list.len() > 16 * PIECES {
            self.short.clear();
            self.long.clear();
            self.list.clear();
        }
        let mut few = Ids { count: fresh.len() as u32, ids: [0; 3] };
        match few.ids.get_mut(..fresh.len()) {
            Some(place) => place.copy_from_slice(&fresh),
            None => {
                few.ids[0] = self.list.len() as u32;
                self.list.extend_from_slice(&fresh);
            }
        }
        if inline {
            self.short.insert(u128::from_le_bytes(key), few);
        } else {
            self.long.insert(piece.into(), few);
        }
        self.fresh = fresh;
        Ok(())
    }
}

/// Tables that lie ready: what one call finds out serves the next ones, each of which has one to itself.
#[derive(Default)]
pub(crate) struct Tables(Mutex<Vec<Table>>);

impl Tables {
    /// Lends one to `work`; after a failure it is thrown away.
    ///
    /// # Errors
    /// What `work` says.
    pub(crate) fn lend<T>(&self, work: impl FnOnce(&mut Table) -> Result<T, String>) -> Result<T, String> {
        let pool = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = pool().pop().unwrap_or_default();
        let done = work(&mut known)?;
        pool().push(known);
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_of_any_length_has_the_ids_that_were_found_first() {
        let tables = Tables::default();
        let pieces: Vec<String> = (0..300).map(|n| "é".repeat(n)).collect();
        for round in 0..2 {
            for piece in &pieces {
                let expected: Vec<u32> = (0..piece.len() as u32 / 3).collect();
                let mut asked = false;
                let found = tables.lend(|known| {
                    let mut ids = vec![7];
                    known.ids(piece, &mut ids, |ids| {
                        asked = true;
                        ids.extend(&expected);
                        Ok(())
                    })?;
                    Ok(ids)
                });
                assert_eq!(found.unwrap(), [&[7], &expected[..]].concat());
                assert_eq!(asked, round == 0 || piece.len() > LONGEST, "{} bytes", piece.len());
            }
        }
        let failed = tables.lend(|known| known.ids("x", &mut Vec::new(), |_| Err("no".into())));
        assert_eq!(failed.unwrap_err(), "no");
    }
}
