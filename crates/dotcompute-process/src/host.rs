//! The child's end: takes messages out of their ring, runs the kernel, and publishes replies and
//! acknowledgements.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_core::compiled::{CompiledCalls, RecordMessage, RecordReply};
use dotcompute_core::{
    BoxError, CompiledHandler, Envelope, Fault, FaultKind, Handler, HandlerCalls, KernelRef, Made,
    Message, MessageId,
};
use dotcompute_mailbox::doorbell::Waiting;
use dotcompute_mailbox::sync::{AtomicBool, Ordering};

use crate::coder::{Coder, Outgoing};
use crate::frame::{FromRing, Head, Prefix, Reader, ToRing, Writer};
use crate::memory::Memory;
use crate::output::ToParent;
use crate::segment::{DRAIN, FROM_CHILD, HOLD, ParentBell, RUN, STOP, Segment, TO_CHILD, is_end};
use crate::socket::{self, Report, Setup};
use crate::state::SharedState;

/// How many messages a handler handles before it publishes what came of them, where more are there.
const ACKNOWLEDGE_EVERY: u64 = 32;
/// How long the parent may be left unaware of what a handler acknowledged, if nothing else tells it.
const TELL_WITHIN: Duration = Duration::from_micros(200);

/// A child's ends of what joins it with its parent.
#[derive(Debug)]
pub struct Host {
    segment: Arc<Segment>,
    from_parent: FromRing,
    to_parent: ToRing,
    parent: ParentBell,
    socket: OwnedFd,
    setup: Setup,
    reader: Reader,
    writer: Writer,
    waiting: Waiting,
    woken: Arc<Woken>,
    /// Position of the last message taken out of the ring.
    received: u64,
    /// What was acknowledged last.
    acknowledged: u64,
    /// What of that the parent was woken for, and since when it has been unaware of more.
    told: u64,
    quiet_since: Option<Instant>,
    demand: u64,
    /// The last message that a reply says is processed, of those replies that were put into the ring.
    said: u64,
    /// What the parent knows, or will from what is in the ring: what was acknowledged, and the demand.
    known: (u64, u64),
    /// Whether something was put down that the parent finds only if its news say so.
    unheard: bool,
    /// Whether the parent knows that this process came to what it was started for.
    started: bool,
    /// The state in shared memory, if the parent gave one.
    state: Option<KeptState>,
    /// What the launch lent besides.
    memory: Vec<Memory>,
}

/// What a message is handed over with.
struct Delivery {
    position: u64,
    /// How often it was delivered.
    count: u8,
    /// Whether somebody waits for the answer.
    asked: bool,
}

/// What is called message by message.
trait Calls<M, R> {
    /// Handles a message; appends what it made.
    fn call(
        &mut self,
        message: &M,
        delivery: &Delivery,
        made: &mut Vec<Made<R>>,
    ) -> Result<(), BoxError>;

    /// What was sent to the target of this number with that message, and whether as one that is no
    /// batch.
    fn sent(&mut self, _target: usize) -> Option<(&[u8], bool)> {
        None
    }

    /// The words of the state, as that message left them.
    fn state(&self) -> &[u64] {
        &[]
    }
}

impl<H: Handler> Calls<H::In, H::Out> for HandlerCalls<H> {
    fn call(
        &mut self,
        message: &H::In,
        delivery: &Delivery,
        made: &mut Vec<Made<H::Out>>,
    ) -> Result<(), BoxError> {
        Self::call(self, message, delivery.position, delivery.count, made)
    }
}

impl<M: RecordMessage, R: RecordReply> Calls<M, R> for CompiledCalls {
    fn call(
        &mut self,
        message: &M,
        delivery: &Delivery,
        made: &mut Vec<Made<R>>,
    ) -> Result<(), BoxError> {
        Self::call(self, message, delivery.asked, made)
    }

    fn sent(&mut self, target: usize) -> Option<(&[u8], bool)> {
        Self::sent(self, target)
    }

    fn state(&self) -> &[u64] {
        Self::state(self)
    }
}

