//! Parameters: an ordered store of named variables, and the builder that models use to create them.
//!
//! A parameter's name is the one in published checkpoints; a tensor that appears there under two names has
//! one canonical name here and an *alias* that is accepted when reading and written when exporting.
//! Initial values depend only on the seed and the parameter's name, never on the order of creation.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use calm_kernels::{Context, NoiseKey, Parameter, RowId, philox};
use candle_core::{DType, Device, Result, Tensor, Var, bail};

use crate::dtype::Precision;

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// Normal with this standard deviation.
    Normal(f64),
    /// Normal with a standard deviation of 1/sqrt(size of the last dimension): what goes into a matrix.
    FanIn,
    /// Uniform in ±sqrt(6 / (fan_in + fan_out)) (Xavier/Glorot).
    Xavier,
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
    /// 1 on the diagonal of a square matrix, 0 elsewhere.
    Identity,
}

/// Factors of what the optimiser does to a matrix, by which a wide model trains as a narrow one does (Yang and others: "Tensor
/// programs V: tuning large neural networks via zero-shot hyperparameter transfer", 2022).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Of the learning rate, and so of the weight decay of a step.
    pub rate: f64,
    /// Of AdamW's ε.
    pub eps: f64,
}

impl Scale {
    /// As the settings say it.
    pub const ONE: Self = Self { rate: 1.0, eps: 1.0 };

    /// Of matrices that take `width` numbers, where the settings are those of a model in which they take `base`.
    pub fn of_width(width: usize, base: usize) -> Self {
        let narrow = base as f64 / width as f64;
        Self { rate: narrow, eps: narrow }
    }
}

/// One parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// The variable; layers hold [`Parameter`]s that share its storage.
    pub var: Var,
    /// What layers hold: the variable itself, or in a frozen store a constant on the same storage.
    value: Tensor,
    /// Whether weight decay applies (matrices yes; biases and norms no).
    pub decay: bool,
    /// A row that stays as it is (the PAD row of an embedding).
    pub frozen_row: Option<u32>,
    /// Factors of its learning rate and ε.
    pub scale: Scale,
}

#[derive(Debug)]
struct Inner {
    params: BTreeMap<String, Param>,
    aliases: BTreeMap<String, String>,
}

/// All parameters of one model, sorted by name, and what operators on them share. Cloning shares the variables.
#[derive(Clone, Debug)]
pub struct ParamStore {
    inner: Arc<Mutex<Inner>>,
    context: Context,
    dtype: DType,
    compute: DType,
    seed: u64,
    frozen: bool,
}

/// What [`ParamStore::load`] found wrong; empty when all fits.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LoadReport {
    /// Names the model has and the file does not.
    pub missing: Vec<String>,
    /// Names the file has and the model does not.
    pub unexpected: Vec<String>,
    /// `name: file shape, model shape`.
    pub misshapen: Vec<String>,
}

impl LoadReport {
    /// Whether everything fitted.
    pub fn is_clean(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.misshapen.is_empty()
    }
}

impl std::fmt::Display for LoadReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (what, names) in
            [("missing", &self.missing), ("unexpected", &self.unexpected), ("wrong shape", &self.misshapen)]
        {
            for n in names {
                writeln!(f, "  {what}: {n}")?;
            }
        }
        Ok(())
    }
}

impl ParamStore {
    /// An empty store whose initial values come from `seed`.
    pub fn new(device: &Device, dtype: DType, seed: u64) -> Self {
        let inner = Inner { params: BTreeMap::new(), aliases: BTreeMap::new() };
        let context = Context::new(device);
        Self { inner: Arc::new(Mutex::new(inner)), context, dtype, compute: dtype, seed, frozen: false }
    }

    /// As [`Self::new`], with parameters and activations in the formats of a precision. After the model is built,
    /// [`Self::prepare`] makes what the activations' format needs.
    ///
    /// # Errors
    /// A precision that the device cannot compute in.
    pub fn of_precision(device: &Device, precision: Precision, seed: u64) -> Result<Self> {
        precision.check(device)?;
        Ok(Self { compute: precision.compute(), ..Self::new(device, precision.master(), seed) })
    }

    /// A store whose parameters are constants to models that are built in it from now on: they can be loaded, and
    /// gradients flow through operators on them to other inputs, but none is computed for them.
    pub fn frozen(self) -> Self {
        Self { frozen: true, ..self }
    }

