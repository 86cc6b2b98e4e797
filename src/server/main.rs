//! `tickcast`: parse, configure, run, exit code.

use std::{
    ffi::OsString,
    io::{self, Write},
    process::ExitCode,
    thread,
};

use tickcast::{
    cli::{Cli, Command, pages},
    commands,
    config::{
        Config,
        listener::{Address, Kind},
        secret_files,
        settings::Settings,
    },
    error::StartupError,
    logging,
    operator::{check, top},
    process::{activation::Passed, cores::Cores},
    sources::kind::SourceConfig,
    supervisor::{self, reload::Reload},
};

fn main() -> ExitCode {
    logging::init();
    let _flush = logging::FlushAtExit;
    let result = match Cli::read(std::env::args_os()).unwrap_or_else(|error| error.exit()).0.command {
        Command::Serve(_) => {
            let Err(error) = serve() else { return ExitCode::SUCCESS };
            let level = if error.exit_status() == 0 { log::Level::Info } else { log::Level::Error };
            error.to_string().lines().for_each(|line| log::log!(level, "{line}"));
            return ExitCode::from(error.exit_status());
        }
        Command::Sub(args) => commands::subscribe(&args).map_err(|error| error.to_string()),
        Command::Pub(args) => commands::publish(&args).map_err(|error| error.to_string()),
        Command::Process(args) => commands::process(&args).map_err(|error| error.to_string()),
        Command::Token(args) => commands::token(&args).map_err(|error| error.to_string()),
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
    let words: Vec<OsString> = std::env::args_os().collect();
    let settings = Settings::read(&words).unwrap_or_else(|error| error.exit());
    settings.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    if settings.args.print_config || settings.args.check_config {
        // The configuration may be for another machine, so this one does not matter.
        Config::new(&settings, None)?;
        let text = match settings.args.print_config {
            true => settings.to_toml(),
            false => "the configuration is valid\n".to_owned(),
        };
        let _ = io::stdout().lock().write_all(text.as_bytes());
        return Ok(());
    }
    let machine = Cores::of_process().ok();
    let config = Config::new(&settings, machine.as_ref())?;
    if config.cores.is_empty() {
        return Err(StartupError::NoCores);
    }
    logging::set_filter(&config.log);
    secret_files::warn_of_open(&settings, "");
    if let Some(node) = Some(&*config.limits.nodes.id).filter(|node| !node.is_empty()) {
        log::info!("node {node}");
    }
    if let Some((level, text)) = machine.as_ref().and_then(|cores| cores.quota_notice(config.shards)) {
        log::log!(level, "{text}");
    }
    // SAFETY: this process owns no descriptor but the standard streams yet, and has not changed its environment.
    let passed = unsafe { Passed::take()? };
    let from_file = settings.have_a_file();
    let mut before = settings;
    let read_config = move || -> Result<_, StartupError> {
        // The command line was valid at the start; only the file may have changed.
        let settings = Settings::read(&words).map_err(|error| StartupError::Executor(error.to_string()))?;
        settings.warnings.iter().for_each(|warning| log::warn!("SIGHUP: {warning}"));
        // Sources are not live, and reading an ECG record may take long.
        let config = Config::without_sources(&settings, machine.as_ref())?;
        secret_files::warn_of_open(&settings, "SIGHUP: ");
        let changes = settings.changes_since(&before);
        before = settings;
        Ok((config, changes))
    };
    let reload = from_file.then_some(Box::new(read_config) as Reload);
    supervisor::run(&config, passed, |addresses| announce(&config, addresses), reload)
}

/// Prints one line for scripts, then the next steps for a person.
fn announce(config: &Config, addresses: &[(Kind, Address)]) {
    let mut text = format!("listening {}\n", supervisor::listening::words(addresses, config.shards));
    let first = |kind: Kind| {
        let mut of_kind = addresses.iter().filter(|(has, _)| *has == kind);
        of_kind.find_map(|(_, address)| address.tcp())
    };
    let is_tls = |kind: Kind| {
        let mut of_kind = config.listeners.iter().filter(|listener| listener.kind == kind);
        of_kind
            .find(|listener| listener.address.tcp().is_some())
            .is_some_and(|listener| listener.tls.is_some())
    };
    let (native_scheme, http_scheme, websocket_scheme) = (
        if is_tls(Kind::Native) { "tls://" } else { "" },
        if is_tls(Kind::Http) { "https" } else { "http" },
        if is_tls(Kind::Http) { "wss" } else { "ws" },
    );
    let pattern = config.sources.first().map_or(">", SourceConfig::pattern);
    // The name under which this program was started, so that the next step works as printed: `target/release/tickcast` after
    // `cargo run`.
    let program = std::env::args().next().unwrap_or_else(|| "tickcast".into());
    if let Some(tcp) = first(Kind::Native) {
        text += &format!("next: {program} sub '{pattern}' --server {native_scheme}{tcp}\n");
    }
    if let Some(http) = first(Kind::Http) {
        let encoded = pattern.replace('>', "%3E");
        text += &format!(
            "or open {http_scheme}://{http}/ in a browser, or a WebSocket: \
             {websocket_scheme}://{http}/ws?topics={encoded}\n"
        );
    }
    if let Some(tcp) = first(Kind::Native) {
        for (what, words) in config.sources.iter().filter_map(|source| source.kind().next) {
            text += &format!("{what}: {program} {words} --server {native_scheme}{tcp}\n");
        }
    }
    // From a separate thread, because the reader may be stuck; a closed standard output must not end a server either.
    let write = move || drop(io::stdout().lock().write_all(text.as_bytes()));
    drop(thread::Builder::new().name("announce".into()).spawn(write));
}
