//! What a run's folder holds, loaded when it is first asked for.

use std::sync::{Arc, Mutex, PoisonError};

use calm_data::Tokenizer;
use calm_lm::LanguageModel;
use calm_run::Run;
use calm_run::checkpoint::Which;
use calm_train::models::{StageOne, load_autoencoder, load_lm};
use candle_core::Device;

use crate::error::Failure;

/// Something that is made once.
struct Once<T: ?Sized>(Mutex<Option<Arc<T>>>);

impl<T: ?Sized> Default for Once<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: ?Sized> Once<T> {
    fn get(&self, make: impl FnOnce() -> Result<Arc<T>, Failure>) -> Result<Arc<T>, Failure> {
        // Who panicked while making it has made nothing.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*kept {
            Some(made) => Ok(made.clone()),
            None => Ok(kept.insert(make()?).clone()),
        }
    }
}

/// A run with its models.
pub struct Models {
    /// The run, as the device can compute it.
    pub run: Run,
    /// Where it is computed.
    pub device: Device,
    which: Which,
    tokenizer: Once<Tokenizer>,
    autoencoder: Once<StageOne>,
    lm: Once<dyn LanguageModel>,
}

impl Models {
    /// Of a run; nothing is loaded.
    pub fn new(run: &Run, which: Which, device: Device) -> Self {
        Self {
            run: run.on(&device),
            device,
            which,
            tokenizer: Once::default(),
            autoencoder: Once::default(),
            lm: Once::default(),
        }
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> Result<Arc<Tokenizer>, Failure> {
        self.tokenizer.get(|| Ok(Arc::new(self.run.tokenizer()?)))
    }

    /// Its autoencoder, of the checkpoint that was asked for; the one below the language model is always the best.
    pub fn autoencoder(&self) -> Result<Arc<StageOne>, Failure> {
        let tokenizer = self.tokenizer()?;
        self.autoencoder
            .get(|| Ok(Arc::new(load_autoencoder(&self.run, self.which, &tokenizer, &self.device)?.0)))
    }

    /// Its language model.
    pub fn lm(&self) -> Result<Arc<dyn LanguageModel>, Failure> {
        let tokenizer = self.tokenizer()?;
        self.lm.get(|| Ok(Arc::from(load_lm(&self.run, self.which, &tokenizer, &self.device)?)))
    }
}
