//! From bytes to readings: lines, the table of keys, and the checks that both formats share.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use memchr::{memchr, memchr_iter};

use super::batch::{Malformed, Reason, excerpt};
use super::columns::ColumnError;
use super::csv::Csv;
use super::ndjson::Ndjson;
use super::time::seconds;
use super::{Batch, ColumnNames, Reading};

/// The longest line, and the longest CSV record of several lines, in bytes without the newline.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// The largest size of a value: beyond it, the square of a difference could overflow.
pub const VALUE_LIMIT: f64 = 1e150;

/// How the input writes its readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Comma-separated values after a line that names the columns; RFC 4180, with or without
    /// carriage returns. White space around a field does not belong to it; a line end within quotes
    /// counts as one newline.
    Csv,
    /// One JSON object per line. The first object decides which fields are read.
    Ndjson,
}

/// Why an input cannot be read on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The columns cannot be found.
    #[error(transparent)]
    Columns(#[from] ColumnError),
    /// A line is malformed and the parser is [strict](Parser::strict).
    #[error("{0}")]
    Malformed(Malformed),
    /// A table is broken.
    #[cfg(feature = "tables")]
    #[error("{0}")]
    Table(String),
}

/// Turns the bytes of CSV or NDJSON into readings.
///
/// The bytes may come in blocks of any size, cut anywhere; the readings are the same. Between blocks
/// the parser keeps the unfinished last line and the names of the keys. A byte order mark before the
/// first line is skipped, the last line needs no newline, and no input makes it panic.
#[derive(Debug)]
pub struct Parser {
    records: Records,
    /// The line that the last block ended in the middle of.
    partial: Vec<u8>,
    /// That line is longer than the limit: its bytes are no longer kept.
    oversized: bool,
    sink: Sink,
}

#[derive(Debug)]
enum Records {
    Csv(Box<Csv>),
    Ndjson(Ndjson),
}

impl Parser {
    /// A parser that finds the columns by their usual names, keeps up to 2²⁴ keys and describes the
    /// first ten malformed lines.
    pub fn new(format: Format) -> Self {
        let records = match format {
            Format::Csv => Records::Csv(Box::default()),
            Format::Ndjson => Records::Ndjson(Ndjson::default()),
        };
        Self { records, partial: Vec::new(), oversized: false, sink: Sink::new() }
    }

    /// Takes the columns that are named here instead of those with the usual names.
    #[must_use]
    pub fn columns(mut self, names: ColumnNames) -> Self {
        self.sink.names = names;
        self
    }

