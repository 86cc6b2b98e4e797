//! What librdkafka offers and the safe client does not: the ids of a cluster and of topics, and whether a message that failed may
//! have been stored.

use std::{
    ffi::{CStr, CString, c_char},
    ptr::{self, NonNull},
    time::Duration,
};

use rdkafka::{
    ClientContext,
    bindings::{self, rd_kafka_admin_op_t, rd_kafka_msg_status_t, rd_kafka_resp_err_t},
    client::Client,
    error::RDKafkaErrorCode,
    message::BorrowedMessage,
};

/// Maximum bytes of an error's text, including its terminating zero byte.
const ERROR_BYTES_MAX: usize = 256;

/// The id of a topic. A topic that is deleted and made again has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TopicId(pub [u8; 16]);

/// Why a topic has no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoId {
    /// There is no such topic, or it cannot be described.
    Absent,
    /// The brokers give topics no ids.
    NotGiven,
}

/// An object of librdkafka, with the function that frees it.
struct Owned<T> {
    object: NonNull<T>,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    /// `None` for a null pointer. The caller passes an object that is its own, and the function that frees it.
    fn new(object: *mut T, free: unsafe extern "C" fn(*mut T)) -> Option<Owned<T>> {
        NonNull::new(object).map(|object| Owned { object, free })
    }

    fn ptr(&self) -> *mut T {
        self.object.as_ptr()
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the object belongs to this value alone, is freed only here, and by the function that librdkafka names for it.
        unsafe { (self.free)(self.object.as_ptr()) };
    }
}

/// Copies a text, which may be null.
///
/// # Safety
/// The text ends with a zero byte, and what it belongs to is alive.
unsafe fn text_of(text: *const c_char) -> String {
    match text.is_null() {
        true => String::new(),
        // SAFETY: the caller sees to it.
        false => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
    }
}

/// Asks any broker which brokers there are, and returns the number of one that answers. Asks for no topic, because that may make it.
///
/// # Errors
/// There is no answer within the timeout.
pub fn answering_broker(
    client: &Client<impl ClientContext>,
    timeout: Duration,
) -> Result<Option<i32>, RDKafkaErrorCode> {
    let mut metadata = ptr::null();
    // SAFETY: the client is alive, and the pointer that is written belongs to this function.
    let error = unsafe {
        bindings::rd_kafka_metadata(client.native_ptr(), 0, ptr::null_mut(), &mut metadata, millis(timeout))
    };
    if error != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR || metadata.is_null() {
        return Err(error.into());
    }
    // SAFETY: it is not null, has as many brokers as it says, and is freed here once they are copied.
    unsafe {
        let found: &bindings::rd_kafka_metadata = &*metadata;
        let count = usize::try_from(found.broker_cnt).unwrap_or(0);
        let ids: Vec<i32> = (0..count).map(|at| (*found.brokers.add(at)).id).collect();
        let answering = ids.iter().find(|id| **id == found.orig_broker_id).or(ids.first()).copied();
        bindings::rd_kafka_metadata_destroy(metadata);
        Ok(answering)
    }
}

/// The cluster's id; `None` if its brokers do not say one within the timeout.
pub fn cluster_id(client: &Client<impl ClientContext>, timeout: Duration) -> Option<String> {
    // SAFETY: the client is borrowed, so it is alive.
    let id = unsafe { bindings::rd_kafka_clusterid(client.native_ptr(), millis(timeout)) };
    if id.is_null() {
        return None;
    }
    // SAFETY: the text was allocated for the caller, who frees it with this function once it is copied.
    unsafe {
        let text = text_of(id);
        bindings::rd_kafka_mem_free(client.native_ptr(), id.cast());
        Some(text)
    }
}

