//! What ring kernels exchange: messages, and the envelope that each travels in.

use std::mem::size_of_val;
use std::num::NonZeroU32;

use crate::id::MessageId;

/// What a ring kernel can be sent: owned data that may cross threads.
///
/// Inside one process a message is moved, never encoded, so nothing more is asked of it.
///
/// ```
/// use dotcompute_core::Message;
///
/// struct Reading {
///     celsius: f64,
/// }
///
/// impl Message for Reading {
///     const TYPE_NAME: &'static str = "Reading";
/// }
///
/// assert_eq!(Reading { celsius: 21.5 }.default_priority(), 128);
/// ```
pub trait Message: Send + Sync + Sized + 'static {
    /// The name of this type in the registry, in errors and on the wire. Two types that are sent
    /// to the same places need different names.
    const TYPE_NAME: &'static str;

    /// The priority of a message that is sent without one: 0 (lowest) to 255.
    fn default_priority(&self) -> u8 {
        DEFAULT_PRIORITY
    }

    /// About how much memory this message takes, in bytes, with what it owns. It counts towards
    /// the bound of the dead letters.
    fn payload_bytes(&self) -> usize {
        size_of_val(self)
    }
}

/// The priority of a message whose type names no other.
pub const DEFAULT_PRIORITY: u8 = 128;

/// A message with what the runtime needs to know about it: its id, what it answers, its priority.
///
/// Anything that is sent is an envelope; a bare message becomes one with a new id and the default
/// priority of its type.
///
/// ```
/// use dotcompute_core::{Envelope, Message};
///
/// struct Reading(f64);
/// impl Message for Reading {
///     const TYPE_NAME: &'static str = "Reading";
/// }
///
/// let question = Envelope::from(Reading(21.5));
/// let answer = Envelope::new(Reading(70.7)).with_correlation(question.id).with_priority(200);
/// assert_eq!(answer.correlation_id, Some(question.id));
/// assert_eq!(answer.priority, 200);
/// ```
#[derive(Debug)]
pub struct Envelope<M> {
    /// The name of this message.
    pub id: MessageId,
    /// The id of the message that this one answers, if it answers one.
    pub correlation_id: Option<MessageId>,
    /// 0 (lowest) to 255. Of it only the band counts: 224 and above, 160 and above, 64 and above,
    /// and the rest.
    pub priority: u8,
    /// The message itself.
    pub message: M,
    /// Who waits for the answer, if this message was asked and not just sent.
    pub(crate) ask: Option<AskToken>,
    pub(crate) delivery_count: u8,
    /// In hand: the kernel has replied to it.
    pub(crate) answered: bool,
}

/// Names one waiting ask of a runtime: a place in its table of asks, and which of the asks that
/// used that place in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskToken {
    pub(crate) index: u32,
    /// Not 0, which is how an envelope says that nobody waits.
    pub(crate) generation: NonZeroU32,
}

/// What stays of an envelope whose message was taken out.
#[derive(Clone, Copy, Debug)]
#[repr(C)] // First what tells whether an `Option` of it has one.
pub(crate) struct Taken {
    pub(crate) correlation_id: Option<MessageId>,
    pub(crate) id: MessageId,
    pub(crate) priority: u8,
    pub(crate) ask: Option<AskToken>,
    pub(crate) delivery_count: u8,
    pub(crate) answered: bool,
}

impl<M> Envelope<M> {
    pub(crate) fn taken(&self) -> Taken {
        let Self { id, correlation_id, priority, ask, delivery_count, answered, .. } = *self;
        Taken { id, correlation_id, priority, ask, delivery_count, answered }
    }

    pub(crate) fn into_parts(self) -> (Taken, M) {
        (self.taken(), self.message)
    }
}

impl<M: Message> Envelope<M> {
    /// An envelope around `message`, with a new id and the default priority of its type.
    pub fn new(message: M) -> Self {
        Self::with_parts(MessageId::next(), None, message.default_priority(), message)
    }
}

impl<M> Envelope<M> {
    /// An envelope of all these. For executors, which bring messages to where their kernels run.
    pub fn with_parts(
        id: MessageId,
        correlation_id: Option<MessageId>,
        priority: u8,
        message: M,
    ) -> Self {
        Self {
            id,
            correlation_id,
            priority,
            message,
            ask: None,
            delivery_count: 1,
            answered: false,
        }
    }

    /// The same with this id.
    #[must_use]
    pub fn with_id(mut self, id: MessageId) -> Self {
        self.id = id;
        self
    }

    /// The same as an answer to the message `id`.
    #[must_use]
    pub fn with_correlation(mut self, id: MessageId) -> Self {
        self.correlation_id = Some(id);
        self
    }

    /// The same with this priority: 0 (lowest) to 255.
    #[must_use]
    pub fn with_priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// The same as the delivery of this number. For executors, which bring an envelope to where its
    /// kernel runs.
    #[must_use]
    pub fn with_delivery_count(mut self, delivery_count: u8) -> Self {
        self.delivery_count = delivery_count;
        self
    }

    /// Whether somebody waits for the answer to it.
    pub fn is_asked(&self) -> bool {
        self.ask.is_some()
    }

    /// Which delivery of this message this is: 1 at first, more after each fault that put it back.
    ///
    /// ```
    /// # use dotcompute_core::{Envelope, Message};
    /// # struct Reading(f64);
    /// # impl Message for Reading { const TYPE_NAME: &'static str = "Reading"; }
    /// assert_eq!(Envelope::new(Reading(21.5)).delivery_count(), 1);
    /// ```
    pub fn delivery_count(&self) -> u8 {
        self.delivery_count
    }
}

/// A copy is the same message by its id, correlation and priority. Nobody waits for the answer to
/// it, and its deliveries count from the first.
impl<M: Clone> Clone for Envelope<M> {
    fn clone(&self) -> Self {
        Self::with_parts(self.id, self.correlation_id, self.priority, self.message.clone())
    }
}

impl<M: Message> From<M> for Envelope<M> {
    fn from(message: M) -> Self {
        Self::new(message)
    }
}
