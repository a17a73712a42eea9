//! Tables of Parquet and Arrow files, some thousand rows at a time.
//!
//! A Parquet file is read row group by row group and only in the columns that are asked for, so that
//! memory depends on neither its length nor its width, and an error says where it is.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Date64Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, RecordBatch};
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::{ArrowError, DataType, SchemaRef, TimeUnit};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};

/// Rows of a batch of Parquet: their columns fit the second-level cache.
const BATCH_ROWS: usize = 8192;

/// A file of Parquet, or of Arrow in either of its forms (Feather's second version is one).
#[derive(Debug)]
pub struct Tables {
    columns: Vec<String>,
    /// Those that are wanted; all at first.
    wanted: Option<Vec<usize>>,
    source: Source,
    /// Row groups or record batches begun.
    begun: usize,
}

#[derive(Debug)]
enum Source {
    Parquet { file: File, metadata: ArrowReaderMetadata, group: Option<ParquetRecordBatchReader> },
    Arrow(Box<FileReader<BufReader<File>>>),
    Stream(Box<StreamReader<BufReader<File>>>),
}

/// Why a table cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The file cannot be read, or is no table.
    #[error("it is no table of Parquet or Arrow: {0}")]
    Open(String),
    /// A row group of Parquet is broken.
    #[error("row group {group}{}: {reason}", named(.columns))]
    RowGroup {
        /// Which, counted from 0.
        group: usize,
        /// The columns that were read.
        columns: Vec<String>,
        /// What the reader says.
        reason: String,
    },
    /// A record batch of Arrow is broken.
    #[error("record batch {batch}: {reason}")]
    Batch {
        /// Which, counted from 0.
        batch: usize,
        /// What the reader says.
        reason: String,
    },
}

fn named(columns: &[String]) -> String {
    if columns.is_empty() { String::new() } else { format!(" (columns {})", columns.join(", ")) }
}

impl Tables {
    /// Opens a table; what begins with Parquet's mark is Parquet.
    ///
    /// # Errors
    ///
    /// If it is neither, or its description is broken.
    pub fn open(mut file: File) -> Result<Self, TableError> {
        let failed = |error: &dyn std::fmt::Display| TableError::Open(error.to_string());
        let mut mark = Vec::new();
        file.by_ref().take(6).read_to_end(&mut mark).map_err(|error| failed(&error))?;
        file.rewind().map_err(|error| failed(&error))?;
        let (schema, source): (SchemaRef, Source) = if mark.starts_with(b"PAR1") {
            let metadata = ArrowReaderMetadata::load(&file, ArrowReaderOptions::new())
                .map_err(|error| failed(&error))?;
            (metadata.schema().clone(), Source::Parquet { file, metadata, group: None })
        } else if mark == b"ARROW1" {
            let reader =
                FileReader::try_new_buffered(file, None).map_err(|error| failed(&error))?;
            (reader.schema(), Source::Arrow(Box::new(reader)))
        } else {
            let reader =
                StreamReader::try_new_buffered(file, None).map_err(|error| failed(&error))?;
            (reader.schema(), Source::Stream(Box::new(reader)))
        };
        let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
        Ok(Self { columns, wanted: None, source, begun: 0 })
    }

    /// The names of the columns.
    #[must_use]
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// How many rows there are, where the file says it: in Parquet.
    #[must_use]
    pub fn rows(&self) -> Option<u64> {
        match &self.source {
            Source::Parquet { metadata, .. } => {
                u64::try_from(metadata.metadata().file_metadata().num_rows()).ok()
            }
            Source::Arrow(_) | Source::Stream(_) => None,
        }
    }

    /// Reads only these columns, by their places, as far as the file allows. Others may be there.
    pub(crate) fn want(&mut self, columns: impl IntoIterator<Item = usize>) {
        self.wanted = Some(columns.into_iter().collect());
    }

    /// The next rows; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<RecordBatch>, TableError> {
        let Self { columns, wanted, source, begun } = self;
        let (columns, wanted) = (&*columns, &*wanted);
        let batch = *begun;
        let whole = |read: Option<Result<RecordBatch, ArrowError>>| {
            read.transpose().map_err(|error| TableError::Batch { batch, reason: error.to_string() })
        };
        match source {
            Source::Arrow(reader) => {
                *begun += 1;
                whole(reader.next())
            }
            Source::Stream(reader) => {
                *begun += 1;
                whole(reader.next())
            }
            Source::Parquet { file, metadata, group } => loop {
                let failed = |index: usize, error: &dyn std::fmt::Display| TableError::RowGroup {
                    group: index,
                    columns: wanted.iter().flatten().map(|at| columns[*at].clone()).collect(),
                    reason: error.to_string(),
                };
                let Some(reader) = group else {
                    let index = *begun;
                    if index == metadata.metadata().num_row_groups() {
                        return Ok(None);
                    }
                    *begun += 1;
                    let mask = match wanted {
                        Some(wanted) => {
                            ProjectionMask::roots(metadata.parquet_schema(), wanted.iter().copied())
                        }
                        None => ProjectionMask::all(),
                    };
                    let file = file.try_clone().map_err(|error| failed(index, &error))?;
                    let reader =
                        ParquetRecordBatchReaderBuilder::new_with_metadata(file, metadata.clone())
                            .with_row_groups(vec![index])
                            .with_projection(mask)
                            .with_batch_size(BATCH_ROWS)
                            .build()
                            .map_err(|error| failed(index, &error))?;
                    *group = Some(reader);
                    continue;
                };
                match reader.next() {
                    Some(read) => {
                        return read.map(Some).map_err(|error| failed(*begun - 1, &error));
                    }
                    None => *group = None,
                }
            },
        }
    }
}

