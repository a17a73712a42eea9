//! Our side of each group.

pub(crate) mod ring;
pub(crate) mod mailbox {
    pub(crate) use crate::peers::crossbeam::window;
    pub(crate) use crate::peers::raw::locked_queue_pair as pair;
}
pub(crate) mod ask {
    pub(crate) use crate::peers::tokio::ask;
}
pub(crate) mod throughput {
    pub(crate) use crate::peers::crossbeam::senders;
    pub(crate) use crate::peers::kameo::tell_two_threads as send;
}
pub(crate) mod hop {
    pub(crate) use crate::peers::tokio::hops;
}
pub(crate) mod idle {
    pub(crate) use crate::peers::tokio::idle_tasks as kernels;
}
