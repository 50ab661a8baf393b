//! A batch of chunk rows as tensors.

use std::sync::Arc;

use calm_nn::device::upload;
use calm_nn::{Destination, RowId};
use candle_core::{Result, Tensor, bail};

/// What the models need of a batch. `segments` says which chunks of a row see each other: position t sees
/// u ≤ t of the same segment.
#[derive(Clone, Debug)]
pub struct ChunkBatch {
    /// U32 `[B, S, K]`
    pub ids: Tensor,
    /// U32 `[B, S]`, position inside the segment, for the rotary angles.
    pub positions: Tensor,
    /// U32 `[B, S]`
    pub segments: Tensor,
    /// The R positions `b·S + s` whose next chunk `b·S + s + 1` is to be predicted, ascending.
    pub sources: Vec<u32>,
    /// Noise identity of these R positions.
    pub rows: Vec<RowId>,
    /// `[B·S]`: what stands before the part of its document that counts; none where all text counts.
    pub(crate) inputs: Option<Arc<Vec<bool>>>,
    /// `segments` and `positions` on the host, for families that look at them there.
    pub(crate) on_host: Arc<OnHost>,
    /// Of the store that it was made for, if it was.
    context: Option<calm_nn::Context>,
}

/// Where the positions of a batch stand.
#[derive(Debug)]
pub(crate) struct OnHost {
    /// `[B·S]`: position b·S + s and the one before it in its row are of one document if these are equal.
    pub(crate) segments: Vec<u32>,
    /// `[B·S]`: position inside the document's window.
    pub(crate) positions: Vec<u32>,
    /// Noise identity of all B·S positions.
    pub(crate) rows: Vec<RowId>,
}

impl ChunkBatch {
    /// From row-major arrays: `ids [B·S·K]`, `positions`, `segments`, `predicts [B·S]`, `examples [B]`; best made in
    /// the context of the store whose model takes it.
    ///
    /// # Errors
    /// Arrays of another length; a last position of a row that is to predict; what a GPU answers.
    pub fn new(
        (b, s, k): (usize, usize, usize),
        ids: &[u32],
        positions: &[u32],
        segments: &[u32],
        predicts: &[bool],
        examples: &[u32],
        to: &dyn Destination,
    ) -> Result<Self> {
        if ids.len() != b * s * k
            || [positions.len(), segments.len(), predicts.len()] != [b * s; 3]
            || examples.len() != b
        {
            bail!("batch arrays do not fit [{b}, {s}, {k}]")
        }
        let mut sources = Vec::new();
        let mut rows = Vec::new();
        for at in (0..b * s).filter(|at| predicts[*at]) {
            if at % s + 1 == s {
                bail!("the last position of a row has no next chunk")
            }
            sources.push(at as u32);
            rows.push(RowId { example: examples[at / s], position: (at % s) as u32 });
        }
        Ok(Self {
            ids: upload(ids, (b, s, k), to)?,
            positions: upload(positions, (b, s), to)?,
            segments: upload(segments, (b, s), to)?,
            sources,
            rows,
            inputs: None,
            on_host: Arc::new(OnHost {
                segments: segments.to_vec(),
                positions: positions.to_vec(),
                rows: (0..b * s)
                    .map(|at| RowId { example: examples[at / s], position: (at % s) as u32 })
                    .collect(),
            }),
            context: to.context().cloned(),
        })
    }

    /// The same, with what of it is input: `[B·S]`, what stands before the part of its document that counts.
    ///
    /// # Errors
    /// Another number of positions.
    pub fn with_inputs(self, inputs: Option<Vec<bool>>) -> Result<Self> {
        let positions = self.on_host.positions.len();
        if let Some(given) = inputs.as_ref().filter(|inputs| inputs.len() != positions) {
            bail!("{} marks of input do not fit {positions} positions", given.len())
        }
        Ok(Self { inputs: inputs.map(Arc::new), ..self })
    }

    /// Where its tensors are, and others beside them are made.
    pub fn destination(&self) -> &dyn Destination {
        match &self.context {
            Some(context) => context,
            None => self.ids.device(),
        }
    }

    /// The R predicting rows of `x [B, S, D]`: `[R, D]`, differentiable.
    ///
    /// # Errors
    /// Another shape; what a GPU answers.
    pub fn pick(&self, x: &Tensor) -> Result<Tensor> {
        let (b, s, d) = x.dims3()?;
        let index = upload(&self.sources, self.sources.len(), self.destination())?;
        calm_kernels::embedding(&index, &x.reshape((b * s, d))?, None)
    }

    /// The chunks to be predicted, U32 `[R, K]`.
    ///
    /// # Errors
    /// As [`ChunkBatch::chunks_after`].
    pub fn targets(&self) -> Result<Tensor> {
        self.chunks_after(1)
    }

    /// The chunks `offset` positions after the R sources, U32 `[R, K]`; beyond the end of a row the row's
    /// last chunk stands in (the caller knows which positions have that many chunks ahead).
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn chunks_after(&self, offset: u32) -> Result<Tensor> {
        let (b, s, k) = self.ids.dims3()?;
        let index: Vec<u32> =
            self.sources.iter().map(|at| (at + offset).min((at / s as u32 + 1) * s as u32 - 1)).collect();
        let index = upload(&index, index.len(), self.destination())?;
        self.ids.reshape((b * s, k))?.index_select(&index, 0)
    }
}
