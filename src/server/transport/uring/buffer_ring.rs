//! The provided-buffer ring: the buffers that all sockets of a shard receive into. The kernel fills them, and gets them back once
//! their bytes have been handled.

use std::{
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{IoUring, types::BufRingEntry};

/// The only buffer group of a data ring.
pub(super) const GROUP: u16 = 0;

/// Buffers and the ring that provides them to the kernel (io_uring_register(2), IORING_REGISTER_PBUF_RING).
///
/// ```text
/// entries: count x 16 bytes, page-aligned; the kernel reads them up to `tail`
/// data:    count x buffer_bytes, page-aligned, so every buffer is 16-aligned
/// ```
///
/// Invariant: a buffer belongs to the kernel exactly while it has no holders. Its bytes can be read only while it is held, and it
/// is provided again when its last holder releases it.
#[derive(Debug)]
pub(super) struct BufferRing {
    memory: Memory,
    entries_bytes: usize,
    /// Holders of each buffer. The length is the number of buffers, a power of two.
    holders: Box<[u32]>,
    buffer_bytes: usize,
    tail: u16,
}

/// One hold on a filled buffer. Return it with [`BufferRing::release`]; if it is dropped, the kernel never gets the buffer
/// back.
#[derive(Debug)]
pub(super) struct Hold(u16);

/// A private anonymous mapping.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    /// 0 once leaked.
    bytes: usize,
}

impl Memory {
    fn map(bytes: usize) -> io::Result<Memory> {
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_ANONYMOUS | libc::MAP_PRIVATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Memory { start, bytes })
            .ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: start and bytes are those of our mapping. Nothing borrows from it any more, and the kernel no longer writes
            // to it, by the contract of `BufferRing::new`.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        }
    }
}

impl BufferRing {
    /// Creates `count` buffers (a power of two) of `buffer_bytes` and provides them all.
    ///
    /// # Safety
    /// The kernel writes to the buffers until the group is unregistered. Before it drops the value, the caller must
    /// unregister [`GROUP`] from `ring`, or else call [`BufferRing::leak`].
    ///
    /// # Errors
    /// Those of mmap(2) and of the registration.
    pub(super) unsafe fn new(ring: &IoUring, count: u16, buffer_bytes: usize) -> io::Result<BufferRing> {
        assert!(
            count.is_power_of_two() && buffer_bytes.is_multiple_of(16),
            "required by the kernel and by the alignment of frames"
        );
        let entries_bytes = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(4096);
        let memory = Memory::map(entries_bytes + usize::from(count) * buffer_bytes)?;
        // SAFETY: the address is page-aligned and holds `count` entries; the mapping outlives the registration, by this
        // function's own contract.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(memory.start.as_ptr() as u64, count, GROUP, 0)?
        };
        let holders = vec![0; usize::from(count)].into();
        let mut buffers = BufferRing { memory, entries_bytes, holders, buffer_bytes, tail: 0 };
        for id in 0..count {
            buffers.provide(id);
        }
        Ok(buffers)
    }

    /// Takes the buffer that a completion names.
    ///
    /// Panics if the kernel does not have that buffer: two owners must never exist.
    pub(super) fn take(&mut self, id: u16) -> Hold {
        let holders = &mut self.holders[usize::from(id)];
        assert!(*holders == 0, "the kernel fills only buffers that were provided to it");
        *holders = 1;
        Hold(id)
    }

    /// Adds a hold on a buffer, for another part of its bytes.
    pub(super) fn hold_again(&mut self, hold: &Hold) -> Hold {
        self.holders[usize::from(hold.0)] += 1;
        Hold(hold.0)
    }

    /// Releases a hold. Releasing the last one provides the buffer to the kernel again.
    pub(super) fn release(&mut self, hold: Hold) {
        let holders = &mut self.holders[usize::from(hold.0)];
        assert!(*holders > 0, "a hold of this ring");
        *holders -= 1;
        if *holders == 0 {
            self.provide(hold.0);
        }
    }

    /// The first `len` bytes of a buffer.
    pub(super) fn bytes(&self, hold: &Hold, len: usize) -> &[u8] {
        // Fails only for a hold of another ring.
        assert!(self.holders[usize::from(hold.0)] > 0 && len <= self.buffer_bytes, "a hold of this ring");
        let offset = self.entries_bytes + usize::from(hold.0) * self.buffer_bytes;
        // SAFETY: within the mapping by the assertion; zero-initialised by mmap and written by the kernel before the
        // completion that named the buffer. It has a holder, so the kernel does not write to it before `provide`, which takes
        // &mut self.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(offset), len) }
    }

    /// Leaves the memory mapped for good, for a kernel that may still write to it.
    pub(super) fn leak(&mut self) {
        self.memory.bytes = 0;
    }

    /// Provides a buffer that has no holders.
    fn provide(&mut self, id: u16) {
        let offset = self.entries_bytes + usize::from(id) * self.buffer_bytes;
        let at = usize::from(self.tail) & (self.holders.len() - 1);
        let entries = self.memory.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `at` is below the number of entries, which begin the mapping; the kernel does not read this entry before
        // the tail below passes it. The tail overlays a field of entry 0 that the setters do not touch.
        unsafe {
            let entry = &mut *entries.add(at);
            entry.set_addr(self.memory.start.as_ptr().add(offset) as u64);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            (*BufRingEntry::tail(entries).cast::<AtomicU16>()).store(self.tail, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a test with a ring that outlives the buffers, and is closed before they are dropped.
    fn with_buffers(test: impl FnOnce(&mut BufferRing)) {
        let ring = IoUring::new(4).unwrap();
        // SAFETY: unregistered below; leaked if the test panics.
        let mut buffers = std::mem::ManuallyDrop::new(unsafe { BufferRing::new(&ring, 2, 64) }.unwrap());
        test(&mut buffers);
        ring.submitter().unregister_buf_ring(GROUP).unwrap();
        drop(std::mem::ManuallyDrop::into_inner(buffers));
    }

    #[test]
    fn a_buffer_is_provided_again_when_its_last_holder_releases_it() {
        with_buffers(|buffers| {
            let first = buffers.take(1);
            let second = buffers.hold_again(&first);
            assert_eq!(buffers.tail, 2, "both buffers were provided at the start");
            buffers.release(first);
            assert_eq!((buffers.tail, buffers.bytes(&second, 64)), (2, &[0; 64][..]));
            buffers.release(second);
            assert_eq!(buffers.tail, 3);
            let again = buffers.take(1);
            buffers.release(again);
        });
    }

    #[test]
    #[should_panic(expected = "the kernel fills only buffers that were provided to it")]
    fn a_buffer_that_is_held_cannot_be_taken_twice() {
        with_buffers(|buffers| {
            let _held = buffers.take(0);
            buffers.take(0);
        });
    }

    #[test]
    #[should_panic(expected = "a hold of this ring")]
    fn a_hold_of_another_ring_reads_nothing_that_the_kernel_writes_to() {
        with_buffers(|buffers| {
            buffers.bytes(&Hold(1), 1);
        });
    }
}
