//! The messages of one mailbox: four FIFO queues, and the free list, through one slab of slots.
//!
//! [`Bands`] is plain single-threaded data that the mailbox's lock guards. It decides which band
//! is served next and lends the inbox its *window*.
//!
//! # The window
//!
//! The inbox reads most messages without the lock. Under the lock, [`Bands::open_window`] lends it
//! a chain of slots; the inbox then walks along the chain and counts each step in the mailbox's
//! cursor (`cursor.rs`), a word that both sides can read. What is lent still counts as queued until
//! the cursor says that it was delivered.
//!
//! Who may touch what:
//!
//! - The slots of a window that the cursor has not passed may be read by both sides (their links)
//!   and written by neither.
//! - The slot in hand, the last one that was delivered, is the inbox's alone, except that its
//!   link may be read. It stays so until the inbox takes the lock or moves the cursor on.
//! - All other slots belong to whoever holds the lock, among them those that the inbox is done
//!   with.
//!
//! So, given the cursor, whoever holds the lock can end a window at any time
//! ([`Bands::close_window`]), provided that the cursor cannot move meanwhile.

use crate::levels::Levels;
use crate::prefetch;
use crate::sync::UnsafeCell;
use std::ptr::NonNull;

/// The four priorities of a mailbox, the most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Band {
    /// Control messages: priority 224 to 255.
    System,
    /// Urgent messages: priority 160 to 223.
    High,
    /// Ordinary messages: priority 64 to 159.
    Normal,
    /// Background messages: priority 0 to 63.
    Low,
}

impl Band {
    /// All bands, the most urgent first.
    pub const ALL: [Self; 4] = [Self::System, Self::High, Self::Normal, Self::Low];

    /// The band that serves messages of `priority`.
    pub const fn from_priority(priority: u8) -> Self {
        match priority {
            224.. => Self::System,
            160.. => Self::High,
            64.. => Self::Normal,
            _ => Self::Low,
        }
    }
}

/// A band in which messages wait is passed over by at most so many deliveries in a row; then it
/// gets one (bands that come due together get theirs one after the other, the most urgent first).
pub const PASSED_OVER_MAX: u64 = 256;

/// The most messages that the inbox reads before it takes the lock again. It bounds how many slots
/// wait to be used again, and how many messages' time a sender waits that leaves the inbox alone.
pub(crate) const WINDOW_MAX: usize = 256;

/// Whoever is at a slot asks for the one so many places further on: about as many messages as one
/// transfer of a line between two cores takes.
pub(crate) const PREFETCH_AHEAD: usize = 6;
/// The most slots that go back to the front of the free list, to be used again while they are in
/// the cache. Longer chains go to the end: so slots stay in the order of their addresses, which is
/// what lets the next ones be asked for ahead of time.
const WARM_MAX: usize = 8;

/// Slots in a slab's first block; each further block doubles the slab, up to [`BLOCK_MAX`].
const BLOCK_MIN: usize = 8;
/// The most slots in one block.
const BLOCK_MAX: usize = 1024;

/// The order of the fields is that of use: what every send and receive touches lies together.
#[repr(C)]
pub(crate) struct Bands<T> {
    /// Messages in the queues and in the window, without the one in hand.
    len: usize,
    /// Deliveries so far, to whomever: the clock of the rule about passing over.
    deliveries: u64,
    free: Chain<T>,
    window: Window<T>,
    /// See [`place`].
    queues: [Queue<T>; 4],
    /// Where more urgent messages go first inside a band too.
    ranks: Option<Box<Ranks<T>>>,
    /// The slots, owned; they are reached through pointers only, and stay where they are.
    blocks: Vec<NonNull<[Slot<T>]>>,
    slots: usize,
}

/// Where the queue of a band lies. That of NORMAL, which most messages go through, comes first.
const fn place(band: Band) -> usize {
    band as usize ^ Band::Normal as usize
}

/// What every send and receive of a NORMAL message touches comes within so many bytes.
#[cfg(not(loom))]
pub(crate) const HOT_BYTES: usize =
    std::mem::offset_of!(Bands<()>, queues) + size_of::<Queue<()>>();

/// How urgent messages are inside their band.
struct Ranks<T> {
    rank: fn(&T) -> u8,
    levels: [Levels<T>; 4],
}

