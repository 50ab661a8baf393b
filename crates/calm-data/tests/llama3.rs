//! The Llama-3 tokenizer against an implementation of its own: the published pattern as a hand-written scanner, and
//! byte-pair merging straight from the ranks.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use calm_data::llama3::{from_ranks, load, read_ranks};
use calm_data::{Llama3Config, Tokenizer};
use proptest::prelude::*;

/// Merging as the ranks define it: of all neighbouring pairs, join the one whose joined bytes have the lowest rank
/// (the first of them), until no joined pair has a rank.
fn merge(piece: &[u8], ranks: &HashMap<Vec<u8>, u32>) -> Vec<u32> {
    if let Some(&rank) = ranks.get(piece) {
        return vec![rank];
    }
    let mut parts: Vec<Vec<u8>> = piece.iter().map(|&b| vec![b]).collect();
    loop {
        let joined = |i: usize| ranks.get(&[parts[i].as_slice(), &parts[i + 1]].concat());
        let best = (0..parts.len() - 1).filter_map(|i| joined(i).map(|&rank| (rank, i))).min();
        let Some((_, i)) = best else { break };
        let right = parts.remove(i + 1);
        parts[i].extend(right);
    }
    parts.iter().map(|part| ranks[part]).collect()
}

/// The end of the piece that begins at `text[0]`: the alternatives of the published pattern in their order.
fn piece_end(text: &[char], is_letter: &impl Fn(char) -> bool) -> usize {
    let newline = |c: char| c == '\r' || c == '\n';
    let run = |from: usize, f: &dyn Fn(char) -> bool| {
        from + text[from.min(text.len())..].iter().take_while(|&&c| f(c)).count()
    };
    let letter = |c: char| is_letter(c);
    let mark = |c: char| !c.is_whitespace() && !letter(c) && !c.is_numeric();
    // (?i:'s|'t|'re|'ve|'m|'ll|'d)
    if text[0] == '\'' {
        let fold = |i: usize| match text.get(i) {
            Some('ſ') => 's', // the long s is an s when case does not count
            Some(c) => c.to_ascii_lowercase(),
            None => '\0',
        };
        match (fold(1), fold(2)) {
            ('s' | 't' | 'm' | 'd', _) => return 2,
            ('r', 'e') | ('v', 'e') | ('l', 'l') => return 3,
            _ => {}
        }
    }
    // [^\r\n\p{L}\p{N}]?\p{L}+
    if letter(text[0]) {
        return run(0, &letter);
    }
    if !newline(text[0]) && !text[0].is_numeric() && text.get(1).is_some_and(|&c| letter(c)) {
        return run(1, &letter);
    }
    // \p{N}{1,3}
    if text[0].is_numeric() {
        return run(0, &|c| c.is_numeric()).min(3);
    }
    // ` ?[^\s\p{L}\p{N}]+[\r\n]*`
    let from = usize::from(text[0] == ' ');
    if text.get(from).is_some_and(|&c| mark(c)) {
        return run(run(from, &mark), &newline);
    }
    // \s*[\r\n]+
    let spaces = run(0, &char::is_whitespace);
    if let Some(last) = text[..spaces].iter().rposition(|&c| newline(c)) {
        return last + 1;
    }
    // \s+(?!\S) or \s+
    if spaces < text.len() && spaces > 1 { spaces - 1 } else { spaces }
}

struct Naive {
    ranks: HashMap<Vec<u8>, u32>,
    letter: fancy_regex::Regex,
}

impl Naive {
    fn new(ranks: &[Vec<u8>]) -> Self {
        let ranks = ranks.iter().cloned().zip(0..).collect();
        Self { ranks, letter: fancy_regex::Regex::new(r"^\p{L}$").unwrap() }
    }

