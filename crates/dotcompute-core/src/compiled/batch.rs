//! Messages of records, one or many.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex};

use dotcompute_mailbox::sync::lock;

use super::wrong_layout;
use crate::error::BoxError;
use crate::message::Message;
use crate::record::{Record, RecordLayout};

/// Records of one layout as one message: a batch, or a single one whose type is known only at run
/// time.
///
/// One envelope carries the whole batch: it has one id and one priority, takes one place in a
/// mailbox, and is dropped, delivered again or made a dead letter as a whole. The records lie one
/// after the other and are never copied on their way; whoever made the batch from memory of their
/// own must not write to it until it is dropped.
///
/// ```
/// use dotcompute_core::compiled::RecordBatch;
/// # use dotcompute_core::Message;
/// #[derive(Clone, Copy, Debug, PartialEq, Message)]
/// #[message(record, crate = "dotcompute_core")]
/// #[repr(C)]
/// struct Amount {
///     value: i64,
/// }
///
/// let batch = RecordBatch::from_vec(vec![Amount { value: 1 }, Amount { value: 2 }]);
/// assert_eq!(batch.len(), 2);
/// assert_eq!(batch.as_slice::<Amount>().unwrap()[1].value, 2);
/// ```
pub struct RecordBatch {
    layout: &'static RecordLayout,
    count: usize,
    single: bool,
    memory: Memory,
}

enum Memory {
    /// Words, so that records are aligned.
    Owned(Buffer),
    /// Somebody else's: kept, and not written to.
    Foreign { start: Address, _keep: Box<dyn Any + Send + Sync> },
}

/// Where foreign records begin.
struct Address(*const u8);

// SAFETY: what it leads to is only read, and `from_foreign` promises that nobody writes to it.
#[allow(unsafe_code)]
unsafe impl Send for Address {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Address {}

impl RecordBatch {
    /// A batch of these records.
    pub fn from_vec<T: Record>(records: Vec<T>) -> Self {
        let (start, count) = (records.as_ptr().cast::<u8>(), records.len());
        let keep: Box<dyn Any + Send + Sync> = Box::new(records);
        // The elements of a `Vec` do not move when the `Vec` does, and it is never written again.
        let memory = Memory::Foreign { start: Address(start), _keep: keep };
        Self { layout: T::LAYOUT, count, single: false, memory }
    }

    /// A batch with a copy of these bytes, which are records of this layout; none if they do not
    /// come out even.
    pub fn copied(layout: &'static RecordLayout, bytes: &[u8]) -> Option<Self> {
        let count = bytes.len() / layout.bytes;
        (count * layout.bytes == bytes.len()).then(|| {
            let memory = Memory::Owned(Buffer::copied(bytes));
            Self { layout, count, single: false, memory }
        })
    }

    /// One record of this layout, with a copy of its bytes, as a message that is not a batch: a
    /// handler replies to it with single records too. None if it has another size.
    pub fn single(layout: &'static RecordLayout, bytes: &[u8]) -> Option<Self> {
        (bytes.len() == layout.bytes).then(|| {
            let memory = Memory::Owned(Buffer::copied(bytes));
            Self { layout, count: 1, single: true, memory }
        })
    }

    /// The same for a record that names something: `keep` is dropped with the message.
    pub fn single_keeping(
        layout: &'static RecordLayout,
        bytes: &[u8],
        keep: Box<dyn Any + Send + Sync>,
    ) -> Option<Self> {
        (bytes.len() == layout.bytes).then(|| {
            let buffer = Buffer::copied(bytes);
            // The words do not move when the buffer does, and are never written again.
            let start = Address(buffer.words.as_ptr().cast());
            let memory = Memory::Foreign { start, _keep: Box::new((buffer, keep)) };
            Self { layout, count: 1, single: true, memory }
        })
    }

    /// A batch of `count` records that lie at `start`, in memory that `keep` keeps.
    ///
    /// # Safety
    ///
    /// There must be so many records, aligned as the layout says, which nobody writes to while
    /// `keep` lives.
    #[allow(unsafe_code, reason = "the promise is the caller's")]
    pub unsafe fn from_foreign(
        layout: &'static RecordLayout,
        start: *const u8,
        count: usize,
        keep: Box<dyn Any + Send + Sync>,
    ) -> Self {
        let memory = Memory::Foreign { start: Address(start), _keep: keep };
        Self { layout, count, single: false, memory }
    }

