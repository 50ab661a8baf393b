//! Rotary position embedding, rotate-half form (the first half of a head with its second half).
//!
//! ```text
//! φ_i = position·θ^(−2i/Dh),  i < Dh/2
//! y_i        = x_i·cos φ_i − x_{i+Dh/2}·sin φ_i
//! y_{i+Dh/2} = x_{i+Dh/2}·cos φ_i + x_i·sin φ_i
//! ```
//! A rotation, so the backward pass is the same with −φ. Angles, sines and cosines are computed in
//! double precision.

use crate::context::{Context, Operand};
use crate::rows;
use crate::simd::{Real, dispatch, rows_per_block};
use crate::storage::{self, error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};
use std::sync::{Arc, Mutex, PoisonError};

const OP: &str = "rotary";
/// Tables up to this many entries stay in the context for the next call.
const DENSE_ENTRIES: usize = 1 << 22;
/// Tables (for different θ and head sizes) that a context has at the same time.
const DENSE_TABLES: usize = 4;

/// Rotates an input x `[B, S, H, Dh]` by the angles of positions (U32 `[B, S]`) with base θ: a tensor like x.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU; the inputs may have any strides. The positions get no
/// gradient. The table of angles stays in the context of x for the next call.
///
/// # Errors
/// Shapes that do not fit, an odd head size, positions that are not U32 or on another device, an element type
/// that the device does not take.
pub fn rotary(input: &dyn Operand, positions: &Tensor, theta: f64) -> Result<Tensor> {
    let x = input.tensor();
    match (x.dims(), positions.dims()) {
        ([b, s, _, dh], [b2, s2]) if b == b2 && s == s2 && dh % 2 == 0 => {}
        (x, p) => {
            return Err(error(
                OP,
                format_args!(
                    "x {x:?} and positions {p:?} do not fit: expected x [B, S, H, Dh] with an even Dh, \
                     positions [B, S]"
                ),
            ));
        }
    }
    storage::expect_ids(OP, positions)?;
    on_gpu!(x, crate::cuda::rotary::rotary(input, positions, theta));
    let op = Rotary::new(input.context(), &storage::ids(OP, positions)?, x.dim(3)?, theta);
    x.contiguous()?.apply_op1(op)
}

/// Cosines and sines for the positions of a batch.
struct Turns {
    /// Row of `table` for every (b, s).
    index: Vec<u32>,
    /// `[rows, 2, Dh/2]`: cosines, then sines.
    table: Arc<Vec<f64>>,
}

/// The table for positions 0, 1, 2, … of one θ and half head size.
#[derive(Debug)]
struct DenseTable {
    half: usize,
    theta: f64,
    table: Arc<Vec<f64>>,
}

/// The last tables of a context: every layer of every step asks for the same ones.
#[derive(Debug, Default)]
pub(crate) struct DenseTables(Mutex<Vec<DenseTable>>);

impl DenseTables {
    /// The table for positions `0..rows` at least.
    fn get(&self, rows: usize, half: usize, theta: f64) -> Arc<Vec<f64>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |t: &DenseTable| t.half == half && t.theta.to_bits() == theta.to_bits();
        if let Some(t) = tables.iter().find(|t| same(t) && t.table.len() >= rows * 2 * half) {
            return t.table.clone();
        }
        let new = table(0..rows.next_power_of_two() as u32, half, theta);
        tables.retain(|t| !same(t));
        if tables.len() == DENSE_TABLES {
            tables.remove(0);
        }
        tables.push(DenseTable { half, theta, table: new.clone() });
        new
    }
}

