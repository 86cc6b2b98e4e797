//! Tests of the outbox.

use super::*;
use crate::egress_log::Mark;

const MARK: Mark = Mark { topic: 5, sequence: 1, skipped: 0 };

fn session() -> Session {
    Session::new(SessionId(1), ListenerKind::Native)
}

fn drain(session: &mut Session, log: &EgressLog) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let mut gather = Vec::new();
        match session.take_send(Some(log), &mut gather) {
            Next::Send(Source::Log(range)) => out.extend_from_slice(log.bytes(range)),
            Next::Send(Source::Gathered(start, len)) => out.extend_from_slice(&gather[start..start + len]),
            Next::Idle => return out,
            Next::Lapped => panic!("lapped"),
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
                let range = log.append(MARK, &frame).unwrap();
                assert!(session.push_range(&log, range));
                if random.u8(..5) == 0 {
                    log.append(MARK, b"somebody else's").unwrap();
                }
            } else {
                session.push_reply(|out| out.extend_from_slice(&frame));
            }
            expected.extend_from_slice(&frame);
        }
        assert_eq!(drain(&mut session, &log), expected);
        assert!(session.cut_rest == 0 && session.outbox_bytes() == 0);
    }
}

#[test]
fn contiguous_frames_are_one_range() {
    let (mut session, mut log) = (session(), EgressLog::new(1 << 20));
    for _ in 0..100 {
        let range = log.append(MARK, &[0; 64]).unwrap();
        session.push_range(&log, range);
    }
    assert_eq!((session.outbox_segments(), session.outbox_bytes()), (1, 6400));
    let mut gather = Vec::new();
    assert!(matches!(
        session.take_send(Some(&log), &mut gather),
        Next::Send(Source::Log(Range { len: 6400, .. }))
    ));
}

#[test]
fn a_lapped_session_is_told_so() {
    let (mut session, mut log) = (session(), EgressLog::new(1000));
    let range = log.append(MARK, &[0; 600]).unwrap();
    session.push_range(&log, range);
    log.append(MARK, &[0; 600]).unwrap();
    assert_eq!(session.take_send(Some(&log), &mut Vec::new()), Next::Lapped);
}

#[test]
fn an_outbox_past_its_bound_says_so() {
    let (mut session, mut log) = (session(), EgressLog::new(1000));
    session.yield_bytes = 150;
    let range = log.append(MARK, &[0; 100]).unwrap();
    assert!(session.push_range(&log, range));
    let range = log.append(MARK, &[0; 100]).unwrap();
    assert!(!session.push_range(&log, range));
}
