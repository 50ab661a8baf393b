//! What may go onto a terminal, and what may be pasted into a shell.

use std::borrow::Cow;
use std::fmt::Write;
use std::path::Path;

/// A text with its control characters spelled out: on a terminal they would move the cursor, set its title, hide what
/// stands before them. Line ends and tabs stay.
pub fn visible(text: &str) -> Cow<'_, str> {
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if !text.contains(acts) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if acts(c) {
            let _ = write!(out, "{}", c.escape_default());
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// A path as a shell takes it for one word, and a command for no option.
pub fn pasted(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.starts_with('-') { quoted(&format!("./{text}")) } else { quoted(&text) }
}

/// A text as a shell takes it for one word.
pub fn quoted(text: &str) -> String {
    // Only a zero byte cannot be quoted, and no argument has one.
    shlex::try_quote(text).map_or_else(|_| text.to_owned(), Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_spelled_out_and_text_stays() {
        assert!(matches!(visible("a\tb\n中é"), Cow::Borrowed(_)));
        assert_eq!(
            visible("\x1b]0;title\x07 \x1b[31mred\r\u{9b}x\x7f"),
            "\\u{1b}]0;title\\u{7} \\u{1b}[31mred\\r\\u{9b}x\\u{7f}"
        );
    }

    #[test]
    fn a_path_is_one_word() {
        assert_eq!(pasted(Path::new("runs/k4")), "runs/k4");
        assert_eq!(shlex::split(&pasted(Path::new("a b/c'd $x"))).unwrap(), ["a b/c'd $x"]);
        assert_eq!(pasted(Path::new("-x")), "./-x");
        assert_eq!([quoted("--set"), quoted("seeds=[1, 2]")], ["--set", "'seeds=[1, 2]'"]);
    }
}
