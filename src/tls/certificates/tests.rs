use super::*;
use crate::testing::{Authority, Signed};

#[test]
fn what_is_wrong_with_a_pair_is_named() {
    let authority = Authority::new("authority");
    let Signed { cert, key } = authority.sign(&["a.test"]);
    let other = authority.sign(&["b.test"]).cert;
    let read = |cert: &str, key: &str| Identity::from_pem(cert.as_bytes(), key.as_bytes());
    let identity = read(&cert, &key).unwrap();
    assert_eq!(identity.names(), ["a.test"]);
    assert!(identity.valid_s.0 < identity.valid_s.1);
    // The rest of the chain may follow, in the right order only.
    assert!(read(&format!("{cert}{}", authority.own.cert), &key).is_ok());
    assert_eq!(read(&format!("{}{cert}", authority.own.cert), &key).unwrap_err(), CertificateError::NotAPair);
    assert_eq!(read(&other, &key).unwrap_err(), CertificateError::NotAPair);
    assert_eq!(read(&key, &key).unwrap_err(), CertificateError::NoCertificate);
    assert_eq!(read("", &key).unwrap_err(), CertificateError::NoCertificate);
    assert_eq!(read(&cert, &cert).unwrap_err(), CertificateError::NoKey);
    assert!(matches!(read(&cert.replace("MII", "M!I"), &key), Err(CertificateError::Malformed(_))));
    let cut = cert.replacen(&cert[100..140], "", 1);
    assert!(matches!(read(&cut, &key), Err(CertificateError::Malformed(_))));
}

#[test]
fn too_many_certificates_are_refused_and_no_authority_is_too_few() {
    let authority = Authority::new("authority");
    assert!(root_store(authority.own.cert.as_bytes()).is_ok());
    assert_eq!(root_store(b"").unwrap_err(), CertificateError::NoCertificate);
    let many = authority.own.cert.repeat(CERTIFICATES_MAX + 1);
    assert_eq!(certificates(many.as_bytes()).unwrap_err(), CertificateError::TooMany);
}

#[test]
fn the_cheapest_cipher_comes_first_in_each_version() {
    let suites = provider().cipher_suites;
    let names: Vec<String> = suites.iter().map(|suite| format!("{:?}", suite.suite())).collect();
    assert!(names[0] == "TLS13_AES_128_GCM_SHA256", "{names:?}");
    let first_tls12 = suites.iter().position(|suite| suite.tls13().is_none()).unwrap();
    assert!(names[first_tls12].contains("AES_128_GCM"), "{names:?}");
    assert!(suites[first_tls12..].iter().all(|suite| suite.tls13().is_none()));
}
