//! What the parser hands to the detector: many readings in one message.

use std::fmt;
use std::sync::Arc;

/// One measurement of one key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Number of the key, dense from 0 in the order of first appearance ([`Batch::new_keys`]).
    pub key: u32,
    /// How long the time's text is, and where it begins in the batch's, bytes.
    pub(crate) time_bytes: u32,
    pub(crate) time_start: usize,
    /// Line of the input on which the reading begins, from 1.
    pub line: u64,
    /// The measurement: finite, and at most [`VALUE_LIMIT`](super::VALUE_LIMIT) in size.
    pub value: f64,
    /// The time as a number: as it was written, or seconds since 1970 of an ISO 8601 date. None if
    /// it is neither.
    pub at: Option<f64>,
}

/// The readings of one block of input, in the order of the input, with all that is to be said of
/// the lines that are no readings.
///
/// The times of all readings share one buffer, and a key's name travels once, so that a batch costs
/// a handful of allocations however many readings it carries.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    /// The readings, in input order.
    pub readings: Vec<Reading>,
    /// Names of the keys that no earlier batch of this parser has shown; the first one's number
    /// is the count of all keys before.
    pub new_keys: Vec<Arc<str>>,
    /// What became of the lines that this batch covers.
    pub tally: Tally,
    /// The first malformed lines, as many as the parser was asked to describe; `tally` counts all.
    pub malformed: Vec<Malformed>,
    pub(crate) times: String,
}

impl Batch {
    /// Room for as many readings, and bytes of their times, as an earlier batch's [`size`](Self::size).
    pub(crate) fn with_room(size: (usize, usize)) -> Self {
        Self {
            readings: Vec::with_capacity(size.0),
            times: String::with_capacity(size.1),
            ..Self::default()
        }
    }

    pub(crate) fn size(&self) -> (usize, usize) {
        (self.readings.len(), self.times.len())
    }

    /// The time of `reading` as the input wrote it; empty if the input has no such column.
    ///
    /// # Panics
    ///
    /// If `reading` is of another batch and its text lies outside of this one's.
    pub fn time(&self, reading: &Reading) -> &str {
        &self.times[reading.time_start..][..reading.time_bytes as usize]
    }
}

/// What became of the lines of an input. Every line is exactly one of these, so that
/// `lines = readings + missing + malformed + blank + header + continued` ([`balance`](Self::balance)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Lines of input, the last one also if it does not end in a newline.
    pub lines: u64,
    /// Lines that gave a reading.
    pub readings: u64,
    /// Lines whose value is missing: empty, `NaN`, `NA` or `null` in any case. They are no error
    /// and leave the state of their key alone.
    pub missing: u64,
    /// Lines that could not be read. None of them reached the detector.
    pub malformed: u64,
    /// Lines of white space only.
    pub blank: u64,
    /// Lines that name the columns.
    pub header: u64,
    /// Lines that continue a quoted CSV field of the line before.
    pub continued: u64,
}

impl Tally {
    /// Whether every line is accounted for.
    pub fn balance(&self) -> bool {
        let Self { lines, readings, missing, malformed, blank, header, continued } = *self;
        lines == readings + missing + malformed + blank + header + continued
    }

    /// Adds the counts of `other`, the tally of another part of the same input.
    pub fn add(&mut self, other: &Self) {
        self.lines += other.lines;
        self.readings += other.readings;
        self.missing += other.missing;
        self.malformed += other.malformed;
        self.blank += other.blank;
        self.header += other.header;
        self.continued += other.continued;
    }
}

/// A line that could not be read, and why.
///
/// Displayed as `line 17, column 3 "value": "abc" is not a number`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// Line of the input on which the record begins, from 1.
    pub line: u64,
    /// The column at fault, if one is: its number from 1 (none in NDJSON) and its name.
    pub column: Option<(Option<usize>, Arc<str>)>,
    /// What is wrong.
    pub reason: Reason,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        match &self.column {
            Some((Some(number), name)) => write!(f, ", column {number} {name:?}")?,
            Some((None, name)) => write!(f, ", field {name:?}")?,
            None => {}
        }
        write!(f, ": {}", self.reason)
    }
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A CSV line has another number of fields than the header.
    #[error("{found} fields where the header has {expected}")]
    FieldCount {
        /// Fields of the line.
        found: usize,
        /// Fields of the header.
        expected: usize,
    },
    /// The value is no number.
    #[error("{text:?} is not a number")]
    NotANumber {
        /// The value, shortened.
        text: String,
    },
    /// The value is infinite or larger than [`VALUE_LIMIT`](super::VALUE_LIMIT).
    #[error("{text:?} is larger than {:e}", super::VALUE_LIMIT)]
    OutOfRange {
        /// The value, shortened.
        text: String,
    },
    /// The key is empty.
    #[error("the key is empty")]
    EmptyKey,
    /// The bytes are no UTF-8.
    #[error("not UTF-8")]
    NotUtf8,
    /// The line, or the CSV record that begins on it, is longer than
    /// [`MAX_LINE_BYTES`](super::MAX_LINE_BYTES).
    #[error("longer than {} bytes (an open quote?)", super::MAX_LINE_BYTES)]
    TooLong,
    /// The input ends inside a quoted field that begins on this line.
    #[error("a quoted field is still open at the end of the input")]
    OpenQuote,
    /// The line is no JSON object.
    #[error("not a JSON object: {0}")]
    Json(String),
    /// The JSON object lacks a field.
    #[error("the object has no such field")]
    NoField,
    /// A JSON field holds an object, an array or another type that makes no sense there.
    #[error("{text} cannot be used here")]
    WrongType {
        /// The value, shortened.
        text: String,
    },
    /// The input has more keys than the parser was told to keep.
    #[error("more than {limit} keys")]
    TooManyKeys {
        /// The limit.
        limit: usize,
    },
}

/// `bytes` as text for a message: at most 40 characters.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let mut text: String =
        String::from_utf8_lossy(&bytes[..bytes.len().min(160)]).chars().take(40).collect();
    if text.len() < bytes.len() {
        text.push('…');
    }
    text
}
