//! The driver's calls for one grid: made in this process, or in one of their own (`isolated.rs`).

use std::ffi::CStr;

use dotcompute_abi::device::Grid as Parameters;

#[cfg(target_os = "linux")]
use super::isolated::Child;
use super::{Isolation, Residency, ResidentError};
use crate::driver::{Device, Driver, Kernel, Session, Stream};
use crate::green::{NotApart, Place, Placement};
use crate::grid::{Arena, Extent, Shape};
use crate::image::Image;
use crate::library::CallError;

/// The kernel of every image, [`Image::KERNEL`](crate::Image::KERNEL).
const KERNEL: &CStr = c"dc_resident";

/// The shared memory that a block of `resident.cu` needs itself, at most.
const OWN_SHARED_BYTES: u32 = 8192;

/// Who makes the calls.
#[derive(Debug)]
pub(super) enum Calls {
    Here(Here),
    #[cfg(target_os = "linux")]
    There(Child),
}

/// The calls of a grid, and its two arenas: the host's, and where the device's begins, as the device sees
/// it.
pub(super) struct Begun {
    pub(super) calls: Calls,
    pub(super) host: Arena,
    pub(super) device: u64,
}

impl Calls {
    /// Takes all that a grid of this shape needs.
    pub(super) fn begin(
        isolation: &Isolation,
        driver: &'static Driver,
        ordinal: u32,
        image: &Image,
        shape: Shape,
        residency: Residency,
    ) -> Result<Begun, ResidentError> {
        match isolation {
            Isolation::Thread => {
                let (cubin, extent, bytes) = (image.cubin(), shape.extent(), shape.host_bytes());
                let aside = residency.ring_multiprocessors.ok_or(NotApart::NotWanted);
                let of = (driver, ordinal, aside);
                let (here, (host, address)) =
                    Here::begin(of, cubin, extent, shape.device_bytes(), |session| {
                        session.host_memory(bytes)
                    })?;
                // SAFETY: just taken, as long as said, zeroed, aligned to pages, and never freed; it is
                // reached through the grid and the device's sources alone, which keep to the protocol.
                let host = unsafe { Arena::from_raw(host, address, bytes, ()) };
                let device = here.device;
                Ok(Begun { calls: Self::Here(here), host, device })
            }
            #[cfg(target_os = "linux")]
            Isolation::Process(processes) => {
                let (child, host, device) =
                    Child::begin(processes, driver, ordinal, image, shape, residency)?;
                Ok(Begun { calls: Self::There(child), host, device })
            }
        }
    }

    /// Grids that are launched from now on have this code; those of before keep theirs where it cannot be.
    /// No grid runs.
    pub(super) fn take_up(&mut self, image: &Image, shape: Shape) -> Result<(), ResidentError> {
        match self {
            Self::Here(here) => here.take_up(image.cubin(), shape.extent()),
            #[cfg(target_os = "linux")]
            Self::There(child) => child.take_up(image, shape.extent()),
        }
    }

    /// Undoes the last [`take_up`](Self::take_up).
    pub(super) fn put_back(&mut self) -> Result<(), ResidentError> {
        match self {
            Self::Here(here) => {
                here.put_back();
                Ok(())
            }
            #[cfg(target_os = "linux")]
            Self::There(child) => child.put_back(),
        }
    }

