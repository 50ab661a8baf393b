//! `calm latents`: posterior latents as a NumPy file.

use std::io::{ErrorKind, Write};

use anyhow::Result;
use calm_data::chat::LossOn;
use calm_eval::reconstruction::text_chunks;
use calm_kernels::device::Choice;
use calm_run::Error;
use calm_train::held_out::evaluation_rows;
use calm_train::models;
use candle_core::Tensor;

use super::{open_run, text_of, which};
use crate::args::{LatentsArgs, OtherText};
use crate::error::Hinted;
use crate::hardware;
use crate::screen::Screen;
use crate::ui::Printer;

/// Header of a version-1 `.npy` file of little-endian f32, padded to a multiple of 64 bytes.
fn npy_header(shape: &[usize]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", dims.join(", "));
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    while text.len() + 1 < padded {
        text.push(' ');
    }
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

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
    let written = calm_files::write(&args.out, |out| {
        out.write_all(&npy_header(&shape))?;
        values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
    });
    written.map_err(|e| match e.kind() {
        ErrorKind::StorageFull => anyhow::Error::from(Error::io("write", &args.out, e)),
        _ => {
            let message = format!("cannot write {}: {e}", args.out.display());
            let hint = "name a file in a folder that is there and may be written to with --out";
            Hinted::new(message, hint).into()
        }
    })?;
    printer
        .note(format!("wrote {chunks} chunks, float32 {shape:?} (mean, log std), to {}", args.out.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_aligned_and_names_the_shape() {
        let h = npy_header(&[3, 2, 128]);
        assert_eq!(h.len() % 64, 0);
        let text = String::from_utf8_lossy(&h[10..]);
        assert!(text.contains("'shape': (3, 2, 128,)") && text.ends_with('\n'), "{text}");
    }
}
