//! Models of the ring: loom runs the code that ships over every interleaving and every value that
//! the memory model lets a load return. A lost wake-up is a deadlock, an unordered access to a slot
//! a causality error, a forgotten end a leak; loom reports all three.

use super::memory::on_heap;
use super::*;
use dotcompute_abi::{PlainSlot, TaggedRecord};
use loom::sync::Arc;
use loom::thread;

/// A message that loom tracks, so that it sees one that is never dropped; one dropped twice is a
/// use after free of the count.
#[derive(Debug)]
struct Message(Arc<u32>);

impl Message {
    fn new(number: u32) -> Self {
        Self(Arc::new(number))
    }
}

impl PartialEq for Message {
    fn eq(&self, other: &Self) -> bool {
        *self.0 == *other.0
    }
}

/// Just before positions wrap around.
const LATE: u64 = u64::MAX;

#[test]
fn polled_messages_arrive_in_order() {
    polled_in_order::<Plain>(2);
}

#[test]
fn polled_messages_in_prompt_slots_arrive_in_order() {
    polled_in_order::<Prompt>(1);
    polled_in_order::<Prompt>(2);
}

fn polled_in_order<F: Format<Message, Slot: Send + Sync> + 'static>(capacity: usize) {
    loom::model(move || {
        let (mut producer, mut consumer) = on_heap::<Message, F, Polls>(capacity, LATE);
        let pusher = thread::spawn(move || {
            for number in 0..3 {
                if producer.try_push(Message::new(number)).is_err() {
                    return number;
                }
            }
            3
        });
        let mut received = 0;
        for _ in 0..3 {
            if let Ok(number) = consumer.try_pop() {
                assert_eq!(*number.0, received);
                received += 1;
            }
        }
        let pushed = pusher.join().unwrap();
        while let Ok(number) = consumer.try_pop() {
            assert_eq!(*number.0, received);
            received += 1;
        }
        assert_eq!(received, pushed);
        assert_eq!(consumer.try_pop(), Err(PopError::Closed));
    });
}

#[test]
fn chunks_are_published_and_freed_as_a_whole() {
    loom::model(|| {
        let (mut producer, mut consumer) = on_heap::<Message, Plain, Polls>(2, LATE);
        let pusher = thread::spawn(move || {
            let mut numbers = (0..3).map(Message::new);
            let first = producer.push_iter(numbers.by_ref().take(2));
            assert_eq!(first, 2);
            first + producer.push_iter(numbers)
        });
        let mut received = Vec::new();
        if let Ok(chunk) = consumer.read_chunk(2) {
            assert_eq!(chunk.len(), 2, "both or none");
            received.extend(chunk.map(|number| *number.0));
        }
        let pushed = pusher.join().unwrap();
        while let Ok(chunk) = consumer.read_chunk(2) {
            received.extend(chunk.map(|number| *number.0));
        }
        assert!(received.into_iter().eq(0..pushed as u32));
    });
}

#[test]
fn sleepers_on_both_sides_are_woken() {
    loom::model(|| {
        let (mut producer, mut consumer) = on_heap::<Message, Plain, Rings>(1, LATE);
        let pusher = thread::spawn(move || {
            for number in 0..2 {
                producer.push_wait(Message::new(number), None).unwrap();
            }
        });
        for number in 0..2 {
            assert_eq!(consumer.pop_wait(None), Ok(Message::new(number)));
        }
        pusher.join().unwrap();
    });
}

#[test]
fn a_sleeping_consumer_learns_that_the_producer_went_and_loses_nothing() {
    last_message_before_the_end::<Plain>();
}

#[test]
fn a_sleeper_on_prompt_slots_is_woken_and_loses_nothing() {
    last_message_before_the_end::<Prompt>();
}

fn last_message_before_the_end<F: Format<Message, Slot: Send + Sync> + 'static>() {
    loom::model(|| {
        let (mut producer, mut consumer) = on_heap::<Message, F, Rings>(2, 0);
        let pusher = thread::spawn(move || producer.try_push(Message::new(7)).unwrap());
        assert_eq!(consumer.pop_wait(None), Ok(Message::new(7)));
        assert_eq!(consumer.pop_wait(None), Err(PopError::Closed));
        pusher.join().unwrap();
    });
}

