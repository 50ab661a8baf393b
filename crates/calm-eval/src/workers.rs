//! Who computes the batches of an evaluation: one process, or several that share them. Everything that is measured on held-out
//! batches goes through [`Workers::each`], so that nothing else here knows about processes.

use calm_data::Batch;
use candle_core::Result;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// One process or several that evaluate a model together.
pub trait Workers {
    /// What can go wrong: that of a batch, and between processes that of another one.
    type Error: From<candle_core::Error>;

    /// Has every batch measured somewhere, and gives what each says to `add` here, in the order of the batches: whoever
    /// measured it, the sums are those of one process, to the bit.
    ///
    /// # Errors
    /// Those of `measure`; a process that fails or does not come.
    fn each<R: Serialize + DeserializeOwned>(
        self,
        batches: impl Iterator<Item = Batch>,
        measure: impl FnMut(Batch) -> Result<R>,
        add: impl FnMut(R),
    ) -> std::result::Result<(), Self::Error>;
}

/// One process; it tells how many batches are done.
#[derive(Clone, Copy, Debug)]
pub struct Alone<P: FnMut(usize)>(pub P);

impl<P: FnMut(usize)> Workers for Alone<P> {
    type Error = candle_core::Error;

    fn each<R>(
        mut self,
        batches: impl Iterator<Item = Batch>,
        mut measure: impl FnMut(Batch) -> Result<R>,
        mut add: impl FnMut(R),
    ) -> Result<()> {
        for (i, batch) in batches.enumerate() {
            add(measure(batch)?);
            (self.0)(i + 1);
        }
        Ok(())
    }
}

/// A number as it goes from one process to another: to the bit, and also where it is no number.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(from = "u64", into = "u64")]
pub struct Exact(pub f64);

impl From<u64> for Exact {
    fn from(bits: u64) -> Self {
        Self(f64::from_bits(bits))
    }
}

impl From<Exact> for u64 {
    fn from(number: Exact) -> Self {
        number.0.to_bits()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_comes_back_to_the_bit() {
        let numbers = [0.1, -0.0, 1e-310, f64::MAX, f64::NAN, f64::NEG_INFINITY].map(Exact);
        let text = serde_json::to_string(&numbers).unwrap();
        let back: [Exact; 6] = serde_json::from_str(&text).unwrap();
        assert_eq!(back.map(u64::from), numbers.map(u64::from));
    }
}
