//! `tickcast top`: the terminal, the clock and the threads around `crate::operator::top`.
//!
//! ```text
//!  "keys" --Action-->  main: model, screen  <--answers-- "asker" --HTTP--> admin listener
//!  "signals" --stop-->        '--------------request------^
//! ```
//!
//! A server that hangs is waited for by the asker alone: keys are answered meanwhile.

use std::{
    io::{self, ErrorKind, IsTerminal, Write},
    sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    thread::{self, JoinHandle},
    time::Duration,
};

use log::LevelFilter;
use ratatui::{
    DefaultTerminal,
    crossterm::{
        event::{self, Event},
        terminal::is_raw_mode_enabled,
    },
};

use super::ask::Asker;
use crate::{
    clock,
    operator::top::{
        TopArgs, TopError,
        answers::Answers,
        keys::{self, Action},
        model::{Effect, Model},
        text,
        view::{self, Palette},
    },
    process::signals,
    sources::StopFlag,
};
use tickcast_core::{now::Now, shard::survey::SessionSort};

/// Events that wait for the main thread; whoever has more waits.
const EVENTS_MAX: usize = 64;
/// Longest wait before the time that is shown, and the threads, are looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What the main thread is told.
enum Message {
    Action(Action),
    /// The terminal has another size.
    Resized,
    /// The terminal has no more keys.
    KeysFailed(io::Error),
    Look(Box<Result<Answers, String>>),
    /// Something else is to be looked at.
    Woken,
}

/// Runs `tickcast top` until the operator, or a signal, ends it; with `--once`, for two looks.
///
/// # Errors
/// [`TopError`]; none when the output's reader went away.
pub fn run(args: &TopArgs) -> Result<(), TopError> {
    if args.admin.port() == 0 {
        return Err(TopError::Port(args.admin));
    }
    let asker = Asker::new(args.admin);
    let mut model = Model::new(args.admin.to_string(), args.interval.ns / 1_000_000);
    if args.once {
        return once(&asker, &mut model);
    }
    if !io::stdout().is_terminal() {
        return Err(TopError::NotATerminal);
    }
    // With signals as they are: a server that hangs is waited for, and Ctrl-C ends that.
    look(&asker, &mut model)?;
    // Before any thread is there that stays.
    signals::block().map_err(TopError::Signals)?;
    let level = ::log::max_level();
    // Nothing is written on the screen but the screen.
    ::log::set_max_level(LevelFilter::Off);
    let result = watch(asker, &mut model);
    ::log::set_max_level(level);
    result
}

/// The first looks: a server that does not answer at all ends it.
fn look(asker: &Asker, model: &mut Model) -> Result<(), TopError> {
    let unreachable = |reason| TopError::Unreachable(asker.address(), reason);
    let answers = asker.ask(model.sort).map_err(unreachable)?;
    model.handle_look(Ok(answers), clock::now());
    Ok(())
}

fn once(asker: &Asker, model: &mut Model) -> Result<(), TopError> {
    look(asker, model)?;
    clock::sleep_ns(model.interval_ns());
    look(asker, model)?;
    let mut out = io::stdout().lock();
    match out.write_all(text::text(model).as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(TopError::Output(error)),
        _ => Ok(()),
    }
}

/// The terminal as a screen, until it is dropped. A panic, on whatever thread, gives it back before its text.
struct Screen(DefaultTerminal);

impl Screen {
    fn enter() -> Result<Screen, TopError> {
        ratatui::try_init().map(Screen).map_err(|error| {
            let _ = ratatui::try_restore();
            TopError::Terminal(error)
        })
    }

    fn draw(&mut self, model: &Model, now: Now, palette: Palette) -> Result<(), TopError> {
        let drawn = self.0.draw(|frame| view::draw(model, now, palette, frame.area(), frame.buffer_mut()));
        drawn.map(|_| ()).map_err(TopError::Terminal)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // After a panic it is given back, and its text stands there: a second time would put the cursor before it. A
        // terminal that has gone needs nothing.
        if is_raw_mode_enabled().unwrap_or(true) {
            let _ = ratatui::try_restore();
        }
    }
}