/// The messages of one band.
struct Queue<T> {
    slots: Chain<T>,
    /// When (in deliveries) the band was last served or began to wait.
    served: u64,
}

/// The slots that the inbox can reach.
#[repr(C)] // In the order of use.
struct Window<T> {
    /// First those that were delivered, the last of which is in hand, then the rest.
    slots: Chain<T>,
    /// Deliveries to the inbox, as far as they were seen.
    seen: u64,
    /// How many of the slots had been delivered then.
    passed: u32,
    /// The band of the rest, or that of the last delivery to the inbox.
    band: Band,
    /// Whether [`Bands::ranks`] are there: noted here, where every send looks.
    is_ranked: bool,
}

// SAFETY: `Bands` owns its slots, as a `Box` would, and hands values of `T` to whoever owns it.
unsafe impl<T: Send> Send for Bands<T> {}

impl<T> Bands<T> {
    /// With a `rank`, messages of a higher one go first inside their band; then there is no window.
    pub(crate) fn new(rank: Option<fn(&T) -> u8>) -> Self {
        let ranks = rank.map(|rank| Ranks { rank, levels: [const { Levels::new() }; 4] });
        Self {
            ranks: ranks.map(Box::new),
            len: 0,
            deliveries: 0,
            free: Chain::new(),
            window: Window {
                slots: Chain::new(),
                seen: 0,
                passed: 0,
                band: Band::System,
                is_ranked: rank.is_some(),
            },
            queues: [const { Queue { slots: Chain::new(), served: 0 } }; 4],
            blocks: Vec::new(),
            slots: 0,
        }
    }

    /// Messages queued, as far as the inbox's progress was observed: otherwise fewer.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Deliveries so far, as far as the inbox's progress was observed.
    pub(crate) fn deliveries(&self) -> u64 {
        self.deliveries
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots * size_of::<Slot<T>>() + self.blocks.capacity() * size_of::<NonNull<[Slot<T>]>>()
    }

    /// Messages in the window that the inbox may not have reached yet; 0 only if there are none.
    #[inline]
    fn lent(&self) -> usize {
        self.window.slots.len - self.window.passed as usize
    }

    /// Whether there are messages that the inbox can take without the lock.
    #[inline]
    pub(crate) fn is_lent(&self) -> bool {
        self.lent() > 0
    }

    /// Whether there is a window, and not of this band.
    #[inline(always)]
    pub(crate) fn is_beside_window(&self, band: Band) -> bool {
        band != self.window.band && self.is_lent()
    }

    /// Whether a message of `band` must not wait until the inbox has read its window.
    #[inline]
    pub(crate) fn precedes_window(&self, band: Band) -> bool {
        band < self.window.band && self.is_lent()
    }

    /// Whether a push to `band` must know how far the inbox has come: when a band begins to wait,
    /// while another one is being served.
    #[inline]
    pub(crate) fn push_needs_progress(&self, band: Band) -> bool {
        self.is_lent() && band != self.window.band && self.queues[place(band)].slots.is_empty()
    }