    /// Makes copies of all parameters in the format of the activations, if that is another. Loading and the
    /// optimiser keep them up to date.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn prepare(&self) -> Result<()> {
        let inner = self.lock();
        self.context.keep_copies(inner.params.values().map(|p| &p.value), self.compute)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        self.context.device()
    }

    /// What operators on the parameters share; uploads and noise that are made there go through its memory.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Number format of the parameters.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Number format of the activations.
    pub fn compute(&self) -> DType {
        self.compute
    }

    /// The root of the names.
    pub fn builder(&self) -> Builder {
        Builder { store: self.clone(), prefix: String::new(), scale: Scale::ONE }
    }

    /// Parameters in name order.
    pub fn params(&self) -> Vec<(String, Param)> {
        self.lock().params.iter().map(|(n, p)| (n.clone(), p.clone())).collect()
    }

    /// Alias -> canonical name.
    pub fn aliases(&self) -> Vec<(String, String)> {
        self.lock().aliases.iter().map(|(a, n)| (a.clone(), n.clone())).collect()
    }

    /// One parameter by its canonical name.
    pub fn get(&self, name: &str) -> Option<Param> {
        self.lock().params.get(name).cloned()
    }

    /// Number of scalars.
    pub fn element_count(&self) -> usize {
        self.lock().params.values().map(|p| p.var.elem_count()).sum()
    }

    /// Number of scalars whose name starts with `prefix`.
    pub fn element_count_of(&self, prefix: &str) -> usize {
        let inner = self.lock();
        inner.params.iter().filter(|(n, _)| n.starts_with(prefix)).map(|(_, p)| p.var.elem_count()).sum()
    }

    /// Copies `tensors` (canonical names or aliases) into the parameters. Nothing is changed unless
    /// everything fits; otherwise the report lists every problem.
    ///
    /// # Errors
    /// What a GPU answers. What does not fit is in the report.
    pub fn load(&self, tensors: &HashMap<String, Tensor>) -> Result<LoadReport> {
        let inner = self.lock();
        let mut report = LoadReport::default();
        let mut plan = Vec::new();
        for (name, param) in &inner.params {
            let aliases = inner.aliases.iter().filter(|(_, n)| *n == name).map(|(a, _)| a);
            match std::iter::once(name).chain(aliases).find_map(|n| tensors.get(n)) {
                None => report.missing.push(format!("{name} {:?}", param.var.dims())),
                Some(t) if t.dims() != param.var.dims() => report.misshapen.push(format!(
                    "{name}: file {:?}, model {:?}",
                    t.dims(),
                    param.var.dims()
                )),
                Some(t) => plan.push((param, t)),
            }
        }
        for name in tensors.keys() {
            if !inner.params.contains_key(name) && !inner.aliases.contains_key(name) {
                report.unexpected.push(name.clone());
            }
        }
        report.unexpected.sort();
        if report.is_clean() {
            for (param, t) in plan {
                param.var.set(&t.to_dtype(self.dtype)?.to_device(self.device())?.contiguous()?)?;
            }
            self.context.refresh_copies()?;
        }
        Ok(report)
    }

    /// A copy of all parameters by canonical name, on the CPU.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn snapshot(&self) -> Result<BTreeMap<String, Tensor>> {
        let copy = |p: &Param| match self.device() {
            Device::Cpu => p.var.as_tensor().copy(),
            _ => p.var.as_tensor().to_device(&Device::Cpu),
        };
        self.lock().params.iter().map(|(n, p)| Ok((n.clone(), copy(p)?.detach()))).collect()
    }

    fn register(
        &self,
        name: String,
        shape: &[usize],
        init: Init,
        decay: bool,
        frozen_row: Option<u32>,
        scale: Scale,
    ) -> Result<Parameter> {
        let mut inner = self.lock();
        if inner.params.contains_key(&name) {
            bail!("parameter {name} was created twice")
        }
        let var = self.initial(&name, shape, init, frozen_row)?;
        let value = if self.frozen { var.as_tensor().detach() } else { var.as_tensor().clone() };
        let parameter = self.context.parameter(value.clone())?;
        inner.params.insert(name, Param { var, value, decay, frozen_row, scale });
        Ok(parameter)
    }

    fn initial(&self, name: &str, shape: &[usize], init: Init, frozen_row: Option<u32>) -> Result<Var> {
        let count: usize = shape.iter().product();
        if count == 0 {
            bail!("parameter {name} {shape:?} would have no element")
        }
        let width = *shape.last().unwrap_or(&1);
        let mut values = match init {
            Init::Zeros => vec![0f32; count],
            Init::Ones => vec![1f32; count],
            Init::Identity => {
                if *shape != [width, width] {
                    bail!("parameter {name} {shape:?} is no square matrix: it cannot begin as an identity")
                }
                (0..count).map(|i| if i % (width + 1) == 0 { 1f32 } else { 0f32 }).collect()
            }
            Init::Normal(_) | Init::FanIn | Init::Xavier => self.draw(name, shape, width, init),
        };
        if let Some(row) = frozen_row {
            if row as usize >= count / width {
                bail!("parameter {name} {shape:?} has no row {row} to freeze")
            }
            values[row as usize * width..(row as usize + 1) * width].fill(0.0);
        }
        let values = Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(self.dtype)?;
        Var::from_tensor(&values.to_device(self.device())?)
    }

    fn draw(&self, name: &str, shape: &[usize], width: usize, init: Init) -> Vec<f32> {
        let key = NoiseKey::new(self.seed, &format!("init/{name}"), 0);
        let count: usize = shape.iter().product();
        // Rows of at most 64 Ki numbers: the block counter of a stream has 16 bits.
        let piece = width.min(1 << 16);
        let rows: Vec<RowId> =
            (0..count.div_ceil(piece)).map(|i| RowId { example: i as u32, position: 0 }).collect();
        let mut values = match init {
            Init::Xavier => {
                let bound = (6.0 / (width + count / width) as f64).sqrt() as f32;
                let mut v = philox::uniform(key, &rows, 1, piece);
                v.iter_mut().for_each(|x| *x = (2.0 * *x - 1.0) * bound);
                v
            }
            Init::Normal(std) => scaled(philox::normal(key, &rows, 1, piece), std),
            Init::FanIn => scaled(philox::normal(key, &rows, 1, piece), (width as f64).sqrt().recip()),
            Init::Zeros | Init::Ones | Init::Identity => Vec::new(),
        };
        values.truncate(count);
        values
    }
}

