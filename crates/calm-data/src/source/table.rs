//! Parquet tables: the column of the text, and those that a filter looks at, row group by row group.
//!
//! Columns are read side by side, a few rows at a time: what is held are the pages that these rows lie in. A text may
//! be a string or bytes that are UTF-8, or a list of messages (see [`super::messages`]). The library checks pages by
//! their checksums where a writer left some.
//!
//! What a table says of its own size is looked at before the library reserves memory by it (`footer`, `pages`): a
//! table of L bytes is read in 64 MiB and 64 L, whatever it says, or refused.

mod delta;
mod footer;
mod pages;
mod thrift;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::column::reader::{ColumnReader, ColumnReaderImpl, get_column_reader};
use parquet::data_type::{ByteArray, ByteArrayType, DataType};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::schema::types::{ColumnDescriptor, SchemaDescriptor};

use self::pages::{Held, Pages, Problem, TOO_MUCH, allowed};
use super::bytes::{self, Count};
use super::messages::{Content, NAMES};
use super::row::{Row, Wanted};
use super::settings::Value;
use crate::caught::caught_in;
use crate::chat::Message;
use crate::error::{Error, Result};

/// Rows that are read together.
const ROWS: usize = 64;
const AGAIN: &str = "download or copy it again";

/// The rows of a table, in order. After an error about a row group the next one comes.
pub(super) struct Table {
    metadata: ParquetMetaData,
    file: Arc<File>,
    path: PathBuf,
    id: String,
    wanted: Arc<Wanted>,
    /// The columns of the text (of roles and contents, if it is made of messages) and the fields.
    columns: Vec<usize>,
    messages: bool,
    group: usize,
    open: Option<Vec<ColumnReader>>,
    /// Rows of the group that were read, and all before it.
    rows: u64,
    before: u64,
    /// Rows that were read and not given, by column.
    ready: Vec<std::vec::IntoIter<Option<Cell>>>,
    held: Arc<Held>,
    count: Count,
    counted: u64,
    length: u64,
}

/// Whether a file is a table, by its name or its first bytes.
pub(super) fn is_table(path: &Path) -> bool {
    let named =
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case("parquet") || e.eq_ignore_ascii_case("pq"));
    // What was read of a pipe is gone.
    let looks = || path.is_file() && begin(path).is_ok_and(|begin| begin.starts_with(b"PAR1"));
    named || looks()
}

fn begin(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut begin = Vec::new();
    File::open(path)?.take(300).read_to_end(&mut begin)?;
    Ok(begin)
}

