//! Rows of a table of Parquet or Arrow, whose cells are numbers already.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow_array::RecordBatch;
use jiff::{SignedDuration, Timestamp, civil};

use super::columns::Columns;
use super::parser::{Fault, ONLY_KEY, Sink};
use super::{Batch, ColumnError, ColumnNames, InputError};
use crate::tables::{Cells, Column, TableError, Tables, Ticks, Zone};

/// Turns the rows of a table into readings. Rows count as lines, from 1.
///
/// The key is text or a whole number, the value a number, the time a number, a date, a time of day of
/// a date, or text as in CSV. A null value is missing, and a null key a fault.
///
/// # Examples
///
/// ```no_run
/// use std::fs::File;
/// use dotcompute_workloads::anomaly::{Batch, ColumnNames, TableReader};
/// use dotcompute_workloads::tables::Tables;
///
/// let tables = Tables::open(File::open("readings.parquet")?)?;
/// let mut reader = TableReader::new(tables, ColumnNames::default())?;
/// let mut batch = Batch::default();
/// while reader.read_next(&mut batch)? {}
/// println!("{} readings", batch.tally.readings);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TableReader {
    tables: Tables,
    columns: Columns,
    names: Vec<Arc<str>>,
    sink: Sink,
}

impl TableReader {
    /// A reader of these columns; those that are not named are found by their usual names.
    ///
    /// # Errors
    ///
    /// If they are not there.
    pub fn new(mut tables: Tables, names: ColumnNames) -> Result<Self, ColumnError> {
        let columns = names.find(0, tables.columns())?;
        let wanted = [columns.key, columns.time, Some(columns.value)];
        tables.want(wanted.into_iter().flatten());
        let names = tables.columns().iter().map(|name| name.as_str().into()).collect();
        Ok(Self { tables, columns, names, sink: Sink::new() })
    }

    /// See [`Parser::strict`](super::Parser::strict).
    #[must_use]
    pub fn strict(mut self, strict: bool) -> Self {
        self.sink.strict = strict;
        self
    }

    /// See [`Parser::max_keys`](super::Parser::max_keys).
    #[must_use]
    pub fn max_keys(mut self, max_keys: u32) -> Self {
        self.sink.max_keys = max_keys as usize;
        self
    }

    /// Appends the next rows, some thousand, to `batch`; `false` at the end.
    ///
    /// # Errors
    ///
    /// When the table is broken, a column is of a type that cannot be used, or a row is malformed and
    /// the reader is strict. `batch` then holds what came before.
    pub fn read_next(&mut self, batch: &mut Batch) -> Result<bool, InputError> {
        let broken = |error: TableError| InputError::Table(error.to_string());
        let Some(rows) = self.tables.next().map_err(broken)? else { return Ok(false) };
        let Columns { key, time, value: measured } = self.columns;
        let key_cells =
            key.map(|at| column(&rows, &self.names[at], "text or whole numbers", is_key));
        let time_cells = time.map(|at| column(&rows, &self.names[at], "times", |_| true));
        let (key_cells, time_cells) = (key_cells.transpose()?, time_cells.transpose()?);
        let value_cells = column(&rows, &self.names[measured], "numbers", is_number)?;
        let (mut key_text, mut time_text) = (String::new(), String::new());
        for row in 0..rows.num_rows() {
            self.sink.line += 1;
            batch.tally.lines += 1;
            let value = match &value_cells.cells {
                _ if value_cells.is_null(row) => None,
                Cells::Real(of) => Some(of(row)),
                Cells::Whole(of) => Some(of(row) as f64),
                _ => None,
            };
            let key_bytes: &[u8] = match &key_cells {
                None => ONLY_KEY,
                Some(cells) if cells.is_null(row) => b"",
                Some(Column { cells: Cells::Text(of), .. }) => of(row).as_bytes(),
                Some(Column { cells: Cells::Whole(of), .. }) => {
                    key_text.clear();
                    // Writing into a String does not fail.
                    let _ = write!(key_text, "{}", of(row));
                    key_text.as_bytes()
                }
                Some(_) => b"",
            };
            time_text.clear();
            let at = match &time_cells {
                Some(cells) if !cells.is_null(row) => {
                    time_of(&cells.cells, row, &mut time_text, &mut self.sink)
                }
                _ => None,
            };
            let line = self.sink.line;
            let read = self.sink.typed(line, key_bytes, (&time_text, at), value, batch);
            let (at, reason) = match read {
                Ok(()) => continue,
                Err(Fault::Key(reason)) => (key, reason),
                Err(Fault::Time(reason)) => (time, reason),
                Err(Fault::Value(reason)) => (Some(measured), reason),
            };
            let at = at.map(|at| (Some(at + 1), Arc::clone(&self.names[at])));
            self.sink.malformed(line, at, reason, batch)?;
        }
        Ok(true)
    }

    /// How many rows there are, where the file says it.
    pub fn rows(&self) -> Option<u64> {
        self.tables.rows()
    }

    /// The number of keys seen so far.
    pub fn keys(&self) -> usize {
        self.sink.keys()
    }
}

/// The cells of a column, if they can be used.
fn column<'a>(
    rows: &'a RecordBatch,
    name: &str,
    wanted: &'static str,
    usable: impl Fn(&Cells<'_>) -> bool,
) -> Result<Column<'a>, ColumnError> {
    // It was there when the table was opened.
    let array = rows.column_by_name(name);
    let found = array.and_then(|array| Column::new(array.as_ref()));
    found.filter(|column| usable(&column.cells)).ok_or_else(|| ColumnError::WrongType {
        name: name.to_owned(),
        kind: array.map_or_else(String::new, |array| array.data_type().to_string()),
        wanted,
    })
}

fn is_key(cells: &Cells<'_>) -> bool {
    matches!(cells, Cells::Text(_) | Cells::Whole(_) | Cells::Null)
}

fn is_number(cells: &Cells<'_>) -> bool {
    matches!(cells, Cells::Real(_) | Cells::Whole(_) | Cells::Null)
}

/// The time of a row, as text, and as a number if it is one.
fn time_of(cells: &Cells<'_>, row: usize, text: &mut String, sink: &mut Sink) -> Option<f64> {
    // Writing into a String does not fail.
    match cells {
        Cells::Text(of) => {
            text.push_str(of(row).trim_ascii());
            sink.at(text)
        }
        Cells::Whole(of) => {
            let _ = write!(text, "{}", of(row));
            Some(of(row) as f64)
        }
        Cells::Real(of) => {
            let _ = write!(text, "{}", of(row));
            Some(of(row)).filter(|at| at.is_finite())
        }
        Cells::Time(of, Ticks::Days) => {
            let days = of(row);
            if let Ok(date) =
                civil::date(1970, 1, 1).checked_add(SignedDuration::from_hours(24 * days))
            {
                let _ = write!(text, "{date}");
            }
            Some(days as f64 * 86_400.0)
        }
        Cells::Time(of, Ticks::PerSecond(unit, zone)) => {
            let (seconds, rest) = (of(row).div_euclid(*unit), of(row).rem_euclid(*unit));
            // Below a thousand million.
            let nanoseconds = (rest * (1_000_000_000 / unit)) as i32;
            if let Ok(time) = Timestamp::new(seconds, nanoseconds) {
                let _ = write!(text, "{time}");
                if *zone == Zone::Untold {
                    // The letter for UTC, which a time that does not tell has not.
                    text.pop();
                }
            }
            Some(seconds as f64 + f64::from(nanoseconds) / 1e9)
        }
        Cells::Null => None,
    }
}
