//! The device, and calls of its driver that the crate has no use for.

use std::ffi::{c_int, c_void};

use dotcompute_cuda::compute::Context;
use dotcompute_cuda::driver::{Device, Driver};

use crate::{Check, Failure};

pub(crate) struct Gpu {
    pub(crate) driver: &'static Driver,
    pub(crate) device: Device,
    pub(crate) context: Context,
}

impl Gpu {
    /// The first device, which rows from now on are of.
    pub(crate) fn open(check: &mut Check) -> Result<Self, Failure> {
        let driver = Driver::get().map_err(|absent| absent.to_string())?;
        let device = driver.devices()?.into_iter().next().ok_or("the driver knows of no device")?;
        check.results.device(&format!("{} (driver {})", device.name, driver.version()));
        let context = Context::of(driver, 0)?;
        Ok(Self { driver, device, context })
    }
}

/// A library with the driver's functions.
pub(crate) struct Raw(libloading::Library);

impl Raw {
    pub(crate) fn open(driver: &Driver) -> Result<Self, Failure> {
        // SAFETY: the library that the driver was loaded from already.
        Ok(Self(unsafe { libloading::Library::new(driver.path()) }?))
    }

    /// A function; none where the driver has none of that name.
    ///
    /// # Safety
    ///
    /// - `F` is the function's type.
    pub(crate) unsafe fn get<F: Copy>(&self, name: &str) -> Option<F> {
        // SAFETY: as the caller promises.
        unsafe { self.0.get::<F>(name.as_bytes()) }.ok().map(|function| *function)
    }

    /// Makes the device's primary context the calling thread's.
    pub(crate) fn set_context(&self) -> Result<(), Failure> {
        type Retain = unsafe extern "C" fn(*mut *mut c_void, c_int) -> c_int;
        type SetCurrent = unsafe extern "C" fn(*mut c_void) -> c_int;
        // SAFETY: the type that NVIDIA documents.
        let retain: Retain = unsafe { self.get("cuDevicePrimaryCtxRetain") }.ok_or("no retain")?;
        // SAFETY: as above.
        let set: SetCurrent = unsafe { self.get("cuCtxSetCurrent") }.ok_or("no set current")?;
        let mut context = std::ptr::null_mut();
        // SAFETY: `context` outlives the call.
        succeeds("cuDevicePrimaryCtxRetain", unsafe { retain(&mut context, 0) })?;
        // SAFETY: a context that was just retained, and never is released.
        succeeds("cuCtxSetCurrent", unsafe { set(context) })
    }
}

pub(crate) fn succeeds(call: &str, code: c_int) -> Result<(), Failure> {
    match code {
        0 => Ok(()),
        code => Err(format!("{call} returned {code}").into()),
    }
}
