//! Hashes passwords and makes thumbnails over HTTP: `cargo run --release --example quickstart`.
//!
//! The same two handlers are served twice. Under `/` an `OffloadLayer` runs them on a pool. Under
//! `/inline` they run on the event loop, where `/ping` has to wait for them. The program prints
//! commands that show the difference.

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
use tokio::net::TcpListener;
use tower_offload::{
    OffloadLayer, ThreadPool,
    axum::{serve, shutdown_signal},
};

const BODY_LIMIT: usize = 20 * 1024 * 1024;
/// A small file can claim to be a huge image. The decoder fails before it allocates more than this.
const MAX_PIXEL_BYTES: u64 = 256 * 1024 * 1024;
const MAX_SIDE: u32 = 12_000;
const THUMBNAIL_SIDE: u32 = 256;
/// The time from Ctrl-C until the server has stopped.
const GRACE: Duration = Duration::from_secs(10);

/// Hashes passwords and shrinks images on a pool, so that other requests are not delayed.
#[derive(Parser)]
struct Options {
    /// The port to listen on; 0 takes any that is free.
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// The number of threads of the pool [default: one for each core].
    #[arg(long)]
    threads: Option<usize>,
}

/// Returns routes with ordinary async handlers that compute for a long time without an `.await`.
fn heavy() -> Router {
    Router::new()
        .route("/hash", post(hash))
        .route("/thumbnail", post(thumbnail))
        .route("/sample.png", get(sample))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
}

fn app(cpu: &ThreadPool) -> Router {
    Router::new()
        .merge(heavy().layer(OffloadLayer::new(cpu.clone()))) // the only difference
        .nest("/inline", heavy())
        .route("/ping", get(async || "pong\n"))
}

type Refusal = (StatusCode, String);

fn internal(error: impl Error) -> Refusal {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
}

/// Returns the argon2id hash of the body, with a random salt, as a PHC string.
async fn hash(password: Bytes) -> Result<String, Refusal> {
    if password.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "send the password as the request body\n".into()));
    }
    let hash = Argon2::default().hash_password(&password).map_err(internal)?;
    Ok(format!("{hash}\n"))
}

/// Returns a JPEG of at most 256x256 pixels, made from the JPEG or PNG in the body.
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
    let orientation = decoder.orientation()?; // phones store photos in the sensor's orientation
    let mut image = DynamicImage::from_decoder(decoder)?;
    if image.width() > THUMBNAIL_SIDE || image.height() > THUMBNAIL_SIDE {
        image = image.thumbnail(THUMBNAIL_SIDE, THUMBNAIL_SIDE);
    }
    image.apply_orientation(orientation);

    // JPEG has no transparency: put the image on a white background.
    let mut canvas = RgbaImage::from_pixel(image.width(), image.height(), Rgba([255; 4]));
    imageops::overlay(&mut canvas, &image.to_rgba8(), 0, 0);
    encode(DynamicImage::from(canvas).into_rgb8(), ImageFormat::Jpeg)
}

/// Returns a sample picture. Noise makes the file as large as that of a photo.
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
    let Err(error) = run(Options::parse()).await else { return ExitCode::SUCCESS };
    eprint!("error: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let builder = ThreadPool::builder().name("cpu");
    let cpu = match options.threads {
        Some(threads) => builder.threads(threads).build()?,
        None => builder.build()?,
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await;
    let listener = listener
        .map_err(|error| format!("cannot listen on port {}: {error}; choose another one with --port", options.port))?;
    let signal = shutdown_signal()?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}, {} pool threads; Ctrl-C ends it", cpu.threads());
    print!("{}", try_this(&url));

    let signal = async {
        signal.await;
        println!("shutting down within {} s; press Ctrl-C again to exit at once", GRACE.as_secs());
    };
    let report = serve(listener, app(&cpu)).shutdown(signal, GRACE, None).await;
    println!("stopped: {report}; calls that the pool completed: {}", cpu.stats().completed);
    Ok(())
}

fn try_this(url: &str) -> String {
    format!(
        r#"
Hash a password, shrink a picture (or any JPEG or PNG of yours):
  curl --data-binary 'correct horse' {url}/hash
  curl -s {url}/sample.png -o photo.png
  curl -s --data-binary @photo.png {url}/thumbnail -o small.jpg

Time /ping while 400 hashes run, 8 at once, on the event loop and then on the pool:
  for route in inline/hash hash; do
    curl --no-progress-meter -Z --parallel-max 8 -d secret -o /dev/null "{url}/$route?[1-400]" & sleep 0.5
    for i in 1 2 3 4 5 6 7 8 9 10; do curl -s -o /dev/null -w "beside $route: %{{time_total}} s\n" {url}/ping; done; wait
  done
"#
    )
}