/// A state of more words is copied so seldom as can be: each message is acknowledged by itself.
const STATE_WORDS_SMALL: usize = 512;

/// The state on its way to shared memory.
#[derive(Debug)]
struct KeptState {
    shared: SharedState,
    /// As of the last message that was handled well, and the position of that.
    last: Vec<u64>,
    at: u64,
    /// As of the message before.
    before: Vec<u64>,
    /// The position of the version that was committed last.
    committed: u64,
}

impl KeptState {
    /// The message at this position left the state so.
    fn handled(&mut self, position: u64, state: &[u64]) {
        std::mem::swap(&mut self.before, &mut self.last);
        self.last.clear();
        self.last.extend_from_slice(state);
        self.at = position;
    }

    /// Before anything is published that acknowledges the message that was handled last, or, if not
    /// `whole`, perhaps only those before it.
    fn commit(&mut self, whole: bool) {
        if !whole && self.committed + 1 < self.at {
            self.shared.commit(self.at - 1, &self.before);
            self.committed = self.at - 1;
        }
        if self.committed < self.at {
            self.shared.commit(self.at, &self.last);
            self.committed = self.at;
        }
    }
}

/// A waker of this process said that there is something to do.
#[derive(Debug)]
struct Woken {
    woken: AtomicBool,
    segment: Arc<Segment>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // SYNC(process.host_woken) release: pairs with the acquires in `Host`. Makes visible what the
        // waker did before.
        self.woken.store(true, Ordering::Release);
        self.segment.child_bell().ring();
    }
}

impl Host {
    /// Takes over what the parent hands over through `socket`, and sees to it that this process
    /// ends with its parent.
    pub(crate) fn attach(socket: OwnedFd) -> rustix::io::Result<Self> {
        let (setup, files) = socket::receive_setup(&socket)?;
        let mut files = files.into_iter();
        let mut file = || files.next().ok_or(rustix::io::Errno::BADMSG);
        let (segment, bell) = (file()?, file()?);
        let state = match setup.state_bytes {
            None => None,
            Some(bytes) => Some(SharedState::attach(Memory::map(file()?)?, bytes as usize)?),
        };
        let memory = files.map(Memory::map).collect::<Result<_, _>>()?;
        let (segment, there, back) = Segment::attach(Memory::map(segment)?)?;
        let parent = ParentBell::attach(Memory::map(bell)?)?;
        let watched = socket.try_clone().map_err(|_| rustix::io::Errno::MFILE)?;
        thread::Builder::new()
            .name("dotcompute-parent".into())
            .stack_size(64 * 1024)
            .spawn(move || end_with_parent(&watched))
            .map_err(|_| rustix::io::Errno::AGAIN)?;
        if setup.log_level > 0 {
            let socket = socket.try_clone().map_err(|_| rustix::io::Errno::MFILE)?;
            // A program that has a subscriber of its own keeps it.
            let _ = tracing::subscriber::set_global_default(ToParent {
                socket,
                level: setup.log_level,
            });
        }
        let woken = AtomicBool::new(false);
        Ok(Self {
            woken: Arc::new(Woken { woken, segment: Arc::clone(&segment) }),
            reader: Reader::new(&segment, TO_CHILD),
            writer: Writer::new(&segment, FROM_CHILD),
            segment,
            from_parent: there.consumer(),
            to_parent: back.producer(),
            parent,
            socket,
            setup,
            waiting: Waiting::default(),
            received: 0,
            acknowledged: 0,
            told: 0,
            quiet_since: None,
            demand: 0,
            said: 0,
            known: (0, 0),
            unheard: false,
            started: false,
            state: state.map(|shared| KeptState {
                shared,
                last: Vec::new(),
                at: 0,
                before: Vec::new(),
                committed: 0,
            }),
            memory,
        })
    }

    /// The name that the kernel's code is registered under.
    pub fn entry(&self) -> &str {
        &self.setup.entry
    }

    /// The kernel's own name.
    pub fn kernel(&self) -> &str {
        &self.setup.kernel
    }

    /// What the launch gave it as arguments.
    pub fn args(&self) -> &[u8] {
        &self.setup.args
    }