    /// Queues a message. `stamp` is the time of admission, or 0.
    #[inline(always)]
    pub(crate) fn push(&mut self, band: Band, value: T, stamp: u64) {
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None => self.grow(),
        };
        // SAFETY: a slot from the free list (or a new one) is the lock holder's.
        unsafe { slot.fill(value, stamp) };
        // Only where a queue builds up: a lone message would fetch lines that nobody needs.
        if self.len > PREFETCH_AHEAD && self.free.len > PREFETCH_AHEAD {
            slot.prefetch_ahead();
        }
        self.begin_wait(band);
        match self.window.is_ranked {
            false => self.queues[place(band)].slots.push_back(slot),
            true => self.rank_in(band, slot, false),
        }
        self.len += 1;
    }

    /// Queues a slot where its message's rank belongs: behind its equals, or before them.
    #[cold]
    fn rank_in(&mut self, band: Band, slot: SlotPtr<T>, at_front: bool) {
        let Some(ranks) = &mut self.ranks else { return };
        // SAFETY: a slot on its way into a list is the lock holder's; the borrow ends here.
        let value = unsafe { slot.value() }.expect("a slot that is queued should hold a message");
        let (rank, queue) = ((ranks.rank)(value), &mut self.queues[place(band)]);
        ranks.levels[band as usize].insert(&mut queue.slots, rank, slot, at_front);
    }

    /// Takes the first slot of a band that has one out, in the order of `bands`. `ranked` says which
    /// it is where there are levels.
    #[inline]
    fn first_of(
        &mut self,
        bands: impl IntoIterator<Item = Band>,
        ranked: fn(&mut Levels<T>, &mut Chain<T>) -> Option<SlotPtr<T>>,
    ) -> Option<(Band, SlotPtr<T>)> {
        bands.into_iter().find_map(|band| {
            let slots = &mut self.queues[place(band)].slots;
            let slot = match &mut self.ranks {
                Some(ranks) if self.window.is_ranked => {
                    ranked(&mut ranks.levels[band as usize], slots)?
                }
                _ => slots.pop_front()?,
            };
            self.len -= 1;
            Some((band, slot))
        })
    }

    /// Notes the time if `band` is empty and so begins to wait now.
    #[inline]
    fn begin_wait(&mut self, band: Band) {
        let is_served_now = || self.is_lent() && band == self.window.band;
        if self.queues[place(band)].slots.is_empty() && !is_served_now() {
            self.queues[place(band)].served = self.deliveries;
        }
    }

    /// Whether the inbox has a message in hand.
    #[inline]
    pub(crate) fn is_in_hand(&self) -> bool {
        // Also while a window is lent: one was delivered before it was opened, and each step in it
        // delivers another.
        !self.window.slots.is_empty()
    }

    /// Deliveries to the inbox, as far as its progress was observed.
    #[inline]
    pub(crate) fn seen(&self) -> u64 {
        self.window.seen
    }

    /// Notes that the inbox has come to `seen` deliveries.
    #[inline]
    pub(crate) fn observe(&mut self, seen: u64) {
        let steps = seen - self.window.seen;
        if steps > 0 {
            self.window.seen = seen;
            self.window.passed += steps as u32;
            self.len -= steps as usize;
            self.deliveries += steps;
            self.queues[place(self.window.band)].served = self.deliveries;
        }
    }

    /// The band to serve next: one that is due, or else the most urgent. Sees the lists only, so a
    /// window must be closed first.
    #[inline]
    fn next_band(&self) -> Option<Band> {
        if self.len == 0 {
            return None;
        }
        // Most often all messages are in one band, the same as before, and no other need be read.
        if self.queues[place(self.window.band)].slots.len == self.len {
            return Some(self.window.band);
        }
        let mut waiting =
            Band::ALL.into_iter().filter(|&b| !self.queues[place(b)].slots.is_empty());
        let first = waiting.next()?;
        let due = waiting.find(|&band| self.patience(band) == 0);
        Some(due.unwrap_or(first))
    }

    /// By how many deliveries a waiting band can still be passed over.
    #[inline]
    fn patience(&self, band: Band) -> u64 {
        PASSED_OVER_MAX.saturating_sub(self.deliveries - self.queues[place(band)].served)
    }

    /// Takes the next message out, in the order of delivery. The window must be closed.
    #[inline]
    pub(crate) fn deliver(&mut self) -> Option<T> {
        let (slot, _) = self.deliver_slot()?;
        Some(self.empty(slot))
    }

    /// As [`deliver`](Self::deliver), with the message's band and its time of admission, or 0.
    pub(crate) fn lend(&mut self) -> Option<(T, Band, u64)> {
        let (slot, band) = self.deliver_slot()?;
        // SAFETY: the slot was in a list, so it is the lock holder's.
        let stamp = unsafe { slot.take_stamp() };
        Some((self.empty(slot), band, stamp))
    }

    /// Queues a message at the front of its band. The window must be closed.
    pub(crate) fn push_front(&mut self, band: Band, value: T) {
        let slot = match self.free.pop_front() {
            Some(slot) => slot,
            None => self.grow(),
        };
        // SAFETY: a slot from the free list (or a new one) is the lock holder's.
        unsafe { slot.fill(value, 0) };
        self.begin_wait(band);
        match self.window.is_ranked {
            false => self.queues[place(band)].slots.push_front(slot),
            true => self.rank_in(band, slot, true),
        }
        self.len += 1;
    }

    #[inline]
    fn deliver_slot(&mut self) -> Option<(SlotPtr<T>, Band)> {
        let (band, slot) = self.first_of(self.next_band(), Levels::next)?;
        self.deliveries += 1;
        self.queues[place(band)].served = self.deliveries;
        Some((slot, band))
    }

    /// Takes the oldest message of the least urgent band (and rank) out; this is no delivery. The
    /// window must be closed.
    pub(crate) fn evict(&mut self) -> Option<T> {
        let bands = Band::ALL.into_iter().rev();
        let (_, slot) = self.first_of(bands, Levels::oldest_of_last)?;
        Some(self.empty(slot))
    }

    /// Takes the oldest message of the most urgent band out; this is no delivery. The window must
    /// be closed.
    pub(crate) fn remove_first(&mut self) -> Option<(Band, T)> {
        let (band, slot) = self.first_of(Band::ALL, Levels::first)?;
        Some((band, self.empty(slot)))
    }

    /// Calls `each` with every queued message, in the order of [`remove_first`](Self::remove_first).
    /// The window must be closed.
    pub(crate) fn inspect(&self, mut each: impl FnMut(Band, &T)) {
        for band in Band::ALL {
            let slots = &self.queues[place(band)].slots;
            let mut next = slots.first();
            for left in (0..slots.len).rev() {
                let Some(slot) = next else { break };
                // SAFETY: the slot is in a list, so it is the lock holder's, and this borrows it
                // for the call only.
                if let Some(value) = unsafe { slot.value() } {
                    each(band, value);
                }
                // SAFETY: slots follow in the chain; only the lock holder writes links.
                next = (left > 0).then(|| unsafe { slot.next() });
            }
        }
    }

    /// Takes the value of a slot that has just left its list, and frees the slot.
    #[inline]
    fn empty(&mut self, slot: SlotPtr<T>) -> T {
        // SAFETY: the slot was in a list, so it is the lock holder's.
        let value = unsafe { slot.take() };
        self.free.push_front(slot);
        value.expect("a queued slot should hold a message")
    }

    /// Delivers the next message to the inbox: its slot is in hand from now on. The window must be
    /// closed, and no slot in hand.
    pub(crate) fn hand_out(&mut self) -> Option<(SlotPtr<T>, Band)> {
        let (slot, band) = self.deliver_slot()?;
        self.window.passed = 1;
        self.window.seen += 1;
        self.window.slots = Chain::of(slot);
        self.window.band = band;
        Some((slot, band))
    }

    /// The slot in hand, if there is one. The window must be closed but for it.
    pub(crate) fn slot_in_hand(&self) -> Option<SlotPtr<T>> {
        self.window.slots.first()
    }

    /// Lends the inbox, which was just handed a message, those that come next: their first slot,
    /// band, and how many of them may be read before the lock is taken again, at most `max`.
    pub(crate) fn open_window(&mut self, max: usize) -> Option<(SlotPtr<T>, Band, usize)> {
        let band = self.next_band()?;
        if self.window.is_ranked {
            return None;
        }
        let others = || Band::ALL.into_iter().filter(|&b| b != band);
        let waiting = others().filter(|&other| !self.queues[place(other)].slots.is_empty());
        // Others may be passed over only so often; a more urgent one (this one is due) never.
        let patience = |other| if other < band { 0 } else { self.patience(other) as usize };
        let limit = waiting.map(patience).fold(max, usize::min);
        if limit == 0 {
            return None;
        }
        let rest = self.queues[place(band)].slots.take();
        let (first, len) = (rest.first()?, rest.len);
        self.window.slots.append(rest);
        self.window.band = band;
        Some((first, band, len.min(limit)))
    }

    /// Ends the window, after [`observe`](Self::observe): what was not delivered goes back to where
    /// it came from, and what the inbox is done with is free. The slot in hand, if there is one,
    /// stays out.
    pub(crate) fn close_window(&mut self, in_hand: bool) {
        if self.window.slots.is_empty() {
            return;
        }
        let passed = self.window.passed as usize;
        let (done, mut rest) = self.window.slots.take().split(passed - usize::from(in_hand));
        if in_hand {
            let hand = rest.pop_front().expect("the slot in hand should be in the window");
            self.window.slots.push_back(hand);
        }
        self.take_back(done, rest);
    }

    /// [`close_window`](Self::close_window) by the inbox, once it is done with what it has in hand,
    /// `last`: it need not walk the window, under the lock, to where it is itself.
    #[inline]
    pub(crate) fn close_window_after(&mut self, last: SlotPtr<T>) {
        let passed = self.window.passed as usize;
        let (done, rest) = self.window.slots.take().split_after(last, passed);
        self.take_back(done, rest);
    }

    /// The window has ended: the inbox is done with some of its slots, and has not reached the rest.
    #[inline]
    fn take_back(&mut self, done: Chain<T>, rest: Chain<T>) {
        match done.len > WARM_MAX {
            true => self.free.append(done),
            false => self.free.prepend(done),
        }
        self.window.passed = self.window.slots.len as u32;
        self.queues[place(self.window.band)].slots.prepend(rest);
    }

    /// Puts the message in hand back to the front of its band; undoes nothing else of its delivery.
    /// The window must be closed but for the slot in hand.
    pub(crate) fn put_back(&mut self, band: Band) {
        let slot = self.window.slots.pop_front().expect("a slot should be in hand");
        self.window.passed = 0;
        self.begin_wait(band);
        match self.window.is_ranked {
            false => self.queues[place(band)].slots.push_front(slot),
            true => self.rank_in(band, slot, true),
        }
        self.len += 1;
    }

    /// Adds a block of slots and takes one of them.
    #[cold]
    fn grow(&mut self) -> SlotPtr<T> {
        let count = self.slots.clamp(BLOCK_MIN, BLOCK_MAX);
        let block: Box<[Slot<T>]> = (0..count).map(|_| Slot::new()).collect();
        let block = NonNull::from(Box::leak(block));
        self.blocks.push(block);
        self.slots += count;
        for index in (0..count).rev() {
            // SAFETY: `index` is within the block just made.
            let slot = unsafe { block.cast::<Slot<T>>().add(index) };
            self.free.push_front(SlotPtr(slot));
        }
        self.free.pop_front().expect("a new block should have slots")
    }
}

