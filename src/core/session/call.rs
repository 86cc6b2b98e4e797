//! A `/v1` request in progress: the results so far, and the answer to the client.

use std::{fmt::Write as _, sync::Arc};

use crate::{
    home::lookup::PageStart,
    ids::{SessionId, TenantId},
    limits::{HTTP_PAGE_BYTES, SUMMARY_FAILURES_MAX},
    principal::Permissions,
    topic_key,
};
use tickcast_proto::{
    ErrorCode, Step,
    codec::{Codec, TopicInfo, json},
    frame::{self, Frame, Kind},
    http::api::{Cursor, Exchange, Refused, error_json, status_of},
    ids::TopicId,
    records::Published,
    reply::Reply,
};

/// State that `/v1` requests leave on a connection.
#[derive(Debug, Default)]
pub struct Calls {
    /// The client that sent the last request.
    pub caller: Option<Caller>,
    /// The request in progress; at most one.
    pub pending: Option<PendingCall>,
    /// What has come of the lines of a request that arrives in several parts, each of which is a [`PendingCall`].
    pub summary: Option<Box<Summary>>,
}

/// The client whose credentials a connection uses. A proxy may send the requests of many clients over one connection.
#[derive(Debug)]
pub struct Caller {
    /// The token of the last request.
    pub token: Option<Box<[u8]>>,
    /// The connection's tenant, whatever its tokens say.
    pub tenant: TenantId,
}

/// A request in progress.
#[derive(Debug)]
pub struct PendingCall {
    /// How to answer it.
    pub exchange: Exchange,
    /// The work that it requests.
    pub work: Work,
}

/// The work of a request.
#[derive(Debug)]
pub enum Work {
    /// A publish.
    Publish(Publishes),
    /// A read.
    Read(Box<Read>),
    /// A request of long-polling, which the session with this id answers.
    Poll(SessionId),
}

/// Publishes that await their answers. Their request ids are their positions, from 1.
#[derive(Debug)]
pub struct Publishes {
    results: Vec<Option<Outcome>>,
    missing: usize,
    answer: Form,
}

/// The form of the answer to publishes.
#[derive(Debug)]
enum Form {
    /// That of one tick.
    Single,
    /// A list with the answer of each tick.
    List,
    /// A summary of this and all earlier parts of the request, once it has been read to its end.
    Summary {
        is_last: bool,
        /// Why the rest of it is not read.
        refused: Option<Refused>,
    },
}

/// The results of lines that are published while they arrive. Bound: [`SUMMARY_FAILURES_MAX`] texts.
#[derive(Debug)]
pub struct Summary {
    exchange: Exchange,
    published: u64,
    failed: u64,
    /// The first failures, each with the number of its tick, from 1.
    failures: Vec<(u64, ErrorCode, Box<str>)>,
    /// Whether nobody knows if one of them was published.
    is_unconfirmed: bool,
}

#[derive(Debug)]
enum Outcome {
    Published { topic: Box<str>, epoch: u64, sequence: u64, is_duplicate: bool },
    Failed { code: ErrorCode, text: Box<str> },
}

/// What a read request reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readable {
    /// Last values of topics.
    Latest,
    /// Names of topics.
    Topics,
    /// Ticks of one topic, and only of a given epoch if one is set.
    History {
        /// The epoch of the first requested sequence.
        epoch: Option<u64>,
    },
}

/// Reads topics from their homes, piece by piece.
#[derive(Debug)]
pub struct Read {
    /// What to read.
    pub what: Readable,
    /// Keys of the patterns, or of the topic.
    pub patterns: Vec<Box<str>>,
    /// Where to continue. For a history, `sequence` is the first one requested.
    pub at: Cursor,
    /// Items that the answer still has room for.
    pub left: usize,
    /// Filters topics; `None`: allows all.
    pub permissions: Option<Arc<Permissions>>,
    /// Whether a home has been asked but has not answered.
    pub is_waiting: bool,
    /// Comparisons of topics and patterns that have not been charged yet.
    pub compared: usize,
    /// The answer, as far as it is known. Bound: [`HTTP_PAGE_BYTES`], and one piece.
    out: Vec<u8>,
    /// The topic whose values `out` ends with.
    open: Option<TopicInfo>,
    /// Its beginning in the answer, until its first value has arrived: a topic without values is left out.
    head: String,
    state: ReadState,
}

