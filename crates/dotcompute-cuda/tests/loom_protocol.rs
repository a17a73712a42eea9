//! The device protocol's steps under loom, which tries every interleaving and every value that the
//! memory model lets a load return: `make loom`.
//!
//! ThreadSanitizer sees the device's own sources, but no fence that stands alone, and on x86 no store
//! that overtakes another. So each hand-over of the protocol stands here once more, with the relaxed
//! accesses and the fences that the device has; and each is run with one step broken after the
//! other, which must fail. What stands behind a step's name in `device/` is said beside it.
//!
//! A chunk is one atomic, tag and data together, as sixteen bytes are on the device. That a slot is
//! not written again before it was read shows by a cell for each position, which its reader touches
//! when it reads and the next writer of the slot before it writes: loom fails if nothing orders the
//! two.
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

/// A step that is left out, or done out of its turn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Broken {
    Nothing,
    /// A reader believes a slot by the tag of its first chunk.
    OneTagIsEnough,
    /// `dc_whole_records`: a record counts when its first slot is there.
    FirstSlotIsEnough,
    /// `dc_send`: a record is written when there is room for its first slot.
    RoomForOneSlot,
    /// `dc_settle`, `dc_free_inbox`: no fence before the head.
    FreeFence,
    /// The head is published before the slot is read.
    FreeBeforeRead,
    /// `dc_has_room`, `dc_send`: no fence after the head; or the host's load does not acquire.
    RoomFence,
    /// `dc_send`: a ticket alone is taken for a free slot.
    TicketIsEnough,
    /// `dc_free_inbox`: an edge gets its share back before the slot is free, and nobody looks.
    ShareBeforeRead,
    /// `Port::command`: not released.
    CommandRelease,
    /// `dc_pass_news_on`: no fence between command and order.
    OrderFence,
    /// `dc_sit`: no fence after an order to drain.
    DrainFence,
    /// `dc_sit`: a look from before the order counts.
    DrainBeforeOrder,
    /// `dc_handle_staged`: the message that the handler failed at counts as done.
    FaultedIsDone,
    /// `dc_tell_state`: no fence before the state.
    ReportFence,
    /// `dc_tell_state`: the state before the fault.
    StateBeforeFault,
    /// `Port::report`: not acquired.
    ReportAcquire,
    /// `dc_settle`: no fence before what was taken is counted.
    ReceivedFence,
    /// `Port::report`: the count is not acquired.
    ReceivedAcquire,
    /// `dc_settle`: what was passed on is counted after the head.
    PassedAfterHead,
    /// `Port::done`: the head is not acquired.
    HeadAcquire,
    /// `dc_leave`: no fence before the count.
    LeaveFence,
    /// `dc_serve`: no fence after the count.
    LeftFence,
    /// `dc_serve`: no fence before the end is told.
    EndFence,
    /// `Grid::has_ended`: not acquired.
    EndAcquire,
    /// `dc_meet`: those who come release nothing.
    MeetRelease,
    /// `dc_meet`: those who go on acquire nothing.
    MeetAcquire,
    /// `dc_call_all`: the call is written when all have met for it.
    CallAfterMeeting,
    /// `dc_take_part`: a thread that has returned does not wait for the others.
    ReturnsAtOnce,
    /// `dc_meet`, `dc_meet_blocks`: who has returned meets as if it had not.
    ReturnsUnseen,
    /// `dc_take_part`: a thread that has returned meets once, whoever else has not returned.
    MeetsOnce,
    /// `dc_tell_team`: no fence before the call.
    TellFence,
    /// `dc_follow_team`: no fence after the call.
    FollowFence,
    /// `dc_meet_blocks`: no fence before a block comes.
    ComeFence,
    /// `dc_meet_blocks`: no fence before the last to come tells the others.
    LastFence,
    /// `dc_meet_blocks`: no fence after the others were told.
    MetFence,
    /// `dc_meet_blocks`: who is here is cleared once the others were told.
    ClearedLate,
}

impl Broken {
    /// A fence of the device's, unless it is the broken step.
    fn fence(self, step: Self, order: Ordering) {
        if self != step {
            fence(order);
        }
    }

    /// The ordering of an access of the host's.
    fn order(self, step: Self, order: Ordering) -> Ordering {
        if self == step { Ordering::Relaxed } else { order }
    }
}

