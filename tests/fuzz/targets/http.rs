//! HTTP requests in pieces: however they are cut, the answers are the same, until the connection ends. It ends earlier for a request
//! that is refused before its body has arrived.

#![no_main]

use tickcast_proto::{
    Step,
    http::{
        Answer, Connection, HttpConfig, NoFiles,
        access::{Access, Sender},
    },
};

fn answers(bytes: &[u8], cut: usize) -> Vec<Answer> {
    let access = Access::default();
    let config = HttpConfig {
        head_bytes_max: 8 << 10,
        keeps_alive: true,
        health: true,
        debug_echo: true,
        message_ids: true,
        deflate: true,
        query_token: true,
        files: &NoFiles,
        access: &access,
        sender: Sender::Anyone,
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
                    Answer::Call { exchange, .. } | Answer::Poll { exchange, .. } => exchange.closes,
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
    let kept = |answers: Vec<Answer>| {
        let requests = answers.into_iter().filter(|answer| !matches!(answer, Answer::Interim(_)));
        requests.take_while(|answer| !matches!(answer, Answer::Respond { closes: true, .. })).collect::<Vec<_>>()
    };
    let whole = kept(answers(bytes, bytes.len().max(1)));
    let cut = kept(answers(bytes, usize::from(cut).max(1)));
    assert!(whole.starts_with(&cut), "{cut:?} of {whole:?}");
});
