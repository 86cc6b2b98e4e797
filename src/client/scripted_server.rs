//! A scripted server on a loopback port, for tests that need a socket.

use std::{
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream},
    thread::JoinHandle,
};

use tickcast_proto::{
    Step, WireFormat,
    command::Command,
    features::Features,
    frame::{self, HeaderFields, Kind, PublishParts},
    ids::{Sequence, TopicId},
    limits::FRAME_BYTES_MAX_DEFAULT,
    records::{Closing, ErrorRecord, Hello, Request, Subscribed, TickTimes, Token, Welcome, WireRecord},
    reply::Reply,
};

/// One accepted connection of a scripted server.
pub struct Peer {
    /// The connection.
    pub stream: TcpStream,
    input: Vec<u8>,
}

/// Starts a server that runs `script` on its one connection; joining the handle returns the script's result.
pub fn serve<T: Send + 'static>(
    script: impl FnOnce(&mut Peer) -> T + Send + 'static,
) -> (String, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        script(&mut Peer { stream, input: Vec::new() })
    });
    (address, thread)
}

/// Starts a server that runs one script on each connection, in order; joining the handle waits for all.
pub fn serve_each(scripts: Vec<fn(&mut Peer)>) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        for script in scripts {
            let (stream, _) = listener.accept().unwrap();
            script(&mut Peer { stream, input: Vec::new() });
        }
    });
    (address, thread)
}

impl Peer {
    /// The next command in `Debug` format.
    pub fn command(&mut self) -> String {
        loop {
            if let Step::Complete(used, frame) = frame::decode(&self.input, FRAME_BYTES_MAX_DEFAULT).unwrap()
            {
                let command = format!("{:?}", Command::from_frame(&frame).unwrap());
                self.input.drain(..used);
                return command;
            }
            let mut buffer = [0; 4096];
            let read = self.stream.read(&mut buffer).unwrap();
            assert_ne!(read, 0, "the client has disconnected");
            self.input.extend_from_slice(&buffer[..read]);
        }
    }

    /// Reads the hello and welcomes the client as a server of this epoch.
    pub fn welcome_in(&mut self, epoch: u64) {
        self.welcome_with(epoch, None);
    }

    /// Reads the hello and grants features.
    pub fn welcome_with(&mut self, epoch: u64, features: Option<Features>) {
        assert_eq!(self.next_frame().unwrap().0, Kind::Hello);
        self.reply(Reply::Welcome { request: 1, epoch, session: 2, frame_bytes_max: 1 << 18, features });
    }

    /// Acknowledges a publish.
    pub fn published(&mut self, request: u64, sequence: u64) {
        let (request, topic) = (request as u32, TopicId(5));
        self.reply(Reply::Published { request, topic, name: "a.b", epoch: 3, sequence, is_duplicate: false });
    }

    /// Announces topic 1.
    pub fn topic(&mut self, epoch: u64) {
        let mut bytes = Vec::new();
        frame::encode_topic(&mut bytes, TopicId(5), epoch, "a.b");
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends a snapshot tick.
    pub fn snapshot(&mut self, sequence: u64) {
        let mut bytes = Vec::new();
        let parts = frame::TickParts { flags: frame::FLAG_SNAPSHOT, payload: b"7", ..Default::default() };
        frame::encode_tick(&mut bytes, TopicId(5), Sequence(sequence), &parts);
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends a reply.
    pub fn reply(&mut self, reply: Reply<'_>) {
        let mut bytes = Vec::new();
        reply.encode(WireFormat::TCP_NATIVE, &mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next frame: its kind, request number or token, and payload without the topic; `None` at the end.
    pub fn next_frame(&mut self) -> Option<(Kind, u64, Vec<u8>)> {
        loop {
            if let Step::Complete(used, frame) = frame::decode(&self.input, FRAME_BYTES_MAX_DEFAULT).unwrap()
            {
                let got = match frame.kind {
                    Kind::Hello => (u64::from(frame.record::<Hello>().unwrap().request), frame.payload()),
                    Kind::Ping | Kind::Pong => (frame.record::<Token>().unwrap().token, frame.payload()),
                    Kind::Publish => {
                        let PublishParts { record, payload, .. } = frame.publish().unwrap();
                        (u64::from(record.request), payload)
                    }
                    _ => (u64::from(frame.record::<Request>().unwrap().request), frame.payload()),
                };
                let got = (frame.kind, got.0, got.1.to_vec());
                self.input.drain(..used);
                return Some(got);
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return None,
                // The client has left without reading all input.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                read => self.input.extend_from_slice(&buffer[..read.unwrap()]),
            }
        }
    }

    /// Reads the hello and welcomes the client.
    pub fn welcome(&mut self) {
        assert_eq!(self.next_frame().unwrap().0, Kind::Hello);
        let welcome = Welcome { epoch: 1, session: 2, frame_bytes_max: 1 << 18, request: 1 };
        self.send(Kind::Welcome, &welcome, b"tickcast/test");
    }

    /// Reads one SUBSCRIBE, acknowledges it, and announces topic 5 `a.b`.
    pub fn subscribed(&mut self) {
        let (kind, request, pattern) = self.next_frame().unwrap();
        assert_eq!(kind, Kind::Subscribe);
        self.send(
            Kind::Subscribed,
            &Subscribed { request: request as u32, ..Subscribed::default() },
            &pattern,
        );
        let mut bytes = Vec::new();
        frame::encode_topic(&mut bytes, TopicId(5), 3, "a.b");
        self.stream.write_all(&bytes).unwrap();
    }

    /// Sends a tick.
    pub fn tick(&mut self, sequence: u64, payload: &[u8]) {
        let mut bytes = Vec::new();
        let times = TickTimes { producer_time_ns: 70, ingest_time_ns: 80 };
        frame::encode_tick(
            &mut bytes,
            TopicId(5),
            Sequence(sequence),
            &frame::TickParts { times, payload, ..Default::default() },
        );
        self.stream.write_all(&bytes).unwrap();
    }

    /// Refuses a request.
    pub fn error(&mut self, request: u64, text: &str) {
        self.send(
            Kind::Error,
            &ErrorRecord { request: request as u32, code: 101, reserved: 0 },
            text.as_bytes(),
        );
    }

    /// Says goodbye.
    pub fn closing(&mut self, code: u16, text: &str) {
        self.send(Kind::Closing, &Closing { reconnect_after_ms: 0, code, reserved: 0 }, text.as_bytes());
    }

    /// Pings the client.
    pub fn ping(&mut self, token: u64) {
        self.send(Kind::Ping, &Token { token }, b"");
    }

    /// Answers a ping.
    pub fn pong(&mut self, token: u64) {
        self.send(Kind::Pong, &Token { token }, b"");
    }

    fn send<R: WireRecord>(&mut self, kind: Kind, record: &R, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::encode(&mut bytes, kind, HeaderFields::default(), record, &[payload]);
        self.stream.write_all(&bytes).unwrap();
    }
}
