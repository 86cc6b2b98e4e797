//! From sockets to commands: decodes what clients send and executes it. A protocol error ends its session, a bad request is
//! answered, and neither affects other sessions.

use super::{Action, Shard, Unsequenced, authentication::Purpose, timers::TimerKind};
use crate::{
    budgets::{Expense, subscription_costs},
    ids::{SlotId, UpstreamId},
    limits::INFLATED_BYTES_PER_UNIT,
    metrics::counters::Counter,
    now::Now,
    principal::AuthRefusal,
    session::{CloseReason, InputState, MessageRest, Proof, Protocol, Session},
    topic_key::KeyBuffer,
};
use tickcast_proto::{
    DecodeError, ErrorCode, Step,
    codec::{Message, MessageType, RequestDecodeError, json},
    command::{Command, PublishCommand},
    frame::{self, FLAG_PAYLOAD_JSON},
    framing::{Decoder, Incoming},
    pattern,
    records::Publish,
    reply::Reply,
};

/// Progress of processing a session's input.
#[derive(Default)]
struct Progress {
    used: usize,
    /// Bytes that compressed messages had more than was used of the input, and of messages begun earlier. They are work too.
    inflated: usize,
    /// The rest waits for room, not for more bytes.
    blocked: bool,
    /// A message has been completed, so any unfinished one began after it.
    completed: bool,
}

/// Where a decoded message is served.
enum Served {
    /// This shard has processed it.
    Here,
    /// The shard of its identity, or this one once its credentials have been verified, will process it from the beginning.
    Later,
}

impl Shard {
    /// Processes bytes from a peer, in order, in pieces of any size.
    pub fn handle_bytes(&mut self, slot: SlotId, bytes: &[u8], now: Now) {
        self.counters.add(Counter::BytesReceived, bytes.len() as u64);
        self.receive(slot, bytes, now);
        self.apply_deferred(now);
    }

    pub(super) fn receive(&mut self, slot: SlotId, bytes: &[u8], now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        if session.is_paused() || !session.input().is_empty() {
            let is_first = session.input().is_empty();
            if !session.keep_input(bytes) {
                self.end(slot, CloseReason::UnfinishedMemory, now);
            } else if !session.is_paused() {
                self.process_waiting(slot, now);
            } else if session.awaits_verdict() {
                if is_first {
                    session.note_began(now.monotonic_ns);
                }
                self.bound_unfinished(slot, now);
            }
        } else {
            // Sessions that wait for room go first.
            let bytes_max = if self.input_queue.is_empty() { usize::MAX } else { 0 };
            let progress = self.process(slot, bytes, bytes_max, now);
            if let Some(session) = self.sessions.open_mut(slot)
                && !session.keep_input(&bytes[progress.used..])
            {
                self.end(slot, CloseReason::UnfinishedMemory, now);
            }
            self.after_input(slot, &progress, now);
        }
        self.note_activity(slot, now);
        self.apply_deferred(now);
    }

    /// Processes about `bytes_max` of a paused session's input, and resumes receiving if that was all of it. Returns the bytes
    /// processed, including those inflated.
    pub(super) fn resume_input(&mut self, slot: SlotId, bytes_max: usize, now: Now) -> usize {
        let Some(session) = self.sessions.open_mut(slot) else { return 0 };
        let input = session.take_input();
        let progress = self.process(slot, &input, bytes_max, now);
        if let Some(session) = self.sessions.open_mut(slot) {
            session.keep_rest(input, progress.used);
            if !progress.blocked {
                // A WebSocket whose session has ended receives again already.
                let was_paused = std::mem::take(&mut session.input_state) == InputState::Paused;
                // When a session leaves, the shard it goes to resumes receiving from it.
                if was_paused && !matches!(session.protocol, Protocol::Leaving { .. }) {
                    self.actions.push_back(Action::ResumeReceive(slot));
                }
            }
        }
        self.after_input(slot, &progress, now);
        self.note_activity(slot, now);
        if !progress.blocked {
            self.finish_post(slot, now);
        }
        progress.used + progress.inflated
    }

