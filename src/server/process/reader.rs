//! Notices that the reader of an output is gone while nothing is written to it, as `tail -f` does.

use std::{io, os::fd::AsFd, thread};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Calls `then` once the reader of a pipe, socket or terminal is gone: from a thread of its own, which costs nothing until then. Never
/// calls it for a file.
///
/// # Errors
/// The thread cannot be started.
pub fn when_gone(output: impl AsFd + Send + 'static, then: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let watch = move || {
        // POLLERR and POLLHUP are reported without being asked for.
        let mut waited = [PollFd::new(output.as_fd(), PollFlags::empty())];
        loop {
            match poll(&mut waited, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Ok(_) => return then(),
                // A write will fail, too.
                Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("reader".into()).spawn(watch)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::pipe,
        os::unix::net::UnixStream,
        sync::mpsc::{RecvTimeoutError, channel},
        time::Duration,
    };

    use super::*;

    #[test]
    fn the_end_of_a_reader_is_noticed_without_a_write() {
        let (sender, gone) = channel();
        let (reader, writer) = pipe().unwrap();
        when_gone(writer, move || sender.send(()).unwrap()).unwrap();
        assert_eq!(gone.recv_timeout(Duration::from_millis(20)), Err(RecvTimeoutError::Timeout));
        drop(reader);
        gone.recv_timeout(Duration::from_secs(60)).unwrap();

        let (sender, gone) = channel();
        let (reader, writer) = UnixStream::pair().unwrap();
        when_gone(writer, move || sender.send(()).unwrap()).unwrap();
        drop(reader);
        gone.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_file_has_no_reader_that_could_end() {
        for path in ["/dev/null", env!("CARGO_MANIFEST_PATH")] {
            let (sender, gone) = channel();
            when_gone(File::open(path).unwrap(), move || sender.send(()).unwrap()).unwrap();
            assert_eq!(
                gone.recv_timeout(Duration::from_millis(20)),
                Err(RecvTimeoutError::Timeout),
                "{path}"
            );
        }
    }
}
