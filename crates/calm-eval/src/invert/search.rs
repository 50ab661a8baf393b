//! Position by position from states to tokens.

use calm_lm::{Cache, Inversion};
use candle_core::Result;
use serde::Serialize;

use super::alternatives::Alternatives;
use super::kept::Kept;
use super::policy::{self, Policy};
use super::radius::Radius;
use super::rows::Rows;

/// What was found at a position.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Position {
    /// One chunk has this state, as near as can be told; of single tokens no other has.
    Found {
        /// Its tokens.
        tokens: Vec<u32>,
        /// From its state to the one that was searched.
        distance: f64,
        /// Of the next best that was tried.
        runner_up: Option<f64>,
        /// Alternatives that were tried.
        tried: usize,
    },
    /// None has.
    NotFound {
        /// The nearest that was tried: a guess.
        best: Vec<u32>,
        /// How far off it is.
        distance: f64,
        /// Alternatives that were tried.
        tried: usize,
    },
}

impl Position {
    /// Alternatives that were tried.
    pub fn tried(&self) -> usize {
        match self {
            Self::Found { tried, .. } | Self::NotFound { tried, .. } => *tried,
        }
    }

    /// The tokens, if they were found.
    pub fn tokens(&self) -> Option<&[u32]> {
        match self {
            Self::Found { tokens, .. } => Some(tokens),
            Self::NotFound { .. } => None,
        }
    }

    /// The nearest that was tried, found or not.
    pub fn nearest(&self) -> &[u32] {
        match self {
            Self::Found { tokens, .. } => tokens,
            Self::NotFound { best, .. } => best,
        }
    }
}

/// A model whose states at a depth are searched.
pub struct Search<'a> {
    model: &'a dyn Inversion,
    rows: Rows,
    depth: usize,
    radius: Radius,
    policy: Policy,
    kept: Kept,
}

impl<'a> Search<'a> {
    /// Of states at this depth, whose radius was measured, and that were kept so.
    ///
    /// # Errors
    /// Chunks of several tokens cannot all be tried; what a GPU answers.
    pub fn new(
        model: &'a dyn Inversion,
        depth: usize,
        radius: Radius,
        policy: Policy,
        kept: Kept,
    ) -> Result<Self> {
        let k = model.chunk_size();
        if k > 1 && policy == Policy::Brute {
            candle_core::bail!("chunks of {k} tokens cannot all be tried");
        }
        Ok(Self { model, rows: Rows::of(model)?, depth, radius, policy, kept })
    }

    /// The chunk of one position with this state, after what is known.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn position(&self, known: &Cache, state: &[f32]) -> Result<Position> {
        let mut to = Alternatives::new(self.model, known, self.depth, state);
        let near = self.radius.near(self.kept.error(state));
        // Nothing is near a state that is none.
        if state.iter().all(|x| x.is_finite()) {
            match (self.model.chunk_size(), self.policy) {
                (1, Policy::Brute) => policy::brute(&mut to, &self.rows, near)?,
                (1, Policy::Guided) => policy::guided(&mut to, &self.rows, near)?,
                _ => policy::together(&mut to, &self.rows, near)?,
            }
        }
        let tried = to.tried();
        let Some(best) = to.best().cloned() else {
            return Ok(Position::NotFound { best: Vec::new(), distance: f64::INFINITY, tried });
        };
        let runner_up = to.second().map(|second| second.distance);
        let radius = self.radius.radius();
        // Further off than computing explains: only if all others are outside the radius. Of chunks some thousands are tried, and
        // those that were not may be nearer.
        let all = self.model.chunk_size() == 1;
        let alone = all && best.distance <= radius && runner_up.is_none_or(|distance| distance > radius);
        if self.radius.tells() && (to.within(near) || alone) {
            Ok(Position::Found { tokens: best.tokens, distance: best.distance, runner_up, tried })
        } else {
            Ok(Position::NotFound { best: best.tokens, distance: best.distance, tried })
        }
    }

    /// The text behind the states `[S, D]` of its positions, up to the first that is not found.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn text(&self, states: &[f32], width: usize) -> Result<Vec<Position>> {
        let mut known = self.model.begin()?;
        let mut found = Vec::new();
        for state in states.chunks_exact(width.max(1)) {
            let position = self.position(&known, state)?;
            let tokens = position.tokens().map(<[u32]>::to_vec);
            found.push(position);
            match tokens {
                Some(tokens) => self.model.extend(&tokens, &mut known)?,
                None => break,
            }
        }
        Ok(found)
    }
}
