//! The control block: how a host steers a kernel that runs elsewhere, and how it sees it.

use crate::describe::Struct;

shared_constants! {
    /// What the host asks of a kernel.
    COMMANDS: u32;
    /// Take no message yet, or no more until told otherwise.
    COMMAND_HOLD = 0;
    /// Take messages.
    COMMAND_RUN = 1;
    /// Finish what is in the rings, then stop.
    COMMAND_DRAIN = 2;
    /// Stop after the message in hand.
    COMMAND_STOP = 3;
    /// Stop at the next tick, inside the handler if need be.
    COMMAND_KILL = 4;
}

shared_constants! {
    /// What a kernel says of itself.
    STATES: u32;
    /// Not there yet.
    STATE_ABSENT = 0;
    /// There, holding.
    STATE_HOLDING = 1;
    /// Taking messages.
    STATE_RUNNING = 2;
    /// Gone, as asked or at the end of its lease; its cursors are stored.
    STATE_STOPPED = 3;
    /// Gone after a fault; `fault` says which.
    STATE_FAILED = 4;
}

shared_struct! {
    /// The words of a control block that the host writes.
    HostControl: 128 bytes, aligned to 128;
    /// Counts up while the host lives; a kernel whose host fell silent ends itself.
    heartbeat: u64, at 0;
    /// One of `COMMAND_*`.
    command: u32, at 8;
}

shared_struct! {
    /// The words of a control block that the kernel writes.
    KernelControl: 128 bytes, aligned to 128;
    /// Counts up while the kernel polls.
    heartbeat: u64, at 0;
    /// Position of the message in hand plus one; 0 while there is none.
    busy_sequence: u64, at 8;
    /// Messages finished.
    processed: u64, at 16;
    /// One of `STATE_*`. Written after `fault`.
    state: u32, at 24;
    /// Why the kernel failed: `FAULT_*`, or a code of the handler's own.
    fault: i32, at 28;
}

shared_struct! {
    /// The control block of one kernel: a line per writer.
    ControlBlock: 256 bytes, aligned to 128;
    /// Written by the host only.
    host: HostControl, at 0;
    /// Written by the kernel only.
    kernel: KernelControl, at 128;
}

/// The structs of this module, parts first.
pub const STRUCTS: &[Struct] = &[HostControl::LAYOUT, KernelControl::LAYOUT, ControlBlock::LAYOUT];
