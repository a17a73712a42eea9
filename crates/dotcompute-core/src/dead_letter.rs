//! Messages that nobody processed: kept, bounded, readable, and replayable.

use std::any::Any;
use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::SystemTime;

use dotcompute_mailbox::sync::lock;

use crate::error::{Fault, KernelId};
use crate::id::MessageId;
use crate::message::{Envelope, Message, Taken};

/// How many dead letters a runtime keeps.
pub const DEAD_LETTERS_MAX: usize = 1024;
/// How many bytes of messages the dead letters of a runtime keep in all.
pub const DEAD_LETTERS_MAX_BYTES: usize = 64 << 20;

/// Why a message became a dead letter.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DeadLetterReason {
    /// It was in hand when the kernel failed.
    Faulted(Fault),
    /// It was queued when the kernel ended.
    Undelivered,
    /// A reply that nobody had read when the kernel was terminated.
    Unread,
    /// A reply to an ask that had already ended.
    LateReply,
    /// A reply for which the output mailbox, or that of the next kernel, had no room.
    NoRoom,
    /// A reply to an ask that waits for another type than the last kernel of its pipeline replies
    /// with.
    WrongType,
    /// A reply for a worker of a pool that had ended, while others went on; or for which none could
    /// be chosen.
    Unreachable,
}

impl fmt::Display for DeadLetterReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Faulted(fault) => write!(f, "in hand when the kernel failed: {fault}"),
            Self::Undelivered => f.write_str("queued when the kernel ended"),
            Self::Unread => f.write_str("a reply unread when the kernel was terminated"),
            Self::LateReply => f.write_str("a reply to an ask that had ended"),
            Self::NoRoom => f.write_str("a reply without room"),
            Self::WrongType => f.write_str("a reply of another type than its ask waits for"),
            Self::Unreachable => f.write_str("a reply whose worker had ended"),
        }
    }
}

/// A message that nobody processed, with what is known of it.
pub struct DeadLetter {
    /// The kernel that it was sent to, or that replied with it.
    pub kernel: KernelId,
    /// Its id.
    pub id: MessageId,
    /// What it answered, if it was a reply.
    pub correlation_id: Option<MessageId>,
    /// Its priority.
    pub priority: u8,
    /// The name of its type.
    pub type_name: &'static str,
    /// How often it had been delivered, the last time included.
    pub delivery_count: u8,
    /// Why it is here.
    pub reason: DeadLetterReason,
    /// When it came here.
    pub at: SystemTime,
    /// About how much memory it takes, in bytes.
    pub payload_bytes: usize,
    /// Whether it was on its way to the kernel (and can be replayed), not from it.
    pub to_kernel: bool,
    /// The `Envelope<M>`, unless the kernel had taken the message out of it.
    payload: Option<Box<dyn Any + Send + Sync>>,
}

impl DeadLetter {
    pub(crate) fn of<M: Message>(
        kernel: &KernelId,
        mut envelope: Envelope<M>,
        reason: DeadLetterReason,
        to_kernel: bool,
    ) -> Self {
        // From now on it is a message like any other, wherever it may be sent: whoever asked is
        // told, and its deliveries count anew.
        envelope.ask = None;
        envelope.answered = false;
        let delivery_count = std::mem::replace(&mut envelope.delivery_count, 1);
        Self {
            kernel: kernel.clone(),
            id: envelope.id,
            correlation_id: envelope.correlation_id,
            priority: envelope.priority,
            type_name: M::TYPE_NAME,
            delivery_count,
            reason,
            at: SystemTime::now(),
            payload_bytes: size_bytes(&envelope.message),
            to_kernel,
            payload: Some(Box::new(envelope)),
        }
    }

    /// A message that the body had taken out of its envelope before it failed.
    pub(crate) fn without_payload<M: Message>(
        kernel: &KernelId,
        taken: &Taken,
        reason: DeadLetterReason,
    ) -> Self {
        Self {
            kernel: kernel.clone(),
            id: taken.id,
            correlation_id: taken.correlation_id,
            priority: taken.priority,
            type_name: M::TYPE_NAME,
            delivery_count: taken.delivery_count,
            reason,
            at: SystemTime::now(),
            payload_bytes: 0,
            to_kernel: true,
            payload: None,
        }
    }

    /// The message, if it is still there and an `M`.
    pub fn message<M: Message>(&self) -> Option<&M> {
        let envelope = self.payload.as_ref()?.downcast_ref::<Envelope<M>>()?;
        Some(&envelope.message)
    }

    /// The message with its id, priority and correlation.
    ///
    /// # Errors
    ///
    /// The letter comes back if its message is no longer there, or no `M`.
    pub fn into_envelope<M: Message>(mut self) -> Result<Envelope<M>, Self> {
        match self.payload.take().map(<Box<dyn Any + Send + Sync>>::downcast) {
            Some(Ok(envelope)) => Ok(*envelope),
            Some(Err(other)) => Err(Self { payload: Some(other), ..self }),
            None => Err(self),
        }
    }

    /// Whether [`replay`](crate::Runtime::replay) can send it again.
    pub fn is_replayable(&self) -> bool {
        self.to_kernel && self.payload.is_some()
    }
}

impl fmt::Debug for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetter")
            .field("kernel", &self.kernel)
            .field("id", &self.id)
            .field("type_name", &self.type_name)
            .field("priority", &self.priority)
            .field("delivery_count", &self.delivery_count)
            .field("reason", &self.reason)
            .field("payload_bytes", &self.payload_bytes)
            .finish_non_exhaustive()
    }
}

