//! `tickcast process ecg`: beats and heart rate from a wave, as it comes or from a file.

mod file;

use std::{
    fmt,
    io::{self, ErrorKind, Write},
    path::PathBuf,
    time::Duration,
};

use clap::Subcommand;

pub use self::file::process_file;
use crate::{
    commands::{CommandError, session_options},
    process::signals,
    sources::StopFlag,
};
use tickcast_client::{
    Address, Event, PublishRequest, ReconnectOptions, ReconnectingClient, StreamEvent, SubscribeOptions,
};
use tickcast_ecg::{
    INFO_TOPIC, PARAMS_TOPIC, WAVE_TOPIC,
    follow::{Finding, Follower},
};
use tickcast_proto::{codec::json, subscription::From};

/// Longest wait for an event before the signals are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// Bad ticks that are told one by one; the rest are left out in silence but for one word.
const COMPLAINTS_MAX: u64 = 10;

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
    /// Find the heart beats in ecg.wave and publish them, and the heart rate, on ecg.params; or in a file
    Ecg(EcgArgs),
}

/// Options of `tickcast process ecg`.
#[derive(Clone, Debug, clap::Args)]
pub struct EcgArgs {
    /// Server: HOST:PORT, or ws://HOST:PORT/ws
    #[arg(long, value_name = "ADDRESS", env = "TICKCAST_SERVER", default_value = "127.0.0.1:9400")]
    pub server: String,
    /// Identity, if this client is to have one: decides which shard serves it, and may replace an older connection
    #[arg(long, value_name = "ID")]
    pub client: Option<String>,
    /// Print one JSON object for each beat, rate, gap and lost connection, each with an "op"
    #[arg(long)]
    pub json: bool,
    /// Analyse a record instead: its WFDB header, with its data in format 212 or 16 beside it. Nothing is published
    #[arg(long, value_name = "FILE.hea")]
    pub file: Option<PathBuf>,
    /// The record's signal, counted from 0
    #[arg(long, value_name = "N", default_value_t = 0, requires = "file")]
    pub signal: usize,
    /// Score the beats against an expert's, in MIT format: how many of theirs were found within 150 ms, and how many
    /// of those found are theirs
    #[arg(long, value_name = "FILE.atr", requires = "file")]
    pub annotations: Option<PathBuf>,
}

