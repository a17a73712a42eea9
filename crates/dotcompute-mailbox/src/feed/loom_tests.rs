//! Models of the feed: no wake-up is lost either way, and a close counts each record once.

use super::*;
use crate::wait::block_on;
use loom::thread;

#[test]
fn a_receiver_that_sleeps_is_woken_for_each_record() {
    loom::model(|| {
        let (mut sender, mut receiver) = feed(2);
        let pusher = thread::spawn(move || {
            for number in 0..2 {
                sender.try_push(number).unwrap();
            }
        });
        for number in 0..2 {
            block_on(poll_fn(|context| receiver.poll_ready(context, false)));
            assert_eq!(receiver.pop(), Some(number));
        }
        pusher.join().unwrap();
    });
}

#[test]
fn a_sender_that_waits_for_room_is_woken() {
    loom::model(|| {
        let (mut sender, mut receiver) = feed(1);
        sender.try_push(0).unwrap();
        let popper = thread::spawn(move || {
            assert_eq!(receiver.pop(), Some(0));
            receiver
        });
        block_on(sender.push(1)).unwrap();
        assert_eq!(popper.join().unwrap().pop(), Some(1));
    });
}

#[test]
fn what_a_push_says_of_a_close_is_what_the_receiver_reads() {
    loom::model(|| {
        let (mut sender, mut receiver) = feed(4);
        let pusher = thread::spawn(move || {
            (0..2).take_while(|number| sender.try_push(*number).is_ok()).count()
        });
        receiver.close();
        let mut read = 0;
        while receiver.pop().is_some() {
            read += 1;
        }
        assert_eq!(pusher.join().unwrap(), read);
    });
}

#[test]
fn a_sender_that_waits_for_room_is_told_of_a_close() {
    loom::model(|| {
        let (mut sender, mut receiver) = feed(1);
        sender.try_push(0).unwrap();
        let closer = thread::spawn(move || receiver.close());
        assert_eq!(block_on(sender.push(1)), Err(PushError::Closed(1)));
        closer.join().unwrap();
    });
}
