//! A file in, a compressed file out, and back.

use std::ops::Range;

use calm_data::Tokenizer;
use calm_lm::{Coding, LanguageModel};
use candle_core::DType;

use crate::bytes::{self, FALLBACK};
use crate::container::{
    BLOCK, DRAWS, Entry, Header, Kind, Model as Name, WINDOWS, hex, read_header, sum, window_of,
};
use crate::entropy::{Reader, Writer};
use crate::error::{Error, Result};
use crate::fingerprint;
use crate::pieces::{Piece, cut};
use crate::windows::{Codes, Limits, Model};

/// Windows that are chosen where nobody says how many: one for so many bytes, and at most so many.
const WINDOW: usize = 1 << 16;
const CHOSEN: usize = 16;
/// Times that a window is written anew for the sake of blocks that its model makes longer.
const ROUNDS: usize = 8;

/// What the one who writes may choose; the file says it to the one who reads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Pieces that know nothing of each other and are read side by side: more are faster and longer. None: one for every
    /// 64 KiB, at most 16.
    pub windows: Option<usize>,
    /// Tokens that are read again when the context is full. None: half the context.
    pub overlap: Option<usize>,
    /// Latent vectors a chunk, of a model that draws them. None: 32.
    pub draws: Option<usize>,
}

/// A compressed file.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// The file.
    pub bytes: Vec<u8>,
    /// Its header.
    pub header: Header,
}

/// A model as a coder.
pub struct Coder<'a> {
    coding: Box<dyn Coding + 'a>,
    tokenizer: &'a Tokenizer,
    model: Name,
}

impl<'a> Coder<'a> {
    /// Fixes the arithmetic of the model's contexts. `settings` are all that the weights do not say of it.
    ///
    /// # Errors
    /// A model without such probabilities, on a GPU, or not in 32 bits; a tokenizer with another vocabulary.
    pub fn new(model: &'a dyn LanguageModel, tokenizer: &'a Tokenizer, settings: &str) -> Result<Self> {
        let coding = fixed(model, tokenizer)?;
        let model = fingerprint::of(coding.as_ref(), tokenizer, settings)?;
        Ok(Self { coding, tokenizer, model })
    }

    /// As [`Self::new`], and what the weights do not say of the model is taken from what it makes of a fixed text: whatever
    /// its probabilities depend on counts, and nothing else.
    ///
    /// # Errors
    /// As [`Self::new`]; numbers of the model that are none.
    pub fn probed(model: &'a dyn LanguageModel, tokenizer: &'a Tokenizer) -> Result<Self> {
        let coding = fixed(model, tokenizer)?;
        let settings = fingerprint::probe(coding.as_ref())?;
        let model = fingerprint::of(coding.as_ref(), tokenizer, &settings)?;
        Ok(Self { coding, tokenizer, model })
    }

    /// Bytes that the model's numbers take as 32-bit floats.
    pub fn model_bytes(&self) -> usize {
        4 * self.coding.stores().iter().map(|store| store.element_count()).sum::<usize>()
    }

    /// The model's name in files.
    pub fn model(&self) -> String {
        hex(&self.model)
    }

