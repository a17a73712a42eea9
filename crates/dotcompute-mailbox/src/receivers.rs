//! Who waits for a message, in the order in which they came.
//!
//! Almost always that is one, the inbox of a kernel, again and again. So there is a place beside the
//! line for whoever comes when nobody else waits: it lies with what every send reads.

use crate::wait_list::{Key, WaitList, renew};
use std::task::{Context, Waker};

/// Where a receiver waits; valid until it leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Beside the line, before everyone in it.
    First,
    InLine(Key),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    Vacant,
    Waiting,
    /// Told to look, and not back yet.
    Served,
}

/// Served means: told to look.
#[repr(C)] // In the order of use.
pub(crate) struct Receivers {
    waker: Option<Waker>,
    line: WaitList<(), 1>,
    first: First,
}

impl Receivers {
    pub(crate) const fn new() -> Self {
        Self { waker: None, first: First::Vacant, line: WaitList::new() }
    }

    /// How many wait and have not been served.
    #[inline]
    pub(crate) fn waiting(&self) -> usize {
        usize::from(self.first == First::Waiting) + self.line.waiting()
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.line.memory_bytes()
    }

    /// Has `context`'s task wait at `place`, or at the end of the line if it does not wait yet or
    /// was served. Gives a waker back that is not needed any more, for the caller to drop when the
    /// lock is released.
    #[must_use]
    #[inline]
    pub(crate) fn wait(
        &mut self,
        place: &mut Option<Place>,
        context: &Context<'_>,
    ) -> Option<Waker> {
        match *place {
            Some(Place::First) if self.first == First::Waiting => {}
            Some(Place::InLine(key)) => {
                self.line.rejoin(key);
                return self.line.set_waker(key, context);
            }
            Some(Place::First) | None => {
                let is_mine = place.is_some();
                if self.line.waiting() > 0 || !(is_mine || self.first == First::Vacant) {
                    if is_mine {
                        self.first = First::Vacant;
                    }
                    *place = Some(Place::InLine(self.line.add(0, (), context.waker().clone())));
                    return None;
                }
                self.first = First::Waiting;
                *place = Some(Place::First);
            }
        }
        renew(&mut self.waker, context)
    }

    /// Serves who came first: its waker, which is `None` if nobody waits.
    #[inline]
    pub(crate) fn serve(&mut self) -> Option<Waker> {
        match self.first {
            First::Waiting => {
                self.first = First::Served;
                self.waker.take()
            }
            First::Vacant | First::Served => self.line.serve()?.1,
        }
    }

    /// Ends a wait: whether it had been served, and a waker to drop when the lock is released.
    #[inline]
    pub(crate) fn leave(&mut self, place: Place) -> (bool, Option<Waker>) {
        match place {
            Place::First => {
                let was_served = self.first == First::Served;
                self.first = First::Vacant;
                (was_served, self.waker.take())
            }
            Place::InLine(key) => (self.line.is_served(key), self.line.remove(key).1),
        }
    }
}