impl<T> Drop for Bands<T> {
    fn drop(&mut self) {
        for block in self.blocks.drain(..) {
            // SAFETY: the block came from a `Box` in `grow`, is freed once, here, and nobody has a
            // pointer into it any more: the inbox, the only other holder, keeps the mailbox alive.
            // Values that are still in slots are dropped with it.
            drop(unsafe { Box::from_raw(block.as_ptr()) });
        }
    }
}

/// Place for one message.
struct Slot<T> {
    /// The next slot of the chain; meaningless, perhaps dangling, in its last one.
    next: UnsafeCell<SlotPtr<T>>,
    /// When the message was admitted, if that was noted; else 0.
    stamp: UnsafeCell<u64>,
    value: UnsafeCell<Option<T>>,
}

impl<T> Slot<T> {
    fn new() -> Self {
        let next = UnsafeCell::new(SlotPtr(NonNull::dangling()));
        Self { next, stamp: UnsafeCell::new(0), value: UnsafeCell::new(None) }
    }
}

/// Points to a slot. Every method asks for two things: the [`Bands`] that made the slot lives, and
/// the caller has the access that the rules at the top of this module give out.
pub(crate) struct SlotPtr<T>(NonNull<Slot<T>>);

impl<T> Clone for SlotPtr<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SlotPtr<T> {}

