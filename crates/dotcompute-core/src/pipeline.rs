//! Which kernel is connected to which: what has to be known of a pipeline as a whole.
//!
//! A kernel has at most one next kernel, so that there is one way from each. The links themselves
//! lie with the kernels; this is changed only together with them.

use std::collections::HashMap;
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

/// By the kernel whose replies they carry.
#[derive(Default)]
struct Edges(HashMap<Key, Edge>);

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
    fn next(&self, from: Key) -> Option<(Key, Arc<dyn AnyCell>)> {
        let edge = self.0.get(&from)?;
        Some((edge.next, edge.to.upgrade()?))
    }

    /// The kernels from `from` on, in order, each once.
    fn downstream(&self, from: Key) -> Vec<Arc<dyn AnyCell>> {
        let (mut seen, mut kernels, mut at) = (vec![from], Vec::new(), from);
        while let Some((next, kernel)) = self.next(at) {
            if seen.contains(&next) {
                break;
            }
            kernels.push(kernel);
            seen.push(next);
            at = next;
        }
        kernels
    }

    /// The kernels whose replies come to `to`, on whatever way.
    fn upstream(&self, to: Key) -> Vec<Arc<dyn AnyCell>> {
        let (mut found, mut kernels) = (vec![to], Vec::new());
        let mut at = 0;
        while at < found.len() {
            for (&from, edge) in &self.0 {
                if edge.next == found[at] && !found.contains(&from) {
                    found.push(from);
                    kernels.extend(edge.from.upgrade());
                }
            }
            at += 1;
        }
        kernels
    }

    /// The way from `to` back to `from`, if there is one on which every kernel waits for room.
    fn waits_for(&self, from: &Arc<dyn AnyCell>, to: &Arc<dyn AnyCell>) -> Option<String> {
        let waits = |cell: &Arc<dyn AnyCell>| cell.options().backpressure == Backpressure::Block;
        let way = self.downstream(key(&**to));
        let mut path = format!("'{}' -> '{}'", from.id(), to.id());
        if !waits(to) {
            return None;
        }
        if Arc::ptr_eq(from, to) {
            return Some(path);
        }
        for cell in way {
            if !waits(&cell) {
                return None;
            }
            path += &format!(" -> '{}'", cell.id());
            if Arc::ptr_eq(&cell, from) {
                return Some(path);
            }
        }
        None
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
        if !allow_cycle && let Some(path) = edges.waits_for(from, to) {
            return Err(ConnectError::Cycle { kernel: from.id().clone(), path });
        }
        let diverted = link()?;
        let edge = Edge { from: Arc::downgrade(from), to: Arc::downgrade(to), next: key(&**to) };
        edges.0.insert(key(&**from), edge);
        Ok(diverted)
    }

    /// The kernel takes no more messages: those that are connected to it are no longer, and asks
    /// that are not past them fail.
    pub(crate) fn cut_off<C: AnyCell>(&self, cell: &C, failure: &AskFailure) {
        let here = key(cell);
        let (upstream, cut) = {
            let mut edges = lock(&self.edges);
            let upstream = edges.upstream(here);
            let cut: Vec<_> = edges
                .0
                .extract_if(|_, edge| edge.next == here)
                .filter_map(|(_, edge)| edge.from.upgrade())
                .collect();
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
        let edge = lock(&self.edges).0.remove(&key(cell));
        drop(edge);
    }

    /// Disconnects the kernel from the next one; `false` if there is none. Asks that are not past it
    /// fail.
    pub(crate) fn disconnect(&self, cell: &Arc<dyn AnyCell>) -> bool {
        let upstream = {
            let mut edges = lock(&self.edges);
            if edges.0.remove(&key(&**cell)).is_none() {
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
        let stages = lock(&self.edges).downstream(key(cell));
        stages.last().map_or(key(cell), |last| key(&**last))
    }

    /// The first kernel, from `cell` on, that has failed, and why.
    pub(crate) fn failed_stage<C: AnyCell>(&self, cell: &C) -> Option<(KernelId, Fault)> {
        let stages = lock(&self.edges).downstream(key(cell));
        let failed = stages.into_iter().find(|stage| stage.state() == KernelState::Failed)?;
        Some((failed.id().clone(), failed.fault()?))
    }
}

fn fail_asks(cells: &[Arc<dyn AnyCell>], at: &KernelId, failure: &AskFailure) {
    let failure = failure.clone().in_kernel(at);
    cells.iter().for_each(|cell| cell.fail_those_passing_through(&failure));
}
