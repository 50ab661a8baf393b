//! What can go wrong, and what to do about it.

use std::ops::Range;

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model without usable probabilities.
    #[error("this model gives no probabilities that come out the same on every machine")]
    NoProbabilities,
    /// Activations that are not f32 on the CPU.
    #[error("the model is not on the CPU in 32 bits: other arithmetic differs from machine to machine")]
    NotFixed,
    /// More ids than 31 bits hold, or too few to be told apart.
    #[error("a vocabulary of {0} tokens cannot be coded")]
    Vocabulary(usize),
    /// A tokenizer with other ids than the model's.
    #[error("the tokenizer has {tokenizer} tokens and the model {model}")]
    Tokenizer {
        /// Its tokens.
        tokenizer: usize,
        /// The model's.
        model: usize,
    },
    /// A token beyond the model's vocabulary.
    #[error("token {0} is none that the model knows")]
    Token(u32),
    /// An option out of range.
    #[error("{0}")]
    Option(String),
    /// More bytes than a header counts.
    #[error("a file of {0} bytes is too long")]
    TooLong(usize),
    /// Something else.
    #[error("this is no file that calm has compressed")]
    Foreign,
    /// Of another version.
    #[error("the file is of version {file}; this program reads version {own}")]
    Version {
        /// Of the file.
        file: u16,
        /// What is read.
        own: u16,
    },
    /// Another model.
    #[error("the file was compressed with model {file}, and this is model {model}")]
    OtherModel {
        /// Named in the file.
        file: String,
        /// The one that was given.
        model: String,
    },
    /// The header does not fit its checksum.
    #[error("the file's header is damaged")]
    Header,
    /// Fewer bytes than the header says.
    #[error(
        "the file ends after {found} of {expected} bytes: block {number} of {blocks} (bytes {} to {} of the original) is \
         the first that is not all there",
        bytes.start,
        bytes.end
    )]
    CutOff {
        /// Bytes of the file.
        found: usize,
        /// There must be.
        expected: usize,
        /// From 1.
        number: usize,
        /// How many there are.
        blocks: usize,
        /// Of the original file.
        bytes: Range<u64>,
    },
    /// More bytes than the header says.
    #[error("the file has {found} bytes where its header asks for {expected}")]
    Length {
        /// There are.
        found: usize,
        /// There must be.
        expected: usize,
    },
    /// A block's code does not fit its checksum, or says something impossible.
    #[error("block {number} of {blocks} (bytes {} to {} of the original) is damaged", bytes.start, bytes.end)]
    Block {
        /// From 1.
        number: usize,
        /// How many there are.
        blocks: usize,
        /// Of the original file.
        bytes: Range<u64>,
    },
    /// A block's code is whole, and became other bytes than went in.
    #[error(
        "block {number} of {blocks} (bytes {} to {} of the original) came out other than it went in, though its code is \
         whole",
        bytes.start,
        bytes.end
    )]
    Differs {
        /// From 1.
        number: usize,
        /// How many there are.
        blocks: usize,
        /// Of the original file.
        bytes: Range<u64>,
    },
    /// Of the model.
    #[error(transparent)]
    Model(#[from] candle_core::Error),
    /// Of the tokenizer.
    #[error(transparent)]
    Data(#[from] calm_data::Error),
}

impl Error {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::NoProbabilities => {
                "name a run with --run whose model is a softmax over tokens, or a CALM with an energy head and \
                 `decode: sample`; its `attention` must be `causal`"
                    .into()
            }
            Self::OtherModel { .. } => {
                "name the run (and checkpoint) that compressed it with --run and --checkpoint".into()
            }
            Self::NotFixed => "load the model on the CPU in 32 bits".into(),
            Self::Vocabulary(_) => "train a model of 2 to 16,777,215 tokens".into(),
            Self::Tokenizer { .. } | Self::Token(_) => "give the tokenizer that the model was trained with".into(),
            Self::Option(_) => "leave the option out: what is chosen then fits".into(),
            Self::TooLong(_) => "cut the file and compress its parts".into(),
            Self::Version { file, own } if file > own => "use a newer calm".into(),
            Self::Version { .. } => "use the release that wrote it".into(),
            Self::Foreign => "give a file that `calm compress` wrote".into(),
            Self::Header | Self::CutOff { .. } | Self::Length { .. } | Self::Block { .. } => {
                "take an undamaged copy of the file".into()
            }
            Self::Differs { .. } => {
                "the arithmetic of this machine differs from that of the one that compressed it: please report both"
                    .into()
            }
            Self::Data(e) => return e.remedy(),
            _ => return None,
        })
    }
}
