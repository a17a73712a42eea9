//! The reader: bytes from a file or standard input, in blocks, until they end or it is stopped.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

#[cfg(feature = "tables")]
use dotcompute_workloads::anomaly::pipeline::Read as Rows;
use dotcompute_workloads::anomaly::pipeline::{Block, End};
#[cfg(feature = "tables")]
use dotcompute_workloads::anomaly::{Batch, TableReader};
#[cfg(feature = "tables")]
use dotcompute_workloads::tables::Tables;

use super::InputFormat;
use super::stop::{Next, Stop, wait_for_input};
use crate::failure::{FAILED, Failure, USAGE};

/// Large enough that a message costs nothing beside its readings, small enough for the caches.
const BLOCK_BYTES: usize = 64 * 1024;

const INTERRUPTED: &[u8] =
    b"dotcompute: interrupted; finishing what has been read (Ctrl-C again ends at once)\n";

/// An open input.
#[derive(Debug)]
pub(super) struct Input {
    file: File,
    /// `None` is standard input.
    path: Option<PathBuf>,
}

impl Input {
    /// Opens `path`; `-` is standard input.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        if path == Path::new("-") {
            let file = standard_input().map_err(|error| {
                Failure::new(FAILED, format!("cannot open standard input: {error}"), "")
            })?;
            return Ok(Self { file, path: None });
        }
        let cannot = |error: io::Error, advice| {
            Failure::new(FAILED, format!("cannot open {}: {error}", path.display()), advice)
        };
        let file = File::open(path)
            .map_err(|error| cannot(error, "Name a file of readings, or - for standard input."))?;
        let kind = file.metadata().map_err(|error| cannot(error, ""))?;
        if kind.is_dir() {
            return Err(Failure::new(
                FAILED,
                format!("{} is a directory", path.display()),
                "Name a file in it; several files can be joined with cat and read with -.",
            ));
        }
        Ok(Self { file, path: Some(path.to_owned()) })
    }

    /// The format that the name ends in; CSV on standard input.
    pub(super) fn format(&self) -> Result<InputFormat, Failure> {
        let Some(path) = &self.path else { return Ok(InputFormat::Csv) };
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        let extension = extension.to_ascii_lowercase();
        match extension.as_str() {
            "csv" => Ok(InputFormat::Csv),
            "ndjson" | "jsonl" | "json" => Ok(InputFormat::Ndjson),
            #[cfg(feature = "tables")]
            _ if crate::tables::EXTENSIONS.contains(&extension.as_str()) => Ok(InputFormat::Table),
            _ => Err(Failure::new(
                USAGE,
                format!("the name {} does not say what format the file has", path.display()),
                "Say it with --format csv or --format ndjson, or table for Parquet and Arrow.",
            )),
        }
    }

    /// The input as a table.
    #[cfg(feature = "tables")]
    pub(super) fn table(&self) -> Result<Tables, Failure> {
        let Some(path) = &self.path else { return Err(crate::tables::not_a_file()) };
        crate::tables::open(path)
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        self.path
            .as_ref()
            .map_or_else(|| "standard input".into(), |path| path.display().to_string())
    }

    /// The size of a regular file.
    pub(super) fn length_bytes(&self) -> Option<u64> {
        self.file.metadata().ok().filter(|kind| kind.is_file()).map(|kind| kind.len())
    }

    /// Reads to the end, or until `stop`, and passes each block on as soon as it has been read; the
    /// last one says how the input ended. Returns early if `send` returns false.
    pub(super) fn read(mut self, stop: &Stop, mut send: impl FnMut(Block) -> bool) -> Outcome {
        loop {
            if let Some(outcome) = self.ended(stop) {
                return cut(outcome, send);
            }
            let mut bytes = vec![0; BLOCK_BYTES];
            let read = self.file.read(&mut bytes);
            match read {
                Ok(0) => {
                    send(Block { end: Some(End::Complete), ..Block::default() });
                    return Outcome::Complete;
                }
                Ok(count) => {
                    bytes.truncate(count);
                    if !send(Block { bytes, ..Block::default() }) {
                        return Outcome::Stopped;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return cut(Outcome::Failed(error), send),
            }
        }
    }

    /// The same of a table, row after row.
    #[cfg(feature = "tables")]
    pub(super) fn read_table(
        self,
        mut table: TableReader,
        stop: &Stop,
        mut send: impl FnMut(Block) -> bool,
    ) -> Outcome {
        // What has been read in bytes is the share of the rows, where their number is known.
        let (length, rows) = (self.length_bytes().unwrap_or(0), table.rows());
        let (mut lines, mut told) = (0, 0);
        loop {
            if let Some(outcome) = self.ended(stop) {
                return cut(outcome, send);
            }
            let mut batch = Batch::default();
            let (error, end) = match table.read_next(&mut batch) {
                Ok(true) => (None, None),
                Ok(false) => (None, Some(End::Complete)),
                Err(error) => (Some(error), Some(End::Cut)),
            };
            lines += batch.tally.lines;
            let share =
                |rows: u64| (u128::from(length) * u128::from(lines) / u128::from(rows)) as u64;
            let reached = match rows {
                _ if end.is_some() => length,
                Some(rows) if rows > 0 => share(rows).min(length),
                _ => told,
            };
            let read = Rows { bytes: (reached - told) as usize, batch, error };
            told = reached;
            if !send(Block { read: Some(read), end, ..Block::default() }) {
                return Outcome::Stopped;
            }
            if end.is_some() {
                return Outcome::Complete;
            }
        }
    }

    /// Waits until there is more to read; how the reading ends, if it is to end before that.
    fn ended(&self, stop: &Stop) -> Option<Outcome> {
        match wait_for_input(&self.file, stop) {
            Ok(Next::Input) => None,
            Ok(Next::Interrupted) => {
                // Nobody is left to be told if this fails.
                let _ = io::stderr().write_all(INTERRUPTED);
                Some(Outcome::Interrupted)
            }
            Ok(Next::Stopped) => Some(Outcome::Stopped),
            Err(error) => Some(Outcome::Failed(error)),
        }
    }
}

fn cut(outcome: Outcome, mut send: impl FnMut(Block) -> bool) -> Outcome {
    send(Block { end: Some(End::Cut), ..Block::default() });
    outcome
}

/// How reading ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// At the end of the input.
    Complete,
    /// By Ctrl-C or SIGTERM.
    Interrupted,
    /// It was told to stop, or nobody takes the blocks any more.
    Stopped,
    /// The input could not be read on.
    Failed(io::Error),
}

/// Standard input as a file: without a buffer, what has arrived can be passed on at once.
#[cfg(unix)]
fn standard_input() -> io::Result<File> {
    use std::os::fd::AsFd as _;
    Ok(io::stdin().as_fd().try_clone_to_owned()?.into())
}

#[cfg(windows)]
fn standard_input() -> io::Result<File> {
    use std::os::windows::io::AsHandle as _;
    Ok(io::stdin().as_handle().try_clone_to_owned()?.into())
}
