//! The examples, run as programs over real connections, like their readers run them.
//!
//! `cargo test --workspace` builds the examples first. `cargo test --test examples` does not: run
//! `cargo build --workspace --examples --all-features` before it.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::Cursor,
    path::{Path, PathBuf},
    process::Output,
};

use argon2::{
    Argon2,
    password_hash::{PasswordVerifier, phc::PasswordHash},
};
use hyper::{StatusCode, body::Bytes, header::CONTENT_TYPE};
use image::{DynamicImage, GenericImageView, ImageEncoder, ImageFormat, Rgba, RgbaImage, codecs::jpeg::JpegEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tower_offload_tests::{PATIENCE, Server};

const BODY_LIMIT: usize = 20 * 1024 * 1024;

// ---- quickstart ----

#[tokio::test]
async fn quickstart_hashes_on_the_pool_and_inline() {
    let server = start("quickstart", &[]).await;
    assert_eq!(server.get("/ping").await.text(), "pong\n");
    for prefix in ["", "/inline"] {
        let url = format!("{prefix}/hash");
        let first = server.post(&url, "correct horse").await;
        assert_eq!(first.status, StatusCode::OK, "{}", first.text());
        let hash = PasswordHash::new(first.text().trim_end()).unwrap();
        assert_eq!(hash.algorithm.as_str(), "argon2id");
        Argon2::default().verify_password(b"correct horse", &hash).unwrap();
        Argon2::default().verify_password(b"battery staple", &hash).unwrap_err();

        let second = server.post(&url, "correct horse").await;
        assert_ne!(first.text(), second.text(), "each hash has a salt of its own");

        server.post(&url, "").await.assert_refused(StatusCode::BAD_REQUEST, "send the password");
    }
}

#[tokio::test]
async fn quickstart_shrinks_pngs_and_jpegs_to_256_pixels() {
    let server = start("quickstart", &[]).await;
    let cases = [
        (png(&gradient(400, 300)), (256, 192)),
        (jpeg(&gradient(300, 600)), (128, 256)),
        (png(&gradient(10, 20)), (10, 20)),
        (png(&gradient(256, 256)), (256, 256)),
        (png(&gradient(5000, 1)), (256, 1)),
        (rotated_jpeg(&gradient(400, 200)), (128, 256)),
    ];
    for (upload, size) in cases {
        let answer = server.post("/thumbnail", upload.clone()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        assert_eq!(answer.headers[CONTENT_TYPE], "image/jpeg");
        let thumbnail = image::load_from_memory_with_format(&answer.body, ImageFormat::Jpeg).unwrap();
        assert_eq!(thumbnail.dimensions(), size);

        let inline = server.post("/inline/thumbnail", upload).await;
        assert_eq!((inline.status, inline.body), (answer.status, answer.body));
    }
}

#[tokio::test]
async fn quickstart_shows_white_through_a_transparent_png() {
    let server = start("quickstart", &[]).await;
    let clear = png(&RgbaImage::from_pixel(300, 300, Rgba([0, 0, 0, 0])));
    let answer = server.post("/thumbnail", clear).await;
    let thumbnail = image::load_from_memory_with_format(&answer.body, ImageFormat::Jpeg).unwrap();
    assert!(thumbnail.to_rgb8().pixels().all(|pixel| pixel.0.iter().all(|&channel| channel > 250)));
}

#[tokio::test]
async fn quickstart_says_what_is_wrong_with_an_upload() {
    let server = start("quickstart", &[]).await;
    let whole = png(&gradient(400, 300));
    let cases: [(Bytes, StatusCode, &str); 8] = [
        (Bytes::new(), StatusCode::BAD_REQUEST, "send a JPEG or PNG"),
        (whole.slice(..whole.len() / 2), StatusCode::UNPROCESSABLE_ENTITY, "the image is broken"),
        (whole.slice(..20), StatusCode::UNPROCESSABLE_ENTITY, "the image is broken"),
        (Bytes::from_static(b"\xff\xd8\xff\xe0 no more"), StatusCode::UNPROCESSABLE_ENTITY, "the image is broken"),
        (Bytes::from_static(b"just text"), StatusCode::UNSUPPORTED_MEDIA_TYPE, "no JPEG or PNG"),
        (Bytes::from_static(b"GIF89a\x01\0\x01\0\0\0\0;"), StatusCode::UNSUPPORTED_MEDIA_TYPE, "no JPEG or PNG"),
        (png(&gradient(12_001, 1)), StatusCode::PAYLOAD_TOO_LARGE, "too many pixels"),
        (png_that_claims_to_be(12_000, 12_000), StatusCode::PAYLOAD_TOO_LARGE, "too many pixels"),
    ];
    for (upload, status, text) in cases {
        for url in ["/thumbnail", "/inline/thumbnail"] {
            server.post(url, upload.clone()).await.assert_refused(status, text);
        }
    }
    // The body exceeds the limit by one byte, so the server has read all of it when it responds,
    // and the client can read the response.
    for url in ["/thumbnail", "/hash"] {
        let answer = server.post(url, vec![b'x'; BODY_LIMIT + 1]).await;
        answer.assert_refused(StatusCode::PAYLOAD_TOO_LARGE, "");
    }
    assert_eq!(server.get("/thumbnail").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(server.get("/ping").await.text(), "pong\n", "the server continues");
}

#[tokio::test]
async fn quickstart_has_a_sample_for_those_without_a_picture() {
    let server = start("quickstart", &[]).await;
    let sample = server.get("/sample.png").await;
    assert_eq!(sample.headers[CONTENT_TYPE], "image/png");
    assert!(sample.body.len() > 1_000_000, "as large as a photo, not {} bytes", sample.body.len());
    let answer = server.post("/thumbnail", sample.body).await;
    let thumbnail = image::load_from_memory_with_format(&answer.body, ImageFormat::Jpeg).unwrap();
    assert_eq!(thumbnail.dimensions(), (256, 192));
}

#[tokio::test]
async fn quickstart_prints_its_own_address_in_what_there_is_to_try() {
    let mut server = start("quickstart", &[]).await;
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| line.trim() != "done") {
        lines.push(server.line().await.expect("the loop to try ends with `done`"));
    }
    let curls: Vec<_> = lines.iter().filter(|line| line.contains("curl ")).collect();
    assert_eq!(curls.len(), 5, "{lines:#?}");
    assert!(curls.iter().all(|curl| curl.contains(&server.url)), "{curls:#?}");
    assert!(curls.iter().any(|curl| curl.contains(r"%{time_total} s\n")), "{curls:#?}");
}

#[cfg(unix)]
#[tokio::test]
async fn quickstart_ends_with_a_report_on_either_signal() {
    for signal in ["INT", "TERM"] {
        let server = start("quickstart", &[]).await;
        assert_eq!(server.post("/hash", "secret").await.status, StatusCode::OK);
        assert_eq!(server.post("/inline/hash", "secret").await.status, StatusCode::OK);
        server.signal(signal).await;
        let (code, report) = server.end().await;
        assert_eq!(report, "stopped: all connections ended; calls that the pool completed: 1");
        assert_eq!(code, Some(0));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn quickstart_finishes_a_request_that_came_before_the_signal() {
    let mut server = start("quickstart", &[]).await;
    let mut connection = TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
    connection
        .write_all(b"POST /hash HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n")
        .await
        .unwrap();
    // hyper sends this response when the handler first polls the body, so the handler has started.
    let mut interim = [0; 25];
    connection.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");

    server.signal("TERM").await;
    while !server.line().await.expect("the line that reports the shutdown").starts_with("shutting down") {}
    connection.write_all(b"secret").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, connection.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("$argon2id$"), "{answer}");

    let (code, report) = server.end().await;
    assert_eq!(report, "stopped: all connections ended; calls that the pool completed: 1");
    assert_eq!(code, Some(0));
}

#[cfg(unix)]
#[tokio::test]
async fn quickstart_ends_at_once_on_a_second_signal() {
    let mut server = start("quickstart", &[]).await;
    let mut connection = TcpStream::connect(server.url.trim_start_matches("http://")).await.unwrap();
    connection
        .write_all(b"POST /hash HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 6\r\n\r\n")
        .await
        .unwrap();
    let mut interim = [0; 25];
    connection.read_exact(&mut interim).await.unwrap(); // the body is never sent
    server.signal("INT").await;
    while !server.line().await.expect("the line that reports the shutdown").starts_with("shutting down") {}
    server.signal("INT").await;
    assert_eq!(server.end().await.0, Some(130));
}

#[tokio::test]
async fn quickstart_says_that_the_port_is_taken() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let output = run("quickstart", &["--port", &port.to_string()]).await;
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.starts_with(&format!("error: cannot listen on port {port}: ")), "{error}");
    assert!(error.contains("--port"), "what to do about it: {error}");
    assert!(output.stdout.is_empty(), "it must not claim to listen");
}

#[tokio::test]
async fn quickstart_explains_its_options_and_refuses_impossible_ones() {
    let help = run("quickstart", &["--help"]).await;
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("--port") && help.contains("--threads") && help.contains("3000"), "{help}");

    let cases = [
        (["--threads", "0", "--port=0"], "a pool with 0 threads runs no call"),
        (["--threads", "40000", "--port=0"], "over the limit"),
        (["--threads", "1", "--port=70000"], "70000"),
    ];
    for (arguments, reason) in cases {
        let refused = run("quickstart", &arguments).await;
        assert!(!refused.status.success());
        let error = String::from_utf8_lossy(&refused.stderr);
        assert!(error.contains(reason), "{error}");
    }
}