#[derive(Debug, PartialEq, Eq)]
enum ReadState {
    Going,
    Done,
    Failed(u16, ErrorCode, String),
}

impl PendingCall {
    /// Records the answer to one of its parts. Returns whether that completes the request.
    pub fn note(&mut self, reply: &Reply<'_>) -> bool {
        let (request, outcome) = match *reply {
            Reply::Published { request, name, epoch, sequence, is_duplicate, .. } => {
                (request, Outcome::Published { topic: name.into(), epoch, sequence, is_duplicate })
            }
            Reply::Error { request, code, text } => (request, Outcome::Failed { code, text: text.into() }),
            _ => return false,
        };
        match (&mut self.work, outcome) {
            (Work::Publish(publishes), outcome) => publishes.note(request, outcome),
            (Work::Read(read), Outcome::Failed { code, text }) => {
                read.fail(status_of(code), code, text.into());
                true
            }
            (Work::Read(_), Outcome::Published { .. }) | (Work::Poll(_), _) => false,
        }
    }

    /// Marks unanswered publishes as unconfirmed: nobody knows whether they are published.
    pub fn end_unconfirmed(&mut self, text: &str) {
        if let Work::Publish(publishes) = &mut self.work {
            for result in publishes.results.iter_mut().filter(|result| result.is_none()) {
                *result = Some(Outcome::Failed { code: ErrorCode::Unconfirmed, text: text.into() });
            }
            publishes.missing = 0;
        }
    }

    /// Whether its answer is known.
    pub fn is_done(&self) -> bool {
        match &self.work {
            Work::Publish(publishes) => publishes.missing == 0,
            Work::Read(read) => read.state != ReadState::Going,
            Work::Poll(_) => false,
        }
    }

    /// The answer: its status, and its content as JSON.
    pub fn answer(self) -> (u16, String) {
        match self.work {
            Work::Publish(publishes) => publishes.answer(),
            Work::Read(read) => read.answer(),
            Work::Poll(_) => (200, String::new()),
        }
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<PendingCall>()
            + match &self.work {
                Work::Publish(publishes) => publishes.results.capacity() * size_of::<Option<Outcome>>(),
                Work::Read(read) => size_of::<Read>() + read.out.capacity(),
                Work::Poll(_) => 0,
            }
    }
}

impl Summary {
    /// Creates the summary of a request of which nothing has been published.
    pub fn new(exchange: Exchange) -> Summary {
        Summary { exchange, published: 0, failed: 0, failures: Vec::new(), is_unconfirmed: false }
    }

    /// How the request is answered.
    pub fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Adds the results of a part. Returns the answer if it is the last part.
    pub fn add(&mut self, part: Publishes) -> Option<(u16, String)> {
        for result in part.results.into_iter().flatten() {
            match result {
                Outcome::Published { .. } => self.published += 1,
                Outcome::Failed { code, text } => {
                    self.failed += 1;
                    self.is_unconfirmed |= code == ErrorCode::Unconfirmed;
                    if self.failures.len() < SUMMARY_FAILURES_MAX {
                        self.failures.push((self.published + self.failed, code, text));
                    }
                }
            }
        }
        match part.answer {
            Form::Summary { is_last: true, refused } => Some(self.answer(refused)),
            _ => None,
        }
    }

