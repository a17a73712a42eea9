//! Which kernel is connected to which: what has to be known of a pipeline as a whole.
//!
//! A kernel has at most one next kernel, so that there is one way from each. The links themselves
//! lie with the kernels; this is changed only together with them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, Weak};

use dotcompute_mailbox::sync::lock;
use dotcompute_mailbox::{Backpressure, Diverted};

use crate::ask::AskFailure;
use crate::error::{ConnectError, Fault, KernelId};
use crate::kernel::AnyCell;
use crate::lifecycle::KernelState;

/// The connections of a runtime.
#[derive(Default)]
pub(crate) struct Pipelines {
    edges: Mutex<Edges>,
}

#[derive(Default)]
struct Edges {
    /// By the kernel whose replies they carry.
    from: HashMap<Key, Edge>,
    /// Those whose replies come to a kernel.
    into: HashMap<Key, Vec<Key>>,
}

/// A kernel, as the address of its cell. Edges are removed before that is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(usize);

struct Edge {
    from: Weak<dyn AnyCell>,
    to: Weak<dyn AnyCell>,
    next: Key,
}

pub(crate) fn key<T: ?Sized>(cell: &T) -> Key {
    Key((&raw const *cell).cast::<()>().addr())
}

impl Edges {
    fn insert(&mut self, from: Key, edge: Edge) {
        self.into.entry(edge.next).or_default().push(from);
        self.from.insert(from, edge);
    }

    fn remove(&mut self, from: Key) -> Option<Edge> {
        let edge = self.from.remove(&from)?;
        if let Some(into) = self.into.get_mut(&edge.next) {
            into.retain(|&other| other != from);
            if into.is_empty() {
                self.into.remove(&edge.next);
            }
        }
        Some(edge)
    }

    fn next(&self, from: Key) -> Option<(Key, Arc<dyn AnyCell>)> {
        let edge = self.from.get(&from)?;
        Some((edge.next, edge.to.upgrade()?))
    }

    /// The kernels from `from` on, in order, each once.
    fn downstream(&self, from: Key) -> impl Iterator<Item = Arc<dyn AnyCell>> {
        let mut seen = HashSet::from([from]);
        let mut at = from;
        std::iter::from_fn(move || {
            let (next, kernel) = self.next(at)?;
            at = next;
            seen.insert(next).then_some(kernel)
        })
    }

    /// The kernels whose replies come to `to`, on whatever way.
    fn upstream(&self, to: Key) -> Vec<Arc<dyn AnyCell>> {
        let (mut seen, mut line, mut kernels) = (HashSet::from([to]), vec![to], Vec::new());
        while let Some(at) = line.pop() {
            for &from in self.into.get(&at).into_iter().flatten() {
                if seen.insert(from) {
                    line.push(from);
                    kernels.extend(self.from.get(&from).and_then(|edge| edge.from.upgrade()));
                }
            }
        }
        kernels
    }

    /// Whether there is a way from `to` back to `from` on which every kernel waits for room.
    fn wait_for_each_other(&self, from: &Arc<dyn AnyCell>, to: &Arc<dyn AnyCell>) -> bool {
        let waits = |cell: &Arc<dyn AnyCell>| cell.options().backpressure == Backpressure::Block;
        let way = std::iter::once(Arc::clone(to)).chain(self.downstream(key(&**to)));
        way.take_while(waits).any(|cell| Arc::ptr_eq(&cell, from))
    }

    /// The way from `from` to `to` and back to `from`, in words.
    fn cycle(&self, from: &Arc<dyn AnyCell>, to: &Arc<dyn AnyCell>) -> String {
        let mut path = format!("'{}' -> '{}'", from.id(), to.id());
        for cell in self.downstream(key(&**to)) {
            path += &format!(" -> '{}'", cell.id());
            if Arc::ptr_eq(&cell, from) {
                break;
            }
        }
        path
    }
}

