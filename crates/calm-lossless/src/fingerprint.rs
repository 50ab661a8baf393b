//! Which model: its text, the vocabulary, every number of the weights, and what it makes of them.

use calm_data::Tokenizer;
use calm_lm::Coding;
use calm_nn::RowId;
use candle_core::DType;

use crate::container::{Model, VERSION};
use crate::error::{Error, Result};

/// Chunks of the probe.
const CHUNKS: usize = 8;
/// Latent vectors that it draws for each.
const DRAWS: usize = 2;

/// What the model makes of a fixed text, to the bit. Of its settings, all that probabilities depend on shows here (how
/// weights are put together, angles, constants), and nothing that training alone reads: a key that is new in a later release
/// does not make it another model.
///
/// # Errors
/// Numbers of the model that are none.
pub(crate) fn probe(coding: &dyn Coding) -> Result<String> {
    let (k, vocab) = (coding.chunk_size(), coding.format().vocab_size.max(1) as u64);
    let chunks = coding.format().context.clamp(1, CHUNKS);
    let tokens: Vec<u32> =
        (0..(chunks * k) as u64).map(|i| ((i + 1).wrapping_mul(2_654_435_761) % vocab) as u32).collect();
    let hidden = coding.texts(1).read(&tokens, &[(0, chunks)])?;
    let hidden = hidden.squeeze(0)?.contiguous()?.detach();
    let mut hasher = blake3::Hasher::new();
    for number in hidden.flatten_all()?.to_vec1::<f32>()? {
        hasher.update(&number.to_le_bytes());
    }
    let rows: Vec<RowId> = (0..chunks as u32).map(|position| RowId { example: 0, position }).collect();
    let mut asked = coding.chunks(&hidden, &rows, if coding.is_drawn() { DRAWS } else { 0 })?;
    let mut before: Option<Vec<u32>> = None;
    for place in 0..k {
        for weight in asked.next(before.as_deref())?.into_iter().flatten() {
            hasher.update(&weight.to_le_bytes());
        }
        before = Some(tokens.iter().skip(place).step_by(k).copied().collect());
    }
    Ok(format!("{k} tokens a chunk, {}", hasher.finalize().to_hex()))
}

/// The first half of a BLAKE3.
pub(crate) fn of(coding: &dyn Coding, tokenizer: &Tokenizer, settings: &str) -> Result<Model> {
    let mut hasher = blake3::Hasher::new();
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    // Spelled out, so that a field that is added to these types does not make every model another one.
    let (format, special) = (coding.format(), coding.format().special);
    text(&format!(
        "calm-lossless {VERSION} TextFormat {{ vocab_size: {}, special: SpecialIds {{ bos: {}, eos: {}, pad: {} }}, \
         context: {}, bos_chunk: {} }}",
        format.vocab_size, special.bos, special.eos, special.pad, format.context, format.bos_chunk
    ));
    text(settings);
    text(&tokenizer.hash());
    for store in coding.stores() {
        for (name, param) in store.params() {
            let value = param.var.as_tensor();
            if value.dtype() != DType::F32 {
                return Err(Error::NotFixed);
            }
            hasher.update(format!("{name} {:?}", value.dims()).as_bytes());
            for number in value.flatten_all()?.to_vec1::<f32>()? {
                hasher.update(&number.to_le_bytes());
            }
        }
    }
    Ok(*hasher.finalize().as_bytes().first_chunk().unwrap_or(&[0; 16]))
}
