use crate::latency::target::Target;

#[test]
fn a_target_is_on_this_machine() {
    for (url, address) in [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("http://127.0.0.1", "http://127.0.0.1:80"),
        ("http://127.9.9.9:1/", "http://127.9.9.9:1"),
        ("http://[::1]:3000", "http://[::1]:3000"),
    ] {
        assert_eq!(url.parse::<Target>().unwrap().to_string(), address);
    }
    assert!("http://localhost:3000".parse::<Target>().unwrap().to_string().ends_with(":3000"));
}

#[test]
fn others_are_refused_with_the_reason() {
    for (url, reason) in [
        ("http://192.0.2.1:80", "`192.0.2.1` is not this machine"),
        ("http://0.0.0.0:80", "is not this machine"),
        ("http://[2001:db8::1]/", "is not this machine"),
        ("http://example.com", "`example.com` is not this machine"),
        ("http://localhost.example.com", "is not this machine"),
        ("http://127.0.0.1@example.com/", "has to be a port"),
        ("http://user@127.0.0.1:3000", "user's name"),
        ("http://127.0.0.1:99999", "has to be a port"),
        ("http://127.0.0.1:abc", "a port"),
        ("http://127.0.0.1:", "has to be a port"),
        ("https://127.0.0.1:3000", "without TLS"),
        ("127.0.0.1:3000", "without TLS"),
        ("http://127.0.0.1:3000/job", "--job-path"),
        ("http://127.0.0.1:3000/?x", "--job-path"),
        ("not a url", "is no URL"),
    ] {
        let error = url.parse::<Target>().expect_err(url).to_string();
        assert!(error.contains(reason), "{url}: {error}");
    }
}
