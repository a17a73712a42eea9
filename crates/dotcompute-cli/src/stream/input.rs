//! The reader: bytes from a file or standard input, in blocks, until they end or it is stopped.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use dotcompute_workloads::anomaly::Format;
use dotcompute_workloads::anomaly::pipeline::{Block, End};

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
    pub(super) fn format(&self) -> Result<Format, Failure> {
        let Some(path) = &self.path else { return Ok(Format::Csv) };
        let extension = path.extension().and_then(OsStr::to_str).unwrap_or_default();
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Ok(Format::Csv),
            "ndjson" | "jsonl" | "json" => Ok(Format::Ndjson),
            _ => Err(Failure::new(
                USAGE,
                format!("the name {} does not say what format the file has", path.display()),
                "Say it with --format csv or --format ndjson.",
            )),
        }
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
            let mut bytes = vec![0; BLOCK_BYTES];
            let read = match wait_for_input(&self.file, stop) {
                Ok(Next::Input) => self.file.read(&mut bytes),
                Ok(Next::Interrupted) => {
                    // Nobody is left to be told if this fails.
                    let _ = io::stderr().write_all(INTERRUPTED);
                    return cut(Outcome::Interrupted, send);
                }
                Ok(Next::Stopped) => return cut(Outcome::Stopped, send),
                Err(error) => return cut(Outcome::Failed(error), send),
            };
            match read {
                Ok(0) => {
                    send(Block { bytes: Vec::new(), end: Some(End::Complete) });
                    return Outcome::Complete;
                }
                Ok(count) => {
                    bytes.truncate(count);
                    if !send(Block { bytes, end: None }) {
                        return Outcome::Stopped;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return cut(Outcome::Failed(error), send),
            }
        }
    }
}

fn cut(outcome: Outcome, mut send: impl FnMut(Block) -> bool) -> Outcome {
    send(Block { bytes: Vec::new(), end: Some(End::Cut) });
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
