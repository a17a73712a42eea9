//! The ring between two threads, for ThreadSanitizer:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/tsan \
//!     RUSTFLAGS="-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer" \
//!     cargo test -p dotcompute-mailbox --target x86_64-unknown-linux-gnu --test tsan_ring
//! ```
//!
//! The standard library is not instrumented, so the sanitizer does not see what its locks,
//! channels and reference counts order, and would report races that are none. Hence no
//! suppressions but a harness that needs none: the test runs in `main` without the test framework,
//! threads come from the system (which the sanitizer knows), rings lie in leaked memory, and all
//! that the threads share is the ring under test. It is a plain test too, without the sanitizer.

use dotcompute_abi::{PlainSlot, TaggedRecord};
use dotcompute_mailbox::ring::{
    Consumer, Format, Plain, Polls, PopError, Producer, PushError, RawEnds, RawFormat, RawMemory,
    Rings, Tagged, Waiting, prompt_ring,
};
use std::ffi::c_void;
use std::ptr::{self, NonNull};

const MESSAGES: u32 = 50_000;

fn main() {
    for capacity in [1, 3, 64] {
        polled(leaked_ring::<Plain, Polls>(capacity));
        polled(leaked_ring::<Tagged, Polls>(capacity));
        polled(prompt_ring::<PlainSlot>(capacity));
        parked::<Plain>(capacity);
        parked::<Tagged>(capacity);
        chunked(capacity);
        hand_over(capacity);
    }
}

/// A record whose every byte follows from its number, so that a torn one shows without the
/// sanitizer.
trait Numbered: Copy + Send + 'static {
    fn numbered(number: u32) -> Self;
    fn number(&self) -> u32;
}

impl Numbered for PlainSlot {
    fn numbered(number: u32) -> Self {
        Self::new(number, [number.to_le_bytes(); 14].as_flattened()).expect("14 words fit")
    }

    fn number(&self) -> u32 {
        assert_eq!(self.payload, *[self.header.token.to_le_bytes(); 14].as_flattened());
        self.header.token
    }
}

impl Numbered for TaggedRecord {
    fn numbered(number: u32) -> Self {
        Self::new(number, [number.to_le_bytes(); 10].as_flattened()).expect("10 words fit")
    }

    fn number(&self) -> u32 {
        assert_eq!(self.payload, *[self.header.token.to_le_bytes(); 10].as_flattened());
        self.header.token
    }
}

/// Both ends poll.
fn polled<T, F>((mut producer, mut consumer): (Producer<T, F>, Consumer<T, F>))
where
    T: Numbered,
    F: Format<T> + 'static,
{
    let pusher = Thread::start(move || {
        for number in 0..MESSAGES {
            while producer.try_push(Numbered::numbered(number)).is_err() {
                relax();
            }
        }
    });
    for number in 0..MESSAGES {
        let record = loop {
            match consumer.try_pop() {
                Ok(record) => break record,
                Err(PopError::Empty) => relax(),
                Err(PopError::Closed) => panic!("closed before message {number}"),
            }
        };
        assert_eq!(record.number(), number);
    }
    pusher.join();
    assert!(consumer.is_abandoned());
    // Leaked: the sanitizer does not understand how the last end to go frees a ring on the heap.
    std::mem::forget(consumer);
}

/// Both ends sleep when they must wait, and the producer goes as soon as it can.
fn parked<F: RawFormat<Record: Numbered> + 'static>(capacity: usize) {
    let (mut producer, mut consumer) = leaked_ring::<F, Rings>(capacity);
    let pusher = Thread::start(move || {
        for number in 0..MESSAGES {
            assert!(producer.push_wait(Numbered::numbered(number), None).is_ok());
        }
    });
    for number in 0..MESSAGES {
        assert_eq!(consumer.pop_wait(None).map(|record| record.number()).ok(), Some(number));
    }
    assert!(matches!(consumer.pop_wait(None), Err(PopError::Closed)));
    pusher.join();
}

