//! Text with its checksum in a first comment, for formats whose comments begin with `#` and that could be cut anywhere
//! unnoticed: a byte that changed on the disk is noticed.
//!
//! A text without that line is as it is: somebody wrote it by hand, or changed it and took the line out.

use crate::sum::Sum;

const LINE: &str = "# checksum: ";

/// What is said of a text whose seal is broken.
pub const BROKEN: &str = "it differs from the checksum in it (who changes it by hand takes that line out)";

/// A text behind a line with the BLAKE3 of all of it.
pub fn seal(text: &str) -> String {
    format!("{LINE}{}\n{text}", Sum::of(text.as_bytes()).blake3)
}

/// Whether a text has such a line, and is not what was written behind it.
pub fn is_broken(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(LINE.as_bytes()) else { return false };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let (sum, text) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    Sum::of(text).blake3.as_bytes() != sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_or_shorter_text_breaks_its_seal_and_one_without_has_none() {
        let whole = seal("a: 1\nb: 2\n");
        assert!(!is_broken(whole.as_bytes()) && !is_broken(b"a: 1\n") && !is_broken(b""));
        for at in LINE.len()..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 1;
            assert!(is_broken(&bytes), "{at}");
            assert!(is_broken(&whole.as_bytes()[..at]), "{at}");
        }
    }
}