const POSITIONS: usize = 3;

/// A slot of two chunks.
#[derive(Default)]
struct Slot([AtomicU64; 2]);

impl Slot {
    /// One store for each chunk. The tag is the lap plus one, in the high half.
    fn write(&self, tag: u64, data: u64) {
        for chunk in &self.0 {
            chunk.store(tag << 32 | data, Ordering::Relaxed);
        }
    }

    /// One load for each chunk: the data, if the slot is there.
    fn read(&self, tag: u64, broken: Broken) -> Option<[u64; 2]> {
        let chunks = [0, 1].map(|place: usize| self.0[place].load(Ordering::Relaxed));
        let trusted = if broken == Broken::OneTagIsEnough { 1 } else { 2 };
        let is_there = chunks[..trusted].iter().all(|chunk| chunk >> 32 == tag);
        is_there.then_some(chunks.map(|chunk| chunk & 0xffff_ffff))
    }
}

/// Marks of who read which position, for whoever writes its slot next.
#[derive(Default)]
struct Marks([UnsafeCell<()>; POSITIONS]);

impl Marks {
    fn read(&self, position: u64) {
        self.0[position as usize].with(|_| ());
    }

    fn overwritten(&self, position: u64) {
        self.0[position as usize].with_mut(|_| ());
    }
}

/// A ring of one slot.
#[derive(Default)]
struct Ring {
    slot: Slot,
    head: AtomicU64,
    marks: Marks,
}

impl Ring {
    /// Takes the message at `position` as a seat does, if it is there; gives its slot back.
    fn take(&self, position: u64, broken: Broken) -> bool {
        if broken == Broken::FreeBeforeRead && self.slot.read(position + 1, broken).is_some() {
            fence(Ordering::AcqRel);
            self.head.store(position + 1, Ordering::Relaxed);
        }
        let Some(data) = self.slot.read(position + 1, broken) else { return false };
        assert_eq!(data, [position; 2], "a torn record");
        self.marks.read(position);
        broken.fence(Broken::FreeFence, Ordering::AcqRel);
        // SYNC(ring.free) release
        self.head.store(position + 1, Ordering::Relaxed);
        true
    }

    /// Whether there is room for the message at `position`, by a load and a fence, as a seat looks.
    fn has_room(&self, position: u64, broken: Broken) -> bool {
        // SYNC(ring.free) acquire
        let head = self.head.load(Ordering::Relaxed);
        broken.fence(Broken::RoomFence, Ordering::Acquire);
        position - head < 1
    }

    fn put(&self, position: u64) {
        if position > 0 {
            self.marks.overwritten(position - 1);
        }
        self.slot.write(position + 1, position);
    }
}

/// One end pushes what it finds room for, the other takes what it finds.
fn ring(broken: Broken) {
    loom::model(move || {
        let ring = Arc::new(Ring::default());
        let pusher = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || {
                for position in 0..2 {
                    if !ring.has_room(position, broken) {
                        return;
                    }
                    ring.put(position);
                }
            })
        };
        let mut position = 0;
        for _ in 0..2 {
            position += u64::from(ring.take(position, broken));
        }
        pusher.join().unwrap();
    });
}

