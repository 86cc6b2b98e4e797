//! Man pages and shell completions, generated from the declared options.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{
    Cli,
    notes::{self, NOTES, Notes},
};

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
    write(Cli::command(), &NOTES, folder)
}

/// Writes the man pages of any command, with these notes. Hidden subcommands have none.
///
/// # Errors
/// As [`man`].
pub fn write(command: Command, notes: &[Notes], folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    write_built(&command, notes, folder)
}

fn write_built(command: &Command, notes: &[Notes], folder: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set()) {
        write_built(subcommand, notes, folder)?;
    }
    let page = Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    let mut text = text.replace("\n.SH EXTRA\n", "\n.SH NOTES\n");
    let name = page.get_filename();
    if let Some(notes) = notes.iter().find(|notes| format!("{}.1", notes.page) == name) {
        let end = text.find("\n.SH VERSION\n").map_or(text.len(), |at| at + 1);
        text.insert_str(end, &notes::sections(notes));
    }
    fs::write(folder.join(name), text)
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
            for section in ["NAME", "SYNOPSIS", "EXAMPLES", "\"EXIT STATUS\""] {
                assert_eq!(page.matches(&format!("\n.SH {section}\n")).count(), 1, "{section}: {page}");
            }
        }
        let serve = fs::read_to_string(folder.join("tickcast-serve.1")).unwrap();
        assert!(serve.contains("drain\\-deadline"));
        let ecg = fs::read_to_string(folder.join("tickcast-process-ecg.1")).unwrap();
        assert!(ecg.contains(".SH EXAMPLES\n.TP\n\\fBtickcast process ecg \\-\\-json\\fR\n"), "{ecg}");
        assert!(folder.join("tickcast.1").exists() && !folder.join("tickcast-man.1").exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
