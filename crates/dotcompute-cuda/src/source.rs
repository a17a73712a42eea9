//! The device's side of the protocol, as text: see the files under `device/`.

/// What the grid's translation unit and handlers include, by name.
pub(crate) const HEADERS: &[(&str, &str)] = &[
    ("dotcompute_abi.h", dotcompute_abi::C_HEADER),
    ("dotcompute.cuh", include_str!("../device/dotcompute.cuh")),
    ("atomics.cuh", include_str!("../device/atomics.cuh")),
    ("warp.cuh", include_str!("../device/warp.cuh")),
    ("scope.cuh", include_str!("../device/scope.cuh")),
    ("team.cuh", include_str!("../device/team.cuh")),
    ("ring.cuh", include_str!("../device/ring.cuh")),
    ("seat.cuh", include_str!("../device/seat.cuh")),
    ("calls.cuh", include_str!("../device/calls.cuh")),
    ("service.cuh", include_str!("../device/service.cuh")),
];

/// How many of [`HEADERS`], from the first, handlers may include.
pub(crate) const HANDLER_HEADERS: usize = 2;

/// The grid.
pub(crate) const RESIDENT: &str = include_str!("../device/resident.cu");
