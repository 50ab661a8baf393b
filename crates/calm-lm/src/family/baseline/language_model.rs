//! The baseline as a language model.

use calm_kernels as ops;
use calm_nn::{Noise, ParamStore, Parameter};
use candle_core::{Result, Tensor};

use super::Baseline;
use crate::family::inversion::Streams;
use crate::family::token_coding::CodedTokens;
use crate::family::token_draws::{log_probabilities, most_probable};
use crate::family::token_sampler::{Tempered, TokenModel};
use crate::family::{
    Coding, DrawKind, DrawRequest, Draws, Inversion, LanguageModel, Loss, TextFormat, TokenDecoding,
};
use crate::sampler::{Sampler, SpecialIds};
use crate::{Cache, ChunkBatch};

impl LanguageModel for Baseline {
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
        self.backbone.set_recompute(recompute);
    }

    /// Cross-entropy, nats.
    fn loss(&self, batch: &ChunkBatch, _noise: &Noise<'_>) -> Result<Loss> {
        let hidden = self.hidden(batch)?;
        let targets = batch.targets()?.flatten_all()?;
        let sum = ops::tied_cross_entropy(&hidden, &self.output, &targets, None)?;
        Ok(Loss { sum, targets: batch.sources.len(), parts: Vec::new() })
    }

    fn draw(&self, batch: &ChunkBatch, request: &DrawRequest<'_>) -> Result<Draws> {
        self.draw_positions(batch, request.seed, request.purpose).map(Draws::Exact)
    }

    fn sampler(&self) -> Box<dyn Sampler + '_> {
        Box::new(Tempered { model: self, decoding: TokenDecoding::default() })
    }

    fn tempered_sampler(&self, decoding: TokenDecoding) -> Option<Box<dyn Sampler + '_>> {
        Some(Box::new(Tempered { model: self, decoding }))
    }

    fn coding(&self) -> Option<Box<dyn Coding + '_>> {
        // What is coded is read token by token: there is no input that could be read whole.
        (!self.backbone.reads_input_whole()).then(|| Box::new(CodedTokens(self)) as Box<dyn Coding + '_>)
    }

    fn log_probabilities(&self, batch: &ChunkBatch) -> Result<Option<Vec<f64>>> {
        let hidden = self.hidden(batch)?.detach();
        let targets: Vec<u32> = batch.targets()?.flatten_all()?.to_vec1()?;
        log_probabilities(&hidden, &self.output, &targets).map(Some)
    }

    fn inversion(&self) -> Option<Box<dyn Inversion + '_>> {
        Streams::over(&self.backbone, &self.embedding, None, 1, &self.text)
    }

    fn most_probable(&self, batch: &ChunkBatch) -> Result<Option<Vec<u32>>> {
        most_probable(&self.hidden(batch)?.detach(), &self.output).map(Some)
    }

    fn hidden_streams(&self, batch: &ChunkBatch) -> Result<Option<Vec<Tensor>>> {
        let inputs = self.embed(&batch.ids)?.detach();
        self.backbone.residual_streams(&inputs, &self.backbone.rows(batch)?).map(Some)
    }

    fn attention_weights(&self, batch: &ChunkBatch, turned: bool) -> Result<Option<Vec<Tensor>>> {
        let inputs = self.embed(&batch.ids)?.detach();
        self.backbone.attention_weights(&inputs, batch, turned).map(Some)
    }
}

impl TokenModel for Baseline {
    type Cache = Cache;

    fn text(&self) -> &TextFormat {
        &self.text
    }

    fn output(&self) -> &Parameter {
        &self.output
    }

    fn reads_input_whole(&self) -> bool {
        self.backbone.reads_input_whole()
    }

    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]) -> Result<Tensor> {
        self.backbone.forward_side_by_side(&self.inputs(tokens)?, lengths, caches)
    }
}
