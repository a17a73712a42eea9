//! The multiprocessors that are set aside for grids that stay, and those that are left: two green
//! contexts of the driver's, which has had them since 12.4.
//!
//! All that a grid has (memory, code) stays the primary context's, as the streams do: what is
//! different is where work runs that is given to them.

use std::ffi::{c_int, c_uint, c_void};
use std::fmt;
use std::ptr;
use std::sync::Mutex;

use dotcompute_mailbox::sync::lock;

use crate::driver::{Driver, Stream};
use crate::library::{Absent, CallError, functions};

functions! {
    Functions;
    get = "cuDeviceGetDevResource"(c_int, *mut Resource, c_uint) -> c_int;
    split = "cuDevSmResourceSplitByCount"(
        *mut Resource,
        *mut c_uint,
        *const Resource,
        *mut Resource,
        c_uint,
        c_uint,
    ) -> c_int;
    describe = "cuDevResourceGenerateDesc"(*mut *mut c_void, *mut Resource, c_uint) -> c_int;
    create = "cuGreenCtxCreate"(*mut *mut c_void, *mut c_void, c_int, c_uint) -> c_int;
    stream = "cuGreenCtxStreamCreate"(*mut *mut c_void, *mut c_void, c_uint, c_int) -> c_int;
}

/// `CUdevResource`: its kind, what belongs to the driver, and of multiprocessors first how many.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
struct Resource {
    kind: c_uint,
    internal: [u8; 92],
    multiprocessors: c_uint,
    rest: [u8; 44],
}

impl Resource {
    const EMPTY: Self = Self { kind: 0, internal: [0; 92], multiprocessors: 0, rest: [0; 44] };
}

const _: () = assert!(size_of::<Resource>() == 144);

/// `CU_DEV_RESOURCE_TYPE_SM`, `CU_GREEN_CTX_DEFAULT_STREAM` and `CU_STREAM_NON_BLOCKING`.
const MULTIPROCESSORS: c_uint = 1;
const DEFAULT_STREAM: c_uint = 1;
const NON_BLOCKING: c_uint = 1;

/// `CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION`: the device has not so many.
const NO_SUCH_SPLIT: c_int = 914;

/// Where the blocks of a grid run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Placement {
    /// On multiprocessors that are set aside for grids.
    Apart {
        /// How many are set aside.
        multiprocessors: u32,
        /// How many are left for others.
        free: u32,
    },
    /// On those that are left for others, so that it takes no room from the grids that have what is set aside.
    Left {
        /// How many are left.
        free: u32,
        /// Why it is not apart.
        why: NotApart,
    },
    /// On any, among the work of others: why.
    Anywhere(NotApart),
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Apart { multiprocessors, free } => {
                write!(
                    f,
                    "on {multiprocessors} multiprocessors that are set aside; {free} are left"
                )
            }
            Self::Left { free, why } => {
                write!(f, "on the {free} multiprocessors that are left for others: {why}")
            }
            Self::Anywhere(why) => write!(f, "on any multiprocessor: {why}"),
        }
    }
}

impl Default for Placement {
    fn default() -> Self {
        Self::Anywhere(NotApart::NotWanted)
    }
}

/// Why a grid is not on multiprocessors that are set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotApart {
    /// The options say so.
    NotWanted,
    /// The context lives in a process of its own, whose work takes turns with that of others.
    OtherProcess,
    /// The driver has no green contexts: what it lacks.
    Absent(String),
    /// What the driver said, to a green context or to a launch in one.
    Refused(CallError),
    /// The device has too few for it, or nothing would be left.
    TooFew {
        /// How many were wanted.
        wanted: u32,
        /// How many the device has.
        most: u32,
    },
    /// Other grids have those that are set aside.
    Taken {
        /// How many were wanted.
        wanted: u32,
        /// How many of those that are set aside nobody has.
        left: u32,
    },
}

impl fmt::Display for NotApart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWanted => f.write_str("the options ask for none (ring_multiprocessors)"),
            Self::OtherProcess => f.write_str("the context is that of a process of its own"),
            Self::Absent(what) => {
                write!(f, "no green contexts (drivers since 12.4 have them): {what}")
            }
            Self::Refused(error) => write!(f, "the driver refuses green contexts: {error}"),
            Self::TooFew { wanted, most } => {
                write!(f, "{wanted} multiprocessors cannot be set aside of the device's {most}")
            }
            Self::Taken { wanted, left } => write!(
                f,
                "it needs {wanted} more of those that are set aside, of which {left} are not taken"
            ),
        }
    }
}

