//! The page as text: strict markup, nothing from outside, and every section where it belongs.

mod fixture;

use calm_report::study::*;
use calm_report::{Study, html};

/// Parses strictly, as XML: the markup closes every element, quotes every attribute and escapes every text.
fn parsed<T>(study: &Study, look: impl FnOnce(&roxmltree::Document<'_>) -> T) -> T {
    let page = html(study).expect("a page");
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&page, options)
        .unwrap_or_else(|e| panic!("the page is not well formed: {e}"));
    look(&document)
}

fn text(node: roxmltree::Node<'_, '_>) -> String {
    node.descendants().filter_map(|n| if n.is_text() { n.text() } else { None }).collect()
}

fn section(document: &roxmltree::Document<'_>, id: &str) -> Option<String> {
    document.descendants().find(|n| n.attribute("id") == Some(id)).map(text)
}

fn everything() -> [(&'static str, Study); 6] {
    let mut failed = Study { name: "all failed".into(), ..Study::default() };
    failed.failures.push(Failure { run: "k4, seed 1".into(), reason: "out of memory".into() });
    [
        ("full", fixture::full()),
        ("single seed", fixture::single_seed()),
        ("baseline only", fixture::baseline_only()),
        ("hostile", fixture::hostile()),
        ("empty", Study::default()),
        ("failed", failed),
    ]
}

#[test]
fn every_page_is_well_formed_and_its_headings_are_in_order() {
    for (name, study) in everything() {
        parsed(&study, |document| {
            let mut level = 0;
            for heading in document.descendants() {
                let tag = heading.tag_name().name().as_bytes();
                if let [b'h', digit @ b'1'..=b'6'] = tag {
                    let this = digit - b'0';
                    assert!(this <= level + 1, "{name}: h{this} after h{level}");
                    level = this;
                }
            }
            let tables = document.descendants().filter(|n| n.has_tag_name("table"));
            assert!(tables.clone().all(|t| t.children().any(|c| c.has_tag_name("caption"))), "{name}");
            let plots = document.descendants().filter(|n| n.attribute("class") == Some("plot"));
            let labelled = |n: roxmltree::Node<'_, '_>| {
                n.attribute("role") == Some("img") && n.attribute("aria-label").is_some_and(|l| !l.is_empty())
            };
            assert!(plots.clone().all(labelled), "{name}");
            // Every link of the contents leads somewhere, and only there.
            let ids: Vec<_> = document.descendants().filter_map(|n| n.attribute("id")).collect();
            let leads = |n: &roxmltree::Node<'_, '_>| n.attribute("download").is_none();
            for link in document.descendants().filter(leads).filter_map(|n| n.attribute("href")) {
                assert!(link.strip_prefix('#').is_some_and(|id| ids.contains(&id)), "{name}: {link}");
            }
        });
    }
}

#[test]
fn rows_of_every_table_have_as_many_cells_as_its_head() {
    for (name, study) in everything() {
        parsed(&study, |document| {
            for table in document.descendants().filter(|n| n.has_tag_name("table")) {
                let span = |cell: &roxmltree::Node<'_, '_>, attribute: &str| {
                    cell.attribute(attribute).map_or(1, |s| s.parse::<usize>().expect("a number"))
                };
                let rows = table.descendants().filter(|n| n.has_tag_name("tr"));
                let mut widths = vec![0; rows.clone().count()];
                for (at, row) in rows.enumerate() {
                    for cell in row.children().filter(roxmltree::Node::is_element) {
                        // A rowspan beyond the last row is out of bounds, and a mistake.
                        for width in &mut widths[at..at + span(&cell, "rowspan")] {
                            *width += span(&cell, "colspan");
                        }
                    }
                }
                assert!(widths.windows(2).all(|w| w[0] == w[1]), "{name}: {} {widths:?}", text(table));
            }
        });
    }
}

#[test]
fn nothing_is_fetched_and_nothing_runs() {
    for (name, study) in everything() {
        let page = html(&study).expect("a page");
        // What a model wrote may name an address; only attributes and styles could fetch it.
        parsed(&study, |document| {
            for node in document.descendants().filter(|n| n.is_element()) {
                let tag = node.tag_name().name();
                let forbidden =
                    ["script", "link", "img", "iframe", "object", "embed", "image", "use", "base"];
                assert!(!forbidden.contains(&tag), "{name}: <{tag}>");
                for attribute in node.attributes() {
                    assert!(!attribute.name().starts_with("on") && attribute.name() != "src", "{name}");
                    // A file that a link carries in itself is encoded, and comes from nowhere.
                    let own = attribute.name() == "aria-label" || attribute.value().starts_with("data:");
                    assert!(!attribute.value().contains("//") || own, "{name}");
                }
            }
            let style = document.descendants().find(|n| n.has_tag_name("style")).map(text).expect("a style");
            assert!(!style.contains("url(") && !style.contains("@import"), "{name}");
        });
        if name != "hostile" {
            // The address in what is to be cited is text.
            let page = page.replace("{https://github.com/calm-lm/calm}", "");
            for forbidden in ["http://", "https://", "src=", "@import", "<script", "javascript:"] {
                assert!(!page.contains(forbidden), "{name}: {forbidden}");
            }
        }
    }
}

#[test]
fn a_full_study_shows_everything() {
    let study = fixture::full();
    parsed(&study, |document| {
        for (id, needles) in [
            (
                "scores",
                &[
                    "6.06 ±",
                    "Nats/token",
                    "≤ 5.",
                    "(N = 64)",
                    "undefined",
                    "bigram",
                    "0.53",
                    "42.8\u{a0}T",
                    "24,310",
                    "MB",
                    "batch sampler",
                ][..],
            ),
            (
                "differences",
                &["not resolved", "detectable effect", "resolved: lower", "documents", "seeds", "±"],
            ),
            (
                "frontier",
                &[
                    "training FLOPs of a run",
                    "inference FLOPs per token",
                    "measured training time",
                    "bigram",
                    "bits per byte, exact or a bound",
                ],
            ),
            ("curves", &["training tokens", "loss of latent heads", "nats per token"]),
            (
                "cross-entropy",
                &["with probabilities: Pearson −0.9", "Spearman −0.9", "36 checkpoints", "by their bound"],
            ),
            ("autoencoders", &["noise σ", "tokens right", "chunks right", "K, tokens a chunk", "σ = 0.3"]),
            (
                "reference",
                &["Only aligned scores may be compared", "aligned", "reference", "blocks of 2,048"],
            ),
            ("samples", &["std::env::args", "T = 0.5, batch of 200", "k8", "seed 1"]),
            ("flops", &["backbone", "output layer", "head", "decoder"]),
            ("settings", &["chunk_size", "baseline"]),
            (
                "provenance",
                &["blake3:8f1d", "every 8 tokens", "linux x86_64", "b13e7f8", "2 M training tokens"],
            ),
            ("reading", &["percent", "standard error", "not positive", "200 chunks"]),
        ] {
            let section = section(document, id).unwrap_or_else(|| panic!("no section {id}"));
            for needle in needles {
                assert!(section.contains(needle), "{id} without {needle}:\n{section}");
            }
        }
        let failures = document.descendants().find(|n| n.attribute("class") == Some("failures"));
        assert!(text(failures.expect("failures")).contains("not finite at step 1,204"));
        // Every plot has a sentence below it.
        for figure in document.descendants().filter(|n| n.has_tag_name("figure")) {
            assert!(figure.children().any(|n| n.has_tag_name("figcaption") && text(n).len() > 40));
        }
    });
}

#[test]
fn brier_1_is_plotted_where_brierlm_is_undefined_everywhere() {
    let mut study = fixture::full();
    for variant in &mut study.variants {
        variant.aligned.iter_mut().for_each(|s| s.brierlm = None);
        for run in &mut variant.runs {
            run.brierlm = None;
            run.curve.iter_mut().for_each(|p| p.brierlm = None);
        }
    }
    study.differences.iter_mut().for_each(|d| d.brierlm = None);
    parsed(&study, |document| {
        let frontier = section(document, "frontier").expect("a frontier");
        assert!(frontier.contains("Brier-1, %") && !frontier.contains("BrierLM"));
        let scores = section(document, "scores").expect("scores");
        assert!(scores.find("Brier-1") < scores.find("BrierLM"), "what is defined leads: {scores}");
        assert!(section(document, "differences").expect("differences").contains("undefined"));
        let page = text(document.root());
        assert!(page.contains("BrierLM is undefined for all variants"), "{page}");
        assert!(page.contains("Highest Brier-1: “baseline” with 19.62"), "{page}");
    });
}

#[test]
fn sections_without_anything_to_show_are_left_out() {
    let has = |study: &Study, id: &str| parsed(study, |document| section(document, id).is_some());
    let single = fixture::single_seed();
    for (id, shown) in [
        ("scores", true),
        ("frontier", true),
        ("curves", true),
        ("autoencoders", true),
        ("samples", true),
        ("differences", false),
        ("cross-entropy", true),
        ("reference", false),
        ("settings", false),
    ] {
        assert_eq!(has(&single, id), shown, "{id}");
    }
    assert!(!has(&fixture::baseline_only(), "autoencoders"));
    let empty = Study::default();
    for id in ["scores", "frontier", "samples", "provenance"] {
        assert!(!has(&empty, id), "{id}");
    }
    parsed(&empty, |document| assert!(text(document.root()).contains("nothing has been trained")));
}

#[test]
fn markup_in_names_and_samples_is_shown_and_not_obeyed() {
    let study = fixture::hostile();
    parsed(&study, |document| {
        let samples = section(document, "samples").expect("samples");
        assert!(samples.contains("]]></pre><script>") && samples.contains("👍🏽"));
        // Control characters as their pictures.
        assert!(samples.contains("␀␛[31m"), "{samples}");
        assert!(text(document.root()).contains("<script>alert('&amp;')</script>"));
        assert!(text(document.root()).contains("<b>\"R&D\"</b> 'study' ]]> <!-- "));
    });
}

#[test]
fn a_text_that_is_cut_shows_every_character_and_where_segments_begin() {
    let mut study = fixture::full();
    assert!(!html(&study).unwrap().contains("<pre class=\"segments\">"));
    let piece =
        |text: &str, opens, probability| Piece { text: text.into(), opens, probability, nats: Some(1.25) };
    let place = |place, nats| Place { place, nats, nats_se: Some(0.1) };
    study.variants[0].runs[0].segments = Some(Segments {
        target: Some(4.0),
        realised: Some(3.56),
        training: vec![(100, 2.0), (200, 3.5), (300, 3.9)],
        ratio: 3.75,
        ratio_se: Some(0.06),
        tokens: 12_345,
        from_start: vec![place(0, 2.5), place(1, 2.0), place(2, 1.75)],
        from_end: vec![place(1, 1.5), place(2, 2.0)],
        text: vec![
            piece("\nlet ", true, Some(0.987)),
            piece("x < y", false, Some(0.012)),
            piece("é\u{1b}[31m", true, None),
        ],
    });
    parsed(&study, |document| {
        let found = section(document, "segments").expect("segments");
        for needle in ["3.75 ± 0.06", "3.56", "12,345", "dashed line"] {
            assert!(found.contains(needle), "no {needle} in {found}");
        }
        let class = |n: &roxmltree::Node<'_, '_>, class| n.attribute("class") == Some(class);
        let pre = document.descendants().find(|n| class(n, "segments") && n.has_tag_name("pre")).unwrap();
        // The first line feed is the one that HTML drops.
        assert_eq!(text(pre), "\n\nlet x < yé␛[31m");
        let spans: Vec<_> = pre.children().filter(roxmltree::Node::is_element).collect();
        let classes: Vec<_> = spans.iter().map(|n| n.attribute("class").unwrap()).collect();
        assert_eq!(classes, ["odd opens", "odd", "even opens"]);
        let title = spans[0].attribute("title").unwrap();
        assert!(title.contains("p = 0.987") && title.contains("1.25 nats"), "{title}");
        assert_eq!(spans[2].attribute("title"), Some("1.25 nats"));
        let plots = document.descendants().filter(|n| n.attribute("id") == Some("segments"));
        let plots = plots.flat_map(|n| n.descendants()).filter(|n| n.has_tag_name("svg") && class(n, "plot"));
        assert_eq!(plots.count(), 3, "training, places from the beginning, from the end");
    });
}

#[test]
fn numbers_that_are_not_finite_leave_the_page_whole() {
    let mut study = fixture::full();
    for variant in &mut study.variants {
        variant.aligned.iter_mut().flat_map(|s| s.brierlm.iter_mut().chain(&mut s.brier)).for_each(|e| {
            *e = Estimate { value: f64::NAN, documents: Some(f64::INFINITY), seeds: Some(f64::NAN) }
        });
        variant.measured = Some(Measured::default());
        variant.costs = Costs { inference_batch: f64::NEG_INFINITY, ..Costs::default() };
        for run in &mut variant.runs {
            (run.seconds, run.flops) = (f64::NAN, f64::INFINITY);
            run.curve.iter_mut().for_each(|p| (p.loss, p.brierlm) = (f64::NAN, Some(f64::INFINITY)));
        }
    }
    study.autoencoders.iter_mut().for_each(|a| (a.token_accuracy, a.kl) = (f64::NAN, f64::NAN));
    parsed(&study, |document| {
        let page = text(document.root());
        assert!(page.contains("undefined"));
        assert!(!page.contains("NaN") && !page.contains("inf\u{a0}"), "{page}");
    });
}

/// What the page offers as files.
fn files(study: &Study) -> Vec<(String, String)> {
    calm_report::files(study).expect("files")
}

#[test]
fn every_plot_and_every_table_can_be_saved() {
    for (name, study) in everything() {
        let page = html(&study).expect("a page");
        let count = |what: &str| page.matches(what).count();
        let files = files(&study);
        let ending = |e: &str| files.iter().filter(|(file, _)| file.ends_with(e)).count();
        assert_eq!(ending(".svg"), count("class=\"plot\""), "{name}");
        assert_eq!(ending(".tex"), count("<caption>"), "{name}");
        assert_eq!(ending(".csv"), ending(".svg") + ending(".tex"), "{name}");
        assert_eq!(ending(".bib"), 1, "{name}");
        let names: std::collections::BTreeSet<&str> = files.iter().map(|(file, _)| file.as_str()).collect();
        assert_eq!(names.len(), files.len(), "{name}");
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        assert!(names.iter().all(|file| file.chars().all(plain) && !file.starts_with('.')), "{names:?}");
    }
}

#[test]
fn a_saved_plot_needs_no_page_and_its_numbers_are_those_of_the_study() {
    for (name, study) in everything() {
        for (file, content) in files(&study) {
            if file.ends_with(".svg") {
                let document = roxmltree::Document::parse(&content)
                    .unwrap_or_else(|e| panic!("{name}, {file} is not well formed: {e}"));
                let root = document.root_element();
                assert_eq!(root.tag_name().namespace(), Some("http://www.w3.org/2000/svg"), "{file}");
                assert!(!content.contains("var(") && !content.contains("url("), "{name}, {file}");
                assert!(!text(document.root()).is_empty(), "{name}, {file}");
            } else if file.ends_with(".csv") {
                let mut reader = csv::Reader::from_reader(content.as_bytes());
                let lines = reader.records().collect::<Result<Vec<_>, _>>();
                assert!(
                    !lines.unwrap_or_else(|e| panic!("{name}, {file}: {e}")).is_empty(),
                    "{name}, {file}"
                );
            }
        }
    }
    let study = fixture::full();
    let files = files(&study);
    let of = |file: &str| {
        let found = files.iter().find(|(there, _)| there == file);
        found
            .unwrap_or_else(|| panic!("no {file} among {:?}", files.iter().map(|f| &f.0).collect::<Vec<_>>()))
            .1
            .as_str()
    };
    let variant = &study.variants[0];
    let brierlm = variant.aligned.as_ref().and_then(|s| s.brierlm).expect("a score").value;
    let line = of("brierlm-against-training-flops-of-a-run.csv")
        .lines()
        .find(|l| l.contains(&format!(",point,{},", variant.name)))
        .expect("its point");
    assert!(line.contains(&brierlm.to_string()), "{line}");
    let scores = of("scores-aligned-protocol-percent.tex");
    assert!(
        scores.contains("\\begin{tabular}") && scores.contains("$\\pm$") && scores.contains("\\midrule"),
        "{scores}"
    );
    let costs = of("costs-by-formula-and-as-measured.csv");
    assert!(
        costs.starts_with("Variant,Parameters,FLOPs by formula: training,FLOPs by formula: per token,"),
        "{costs}"
    );
    assert!(of("citations.bib").contains("arXiv:2510.27688"));
}
