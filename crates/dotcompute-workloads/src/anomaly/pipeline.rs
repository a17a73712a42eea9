//! The detector as two ring kernels: `parse` turns blocks of bytes into batches of readings, `detect`
//! turns batches into findings. A message is a block of many readings, so that its way costs nothing
//! beside them; when a mailbox is full, whoever fills it waits.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use dotcompute::mailbox::wait;
use dotcompute::{
    BoxError, Context, Fault, Handler, HandlerContext, KernelRef, KernelTelemetry, LaunchError,
    Message, ReceiveError, Runtime, SendError, StateError, Terminate,
};

use super::{
    Alert, Batch, Detector, InputError, Malformed, Parser, Reading, Scanned, Scanner, Settings,
    Tally,
};

/// Part of an input: bytes in any number, cut anywhere, or readings that are read already.
#[derive(Debug, Default)]
pub struct Block {
    /// The next bytes of the input.
    pub bytes: Vec<u8>,
    /// Readings, of an input that is no text, and how that goes on; passed on as they are.
    pub read: Option<Read>,
    /// Whether the input ends with these bytes, and how.
    pub end: Option<End>,
}

/// What was read of an input that is no text.
#[derive(Debug)]
pub struct Read {
    /// How many bytes it took, for whoever watches.
    pub bytes: usize,
    /// The readings.
    pub batch: Batch,
    /// Why the rest is not read.
    pub error: Option<InputError>,
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
    /// Readings that were late, and those without the time that the model needs: see [`Scanned`].
    pub late: u64,
    /// See [`Scanned::untimed`].
    pub untimed: u64,
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

/// What is read already.
fn passed(block: Block) -> Parsed {
    let finished = block.end.map(|_| Finished::default());
    let Some(Read { bytes, batch, error }) = block.read else {
        return Parsed { finished, ..Parsed::default() };
    };
    Parsed { bytes, batch, error, finished }
}

/// The detect kernel.
struct Detect(Scanner);

impl Handler for Detect {
    type In = Parsed;
    type Out = Findings;

    fn handle(
        &mut self,
        parsed: &Parsed,
        _: &mut HandlerContext<Findings>,
    ) -> Result<Option<Findings>, BoxError> {
        let Parsed { bytes, batch, error, finished } = parsed;
        let Scanned { alerts, late, untimed } = self.0.scan(batch);
        Ok(Some(Findings {
            bytes: *bytes,
            alerts,
            late,
            untimed,
            tally: batch.tally,
            malformed: batch.malformed.clone(),
            keys: self.0.keys(),
            error: error.clone(),
            finished: *finished,
        }))
    }
}

/// What the parse kernel replies with: nothing, it sends to the detect kernel.
enum NoReply {}

impl Message for NoReply {
    const TYPE_NAME: &'static str = "NoReply";
}

impl Message for Block {
    const TYPE_NAME: &'static str = "Block";

    fn payload_bytes(&self) -> usize {
        let (readings, time_bytes) = self.read.as_ref().map_or((0, 0), |read| read.batch.size());
        size_of_val(self) + self.bytes.capacity() + readings * size_of::<Reading>() + time_bytes
    }
}

impl Message for Parsed {
    const TYPE_NAME: &'static str = "Parsed";

    fn payload_bytes(&self) -> usize {
        let (readings, time_bytes) = self.batch.size();
        size_of_val(self) + readings * size_of::<Reading>() + time_bytes
    }
}

impl Message for Findings {
    const TYPE_NAME: &'static str = "Findings";