impl<T> PartialEq for SlotPtr<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> SlotPtr<T> {
    /// # Safety
    ///
    /// The slot's `Bands` is alive, for as long as the reference is used.
    #[inline]
    unsafe fn slot<'a>(self) -> &'a Slot<T> {
        // SAFETY: points into a block of a living `Bands` (caller), and slots are shared: all their
        // fields are cells.
        unsafe { self.0.as_ref() }
    }

    /// Asks for the slot that usually comes [`PREFETCH_AHEAD`] places after this one. A hint: it
    /// may be any other slot, or none.
    #[inline]
    pub(crate) fn prefetch_ahead(self) {
        let first = self.0.as_ptr().wrapping_add(PREFETCH_AHEAD).cast::<u8>();
        prefetch::for_writing(first);
        prefetch::for_writing(first.wrapping_add(64));
    }

    /// The slot after this one, which is not its chain's last.
    ///
    /// # Safety
    ///
    /// The slot's `Bands` is alive, and nobody writes the link meanwhile.
    #[inline]
    pub(crate) unsafe fn next(self) -> Self {
        // SAFETY: as the caller promised.
        let slot = unsafe { self.slot() };
        // SAFETY: nobody writes the link (caller).
        slot.next.with(|next| unsafe { *next })
    }

    /// # Safety
    ///
    /// The slot's `Bands` is alive, and nobody else reads or writes the link meanwhile.
    #[inline]
    unsafe fn set_next(self, next: Self) {
        // SAFETY: as the caller promised.
        let slot = unsafe { self.slot() };
        // SAFETY: nobody else is at the link (caller).
        slot.next.with_mut(|link| unsafe { *link = next });
    }

