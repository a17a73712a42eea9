//! Message ids: 128 random bits in the form of a version 4 UUID, made without a system call.

use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use dotcompute_mailbox::sync::{AtomicU64, Ordering};

/// The name of one message: a version 4 UUID, unique for all practical purposes.
///
/// Ids come from a generator per thread that is seeded from the operating system's randomness once
/// per process. They name messages; they are no secrets, since whoever sees a few ids of a thread
/// can compute the next ones.
///
/// ```
/// use dotcompute_core::MessageId;
///
/// let id = MessageId::next();
/// assert_ne!(id, MessageId::next());
/// let text = id.to_string();
/// assert_eq!(text.len(), 36);
/// assert_eq!(text.parse(), Ok(id));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
// Aligned as bytes: in each envelope padding around it would be a quarter of a cache line.
#[repr(Rust, packed)]
pub struct MessageId(u128);

/// The bits that say "version 4" and "variant 1" in a UUID, and where they lie.
const VERSION_MASK: u128 = 0xf000 << 64;
const VERSION_4: u128 = 0x4000 << 64;
const VARIANT_MASK: u128 = 0b11 << 62;
const VARIANT_1: u128 = 0b10 << 62;

impl MessageId {
    /// A new id. Takes a few nanoseconds and no system call, except the first one of a process.
    ///
    /// A child process made by `fork` starts with a copy of its parent's generator and would
    /// repeat its ids: call [`MessageId::reseed`] first thing in the child.
    #[inline]
    pub fn next() -> Self {
        let [high, low] = GENERATOR.with(|generator| {
            let mut state = generator.get();
            if state == UNSEEDED {
                state = seed();
            }
            state = state.map(|word| word.wrapping_add(STEP));
            generator.set(state);
            state.map(mix)
        });
        let random = u128::from(high) << 64 | u128::from(low);
        Self(random & !(VERSION_MASK | VARIANT_MASK) | VERSION_4 | VARIANT_1)
    }

    /// Starts the generator anew, for this thread and for those that have not made an id yet.
    ///
    /// For a child process after `fork`, in which the calling thread is the only one: from here on
    /// parent and child make different ids. Anywhere else it is harmless and needless.
    ///
    /// ```
    /// dotcompute_core::MessageId::reseed();
    /// ```
    pub fn reseed() {
        // The secret of the process survives a fork, so what differs is its input: the process id
        // sets the child apart from its parent, the time from an earlier child with the same id.
        let nanoseconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_nanos());
        let salt = secret().hash_one((std::process::id(), nanoseconds));
        // Relaxed: a lone value. The calling thread is the only one that must see it, and does.
        SALT.store(salt, Ordering::Relaxed);
        GENERATOR.with(|generator| generator.set(seed()));
    }

    /// The id with these 128 bits, most significant first as in a UUID's text. Any value will do.
    ///
    /// ```
    /// use dotcompute_core::MessageId;
    /// assert_eq!(MessageId::from_u128(7).as_u128(), 7);
    /// ```
    #[inline]
    pub const fn from_u128(bits: u128) -> Self {
        Self(bits)
    }

    /// The 128 bits of this id.
    #[inline]
    pub const fn as_u128(self) -> u128 {
        self.0
    }

    /// The id with these 16 bytes, in the order of a UUID's text (network order).
    ///
    /// ```
    /// use dotcompute_core::MessageId;
    /// let id = MessageId::from_bytes(*b"sixteen bytes ok");
    /// assert_eq!(&id.to_bytes(), b"sixteen bytes ok");
    /// ```
    #[inline]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }

    /// The 16 bytes of this id, in the order of a UUID's text (network order).
    #[inline]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

/// As a UUID: 32 lower-case hexadecimal digits in groups of 8-4-4-4-12.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [b'-'; 36];
        let mut at = 0;
        for (index, byte) in self.to_bytes().into_iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                at += 1;
            }
            text[at] = DIGITS[usize::from(byte >> 4)];
            text[at + 1] = DIGITS[usize::from(byte & 0xf)];
            at += 2;
        }
        f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

/// Reads a UUID: 32 hexadecimal digits, with the four hyphens of the usual form or without any.
impl FromStr for MessageId {
    type Err = ParseMessageIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hyphenated = match text.len() {
            36 => true,
            32 => false,
            _ => return Err(ParseMessageIdError),
        };
        let mut bits = 0u128;
        for (index, character) in text.bytes().enumerate() {
            if hyphenated && matches!(index, 8 | 13 | 18 | 23) {
                if character != b'-' {
                    return Err(ParseMessageIdError);
                }
                continue;
            }
            let digit = char::from(character).to_digit(16).ok_or(ParseMessageIdError)?;
            bits = bits << 4 | u128::from(digit);
        }
        Ok(Self(bits))
    }
}

