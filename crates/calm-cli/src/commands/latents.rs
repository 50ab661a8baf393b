//! `calm latents`: posterior latents as a NumPy file.

use anyhow::Result;
use calm_data::chat::LossOn;
use calm_eval::reconstruction::text_chunks;
use calm_kernels::device::Choice;
use calm_train::held_out::evaluation_rows;
use calm_train::models;
use candle_core::Tensor;

use super::{npy, open_run, text_of, which};
use crate::args::{LatentsArgs, OtherText};
use crate::error::Hinted;
use crate::hardware;
use crate::screen::Screen;
use crate::ui::Printer;

/// Runs the command.
pub fn run(args: &LatentsArgs, device: Choice, printer: &Printer) -> Result<()> {
    if args.documents == Some(0) {
        return Err(Hinted::new("--documents 0 leaves nothing to encode", "give 1 or more").into());
    }
    let run = open_run(&args.source)?;
    let device = hardware::open(device, printer)?;
    let run = run.on(&device);
    let mut screen = Screen::new(printer);
    let column = args.column.as_deref();
    // Latents are of chunks, whether they count or not.
    let loss_on = Some(LossOn::All);
    let other = args.data.as_deref().map(|data| OtherText { data, column, documents: None, loss_on });
    let (file, tokenizer) = text_of(&run, other, &args.source.cache, &mut screen)?;
    let (objective, _) = models::load_autoencoder(&run, which(&args.source), &tokenizer, &device)?;
    let rows = evaluation_rows(&file, tokenizer.special(), run.autoencoder_layout(), args.documents, None)?;
    let mut values: Vec<f32> = Vec::new();
    let mut chunks = 0;
    for batch in rows.batches(16) {
        let (ids, found) = text_chunks(&batch);
        if found.is_empty() {
            continue;
        }
        let ids = Tensor::from_vec(ids, (found.len(), batch.chunk_size), &device)?;
        let posterior = objective.model.encode(&ids)?.detach();
        let both = Tensor::stack(&[&posterior.mean, &posterior.log_std], 1)?;
        values.extend(both.flatten_all()?.to_vec1::<f32>()?);
        chunks += found.len();
    }
    let shape = [chunks, 2, objective.model.latent_size()];
    npy::write(&args.out, &shape, &values, "--out")?;
    printer
        .note(format!("wrote {chunks} chunks, float32 {shape:?} (mean, log std), to {}", args.out.display()));
    Ok(())
}
