//! kameo: actors on tokio with bounded mailboxes.

use std::convert::Infallible;
use std::sync::Arc;

use kameo::Actor;
use kameo::actor::{ActorRef, Spawn};
use kameo::mailbox;
use kameo::message::{Context, Message};
use tokio::runtime::Runtime;

use crate::harness::{Slice, Trips, Wrong, expect};
use crate::load::{Adder, CAPACITY, Sending};
use crate::memory::{Arrivals, Census};
use crate::os::pinned;
use crate::peers::tokio::{current_thread, one_worker};

#[derive(Actor)]
struct Echo;

struct Next(u64);

impl Message<Next> for Echo {
    type Reply = u64;

    async fn handle(&mut self, Next(number): Next, _: &mut Context<Self, u64>) -> u64 {
        number + 1
    }
}

pub(crate) fn ask(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let actor = Echo::spawn_with_mailbox(Echo, mailbox::bounded(CAPACITY));
            let mut trips = Trips::new(operations);
            for number in trips.by_ref() {
                let reply = actor.ask(Next(number)).send().await.map_err(Wrong::new)?;
                expect("reply", reply, number + 1)?;
            }
            actor.stop_gracefully().await.map_err(Wrong::new)?;
            actor.wait_for_shutdown().await;
            Ok(trips.finish())
        })
    })
}

#[derive(Actor)]
struct Sum(Adder);

struct Number(u64);

impl Message<Number> for Sum {
    type Reply = ();

    async fn handle(&mut self, Number(number): Number, _: &mut Context<Self, ()>) {
        self.0.add(number);
    }
}

/// Sender and actor are tasks on one thread.
pub(crate) fn tell_one_thread(operations: u64) -> Result<Slice, Wrong> {
    tell(&current_thread(), operations)
}

/// The sender has a thread of its own beside the worker.
pub(crate) fn tell_two_threads(operations: u64) -> Result<Slice, Wrong> {
    tell(&one_worker(), operations)
}

fn tell(runtime: &Runtime, operations: u64) -> Result<Slice, Wrong> {
    runtime.block_on(async {
        let (adder, reported) = Adder::new(operations);
        let actor = Sum::spawn_with_mailbox(Sum(adder), mailbox::bounded(CAPACITY));
        actor.wait_for_startup().await;
        let sending = Sending::start();
        for number in 0..operations {
            actor.tell(Number(number)).send().await.map_err(Wrong::new)?;
        }
        actor.stop_gracefully().await.map_err(Wrong::new)?;
        actor.wait_for_shutdown().await;
        sending.until_reported(&reported, operations)
    })
}

struct Idle;

impl Actor for Idle {
    type Args = Arc<Arrivals>;
    type Error = Infallible;

    async fn on_start(arrivals: Arc<Arrivals>, _: ActorRef<Self>) -> Result<Self, Infallible> {
        arrivals.arrive();
        Ok(Self)
    }
}

/// Actors that have started, on a runtime with its default workers.
pub(crate) fn idle_actors(count: u64) -> Result<Census, Wrong> {
    let runtime = Runtime::new().map_err(Wrong::new)?;
    let _inside = runtime.enter();
    Census::take(count, |_, arrivals| {
        Ok(Idle::spawn_with_mailbox(arrivals, mailbox::bounded(CAPACITY)))
    })
}
