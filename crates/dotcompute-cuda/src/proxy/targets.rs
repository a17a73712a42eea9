//! What a handler sends to other kernels: by the host, or by an edge on the device.
//!
//! Which of both is changed only while this kernel holds and the target has nothing left of what went
//! the other way, so that records keep their order. A kernel that never has a lull is held for it
//! ([`Patience`]), while the target works off what it has.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker, ready};
use std::time::Instant;

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::control::{
    COMMAND_HOLD, COMMAND_RUN, COMMAND_STOP, STATE_HOLDING, STATE_RUNNING,
};
use dotcompute_abi::device::COUNTED_EDGES;
use dotcompute_core::BoxError;
use dotcompute_core::compiled::{RecordMessage, RecordReply};

use super::patience::Patience;
use super::{Boxed, Proxy, Route, Station, payload_of};
use crate::direct::Seat;
use crate::grid::{Report, Way};
use crate::kernels::{Targets, check_target};
use crate::target::OpenTarget;

pub(super) type WhenFree = Box<dyn FnOnce(Report) + Send>;

/// The ways to the targets of a kernel.
pub(super) struct Ways {
    ways: Vec<WayTo>,
    /// A record that waits for room at its target, and the token of its message.
    sending: Option<(u32, Boxed<Result<(), BoxError>>)>,
    /// What came back from an edge, by its target's number: to be sent before all else.
    returned: VecDeque<(usize, Vec<TaggedRecord>)>,
    /// The kernel is to hold, so that edges can be made.
    pub(super) linking: bool,
    /// How long it holds for targets that are at work, though it has something to do.
    patience: Patience,
    /// When it says that it holds, it does: it was seen to run since it held last.
    holds_surely: bool,
    /// Why the kernel is to fail, once it has stopped.
    pub(super) failure: Option<BoxError>,
    /// The token of the message that it fails at.
    failed_at: Option<u32>,
}

struct WayTo {
    target: Box<dyn OpenTarget>,
    route: Route,
    /// Records sent over its edges that were counted.
    sent: u64,
}

impl Ways {
    pub(super) fn new(targets: &Targets) -> Self {
        let way = |target: &Arc<dyn crate::target::Target>| WayTo {
            target: target.open(),
            route: Route::Host(None),
            sent: 0,
        };
        Self {
            ways: targets.iter().map(way).collect(),
            sending: None,
            returned: VecDeque::new(),
            linking: !targets.is_empty(),
            patience: Patience::new(),
            holds_surely: true,
            failure: None,
            failed_at: None,
        }
    }

    /// Whether the kernel is to fail at the message of this token, which then has no replies.
    pub(super) fn has_failed_at(&self, token: u32) -> bool {
        self.failed_at == Some(token)
    }

    /// What was sent is counted, for those that it went to, when the seat is free; what came back to
    /// nobody is a dead letter of theirs.
    pub(super) fn when_free(&mut self) -> Vec<WhenFree> {
        let mut told: Vec<WhenFree> = Vec::new();
        for (number, record) in self.returned.drain(..) {
            bury(&*self.ways[number].target, &record);
        }
        for (place, way) in self.ways.drain(..).enumerate() {
            let WayTo { target, route, sent } = way;
            match route {
                Route::Host(_) => {}
                Route::Making(to, _) | Route::Edge(to) => told.push(Box::new(move |report| {
                    to.add_sent(report.sent[place] - sent);
                })),
                Route::Leaving(to, mut left) => told.push(Box::new(move |report| {
                    // As for replies: it is there by now.
                    let mut now = TaskContext::from_waker(Waker::noop());
                    let left = match left.as_mut().poll(&mut now) {
                        Poll::Ready(Ok(left)) => left,
                        Poll::Ready(Err(_)) | Poll::Pending => Vec::new(),
                    };
                    to.add_sent((report.sent[place] - sent).wrapping_sub(left.len() as u64));
                    left.iter().for_each(|record| bury(&*target, record));
                })),
            }
        }
        told
    }
}

fn bury(target: &dyn OpenTarget, slots: &[TaggedRecord]) {
    target.bury(&payload_of(slots));
}

impl<M: RecordMessage, R: RecordReply> Proxy<M, R> {
    /// Notes what was sent over edges.
    pub(super) fn note_sent(&mut self, report: Report) {
        for number in 0..self.ways.ways.len() {
            self.note_sent_to(number, report, 0);
        }
    }

