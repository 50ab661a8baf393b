//! NumPy files of 32-bit floats.

use std::io::{ErrorKind, Write};
use std::path::Path;

use anyhow::Result;
use calm_run::Error;

use crate::error::Hinted;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Header of a version-1 `.npy` file of little-endian f32, padded to a multiple of 64 bytes.
fn header(shape: &[usize]) -> Vec<u8> {
    let dims: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut text = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({},), }}", dims.join(", "));
    let padded = (10 + text.len() + 1).next_multiple_of(64) - 10;
    while text.len() + 1 < padded {
        text.push(' ');
    }
    text.push('\n');
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(b"\x01\x00");
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    out
}

/// Writes an array, row-major; `option` is what named the file.
pub(super) fn write(path: &Path, shape: &[usize], values: &[f32], option: &str) -> Result<()> {
    let written = calm_files::write(path, |out| {
        out.write_all(&header(shape))?;
        values.iter().try_for_each(|v| out.write_all(&v.to_le_bytes()))
    });
    written.map_err(|e| match e.kind() {
        ErrorKind::StorageFull => anyhow::Error::from(Error::io("write", path, e)),
        _ => {
            let message = format!("cannot write {}: {e}", path.display());
            let hint = format!("name a file in a folder that is there and may be written to with {option}");
            Hinted::new(message, hint).into()
        }
    })?;
    Ok(())
}

/// Reads a matrix: rows, columns, numbers.
pub(super) fn read_matrix(path: &Path) -> Result<(usize, usize, Vec<f32>)> {
    let wrong = |what: &str| {
        let what = format!("{}: {what}", path.display());
        Hinted::new(what, "give a whole .npy file of float32 [positions, D], as --save-states writes it")
    };
    let bytes = std::fs::read(path).map_err(|e| wrong(&e.to_string()))?;
    let (rows, columns, data) = matrix(&bytes).map_err(wrong)?;
    let values = data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok((rows, columns, values))
}

/// Rows, columns and the bytes of their numbers.
fn matrix(bytes: &[u8]) -> std::result::Result<(usize, usize, &[u8]), &'static str> {
    const NO_FILE: &str = "it is no NumPy file";
    let rest = bytes.strip_prefix(MAGIC).ok_or(NO_FILE)?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or(NO_FILE)?;
    let (length, rest) = match version[0] {
        1 => rest.split_first_chunk::<2>().map(|(n, rest)| (u32::from(u16::from_le_bytes(*n)), rest)),
        2 | 3 => rest.split_first_chunk::<4>().map(|(n, rest)| (u32::from_le_bytes(*n), rest)),
        _ => None,
    }
    .ok_or(NO_FILE)?;
    let (header, data) = rest.split_at_checked(length as usize).ok_or("it ends in its header")?;
    let header = std::str::from_utf8(header).map_err(|_| NO_FILE)?;
    let value = |key: &str| Some(header.split_once(key)?.1.trim_start().strip_prefix(':')?.trim_start());
    if !value("'descr'").is_some_and(|v| v.starts_with("'<f4'")) {
        return Err("its numbers are no 32-bit floats");
    }
    if !value("'fortran_order'").is_some_and(|v| v.starts_with("False")) {
        return Err("its numbers lie column by column");
    }
    let shape = value("'shape'").and_then(|v| v.strip_prefix('(')?.split_once(')')).ok_or(NO_FILE)?.0;
    let dims: Vec<usize> = shape.split(',').filter_map(|n| n.trim().parse().ok()).collect();
    let &[rows, columns] = dims.as_slice() else { return Err("it is no matrix") };
    let expected = rows.checked_mul(columns).and_then(|n| n.checked_mul(4));
    if expected != Some(data.len()) {
        return Err("it holds another number of numbers than its header says");
    }
    Ok((rows, columns, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_aligned_and_names_the_shape() {
        let h = header(&[3, 2, 128]);
        assert_eq!(h.len() % 64, 0);
        let text = String::from_utf8_lossy(&h[10..]);
        assert!(text.contains("'shape': (3, 2, 128,)") && text.ends_with('\n'), "{text}");
    }

    #[test]
    fn a_matrix_comes_back_and_nothing_else_does() {
        let mut file = header(&[2, 3]);
        file.extend([1f32, 2.0, 3.0, -4.0, 5.5, 6.0].iter().flat_map(|x| x.to_le_bytes()));
        let (rows, columns, data) = matrix(&file).unwrap();
        assert_eq!((rows, columns, data.len()), (2, 3, 24));
        for end in 0..file.len() {
            assert!(matrix(&file[..end]).is_err(), "{end} bytes");
        }
        file.push(0);
        assert!(matrix(&file).is_err());
        let mut cube = header(&[1, 1, 1]);
        cube.extend(1f32.to_le_bytes());
        assert!(matrix(&cube).unwrap_err().contains("no matrix"));
        let text = String::from_utf8(header(&[1, 1])[10..].to_vec()).unwrap();
        for (from, to) in [("<f4", "<f8"), ("False", "True "), ("(1, 1,)", "(9999999999999, 9999999999999)")]
        {
            let text = text.replacen(from, to, 1);
            let mut file = MAGIC.to_vec();
            file.extend([1, 0]);
            file.extend((text.len() as u16).to_le_bytes());
            file.extend(text.as_bytes());
            file.extend(1f32.to_le_bytes());
            assert!(matrix(&file).is_err(), "{to}");
        }
    }
}
