//! Counters: one enum with label, unit and help text. Each shard writes its own; any thread may read them.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::turn_times::TurnTimes;

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $name:ident = $label:literal, $unit:literal;)+) => {
        /// A counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[doc = $help])+ $name),+ }

        impl Counter {
            /// All counters, in index order.
            pub const ALL: &[Counter] = &[$(Counter::$name),+];

            /// Its name in metrics and logs.
            pub fn label(self) -> &'static str {
                match self { $(Counter::$name => $label),+ }
            }
            /// The unit it counts in.
            pub fn unit(self) -> &'static str {
                match self { $(Counter::$name => $unit),+ }
            }
            /// A sentence of help for the operator.
            pub fn help(self) -> &'static str {
                match self { $(Counter::$name => concat!($($help),+)),+ }
            }
        }
    };
}

counters! {
    /// Connections accepted.
    SessionsAccepted = "sessions_accepted", "sessions";
    /// Connections open now.
    SessionsOpen = "sessions_open", "sessions";
    /// Open connections that have had a live subscription.
    SessionsSubscribed = "sessions_subscribed", "sessions";
    /// Connections refused because the server was at its connection limit.
    SessionsRefused = "sessions_refused", "sessions";
    /// Connections refused because their address was at its connection limit.
    SessionsRefusedSource = "sessions_refused_source", "sessions";
    /// Connections refused by the accept rate limit.
    SessionsRefusedRate = "sessions_refused_rate", "sessions";
    /// Connections refused because the shard was overloaded.
    SessionsRefusedOverload = "sessions_refused_overload", "sessions";
    /// Connections refused because their tenant had used up its quota.
    SessionsRefusedTenant = "sessions_refused_tenant", "sessions";
    /// Connections refused because the server was draining.
    SessionsRefusedDraining = "sessions_refused_draining", "sessions";
    /// Connections closed without a reply because the ring had no memory for them.
    SessionsRefusedFailed = "sessions_refused_failed", "sessions";
    /// Times accept failed for lack of descriptors or memory, and was retried after a pause.
    AcceptsFailed = "accepts_failed", "times";
    /// Connections handed over to the shard that serves their identity.
    SessionsHandedOver = "sessions_handed_over", "sessions";
    /// TLS handshakes completed.
    TlsHandshakes = "tls_handshakes", "handshakes";
    /// TLS handshakes that a session ticket has shortened.
    TlsHandshakesResumed = "tls_handshakes_resumed", "handshakes";
    /// TLS handshakes that failed.
    TlsHandshakesFailed = "tls_handshakes_failed", "handshakes";
    /// Ticks sequenced by this shard as their home.
    TicksSequenced = "ticks_sequenced", "ticks";
    /// Topics forgotten because nobody used them.
    TopicsForgotten = "topics_forgotten", "topics";
    /// Ticks refused because their topic could not be created: a limit on topics was reached.
    TopicsRefused = "topics_refused", "ticks";
    /// Ticks refused because a log feeds their topic.
    TicksRefusedFedByLog = "ticks_refused_fed_by_log", "ticks";
    /// Ticks of logs that came again after their source had reconnected.
    LogTicksRepeated = "log_ticks_repeated", "ticks";
    /// Ticks of logs refused because another source feeds their topic.
    LogTicksForeign = "log_ticks_foreign", "ticks";
    /// Holes in topics that logs feed: retention has passed their sources.
    LogHoles = "log_holes", "holes";
    /// Requests to readers of logs, for positions older than the history: one for each chunk of a topic.
    LogReads = "log_reads", "requests";
    /// Such requests that wait for their answer now; their sessions wait with them.
    LogReadsWaiting = "log_reads_waiting", "requests";
    /// Ticks that readers of logs have read for sessions.
    LogTicksRead = "log_ticks_read", "ticks";
    /// Requests to readers of logs that found that the log no longer has the ticks: the position is not recovered.
    LogReadsTooOld = "log_reads_too_old", "requests";
    /// Requests to readers of logs that were not made, because too many wait or the session has used up its budget.
    LogReadsRefused = "log_reads_refused", "requests";
    /// Requests to readers of logs that were given up, because the log was not read in time.
    LogReadsExpired = "log_reads_expired", "requests";
    /// Answers of readers of logs that nobody waited for any more.
    LogReadsLate = "log_reads_late", "answers";
    /// Topics whose life ended because another log, or another life of their log, feeds them now.
    TopicsReplaced = "topics_replaced", "topics";
    /// Topics whose life ended because a source that subscribes on demand has unsubscribed, or serves them by another subscription.
    TopicsLapsed = "topics_lapsed", "topics";
    /// Topics of this home that are stale: the source that feeds them is silent.
    TopicsStale = "topics_stale", "topics";
    /// Messages that told a session that a topic is stale, or is not any more.
    StaleNotices = "stale_notices", "messages";
    /// Publishes that were not sequenced again, because their home remembers their message ids.
    TicksDuplicate = "ticks_duplicate", "ticks";
    /// Message ids forgotten before their time, because the memory of all message ids was used up.
    MessageIdsForgotten = "message_ids_forgotten", "ids";
    /// Ticks refused: invalid topic, too many topics, or too large.
    TicksRefused = "ticks_refused", "ticks";
    /// Ticks refused because their session publishes too many a second.
    TicksRefusedRate = "ticks_refused_rate", "ticks";
    /// Ticks refused because their session publishes too many bytes a second.
    TicksRefusedBandwidth = "ticks_refused_bandwidth", "ticks";
    /// Ticks refused because the sessions of their address publish too many a second.
    TicksRefusedSourceRate = "ticks_refused_source_rate", "ticks";
    /// Ticks refused because the sessions of their address publish too many bytes a second.
    TicksRefusedSourceBandwidth = "ticks_refused_source_bandwidth", "ticks";
    /// Ticks refused because their tenant publishes faster than its quota.
    TicksRefusedTenant = "ticks_refused_tenant", "ticks";
    /// Ticks refused because their session may not publish them.
    TicksRefusedNotAllowed = "ticks_refused_not_allowed", "ticks";
    /// Subscriptions refused because their session may not receive all topics of the pattern.
    SubscriptionsRefused = "subscriptions_refused", "subscriptions";
    /// Subscriptions accepted of which only a part is delivered, because their session may not receive all topics of the pattern.
    SubscriptionsFiltered = "subscriptions_filtered", "subscriptions";
    /// Requests refused because their session subscribes to too many patterns a second, or changes too many.
    SubscriptionsRefusedRate = "subscriptions_refused_rate", "requests";
    /// Requests refused because the sessions of their address subscribe to too many patterns a second, or change too many.
    SubscriptionsRefusedSourceRate = "subscriptions_refused_source_rate", "requests";
    /// Requests refused because their session asks for the history of too many patterns a second.
    HistoryRefusedRate = "history_refused_rate", "requests";
    /// Requests refused because the sessions of their address ask for the history of too many patterns a second.
    HistoryRefusedSourceRate = "history_refused_source_rate", "requests";
    /// Requests refused because their session asks for the last values of too many patterns a second.
    LastValuesRefusedRate = "last_values_refused_rate", "requests";
    /// Requests refused because the sessions of their address ask for the last values of too many patterns a second.
    LastValuesRefusedSourceRate = "last_values_refused_source_rate", "requests";
    /// Subscriptions refused because their pattern has too many wildcards.
    PatternsRefusedWildcards = "patterns_refused_wildcards", "subscriptions";
    /// Subscriptions refused because the patterns of their session are too long in all.
    PatternsRefusedSession = "patterns_refused_session", "subscriptions";
    /// Subscriptions refused because the patterns that their address has brought take too much memory.
    PatternsRefusedSource = "patterns_refused_source", "subscriptions";
    /// Subscriptions refused because the memory of all patterns was used up.
    PatternsRefusedMemory = "patterns_refused_memory", "subscriptions";
    /// Subscriptions refused because their session would have needed more memberships than its share.
    SubscriptionsRefusedMemory = "subscriptions_refused_memory", "subscriptions";
    /// Memberships that sessions have now: one for each topic that they name exactly, or in which a wildcard needs state.
    Memberships = "memberships", "memberships";
    /// Times a session needed one more membership than its share, and was closed.
    MembershipsRefused = "memberships_refused", "times";
    /// Subscriptions refused because their tenant had used up its quota.
    SubscriptionsRefusedTenant = "subscriptions_refused_tenant", "subscriptions";
    /// Subscriptions ended because the session's new token does not allow them.
    SubscriptionsRemoved = "subscriptions_removed", "subscriptions";
    /// Credentials that were valid.
    CredentialsAccepted = "credentials_accepted", "credentials";
    /// Credentials that were refused, missing ones included.
    CredentialsRefused = "credentials_refused", "credentials";
    /// New tokens of open sessions that were not looked at, because the session gave too many.
    CredentialsRefusedRate = "credentials_refused_rate", "credentials";
    /// Ticks dropped by a source of the server, because a ring was full or the process had been stopped.
    SourceTicksDropped = "source_ticks_dropped", "ticks";
    /// Times a source of the server waited, because the ring to a shard was full.
    SourceWaits = "source_waits", "times";
    /// Time that sources of the server waited, because the ring to a shard was full.
    SourceWaitNs = "source_wait_ns", "nanoseconds";
    /// Times a topic's last values were evicted, because the memory of all last values was used up.
    LastValuesEvicted = "last_values_evicted", "times";
    /// Lines that a source of the server skipped, because they are not ticks.
    SourceLinesSkipped = "source_lines_skipped", "lines";
    /// Ticks that sources have published.
    SourceTicks = "source_ticks", "ticks";
    /// Messages of their engines that sources skipped, because they do not map to a tick.
    SourceMessagesSkipped = "source_messages_skipped", "messages";
    /// Messages that engines lost or withheld from sources, as far as known; a hole of unknown size counts as one.
    SourceMessagesLost = "source_messages_lost", "messages";
    /// Times a source began to read its engine.
    SourceConnections = "source_connections", "times";
    /// Ticks of clients that left for another engine, by a route.
    TicksRouted = "ticks_routed", "ticks";
    /// Ticks of clients that another engine has confirmed.
    TicksRoutedConfirmed = "ticks_routed_confirmed", "ticks";
    /// Ticks of clients refused because the engine that takes their topic was away, refused them, or had too many waiting.
    TicksRefusedSink = "ticks_refused_sink", "ticks";
    /// Ticks of clients that another engine has not confirmed in time. It may have them.
    TicksUnconfirmed = "ticks_unconfirmed", "ticks";
    /// Answers of sinks that came after the deadline, when error 112 (not confirmed) had been sent.
    SinkAnswersLate = "sink_answers_late", "answers";
    /// Ticks that a sink's engine has confirmed.
    SinkTicks = "sink_ticks", "ticks";
    /// Ticks that a sink did not publish: its engine was away or refused them.
    SinkTicksRefused = "sink_ticks_refused", "ticks";
    /// Ticks that a sink passed to its engine without a confirmation.
    SinkTicksUnconfirmed = "sink_ticks_unconfirmed", "ticks";
    /// Ticks that a sink has passed to its engine and that wait for a confirmation now.
    SinkTicksWaiting = "sink_ticks_waiting", "ticks";
    /// Times a sink connected to its engine.
    SinkConnections = "sink_connections", "times";
    /// Messages that a source of a failover group did not publish, because another of its group publishes.
    SourceMessagesStandby = "source_messages_standby", "messages";
    /// Messages of a failover group that were not published again, because a source of the group had published their id.
    SourceMessagesRepeated = "source_messages_repeated", "messages";
    /// Messages that the reader of a source's log has read for positions older than the history.
    SourceMessagesReadBack = "source_messages_read_back", "messages";
    /// Subscriptions at their engines now, of sources that subscribe on demand.
    SourceSubscriptions = "source_subscriptions", "subscriptions";
    /// Subscriptions that sources which subscribe on demand have made and ended.
    SourceSubscriptionChanges = "source_subscription_changes", "subscriptions";
    /// Prefixes that sources subscribe to as a whole now, because clients ask for more of their patterns than the bound allows.
    SourcePrefixesWhole = "source_prefixes_whole", "prefixes";
    /// Times a source took over from another one of its failover group.
    SourceActivations = "source_activations", "times";
    /// Ticks queued to subscribers.
    TicksDelivered = "ticks_delivered", "ticks";
    /// Ticks evicted from outboxes, to be conflated, dropped or queued again.
    TicksTakenOut = "ticks_taken_out", "ticks";
    /// Ticks announced to subscribers as replaced by a newer one.
    TicksConflated = "ticks_conflated", "ticks";
    /// Ticks announced to subscribers as lost.
    TicksDropped = "ticks_dropped", "ticks";
    /// Ticks lost because too many waited for their topic, which has many members, to open. Subscribers count them as dropped.
    OpeningTicksLost = "opening_ticks_lost", "ticks";
    /// Bytes received from peers.
    BytesReceived = "bytes_received", "bytes";
    /// Bytes handed to the transport.
    BytesSent = "bytes_sent", "bytes";
    /// Messages compressed: each for all sessions that receive it.
    MessagesDeflated = "messages_deflated", "messages";
    /// Bytes of these messages before they were compressed.
    DeflatedFromBytes = "deflated_from_bytes", "bytes";
    /// Bytes of these messages when compressed.
    DeflatedToBytes = "deflated_to_bytes", "bytes";
    /// SENDs submitted.
    Sends = "sends", "operations";
    /// SENDs that the socket did not take completely, so that the rest was parked.
    SendsParked = "sends_parked", "operations";
    /// Parked SENDs of which the socket took nothing, because it was full.
    SendsFull = "sends_full", "operations";
    /// Times a session had to wait with a SEND, because its tenant had used up its egress quota.
    SendsThrottled = "sends_throttled", "times";
    /// Times a ring to another shard became full.
    MeshRingFull = "mesh_ring_full", "times";
    /// Whether the shard is overloaded: sessions whose sockets have room lose ticks.
    Overloaded = "overloaded", "shards";
    /// Times the shard became overloaded.
    Overloads = "overloads", "times";
    /// Times a session whose socket had room lost ticks, or its connection, because the shard was overloaded.
    OverloadLosses = "overload_losses", "times";
    /// Pings sent to silent sessions.
    Pings = "pings", "pings";
    /// Times a session's input was paused for lack of room in the mesh or in its replies.
    InputPaused = "input_paused", "times";
    /// Times a session's input was paused because too many of its requests exceeded its budgets.
    InputThrottled = "input_throttled", "times";
    /// HTTP requests answered without an upgrade to WebSocket.
    HttpResponses = "http_responses", "responses";
    /// Requests answered with an error.
    RequestErrors = "request_errors", "requests";
    /// Sessions closed by the peer.
    ClosedByPeer = "closed_by_peer", "sessions";
    /// Sessions closed for a protocol violation.
    ClosedProtocol = "closed_protocol", "sessions";
    /// Sessions closed because the handshake took too long.
    ClosedHandshakeDeadline = "closed_handshake_deadline", "sessions";
    /// Sessions closed because a frame did not arrive completely in time.
    ClosedFrameDeadline = "closed_frame_deadline", "sessions";
    /// Sessions closed because they did not answer a ping in time.
    ClosedHeartbeatTimeout = "closed_heartbeat_timeout", "sessions";
    /// Sessions closed as slow consumers.
    ClosedSlowConsumer = "closed_slow_consumer", "sessions";
    /// Sessions closed because the server was overloaded and their policy, disconnect, allows no loss.
    ClosedOverloaded = "closed_overloaded", "sessions";
    /// Sessions closed because the server shut down.
    ClosedShutdown = "closed_shutdown", "sessions";
    /// Sessions closed by a socket error.
    ClosedTransport = "closed_transport", "sessions";
    /// HTTP connections closed with a response.
    ClosedHttp = "closed_http", "sessions";
    /// HTTP connections closed because no further request came in time.
    ClosedHttpIdle = "closed_http_idle", "sessions";
    /// Sessions closed because they gave no credentials, or invalid ones.
    ClosedUnauthorized = "closed_unauthorized", "sessions";
    /// Sessions closed because their token has expired, or is not valid yet.
    ClosedTokenExpired = "closed_token_expired", "sessions";
    /// Sessions closed because their token or its subject was revoked.
    ClosedRevoked = "closed_revoked", "sessions";
    /// Sessions closed because too many credentials waited to be verified, or their verification took too long.
    ClosedAuthBusy = "closed_auth_busy", "sessions";
    /// Connections closed because a trusted proxy sent no valid PROXY protocol header.
    ClosedProxy = "closed_proxy", "sessions";
    /// Connections closed because of TLS: the handshake failed, a record was wrong, or the keys were used up.
    ClosedTls = "closed_tls", "sessions";
    /// Raw sessions closed because a request failed.
    ClosedBadRequest = "closed_bad_request", "sessions";
    /// Sessions closed because a newer connection with the same identity took over.
    ClosedReplaced = "closed_replaced", "sessions";
    /// Sessions closed by the operator.
    ClosedByOperator = "closed_by_operator", "sessions";
    /// Sessions closed because unfinished messages took too much memory.
    ClosedUnfinishedMemory = "closed_unfinished_memory", "sessions";
    /// Turns of the shard's loop.
    Turns = "turns", "turns";
    /// Turns that took more than 100 ms, not counting the time asleep.
    TurnsSlow = "turns_slow", "turns";
    /// Completions of the data ring that the shard handled: receives, accepts, closes, timers.
    RingEvents = "ring_events", "events";
    /// Bytes taken in from the rings of other shards and of sources.
    MeshBytes = "mesh_bytes", "bytes";
    /// Work of a home that brings its topics in line with changed subscriptions: topics and pattern nodes visited.
    InterestUnits = "interest_units", "units";
    /// Work for sessions that subscribe, or change or end a subscription: topics visited, and eight for each that is joined
    /// or left.
    ControlUnits = "control_units", "units";
    /// Work to drop the subscriptions of ended sessions, counted like control_units.
    DepartureUnits = "departure_units", "units";
    /// Work to open topics to sessions that need a membership: sessions that leave the topics' last lives or join, and what has
    /// waited for them to open.
    OpeningUnits = "opening_units", "units";
    /// Work to deliver ticks and to find their subscribers, whatever caused it: ticks queued or evicted, and patterns and wildcard
    /// sessions visited.
    DeliveryUnits = "delivery_units", "units";
    /// Work to leave topics that their homes have forgotten: sessions that leave them, topics dropped, and waiting frames visited.
    ForgettingUnits = "forgetting_units", "units";
    /// Timers that expired.
    TimersExpired = "timers_expired", "timers";
    /// Requests of operators that the shard handled.
    ControlRequests = "control_requests", "requests";
    /// Times the shard went to sleep.
    Parks = "parks", "times";
    /// Time the shard spent working.
    BusyNs = "busy_ns", "nanoseconds";
    /// Time the shard slept or busy-polled, idle or within its latency budget.
    IdleNs = "idle_ns", "nanoseconds";
    /// Time that a tick waits now to be sent together with others: at most the latency budget.
    FlushWaitNs = "flush_wait_ns", "nanoseconds";
}