    /// The memory that the launch lent it ([`Process::memory`](crate::Process::memory)), in that order;
    /// once.
    pub fn take_memory(&mut self) -> Vec<Memory> {
        std::mem::take(&mut self.memory)
    }

    /// How many messages it may be handed at a time.
    pub fn window(&self) -> usize {
        self.setup.window.max(1) as usize
    }

    /// Tells the parent that this process came to its kernel's code, for which there is a
    /// [deadline](crate::Process::start_within). [`Kernels::child_main`](crate::Kernels::child_main)
    /// and the methods that run a kernel do so.
    pub fn started(&mut self) {
        if !std::mem::replace(&mut self.started, true) {
            // Without a parent there is nobody to tell.
            let _ = socket::send_report(self.socket.as_fd(), &Report::Started);
        }
    }

    /// Waits until the kernel is activated in the parent: nothing of a body runs before, as with
    /// every executor. (A handler may be made before; it handles nothing.)
    pub fn wait_for_activation(&mut self) {
        self.started();
        self.wait(|host| host.segment.command() != HOLD);
    }

    /// Logs to the parent, from any thread.
    pub fn log(&self) -> std::io::Result<Log> {
        Ok(Log { socket: self.socket.try_clone()? })
    }

    /// Reports to the parent how the kernel ended. The process is to exit then, within seconds.
    pub fn end(self, outcome: Result<(), Fault>) {
        // SYNC(process.ended) release: pairs with the acquire in `end_with_parent`. Nothing else.
        ENDED.store(true, Ordering::Release);
        let report = match outcome {
            Ok(()) => Report::Returned,
            Err(fault) => Report::Faulted(fault),
        };
        // Without a parent there is nobody to tell.
        let _ = socket::send_report(self.socket.as_fd(), &report);
    }

    /// Runs a handler over the messages until the parent says that it is over, or it fails.
    ///
    /// # Errors
    ///
    /// What it failed with. What it handled before is acknowledged.
    pub fn run_handler<H: Handler>(
        &mut self,
        handler: H,
        messages: &Coder<H::In>,
        replies: &Coder<H::Out>,
    ) -> Result<(), Fault> {
        let segment = Arc::clone(&self.segment);
        let find = Arc::new(move |position| segment.id(position));
        self.run_calls(HandlerCalls::new(handler, find), messages, replies)
    }

    /// Runs a compiled handler over the messages until the parent says that it is over, or it fails.
    /// Its state begins as the last child left it, where the parent keeps it.
    ///
    /// # Errors
    ///
    /// What it failed with. What it handled before is acknowledged.
    pub fn run_compiled<M: RecordMessage, R: RecordReply>(
        &mut self,
        handler: CompiledHandler,
        messages: &Coder<M>,
        replies: &Coder<R>,
    ) -> Result<(), Fault> {
        let segment = Arc::clone(&self.segment);
        let must_stop = move || segment.command() == STOP;
        let mut calls = CompiledCalls::new(handler, &self.setup.kernel, must_stop);
        let theirs = self.setup.state_bytes.map(|bytes| bytes as usize);
        if theirs.is_some() && theirs != calls.state_bytes() {
            let ours = calls.state_bytes();
            let message =
                format!("the parent's state has {theirs:?} bytes, the handler's {ours:?}");
            return Err(Fault::new(message));
        }
        if let Some(state) = &mut self.state {
            calls.set_state(&state.shared.latest());
            state.last.extend_from_slice(calls.state());
        }
        self.run_calls(calls, messages, replies)
    }

