//! Messages that the book explains are those of the program: an explanation of something that nobody says helps nobody.

use std::path::Path;

use crate::graphs;

/// Every message that a page quotes: headings of code, and the first cells of tables of messages.
fn quoted(page: &str) -> Vec<String> {
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src").join(page);
    let text = std::fs::read_to_string(&text).unwrap_or_else(|e| panic!("{}: {e}", text.display()));
    let (mut found, mut table) = (Vec::new(), false);
    for line in text.lines() {
        table = line.starts_with('|') && (table || line.starts_with("| message |"));
        let from = if table { line.strip_prefix("| `") } else { line.strip_prefix("### `") };
        if let Some((message, _)) = from.and_then(|rest| rest.split_once('`')) {
            found.push(message.to_owned());
        }
    }
    found
}

/// Whether a text of the program says this; `…` stands for what differs from time to time.
fn says(text: &str, message: &str) -> bool {
    let mut rest = text;
    message.split('…').map(str::trim).filter(|piece| !piece.is_empty()).all(|piece| {
        let after = rest.split_once(piece).map(|(_, after)| after);
        rest = after.unwrap_or_default();
        after.is_some()
    })
}

#[test]
fn every_message_that_the_book_explains_is_one_of_the_program() {
    let graphs = graphs();
    let texts: Vec<&str> = graphs.iter().flat_map(|(_, graph)| graph.texts().map(|(_, text)| text)).collect();
    let mut wrong = Vec::new();
    for (page, at_least) in [("troubleshooting.md", 30), ("cluster.md", 8)] {
        let messages = quoted(page);
        assert!(messages.len() >= at_least, "{page}: only {} messages were found", messages.len());
        for message in messages {
            let letters = message.chars().filter(|c| c.is_alphabetic()).count();
            if letters < 8 || !texts.iter().any(|text| says(text, &message)) {
                wrong.push(format!("{page}: nothing says `{message}`"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_differs_from_time_to_time_is_left_out() {
    let text = "{} is not a run: it has no {CONFIG} file";
    assert!(says(text, "… is not a run: it has no … file") && says(text, "is not a run"));
    assert!(!says(text, "… is no run") && !says(text, "it has no … is not a run"));
}
