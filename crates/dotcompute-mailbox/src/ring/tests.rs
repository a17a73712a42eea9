use super::memory::on_heap;
use super::*;
use dotcompute_abi::ring::RingCursor as Line;
use dotcompute_abi::{PlainSlot, TaggedRecord};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn capacity_is_exact() {
    for capacity in [1, 2, 3, 5, 8] {
        let (mut producer, mut consumer) = ring(capacity);
        assert_eq!((producer.capacity(), consumer.capacity()), (capacity, capacity));
        for lap in 0..5 {
            for number in 0..capacity {
                assert_eq!(producer.free(), capacity - number);
                assert_eq!(producer.try_push(lap + number), Ok(()));
            }
            assert_eq!(producer.try_push(99), Err(PushError::Full(99)));
            assert_eq!(consumer.len(), capacity);
            for number in 0..capacity {
                assert_eq!(consumer.try_pop(), Ok(lap + number));
            }
            assert_eq!(consumer.try_pop(), Err(PopError::Empty));
            assert!(consumer.is_empty());
        }
    }
}

#[test]
#[should_panic(expected = "a ring holds 1 to 2147483648 messages, not 0")]
fn capacity_0_is_refused() {
    let _ = ring::<u32>(0);
}

#[test]
fn zero_sized_messages_are_counted() {
    let (mut producer, mut consumer) = ring(3);
    assert_eq!(producer.push_iter([(); 5]), 3);
    assert_eq!(consumer.read_chunk(2).unwrap().as_slices().0.len(), 2);
    assert_eq!(consumer.read_chunk(9).unwrap().count(), 3);
    assert_eq!(consumer.try_pop(), Err(PopError::Empty));
}

#[test]
fn a_consumer_reads_what_is_left_and_then_finds_the_ring_closed() {
    let (mut producer, mut consumer) = ring(4);
    producer.try_push(1).unwrap();
    assert!(!consumer.is_abandoned());
    drop(producer);
    assert!(consumer.is_abandoned());
    assert_eq!(consumer.try_pop(), Ok(1));
    assert_eq!(consumer.try_pop(), Err(PopError::Closed));
    assert_eq!(consumer.read_chunk(4).unwrap_err(), PopError::Closed);
}

#[test]
fn a_producer_gets_its_messages_back_once_the_consumer_is_gone() {
    let (mut producer, consumer) = ring(4);
    drop(consumer);
    assert!(producer.is_abandoned());
    let error = producer.try_push("mine").unwrap_err();
    assert!(!error.is_full());
    assert_eq!(error.into_inner(), "mine");
    assert_eq!(producer.push_iter(["a", "b"]), 0);
}

#[test]
fn what_is_never_popped_is_dropped_once() {
    let message = Rc::new(());
    let (mut producer, mut consumer) = on_heap::<_, Plain, Polls>(3, u64::MAX - 1);
    for _ in 0..5 {
        assert_eq!(producer.push_iter(std::iter::repeat_n(Rc::clone(&message), 2)), 2);
        drop(consumer.try_pop());
        drop(consumer.try_pop());
    }
    assert_eq!(Rc::strong_count(&message), 1);
    assert_eq!(producer.push_iter(std::iter::repeat_n(Rc::clone(&message), 3)), 3);
    consumer.read_chunk(1).unwrap().commit_all();
    assert_eq!(Rc::strong_count(&message), 3);
    drop(consumer);
    assert_eq!(Rc::strong_count(&message), 3, "the ring lives while an end does");
    drop(producer);
    assert_eq!(Rc::strong_count(&message), 1);
}

/// What the format is for: message and news lie on one line.
#[test]
fn a_prompt_slot_of_56_bytes_is_one_line() {
    assert_eq!(size_of::<<Prompt as Format<[u64; 7]>>::Slot>(), 64);
}