// ---- graceful_shutdown ----

#[cfg(unix)]
#[tokio::test]
async fn graceful_shutdown_finishes_a_running_task() {
    for signal in ["INT", "TERM"] {
        let mut server = start("graceful_shutdown", &["--grace", "60"]).await;
        assert_eq!(server.post("/mail/1", "").await.status, StatusCode::ACCEPTED);
        assert_eq!(server.line().await.as_deref(), Some("sending a mail"));
        server.signal(signal).await;
        assert_eq!(server.line().await.as_deref(), Some("sent"));
        let (code, report) = server.end().await;
        // The report does not count a task that ended before the shutdown of the background began.
        let ended = "stopped: all connections ended";
        assert!([ended, &format!("{ended}; tasks: 1 completed")].contains(&&*report), "{report}");
        assert_eq!(code, Some(0));
    }
}

#[cfg(unix)]
#[tokio::test]
async fn graceful_shutdown_reports_a_task_that_runs_too_long() {
    let mut server = start("graceful_shutdown", &["--grace", "1"]).await;
    assert_eq!(server.post("/mail/86400", "").await.status, StatusCode::ACCEPTED);
    assert_eq!(server.line().await.as_deref(), Some("sending a mail"));
    server.signal("TERM").await;
    let (code, report) = server.end().await;
    assert!(
        report.starts_with("stopped: all connections ended; tasks: 1 still running (task 1 `mail` for "),
        "{report}"
    );
    assert_eq!(code, Some(0));
}