    fn encode(&self, text: &str) -> Vec<u32> {
        let is_letter = |c: char| match c.is_ascii() {
            true => c.is_ascii_alphabetic(),
            false => self.letter.is_match(c.encode_utf8(&mut [0; 4])).unwrap(),
        };
        let chars: Vec<char> = text.chars().collect();
        let mut rest = chars.as_slice();
        let mut ids = Vec::new();
        while !rest.is_empty() {
            let end = piece_end(rest, &is_letter);
            assert!(end > 0, "nothing matches {rest:?}");
            let piece: String = rest[..end].iter().collect();
            ids.extend(merge(piece.as_bytes(), &self.ranks));
            rest = &rest[end..];
        }
        ids
    }

    fn agrees(&self, tokenizer: &Tokenizer, text: &str) -> Result<(), TestCaseError> {
        let ids = tokenizer.encode(text).unwrap();
        prop_assert_eq!(&ids, &self.encode(text), "{:?}", text);
        prop_assert_eq!(tokenizer.decode(&ids), text);
        Ok(())
    }
}

const SAMPLES: [&str; 16] = [
    "",
    " ",
    "\n",
    "Hello, world! It's a test; we'LL see, THEY'RE here, isn'T it? 'ſ 'S",
    "fn main() {\n    let x_1 = vec![1, 22, 333, 4444, 55555, 666666];\r\n\tprintln!(\"{x_1:?}\");\n}\n\n\n",
    "a  b   c    d\t\te \t f\n \n  \n\t\n    indented\r\n\r\n  trailing   ",
    "naïve façade Ünïcödé ß ſ ŉ ǅ ª º",
    "日本語のテキスト、中文文本。한국어 텍스트! Ελληνικά кириллица עברית العربية हिन्दी ไทย",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u{301} \u{200b}zero\u{feff}width \u{a0}nbsp\u{2003}em\u{3000}wide\u{85}nel\u{2028}ls",
    "½ ² Ⅷ ⅷ ٣٤٥ १२३४ 0x1F 1e-9 3.14159 1,000,000 v1.2.3",
    "https://example.com/a?b=c&d=%20#frag <tag attr='v'>text</tag> <|begin_of_text|> <|end_of_text|>",
    "!!!??? ... --- === +++ /* */ // /// //! #![allow(x)] &&|| => -> :: ;;;\n\n;\n",
    " 's 't 're 've 'm 'll 'd 'x ''s '' '",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbb",
    "\0\u{1}\u{7f}\u{80}\u{10ffff}\u{e000}",
    "x\n\n\n\n\ny\n \n \nz\r\r\n\n\rw",
];

/// Any UTF-8, with much of what the pattern distinguishes.
fn any_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(vec![
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "'s",
            "'LL",
            "'Re",
            "1",
            "22",
            "Hello",
            "the",
            "é",
            "日本",
            "_",
            "...",
            ";\n",
            "fn ",
            "    ",
            "\u{a0}",
            "\u{3000}",
            "½",
            "<|eot_id|>",
            "<|pad|>",
            "ing",
            "\u{301}",
        ])
        .prop_map(String::from),
        "[a-zA-Z]{1,6}",
        "[0-9]{1,5}",
        any::<char>().prop_map(String::from),
        "\\PC{0,4}",
    ];
    prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

