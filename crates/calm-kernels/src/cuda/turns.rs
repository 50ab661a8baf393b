//! Rotary angles on `kernels/rotary.cu`: the table of a batch's positions, made on the GPU, and rotations by it.

use super::per_tensor::PerTensor;
use super::{Element, Gpu, Launch, view};
use crate::turns::frequencies;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Those of a context's last batches, by head size and the bits of theta.
#[derive(Default)]
struct Tables(PerTensor<(usize, u64), CudaSlice<f32>>);

/// Cosines and sines `[rows, 2, Dh/2]`, a row for each position of a batch.
#[derive(Clone)]
pub(super) struct Turns {
    table: Arc<CudaSlice<f32>>,
    rows: usize,
    head: usize,
}

impl Turns {
    /// For positions U32 `[B, S]`, heads of `head` numbers, and base `theta`; in a context once for all layers of a
    /// batch.
    pub(super) fn new(gpu: &Gpu, op: &str, positions: &Tensor, head: usize, theta: f64) -> Result<Self> {
        let rows = positions.elem_count();
        let make = || {
            let half = head / 2;
            let contiguous = positions.contiguous()?;
            let positions = view::<u32>(op, &contiguous)?;
            let frequency = gpu.shared(&frequencies(half, theta))?;
            let mut table = gpu.empty::<f32>(rows * head)?;
            if rows * half > 0 {
                let launch = Launch::cells(rows, half);
                let (rows, half) = (rows as u64, half as u32);
                launch!(
                    gpu,
                    ROTARY,
                    "rotary_turns",
                    launch,
                    &positions.get(),
                    &*frequency,
                    &mut table,
                    &rows,
                    &half
                );
            }
            Ok(table)
        };
        let table = match gpu.kept::<Tables>() {
            Some(tables) => tables.0.get(positions, (head, theta.to_bits()), make)?,
            None => Arc::new(make()?),
        };
        Ok(Self { table, rows, head })
    }

    /// x `[B, S, heads, Dh]`, rotated forwards or back.
    pub(super) fn rotate<T: Element>(
        &self,
        gpu: &Gpu,
        x: &CudaView<'_, T>,
        heads: usize,
        back: bool,
    ) -> Result<CudaSlice<T>> {
        let mut y = gpu.empty::<T>(x.len())?;
        let pairs = heads * self.head / 2;
        if self.rows * pairs > 0 {
            let kernel = format!("rotary_{}", T::SUFFIX);
            let launch = Launch::cells(self.rows, pairs);
            let (rows, heads, head) = (self.rows as u64, heads as u32, self.head as u32);
            let (no_index, sign) = (0u64, if back { -1.0f32 } else { 1.0 });
            launch!(
                gpu,
                ROTARY,
                kernel,
                launch,
                x,
                &no_index,
                &*self.table,
                &mut y,
                &rows,
                &heads,
                &head,
                &sign
            );
        }
        Ok(y)
    }
}