// ---- examples that exit by themselves ----

/// Two of a burst of four have capacity. A request that a busy machine delays finds that the others
/// are done, so this may take several tries.
#[tokio::test]
async fn axum_answers_on_the_pool_beside_it_and_503() {
    for _ in 0..10 {
        let lines = lines_of("axum").await;
        let answers = |start: &str| lines.iter().filter(|line| line.starts_with(start)).count();
        let (written, refused) = (answers("POST /report: 200 OK written on reports-0"), answers("POST /report: 503 "));
        assert!(written + refused == 5 && written >= 3, "{lines:#?}");
        assert_eq!(answers("GET /report: 200 OK read on "), 1, "{lines:#?}");
        assert_eq!(answers("GET /report: 200 OK read on reports"), 0, "{lines:#?}");
        assert_eq!(answers("GET /ping: 200 OK pong"), 1, "{lines:#?}");
        if refused > 0 {
            return;
        }
    }
    panic!("no request of a burst was refused");
}

#[tokio::test]
async fn acknowledged_keeps_an_export_until_it_is_delivered() {
    let delivered = if cfg!(target_os = "linux") { "delivered and deleted" } else { "kept (complete, flushed)" };
    let expected = ["export 1: kept (aborted, not_delivered)".to_owned(), format!("export 1: {delivered}")];
    assert_eq!(lines_of("acknowledged").await, expected);
}

