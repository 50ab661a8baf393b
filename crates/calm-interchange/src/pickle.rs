//! Pickles of all protocols (0 to 5) as plain nodes. Nothing is ever run: a call that a pickle asks for is written down.
//!
//! Values live in one arena and name each other by number, so that neither a value that holds itself a million times
//! nor one nested a million deep costs more than its bytes (candle's reader copies what it looks up, knows protocol 2
//! alone, and takes the lengths in the file at their word).

use rustc_hash::FxHashMap;

/// Number of a value in the arena.
pub(super) type Id = usize;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Text(Box<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name in a Python module: a class or a function.
    Global(Box<(String, String)>),
    /// What would be made by calling something.
    Call {
        callable: Id,
        args: Id,
    },
    /// Something that lies outside, by its key.
    Outside(Id),
    /// What no weights are made of: bytes, floats, numbers of more than 64 bits, sets.
    Other,
}

/// A whole pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    nodes: Vec<Node>,
    /// The value that it stands for.
    pub top: Id,
}

impl Pickle {
    pub(super) fn node(&self, id: Id) -> &Node {
        // Ids come from the machine alone.
        self.nodes.get(id).unwrap_or(&Node::Other)
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.node(id) {
            Node::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.node(id) {
            Node::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Whole numbers of 0 or more.
    pub(super) fn size(&self, id: Id) -> Option<usize> {
        match self.node(id) {
            Node::Int(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    /// `module.name` of a class or a function.
    pub(super) fn global(&self, id: Id) -> Option<String> {
        match self.node(id) {
            Node::Global(name) => Some(format!("{}.{}", name.0, name.1)),
            _ => None,
        }
    }

    /// Reads a pickle.
    ///
    /// # Errors
    /// What is wrong with it, for a message that names the file.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine {
            rest: bytes,
            // The values that come without bytes of their own.
            nodes: vec![
                Node::None,
                Node::Bool(false),
                Node::Bool(true),
                Node::Other,
                Node::Tuple(Vec::new()),
            ],
            stack: Vec::new(),
            marks: Vec::new(),
            memo: FxHashMap::default(),
        };
        while !machine.step()? {}
        let top = machine.pop()?;
        Ok(Self { nodes: machine.nodes, top })
    }
}

const NONE: Id = 0;
const FALSE: Id = 1;
const TRUE: Id = 2;
const OTHER: Id = 3;
const EMPTY_TUPLE: Id = 4;

struct Machine<'a> {
    rest: &'a [u8],
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: FxHashMap<usize, Id>,
}

impl<'a> Machine<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or("its pickle ends too early")?;
        self.rest = rest;
        Ok(taken)
    }

    /// A little-endian number of `n` bytes, at most 8.
    fn number(&mut self, n: usize) -> Result<usize, String> {
        let value = self.take(n)?.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).map_err(|_| "its pickle names a length of more bytes than fit".to_owned())
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.rest.iter().position(|b| *b == b'\n').ok_or("its pickle ends too early")?;
        let line = String::from_utf8_lossy(self.take(end)?).trim_end_matches('\r').to_owned();
        self.take(1)?;
        Ok(line)
    }

    fn push(&mut self, node: Node) {
        self.stack.push(self.nodes.len());
        self.nodes.push(node);
    }