    /// Puts a message in; what was there, if it is not empty, is forgotten.
    ///
    /// # Safety
    ///
    /// The slot's `Bands` is alive, and the slot is the caller's alone.
    #[inline]
    unsafe fn fill(self, value: T, stamp: u64) {
        // SAFETY: as the caller promised.
        let slot = unsafe { self.slot() };
        // SAFETY: nobody else is at the slot (caller).
        slot.stamp.with_mut(|place| unsafe { *place = stamp });
        // SAFETY: nobody else is at the slot (caller).
        slot.value.with_mut(|place| unsafe { place.write(Some(value)) });
    }

    /// Moves the value out, if it is still there.
    ///
    /// # Safety
    ///
    /// The slot's `Bands` is alive, and the slot is the caller's alone.
    #[inline]
    pub(crate) unsafe fn take(self) -> Option<T> {
        // SAFETY: as the caller promised.
        let slot = unsafe { self.slot() };
        // SAFETY: nobody else is at the slot (caller).
        slot.value.with_mut(|value| unsafe { (*value).take() })
    }

    /// Takes the time of admission, or 0 if it was not noted.
    ///
    /// # Safety
    ///
    /// The slot's `Bands` is alive, and the slot is the caller's alone.
    #[inline]
    pub(crate) unsafe fn take_stamp(self) -> u64 {
        // SAFETY: as the caller promised.
        let slot = unsafe { self.slot() };
        // SAFETY: nobody else is at the slot (caller).
        let stamp = slot.stamp.with(|stamp| unsafe { *stamp });
        // Most are 0 already, and the line need not be written.
        if stamp != 0 {
            // SAFETY: as above.
            slot.stamp.with_mut(|stamp| unsafe { *stamp = 0 });
        }
        stamp
    }

    /// The value, if it is still there.
    ///
    /// # Safety
    ///
    /// The slot's `Bands` is alive and the value is not written, for as long as the reference lives.
    #[inline]
    pub(crate) unsafe fn value<'a>(self) -> Option<&'a T> {
        // SAFETY: as the caller promised.
        let slot = unsafe { self.slot() };
        // SAFETY: nobody writes the value (caller).
        slot.value.with(|value| unsafe { (*value).as_ref() })
    }

    /// The value, if it is still there.
    ///
    /// # Safety
    ///
    /// The slot's `Bands` is alive and the value is the caller's alone, for as long as the reference
    /// lives.
    #[inline]
    pub(crate) unsafe fn value_mut<'a>(self) -> Option<&'a mut T> {
        // SAFETY: as the caller promised.
        let slot = unsafe { self.slot() };
        // SAFETY: nobody else is at the value (caller).
        slot.value.with_mut(|value| unsafe { (*value).as_mut() })
    }
}

/// Slots in order, linked through themselves; known to `Bands` and its levels alone. `Bands` owns
/// them all and outlives every chain. Only `len` says where the chain ends, so that cutting one writes to no slot.
pub(crate) struct Chain<T> {
    ends: Option<(SlotPtr<T>, SlotPtr<T>)>,
    len: usize,
}

impl<T> Chain<T> {
    const fn new() -> Self {
        Self { ends: None, len: 0 }
    }