/// Drops a message, or a letter that holds one. Its destructor is the user's code: what that panics
/// with must not end whoever happens to drop it.
pub(crate) fn discard<T>(message: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(message))) {
        // What it panicked with has a destructor too. There has to be an end to this.
        std::mem::forget(panic);
    }
}

/// What the message says of its size. That is the user's code, and may panic.
fn size_bytes<M: Message>(message: &M) -> usize {
    let said = catch_unwind(AssertUnwindSafe(|| message.payload_bytes()));
    said.unwrap_or_else(|panic| {
        discard(panic);
        size_of_val(message)
    })
}

/// The dead letters of one runtime: the newest ones, up to a number and a size.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    letters: VecDeque<DeadLetter>,
    bytes: usize,
    evicted: u64,
    total: u64,
}

/// How many dead letters there are and were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeadLetterCounts {
    /// Kept now.
    pub kept: usize,
    /// The messages kept now, in bytes.
    pub bytes: usize,
    /// Given up, oldest first, to stay within the bounds.
    pub evicted: u64,
    /// All that ever came.
    pub total: u64,
}

impl DeadLetters {
    pub(crate) fn push(&self, letter: DeadLetter) {
        lock(&self.kept).total += 1;
        self.restore(letter);
    }

    /// Keeps a letter that was taken out and is not a new one.
    pub(crate) fn restore(&self, letter: DeadLetter) {
        let mut evicted = Vec::new();
        if letter.payload_bytes > DEAD_LETTERS_MAX_BYTES {
            // It alone: the others are not to go for one that cannot stay.
            lock(&self.kept).evicted += 1;
            evicted.push(letter);
        } else {
            let mut kept = lock(&self.kept);
            kept.bytes += letter.payload_bytes;
            kept.letters.push_back(letter);
            while kept.letters.len() > DEAD_LETTERS_MAX || kept.bytes > DEAD_LETTERS_MAX_BYTES {
                let Some(oldest) = kept.letters.pop_front() else { break };
                kept.bytes -= oldest.payload_bytes;
                kept.evicted += 1;
                evicted.push(oldest);
            }
        }
        // Outside the lock.
        evicted.into_iter().for_each(discard);
    }

    /// Takes out the letters that `wanted` chooses, oldest first.
    pub(crate) fn take(&self, mut wanted: impl FnMut(&DeadLetter) -> bool) -> Vec<DeadLetter> {
        let mut kept = lock(&self.kept);
        // Chosen first: should the choice panic, every letter is still there.
        let chosen: Vec<bool> = kept.letters.iter().map(&mut wanted).collect();
        let mut taken = Vec::new();
        for (letter, chosen) in std::mem::take(&mut kept.letters).into_iter().zip(chosen) {
            if chosen {
                kept.bytes -= letter.payload_bytes;
                taken.push(letter);
            } else {
                kept.letters.push_back(letter);
            }
        }
        taken
    }

    /// Calls `f` with each letter, oldest first, under the lock: `f` must not send.
    pub(crate) fn for_each(&self, mut f: impl FnMut(&DeadLetter)) {
        for letter in &lock(&self.kept).letters {
            f(letter);
        }
    }

    pub(crate) fn counts(&self) -> DeadLetterCounts {
        let kept = lock(&self.kept);
        DeadLetterCounts {
            kept: kept.letters.len(),
            bytes: kept.bytes,
            evicted: kept.evicted,
            total: kept.total,
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // Perhaps on a kernel's thread, which was the last to hold the runtime.
        self.letters.drain(..).for_each(discard);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Big(usize);
    impl Message for Big {
        const TYPE_NAME: &'static str = "Big";
        fn payload_bytes(&self) -> usize {
            self.0
        }
    }

    fn letter(bytes: usize) -> DeadLetter {
        let envelope = Envelope::new(Big(bytes));
        DeadLetter::of(&"k".into(), envelope, DeadLetterReason::Undelivered, true)
    }

    #[test]
    fn dead_letters_are_bounded_in_number_and_evictions_are_counted() {
        let letters = DeadLetters::default();
        for _ in 0..DEAD_LETTERS_MAX + 5 {
            letters.push(letter(1));
        }
        let counts = letters.counts();
        assert_eq!((counts.kept, counts.evicted), (DEAD_LETTERS_MAX, 5));
        assert_eq!(counts.total, (DEAD_LETTERS_MAX + 5) as u64);
    }

    #[test]
    fn dead_letters_are_bounded_in_bytes() {
        let letters = DeadLetters::default();
        for _ in 0..5 {
            letters.push(letter(DEAD_LETTERS_MAX_BYTES / 4));
        }
        let counts = letters.counts();
        assert_eq!((counts.kept, counts.evicted), (4, 1));
        assert!(counts.bytes <= DEAD_LETTERS_MAX_BYTES);
    }

    #[test]
    fn a_letter_larger_than_all_that_is_kept_takes_no_other_with_it() {
        let letters = DeadLetters::default();
        letters.push(letter(1));
        letters.push(letter(usize::MAX));
        let counts = letters.counts();
        assert_eq!((counts.kept, counts.bytes, counts.evicted, counts.total), (1, 1, 1, 2));
    }

    #[test]
    fn letters_are_taken_by_choice_and_keep_their_order() {
        let letters = DeadLetters::default();
        for bytes in [1, 2, 3, 4] {
            letters.push(letter(bytes));
        }
        let odd = letters.take(|letter| letter.payload_bytes % 2 == 1);
        assert_eq!(odd.iter().map(|l| l.payload_bytes).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(letters.counts().bytes, 6);
    }
}