    /// The status and the content of the answer. 200 if the request was read to its end, and something was published or nothing
    /// failed.
    pub fn answer(&self, refused: Option<Refused>) -> (u16, String) {
        let Summary { published, failed, failures, .. } = self;
        let (status, error) = match (refused, failures.first()) {
            (Some(Refused { status, text }), _) => {
                let code = match status {
                    413 => ErrorCode::TooLarge,
                    504 => ErrorCode::Unconfirmed,
                    _ => ErrorCode::BadRequest,
                };
                (status, Some(error_json(code, &text)))
            }
            (None, Some((_, code, text))) if *published == 0 => {
                let status =
                    if self.is_unconfirmed { status_of(ErrorCode::Unconfirmed) } else { status_of(*code) };
                (status, Some(error_json(*code, text)))
            }
            (None, _) => (200, None),
        };
        let error = error.map_or_else(String::new, |error| format!("\"error\":{error},"));
        let json = |(tick, code, text): &(u64, ErrorCode, Box<str>)| {
            format!("{{\"tick\":{tick},\"error\":{}}}", error_json(*code, text))
        };
        let failures: Vec<String> = failures.iter().map(json).collect();
        let failures = failures.join(",");
        (
            status,
            format!("{{{error}\"published\":{published},\"failed\":{failed},\"failures\":[{failures}]}}"),
        )
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Summary>()
            + self
                .failures
                .iter()
                .map(|(_, _, text)| size_of::<(u64, ErrorCode, Box<str>)>() + text.len())
                .sum::<usize>()
    }
}

impl Publishes {
    /// Creates this many unanswered publishes.
    pub fn new(count: usize, is_single: bool) -> Publishes {
        Publishes::with(count, if is_single { Form::Single } else { Form::List })
    }

    /// Creates the unanswered publishes of a part of a request.
    pub fn part(count: usize, is_last: bool, refused: Option<Refused>) -> Publishes {
        Publishes::with(count, Form::Summary { is_last, refused })
    }

    fn with(count: usize, answer: Form) -> Publishes {
        Publishes { results: (0..count).map(|_| None).collect(), missing: count, answer }
    }

    /// Whether they are a part of a request that is answered as a whole.
    pub fn is_part(&self) -> bool {
        matches!(self.answer, Form::Summary { .. })
    }

    fn note(&mut self, request: u32, outcome: Outcome) -> bool {
        let place = (request as usize).checked_sub(1).and_then(|at| self.results.get_mut(at));
        let Some(place @ None) = place else { return false };
        *place = Some(outcome);
        self.missing -= 1;
        self.missing == 0
    }

    /// 200 if anything was published; each failed publish has its error in its place. Otherwise the status of the first
    /// unconfirmed publish, because a client that retried could publish it twice, or else of the first failure.
    fn answer(self) -> (u16, String) {
        let is_published = |result: &Option<Outcome>| matches!(result, Some(Outcome::Published { .. }));
        let any_published = self.results.iter().any(is_published);
        let failures = self.results.iter().flatten().filter_map(|result| match result {
            Outcome::Failed { code, text } => Some((*code, text)),
            Outcome::Published { .. } => None,
        });
        // The first unconfirmed one, otherwise the first.
        let failure = failures.min_by_key(|(code, _)| *code != ErrorCode::Unconfirmed);
        if let Some((code, text)) = failure.filter(|_| !any_published) {
            return (status_of(code), format!("{{\"error\":{}}}", error_json(code, text)));
        }
        let json = |result: &Option<Outcome>| match result {
            Some(Outcome::Published { topic, epoch, sequence, is_duplicate }) => {
                let (topic, duplicate) =
                    (json::literal(topic), if *is_duplicate { ",\"duplicate\":true" } else { "" });
                format!("{{\"topic\":{topic},\"epoch\":{epoch},\"sequence\":{sequence}{duplicate}}}")
            }
            Some(Outcome::Failed { code, text }) => format!("{{\"error\":{}}}", error_json(*code, text)),
            None => String::new(),
        };
        if let (Form::Single, [only]) = (&self.answer, &self.results[..]) {
            return (200, json(only));
        }
        let failed = self.results.iter().filter(|result| !is_published(result)).count();
        let results: Vec<String> = self.results.iter().map(json).collect();
        (200, format!("{{\"results\":[{}],\"failed\":{failed}}}", results.join(",")))
    }
}

impl Read {
    /// Creates a read of these patterns, starting at a cursor.
    pub fn new(what: Readable, patterns: Vec<Box<str>>, at: Cursor, limit: usize) -> Read {
        Read {
            what,
            patterns,
            at,
            left: limit,
            permissions: None,
            is_waiting: false,
            compared: 0,
            out: Vec::new(),
            open: None,
            head: String::new(),
            state: ReadState::Going,
        }
    }

