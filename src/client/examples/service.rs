//! A service on tokio: takes quotes, publishes the middle of each, and goes on where it was after a restart:
//! `cargo run -p tickcast-client --features tokio --example service -- ws://127.0.0.1:9480/ws positions.txt`
//! A publisher for it: `tickcast pub quotes.EURUSD '{"bid": 1.0, "ask": 1.2}'`.

use std::{
    error::Error,
    fs,
    future::{Future, poll_fn},
    path::PathBuf,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use serde::Deserialize;
use tickcast_client::{
    AsyncClient, AsyncOptions, ClientState, Positions, PublishError, PublishOutcome, PublishRequest,
    RequestError, SharedTick, SubscribeOptions, SubscriptionEvent,
};
use tickcast_proto::subscription::{Delivery, Policy, Position, StartPosition};

/// Time between two attempts to publish a middle.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Error code of a request that the server accepts later.
const RATE_LIMITED: u16 = 109;

#[derive(Deserialize)]
struct Quote {
    bid: f64,
    ask: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let server = args.next().unwrap_or_else(|| "ws://127.0.0.1:9480/ws".into());
    let file = args.next().unwrap_or_else(|| "positions.txt".into()).into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // A real service would stop at a signal.
    runtime.block_on(run(&server, file, std::future::pending()))
}

/// Runs until `stop`, or until the server ends the connection for good.
pub async fn run(server: &str, file: PathBuf, stop: impl Future<Output = ()>) -> Result<(), Box<dyn Error>> {
    let mut options = AsyncOptions::new(server)?;
    options.positions = load(&file);
    options.save_positions = Some(Box::new(move |positions| {
        if let Err(error) = save(&file, &positions) {
            eprintln!("cannot save the positions in {}: {error}", file.display());
        }
    }));
    let client = AsyncClient::start(options)?;
    // Every quote counts. Without a saved position, a topic starts with the oldest quote that the server keeps.
    let delivery = Delivery { policy: Some(Policy::Keep), interval_us: 0 };
    let from = StartPosition::AfterEach(Default::default());
    let mut quotes = client.subscribe_with("quotes.>", SubscribeOptions { delivery, from }, 4_096)?;
    let mut stop = pin!(stop);
    let failure = loop {
        match until(stop.as_mut(), quotes.next()).await.flatten() {
            Some(SubscriptionEvent::Tick(tick)) => {
                if let Err(error) = publish_surely(&client, &tick, stop.as_mut()).await {
                    break Some(error);
                }
            }
            Some(SubscriptionEvent::Gap(gap)) => eprintln!("{}: {} quotes are lost", gap.topic, gap.count),
            Some(_) => {}
            None => break None,
        }
        // The next save has the position of this quote.
        quotes.finish();
    };
    let state = client.state();
    // Saves the positions of the quotes that were handled. One whose middle was not published comes again in the next run.
    client.close().await;
    eprintln!("stopped: {:?}, {} (code {})", state.state, state.reason, state.code);
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// What a future returns, or `None` if `stop` is ready before.
async fn until<T>(
    mut stop: Pin<&mut impl Future<Output = ()>>,
    future: impl Future<Output = T>,
) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| match stop.as_mut().poll(context) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => future.as_mut().poll(context).map(Some),
    })
    .await
}

/// Publishes the middle of one quote, again and again until the server has it, or until `stop`.
async fn publish_surely(
    client: &AsyncClient,
    tick: &SharedTick,
    mut stop: Pin<&mut impl Future<Output = ()>>,
) -> Result<(), PublishError> {
    while let Err(error) = publish_middle(client, tick).await {
        let may_succeed = match &error {
            PublishError::Request(error) => matches!(error, RequestError::Backpressure),
            PublishError::Failed(failure) => match failure.outcome {
                PublishOutcome::Refused => failure.code == RATE_LIMITED,
                // With a code, it is too large, or the server does not recognise message ids.
                PublishOutcome::NotSent => failure.code == 0,
                PublishOutcome::Unknown => true,
            },
        };
        if !may_succeed || client.state().state == ClientState::Disconnected {
            return Err(error);
        }
        eprintln!("{}: {error}; again", tick.topic);
        if until(stop.as_mut(), tokio::time::sleep(RETRY_INTERVAL)).await.is_none() {
            return Err(error);
        }
    }
    Ok(())
}

/// Publishes the middle of one quote. The answer is awaited before the next one is taken: for more than some thousand a second, await
/// several at once.
async fn publish_middle(client: &AsyncClient, tick: &SharedTick) -> Result<(), PublishError> {
    let Ok(Quote { bid, ask }) = serde_json::from_slice(&tick.payload) else {
        eprintln!("{} {}: not a quote", tick.topic, tick.sequence);
        return Ok(());
    };
    let topic = tick.topic.replacen("quotes.", "middles.", 1);
    let payload = format!("{{\"middle\":{}}}", (bid + ask) / 2.0);
    // The same whenever this middle is published, so that the server publishes it once.
    let message_id = format!("{}.{}", tick.epoch, tick.sequence);
    // With the time of the quote, so that subscribers see how old the middle is.
    let publish = PublishRequest {
        topic: &topic,
        payload: payload.as_bytes(),
        producer_time_ns: tick.producer_time_ns,
        message_id: &message_id,
        ..PublishRequest::default()
    };
    client.publish(publish).await.map(drop)
}

/// Reads lines of `EPOCH SEQUENCE TOPIC`. Without the file there are none.
fn load(file: &PathBuf) -> Positions {
    let mut positions = Positions::new();
    for line in fs::read_to_string(file).unwrap_or_default().lines() {
        let mut fields = line.splitn(3, ' ');
        let mut number = || fields.next().and_then(|field| field.parse().ok());
        if let (Some(epoch), Some(sequence)) = (number(), number())
            && let Some(topic) = fields.next()
        {
            positions.advance(topic, Position { epoch, sequence });
        }
    }
    positions
}

/// Replaces the file as a whole, so that a crash leaves the old one or the new one.
fn save(file: &PathBuf, positions: &Positions) -> std::io::Result<()> {
    let lines =
        positions.iter().map(|(topic, Position { epoch, sequence })| format!("{epoch} {sequence} {topic}\n"));
    let part = file.with_extension("part");
    fs::write(&part, lines.collect::<String>())?;
    fs::rename(part, file)
}