impl std::error::Error for NotApart {}

impl From<Absent> for NotApart {
    fn from(absent: Absent) -> Self {
        Self::Absent(absent.to_string())
    }
}

impl Driver {
    /// Whether it has what sets multiprocessors aside for grids.
    ///
    /// # Errors
    ///
    /// [`NotApart::Absent`]: what it lacks.
    pub fn set_aside(&self) -> Result<(), NotApart> {
        // SAFETY: a driver, whose functions have the types that NVIDIA documents.
        unsafe { Functions::load(&self.opened) }?;
        Ok(())
    }
}

/// A device's multiprocessors in two parts, for the rest of the process.
#[derive(Debug)]
pub(crate) struct Partition {
    driver: &'static Driver,
    functions: Functions,
    ordinal: c_int,
    rings: Green,
    others: Green,
    /// How many the grids have that run on those set aside.
    taken: Mutex<u32>,
}

/// A green context, kept for good, and how many multiprocessors it has.
#[derive(Clone, Copy, Debug)]
struct Green {
    context: *mut c_void,
    multiprocessors: u32,
}

// SAFETY: a name that the driver takes from any thread.
unsafe impl Send for Green {}
// SAFETY: as above.
unsafe impl Sync for Green {}

impl Partition {
    /// That of a device: the first call makes it, with `wanted` multiprocessors aside or as few more as the
    /// driver can divide. The calling thread has the device's primary context.
    pub(crate) fn of(
        driver: &'static Driver,
        ordinal: c_int,
        wanted: u32,
    ) -> Result<&'static Self, NotApart> {
        static KNOWN: Mutex<Vec<&'static Partition>> = Mutex::new(Vec::new());
        let mut known = lock(&KNOWN);
        let is_it = |of: &&&Self| of.ordinal == ordinal && ptr::eq(of.driver, driver);
        if let Some(partition) = known.iter().find(is_it) {
            return Ok(partition);
        }
        let partition: &'static Self = Box::leak(Box::new(Self::make(driver, ordinal, wanted)?));
        known.push(partition);
        Ok(partition)
    }

    fn make(driver: &'static Driver, ordinal: c_int, wanted: u32) -> Result<Self, NotApart> {
        // SAFETY: as in `Driver::set_aside`.
        let functions = unsafe { Functions::load(&driver.opened) }?;
        let check = |call, code| driver.check(call, code).map_err(NotApart::Refused);
        let (mut all, mut rings, mut others) = (Resource::EMPTY, Resource::EMPTY, Resource::EMPTY);
        // SAFETY: `all` outlives the call.
        let code = unsafe { (functions.get)(ordinal, &mut all, MULTIPROCESSORS) };
        check("cuDeviceGetDevResource", code)?;
        let wanted = wanted.max(1);
        let too_few = NotApart::TooFew { wanted, most: all.multiprocessors };
        if wanted >= all.multiprocessors {
            return Err(too_few);
        }
        let mut groups = 1;
        // SAFETY: all of these outlive the call; there is room for the one group that is asked for.
        let code =
            unsafe { (functions.split)(&mut rings, &mut groups, &all, &mut others, 0, wanted) };
        if code == NO_SUCH_SPLIT || (code == 0 && (groups == 0 || others.multiprocessors == 0)) {
            return Err(too_few);
        }
        check("cuDevSmResourceSplitByCount", code)?;
        let green = |mut of: Resource| {
            let (mut description, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: both outlive the call.
            let code = unsafe { (functions.describe)(&mut description, &mut of, 1) };
            check("cuDevResourceGenerateDesc", code)?;
            // SAFETY: a description that was just made.
            let code =
                unsafe { (functions.create)(&mut context, description, ordinal, DEFAULT_STREAM) };
            check("cuGreenCtxCreate", code)?;
            Ok::<_, NotApart>(Green { context, multiprocessors: of.multiprocessors })
        };
        let (rings, others) = (green(rings)?, green(others)?);
        Ok(Self { driver, functions, ordinal, rings, others, taken: Mutex::new(0) })
    }

    fn stream(&self, on: Green) -> Result<*mut c_void, NotApart> {
        let mut stream = ptr::null_mut();
        // SAFETY: `stream` outlives the call; the context is kept for good.
        let code = unsafe { (self.functions.stream)(&mut stream, on.context, NON_BLOCKING, 0) };
        self.driver.check("cuGreenCtxStreamCreate", code).map_err(NotApart::Refused)?;
        Ok(stream)
    }

    /// A stream whose work runs on what is left, and how many multiprocessors that are.
    pub(crate) fn free_stream(&self) -> Result<(*mut c_void, u32), NotApart> {
        Ok((self.stream(self.others)?, self.others.multiprocessors))
    }
}