/// The ids of topics, in the order of their names. `broker`: the number of the broker to ask. Blocks until the answer, at most for the
/// timeout.
///
/// # Errors
/// Why there is no answer.
pub fn topic_ids(
    client: &Client<impl ClientContext>,
    broker: i32,
    names: &[&str],
    timeout: Duration,
) -> Result<Vec<Result<TopicId, NoId>>, String> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let names_c: Vec<CString> = names.iter().filter_map(|name| CString::new(*name).ok()).collect();
    if names_c.len() < names.len() {
        return Err("a name has a zero byte".into());
    }
    let mut pointers: Vec<_> = names_c.iter().map(|name| name.as_ptr()).collect();
    let rk = client.native_ptr();
    let made = || "librdkafka makes no request".to_owned();
    let op = rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
    // SAFETY: the client is alive, and the options belong to this function.
    let options = unsafe { bindings::rd_kafka_AdminOptions_new(rk, op) };
    let options = Owned::new(options, bindings::rd_kafka_AdminOptions_destroy).ok_or_else(made)?;
    let mut text = [0; ERROR_BYTES_MAX];
    // SAFETY: the options are alive; the buffer has the length that is passed.
    let errors = unsafe {
        let (text, bytes) = (text.as_mut_ptr(), text.len());
        [
            bindings::rd_kafka_AdminOptions_set_request_timeout(options.ptr(), millis(timeout), text, bytes),
            bindings::rd_kafka_AdminOptions_set_broker(options.ptr(), broker, text, bytes),
        ]
    };
    if errors.iter().any(|error| *error != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR) {
        // SAFETY: the buffer is alive, and its last byte stays zero.
        return Err(unsafe { text_of(text.as_ptr()) });
    }
    // SAFETY: the pointers are those of `names_c`, which outlives the call; it copies the names.
    let topics =
        unsafe { bindings::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len()) };
    let topics = Owned::new(topics, bindings::rd_kafka_TopicCollection_destroy).ok_or_else(made)?;
    // SAFETY: the client is alive, and the queue belongs to this function.
    let queue = unsafe { bindings::rd_kafka_queue_new(rk) };
    let queue = Owned::new(queue, bindings::rd_kafka_queue_destroy).ok_or_else(made)?;
    // SAFETY: all four are alive. The request holds references of its own to what it needs later.
    unsafe { bindings::rd_kafka_DescribeTopics(rk, topics.ptr(), options.ptr(), queue.ptr()) };
    // The request itself ends with an error at its timeout.
    // SAFETY: the queue is alive, and the event belongs to this function.
    let event = unsafe { bindings::rd_kafka_queue_poll(queue.ptr(), millis(timeout).saturating_add(100)) };
    let event = Owned::new(event, bindings::rd_kafka_event_destroy).ok_or_else(|| "no answer".to_owned())?;
    // SAFETY: the event is alive.
    let error = unsafe { bindings::rd_kafka_event_error(event.ptr()) };
    if error != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        // SAFETY: the event is alive, and the text belongs to it.
        return Err(unsafe { text_of(bindings::rd_kafka_event_error_string(event.ptr())) });
    }
    // SAFETY: the event is alive; the result belongs to it, and is null for another kind of event.
    let result = unsafe { bindings::rd_kafka_event_DescribeTopics_result(event.ptr()) };
    if result.is_null() {
        return Err("another answer than asked for".into());
    }
    let mut count = 0;
    // SAFETY: the result belongs to the event, which is alive; the array too.
    let described = unsafe { bindings::rd_kafka_DescribeTopics_result_topics(result, &mut count) };
    let mut ids = vec![Err(NoId::Absent); names.len()];
    for at in 0..if described.is_null() { 0 } else { count } {
        // SAFETY: the array has `count` elements. Some may be null.
        let topic = unsafe { *described.add(at) };
        if topic.is_null() {
            continue;
        }
        // SAFETY: the topic is not null and belongs to the result, like its name and id.
        let (name, id) = unsafe {
            let name = text_of(bindings::rd_kafka_TopicDescription_name(topic));
            let is_there = bindings::rd_kafka_TopicDescription_error(topic).is_null();
            let id = id_of(bindings::rd_kafka_TopicDescription_topic_id(topic)).ok_or(NoId::NotGiven);
            (name, if is_there { id } else { Err(NoId::Absent) })
        };
        if let Some(at) = names.iter().position(|wanted| *wanted == name) {
            ids[at] = id;
        }
    }
    Ok(ids)
}

/// Copies an id, which may be null. `None` for zero, which stands for none.
///
/// # Safety
/// What the id belongs to is alive.
unsafe fn id_of(id: *const bindings::rd_kafka_Uuid_t) -> Option<TopicId> {
    if id.is_null() {
        return None;
    }
    // SAFETY: the id is not null; the caller sees to the rest.
    let (most, least) = unsafe {
        (
            bindings::rd_kafka_Uuid_most_significant_bits(id),
            bindings::rd_kafka_Uuid_least_significant_bits(id),
        )
    };
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&most.to_be_bytes());
    bytes[8..].copy_from_slice(&least.to_be_bytes());
    (bytes != [0; 16]).then_some(TopicId(bytes))
}

/// Whether a message of a producer that failed is certainly not stored.
pub fn is_certainly_absent(message: &BorrowedMessage<'_>) -> bool {
    // SAFETY: the message is borrowed, so it is alive.
    let status = unsafe { bindings::rd_kafka_message_status(message.ptr()) };
    status == rd_kafka_msg_status_t::RD_KAFKA_MSG_STATUS_NOT_PERSISTED
}

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}
