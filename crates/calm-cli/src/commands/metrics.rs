//! `calm metrics`: what runs wrote down while they were trained, as tables that other programs read.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use calm_run::metrics::{Line, read_lines};
use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::{Type, TypePtr};

use super::{runs, write_new};
use crate::args::{MetricsArgs, MetricsFormat};
use crate::error::Hinted;
use crate::ui::Printer;

/// A run's values.
struct Table {
    name: String,
    lines: Vec<Line>,
}

/// Runs the command.
pub fn run(args: &MetricsArgs, printer: &Printer) -> Result<()> {
    let folders = runs::named_or_latest(&args.folders)?;
    let mut tables = Vec::new();
    for (folder, name) in folders.iter().zip(named(&folders)) {
        match table(folder, name)? {
            Some(table) => tables.push(table),
            None => printer.note(format!("{} has written nothing yet", folder.display())),
        }
    }
    if tables.is_empty() {
        let hint = "name the folder of a run that was trained (runs/NAME)";
        return Err(Hinted::new("none of these runs has written metrics", hint).into());
    }
    let lines: usize = tables.iter().map(|t| t.lines.len()).sum();
    let Some(out) = &args.out else {
        return Ok(printer.text(&String::from_utf8(csv(&tables)?)?)?);
    };
    match args.to {
        MetricsFormat::Csv => write_new(out, &csv(&tables)?)?,
        MetricsFormat::Parquet => write_new(out, &parquet(&tables)?)?,
        MetricsFormat::Trackio => {
            for table in &tables {
                write_new(&out.join(format!("{}.csv", table.name)), &trackio(table)?)?;
            }
        }
    }
    printer.note(format!("wrote {lines} lines of {} runs to {}", tables.len(), out.display()));
    Ok(())
}

/// Names that tell the runs apart: the last part of the path, with the one before where that is the same.
fn named(folders: &[PathBuf]) -> Vec<String> {
    let whole: Vec<PathBuf> =
        folders.iter().map(|f| f.canonicalize().unwrap_or_else(|_| f.clone())).collect();
    let last = |path: &Path| path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let named = |path: &PathBuf| {
        let same = whole.iter().filter(|other| last(other) == last(path)).count();
        match path.parent() {
            Some(parent) if same > 1 => format!("{}-{}", last(parent), last(path)),
            _ => last(path),
        }
    };
    whole.iter().map(named).collect()
}

/// The values of a run; none where it has not written any.
fn table(folder: &Path, name: String) -> Result<Option<Table>> {
    let path = folder.join("metrics.jsonl");
    match read_lines(&path) {
        Ok(lines) => Ok(Some(Table { name, lines })),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => {
            let what = format!("cannot read {}: {e}", path.display());
            Err(Hinted::new(what, "look whether the file may be read").into())
        }
    }
}

/// Names of all values, sorted.
fn names<'a>(tables: impl IntoIterator<Item = &'a Table>) -> Vec<&'a str> {
    let lines = tables.into_iter().flat_map(|t| &t.lines);
    let names: BTreeSet<&str> = lines.flat_map(|line| line.values.keys().map(String::as_str)).collect();
    names.into_iter().collect()
}

/// A value as text: none where there is none, or where it is not finite.
fn cell(line: &Line, name: &str) -> String {
    line.values.get(name).copied().flatten().map_or_else(String::new, |v| v.to_string())
}

fn csv(tables: &[Table]) -> Result<Vec<u8>> {
    let names = names(tables);
    let mut out = csv::Writer::from_writer(Vec::new());
    out.write_record(KEYS.iter().chain(&names))?;
    for table in tables {
        for line in &table.lines {
            let keys = [&table.name, line.stage.name(), &line.step.to_string(), &line.wall_time.to_string()]
                .map(str::to_owned);
            out.write_record(keys.into_iter().chain(names.iter().map(|name| cell(line, name))))?;
        }
    }
    Ok(out.into_inner()?)
}

