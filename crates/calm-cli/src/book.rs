//! The book's pages inside the binary, for `calm explain`.

macro_rules! pages {
    ($($topic:literal),* $(,)?) => {
        &[$(($topic, include_str!(concat!("../book/", $topic, ".md")))),*]
    };
}

/// Topic and Markdown of every page of `docs/src/`, in the order of its table of contents (a test holds the list to it).
pub const PAGES: &[(&str, &str)] = pages![
    "introduction",
    "installing",
    "tutorial",
    "recipes",
    "python",
    "troubleshooting",
    "comparison",
    "architecture",
    "input",
    "corpora",
    "prompts",
    "conversations",
    "files",
    "randomness",
    "numerics",
    "tokenizers",
    "resuming",
    "parallel",
    "cluster",
    "gpu",
    "likelihood",
    "patch",
    "dlcm",
    "direction",
    "compression",
    "inversion",
    "hub",
    "reports",
    "adding-a-family",
    "adding-a-head",
    "adding-an-operator",
    "adding-a-dataset",
    "records",
    "glossary",
    "citing",
];

/// A page's title: its first heading.
pub fn title(page: &str) -> &str {
    page.lines().find_map(|line| line.strip_prefix("# ")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_of_the_table_of_contents_is_in_the_binary() {
        let contents = include_str!("../book/SUMMARY.md");
        let listed: Vec<&str> =
            contents.lines().filter_map(|line| line.split_once("](")?.1.strip_suffix(".md)")).collect();
        assert_eq!(listed, PAGES.iter().map(|page| page.0).collect::<Vec<_>>());
        assert!(PAGES.iter().all(|(topic, page)| !title(page).is_empty() && !topic.is_empty()));
    }
}
