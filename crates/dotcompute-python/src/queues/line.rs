//! What an asyncio queue waits in: a mailbox of the core, or the queue of 256 levels.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use dotcompute::sleep_until;
use dotcompute_mailbox::{Band, Mailbox, SendError, TrySendError};

use super::Item;
use super::levels::Levels;
use super::timeout::Timeout;

/// How a put ended.
pub(super) enum Put {
    Done,
    /// There is no room, and that is final: for now, or because the time is over.
    Full,
}

/// A wait that owns what it waits in.
pub(super) type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send>>;

pub(super) enum Line {
    /// Never closed.
    Mailbox(Arc<Mailbox<Item>>),
    Levels(Arc<Levels>),
}

impl Line {
    pub(super) fn wait_put(self, priority: u8, item: Item, timeout: Timeout) -> Waiting<Put> {
        match self {
            Self::Levels(levels) => Box::pin(async move {
                within(&mut levels.put(priority, item), timeout).await.unwrap_or(Put::Full)
            }),
            Self::Mailbox(mailbox) => Box::pin(async move {
                let mut send = mailbox.send(Band::from_priority(priority), item);
                let sent = within(&mut send, timeout).await;
                match sent.unwrap_or_else(|| send.give_up()) {
                    Ok(_) => Put::Done,
                    Err(SendError::Full(_) | SendError::Timeout(_) | SendError::Closed(_)) => {
                        Put::Full
                    }
                }
            }),
        }
    }

    /// `None`: the time is over.
    pub(super) fn wait_get(self, timeout: Timeout) -> Waiting<Option<Item>> {
        match self {
            Self::Levels(levels) => {
                Box::pin(async move { within(&mut levels.get(), timeout).await })
            }
            Self::Mailbox(mailbox) => Box::pin(async move {
                within(&mut mailbox.receive(), timeout).await.and_then(Result::ok)
            }),
        }
    }
}

/// Polls `future` until it is ready or the time is over.
async fn within<F: Future + Unpin>(future: &mut F, timeout: Timeout) -> Option<F::Output> {
    let mut sleep = timeout.deadline().map(sleep_until);
    poll_fn(|cx| match (Pin::new(&mut *future).poll(cx), &mut sleep) {
        (Poll::Ready(output), _) => Poll::Ready(Some(output)),
        (Poll::Pending, Some(sleep)) => Pin::new(sleep).poll(cx).map(|_| None),
        (Poll::Pending, None) => Poll::Pending,
    })
    .await
}

/// Puts and gets without waiting.
pub(super) trait Try {
    /// `Err` gives the object back: it may wait for room.
    fn try_put(&self, priority: u8, item: Item) -> Result<Put, Item>;
    fn try_get(&self) -> Option<Item>;
}

impl Try for Mailbox<Item> {
    #[inline]
    fn try_put(&self, priority: u8, item: Item) -> Result<Put, Item> {
        match self.try_send(Band::from_priority(priority), item) {
            Ok(_) => Ok(Put::Done),
            Err(TrySendError::Full(item) | TrySendError::Closed(item)) => Err(item),
        }
    }

    #[inline]
    fn try_get(&self) -> Option<Item> {
        self.try_receive().ok()
    }
}