/// Columns before the values.
const KEYS: [&str; 4] = ["run", "stage", "step", "wall_time"];

/// Steps are those of the stage, whose name stands before each value's: of two stages none hides the other.
fn trackio(table: &Table) -> Result<Vec<u8>> {
    let columns: BTreeSet<(&str, &str)> = table
        .lines
        .iter()
        .flat_map(|line| line.values.keys().map(|name| (line.stage.name(), name.as_str())))
        .collect();
    let mut out = csv::Writer::from_writer(Vec::new());
    let named = columns.iter().map(|(stage, name)| format!("{stage}/{name}"));
    out.write_record(["step".to_owned(), "timestamp".to_owned()].into_iter().chain(named))?;
    for line in &table.lines {
        let time = jiff::Timestamp::from_microsecond((line.wall_time * 1e6) as i64)?;
        let of = |(stage, name): &(&str, &str)| {
            if *stage == line.stage.name() { cell(line, name) } else { String::new() }
        };
        out.write_record(
            [line.step.to_string(), time.to_string()].into_iter().chain(columns.iter().map(of)),
        )?;
    }
    Ok(out.into_inner()?)
}

fn parquet(tables: &[Table]) -> Result<Vec<u8>> {
    let names = names(tables);
    let column = |name: &str, physical, repetition, logical| -> Result<TypePtr> {
        let built = Type::primitive_type_builder(name, physical).with_repetition(repetition);
        Ok(Arc::new(built.with_logical_type(logical).build()?))
    };
    let text = Some(LogicalType::String);
    let mut fields = vec![
        column(KEYS[0], Physical::BYTE_ARRAY, Repetition::REQUIRED, text.clone())?,
        column(KEYS[1], Physical::BYTE_ARRAY, Repetition::REQUIRED, text)?,
        column(KEYS[2], Physical::INT64, Repetition::REQUIRED, None)?,
        column(KEYS[3], Physical::DOUBLE, Repetition::REQUIRED, None)?,
    ];
    for name in &names {
        fields.push(column(name, Physical::DOUBLE, Repetition::OPTIONAL, None)?);
    }
    let schema = Arc::new(Type::group_type_builder("metrics").with_fields(fields).build()?);
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties))?;
    let mut rows = writer.next_row_group()?;
    let all = || tables.iter().flat_map(|t| t.lines.iter().map(move |line| (t, line)));
    let bytes = |text: &str| ByteArray::from(text.as_bytes().to_vec());
    put::<ByteArrayType>(&mut rows, &all().map(|(t, _)| bytes(&t.name)).collect::<Vec<_>>(), None)?;
    put::<ByteArrayType>(&mut rows, &all().map(|(_, l)| bytes(l.stage.name())).collect::<Vec<_>>(), None)?;
    put::<Int64Type>(&mut rows, &all().map(|(_, l)| l.step as i64).collect::<Vec<_>>(), None)?;
    put::<DoubleType>(&mut rows, &all().map(|(_, l)| l.wall_time).collect::<Vec<_>>(), None)?;
    for name in &names {
        let values = || all().map(|(_, line)| line.values.get(*name).copied().flatten());
        let there: Vec<i16> = values().map(|v| i16::from(v.is_some())).collect();
        put::<DoubleType>(&mut rows, &values().flatten().collect::<Vec<_>>(), Some(&there))?;
    }
    rows.close()?;
    Ok(writer.into_inner()?)
}

/// The next column: its values, and for one with gaps which rows have one.
fn put<T: DataType>(
    rows: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    values: &[T::T],
    there: Option<&[i16]>,
) -> Result<()> {
    let Some(mut column) = rows.next_column()? else {
        return Err(anyhow::anyhow!("a table has fewer columns than values"));
    };
    column.typed::<T>().write_batch(values, there, None)?;
    Ok(column.close()?)
}
