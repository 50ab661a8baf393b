//! Stage 1: how much of the text survives the latent vectors, by K and by noise.

use maud::{Markup, html};

use super::parts::{Section, cell, figure, legend, name_head, table};
use crate::ReportError;
use crate::axis::{Axis, Unit};
use crate::chart::{Chart, Mark, Point};
use crate::number;
use crate::study::{Autoencoder, Study};

pub fn section(study: &Study) -> Result<Option<Section>, ReportError> {
    if study.autoencoders.is_empty() {
        return Ok(None);
    }
    let entries = names(study);
    let panels: Vec<Chart> = [
        by_chunk_size(study, "tokens right, %", |a| a.token_accuracy),
        by_chunk_size(study, "chunks right, %", |a| a.chunk_accuracy),
        by_noise(study),
    ]
    .into_iter()
    .flatten()
    .collect();
    let caption = html! {
        "Share of held-out tokens and of whole chunks that the decoder rebuilds from a posterior sample, by K, "
        "and of tokens rebuilt from the mean with noise of standard deviation σ added: how much a language "
        "model’s latents may be off before the text is. Every marker is one trained autoencoder."
    };
    let plots = if panels.is_empty() {
        html! {}
    } else {
        figure(&legend(entries.iter().map(|(i, n)| (*i, n.as_str())))?, &panels, &caption)?
    };
    let body = html! {
        (plots)
        (table("Autoencoders on held-out text", &rows(study)?))
    };
    Ok(Some(Section { id: "autoencoders", title: "Autoencoders", body }))
}

/// An autoencoder looks like the first variant it serves; one that serves none known comes after all variants.
fn series(study: &Study, autoencoder: &Autoencoder) -> usize {
    let serves =
        |name: &str| name == autoencoder.name || autoencoder.variants.iter().any(|served| served == name);
    study.variants.iter().position(|v| serves(&v.name)).unwrap_or(study.variants.len())
}

/// One legend entry a name.
fn names(study: &Study) -> Vec<(usize, String)> {
    let mut names: Vec<(usize, String)> = Vec::new();
    for autoencoder in &study.autoencoders {
        if !names.iter().any(|(_, name)| *name == autoencoder.name) {
            names.push((series(study, autoencoder), autoencoder.name.clone()));
        }
    }
    names
}

fn by_chunk_size(study: &Study, label: &str, of: fn(&Autoencoder) -> f64) -> Option<Chart> {
    let sizes: Vec<f64> = study.autoencoders.iter().map(|a| a.chunk_size as f64).collect();
    let values: Vec<f64> = study.autoencoders.iter().map(|a| 100.0 * of(a)).collect();
    let x = Axis::log_at("K, tokens a chunk", &sizes)?;
    // With 100 in sight, what is lost shows beside what is kept.
    let y = Axis::linear(label, Unit::Plain, values.iter().copied().chain([100.0]))?;
    let marks = study
        .autoencoders
        .iter()
        .zip(sizes.iter().zip(&values))
        .map(|(a, (&x, &y))| Point { x, y, series: series(study, a), ..Point::default() })
        .map(Mark::Point)
        .collect();
    Some(Chart { description: format!("{label}, from a posterior sample, by K"), x, y, marks })
}

fn by_noise(study: &Study) -> Option<Chart> {
    let all = || study.autoencoders.iter().flat_map(|a| &a.noise);
    let x = Axis::linear("noise σ", Unit::Plain, all().map(|p| p.0))?;
    let y = Axis::linear("tokens right, %", Unit::Plain, all().map(|p| 100.0 * p.1))?;
    let mut marks = Vec::new();
    for autoencoder in &study.autoencoders {
        let series = series(study, autoencoder);
        let points: Vec<(f64, f64)> = autoencoder.noise.iter().map(|p| (p.0, 100.0 * p.1)).collect();
        let markers = points.iter().map(|&(x, y)| Point { x, y, series, small: true, ..Point::default() });
        let markers: Vec<Mark> = markers.map(Mark::Point).collect();
        if points.len() > 1 {
            marks.push(Mark::Line { points, series, faint: false });
        }
        marks.extend(markers);
    }
    Some(Chart { description: "tokens rebuilt from the mean with noise, by its σ".into(), x, y, marks })
}

fn rows(study: &Study) -> Result<Markup, ReportError> {
    let heads = study
        .autoencoders
        .iter()
        .map(|a| name_head(Some(series(study, a)), &a.name))
        .collect::<Result<Vec<_>, _>>()?;
    let mut sigmas: Vec<f64> = study.autoencoders.iter().flat_map(|a| a.noise.iter().map(|p| p.0)).collect();
    sigmas.sort_by(f64::total_cmp);
    sigmas.dedup();
    Ok(html! {
        thead {
            tr {
                th scope="col" rowspan="2" { "Autoencoder" }
                th scope="col" rowspan="2" { "Seed" }
                th scope="col" rowspan="2" { "K" }
                th scope="col" rowspan="2" { "L" }
                th scope="colgroup" colspan=(2 + sigmas.len()) { "Rebuilt, %" }
                th scope="col" rowspan="2" { "KL, nats a chunk" }
                th scope="col" rowspan="2" { "Posterior std" }
                th scope="col" rowspan="2" { "Collapsed dimensions" }
                th scope="col" rowspan="2" { "Training FLOPs" }
                th scope="col" rowspan="2" { "Training time" }
                th.text scope="col" rowspan="2" { "Serves" }
            }
            tr {
                th scope="col" { "tokens" } th scope="col" { "chunks" }
                @for sigma in &sigmas { th scope="col" { "σ = " (sigma) } }
            }
        }
        tbody {
            @for (a, head) in study.autoencoders.iter().zip(&heads) {
                tr {
                    (head)
                    td { (a.seed) } td { (a.chunk_size) } td { (a.latent_size) }
                    td.strong { (number::share(a.token_accuracy)) }
                    td { (number::share(a.chunk_accuracy)) }
                    @for sigma in &sigmas {
                        (cell(a.noise.iter().find(|p| p.0 == *sigma).map(|p| number::share(p.1))))
                    }
                    td { (number::fixed(a.kl, 2)) }
                    td { (number::fixed(a.posterior_std, 3)) }
                    td { (a.collapsed_dimensions) }
                    td { (number::si(a.flops)) }
                    td { (number::duration(a.seconds)) }
                    td.text { (a.variants.join(", ")) }
                }
            }
        }
    })
}
