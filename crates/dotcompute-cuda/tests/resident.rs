//! A grid that stays, by the host's code as it ships, on a driver that stands in for NVIDIA's: the
//! device's own sources run on host threads, and what would wait for a resident grid does wait.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod standin;

use std::sync::RwLockWriteGuard;
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::TaggedRecord;
use dotcompute_abi::control::{
    COMMAND_DRAIN, COMMAND_RUN, COMMAND_STOP, STATE_RUNNING, STATE_STOPPED,
};
use dotcompute_cuda::compute::{Context, PinnedBuffer};
use dotcompute_cuda::grid::{EdgePlan, PlanError, Port, SeatPlan, Shape};
use dotcompute_cuda::resident::{Residency, Resident, ResidentError};
use dotcompute_cuda::{Image, Scope, Version};
use dotcompute_mailbox::Band;
use standin::StandIn;

/// As in `twin/handlers.cpp`: replies with the sum of all values.
const ADD: u32 = 0;
/// Does what the value says; 5: until it is killed.
const OBEY: u32 = 2;

fn stand_in() -> (&'static StandIn, RwLockWriteGuard<'static, ()>) {
    let stand_in = StandIn::get();
    (stand_in, stand_in.alone())
}

fn launch(stand_in: &StandIn, seats: u32, residency: Residency) -> Resident {
    // SAFETY: the stand-in has its handlers in itself and looks at no image.
    let image = unsafe { Image::from_cubin(vec![0; 64], Vec::new(), Scope::Lane) };
    let shape = Shape { seats, ..Shape::default() };
    Resident::launch(stand_in.driver, 0, image, shape, residency).unwrap()
}

fn plan(handler: u32) -> SeatPlan {
    SeatPlan { handler, reply_bytes: 16, ..SeatPlan::default() }
}

fn send(port: &mut Port, value: i64) {
    let record = TaggedRecord::new(0, &value.to_le_bytes()).unwrap();
    until("there is room", || port.send(Band::Normal, record).is_ok());
}

/// The sum in the next reply.
fn sum(port: &mut Port) -> i64 {
    let mut reply = None;
    until("a reply", || {
        reply = port.receive();
        reply.is_some()
    });
    i64::from_le_bytes(reply.unwrap().payload[..8].try_into().unwrap())
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(100);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::yield_now();
    }
}

const LONG: Duration = Duration::from_secs(100);

#[test]
fn a_kernel_goes_on_over_many_leases_and_loses_nothing() {
    let (stand_in, _turn) = stand_in();
    let lease = Some(Duration::from_millis(5));
    let resident = launch(
        stand_in,
        1,
        Residency { lease, silence: None, census: LONG, ..Residency::default() },
    );
    let mut port = resident.seat(0, plan(ADD)).unwrap();
    port.command(COMMAND_RUN);
    let began = Instant::now();
    let mut count = 0;
    while began.elapsed() < Duration::from_millis(300) || count < 1000 {
        send(&mut port, 1);
        count += 1;
        assert_eq!(sum(&mut port), count);
    }
    port.command(COMMAND_DRAIN);
    until("it has stopped", || port.report().state == STATE_STOPPED);
    resident.end(LONG).unwrap();
    assert_eq!(port.counters().processed, count as u64);
}

#[test]
fn kernels_join_a_grid_that_runs() {
    let (stand_in, _turn) = stand_in();
    let resident = launch(stand_in, 3, Residency { census: LONG, ..Residency::default() });
    let mut first = resident.seat(0, plan(ADD)).unwrap();
    first.command(COMMAND_RUN);
    send(&mut first, 20);
    assert_eq!(sum(&mut first), 20);
    let mut second = resident.seat(2, plan(ADD)).unwrap();
    second.command(COMMAND_RUN);
    send(&mut second, 1);
    send(&mut first, 22);
    assert_eq!((sum(&mut first), sum(&mut second)), (42, 1));
    assert_eq!(resident.seat(2, plan(ADD)).unwrap_err(), ResidentError::Taken(2));
    let error = resident.seat(3, plan(ADD)).unwrap_err();
    assert!(matches!(error, ResidentError::Plan(PlanError::TooLarge { .. })), "{error}");
    // What did not work harms nobody.
    send(&mut first, 0);
    assert_eq!(sum(&mut first), 42);
    resident.end(LONG).unwrap();
}

/// Whoever waits for the device, as other libraries of the process may, waits for leases to end; and
/// without leases waits for ever, which is why they are the default.
#[test]
fn a_call_that_waits_for_the_device_waits_no_longer_than_its_leases() {
    let (stand_in, _turn) = stand_in();
    let lease = Some(Duration::from_millis(50));
    let resident = launch(
        stand_in,
        1,
        Residency { lease, silence: None, census: LONG, ..Residency::default() },
    );
    let port = resident.seat(0, plan(ADD)).unwrap();
    port.command(COMMAND_RUN);
    until("it runs", || port.report().state == STATE_RUNNING);
    let before = (stand_in.waited)();
    // Another grid's memory and code are such calls.
    let other = launch(stand_in, 1, Residency { census: LONG, ..Residency::default() });
    assert!((stand_in.waited)() > before, "nothing waited");
    port.command(COMMAND_STOP);
    resident.end(LONG).unwrap();
    other.end(LONG).unwrap();
}

