//! Where something is measured, and in which number format.

use calm_kernels::{Context, Operand};
use calm_nn::{ParamStore, Precision};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::cell::RefCell;

/// A device and the format of its activations.
#[derive(Clone, Debug)]
pub struct Place {
    /// Where.
    pub device: Device,
    /// In which format; on the CPU f32.
    pub precision: Precision,
}

impl Place {
    /// A device in a format.
    ///
    /// # Errors
    /// A format that the device cannot compute in.
    pub fn new(device: &Device, precision: Precision) -> Result<Self> {
        precision.check(device)?;
        Ok(Self { device: device.clone(), precision })
    }

    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, precision: Precision::F32 }
    }

    /// Format of activations.
    pub fn dtype(&self) -> DType {
        self.precision.compute()
    }

    /// The format's name.
    pub fn format(&self) -> &'static str {
        match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        }
    }

    /// Waits for a GPU.
    pub(crate) fn wait(&self) -> Result<()> {
        self.device.synchronize()
    }

    /// Parameters of a model.
    pub(crate) fn store(&self, seed: u64) -> Result<ParamStore> {
        ParamStore::of_precision(&self.device, self.precision, seed)
    }

    /// A constant in the format of activations, made on the CPU.
    pub(crate) fn tensor(&self, values: &Tensor) -> Result<Tensor> {
        values.to_dtype(self.dtype())?.to_device(&self.device)
    }

    /// An empty set of parameters.
    pub(crate) fn parameters(&self) -> Parameters<'_> {
        Parameters { place: self, context: Context::new(&self.device), masters: RefCell::default() }
    }
}

/// Parameters that share a context, as those of a model do.
pub(crate) struct Parameters<'a> {
    place: &'a Place,
    pub(crate) context: Context,
    masters: RefCell<Vec<Tensor>>,
}

impl Parameters<'_> {
    /// A parameter: f32 for operators, and for compositions in the format of activations.
    pub(crate) fn add(&self, values: &Tensor) -> Result<Parameter> {
        let place = self.place;
        let master = Var::from_tensor(&values.to_device(&place.device)?)?;
        let plain = match place.precision {
            Precision::F32 => master.clone(),
            Precision::Bf16 => Var::from_tensor(&place.tensor(values)?)?,
        };
        let mut masters = self.masters.borrow_mut();
        masters.push(master.as_tensor().clone());
        self.context.keep_copies(&*masters, place.dtype())?;
        Ok(Parameter { master: self.context.parameter(master.into_inner())?, plain })
    }
}

/// The first GPU in both formats, if this build can use one and there is one. CALM_TEST_GPU=1 makes its absence an
/// error.
#[cfg(test)]
pub(crate) fn gpu_places() -> Vec<Place> {
    use calm_kernels::device::{self, Choice};
    match device::gpus() {
        Ok(_) => {
            let gpu = device::open(Choice::Cuda(0)).unwrap();
            [Precision::F32, Precision::Bf16].map(|p| Place::new(&gpu, p).unwrap()).to_vec()
        }
        Err(reason) => {
            assert!(std::env::var_os("CALM_TEST_GPU").is_none(), "{reason}");
            println!("skipped: measurements on a GPU ({reason}) (needs a GPU)");
            Vec::new()
        }
    }
}

/// A parameter as operators and as compositions take it.
#[derive(Clone, Debug)]
pub(crate) struct Parameter {
    /// With a copy in bf16 where activations are in bf16.
    master: calm_kernels::Parameter,
    /// In the format of activations.
    pub(crate) plain: Var,
}

impl std::ops::Deref for Parameter {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.master
    }
}

impl Operand for Parameter {
    fn tensor(&self) -> &Tensor {
        &self.master
    }

    fn context(&self) -> Option<&Context> {
        Some(self.master.context())
    }
}