    pub(super) fn owned(layout: &'static RecordLayout, buffer: Buffer, count: usize) -> Self {
        Self { layout, count, single: false, memory: Memory::Owned(buffer) }
    }

    /// The layout of each record.
    pub fn layout(&self) -> &'static RecordLayout {
        self.layout
    }

    /// How many records there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether it is one record that is no batch.
    pub fn is_single(&self) -> bool {
        self.single
    }

    /// The bytes of all records, one after the other.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let bytes = self.count * self.layout.bytes;
        match &self.memory {
            Memory::Owned(buffer) => &bytemuck::cast_slice(&buffer.words)[..bytes],
            Memory::Foreign { start, .. } => {
                // SAFETY: so many bytes lie there, and are not written to, as `from_foreign`
                // promises and `from_vec` and `single_keeping` see to.
                #[allow(unsafe_code)]
                unsafe {
                    std::slice::from_raw_parts(start.0, bytes)
                }
            }
        }
    }

    /// The records, if `T` has their layout.
    pub fn as_slice<T: Record>(&self) -> Option<&[T]> {
        match T::LAYOUT.agrees_with(self.layout) {
            true => bytemuck::try_cast_slice(self.bytes()).ok(),
            false => None,
        }
    }
}

impl RecordBatch {
    /// The key that all records have, of an integer field: its value in 64 bits; 0 of no records. For
    /// [`Pool::by_key`](crate::Pool::by_key): a batch goes to one worker, as a whole.
    ///
    /// # Errors
    ///
    /// If there is no such field, it is no integer, or the records do not agree.
    pub fn key(&self, field: &str) -> Result<u64, KeyError> {
        let record = self.layout.name;
        let Some(found) = self.layout.fields.iter().find(|found| found.name == field) else {
            return Err(KeyError::NoField { record, field: field.into() });
        };
        let Some(read) = found.element.as_integer() else {
            return Err(KeyError::NoInteger { record, field: field.into() });
        };
        let keys = self.bytes().chunks_exact(self.layout.bytes);
        let mut keys = keys.map(|record| read(&record[found.offset..][..found.bytes]));
        let first = keys.next().unwrap_or(0);
        match keys.position(|key| key != first) {
            None => Ok(first),
            Some(at) => Err(KeyError::Several { field: field.into(), at: at + 1 }),
        }
    }
}

/// Why records have no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// No field of that name.
    #[error("the key '{field}' of records '{record}' is none of their fields")]
    NoField {
        /// The record.
        record: &'static str,
        /// The name.
        field: String,
    },
    /// A field of another type.
    #[error("the key '{field}' of records '{record}' is no integer")]
    NoInteger {
        /// The record.
        record: &'static str,
        /// The name.
        field: String,
    },
    /// A batch whose records belong to different workers.
    #[error(
        "an array goes to one worker, and record {at} has another '{field}' than record 0: send the \
         records of each key by themselves"
    )]
    Several {
        /// The name of the field.
        field: String,
        /// The first record with another key.
        at: usize,
    },
}

impl Message for RecordBatch {
    const TYPE_NAME: &'static str = "records";

    fn payload_bytes(&self) -> usize {
        size_of::<Self>() + self.count * self.layout.bytes
    }
}

impl fmt::Debug for RecordBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecordBatch({} of {})", self.count, self.layout.name)
    }
}

/// Memory of records, that goes back to where it came from.
pub(super) struct Buffer {
    words: Vec<u64>,
    pool: Option<Arc<Pool>>,
}

impl Buffer {
    pub(super) fn copied(bytes: &[u8]) -> Self {
        let mut words = vec![0; bytes.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { words, pool: None }
    }

    pub(super) fn words(&mut self) -> &mut Vec<u64> {
        &mut self.words
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.put(std::mem::take(&mut self.words));
        }
    }
}

/// Buffers for replies that were read: fresh ones would have to be zeroed, and large ones fetched
/// from the system page by page.
#[derive(Default)]
pub(super) struct Pool(Mutex<Vec<Vec<u64>>>);

