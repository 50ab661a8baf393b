//! Which positions the protocols score.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use calm_data::{SpecialTokens, TokenFile, spread};
use calm_eval::protocol::{Protocol, ProtocolError, Reader};
use calm_eval::score::positions;
use calm_lm::DrawKind;
use calm_stats::brier::{EndOfText, RolloutDocument};
use proptest::prelude::*;

const SPECIAL: SpecialTokens = SpecialTokens { bos: 1, eos: 2, pad: 3 };
const END: EndOfText = EndOfText { eos: 2, pad: 3 };

fn token_file(lengths: &[usize]) -> TokenFile {
    let mut next = 10;
    let documents: Vec<(Vec<u32>, u64)> = lengths
        .iter()
        .map(|&n| {
            let ids = (next..next + n as u32).collect();
            next += n as u32;
            (ids, n as u64)
        })
        .collect();
    TokenFile::in_memory(&documents, [0; 32], [0; 32])
}

fn reader(chunk_size: usize, tokens: usize, bos_chunk: bool) -> Reader {
    Reader { chunk_size, context: tokens / chunk_size, bos_chunk, draws: DrawKind::Sampled }
}

/// Probabilities, or samples.
fn kind(exact: bool) -> DrawKind {
    if exact { DrawKind::Exact } else { DrawKind::Sampled }
}

/// Document and token of every scored position with its target and the tokens of text to its left in the window.
type Scored = BTreeMap<(u32, u32), ([u32; 4], usize)>;

fn scored(protocol: &Protocol, file: &TokenFile, reader: &Reader) -> Scored {
    let documents = spread(file.len(), None);
    let view = protocol.view(file, SPECIAL, reader, &documents).unwrap();
    let mut out = Scored::new();
    for batch in view.batches(3) {
        for (b, s, p) in positions(&batch, END, view.rule) {
            let segment = batch.segments[b * batch.context + s];
            let seen = (0..=s).filter(|&t| batch.segments[b * batch.context + t] == segment);
            let text = seen.flat_map(|t| batch.chunk(b, t)).filter(|&&id| id >= 10).count();
            let twice = out.insert((p.document, p.token), (p.target, text));
            assert!(twice.is_none(), "position scored twice");
        }
    }
    out
}

proptest! {
    #[test]
    fn aligned_positions_and_left_contexts_are_the_same_for_every_chunk_size_and_the_baseline(
        lengths in prop::collection::vec(0usize..120, 1..6),
        steps in 2usize..7,
        small: bool,
        bos_chunk: bool,
        first in 0usize..20,
        limit in prop::option::of(1usize..60),
    ) {
        let every = if small { 2 } else { 8 };
        let context = every * steps;
        let file = token_file(&lengths);
        let protocol = Protocol::Aligned { every, context, first, tokens_per_document: limit };
        let largest = scored(&protocol, &file, &reader(every, context, bos_chunk));
        for ((document, token), (target, left)) in &largest {
            prop_assert!((*token as usize).is_multiple_of(every) && *token as usize >= first);
            prop_assert!(*left <= context - every, "{left} of {context} at {token}");
            // The target is the document's own text at this token.
            let text = file.document(*document as usize);
            let expected: Vec<u32> = text[*token as usize..].iter().copied().chain([2, 3, 3, 3]).take(4).collect();
            prop_assert_eq!(&target[..], &expected[..]);
        }
        for chunk_size in [1, 2, 4, 8].into_iter().filter(|k| every % k == 0) {
            // A model with a longer context reads no more than the protocol says.
            for longer in [context, context + 8 * chunk_size] {
                let own = Reader { draws: kind(chunk_size == 1), ..reader(chunk_size, longer, bos_chunk) };
                prop_assert_eq!(&scored(&protocol, &file, &own), &largest, "K = {}", chunk_size);
            }
        }
        // With n-grams that fit in a step no multiple is missing.
        if every == 8 && limit.is_none() {
            let from = if bos_chunk { first } else { first.max(8) };
            let expected: usize =
                lengths.iter().map(|n| (0..=*n).filter(|t| t % 8 == 0 && *t >= from).count()).sum();
            prop_assert_eq!(largest.len(), expected);
        }
    }

    #[test]
    fn reference_positions_follow_the_rule_of_the_reference(
        lengths in prop::collection::vec(0usize..60, 1..6), chunks in 2usize..12, document_bos: bool,
    ) {
        let file = token_file(&lengths);
        for (chunk_size, baseline) in [(1, true), (1, false), (2, false), (3, false), (4, false), (8, false)] {
            let reader = Reader { chunk_size, context: chunks, bos_chunk: true, draws: kind(baseline) };
            let protocol = Protocol::reference(&reader, 8192, 2048, document_bos);
            let block = chunks * chunk_size;
            prop_assert_eq!(protocol, Protocol::Reference { block, document_bos });
            let joined: Vec<u32> = (0..file.len())
                .flat_map(|d| document_bos.then_some(1).into_iter().chain(file.document(d).to_vec()))
                .collect();
            let blocks = joined.len() / block;
            let view = protocol.view(&file, SPECIAL, &reader, &spread(file.len(), None));
            if blocks == 0 {
                let refused = matches!(view, Err(ProtocolError::NoBlock { .. }));
                prop_assert!(refused);
                continue;
            }
            let view = view.unwrap();
            let mut found = Vec::new();
            for batch in view.batches(2) {
                found.extend(positions(&batch, END, view.rule).into_iter().map(|(.., p)| (p.group, p.token, p.target)));
            }
            // The golden Brier cases: P' = S - 1 target chunks, starts 0 ..= P' - ⌈4/K⌉, the last one left out
            // for CALM with K < 4; the baseline 0 ..= T - 5.
            let mut expected = Vec::new();
            for b in 0..blocks {
                let text = &joined[b * block..(b + 1) * block];
                let targets = &text[chunk_size..];
                let rollout = RolloutDocument { chunk_size, targets, predictions: &[], end: None };
                for start in rollout.starts(chunk_size < 4 && !baseline) {
                    let at = (start + 1) * chunk_size;
                    expected.push((b as u32, (b * block + at) as u32, text[at..at + 4].try_into().unwrap()));
                }
            }
            prop_assert_eq!(found, expected, "K = {}", chunk_size);
        }
    }
}

