//! Twin of `../adamw.rs` on `kernels/adamw.cu`: all parameters in three launches, or a part of them.

use super::clip::DeviceFactor;
use super::copies::{KeptCopy, copy_of};
use super::driver::failed;
use super::{Gpu, Launch, view};
use crate::Context;
use crate::adamw::{AdamWStep, Treatment};
use crate::clip::{Clip, Factor};
use crate::gradients::FlatGradients;
use crate::moment_pieces::Piece;
use crate::storage::error;
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut, DeviceRepr};
use std::ops::Range;

/// Elements of one chunk of the kernels.
const CHUNK: usize = 16_384;
/// Bytes of a parameter's number, and of that in its copy.
const FLOAT: u64 = 4;
const BF16: u64 = 2;
/// Threads of clip_scale's one block.
const ROW_THREADS: u32 = 256;
/// Threads of a block of squared_norms, and those that share a chunk: small blocks, so that they spread.
const NORM_BLOCK: u32 = 64;
const NORM_THREADS: u32 = 4;

/// One parameter of the kernels' table: eight 64-bit words.
#[derive(Clone, Copy)]
#[repr(C)]
struct Parameter {
    value: u64,
    grad: u64,
    m: u64,
    v: u64,
    compute: u64,
    count: u64,
    first_chunk: u64,
    group: u64,
}

// SAFETY: eight words without padding, as the kernels declare it.
unsafe impl DeviceRepr for Parameter {}

/// Kinds of parameters that one launch tells apart.
const GROUPS: usize = 8;

/// What is the same for all parameters of a step, and for those of each kind.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Factors {
    first: f32,
    beta2: f32,
    second: f32,
    root: f32,
    groups: [Group; GROUPS],
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Group {
    keep: f32,
    rate: f32,
    eps: f32,
}

// SAFETY: f32 without padding, as the kernels declare it.
unsafe impl DeviceRepr for Factors {}

impl Factors {
    /// Of a step and the kinds of parameters, computed as on the CPU.
    fn new(step: &AdamWStep, kinds: &[Treatment]) -> Self {
        let all = step.factors();
        let mut factors = Self {
            first: all.first,
            beta2: all.beta2,
            second: all.second,
            root: all.root,
            groups: Default::default(),
        };
        for (group, kind) in factors.groups.iter_mut().zip(kinds) {
            let of = step.of(*kind).factors();
            *group = Group { keep: of.keep, rate: of.rate, eps: of.eps };
        }
        factors
    }
}

/// See [`FlatGradients::clip`]; the flat gradients are one parameter to the kernels.
pub(crate) fn clip(gradients: &mut FlatGradients, max_norm: f64) -> Result<DeviceFactor> {
    let (gpu, factor) = gradients.device_factor()?;
    let values = gradients.device_values()?;
    let count = values.len();
    let chunks = count.div_ceil(CHUNK);
    let stream = gpu.stream();
    let (grad, _read) = values.device_ptr(&stream);
    let whole =
        Parameter { value: 0, grad, m: 0, v: 0, compute: 0, count: count as u64, first_chunk: 0, group: 0 };
    let table = gpu.shared(&[whole])?;
    let mut norms = gpu.raw::<f64>(chunks)?;
    let chunks_ = chunks as u32;
    let launch = Launch::of(chunks, (NORM_BLOCK / NORM_THREADS) as usize, NORM_BLOCK);
    launch!(gpu, ADAMW, "squared_norms", launch, &*table, &1u32, &chunks_, &mut norms);
    let one = Launch::of(1, 1, ROW_THREADS);
    launch!(gpu, ADAMW, "clip_scale", one, &norms, &chunks_, &max_norm, &*factor.values);
    Ok(factor)
}

/// Moments on a GPU.
#[derive(Debug)]
pub(crate) struct DeviceMoments {
    gpu: Gpu,
    first: CudaSlice<f32>,
    second: CudaSlice<f32>,
}

/// A table for the kernels: pieces of parameters.
struct Table {
    rows: Vec<Parameter>,
    chunks: u64,
    kinds: Vec<Treatment>,
    /// Hold the copies until the launch.
    _copies: Vec<KeptCopy>,
}

