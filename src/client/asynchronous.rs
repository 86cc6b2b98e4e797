//! An asynchronous client, on tokio.

mod dial;
mod driver;
mod queue;
mod subscription;

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, broadcast, oneshot, watch};

pub use self::subscription::{SubscribeError, Subscription};

use self::{dial::Dialer, driver::Driver, queue::Queue};
use crate::{
    Change, ClientError, ClientEvent, ClientOptions, ClientState, ClientToken, OUTPUT_BYTES_MAX, Positions,
    PublishError, PublishFailure, PublishId, PublishOutcome, PublishRequest, PublishedAt, Random,
    RequestError, Session, SubscribeOptions, SubscriptionEvent, SubscriptionState, TokenPurpose, clock,
};

/// Events of a subscription that may wait for the application, by default.
pub const EVENTS_MAX: usize = 4_096;
/// Events of subscriptions with full queues that wait besides: those of one message, or of the ends of many connections. Beyond that,
/// their queues take them, and drop the oldest.
const HELD_EVENTS_MAX: usize = 16_384;
/// Events of the client itself that may wait for one reader. It misses older ones.
pub const CLIENT_EVENTS_MAX: usize = 256;
/// Time for the answer to a publish, by default.
pub const PUBLISH_TIMEOUT: Duration = Duration::from_secs(10);

/// A token that the application will have, or why it has none.
pub type TokenFuture = Pin<Box<dyn Future<Output = Result<ClientToken, String>> + Send>>;
/// Gives tokens: see [`AsyncOptions::get_token`](ClientOptions::get_token).
pub type GetToken = Box<dyn FnMut(TokenPurpose) -> TokenFuture + Send>;
/// Saves positions: see [`AsyncOptions::save_positions`](ClientOptions::save_positions). Must not block.
pub type SavePositions = Box<dyn FnMut(Positions) + Send>;

/// Options of an [`AsyncClient`].
pub type AsyncOptions = ClientOptions<GetToken, SavePositions>;

/// A client that connects, reconnects and resumes by itself, on a task of the tokio runtime. Clones share the connection; it closes
/// with the last clone and [`Subscription`].
///
/// A slow application slows down its socket: with [`EVENTS_MAX`] events of a subscription unread, the client takes nothing more from it,
/// and the server applies the subscription's policy. The rest of the message under way, and of one read, wait until there is room. While
/// the application awaits an answer of the server, such as that to a publish, the client reads on, and events beyond twice that
/// number become gaps.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use tickcast_client::{AsyncClient, PublishRequest, SubscriptionEvent};
///
/// let client = AsyncClient::connect("ws://127.0.0.1:9480/ws")?;
/// let mut prices = client.subscribe("prices.>")?;
/// client.publish(PublishRequest { topic: "prices.a", payload: b"1.1", ..Default::default() }).await?;
/// while let Some(event) = prices.next().await {
///     if let SubscriptionEvent::Tick(tick) = event {
///         println!("{} {}", tick.topic, tick.sequence);
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct AsyncClient {
    handle: Arc<Handle>,
}

impl AsyncClient {
    /// Starts to connect to a server, in the forms of [`Address::parse`](crate::Address::parse). Does not wait until connected.
    ///
    /// # Errors
    /// As [`AsyncClient::start`].
    pub fn connect(server: &str) -> Result<AsyncClient, ClientError> {
        AsyncClient::start(AsyncOptions::new(server)?)
    }

