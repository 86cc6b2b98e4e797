//! `tickcast process ecg`: finds heart beats in a live wave or in a file.

mod file;

use std::{
    collections::VecDeque,
    fmt,
    io::{self, ErrorKind, Write},
    path::PathBuf,
    time::Duration,
};

use clap::Subcommand;

pub use self::file::process_file;
use crate::{
    clock,
    commands::{CommandError, ServerArgs, counted},
    process::{reader, signals},
    sources::StopFlag,
};
use tickcast_client::{
    ConnectOptions, Event, PUBLISHES_UNACKNOWLEDGED_MAX, PublishRequest, ReconnectOptions,
    ReconnectingClient, StreamEvent, SubscribeOptions,
};
use tickcast_ecg::{
    INFO_TOPIC, PARAMS_TOPIC, WAVE_TOPIC,
    follow::{Finding, Follower},
};
use tickcast_proto::{codec::json, subscription::StartPosition};

/// Longest wait for an event before checking for a signal.
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// Time for the server to accept more bytes.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the server to acknowledge the last findings before the command exits.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Findings that may wait while the server has not acknowledged earlier ones; further ones are not published.
const FINDINGS_WAITING_MAX: usize = 64 << 10;
/// Problems that are reported one by one. One more report says that further ones are left out.
const PROBLEMS_SHOWN_MAX: u64 = 10;

/// Options of `tickcast process`.
#[derive(Clone, Debug, clap::Args)]
pub struct ProcessArgs {
    /// What to analyse.
    #[command(subcommand)]
    pub processor: Processor,
}

/// What to analyse.
#[derive(Clone, Debug, Subcommand)]
pub enum Processor {
    /// Find heart beats in ecg.wave and publish them with the heart rate on ecg.params, or analyse a file
    #[command(mut_arg("cert_key", |arg| arg.visible_alias("key")))]
    Ecg(EcgArgs),
}

/// Options of `tickcast process ecg`.
#[derive(Clone, Debug, clap::Args)]
pub struct EcgArgs {
    /// The server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Print JSON: one object for each beat, rate, gap and lost connection
    #[arg(long)]
    pub json: bool,
    /// Analyse a WFDB record instead, given its header; nothing is published
    #[arg(long, value_name = "FILE.hea")]
    pub file: Option<PathBuf>,
    /// Signal of the record, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "file")]
    pub signal: usize,
    /// Score the beats found against annotations in MIT format: sensitivity and positive predictivity, within 150 ms
    #[arg(long, value_name = "FILE.atr", requires = "file")]
    pub annotations: Option<PathBuf>,
}

