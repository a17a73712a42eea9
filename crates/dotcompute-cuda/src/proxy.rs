//! The host's end of a kernel on a device: a future that is its body.
//!
//! Positions count the messages that were taken out of the mailbox for one seat, from 0; the token of
//! a record on the device is the position of its message, in 32 bits. Ids, bands and askers stay
//! here: the message is *in hand* until the device is done with it. A message is one record, or a
//! batch of them, each of which takes a slot.
//!
//! A kernel that is connected to another one of its grid has its replies go there on the device, where
//! they can: `Route`. Of that come back counts alone, and at the end of all the answers to asks.
//! Messages keep their order on either way: what goes by the host (a batch, say) waits on the device
//! until what went past it is worked off, and the next one goes past it only when the next kernel is
//! quiet.
//!
//! What the device is done with, it says band by band (`Port::done`), in the order in which the
//! messages were sent in that band; a reply says it too. What it had not begun when it stopped goes
//! back to where it was queued.

mod patience;
mod targets;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker, ready};
use std::time::Instant;

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::codes;
use dotcompute_abi::control::{
    COMMAND_DRAIN, COMMAND_HOLD, COMMAND_RUN, COMMAND_STOP, STATE_FAILED, STATE_STOPPED,
};
use dotcompute_abi::slot::{
    FLAG_FAULTED, FLAG_HOME, FLAG_LATE, FLAG_LOG, FLAG_SENT, SlotHeader, tagged_slots,
};
use dotcompute_core::compiled::{RecordBatch, RecordMessage, RecordReply};
use dotcompute_core::{
    BoxError, Context, Envelope, Fault, FaultKind, MessageId, NextStage, Stopped,
};
use dotcompute_mailbox::Band;
use dotcompute_mailbox::sync::lock;

use crate::direct::{Seat, passes};
use crate::grid::{Report, Way};
use crate::kernels::{Layouts, Targets};
use crate::pump::{Desk, Need, Station};
use crate::resident::{Loss, ResidentError, Seated};
use patience::Patience;
use targets::Ways;

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Positions are told apart on the device modulo this: the tokens from here on are none of them.
const TOKENS: u64 = dotcompute_abi::device::TOKEN_LAST as u64 + 1;

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
    /// How many entries somebody waits for and are not settled, and how many are batches.
    asks: usize,
    batches: usize,
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
    /// The kernel that this one is connected to, as it was when the context's word was read.
    next: Option<NextStage<R>>,
    link_word: u32,
    link_changes: Boxed<()>,
    route: Route,
    /// Whether what was sent last took the edge.
    goes_past_host: bool,
    /// How long nothing is handed over, though there is something, so that the next can take it; and whether it is
    /// waited for that now.
    patience: Patience,
    waits: bool,
    /// Replies that the next kernel did not take, each as its slots.
    returned: VecDeque<Vec<TaggedRecord>>,
    /// What was published and has to wait: its payload is the one below.
    held: Option<SlotHeader>,
    /// The payload of what was published last.
    payload: Vec<u8>,
    /// How many slots a message takes.
    slots: usize,
    /// This kernel's seat, for those before it.
    seat: Seat,
    /// Of what the seat reports, what is counted.
    passed: u64,
    received: u64,
    /// A message from the device at which the kernel failed came back: it is in hand.
    adopted: bool,
    /// The tokens of asks that went on and may not have been answered.
    passages: Vec<u32>,
    /// Where the handler sends to.
    ways: Ways,
}

/// The way of replies to the next kernel.
enum Route {
    /// By the host. The seat is one to which there is no edge.
    Host(Option<Seat>),
    /// An edge is being made.
    Making(Seat, Boxed<Result<(), ResidentError>>),
    /// By an edge on the device.
    Edge(Seat),
    /// The edge is being done away with.
    Leaving(Seat, Boxed<Result<Vec<Vec<TaggedRecord>>, ResidentError>>),
}