/// The screen, from the first figures to the end.
fn watch(asker: Asker, model: &mut Model) -> Result<(), TopError> {
    let (told, messages) = sync_channel(EVENTS_MAX);
    let stop = StopFlag::default();
    let (stopped, wake) = (stop.clone(), told.clone());
    let notify = move |_| {
        stopped.set();
        // If there is no room, the main thread is awake.
        let _ = wake.try_send(Message::Woken);
    };
    signals::watch(notify, || {}, signals::HangUp::Stops).map_err(TopError::Signals)?;
    // The first look was before the screen: rates of the moment since would say nothing.
    let mut desk = Desk::open(asker, told.clone(), clock::monotonic_ns() + model.interval_ns())?;
    let mut screen = Screen::enter()?;
    let thread = thread::Builder::new().name("keys".into());
    thread.spawn(move || read_keys(&told)).map_err(|_| TopError::Thread("keys"))?;
    let palette = Palette { has_colours: std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()) };
    while !stop.is_set() {
        let now = clock::now();
        // First, so that nothing is drawn over what a thread that panicked has written.
        desk.look_if_due(model, now.monotonic_ns)?;
        screen.draw(model, now, palette)?;
        let Some(first) = next(&messages, desk.wait(model))? else { continue };
        // What came together is drawn together.
        for message in std::iter::once(first).chain(messages.try_iter().take(EVENTS_MAX)) {
            match message {
                Message::Action(action) => match model.handle_action(action) {
                    Effect::Quit => return Ok(()),
                    Effect::Look => desk.due_ns = 0,
                    Effect::Draw => desk.hasten(model, clock::monotonic_ns()),
                },
                Message::Look(look) => {
                    desk.is_asking = false;
                    model.handle_look(*look, clock::now());
                }
                Message::KeysFailed(error) => return Err(TopError::Terminal(error)),
                Message::Resized | Message::Woken => {}
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

/// Passes on what is typed, until the terminal has nothing more.
fn read_keys(told: &SyncSender<Message>) {
    loop {
        let message = match event::read() {
            Ok(Event::Key(key)) => keys::action(&key).map(Message::Action),
            Ok(Event::Resize(..)) => Some(Message::Resized),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::Interrupted => None,
            Err(error) => {
                let _ = told.send(Message::KeysFailed(error));
                return;
            }
        };
        if message.is_some_and(|message| told.send(message).is_err()) {
            return;
        }
    }
}

/// When the server is asked, and the thread that does.
struct Desk {
    requests: SyncSender<SessionSort>,
    asker: JoinHandle<()>,
    is_asking: bool,
    /// The next look, CLOCK_MONOTONIC; one that is under way is waited for.
    due_ns: u64,
}

impl Desk {
    fn open(asker: Asker, told: SyncSender<Message>, due_ns: u64) -> Result<Desk, TopError> {
        let (requests, asked) = sync_channel::<SessionSort>(1);
        let answer = move || {
            for sort in asked {
                if told.send(Message::Look(Box::new(asker.ask(sort)))).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("asker".into());
        let asker = thread.spawn(answer).map_err(|_| TopError::Thread("asker"))?;
        Ok(Desk { requests, asker, is_asking: false, due_ns })
    }

    fn look_if_due(&mut self, model: &Model, now_ns: u64) -> Result<(), TopError> {
        // It ends only when it panics, and what it said has been seen.
        if self.asker.is_finished() {
            return Err(TopError::Thread("asker"));
        }
        if self.is_asking || model.is_paused || now_ns < self.due_ns {
            return Ok(());
        }
        match self.requests.try_send(model.sort) {
            Ok(()) => {
                self.is_asking = true;
                self.due_ns = now_ns + model.interval_ns();
                Ok(())
            }
            Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => Err(TopError::Thread("asker")),
        }
    }

    /// The interval may have become shorter: the look that is awaited comes within it.
    fn hasten(&mut self, model: &Model, now_ns: u64) {
        self.due_ns = self.due_ns.min(now_ns + model.interval_ns());
    }

    /// How long nothing has to be done unless something is told.
    fn wait(&self, model: &Model) -> Duration {
        if self.is_asking || model.is_paused {
            return LOOK_AGAIN;
        }
        let left = Duration::from_nanos(self.due_ns.saturating_sub(clock::monotonic_ns()));
        left.min(LOOK_AGAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shorter_interval_begins_at_once_and_a_longer_one_after_the_next_look() {
        let (told, _messages) = sync_channel(1);
        let mut desk = Desk::open(Asker::new("127.0.0.1:9".parse().unwrap()), told, 60_000_000_000).unwrap();
        let mut model = Model::new("127.0.0.1:9".into(), 60_000);
        model.handle_action(Action::Faster);
        desk.hasten(&model, 1_000_000_000);
        assert_eq!(desk.due_ns, 31_000_000_000);
        for _ in 0..9 {
            model.handle_action(Action::Faster);
        }
        desk.hasten(&model, 2_000_000_000);
        assert_eq!(desk.due_ns, 2_100_000_000);
        model.handle_action(Action::Slower);
        desk.hasten(&model, 2_000_000_000);
        assert_eq!(desk.due_ns, 2_100_000_000);
    }
}