/// The text is no UUID.
///
/// ```
/// use dotcompute_core::MessageId;
/// let error = "not an id".parse::<MessageId>().unwrap_err();
/// assert_eq!(error.to_string(), "expected a UUID: 32 hexadecimal digits, as 8-4-4-4-12 or in one");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a UUID: 32 hexadecimal digits, as 8-4-4-4-12 or in one")]
pub struct ParseMessageIdError;

/// Marks a thread that has not made an id yet. A generator that came to this state, one time in
/// 2^128, would be seeded again, which does no harm.
const UNSEEDED: [u64; 2] = [0; 2];

thread_local! {
    static GENERATOR: Cell<[u64; 2]> = const { Cell::new(UNSEEDED) };
}

/// Changed by `reseed`, so that seeds made after a fork differ from the parent's.
static SALT: AtomicU64 = AtomicU64::new(0);

/// The randomness of this process: the keys of a SipHash, which the standard library takes from the
/// operating system.
fn secret() -> &'static RandomState {
    static SECRET: OnceLock<RandomState> = OnceLock::new();
    SECRET.get_or_init(RandomState::new)
}

/// A seed that no other thread of this process gets: SipHash, a keyed pseudorandom function, of
/// this thread's number.
#[cold]
fn seed() -> [u64; 2] {
    static THREADS: AtomicU64 = AtomicU64::new(0);
    // Relaxed: only that each thread gets a number of its own matters.
    let thread = THREADS.fetch_add(1, Ordering::Relaxed);
    // Relaxed: a lone value, see `reseed`.
    let salt = SALT.load(Ordering::Relaxed);
    [0, 1].map(|half: u64| secret().hash_one((salt, thread, half)))
}

/// SplitMix64 (Guy Steele, Doug Lea and Christine Flood, 2014), once for each half of an id: a
/// counter that goes up by this, and a mixer. Since the next id waits only for the counter, one
/// overlaps with the work around it. Two threads repeat each other's ids only if both halves
/// coincide at the same distance.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
const fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_generator_is_splitmix64() {
        // The first outputs of the reference implementation for the seed 1234567.
        let outputs = [1, 2, 3].map(|n: u64| mix(1_234_567u64.wrapping_add(STEP.wrapping_mul(n))));
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(outputs, expected);
    }

    #[test]
    fn ids_are_version_4_uuids_and_do_not_repeat_across_threads() {
        let make = || (0..10_000).map(|_| MessageId::next()).collect::<Vec<_>>();
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(make)).collect();
        let mut seen = HashSet::new();
        for thread in threads {
            for id in thread.join().unwrap() {
                let text = id.to_string();
                assert_eq!(&text[14..15], "4", "{text}");
                assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"), "{text}");
                assert!(seen.insert(id));
            }
        }
        assert_eq!(seen.len(), 40_000);
    }

    #[test]
    fn every_random_bit_varies() {
        let ids: Vec<u128> = (0..256).map(|_| MessageId::next().as_u128()).collect();
        let fixed = VERSION_MASK | VARIANT_MASK;
        let ever_set = ids.iter().fold(0, |all, id| all | id);
        let always_set = ids.iter().fold(u128::MAX, |all, id| all & id);
        assert_eq!(ever_set & !fixed, !fixed);
        assert_eq!(always_set & !fixed, 0);
    }

    #[test]
    fn reseeding_leaves_the_old_sequence() {
        MessageId::next();
        let before = GENERATOR.with(Cell::get);
        let next_without = MessageId::next();
        GENERATOR.with(|generator| generator.set(before));
        MessageId::reseed();
        assert_ne!(MessageId::next(), next_without);
    }

    #[test]
    fn text_round_trips_in_both_forms() {
        let id = MessageId::from_u128(0x0123_4567_89ab_4cde_8f01_2345_6789_abcd);
        let text = "01234567-89ab-4cde-8f01-23456789abcd";
        assert_eq!(id.to_string(), text);
        assert_eq!(format!("{id:?}"), format!("MessageId({text})"));
        for accepted in [text, "0123456789ab4cde8f0123456789abcd", &text.to_uppercase()] {
            assert_eq!(accepted.parse(), Ok(id));
        }
        for refused in ["", "0", "01234567-89ab-4cde-8f01-23456789abcg", &"é".repeat(18)] {
            assert_eq!(refused.parse::<MessageId>(), Err(ParseMessageIdError), "{refused:?}");
        }
        assert!("01234567089ab-4cde-8f01-23456789abcd".parse::<MessageId>().is_err());
    }
}
