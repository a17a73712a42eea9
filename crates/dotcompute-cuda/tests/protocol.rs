//! What a kernel on a seat does, by the device's own sources on host threads: commands, faults,
//! leases, and what of it the host sees.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod twin;

use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::codes::{
    FAULT_BAD_RESULT, FAULT_BOUNDS, FAULT_DEADLINE, FAULT_EMIT_LIMIT, FAULT_NONE,
};
use dotcompute_abi::control::{
    COMMAND_DRAIN, COMMAND_HOLD, COMMAND_KILL, COMMAND_RUN, COMMAND_STOP, STATE_FAILED,
    STATE_HOLDING, STATE_RUNNING, STATE_STOPPED,
};
use dotcompute_abi::slot::{FLAG_FAULTED, FLAG_LOG, FLAG_SENT, SlotHeader};
use dotcompute_cuda::grid::{EdgePlan, PlanError, Port, SeatPlan, Shape, Way};
use dotcompute_mailbox::Band;
use twin::{ADD, Stage, Twin, number, numbers_of, plan, plan_of_spans, span, spanned, sum};

/// The handler that sends on to each of its targets in turn, and the one that does what the value says.
const DEAL: u32 = 1;
const OBEY: u32 = 2;

fn compiled() -> Twin {
    static TWIN: OnceLock<Twin> = OnceLock::new();
    *TWIN.get_or_init(|| Twin::compile("protocol", &[]))
}

/// One seat with this handler, and its grid, running.
struct Running {
    stage: Stage,
    port: Port,
    epoch: u32,
    warps: Vec<JoinHandle<()>>,
}

impl Running {
    fn new(handler: u32, max_emit: u32) -> Self {
        let stage = Stage::new(Shape::default());
        let mut plan = plan(handler);
        plan.max_emit = max_emit;
        let port = stage.seat(0, &plan);
        let mut running = Self { stage, port, epoch: 0, warps: Vec::new() };
        running.launch(None, None);
        running
    }

    fn launch(&mut self, lease: Option<Duration>, silence: Option<Duration>) {
        let (epoch, parameters) = self.stage.launch(lease, silence);
        self.epoch = epoch;
        self.warps = (0..=1).map(|warp| thread::spawn(compiled().warp(parameters, warp))).collect();
    }

    fn send(&mut self, value: i64) {
        until("there is room", || self.port.send(Band::Normal, number(0, value)).is_ok());
    }

    fn receive(&mut self) -> TaggedRecord {
        let mut received = None;
        until("a reply", || {
            received = self.port.receive();
            received.is_some()
        });
        received.unwrap()
    }

    fn state(&mut self, state: u32) {
        until("the state", || self.port.report().state == state);
    }

    /// Waits until the grid has ended.
    fn ended(&mut self) {
        let (grid, epoch) = (self.stage.grid, self.epoch);
        until("the end of the grid", || grid.has_ended(epoch));
        self.warps.drain(..).for_each(|warp| warp.join().unwrap());
    }
}

/// Waits for what the device is to do; fails the test if it does not.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::yield_now();
    }
}

#[test]
fn a_kernel_holds_until_it_is_to_run_and_holds_again() {
    let mut running = Running::new(ADD, 0);
    running.state(STATE_HOLDING);
    running.send(1);
    assert!(running.port.receive().is_none());
    running.port.command(COMMAND_RUN);
    assert_eq!(sum(&running.receive()), (1, 1));
    running.port.command(COMMAND_HOLD);
    running.state(STATE_HOLDING);
    running.send(2);
    assert!(running.port.receive().is_none());
    running.port.command(COMMAND_RUN);
    assert_eq!(sum(&running.receive()), (3, 2));
    running.port.command(COMMAND_STOP);
    running.state(STATE_STOPPED);
    running.ended();
    assert_eq!(running.port.counters().processed, 2);
    assert!(running.port.counters().handler_ticks > 0);
}

#[test]
fn a_drain_handles_all_that_was_sent_before_it() {
    let mut running = Running::new(ADD, 0);
    for value in 1..=40 {
        running.send(value);
    }
    running.port.command(COMMAND_DRAIN);
    for value in 1..=40 {
        assert_eq!(sum(&running.receive()).1, value);
    }
    running.state(STATE_STOPPED);
    running.ended();
    assert_eq!(running.port.counters().processed, 40);
}

