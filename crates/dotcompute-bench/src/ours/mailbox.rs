//! The mailbox with bands, books and stamps.

use std::hint::black_box;

use dotcompute_mailbox::{Admission, Backpressure, Band, Mailbox};

use crate::harness::{Slice, Stopwatch, Wrong, expect};
use crate::load::{CAPACITY, CHUNK, InOrder, sum_below};
use crate::os::pinned;

/// `try_send` and `try_receive` on one thread.
pub(crate) fn pair(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        let mailbox = Mailbox::new(CAPACITY, Backpressure::Reject);
        let watch = Stopwatch::start();
        let mut sum: u64 = 0;
        for number in 0..operations {
            let admission = black_box(&mailbox).try_send(Band::Normal, number);
            expect("admitted", matches!(admission, Ok(Admission::Accepted)), true)?;
            sum += black_box(&mailbox).try_receive().map_err(Wrong::new)?;
        }
        let slice = watch.stop();
        expect("sum", sum, sum_below(operations))?;
        expect("processed", mailbox.books().processed, operations)?;
        Ok(slice)
    })
}

/// 64 times `try_send`, then as many messages through the window of the kernel's end.
pub(crate) fn window(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        let mailbox = Mailbox::new(CAPACITY, Backpressure::Reject);
        let mut inbox = mailbox.inbox().ok_or_else(|| Wrong::new("the inbox is taken"))?;
        let watch = Stopwatch::start();
        let mut in_order = InOrder::default();
        while in_order.count() < operations {
            let sent = in_order.count();
            for number in sent..operations.min(sent + CHUNK) {
                let admission = black_box(&mailbox).try_send(Band::Normal, number);
                expect("admitted", matches!(admission, Ok(Admission::Accepted)), true)?;
            }
            while black_box(&mut inbox).try_next().is_ok() {
                let number = inbox.current().ok_or_else(|| Wrong::new("nothing in hand"))?;
                in_order.number(*number);
            }
        }
        let slice = watch.stop();
        in_order.verify(operations)?;
        expect("processed", mailbox.books().processed, operations)?;
        Ok(slice)
    })
}
