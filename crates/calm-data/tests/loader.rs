//! Rows of many sections: every document once an epoch, the same rows for any step asked for in any way, sources in
//! proportion to their weights.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use calm_data::{Batch, Layout, Portion, Prefetch, RowPlan, RowSource, SpecialTokens, TokenFile};
use proptest::prelude::*;

const SPECIAL: SpecialTokens = SpecialTokens { bos: 900, eos: 901, pad: 902 };

/// A file of sections with so many documents each; tokens name their document.
fn file(sections: &[usize], seed: u64) -> TokenFile {
    let mut document = 0;
    let sections: Vec<Vec<(Vec<u32>, u64)>> = sections
        .iter()
        .map(|count| {
            let documents = (0..*count).map(|_| {
                document += 1;
                let length = (seed.wrapping_mul(document * 2 + 1) >> 40) % 23;
                (vec![1000 + document as u32; length as usize], length)
            });
            documents.collect()
        })
        .collect();
    let sections: Vec<&[(Vec<u32>, u64)]> = sections.iter().map(Vec::as_slice).collect();
    TokenFile::in_memory_sections(&sections, [0; 32], [0; 32])
}

fn layout() -> impl Strategy<Value = Layout> {
    (1usize..5, 2usize..9, any::<bool>()).prop_map(|(chunk_size, context, bos_chunk)| Layout {
        chunk_size,
        context,
        bos_chunk,
    })
}

/// How often each chunk of text is a target.
fn targets(batch: &Batch, seen: &mut BTreeMap<(u32, u32), usize>) {
    for place in (0..batch.target.len()).filter(|place| batch.target[*place]) {
        *seen.entry((batch.documents[place], batch.chunk_index[place])).or_default() += 1;
    }
}

/// All chunks of text of a file.
fn chunks(file: &TokenFile, layout: Layout) -> BTreeMap<(u32, u32), usize> {
    let of = |d: usize| {
        let first = u32::from(layout.bos_chunk);
        (first..layout.chunks(file.document_len(d)) as u32).map(move |chunk| ((d as u32, chunk), 1))
    };
    (0..file.len()).flat_map(of).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn an_epoch_has_every_chunk_once_for_any_sections(
        sections in prop::collection::vec(1usize..6, 1..60), layout in layout(), seed: u64,
    ) {
        let file = file(&sections, seed | 1);
        let plan = RowPlan::new(&file, layout, SPECIAL, seed).unwrap();
        let rows = RowPlan::new(&file, layout, SPECIAL, seed).unwrap().rows().unwrap();
        let mut orders = Vec::new();
        for epoch in 0..3 {
            let mut seen = BTreeMap::new();
            let batch = plan.batch(epoch, 0..rows, rows).unwrap();
            targets(&batch, &mut seen);
            prop_assert_eq!(&seen, &chunks(&file, layout), "epoch {}", epoch);
            orders.push(batch.documents);
        }
        if rows > 20 {
            prop_assert_ne!(&orders[0], &orders[1]);
            prop_assert_ne!(&orders[1], &orders[2]);
        }
    }

    #[test]
    fn a_row_is_the_same_from_any_plan_at_any_time_with_any_number_of_readers(
        sections in prop::collection::vec(1usize..6, 1..60), layout in layout(), seed: u64,
        global in 1usize..9, stops in prop::collection::vec(0u64..60, 100),
    ) {
        let file = file(&sections, seed | 1);
        let plan = RowPlan::new(&file, layout, SPECIAL, seed).unwrap();
        let steps: Vec<Batch> = (0..60).map(|step| plan.batch(step, 0..global, global).unwrap()).collect();
        for (n, step) in stops.iter().enumerate() {
            // Begun anew at this step, as after a stop; every tenth time.
            let fresh = RowPlan::new(&file, layout, SPECIAL, seed).unwrap();
            let plan = if n % 10 == 0 { &fresh } else { &plan };
            let readers = 1 + n % 4;
            let cuts: Vec<usize> = (0..=readers).map(|r| r * global / readers).collect();
            let parts: Vec<Batch> =
                cuts.windows(2).map(|c| plan.batch(*step, c[0]..c[1], global).unwrap()).collect();
            let whole = &steps[*step as usize];
            prop_assert_eq!(parts.iter().flat_map(|b| b.ids.clone()).collect::<Vec<_>>(), whole.ids.clone());
            prop_assert_eq!(Batch::hash(&parts), Batch::hash(std::slice::from_ref(whole)));
        }
    }

    #[test]
    fn sources_come_by_their_weights_and_each_in_epochs_of_its_own(
        sections in prop::collection::vec(1usize..5, 4..40), layout in layout(), seed: u64, weight in 0.1f64..8.0,
    ) {
        let file = file(&sections, seed | 1);
        let cut = sections.len() / 3;
        let edge = file.section_documents(cut).start as u32;
        let portions = [
            Portion { sections: 0..cut, weight },
            Portion { sections: cut..sections.len(), weight: 1.0 },
        ];
        let plan = RowPlan::mixed(&file, &portions, layout, SPECIAL, seed).unwrap();
        let rows = 4 * plan.rows().unwrap();
        let batch = plan.batch(0, 0..rows, rows).unwrap();
        let of_first = (0..rows).filter(|row| batch.documents[row * layout.context] < edge).count();
        let wanted = rows as f64 * weight / (weight + 1.0);
        prop_assert!((of_first as f64 - wanted).abs() <= 2.0, "{of_first} of {wanted}");
        // Within a source every chunk has been seen as often as any other, but for the epoch that is going on.
        let mut seen = BTreeMap::new();
        targets(&batch, &mut seen);
        for first in [true, false] {
            let all = chunks(&file, layout);
            let of = all.keys().filter(|(document, _)| (*document < edge) == first);
            let counts: Vec<usize> = of.map(|chunk| seen.get(chunk).copied().unwrap_or(0)).collect();
            let (low, high) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            prop_assert!(high - low <= 1, "{low} to {high}");
        }
    }
}