impl Table {
    /// Opens a table and finds its columns.
    pub(super) fn open(path: &Path, id: String, wanted: Arc<Wanted>, count: &Count) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let length = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        let begin = begin(path).map_err(|e| Error::io("read", path, e))?;
        if !begin.starts_with(b"PAR1") {
            return Err(match bytes::kind(&begin) {
                Some((what, remedy)) => Error::Foreign { path: path.into(), what, remedy },
                None => table(path, "", "it is named as a Parquet table, but is none", AGAIN),
            });
        }
        let said = |problem: Problem| damaged(path, "", &problem.0);
        footer::check(&file, allowed(length) / 3).map_err(said)?;
        let opened = caught_in("parquet", || ParquetMetaDataReader::new().parse_and_finish(&file));
        let opened = opened.and_then(|opened| opened.map_err(|e| e.to_string()));
        let metadata = opened.map_err(|e| damaged(path, "", &e))?;
        let (columns, messages) = columns(path, metadata.file_metadata().schema_descr(), &wanted)?;
        Ok(Self {
            metadata,
            file: Arc::new(file),
            path: path.to_owned(),
            id,
            wanted,
            columns,
            messages,
            group: 0,
            open: None,
            rows: 0,
            before: 0,
            ready: Vec::new(),
            held: Held::of(length),
            count: count.clone(),
            counted: 0,
            length,
        })
    }

    /// The place of a column in the group that is read.
    fn place(&self, column: usize) -> String {
        let name = self.schema().column(column).path().string();
        format!(", row group {}, column `{name}`", self.group + 1)
    }

    fn schema(&self) -> &SchemaDescriptor {
        self.metadata.file_metadata().schema_descr()
    }

    fn open_group(&self) -> Result<Vec<ColumnReader>> {
        let open = |column: usize| {
            let open = || -> parquet::errors::Result<ColumnReader> {
                let group = self.metadata.row_group(self.group);
                let chunk = group.column(column);
                let pages = Pages::new(&self.file, chunk, group.num_rows(), self.length, &self.held)?;
                Ok(get_column_reader(chunk.column_descr_ptr(), Box::new(pages)))
            };
            let opened = caught_in("parquet", open).and_then(|opened| opened.map_err(|e| e.to_string()));
            opened.map_err(|e| damaged(&self.path, &self.place(column), &e))
        };
        self.columns.iter().map(|column| open(*column)).collect()
    }

    /// Reads the next rows; whether there were any.
    fn more(&mut self) -> Result<bool> {
        self.held.let_go();
        let mut readers = match self.open.take() {
            Some(readers) => readers,
            None => self.open_group()?,
        };
        let mut cells = Vec::with_capacity(readers.len());
        for (reader, &column) in readers.iter_mut().zip(&self.columns) {
            let levels = Levels::of(&self.schema().column(column));
            let read = caught_in("parquet", || read(reader, levels)).and_then(|read| read);
            cells.push(read.map_err(|e| damaged(&self.path, &self.place(column), &e))?.into_iter());
        }
        let found = cells[0].len();
        for (cells, &column) in cells.iter().zip(&self.columns) {
            if cells.len() != found {
                let what = format!("{} values and {found} texts", cells.len());
                return Err(damaged(&self.path, &self.place(column), &what));
            }
        }
        self.ready = cells;
        if found > 0 {
            self.open = Some(readers);
        }
        Ok(found > 0)
    }

    /// The next of the rows that were read. Its text is made only now: of one value there may be many rows.
    fn row(&mut self) -> Option<Result<Row>> {
        self.ready.first().filter(|cells| cells.len() > 0)?;
        self.rows += 1;
        let mut row: Vec<_> = self.ready.iter_mut().map(|cells| cells.next().flatten()).collect();
        let fields = row.split_off(1 + usize::from(self.messages));
        let contents = if self.messages { row.pop().flatten() } else { None };
        let text = row.pop().flatten();
        let content = match self.messages {
            true => self.conversation(text, contents).map(Content::Messages),
            false => self.text(text).map(Content::Text),
        };
        let text = content.and_then(|content| content.render(&self.wanted, &self.path, &self.place_of_row()));
        Some(text.map(|text| {
            let id = format!("{}:{}", self.id, self.before + self.rows);
            Row { id, text, fields: fields.into_iter().map(|cell| cell.and_then(Cell::value)).collect() }
        }))
    }

    /// The place of the row that is read.
    fn place_of_row(&self) -> String {
        format!("row {} of row group {}", self.rows, self.group + 1)
    }

    fn text(&self, cell: Option<Cell>) -> Result<String> {
        let column = self.wanted.column();
        let Some(Cell::Bytes(text)) = cell else {
            return Err(Error::NoText { path: self.path.clone(), place: self.place_of_row(), column });
        };
        let bad = |what: &str| Error::Table {
            path: self.path.clone(),
            place: format!(", {}", self.place_of_row()),
            what: format!("`{column}` holds {what}"),
            remedy: "write the table anew from text that is UTF-8, or leave such rows out with \
                     `data.on_bad_document: skip`"
                .to_owned(),
        };
        if text.data().contains(&0) {
            return Err(bad("a zero byte"));
        }
        match std::str::from_utf8(text.data()) {
            Ok(text) => Ok(text.to_owned()),
            Err(e) => Err(bad(&format!("invalid UTF-8 at byte {} of the text", e.valid_up_to()))),
        }
    }

    /// A row of roles and what each said.
    fn conversation(&self, roles: Option<Cell>, contents: Option<Cell>) -> Result<Vec<Message>> {
        let (Some(Cell::List(roles)), Some(Cell::List(contents))) = (roles, contents) else {
            return self.text(None).map(|_| Vec::new());
        };
        let (mut messages, mut bytes) = (Vec::new(), 0u64);
        for (role, content) in roles.into_iter().zip(contents) {
            // A call of a tool says nothing.
            let content = content.map_or_else(|| Ok(String::new()), |c| self.text(Some(Cell::Bytes(c))))?;
            // Its marks and its role take something, too.
            bytes += content.len() as u64 + 32;
            messages.push(Message::new(self.text(role.map(Cell::Bytes))?, content));
            if bytes > allowed(self.length) {
                let said = format!("{TOO_MUCH}: a conversation of more than {bytes} bytes");
                return Err(damaged(&self.path, &format!(", {}", self.place_of_row()), &said));
            }
        }
        Ok(messages)
    }

    fn end_group(&mut self) {
        if let Some(group) = self.metadata.row_groups().get(self.group) {
            // What it says of itself, as far as that can be.
            let said = u64::try_from(group.compressed_size()).unwrap_or(0).min(self.length - self.counted);
            self.count.add(said);
            self.counted += said;
            self.before += u64::try_from(group.num_rows()).unwrap_or(0).max(self.rows);
        }
        self.open = None;
        self.rows = 0;
        self.group += 1;
    }
}