    /// Makes the first malformed line an error.
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.sink.strict = strict;
        self
    }

    /// Keeps at most `max_keys` keys; readings of further ones are malformed. This bounds the memory
    /// that a hostile input can take.
    #[must_use]
    pub fn max_keys(mut self, max_keys: u32) -> Self {
        self.sink.max_keys = max_keys as usize;
        self
    }

    /// Reads one block of input and appends what it finds to `batch`. The line that the block ends
    /// in the middle of is kept for the next one.
    ///
    /// # Errors
    ///
    /// When the columns cannot be found, or a line is malformed and the parser is strict. `batch`
    /// then holds what came before; the parser is of no further use.
    pub fn feed(&mut self, block: &[u8], batch: &mut Batch) -> Result<(), InputError> {
        let mut rest = block;
        if !self.partial.is_empty() || self.oversized {
            let Some(end) = memchr(b'\n', rest) else {
                self.keep(rest);
                return Ok(());
            };
            self.keep(&rest[..end]);
            rest = &rest[end + 1..];
            self.end_partial(batch)?;
        }
        let mut start = 0;
        for end in memchr_iter(b'\n', rest) {
            self.line(&rest[start..end], batch)?;
            start = end + 1;
        }
        self.keep(&rest[start..]);
        Ok(())
    }

    /// Says that the input has ended: a last line without newline is complete.
    ///
    /// # Errors
    ///
    /// As [`feed`](Self::feed).
    pub fn finish(&mut self, batch: &mut Batch) -> Result<(), InputError> {
        if !self.partial.is_empty() || self.oversized {
            self.end_partial(batch)?;
        }
        match &mut self.records {
            Records::Csv(csv) => csv.finish(&mut self.sink, batch),
            Records::Ndjson(_) => Ok(()),
        }
    }

    /// Bytes of the line or record that has begun and not ended. If the input is abandoned now,
    /// these are what was read of it and not used.
    pub fn unfinished_bytes(&self) -> usize {
        match &self.records {
            Records::Csv(csv) => csv.unfinished_bytes() + self.partial.len(),
            Records::Ndjson(_) => self.partial.len(),
        }
    }

    /// The number of keys seen so far.
    pub fn keys(&self) -> usize {
        self.sink.keys()
    }

    fn keep(&mut self, piece: &[u8]) {
        if self.oversized || self.partial.len() + piece.len() > MAX_LINE_BYTES {
            self.oversized = true;
            self.partial = Vec::new();
        } else {
            self.partial.extend_from_slice(piece);
        }
    }

    fn end_partial(&mut self, batch: &mut Batch) -> Result<(), InputError> {
        let mut line = mem::take(&mut self.partial);
        let done = if mem::take(&mut self.oversized) {
            self.sink.line += 1;
            self.too_long(batch)
        } else {
            self.line(&line, batch)
        };
        line.clear();
        self.partial = line;
        done
    }

    fn line(&mut self, line: &[u8], batch: &mut Batch) -> Result<(), InputError> {
        self.sink.line += 1;
        if line.len() > MAX_LINE_BYTES {
            return self.too_long(batch);
        }
        let line = match line {
            [0xef, 0xbb, 0xbf, line @ ..] if self.sink.line == 1 => line,
            line => line,
        };
        match &mut self.records {
            Records::Csv(csv) => csv.line(line, &mut self.sink, batch),
            Records::Ndjson(ndjson) => ndjson.line(line, &mut self.sink, batch),
        }
    }

    /// The line that has just ended, whose bytes are gone, exceeds the limit.
    fn too_long(&mut self, batch: &mut Batch) -> Result<(), InputError> {
        match &mut self.records {
            Records::Csv(csv) => csv.too_long(&mut self.sink, batch),
            Records::Ndjson(_) => {
                batch.tally.lines += 1;
                let line = self.sink.line;
                self.sink.malformed(line, None, Reason::TooLong, batch)
            }
        }
    }
}

/// Where records become readings; what is common to both formats.
#[derive(Debug)]
pub(super) struct Sink {
    pub(super) names: ColumnNames,
    keys: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    pub(super) max_keys: usize,
    /// The line being read, from 1.
    pub(super) line: u64,
    /// Malformed lines that are still to be described.
    to_describe: usize,
    pub(super) strict: bool,
    /// The time of the last reading, as text and as a number.
    last_time: (String, Option<f64>),
}

/// The three fields of a record that matter, as text or number.
pub(super) struct Fields<'a> {
    pub(super) key: &'a [u8],
    pub(super) time: &'a [u8],
    pub(super) value: &'a [u8],
}

/// Which field a fault lies in: the caller knows its number and name.
pub(super) enum Fault {
    Key(Reason),
    Time(Reason),
    Value(Reason),
}

