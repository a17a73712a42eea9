//! The thread that makes all of the driver's calls for one grid.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::control::{
    COMMAND_KILL, STATE_ABSENT, STATE_FAILED, STATE_HOLDING, STATE_STOPPED,
};
use dotcompute_abi::slot::tagged_slots;
use dotcompute_mailbox::sync::{Ordering, lock};

use super::calls::{Begun, Calls};
use super::{Fate, Isolation, LEAVE_WITHIN, Loss, Request, Residency, ResidentError, Vacated};
use crate::compute::{Context, FreesHeld};
use crate::driver::Driver;
use crate::green::Placement;
use crate::grid::{EdgePlan, Grid, PlanError, Port, PortWords, SeatPlan, Shape, Way, Write};
use crate::image::Image;

/// How often the launcher looks after its grid, and lets its heart beat.
const ROUND: Duration = Duration::from_millis(2);

/// How often where no grid is there.
const IDLE_ROUND: Duration = Duration::from_millis(100);

/// How often it looks while somebody waits for it.
const LOOK: Duration = Duration::from_micros(100);

/// How long a handler that was killed has to come to its next tick.
const GRACE: Duration = Duration::from_secs(1);

/// All that the launcher's thread has.
pub(super) struct Launcher {
    calls: Calls,
    grid: Grid,
    residency: Residency,
    /// The last epoch that was launched; 0 before the first.
    epoch: u32,
    /// The plans of the seats that were taken.
    plans: Vec<Option<SeatPlan>>,
    /// The edges that were given to the seats beyond those of their plans, by their places.
    links: Vec<HashMap<u32, EdgePlan>>,
    /// Seats that nobody uses any more and whose handlers have not come back.
    leaving: Vec<Vacated>,
    /// The last epoch that has ended, and since when that is so.
    ended: (u32, Instant),
    fate: Arc<Fate>,
    /// Puts off what of the device's other users would wait for the grid, as long as there is one.
    held: Option<FreesHeld>,
}

impl Launcher {
    pub(super) fn begin(
        isolation: &Isolation,
        driver: &'static Driver,
        ordinal: u32,
        image: &Image,
        shape: Shape,
        residency: Residency,
        fate: Arc<Fate>,
    ) -> Result<Self, ResidentError> {
        // All that waits for what is resident is done before anything is.
        let begun = Calls::begin(isolation, driver, ordinal, image, shape, residency)?;
        let Begun { calls, host, device } = begun;
        let grid = Grid::new(shape, host, device);
        *lock(&fate.words) = vec![None; shape.seats as usize];
        // Relaxed: see `Resident::has_handler`.
        fate.handlers.store(image.handlers(), Ordering::Relaxed);
        // A driver that lacks what these users need has none.
        let context = calls.share_the_context().then(|| Context::of(driver, ordinal).ok());
        let held = context.flatten();
        let launcher = Self {
            calls,
            grid,
            residency,
            epoch: 0,
            plans: vec![None; shape.seats as usize],
            links: vec![HashMap::new(); shape.seats as usize],
            leaving: Vec::new(),
            ended: (0, Instant::now()),
            fate,
            held: held.map(|context| context.hold_frees()),
        };
        launcher.write(&launcher.grid.vacant())?;
        launcher.tell_placement();
        Ok(launcher)
    }

    /// Says where the grid runs, if that is not where it was.
    fn tell_placement(&self) {
        if self.residency.ring_multiprocessors.is_none() {
            return;
        }
        let now = self.calls.placement();
        let before = mem::replace(&mut *lock(&self.fate.placement), now.clone());
        match now {
            _ if now == before => {}
            Placement::Apart { .. } => tracing::info!("a grid runs {now}"),
            Placement::Left { .. } | Placement::Anywhere(_) => {
                tracing::warn!("a grid runs {now}");
            }
        }
    }

    /// Writes to the device's memory, while no grid runs.
    fn write(&self, writes: &[Write]) -> Result<(), ResidentError> {
        for (offset, bytes) in writes {
            assert!(offset + bytes.len() <= self.grid.shape().device_bytes());
            // SAFETY: inside the device's arena, as just checked; no grid runs.
            unsafe { self.calls.write(*offset, bytes) }?;
        }
        Ok(())
    }