#[test]
fn a_more_urgent_band_goes_first() {
    let mut running = Running::new(ADD, 0);
    for (token, band) in [(4, Band::Low), (3, Band::Normal), (2, Band::High), (1, Band::System)] {
        running.port.send(band, number(token, 0)).unwrap();
    }
    running.port.command(COMMAND_RUN);
    for token in 1..=4 {
        assert_eq!(running.receive().header.token, token);
    }
    running.port.command(COMMAND_STOP);
    running.ended();
}

#[test]
fn what_a_handler_emits_goes_out_in_order_before_its_reply() {
    let mut running = Running::new(OBEY, 2);
    running.port.command(COMMAND_RUN);
    running.port.send(Band::Normal, number(77, 1)).unwrap();
    for _ in 0..3 {
        let reply = running.receive();
        assert_eq!((reply.header.token, reply.header.flags, sum(&reply)), (77, 0, (1, 1)));
    }
    running.port.command(COMMAND_STOP);
    running.ended();
    assert_eq!(running.port.counters().replied, 3);
}

#[test]
fn a_fault_discards_what_was_emitted_keeps_its_text_and_fails_the_kernel() {
    let mut running = Running::new(OBEY, 2);
    running.port.command(COMMAND_RUN);
    running.send(2);
    let line = running.receive();
    assert_eq!(u32::from(line.header.flags), FLAG_LOG);
    assert_eq!(u32::from(line.header.payload_bytes), 4 + 14);
    assert_eq!(&line.payload[..18], &[&40_i32.to_le_bytes()[..], b"as it was told"].concat());
    running.state(STATE_FAILED);
    let report = running.port.report();
    assert_eq!((report.fault, report.faulted, report.processed, report.busy), (-22, 1, 0, 0));
    running.ended();
    assert!(running.port.receive().is_none(), "the emitted record is discarded");
    // A later grid leaves the seat empty.
    running.launch(None, None);
    running.ended();
    assert_eq!(running.port.report().state, STATE_FAILED);
}

#[test]
fn every_way_to_go_wrong_has_its_code() {
    for (value, max_emit, code) in
        [(3, 2, FAULT_EMIT_LIMIT), (4, 0, FAULT_BAD_RESULT), (7, 1, FAULT_BOUNDS)]
    {
        let mut running = Running::new(OBEY, max_emit);
        running.port.command(COMMAND_RUN);
        running.send(value);
        running.state(STATE_FAILED);
        assert_eq!(running.port.report().fault, code, "told to do {value}");
        running.ended();
    }
}

#[test]
fn a_handler_that_ticks_can_be_killed() {
    let mut running = Running::new(OBEY, 0);
    running.port.command(COMMAND_RUN);
    running.send(5);
    until("it is busy", || running.port.report().busy == 1);
    running.port.command(COMMAND_STOP);
    running.port.command(COMMAND_KILL);
    running.state(STATE_FAILED);
    assert_eq!(running.port.report().fault, FAULT_DEADLINE);
    running.ended();
}

#[test]
fn a_kernel_that_is_to_hold_handles_one_more_message_at_most_of_those_that_it_has_read() {
    let mut running = Running::new(OBEY, 0);
    for _ in 0..12 {
        running.send(8);
    }
    running.port.command(COMMAND_RUN);
    until("it is busy", || running.port.report().busy == 1);
    running.port.command(COMMAND_HOLD);
    // It holds as at first until it says that it runs; what it handled it says as it holds again.
    until("it holds again", || running.port.report().processed > 0);
    running.state(STATE_HOLDING);
    assert!((1..=2).contains(&running.port.report().processed));
    running.port.command(COMMAND_DRAIN);
    running.ended();
    assert_eq!(running.port.counters().processed, 12);
}

#[test]
fn a_line_of_the_log_is_cut_to_its_record() {
    let mut running = Running::new(OBEY, 0);
    running.port.command(COMMAND_RUN);
    running.send(6);
    let line = running.receive();
    assert_eq!(line.header.payload_bytes, 40);
    assert_eq!(&line.payload[4..], b"a line of the log that is longer tha");
    running.port.command(COMMAND_STOP);
    running.ended();
    assert_eq!(running.port.counters().logs_lost, 0);
    assert_eq!(running.port.counters().processed, 1);
}

