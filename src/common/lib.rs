//! What the server, its sources and its tools share: the clocks, types of option values, and panics,
//! injected ones included.

pub mod byte_order_mark;
pub mod clock;
pub mod fault;
pub mod panics;
pub mod values;