    pub(super) fn process_waiting(&mut self, slot: SlotId, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else {
            return debug_assert!(false, "only an open session has input that waits");
        };
        let input = session.take_input();
        let progress = self.process(slot, &input, usize::MAX, now);
        if let Some(session) = self.sessions.open_mut(slot) {
            session.keep_rest(input, progress.used);
        }
        self.after_input(slot, &progress, now);
    }

    /// Pauses a session whose input waits for room. Sets the deadline of an unfinished frame or message, and counts its
    /// bytes.
    fn after_input(&mut self, slot: SlotId, progress: &Progress, now: Now) {
        let Some(session) = self.sessions.open_mut(slot) else { return };
        let since_ns = session.partial_since_ns().filter(|_| !progress.completed);
        let began_ns = since_ns.unwrap_or(now.monotonic_ns);
        self.pause_if(slot, progress.blocked);
        let Some(session) = self.sessions.open_mut(slot) else { return };
        session.note_began(began_ns);
        let (is_paused, has_input) = (session.is_paused(), !session.input().is_empty());
        let since_ns = match session.protocol.decoder_mut().and_then(Decoder::fragments_mut) {
            // Its deadline runs from its first byte, whatever comes in between.
            Some(fragments) => Some(*fragments.since_ns.get_or_insert(began_ns)),
            None if is_paused || !has_input => None,
            None => Some(began_ns),
        };
        if !is_paused {
            session.input_state = if since_ns.is_some() { InputState::Partial } else { InputState::Open };
        }
        if let Some(since_ns) = since_ns
            && !std::mem::replace(&mut session.frame_timer_pending, true)
        {
            let id = session.id;
            let when = since_ns.saturating_add(self.input_deadline_ns(slot));
            self.set_timer(when, TimerKind::Frame, id);
        }
        self.bound_unfinished(slot, now);
    }

    /// Processes whole messages at the front of `bytes` while there is room for their effects, about `bytes_max` of
    /// them.
    fn process(&mut self, slot: SlotId, bytes: &[u8], bytes_max: usize, now: Now) -> Progress {
        let mut progress = Progress::default();
        loop {
            let used = progress.used;
            let room = used.saturating_add(progress.inflated) < bytes_max
                && self.takes_input()
                && self.takes_input_of(slot);
            let Some(session) = self.sessions.open_mut(slot) else {
                return Progress { used: bytes.len(), ..progress };
            };
            if matches!(&session.protocol, Protocol::Carrier(carrier) if carrier.is_over) {
                return Progress { used: bytes.len(), completed: true, ..progress };
            }
            let rest_len = session.message_rest_len();
            if used == bytes.len() && rest_len == 0 {
                break;
            }
            let waits = !room;
            if waits && (session.awaits_verdict() || !session.protocol.is_new()) {
                return Progress { blocked: true, ..progress };
            }
            let rest = &bytes[used..];
            let step = match session.protocol {
                _ if rest_len > 0 => {
                    let step = self.rest_of_message(slot, now).map(|_| Step::Complete(0, ()));
                    let left = self.sessions.get(slot).map_or(0, Session::message_rest_len);
                    progress.inflated += rest_len.saturating_sub(left);
                    step
                }
                Protocol::Http(_) => self.http(slot, rest, now),
                Protocol::ProxyHeader => match self.proxy_header(slot, rest, now) {
                    Ok(step) => Ok(step),
                    Err(reason) => {
                        self.end(slot, reason, now);
                        return Progress { used: bytes.len(), ..progress };
                    }
                },
                Protocol::Admitting | Protocol::Leaving { .. } => Ok(Step::Partial),
                Protocol::Hello(_)
                | Protocol::Open(_)
                | Protocol::Echo(_)
                | Protocol::Streaming(_)
                | Protocol::SocketIo(_)
                | Protocol::Carrier(_) => self.message(slot, rest, now),
            };
            let inflated = self.decoders.take_inflated();
            if inflated > 0 {
                progress.inflated += inflated;
                self.charge(inflated / INFLATED_BYTES_PER_UNIT);
            }
            match step {
                Ok(Step::Complete(len, ())) => {
                    progress.used += len;
                    let within = |session: &mut Session| session.protocol.fragments().is_some();
                    progress.completed |= !self.sessions.open_mut(slot).is_some_and(within);
                }
                Ok(Step::Partial) => {
                    let session = self.sessions.open_mut(slot);
                    progress.blocked = session.is_some_and(|session| session.awaits_verdict());
                    break;
                }
                Err(error) => {
                    self.end(slot, error.into(), now);
                    return Progress { used: bytes.len(), ..progress };
                }
            }
        }
        progress
    }