/// Two kernels have sent to a third, whose inbox has two slots and gives each of them a share of one,
/// and one sends again: it has its share back when it sees so, and its slot when it sees the head.
fn inbox(broken: Broken) {
    #[derive(Default)]
    struct Inbox {
        slots: [Slot; 2],
        tickets: AtomicU64,
        head: AtomicU64,
        returned: [AtomicU64; 2],
        marks: Marks,
    }

    impl Inbox {
        fn send(&self, edge: usize, sent: u64, broken: Broken) {
            // `dc_edges_have_room`: nothing is ordered by it.
            while sent - self.returned[edge].load(Ordering::Relaxed) >= 1 {
                thread::yield_now();
            }
            let position = self.tickets.fetch_add(1, Ordering::Relaxed);
            if broken != Broken::TicketIsEnough && position >= 2 {
                // SYNC(device.inbox_free) acquire
                while position - self.head.load(Ordering::Relaxed) >= 2 {
                    thread::yield_now();
                }
                broken.fence(Broken::RoomFence, Ordering::Acquire);
            }
            if position >= 2 {
                self.marks.overwritten(position - 2);
            }
            // The edge's number tells whose share it is.
            let data = position * 2 + edge as u64;
            self.slots[position as usize % 2].write(position / 2 + 1, data);
        }

        fn take(&self, position: u64, broken: Broken) -> bool {
            let read = self.slots[position as usize % 2].read(position / 2 + 1, broken);
            let Some([data, other]) = read else { return false };
            assert_eq!((data / 2, data), (position, other), "a torn record");
            let edge = data as usize % 2;
            let give_share = || {
                // One writer.
                let before = self.returned[edge].load(Ordering::Relaxed);
                self.returned[edge].store(before + 1, Ordering::Relaxed);
            };
            if broken == Broken::ShareBeforeRead {
                fence(Ordering::AcqRel);
                self.head.store(position + 1, Ordering::Relaxed);
                give_share();
                self.marks.read(position);
                return true;
            }
            self.marks.read(position);
            broken.fence(Broken::FreeFence, Ordering::AcqRel);
            // SYNC(device.inbox_free) release
            self.head.store(position + 1, Ordering::Relaxed);
            give_share();
            true
        }
    }

    loom::model(move || {
        let inbox = Arc::new(Inbox::default());
        inbox.send(0, 0, broken);
        inbox.send(1, 0, broken);
        let sender = {
            let inbox = Arc::clone(&inbox);
            // Once it has its share back, into the slot of its first.
            thread::spawn(move || inbox.send(0, 1, broken))
        };
        for position in 0..2 {
            while !inbox.take(position, broken) {
                thread::yield_now();
            }
        }
        sender.join().unwrap();
    });
}

/// The host sends, then commands to drain; the service warp passes that on; the seat must find what
/// was sent when it has seen the order.
fn drain(broken: Broken) {
    loom::model(move || {
        let words: Arc<(Slot, AtomicU64, AtomicU64)> = Arc::default();
        let host = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                let (slot, command, _) = &*words;
                slot.write(1, 7);
                // SYNC(device.order) release
                command.store(1, broken.order(Broken::CommandRelease, Ordering::Release));
            })
        };
        let service = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                let (_, command, order) = &*words;
                // SYNC(device.order) acquire, and release
                if command.load(Ordering::Relaxed) == 1 {
                    broken.fence(Broken::OrderFence, Ordering::AcqRel);
                    order.store(1, Ordering::Relaxed);
                }
            })
        };
        let (slot, _, order) = &*words;
        let early = match broken {
            Broken::DrainBeforeOrder => slot.read(1, broken),
            _ => None,
        };
        // SYNC(device.order) acquire
        if order.load(Ordering::Relaxed) == 1 {
            broken.fence(Broken::DrainFence, Ordering::Acquire);
            let found = match broken {
                Broken::DrainBeforeOrder => early,
                _ => slot.read(1, broken),
            };
            assert_eq!(found, Some([7; 2]), "the drain leaves a message behind");
        }
        host.join().unwrap();
        service.join().unwrap();
    });
}

/// A seat fails at its second message. The host that sees so must see why, and that the first is
/// done; the second it never sees done, also where it does not see the failure yet.
fn report(broken: Broken) {
    #[derive(Default)]
    struct Words {
        done: AtomicU64,
        fault: AtomicU64,
        state: AtomicU64,
    }

    loom::model(move || {
        let words: Arc<Words> = Arc::default();
        let seat = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                let done = if broken == Broken::FaultedIsDone { 2 } else { 1 };
                words.done.store(done, Ordering::Relaxed);
                if broken == Broken::StateBeforeFault {
                    words.state.store(1, Ordering::Relaxed);
                }
                words.fault.store(1, Ordering::Relaxed);
                broken.fence(Broken::ReportFence, Ordering::AcqRel);
                // SYNC(device.report) release
                words.state.store(1, Ordering::Relaxed);
            })
        };
        // SYNC(device.report) acquire
        let state = words.state.load(broken.order(Broken::ReportAcquire, Ordering::Acquire));
        let done = words.done.load(Ordering::Relaxed);
        assert!(done < 2, "the message that it failed at is taken for processed");
        if state == 1 {
            assert_eq!(words.fault.load(Ordering::Relaxed), 1, "a fault without its reason");
            assert_eq!(done, 1, "a message that is done is handed over again");
        }
        seat.join().unwrap();
    });
}

