//! JSON messages of the server (PROTOCOL.md, "JSON messages").

use std::borrow::Cow;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Map, Value, value::RawValue};

use super::{
    event::{RecoveryFailure, SourceState},
    message::{ServerMessage, TickMessage, TopicRef},
};
use crate::{ProtocolError, topics::SkipReason};
use tickcast_proto::{
    DecodeError,
    codec::json::{self, present},
    features::Features,
};

/// The messages in a text: one object, or an array of objects.
pub(super) fn decode(message: &Bytes) -> Result<Vec<ServerMessage<'_>>, ProtocolError> {
    let text = simdutf8::basic::from_utf8(message).map_err(|_| DecodeError::NotUtf8)?;
    let mut decoded = Vec::new();
    if text.trim_start().starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(text).map_err(invalid)?;
        for item in items {
            decode_item(message, item.get(), &mut decoded)?;
        }
    } else {
        decode_item(message, text, &mut decoded)?;
    }
    Ok(decoded)
}

fn invalid(error: serde_json::Error) -> ProtocolError {
    ProtocolError::Json(error.to_string())
}

/// The fields of a tick, the most frequent message. Anything else has `op`.
#[derive(Deserialize)]
struct TickFields<'a> {
    #[serde(default)]
    op: Option<IgnoredAny>,
    #[serde(default, borrow)]
    topic: Cow<'a, str>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    prev: Option<u64>,
    #[serde(default)]
    ts: Option<u64>,
    #[serde(default, borrow, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(default, borrow)]
    encoding: Option<Cow<'a, str>>,
    #[serde(default, deserialize_with = "json::key")]
    key: u64,
    #[serde(default)]
    snapshot: bool,
}

fn decode_item<'a>(
    message: &Bytes,
    text: &'a str,
    decoded: &mut Vec<ServerMessage<'a>>,
) -> Result<(), ProtocolError> {
    match serde_json::from_str::<TickFields<'_>>(text) {
        Ok(fields) if fields.op.is_none() => {
            decoded.push(ServerMessage::Tick(tick(message, fields)?));
            Ok(())
        }
        // The fields of an operation may have other types.
        tried => {
            let fields: Map<String, Value> = serde_json::from_str(text).map_err(invalid)?;
            match (fields.contains_key("op"), tried) {
                (false, Err(error)) => Err(invalid(error)),
                _ => decode_operation(&Fields(fields), decoded),
            }
        }
    }
}

fn tick<'a>(message: &Bytes, fields: TickFields<'a>) -> Result<TickMessage<'a>, ProtocolError> {
    let (Some(data), Some(producer_time_ns)) = (fields.data, fields.ts) else {
        return Err(ProtocolError::Json("a tick without data or ts".into()));
    };
    if fields.topic.is_empty() || fields.seq == 0 {
        return Err(ProtocolError::Json("a tick without topic or sequence".into()));
    }
    let (payload_is_json, payload) = match fields.encoding.as_deref() {
        None => (true, message.slice_ref(data.get().as_bytes())),
        Some("base64") => {
            let text: Cow<'_, str> = serde_json::from_str(data.get()).map_err(invalid)?;
            let bytes = BASE64.decode(text.as_bytes());
            (false, bytes.map_err(|error| ProtocolError::Json(format!("base64 data: {error}")))?.into())
        }
        Some(other) => return Err(ProtocolError::Json(format!("a tick of the unknown encoding {other:?}"))),
    };
    Ok(TickMessage {
        topic: TopicRef::Name(fields.topic),
        sequence: fields.seq,
        previous: fields.prev.unwrap_or(fields.seq - 1),
        producer_time_ns,
        ingest_time_ns: 0,
        schema: 0,
        key: fields.key,
        snapshot: fields.snapshot,
        payload_is_json,
        payload,
    })
}

/// The fields of an operation. Operations are rare, so that they may cost allocations.
struct Fields(Map<String, Value>);

impl Fields {
    /// An unsigned integer. Without a default, the field must be there.
    fn number(&self, name: &str, default: Option<u64>) -> Result<u64, ProtocolError> {
        let value = match self.0.get(name) {
            None => default,
            Some(value) => value.as_u64(),
        };
        value.ok_or_else(|| ProtocolError::Json(format!("{name} is not an unsigned integer")))
    }

    fn small<N: TryFrom<u64>>(&self, name: &str, default: Option<u64>) -> Result<N, ProtocolError> {
        let number = self.number(name, default)?;
        N::try_from(number).map_err(|_| ProtocolError::Json(format!("{name} is too large: {number}")))
    }

    /// A string. Without a default, the field must be there.
    fn text(&self, name: &str, default: Option<&str>) -> Result<String, ProtocolError> {
        let value = match self.0.get(name) {
            None => default,
            Some(value) => value.as_str(),
        };
        value.map(str::to_owned).ok_or_else(|| ProtocolError::Json(format!("{name} is not a string")))
    }

