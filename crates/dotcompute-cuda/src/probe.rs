//! What of CUDA is on this machine.

use std::path::PathBuf;

use crate::driver::{Device, Driver};
#[cfg(not(loom))]
use crate::green::NotApart;
use crate::library::{Absent, CallError};
use crate::nvml::Nvml;
use crate::toolkit::{self, Places};

/// What of CUDA is on this machine, library by library.
#[derive(Debug)]
pub struct Probe {
    /// The driver.
    pub driver: LibraryReport,
    /// The devices, if there is a driver; or what it said when asked.
    pub devices: Result<Vec<Device>, CallError>,
    /// Whether the driver has what sets multiprocessors aside for grids, if there is a device.
    #[cfg(not(loom))]
    pub set_aside: Option<Result<(), NotApart>>,
    /// The compiler.
    pub nvrtc: LibraryReport,
    /// The linker.
    pub nvjitlink: LibraryReport,
    /// The telemetry of devices.
    pub nvml: LibraryReport,
}

/// One library: what it is, or why it is absent.
pub type LibraryReport = Result<Found, Absent>;

/// A library that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its version, as it counts.
    pub version: String,
    /// Where it was loaded from: a path, or a bare name that the system's loader resolved.
    pub path: PathBuf,
}

impl Probe {
    /// Loads what there is and initialises the driver, which takes up to a second where there is
    /// one; libraries stay loaded.
    pub fn new() -> Self {
        let places = Places::usual();
        let driver = Driver::get();
        let linker = toolkit::linker(&places);
        let nvrtc = toolkit::nvrtc(&places, linker.as_ref().ok());
        let found = |version: String, path: &std::path::Path| Found { version, path: path.into() };
        let devices = driver.map_or(Ok(Vec::new()), Driver::devices);
        Self {
            #[cfg(not(loom))]
            set_aside: match &devices {
                Ok(devices) if !devices.is_empty() => driver.ok().map(Driver::set_aside),
                _ => None,
            },
            devices,
            driver: driver
                .map(|driver| found(driver.version().to_string(), driver.path()))
                .map_err(Clone::clone),
            nvrtc: nvrtc.map(|nvrtc| found(nvrtc.version().to_string(), nvrtc.path())),
            nvjitlink: linker.map(|linker| found(linker.version().to_string(), linker.path())),
            nvml: Nvml::load().map(|nvml| found(nvml.driver_version().to_owned(), nvml.path())),
        }
    }

    /// The device that kernels can run on here, by its name, where their code is compiled too.
    ///
    /// # Errors
    ///
    /// What is absent.
    pub fn executor(&self) -> Result<&str, String> {
        self.driver.as_ref().map_err(ToString::to_string)?;
        let devices = self.devices.as_ref().map_err(ToString::to_string)?;
        let device = devices.first().ok_or("the driver knows of no device")?;
        if !device.cooperative_launch {
            return Err(format!("{} has no cooperative launch", device.name));
        }
        for library in [&self.nvrtc, &self.nvjitlink] {
            library.as_ref().map_err(ToString::to_string)?;
        }
        Ok(&device.name)
    }

    /// The libraries under the names that people call them.
    pub fn libraries(&self) -> [(&'static str, &LibraryReport); 4] {
        [
            ("driver", &self.driver),
            ("nvrtc", &self.nvrtc),
            ("nvjitlink", &self.nvjitlink),
            ("nvml", &self.nvml),
        ]
    }
}

impl Default for Probe {
    fn default() -> Self {
        Self::new()
    }
}
