//! The feed: one thread publishes what is due, writes it and reads the answers.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, TcpStream as BlockingStream},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use tickcast::{clock, sources::payload::Mark};

use crate::{
    common::{
        process::thread_cpu_ns,
        tls::{Received, Tls},
    },
    options::Plan,
    publisher::Publisher,
    report::Report,
};

/// Time allowed per connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
/// Longest sleep, which bounds how late a signal is noticed.
const SLEEP_NS_MAX: u64 = 20_000_000;
/// Most ticks queued between two writes.
const BATCH_TICKS: u64 = 256;
/// Most events per epoll_wait(2).
const EVENTS_MAX: usize = 256;
/// Most bytes that are sealed before the socket takes them.
const SEALED_BYTES_MAX: usize = 64 << 10;
/// Size of the read buffer.
const READ_BYTES: usize = 16 << 10;
/// Time allowed at the end to write what is queued and to read the answers.
const DRAIN_NS: u64 = 2_000_000_000;
/// Longest wait for an event while draining.
const DRAIN_WAIT: Duration = Duration::from_millis(2);

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    publisher: Publisher,
    tls: Option<Box<Tls>>,
    /// Scratch buffer of TLS.
    plaintext: Vec<u8>,
    /// Has ticks queued since its last write.
    is_dirty: bool,
}

/// State of the feed.
///
/// Invariant: `published[t]` is the number of the last tick queued for topic `t`.
struct Feeder<'a> {
    plan: &'a Plan,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    /// Indices of the connections with `is_dirty`.
    dirty: Vec<usize>,
    topics: Vec<String>,
    published: Vec<u64>,
    payload: Vec<u8>,
    buffer: Box<[u8]>,
    report: Report,
}

/// Publishes until the duration has passed, `stop` is set, or a connection ends.
///
/// # Errors
/// One line for the operator if a connection cannot be opened.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Report, String> {
    let mut feeder = Feeder::connect(plan)?;
    eprintln!("publishing {} ticks/s over {} connections", plan.ticks_per_s(), plan.connections);
    let cpu_from_ns = thread_cpu_ns();
    let from_ns = clock::monotonic_ns();
    let outcome = feeder.publish(stop).and_then(|()| feeder.drain());
    let mut report = feeder.report;
    report.ended = outcome.err();
    report.window_ns = clock::monotonic_ns() - from_ns;
    report.cpu_ns = thread_cpu_ns() - cpu_from_ns;
    for connection in &feeder.connections {
        report.failed += connection.publisher.failed;
        report.unwritten_bytes += connection.publisher.output().len() as u64;
        report.failure = report.failure.or_else(|| connection.publisher.failure.clone());
    }
    Ok(report)
}

