//! A set of handlers that were linked together, and the grids that run them.

use std::sync::{Arc, Mutex};
use std::thread;

use dotcompute_mailbox::sync::lock;
use tokio::sync::oneshot;

use crate::driver::Driver;
use crate::grid::{SeatPlan, Shape};
use crate::image::Image;
use crate::resident::{Isolation, Residency, Resident, ResidentError, Seated};

/// See the module. Grids are made as seats are needed.
#[derive(Debug)]
pub(crate) struct Set {
    isolation: Isolation,
    driver: &'static Driver,
    ordinal: u32,
    image: Image,
    shape: Shape,
    residency: Residency,
    grids: Mutex<Vec<Arc<Resident>>>,
    /// Held while a grid is made: of many who lack a seat, one makes a grid for all.
    making: tokio::sync::Mutex<()>,
}

impl Set {
    pub(crate) fn new(
        isolation: Isolation,
        driver: &'static Driver,
        ordinal: u32,
        image: Image,
        shape: Shape,
        residency: Residency,
    ) -> Self {
        let (grids, making) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { isolation, driver, ordinal, image, shape, residency, grids, making }
    }

    pub(crate) fn image(&self) -> &Image {
        &self.image
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
        loop {
            if let Some(seated) = self.seat_on_grids(&plan).await? {
                return Ok(seated);
            }
            let grid = Arc::new(self.make().await?);
            lock(&self.grids).push(grid);
        }
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
        for grid in grids {
            match grid.take(plan.clone()).await {
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
        let (isolation, image) = (self.isolation.clone(), self.image.clone());
        thread::Builder::new()
            .name("dotcompute-grid".to_owned())
            .spawn(move || {
                let made =
                    Resident::launch_in(&isolation, driver, ordinal, image, shape, residency);
                // Should nobody want it any more, it is dropped.
                drop(answer.send(made));
            })
            .map_err(|error| ResidentError::Thread(error.to_string()))?;
        answered.await.map_err(|_| ResidentError::Gone)?
    }
}
