//! What the models wrote, side by side for each prompt and way of drawing.

use maud::{Markup, html};

use super::parts::Section;
use crate::study::{Sample, Study};

/// Prompts that are open when the page is; the rest is one click away.
const OPEN: usize = 2;

pub fn section(study: &Study) -> Option<Section> {
    let mut prompts: Vec<&str> = Vec::new();
    for (_, _, sample) in all(study) {
        if !prompts.contains(&sample.prompt.as_str()) {
            prompts.push(&sample.prompt);
        }
    }
    if prompts.is_empty() {
        return None;
    }
    let body = html! {
        p {
            "The same prompts for all variants; the prompt is set apart in colour. One seed of each variant is "
            "shown, the JSON of the study holds all."
        }
        @for (i, prompt) in prompts.iter().enumerate() {
            @if i < OPEN { details open="" { (one_prompt(study, prompt)) } }
            @else { details { (one_prompt(study, prompt)) } }
        }
    };
    Some(Section { id: "samples", title: "Samples", body })
}

/// All samples with the index of their variant and their seed, in the order of the study.
fn all(study: &Study) -> impl Iterator<Item = (usize, u64, &Sample)> {
    study.variants.iter().enumerate().flat_map(|(i, variant)| {
        variant.runs.iter().flat_map(move |run| run.samples.iter().map(move |s| (i, run.seed, s)))
    })
}

fn one_prompt(study: &Study, prompt: &str) -> Markup {
    let mut temperatures: Vec<&str> = Vec::new();
    for (_, _, sample) in all(study).filter(|s| s.2.prompt == prompt) {
        if !temperatures.contains(&temperature(sample)) {
            temperatures.push(temperature(sample));
        }
    }
    html! {
        summary {
            @if prompt.trim().is_empty() { "Without a prompt" } @else { "“" (first_line(prompt)) "”" }
        }
        @for t in temperatures {
            @let samples = beside_each_other(study, prompt, t);
            h3 { (t) }
            // Rows of at most four, as even as they come; fewer where the screen is narrow.
            @let columns = samples.len().div_ceil(samples.len().div_ceil(4).max(1));
            div.samples style={ "--columns:" (columns) } {
                @for (variant, seed, sample) in samples {
                    article {
                        h4 {
                            (study.variants[variant].name)
                            span.seed { (how(sample, t)) "seed " (seed) }
                        }
                        // Nothing between the tags: every space of a <pre> shows. The leading line feed is the
                        // one that HTML drops, so that one of the text's own is kept.
                        pre { "\n" span.prompt { (sample.prompt) } (sample.text) }
                    }
                }
            }
        }
    }
}

/// `T = 0.5` of `T = 0.5, batch of 200`: a baseline needs no batch, and stands beside those that do.
fn temperature(sample: &Sample) -> &str {
    sample.decoding.split(',').next().unwrap_or_default()
}

/// What the decoding says besides its temperature: `batch of 200, `.
fn how(sample: &Sample, temperature: &str) -> String {
    match sample.decoding[temperature.len()..].trim_start_matches(',').trim() {
        "" => String::new(),
        rest => format!("{rest}, "),
    }
}

/// Of each variant the samples of its first seed that has some, one for each way of drawing.
fn beside_each_other<'a>(study: &'a Study, prompt: &str, t: &str) -> Vec<(usize, u64, &'a Sample)> {
    let mut samples: Vec<(usize, u64, &Sample)> = Vec::new();
    for (variant, seed, sample) in all(study) {
        let wanted = sample.prompt == prompt && temperature(sample) == t;
        if wanted && !samples.iter().any(|s| s.0 == variant && s.2.decoding == sample.decoding) {
            samples.push((variant, seed, sample));
        }
    }
    samples
}

/// What fits in a heading.
fn first_line(prompt: &str) -> String {
    let line = prompt.lines().find(|l| !l.trim().is_empty()).unwrap_or_default().trim();
    let line = if line.len() < prompt.trim().len() { format!("{line}…") } else { line.into() };
    crate::chart::shorten(&line, 80)
}
