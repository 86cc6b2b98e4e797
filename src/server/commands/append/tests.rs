use std::{fs, path::PathBuf, process};

use super::*;

/// A temporary file, removed when dropped.
pub(in super::super) struct Scratch(pub(in super::super) PathBuf);

impl Scratch {
    pub(in super::super) fn new(name: &str, text: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("tickcast-append-{}-{name}", process::id()));
        fs::write(&path, text).unwrap();
        Scratch(path)
    }

    pub(in super::super) fn text(&self) -> String {
        fs::read_to_string(&self.0).unwrap()
    }

    /// The position of topic `a` after the last line, as epoch and sequence.
    fn position(&self) -> Option<(u64, u64)> {
        let positions = AppendFile::open(&self.0).unwrap().positions;
        positions.position("a").map(|position| (position.epoch, position.sequence))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

const TICK: &str = "{\"topic\":\"a\",\"epoch\":3,\"seq\":7,\"ts\":70,\"key\":1,\"data\":{\"op\":\"x\"}}\n";

#[test]
fn new_or_empty_file_has_no_position() {
    let scratch = Scratch::new("empty", "");
    assert_eq!(scratch.position(), None);
    fs::remove_file(&scratch.0).unwrap();
    assert_eq!((scratch.position(), scratch.text()), (None, String::new()));
}

#[test]
fn incomplete_last_line_is_cut_off_wherever_it_ends() {
    for len in 0..TICK.len() {
        let scratch = Scratch::new("torn", &format!("{TICK}{}", &TICK.replace(":7", ":8")[..len]));
        assert_eq!(scratch.position(), Some((3, 7)), "{len}");
        assert_eq!(scratch.text(), TICK, "{len}");
    }
    let scratch = Scratch::new("only-torn", "{\"topic\":\"a");
    assert_eq!((scratch.position(), scratch.text()), (None, String::new()));
}

#[test]
fn lines_give_the_position_that_held_when_they_were_written() {
    for (name, line, position) in [
        ("next", "{\"topic\":\"a\",\"epoch\":3,\"seq\":9}", (3, 9)),
        ("key", "{\"topic\":\"a\",\"epoch\":3,\"seq\":5,\"snapshot\":true}", (3, 7)),
        ("anew", "{\"topic\":\"a\",\"epoch\":4,\"seq\":1}", (4, 1)),
        ("gap", "{\"op\":\"gap\",\"topic\":\"a\",\"epoch\":3,\"from\":8,\"to\":20}", (3, 19)),
        ("conflated", "{\"op\":\"conflated\",\"topic\":\"a\",\"epoch\":3,\"from\":8,\"to\":9}", (3, 8)),
        ("missed", "{\"op\":\"missed\",\"topic\":\"a\",\"epoch\":3,\"from\":8,\"to\":9}", (3, 7)),
        (
            "epoch",
            "{\"op\":\"recovered\",\"topic\":\"a\",\"exists\":true,\"epoch\":4,\"sequence\":9,\"recovered\":false}",
            (4, 0),
        ),
        ("escaped", "{\"topic\":\"\\u0061\",\"epoch\":3,\"seq\":9}", (3, 9)),
    ] {
        let scratch = Scratch::new(name, &format!("{TICK}{line}\n"));
        assert_eq!(scratch.position(), Some(position), "{line}");
    }
    let gone = "{\"op\":\"recovered\",\"topic\":\"a\",\"exists\":false,\"epoch\":4,\"sequence\":0,\"recovered\":false}\n";
    assert_eq!(Scratch::new("gone", &format!("{TICK}{gone}")).position(), None);
}

#[test]
fn file_that_append_did_not_write_is_left_unchanged() {
    for (name, line) in [
        ("text", "a.b 1 x"),
        ("no-epoch", "{\"topic\":\"a\",\"seq\":1,\"ts\":2,\"data\":3}"),
        ("no-seq", "{\"topic\":\"a\",\"epoch\":1}"),
        ("op", "{\"op\":\"fly\",\"topic\":\"a\",\"epoch\":1}"),
        ("empty-line", ""),
    ] {
        let text = format!("{TICK}{line}\n{TICK}torn");
        let scratch = Scratch::new(name, &text);
        let error = AppendFile::open(&scratch.0).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("choose another file"), "{error}");
        assert_eq!(scratch.text(), text);
    }
}

#[test]
fn second_process_cannot_append_to_the_file() {
    let scratch = Scratch::new("locked", TICK);
    let first = AppendFile::open(&scratch.0).unwrap();
    let error = AppendFile::open(&scratch.0).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(first);
    assert_eq!(scratch.position(), Some((3, 7)));
}