    /// Starts to connect, and keeps trying. Does not wait until connected.
    ///
    /// # Errors
    /// [`ClientError::Address`] for encodings other than JSON and native frames; [`ClientError::TlsSettings`] if a file of the TLS options
    /// cannot be used; [`ClientError::Io`] outside of a tokio runtime.
    pub fn start(mut options: AsyncOptions) -> Result<AsyncClient, ClientError> {
        let session = options.take_session(read_token)?;
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        let mut session = Session::new(session, Random::from_system());
        let dialer = Dialer::new(options.address, options.connect)?;
        session.connect(clock::monotonic_ns());
        let (state, code, retry_in_ms) = (ClientState::Connecting, 0, None);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                session,
                queues: HashMap::new(),
                publishes: HashMap::new(),
                held: VecDeque::new(),
                output_bytes: 0,
                answers_awaited: 0,
                is_closing: false,
                left: Positions::new(),
            }),
            wake: Notify::new(),
            changed: Notify::new(),
            change: watch::Sender::new(Change { state, code, reason: "".into(), retry_in_ms }),
            events: broadcast::Sender::new(CLIENT_EVENTS_MAX),
            ended: watch::Sender::new(false),
        });
        shared.pump(&mut shared.lock());
        let driver = Driver::new(shared.clone(), dialer, options.get_token, options.save_positions);
        runtime.spawn(driver.run());
        Ok(AsyncClient { handle: Arc::new(Handle { shared }) })
    }

    /// Subscribes to a pattern on this and every later connection, starting with the next tick.
    ///
    /// # Errors
    /// [`RequestError`] if the pattern is too long or has a subscription already, or if there are too many.
    pub fn subscribe(&self, pattern: &str) -> Result<Subscription, RequestError> {
        self.subscribe_with(pattern, SubscribeOptions::default(), EVENTS_MAX)
    }

    /// [`AsyncClient::subscribe`] with a policy, a rate and a start. `events_max`: events that may wait for the application. While it
    /// awaits an answer of the server, twice as many may wait; then the oldest are dropped, and a gap announces their ticks.
    ///
    /// # Errors
    /// As [`AsyncClient::subscribe`].
    pub fn subscribe_with(
        &self,
        pattern: &str,
        options: SubscribeOptions,
        events_max: usize,
    ) -> Result<Subscription, RequestError> {
        let shared = &self.handle.shared;
        let mut state = shared.lock();
        state.session.subscribe(pattern, options)?;
        shared.deliver_held_of(pattern, &mut state);
        let mut queue = Queue::new(events_max);
        queue.set_ended(state.session.state() == ClientState::Disconnected);
        let (pattern, queue) = (Arc::<str>::from(pattern), Arc::new(Mutex::new(queue)));
        state.queues.insert(pattern.clone(), queue.clone());
        shared.pump(&mut state);
        drop(state);
        shared.wake.notify_one();
        Ok(Subscription::new(self.handle.clone(), pattern, queue))
    }

    /// Publishes one tick, and waits up to [`PUBLISH_TIMEOUT`] for the server's answer. It is sent when the future is first polled.
    /// While the client connects, a bounded number of publishes wait. Dropping the future does not withdraw the tick.
    ///
    /// # Errors
    /// [`PublishError::Failed`] if the server refuses it, if it was not sent, or if the answer did not arrive: only then may it have
    /// been published. [`PublishError::Request`] if it is invalid, or if too much waits for the socket.
    pub async fn publish(&self, publish: PublishRequest<'_>) -> Result<PublishedAt, PublishError> {
        self.publish_within(publish, PUBLISH_TIMEOUT).await
    }

    /// [`AsyncClient::publish`] with another time for the answer.
    ///
    /// # Errors
    /// As [`AsyncClient::publish`].
    pub async fn publish_within(
        &self,
        publish: PublishRequest<'_>,
        timeout: Duration,
    ) -> Result<PublishedAt, PublishError> {
        let shared = &self.handle.shared;
        let answer = {
            let mut state = shared.lock();
            if state.output_bytes > OUTPUT_BYTES_MAX {
                return Err(PublishError::Request(RequestError::Backpressure));
            }
            let id = state
                .session
                .publish(publish, timeout, clock::monotonic_ns())
                .map_err(PublishError::Request)?;
            state.output_bytes += publish.payload.len();
            let (sender, answer) = oneshot::channel();
            state.publishes.insert(id, sender);
            shared.pump(&mut state);
            answer
        };
        shared.wake.notify_one();
        match answer.await {
            Ok(answer) => answer.map_err(PublishError::Failed),
            // The runtime has ended the client's task.
            Err(_) => {
                let (outcome, reason) = (PublishOutcome::Unknown, "the client has ended".into());
                Err(PublishError::Failed(PublishFailure { outcome, code: 0, reason }))
            }
        }
    }

    /// The client's state, and what caused it.
    pub fn state(&self) -> Change<ClientState> {
        self.handle.shared.change.borrow().clone()
    }

    /// Waits until the server has welcomed the client.
    ///
    /// # Errors
    /// The state [`ClientState::Disconnected`]: the client is closed, also for good by the server.
    pub async fn connected(&self) -> Result<(), Change<ClientState>> {
        let shared = &self.handle.shared;
        let _awaiting = shared.await_answer();
        let mut change = shared.change.subscribe();
        let decided = change.wait_for(|change| change.state != ClientState::Connecting).await;
        match decided.map(|change| change.clone()) {
            Ok(change) if change.state == ClientState::Connected => Ok(()),
            Ok(change) => Err(change),
            Err(_) => Err(self.state()),
        }
    }

    /// Connects again after the server has ended the connection for good. Does nothing unless disconnected, and after
    /// [`AsyncClient::close`].
    pub fn reconnect(&self) {
        if self.handle.shared.lock().is_closing {
            return;
        }
        self.call(|session| session.connect(clock::monotonic_ns()));
    }

    /// Replaces the token: on the open connection at once, and for later ones.
    pub fn set_token(&self, token: ClientToken) {
        self.call(|session| session.set_token(token));
    }

    /// The positions of all topics, as of the events that the application has finished: those of [`AsyncOptions::save_positions`](ClientOptions::save_positions).
    pub fn positions(&self) -> Positions {
        self.handle.shared.lock().finished_positions()
    }

    /// The shortest of the last round trips on this connection, in nanoseconds; `None` before the first.
    pub fn round_trip_ns(&self) -> Option<u64> {
        self.handle.shared.lock().session.round_trip_ns()
    }

    /// This machine's clock minus the server's, in nanoseconds; `None` if it is not known. Half of a round trip is its error.
    pub fn clock_offset_ns(&self) -> Option<i64> {
        self.handle.shared.lock().session.clock_offset_ns()
    }

    /// Events of the client from now on: all but those of subscriptions and publishes.
    pub fn events(&self) -> ClientEvents {
        ClientEvents { receiver: self.handle.shared.events.subscribe(), missed: 0 }
    }

    /// Closes the connection after sending what waits, for at most 3 s, ends all subscriptions and saves the positions. The client
    /// cannot connect again.
    pub async fn close(&self) {
        let shared = &self.handle.shared;
        shared.lock().is_closing = true;
        shared.wake.notify_one();
        // An error means that the sender is gone, and with it the client's task.
        let _ = shared.ended.subscribe().wait_for(|ended| *ended).await;
    }

    fn call(&self, call: impl FnOnce(&mut Session)) {
        self.handle
            .call(|session| {
                call(session);
                Ok(())
            })
            // The call cannot fail.
            .unwrap_or_default();
    }
}