#[test]
fn a_kernel_without_room_for_replies_says_so_and_still_obeys() {
    let mut running = Running::new(ADD, 0);
    running.port.command(COMMAND_RUN);
    for value in 0..100 {
        running.send(value);
        if running.port.report().waiting_on == 1 {
            break;
        }
    }
    until("it waits", || running.port.report().waiting_on == 1);
    running.port.command(COMMAND_HOLD);
    running.state(STATE_HOLDING);
    running.port.command(COMMAND_RUN);
    assert_eq!(sum(&running.receive()).1, 0);
    running.port.command(COMMAND_STOP);
    running.state(STATE_STOPPED);
    running.ended();
}

#[test]
fn a_grid_ends_with_its_lease_and_the_next_one_goes_on_where_it_was() {
    let mut running = Running::new(ADD, 0);
    running.port.command(COMMAND_RUN);
    running.state(STATE_RUNNING);
    let (grid, epoch) = (running.stage.grid, running.epoch);
    grid.quiesce(epoch);
    running.ended();
    for lease in 1..=5 {
        running.send(lease);
        running.launch(Some(Duration::from_millis(20)), None);
        assert_eq!(sum(&running.receive()), (lease * (lease + 1) / 2, lease));
        running.ended();
        assert_eq!(running.port.counters().processed, lease as u64);
        assert_eq!(running.port.report().state, STATE_RUNNING);
    }
}

#[test]
fn a_grid_whose_host_fell_silent_ends_itself() {
    let mut running = Running::new(ADD, 0);
    running.stage.grid.quiesce(1);
    running.ended();
    running.launch(None, Some(Duration::from_millis(50)));
    until("it is resident", || running.stage.grid.rounds() > 0);
    running.ended();
}

#[test]
fn a_seat_taken_anew_knows_nothing_of_the_kernel_before() {
    let mut running = Running::new(OBEY, 0);
    running.port.command(COMMAND_RUN);
    running.send(4);
    running.send(4);
    running.state(STATE_FAILED);
    running.ended();
    running.port = running.stage.seat(0, &plan(ADD));
    assert_eq!(running.port.report().fault, FAULT_NONE);
    running.launch(None, None);
    running.port.command(COMMAND_RUN);
    running.send(9);
    assert_eq!(sum(&running.receive()), (9, 9));
    running.port.command(COMMAND_STOP);
    running.ended();
    assert_eq!(running.port.counters().processed, 1);
}

#[test]
fn a_plan_that_does_not_fit_its_grid_is_refused() {
    let stage = Stage::new(Shape { edges: 1, edges_in: 1, inbox_capacity: 8, ..Shape::default() });
    let refused = |seat: u32, change: &dyn Fn(&mut dotcompute_cuda::grid::SeatPlan)| {
        let mut plan = plan(ADD);
        change(&mut plan);
        // SAFETY: nothing runs, and there is no port yet.
        unsafe { stage.grid.seat(seat, &plan) }.unwrap_err()
    };
    let too_large = |error: PlanError| matches!(error, PlanError::TooLarge { .. });
    let edge = EdgePlan { to: 0, number: 0, share: 8, record_bytes: 8 };
    assert!(too_large(refused(1, &|_| ())));
    assert!(too_large(refused(0, &|plan| plan.reply_bytes = 377)));
    assert!(too_large(refused(0, &|plan| plan.message_bytes = 377)));
    assert!(too_large(refused(0, &|plan| plan.max_emit = 8)));
    assert!(too_large(refused(0, &|plan| plan.state = vec![0; 1 << 20])));
    assert!(too_large(refused(0, &|plan| plan.edges = vec![edge; 2])));
    assert!(too_large(refused(0, &|plan| plan.edges = vec![EdgePlan { to: 1, ..edge }])));
    assert!(too_large(refused(0, &|plan| plan.edges = vec![EdgePlan { share: 9, ..edge }])));
    let error = refused(0, &|plan| {
        plan.max_emit = 3;
        plan.edges = vec![EdgePlan { share: 2, ..edge }];
    });
    assert_eq!(error, PlanError::ShareTooSmall { edge: 0, share: 2, least: 3 });
}

/// Two kernels, the first of which replies to the second.
struct Linked {
    stage: Stage,
    first: Port,
    second: Port,
    epoch: u32,
    warps: Vec<JoinHandle<()>>,
}

impl Linked {
    fn new(second: u32, inbox_capacity: usize) -> Self {
        Self::with(ADD, 0, second, inbox_capacity)
    }