/// One column of some rows.
pub(crate) struct Column<'a> {
    pub(crate) cells: Cells<'a>,
    nulls: Option<arrow_array::BooleanArray>,
}

/// What the cells of a column are; what a null holds means nothing.
pub(crate) enum Cells<'a> {
    Whole(Box<dyn Fn(usize) -> i128 + 'a>),
    Real(Box<dyn Fn(usize) -> f64 + 'a>),
    Text(Box<dyn Fn(usize) -> &'a str + 'a>),
    Time(Box<dyn Fn(usize) -> i64 + 'a>, Ticks),
    /// Every one is null.
    Null,
}

/// What a time counts.
#[derive(Clone, Copy)]
pub(crate) enum Ticks {
    /// Days since 1970.
    Days,
    /// So many a second since 1970; at a place whose time is known, or in a time that is not told.
    PerSecond(i64, Zone),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Zone {
    Utc,
    Untold,
}

impl<'a> Column<'a> {
    /// The cells of `array`; `None` if they are nothing of what can be used.
    pub(crate) fn new(array: &'a dyn Array) -> Option<Self> {
        let nulls = array.logical_nulls().map(|nulls| nulls.inner().clone().into());
        Some(Self { cells: cells(array)?, nulls })
    }

    pub(crate) fn is_null(&self, row: usize) -> bool {
        matches!(self.cells, Cells::Null)
            || self.nulls.as_ref().is_some_and(|valid| !valid.value(row))
    }
}

fn cells(array: &dyn Array) -> Option<Cells<'_>> {
    let per_second = |unit: &TimeUnit| match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    };
    Some(match array.data_type() {
        DataType::Null => Cells::Null,
        DataType::Int8 => whole::<Int8Type>(array),
        DataType::Int16 => whole::<Int16Type>(array),
        DataType::Int32 => whole::<Int32Type>(array),
        DataType::Int64 => whole::<Int64Type>(array),
        DataType::UInt8 => whole::<UInt8Type>(array),
        DataType::UInt16 => whole::<UInt16Type>(array),
        DataType::UInt32 => whole::<UInt32Type>(array),
        DataType::UInt64 => whole::<UInt64Type>(array),
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>().values();
            Cells::Real(Box::new(|row| f64::from(values[row])))
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            Cells::Real(Box::new(|row| values[row]))
        }
        DataType::Utf8 => {
            let texts = array.as_string::<i32>();
            Cells::Text(Box::new(|row| texts.value(row)))
        }
        DataType::LargeUtf8 => {
            let texts = array.as_string::<i64>();
            Cells::Text(Box::new(|row| texts.value(row)))
        }
        DataType::Utf8View => {
            let texts = array.as_string_view();
            Cells::Text(Box::new(|row| texts.value(row)))
        }
        DataType::Dictionary(..) => {
            let encoded = array.as_any_dictionary();
            if encoded.values().is_empty() {
                return Some(Cells::Null);
            }
            let keys = encoded.normalized_keys();
            match cells(encoded.values().as_ref())? {
                Cells::Whole(of) => Cells::Whole(Box::new(move |row| of(keys[row]))),
                Cells::Real(of) => Cells::Real(Box::new(move |row| of(keys[row]))),
                Cells::Text(of) => Cells::Text(Box::new(move |row| of(keys[row]))),
                Cells::Time(of, ticks) => Cells::Time(Box::new(move |row| of(keys[row])), ticks),
                Cells::Null => Cells::Null,
            }
        }
        DataType::Date32 => {
            let days = array.as_primitive::<Date32Type>().values();
            Cells::Time(Box::new(|row| i64::from(days[row])), Ticks::Days)
        }
        DataType::Date64 => {
            Cells::Time(times::<Date64Type>(array), Ticks::PerSecond(1_000, Zone::Untold))
        }
        DataType::Timestamp(unit, zone) => {
            let zone = if zone.is_some() { Zone::Utc } else { Zone::Untold };
            let ticks = match unit {
                TimeUnit::Second => times::<TimestampSecondType>(array),
                TimeUnit::Millisecond => times::<TimestampMillisecondType>(array),
                TimeUnit::Microsecond => times::<TimestampMicrosecondType>(array),
                TimeUnit::Nanosecond => times::<TimestampNanosecondType>(array),
            };
            Cells::Time(ticks, Ticks::PerSecond(per_second(unit), zone))
        }
        _ => return None,
    })
}

fn whole<T>(array: &dyn Array) -> Cells<'_>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i128>,
{
    let values = array.as_primitive::<T>().values();
    Cells::Whole(Box::new(|row| values[row].into()))
}

fn times<T: ArrowPrimitiveType<Native = i64>>(array: &dyn Array) -> Box<dyn Fn(usize) -> i64 + '_> {
    let values = array.as_primitive::<T>().values();
    Box::new(|row| values[row])
}