/// Whole chunks, read in place; the consumer goes half-way.
fn chunked(capacity: usize) {
    let (mut producer, mut consumer) = leaked_ring::<Plain, Rings>(capacity);
    let pusher = Thread::start(move || {
        let mut numbers = 0..MESSAGES;
        loop {
            match producer.wait(1, None) {
                Ok(_) => producer.push_iter(numbers.by_ref().map(Numbered::numbered)),
                Err(PushError::Closed(())) => return,
                Err(PushError::Full(())) => panic!("a wait without a deadline has timed out"),
            };
        }
    });
    let mut expected = 0;
    while expected < MESSAGES / 2 {
        consumer.wait(None).expect("the producer does not go first");
        let chunk = consumer.read_chunk(64).expect("at least one message is there");
        let (first, second) = chunk.as_slices();
        for record in first.iter().chain(second) {
            assert_eq!(record.number(), expected);
            expected += 1;
        }
        chunk.commit_all();
    }
    drop(consumer);
    pusher.join();
}

/// The consumer moves to a new thread for every few messages, while the producer goes on.
fn hand_over(capacity: usize) {
    let (mut producer, mut consumer) = leaked_ring::<Plain, Rings>(capacity);
    let pusher = Thread::start(move || {
        for number in 0..MESSAGES / 10 {
            assert!(producer.push_wait(Numbered::numbered(number), None).is_ok());
        }
    });
    let per_thread = MESSAGES / 100;
    for first in (0..MESSAGES / 10).step_by(per_thread as usize) {
        let place = Place(&raw mut consumer);
        let popper = Thread::start(move || {
            // SAFETY: `consumer` outlives this thread, which is joined below, and nobody else uses
            // it before.
            let consumer = unsafe { place.into_mut() };
            for number in first..first + per_thread {
                assert_eq!(
                    consumer.pop_wait(None).map(|record| record.number()).ok(),
                    Some(number)
                );
            }
        });
        popper.join();
    }
    pusher.join();
}

/// A consumer lent to a thread until that is joined.
struct Place(*mut Consumer<PlainSlot, Plain, Rings>);

// SAFETY: a `&mut` in all but lifetime, and `Consumer` is Send.
unsafe impl Send for Place {}

impl Place {
    /// # Safety
    ///
    /// - The consumer lives, and nobody else uses it, for as long as the result is used.
    unsafe fn into_mut<'a>(self) -> &'a mut Consumer<PlainSlot, Plain, Rings> {
        // SAFETY: as the caller promises.
        unsafe { &mut *self.0 }
    }
}

/// A ring whose memory is never freed.
fn leaked_ring<F: RawFormat, W: Waiting>(capacity: usize) -> RawEnds<F, W> {
    let bytes = RawMemory::bytes_for::<F>(capacity);
    // SAFETY: a fresh anonymous mapping; nothing of ours is at stake.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    let start = NonNull::new(start.cast()).expect("a mapping is not at 0");
    // Two views, as two processes would have: `split` would share a reference count.
    // SAFETY: page-aligned, `bytes` long, never unmapped; the only two ends are made here.
    let view = || unsafe { RawMemory::from_raw(start, bytes, ()) };
    let consumer = view().create(capacity).expect("a mapping suits a ring").consumer();
    (view().attach().expect("the ring is there").producer(), consumer)
}

/// A thread of the system's, since those of the standard library share reference counts.
struct Thread(libc::pthread_t);

impl Thread {
    fn start<F: FnOnce() + Send + 'static>(f: F) -> Self {
        extern "C" fn enter<F: FnOnce()>(f: *mut c_void) -> *mut c_void {
            // SAFETY: `start` leaked exactly this box for exactly this thread.
            let f = unsafe { Box::from_raw(f.cast::<F>()) };
            f();
            ptr::null_mut()
        }
        let mut thread = 0;
        let f = Box::into_raw(Box::new(f)).cast();
        // SAFETY: `enter::<F>` takes what `f` is, and a panic in it aborts the test.
        let error = unsafe { libc::pthread_create(&mut thread, ptr::null(), enter::<F>, f) };
        assert_eq!(error, 0);
        Self(thread)
    }

    fn join(self) {
        // SAFETY: a joinable thread, joined once.
        assert_eq!(unsafe { libc::pthread_join(self.0, ptr::null_mut()) }, 0);
    }
}

/// Lets the other thread run, also on one core.
fn relax() {
    // SAFETY: takes nothing and touches nothing.
    unsafe { libc::sched_yield() };
}