    fn pop(&mut self) -> Result<Id, String> {
        // What lies below a mark belongs to something unfinished.
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err("its pickle takes a value that is not there".into());
        }
        self.stack.pop().ok_or_else(|| "its pickle takes a value that is not there".into())
    }

    fn last(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "its pickle looks for a value that is not there".into())
    }

    /// Everything above the last mark.
    fn pop_mark(&mut self) -> Result<Vec<Id>, String> {
        let at = self.marks.pop().ok_or("its pickle misses a mark")?;
        if at > self.stack.len() {
            return Err("its pickle misses a mark".into());
        }
        Ok(self.stack.split_off(at))
    }

    fn push_text(&mut self, length: usize) -> Result<(), String> {
        let text =
            std::str::from_utf8(self.take(length)?).map_or(Node::Other, |text| Node::Text(text.into()));
        self.push(text);
        Ok(())
    }

    fn skip(&mut self, length: usize) -> Result<(), String> {
        self.take(length)?;
        self.stack.push(OTHER);
        Ok(())
    }

    /// A whole number in two's complement, of any length.
    fn long(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.take(length)?;
        if bytes.len() > 8 {
            self.stack.push(OTHER);
            return Ok(());
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut full = [if negative { 0xff } else { 0 }; 8];
        full[..bytes.len()].copy_from_slice(bytes);
        self.push(Node::Int(i64::from_le_bytes(full)));
        Ok(())
    }

    fn get(&mut self, key: usize) -> Result<(), String> {
        let id = *self.memo.get(&key).ok_or("its pickle looks for a value that is not there")?;
        self.stack.push(id);
        Ok(())
    }

    fn call(&mut self, callable: Id, args: Id) {
        let dict = match &self.nodes[callable] {
            Node::Global(name) => {
                name.0 == "collections" && matches!(name.1.as_str(), "OrderedDict" | "defaultdict")
            }
            _ => false,
        };
        self.push(if dict { Node::Dict(Vec::new()) } else { Node::Call { callable, args } });
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<(), String> {
        let list = self.last()?;
        // Sets and classes of others take items too; nothing of theirs is looked at.
        if let Node::List(list) = &mut self.nodes[list] {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.last()?;
        let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        match &mut self.nodes[dict] {
            Node::Dict(dict) => dict.extend(pairs),
            // A class of somebody's that is a dictionary.
            other @ Node::Call { .. } => *other = Node::Dict(pairs.collect()),
            _ => {}
        }
        Ok(())
    }

    /// One instruction; whether it was the last.
    fn step(&mut self) -> Result<bool, String> {
        match self.take(1)?[0] {
            // PROTO, FRAME
            0x80 => drop(self.take(1)?),
            0x95 => drop(self.take(8)?),
            b'.' => return Ok(true),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(self.last()?),
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b'K' => self.integer(1)?,
            b'M' => self.integer(2)?,
            b'J' => {
                let bytes = self.take(4)?;
                let value = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                self.push(Node::Int(value.into()));
            }
            0x8a => {
                let length = self.number(1)?;
                self.long(length)?;
            }
            0x8b => {
                let length = self.number(4)?;
                self.long(length)?;
            }
            b'G' => self.skip(8)?,
            // Text: BINUNICODE, SHORT_BINUNICODE, BINUNICODE8, and Python 2's strings.
            b'X' | b'T' => self.text(4)?,
            0x8c | b'U' => self.text(1)?,
            0x8d => self.text(8)?,
            // Bytes.
            b'B' => self.bytes(4)?,
            b'C' => self.bytes(1)?,
            0x8e | 0x96 => self.bytes(8)?,
            // Tuples.
            b')' => self.stack.push(EMPTY_TUPLE),
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items));
            }
            op @ 0x85..=0x87 => {
                let mut items: Vec<Id> = (0x85..=op).map(|_| self.pop()).collect::<Result<_, _>>()?;
                items.reverse();
                self.push(Node::Tuple(items));
            }
            // Lists, sets, dictionaries.
            b']' => self.push(Node::List(Vec::new())),
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            0x8f => self.stack.push(OTHER),
            0x91 => {
                self.pop_mark()?;
                self.stack.push(OTHER);
            }
            b'}' => self.push(Node::Dict(Vec::new())),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()));
                self.set(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(&items)?;
            }
            // The memo.
            b'q' => self.put(1)?,
            b'r' => self.put(4)?,
            0x94 => {
                let id = self.last()?;
                self.memo.insert(self.memo.len(), id);
            }
            b'h' => {
                let key = self.number(1)?;
                self.get(key)?;
            }
            b'j' => {
                let key = self.number(4)?;
                self.get(key)?;
            }
            // Names and calls.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(Node::Global(Box::new((module, name))));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let global = match (&self.nodes[module], &self.nodes[name]) {
                    (Node::Text(module), Node::Text(name)) => {
                        Node::Global(Box::new((module.to_string(), name.to_string())))
                    }
                    _ => Node::Other,
                };
                self.push(global);
            }
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args);
            }
            0x92 => {
                let (_, args, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, args);
            }
            // The state of an object: a dictionary's attributes are none of its items.
            b'b' => drop(self.pop()?),
            b'Q' => {
                let key = self.pop()?;
                self.push(Node::Outside(key));
            }
            // Protocols 0 and 1: values as lines of text, instances as calls.
            b'I' | b'L' => {
                let line = self.line()?;
                self.decimal(&line);
            }
            b'F' => {
                self.line()?;
                self.stack.push(OTHER);
            }
            b'S' => {
                let line = self.line()?;
                let quoted = line.len() > 1 && line.starts_with(['\'', '"']) && line.ends_with(&line[..1]);
                let text = quoted
                    .then(|| &line[1..line.len() - 1])
                    .ok_or("its pickle holds a string without quotes")?;
                self.push(unescaped(text));
            }
            b'V' => {
                let line = self.line()?;
                self.push(unescaped(&line));
            }
            b'p' => {
                let key = self.key()?;
                let id = self.last()?;
                self.memo.insert(key, id);
            }
            b'g' => {
                let key = self.key()?;
                self.get(key)?;
            }
            b'P' => {
                let line = self.line()?;
                let key = self.nodes.len();
                self.nodes.push(Node::Text(line.into()));
                self.push(Node::Outside(key));
            }
            b'i' => {
                let class = Node::Global(Box::new((self.line()?, self.line()?)));
                let items = self.pop_mark()?;
                self.instance(class, items);
            }
            b'o' => {
                let mut items = self.pop_mark()?;
                if items.is_empty() {
                    return Err("its pickle makes an object of no class".into());
                }
                let class = self.nodes[items.remove(0)].clone();
                self.instance(class, items);
            }
            op => return Err(format!("its pickle holds the unknown instruction {op:#04x}")),
        }
        Ok(false)
    }

    /// A number in a memo's line.
    fn key(&mut self) -> Result<usize, String> {
        self.line()?.parse().map_err(|_| "its pickle looks for a value that is not there".to_owned())
    }

    /// A whole number in a line; `00` and `01` are how protocol 0 and 1 write what is false and true.
    fn decimal(&mut self, line: &str) {
        match (line, line.trim_end_matches('L').parse()) {
            ("00", _) => self.stack.push(FALSE),
            ("01", _) => self.stack.push(TRUE),
            (_, Ok(value)) => self.push(Node::Int(value)),
            // Of more than 64 bits.
            (_, Err(_)) => self.stack.push(OTHER),
        }
    }

    fn instance(&mut self, class: Node, items: Vec<Id>) {
        let callable = self.nodes.len();
        self.nodes.extend([class, Node::Tuple(items)]);
        self.call(callable, callable + 1);
    }

    fn integer(&mut self, bytes: usize) -> Result<(), String> {
        let value = self.number(bytes)?;
        self.push(Node::Int(value as i64));
        Ok(())
    }

    fn text(&mut self, bytes: usize) -> Result<(), String> {
        let length = self.number(bytes)?;
        self.push_text(length)
    }

    fn bytes(&mut self, bytes: usize) -> Result<(), String> {
        let length = self.number(bytes)?;
        self.skip(length)
    }

    fn put(&mut self, bytes: usize) -> Result<(), String> {
        let key = self.number(bytes)?;
        let id = self.last()?;
        self.memo.insert(key, id);
        Ok(())
    }
}

/// A text in a line; one with escapes is the name of no tensor.
fn unescaped(text: &str) -> Node {
    if text.contains('\\') { Node::Other } else { Node::Text(text.into()) }
}

#[cfg(test)]
mod tests;