impl<'a> Feeder<'a> {
    fn connect(plan: &'a Plan) -> Result<Feeder<'a>, String> {
        let poll = Poll::new().map_err(|error| format!("epoll: {error}"))?;
        let mut connections = Vec::with_capacity(plan.connections);
        for index in 0..plan.connections {
            let fail = |error: io::Error| format!("connection {index} to {}: {error}", plan.server);
            let stream = BlockingStream::connect_timeout(&plan.server, CONNECT_DEADLINE).map_err(fail)?;
            stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true)).map_err(fail)?;
            let mut stream = TcpStream::from_std(stream);
            let interest = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(index), interest).map_err(fail)?;
            let tls = plan.tls.as_ref().map(Tls::start).transpose()?.map(Box::new);
            let (publisher, plaintext) = (Publisher::open(plan), Vec::new());
            connections.push(Connection { stream, publisher, tls, plaintext, is_dirty: false });
        }
        Ok(Feeder {
            plan,
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            connections,
            dirty: Vec::with_capacity(plan.connections),
            topics: (0..plan.topics).map(|topic| format!("sim.{topic}")).collect(),
            published: vec![0; plan.topics as usize],
            payload: Vec::with_capacity(plan.size_bytes),
            buffer: vec![0; READ_BYTES].into_boxed_slice(),
            report: Report::new()?,
        })
    }

    fn publish(&mut self, stop: &AtomicBool) -> Result<(), String> {
        let ticks_per_s = u128::from(self.plan.ticks_per_s());
        let after_ns = |k: u64| (u128::from(k) * 1_000_000_000 / ticks_per_s) as u64;
        let ticks = self.plan.ticks();
        let (start_ns, start_realtime_ns) = (clock::monotonic_ns(), clock::realtime_ns());
        let mut k = 0;
        while k < ticks && !stop.load(Ordering::Acquire) {
            let elapsed_ns = clock::monotonic_ns() - start_ns;
            let first = k;
            while k < ticks && k < first + BATCH_TICKS && after_ns(k) <= elapsed_ns {
                self.offer(k, start_realtime_ns + after_ns(k))?;
                k += 1;
            }
            let written_at_ns = clock::monotonic_ns() - start_ns;
            (first..k).for_each(|k| self.report.record_late(written_at_ns.saturating_sub(after_ns(k))));
            while let Some(index) = self.dirty.pop() {
                self.connections[index].is_dirty = false;
                self.connections[index].write().map_err(|why| ended(index, &why))?;
            }
            self.turn(Duration::ZERO)?;
            let next_ns = after_ns(k).saturating_sub(clock::monotonic_ns() - start_ns);
            if next_ns > 0 && k < ticks {
                clock::sleep_ns(next_ns.min(SLEEP_NS_MAX));
            }
        }
        Ok(())
    }

    /// Queues the k-th tick, or counts it as refused.
    fn offer(&mut self, k: u64, intended_ns: u64) -> Result<(), String> {
        let topic = (k % u64::from(self.plan.topics)) as usize;
        let index = topic % self.connections.len();
        let connection = &mut self.connections[index];
        self.report.offered += 1;
        if connection.publisher.is_full() {
            self.report.refused += 1;
            return Ok(());
        }
        let mark = Mark { at_ns: intended_ns, topic: topic as u32, n: self.published[topic] + 1 };
        mark.write(&mut self.payload, self.plan.size_bytes);
        connection
            .publisher
            .publish(&self.topics[topic], intended_ns, &self.payload)
            .map_err(|why| ended(index, &why))?;
        self.published[topic] += 1;
        self.report.sent += 1;
        if !connection.is_dirty {
            connection.is_dirty = true;
            self.dirty.push(index);
        }
        Ok(())
    }

    /// Reads and writes the connections that are ready.
    fn turn(&mut self, timeout: Duration) -> Result<(), String> {
        match self.poll.poll(&mut self.events, Some(timeout)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(format!("epoll: {error}")),
            _ => {}
        }
        for event in &self.events {
            let index = event.token().0;
            let connection = &mut self.connections[index];
            if event.is_readable() || event.is_read_closed() || event.is_error() {
                connection.read(&mut self.buffer).map_err(|why| ended(index, &why))?;
            }
            // An answer may have queued a reply.
            connection.write().map_err(|why| ended(index, &why))?;
        }
        Ok(())
    }

    /// Writes what is queued and waits for the answers.
    ///
    /// Closing a socket with unread answers sends a reset, which may discard what the server has not read yet.
    fn drain(&mut self) -> Result<(), String> {
        for (index, connection) in self.connections.iter_mut().enumerate() {
            connection.publisher.finish().map_err(|why| ended(index, &why))?;
            connection.write().map_err(|why| ended(index, &why))?;
        }
        let until_ns = clock::monotonic_ns() + DRAIN_NS;
        while clock::monotonic_ns() < until_ns
            && !self
                .connections
                .iter()
                .all(|one| one.publisher.output().is_empty() && one.publisher.is_answered())
        {
            self.turn(DRAIN_WAIT)?;
        }
        for connection in &self.connections {
            let _ = connection.stream.shutdown(Shutdown::Both);
        }
        Ok(())
    }
}

fn ended(index: usize, why: &str) -> String {
    format!("connection {index}: {why}")
}

impl Connection {
    fn write(&mut self) -> Result<(), String> {
        loop {
            if let Some(tls) = self.tls.as_mut().filter(|tls| tls.is_open() && tls.output().is_empty()) {
                let output = self.publisher.output();
                let sealed = output.len().min(SEALED_BYTES_MAX);
                if sealed > 0 {
                    tls.seal(&output[..sealed]);
                    self.publisher.output_written(sealed);
                }
            }
            let output = self.tls.as_ref().map_or(self.publisher.output(), |tls| tls.output());
            if output.is_empty() {
                return Ok(());
            }
            match self.stream.write(output) {
                Ok(written) => match &mut self.tls {
                    Some(tls) => tls.output_written(written),
                    None => self.publisher.output_written(written),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("write: {error}")),
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), String> {
        let closed = || Err("the server closed the connection".into());
        loop {
            match self.stream.read(buffer) {
                Ok(0) => return closed(),
                Ok(read) => {
                    let Some(tls) = &mut self.tls else {
                        self.publisher.handle_bytes(&buffer[..read])?;
                        continue;
                    };
                    let received = tls.receive(&buffer[..read], &mut self.plaintext);
                    self.publisher.handle_bytes(&self.plaintext)?;
                    if received? == Received::Closed {
                        return closed();
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("read: {error}")),
            }
        }
    }
}

#[cfg(test)]
mod tests;
