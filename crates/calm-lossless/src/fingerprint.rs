//! Which model: the settings, the vocabulary and every number of the weights.

use calm_data::Tokenizer;
use calm_lm::Coding;
use candle_core::DType;

use crate::container::{Model, VERSION};
use crate::error::{Error, Result};

/// The first half of a BLAKE3.
pub(crate) fn of(coding: &dyn Coding, tokenizer: &Tokenizer, settings: &str) -> Result<Model> {
    let mut hasher = blake3::Hasher::new();
    let mut text = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    text(&format!("calm-lossless {VERSION} {:?}", coding.format()));
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
