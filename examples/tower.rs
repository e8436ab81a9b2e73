//! The layer around a tower service other than HTTP: `cargo run --example tower`.

use std::{error::Error, process::ExitCode, thread, time::Duration};

use tower::{Service, ServiceBuilder, ServiceExt};
use tower_offload::{
    CallError, OffloadLayer, ThreadPool, cancelled,
    offload::{RejectWithError, service_fn_blocking},
    pool::Pool,
};

/// Counts the primes below a limit by trial division.
fn count_primes(below: u64) -> Result<usize, String> {
    if below > 100_000_000 {
        return Err(format!("{below} is above the limit"));
    }
    let is_prime =
        |&number: &u64| (2..).take_while(|factor| factor * factor <= number).all(|factor| number % factor > 0);
    // Stops early if the caller has dropped the call.
    let found = (2..below).take_while(|number| number % 4096 > 0 || !cancelled()).filter(is_prime).count();
    println!("counted on {}", thread::current().name().unwrap_or("an unnamed thread"));
    Ok(found)
}

#[tokio::main]
async fn main() -> ExitCode {
    let Err(error) = run().await else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

async fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let pool = ThreadPool::builder().name("numbers").build()?;
    let mut primes = ServiceBuilder::new()
        .layer(OffloadLayer::new(pool.clone()).max_in_flight(1).reject(RejectWithError)) // rejections are errors
        .service(service_fn_blocking(count_primes));

    println!("below 1000: {}", primes.ready().await?.call(1000).await?);

    // Errors of the service and rejections have the same boxed type.
    let error = primes.ready().await?.call(u64::MAX).await.expect_err("over the limit");
    println!("error: {error}, a rejection: {}", error.is::<CallError>());

    // `max_in_flight(1)`: the second call is rejected while the first one runs.
    let first = primes.ready().await?.call(1_000_000);
    let error = primes.ready().await?.call(10).await.expect_err("the first call is in flight");
    println!("rejected: {error} ({:?})", error.downcast_ref::<CallError>());
    println!("below 1000000: {}", first.await?);

    let report = pool.shutdown(Duration::from_secs(5)).await;
    println!("all calls completed: {}", report.is_empty());
    Ok(())
}