    fn reader(&self, header: &Header) -> Model<'_> {
        let format = self.coding.format();
        let limits = Limits {
            context: format.context,
            overlap: (header.overlap as usize).div_ceil(self.coding.chunk_size()),
            bos: format.bos_chunk,
            draws: header.draws as usize,
        };
        Model { coding: self.coding.as_ref(), limits }
    }

    /// An empty file's header with these options.
    fn header(&self, length: usize, options: &Options) -> Result<Header> {
        let context = self.coding.format().context * self.coding.chunk_size();
        let overlap = options.overlap.unwrap_or(context / 2);
        let most = context - self.coding.chunk_size().min(context - 1);
        if !(1..=most.max(1)).contains(&overlap) && options.overlap.is_some() {
            let what =
                format!("an overlap of {overlap} tokens does not fit the model's context of {context}");
            return Err(Error::Option(what));
        }
        let windows = options.windows.unwrap_or_else(|| length.div_ceil(WINDOW).clamp(1, CHOSEN));
        let draws = match (self.coding.is_drawn(), options.draws) {
            (false, None) => 0,
            (false, Some(_)) => {
                return Err(Error::Option(
                    "this model draws no latent vectors, of which there could be some".into(),
                ));
            }
            (true, draws) => draws.unwrap_or(32),
        };
        if !(1..=WINDOWS as usize).contains(&windows)
            || (self.coding.is_drawn() && !(1..=DRAWS as usize).contains(&draws))
        {
            let what =
                format!("{windows} windows and {draws} draws: give 1 to 65,536 windows, 1 to 4,096 draws");
            return Err(Error::Option(what));
        }
        Ok(Header {
            model: self.model,
            windows: windows as u32,
            overlap: overlap.max(1) as u32,
            draws: draws as u32,
            length: length as u64,
            blocks: Vec::new(),
        })
    }

    /// A file, compressed. The result depends on the bytes, the model and the options alone.
    ///
    /// # Errors
    /// Options out of range; a file too long for the header; numbers of the model that are none.
    pub fn compress(&self, file: &[u8], options: &Options) -> Result<Compressed> {
        let mut header = self.header(file.len(), options)?;
        let most = file.len().div_ceil(header.windows as usize).min(BLOCK);
        let mut pieces = cut(file, most, self.tokenizer);
        if u32::try_from(pieces.len()).is_err() {
            return Err(Error::TooLong(file.len()));
        }
        let starts = starts(pieces.iter().map(|piece| piece.bytes.len()));
        let windows = spans(&starts, header.length, header.windows);
        let model = self.reader(&header);
        let mut codes: Vec<Vec<u8>> = Vec::with_capacity(pieces.len());
        for (window, blocks) in windows.into_iter().enumerate() {
            // A block that the model makes longer than it was is coded as bytes; those behind it then follow other tokens.
            // In the end all of those become bytes too, whose codes follow nothing of the model.
            for round in 0.. {
                let own = write_window(&model, window, &pieces[blocks.clone()])?;
                let mut worse = false;
                for (piece, code) in pieces[blocks.clone()].iter_mut().zip(&own) {
                    let last = worse && round >= ROUNDS;
                    if piece.tokens.is_some() && (last || code.len() > piece.bytes.len()) {
                        piece.tokens = None;
                        worse = true;
                    }
                }
                if !worse {
                    codes.extend(own);
                    break;
                }
            }
        }
        for (piece, code) in pieces.iter().zip(&mut codes) {
            let mut kind = piece.kind();
            if code.len() >= piece.bytes.len() && kind == Kind::Bytes {
                (kind, *code) = (Kind::Stored, piece.bytes.to_vec());
            }
            header.blocks.push(Entry {
                kind,
                bytes: piece.bytes.len() as u32,
                tokens: if kind == Kind::Tokens {
                    piece.tokens.as_ref().map_or(0, Vec::len) as u32
                } else {
                    0
                },
                code: code.len() as u32,
                code_sum: sum(code),
                plain_sum: sum(piece.bytes),
            });
        }
        let mut bytes = header.write();
        codes.iter().for_each(|code| bytes.extend(code));
        Ok(Compressed { bytes, header })
    }

    /// The original of a compressed file.
    ///
    /// # Errors
    /// Something else than such a file, another version or model, damage: the block is named.
    pub fn decompress(&self, file: &[u8]) -> Result<Vec<u8>> {
        let (header, codes) = read_header(file)?;
        if header.model != self.model {
            return Err(Error::OtherModel { file: hex(&header.model), model: hex(&self.model) });
        }
        if (header.draws > 0) != self.coding.is_drawn() {
            return Err(Error::Header);
        }
        let ends = starts(header.blocks.iter().map(|block| block.code as usize));
        let code = |block: usize| &codes[ends[block]..ends[block + 1]];
        for (i, block) in header.blocks.iter().enumerate() {
            if sum(code(i)) != block.code_sum {
                return Err(header.damaged(i));
            }
        }
        let starts = starts(header.blocks.iter().map(|block| block.bytes as usize));
        let mut windows: Vec<Codes> = Vec::new();
        let spans = spans(&starts, header.length, header.windows);
        for blocks in &spans {
            let of_tokens = blocks.clone().filter(|i| header.blocks[*i].kind == Kind::Tokens);
            windows
                .push(of_tokens.map(|i| (header.blocks[i].tokens as usize, Reader::new(code(i)))).collect());
        }
        let texts = self.reader(&header).read(windows)?;
        let mut out = Vec::with_capacity(starts.last().copied().unwrap_or(0));
        for (blocks, tokens) in spans.into_iter().zip(texts) {
            let mut rest = &tokens[..];
            for i in blocks {
                let block = &header.blocks[i];
                let bytes = match block.kind {
                    Kind::Stored => Some(code(i).to_vec()),
                    Kind::Bytes => bytes::decode(code(i), block.bytes as usize, FALLBACK),
                    Kind::Tokens => rest.split_at_checked(block.tokens as usize).map(|(own, after)| {
                        rest = after;
                        self.tokenizer.decode_bytes(own)
                    }),
                };
                match bytes {
                    Some(bytes) if bytes.len() == block.bytes as usize && sum(&bytes) == block.plain_sum => {
                        out.extend(bytes);
                    }
                    // The code is what was written: another model, or other arithmetic.
                    _ => return Err(header.differs(i)),
                }
            }
        }
        Ok(out)
    }
}

