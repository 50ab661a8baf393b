//! Where a model's random numbers come from: a counter-based stream, or tensors given by a test.
//!
//! A keyed source is stateless: a number depends only on the seed, the name of its stream, the step, the
//! row it belongs to (example and position), the sample and the dimension. Splitting a batch, changing the
//! number of threads or recomputing an activation therefore changes nothing.

use std::collections::HashMap;

use calm_kernels::{Destination, DropoutMask, NoiseKey, RowId, TargetNoise, noise_normal, noise_uniform};
use candle_core::{Result, Tensor, bail};

/// A source of noise for R rows.
#[derive(Clone, Copy)]
pub enum Noise<'a> {
    /// Drawn from Philox streams.
    Keyed {
        /// Seed of the run.
        seed: u64,
        /// Purpose, put in front of every stream name (`train`, `validation`, `score`, ...).
        purpose: &'a str,
        /// Step of the run.
        step: u32,
        /// The rows, in the order of the tensors' first dimension.
        rows: &'a [RowId],
    },
    /// Tensors by stream name, in the shape the stream is asked for.
    Given(&'a HashMap<String, Tensor>),
}

impl<'a> Noise<'a> {
    /// The same source for other rows; tensors that are given stay what they are.
    pub fn with_rows<'b>(&self, rows: &'b [RowId]) -> Noise<'b>
    where
        'a: 'b,
    {
        match *self {
            Self::Keyed { seed, purpose, step, .. } => Noise::Keyed { seed, purpose, step, rows },
            Self::Given(tensors) => Noise::Given(tensors),
        }
    }

    /// The key of one stream.
    fn key(seed: u64, purpose: &str, stream: &str, step: u32) -> NoiseKey {
        NoiseKey::new(seed, &format!("{purpose}/{stream}"), step)
    }

    fn given(tensors: &HashMap<String, Tensor>, stream: &str, shape: &[usize]) -> Result<Tensor> {
        match tensors.get(stream) {
            Some(t) if t.dims() == shape => Ok(t.clone()),
            Some(t) => bail!("noise stream {stream}: given shape {:?}, needed {shape:?}", t.dims()),
            None => bail!("noise stream {stream} was not given"),
        }
    }

    /// Uniform numbers in [0, 1), shape `[R, samples, dims]`, on a device; in a context (that of the store, or of a
    /// parameter) the addresses of the rows are copied to a GPU once.
    ///
    /// # Errors
    /// A given stream that is missing or of another shape; what a GPU answers.
    pub fn uniform(&self, stream: &str, samples: usize, dims: usize, to: &dyn Destination) -> Result<Tensor> {
        match *self {
            Self::Keyed { seed, purpose, step, rows } => {
                noise_uniform(Self::key(seed, purpose, stream, step), rows, samples, dims, to)
            }
            Self::Given(t) => {
                let rows = t.get(stream).map_or(0, |t| t.dims().first().copied().unwrap_or(0));
                Self::given(t, stream, &[rows, samples, dims])
            }
        }
    }

    /// Standard normal numbers, as [`Self::uniform`].
    ///
    /// # Errors
    /// As [`Self::uniform`].
    pub fn normal(&self, stream: &str, samples: usize, dims: usize, to: &dyn Destination) -> Result<Tensor> {
        match *self {
            Self::Keyed { seed, purpose, step, rows } => {
                noise_normal(Self::key(seed, purpose, stream, step), rows, samples, dims, to)
            }
            Self::Given(_) => self.uniform(stream, samples, dims, to),
        }
    }

    /// The M target draws of the energy score; a keyed source leaves the drawing to the operator.
    ///
    /// # Errors
    /// A given stream that is missing.
    pub fn targets(&self, stream: &str, samples: usize) -> Result<TargetNoise<'a>> {
        match *self {
            Self::Keyed { seed, purpose, step, rows } => {
                Ok(TargetNoise::Draw { key: Self::key(seed, purpose, stream, step), rows, samples })
            }
            Self::Given(tensors) => match tensors.get(stream) {
                Some(t) => Ok(TargetNoise::Given(t)),
                None => bail!("noise stream {stream} was not given"),
            },
        }
    }

    /// A dropout mask over `[R, D]`; a given one holds 0 or 1/(1-p).
    ///
    /// # Errors
    /// A given stream that is missing.
    pub fn dropout(&self, stream: &str) -> Result<DropoutMask<'a>> {
        match *self {
            Self::Keyed { seed, purpose, step, rows } => {
                Ok(DropoutMask::Draw { key: Self::key(seed, purpose, stream, step), rows })
            }
            Self::Given(tensors) => match tensors.get(stream) {
                Some(t) => Ok(DropoutMask::Given(t)),
                None => bail!("noise stream {stream} was not given"),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn numbers_belong_to_their_row_and_not_to_the_batch_split() {
        let rows: Vec<RowId> = (0..6).map(|i| RowId { example: i / 3, position: i % 3 }).collect();
        let draw = |rows: &[RowId]| -> Vec<f32> {
            let n = Noise::Keyed { seed: 7, purpose: "train", step: 3, rows };
            n.normal("x", 2, 5, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let whole = draw(&rows);
        let parts = [draw(&rows[..2]), draw(&rows[2..])].concat();
        assert_eq!(whole, parts);
    }

    #[test]
    fn streams_steps_and_purposes_differ() {
        let rows = [RowId { example: 0, position: 0 }];
        let one = |purpose: &str, stream: &str, step| -> Vec<f32> {
            let n = Noise::Keyed { seed: 7, purpose, step, rows: &rows };
            n.uniform(stream, 1, 8, &Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let base = one("train", "a", 0);
        assert_ne!(base, one("train", "b", 0));
        assert_ne!(base, one("train", "a", 1));
        assert_ne!(base, one("eval", "a", 0));
        assert_eq!(base, one("train", "a", 0));
    }

    #[test]
    fn a_missing_or_misshapen_given_stream_is_an_error() {
        let mut map = HashMap::new();
        map.insert("x".to_owned(), Tensor::zeros((2, 1, 3), candle_core::DType::F32, &Device::Cpu).unwrap());
        let n = Noise::Given(&map);
        assert!(n.uniform("x", 1, 3, &Device::Cpu).is_ok());
        assert!(n.uniform("x", 1, 4, &Device::Cpu).is_err());
        assert!(n.uniform("y", 1, 3, &Device::Cpu).is_err());
    }
}
