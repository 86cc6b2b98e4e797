//! The configuration file: the options of `tickcast serve` by their long names, in TOML.
//!
//! What is typed goes before the environment, that before the file, that before the defaults. A file is made into the
//! words that would have been typed, so that every option is declared once, with its help, its default and its checks.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::OsString,
    fmt::Write,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, CommandFactory, FromArgMatches, error::ErrorKind, parser::ValueSource,
};
use toml::{Spanned, Value};

use super::reload::{Change, LIVE};
use crate::{
    cli::{Cli, Command, ServeArgs},
    error::StartupError,
};

/// Longest file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Options that say how to read the others.
const NOT_IN_A_FILE: [&str; 5] = ["config", "check-config", "print-config", "help", "version"];
/// The heading of options without one.
const GENERAL: &str = "General";
/// How alike an unknown key and a known one must be for the known one to be suggested (Jaro-Winkler, 0 to 1).
const ALIKE_LOWEST: f64 = 0.75;

/// One key of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// The option's long name.
    option: String,
    line: usize,
    /// As it would be typed; none for a switch that is on.
    values: Vec<String>,
}

/// The options of `tickcast serve`, and where each comes from.
#[derive(Clone, Debug)]
pub struct Options {
    /// What they are.
    pub args: Box<ServeArgs>,
    matches: ArgMatches,
    file: Option<PathBuf>,
    entries: Vec<Entry>,
}

