//! Rust text as tokens, without comments and tests: enough to see which paths a file names.

/// A word or a sign; a text in quotes is one sign, with what is between the quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    Word(String),
    /// `::` is one sign, all others are single characters.
    Sign(&'static str),
    Text(String),
}

impl Token {
    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Word(word) => Some(word),
            _ => None,
        }
    }

    pub fn is(&self, sign: &str) -> bool {
        matches!(self, Self::Sign(s) if *s == sign)
    }
}

const SIGNS: [&str; 29] = [
    "::", "{", "}", "(", ")", "[", "]", "<", ">", ",", ";", ":", "#", "!", "$", "&", "*", "=", ".", "|", "+",
    "-", "/", "%", "^", "?", "@", "~", "'",
];

/// All tokens of a file.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, after)| after);
        } else if let Some((text, after)) = quoted(rest) {
            found.push(Token::Text(text));
            rest = after;
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push(Token::Word(rest[..end].to_owned()));
            rest = &rest[end..];
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            found.push(Token::Sign(sign));
            rest = &rest[sign.len()..];
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

/// A string or a character in quotes at the start, and what follows it. Characters are given as empty texts.
fn quoted(text: &str) -> Option<(String, &str)> {
    let body = text.trim_start_matches(['b', 'c']);
    if text.len() - body.len() > 1 {
        return None;
    }
    if let Some(raw) = body.strip_prefix('r') {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        let end = format!("\"{}", &raw[..hashes]);
        let (inner, after) = raw[hashes..].strip_prefix('"')?.split_once(&end)?;
        return Some((inner.to_owned(), after));
    }
    if let Some(inner) = body.strip_prefix('"') {
        let mut said = String::new();
        let mut chars = inner.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => return Some((said, &inner[at + 1..])),
                '\\' => match chars.next()?.1 {
                    // A line that goes on: its indentation is not part of the text.
                    '\n' => {
                        let after = chars.as_str();
                        let space = after.len() - after.trim_start().len();
                        if let Some(last) = after[..space].chars().count().checked_sub(1) {
                            chars.nth(last);
                        }
                    }
                    'n' => said.push('\n'),
                    escaped => said.push(escaped),
                },
                c => said.push(c),
            }
        }
        return None;
    }
    // `'a'` and `'\n'` are characters, `'a` alone is a lifetime.
    let inner = body.strip_prefix('\'')?;
    if let Some(escaped) = inner.strip_prefix('\\') {
        let skip = escaped.chars().next()?.len_utf8();
        return escaped[skip..].split_once('\'').map(|(_, after)| (String::new(), after));
    }
    let skip = inner.chars().next()?.len_utf8();
    inner[skip..].strip_prefix('\'').map(|after| (String::new(), after))
}

/// The tokens without items that are built for tests alone.
pub fn without_tests(tokens: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !is_test_attribute(&tokens[at..]) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at = end_of_group(tokens, at + 1);
        // Other attributes of the item, then the item: up to its `;` or the end of its body.
        while tokens.get(at).is_some_and(|t| t.is("#")) {
            at = end_of_group(tokens, at + 1);
        }
        while at < tokens.len() {
            if tokens[at].is(";") {
                at += 1;
                break;
            }
            let body = tokens[at].is("{");
            let group = body || tokens[at].is("(") || tokens[at].is("[");
            at = if group { end_of_group(tokens, at) } else { at + 1 };
            if body {
                break;
            }
        }
    }
    kept
}

/// `#[cfg(test)]` or `#[cfg(all(test, ...))]`.
fn is_test_attribute(tokens: &[Token]) -> bool {
    let mut words = tokens.iter().take(9).filter_map(Token::word);
    tokens.len() > 5
        && tokens[0].is("#")
        && tokens[1].is("[")
        && words.next() == Some("cfg")
        && tokens[3].is("(")
        && match words.next() {
            Some("test") => tokens[5].is(")"),
            Some("all") => words.next() == Some("test"),
            _ => false,
        }
}

/// The place behind the group that opens at `at`.
pub fn end_of_group(tokens: &[Token], at: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(at) {
        if ["{", "(", "["].iter().any(|s| token.is(s)) {
            depth += 1;
        } else if ["}", ")", "]"].iter().any(|s| token.is(s)) {
            depth -= 1;
            if depth == 0 {
                return i + 1;
            }
        }
    }
    tokens.len()
}

#[test]
fn comments_and_tests_are_no_code_and_texts_are_one_token() {
    let text = r##"
        // use crate::a;
        /* b */ fn f<'a>(x: &'a str) -> char { '"' }
        #[cfg(test)]
        #[allow(x)]
        mod tests { use super::*; fn g() { "}" } }
        const T: &str = "one \
                         \"two\"";
        const R: &str = r#"x"y"#;
        #[cfg(all(test, unix))] use c::d;
        #[cfg(feature = "test")] use e::f;
    "##;
    let code = without_tests(&tokens(text));
    let words: Vec<&str> = code.iter().filter_map(Token::word).collect();
    let expected = "fn f a x a str char const T str const R str cfg feature use e f";
    assert_eq!(words.join(" "), expected);
    let texts: Vec<&Token> = code.iter().filter(|t| matches!(t, Token::Text(_))).collect();
    let text = |s: &str| Token::Text(s.to_owned());
    assert_eq!(texts, [&text(""), &text("one \"two\""), &text("x\"y"), &text("test")]);
}
