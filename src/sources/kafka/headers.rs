//! Headers of a record, by name.
//!
//! Does not use rdkafka's own [`rdkafka::message::Headers`], which panics on a name that is not UTF-8: producers choose the
//! names.

use std::{ptr, slice};

use rdkafka::{Message as _, bindings, message::BorrowedMessage};

use crate::mapping::Headers;

/// Longest name that is looked up, including its terminating zero byte.
const NAME_BYTES_MAX: usize = 256;

/// The headers of a message, read in place from the client's memory.
pub struct RecordHeaders<'a, 'b>(pub &'a BorrowedMessage<'b>);

impl Headers for RecordHeaders<'_, '_> {
    fn partition(&self) -> Option<i32> {
        Some(self.0.partition())
    }

    fn value(&self, name: &str) -> Option<&str> {
        let mut zero_ended = [0u8; NAME_BYTES_MAX];
        if name.len() >= NAME_BYTES_MAX || name.contains('\0') {
            return None;
        }
        zero_ended[..name.len()].copy_from_slice(name.as_bytes());
        let mut headers = ptr::null_mut();
        // SAFETY: the message is borrowed, so it is alive; its headers belong to it and are only read.
        let error = unsafe { bindings::rd_kafka_message_headers(self.0.ptr(), &mut headers) };
        if error != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || headers.is_null() {
            return None;
        }
        let (mut value, mut bytes) = (ptr::null(), 0);
        // SAFETY: the headers belong to the borrowed message; the name ends with a zero byte.
        let error = unsafe {
            bindings::rd_kafka_header_get(headers, 0, zero_ended.as_ptr().cast(), &mut value, &mut bytes)
        };
        if error != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || value.is_null() {
            return None;
        }
        // SAFETY: the client returns a value with its length, and keeps it as long as the message.
        let value = unsafe { slice::from_raw_parts(value.cast::<u8>(), bytes) };
        str::from_utf8(value).ok()
    }
}
