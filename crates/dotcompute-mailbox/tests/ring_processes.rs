//! A ring between two processes: the parent makes it in a memory file, a child maps the same file.
//! Neither process has anything else of the other.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

use dotcompute_abi::PlainSlot;
use dotcompute_mailbox::ring::{Plain, PopError, RawMemory, Rings};
use std::env;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::{Command, Stdio};
use std::ptr::{self, NonNull};

const CAPACITY: usize = 8;
const MESSAGES: u32 = 20_000;
/// Tells the child that it is one, and which descriptor it inherits.
const CHILD: &str = "DOTCOMPUTE_RING_TEST_FD";

/// The two rings in the file, there and back.
fn map(file: &File) -> [RawMemory; 2] {
    let bytes = RawMemory::bytes_for::<Plain>(CAPACITY).next_multiple_of(128);
    file.set_len(2 * bytes as u64).unwrap();
    // SAFETY: a fresh shared mapping of a file that has this length.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            2 * bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    assert_ne!(start, libc::MAP_FAILED);
    let start = NonNull::new(start.cast::<u8>()).unwrap();
    [0, 1].map(|index| {
        // SAFETY: inside the mapping.
        let start = unsafe { start.add(index * bytes) };
        // SAFETY: aligned and never unmapped; the parent makes one end of each ring and the child
        // the other.
        unsafe { RawMemory::from_raw(start, bytes, ()) }
    })
}

/// Parent and child are this same test: the child runs it alone, and finds `CHILD` set.
#[test]
fn messages_go_to_another_process_and_come_back() {
    match env::var(CHILD) {
        Ok(descriptor) => child(descriptor.parse().unwrap()),
        Err(_) => parent(),
    }
}

fn parent() {
    // SAFETY: the name is a C string; without `MFD_CLOEXEC` the child inherits the descriptor.
    let descriptor = unsafe { libc::memfd_create(c"ring".as_ptr(), 0) };
    assert!(descriptor >= 0);
    // SAFETY: just opened, and nobody else's.
    let file = unsafe { File::from_raw_fd(descriptor) };
    let [there, back] = map(&file);
    let mut producer = there.create::<Plain, Rings>(CAPACITY).unwrap().producer();
    let mut consumer = back.create::<Plain, Rings>(CAPACITY).unwrap().consumer();

    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "messages_go_to_another_process_and_come_back"])
        .env(CHILD, descriptor.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The child is up to `CAPACITY` messages behind: now this side sleeps and now that.
    for number in 0..MESSAGES + CAPACITY as u32 {
        if number < MESSAGES {
            let message = PlainSlot::new(number, &number.to_le_bytes()).unwrap();
            producer.push_wait(message, None).unwrap();
        }
        if let Some(number) = number.checked_sub(CAPACITY as u32) {
            let reply = consumer.pop_wait(None).unwrap();
            assert_eq!(reply.header.token, number);
            assert_eq!(reply.payload[..4], (number * 2).to_le_bytes());
        }
    }
    drop(producer);
    assert!(matches!(consumer.pop_wait(None), Err(PopError::Closed)));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// Doubles every number until the parent's end goes, then goes too.
fn child(descriptor: i32) {
    // SAFETY: inherited from the parent, and used here only.
    let file = unsafe { File::from_raw_fd(descriptor) };
    let [there, back] = map(&file);
    let mut consumer = there.attach::<Plain, Rings>().unwrap().consumer();
    let mut producer = back.attach::<Plain, Rings>().unwrap().producer();
    while let Ok(message) = consumer.pop_wait(None) {
        let [a, b, c, d, ..] = message.payload;
        let doubled = u32::from_le_bytes([a, b, c, d]) * 2;
        let reply = PlainSlot::new(message.header.token, &doubled.to_le_bytes()).unwrap();
        producer.push_wait(reply, None).unwrap();
    }
}