    /// Queues the grid of the next epoch behind what the stream has.
    fn queue(&mut self) -> Result<(), ResidentError> {
        let Residency { lease, silence, .. } = self.residency;
        let epoch = self.epoch.wrapping_add(1).max(1);
        let (left, zeros) = self.grid.before_launch();
        let parameters = self.grid.parameters(epoch, lease, silence);
        let is_first = self.epoch == self.grid.ended();
        let (zeros, shape) = ((left, zeros.len()), self.grid.shape());
        // SAFETY: inside the device's arena, and used by grids alone, which the stream has before and
        // behind this; the parameters lead to the arenas.
        unsafe { self.calls.launch(zeros, shape, &parameters, is_first) }?;
        self.epoch = epoch;
        Ok(())
    }

    /// Whether a kernel sits on some seat. Without one a grid would end as it begins.
    fn is_needed(&self) -> bool {
        lock(&self.fate.words).iter().flatten().any(|seat| !has_ended(seat.report().state))
    }

    /// Sees to it that a grid runs, and in lease mode that another one waits behind it.
    fn renew(&mut self) -> Result<(), ResidentError> {
        let wanted = if self.residency.lease.is_some() { 2 } else { 1 };
        while self.is_needed() && self.epoch.wrapping_sub(self.grid.ended()) < wanted {
            self.queue()?;
        }
        Ok(())
    }