    fn run_calls<M: Message, R: Message>(
        &mut self,
        mut calls: impl Calls<M, R>,
        messages: &Coder<M>,
        replies: &Coder<R>,
    ) -> Result<(), Fault> {
        self.started();
        let every = match &self.state {
            Some(_) if calls.state().len() > STATE_WORDS_SMALL => 1,
            _ => ACKNOWLEDGE_EVERY,
        };
        let mut made = Vec::new();
        let window = self.window() as u64;
        self.acknowledge(0, window);
        loop {
            // Before the ring: what was handed over before the command is in it.
            let command = self.segment.command();
            while self.segment.command() != STOP && self.next()? {
                let (message, prefix) = self.read(messages)?;
                let (position, asked) = (self.received, self.reader.is_asked());
                let count = prefix.map_or(1, |prefix| prefix.delivery_count);
                let delivery = Delivery { position, count, asked };
                let call = AssertUnwindSafe(|| calls.call(&message, &delivery, &mut made));
                if let Err(fault) = flatten(catch_unwind(call)) {
                    self.acknowledge(self.received - 1, 0);
                    return Err(fault);
                }
                if let Some(state) = &mut self.state {
                    state.handled(self.received, calls.state());
                }
                let mut target = 0;
                while let Some((records, single)) = calls.sent(target) {
                    if !records.is_empty() {
                        let prefix = Some(Prefix::to_target(target, single));
                        let head = self.head(position, prefix, false);
                        self.put(head, |out| {
                            out.bytes.extend_from_slice(records);
                            Ok(())
                        })?;
                    }
                    target += 1;
                }
                let replied = !made.is_empty();
                let mut left = made.len();
                for made in made.drain(..) {
                    left -= 1;
                    self.answer(position, made, left == 0, replies)?;
                }
                if replied {
                    self.said = position;
                }
                // After a fault one by one, so that it is known whose it is.
                let since = self.received - self.acknowledged;
                if since >= every || count > 1 {
                    self.acknowledge_quietly(self.received, self.received + window);
                }
            }
            if self.received > self.told {
                self.acknowledge(self.received, self.received + window);
            } else if is_end(command) {
                return Ok(());
            }
            self.wait(|host| is_end(host.segment.command()) || !host.from_parent.is_empty());
        }
    }

    /// Hands the messages to a kernel of this process and its replies to the parent, until it ends.
    ///
    /// The kernel needs a mailbox of at least [`window`](Self::window) messages and
    /// [`keep_replies`](dotcompute_core::KernelBuilder::keep_replies), and is driven elsewhere.
    ///
    /// # Errors
    ///
    /// What it failed with.
    pub fn run_kernel<M: Message, R: Message>(
        &mut self,
        kernel: &KernelRef<M, R>,
        messages: &Coder<M>,
        replies: &Coder<R>,
    ) -> Result<(), Fault> {
        self.started();
        let waker = Waker::from(Arc::clone(&self.woken));
        let mut cx = TaskContext::from_waker(&waker);
        let mut ended = Box::pin(kernel.ended());
        let mut receiving = kernel.receiving();
        // The ids of the messages that are not acknowledged, oldest first.
        let mut unsettled: VecDeque<MessageId> = VecDeque::new();
        let mut told = RUN;
        let mut refused = false;
        loop {
            // SYNC(process.host_woken) acquire: pairs with the release in `wake_by_ref`.
            self.woken.woken.swap(false, Ordering::Acquire);
            // First whether it is over and how far it came, then its replies: those that belong to
            // it are there by then.
            let ending = match ended.as_mut().poll(&mut cx) {
                Poll::Ready(outcome) => Some(outcome),
                Poll::Pending => None,
            };
            let (books, awaited) = kernel.books_awaited(&mut cx);
            let settled = books.processed + books.expired;
            while let Poll::Ready(Ok(reply)) = std::pin::Pin::new(&mut receiving).poll(&mut cx) {
                receiving = kernel.receiving();
                let named = reply.correlation_id;
                let index = unsettled.iter().position(|id| Some(*id) == named);
                let index = index.or((named.is_none() && !unsettled.is_empty()).then_some(0));
                let token = index.map_or(0, |index| self.acknowledged + 1 + index as u64);
                let head = self.head(token, Some(Prefix::of(&reply)), false);
                self.put(head, |out| (replies.encode)(&reply, out))?;
            }
            if let Some(outcome) = ending {
                // Of those that are not settled it had one in hand, and only if it failed.
                let in_hand = u64::from(outcome.is_err());
                self.received = self.received.min(settled + in_hand);
                self.segment.set_received(self.received);
                self.acknowledge(settled, 0);
                return outcome;
            }
            let demand = match self.window() {
                1 if awaited && settled == self.received => self.received + 1,
                1 => self.demand,
                window => settled + window as u64,
            };
            if settled > self.acknowledged || demand > self.demand {
                unsettled.drain(..(settled - self.acknowledged) as usize);
                self.acknowledge(settled, demand);
            } else if self.writer.staged() > 0 {
                self.publish(false);
            }
            // The command before the ring, as for a handler.
            let command = self.segment.command();
            while command != STOP && !refused && self.next()? {
                let (message, prefix) = self.read(messages)?;
                let id = self.segment.id(self.received);
                let envelope = match prefix {
                    None => Envelope::new(message).with_id(id),
                    Some(Prefix { correlation_id, priority, delivery_count, .. }) => {
                        Envelope::with_parts(id, correlation_id, priority, message)
                            .with_delivery_count(delivery_count)
                    }
                };
                match kernel.try_send(envelope) {
                    Ok(()) => unsettled.push_back(id),
                    // It has just ended by itself, which the next turn finds.
                    Err(_) => {
                        refused = true;
                        self.received -= 1;
                        self.segment.set_received(self.received);
                    }
                }
            }
            if command != told {
                told = command;
                kernel.stop(command == DRAIN);
            }
            self.wait(|host| {
                // SYNC(process.host_woken) acquire: as above, where it is taken.
                host.woken.woken.load(Ordering::Acquire)
                    || host.segment.command() != told
                    || (told != STOP && !refused && !host.from_parent.is_empty())
            });
        }
    }

