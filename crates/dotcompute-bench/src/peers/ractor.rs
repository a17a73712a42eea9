//! ractor: actors on tokio. Its mailboxes are unbounded, so `cast` never waits for room.

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use tokio::runtime::Runtime;

use crate::harness::{Slice, Trips, Wrong, expect};
use crate::load::{Adder, Sending};
use crate::os::pinned;
use crate::peers::tokio::{current_thread, one_worker};

struct Echo;

enum EchoMessage {
    Next(u64, RpcReplyPort<u64>),
}

impl Actor for Echo {
    type Msg = EchoMessage;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<EchoMessage>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle(
        &self,
        _: ActorRef<EchoMessage>,
        EchoMessage::Next(number, reply): EchoMessage,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        reply.send(number + 1)?;
        Ok(())
    }
}

pub(crate) fn call(operations: u64) -> Result<Slice, Wrong> {
    pinned(|| {
        current_thread().block_on(async {
            let (actor, ended) = Actor::spawn(None, Echo, ()).await.map_err(Wrong::new)?;
            let mut trips = Trips::new(operations);
            for number in trips.by_ref() {
                let reply = actor
                    .call(|reply| EchoMessage::Next(number, reply), None)
                    .await
                    .map_err(Wrong::new)?;
                expect("reply", reply.success_or(()), Ok(number + 1))?;
            }
            actor.stop(None);
            ended.await.map_err(Wrong::new)?;
            Ok(trips.finish())
        })
    })
}

struct Sum;

struct Number(u64);

impl Actor for Sum {
    type Msg = Number;
    type State = Adder;
    type Arguments = Adder;

    async fn pre_start(
        &self,
        _: ActorRef<Number>,
        adder: Adder,
    ) -> Result<Adder, ActorProcessingErr> {
        Ok(adder)
    }

    async fn handle(
        &self,
        _: ActorRef<Number>,
        Number(number): Number,
        adder: &mut Adder,
    ) -> Result<(), ActorProcessingErr> {
        adder.add(number);
        Ok(())
    }
}

/// Sender and actor are tasks on one thread.
pub(crate) fn cast_one_thread(operations: u64) -> Result<Slice, Wrong> {
    cast(&current_thread(), operations)
}

/// The sender has a thread of its own beside the worker.
pub(crate) fn cast_two_threads(operations: u64) -> Result<Slice, Wrong> {
    cast(&one_worker(), operations)
}

fn cast(runtime: &Runtime, operations: u64) -> Result<Slice, Wrong> {
    runtime.block_on(async {
        let (adder, reported) = Adder::new(operations);
        let (actor, ended) = Actor::spawn(None, Sum, adder).await.map_err(Wrong::new)?;
        let sending = Sending::start();
        for number in 0..operations {
            actor.cast(Number(number)).map_err(|error| Wrong::new(error.to_string()))?;
        }
        actor.drain().map_err(|error| Wrong::new(error.to_string()))?;
        ended.await.map_err(Wrong::new)?;
        sending.until_reported(&reported, operations)
    })
}