/// A seat passes a reply on, and says that its message is done with; another takes it, and replies to
/// the host. Whoever finds the message done with finds the reply counted; whoever finds it taken
/// finds what it led to.
fn pass(broken: Broken) {
    #[derive(Default)]
    struct Words {
        passed: AtomicU64,
        head: AtomicU64,
        inbox: Slot,
        reply: Slot,
        received: AtomicU64,
    }

    loom::model(move || {
        let words: Arc<Words> = Arc::default();
        let first = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                words.inbox.write(1, 7);
                if broken != Broken::PassedAfterHead {
                    words.passed.store(1, Ordering::Relaxed);
                }
                broken.fence(Broken::FreeFence, Ordering::AcqRel);
                // SYNC(ring.free) release
                words.head.store(1, Ordering::Relaxed);
                if broken == Broken::PassedAfterHead {
                    words.passed.store(1, Ordering::Relaxed);
                }
            })
        };
        let second = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                if words.inbox.read(1, broken).is_some() {
                    words.reply.write(1, 8);
                    broken.fence(Broken::ReceivedFence, Ordering::AcqRel);
                    // SYNC(device.received) release
                    words.received.store(1, Ordering::Relaxed);
                }
            })
        };
        // SYNC(device.received) acquire
        if words.received.load(broken.order(Broken::ReceivedAcquire, Ordering::Acquire)) == 1 {
            assert_eq!(words.reply.read(1, broken), Some([8; 2]), "a reply is left behind");
        }
        // SYNC(ring.free) acquire
        if words.head.load(broken.order(Broken::HeadAcquire, Ordering::Acquire)) == 1 {
            assert_eq!(words.passed.load(Ordering::Relaxed), 1, "a reply that nobody counts");
        }
        first.join().unwrap();
        second.join().unwrap();
    });
}

/// A seat leaves, the service warp copies its counter and tells that the grid has ended, and the
/// host must find the counter as it was left.
fn leave(broken: Broken) {
    #[derive(Default)]
    struct Words {
        store: AtomicU64,
        left: AtomicU64,
        counters: AtomicU64,
        ended: AtomicU64,
    }

    loom::model(move || {
        let words: Arc<Words> = Arc::default();
        let seat = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                words.store.store(5, Ordering::Relaxed);
                broken.fence(Broken::LeaveFence, Ordering::AcqRel);
                // SYNC(device.left) release
                words.left.fetch_add(1, Ordering::Relaxed);
            })
        };
        let service = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                // SYNC(device.left) acquire
                if words.left.load(Ordering::Relaxed) == 1 {
                    broken.fence(Broken::LeftFence, Ordering::Acquire);
                    words.counters.store(words.store.load(Ordering::Relaxed), Ordering::Relaxed);
                    broken.fence(Broken::EndFence, Ordering::AcqRel);
                    // SYNC(device.report) release
                    words.ended.store(1, Ordering::Relaxed);
                }
            })
        };
        // SYNC(device.report) acquire
        if words.ended.load(broken.order(Broken::EndAcquire, Ordering::Acquire)) == 1 {
            assert_eq!(words.counters.load(Ordering::Relaxed), 5, "the books do not balance");
        }
        seat.join().unwrap();
        service.join().unwrap();
    });
}

