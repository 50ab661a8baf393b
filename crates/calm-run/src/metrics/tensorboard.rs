//! TensorBoard event files: scalars and texts.
//!
//! A file is a row of TFRecords: length (u64), masked CRC-32C of the length, data, masked CRC-32C of the data,
//! all little-endian, with mask(c) = (c rotated right by 15) + 0xa282ead8 (TensorFlow, `record_writer.cc`).
//! The data are `Event` messages in protobuf's wire format. The few fields in use are encoded here by hand
//! (numbers from `event.proto`, `summary.proto`, `tensor.proto`):
//!
//! ```text
//! Event            1 wall_time (double)  2 step (int64)  3 file_version (string)  5 summary  7 session_log
//! Summary          1 value (repeated)
//! Summary.Value    1 tag  2 simple_value (float)  8 tensor  9 metadata
//! SummaryMetadata  1 plugin_data { 1 plugin_name }
//! TensorProto      1 dtype  2 tensor_shape { 2 dim { 1 size } }  8 string_val
//! SessionLog       1 status (START = 1)
//! ```

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Writes one event file; every event is in the file when its call returns.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
}

impl EventWriter {
    /// Begins a new file in a folder, which is made if needed. No two writers ever share one: the name holds
    /// the second, the host, the process and a counter, and a file that exists is not opened.
    ///
    /// # Errors
    /// The folder or the file cannot be made or written.
    pub fn create(folder: &Path) -> io::Result<Self> {
        static WRITERS: AtomicU64 = AtomicU64::new(0);
        std::fs::create_dir_all(folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (host, process) = (crate::host::name(), std::process::id());
        let (file, path) = loop {
            let number = WRITERS.fetch_add(1, Ordering::Relaxed);
            let name = format!("events.out.tfevents.{:010}.{host}.{process}.{number:04}", now.as_secs());
            let path = folder.join(name);
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => break (file, path),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        };
        let mut writer = Self { file, path };
        let mut event = Message::default();
        event.double(1, now.as_secs_f64());
        event.bytes(3, b"brain.Event:2");
        writer.record(&event.0)?;
        Ok(writer)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says that a session starts: readers drop what earlier files of the folder hold of `step` and later.
    ///
    /// # Errors
    /// The record cannot be written; the file should not be continued.
    pub fn session_start(&mut self, wall_time: f64, step: u64) -> io::Result<()> {
        let mut log = Message::default();
        log.varint(1, 1);
        let mut event = header(wall_time, step);
        event.message(7, &log);
        self.record(&event.0)
    }

    /// Writes values (as 32-bit floats, which is all that TensorBoard keeps).
    ///
    /// # Errors
    /// The record cannot be written; the file should not be continued.
    pub fn scalars(&mut self, wall_time: f64, step: u64, values: &[(&str, f64)]) -> io::Result<()> {
        let mut summary = Message::default();
        for (tag, number) in values {
            let mut value = Message::default();
            value.bytes(1, tag.as_bytes());
            value.float(2, *number as f32);
            summary.message(1, &value);
        }
        let mut event = header(wall_time, step);
        event.message(5, &summary);
        self.record(&event.0)
    }

    /// Writes a text, shown as Markdown.
    ///
    /// # Errors
    /// The record cannot be written; the file should not be continued.
    pub fn text(&mut self, wall_time: f64, step: u64, tag: &str, text: &str) -> io::Result<()> {
        const DT_STRING: u64 = 7;
        let mut size = Message::default();
        size.varint(1, 1);
        let mut shape = Message::default();
        shape.message(2, &size);
        let mut tensor = Message::default();
        tensor.varint(1, DT_STRING);
        tensor.message(2, &shape);
        tensor.bytes(8, text.as_bytes());
        let mut plugin = Message::default();
        plugin.bytes(1, b"text");
        let mut metadata = Message::default();
        metadata.message(1, &plugin);
        let mut value = Message::default();
        value.bytes(1, tag.as_bytes());
        value.message(8, &tensor);
        value.message(9, &metadata);
        let mut summary = Message::default();
        summary.message(1, &value);
        let mut event = header(wall_time, step);
        event.message(5, &summary);
        self.record(&event.0)
    }

    /// One TFRecord, in one write.
    fn record(&mut self, data: &[u8]) -> io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut frame = Vec::with_capacity(data.len() + 16);
        frame.extend_from_slice(&length);
        frame.extend_from_slice(&masked_crc(&length).to_le_bytes());
        frame.extend_from_slice(data);
        frame.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.file.write_all(&frame)
    }
}

fn header(wall_time: f64, step: u64) -> Message {
    let mut event = Message::default();
    event.double(1, wall_time);
    event.varint(2, step);
    event
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// A protobuf message in wire format: a key (field number and wire type), then the value.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn varint(&mut self, field: u64, value: u64) {
        self.raw_varint(field << 3);
        self.raw_varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.raw_varint(field << 3 | 1);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.raw_varint(field << 3 | 2);
        self.raw_varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn message(&mut self, field: u64, value: &Message) {
        self.bytes(field, &value.0);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.raw_varint(field << 3 | 5);
        self.0.extend_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field read back: number and payload (numbers as their little-endian bytes).
    type Field = (u64, Vec<u8>);

    fn read_varint(data: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = data[0];
            *data = &data[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }

    fn fields(mut data: &[u8]) -> Vec<Field> {
        let mut list = Vec::new();
        while !data.is_empty() {
            let key = read_varint(&mut data);
            let payload = match key & 7 {
                0 => read_varint(&mut data).to_le_bytes().to_vec(),
                kind => {
                    let length = match kind {
                        1 => 8,
                        5 => 4,
                        _ => read_varint(&mut data) as usize,
                    };
                    let (payload, rest) = data.split_at(length);
                    data = rest;
                    payload.to_vec()
                }
            };
            list.push((key >> 3, payload));
        }
        list
    }

    fn at(data: &[u8], path: &[u64]) -> Option<Vec<u8>> {
        path.iter().try_fold(data.to_vec(), |data, number| {
            fields(&data).into_iter().find(|(field, _)| field == number).map(|(_, payload)| payload)
        })
    }

    /// The records of a file, checksums checked.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut list = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), masked_crc(&rest[..8]));
            assert_eq!(crc(12 + length), masked_crc(&rest[12..12 + length]));
            list.push(rest[12..12 + length].to_vec());
            rest = &rest[16 + length..];
        }
        list
    }

    #[test]
    fn the_checksum_is_the_published_one() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x8a91_36aa_u32.rotate_right(15).wrapping_add(0xa282_ead8));
    }

    #[test]
    fn events_are_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(&folder.path().join("a/b")).unwrap();
        writer.session_start(5.0, 300).unwrap();
        writer.scalars(6.5, 300, &[("loss", 0.25), ("größe", -1e30)]).unwrap();
        writer.text(7.0, 1 << 40, "sample", "a\nb").unwrap();
        let events = records(writer.path());
        assert_eq!(events.len(), 4);
        assert_eq!(at(&events[0], &[3]).unwrap(), b"brain.Event:2");
        assert_eq!(at(&events[1], &[7, 1]).unwrap(), 1u64.to_le_bytes());
        assert_eq!(at(&events[1], &[2]).unwrap(), 300u64.to_le_bytes());
        assert_eq!(at(&events[2], &[1]).unwrap(), 6.5f64.to_le_bytes());
        let values = fields(&at(&events[2], &[5]).unwrap());
        assert_eq!(values.len(), 2);
        assert_eq!(at(&values[1].1, &[1]).unwrap(), "größe".as_bytes());
        assert_eq!(at(&values[0].1, &[2]).unwrap(), 0.25f32.to_le_bytes());
        assert_eq!(at(&events[3], &[2]).unwrap(), (1u64 << 40).to_le_bytes());
        assert_eq!(at(&events[3], &[5, 1, 8, 8]).unwrap(), b"a\nb");
        assert_eq!(at(&events[3], &[5, 1, 8, 1]).unwrap(), 7u64.to_le_bytes());
        assert_eq!(at(&events[3], &[5, 1, 8, 2, 2, 1]).unwrap(), 1u64.to_le_bytes());
        assert_eq!(at(&events[3], &[5, 1, 9, 1, 1]).unwrap(), b"text");
    }

    #[test]
    fn writers_begun_in_the_same_second_have_their_own_files() {
        let folder = tempfile::tempdir().unwrap();
        let writers: Vec<_> = (0..3).map(|_| EventWriter::create(folder.path()).unwrap()).collect();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        for writer in writers {
            let name = writer.path().file_name().unwrap().to_string_lossy().into_owned();
            assert!(name.starts_with("events.out.tfevents."), "{name}");
            assert!(name.contains(&format!(".{}.", std::process::id())), "{name}");
        }
    }
}
