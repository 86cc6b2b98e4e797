//! A real terminal that a test reads and types into: a pane of a tmux server of its own.

use std::{
    fs,
    path::PathBuf,
    process::{Command, id},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

use super::eventually;

/// A terminal that runs one command, ended on drop.
pub struct Terminal {
    /// The socket of its own tmux server.
    socket: PathBuf,
}

impl Terminal {
    /// Runs a shell command in a terminal of this size. The shell prints the terminal's settings before and after it, and
    /// finally `ended CODE`, so that settings that were not restored show.
    pub fn run(command: &str, columns: u16, rows: u16) -> Terminal {
        static TERMINALS: AtomicUsize = AtomicUsize::new(0);
        let socket = format!("tickcast-{}-{}", id(), TERMINALS.fetch_add(1, Relaxed));
        let terminal = Terminal { socket: std::env::temp_dir().join(socket) };
        let script = format!("stty -g; {command}; code=$?; stty -g; echo ended $code; exec sleep 600");
        let (columns, rows) = (columns.to_string(), rows.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, "/bin/sh", "-c", &script]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        // UTF-8 whatever the locale is, and no configuration file.
        command.args(["-u", "-f", "/dev/null", "-S"]).arg(&self.socket).args(arguments);
        for name in ["TMUX", "TICKCAST_ADMIN", "RUST_LOG", "NO_COLOR"] {
            command.env_remove(name);
        }
        // tmux also uses it as its default-shell.
        command.env("SHELL", "/bin/sh");
        let output = command.output().expect("tmux: scripts/test.sh installs it");
        assert!(output.status.success(), "tmux {arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The screen's text.
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p", "-J"])
    }

    /// Waits until `done` holds of the screen, and returns it.
    pub fn wait_until(&self, what: &str, done: impl Fn(&str) -> bool) -> String {
        let mut screen = String::new();
        eventually(&format!("{what} on a screen"), || {
            screen = self.screen();
            done(&screen)
        });
        screen
    }

    /// Waits until the screen contains `part`.
    pub fn wait_for(&self, part: &str) -> String {
        self.wait_until(part, |screen| screen.contains(part))
    }

    /// Types characters, or a key by its tmux name.
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Changes its size.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.tmux(&["resize-window", "-x", &columns.to_string(), "-y", &rows.to_string()]);
    }

    /// The command's process id, once the shell has started it.
    pub fn pid(&self) -> i32 {
        let shell = self.tmux(&["display-message", "-p", "#{pane_pid}"]);
        let children = format!("/proc/{0}/task/{0}/children", shell.trim());
        let mut pid = None;
        eventually("the command runs", || {
            let children = fs::read_to_string(&children).unwrap();
            pid = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
            pid.is_some()
        });
        pid.unwrap()
    }

    /// Waits for the end of the command; returns its exit code.
    pub fn exit_code(&self) -> i32 {
        let is_end = |line: &&str| line.starts_with("ended ");
        let screen = self.wait_until("the end", |screen| screen.lines().any(|line| is_end(&line)));
        let line = screen.lines().find(is_end).unwrap();
        line["ended ".len()..].parse().unwrap()
    }

    /// Asserts that the terminal is as it was before the command, which has ended. Not after a resize: tmux then mixes the
    /// main screen with the program's.
    pub fn assert_as_before(&self) {
        let screen = self.screen();
        let settings: Vec<&str> = screen.lines().filter(|line| line.split(':').count() > 10).collect();
        assert_eq!(settings.len(), 2, "{screen}");
        assert_eq!(settings[0], settings[1], "the terminal's settings before and after");
        let modes = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag} #{mouse_any_flag}"]);
        assert_eq!(modes.trim(), "0 1 0", "no other screen, a cursor, no mouse");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux").arg("-S").arg(&self.socket).arg("kill-server").output();
        // tmux does not remove it.
        let _ = fs::remove_file(&self.socket);
    }
}