    fn with(first: u32, max_emit: u32, second: u32, inbox_capacity: usize) -> Self {
        let shape = Shape { seats: 2, inbox_capacity, edges: 1, edges_in: 1, ..Shape::default() };
        let mut stage = Stage::new(shape);
        let mut plan_of_first = plan(first);
        plan_of_first.max_emit = max_emit;
        let first = stage.seat(0, &plan_of_first);
        let mut plan_of_second = plan(second);
        plan_of_second.max_emit = 2;
        let second = stage.seat(1, &plan_of_second);
        let edge = EdgePlan { to: 1, number: 0, share: inbox_capacity as u32, record_bytes: 16 };
        stage.link(0, &plan_of_first, edge);
        let (epoch, parameters) = stage.launch(None, None);
        let warps = (0..=2).map(|warp| thread::spawn(compiled().warp(parameters, warp))).collect();
        Self { stage, first, second, epoch, warps }
    }

    fn run(&self) {
        for port in [&self.first, &self.second] {
            port.command(COMMAND_RUN);
        }
    }

    fn stop(&self) {
        for port in [&self.first, &self.second] {
            port.command(COMMAND_STOP);
        }
    }

    fn ended(&mut self) {
        let (grid, epoch) = (self.stage.grid, self.epoch);
        until("the end of the grid", || grid.has_ended(epoch));
        self.warps.drain(..).for_each(|warp| warp.join().unwrap());
    }
}

fn received(port: &mut Port) -> TaggedRecord {
    let mut received = None;
    until("a reply", || {
        received = port.receive();
        received.is_some()
    });
    received.unwrap()
}

/// A token that goes on past the kernel that it is given to.
const PASSING: u32 = dotcompute_abi::device::TOKEN_LAST + 7;

#[test]
fn replies_of_a_linked_kernel_go_to_the_next_one_with_the_token_of_an_ask_alone() {
    let mut linked = Linked::new(ADD, 8);
    linked.run();
    for (turn, token) in (1..=100).zip([3, PASSING, 4, 5].into_iter().cycle()) {
        until("there is room", || linked.first.send(Band::Normal, number(token, 1)).is_ok());
        let reply = received(&mut linked.second);
        // The first replies with its sum, the second with the sum of those.
        assert_eq!(sum(&reply), (turn * (turn + 1) / 2, turn));
        let passed = if token == PASSING { PASSING } else { dotcompute_abi::device::TOKEN_NONE };
        assert_eq!((reply.header.token, reply.header.flags), (passed, 0));
    }
    linked.first.command(COMMAND_DRAIN);
    until("the first ends", || linked.first.report().state == STATE_STOPPED);
    linked.second.command(COMMAND_DRAIN);
    linked.ended();
    assert!(linked.first.receive().is_none());
    let (first, second) = (linked.first.report(), linked.second.report());
    assert_eq!((first.passed, first.received), (100, 0));
    assert_eq!((second.passed, second.received, second.processed), (0, 100, 100));
    assert_eq!(linked.first.counters().sent, 100);
}

#[test]
fn a_reply_that_is_to_go_to_the_host_waits_until_the_edge_is_worked_off() {
    let mut linked = Linked::new(ADD, 8);
    linked.first.command(COMMAND_RUN);
    for value in 1..=3 {
        linked.first.send(Band::Normal, number(value, 1)).unwrap();
    }
    let mut home = number(9, 1);
    home.header.flags = dotcompute_abi::slot::FLAG_HOME as u16;
    linked.first.send(Band::Normal, home).unwrap();
    until("it waits", || linked.first.report().waiting_on == 2);
    assert!(linked.first.receive().is_none());
    linked.second.command(COMMAND_RUN);
    let reply = received(&mut linked.first);
    assert_eq!((reply.header.token, sum(&reply)), (9, (4, 1)));
    // All three were handled before.
    for value in [1, 3, 6] {
        assert_eq!(sum(&linked.second.receive().unwrap()).0, value);
    }
    linked.stop();
    linked.ended();
}