impl Counter {
    /// Whether it is a gauge, which can fall, and not a running total.
    pub fn is_gauge(self) -> bool {
        matches!(
            self,
            Counter::SessionsOpen
                | Counter::SessionsSubscribed
                | Counter::Memberships
                | Counter::FlushWaitNs
                | Counter::TopicsStale
                | Counter::Overloaded
                | Counter::SinkTicksWaiting
                | Counter::LogReadsWaiting
                | Counter::SourceSubscriptions
                | Counter::SourcePrefixesWhole
        )
    }
}

/// A shard's counters, written only by that shard. Padded so that no two shards share a cache line.
#[derive(Debug)]
#[repr(align(128))]
pub struct Counters {
    values: [AtomicU64; Counter::ALL.len()],
    turn_times: TurnTimes,
    turn_cpu_times: TurnTimes,
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            values: std::array::from_fn(|_| AtomicU64::new(0)),
            turn_times: TurnTimes::default(),
            turn_cpu_times: TurnTimes::default(),
        }
    }
}

impl Counters {
    /// Adds `n`. Only the owning shard may call it: a load and a store, no locked instruction.
    pub fn add(&self, counter: Counter, n: u64) {
        let value = &self.values[counter as usize];
        value.store(value.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Subtracts `n` from a gauge. Only the owning shard may call it.
    pub fn subtract(&self, counter: Counter, n: u64) {
        self.add(counter, n.wrapping_neg());
    }

    /// Sets a gauge. Only the owning shard may call it.
    pub fn set(&self, gauge: Counter, value: u64) {
        debug_assert!(gauge.is_gauge(), "a running total only grows");
        self.values[gauge as usize].store(value, Relaxed);
    }

    /// The histogram of the shard's turns by their length.
    pub fn turn_times(&self) -> &TurnTimes {
        &self.turn_times
    }

    /// The histogram of the shard's turns by their CPU time.
    pub fn turn_cpu_times(&self) -> &TurnTimes {
        &self.turn_cpu_times
    }

    /// Reads a counter; from any thread.
    pub fn value(&self, counter: Counter) -> u64 {
        self.values[counter as usize].load(Relaxed)
    }
}
