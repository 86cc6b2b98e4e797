//! The real binary, started as an operator would, against real clients: the native client library, npm `ws`, Python
//! `websockets`, raw sockets and the load client.
//!
//! One test binary, so that the library is linked once. Deadlines only guard against hangs ([`harness::GUARD`]); no test
//! asserts how long anything took.
#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod harness;

mod acknowledgements;
mod admin;
mod admin_auth;
mod auth;
mod auth_listed;
mod bad_http;
mod bad_native;
mod bad_websocket;
mod bare;
mod batches;
mod bounds;
mod budget;
mod check;
mod churn;
mod conflate;
mod ecg;
mod echo;
mod engines;
mod failover;
mod failures;
mod heartbeat;
mod http;
mod identity;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "kafka")]
mod kafka_log;
mod limits;
mod listeners;
mod load;
mod logs;
mod losses;
mod machines;
mod manners;
mod message_ids;
mod monitoring;
mod nodes;
mod on_demand;
mod options;
mod page;
mod permissions;
mod places;
mod policies;
mod positions;
mod protobuf;
mod proxies;
mod publish;
mod read_back;
mod recovery;
mod reload;
mod replay;
mod report;
mod sdk_js;
mod sdk_python;
mod sdk_rust;
mod sinks;
mod slow;
mod socket_io;
mod sources;
mod sse;
mod stale;
mod startup;
mod stop;
mod stopped;
mod stopped_server;
mod systemd;
mod tenants;
mod tls;
mod tls_accepts;
mod tls_clients;
mod token_file;
mod top;
mod topics;
mod unfinished;