    /// Ends the read with an error.
    pub fn fail(&mut self, status: u16, code: ErrorCode, text: String) {
        self.state = ReadState::Failed(status, code, text);
    }

    /// The key of the pattern being read; `None` after the last.
    pub fn pattern(&self) -> Option<&str> {
        self.patterns.get(self.at.pattern as usize).map(|pattern| &**pattern)
    }

    /// Takes a piece of a home's topics, and continues at `next`, or at the next home or pattern. If values are wanted, topics
    /// without any are left out. `matches` compares the keys of a pattern and a topic.
    pub fn take_topics(
        &mut self,
        mut frames: &[u8],
        next: Option<PageStart>,
        homes: std::ops::Range<u16>,
        matches: impl Fn(&str, &str) -> bool,
    ) {
        let mut is_wanted = false;
        let mut scratch = Vec::new();
        while let Ok(Step::Complete(used, frame)) = frame::decode(frames, usize::MAX) {
            frames = &frames[used..];
            match frame.kind {
                Kind::Published => is_wanted = self.open_topic(&frame, &matches),
                Kind::Tick if is_wanted => self.push_tick(&frame, &mut scratch),
                _ => {}
            }
        }
        let PageStart { place, sequence, life } = next.unwrap_or_default();
        self.at = Cursor { place, sequence, life, ..self.at };
        if next.is_none() {
            if self.at.home + 1 < homes.end {
                self.at.home += 1;
            } else {
                (self.at.home, self.at.pattern) = (0, self.at.pattern + 1);
            }
        }
        let is_last = self.pattern().is_none();
        if is_last || self.left == 0 || self.out.len() >= HTTP_PAGE_BYTES {
            self.close_topic();
            let next = if is_last { "null".to_owned() } else { format!("\"{}\"", self.at) };
            let items = std::mem::take(&mut self.out);
            self.out = [b"{\"topics\":[", &items[..], b"],\"next\":", next.as_bytes(), b"}"].concat();
            self.state = ReadState::Done;
        }
    }

    /// Starts a topic in the answer. Returns whether the client requested it and may read it.
    fn open_topic(&mut self, frame: &Frame<'_>, matches: impl Fn(&str, &str) -> bool) -> bool {
        let (Ok(Published { epoch, .. }), Ok(key)) = (frame.record::<Published>(), frame.text()) else {
            debug_assert!(false, "this process encoded the frame");
            return false;
        };
        let name = topic_key::name(key);
        let earlier = self.patterns.iter().take(self.at.pattern as usize);
        self.compared += earlier.len();
        if earlier.into_iter().any(|pattern| matches(pattern, key))
            || self.permissions.as_ref().is_some_and(|permissions| !permissions.subscribe.permits(name))
        {
            return false;
        }
        let id = TopicId(frame.header.topic_id);
        if self.open.as_ref().is_some_and(|open| open.id == id) {
            return true;
        }
        self.close_topic();
        let sequence = frame.header.sequence;
        let head = format!("{{\"topic\":{},\"epoch\":{epoch},\"sequence\":{sequence}", json::literal(name));
        match self.what {
            Readable::Topics => {
                self.push_item(&(head + "}"));
                self.left = self.left.saturating_sub(1);
            }
            Readable::Latest | Readable::History { .. } => {
                self.head = head + ",\"ticks\":[";
                self.open = Some(TopicInfo::new(id, epoch, name));
            }
        }
        true
    }

    fn push_item(&mut self, text: &str) {
        if !self.out.is_empty() {
            self.out.push(b',');
        }
        self.out.extend_from_slice(text.as_bytes());
    }

    fn close_topic(&mut self) {
        let has_values = std::mem::take(&mut self.head).is_empty();
        if self.open.take().is_some() && has_values {
            self.out.extend_from_slice(b"]}");
        }
    }

    fn push_tick(&mut self, tick: &Frame<'_>, scratch: &mut Vec<u8>) {
        if !self.head.is_empty() {
            let head = std::mem::take(&mut self.head);
            self.push_item(&head);
        }
        // A list of names has no values.
        let Some(topic) = &self.open else { return };
        if self.out.last() != Some(&b'[') {
            self.out.push(b',');
        }
        self.out.extend_from_slice(Codec::Json.encode_tick(tick, topic, scratch));
        self.left = self.left.saturating_sub(1);
    }

