//! Streaming anomaly detection: which readings are far from what their key has done so far?
//!
//! The way of a reading: bytes of CSV or NDJSON ([`Parser`]), or rows of a table, → [`Batch`] of [`Reading`]s →
//! [`Detector`], which compares it with what its key has done so far ([`Model`]) → [`Alert`]. The
//! parts are plain values that work without a runtime, as here; [`pipeline`] puts each into a ring
//! kernel of its own. Readings that are records already go through one kernel: [`handler`].
//!
//! ```
//! use dotcompute_workloads::anomaly::{Scanner, Batch, Detector, Format, Parser, Settings};
//!
//! let mut parser = Parser::new(Format::Csv);
//! let mut scanner = Scanner::new(Detector::new(Settings::new(0.1, 4.0, 5)?));
//! let mut batch = Batch::default();
//! parser.feed(b"sensor,value\na,1\na,2\na,1\na,2\na,1\na,90\na,2\n", &mut batch)?;
//! parser.finish(&mut batch)?;
//!
//! let alerts = scanner.scan(&batch).alerts;
//! assert_eq!(batch.tally.readings, 7);
//! assert_eq!((alerts.len(), alerts[0].value, alerts[0].line), (1, 90.0, 7));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod columns;
mod csv;
mod detector;
pub mod handler;
mod model;
pub mod named;
mod ndjson;
mod parser;
pub mod pipeline;
#[cfg(feature = "tables")]
mod table;
mod time;

pub use batch::{Batch, Malformed, Reading, Reason, Tally};
pub use columns::{ColumnError, ColumnNames};
pub use detector::{Alert, Anomaly, Detector, Scanned, Scanner};
pub use model::{Model, Settings, SettingsError, Verdict};
pub use parser::{Format, InputError, MAX_LINE_BYTES, Parser, VALUE_LIMIT};
#[cfg(feature = "tables")]
pub use table::TableReader;
