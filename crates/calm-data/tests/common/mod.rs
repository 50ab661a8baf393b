//! What must hold for every tokenizer and text.

#![allow(dead_code)]

use calm_data::Tokenizer;
use tokenizers::Normalizer;

/// Texts that are easily spoiled.
pub fn nasty() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        " ",
        "  ",
        "\n",
        "\n\n \n",
        "\t\t\ta\tb",
        " a",
        "a ",
        " a  b   c    ",
        "in 2020 we saw 30 birds",
        "the cat's don't  do not n't 'm",
        "Hello, world! (yes?) [no] {maybe}",
        "a\r\nb\rc\n",
        "\u{feff}bom",
        "e\u{301}\u{327} vs é",
        "ﬁ ½ Ⅳ ① ㎏",
        "日本語のテキスト。漢字かな交じり文",
        "안녕하세요 세계",
        "नमस्ते दुनिया",
        "สวัสดีชาวโลก",
        "مرحبا بالعالم",
        "שלום עולם",
        "👩‍👩‍👧‍👦 🏳️‍🌈 😀😀 🇩🇪",
        "\u{200b}\u{200d}\u{2060}\u{ad}",
        "\u{0}\u{1}\u{7f}\u{85}\u{a0}",
        "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \u{10ffff}",
        "▁the▁cat ▁",
        "Ġthe Ċ",
        "##ing ## # #",
        "</w> a</w>",
        "<0x0A><0xF0> <0xZZ>",
        "�� �",
        "fn main() {\n    println!(\"{}\", x);\n}\n",
        "https://example.org/a?b=c&d=%20#e",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        "1234567890 3.14159 1e-9 0x1F",
        "İstanbul ŞĞ ß ẞ ǅ",
        "x̷̧̛̻ͅ",
        "</s><s></s> <pad> <unk> [UNK] [CLS] [SEP] [PAD]",
        "<|endoftext|><|eos|><|im_end|> <EOT> <|begin_of_text|>",
    ]
    .map(str::to_owned)
    .to_vec();
    texts.push("the cat sat on the mat. ".repeat(60));
    texts.push("acgt".repeat(500));
    texts.push(" ".repeat(300));
    texts.push("😀".repeat(100));
    texts
}

/// The names of everything that is special.
pub fn special_names(library: &tokenizers::Tokenizer) -> String {
    let mut names: Vec<String> = library
        .get_added_tokens_decoder()
        .values()
        .filter(|t| t.special)
        .map(|t| t.content.clone())
        .collect();
    names.sort();
    // Some have thousands that are reserved, one like the other.
    names.truncate(200);
    let ours = ["<s>", "</s>", "<pad>", "<|bos|>", "<|eos|>", "<|pad|>"].map(str::to_owned);
    let all: Vec<String> = names.into_iter().chain(ours).collect();
    format!("a{} {} b{}", all.concat(), all.join(" "), all.join("x"))
}

/// A text as the tokenizer's normaliser leaves it.
pub fn normalised(library: &tokenizers::Tokenizer, text: &str) -> String {
    let mut normalised = tokenizers::NormalizedString::from(text);
    if let Some(normalizer) = library.get_normalizer() {
        normalizer.normalize(&mut normalised).unwrap();
    }
    normalised.get().to_owned()
}

/// Ids of a text are text; what they say is said again by its own ids; a stream gives the same, by single tokens
/// and after any beginning.
pub fn check(tokenizer: &Tokenizer, text: &str, name: &str) -> usize {
    let ids = tokenizer.encode(text).unwrap_or_else(|e| panic!("{name}: {text:?}: {e}"));
    let special = tokenizer.special();
    for id in &ids {
        assert!((*id as usize) < tokenizer.vocab_size(), "{name}");
        assert!(![special.bos, special.eos, special.pad].contains(id), "{name}: {id} in {text:?}");
    }
    let whole = tokenizer.decode(&ids);
    let mut stream = tokenizer.stream_after("", &[]);
    let mut streamed: String = ids.iter().map(|id| stream.push(&[*id])).collect();
    streamed += &stream.finish();
    assert_eq!(streamed, whole, "{name}: a stream of {text:?}");
    for cut in [1, 2, 3, 5, ids.len() / 2, ids.len().saturating_sub(1)] {
        let (before, after) = ids.split_at(cut.min(ids.len()));
        let start = tokenizer.decode(before);
        // Where the beginning ends inside a character, there is no text of it to go on from.
        if whole.starts_with(&start) && !start.contains('\u{fffd}') {
            let joined = start + &tokenizer.decode_after(before, after);
            assert_eq!(joined, whole, "{name}: {text:?} after {cut} tokens");
        }
    }
    ids.len()
}
