//! Prints the ticks of a pattern. Start a server (`tickcast serve`), then:
//! `cargo run -p tickcast-client --example subscribe -- 127.0.0.1:9400 'sim.>'`

use tickcast_client::{Client, ClientError, Event};

fn main() -> Result<(), ClientError> {
    let mut args = std::env::args().skip(1);
    let server = args.next().unwrap_or_else(|| "127.0.0.1:9400".into());
    let pattern = args.next().unwrap_or_else(|| ">".into());

    let mut client = Client::connect(&server)?;
    client.subscribe(&pattern)?;
    // `None` waits without limit. An event borrows from the client: copy what you keep.
    while let Some(event) = client.next_event(None)? {
        match event {
            Event::Tick(tick) => {
                let payload = String::from_utf8_lossy(tick.payload);
                println!("{} {} {payload}", tick.topic, tick.sequence.0);
            }
            // The server rejected the subscription, for example because the pattern is malformed.
            Event::Error { text, .. } => eprintln!("rejected: {text}"),
            Event::Closed => break,
            // Subscribed and Topic need no reaction here.
            _ => {}
        }
    }
    Ok(())
}
