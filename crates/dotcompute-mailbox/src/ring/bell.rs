//! The doorbell: how one end of a ring sleeps until the other has news.
//!
//! A ring has two, one per direction, each of two words with one writer each. The sleeper counts
//! `asks` up, looks once more, and sleeps while the peer's `rung` differs from that number. The
//! peer, after each publish, looks at `asks`; a number that it has not answered it copies to
//! `rung`, and wakes. So a sleeper costs its peer one system call per sleep, however much the peer
//! publishes until the sleeper runs.

use super::parts::End;
use crate::sync::{Ordering, fence};
use crate::sys::{self, Scope};
use crate::wait::{Idle, Spin, cpu_mark, same_cpu};
use std::time::Instant;

/// One end's part in both doorbells.
pub(super) struct Bell {
    /// The peer's `asks` that was answered last: what our `rung` holds.
    answered: u32,
    spin: Spin,
}

impl Bell {
    /// The bell of an end whose words are `own`.
    pub(super) fn new(own: &End) -> Self {
        // Relaxed: our own word.
        Self { answered: own.rung.load(Ordering::Relaxed), spin: Spin::default() }
    }

    /// Tells the peer, if it sleeps, that there is news. Call after publishing it.
    #[inline]
    pub(super) fn ring(&mut self, own: &End, peer: &End, scope: Scope) {
        // SYNC(ring.bell) SeqCst: the store-load race. We stored the news and now load `asks`; the peer
        // stores `asks` and then loads the news. Of two sequentially consistent fences one comes
        // first: if ours, the peer's look sees the news; if the peer's, we see that it asks.
        fence(Ordering::SeqCst);
        // Relaxed: ordered by the fence.
        let asks = peer.asks.load(Ordering::Relaxed);
        if asks != self.answered {
            self.answer(asks, own, scope);
        }
    }

    #[cold]
    fn answer(&mut self, asks: u32, own: &End, scope: Scope) {
        self.answered = asks;
        // Relaxed: a hint.
        own.cpu.store(cpu_mark(), Ordering::Relaxed);
        // SYNC(ring.rung) release: pairs with the acquire in `sleep`. Makes visible the news, so that
        // the sleeper finds it at once. (Relaxed would cost it another turn, but no wake-up: its
        // next ticket's fence comes after ours.)
        own.rung.store(asks, Ordering::Release);
        sys::futex_wake(&own.rung, scope);
    }

    /// Waits until `ready`, which looks at the peer's news, says so; false if `deadline` passed.
    pub(super) fn wait(
        &mut self,
        own: &End,
        peer: &End,
        scope: Scope,
        deadline: Option<Instant>,
        mut ready: impl FnMut() -> bool,
    ) -> bool {
        // Relaxed: a hint. On the core from which the peer last rang us, only sleeping lets it run.
        if !same_cpu(peer.cpu.load(Ordering::Relaxed)) && self.spin.until(&mut ready) {
            return true;
        }
        while !ready() {
            // Relaxed: our own word.
            let ticket = own.asks.load(Ordering::Relaxed).wrapping_add(1);
            // Relaxed: ordered by the fence.
            own.asks.store(ticket, Ordering::Relaxed);
            // SYNC(ring.bell) SeqCst: see `ring`. After it, either `ready` sees the peer's news or the
            // peer sees the ticket.
            fence(Ordering::SeqCst);
            if ready() {
                return true;
            }
            if !sleep(peer, ticket, scope, deadline) {
                return ready();
            }
        }
        true
    }
}

/// Sleeps until the peer has answered `ticket`; false if `deadline` passed first.
fn sleep(peer: &End, ticket: u32, scope: Scope, deadline: Option<Instant>) -> bool {
    let _idle = Idle::begin();
    loop {
        // SYNC(ring.rung) acquire: pairs with the release in `Bell::answer`. Makes visible the news
        // that the bell was rung for.
        let rung = peer.rung.load(Ordering::Acquire);
        if rung == ticket {
            return true;
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            return false;
        }
        sys::futex_wait(&peer.rung, rung, deadline, scope);
    }
}
