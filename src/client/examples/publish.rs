//! Publishes ten ticks and waits until the server has acknowledged each of them:
//! `cargo run -p tickcast-client --example publish -- 127.0.0.1:9400 odds.race7`

use std::time::Duration;

use tickcast_client::{Address, Client, ClientError, ConnectOptions, Event, PublishRequest};

fn main() -> Result<(), ClientError> {
    let mut args = std::env::args().skip(1);
    let server = args.next().unwrap_or_else(|| "127.0.0.1:9400".into());
    let topic = args.next().unwrap_or_else(|| "odds.race7".into());

    let address = Address::parse(&server)?;
    let options = ConnectOptions { acknowledgements: true, ..address.connect_options() };
    let mut client = Client::connect_with(&address, &options)?;
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
    // The barrier waits until each tick has been acknowledged or refused. (A server of version 0.1 does not acknowledge ticks:
    // there it waits for the answer to a ping.)
    let mut refused = 0;
    client.barrier(Duration::from_secs(5), |event| match event {
        Event::Published { request, sequence, .. } => println!("request {request}: sequence {sequence}"),
        Event::Error { request, text, .. } => {
            refused += 1;
            eprintln!("request {request} was refused: {text}");
        }
        _ => {}
    })?;
    println!("{} ticks published", 10 - refused);
    client.close()
}