    /// Writes to the device's arena, and waits for it.
    ///
    /// # Safety
    ///
    /// - The device's arena has the bytes from `offset`, and no grid runs.
    pub(super) unsafe fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), ResidentError> {
        match self {
            // SAFETY: as the caller promises.
            Self::Here(here) => Ok(unsafe { here.write(offset, bytes) }?),
            #[cfg(target_os = "linux")]
            Self::There(child) => child.write(offset, bytes),
        }
    }

    /// Copies from the device's arena, and waits for it.
    ///
    /// # Safety
    ///
    /// - As for [`write`](Self::write).
    pub(super) unsafe fn read(
        &self,
        offset: usize,
        bytes: usize,
    ) -> Result<Vec<u8>, ResidentError> {
        match self {
            // SAFETY: as the caller promises.
            Self::Here(here) => Ok(unsafe { here.read(offset, bytes) }?),
            #[cfg(target_os = "linux")]
            Self::There(child) => child.read(offset, bytes),
        }
    }

    /// Launches a grid of this shape behind those before it, once the bytes of the device's arena that
    /// each one begins with are zero. Of the first, which no grid is before, the driver may refuse the place:
    /// then it runs anywhere. Where one that runs already is to be followed, that is an error as any.
    ///
    /// # Safety
    ///
    /// - The bytes lie in the device's arena, and grids alone use them.
    /// - The parameters lead to the two arenas.
    pub(super) unsafe fn launch(
        &mut self,
        zeros: (usize, usize),
        shape: Shape,
        parameters: &Parameters,
        is_first: bool,
    ) -> Result<(), ResidentError> {
        match self {
            Self::Here(here) => {
                // SAFETY: as the caller promises.
                Ok(unsafe { here.launch(zeros, shape.extent(), parameters, is_first) }?)
            }
            #[cfg(target_os = "linux")]
            Self::There(child) => child.launch(zeros, shape.extent(), parameters),
        }
    }

    /// Whether all grids that were launched have ended.
    pub(super) fn is_idle(&self) -> Result<bool, ResidentError> {
        match self {
            Self::Here(here) => Ok(here.is_idle()?),
            #[cfg(target_os = "linux")]
            Self::There(child) => child.is_idle(),
        }
    }

    /// Brings to light that the context is lost, if it is; of a child after a few looks.
    pub(super) fn look(&mut self) -> Result<(), ResidentError> {
        match self {
            Self::Here(here) => Ok(here.is_idle().map(drop)?),
            #[cfg(target_os = "linux")]
            Self::There(child) => child.look(),
        }
    }

    /// Where the grid runs.
    pub(super) fn placement(&self) -> Placement {
        match self {
            Self::Here(here) => here.place.placement(),
            #[cfg(target_os = "linux")]
            Self::There(_) => Placement::Anywhere(NotApart::OtherProcess),
        }
    }

    /// The grid stays where it is for good: nobody gets its multiprocessors.
    pub(super) fn keep_place(&mut self) {
        match self {
            Self::Here(here) => here.place.keep(),
            #[cfg(target_os = "linux")]
            Self::There(_) => {}
        }
    }

    /// Whether what others of this process free waits for the grid.
    pub(super) fn share_the_context(&self) -> bool {
        matches!(self, Self::Here(_))
    }
}

/// The kernel of an image, if the device can hold so many of its blocks at once, and on how many
/// multiprocessors they have room.
fn kernel_of(
    session: &Session,
    cubin: &[u8],
    Extent { blocks, threads, shared_bytes }: Extent,
    device: &Device,
) -> Result<(Kernel, u32), ResidentError> {
    let kernel = session.kernel(cubin, KERNEL).map_err(ResidentError::Code)?;
    let most = device.block_shared_bytes.saturating_sub(OWN_SHARED_BYTES);
    if shared_bytes > most {
        let wanted = shared_bytes;
        return Err(ResidentError::SharedMemory { wanted, most });
    }
    if shared_bytes > 0 {
        session.allow_shared_bytes(kernel, shared_bytes).map_err(ResidentError::Code)?;
    }
    let occupancy =
        session.occupancy(kernel, threads, shared_bytes).map_err(ResidentError::Code)?;
    match occupancy * device.multiprocessors {
        most if blocks > most => Err(ResidentError::NoRoom { blocks, most }),
        _ => Ok((kernel, blocks.div_ceil(occupancy))),
    }
}

/// The calls, made in this process.
#[derive(Debug)]
pub(super) struct Here {
    session: Session,
    of: Device,
    kernel: Kernel,
    /// The one before it, which stays loaded too.
    before: Kernel,
    /// Where the grid runs, and its stream, in which nothing else is ever queued.
    place: Place,
    /// For writes while no grid runs.
    copies: Stream,
    /// Where the device's arena begins, as the device sees it.
    pub(super) device: u64,
}