#[tokio::test]
async fn fair_by_tenant_answers_the_quiet_tenant_beside_the_greedy_one() {
    let lines = lines_of("fair_by_tenant").await;
    let count = |of: &str| {
        let line = lines.iter().find(|line| line.starts_with("greedy: ") && line.contains(of));
        line.and_then(|line| line.split(' ').nth(1)?.parse::<u32>().ok()).unwrap_or_default()
    };
    let starts = |start: &str| lines.iter().any(|line| line.starts_with(start));
    // A request that the machine delays finds that earlier ones are done.
    assert!(count("200 OK") >= 20 && count("200 OK") + count("429") == 50, "{lines:#?}");
    assert!(starts("quiet: 200 OK after"), "{lines:#?}");
}

#[tokio::test]
async fn busy_server_answers_some_jobs_and_rejects_others() {
    let lines = lines_of("busy_server").await;
    let jobs: Vec<u32> = lines[0].split(|it: char| !it.is_ascii_digit()).filter_map(|it| it.parse().ok()).collect();
    assert!(
        lines[0].contains(" answered, ") && jobs[0] == jobs[1] + jobs[2] && jobs[1] > 0 && jobs[2] > 0,
        "{lines:#?}"
    );
    assert!(lines[1].contains(" threads, busy for "), "{lines:#?}");
}

/// A run that the machine delays counts as long, so a busy machine may need several tries.
#[tokio::test]
async fn adaptive_runs_short_requests_where_they_are_made_until_one_is_long() {
    for _ in 0..10 {
        let lines = lines_of("adaptive").await;
        let in_place = |line: &String| -> u32 {
            let (_, count) = line.rsplit_once(", ").unwrap();
            count.split(' ').next().unwrap().parse().unwrap()
        };
        let in_place: Vec<_> = lines.iter().map(in_place).collect();
        assert!(in_place[0] == 0 && in_place[2] <= 1, "{lines:#?}");
        if in_place[1] > 0 {
            return;
        }
    }
    panic!("no request ran where it was made");
}

