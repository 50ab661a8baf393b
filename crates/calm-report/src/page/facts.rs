//! What the numbers rest on: settings, protocol, text, machine; and how to read them.

use maud::{Markup, html};

use super::parts::{Section, cell, table};
use super::saved;
use crate::study::Study;
use crate::table::setting_keys;

pub fn settings(study: &Study) -> Option<Section> {
    let keys = setting_keys(study);
    if keys.is_empty() {
        return None;
    }
    let rows = html! {
        thead { tr {
            th scope="col" { "Variant" }
            @for key in &keys { th.text scope="col" { code { (key) } } }
        } }
        tbody {
            @for variant in &study.variants {
                tr {
                    th scope="row" { span.name { span { (variant.name) } } }
                    @for key in &keys {
                        @match variant.settings.iter().find(|s| s.0 == *key) {
                            Some((_, value)) => td.setting { code { (value) } },
                            None => (cell(None)),
                        }
                    }
                }
            }
        }
    };
    let body = html! {
        p { "Only what is not the same for all variants. A dash: the variant has no such setting." }
        (table("Settings that differ", &rows))
    };
    Some(Section { id: "settings", title: "Settings that differ", body })
}

pub fn provenance(study: &Study) -> Option<Section> {
    let machine = &study.machine;
    let known = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let version = [known(&machine.version), machine.commit.as_ref().map(|c| format!("commit {c}"))];
    let version = version.into_iter().flatten().collect::<Vec<_>>().join(", ");
    let facts: Vec<(&str, String)> = [
        ("Budget", known(&study.budget)),
        ("Aligned protocol", known(&study.aligned)),
        ("Reference protocol", study.reference.clone()),
        ("Text", known(&study.corpus)),
        ("Hash of the text", known(&study.corpus_hash)),
        ("Vocabulary", (study.vocab_size > 0).then(|| crate::number::count(study.vocab_size as u64))),
        ("Machine", known(&machine.platform)),
        ("Device", known(&machine.device)),
        ("Threads", (machine.threads > 0).then(|| machine.threads.to_string())),
        ("calm", known(&version)),
        ("Day of the last score", known(&machine.date)),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect();
    if facts.is_empty() {
        return None;
    }
    let body = html! {
        dl.facts-list {
            @for (name, value) in &facts { div { dt { (name) } dd { (value) } } }
        }
    };
    Some(Section { id: "provenance", title: "Protocol, text and machine", body })
}

/// What is to be cited by whoever uses these numbers.
pub fn citing(study: &Study) -> Section {
    let machine = &study.machine;
    let version = [machine.version.as_str(), machine.commit.as_deref().unwrap_or_default()];
    let version: Vec<&str> = version.into_iter().filter(|word| !word.is_empty()).collect();
    let body = html! {
        p {
            "The program and the paper whose method it implements. Please say with which version the numbers were made"
            @if !version.is_empty() { ": calm " (version.join(", commit ")) }
            "."
        }
        (saved::text("citations", "bib", include_str!("../citations.bib")))
    };
    Section { id: "citing", title: "How to cite this", body }
}

pub fn reading(study: &Study) -> Section {
    let term = |name: &str, text: Markup| html! { div { dt { (name) } dd { (text) } } };
    let body = html! {
        dl.facts-list {
            (term("Brier-n", html! {
                "How well a model’s drawn n-grams match the text, in percent: 100 for one that always draws the "
                "true one and nothing else, 0 for one whose draws agree neither with the text nor with each "
                "other. It is estimated from draws alone, without probabilities; the estimate is unbiased and "
                "may therefore fall below 0 by chance."
            }))
            (term("BrierLM", html! {
                "The geometric mean of Brier-1 to Brier-4, in percent. It is "
                em { "undefined" }
                " where one of the four is not positive; the four then stand for themselves, and plots of "
                "Brier-1, which is always defined, stand beside those of BrierLM."
            }))
            (term("±", html! {
                "One standard error. It has two parts: the choice of documents, and the choice of seeds where "
                "there is more than one. With a single seed nothing is known of the second part, and the error "
                "is too small."
            }))
            (term("95 % interval", html! {
                "The difference ± half of its width, from Student’s t with the degrees of freedom of the seeds."
            }))
            (term("FLOPs", html! {
                "By formula, the same for all seeds: how a model compares on any machine. Times and speeds were "
                "measured, on this one."
            }))
            (term("T = 1", html! { "Drawing from the model as it is, one draw a chunk." }))
            (term("Batch sampler", html! {
                "Lower temperatures without probabilities: it draws "
                @if study.batch_draws > 0 { (study.batch_draws) " chunks" } @else { "many chunks" }
                " and keeps what they agree on. Models with probabilities need none."
            }))
            (term("k, M, G, T, P, E", html! { "Thousand, and 10⁶, 10⁹, 10¹², 10¹⁵, 10¹⁸." }))
        }
    };
    Section { id: "reading", title: "How to read this", body }
}