/// Runs `tickcast process`: a file to its end, a stream until SIGINT or SIGTERM.
///
/// # Errors
/// [`CommandError`]; none when the output's reader went away.
pub fn process(args: &ProcessArgs) -> Result<(), CommandError> {
    let Processor::Ecg(args) = &args.processor;
    let mut out = io::stdout().lock();
    let result = if args.file.is_some() {
        process_file(args, &mut out)
    } else {
        let stop = StopFlag::default();
        let stopped = stop.clone();
        signals::block().map_err(CommandError::Signals)?;
        signals::watch(move |_| stopped.set(), || {}, signals::HangUp::Stops)
            .map_err(CommandError::Signals)?;
        process_stream(args, &mut out, &stop)
    };
    match result {
        Err(CommandError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// What of an event matters here, owned: the borrow of the client ends before it publishes.
enum Step {
    Found,
    Told,
    Nothing,
}

/// Follows the wave of a server until `stop` is set. Beats of before a lost connection and after it are found in what
/// the server still has; what it has not is told as a gap.
fn process_stream(args: &EcgArgs, out: &mut impl Write, stop: &StopFlag) -> Result<(), CommandError> {
    let address = Address::parse(&args.server)?;
    let session_options = session_options(&address, &args.client);
    let mut client =
        ReconnectingClient::connect_with(&address, &session_options, ReconnectOptions::default())?;
    // The description first: what comes before it cannot be analysed.
    let latest = SubscribeOptions { from: From::Latest, ..SubscribeOptions::default() };
    let requests = [
        (client.subscribe_with(INFO_TOPIC, latest)?, INFO_TOPIC),
        (client.subscribe(WAVE_TOPIC)?, WAVE_TOPIC),
    ];
    let mut follower = Follower::default();
    let mut output = Output { out, json: args.json, complaints: 0 };
    let mut found = Vec::new();
    while !stop.is_set() {
        let Some(event) = client.next_event(Some(LOOK_AGAIN))? else { continue };
        let step = handle(event, &requests, &mut follower, &mut found, &mut output)?;
        if matches!(step, Step::Found) {
            for finding in found.drain(..) {
                output.finding(&finding)?;
                publish(&mut client, &finding, &mut output)?;
            }
        }
        if !matches!(step, Step::Nothing) {
            output.flush()?;
        }
    }
    // What was found is told and sent: how the goodbye goes changes nothing.
    let _ = client.close();
    Ok(())
}

fn handle(
    event: StreamEvent<'_>,
    requests: &[(u32, &str)],
    follower: &mut Follower,
    found: &mut Vec<Finding>,
    output: &mut Output<'_, impl Write>,
) -> Result<Step, CommandError> {
    match event {
        StreamEvent::Disconnected { reason, retry_in_ms, .. } => {
            let object = format!(
                "{{\"op\":\"disconnected\",\"reason\":{},\"retry_in_ms\":{retry_in_ms}}}",
                json::literal(reason)
            );
            output.line(&object, format_args!("disconnected: {reason}; next attempt in {retry_in_ms} ms"))?;
        }
        StreamEvent::Reconnected => {
            output.line("{\"op\":\"reconnected\"}", format_args!("reconnected"))?;
        }
        StreamEvent::Event(Event::Tick(tick)) if tick.topic == INFO_TOPIC => {
            match follower.handle_info(tick.epoch, tick.payload) {
                Ok(None) => return Ok(Step::Nothing),
                Ok(Some(info)) => {
                    let (fs, signal, record) = (info.fs, &info.signal, &info.record);
                    let json = String::from_utf8(info.to_json()).unwrap_or_default();
                    let object = format!("{{\"op\":\"wave\",\"info\":{json}}}");
                    output.line(&object, format_args!("wave: {signal} of record {record}, {fs} Hz"))?;
                }
                Err(text) => output.complain(INFO_TOPIC, tick.sequence.0, &text)?,
            }
        }
        StreamEvent::Event(Event::Tick(tick)) if tick.topic == WAVE_TOPIC => {
            let (epoch, time_ns) = (tick.epoch, tick.producer_time_ns);
            if let Err(text) = follower.handle_wave(epoch, time_ns, tick.payload, found) {
                output.complain(WAVE_TOPIC, tick.sequence.0, &text)?;
                return Ok(Step::Told);
            }
            return Ok(if found.is_empty() { Step::Nothing } else { Step::Found });
        }
        // What it means for the samples follows from the next batch's time, and is told then.
        StreamEvent::Event(Event::Gap { topic, from, to, .. } | Event::Conflated { topic, from, to, .. })
            if topic == WAVE_TOPIC =>
        {
            let object = format!("{{\"op\":\"lost\",\"topic\":\"{topic}\",\"from\":{from},\"to\":{to}}}");
            output.line(&object, format_args!("lost: {topic} [{from}, {to}): {} batches", to - from))?;
        }
        StreamEvent::Event(Event::Recovered { topic, recovered: false, .. }) if topic == WAVE_TOPIC => {
            let object = format!("{{\"op\":\"lost\",\"topic\":\"{topic}\",\"from\":null,\"to\":null}}");
            output.line(&object, format_args!("lost: {topic}: the server no longer has what was missed"))?;
        }
        StreamEvent::Event(Event::Error { request, code, text }) => {
            if let Some((_, topic)) = requests.iter().find(|(number, _)| *number == request) {
                return Err(CommandError::Refused { what: format!("{topic:?}"), text: text.into(), code });
            }
            output.complain(PARAMS_TOPIC, 0, &format!("not published: {text} (code {code})"))?;
        }
        StreamEvent::Event(_) => return Ok(Step::Nothing),
    }
    Ok(Step::Told)
}

/// Publishes a finding, or tells that there is no connection to.
fn publish(
    client: &mut ReconnectingClient,
    finding: &Finding,
    output: &mut Output<'_, impl Write>,
) -> Result<(), CommandError> {
    let Some((key, payload)) = finding.to_tick() else { return Ok(()) };
    // A beat's tick carries the time of the beat.
    let producer_time_ns = if let Finding::Beat { time_ns, .. } = finding { *time_ns } else { 0 };
    let request = PublishRequest {
        topic: PARAMS_TOPIC,
        payload: payload.as_bytes(),
        producer_time_ns,
        key,
        ..PublishRequest::default()
    };
    if !client.publish(request)? {
        output.complain(PARAMS_TOPIC, 0, "not published: there is no connection")?;
    }
    Ok(())
}

/// Whole lines, for people or as JSON.
struct Output<'a, W> {
    out: &'a mut W,
    json: bool,
    complaints: u64,
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
                    None => self.line(&object, format_args!("heart rate: none, no beat for a while")),
                    Some(bpm) => self.line(&object, format_args!("heart rate: {bpm:.1} a minute")),
                }
            }
            Finding::Gap { from, to } => self.line(
                &format!("{{\"op\":\"gap\",\"from\":{from},\"to\":{to}}}"),
                format_args!(
                    "gap: samples [{from}, {to}) did not come: the detector begins anew behind them"
                ),
            ),
        }
    }

    /// Anyone may publish on these topics: what is wrong is told, but not without end.
    fn complain(&mut self, topic: &str, sequence: u64, text: &str) -> Result<(), CommandError> {
        self.complaints += 1;
        if self.complaints > COMPLAINTS_MAX + 1 {
            return Ok(());
        }
        let last = if self.complaints > COMPLAINTS_MAX { "; no more of this kind is told" } else { "" };
        let object = format!(
            "{{\"op\":\"bad\",\"topic\":\"{topic}\",\"seq\":{sequence},\"text\":{}}}",
            json::literal(&format!("{text}{last}"))
        );
        self.line(&object, format_args!("bad: {topic} {sequence}: {text}{last}"))
    }
}

#[cfg(test)]
mod tests;