impl Sink {
    pub(super) fn new() -> Self {
        Self {
            names: ColumnNames::default(),
            keys: HashMap::default(),
            max_keys: 1 << 24,
            line: 0,
            to_describe: 10,
            strict: false,
            last_time: (String::new(), None),
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.keys.len()
    }

    /// Appends the reading, or counts the record as missing. The fields come without quotes or
    /// escapes. `line` is where the record begins.
    #[inline]
    pub(super) fn record(
        &mut self,
        line: u64,
        fields: &Fields<'_>,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let value = fields.value.trim_ascii();
        let value = match std::str::from_utf8(value).map(str::parse::<f64>) {
            Ok(Ok(number)) if number.abs() <= VALUE_LIMIT => Some(number),
            _ if is_missing(value) => None,
            Ok(Ok(_)) => return Err(Fault::Value(Reason::OutOfRange { text: excerpt(value) })),
            Ok(Err(_)) => return Err(Fault::Value(Reason::NotANumber { text: excerpt(value) })),
            Err(_) => return Err(Fault::Value(Reason::NotUtf8)),
        };
        let Ok(time) = std::str::from_utf8(fields.time.trim_ascii()) else {
            return Err(Fault::Time(Reason::NotUtf8));
        };
        let key = self.key(fields.key.trim_ascii(), batch).map_err(Fault::Key)?;
        match value {
            Some(value) => {
                let at = self.at(time);
                take(Reading { key, time_bytes: 0, time_start: 0, line, value, at }, time, batch);
            }
            None => batch.tally.missing += 1,
        }
        Ok(())
    }

    /// The same of a record whose value is a number already, as its time may be.
    #[cfg(feature = "tables")]
    pub(super) fn typed(
        &mut self,
        line: u64,
        key: &[u8],
        (time, at): (&str, Option<f64>),
        value: Option<f64>,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        // What is not a number is missing, as in text.
        let value = value.filter(|number| !number.is_nan());
        if let Some(number) = value.filter(|number| number.abs() > VALUE_LIMIT) {
            return Err(Fault::Value(Reason::OutOfRange { text: number.to_string() }));
        }
        let key = self.key(key.trim_ascii(), batch).map_err(Fault::Key)?;
        match value {
            Some(value) => {
                take(Reading { key, time_bytes: 0, time_start: 0, line, value, at }, time, batch);
            }
            None => batch.tally.missing += 1,
        }
        Ok(())
    }

    /// The time as a number. What is written in many lines in a row is read once.
    #[inline]
    pub(super) fn at(&mut self, time: &str) -> Option<f64> {
        if self.last_time.0 != time {
            self.last_time.0.clear();
            self.last_time.0.push_str(time);
            self.last_time.1 = seconds(time);
        }
        self.last_time.1
    }

    #[inline]
    fn key(&mut self, name: &[u8], batch: &mut Batch) -> Result<u32, Reason> {
        let name = std::str::from_utf8(name).map_err(|_| Reason::NotUtf8)?;
        if let Some(number) = self.keys.get(name) {
            return Ok(*number);
        }
        if name.is_empty() {
            return Err(Reason::EmptyKey);
        }
        let number = self.keys.len();
        if number >= self.max_keys {
            return Err(Reason::TooManyKeys { limit: self.max_keys });
        }
        let number = number as u32; // below `max_keys`, which was a u32
        let name: Arc<str> = name.into();
        batch.new_keys.push(Arc::clone(&name));
        self.keys.insert(name, number);
        Ok(number)
    }

    #[cold]
    pub(super) fn malformed(
        &mut self,
        line: u64,
        column: Option<(Option<usize>, Arc<str>)>,
        reason: Reason,
        batch: &mut Batch,
    ) -> Result<(), InputError> {
        batch.tally.malformed += 1;
        if self.strict {
            return Err(InputError::Malformed(Malformed { line, column, reason }));
        }
        if self.to_describe > 0 {
            self.to_describe -= 1;
            batch.malformed.push(Malformed { line, column, reason });
        }
        Ok(())
    }
}

/// Appends a reading whose time is this text.
#[inline]
fn take(reading: Reading, time: &str, batch: &mut Batch) {
    let time_start = batch.times.len();
    batch.times.push_str(time);
    let time_bytes = time.len() as u32; // at most `MAX_LINE_BYTES`
    batch.readings.push(Reading { time_bytes, time_start, ..reading });
    batch.tally.readings += 1;
}

/// Whether a value says that there is none.
fn is_missing(value: &[u8]) -> bool {
    value.is_empty() || [&b"nan"[..], b"na", b"null"].iter().any(|s| value.eq_ignore_ascii_case(s))
}

/// The key of all readings when the input has no key column.
pub(super) const ONLY_KEY: &[u8] = b"all";
