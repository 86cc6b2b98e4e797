//! Shared by both kinds of Redis sinks: a batch of commands in one request, and an answer to each.

use std::{convert::Infallible, pin::pin};

use redis::{Pipeline, RedisError, RedisResult, ServerErrorKind, Value, aio::MultiplexedConnection};

use super::{Confirmed, Outlet, Publish, PublishId, refusing_late, template::Unnameable};
use crate::{engine::EngineError, limits::SINK_BATCH_MAX, redis::Server};
use tickcast_common::clock;
use tickcast_core::routes::Outcome;

/// Silence after which the server is pinged, nanoseconds.
const PING_NS: u64 = 500_000_000;

/// Passes batches on until an error. `command` adds the one command of a tick, or says why it has none; `confirmed` reads its reply.
pub(super) async fn write(
    server: &Server,
    mut redis: MultiplexedConnection,
    outlet: &mut Outlet,
    command: impl Fn(&Publish, &mut Pipeline) -> Result<(), Unnameable>,
    confirmed: impl Fn(&Value) -> Confirmed,
) -> Result<Infallible, EngineError> {
    let failed = |error: &RedisError| EngineError::new(&server.to_string(), error);
    let mut used_ns = clock::monotonic_ns();
    loop {
        let (mut pipe, mut ids) = (redis::pipe(), Vec::<PublishId>::new());
        while ids.len() < SINK_BATCH_MAX
            && let Some(publish) = outlet.take()
        {
            match command(&publish, &mut pipe) {
                Ok(()) => ids.push(publish.id),
                Err(why) => {
                    let why_not = format_args!("topic {:?}: {why}", publish.topic);
                    outlet.fail_because(publish.id, why.outcome(), &why_not);
                }
            }
        }
        outlet.flush();
        if ids.is_empty() {
            // So that a server that is gone is noticed before it loses a tick.
            if clock::monotonic_ns().saturating_sub(used_ns) >= PING_NS {
                redis::cmd("PING").exec_async(&mut redis).await.map_err(|error| failed(&error))?;
                used_ns = clock::monotonic_ns();
            }
            outlet.ready().await;
            continue;
        }
        pipe.ignore_errors();
        let query = pin!(pipe.query_async::<Vec<RedisResult<Value>>>(&mut redis));
        let replies = refusing_late(outlet, Outcome::Full, query).await.map_err(|error| failed(&error))?;
        used_ns = clock::monotonic_ns();
        if replies.len() != ids.len() {
            return Err(EngineError(format!(
                "{server}: {} replies to {} commands",
                replies.len(),
                ids.len()
            )));
        }
        let mut lost = None;
        for (id, reply) in ids.into_iter().zip(replies) {
            match reply {
                Ok(value) => outlet.confirm(id, confirmed(&value)),
                Err(error) => {
                    outlet.fail_because(id, Outcome::Refused, &error);
                    // The server has lost the script, is starting, or is now a replica: another attempt starts from the
                    // beginning.
                    if matches!(
                        error.kind(),
                        redis::ErrorKind::Server(
                            ServerErrorKind::NoScript
                                | ServerErrorKind::BusyLoading
                                | ServerErrorKind::MasterDown
                                | ServerErrorKind::ReadOnly
                        )
                    ) {
                        lost = Some(failed(&error));
                    }
                }
            }
        }
        if let Some(lost) = lost {
            return Err(lost);
        }
    }
}
