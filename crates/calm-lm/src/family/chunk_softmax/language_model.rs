//! The network as a language model.

use calm_nn::{Noise, ParamStore};
use candle_core::{Result, Tensor};

use super::ChunkSoftmax;
use super::draws::exact;
use super::sampler::Tempered;
use crate::ChunkBatch;
use crate::family::inversion::Streams;
use crate::family::token_draws::most_probable;
use crate::family::{Coding, DrawKind, DrawRequest, Draws, Inversion, LanguageModel, Loss, TokenDecoding};
use crate::sampler::{Sampler, SpecialIds};

impl LanguageModel for ChunkSoftmax {
    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    fn special(&self) -> SpecialIds {
        self.text.special
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Exact
    }

    fn set_recompute(&mut self, recompute: bool) {
        self.backbone.set_recompute(recompute);
        self.decoder.set_recompute(recompute);
    }

    /// Cross-entropy, nats a token.
    fn loss(&self, batch: &ChunkBatch, _noise: &Noise<'_>) -> Result<Loss> {
        let sum = self.cross_entropy(&self.hidden(batch)?, &batch.targets()?)?;
        Ok(Loss { sum, targets: batch.sources.len(), parts: Vec::new() })
    }

    fn draw(&self, batch: &ChunkBatch, request: &DrawRequest<'_>) -> Result<Draws> {
        exact(self, batch, request.seed, request.purpose).map(Draws::Exact)
    }

    fn sampler(&self) -> Box<dyn Sampler + '_> {
        Box::new(Tempered { model: self, decoding: TokenDecoding::default() })
    }

    fn tempered_sampler(&self, decoding: TokenDecoding) -> Option<Box<dyn Sampler + '_>> {
        Some(Box::new(Tempered { model: self, decoding }))
    }

    fn coding(&self) -> Option<Box<dyn Coding + '_>> {
        (!self.backbone.reads_input_whole()).then(|| Box::new(self) as Box<dyn Coding + '_>)
    }

    fn log_probabilities(&self, batch: &ChunkBatch) -> Result<Option<Vec<f64>>> {
        self.log_p(&self.hidden(batch)?.detach(), &batch.targets()?).map(Some)
    }

    fn inversion(&self) -> Option<Box<dyn Inversion + '_>> {
        Streams::over(&self.backbone, &self.embedding, Some(&self.input), self.chunk_size, &self.text)
    }

    fn most_probable(&self, batch: &ChunkBatch) -> Result<Option<Vec<u32>>> {
        let states = self.decoder.teacher_forced(&self.hidden(batch)?.detach(), &batch.targets()?)?.detach();
        most_probable(&states.flatten_to(1)?, &self.output).map(Some)
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