#[test]
fn what_is_pushed_together_is_there_together_lap_after_lap() {
    fn check<F: RawFormat<Record = PlainSlot> + Format<PlainSlot>>() {
        let slot = |number: u32| PlainSlot::new(number, &number.to_le_bytes()).unwrap();
        for (capacity, start) in [(2, 0), (3, 0), (4, u64::MAX - 1)] {
            let (mut producer, mut consumer) = on_heap::<PlainSlot, F, Polls>(capacity, start);
            let eyes = consumer.glance();
            let all: Vec<u32> = (0..capacity as u32).collect();
            for lap in 0..5 {
                let slots: Vec<_> = all.iter().map(|number| slot(lap + number)).collect();
                assert!(!eyes.is_published(consumer.position()));
                assert!(producer.push_together(&slots[1..]));
                assert!(!producer.push_together(&slots[..2]), "there is room for one");
                assert!(eyes.is_published(consumer.position()));
                for expected in &slots[1..] {
                    assert_eq!(consumer.try_pop().map(|slot| slot.payload), Ok(expected.payload));
                }
                assert!(producer.push_together(&slots[..1]));
                assert!(eyes.is_published(consumer.position()));
                assert_eq!(consumer.try_pop().map(|slot| slot.payload), Ok(slots[0].payload));
            }
            assert!(!producer.push_together(&[slot(0); 9]), "more than it holds");
            assert!(consumer.is_empty());
            drop(consumer);
            assert!(!producer.push_together(&[slot(0)]));
        }
    }
    check::<Plain>();
    check::<Lapped>();
}

#[test]
fn push_iter_takes_no_more_than_it_pushes() {
    let (mut producer, mut consumer) = ring(3);
    let mut numbers = 0..10;
    assert_eq!(producer.push_iter(numbers.by_ref()), 3);
    assert_eq!(numbers.next(), Some(3));
    assert_eq!(producer.push_slice(&[8, 9]), 0);
    assert_eq!(consumer.try_pop(), Ok(0));
    // The lower bound of this iterator's size says 0 and the upper too much.
    assert_eq!(producer.push_iter(numbers.filter(|number| number % 2 == 0)), 1);
    assert!(consumer.read_chunk(8).unwrap().eq([1, 2, 4]));
}

#[test]
fn a_panicking_iterator_has_pushed_what_it_gave() {
    let (mut producer, mut consumer) = ring(4);
    let panicking = (0..4).inspect(|&number| assert!(number < 2, "as the test wants"));
    let outcome = catch_unwind(AssertUnwindSafe(|| producer.push_iter(panicking)));
    assert!(outcome.is_err());
    assert_eq!(producer.push_iter([7]), 1);
    assert!(consumer.read_chunk(4).unwrap().eq([0, 1, 7]));
}

#[test]
fn a_chunk_frees_what_was_taken_and_keeps_the_rest() {
    let (mut producer, mut consumer) = ring(4);
    assert_eq!(producer.push_slice(&[1, 2, 3, 4]), 4);
    let mut chunk = consumer.read_chunk(3).unwrap();
    assert_eq!(chunk.len(), 3);
    assert_eq!(chunk.next(), Some(1));
    assert_eq!(chunk.as_slices().0, [2, 3]);
    chunk.commit(1);
    assert_eq!(producer.free(), 2);
    assert!(consumer.read_chunk(9).unwrap().eq([3, 4]));
    drop(consumer.read_chunk(0));
}

#[test]
fn a_leaked_chunk_loses_messages_but_takes_none_twice() {
    let message = Rc::new(());
    let (mut producer, mut consumer) = ring(4);
    producer.push_iter(std::iter::repeat_n(Rc::clone(&message), 3));
    let mut chunk = consumer.read_chunk(2).unwrap();
    let first = chunk.next();
    std::mem::forget(chunk);
    assert!(consumer.try_pop().is_ok());
    assert_eq!(consumer.try_pop(), Err(PopError::Empty));
    assert_eq!(producer.free(), 4, "the leaked slots are free again");
    drop(first);
    drop((producer, consumer));
    assert_eq!(Rc::strong_count(&message), 2, "one message was leaked");
}

#[test]
fn slices_are_cut_where_the_memory_ends() {
    let (mut producer, mut consumer) = ring(4);
    producer.push_slice(&[0, 0, 1]);
    consumer.read_chunk(2).unwrap().commit_all();
    producer.push_slice(&[2, 3, 4]);
    let chunk = consumer.read_chunk(4).unwrap();
    assert_eq!(chunk.as_slices(), ([1, 2].as_slice(), [3, 4].as_slice()));
}