    /// Takes the ticks of a topic, which completes the request. `found`: the topic's epoch, its last sequence, and the first
    /// requested one that is kept; `None`: there is no such topic.
    pub fn take_ticks(
        &mut self,
        id: TopicId,
        found: Option<(u64, u64, u64)>,
        has_more: bool,
        mut frames: &[u8],
    ) {
        let name: Box<str> = self.pattern().map(topic_key::name).unwrap_or_default().into();
        let Some((epoch, last, start)) = found else {
            let text = format!("there is no topic {}", json::literal(&name));
            return self.fail(404, ErrorCode::BadTopic, text);
        };
        let (is_recovered, from) = match self.what {
            Readable::History { epoch: Some(wanted) } if wanted != epoch => (false, 1),
            _ => (self.at.sequence <= last + 1, self.at.sequence),
        };
        let mut head = format!(
            "{{\"topic\":{},\"epoch\":{epoch},\"sequence\":{last},\"recovered\":{is_recovered}",
            json::literal(&name)
        );
        if from < start && from <= last {
            // Writing to a String cannot fail.
            let _ = write!(head, ",\"gap\":{{\"from\":{from},\"to\":{start}}}");
        }
        self.out = (head + ",\"ticks\":[").into_bytes();
        self.open = Some(TopicInfo::new(id, epoch, &name));
        let (mut scratch, mut next) = (Vec::new(), start);
        while let Ok(Step::Complete(used, tick)) = frame::decode(frames, usize::MAX) {
            frames = &frames[used..];
            next = tick.header.sequence + 1;
            self.push_tick(&tick, &mut scratch);
        }
        let next = if has_more { next.to_string() } else { "null".to_owned() };
        self.out.extend_from_slice(format!("],\"next\":{next}}}").as_bytes());
        self.state = ReadState::Done;
    }

    fn answer(self) -> (u16, String) {
        match self.state {
            ReadState::Failed(status, code, text) => {
                (status, format!("{{\"error\":{}}}", error_json(code, &text)))
            }
            ReadState::Going | ReadState::Done => (200, String::from_utf8_lossy(&self.out).into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tickcast_proto::{frame::HeaderFields, records::TickTimes};

    #[test]
    fn a_list_of_publishes_of_which_one_may_be_published_is_not_answered_as_if_none_were() {
        for (codes, status) in [
            ([ErrorCode::EngineUnavailable, ErrorCode::Unconfirmed], 504),
            ([ErrorCode::EngineUnavailable, ErrorCode::BadTopic], 503),
            ([ErrorCode::BadTopic, ErrorCode::EngineUnavailable], 400),
        ] {
            let mut publishes = Publishes::new(2, false);
            for (request, code) in (1..).zip(codes) {
                publishes.note(request, Outcome::Failed { code, text: "".into() });
            }
            assert_eq!(publishes.answer().0, status, "{codes:?}");
        }
    }

    #[test]
    fn topics_without_values_are_no_part_of_a_page_of_last_values() {
        let mut frames = Vec::new();
        for topic in 1..=3 {
            let fields = HeaderFields { topic_id: topic, sequence: 5, ..HeaderFields::default() };
            let record = Published { epoch: 7, ..Published::default() };
            let name = format!("t.{topic}");
            frame::encode(&mut frames, Kind::Published, fields, &record, &[name.as_bytes()]);
            if topic == 2 {
                frame::encode(&mut frames, Kind::Tick, fields, &TickTimes::default(), &[b"1"]);
            }
        }
        for what in [Readable::Latest, Readable::Topics] {
            let mut read = Read::new(what, vec![">".into()], Cursor::default(), 10);
            read.take_topics(&frames, None, 0..1, |_, _| true);
            let (_, answer) = read.answer();
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            let topics = answer["topics"].as_array().unwrap().iter();
            let names: Vec<&str> = topics.map(|topic| topic["topic"].as_str().unwrap()).collect();
            assert_eq!(names, if what == Readable::Latest { vec!["t.2"] } else { vec!["t.1", "t.2", "t.3"] });
        }
    }
}
