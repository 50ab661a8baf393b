//! One process.

use crate::collective::{Collective, Patience};
use crate::error::{Error, Result};
use crate::world::World;

/// The only process: everything is there already.
#[derive(Clone, Copy, Debug)]
pub struct Alone;

impl Collective for Alone {
    fn world(&self) -> &World {
        const { &World::ALONE }
    }

    fn hosts(&self) -> &[String] {
        &[]
    }

    fn sum(&self, _values: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn all_to_all(&self, values: &[f32]) -> Result<Vec<f32>> {
        Ok(values.to_vec())
    }

    fn all_gather(&self, own: &[f32]) -> Result<Vec<f32>> {
        Ok(own.to_vec())
    }

    fn gather(&self, own: &[u8], _what: &str, _patience: Patience) -> Result<Vec<Vec<u8>>> {
        Ok(vec![own.to_vec()])
    }

    fn finished_step(&self, _step: u64) {}

    fn failed(&self, _error: &Error) -> bool {
        true
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }

    fn leave(&self) -> Result<()> {
        Ok(())
    }
}