impl Pipelines {
    /// Connects `from` to `to`, as `link` does it.
    pub(crate) fn connect(
        &self,
        from: &Arc<dyn AnyCell>,
        to: &Arc<dyn AnyCell>,
        allow_cycle: bool,
        link: impl FnOnce() -> Result<Diverted, ConnectError>,
    ) -> Result<Diverted, ConnectError> {
        let mut edges = lock(&self.edges);
        if !allow_cycle && edges.wait_for_each_other(from, to) {
            let path = edges.cycle(from, to);
            return Err(ConnectError::Cycle { kernel: from.id().clone(), path });
        }
        let diverted = link()?;
        let edge = Edge { from: Arc::downgrade(from), to: Arc::downgrade(to), next: key(&**to) };
        edges.insert(key(&**from), edge);
        Ok(diverted)
    }

    /// The kernel takes no more messages: those that are connected to it are no longer, and asks
    /// that are not past them fail.
    pub(crate) fn cut_off<C: AnyCell>(&self, cell: &C, failure: &AskFailure) {
        let here = key(cell);
        let (upstream, cut) = {
            let mut edges = lock(&self.edges);
            let upstream = edges.upstream(here);
            let cut = edges.into.get(&here).cloned().unwrap_or_default();
            let cut: Vec<_> =
                cut.into_iter().filter_map(|from| edges.remove(from)?.from.upgrade()).collect();
            (upstream, cut)
        };
        // First, so that their messages are skipped.
        fail_asks(&upstream, cell.id(), failure);
        cut.iter().for_each(|from| from.unlink());
    }

    /// The kernel has ended: nothing is connected to it any more, nor it to anything.
    pub(crate) fn leave<C: AnyCell>(&self, cell: &C, failure: &AskFailure) {
        self.forget(cell);
        self.cut_off(cell, failure);
    }

    /// The kernel has failed. Those that are connected to it wait until it is terminated; asks that
    /// are on their way to it fail now.
    pub(crate) fn stage_failed<C: AnyCell>(&self, cell: &C, failure: &AskFailure) {
        self.forget(cell);
        let upstream = lock(&self.edges).upstream(key(cell));
        fail_asks(&upstream, cell.id(), failure);
    }

    /// The kernel is not connected to another one any more.
    pub(crate) fn forget<C: AnyCell>(&self, cell: &C) {
        let edge = lock(&self.edges).remove(key(cell));
        drop(edge);
    }

    /// Disconnects the kernel from the next one; `false` if there is none. Asks that are not past it
    /// fail.
    pub(crate) fn disconnect(&self, cell: &Arc<dyn AnyCell>) -> bool {
        let upstream = {
            let mut edges = lock(&self.edges);
            if edges.remove(key(&**cell)).is_none() {
                return false;
            }
            edges.upstream(key(&**cell))
        };
        // First, so that their messages are skipped.
        let disconnected = AskFailure::Disconnected.in_kernel(cell.id());
        fail_asks(&upstream, cell.id(), &disconnected);
        cell.fail_those_passing_through(&disconnected);
        cell.unlink();
        true
    }

    /// The next kernel of `cell`.
    pub(crate) fn next<C: AnyCell>(&self, cell: &C) -> Option<KernelId> {
        let (_, next) = lock(&self.edges).next(key(cell))?;
        Some(next.id().clone())
    }

    /// The last kernel from `cell` on; in a cycle the last one that is not seen for the second time.
    pub(crate) fn end<C: AnyCell>(&self, cell: &C) -> Key {
        let edges = lock(&self.edges);
        edges.downstream(key(cell)).last().map_or(key(cell), |last| key(&*last))
    }

    /// The first kernel, from `cell` on, that has failed, and why.
    pub(crate) fn failed_stage<C: AnyCell>(&self, cell: &C) -> Option<(KernelId, Fault)> {
        let stages: Vec<_> = lock(&self.edges).downstream(key(cell)).collect();
        let failed = stages.into_iter().find(|stage| stage.state() == KernelState::Failed)?;
        Some((failed.id().clone(), failed.fault()?))
    }
}

fn fail_asks(cells: &[Arc<dyn AnyCell>], at: &KernelId, failure: &AskFailure) {
    let failure = failure.clone().in_kernel(at);
    cells.iter().for_each(|cell| cell.fail_those_passing_through(&failure));
}