/// Which limit ends a leak depends on how fast the machine allocates.
#[tokio::test]
async fn process_pool_survives_what_its_work_does() {
    let server = start("process_pool", &[]).await;
    for (mode, status, killed_by) in
        [("loop", StatusCode::GATEWAY_TIMEOUT, "timeout"), ("crash", StatusCode::INTERNAL_SERVER_ERROR, "crash")]
    {
        let answer = server.get(&format!("/render?mode={mode}")).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        assert!(answer.text().contains(&format!(r#""killed_by":"{killed_by}""#)), "{}", answer.text());
    }
    let leak = server.get("/render?mode=leak").await;
    assert!([r#":"memory""#, r#":"timeout""#].iter().any(|by| leak.text().contains(by)), "{}", leak.text());
    assert_eq!(server.get("/render?mode=ok").await.status, StatusCode::OK);
    assert_eq!(server.get("/ping").await.text(), "pong\n");
    assert!(server.get("/stats").await.text().contains("crashed: 1"));
    server.signal("TERM").await;
    assert_eq!(server.end().await.0, Some(0));
}

#[cfg(unix)]
#[tokio::test]
async fn workers_serve_one_port_and_are_replaced() {
    let mut server = start("workers", &["--workers", "2"]).await;
    let mut pids = Vec::new();
    for reloads in 0..2 {
        while pids.len() < 2 * (reloads + 1) {
            let line = server.line().await.unwrap();
            let ready = line.strip_prefix("worker ").and_then(|line| line.strip_suffix(" ready"));
            pids.extend(ready.map(str::to_owned));
        }
        assert_eq!(server.get("/slow/1").await.status, StatusCode::OK);
        assert!(pids.contains(&server.get("/pid").await.text().to_owned()));
        server.signal(if reloads == 0 { "HUP" } else { "TERM" }).await;
    }
    let (code, report) = server.end().await;
    assert_eq!((code, &*report), (Some(0), "stopped: workers started: 4, died: 0, killed: 0; reloads: 1"));
}

/// As systemd passes a socket, but without `LISTEN_PID`, which only it can know.
#[cfg(unix)]
#[tokio::test]
async fn workers_serve_a_socket_that_was_passed_to_the_supervisor() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut supervisor = tokio::process::Command::new("sh")
        .args(["-c", "exec \"$0\" --workers 1 3<&0 </dev/null"])
        .arg(example("workers"))
        .env("LISTEN_FDS", "1")
        .stdin(std::os::fd::OwnedFd::from(listener))
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.write_all(b"GET /slow/1 HTTP/1.1\r\nhost: site\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    timeout(PATIENCE, connection.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    supervisor.kill().await.unwrap();
}

/// The test allows further reports: on a busy machine, the operating system may preempt any thread
/// for long enough.
#[tokio::test]
async fn blocking_detector_names_the_route_that_blocks() {
    let lines = lines_of("blocking_detector").await;
    let after = |start: &str| lines.iter().position(|line| line == start).expect(start);
    let (inline, offloaded) = (after("inline:"), after("offloaded:"));
    let reported = |line: &String| line.starts_with("PUT /users/{id} blocked the event loop for ");
    assert!(lines[inline..offloaded].iter().any(reported), "{lines:#?}");
    let answers = lines.iter().filter(|line| *line == "PUT /users/7: 200 OK").count();
    assert_eq!(answers, 2, "{lines:#?}");
}

#[tokio::test]
async fn hyper_answers_from_the_pool() {
    let lines = lines_of("hyper").await;
    assert_eq!(lines.iter().filter(|line| line.starts_with("counting on cpu-")).count(), 3, "{lines:#?}");
    assert!(lines.contains(&"1000000 bytes: 0.000 bits a byte".to_owned()), "{lines:#?}");
    assert!(lines.contains(&"256 bytes: 8.000 bits a byte".to_owned()), "{lines:#?}");
}

#[tokio::test]
async fn blocking_handler_answers_with_state_path_json_and_a_stream() {
    let lines = lines_of("blocking_handler").await;
    let expected = [
        "PUT /notes/7: 201 Created ",
        r#"GET /notes/7: 200 OK {"text":"milk"}"#,
        "GET /export/3: 200 OK line 1",
        "line 2",
        "line 3",
    ];
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn deadline_cancels_what_runs_and_never_starts_what_waits() {
    let lines = lines_of("deadline").await;
    let mut answers: Vec<_> = lines.iter().filter(|line| line.starts_with('/')).map(String::as_str).collect();
    answers.sort_unstable(); // a busy machine may delay one of them
    let expected = [
        "/report/10 with 100 ms: 504 Gateway Timeout ",
        "/report/10 with 5000 ms: 200 OK done",
        "/report/2000 with 900 ms: 504 Gateway Timeout ",
    ];
    assert_eq!(answers, expected);
    let count = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    assert_eq!((count("/report/10 starts"), count("/report/2000 starts")), (1, 1), "{lines:?}");
    assert_eq!((count("stops after"), count(": deadline_exceeded")), (1, 1), "{lines:?}");
}

#[tokio::test]
async fn tls_connections_are_tracked() {
    let lines = lines_of("tls").await;
    assert!(lines.contains(&"HTTP/1.1 200 OK".to_owned()), "{lines:?}");
    assert!(lines.contains(&"complete flushed".to_owned()), "{lines:?}");
    assert!(lines.last().unwrap().starts_with("stopped: all connections ended"), "{lines:?}");
}

#[tokio::test]
async fn tonic_checks_on_the_pool_and_refuses_in_grpc() {
    let lines = lines_of("tonic").await;
    assert!(lines[0].starts_with("checked on blocking-"), "{lines:?}"); // any thread of the pool
    assert_eq!(lines[1..], ["status: Serving", "after shutdown: Some(Unavailable)"]);
}

#[tokio::test]
async fn tower_tells_results_errors_and_refusals_apart() {
    let lines = lines_of("tower").await;
    let (threads, results): (Vec<_>, Vec<_>) = lines.into_iter().partition(|line| line.starts_with("counted on "));
    assert!(threads.len() == 2 && threads.iter().all(|line| line.starts_with("counted on numbers-")), "{threads:#?}");
    let expected = [
        "below 1000: 168",
        "error: 18446744073709551615 is above the limit, a rejection: false",
        "rejected: the pool has no capacity for the call (Some(Overloaded))",
        "below 1000000: 78498",
        "all calls completed: true",
    ];
    assert_eq!(results, expected);
}

#[test]
fn examples_are_short_enough_to_paste() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    for file in fs::read_dir(directory).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "rs") {
            continue; // a program of several files is meant to be run, not pasted
        }
        // These servers are meant to be run, not pasted.
        let is_server = ["quickstart.rs", "after_response.rs"].iter().any(|server| path.ends_with(server));
        let limit = if is_server { 240 } else { 75 };
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= limit, "{} has {lines} lines", path.display());
    }
}

// ---- programs ----

fn example(name: &str) -> PathBuf {
    tower_offload_tests::example(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"), name)
}

async fn start(name: &str, arguments: &[&str]) -> Server {
    Server::start(&example(name), arguments).await
}

async fn run(name: &str, arguments: &[&str]) -> Output {
    tower_offload_tests::run(&example(name), arguments).await
}

async fn lines_of(name: &str) -> Vec<String> {
    tower_offload_tests::lines_of(&example(name)).await
}

// ---- pictures ----

fn gradient(width: u32, height: u32) -> RgbaImage {
    RgbaImage::from_fn(width, height, |x, y| Rgba([(x % 256) as u8, (y % 256) as u8, 128, 255]))
}

fn png(image: &RgbaImage) -> Bytes {
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, ImageFormat::Png).unwrap();
    file.into_inner().into()
}

fn jpeg(image: &RgbaImage) -> Bytes {
    let mut file = Vec::new();
    DynamicImage::from(image.clone()).into_rgb8().write_with_encoder(JpegEncoder::new(&mut file)).unwrap();
    file.into()
}

/// Returns a JPEG file with rotated pixels and an orientation in its metadata. Phones store photos
/// taken upright in this way.
fn rotated_jpeg(image: &RgbaImage) -> Bytes {
    // A little-endian TIFF header, then a directory with one entry: orientation (0x0112), one short
    // with the value 6, which means a quarter turn.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let mut file = Vec::new();
    let mut encoder = JpegEncoder::new(&mut file);
    encoder.set_exif_metadata(exif.to_vec()).unwrap();
    DynamicImage::from(image.clone()).into_rgb8().write_with_encoder(encoder).unwrap();
    file.into()
}

/// Returns a small file whose header makes a decoder allocate `width * height * 4` bytes.
fn png_that_claims_to_be(width: u32, height: u32) -> Bytes {
    let size = [width.to_be_bytes(), height.to_be_bytes()].concat();
    let header = [&size[..], &[8, 6, 0, 0, 0]].concat(); // 8 bits per channel, RGBA
    [&b"\x89PNG\r\n\x1a\n"[..], &chunk(b"IHDR", &header), &chunk(b"IDAT", &[]), &chunk(b"IEND", &[])].concat().into()
}

fn chunk(name: &[u8], data: &[u8]) -> Vec<u8> {
    let named = [name, data].concat();
    let checksum = !named.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| (sum >> 1) ^ (0xEDB8_8320 & (sum & 1).wrapping_neg()))
    });
    let length = u32::try_from(data.len()).unwrap();
    [&length.to_be_bytes()[..], &named, &checksum.to_be_bytes()].concat()
}
