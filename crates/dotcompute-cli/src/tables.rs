//! Files of Parquet and Arrow.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, RecordBatch, StringArray, UInt64Array};
use arrow_schema::{DataType, Field, Schema};
use dotcompute_workloads::pagerank::Score;
use dotcompute_workloads::pagerank::read::Nodes;
use dotcompute_workloads::tables::Tables;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;

use crate::failure::{FAILED, Failure, USAGE};

/// How their names end.
pub(crate) const EXTENSIONS: &[&str] = &["parquet", "pq", "arrow", "feather", "ipc"];

/// Rows that are handed to the writer at once.
const ROWS: usize = 1 << 16;

pub(crate) fn open(path: &Path) -> Result<Tables, Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(FAILED, format!("{}: {error}", path.display()), "")
    };
    Tables::open(File::open(path).map_err(|error| failed(&error))?).map_err(|error| failed(&error))
}

/// Standard input cannot be gone back in.
pub(crate) fn not_a_file() -> Failure {
    Failure::new(USAGE, "a table is read from a file", "Write it to a file first, and name that.")
}

/// Writes ranks as Parquet: the columns node (a number, or text if nodes have names) and rank.
pub(crate) fn write_ranks<T: Score>(out: File, nodes: &Nodes, scores: &[T]) -> io::Result<()> {
    let named = matches!(nodes, Nodes::Names(_));
    let kind = if named { DataType::Utf8 } else { DataType::UInt64 };
    let fields =
        vec![Field::new("node", kind, false), Field::new("rank", DataType::Float64, false)];
    let schema = Arc::new(Schema::new(fields));
    let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let mut writer = ArrowWriter::try_new(out, Arc::clone(&schema), Some(properties))
        .map_err(io::Error::other)?;
    let mut first = 0;
    for scores in scores.chunks(ROWS) {
        let rows = first..first + scores.len() as u32;
        first = rows.end;
        let names: ArrayRef = match nodes {
            Nodes::Range(_) => Arc::new(UInt64Array::from_iter_values(rows.map(u64::from))),
            Nodes::Ids(ids) => Arc::new(UInt64Array::from_iter_values(
                rows.map(|node| ids.get(node as usize).copied().unwrap_or_default()),
            )),
            _ => Arc::new(StringArray::from_iter_values(rows.map(|node| nodes.name(node)))),
        };
        let ranks = Arc::new(Float64Array::from_iter_values(scores.iter().map(|s| s.to_f64())));
        let batch = RecordBatch::try_new(Arc::clone(&schema), vec![names, ranks])
            .map_err(io::Error::other)?;
        writer.write(&batch).map_err(io::Error::other)?;
    }
    writer.close().map_err(io::Error::other)?;
    Ok(())
}
