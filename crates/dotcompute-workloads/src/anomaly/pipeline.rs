//! The detector as two ring kernels: `parse` turns blocks of bytes into batches of readings, `detect`
//! turns batches into findings. A message is a block of many readings, so that its way costs nothing
//! beside them; when a mailbox is full, whoever fills it waits.

#![allow(missing_docs)]
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::{Alert, Batch, Detector, InputError, Malformed, Parser, Scanner, Tally};

/// Part of an input: bytes in any number, cut anywhere.
#[derive(Debug, Default)]
pub struct Block {
    /// The next bytes of the input.
    pub bytes: Vec<u8>,
    /// Whether the input ends with these bytes, and how.
    pub end: Option<End>,
}

/// How an input ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is whole: a last line without newline counts.
    Complete,
    /// It was abandoned: what was read of an unfinished line is not used, since a number may have
    /// been cut in two.
    Cut,
}

/// What the parse kernel sends to the detect kernel: the readings of one block.
#[derive(Debug, Default)]
pub struct Parsed {
    bytes: usize,
    batch: Batch,
    error: Option<InputError>,
    finished: Option<Finished>,
}

/// What the detect kernel replies: what one block has brought. The replies come in input order, one
/// per block.
#[derive(Debug, Default)]
pub struct Findings {
    /// Bytes of the block.
    pub bytes: usize,
    /// The unusual readings.
    pub alerts: Vec<Alert>,
    /// What became of the lines.
    pub tally: Tally,
    /// The first malformed lines of the input, as far as this block holds them.
    pub malformed: Vec<Malformed>,
    /// Keys seen so far.
    pub keys: usize,
    /// Why the rest of the input will not be read. Nothing of what follows is looked at.
    pub error: Option<InputError>,
    /// The input has ended; this is the last reply.
    pub finished: Option<Finished>,
}

/// The end of an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// Bytes of the unfinished line that an abandoned input left; none of a whole one.
    pub unused_bytes: usize,
}

/// The work of the parse kernel.
#[derive(Debug)]
struct ParseStep {
    parser: Parser,
    failed: bool,
    /// The size of the last batch, to begin the next one with.
    expected: (usize, usize),
}

impl ParseStep {
    fn new(parser: Parser) -> Self {
        Self { parser, failed: false, expected: (0, 0) }
    }

    fn step(&mut self, block: &Block) -> Parsed {
        let mut parsed = Parsed {
            bytes: block.bytes.len(),
            batch: Batch::with_room(self.expected),
            ..Parsed::default()
        };
        if !self.failed {
            let mut done = self.parser.feed(&block.bytes, &mut parsed.batch);
            if done.is_ok() && block.end == Some(End::Complete) {
                done = self.parser.finish(&mut parsed.batch);
            }
            self.failed = done.is_err();
            parsed.error = done.err();
        }
        self.expected = parsed.batch.size();
        parsed.finished = block.end.map(|end| Finished {
            unused_bytes: match end {
                End::Complete => 0,
                End::Cut => self.parser.unfinished_bytes(),
            },
        });
        parsed
    }
}

/// The work of the detect kernel.
fn detect(scanner: &mut Scanner, parsed: &Parsed) -> Findings {
    let Parsed { bytes, batch, error, finished } = parsed;
    Findings {
        bytes: *bytes,
        alerts: scanner.scan(batch),
        tally: batch.tally,
        malformed: batch.malformed.clone(),
        keys: scanner.keys(),
        error: error.clone(),
        finished: *finished,
    }
}

pub struct Pipeline {
    tx: SyncSender<Block>,
    rx: Mutex<Receiver<Findings>>,
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecutorKind {
    Async,
    Thread,
}
#[derive(Debug, thiserror::Error)]
#[error("gone")]
pub struct Gone;
#[derive(Clone, Debug, serde::Serialize)]
pub struct KernelReport {
    pub name: String,
    pub books: [u64; 7],
    pub queue: Latency,
    pub handler: Latency,
}
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Latency {
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
}
impl Pipeline {
    pub fn launch(
        parser: Parser,
        detector: Detector,
        _executor: ExecutorKind,
        capacity: usize,
    ) -> Result<Self, Gone> {
        let (tx, brx) = sync_channel::<Block>(capacity);
        let (ptx, prx) = sync_channel::<Parsed>(capacity);
        let (ftx, rx) = sync_channel(capacity);
        std::thread::spawn(move || {
            let mut p = ParseStep::new(parser);
            for b in brx {
                if ptx.send(p.step(&b)).is_err() {
                    return;
                }
            }
        });
        std::thread::spawn(move || {
            let mut s = Scanner::new(detector);
            for b in prx {
                if ftx.send(detect(&mut s, &b)).is_err() {
                    return;
                }
            }
        });
        Ok(Self { tx, rx: Mutex::new(rx) })
    }
    pub fn send(&self, block: Block) -> Result<(), Gone> {
        self.tx.send(block).map_err(|_| Gone)
    }
    pub fn receive(&self) -> Result<Findings, Gone> {
        self.rx.lock().unwrap().recv().map_err(|_| Gone)
    }
    pub fn reports(&self) -> Vec<KernelReport> {
        Vec::new()
    }
}