    /// Decodes the message at the front of `bytes`, in the session's framing, and executes it.
    fn message(&mut self, slot: SlotId, bytes: &[u8], now: Now) -> Result<Step<()>, DecodeError> {
        let Some(session) = self.sessions.open_mut(slot) else {
            debug_assert!(false, "only an open session's input is processed");
            return Ok(Step::Partial);
        };
        let is_echo = matches!(session.protocol, Protocol::Echo(_));
        let is_socket_io = matches!(session.protocol, Protocol::SocketIo(_));
        let is_carrier = matches!(session.protocol, Protocol::Carrier(_));
        let Some(decoder) = session.protocol.decoder_mut() else {
            debug_assert!(false, "the input of a session that takes messages goes to its decoder");
            return Ok(Step::Partial);
        };
        let mut replies = Vec::new();
        let Step::Complete(used, incoming) = decoder.step(&mut self.decoders, bytes, &mut replies)? else {
            return Ok(Step::Partial);
        };
        if !replies.is_empty() {
            self.push_bytes(slot, &replies);
        }
        match incoming {
            Incoming::Nothing => {}
            Incoming::Close => self.end(slot, CloseReason::Peer, now),
            Incoming::Message(message) if is_echo => self.echo(slot, &message),
            Incoming::Message(message) if is_socket_io => self.socket_io(slot, &message, now)?,
            Incoming::Message(message) if is_carrier => self.carrier_message(slot, &message, now)?,
            Incoming::Message(message) => match self.requests(slot, &message, None, now)? {
                Served::Here => {}
                Served::Later => return Ok(Step::Partial),
            },
        }
        Ok(Step::Complete(used, ()))
    }

    /// Continues a message within which the session had to wait.
    fn rest_of_message(&mut self, slot: SlotId, now: Now) -> Result<Served, DecodeError> {
        let rest = self.sessions.open_mut(slot).and_then(Session::take_message_rest);
        let Some(rest) = rest else {
            debug_assert!(false, "only a session with the rest of a message continues it");
            return Ok(Served::Here);
        };
        let message = Message::Binary(rest.frames.clone());
        self.requests(slot, &message, Some(rest), now)
    }

    /// Executes a message's requests in order. If one of them makes later ones wait, or if there is no more room for their effects,
    /// the later ones are kept. `rest`: the message is the rest of one that was kept before.
    fn requests(
        &mut self,
        slot: SlotId,
        message: &Message<'_>,
        mut rest: Option<MessageRest>,
        now: Now,
    ) -> Result<Served, DecodeError> {
        let Some(session) = self.sessions.open_mut(slot) else {
            debug_assert!(false, "only an open session's messages are processed");
            return Ok(Served::Here);
        };
        let mut requests = session.format.codec.decode(message, self.limits.frame_bytes_max)?;
        while let Some(request) = requests.next() {
            match request {
                Ok(Command::Hello { client, token, .. })
                    if !self.begins(slot, &client, token.as_ref(), now) =>
                {
                    return Ok(Served::Later);
                }
                Ok(command) => self.execute(slot, command, now)?,
                Err(RequestDecodeError::Invalid(error)) => {
                    self.fail(slot, error.request, ErrorCode::BadRequest, &error.text, now);
                }
                Err(RequestDecodeError::Fatal(error)) => return Err(error),
            }
            let later = requests.remaining_frames();
            if later.is_empty() || (self.takes_input() && self.takes_input_of(slot)) {
                continue;
            }
            let inflated_ns = self.decoders.has_inflated().then_some(now.monotonic_ns);
            let Some(session) = self.sessions.open_mut(slot) else { break };
            match rest
                .take()
                .map_or_else(|| MessageRest::new(later, inflated_ns), |rest| Some(rest.advance_to(later)))
            {
                Some(rest) => session.keep_message_rest(rest),
                None => self.end(slot, CloseReason::UnfinishedMemory, now),
            }
            break;
        }
        Ok(Served::Here)
    }

