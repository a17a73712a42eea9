//! Kernels in processes of their own.

use dotcompute::process::{Coder, Kernels, Process, Processes};
use dotcompute::{BoxError, Handler, HandlerContext, KernelRef, Message, Runtime, Terminate};

use crate::harness::{Slice, Stopwatch, Trips, Wrong, expect};
use crate::load::{CAPACITY, sum_below};
use crate::os::pinned;
use crate::ours::verify_books;

/// A record of 56 bytes: with what travels beside it, two slots.
#[derive(Clone, Copy, Message)]
#[message(record)]
#[repr(C)]
struct Word {
    number: u64,
    _rest: [u64; 6],
}

impl Word {
    fn new(number: u64) -> Self {
        Self { number, _rest: [0; 6] }
    }
}

/// Replies to each word with the next number.
struct Next;

impl Handler for Next {
    type In = Word;
    type Out = Word;

    fn handle(
        &mut self,
        word: &Word,
        _: &mut HandlerContext<Word>,
    ) -> Result<Option<Word>, BoxError> {
        Ok(Some(Word::new(word.number + 1)))
    }
}

/// The number that asks a [`Sum`] for its sum.
const TELL: u64 = u64::MAX;

/// Adds up, and tells when it is asked.
struct Sum(u64);

impl Handler for Sum {
    type In = Word;
    type Out = Word;

    fn handle(
        &mut self,
        word: &Word,
        _: &mut HandlerContext<Word>,
    ) -> Result<Option<Word>, BoxError> {
        if word.number == TELL {
            return Ok(Some(Word::new(self.0)));
        }
        self.0 += word.number;
        Ok(None)
    }
}

/// What children of this program run; first thing in `main`.
pub(crate) fn processes() -> Processes {
    Kernels::new()
        .handler("next", Coder::record(), Coder::record(), |_| Ok(Next))
        .handler("sum", Coder::record(), Coder::record(), |_| Ok(Sum(0)))
        .child_main()
}

fn launch(process: Process) -> Result<(Runtime, KernelRef<Word, Word>), Wrong> {
    let processes = processes();
    let runtime = Runtime::builder().executor(processes.executor()).build();
    let builder = runtime.kernel("process").executor("process").capacity(CAPACITY);
    let kernel = processes.launch(builder, process).map_err(Wrong::new)?;
    kernel.activate().map_err(Wrong::new)?;
    Ok((runtime, kernel))
}

/// `ask_blocking`, everyone where the system puts them.
pub(crate) fn ask(operations: u64) -> Result<Slice, Wrong> {
    let (_runtime, kernel) = launch(Process::new("next"))?;
    // Before the clock starts the child does.
    kernel.ask_blocking(Word::new(0), None).map_err(Wrong::new)?;
    let mut trips = Trips::new(operations);
    for number in trips.by_ref() {
        let reply = kernel.ask_blocking(Word::new(number), None).map_err(Wrong::new)?;
        expect("the next number", reply.message.number, number + 1)?;
    }
    let slice = trips.finish();
    kernel.terminate_blocking(Terminate::drain());
    verify_books(&kernel, Trips::total(operations) + 1)?;
    Ok(slice)
}

/// The same with both processes on one core, where nobody spins for long.
pub(crate) fn ask_one_core(operations: u64) -> Result<Slice, Wrong> {
    // Threads and processes started from here stay on this core.
    pinned(|| ask(operations))
}

/// Records one after the other, many of them on their way at a time.
pub(crate) fn send(operations: u64) -> Result<Slice, Wrong> {
    let (_runtime, kernel) = launch(Process::new("sum").window(1024).slots(8192))?;
    kernel.ask_blocking(Word::new(TELL), None).map_err(Wrong::new)?;
    let watch = Stopwatch::start();
    for number in 0..operations {
        kernel.send_blocking(Word::new(number), None).map_err(Wrong::new)?;
    }
    let sum = kernel.ask_blocking(Word::new(TELL), None).map_err(Wrong::new)?;
    let slice = watch.stop();
    expect("sum", sum.message.number, sum_below(operations))?;
    kernel.terminate_blocking(Terminate::drain());
    verify_books(&kernel, operations + 2)?;
    Ok(slice)
}
