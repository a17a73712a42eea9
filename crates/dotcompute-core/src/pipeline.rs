//! Which kernel is connected to which: what has to be known of a pipeline as a whole.
//!
//! A kernel has at most one next stage, a kernel or a pool of them, so that there is one way from
//! each. The links themselves lie with the kernels; this is changed only together with them.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, Weak};

use dotcompute_mailbox::Backpressure;
use dotcompute_mailbox::sync::lock;

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

/// A kernel, as the address of its cell, or a pool, as that of the output that its workers share.
/// Edges are removed before it is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(usize);

struct Edge {
    from: Weak<dyn AnyCell>,
    /// The kernel, or the workers of the pool, that the replies go to.
    to: Vec<(Key, Weak<dyn AnyCell>)>,
    /// The name of that kernel or pool, and its place.
    id: KernelId,
    place: Key,
}

/// A stage of a pipeline: a kernel, or a pool with its workers.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) id: KernelId,
    /// Who answers an ask that ends here.
    pub(crate) place: Key,
    pub(crate) cells: Vec<Arc<dyn AnyCell>>,
}

/// What a kernel can be connected to, without its types.
pub(crate) struct AnyNext {
    pub(crate) stage: Stage,
    /// A `Way` of the type that the stage takes.
    pub(crate) way: Box<dyn Any>,
    pub(crate) types: String,
}

pub(crate) fn key<T: ?Sized>(cell: &T) -> Key {
    Key((&raw const *cell).cast::<()>().addr())
}

/// Kernels that are looked at under the lock, to be dropped when it is released: the last reference
/// to one may be among them.
type Seen = Vec<Arc<dyn AnyCell>>;

impl Edges {
    fn insert(&mut self, from: Key, edge: Edge) {
        for (next, _) in &edge.to {
            self.into.entry(*next).or_default().push(from);
        }
        self.from.insert(from, edge);
    }

    fn remove(&mut self, from: Key) -> Option<Edge> {
        let edge = self.from.remove(&from)?;
        for (next, _) in &edge.to {
            if let Some(into) = self.into.get_mut(next) {
                into.retain(|&other| other != from);
                if into.is_empty() {
                    self.into.remove(next);
                }
            }
        }
        Some(edge)
    }

    /// The stages from `from` on, in order, each once. Of a pool whose workers are connected, all
    /// are to one stage, unless they were connected one by one; then the first one's way counts.
    fn stages(&self, from: Key) -> Vec<Stage> {
        let (mut seen, mut at, mut stages) = (HashSet::from([from]), from, Vec::new());
        while let Some(edge) = self.from.get(&at) {
            let connected = edge.to.iter().find(|(key, _)| self.from.contains_key(key));
            let Some((next, _)) = connected.or(edge.to.first()) else { break };
            if !seen.insert(*next) {
                break;
            }
            at = *next;
            let cells = edge.to.iter().filter_map(|(_, cell)| cell.upgrade()).collect();
            stages.push(Stage { id: edge.id.clone(), place: edge.place, cells });
        }
        stages
    }

    /// The kernels whose replies come to `to`, on whatever way.
    fn upstream(&self, to: Key) -> Seen {
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

    /// Those that are connected to the kernel, which takes no more messages, and to no other one that
    /// still does: a pool goes on with the workers that are left.
    fn lost(&self, kernel: Key, seen: &mut Seen) -> Vec<Key> {
        let into = self.into.get(&kernel).into_iter().flatten().copied();
        let mut goes_on = |from: &Key| {
            let to = self.from.get(from).map_or(&[][..], |edge| &edge.to[..]);
            to.iter().any(|(next, cell)| {
                let cell = cell.upgrade().filter(|_| *next != kernel);
                let lives = cell.as_ref().is_some_and(|cell| cell.is_living());
                seen.extend(cell);
                lives
            })
        };
        into.filter(|from| !goes_on(from)).collect()
    }

    /// The kernels that those are, and those whose replies come to them.
    fn all_before(&self, lost: &[Key]) -> Seen {
        let own = |from: &Key| self.from.get(from).and_then(|edge| edge.from.upgrade());
        lost.iter().flat_map(|from| own(from).into_iter().chain(self.upstream(*from))).collect()
    }

    /// A way from `to` back to `from` on which every kernel waits for room, in words.
    fn cycle(
        &self,
        from: &Arc<dyn AnyCell>,
        to: &[Arc<dyn AnyCell>],
        seen: &mut Seen,
    ) -> Option<String> {
        let waits = |cell: &Arc<dyn AnyCell>| cell.options().backpressure == Backpressure::Block;
        let mut known = HashSet::new();
        let mut line: Vec<(Arc<dyn AnyCell>, String)> =
            to.iter().map(|cell| (Arc::clone(cell), format!("'{}'", from.id()))).collect();
        while let Some((cell, way)) = line.pop() {
            if !waits(&cell) || !known.insert(key(&*cell)) {
                seen.push(cell);
                continue;
            }
            let way = format!("{way} -> '{}'", cell.id());
            if Arc::ptr_eq(&cell, from) {
                return Some(way);
            }
            let next = self.from.get(&key(&*cell)).map_or(&[][..], |edge| &edge.to[..]);
            line.extend(next.iter().filter_map(|(_, cell)| Some((cell.upgrade()?, way.clone()))));
            seen.push(cell);
        }
        None
    }
}

impl Pipelines {
    /// Connects `from` to `to`, as `link` does it.
    pub(crate) fn connect<L>(
        &self,
        from: &Arc<dyn AnyCell>,
        to: &Stage,
        allow_cycle: bool,
        link: impl FnOnce() -> Result<L, ConnectError>,
    ) -> Result<L, ConnectError> {
        let mut seen = Seen::new();
        let mut edges = lock(&self.edges);
        if !allow_cycle && let Some(path) = edges.cycle(from, &to.cells, &mut seen) {
            drop(edges);
            return Err(ConnectError::Cycle { kernel: from.id().clone(), path });
        }
        let linked = link()?;
        let cells = to.cells.iter().map(|cell| (key(&**cell), Arc::downgrade(cell))).collect();
        let (id, place) = (to.id.clone(), to.place);
        edges.insert(key(&**from), Edge { from: Arc::downgrade(from), to: cells, id, place });
        drop(edges);
        Ok(linked)
    }