    /// Takes the next message out of the ring; false if there is none.
    fn next(&mut self) -> Result<bool, Fault> {
        let found = self.reader.next(&mut self.from_parent);
        let found =
            found.map_err(|error| Fault::reported(FaultKind::Executor, error.to_string()))?;
        if found {
            self.received += 1;
            self.segment.set_received(self.received);
        } else if self.reader.is_inside() {
            // Of a long message there is room for more now.
            self.publish(false);
        }
        Ok(found)
    }

    fn read<T: Message>(&mut self, coder: &Coder<T>) -> Result<(T, Option<Prefix>), Fault> {
        coder.read(&mut self.reader).map_err(Fault::from_error)
    }

    fn head(&self, position: u64, prefix: Option<Prefix>, settles: bool) -> Head {
        Head { token: position as u32, prefix, asked: false, settles }
    }

    /// Puts what a handler made of the message at this position into the ring of replies; `last`: it is
    /// done with it.
    fn answer<T: Message>(
        &mut self,
        position: u64,
        made: Made<T>,
        last: bool,
        coder: &Coder<T>,
    ) -> Result<(), Fault> {
        let (envelope, prefix) = match made {
            // Its name it gets in the parent, which knows what it answers.
            Made::Reply(reply) => {
                let priority = reply.default_priority();
                (Envelope::with_parts(MessageId::from_u128(0), None, priority, reply), None)
            }
            Made::Sent(envelope) => {
                let prefix = Prefix::of(&envelope);
                (envelope, Some(prefix))
            }
        };
        let head = self.head(position, prefix, last);
        self.put(head, |out| (coder.encode)(&envelope, out))
    }

