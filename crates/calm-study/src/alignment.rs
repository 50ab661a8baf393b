//! Positions at which all runs of an ablation can be scored, whatever their chunk sizes and contexts.

use std::collections::BTreeSet;

use calm_eval::protocol::{Protocol, ProtocolError};
use calm_run::config::RunConfig;
use calm_run::{Error, Result};

use crate::config::ScoreConfig;

/// Where runs of these configurations are scored alike.
///
/// # Errors
/// The window holds no two positions.
pub fn protocol(score: &ScoreConfig, runs: &[&RunConfig]) -> Result<Protocol> {
    let every = score.every.unwrap_or_else(|| common_chunk(runs));
    let context = score.context.unwrap_or(context_tokens(runs) / every * every);
    let bos = runs.iter().all(|run| run.bos_chunk);
    let first = if bos { 0 } else { every };
    let protocol =
        Protocol::Aligned { every, context, first, tokens_per_document: score.tokens_per_document };
    if context < 2 * every {
        return Err(Error::user(
            format!("a context of {context} tokens holds no two positions {every} tokens apart"),
            "lengthen the contexts (context_tokens), or leave the largest chunk size out",
        ));
    }
    Ok(protocol)
}

/// Whether every run can be scored there; before anything is trained.
///
/// # Errors
/// Positions are no chunk starts of a run, or windows longer than its context; a part of each window that is input alone, in
/// chunks or contexts that differ.
pub fn check(score: &ScoreConfig, runs: &[&RunConfig]) -> Result<()> {
    if runs.is_empty() {
        return Ok(());
    }
    let shapes: BTreeSet<_> = runs.iter().map(|run| (run.chunk_size(), run.train.lm.context)).collect();
    if shapes.len() > 1 && runs.iter().any(|run| run.data.loss_on.input_share() > 0.0) {
        return Err(Error::user(
            "data.loss_on counts the input of a window in whole chunks: models of other chunks or another context would be \
             scored on other tokens",
            "compare runs of one chunk size and one context, or set data.loss_on to all",
        ));
    }
    let Protocol::Aligned { every, context, .. } = protocol(score, runs)? else { return Ok(()) };
    for run in runs {
        let chunk_size = run.chunk_size();
        let trained = run.train.lm.context * chunk_size;
        if !every.is_multiple_of(chunk_size) {
            return Err(ProtocolError::Every { every, chunk_size }.into());
        }
        if !context.is_multiple_of(every) {
            return Err(ProtocolError::Windows { context, every }.into());
        }
        if context > trained {
            return Err(ProtocolError::TooLong { context, trained }.into());
        }
    }
    Ok(())
}

/// Shortest context of all runs, in tokens.
pub fn context_tokens(runs: &[&RunConfig]) -> usize {
    runs.iter().map(|run| run.train.lm.context * run.chunk_size()).min().unwrap_or(0)
}

/// Smallest number of tokens that is a whole number of chunks for every run.
pub fn common_chunk(runs: &[&RunConfig]) -> usize {
    let sizes: BTreeSet<usize> = runs.iter().map(|run| run.chunk_size()).collect();
    sizes.into_iter().fold(1, |a, b| a / gcd(a, b) * b)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