/// Records of two slots each through a ring of three: the second one's last slot is that of the first
/// one's first. All or nothing of a record is read, and nothing of it is written before it was.
fn long(broken: Broken) {
    #[derive(Default)]
    struct Words {
        slots: [Slot; 3],
        head: AtomicU64,
        mark: UnsafeCell<()>,
    }

    loom::model(move || {
        let words: Arc<Words> = Arc::default();
        let writer = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                words.slots[0].write(1, 7);
                words.slots[1].write(1, 7);
                let (position, slots) = (2, if broken == Broken::RoomForOneSlot { 1 } else { 2 });
                // SYNC(device.inbox_free) acquire
                let head = words.head.load(Ordering::Relaxed);
                if position + slots - head <= 3 {
                    broken.fence(Broken::RoomFence, Ordering::Acquire);
                    words.mark.with_mut(|_| ());
                    words.slots[2].write(1, 8);
                    words.slots[0].write(2, 8);
                }
            })
        };
        let record = |first: (usize, u64), second: (usize, u64)| {
            let one = words.slots[first.0].read(first.1, broken)?;
            let other = match broken {
                Broken::FirstSlotIsEnough => {
                    let chunks = &words.slots[second.0].0;
                    [0, 1].map(|at: usize| chunks[at].load(Ordering::Relaxed) & 0xffff_ffff)
                }
                _ => words.slots[second.0].read(second.1, broken)?,
            };
            Some([one, other].concat())
        };
        if let Some(first) = record((0, 1), (1, 1)) {
            assert_eq!(first, [7; 4], "a torn record");
            words.mark.with(|_| ());
            broken.fence(Broken::FreeFence, Ordering::AcqRel);
            // SYNC(device.inbox_free) release
            words.head.store(2, Ordering::Relaxed);
            if let Some(second) = record((2, 1), (0, 2)) {
                assert_eq!(second, [8; 4], "a torn record");
            }
        }
        writer.join().unwrap();
    });
}

/// Two threads of a handler, and where they meet: as in `scope.cuh`, on hosts.
#[derive(Default)]
struct Meeting {
    round: AtomicU64,
    here: AtomicU64,
    back: AtomicU64,
    counts: [AtomicU64; 2],
}

impl Meeting {
    fn meet(&self, returned: bool, broken: Broken) -> u64 {
        let released = broken.order(Broken::MeetRelease, Ordering::AcqRel);
        let acquired = broken.order(Broken::MeetAcquire, Ordering::Acquire);
        let now = self.round.load(Ordering::Relaxed);
        let count = &self.counts[now as usize % 2];
        if returned && broken != Broken::ReturnsUnseen {
            self.back.fetch_add(1, Ordering::Relaxed);
        }
        // SYNC(seat.meet) release, and acquire
        if self.here.fetch_add(1, released) + 1 == 2 {
            count.store(self.back.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            self.here.store(0, Ordering::Relaxed);
            self.round.store(now + 1, Ordering::Release);
        } else {
            while self.round.load(acquired) == now {
                thread::yield_now();
            }
        }
        count.load(Ordering::Relaxed)
    }

    /// `dc_take_part`, once the handler has returned.
    fn end(&self, broken: Broken) {
        match broken {
            Broken::ReturnsAtOnce => {}
            Broken::MeetsOnce | Broken::ReturnsUnseen => drop(self.meet(true, broken)),
            _ => while self.meet(true, broken) != 2 {},
        }
    }
}

/// Loom sees whoever reads or writes the message or a share while somebody else writes it.
#[derive(Default)]
struct Call {
    meeting: Meeting,
    message: UnsafeCell<()>,
    share: UnsafeCell<()>,
}

impl Call {
    fn write(&self) {
        self.message.with_mut(|_| ());
    }

