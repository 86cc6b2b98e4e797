//! A writer whose callers never block: a bounded queue, and a thread that writes it to a descriptor.
//! A pipe whose reader is stuck, a terminal after Ctrl-S or a hung file system blocks only that thread. Text beyond the queue's
//! bound is dropped and counted. O_NONBLOCK instead of the thread would affect all processes that share the descriptor.

use std::{
    io,
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::write,
};

use crate::limits::LOG_QUEUE_BYTES_MAX;

/// Queues text for its thread. The thread lives as long as the process.
pub struct BackgroundWriter(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when text is queued, and when all of it is written.
    changed: Condvar,
}

/// Invariant: `waiting` holds at most [`LOG_QUEUE_BYTES_MAX`] bytes, or one longer text.
#[derive(Default)]
struct Queue {
    /// Whole texts that the thread has yet to take.
    waiting: Vec<u8>,
    /// Whether the thread is writing text that it has taken.
    is_writing: bool,
    lines_dropped: u64,
}

impl Queue {
    fn drop_lines(&mut self, text: &[u8]) {
        self.lines_dropped += text.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        // A panic cannot leave it half-changed.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, queue: MutexGuard<'a, Queue>) -> MutexGuard<'a, Queue> {
        self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for text, and takes all of it.
    fn take(&self) -> Vec<u8> {
        let mut queue = self.queue();
        queue.is_writing = false;
        self.changed.notify_all();
        while queue.waiting.is_empty() {
            queue = self.wait(queue);
        }
        queue.is_writing = true;
        std::mem::take(&mut queue.waiting)
    }
}

impl BackgroundWriter {
    /// Starts the thread. Whenever lines were dropped and writing is possible again, it calls `on_loss` with the total number of
    /// dropped lines, and then writes what `on_loss` wrote.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        to: impl AsFd + Send + 'static,
        on_loss: impl Fn(u64) + Send + 'static,
    ) -> io::Result<BackgroundWriter> {
        let writer = BackgroundWriter(Arc::default());
        let shared = writer.0.clone();
        let run = move || {
            let mut reported = 0;
            loop {
                let text = shared.take();
                if write_all(&to, &text).is_err() {
                    // The reader is gone, and a closed log must not stop a server.
                    shared.queue().drop_lines(&text);
                    continue;
                }
                let dropped = shared.queue().lines_dropped;
                if dropped != reported {
                    reported = dropped;
                    on_loss(dropped);
                }
            }
        };
        thread::Builder::new().name("log".into()).spawn(run)?;
        Ok(writer)
    }

    /// Queues whole lines, or drops and counts them if too much is waiting. Never blocks.
    pub fn write(&self, lines: &[u8]) {
        let mut queue = self.0.queue();
        if queue.waiting.is_empty() || queue.waiting.len() + lines.len() <= LOG_QUEUE_BYTES_MAX {
            queue.waiting.extend_from_slice(lines);
            self.0.changed.notify_all();
        } else {
            queue.drop_lines(lines);
        }
    }

    /// Lines dropped so far: there was no room for them, or they could not be written.
    pub fn lines_dropped(&self) -> u64 {
        self.0.queue().lines_dropped
    }

    /// Waits until everything queued is written, at most this long.
    pub fn flush(&self, longest: Duration) {
        let is_busy = |queue: &mut Queue| queue.is_writing || !queue.waiting.is_empty();
        // Unwritten text is lost with the process.
        drop(self.0.changed.wait_timeout_while(self.0.queue(), longest, is_busy));
    }
}

/// Writes everything, even if another process has made the open file nonblocking.
fn write_all(to: &impl AsFd, mut text: &[u8]) -> nix::Result<()> {
    while !text.is_empty() {
        match write(to, text) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut writable = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut writable, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader, PipeReader, PipeWriter, pipe},
        sync::mpsc::channel,
    };

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    /// More than any wait that succeeds.
    const GUARD: Duration = Duration::from_secs(60);

    /// A pipe that is full to its last byte.
    fn full_pipe() -> (PipeReader, PipeWriter, usize) {
        let (reader, writer) = pipe().unwrap();
        let set = |flags: OFlag| fcntl(&writer, FcntlArg::F_SETFL(flags)).unwrap();
        set(OFlag::O_NONBLOCK);
        let mut filled = 0;
        for size in [4_096, 1] {
            while let Ok(written) = write(&writer, &vec![b'\n'; size]) {
                filled += written;
            }
        }
        set(OFlag::empty());
        (reader, writer, filled)
    }

    #[test]
    fn a_reader_that_stands_still_blocks_no_writer_and_learns_what_was_dropped() {
        let (reader, to, filled) = full_pipe();
        let (sender, lost) = channel();
        let writer = BackgroundWriter::start(to, move |lines| sender.send(lines).unwrap()).unwrap();
        let line = [b"x".repeat(1_023), b"\n".to_vec()].concat();
        let sent = 4 * LOG_QUEUE_BYTES_MAX / line.len();
        for _ in 0..sent {
            writer.write(&line);
        }
        let dropped = writer.lines_dropped() as usize;
        assert!(dropped >= sent / 4, "at most one queue is waiting and another being written: {dropped}");
        writer.flush(Duration::from_millis(1));
        let mut lines = BufReader::new(reader).lines().skip(filled);
        for _ in 0..sent - dropped {
            assert_eq!(lines.next().unwrap().unwrap().len(), line.len() - 1, "whole lines only");
        }
        assert_eq!(lost.recv_timeout(GUARD).unwrap(), dropped as u64);
        writer.write(b"again\n");
        assert_eq!(lines.next().unwrap().unwrap(), "again");
    }

    #[test]
    fn lines_that_nobody_can_read_are_counted() {
        let (reader, to) = pipe().unwrap();
        drop(reader);
        let writer = BackgroundWriter::start(to, |_| panic!("nothing was written")).unwrap();
        writer.write(b"one\ntwo\n");
        writer.flush(GUARD);
        assert_eq!(writer.lines_dropped(), 2);
    }

    #[test]
    fn a_nonblocking_pipe_loses_nothing() {
        let (reader, to, filled) = full_pipe();
        fcntl(&to, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let writer = BackgroundWriter::start(to, |_| ()).unwrap();
        writer.write(b"kept\n");
        assert_eq!(BufReader::new(reader).lines().nth(filled).unwrap().unwrap(), "kept");
        writer.flush(GUARD);
        assert_eq!(writer.lines_dropped(), 0);
    }

    #[test]
    fn a_text_longer_than_the_queue_is_written_if_nothing_else_waits() {
        let (reader, to) = pipe().unwrap();
        let writer = BackgroundWriter::start(to, |_| ()).unwrap();
        writer.write(&[b"x".repeat(2 * LOG_QUEUE_BYTES_MAX), b"\n".to_vec()].concat());
        assert_eq!(BufReader::new(reader).lines().next().unwrap().unwrap().len(), 2 * LOG_QUEUE_BYTES_MAX);
    }
}
