//! A CALM as a language model.

use calm_nn::device::upload;
use calm_nn::{Noise, ParamStore};
use candle_core::{DType, Result, Tensor, bail};

use super::model::DRAWN;
use super::sampler::Sampled;
use super::{Calm, likelihood};
use crate::ChunkBatch;
use crate::family::filler;
use crate::family::inversion::{Latents, Streams};
use crate::family::{
    Coding, Decode, DecodedDraws, DrawKind, DrawRequest, Draws, Inversion, LanguageModel, Loss, LossPart,
    TokenDecoding,
};
use crate::sampler::{Sampler, SpecialIds};

impl LanguageModel for Calm {
    fn store(&self) -> &ParamStore {
        &self.store
    }

    fn chunk_size(&self) -> usize {
        self.autoencoder.chunk_size()
    }

    fn special(&self) -> SpecialIds {
        self.text.special
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Sampled
    }

    fn set_recompute(&mut self, recompute: bool) {
        self.backbone.set_recompute(recompute);
    }

    fn loss(&self, batch: &ChunkBatch, noise: &Noise<'_>) -> Result<Loss> {
        let hidden = self.hidden(batch)?;
        let (targets, rows) = (batch.targets()?, batch.sources.len());
        let own = || self.head.loss(&hidden, &self.posterior(&targets)?, noise)?.sum_all();
        let Some(config) = self.likelihood else {
            return Ok(Loss { sum: own()?, targets: rows, parts: Vec::new() });
        };
        let samples = self.head.sample(&hidden, config.samples, noise)?;
        let nats = likelihood::nats(&self.decoder, &samples, &hidden, &targets, self.text.special.eos)?;
        let mut parts = vec![LossPart { name: "likelihood", sum: nats.detach(), count: rows }];
        let mut sum = (nats * config.weight)?;
        if config.head_weight > 0.0 {
            let own = own()?;
            parts.push(LossPart { name: "head", sum: own.detach(), count: rows });
            sum = (sum + (own.to_dtype(DType::F32)? * config.head_weight)?)?;
        }
        Ok(Loss { sum, targets: rows, parts })
    }

    fn draw(&self, batch: &ChunkBatch, request: &DrawRequest<'_>) -> Result<Draws> {
        let DrawRequest { samples, steps, seed, purpose } = *request;
        self.draw_positions(batch, samples, steps, seed, purpose).map(Draws::Sampled)
    }

    fn sampler(&self) -> Box<dyn Sampler + '_> {
        Box::new(Sampled { model: self, decoding: None })
    }

    fn tempered_sampler(&self, decoding: TokenDecoding) -> Option<Box<dyn Sampler + '_>> {
        (self.decode == Decode::Sample)
            .then(|| Box::new(Sampled { model: self, decoding: Some(decoding) }) as Box<dyn Sampler>)
    }

    /// Of a decoder that is drawn from, behind a head whose draws are the same to the bit everywhere.
    fn coding(&self) -> Option<Box<dyn Coding + '_>> {
        let coded =
            self.decode == Decode::Sample && self.head.is_fixed() && !self.backbone().reads_input_whole();
        coded.then(|| Box::new(self) as Box<dyn Coding>)
    }

    /// Noise stream `head` of the purpose, step 0.
    fn decoded_log_probabilities(
        &self,
        batch: &ChunkBatch,
        request: &DrawRequest<'_>,
    ) -> Result<Option<DecodedDraws>> {
        let ids: Vec<u32> = batch.targets()?.flatten_all()?.to_vec1()?;
        let length = |chunk: &[u32]| filler::length(chunk, self.text.special.eos);
        let tokens: Vec<usize> = ids.chunks(self.chunk_size()).map(length).collect();
        self.decoded_beginnings(batch, request, &tokens)
    }

    fn decoded_beginnings(
        &self,
        batch: &ChunkBatch,
        request: &DrawRequest<'_>,
        tokens: &[usize],
    ) -> Result<Option<DecodedDraws>> {
        let DrawRequest { samples, seed, purpose, .. } = *request;
        let hidden = self.hidden(batch)?.detach();
        let targets = batch.targets()?;
        let (rows, k) = targets.dims2()?;
        if tokens.len() != rows || tokens.iter().any(|n| *n > k) {
            bail!("beginnings of {} chunks, {rows} of {k} tokens are predicted", tokens.len())
        }
        let mut out = DecodedDraws { log_p: Vec::new(), tokens: tokens.to_vec(), samples };
        let block = (DRAWN / samples.max(1)).max(1);
        for at in (0..rows).step_by(block) {
            let n = block.min(rows - at);
            let noise = Noise::Keyed { seed, purpose, step: 0, rows: &batch.rows[at..at + n] };
            let hidden = hidden.narrow(0, at, n)?.contiguous()?;
            let latents = self.head.sample(&hidden, samples, &noise)?.detach();
            // Many samples of one row are decoded in pieces too.
            let piece = (DRAWN / n).max(1);
            let mut log_p = vec![0.0; n * samples];
            for from in (0..samples).step_by(piece) {
                let some = piece.min(samples - from);
                let chunks = targets.narrow(0, at, n)?.unsqueeze(1)?.repeat((1, some, 1))?;
                let decoded = self.decoder.hidden(&latents.narrow(1, from, some)?.contiguous()?, &hidden)?;
                let (nats, _) = self.decoder.decoder.score(&decoded, &chunks.reshape((n * some, k))?)?;
                let nats: Vec<f32> = nats.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
                for (i, nats) in nats.chunks_exact(k).enumerate() {
                    let (row, sample) = (i / some, from + i % some);
                    let up_to_end = &nats[..out.tokens[at + row]];
                    log_p[row * samples + sample] = -up_to_end.iter().map(|x| f64::from(*x)).sum::<f64>();
                }
            }
            out.log_p.extend(log_p);
        }
        Ok(Some(out))
    }

    fn inversion(&self) -> Option<Box<dyn Inversion + '_>> {
        Streams::over(&self.backbone, &self.embedding, Some(&self.input), self.chunk_size(), &self.text)
    }

    fn latent_inversion(&self) -> Option<Box<dyn Inversion + '_>> {
        Some(Box::new(Latents(&self.autoencoder)))
    }

    fn hidden_streams(&self, batch: &ChunkBatch) -> Result<Option<Vec<Tensor>>> {
        let inputs = self.embed(&batch.ids)?.detach();
        self.backbone.residual_streams(&inputs, &self.backbone.rows(batch)?).map(Some)
    }

    fn attention_weights(&self, batch: &ChunkBatch, turned: bool) -> Result<Option<Vec<Tensor>>> {
        let inputs = self.embed(&batch.ids)?.detach();
        self.backbone.attention_weights(&inputs, batch, turned).map(Some)
    }

    fn condition_check(&self, batch: &ChunkBatch, noise: &Noise<'_>) -> Result<Option<(f64, f64)>> {
        let hidden = self.hidden(batch)?.detach();
        let posterior = self.posterior(&batch.targets()?)?;
        let rows = batch.sources.len();
        let shift = rows / 2;
        let index: Vec<u32> = (0..rows).map(|i| ((i + shift) % rows) as u32).collect();
        let exchanged = hidden.index_select(&upload(&index, rows, batch.destination())?, 0)?;
        let mean = |h: &Tensor| -> Result<f64> {
            self.head.loss(h, &posterior, noise)?.to_dtype(DType::F64)?.mean_all()?.to_scalar()
        };
        Ok(Some((mean(&hidden)?, mean(&exchanged)?)))
    }
}