    /// A thread's part: the second writes its share, which the first reads behind a barrier. Where it
    /// returns early the first is told so.
    fn take_part(&self, first: bool, early: bool, broken: Broken) {
        self.message.with(|_| ());
        match (first, early) {
            (false, true) => {}
            (false, false) => {
                self.share.with_mut(|_| ());
                assert_eq!(self.meeting.meet(false, broken), 0);
            }
            (true, _) => {
                let returned = self.meeting.meet(false, broken);
                assert_eq!(returned, u64::from(early), "who returned is not at a barrier");
                if returned == 0 {
                    self.share.with(|_| ());
                }
            }
        }
        // It may, until it returns.
        self.message.with(|_| ());
        self.meeting.end(broken);
    }
}

/// One call of a handler of two threads, and the message of the next one written behind it.
fn call(early: bool, broken: Broken) {
    loom::model(move || {
        let call: Arc<Call> = Arc::default();
        let second = {
            let call = Arc::clone(&call);
            thread::spawn(move || {
                call.meeting.meet(false, broken);
                call.take_part(false, early, broken);
            })
        };
        if broken != Broken::CallAfterMeeting {
            call.write();
        }
        call.meeting.meet(false, broken);
        if broken == Broken::CallAfterMeeting {
            call.write();
        }
        call.take_part(true, early, broken);
        call.write();
        call.share.with_mut(|_| ());
        second.join().unwrap();
    });
}

/// Two blocks of a team, one thread of each: the words of `team.cuh`, with the device's fences.
#[derive(Default)]
struct Team {
    call: AtomicU64,
    here: AtomicU64,
    round: AtomicU64,
    message: UnsafeCell<()>,
    share: UnsafeCell<()>,
}

impl Team {
    /// `dc_meet_blocks`: how many of the two have returned. `round` is what the block knows of.
    fn meet(&self, round: &mut u64, returned: bool, broken: Broken) -> u64 {
        let is_seen = returned && broken != Broken::ReturnsUnseen;
        let mine = u64::from(is_seen) << 32 | 1;
        broken.fence(Broken::ComeFence, Ordering::AcqRel);
        // SYNC(team.meet) release, and acquire
        let here = self.here.fetch_add(mine, Ordering::Relaxed) + mine;
        let word = if here & 0xffff_ffff == 2 {
            let word = here >> 32 << 32 | (*round + 1);
            if broken != Broken::ClearedLate {
                self.here.store(0, Ordering::Relaxed);
            }
            broken.fence(Broken::LastFence, Ordering::AcqRel);
            self.round.store(word, Ordering::Relaxed);
            if broken == Broken::ClearedLate {
                self.here.store(0, Ordering::Relaxed);
            }
            word
        } else {
            let word = loop {
                let word = self.round.load(Ordering::Relaxed);
                if word & 0xffff_ffff != *round {
                    break word;
                }
                thread::yield_now();
            };
            broken.fence(Broken::MetFence, Ordering::Acquire);
            word
        };
        *round = word & 0xffff_ffff;
        word >> 32
    }

