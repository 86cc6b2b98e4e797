use super::*;

const fn id(ms: u64, n: u64) -> Id {
    Id { ms, n }
}

#[test]
fn a_start_is_read_as_it_is_written() {
    for (text, start) in [
        ("new", Start::New),
        ("all", Start::All),
        ("1793322000000-7", Start::After(id(1_793_322_000_000, 7))),
        ("10m", Start::Window(600_000_000_000)),
    ] {
        assert_eq!(text.parse(), Ok(start));
        assert_eq!(start.to_string(), text);
    }
    assert_eq!("0".parse(), Ok(Start::All));
    for bad in ["", "$", "1-", "-1", "1-2-3", "-1-1"] {
        assert!(bad.parse::<Start>().is_err(), "{bad}");
    }
}

#[test]
fn long_entries_and_replies_that_do_not_come_make_the_next_reply_shorter() {
    let mut batch = BatchSize::default();
    batch.note(REPLY_BYTES + 1);
    assert_eq!(batch, BatchSize(BATCH_ENTRIES / 2));
    (0..20).for_each(|_| batch.halve());
    assert_eq!(batch, BatchSize(1), "one entry, however long");
    batch.note(REPLY_BYTES / 2);
    assert_eq!(batch, BatchSize(1));
    (0..20).for_each(|_| batch.note(100));
    assert_eq!(batch, BatchSize(BATCH_ENTRIES));
    let text = |bytes| Value::BulkString(vec![0; bytes]);
    let entry = Value::Array(vec![text(3), Value::Array(vec![text(4), text(50)])]);
    assert_eq!(bytes_in(&Value::Map(vec![(text(100), Value::Array(vec![entry]))])), 157);
}

#[test]
fn redis_that_does_not_count_the_entries_added_is_too_old() {
    let mut fields = HashMap::from([
        ("length".to_owned(), Value::Int(2)),
        ("last-generated-id".to_owned(), Value::BulkString(b"7-1".into())),
    ]);
    assert_eq!(info_of(&fields), None, "Redis 6");
    fields.insert("entries-added".into(), Value::Int(9));
    let info = Info { first: Id::default(), last: id(7, 1), added: 9, length: 2 };
    assert_eq!(info_of(&fields), Some(info));
}

#[test]
fn entries_that_were_trimmed_before_they_were_read_are_counted_once() {
    let info = |last, added, length| Info { first: Id::default(), last, added, length };
    let mut cursor = Cursor::at_start(Start::New, info(id(5, 0), 100, 10), 0);
    assert_eq!(cursor, Cursor { last: id(5, 0), passed: Some(100) });
    assert_eq!(cursor.catch_up(info(id(5, 0), 100, 0), 0), 0, "trimmed after it was passed");
    assert_eq!(cursor.catch_up(info(id(9, 0), 130, 0), 0), 30);
    assert_eq!(cursor.catch_up(info(id(9, 0), 130, 0), 0), 0);
    // Five of twelve are trimmed; the other seven are read, and three that came after the check.
    cursor.passed = Some(130 + 7 + 3);
    assert_eq!(cursor.catch_up(info(id(12, 0), 142, 7), 3), 5);
    assert_eq!(cursor.passed, Some(145), "142 and three");
    let mut cursor = Cursor::at_start(Start::All, info(id(5, 0), 100, 10), 0);
    assert_eq!(cursor.passed, Some(90), "what was trimmed before the start is not lost");
    cursor.passed = Some(100);
    assert_eq!(cursor.catch_up(info(id(5, 0), 100, 10), 0), 0);
    let mut cursor = Cursor::at_start(Start::Window(2_000_000), info(id(5, 0), 100, 10), 10);
    assert_eq!(cursor, Cursor { last: id(7, u64::MAX), passed: None });
    assert_eq!(cursor.catch_up(info(id(5, 0), 100, 10), 0), 0);
    assert!(!cursor.is_outlived(info(id(5, 0), 100, 10)), "nothing is in the window yet");
    assert_eq!((cursor.catch_up(info(id(9, 0), 130, 0), 2), cursor.passed), (0, Some(132)));
}

#[test]
fn entries_left_are_those_added_and_not_passed_until_the_last_one_was_read() {
    let info = Info { first: id(1, 0), last: id(9, 0), added: 130, length: 40 };
    let cursor = |last, passed| Cursor { last, passed };
    assert_eq!(cursor(id(5, 0), Some(120)).left(info), 10);
    assert_eq!(cursor(id(5, 0), None).left(info), 40, "all that there are, at most");
    assert_eq!(cursor(id(9, 0), None).left(info), 0);
}

#[test]
fn a_stream_that_was_made_again_or_set_back_is_another_life() {
    let cursor = Cursor { last: id(5, 3), passed: Some(100) };
    let info = |last, added| Info { first: last, last, added, length: 1 };
    for (info, outlived) in [
        (info(id(5, 3), 100), false),
        (info(id(6, 0), 101), false),
        (info(id(5, 2), 100), true),
        (info(id(9, 0), 3), true),
        (Info::default(), true),
    ] {
        assert_eq!(cursor.is_outlived(info), outlived, "{info:?}");
    }
    let mut given = Cursor::at_start(Start::After(id(9, 0)), info(id(5, 0), 7), 0);
    assert_eq!(given.catch_up(info(id(5, 0), 7), 0), 0);
    assert!(!given.is_outlived(info(id(5, 0), 7)), "an id ahead of the stream waits for it");
}
