//! Examples and exit statuses of every command, for `--help` and for the man pages.

use clap::Command;

/// The examples and exit statuses of one command.
pub struct Notes {
    /// Name of its man page: `tickcast-serve`.
    pub page: &'static str,
    /// Command lines, each with its effect.
    pub examples: &'static [(&'static str, &'static str)],
    /// Exit statuses with their meaning.
    pub exit_status: &'static [(u8, &'static str)],
}

const USAGE: (u8, &str) = (2, "invalid command line");

/// The notes of `tickcast` and its subcommands.
pub const NOTES: [Notes; 10] = [
    Notes {
        page: "tickcast",
        examples: &[
            ("tickcast serve", "Serve simulated ticks on 127.0.0.1, and a page at http://127.0.0.1:9480/"),
            ("tickcast sub 'sim.>'", "Print these ticks"),
        ],
        exit_status: &[(0, "success"), (1, "failure"), USAGE],
    },
    Notes {
        page: "tickcast-serve",
        examples: &[
            (
                "tickcast serve --no-sim --tcp 0.0.0.0:9400 --allow-anonymous",
                "Serve what clients publish, to native clients of any host, without authentication",
            ),
            ("tickcast serve --replay market.ndjson --speed 2", "Replay a capture at twice its pace"),
            (
                "tickcast serve --config tickcast.toml --check-config",
                "Check a file, even for another machine",
            ),
        ],
        exit_status: &[
            (0, "stopped on request, or printed what was requested"),
            (1, "this machine cannot run it, or it cannot continue"),
            (2, "invalid option or file: every start would fail"),
        ],
    },
    Notes {
        page: "tickcast-sub",
        examples: &[
            ("tickcast sub 'market.*.trades' --count 10", "Print ten ticks"),
            (
                "tickcast sub '>' --server ws://example.com:9480/ws --json",
                "Print all topics of a server as JSON",
            ),
            ("tickcast sub t --append t.ndjson", "Collect every tick of a topic, even across restarts"),
        ],
        exit_status: &[
            (0, "the count was reached, or nobody reads the output any more"),
            (1, "no connection, or the server rejected the request"),
            USAGE,
        ],
    },
    Notes {
        page: "tickcast-pub",
        examples: &[
            ("tickcast pub market.x '{\"bid\":1.1}'", "Publish one tick"),
            (
                "tail -f prices.ndjson | tickcast pub market.x - --server unix:/run/tickcast.sock",
                "Publish each line",
            ),
        ],
        exit_status: &[
            (0, "the server has acknowledged every tick"),
            (1, "no connection, or a tick was refused or not acknowledged"),
            USAGE,
        ],
    },
    Notes {
        page: "tickcast-process",
        examples: &[("tickcast process ecg", "Find the heart beats of a server's ECG")],
        exit_status: &[(0, "stopped on request, or the end of the file"), (1, "failure"), USAGE],
    },
    Notes {
        page: "tickcast-process-ecg",
        examples: &[
            ("tickcast process ecg --json", "Find the heart beats of a server's ECG"),
            ("tickcast process ecg --file 100.hea --annotations 100.atr", "Score the detector on a record"),
        ],
        exit_status: &[
            (0, "stopped on request, the end of the file, or nobody reads the output any more"),
            (1, "no connection, the server refused a tick, or a file cannot be used"),
            USAGE,
        ],
    },
    Notes {
        page: "tickcast-token",
        examples: &[
            (
                "tickcast token --key secret.txt --sub alice --allow-sub 'market.>' --ttl 15m",
                "Make a token that expires after 15 minutes",
            ),
            (
                "openssl rand -hex 32 | tee token.txt | tickcast token --hash",
                "Make a static token and its hash",
            ),
        ],
        exit_status: &[
            (0, "the token or the hash was printed"),
            (1, "the key cannot be used, or the output cannot be written"),
            USAGE,
        ],
    },
    Notes {
        page: "tickcast-check",
        examples: &[
            ("tickcast check", "List what is required and what is recommended"),
            ("tickcast check --json", "The same, one JSON object per line"),
        ],
        exit_status: &[
            (0, "the machine meets all requirements of tickcast serve"),
            (1, "a requirement is missing"),
            USAGE,
        ],
    },
    Notes {
        page: "tickcast-top",
        examples: &[
            ("tickcast top", "Watch the server on this machine"),
            (
                "tickcast top --admin https://ticks.example.com:9490 --ca ca.pem",
                "Watch a server over TLS, with your own authority",
            ),
            ("tickcast top --once --interval 5s", "Print the rates of five seconds as text"),
        ],
        exit_status: &[
            (0, "ended by a key or a signal"),
            (1, "the server does not respond, or the terminal cannot be used"),
            USAGE,
        ],
    },
    Notes {
        page: "tickcast-completions",
        examples: &[("tickcast completions zsh", "Print the completion script for zsh")],
        exit_status: &[(0, "success"), (1, "the output cannot be written"), USAGE],
    },
];