    fn echo(&mut self, slot: SlotId, message: &Message<'_>) {
        let (message_type, body) = match message {
            Message::Text(text) => (MessageType::Text, text.as_bytes()),
            Message::Binary(bytes) => (MessageType::Binary, &bytes[..]),
            Message::Frame(frame) => (MessageType::Binary, frame.bytes),
        };
        let Some(framing) = self.sessions.get(slot).map(|session| session.format.framing) else { return };
        let mut reply = Vec::new();
        if !(framing.is_deflated() && self.logs.deflate_echo(&mut reply, message_type, body)) {
            framing.write(message_type, body, &mut reply);
        }
        self.push_bytes(slot, &reply);
    }

    pub(super) fn execute(
        &mut self,
        slot: SlotId,
        command: Command<'_>,
        now: Now,
    ) -> Result<(), DecodeError> {
        let Some(session) = self.sessions.open_mut(slot) else { return Ok(()) };
        let mut opens = false;
        match (&session.protocol, &command) {
            (Protocol::Hello(_), Command::Hello { .. }) => {
                session.protocol = Protocol::Open(Decoder::new(session.format.framing));
                self.actions.push_back(Action::HandshakeDone(slot));
                opens = true;
            }
            (Protocol::Hello(_), _) => return Err(DecodeError::HelloExpected),
            _ => {}
        }
        let needs_credentials = self.limits.auth.is_some() && session.proof == Proof::None;
        match command {
            Command::Hello { request, name, features, token, .. } => {
                let session = session.id;
                ::log::debug!(
                    "session {session:x}: client name {:?}",
                    name.chars().take(64).collect::<String>()
                );
                match token {
                    // The token of a HELLO that opens a session has been verified already.
                    Some(token) if !opens => {
                        self.verify_again(slot, &token, Purpose::Hello { request, features }, now);
                    }
                    None if needs_credentials => self.refuse_credentials(slot, AuthRefusal::Missing, now),
                    token => self.welcome(slot, request, features, token.is_some(), now),
                }
            }
            Command::Refresh { request, token } => {
                self.verify_again(slot, &token, Purpose::Refresh { request }, now);
            }
            Command::Ping { token } => self.reply(slot, &Reply::Pong { token }),
            Command::Pong => {}
            _ if needs_credentials => self.refuse_credentials(slot, AuthRefusal::Missing, now),
            Command::Subscribe { request, patterns, .. }
            | Command::Update { request, patterns, .. }
            | Command::Unsubscribe { request, patterns }
                if patterns.len() > self.limits.subscriptions_per_session_max =>
            {
                // A single answer: an error per pattern would be many times longer than the request.
                let text = format!(
                    "{} patterns in one request, a session may hold {}",
                    patterns.len(),
                    self.limits.subscriptions_per_session_max
                );
                self.fail(slot, request, ErrorCode::TooManySubscriptions, &text, now);
            }
            Command::Subscribe { request, patterns, delivery, from } => {
                let costs = subscription_costs(patterns.len(), &from);
                if !self.pay(slot, request, &costs, now) {
                    return Ok(());
                }
                let Some(begin) = self.start_position(slot, request, from, now) else { return Ok(()) };
                for pattern in patterns {
                    self.subscribe(slot, request, &pattern, delivery, begin, now);
                }
            }
            Command::Update { request, patterns, delivery } => {
                if !self.pay(slot, request, &[(Expense::Subscriptions, patterns.len() as u64)], now) {
                    return Ok(());
                }
                let patterns = self.pattern_keys(slot, &patterns);
                self.queue_changes(slot, request, patterns, Some(delivery), now);
            }
            Command::Resume { topic, position } => self.resume(slot, &topic, position, now),
            Command::InvalidOption { request, error } => {
                self.fail(slot, request, ErrorCode::BadRequest, &error.to_string(), now);
            }
            Command::Unsubscribe { request, patterns } => {
                let patterns = self.pattern_keys(slot, &patterns);
                self.queue_changes(slot, request, patterns, None, now);
            }
            Command::Publish(publish) => self.publish_command(slot, &publish, now),
        }
        Ok(())
    }

