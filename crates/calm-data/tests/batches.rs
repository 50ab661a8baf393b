//! What must hold for every batch, whatever the documents, the chunk size and the row length.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use calm_data::{Batch, EvaluationOptions, Layout, RowPlan, SpecialTokens, TokenFile, spread};
use proptest::prelude::*;

const SPECIAL: SpecialTokens = SpecialTokens { bos: 900, eos: 901, pad: 902 };

/// Documents whose tokens are all different, so that a chunk names its place.
fn documents(lengths: &[usize]) -> Vec<Vec<u32>> {
    let mut next = 1000;
    let mut take = |n: usize| {
        next += n as u32;
        (next - n as u32..next).collect()
    };
    lengths.iter().map(|&n| take(n)).collect()
}

fn token_file(documents: &[Vec<u32>]) -> TokenFile {
    let documents: Vec<_> = documents.iter().map(|d| (d.clone(), d.len() as u64)).collect();
    TokenFile::in_memory(&documents, [0; 32], [0; 32])
}

fn layouts() -> impl Strategy<Value = Layout> {
    (prop::sample::select(vec![1usize, 2, 3, 4, 8]), 2usize..12, any::<bool>())
        .prop_map(|(chunk_size, context, bos_chunk)| Layout { chunk_size, context, bos_chunk })
}

/// (document, chunk) -> how often it is a target, a predicted target, and filled.
type Counts = BTreeMap<(u32, u32), [usize; 3]>;

fn count(batch: &Batch, counts: &mut Counts) {
    for b in 0..batch.rows {
        for s in 0..batch.context {
            let place = b * batch.context + s;
            if batch.filled[place] {
                let entry = |at: usize| (batch.documents[at], batch.chunk_index[at]);
                counts.entry(entry(place)).or_default()[2] += 1;
                counts.entry(entry(place)).or_default()[0] += usize::from(batch.target[place]);
                if batch.predicts[place] {
                    counts.entry(entry(place + 1)).or_default()[1] += 1;
                }
            }
        }
    }
}

/// Everything that must hold inside one batch.
fn check(batch: &Batch, layout: Layout, documents: &[Vec<u32>]) -> Result<(), TestCaseError> {
    let (b_count, s_count, k) = (batch.rows, layout.context, layout.chunk_size);
    prop_assert_eq!((batch.context, batch.chunk_size), (s_count, k));
    prop_assert_eq!(batch.ids.len(), b_count * s_count * k);
    prop_assert_eq!(batch.examples.len(), b_count);
    for lane in [&batch.filled, &batch.predicts, &batch.target] {
        prop_assert_eq!(lane.len(), b_count * s_count);
    }
    for b in 0..b_count {
        for s in 0..s_count {
            let place = b * s_count + s;
            let chunk = batch.chunk(b, s);
            if !batch.filled[place] {
                prop_assert!(chunk.iter().all(|&id| id == SPECIAL.pad));
                prop_assert!(!batch.target[place] && !batch.predicts[place]);
                prop_assert_eq!((batch.segments[place], batch.documents[place]), (u32::MAX, u32::MAX));
                prop_assert!(s + 1 == s_count || !batch.filled[place + 1], "filler comes last");
                continue;
            }
            let document = &documents[batch.documents[place] as usize];
            let whole = layout.chunk_document(document, SPECIAL);
            let index = batch.chunk_index[place] as usize;
            prop_assert_eq!(chunk, &whole[index * k..(index + 1) * k]);
            let is_bos_chunk = layout.bos_chunk && index == 0;
            prop_assert_eq!(is_bos_chunk, chunk.iter().all(|&id| id == SPECIAL.bos));
            prop_assert!(!(is_bos_chunk && batch.target[place]));
            // EOS is absorbing: nothing but PAD after it, and PAD nowhere else.
            let eos = chunk.iter().position(|&id| id == SPECIAL.eos).unwrap_or(k);
            prop_assert!(chunk[..eos].iter().all(|&id| id != SPECIAL.pad));
            prop_assert!(chunk[(eos + 1).min(k)..].iter().all(|&id| id == SPECIAL.pad));

            let starts = s == 0 || batch.segments[place - 1] != batch.segments[place];
            if starts {
                prop_assert_eq!(batch.positions[place], 0);
            } else {
                prop_assert_eq!(batch.positions[place], batch.positions[place - 1] + 1);
                prop_assert_eq!(batch.chunk_index[place], batch.chunk_index[place - 1] + 1);
                prop_assert_eq!(batch.documents[place], batch.documents[place - 1]);
            }
            let continues = s + 1 < s_count && batch.segments[place + 1] == batch.segments[place];
            prop_assert_eq!(batch.predicts[place], continues && batch.target[place + 1]);
        }
    }
    Ok(())
}