#[test]
fn of_several_replies_the_first_goes_on_with_an_ask_and_the_others_are_late() {
    let mut linked = Linked::with(OBEY, 2, ADD, 8);
    linked.run();
    // Emits two, then replies.
    linked.first.send(Band::Normal, number(PASSING, 1)).unwrap();
    let reply = received(&mut linked.second);
    assert_eq!((reply.header.token, sum(&reply)), (PASSING, (1, 1)));
    for _ in 0..2 {
        let late = received(&mut linked.first);
        assert_eq!(u32::from(late.header.flags), dotcompute_abi::slot::FLAG_LATE);
    }
    linked.first.send(Band::Normal, number(3, 1)).unwrap();
    for _ in 0..3 {
        assert_eq!(received(&mut linked.second).header.token, dotcompute_abi::device::TOKEN_NONE);
    }
    linked.stop();
    linked.ended();
    assert_eq!(linked.first.report().passed, 4);
}

#[test]
fn a_message_of_another_kernel_goes_to_the_host_when_its_kernel_fails_at_it() {
    // The sum of the first tells the second what to do: 2 is to fail.
    let mut linked = Linked::with(ADD, 0, OBEY, 8);
    linked.run();
    linked.first.send(Band::Normal, number(PASSING, 2)).unwrap();
    let line = received(&mut linked.second);
    assert_eq!(u32::from(line.header.flags), FLAG_LOG);
    let back = received(&mut linked.second);
    assert_eq!(u32::from(back.header.flags), dotcompute_abi::slot::FLAG_FAULTED);
    assert_eq!((back.header.token, sum(&back)), (PASSING, (2, 2)));
    until("it fails", || linked.second.report().state == STATE_FAILED);
    let report = linked.second.report();
    assert_eq!((report.fault, report.received, report.fault_token), (-22, 1, PASSING));
    linked.first.command(COMMAND_STOP);
    linked.ended();
}

#[test]
fn what_nobody_took_lies_in_the_inbox_in_order() {
    let mut linked = Linked::new(ADD, 4);
    linked.first.command(COMMAND_RUN);
    for lap in 0..3 {
        for value in 1..=3 {
            until("room", || linked.first.send(Band::Normal, number(value, 1)).is_ok());
        }
        until("they are passed on", || linked.first.report().passed == 3 * lap + 3);
        if lap < 2 {
            linked.second.command(COMMAND_RUN);
            for _ in 0..3 {
                received(&mut linked.second);
            }
            linked.second.command(COMMAND_HOLD);
            until("it holds", || linked.second.report().state == STATE_HOLDING);
        }
    }
    linked.stop();
    linked.ended();
    let sums: Vec<_> = linked.stage.unread(1).iter().map(|record| sum(record).0).collect();
    assert_eq!(sums, [7, 8, 9]);
}

#[test]
fn what_is_sent_goes_to_the_host_until_there_is_an_edge_and_is_counted_over_all_edges() {
    let shape = Shape { seats: 2, inbox_capacity: 8, edges: 3, edges_in: 1, ..Shape::default() };
    let mut stage = Stage::new(shape);
    let dealer = SeatPlan { max_emit: 1, send_only: 1, open: vec![8, 8], ..plan(DEAL) };
    let mut first = stage.seat(0, &dealer);
    let mut second = stage.seat(1, &plan(ADD));
    let edge = EdgePlan { to: 1, number: 0, share: 8, record_bytes: 8 };
    let way = Way::Target(1);
    let mut total = 0;
    for lap in 0..3_u64 {
        // In the first lap there is no edge; the others have one each.
        if lap > 0 {
            let writes = stage.grid.link(0, &dealer, way, edge, first.report().sent[1]).unwrap();
            writes.iter().for_each(|write| stage.write(write));
        }
        let (epoch, parameters) = stage.launch(None, None);
        let warps: Vec<_> =
            (0..=2).map(|warp| thread::spawn(compiled().warp(parameters, warp))).collect();
        [&first, &second].into_iter().for_each(|port| port.command(COMMAND_RUN));
        for value in 0..20 {
            until("room", || first.send(Band::Normal, number(7, value)).is_ok());
            // Each other one is for the second target.
            if value % 2 == 0 || lap == 0 {
                let record = received(&mut first);
                let target = u32::from(value % 2 == 1) << 8;
                assert_eq!(u32::from(record.header.flags), FLAG_SENT | target);
                assert_eq!((record.header.token, sum(&record).0), (7, value));
            } else {
                total += value;
                let reply = received(&mut second);
                assert_eq!((reply.header.token, reply.header.flags), (u32::MAX, 0));
                assert_eq!(sum(&reply), (total, value));
            }
        }
        stage.grid.quiesce(epoch);
        until("the end of the grid", || stage.grid.has_ended(epoch));
        warps.into_iter().for_each(|warp| warp.join().unwrap());
        let report = first.report();
        assert_eq!((report.sent[0], report.sent[1]), (0, 10 * lap));
        assert_eq!(second.report().received, 10 * lap);
        stage.write(&stage.grid.unlink(0, &dealer, way, report.sent[1]));
    }
    assert_eq!(first.counters().sent, 20);
    let refused = stage.grid.link(0, &dealer, Way::Target(0), EdgePlan { share: 0, ..edge }, 0);
    assert_eq!(refused, Err(PlanError::ShareTooSmall { edge: 0, share: 0, least: 1 }));
}

