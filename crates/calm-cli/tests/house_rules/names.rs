//! A family or a head is named in its own module, in the registry and in tests, and nowhere else: whoever adds one adds
//! one module and its line. All others go through the traits.

use std::collections::BTreeSet;

use calm_lm::family::FamilyConfig;
use calm_lm::head::HeadSettings;
use calm_lm::registry::entries;

use crate::graphs;
use crate::tokens::Token;

/// Where they are named by right: the crate, and the beginning of the module.
const HOMES: [(&str, &str); 5] = [
    ("calm-lm", "family"),
    ("calm-lm", "head"),
    ("calm-lm", "registry"),
    // Passes on what its modules declare.
    ("calm-lm", "the root"),
    // Measures named models against the same models in PyTorch.
    ("calm-bench", ""),
];

/// Texts that are spelled as a name and mean something else: the crate, the module and the text.
const OTHERS: [(&str, &str, &str); 10] = [
    // The program.
    ("calm-cli", "args", "calm"),
    ("calm-cli", "the root", "calm"),
    ("calm-nn", "files", "calm"),
    ("calm-report", "page::facts", "calm"),
    // Configurations that are shipped.
    ("calm-cli", "shipped", "baseline"),
    ("calm-cli", "shipped", "patch"),
    ("calm-cli", "shipped", "multi-token"),
    ("calm-cli", "shipped", "dlcm"),
    // A page of the book.
    ("calm-cli", "book", "patch"),
    ("calm-cli", "book", "dlcm"),
];

/// Keys of configurations, values of `architectures` and `model_type`.
struct Names {
    keys: BTreeSet<&'static str>,
    /// `model.KEY` and `head.KEY`.
    paths: BTreeSet<String>,
    published: BTreeSet<&'static str>,
    types: BTreeSet<String>,
}

fn names() -> Names {
    let (families, heads) = (entries::<dyn FamilyConfig>(), entries::<dyn HeadSettings>());
    let of_families = families.iter().map(|e| ("family", "model", e.name));
    let kinds: Vec<_> = of_families.chain(heads.iter().map(|e| ("head", "head", e.name))).collect();
    let published = families.iter().filter_map(|e| e.published).flat_map(|p| (p.names)());
    let (_, models) = graphs().into_iter().find(|(name, _)| name == "calm-lm").unwrap();
    let types = kinds.iter().flat_map(|(folder, _, name)| {
        // A key of several words has hyphens, its module underscores.
        let types = models.passed_on(&format!("{folder}::{}", name.replace('-', "_")));
        assert!(!types.is_empty(), "{name} has no module {folder}::{name}, which shows its types");
        types
    });
    Names {
        types: types.filter(|name| name.starts_with(char::is_uppercase) && *name != "PUBLISHED").collect(),
        keys: kinds.iter().map(|k| k.2).collect(),
        paths: kinds.iter().map(|(_, key, name)| format!("{key}.{name}")).collect(),
        published: published.flat_map(|names| [names.architecture, names.model_type]).collect(),
    }
}

impl Names {
    fn has(&self, token: &Token) -> bool {
        match token {
            Token::Word(word) => self.types.contains(word),
            Token::Text(text) => {
                let said = text.as_str();
                let whole = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
                let mut words = said.split(|c: char| !whole(c));
                self.keys.contains(said)
                    || self.published.contains(said)
                    || words.any(|word| {
                        let path = |p: &String| word.contains(&format!("{p}.")) || word.ends_with(p.as_str());
                        self.paths.iter().any(path)
                    })
            }
            Token::Sign(_) => false,
        }
    }
}

#[test]
fn families_and_heads_are_named_at_home_alone() {
    let names = names();
    let mut wrong = BTreeSet::new();
    let mut unused: BTreeSet<_> = OTHERS.into_iter().collect();
    for (name, graph) in graphs() {
        for (module, code) in graph.files() {
            if HOMES.iter().any(|(home, begin)| name == *home && module.starts_with(begin)) {
                continue;
            }
            for token in code.iter().filter(|token| names.has(token)) {
                let is = |o: &&(&str, &str, &str)| {
                    (o.0, o.1) == (name.as_str(), module.as_str())
                        && matches!(token, Token::Text(text) if text == o.2)
                };
                match OTHERS.iter().find(is) {
                    Some(other) => drop(unused.remove(other)),
                    None => drop(wrong.insert(format!("{name}: {module}: {token:?}"))),
                }
            }
        }
    }
    wrong.extend(unused.iter().map(|o| format!("{o:?} is not there any more: take it from the list")));
    let list: Vec<&String> = wrong.iter().collect();
    assert!(list.is_empty(), "named outside of its module; go through the traits instead:\n{list:#?}");
}

#[test]
fn names_are_found_where_they_are() {
    let names = names();
    for word in ["CalmConfig", "Baseline", "EnergyHead", "FlowTime", "DiffusionConfig"] {
        assert!(names.has(&Token::Word(word.to_owned())), "{word}: {:?}", names.types);
    }
    for text in ["calm", "energy", "LlamaForCausalLM", "set model.calm.head.energy.targets", "model.baseline"]
    {
        assert!(names.has(&Token::Text(text.to_owned())), "{text}");
    }
    for token in
        [Token::Word("Head".to_owned()), Token::Text("a CALM, calm as ever; model.calmer".to_owned())]
    {
        assert!(!names.has(&token), "{token:?}");
    }
}
