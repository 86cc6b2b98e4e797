//! Receives every tick of a pattern across lost connections, and reports the ticks that are lost or conflated:
//! `cargo run -p tickcast-client --example recover -- 127.0.0.1:9400 'sim.>'` (restart the server, or stop this process with Ctrl-Z).

use tickcast_client::{ClientError, Event, ReconnectingClient, StreamEvent};

fn main() -> Result<(), ClientError> {
    let mut args = std::env::args().skip(1);
    let server = args.next().unwrap_or_else(|| "127.0.0.1:9400".into());
    let pattern = args.next().unwrap_or_else(|| ">".into());

    // Reconnects with exponential backoff, subscribes again, and resumes each topic after the last tick received here. To
    // resume in another process, save `client.positions()` and pass them to `with_positions`.
    let mut client = ReconnectingClient::connect(&server)?;
    client.subscribe(&pattern)?;
    while let Some(event) = client.next_event(None)? {
        match event {
            StreamEvent::Event(Event::Tick(tick)) => println!("{} {}", tick.topic, tick.sequence.0),
            // Ranges are half open: `from` is the first sequence lost, `to` the first one after them.
            StreamEvent::Event(Event::Gap { topic, from, to, .. }) => println!("{topic} [{from}, {to}) lost"),
            // This client lagged and the topic conflates: a newer tick replaces these.
            StreamEvent::Event(Event::Conflated { topic, from, to, .. }) => {
                println!("{topic} [{from}, {to}) conflated");
            }
            // After a reconnect: either all missed ticks follow, or a snapshot with a gap before it.
            StreamEvent::Event(Event::Recovered { topic, recovered, .. }) => {
                println!("{topic} {}", if recovered { "recovered" } else { "not recovered" });
            }
            StreamEvent::Disconnected { reason, retry_in_ms, .. } => {
                println!("disconnected: {reason}; reconnecting in {retry_in_ms} ms");
            }
            StreamEvent::Reconnected => println!("reconnected"),
            StreamEvent::Event(_) => {}
        }
    }
    Ok(())
}