/// How many buffers, and how many words of all together, a pool keeps.
const KEPT_MAX: usize = 16;
const KEPT_WORDS_MAX: usize = 1 << 24;

impl Pool {
    pub(super) fn take(self: &Arc<Self>) -> Buffer {
        let words = lock(&self.0).pop().unwrap_or_default();
        Buffer { words, pool: Some(Arc::clone(self)) }
    }

    fn put(&self, words: Vec<u64>) {
        let mut kept = lock(&self.0);
        let total: usize = kept.iter().map(Vec::capacity).sum();
        if kept.len() < KEPT_MAX && total + words.capacity() <= KEPT_WORDS_MAX {
            kept.push(words);
        } else {
            drop(kept);
            drop(words);
        }
    }
}

/// What a message holds for a handler.
#[derive(Clone, Copy, Debug)]
pub struct Records<'a> {
    /// The bytes of its records, aligned as their layout says.
    pub bytes: &'a [u8],
    /// Whether it is one record, and no batch.
    pub single: bool,
}

/// A message that holds records: a derived record, or a [`RecordBatch`].
pub trait RecordMessage: Message {
    /// The layout, where the type has one.
    const LAYOUT: Option<&'static RecordLayout>;

    /// Its records, which should be of the layout `wanted`. `scratch` is for those that have to be
    /// made first.
    ///
    /// # Errors
    ///
    /// If it holds others.
    fn records<'a>(
        &'a self,
        wanted: &'static RecordLayout,
        scratch: &'a mut Vec<u64>,
    ) -> Result<Records<'a>, BoxError>;

    /// A message of one record of this layout, with these bytes: what another kernel sent where the
    /// kernel runs.
    fn from_record(layout: &'static RecordLayout, bytes: &[u8]) -> Self;
}

/// A message that can be made of records.
pub trait RecordReply: Message {
    /// The layout, where the type has one.
    const LAYOUT: Option<&'static RecordLayout>;

    /// A message of one record with these bytes.
    fn one(layout: &'static RecordLayout, bytes: &[u8]) -> Self;

    /// One message of all records of a batch.
    ///
    /// # Errors
    ///
    /// The batch comes back where each record is a message of its own.
    fn many(batch: RecordBatch) -> Result<Self, RecordBatch>;
}

impl<T: Record> RecordMessage for T {
    const LAYOUT: Option<&'static RecordLayout> = Some(T::LAYOUT);

    #[inline]
    fn records<'a>(
        &'a self,
        _wanted: &'static RecordLayout,
        _scratch: &'a mut Vec<u64>,
    ) -> Result<Records<'a>, BoxError> {
        // Compared once, at the launch.
        Ok(Records { bytes: self.bytes(), single: true })
    }

    fn from_record(layout: &'static RecordLayout, bytes: &[u8]) -> Self {
        Self::one(layout, bytes)
    }
}

impl<T: Record> RecordReply for T {
    const LAYOUT: Option<&'static RecordLayout> = Some(T::LAYOUT);

    #[inline]
    fn one(_layout: &'static RecordLayout, bytes: &[u8]) -> Self {
        bytemuck::pod_read_unaligned(bytes)
    }

    fn many(batch: RecordBatch) -> Result<Self, RecordBatch> {
        Err(batch)
    }
}

impl RecordMessage for RecordBatch {
    const LAYOUT: Option<&'static RecordLayout> = None;

    fn records<'a>(
        &'a self,
        wanted: &'static RecordLayout,
        _scratch: &'a mut Vec<u64>,
    ) -> Result<Records<'a>, BoxError> {
        match self.layout.agrees_with(wanted) {
            true => Ok(Records { bytes: self.bytes(), single: self.single }),
            false => Err(wrong_layout(wanted, self.layout)),
        }
    }

    fn from_record(layout: &'static RecordLayout, bytes: &[u8]) -> Self {
        Self::one(layout, bytes)
    }
}

impl RecordReply for RecordBatch {
    const LAYOUT: Option<&'static RecordLayout> = None;

    fn one(layout: &'static RecordLayout, bytes: &[u8]) -> Self {
        let memory = Memory::Owned(Buffer::copied(bytes));
        Self { layout, count: 1, single: true, memory }
    }

    fn many(batch: RecordBatch) -> Result<Self, RecordBatch> {
        Ok(batch)
    }
}
