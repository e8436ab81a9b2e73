//! Passwords and thumbnails over HTTP, on a pool and beside it: `cargo run --release --example quickstart`.
//!
//! The same two handlers are served twice. Under `/` an `OffloadLayer` takes them to a pool; under `/inline` they run where
//! axum calls them, on the event loop, and `/ping` has to wait for them. The program prints what to type to feel it.

use std::{error::Error, io::Cursor, net::Ipv4Addr, process::ExitCode, time::Duration};

use argon2::{Argon2, password_hash::PasswordHasher};
use axum::{
    Router,
    body::Bytes,
    extract::DefaultBodyLimit,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::{get, post},
};
use clap::Parser;
use image::{
    DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage, Rgba, RgbaImage, imageops,
};
use tokio::{net::TcpListener, sync::oneshot, time};
use tower_offload::{OffloadLayer, Pool, ThreadPool};

const BODY_LIMIT: usize = 20 * 1024 * 1024;
/// A small file can claim to be a huge image: decoding stops before that much memory is taken.
const MAX_PIXEL_BYTES: u64 = 256 * 1024 * 1024;
const MAX_SIDE: u32 = 12_000;
const THUMBNAIL_SIDE: u32 = 256;
/// How long requests may take to end after Ctrl-C.
const DRAIN: Duration = Duration::from_secs(10);

/// Hashes passwords and shrinks images, without making others wait.
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Threads of the CPU pool [default: as many as the machine runs at once].
    #[arg(long)]
    threads: Option<usize>,
}

/// Handlers as anyone writes them first: they compute for a long time and never await.
fn heavy() -> Router {
    Router::new()
        .route("/hash", post(hash))
        .route("/thumbnail", post(thumbnail))
        .route("/sample.png", get(sample))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
}

fn app(cpu: &ThreadPool) -> Router {
    Router::new()
        .merge(heavy().layer(OffloadLayer::new(cpu.clone()))) // this layer is all the difference
        .nest("/inline", heavy())
        .route("/ping", get(async || "pong\n"))
}

type Refusal = (StatusCode, String);

fn internal(error: impl Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

/// The body's argon2id hash, with a random salt, as a PHC string.
async fn hash(password: Bytes) -> Result<String, Refusal> {
    if password.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "send the password as the request body\n".into()));
    }
    let hash = Argon2::default().hash_password(&password).map_err(internal)?;
    Ok(format!("{hash}\n"))
}

/// A JPEG of at most 256x256 pixels of the JPEG or PNG in the body.
async fn thumbnail(image: Bytes) -> Result<impl IntoResponse, Refusal> {
    if image.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "send a JPEG or PNG as the request body\n".into()));
    }
    let jpeg = shrink(&image).map_err(|error| {
        let (status, what) = match &error {
            ImageError::Unsupported(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "this is no JPEG or PNG"),
            ImageError::Limits(_) => (StatusCode::PAYLOAD_TOO_LARGE, "the image has too many pixels"),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "the image is broken"),
        };
        (status, format!("{what}: {error}\n"))
    })?;
    Ok(([(CONTENT_TYPE, "image/jpeg")], jpeg))
}

fn shrink(file: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(MAX_PIXEL_BYTES);

    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(ImageError::IoError)?;
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    let orientation = decoder.orientation()?; // phones store photos as the sensor saw them
    let mut image = DynamicImage::from_decoder(decoder)?;
    if image.width() > THUMBNAIL_SIDE || image.height() > THUMBNAIL_SIDE {
        image = image.thumbnail(THUMBNAIL_SIDE, THUMBNAIL_SIDE);
    }
    image.apply_orientation(orientation);

    // JPEG knows no transparency: what shows through is white.
    let mut canvas = RgbaImage::from_pixel(image.width(), image.height(), Rgba([255; 4]));
    imageops::overlay(&mut canvas, &image.to_rgba8(), 0, 0);
    encode(DynamicImage::from(canvas).into_rgb8(), ImageFormat::Jpeg)
}

/// A picture for those who have none at hand: a sky with some noise in it, so that it is as large as a photo.
async fn sample() -> Result<impl IntoResponse, Refusal> {
    let mut noise = 1_u32;
    let picture = RgbImage::from_fn(2000, 1500, |x, y| {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let grain = (noise >> 28) as u8;
        Rgb([(x / 10) as u8 + grain, (y / 8) as u8 + grain, 160 + grain])
    });
    let png = encode(picture, ImageFormat::Png).map_err(internal)?;
    Ok(([(CONTENT_TYPE, "image/png")], png))
}

fn encode(image: RgbImage, format: ImageFormat) -> Result<Vec<u8>, ImageError> {
    let mut file = Cursor::new(Vec::new());
    image.write_to(&mut file, format)?;
    Ok(file.into_inner())
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = serve(Options::parse()).await else { return ExitCode::SUCCESS };
    eprint!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}

async fn serve(options: Options) -> Result<(), Box<dyn Error>> {
    let builder = ThreadPool::builder().name("cpu");
    let cpu = match options.threads {
        Some(threads) => builder.threads(threads).build()?,
        None => builder.build()?,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await;
    let listener = listener
        .map_err(|error| format!("cannot listen on port {}: {error}; choose another one with --port", options.port))?;
    let (stop, stopped) = oneshot::channel::<()>();
    let interrupted = interrupted()?; // from here on Ctrl-C drains
    let address = listener.local_addr()?;
    let server = axum::serve(listener, app(&cpu)).with_graceful_shutdown(async { drop(stopped.await) });
    let server = tokio::spawn(server.into_future());
    println!("listening on http://{address}, {} pool threads; Ctrl-C ends it", cpu.threads());
    print!("{}", try_this(&format!("http://{address}")));

    interrupted.await;
    let again = self::interrupted()?;
    println!("draining for at most {} s; Ctrl-C again ends it at once", DRAIN.as_secs());
    tokio::spawn(async move {
        again.await;
        std::process::exit(130) // what a shell reports for a program that Ctrl-C has ended
    });
    let deadline = time::Instant::now() + DRAIN;
    drop(stop);
    let connections = if time::timeout_at(deadline, server).await.is_ok() { "all closed" } else { "some cut off" };
    let left = cpu.shutdown(deadline.saturating_duration_since(time::Instant::now())).await;
    println!("stopped: connections {connections}; the pool did {} calls and left {left}", cpu.stats().completed);
    Ok(())
}

/// Ends with Ctrl-C, and on unix with SIGTERM, by which service managers say the same.
#[cfg(unix)]
fn interrupted() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn interrupted() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async { drop(tokio::signal::ctrl_c().await) })
}

fn try_this(url: &str) -> String {
    format!(
        r#"
Hash a password, shrink a picture (or any JPEG or PNG of yours):
  curl --data-binary 'correct horse' {url}/hash
  curl -s {url}/sample.png -o photo.png
  curl -s --data-binary @photo.png {url}/thumbnail -o small.jpg

Time /ping while 400 hashes run, 8 at once, on the event loop and then on the pool:
  for path in inline/hash hash; do
    curl --no-progress-meter -Z --parallel-max 8 -d secret -o /dev/null "{url}/$path?[1-400]" & sleep 0.5
    for i in 1 2 3 4 5 6 7 8 9 10; do curl -s -o /dev/null -w "beside $path: %{{time_total}} s\n" {url}/ping; done; wait
  done
"#
    )
}
