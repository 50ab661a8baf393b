//! Which files of a data set are read: by patterns, by the split in their names, by their kind.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

use crate::error::{Error, Result};

/// Kinds of files that hold documents, the most exact first: a data set that has several has the same text in each.
const KINDS: [&[&str]; 4] = [&[".parquet"], &[".jsonl", ".ndjson"], &[".json"], &[".txt"]];
/// Other words for a split in the names of files.
const WORDS: [&[&str]; 3] = [
    &["train", "training"],
    &["validation", "valid", "val", "dev"],
    &["test", "testing", "eval", "evaluation"],
];
/// Files that are named in an error.
const NAMED: usize = 12;

/// The files of `paths` that fit the patterns (all of them where there are none) and belong to the split. Of files that
/// nobody asked for by a pattern, or by one for all of a folder, only those of the most exact kind are taken.
pub(super) fn select<'a>(
    source: &str,
    paths: &[&'a str],
    patterns: &[String],
    split: Option<&str>,
) -> Result<Vec<&'a str>> {
    let globs = globs(source, patterns)?;
    let asked = |path: &&&str| patterns.is_empty() || globs.is_match(path);
    let of_split = |path: &&&str| split.is_none_or(|split| is_of_split(path, split));
    let fit: Vec<&str> = paths.iter().filter(asked).filter(of_split).copied().collect();
    let of_kind = |kind: &&[&str]| -> Vec<&'a str> {
        fit.iter().filter(|path| has_kind(path, kind)).copied().collect()
    };
    let whole = patterns.iter().all(|pattern| pattern == "**" || pattern.ends_with("/**"));
    let found = match KINDS.iter().map(of_kind).find(|found| !found.is_empty()) {
        Some(of_kind) if whole => of_kind,
        // Text of no known kind is taken where somebody asked for it.
        _ if patterns.is_empty() => Vec::new(),
        _ => fit.clone(),
    };
    if !found.is_empty() {
        return Ok(found);
    }
    let mut wanted = Vec::new();
    if let Some(split) = split {
        wanted.push(format!("split `{split}`"));
    }
    if !patterns.is_empty() {
        wanted.push(format!("path like {}", patterns.join(" or ")));
    }
    let wanted = if wanted.is_empty() { "text".to_owned() } else { wanted.join(" and ") };
    let more = paths.len().saturating_sub(NAMED);
    let there = paths[..paths.len().min(NAMED)].join(", ");
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Error::Selection {
        source_name: source.to_owned(),
        what: format!("it has no file with the {wanted}; it has {there}{more}"),
        remedy: "name some of them with `files: [PATTERN]` (`*` stays in a folder, `**` does not)".to_owned(),
    })
}

fn globs(source: &str, patterns: &[String]) -> Result<GlobSet> {
    let fail = |e: globset::Error| Error::Selection {
        source_name: source.to_owned(),
        what: format!("no pattern of files: {e}"),
        remedy: "write a path with `*` for any letters, such as `data/train-*.parquet`".to_owned(),
    };
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(GlobBuilder::new(pattern).literal_separator(true).build().map_err(fail)?);
    }
    set.build().map_err(fail)
}

fn has_kind(path: &str, kind: &[&str]) -> bool {
    let path = path.to_lowercase();
    let hidden = path.split('/').any(|part| part.starts_with('.'));
    let name = path.rsplit('/').next().unwrap_or_default();
    // What describes a data set is none of its text.
    let about = ["dataset_infos.json", "dataset_info.json", "state.json", "readme.txt", "license.txt"];
    let plain = path.strip_suffix(".gz").or_else(|| path.strip_suffix(".zst")).unwrap_or(&path);
    !hidden && !about.contains(&name) && kind.iter().any(|ending| plain.ends_with(ending))
}

/// Whether two words mean one split: `val` and `validation`.
pub(super) fn is_same_split(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_lowercase(), other.to_lowercase());
    one == other || WORDS.iter().any(|words| words.contains(&one.as_str()) && words.contains(&other.as_str()))
}