/// Tokens from a file.
fn read_token(file: std::path::PathBuf) -> GetToken {
    Box::new(move |_| {
        let read = ClientToken::read(&file).map_err(|text| format!("token file {}: {text}", file.display()));
        Box::pin(std::future::ready(read))
    })
}

/// Events of a client. A reader that is more than [`CLIENT_EVENTS_MAX`] events behind misses the oldest.
#[derive(Debug)]
pub struct ClientEvents {
    receiver: broadcast::Receiver<ClientEvent>,
    missed: u64,
}

impl ClientEvents {
    /// The next event; `None` once the client has ended.
    pub async fn next(&mut self) -> Option<ClientEvent> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(missed)) => self.missed += missed,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// Events that this reader was too slow for.
    pub fn missed(&self) -> u64 {
        self.missed
    }
}

/// Tells the client's task to end when the last client and subscription are gone.
#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
}

impl Handle {
    /// Calls the session, and lets the task do what follows from it.
    fn call<T>(&self, call: impl FnOnce(&mut Session) -> Result<T, RequestError>) -> Result<T, RequestError> {
        let mut state = self.shared.lock();
        let result = call(&mut state.session);
        self.shared.pump(&mut state);
        drop(state);
        self.shared.wake.notify_one();
        result
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().is_closing = true;
        self.shared.wake.notify_one();
    }
}

/// What the client's task and its handles share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Wakes the task.
    wake: Notify,
    /// Wakes those that wait for a subscription's state.
    changed: Notify,
    change: watch::Sender<Change<ClientState>>,
    events: broadcast::Sender<ClientEvent>,
    /// Whether the task has ended.
    ended: watch::Sender<bool>,
}

/// The session, and who waits for its events. Locked for one call or one message at a time; nothing blocks meanwhile.
#[derive(Debug)]
struct State {
    session: Session,
    queues: HashMap<Arc<str>, Arc<Mutex<Queue>>>,
    /// Bound: [`PUBLISHES_UNACKNOWLEDGED_MAX`](crate::PUBLISHES_UNACKNOWLEDGED_MAX) and the offline queue.
    publishes: HashMap<PublishId, oneshot::Sender<Result<PublishedAt, PublishFailure>>>,
    /// Events whose queue was full, or that came after such: in order, for all subscriptions. Bound: [`HELD_EVENTS_MAX`].
    held: VecDeque<(Arc<str>, SubscriptionEvent)>,
    /// Bytes that wait for the socket, about.
    output_bytes: usize,
    /// How many futures wait for the server, besides publishes.
    answers_awaited: usize,
    /// The task has ended, or is about to: the client cannot connect again.
    is_closing: bool,
    /// Positions in topics of dropped subscriptions. A program that ends drops them before the client, which then saves its positions.
    left: Positions,
}

impl State {
    /// Whether the application awaits an answer, which may come behind more events than it has room for.
    fn must_read_on(&self) -> bool {
        self.answers_awaited > 0 || !self.publishes.is_empty()
    }

    /// Whether the socket is not read, because the application is too slow.
    fn is_paused(&self) -> bool {
        // Without the handshake's answers, the client would give up connecting.
        self.session.state() == ClientState::Connected
            && !self.must_read_on()
            && (!self.held.is_empty() || self.queues.values().any(|queue| lock(queue).is_full()))
    }

