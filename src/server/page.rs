//! Files of the web page at `/` and the JavaScript SDK at `/tickcast.js`, embedded in the binary, and the HTTP responses that
//! serve them.
//!
//! The page's files are plain HTML, CSS and JavaScript modules, served unmodified. They have no build step, and the content
//! security policy forbids loading anything from another host. The SDK is the bundle that `src/sdk/js/build.mjs` makes; a test
//! checks that it is current. [`files`] compresses them once, at startup.

use std::{
    borrow::Cow,
    fmt::Write as _,
    io::{self, Write as _},
    sync::LazyLock,
};

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, StatusCode, header};
use sha1::{Digest, Sha1};

use crate::limits::{PAGE_FILE_BYTES_MAX, PAGE_HEAD_BYTES_MAX, REPLY_BYTES_MAX};
use tickcast_proto::http::{Response, StaticFiles};

/// Content security policy: only this server's own files and WebSockets.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Bytes of the SHA-1 digest kept in an entity tag.
///
/// 64 bits are enough to tell versions of a file apart.
const TAG_BYTES: usize = 8;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path of the JavaScript SDK, for pages that the server's users write.
const SDK_PATH: &str = "/tickcast.js";

/// Path, media type and content of a file.
type Source = (&'static str, &'static str, &'static [u8]);

/// Every file of the page, and the SDK.
const SOURCES: [Source; 20] = [
    ("/", HTML, include_bytes!("page/index.html")),
    ("/page/style.css", CSS, include_bytes!("page/style.css")),
    ("/page/feed.css", CSS, include_bytes!("page/feed.css")),
    ("/page/narrow.css", CSS, include_bytes!("page/narrow.css")),
    ("/page/icon.svg", SVG, include_bytes!("page/icon.svg")),
    ("/page/main.js", SCRIPT, include_bytes!("page/main.js")),
    ("/page/chooser.js", SCRIPT, include_bytes!("page/chooser.js")),
    ("/page/columns.js", SCRIPT, include_bytes!("page/columns.js")),
    ("/page/detail.js", SCRIPT, include_bytes!("page/detail.js")),
    ("/page/dom.js", SCRIPT, include_bytes!("page/dom.js")),
    ("/page/fields.js", SCRIPT, include_bytes!("page/fields.js")),
    ("/page/history.js", SCRIPT, include_bytes!("page/history.js")),
    ("/page/link.js", SCRIPT, include_bytes!("page/link.js")),
    ("/page/market.js", SCRIPT, include_bytes!("page/market.js")),
    ("/page/stats.js", SCRIPT, include_bytes!("page/stats.js")),
    ("/page/sweep.js", SCRIPT, include_bytes!("page/sweep.js")),
    ("/page/table.js", SCRIPT, include_bytes!("page/table.js")),
    ("/page/wave.js", SCRIPT, include_bytes!("page/wave.js")),
    ("/page/wire.js", SCRIPT, include_bytes!("page/wire.js")),
    (SDK_PATH, SCRIPT, include_bytes!("../sdk/js/bundle/tickcast.js")),
];

/// A file of the page, uncompressed and gzip-compressed.
#[derive(Debug)]
pub struct File {
    path: &'static str,
    media_type: &'static str,
    plain: &'static [u8],
    /// `None` if compression failed, which cannot happen when writing to memory.
    gzip: Option<Vec<u8>>,
    /// Truncated SHA-1 digest of `plain`, in hexadecimal.
    tag: String,
}

impl File {
    fn new((path, media_type, plain): Source) -> File {
        let mut tag = String::with_capacity(2 * TAG_BYTES);
        for byte in Sha1::digest(plain).iter().take(TAG_BYTES) {
            // Writing to a String cannot fail.
            let _ = write!(tag, "{byte:02x}");
        }
        File { path, media_type, plain, gzip: compress(plain).ok(), tag }
    }

    /// The response to a GET.
    ///
    /// The status is 304 if the request's `If-None-Match` lists the representation that would be sent, else 200.
    pub fn respond(&'static self, request: &HeaderMap) -> Response {
        let gzip = self.gzip.as_deref().filter(|_| accepts_gzip(request));
        // Each content coding needs its own entity tag (RFC 9110, section 8.8.3.3).
        let coding = if gzip.is_some() { "-gzip" } else { "" };
        let tag = &self.tag;
        let mut fields =
            format!("ETag: \"{tag}{coding}\"\r\nCache-Control: no-cache\r\nVary: Accept-Encoding\r\n");
        if self.path == SDK_PATH {
            // Pages of other sites import it too. It has no secrets, and they still need `--allow-origin` for a WebSocket.
            fields += "Access-Control-Allow-Origin: *\r\n";
        }
        if client_has(request, &format!("{tag}{coding}")) {
            return Response { status: StatusCode::NOT_MODIFIED, fields, body: Cow::Borrowed(&[]) };
        }
        if gzip.is_some() {
            fields += "Content-Encoding: gzip\r\n";
        }
        // Writing to a String cannot fail.
        let _ = write!(
            fields,
            "Content-Type: {}\r\nContent-Security-Policy: {CONTENT_SECURITY_POLICY}\r\nReferrer-Policy: no-referrer\r\n",
            self.media_type
        );
        Response { status: StatusCode::OK, fields, body: Cow::Borrowed(gzip.unwrap_or(self.plain)) }
    }
}

/// Whether `If-None-Match` lists this entity tag, by weak comparison (RFC 9110, section 13.1.2).
fn client_has(request: &HeaderMap, entity_tag: &str) -> bool {
    values(request, header::IF_NONE_MATCH).any(|tag| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        let opaque = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        tag == "*" || opaque == Some(entity_tag)
    })
}

