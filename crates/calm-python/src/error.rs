//! Errors of the other crates as one exception, with their remedy.

use calm_data::Error as DataError;
use calm_eval::generate::GenerateError;
use calm_eval::likelihood::LikelihoodError;
use calm_eval::prompts::Stopped;
use calm_run::Error as RunError;
use calm_stats::brier::BrierError;
use calm_stats::samples::SamplesError;
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyKeyboardInterrupt};
use pyo3::prelude::*;

create_exception!(
    calm_lm,
    CalmError,
    PyException,
    "What can go wrong: a message, and in `remedy` what to do about it (None where that is not known)."
);

/// What stopped some work, while the interpreter is not held.
pub enum Failure {
    /// A message and its remedy.
    Said(String, Option<String>),
    /// Somebody pressed Ctrl-C.
    Stopped,
}

impl Failure {
    /// A mistake with its remedy.
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Said(what.into(), Some(remedy.into()))
    }
}

/// From an error that knows its remedy, if there is one.
macro_rules! with_remedy {
    ($($error:ty),*) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::Said(error.to_string(), error.remedy().map(|remedy| remedy.to_string()))
            }
        })*
    };
}

with_remedy!(RunError, DataError, GenerateError, LikelihoodError, BrierError, SamplesError);

impl From<candle_core::Error> for Failure {
    fn from(error: candle_core::Error) -> Self {
        RunError::from(error).into()
    }
}

impl From<Stopped<Failure>> for Failure {
    fn from(stopped: Stopped<Failure>) -> Self {
        match stopped {
            Stopped::Caller(failure) => failure,
            Stopped::Model(error) => error.into(),
            Stopped::Prompt(number, error) => match error.into() {
                Self::Said(what, remedy) => Self::Said(format!("prompt {number}: {what}"), remedy),
                Self::Stopped => Self::Stopped,
            },
        }
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Stopped => PyKeyboardInterrupt::new_err(()),
            Failure::Said(what, remedy) => Python::attach(|py| {
                let text = match &remedy {
                    Some(remedy) => format!("{what}\nhint: {remedy}"),
                    None => what,
                };
                let error = CalmError::new_err(text);
                match error.value(py).setattr("remedy", remedy) {
                    Ok(()) => error,
                    Err(other) => other,
                }
            }),
        }
    }
}