#[test]
fn waits_end_at_their_deadline() {
    let (mut producer, mut consumer) = ring_with_doorbells(1);
    let soon = || Some(Instant::now() + Duration::from_millis(5));
    assert_eq!(consumer.pop_wait(soon()), Err(PopError::Empty));
    producer.push_wait(1, soon()).unwrap();
    assert_eq!(producer.push_wait(2, soon()), Err(PushError::Full(2)));
    assert_eq!(producer.wait(1, Some(Instant::now())), Err(PushError::Full(())));
    assert_eq!(consumer.pop_wait(soon()), Ok(1));
    assert_eq!(producer.wait(5, soon()), Ok(1), "never more than the capacity is waited for");
}

#[test]
fn both_sides_sleep_and_wake_many_times() {
    const MESSAGES: u64 = 20_000;
    for capacity in [1, 7] {
        let (mut producer, mut consumer) = ring_with_doorbells(capacity);
        let pusher = thread::spawn(move || {
            for number in 0..MESSAGES {
                producer.push_wait(number, None).unwrap();
            }
        });
        for number in 0..MESSAGES {
            assert_eq!(consumer.pop_wait(None), Ok(number));
        }
        assert_eq!(consumer.pop_wait(None), Err(PopError::Closed));
        pusher.join().unwrap();
    }
}

#[test]
fn chunks_cross_threads_whole_and_in_order() {
    const MESSAGES: u64 = 200_000;
    let (mut producer, mut consumer) = ring_with_doorbells::<[u64; 8]>(100);
    let pusher = thread::spawn(move || {
        let mut next = 0;
        while next < MESSAGES {
            let end = MESSAGES.min(next + 64);
            next += producer.push_iter((next..end).map(|number| [number; 8])) as u64;
            producer.wait(1, None).unwrap();
        }
    });
    let mut expected = 0;
    while consumer.wait(None).is_ok() {
        let chunk = consumer.read_chunk(64).unwrap();
        let (first, second) = chunk.as_slices();
        for record in first.iter().chain(second) {
            assert_eq!(*record, [expected; 8]);
            expected += 1;
        }
        chunk.commit_all();
    }
    assert_eq!(expected, MESSAGES);
    pusher.join().unwrap();
}

#[test]
fn a_sleeper_is_woken_when_the_other_end_goes() {
    let (producer, mut consumer) = ring_with_doorbells::<u32>(1);
    let sleeper = thread::spawn(move || consumer.pop_wait(None));
    drop(producer);
    assert_eq!(sleeper.join().unwrap(), Err(PopError::Closed));

    let (mut producer, consumer) = ring_with_doorbells::<u32>(1);
    producer.try_push(1).unwrap();
    let (leave, left) = mpsc::channel();
    let sleeper = thread::spawn(move || {
        leave.send(()).unwrap();
        producer.push_wait(2, None)
    });
    left.recv().unwrap();
    drop(consumer);
    assert_eq!(sleeper.join().unwrap(), Err(PushError::Closed(2)));
}

/// Aligned memory for a ring, and the `Arc` that keeps it.
fn memory(bytes: usize) -> (NonNull<u8>, Arc<Pages>) {
    let pages =
        Arc::new(Pages { start: vec![Line { position: 0 }; bytes.div_ceil(128)].leak().into() });
    (pages.start.cast(), pages)
}

/// Memory that is freed with its last owner, like a mapping.
struct Pages {
    start: NonNull<[Line]>,
}

// SAFETY: only the ring in the pages is reached through them, which has its own protocol.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: from `leak` in `memory`, and dropped once.
        drop(unsafe { Box::from_raw(self.start.as_ptr()) });
    }
}

