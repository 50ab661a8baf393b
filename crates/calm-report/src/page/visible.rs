//! Characters that no page and no file may hold.

/// Control characters that a model may well write, as their Unicode pictures: neither HTML nor XML has a
/// place for them.
pub(super) fn visible(page: &str) -> String {
    page.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
            '\u{7f}' => '\u{2421}',
            '\u{80}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
            // These turn the direction of what follows, beyond the text they stand in.
            '\u{202a}'..='\u{202e}' => '\u{fffd}',
            _ => c,
        })
        .collect()
}
