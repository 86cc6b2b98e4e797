//! Man pages and shell completions, generated from the declared options.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// The completion script of a shell.
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut words = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tickcast", &mut words);
    words
}

/// Writes a man page for `tickcast` and each of its subcommands to a folder, which is created if necessary.
///
/// # Errors
/// Those of creating the folder and writing the files.
pub fn man(folder: &Path) -> io::Result<()> {
    write(Cli::command(), folder)
}

/// Writes the man pages of any command.
///
/// # Errors
/// As [`man`].
pub fn write(command: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn every_shell_completes_subcommands_and_options() {
        for shell in Shell::value_variants() {
            let words = String::from_utf8(completions(*shell)).unwrap();
            for word in ["serve", "drain-deadline", "completions"] {
                assert!(words.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn every_subcommand_that_is_shown_has_a_man_page() {
        let folder = std::env::temp_dir().join(format!("tickcast-{}-man", std::process::id()));
        man(&folder).unwrap();
        let command = Cli::command();
        for shown in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
            let page = fs::read_to_string(folder.join(format!("tickcast-{}.1", shown.get_name()))).unwrap();
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{page}");
        }
        let serve = fs::read_to_string(folder.join("tickcast-serve.1")).unwrap();
        assert!(serve.contains("drain\\-deadline"));
        assert!(folder.join("tickcast.1").exists() && !folder.join("tickcast-man.1").exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