    fn payload_bytes(&self) -> usize {
        size_of_val(self) + self.alerts.len() * size_of::<Alert>()
    }
}

/// The two kernels, running.
///
/// Sending and receiving may be done from two threads; one thread that does both must not send more
/// blocks ahead of its receiving than the mailboxes hold.
#[derive(Debug)]
pub struct Pipeline {
    parse: KernelRef<Block, NoReply>,
    detect: KernelRef<Parsed, Findings>,
}

/// Why there is no pipeline.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PipelineError {
    /// A kernel could not be launched.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// A kernel could not be activated.
    #[error(transparent)]
    Activate(#[from] StateError),
}

/// Why there are no more findings.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindingsError {
    /// The detect kernel has stopped or failed.
    #[error(transparent)]
    Detect(#[from] ReceiveError),
    /// The parse kernel has failed.
    #[error("ring kernel 'parse' failed: {0}")]
    Parse(#[source] Fault),
    /// The parse kernel has stopped.
    #[error("ring kernel 'parse' is stopped")]
    ParseStopped,
}

impl Pipeline {
    /// Launches and activates the kernels `parse` and `detect` on an executor of `runtime`, each
    /// with mailboxes of `capacity` messages. `make_parser` is called when the parse kernel starts.
    ///
    /// # Errors
    ///
    /// If the runtime has no such executor, has kernels of these names, or the capacity is out of
    /// range.
    pub fn launch(
        runtime: &Runtime,
        executor: &str,
        capacity: usize,
        mut make_parser: impl FnMut() -> Parser + Send + 'static,
        settings: Settings,
    ) -> Result<Self, PipelineError> {
        let detect = runtime
            .kernel("detect")
            .executor(executor)
            .capacity(capacity)
            .reply_capacity(capacity)
            .sample_every(1)
            .launch_handler(move || Detect(Scanner::new(Detector::new(settings))))?;
        let to_detect = detect.address();
        let parse =
            runtime.kernel("parse").executor(executor).capacity(capacity).sample_every(1).launch(
                move |mut context: Context<Block, NoReply>| {
                    let mut step = ParseStep::new(make_parser());
                    let to_detect = to_detect.clone();
                    async move {
                        while let Ok(block) = context.receive().await {
                            let parsed = match &block.read {
                                Some(_) => passed(context.take().unwrap_or_default()),
                                None => step.step(block),
                            };
                            to_detect.send(parsed).await?;
                        }
                        Ok(())
                    }
                },
            )?;
        detect.activate()?;
        parse.activate()?;
        Ok(Self { parse, detect })
    }

    /// Sends the next block, and waits on the calling thread while the pipeline is full.
    ///
    /// # Errors
    ///
    /// When the parse kernel has stopped or failed; the block comes back.
    pub fn send_blocking(&self, block: Block) -> Result<(), SendError<Block>> {
        self.parse.send_blocking(block, None)
    }

    /// The findings of the next block; waits on the calling thread.
    ///
    /// # Errors
    ///
    /// When one of the kernels has stopped or failed.
    pub fn receive_blocking(&self) -> Result<Findings, FindingsError> {
        let mut reply = pin!(self.detect.receive());
        let mut parse_ended = pin!(self.parse.ended());
        wait::block_on(poll_fn(|cx| {
            if let Poll::Ready(reply) = reply.as_mut().poll(cx) {
                return Poll::Ready(reply.map(|envelope| envelope.message).map_err(Into::into));
            }
            parse_ended.as_mut().poll(cx).map(|ended| match ended {
                Ok(()) => Err(FindingsError::ParseStopped),
                Err(fault) => Err(FindingsError::Parse(fault)),
            })
        }))
    }

    /// Ends both kernels and tells what they have done. After the [last findings](Finished) nothing
    /// is lost by it.
    pub fn end_blocking(self) -> [KernelTelemetry; 2] {
        self.parse.terminate_blocking(Terminate::drain());
        self.detect.terminate_blocking(Terminate::drain());
        [self.parse.telemetry(), self.detect.telemetry()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::anomaly::Format;

    const INPUT: &[u8] = b"key,value\na,1\na,2\na,1\na,2\nb,7\na,9\nb,x\na,1";

    fn launch(executor: &str, strict: bool) -> (Runtime, Pipeline) {
        let runtime = Runtime::builder().build();
        let parser = move || Parser::new(Format::Csv).strict(strict);
        let settings = Settings::new(0.1, 4.0, 4).unwrap();
        let pipeline = Pipeline::launch(&runtime, executor, 1, parser, settings).unwrap();
        (runtime, pipeline)
    }

    #[test]
    fn findings_come_in_order_one_per_block_and_the_books_balance() {
        for executor in ["async", "thread"] {
            let (_runtime, pipeline) = launch(executor, false);
            let mut all = Vec::new();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for piece in INPUT.chunks(3) {
                        let block = Block { bytes: piece.to_vec(), ..Block::default() };
                        pipeline.send_blocking(block).unwrap();
                    }
                    let end = Block { end: Some(End::Complete), ..Block::default() };
                    pipeline.send_blocking(end).unwrap();
                });
                while all.last().is_none_or(|last: &Findings| last.finished.is_none()) {
                    all.push(pipeline.receive_blocking().unwrap());
                }
            });
            let blocks = INPUT.chunks(3).len() as u64 + 1;
            assert_eq!(all.len() as u64, blocks);
            assert_eq!(all.iter().map(|f| f.bytes).sum::<usize>(), INPUT.len());
            let mut tally = Tally::default();
            all.iter().for_each(|findings| tally.add(&findings.tally));
            assert_eq!((tally.lines, tally.readings, tally.malformed), (9, 7, 1));
            let alerts: Vec<_> = all.iter().flat_map(|f| &f.alerts).collect();
            assert_eq!((alerts.len(), &*alerts[0].key, alerts[0].line), (1, "a", 7));
            assert_eq!(
                all.last().map(|f| (f.keys, f.finished)),
                Some((2, Some(Finished::default())))
            );

            for telemetry in pipeline.end_blocking() {
                assert!(telemetry.books.balance());
                assert_eq!((telemetry.books.accepted, telemetry.books.processed), (blocks, blocks));
            }
        }
    }

    #[test]
    fn after_an_error_the_rest_of_the_input_is_passed_over() {
        let (_runtime, pipeline) = launch("thread", true);
        for (bytes, end) in [(&b"value\n1\nx\n"[..], None), (b"2\n3\n", Some(End::Cut))] {
            pipeline
                .send_blocking(Block { bytes: bytes.to_vec(), end, ..Block::default() })
                .unwrap();
        }
        let first = pipeline.receive_blocking().unwrap();
        assert!(matches!(first.error, Some(InputError::Malformed(_))));
        let last = pipeline.receive_blocking().unwrap();
        assert_eq!((last.tally, last.error), (Tally::default(), None));
        assert!(last.finished.is_some());
    }

    #[test]
    fn whoever_waits_is_told_when_a_kernel_is_gone() {
        let (runtime, pipeline) = launch("thread", false);
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| pipeline.receive_blocking());
            pipeline.parse.terminate_blocking(Terminate::now());
            assert!(matches!(waiter.join().unwrap(), Err(FindingsError::ParseStopped)));
        });
        assert!(pipeline.send_blocking(Block::default()).is_err());
        let parser = || Parser::new(Format::Csv);
        let again = Pipeline::launch(&runtime, "thread", 1, parser, Settings::default());
        assert!(matches!(again, Err(PipelineError::Launch(LaunchError::AlreadyExists { .. }))));
    }
}
