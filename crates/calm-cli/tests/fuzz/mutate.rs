//! Inputs: valid files with a few changes.

/// Random numbers as a function of a name and a number (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(name: &str, number: u64) -> Self {
        let name = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        Self(name ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`; 0 for `n` of 0.
    pub fn below(&mut self, n: usize) -> usize {
        if n == 0 { 0 } else { (self.next() % n as u64) as usize }
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// Pieces that loaders have tripped over.
const PIECES: [&[u8]; 36] = [
    b"NaN",
    b"1e999",
    b"-1",
    b"0",
    b"18446744073709551616",
    b"9007199254740993",
    b"1e-400",
    b"null",
    b"true",
    b"\"\"",
    b"{}",
    b"[]",
    b"{",
    b"[[[[[[[[[[[[[[[[",
    b"\\ud800",
    b"\\u0000",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\0",
    b"\n",
    b"\r\n",
    b"---\n",
    b"&a [*a, *a]",
    b"!tag ",
    b"? ",
    b": ",
    b"- ",
    b"#",
    b"'",
    b"\"",
    b"~",
    b"\xf0\x9f\x98\x80",
    b"%",
    b"/../",
    b"text",
    b"model",
];

/// Numbers where lengths stand.
const LENGTHS: [u64; 10] =
    [0, 1, 0x7f, 0xff, 0xffff, 1 << 31, u32::MAX as u64, 1 << 40, i64::MAX as u64, u64::MAX];

/// One of the seeds with one to eight changes.
pub fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(8) {
        change(&mut input, seeds, random);
    }
    input.truncate(1 << 20);
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    // Short ranges more often than long ones.
    let most = 1 << random.below(10);
    let end = (at + 1 + random.below(most)).min(input.len());
    let range = at.min(end)..end;
    match random.below(12) {
        0 | 1 => {
            if let Some(byte) = input.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
        2 => {
            if let Some(byte) = input.get_mut(at) {
                *byte = random.next() as u8;
            }
        }
        3 | 4 => drop(input.splice(at..at, random.of(&PIECES).iter().copied())),
        5 => drop(input.splice(range, random.of(&PIECES).iter().copied())),
        6 => drop(input.drain(range)),
        7 => {
            let piece = input[range].to_vec();
            for _ in 0..=random.below(12) {
                input.splice(at..at, piece.iter().copied());
            }
        }
        8 => input.truncate(at),
        9 => {
            let other = &seeds[random.below(seeds.len())];
            let from = random.below(other.len() + 1);
            let to = (from + 1 + random.below(most)).min(other.len());
            input.splice(at..at, other[from.min(to)..to].iter().copied());
        }
        10 => {
            // A length, little-endian, of 1 to 8 bytes.
            let length = LENGTHS[random.below(LENGTHS.len())].to_le_bytes();
            let end = (at + (1 << random.below(4))).min(input.len());
            let width = end.saturating_sub(at);
            input[at.min(end)..end].copy_from_slice(&length[..width]);
        }
        _ => {
            // A number that is written out.
            let digits = input[at.min(input.len())..].iter().position(u8::is_ascii_digit).map(|i| at + i);
            if let Some(from) = digits {
                let to =
                    input[from..].iter().position(|b| !b.is_ascii_digit()).map_or(input.len(), |i| from + i);
                input.splice(from..to, random.of(&PIECES[..7]).iter().copied());
            }
        }
    }
}