    /// Whether the next message must wait, because the application has no room for this one.
    fn holds_back(&self) -> bool {
        !self.held.is_empty() && self.is_paused()
    }

    /// Whether an event must wait until the application has read others.
    fn must_hold(&self, on: &Arc<str>) -> bool {
        !self.must_read_on() && self.queues.get(on).is_some_and(|queue| lock(queue).is_full())
    }

    fn finished_positions(&self) -> Positions {
        let queues: Vec<_> = self.queues.values().map(|queue| lock(queue)).collect();
        let held = self.held.iter().map(|(_, event)| event);
        let mut finished =
            queue::finished(self.session.positions(), queues.iter().map(|queue| &**queue), held);
        for (topic, position) in self.left.iter() {
            if finished.position(topic).is_none() {
                finished.advance(topic, position);
            }
        }
        finished
    }

    /// Keeps the positions of topics that the session has left.
    fn keep_left(&mut self, finished: Positions) {
        for (topic, position) in finished.iter() {
            if self.session.positions().position(topic).is_none() {
                self.left.advance(topic, position);
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Gives the session's events to those that wait for them, as far as there is room.
    fn pump(&self, state: &mut State) {
        while let Some((on, _)) = state.held.front()
            && !state.must_hold(on)
        {
            self.deliver_held(state);
        }
        while let Some(event) = state.session.poll_event() {
            match event {
                ClientEvent::Subscription { on, event } => {
                    if state.held.is_empty() && !state.must_hold(&on) {
                        self.deliver(on, event, state);
                        continue;
                    }
                    // Nobody reads it: the next subscription to the pattern must not take it for its own.
                    if !state.queues.contains_key(&on) {
                        continue;
                    }
                    if state.held.len() >= HELD_EVENTS_MAX {
                        self.deliver_held(state);
                    }
                    state.held.push_back((on, event));
                }
                ClientEvent::Published { publish, published } => {
                    if let Some(waiting) = state.publishes.remove(&publish) {
                        // Whoever published may not wait any more.
                        let _ = waiting.send(Ok(published));
                    }
                }
                ClientEvent::PublishFailed { publish, failure } => {
                    if let Some(waiting) = state.publishes.remove(&publish) {
                        let _ = waiting.send(Err(failure));
                    }
                }
                event => {
                    if let ClientEvent::State(change) = &event {
                        let has_ended = change.state == ClientState::Disconnected;
                        while has_ended && !state.held.is_empty() {
                            self.deliver_held(state);
                        }
                        state.queues.values().for_each(|queue| lock(queue).set_ended(has_ended));
                        self.change.send_replace(change.clone());
                        self.changed.notify_waiters();
                    }
                    // Without readers there is nobody to tell.
                    let _ = self.events.send(event);
                }
            }
        }
    }

    fn deliver_held(&self, state: &mut State) {
        if let Some((on, event)) = state.held.pop_front() {
            self.deliver(on, event, state);
        }
    }

    /// Gives a subscription that has ended the rest of its events, before its pattern has another one. Costs a pass over all held events.
    fn deliver_held_of(&self, pattern: &str, state: &mut State) {
        let (its, held) = mem::take(&mut state.held).into_iter().partition(|(on, _)| **on == *pattern);
        state.held = held;
        let its: VecDeque<_> = its;
        for (on, event) in its {
            self.deliver(on, event, state);
        }
    }

    /// Puts an event into its subscription's queue, whatever waits there.
    fn deliver(&self, on: Arc<str>, event: SubscriptionEvent, state: &mut State) {
        let Some(queue) = state.queues.get(&on) else { return };
        let change = match &event {
            SubscriptionEvent::State(change) => Some(change.state),
            _ => None,
        };
        lock(queue).put(event);
        if change == Some(SubscriptionState::Unsubscribed)
            && let Some(queue) = state.queues.remove(&on)
        {
            lock(&queue).set_ended(true);
        }
        if change.is_some() {
            self.changed.notify_waiters();
        }
    }

    /// The application has made room in a queue that was full.
    fn refill(&self) {
        let mut state = self.lock();
        self.pump(&mut state);
        let reads = !state.is_paused();
        drop(state);
        if reads {
            self.wake.notify_one();
        }
    }

    /// The client reads on as long as the guard lives.
    fn await_answer(&self) -> Awaiting<'_> {
        self.lock().answers_awaited += 1;
        self.wake.notify_one();
        Awaiting { shared: self }
    }
}

struct Awaiting<'a> {
    shared: &'a Shared,
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.shared.lock().answers_awaited -= 1;
        self.shared.wake.notify_one();
    }
}

/// Nothing panics while it holds a lock; if it did, the state would still be whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
