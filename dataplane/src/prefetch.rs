//! Asking for cache lines before they are needed.
#![allow(unsafe_code)] // the instruction takes an address; measured in `bench/figures/dataplane.md`

/// Starts to load the cache line that a value begins in. Changes nothing that a program can see.
#[inline(always)]
pub fn prefetch<T: ?Sized>(value: &T) {
    let address = std::ptr::from_ref(value).cast::<i8>();
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE; a prefetch reads no memory that the program can see and faults at no address.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address);
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}
