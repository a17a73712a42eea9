//! The mailbox between threads, for ThreadSanitizer; how to run it and why it is built as it is,
//! see `tsan_ring.rs`. It is a plain test too, without the sanitizer.

use dotcompute_mailbox::{Admission, Backpressure, Band, Inbox, Mailbox, TryReceiveError};
use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;

const MESSAGES: u64 = 20_000;
const SENDERS: u64 = 2;

fn main() {
    for capacity in [1, 3, 200] {
        for backpressure in [Backpressure::Block, Backpressure::DropOldest] {
            check(capacity, backpressure);
        }
    }
}

/// Two senders, an inbox with its window, and a thread that keeps taking the window back: by
/// pauses, urgent messages and receives of its own.
fn check(capacity: usize, backpressure: Backpressure) {
    // Never freed: the last drop of a reference count is what the sanitizer cannot follow.
    let mailbox: &'static Arc<Mailbox<Boxed>> =
        Box::leak(Box::new(Mailbox::new(capacity, backpressure)));
    let mut inbox = ManuallyDrop::new(mailbox.inbox().expect("it is the first"));
    let mut threads: Vec<Thread> = (0..SENDERS)
        .map(|_| {
            Thread::start(move || {
                for number in 0..MESSAGES {
                    let band = if number.is_multiple_of(97) { Band::High } else { Band::Normal };
                    send(mailbox, band, number);
                }
            })
        })
        .collect();
    threads.push(Thread::start(move || {
        for _ in 0..MESSAGES / 100 {
            mailbox.pause();
            assert!(mailbox.books().balance());
            mailbox.resume();
            if let Ok(message) = mailbox.try_receive() {
                assert!(*message < MESSAGES);
            }
            relax();
        }
    }));
    let mut is_over = false;
    while !is_over {
        is_over = drain(&mut inbox) == 0 && mailbox.books().accepted == SENDERS * MESSAGES;
        relax();
    }
    threads.into_iter().for_each(Thread::join);
    drain(&mut inbox);
    let books = mailbox.books();
    assert!(books.balance());
    assert_eq!((books.queued, books.in_hand), (0, 0));
}

/// On the heap, so that the sanitizer sees who frees what.
type Boxed = Box<u64>;

fn send(mailbox: &Mailbox<Boxed>, band: Band, number: u64) {
    let mut message = Box::new(number);
    loop {
        match mailbox.try_send(band, message) {
            Ok(Admission::Accepted) => return,
            Ok(Admission::Evicted(older) | Admission::DroppedNewest(older)) => {
                assert!(*older < MESSAGES);
                return;
            }
            Err(refused) => message = refused.into_inner(),
        }
        relax();
    }
}

/// Receives until there is nothing; how many.
fn drain(inbox: &mut Inbox<Boxed>) -> u64 {
    let mut count = 0;
    loop {
        match inbox.try_next() {
            Ok(()) => assert!(inbox.current().is_some_and(|number| **number < MESSAGES)),
            Err(TryReceiveError::Empty) => return count,
            Err(TryReceiveError::Closed) => panic!("nobody closes the mailbox"),
        }
        count += 1;
    }
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

/// Lets another thread run, also on one core.
fn relax() {
    // SAFETY: takes nothing and touches nothing.
    unsafe { libc::sched_yield() };
}
