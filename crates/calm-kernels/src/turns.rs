//! Cosines and sines of rotary angles. The table of the first positions stays in a context: every layer of every step
//! asks for the same one.

use crate::context::Context;
use crate::products::Products;
use std::sync::{Arc, Mutex, PoisonError};

/// Tables up to this many entries stay in the context for the next call.
const DENSE_ENTRIES: usize = 1 << 22;
/// Tables (for different θ and head sizes) that a context has at the same time.
const DENSE_TABLES: usize = 4;

/// Cosines and sines for the positions of a batch.
pub(crate) struct Turns {
    /// Row of `table` for every (b, s).
    pub(crate) index: Vec<u32>,
    /// `[rows, 2, Dh/2]`: cosines, then sines.
    pub(crate) table: Arc<Vec<f64>>,
}

/// The table for positions 0, 1, 2, … of one θ and half head size.
#[derive(Debug)]
struct DenseTable {
    half: usize,
    theta: f64,
    products: Products,
    table: Arc<Vec<f64>>,
}

/// The last tables of a context: every layer of every step asks for the same ones.
#[derive(Debug, Default)]
struct DenseTables(Mutex<Vec<DenseTable>>);

impl DenseTables {
    /// The table for positions `0..rows` at least.
    fn get(&self, rows: usize, half: usize, theta: f64, products: Products) -> Arc<Vec<f64>> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same =
            |t: &DenseTable| t.half == half && t.theta.to_bits() == theta.to_bits() && t.products == products;
        if let Some(t) = tables.iter().find(|t| same(t) && t.table.len() >= rows * 2 * half) {
            return t.table.clone();
        }
        let new = table(0..rows.next_power_of_two() as u32, half, theta, products);
        tables.retain(|t| !same(t));
        if tables.len() == DENSE_TABLES {
            tables.remove(0);
        }
        tables.push(DenseTable { half, theta, products, table: new.clone() });
        new
    }
}

/// θ^(−i/half) for i below half.
pub(crate) fn frequencies(half: usize, theta: f64) -> Vec<f64> {
    (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect()
}

/// The same in Rust alone: the C library's functions differ in their last bits from system to system.
fn fixed_frequencies(half: usize, theta: f64) -> Vec<f64> {
    (0..half).map(|i| libm::pow(theta, -(i as f64) / half as f64)).collect()
}

/// Sine and cosine of an angle.
type SinCos = fn(f64) -> (f64, f64);

fn table(positions: impl Iterator<Item = u32>, half: usize, theta: f64, products: Products) -> Arc<Vec<f64>> {
    let (frequency, sin_cos) = match products {
        Products::Fast => (frequencies(half, theta), f64::sin_cos as SinCos),
        Products::Fixed => (fixed_frequencies(half, theta), libm::sincos as SinCos),
    };
    let mut out = Vec::new();
    for position in positions {
        let turn = |f: &f64| sin_cos(f64::from(position) * f);
        out.extend(frequency.iter().map(|f| turn(f).1));
        out.extend(frequency.iter().map(|f| turn(f).0));
    }
    Arc::new(out)
}

impl Turns {
    /// For these positions and half the size of a head.
    pub(crate) fn new(context: Option<&Context>, positions: &[u32], half: usize, theta: f64) -> Self {
        let products = context.map_or(Products::Fast, Context::products);
        let rows = positions.iter().max().map_or(0, |&m| m as usize + 1);
        if let Some(context) = context
            && rows.saturating_mul(2 * half) <= DENSE_ENTRIES
        {
            return Self {
                index: positions.to_vec(),
                table: context.kept::<DenseTables>().get(rows, half, theta, products),
            };
        }
        // Far positions, or a table for this call: of the distinct ones.
        let mut distinct = positions.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let row = |p: &u32| distinct.partition_point(|d| d < p) as u32;
        Self {
            index: positions.iter().map(row).collect(),
            table: table(distinct.iter().copied(), half, theta, products),
        }
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
        assert_eq!(one.kept::<DenseTables>().0.lock().unwrap().len(), DENSE_TABLES);
        assert!(two.kept::<DenseTables>().0.lock().unwrap().is_empty());
        let a = one.kept::<DenseTables>().get(10, 4, 77.0, Products::Fast);
        assert!(Arc::ptr_eq(&one.kept::<DenseTables>().get(9, 4, 77.0, Products::Fast), &a));
    }
}
