//! The provided-buffer ring: the buffers that all sockets of a shard receive into, lent to the kernel and returned.

use std::{
    io,
    ptr::NonNull,
    sync::atomic::{AtomicU16, Ordering},
};

use io_uring::{IoUring, types::BufRingEntry};

/// The one buffer group of a data ring.
pub const GROUP: u16 = 0;

/// Buffers and the ring that lends them (io_uring_register(2), IORING_REGISTER_PBUF_RING).
///
/// ```text
/// entries: count x 16 bytes, page-aligned; the kernel reads them up to `tail`
/// data:    count x buffer_bytes, page-aligned, so every buffer is 16-aligned
/// ```
///
/// Invariant: a buffer id is either with the kernel (put since it was last taken) or with exactly one holder.
#[derive(Debug)]
pub struct BufferRing {
    memory: Memory,
    entries_bytes: usize,
    count: u16,
    buffer_bytes: usize,
    tail: u16,
}

/// An anonymous private mapping.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
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
        // SAFETY: start and bytes are those of our mapping, and nobody borrows from it any more: the data ring
        // unregisters the buffer ring, or closes the io_uring, before this runs.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

impl BufferRing {
    /// Makes `count` (a power of two) buffers of `buffer_bytes` and lends them all.
    ///
    /// # Errors
    /// mmap(2)'s and the registration's.
    pub fn new(ring: &IoUring, count: u16, buffer_bytes: usize) -> io::Result<BufferRing> {
        assert!(
            count.is_power_of_two() && buffer_bytes.is_multiple_of(16),
            "what the kernel and the frames ask for"
        );
        let entries_bytes = (usize::from(count) * size_of::<BufRingEntry>()).next_multiple_of(4096);
        let memory = Memory::map(entries_bytes + usize::from(count) * buffer_bytes)?;
        // SAFETY: the address is page-aligned and holds `count` entries; the mapping lives as long as this type,
        // which its owner drops only after unregistering.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(memory.start.as_ptr() as u64, count, GROUP, 0)?
        };
        let mut buffers = BufferRing { memory, entries_bytes, count, buffer_bytes, tail: 0 };
        for id in 0..count {
            buffers.put(id);
        }
        Ok(buffers)
    }

    /// The first `len` bytes of a buffer the kernel has filled and not been given back.
    pub fn bytes(&self, id: u16, len: usize) -> &[u8] {
        assert!(id < self.count && len <= self.buffer_bytes, "the kernel names buffers it was lent");
        let offset = self.entries_bytes + usize::from(id) * self.buffer_bytes;
        // SAFETY: within the mapping by the assertion; zero-initialised by mmap, written by the kernel before the
        // completion that named the buffer, and not written again until `put`, which takes &mut self.
        unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(offset), len) }
    }

    /// Lends a buffer to the kernel (again).
    pub fn put(&mut self, id: u16) {
        let offset = self.entries_bytes + usize::from(id) * self.buffer_bytes;
        let entries = self.memory.start.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `tail & (count - 1)` is below `count`, whose entries begin the mapping; the kernel does not read
        // this entry before the tail below passes it. The tail overlays a field of entry 0 that set_* do not touch.
        unsafe {
            let entry = &mut *entries.add(usize::from(self.tail & (self.count - 1)));
            entry.set_addr(self.memory.start.as_ptr().add(offset) as u64);
            entry.set_len(self.buffer_bytes as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            (*BufRingEntry::tail(entries).cast::<AtomicU16>()).store(self.tail, Ordering::Release);
        }
    }
}