    fn flag(&self, name: &str) -> Result<bool, ProtocolError> {
        let value = self.0.get(name).map_or(Some(false), Value::as_bool);
        value.ok_or_else(|| ProtocolError::Json(format!("{name} is not a boolean")))
    }

    fn list(&self, name: &str) -> Result<&[Value], ProtocolError> {
        let value = self.0.get(name).map_or(Some(&[][..]), |value| value.as_array().map(Vec::as_slice));
        value.ok_or_else(|| ProtocolError::Json(format!("{name} is not a list")))
    }

    fn topic(&self) -> Result<TopicRef<'static>, ProtocolError> {
        Ok(TopicRef::Name(self.text("topic", None)?.into()))
    }
}

/// Appends the messages of one object: an acknowledgement may also announce topics.
fn decode_operation(fields: &Fields, decoded: &mut Vec<ServerMessage<'_>>) -> Result<(), ProtocolError> {
    let request = fields.small("id", Some(0))?;
    let op = fields.text("op", None)?;
    decoded.push(match &*op {
        "welcome" => {
            let features: Option<Vec<&str>> = fields.list("features")?.iter().map(Value::as_str).collect();
            let features = features.ok_or_else(|| ProtocolError::Json("a feature is not a string".into()))?;
            // This client does not use these, but a welcome without them is none.
            fields.text("server", Some(""))?;
            let epoch = fields.number("epoch", None)?;
            fields.number("session", None)?;
            let frame_bytes_max = fields.small("frame_bytes_max", None)?;
            let features = Features::from_names(features);
            ServerMessage::Welcome { request, epoch, frame_bytes_max, features }
        }
        "subscribed" => {
            if fields.0.contains_key("pattern") {
                fields.text("pattern", None)?;
                let since_us = fields.number("since", Some(0))?;
                decoded.push(ServerMessage::Subscribed { request, since_us });
            }
            for announced in fields.list("topics")? {
                let Value::Object(announced) = announced else {
                    return Err(ProtocolError::Json("an announced topic is not an object".into()));
                };
                let announced = Fields(announced.clone());
                decoded.push(ServerMessage::Topic {
                    name: announced.text("topic", None)?.into(),
                    topic_id: announced.small("topic_id", None)?,
                    epoch: announced.number("epoch", None)?,
                });
            }
            return Ok(());
        }
        "unsubscribed" => ServerMessage::Unsubscribed {
            request,
            pattern: fields.text("pattern", None)?.into(),
            code: fields.small("code", Some(0))?,
            text: fields.text("text", Some(""))?.into(),
        },
        "conflated" | "gap" => {
            let (from, to) = (fields.number("from", None)?, fields.number("to", None)?);
            let count = fields.number("count", Some(to.saturating_sub(from)))?;
            let reason = if op == "gap" { SkipReason::Gap } else { SkipReason::Conflated };
            ServerMessage::Skipped { topic: fields.topic()?, reason, from, to, count }
        }
        "recovered" => {
            let reason = RecoveryFailure::from_name(&fields.text("reason", Some(""))?);
            ServerMessage::Recovered {
                topic: fields.text("topic", None)?.into(),
                topic_id: None,
                epoch: fields.number("epoch", None)?,
                sequence: fields.number("sequence", None)?,
                failure: (!fields.flag("recovered")?).then_some(reason),
            }
        }
        "published" => ServerMessage::Published {
            request,
            topic: fields.text("topic", None)?.into(),
            epoch: fields.number("epoch", None)?,
            sequence: fields.number("sequence", None)?,
            is_duplicate: fields.flag("duplicate")?,
        },
        "pong" => ServerMessage::Pong { token: fields.number("token", None)? },
        "error" => ServerMessage::Error {
            request,
            code: fields.small("code", None)?,
            text: fields.text("text", Some(""))?.into(),
        },
        "closing" => ServerMessage::Closing {
            code: fields.small("code", None)?,
            text: fields.text("reason", Some(""))?.into(),
            reconnect_after_ms: fields.small("reconnect_after_ms", Some(0))?,
        },
        "expires" => ServerMessage::Expires { request, expires_in_s: fields.small("expires_in", None)? },
        "source" => ServerMessage::Source {
            source: fields.text("source", None)?.into(),
            state: SourceState::from_name(&fields.text("state", None)?),
            since_ns: fields.number("since", Some(0))?,
        },
        "nodes" => {
            let addresses: Option<Vec<&str>> = fields.list("addresses")?.iter().map(Value::as_str).collect();
            let addresses =
                addresses.ok_or_else(|| ProtocolError::Json("an address is not a string".into()))?;
            ServerMessage::Nodes { addresses: addresses.join(" ").into() }
        }
        "stale" => ServerMessage::Stale {
            topic: fields.topic()?,
            is_stale: fields.flag("stale")?,
            since_ns: fields.number("since", Some(0))?,
        },
        _ => return Ok(()),
    });
    Ok(())
}