/// Runs `tickcast process`: a file to its end, a live wave until SIGINT or SIGTERM.
///
/// # Errors
/// [`CommandError`]. No error if the output's reader exits.
pub fn process(args: &ProcessArgs) -> Result<(), CommandError> {
    let Processor::Ecg(args) = &args.processor;
    let mut out = io::stdout().lock();
    let result = if args.file.is_some() {
        process_file(args, &mut out)
    } else {
        let stop = StopFlag::default();
        let (stopped, failed) = (stop.clone(), stop.clone());
        signals::block().map_err(CommandError::Signals)?;
        let on_failure = move |reason: String| {
            ::log::error!("the signals thread has ended: {reason}");
            failed.set();
        };
        let on_stop = move |signal| {
            stopped.set();
            signals::exit_if_stuck(signal, || {});
        };
        signals::watch(on_stop, || {}, signals::HangUp::Stops, on_failure).map_err(CommandError::Signals)?;
        let gone = stop.clone();
        reader::when_gone(io::stdout(), move || gone.set()).map_err(CommandError::Output)?;
        process_stream(args, &mut out, &stop)
    };
    match result {
        Err(CommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// Result of handling an event; owned, so that the borrow of the client ends before it publishes.
enum Handled {
    /// Findings to report and publish.
    Found,
    /// Lines were written.
    Reported,
    Nothing,
}

/// Follows a server's wave until `stop` is set. Beats around a lost connection are found in the history that the server
/// retains; samples that it no longer has are reported as a gap.
fn process_stream(args: &EcgArgs, out: &mut impl Write, stop: &StopFlag) -> Result<(), CommandError> {
    let (address, options) = args.server.parse()?;
    let options = ConnectOptions { acknowledgements: true, ..options };
    let mut client = ReconnectingClient::connect_with(&address, &options, ReconnectOptions::default())?;
    client.set_write_timeout(Some(WRITE_TIMEOUT));
    // Subscribe to the description first: samples before it cannot be analysed.
    let latest = SubscribeOptions { from: StartPosition::Latest, ..SubscribeOptions::default() };
    let requests = [
        (client.subscribe_with(INFO_TOPIC, latest)?, INFO_TOPIC),
        (client.subscribe(WAVE_TOPIC)?, WAVE_TOPIC),
    ];
    let mut follower = Follower::default();
    let mut output = Output { out, json: args.json, problems: 0 };
    let (mut found, mut publisher) = (Vec::new(), Publisher::default());
    while !stop.is_set() {
        let server_epoch = client.server_epoch().unwrap_or_default();
        let Some(event) = client.next_event(Some(STOP_CHECK_INTERVAL))? else { continue };
        let is_refusal = publisher.handle(&event, &requests);
        let handled = handle(event, server_epoch, &requests, &mut follower, &mut found, &mut output)?;
        if matches!(handled, Handled::Found) {
            for finding in found.drain(..) {
                output.finding(&finding)?;
                publisher.queue(&finding, &mut output)?;
            }
        }
        publisher.publish(&mut client, &mut output)?;
        if is_refusal || !matches!(handled, Handled::Nothing) {
            output.flush()?;
        }
    }
    publisher.finish(client, &requests, &mut output)
}

fn handle(
    event: StreamEvent<'_>,
    server_epoch: u64,
    requests: &[(u32, &str)],
    follower: &mut Follower,
    found: &mut Vec<Finding>,
    output: &mut Output<'_, impl Write>,
) -> Result<Handled, CommandError> {
    match event {
        StreamEvent::Disconnected { reason, retry_in_ms, unacknowledged, .. } => {
            if unacknowledged > 0 {
                let text = format!("not acknowledged: {}", counted(unacknowledged as u64, "tick"));
                output.problem(PARAMS_TOPIC, 0, &text)?;
            }
            let object = format!(
                "{{\"op\":\"disconnected\",\"reason\":{},\"retry_in_ms\":{retry_in_ms}}}",
                json::literal(reason)
            );
            output.line(&object, format_args!("disconnected: {reason}; reconnecting in {retry_in_ms} ms"))?;
        }
        StreamEvent::Reconnected => {
            output.line("{\"op\":\"reconnected\"}", format_args!("reconnected"))?;
        }
        StreamEvent::Event(Event::Tick(tick)) if tick.topic == INFO_TOPIC => {
            match follower.handle_info(server_epoch, tick.payload) {
                Ok(None) => return Ok(Handled::Nothing),
                Ok(Some(info)) => {
                    let (fs, signal, record) = (info.fs, &info.signal, &info.record);
                    let json = String::from_utf8(info.to_json()).unwrap_or_default();
                    let object = format!("{{\"op\":\"wave\",\"info\":{json}}}");
                    output.line(&object, format_args!("wave: {signal} of record {record}, {fs} Hz"))?;
                }
                Err(text) => output.problem(INFO_TOPIC, tick.sequence.0, &text)?,
            }
        }
        StreamEvent::Event(Event::Tick(tick)) if tick.topic == WAVE_TOPIC => {
            if let Err(text) = follower.handle_wave(server_epoch, tick.producer_time_ns, tick.payload, found)
            {
                output.problem(WAVE_TOPIC, tick.sequence.0, &text)?;
                return Ok(Handled::Reported);
            }
            return Ok(if found.is_empty() { Handled::Nothing } else { Handled::Found });
        }
        // The time of the next batch tells which samples are missing; they are reported then.
        StreamEvent::Event(Event::Gap { topic, from, to, .. } | Event::Conflated { topic, from, to, .. })
            if topic == WAVE_TOPIC =>
        {
            let object = format!("{{\"op\":\"lost\",\"topic\":\"{topic}\",\"from\":{from},\"to\":{to}}}");
            output.line(&object, format_args!("lost: {topic}, batches [{from}, {to})"))?;
        }
        StreamEvent::Event(Event::Recovered { topic, recovered: false, .. }) if topic == WAVE_TOPIC => {
            let object = format!("{{\"op\":\"lost\",\"topic\":\"{topic}\",\"from\":null,\"to\":null}}");
            output
                .line(&object, format_args!("lost: {topic}: the server no longer has the missed batches"))?;
        }
        StreamEvent::Event(Event::Error { request, code, text }) => {
            if let Some((_, topic)) = requests.iter().find(|(number, _)| *number == request) {
                return Err(CommandError::Refused { what: format!("{topic:?}"), text: text.into(), code });
            }
            output.problem(PARAMS_TOPIC, 0, &format!("not published: {text} (code {code})"))?;
        }
        StreamEvent::Event(_) => return Ok(Handled::Nothing),
    }
    Ok(Handled::Reported)
}

/// Publishes findings, as many at a time as may wait for their acknowledgement.
#[derive(Default)]
struct Publisher {
    /// Findings to publish. Bound: [`FINDINGS_WAITING_MAX`].
    waiting: VecDeque<Tick>,
    sent: u64,
    refused: u64,
}

/// A finding in the form that is published.
struct Tick {
    key: u64,
    payload: String,
    producer_time_ns: u64,
}

impl Publisher {
    fn queue(&mut self, finding: &Finding, output: &mut Output<'_, impl Write>) -> Result<(), CommandError> {
        let Some((key, payload)) = finding.to_tick() else { return Ok(()) };
        if self.waiting.len() >= FINDINGS_WAITING_MAX {
            return output.problem(PARAMS_TOPIC, 0, "not published: the server is too slow to acknowledge");
        }
        // A beat's tick carries the time of the beat.
        let producer_time_ns = if let Finding::Beat { time_ns, .. } = finding { *time_ns } else { 0 };
        self.waiting.push_back(Tick { key, payload, producer_time_ns });
        Ok(())
    }

    /// Publishes what may be sent now, or reports that there is no connection.
    fn publish(
        &mut self,
        client: &mut ReconnectingClient,
        output: &mut Output<'_, impl Write>,
    ) -> Result<(), CommandError> {
        while client.unacknowledged() < PUBLISHES_UNACKNOWLEDGED_MAX
            && let Some(Tick { key, payload, producer_time_ns }) = self.waiting.pop_front()
        {
            let request = PublishRequest {
                topic: PARAMS_TOPIC,
                payload: payload.as_bytes(),
                producer_time_ns,
                key,
                ..PublishRequest::default()
            };
            match client.publish(request)? {
                Some(_) => self.sent += 1,
                None => output.problem(PARAMS_TOPIC, 0, "not published: not connected")?,
            }
        }
        Ok(())
    }

    /// Counts a refused finding; returns whether the event is one.
    fn handle(&mut self, event: &StreamEvent<'_>, requests: &[(u32, &str)]) -> bool {
        let is_refusal = matches!(event, StreamEvent::Event(Event::Error { request, .. })
            if requests.iter().all(|(number, _)| number != request));
        self.refused += u64::from(is_refusal);
        is_refusal
    }

    /// Waits for the missing answers, then closes the connection.
    fn finish(
        mut self,
        mut client: ReconnectingClient,
        requests: &[(u32, &str)],
        output: &mut Output<'_, impl Write>,
    ) -> Result<(), CommandError> {
        let deadline_ns = clock::monotonic_ns() + ANSWER_TIMEOUT.as_nanos() as u64;
        let mut unknown = 0;
        while client.unacknowledged() > 0 {
            let left_ns = deadline_ns.saturating_sub(clock::monotonic_ns());
            // Ticks of the wave may always be ready: only time ends this.
            if left_ns == 0 {
                break;
            }
            let Some(event) = client.next_event(Some(Duration::from_nanos(left_ns)))? else { break };
            let is_refusal = self.handle(&event, requests);
            match event {
                StreamEvent::Event(Event::Error { code, text, .. }) if is_refusal => {
                    output.problem(PARAMS_TOPIC, 0, &format!("not published: {text} (code {code})"))?;
                }
                StreamEvent::Disconnected { unacknowledged, .. } => unknown = unacknowledged,
                _ => {}
            }
            self.publish(&mut client, output)?;
        }
        unknown += client.unacknowledged() + self.waiting.len();
        if unknown > 0 {
            let text = format!("not acknowledged: {}", counted(unknown as u64, "tick"));
            output.problem(PARAMS_TOPIC, 0, &text)?;
        }
        output.flush()?;
        // All answers have been reported, so a failed close changes nothing. A server that has not answered in time would not close
        // its side either, and the wait for that would exceed the time that a command has to end.
        if unknown == 0 {
            let _ = client.close();
        }
        match self.refused {
            0 => Ok(()),
            refused => Err(CommandError::TicksRefused { refused, sent: self.sent }),
        }
    }
}

/// Whole lines, for people or as JSON.
struct Output<'a, W> {
    out: &'a mut W,
    json: bool,
    problems: u64,
}

impl<W: Write> Output<'_, W> {
    fn line(&mut self, object: &str, text: fmt::Arguments<'_>) -> Result<(), CommandError> {
        let written = if self.json { writeln!(self.out, "{object}") } else { writeln!(self.out, "{text}") };
        written.map_err(CommandError::Output)
    }

    fn flush(&mut self) -> Result<(), CommandError> {
        self.out.flush().map_err(CommandError::Output)
    }

    fn finding(&mut self, finding: &Finding) -> Result<(), CommandError> {
        let fields = finding.to_tick().map(|(_, payload)| payload[1..].to_owned()).unwrap_or_default();
        match *finding {
            Finding::Beat { at_sample, rr_ms, .. } => {
                let object = format!("{{\"op\":\"beat\",{fields}");
                match rr_ms {
                    None => self.line(&object, format_args!("beat: sample {at_sample}")),
                    Some(rr_ms) => self.line(
                        &object,
                        format_args!("beat: sample {at_sample}, {rr_ms:.1} ms after the last"),
                    ),
                }
            }
            Finding::Rate(bpm) => {
                let object = format!("{{\"op\":\"rate\",{fields}");
                match bpm {
                    None => self.line(&object, format_args!("heart rate: unknown, no recent beat")),
                    Some(bpm) => self.line(&object, format_args!("heart rate: {bpm:.1} bpm")),
                }
            }
            Finding::Gap { from, to } => self.line(
                &format!("{{\"op\":\"gap\",\"from\":{from},\"to\":{to}}}"),
                format_args!("gap: samples [{from}, {to}) are missing; the detector restarts after them"),
            ),
        }
    }

    /// Reports a bad tick or a failed publish. Anyone may publish on these topics, so the number of reports is bounded.
    fn problem(&mut self, topic: &str, sequence: u64, text: &str) -> Result<(), CommandError> {
        self.problems += 1;
        if self.problems > PROBLEMS_SHOWN_MAX + 1 {
            return Ok(());
        }
        let last =
            if self.problems > PROBLEMS_SHOWN_MAX { "; further problems are not reported" } else { "" };
        let object = format!(
            "{{\"op\":\"bad\",\"topic\":\"{topic}\",\"seq\":{sequence},\"text\":{}}}",
            json::literal(&format!("{text}{last}"))
        );
        self.line(&object, format_args!("bad: {topic} {sequence}: {text}{last}"))
    }
}

#[cfg(test)]
mod tests;