    fn note_sent_to(&mut self, number: usize, report: Report, back: u64) {
        let way = &mut self.ways.ways[number];
        let (Route::Making(to, _) | Route::Edge(to) | Route::Leaving(to, _)) = &way.route else {
            return;
        };
        // Its edges are the seat's first ones.
        let more = (report.sent[number] - way.sent).wrapping_sub(back);
        way.sent = report.sent[number];
        if more != 0 {
            to.add_sent(more);
        }
    }

    /// Whether the kernel is to hold for the sake of its edges.
    pub(super) fn holds_for_edges(&self) -> bool {
        self.ways.linking
    }

    /// Notes whether a kernel that says that it holds could have run since.
    pub(super) fn note_hold(&mut self, report: Report) {
        match self.command {
            COMMAND_HOLD => {}
            _ => self.ways.holds_surely = report.state == STATE_RUNNING,
        }
    }

    /// Does away with the edges whose targets have another seat, or none. Pending meanwhile: what
    /// comes back goes before all else.
    pub(super) fn look_at_edges(
        &mut self,
        station: &mut Station,
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        for number in 0..self.ways.ways.len() {
            loop {
                let is_edge = self.ways.ways[number].route.is_edge();
                let seat = if is_edge { self.seat_of(number) } else { None };
                let way = &mut self.ways.ways[number];
                match &mut way.route {
                    Route::Host(_) => break,
                    Route::Making(to, made) => {
                        let Poll::Ready(made) = made.as_mut().poll(cx) else { break };
                        let to = to.clone();
                        way.route = match made {
                            Ok(()) => Route::Edge(to),
                            Err(error) => {
                                let (kernel, target) = (self.context.id(), way.target.kernel());
                                tracing::debug!(%kernel, %target, %error, "sent by the host");
                                Route::Host(Some(to))
                            }
                        };
                    }
                    Route::Edge(to) => {
                        if seat.is_some_and(|seat| seat.is(to)) {
                            break;
                        }
                        let from = station.seated.number();
                        let left = to.resident.unlink(from, Way::Target(number as u32));
                        way.route = Route::Leaving(to.clone(), Box::pin(left));
                    }
                    Route::Leaving(_, left) => {
                        let left = ready!(left.as_mut().poll(cx));
                        // Of a grid that is lost nothing comes back.
                        let left = left.unwrap_or_default();
                        let report = station.seated.port().report();
                        self.note_sent_to(number, report, left.len() as u64);
                        let left = left.into_iter().map(|record| (number, record));
                        self.ways.returned.extend(left);
                        self.ways.ways[number].route = Route::Host(None);
                    }
                }
            }
        }
        Poll::Ready(())
    }

    /// The seat that the records to a target could go to on the device.
    fn seat_of(&mut self, number: usize) -> Option<Seat> {
        let runtime = || self.context.runtime();
        let way = &mut self.ways.ways[number];
        if number >= COUNTED_EDGES as usize {
            return None;
        }
        let found = match way.target.find(runtime()) {
            Ok(found) => found?,
            Err(error) => {
                self.ways.failure.get_or_insert(error);
                return None;
            }
        };
        let theirs = self.desk.directory().desk(found)?;
        self.desk.comes_before(&theirs);
        let seat = theirs.seat()?;
        let (target, layout) = (way.target.kernel(), way.target.layout());
        if let Err(error) = check_target(self.context.id().as_str(), target, layout, seat.input) {
            self.ways.failure.get_or_insert(error.into());
            return None;
        }
        // Any other policy is one of the mailbox's.
        way.target.waits_for_room().then_some(seat)
    }

    /// The seat to which an edge could be made for a target that has none.
    fn seat_for_edge(&mut self, number: usize, station: &Station) -> Option<Seat> {
        let Route::Host(_) = &self.ways.ways[number].route else { return None };
        let seat = self.seat_of(number)?;
        let Route::Host(refused) = &self.ways.ways[number].route else { return None };
        let is_refused = refused.as_ref().is_some_and(|refused| refused.is(&seat));
        let is_here = Arc::ptr_eq(&seat.resident, station.seated.resident());
        (is_here && !is_refused).then_some(seat)
    }

