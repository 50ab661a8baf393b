//! What every layer of a model computes from the same index tensor (segments, positions), computed once.

use candle_core::{Result, Tensor, TensorId};
use std::sync::{Arc, Mutex, PoisonError};

/// Results that stay; new ones take the place of those that were used longest ago.
const ENTRIES: usize = 4;

/// The results for the last few tensors, each with the other arguments `K` that it depends on.
pub(super) struct PerTensor<K, V>(Mutex<Vec<Entry<K, V>>>);

struct Entry<K, V> {
    tensor: TensorId,
    arguments: K,
    value: Arc<V>,
}

impl<K, V> Default for PerTensor<K, V> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<K: PartialEq, V> PerTensor<K, V> {
    /// The result for `tensor`, by `make` where it is not there. The elements of a tensor must not change; those
    /// of a variable may, so its results do not stay.
    pub(super) fn get(
        &self,
        tensor: &Tensor,
        arguments: K,
        make: impl FnOnce() -> Result<V>,
    ) -> Result<Arc<V>> {
        if tensor.is_variable() {
            return make().map(Arc::new);
        }
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |e: &Entry<K, V>| e.tensor == tensor.id() && e.arguments == arguments;
        let entry = match entries.iter().position(same) {
            Some(at) => entries.remove(at),
            None => Entry { tensor: tensor.id(), arguments, value: Arc::new(make()?) },
        };
        let value = entry.value.clone();
        entries.truncate(ENTRIES - 1);
        entries.insert(0, entry);
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device, Var};

    #[test]
    fn results_of_the_last_tensors_stay_and_those_of_variables_do_not() {
        let kept = PerTensor::<usize, usize>::default();
        let zeros = || Tensor::zeros(1, DType::U32, &Device::Cpu).unwrap();
        let tensors: Vec<Tensor> = (0..=ENTRIES).map(|_| zeros()).collect();
        let get = |t: &Tensor, arguments, value| *kept.get(t, arguments, || Ok(value)).unwrap();
        assert_eq!((get(&tensors[0], 7, 1), get(&tensors[0], 7, 2), get(&tensors[0], 8, 3)), (1, 1, 3));
        for (i, tensor) in tensors.iter().enumerate().skip(1) {
            assert_eq!(get(tensor, 7, 10 * i), 10 * i);
        }
        assert_eq!(get(&tensors[0], 7, 4), 4);
        assert_eq!(get(&tensors[ENTRIES], 7, 5), 10 * ENTRIES);
        let var = Var::from_tensor(&tensors[0]).unwrap();
        assert_eq!((get(&var, 7, 1), get(&var, 7, 2)), (1, 2));
    }
}
