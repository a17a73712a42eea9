//! Kernels in processes of their own.

use std::hint::black_box;
use std::sync::Arc;

use dotcompute::process::{Coder, Host, Kernels, Process, Processes};
use dotcompute::{
    BoxError, Fault, Handler, HandlerContext, KernelRef, Message, Record, RecordBatch, Runtime,
    Terminate,
};
use dotcompute_workloads::anomaly::handler::{Alarm, Event};

use crate::harness::{Slice, Stopwatch, Trips, Wrong, expect};
use crate::load::{CAPACITY, sum_below};
use crate::os::{SharedWords, Within, futex_await, futex_post, pinned};
use crate::ours::{anomaly, verify_books};

/// A record of 56 bytes: with what travels beside it, one slot.
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

/// An element of an array.
#[derive(Clone, Copy, Message)]
#[message(record)]
#[repr(C)]
struct Cell {
    value: u64,
}

/// How many make a megabyte, and how many a page, of which a [`Sample`] reads one.
const CELLS: usize = (1 << 20) / size_of::<Cell>();
const CELLS_READ_OF: usize = 4096 / size_of::<Cell>();
/// Different arrays, which are sent in turn.
const ARRAYS: u64 = 4;

/// Adds up a cell of each page of the arrays, and tells the sum to one that is empty.
struct Sample(u64);

impl Handler for Sample {
    type In = RecordBatch;
    type Out = Word;

    fn handle(
        &mut self,
        array: &RecordBatch,
        _: &mut HandlerContext<Word>,
    ) -> Result<Option<Word>, BoxError> {
        if array.is_empty() {
            return Ok(Some(Word::new(self.0)));
        }
        let cells = array.as_slice::<Cell>().ok_or("other records")?;
        self.0 += sample(cells);
        Ok(None)
    }
}

fn sample(cells: &[Cell]) -> u64 {
    cells.iter().step_by(CELLS_READ_OF).map(|cell| cell.value).sum()
}

/// What children of this program run; first thing in `main`.
pub(crate) fn processes() -> Processes {
    Kernels::new()
        .handler("sample", Coder::records(Cell::LAYOUT), Coder::record(), |_| Ok(Sample(0)))
        .handler("next", Coder::record(), Coder::record(), |_| Ok(Next))
        .handler("sum", Coder::record(), Coder::record(), |_| Ok(Sum(0)))
        .compiled("detect", Coder::records(Event::LAYOUT), Coder::records(Alarm::LAYOUT), |_| {
            anomaly::detector()
        })
        .host("futexes", Coder::<Word>::record(), Coder::<Word>::record(), answer_futexes)
        .child_main()
}

fn launch<M: Message>(process: Process) -> Result<(Runtime, KernelRef<M, Word>), Wrong> {
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

/// The floor of [`ask_one_core`]: two words that two processes map, each written by one and slept upon by
/// the other.
pub(crate) fn futexes_one_core(operations: u64) -> Result<Slice, Wrong> {
    let shared = SharedWords::create().map_err(Wrong::new)?;
    let total = Trips::total(operations);
    let args = format!("{total} {}", shared.path().display());
    let [there, back] = shared.words();
    pinned(|| {
        // What else there is of this kernel sleeps meanwhile.
        let (_runtime, kernel) = launch::<Word>(Process::new("futexes").args(args))?;
        // Before the clock starts the other process does.
        futex_await(&back.0, READY, Within::Machine);
        let mut trips = Trips::new(operations);
        for number in trips.by_ref() {
            futex_post(&there.0, number as u32 + 1, Within::Machine);
            futex_await(&back.0, number as u32 + 1, Within::Machine);
        }
        let slice = trips.finish();
        kernel.terminate_blocking(Terminate::drain());
        Ok(slice)
    })
}

/// Said by the process that answers before it answers.
const READY: u32 = u32::MAX;

/// The other process of [`futexes_one_core`].
fn answer_futexes(host: &mut Host) -> Result<(), Fault> {
    host.started();
    let wrong = || Fault::new("the arguments say how many there are, and where the words are");
    let args = std::str::from_utf8(host.args()).map_err(|_| wrong())?;
    let (total, path) = args.split_once(' ').ok_or_else(wrong)?;
    let total: u64 = total.parse().map_err(|_| wrong())?;
    let shared =
        SharedWords::attach(path.as_ref()).map_err(|error| Fault::new(error.to_string()))?;
    let [there, back] = shared.words();
    futex_post(&back.0, READY, Within::Machine);
    for number in 0..total {
        futex_await(&there.0, number as u32 + 1, Within::Machine);
        futex_post(&back.0, number as u32 + 1, Within::Machine);
    }
    Ok(())
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

fn cells() -> Vec<Arc<Vec<Cell>>> {
    let array = |first| (first..first + CELLS as u64).map(|value| Cell { value }).collect();
    (0..ARRAYS).map(|number| Arc::new(array(number))).collect()
}

/// Arrays of a megabyte one after the other, a few on their way at a time; the child reads a cell of
/// each page.
pub(crate) fn arrays(operations: u64) -> Result<Slice, Wrong> {
    let (_runtime, kernel) = launch::<RecordBatch>(Process::new("sample").window(4))?;
    let (arrays, none) = (cells(), || RecordBatch::from_vec(Vec::<Cell>::new()));
    let batch = |number: u64| {
        let cells = &arrays[(number % ARRAYS) as usize];
        let (start, keep) = (cells.as_ptr().cast(), Box::new(Arc::clone(cells)));
        // SAFETY: so many cells lie there, kept, and nobody writes to them.
        unsafe { RecordBatch::from_foreign(Cell::LAYOUT, start, CELLS, keep) }
    };
    // Before the clock starts the child does, and has seen as much memory as it will.
    for number in 0..2 * ARRAYS {
        kernel.send_blocking(batch(number), None).map_err(Wrong::new)?;
    }
    kernel.ask_blocking(none(), None).map_err(Wrong::new)?;
    let watch = Stopwatch::start();
    for number in 0..operations {
        kernel.send_blocking(batch(number), None).map_err(Wrong::new)?;
    }
    let sum = kernel.ask_blocking(none(), None).map_err(Wrong::new)?;
    let slice = watch.stop();
    let sent = (0..2 * ARRAYS).chain(0..operations);
    let samples: Vec<u64> = arrays.iter().map(|cells| sample(cells)).collect();
    let expected = sent.map(|number| samples[(number % ARRAYS) as usize]).sum::<u64>();
    expect("sum", sum.message.number, expected)?;
    kernel.terminate_blocking(Terminate::drain());
    verify_books(&kernel, operations + 2 * ARRAYS + 2)?;
    Ok(slice)
}

/// What the arrays cannot do without: to be copied once.
pub(crate) fn copies(operations: u64) -> Result<Slice, Wrong> {
    let arrays = cells();
    let mut copy = vec![Cell { value: 0 }; CELLS];
    let watch = Stopwatch::start();
    for number in 0..operations {
        copy.copy_from_slice(&arrays[(number % ARRAYS) as usize]);
        black_box(&mut copy);
    }
    Ok(watch.stop())
}
