//! The driver's functions for memory, streams and launches, looked up when first needed.

use std::ffi::{c_char, c_int, c_uint, c_void};

use crate::library::{Absent, functions};

/// `CUmemPoolProps`: memory of one device, shared with nobody.
#[repr(C)]
pub(super) struct PoolProperties {
    /// `CU_MEM_ALLOCATION_TYPE_PINNED`.
    pub(super) allocation: c_int,
    pub(super) handles: c_int,
    /// `CU_MEM_LOCATION_TYPE_DEVICE`.
    pub(super) location: c_int,
    pub(super) device: c_int,
    pub(super) security: *mut c_void,
    /// The rest, which is zero: what it means depends on the driver's version.
    pub(super) reserved: [u64; 8],
}

/// `CUlaunchConfig`.
#[repr(C)]
pub(super) struct LaunchConfig {
    pub(super) grid: [c_uint; 3],
    pub(super) block: [c_uint; 3],
    pub(super) shared_bytes: c_uint,
    pub(super) stream: *mut c_void,
    pub(super) attributes: *mut c_void,
    pub(super) attribute_count: c_uint,
}

/// `CUstreamCallback`: the stream, how the work before it went, and what was given with it.
pub(super) type StreamCallback = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void);

functions! {
    pub(super) Calls;
    context_current = "cuCtxGetCurrent"(*mut *mut c_void) -> c_int;
    context_push = "cuCtxPushCurrent_v2"(*mut c_void) -> c_int;
    context_pop = "cuCtxPopCurrent_v2"(*mut *mut c_void) -> c_int;
    memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize) -> c_int;
    host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint) -> c_int;
    host_free = "cuMemFreeHost"(*mut c_void) -> c_int;
    host_address = "cuMemHostGetDevicePointer_v2"(*mut u64, *mut c_void, c_uint) -> c_int;
    pointer_get = "cuPointerGetAttribute"(*mut c_void, c_int, u64) -> c_int;
    pool_create = "cuMemPoolCreate"(*mut *mut c_void, *const PoolProperties) -> c_int;
    pool_set = "cuMemPoolSetAttribute"(*mut c_void, c_int, *mut c_void) -> c_int;
    pool_get = "cuMemPoolGetAttribute"(*mut c_void, c_int, *mut c_void) -> c_int;
    pool_trim = "cuMemPoolTrimTo"(*mut c_void, usize) -> c_int;
    alloc = "cuMemAllocFromPoolAsync"(*mut u64, usize, *mut c_void, *mut c_void) -> c_int;
    free = "cuMemFreeAsync"(u64, *mut c_void) -> c_int;
    copy_in = "cuMemcpyHtoDAsync_v2"(u64, *const c_void, usize, *mut c_void) -> c_int;
    copy_out = "cuMemcpyDtoHAsync_v2"(*mut c_void, u64, usize, *mut c_void) -> c_int;
    copy = "cuMemcpyDtoDAsync_v2"(u64, u64, usize, *mut c_void) -> c_int;
    fill = "cuMemsetD8Async"(u64, u8, usize, *mut c_void) -> c_int;
    stream_create = "cuStreamCreate"(*mut *mut c_void, c_uint) -> c_int;
    stream_destroy = "cuStreamDestroy_v2"(*mut c_void) -> c_int;
    stream_synchronize = "cuStreamSynchronize"(*mut c_void) -> c_int;
    stream_query = "cuStreamQuery"(*mut c_void) -> c_int;
    stream_wait = "cuStreamWaitEvent"(*mut c_void, *mut c_void, c_uint) -> c_int;
    stream_callback = "cuStreamAddCallback"(
        *mut c_void,
        StreamCallback,
        *mut c_void,
        c_uint,
    ) -> c_int;
    event_create = "cuEventCreate"(*mut *mut c_void, c_uint) -> c_int;
    event_destroy = "cuEventDestroy_v2"(*mut c_void) -> c_int;
    event_record = "cuEventRecord"(*mut c_void, *mut c_void) -> c_int;
    event_query = "cuEventQuery"(*mut c_void) -> c_int;
    event_synchronize = "cuEventSynchronize"(*mut c_void) -> c_int;
    event_elapsed = "cuEventElapsedTime"(*mut f32, *mut c_void, *mut c_void) -> c_int;
    module_load = "cuModuleLoadDataEx"(
        *mut *mut c_void,
        *const c_void,
        c_uint,
        *mut c_int,
        *mut *mut c_void,
    ) -> c_int;
    module_unload = "cuModuleUnload"(*mut c_void) -> c_int;
    module_function = "cuModuleGetFunction"(*mut *mut c_void, *mut c_void, *const c_char) -> c_int;
    function_get = "cuFuncGetAttribute"(*mut c_int, c_int, *mut c_void) -> c_int;
    function_set = "cuFuncSetAttribute"(*mut c_void, c_int, c_int) -> c_int;
    occupancy = "cuOccupancyMaxActiveBlocksPerMultiprocessor"(
        *mut c_int,
        *mut c_void,
        c_int,
        usize,
    ) -> c_int;
    best_block = "cuOccupancyMaxPotentialBlockSize"(
        *mut c_int,
        *mut c_int,
        *mut c_void,
        *const c_void,
        usize,
        c_int,
    ) -> c_int;
    launch = "cuLaunchKernelEx"(
        *const LaunchConfig,
        *mut c_void,
        *mut *mut c_void,
        *mut *mut c_void,
    ) -> c_int;
}

/// `cuFuncGetParamInfo`, since 12.4.
pub(super) type ParameterInfo =
    unsafe extern "C" fn(*mut c_void, usize, *mut usize, *mut usize) -> c_int;

impl Calls {
    /// # Safety
    ///
    /// - `opened` is the driver, or stands in for it.
    pub(super) unsafe fn of(
        opened: &crate::library::Opened,
    ) -> Result<(Self, Option<ParameterInfo>), Absent> {
        // SAFETY: as the caller promises.
        let calls = unsafe { Self::load(opened) }?;
        // SAFETY: as the caller promises.
        let parameters = unsafe { opened.symbol::<ParameterInfo>("cuFuncGetParamInfo") };
        Ok((calls, parameters.ok()))
    }
}
