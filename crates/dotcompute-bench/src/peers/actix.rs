//! actix: actors on single-threaded tokio runtimes.

use actix::{Actor, ActorContext, Context, Handler, Message, System};

use crate::harness::{Slice, Trips, Wrong, expect};
use crate::load::CAPACITY;
use crate::os::pinned;

struct Echo;

impl Actor for Echo {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Context<Self>) {
        context.set_mailbox_capacity(CAPACITY);
    }
}

#[derive(Message)]
#[rtype(result = "u64")]
struct Next(u64);

impl Handler<Next> for Echo {
    type Result = u64;

    fn handle(&mut self, Next(number): Next, _: &mut Context<Self>) -> u64 {
        number + 1
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Stop;

impl Handler<Stop> for Echo {
    type Result = ();

    fn handle(&mut self, _: Stop, context: &mut Context<Self>) {
        context.stop();
    }
}

/// `send`, asker and actor in the same system.
pub(crate) fn send(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        System::new().block_on(async {
            let actor = Echo.start();
            let mut trips = Trips::new(operations);
            for number in trips.by_ref() {
                let reply = actor.send(Next(number)).await.map_err(Wrong::new)?;
                expect("reply", reply, number + 1)?;
            }
            actor.send(Stop).await.map_err(Wrong::new)?;
            Ok(trips.finish())
        })
    })
}