/// A message in hand.
struct Entry {
    id: MessageId,
    token: u32,
    band: Band,
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
        targets: &Targets,
        window: usize,
    ) -> Self {
        let is_here = |seat: &Seat| {
            Arc::ptr_eq(&seat.resident, seated.resident()) && seat.number == seated.number()
        };
        // The first seat is taken before there is a proxy.
        let known = desk.seat().filter(is_here);
        let seat = known.unwrap_or_else(|| {
            let seat = Seat::new(&desk, &seated, layouts.input);
            desk.set_seat(Some(seat.clone()));
            seat
        });
        *lock(&desk.station) = Some(Station::new(seated));
        // It takes messages now.
        desk.wake_before();
        let stop = Box::pin(context.stop_at_once());
        let pause_changes = Box::pin(context.pause_changes(false));
        let link_word = context.link_word();
        Self {
            next: context.next_stage(),
            link_word,
            link_changes: Box::pin(context.link_changes(link_word)),
            route: Route::Host(None),
            goes_past_host: false,
            patience: Patience::new(),
            waits: false,
            returned: VecDeque::new(),
            held: None,
            payload: Vec::new(),
            slots: tagged_slots(layouts.input.bytes as u32) as usize,
            seat,
            passed: 0,
            received: 0,
            adopted: false,
            passages: Vec::new(),
            ways: Ways::new(targets),
            context,
            desk,
            layouts,
            // A band has room for so many slots.
            window: window / tagged_slots(layouts.input.bytes as u32) as usize,
            entries: VecDeque::new(),
            base: 0,
            sending: 0,
            bands: Default::default(),
            in_flight: 0,
            asks: 0,
            batches: 0,
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
        station.asleep = true;
        ready!(self.look_at_route(station, cx));
        ready!(self.look_at_edges(station, cx));
        station.asleep = false;
        self.stop_to_fail(station);
        // All before the replies are read: what they stand for has been published by then.
        let loss = station.seated.resident().loss().cloned();
        let report = station.seated.port().report();
        let done = station.seated.port().done();
        // What went over edges is told before what it came of is done: read after that, it lacks nothing,
        // and a kernel of which nothing is under way may be left alone.
        let gone = station.seated.port().report();
        self.note_hold(report);
        station.blocked = true;
        ready!(self.bring_replies(station, cx));
        station.blocked = false;
        self.note_done(station, done);
        self.note_passed(gone, 0);
        self.note_sent(gone);
        self.note_received(report);
        station.received = report.received;
        ready!(self.settle(cx));
        station.state = report.state;
        match report.state {
            STATE_FAILED => return Poll::Ready(Err(self.failed(report))),
            STATE_STOPPED => {
                return Poll::Ready(self.ways.failure.take().map_or(Ok(()), Err));
            }
            _ => {}
        }
        if let Some(loss) = loss {
            return Poll::Ready(Err(self.lost(&loss, report, station.seated.number())));
        }
        if self.adopted {
            // It has failed, and says so next.
            return Poll::Pending;
        }
        self.make_edges(station, report, cx);
        if self.stop_to_fail(station) {
            return Poll::Pending;
        }
        loop {
            // What was sent after the kernel was connected is not to go as if it were not: the link was looked
            // at before the message was taken. `link_changes` wakes this task.
            if self.context.link_word() != self.link_word {
                return Poll::Pending;
            }
            self.hand_over(station, cx)?;
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
                    if self.command <= COMMAND_RUN && !self.holds_for_edges() {
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
            let holds = self.paused && !self.context.is_stopping() || self.holds_for_edges();
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
        self.batches += usize::from(!records.single);
        self.entries.push_back(Entry {
            id: envelope.id,
            token: ((self.base + index as u64) % TOKENS) as u32,
            band: Band::from_priority(envelope.priority),
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
    fn hand_over(
        &mut self,
        station: &mut Station,
        cx: &mut TaskContext<'_>,
    ) -> Result<(), BoxError> {
        let bytes = self.layouts.input.bytes;
        while let Some(entry) = self.entries.get_mut((self.sending - self.base) as usize) {
            if matches!(self.route, Route::Making(..)) {
                break;
            }
            let count = entry.unsent.min(self.window.saturating_sub(self.in_flight));
            if count == 0 && entry.unsent > 0 {
                break;
            }
            let index = (self.sending - self.base) as usize;
            let Some(envelope) = self.context.lent_at(index) else { break };
            let records = envelope.message.records(self.layouts.input, &mut self.scratch)?;
            let band = entry.band;
            let passes = self.route.is_edge() && entry.single && count > 0;
            let passage = passes.then(|| self.context.passage(index)).flatten();
            let may_pass = passes && (!entry.asked || passage.is_some());
            let passes = may_pass && {
                // Else what went by the host would come later.
                let quiet = || self.next.as_ref().is_some_and(NextStage::is_quiet);
                self.goes_past_host || self.in_flight == 0 && quiet()
            };
            if passes && !self.goes_past_host {
                self.patience.pays_off();
            }
            let is_open = || self.next.as_ref().is_some_and(NextStage::is_open);
            self.waits = may_pass && !passes && self.command == COMMAND_RUN && is_open() && {
                let now = Instant::now();
                if !self.waits && self.patience.is_due(now) {
                    self.patience.begin(now);
                }
                self.patience.lasts(now)
            };
            if self.waits {
                // Nobody tells when the next kernel is quiet.
                cx.waker().wake_by_ref();
                break;
            }
            if count > 0 {
                self.goes_past_host = passes;
            }
            if let Some(passage) = passage.filter(|_| passes) {
                entry.token = self.desk.directory().depart(passage);
                self.passages.push(entry.token);
            }
            let start = (entry.records - entry.unsent) * bytes;
            for record in records.bytes[start..start + count * bytes].chunks_exact(bytes) {
                let flags = if passes { 0 } else { FLAG_HOME as u16 };
                let slots = TaggedRecord::slots(entry.token, flags, record);
                let sent = station.seated.port().send_slots(band, slots);
                debug_assert!(sent, "a band holds the window");
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
        if passes(token) {
            return self.entries.iter().position(|entry| entry.token == token);
        }
        let base = self.base % TOKENS;
        let index = (u64::from(token) + TOKENS - base) % TOKENS;
        let index = usize::try_from(index).ok().filter(|_| u64::from(token) < TOKENS)?;
        (index < self.entries.len()).then_some(index)
    }

    /// Takes in what the kernel published and sends each reply where it belongs. Pending while one
    /// waits for room there.
    fn bring_replies(&mut self, station: &mut Station, cx: &mut TaskContext<'_>) -> Poll<()> {
        ready!(self.poll_blocked(cx));
        ready!(self.send_returned(cx));
        loop {
            let header = if let Some(held) = self.held.take() {
                held
            } else if let Some(back) = self.returned.pop_front() {
                self.payload = payload_of(&back);
                back[0].header
            } else if let Some(header) = station.seated.port().receive_into(&mut self.payload) {
                header
            } else {
                break;
            };
            // In its place again when it is read.
            let payload = std::mem::take(&mut self.payload);
            let brought = self.bring(header, &payload, cx);
            self.payload = payload;
            ready!(brought);
        }
        Poll::Ready(())
    }

    /// Takes in one record that the kernel published.
    fn bring(&mut self, header: SlotHeader, payload: &[u8], cx: &mut TaskContext<'_>) -> Poll<()> {
        // In the high byte is the number of an edge.
        let flags = u32::from(header.flags) & 0xff;
        if flags & FLAG_LOG != 0 {
            self.log(header.token, payload);
            return Poll::Ready(());
        }
        if flags & FLAG_SENT != 0 {
            let target = usize::from(header.flags >> 8);
            ready!(self.send_on(target, header.token, payload, cx));
            return Poll::Ready(());
        }
        if let Some(index) = self.index_of(header.token)
            && self.batches > 0
            && self.finish_batches_before(index)
            && self.settle(cx).is_pending()
        {
            self.held = Some(header);
            return Poll::Pending;
        }
        if self.ways.has_failed_at(header.token) {
            return Poll::Ready(());
        }
        let is_late = flags & FLAG_LATE != 0;
        // The token of a late one is still that of the ask that goes on.
        let passage = (!is_late).then(|| self.desk.directory().arrive(header.token)).flatten();
        if flags & FLAG_FAULTED != 0 {
            let message = Envelope::new(M::from_record(self.layouts.input, payload));
            self.context.adopt(message, passage);
            self.adopted = true;
            return Poll::Ready(());
        }
        let Some(layout) = self.layouts.output else { return Poll::Ready(()) };
        if is_late {
            self.context.bury_late(Envelope::new(R::one(layout, payload)));
            return Poll::Ready(());
        }
        let index = self.index_of(header.token);
        if let Some(entry) = index.and_then(|index| self.entries.get_mut(index))
            && !entry.single
        {
            entry.replies.extend_from_slice(payload);
            return Poll::Ready(());
        }
        let mut reply = Envelope::new(R::one(layout, payload));
        let sent = match (index, passage) {
            (None, Some(passage)) => self.context.try_send_through(passage, reply),
            (index, _) => {
                // It answers a message that has no name here where that came from the device.
                let named = index.map(|index| self.entries[index].id);
                reply.correlation_id = Some(named.unwrap_or_else(MessageId::next));
                self.context.try_send_from(index, reply)
            }
        };
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
        Poll::Ready(())
    }

    /// A kernel takes the messages of a band in order: it is done with the batches that were before
    /// this one, whose replies go first. Whether there are any.
    fn finish_batches_before(&mut self, index: usize) -> bool {
        let position = self.base + index as u64;
        let Some(entry) = self.entries.get(index) else { return false };
        let before = self.finished.len();
        for run in self.bands[entry.band as usize].iter().take_while(|run| run.position < position)
        {
            let place = run.position.checked_sub(self.base).map(|place| place as usize);
            let batch = place.and_then(|place| self.entries.get(place));
            if batch.is_some_and(|batch| !batch.single && !batch.settled) {
                self.finished.push_back(run.position);
            }
        }
        self.finished.len() > before
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
            let mut more = done[band].wrapping_sub(station.done[band]) as usize / self.slots;
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
                self.batches -= usize::from(!entry.single);
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
            Some((token, text)) if *token == report.fault_token => text.clone(),
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

    fn need(&mut self) -> Need {
        let directory = self.desk.directory();
        self.passages.retain(|token| directory.is_awaited(*token));
        match () {
            () if self.asks > 0 || !self.passages.is_empty() => Need::Spin,
            () if self.in_flight > 0 || self.command > COMMAND_RUN => Need::Look,
            () if self.waits || self.holds_for_edges() => Need::Look,
            () if self.adopted || self.seat.sent() != self.received => Need::Look,
            () => Need::Rest,
        }
    }

    /// Has an edge made to the next kernel, or done away with. Pending while one is done away with:
    /// what comes back goes before all other replies.
    fn look_at_route(&mut self, station: &mut Station, cx: &mut TaskContext<'_>) -> Poll<()> {
        while self.link_changes.as_mut().poll(cx).is_ready()
            || self.context.link_word() != self.link_word
        {
            self.link_word = self.context.link_word();
            self.link_changes = Box::pin(self.context.link_changes(self.link_word));
            self.next = self.context.next_stage();
            if let Route::Host(refused) = &mut self.route {
                *refused = None;
            }
        }
        loop {
            match &mut self.route {
                Route::Host(refused) => {
                    let Some(to) = next_seat(&self.desk, self.next.as_ref(), self.layouts) else {
                        break;
                    };
                    let is_here = Arc::ptr_eq(&to.resident, station.seated.resident());
                    if !is_here || refused.as_ref().is_some_and(|refused| refused.is(&to)) {
                        break;
                    }
                    let bytes = self.layouts.output.map_or(0, |layout| layout.bytes as u32);
                    let from = station.seated.number();
                    let made = to.resident.link(from, Way::Replies, to.number, bytes);
                    self.route = Route::Making(to, Box::pin(made));
                }
                Route::Making(to, made) => {
                    let Poll::Ready(made) = made.as_mut().poll(cx) else { break };
                    let to = to.clone();
                    self.route = match made {
                        Ok(()) => Route::Edge(to),
                        Err(error) => {
                            let kernel = self.context.id();
                            tracing::debug!(%kernel, %error, "its replies go by the host");
                            Route::Host(Some(to))
                        }
                    };
                }
                Route::Edge(to) => {
                    let next = next_seat(&self.desk, self.next.as_ref(), self.layouts);
                    if next.is_some_and(|next| next.is(to)) {
                        break;
                    }
                    let left = to.resident.unlink(station.seated.number(), Way::Replies);
                    self.route = Route::Leaving(to.clone(), Box::pin(left));
                }
                Route::Leaving(_, left) => {
                    let left = ready!(left.as_mut().poll(cx));
                    // All that took the edge is counted in it.
                    let report = station.seated.port().report();
                    // Of a grid that is lost nothing comes back.
                    let left = left.unwrap_or_default();
                    self.note_passed(report, left.len() as u64);
                    self.returned.extend(left);
                    self.route = Route::Host(None);
                    self.goes_past_host = false;
                }
            }
        }
        Poll::Ready(())
    }

    /// Counts what this kernel has sent to the next one, but for what came back.
    fn note_passed(&mut self, report: Report, back: u64) {
        let more = (report.passed - self.passed).wrapping_sub(back);
        self.passed = report.passed;
        if more == 0 {
            return;
        }
        self.context.count_sent_on(more);
        // One that was asked for may be there before its answer is.
        if let Route::Making(to, _) | Route::Edge(to) | Route::Leaving(to, _) = &self.route {
            to.add_sent(more);
        }
    }

    /// Counts what this kernel has taken from others.
    fn note_received(&mut self, report: Report) {
        // One at which it failed is in hand.
        let processed = report.received - u64::from(self.adopted && report.received > 0);
        let more = processed.saturating_sub(self.received);
        if more > 0 {
            self.received = processed;
            self.context.count_adopted(more as usize);
        }
    }
}

impl Route {
    fn is_edge(&self) -> bool {
        matches!(self, Self::Edge(_))
    }
}

/// The payload of a record, by its slots.
fn payload_of(slots: &[TaggedRecord]) -> Vec<u8> {
    let bytes = usize::from(slots[0].header.payload_bytes);
    let first = slots[0].payload.iter().copied();
    let more = slots[1..].iter().flat_map(TaggedRecord::bytes);
    first.chain(more).take(bytes).collect()
}

/// The seat that the replies of a kernel could go to on the device.
fn next_seat<R: RecordReply>(
    desk: &Arc<Desk>,
    next: Option<&NextStage<R>>,
    layouts: Layouts,
) -> Option<Seat> {
    // Any other policy is one of the mailbox's.
    let next = next.filter(|next| next.waits_for_room())?;
    let theirs = desk.directory().desk(next.key())?;
    desk.comes_before(&theirs);
    theirs.seat().filter(|seat| layouts.output.is_some_and(|it| it.agrees_with(seat.input)))
}

/// A code of the runtime's, in words.
fn describe(code: i32) -> String {
    match code {
        codes::FAULT_PANIC => "the handler panicked".to_owned(),
        codes::FAULT_BAD_RESULT => "the handler returned a number above 1".to_owned(),
        codes::FAULT_DEADLINE => "the handler was told to stop while it ran".to_owned(),
        codes::FAULT_BOUNDS => "an index was out of bounds".to_owned(),
        codes::FAULT_EMIT_LIMIT => "the handler emitted more than it declared".to_owned(),
        codes::FAULT_DIVERGED => {
            "the handler's threads did not go together: one returned that others waited for at a barrier, \
             or another than the first emitted, sent or logged"
                .to_owned()
        }
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
        self.desk.set_seat(None);
        if let Some(layout) = self.layouts.output {
            for record in self.returned.drain(..) {
                self.context.bury(Envelope::new(R::one(layout, &payload_of(&record))));
            }
        }
        let station = lock(&self.desk.station).take();
        if let Some(mut station) = station {
            let passed = self.passed;
            let mut told = self.ways.when_free();
            match std::mem::replace(&mut self.route, Route::Host(None)) {
                Route::Host(_) => {}
                Route::Making(to, _) | Route::Edge(to) => {
                    told.push(Box::new(move |report| to.add_sent(report.passed - passed)));
                }
                Route::Leaving(to, mut left) => {
                    let (bury, output) = (self.context.buries(), self.layouts.output);
                    told.push(Box::new(move |report| {
                        // It was asked for before the seat was given back, so it is there by now.
                        let mut now = TaskContext::from_waker(Waker::noop());
                        let left = match left.as_mut().poll(&mut now) {
                            Poll::Ready(Ok(left)) => left,
                            Poll::Ready(Err(_)) | Poll::Pending => Vec::new(),
                        };
                        to.add_sent((report.passed - passed).wrapping_sub(left.len() as u64));
                        let Some(layout) = output else { return };
                        for record in left {
                            bury(Envelope::new(R::one(layout, &payload_of(&record))));
                        }
                    }));
                }
            }
            station.seated.when_free(move |report| told.into_iter().for_each(|it| it(report)));
            let report = station.seated.port().report();
            // Killed while the handler is at work.
            if report.state != STATE_FAILED && report.state != STATE_STOPPED {
                self.mark_begun(report);
            }
        }
    }
}