#[test]
fn the_golden_cases_average_over_the_positions_of_the_reference_protocol() {
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../eval/golden");
    for chunk_size in [1, 2, 4, 8] {
        let path = golden.join(format!("brier_k{chunk_size}/io.safetensors"));
        let tensors = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        // targets [B, P', K]: a block of P' + 1 chunks. acc_1 [B, starts, n].
        let chunks = tensors["targets"].dim(1).unwrap() + 1;
        let starts = tensors["acc_1"].dim(1).unwrap();
        let file = token_file(&[chunk_size * chunks]);
        let reader = Reader { chunk_size, context: chunks, bos_chunk: false, draws: DrawKind::Sampled };
        let view =
            Protocol::reference(&reader, 8192, 2048, false).view(&file, SPECIAL, &reader, &[0]).unwrap();
        let block = view.batches(1).next().unwrap();
        assert_eq!(positions(&block, END, view.rule).len(), starts, "K = {chunk_size}");
    }
    // The baseline: T tokens, starts 0 ..= T - 5.
    let reader = Reader { chunk_size: 1, context: 12, bos_chunk: false, draws: DrawKind::Exact };
    let view = Protocol::reference(&reader, 8192, 2048, false)
        .view(&token_file(&[12]), SPECIAL, &reader, &[0])
        .unwrap();
    assert_eq!(positions(&view.batches(1).next().unwrap(), END, view.rule).len(), 12 - 4);
}

#[test]
fn the_models_own_aligned_protocol_scores_every_chunk() {
    let file = token_file(&[50, 7]);
    for bos_chunk in [true, false] {
        let reader = reader(4, 32, bos_chunk);
        let found = scored(&Protocol::own(&reader, None), &file, &reader);
        assert_eq!(found.len(), if bos_chunk { 13 + 2 } else { 12 + 1 });
        let found = scored(&Protocol::own(&reader, Some(3)), &file, &reader);
        assert_eq!(found.len(), if bos_chunk { 3 + 2 } else { 2 + 1 });
    }
}

#[test]
fn blocks_are_as_long_as_the_context_allows() {
    let calm = reader(4, 32, true);
    assert_eq!(Protocol::reference(&calm, 8192, 2048, false).row_tokens(), 32);
    assert_eq!(Protocol::reference(&calm, 22, 8, false).row_tokens(), 20);
    let baseline = Reader { draws: DrawKind::Exact, ..reader(1, 4096, true) };
    assert_eq!(Protocol::reference(&baseline, 8192, 2048, false).row_tokens(), 2048);
}

#[test]
fn numbers_that_do_not_fit_the_model_are_errors_with_a_remedy() {
    let file = token_file(&[50, 7]);
    let reader = reader(4, 64, true);
    let aligned =
        |every, context, first| Protocol::Aligned { every, context, first, tokens_per_document: None };
    let message = |p: Protocol| match p.view(&file, SPECIAL, &reader, &[0, 1]) {
        Err(e) => format!("{e}; {}", e.remedy().unwrap_or_default()),
        Ok(_) => String::new(),
    };
    assert!(message(aligned(6, 24, 0)).contains("K = 4"));
    assert!(message(aligned(8, 60, 0)).contains("multiple of 8"));
    assert!(message(aligned(8, 8, 0)).contains("at least 16"));
    assert!(message(aligned(8, 128, 0)).contains("trained on 64"));
    assert!(message(Protocol::Reference { block: 64, document_bos: false }).contains("more documents"));
    assert_eq!(message(aligned(8, 64, 0)), "");
}
