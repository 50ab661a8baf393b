//! Kinds `flow_head` and `diffusion_head`: the heads alone, loss and gradients, and their samplers.

use calm_lm::head::{DiffusionHead, FlowHead};
use calm_lm::{BackboneConfig, DiffusionConfig, FlowConfig, Solver};
use calm_nn::ParamStore;
use candle_core::{DType, Device, Result, Tensor, Var, bail};

use crate::compare::Check;
use crate::reference;
use crate::set::{Case, Config, Tensors};

/// 100 steps, of which the first multiplies rounding errors some 300-fold: the expected values, recomputed
/// in float64, move by 4e-5 of the largest one; 1e-3 is what the set's makers allow.
const DIFFUSION_SAMPLES: f64 = 1e-3;
/// Tables of a schedule are in double precision on both sides.
const TABLES: f64 = 1e-12;

/// `[N, rows, ..]` flattened as the reference does: every sample is a row of its own, `[N·rows, 1, ..]`.
fn flatten(t: &Tensor) -> Result<Tensor> {
    let last = t.dim(t.rank() - 1)?;
    t.reshape(((), 1, last))
}

fn store(case: &Case) -> Result<(Config, BackboneConfig, ParamStore)> {
    let config = Config(case.json("config.json")?);
    let backbone = reference::backbone_config(&config)?;
    Ok((config, backbone, ParamStore::new(&Device::Cpu, DType::F32, 0)))
}

pub fn flow(case: &Case, check: &mut Check) -> Result<()> {
    for file in case.io_files() {
        let io = case.tensors(&file)?;
        let (config, backbone, store) = store(case)?;
        let settings = FlowConfig { blocks: Some(config.size("num_mlp_layers")?), ..FlowConfig::reference() };
        let head = FlowHead::new(&store.builder(), &settings, &backbone, config.size("latent_size")?)?;
        reference::load(&store, &case.weights("model.safetensors")?)?;

        let z = Var::from_tensor(&io.get("z")?)?;
        let hidden = flatten(z.as_tensor())?.squeeze(1)?;
        let times: Vec<f32> = io.get("t")?.to_vec1()?;
        check.integers(&io, "t_int", &steps(times.iter().map(|t| head.step(*t)))?)?;
        let (target, start) = (flatten(&io.get("target")?)?, flatten(&io.get("x0")?)?);
        let terms = head.terms(&hidden, &target, &start, &times)?;
        check.values(&io, "v_pred", &terms.velocity.squeeze(1)?)?;
        check.values(&io, "loss_rows", &terms.loss.squeeze(1)?)?;
        let loss = terms.loss.mean_all()?;
        check.values(&io, "loss", &loss)?;
        gradients(&io, &store, &z, &loss, check)?;

        for name in io.names().iter().filter_map(|n| n.strip_prefix("sample.")?.strip_suffix(".out")) {
            let tensor = |part: &str| format!("sample.{name}.{part}");
            let calls = io.get(&tensor("t_int"))?.elem_count();
            let (solver, count) = match name {
                "euler" => (Solver::Euler, calls),
                "midpoint" => (Solver::Midpoint, calls / 2),
                _ => bail!("{}: sample.{name}: no such solver", io.file),
            };
            let (mut told, mut velocities) = (Vec::new(), Vec::new());
            let start = flatten(&io.get(&tensor("x_init"))?)?;
            let out = head.integrate(&hidden, &start, solver, count, |step, v| {
                told.push(step);
                velocities.push(v.squeeze(1)?);
                Ok(())
            })?;
            check.integers(&io, &tensor("t_int"), &steps(told)?)?;
            check.values(&io, &tensor("v"), &Tensor::stack(&velocities, 0)?)?;
            let expected = io.get(&tensor("out"))?;
            check.values(&io, &tensor("out"), &out.reshape(expected.dims())?)?;
        }
    }
    Ok(())
}