impl Options {
    /// Reads the file that the words typed (or the environment) name, if they do, and puts it under them.
    ///
    /// # Errors
    /// Words that clap refuses, with its own text; [`StartupError::File`] for what the file has wrong.
    pub fn read(words: &[OsString]) -> Result<Result<Options, clap::Error>, StartupError> {
        let typed = match Cli::command().try_get_matches_from(words) {
            Ok(matches) => matches,
            // What is missing may stand in the file.
            Err(error) => return Ok(Err(error)),
        };
        let Some(of_serve) = typed.subcommand_matches("serve") else {
            return Ok(Err(clap::Error::new(ErrorKind::InvalidSubcommand)));
        };
        let Some(path) = of_serve.get_one::<PathBuf>("config").cloned() else {
            return Ok(Options::new(typed, None, Vec::new()));
        };
        let entries = read(&path)?;
        let given: HashSet<String> = options()
            .filter(|arg| {
                let source = of_serve.value_source(arg.get_id().as_str());
                matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable))
            })
            .filter_map(|arg| arg.get_long().map(str::to_owned))
            .collect();
        // The file's words go first: clap names the later ones where two do not go together.
        let of_file = entries.iter().filter(|entry| !given.contains(&entry.option)).flat_map(Entry::words);
        let serve = words.iter().position(|word| word == "serve").map_or(words.len(), |at| at + 1);
        let all = words[..serve].iter().cloned().chain(of_file).chain(words[serve..].iter().cloned());
        let whole = Cli::command().try_get_matches_from(all).map_err(|error| {
            StartupError::File(path.clone(), None, format!("with what was typed: {}", brief(&error)))
        })?;
        Ok(Options::new(whole, Some(path), entries))
    }

    fn new(matches: ArgMatches, file: Option<PathBuf>, entries: Vec<Entry>) -> Result<Options, clap::Error> {
        match Cli::from_arg_matches(&matches)?.command {
            Command::Serve(args) => {
                let matches = matches.subcommand_matches("serve").cloned().unwrap_or_default();
                Ok(Options { args, matches, file, entries })
            }
            _ => Err(clap::Error::new(ErrorKind::InvalidSubcommand)),
        }
    }

    /// Whether some of them stand in a file, which may be another one later.
    pub fn have_a_file(&self) -> bool {
        self.file.is_some()
    }

    /// Says where in the file an option stands that makes no sense.
    pub fn locate(&self, error: StartupError) -> StartupError {
        match (&error, &self.file) {
            (StartupError::Option(option, text), Some(path)) => {
                match self.entries.iter().find(|entry| option.strip_prefix("--") == Some(&entry.option)) {
                    Some(entry) if self.is_from_file(entry) => StartupError::File(
                        path.clone(),
                        Some(entry.line),
                        format!("{}: {text}", key(&entry.option)),
                    ),
                    _ => error,
                }
            }
            _ => error,
        }
    }

    /// What is another than before.
    pub fn changes_since(&self, before: &Options) -> Vec<Change> {
        let change = |arg: Arg| {
            let (id, long) = (arg.get_id().as_str(), arg.get_long()?);
            let value = |options: &Options| match is_switch(&arg) {
                true => options.matches.get_flag(id).to_string(),
                false => {
                    let values = options.matches.get_raw(id).into_iter().flatten();
                    values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(", ")
                }
            };
            let (was, is) = (value(before), value(self));
            let is_live = LIVE.contains(&long);
            (was != is).then(|| Change { key: key(long), before: was, after: is, is_live })
        };
        options().filter_map(change).collect()
    }

    fn is_from_file(&self, entry: &Entry) -> bool {
        // What was typed, too, is not taken from the file.
        let id = options().find(|arg| arg.get_long() == Some(&entry.option));
        let values = id.and_then(|arg| self.matches.get_raw(arg.get_id().as_str()));
        let used: Vec<OsString> = values.into_iter().flatten().map(Into::into).collect();
        entry.values.is_empty() || used == entry.values.iter().map(OsString::from).collect::<Vec<_>>()
    }

    /// Every option as it is used, as a file, with where it comes from.
    pub fn to_toml(&self) -> String {
        let head = "# tickcast serve, as it would be configured\n";
        by_heading(head, |arg, text| {
            let _ = writeln!(text, "{}", self.line_of(arg, arg.get_long().unwrap_or_default()));
        })
    }

    fn line_of(&self, arg: &Arg, option: &str) -> String {
        let id = arg.get_id().as_str();
        let entry = self.entries.iter().find(|entry| entry.option == option);
        let source = match (self.matches.value_source(id), entry) {
            (Some(ValueSource::EnvVariable), _) => {
                format!("environment, {}", arg.get_env().unwrap_or_default().to_string_lossy())
            }
            (Some(ValueSource::CommandLine), Some(entry)) if self.is_from_file(entry) => {
                format!("file, line {}", entry.line)
            }
            (Some(ValueSource::CommandLine), _) => "typed".to_owned(),
            _ => "default".to_owned(),
        };
        // What is not set stays a comment: some options go only with others.
        let mark = if source == "default" { "# " } else { "" };
        if is_switch(arg) {
            return format!("{mark}{} = {} # {source}", key(option), self.matches.get_flag(id));
        }
        let values: Vec<String> = self
            .matches
            .get_raw(id)
            .into_iter()
            .flatten()
            .map(|value| literal(&value.to_string_lossy()))
            .collect();
        match (values.as_slice(), is_list(arg)) {
            ([], _) => format!("# {} = # not set: see --help", key(option)),
            (values, true) => format!("{mark}{} = [{}] # {source}", key(option), values.join(", ")),
            (values, false) => format!("{mark}{} = {} # {source}", key(option), values[0]),
        }
    }
}

