//! The host's end of a kernel on a device: a future that is its body.
//!
//! Positions count the messages that were taken out of the mailbox for one seat, from 0; the token of
//! a record on the device is the position of its message, in 32 bits. Ids, bands and askers stay
//! here: the message is *in hand* until the device is done with it. A message is one record, or a
//! batch of them, each of which takes a slot.
//!
//! What the device is done with, it says band by band (`Port::done`), in the order in which the
//! messages were sent in that band; a reply says it too. What it had not begun when it stopped goes
//! back to where it was queued.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, ready};

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::codes;
use dotcompute_abi::control::{
    COMMAND_DRAIN, COMMAND_HOLD, COMMAND_RUN, COMMAND_STOP, STATE_FAILED, STATE_STOPPED,
};
use dotcompute_abi::slot::FLAG_LOG;
use dotcompute_core::compiled::{RecordBatch, RecordMessage, RecordReply};
use dotcompute_core::{BoxError, Context, Envelope, Fault, FaultKind, MessageId, Stopped};
use dotcompute_mailbox::Band;
use dotcompute_mailbox::sync::lock;

use crate::grid::Report;
use crate::kernels::Layouts;
use crate::pump::{Desk, Need, Station};
use crate::resident::{Loss, ResidentError, Seated};

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Positions are told apart on the device modulo this: [`TOKEN_NONE`] is none of them.
///
/// [`TOKEN_NONE`]: dotcompute_abi::device::TOKEN_NONE
const TOKENS: u64 = dotcompute_abi::device::TOKEN_NONE as u64;

/// Hands messages to one seat and brings back its replies, until the kernel has ended there.
pub(crate) struct Proxy<M: RecordMessage, R: RecordReply> {
    context: Context<M, R>,
    desk: Arc<Desk>,
    layouts: Layouts,
    /// How many records may be on the device at once.
    window: usize,
    /// The messages in hand: as many as the context has lent.
    entries: VecDeque<Entry>,
    /// The position of the first of them.
    base: u64,
    /// The position of the first that is not wholly on the device.
    sending: u64,
    /// The records on the device, band by band, in order.
    bands: [VecDeque<Run>; 4],
    in_flight: usize,
    /// How many entries somebody waits for and are not settled.
    asks: usize,
    /// Positions that the device is done with, to be settled.
    finished: VecDeque<u64>,
    command: u32,
    /// A reply that waits for room in the output mailbox.
    blocked: Option<Boxed<Result<(), Stopped>>>,
    /// Ready once the kernel is to end at once.
    stop: Option<Boxed<()>>,
    paused: bool,
    pause_changes: Boxed<()>,
    /// The last line that was logged as an error, and the token of its message.
    last_error: Option<(u32, String)>,
    scratch: Vec<u64>,
}

/// A message in hand.
struct Entry {
    id: MessageId,
    single: bool,
    asked: bool,
    settled: bool,
    /// Its records, those that are not sent yet, and those that are not done.
    records: usize,
    unsent: usize,
    undone: usize,
    /// The replies to a batch, to be sent as one.
    replies: Vec<u8>,
    replied: bool,
}

/// Records of one message that follow each other in a band.
struct Run {
    position: u64,
    records: usize,
}

impl<M: RecordMessage, R: RecordReply> Proxy<M, R> {
    pub(crate) fn new(
        context: Context<M, R>,
        desk: Arc<Desk>,
        seated: Seated,
        layouts: Layouts,
        window: usize,
    ) -> Self {
        *lock(&desk.place) = Some((Arc::clone(seated.resident()), seated.number()));
        *lock(&desk.station) =
            Some(Station { seated, done: [0; 4], state: 0, blocked: false, need: Need::Rest });
        let stop = Box::pin(context.stop_at_once());
        let pause_changes = Box::pin(context.pause_changes(false));
        Self {
            context,
            desk,
            layouts,
            window,
            entries: VecDeque::new(),
            base: 0,
            sending: 0,
            bands: Default::default(),
            in_flight: 0,
            asks: 0,
            finished: VecDeque::new(),
            command: COMMAND_HOLD,
            blocked: None,
            stop: Some(stop),
            paused: false,
            pause_changes,
            last_error: None,
            scratch: Vec::new(),
        }
    }