pub fn diffusion(case: &Case, check: &mut Check) -> Result<()> {
    for file in case.io_files() {
        let io = case.tensors(&file)?;
        let (config, backbone, store) = store(case)?;
        let settings = DiffusionConfig {
            blocks: Some(config.size("num_mlp_layers")?),
            steps: io.get("schedule.train.alphas_cumprod")?.elem_count(),
            sampling_steps: io.get("schedule.gen.betas")?.elem_count(),
            ..DiffusionConfig::reference()
        };
        let head = DiffusionHead::new(&store.builder(), &settings, &backbone, config.size("latent_size")?)?;
        reference::load(&store, &case.weights("model.safetensors")?)?;

        let table = |v: &[f64]| Tensor::new(v, &Device::Cpu);
        let acp = table(&head.training_schedule().alphas_cumprod)?;
        check.values_within(&io, "schedule.train.alphas_cumprod", &acp, TABLES)?;
        check.values_within(&io, "schedule.gen.betas", &table(&head.sampling_schedule().betas)?, TABLES)?;
        let map = head.sampling_schedule().timesteps.iter().map(|t| *t as f32);
        check.integers(&io, "schedule.gen.timestep_map", &steps(map)?)?;

        let z = Var::from_tensor(&io.get("z")?)?;
        let hidden = flatten(z.as_tensor())?.squeeze(1)?;
        let t: Vec<u32> = io.ids("t")?.to_vec1()?;
        let terms = head.terms(&hidden, &flatten(&io.get("target")?)?, &flatten(&io.get("noise")?)?, &t)?;
        check.values(&io, "net_out", &terms.output.squeeze(1)?)?;
        check.values(&io, "mse", &terms.squared_error.squeeze(1)?)?;
        match &terms.variational {
            Some(v) => check.values(&io, "vb", &v.squeeze(1)?)?,
            None => bail!("the variational term is switched off"),
        }
        let rows = terms.loss()?.squeeze(1)?;
        check.values(&io, "loss_rows", &rows)?;
        let loss = rows.mean_all()?;
        check.values(&io, "loss", &loss)?;
        gradients(&io, &store, &z, &loss, check)?;

        // Noise in the order drawn: the last step of the schedule first.
        let noises = io.get("sample.noises")?;
        let last = noises.dim(0)? - 1;
        let start = flatten(&io.get("sample.x_init")?)?;
        for name in io.names().iter().filter(|n| n.starts_with("sample.out")) {
            let temperature = match name.strip_prefix("sample.out_temperature_") {
                Some(digits) => match digits.replace('_', ".").parse() {
                    Ok(t) => t,
                    Err(_) => bail!("{}: {name}: no temperature", io.file),
                },
                None => 1.0,
            };
            let mut trajectory = Vec::new();
            let noise = |i: usize| noises.get(last - i)?.unsqueeze(1);
            let out = head.generate(&hidden, &start, noise, temperature, |_, x| {
                trajectory.push(x.squeeze(1)?);
                Ok(())
            })?;
            let expected = io.get(name)?;
            check.values_within(&io, name, &out.reshape(expected.dims())?, DIFFUSION_SAMPLES)?;
            if temperature == 1.0 {
                check.values_within(
                    &io,
                    "sample.x_traj",
                    &Tensor::stack(&trajectory, 0)?,
                    DIFFUSION_SAMPLES,
                )?;
            }
        }
    }
    Ok(())
}

/// Time steps, whole numbers on both sides.
fn steps(told: impl IntoIterator<Item = f32>) -> Result<Tensor> {
    Tensor::new(told.into_iter().collect::<Vec<f32>>(), &Device::Cpu)
}

/// Of every parameter and of the hidden states.
fn gradients(io: &Tensors, store: &ParamStore, z: &Var, loss: &Tensor, check: &mut Check) -> Result<()> {
    let grads = loss.backward()?;
    check.gradients(io, "", store, &grads)?;
    match grads.get(z.as_tensor()) {
        Some(g) => check.gradient(io, "grad.z", g),
        None => bail!("no gradient reaches the hidden states"),
    }
}