/// The page's files.
///
/// The first call compresses them, which takes a few milliseconds, so call it before serving.
pub fn files() -> &'static [File] {
    static FILES: LazyLock<Vec<File>> = LazyLock::new(|| SOURCES.into_iter().map(File::new).collect());
    &FILES
}

/// The page's files as the HTTP listener serves them.
#[derive(Clone, Copy, Debug)]
pub struct Page;

impl StaticFiles for Page {
    fn contains(&self, path: &str) -> bool {
        find(path).is_some()
    }

    fn respond(&self, path: &str, headers: &HeaderMap) -> Option<Response> {
        find(path).map(|file| file.respond(headers))
    }
}

fn find(path: &str) -> Option<&'static File> {
    files().iter().find(|file| file.path == path)
}

fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes)?;
    encoder.finish()
}

/// Whether `Accept-Encoding` allows gzip, by name or else by `*` (RFC 9110, section 12.5.3).
fn accepts_gzip(request: &HeaderMap) -> bool {
    let mut by_name = None;
    let mut by_wildcard = None;
    for value in values(request, header::ACCEPT_ENCODING) {
        let mut parts = value.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let is_acceptable = weight.is_none_or(|weight| weight.parse().is_ok_and(|weight: f32| weight > 0.0));
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            by_name = Some(is_acceptable);
        } else if coding == "*" {
            by_wildcard = Some(is_acceptable);
        }
    }
    by_name.or(by_wildcard).unwrap_or(false)
}

/// Elements of a comma-separated list header.
fn values(request: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let lines = request.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim)
}

