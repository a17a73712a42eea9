//! A green context of the multiprocessors that kernels that stay need not have.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;

use dotcompute_cuda::compute::Stream;

use crate::Failure;
use crate::device::{Gpu, Raw, succeeds};

/// `CUdevResource`: its kind, what belongs to the driver, and of multiprocessors first how many.
#[derive(Clone, Copy)]
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

/// What is left of the device's multiprocessors when `taken` or a few more are set aside: how many, and a
/// stream whose work runs on those alone. None where the driver has no green contexts.
pub(crate) fn complement(gpu: &Gpu, taken: u32) -> Result<Option<(u32, Stream)>, Failure> {
    type Get = unsafe extern "C" fn(c_int, *mut Resource, c_uint) -> c_int;
    type Split = unsafe extern "C" fn(
        *mut Resource,
        *mut c_uint,
        *const Resource,
        *mut Resource,
        c_uint,
        c_uint,
    ) -> c_int;
    type Describe = unsafe extern "C" fn(*mut *mut c_void, *mut Resource, c_uint) -> c_int;
    type Create = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, c_int, c_uint) -> c_int;
    type MakeStream = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, c_uint, c_int) -> c_int;
    let raw = Raw::open(gpu.driver)?;
    // SAFETY: the types that NVIDIA documents, here and below.
    let get: Option<Get> = unsafe { raw.get("cuDeviceGetDevResource") };
    // SAFETY: as above.
    let split: Option<Split> = unsafe { raw.get("cuDevSmResourceSplitByCount") };
    // SAFETY: as above.
    let describe: Option<Describe> = unsafe { raw.get("cuDevResourceGenerateDesc") };
    // SAFETY: as above.
    let create: Option<Create> = unsafe { raw.get("cuGreenCtxCreate") };
    // SAFETY: as above.
    let stream: Option<MakeStream> = unsafe { raw.get("cuGreenCtxStreamCreate") };
    let (Some(get), Some(split), Some(describe), Some(create), Some(stream)) =
        (get, split, describe, create, stream)
    else {
        return Ok(None);
    };
    raw.set_context()?;
    let (mut all, mut aside, mut rest) = (Resource::EMPTY, Resource::EMPTY, Resource::EMPTY);
    let mut groups = 1;
    // SAFETY: all of these outlive the calls, here and below.
    succeeds("cuDeviceGetDevResource", unsafe { get(0, &mut all, MULTIPROCESSORS) })?;
    // SAFETY: as above; room for the one group that is asked for.
    let code = unsafe { split(&mut aside, &mut groups, &all, &mut rest, 0, taken) };
    succeeds("cuDevSmResourceSplitByCount", code)?;
    let mut description = ptr::null_mut();
    // SAFETY: as above.
    let code = unsafe { describe(&mut description, &mut rest, 1) };
    succeeds("cuDevResourceGenerateDesc", code)?;
    let (mut context, mut handle) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: a description that was just made; what comes back is kept to the end of the process.
    let code = unsafe { create(&mut context, description, 0, DEFAULT_STREAM) };
    succeeds("cuGreenCtxCreate", code)?;
    // SAFETY: a green context that was just made.
    let code = unsafe { stream(&mut handle, context, NON_BLOCKING, 0) };
    succeeds("cuGreenCtxStreamCreate", code)?;
    // SAFETY: a stream that was just made, on the device's primary context, and never is destroyed.
    let stream = unsafe { Stream::foreign(&gpu.context, handle.addr()) };
    Ok(Some((rest.multiprocessors, stream)))
}