/// What a grid has of the multiprocessors that are set aside; given back when dropped.
#[derive(Debug)]
struct Share {
    of: &'static Partition,
    count: u32,
}

impl Share {
    /// Sees to it that it has so many.
    fn grow(&mut self, count: u32) -> Result<(), NotApart> {
        let mut taken = lock(&self.of.taken);
        let left = self.of.rings.multiprocessors.saturating_sub(*taken);
        let wanted = count.saturating_sub(self.count);
        if wanted > left {
            return Err(NotApart::Taken { wanted, left });
        }
        *taken += wanted;
        self.count += wanted;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        *lock(&self.of.taken) -= self.count;
    }
}

/// Where one grid runs: its stream, and its part of what is set aside.
#[derive(Debug)]
pub(crate) struct Place {
    stream: Stream,
    placement: Placement,
    share: Option<Share>,
    /// A stream on what is left for others, and how many multiprocessors that are; and one on any. All are
    /// made before anything is resident.
    left: Option<(Stream, u32)>,
    ordinary: Stream,
}

impl Place {
    /// For a grid that needs so many multiprocessors: apart, if at least `aside` are to be set aside and
    /// that can be done.
    pub(crate) fn find(
        driver: &'static Driver,
        ordinal: c_int,
        aside: Result<u32, NotApart>,
        needed: u32,
        ordinary: Stream,
    ) -> Self {
        let found = aside.and_then(|aside| {
            let partition = Partition::of(driver, ordinal, aside.max(needed))?;
            let [rings, left] = [partition.rings, partition.others]
                .map(|on| partition.stream(on).map(Stream::of_green));
            Ok((partition, rings?, left?))
        });
        let (partition, rings, left) = match found {
            Ok(found) => found,
            Err(why) => {
                let placement = Placement::Anywhere(why);
                return Self { stream: ordinary, placement, share: None, left: None, ordinary };
            }
        };
        let (multiprocessors, free) =
            (partition.rings.multiprocessors, partition.others.multiprocessors);
        let mut place = Self {
            stream: rings,
            placement: Placement::Apart { multiprocessors, free },
            share: Some(Share { of: partition, count: 0 }),
            left: Some((left, free)),
            ordinary,
        };
        place.grow(needed);
        place
    }

    pub(crate) fn stream(&self) -> Stream {
        self.stream
    }

    /// The stream on any multiprocessor, unless it is the grid's already.
    pub(crate) fn other_stream(&self) -> Option<Stream> {
        (!matches!(self.placement, Placement::Anywhere(_))).then_some(self.ordinary)
    }

    /// It needs so many multiprocessors from now on; no grid runs. If those that are set aside are taken, it
    /// goes to the others for good: on any it could take the room of those that have them, which would wait
    /// for it after their next change.
    pub(crate) fn grow(&mut self, needed: u32) {
        let why = match &mut self.share {
            Some(share) => match share.grow(needed) {
                Ok(()) => return,
                Err(why) => why,
            },
            None => match &self.placement {
                Placement::Left { why, .. } => why.clone(),
                _ => return,
            },
        };
        self.share = None;
        (self.stream, self.placement) = match self.left {
            Some((left, free)) if needed <= free => (left, Placement::Left { free, why }),
            _ => (self.ordinary, Placement::Anywhere(why)),
        };
    }

    /// From now on it is anywhere: what the driver said to a launch where it was. No grid runs.
    pub(crate) fn leave(&mut self, said: CallError) {
        let placement = Placement::Anywhere(NotApart::Refused(said));
        (self.stream, self.placement, self.share) = (self.ordinary, placement, None);
    }

    /// The grid stays there for good: nobody gets its part.
    pub(crate) fn keep(&mut self) {
        std::mem::forget(self.share.take());
    }

    pub(crate) fn placement(&self) -> Placement {
        self.placement.clone()
    }
}