#[test]
fn a_polling_consumer_never_finds_the_ring_closed_too_early() {
    loom::model(|| {
        let (mut producer, mut consumer) = on_heap::<Message, Plain, Polls>(1, 0);
        let pusher = thread::spawn(move || producer.try_push(Message::new(7)).unwrap());
        let early = consumer.try_pop();
        assert_ne!(early, Err(PopError::Closed), "the message comes first");
        pusher.join().unwrap();
        if early.is_err() {
            assert_eq!(consumer.try_pop(), Ok(Message::new(7)));
        }
        assert_eq!(consumer.try_pop(), Err(PopError::Closed));
    });
}

#[test]
fn a_sleeping_producer_learns_that_the_consumer_went_and_keeps_its_message() {
    loom::model(|| {
        let (mut producer, consumer) = on_heap::<Message, Plain, Rings>(1, 0);
        producer.try_push(Message::new(1)).unwrap();
        let leaver = thread::spawn(move || drop(consumer));
        let error = producer.push_wait(Message::new(2), None).unwrap_err();
        assert_eq!(error, PushError::Closed(Message::new(2)));
        leaver.join().unwrap();
    });
}

#[test]
fn both_ends_go_at_once_and_what_is_left_is_dropped_once() {
    both_go_at_once::<Plain>();
}

#[test]
fn both_ends_of_prompt_slots_go_at_once_and_what_is_left_is_dropped_once() {
    both_go_at_once::<Prompt>();
}

fn both_go_at_once<F: Format<Message, Slot: Send + Sync> + 'static>() {
    loom::model(|| {
        let (mut producer, mut consumer) = on_heap::<Message, F, Polls>(2, LATE);
        let leaver = thread::spawn(move || {
            let _ = consumer.try_pop();
        });
        let _ = producer.try_push(Message::new(1));
        let _ = producer.try_push(Message::new(2));
        drop(producer);
        leaver.join().unwrap();
    });
}

/// A record whose every word says `number`, so that a torn one shows.
fn record(number: u32) -> TaggedRecord {
    let payload = [number.to_le_bytes(); 10];
    TaggedRecord::new(number, payload.as_flattened()).unwrap()
}

#[test]
fn tagged_slots_are_never_torn() {
    loom::model(|| {
        let (mut producer, mut consumer) = on_heap::<TaggedRecord, Tagged, Polls>(1, 0);
        producer.try_push(record(1)).unwrap();
        let pusher = thread::spawn(move || producer.try_push(record(2)).is_ok());
        let mut received = Vec::new();
        for _ in 0..2 {
            received.extend(consumer.try_pop());
        }
        if pusher.join().unwrap() && received.len() < 2 {
            received.extend(consumer.try_pop());
        }
        for (record, number) in received.iter().zip(1_u32..) {
            assert_eq!(record.header.token, number);
            assert_eq!(record.payload, *[number.to_le_bytes(); 10].as_flattened());
        }
    });
}

/// A slot whose every byte says `number`.
fn slot(number: u8) -> PlainSlot {
    PlainSlot::new(number.into(), &[number; 56]).unwrap()
}

#[test]
fn lapped_slots_are_never_torn_and_those_pushed_together_are_found_together() {
    for start in [0, LATE] {
        loom::model(move || {
            let (mut producer, mut consumer) = on_heap::<PlainSlot, Lapped, Polls>(2, start);
            assert!(producer.push_together(&[slot(1)]));
            let pusher = thread::spawn(move || producer.push_together(&[slot(2), slot(3)]));
            let mut received = Vec::new();
            received.extend(consumer.try_pop());
            let second = consumer.try_pop();
            let found = second.is_ok();
            if let Ok(second) = second {
                received.push(second);
                received.push(consumer.try_pop().expect("both or none"));
            }
            if pusher.join().unwrap() && !found {
                received.extend([consumer.try_pop().unwrap(), consumer.try_pop().unwrap()]);
            }
            for (found, number) in received.iter().zip(1..) {
                assert_eq!(found.header.token, u32::from(number));
                assert_eq!(found.payload, slot(number).payload);
            }
            assert!(matches!(consumer.try_pop(), Err(PopError::Closed)));
        });
    }
}

#[test]
fn a_sleeper_on_tagged_slots_is_woken() {
    loom::model(|| {
        let (mut producer, mut consumer) = on_heap::<TaggedRecord, Tagged, Rings>(1, 0);
        let pusher = thread::spawn(move || producer.try_push(record(1)).unwrap());
        assert_eq!(consumer.pop_wait(None).unwrap().header.token, 1);
        assert_eq!(consumer.pop_wait(None).unwrap_err(), PopError::Closed);
        pusher.join().unwrap();
    });
}
