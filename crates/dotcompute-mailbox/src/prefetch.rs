//! Asking for a cache line ahead of time. Hints: a place may be anywhere.

/// Asks for the line at `place` in order to read it, so that it comes from the core that had it
/// last while this one does something else.
#[inline(always)]
pub(crate) fn for_reading<T>(place: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch changes nothing that a program can observe, and no address makes it fault.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(place.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}

/// As [`for_reading`], in order to write it.
#[inline(always)]
pub(crate) fn for_writing<T>(place: *const T) {
    // The intrinsic `_mm_prefetch` asks for a line to read, whatever its hint, unless the target is
    // known to have PRFCHW; then the write has to ask again. All 64-bit processors decode the
    // instruction, a few old ones as one that does nothing.
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch changes nothing that a program can observe, and no address makes it fault.
    unsafe {
        std::arch::asm!(
            "prefetchw [{}]",
            in(reg) place.addr(),
            options(nomem, nostack, preserves_flags)
        );
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = place;
}