    /// The chain of one slot.
    #[inline]
    fn of(slot: SlotPtr<T>) -> Self {
        Self { ends: Some((slot, slot)), len: 1 }
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    fn first(&self) -> Option<SlotPtr<T>> {
        self.ends.map(|(first, _)| first)
    }

    fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new())
    }

    #[inline]
    fn push_back(&mut self, slot: SlotPtr<T>) {
        self.len += 1;
        match &mut self.ends {
            Some((_, last)) => {
                // SAFETY: as in `append`.
                unsafe { last.set_next(slot) };
                *last = slot;
            }
            ends => *ends = Some((slot, slot)),
        }
    }

    #[inline]
    fn push_front(&mut self, slot: SlotPtr<T>) {
        self.prepend(Self::of(slot));
    }

    #[inline]
    fn pop_front(&mut self) -> Option<SlotPtr<T>> {
        let (first, _) = self.ends?;
        self.len -= 1;
        match &mut self.ends {
            // SAFETY: the first of several slots; nobody writes links but the lock holder.
            Some((start, _)) if self.len > 0 => *start = unsafe { first.next() },
            ends => *ends = None,
        }
        Some(first)
    }

    /// Puts `slot` behind `before`, which is in the chain; `None`: before all others.
    pub(crate) fn insert_after(&mut self, before: Option<SlotPtr<T>>, slot: SlotPtr<T>) {
        let (Some(before), Some((_, last))) = (before, self.ends) else {
            return self.push_front(slot);
        };
        if before == last {
            return self.push_back(slot);
        }
        // SAFETY: in the chain and not its last; links are written under the lock only.
        let next = unsafe { before.next() };
        // SAFETY: a slot on its way into the chain is the lock holder's.
        unsafe { slot.set_next(next) };
        // SAFETY: no window is lent from a chain that has levels, so all its links are the lock
        // holder's.
        unsafe { before.set_next(slot) };
        self.len += 1;
    }

    /// Takes the slot behind `before`, which is in the chain, out; `None`: the first.
    pub(crate) fn remove_after(&mut self, before: Option<SlotPtr<T>>) -> Option<SlotPtr<T>> {
        let (Some(before), Some((first, last))) = (before, self.ends) else {
            return self.pop_front();
        };
        if before == last {
            return None;
        }
        // SAFETY: in the chain and not its last; links are written under the lock only.
        let slot = unsafe { before.next() };
        if slot == last {
            self.ends = Some((first, before));
        } else {
            // SAFETY: in the chain and not its last; links are written under the lock only.
            let next = unsafe { slot.next() };
            // SAFETY: as in `insert_after`.
            unsafe { before.set_next(next) };
        }
        self.len -= 1;
        Some(slot)
    }

    /// Puts `other` behind this chain. Writes the link of this chain's last slot.
    #[inline]
    fn append(&mut self, other: Self) {
        let Some((other_first, other_last)) = other.ends else { return };
        self.len += other.len;
        self.ends = match self.ends {
            None => Some((other_first, other_last)),
            Some((first, last)) => {
                // SAFETY: the last slots of the lists and of the free list are the lock holder's;
                // so is that of a window when one is opened or, stopped, taken back.
                unsafe { last.set_next(other_first) };
                Some((first, other_last))
            }
        };
    }

    /// Puts `other` before this chain.
    #[inline]
    fn prepend(&mut self, mut other: Self) {
        if !other.is_empty() {
            std::mem::swap(self, &mut other);
            self.append(other);
        }
    }

    /// Cuts the chain after `count` slots.
    fn split(self, count: usize) -> (Self, Self) {
        let Some((first, last)) = self.ends else { return (Self::new(), Self::new()) };
        if count == 0 {
            return (Self::new(), self);
        }
        if count == self.len {
            return (self, Self::new());
        }
        let mut cut = first;
        for _ in 1..count {
            // SAFETY: `cut` is before the chain's last slot; links are written under the lock only.
            cut = unsafe { cut.next() };
        }
        Self { ends: Some((first, last)), len: self.len }.split_after(cut, count)
    }

    /// Cuts the chain after `cut`, which is its slot number `count`, from 1 on.
    #[inline]
    fn split_after(self, cut: SlotPtr<T>, count: usize) -> (Self, Self) {
        let Some((first, last)) = self.ends.filter(|_| count < self.len) else {
            return (self, Self::new());
        };
        // SAFETY: `cut` is before the chain's last slot; links are written under the lock only.
        let rest = unsafe { cut.next() };
        (
            Self { ends: Some((first, cut)), len: count },
            Self { ends: Some((rest, last)), len: self.len - count },
        )
    }
}
