//! Stopping the reader: Ctrl-C or SIGTERM, or the main thread, which has no more use for input.

pub(super) use imp::{Stop, Stopper, wait_for_input};

/// What the reader waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// A read would not block.
    Input,
    /// Ctrl-C or SIGTERM.
    Interrupted,
    /// The main thread wants no more.
    Stopped,
}

#[cfg(unix)]
mod imp {
    use std::fs::File;
    use std::io::{self, Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    use rustix::event::{PollFd, PollFlags, poll};
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::{flag, low_level};

    use super::Next;
    use crate::failure::INTERRUPTED;

    /// What a [`Stopper`] writes; the signal handler writes another byte.
    const STOPPED: u8 = b's';

    /// The reader's end: readable from the moment that reading shall stop.
    #[derive(Debug)]
    pub(in crate::stream) struct Stop(UnixStream);

    /// The other end.
    #[derive(Debug)]
    pub(in crate::stream) struct Stopper(UnixStream);

    impl Stop {
        /// From now on the first Ctrl-C or SIGTERM stops the reader, and a second one ends the process
        /// at once.
        pub(in crate::stream) fn on_interrupt() -> io::Result<(Self, Stopper)> {
            let (stop, stopper) = UnixStream::pair()?;
            let seen = Arc::default();
            for signal in [SIGINT, SIGTERM] {
                // In this order: the first signal finds the flag unset and sets it, the second ends
                // the process.
                flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(&seen))?;
                flag::register(signal, Arc::clone(&seen))?;
                low_level::pipe::register(signal, stopper.try_clone()?)?;
            }
            Ok((Self(stop), Stopper(stopper)))
        }
    }

    impl Stopper {
        /// Stops the reader. Once is enough; more does no harm.
        pub(in crate::stream) fn stop(&self) {
            // Fails only when the reader is gone, and then it has stopped.
            let _ = (&self.0).write(&[STOPPED]);
        }
    }

    pub(in crate::stream) fn wait_for_input(input: &File, stop: &Stop) -> io::Result<Next> {
        loop {
            let mut waiting =
                [PollFd::new(&stop.0, PollFlags::IN), PollFd::new(input, PollFlags::IN)];
            match poll(&mut waiting, None) {
                Ok(_) if waiting[0].revents().is_empty() => return Ok(Next::Input),
                Ok(_) => {
                    let mut who = [0];
                    (&stop.0).read_exact(&mut who)?;
                    return Ok(if who == [STOPPED] { Next::Stopped } else { Next::Interrupted });
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Elsewhere a read cannot be interrupted: Ctrl-C ends the process as it always does, and a reader
/// that is told to stop does so after its next block.
#[cfg(not(unix))]
mod imp {
    use std::fs::File;
    use std::io;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::Next;

    #[derive(Debug)]
    pub(in crate::stream) struct Stop(Receiver<()>);

    #[derive(Debug)]
    pub(in crate::stream) struct Stopper(Sender<()>);

    impl Stop {
        pub(in crate::stream) fn on_interrupt() -> io::Result<(Self, Stopper)> {
            let (stopper, stop) = channel();
            Ok((Self(stop), Stopper(stopper)))
        }
    }

    impl Stopper {
        pub(in crate::stream) fn stop(&self) {
            // Fails only when the reader is gone, and then it has stopped.
            let _ = self.0.send(());
        }
    }

    pub(in crate::stream) fn wait_for_input(_: &File, stop: &Stop) -> io::Result<Next> {
        Ok(stop.0.try_recv().map_or(Next::Input, |()| Next::Stopped))
    }
}