#[test]
fn two_sides_meet_in_raw_memory() {
    let bytes = RawMemory::bytes_for::<Plain>(3);
    assert_eq!(bytes, 640 + 4 * 64, "slots are a power of two");
    let (start, pages) = memory(bytes);
    // SAFETY: valid while `pages` lives; one producer and one consumer follow.
    let mine = unsafe { RawMemory::from_raw(start, bytes, Arc::clone(&pages)) };
    // SAFETY: as above.
    let early = unsafe { RawMemory::from_raw(start, bytes, ()) };
    assert_eq!(early.attach::<Plain, Polls>().unwrap_err(), RawError::NotARing);
    let mut producer = mine.create::<Plain, Rings>(3).unwrap().producer();

    // SAFETY: as above.
    let wrong = || unsafe { RawMemory::from_raw(start, bytes, ()) };
    let mismatch = |what, found, expected| RawError::Mismatch { what, found, expected };
    assert_eq!(wrong().attach::<Tagged, Rings>().unwrap_err(), mismatch("format", 1, 2));
    assert_eq!(wrong().attach::<Plain, Polls>().unwrap_err(), mismatch("waiting", 1, 0));
    // SAFETY: as above.
    let short = unsafe { RawMemory::from_raw(start, bytes - 1, ()) };
    let needed = RawError::TooSmall { bytes: bytes - 1, needed_bytes: bytes };
    assert_eq!(short.attach::<Plain, Rings>().unwrap_err(), needed);

    // SAFETY: as above.
    let theirs = unsafe { RawMemory::from_raw(start, bytes, pages) };
    let mut consumer = theirs.attach::<Plain, Rings>().unwrap().consumer();
    let other = thread::spawn(move || {
        (0..1000).all(|number| consumer.pop_wait(None).unwrap().header.token == number)
    });
    for number in 0..1000 {
        producer.push_wait(PlainSlot::new(number, b"").unwrap(), None).unwrap();
    }
    assert!(other.join().unwrap());
}

#[test]
fn raw_memory_that_cannot_hold_the_ring_is_refused() {
    let bytes = RawMemory::bytes_for::<Tagged>(4);
    let (start, pages) = memory(bytes + 128);
    // SAFETY: valid while `pages` lives; no ends are made.
    let raw = |start, bytes| unsafe { RawMemory::from_raw(start, bytes, Arc::clone(&pages)) };
    // SAFETY: inside the pages.
    let odd = unsafe { start.add(64) };
    let refused = |raw: RawMemory, capacity| raw.create::<Tagged, Polls>(capacity).unwrap_err();
    assert_eq!(refused(raw(odd, bytes), 4), RawError::Misaligned);
    assert_eq!(refused(raw(start, bytes), 0), RawError::Capacity(0));
    let small = RawError::TooSmall { bytes, needed_bytes: bytes + 4 * 64 };
    assert_eq!(refused(raw(start, bytes), 5), small);
    assert_eq!(small.to_string(), "the ring takes 1152 bytes and its memory has 896");
}

#[test]
fn a_new_end_goes_on_where_the_last_one_ended() {
    fn check<F: RawFormat>(record: fn(u32) -> F::Record, token: fn(&F::Record) -> u32) {
        let bytes = RawMemory::bytes_for::<F>(4);
        let (start, pages) = memory(bytes);
        // SAFETY: valid while `pages` lives; the ends below follow one another.
        let raw = || unsafe { RawMemory::from_raw(start, bytes, Arc::clone(&pages)) };
        let (mut producer, mut consumer) = raw().create::<F, Polls>(4).unwrap().split();
        for number in 0..3 {
            assert!(producer.try_push(record(number)).is_ok());
        }
        assert_eq!(consumer.try_pop().ok().as_ref().map(token), Some(0));
        drop(producer);
        assert!(consumer.is_abandoned());
        let mut producer = raw().attach::<F, Polls>().unwrap().producer();
        assert!(!consumer.is_abandoned());
        assert!(producer.try_push(record(3)).is_ok());
        assert_eq!(consumer.try_pop().ok().as_ref().map(token), Some(1));
        drop(consumer);
        let mut consumer = raw().attach::<F, Polls>().unwrap().consumer();
        assert_eq!(consumer.len(), 2);
        assert!(consumer.read_chunk(4).unwrap().map(|record| token(&record)).eq([2, 3]));
    }
    check::<Plain>(|n| PlainSlot::new(n, b"").unwrap(), |record| record.header.token);
    check::<Tagged>(|n| TaggedRecord::new(n, b"").unwrap(), |record| record.header.token);
}