// A response stays in the session's memory until the socket accepts it. The largest is a head and an uncompressed file.
const _: () = {
    let mut at = 0;
    while at < SOURCES.len() {
        assert!(SOURCES[at].2.len() <= PAGE_FILE_BYTES_MAX);
        at += 1;
    }
    assert!(PAGE_FILE_BYTES_MAX + PAGE_HEAD_BYTES_MAX <= REPLY_BYTES_MAX);
};

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;

    use super::*;
    use crate::limits::{PAGE_GZIP_BYTES_MAX, SDK_GZIP_BYTES_MAX};
    use tickcast_proto::{
        Step,
        http::{Answer, Connection, HttpConfig},
    };

    fn request(headers: &[(header::HeaderName, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(name, value.parse().unwrap());
        }
        map
    }

    fn tag(head: &str) -> String {
        head.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap().to_owned()
    }

    #[test]
    fn a_file_is_compressed_only_for_clients_that_accept_gzip() {
        for file in files() {
            let plain = file.respond(&request(&[]));
            assert!(!plain.fields.contains("gzip"));
            assert_eq!(plain.body, file.plain);
            let gzip = file.respond(&request(&[(header::ACCEPT_ENCODING, "gzip")]));
            assert!(gzip.fields.contains("\r\nContent-Encoding: gzip\r\n"));
            assert!(
                gzip.fields.len() + 256 <= PAGE_HEAD_BYTES_MAX,
                "with what every response has: {}",
                gzip.fields
            );
            let mut text = Vec::new();
            GzDecoder::new(&*gzip.body).read_to_end(&mut text).unwrap();
            assert_eq!(text, file.plain);
            assert_ne!(tag(&plain.fields), tag(&gzip.fields), "each coding has its own entity tag");
        }
    }

    #[test]
    fn pages_of_other_sites_may_import_the_sdk_and_nothing_else() {
        for file in files() {
            let response = file.respond(&request(&[]));
            let is_shared = response.fields.contains("Access-Control-Allow-Origin: *\r\n");
            assert_eq!(is_shared, file.path == SDK_PATH, "{}", file.path);
        }
    }

    #[test]
    fn the_compressed_page_and_sdk_fit_their_size_budgets() {
        let bytes = |file: &File| file.gzip.as_ref().unwrap().len();
        let sdk = find(SDK_PATH).unwrap();
        let page: usize = files().iter().map(bytes).sum::<usize>() - bytes(sdk);
        assert!(page <= PAGE_GZIP_BYTES_MAX, "{page} bytes");
        assert!(bytes(sdk) <= SDK_GZIP_BYTES_MAX, "{} bytes", bytes(sdk));
    }

    #[test]
    fn weights_and_wildcards_decide_whether_gzip_is_accepted() {
        for (value, is_accepted) in [
            ("gzip", true),
            ("br, GZIP;q=0.5", true),
            ("deflate, *", true),
            ("*;q=0.1", true),
            ("", false),
            ("br", false),
            ("gzip;q=0", false),
            ("gzip; q=0.000, *", false),
            ("*;q=0", false),
            ("gzip;q=x", false),
        ] {
            assert_eq!(accepts_gzip(&request(&[(header::ACCEPT_ENCODING, value)])), is_accepted, "{value}");
        }
        assert!(!accepts_gzip(&request(&[])));
    }

    #[test]
    fn a_client_that_already_has_the_representation_gets_304() {
        let file = find("/").unwrap();
        let other = &find("/page/main.js").unwrap().tag;
        let tag = &file.tag;
        for (value, has_plain, has_gzip) in [
            (format!("\"{tag}\""), true, false),
            (format!("\"{tag}-gzip\""), false, true),
            (format!("\"{tag}-gzip\", \"{tag}\""), true, true),
            (format!("\"x\", W/\"{tag}\""), true, false),
            ("*".to_owned(), true, true),
            (tag.clone(), false, false),
            (format!("\"{other}\""), false, false),
            ("\"".to_owned(), false, false),
        ] {
            for (coding, matches) in [("identity", has_plain), ("gzip", has_gzip)] {
                let headers = [(header::IF_NONE_MATCH, &*value), (header::ACCEPT_ENCODING, coding)];
                let response = file.respond(&request(&headers));
                assert_eq!(response.status == 304, matches, "{value} {coding}");
                assert_eq!(response.body.is_empty(), matches, "{value}");
            }
        }
    }

    #[test]
    fn the_page_refers_only_to_files_that_are_served() {
        for file in files() {
            let text = std::str::from_utf8(file.plain).unwrap();
            for (prefix, folder) in [("href=\"", "/"), ("src=\"", "/"), ("from \"./", "/page/")] {
                for part in text.split(prefix).skip(1) {
                    let name = part.split('"').next().unwrap();
                    assert!(find(&format!("{folder}{name}")).is_some(), "{}: {name}", file.path);
                }
            }
            let mut addresses =
                text.split("//").skip(1).filter(|part| part.starts_with(char::is_alphanumeric));
            let foreign = addresses.find(|part| !part.starts_with("www.w3.org/2000/svg"));
            assert_eq!(foreign, None, "{} refers to another host", file.path);
        }
    }

    #[test]
    fn the_page_is_got_by_get_and_head_and_by_nothing_else() {
        let config = HttpConfig { files: &Page, ..HttpConfig::WEBSOCKET };
        let answer = |request: &str| match Connection::default()
            .step(format!("{request}\r\n\r\n").as_bytes(), &config)
        {
            Step::Complete(_, Answer::Respond { response, status, .. }) => {
                (status, String::from_utf8(response).unwrap())
            }
            _ => panic!("{request}"),
        };
        let (status, page) = answer("GET /?topics=a.> HTTP/1.1\r\nHost: x");
        assert!(
            status == 200 && page.contains("Content-Type: text/html") && page.contains("<html"),
            "{page}"
        );
        assert!(page.contains("\r\nContent-Security-Policy: default-src 'none'; script-src 'self';"));
        let (status, head) = answer("HEAD / HTTP/1.1\r\nHost: x");
        assert!(status == 200 && page.starts_with(&head) && head.ends_with("\r\n\r\n"), "{head}");
        let tag = page.lines().find_map(|line| line.strip_prefix("ETag: ")).unwrap();
        assert_eq!(answer(&format!("GET / HTTP/1.1\r\nHost: x\r\nIf-None-Match: {tag}")).0, 304);
        assert_eq!(answer("GET /page/main.js HTTP/1.0").0, 200);
        for (request, expected) in [
            ("POST /", 405),
            ("GET /page", 404),
            ("GET /page/", 404),
            ("GET /page/../page.rs", 404),
            ("GET //", 404),
            ("HEAD /nothing", 404),
            ("HEAD /ws", 426),
        ] {
            let (status, response) = answer(&format!("{request} HTTP/1.1\r\nHost: x"));
            assert_eq!(status, expected, "{request}");
            assert_eq!(response.contains("Allow: GET, HEAD\r\n"), status == 405, "{request}: {response}");
            assert_eq!(response.ends_with("\r\n\r\n"), request.starts_with("HEAD"), "{request}: {response}");
        }
    }
}