    /// Launches, and waits until every warp is there.
    fn start(&mut self) -> Result<(), ResidentError> {
        let first = self.epoch.wrapping_add(1);
        self.renew()?;
        self.tell_placement();
        let deadline = Instant::now() + self.residency.census;
        // With a short lease the first may have ended before it was looked at.
        let is_there = |grid: &Grid| grid.is_resident(first) || grid.ended() >= first;
        while self.epoch >= first && !is_there(&self.grid) {
            self.grid.beat();
            if Instant::now() > deadline {
                return Err(ResidentError::Census);
            }
            // An error of the grid's comes to light with the next call.
            self.calls.is_idle()?;
            thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// Asks all grids in the stream to end, and waits for it.
    fn stop(&mut self, deadline: Instant) -> Result<(), ResidentError> {
        self.grid.quiesce(self.epoch);
        while !self.calls.is_idle()? {
            self.grid.beat();
            if Instant::now() > deadline {
                return Err(ResidentError::Stuck);
            }
            thread::park_timeout(LOOK);
        }
        Ok(())
    }

    /// [`stop`](Self::stop), for a change: a handler that takes too long is killed.
    fn pause(&mut self) -> Result<(), ResidentError> {
        match self.stop(Instant::now() + self.residency.overdue) {
            Err(ResidentError::Stuck) => {
                self.kill_busy();
                self.stop(Instant::now() + GRACE)
            }
            result => result,
        }
    }

    fn busy(&self) -> Vec<(u32, PortWords)> {
        let words = lock(&self.fate.words);
        let seats = words.iter().zip(0..);
        let seats = seats.filter_map(|(words, seat)| Some((seat, words.clone()?)));
        seats
            .filter(|(_, words)| {
                let report = words.report();
                report.busy != 0 && report.state != STATE_FAILED
            })
            .collect()
    }

    fn suspects(&self) -> Vec<u32> {
        self.busy().into_iter().map(|(seat, _)| seat).collect()
    }

    fn kill_busy(&self) {
        for (seat, words) in self.busy() {
            tracing::warn!(seat, "a handler keeps its grid from leaving: killed at its next tick");
            words.command(COMMAND_KILL);
        }
    }

    pub(super) fn run(mut self, requests: &Receiver<Request>) {
        if let Err(error) = self.serve(requests) {
            let suspects = self.suspects();
            let placement = self.calls.placement();
            tracing::error!(%error, ?suspects, %placement, "resident grid lost");
            // As where it does not end when it is to.
            mem::forget(self.held.take());
            self.calls.keep_place();
            if error == ResidentError::Stuck {
                crate::lent::keep_all();
            }
            self.fate.lose(Loss { error, suspects });
        }
    }

    fn serve(&mut self, requests: &Receiver<Request>) -> Result<(), ResidentError> {
        loop {
            let is_there = self.epoch != self.grid.ended();
            match requests.recv_timeout(if is_there { ROUND } else { IDLE_ROUND }) {
                Ok(Request::Seat { seat, plan, image, answer }) => {
                    let taken = self.take(seat, &plan, image.as_deref());
                    let lost = match &taken {
                        Ok(_) => None,
                        Err(error) => error.loses().then(|| error.clone()),
                    };
                    if let Err(Ok((seat, port))) = answer.send(taken) {
                        // Whoever asked is gone.
                        port.command(COMMAND_KILL);
                        self.leaving.push(Vacated { seat, port: Box::new(port), then: None });
                    }
                    lost.map_or(Ok(()), Err)?;
                }
                Ok(Request::Vacate(vacated)) => self.leaving.push(vacated),
                Ok(Request::Link { from, way, to, record_bytes, answer }) => {
                    let linked = self.link(from, way, to, record_bytes);
                    let lost = linked.as_ref().err().filter(|error| error.loses()).cloned();
                    let _ = answer.send(linked); // whoever asked may be gone
                    lost.map_or(Ok(()), Err)?;
                }
                Ok(Request::Unlink { from, way, answer }) => {
                    let unlinked = self.unlink(from, way);
                    let lost = unlinked.as_ref().err().filter(|error| error.loses()).cloned();
                    let _ = answer.send(unlinked); // as above
                    lost.map_or(Ok(()), Err)?;
                }
                Ok(Request::State { seat, answer }) => {
                    let state = self.state(seat);
                    let lost = state.as_ref().err().filter(|error| error.loses()).cloned();
                    let _ = answer.send(state); // whoever asked may be gone
                    lost.map_or(Ok(()), Err)?;
                }
                Ok(Request::Begin { answer }) => {
                    let begun = self.pause().and_then(|()| self.start());
                    let lost = begun.as_ref().err().filter(|error| error.loses()).cloned();
                    let _ = answer.send(begun); // as above
                    lost.map_or(Ok(()), Err)?;
                }
                Ok(Request::End { answer, within }) => {
                    let ended = self.stop(Instant::now() + within);
                    if ended.is_err() {
                        // It may be there for good, and then whoever frees would wait for good.
                        mem::forget(self.held.take());
                        self.calls.keep_place();
                    }
                    if let Some(answer) = answer {
                        let _ = answer.send(ended); // as above
                    }
                    return Ok(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Nobody has the grid any more.
                Err(RecvTimeoutError::Disconnected) => {
                    return self.stop(Instant::now() + LEAVE_WITHIN);
                }
            }
            self.grid.beat();
            // An error of the grid's comes to light with a call.
            self.calls.look()?;
            self.look_at_lease()?;
            self.free_seats();
            self.renew()?;
        }
    }

    /// Sees to it that no handler keeps the grid for ever after its lease.
    fn look_at_lease(&mut self) -> Result<(), ResidentError> {
        let ended = self.grid.ended();
        if ended != self.ended.0 || ended == self.epoch {
            self.ended = (ended, Instant::now());
        }
        let Some(lease) = self.residency.lease else { return Ok(()) };
        let late = self.ended.1.elapsed().saturating_sub(lease + self.residency.overdue);
        if late > GRACE {
            return Err(ResidentError::Stuck);
        }
        if !late.is_zero() {
            self.kill_busy();
        }
        Ok(())
    }

    /// Frees the seats that nobody uses and whose kernels have ended, also those that sent there:
    /// what nobody took goes back to these.
    fn free_seats(&mut self) {
        let mut words = lock(&self.fate.words);
        let (links, plans) = (&mut self.links, &mut self.plans);
        let mut told = Vec::new();
        let mut freed = 1;
        // One that ended may have been the last to send to another.
        while freed > 0 {
            let before = self.leaving.len();
            self.leaving.retain_mut(|Vacated { seat, port, then }| {
                let (report, place) = (port.report(), *seat as usize);
                let is_used = links.iter().flat_map(HashMap::values).any(|edge| edge.to == *seat);
                let is_free = has_ended(report.state) && !is_used;
                if is_free {
                    (words[place], plans[place]) = (None, None);
                    links[place].clear();
                    told.extend(then.take().map(|then| (then, report)));
                }
                !is_free
            });
            freed = before - self.leaving.len();
        }
        drop(words);
        told.into_iter().for_each(|(then, report)| then(report));
    }

    fn take(
        &mut self,
        seat: Option<u32>,
        plan: &SeatPlan,
        image: Option<&Image>,
    ) -> Result<(u32, Port), ResidentError> {
        self.free_seats();
        let seat = {
            let words = lock(&self.fate.words);
            match seat {
                Some(seat) if matches!(words.get(seat as usize), Some(Some(_))) => {
                    return Err(ResidentError::Taken(seat));
                }
                Some(seat) => seat,
                None => match words.iter().position(Option::is_none) {
                    Some(free) => free as u32,
                    None => return Err(ResidentError::Full),
                },
            }
        };
        self.check_target(seat)?;
        self.check_edges(&plan.edges)?;
        self.pause()?;
        let before = match self.load(plan.handler, image) {
            Ok(before) => before,
            Err(error) => {
                self.start()?;
                return Err(error);
            }
        };
        // SAFETY: no grid runs, and none is launched before the writes below are done; an earlier
        // port of this seat was dropped when the seat was freed.
        let seated = unsafe { self.grid.seat(seat, plan) };
        let port = match seated {
            Ok((port, writes)) => {
                self.write(&writes)?;
                self.plans[seat as usize] = Some(plan.clone());
                lock(&self.fate.words)[seat as usize] = Some(port.words());
                Ok((seat, port))
            }
            Err(error) => Err(ResidentError::Plan(error)),
        };
        match (self.start(), before) {
            (Ok(()), _) => port,
            // The driver refuses to launch what was just loaded, and has nothing against what there is.
            (Err(ResidentError::Driver(error)), Some(before)) if self.calls.is_idle().is_ok() => {
                drop(port);
                self.put_back(seat, before)?;
                Err(ResidentError::Code(error))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Sees to it that the code which is loaded has the handler of this number; no grid runs. If other
    /// code was loaded for it, says how many handlers that of before has.
    fn load(&mut self, handler: u32, image: Option<&Image>) -> Result<Option<u32>, ResidentError> {
        // Relaxed, here and below: see `Resident::has_handler`.
        let before = self.fate.handlers.load(Ordering::Relaxed);
        let is_wanted = |image: &&Image| handler >= before && handler < image.handlers();
        let Some(image) = image.filter(is_wanted) else { return Ok(None) };
        self.calls.take_up(image, self.grid.shape())?;
        self.fate.handlers.store(image.handlers(), Ordering::Relaxed);
        Ok(Some(before))
    }

    /// Goes on with the code of before, which has so many handlers, and without the kernel on this seat.
    fn put_back(&mut self, seat: u32, handlers: u32) -> Result<(), ResidentError> {
        // One grid of the new code may have been launched.
        self.pause()?;
        self.calls.put_back()?;
        // Relaxed: see `Resident::has_handler`.
        self.fate.handlers.store(handlers, Ordering::Relaxed);
        (lock(&self.fate.words)[seat as usize], self.plans[seat as usize]) = (None, None);
        self.write(&[self.grid.vacate(seat)])?;
        self.start()
    }

    /// That nobody who has begun sends to a seat that is to be taken.
    fn check_target(&self, seat: u32) -> Result<(), PlanError> {
        let words = lock(&self.fate.words);
        let begun = |from: u32| {
            let state = words[from as usize].as_ref().map(|words| words.report().state);
            state.is_some_and(|state| !matches!(state, STATE_ABSENT | STATE_HOLDING))
        };
        match self.edges().find(|&(from, edge)| edge.to == seat && begun(from)) {
            Some((from, _)) => Err(PlanError::Target { seat, from }),
            None => Ok(()),
        }
    }

    /// That the edges of a kernel fit beside those of the others: see [`Edge`].
    ///
    /// [`Edge`]: dotcompute_abi::device::Edge
    fn check_edges(&self, edges: &[EdgePlan]) -> Result<(), PlanError> {
        let capacity = self.grid.shape().inbox_capacity;
        for (place, &EdgePlan { to, number, .. }) in edges.iter().enumerate() {
            let theirs = || self.edges().map(|(_, edge)| edge);
            let before = edges[..place].iter().copied().chain(theirs());
            if before.clone().any(|edge| edge.to == to && edge.number == number) {
                return Err(PlanError::EdgeTaken { to, number });
            }
            let there = edges.iter().copied().chain(theirs()).filter(|edge| edge.to == to);
            let shares: u64 = there.map(|edge| edge.share_slots()).sum();
            if shares > capacity as u64 {
                return Err(PlanError::SharesTooLarge { to, shares, capacity });
            }
        }
        Ok(())
    }

    /// The edges of all kernels that are seated, with the seats that they lead from.
    fn edges(&self) -> impl Iterator<Item = (u32, EdgePlan)> + Clone {
        let seats = self.plans.iter().zip(&self.links).zip(0..);
        seats.flat_map(|((plan, link), from)| {
            let edges = plan.iter().flat_map(|plan| &plan.edges).chain(link.values());
            edges.map(move |edge| (from, *edge))
        })
    }

    /// Whether what is sent from `from` comes to `to`.
    fn leads(&self, from: u32, to: u32) -> bool {
        let mut known = vec![false; self.plans.len()];
        let mut line = vec![from];
        while let Some(at) = line.pop() {
            if at == to {
                return true;
            }
            if !std::mem::replace(&mut known[at as usize], true) {
                line.extend(self.edges().filter(|(from, _)| *from == at).map(|(_, edge)| edge.to));
            }
        }
        false
    }

    fn seated(&self, seat: u32) -> Result<SeatPlan, PlanError> {
        let plan = self.plans.get(seat as usize).cloned().flatten();
        let is_left = self.leaving.iter().any(|left| left.seat == seat);
        plan.filter(|_| !is_left).ok_or(PlanError::Vacant { seat })
    }

    fn link(
        &mut self,
        from: u32,
        way: Way,
        to: u32,
        record_bytes: u32,
    ) -> Result<(), ResidentError> {
        let plan = self.seated(from)?;
        let slots = self.seated(to)?.message_slots();
        let (what, wanted) = ("slots of a record for the seat", tagged_slots(record_bytes));
        if wanted != slots {
            let (wanted, most) = (u64::from(wanted), u64::from(slots));
            return Err(PlanError::TooLarge { what, wanted, most }.into());
        }
        if self.leads(to, from) {
            return Err(PlanError::Cycle { to, from }.into());
        }
        let shape = self.grid.shape();
        if shape.edges_in == 0 || self.links[from as usize].contains_key(&plan.place(way)) {
            return Err(PlanError::NoEdge { to }.into());
        }
        self.pause()?;
        let linked = self.write_link(from, way, (to, slots), record_bytes, &plan);
        self.start()?;
        linked
    }

    fn write_link(
        &mut self,
        from: u32,
        way: Way,
        (to, slots): (u32, u32),
        record_bytes: u32,
        plan: &SeatPlan,
    ) -> Result<(), ResidentError> {
        let shape = self.grid.shape();
        // An edge of before may have left records there, which give back what they took of its share.
        let unread = self.grid.unread(&self.inbox(to)?, slots);
        let is_free = |number: &u32| {
            let is_taken = self.edges().any(|(_, edge)| edge.to == to && edge.number == *number);
            !is_taken && !unread.iter().any(|record| edge_number(&record[0]) == *number)
        };
        let number = (0..shape.edges_in).find(is_free).ok_or(PlanError::NoEdge { to })?;
        let share = shape.inbox_capacity as u32 / shape.edges_in / slots;
        let edge = EdgePlan { to, number, share, record_bytes };
        self.check_edges(&[edge])?;
        let place = plan.place(way);
        let writes = self.grid.link(from, plan, way, edge, self.sent(from, place))?;
        self.write(&writes)?;
        self.links[from as usize].insert(place, edge);
        Ok(())
    }

    fn unlink(&mut self, from: u32, way: Way) -> Result<Vec<Vec<TaggedRecord>>, ResidentError> {
        let plan = self.seated(from)?;
        let place = plan.place(way);
        let Some(edge) = self.links[from as usize].get(&place).copied() else {
            return Ok(Vec::new());
        };
        self.pause()?;
        self.write(&[self.grid.unlink(from, &plan, way, self.sent(from, place))])?;
        self.links[from as usize].remove(&place);
        let slots = tagged_slots(edge.record_bytes);
        let inbox = self.inbox(edge.to)?;
        let (left, writes) = self.grid.take_out(edge.to, &inbox, edge.number, slots);
        self.write(&writes)?;
        self.start()?;
        Ok(left)
    }

    /// How many records a seat has sent over the edges in this place; no grid runs.
    fn sent(&self, seat: u32, place: u32) -> u64 {
        let words = lock(&self.fate.words)[seat as usize].clone();
        words.and_then(|words| words.report().sent.get(place as usize).copied()).unwrap_or(0)
    }

    /// The bytes of the inbox of a seat; no grid runs.
    fn inbox(&self, seat: u32) -> Result<Vec<u8>, ResidentError> {
        let (offset, bytes) = self.grid.inbox(seat);
        // SAFETY: inside the device's arena; no grid runs.
        unsafe { self.calls.read(offset, bytes) }
    }

    fn state(&mut self, seat: u32) -> Result<Vec<u8>, ResidentError> {
        self.pause()?;
        let (offset, bytes) = self.grid.state(seat);
        // SAFETY: inside the device's arena; no grid runs.
        let state = unsafe { self.calls.read(offset, bytes) };
        self.start()?;
        state
    }
}

impl Drop for Launcher {
    fn drop(&mut self) {
        // Also where it ended as it was told to: whoever still has a seat is told.
        let suspects = self.suspects();
        self.fate.lose(Loss { error: ResidentError::Gone, suspects });
    }
}

fn has_ended(state: u32) -> bool {
    state == STATE_STOPPED || state == STATE_FAILED
}

/// The edge that a record in an inbox came by.
fn edge_number(record: &TaggedRecord) -> u32 {
    u32::from(record.header.flags) >> 8
}