    /// A block's part: the second writes its share, which the first reads behind a barrier. Where it returns
    /// early the first is told so.
    fn take_part(&self, first: bool, early: bool, round: &mut u64, broken: Broken) {
        self.message.with(|_| ());
        match (first, early) {
            (false, true) => {}
            (false, false) => {
                self.share.with_mut(|_| ());
                assert_eq!(self.meet(round, false, broken), 0);
            }
            (true, _) => {
                let returned = self.meet(round, false, broken);
                assert_eq!(returned, u64::from(early), "who returned is not at a barrier");
                if returned == 0 {
                    self.share.with(|_| ());
                }
            }
        }
        self.message.with(|_| ());
        match broken {
            Broken::ReturnsAtOnce => {}
            Broken::MeetsOnce | Broken::ReturnsUnseen => drop(self.meet(round, true, broken)),
            _ => while self.meet(round, true, broken) != 2 {},
        }
    }
}

/// One call of a team, and the message of the next one written behind it.
fn team_call(early: bool, broken: Broken) {
    loom::model(move || {
        let team: Arc<Team> = Arc::default();
        let second = {
            let team = Arc::clone(&team);
            thread::spawn(move || {
                // SYNC(team.call) acquire
                while team.call.load(Ordering::Relaxed) == 0 {
                    thread::yield_now();
                }
                broken.fence(Broken::FollowFence, Ordering::Acquire);
                team.take_part(false, early, &mut 0, broken);
            })
        };
        team.message.with_mut(|_| ());
        broken.fence(Broken::TellFence, Ordering::AcqRel);
        // SYNC(team.call) release
        team.call.store(1, Ordering::Relaxed);
        team.take_part(true, early, &mut 0, broken);
        team.message.with_mut(|_| ());
        team.share.with_mut(|_| ());
        second.join().unwrap();
    });
}

fn teamed(broken: Broken) {
    team_call(false, broken);
}

fn team_left(broken: Broken) {
    team_call(true, broken);
}

fn together(broken: Broken) {
    call(false, broken);
}

fn left(broken: Broken) {
    call(true, broken);
}

/// A hand-over that works, and each way to break it, which must fail.
macro_rules! hand_over {
    ($model:ident, $name:ident: $($broken:ident => $test:ident),* $(,)?) => {
        #[test]
        fn $name() {
            $model(Broken::Nothing);
        }

        $(
            #[test]
            #[should_panic]
            fn $test() {
                $model(Broken::$broken);
            }
        )*
    };
}

hand_over! { ring, a_slot_is_whole_and_is_not_written_again_before_it_was_read:
    OneTagIsEnough => ring_with_one_tag_tears,
    FreeFence => ring_without_a_fence_before_its_head_fails,
    FreeBeforeRead => ring_freed_before_it_is_read_fails,
    RoomFence => ring_without_a_fence_after_its_head_fails,
}

hand_over! { inbox, an_inbox_never_lacks_a_slot_for_a_share:
    FreeFence => inbox_without_a_fence_before_its_head_fails,
    RoomFence => inbox_without_a_fence_after_its_head_fails,
    TicketIsEnough => inbox_that_trusts_its_tickets_fails,
    ShareBeforeRead => inbox_that_gives_shares_back_too_early_fails,
}

hand_over! { long, a_record_of_several_slots_is_whole_and_is_not_written_over_before_it_was_read:
    OneTagIsEnough => long_with_one_tag_tears,
    FirstSlotIsEnough => long_by_its_first_slot_tears,
    RoomForOneSlot => long_with_room_for_one_slot_fails,
    FreeFence => long_without_a_fence_before_its_head_fails,
    RoomFence => long_without_a_fence_after_its_head_fails,
}

hand_over! { drain, a_drain_leaves_nothing_behind:
    CommandRelease => drain_without_a_released_command_fails,
    OrderFence => drain_without_a_fence_before_the_order_fails,
    DrainFence => drain_without_a_fence_after_the_order_fails,
    DrainBeforeOrder => drain_that_counts_an_early_look_fails,
}

hand_over! { report, a_fault_comes_with_its_reason:
    ReportFence => report_without_a_fence_fails,
    StateBeforeFault => report_of_the_state_first_fails,
    FaultedIsDone => report_after_the_fault_counts_as_done_fails,
    ReportAcquire => report_read_without_acquiring_fails,
}

hand_over! { pass, what_goes_past_the_host_is_counted_and_what_it_led_to_is_found:
    FreeFence => passed_without_a_fence_before_the_head_fails,
    PassedAfterHead => passed_counted_after_the_head_fails,
    HeadAcquire => head_read_without_acquiring_fails,
    ReceivedFence => received_without_a_fence_fails,
    ReceivedAcquire => received_read_without_acquiring_fails,
}

hand_over! { leave, the_counters_are_exact_when_a_grid_has_ended:
    LeaveFence => leave_without_a_fence_fails,
    LeftFence => leave_counted_without_a_fence_fails,
    EndFence => end_told_without_a_fence_fails,
    EndAcquire => end_read_without_acquiring_fails,
}

hand_over! { together, the_threads_of_a_handler_find_what_each_of_them_did_before_they_met:
    MeetRelease => met_without_releasing_fails,
    MeetAcquire => met_without_acquiring_fails,
    CallAfterMeeting => called_before_the_call_is_written_fails,
    ReturnsAtOnce => returned_without_waiting_fails,
}

hand_over! { left, a_thread_that_returns_early_keeps_nobody_waiting_and_is_seen_to_have_returned:
    MeetRelease => left_without_releasing_fails,
    MeetAcquire => left_without_acquiring_fails,
    ReturnsAtOnce => left_at_once_leaves_the_others_at_their_barrier,
    ReturnsUnseen => left_unseen_is_taken_for_a_barrier,
    MeetsOnce => left_after_one_meeting_leaves_the_others_waiting,
}

hand_over! { teamed, the_blocks_of_a_team_find_what_each_of_them_did_before_they_met:
    TellFence => team_told_without_a_fence_fails,
    FollowFence => team_followed_without_a_fence_fails,
    ComeFence => team_met_without_a_fence_before_fails,
    LastFence => team_met_without_a_fence_of_the_last_fails,
    MetFence => team_met_without_a_fence_after_fails,
    ClearedLate => team_that_clears_who_is_here_too_late_fails,
    ReturnsAtOnce => team_returned_without_waiting_fails,
}

hand_over! { team_left, a_block_that_returns_early_keeps_nobody_waiting_and_is_seen_to_have_returned:
    ComeFence => team_left_without_a_fence_before_fails,
    ReturnsUnseen => team_left_unseen_is_taken_for_a_barrier,
    MeetsOnce => team_left_after_one_meeting_leaves_the_other_waiting,
}
