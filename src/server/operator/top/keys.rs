//! Key bindings.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What a key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Quit.
    Quit,
    /// Close the help if it is open, else quit.
    Back,
    /// Move the selection by rows; negative is up.
    Move(isize),
    /// Move the selection by pages; negative is up.
    Page(isize),
    /// Select the first row.
    First,
    /// Select the last row.
    Last,
    /// Focus the next list.
    NextPanel,
    /// Focus the previous list.
    PreviousPanel,
    /// Sort the sessions by the next criterion.
    Sort,
    /// Pause or resume polling.
    Pause,
    /// Shorten the interval.
    Faster,
    /// Lengthen the interval.
    Slower,
    /// Show or hide the help.
    Help,
    /// Stop, until the shell resumes it.
    Suspend,
}

/// The help: keys, and what they do.
pub const HELP: [(&str, &str); 10] = [
    ("q  Esc  Ctrl-C", "quit"),
    ("Ctrl-Z", "suspend; fg resumes"),
    ("Tab  right  left", "next or previous list"),
    ("up  down", "move one row"),
    ("PgUp  PgDn", "move ten rows"),
    ("Home  End", "first or last row"),
    ("s", "sort sessions by the next criterion"),
    ("p  space", "pause or resume"),
    ("+  -", "longer or shorter interval"),
    ("h  ?", "show or hide this help"),
];

/// The action of a key, if it has one.
pub fn action(key: &KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if has_control => Action::Quit,
        KeyCode::Char('z') if has_control => Action::Suspend,
        KeyCode::Char(_) if has_control => return None,
        KeyCode::Char('q' | 'Q') => Action::Quit,
        KeyCode::Esc => Action::Back,
        KeyCode::Up | KeyCode::Char('k') => Action::Move(-1),
        KeyCode::Down | KeyCode::Char('j') => Action::Move(1),
        KeyCode::PageUp => Action::Page(-1),
        KeyCode::PageDown => Action::Page(1),
        KeyCode::Home => Action::First,
        KeyCode::End => Action::Last,
        KeyCode::Tab | KeyCode::Right => Action::NextPanel,
        KeyCode::BackTab | KeyCode::Left => Action::PreviousPanel,
        KeyCode::Char('s' | 'S') => Action::Sort,
        KeyCode::Char('p' | 'P' | ' ') => Action::Pause,
        KeyCode::Char('+' | '=') => Action::Slower,
        KeyCode::Char('-') => Action::Faster,
        KeyCode::Char('h' | 'H' | '?') => Action::Help,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_do_what_the_help_says() {
        let press = |code| action(&KeyEvent::new(code, KeyModifiers::NONE));
        let control = |letter| action(&KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!((press(KeyCode::Char('q')), control('c')), (Some(Action::Quit), Some(Action::Quit)));
        assert_eq!(control('z'), Some(Action::Suspend));
        assert_eq!((press(KeyCode::Esc), press(KeyCode::Tab)), (Some(Action::Back), Some(Action::NextPanel)));
        assert_eq!(
            (press(KeyCode::Down), press(KeyCode::Up)),
            (Some(Action::Move(1)), Some(Action::Move(-1)))
        );
        assert_eq!(
            (press(KeyCode::Char('+')), press(KeyCode::Char('-'))),
            (Some(Action::Slower), Some(Action::Faster))
        );
        assert_eq!((control('s'), press(KeyCode::Char('x')), press(KeyCode::F(1))), (None, None, None));
        let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(action(&released), None);
    }
}
