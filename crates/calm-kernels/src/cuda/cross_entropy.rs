//! Twin of `../cross_entropy.rs` on `kernels/cross_entropy.cu` and cuBLAS. Logits are f32, whatever the
//! activations are.
//!
//! As on the CPU the gradients are computed with the loss, block of rows by block of rows, and wait for the
//! backward pass, which scales them by the upstream gradient. That is 3 products of 2·R·D·V operations; to keep
//! only what a row's softmax needs and to compute logits again would be 4, and would write and read the
//! R·V logits of a second product. What waits is [R, D] in the type of the activations and [V, D] in f32; a
//! block has all V columns, 6 or 8 bytes a logit, of which [`TRACKED`] exist at a time.
//!
//! Without a gradient it is 1 product, in blocks of rows and chunks of columns so small ([`ALONE`]) that the
//! logits stay in the second-level cache. Blocks depend on the shape alone, so results do not depend on the card.

use super::copies::weight;
use super::gradients::gradient_of;
use super::matrix::{Mat, matmul};
use super::{Element, Gpu, Launch, View, view};
use crate::Operand;
use crate::nary::{Operator, apply};
use crate::storage::Saved;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr};
use candle_core::{CudaStorage, DType, Result, Shape, Tensor};
use std::ops::Range;

const OP: &str = "tied_cross_entropy";
/// Threads of the kernels whose block is as wide as their algorithm.
const ROW_THREADS: u32 = 256;
/// Logits of a block of rows, with gradients: 512 MiB. The gradient of the embedding is read and written once a
/// block, so blocks are as large as memory allows.
const TRACKED: usize = 1 << 27;
/// Logits of a block without gradients: 16 MiB, and the fewest columns it has.
const ALONE: usize = 1 << 22;
const FEWEST_COLUMNS: usize = 1024;

/// Inputs that fit, checked by the caller, but for targets outside the vocabulary: those make the loss NaN.
pub(crate) fn tied_cross_entropy(
    hidden: &Tensor,
    embedding: &dyn Operand,
    targets: &Tensor,
    weights: Option<&Tensor>,
) -> Result<Tensor> {
    of_blocks(hidden, embedding, targets, weights, TRACKED)
}

fn of_blocks(
    hidden: &Tensor,
    embedding: &dyn Operand,
    targets: &Tensor,
    weights: Option<&Tensor>,
    tracked_logits: usize,
) -> Result<Tensor> {
    let weights = weights.map(|w| w.detach().to_dtype(DType::F32)?.contiguous()).transpose()?;
    let op = TiedCrossEntropy {
        targets: targets.contiguous()?,
        weights,
        wanted: [hidden.track_op(), embedding.tensor().track_op()],
        tracked_logits,
        gradients: Saved::new(),
    };
    apply(op, &[hidden, embedding])
}

/// Loss of each row `[R]` in f32 and its most probable id, U32 `[R]`.
pub(crate) fn rows(hidden: &Tensor, embedding: &dyn Operand, targets: &Tensor) -> Result<(Tensor, Tensor)> {
    const OP: &str = "tied_cross_entropy_rows";
    let gpu = Gpu::of_all(OP, &[hidden, embedding])?;
    // The embedding as it is: by its id its bf16 copy is found.
    let (hidden, embedding) = (hidden.detach().contiguous()?, embedding.tensor().contiguous()?);
    let targets = targets.contiguous()?;
    with_element!(OP, hidden.dtype(), T => {
        let (h, e) = (view::<T>(OP, &hidden)?, weight::<T>(&gpu, OP, &embedding)?);
        let product = Product::of(h.get(), e.get(), &hidden, &embedding)?;
        let targets = view::<u32>(OP, &targets)?;
        let mut state = State::new(&gpu, product.rows)?;
        forward(&gpu, &product, &targets, &mut state)?;
        let (_, losses) = state.loss(&gpu, None, true)?;
        let ids = gpu.wrap(gpu.storage(state.id), Shape::from(product.rows));
        Ok((gpu.tensor(losses, product.rows)?, ids))
    })
}

