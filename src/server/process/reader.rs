//! Detects that the reader of an output is gone even while nothing is written, as `tail -f` does.

use std::{io, os::fd::AsFd, thread};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};

/// Calls `then` from its own thread once the reader of a pipe, socket or terminal is gone. Costs nothing until then. Never
/// calls it for a file.
///
/// # Errors
/// The thread cannot be started.
pub fn when_gone(output: impl AsFd + Send + 'static, then: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let watch = move || {
        loop {
            match is_gone(&output, PollTimeout::NONE) {
                Ok(true) => return then(),
                Ok(false) | Err(Errno::EINTR) => {}
                // A write will fail, too.
                Err(_) => return,
            }
        }
    };
    thread::Builder::new().name("reader".into()).spawn(watch)?;
    Ok(())
}

/// Waits until the reader of an output is gone, or the time is up. Returns whether it is gone.
fn is_gone(output: &impl AsFd, timeout: PollTimeout) -> nix::Result<bool> {
    // poll(2) always reports POLLERR and POLLHUP.
    poll(&mut [PollFd::new(output.as_fd(), PollFlags::empty())], timeout).map(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, io::pipe, os::unix::net::UnixStream, sync::mpsc::channel, time::Duration};

    use super::*;

    #[test]
    fn the_end_of_a_reader_is_noticed_without_a_write() {
        let (sender, gone) = channel();
        let (reader, writer) = pipe().unwrap();
        assert_eq!(is_gone(&writer, PollTimeout::ZERO), Ok(false));
        when_gone(writer, move || sender.send(()).unwrap()).unwrap();
        drop(reader);
        gone.recv_timeout(Duration::from_secs(60)).unwrap();

        let (sender, gone) = channel();
        let (reader, writer) = UnixStream::pair().unwrap();
        assert_eq!(is_gone(&writer, PollTimeout::ZERO), Ok(false));
        when_gone(writer, move || sender.send(()).unwrap()).unwrap();
        drop(reader);
        gone.recv_timeout(Duration::from_secs(60)).unwrap();
    }

    #[test]
    fn a_file_has_no_reader_that_could_end() {
        for path in ["/dev/null", env!("CARGO_MANIFEST_PATH")] {
            // What poll(2) reports of a file never changes: waiting longer would not find more.
            assert_eq!(is_gone(&File::open(path).unwrap(), PollTimeout::ZERO), Ok(false), "{path}");
        }
    }
}