/// The file that is shipped: every option with its help and its default, as comments, but for what a server that is not
/// a demonstration wants.
pub fn documented() -> String {
    let head = "\
# tickcast: what `tickcast serve --config FILE` reads.
#
# Every key is an option of `tickcast serve --help` with _ for -. What is typed, or stands in the environment, goes before
# what stands here. What is commented out is the default. Check a change with: tickcast serve --config FILE --check-config
";
    by_heading(head, |arg, text| {
        let option = arg.get_long().unwrap_or_default();
        for line in arg.get_help().map(ToString::to_string).unwrap_or_default().lines() {
            wrapped(line, text);
        }
        let defaults: Vec<String> =
            arg.get_default_values().iter().map(|value| literal(&value.to_string_lossy())).collect();
        let _ = match (option, defaults.as_slice()) {
            ("no-sim", _) => writeln!(text, "no_sim = true\n"),
            _ if is_switch(arg) => writeln!(text, "# {} = false\n", key(option)),
            (_, [value]) => writeln!(text, "# {} = {value}\n", key(option)),
            _ if is_list(arg) => writeln!(text, "# {} = []\n", key(option)),
            _ => writeln!(text, "# {} =\n", key(option)),
        };
    })
}

/// A comment in lines of at most 100 characters.
fn wrapped(comment: &str, text: &mut String) {
    let mut line = String::from("#");
    for word in comment.split_whitespace() {
        if line.len() + 1 + word.len() > 100 {
            let _ = writeln!(text, "{line}");
            line.truncate(1);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

fn by_heading(head: &str, mut write: impl FnMut(&Arg, &mut String)) -> String {
    let mut text = head.to_owned();
    let all: Vec<Arg> = options().collect();
    let mut headings: Vec<&str> = Vec::new();
    for arg in &all {
        let heading = arg.get_help_heading().unwrap_or(GENERAL);
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        let _ = write!(text, "\n## {heading}\n\n");
        all.iter()
            .filter(|arg| arg.get_help_heading().unwrap_or(GENERAL) == heading)
            .for_each(|arg| write(arg, &mut text));
    }
    text
}

impl Entry {
    fn words(&self) -> Vec<OsString> {
        match self.values.as_slice() {
            [] => vec![format!("--{}", self.option).into()],
            values => values.iter().map(|value| format!("--{}={value}", self.option).into()).collect(),
        }
    }
}

/// The options that may stand in a file.
fn options() -> impl Iterator<Item = Arg> {
    let command = Cli::command();
    let serve = command.find_subcommand("serve").cloned().unwrap_or_default();
    let all: Vec<Arg> = serve.get_arguments().cloned().collect();
    all.into_iter().filter(|arg| arg.get_long().is_some_and(|long| !NOT_IN_A_FILE.contains(&long)))
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append)
}

/// An option's name in a file.
fn key(option: &str) -> String {
    option.replace('-', "_")
}

/// A value as TOML has it: numbers bare, all else quoted.
fn literal(value: &str) -> String {
    match value.parse::<i64>() {
        Ok(number) if number.to_string() == value => value.to_owned(),
        _ => Value::String(value.to_owned()).to_string(),
    }
}

fn read(path: &Path) -> Result<Vec<Entry>, StartupError> {
    let refuse = |line: Option<usize>, text: String| StartupError::File(path.to_owned(), line, text);
    let unreadable = |error: std::io::Error| refuse(None, format!("cannot be read: {error} (--config)"));
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(refuse(None, format!("{bytes} bytes: at most {FILE_BYTES_MAX}")));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let line_at = |at: usize| 1 + text.as_bytes().iter().take(at).filter(|&&byte| byte == b'\n').count();
    let table: BTreeMap<Spanned<String>, Spanned<Value>> = toml::from_str(&text).map_err(|error| {
        refuse(error.span().map(|span| line_at(span.start)), error.message().replace('\n', " "))
    })?;
    let known: Vec<Arg> = options().collect();
    let mut entries = Vec::new();
    for (name, value) in table {
        let line = line_at(name.span().start);
        let name = name.into_inner();
        let Some(arg) = known.iter().find(|arg| arg.get_long().is_some_and(|long| key(long) == name)) else {
            return Err(refuse(Some(line), unknown(&name, &known)));
        };
        let option = arg.get_long().unwrap_or_default().to_owned();
        let Some(values) =
            values(arg, value.into_inner()).map_err(|text| refuse(Some(line), format!("{name}: {text}")))?
        else {
            continue;
        };
        let entry = Entry { option, line, values };
        check(&entry).map_err(|text| refuse(Some(line), format!("{name}: {text}")))?;
        entries.push(entry);
    }
    entries.sort_by_key(|entry| entry.line);
    Ok(entries)
}

/// A value as it would be typed; `None` for a switch that is off.
fn values(arg: &Arg, value: Value) -> Result<Option<Vec<String>>, String> {
    let one = |value: Value| match value {
        Value::String(text) => Ok(text),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        other => Err(format!("a {} where a value is wanted", other.type_str())),
    };
    match (is_switch(arg), is_list(arg), value) {
        (true, _, Value::Boolean(on)) => Ok(on.then(Vec::new)),
        (true, _, other) => Err(format!("true or false, not a {}", other.type_str())),
        (_, true, Value::Array(values)) if values.is_empty() => Ok(None),
        (_, true, Value::Array(values)) => values.into_iter().map(one).collect::<Result<_, _>>().map(Some),
        (_, _, value) => Ok(Some(vec![one(value)?])),
    }
}

/// Whether clap takes the value. That other options are missing shows when all are together.
fn check(entry: &Entry) -> Result<(), String> {
    let words = ["tickcast", "serve"].map(OsString::from).into_iter().chain(entry.words());
    match Cli::command().try_get_matches_from(words) {
        Err(error) if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) => {
            Err(brief(&error))
        }
        _ => Ok(()),
    }
}

fn unknown(name: &str, known: &[Arg]) -> String {
    let alike = known
        .iter()
        .filter_map(|arg| arg.get_long().map(key))
        .map(|known| (strsim::jaro_winkler(&name.replace('-', "_"), &known), known))
        .filter(|(alike, _)| *alike >= ALIKE_LOWEST)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    match alike {
        Some((_, known)) => format!("unknown key {name:?}; did you mean {known}?"),
        None => format!("unknown key {name:?}; `tickcast serve --print-config` has all of them"),
    }
}

/// What clap says, without usage and hints.
fn brief(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().take_while(|line| !line.is_empty()).map(str::trim);
    lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The options with a file of this text, and these words.
    fn options_of(name: &str, text: &str, words: &str) -> Result<Options, String> {
        let path = std::env::temp_dir().join(format!("tickcast-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        let typed = format!("tickcast serve --config {} {words}", path.display());
        let words: Vec<OsString> = typed.split_whitespace().map(OsString::from).collect();
        let options = Options::read(&words);
        std::fs::remove_file(&path).unwrap();
        options.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_typed_goes_before_the_file_and_that_before_the_defaults() {
        let text =
            "behind_ms = 7\nping_timeout_ms = 70\nno_sim = true\npolicy = [\"a.>=drop\", \"conflate\"]\n";
        let options = options_of("order", text, "--behind-ms 9").unwrap();
        assert_eq!((options.args.behind_ms, options.args.ping_timeout_ms), (9, 70));
        assert!(options.args.no_sim);
        assert_eq!(options.args.policy, ["a.>=drop", "conflate"]);
        assert_eq!(options.args.stall_deadline_ms, crate::limits::STALL_DEADLINE_MS_DEFAULT);
        let options = options_of("list", text, "--policy drop").unwrap();
        assert_eq!(options.args.policy, ["drop"], "a list that is typed stands for the file's");
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line_and_a_suggestion() {
        let error = options_of("unknown", "no_sim = true\n\nbehind_mss = 7\n", "").unwrap_err();
        assert!(error.contains("line 3") && error.contains("did you mean behind_ms?"), "{error}");
        let error = options_of("dash", "behind-ms = 7\n", "").unwrap_err();
        assert!(error.contains("line 1") && error.contains("did you mean behind_ms?"), "{error}");
        let error = options_of("far", "xyzzy = 7\n", "").unwrap_err();
        assert!(error.contains("--print-config"), "{error}");
        let error = options_of("meta", "check_config = true\n", "").unwrap_err();
        assert!(error.contains("unknown key"), "{error}");
    }

    #[test]
    fn values_that_do_not_fit_are_refused_with_their_line() {
        for (name, text, line) in [
            ("type", "# one\nbehind_ms = true\n", "line 2"),
            ("text", "behind_ms = \"soon\"\n", "line 1"),
            ("range", "shards = 70000\n", "line 1"),
            ("switch", "\n\nno_sim = 1\n", "line 3"),
            ("choice", "identity_conflict = \"fight\"\n", "line 1"),
            ("syntax", "tcp = \"127.0.0.1:0\"\nhttp =\n", "line 2"),
            ("twice", "shards = 1\nshards = 2\n", "line 2"),
            ("table", "[shards]\na = 1\n", "line 1"),
        ] {
            let error = options_of(name, text, "").unwrap_err();
            assert!(error.contains(line) && error.contains(".toml"), "{name}: {error}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_refused_by_name() {
        let words = ["tickcast", "serve", "--config", "/nonexistent/tickcast.toml"].map(OsString::from);
        let error = Options::read(&words).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/tickcast.toml") && error.contains("--config"), "{error}");
    }

    #[test]
    fn an_option_that_makes_no_sense_is_found_in_the_file() {
        let options = options_of("locate", "no_sim = true\nping_timeout_ms = 0\n", "").unwrap();
        let error = crate::config::Config::new(&options.args, &[0]).unwrap_err();
        let text = options.locate(error).to_string();
        assert!(text.contains("line 2: ping_timeout_ms"), "{text}");
    }

    #[test]
    fn the_shipped_file_is_what_the_options_say_and_is_good() {
        let shipped = include_str!("../../../systemd/tickcast.toml");
        let made = documented();
        if shipped != made {
            let path = std::env::temp_dir().join("tickcast.toml");
            std::fs::write(&path, &made).unwrap();
            panic!("systemd/tickcast.toml is not what the options say; as it should be: {}", path.display());
        }
        let options = options_of("shipped", shipped, "").unwrap();
        assert!(crate::config::Config::new(&options.args, &[0]).unwrap().sources.is_empty());
    }

    #[test]
    fn every_option_that_is_live_is_there_and_changes_say_which_are() {
        let known: Vec<String> = options().filter_map(|arg| arg.get_long().map(str::to_owned)).collect();
        assert!(LIVE.iter().all(|live| known.iter().any(|known| known == live)), "{known:?}");
        let before = options_of("before", "behind_ms = 7\npolicy = [\"drop\"]\n", "").unwrap();
        let after = options_of("after", "policy = [\"drop\", \"a=conflate\"]\nno_sim = true\n", "").unwrap();
        let changes: Vec<String> = after.changes_since(&before).iter().map(ToString::to_string).collect();
        assert_eq!(
            changes,
            [
                "no_sim: true instead of false: takes effect at the next start",
                "policy: drop, a=conflate instead of drop",
                "behind_ms: 500 instead of 7",
            ]
        );
        assert!(after.changes_since(&after).is_empty());
    }

    #[test]
    fn what_is_printed_is_read_as_the_same() {
        let text = "behind_ms = 7\nno_sim = true\npolicy = [\"a.>=drop\"]\nhistory = [\"9:100:5\"]\n";
        let printed = options_of("print", text, "--http 127.0.0.1:0").unwrap().to_toml();
        let again = options_of("again", &printed, "").unwrap();
        let strip = |text: &str| {
            text.lines().map(|line| line.split(" # ").next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(strip(&printed), strip(&again.to_toml()));
        assert!(printed.contains("behind_ms = 7 # file, line 1"), "{printed}");
        assert!(printed.contains("http = \"127.0.0.1:0\" # typed"), "{printed}");
        assert!(printed.contains("# stall_deadline_ms = 30000 # default"), "{printed}");
    }
}