impl Table {
    /// Pieces whose gradients lie at `grad` by their place in the list of all elements, and whose moments follow each other from
    /// `m` and `v` on.
    fn new(gpu: &Gpu, pieces: &[Piece<'_>], grad: u64, [m, v]: [u64; 2]) -> Result<Self> {
        let stream = gpu.stream();
        let mut table = Self {
            rows: Vec::with_capacity(pieces.len()),
            chunks: 0,
            kinds: Vec::new(),
            _copies: Vec::new(),
        };
        let mut held = 0;
        for piece in pieces {
            let values = view::<f32>("adamw", piece.parameter)?;
            let values = values.get();
            let (value, _value) = values.device_ptr(&stream);
            let copy = copy_of(gpu, piece.parameter);
            let (from, count) = (piece.from as u64, piece.elements.len() as u64);
            let group = table.group(piece.treatment)?;
            table.rows.push(Parameter {
                value: value + FLOAT * from,
                grad: grad + FLOAT * piece.elements.start as u64,
                m: m + FLOAT * held,
                v: v + FLOAT * held,
                compute: copy.as_ref().map_or(0, |copy| copy.address + BF16 * from),
                count,
                first_chunk: table.chunks,
                group,
            });
            table._copies.extend(copy);
            held += count;
            table.chunks += count.div_ceil(CHUNK as u64);
        }
        Ok(table)
    }

    /// The place of a treatment among those that there are.
    fn group(&mut self, treatment: Treatment) -> Result<u64> {
        let found = self.kinds.iter().position(|kind| *kind == treatment);
        if found.is_none() {
            if self.kinds.len() == GROUPS {
                return Err(error(
                    "adamw",
                    format_args!(
                        "parameters with more than {GROUPS} kinds of rates, ε and decay are not for a GPU"
                    ),
                ));
            }
            self.kinds.push(treatment);
        }
        Ok(found.unwrap_or(self.kinds.len() - 1) as u64)
    }

    /// Values and bf16 copies become what lies where the gradients do.
    fn replace(&self, gpu: &Gpu) -> Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        // The same in every step, so it is copied once.
        let table = gpu.shared(&self.rows)?;
        let launch = Launch::of(self.chunks as usize, 1, ROW_THREADS);
        let (count, chunks) = (self.rows.len() as u32, self.chunks as u32);
        launch!(gpu, ADAMW, "replace", launch, &*table, &count, &chunks);
        Ok(())
    }
}

impl DeviceMoments {
    /// Zeros for `count` elements on the GPU of `context`.
    pub(crate) fn new(context: &Context, count: usize) -> Result<Self> {
        let gpu = Gpu::at("adamw", context)?;
        let (first, second) = (gpu.zeros(count)?, gpu.zeros(count)?);
        Ok(Self { gpu, first, second })
    }

    /// See [`crate::Moments::update`].
    pub(crate) fn update(
        &mut self,
        pieces: &[Piece<'_>],
        gradients: &mut FlatGradients,
        elements: usize,
        s: &AdamWStep,
        clip: &Clip,
    ) -> Result<()> {
        let gpu = self.gpu.clone();
        let factor = match &clip.0 {
            Factor::Device(factor) => factor.values.clone(),
            Factor::Host { norm, factor } => gpu.shared(&[*norm, *factor, 0.0])?,
        };
        let gradients = gradients.device_values()?;
        if gradients.len() != elements.max(1) {
            return Err(error("adamw", "the gradients are not those of these parameters"));
        }
        if pieces.is_empty() {
            return Ok(());
        }
        let stream = gpu.stream();
        let (grad, _grad) = gradients.device_ptr(&stream);
        let (m, _m) = self.first.device_ptr(&stream);
        let (v, _v) = self.second.device_ptr(&stream);
        let table = Table::new(&gpu, pieces, grad, [m, v])?;
        let factors = Factors::new(s, &table.kinds);
        // The same in every step, so it is copied once.
        let device_table = gpu.shared(&table.rows)?;
        let launch = Launch::of(table.chunks as usize, 1, ROW_THREADS);
        let (count, chunks) = (table.rows.len() as u32, table.chunks as u32);
        launch!(gpu, ADAMW, "adamw", launch, &*device_table, &count, &chunks, &factors, &*factor);
        Ok(())
    }

    /// See [`crate::Moments::lay_parameters`].
    pub(crate) fn lay(&self, pieces: &[Piece<'_>], list: &mut CudaSlice<f32>) -> Result<()> {
        let stream = self.gpu.stream();
        let (place, _written) = list.device_ptr_mut(&stream);
        let mut table = Table::new(&self.gpu, pieces, place, [0; 2])?;
        for row in &mut table.rows {
            // The other way round.
            (row.value, row.grad, row.compute) = (row.grad, row.value, 0);
        }
        table.replace(&self.gpu)
    }

    /// See [`crate::Moments::take_parameters`].
    pub(crate) fn take(&self, pieces: &[Piece<'_>], list: &CudaSlice<f32>) -> Result<()> {
        let stream = self.gpu.stream();
        let (place, _read) = list.device_ptr(&stream);
        Table::new(&self.gpu, pieces, place, [0; 2])?.replace(&self.gpu)
    }

    /// A copy of a range of the part; waits for the GPU.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<[Vec<f32>; 2]> {
        let copy = |m: &CudaSlice<f32>| self.gpu.cuda().clone_dtoh(&m.slice(range.clone()));
        Ok([copy(&self.first)?, copy(&self.second)?])
    }

    /// Sets a range of the part.
    pub(crate) fn write(&mut self, range: Range<usize>, moments: [&[f32]; 2]) -> Result<()> {
        let stream = self.gpu.stream();
        for (to, from) in [&mut self.first, &mut self.second].into_iter().zip(moments) {
            stream.memcpy_htod(from, &mut to.slice_mut(range.clone())).map_err(failed)?;
        }
        Ok(())
    }
}
