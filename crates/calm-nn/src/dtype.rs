//! One object decides which number format is used where.

use candle_core::{DType, Device, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number formats of a run: master weights and optimiser moments are always `f32`, reductions (norms,
/// losses, distances, softmax sums) are always `f32`; only the matrix products may be narrower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// Everything in 32 bits.
    #[default]
    F32,
    /// bf16 activations and matrix products (GPU only).
    Bf16,
}

impl Precision {
    /// Format of parameters, moments and gradients.
    pub fn master(self) -> DType {
        DType::F32
    }

    /// Format of activations and matrix products.
    pub fn compute(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }

    /// Format of every sum over more than a few terms.
    pub fn reductions(self) -> DType {
        DType::F32
    }

    /// Refuses combinations that a device cannot run.
    ///
    /// # Errors
    /// bf16 on the CPU.
    pub fn check(self, device: &Device) -> Result<()> {
        if self == Self::Bf16 && device.is_cpu() {
            bail!("precision bf16 needs a GPU; on the CPU use `precision: f32`")
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_is_refused_on_the_cpu_and_master_weights_stay_f32() {
        assert!(Precision::Bf16.check(&Device::Cpu).is_err());
        assert!(Precision::F32.check(&Device::Cpu).is_ok());
        assert_eq!(Precision::Bf16.master(), DType::F32);
        assert_eq!(Precision::Bf16.reductions(), DType::F32);
        assert_eq!(Precision::Bf16.compute(), DType::BF16);
    }
}
