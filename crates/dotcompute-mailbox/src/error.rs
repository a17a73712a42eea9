//! What can go wrong when sending and receiving. Every send error gives the message back.

use std::error::Error;
use std::fmt;

/// The mailbox is closed. For a receiver: and nothing is left for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the mailbox is closed")
    }
}

impl Error for Closed {}

/// Why [`Mailbox::try_send`](crate::Mailbox::try_send) did not take the message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The mailbox is full, and its policy is to block (this call does not) or to reject.
    Full(T),
    /// The mailbox is closed.
    Closed(T),
}

impl<T> TrySendError<T> {
    /// The message that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Closed(value) => value,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Full(_) => "Full",
            Self::Closed(_) => "Closed",
        }
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(self.name()).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("the mailbox is full"),
            Self::Closed(_) => Closed.fmt(f),
        }
    }
}

impl<T> Error for TrySendError<T> {}

/// Why a send that may wait did not take the message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendError<T> {
    /// The mailbox is full, and its policy is to reject.
    Full(T),
    /// The mailbox stayed full until the deadline.
    Timeout(T),
    /// The mailbox is closed, or was closed during the wait.
    Closed(T),
}

impl<T> SendError<T> {
    /// The message that was not sent.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Timeout(value) | Self::Closed(value) => value,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Full(_) => "Full",
            Self::Timeout(_) => "Timeout",
            Self::Closed(_) => "Closed",
        }
    }
}

impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple(self.name()).finish_non_exhaustive()
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full(_) => f.write_str("the mailbox is full"),
            Self::Timeout(_) => f.write_str("the mailbox stayed full until the deadline"),
            Self::Closed(_) => Closed.fmt(f),
        }
    }
}

impl<T> Error for SendError<T> {}

/// Why a receive that does not wait found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryReceiveError {
    /// Nothing is queued, or the mailbox is paused.
    Empty,
    /// The mailbox is closed and hands out nothing more.
    Closed,
}

impl fmt::Display for TryReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the mailbox is empty or paused"),
            Self::Closed => f.write_str("the mailbox is closed and drained"),
        }
    }
}

impl Error for TryReceiveError {}

/// Why a receive that waits on the calling thread found nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveError {
    /// Nothing came until the deadline.
    Timeout,
    /// The mailbox is closed and hands out nothing more.
    Closed,
}

impl fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no message came until the deadline"),
            Self::Closed => f.write_str("the mailbox is closed and drained"),
        }
    }
}

impl Error for ReceiveError {}
