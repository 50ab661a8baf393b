//! `calm explain`: a page of the book on the screen.

use anyhow::Result;
use calm_config::load::nearest;

use crate::args::ExplainArgs;
use crate::book::{PAGES, title};
use crate::error::Hinted;
use crate::ui::{Align, Printer, Table, plain};

/// Runs the command.
pub fn run(args: &ExplainArgs, printer: &Printer) -> Result<()> {
    let Some(topic) = &args.topic else {
        let mut table = Table::new(&["topic", "page"]).align(&[Align::Left, Align::Left]);
        for (topic, page) in PAGES {
            table.row([*topic, title(page)]);
        }
        return Ok(printer.table(&table)?);
    };
    let Some((_, page)) = PAGES.iter().find(|(known, _)| known.eq_ignore_ascii_case(topic)) else {
        return Err(Hinted::new(format!("there is no page {topic}"), elsewhere(topic)).into());
    };
    Ok(printer.result(&plain(page))?)
}

/// Where to look instead: the page of nearly this name, else those that speak of the word.
fn elsewhere(topic: &str) -> String {
    let names: Vec<String> = PAGES.iter().map(|page| page.0.to_owned()).collect();
    if let Some(near) = nearest(topic, &names) {
        return format!("did you mean `calm explain {near}`?");
    }
    let word = topic.to_lowercase();
    let count = |page: &str| page.to_lowercase().matches(&word).count();
    let mut found: Vec<(usize, &str)> = PAGES.iter().map(|(name, page)| (count(page), *name)).collect();
    found.retain(|(times, _)| *times > 0 && !word.is_empty());
    found.sort_by_key(|(times, _)| std::cmp::Reverse(*times));
    found.truncate(4);
    if found.is_empty() {
        return "`calm explain` lists the pages; `calm config --explain KEY` explains a setting".into();
    }
    let names: Vec<&str> = found.iter().map(|(_, name)| *name).collect();
    format!("pages that speak of it, the one that does so most first: {}", names.join(", "))
}