#[test]
fn the_first_batch_of_many_sections_opens_one_group() {
    let file = file(&[4; 500], 7);
    let layout = Layout { chunk_size: 2, context: 8, bos_chunk: true };
    let plan = RowPlan::new(&file, layout, SPECIAL, 1).unwrap();
    plan.batch(0, 0..4, 4).unwrap();
    // A group is 16 of 500 sections: less than a twentieth of all chunks has been laid.
    let all = RowPlan::new(&file, layout, SPECIAL, 1).unwrap();
    let total: u64 = (0..file.len()).map(|d| layout.chunks(file.document_len(d)) as u64 - 1).sum();
    assert!(plan.predicted_chunks() < total / 20, "{} of {total}", plan.predicted_chunks());
    assert!(all.rows().unwrap() >= 500);
}

/// A reader of its own rows, as a process of its own has it: its own plan, and batches that are made ahead.
struct Reader {
    ahead: Prefetch<Batch>,
}

impl Reader {
    fn new(file: &TokenFile, layout: Layout, rows: std::ops::Range<usize>, global: usize) -> Self {
        let plan = RowPlan::new(file, layout, SPECIAL, 5).unwrap();
        let make = move |step| {
            plan.look_ahead(step, global).unwrap();
            plan.batch(step, rows.clone(), global).unwrap()
        };
        Self { ahead: Prefetch::new(make) }
    }
}

/// Six epochs of a text of 120 sections are read to their end through a hundred stops. At each the steps since the last
/// checkpoint are lost and made again, and another number of readers goes on.
#[test]
fn every_document_is_seen_once_an_epoch_through_a_hundred_stops_and_with_any_number_of_readers() {
    let file = file(&[9; 120], 11);
    let layout = Layout { chunk_size: 2, context: 6, bos_chunk: true };
    let global = 6;
    // As many steps as an epoch has rows, of six rows each: six epochs.
    let steps = RowPlan::new(&file, layout, SPECIAL, 5).unwrap().rows().unwrap() as u64;
    assert!(steps > 300, "{steps}");
    let mut state = 7u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    // What was learned from: for each step that counts, the targets of each of its rows.
    let mut learned: Vec<Vec<BTreeMap<(u32, u32), usize>>> = Vec::new();
    let (mut stops, mut numbers_of_readers) = (0, std::collections::BTreeSet::new());
    while (learned.len() as u64) < steps {
        let count = 1 + random(5) as usize;
        numbers_of_readers.insert(count);
        let cuts: Vec<usize> = (0..=count).map(|r| r * global / count).collect();
        let mut readers: Vec<Reader> =
            cuts.windows(2).map(|cut| Reader::new(&file, layout, cut[0]..cut[1], global)).collect();
        let until = match stops < 100 {
            true => (learned.len() as u64 + 1 + random(2 * steps / 100)).min(steps),
            false => steps,
        };
        for step in learned.len() as u64..until {
            let batches: Vec<Batch> = readers.iter_mut().map(|r| r.ahead.get(step, steps).0).collect();
            let mut rows = Vec::new();
            for batch in &batches {
                for row in 0..batch.rows {
                    let places = row * layout.context..(row + 1) * layout.context;
                    let of_row = places.filter(|place| batch.target[*place]);
                    rows.push(of_row.map(|p| ((batch.documents[p], batch.chunk_index[p]), 1)).collect());
                }
            }
            learned.push(rows);
        }
        if stops < 100 {
            stops += 1;
            // Back to the last checkpoint.
            let lost = random(4) as usize;
            learned.truncate(learned.len().saturating_sub(lost));
        }
    }
    assert_eq!((stops, numbers_of_readers.len()), (100, 5));
    let all = chunks(&file, layout);
    let documents: std::collections::BTreeSet<u32> = all.keys().map(|(document, _)| *document).collect();
    assert!(documents.len() > 300);
    let rows: Vec<_> = learned.into_iter().flatten().collect();
    for (epoch, rows) in rows.chunks(steps as usize).enumerate() {
        let mut seen = BTreeMap::new();
        for (chunk, times) in rows.iter().flatten() {
            *seen.entry(*chunk).or_default() += times;
        }
        assert_eq!(seen, all, "epoch {epoch}");
    }
}
