//! HTTP requests, whole and in pieces. The answers may differ: what arrives behind a head that is refused decides whether the connection
//! stays open.

#![no_main]

use tickcast_proto::{
    Step,
    http::{Answer, Connection, HttpConfig, NoFiles, access::Access},
};

fn answers(bytes: &[u8], cut: usize) -> Vec<Answer> {
    let access = Access::default();
    let config = HttpConfig {
        head_bytes_max: 8 << 10,
        keeps_alive: true,
        health: true,
        debug_echo: true,
        query_token: true,
        files: &NoFiles,
        access: &access,
        realtime_ns: 1 << 60,
    };
    let (mut connection, mut answers, mut at, mut shown) = (Connection::default(), Vec::new(), 0, cut);
    loop {
        match connection.step(&bytes[at..shown.min(bytes.len())], &config) {
            Step::Partial if shown >= bytes.len() => return answers,
            Step::Partial => shown += cut,
            Step::Complete(used, answer) => {
                assert!(used > 0 || matches!(answer, Answer::Interim(_)), "a request takes bytes");
                at += used;
                let is_last = match &answer {
                    Answer::Interim(bytes) => {
                        if bytes.is_empty() {
                            continue;
                        }
                        false
                    }
                    Answer::Respond { closes, .. } => *closes,
                    Answer::Upgrade { .. } => true,
                };
                answers.push(answer);
                if is_last || answers.len() > 100 {
                    return answers;
                }
            }
        }
    }
}

libfuzzer_sys::fuzz_target!(|input: (u8, &[u8])| {
    let (cut, bytes) = input;
    for cut in [bytes.len().max(1), usize::from(cut).max(1)] {
        for answer in answers(bytes, cut) {
            let (Answer::Respond { response, .. } | Answer::Upgrade { response, .. }) = answer else { continue };
            assert!(response.starts_with(b"HTTP/1.1 "));
        }
    }
});