#[test]
fn a_handler_that_does_not_come_back_is_reported_by_its_deadline() {
    let (stand_in, _turn) = stand_in();
    let residency = Residency { lease: None, silence: None, census: LONG, ..Residency::default() };
    let resident = launch(stand_in, 1, residency);
    let mut port = resident.seat(0, plan(OBEY)).unwrap();
    port.command(COMMAND_RUN);
    send(&mut port, 5);
    until("it is busy", || port.report().busy == 1);
    let ended = resident.end(Duration::from_millis(50));
    assert_eq!(ended, Err(ResidentError::Stuck));
    assert_eq!(port.report().busy, 1, "the suspect is named");
    // It ticks, so a kill still ends it, and the device is free.
    port.command(dotcompute_abi::control::COMMAND_KILL);
    until("it has failed", || port.report().state == dotcompute_abi::control::STATE_FAILED);
}

#[test]
fn a_lost_device_is_an_error_with_its_name() {
    let (stand_in, _turn) = stand_in();
    let resident = launch(stand_in, 1, Residency { census: LONG, ..Residency::default() });
    (stand_in.lose)(719);
    let error = resident.seat(0, plan(ADD)).unwrap_err();
    assert!(error.to_string().contains("719: CUDA_ERROR_LAUNCH_FAILED"), "{error}");
    assert_eq!(resident.end(LONG), Err(ResidentError::Gone));
    (stand_in.lose)(0);
}

#[test]
fn a_grid_that_the_device_has_no_room_for_is_refused() {
    let (stand_in, _turn) = stand_in();
    assert_eq!(stand_in.driver.version(), Version::new(13, 0));
    // SAFETY: as in `launch`.
    let image = unsafe { Image::from_cubin(vec![0; 64], Vec::new(), Scope::Lane) };
    let launch = |shape| {
        Resident::launch(stand_in.driver, 0, image.clone(), shape, Residency::default())
            .unwrap_err()
    };
    // 4 multiprocessors of 16 blocks of 4 warps.
    let error = launch(Shape { seats: 256, ..Shape::default() });
    assert_eq!(error, ResidentError::NoRoom { blocks: 65, most: 64 });
    assert!(matches!(launch(Shape { seats: 0, ..Shape::default() }), ResidentError::Shape(_)));
}

/// As a program does that frees arrays while its actors run.
#[test]
fn a_free_beside_a_resident_grid_waits_for_nothing_and_comes_when_that_ends() {
    let (stand_in, _turn) = stand_in();
    let context = Context::of(stand_in.driver, 0).unwrap();
    let buffer = PinnedBuffer::new(&context, 100).unwrap();
    let lease = Residency { lease: None, silence: None, census: LONG, ..Residency::default() };
    let resident = launch(stand_in, 1, lease);
    let mut port = resident.seat(0, plan(ADD)).unwrap();
    port.command(COMMAND_RUN);
    until("it runs", || port.report().state == STATE_RUNNING);
    let before = (stand_in.waited)();
    drop(buffer);
    // Streams and their memory go on as well.
    let stream = context.stream().unwrap();
    let memory = context.pool().unwrap().allocate(64, &stream).unwrap();
    stream.write(&memory, 0, &[7; 64]).unwrap();
    drop(memory);
    stream.synchronize().unwrap();
    assert_eq!((stand_in.waited)(), before, "something waited for the grid");
    assert_eq!(context.frees_put_off(), 1);
    send(&mut port, 42);
    assert_eq!(sum(&mut port), 42);
    port.command(COMMAND_STOP);
    resident.end(LONG).unwrap();
    // The grid of an earlier test may be about to end, and hold it up too.
    until("it is freed", || context.frees_put_off() == 0);
}

#[test]
fn edges_that_could_lose_a_record_are_refused() {
    let (stand_in, _turn) = stand_in();
    // SAFETY: as in `launch`.
    let image = unsafe { Image::from_cubin(vec![0; 64], Vec::new(), Scope::Lane) };
    let shape = Shape { seats: 4, inbox_capacity: 16, edges: 2, edges_in: 4, ..Shape::default() };
    let residency = Residency { census: LONG, ..Residency::default() };
    let resident = Resident::launch(stand_in.driver, 0, image, shape, residency).unwrap();
    let edge = |to, number, share| EdgePlan { to, number, share, record_bytes: 8 };
    let with = |edges: &[EdgePlan]| SeatPlan { edges: edges.to_vec(), ..plan(ADD) };
    let refused = |seat, edges: &[EdgePlan]| match resident.seat(seat, with(edges)) {
        Err(ResidentError::Plan(error)) => error,
        other => panic!("{other:?}"),
    };
    let mut first = resident.seat(0, with(&[edge(3, 0, 12)])).unwrap();
    let error = refused(1, &[edge(3, 1, 8)]);
    assert_eq!(error, PlanError::SharesTooLarge { to: 3, shares: 20, capacity: 16 });
    assert_eq!(refused(1, &[edge(3, 0, 4)]), PlanError::EdgeTaken { to: 3, number: 0 });
    assert_eq!(
        refused(1, &[edge(2, 0, 4), edge(2, 0, 4)]),
        PlanError::EdgeTaken { to: 2, number: 0 }
    );
    resident.seat(1, with(&[edge(3, 1, 4)])).unwrap();
    first.command(COMMAND_RUN);
    until("it runs", || first.report().state == STATE_RUNNING);
    assert_eq!(refused(3, &[]), PlanError::Target { seat: 3, from: 0 });
    // Nobody is harmed.
    send(&mut first, 3);
    assert_eq!(sum(&mut first), 3);
    resident.end(LONG).unwrap();
}
