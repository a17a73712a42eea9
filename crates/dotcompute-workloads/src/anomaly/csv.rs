//! CSV: a line without quotes is cut at its commas; one with quotes goes through `csv-core`, which
//! keeps its place when a quoted field goes on in the next line.

use std::iter;
use std::mem;
use std::sync::Arc;

use csv_core::{ReadRecordResult, ReaderBuilder, Terminator};
use memchr::{memchr, memchr_iter};

use super::Batch;
use super::batch::Reason;
use super::columns::{ColumnError, Columns};
use super::parser::{Fault, Fields, InputError, MAX_LINE_BYTES, ONLY_KEY, Sink};

#[derive(Debug, Default)]
pub(super) struct Csv {
    header: Option<Header>,
    quoted: Quoted,
}

#[derive(Debug)]
struct Header {
    columns: Columns,
    names: Vec<Arc<str>>,
}

impl Csv {
    /// Reads the next line, without its newline.
    pub(super) fn line(
        &mut self,
        line: &[u8],
        sink: &mut Sink,
        batch: &mut Batch,
    ) -> Result<(), InputError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if !self.quoted.open {
            if memchr(b'"', line).is_none() {
                batch.tally.lines += 1;
                if line.trim_ascii().is_empty() {
                    batch.tally.blank += 1;
                    return Ok(());
                }
                let mut start = 0;
                let fields = memchr_iter(b',', line).chain(iter::once(line.len())).map(|end| {
                    let field = &line[start..end];
                    start = end + 1;
                    field
                });
                return record(&mut self.header, sink.line, fields, sink, batch);
            }
            self.quoted.begin(sink.line);
        }
        if self.quoted.bytes + line.len() > MAX_LINE_BYTES {
            return self.too_long(sink, batch);
        }
        if self.quoted.feed(line) {
            count_lines(sink.line - self.quoted.first_line, batch);
            let Quoted { text, ends, first_line, .. } = &self.quoted;
            let fields =
                ends.iter().scan(0, |start, end| Some(&text[mem::replace(start, *end)..*end]));
            record(&mut self.header, *first_line, fields, sink, batch)?;
        }
        Ok(())
    }

    /// The line that has just ended, or the record with it, is longer than the limit.
    pub(super) fn too_long(
        &mut self,
        sink: &mut Sink,
        batch: &mut Batch,
    ) -> Result<(), InputError> {
        let first_line = if self.quoted.open { self.quoted.first_line } else { sink.line };
        self.abandon(first_line, Reason::TooLong, sink, batch)
    }

    /// The input has ended.
    pub(super) fn finish(&mut self, sink: &mut Sink, batch: &mut Batch) -> Result<(), InputError> {
        if !self.quoted.open {
            return Ok(());
        }
        self.abandon(self.quoted.first_line, Reason::OpenQuote, sink, batch)
    }

    fn abandon(
        &mut self,
        first_line: u64,
        reason: Reason,
        sink: &mut Sink,
        batch: &mut Batch,
    ) -> Result<(), InputError> {
        self.quoted.open = false;
        self.quoted.reader.reset();
        count_lines(sink.line - first_line, batch);
        if self.header.is_none() {
            batch.tally.header += 1;
            return Err(ColumnError::Unreadable { line: first_line, reason }.into());
        }
        sink.malformed(first_line, None, reason, batch)
    }

    pub(super) fn unfinished_bytes(&self) -> usize {
        if self.quoted.open { self.quoted.bytes } else { 0 }
    }
}

/// Counts the lines of a record when it ends, so that the tally balances at any time.
fn count_lines(continued: u64, batch: &mut Batch) {
    batch.tally.lines += 1 + continued;
    batch.tally.continued += continued;
}

/// One whole record, which begins on `line`: the header if there is none yet, else a reading.
#[inline]
fn record<'a>(
    header: &mut Option<Header>,
    line: u64,
    fields: impl Iterator<Item = &'a [u8]>,
    sink: &mut Sink,
    batch: &mut Batch,
) -> Result<(), InputError> {
    let Some(header) = header else {
        batch.tally.header += 1;
        *header = Some(read_header(line, fields, sink)?);
        return Ok(());
    };
    let columns = &header.columns;
    let mut picked = Fields { key: ONLY_KEY, time: b"", value: b"" };
    let mut found = 0;
    for field in fields {
        if found == columns.value {
            picked.value = field;
        } else if Some(found) == columns.key {
            picked.key = field;
        } else if Some(found) == columns.time {
            picked.time = field;
        }
        found += 1;
    }
    let expected = header.names.len();
    if found != expected {
        return sink.malformed(line, None, Reason::FieldCount { found, expected }, batch);
    }
    let (column, reason) = match sink.record(line, &picked, batch) {
        Ok(()) => return Ok(()),
        Err(Fault::Key(reason)) => (columns.key, reason),
        Err(Fault::Time(reason)) => (columns.time, reason),
        Err(Fault::Value(reason)) => (Some(columns.value), reason),
    };
    let column = column.map(|i| (Some(i + 1), Arc::clone(&header.names[i])));
    sink.malformed(line, column, reason, batch)
}

fn read_header<'a>(
    line: u64,
    fields: impl Iterator<Item = &'a [u8]>,
    sink: &Sink,
) -> Result<Header, ColumnError> {
    let names: Result<Vec<String>, _> =
        fields.map(|f| std::str::from_utf8(f.trim_ascii()).map(String::from)).collect();
    let names = names.map_err(|_| ColumnError::Unreadable { line, reason: Reason::NotUtf8 })?;
    let columns = sink.names.find(line, &names)?;
    Ok(Header { columns, names: names.into_iter().map(Arc::from).collect() })
}

/// A record with quotes, which may go over several lines.
///
/// Never to be cloned: in csv-core 0.1.13 the copy of a reader lacks most of its tables, and reads
/// every byte as a field of its own.
#[derive(Debug)]
struct Quoted {
    reader: csv_core::Reader,
    /// The fields without quotes, one after the other, and where each ends.
    text: Vec<u8>,
    ends: Vec<usize>,
    first_line: u64,
    /// Bytes of input taken by the record so far.
    bytes: usize,
    /// The record goes on in the next line.
    open: bool,
}

impl Default for Quoted {
    fn default() -> Self {
        // Lines come without their end, and only the newline between two of them is fed.
        let reader = ReaderBuilder::new().terminator(Terminator::Any(b'\n')).build();
        Self { reader, text: Vec::new(), ends: Vec::new(), first_line: 0, bytes: 0, open: false }
    }
}

impl Quoted {
    fn begin(&mut self, line: u64) {
        self.text.clear();
        self.ends.clear();
        self.first_line = line;
        self.bytes = 0;
        self.open = true;
    }

    /// Takes the next line of the record; returns whether the record ends with it.
    fn feed(&mut self, line: &[u8]) -> bool {
        self.bytes += line.len() + 1;
        // No field is longer than its input, and there are no more fields than bytes.
        let (filled, ended) = (self.text.len(), self.ends.len());
        self.text.resize(filled + line.len() + 1, 0);
        self.ends.resize(ended + line.len() + 1, 0);
        let (mut text, mut ends) = (filled, ended);
        for mut input in [line, b"\n"] {
            while !input.is_empty() {
                let (result, read, written, fields) =
                    self.reader.read_record(input, &mut self.text[text..], &mut self.ends[ends..]);
                input = &input[read..];
                text += written;
                ends += fields;
                if matches!(result, ReadRecordResult::Record) {
                    self.open = false;
                }
            }
        }
        self.text.truncate(text);
        self.ends.truncate(ends);
        !self.open
    }
}