/// The model's probabilities, in the one arithmetic.
fn fixed<'a>(model: &'a dyn LanguageModel, tokenizer: &Tokenizer) -> Result<Box<dyn Coding + 'a>> {
    let coding = model.coding().ok_or(Error::NoProbabilities)?;
    let vocab = coding.format().vocab_size;
    if !(2..1 << 24).contains(&vocab) {
        return Err(Error::Vocabulary(vocab));
    }
    if tokenizer.vocab_size() != vocab {
        return Err(Error::Tokenizer { tokenizer: tokenizer.vocab_size(), model: vocab });
    }
    for store in coding.stores() {
        if !store.device().is_cpu() || store.compute() != DType::F32 {
            return Err(Error::NotFixed);
        }
        store.context().fix();
    }
    Ok(coding)
}

/// The codes of a window's pieces.
fn write_window(model: &Model<'_>, window: usize, pieces: &[Piece<'_>]) -> Result<Vec<Vec<u8>>> {
    let tokens: Vec<u32> =
        pieces.iter().filter_map(|piece| piece.tokens.as_deref()).flatten().copied().collect();
    let mut intervals = Vec::with_capacity(tokens.len());
    if !tokens.is_empty() {
        model.write(window, &tokens, |interval| intervals.push(interval))?;
    }
    if intervals.len() != tokens.len() {
        let what = format!("{} of {} tokens were given probabilities", intervals.len(), tokens.len());
        return Err(candle_core::Error::Msg(what).into());
    }
    let mut rest = intervals.into_iter();
    let code = |piece: &Piece<'_>| match &piece.tokens {
        None => bytes::encode(piece.bytes, FALLBACK),
        Some(tokens) => {
            let mut writer = Writer::new();
            rest.by_ref().take(tokens.len()).for_each(|interval| writer.push(interval));
            writer.finish()
        }
    };
    Ok(pieces.iter().map(code).collect())
}

/// Where each of these lengths begins, and where the last ends.
fn starts(lengths: impl Iterator<Item = usize>) -> Vec<usize> {
    let mut at = 0;
    let ends = lengths.map(|length| {
        at += length;
        at
    });
    std::iter::once(0).chain(ends.collect::<Vec<_>>()).collect()
}

/// The blocks of each window.
fn spans(starts: &[usize], length: u64, windows: u32) -> Vec<Range<usize>> {
    let blocks = starts.len() - 1;
    let window = |block: usize| window_of(starts[block] as u64, length, windows);
    let mut out: Vec<Range<usize>> = Vec::with_capacity(windows as usize);
    let mut next = 0;
    for i in 0..windows as usize {
        let from = next;
        while next < blocks && window(next) <= i {
            next += 1;
        }
        out.push(from..next);
    }
    out
}