impl Here {
    /// Makes all calls that wait for what is resident, before anything is: with memory for the host's
    /// arena as `host` takes it.
    pub(super) fn begin<H>(
        (driver, ordinal, aside): (&'static Driver, u32, Result<u32, NotApart>),
        cubin: &[u8],
        extent: Extent,
        device_bytes: usize,
        host: impl FnOnce(&Session) -> Result<H, CallError>,
    ) -> Result<(Self, H), ResidentError> {
        let ordinal = ordinal.cast_signed();
        let of = driver.device(ordinal)?;
        let session = Session::begin(driver, ordinal)?;
        if !of.cooperative_launch {
            return Err(ResidentError::NoRoom { blocks: extent.blocks, most: 0 });
        }
        let (kernel, needed) = kernel_of(&session, cubin, extent, &of)?;
        let (ordinary, copies) = (session.stream()?, session.stream()?);
        let host = host(&session)?;
        let device = session.device_memory(device_bytes)?;
        let before = kernel;
        let place = Place::find(driver, ordinal, aside, needed, ordinary);
        Ok((Self { session, of, kernel, before, place, copies, device }, host))
    }

    pub(super) fn take_up(&mut self, cubin: &[u8], extent: Extent) -> Result<(), ResidentError> {
        let (kernel, needed) = kernel_of(&self.session, cubin, extent, &self.of)?;
        self.place.grow(needed);
        self.before = std::mem::replace(&mut self.kernel, kernel);
        Ok(())
    }

    pub(super) fn put_back(&mut self) {
        self.kernel = self.before;
    }

    /// # Safety
    ///
    /// - The device's arena has the bytes from `offset`, and no grid runs.
    pub(super) unsafe fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), CallError> {
        // SAFETY: as the caller promises.
        unsafe { self.session.write(self.copies, self.device + offset as u64, bytes) }
    }

    /// # Safety
    ///
    /// - As for [`write`](Self::write).
    pub(super) unsafe fn read(&self, offset: usize, bytes: usize) -> Result<Vec<u8>, CallError> {
        // SAFETY: as the caller promises.
        unsafe { self.session.read(self.copies, self.device + offset as u64, bytes) }
    }

    /// Zeroes the bytes of the device's arena that each grid begins with, and launches one, behind what
    /// was launched before.
    ///
    /// # Safety
    ///
    /// - The bytes lie in the device's arena, and grids alone use them.
    /// - The parameters lead to the two arenas.
    pub(super) unsafe fn launch(
        &mut self,
        zeros: (usize, usize),
        extent: Extent,
        parameters: &Parameters,
        is_first: bool,
    ) -> Result<(), CallError> {
        let stream = self.place.stream();
        // SAFETY: as the caller promises.
        let launched = unsafe { self.launch_in(stream, zeros, extent, parameters) };
        let other = self.place.other_stream().filter(|_| is_first);
        let (Err(error), Some(other)) = (&launched, other) else { return launched };
        // It may be the place that the driver refuses. Nothing but the zeroes is on its way there.
        self.session.finish(stream)?;
        // SAFETY: as the caller promises.
        let elsewhere = unsafe { self.launch_in(other, zeros, extent, parameters) };
        if elsewhere.is_err() {
            return launched;
        }
        self.place.leave(error.clone());
        Ok(())
    }

    /// # Safety
    ///
    /// - As for [`launch`](Self::launch).
    unsafe fn launch_in(
        &self,
        stream: Stream,
        (left, left_bytes): (usize, usize),
        extent: Extent,
        parameters: &Parameters,
    ) -> Result<(), CallError> {
        let address = self.device + left as u64;
        // SAFETY: as the caller promises; grids run one after the other in this stream.
        unsafe { self.session.zero(stream, address, left_bytes) }?;
        // SAFETY: the image's kernel takes these parameters; they lead to the arenas, which are never
        // freed while the context lives.
        unsafe { self.session.launch(self.kernel, extent, stream, parameters) }
    }

    pub(super) fn is_idle(&self) -> Result<bool, CallError> {
        self.session.is_idle(self.place.stream())
    }
}
