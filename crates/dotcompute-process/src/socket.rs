//! The socket between parent and child: what is rare, long, or not for shared memory. Its end tells
//! the child that the parent is gone.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use dotcompute_core::{Fault, FaultKind, wire};
use rustix::io;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

/// The longest datagram, in bytes.
const DATAGRAM_MAX: usize = 128 * 1024;
/// The longest text in one, in bytes; longer ones are cut off.
const TEXT_MAX: usize = 16 * 1024;
/// How many descriptors go with a setup at most.
const FILES_MAX: usize = 8;

/// The longest arguments of a kernel, in bytes.
pub(crate) const ARGS_MAX: usize = 64 * 1024;

/// What the child is to do; the first and only datagram to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setup {
    /// The name that the kernel's code is registered under.
    pub(crate) entry: String,
    /// The kernel's own name.
    pub(crate) kernel: String,
    pub(crate) args: Vec<u8>,
    /// How many messages it may be handed at a time.
    pub(crate) window: u32,
    /// 0: no log is wanted, to 5: all.
    pub(crate) log_level: u8,
    /// How many bytes of state lie in shared memory, if any: in the third file.
    pub(crate) state_bytes: Option<u64>,
}

/// What the child reports.
#[derive(Clone, Debug)]
pub(crate) enum Report {
    /// It came to what it was started for.
    Started,
    /// Its kernel returned.
    Returned,
    /// Its kernel failed.
    Faulted(Fault),
    /// An event of its log.
    Log { level: u8, target: String, text: String },
}

/// A socket for each side.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC;
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

pub(crate) fn send_setup(
    socket: impl AsFd,
    setup: &Setup,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let Setup { entry, kernel, args, window, log_level, state_bytes } = setup.clone();
    let bytes = wire::encode_value(&((entry, kernel), args, (window, log_level), state_bytes));
    let bytes = bytes.map_err(|_| io::Errno::MSGSIZE)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Errno::TOOBIG);
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

pub(crate) fn receive_setup(socket: impl AsFd) -> io::Result<(Setup, Vec<OwnedFd>)> {
    let mut bytes = vec![0; DATAGRAM_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let parts = &mut [IoSliceMut::new(&mut bytes)];
    let received = rustix::net::recvmsg(socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut files = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            files.extend(descriptors);
        }
    }
    type Parts = ((String, String), Vec<u8>, (u32, u8), Option<u64>);
    let parsed = wire::decode_value::<Parts>(&bytes[..received.bytes.min(DATAGRAM_MAX)]);
    let ((entry, kernel), args, (window, log_level), state_bytes) =
        parsed.map_err(|_| io::Errno::BADMSG)?;
    Ok((Setup { entry, kernel, args, window, log_level, state_bytes }, files))
}

pub(crate) fn send_report(socket: impl AsFd, report: &Report) -> io::Result<()> {
    let value = match report {
        Report::Started => (5u8, 0i64, String::new(), String::new()),
        Report::Returned => (0u8, 0i64, String::new(), String::new()),
        Report::Faulted(fault) => {
            let (kind, code) = match fault.kind() {
                FaultKind::Panic => (2, 0),
                FaultKind::Code(code) => (3, code.into()),
                _ => (1, 0),
            };
            (kind, code, cut(fault.message()), String::new())
        }
        Report::Log { level, target, text } => (4, (*level).into(), cut(target), cut(text)),
    };
    let bytes = wire::encode_value(&value).map_err(|_| io::Errno::MSGSIZE)?;
    rustix::io::retry_on_intr(|| rustix::net::send(&socket, &bytes, SendFlags::NOSIGNAL))?;
    Ok(())
}

/// The next report; `None`: the child's end is closed.
pub(crate) fn receive_report(socket: impl AsFd, wait: bool) -> io::Result<Option<Report>> {
    let mut bytes = vec![0; DATAGRAM_MAX];
    let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    let (length, _) =
        rustix::io::retry_on_intr(|| rustix::net::recv(&socket, bytes.as_mut_slice(), flags))?;
    if length == 0 {
        return Ok(None);
    }
    let parsed = wire::decode_value::<(u8, i64, String, String)>(&bytes[..length]);
    let (kind, number, first, second) = parsed.map_err(|_| io::Errno::BADMSG)?;
    let fault = |kind| Report::Faulted(Fault::reported(kind, first.clone()));
    Ok(Some(match kind {
        0 => Report::Returned,
        1 => fault(FaultKind::Error),
        2 => fault(FaultKind::Panic),
        3 => fault(FaultKind::Code(i32::try_from(number).unwrap_or(i32::MIN))),
        4 => {
            let level = u8::try_from(number).unwrap_or(0);
            Report::Log { level, target: first, text: second }
        }
        5 => Report::Started,
        _ => return Err(io::Errno::BADMSG),
    }))
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(TEXT_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_with_its_descriptors() {
        let (ours, theirs) = pair().unwrap();
        let setup = Setup {
            entry: "adder".into(),
            kernel: "a".into(),
            args: vec![0, 255],
            window: 3,
            log_level: 5,
            state_bytes: Some(12),
        };
        let memory = crate::memory::Memory::create("sent", 77).unwrap();
        send_setup(&ours, &setup, &[memory.file()]).unwrap();
        let (received, mut files) = receive_setup(&theirs).unwrap();
        assert_eq!(received, setup);
        let memory = crate::memory::Memory::map(files.pop().unwrap()).unwrap();
        assert_eq!((memory.bytes(), files.len()), (77, 0));
        let code = Fault::code(-7);
        let long = "ä".repeat(TEXT_MAX);
        for report in [
            Report::Started,
            Report::Returned,
            Report::Faulted(Fault::new(long)),
            Report::Faulted(code),
            Report::Log { level: 3, target: "t".into(), text: "x".into() },
        ] {
            send_report(&theirs, &report).unwrap();
            let received = receive_report(&ours, true).unwrap().unwrap();
            let text =
                |report: &Report| format!("{report:?}").chars().take(8000).collect::<String>();
            assert_eq!(text(&received), text(&report));
        }
        assert!(receive_report(&ours, false).is_err(), "none is there");
        drop(theirs);
        assert!(matches!(receive_report(&ours, true), Ok(None)));
    }
}
