//! Views of a subscription: its last values, or its order books. They take the events of one subscription, without I/O.

mod books;
mod keyed;

pub use self::{
    books::{BookView, Level, OrderBook},
    keyed::KeyedView,
};