/// Appends the notes to the help of a command and its subcommands.
pub fn in_help(command: Command, notes: &[Notes]) -> Command {
    let page = command.get_name().to_owned();
    with_notes(command, &page, notes)
}

fn with_notes(mut command: Command, page: &str, notes: &[Notes]) -> Command {
    if let Some(notes) = notes.iter().find(|notes| notes.page == page) {
        let before = command.get_after_help().map(|text| format!("{text}\n\n")).unwrap_or_default();
        command = command.after_help(before + &text(notes));
    }
    command.mut_subcommands(|subcommand| {
        let page = format!("{page}-{}", subcommand.get_name());
        with_notes(subcommand, &page, notes)
    })
}

fn text(notes: &Notes) -> String {
    let mut text = String::from("Examples:");
    for (line, effect) in notes.examples {
        text += &format!("\n  {line}\n      {effect}");
    }
    text += "\n\nExit status:";
    for (status, meaning) in notes.exit_status {
        text += &format!("\n  {status}  {meaning}");
    }
    text
}

/// The sections EXAMPLES and EXIT STATUS of a man page, in roff(7).
pub fn sections(notes: &Notes) -> String {
    let mut roff = String::from(".SH EXAMPLES\n");
    for (line, effect) in notes.examples {
        roff += &format!(".TP\n\\fB{}\\fR\n{}\n", escaped(line), escaped(effect));
    }
    roff += ".SH \"EXIT STATUS\"\n";
    for (status, meaning) in notes.exit_status {
        roff += &format!(".TP\n{status}\n{}\n", escaped(meaning));
    }
    roff
}

/// No line of the notes begins with a control character of roff, so only these letters need an escape.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::{Cli, HELP_WIDTH};

    /// The words of a command line as a shell splits it, without the part before a pipe.
    fn words(line: &str) -> Vec<String> {
        let command = line.rsplit(" | ").next().unwrap();
        let mut words = vec![String::new()];
        for (at, part) in command.split('\'').enumerate() {
            let is_quoted = at % 2 == 1;
            for (at, word) in part.split(' ').enumerate() {
                match words.last_mut() {
                    Some(last) if is_quoted && at > 0 => *last += &format!(" {word}"),
                    Some(last) if is_quoted || at == 0 => *last += word,
                    _ => words.push(word.to_owned()),
                }
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }

    #[test]
    fn every_example_is_a_valid_command_line_of_its_command() {
        for notes in &NOTES {
            assert!(!notes.examples.is_empty() && notes.exit_status[0].0 == 0, "{}", notes.page);
            for (line, _) in notes.examples {
                let words = words(line);
                if let Err(error) = Cli::command().try_get_matches_from(&words) {
                    panic!("{line}: {error}");
                }
                assert!(words.join("-").starts_with(notes.page), "{line}");
            }
        }
    }

    #[test]
    fn help_fits_the_width_that_is_promised() {
        fn check(command: &mut Command) {
            for text in [command.render_help(), command.render_long_help()] {
                for line in text.to_string().lines() {
                    assert!(line.chars().count() <= HELP_WIDTH, "{}: {line}", command.get_name());
                }
            }
            let names: Vec<String> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
            names.iter().for_each(|name| check(command.find_subcommand_mut(name).unwrap()));
        }
        let mut command = in_help(Cli::command(), &NOTES);
        command.build();
        check(&mut command);
    }
}
