//! CSV with names.

use std::io::Read;
use std::ops::ControlFlow;

use csv::{ByteRecord, ErrorKind, ReaderBuilder, Trim};
use indexmap::IndexSet;

use super::{Edges, Faults, Malformed, Nodes, Progress, ReadError, Reader, Reason, go_on};

/// Records between two calls of whoever watches.
const WATCHED: usize = 1 << 17;

/// Names of columns that hold an edge's ends.
pub(super) const KNOWN: [[&str; 2]; 4] =
    [["source", "target"], ["from", "to"], ["src", "dst"], ["fromnodeid", "tonodeid"]];

pub(super) type Names = IndexSet<Box<str>, foldhash::fast::RandomState>;

impl Reader {
    pub(super) fn csv(
        &self,
        input: impl Read,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges, ReadError> {
        let mut input = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .trim(Trim::All)
            .buffer_capacity(1 << 18)
            .from_reader(input);
        let mut names = Names::default();
        let mut pairs = Vec::new();
        let mut faults = Faults::default();
        let mut record = ByteRecord::new();
        let mut columns = None;
        while input.read_byte_record(&mut record).map_err(failed)? {
            let [source, target] = match columns {
                Some(columns) => columns,
                None => {
                    let (found, named) = self.find_columns(&record)?;
                    columns = Some(found);
                    if named {
                        continue;
                    }
                    found
                }
            };
            let name = |column| -> Result<&str, Reason> {
                let field = record.get(column).ok_or(Reason::NoField)?;
                std::str::from_utf8(field).map_err(|_| Reason::NotUtf8)
            };
            // Both before either is numbered: a line with a fault names no node.
            match name(source).and_then(|source| Ok([source, name(target)?])) {
                Ok([source, target]) => {
                    pairs.push([number(&mut names, source)?, number(&mut names, target)?])
                }
                Err(reason) => {
                    let line = record.position().map_or(0, csv::Position::line);
                    self.malformed(&mut faults, Malformed { line, reason })?;
                }
            }
            if pairs.len() % WATCHED == 0 {
                go_on(watch(Progress { bytes: input.position().byte(), edges: pairs.len() }))?;
            }
        }
        go_on(watch(Progress { bytes: input.position().byte(), edges: pairs.len() }))?;
        Ok(Edges::new(pairs, Nodes::Names(names.into_iter().collect()), faults))
    }

    /// Which columns hold the ends, and whether the first line is there to say so.
    fn find_columns(&self, first: &ByteRecord) -> Result<([usize; 2], bool), ReadError> {
        let position =
            |name: &str| first.iter().position(|field| field.eq_ignore_ascii_case(name.as_bytes()));
        if let Some(columns) = &self.columns {
            let [source, target] = columns
                .each_ref()
                .map(|name| position(name).ok_or_else(|| ReadError::NoColumn(name.clone())));
            return Ok(([source?, target?], true));
        }
        for [source, target] in KNOWN {
            if let (Some(source), Some(target)) = (position(source), position(target)) {
                return Ok(([source, target], true));
            }
        }
        Ok(([0, 1], false))
    }
}

/// The number of a name; the next one if it is new.
pub(super) fn number(names: &mut Names, name: &str) -> Result<u32, ReadError> {
    let index = match names.get_index_of(name) {
        Some(index) => index,
        None => names.insert_full(name.into()).0,
    };
    u32::try_from(index).map_err(|_| ReadError::TooManyNodes)
}

/// Records of bytes and of any length cannot be wrong: only the input can fail.
fn failed(error: csv::Error) -> ReadError {
    match error.into_kind() {
        ErrorKind::Io(error) => ReadError::Io(error),
        other => ReadError::Io(std::io::Error::other(format!("{other:?}"))),
    }
}
