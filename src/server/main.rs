//! `tickcast`: parse, configure, run, exit code.

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use tickcast::{
    cli::{Cli, Command, pages},
    commands,
    config::{
        Config, Source,
        file::Options,
        listener::{Address, Kind},
    },
    error::StartupError,
    logging,
    operator::{check, top},
    process::activation::Passed,
    supervisor::{self, reload::Reload},
};

fn main() -> ExitCode {
    logging::init();
    let result = match Cli::parse().command {
        Command::Serve(_) => {
            let Err(error) = serve() else { return ExitCode::SUCCESS };
            log::error!("{error}");
            return ExitCode::from(error.exit_status());
        }
        Command::Sub(args) => commands::subscribe(&args).map_err(|error| error.to_string()),
        Command::Pub(args) => commands::publish(&args).map_err(|error| error.to_string()),
        Command::Process(args) => commands::process(&args).map_err(|error| error.to_string()),
        Command::Check(args) => return check::run(&args),
        Command::Top(args) => top::run::run(&args).map_err(|error| error.to_string()),
        Command::Completions { shell } => {
            let written = io::stdout().lock().write_all(&pages::completions(shell));
            written.map_err(|error| format!("the completions cannot be written: {error}"))
        }
        Command::Man { out } => pages::man(&out).map_err(|error| format!("--out {}: {error}", out.display())),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            log::error!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), StartupError> {
    // First of all: nothing else may be open.
    let passed = Passed::take()?;
    let words: Vec<OsString> = std::env::args_os().collect();
    let options = Options::read(&words)?.unwrap_or_else(|error| error.exit());
    let allowed: Vec<usize> =
        core_affinity::get_core_ids().ok_or(StartupError::NoCores)?.into_iter().map(|core| core.id).collect();
    let config = Config::new(&options.args, &allowed).map_err(|error| options.locate(error))?;
    logging::set_filter(&config.log);
    if options.args.print_config {
        let _ = io::stdout().lock().write_all(options.to_toml().as_bytes());
        return Ok(());
    }
    if options.args.check_config {
        let _ = writeln!(io::stdout().lock(), "the configuration is good");
        return Ok(());
    }
    let from_file = options.have_a_file();
    let mut before = options;
    let read_again = move || -> Result<_, StartupError> {
        let refused = |error: clap::Error| StartupError::Option("--config", error.to_string());
        let options = Options::read(&words)?.map_err(refused)?;
        // Sources are not live, and a record may be as long as a day.
        let config =
            Config::without_sources(&options.args, &allowed).map_err(|error| options.locate(error))?;
        let changes = options.changes_since(&before);
        before = options;
        Ok((config, changes))
    };
    let reload = from_file.then_some(Box::new(read_again) as Reload);
    supervisor::run(&config, passed, |addresses| announce(&config, addresses), reload)
}

/// One line that scripts can read, then what a person would do next.
fn announce(config: &Config, addresses: &[(Kind, Address)]) {
    let mut text = format!("listening {}\n", supervisor::listening_words(addresses, config.shards));
    let first = |kind: Kind| {
        let mut of_kind = addresses.iter().filter(|(has, _)| *has == kind);
        of_kind.find_map(|(_, address)| address.tcp())
    };
    let pattern = match config.sources.first() {
        Some(Source::Simulator(_)) => "sim.>",
        Some(Source::Ecg(_)) => "ecg.*",
        _ => ">",
    };
    // As this program was called, so that the next step works as printed: `target/release/tickcast` after `cargo run`.
    let program = std::env::args().next().unwrap_or_else(|| "tickcast".into());
    if let Some(tcp) = first(Kind::Native) {
        text += &format!("next: {program} sub '{pattern}' --server {tcp}\n");
    }
    if let Some(http) = first(Kind::Http) {
        let encoded = pattern.replace('>', "%3E");
        text += &format!(
            "or open http://{http}/ in a browser, or a WebSocket: ws://{http}/ws?topics={encoded}\n"
        );
    }
    let is_ecg = |source: &Source| matches!(source, Source::Ecg(_));
    if let Some(tcp) = first(Kind::Native).filter(|_| config.sources.iter().any(is_ecg)) {
        text += &format!("and for the heart beats: {program} process ecg --server {tcp}\n");
    }
    // A closed standard output must not end a server.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}
