//! What an asyncio queue waits in: a mailbox of the core, or the queue of 256 levels.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use dotcompute_mailbox::{Band, Mailbox, SendError, TrySendError};

use super::Item;
use super::slot::Slot;

/// How a put ended.
pub(super) enum Put {
    Done,
    /// There is no room, and that is final: for now, or because the time is over.
    Full,
}

/// A wait that has to be polled with the GIL held; it looks at its slot to see whether its time is
/// over.
pub(super) type Waiting<T> = Pin<Box<dyn Future<Output = T> + Send + Sync>>;

pub(super) trait Line: Send + Sync {
    /// Puts without waiting. `Err` gives the object back: it may wait for room.
    fn try_put(&self, priority: u8, item: Item) -> Result<Put, Item>;
    fn try_get(&self) -> Option<Item>;
    fn wait_put(self: Arc<Self>, priority: u8, item: Item, slot: Arc<Slot>) -> Waiting<Put>;
    /// `None`: the time is over.
    fn wait_get(self: Arc<Self>, slot: Arc<Slot>) -> Waiting<Option<Item>>;
}

/// Polls `future` until it is ready or the time of `slot` is over.
pub(super) async fn within<F: Future + Unpin>(future: &mut F, slot: &Slot) -> Option<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if slot.is_expired() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// A queue's mailbox is never closed.
impl Line for Mailbox<Item> {
    fn try_put(&self, priority: u8, item: Item) -> Result<Put, Item> {
        match self.try_send(Band::from_priority(priority), item) {
            Ok(_) => Ok(Put::Done),
            Err(TrySendError::Full(item) | TrySendError::Closed(item)) => Err(item),
        }
    }

    fn try_get(&self) -> Option<Item> {
        self.try_receive().ok()
    }

    fn wait_put(self: Arc<Self>, priority: u8, item: Item, slot: Arc<Slot>) -> Waiting<Put> {
        Box::pin(async move {
            let mut send = self.send(Band::from_priority(priority), item);
            let sent = within(&mut send, &slot).await;
            match sent.unwrap_or_else(|| send.give_up()) {
                Ok(_) => Put::Done,
                Err(SendError::Full(_) | SendError::Timeout(_) | SendError::Closed(_)) => Put::Full,
            }
        })
    }

    fn wait_get(self: Arc<Self>, slot: Arc<Slot>) -> Waiting<Option<Item>> {
        Box::pin(async move {
            let mut receive = self.receive();
            within(&mut receive, &slot).await.and_then(Result::ok)
        })
    }
}