fn scaled(mut values: Vec<f32>, by: f64) -> Vec<f32> {
    values.iter_mut().for_each(|x| *x *= by as f32);
    values
}

/// Creates parameters under a name prefix.
#[derive(Clone, Debug)]
pub struct Builder {
    store: ParamStore,
    prefix: String,
    scale: Scale,
}

impl Builder {
    /// The same store one level down: `a` -> `a.name`.
    pub fn under(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.path(name), ..self.clone() }
    }

    /// The same, whose weights ([`Builder::weight`]) the optimiser treats by these factors. Tables and what takes no weight decay
    /// are not scaled.
    pub fn scaled(&self, scale: Scale) -> Self {
        Self { scale, ..self.clone() }
    }

    fn path(&self, name: impl std::fmt::Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }

    /// The store of the parameters.
    pub fn store(&self) -> &ParamStore {
        &self.store
    }

    /// Where the parameters live.
    pub fn device(&self) -> &Device {
        self.store.device()
    }

    /// What operators on the parameters share.
    pub fn context(&self) -> &Context {
        self.store.context()
    }

    /// Number format of the parameters.
    pub fn dtype(&self) -> DType {
        self.store.dtype()
    }

    /// Number format of the activations.
    pub fn compute(&self) -> DType {
        self.store.compute()
    }

    /// A parameter with weight decay.
    ///
    /// # Errors
    /// A name that is taken, a shape without elements; no memory left on a GPU.
    pub fn weight(&self, name: &str, shape: &[usize], init: Init) -> Result<Parameter> {
        self.store.register(self.path(name), shape, init, true, None, self.scale)
    }

    /// A parameter without weight decay (biases, norms).
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn plain(&self, name: &str, shape: &[usize], init: Init) -> Result<Parameter> {
        self.store.register(self.path(name), shape, init, false, None, Scale::ONE)
    }

    /// An embedding table `[V, D]`; the frozen row starts at zero.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn table(
        &self,
        name: &str,
        shape: [usize; 2],
        init: Init,
        frozen_row: Option<u32>,
    ) -> Result<Parameter> {
        self.store.register(self.path(name), &shape, init, true, frozen_row, Scale::ONE)
    }

    /// Declares `alias.*` as another name of every parameter `name.*` created so far (both relative to this
    /// prefix).
    pub fn alias_all(&self, alias: &str, name: &str) {
        let (alias, name) = (self.path(alias), self.path(name));
        let mut inner = self.store.lock();
        let under = format!("{name}.");
        let found: Vec<_> = inner
            .params
            .keys()
            .filter_map(|n| Some((format!("{alias}.{}", n.strip_prefix(&under)?), n.clone())))
            .collect();
        inner.aliases.extend(found);
    }

    /// Declares that `alias` (a full name) is the same tensor as `name` (relative to this prefix).
    pub fn alias(&self, alias: &str, name: &str) {
        let name = self.path(name);
        self.store.lock().aliases.insert(alias.to_owned(), name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> ParamStore {
        ParamStore::new(&Device::Cpu, DType::F32, 11)
    }

    #[test]
    fn initial_values_depend_on_the_name_and_not_on_the_order() {
        let (a, b) = (store(), store());
        a.builder().weight("x", &[3, 4], Init::Normal(0.02)).unwrap();
        a.builder().under("m").weight("y", &[5], Init::Normal(0.02)).unwrap();
        b.builder().under("m").weight("y", &[5], Init::Normal(0.02)).unwrap();
        b.builder().weight("x", &[3, 4], Init::Normal(0.02)).unwrap();
        let values =
            |s: &ParamStore, n: &str| s.get(n).unwrap().var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&a, "x"), values(&b, "x"));
        assert_eq!(values(&a, "m.y"), values(&b, "m.y"));
        assert_eq!(a.params().iter().map(|p| p.0.clone()).collect::<Vec<_>>(), ["m.y", "x"]);
    }

    #[test]
    fn an_identity_is_square_and_gives_what_it_takes() {
        let s = store();
        let t = s.builder().weight("w", &[3, 3], Init::Identity).unwrap();
        assert_eq!(t.to_vec2::<f32>().unwrap(), [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]);
        for wrong in [&[2, 3][..], &[4], &[2, 2, 2]] {
            let e = s.builder().weight("no", wrong, Init::Identity).unwrap_err().to_string();
            assert!(e.contains("no") && e.contains("square"), "{e}");
        }
    }

    #[test]
    fn a_scale_is_that_of_weights_alone() {
        let s = store();
        let b = s.builder().under("m").scaled(Scale::of_width(256, 64)).under("deep");
        b.weight("w", &[2, 2], Init::Ones).unwrap();
        b.plain("b", &[2], Init::Ones).unwrap();
        b.table("t", [2, 2], Init::Ones, None).unwrap();
        s.builder().weight("w", &[2, 2], Init::Ones).unwrap();
        let scale = |name: &str| s.get(name).unwrap().scale;
        assert_eq!(scale("m.deep.w"), Scale { rate: 0.25, eps: 0.25 });
        assert!(["m.deep.b", "m.deep.t", "w"].map(scale).iter().all(|scale| *scale == Scale::ONE));
    }

    #[test]
    fn normal_initialisation_has_the_asked_spread_and_a_frozen_row_is_zero() {
        let s = store();
        let t = s.builder().table("e", [200, 64], Init::Normal(0.02), Some(7)).unwrap();
        let v = t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let std = (v.iter().map(|x| f64::from(x * x)).sum::<f64>() / v.len() as f64).sqrt();
        assert!((std - 0.02).abs() < 0.0005, "{std}");
        assert!(t.get(7).unwrap().to_vec1::<f32>().unwrap().iter().all(|x| *x == 0.0));
    }

    #[test]
    fn loading_lists_every_problem_and_changes_nothing_then() {
        let s = store();
        let x = s.builder().weight("x", &[2, 2], Init::Ones).unwrap();
        s.builder().weight("y", &[2], Init::Ones).unwrap();
        s.builder().weight("z", &[1], Init::Ones).unwrap();
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        let file = HashMap::from([
            ("x".to_owned(), zeros(&[2, 2])),
            ("y".to_owned(), zeros(&[3])),
            ("other".to_owned(), zeros(&[3])),
        ]);
        let report = s.load(&file).unwrap();
        assert_eq!((report.missing.len(), report.unexpected.len(), report.misshapen.len()), (1, 1, 1));
        assert_eq!(x.sum_all().unwrap().to_scalar::<f32>().unwrap(), 4.0);
    }

    #[test]
    fn an_alias_alone_is_enough_to_load() {
        let s = store();
        let x = s.builder().under("a").weight("x", &[2], Init::Ones).unwrap();
        s.builder().under("a").alias("b.x", "x");
        let file = HashMap::from([("b.x".to_owned(), Tensor::new(&[3f32, 4.], &Device::Cpu).unwrap())]);
        assert!(s.load(&file).unwrap().is_clean());
        assert_eq!(x.to_vec1::<f32>().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn a_name_used_twice_is_an_error() {
        let s = store();
        s.builder().weight("x", &[2], Init::Ones).unwrap();
        assert!(s.builder().weight("x", &[2], Init::Ones).is_err());
    }
}