/// θ^(−i/half) for i below half.
pub(crate) fn frequencies(half: usize, theta: f64) -> Vec<f64> {
    (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect()
}

fn table(positions: impl Iterator<Item = u32>, half: usize, theta: f64) -> Arc<Vec<f64>> {
    let frequency = frequencies(half, theta);
    let mut out = Vec::new();
    for position in positions {
        out.extend(frequency.iter().map(|f| (f64::from(position) * f).cos()));
        out.extend(frequency.iter().map(|f| (f64::from(position) * f).sin()));
    }
    Arc::new(out)
}

impl Turns {
    fn new(context: Option<&Context>, positions: &[u32], half: usize, theta: f64) -> Self {
        let rows = positions.iter().max().map_or(0, |&m| m as usize + 1);
        if let Some(context) = context
            && rows.saturating_mul(2 * half) <= DENSE_ENTRIES
        {
            return Self { index: positions.to_vec(), table: context.turns().get(rows, half, theta) };
        }
        // Far positions, or a table for this call: of the distinct ones.
        let mut distinct = positions.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let row = |p: &u32| distinct.partition_point(|d| d < p) as u32;
        Self {
            index: positions.iter().map(row).collect(),
            table: table(distinct.iter().copied(), half, theta),
        }
    }
}

/// A rotation of heads by the angles of their positions.
#[derive(Clone)]
pub(crate) struct Rotary {
    turns: Arc<Turns>,
    negative: bool,
}

impl Rotary {
    /// For positions `[B, S]` and heads of `size` numbers.
    pub(crate) fn new(context: Option<&Context>, positions: &[u32], size: usize, theta: f64) -> Self {
        Self { turns: Arc::new(Turns::new(context, positions, size / 2, theta)), negative: false }
    }

    /// The way back.
    pub(crate) fn inverse(&self) -> Self {
        Self { turns: self.turns.clone(), negative: !self.negative }
    }

    /// x `[B, S, H, Dh]`, rotated.
    pub(crate) fn rotate<T: Real>(&self, x: &[T], dims: &[usize]) -> Vec<T> {
        let [b, s, h, dh] = *dims else { return Vec::new() };
        let (row, half) = (h * dh, dh / 2);
        rows::fill(b * s, row, rows_per_block(row), |first, out| {
            let x = &x[first * row..first * row + out.len()];
            let mut angles = vec![T::ZERO; 2 * half];
            dispatch(
                #[inline(always)]
                || {
                    for (i, (x, out)) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)).enumerate() {
                        let at = self.turns.index[first + i] as usize * 2 * half;
                        let entries = &self.turns.table[at..at + 2 * half];
                        let (cos, sin) = angles.split_at_mut(half);
                        for (o, &v) in cos.iter_mut().zip(&entries[..half]) {
                            *o = T::of_f64(v);
                        }
                        for (o, &v) in sin.iter_mut().zip(&entries[half..]) {
                            *o = if self.negative { -T::of_f64(v) } else { T::of_f64(v) };
                        }
                        for (x, out) in x.chunks_exact(dh).zip(out.chunks_exact_mut(dh)) {
                            let (x1, x2) = x.split_at(half);
                            let (y1, y2) = out.split_at_mut(half);
                            let turn = cos.iter().zip(&*sin);
                            for (((y1, y2), (&x1, &x2)), (&c, &s)) in
                                y1.iter_mut().zip(y2).zip(x1.iter().zip(x2)).zip(turn)
                            {
                                *y1 = x1 * c - x2 * s;
                                *y2 = x2 * c + x1 * s;
                            }
                        }
                    }
                },
            );
        })
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        with_float!(OP, s.dtype(), T => {
            let y = self.rotate::<T>(slice(OP, s, l)?, l.dims());
            Ok((T::to_cpu_storage_owned(y), l.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let back = self.inverse();
        with_float!(OP, grad.dtype(), T => {
            Ok(Some(tensor(back.rotate::<T>(&view(OP, &grad)?, grad.dims()), grad.shape())?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn far_positions_use_a_table_of_their_own_with_the_same_angles() {
        let context = Context::new(&Device::Cpu);
        let far = [4_000_000_000, 3, 3, 70_000];
        let near = Turns::new(Some(&context), &[3], 32, 1e4);
        for context in [Some(&context), None] {
            let far = Turns::new(context, &far, 32, 1e4);
            assert_eq!(far.index, [2, 0, 0, 1]);
            assert_eq!(far.table.len(), 3 * 64);
            assert_eq!(far.table[..64], near.table[3 * 64..4 * 64]);
        }
    }

    #[test]
    fn a_context_holds_a_few_tables_only_and_others_hold_their_own() {
        let [one, two] = [0, 1].map(|_| Context::new(&Device::Cpu));
        for half in 1..12 {
            Turns::new(Some(&one), &[5], half, 500.0);
        }
        assert_eq!(one.turns().0.lock().unwrap().len(), DENSE_TABLES);
        assert!(two.turns().0.lock().unwrap().is_empty());
        let a = one.turns().get(10, 4, 77.0);
        assert!(Arc::ptr_eq(&one.turns().get(9, 4, 77.0), &a));
    }
}