/// The id with the largest logit of each row, U32 `[R]`.
pub(crate) fn argmax(hidden: &Tensor, embedding: &dyn Operand) -> Result<Tensor> {
    const OP: &str = "tied_argmax";
    let gpu = Gpu::of_all(OP, &[hidden, embedding])?;
    let (hidden, embedding) = (hidden.detach().contiguous()?, embedding.tensor().contiguous()?);
    with_element!(OP, hidden.dtype(), T => {
        let (h, e) = (view::<T>(OP, &hidden)?, weight::<T>(&gpu, OP, &embedding)?);
        let product = Product::of(h.get(), e.get(), &hidden, &embedding)?;
        let mut largest = gpu.empty::<f32>(product.rows)?;
        let mut id = gpu.raw::<u32>(product.rows)?;
        product.each_chunk(&gpu, |logits, rows, columns| {
            let count = rows.len() as u32;
            let (mut largest, mut id) = (largest.slice_mut(rows.clone()), id.slice_mut(rows.clone()));
            let (first, columns) = (columns.start as u32, columns.len() as u32);
            let launch = Launch::of(rows.len(), 1, ROW_THREADS);
            launch!(
                gpu, CROSS_ENTROPY, "argmax_chunk", launch, logits, &count, &columns, &first, &mut largest, &mut id,
            );
            Ok(())
        })?;
        Ok(gpu.wrap(gpu.storage(id), Shape::from(product.rows)))
    })
}

/// hidden `[R, D]` and embedding `[V, D]`, whose products are the logits.
struct Product<'a, T> {
    hidden: CudaView<'a, T>,
    embedding: CudaView<'a, T>,
    rows: usize,
    width: usize,
    vocabulary: usize,
}

impl<'a, T: Element> Product<'a, T> {
    fn of(h: CudaView<'a, T>, e: CudaView<'a, T>, hidden: &Tensor, embedding: &Tensor) -> Result<Self> {
        let (rows, width) = hidden.dims2()?;
        Ok(Self { hidden: h, embedding: e, rows, width, vocabulary: embedding.dim(0)? })
    }

    fn hidden(&self, rows: &Range<usize>) -> Mat<'_, T> {
        let d = self.width;
        Mat::new(self.hidden.slice(rows.start * d..rows.end * d), rows.len(), d)
    }

    fn embedding(&self, columns: &Range<usize>) -> Mat<'_, T> {
        let d = self.width;
        Mat::new(self.embedding.slice(columns.start * d..columns.end * d), columns.len(), d)
    }

    /// The logits of these rows and columns.
    fn logits(
        &self,
        gpu: &Gpu,
        into: &mut CudaSlice<f32>,
        rows: &Range<usize>,
        columns: &Range<usize>,
    ) -> Result<()> {
        let (h, e) = (self.hidden(rows), self.embedding(columns));
        if self.width == 0 {
            // Sums of nothing.
            return gpu.stream().memset_zeros(into).map_err(super::driver::failed);
        }
        matmul(gpu, &mut into.as_view_mut(), columns.len(), &h, &e.t(), false)
    }

    /// Blocks of rows of about equal size, each of at most `logits` logits (but at least one row).
    fn blocks(&self, logits: usize, columns: usize) -> impl Iterator<Item = Range<usize>> + use<T> {
        let most = (logits / columns.max(1)).max(1);
        let rows = self.rows;
        let each = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
        (0..rows).step_by(each).map(move |first| first..(first + each).min(rows))
    }

    /// `each(logits, rows, columns)` for blocks of rows, and in each for chunks of columns in ascending order.
    fn each_chunk(
        &self,
        gpu: &Gpu,
        mut each: impl FnMut(&CudaSlice<f32>, Range<usize>, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let v = self.vocabulary;
        let columns = (ALONE / self.rows.max(1)).max(FEWEST_COLUMNS).min(v);
        let most = self.rows.min((ALONE / columns).max(1));
        let mut logits = gpu.empty::<f32>(most * columns)?;
        for rows in self.blocks(most * columns, columns) {
            for first in (0..v).step_by(columns) {
                let columns = first..(first + columns).min(v);
                self.logits(gpu, &mut logits, &rows, &columns)?;
                each(&logits, rows.clone(), columns)?;
            }
        }
        Ok(())
    }
}

/// What rows carry from chunk to chunk, `[R]` each.
struct State {
    largest: CudaSlice<f32>,
    id: CudaSlice<u32>,
    sums: CudaSlice<f64>,
    at_target: CudaSlice<f32>,
    rows: usize,
}

impl State {
    fn new(gpu: &Gpu, rows: usize) -> Result<Self> {
        Ok(Self {
            largest: gpu.empty(rows)?,
            id: gpu.raw(rows)?,
            sums: gpu.raw(rows)?,
            at_target: gpu.empty(rows)?,
            rows,
        })
    }

    fn take(
        &mut self,
        gpu: &Gpu,
        logits: &CudaSlice<f32>,
        targets: &View<'_, u32>,
        rows: &Range<usize>,
        columns: &Range<usize>,
    ) -> Result<()> {
        let (first, width) = (columns.start as u32, columns.len() as u32);
        launch!(
            gpu,
            CROSS_ENTROPY,
            "cross_entropy_chunk",
            Launch::of(rows.len(), 1, ROW_THREADS),
            logits,
            &targets.get().slice(rows.clone()),
            &(rows.len() as u32),
            &width,
            &first,
            &mut self.largest.slice_mut(rows.clone()),
            &mut self.id.slice_mut(rows.clone()),
            &mut self.sums.slice_mut(rows.clone()),
            &mut self.at_target.slice_mut(rows.clone()),
        );
        Ok(())
    }