/// Ranks learned from the samples in the plainest way; tokens that merging cannot reach are among them.
fn synthetic_ranks() -> Vec<Vec<u8>> {
    // Bytes in an order that is not that of their values, as in real files.
    let mut ranks: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b.wrapping_mul(77).wrapping_add(13)]).collect();
    let letter = fancy_regex::Regex::new(r"^\p{L}$").unwrap();
    let is_letter = |c: char| letter.is_match(c.encode_utf8(&mut [0; 4])).unwrap();
    let mut words: Vec<Vec<Vec<u8>>> = Vec::new();
    for sample in SAMPLES {
        let chars: Vec<char> = sample.chars().collect();
        let mut rest = chars.as_slice();
        while !rest.is_empty() {
            let end = piece_end(rest, &is_letter);
            words.push(rest[..end].iter().collect::<String>().bytes().map(|b| vec![b]).collect());
            rest = &rest[end..];
        }
    }
    while ranks.len() < 600 {
        let mut pairs: HashMap<(Vec<u8>, Vec<u8>), usize> = HashMap::new();
        for word in &words {
            for pair in word.windows(2) {
                *pairs.entry((pair[0].clone(), pair[1].clone())).or_default() += 1;
            }
        }
        let best = pairs.into_iter().max_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        let Some(((left, right), _)) = best else { break };
        let joined = [left.as_slice(), &right].concat();
        for word in &mut words {
            let mut i = 0;
            while i + 1 < word.len() {
                if word[i] == left && word[i + 1] == right {
                    word[i] = joined.clone();
                    word.remove(i + 1);
                }
                i += 1;
            }
        }
        if !ranks.contains(&joined) {
            ranks.push(joined);
        }
    }
    // Taken as a whole only, because no split of them has two ranked halves.
    ranks.extend([b" unreachable".to_vec(), b"Hzq".to_vec()]);
    ranks
}

fn names() -> Vec<String> {
    ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"].map(String::from).to_vec()
}

#[test]
fn synthetic_ranks_give_the_same_ids_as_merging_by_rank() {
    let ranks = synthetic_ranks();
    assert!(ranks.len() > 500);
    let (naive, tokenizer) = (Naive::new(&ranks), from_ranks(&ranks, &names()).unwrap());
    for text in SAMPLES.into_iter().chain(["an unreachable Hzq", " unreachables"]) {
        naive.agrees(&tokenizer, text).unwrap();
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(400));
    runner.run(&any_text(), |text| naive.agrees(&tokenizer, &text)).unwrap();
}

/// Files for development that are no part of the project: `$CALM_SHARED`, or `shared` beside the project folder.
fn shared(name: &str) -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = std::env::var_os("CALM_SHARED").map_or(beside, PathBuf::from);
    Some(folder.join("data").join(name)).filter(|path| path.exists())
}

#[test]
fn the_published_ranks_give_the_same_ids_as_merging_by_rank() {
    let (Some(path), Some(config)) =
        (shared("llama3-tokenizer.model"), shared("llama3-tokenizer_config.json"))
    else {
        println!(
            "skipped: no llama3-tokenizer.model under $CALM_SHARED/data or ../shared/data (needs the larger texts)"
        );
        return;
    };
    let ranks = read_ranks(&path).unwrap();
    assert_eq!(ranks.len(), 128_000);
    let naive = Naive::new(&ranks);
    let tokenizer = load(&Llama3Config { ranks: path.clone(), config: Some(config) }).unwrap();
    let special = tokenizer.special();
    assert_eq!((special.bos, special.eos, special.pad), (128_000, 128_001, 128_256));
    assert_eq!(tokenizer.vocab_size(), 128_257);
    // Published examples of this vocabulary.
    assert_eq!(tokenizer.encode("Hello world!").unwrap(), [9906, 1917, 0]);
    for text in SAMPLES {
        naive.agrees(&tokenizer, text).unwrap();
    }
    // Real text: this crate's own sources, and other languages where they are at hand.
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in ["batch.rs", "llama3.rs", "source/path.rs"] {
        naive.agrees(&tokenizer, &std::fs::read_to_string(sources.join(file)).unwrap()).unwrap();
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(1000));
    runner.run(&any_text(), |text| naive.agrees(&tokenizer, &text)).unwrap();

    // Without names the special tokens have the same ids, and a saved tokenizer is the same one.
    let unnamed = load(&Llama3Config { ranks: path, config: None }).unwrap();
    assert_eq!((unnamed.special(), unnamed.vocab_size()), (special, 128_257));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tokenizer.json");
    tokenizer.save(&file).unwrap();
    let again = Tokenizer::load(&file).unwrap();
    assert_eq!(again.hash(), tokenizer.hash());
    assert_eq!(again.encode(SAMPLES[4]).unwrap(), tokenizer.encode(SAMPLES[4]).unwrap());
}