    /// Does all that can be done now; ready when the kernel has ended on the device.
    fn turn(
        &mut self,
        station: &mut Station,
        cx: &mut TaskContext<'_>,
    ) -> Poll<Result<(), BoxError>> {
        station.seated.watch(cx.waker());
        self.look_at_lifecycle(station, cx);
        // All before the replies are read: what they stand for has been published by then.
        let loss = station.seated.resident().loss().cloned();
        let report = station.seated.port().report();
        let done = station.seated.port().done();
        station.blocked = true;
        ready!(self.bring_replies(station, cx));
        station.blocked = false;
        self.note_done(station, done);
        ready!(self.settle(cx));
        station.state = report.state;
        match report.state {
            STATE_FAILED => return Poll::Ready(Err(self.failed(report))),
            STATE_STOPPED => return Poll::Ready(Ok(())),
            _ => {}
        }
        if let Some(loss) = loss {
            return Poll::Ready(Err(self.lost(&loss, report, station.seated.number())));
        }
        loop {
            self.hand_over(station)?;
            // A batch without records is done with as it is taken: nothing on the device tells of it.
            ready!(self.settle(cx));
            let room = self.window.saturating_sub(self.in_flight);
            if room == 0 || self.sending < self.base + self.entries.len() as u64 {
                return Poll::Pending;
            }
            let before = self.entries.len();
            match ready!(self.context.poll_lend(room, cx)) {
                Ok(count) => (before..before + count).try_for_each(|index| self.enter(index))?,
                Err(Stopped { .. }) => {
                    // Everything that was accepted is on the device, or is not to be.
                    if self.command <= COMMAND_RUN {
                        self.command(station, COMMAND_DRAIN);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    fn command(&mut self, station: &mut Station, command: u32) {
        if self.command != command {
            self.command = command;
            station.seated.port().command(command);
        }
    }

    fn look_at_lifecycle(&mut self, station: &mut Station, cx: &mut TaskContext<'_>) {
        if let Some(stop) = &mut self.stop
            && stop.as_mut().poll(cx).is_ready()
        {
            self.stop = None;
            self.command(station, COMMAND_STOP);
        }
        while self.pause_changes.as_mut().poll(cx).is_ready() {
            self.paused = !self.paused;
            self.pause_changes = Box::pin(self.context.pause_changes(self.paused));
        }
        if self.command <= COMMAND_RUN {
            // What is to end drains first.
            let holds = self.paused && !self.context.is_stopping();
            self.command(station, if holds { COMMAND_HOLD } else { COMMAND_RUN });
        }
    }

    /// Notes a message that was just lent.
    fn enter(&mut self, index: usize) -> Result<(), BoxError> {
        let Some(envelope) = self.context.lent_at(index) else { return Ok(()) };
        let records = match envelope.message.records(self.layouts.input, &mut self.scratch) {
            Ok(records) => records,
            Err(error) => {
                // It cannot be delivered, now or later.
                self.context.mark_delivered_at(index);
                return Err(error);
            }
        };
        let count = records.bytes.len() / self.layouts.input.bytes;
        let asked = self.context.is_lent_ask(index);
        self.asks += usize::from(asked);
        self.entries.push_back(Entry {
            id: envelope.id,
            single: records.single,
            asked,
            settled: false,
            records: count,
            unsent: count,
            undone: count,
            replies: Vec::new(),
            replied: false,
        });
        if count == 0 {
            self.finished.push_back(self.base + index as u64);
        }
        Ok(())
    }

    /// Puts records into the bands' rings, as there is room.
    fn hand_over(&mut self, station: &mut Station) -> Result<(), BoxError> {
        let bytes = self.layouts.input.bytes;
        while let Some(entry) = self.entries.get_mut((self.sending - self.base) as usize) {
            let count = entry.unsent.min(self.window.saturating_sub(self.in_flight));
            if count == 0 && entry.unsent > 0 {
                break;
            }
            let index = (self.sending - self.base) as usize;
            let Some(envelope) = self.context.lent_at(index) else { break };
            let records = envelope.message.records(self.layouts.input, &mut self.scratch)?;
            let band = Band::from_priority(envelope.priority);
            let token = (self.sending % TOKENS) as u32;
            let start = (entry.records - entry.unsent) * bytes;
            for record in records.bytes[start..start + count * bytes].chunks_exact(bytes) {
                let record = TaggedRecord::new(token, record).ok_or("a record fits into a slot")?;
                let sent = station.seated.port().send(band, record);
                debug_assert!(sent.is_ok(), "a band holds the window");
            }
            self.in_flight += count;
            entry.unsent -= count;
            if count > 0 {
                self.bands[band as usize].push_back(Run { position: self.sending, records: count });
            }
            if entry.unsent > 0 {
                break;
            }
            self.sending += 1;
        }
        Ok(())
    }

    /// The place among the messages in hand that a token names.
    fn index_of(&self, token: u32) -> Option<usize> {
        let base = self.base % TOKENS;
        let index = (u64::from(token) + TOKENS - base) % TOKENS;
        let index = usize::try_from(index).ok().filter(|_| u64::from(token) != TOKENS)?;
        (index < self.entries.len()).then_some(index)
    }

    /// Takes in what the kernel published and sends each reply where it belongs. Pending while one
    /// waits for room there.
    fn bring_replies(&mut self, station: &mut Station, cx: &mut TaskContext<'_>) -> Poll<()> {
        ready!(self.poll_blocked(cx));
        while let Some(record) = station.seated.port().receive() {
            let header = record.header;
            let payload = &record.payload[..usize::from(header.payload_bytes).min(40)];
            if u32::from(header.flags) & FLAG_LOG != 0 {
                self.log(header.token, payload);
                continue;
            }
            let Some(layout) = self.layouts.output else { continue };
            let index = self.index_of(header.token);
            if let Some(entry) = index.and_then(|index| self.entries.get_mut(index))
                && !entry.single
            {
                entry.replies.extend_from_slice(payload);
                continue;
            }
            let mut reply = Envelope::new(R::one(layout, payload));
            reply.correlation_id = index.map(|index| self.entries[index].id);
            let sent = self.context.try_send_from(index, reply);
            if let Some(index) = index
                && self.layouts.max_emit == 0
            {
                // There is one reply at most: it says that the message is done with.
                self.finished.push_back(self.base + index as u64);
            }
            if let Err(reply) = sent {
                self.blocked = Some(Box::pin(self.context.output(reply)));
                ready!(self.poll_blocked(cx));
            }
        }
        Poll::Ready(())
    }

    fn poll_blocked(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        if let Some(blocked) = &mut self.blocked {
            // Of a kernel that had to stop meanwhile the reply is a dead letter.
            let _ = ready!(blocked.as_mut().poll(cx));
            self.blocked = None;
        }
        Poll::Ready(())
    }

    fn log(&mut self, token: u32, payload: &[u8]) {
        let Some((level, text)) = payload.split_first_chunk::<4>() else { return };
        let (level, text) = (i32::from_le_bytes(*level), String::from_utf8_lossy(text));
        let kernel = self.context.id();
        match level {
            40.. => tracing::error!(%kernel, "{text}"),
            30.. => tracing::warn!(%kernel, "{text}"),
            20.. => tracing::info!(%kernel, "{text}"),
            _ => tracing::debug!(%kernel, "{text}"),
        }
        if level >= 40 {
            self.last_error = Some((token, text.into_owned()));
        }
    }

    /// Notes what the device is done with, which what its handler failed at is not.
    fn note_done(&mut self, station: &mut Station, done: [u64; 4]) {
        for (band, runs) in self.bands.iter_mut().enumerate() {
            let mut more = done[band].wrapping_sub(station.done[band]) as usize;
            while let Some(run) = runs.front_mut().filter(|_| more > 0) {
                let count = run.records.min(more);
                let index = (run.position.saturating_sub(self.base)) as usize;
                // One that was settled by its reply may be gone.
                let known = run.position >= self.base;
                if let Some(entry) = self.entries.get_mut(index).filter(|_| known) {
                    entry.undone -= count;
                    if entry.undone == 0 {
                        self.finished.push_back(run.position);
                    }
                }
                self.in_flight -= count;
                more -= count;
                run.records -= count;
                if run.records == 0 {
                    runs.pop_front();
                }
            }
        }
        station.done = done;
    }

    /// Settles what the device is done with; a batch has its replies sent first.
    fn settle(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        ready!(self.poll_blocked(cx));
        while let Some(&position) = self.finished.front() {
            let index = (position.saturating_sub(self.base)) as usize;
            let known = position >= self.base;
            let Some(entry) = self.entries.get_mut(index).filter(|entry| known && !entry.settled)
            else {
                self.finished.pop_front();
                continue;
            };
            if !entry.single && !std::mem::replace(&mut entry.replied, true) {
                let (id, replies) = (entry.id, std::mem::take(&mut entry.replies));
                // Whoever asks with a batch gets one, also an empty one.
                let wanted = entry.asked || !replies.is_empty();
                if let Some(layout) = self.layouts.output.filter(|_| wanted)
                    && let Some(batch) = RecordBatch::copied(layout, &replies)
                {
                    let sent = match R::many(batch) {
                        Ok(reply) => {
                            let reply = Envelope::new(reply).with_correlation(id);
                            self.context.try_send_from(Some(index), reply)
                        }
                        // Each is a message of its own.
                        Err(batch) => self.send_singly(index, id, &batch),
                    };
                    if let Err(reply) = sent {
                        self.blocked = Some(Box::pin(self.context.output(reply)));
                        ready!(self.poll_blocked(cx));
                        // There may be more of it.
                        continue;
                    }
                }
            }
            self.finished.pop_front();
            if let Some(entry) = self.entries.get_mut(index) {
                entry.settled = true;
                self.asks -= usize::from(entry.asked);
                self.context.count_lent_records(entry.records);
            }
            let moved = self.context.settle_lent_at(index);
            self.entries.drain(..moved.min(self.entries.len()));
            self.base += moved as u64;
        }
        Poll::Ready(())
    }

    /// The replies to a batch, one by one; what comes back waits for room, and those behind it are
    /// in its stead sent when there is.
    fn send_singly(
        &mut self,
        index: usize,
        id: MessageId,
        batch: &RecordBatch,
    ) -> Result<(), Envelope<R>> {
        let layout = batch.layout();
        for (number, record) in batch.bytes().chunks_exact(layout.bytes).enumerate() {
            let reply = Envelope::new(R::one(layout, record)).with_correlation(id);
            if let Err(reply) = self.context.try_send_from(Some(index), reply) {
                // The entry keeps the rest, and is looked at again.
                if let Some(entry) = self.entries.get_mut(index) {
                    let rest = (number + 1) * layout.bytes;
                    entry.replies.extend_from_slice(&batch.bytes()[rest..]);
                    entry.replied = entry.replies.is_empty();
                }
                return Err(reply);
            }
        }
        Ok(())
    }

    /// The kernel failed; what it failed at is no longer to be delivered as if for the first time.
    fn failed(&mut self, report: Report) -> BoxError {
        let index = self.index_of(report.fault_token);
        let mut text = match &self.last_error {
            Some((token, text)) if *token == report.fault_token && index.is_some() => text.clone(),
            _ => describe(report.fault),
        };
        if let Some(index) = index {
            self.context.mark_delivered_at(index);
            let entry = &self.entries[index];
            if !entry.single {
                let at = entry.records - entry.undone;
                text = format!("{text} (at record {at} of {})", entry.records);
            }
        }
        Fault::code_with(report.fault, text).into()
    }

    fn lost(&mut self, loss: &Loss, report: Report, seat: u32) -> BoxError {
        self.mark_begun(report);
        let code = match loss.error {
            ResidentError::Stuck => codes::FAULT_STUCK,
            _ => codes::FAULT_LOST,
        };
        let suspects = match &loss.suspects[..] {
            [] => String::new(),
            [only] if *only == seat => "; this kernel's handler was at work then".to_owned(),
            seats if seats.contains(&seat) => {
                format!("; the handlers of seats {seats:?} were at work then, this kernel's too")
            }
            seats => format!("; the handlers of seats {seats:?} were at work then"),
        };
        let message = format!("the grid of the kernel was lost: {}{suspects}", loss.error);
        Fault::reported(FaultKind::Code(code), message).into()
    }

    /// What is on the device may have had its effects, if the handler is at work.
    fn mark_begun(&mut self, report: Report) {
        if report.busy == 0 {
            return;
        }
        for run in self.bands.iter().flatten() {
            if let Some(index) = run.position.checked_sub(self.base) {
                self.context.mark_delivered_at(index as usize);
            }
        }
    }

    fn need(&self) -> Need {
        match () {
            () if self.asks > 0 => Need::Spin,
            () if self.in_flight > 0 || self.command > COMMAND_RUN => Need::Look,
            () => Need::Rest,
        }
    }
}

/// A code of the runtime's, in words.
fn describe(code: i32) -> String {
    match code {
        codes::FAULT_PANIC => "the handler panicked".to_owned(),
        codes::FAULT_BAD_RESULT => "the handler returned a number above 1".to_owned(),
        codes::FAULT_DEADLINE => "the handler was told to stop while it ran".to_owned(),
        codes::FAULT_BOUNDS => "an index was out of bounds".to_owned(),
        codes::FAULT_EMIT_LIMIT => "the handler emitted more than it declared".to_owned(),
        codes::FAULT_RECORD_SIZE => "a record has another size than the handler takes".to_owned(),
        code => format!("handler returned fault code {code}"),
    }
}

impl<M: RecordMessage, R: RecordReply> Future for Proxy<M, R> {
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        // Out of its place meanwhile: what a reply wakes is foreign code.
        let Some(mut station) = lock(&this.desk.station).take() else {
            return Poll::Ready(Err("a kernel's proxy has its seat".into()));
        };
        let polled = this.turn(&mut station, cx);
        station.need = this.need();
        *lock(&this.desk.station) = Some(station);
        polled
    }
}

impl<M: RecordMessage, R: RecordReply> Drop for Proxy<M, R> {
    fn drop(&mut self) {
        *lock(&self.desk.place) = None;
        let station = lock(&self.desk.station).take();
        if let Some(mut station) = station {
            let report = station.seated.port().report();
            // Killed while the handler is at work.
            if report.state != STATE_FAILED && report.state != STATE_STOPPED {
                self.mark_begun(report);
            }
        }
    }
}
