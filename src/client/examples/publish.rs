//! Publishes ten ticks and waits until the server has processed them:
//! `cargo run -p tickcast-client --example publish -- 127.0.0.1:9400 odds.race7`

use std::time::Duration;

use tickcast_client::{Client, ClientError, Event, PublishRequest};

fn main() -> Result<(), ClientError> {
    let mut args = std::env::args().skip(1);
    let server = args.next().unwrap_or_else(|| "127.0.0.1:9400".into());
    let topic = args.next().unwrap_or_else(|| "odds.race7".into());

    let mut client = Client::connect(&server)?;
    for n in 0..10 {
        let payload = format!("{{\"price\":{}.5}}", n + 1);
        // The key names what the tick is about, here one of two horses. A client that lags receives the last tick of
        // each key if its subscription conflates. 0 means no key.
        let key = n % 2 + 1;
        let publish =
            PublishRequest { topic: &topic, payload: payload.as_bytes(), key, ..PublishRequest::default() };
        // Buffered ticks leave together; `Client::publish` would send each one at once.
        client.publish_buffered(publish)?;
    }
    // Ticks are not acknowledged one by one. The barrier proves that the server processed all of them; a rejected tick
    // arrives as an error event before that.
    client.barrier(Duration::from_secs(5), |event| {
        if let Event::Error { request, text, .. } = event {
            eprintln!("request {request} was rejected: {text}");
        }
    })?;
    println!("10 ticks published");
    client.close()
}