/// Waits for a record of numbers: its header and its first number; they follow each other.
fn received_span(port: &mut Port) -> (SlotHeader, i64) {
    let (mut header, mut payload) = (None, Vec::new());
    until("a reply", || {
        header = port.receive_into(&mut payload);
        header.is_some()
    });
    let first = numbers_of(&payload)[0];
    assert_eq!(numbers_of(&payload), spanned(first));
    (header.unwrap(), first)
}

#[test]
fn records_of_several_slots_are_whole_on_every_band_and_the_most_urgent_go_first() {
    // Windows of two records and some more, so that they lie across the end of the ring.
    let shape = Shape { window: 13, ..Shape::default() };
    let mut stage = Stage::new(shape);
    let mut port = stage.seat(0, &plan_of_spans());
    let (mut token, mut expected) = (0, Vec::new());
    for lap in 0..50 {
        for band in [Band::Low, Band::Normal, Band::High, Band::System] {
            // What the kernel is done with it tells in time, or as it leaves.
            let mut first = |_| {
                token += 1;
                assert!(port.send_slots(band, span(token, i64::from(token))), "lap {lap}");
                token
            };
            expected.push((0..2).map(&mut first).collect::<Vec<u32>>());
            assert!(!port.send_slots(band, span(0, 0)), "there is room for two");
        }
        port.command(COMMAND_RUN);
        let (epoch, parameters) = stage.launch(None, None);
        let warps: Vec<_> =
            (0..=1).map(|warp| thread::spawn(compiled().warp(parameters, warp))).collect();
        for tokens in expected.drain(..).rev() {
            for token in tokens {
                let (header, first) = received_span(&mut port);
                assert_eq!((header.token, first), (token, i64::from(token) + 100));
            }
        }
        stage.grid.quiesce(epoch);
        until("the end of the grid", || stage.grid.has_ended(epoch));
        warps.into_iter().for_each(|warp| warp.join().unwrap());
        assert_eq!(port.report().processed, 8 * (lap + 1));
        assert_eq!(port.done(), [10 * (lap + 1); 4]);
    }
    assert_eq!(port.counters().replied, 400);
}

#[test]
fn a_record_of_which_a_slot_is_missing_is_not_there_yet() {
    let mut stage = Stage::new(Shape::default());
    let mut port = stage.seat(0, &plan_of_spans());
    port.command(COMMAND_RUN);
    let (epoch, parameters) = stage.launch(None, None);
    let warps: Vec<_> =
        (0..=1).map(|warp| thread::spawn(compiled().warp(parameters, warp))).collect();
    for number in 0..20 {
        let mut slots = span(number, i64::from(number));
        let last = slots.len() - 1;
        for slot in slots.by_ref().take(last) {
            port.send(Band::Normal, slot).unwrap();
        }
        // Meanwhile a whole one on another band, which is handled.
        assert!(port.send_slots(Band::Low, span(1000, 1000)));
        assert_eq!(received_span(&mut port).0.token, 1000);
        assert!(port.receive_into(&mut Vec::new()).is_none());
        port.send(Band::Normal, slots.next().unwrap()).unwrap();
        assert_eq!(received_span(&mut port).0.token, number);
    }
    port.command(COMMAND_DRAIN);
    until("the end of the grid", || stage.grid.has_ended(epoch));
    warps.into_iter().for_each(|warp| warp.join().unwrap());
    assert_eq!(port.counters().processed, 40);
}