    /// Σ weight·loss `[1]`, and the loss of each row `[R]` if it is wanted.
    fn loss(
        &self,
        gpu: &Gpu,
        weights: Option<&View<'_, f32>>,
        each: bool,
    ) -> Result<(CudaSlice<f32>, CudaSlice<f32>)> {
        let mut total = gpu.empty::<f32>(1)?;
        let losses = gpu.empty::<f32>(if each { self.rows } else { 0 })?;
        let stream = gpu.stream();
        let to_losses = if each { losses.device_ptr(&stream).0 } else { 0 };
        let weights = weights.map(View::get);
        let weights = weights.as_ref().map_or(0, |w| w.device_ptr(&stream).0);
        launch!(
            gpu,
            CROSS_ENTROPY,
            "cross_entropy_loss",
            Launch::of(1, 1, ROW_THREADS),
            &self.largest,
            &self.sums,
            &self.at_target,
            &weights,
            &to_losses,
            &mut total,
            &(self.rows as u32),
        );
        Ok((total, losses))
    }
}

/// The state of all rows after the whole vocabulary.
fn forward<T: Element>(
    gpu: &Gpu,
    product: &Product<'_, T>,
    targets: &View<'_, u32>,
    state: &mut State,
) -> Result<()> {
    product.each_chunk(gpu, |logits, rows, columns| state.take(gpu, logits, targets, &rows, &columns))
}

struct TiedCrossEntropy {
    targets: Tensor,
    /// f32 `[R]`.
    weights: Option<Tensor>,
    /// Whether hidden and embedding ask for a gradient.
    wanted: [bool; 2],
    /// Logits of a block of rows with gradients.
    tracked_logits: usize,
    /// Of hidden in its type and of the embedding in f32, without the upstream gradient.
    gradients: Saved<[Option<Tensor>; 2]>,
}

impl TiedCrossEntropy {
    fn run<T: Element>(&self, gpu: &Gpu, hidden: &Tensor, embedding: &Tensor) -> Result<CudaSlice<f32>> {
        let (h, e) = (view::<T>(OP, hidden)?, weight::<T>(gpu, OP, embedding)?);
        let product = Product::of(h.get(), e.get(), hidden, embedding)?;
        let targets = view::<u32>(OP, &self.targets)?;
        let weights = self.weights.as_ref().map(|w| view::<f32>(OP, w)).transpose()?;
        let mut state = State::new(gpu, product.rows)?;
        if self.wanted.contains(&true) {
            self.with_gradients(gpu, &product, &targets, weights.as_ref(), &mut state)?;
        } else {
            forward(gpu, &product, &targets, &mut state)?;
        }
        Ok(state.loss(gpu, weights.as_ref(), false)?.0)
    }

    fn with_gradients<T: Element>(
        &self,
        gpu: &Gpu,
        product: &Product<'_, T>,
        targets: &View<'_, u32>,
        weights: Option<&View<'_, f32>>,
        state: &mut State,
    ) -> Result<()> {
        let (r, d, v) = (product.rows, product.width, product.vocabulary);
        let all = 0..v;
        let most = product.blocks(self.tracked_logits, v).next().map_or(0, |rows| rows.len());
        let mut logits = gpu.empty::<f32>(most * v)?;
        let mut slope = gpu.empty::<T>(most * v)?;
        let [want_hidden, want_embedding] = self.wanted;
        let mut d_hidden = want_hidden.then(|| gpu.empty::<T>(r * d)).transpose()?;
        let make = || if r == 0 { gpu.zeros::<f32>(v * d) } else { gpu.empty::<f32>(v * d) };
        let mut d_embedding = want_embedding.then(make).transpose()?;
        let stream = gpu.stream();
        for rows in product.blocks(self.tracked_logits, v) {
            product.logits(gpu, &mut logits, &rows, &all)?;
            state.take(gpu, &logits, targets, &rows, &all)?;
            let weights = weights.map(View::get);
            let weights = weights.as_ref().map(|w| w.slice(rows.clone()));
            launch!(
                gpu,
                CROSS_ENTROPY,
                format!("cross_entropy_slope_{}", T::SUFFIX),
                Launch::of(rows.len(), 1, ROW_THREADS),
                &logits,
                &targets.get().slice(rows.clone()),
                &weights.as_ref().map_or(0, |w| w.device_ptr(&stream).0),
                &state.largest.slice(rows.clone()),
                &state.sums.slice(rows.clone()),
                &mut slope,
                &(rows.len() as u32),
                &(v as u32),
                &0u32,
            );
            let slope = Mat::new(slope.slice(..rows.len() * v), rows.len(), v);
            if let Some(d_hidden) = &mut d_hidden {
                let into = &mut d_hidden.slice_mut(rows.start * d..rows.end * d);
                matmul(gpu, into, d, &slope, &product.embedding(&all), false)?;
            }
            if let Some(d_embedding) = &mut d_embedding {
                let into = &mut d_embedding.as_view_mut();
                matmul(gpu, into, d, &slope.t(), &product.hidden(&rows), rows.start > 0)?;
            }
        }
        let d_hidden = d_hidden.map(|g| gpu.tensor(g, (r, d))).transpose()?;
        let d_embedding = d_embedding.map(|g| gpu.tensor(g, (v, d))).transpose()?;
        self.gradients.set([d_hidden, d_embedding]);
        Ok(())
    }
}