    pub(super) fn publish_command(&mut self, slot: SlotId, publish: &PublishCommand<'_>, now: Now) {
        if self.budgets.limits_publishing() {
            let bytes = (publish.topic.len() + publish.payload.len()) as u64;
            let costs = [(Expense::Ticks, 1), (Expense::TickBytes, bytes)];
            if !self.pay(slot, publish.request, &costs, now) {
                return;
            }
        }
        if !self.take_publish(slot, now) {
            self.counters.add(Counter::TicksRefusedTenant, 1);
            let text = "the tenant publishes faster than it may (quota of its [[tenant]])";
            return self.fail(slot, publish.request, ErrorCode::RateLimited, text, now);
        }
        let topic = match pattern::check_topic(&publish.topic) {
            Ok(topic) => topic,
            Err(error) => {
                self.counters.add(Counter::TicksRefused, 1);
                let text = format!("topic {}: {error}", quoted(&publish.topic));
                return self.fail(slot, publish.request, ErrorCode::BadTopic, &text, now);
            }
        };
        if self.is_imported(slot, topic) {
            self.counters.add(Counter::TicksRefusedNotAllowed, 1);
            let text =
                format!("topic {}: another tenant exports it, and publishes it", quoted(&publish.topic));
            return self.fail(slot, publish.request, ErrorCode::NotAllowed, &text, now);
        }
        if !self.may_publish(slot, topic) {
            self.counters.add(Counter::TicksRefusedNotAllowed, 1);
            let text = format!("topic {}: this session may not publish it", quoted(&publish.topic));
            return self.fail(slot, publish.request, ErrorCode::NotAllowed, &text, now);
        }
        let frame_len = frame::tick_len(publish.key, publish.payload.len());
        if frame_len > self.limits.frame_bytes_max {
            self.counters.add(Counter::TicksRefused, 1);
            let text =
                format!("the tick's frame has {frame_len} bytes, {} allowed", self.limits.frame_bytes_max);
            return self.fail(slot, publish.request, ErrorCode::TooLarge, &text, now);
        }
        let message_id = match self.message_id(slot, publish, topic) {
            Ok(message_id) => message_id,
            Err(text) => {
                self.counters.add(Counter::TicksRefused, 1);
                return self.fail(slot, publish.request, ErrorCode::BadRequest, &text, now);
            }
        };
        let Some(session) = self.sessions.open_mut(slot) else {
            return debug_assert!(false, "only an open session publishes");
        };
        let (origin, source, tenant) = (session.id.0, session.source, session.tenant);
        let producer_time_ns =
            if publish.producer_time_ns == 0 { now.realtime_ns } else { publish.producer_time_ns };
        let record = Publish {
            producer_time_ns,
            ingest_time_ns: now.realtime_ns,
            request: publish.request,
            key: publish.key,
            ..Publish::default()
        };
        let flags = Self::flags_of(&publish.payload, publish.payload_is_json)
            | self.answer_flag(slot, publish.request);
        let mut buffer = KeyBuffer::default();
        let tick = Unsequenced {
            origin,
            source,
            upstream: UpstreamId::NONE,
            flags,
            schema: publish.schema,
            record,
            key: buffer.key(tenant, topic),
            payload: &publish.payload,
            message_id,
        };
        match self.sink_of(tick.key) {
            Some(sink) => self.publish_to_sink(sink, slot, &tick, now),
            None => self.publish(&tick, now),
        }
    }

    /// Answers a failed request. Ends the session instead if its codec has no replies.
    pub(super) fn fail(&mut self, slot: SlotId, request: u32, code: ErrorCode, text: &str, now: Now) {
        if self.sessions.open_mut(slot).is_some_and(|session| !session.format.codec.has_replies()) {
            return self.end(slot, CloseReason::BadRequest(text.to_owned()), now);
        }
        self.reply(slot, &Reply::Error { request, code, text });
    }

    /// Returns a tick's flags. Validates JSON only if the codec has not done so. JSON beyond the bounds travels as opaque bytes.
    fn flags_of(payload: &[u8], known_json: bool) -> u8 {
        let is_json = if known_json { json::is_within_bounds(payload) } else { json::is_json(payload) };
        if is_json { FLAG_PAYLOAD_JSON } else { 0 }
    }
}

/// Returns a peer's bytes for use in a message: quoted, escaped, at most 64 characters.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let cut: String = text.chars().take(64).collect();
    format!("{cut:?}{}", if cut.len() < text.len() { "..." } else { "" })
}
