//! Restricts a data ring's operations before it takes its first entry: an attacker who controls the ring cannot use it to open a
//! file, connect, or write to a file.
//!
//! The ring can still use the process's other descriptors. Requiring that operations name registered files
//! (IORING_RESTRICTION_SQE_FLAGS_REQUIRED with IOSQE_FIXED_FILE) would apply to every entry, and the kernel refuses the flag with
//! EINVAL in the timeout update that moves the ring's timer (io_timeout_remove_prep(); seen on Linux 6.18). Besides, listeners
//! and the doorbell are not registered.
//!
//! The ring starts disabled (IORING_SETUP_R_DISABLED). Once restricted, the kernel answers any other operation with EACCES for
//! the ring's whole life (io_uring_register(2), IORING_REGISTER_RESTRICTIONS; Linux 5.10).

use std::io;

use io_uring::{IoUring, Probe, opcode, register::Restriction, squeue::Flags};

/// Operations that the ring submits.
const OPERATIONS: [u8; 9] = [
    opcode::AcceptMulti::CODE,
    opcode::RecvMulti::CODE,
    opcode::Send::CODE,
    opcode::Shutdown::CODE,
    opcode::AsyncCancel::CODE,
    opcode::Timeout::CODE,
    opcode::TimeoutUpdate::CODE,
    // The doorbell.
    opcode::Read::CODE,
    // Linux 6.8: gets a descriptor to answer operators' requests.
    opcode::FixedFdInstall::CODE,
];

// Numbers of enum io_uring_register_op (linux/io_uring.h).
const REGISTER_FILES_UPDATE: u8 = 6;
const UNREGISTER_PBUF_RING: u8 = 23;
const REGISTER_SYNC_CANCEL: u8 = 24;
/// Registrations that the ring changes once it is enabled.
const REGISTRATIONS: [u8; 3] = [REGISTER_FILES_UPDATE, UNREGISTER_PBUF_RING, REGISTER_SYNC_CANCEL];

/// Restricts a disabled ring to the operations that this server uses, and enables it.
///
/// # Errors
/// Those of io_uring_register(2).
pub fn restrict_and_enable(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let known = OPERATIONS.into_iter().filter(|operation| probe.is_supported(*operation));
    let flags = Flags::FIXED_FILE | Flags::BUFFER_SELECT | Flags::SKIP_SUCCESS;
    let mut restrictions: Vec<Restriction> = known.map(Restriction::sqe_op).collect();
    restrictions.extend(REGISTRATIONS.map(Restriction::register_op));
    restrictions.push(Restriction::sqe_flags_allowed(flags.bits()));
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()
}

#[cfg(test)]
mod tests {
    use io_uring::types::Fd;

    use super::*;

    #[test]
    fn a_restricted_ring_refuses_what_the_server_never_does_for_as_long_as_it_lives() {
        let mut ring: IoUring = IoUring::builder().setup_submit_all().setup_r_disabled().build(8).unwrap();
        restrict_and_enable(&ring).unwrap();
        let path = c"/dev/null";
        let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr()).build().user_data(1);
        let timespec = io_uring::types::Timespec::new();
        let timeout = opcode::Timeout::new(&timespec).build().user_data(2);
        // SAFETY: the path and the timespec outlive the ring's use of them.
        unsafe {
            ring.submission().push(&open).unwrap();
            ring.submission().push(&timeout).unwrap();
        }
        ring.submit_and_wait(2).unwrap();
        let results: Vec<_> = ring.completion().map(|entry| (entry.user_data(), entry.result())).collect();
        assert!(results.contains(&(1, -libc::EACCES)), "{results:?}");
        assert!(results.contains(&(2, -libc::ETIME)), "{results:?}");
        let refused = ring.submitter().register_files(&[0]).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
        assert!(ring.submitter().register_restrictions(&mut []).is_err(), "nobody lifts them");
    }
}
