//! Tests of the outbox.

use super::{membership::Gap, *};
use crate::{egress_log::FrameInfo, ids::Sequence};

const INFO: FrameInfo = FrameInfo { topic: 5, sequence: 1 };

fn session() -> Session {
    Session::new(SessionId(1), ListenerKind::Native)
}

fn drain(session: &mut Session, log: &EgressLog) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut gather = Vec::new();
        match session.take_send(Some(log), &mut gather, &mut SharedMessages::default()) {
            NextSend::Send(SendSource::Log(range)) => out.extend_from_slice(log.bytes(range)),
            NextSend::Send(SendSource::Gathered { start, len }) => {
                out.extend_from_slice(&gather[start..start + len])
            }
            NextSend::Idle => return out,
            NextSend::Overwritten => panic!("overwritten"),
        }
    }
}

#[test]
fn replies_and_shared_frames_leave_in_the_order_they_were_queued() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let (mut session, mut log, mut expected) = (session(), EgressLog::new(4 << 20), Vec::new());
        for n in 0..random.u8(1..60) {
            let frame = vec![n; random.usize(1..if n % 10 == 0 { 90_000 } else { 300 })];
            if random.bool() {
                let range = log.append(INFO, &frame).unwrap();
                assert!(session.push_range(&log, range));
                if random.u8(..5) == 0 {
                    log.append(INFO, b"somebody else's").unwrap();
                }
            } else {
                session.outbox.push_reply(|out| out.extend_from_slice(&frame));
            }
            expected.extend_from_slice(&frame);
        }
        assert_eq!(drain(&mut session, &log), expected);
        assert!(!session.outbox.is_mid_frame() && session.outbox_bytes() == 0);
    }
}

#[test]
fn contiguous_frames_are_one_range() {
    let (mut session, mut log) = (session(), EgressLog::new(1 << 20));
    for _ in 0..100 {
        let range = log.append(INFO, &[0; 64]).unwrap();
        session.push_range(&log, range);
    }
    assert_eq!((session.outbox.segments_len(), session.outbox_bytes()), (1, 6400));
    let mut gather = Vec::new();
    assert!(matches!(
        session.take_send(Some(&log), &mut gather, &mut SharedMessages::default()),
        NextSend::Send(SendSource::Log(Range { len: 6400, .. }))
    ));
}

#[test]
fn a_session_whose_frames_were_overwritten_learns_of_it() {
    let (mut session, mut log) = (session(), EgressLog::new(1000));
    let range = log.append(INFO, &[0; 600]).unwrap();
    session.push_range(&log, range);
    log.append(INFO, &[0; 600]).unwrap();
    assert_eq!(
        session.take_send(Some(&log), &mut Vec::new(), &mut SharedMessages::default()),
        NextSend::Overwritten
    );
}

#[test]
fn an_outbox_past_its_bound_reports_it() {
    let (mut session, mut log) = (session(), EgressLog::new(1000));
    session.yield_bytes = 150;
    let range = log.append(INFO, &[0; 100]).unwrap();
    assert!(session.push_range(&log, range));
    let range = log.append(INFO, &[0; 100]).unwrap();
    assert!(!session.push_range(&log, range));
}

/// Queued messages in order: whether each is a reply, and its bytes.
type Queued = Vec<(bool, Vec<u8>)>;

/// Bytes that remain after `sent` of them have been sent: replies, and the rest of a partly sent frame.
fn replies_after(queued: &Queued, sent: usize) -> Vec<u8> {
    let (mut at, mut kept) = (0, Vec::new());
    for (is_reply, bytes) in queued {
        let begun = sent.saturating_sub(at).min(bytes.len());
        if *is_reply || begun > 0 {
            kept.extend_from_slice(&bytes[begun..]);
        }
        at += bytes.len();
    }
    kept
}

#[test]
fn replies_stay_in_order_behind_the_frame_that_was_begun() {
    let mut random = fastrand::Rng::with_seed(5);
    let mut cut = 0;
    for _ in 0..500 {
        let (mut session, mut log, mut queued) = (session(), EgressLog::new(4 << 20), Queued::new());
        for n in 0..random.u8(1..40) {
            let frame = vec![n; random.usize(1..if n % 10 == 0 { 90_000 } else { 300 })];
            let kind = random.u8(..3);
            match kind {
                0 => session.outbox.push_reply(|out| out.extend_from_slice(&frame)),
                1 => drop(session.push_private(INFO.into(), |out| out.extend_from_slice(&frame))),
                _ => {
                    let range = log.append(INFO, &frame).unwrap();
                    session.push_range(&log, range);
                }
            }
            queued.push((kind == 0, frame));
        }
        let mut sent = 0;
        for _ in 0..random.u8(..4) {
            match session.take_send(Some(&log), &mut Vec::new(), &mut SharedMessages::default()) {
                NextSend::Send(SendSource::Log(range)) => sent += range.len as usize,
                NextSend::Send(SendSource::Gathered { len, .. }) => sent += len,
                _ => break,
            }
        }
        cut += usize::from(session.outbox.is_mid_frame());
        assert!(session.outbox.keep_replies(Some(&log)));
        assert_eq!(session.outbox.oldest_shared(), None, "nothing refers to the log any more");
        session.outbox.push_reply(|out| out.extend_from_slice(b"goodbye"));
        let expected = [replies_after(&queued, sent), b"goodbye".to_vec()].concat();
        assert!(drain(&mut session, &log) == expected);
    }
    assert!(cut > 50, "{cut}: frames are cut");
}

#[test]
fn nothing_follows_a_frame_that_was_begun_and_is_overwritten() {
    let (mut session, mut log) = (session(), EgressLog::new(200_000));
    let range = log.append(INFO, &[1; 90_000]).unwrap();
    session.push_range(&log, range);
    session.outbox.push_reply(|out| out.extend_from_slice(b"reply"));
    session.take_send(Some(&log), &mut Vec::new(), &mut SharedMessages::default());
    assert!(session.outbox.is_mid_frame());
    while !log.is_overwritten(range.start) {
        log.append(INFO, &[2; 10_000]).unwrap();
    }
    assert!(!session.outbox.keep_replies(Some(&log)));
    assert_eq!(session.outbox_bytes(), 0);
    // A frame that was not begun is dropped like any other.
    session.push_range(&log, range);
    session.outbox.push_reply(|out| out.extend_from_slice(b"reply"));
    assert!(session.outbox.keep_replies(Some(&log)));
    assert_eq!(drain(&mut session, &log), b"reply");
}

#[test]
fn an_evicted_notice_accounts_for_every_tick_even_before_there_is_a_log() {
    let mut session = session();
    let skipped = |from, to| Gap { from: Sequence(from), to: Sequence(to) };
    let notices = [skipped(1, 3), skipped(3, 3 + (1 << 32)), skipped(7 + (1 << 32), (1 << 53) - 1)];
    for skipped in notices {
        session.push_private(Content::Notice { topic: 5, skipped }, |out| out.extend_from_slice(b"notice"));
    }
    let mut evicted = Vec::new();
    session.outbox.evict(None, |content, _, _| {
        evicted.push(content.ticks());
        Verdict::Evict
    });
    assert_eq!(evicted, notices);
    assert_eq!(session.outbox_bytes(), 0);
}
