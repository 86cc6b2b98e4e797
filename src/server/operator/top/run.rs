//! Running `tickcast top`: the terminal, the clock and the threads.
//!
//! ```text
//!  "keys" ----Action--->  main: model, screen  <--Snapshot-- "poller" --HTTP--> admin listener
//!  "signals" ---stop--->          '-------poll request--------^
//!  "jobs" -----Ctrl-Z, fg--->
//! ```
//!
//! Only the poller waits for the server, so keys work even if the server hangs.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use log::LevelFilter;
use ratatui::{
    DefaultTerminal, Terminal,
    backend::CrosstermBackend,
    crossterm::{
        event::{self, Event},
        execute,
        terminal::{
            Clear, ClearType, EnterAlternateScreen, disable_raw_mode, enable_raw_mode, is_raw_mode_enabled,
        },
    },
};

use super::{
    TopArgs, TopError,
    client::AdminClient,
    job_control,
    keys::{self, Action},
    model::{Effect, Model},
    responses::Snapshot,
    text, token,
    view::{self, Palette},
};
use crate::{clock, process::signals, sources::StopFlag};
use tickcast_core::{now::Now, shard::survey::SessionSort};

/// Messages that may wait for the main thread; beyond that, senders block.
const MESSAGES_MAX: usize = 64;
/// Longest wait before the displayed time and the threads are checked again.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// A message to the main thread.
enum Message {
    Action(Action),
    /// The terminal was resized.
    Resized,
    /// Keys can no longer be read.
    KeysFailed(io::Error),
    Polled(Box<Result<Snapshot, String>>),
    /// The process was resumed: another program may have changed the terminal's content and settings.
    Resumed,
    /// Wakes the main thread to check the stop flag.
    Wake,
}

/// Runs `tickcast top` until a key or a signal ends it; with `--once`, for two polls.
///
/// # Errors
/// [`TopError`]. A closed pipe on standard output is not an error.
pub fn run(args: &TopArgs) -> Result<(), TopError> {
    if args.admin.is_unset() {
        return Err(TopError::Port(args.admin.clone()));
    }
    let authorization = token::authorization(args.token_file.as_deref())?;
    let client = AdminClient::new(args.admin.clone(), &args.tls.options())
        .map_err(|error| TopError::Tls(error.to_string()))?
        .with_authorization(authorization);
    let mut model = Model::new(args.admin.to_string(), args.interval.ns / 1_000_000);
    if args.once {
        return once(&client, &mut model);
    }
    if !io::stdout().is_terminal() {
        return Err(TopError::NotATerminal);
    }
    if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        return Err(TopError::DumbTerminal);
    }
    // Signals are not blocked yet, so that Ctrl-C works while the server hangs.
    poll(&client, &mut model)?;
    // Before any long-lived thread exists: threads inherit the mask.
    signals::block().and_then(|()| job_control::block()).map_err(TopError::Signals)?;
    let level = ::log::max_level();
    // Log lines would garble the screen.
    ::log::set_max_level(LevelFilter::Off);
    let result = watch(client, &mut model);
    ::log::set_max_level(level);
    result
}

/// Polls on this thread; no response is an error.
fn poll(client: &AdminClient, model: &mut Model) -> Result<(), TopError> {
    let unreachable = |reason| TopError::Unreachable(client.address().clone(), reason);
    let snapshot = client.poll(model.sort).map_err(unreachable)?;
    model.handle_poll(Ok(snapshot), clock::now());
    Ok(())
}

fn once(client: &AdminClient, model: &mut Model) -> Result<(), TopError> {
    poll(client, model)?;
    clock::sleep_ns(model.interval_ns());
    poll(client, model)?;
    let mut out = io::stdout().lock();
    match out.write_all(text::text(model).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(TopError::Output(error)),
        _ => Ok(()),
    }
}

/// The terminal in raw mode. Restored on drop, and before the message of a panic on any thread.
struct Screen(DefaultTerminal);