/// Whether a file belongs to a split: it lies in a folder of that name, or has it as a word in its own.
fn is_of_split(path: &str, split: &str) -> bool {
    let (path, split) = (path.to_lowercase(), split.to_lowercase());
    let words = WORDS.iter().find(|words| words.contains(&split.as_str()));
    let is = |word: &str| match words {
        Some(words) => words.contains(&word),
        None => word == split,
    };
    let (folders, name) = path.rsplit_once('/').unwrap_or(("", &path));
    // A split may itself hold signs: `test_2024`.
    let whole = |name: &str| {
        name.match_indices(&split).any(|(at, _)| {
            let before = name[..at].chars().next_back();
            let after = name[at + split.len()..].chars().next();
            !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
        })
    };
    folders.split('/').any(is) || name.split(|c: char| !c.is_alphanumeric()).any(is) || whole(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIKITEXT: [&str; 6] = [
        "README.md",
        ".gitattributes",
        "wikitext-103-raw-v1/test-00000-of-00001.parquet",
        "wikitext-103-raw-v1/train-00000-of-00002.parquet",
        "wikitext-103-raw-v1/train-00001-of-00002.parquet",
        "wikitext-103-raw-v1/validation-00000-of-00001.parquet",
    ];

    fn chosen(paths: &[&str], patterns: &[&str], split: Option<&str>) -> Vec<String> {
        let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
        let found = select("x", paths, &patterns, split).unwrap();
        found.into_iter().map(str::to_owned).collect()
    }

    #[test]
    fn files_are_chosen_by_split_pattern_and_kind() {
        assert_eq!(chosen(&WIKITEXT, &[], Some("train")), &WIKITEXT[3..5]);
        assert_eq!(chosen(&WIKITEXT, &[], Some("valid")), &WIKITEXT[5..]);
        assert_eq!(chosen(&WIKITEXT, &[], None), &WIKITEXT[2..]);
        assert_eq!(chosen(&WIKITEXT, &["*/test-*"], None), &WIKITEXT[2..3]);
        assert_eq!(chosen(&WIKITEXT, &["wikitext-103*/*"], Some("test")), &WIKITEXT[2..3]);
        let mixed =
            ["a.txt", "b.jsonl.zst", "c.json", "dataset_infos.json", "train/x.jsonl", "d/train_1.jsonl"];
        assert_eq!(chosen(&mixed, &[], None), ["b.jsonl.zst", "train/x.jsonl", "d/train_1.jsonl"]);
        assert_eq!(chosen(&mixed, &[], Some("train")), ["train/x.jsonl", "d/train_1.jsonl"]);
        assert_eq!(chosen(&mixed, &["**/*.jsonl"], None), ["train/x.jsonl", "d/train_1.jsonl"]);
        // A whole folder is no choice of kinds; a text of no known kind is taken where it is asked for.
        assert_eq!(chosen(&mixed, &["**"], None), ["b.jsonl.zst", "train/x.jsonl", "d/train_1.jsonl"]);
        let card = ["de/README.md", "de/LICENSE", "de/a.parquet", "de/a.jsonl", "en/b.parquet"];
        assert_eq!(chosen(&card, &["de/**"], None), ["de/a.parquet"]);
        assert_eq!(chosen(&["x/a.rs", "x/b.rs"], &["x/**"], None), ["x/a.rs", "x/b.rs"]);
        assert_eq!(
            chosen(&["data/test_2024-0.parquet"], &[], Some("test_2024")),
            ["data/test_2024-0.parquet"]
        );
        assert_eq!(chosen(&["strained.txt", "train.txt"], &[], Some("train")), ["train.txt"]);
    }

    #[test]
    fn what_fits_nothing_says_what_there_is() {
        let error = select("hub", &WIKITEXT, &["data/*".to_owned()], Some("dev")).unwrap_err().told();
        for part in ["split `dev` and path like data/*", "README.md, .gitattributes", "files: [PATTERN]"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(
            select("hub", &WIKITEXT, &["a[".to_owned()], None).unwrap_err().told().contains("no pattern")
        );
        let many: Vec<String> = (0..40).map(|n| format!("{n}.bin")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(select("hub", &many, &[], None).unwrap_err().told().contains("11.bin and 28 more"));
    }
}