    /// Puts what `fill` appends into the ring of replies, to be published with the next acknowledgement;
    /// waits for room.
    fn put(
        &mut self,
        head: Head,
        fill: impl FnOnce(&mut Outgoing<'_>) -> Result<(), BoxError>,
    ) -> Result<(), Fault> {
        self.writer.begin(head, fill).map_err(Fault::from_error)?;
        while !self.writer.stage(&self.to_parent) {
            // Before the parent is told: it rings when it has read what it is told of.
            self.segment.set_wants_room(true);
            self.publish(false);
            self.wait(|host| host.to_parent.free() == host.to_parent.capacity());
            self.segment.set_wants_room(false);
        }
        Ok(())
    }

    /// Acknowledges everything up to `processed`, after the replies to it, and asks for messages up
    /// to `demand`. Replies and acknowledgement become known at once: a reply that is in the ring
    /// acknowledges its message, whether or not the word behind it was still written.
    fn acknowledge(&mut self, processed: u64, demand: u64) {
        self.acknowledged = processed.max(self.acknowledged);
        self.demand = demand.max(self.demand);
        self.publish(true);
    }

    /// The same while there are more messages. It wakes the parent only for replies, when half of the
    /// window is done, or when that has taken long: to wake it costs more than to handle a message.
    fn acknowledge_quietly(&mut self, processed: u64, demand: u64) {
        self.acknowledged = processed.max(self.acknowledged);
        self.demand = demand.max(self.demand);
        if self.put_down(true)
            || (self.acknowledged - self.told) * 2 >= self.window() as u64
            || self.quiet_since.get_or_insert_with(Instant::now).elapsed() >= TELL_WITHIN
        {
            self.tell();
        }
    }

    /// Publishes what is staged. `whole`: that is all that was made of the messages so far.
    fn publish(&mut self, whole: bool) {
        self.put_down(whole);
        self.tell();
    }

    /// Publishes it without a word to the parent; whether there were replies.
    fn put_down(&mut self, whole: bool) -> bool {
        if let Some(state) = &mut self.state {
            state.commit(whole);
        }
        let replied = self.writer.publish(&mut self.to_parent);
        if self.said > self.known.0 {
            // A reply that says so also says that as many more are wanted as the window has.
            self.known = (self.said, self.said + self.window() as u64);
        }
        let now = (self.acknowledged, self.demand);
        // Where the ring says it all, not one line more has to change hands.
        let is_more = now.0 > self.known.0 || now.1 > self.known.1;
        if is_more {
            self.segment.set_progress(self.acknowledged, self.demand);
            self.known = now;
        }
        self.unheard |= is_more || !replied;
        replied
    }

    fn tell(&mut self) {
        (self.told, self.quiet_since) = (self.acknowledged, None);
        // Replies are news by themselves.
        if std::mem::take(&mut self.unheard) {
            self.segment.tell();
        }
        self.parent.bell().ring();
    }

    fn wait(&mut self, ready: impl Fn(&Self) -> bool) {
        let mut waiting = std::mem::take(&mut self.waiting);
        self.segment.child_bell().wait_apart(&mut waiting, || ready(self));
        if waiting.has_moved() {
            self.parent.bell().will_ring_from_here();
        }
        self.waiting = waiting;
    }
}

fn flatten(
    outcome: Result<Result<(), BoxError>, Box<dyn std::any::Any + Send>>,
) -> Result<(), Fault> {
    match outcome {
        Ok(handled) => handled.map_err(Fault::from_error),
        Err(panic) => Err(Fault::from_panic(panic)),
    }
}

/// A way into the parent's log.
#[derive(Debug)]
pub struct Log {
    socket: OwnedFd,
}

impl Log {
    /// Logs `text` as coming from `target`. `level`: 1 (error) to 5 (trace). Waits while the parent
    /// does not keep up.
    pub fn send(&self, level: u8, target: &str, text: &str) {
        let report = Report::Log { level, target: target.into(), text: text.into() };
        // Without a parent there is nobody to tell.
        let _ = socket::send_report(&self.socket, &report);
    }
}

/// Whether this process has reported the end of its kernel.
static ENDED: AtomicBool = AtomicBool::new(false);

/// How long a process may take to exit after it reported the end of its kernel.
const EXIT_WITHIN: Duration = Duration::from_secs(5);

/// Ends this process when its parent is gone, or has no more use for it.
fn end_with_parent(socket: &OwnedFd) {
    // The parent sends nothing after the setup: whatever comes is the end.
    let _ = socket::receive_report(socket, true);
    // SYNC(process.ended) acquire: pairs with the release in `Host::end`.
    if ENDED.load(Ordering::Acquire) {
        let deadline = Instant::now() + EXIT_WITHIN;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            thread::park_timeout(left);
        }
    }
    // Not `exit`: what user code left to be done at the exit may wait for ever.
    let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    process::abort();
}