impl Screen {
    fn enter() -> Result<Screen, TopError> {
        ratatui::try_init().map(Screen).map_err(|error| {
            let _ = ratatui::try_restore();
            TopError::Terminal(error)
        })
    }

    /// Restores the terminal, stops the process until it is resumed, and takes the terminal again.
    fn suspend(&mut self) -> Result<(), TopError> {
        let left = self.0.show_cursor().and_then(|()| ratatui::try_restore());
        left.and_then(|()| job_control::stop()).map_err(TopError::Terminal)?;
        self.retake()
    }

    /// Takes the terminal again after a shell has used it.
    fn retake(&mut self) -> Result<(), TopError> {
        let take = || {
            // Raw mode may be off although crossterm set it, so reset crossterm's state first.
            disable_raw_mode()?;
            enable_raw_mode()?;
            execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All))?;
            // Redraws everything. Terminal::clear would query the cursor's position, and the answer would arrive as keys.
            Terminal::new(CrosstermBackend::new(io::stdout()))
        };
        self.0 = take().map_err(TopError::Terminal)?;
        Ok(())
    }

    fn draw(&mut self, model: &Model, now: Now, palette: Palette) -> Result<(), TopError> {
        let drawn = self.0.draw(|frame| view::draw(model, now, palette, frame.area(), frame.buffer_mut()));
        drawn.map(|_| ()).map_err(TopError::Terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic the terminal is already restored; restoring it again would move the cursor above the message. A
        // terminal that has gone away needs nothing.
        if is_raw_mode_enabled().unwrap_or(true) {
            let _ = ratatui::try_restore();
        }
    }
}

/// Shows the screen until a key or a signal ends it.
fn watch(client: AdminClient, model: &mut Model) -> Result<(), TopError> {
    let (sender, messages) = sync_channel(MESSAGES_MAX);
    let stop = StopFlag::default();
    let (stopped, wake) = (stop.clone(), sender.clone());
    let notify = move |signal| {
        stopped.set();
        // A full channel keeps the main thread awake anyway.
        let _ = wake.try_send(Message::Wake);
        // After Ctrl-S the main thread waits for the terminal.
        signals::exit_if_stuck(signal, || drop(disable_raw_mode()));
    };
    let failed = stop.clone();
    signals::watch(notify, || {}, signals::HangUp::Stops, move |_| failed.set())
        .map_err(TopError::Signals)?;
    let (suspend, resume) = (sender.clone(), sender.clone());
    job_control::watch(
        move || drop(suspend.send(Message::Action(Action::Suspend))),
        move || drop(resume.send(Message::Resumed)),
    )
    .map_err(TopError::Signals)?;
    // One interval after the first poll, which was just made: rates over a shorter time would be noise.
    let mut poller = Poller::start(client, sender.clone(), clock::monotonic_ns() + model.interval_ns())?;
    let mut screen = Screen::enter()?;
    let thread = thread::Builder::new().name("keys".into());
    thread.spawn(move || read_keys(&sender)).map_err(|_| TopError::Thread("keys"))?;
    let palette = Palette { has_colours: std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) };
    while !stop.is_set() {
        let now = clock::now();
        // Before drawing, so that nothing covers the message of a panicked thread.
        poller.poll_if_due(model, now.monotonic_ns)?;
        screen.draw(model, now, palette)?;
        let Some(first) = next(&messages, poller.time_to_wait(model))? else { continue };
        // Handle all waiting messages before drawing again.
        for message in std::iter::once(first).chain(messages.try_iter().take(MESSAGES_MAX)) {
            match message {
                Message::Action(action) => match model.handle_action(action) {
                    Effect::Quit => return Ok(()),
                    Effect::Poll => poller.due_ns = 0,
                    Effect::Suspend => screen.suspend()?,
                    Effect::Draw => poller.shorten(model, clock::monotonic_ns()),
                },
                Message::Polled(poll) => {
                    poller.is_polling = false;
                    model.handle_poll(*poll, clock::now());
                }
                Message::Resumed => screen.retake()?,
                Message::KeysFailed(error) => return Err(TopError::Terminal(error)),
                Message::Resized | Message::Wake => {}
            }
        }
    }
    Ok(())
}