    /// Has edges made to those targets that sit on the same grid: while the kernel holds, and what
    /// went by the host is worked off. It holds when it and the target seem to have nothing to do, or
    /// when it has gone on for long enough.
    pub(super) fn make_edges(
        &mut self,
        station: &mut Station,
        report: Report,
        cx: &mut TaskContext<'_>,
    ) {
        let holds =
            self.command == COMMAND_HOLD && report.state == STATE_HOLDING && self.ways.holds_surely;
        let is_quiet = self.in_flight == 0 && self.seat.sent() == self.received;
        let runs = self.command == COMMAND_RUN && report.state == STATE_RUNNING;
        let by_host = self.ways.ways.iter().any(|way| matches!(way.route, Route::Host(_)));
        if !by_host && !self.ways.linking {
            return;
        }
        let now = Instant::now();
        let is_due = self.ways.patience.is_due(now);
        let (mut making, mut wanted, mut waits) = (false, false, false);
        for number in 0..self.ways.ways.len() {
            making |= matches!(self.ways.ways[number].route, Route::Making(..));
            if !holds && !(runs && (is_quiet || is_due)) {
                continue;
            }
            let Some(to) = self.seat_for_edge(number, station) else { continue };
            let way = &mut self.ways.ways[number];
            if !holds {
                wanted |= is_due && !is_quiet || way.target.is_quiet();
                continue;
            }
            if !way.target.is_quiet() {
                waits = true;
                continue;
            }
            let bytes = way.target.layout().bytes as u32;
            let by = Way::Target(number as u32);
            let made = to.resident.link(station.seated.number(), by, to.number, bytes);
            way.route = Route::Making(to, Box::pin(made));
            self.ways.patience.pays_off();
            making = true;
            // Looked at once more, so that it wakes this task.
            cx.waker().wake_by_ref();
        }
        let ways = &mut self.ways;
        if runs && !is_quiet && is_due {
            ways.patience.begin(now);
        }
        waits = waits && ways.patience.lasts(now);
        if waits {
            // Nobody tells when the target is quiet.
            cx.waker().wake_by_ref();
        }
        let linking = making
            || wanted
            || waits
            || self.ways.linking && !holds && self.command == COMMAND_HOLD;
        if std::mem::replace(&mut self.ways.linking, linking) != linking {
            cx.waker().wake_by_ref();
        }
    }

    /// Sends on what waits for room at its target.
    pub(super) fn poll_sending(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        if let Some((token, sending)) = &mut self.ways.sending {
            let sent = ready!(sending.as_mut().poll(cx));
            let token = *token;
            self.ways.sending = None;
            if let Err(error) = sent {
                self.fail_at(token, error);
            }
        }
        Poll::Ready(())
    }

    /// Sends on what came back from edges.
    pub(super) fn send_returned(&mut self, cx: &mut TaskContext<'_>) -> Poll<()> {
        ready!(self.poll_sending(cx));
        while let Some((number, record)) = self.ways.returned.pop_front() {
            let way = &mut self.ways.ways[number];
            let payload = payload_of(&record);
            match way.target.send(self.context.runtime(), &payload) {
                Ok(None) => {}
                Ok(Some(sending)) => {
                    self.ways.sending = Some((dotcompute_abi::device::TOKEN_NONE, sending));
                    ready!(self.poll_sending(cx));
                }
                // It was sent while the target was there.
                Err(_) => way.target.bury(&payload),
            }
        }
        Poll::Ready(())
    }

    /// Sends a record on that the handler sent to the target of this number.
    pub(super) fn send_on(
        &mut self,
        number: usize,
        token: u32,
        payload: &[u8],
        cx: &mut TaskContext<'_>,
    ) -> Poll<()> {
        let runtime = self.context.runtime();
        let Some(way) = self.ways.ways.get_mut(number) else {
            self.fail_at(token, format!("there is no target {number}").into());
            return Poll::Ready(());
        };
        match way.target.send(runtime, payload) {
            Ok(None) => {}
            Ok(Some(sending)) => {
                self.ways.sending = Some((token, sending));
                return self.poll_sending(cx);
            }
            Err(error) => self.fail_at(token, error),
        }
        Poll::Ready(())
    }

    /// What was sent with this message cannot be: the kernel stops, and fails at it.
    fn fail_at(&mut self, token: u32, error: BoxError) {
        if self.ways.failure.is_some() {
            let kernel = self.context.id();
            tracing::error!(%kernel, %error, "what was sent after the kernel failed is lost");
            return;
        }
        self.ways.failure = Some(error);
        if let Some(index) = self.index_of(token) {
            self.ways.failed_at = Some(token);
            self.context.mark_delivered_at(index);
            // It stays in hand.
            let entry = &mut self.entries[index];
            if !std::mem::replace(&mut entry.settled, true) {
                self.asks -= usize::from(entry.asked);
                self.batches -= usize::from(!entry.single);
            }
        }
    }

    /// Stops a kernel that is to fail; whether it is to.
    pub(super) fn stop_to_fail(&mut self, station: &mut Station) -> bool {
        let fails = self.ways.failure.is_some();
        if fails && self.command < COMMAND_STOP {
            self.command(station, COMMAND_STOP);
        }
        fails
    }
}
