//! A child process as its parent sees it: spawned, watched, and always reaped.

use std::any::Any;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_core::{Fault, FaultKind, KernelId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::CHILD_OF;
use crate::executor::Desk;
use crate::frame::{FromRing, ToRing};
use crate::memory::Memory;
use crate::output::{Output, Sink};
use crate::segment::Segment;
use crate::socket::{self, Report, Setup};

/// How a child came to its end, as far as is known: the first of its own report and its death.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Returned,
    Faulted(Fault),
    Died(ExitStatus),
}

impl Ending {
    /// The fault that it is for the kernel, if it is one.
    pub(crate) fn fault(&self, kernel: &KernelId) -> Option<Fault> {
        let status = match self {
            Self::Returned => return None,
            Self::Faulted(fault) => return Some(fault.clone()),
            Self::Died(status) => status,
        };
        let how = match status.signal() {
            Some(signal) => format!("was killed by signal {signal}"),
            None => format!("ended without a word, by {status}"),
        };
        let message = format!("the process of ring kernel '{kernel}' {how}");
        Some(Fault::reported(FaultKind::Executor, message))
    }
}

/// What its parent knows of a child that is to be started, besides what it is told.
pub(crate) struct Start {
    /// How long it may take to come to its first step.
    pub(crate) within: Duration,
    pub(crate) first_step: String,
    /// Takes what it writes.
    pub(crate) sink: Sink,
    /// What the thread that watches it keeps.
    pub(crate) kept: Box<dyn Any + Send>,
}

/// What all who deal with one child share.
#[derive(Debug)]
struct Running {
    /// Names the process, and never another one, also once it is gone.
    pidfd: OwnedFd,
    socket: OwnedFd,
    ending: OnceLock<Ending>,
}

/// A child and the parent's ends of what joins them. Dropped, it ends the child.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) segment: Arc<Segment>,
    pub(crate) to_child: ToRing,
    pub(crate) from_child: FromRing,
    child: Arc<Running>,
}

impl Session {
    /// Starts a child by `command` and hands over what it needs.
    pub(crate) fn spawn(
        mut command: Command,
        setup: &Setup,
        (slots, granules): (usize, usize),
        desk: &Arc<Desk>,
        lent: &[&Memory],
        start: Start,
    ) -> std::io::Result<Self> {
        let (segment, there, back) = Segment::create(slots, granules)?;
        let (ours, theirs) = socket::pair()?;
        let mut files = vec![segment.memory().file(), desk.signals.bell.memory().file()];
        files.extend(lent.iter().map(|memory| memory.file()));
        // Before the child exists: it finds its setup when it first looks.
        socket::send_setup(&ours, setup, &files)?;
        command
            .env(CHILD_OF, std::process::id().to_string())
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = command.spawn()?;
        // The command keeps the child's end of the socket open otherwise.
        drop(command);
        let pidfd = match pidfd_open(Pid::from_child(&process), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                process.kill()?;
                process.wait()?;
                return Err(error.into());
            }
        };
        let child = Arc::new(Running { pidfd, socket: ours, ending: OnceLock::new() });
        // From here on a drop of the session ends the child.
        let session = Self {
            segment,
            to_child: there.producer(),
            from_child: back.consumer(),
            child: Arc::clone(&child),
        };
        let desk = Arc::clone(desk);
        let kernel = KernelId::from(setup.kernel.as_str());
        thread::Builder::new()
            .name(format!("rk-{kernel}-child").replace('\0', "?"))
            .stack_size(256 * 1024)
            .spawn(move || {
                watch(process, &child, &desk, &kernel, &start);
                let Start { sink, kept, .. } = start;
                drop((sink, desk, child));
                drop(kept);
            })?;
        Ok(session)
    }

    /// How the child ended, once that is known. What it published before is in the segment then.
    pub(crate) fn ending(&self) -> Option<&Ending> {
        self.child.ending.get()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        match self.child.ending.get() {
            // It said so itself and is about to exit: the end of the socket ends it if it hangs.
            Some(Ending::Returned | Ending::Faulted(_)) => {
                let _ = rustix::net::shutdown(&self.child.socket, rustix::net::Shutdown::Both);
            }
            Some(Ending::Died(_)) => {}
            // Fails only if it is gone by now.
            None => drop(pidfd_send_signal(&self.child.pidfd, Signal::KILL)),
        }
    }
}

