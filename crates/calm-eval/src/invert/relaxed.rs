//! A chunk whose embeddings are free numbers, moved until its state is the one that is searched.
//!
//! ```text
//! loss  ½ ‖F(e) − r‖²      e ← e − η g      g = Jᵀ (F(e) − r)
//! η     first ‖F(e) − r‖² / ‖g‖², which is right where ‖J‖ is 1; then sᵀs / sᵀy of the last move s and the change y of g
//!       (Barzilai and Borwein 1988): nothing has to be set for another model, layer or width
//! ```

use calm_nn::device::upload;
use candle_core::{DType, Result, Var, bail};

use super::alternatives::Alternatives;

/// Free embeddings `[K, W]` of a position.
pub(super) struct Relaxed {
    pub(super) at: Vec<f32>,
    width: usize,
    before: Option<Move>,
}

/// Where it was, and the gradient there.
struct Move {
    at: Vec<f32>,
    gradient: Vec<f32>,
}

impl Relaxed {
    /// From here, K vectors of `width` numbers.
    pub(super) fn from(at: Vec<f32>, width: usize) -> Self {
        Self { at, width, before: None }
    }

    /// One step towards the state; the distance that it had before.
    ///
    /// # Errors
    /// What a GPU answers.
    pub(super) fn step(&mut self, to: &Alternatives<'_>) -> Result<f64> {
        let context = to.model.table().context();
        let shape = (1, self.at.len() / self.width, self.width);
        let e = Var::from_tensor(&upload(&self.at, shape, context)?)?;
        // On a GPU the model may compute in a narrower format.
        let format = to.model.embed(&vec![0; to.model.chunk_size()])?.dtype();
        let inputs = e.as_tensor().to_dtype(format)?;
        let state = to.model.states(&inputs, to.known, to.depth)?.to_dtype(DType::F32)?;
        let target = upload(to.target, (1, to.target.len()), context)?;
        let loss = ((state - target)?.sqr()?.sum_all()? * 0.5)?;
        let gradients = loss.backward()?;
        let Some(gradient) = gradients.get(e.as_tensor()) else {
            bail!("no gradient reached the embeddings")
        };
        let gradient: Vec<f32> = gradient.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        let rate = self.rate(loss, &gradient);
        let next = self.at.iter().zip(&gradient).map(|(at, g)| at - (rate * f64::from(*g)) as f32).collect();
        self.before = Some(Move { at: std::mem::replace(&mut self.at, next), gradient });
        Ok((2.0 * loss).sqrt())
    }

    fn rate(&self, loss: f64, gradient: &[f32]) -> f64 {
        let square: f64 = gradient.iter().map(|g| f64::from(*g).powi(2)).sum();
        let first = if square > 0.0 { 2.0 * loss / square } else { 0.0 };
        let Some(before) = &self.before else { return first };
        let (mut ss, mut sy) = (0.0, 0.0);
        let moved = self.at.iter().zip(&before.at).zip(gradient.iter().zip(&before.gradient));
        for ((now, at), (g, h)) in moved {
            let s = f64::from(*now) - f64::from(*at);
            ss += s * s;
            sy += s * (f64::from(*g) - f64::from(*h));
        }
        // Where the gradient does not grow along the move, the model is no bowl here.
        if sy > 0.0 && (ss / sy).is_finite() { ss / sy } else { first }
    }
}
