//! How encoded messages are delimited on a connection.

pub mod websocket;