#[test]
fn impossible_positions_make_the_ring_full_or_empty_but_do_no_harm() {
    let bytes = RawMemory::bytes_for::<Plain>(4);
    let (start, pages) = memory(bytes);
    // SAFETY: valid while `pages` lives; one producer and one consumer follow.
    let raw = unsafe { RawMemory::from_raw(start, bytes, Arc::clone(&pages)) };
    let (mut producer, mut consumer) = raw.create::<Plain, Polls>(4).unwrap().split();
    let position = |offset_bytes| {
        // SAFETY: a word of the header, aligned; only this thread uses the ring.
        unsafe { start.add(offset_bytes) }.cast::<u64>()
    };
    for wrong in [5, u64::MAX] {
        // SAFETY: as above: the tail.
        unsafe { position(128).write(wrong) };
        assert_eq!(consumer.len(), 0);
        assert!(matches!(consumer.try_pop(), Err(PopError::Empty)));
    }
    for wrong in [1, u64::MAX - 4] {
        // SAFETY: as above: the head.
        unsafe { position(256).write(wrong) };
        assert_eq!(producer.free(), 0);
        assert!(producer.try_push(PlainSlot::new(1, b"").unwrap()).unwrap_err().is_full());
    }
}

/// One call of either end.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    PushMany(usize),
    Pop,
    PopMany { max: usize, take: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Push),
        2 => (0..9_usize).prop_map(Step::PushMany),
        3 => Just(Step::Pop),
        2 => (0..9_usize, 0..9_usize).prop_map(|(max, take)| Step::PopMany { max, take }),
    ];
    prop::collection::vec(step, 0..200)
}

/// Drives the ring and a `VecDeque` by the same steps.
fn agrees_with_a_queue<T, F: Format<T>>(
    capacity: usize,
    start: u64,
    steps: &[Step],
    wrap: impl Fn(u32) -> T,
    unwrap: impl Fn(&T) -> u32,
) {
    let (mut producer, mut consumer) = on_heap::<T, F, Polls>(capacity, start);
    let mut model = VecDeque::new();
    let mut numbers = 0..;
    for &step in steps {
        match step {
            Step::Push => {
                let number = numbers.next().expect("steps are few");
                match producer.try_push(wrap(number)) {
                    Ok(()) => model.push_back(number),
                    Err(PushError::Full(back)) => assert_eq!(unwrap(&back), number),
                    Err(PushError::Closed(_)) => unreachable!(),
                }
            }
            Step::PushMany(count) => {
                let batch: Vec<u32> = numbers.by_ref().take(count).collect();
                let pushed = producer.push_iter(batch.iter().map(|&number| wrap(number)));
                assert_eq!(pushed, count.min(capacity - model.len()));
                model.extend(&batch[..pushed]);
            }
            Step::Pop => {
                let popped = consumer.try_pop().ok();
                assert_eq!(popped.as_ref().map(&unwrap), model.pop_front());
            }
            Step::PopMany { max, take } => match consumer.read_chunk(max) {
                Ok(chunk) => {
                    assert_eq!(chunk.len(), max.min(model.len()));
                    let count = take.min(chunk.len());
                    let taken: Vec<u32> = chunk.take(take).map(|value| unwrap(&value)).collect();
                    assert!(taken.into_iter().eq(model.drain(..count)));
                }
                Err(error) => {
                    assert_eq!(error, PopError::Empty);
                    assert!(model.is_empty());
                }
            },
        }
        assert!(model.len() <= capacity);
        assert_eq!(consumer.len(), model.len());
        assert_eq!(producer.free(), capacity - model.len());
    }
}

/// Positions where something wraps: the start, the positions' end, and the tags' end.
fn starts() -> impl Strategy<Value = u64> {
    let near = |place: u64| (0..40_u64).prop_map(move |back| place.wrapping_sub(back));
    prop_oneof![Just(0), near(0), near(1 << 32), near(1 << 33), near(1 << 35)]
}

proptest! {
    #[test]
    fn plain_slots_agree_with_a_queue(capacity in 1..9_usize, start in starts(), steps in steps()) {
        agrees_with_a_queue::<_, Plain>(capacity, start, &steps, Box::new, |number| **number);
    }

    #[test]
    fn prompt_slots_agree_with_a_queue(capacity in 1..9_usize, start in starts(), steps in steps()) {
        agrees_with_a_queue::<_, Prompt>(capacity, start, &steps, Box::new, |number| **number);
    }

    #[test]
    fn tagged_slots_agree_with_a_queue(capacity in 1..9_usize, start in starts(), steps in steps()) {
        let record = |number: u32| TaggedRecord::new(number, &number.to_le_bytes()).unwrap();
        agrees_with_a_queue::<_, Tagged>(capacity, start, &steps, record, |record| {
            assert_eq!(record.payload[..4], record.header.token.to_le_bytes());
            record.header.token
        });
    }
}
