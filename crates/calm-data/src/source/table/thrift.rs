//! Thrift's compact protocol, as far as Parquet's headers need it: where a value ends, and what an integer says.
//!
//! Nothing is reserved by what is read. `None` is an end that comes too early, or bytes that are not of this protocol, or
//! not as they must be: the library knows a field by its number and believes that it is what it should be, so that it
//! goes on somewhere else than who goes by the kinds that stand there. What both read must be the same bytes.

/// Kinds of values. A boolean of a struct is its kind.
const YES: u8 = 1;
pub(super) const LIST: u8 = 9;
pub(super) const STRUCT: u8 = 12;
const NO: u8 = 2;
const BYTE: u8 = 3;
const DOUBLE: u8 = 7;
pub(super) const BINARY: u8 = 8;
const SET: u8 = 10;
const MAP: u8 = 11;
const UUID: u8 = 13;

/// What fields of a struct must be, by their numbers. Others may be anything.
pub(super) type Layout = &'static [(i16, Shape)];

pub(super) enum Shape {
    Number,
    Byte,
    Switch,
    Text,
    Struct(Layout),
}

/// Values within values.
const DEEPEST: usize = 64;

pub(super) struct Compact<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Elements of lists, sets and maps that were passed.
    pub elements: u64,
}

impl<'a> Compact<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, elements: 0 }
    }

    /// Bytes that were read.
    pub fn at(&self) -> usize {
        self.at
    }

    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn pass(&mut self, bytes: usize) -> Option<()> {
        self.at = self.at.checked_add(bytes).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }

    /// A number of seven bits a byte, the lowest first.
    pub fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A number whose sign is its lowest bit.
    pub fn signed(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// The next field of a struct, its number and kind, after the one with the number `last`; the inner `None` is its end.
    pub fn field(&mut self, last: &mut i16) -> Option<Option<(i16, u8)>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        let step = i16::from(byte >> 4);
        *last = if step == 0 { i16::try_from(self.signed()?).ok()? } else { last.checked_add(step)? };
        Some(Some((*last, byte & 15)))
    }

    /// The number of elements of a list, and their kind.
    pub fn list(&mut self) -> Option<(u64, u8)> {
        let byte = self.byte()?;
        let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
        self.count(count)?;
        Some((count, byte & 15))
    }

    /// No element is smaller than a byte.
    fn count(&mut self, elements: u64) -> Option<()> {
        self.elements = self.elements.saturating_add(elements);
        (elements <= (self.bytes.len() - self.at) as u64).then_some(())
    }

    /// Passes a struct whose fields must be as laid out. Numbers and switches are given with the number of the field
    /// whose struct they are in (`within`, at the top) and their own.
    pub fn follow(&mut self, layout: Layout, within: i16, take: &mut dyn FnMut(i16, i16, i64)) -> Option<()> {
        let mut last = 0;
        while let Some((id, kind)) = self.field(&mut last)? {
            let shape = layout.iter().find(|(number, _)| *number == id).map(|(_, shape)| shape);
            match (shape, kind) {
                (Some(Shape::Number), 4..=6) => take(within, id, self.signed()?),
                (Some(Shape::Switch), YES | NO) => take(within, id, i64::from(kind == YES)),
                (Some(Shape::Struct(layout)), STRUCT) => self.follow(layout, id, take)?,
                (Some(Shape::Byte), BYTE) | (Some(Shape::Text), BINARY) | (None, _) => self.skip(kind)?,
                _ => return None,
            }
        }
        Some(())
    }

    /// Passes a value of a kind.
    pub fn skip(&mut self, kind: u8) -> Option<()> {
        self.skip_within(kind, DEEPEST, false)
    }

    fn skip_within(&mut self, kind: u8, deep: usize, element: bool) -> Option<()> {
        let deep = deep.checked_sub(1)?;
        match kind {
            YES | NO => self.pass(usize::from(element)),
            BYTE => self.pass(1),
            4..=6 => self.varint().map(|_| ()),
            DOUBLE => self.pass(8),
            UUID => self.pass(16),
            BINARY => {
                let length = usize::try_from(self.varint()?).ok()?;
                self.pass(length)
            }
            LIST | SET => {
                let (count, kind) = self.list()?;
                (0..count).try_for_each(|_| self.skip_within(kind, deep, true))
            }
            MAP => {
                let count = self.varint()?;
                self.count(count)?;
                let kinds = if count > 0 { self.byte()? } else { 0 };
                (0..count).try_for_each(|_| {
                    self.skip_within(kinds >> 4, deep, true)?;
                    self.skip_within(kinds & 15, deep, true)
                })
            }
            STRUCT => {
                let mut last = 0;
                while let Some((_, kind)) = self.field(&mut last)? {
                    self.skip_within(kind, deep, false)?;
                }
                Some(())
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fields 1 (i32: -3), 2 (true), 4 (list of two bytes), 21 (struct of a string), and what comes after.
    const VALUE: [u8; 17] =
        [0x15, 5, 0x11, 0x29, 0x23, 7, 8, 0x0c, 42, 0x18, 3, b'a', b'b', b'c', 0x00, 0x00, 0xee];

    #[test]
    fn fields_are_found_and_what_nobody_asks_for_is_passed() {
        let mut compact = Compact::new(&VALUE);
        let (mut last, mut found) = (0, Vec::new());
        while let Some((id, kind)) = compact.field(&mut last).unwrap() {
            found.push((id, kind));
            match id {
                1 => assert_eq!(compact.signed(), Some(-3)),
                _ => compact.skip(kind).unwrap(),
            }
        }
        assert_eq!(found, [(1, 5), (2, YES), (4, LIST), (21, STRUCT)]);
        assert_eq!((compact.at(), compact.elements), (16, 2));
        assert_eq!(Compact::new(&VALUE).skip(STRUCT), Some(()));
    }

    #[test]
    fn a_field_that_is_not_what_it_must_be_is_nothing() {
        let take = |layout| {
            let mut taken = Vec::new();
            let passed =
                Compact::new(&VALUE).follow(layout, 0, &mut |within, id, n| taken.push((within, id, n)));
            passed.map(|()| taken)
        };
        const INNER: Layout = &[(1, Shape::Text)];
        let as_it_is: Layout = &[(1, Shape::Number), (2, Shape::Switch), (21, Shape::Struct(INNER))];
        assert_eq!(take(as_it_is), Some(vec![(0, 1, -3), (0, 2, 1)]));
        assert_eq!(take(&[]), Some(vec![]));
        let others: [Layout; 3] = [&[(1, Shape::Text)], &[(2, Shape::Number)], &[(4, Shape::Number)]];
        for other in others {
            assert_eq!(take(other), None);
        }
        const OTHER: Layout = &[(1, Shape::Number)];
        assert_eq!(take(&[(21, Shape::Struct(OTHER))]), None);
    }

    #[test]
    fn what_ends_too_early_or_goes_too_deep_is_nothing() {
        for cut in 0..16 {
            assert_eq!(Compact::new(&VALUE[..cut]).skip(STRUCT), None, "{cut}");
        }
        assert_eq!(Compact::new(&[0x1c; 1000]).skip(STRUCT), None);
        // A list of 2^35 structs.
        assert_eq!(Compact::new(&[0xfc, 0x80, 0x80, 0x80, 0x80, 0x80, 1, 0]).skip(LIST), None);
        assert_eq!(Compact::new(&[0xff; 12]).varint(), None);
    }
}