fn next(messages: &Receiver<Message>, wait: Duration) -> Result<Option<Message>, TopError> {
    match messages.recv_timeout(wait) {
        Ok(message) => Ok(Some(message)),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(TopError::Thread("keys")),
    }
}

/// Forwards keys until the terminal is closed.
fn read_keys(sender: &SyncSender<Message>) {
    loop {
        let message = match event::read() {
            Ok(Event::Key(key)) => keys::action(&key).map(Message::Action),
            Ok(Event::Resize(..)) => Some(Message::Resized),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::Interrupted => None,
            Err(error) => {
                let _ = sender.send(Message::KeysFailed(error));
                return;
            }
        };
        if message.is_some_and(|message| sender.send(message).is_err()) {
            return;
        }
    }
}

/// The thread that polls the server, and when it is due.
struct Poller {
    requests: SyncSender<SessionSort>,
    thread: JoinHandle<()>,
    is_polling: bool,
    /// The next poll, CLOCK_MONOTONIC. A poll under way completes first.
    due_ns: u64,
}

impl Poller {
    fn start(client: AdminClient, sender: SyncSender<Message>, due_ns: u64) -> Result<Poller, TopError> {
        let (requests, receiver) = sync_channel::<SessionSort>(1);
        let serve = move || {
            for sort in receiver {
                if sender.send(Message::Polled(Box::new(client.poll(sort)))).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("poller".into());
        let thread = thread.spawn(serve).map_err(|_| TopError::Thread("poller"))?;
        Ok(Poller { requests, thread, is_polling: false, due_ns })
    }

    fn poll_if_due(&mut self, model: &Model, now_ns: u64) -> Result<(), TopError> {
        // The thread only ends by a panic, whose message is on the terminal by now.
        if self.thread.is_finished() {
            return Err(TopError::Thread("poller"));
        }
        if self.is_polling || model.is_paused || now_ns < self.due_ns {
            return Ok(());
        }
        match self.requests.try_send(model.sort) {
            Ok(()) => {
                self.is_polling = true;
                self.due_ns = now_ns + model.interval_ns();
                Ok(())
            }
            Err(TrySendError::Full(_)) => {
                debug_assert!(false, "no request is queued unless a poll is under way");
                Ok(())
            }
            Err(TrySendError::Disconnected(_)) => Err(TopError::Thread("poller")),
        }
    }

    /// Brings the next poll forward if the interval became shorter.
    fn shorten(&mut self, model: &Model, now_ns: u64) {
        self.due_ns = self.due_ns.min(now_ns + model.interval_ns());
    }

    /// How long the main thread may wait for a message.
    fn time_to_wait(&self, model: &Model) -> Duration {
        if self.is_polling || model.is_paused {
            return WAIT_MAX;
        }
        let left = Duration::from_nanos(self.due_ns.saturating_sub(clock::monotonic_ns()));
        left.min(WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use tickcast_client::TlsOptions;

    use super::*;

    #[test]
    fn a_shorter_interval_applies_at_once_and_a_longer_one_after_the_next_poll() {
        let (sender, _messages) = sync_channel(1);
        let client = AdminClient::new("127.0.0.1:9".parse().unwrap(), &TlsOptions::default()).unwrap();
        let mut poller = Poller::start(client, sender, 60_000_000_000).unwrap();
        let mut model = Model::new("127.0.0.1:9".into(), 60_000);
        model.handle_action(Action::Faster);
        poller.shorten(&model, 1_000_000_000);
        assert_eq!(poller.due_ns, 31_000_000_000);
        for _ in 0..9 {
            model.handle_action(Action::Faster);
        }
        poller.shorten(&model, 2_000_000_000);
        assert_eq!(poller.due_ns, 2_100_000_000);
        model.handle_action(Action::Slower);
        poller.shorten(&model, 2_000_000_000);
        assert_eq!(poller.due_ns, 2_100_000_000);
    }
}