impl Iterator for Table {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.row() {
                return Some(row);
            }
            if self.group >= self.metadata.num_row_groups() {
                self.count.add(self.length - self.counted);
                self.counted = self.length;
                return None;
            }
            match self.more() {
                Ok(true) => {}
                Ok(false) => {
                    let promised = self.metadata.row_group(self.group).num_rows();
                    let (place, rows) = (format!(", row group {}", self.group + 1), self.rows);
                    self.end_group();
                    if u64::try_from(promised) != Ok(rows) {
                        let what = format!("it has {rows} rows of {promised}");
                        return Some(Err(damaged(&self.path, &place, &what)));
                    }
                }
                Err(error) => {
                    self.end_group();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The columns of the text and the fields, and whether the first two are those of messages; or what there is instead.
fn columns(path: &Path, schema: &SchemaDescriptor, wanted: &Wanted) -> Result<(Vec<usize>, bool)> {
    // Writers name what stands between a list and its elements as they like.
    let of_message = |name: &str| {
        schema.columns().iter().position(|column| {
            let parts = column.path().parts();
            parts.starts_with(&wanted.text)
                && parts.len() > wanted.text.len()
                && parts.last().is_some_and(|last| last == name)
                && column.max_rep_level() == 1
                && column.physical_type() == Physical::BYTE_ARRAY
        })
    };
    let find = |name: &[String], text: bool| {
        let name = name.join(".");
        let at = schema.columns().iter().position(|column| column.path().string() == name);
        let Some(at) = at else {
            let names: Vec<String> = schema.columns().iter().map(|column| described(column)).collect();
            let key = if text { "data.column" } else { "data.filter" };
            let remedy = format!("name one of them with `{key}`");
            return Err(table(
                path,
                "",
                &format!("it has no column `{name}`; there is {}", names.join(", ")),
                &remedy,
            ));
        };
        let column = schema.column(at);
        let fits = match column.physical_type() {
            Physical::BYTE_ARRAY => true,
            Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
            _ => !text,
        };
        if !fits || column.max_rep_level() > 0 {
            let (is, must) = (described(&column), if text { "text" } else { "a text or a number" });
            let remedy = format!("name a column that holds {must} in each row");
            return Err(table(path, "", &format!("its column {is} does not hold {must}"), &remedy));
        }
        Ok(at)
    };
    let messages = NAMES.iter().find_map(|(role, content)| Some([of_message(role)?, of_message(content)?]));
    let mut columns = match messages {
        Some(columns) => columns.to_vec(),
        None => vec![find(&wanted.text, true)?],
    };
    for name in &wanted.fields {
        columns.push(find(name, false)?);
    }
    Ok((columns, messages.is_some()))
}

/// A column's name with what it holds.
fn described(column: &ColumnDescriptor) -> String {
    let text = column.converted_type() == ConvertedType::UTF8
        || matches!(column.logical_type_ref(), Some(LogicalType::String));
    let holds = match column.physical_type() {
        Physical::BYTE_ARRAY if text => "text".to_owned(),
        Physical::BYTE_ARRAY => "bytes".to_owned(),
        other => other.to_string().to_lowercase(),
    };
    let list = if column.max_rep_level() > 0 { "list of " } else { "" };
    format!("`{}` ({list}{holds})", column.path().string())
}

/// A value of a column.
enum Cell {
    Bytes(ByteArray),
    Number(f64),
    Switch(bool),
    /// Of a list, each with its value where it has one.
    List(Vec<Option<ByteArray>>),
}

/// The levels that say what is there.
#[derive(Clone, Copy)]
struct Levels {
    /// A value.
    value: i16,
    /// An element of a list.
    element: i16,
    list: bool,
}

impl Levels {
    fn of(column: &ColumnDescriptor) -> Self {
        Self {
            value: column.max_def_level(),
            element: column.repeated_ancestor_def_level(),
            list: column.max_rep_level() > 0,
        }
    }
}

impl Cell {
    /// As a filter sees it; bytes that are no text are nothing.
    fn value(self) -> Option<Value> {
        match self {
            Self::Bytes(bytes) => {
                std::str::from_utf8(bytes.data()).ok().map(|text| Value::Text(text.to_owned()))
            }
            Self::Number(n) => Some(Value::Number(n)),
            Self::Switch(is) => Some(Value::Switch(is)),
            Self::List(_) => None,
        }
    }
}

type Cells = std::result::Result<Vec<Option<Cell>>, String>;

/// The next values of a column; fewer than [`ROWS`] at its end.
fn read(reader: &mut ColumnReader, levels: Levels) -> Cells {
    let most = levels.value;
    match reader {
        ColumnReader::ByteArrayColumnReader(reader) if levels.list => lists(reader, levels),
        ColumnReader::ByteArrayColumnReader(reader) => of_type(reader, most, Cell::Bytes),
        ColumnReader::BoolColumnReader(reader) => of_type(reader, most, Cell::Switch),
        ColumnReader::Int32ColumnReader(reader) => of_type(reader, most, |n| Cell::Number(f64::from(n))),
        ColumnReader::Int64ColumnReader(reader) => of_type(reader, most, |n| Cell::Number(n as f64)),
        ColumnReader::FloatColumnReader(reader) => of_type(reader, most, |n| Cell::Number(f64::from(n))),
        ColumnReader::DoubleColumnReader(reader) => of_type(reader, most, Cell::Number),
        _ => Err("a type that holds no text or number".to_owned()),
    }
}

fn of_type<T: DataType>(reader: &mut ColumnReaderImpl<T>, most: i16, cell: impl Fn(T::T) -> Cell) -> Cells {
    let (mut levels, mut values) = (Vec::new(), Vec::new());
    let read = reader.read_records(ROWS, Some(&mut levels), None, &mut values).map_err(|e| e.to_string())?;
    let mut values = values.into_iter().map(cell);
    if most == 0 {
        return Ok(values.map(Some).collect());
    }
    if levels.len() != read.0 {
        return Err(format!("{} rows and {} levels", read.0, levels.len()));
    }
    levels
        .into_iter()
        .map(|level| match level == most {
            true => values.next().map(Some).ok_or_else(|| "fewer values than rows".to_owned()),
            false => Ok(None),
        })
        .collect()
}

/// Lists of bytes: a repetition level of 0 begins the next row.
fn lists(reader: &mut ColumnReaderImpl<ByteArrayType>, of: Levels) -> Cells {
    let (mut levels, mut begins, mut values) = (Vec::new(), Vec::new(), Vec::new());
    let read = reader.read_records(ROWS, Some(&mut levels), Some(&mut begins), &mut values);
    let rows = read.map_err(|e| e.to_string())?.0;
    let (mut values, mut lists) = (values.into_iter(), Vec::new());
    if levels.len() != begins.len() {
        return Err(format!("{} levels and {} beginnings", levels.len(), begins.len()));
    }
    for (level, begin) in levels.into_iter().zip(begins) {
        if begin == 0 {
            lists.push(Vec::new());
        }
        let list = lists.last_mut().ok_or("a list without a beginning")?;
        if level == of.value {
            list.push(Some(values.next().ok_or("fewer values than there should be")?));
        } else if level >= of.element {
            list.push(None);
        }
    }
    if lists.len() != rows {
        return Err(format!("{} lists in {rows} rows", lists.len()));
    }
    Ok(lists.into_iter().map(|list| Some(Cell::List(list))).collect())
}

fn table(path: &Path, place: &str, what: &str, remedy: &str) -> Error {
    Error::Table {
        path: path.to_owned(),
        place: place.to_owned(),
        what: what.to_owned(),
        remedy: remedy.to_owned(),
    }
}

/// What the library said, with what can be done.
fn damaged(path: &Path, place: &str, said: &str) -> Error {
    let short: String = said.lines().next().unwrap_or_default().chars().take(200).collect();
    if said.to_lowercase().contains("encrypt") {
        return table(
            path,
            place,
            &format!("the table is encrypted ({short})"),
            "write it anew without encryption",
        );
    }
    if said.contains(TOO_MUCH) {
        let remedy =
            format!("{AGAIN}; if it is whole, write it anew with smaller pages, or in several row groups");
        return table(path, place, &format!("the table is damaged, or {short}"), &remedy);
    }
    if said.contains("Disabled feature") || said.contains("not yet implemented") || said.starts_with("NYI") {
        let remedy = "write it anew with another compression, such as zstd";
        return table(
            path,
            place,
            &format!("it is written in a way that is not read here ({short})"),
            remedy,
        );
    }
    let remedy = if place.is_empty() {
        AGAIN.to_owned()
    } else {
        format!("{AGAIN}, or leave out what cannot be read with `data.on_bad_document: skip`")
    };
    table(path, place, &format!("the table is damaged or cut short ({short})"), &remedy)
}
