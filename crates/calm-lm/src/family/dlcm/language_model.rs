//! The dynamic concept model as a language model.

use calm_nn::{Noise, ParamStore, Parameter};
use candle_core::{DType, Result, Tensor};

use super::boundaries::{Boundaries, Decisions};
use super::config::BoundaryRule;
use super::model::Dlcm;
use super::text::DlcmCache;
use crate::ChunkBatch;
use crate::family::inversion::Streams;
use crate::family::token_coding::CodedTokens;
use crate::family::token_draws::{log_probabilities, most_probable};
use crate::family::token_sampler::{Tempered, TokenModel};
use crate::family::{
    Coding, DrawKind, DrawRequest, Draws, Inversion, LanguageModel, Loss, Segmentation, Survey, TextFormat,
    TokenDecoding, Whole,
};
use crate::sampler::{Sampler, SpecialIds};

impl LanguageModel for Dlcm {
    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn special(&self) -> SpecialIds {
        self.text.special
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Exact
    }

    fn set_recompute(&mut self, recompute: bool) {
        self.recompute(recompute);
    }

    /// Cross-entropy, nats, with the boundaries that use has: what is comparable with other families.
    fn loss(&self, batch: &ChunkBatch, _noise: &Noise<'_>) -> Result<Loss> {
        let sum = self.cross_entropy(&self.hidden(batch)?, batch)?;
        Ok(Loss { sum, targets: batch.sources.len(), parts: Vec::new() })
    }

    /// Also without an auxiliary loss: the realised ratio counts the concepts of all processes.
    fn surveys(&self) -> bool {
        self.boundaries.by != BoundaryRule::Every
    }

    fn survey(&self, batch: &ChunkBatch, noise: &Noise<'_>) -> Result<Survey> {
        self.choose(batch, noise)
    }

    fn surveyed_loss(
        &self,
        batch: &ChunkBatch,
        noise: &Noise<'_>,
        of: Whole,
    ) -> Result<(Loss, Option<Survey>)> {
        let (loss, chosen) = self.training_loss(batch, noise, of)?;
        Ok((loss, Some(chosen)))
    }

    fn draw(&self, batch: &ChunkBatch, request: &DrawRequest<'_>) -> Result<Draws> {
        self.draw_positions(batch, request.seed, request.purpose)
    }

    fn sampler(&self) -> Box<dyn Sampler + '_> {
        Box::new(Tempered { model: self, decoding: TokenDecoding::default() })
    }

    fn tempered_sampler(&self, decoding: TokenDecoding) -> Option<Box<dyn Sampler + '_>> {
        Some(Box::new(Tempered { model: self, decoding }))
    }

    fn coding(&self) -> Option<Box<dyn Coding + '_>> {
        Some(Box::new(CodedTokens(self)))
    }

    fn log_probabilities(&self, batch: &ChunkBatch) -> Result<Option<Vec<f64>>> {
        let hidden = batch.pick(&self.pass(batch, Decisions::Settled)?.hidden)?.detach();
        let targets: Vec<u32> = batch.targets()?.flatten_all()?.to_vec1()?;
        log_probabilities(&hidden, &self.output, &targets).map(Some)
    }

    fn most_probable(&self, batch: &ChunkBatch) -> Result<Option<Vec<u32>>> {
        let hidden = batch.pick(&self.pass(batch, Decisions::Settled)?.hidden)?.detach();
        most_probable(&hidden, &self.output).map(Some)
    }

    fn segmentation(&self, batch: &ChunkBatch) -> Result<Option<Segmentation>> {
        let Boundaries { probability, opens } = self.settled_boundaries(batch)?;
        let host = |p: Tensor| p.flatten_all()?.to_dtype(DType::F32)?.to_vec1();
        Ok(Some(Segmentation { opens, probabilities: probability.map(host).transpose()? }))
    }

    /// Those of the encoder.
    fn inversion(&self) -> Option<Box<dyn Inversion + '_>> {
        Streams::over(&self.encoder, &self.embedding, None, 1, &self.text)
    }

    /// Those of the encoder, which leads to the boundaries.
    fn hidden_streams(&self, batch: &ChunkBatch) -> Result<Option<Vec<Tensor>>> {
        let inputs = self.embed(&batch.ids)?.detach();
        self.encoder.residual_streams(&inputs, &self.encoder.rows(batch)?).map(Some)
    }
}

impl TokenModel for Dlcm {
    type Cache = DlcmCache;

    fn text(&self) -> &TextFormat {
        &self.text
    }

    fn output(&self) -> &Parameter {
        &self.output
    }

    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut DlcmCache]) -> Result<Tensor> {
        Ok(self.read_on(tokens, lengths, caches)?.0)
    }
}
