// internal.mjs: properties that neither applications nor servers see. The bundle gives them shorter names, which saves 4 % of its compressed size.
export const INTERNAL = [
  ...["acknowledged", "advance", "announce", "announced", "answered", "asksToken", "attempts", "backoff", "byKey", "byName", "byPattern"],
  ...["closing", "confirmed", "conflates", "deadline", "delivery", "ended", "expire", "fail", "forget", "forgetPing", "handleClosed"],
  ...["handleExpires", "handleMessage", "handleOpen", "handlePing", "handlePong", "handleRead", "handleTick", "handleTimeout", "handleToken"],
  ...["handleTokenFailed", "hasHeard", "isAcknowledged", "isAskedFor", "isChanged", "isExact", "isOptional", "isReceived", "isRefreshing", "isSent"],
  ...["isText", "knownUntil", "knowsIds", "leave", "lose", "matcher", "matching", "nextRequest", "nextTimeout", "notRecovered", "offsetMs", "onClose"],
  ...["onDrop", "onRead", "onlyOf", "owner", "payloadBytes", "replaced", "requested", "resumption", "resumptions", "savesPositions", "settle"],
  ...["sizeMax", "skipped", "skippedBefore", "staleAt", "take", "targets", "u16", "u32", "u64", "unread"],
  ...["version", "wallOffsetMs", "welcome", "welcomedAt", "hasRoom", "isLive", "isRepeated", "knowsMoments", "moment", "repeatedTo", "carried"],
];
