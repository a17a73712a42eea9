//! The way of a reply out of a kernel: to the ask that it belongs to, or to the output mailbox.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use dotcompute_mailbox::{self as mailbox, Backpressure, Band};

use super::Cell;
use super::life::Waiter;
use crate::ask::Routed;
use crate::dead_letter::{self, DeadLetter, DeadLetterReason};
use crate::id::MessageId;
use crate::lifecycle::wake_all;
use crate::message::{AskToken, Envelope, Message};
use crate::telemetry::Telemetry;

impl<M: Message, R: Message> Cell<M, R> {
    /// Brings a reply to the ask that it belongs to. What comes back is for the output mailbox, or
    /// for the next kernel.
    pub(crate) fn route(
        &self,
        in_hand: Option<(MessageId, Option<AskToken>)>,
        reply: Envelope<R>,
    ) -> Option<Envelope<R>> {
        // Most replies that nobody asked for answer the message in hand, and need no search.
        if let Some((id, None)) = in_hand
            && reply.correlation_id == Some(id)
        {
            return Some(reply);
        }
        let routed = self.asks.lock().route(in_hand, reply);
        match routed {
            Routed::Answered(waker) => {
                Telemetry::count(&self.telemetry.asks_answered);
                wake_all(waker);
                None
            }
            Routed::Late(reply) => {
                self.dead_reply(reply, DeadLetterReason::LateReply);
                None
            }
            Routed::Passing(reply, end) if end != self.place() && self.is_connected() => {
                Some(reply)
            }
            Routed::Passing(reply, _) => {
                self.answer_elsewhere(reply);
                None
            }
            Routed::Output(reply) => Some(reply),
        }
    }

    /// As [`output`](Self::output), as far as that takes no waiting; else the reply comes back, for
    /// [`forward`](Self::forward).
    pub(crate) fn try_output(&self, reply: Envelope<R>) -> Result<bool, Envelope<R>> {
        let band = Band::from_priority(reply.priority);
        let sent = match self.options.reply_backpressure {
            // A reply that waits for room was not rejected.
            Backpressure::Block => self.replies.offer(band, reply),
            _ => self.replies.try_send(band, reply),
        };
        match sent {
            Ok(admission) => dead_letter::discard(admission),
            Err(mailbox::TrySendError::Full(reply))
                if self.options.reply_backpressure == Backpressure::Block =>
            {
                return Err(reply);
            }
            Err(mailbox::TrySendError::Full(reply)) => {
                self.dead_reply(reply, DeadLetterReason::NoRoom);
            }
            Err(mailbox::TrySendError::Closed(reply)) if !self.has_ended() => return Err(reply),
            Err(mailbox::TrySendError::Closed(reply)) => {
                self.dead_reply(reply, DeadLetterReason::Unread);
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts a reply that nobody asked for into the output mailbox, and waits for room there if that
    /// is its policy; `false` if the kernel had to stop instead, and the reply became a dead letter.
    /// It comes back if the kernel is or was connected meanwhile: it is to be
    /// [forwarded](Self::forward).
    pub(crate) async fn output(&self, reply: Envelope<R>) -> Result<bool, Envelope<R>> {
        let mut send = self.replies.send(Band::from_priority(reply.priority), reply);
        let mut stop = Waiter::new(&self.lifecycle);
        let outcome = std::future::poll_fn(|cx| {
            if let Poll::Ready(outcome) = Pin::new(&mut send).poll(cx) {
                return Poll::Ready(Some(outcome));
            }
            // A drain goes on waiting for a reader; a stop at once does not.
            stop.poll(cx, |lifecycle| (lifecycle.stop == Some(false)).then_some(())).map(|()| None)
        })
        .await;
        let (reply, reason, goes_on) = match outcome.unwrap_or_else(|| send.give_up()) {
            Ok(_) => return Ok(true),
            Err(mailbox::SendError::Full(reply)) => (reply, DeadLetterReason::NoRoom, true),
            Err(mailbox::SendError::Timeout(reply)) => (reply, DeadLetterReason::NoRoom, false),
            Err(mailbox::SendError::Closed(reply)) if !self.has_ended() => return Err(reply),
            Err(mailbox::SendError::Closed(reply)) => (reply, DeadLetterReason::Unread, false),
        };
        self.dead_reply(reply, reason);
        Ok(goes_on)
    }

    pub(crate) fn dead_reply(&self, reply: Envelope<R>, reason: DeadLetterReason) {
        self.dead_letter(DeadLetter::of(&self.id, reply, reason, false));
    }

    pub(crate) fn dead_letter(&self, letter: DeadLetter) {
        tracing::debug!(kernel = %self.id, id = %letter.id, reason = %letter.reason, "dead letter");
        match self.runtime.upgrade() {
            Some(runtime) => runtime.dead_letters.push(letter),
            None => dead_letter::discard(letter),
        }
    }
}
