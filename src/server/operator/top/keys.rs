//! What a key means.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// What an operator wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// End.
    Quit,
    /// Close what lies above the figures; end if nothing does.
    Back,
    /// Move by rows: up is negative.
    Move(isize),
    /// Move by a page: up or down.
    Page(isize),
    /// To the first row.
    First,
    /// To the last row.
    Last,
    /// To the next list.
    NextPanel,
    /// To the list before.
    PanelBefore,
    /// Sort the sessions by the next thing.
    Sort,
    /// Stop looking, or look again.
    Pause,
    /// Look more often.
    Faster,
    /// Look less often.
    Slower,
    /// Show or hide the keys.
    Help,
}

/// The keys, for the operator.
pub const HELP: [(&str, &str); 9] = [
    ("q  Esc  Ctrl-C", "end"),
    ("Tab  right  left", "the next list, the one before"),
    ("up  down", "a row"),
    ("PgUp  PgDn", "ten rows"),
    ("Home  End", "the first row, the last"),
    ("s", "what sessions are sorted by"),
    ("p  space", "stop looking, look again"),
    ("+  -", "look less often, more often"),
    ("h  ?", "this"),
];

/// What a key means; `None` if nothing.
pub fn action(key: &KeyEvent) -> Option<Action> {
    if key.kind == KeyEventKind::Release {
        return None;
    }
    let has_control = key.modifiers.contains(KeyModifiers::CONTROL);
    Some(match key.code {
        KeyCode::Char('c' | 'd') if has_control => Action::Quit,
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
        KeyCode::BackTab | KeyCode::Left => Action::PanelBefore,
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
    fn keys_mean_what_the_help_says() {
        let means = |code| action(&KeyEvent::new(code, KeyModifiers::NONE));
        let control = |letter| action(&KeyEvent::new(KeyCode::Char(letter), KeyModifiers::CONTROL));
        assert_eq!((means(KeyCode::Char('q')), control('c')), (Some(Action::Quit), Some(Action::Quit)));
        assert_eq!((means(KeyCode::Esc), means(KeyCode::Tab)), (Some(Action::Back), Some(Action::NextPanel)));
        assert_eq!(
            (means(KeyCode::Down), means(KeyCode::Up)),
            (Some(Action::Move(1)), Some(Action::Move(-1)))
        );
        assert_eq!(
            (means(KeyCode::Char('+')), means(KeyCode::Char('-'))),
            (Some(Action::Slower), Some(Action::Faster))
        );
        assert_eq!((control('s'), means(KeyCode::Char('x')), means(KeyCode::F(1))), (None, None, None));
        let mut released = KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE);
        released.kind = KeyEventKind::Release;
        assert_eq!(action(&released), None);
    }
}