#[test]
fn records_of_several_slots_go_between_kernels_and_come_back_whole() {
    let shape = Shape { seats: 2, inbox_capacity: 16, edges: 2, edges_in: 1, ..Shape::default() };
    let mut stage = Stage::new(shape);
    let spans = plan_of_spans();
    let sender = SeatPlan { max_emit: 1, send_only: 1, open: vec![200], ..spans.clone() };
    let mut first = stage.seat(0, &sender);
    let mut second = stage.seat(1, &spans);
    // Three records of five slots in an inbox of sixteen.
    let edge = EdgePlan { to: 1, number: 0, share: 3, record_bytes: 200 };
    let way = Way::Target(0);
    let refused = stage.grid.link(0, &sender, way, EdgePlan { share: 4, ..edge }, 0);
    assert!(matches!(refused, Err(PlanError::TooLarge { wanted: 20, most: 16, .. })));
    for write in stage.grid.link(0, &sender, way, edge, 0).unwrap() {
        stage.write(&write);
    }
    let (epoch, parameters) = stage.launch(None, None);
    let warps: Vec<_> =
        (0..=2).map(|warp| thread::spawn(compiled().warp(parameters, warp))).collect();
    [&first, &second].into_iter().for_each(|port| port.command(COMMAND_RUN));
    for value in 0..100 {
        until("room", || first.send_slots(Band::Normal, span(7, value)));
        let (header, reply) = received_span(&mut first);
        assert_eq!((header.token, reply), (7, value + 100));
        let (header, reply) = received_span(&mut second);
        assert_eq!((header.token, reply), (u32::MAX, value + 200));
    }
    second.command(COMMAND_HOLD);
    until("it holds", || second.report().state == STATE_HOLDING);
    for value in 100..103 {
        until("room", || first.send_slots(Band::Normal, span(7, value)));
        assert_eq!(received_span(&mut first).1, value + 100);
    }
    first.command(COMMAND_STOP);
    second.command(COMMAND_STOP);
    until("the end of the grid", || stage.grid.has_ended(epoch));
    warps.into_iter().for_each(|warp| warp.join().unwrap());
    let (offset, bytes) = stage.grid.inbox(1);
    let inbox = stage.read(offset, bytes);
    let unread = stage.grid.unread(&inbox, 5);
    let firsts = unread.iter().map(|slots| {
        let bytes: Vec<u8> = slots.iter().flat_map(|slot| slot.bytes()).collect();
        numbers_of(&bytes[8..208])[0]
    });
    assert_eq!(firsts.collect::<Vec<_>>(), [200, 201, 202]);
    assert_eq!((first.report().sent[0], second.report().received), (103, 100));
    // They are taken out, and what the other edges sent stays.
    let (taken, writes) = stage.grid.take_out(1, &inbox, 0, 5);
    assert_eq!(taken.len(), unread.len());
    writes.iter().for_each(|write| stage.write(write));
    assert!(stage.grid.unread(&stage.read(offset, bytes), 5).is_empty());
}

#[test]
fn a_long_message_of_another_kernel_goes_to_the_host_whole_when_its_kernel_fails_at_it() {
    let shape = Shape { seats: 2, inbox_capacity: 16, edges: 2, edges_in: 1, ..Shape::default() };
    let mut stage = Stage::new(shape);
    let spans = plan_of_spans();
    // The second sends on, which it did not declare: it fails.
    let mut first = stage.seat(0, &spans);
    let mut second = stage.seat(1, &SeatPlan { open: vec![200], ..spans.clone() });
    stage.link(0, &spans, EdgePlan { to: 1, number: 0, share: 3, record_bytes: 200 });
    let (epoch, parameters) = stage.launch(None, None);
    let warps: Vec<_> =
        (0..=2).map(|warp| thread::spawn(compiled().warp(parameters, warp))).collect();
    [&first, &second].into_iter().for_each(|port| port.command(COMMAND_RUN));
    assert!(first.send_slots(Band::Normal, span(PASSING, 1)));
    let (header, message) = received_span(&mut second);
    assert_eq!((header.token, message), (PASSING, 101));
    assert_eq!(u32::from(header.flags), FLAG_FAULTED);
    until("it fails", || second.report().state == STATE_FAILED);
    assert_eq!((second.report().fault, second.report().received), (FAULT_EMIT_LIMIT, 1));
    first.command(COMMAND_STOP);
    until("the end of the grid", || stage.grid.has_ended(epoch));
    warps.into_iter().for_each(|warp| warp.join().unwrap());
}