/// dst = upstream·kept, or dst += upstream·kept.
fn scale<T: Element>(
    gpu: &Gpu,
    kept: &Tensor,
    upstream: &View<'_, f32>,
    dst: &mut CudaViewMut<'_, T>,
    accumulate: bool,
) -> Result<()> {
    let kept = view::<T>(OP, kept)?;
    let count = kept.get().len();
    if count > 0 {
        let kernel = format!("cross_entropy_backward_{}", T::SUFFIX);
        let (launch, accumulate) = (Launch::elements(count), u32::from(accumulate));
        launch!(
            gpu,
            CROSS_ENTROPY,
            kernel,
            launch,
            &kept.get(),
            &upstream.get(),
            dst,
            &(count as u64),
            &accumulate,
        );
    }
    Ok(())
}

impl Operator<Gpu> for TiedCrossEntropy {
    const NAME: &'static str = OP;

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let loss = with_element!(OP, inputs[0].dtype(), T => self.run::<T>(gpu, &inputs[0], &inputs[1]))?;
        Ok((gpu.storage(loss), Shape::from(())))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let [of_hidden, of_embedding] = self.gradients.get(OP)?;
        let upstream = view::<f32>(OP, grad)?;
        let d_hidden = of_hidden.map(|kept| {
            with_element!(OP, kept.dtype(), T => {
                let mut out = gpu.empty::<T>(kept.elem_count())?;
                scale::<T>(gpu, &kept, &upstream, &mut out.as_view_mut(), false)?;
                gpu.tensor(out, kept.shape())
            })
        });
        let d_embedding = match of_embedding {
            Some(kept) => gradient_of(gpu, &inputs[1], |into, accumulate| {
                scale::<f32>(gpu, &kept, &upstream, into, accumulate)
            })?,
            None => None,
        };
        Ok(vec![d_hidden.transpose()?, d_embedding])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{self, Choice};
    use candle_core::{Device, Var};

    fn values(t: &Tensor) -> Vec<f32> {
        t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn blocks_of_rows_change_only_the_order_of_sums() {
        if let Err(reason) = device::gpus() {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: {reason} (needs a GPU)");
            return;
        }
        let gpu = device::open(Choice::Cuda(0)).unwrap();
        let (r, d, v) = (37, 6, 50);
        let numbers = |count: usize, step: f32| (0..count).map(move |i| (i as f32 * step).sin());
        let upload = |values: Vec<f32>, rows| {
            Var::from_tensor(&device::upload(&values, (rows, d), &gpu).unwrap()).unwrap()
        };
        let hidden = upload(numbers(r * d, 0.7).collect(), r);
        let table = upload(numbers(v * d, 0.3).collect(), v);
        let targets: Vec<u32> = (0..r as u32).map(|i| i * 7 % v as u32).collect();
        let targets = device::upload(&targets, r, &gpu).unwrap();
        let weights: Vec<f32> = numbers(r, 1.1).map(|w| w.max(0.0)).collect();
        let weights = device::upload(&weights, r, &gpu).unwrap();
        let run = |logits: usize| {
            let loss = of_blocks(&hidden, &table, &targets, Some(&weights), logits).unwrap();
            let grads = loss.backward().unwrap();
            [values(&loss), values(grads.get(&hidden).unwrap()), values(grads.get(&table).unwrap())]
        };
        let whole = run(TRACKED);
        // One row a block, three, and twelve or thirteen.
        for logits in [1, 3 * v, 17 * v] {
            for (got, want) in run(logits).iter().zip(&whole) {
                for (g, w) in got.iter().zip(want) {
                    assert!((g - w).abs() <= 1e-5 * w.abs().max(1.0), "{g} {w} in blocks of {logits}");
                }
            }
        }
    }
}
