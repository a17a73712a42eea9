//! A set of handlers that were linked together, and the grids that run them.
//!
//! Handlers join a set while its grids run: they are linked anew with all that it had before, and a
//! grid takes up the new code when a kernel that needs it gets a seat there, between two leases. A
//! handler keeps its number, so that the others notice nothing.

use std::sync::{Arc, Mutex};
use std::thread;

use dotcompute_mailbox::sync::lock;
use tokio::sync::oneshot;

use crate::driver::Driver;
use crate::green::Placement;
use crate::grid::{SeatPlan, Shape};
use crate::image::{CudaHandler, Image};
use crate::resident::{Isolation, Residency, Resident, ResidentError, Seated};

/// The least room for a state that the seats of a grid have: kernels that join the set later share
/// grids with those of before where their states are no larger.
const STATE_ROOM_BYTES: usize = 1024;

/// How many grids may be lost as a seat is taken on them, which costs the memory of each: what stands
/// against so many stands against the next one too.
const LOST_MAX: usize = 3;

/// See the module. Grids are made as seats are needed.
#[derive(Debug)]
pub(crate) struct Set {
    isolation: Isolation,
    driver: &'static Driver,
    ordinal: u32,
    shape: Shape,
    residency: Residency,
    linked: Mutex<Linked>,
    grids: Mutex<Vec<Arc<Resident>>>,
    /// Held while a grid is made: of many who lack a seat, one makes a grid for all.
    making: tokio::sync::Mutex<()>,
}

/// What a set has been linked of.
#[derive(Debug)]
struct Linked {
    handlers: Vec<CudaHandler>,
    image: Arc<Image>,
    /// The largest state of its kernels.
    state_bytes: usize,
}

impl Set {
    /// Of handlers that were linked into `image`. Its grids are of `shape`, but for the size of states.
    pub(crate) fn new(
        isolation: Isolation,
        driver: &'static Driver,
        ordinal: u32,
        (handlers, image): (Vec<CudaHandler>, Image),
        shape: Shape,
        residency: Residency,
    ) -> Self {
        let linked = Linked { handlers, image: Arc::new(image), state_bytes: STATE_ROOM_BYTES };
        let (grids, making) = (Mutex::default(), tokio::sync::Mutex::default());
        let linked = Mutex::new(linked);
        Self { isolation, driver, ordinal, shape, residency, linked, grids, making }
    }

    pub(crate) fn image(&self) -> Arc<Image> {
        Arc::clone(&lock(&self.linked).image)
    }

    pub(crate) fn handlers(&self) -> Vec<CudaHandler> {
        lock(&self.linked).handlers.clone()
    }

    /// From now on it has these handlers, those of before first, linked into `image`.
    pub(crate) fn join(&self, handlers: Vec<CudaHandler>, image: Image) {
        let mut linked = lock(&self.linked);
        (linked.handlers, linked.image) = (handlers, Arc::new(image));
    }

    /// Grids made from now on have room for states of this size.
    pub(crate) fn make_room(&self, state_bytes: usize) {
        let mut linked = lock(&self.linked);
        linked.state_bytes = linked.state_bytes.max(state_bytes);
    }

    pub(crate) fn residency(&self) -> Residency {
        self.residency
    }

    /// Takes a free seat on a grid that is not lost, or on one that is made for it.
    pub(crate) async fn seat(&self, plan: SeatPlan) -> Result<Seated, ResidentError> {
        if let Some(seated) = self.seat_on_grids(&plan).await? {
            return Ok(seated);
        }
        let _making = self.making.lock().await;
        let mut made: Vec<Arc<Resident>> = Vec::new();
        loop {
            if let Some(seated) = self.seat_on_grids(&plan).await? {
                return Ok(seated);
            }
            let mut lost = made.iter().filter_map(|grid| grid.loss());
            if let Some(loss) = lost.nth(LOST_MAX - 1) {
                return Err(loss.error.clone());
            }
            let grid = Arc::new(self.make().await?);
            lock(&self.grids).push(Arc::clone(&grid));
            made.push(grid);
        }
    }

    /// Where its grids run that are not lost.
    pub(crate) fn placements(&self) -> Vec<Placement> {
        let grids = lock(&self.grids);
        let there = grids.iter().filter(|grid| grid.loss().is_none());
        there.map(|grid| grid.placement()).collect()
    }

    /// All grids that are not lost begin a new lease.
    pub(crate) async fn begin_new_leases(&self) -> Result<(), ResidentError> {
        let grids = lock(&self.grids).clone();
        for grid in grids {
            match grid.begin_new_lease().await {
                // Nothing of it runs any more.
                Err(_) if grid.loss().is_some() => {}
                begun => begun?,
            }
        }
        Ok(())
    }

    async fn seat_on_grids(&self, plan: &SeatPlan) -> Result<Option<Seated>, ResidentError> {
        let grids = {
            let mut grids = lock(&self.grids);
            grids.retain(|grid| grid.loss().is_none());
            grids.clone()
        };
        let image = self.image();
        for grid in grids {
            // Where a grid stays for good, nothing is loaded beside it: the driver would wait.
            let is_old = self.residency.lease.is_none() && !grid.has_handler(plan.handler);
            if is_old || grid.shape().state_bytes < plan.state.len() {
                continue;
            }
            match grid.take(plan.clone(), &image).await {
                Err(ResidentError::Full) => {}
                // Lost by this or meanwhile.
                Err(_) if grid.loss().is_some() => {}
                taken => return taken.map(Some),
            }
        }
        Ok(None)
    }

    /// Makes a grid, on a thread of its own: the driver may take its time.
    async fn make(&self) -> Result<Resident, ResidentError> {
        let (answer, answered) = oneshot::channel();
        let Self { driver, ordinal, shape, residency, .. } = *self;
        let (image, state_bytes) = {
            let linked = lock(&self.linked);
            (Arc::clone(&linked.image), linked.state_bytes)
        };
        let isolation = self.isolation.clone();
        let shape = Shape { state_bytes, ..shape };
        thread::Builder::new()
            .name("dotcompute-grid".to_owned())
            .spawn(move || {
                let image = (*image).clone();
                let made =
                    Resident::launch_in(&isolation, driver, ordinal, image, shape, residency);
                // Should nobody want it any more, it is dropped.
                drop(answer.send(made));
            })
            .map_err(|error| ResidentError::Thread(error.to_string()))?;
        answered.await.map_err(|_| ResidentError::Gone)?
    }
}
