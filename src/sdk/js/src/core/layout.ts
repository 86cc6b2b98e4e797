// Kinds, flags and sizes of native frames. PROTOCOL.md, "Native frames".

export const HELLO = 1;
export const SUBSCRIBE = 2;
export const UNSUBSCRIBE = 3;
export const PUBLISH = 4;
export const PING = 5;
export const UPDATE = 6;
export const RESUME = 7;
export const REFRESH = 8;
export const WELCOME = 64;
export const SUBSCRIBED = 65;
export const UNSUBSCRIBED = 66;
export const TICK = 67;
export const PONG = 68;
export const ERROR = 69;
export const CLOSING = 70;
export const CONFLATED = 71;
export const GAP = 72;
export const RECOVERED = 73;
export const PUBLISHED = 74;
export const EXPIRES = 75;
export const SOURCE = 76;
export const STALE = 77;
/** Kinds that servers send, known or not. */
export const SERVER_KIND_MAX = 127;

export const FLAG_JSON = 1;
export const FLAG_SNAPSHOT = 2;

export const HEADER_BYTES = 32;
/** Shortest record of a TICK; its key follows if there is one. */
export const TICK_RECORD_BYTES = 16;
export const MAGIC = 0x6374;
export const VERSION = 1;
export const TWO_32 = 0x1_0000_0000;
