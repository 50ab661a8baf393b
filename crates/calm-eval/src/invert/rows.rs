//! The rows that tokens go in as, and which of them lie near a point.

use calm_kernels::simd::{dispatch, dot};
use calm_lm::Inversion;
use candle_core::{DType, Result};

/// The table `[V, W]` on the host.
pub(super) struct Rows {
    values: Vec<f32>,
    /// ‖E_v‖².
    squares: Vec<f32>,
    pub(super) width: usize,
}

impl Rows {
    /// Of a model.
    ///
    /// # Errors
    /// What a GPU answers.
    pub(super) fn of(model: &dyn Inversion) -> Result<Self> {
        let table = model.table().to_dtype(DType::F32)?;
        let (_, width) = table.dims2()?;
        let values: Vec<f32> = table.flatten_all()?.to_vec1()?;
        let squares = values.chunks_exact(width).map(|row| row.iter().map(|x| x * x).sum()).collect();
        Ok(Self { values, squares, width })
    }

    /// V.
    pub(super) fn count(&self) -> usize {
        self.squares.len()
    }

    /// One of them.
    pub(super) fn row(&self, token: u32) -> &[f32] {
        &self.values[token as usize * self.width..][..self.width]
    }

    /// The mean of all.
    pub(super) fn mean(&self) -> Vec<f32> {
        let mut mean = vec![0f64; self.width];
        for row in self.values.chunks_exact(self.width) {
            mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x));
        }
        mean.iter().map(|x| (x / self.count() as f64) as f32).collect()
    }

    /// Σ over the width of each row with `x`.
    fn products(&self, x: &[f32]) -> Vec<f32> {
        dispatch(
            #[inline(always)]
            || self.values.chunks_exact(self.width).map(|row| dot(row, x)).collect(),
        )
    }

    /// The `count` nearest to `e` of those that are wanted, by ‖E_v‖² − 2 eᵀE_v, the nearest first.
    pub(super) fn nearest(&self, e: &[f32], count: usize, wanted: impl Fn(u32) -> bool) -> Vec<u32> {
        let products = self.products(e);
        let far = products.iter().zip(&self.squares).map(|(product, square)| square - 2.0 * product);
        least((0u32..).zip(far).filter(|(token, _)| wanted(*token)).collect(), count)
            .into_iter()
            .map(|(token, _)| token)
            .collect()
    }

    /// The `count` that lie most in the direction from one point to another, with the cosine of the angle, the best first.
    pub(super) fn towards(&self, from: &[f32], to: &[f32], count: usize) -> Vec<(u32, f32)> {
        let way: Vec<f32> = to.iter().zip(from).map(|(to, from)| to - from).collect();
        let length = square(&way).sqrt();
        let (along, at) = (self.products(&way), self.products(from));
        let (own, from_square) = (way.iter().zip(from).map(|(w, f)| w * f).sum::<f32>(), square(from));
        let cosine = |v: usize| {
            let distance = (self.squares[v] - 2.0 * at[v] + from_square).max(0.0).sqrt();
            // The row at `from` itself is no move.
            if distance * length > 1e-12 { -(along[v] - own) / (distance * length) } else { 0.0 }
        };
        let all = (0..self.count()).map(|v| (v as u32, cosine(v))).collect();
        least(all, count).into_iter().map(|(token, cosine)| (token, -cosine)).collect()
    }
}

fn square(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum()
}

/// The `count` least, in order; of equal ones the lower token first.
fn least(mut all: Vec<(u32, f32)>, count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| a.1.total_cmp(&b.1).then(a.0.cmp(&b.0));
    if count < all.len() {
        all.select_nth_unstable_by(count, order);
        all.truncate(count);
    }
    all.sort_unstable_by(order);
    all
}