    /// The kernel takes no more messages: those that are connected to it are no longer, and asks
    /// that are not past them fail. Those that are connected to a pool are while a worker is left.
    pub(crate) fn cut_off<C: AnyCell>(&self, cell: &C, failure: &AskFailure) {
        let mut seen = Seen::new();
        let (upstream, cut) = {
            let mut edges = lock(&self.edges);
            let lost = edges.lost(key(cell), &mut seen);
            let upstream = edges.all_before(&lost);
            let cut: Vec<_> =
                lost.into_iter().filter_map(|from| edges.remove(from)?.from.upgrade()).collect();
            (upstream, cut)
        };
        // First, so that their messages are skipped.
        fail_asks(&upstream, cell.id(), failure);
        cut.iter().for_each(|from| from.unlink());
    }

    /// The workers of a pool are about to end together: nothing is connected to them any more.
    pub(crate) fn cut_off_all(&self, cells: &[Arc<dyn AnyCell>]) {
        for cell in cells {
            let (upstream, cut) = {
                let mut edges = lock(&self.edges);
                let here = key(&**cell);
                let into = edges.into.get(&here).cloned().unwrap_or_default();
                let upstream = edges.upstream(here);
                let cut: Vec<_> = into
                    .into_iter()
                    .filter_map(|from| edges.remove(from)?.from.upgrade())
                    .collect();
                (upstream, cut)
            };
            fail_asks(&upstream, cell.id(), &AskFailure::Stopped);
            cut.iter().for_each(|from| from.unlink());
        }
    }

    /// The kernel has ended: nothing is connected to it any more, nor it to anything.
    pub(crate) fn leave<C: AnyCell>(&self, cell: &C, failure: &AskFailure) {
        self.forget(cell);
        self.cut_off(cell, failure);
    }

    /// The kernel has failed. Those that are connected to it wait until it is terminated; asks that
    /// are on their way to it fail now. A pool goes on with the workers that are left.
    pub(crate) fn stage_failed<C: AnyCell>(&self, cell: &C, failure: &AskFailure) {
        self.forget(cell);
        let mut seen = Seen::new();
        let upstream = {
            let edges = lock(&self.edges);
            edges.all_before(&edges.lost(key(cell), &mut seen))
        };
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

    /// The kernel or the pool that `cell` is connected to.
    pub(crate) fn next<C: AnyCell>(&self, cell: &C) -> Option<KernelId> {
        Some(lock(&self.edges).from.get(&key(cell))?.id.clone())
    }

    /// The place of the last stage from `cell` on; in a cycle the last one that is not seen for the
    /// second time.
    pub(crate) fn end<C: AnyCell>(&self, cell: &C) -> Key {
        let stages = lock(&self.edges).stages(key(cell));
        stages.last().map_or(cell.place(), |last| last.place)
    }

    /// The first stage, from `cell` on, that has failed, and why: of a pool, all workers are gone.
    pub(crate) fn failed_stage<C: AnyCell>(&self, cell: &C) -> Option<(KernelId, Fault)> {
        let stages = lock(&self.edges).stages(key(cell));
        stages.iter().find_map(|stage| {
            if stage.cells.iter().any(|cell| cell.is_living()) {
                return None;
            }
            let failed = stage.cells.iter().find(|cell| cell.state() == KernelState::Failed)?;
            Some((failed.id().clone(), failed.fault()?))
        })
    }
}

fn fail_asks(cells: &[Arc<dyn AnyCell>], at: &KernelId, failure: &AskFailure) {
    let failure = failure.clone().in_kernel(at);
    cells.iter().for_each(|cell| cell.fail_those_passing_through(&failure));
}