/// Every chunk of text is a target once; all of them but a first chunk without BOS before it are predicted once.
fn check_counts(counts: &Counts, layout: Layout, documents: &[Vec<u32>]) -> Result<(), TestCaseError> {
    for (d, document) in (0..).zip(documents) {
        for chunk in 0..layout.chunks(document.len()) as u32 {
            let [target, predicted, filled] = counts.get(&(d, chunk)).copied().unwrap_or_default();
            let is_bos_chunk = layout.bos_chunk && chunk == 0;
            prop_assert!(filled >= 1);
            prop_assert_eq!(target, usize::from(!is_bos_chunk), "document {} chunk {}", d, chunk);
            prop_assert_eq!(predicted, usize::from(chunk > 0), "document {} chunk {}", d, chunk);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn an_epoch_has_every_chunk_as_a_target_exactly_once(
        lengths in prop::collection::vec(0usize..40, 1..20), layout in layouts(), seed: u64, epoch in 0u64..3,
    ) {
        let documents = documents(&lengths);
        let plan = RowPlan::new(&token_file(&documents), layout, SPECIAL, seed).unwrap();
        let rows = plan.rows().unwrap();
        // A step of as many rows as the plan has is an epoch.
        let batch = plan.batch(epoch, 0..rows, rows).unwrap();
        check(&batch, layout, &documents)?;
        let mut counts = Counts::new();
        count(&batch, &mut counts);
        check_counts(&counts, layout, &documents)?;
        prop_assert_eq!(batch.predict_count() as u64, plan.predicted_chunks());
        let all_chunks: usize = lengths.iter().map(|&n| layout.chunks(n)).sum();
        prop_assert_eq!(batch.target_count(), all_chunks - usize::from(layout.bos_chunk) * lengths.len());
        prop_assert!((plan.fill() - batch.filled_count() as f64 / batch.filled.len() as f64).abs() < 1e-12);
    }

    #[test]
    fn a_step_is_the_same_however_it_is_divided(
        lengths in prop::collection::vec(0usize..40, 1..20), layout in layouts(), seed: u64,
        step in 0u64..50, global in 1usize..9, cut in 0usize..9,
    ) {
        let plan = RowPlan::new(&token_file(&documents(&lengths)), layout, SPECIAL, seed).unwrap();
        let whole = plan.batch(step, 0..global, global).unwrap();
        prop_assert_eq!(&whole.examples, &(0..global as u32).collect::<Vec<_>>());
        let cut = cut.min(global);
        let (first, second) = (plan.batch(step, 0..cut, global).unwrap(), plan.batch(step, cut..global, global).unwrap());
        prop_assert_eq!([first.ids, second.ids].concat(), whole.ids);
        prop_assert_eq!([first.documents, second.documents].concat(), whole.documents);
        prop_assert_eq!([first.target, second.target].concat(), whole.target);
        prop_assert_eq!([first.examples, second.examples].concat(), whole.examples);
    }

    #[test]
    fn steps_go_through_all_rows_once_an_epoch(
        lengths in prop::collection::vec(0usize..40, 1..20), layout in layouts(), seed: u64, global in 1usize..7,
    ) {
        let documents = documents(&lengths);
        let plan = RowPlan::new(&token_file(&documents), layout, SPECIAL, seed).unwrap();
        let rows = plan.rows().unwrap();
        // Two epochs of single rows taken from larger steps.
        let row = |place: usize| {
            plan.batch((place / global) as u64, place % global..place % global + 1, global).unwrap()
        };
        for epoch in 0..2 {
            let mut counts = Counts::new();
            (epoch * rows..(epoch + 1) * rows).for_each(|place| count(&row(place), &mut counts));
            check_counts(&counts, layout, &documents)?;
        }
    }

    #[test]
    fn evaluation_has_every_chunk_once_in_document_order(
        lengths in prop::collection::vec(0usize..40, 1..20), layout in layouts(), size in 1usize..5, overlap in 1usize..6,
    ) {
        prop_assume!(overlap < layout.context);
        let documents = documents(&lengths);
        let file = token_file(&documents);
        let options = EvaluationOptions { overlap, ..Default::default() };
        let rows = RowPlan::evaluation(&file, layout, SPECIAL, &spread(file.len(), None), options).unwrap();
        let mut counts = Counts::new();
        let mut order = Vec::new();
        let mut seen_rows = 0;
        for batch in rows.batches(size) {
            check(&batch, layout, &documents)?;
            count(&batch, &mut counts);
            let places = (0..batch.target.len()).filter(|&i| batch.target[i]);
            order.extend(places.map(|i| (batch.documents[i], batch.chunk_index[i])));
            seen_rows += batch.rows;
        }
        check_counts(&counts, layout, &documents)?;
        prop_assert!(order.is_sorted());
        prop_assert_eq!(seen_rows, rows.rows());
        prop_assert_eq!(counts.values().map(|c| c[1] as u64).sum::<u64>(), rows.predicted_chunks());
    }

    #[test]
    fn evaluation_can_be_limited_to_the_first_chunks_of_some_documents(
        lengths in prop::collection::vec(0usize..40, 2..20), layout in layouts(), most in 1usize..6, some in 1usize..6,
    ) {
        let documents = documents(&lengths);
        let file = token_file(&documents);
        let chosen = spread(file.len(), Some(some));
        let options = EvaluationOptions { max_chunks: Some(most), ..Default::default() };
        let rows = RowPlan::evaluation(&file, layout, SPECIAL, &chosen, options).unwrap();
        let mut targets: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for batch in rows.batches(3) {
            for i in (0..batch.target.len()).filter(|&i| batch.target[i]) {
                targets.entry(batch.documents[i]).or_default().push(batch.chunk_index[i]);
            }
        }
        prop_assert_eq!(targets.keys().map(|&d| d as usize).collect::<Vec<_>>(), chosen);
        for (d, chunks) in targets {
            let bos = usize::from(layout.bos_chunk);
            let expected = most.min(layout.chunks(lengths[d as usize]) - bos);
            prop_assert_eq!(chunks, (bos as u32..(bos + expected) as u32).collect::<Vec<_>>());
        }
    }

    #[test]
    fn spread_documents_are_different_and_in_order(total in 0usize..200, some in 0usize..200) {
        let chosen = spread(total, Some(some));
        prop_assert_eq!(chosen.len(), some.min(total));
        prop_assert!(chosen.windows(2).all(|w| w[0] < w[1]));
        prop_assert!(chosen.iter().all(|&d| d < total));
    }
}

#[test]
fn a_baseline_with_an_overlap_of_k_has_windows_at_the_same_tokens() {
    let (k, s) = (4, 6);
    let documents = documents(&[3, 100, 41, 24, 25]);
    let file = token_file(&documents);
    // The first and last token of text that each window predicts.
    let windows = |layout: Layout, overlap: usize| {
        let options = EvaluationOptions { overlap, ..Default::default() };
        let rows = RowPlan::evaluation(&file, layout, SPECIAL, &[0, 1, 2, 3, 4], options).unwrap();
        let mut windows: BTreeMap<(u32, usize, u32), Vec<u32>> = BTreeMap::new();
        for batch in rows.batches(1) {
            for i in (0..batch.context - 1).filter(|&i| batch.predicts[i]) {
                let key = (batch.documents[i], batch.examples[0] as usize, batch.segments[i]);
                let text = batch.chunk(0, i + 1).iter().copied().filter(|&id| id >= 1000);
                windows.entry(key).or_default().extend(text);
            }
        }
        let mut windows: Vec<Vec<u32>> = windows.into_values().filter(|w| !w.is_empty()).collect();
        windows.sort();
        windows
    };
    let calm = windows(Layout { chunk_size: k, context: s, bos_chunk: true }, 1);
    let baseline = windows(Layout { chunk_size: 1, context: s * k, bos_chunk: true }, k);
    assert_eq!(calm, baseline);
}

#[test]
fn epochs_have_different_orders_and_seeds_different_rows() {
    let documents = documents(&(0..60).map(|i| 1 + i % 17).collect::<Vec<_>>());
    let file = token_file(&documents);
    let layout = Layout { chunk_size: 4, context: 8, bos_chunk: true };
    let epoch = |seed, epoch| {
        let plan = RowPlan::new(&file, layout, SPECIAL, seed).unwrap();
        let rows = plan.rows().unwrap();
        plan.batch(epoch, 0..rows, rows).unwrap().documents
    };
    assert_eq!(epoch(1, 0), epoch(1, 0));
    assert_ne!(epoch(1, 0), epoch(1, 1));
    assert_ne!(epoch(1, 0), epoch(2, 0));
}

#[test]
fn no_document_and_impossible_windows_are_errors() {
    let layout = Layout { chunk_size: 4, context: 8, bos_chunk: true };
    let empty = token_file(&[]);
    assert!(RowPlan::new(&empty, layout, SPECIAL, 0).unwrap_err().to_string().contains("more text"));
    let file = token_file(&documents(&[5]));
    for overlap in [0, 8] {
        let options = EvaluationOptions { overlap, ..Default::default() };
        assert!(RowPlan::evaluation(&file, layout, SPECIAL, &[0], options).is_err());
    }
    assert!(RowPlan::evaluation(&file, layout, SPECIAL, &[1], EvaluationOptions::default()).is_err());
    assert!(RowPlan::new(&file, Layout { context: 1, ..layout }, SPECIAL, 0).is_err());
}

proptest! {
    #[test]
    fn after_a_share_of_each_window_all_counts_and_before_it_all_is_input(
        lengths in prop::collection::vec(0usize..40, 1..12), layout in layouts(), percent in 0usize..100, overlap in 1usize..3,
    ) {
        let documents = documents(&lengths);
        let file = token_file(&documents);
        let whole = RowPlan::new(&file, layout, SPECIAL, 1).unwrap();
        let share = percent as f64 / 100.0;
        let plan = RowPlan::new(&file.clone().after_share(share), layout, SPECIAL, 1).unwrap();
        let rows = plan.rows().unwrap();
        let batches = [(whole.batch(0, 0..rows, rows).unwrap(), plan.batch(0, 0..rows, rows).unwrap())];
        let mut predicted = 0;
        for (all, some) in &batches {
            // Only what counts differs.
            prop_assert_eq!((&all.ids, &all.target, &all.segments), (&some.ids, &some.target, &some.segments));
            prop_assert_eq!(all.inputs(), None);
            predicted += some.predict_count() as u64;
            check_shares(all, some, percent)?;
        }
        prop_assert_eq!(plan.predicted_chunks(), predicted);
        if overlap < layout.context {
            let rows = |file: &TokenFile| {
                let options = EvaluationOptions { max_chunks: None, overlap };
                let documents: Vec<usize> = (0..file.len()).collect();
                RowPlan::evaluation(file, layout, SPECIAL, &documents, options).unwrap()
            };
            let (whole, plan) = (rows(&file), rows(&file.after_share(share)));
            let (all, some) = (whole.batch(0..whole.rows()), plan.batch(0..plan.rows()));
            prop_assert_eq!(plan.predicted_chunks(), some.predict_count() as u64);
            check_shares(&all, &some, percent)?;
        }
    }
}

/// `some` is `all` with so many percent of every window as input.
fn check_shares(all: &Batch, some: &Batch, percent: usize) -> Result<(), TestCaseError> {
    let k = all.chunk_size;
    if percent == 0 {
        prop_assert_eq!(all, some);
        return Ok(());
    }
    let inputs = some.inputs().unwrap();
    let end = all.filled.len();
    let mut from = 0;
    while from < end {
        let row = from / all.context;
        let same = |at: &usize| at / all.context == row && all.segments[*at] == all.segments[from];
        let to = (from..end).take_while(same).count() + from;
        let input = (to - from) * percent / 100;
        for (at, is_input) in inputs.iter().enumerate().take(to).skip(from) {
            let is_text = |at: usize| all.filled[at] && all.ids[at * k] != SPECIAL.bos;
            let counts = |at: usize| is_text(at) && at - from >= input;
            for n in 0..k {
                let real = all.ids[at * k + n] != SPECIAL.pad;
                prop_assert_eq!(some.counts(at / all.context, at % all.context, n), counts(at) && real);
            }
            prop_assert_eq!(some.predicts[at], all.predicts[at] && counts(at + 1));
            // BOS alone is no output, and filler is nothing.
            prop_assert_eq!(*is_input, all.filled[at] && (from..=at).all(|at| !counts(at)));
        }
        from = to;
    }
    Ok(())
}