/// Passes on what the child writes and reports, until it is dead; then reaps it.
fn watch(mut process: Child, child: &Running, desk: &Desk, kernel: &KernelId, start: &Start) {
    let Start { within, first_step, sink, .. } = start;
    // Until it has come to its first step.
    let mut deadline = Instant::now().checked_add(*within);
    let mut out = process.stdout.take().map(|pipe| Lines::new(OwnedFd::from(pipe)));
    let mut err = process.stderr.take().map(|pipe| Lines::new(OwnedFd::from(pipe)));
    let mut reports = true;
    loop {
        let dead = wait_for_news(child, reports, &out, &err, deadline);
        while reports {
            match socket::receive_report(&child.socket, false) {
                Ok(Some(Report::Log { level, target, text })) => {
                    sink(kernel, Output::Log { level, target: &target, text: &text });
                }
                Ok(Some(Report::Started)) => deadline = None,
                Ok(Some(Report::Returned)) => child.end(Ending::Returned, desk),
                Ok(Some(Report::Faulted(fault))) => child.end(Ending::Faulted(fault), desk),
                Err(rustix::io::Errno::AGAIN) => break,
                Ok(None) | Err(_) => reports = false,
            }
        }
        for (lines, is_error) in [(&mut out, false), (&mut err, true)] {
            let pass = |line: &str| match is_error {
                false => sink(kernel, Output::Stdout(line)),
                true => sink(kernel, Output::Stderr(line)),
            };
            let open = lines.as_mut().is_some_and(|lines| lines.pass_on(pass));
            if (!open || dead)
                && let Some(lines) = lines.take()
            {
                // A line that was not finished.
                lines.rest(pass);
            }
        }
        if dead {
            break;
        }
        // After the reports: what it said in time counts, however late that is read.
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            deadline = None;
            let message = format!(
                "the process of ring kernel '{kernel}' did not come to {first_step}, within {within:?}"
            );
            child.end(Ending::Faulted(Fault::reported(FaultKind::Executor, message)), desk);
            // Fails only if it is gone by now.
            let _ = pidfd_send_signal(&child.pidfd, Signal::KILL);
        }
    }
    // It has ended, so this does not wait.
    match process.wait() {
        Ok(status) => child.end(Ending::Died(status), desk),
        Err(error) => {
            let fault = Fault::reported(FaultKind::Executor, format!("lost its process: {error}"));
            child.end(Ending::Faulted(fault), desk);
        }
    }
}

impl Running {
    fn end(&self, ending: Ending, desk: &Desk) {
        // The first one counts.
        let _ = self.ending.set(ending);
        desk.wake_at_end();
    }
}

/// Waits until there is something to read, or until `deadline`; whether the child is dead.
fn wait_for_news(
    child: &Running,
    reports: bool,
    out: &Option<Lines>,
    err: &Option<Lines>,
    deadline: Option<Instant>,
) -> bool {
    let mut sources = vec![PollFd::new(&child.pidfd, PollFlags::IN)];
    if reports {
        sources.push(PollFd::new(&child.socket, PollFlags::IN));
    }
    for lines in [out, err].into_iter().flatten() {
        sources.push(PollFd::new(&lines.pipe, PollFlags::IN));
    }
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // One that is too long to be said has no end.
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut sources, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            // Nothing to be done about it but to look, and to wait for the end.
            Err(_) => return true,
            Ok(_) => return !sources[0].revents().is_empty(),
        }
    }
}

/// The lines that come through a pipe.
#[derive(Debug)]
struct Lines {
    pipe: File,
    line: Vec<u8>,
}

/// A line that is longer is passed on in pieces.
const LINE_MAX: usize = 16 * 1024;

impl Lines {
    fn new(pipe: OwnedFd) -> Self {
        // A pipe that cannot be made so is read until its end, which comes.
        let _ = rustix::io::ioctl_fionbio(pipe.as_fd(), true);
        Self { pipe: pipe.into(), line: Vec::new() }
    }

    /// Passes on all whole lines that are there; whether more may come.
    fn pass_on(&mut self, mut each: impl FnMut(&str)) -> bool {
        let mut bytes = [0; 4096];
        loop {
            let count = match self.pipe.read(&mut bytes) {
                Ok(0) => return false,
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            for &byte in &bytes[..count] {
                match byte {
                    b'\n' => self.end_line(&mut each),
                    _ => self.line.push(byte),
                }
                if self.line.len() >= LINE_MAX {
                    self.end_line(&mut each);
                }
            }
        }
    }

    fn end_line(&mut self, each: &mut impl FnMut(&str)) {
        each(&String::from_utf8_lossy(&self.line));
        self.line.clear();
    }

    fn rest(mut self, mut each: impl FnMut(&str)) {
        if !self.line.is_empty() {
            self.end_line(&mut each);
        }
    }
}
